"""What the disks hold, and what a power loss leaves of it.

Every write stays volatile until a flush has covered it: one that was *issued* after the write had completed (the strict rule of
dm-log-writes: a writer that does not drain before it flushes is caught). What a failed flush covered stays volatile for ever,
whatever later flushes say. A power loss keeps any subset of the volatile writes, whole or in sectors; it never invents bytes.

The files themselves always hold all writes, for the product reads them. The durable state is kept beside them, over the template that
every run starts from; `settle` makes the files what a loss has left, `reset` makes them the template again.

Not modelled: lost names (the catalog's log is made once and synced with its directory by SQLite), and media that lie about a flush.
"""

from __future__ import annotations

import functools
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

BLOCK = 4096
SECTOR = 512
RECORD = struct.Struct("=5QqqQHBBI")  # fo_carried of csrc/fanout.h
NONE, WRITE, READ, FLUSH, OPEN = 0, 1, 2, 3, 7  # fo_op_kind
LONG = 4 << 20  # bytes of a journal whose memory is given back
IN_FLIGHT = -115  # EINPROGRESS: the power failed before it ended
SHORT, DELAY = 3, 5  # fo_fault_action

Fate = tuple[int, ...] | bool  # of a volatile write: it is there, it is not, or these sectors are


class Carried(NamedTuple):
    """One operation of the engine's that was carried out; times are numbers of one sequence."""

    issued: int
    done: int
    ino: int
    offset: int
    length: int
    medium: int
    result: int
    data: int
    target: int
    kind: int
    action: int
    reserved: int


_carried_of = functools.partial(tuple.__new__, Carried)  # as `_make`, for what has the right length


@dataclass(slots=True)
class Change:
    """A write that no flush has covered, or (data None) a new length of the file."""

    done: int
    offset: int
    data: bytes | None
    flying: bool = False
    doomed: bool = False

    def is_due(self, before: int) -> bool:
        """Whether a flush that was issued at this moment covers it."""
        return self.done < before and not self.doomed and not self.flying

    def less(self, newer: Change) -> Iterator[Change]:
        """What is left of it beside a newer one."""
        if self.data is None:
            return
        start, end = self.offset, self.offset + len(self.data)
        # A new length takes everything behind it.
        stop = newer.offset + len(newer.data) if newer.data is not None else end
        for first, last in ((start, min(end, newer.offset)), (max(start, stop), end)):
            if first < last:
                data = self.data[first - start : last - start]
                yield Change(self.done, first, data, flying=self.flying, doomed=self.doomed)


class File:
    """One file: its volatile changes in the order in which they were carried out, over what is durable."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.template = path.read_bytes() if path.exists() else b""
        self.volatile: list[Change] = []

    def flushed(self, before: int) -> None:
        """A flush that was issued at this moment did what it should."""
        kept: list[Change] = []
        newest = {(c.offset, len(c.data)): c for c in self.volatile if c.data and c.is_due(before)}
        for change in self.volatile:
            if not change.is_due(before):
                kept.append(change)
                continue
            if change.data and newest[change.offset, len(change.data)] is not change:
                continue  # written again, perhaps thousands of times: the last one decides
            self.apply(change)
            if kept:  # what is older and never became durable cannot come back over it
                kept = [left for older in kept for left in older.less(change)]
        self.volatile = kept

    def failed(self, before: int) -> None:
        """A flush that was issued at this moment failed."""
        for change in self.volatile:
            change.doomed = change.doomed or change.done < before

    def lose(self, keep: Callable[[Change], Sequence[int] | bool]) -> int:
        """The power has failed: of the volatile changes those remain that `keep` says, or those sectors of them.

        Returns:
            How many were lost, wholly or in part.
        """
        lost = 0
        for change in self.volatile:
            kept = keep(change)
            if kept is True:
                self.apply(change)
            else:
                lost += 1
                if kept:
                    self.apply(change, kept)
        return lost

    def apply(self, change: Change, sectors: Iterable[int] | None = None) -> None:
        """Make a change durable, or only some sectors of it."""
        data = change.data
        assert data is not None
        if sectors is None:
            self.put(change.offset, data)
            return
        for sector in sectors:
            at = sector * SECTOR
            self.put(change.offset + at, data[at : at + SECTOR])

    def put(self, offset: int, data: bytes) -> None:
        """Make bytes durable."""
        raise NotImplementedError


class Disk(File):
    """A volume: it has its length for good, and few of its blocks are ever written.

    Attributes:
        blocks: durable ones that are not the template's.
        touched: those that were ever written since the template.
        stale: those in which the file may not be what is durable.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.blocks: dict[int, bytes] = {}
        self.touched: set[int] = set()
        self.stale: set[int] = set()

    def change(self, change: Change) -> None:
        """A write was carried out."""
        self.volatile.append(change)
        self.touched.update(blocks_of(change))

    def put(self, offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, start = divmod(offset + at, BLOCK)
            piece = data[at : at + BLOCK - start]
            if len(piece) < BLOCK:
                old = self.block(number)
                piece = old[:start] + piece + old[start + len(piece) :]
            self.blocks[number] = piece
            at += BLOCK - start

    def block(self, number: int) -> bytes:
        """What is durable of a block."""
        found = self.blocks.get(number)
        return self.template[number * BLOCK : (number + 1) * BLOCK] if found is None else found

    def lose(self, keep: Callable[[Change], Sequence[int] | bool]) -> int:
        lost = super().lose(keep)
        for change in self.volatile:
            self.stale.update(blocks_of(change))
        self.volatile = []
        return lost

    def settle(self) -> None:
        """Make the file what is durable, where it may be something else."""
        self._write(self.stale)

    def reset(self) -> None:
        """Back to the template."""
        self.blocks, self.volatile = {}, []
        self._write(self.touched | self.stale)
        self.touched = set()

    def _write(self, numbers: set[int]) -> None:
        if not numbers:
            return
        fd = os.open(self.path, os.O_WRONLY)
        try:
            for first, count in _runs(numbers):
                run = b"".join(map(self.block, range(first, first + count)))
                os.pwrite(fd, run, first * BLOCK)
        finally:
            os.close(fd)
        self.stale = set()


class Log(File):
    """A file of the catalog's: it comes, grows, is cut and goes.

    Attributes:
        durable: its bytes.
        exists: whether it is there.
        stale: the file may not be what is durable.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.durable = bytearray(self.template)
        self.exists = path.exists()
        self.stale = True

    def apply(self, change: Change, sectors: Iterable[int] | None = None) -> None:
        if change.data is None:
            del self.durable[change.offset :]
            self.put(change.offset, b"")
        elif sectors is None:
            self.put(change.offset, change.data)
        else:
            super().apply(change, sectors)

    def put(self, offset: int, data: bytes) -> None:
        durable = self.durable
        if offset > len(durable):
            durable.extend(bytes(offset - len(durable)))
        durable[offset : offset + len(data)] = data

    def lose(self, keep: Callable[[Change], Sequence[int] | bool]) -> int:
        lost = super().lose(keep)
        self.volatile, self.stale = [], True
        return lost

    def settle(self) -> None:
        """Make the file what is durable."""
        if not self.stale:
            return
        self.stale = False
        if not self.exists:
            self.path.unlink(missing_ok=True)
            return
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(fd, self.durable, 0)
            os.ftruncate(fd, len(self.durable))
        finally:
            os.close(fd)

    def reset(self) -> None:
        """Back to the template."""
        self.durable, self.volatile = bytearray(self.template), []
        self.exists, self.stale = bool(self.template), True
        self.settle()


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first of those that follow each other without a gap, and how many these are."""
    first = end = 0
    for number in sorted(numbers):
        if number != end:
            if end > first:
                yield first, end - first
            first = number
        end = number + 1
    if end > first:
        yield first, end - first


def blocks_of(change: Change) -> range:
    """The blocks of a volume that a write touches."""
    assert change.data is not None
    return range(change.offset // BLOCK, (change.offset + len(change.data) - 1) // BLOCK + 1)


class Medium:
    """All files of a store: the volumes, whose changes come from the engine's journal, and the catalog's, from SQLite's.

    Attributes:
        disks: the volumes, by path.
        logs: the catalog's files, by path.
        files: all of them.
        faults: of this engine, that somebody must hear of: the file, and what became of the operation.
        dark: the power has failed.
        struck: a fault was met, if only by a delay.
        operations: of all engines.
        logged: writes into the catalog's log.
        clock: of the catalog's files: as long as it stands still nobody has changed them.
        watch: is told of every operation of the engine, with the file and what was written.
        watches_all: or of writes alone.
    """

    def __init__(self, volumes: Iterable[Path], catalog: Path) -> None:
        self.disks = {str(path): Disk(path) for path in volumes}
        self.logs = {
            str(path): Log(path) for path in (catalog, catalog.with_name(catalog.name + "-wal"))
        }
        self.files: dict[str, Disk | Log] = {**self.disks, **self.logs}
        self._by_ino = {os.stat(path).st_ino: disk for path, disk in self.disks.items()}
        self._index = catalog.with_name(catalog.name + "-shm")
        self.catalog, self._database = catalog, str(catalog)
        self.journal = os.memfd_create("journal")
        self._drained: list[tuple[Carried, bytes]] = []
        self._latest: dict[tuple[int, int], bytes] = {}  # by inode and offset
        self.faults: list[tuple[str, Carried]] = []
        self.dark = self.struck = False
        self.operations = self.logged = self.clock = 0
        self.watch: Callable[[str, Carried, bytes], None] = _nobody
        self.watches_all = True

    def close(self) -> None:
        os.close(self.journal)

    def ino_of(self, path: str) -> int:
        return next(ino for ino, disk in self._by_ino.items() if disk.name == path)

    def put_disk(self, path: str) -> None:
        """Another file stands there, blank."""
        disk = self.disks[path]
        del self._by_ino[self.ino_of(path)]
        self._by_ino[os.stat(path).st_ino] = disk
        blank = dict.fromkeys(range(len(disk.template) // BLOCK), bytes(BLOCK))
        disk.blocks, disk.volatile, disk.stale = blank, [], set()
        disk.touched |= blank.keys()

    # ---- the volumes -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new engine, which counts from 0 again."""
        os.lseek(self.journal, 0, os.SEEK_SET)
        self._drained, self._latest = [], {}
        self.faults, self.dark, self.struck = [], False, False
        for disk in self.disks.values():
            for change in disk.volatile:
                change.done = -1  # whatever the new engine flushes, these had completed before

    def take(self) -> None:
        """Take over what the engine has carried out since."""
        self.drain()
        if not self._drained:
            return
        drained, self._drained = self._drained, []
        files, watch, watches_all = self._by_ino, self.watch, self.watches_all
        for carried, written in drained:
            _, _, ino, _, _, _, _, _, _, kind, action, _ = carried
            if kind == NONE:
                self.dark = True
                continue
            self.operations += 1
            if action:
                self.struck = True
            file = files.get(ino)
            if file is None:
                continue  # an open that did not get that far
            if watches_all or kind == WRITE:
                watch(file.name, carried, written)
            if action and action != DELAY:  # a delay that ended well nobody need hear of
                self.faults.append((file.name, carried))
            if kind in (WRITE, FLUSH):
                self._carried(file, carried, written)

    def drain(self) -> None:
        """Empty the journal, without taking over what stands in it. Of what is written again and again, while a target is tried, one copy is kept."""
        end = os.lseek(self.journal, 0, os.SEEK_CUR)
        if not end:
            return
        data = os.pread(self.journal, end, 0)
        os.lseek(self.journal, 0, os.SEEK_SET)
        if end > LONG:
            os.ftruncate(self.journal, 0)
        at = 0
        make, unpack, size = _carried_of, RECORD.unpack_from, RECORD.size
        latest, keep = self._latest, self._drained.append
        while at < end:
            carried = make(unpack(data, at))
            at += size
            written = b""
            if carried[7]:
                written = data[at : at + carried.data]
                at += carried.data
                place = carried.ino, carried.offset
                if latest.setdefault(place, written) == written:
                    written = latest[place]
                else:
                    latest[place] = written
            keep((carried, written))

    @staticmethod
    def _carried(file: Disk, carried: Carried, written: bytes) -> None:
        """A write or a flush."""
        if carried.kind == WRITE:
            if written:
                flying = carried.medium == IN_FLIGHT
                file.change(Change(carried.done, carried.offset, written, flying=flying))
        elif carried.medium == 0:
            file.flushed(carried.issued)
        else:
            file.failed(carried.issued)

    def unsynced(self, path: str, regions: Sequence[tuple[int, int]]) -> Change | None:
        """A write into one of these regions of a volume that no flush has covered."""
        for change in self.disks[path].volatile:
            end = change.offset + len(change.data or b"")
            for start, stop in regions:
                if change.offset < stop and start < end:
                    return change
        return None

    # ---- the catalog -----------------------------------------------------------------------------------

    def catalog_write(self, path: str, offset: int, data: bytes) -> None:
        self.clock = clock = self.clock + 1
        log = self.logs[path]
        log.exists = log.stale = True
        log.volatile.append(Change(clock, offset, data))
        self.logged += path != self._database

    def catalog_truncate(self, path: str, size: int) -> None:
        self.clock += 1
        self.logs[path].stale = True
        self.logs[path].volatile.append(Change(self.clock, size, None))

    def catalog_sync(self, path: str, *, good: bool) -> None:
        self.clock += 1
        if good:
            self.files[path].flushed(self.clock)
        else:
            self.files[path].failed(self.clock)

    def catalog_delete(self, path: str) -> None:
        log = self.logs[path]
        self.clock += 1
        log.durable, log.volatile, log.exists, log.stale = bytearray(), [], False, True

    # ---- the loss --------------------------------------------------------------------------------------

    def lose(self, rng: random.Random, mode: str) -> int:
        """The power has failed, and comes back. Returns how many changes were lost.

        Args:
            rng: says which.
            mode: ``none`` (a process was killed: only what was in flight may be missing), ``all``, ``prefix``, ``subset`` or ``torn``.
        """
        self.take()
        lost = 0
        for file in self.files.values():
            lost += file.lose(keeper(rng, mode, len(file.volatile)))
        self.settle()
        return lost

    def adopt(self) -> None:
        """What the files hold is durable, and what every run starts from."""
        for file in self.files.values():
            file.lose(lambda _: True)
        self.settle()
        for disk in self.disks.values():
            disk.template, disk.blocks, disk.touched = disk.path.read_bytes(), {}, set()
        for log in self.logs.values():
            log.template = bytes(log.durable)

    def settle(self) -> None:
        """Make the files what is durable."""
        self.clock += 1
        for file in self.files.values():
            file.settle()
        self._index.unlink(missing_ok=True)

    def reset(self) -> None:
        for file in self.files.values():
            file.reset()
        self._index.unlink(missing_ok=True)
        self.operations = self.logged = self.clock = 0
        self.watch = _nobody


def keeper(rng: random.Random, mode: str, count: int) -> Callable[[Change], Sequence[int] | bool]:
    """What of a file's volatile changes a loss leaves, by the words of `Medium.lose`."""
    left = rng.randint(0, count)

    def keep(change: Change) -> Sequence[int] | bool:
        nonlocal left
        left -= 1
        if mode == "none" and not change.flying:
            return True
        if mode in ("all", "prefix"):
            return mode == "prefix" and left >= 0
        if mode == "torn" and change.data and rng.random() < 0.7:
            count = -(-len(change.data) // SECTOR)
            return [sector for sector in range(count) if rng.random() < 0.5]
        return rng.random() < 0.5

    return keep


def _nobody(path: str, carried: Carried, written: bytes) -> None:
    """Nobody watches."""
