"""A full file system under the catalog, a real one: what is under way, and its gaps, can still be recorded.

What could break: an acknowledged gap that is not there; a store that goes on until nothing can be recorded any more; ballast that is
never made again, or that fills the disk itself.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fanout.catalog import Catalog, CatalogReader
from fanout.catalog.ballast import SIZE_BYTES, Ballast, free_bytes
from fanout.errors import CatalogError, CommitUnknown
from fanout.store import Store
from tests.faults import devices
from tests.store.test_rebuild import put, small

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.store.histories import SmallSite

__all__ = ["small"]  # the fixture
MIB = 1 << 20


def fill(directory: Path) -> Path:
    """Not one byte is left."""
    filler = directory / "filler"
    with open(filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            for size in (MIB, 4096, 1):
                with contextlib.suppress(OSError):
                    file.write(bytes(size))
                    break
            else:
                break
    return filler


@pytest.fixture(params=["tmpfs", pytest.param("ext4", marks=pytest.mark.loop)])
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own for a catalog: 64 MiB."""
    if request.param == "tmpfs":
        with devices.small_tmpfs(64 * MIB) as path:
            yield path
    else:
        with devices.ext4_disk(64 * MIB) as made:
            yield made.path


@pytest.fixture
def full(disk: Path, small: SmallSite) -> SmallSite:
    """A small store whose catalog lies there."""
    Catalog.discard(small.catalog)
    for path in [*small.base.glob("*.vol"), *small.base.glob("sequential/*")]:
        path.unlink()
    text = small.path.read_text().replace('"catalog.db"', f'"{disk / "catalog.db"}"')
    small.path.write_text(text)
    Store.create(small.path)
    return small


def ballast(disk: Path) -> int:
    with CatalogReader(disk / "catalog.db") as reader:
        return reader.space().ballast_bytes


def names(site: SmallSite, disk: Path) -> list[bytes]:
    with CatalogReader(disk / "catalog.db") as reader:
        assert reader.verify() == []
        return [entry.name for entry in reader.objects()]


@pytest.mark.root
def test_a_full_disk_still_records_gaps(full: SmallSite, disk: Path) -> None:
    """The disk fills under a transaction, and a pool is missing: committed with its gap; nothing new is begun; room heals it."""
    with contextlib.ExitStack() as stack:
        locked = stack.enter_context(contextlib.ExitStack())
        locked.enter_context(full.locked("COPYPOOL1"))
        store = stack.enter_context(full.open(lock_wait=0))
        assert ballast(disk) == SIZE_BYTES
        session = stack.enter_context(store.session("N1"))
        for attempt in session.attempts():
            with attempt as txn:
                txn.put(b"A", b"a" * 10_000)
                fill(disk)
        assert session.receipt is not None
        assert {gap.pool for gap in session.receipt.gaps} == {"COPYPOOL1"}
        assert ballast(disk) == 0
        fill(disk)  # somebody takes what the ballast gave
        with pytest.raises(CatalogError, match=r"has only \d+ bytes left.*make room"):
            put(full, store, {b"B": b"b"})
        (disk / "filler").unlink()
        put(full, store, {b"C": b"c"})
        assert ballast(disk) == SIZE_BYTES
    assert names(full, disk) == [b"A", b"C"]
    with full.open() as store:
        assert {gap.pool for gap in store.query_gaps()} == {"COPYPOOL1"}


@pytest.mark.root
def test_an_opening_on_a_full_disk_says_what_to_do(full: SmallSite, disk: Path) -> None:
    """Where the log's index cannot be made SQLite speaks of an I/O error, and an operator looks for a broken disk."""
    for index in disk.glob("*-shm"):  # of nobody: the store is closed
        index.unlink()
    fill(disk)
    with pytest.raises(CatalogError, match="is full: make room there"):
        full.open()
    (disk / "filler").unlink()
    with full.open() as store:
        put(full, store, {b"A": b"a"})


@pytest.mark.root
def test_without_ballast_the_same_transaction_fails(full: SmallSite, disk: Path) -> None:
    """So it is the ballast that the other test stands on. Nothing of it is visible then, now or later."""
    with full.open() as store, store.session("N1") as session:
        begun = session.begin()
        begun.put(b"A", b"a" * 10_000)
        (disk / "catalog.db.ballast").unlink()
        fill(disk)
        with pytest.raises(CommitUnknown):
            begun.commit()
        (disk / "filler").unlink()
    with full.open() as store:
        held = names(full, disk)
    assert held in ([], [b"A"])


@pytest.mark.root
def test_a_store_opens_on_a_full_disk(full: SmallSite, disk: Path) -> None:
    """An opening writes to the catalog, too: the epochs of the volumes."""
    with full.open() as store:
        put(full, store, {b"A": b"a" * 10_000})
    fill(disk)
    with full.open() as store:
        assert store.get("N1", b"A").read() == b"a" * 10_000
        with pytest.raises(CatalogError, match="make room"):
            put(full, store, {b"B": b"b"})


# ---- the file itself -------------------------------------------------------------------------------------


def test_it_is_private_and_taken(tmp_path: Path) -> None:
    """Space that is only promised could be taken by somebody else."""
    before = os.umask(0)
    try:
        made = Ballast(str(tmp_path / "catalog.db"))
        assert made.make()
    finally:
        os.umask(before)
    status = os.stat(made.path)
    assert (status.st_mode & 0o777, status.st_size) == (0o600, SIZE_BYTES)
    assert made.held_bytes == status.st_blocks * 512 == SIZE_BYTES


def test_it_is_made_only_where_there_is_room(tmp_path: Path) -> None:
    """A ballast of half the free space would itself fill the disk."""
    much = Ballast(str(tmp_path / "catalog.db"), size_bytes=free_bytes(str(tmp_path)) // 2 + MIB)
    assert not much.make()
    assert much.shortage() is None  # small, but not full
    assert os.listdir(tmp_path) == []


def test_what_is_planted_there_is_not_followed(tmp_path: Path) -> None:
    """A link is replaced, and what it points to stays as it is; a sparse file is no ballast."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"data")
    made = Ballast(str(tmp_path / "catalog.db"), size_bytes=MIB)
    os.symlink(precious, made.path)
    assert made.make()
    assert precious.read_bytes() == b"data"
    os.unlink(made.path)
    with open(made.path, "wb") as file:
        file.truncate(MIB)
    assert made.held_bytes == 0
    assert made.make()
    assert made.held_bytes == MIB


def test_it_goes_only_for_want_of_space(tmp_path: Path) -> None:
    """Another error must not cost it: it would be gone when it is needed."""
    made = Ballast(str(tmp_path / "catalog.db"), size_bytes=MIB)
    made.make()
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    assert not made.give_up(error)
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    assert not made.give_up(error)
    assert made.held_bytes == MIB
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert made.give_up(error)
    assert not made.give_up(error)
    assert made.held_bytes == 0


def test_it_is_not_looked_for_at_every_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look gave the GIL away. But one that was given up, or that a write missed, is looked for at once."""
    monkeypatch.setattr("fanout.catalog.ballast.LOOK_PAUSE", threading.TIMEOUT_MAX)
    ballast = Ballast(str(tmp_path / "catalog.db"), size_bytes=MIB)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert ballast.shortage() is None
    os.unlink(ballast.path)
    assert ballast.shortage() is None
    assert ballast.held_bytes == 0, "it was looked for"
    assert not ballast.give_up(full)
    assert ballast.shortage() is None
    assert ballast.held_bytes == MIB
    assert ballast.give_up(full)
    assert ballast.shortage() is None
    assert ballast.held_bytes == MIB


def test_sessions_that_begin_at_once_make_it_once(tmp_path: Path) -> None:
    """Each removed what another was just making, and told its client that the disk is full: there is room for all of it."""
    ballast = Ballast(str(tmp_path / "catalog.db"), size_bytes=MIB)
    for _ in range(50):
        ballast._given_up = True
        with ThreadPoolExecutor(8) as sessions:
            said = list(sessions.map(lambda _: ballast.shortage(), range(8)))
        assert said == [None] * 8
        assert ballast.held_bytes == MIB
        os.unlink(ballast.path)
