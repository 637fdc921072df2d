"""The simulation finds nothing, does the same thing twice, and would say so if it were otherwise.

Long runs: ``make test-faults``, ``make nightly``. Whether it finds what is wrong is shown by tests/sim/test_bugs.py.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fanout.catalog import (
    Catalog,
    CatalogReader,
    Commit,
    CommitDoubt,
    Deletion,
    PoolEntry,
    VolumeEntry,
)
from fanout.engine import Fault
from fanout.errors import CatalogError
from fanout.types import Member, Phase, PoolKind
from tests.catalog.test_memory import commit_of
from tests.conftest import SEED
from tests.sim import threads
from tests.sim.ground import Grounds, new_engine
from tests.sim.medium import Medium
from tests.sim.plan import draw
from tests.sim.run import command, run_plan, run_seeds, shrunk, what
from tests.sim.suite import ROOT
from tests.sim.vfs import Below, below_sqlite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEEDS = 40


@pytest.fixture(scope="module")
def grounds() -> Iterator[Grounds]:
    """What fails in the simulation fails on purpose, thousands of times: nobody needs to read of it."""
    logging.disable()
    with Grounds() as made:
        yield made
    logging.disable(logging.NOTSET)


def test_known_seeds(grounds: Grounds) -> None:
    """The same seeds for everybody: whatever breaks one of the rules of docs/reliability.md in one of them."""
    tally = run_seeds(range(SEEDS), grounds)
    # A simulation in which nothing fails proves nothing.
    for what_happened in (
        "committed",
        "retries",
        "failed",
        "cuts",
        "lost",
        "faults",
        "catalog faults",
        "rebuilds",
        "deleted",
        "rotten",
        "marked",
        "retired",
        "catalogs lost",
        "beside",
        "vanished",
        "grown",
    ):
        assert tally.counts[what_happened] > 0, what_happened


def test_seeds_that_found_something(grounds: Grounds) -> None:
    """What each of them showed.

    53: a deletion that was done and told as failed. 322: a directory record under a failed flush was believed by the next opening,
    and lost with the power. 332: good bytes beside damage could not be repaired. 861: a rebuild called lost what was deleted.
    1356: a volume that came back was not told of deletions. 1422: room in a directory that was kept for ever. In 231 and 307 a rebuild
    leaves a volume aside.
    """
    tally = run_seeds([53, 231, 307, 322, 332, 861, 1356, 1422], grounds, rebuild=True)
    assert tally.counts["left aside"] > 1


def test_new_seeds(grounds: Grounds) -> None:
    """Seeds that nobody has run, by FANOUT_SEED."""
    first = SEED * 1000
    run_seeds(range(first, first + SEEDS), grounds)


def test_one_seed_is_one_run(grounds: Grounds) -> None:
    """Two runs of a seed differ: a clock, an id, a set or a thread has got in, and a finding could not be repeated."""
    run_seeds(range(1000, 1020), grounds, twice=True)


def test_one_seed_is_one_run_in_any_process() -> None:
    """The order of a set, or an inode, has got into a run: a finding of one process could not be seen again in the next."""
    program = (
        "from tests.sim.run import *\n"
        "logging.disable()\n"
        "with Grounds() as grounds: print([run_plan(draw(seed), grounds)[1] for seed in range(5)])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hashes},
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout
        for hashes in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1]


def test_a_finding_is_made_smaller(grounds: Grounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of a finding shows it no more, or drags along what has nothing to do with it."""
    from tests.sim import world

    def grumble(*_: object, **__: object) -> None:
        raise AssertionError("V4: planted")

    monkeypatch.setattr(world, "judge", grumble)
    plan = draw(7)
    assert plan.episodes
    again = shrunk(7, grounds, what(AssertionError("V4: planted")))
    assert again == command(7, list(plan.parts()))  # the first opening of the last episode shows it
    with pytest.raises(AssertionError, match="planted"):
        run_plan(plan.without(set(plan.parts())), grounds)


# ---- the parts ---------------------------------------------------------------------------------------


def test_a_finding_is_told_in_time(grounds: Grounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making it smaller took longer than one test may: the run was ended, and nobody heard of the seed."""
    monkeypatch.setattr("tests.sim.run.SHRINK_SECONDS", -1.0)
    assert shrunk(7, grounds, "whatever", rebuild=True) == command(7, rebuild=True)


def test_threads_that_wait_for_each_other() -> None:
    """A deadlock of the product would hang the simulation instead of being found."""
    scheduler = threads.Scheduler(random.Random(1))
    threads.use(scheduler)
    first, second = threads.Lock(), threads.Event()

    def work() -> None:
        with first:
            second.wait()

    thread = threads.Thread(target=work, name="one")
    thread.start()
    with pytest.raises(threads.Deadlock, match="one for an event"):
        thread.join()
    scheduler.end()
    threads.use(None)


def test_only_what_completed_before_a_flush_is_durable(tmp_path: Path) -> None:
    """The model of the disk would forgive a flush that did not wait for the writes."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    medium = Medium([path], tmp_path / "none")
    with new_engine(1) as engine:
        engine.record_to(medium.journal)
        target = engine.open(path)
        engine.write(target, 0, b"a" * 4096)
        engine.flush(target)
        engine.write(target, 4096, b"b" * 4096)
        medium.take()
        assert engine.cut_power()
        assert not engine.cut_power()
        with pytest.raises(OSError, match="EIO"):
            engine.write(target, 8192, b"c" * 4096)
    medium.take()
    assert medium.dark
    assert medium.lose(random.Random(1), "all") == 1
    assert path.read_bytes()[:12288] == b"a" * 4096 + bytes(8192)
    medium.close()


def test_a_short_read_gives_what_it_claims(tmp_path: Path) -> None:
    """The injector would say that bytes were read which were not, and the store would be blamed for serving them."""
    path = tmp_path / "disk"
    path.write_bytes(b"a" * 8192)
    with new_engine(1) as engine:
        target = engine.open(path)
        engine.set_faults([Fault.short(512, kind=Phase.READ)])
        assert engine.read(target, 0, 100) == b"a" * 100


def test_what_a_failed_flush_covered_stays_lost(tmp_path: Path) -> None:
    """The model would believe a second flush that says yes, or would let an old write come back over a newer one."""
    path = tmp_path / "catalog.db"
    medium = Medium([], path)
    with below_sqlite(Below(medium)) as below, closing(_database(path)) as db:
        db.execute("INSERT INTO t VALUES (1)")
        below.script = lambda operation, _: ("EIO sync", False) if operation == "sync" else None
        with pytest.raises(sqlite3.OperationalError):
            db.execute("INSERT INTO t VALUES (2)")
        below.script = lambda operation, _: None
        medium.catalog_sync(f"{path}-wal", good=True)
        assert len(medium.files[f"{path}-wal"].volatile) == 2  # a frame: its head and its page
        db.execute("INSERT INTO t VALUES (3)")  # over the same place in the log
        assert not medium.files[f"{path}-wal"].volatile
    medium.close()


def test_the_ghost_of_a_failed_commit(tmp_path: Path) -> None:
    """SQLite's own: a COMMIT that failed is there after a crash. If this stops happening, the fence is not tested any more."""
    path = tmp_path / "catalog.db"
    medium = Medium([], path)
    with below_sqlite(Below(medium)) as below:
        with closing(_database(path)) as db:
            below.script = lambda operation, _: ("EIO sync", False) if operation == "sync" else None
            with pytest.raises(sqlite3.OperationalError):
                db.execute("INSERT INTO t VALUES (1)")
            assert db.execute("SELECT * FROM t").fetchall() == []
            below.script = lambda operation, _: (
                f"EIO {operation}",
                False,
            )  # closing changes nothing
        below.script = lambda operation, _: None
        medium.lose(random.Random(1), "none")
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT * FROM t").fetchall() == [(1,)]
    medium.close()


def _database(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE t (x)")
    return db


# ---- what it has found ---------------------------------------------------------------------------------


def test_no_memory_for_the_fence(tmp_path: Path) -> None:
    """SQLite had no memory while an unknown commit was fenced: `MemoryError` ended the committer, and its callers waited for ever."""
    path = tmp_path / "catalog.db"
    Catalog.create(path, store=bytes(16), pools=[])
    medium = Medium([], path)
    with below_sqlite(Below(medium)) as below, Catalog.open(path) as catalog:
        below.script = lambda operation, _: ("ENOMEM", False) if operation == "write" else None
        with pytest.raises(CatalogError, match="out of memory"):
            catalog.fence([(bytes(16), 1)])
        below.script = lambda operation, _: None
        assert catalog.fence([(bytes(16), 1)]) == {(bytes(16), 1): None}
    medium.close()


MANY = 300  # members: the database grows, which its first page says


def large(commit: Commit) -> Commit:
    """The same with so many objects."""
    (aggregate,) = commit.aggregates
    names = (b"name %d " % n + bytes(60) for n in range(MANY))
    members = [Member(name, 0, 10, bytes(16)) for name in names]
    return replace(commit, aggregates=(replace(aggregate, members=members),))


def test_no_memory_to_roll_back(tmp_path: Path) -> None:
    """SQLite had no memory in the middle of a commit, and none to roll back: the fence committed the half of it that was left.

    A deletion was told that had not happened.
    """
    path = tmp_path / "catalog.db"
    volume = VolumeEntry(bytes(16), "P", "/none", 1 << 40, 4096, 1, 0, 0, False)
    pool = PoolEntry(bytes(16), "P", PoolKind.PRIMARY)
    Catalog.create(path, store=bytes(16), pools=[pool], volumes=[volume])
    medium, struck = Medium([], path), 0
    for nth in itertools.count(step=7):
        stored = large(commit_of(1 + nth))
        with below_sqlite(Below(medium)) as below, Catalog.open(path) as catalog:
            catalog.commit([stored])
            entry = catalog.aggregate(stored.transaction)
            assert entry is not None
            deletion = Deletion(entry, None, entry.bytes, (volume.volume,), ())
            commit = Commit(b"D" + stored.transaction[1:], 1, deletions=(deletion,))
            with (
                closing(sqlite3.connect(path)) as other,
                other,
            ):  # the writer has to read its pages again
                other.execute("UPDATE store SET fences = fences + 1")
            reads, below.reads = itertools.count(-nth), True
            below.script = lambda operation, _, reads=reads: (  # type: ignore[misc]
                ("ENOMEM", False) if operation == "read" and next(reads) in (0, 1) else None
            )
            told: list[int] | Exception
            try:
                told = catalog.commit([commit])
            except (CommitDoubt, CatalogError, MemoryError) as error:
                told = error
            below.script, below.reads = (lambda operation, _: None), False
            if isinstance(told, CommitDoubt):
                settled = catalog.fence([(commit.transaction, 1)])[commit.transaction, 1]
                told = told if settled is None else [settled]
        with CatalogReader(path) as read:
            left = len(read.members(stored.transaction))
            assert left == (MANY if isinstance(told, Exception) else 0), (
                f"read {nth}: half a commit"
            )
            assert read.verify() == []
        struck += isinstance(told, Exception)
        if next(reads) <= 0:
            break  # it has no such read any more
    medium.close()
    assert struck > 3
