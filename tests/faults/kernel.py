"""Small doors to the kernel: mounts, loop devices, states of processes. No policy; every function is one request."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MNT_DETACH = 2
_BIND, _RECURSIVE, _PRIVATE = 1 << 12, 1 << 14, 1 << 18  # MS_…
_CLONE_NEWNS = 0x20000
LOOP_CLR_FD = 0x4C01
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str | Path, kind: str, options: str = "") -> None:
    """Mount. Raises OSError."""
    result = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(0), options.encode()
    )
    _check(result, str(target))


def unmount(target: str | Path, *, lazily: bool = False) -> None:
    """Unmount. Raises OSError, EBUSY among others; `lazily` never does for that reason."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH if lazily else 0), str(target))


def cover(target: str | Path, source: str | Path) -> None:
    """For this process alone, and until it ends: what lies at `source` is seen at `target`, too, whatever is mounted there."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    for what, where, flags in ((None, "/", _RECURSIVE | _PRIVATE), (source, target, _BIND)):
        name = os.fsencode(what) if what is not None else None
        result = _libc.mount(name, os.fsencode(where), None, ctypes.c_ulong(flags), None)
        _check(result, str(where))


def mounts() -> Iterator[tuple[str, str, str]]:
    """(device number "major:minor", mount point, source) of every mount of this process's name space."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ")
        fields = left.split()
        yield fields[2], fields[4].encode().decode("unicode_escape"), right.split()[1]


def device_of_mount(target: str | Path) -> str | None:
    """The "major:minor" of what is mounted here, found without a request to the file system (it may be frozen)."""
    found = [device for device, point, _ in mounts() if point == str(target)]
    return found[-1] if found else None


def loops_on(prefix: str) -> list[str]:
    """Loop devices whose backing file lies under this directory."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if entry.read_text().startswith(prefix.rstrip("/") + "/"):
                found.append(f"/dev/{entry.parts[3]}")
    return found


def detach_loop(device: str) -> None:
    """LOOP_CLR_FD: at once, or with the last close when somebody has it open. An unattached device is no error."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, LOOP_CLR_FD)
    except OSError as problem:
        if problem.errno != errno.ENXIO:
            raise
    finally:
        os.close(fd)


def unmount_everything_on(target: str) -> None:
    """Unmount `target`, the loop devices over its files and what is mounted from those. Never raises, never waits."""
    for device in loops_on(target):
        for point in [point for _, point, source in mounts() if source == device]:
            with contextlib.suppress(OSError):
                unmount(point, lazily=True)
        with contextlib.suppress(OSError):
            detach_loop(device)
    with contextlib.suppress(OSError):
        unmount(target, lazily=True)


def process_state(pid: int) -> str:
    """One letter of proc(5): R S D T Z …; "" when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def processor_seconds(pid: int) -> float:
    """User and system time that all threads of a process have used; to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(condition: Callable[[], bool], what: str, *, timeout: float = 5.0) -> None:
    """Look every few milliseconds for something that the kernel does not announce. Raises TimeoutError."""
    limit = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"not within {timeout} s: {what}")
        time.sleep(0.002)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
