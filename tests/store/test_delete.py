"""Deleted objects are gone from every pool, do not come back, and give their space back.

What could break: a deleted object that returns after a crash, a rebuild or with a volume that was away; a region that is used again
while a directory still names its old owner; a gap that counts what is not there any more; an aggregate that loses more than was asked.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fanout import audit_stgpool, backup_stgpool, check_store, copy_activedata, retire_volume
from fanout.catalog import Catalog, CatalogReader
from fanout.copying import Batch
from fanout.errors import (
    CatalogError,
    InterfaceError,
    ObjectNotFound,
    TransactionFailed,
    UnknownPool,
)
from fanout.format import Op
from fanout.ledger import Ledger
from fanout.rebuild import rebuild_catalog
from fanout.scribe import Scribe
from fanout.types import ObjectKind
from tests.store.histories import POOLS, SmallSite, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from fanout.copying import Copied
    from fanout.store import Store


@pytest.fixture
def small(tmp_path: Path, rng: random.Random) -> Iterator[SmallSite]:
    """A small store, made; its volumes are removed at the end."""
    site = SmallSite(tmp_path, rng)
    site.create()
    yield site
    for path in [*tmp_path.glob("*.vol"), *tmp_path.glob("sequential/*")]:
        path.unlink()


def put(store: Store, objects: Mapping[bytes, bytes], node: str = "N1") -> None:
    with store.session(node) as session:
        for attempt in session.attempts():
            with attempt as txn:
                for name, data in objects.items():
                    txn.put(name, data)


def fill(store: Store) -> None:
    for _ in range(1000):
        put(store, {b"%d" % len(names(store)): bytes(270_000)})


def names(store: Store, pool: str | None = None) -> list[bytes]:
    return [entry.name for entry in store.query_objects(pool=pool)]


def free(store: Store) -> dict[str, int]:
    return {pool.name: pool.free for pool in store.query_stgpools()}


def sound(site: SmallSite) -> None:
    """The closed store has nothing to complain of, and its volumes say what its catalog says."""
    report = check_store(site.path)
    assert report.ok, [str(problem) for problem in report.problems]
    made = rebuild_catalog(site.path, into=site.base / "again.db")
    assert (made.skipped, made.lost) == ((), ())
    with CatalogReader(site.catalog) as old, CatalogReader(made.catalog) as new:
        assert new.verify() == []
        before, after = snapshot(old), snapshot(new)
    for said in (before, after):
        # Since when a pool lacks what is active again, only the lost catalog knew.
        said["gaps"] = sorted(gap[:4] + gap[5:] for gap in said["gaps"])
        # Those of one pool in their order; spare ones of two pools may be made at the same time.
        said["volumes"].sort(key=lambda one: one.pool)
    assert [question for question in before if before[question] != after[question]] == []
    (site.base / "again.db").unlink()


def take_rebuilt_catalog(site: SmallSite) -> None:
    """The catalog was lost."""
    site.catalog.unlink()
    assert rebuild_catalog(site.path).skipped == ()


# ---- what is deleted -----------------------------------------------------------------------------------


def test_a_whole_aggregate_gives_its_space_back(small: SmallSite) -> None:
    with small.open() as store:
        before = free(store)
        put(store, {b"a": b"1" * 5000, b"b": b"2" * 5000})
        taken = sum(before.values()) - sum(free(store).values())
        report = store.delete("N1", [b"a", "b"])
        assert (report.objects, report.object_bytes, report.aggregates) == (2, 10000, 1)
        assert (report.freed_bytes, report.waiting_bytes, report.postponed) == (taken, 0, ())
        assert free(store) == before
        assert names(store) == []
        assert (store.query_occupancy(), store.query_gaps()) == ([], [])
        with pytest.raises(ObjectNotFound):
            store.get("N1", b"a")
    sound(small)


def test_a_part_of_an_aggregate_is_gone_and_the_rest_stays(small: SmallSite) -> None:
    """Everywhere: contents, counts, repairs. The space comes back with the last member."""
    with small.open() as store:
        before = free(store)
        put(store, {b"a": b"1" * 5000, b"b": b"2" * 700, b"c": b"3" * 9000})
        full = free(store)
        report = store.delete("N1", b"b")
        assert (report.objects, report.aggregates, report.freed_bytes) == (1, 0, 0)
        assert free(store) == full
        for pool in POOLS:
            if pool != "TAPEPOOL":
                assert names(store, pool) == [b"a", b"c"]
        assert {(o.objects, o.bytes) for o in store.query_occupancy()} == {(2, 14000)}
        assert store.get("N1", b"c").read() == b"3" * 9000
        assert backup_stgpool(store, "DISKPOOL", "COPYPOOL1").copied_objects == 0
    sound(small)
    with small.open() as store:
        assert store.delete("N1", [b"a"]).aggregates == 0
        assert store.delete("N1", [b"c"]).aggregates == 1
        assert free(store) == before
    sound(small)


def test_the_newest_that_is_left_is_active(small: SmallSite) -> None:
    """Also in the active-data pool, which gets a gap if it never had that version."""
    with small.open() as store:
        put(store, {b"a": b"old", b"x": b"x"})
    with small.locked("ACTIVEDATAPOOL"), small.open(lock_wait=0) as store:
        put(store, {b"b": b"first"})
    with small.open() as store:
        put(store, {b"a": b"new", b"b": b"second"})
        copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL")
        assert store.query_gaps() == []
        store.delete("N1", [b"a", b"b"])
        assert {e.name for e in store.query_objects(active_only=True)} == {b"a", b"b", b"x"}
        assert store.get("N1", b"a").read() == b"old"
        (gap,) = store.query_gaps()
        assert (gap.pool, gap.objects, gap.bytes) == ("ACTIVEDATAPOOL", 1, 5)
    sound(small)
    with small.open() as store:
        assert copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL").copied_objects == 1
        assert store.get("N1", b"b", pool="ACTIVEDATAPOOL").read() == b"first"
    sound(small)


def test_what_was_active_when_it_was_deleted(small: SmallSite) -> None:
    """Another caller deletes what is newer than a version that is just being deleted: it was active, and what is older is now.

    The active-data pool never had that; nobody would have noticed the gap.
    """
    with small.locked("ACTIVEDATAPOOL"), small.open(lock_wait=0) as store:
        put(store, {b"a": b"first"})
    with small.open() as store:
        put(store, {b"a": b"second"})
        put(store, {b"a": b"third"})
        copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL")
        second = sorted(entry.version for entry in store.query_objects())[1]
        steady = store.ledger.steady
        before = [b"a"]

        class OthersFirst:
            """Whoever waits for the lock is overtaken once."""

            def __enter__(self) -> None:
                while before:
                    assert store.delete("N1", before.pop()).objects == 1
                steady.acquire()

            def __exit__(self, *_: object) -> None:
                steady.release()

        store.ledger.steady = OthersFirst()  # type: ignore[assignment]
        assert store.delete("N1", b"a", version=second).objects == 1
        (left,) = store.query_objects(active_only=True)
        assert store.get("N1", b"a").read() == b"first"
        (gap,) = store.query_gaps()
        assert (gap.pool, gap.aggregate, gap.objects) == ("ACTIVEDATAPOOL", left.aggregate, 1)
    sound(small)


def test_expiration_keeps_the_newest(small: SmallSite) -> None:
    with small.open() as store:
        for number in range(5):
            put(store, {b"a": b"a%d" % number, b"b": b"b%d" % number})
        put(store, {b"a": b"of another"}, node="N2")
        preview = store.delete("N1", None, keep=2, preview=True)
        assert (preview.objects, preview.freed_bytes, len(names(store))) == (6, 0, 11)
        assert store.delete("N1", None, keep=2).objects == 6
        left = [store.get(e.node, e.name, version=e.version).read() for e in store.query_objects()]
        assert left == [b"a3", b"b3", b"a4", b"b4", b"of another"]
        assert store.delete("N1", None, keep=2).objects == 0
        assert store.delete("N1", "a", keep=0).objects == 2
        assert names(store) == [b"b", b"b", b"a"]
    sound(small)


def test_one_version(small: SmallSite) -> None:
    with small.open() as store:
        for data in (b"1", b"2", b"3"):
            put(store, {b"a": data})
        first, second, third = [e.version for e in store.query_objects()]
        assert store.delete("N1", b"a", version=second).objects == 1
        assert [e.version for e in store.query_objects()] == [first, third]
        assert store.get("N1", b"a").read() == b"3"
        with pytest.raises(ObjectNotFound, match=f"version {second}"):
            store.delete("N1", b"a", version=second)


def test_a_mistake_deletes_nothing(small: SmallSite) -> None:
    """Each error names what is wrong; a name that is not there stops the others as well."""
    with small.open() as store:
        put(store, {b"a": b"1"})
        with pytest.raises(
            ObjectNotFound, match=r"N1 has no backup object 'no'.*nothing was deleted"
        ):
            store.delete("N1", [b"a", b"no"])
        with pytest.raises(ObjectNotFound, match="archive"):
            store.delete("N1", b"a", kind=ObjectKind.ARCHIVE)
        with pytest.raises(UnknownPool, match="N1"):
            store.delete("N9", b"a")
        with pytest.raises(InterfaceError, match="keep=-1"):
            store.delete("N1", b"a", keep=-1)
        with pytest.raises(InterfaceError, match="which version goes"):
            store.delete("N1", b"a", keep=1, version=1)
        with pytest.raises(InterfaceError, match="how many versions"):
            store.delete("N1", None)
        assert names(store) == [b"a"]
    with small.open(read_only=True) as store:
        with pytest.raises(InterfaceError, match="read-only"):
            store.delete("N1", b"a")
        assert store.delete("N1", b"a", preview=True).objects == 1


def test_the_name_can_be_used_again(small: SmallSite) -> None:
    with small.open() as store:
        put(store, {b"a": b"before"})
        (gone,) = store.query_objects()
        store.delete("N1", b"a")
        put(store, {b"a": b"after"})
        (entry,) = store.query_objects()
        assert entry.version > gone.version
        assert store.get("N1", b"a").read() == b"after"
    sound(small)
    take_rebuilt_catalog(small)
    with small.open() as store:
        assert store.get("N1", b"a").read() == b"after"


def test_after_all_is_deleted_as_much_fits_as_at_first(small: SmallSite) -> None:
    """Many times over: no region, no room in a directory is lost on the way."""
    with small.open() as store:
        before = free(store)
        counts = []
        for _ in range(3):
            with pytest.raises(TransactionFailed, match="no room for"):
                fill(store)
            counts.append(len(names(store)))
            assert store.delete("N1", None, keep=0).postponed == ()
            assert names(store) == []
        assert counts[0] > 20
        # Space is used round the volume: where the round begins a region may not fit, one on each volume.
        assert min(counts) >= counts[0] - 16
        assert {p: free(store)[p] for p in before if p != "TAPEPOOL"} == {
            p: before[p] for p in before if p != "TAPEPOOL"
        }
    sound(small)


# ---- coming back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_histories_with_deletions(small: SmallSite, seed: int) -> None:
    """Transactions, deletions, repairs, pools that are away: every byte is there, and a rebuilt catalog is the catalog."""
    small.rng, small.deletes = random.Random(seed), 0.6
    small.live(4)
    with small.open() as store:
        small.read_everything(store)
        assert store.catalog.waiting_bytes() == 0
    sound(small)
    take_rebuilt_catalog(small)
    small.live(1)
    with small.open() as store:
        small.read_everything(store)
    sound(small)


def test_a_volume_that_was_away_is_told(small: SmallSite) -> None:
    """Its regions wait for it; when it comes back it takes the deletes, and then they are free."""
    with small.open() as store:
        before = free(store)
        put(store, {b"a": b"1" * 5000})
        put(store, {b"b": b"2" * 5000, b"c": b"3"})
    with small.locked("COPYPOOL1"), small.open(lock_wait=0) as store:
        report = store.delete("N1", [b"a", b"b"])
        assert (report.objects, report.aggregates) == (2, 1)
        assert report.waiting_bytes is not None
        assert 0 < report.waiting_bytes < report.freed_bytes
        put(store, {b"new": b"4" * 5000})
    with small.open() as store:
        assert store.catalog.waiting_bytes() == 0
        assert names(store, "COPYPOOL1") == [b"c"]
        backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        store.delete("N1", None, keep=0)
        assert free(store) == before
    sound(small)


@pytest.mark.parametrize("back", [True, False], ids=["with it", "without it"])
def test_a_volume_that_was_away_and_a_lost_catalog(small: SmallSite, back: bool) -> None:
    """The volumes that took the delete say so, until it has been told as well: over several losses of the catalog, and checkpoints."""
    with small.open() as store:
        put(store, {b"a": b"1" * 5000, b"b": b"2"})
        put(store, {b"c": b"3"})
    (away,) = small.volumes("COPYPOOL2")
    hidden = away.with_name("hidden")
    away.rename(hidden)
    with small.open() as store:
        store.delete("N1", [b"a", b"b", b"c"])
        put(store, {b"d": b"4"})
        store.delete("N1", b"d")
    if not back:
        small.catalog.unlink()
        report = rebuild_catalog(small.path)
        assert [skipped.path for skipped in report.skipped] == [str(away)]
        with small.open() as store:
            assert names(store) == []
            fill_directories(store)
    hidden.rename(away)
    take_rebuilt_catalog(small)
    with small.open() as store:
        assert [name for name in names(store) if name in (b"a", b"b", b"c", b"d")] == []
        assert store.catalog.waiting_bytes() == 0
    sound(small)


def test_a_rebuild_tells_a_volume_that_was_away(small: SmallSite) -> None:
    """Of a part of an aggregate: the others were told, and then they and the catalog are lost, one after the other."""
    with small.open() as store:
        put(store, {b"a": b"1" * 5000, b"b": b"2"}, node="N2")
    with small.locked("COPYPOOL1"), small.open(lock_wait=0) as store:
        store.delete("N2", b"b")
    take_rebuilt_catalog(small)
    small.open().close()
    sound(small)
    for pool in ("DISKPOOL", "COPYPOOL2"):
        (path,) = small.volumes(pool)
        path.unlink()
    small.catalog.unlink()
    rebuild_catalog(small.path)
    with small.open() as store:
        assert names(store) == [b"a"]


def test_a_record_that_never_came(small: SmallSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deleted before its volumes have the record of its commit: the room that was kept for that is not kept for ever."""
    with small.open() as store:
        directories = [v.directory for v in store.pools.volumes() if v.directory]
        before = [directory.spare_bytes for directory in directories]
        with monkeypatch.context() as patch:
            patch.setattr(Scribe, "_write", lambda *_: None)
            put(store, {b"a": b"1"})
            assert [directory.spare_bytes for directory in directories] != before
            assert store.delete("N1", b"a").freed_bytes > 0
        assert [directory.spare_bytes for directory in directories] == before
    sound(small)


def fill_directories(store: Store) -> None:
    """Until every directory that is written to has had a checkpoint."""
    directories = [volume.directory for volume in store.pools.volumes()]
    first = [d._live.generation for d in directories if d]
    for number in range(400):
        put(store, {b"filler": b"%d" % number})
        if number % 3 == 0:
            store.delete("N1", b"filler", keep=0)
        now = [d._live.generation for d in directories if d]
        if sum(a < b for a, b in zip(first, now, strict=True)) >= 3:
            return
    raise AssertionError("no checkpoint was made")


def test_what_no_volume_can_be_told_is_not_deleted(small: SmallSite) -> None:
    """All that hold it are away: then a lost catalog would bring it back."""
    with small.open() as store:
        put(store, {b"a": b"1"}, node="N2")
    with (
        small.locked("DISKPOOL"),
        small.locked("COPYPOOL1"),
        small.locked("COPYPOOL2"),
        small.open(lock_wait=0) as store,
    ):
        report = store.delete("N2", b"a")
        ((name, reason),) = report.postponed
        assert (report.objects, name) == (0, b"a")
        assert "no volume that holds it can be written" in reason
        assert names(store) == [b"a"]


def test_a_retired_volume_waits_for_nothing(small: SmallSite) -> None:
    with small.open() as store:
        put(store, {b"a": b"1" * 5000})
    (away,) = small.volumes("COPYPOOL2")
    away.rename(away.with_name("hidden"))
    with small.open() as store:
        assert store.delete("N1", b"a").waiting_bytes
    assert retire_volume(small.path, away).objects == 0
    with small.open() as store:
        assert store.catalog.waiting_bytes() == 0
        assert store.catalog.dead() == []
    away.with_name("hidden").unlink()


def test_killed_between_the_commit_and_the_directories(small: SmallSite) -> None:
    """The catalog has it, no directory has: the next opening tells them all, and then the space is free."""
    with small.open() as store:
        before = free(store)
        put(store, {b"a": b"1" * 5000})
        put(store, {b"b": b"2" * 5000, b"c": b"3"})
    script = f"""
import os, signal
from fanout.scribe import Scribe
from fanout.store import Store
with Store.open({str(small.path)!r}) as store:
    Scribe._write = lambda self, entries: os.kill(os.getpid(), signal.SIGKILL) if entries else None
    store.delete("N1", [b"a", b"b"])
"""
    ended = subprocess.run([sys.executable, "-P", "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    with small.open() as store:
        assert names(store) == [b"c"]
        assert store.catalog.waiting_bytes() == 0
        store.delete("N1", b"c")
        assert free(store) == before
    sound(small)


def test_killed_between_the_directories_and_the_catalog(small: SmallSite) -> None:
    """The directories have it for good, and the catalog still keeps the regions."""
    with small.open() as store:
        before = free(store)
        put(store, {b"a": b"1" * 5000})
    script = f"""
import os, signal
from fanout.catalog import Catalog
from fanout.store import Store
with Store.open({str(small.path)!r}) as store:
    Catalog.bury = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    store.delete("N1", b"a")
"""
    ended = subprocess.run([sys.executable, "-P", "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    with CatalogReader(small.catalog) as catalog:
        assert catalog.waiting_bytes() > 0
    with small.open() as store:
        assert names(store) == []
        assert free(store) == before
    sound(small)


def test_a_catalog_that_fails_after_the_commit(
    small: SmallSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was deleted is told as deleted; only its space comes back later. A client that hears of an error believes it is there."""

    def fail(*_: object) -> None:
        raise CatalogError("catalog.db", "disk I/O error")

    with small.open() as store:
        before = free(store)
        put(store, {b"a": b"1" * 5000})
        put(store, {b"b": b"2" * 5000})
        with monkeypatch.context() as patch:
            patch.setattr(Catalog, "bury", fail)
            report = store.delete("N1", b"a")
            assert (report.objects, report.freed_bytes, report.waiting_bytes) == (1, 0, None)
        with monkeypatch.context() as patch:
            patch.setattr(Catalog, "waiting_bytes", fail)
            report = store.delete("N1", b"b")
        assert (report.objects, report.waiting_bytes) == (1, None)
        assert report.freed_bytes > 0
        assert names(store) == []
    with small.open() as store:
        assert free(store) == before
    sound(small)


# ---- beside others -------------------------------------------------------------------------------------


def test_a_reader_gets_the_right_bytes_or_an_error(small: SmallSite) -> None:
    """Its object is deleted while it reads, and the space is used again, as often as it takes."""
    with small.open() as store:
        put(store, {b"large": small.rng.randbytes(280_000)})
        reader = store.get("N1", b"large")
        store.delete("N1", b"large")
        for _ in range(200):
            put(store, {b"other": small.rng.randbytes(280_000)})
            store.delete("N1", b"other")
        with pytest.raises(ObjectNotFound, match="was deleted while it was read"):
            reader.read()


def test_an_audit_calls_nothing_damaged_that_was_deleted_meanwhile(small: SmallSite) -> None:
    """It has asked the catalog what an aggregate holds, and comes to it when others lie there."""
    with small.open() as store:
        put(store, {b"first": small.rng.randbytes(20_000)})
        put(store, {b"second": small.rng.randbytes(280_000)})

        def overtake(done: int, total: int) -> None:
            if b"second" in names(store):
                store.delete("N1", b"second")
                for _ in range(30):
                    put(store, {b"other": small.rng.randbytes(280_000)})
                    store.delete("N1", b"other")

        report = audit_stgpool(store, "COPYPOOL1", on_progress=overtake)
        assert (report.objects, report.damaged, report.unasked) == (2, (), ())


def test_an_interrupt_behind_the_commit(small: SmallSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of an active-data pool holds nothing any more: the next deletion, whatever it deletes, gives its space back."""
    with small.locked("ACTIVEDATAPOOL"), small.open(lock_wait=0) as store:
        put(store, {b"a": b"1" * 5000, b"b": b"2" * 5000})
    with small.open() as store:
        put(store, {b"b": b"3" * 5000, b"c": b"4" * 5000})
        assert copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL").copied_objects == 1
        assert store.delete("N1", b"c").waiting_bytes == 0  # nothing is left to be looked for
        hand_in = Ledger._hand_in

        def interrupted(*arguments: Any) -> int:
            hand_in(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "_hand_in", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.delete("N1", b"a")
        assert store.catalog.waiting_bytes() > 0
        assert store.delete("N1", b"b").waiting_bytes == 0
        assert store.catalog.waiting_bytes() == 0
    sound(small)


def test_deletes_are_forgotten_when_everybody_has_them(small: SmallSite) -> None:
    """Not before: a checkpoint of a volume keeps them as long as another volume is away."""
    with small.open() as store:
        put(store, {b"a": b"1"})
        (entry,) = store.query_objects()
    with small.locked("COPYPOOL2"), small.open(lock_wait=0) as store:
        store.delete("N1", b"a")
        fill_directories(store)
        assert deletes(store, entry.aggregate) >= {"DISKPOOL", "ACTIVEDATAPOOL"}
    with small.open() as store:
        fill_directories(store)
        assert len(deletes(store, entry.aggregate)) < 3
    sound(small)


def deletes(store: Store, aggregate: bytes) -> set[str]:
    """Pools whose directories say that an aggregate was deleted."""
    return {
        volume.pool
        for volume in store.pools.volumes()
        if volume.directory
        and aggregate in volume.directory.records
        and volume.directory.records[aggregate].op is Op.DELETE
    }


def test_a_repair_does_not_bring_back(small: SmallSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deleted while it is copied: a member of an aggregate, and the whole of another."""
    with small.locked("COPYPOOL1"), small.open(lock_wait=0) as store:
        put(store, {b"a": b"1" * 5000, b"b": b"2" * 5000})
        put(store, {b"c": b"3" * 5000})
    with small.open() as store:
        finish = Batch.finish

        def meanwhile(batch: Batch) -> Sequence[Copied]:
            done = finish(batch)
            monkeypatch.setattr(Batch, "finish", finish)
            store.delete("N1", [b"a", b"c"])
            return done

        monkeypatch.setattr(Batch, "finish", meanwhile)
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert report.failed == ()
        assert names(store) == names(store, "COPYPOOL1") == [b"b"]
        assert store.query_gaps() == []
        store.delete("N1", b"b")
        assert all(status.live == 0 for status in store.query_volumes())
    sound(small)
