"""Sources give exactly the bytes they promise, once or again, or say why not before the first byte."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import pytest

from fanout.errors import SourceError, SourceLengthError, SourceNotRereadable
from fanout.sources import CHUNK_BYTES, Source, as_source, once, resent, spooled

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

DATA = bytes(range(256)) * 10_000


def drain(source: Source) -> bytes:
    with source.open() as chunks:
        return b"".join(bytes(memoryview(chunk)) for chunk in chunks)


class Pipe(io.RawIOBase):
    """A reader that cannot seek and gives odd pieces."""

    def __init__(self, data: bytes = DATA, piece: int = 70_001) -> None:
        self._data, self._piece = io.BytesIO(data), piece

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        return self._data.readinto(view[: self._piece])


class OnlyRead:
    """The least that a reader can be."""

    def __init__(self, data: bytes = DATA) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._data.read(size)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.write_bytes(DATA)
    return made


class Asked(io.BytesIO):
    """Says how much it was asked for at most."""

    most = 0

    def readinto(self, buffer: Any) -> int:
        self.most = max(self.most, memoryview(buffer).nbytes)
        return super().readinto(buffer)


@pytest.mark.parametrize("size", [0, 1, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES])
def test_a_small_object_gets_a_small_buffer(size: int) -> None:
    """For each file of a tree a whole chunk was filled with zeros: of 4 KiB that took longer than to read it."""
    reader = Asked(DATA[:size].ljust(size, b"x"))
    assert len(drain(as_source(reader))) == size
    assert reader.most == min(size + 1, CHUNK_BYTES)  # one byte more, to see one too many


def test_what_can_be_read_again_is_the_same_again(path: Path) -> None:
    """Breaks if a retried transaction sends other bytes than the first attempt."""
    with path.open("rb") as file:
        for value in (
            path,
            str(path),
            DATA,
            bytearray(DATA),
            memoryview(DATA),
            io.BytesIO(DATA),
            file,
            [DATA[:9], DATA[9:]],
        ):
            source = as_source(value)
            assert source.rereadable
            assert source.length == len(DATA)
            with source.open() as chunks:
                next(chunks)
            assert drain(source) == drain(source) == DATA


def test_a_reader_is_taken_from_where_it_stands() -> None:
    """Breaks if a second pass starts at byte 0 of a file that was handed over in the middle."""
    reader = io.BytesIO(DATA)
    reader.seek(1000)
    source = as_source(reader)
    assert source.length == len(DATA) - 1000
    assert drain(source) == drain(source) == DATA[1000:]


def test_a_file_is_read_into_one_buffer(path: Path) -> None:
    """Breaks if reading a large file allocates for every chunk."""
    with path.open("r+b") as file:
        file.truncate(3 * CHUNK_BYTES)
    with as_source(path).open() as chunks:
        owners = {id(memoryview(chunk).obj) for chunk in chunks}
    assert len(owners) == 1


class Wrapped:
    """An iterable that is no iterator, and has one."""

    def __init__(self) -> None:
        self.chunks = iter([b"one", b"two"])

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks


def test_a_wrapped_iterator_cannot_be_read_again() -> None:
    """Taken for a list, it had nothing left for the resend: an empty object was stored, with full success."""
    with pytest.raises(SourceNotRereadable, match=r"Wrapped: .*spooled"):
        as_source(Wrapped())
    kept = spooled(Wrapped(), limit_bytes=10)
    assert [b"".join(map(bytes, kept.open())) for _ in range(2)] == [b"onetwo"] * 2


def generated() -> Iterator[bytes]:
    yield DATA[:5]
    yield b""
    yield DATA[5:]


@pytest.mark.parametrize("make", [Pipe, OnlyRead, generated])
def test_what_cannot_be_read_again_says_so_first(make: Any) -> None:
    """Breaks if the lack of a second pass is found out when it is needed."""
    with pytest.raises(SourceNotRereadable, match=r"spooled.*resent.*once"):
        as_source(make())
    assert drain(as_source(make(), resend=False)) == DATA
    source = as_source(once(make(), length=len(DATA)))
    assert (source.length, source.rereadable) == (len(DATA), False)
    assert drain(source) == DATA
    with pytest.raises(SourceNotRereadable):
        source.open()


@pytest.mark.parametrize("make", [Pipe, OnlyRead, generated])
def test_what_its_sender_sends_again_is_read_once(make: Any) -> None:
    """Breaks if a second pass gives nothing, or what its sender sent after it."""
    source = as_source(resent(make(), length=len(DATA)))
    assert (source.length, source.rereadable) == (len(DATA), True)
    assert drain(source) == DATA
    with pytest.raises(SourceNotRereadable, match=r"read already.*each attempt"):
        source.open()
    with pytest.raises(SourceLengthError):
        drain(resent(make(), length=len(DATA) - 1))


def test_a_spool_keeps_what_went_through(tmp_path: Path, rng: random.Random) -> None:
    """Breaks if a pass that broke off makes the next one lose, double or reorder a chunk."""
    source = spooled(Pipe(), limit_bytes=len(DATA), directory=tmp_path)
    unknown = source.length
    assert unknown is None
    for _ in range(20):
        with source.open() as chunks:
            taken = b"".join(bytes(memoryview(next(chunks, b""))) for _ in range(rng.randrange(6)))
        assert DATA.startswith(taken)
    assert drain(source) == drain(source) == DATA
    assert source.length == len(DATA)
    assert not list(tmp_path.iterdir()), "the spool has no name"
    source.close()


def test_a_spool_has_a_limit() -> None:
    """Breaks if an endless reader fills the disk."""
    with pytest.raises(SourceError, match="raise limit_bytes"):
        spooled(Pipe(), limit_bytes=10, length=len(DATA))
    source = spooled(Pipe(), limit_bytes=100_000)
    for _ in range(2):
        with pytest.raises(SourceError):
            drain(source)


def test_a_failing_reader_is_not_taken_for_the_end() -> None:
    """Breaks if an error of the client's reader becomes a short object, or is dressed up as ours."""

    class Broken(Exception):
        pass

    def breaks() -> Iterator[bytes]:
        yield b"begun"
        raise Broken

    source = spooled(breaks(), limit_bytes=100)
    with pytest.raises(Broken):
        drain(source)
    with pytest.raises(SourceError):
        drain(source)
    with pytest.raises(Broken):
        drain(once(breaks()))


def test_a_file_that_changes_its_length(path: Path) -> None:
    """Breaks if a file that grows or shrinks while it is read is stored as if nothing had happened."""
    for length in (len(DATA) + 1, len(DATA) - 1):
        source = as_source(path)
        os.truncate(path, length)
        with pytest.raises(SourceLengthError, match=str(path)):
            drain(source)
        os.truncate(path, len(DATA))


@pytest.mark.parametrize("wrong", [0, 1, len(DATA) - 1, len(DATA) + 1])
def test_a_hint_is_a_promise(wrong: int) -> None:
    """Breaks if a wrong size hint is believed."""
    with pytest.raises(SourceLengthError):
        drain(as_source(Pipe(), length_hint=wrong, resend=False))


def test_a_negative_length_is_refused_at_once() -> None:
    """Later it would be blamed on the client's bytes."""
    for make in (once, lambda data, length: spooled(data, limit_bytes=1, length=length)):
        with pytest.raises(ValueError, match="negative"):
            make(iter([b"x"]), length=-1)


def test_devices_and_pipes_have_no_length() -> None:
    """Breaks if a character device is taken for an empty file."""
    with pytest.raises(SourceNotRereadable):
        as_source("/dev/zero")
    source = as_source("/dev/zero", resend=False)
    assert source.length is None
    with source.open() as chunks:
        assert memoryview(next(chunks)).nbytes == CHUNK_BYTES
    with open("/dev/zero", "rb") as reader:  # it says that it can seek, and that its end is at 0
        with pytest.raises(SourceNotRereadable):
            as_source(reader)
        source = as_source(reader, resend=False)
        assert source.length is None
        with source.open() as chunks:
            assert memoryview(next(chunks)).nbytes == CHUNK_BYTES


def test_empty_sources(tmp_path: Path) -> None:
    """Breaks if nothing is not a valid amount of bytes."""
    (tmp_path / "empty").touch()
    values: list[Any] = [b"", [], io.BytesIO(), tmp_path / "empty"]
    for value in values:
        source = as_source(value)
        assert source.length == 0
        assert drain(source) == b""


@pytest.mark.parametrize("value", [None, 7, object(), io.StringIO("text"), os.fsencode("x").decode])
def test_what_gives_no_bytes_is_a_type_error(value: Any) -> None:
    """Breaks if a wrong argument is found out in the middle of a transaction."""
    with pytest.raises(TypeError):
        as_source(value)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    """Breaks if a path that cannot be read is found out late."""
    with pytest.raises(FileNotFoundError):
        as_source(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        as_source(tmp_path)
