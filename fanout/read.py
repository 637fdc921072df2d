"""Reads bytes back: from any copy that is good, checked before they are handed out.

::

    find object ──> copies that hold it, best first ──> small: the whole of it, then its digest
                                                        large: some blocks, then their sums, then the next ones …
                          a copy that fails ──> the next copy, for these bytes, from the same position

Which copy is best. The type of the device counts before the type of the pool: pools of class ``disk`` come before those of class
``file``, whose volumes are written in sequence and shared by everybody. Of equals the primary comes first, then active-data
pools, then copy pools, each in the order of the configuration. A pool whose access is ``unavailable`` is not asked.

What it promises:

1. No byte is handed out that was not checked: against the object's digest (small objects), or against the sum of its block,
   with the object's digest at the end (large ones). Where no copy has good sums, because a header, a footer or a neighbour in the same
   block is damaged, a large object is read twice: its digest first.
2. A copy that cannot be read or is wrong is passed over, for as short a stretch as one block, and said so in `faults`. A block that no
   copy has whole is put together from all of them, if its sum comes out.
3. Memory is bounded: `WHOLE_BYTES`, or `BATCH_BLOCKS` blocks and one footer.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

import xxhash

from fanout import format as fmt
from fanout.errors import (
    FanoutError,
    IntegrityError,
    ObjectNotFound,
    PoolUnavailable,
    TargetError,
    VolumeForeign,
    VolumeTorn,
)
from fanout.format import StoredSpan
from fanout.joining import PIECE, join
from fanout.types import OutcomeCode
from fanout.units import quoted
from fanout.volume import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from types import TracebackType

    from fanout.ahead import ReadAhead
    from fanout.catalog import CopyEntry, ObjectEntry, Place
    from fanout.format import SpanFooter
    from fanout.volume import Volume

    Rest = Callable[[int], Iterator[memoryview]]  # an object's bytes from a position on

WHOLE_BYTES = 4 << 20  # objects up to here are read at once and checked by their digest alone
BATCH_BLOCKS = 8  # of a large object, read side by side


class Fault(NamedTuple):
    """A copy that could not serve some bytes, and why.

    Attributes:
        pool: name.
        reason: for people.
        damage: its bytes are wrong, or its medium cannot give them; False: it could not be asked (not open, gone, too slow, or it gives nothing).
        refused: it is damage that no bytes prove: the medium may give them another day.
    """

    pool: str
    reason: str
    damage: bool = False
    refused: bool = False

    @classmethod
    def of(cls, pool: str, error: Exception) -> Fault:
        """What an error while reading a copy says of it."""
        damage = isinstance(error, IntegrityError | VolumeTorn | VolumeForeign)
        refused = False
        if isinstance(error, TargetError):
            outcome = error.outcome
            refused = outcome.cls in REFUSALS
            damage = refused or outcome.code is OutcomeCode.SHORT
        return cls(pool, str(error).removeprefix(f"{pool}: "), damage, refused)


class Unreadable(FanoutError):
    """No copy could serve the bytes at one position."""

    def __init__(self, position: int, faults: Sequence[Fault]) -> None:
        self.position, self.faults = position, tuple(faults)
        reasons = "; ".join(f"{fault.pool}: {fault.reason}" for fault in faults)
        super().__init__(reasons or "no pool that may be asked holds it")


class CopyReader:
    """Reads the data of one aggregate from its copies.

    Args:
        aggregate: id.
        copies: that may be asked, the best first.
        volumes: gives the open volume of an id.
        ahead: reads for `stream`. What it had read before it was written is read again: its sums are wrong.

    Attributes:
        faults: what went wrong so far without harm.
        pool: the copy that served the last bytes.
    """

    def __init__(
        self,
        aggregate: bytes,
        copies: Sequence[CopyEntry],
        *,
        volumes: Callable[[bytes], Volume],
        ahead: ReadAhead | None = None,
    ) -> None:
        self.aggregate, self.copies = aggregate, list(copies)
        self.faults: list[Fault] = []
        self.pool = copies[0].pool if copies else ""
        self._volumes = volumes
        # Blocks that are read at once, and by whom.
        direct: list[tuple[int, ReadAhead | None]] = [(BATCH_BLOCKS, None), (1, None)]
        self._ways = [(BATCH_BLOCKS, ahead), *direct] if ahead else direct
        self._footers: dict[str, tuple[Place, SpanFooter]] = {}  # the current span of each copy
        # What was wrong with blocks, by volume and offset. Thousands of objects may lie in one.
        self._wrong: dict[tuple[bytes, int], IntegrityError] = {}
        # Blocks that were put together from several copies, or could not be.
        self._put_together: dict[tuple[bytes, int], bytes | None] = {}

    # ---- small: at once, unchecked -------------------------------------------------------------

    def fetch(self, copy: CopyEntry, start: int, length: int) -> bytes:
        """Bytes of the aggregate's data from one copy. The caller checks them.

        Raises:
            FanoutError: they cannot be read there.
        """
        parts = []
        while length:
            place, turn = _place_at(copy, start)
            volume = self._volumes(place.volume)
            take = min(length, turn - start)
            offset = place.offset + fmt.HEAD_SIZE + start - place.data_start
            parts.append(volume.read(offset, take))
            start, length = start + take, length - take
        self.pool = copy.pool
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def raw(self, copy: CopyEntry, start: int, length: int) -> Iterator[memoryview]:
        """Bytes of the aggregate's data from one copy, in pieces. The caller checks them.

        Raises:
            Unreadable: they cannot be read there.
        """
        for at in range(start, start + length, WHOLE_BYTES):
            try:
                piece = self.fetch(copy, at, min(WHOLE_BYTES, start + length - at))
            except (FanoutError, TimeoutError) as error:
                raise Unreadable(at, [Fault.of(copy.pool, error)]) from error
            yield memoryview(piece)

    def by_itself(
        self, start: int, length: int, digest: bytes, *, faults: list[Fault] | None = None
    ) -> Rest | None:
        """An object's own bytes, where the blocks that it shares with others, or the frame, are good in no copy; None: its digest does not come out.

        From one copy, or, if it is small, put together from all. Copies that cannot give all of its bytes are added to `faults`.
        """
        for copy in self.copies:
            hasher = xxhash.xxh3_128()
            try:
                for piece in self.raw(copy, start, length):
                    hasher.update(piece)
            except Unreadable as error:
                if faults is not None:
                    faults += error.faults
                continue
            if hasher.digest() == digest:
                return partial(self._rest_of, copy, start + length)
        if length > WHOLE_BYTES or len(self.copies) < 2:
            return None
        pieces = [_pieces(partial(self.fetch, copy), start, length) for copy in self.copies]
        data = join(pieces, lambda data: xxhash.xxh3_128_digest(data) == digest)
        return None if data is None else lambda at: iter([memoryview(data)[at - start :]])

    def _rest_of(self, copy: CopyEntry, end: int, at: int) -> Iterator[memoryview]:
        return self.raw(copy, at, end - at)

    # ---- the frame around the data ---------------------------------------------------------------

    def frame(self, copy: CopyEntry, place: Place) -> SpanFooter | Fault:
        """The footer of a span, or what is wrong with it or the header: both must be good, and belong together."""
        try:
            return self._footer(copy, place, self._volumes(place.volume), None)
        except (FanoutError, TimeoutError) as error:
            return Fault.of(copy.pool, error)

    # ---- large: block by block, checked --------------------------------------------------------

    def stream(self, start: int, length: int) -> Iterator[memoryview]:
        """Bytes of the aggregate's data in pieces, each checked against the sums of its blocks.

        Raises:
            Unreadable: at some position no copy is good.
        """
        end = start + length
        while start < end:
            piece = self._piece(start, end)
            start += len(piece)
            yield piece

    def _piece(self, start: int, end: int) -> memoryview:
        """The next bytes from the first copy that is good; block by block where whole batches are bad everywhere."""
        faults: list[Fault] = []
        for blocks, ahead in self._ways:
            for copy in self._in_order():
                try:
                    piece = self._blocks(copy, start, end, blocks, ahead)
                except (FanoutError, TimeoutError) as error:
                    faults.append(Fault.of(copy.pool, error))
                    continue
                self.faults += faults
                self.pool = copy.pool
                return piece
        joined = self._joined(start, end)
        if joined is None:
            raise Unreadable(start, list(dict.fromkeys(faults)))
        self.faults += dict.fromkeys(faults)
        return joined

    def _in_order(self) -> list[CopyEntry]:
        """The copy that served last first, the others in order of preference."""
        return sorted(self.copies, key=lambda copy: copy.pool != self.pool)

    def _blocks(
        self, copy: CopyEntry, start: int, end: int, blocks: int, ahead: ReadAhead | None
    ) -> memoryview:
        wanted = self._stretch(copy, start, end, blocks, ahead)
        volume, place, footer = wanted.volume, wanted.place, wanted.footer
        known = self._wrong.get((place.volume, wanted.offset))
        if known is not None:
            raise known.with_traceback(None)
        data = memoryview(volume.read(wanted.offset, wanted.length, ahead=ahead))
        size = footer.block_size
        try:
            for at in range(0, len(data), size):
                self._check(footer, wanted.block + at // size, data[at : at + size], volume, place)
        except IntegrityError as error:
            if blocks == 1:  # read by itself: there is no doubt
                self._wrong[place.volume, wanted.offset] = error
            raise
        return data[wanted.begin : wanted.end]

    def _stretch(
        self, copy: CopyEntry, start: int, end: int, blocks: int, ahead: ReadAhead | None
    ) -> _Stretch:
        """Some blocks of a copy, from that on in which the byte at `start` lies."""
        place, turn = _place_at(copy, start)
        volume = self._volumes(place.volume)
        footer = self._footer(copy, place, volume, ahead)
        size = footer.block_size
        first = (fmt.HEAD_SIZE + start - place.data_start) // size
        limit = fmt.HEAD_SIZE + min(end, turn) - place.data_start
        # Whole blocks only: the last one of a span ends with its data.
        read_end = min((first + blocks) * size, fmt.HEAD_SIZE + place.data_length)
        read_end = min(read_end, -(-limit // size) * size)
        begin, length = first * size, read_end - first * size
        skip = fmt.HEAD_SIZE + start - place.data_start - begin
        return _Stretch(
            volume, place, footer, first, place.offset + begin, length, skip, limit - begin
        )

    # ---- from several copies ---------------------------------------------------------------------

    def _joined(self, start: int, end: int) -> memoryview | None:
        """The next bytes out of a block that no copy has whole, put together from all of them; None: its sum does not come out."""
        for copy in self._in_order() if len(self.copies) > 1 else ():
            with suppress(FanoutError, TimeoutError):
                wanted = self._stretch(copy, start, end, 1, None)
                key = wanted.place.volume, wanted.offset
                if key not in self._put_together:
                    joined = self._join(copy, wanted)
                    if joined is None:
                        self._put_together[key] = None
                        continue
                    # Of those that were found one is kept; of the others that there is nothing to find.
                    for known in [k for k, v in self._put_together.items() if v is not None]:
                        del self._put_together[known]
                    self._put_together[key] = joined
                data = self._put_together[key]
                if data is not None:
                    self.pool = copy.pool
                    return memoryview(data)[wanted.begin : wanted.end]
        return None

    def _join(self, copy: CopyEntry, wanted: _Stretch) -> bytes | None:
        place, volume = wanted.place, wanted.volume
        own = _pieces(volume.read, wanted.offset, wanted.length)
        # What a span's first block begins with is its header, which no other copy need have.
        ahead = max(0, place.offset + fmt.HEAD_SIZE - wanted.offset)
        position = place.data_start + wanted.offset + ahead - place.offset - fmt.HEAD_SIZE
        head = own[: ahead // PIECE]
        copies = [own]
        for other in self.copies:
            if other is not copy:
                read = partial(self.fetch, other)
                copies.append([*head, *_pieces(read, position, wanted.length - ahead)])
        expected = wanted.footer.sum_of(wanted.block)
        return join(copies, lambda data: fmt.sum64(data) == expected)

    def _check(
        self, footer: SpanFooter, block: int, data: memoryview, volume: Volume, place: Place
    ) -> None:
        expected, actual = footer.sum_of(block), fmt.sum64(data)
        if expected != actual:
            offset = place.offset + block * footer.block_size
            raise IntegrityError(
                f"{volume.path} at {offset}", expected=f"{expected:016x}", actual=f"{actual:016x}"
            )

    def _footer(
        self, copy: CopyEntry, place: Place, volume: Volume, ahead: ReadAhead | None
    ) -> SpanFooter:
        known = self._footers.get(copy.pool)
        if known is not None and known[0] == place:
            return known[1]
        span = StoredSpan(
            place.span, place.offset, place.length, place.used, place.data_start, place.data_length
        )
        _, footer = volume.read_span(span, aggregate=self.aggregate, ahead=ahead)
        self._footers[copy.pool] = place, footer
        return footer


class _Stretch(NamedTuple):
    """Blocks of a span, and the part of them that is wanted: `begin` to `end`."""

    volume: Volume
    place: Place
    footer: SpanFooter
    block: int
    offset: int  # on the volume
    length: int
    begin: int
    end: int


def _pieces(read: Callable[[int, int], bytes], start: int, length: int) -> list[bytes | None]:
    """Bytes in pieces; None: one that the medium cannot give, or of something that cannot be asked."""
    steps = [(at, min(PIECE, start + length - at)) for at in range(start, start + length, PIECE)]
    try:
        data = read(start, length)
    except (FanoutError, TimeoutError) as error:
        if not Fault.of("", error).damage:
            return [None] * len(steps)
        return [_piece_of(read, at, size) for at, size in steps]
    return [data[at - start : at - start + size] for at, size in steps]


def _piece_of(read: Callable[[int, int], bytes], at: int, size: int) -> bytes | None:
    try:
        return read(at, size)
    except (FanoutError, TimeoutError):
        return None


def _place_at(copy: CopyEntry, position: int) -> tuple[Place, int]:
    """The span of a copy that serves a byte of the aggregate's data, and where its turn ends."""
    found = copy.served(position)
    if found is not None:
        return found
    raise PoolUnavailable(copy.pool, f"its copy does not reach byte {position} of the aggregate")


class ObjectReader:
    """One object's bytes, as an iterator of buffers; made by `Store.get`.

    The object may be deleted meanwhile, and its space used again: then what is read fails its check, as damage does, and the reader asks
    whether the object is still `there`.

    Read to the end: a large object's digest is checked behind its last byte. Not thread-safe.

    Attributes:
        entry: what the catalog says of the object.
        length: in bytes.
        digest: XXH3-128, 16 bytes, canonical.
        version: the version that is read.
    """

    def __init__(
        self, entry: ObjectEntry, reader: CopyReader, *, there: Callable[[], bool]
    ) -> None:
        self.entry, self._reader, self._there = entry, reader, there
        self.length, self.digest, self.version = entry.length, entry.digest, entry.version
        self._pieces = self._whole() if entry.length <= WHOLE_BYTES else self._stream()

    @property
    def pool(self) -> str:
        """The pool that served the last bytes."""
        return self._reader.pool

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Copies that were passed over so far, and why."""
        return tuple(self._reader.faults)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return self._pieces

    def __next__(self) -> bytes | memoryview:
        return next(self._pieces)

    def read(self) -> bytes:
        """All that is left. Holds it in memory.

        Raises:
            IntegrityError: what is read is not what was stored, in every copy.
            PoolUnavailable: no copy can be read.
            ObjectNotFound: it was deleted while it was read.
        """
        return b"".join(self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pieces.close()

    def _whole(self) -> Generator[bytes | memoryview, None, None]:
        reader, entry = self._reader, self.entry
        wrong: IntegrityError | ObjectNotFound | None = None
        for copy in reader.copies:
            try:
                data = reader.fetch(copy, entry.start, entry.length)
            except (FanoutError, TimeoutError) as error:
                reader.faults.append(Fault.of(copy.pool, error))
                continue
            if xxhash.xxh3_128_digest(data) == entry.digest:
                if data:
                    yield data
                return
            wrong = self._mismatch(copy.pool, xxhash.xxh3_128_hexdigest(data))
            reader.faults.append(Fault.of(copy.pool, wrong))
        # Copies that are damaged at different places may have it between them.
        with suppress(Unreadable):
            data = b"".join(self._any_pieces())
            if xxhash.xxh3_128_digest(data) == entry.digest:
                yield data
                return
        raise wrong or self._unavailable(Unreadable(entry.start, reader.faults))

    def _stream(self) -> Generator[bytes | memoryview, None, None]:
        hasher = xxhash.xxh3_128()
        try:
            for piece in self._any_pieces():
                hasher.update(piece)
                yield piece
        except Unreadable as error:
            raise self._unavailable(error) from error
        if hasher.digest() != self.digest:
            raise self._mismatch(self._reader.pool, hasher.hexdigest())

    def _any_pieces(self) -> Iterator[memoryview]:
        """With good sums; from where there are none on, what has the object's digest."""
        reader, start = self._reader, self.entry.start
        try:
            for piece in reader.stream(start, self.length):
                start += len(piece)
                yield piece
        except Unreadable as error:
            rest = reader.by_itself(self.entry.start, self.length, self.digest)
            if rest is None:
                raise
            reader.faults += error.faults
            yield from rest(start)

    def _mismatch(self, pool: str, actual: str) -> IntegrityError | ObjectNotFound:
        return self._deleted() or IntegrityError(
            f"{quoted(self.entry.name)} of {self.entry.node}, version {self.version}, in {pool}",
            expected=self.digest.hex(),
            actual=actual,
        )

    def _unavailable(self, error: Unreadable) -> FanoutError:
        name = f"{quoted(self.entry.name)} of {self.entry.node}, version {self.version}"
        return self._deleted() or PoolUnavailable(
            self.entry.primary, f"no copy of {name} can be read: {error}"
        )

    def _deleted(self) -> ObjectNotFound | None:
        """The error of an object that is not there any more."""
        if self._there():
            return None
        name = f"{quoted(self.entry.name)} of {self.entry.node}, version {self.version}"
        return ObjectNotFound(f"{name} was deleted while it was read")
