"""The disks at a moment, in every way in which a power loss may leave them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash

from tests.sim.medium import BLOCK, blocks_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.sim.medium import Disk, Fate, Log, Medium

Catalog = tuple[int, int]  # digests of the database and its log


class Snapshot:
    """The disks at a moment, to which they can be brought back in every way in which the power may have failed there.

    Attributes:
        changes: what no flush has covered, and in which file.
    """

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self._disks = [(disk, dict(disk.blocks)) for disk in medium.disks.values()]
        logs = list(medium.logs.values())
        self._logs = [(log, bytes(log.durable), log.exists) for log in logs if log.volatile]
        self._files = list(medium.files.values())
        self.changes = [(file, change) for file in self._files for change in file.volatile]
        self._stale = {
            disk: {n for file, change in self.changes if file is disk for n in blocks_of(change)}
            for disk, _ in self._disks
        }
        # Of what no loss can change; None: it can.
        self._certain = 0
        for index, (disk, blocks) in enumerate(self._disks):
            for number in blocks.keys() - self._stale[disk]:
                self._certain ^= _digest_of(index, disk, number)
        self._certain_logs = [(log, None if log.volatile else _digest_of_log(log)) for log in logs]

    def certain_of(self, log: str) -> int:
        """How many bytes at the beginning of a log no loss can change."""
        file = self._medium.logs[log]
        return min([len(file.durable), *(change.offset for change in file.volatile)])

    def become(self, state: Mapping[int, Fate]) -> tuple[int, Catalog]:
        """Let the disks be what this loss would have left; `settle` then writes it.

        Returns:
            A digest of the volumes, and those of the catalog's files. They depend on nothing but what is there.
        """
        for disk, blocks in self._disks:
            if self._stale[disk]:
                disk.blocks = dict(blocks)
                disk.stale |= self._stale[disk]
        for log, durable, exists in self._logs:
            log.durable, log.exists, log.stale = bytearray(durable), exists, True
        for file in self._files:
            file.volatile = []
        for number, (file, change) in enumerate(self.changes):
            fate = state[number]
            if fate is True:
                file.apply(change)
            elif fate:
                file.apply(change, fate)
        volumes = self._certain
        for index, (disk, _) in enumerate(self._disks):
            for number in self._stale[disk]:
                volumes ^= _digest_of(index, disk, number)
        database, catalog_log = (
            _digest_of_log(log) if certain is None else certain
            for log, certain in self._certain_logs
        )
        return volumes, (database, catalog_log)


def _digest_of(index: int, disk: Disk, number: int) -> int:
    """Of a block, and 0 of one that is as it was made: so the digest of a disk is that of its blocks, in any order."""
    block = disk.block(number)
    if block == disk.template[number * BLOCK : (number + 1) * BLOCK]:
        return 0
    return xxhash.xxh3_128_intdigest(block, seed=number << 8 | index)


def _digest_of_log(log: Log) -> int:
    digest = xxhash.xxh3_128(f"{log.path.name} {log.exists}".encode())
    digest.update(log.durable)
    return digest.intdigest()
