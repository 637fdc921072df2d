"""What a power loss may take: the model behind `FaultFS.crash`.

The durability rule is the strict one of dm-log-writes: an fsync makes durable only what had *completed before the fsync was
issued*. A write that was in flight when the flush began may be lost although it was reported good and the flush too. So a
writer that does not drain before it flushes is caught. Three more rules follow disks and file systems at their worst:

    P1  a write is durable only through an fsync of its own file;
    P2  a name (created, renamed, unlinked) is durable only through an fsync of its directory, never through one of the file;
    P3  what a failed fsync covered stays volatile for ever, whatever later fsyncs answer;
    P4  names are lost as a suffix of their history, as in a journalling file system; data is lost in any order.

Method: every write keeps the bytes it replaced until it is durable. A crash walks the history from the newest to the oldest
change and puts the old bytes back wherever a change is lost; a range that a *newer surviving* change wrote is protected, for
that one reached the medium later. Sizes are then replayed forward over the survivors.

A second name of a file (hard link) is a name like any other. Not modelled: renames between directories or of directories, lost
attributes.
"""

from __future__ import annotations

import bisect
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Old bytes that are kept for one file. A file with more unsynced data than that cannot crash: the crash says so.
MAX_UNDO_BYTES = 2 << 30
MODES = ("all", "subset", "torn")
_END = 1 << 62
_PIECE = 1 << 20


@dataclass(slots=True)
class Change:
    """One change of a file's bytes or size.

    `before` holds the replaced bytes as (offset, bytes) pieces; what no piece covers was a hole or lay behind the end.
    `resize`: the change sets the size to `size_after` (truncate). `extends`: the file reaches at least to its end (write).
    """

    offset: int
    length: int
    size_before: int
    size_after: int
    before: list[tuple[int, bytes]]
    resize: bool = False
    extends: bool = False
    completed: bool = False
    durable: bool = False
    doomed: bool = False


@dataclass(slots=True)
class Loss:
    """What a crash took: bytes put back to their old state, changes lost wholly or partly, names lost."""

    bytes: int = 0
    changes: int = 0
    names: int = 0


class _Ranges:
    """A set of byte ranges, kept sorted and disjoint."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Put [start, end) into the set, joined with the ranges that it touches."""
        if start >= end:
            return
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def outside(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of [start, end) that are not in the set."""
        for index in range(bisect.bisect_right(self._ends, start), len(self._starts)):
            if self._starts[index] >= end:
                break
            if self._starts[index] > start:
                yield start, self._starts[index]
            start = max(start, self._ends[index])
        if start < end:
            yield start, end


class VolatileFile:
    """The history of one open file since its last fsync. Thread-safe; changes of one file happen one at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._mutex = threading.Lock()
        self._changes: list[Change] = []
        self._undo_bytes = 0
        self._overflowed = False

    # -- changes ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview, offset: int) -> Change:
        """Write all of `data`, remembering what it replaces. Not completed until `complete`."""
        with self._mutex:
            change = self._begin(offset, len(data), extends=True)
            view = memoryview(data)
            while view:
                done = os.pwrite(self._fd, view, offset)
                view, offset = view[done:], offset + done
            return change

    def truncate(self, length: int) -> Change:
        """Set the size."""
        with self._mutex:
            size = os.fstat(self._fd).st_size
            change = self._begin(min(size, length), abs(size - length), extends=False)
            change.resize, change.size_after = True, length
            os.ftruncate(self._fd, length)
            return change

    def reshape(
        self, offset: int, length: int, action: Callable[[int], None], *, extends: bool
    ) -> Change:
        """Do `action(fd)`, which may change the bytes of this range and extend the file to its end (fallocate)."""
        with self._mutex:
            change = self._begin(offset, length, extends=extends)
            action(self._fd)
            return change

    def complete(self, change: Change) -> None:
        """The change is about to be reported to the writer: from now on a flush covers it."""
        with self._mutex:
            change.completed = True

    def _begin(self, offset: int, length: int, *, extends: bool) -> Change:
        size = os.fstat(self._fd).st_size
        before = self._old_bytes(offset, min(offset + length, size))
        change = Change(offset, length, size, size, before, extends=extends)
        self._changes.append(
            change
        )  # also a resize to the same size: what made that size may be lost
        return change

    def _old_bytes(self, start: int, end: int) -> list[tuple[int, bytes]]:
        if start >= end or self._overflowed:
            return []
        if end - start <= _PIECE:  # the common case: one read, also of a hole
            pieces = [(start, os.pread(self._fd, end - start, start))]
        else:
            pieces = list(self._data_pieces(start, end))
        self._undo_bytes += sum(len(data) for _, data in pieces)
        if self._undo_bytes > MAX_UNDO_BYTES:
            self._overflowed = True
        return pieces

    def _data_pieces(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """What is not a hole: mkfs discards whole devices, which must not cost their size in memory."""
        while start < end:
            try:
                start = os.lseek(self._fd, start, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole follows
                return
            stop = min(os.lseek(self._fd, start, os.SEEK_HOLE), end)
            while start < stop:
                piece = os.pread(self._fd, min(_PIECE, stop - start), start)
                yield start, piece
                start += len(piece)

    # -- flush --------------------------------------------------------------------------------------------------------

    def issue_flush(self) -> list[Change]:
        """A flush begins: the changes that it will vouch for, by the strict rule."""
        with self._mutex:
            return [change for change in self._changes if change.completed and not change.doomed]

    def flushed(self, covered: list[Change]) -> None:
        """The flush succeeded."""
        with self._mutex:
            for change in covered:
                change.durable = not change.doomed
            self._forget_durable()

    def flush_failed(self, covered: list[Change]) -> None:
        """The flush failed: what it covered can never become durable any more (P3)."""
        with self._mutex:
            for change in covered:
                change.doomed = not change.durable

    def settle(self) -> None:
        """Everything so far is durable, doomed or not: a clean start for the next case."""
        with self._mutex:
            self._changes, self._undo_bytes, self._overflowed = [], 0, False

    def _forget_durable(self) -> None:
        """Old bytes of durable changes go; a durable change stays in the history while an older volatile one needs it."""
        for change in self._changes:
            if change.durable and change.before:
                self._undo_bytes -= sum(len(data) for _, data in change.before)
                change.before = []
        volatile = (index for index, change in enumerate(self._changes) if not change.durable)
        del self._changes[: next(volatile, len(self._changes))]
        if not self._changes:
            self._overflowed = False

    @property
    def volatile_changes(self) -> int:
        """Changes that a power loss may take."""
        with self._mutex:
            return sum(not change.durable for change in self._changes)

    # -- power loss ---------------------------------------------------------------------------------------------------

    def crash(self, rng: random.Random, mode: str, sector: int, loss: Loss) -> None:
        """Lose what is not durable, in place.

        Args:
            mode: "all": everything volatile is lost; "subset": each change by the toss of a coin; "torn": each sector.
        """
        with self._mutex:
            if self._overflowed:
                raise RuntimeError(
                    f"more than {MAX_UNDO_BYTES} bytes were unsynced: the old bytes are not known any more"
                )
            if not self._changes:
                return
            survivors = self._undo(rng, mode, sector, loss)
            os.ftruncate(self._fd, self._replay_size(survivors))
            self._changes, self._undo_bytes = [], 0

    def _undo(
        self, rng: random.Random, mode: str, sector: int, loss: Loss
    ) -> list[tuple[Change, int]]:
        """Put old bytes back, newest change first; returns (change, end of its surviving part), oldest first."""
        protected, survivors = _Ranges(), []
        for change in reversed(self._changes):
            lost = list(_lost_parts(change, rng, mode, sector))
            for start, end in lost:
                for low, high in protected.outside(start, end):
                    self._restore(change, low, high)
                    loss.bytes += high - low
            kept = _kept_parts(change, lost)
            for start, end in [(change.size_after, _END)] if change.resize and kept else kept:
                protected.add(
                    start, end
                )  # of a resize: what lay behind the new end is gone, whatever came before
            loss.changes += bool(lost)
            if kept:
                survivors.append((change, kept[-1][1]))
        return survivors[::-1]

    def _restore(self, change: Change, low: int, high: int) -> None:
        end = min(high, max(os.fstat(self._fd).st_size, change.size_before))
        if low < end:
            _write_zeros(self._fd, low, end)
        for offset, data in change.before:
            start, stop = max(low, offset), min(high, offset + len(data))
            if start < stop:
                os.pwrite(self._fd, memoryview(data)[start - offset : stop - offset], start)

    def _replay_size(self, survivors: list[tuple[Change, int]]) -> int:
        size = self._changes[0].size_before
        for change, end in survivors:
            if change.resize:
                size = change.size_after
            elif (
                change.extends
            ):  # even one that did not extend when it happened: what did so before it may be lost
                size = max(size, end)
        return size


def _lost_parts(
    change: Change, rng: random.Random, mode: str, sector: int
) -> Iterator[tuple[int, int]]:
    """The parts of a change that the power loss takes, in order; a resize is lost or kept as a whole, also an empty one."""
    start, end = change.offset, change.offset + change.length
    if change.durable:
        return
    if mode != "torn" or change.resize:
        if mode == "all" or rng.random() < 0.5:
            yield start, end
        return
    while start < end:
        stop = min(end, (start // sector + 1) * sector)
        if rng.random() < 0.5:
            yield start, stop
        start = stop


def _kept_parts(change: Change, lost: list[tuple[int, int]]) -> list[tuple[int, int]]:
    if not lost:
        return [(change.offset, change.offset + change.length)]
    kept, start = [], change.offset
    for low, high in [*lost, (change.offset + change.length, _END)]:
        if start < low:
            kept.append((start, low))
        start = high
    return kept


def _write_zeros(fd: int, start: int, end: int) -> None:
    while start < end:
        start += os.pwrite(fd, bytes(min(_PIECE, end - start)), start)


@dataclass(slots=True)
class _NameChange:
    directory: str
    undo: Callable[[], None]
    grave: Path | None = None
    durable: bool = False


@dataclass(slots=True)
class VolatileNames:
    """The history of names in a tree since their directories' last fsync. The caller serialises all calls.

    An unlinked or replaced file moves into the graveyard, from where a crash can bring it back.
    """

    tree: Path
    graveyard: Path
    _changes: list[_NameChange] = field(default_factory=list)
    _buried: int = 0

    def created(self, path: str) -> None:
        """A file was created."""
        self._note(path, lambda: self._real(path).unlink(missing_ok=True))

    def made(self, path: str) -> None:
        """A directory was made."""
        self._note(path, lambda: _remove_tree(self._real(path)))

    def removed(self, path: str) -> None:
        """An empty directory was removed."""
        self._note(path, lambda: self._real(path).mkdir())

    def unlink(self, path: str) -> None:
        """Remove a file's name."""
        grave = self._bury(path)
        self._note(path, lambda: os.rename(grave, self._real(path)), grave)

    def rename(self, old: str, new: str) -> None:
        """Rename a file inside its directory, replacing what has the new name."""
        grave = self._bury(new) if self._real(new).exists() else None
        os.rename(self._real(old), self._real(new))

        def undo() -> None:
            os.rename(self._real(new), self._real(old))
            if grave is not None:
                os.rename(grave, self._real(new))

        self._note(new, undo, grave)

    def issue_flush(self, directory: str) -> list[_NameChange]:
        """An fsync of a directory begins: the changes that it will vouch for."""
        return [change for change in self._changes if change.directory == directory]

    def flushed(self, covered: list[_NameChange]) -> None:
        """The fsync of the directory succeeded."""
        for change in covered:
            change.durable = True
            if change.grave is not None:
                change.grave.unlink(missing_ok=True)
        self._changes = [change for change in self._changes if not change.durable]

    def settle(self) -> None:
        """Everything so far is durable."""
        self.flushed(list(self._changes))

    def crash(self, rng: random.Random, mode: str, loss: Loss) -> None:
        """Lose the names that are not durable: all of them, or a random suffix of each directory's history (P4)."""
        keep = {}
        for directory in {change.directory: None for change in self._changes}:
            total = sum(change.directory == directory for change in self._changes)
            keep[directory] = 0 if mode == "all" else rng.randint(0, total)
        lost = []
        for change in self._changes:
            keep[change.directory] -= 1
            if keep[change.directory] < 0:
                lost.append(change)
        for change in reversed(lost):
            change.undo()
        loss.names += len(lost)
        self._changes = []

    def _real(self, path: str) -> Path:
        return self.tree / path.lstrip("/")

    def _bury(self, path: str) -> Path:
        self._buried += 1
        grave = self.graveyard / str(self._buried)
        os.rename(self._real(path), grave)
        return grave

    def _note(self, path: str, undo: Callable[[], None], grave: Path | None = None) -> None:
        self._changes.append(_NameChange(os.path.dirname(path), undo, grave))


def _remove_tree(directory: Path) -> None:
    """A lost directory takes with it what is still in it: names inside that were synced hang on nothing."""
    for root, directories, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(os.path.join(root, name))
        for name in directories:
            os.rmdir(os.path.join(root, name))
    if directory.exists():
        directory.rmdir()
