"""What a new catalog begins as: a file beside its later name, with the schema, the pools and the volumes in it.

Whoever makes one holds a lock beside it meanwhile, so that the next one knows what a killed process has left, and removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.catalog.connection import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    SIDES,
    connect,
    schema_text,
    translated,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator

    from fanout.catalog.rows import PoolEntry, VolumeEntry

_MAKING = "-making"  # what the name of a draft's lock adds to it
# Network and overlay file systems use all 64 bits of an inode number, SQLite has 63: the others are left out. Informative anyway.
LARGEST = (1 << 63) - 1


@contextmanager
def draft_of(path: str) -> Iterator[str]:
    """The name of an empty file beside `path`, private to its owner; it is gone at the end, under this name.

    Raises:
        OSError: it cannot be made.
    """
    _sweep(path)
    draft = f"{path}.{uuid.uuid4().hex}.new"
    # Not on the file itself: closing it would drop the locks that SQLite may hold there by then, under its later name.
    with _made(draft + _MAKING) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _made(draft).close()
            yield draft
        finally:
            _remove(draft)


def _made(path: str) -> FileIO:
    """A new file, as an object: an interrupt that strikes before anybody knows of it leaves no descriptor, and no lock, behind."""
    file = FileIO(path, "x+", opener=partial(os.open, mode=0o600))  # private from the start
    # Whatever the umask takes away; SQLite's other files get the same.
    os.fchmod(file.fileno(), 0o600)
    return file


def _sweep(path: str) -> None:
    """Remove drafts that nobody makes any more: their process was killed."""
    where, name = os.path.split(path)
    left = re.compile(re.escape(name) + r"\.[0-9a-f]{32}\.new" + _MAKING)
    with suppress(OSError):
        for found in filter(left.fullmatch, os.listdir(where)):
            with suppress(OSError):
                _remove_if_left(os.path.join(where, found.removesuffix(_MAKING)))


def _remove_if_left(draft: str) -> None:
    lock = os.open(draft + _MAKING, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(draft)
    finally:
        os.close(lock)


def _remove(draft: str) -> None:
    for suffix in ("", *SIDES, _MAKING):  # the lock last: it leads to the others
        with suppress(FileNotFoundError):
            Path(draft + suffix).unlink()


def write_draft(
    draft: str,
    store: bytes,
    pools: Iterable[PoolEntry],
    volumes: Iterable[VolumeEntry],
    now: int,
) -> None:
    """Fill an empty file in one transaction; `now` in nanoseconds since 1970."""
    with translated(draft):
        db = connect(draft, read_only=False)
        try:
            _fill_draft(db, store, pools, volumes, now)
        finally:
            db.close()


def _fill_draft(
    db: sqlite3.Connection,
    store: bytes,
    pools: Iterable[PoolEntry],
    volumes: Iterable[VolumeEntry],
    now: int,
) -> None:
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.executescript(f"BEGIN; {schema_text()}")
    db.execute("INSERT INTO store VALUES (1, ?, ?, 0, 1, 1, 0)", (store.hex(), now))
    insert_pools(db, pools)
    insert_volumes(db, volumes)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.execute("COMMIT")
    db.execute("PRAGMA journal_mode = WAL")


def insert_pools(db: sqlite3.Connection, pools: Iterable[PoolEntry]) -> None:
    """In the transaction that is open."""
    for entry in pools:
        db.execute(
            "INSERT INTO pool (uuid, name, kind) VALUES (?, ?, ?)",
            (entry.pool.hex(), entry.name, entry.kind.value),
        )


def insert_volumes(db: sqlite3.Connection, volumes: Iterable[VolumeEntry]) -> None:
    """In the transaction that is open; their pools are there."""
    for entry in volumes:
        db.execute(
            """INSERT INTO volume (uuid, pool, path, size, granule, epoch, device, inode, is_block)
               VALUES (?, (SELECT id FROM pool WHERE name = ?), ?, ?, ?, ?, ?, ?, ?)""",
            (
                entry.volume.hex(),
                entry.pool,
                entry.path,
                entry.size,
                entry.granule,
                entry.epoch,
                entry.device & LARGEST,
                entry.inode & LARGEST,
                int(entry.is_block),
            ),
        )
