"""The client's bytes: where they come from, how long they are, and whether they can be sent again.

A source gives its bytes in chunks. A chunk is valid until the next one is asked for: files are read into one buffer over and over.
Whoever may have to send the bytes again (a transaction that is retried) needs a source that can be read again, or the caller's
word that giving up is fine. What cannot be read again says so before the first byte, and names the mends:

* `spooled` keeps what a reader gave in a temporary file, up to a limit;
* `resent` says that who sends the bytes sends them again, and that each attempt gets a source of its own;
* `once` says that a failure may be final.

Nothing here knows engines, pools or transactions.
"""

from __future__ import annotations

import io
import operator
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, cast, runtime_checkable

from fanout.errors import SourceError, SourceLengthError, SourceNotRereadable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from typing_extensions import Buffer

CHUNK_BYTES = 1 << 20  # one slot of the default engine: one call into the core per read


class Chunks(Iterator["Buffer"]):
    """One pass over a source: an iterator of chunks and a context manager that ends the pass.

    Each chunk is valid until the next one is asked for. Leaving the context, or `close`, releases what the pass holds.
    """

    def __init__(self, generator: Generator[Buffer, None, None]) -> None:
        self._generator = generator

    def __next__(self) -> Buffer:
        return next(self._generator)

    def close(self) -> None:
        """End the pass; idempotent."""
        self._generator.close()

    def __enter__(self) -> Chunks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@runtime_checkable
class Source(Protocol):
    """Bytes that can be asked for.

    Attributes:
        length: bytes that one pass gives; None: unknown until it ends. A pass that gives another number raises
            `SourceLengthError`.
        rereadable: whether `open` may be called again after a pass, finished or not.
    """

    @property
    def length(self) -> int | None:
        """Bytes of one pass, or None."""
        ...

    @property
    def rereadable(self) -> bool:
        """Whether another pass is possible."""
        ...

    def open(self) -> Chunks:
        """Begin a pass.

        Raises:
            SourceNotRereadable: a second pass of a source that is not rereadable.
        """
        ...


def as_source(value: Any, *, length_hint: int | None = None, resend: bool = True) -> Source:
    """Make a source of anything that holds or gives bytes.

    Args:
        value: a path (`str` or `os.PathLike`), a bytes-like object, a binary reader, an iterable of bytes-like objects, or a
            `Source`. A `bytes` value is data, never a path.
        length_hint: the length in bytes of a reader or iterable that does not know its own; the pass is held to it.
        resend: whether the bytes may have to be sent again. With False, anything will do.

    Raises:
        SourceNotRereadable: `resend`, and `value` is an unseekable reader or a one-time iterator that is not wrapped.
        OSError: the path cannot be looked at.
        TypeError: `value` gives no bytes.
    """
    source = _wrap(value, length_hint)
    if resend and not source.rereadable and not isinstance(source, OnceSource):
        what = getattr(source, "name", type(value).__name__)
        raise SourceNotRereadable(
            f"{what}: cannot be read a second time if a pool fails; wrap it in fanout.spooled(…, limit_bytes=…) to keep a copy while"
            " it is sent, in fanout.resent(…) if its sender sends it again, or in fanout.once(…) if a failure may be final, or give a path or a"
            " seekable file"
        )
    return source


def spooled(
    reader: Any,
    *,
    limit_bytes: int,
    directory: str | os.PathLike[str] | None = None,
    length: int | None = None,
) -> SpooledSource:
    """Make a reader or iterator rereadable by keeping what it gave in an unlinked temporary file.

    The first pass does not wait for the copy: it hands each chunk on and keeps it. A later pass gives the kept bytes and then goes
    on where the reader stood.

    Args:
        reader: anything that `as_source` takes.
        limit_bytes: the most that is kept. A pass that would go beyond raises `SourceError`.
        directory: where the file lies; default: the system's.
        length: bytes to come, if known.
    """
    if limit_bytes < 0:
        raise ValueError(f"limit_bytes must not be negative: {limit_bytes}")
    return SpooledSource(_wrap(reader, length), limit_bytes=limit_bytes, directory=directory)


def once(reader: Any, *, length: int | None = None) -> OnceSource:
    """Say that a source may be used although it cannot be read again: a failure that needs a resend is then final.

    Args:
        reader: anything that `as_source` takes.
        length: bytes to come, if known.
    """
    return OnceSource(_wrap(reader, length))


def resent(reader: Any, *, length: int | None = None) -> ResentSource:
    """Say that who sends these bytes hears of a failure, and sends them again: each attempt then gets a source of its own.

    Args:
        reader: anything that `as_source` takes.
        length: bytes to come, if known.
    """
    return ResentSource(_wrap(reader, length))


def length_of(source: Source) -> int | None:
    """What a source says of its length, as a whole number: others would be taken along into offsets on media.

    Raises:
        SourceLengthError: it is negative.
        TypeError: it is no whole number.
    """
    said = source.length
    if said is None:
        return None
    length = operator.index(said)
    if length < 0:
        name = getattr(source, "name", type(source).__name__)
        raise SourceLengthError(f"{name}: says that it has {length} bytes")
    return length


# ---- the kinds ---------------------------------------------------------------------------------------------------------


class BytesSource:
    """A bytes-like object. Its buffer is held while a pass runs; the caller may not resize it then."""

    rereadable = True

    def __init__(self, data: Buffer) -> None:
        self._data = data
        with memoryview(data) as view:
            if not view.c_contiguous:
                raise BufferError("the buffer is not C-contiguous")
            self.length: int | None = view.nbytes

    def open(self) -> Chunks:
        """Begin a pass; gives the whole buffer as one chunk."""
        return Chunks(self._read())

    def _read(self) -> Generator[Buffer, None, None]:
        if self.length:
            with memoryview(self._data) as view:
                yield view


class PathSource:
    """A file by its path. A regular file has the length that it had when the source was made, and is held to it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(21, os.strerror(21), self.name)
        self.rereadable = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
        self.length: int | None = None
        if self.rereadable:
            with open(self.name, "rb", buffering=0) as file:
                self.length = file.seek(0, io.SEEK_END)
        self._used = False

    def open(self) -> Chunks:
        """Begin a pass: the file is opened anew, and read in pieces of `CHUNK_BYTES` into one buffer."""
        _claim(self, self.name)
        return Chunks(_exactly(self._read(), self.length, self.name))

    def _read(self) -> Generator[Buffer, None, None]:
        # Unbuffered readinto of one reused buffer: the page cache is copied once, and nothing is allocated per chunk.
        with open(self.name, "rb", buffering=0) as file:
            if self.rereadable:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            with naming(self.name):
                yield from _read_into(file.readinto, self.length)


class ReaderSource:
    """A binary reader. A seekable one is read from where it stood when the source was made, each pass anew."""

    def __init__(self, reader: Any, length: int | None) -> None:
        self.name = str(getattr(reader, "name", type(reader).__name__))
        self._reader, self._start, self._used = reader, 0, False
        seekable = getattr(reader, "seekable", None)
        self.rereadable = bool(seekable and seekable()) and not _is_character_device(reader)
        if self.rereadable:
            self._start = reader.tell()
            end = reader.seek(0, io.SEEK_END)
            reader.seek(self._start)
            length = max(0, end - self._start) if length is None else length
        self.length = length

    def open(self) -> Chunks:
        """Begin a pass; a seekable reader is taken back to where it began."""
        _claim(self, self.name)
        if self.rereadable:
            self._reader.seek(self._start)
        return Chunks(_exactly(self._read(), self.length, self.name))

    def _read(self) -> Generator[Buffer, None, None]:
        readinto = getattr(self._reader, "readinto", None)
        if readinto is not None:
            yield from _read_into(readinto, self.length)
        else:
            yield from _read_new(self._reader.read)


class IterableSource:
    """An iterable of bytes-like objects. A list or any other iterable that makes a new iterator each time is rereadable."""

    def __init__(self, chunks: Iterable[Buffer], length: int | None) -> None:
        self.name = type(chunks).__name__
        self._chunks, self._used = chunks, False
        # One that hands the same iterator out each time has nothing left for a second pass.
        self.rereadable = not isinstance(chunks, Iterator) and iter(chunks) is not iter(chunks)
        if length is None and isinstance(chunks, Sequence):
            length = sum(memoryview(chunk).nbytes for chunk in chunks)
        self.length = length

    def open(self) -> Chunks:
        """Begin a pass."""
        _claim(self, self.name)
        return Chunks(_exactly(iter(self._chunks), self.length, self.name))


class _OnePass:
    """Wraps a source of which there is one pass."""

    def __init__(self, inner: Source) -> None:
        self._inner, self._used = inner, False
        self.name = str(getattr(inner, "name", type(inner).__name__))

    @property
    def length(self) -> int | None:
        """Of the wrapped source."""
        return self._inner.length


class OnceSource(_OnePass):
    """A source with the caller's word that it need not be read again."""

    rereadable = False

    def open(self) -> Chunks:
        """Begin the one pass."""
        _claim(self, self.name)
        return self._inner.open()


class ResentSource(_OnePass):
    """A source that is read once; what comes in its place is sent again by somebody else, and is another source."""

    rereadable = True  # by the sender

    def open(self) -> Chunks:
        """Begin the one pass."""
        if self._used:
            raise SourceNotRereadable(
                f"{self.name}: was read already; give each attempt what was sent for it, in a new fanout.resent(…)"
            )
        self._used = True
        return self._inner.open()


class SpooledSource:
    """A source that keeps what it gave in a temporary file, up to a limit; `close` (or forgetting it) drops the file."""

    rereadable = True

    def __init__(
        self, inner: Source, *, limit_bytes: int, directory: str | os.PathLike[str] | None
    ) -> None:
        self.name = str(getattr(inner, "name", type(inner).__name__))
        self._inner, self._limit, self._kept = inner, limit_bytes, 0
        self._chunks: Chunks | None = None
        self._ended = False
        self._broken: BaseException | None = None
        self._length = inner.length
        if self._length is not None and self._length > limit_bytes:
            raise SourceError(
                f"{self.name}: has {self._length} bytes, its spool may keep {limit_bytes}; raise limit_bytes (--spool)"
            )
        self._file = tempfile.TemporaryFile(buffering=0, dir=directory)  # noqa: SIM115

    @property
    def length(self) -> int | None:
        """Of the wrapped source; known for sure once it has ended."""
        return self._kept if self._ended else self._length

    def open(self) -> Chunks:
        """Begin a pass: first what was kept, then the reader from where it stood."""
        return Chunks(self._read())

    def close(self) -> None:
        """Drop the temporary file and the reader's pass; idempotent."""
        if self._chunks is not None:
            self._chunks.close()
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()

    def _read(self) -> Generator[Buffer, None, None]:
        buffer, position = bytearray(CHUNK_BYTES), 0
        with memoryview(buffer) as view:
            while True:
                if position < self._kept:
                    chunk: Buffer = view[: self._replay(view, position)]
                elif self._ended or (fresh := self._pull()) is None:
                    return
                else:
                    chunk = fresh
                position += memoryview(chunk).nbytes
                yield chunk

    def _replay(self, view: memoryview, position: int) -> int:
        count = os.preadv(self._file.fileno(), [view[: self._kept - position]], position)
        if count == 0:
            raise SourceError(f"{self.name}: the spool lost what it held from byte {position} on")
        return count

    def _pull(self) -> Buffer | None:
        """Take the next chunk from the reader and keep it; None at its end.

        A chunk that was taken but not kept would be missing from the next pass, so any failure here is final.
        """
        if self._broken is not None:
            raise SourceError(f"{self.name}: an earlier pass broke off for good") from self._broken
        if self._chunks is None:
            self._chunks = self._inner.open()
        try:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._ended = True
            else:
                self._keep(chunk)
        except BaseException as error:
            self._broken = error
            raise
        return chunk

    def _keep(self, chunk: Buffer) -> None:
        with memoryview(chunk) as whole, whole.cast("B") as view:
            if self._kept + len(view) > self._limit:
                raise SourceError(
                    f"{self.name}: gave more than the {self._limit} bytes that its spool may keep; raise limit_bytes (--spool)"
                )
            written = 0
            while written < len(view):
                written += os.pwrite(self._file.fileno(), view[written:], self._kept + written)
            self._kept += len(view)


# ---- helpers -----------------------------------------------------------------------------------------------------------


# `isinstance` looks for them, too, four times as long.
_OF_SOURCES = ("open", "length", "rereadable")


def _wrap(value: Any, length: int | None) -> Source:
    if length is not None and length < 0:
        raise ValueError(f"a length must not be negative: {length}")
    if isinstance(value, str | os.PathLike):
        if isinstance(os.fspath(value), bytes):
            raise TypeError("a path must be text; bytes are data")
        return PathSource(value)
    if _is_buffer(value):
        return BytesSource(value)
    if isinstance(value, io.TextIOBase):
        raise TypeError(f"{value!r} gives text; open it in binary mode")
    if hasattr(value, "read") or hasattr(value, "readinto"):
        return ReaderSource(value, length)
    if all(hasattr(value, name) for name in _OF_SOURCES):
        return cast("Source", value)
    if isinstance(value, Iterable):
        return IterableSource(value, length)
    raise TypeError(
        f"{type(value).__name__} gives no bytes: want a path, bytes, a binary reader or an iterable of bytes"
    )


def _is_buffer(value: object) -> TypeGuard[Buffer]:
    try:
        memoryview(value).release()  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _is_character_device(reader: Any) -> bool:
    """A tape or /dev/zero takes a seek and goes nowhere: its end says nothing of its length."""
    try:
        number = reader.fileno()
    except (AttributeError, OSError):
        return False
    return stat.S_ISCHR(os.fstat(number).st_mode)


def _claim(source: Any, name: str) -> None:
    """Count a pass; refuse a second one of what can be read only once."""
    if source._used and not source.rereadable:
        raise SourceNotRereadable(f"{name}: was read already and cannot be read again")
    source._used = True


@contextmanager
def naming(path: str) -> Iterator[None]:
    """An error of the kernel's says of which file it is; those of reading do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def _read_into(
    readinto: Callable[[memoryview], int | None], length: int | None
) -> Generator[Buffer, None, None]:
    # One byte more than there should be is seen. A larger one would be filled with zeros for nothing: most of what a small object costs.
    buffer = bytearray(CHUNK_BYTES if length is None else min(CHUNK_BYTES, length + 1))
    with memoryview(buffer) as view:
        while True:
            count = readinto(view)
            if count is None:
                raise SourceError("the reader is in non-blocking mode; fanout needs one that waits")
            if not count:
                return
            yield view[:count]


def _read_new(read: Callable[[int], Buffer | None]) -> Generator[Buffer, None, None]:
    while True:
        chunk = read(CHUNK_BYTES)
        if chunk is None:
            raise SourceError("the reader is in non-blocking mode; fanout needs one that waits")
        if isinstance(chunk, str):
            raise TypeError("the reader gives text; open it in binary mode")
        if not memoryview(chunk).nbytes:
            return
        yield chunk


def _exactly(
    chunks: Iterator[Buffer], length: int | None, name: str
) -> Generator[Buffer, None, None]:
    """Pass chunks on and hold them to the promised length, before a byte too many goes out."""
    given = 0
    for chunk in chunks:
        given += memoryview(chunk).nbytes
        if length is not None and given > length:
            raise SourceLengthError(
                f"{name}: gave more than the {length} bytes that it said; did it grow while it was read?"
            )
        yield chunk
    if length is not None and given < length:
        raise SourceLengthError(
            f"{name}: ended after {given} of {length} bytes; was it cut while it was read?"
        )
