"""Repairs beyond the scenario: damaged sources, subsets, replaced members, runs side by side, killed runs.

What could break: a repair that believes a damaged source, stops at the first bad object, brings back what was replaced, copies
twice, or calls a pool whole that is not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from fanout import backup_stgpool, check_store, copy_activedata, rebuild_catalog
from fanout.errors import CatalogError, PoolUnavailable
from fanout.store import Store
from tests.faults.kernel import wait_until
from tests.store.conftest import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from fanout.reconcile import ReconcileReport
    from tests.store.conftest import Site


def put(store: Store, objects: dict[bytes, bytes], node: str = "N1") -> None:
    """One transaction."""
    with store.session(node) as session:
        for attempt in session.attempts():
            with attempt as txn:
                for name, data in objects.items():
                    txn.put(name, data)


def with_gap(site: Site, pool: str, *, objects: int = 20, size: int = 50_000) -> dict[bytes, bytes]:
    """A store whose `pool` was locked by somebody while one transaction was stored."""
    made = {b"%03d" % n: site.rng.randbytes(size + n) for n in range(objects)}
    site.create()
    with site.locked(pool), site.open(lock_wait=0) as store:
        put(store, made)
    return made


def put_without(site: Site, pool: str, objects: dict[bytes, bytes]) -> None:
    """One transaction each, while somebody has `pool` locked."""
    with site.locked(pool), site.open(lock_wait=0) as store:
        for name, data in objects.items():
            put(store, {name: data})


def check(store: Store, pool: str, objects: dict[bytes, bytes]) -> None:
    """Exactly these active objects are in the pool, with the right bytes."""
    held = {entry.name for entry in store.query_objects(pool=pool, active_only=True)}
    assert held == set(objects)
    for name, data in objects.items():
        assert store.get("N1", name, pool=pool).read() == data


def test_a_damaged_source_is_passed_over(site: Site) -> None:
    """The primary's copy of one object is wrong: the repair reads another pool's, and all is there."""
    objects = with_gap(site, "COPYPOOL1")
    assert site.flip("DISKPOOL", objects[b"007"]) == 1
    with site.open() as store:
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert (report.copied_objects, report.failed, report.gaps_left) == (20, (), 0)
        check(store, "COPYPOOL1", objects)


def test_what_no_copy_has_is_reported_by_name(site: Site) -> None:
    """Two objects are wrong in every copy: the others are copied, these are named, and the gap stays for them alone."""
    # Larger than a block of the sums, so that one damaged block touches few objects.
    site.size = 64 * MIB
    site.object_limit = 4 * MIB
    objects = with_gap(site, "COPYPOOL1", objects=12, size=3 * MIB)
    for pool in ("DISKPOOL", "COPYPOOL2", "ACTIVEDATAPOOL"):
        for name in (b"004", b"009"):
            assert site.flip(pool, objects[name][MIB : MIB + 4096]) == 1
    with site.open() as store:
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert {name for name, _ in report.failed} == {b"004", b"009"}
        assert all("expected" in reason for _, reason in report.failed)
        assert (report.copied_objects, report.gaps_left) == (10, 1)
        good = {name: data for name, data in objects.items() if name not in (b"004", b"009")}
        check(store, "COPYPOOL1", good)
        (gap,) = store.query_gaps()
        assert gap.missing is not None
        assert list(gap.missing) == [4, 9]
        assert gap.objects == 2
        assert gap.reason.startswith("not repaired")
        again = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert (again.copied_objects, again.skipped_objects, len(again.failed)) == (0, 10, 2)
    with site.open() as store:
        check(store, "COPYPOOL1", good)
        # Sent again by the client: new versions, and only the damaged old ones are still missing.
        put(store, {name: objects[name] for name in (b"004", b"009")})
        check(store, "COPYPOOL1", objects)
        assert [gap.objects for gap in store.query_gaps()] == [2]


def test_one_bad_aggregate_costs_its_batch_little(site: Site) -> None:
    """The others are written again in halves, not one by one: each is a flush of its own and a commit."""
    site.create()
    objects = {b"%02d" % n: site.rng.randbytes(5000) for n in range(64)}
    put_without(site, "COPYPOOL1", objects)
    for pool in ("DISKPOOL", "COPYPOOL2", "ACTIVEDATAPOOL"):
        assert site.flip(pool, objects[b"41"]) == 1
    with site.open() as store:
        before = store.catalog.last_csn()
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert [name for name, _ in report.failed] == [b"41"]
        assert (report.copied_objects, report.gaps_left) == (63, 1)
        assert store.catalog.last_csn() - before == 7  # 32, 16, 8, 4, 2, 1, and the bad one's gap
        del objects[b"41"]
        check(store, "COPYPOOL1", objects)


def test_active_data_gets_only_what_is_active(site: Site) -> None:
    """Every other object was replaced before the repair: runs of the others are copied, and nothing more."""
    objects = with_gap(site, "ACTIVEDATAPOOL", objects=30)
    with site.open() as store:
        replaced = {name: site.rng.randbytes(10) for name in list(objects)[::2]}
        put(store, replaced)
        (gap,) = store.query_gaps()
        assert (gap.pool, gap.objects) == ("ACTIVEDATAPOOL", 15)
        report = copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL")
        assert (report.copied_objects, report.skipped_objects, report.gaps_left) == (15, 15, 0)
        check(store, "ACTIVEDATAPOOL", objects | replaced)
        assert len(list(store.query_objects(pool="ACTIVEDATAPOOL"))) == 30
        assert copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL").copied_objects == 0
    with site.open() as store:
        check(store, "ACTIVEDATAPOOL", objects | replaced)
        # The replaced ones are replaced again: what is held of the first transaction stays readable by version.
        put(store, replaced)
        first = next(iter(store.query_objects(name=b"001", pool="ACTIVEDATAPOOL")))
        assert store.get("N1", b"001", version=first.version, pool="ACTIVEDATAPOOL").read()


def test_several_domains_with_active_data_pools_of_their_own(site: Site) -> None:
    """Rule R19, in sessions, repairs and gaps: one domain's pool is no gap of another's, and overflow takes the destination's list along."""
    site.extra = """
[pools.AD2]
type = "active-data"
device_class = "disk"
volumes = [{ path = "AD2.vol", size = "16 MiB" }]
[domains.OTHER]
destination = "DISKPOOL"
active_destinations = ["AD2"]
[domains.BOTH]
destination = "DISKPOOL"
active_destinations = ["AD2", "ACTIVEDATAPOOL"]
[nodes.N3]
domain = "OTHER"
[nodes.N4]
domain = "BOTH"
"""
    site.configure()
    text = site.path.read_text()
    site.path.write_text(
        text.replace('pools = ["ACTIVEDATAPOOL"]', 'pools = ["ACTIVEDATAPOOL", "AD2"]')
    )
    Store.create(site.path)
    allowed = {"N1": ("ACTIVEDATAPOOL",), "N2": (), "N3": ("AD2",), "N4": ("ACTIVEDATAPOOL", "AD2")}
    objects = {b"small": b"s" * 1000, b"large": bytes(site.object_limit + 1)}
    with site.open() as store:
        for node in allowed:
            put(store, objects, node)
        assert store.query_gaps() == []
    with ExitStack() as locked:
        for pool in ("ACTIVEDATAPOOL", "AD2"):
            locked.enter_context(site.locked(pool))
        with site.open(lock_wait=0) as store:
            for node in allowed:
                put(store, objects, node)
            found = {(gap.node, gap.primary, gap.pool, gap.objects) for gap in store.query_gaps()}
            demanded = {
                (node, primary, pool, 1)
                for node, pools in allowed.items()
                for pool in pools
                for primary in ("DISKPOOL", "TAPEPOOL")
            }
            assert found == demanded
    with site.open() as store:
        for pool in ("AD2", "ACTIVEDATAPOOL"):
            for primary in ("DISKPOOL", "TAPEPOOL"):
                report = copy_activedata(store, primary, pool)
                assert (report.copied_objects, report.failed, report.gaps_left) == (2, (), 0)
        held = {(entry.node, entry.pool) for entry in store.query_occupancy()}
        secondaries = {"AD2", "ACTIVEDATAPOOL"}
        assert {pair for pair in held if pair[1] in secondaries} == {
            (node, pool) for node, pools in allowed.items() for pool in pools
        }
    assert check_store(site.path).problems == ()


def test_nodes_that_may_not_use_the_pool_are_left_alone(site: Site) -> None:
    """Rule R19 holds for repairs, too."""
    site.create()
    with site.open() as store:
        put(store, {b"X": b"of N2"}, "N2")
        report = copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL")
        assert (report.copied_objects, report.skipped_objects) == (0, 0)


def test_a_gap_of_a_node_that_may_not_use_the_pool_any_more_stays(site: Site) -> None:
    """The run neither copied it (rule R19) nor left the gap: what the rules had demanded was missing, and nothing said so."""
    objects = with_gap(site, "ACTIVEDATAPOOL", objects=2)
    allowed = site.path.read_text()
    site.path.write_text(allowed.replace('active_destinations = ["ACTIVEDATAPOOL"]', ""))
    with site.open() as store:
        report = copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL")
        assert (report.copied_objects, report.gaps_closed, report.gaps_left) == (0, 0, 1)
        assert {name for name, _ in report.failed} == set(objects)
        assert "no domain allows it to N1" in report.failed[0][1]
    assert check_store(site.path).problems == ()
    site.path.write_text(allowed)
    with site.open() as store:
        report = copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL")
        assert (report.copied_objects, report.gaps_closed, report.gaps_left) == (2, 1, 0)
        check(store, "ACTIVEDATAPOOL", objects)


def test_a_gap_whose_objects_were_all_replaced_goes(site: Site) -> None:
    """Nothing of it counts any more; the run takes its row away."""
    objects = with_gap(site, "ACTIVEDATAPOOL", objects=3)
    with site.open() as store:
        put(store, objects)
        assert store.query_gaps() == []
        assert len(store.catalog.gaps(include_empty=True)) == 1
        report = copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL")
        assert (report.copied_objects, report.gaps_closed) == (0, 1)
        assert store.catalog.gaps(include_empty=True) == []


def test_what_was_replaced_while_it_was_copied_does_not_come_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading and committing a new version arrives: the old one is not marked present."""
    objects = with_gap(site, "ACTIVEDATAPOOL", objects=4)
    with site.open() as store:
        from fanout.copying import Batch

        finish = Batch.finish

        def late(batch: Batch) -> object:
            put(store, {b"002": b"new"})
            return finish(batch)

        monkeypatch.setattr(Batch, "finish", late)
        report = copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL")
        assert report.copied_objects == 3
        check(store, "ACTIVEDATAPOOL", objects | {b"002": b"new"})
        assert [e.active for e in store.query_objects(name=b"002", pool="ACTIVEDATAPOOL")] == [True]


def test_runs_side_by_side(site: Site) -> None:
    """Two into the same pool and one into another, beside a client that goes on storing: all end complete."""
    site.create()
    objects = {b"%03d" % n: site.rng.randbytes(40_000) for n in range(40)}
    with site.locked("COPYPOOL1"), site.locked("COPYPOOL2"), site.open(lock_wait=0) as store:
        for name, data in objects.items():
            put(store, {name: data})
    with site.open() as store:
        reports: list[ReconcileReport] = []

        def run(pool: str) -> None:
            reports.append(backup_stgpool(store, "DISKPOOL", pool))

        threads = [
            threading.Thread(target=run, args=(pool,))
            for pool in ("COPYPOOL1", "COPYPOOL1", "COPYPOOL2")
        ]
        for thread in threads:
            thread.start()
        more = {b"more": b"stored meanwhile"}
        put(store, more)
        for thread in threads:
            thread.join(60)
        assert sum(report.copied_objects for report in reports) == 80
        assert all(report.gaps_left == 0 for report in reports)
        for pool in ("COPYPOOL1", "COPYPOOL2"):
            check(store, pool, objects | more)
        assert store.catalog.verify() == []


@pytest.mark.parametrize("batch", [1, 64])
def test_a_full_destination(site: Site, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """What fits is copied, also behind what does not, and also of one batch; the rest is named; nothing is reserved for ever."""
    monkeypatch.setattr("fanout.reconcile.BATCH_AGGREGATES", batch)
    site.sizes["COPYPOOL1"] = 16 * MIB
    site.object_limit = 4 * MIB
    site.create()
    objects = {b"%02d" % n: site.rng.randbytes(3 * MIB) for n in range(8)}
    objects[b"small"] = site.rng.randbytes(1000)
    put_without(site, "COPYPOOL1", objects)
    with site.open() as store:
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert report.copied_objects == 6
        assert {name for name, _ in report.failed} == {b"05", b"06", b"07"}
        assert "COPYPOOL1" in report.failed[0][1]
        assert report.gaps_left == 3
        (volume,) = [v for v in store.query_volumes() if v.pool == "COPYPOOL1"]
        assert (volume.reserved, volume.draining, volume.quarantined) == (0, 0, 0)
        again = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert (again.copied_objects, len(again.failed), again.gaps_left) == (0, 3, 3)


def test_a_source_that_is_missing_altogether(site: Site) -> None:
    """The primary and all other copies are away: everything is named, nothing is invented."""
    objects = with_gap(site, "COPYPOOL1", objects=3)
    with (
        site.locked("DISKPOOL"),
        site.locked("COPYPOOL2"),
        site.locked("ACTIVEDATAPOOL"),
        site.open(lock_wait=0) as store,
    ):
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert report.copied_objects == 0
        assert {name for name, _ in report.failed} == set(objects)
        assert "locked" in report.failed[0][1]
        with pytest.raises(PoolUnavailable, match="locked"):
            store.get("N1", b"000").read()


KILLED = """
import sys
from fanout import backup_stgpool
from fanout.store import Store
import fanout.reconcile as module
module.BATCH_AGGREGATES = 2
with Store.open(sys.argv[1]) as store:
    print("open", flush=True)
    backup_stgpool(store, "DISKPOOL", "COPYPOOL1", on_progress=lambda done, total: print(done, flush=True))
    print("done", flush=True)
"""


def test_a_killed_run_goes_on_where_it_stopped(site: Site) -> None:
    """SIGKILL in the middle: what was committed stays, nothing is half there, the next run copies the rest."""
    site.create()
    objects = {b"%03d" % n: site.rng.randbytes(60_000) for n in range(120)}
    put_without(site, "COPYPOOL1", objects)
    copied = 0
    for after in (10, 40):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, os.fspath(site.path)], stdout=subprocess.PIPE
        ) as run:
            assert run.stdout is not None
            for _ in range(after):
                run.stdout.readline()
            run.send_signal(signal.SIGKILL)
        with site.open(read_only=True) as store:
            there = {e.name: objects[e.name] for e in store.query_objects(pool="COPYPOOL1")}
            check(store, "COPYPOOL1", there)
            assert len(there) + sum(gap.objects for gap in store.query_gaps()) == len(objects)
            assert len(there) >= copied
            copied = len(there)
    with site.open() as store:
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert report.copied_objects + copied == len(objects)
        check(store, "COPYPOOL1", objects)
        assert store.query_gaps() == []


def test_progress_and_speed(site: Site) -> None:
    """Progress ends at the total; many small transactions go in few commits, not one by one."""
    site.create()
    put_without(site, "COPYPOOL1", {b"%d" % number: b"x" * 1000 for number in range(100)})
    with site.open() as store:
        seen: list[tuple[int, int]] = []
        before, began = store.catalog.last_csn(), time.monotonic()
        backup_stgpool(store, "DISKPOOL", "COPYPOOL1", on_progress=lambda *step: seen.append(step))
        assert seen[-1] == (100_000, 100_000)
        assert store.catalog.last_csn() - before == 1
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("pool", ["COPYPOOL1", "ACTIVEDATAPOOL"])
def test_members_that_fit_into_a_nearly_full_pool(site: Site, pool: str) -> None:
    """One member of a transaction is too large for what is left: the others are copied, it alone is named, and stays the one gap."""
    site.sizes[pool] = 16 * MIB
    site.object_limit = 20 * MIB
    site.create()
    objects = {b"%02d" % n: site.rng.randbytes(300_000 + n) for n in range(9)}
    objects[b"04"] = site.rng.randbytes(18 * MIB)
    with site.locked(pool), site.open(lock_wait=0) as store:
        put(store, objects)
    run = backup_stgpool if pool == "COPYPOOL1" else copy_activedata
    fitting = {name: data for name, data in objects.items() if name != b"04"}
    with site.open() as store:
        report = run(store, "DISKPOOL", pool)
        assert report.copied_objects == 8
        assert [name for name, _ in report.failed] == [b"04"]
        assert pool in report.failed[0][1]
        check(store, pool, fitting)
        again = run(store, "DISKPOOL", pool)
        assert (again.copied_objects, len(again.failed), again.skipped_objects) == (0, 1, 8)
        (gap,) = store.query_gaps()
        assert (gap.pool, gap.objects, gap.bytes) == (pool, 1, 18 * MIB)
        assert "no room" in gap.reason
    assert check_store(site.path).problems == ()
    rebuild_catalog(site.path, force=True)
    with site.open() as store:
        check(store, pool, fitting)
        (gap,) = store.query_gaps()
        assert (gap.pool, gap.objects) == (pool, 1)
    assert check_store(site.path).problems == ()


def test_what_is_damaged_keeps_its_reason_beside_what_fits_without_it(site: Site) -> None:
    """Of a transaction that is too large the halves go in, the first without what no copy can give. Breaks if the second one's commit says another reason for that."""
    site.sizes["COPYPOOL1"] = 16 * MIB
    site.object_limit = 20 * MIB
    site.create()
    objects = {b"%02d" % n: site.rng.randbytes(MIB) for n in range(9)}
    objects[b"00"] = site.rng.randbytes(9 * MIB)
    with site.locked("COPYPOOL1"), site.open(lock_wait=0) as store:
        put(store, objects)
    for pool in ("DISKPOOL", "COPYPOOL2", "ACTIVEDATAPOOL"):
        assert site.flip(pool, objects[b"00"][4 * MIB : 4 * MIB + 4096]) == 1
    with site.open() as store:
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert report.copied_objects == 8
        ((name, reason),) = report.failed
        assert name == b"00"
        (gap,) = store.query_gaps()
        assert (gap.objects, gap.reason) == (1, f"not repaired: {reason}")


def test_members_of_many_sizes_into_a_full_pool(site: Site) -> None:
    """What does not fit is said in few commits, and of a pool that is full nothing more is asked, however many members there are."""
    site.sizes["COPYPOOL1"] = 16 * MIB
    site.object_limit = 20 * MIB
    site.create()
    objects = {b"%04d" % n: site.rng.randbytes(20_000 + n) for n in range(1000)}
    with site.locked("COPYPOOL1"), site.open(lock_wait=0) as store:
        put(store, objects)
    with site.open() as store:
        before = store.catalog.last_csn()
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert report.copied_objects > 500
        assert report.copied_objects + len(report.failed) == 1000
        assert len({reason for _, reason in report.failed}) == 1
        assert store.catalog.last_csn() - before < 40
        (gap,) = store.query_gaps()
        assert gap.objects == len(report.failed)
        held = {e.name: objects[e.name] for e in store.query_objects(pool="COPYPOOL1")}
        assert len(held) == report.copied_objects
        check(store, "COPYPOOL1", held)
    assert check_store(site.path).problems == ()


def statements(store: Store) -> list[str]:
    """What the catalog is asked from now on."""
    asked: list[str] = []
    store.catalog._reads.set_trace_callback(asked.append)
    return asked


def test_gaps_are_not_asked_for_one_by_one(site: Site) -> None:
    """Breaks if an active-data pool that was away for a night costs a question for each transaction, at every look at the gaps and in every repair."""
    objects = {b"%03d" % n: b"x" * n for n in range(60)}
    site.create()
    put_without(site, "ACTIVEDATAPOOL", objects)
    with site.open() as store:
        asked = statements(store)
        assert len(store.query_gaps()) == 60
        assert len(asked) < 5
        asked.clear()
        report = copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL")
        assert (report.copied_objects, report.gaps_closed, report.gaps_left) == (60, 60, 0)
        assert len(asked) < 60


def test_what_is_refused_is_not_asked_for_one_by_one(site: Site) -> None:
    """Of a thousand equal members that a pool has no room for, one has to be refused to know of the others."""
    site.sizes["COPYPOOL1"] = 8 * MIB
    site.object_limit = 20 * MIB
    site.create()
    objects = {b"%04d" % n: site.rng.randbytes(20_000) for n in range(1000)}
    with site.locked("COPYPOOL1"), site.open(lock_wait=0) as store:
        put(store, objects)
    with site.open() as store:
        asked = statements(store)
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert len(report.failed) > 500
        assert report.copied_objects + len(report.failed) == 1000
        assert len(asked) < 200


def test_records_of_a_repair_that_cannot_be_made_take_no_others_along(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose commit is in the same group has been promised that its own are durable first."""
    objects = with_gap(site, "COPYPOOL1", objects=1)
    with site.open(flush_before_acknowledge=True) as store:
        ledger = store.ledger
        catalog, queue = ledger._catalog, ledger._committer._queue
        committing = catalog.commit
        first, gathered = threading.Event(), threading.Event()

        def commit(*arguments: Any) -> Any:
            first.set()
            gathered.wait()
            return committing(*arguments)

        def refuse(*_: object) -> None:
            raise CatalogError("catalog.db", "out of memory")

        monkeypatch.setattr(catalog, "commit", commit)
        monkeypatch.setattr(ledger, "_repair_records", refuse)
        with ThreadPoolExecutor(3) as threads:
            jobs: list[Future[Any]] = [threads.submit(put, store, {b"b": b"2"})]
            first.wait()
            jobs.append(threads.submit(backup_stgpool, store, "DISKPOOL", "COPYPOOL1"))
            wait_until(lambda: queue.qsize() == 1, "the repair")
            jobs.append(threads.submit(put, store, {b"c": b"3"}))
            wait_until(lambda: queue.qsize() == 2, "the commit behind it")
            gathered.set()
            for job in jobs:
                job.result()
        assert "books are wrong" in (store.refusal or "")
    report = rebuild_catalog(site.path, into=tmp_path / "second.db")
    assert (report.objects, report.lost) == (3, ())
    with site.open() as store:
        assert store.query_gaps() == []
        check(store, "COPYPOOL1", objects | {b"b": b"2", b"c": b"3"})
