"""Peers that need more than the bare targets: the C driver of the same core, btrfs over the same devices, rclone.

Each says with `missing` what this machine lacks for it, and with `unfit` which work it cannot do. None leaves anything behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.bench.contenders import BenchmarkError, one_stream
from fanout.bench.measure import Meter, Sample
from fanout.bench.work import CLIENT_BYTES, MIB
from fanout.demo import devices, signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.bench.work import Work
    from fanout.engine import Engine

DRIVER = Path(__file__).resolve().parents[2] / "csrc" / "build" / "fo_drive"
# Copies of each block that btrfs can be told to keep, each on another device.
RAID1 = {2: "raid1", 3: "raid1c3", 4: "raid1c4"}
RCLONE_NAME = "fanout-bench"


class Driver:
    """The C driver of the same core: what the engine does when Python is not there.

    A process of its own for each run, as large a source as this process's, and timed by its own clock from opening the stream until
    all is durable: its start-up does not count.

    Args:
        engine: fanout's: the driver's has the same slots.
        depth: writes in flight on a target; 0: the default.
    """

    name = "driver"
    family = "driver"
    title = "C driver of the same core"

    def __init__(self, engine: Engine, *, depth: int = 0) -> None:
        self._info, self._depth = engine.info, depth

    def missing(self) -> str | None:
        """It is built apart, in a checkout."""
        return None if DRIVER.exists() else "the C driver is not built (make -C csrc)"

    def unfit(self, work: Work) -> str | None:
        """It has no threads."""
        return one_stream(work)

    def run(self, work: Work) -> Sample:
        """Run it and take time and processor time from its report."""
        info = self._info
        settings = {
            "slot": info.slot_size,
            "slots": info.slot_count,
            "chunk": work.chunk_bytes,
            "bytes": work.size_bytes,
            "source": max(CLIENT_BYTES, work.chunk_bytes),
            "span": work.size_bytes,  # with a sum for each slot, as fanout makes it
            "depth": self._depth,
            "backend": info.backend,
        }
        command = [str(DRIVER)]
        for key, value in settings.items():
            command += [f"--{key}", str(value)]
        with Meter() as meter:
            said = subprocess.run(
                [*command, *work.targets], capture_output=True, text=True, check=False
            )
        if said.returncode:
            raise BenchmarkError(f"{self.name}: {said.stderr.strip() or said.stdout.strip()}")
        found = json.loads(said.stdout)
        return meter.sample(
            work.size_bytes,
            len(work.targets),
            seconds=found["seconds"],
            cpu_seconds=found["cpu_seconds"],
        )


class Btrfs:
    """btrfs that keeps a copy of every block on each of the same devices (raid1c3 for three), one file, written and flushed.

    The file system is made anew and mounted for each run, outside the clock. It sums its blocks (crc32c), and writes through the page
    cache or direct. Its processor time is spent by kernel threads, so compare the machine's.

    Args:
        direct: with O_DIRECT.
    """

    family = "btrfs"

    def __init__(self, *, direct: bool) -> None:
        self._direct = direct
        how = "direct" if direct else "buffered"
        self.name = f"btrfs_{how}"
        self.title = f"btrfs raid1, {how}"

    def missing(self) -> str | None:
        """Root, tools and a kernel that knows it."""
        if os.geteuid() != 0:
            return "btrfs needs root to be mounted"
        if shutil.which("mkfs.btrfs") is None:
            return "mkfs.btrfs is not installed (Debian: apt-get install btrfs-progs)"
        known = Path("/proc/filesystems").read_text(encoding="ascii").split()
        return None if "btrfs" in known else "this kernel has no btrfs"

    def unfit(self, work: Work) -> str | None:
        """As many devices as it can keep copies, each with room for its own structures."""
        if not work.block_devices:
            return "it needs block devices"
        if len(work.targets) not in RAID1:
            return f"it keeps {min(RAID1)} to {max(RAID1)} copies"
        if min(map(device_bytes, work.targets)) < btrfs_bytes(work.size_bytes):
            return "the devices have no room for its structures"
        return one_stream(work)

    def run(self, work: Work) -> Sample:
        """Write one file from the client's memory, chunk by chunk, and flush it."""
        flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | (os.O_DIRECT if self._direct else 0)
        with signals.undisturbed() as stack:
            mount = stack.enter_context(_btrfs(work.targets))
            fd = os.open(mount / "file", flags, 0o600)
            try:
                with Meter() as meter:
                    for chunk in work.chunks():
                        left = chunk
                        while left:
                            left = left[os.write(fd, left) :]
                    os.fsync(fd)
            except OSError as error:
                raise BenchmarkError(f"{self.name}: {error}") from error
            finally:
                os.close(fd)
        return meter.sample(work.size_bytes, len(work.targets))


@contextlib.contextmanager
def _btrfs(targets: tuple[str, ...]) -> Iterator[Path]:
    profile = RAID1[len(targets)]
    # Nothing is discarded: that would give back the memory under the devices, and every run would have to find it anew.
    devices.run("mkfs.btrfs", "-q", "-f", "-K", "-d", profile, "-m", profile, *targets)
    with tempfile.TemporaryDirectory(prefix="fanout-btrfs-") as made:
        others = [f"device={path}" for path in targets[1:]]
        devices.run("mount", "-t", "btrfs", "-o", ",".join(["noatime", *others]), targets[0], made)
        try:
            yield Path(made)
        finally:
            devices.patiently(lambda: devices.run("umount", made))


def btrfs_bytes(size_bytes: int) -> int:
    """How large each device must be, so that btrfs can keep this many bytes: chunks of metadata take their share."""
    return size_bytes + size_bytes // 4 + 192 * MIB


def device_bytes(path: str) -> int:
    """Size of a block device."""
    with open(path, "rb") as device:
        return device.seek(0, os.SEEK_END)


class RcloneUnion:
    """``rclone rcat`` to a union of directories with ``create_policy=all``.

    Each target's directory gets a new file in each run, since rclone writes none in place. It flushes nothing: the flush is added to its
    time. Start-up counts.
    """

    name = "rclone"
    family = "rclone"
    title = "rclone union, create_policy=all"

    def missing(self) -> str | None:
        """It is an optional package."""
        return None if shutil.which("rclone") else "rclone is not installed (Debian: rclone)"

    def unfit(self, work: Work) -> str | None:
        """It knows directories, and takes all that stands in the client's memory."""
        if work.block_devices:
            return "it needs files"
        if os.fstat(work.memory_fd).st_size != work.size_bytes:
            return "it takes the whole of the client's memory"
        if any(re.search(r"[\s'\",:=]", path) for path in work.targets):
            return "it cannot be given these paths"
        return one_stream(work)

    def run(self, work: Work) -> Sample:
        """Pipe the client's memory in, flush what came out."""
        os.lseek(work.memory_fd, 0, os.SEEK_SET)
        with contextlib.ExitStack() as stack:
            made = []
            for path in work.targets:
                place = Path(f"{path}.rclone")
                place.mkdir()
                stack.callback(shutil.rmtree, place)
                made.append(place)
            upstreams = " ".join(map(str, made))
            union = f":union,upstreams='{upstreams}',create_policy=all:{RCLONE_NAME}"
            with Meter() as meter:
                said = subprocess.run(
                    ["rclone", "--config=", "rcat", union],
                    stdin=work.memory_fd,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if said.returncode:
                    raise BenchmarkError(f"{self.name}: {said.stderr.strip()}")
                for place in made:
                    _flush(place / RCLONE_NAME, work.size_bytes)
        return meter.sample(work.size_bytes, len(work.targets))


def _flush(path: Path, size_bytes: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size != size_bytes:
            raise BenchmarkError(f"rclone wrote {os.fstat(fd).st_size} bytes of {size_bytes}")
        os.fdatasync(fd)
    finally:
        os.close(fd)
