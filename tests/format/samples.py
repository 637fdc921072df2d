"""Values and strategies for everything that lies on a volume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from fanout import format as fmt
from fanout.format import (
    DirectoryRecord,
    Op,
    SpanFooter,
    SpanHeader,
    SpanPlace,
    StoredSpan,
    Superblock,
    SuperblockState,
)
from fanout.host import Fragment
from fanout.types import ObjectKind

STORE, VOLUME, POOL = b"S" * 16, b"V" * 16, b"P" * 16
SIZE, DIRECTORY = 2 << 20, 64 << 10
PATH = "sample.vol"


def superblock(**changes: Any) -> Superblock:
    values: dict[str, Any] = {
        "store": STORE, "volume": VOLUME, "pool_uuid": POOL, "pool": "DISKPOOL", "epoch": 7,
        "sequence": 15, "size": SIZE, "granule": 4096, "directory_bytes": DIRECTORY,
        "state": SuperblockState.CONFIRMED, "created_ns": 1_700_000_000_000_000_000,
        "fs_magic": 0xEF53, "device": 2049, "inode": 77,
    }  # fmt: skip
    return Superblock(**{**values, **changes})


def record(csn: int = 1, spans: int = 1, **changes: Any) -> DirectoryRecord:
    first = fmt.round_up(superblock().space_offset, 4096)
    values: dict[str, Any] = {
        "csn": csn, "op": Op.COMMIT, "aggregate": csn.to_bytes(16, "big"), "transaction": b"T" * 16,
        "attempt": 1, "node": "N1", "kind": ObjectKind.BACKUP, "time_ns": 5,
        "spans": tuple(
            StoredSpan(n, first + 16384 * (csn * 100 + n), 16384, 12288, 4096 * n, 4096)
            for n in range(spans)
        ),
    }  # fmt: skip
    return DirectoryRecord(**{**values, **changes})


def header(**changes: Any) -> SpanHeader:
    values: dict[str, Any] = {
        "store": STORE, "transaction": b"T" * 16, "attempt": 2, "aggregate": b"A" * 16, "number": 3,
        "data_start": 1 << 30, "length": 1 << 20, "required": ("DISKPOOL", "COPYPOOL1", "ACTIVE"),
        "places": (
            SpanPlace(VOLUME, 1 << 19, "DISKPOOL"),
            SpanPlace(b"W" * 16, 1 << 29, "COPYPOOL1"),
            SpanPlace(b"X" * 16, 1 << 39, "EXTRA"),
        ),
    }  # fmt: skip
    return SpanHeader(**{**values, **changes})


def fragments(count: int, size: int = 100) -> tuple[Fragment, ...]:
    return tuple(
        Fragment(b"dir/name-%d\xff" % n, n * size, size, bytes([n % 256]) * 16)
        for n in range(count)
    )


def footer(count: int = 5, **changes: Any) -> SpanFooter:
    pieces = changes.pop("fragments", fragments(count))
    length = pieces[-1].offset + pieces[-1].length if pieces else 0
    block = changes.get("block_size", 64 << 10)
    values: dict[str, Any] = {
        "store": STORE, "transaction": b"T" * 16, "aggregate": b"A" * 16, "attempt": 2, "number": 3,
        "data_start": 1 << 30, "data_length": length, "header_sum": 99, "final": True,
        "fragments": pieces, "block_size": block, "sums": b"s" * 8 * fmt.sum_count(length, block),
    }  # fmt: skip
    return SpanFooter(**{**values, **changes})


# ---- strategies

uuids = st.binary(min_size=16, max_size=16)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
attempts = st.integers(1, 2**32 - 1)
counters = st.integers(0, fmt.MAX_COUNTER)
times = st.integers(0, fmt.MAX_NUMBER)
starts = st.integers(0, fmt.MAX_NUMBER - fmt.MAX_SPAN)  # of what is at most a span long
pool_names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30
).filter(lambda text: len(text.encode()) <= fmt.MAX_POOL_NAME)


@st.composite
def stored_span(draw: st.DrawFn) -> StoredSpan:
    data = draw(st.integers(0, 1 << 29))
    used = draw(st.integers(fmt.HEAD_SIZE + data + 1, fmt.MAX_SPAN))
    length = draw(st.integers(used, fmt.MAX_SPAN))
    return StoredSpan(draw(u32), draw(starts), length, used, draw(starts), data)


some_members = st.builds(fmt.ranges, st.sets(st.integers(0, 2**31), max_size=300))
member_sets = st.none() | some_members
plain_records = st.builds(
    DirectoryRecord,
    csn=counters,
    op=st.sampled_from(Op),
    aggregate=uuids,
    transaction=uuids,
    attempt=attempts,
    spans=st.lists(stored_span(), max_size=200).map(tuple),
    present=member_sets,
    node=st.text(max_size=60),
    kind=st.none() | st.sampled_from(ObjectKind),
    time_ns=times,
    deleted=some_members,
    committed=counters,
    version=counters,
)


@st.composite
def counted_records(draw: st.DrawFn) -> DirectoryRecord:
    """Those with spans may say how many members there were."""
    made = draw(plain_records)
    return replace(made, objects=draw(u32)) if made.spans else made


records = counted_records()


@st.composite
def superblocks(draw: st.DrawFn) -> Superblock:
    granule = 4096 << draw(st.integers(0, 8))
    directory = granule * draw(st.integers(2, 64))
    return Superblock(
        store=draw(uuids), volume=draw(uuids), pool_uuid=draw(uuids), pool=draw(pool_names),
        epoch=draw(counters), sequence=draw(counters), granule=granule,
        size=2 * directory + granule * draw(st.integers(4, 10_000)), directory_bytes=directory,
        state=draw(st.sampled_from(SuperblockState)), block_device=draw(st.booleans()),
        created_ns=draw(times), fs_magic=draw(u64), device=draw(u64), inode=draw(u64),
    )  # fmt: skip


@st.composite
def headers(draw: st.DrawFn) -> SpanHeader:
    names = draw(st.lists(pool_names, min_size=1, max_size=16, unique=True))
    required = names[: draw(st.integers(1, len(names)))]
    places = [SpanPlace(draw(uuids), draw(starts), name) for name in names]
    return SpanHeader(
        store=draw(uuids), transaction=draw(uuids), attempt=draw(attempts), aggregate=draw(uuids),
        number=draw(u32), data_start=draw(starts), length=draw(st.integers(4097, fmt.MAX_SPAN)),
        required=tuple(required), places=tuple(places),
    )  # fmt: skip


@st.composite
def footers(draw: st.DrawFn) -> SpanFooter:
    pieces, at = [], 0
    for name in draw(st.lists(st.binary(min_size=1, max_size=1024), max_size=20)):
        length = draw(st.integers(0, 1 << 20))
        pieces.append(Fragment(name, at, length, draw(st.none() | uuids)))
        at += length
    block = 64 << 10 << draw(st.integers(0, 8))
    count = fmt.sum_count(at, block)
    return SpanFooter(
        store=draw(uuids), transaction=draw(uuids), aggregate=draw(uuids), attempt=draw(attempts),
        number=draw(u32), data_start=draw(starts), data_length=at, header_sum=draw(u64),
        final=draw(st.booleans()), fragments=tuple(pieces), block_size=block,
        sums=draw(st.binary(min_size=8 * count, max_size=8 * count)),
    )  # fmt: skip
