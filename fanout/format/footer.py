"""Span footers: the members, their digests, and a sum for every block of the span."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.errors import InterfaceError
from fanout.format.blocks import (
    MAX_NAME,
    MAX_NUMBER,
    MAX_SPAN,
    PREFIX,
    PREFIX_FIELDS,
    SUM,
    SUM_FIELD,
    UUID,
    Where,
    opened,
    prefix,
    round_up,
    sealed,
)
from fanout.format.header import HEAD_SIZE, SpanHeader
from fanout.host import Fragment

if TYPE_CHECKING:
    from fanout.format.blocks import Buffer


TRAILER_MAGIC = b"FNOUTEND"
MIN_SUM_BLOCK, MAX_SUM_BLOCK = 64 << 10, 16 << 20

_FOOT = struct.Struct("<16s16sIIQQQIIQIIQ")
_FRAGMENT = struct.Struct("<QQ16sHHI")
_TRAILER = struct.Struct("<8sQ")
FOOT_FIXED = PREFIX + _FOOT.size + _TRAILER.size + SUM
FRAGMENT = _FRAGMENT.size
assert (PREFIX + _FOOT.size, FRAGMENT) == (144, 40)

_NO_DIGEST = bytes(16)
_ENDS_HERE = 1
_FINAL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanFooter:
    """The last part of a span: what its data is, and the sums to check it by.

    Attributes:
        store: UUID.
        transaction: UUID.
        aggregate: UUID.
        attempt: 1-based.
        number: of the span in the aggregate.
        data_start: of the span's data in the aggregate's data.
        data_length: in bytes.
        header_sum: sum of the header that it belongs to.
        final: the aggregate ends in this span; behind it was nothing but what had been deleted.
        fragments: pieces of objects, in the order of their data, without holes.
        block_size: of the sums, in bytes.
        sums: XXH3-64 of each block of header and data, 8 bytes each, little-endian.
    """

    store: bytes
    transaction: bytes
    aggregate: bytes
    attempt: int
    number: int
    data_start: int
    data_length: int
    header_sum: int
    final: bool
    fragments: tuple[Fragment, ...]
    block_size: int
    sums: bytes

    def belongs_to(self, header: SpanHeader) -> bool:
        """Whether header and footer are of the same writing of the same span."""
        return (
            self.header_sum == header.sum
            and self.store == header.store
            and self.transaction == header.transaction
            and self.aggregate == header.aggregate
            and (self.attempt, self.number) == (header.attempt, header.number)
            and self.data_start == header.data_start
        )

    def sum_of(self, block: int) -> int:
        """The sum of a block of header and data, counted from 0."""
        return int(SUM_FIELD.unpack_from(self.sums, block * SUM)[0])


def sum_count(data_length: int, block_size: int) -> int:
    """How many sums a span of `data_length` has."""
    return -(-(HEAD_SIZE + data_length) // block_size)


def footer_size(fragments: int, name_bytes: int, data_length: int, block_size: int) -> int:
    """Bytes of a footer, before the zeros that bring it to the granule."""
    sums = SUM * sum_count(data_length, block_size)
    return FOOT_FIXED + FRAGMENT * fragments + sums + name_bytes


def encode_footer(footer: SpanFooter, granule: int) -> bytes:
    """The footer, padded so that header, data and footer together are a multiple of `granule`.

    Raises:
        InterfaceError: the fragments are not back to back, a name is too long or empty, or the number of sums is wrong.
    """
    names = [fragment[0] for fragment in footer.fragments]
    rows, at = [], 0
    pack = _FRAGMENT.pack
    for name, offset, length, digest in footer.fragments:
        if offset != at or not 0 < len(name) <= MAX_NAME:
            raise InterfaceError(f"span footer: fragment {name[:64]!r} at {offset}, expected {at}")
        at += length
        if digest is None:
            rows.append(pack(offset, length, _NO_DIGEST, len(name), 0, 0))
        else:
            rows.append(pack(offset, length, digest, len(name), _ENDS_HERE, 0))
    if footer.data_start + footer.data_length > MAX_NUMBER:
        raise InterfaceError(f"span footer: data at {footer.data_start} cannot be")
    count = sum_count(footer.data_length, footer.block_size)
    if at != footer.data_length or len(footer.sums) != SUM * count:
        raise InterfaceError(
            f"span footer: {at} bytes in fragments and {len(footer.sums) // SUM} sums "
            f"for {footer.data_length} bytes of data, {count} sums expected"
        )
    blob = b"".join(names)
    least = footer_size(len(rows), len(blob), footer.data_length, footer.block_size)
    before = HEAD_SIZE + footer.data_length
    length = round_up(before + least, granule) - before
    body = (
        prefix(b"FOOT", length, 0, footer.store)
        + _FOOT.pack(
            footer.transaction,
            footer.aggregate,
            footer.attempt,
            footer.number,
            footer.data_start,
            footer.data_length,
            footer.header_sum,
            _FINAL if footer.final else 0,
            len(rows),
            len(blob),
            footer.block_size,
            count,
            0,
        )
        + b"".join(rows)
        + footer.sums
        + blob
    )
    trailer = _TRAILER.pack(TRAILER_MAGIC, length)
    return sealed(body.ljust(length - SUM - len(trailer), b"\0") + trailer, length)


def decode_trailer(tail: Buffer, *, path: str, offset: int, used: int) -> int:
    """Bytes of the footer whose span of `used` bytes ends with `tail` (at least its last 24 bytes).

    Args:
        tail: the last bytes of the span's used part.
        path: of the volume.
        offset: of the span's end on the volume.
        used: bytes of header, data and footer.

    Raises:
        VolumeTorn: no trailer is here.
    """
    where = Where(path, "span trailer", offset)
    if len(tail) < _TRAILER.size + SUM:
        raise where.torn("too few bytes")
    magic, length = _TRAILER.unpack_from(tail, len(tail) - _TRAILER.size - SUM)
    if magic != TRAILER_MAGIC or not FOOT_FIXED <= length <= min(used, MAX_SPAN) - HEAD_SIZE:
        raise where.torn("there is none")
    return int(length)


def footer_lengths(head: Buffer, *, path: str, offset: int) -> tuple[int, int]:
    """What the beginning of a footer, found at `offset`, says of itself: its length, and that of the data before it.

    Nothing is checked but the bounds: for finding a footer, which `decode_footer` then reads.

    Raises:
        VolumeTorn: too few bytes, or lengths that cannot be.
    """
    where = Where(path, "span footer", offset)
    if len(head) < PREFIX + _FOOT.size:
        raise where.torn("too few bytes")
    length = PREFIX_FIELDS.unpack_from(head)[4]
    data_length = _FOOT.unpack_from(head, PREFIX)[5]
    if not FOOT_FIXED <= length <= MAX_SPAN or data_length > MAX_SPAN:
        raise where.torn("its lengths cannot be")
    return int(length), int(data_length)


def decode_footer(
    data: Buffer, *, path: str, offset: int, store: bytes | None = None
) -> SpanFooter:
    """The footer in `data`: all its bytes and nothing else, read at `offset`.

    Raises:
        VolumeTorn: it is none, or torn, or contradicts itself.
        VolumeForeign: it is of another store, or needs a newer reader.
    """
    where = Where(path, "span footer", offset)
    view = memoryview(data).cast("B")
    if not FOOT_FIXED <= len(view) <= MAX_SPAN:
        raise where.torn(f"{len(view)} bytes cannot be one")
    body = opened(view, where, kind=b"FOOT", length=len(view), offset=0, store=store)
    (
        transaction, aggregate, attempt, number, data_start, data_length, header_sum, flags,
        count, name_bytes, block_size, sums, _,
    ) = _FOOT.unpack_from(body, PREFIX)  # fmt: skip
    if not MIN_SUM_BLOCK <= block_size <= MAX_SUM_BLOCK or block_size & (block_size - 1):
        raise where.torn(f"sums of blocks of {block_size} bytes cannot be")
    where.number("a place in the data", data_start + data_length)
    if data_length > MAX_SPAN or sums != sum_count(data_length, block_size):
        raise where.torn("the number of sums does not fit the data")
    if footer_size(count, name_bytes, data_length, block_size) > len(view):
        raise where.torn("what it counts does not fit its length")
    if _TRAILER.unpack_from(body, len(body) - _TRAILER.size) != (TRAILER_MAGIC, len(view)):
        raise where.torn("its trailer is damaged")
    table = PREFIX + _FOOT.size
    sums_at = table + count * FRAGMENT
    names_at = sums_at + sums * SUM
    fragments = _decode_fragments(
        body[table:sums_at], body[names_at : names_at + name_bytes], data_length, where
    )
    return SpanFooter(
        store=bytes(body[PREFIX - UUID : PREFIX]),
        transaction=transaction,
        aggregate=aggregate,
        attempt=attempt,
        number=number,
        data_start=data_start,
        data_length=data_length,
        header_sum=header_sum,
        final=bool(flags & _FINAL),
        fragments=fragments,
        block_size=block_size,
        sums=bytes(body[sums_at:names_at]),
    )


def _decode_fragments(
    table: memoryview, names: memoryview, data_length: int, where: Where
) -> tuple[Fragment, ...]:
    made, at, name_at = [], 0, 0
    for offset, length, digest, name_length, flags, _ in _FRAGMENT.iter_unpack(table):
        end = name_at + name_length
        if offset != at or not 0 < name_length <= MAX_NAME or end > len(names):
            raise where.torn("its fragments are not back to back")
        ended = digest if flags & _ENDS_HERE else None
        made.append(Fragment(bytes(names[name_at:end]), offset, length, ended))
        at, name_at = at + length, end
    if at != data_length or name_at != len(names):
        raise where.torn("its fragments do not cover the data")
    return tuple(made)
