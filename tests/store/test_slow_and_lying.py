"""Volumes that crawl and volumes that lie, in a store: a loop device over a fault file system.

What could break: one slow copy pool that slows every client down although it may be left out; a lie that is committed; a gap
without its reason; a repair that believes what it wrote.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Any

import pytest

from fanout import backup_stgpool
from tests.faults.devices import fault_disk
from tests.faults.rules import Rule
from tests.store.conftest import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.devices import FaultDisk
    from tests.store.conftest import Site

pytestmark = pytest.mark.loop

HEALTHY = {
    "DISKPOOL": "ABCD",
    "TAPEPOOL": "E",
    "COPYPOOL1": "ABCDE",
    "COPYPOOL2": "ABCDE",
    "ACTIVEDATAPOOL": "AB",
}
BIG = ("N1", b"Big")
WITH_BIG = {
    "DISKPOOL": "ABCD",
    "TAPEPOOL": "BE",
    "COPYPOOL1": "",
    "COPYPOOL2": "ABBCDE",
    "ACTIVEDATAPOOL": "ABB",
}


@pytest.fixture
def disk(site: Site) -> Iterator[FaultDisk]:
    """COPYPOOL1 lies on it."""
    with fault_disk(40 * MIB) as made:
        site.devices["COPYPOOL1"] = made.path
        yield made


def test_a_crawling_copy_pool_is_left_out_and_repaired_later(site: Site, disk: FaultDisk) -> None:
    """Everybody else gets the data at their own speed; the gap says why; what crawls afterwards changes nothing."""
    site.objects[BIG] = site.rng.randbytes(20 * MIB)
    site.pool_options["COPYPOOL1"] = 'on_slow = "eject"'
    site.patience = 0.3
    site.create()
    with site.open() as store:
        site.put(store, "N2")
        before = store.query_gaps()
        assert before == []
        disk.fs.set_rules(Rule(op="write", path=disk.name, count=None, delay=1.0))
        began = time.monotonic()
        receipt = site.put(store, "N1")
        assert time.monotonic() - began < 10.0
        assert receipt.attempt == 2
        assert list(receipt.removed) == ["COPYPOOL1"]
        assert {gap.pool for gap in receipt.gaps} == {"COPYPOOL1"}
        for gap in receipt.gaps:
            assert gap.reason.startswith("slow: ")
            assert "bytes behind its peers" in gap.reason
        assert {(g.pool, g.reason) for g in store.query_gaps()} == {
            (g.pool, g.reason) for g in receipt.gaps
        }
        (volume,) = [v for v in store.query_volumes() if v.pool == "COPYPOOL1"]
        assert volume.state == "available"  # slow is not broken: the next session tries it again
        disk.fs.heal()
        assert site.contents(store) == WITH_BIG | {"COPYPOOL1": "CDE"}
        repaired = backup_stgpool(store, "DISKPOOL", "COPYPOOL1").copied_objects
        repaired += backup_stgpool(store, "TAPEPOOL", "COPYPOOL1").copied_objects
        assert repaired == 3
        assert store.query_gaps() == []
        assert site.contents(store) == WITH_BIG | {"COPYPOOL1": "ABBCDE"}
    with site.open() as store:
        assert site.contents(store) == WITH_BIG | {"COPYPOOL1": "ABBCDE"}


@pytest.mark.parametrize("lie", [{"noop": True}, {"flip": 1000}, {"shift": MIB}], ids=str)
def test_a_lying_copy_pool_is_left_out_before_the_commit(
    site: Site, disk: FaultDisk, lie: dict[str, Any]
) -> None:
    """The lie begins where the data does: behind the superblock and the directory. No receipt may name the pool."""
    site.pool_options["COPYPOOL1"] = 'verify = "readback"'
    site.create()
    with site.open() as store:
        volume = store.pools.pools["COPYPOOL1"].members[0].volume
        assert volume is not None
        space = volume.superblock.space_offset
        disk.fs.set_rules(Rule(op="write", path=disk.name, start=space, **lie))
        receipts = site.put_all(store)
        assert disk.fs.injected("write")
        gaps = [gap for receipt in receipts.values() for gap in receipt.gaps]
        assert {gap.pool for gap in gaps} == {"COPYPOOL1"}
        for gap in gaps:
            assert gap.errno == errno.EILSEQ
            assert gap.reason.startswith("read: not what was written at ")
        disk.fs.set_rules()
        assert site.contents(store) == HEALTHY | {"COPYPOOL1": "CDE"}
        # A repair into a lying pool finds out, too, and closes nothing.
        disk.fs.set_rules(Rule(op="write", path=disk.name, start=space, **lie))
        result = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert disk.fs.injected("write")
        disk.fs.set_rules()
        assert (result.copied_objects, result.gaps_closed, result.gaps_left) == (0, 0, 1)
        assert all("mismatch" in reason for _, reason in result.failed)
        (left,) = store.query_gaps()
        assert left.errno == errno.EILSEQ
        assert site.contents(store) == HEALTHY | {"COPYPOOL1": "CDE"}
        backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert site.contents(store) == HEALTHY
        assert store.query_gaps() == []


def test_a_whole_store_that_reads_everything_back(site: Site, disk: FaultDisk) -> None:
    """[store] verify: nothing but the truth costs a copy, in any pool, also across spans, objects and primaries."""
    site.objects[BIG] = site.rng.randbytes(12 * MIB + 12345)
    site.create()
    site.path.write_text(
        site.path.read_text().replace("[store]\n", '[store]\nverify = "readback"\n')
    )
    with site.open() as store:
        assert store.config.verified == set(store.config.pools)
        receipts = site.put_all(store)
        assert not any(receipt.degraded for receipt in receipts.values())
        assert site.contents(store) == WITH_BIG | {"COPYPOOL1": "ABBCDE"}
