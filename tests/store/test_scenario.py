"""The whole scenario through the public API: healthy, a failing copy pool, a failing active-data pool, repair, proof.

What could break: a pool that holds other objects than the rules say, a gap that nobody notes, a repair that copies the wrong thing
or too much. Contents are exact, and every byte is read back from every pool.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from fanout import backup_stgpool, copy_activedata
from fanout.errors import (
    FanoutError,
    PoolError,
    TransactionFailed,
    UnknownPool,
)
from tests.faults.devices import loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from fanout.store import Store
    from tests.store.conftest import Breakable, Site

    MakeFault = Callable[[Site, str], AbstractContextManager[Breakable]]

HEALTHY = {
    "DISKPOOL": "ABCD",
    "TAPEPOOL": "E",
    "COPYPOOL1": "ABCDE",
    "COPYPOOL2": "ABCDE",
    "ACTIVEDATAPOOL": "AB",
}


def repair(store: Store) -> list[int]:
    """Every repair command, the top of the hierarchy first; how many objects each copied."""
    copied = []
    for primary in ("DISKPOOL", "TAPEPOOL"):
        reports = [
            backup_stgpool(store, primary, "COPYPOOL1"),
            backup_stgpool(store, primary, "COPYPOOL2"),
            copy_activedata(store, primary, "ACTIVEDATAPOOL"),
        ]
        for report in reports:
            assert report.failed == ()
            assert report.gaps_left == 0
            copied.append(report.copied_objects)
    return copied


def test_healthy(site: Site) -> None:
    """Everything everywhere; nothing to repair; the same again after closing and opening."""
    site.create()
    with site.open() as store:
        receipts = site.put_all(store)
        assert not any(receipt.degraded for receipt in receipts.values())
        assert receipts["N2"].removed == {}
        assert site.contents(store) == HEALTHY
        assert store.query_gaps() == []
        assert repair(store) == [0] * 6
        for receipt in receipts.values():
            again = store.receipt(bytes.fromhex(receipt.transaction))
            assert again is not None
            assert again.objects == receipt.objects
            assert again.csn == receipt.csn
    with site.open(read_only=True) as store:
        assert site.contents(store) == HEALTHY
    with site.open() as store:
        assert site.contents(store) == HEALTHY
        assert store.catalog.verify() == []


def test_a_copy_pool_fails(site: Site, fault: MakeFault) -> None:
    """Rule R2: both sessions lose it, the resend goes on without it; the gaps are noted, then closed."""
    with fault(site, "COPYPOOL1") as broken:
        site.create()
        with site.open() as store:
            broken.fail()
            receipts = site.put_all(store)
            broken.heal()
            for receipt in receipts.values():
                assert list(receipt.removed) == ["COPYPOOL1"]
                assert any(name in receipt.removed["COPYPOOL1"] for name in broken.errno)
                assert {gap.pool for gap in receipt.gaps} == {"COPYPOOL1"}
                assert receipt.attempt == 2
            assert site.contents(store) == HEALTHY | {"COPYPOOL1": ""}
            gaps = {(gap.primary, gap.node): gap.objects for gap in store.query_gaps()}
            assert gaps == {("DISKPOOL", "N1"): 2, ("DISKPOOL", "N2"): 2, ("TAPEPOOL", "N2"): 1}
            assert all(any(name in g.reason for name in broken.errno) for g in store.query_gaps())
        with site.open() as store:
            assert repair(store) == [4, 0, 0, 1, 0, 0]
            assert store.query_gaps() == []
            assert site.contents(store) == HEALTHY
            assert repair(store) == [0] * 6
        with site.open() as store:
            assert site.contents(store) == HEALTHY


def test_an_active_data_pool_fails(site: Site, fault: MakeFault) -> None:
    """Rule R4, whatever copy_continue says."""
    site.options = "copy_continue = false"
    with fault(site, "ACTIVEDATAPOOL") as broken:
        site.create()
        with site.open() as store:
            broken.fail()
            receipts = site.put_all(store)
            broken.heal()
            assert list(receipts["N1"].removed) == ["ACTIVEDATAPOOL"]
            assert not receipts["N2"].degraded, "not allowed to use it, so nothing is missing"
            assert site.contents(store) == HEALTHY | {"ACTIVEDATAPOOL": ""}
            (gap,) = store.query_gaps()
            assert (gap.pool, gap.node, gap.objects) == ("ACTIVEDATAPOOL", "N1", 2)
        with site.open() as store:
            assert repair(store) == [0, 0, 2, 0, 0, 0]
            assert site.contents(store) == HEALTHY


def test_copy_continue_no(site: Site, fault: MakeFault) -> None:
    """Rule R3: nothing of the transaction is anywhere, and no gap either; the other client is not touched."""
    site.options = "copy_continue = false"
    with fault(site, "COPYPOOL1") as broken:
        site.create()
        with site.open() as store:
            site.put(store, "N1")
            broken.fail()
            with pytest.raises(TransactionFailed) as failed:
                site.put(store, "N2")
            broken.heal()
            assert failed.value.reason == "copy_continue"
            nothing = dict.fromkeys(HEALTHY, "AB") | {"TAPEPOOL": ""}
            assert site.contents(store) == nothing
            assert store.query_gaps() == []


def test_the_primary_fails(site: Site, fault: MakeFault) -> None:
    """Rule R5: retried, then failed; no secondary keeps anything that can be read; lists unchanged."""
    with fault(site, "DISKPOOL") as broken:
        site.create()
        with site.open() as store:
            broken.fail()
            with pytest.raises(TransactionFailed) as failed:
                site.put(store, "N1")
            broken.heal()
            assert failed.value.reason == "budget"
            assert site.contents(store) == dict.fromkeys(HEALTHY, "")
            assert store.query_gaps() == []
        with site.open() as store:
            site.put_all(store)
            assert site.contents(store) == HEALTHY


def test_a_repair_whose_destination_fails(site: Site, fault: MakeFault) -> None:
    """The gap stays, with this run's reason and time; nothing is half there; the next run closes it."""
    with fault(site, "COPYPOOL1") as broken:
        site.create()
        with site.open() as store:
            broken.fail()
            site.put_all(store)
            before = {gap.aggregate: gap for gap in store.query_gaps()}
            report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
            assert report.copied_objects == 0
            assert sorted(name[:1] for name, _ in report.failed) == [b"A", b"B", b"C", b"D"]
            assert report.gaps_left == 2
            for gap in store.query_gaps(primary="DISKPOOL"):
                assert gap.reason.startswith("not repaired")
                assert gap.since == before[gap.aggregate].since
                assert gap.updated > before[gap.aggregate].updated
            broken.heal()
            assert site.contents(store) == HEALTHY | {"COPYPOOL1": ""}
        with site.open() as store:
            assert repair(store) == [4, 0, 0, 1, 0, 0]
            assert site.contents(store) == HEALTHY


def test_everything_but_the_gap_destroyed_before_repair(site: Site, fault: MakeFault) -> None:
    """The warning of the modelled system: primaries and COPYPOOL2 lost before the repair, and COPYPOOL1 never had it.

    Then the objects are gone. That must be an error, never wrong bytes; and the gap query had said so.
    """
    with fault(site, "COPYPOOL1") as broken:
        site.create()
        with site.open() as store:
            broken.fail()
            site.put(store, "N2")
            broken.heal()
            said = {gap.pool: gap.objects for gap in store.query_gaps(primary="DISKPOOL")}
            assert said == {"COPYPOOL1": 2}
        for pool in ("DISKPOOL", "TAPEPOOL", "COPYPOOL2"):
            site.destroy(pool)
        with site.open(read_only=True) as store:
            for name in (b"C \xff\xfe", b"E"):
                with pytest.raises(FanoutError):
                    store.get("N2", name).read()
            assert store.get("N2", b"D").read() == b"", "there is nothing of it to lose"
            assert {gap.pool for gap in store.query_gaps()} == {"COPYPOOL1"}


@pytest.mark.parametrize("pool", ["DISKPOOL", "COPYPOOL1"])
def test_one_bad_disk_of_two(site: Site, fault: MakeFault, pool: str) -> None:
    """The resend goes to the good one, and so does what comes later: each transaction failed, or each session lost the pool."""
    with fault(site, pool) as broken:
        site.second_volume = pool
        site.create()
        with site.open() as store:
            broken.fail()
            first = site.put(store, "N1")
            assert first.attempt == 2
            assert list(first.removed) == ([] if pool == "DISKPOOL" else [pool])
            second = site.put(store, "N2")
            assert (second.attempt, second.removed) == (1, {})
            assert all(pool in stored.pools for stored in second.objects if stored.name != b"E")
            if pool != "DISKPOOL":
                report = backup_stgpool(store, "DISKPOOL", pool)
                assert (report.copied_objects, report.failed) == (2, ())
            broken.heal()
            assert site.contents(store) == HEALTHY


def test_previews_change_nothing(site: Site) -> None:
    """Also beside a running writer, from a store that is open read-only."""
    site.create()
    with site.locked("COPYPOOL1"), site.open(lock_wait=0) as store:
        site.put_all(store)
        with site.open(read_only=True) as reader:
            report = backup_stgpool(reader, "DISKPOOL", "COPYPOOL1", preview=True)
        assert (report.copied_objects, report.skipped_objects, report.gaps_left) == (4, 0, 2)
        assert report.copied_bytes == sum(
            len(data) for (_, name), data in site.objects.items() if name != b"E"
        )
        assert site.contents(store)["COPYPOOL1"] == ""


def test_wrong_names_are_refused(site: Site) -> None:
    """Before anything is read or written."""
    site.create()
    with site.open() as store:
        with pytest.raises(UnknownPool, match="COPYPOOL1"):
            backup_stgpool(store, "DISKPOOL", "COPYSTGPOOL1")
        with pytest.raises(PoolError, match="one of type primary"):
            backup_stgpool(store, "COPYPOOL2", "COPYPOOL1")
        with pytest.raises(PoolError, match="one of type copy"):
            backup_stgpool(store, "DISKPOOL", "ACTIVEDATAPOOL")
        with pytest.raises(PoolError, match="one of type active-data"):
            copy_activedata(store, "DISKPOOL", "COPYPOOL1")
    with site.open(read_only=True) as store, pytest.raises(FanoutError, match="read-only"):
        backup_stgpool(store, "DISKPOOL", "COPYPOOL1")


@pytest.mark.loop
def test_on_loop_devices(site: Site) -> None:
    """All five pools on block devices, with sectors of 512 and 4096 bytes side by side in one stream; then a gap and its repair."""
    with ExitStack() as stack:
        for number, pool in enumerate(HEALTHY):
            image = site.base / f"{pool}.vol"
            image.touch(0o600)
            os.truncate(image, 40 << 20)
            device = stack.enter_context(loop(image, sector=(512, 4096)[number % 2]))
            site.devices[pool] = device.path
        site.create()
        with site.open() as store:
            site.put_all(store)
            assert site.contents(store) == HEALTHY
        # Somebody else has the device; then it is back.
        taken = os.open(site.devices["COPYPOOL2"], os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        try:
            with site.open(lock_wait=0) as store:
                receipts = site.put_all(store)
                assert {gap.pool for gap in receipts["N2"].gaps} == {"COPYPOOL2"}
        finally:
            os.close(taken)
        with site.open() as store:
            assert repair(store) == [0, 4, 0, 0, 1, 0]
            twice = {pool: "".join(sorted(letters * 2)) for pool, letters in HEALTHY.items()}
            assert site.contents(store) == twice
            assert repair(store) == [0] * 6
