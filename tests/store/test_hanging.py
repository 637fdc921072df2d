"""Volumes that hang, and flushes that fail: a loop device over a fault file system.

What could break: one hung volume that stops everybody; a late write that lands in somebody else's data, or turns a gap into a copy
that nobody checked; a failed flush that is tried again and believed.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from fanout import Store, backup_stgpool
from fanout.catalog import Commit, LogFolder
from fanout.errors import CatalogBusy, CatalogError
from fanout.scribe import Scribe
from tests.faults.devices import fault_disk
from tests.faults.faultfs import FaultFS
from tests.faults.rules import FOR_EVER, Rule
from tests.store.conftest import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


# ---- the catalog


@pytest.fixture
def hanging(site: Site) -> Iterator[FaultFS]:
    """The store's catalog lies on a fault file system, and is given up after a second."""
    with FaultFS(cached=True) as fs:
        site.configure()
        text = site.path.read_text()
        where = f'catalog = "{fs.path("catalog.db")}"\ncommit_deadline = "1 s"'
        site.path.write_text(text.replace('catalog = "catalog.db"', where))
        Store.create(site.path)
        yield fs
        fs.heal()


def put_one(store: Store, name: bytes) -> None:
    """One object in one transaction of N2."""
    with store.session("N2") as session:
        for attempt in session.attempts():
            with attempt as txn:
                txn.put(name, b"data of " + name)


def test_a_hung_catalog_is_given_up(site: Site, hanging: FaultFS) -> None:
    """Breaks if a caller waits for ever, is told "not committed" of what may be, or gets anything more into such a store."""
    store = site.open()
    put_one(store, b"before")
    hanging.set_rules(Rule(op="fsync", path="/catalog.db-wal", delay=FOR_EVER, count=1))
    problems: list[Exception] = []

    def put(name: bytes) -> None:
        try:
            put_one(store, name)
        except Exception as problem:
            problems.append(problem)

    first = threading.Thread(target=put, args=(b"in doubt",))
    first.start()
    hanging.wait_for_calls(1, "fsync")
    behind = threading.Thread(target=put, args=(b"behind",))
    behind.start()
    for thread in (first, behind):
        thread.join(30)
    assert sorted(type(problem).__name__ for problem in problems) == [
        "CatalogError",
        "CommitUnknown",
    ]
    assert store.refusal is not None
    assert "1 s" in store.refusal
    with pytest.raises(CatalogError, match="not answered"):
        put_one(store, b"after")
    with pytest.raises(CatalogError, match="stays locked"):
        store.close()
    with pytest.raises(CatalogBusy):
        site.open()
    hanging.heal()
    store.ledger._committer._thread.join(30)
    store.catalog.close()  # now it can be
    with site.open() as again:
        names = {entry.name for entry in again.query_objects(pool="DISKPOOL")}
        assert names == {
            b"before",
            b"in doubt",
        }  # what was in doubt had landed, and the rest never will
        put_one(again, b"again")


def test_a_fold_that_hangs(
    site: Site,
    hanging: FaultFS,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Breaks if the store cannot be closed, if the directories wait for it, or if another writer is let in before it has landed."""
    monkeypatch.setattr("fanout.store.LogFolder", partial(LogFolder, enough=0))
    store = site.open()
    hanging.set_rules(Rule(op="fsync", path="/catalog.db", delay=FOR_EVER, count=1))
    put_one(store, b"folded")
    hanging.wait_for_calls(1, "fsync")
    put_one(store, b"beside")
    problems: list[Exception] = []

    def close() -> None:
        try:
            store.close()
        except CatalogError as problem:
            problems.append(problem)

    closing = threading.Thread(target=close)
    closing.start()
    closing.join(20)
    assert ["stays locked" in str(problem) for problem in problems] == [True]
    with pytest.raises(CatalogBusy):
        site.open(lock_wait=0)
    hanging.heal()
    assert store._scribe is not None
    store._scribe._thread.join(30)
    store.catalog.close()
    with caplog.at_level("INFO"), site.open() as again:
        assert "appended again" not in caplog.text
        assert len(list(again.query_objects(pool="DISKPOOL"))) == 2


def test_a_process_ends_beside_a_catalog_that_hung(site: Site, hanging: FaultFS) -> None:
    """Breaks if the interpreter waits for the thread that stays behind."""
    code = f"""
import sys
from fanout import Store
from fanout.errors import CatalogError, CommitUnknown
store = Store.open({os.fspath(site.path)!r})
print("open", flush=True)
sys.stdin.readline()
try:
    with store.session("N2") as session:
        for attempt in session.attempts():
            with attempt as txn:
                txn.put(b"x", b"data")
except CommitUnknown:
    try:
        store.close()
    except CatalogError:
        sys.exit(7)
"""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        hanging.set_rules(Rule(op="fsync", path="/catalog.db-wal", delay=3.0, count=1))
        process.communicate(b"go\n", timeout=60)
        assert process.returncode == 7
    with site.open() as store:
        assert [entry.name for entry in store.query_objects(pool="DISKPOOL")] == [b"x"]


@pytest.mark.slow
def test_a_process_that_was_stopped_does_not_give_its_catalog_up(
    site: Site, hanging: FaultFS
) -> None:
    """Breaks if the time for which it was stopped counts: when it goes on, a sound commit is in doubt and the store read-only."""
    text = site.path.read_text()
    site.path.write_text(text.replace('commit_deadline = "1 s"', 'commit_deadline = "3 s"'))
    code = f"""
import sys
from fanout import Store
with Store.open({os.fspath(site.path)!r}) as store:
    print("open", flush=True)
    sys.stdin.readline()
    with store.session("N2") as session:
        for attempt in session.attempts():
            with attempt as txn:
                txn.put(b"x", b"data")
"""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"open\n"
        hanging.set_rules(Rule(op="fsync", path="/catalog.db-wal", delay=6.0, count=1))
        process.stdin.write(b"go\n")
        process.stdin.flush()
        hanging.wait_for_calls(1, "fsync")
        process.send_signal(signal.SIGSTOP)
        time.sleep(5.0)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)
        assert process.returncode == 0


@pytest.fixture
def unanswering() -> Iterator[Callable[[Store], threading.Event]]:
    """Begins a question of a store's catalog that gets no answer; all other questions wait for it. Set what it gives to end it."""
    ends: list[threading.Event] = []

    def begin(store: Store) -> threading.Event:
        asking, end = threading.Event(), threading.Event()

        def ask() -> None:
            with store.catalog._lock:
                asking.set()
                end.wait(60)

        threading.Thread(target=ask, daemon=True).start()
        assert asking.wait(10)
        ends.append(end)
        return end

    yield begin
    for end in ends:
        end.set()


def test_a_catalog_that_hangs_is_not_asked_either(
    site: Site, hanging: FaultFS, unanswering: Callable[[Store], threading.Event]
) -> None:
    """Breaks if who is told that nothing was committed waits first for the answer whether it had been before."""
    store = site.open()
    hanging.set_rules(Rule(op="fsync", path="/catalog.db-wal", delay=FOR_EVER, count=1))
    problems: list[Exception] = []

    def put(name: bytes) -> None:
        try:
            put_one(store, name)
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=put, args=(b"in doubt",), daemon=True)]
    threads[0].start()
    hanging.wait_for_calls(1, "fsync")
    threads.append(threading.Thread(target=put, args=(b"behind",), daemon=True))
    threads[1].start()
    end = unanswering(store)
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert {type(problem).__name__ for problem in problems} == {"CatalogError", "CommitUnknown"}
    end.set()
    hanging.heal()
    store.close()


def test_a_catalog_that_does_not_answer_behind_a_repair_is_given_up(
    site: Site, hanging: FaultFS, unanswering: Callable[[Store], threading.Event]
) -> None:
    """Breaks if all clients wait for ever: what the directories are to say of a repair is asked on the thread that commits."""
    with site.locked("COPYPOOL1"), site.open(lock_wait=0) as first:
        put_one(first, b"lacking")
    store = site.open()
    ends: list[threading.Event] = []
    commit = store.catalog.commit  # type: ignore[attr-defined]

    def and_then_silence(group: object) -> list[int]:
        done: list[int] = commit(group)
        ends.append(unanswering(store))
        return done

    store.catalog.commit = and_then_silence  # type: ignore[attr-defined]
    repairing = threading.Thread(
        target=lambda: backup_stgpool(store, "DISKPOOL", "COPYPOOL1"), daemon=True
    )
    repairing.start()
    while not ends:
        time.sleep(0.01)
    store.catalog.commit = commit  # type: ignore[attr-defined]
    commits = store.ledger._committer
    with pytest.raises(CatalogError, match="has not answered for 1 s"):
        commits.commit(Commit(bytes(16), 1))
    assert store.refusal is not None
    ends[0].set()
    repairing.join(30)
    commits._thread.join(0.1)
    with pytest.raises(CatalogError, match="has not answered"):
        put_one(store, b"more")
    store.close()
    with site.open() as again:
        assert {one.name for one in again.query_objects(pool="COPYPOOL1")} == {b"lacking"}
