"""An engine over bytes in memory that remembers the order of writes and flushes, so that a test can cut the power anywhere.

It has the few calls of `fanout.engine.Engine` that a volume uses, with their meaning. What a power cut leaves of the writes since
the last flush is any subset of their 512-byte sectors, which is what disks promise: no more.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fanout.engine import Request
from fanout.errors import TargetError
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

SECTOR = 512


class PowerCut(Exception):
    """The machine is gone; nothing after this call happened."""


@dataclass
class Disk:
    """One device: what is durable, and what was written since the last flush."""

    data: bytearray
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    locked: bool = False
    fs_magic: int = 0xEF53
    granule: int = 512

    def now(self) -> bytearray:
        """What a reader sees: everything that was written."""
        found = bytearray(self.data)
        for offset, data in self.pending:
            found[offset : offset + len(data)] = data
        return found

    def after_power_cut(self, rng: random.Random) -> Disk:
        """A disk on which only some sectors of what was not flushed have arrived."""
        found = bytearray(self.data)
        keep = rng.choice([0.0, 0.3, 0.7, 1.0])
        for offset, data in self.pending:
            for at in range(0, len(data), SECTOR):
                if rng.random() < keep:
                    found[offset + at : offset + at + SECTOR] = data[at : at + SECTOR]
        return Disk(found, fs_magic=self.fs_magic, granule=self.granule)


class ImageTarget:
    def __init__(self, disk: Disk, path: str, *, read_only: bool) -> None:
        self.disk, self.path, self.read_only = disk, path, read_only
        self.granule, self.size, self.state = disk.granule, len(disk.data), "active"

    @property
    def geometry(self) -> Any:
        return SimpleNamespace(
            size=len(self.disk.data),
            allocated=0,
            granule=self.disk.granule,
            is_block=False,
            fs_magic=self.disk.fs_magic,
            dev=1,
            ino=2,
            state=self.state,
        )

    def close(self, *, timeout: float = 0.0) -> None:
        if self.state != "closed" and not self.read_only:
            self.disk.locked = False
        self.state = "closed"


class ImageEngine:
    """Args: disks by path; `cut`: the power is cut at that operation (a write, flush or dirsync; None: never)."""

    slot_size = 1 << 20

    def __init__(self, disks: dict[str, Disk], *, cut: int | None = None) -> None:
        self.disks, self.cut, self.operations = disks, cut, 0
        self.fail: set[Phase] = set()

    def open(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        read_only: bool = False,
        lock: bool = False,
        lock_wait: float = 0.0,
        follow_links: bool = True,
        size: int = 0,
        timeout: float = 0.0,
        on_slow: str = "wait",
    ) -> ImageTarget:
        assert on_slow == "wait", "an image has no peers"
        name = os.fspath(path)
        if create:
            assert name not in self.disks
            self.disks[name] = Disk(bytearray(size))
        disk = self.disks.get(name)
        if disk is None:
            raise _error(name, Phase.OPEN, errno.ENOENT)
        if lock and disk.locked:
            raise _error(name, Phase.OPEN, errno.EBUSY)
        disk.locked = disk.locked or lock
        return ImageTarget(disk, name, read_only=read_only)

    def _tick(self) -> None:
        if self.cut == self.operations:
            raise PowerCut
        self.operations += 1

    def run(self, requests: Sequence[Request], *, timeout: float | None = None) -> list[Outcome]:
        return [self._run(request) for request in requests]

    def _run(self, request: Request) -> Outcome:
        target: Any = request.target
        self._tick()
        if request.kind in self.fail:
            return _outcome(request.kind, errno.EIO)
        if request.kind is Phase.WRITE:
            data = bytes(request.data or b"")
            assert request.offset % target.granule == 0
            assert len(data) % target.granule == 0
            assert request.offset + len(data) <= len(target.disk.data)
            assert not target.read_only
            target.disk.pending.append((request.offset, data))
        elif request.kind is Phase.FLUSH:
            target.disk.data, target.disk.pending = target.disk.now(), []
        return Outcome(OutcomeCode.OK, request.kind)

    def _checked(self, target: Any, request: Request) -> None:
        outcome = self._run(request)
        if not outcome.ok:
            raise TargetError(target.path, outcome)

    def read(self, target: Any, offset: int, length: int) -> bytes:
        data = bytes(target.disk.now()[offset : offset + length])
        if len(data) < length:
            raise _error(target.path, Phase.READ, 0)
        return data

    def write(self, target: Any, offset: int, data: bytes) -> None:
        self._checked(target, Request(Phase.WRITE, target, offset, data=data))

    def flush(self, target: Any) -> None:
        self._checked(target, Request(Phase.FLUSH, target))


def _outcome(phase: Phase, number: int) -> Outcome:
    return Outcome(OutcomeCode.ERROR, phase, errno=number, cls=FaultClass.DEVICE)


def _error(path: str, phase: Phase, number: int) -> TargetError:
    return TargetError(path, _outcome(phase, number))
