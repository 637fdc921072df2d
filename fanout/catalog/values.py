"""Rows of the catalog as values.

The schema's checks hold for what is written, not for what is read: a row that cannot be raises ValueError, TypeError or LookupError, which
`CatalogReader` reports as damage. Pure.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fanout.catalog.intake import KINDS
from fanout.catalog.members import MemberSet, from_json
from fanout.catalog.rows import (
    AggregateEntry,
    DeadAggregate,
    GapEntry,
    HeldSpans,
    MemberEntry,
    ObjectEntry,
    Place,
    PoolEntry,
    Region,
    RetiredVolume,
    SpentCopy,
    VolumeEntry,
)
from fanout.types import PoolKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.types import ObjectKind


def id_of(text: str) -> bytes:
    """Sixteen bytes, of 32 hexadecimal digits."""
    found = bytes.fromhex(text)
    if len(found) != 16:
        raise ValueError(f"{text[:80]!r} is no id")
    return found


def kind_of(code: int) -> ObjectKind:
    """The kind of a code."""
    return KINDS[numbers(code)[0]]


def numbers(*values: int) -> tuple[int, ...]:
    """Every number in the catalog counts something."""
    for value in values:
        if type(value) is not int or value < 0:
            raise ValueError(f"{value!r:.80} is no count")
    return values


def texts(*values: str) -> tuple[str, ...]:
    """Texts."""
    for value in values:
        if type(value) is not str:
            raise TypeError(f"{value!r:.80} is no text")
    return values


def names_of(text: str) -> tuple[str, ...]:
    """A JSON list of names."""
    found = json.loads(text)
    if type(found) is not list:
        raise TypeError(f"{text:.80} is no list")
    return texts(*found)


def identity(uuid: str, created: int) -> tuple[bytes, int]:
    """A store's id, and when it was made."""
    return id_of(uuid), numbers(created)[0]


def pool_entry(uuid: str, name: str, kind: str) -> PoolEntry:
    """A pool."""
    texts(name)
    return PoolEntry(id_of(uuid), name, PoolKind(kind))


def volume_entry(uuid: str, pool: str, path: str, *rest: int) -> VolumeEntry:
    """A volume."""
    size, granule, epoch, device, inode, block = numbers(*rest)
    texts(pool, path)
    return VolumeEntry(id_of(uuid), pool, path, size, granule, epoch, device, inode, bool(block))


def retired_volume(
    uuid: str, csn: int, at: int, epoch: int, pool: str | None, path: str | None, device: int | None
) -> RetiredVolume:
    """A volume that was given up."""
    numbers(csn, at, epoch, *([] if device is None else [device]))
    texts(*(text for text in (pool, path) if text is not None))
    return RetiredVolume(id_of(uuid), csn, at, epoch, pool, path, device)


def copy_head(
    other: int, number: int, aggregate: str, pool: str, present: str | None
) -> tuple[int, int, bytes, str, MemberSet | None]:
    """A copy without its places: its turn among those of its aggregate, the aggregate, the pool, and what it holds."""
    texts(pool)
    numbers(other, number)
    return other, number, id_of(aggregate), pool, from_json(present)


def gap_head(aggregate: str, pool: str, missing: str | None) -> tuple[bytes, str, MemberSet | None]:
    """A gap's aggregate and pool, and what it lacks."""
    texts(pool)
    return id_of(aggregate), pool, from_json(missing)


def numbered_gap(
    number: int,
    turn: int,
    uuid: str,
    node: str,
    kind: int,
    primary: str,
    pool: str,
    missing: str | None,
    reason: str,
    errno: int,
    since: int,
    updated: int,
    counted: list[int],
) -> tuple[int, int, GapEntry]:
    """The numbers of an aggregate and of a pool in the catalog, and the gap of the one in the other."""
    texts(node, primary, pool, reason)
    numbers(number, turn)
    objects, size = counted
    gap = GapEntry(
        id_of(uuid),
        node,
        kind_of(kind),
        primary,
        pool,
        from_json(missing),
        reason,
        *numbers(errno, since, updated, objects, size),
    )
    return number, turn, gap


def numbered_place(
    number: int, aggregate: str, pool: str, span: int, volume: str, *rest: int
) -> tuple[int, bytes, str, Place]:
    """The number of a volume in the catalog, an aggregate and a pool, and the place of a span there."""
    texts(pool)
    offset, length, used, data_start, data_length = numbers(*rest)
    numbers(number, span)
    place = Place(span, id_of(volume), offset, length, used, data_start, data_length)
    return number, id_of(aggregate), pool, place


def held_spans(
    places: Sequence[Place],
    uuid: str,
    tx: str,
    node: str,
    present: str | None,
    kind: int,
    attempt: int,
    csn: int,
    at: int,
    erased: str,
    committed: int,
    version: int,
    objects: int,
) -> HeldSpans:
    """What a volume holds of a copy."""
    numbers(attempt, csn, at, committed, version, objects)
    texts(node)
    return HeldSpans(
        id_of(uuid),
        id_of(tx),
        attempt,
        csn,
        node,
        kind_of(kind),
        at,
        from_json(present),
        tuple(places),
        some_of(erased),
        committed,
        version,
        objects,
    )


def some_of(text: str) -> MemberSet:
    """A set of members that is not all of them."""
    found = from_json(text)
    if found is None:
        raise ValueError("a set of members is not there")
    return found


def dead_aggregate(
    uuid: str, tx: str, attempt: int, csn: int, node: str, kind: int, at: int
) -> DeadAggregate:
    """An aggregate of which nothing is left."""
    numbers(attempt, csn, at)
    texts(node)
    return DeadAggregate(id_of(uuid), id_of(tx), attempt, csn, node, kind_of(kind), at)


def aggregate_and_held(*row: Any) -> tuple[AggregateEntry, MemberSet]:
    """An aggregate, and which members a pool is said to hold of it, if not all; NULL: it has no copy."""
    *entry, present = row
    return aggregate_entry(*entry), MemberSet() if present is None else some_of(present)


def partial_copy(
    uuid: str, pool: str, present: str, erased: str, length: int
) -> tuple[SpentCopy, MemberSet, MemberSet]:
    """A copy of some members: those, and what was deleted of the aggregate."""
    numbers(length)
    texts(pool)
    return SpentCopy(id_of(uuid), pool, length), some_of(present), some_of(erased)


def member_entry(
    index: int, version: int, name: str, start: int, length: int, digest: str, active: int
) -> MemberEntry:
    """A member."""
    numbers(index, version, start, length)
    return MemberEntry(
        index, version, bytes.fromhex(name), start, length, id_of(digest), bool(active)
    )


def aggregate_entry(
    uuid: str,
    tx: str,
    attempt: int,
    csn: int,
    node: str,
    kind: int,
    primary: str,
    required: str,
    objects: int,
    size: int,
    at: int,
    ordinal: int,
    erased: str,
    erased_bytes: int,
    _: int,
) -> AggregateEntry:
    """An aggregate; the last column is the mark of its page."""
    numbers(attempt, csn, objects, size, at, ordinal, erased_bytes)
    texts(node, primary)
    return AggregateEntry(
        id_of(uuid),
        id_of(tx),
        attempt,
        csn,
        node,
        kind_of(kind),
        primary,
        names_of(required),
        objects,
        size,
        at,
        ordinal,
        some_of(erased),
        erased_bytes,
    )


def object_entry(
    version: int,
    node: str,
    kind: int,
    name: str,
    active: int,
    length: int,
    digest: str,
    at: int,
    primary: str,
    aggregate: str,
    index: int,
    start: int,
) -> ObjectEntry:
    """A version of an object."""
    numbers(version, length, at, index, start)
    texts(node, primary)
    return ObjectEntry(
        node,
        kind_of(kind),
        bytes.fromhex(name),
        version,
        bool(active),
        length,
        id_of(digest),
        at,
        primary,
        id_of(aggregate),
        index,
        start,
    )


# ---- columns of many rows: looked at as a whole --------------------------------------------------------


def counted_ids(ids: list[str], counts: list[int]) -> tuple[list[bytes], list[int]]:
    """Ids, each with a number."""
    return _ids(ids), _counts(counts)


def regions(offsets: list[int], lengths: list[int]) -> list[Region]:
    """Regions, by offset."""
    return sorted(map(Region, _counts(offsets), _counts(lengths)))


def _ids(texts: list[str]) -> list[bytes]:
    found = bytes.fromhex("".join(texts))
    if set(map(len, texts)) - {32} or len(found) != 16 * len(texts):
        return [id_of(text) for text in texts]  # says which
    return [found[at : at + 16] for at in range(0, len(found), 16)]


def _counts(values: list[int]) -> list[int]:
    if set(map(type, values)) - {int} or min(values, default=0) < 0:
        numbers(*values)  # says which
    return values
