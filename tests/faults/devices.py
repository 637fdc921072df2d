"""Real devices that fail: loop devices, full and shrunken disks, zram, read-only flips, power cuts, throttles.

Everything is a context manager that undoes itself in every case and skips the test where the machine lacks something. What each
of them does to a writer (kernel 6.18):

| context | switch | the writer sees |
| --- | --- | --- |
| `fault_disk` | rules of the FaultFS under it | any errno of a block device, held and frozen I/O, lost and torn sectors |
| `full_disk` | the file system under the loop device is full | ENOSPC in the middle of the device, not at its end |
| `LoopDevice.shrink` | the device ends earlier | ENOSPC behind the new end; a crossing write is short |
| `LoopDevice.hollow` | the file under it was cut short | EIO for reads behind the cut; writes grow it again |
| `LoopDevice.set_read_only` | `blockdev --setro` | EPERM, also on open descriptors |
| `zram` | `fail` / `heal` | EIO for incompressible data, until healed |
| `Ext4.frozen` | the freeze ioctl | writes hang, flushes too, until it is thawed |
| `Ext4.power_cut` | the shutdown ioctl | EIO from then on; after `remount` what was not synced is gone |
| `throttled` | cgroup limit | slow writes, no errors |
| `file_size_limit` | RLIMIT_FSIZE of this process | a real short write, then EFBIG; needs no privilege |

ENXIO, EROFS, EDQUOT and EFBIG injected under a loop device arrive as EIO: the block layer has no words for them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import kernel
from .faultfs import FaultFS
from .needs import require, throttle_version

if TYPE_CHECKING:
    from collections.abc import Iterator

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_SHUTDOWN_NOLOGFLUSH = 2
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_BLKROSET = 0x125D
_PAGE = os.sysconf("SC_PAGESIZE")


# ---- loop devices --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class LoopDevice:
    """An attached loop device. Attributes: path of the device, path of the file under it."""

    path: str
    backing: Path

    @property
    def size(self) -> int:
        """Bytes, as the device says."""
        return int((Path("/sys/block") / Path(self.path).name / "size").read_text()) * 512

    @property
    def number(self) -> str:
        """The device number as "major:minor"."""
        return (Path("/sys/block") / Path(self.path).name / "dev").read_text().strip()

    def shrink(self, size: int) -> None:
        """Cut the file to `size` bytes and tell the device: it ends there now."""
        os.truncate(self.backing, size)
        _run("losetup", "-c", self.path)

    def hollow(self, size: int) -> None:
        """Cut the file to `size` bytes and do not tell the device: reads behind it fail."""
        os.truncate(self.backing, size)

    def set_read_only(self, *, read_only: bool = True) -> None:
        """Switch the device to read-only or back, for descriptors that are open, too."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _BLKROSET, struct.pack("i", read_only))
        finally:
            os.close(fd)

    def reset(self, *, merge: bool = False) -> None:
        """Set what outlives a detach, for whoever had the device before us: read-only off, merging of requests as asked."""
        self.set_read_only(read_only=False)
        (Path("/sys/block") / Path(self.path).name / "queue" / "nomerges").write_text(
            "0" if merge else "2"
        )

    def attached(self) -> bool:
        """Whether the device still has its file (it keeps it after a detach while somebody has it open)."""
        try:
            text = (Path("/sys/block") / Path(self.path).name / "loop" / "backing_file").read_text()
        except OSError:
            return False
        return text.rstrip("\n").removesuffix(" (deleted)") == str(self.backing)


@contextlib.contextmanager
def loop(backing: Path, *, sector: int = 512, direct: bool = True) -> Iterator[LoopDevice]:
    """A loop device over a file. One write is one request: the block layer is told not to merge neighbours.

    Args:
        sector: logical sector size, 512 or 4096 bytes.
        direct: the device writes to the file with O_DIRECT; without it, write errors come at fsync, once.
    """
    require("loop")
    device = LoopDevice(
        _run(
            "losetup",
            "-f",
            "--show",
            f"--direct-io={'on' if direct else 'off'}",
            "-b",
            str(sector),
            str(backing),
        ),
        backing,
    )
    try:
        device.reset()
        yield device
    finally:
        if device.attached():
            device.reset(merge=True)
            kernel.detach_loop(device.path)
        with contextlib.suppress(
            TimeoutError
        ):  # still open somewhere: the kernel detaches it with the last close
            kernel.wait_until(lambda: not device.attached(), "the loop device lets go", timeout=0.5)


@dataclass(slots=True)
class FaultDisk:
    """A loop device over a file of a fault file system. `name` is the path that rules and the log know ("/disk")."""

    fs: FaultFS
    loop: LoopDevice
    name: str

    @property
    def path(self) -> str:
        """The block device."""
        return self.loop.path

    def media(self, offset: int, length: int) -> bytes:
        """What is on the medium, read behind the back of all faults and caches."""
        with open(self.fs.backing(self.name), "rb") as file:
            file.seek(offset)
            return file.read(length)


@contextlib.contextmanager
def fault_disk(
    size: int, *, sector: int = 512, fs: FaultFS | None = None, name: str = "disk"
) -> Iterator[FaultDisk]:
    """A block device whose faults are scripted: a loop device over a FaultFS file (in a file system of its own unless given)."""
    require("fuse", "loop")
    with contextlib.ExitStack() as stack:
        files = fs or stack.enter_context(FaultFS())
        device = stack.enter_context(loop(files.create_file(name, size), sector=sector))
        stack.callback(
            files.heal
        )  # a detach waits for the device's I/O: nothing may be held or frozen then
        yield FaultDisk(files, device, f"/{name}")


# ---- file systems --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory where there is one (O_DIRECT works there since Linux 6.6), else on disk."""
    memory = Path("/dev/shm")
    directory = Path(
        tempfile.mkdtemp(prefix="fanout-", dir=memory if os.access(memory, os.W_OK) else None)
    )
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def small_tmpfs(size: int) -> Iterator[Path]:
    """A mounted file system of `size` bytes in memory: ENOSPC for files."""
    require("root")
    with scratch() as base:
        kernel.mount("tmpfs", base, "tmpfs", f"size={size},mode=0700")
        try:
            yield base
        finally:
            kernel.unmount(base, lazily=True)


@dataclass(slots=True)
class Ext4:
    """A mounted ext4. Attributes: device, mount point."""

    device: str
    path: Path

    def power_cut(self) -> None:
        """Power off: nothing that is not on the device gets there any more, the journal's open transaction included."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", _SHUTDOWN_NOLOGFLUSH))
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Whoever writes inside hangs in the kernel, where no signal gets to; thawed after, whatever happens."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _FIFREEZE, 0)
            try:
                yield
            finally:
                fcntl.ioctl(fd, _FITHAW, 0)
        finally:
            os.close(fd)

    def remount(self) -> None:
        """Power on: mount again, which replays the journal. Files must be closed."""
        kernel.unmount(self.path)
        kernel.mount(self.device, self.path, "ext4")


@contextlib.contextmanager
def ext4(device: str, options: str = "") -> Iterator[Ext4]:
    """A fresh ext4 on a block device; `options` of its mount."""
    require("ext4")
    with scratch() as base:
        _run(
            "mkfs.ext4",
            "-q",
            "-F",
            "-b",
            "4096",
            "-E",
            "nodiscard,lazy_itable_init=1,lazy_journal_init=1",
            device,
        )
        kernel.mount(device, base, "ext4", options)
        try:
            yield Ext4(device, base)
        finally:
            kernel.unmount(base, lazily=True)


@contextlib.contextmanager
def ext4_disk(size: int = 64 << 20, options: str = "") -> Iterator[Ext4]:
    """A fresh ext4 of `size` bytes on a loop device over a scratch file; `options` of its mount."""
    with scratch() as base:
        image = base / "image"
        image.touch(0o600)
        os.truncate(image, size)
        with loop(image) as device, ext4(device.path, options) as mounted:
            yield mounted


@contextlib.contextmanager
def full_disk(size: int, *, room: int = 32 << 20, sector: int = 512) -> Iterator[LoopDevice]:
    """A block device of `size` bytes on a file system that holds less: a thin pool that runs dry, ENOSPC in the middle.

    Args:
        room: bytes of the ext4 under it; about three quarters of it are there for data.
    """
    with ext4_disk(room) as mounted:
        image = mounted.path / "sparse"
        image.touch(0o600)
        os.truncate(image, size)
        with loop(image, sector=sector) as device:
            yield device


# ---- zram ----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Zram:
    """A zram device of our own. It has no write cache: a flush cannot fail here."""

    path: str
    control: Path

    def fail(self, *, after: int = 0) -> None:
        """EIO for what needs new memory, once about `after` more bytes of incompressible data were stored.

        Zeros and repetitions cost nothing and go on to succeed; so does an overwrite that finds room. Write random bytes.
        """
        used = int((self.control / "mm_stat").read_text().split()[2])
        (self.control / "mem_limit").write_text(str(max(used + after, _PAGE)))

    def heal(self) -> None:
        """No limit: everything succeeds at once."""
        (self.control / "mem_limit").write_text("0")


@contextlib.contextmanager
def zram(size: int) -> Iterator[Zram]:
    """A new zram device of `size` bytes; devices that were there before are left alone."""
    require("zram")
    number = Path("/sys/class/zram-control/hot_add").read_text().strip()
    device = Zram(f"/dev/zram{number}", Path(f"/sys/block/zram{number}"))
    try:
        (device.control / "disksize").write_text(str(size))
        kernel.wait_until(lambda: Path(device.path).exists(), device.path)
        yield device
    finally:
        kernel.wait_until(
            lambda: _remove_zram(device.control, number), f"nobody has {device.path} open"
        )


def _remove_zram(control: Path, number: str) -> bool:
    try:
        (control / "reset").write_text("1")
        Path("/sys/class/zram-control/hot_remove").write_text(number)
    except OSError as problem:
        if problem.errno != errno.EBUSY:
            raise
        return False
    return True


# ---- limits --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Throttle:
    """A limit on the writes of some processes to one device."""

    group: Path
    members: list[int] = field(default_factory=list)

    def add(self, pid: int) -> None:
        """Throttle this process, all its threads and what it starts from now on."""
        (self.group / "cgroup.procs").write_text(str(pid))
        self.members.append(pid)


@contextlib.contextmanager
def throttled(number: str, *, bytes_per_second: int) -> Iterator[Throttle]:
    """A cgroup that writes to the device "major:minor" at most this fast; `Throttle.add` puts processes into it.

    Direct writes only: with cgroup v1, page cache is written back by the kernel, outside of every group.
    """
    require("throttle")
    version = throttle_version()
    parent = Path("/sys/fs/cgroup/blkio" if version == 1 else "/sys/fs/cgroup")
    if version == 2:
        (parent / "cgroup.subtree_control").write_text("+io")
    group = Path(tempfile.mkdtemp(prefix="fanout-", dir=parent))
    throttle = Throttle(group)
    try:
        if version == 1:
            (group / "blkio.throttle.write_bps_device").write_text(f"{number} {bytes_per_second}")
        else:
            (group / "io.max").write_text(f"{number} wbps={bytes_per_second}")
        yield throttle
    finally:
        for pid in throttle.members:
            with contextlib.suppress(ProcessLookupError):
                (parent / "cgroup.procs").write_text(str(pid))
        kernel.wait_until(lambda: _remove_group(group), "the cgroup is empty")


def _remove_group(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError as problem:
        if problem.errno != errno.EBUSY:
            raise
        return False
    return True


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: a crossing write is short, the next gets EFBIG.

    Python ignores SIGXFSZ. Holds for the whole process, log files included.
    """
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def _run(*command: str) -> str:
    """Output of a command. Raises RuntimeError with what it said."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip() or result.returncode}")
    return result.stdout.strip()
