"""Volumes that hang, and flushes that fail: a loop device over a fault file system.

What could break: one hung volume that stops everybody; a late write that lands in somebody else's data, or turns a gap into a copy
that nobody checked; a failed flush that is tried again and believed.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from fanout import backup_stgpool
from fanout.scribe import Scribe
from tests.faults.devices import fault_disk
from tests.faults.rules import FOR_EVER, Rule
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
ALONE = """
[pools.LONEPOOL]
type = "primary"
device_class = "disk"
volumes = [{ path = "LONEPOOL.vol", size = 20971520 }]
[domains.ALONE]
destination = "LONEPOOL"
[nodes.N3]
domain = "ALONE"
"""


@pytest.fixture
def disk(site: Site) -> Iterator[FaultDisk]:
    """COPYPOOL1 lies on it."""
    with fault_disk(40 * MIB) as made:
        site.devices["COPYPOOL1"] = made.path
        yield made


def test_a_hung_directory_holds_up_nobody(
    site: Site, disk: FaultDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory of COPYPOOL1 cannot be written for a while: another client's commits go on meanwhile."""
    site.extra = ALONE
    site.create()
    gate = threading.Event()
    append = Scribe.append

    def late(self: Scribe, entries: object) -> None:
        held = list(entries)  # type: ignore[call-overload]
        threading.Thread(target=lambda: (gate.wait(10), append(self, held))).start()

    with site.open() as store:
        with monkeypatch.context() as patch:
            patch.setattr(Scribe, "append", late)
            site.put(store, "N1")
        disk.fs.set_rules(Rule(op="write", path=disk.name, count=None, delay=FOR_EVER))
        gate.set()
        disk.fs.wait_for_calls(1)
        began = time.monotonic()
        with store.session("N3") as session:
            for number in range(20):
                for attempt in session.attempts():
                    with attempt as txn:
                        txn.put(b"%d" % number, os.urandom(1000))
        assert time.monotonic() - began < 5
        assert store.catalog.last_csn() == 21
        disk.fs.heal()
    with site.open() as store:
        site.check(store, "N1", b"A", "COPYPOOL1")
        assert store.query_gaps() == []


def test_a_hung_copy_pool_is_let_go_and_comes_back(site: Site, disk: FaultDisk) -> None:
    """Past the deadline it is removed and the resend goes on; what lands late changes nothing; a new opening takes it in again."""
    site.hard_deadline = 1.0
    site.create()
    with site.open() as store:
        disk.fs.set_rules(Rule(op="write", path=disk.name, count=None, delay=FOR_EVER))
        receipt = site.put(store, "N1")
        assert list(receipt.removed) == ["COPYPOOL1"]
        assert {gap.pool for gap in receipt.gaps} == {"COPYPOOL1"}
        (volume,) = [v for v in store.query_volumes() if v.pool == "COPYPOOL1"]
        assert volume.state == "failed"
        assert volume.reserved + volume.draining + volume.quarantined > 0
        disk.fs.heal()
        disk.fs.settle()
        assert not site.holds(store, "COPYPOOL1", "N1", b"A"), "a late success closes no gap"
        assert {gap.pool for gap in store.query_gaps()} == {"COPYPOOL1"}
        for member in store.pools.pools["COPYPOOL1"].members:
            member.next_try = 0.0
        assert not site.put(store, "N2").degraded
        (volume,) = [v for v in store.query_volumes() if v.pool == "COPYPOOL1"]
        assert (volume.state, volume.quarantined) == ("available", 0)
        assert backup_stgpool(store, "DISKPOOL", "COPYPOOL1").copied_objects == 2
        assert site.contents(store) == HEALTHY
        assert store.query_gaps() == []
    with site.open() as store:
        assert site.contents(store) == HEALTHY


def test_a_flush_that_fails_once_is_not_believed_the_second_time(
    site: Site, disk: FaultDisk
) -> None:
    """EIO at one fsync, then 0: everything on COPYPOOL1 since its last good flush is lost, and a gap says so."""
    site.create()
    with site.open() as store:
        site.put(store, "N2")
        disk.fs.set_rules(Rule(op="fsync", path=disk.name, count=1, errno=errno.EIO, forget=True))
        receipt = site.put(store, "N1")
        assert list(receipt.removed) == ["COPYPOOL1"]
        assert "flush" in receipt.removed["COPYPOOL1"]
        assert disk.fs.injected("fsync")
        for member in store.pools.pools["COPYPOOL1"].members:
            member.next_try = 0.0
        assert backup_stgpool(store, "DISKPOOL", "COPYPOOL1").copied_objects == 2
        assert site.contents(store) == HEALTHY
    with site.open() as store:
        assert site.contents(store) == HEALTHY


def test_power_fails_under_a_copy_pool(site: Site, disk: FaultDisk) -> None:
    """What was acknowledged survives the loss of everything that was not flushed, in that pool, too."""
    site.create()
    with site.open() as store:
        site.put_all(store)
    disk.fs.crash()
    with site.open() as store:
        assert site.contents(store) == HEALTHY
        assert store.catalog.verify() == []
