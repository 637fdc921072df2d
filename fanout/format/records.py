"""Directory records: what a volume says of an aggregate, as a value and as bytes.

A record is written as one or more parts, and its parts are what is kept and written again: `checked_parts` refuses what cannot be
on the media, so that `decode_record` and `head_of` need not look again.
"""

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
    SUM,
    SUM_FIELD,
    sum64,
)
from fanout.format.header import HEAD_SIZE
from fanout.types import ObjectKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.format.blocks import Where


MAX_NODE = 255  # bytes of UTF-8
MAX_PARTS = 0xFFFF

_RECORD_1 = struct.Struct("<IBBBBQ16s16sIHHQII")
_RECORD = struct.Struct("<IBBBBQ16s16sIHHQIIQQ")
_HEAD = struct.Struct("<IB2xBQ16s16s6xH8xI")  # of a record what `RecordHead` needs
_LENGTH = struct.Struct("<I")
_STORED = struct.Struct("<IIQQQQQ")
_SPAN = struct.Struct("<I4xQQQQQ")  # of that what `StoredSpan` has
_RANGE = struct.Struct("<II")
RECORD_HEAD = _RECORD.size
LEAST_RECORD = _RECORD_1.size + SUM
STORED_SPAN = _STORED.size
OP_AT = 4  # in every part
DELETED = 1 << 31  # in the count of a range: its members are deleted from the store
assert (_RECORD_1.size, RECORD_HEAD, STORED_SPAN) == (72, 88, 48)


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
        objects: members that the aggregate was stored with; 0: unknown. It stands in the spans: a record without any cannot say it.
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
    objects: int = 0

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


class RecordHead(NamedTuple):
    """What an encoded record says without being decoded.

    Attributes:
        csn: as in `DirectoryRecord`, like the next three.
        op: the same.
        aggregate: the same.
        transaction: the same.
        spans: how many, in all parts.
        size: bytes that the record would take in one part.
        length: bytes that its parts take.
    """

    csn: int
    op: int
    aggregate: bytes
    transaction: bytes
    spans: int
    size: int
    length: int

    @property
    def retires(self) -> bool:
        """As `DirectoryRecord.retires`."""
        return self.op == Op.DELETE and self.aggregate == self.transaction


class RecordPart(NamedTuple):
    """A piece of a record: its number, of how many, its checked bytes, and what they say as if they were all of it."""

    part: int
    parts: int
    head: RecordHead
    data: bytes


def ranges(indexes: Iterable[int]) -> tuple[range, ...]:
    """A set of member indexes as ascending ranges, the form of `DirectoryRecord.present`."""
    made: list[range] = []
    for index in sorted(set(indexes)):
        if made and made[-1].stop == index:
            made[-1] = range(made[-1].start, index + 1)
        else:
            made.append(range(index, index + 1))
    return tuple(made)


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
    spans = [_STORED.pack(number, record.objects, *rest) for number, *rest in record.spans]
    runs: list[bytes] = []
    if record.present or record.deleted:
        runs += [_RANGE.pack(r.start, len(r)) for r in record.present or ()]
        runs += [_RANGE.pack(r.start, len(r) | DELETED) for r in record.deleted]
    free = room - RECORD_HEAD - len(node) - SUM
    cuts = [(0, len(spans), 0, len(runs))]
    if STORED_SPAN * len(spans) + _RANGE.size * len(runs) > free:
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
        made.append(_summed(body))
    return made


def _summed(body: bytes) -> bytes:
    """A record's bytes, its sum behind them."""
    return body + SUM_FIELD.pack(sum64(body))


def _impossible(record: DirectoryRecord) -> str | None:
    """What no record can say; None: all is possible."""
    wrong = _wrong_numbers(
        record.csn, record.committed, record.version, record.time_ns, record.attempt
    )
    wrong = wrong or _wrong_spans(record.spans)
    if record.objects >= (1 << 32 if record.spans else 1):
        wrong = wrong or f"its {record.objects} members have no room"
    for runs in (record.present, record.deleted):
        if runs:
            wrong = wrong or _wrong_runs((run.start, len(run)) for run in runs)
    return wrong


def _wrong_numbers(
    csn: int, committed: int, version: int, time_ns: int, attempt: int
) -> str | None:
    if csn > MAX_COUNTER or committed > MAX_COUNTER or version > MAX_COUNTER:
        return f"commit {csn} cannot be"
    if time_ns > MAX_NUMBER or not attempt:
        return f"commit {csn}, attempt {attempt} or its time cannot be"
    return None


def _wrong_spans(spans: Iterable[tuple[int, ...]]) -> str | None:
    for number, offset, length, used, data_start, data_length in spans:
        if (
            used <= HEAD_SIZE + data_length  # no room for a footer
            or not used <= length <= MAX_SPAN
            or offset + length > MAX_NUMBER
            or data_start + length > MAX_NUMBER
        ):
            return f"span {number} at {offset} cannot be"
    return None


def _wrong_runs(runs: Iterable[tuple[int, int]]) -> str | None:
    end = 0
    for start, count in runs:
        if start < end or not 0 < count < DELETED or start + count > 1 << 32:
            return "its ranges are not ascending"
        end = start + count
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


def checked_parts(
    records: bytes, count: int, where: Where, *, version: int
) -> tuple[RecordPart, ...]:
    """The parts of records that stand in a block, back to back.

    Args:
        records: their bytes, all of them.
        count: how many there must be.
        where: names the block.
        version: of the block. What is returned is as the present one has it, and may so have become longer.

    Raises:
        VolumeTorn: they cannot be trusted.
    """
    least = (_RECORD if version >= 2 else _RECORD_1).size + SUM
    made, at = [], 0
    for _ in range(count):
        if len(records) - at < least:
            raise where.torn("a record is cut off")
        (length,) = _LENGTH.unpack_from(records, at)
        if not least <= length <= len(records) - at:
            raise where.torn(f"a record of {length} bytes does not hold what it says")
        data = records[at : at + length]
        if SUM_FIELD.unpack_from(data, length - SUM)[0] != sum64(data[:-SUM]):
            raise where.torn("the sum of a record is wrong")
        made.append(_checked(data if version >= 2 else _since_2(data), where))
        at += length
    if at != len(records):
        raise where.torn("its records end early")
    return tuple(made)


def _since_2(data: bytes) -> bytes:
    """A part of version 1 as version 2 has it: what it did not say is not known."""
    length, *rest = _RECORD_1.unpack_from(data)
    head = _RECORD.pack(length + RECORD_HEAD - _RECORD_1.size, *rest, 0, 0)
    return _summed(head + data[_RECORD_1.size : -SUM])


def _checked(data: bytes, where: Where) -> RecordPart:
    (
        length, op, kind, all_or_set, node_length, csn, aggregate, transaction, attempt,
        part, parts, time_ns, spans, ranges_, committed, version,
    ) = _RECORD.unpack_from(data)  # fmt: skip
    first, middle = _borders(node_length, spans)
    if middle + ranges_ * _RANGE.size + SUM != length:
        raise where.torn(f"a record of {length} bytes does not hold what it says")
    if not 1 <= op <= 3 or kind >= len(_KINDS) or all_or_set not in (1, 2) or part >= parts:
        raise where.torn("a field of a record is out of range")
    node = data[RECORD_HEAD:first]
    if not node.isascii():
        where.text(node, "a node's name")
    wrong = _wrong_numbers(csn, committed, version, time_ns, attempt)
    wrong = wrong or _wrong_spans(_SPAN.iter_unpack(data[first:middle]))
    if ranges_:
        present, deleted = _runs(data[middle:-SUM])
        if all_or_set == 1 and present:
            raise where.torn("a record says all members and lists some")
        wrong = wrong or _wrong_runs(present) or _wrong_runs(deleted)
    if wrong:
        raise where.torn(f"a record: {wrong}")
    head = RecordHead(csn, op, aggregate, transaction, spans, length, length)
    return RecordPart(part, parts, head, data)


def _borders(node_length: int, spans: int) -> tuple[int, int]:
    """Where in a part spans begin, and where ranges do."""
    first = RECORD_HEAD + node_length
    return first, first + spans * STORED_SPAN


def _runs(listed: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """First member and count of every range: of members that are present, and of deleted ones."""
    present, deleted = [], []
    for start, count in _RANGE.iter_unpack(listed):
        if count < DELETED:
            present.append((start, count))
        else:
            deleted.append((start, count - DELETED))
    return present, deleted


def join_parts(parts: Iterable[RecordPart]) -> Iterator[tuple[RecordHead, bytes]]:
    """Whole records, encoded, in the order in which their last part came; those that miss a part are left out."""
    waiting: dict[tuple[object, ...], dict[int, bytes]] = {}
    for part, count, head, data in parts:
        if count == 1:
            yield head, data
            continue
        key = (count, data[OP_AT], data[8:52])  # CSN, aggregate, transaction, attempt
        pieces = waiting.setdefault(key, {})
        pieces[part] = data
        if len(pieces) == count:
            whole = b"".join(pieces[number] for number in range(count))
            yield head_of(whole), whole
            del waiting[key]


def decode_record(encoded: bytes) -> DirectoryRecord:
    """The record of all its parts, back to back: the opposite of `encode_record`."""
    (
        _, op, kind, all_or_set, node_length, csn, aggregate, transaction, attempt,
        _, _, time_ns, _, _, committed, version,
    ) = _RECORD.unpack_from(encoded)  # fmt: skip
    spans: list[StoredSpan] = []
    present: list[range] = []
    deleted: list[range] = []
    objects = 0
    for stored, listed in _contents(encoded):
        spans += map(StoredSpan._make, _SPAN.iter_unpack(stored))
        objects = max([objects, *(count for _, count, *_ in _STORED.iter_unpack(stored))])
        if listed:
            for made, runs in zip((present, deleted), _runs(listed), strict=True):
                made += [range(start, start + count) for start, count in runs]
    return DirectoryRecord(
        csn=csn,
        op=Op(op),
        aggregate=aggregate,
        transaction=transaction,
        attempt=attempt,
        spans=tuple(spans),
        present=None if all_or_set == 1 else tuple(present),
        node=encoded[RECORD_HEAD : RECORD_HEAD + node_length].decode(),
        kind=_KINDS[kind],
        time_ns=time_ns,
        deleted=tuple(deleted),
        committed=committed,
        version=version,
        objects=objects,
    )


def spans_of(encoded: bytes) -> Iterator[StoredSpan]:
    """The spans of an encoded record."""
    for stored, _ in _contents(encoded):
        yield from map(StoredSpan._make, _SPAN.iter_unpack(stored))


def _contents(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Of each part of a record the bytes of its spans, and those of its ranges."""
    for data in split_parts(encoded):
        _, _, node_length, _, _, _, _, spans = _HEAD.unpack_from(data)
        first, middle = _borders(node_length, spans)
        yield data[first:middle], data[middle:-SUM]


def head_of(encoded: bytes) -> RecordHead:
    """The head of an encoded record."""
    (
        length, op, _, csn, aggregate, transaction, parts, spans,
    ) = _HEAD.unpack_from(encoded)  # fmt: skip
    size = length
    if parts > 1:  # hardly ever
        for _ in range(1, parts):
            more, _, node_length, _, _, _, _, some = _HEAD.unpack_from(encoded, length)
            length, spans = length + more, spans + some
            size += more - RECORD_HEAD - node_length - SUM
    return RecordHead(csn, op, aggregate, transaction, spans, size, length)


def split_parts(encoded: bytes) -> list[bytes]:
    """The parts of an encoded record."""
    parts, at = [], 0
    while at < len(encoded):
        (length,) = _LENGTH.unpack_from(encoded, at)
        parts.append(encoded[at : at + length])
        at += length
    return parts


def record_size(record: DirectoryRecord) -> int:
    """Bytes that a record would take in one part: `RecordHead.size` once it is encoded."""
    ranges_ = len(record.present or ()) + len(record.deleted)
    return size_of(len(record.spans), ranges_, len(record.node.encode()))


def size_of(spans: int, ranges_: int, node_bytes: int) -> int:
    """Bytes of a record in one part that holds so much."""
    return RECORD_HEAD + node_bytes + STORED_SPAN * spans + _RANGE.size * ranges_ + SUM
