"""Makes one block device slow for this process: a control group with a limit on what it writes there (root, cgroup v1 or v2).

Direct writes only: with version 1 the page cache is written back by the kernel, outside of every group.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.demo.devices import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

V1, V2 = Path("/sys/fs/cgroup/blkio"), Path("/sys/fs/cgroup")
_EMPTY_SECONDS = 5.0


def why_not() -> str | None:
    """Why no device can be slowed down here; None when it can."""
    if os.geteuid() != 0:
        return "slowing a device down needs root"
    return None if _version() else "this kernel or container cannot limit the writes to a device"


def _version() -> int:
    if os.access(V1 / "blkio.throttle.write_bps_device", os.W_OK):
        return 1
    with contextlib.suppress(OSError):
        if "io" in (V2 / "cgroup.controllers").read_text(encoding="ascii").split():
            return 2
    return 0


@dataclass(frozen=True, slots=True)
class Throttle:
    """A control group that this process is in. Without a limit nothing is slow."""

    group: Path
    version: int

    def limit(self, device: str, bytes_per_second: int | None) -> None:
        """Let this process write to a block device at most this fast; None: as fast as it goes."""
        number = os.stat(device).st_rdev
        name = f"{os.major(number)}:{os.minor(number)}"
        if self.version == 1:
            place = self.group / "blkio.throttle.write_bps_device"
            place.write_text(f"{name} {bytes_per_second or 0}\n", encoding="ascii")
        else:
            most = "max" if bytes_per_second is None else str(bytes_per_second)
            (self.group / "io.max").write_text(f"{name} wbps={most}\n", encoding="ascii")


@contextlib.contextmanager
def throttle() -> Iterator[Throttle]:
    """Put this process into a group of its own; afterwards it is where it was.

    Raises:
        DeviceError: no such group can be made.
    """
    version = _version()
    controller = ":blkio:" if version == 1 else "::"
    before = _own(controller)
    base = V1 if version == 1 else V2
    home = base / before.lstrip("/")
    try:
        if version == 2:
            (base / "cgroup.subtree_control").write_text("+io", encoding="ascii")
        group = Path(tempfile.mkdtemp(prefix=f"fanout-bench-{os.getpid()}-", dir=base))
    except OSError as error:
        raise DeviceError(f"{base}: {error}") from error
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        yield Throttle(group, version)
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        _remove(group)


def _own(controller: str) -> str:
    """The group of this process, as /proc says."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        if controller in line:
            return line.split(":", 2)[2]
    return "/"


def _remove(group: Path) -> None:
    """A group stays busy until the kernel has noticed that its members have left."""
    deadline = time.monotonic() + _EMPTY_SECONDS
    while True:
        try:
            return group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise DeviceError(f"{group}: cannot be removed: {error}") from error
            time.sleep(0.01)
