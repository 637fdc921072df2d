"""Killed at any moment, and commits that nobody can vouch for.

What could break: half a transaction visible; an acknowledged one gone; one that is in this pool and not in that; evidence on the
volumes that says something else than the catalog; space that is handed out twice after a crash.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from fanout.errors import CatalogStale
from fanout.scribe import Scribe

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.store.conftest import Site

MIB = 1 << 20
POOLS = ("DISKPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL")

# Stores one transaction after the other and says, on a pipe, which one was acknowledged.
WRITER = """
import sys
from fanout.store import Store
begin, size = int(sys.argv[2]), int(sys.argv[3])
with Store.open(sys.argv[1], flush_before_acknowledge=sys.argv[4] == "flush") as store, store.session("N1") as session:
    print("ready", flush=True)
    for number in range(begin, begin + 10_000):
        for attempt in session.attempts():
            with attempt as txn:
                for part in range(4):
                    txn.put(b"%d/%d" % (number, part), b"%d/%d." % (number, part) * size)
        print(number, flush=True)
"""


def run_and_kill(site: Site, *, begin: int, size: int, mode: str, after: float) -> list[int]:
    """Start the writer, kill it `after` seconds after it began; which transactions were acknowledged."""
    arguments = [sys.executable, "-c", WRITER, os.fspath(site.path), str(begin), str(size), mode]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(after)  # the moment is what is random here
        writer.send_signal(signal.SIGKILL)
        return [int(line) for line in writer.stdout.read().splitlines() if line.strip()]


@pytest.mark.parametrize("mode", ["plain", "flush"])
def test_killed_at_any_moment(site: Site, rng: random.Random, mode: str) -> None:
    """Five times in a row on the same store: all or nothing, in all pools, and the space of the dead is used again."""
    site.size = 96 * MIB  # enough for all: an overflow or a full copy pool is another test's
    site.create()
    acknowledged: set[int] = set()
    there: set[int] = set()
    for round_ in range(5):
        size = rng.choice([10, 500, 4000])
        fresh = run_and_kill(
            site, begin=round_ * 10_000, size=size, mode=mode, after=rng.uniform(0.0, 0.3)
        )
        acknowledged |= set(fresh)
        with site.open() as store:
            mine = {number for number in acknowledged if number >= round_ * 10_000}
            everything = {e.name for e in store.query_objects(pool="DISKPOOL")}
            assert everything >= {b"%d/0" % number for number in acknowledged}
            here = {int(name.split(b"/")[0]) for name in everything}
            assert there <= here
            # At most one transaction beyond the last acknowledgement: the one whose answer was cut off.
            assert len({n for n in here if n >= round_ * 10_000} - mine) <= 1
            there = here
            for pool in POOLS:
                assert {e.name for e in store.query_objects(pool=pool)} == everything
            for number in mine:
                for part in range(4):
                    name = b"%d/%d" % (number, part)
                    assert store.get("N1", name).read() == (name + b".") * size
            assert store.catalog.verify() == []
            for volume in store.pools.volumes():
                assert volume.allocator is not None
                volume.allocator.check()


def test_directories_catch_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that a crash lost are appended at the next opening; then the volumes say what the catalog says."""
    site.create()
    with monkeypatch.context() as patch:
        patch.setattr(Scribe, "append", lambda self, entries: list(entries))
        with site.open() as store:
            site.put_all(store)
    with site.open() as store:
        for volume in store.pools.volumes():
            held = store.catalog.held_csns(volume.uuid)
            assert volume.directory is not None
            assert volume.directory.held_csns() == held
            assert held or volume.pool == "TAPEPOOL"


def test_evidence_before_the_acknowledgement(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With flush_before_acknowledge nothing has to catch up after a kill: every acknowledged commit is on the volumes."""
    site.create()
    acknowledged = run_and_kill(site, begin=0, size=100, mode="flush", after=0.2)
    missing: list[int] = []
    catch_up = Scribe.catch_up

    def counting(self: Scribe, volume: object, catalog: object) -> int:
        missing.append(catch_up(self, volume, catalog))  # type: ignore[arg-type]
        return missing[-1]

    monkeypatch.setattr(Scribe, "catch_up", counting)
    with site.open() as store:
        beyond = store.catalog.last_csn() - len(acknowledged)
    assert beyond <= 1
    assert max(missing) <= beyond


def test_directories_ahead_of_the_catalog(site: Site) -> None:
    """A catalog from before some commits, with the epoch that fits: never allocates, because the volumes know more."""
    import sqlite3

    site.create()
    with site.open() as store:
        site.put_all(store)
    path = site.base / "catalog.db"
    with sqlite3.connect(path) as db:
        db.execute("UPDATE store SET csn = csn - 1")
    db.close()
    with pytest.raises(CatalogStale, match="directory"):
        site.open()


UNKNOWN = """
import os, pathlib, signal, sys
from fanout.errors import CatalogError, CommitUnknown, TransactionRetry
from fanout.store import Store
fault = pathlib.Path(os.environ["FAULT_FILE"])
store = Store.open(sys.argv[1])
session = store.session("N1")
with session.begin() as txn:
    txn.put("before", b"safe")
fault.write_text("sync")
txn = session.begin(transaction=b"t" * 16)
txn.put("doubtful", b"x" * 5000)
try:
    txn.commit()
except CommitUnknown as error:
    print("unknown", error.transaction)
used = {v.path: (v.reserved, v.live, v.free) for v in store.query_volumes()}
fault.unlink()
try:
    with session.begin() as txn:
        txn.put("after", b"refused")
except CatalogError as error:
    print("refused", "read-only" in str(error))
assert {v.path: (v.reserved, v.live, v.free) for v in store.query_volumes()} == used
assert all(reserved for path, (reserved, _, _) in used.items() if "TAPE" not in path)
print(len(store.get("N1", "before").read()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_commit_that_nobody_can_vouch_for(site: Site, tmp_path: Path) -> None:
    """The catalog's log cannot be flushed, nor fenced: unknown, read-only, nothing reused; the next opening decides.

    If it decides "committed", the bytes are there in every pool: they were durable before the commit was tried.
    """
    shim = tmp_path / "fault_shim.so"
    source = os.path.join(os.path.dirname(__file__), "..", "catalog", "fault_shim.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    site.create()
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "FAULT_FILE": str(tmp_path / "fault"),
    }
    done = subprocess.run(
        [sys.executable, "-c", UNKNOWN, os.fspath(site.path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.splitlines() == [f"unknown {(b't' * 16).hex()}", "refused True", "4"]
    with site.open() as store:
        receipt = store.receipt(b"t" * 16)
        for pool in POOLS:
            there = site.holds(store, pool, "N1", b"doubtful")
            assert there == (receipt is not None)
            if there:
                assert store.get("N1", "doubtful", pool=pool).read() == b"x" * 5000
        site.put_all(store)
        assert store.catalog.verify() == []
