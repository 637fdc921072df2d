"""What this machine and a target can do, as plain values, and what to change.

Collecting facts looks at the system and changes nothing; giving advice is a pure function of facts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.engine.target import is_absent_device
from fanout.errors import TargetError
from fanout.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.engine import Engine

# What looks like a file there is a question to the kernel.
KERNEL_FILE_SYSTEMS = frozenset(
    {"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "bpf"}
)
HUGE_PAGES = ("small pages (4 KiB)", "transparent huge pages", "reserved huge pages")


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What the engine found, and the settings that decided it."""

    backend: str
    reason: str
    huge_pages: int
    registered: bool
    memory_bytes: int
    hash_isa: str
    kernel: str
    io_uring_disabled: int | None
    transparent_huge_pages: str
    reserved_huge_pages_free: int
    memlock_bytes: int | None
    file_size_limit_bytes: int | None
    open_files: int
    root: bool


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What one target is and can do.

    Attributes:
        path: as named by the operator.
        kind: ``file``, ``new file``, ``block device``, ``directory``, or ``other``.
        problem: why it cannot be used; empty when it can.
        mend: what mends it.
        file_system: its type in the mount table.
        size_bytes: of the file or device.
        free_bytes: left on the file system.
        granule: every write's offset and length are multiples of it.
        memory_align: buffers are aligned to it.
        sector_logical: of the device, bytes.
        sector_physical: likewise.
        direct: whether O_DIRECT works.
        slow_path: file system in user space or on a network.
        details: further lines about a device (write cache, scheduler, mounts).
    """

    path: str
    kind: str
    problem: str = ""
    mend: str = ""
    file_system: str = ""
    size_bytes: int = 0
    free_bytes: int | None = None
    granule: int = 0
    memory_align: int = 0
    sector_logical: int = 0
    sector_physical: int = 0
    direct: bool = False
    slow_path: bool = False
    details: tuple[str, ...] = field(default=())


# ---- facts ------------------------------------------------------------------------------------


def machine_facts(engine: Engine) -> MachineFacts:
    """Ask the engine and the kernel."""
    info = engine.info
    soft_memlock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    soft_size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    disabled = _read("/proc/sys/kernel/io_uring_disabled")
    return MachineFacts(
        backend=info.backend,
        reason=info.reason,
        huge_pages=int(info.huge_pages),
        registered=bool(info.registered),
        memory_bytes=info.memory_bytes,
        hash_isa={0: "baseline", 2: "AVX2", 3: "AVX-512"}.get(int(info.hash_isa), "?"),
        kernel=os.uname().release,
        io_uring_disabled=int(disabled) if disabled.isdecimal() else None,
        transparent_huge_pages=_bracketed("/sys/kernel/mm/transparent_hugepage/enabled"),
        reserved_huge_pages_free=_meminfo("HugePages_Free"),
        memlock_bytes=_finite(soft_memlock),
        file_size_limit_bytes=_finite(soft_size),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        root=os.geteuid() == 0,
    )


def target_facts(engine: Engine, path: str) -> TargetFacts:
    """Look at one target without writing to it or leaving anything behind."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return _new_file(engine, path)
    except OSError as error:
        return TargetFacts(path, "other", problem=error.strerror or str(error))
    if stat.S_ISDIR(status.st_mode):
        return _probe_directory(engine, path, path, "directory")
    if stat.S_ISBLK(status.st_mode):
        return _existing(engine, path, "block device", _device_details(status.st_rdev))
    if stat.S_ISREG(status.st_mode):
        return _existing(engine, path, "file", ())
    return TargetFacts(
        path, "other", problem="is neither a file nor a block device", mend="Name another target."
    )


def _new_file(engine: Engine, path: str) -> TargetFacts:
    directory = str(Path(path).absolute().parent)
    if is_absent_device(path):
        return TargetFacts(
            path, "other", problem="there is no such device", mend="Is the path right?"
        )
    if Path(path).is_symlink():
        return TargetFacts(path, "other", problem="is a symbolic link to nothing")
    if not Path(directory).is_dir():
        return TargetFacts(
            path, "new file", problem=f"there is no directory {directory}", mend="Make it first."
        )
    return _probe_directory(engine, path, directory, "new file")


def _probe_directory(engine: Engine, path: str, directory: str, kind: str) -> TargetFacts:
    """Try a file without a name, which is gone when its descriptor is closed."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
            return TargetFacts(
                path,
                kind,
                file_system=_file_system(directory),
                free_bytes=_free(directory),
                details=("nothing could be tried here without making a file",),
            )
        mend = "Check the directory's owner and mode." if error.errno == errno.EACCES else ""
        return TargetFacts(path, kind, problem=error.strerror or str(error), mend=mend)
    try:
        os.ftruncate(fd, 1 << 20)
        facts = _existing(engine, f"/proc/self/fd/{fd}", kind, ())
    finally:
        os.close(fd)
    return _renamed(facts, path, directory)


def _renamed(facts: TargetFacts, path: str, directory: str) -> TargetFacts:
    return replace(facts, path=path, size_bytes=0, free_bytes=_free(directory))


def _existing(engine: Engine, path: str, kind: str, details: tuple[str, ...]) -> TargetFacts:
    file_system = "" if kind == "block device" else _file_system(path)
    if file_system in KERNEL_FILE_SYSTEMS:
        problem = f"belongs to the kernel ({file_system}) and holds no data"
        return TargetFacts(path, kind, problem, "Name another target.", file_system)
    if not os.access(path, os.W_OK):
        mend = "Run as root, or as a member of the group that owns it."
        return TargetFacts(path, kind, "cannot be written by this user", mend, file_system)
    mounted = [line for line in details if line.startswith("mounted")]
    if mounted:
        mend = "Unmount it first; a mounted device is never written to."
        others = tuple(line for line in details if line not in mounted)
        return TargetFacts(path, kind, mounted[0], mend, details=others)
    try:
        target = engine.open(path, read_only=True, timeout=10.0)
    except TargetError as error:
        return TargetFacts(path, kind, str(error), "", file_system, details=details)
    with contextlib.closing(target):
        geometry = target.geometry
        return TargetFacts(
            path=path,
            kind=kind,
            file_system=file_system,
            size_bytes=geometry.size,
            free_bytes=None if kind == "block device" else _free(path),
            granule=geometry.granule,
            memory_align=geometry.mem_align,
            sector_logical=geometry.sector_logical,
            sector_physical=geometry.sector_physical,
            direct=bool(geometry.direct),
            slow_path=bool(geometry.slow_path),
            details=details,
        )


def _device_details(device: int) -> tuple[str, ...]:
    """What sysfs and the mount table say about a block device."""
    name = f"{os.major(device)}:{os.minor(device)}"
    where = Path(f"/sys/dev/block/{name}")
    queue = where / "queue"
    if not queue.exists():
        queue = (where / "..").resolve() / "queue"  # a partition's queue is its disk's
    lines = [f"mounted on {mount}" for mount in _mounts(name)]
    if backing := _read(str(where / "loop/backing_file")):
        lines.append(f"loop device over {backing}")
    if cache := _read(str(queue / "write_cache")):
        lines.append(f"write cache: {cache}")
    if scheduler := _bracketed(str(queue / "scheduler")):
        lines.append(f"scheduler: {scheduler}")
    if _read(str(where / "ro")) == "1":
        lines.append("read-only")
    return tuple(lines)


def _mounts(device: str) -> list[str]:
    """Mount points of a device, from /proc/self/mountinfo (third and fifth field)."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
            fields = [line.split() for line in lines]
    except OSError:
        return []
    return [words[4] for words in fields if len(words) > 4 and words[2] == device]


# ---- advice -----------------------------------------------------------------------------------


def machine_advice(facts: MachineFacts) -> list[str]:
    """What to change on the machine, the most useful first."""
    advice = []
    if facts.backend != "io_uring":
        if facts.io_uring_disabled:
            advice.append("Allow io_uring: sysctl kernel.io_uring_disabled=0")
        else:
            advice.append(
                "Allow io_uring in the container's seccomp profile "
                "(io_uring_setup, io_uring_enter, io_uring_register); the thread backend costs more CPU."
            )
    if facts.huge_pages == 0 and facts.transparent_huge_pages != "never":
        advice.append(
            "The kernel had no huge pages to give, and small ones cost several times the CPU: "
            "echo 1 > /proc/sys/vm/compact_memory, and start again."
        )
    elif facts.huge_pages == 0:
        advice.append(
            "Allow huge pages on request: "
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        )
    if (
        facts.backend == "io_uring"
        and not facts.registered
        and facts.memlock_bytes is not None
        and facts.memlock_bytes < facts.memory_bytes
    ):
        advice.append(
            f"Let the arena be locked: raise the memlock limit from {format_size(facts.memlock_bytes)} "
            f"to {format_size(facts.memory_bytes)} or more "
            "(ulimit -l, LimitMEMLOCK= in a systemd unit)."
        )
    if facts.file_size_limit_bytes is not None:
        limit = format_size(facts.file_size_limit_bytes)
        advice.append(f"Files cannot grow beyond {limit}: lift the file size limit (ulimit -f).")
    if facts.open_files < 256:
        advice.append(f"Raise the limit on open files from {facts.open_files} (ulimit -n).")
    return advice


def target_advice(facts: TargetFacts) -> list[str]:
    """What to change about a target."""
    if facts.problem:
        return [facts.mend] if facts.mend else []
    advice = []
    if facts.granule and not facts.direct:
        advice.append(
            "No O_DIRECT here: writes go through the page cache and cost several times the CPU. "
            "Put volumes on ext4, xfs or a bare device."
        )
    if facts.slow_path:
        advice.append(
            "A file system in user space or on a network can hang: set hard_deadline in [engine] "
            "to what you are willing to wait."
        )
    if "read-only" in facts.details:
        advice.append("The device is read-only: blockdev --setrw makes it writable.")
    return advice


def usable(targets: Sequence[TargetFacts]) -> bool:
    """Whether every target can be written to."""
    return not any(facts.problem for facts in targets)


# ---- small things -----------------------------------------------------------------------------


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _bracketed(path: str) -> str:
    """The chosen word of a setting such as ``always [madvise] never``."""
    text = _read(path)
    return text.partition("[")[2].partition("]")[0] or text


def _meminfo(key: str) -> int:
    for line in _read("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    return 0


def _finite(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _free(path: str) -> int:
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize


def _file_system(path: str) -> str:
    """Name of the file system that a path lies on, from the longest mount point that contains it."""
    real = os.path.realpath(path)
    if path.startswith("/proc/self/fd/"):  # a file without a name: where it would be
        real = str(Path(path).readlink().parent)
    best, name = "", ""
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        # Blanks in a mount point are written as octal escapes.
        point = before.split()[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, name = point, after.split()[0]
    return name
