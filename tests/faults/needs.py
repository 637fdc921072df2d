"""What the machine can do: `require(...)` skips a test with the reason, and the summary of the run counts the reasons.

A tier that cannot run must say so. With FANOUT_FAULTS=required in the environment a lacking need is a failure, so that a machine
that is meant to run everything never turns green without it.
"""

from __future__ import annotations

import ctypes.util
import functools
import importlib.util
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

MISSING: Counter[str] = Counter()
"""How many tests each reason has kept from running, for the summary."""


def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


def _fuse() -> str:
    if _root():
        return "the fault file system needs root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no access to /dev/fuse"
    if ctypes.util.find_library("fuse3") is None and not list(
        Path("/").glob("lib/*/libfuse3.so.3*")
    ):
        return "libfuse3 is not installed (Debian package fuse3)"
    if importlib.util.find_spec("mfusepy") is None:
        return "mfusepy is not installed (Python package, group test)"
    return ""


def _loop() -> str:
    if _root():
        return "loop devices need root"
    if not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        return "no access to /dev/loop-control"
    return "" if shutil.which("losetup") else "losetup is not installed (Debian package mount)"


def _nbd() -> str:
    if _loop():
        return _loop()
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no access to /dev/fuse"
    for name, package in (("nbdkit", "nbdkit"), ("nbdfuse", "libnbd-bin")):
        if not shutil.which(name):
            return f"{name} is not installed (Debian package {package})"
    return ""


def _zram() -> str:
    if _root():
        return "zram needs root"
    return (
        ""
        if Path("/sys/class/zram-control/hot_add").exists()
        else "the kernel has no zram (module zram)"
    )


def _ext4() -> str:
    if _root():
        return "mounting needs root"
    return (
        "" if shutil.which("mkfs.ext4") else "mkfs.ext4 is not installed (Debian package e2fsprogs)"
    )


def _strace() -> str:
    if not shutil.which("strace"):
        return "strace is not installed (Debian package strace)"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return (
        "ptrace is forbidden (yama)" if scope.exists() and scope.read_text().strip() == "3" else ""
    )


def _ptrace() -> str:
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    level = int(scope.read_text()) if scope.exists() else 0
    if level == 3 or (level > 0 and os.geteuid() != 0):
        return "ptrace is forbidden (yama)"
    return _seccomp()


def _seccomp() -> str:
    if os.uname().machine not in ("x86_64", "aarch64"):
        return f"no system call numbers for {os.uname().machine}"
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    return (
        ""
        if actions.exists() and "errno" in actions.read_text()
        else "the kernel has no seccomp filters"
    )


def _throttle() -> str:
    if _root():
        return "throttling needs root"
    if throttle_version() == 0:
        return "no blkio controller (cgroup v1) and no io controller (cgroup v2)"
    return ""


def _engine() -> str:
    if (
        importlib.util.find_spec("fanout") is None
        or importlib.util.find_spec("fanout._core") is None
    ):
        return "the extension is not built (make build)"
    return ""


def _xxhash() -> str:
    return (
        ""
        if importlib.util.find_spec("xxhash")
        else "xxhash is not installed (Python package, group test)"
    )


_CHECKS: dict[str, Callable[[], str]] = {
    "root": _root,
    "fuse": _fuse,
    "loop": _loop,
    "nbd": _nbd,
    "zram": _zram,
    "ext4": _ext4,
    "strace": _strace,
    "ptrace": _ptrace,
    "seccomp": _seccomp,
    "throttle": _throttle,
    "engine": _engine,
    "xxhash": _xxhash,
}


def throttle_version() -> int:
    """1: cgroup v1 blkio throttle, 2: cgroup v2 io.max, 0: neither."""
    if Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device").exists():
        return 1
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    return 2 if controllers.exists() and "io" in controllers.read_text().split() else 0


@functools.cache
def why_not(need: str) -> str:
    """Why this machine lacks the need; "" when it does not."""
    return _CHECKS[need]()


def require(*needs: str) -> None:
    """Skip the running test, or the module being collected, unless the machine has all of these.

    Args:
        needs: root, fuse, loop, nbd, zram, ext4, strace, ptrace, seccomp, throttle, engine, xxhash.
    """
    for need in needs:
        reason = why_not(need)
        if not reason:
            continue
        MISSING[reason] += 1
        if os.environ.get("FANOUT_FAULTS") == "required":
            pytest.fail(f"FANOUT_FAULTS=required, but {reason}", pytrace=False)
        pytest.skip(reason, allow_module_level=True)
