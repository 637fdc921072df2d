"""Places where real errors come from, and their end.

Every helper is a context manager that leaves nothing behind: loop and zram devices are found free
by the kernel (never a fixed number: others may use them), and are given back when the block ends,
also after an exception. Against Ctrl-C while one is entered, enter it on a `signals.Stack`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.errors import FanoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ZRAM_CONTROL = Path("/sys/class/zram-control")
_BUSY_SECONDS = 5.0


class DeviceError(FanoutError):
    """A device could not be made or given back."""


def run(*command: str) -> str:
    """Run a system tool; its trimmed output, or `DeviceError` with what it complained about."""
    try:
        # In a session of its own: Ctrl-C at a terminal goes to all processes of a group.
        said = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"{command[0]}: {error}") from error
    if said.returncode:
        complaint = said.stderr.strip() or f"exit code {said.returncode}"
        raise DeviceError(f"{' '.join(command)}: {complaint}")
    return said.stdout.strip()


# ---- loop devices -----------------------------------------------------------------------------


@contextlib.contextmanager
def loop(backing: Path, *, size_bytes: int, sector_bytes: int = 512) -> Iterator[str]:
    """A loop device over a new sparse file, with direct I/O where the file system can.

    Args:
        backing: the file to make.
        size_bytes: of the device.
        sector_bytes: logical sector size, 512 or 4096.
    """
    with open(backing, "xb") as file:
        file.truncate(size_bytes)
    command = ["losetup", "-f", "--show", "--direct-io=on", "-b", str(sector_bytes), str(backing)]
    device = run(*command)
    try:
        yield device
    finally:
        patiently(lambda: run("losetup", "-d", device))
        backing.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class ThinLoop:
    """A loop device whose backing file lies on a file system of its own, smaller than the device.

    Attributes:
        device: path of the loop device.
        mount: where the file system is mounted.
    """

    device: str
    mount: Path

    def resize(self, size_bytes: int) -> None:
        """Give the file system this much room: too little makes the device fail with ENOSPC."""
        run("mount", "-o", f"remount,size={size_bytes}", str(self.mount))

    def used(self) -> int:
        """Bytes of the file system in use."""
        figures = os.statvfs(self.mount)
        return (figures.f_blocks - figures.f_bfree) * figures.f_frsize


@contextlib.contextmanager
def thin_loop(mount: Path, *, size_bytes: int) -> Iterator[ThinLoop]:
    """A loop device over a file in a small tmpfs: a thin pool that can run dry (root).

    Args:
        mount: directory to make and to mount on.
        size_bytes: of the device; the file system begins with room for all of it.
    """
    mount.mkdir()
    try:
        options = f"size={size_bytes + (4 << 20)},mode=700"
        run("mount", "-t", "tmpfs", "-o", options, "fanout-demo", str(mount))
        try:
            with loop(mount / "device", size_bytes=size_bytes) as device:
                yield ThinLoop(device, mount)
        finally:
            patiently(lambda: run("umount", str(mount)))
    finally:
        mount.rmdir()


# ---- zram -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Zram:
    """A compressed disk in memory. `sysfs` is its directory under /sys/block."""

    device: str
    sysfs: Path

    def limit(self, memory_bytes: int) -> None:
        """Memory it may take; 0: no limit. A write beyond it fails with EIO."""
        (self.sysfs / "mem_limit").write_text(f"{memory_bytes}\n", encoding="ascii")

    def used(self) -> int:
        """Bytes of memory it takes now."""
        return int((self.sysfs / "mm_stat").read_text(encoding="ascii").split()[2])


@contextlib.contextmanager
def zram(*, size_bytes: int) -> Iterator[Zram]:
    """A new zram device (root)."""
    try:
        number = int((ZRAM_CONTROL / "hot_add").read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise DeviceError(f"{ZRAM_CONTROL}/hot_add: {error}") from error
    sysfs = Path(f"/sys/block/zram{number}")
    try:
        (sysfs / "disksize").write_text(f"{size_bytes}\n", encoding="ascii")
        device = f"/dev/zram{number}"
        _wait_for(device)
        yield Zram(device, sysfs)
    finally:
        # A reset is refused while anything, udev included, still holds the device open.
        patiently(lambda: (sysfs / "reset").write_text("1\n", encoding="ascii"))
        patiently(lambda: (ZRAM_CONTROL / "hot_remove").write_text(f"{number}\n"))


def _wait_for(device: str) -> None:
    deadline = time.monotonic() + _BUSY_SECONDS
    while not Path(device).exists():
        if time.monotonic() > deadline:
            raise DeviceError(f"{device} has not appeared")
        time.sleep(0.01)


# ---- limits of this process -------------------------------------------------------------------


def file_size_limit(limit_bytes: int | None) -> None:
    """Set (None: lift) the soft limit of this process on how long a file may become.

    A write beyond it fails with EFBIG, also a write into space that was allocated before.
    Python ignores the signal that goes with it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    soft = hard if limit_bytes is None else limit_bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---- what is possible here --------------------------------------------------------------------


def why_no_devices() -> str | None:
    """Why loop devices cannot be used here; None when they can."""
    if os.geteuid() != 0:
        return "not root"
    for tool in ("losetup", "mount", "umount"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if not Path("/dev/loop-control").exists():
        return "this kernel or container has no loop devices"
    try:
        run("losetup", "-f")
    except DeviceError as error:
        return str(error)
    return None


def why_no_zram() -> str | None:
    """Why zram cannot be used here; None when it can."""
    if os.geteuid() != 0:
        return "not root"
    if not os.access(ZRAM_CONTROL / "hot_add", os.R_OK):
        return "this kernel or container has no zram"
    return None


def patiently(action: Callable[[], object]) -> None:
    """Do it again while it is busy, for a few seconds; then say so."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            action()
        except (OSError, DeviceError) as error:
            busy = getattr(error, "errno", None) == errno.EBUSY or "busy" in str(error)
            if not busy or time.monotonic() > deadline:
                raise DeviceError(f"cannot be given back: {error}") from error
            time.sleep(0.05)
        else:
            return
