"""Who may write to a catalog: one, on one machine."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from pathlib import Path

from fanout.catalog.connection import refuse_links
from fanout.errors import CatalogBusy, CatalogError

LOCK = ".lock"  # what its name adds to the database's
LOCK_POLL = 0.05  # seconds between two looks at a lock that another process holds
SILENT = 1.0  # seconds that a wait may take without a word

_log = logging.getLogger("fanout.catalog")


# The lock belongs to the open file, which a forked child shares: it closes its descriptors at once, or the store would stay locked
# until the child ends. No fork happens between opening one and remembering it.
_forking = threading.RLock()  # also if a signal handler forks
_held: set[WriterLock] = set()


class WriterLock:
    """A descriptor of the file that a writer has locked. In a forked child it is closed already."""

    def __init__(self, lock: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with _forking:
            self.fd = os.open(lock, flags, 0o600)
            _held.add(self)

    def close(self) -> None:
        """Let the next writer in; idempotent."""
        with _forking:
            self._close()
            _held.discard(self)

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @classmethod
    def let_go(cls) -> None:
        """In a forked child."""
        for lock in _held:
            lock._close()
        _held.clear()
        _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=WriterLock.let_go
)


def take_lock(path: str, wait: float) -> WriterLock:
    """The writer's lock, on a file beside the database.

    Not on the database itself: closing any descriptor of it would drop the locks that SQLite holds there.
    """
    refuse_links(path)
    name = f"{path}{LOCK}"
    try:
        lock = WriterLock(name)
    except OSError as error:
        reason = (
            "is a symbolic link, which is refused" if error.errno == errno.ELOOP else error.strerror
        )
        raise CatalogError(name, f"cannot be opened: {reason}") from error
    try:
        _wait_for_lock(lock.fd, path, wait)
    except BaseException:
        lock.close()
        raise
    return lock


def _wait_for_lock(fd: int, path: str, wait: float) -> None:
    deadline = time.monotonic() + wait
    told = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                who, mend = _holder(fd)
                message = f"{who} has the store open for writing; {mend}, or open read-only"
                raise CatalogBusy(path, message) from None
        if not told and time.monotonic() >= deadline - wait + SILENT:
            told = True
            _log.warning("%s: waiting for the store, which %s has open", path, _holder(fd)[0])
        time.sleep(min(LOCK_POLL, max(0.0, deadline - time.monotonic())))


def _holder(fd: int) -> tuple[str, str]:
    """Who holds the lock, and what to do about it, for people. No number where the kernel does not tell."""
    try:
        file = f"{_device(fd)}:{os.fstat(fd).st_ino}"
        with open("/proc/locks", encoding="ascii") as locks:
            found = [words for words in map(str.split, locks) if file in words]
    except (OSError, StopIteration):
        found = []
    holders = [words[4] for words in found if words[1] == "FLOCK" and words[4].isdecimal()]
    if holders == [str(os.getpid())]:
        return "this very process", "close that store"
    number = f" ({', '.join(holders)})" if holders and holders != ["0"] else ""
    return f"another process{number}", "end it"


def _device(fd: int) -> str:
    """The device of a file as /proc/locks has it: that of its file system, which on some (btrfs) is not what `stat` says."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as facts:
        mount = next(line.split()[1] for line in facts if line.startswith("mnt_id:"))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        device = next(words[2] for words in map(str.split, mounts) if words[0] == mount)
    major, minor = map(int, device.split(":"))
    return f"{major:02x}:{minor:02x}"


def sync_directory(path: str) -> None:
    """Make the name of the file at `path` durable."""
    fd = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
