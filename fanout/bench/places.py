"""Targets that a benchmark sets up and takes down: files, loop devices, and block devices that are there already.

Everything stands in one new directory, in memory or on disk, and goes with it, also after a failure. Loop devices are found free by the
kernel. Enter it on a `signals.Stack` for the same promise at Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.bench import machine
from fanout.bench.peers import btrfs_bytes, device_bytes
from fanout.bench.plan import Kind, Over
from fanout.demo import devices
from fanout.demo.signals import Stack
from fanout.errors import FanoutError
from fanout.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.bench.plan import Targets

MEMORY = Path("/dev/shm")  # noqa: S108 (every name in it is made by tempfile)


class PlaceError(FanoutError):
    """The targets cannot be set up here."""


@dataclass(frozen=True, slots=True)
class Place:
    """Targets that stand.

    Attributes:
        spec: what was asked for.
        paths: of the targets. Files are not there yet: the first write makes them.
        directory: for whatever else has to stand on the same medium; None for devices that were there.
    """

    spec: Targets
    paths: tuple[str, ...]
    directory: Path | None


def prefix() -> str:
    """How the names of all begin that this process makes: who finds one left knows whose it was."""
    return f"fanout-bench-{os.getpid()}-"


def why_not(spec: Targets) -> str | None:
    """Why these targets cannot be set up here; None when they can."""
    if spec.kind is Kind.LOOPS and (why := devices.why_no_devices()):
        return f"loop devices: {why}"
    if spec.over is Over.MEMORY and not os.access(MEMORY, os.W_OK):
        return f"{MEMORY} is not there to be written to"
    return None


@contextlib.contextmanager
def standing(
    spec: Targets, *, directory: Path | None = None, btrfs: bool = False
) -> Iterator[Place]:
    """Set up the targets of a scenario, and take them down.

    Args:
        spec: which.
        directory: where on disk, when the scenario does not say.
        btrfs: make loop devices large enough for btrfs to keep the same bytes.

    Raises:
        PlaceError: not enough space, or a device that is none or too small.
        DeviceError: a loop device cannot be made.
    """
    if spec.kind is Kind.DEVICES:
        for path in spec.paths:
            _check_device(path, spec.size_bytes)
        yield Place(spec, spec.paths, None)
        return
    size = btrfs_bytes(spec.size_bytes) if btrfs and spec.kind is Kind.LOOPS else spec.size_bytes
    base = MEMORY if spec.over is Over.MEMORY else spec.directory or directory
    with Stack() as stack:
        made = tempfile.TemporaryDirectory(prefix=prefix(), dir=base)
        place = Path(stack.enter_context(made))
        _check_space(place, size * spec.count)
        names = [place / f"target{number}" for number in range(spec.count)]
        if spec.kind is Kind.LOOPS:
            paths = [stack.enter_context(_loop(name, size, spec.sector_bytes)) for name in names]
        else:
            paths = [str(name) for name in names]
        yield Place(spec, tuple(paths), place)


def _loop(backing: Path, size: int, sector: int) -> contextlib.AbstractContextManager[str]:
    return devices.loop(backing, size_bytes=size, sector_bytes=sector)


def _check_space(directory: Path, needed: int) -> None:
    figures = os.statvfs(directory)
    free = figures.f_bavail * figures.f_frsize
    if directory.is_relative_to(MEMORY):  # which promises more than there is
        free = min(free, machine.available_memory())
    if free < needed + needed // 8:
        raise PlaceError(
            f"{directory.parent}: {format_size(free)} free, but the targets need {format_size(needed)}"
        )


def _check_device(path: str, needed: int) -> None:
    if not stat.S_ISBLK(os.stat(path).st_mode):
        raise PlaceError(f"{path}: is not a block device")
    if (size := device_bytes(path)) < needed:
        raise PlaceError(
            f"{path}: has {format_size(size)}, but the scenario wants {format_size(needed)}"
        )
