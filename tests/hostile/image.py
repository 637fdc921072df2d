"""A small volume in memory, written by fanout's own code, and every block that is on it."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from fanout import format as fmt
from fanout.errors import FanoutError
from fanout.evidence import find_spans
from fanout.format import Op, SpanFooter, SpanHeader, SpanPlace, StoredSpan
from fanout.host import Fragment
from fanout.making import create_volume
from fanout.volume import Volume
from tests.format.samples import POOL, STORE, record
from tests.volume.image import Disk, ImageEngine

if TYPE_CHECKING:
    import random

PATH, SIZE, DIRECTORY, BLOCK = "hostile.vol", 512 << 10, 32 << 10, 64 << 10
EPOCH = 2  # that the catalog knows after the volume was made and opened once


class Made(NamedTuple):
    """A volume, and (offset, length) of its blocks by kind."""

    data: bytes
    superblock: fmt.Superblock
    blocks: dict[str, tuple[int, int]]


def span(block: fmt.Superblock, offset: int, mark: int, data: bytes, **changes: Any) -> bytes:
    """One whole span, to lie at `offset`: header, data, footer."""
    values: dict[str, Any] = {
        "store": block.store, "transaction": bytes([mark]) * 16, "aggregate": bytes([mark + 1]) * 16,
        "attempt": 1, "number": 0, "data_start": 0,
    }  # fmt: skip
    values |= changes
    head = fmt.encode_header(
        SpanHeader(
            **values,
            length=32 << 10,
            required=("DISKPOOL", "COPYPOOL1"),
            places=(
                SpanPlace(block.volume, offset, "DISKPOOL"),
                SpanPlace(b"W" * 16, 1 << 20, "COPYPOOL1"),
            ),
        )
    )
    half = len(data) // 2
    pieces = tuple(
        Fragment(name, at, len(part), xxhash.xxh3_128_digest(part))
        for name, at, part in ((b"first", 0, data[:half]), (b"second\xff", half, data[half:]))
    )
    footer = SpanFooter(
        **values,
        data_length=len(data),
        header_sum=fmt.header_sum(head),
        final=True,
        fragments=pieces,
        block_size=BLOCK,
        sums=xxhash.xxh3_64_intdigest(head + data).to_bytes(8, "little"),
    )
    return head + data + fmt.encode_footer(footer, 4096)


@functools.cache
def volume() -> Made:
    """Two committed spans, one that no directory names, a directory in its second generation."""
    disks: dict[str, Disk] = {}
    engine: Any = ImageEngine(disks)
    block = create_volume(
        engine, PATH, store=STORE, pool="DISKPOOL", pool_uuid=POOL, size=SIZE, directory_bytes=DIRECTORY
    )  # fmt: skip
    opened = open_(engine, block, 1)
    opened.confirm()
    blocks: dict[str, tuple[int, int]] = {}
    offset = block.space_offset
    for mark in (10, 20, 30):
        data = span(block, offset, mark, bytes(range(256)) * 40)
        engine.write(opened.target, offset, data)
        blocks[f"header {mark}"] = (offset, 4096)
        blocks[f"footer {mark}"] = (offset + 4096 + 10240, len(data) - 4096 - 10240)
        if mark != 30:
            stored = StoredSpan(0, offset, len(data), len(data), 0, 10240)
            said = record(mark, transaction=bytes([mark]) * 16, aggregate=bytes([mark + 1]) * 16)
            listed = (range(1), range(1, 2)) if mark == 20 else None
            said = replace(said, spans=(stored,), present=listed)
            assert opened.written(engine.run(opened.prepare([said])))
        offset += 32 << 10
    for csn in range(40, 50):  # over the end of the half: a checkpoint, and blocks behind it
        gone = record(csn, 0, op=Op.DELETE)
        assert opened.written(engine.run(opened.prepare([gone])))
    opened.flush()
    assert opened.directory is not None
    opened.close()
    data = bytes(disks[PATH].data)
    for half in (0, 1):
        for index in range(DIRECTORY // 4096):
            at = block.half_offset(half) + 4096 * index
            if data[at : at + 8] == fmt.MAGIC:
                blocks[f"directory {half}.{index}"] = (at, 4096)
    blocks["superblock A"], blocks["superblock B"] = (0, 4096), (SIZE - 4096, 4096)
    return Made(data, opened.superblock, blocks)


def open_(engine: Any, block: fmt.Superblock, epoch: int, **options: Any) -> Volume:
    """Open it as its store would."""
    return Volume.open(
        engine, PATH, store=STORE, pool="DISKPOOL", volume=block.volume, catalog_epoch=epoch, size=SIZE, **options
    )  # fmt: skip


def use(data: bytes) -> int:
    """Everything that is ever done with a volume; returns how many spans of it could be read.

    Whatever is wrong comes out as a `FanoutError`: that of the opening rises, the others are counted.
    """
    engine: Any = ImageEngine({PATH: Disk(bytearray(data))})
    opened = open_(engine, volume().superblock, EPOCH)
    opened.confirm()
    assert opened.directory is not None
    good = 0
    for said in list(opened.directory.records.values()):
        for stored in said.spans:
            good += _readable(opened, stored, said.aggregate)
    good += sum(1 for _ in find_spans(opened, on_bytes=lambda _: None))
    for csn in range(60, 64):
        assert opened.written(engine.run(opened.prepare([record(csn, 0, op=Op.MOVE)])))
    opened.load_space((span.offset, span.length) for span in opened.directory.spans())
    opened.flush()
    opened.close()
    return good


def _readable(opened: Volume, stored: StoredSpan, aggregate: bytes) -> bool:
    try:
        opened.read_span(stored, aggregate=aggregate)
    except FanoutError:
        return False
    return True


def corrupt(rng: random.Random, change: Any, count: int = 1) -> bytes:
    """The volume with `count` of its blocks changed by `change(block, rng)`."""
    made = volume()
    data = bytearray(made.data)
    for _ in range(count):
        at, length = made.blocks[rng.choice(sorted(made.blocks))]
        data[at : at + length] = change(bytes(data[at : at + length]), rng)[:length].ljust(length)
    return bytes(data)
