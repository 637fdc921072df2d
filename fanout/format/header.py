"""Span headers: whose data it is, and every place where this very block may lie."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from fanout.errors import InterfaceError
from fanout.format.blocks import (
    BLOCK,
    MAX_NUMBER,
    MAX_POOL_NAME,
    MAX_SPAN,
    PREFIX,
    SUM,
    SUM_FIELD,
    UUID,
    Where,
    opened,
    prefix,
    sealed,
)

if TYPE_CHECKING:
    from fanout.format.blocks import Buffer


HEAD_SIZE = BLOCK
MAX_PLACES = 16
MAX_POOLS = 32

_HEAD = struct.Struct("<16s16sIIQQHHH2xI4x")
_PLACE = struct.Struct("<16sQH6x")
assert (PREFIX + _HEAD.size, _PLACE.size) == (120, 32)


class SpanPlace(NamedTuple):
    """One copy of a span: the volume, the offset of its header there, and the pool."""

    volume: bytes
    offset: int
    pool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanHeader:
    """The first block of a span, the same in every copy.

    Attributes:
        store: UUID.
        transaction: UUID.
        attempt: 1-based.
        aggregate: UUID.
        number: of the span in the aggregate.
        data_start: of the span's data in the aggregate's data.
        length: bytes reserved at every place.
        required: pools that the rules demand; the first one is the primary.
        places: every copy that was intended.
        ordinal: number of the aggregate in its transaction, from 0.
        sum: of the block; the footer repeats it. Filled in by `decode_header`.
    """

    store: bytes
    transaction: bytes
    attempt: int
    aggregate: bytes
    number: int
    data_start: int
    length: int
    required: tuple[str, ...]
    places: tuple[SpanPlace, ...]
    ordinal: int = 0
    sum: int = field(default=0, compare=False)

    @property
    def primary(self) -> str:
        """The primary pool of the aggregate."""
        return self.required[0]


def encode_header(header: SpanHeader) -> bytes:
    """The header block.

    Raises:
        InterfaceError: too many places or pools, or their names do not fit.
    """
    pools = list(dict.fromkeys([*header.required, *[place.pool for place in header.places]]))
    names = [pool.encode() for pool in pools]
    lengths = [len(name) for name in names]
    fit = 1 <= min(lengths, default=0) <= max(lengths, default=0) <= MAX_POOL_NAME
    table = b"".join([bytes((len(name),)) + name for name in names]) if fit else b""
    size = PREFIX + _HEAD.size + _PLACE.size * len(header.places) + len(table)
    if not (
        1 <= len(header.places) <= MAX_PLACES
        and 1 <= len(set(header.required)) == len(header.required)
        and len(pools) <= MAX_POOLS
        and fit
        and size <= HEAD_SIZE - SUM
    ):
        raise InterfaceError(
            f"span header: {len(header.places)} places and {len(pools)} pools do not fit"
        )
    starts = [header.data_start, *[place.offset for place in header.places]]
    if max(starts) + header.length > MAX_NUMBER or not header.attempt:
        raise InterfaceError("span header: a place or the attempt is out of range")
    body = prefix(b"HEAD", HEAD_SIZE, 0, header.store) + _HEAD.pack(
        header.transaction,
        header.aggregate,
        header.attempt,
        header.number,
        header.data_start,
        header.length,
        len(header.required),
        len(pools),
        len(header.places),
        header.ordinal,
    )
    places = [
        _PLACE.pack(place.volume, place.offset, pools.index(place.pool)) for place in header.places
    ]
    return sealed(body + b"".join(places) + table, HEAD_SIZE)


def decode_header(
    data: Buffer, *, path: str, volume: bytes, offset: int, store: bytes | None = None
) -> SpanHeader:
    """The header that was read at `offset` of `volume`.

    Raises:
        VolumeTorn: there is none, it is torn, or it was not written for this place.
        VolumeForeign: it is of another store, or needs a newer reader.
    """
    where = Where(path, "span header", offset)
    body = opened(data, where, kind=b"HEAD", length=HEAD_SIZE, offset=0, store=store)
    (
        transaction, aggregate, attempt, number, data_start, length, required, pool_count, count,
        ordinal,
    ) = _HEAD.unpack_from(body, PREFIX)  # fmt: skip
    if not 1 <= count <= MAX_PLACES or not 1 <= required <= pool_count <= MAX_POOLS:
        raise where.torn("a count is out of range")
    if not HEAD_SIZE < length <= MAX_SPAN or not attempt:
        raise where.torn(f"a span of {length} bytes in attempt {attempt} cannot be")
    where.number("a place in the data", data_start + length)
    at = PREFIX + _HEAD.size
    table = at + count * _PLACE.size
    pools = _decode_pools(body, table, pool_count, where)
    if len(set(pools)) != pool_count:
        raise where.torn("a pool is named twice")
    places = []
    for owner, there, pool in _PLACE.iter_unpack(body[at:table]):
        if pool >= pool_count:
            raise where.torn("a place names no pool")
        where.number("the offset of a place", there + length)
        places.append(SpanPlace(owner, there, pools[pool]))
    if not any(place.volume == volume and place.offset == offset for place in places):
        raise where.torn("was written for other places: misdirected, or a copied volume")
    return SpanHeader(
        store=bytes(body[PREFIX - UUID : PREFIX]),
        transaction=transaction,
        attempt=attempt,
        aggregate=aggregate,
        number=number,
        data_start=data_start,
        length=length,
        required=tuple(pools[:required]),
        places=tuple(places),
        ordinal=ordinal,
        sum=header_sum(data),
    )


def _decode_pools(body: memoryview, at: int, count: int, where: Where) -> list[str]:
    pools = []
    for _ in range(count):
        length = body[at] if at < len(body) else 0
        if not 1 <= length <= MAX_POOL_NAME or at + 1 + length > len(body):
            raise where.torn("the pool table is damaged")
        pools.append(where.text(bytes(body[at + 1 : at + 1 + length]), "a pool's name"))
        at += 1 + length
    return pools


def header_sum(head: Buffer) -> int:
    """The sum field of an encoded header."""
    return int(SUM_FIELD.unpack_from(head, HEAD_SIZE - SUM)[0])
