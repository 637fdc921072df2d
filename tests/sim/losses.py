"""What is done to a medium from outside: a disk that is lost and perhaps found again, bytes that rot, a catalog that another takes the place of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.sim.medium import BLOCK

if TYPE_CHECKING:
    from tests.sim.medium import Disk, Medium

    Blocks = dict[int, bytes]


def lose_disk(disk: Disk) -> Blocks:
    """It is blank from now on. Returns what was durable on it."""
    blank = bytes(BLOCK)
    blocks = ((number, disk.block(number)) for number in range(len(disk.template) // BLOCK))
    kept = {number: block for number, block in blocks if block != blank}
    _become(disk, dict.fromkeys(kept.keys() | disk.touched, bytes(BLOCK)))
    return kept


def find_disk(disk: Disk, kept: Blocks) -> None:
    """It is again what it was when it was lost."""
    _become(disk, {**dict.fromkeys(disk.touched, bytes(BLOCK)), **kept})


def _become(disk: Disk, blocks: Blocks) -> None:
    disk.volatile, disk.blocks = [], blocks
    disk.touched |= blocks.keys()
    disk.stale |= disk.touched
    disk.settle()


def rot(disk: Disk, begin: int, end: int) -> None:
    """All bits of a region that has no volatile writes are inverted."""
    first, last = begin // BLOCK, -(-end // BLOCK)
    was = b"".join(disk.block(number) for number in range(first, last))
    data = bytes(byte ^ 0xFF for byte in was[begin - first * BLOCK : end - first * BLOCK])
    disk.put(begin, data)
    disk.touched.update(range(first, last))
    fd = os.open(disk.path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, begin)
    finally:
        os.close(fd)


def lose_catalog(medium: Medium) -> None:
    """Its files are gone."""
    for name in medium.catalog.parent.glob(f"{medium.catalog.name}*"):
        name.unlink()


def adopt_catalog(medium: Medium) -> None:
    """Another one stands there, durable."""
    for path, log in medium.logs.items():
        log.exists = Path(path).exists()
        log.durable = bytearray(Path(path).read_bytes()) if log.exists else bytearray()
        log.volatile, log.stale = [], False
