"""What a new catalog begins as: a file beside its later name, with the schema, the pools and the volumes in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fanout.catalog.connection import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    connect,
    schema_text,
    translated,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from fanout.catalog.rows import PoolEntry, VolumeEntry

# Network and overlay file systems use all 64 bits of an inode number, SQLite has 63: the others are left out. Informative anyway.
LARGEST = (1 << 63) - 1


def write_draft(
    draft: str,
    store: bytes,
    pools: Iterable[PoolEntry],
    volumes: Iterable[VolumeEntry],
    now: int,
) -> None:
    """Make the file, private to its owner, and fill it in one transaction; `now` in nanoseconds since 1970."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(draft, flags, 0o600)
    try:
        # Whatever the umask takes away; SQLite gives its other files the same mode.
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)
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
