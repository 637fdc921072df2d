"""A file that is there to be given up: when the catalog's file system is full, its space lets what is under way be recorded.

::

    HELD ── a write finds the file system full ──> given up (removed) ── there is room again ──> HELD

What it promises:

1. It is removed only after a write has failed for want of space, and then at once.
2. It is made only where twice its size is free, so that it never fills what it is there for.
3. Nothing here raises: a catalog without ballast is a catalog.

Why a file and not a margin: only space that is taken cannot be taken by somebody else. It holds nothing, and is private like
the catalog. What is under way when it goes is one commit group, and what the sessions that have begun still hand in.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from contextlib import suppress

SUFFIX = ".ballast"
# What it has to hold, in bytes of the log: a commit of one gap 34 kB, the largest group (16,384 objects) with names of 60 bytes
# 2.9 MB. With names of 1,024 bytes such a group takes 99 MB: then its transactions fail, and what they wrote is free again.
SIZE_BYTES = 16 << 20
# Seconds that what was there is not looked for again when a transaction begins: each look gives the GIL away, and beside a busy
# Python thread that may take 5 ms. Nobody but its writer has business to remove it.
LOOK_PAUSE = 1.0

_log = logging.getLogger("fanout.catalog")


class Ballast:
    """The ballast of one catalog. Its writer alone makes and removes it. Any thread may call anything.

    Args:
        catalog: path of the database.
    """

    def __init__(self, catalog: str, *, size_bytes: int = SIZE_BYTES) -> None:
        self.path, self._size = f"{catalog}{SUFFIX}", size_bytes
        self._given_up = False
        self._seen: float | None = None  # when it was there, on the monotonic clock
        # Sessions begin side by side, and a commit may need the space meanwhile.
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """How large it is; 0: there is none."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return 0
        return min(status.st_size, status.st_blocks * 512)

    @property
    def free_bytes(self) -> int:
        """What is free on its file system."""
        return free_bytes(os.path.dirname(self.path))

    def make(self) -> bool:
        """Make it if it is not there and there is room; whether it is there now."""
        with self._lock:
            return self._make()

    def _make(self) -> bool:
        if self.held_bytes >= self._size:
            return self._is_there()
        if self.free_bytes < 2 * self._size:
            return False
        with suppress(OSError):  # of another size: made by another version, or cut short
            os.unlink(self.path)
        try:
            self._write()
        except OSError as error:
            _log.warning("%s: cannot be made: %s", self.path, error.strerror)
            with suppress(OSError):
                os.unlink(self.path)
            return False
        return self._is_there()

    def _is_there(self) -> bool:
        self._given_up, self._seen = False, time.monotonic()
        return True

    def _write(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.path, flags, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._size)
            os.fsync(fd)
        finally:
            os.close(fd)

    def give_up(self, error: sqlite3.Error) -> bool:
        """Remove it if the error says that the file system is full; whether that has made room."""
        with self._lock:
            return self._remove_for(error)

    def _remove_for(self, error: sqlite3.Error) -> bool:
        self._seen = None  # who needs it looks
        if not self._full(error) or not self.held_bytes:
            return False
        try:
            os.unlink(self.path)
            self._given_up = True
            self._commit_removal()
        except OSError:
            return False
        _log.error(
            "%s: the catalog's file system is full; what is under way is recorded in the space of the ballast. Make room",
            self.path,
        )
        return True

    def _commit_removal(self) -> None:
        """A journalling file system (ext4) gives blocks back only when the removal is committed."""
        fd = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _full(self, error: sqlite3.Error) -> bool:
        """ENOSPC of a write is SQLITE_FULL; that of a flush, or of the log's index, is only an I/O error.

        Then what is free decides; some of that may be the file system's own (ext4 keeps 2 % even from root).
        """
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return True
        io_error = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
        return io_error and self.free_bytes < self._size

    def shortage(self) -> str | None:
        """Why nothing new should be begun; None: there is ballast, or it was never given up and at least its size is free."""
        seen = self._seen
        if not self._given_up and seen is not None and time.monotonic() - seen < LOOK_PAUSE:
            return None
        if self.make() or (not self._given_up and self.free_bytes >= self._size):
            return None
        return (
            f"the catalog's file system has only {self.free_bytes} bytes left: what has begun is recorded, "
            "and nothing new is begun; make room there"
        )


def free_bytes(directory: str) -> int:
    """What this process may still write there; a file system that cannot say is taken for an empty one."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return 1 << 62
    return status.f_frsize * (status.f_bfree if os.geteuid() == 0 else status.f_bavail)
