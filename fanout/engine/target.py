"""One open file or device."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from fanout.engine.status import (
    STATUSES,
    fail,
    nanoseconds,
    outcome_of,
    whole,
)
from fanout.engine.values import Geometry
from fanout.errors import InterfaceError

if TYPE_CHECKING:
    from fanout import _core
    from fanout.engine.engine import Engine
    from fanout.types import Outcome

ON_SLOW = ("wait", "eject")
_TARGET_STATES = ("none", "opening", "active", "failed", "detached", "closing")


def is_absent_device(path: str | bytes) -> bool:
    """Whether a path names a device that is not there.

    A file made in its place would lie in memory, where ``/dev`` is, and be gone with the next start of the machine. What is mounted below
    ``/dev`` is left alone, and not even looked at: it may hang.
    """
    name = os.path.abspath(os.fsdecode(path))
    if not name.startswith("/dev/"):
        return False
    with open("/proc/self/mounts", "rb") as file:
        mounts = [os.fsdecode(line.split()[1]) for line in file]
    over = [place for place in mounts if name.startswith(f"{place.rstrip('/')}/")]
    return max(over, key=len, default="") == "/dev" and not os.path.lexists(name)


class Target:
    """An open file or device; made by `Engine.open`. Hashable by identity. Keeps its engine alive.

    Close or finish it. One that is forgotten closes itself, without a flush and without a wait.

    Attributes:
        engine: the engine that opened it.
        id: the number that events carry; used again after the target is closed.
        path: as it was given.
        granule: offsets and lengths of writes are multiples of it, in bytes.
        size: bytes of the file or device when it was opened.
        direct: whether writes bypass the page cache.
        faults: transactions and repairs that failed because of it, which whoever chooses among targets may want to know.
    """

    def __init__(self, engine: Engine, core: _core.Target, path: str) -> None:
        self.engine, self.id, self.path, self._core = engine, core.number, path, core
        self.faults = 0
        geometry = self.geometry
        self.granule, self.size, self.direct = geometry.granule, geometry.size, geometry.direct

    def __repr__(self) -> str:
        return f"<fanout.Target {self.id} {self.path!r}{'' if self._core.open else ' closed'}>"

    @property
    def geometry(self) -> Geometry:
        """A fresh snapshot.

        Raises:
            InterfaceError: closed.
        """
        found = self._core.geometry()
        if isinstance(found, int):
            fail(found, self.path)
        values: dict[str, Any] = dict(found)
        for flag in ("direct", "is_block", "created", "slow_path"):
            values[flag] = bool(values[flag])
        values["state"] = _TARGET_STATES[values["state"]]
        values["on_slow"] = ON_SLOW[values["on_slow"]]
        return Geometry(**values)

    @property
    def state(self) -> str:
        """``active``, ``failed``, ``detached`` …; ``closed`` after closing."""
        if not self._core.open or self.engine.closed:
            return "closed"
        found = self._core.state()
        if found < 0:
            fail(found, self.path)
        return _TARGET_STATES[found]

    def finish(self, length: int | None = None, *, timeout: float | None = 60.0) -> Outcome:
        """End a bare file in the safe order: drain, truncate to `length`, flush, parent directory if it is new or `named`, close.

        Args:
            length: logical length in bytes of a file; None: as it is. Ignored for devices.
            timeout: seconds for the whole of it.

        Returns:
            Ok, or the first step that failed. The target is closed either way; where time ran out, after its last operation.

        Raises:
            InterfaceError: closed, a stream still uses it, or another thread is finishing or closing it.
            ValueError: `length` is negative or too large. It stays open.
        """
        size = -1 if length is None else whole(length, "length")
        status, why = self._core.finish(size, nanoseconds(timeout))
        if why is None or (status < 0 and not why[0]):
            fail(status, self.path)
        return outcome_of(why)

    def close(self, *, timeout: float = 5.0) -> None:
        """Close without any flush; idempotent.

        Waits at most `timeout` seconds for what is in flight; a hung target is forgotten and ends in the kernel without us. What
        the kernel says to the closing itself is an event: the descriptor is gone whatever it says, and nothing that was
        durable depends on it. In a forked child there is nothing to close.

        Raises:
            InterfaceError: a stream still uses it, or another thread is finishing or closing it.
        """
        if not self._core.open or self.engine.closed:
            return
        status = self._core.close(nanoseconds(timeout))
        if -status in STATUSES and status not in (-errno.EOWNERDEAD, -errno.EBADF):
            fail(status, self.path)

    def _live_id(self) -> int:
        if not self._core.open:
            raise InterfaceError(f"{self.path}: is closed")
        return self.id
