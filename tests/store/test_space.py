"""Space of a copy of which every member was deleted, while the aggregate lives on elsewhere.

What could break: the space stays taken until the last copy goes; a region that is used again while a directory still names it; a deleted
object that a volume which was away, and a lost catalog, bring back; a living copy that is given up with a spent one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from fanout import copy_activedata, restore_stgpool, retire_volume
from fanout.catalog import CatalogReader, Commit, MemberSet, NewCopy, NewGap, Repair
from fanout.format import Op
from fanout.rebuild import rebuild_catalog
from fanout.types import ObjectKind
from tests.store.histories import SmallSite
from tests.store.test_delete import (
    fill_directories,
    free,
    names,
    put,
    sound,
    take_rebuilt_catalog,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from fanout.store import Store
    from tests.store.conftest import Site

ACTIVE = "ACTIVEDATAPOOL"


@pytest.fixture
def small(tmp_path: Path, rng: random.Random) -> Iterator[SmallSite]:
    """A small store whose active-data pool holds b of an aggregate of which the other pools hold a and b."""
    site = SmallSite(tmp_path, rng)
    site.create()
    with site.locked(ACTIVE), site.open(lock_wait=0) as store:
        put(store, {b"a": b"1" * 5000, b"b": b"2" * 7000})
        put(store, {b"a": b"3" * 300})
    yield site
    for path in [*tmp_path.glob("*.vol"), *tmp_path.glob("sequential/*")]:
        path.unlink()


def test_the_last_member_that_a_pool_held_gives_its_space_back(small: SmallSite) -> None:
    with small.open() as store:
        before = free(store)
        assert copy_activedata(store, "DISKPOOL", ACTIVE).copied_objects == 2
        taken = before[ACTIVE] - free(store)[ACTIVE]
        report = store.delete("N1", b"b")
        assert (report.objects, report.aggregates, report.waiting_bytes) == (1, 0, 0)
        assert 0 < report.freed_bytes < taken
        assert names(store) == [b"a", b"a"]
        now = free(store)
        assert now[ACTIVE] == before[ACTIVE] - (taken - report.freed_bytes)
        assert {p: now[p] for p in now if p != ACTIVE} == {
            p: before[p] for p in before if p != ACTIVE
        }
    sound(small)


def fill_active(small: SmallSite) -> int:
    """Give the active-data pool its part; returns the bytes that it takes of the old aggregate."""
    with small.open() as store:
        copy_activedata(store, "DISKPOOL", ACTIVE)
        (old,) = (e.aggregate for e in store.query_objects(name=b"b"))
        (copy,) = (copy for copy in store.catalog.copies(old) if copy.pool == ACTIVE)
        return sum(place.length for place in copy.places)


def spent(store: Store) -> dict[str, int]:
    """Pools that keep space of spent copies."""
    return {copy.pool: copy.length for copy in store.catalog.spent()}


def test_a_living_member_keeps_the_copy(small: SmallSite) -> None:
    """Also when all that is left of it is an object without bytes, or was replaced since."""
    with small.open() as store:
        put(store, {b"c": b"1" * 5000, b"empty": b"", b"d": b"3"})
        put(store, {b"empty": b"now"})
        full = free(store)
        assert store.delete("N1", [b"c", b"d"]).freed_bytes == 0
        assert (spent(store), free(store)) == ({}, full)
    sound(small)


def test_a_pool_that_is_filled_again_takes_new_space(small: SmallSite) -> None:
    """What is active again goes to the pool that has just given up what it held of the same aggregate."""
    length = fill_active(small)
    with small.open() as store:
        before = free(store)
        assert store.delete("N1", b"b").freed_bytes == length
        assert store.delete("N1", b"a").objects == 1
        assert copy_activedata(store, "DISKPOOL", ACTIVE).copied_objects == 1
        assert names(store, ACTIVE) == [b"a"]
        assert store.get("N1", b"a", pool=ACTIVE).read() == b"1" * 5000
    sound(small)
    with small.open() as store:
        store.delete("N1", b"a")
        assert free(store)[ACTIVE] > before[ACTIVE]
        assert all(status.live == 0 for status in store.query_volumes())
    sound(small)


def test_a_primary_pool_gives_up_what_it_has_left(small: SmallSite) -> None:
    """An audit had left it one member; that is deleted, and the pool is filled again from a copy."""
    with small.open() as store:
        (old,) = (e.aggregate for e in store.query_objects(name=b"b"))
        gap = NewGap("DISKPOOL", "audit: damaged", 0, MemberSet.of([0]))
        copy = NewCopy("DISKPOOL", (), MemberSet.of([1]))
        commit = Commit(b"audit".ljust(16), 1, repairs=(Repair(old, "DISKPOOL", copy, gap),))
        store.ledger.commit_repairs(commit, (), "DISKPOOL")
        assert store.delete("N1", b"b").freed_bytes > 0
    sound(small)
    with small.open() as store:
        assert names(store, "DISKPOOL") == [b"a"]
        assert restore_stgpool(store, "DISKPOOL").copied_objects == 1
        assert names(store, "DISKPOOL") == [b"a", b"a"]
    sound(small)


@pytest.mark.parametrize("pool", [ACTIVE, "COPYPOOL1"], ids=["that holds it", "of another pool"])
def test_a_volume_that_is_away_is_waited_for(small: SmallSite, pool: str) -> None:
    """One that does not know of the deletion could bring it back: until it has been told, the others name it."""
    length = fill_active(small)
    with small.open() as store:
        before = free(store)[ACTIVE]
    with small.locked(pool), small.open(lock_wait=0) as store:
        report = store.delete("N1", b"b")
        assert (report.objects, report.freed_bytes, report.waiting_bytes) == (1, 0, length)
    with CatalogReader(small.catalog) as catalog:
        assert catalog.waiting_bytes() == length
    with small.open() as store:
        assert (spent(store), store.catalog.waiting_bytes()) == ({}, 0)
        assert free(store)[ACTIVE] == before + length
    sound(small)


@pytest.mark.parametrize("pool", [ACTIVE, "COPYPOOL1"], ids=["that holds it", "of another pool"])
def test_a_volume_that_was_away_and_a_lost_catalog(small: SmallSite, pool: str) -> None:
    """Over checkpoints of all that were told."""
    length = fill_active(small)
    hidden = [path.rename(path.with_suffix(".away")) for path in small.volumes(pool)]
    with small.open() as store:
        store.delete("N1", b"b")
        fill_directories(store)
    for path in hidden:
        path.rename(path.with_suffix(".vol"))
    take_rebuilt_catalog(small)
    with small.open() as store:
        assert store.catalog.find("N1", b"b") is None
        assert (spent(store), store.catalog.waiting_bytes()) == ({}, 0)
        assert length
    sound(small)


def test_a_lost_catalog_finds_the_space_free(small: SmallSite) -> None:
    """Before and after the checkpoint that drops the move; the region is used again meanwhile."""
    length = fill_active(small)
    with small.open() as store:
        assert store.delete("N1", b"b").freed_bytes == length
        now = free(store)[ACTIVE]
    assert rebuild_catalog(small.path, into=small.base / "once.db").in_doubt == ()
    for _ in range(2):
        sound(small)
        take_rebuilt_catalog(small)
        with small.open() as store:
            assert store.catalog.find("N1", b"b") is None
            assert (spent(store), free(store)[ACTIVE]) == ({}, now)
            fill_directories(store)
            now = free(store)[ACTIVE]


def test_an_aggregate_that_is_gone_does_not_come_back_with_a_move(
    small: SmallSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have forgotten its delete; the directory that it left before still has its move."""
    monkeypatch.setattr(
        "fanout.scribe.GATHER", 0.0
    )  # a block for each record: they are rewritten soon
    fill_active(small)
    with small.open() as store:
        (old,) = (e.aggregate for e in store.query_objects(name=b"b"))
        store.delete("N1", b"b")
        store.delete("N1", b"a", keep=0)
        directories = {v.pool: v.directory for v in store.pools.volumes()}
        for _ in range(200):
            put(store, {b"filler": b"1"}, node="N2")
        named = {
            pool: d.records[old].op for pool, d in directories.items() if d and old in d.records
        }
        assert named == {ACTIVE: Op.MOVE}
    sound(small)


@pytest.mark.parametrize(
    "where",
    ["fanout.scribe.Scribe.move_out", "fanout.catalog.Catalog.bury", "fanout.pools.PoolSet.free"],
)
def test_killed_on_the_way(small: SmallSite, where: str) -> None:
    """Before the directory says so, before the catalog does, and before the region is free: the next opening goes on."""
    length = fill_active(small)
    with small.open() as store:
        before = free(store)[ACTIVE]
    module, kind, method = where.rsplit(".", 2)
    script = f"""
import os, signal
from {module} import {kind}
from fanout.store import Store
with Store.open({str(small.path)!r}) as store:
    {kind}.{method} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    store.delete("N1", b"b")
"""
    ended = subprocess.run([sys.executable, "-P", "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    with small.open() as store:
        assert store.catalog.find("N1", b"b") is None
        assert (spent(store), free(store)[ACTIVE]) == ({}, before + length)
    sound(small)


def test_retiring_ends_the_wait(small: SmallSite) -> None:
    """The volume of the spent copy, or the one that it waits for, is lost: nothing is left of the copy."""
    for pool in (ACTIVE, "COPYPOOL2"):
        fill_active(small) if pool == ACTIVE else None
        (away,) = small.volumes(pool)
        hidden = away.rename(away.with_suffix(".away"))
        with small.open() as store:
            put(store, {b"x": b"1", b"y": b"2"})
            store.delete("N1", b"b" if pool == ACTIVE else b"x")
        retire_volume(small.path, away)
        hidden.unlink()
        with small.open() as store:
            assert (spent(store), store.catalog.waiting_bytes()) == ({}, 0)
            copies = [
                c for a in store.catalog.aggregates() for c in store.catalog.copies(a.aggregate)
            ]
            assert all(copy.places for copy in copies)


def test_room_for_deletions_that_are_not_in_the_directories_yet(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their records wait, behind a slow volume perhaps: what is deleted next must not count on the room that they will take.

    A directory that cannot hold them is never written again, and its volume is lost to every session.
    """
    monkeypatch.setattr("fanout.scribe.GATHER", threading.TIMEOUT_MAX)
    monkeypatch.setattr("fanout.deletion.BATCH_OBJECTS", 2048)
    site.size, kind = 8 << 20, ObjectKind.ARCHIVE
    site.create()
    with site.open() as store:
        for number in range(20):
            with store.session("N2", kind=kind) as session, session.begin() as txn:
                for name in range(4096):
                    txn.put(b"%d/%d" % (number, name), b"")
        listed = [entry.name for entry in store.query_objects(pool="DISKPOOL")]
        report = store.delete("N2", listed[::2], kind=kind)
        assert report.postponed
        assert "has no room" in report.postponed[0][1]
        assert report.objects + len(report.postponed) == len(listed) // 2
        states = {status.pool: status.state for status in store.query_volumes()}
        assert states["COPYPOOL1"] in ("available", "full")
        assert all(
            volume.directory.spare_bytes > 0 for volume in store.pools.volumes() if volume.directory
        )
    with site.open() as store:
        states = {status.pool: status.state for status in store.query_volumes()}
        assert states["COPYPOOL1"] in ("available", "full")
