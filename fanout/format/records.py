"""Directory blocks and their records: the evidence of what is committed on a volume."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fanout.errors import InterfaceError
from fanout.format.blocks import (
    MAX_COUNTER,
    MAX_NUMBER,
    MAX_SPAN,
    PREFIX,
    SUM,
    SUM_FIELD,
    Where,
    opened,
    prefix,
    round_up,
    sealed,
    sum64,
    version_of,
)
from fanout.format.header import HEAD_SIZE
from fanout.types import ObjectKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fanout.format.blocks import Buffer
    from fanout.format.superblock import Superblock


MAX_NODE = 255  # bytes of UTF-8
MAX_PARTS = 0xFFFF

_DIRECTORY = struct.Struct("<16sQQQIIIIII")
_RECORD_1 = struct.Struct("<IBBBBQ16s16sIHHQII")
_RECORD = struct.Struct("<IBBBBQ16s16sIHHQIIQQ")
_STORED = struct.Struct("<IIQQQQQ")
_RANGE = struct.Struct("<II")
DIRECTORY_HEAD = PREFIX + _DIRECTORY.size
RECORD_HEAD = _RECORD.size
STORED_SPAN = _STORED.size
DELETED = 1 << 31  # in the count of a range: its members are deleted from the store
assert (DIRECTORY_HEAD, _RECORD_1.size, RECORD_HEAD, STORED_SPAN) == (112, 72, 88, 48)


class Op(enum.IntEnum):
    """What a directory record says of its aggregate on this volume."""

    COMMIT = 1
    DELETE = 2
    MOVE = 3


_KINDS: tuple[ObjectKind | None, ...] = (
    None,
    ObjectKind.BACKUP,
    ObjectKind.ARCHIVE,
    ObjectKind.SPACE_MANAGED,
)


class StoredSpan(NamedTuple):
    """One span of an aggregate on one volume.

    Attributes:
        number: of the span in the aggregate.
        offset: of its header on the volume.
        length: of the region on the volume, at least `used`.
        used: bytes of header, data and footer.
        data_start: of the span's data in the aggregate's.
        data_length: in bytes.
    """

    number: int
    offset: int
    length: int
    used: int
    data_start: int
    data_length: int

    @property
    def possible(self) -> bool:
        """Whether its numbers fit one another, and what else has to hold them."""
        return (
            self.foot_length > 0
            and self.used <= self.length <= MAX_SPAN
            and max(self.offset, self.data_start) + self.length <= MAX_NUMBER
        )

    @property
    def foot_offset(self) -> int:
        """Where the footer begins on the volume."""
        return self.offset + HEAD_SIZE + self.data_length

    @property
    def foot_length(self) -> int:
        """Bytes of the footer."""
        return self.used - HEAD_SIZE - self.data_length


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryRecord:
    """All there is to say about one aggregate on one volume at one commit; replaces what earlier records said.

    Attributes:
        csn: commit sequence number of the store.
        op: commit, delete (the aggregate is gone everywhere) or move (lives on, here at these spans, perhaps none).
        aggregate: UUID.
        transaction: UUID.
        attempt: 1-based.
        spans: on this volume, in order of number.
        present: indexes of the members that are here, as ascending ranges of step 1; None: all of them.
        node: whose objects they are.
        kind: of the objects; None: unknown.
        time_ns: of the commit, since 1970.
        deleted: indexes of the members that were deleted from the store, wherever they lay; ranges as in `present`.
        committed: commit sequence number with which the aggregate became visible; 0: unknown.
        version: of the aggregate's first member; 0: unknown.
    """

    csn: int
    op: Op
    aggregate: bytes
    transaction: bytes
    attempt: int
    spans: tuple[StoredSpan, ...] = ()
    present: tuple[range, ...] | None = None
    node: str = ""
    kind: ObjectKind | None = None
    time_ns: int = 0
    deleted: tuple[range, ...] = ()
    committed: int = 0
    version: int = 0

    @classmethod
    def retirement(cls, volume: bytes, *, csn: int, epoch: int, time_ns: int) -> DirectoryRecord:
        """That a volume was given up: a delete of an aggregate that nobody has, for readers that know no better."""
        return cls(
            csn=csn,
            op=Op.DELETE,
            aggregate=volume,
            transaction=volume,
            attempt=1,
            time_ns=time_ns,
            version=epoch,
        )

    @property
    def retires(self) -> bool:
        """Whether it names no aggregate but a volume that was given up; then `version` is the epoch of its last opening."""
        return self.op is Op.DELETE and self.aggregate == self.transaction


class RecordPart(NamedTuple):
    """A piece of a record: its head, and the spans and ranges that this part carries."""

    part: int
    parts: int
    record: DirectoryRecord


def ranges(indexes: Iterable[int]) -> tuple[range, ...]:
    """A set of member indexes as ascending ranges, the form of `DirectoryRecord.present`."""
    made: list[range] = []
    for index in sorted(set(indexes)):
        if made and made[-1].stop == index:
            made[-1] = range(made[-1].start, index + 1)
        else:
            made.append(range(index, index + 1))
    return tuple(made)


def record_room(granule: int) -> int:
    """Bytes of records that one directory block holds."""
    return granule - DIRECTORY_HEAD - SUM


def encode_record(record: DirectoryRecord, room: int) -> list[bytes]:
    """The record as one or more parts of at most `room` bytes each (what one block holds).

    Raises:
        InterfaceError: the node's name is too long, or there would be too many parts.
    """
    node = record.node.encode()
    if len(node) > MAX_NODE:
        raise InterfaceError(f"node name of {len(node)} bytes, allowed are {MAX_NODE}")
    wrong = _impossible(record)
    if wrong:
        raise InterfaceError(f"directory record: {wrong}")
    spans = [_STORED.pack(s[0], 0, *s[1:]) for s in record.spans]
    runs = [_RANGE.pack(r.start, len(r)) for r in record.present or ()]
    runs += [_RANGE.pack(r.start, len(r) | DELETED) for r in record.deleted]
    free = room - RECORD_HEAD - len(node) - SUM
    cuts = list(_cuts(len(spans), len(runs), free))
    if len(cuts) > MAX_PARTS:
        raise InterfaceError(f"directory record of {len(cuts)} parts, allowed are {MAX_PARTS}")
    made = []
    for part, (first_span, span_count, first_range, range_count) in enumerate(cuts):
        items = spans[first_span : first_span + span_count]
        items += runs[first_range : first_range + range_count]
        tail = node + b"".join(items)
        body = (
            _RECORD.pack(
                RECORD_HEAD + len(tail) + SUM,
                record.op,
                _KINDS.index(record.kind),
                1 if record.present is None else 2,
                len(node),
                record.csn,
                record.aggregate,
                record.transaction,
                record.attempt,
                part,
                len(cuts),
                record.time_ns,
                span_count,
                range_count,
                record.committed,
                record.version,
            )
            + tail
        )
        made.append(body + SUM_FIELD.pack(sum64(body)))
    return made


def _impossible(record: DirectoryRecord) -> str | None:
    """What no record can say; None: all is possible."""
    if max(record.csn, record.committed, record.version) > MAX_COUNTER:
        return f"commit {record.csn} cannot be"
    if record.time_ns > MAX_NUMBER or not record.attempt:
        return f"commit {record.csn}, attempt {record.attempt} or its time cannot be"
    for span in record.spans:
        if not span.possible:
            return f"span {span.number} at {span.offset} cannot be"
    for runs in (record.present or (), record.deleted):
        end = 0
        for run in runs:
            if run.start < end or not run or len(run) >= DELETED or run.stop > 1 << 32:
                return "its ranges are not ascending"
            end = run.stop
    return None


def _cuts(spans: int, present: int, free: int) -> Iterator[tuple[int, int, int, int]]:
    """How to share spans, then ranges, among parts of `free` bytes: (first span, count, first range, count)."""
    assert free >= STORED_SPAN
    span = item = 0
    while True:
        span_count = min(spans - span, free // STORED_SPAN)
        range_count = min(present - item, (free - span_count * STORED_SPAN) // _RANGE.size)
        yield span, span_count, item, range_count
        span, item = span + span_count, item + range_count
        if span == spans and item == present:
            return


def encoded_size(spans: int, present: int, node: str, room: int) -> int:
    """Upper bound of the bytes that a record takes in a directory whose blocks hold `room`, block tails left empty included."""
    node_bytes = len(node.encode())
    size = RECORD_HEAD + node_bytes + STORED_SPAN * spans + _RANGE.size * present + SUM
    return size if size <= room else round_up(size * 9 // 8, room)


def pack_blocks(parts: Iterable[bytes], room: int) -> list[list[bytes]]:
    """Share encoded parts among blocks of `room` bytes, in order."""
    blocks: list[list[bytes]] = []
    free = 0
    for part in parts:
        if len(part) > free:
            blocks.append([])
            free = room
        blocks[-1].append(part)
        free -= len(part)
    return blocks


class BlockPlace(NamedTuple):
    """Where in a directory a block stands.

    Attributes:
        epoch: of the opening that writes it.
        generation: of the use of the half.
        sequence: counts the blocks written to this directory.
        half: 0 or 1.
        number: index in the half.
        base_blocks: how many first blocks of this generation are its checkpoint.
    """

    epoch: int
    generation: int
    sequence: int
    half: int
    number: int
    base_blocks: int


@dataclass(frozen=True, slots=True)
class DirectoryBlock:
    """A decoded directory block."""

    place: BlockPlace
    parts: tuple[RecordPart, ...]


def encode_block(superblock: Superblock, place: BlockPlace, parts: Sequence[bytes]) -> bytes:
    """One granule of directory; `parts` are encoded records that fit (see `pack_blocks`)."""
    offset = superblock.half_offset(place.half) + place.number * superblock.granule
    records = b"".join(parts)
    body = prefix(b"DIRB", superblock.granule, offset, superblock.store) + _DIRECTORY.pack(
        superblock.volume, *place, len(parts), len(records), 0
    )
    return sealed(body + records, superblock.granule)


def decode_place(
    data: Buffer, superblock: Superblock, *, path: str, half: int, number: int
) -> BlockPlace:
    """What the directory block at `number` of `half` says of itself, its sum checked, without its records.

    Raises:
        VolumeTorn: it is none, torn, or of another place.
        VolumeForeign: it is of another volume or store, or needs a newer reader.
    """
    granule = superblock.granule
    offset = superblock.half_offset(half) + number * granule
    where = Where(path, "directory block", offset)
    body = opened(data, where, kind=b"DIRB", length=granule, offset=offset, store=superblock.store)
    volume, *said, count, used, _ = _DIRECTORY.unpack_from(body, PREFIX)
    place = BlockPlace(*said)
    if volume != superblock.volume:
        raise where.foreign(f"belongs to volume {volume.hex()}")
    if (place.half, place.number) != (half, number):
        raise where.torn("half and index contradict its offset")
    blocks = superblock.directory_bytes // granule
    if not 1 <= place.base_blocks <= blocks or place.generation < 1:
        raise where.torn("base or generation out of range")
    where.counter("an epoch, generation or sequence", *place[:3])
    if used > record_room(granule) or count * (_RECORD_1.size + SUM) > used:
        raise where.torn(f"{count} records of {used} bytes cannot be")
    return place


def decode_block(
    data: Buffer, superblock: Superblock, *, path: str, half: int, number: int
) -> DirectoryBlock:
    """The directory block that was read at `number` of `half`, with its records.

    Raises:
        VolumeTorn: it is none, torn, of another place, or of an epoch that the superblock does not know.
        VolumeForeign: it is of another volume or store, or needs a newer reader.
    """
    place = decode_place(data, superblock, path=path, half=half, number=number)
    where = Where(
        path, "directory block", superblock.half_offset(half) + number * superblock.granule
    )
    if place.epoch > superblock.epoch:
        raise where.torn(
            f"its epoch is {place.epoch}, the superblock knows only {superblock.epoch}"
        )
    body = memoryview(data).cast("B")[: superblock.granule - SUM]
    count, used = _DIRECTORY.unpack_from(body, PREFIX)[-3:-1]
    layout = _RECORD if version_of(body) >= 2 else _RECORD_1
    parts, at, end = [], DIRECTORY_HEAD, DIRECTORY_HEAD + used
    for _ in range(count):
        part, at = _decode_record(body, at, end, where, layout)
        parts.append(part)
    if at != end:
        raise where.torn("its records end early")
    return DirectoryBlock(place, tuple(parts))


def _decode_record(
    body: memoryview, at: int, end: int, where: Where, layout: struct.Struct
) -> tuple[RecordPart, int]:
    """The record at `at`, which must end by `end`, and where the next one begins."""
    if end - at < layout.size + SUM:
        raise where.torn("a record is cut off")
    (
        length, op, kind, all_or_set, node_length, csn, aggregate, transaction, attempt,
        part, parts, time_ns, span_count, range_count, *since_2,
    ) = layout.unpack_from(body, at)  # fmt: skip
    committed, version = since_2 or (0, 0)
    tail = node_length + span_count * STORED_SPAN + range_count * _RANGE.size
    if length != layout.size + tail + SUM or length > end - at:
        raise where.torn(f"a record of {length} bytes does not hold what it says")
    stop = at + length - SUM
    if SUM_FIELD.unpack_from(body, stop)[0] != sum64(body[at:stop]):
        raise where.torn("the sum of a record is wrong")
    if op not in (1, 2, 3) or kind >= len(_KINDS) or all_or_set not in (1, 2) or part >= parts:
        raise where.torn("a field of a record is out of range")
    first = at + layout.size + node_length
    middle = first + span_count * STORED_SPAN
    spans = tuple(
        StoredSpan(number, *rest) for number, _, *rest in _STORED.iter_unpack(body[first:middle])
    )
    runs = list(_RANGE.iter_unpack(body[middle:stop]))
    present = tuple(range(start, start + count) for start, count in runs if count < DELETED)
    deleted = tuple(
        range(start, start + count - DELETED) for start, count in runs if count >= DELETED
    )
    if all_or_set == 1 and present:
        raise where.torn("a record says all members and lists some")
    record = DirectoryRecord(
        csn=csn,
        op=Op(op),
        aggregate=aggregate,
        transaction=transaction,
        attempt=attempt,
        spans=spans,
        present=None if all_or_set == 1 else present,
        node=where.text(bytes(body[first - node_length : first]), "a node's name"),
        kind=_KINDS[kind],
        time_ns=time_ns,
        deleted=deleted,
        committed=committed,
        version=version,
    )
    wrong = _impossible(record)
    if wrong:
        raise where.torn(f"a record: {wrong}")
    return RecordPart(part, parts, record), at + length


def join_parts(parts: Iterable[RecordPart]) -> list[DirectoryRecord]:
    """Whole records, in the order in which their last part came; those that miss a part are left out."""
    made: list[DirectoryRecord] = []
    waiting: dict[tuple[object, ...], dict[int, DirectoryRecord]] = {}
    for part, count, record in parts:
        if count == 1:
            made.append(record)
            continue
        key = (record.csn, record.op, record.aggregate, record.transaction, record.attempt, count)
        pieces = waiting.setdefault(key, {})
        pieces[part] = record
        if len(pieces) == count:
            made.append(_joined([pieces[number] for number in range(count)]))
            del waiting[key]
    return made


def _joined(pieces: Sequence[DirectoryRecord]) -> DirectoryRecord:
    head = pieces[0]
    return DirectoryRecord(
        csn=head.csn,
        op=head.op,
        aggregate=head.aggregate,
        transaction=head.transaction,
        attempt=head.attempt,
        spans=tuple(span for piece in pieces for span in piece.spans),
        present=None
        if head.present is None
        else tuple(run for piece in pieces for run in piece.present or ()),
        node=head.node,
        kind=head.kind,
        time_ns=head.time_ns,
        deleted=tuple(run for piece in pieces for run in piece.deleted),
        committed=head.committed,
        version=head.version,
    )
