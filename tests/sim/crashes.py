"""Crash states: a workload is cut after every operation, and every cut is looked at in all the ways in which it may have been.

::

    python -m tests.sim.crashes [--samples N] [--core I/N]

At each cut the writes that no flush has covered may each be there or not: all subsets of up to twelve, else none, all, each alone, all but
each, every prefix, and samples; then torn ones. Each different state of the disks is audited by the oracle with nothing but SQLite and
`os.pread` in between. One state of each cut is then opened by the product, cut again while it opens, opened again and has to come right.

Thousands of states come to the same: to the same pages of the catalog in force, as tests/sim/recovery.py says, and the same bytes on the volumes.
SQLite recovers one of them, and every so-manyth of the others, and has to agree; the oracle reads one of each cut.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash

from tests.sim.ground import Grounds
from tests.sim.medium import SECTOR
from tests.sim.oracle import Books, audit, connect, demand
from tests.sim.plan import Cut, Episode, Plan
from tests.sim.recovery import PAGE, Recovery
from tests.sim.snapshot import Snapshot
from tests.sim.vfs import lighten_sqlite
from tests.sim.workloads import WORKLOADS, with_cut
from tests.sim.world import World

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from tests.sim.ground import Ground
    from tests.sim.medium import Change, Fate
    from tests.sim.recovery import InForce
    from tests.sim.snapshot import Catalog

LOOKED_AT = 16  # of so many states of the catalog one is recovered by SQLite, whatever it comes to
EXHAUSTIVE = 12  # of so many writes all subsets are tried
SAMPLES = 64  # of more writes so many subsets, and so many torn states
BLANK = bytes(PAGE)
BOUND = 1000  # operations of a workload

State = dict[int, "Fate"]  # by the write's number


def states(changes: Sequence[Change], rng: random.Random, samples: int) -> Iterator[State]:
    """Which of the writes are there."""
    everything = range(len(changes))
    if len(changes) <= EXHAUSTIVE:
        for kept in itertools.product((False, True), repeat=len(changes)):
            yield dict(enumerate(kept))
    else:
        for there in (False, True):
            yield dict.fromkeys(everything, there)
            for one in everything:
                yield {n: there != (n == one) for n in everything}
        for length in everything:
            yield {n: n < length for n in everything}
        for _ in range(samples):
            yield {n: rng.random() < 0.5 for n in everything}
    for _ in range(samples if changes else 0):
        yield {n: _torn(change, rng) for n, change in enumerate(changes)}


def _torn(change: Change, rng: random.Random) -> Fate:
    if not change.data or rng.random() < 0.3:
        return rng.random() < 0.5
    return tuple(n for n in range(-(-len(change.data) // SECTOR)) if rng.random() < 0.5)


@dataclass(slots=True)
class Known:
    """What the cuts of one workload have shown.

    Attributes:
        judged: states of the disks, each with what the clients knew.
        books: what a state of the catalog's files says: the same bytes say the same.
        recovered: what a database says with what is in force of its log.
        pages: digest of the pages of a database that these others do not replace.
        recovery: of logs.
    """

    judged: set[tuple[int, Catalog, tuple[str, ...]]] = field(default_factory=set)
    books: dict[Catalog, Books] = field(default_factory=dict)
    recovered: dict[tuple[int, InForce], Books] = field(default_factory=dict)
    pages: dict[tuple[int, frozenset[int]], int] = field(default_factory=dict)
    recovery: Recovery = field(default_factory=Recovery)


class CrashWorld(World):
    """A world whose first power loss is looked at from all sides.

    Attributes:
        was_cut: the power did fail before the store was closed.
    """

    def __init__(self, plan: Plan, ground: Ground, known: Known, *, samples: int) -> None:
        super().__init__(plan, ground)
        self.was_cut = False
        self._known, self._samples = known, samples

    def _cut_at_the_latest(self) -> None:
        """Not here: what the closing of the store writes is cut as well."""

    def _lose_power(self, cut: Cut | None, salt: object) -> None:
        if cut is None or cut.opening or not self.medium.dark:
            super()._lose_power(cut, salt)
            return
        self.was_cut = True
        self.proved.clear()
        snapshot = Snapshot(self.medium)
        fates = tuple(f"{sent.fate.name} {sent.gone}" for sent in self.history.values())
        rng = self.rng("states", salt)
        last: State | None = None
        audited: set[tuple[int, int]] = set()
        self._known.recovery.begin(snapshot.certain_of(f"{self.ground.catalog}-wal"))
        for state in states([change for _, change in snapshot.changes], rng, self._samples):
            volumes, catalog = snapshot.become(state)
            if (volumes, catalog, fates) not in self._known.judged:
                self._known.judged.add((volumes, catalog, fates))
                books = self._books_of(catalog)
                if (volumes, id(books)) not in audited:
                    audited.add((volumes, id(books)))
                    self._judge(books)
                last = state
        snapshot.become(
            dict.fromkeys(range(len(snapshot.changes)), False) if last is None else last
        )
        self.medium.settle()

    def _judge(self, books: Books) -> None:
        for disk in self.medium.disks.values():
            disk.settle()
        audit(self.site, books, self.known, decided=False, proved=set())

    def _books_of(self, catalog: Catalog) -> Books:
        """What a state of the catalog says."""
        known = self._known
        if catalog not in known.books:
            name = str(self.ground.catalog)
            found = known.recovery.of(self.medium.logs[f"{name}-wal"].durable)
            key = self._kept(catalog[0], found.replaced), found
            if key not in known.recovered or not len(known.books) % LOOKED_AT:
                self._recover(key)
            known.books[catalog] = known.recovered[key]
        return known.books[catalog]

    def _kept(self, database: int, replaced: frozenset[int]) -> int:
        """A digest of the pages of the database that are not in the log."""
        key = database, replaced
        if key not in self._known.pages:
            pages = bytearray(self.medium.logs[str(self.ground.catalog)].durable)
            for page in sorted(replaced):
                pages[(page - 1) * PAGE : page * PAGE] = BLANK
            self._known.pages[key] = xxhash.xxh3_128_intdigest(pages)
        return self._known.pages[key]

    def _recover(self, key: tuple[int, InForce]) -> None:
        """With SQLite's own recovery. Who may only read makes a new index of the log for it, and leaves the files as they are."""
        self.medium.settle()
        self._below.asleep = True
        try:
            with closing(connect(str(self.ground.catalog))) as db:
                db.execute("PRAGMA user_version").fetchall()
                with open(f"{self.ground.catalog}-shm", "rb") as index:
                    told = index.read(40)[16:]
                demand(key[1].is_told(told), "states", f"SQLite recovers {told!r}, not {key[1]}")
                if key not in self._known.recovered:
                    self._known.recovered[key] = Books.read(db)
        finally:
            self._below.asleep = False


class CrashFailed(AssertionError):
    """A state of the disks is wrong."""


def run_crashes(
    names: Sequence[str], grounds: Grounds, *, samples: int, step: int = 1
) -> Counter[str]:
    """Go through the crash states of some workloads; returns how many different ones each had.

    Raises:
        CrashFailed: one is wrong.
    """
    done: Counter[str] = Counter()
    for name in names:
        known = Known()
        for place in ("engine", "catalog"):
            for after in range(1, BOUND, step):
                cut = Cut(900, place, after, "all", opening=False)
                # The second loss strikes while the store opens after the first, each time a little later.
                again = Cut(901, place, 1 + after * 7 % 60, "torn", opening=True)
                second = Episode(902, (), False, False, False, again)
                first = with_cut(WORKLOADS[name], cut)
                plan = Plan(first.seed, first.site, (*first.episodes, second))
                world = CrashWorld(plan, grounds.of(plan.site), known, samples=samples)
                try:
                    world.run()
                except Exception as error:
                    raise CrashFailed(
                        f"{name}, cut after {after} of the {place}: {error!r}"
                    ) from error
                if not world.was_cut:
                    break  # the workload ends before that
        done[name] = len(known.judged)
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.crashes", description="Crash states."
    )
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help="of the states of a cut with many writes"
    )
    parser.add_argument("--core", default="0/1", help="the share of one of several processes: I/N")
    options = parser.parse_args(arguments)
    logging.disable()
    gc.freeze()  # what is there now stays: nobody need look at it between runs
    share, shares = map(int, options.core.split("/"))
    began = time.process_time()
    with Grounds() as grounds:
        try:
            done = run_crashes(list(WORKLOADS)[share::shares], grounds, samples=options.samples)
        except CrashFailed as error:
            print(error, file=sys.stderr)
            return 1
    seconds = round(time.process_time() - began, 1)
    print(
        json.dumps(
            {"states": done.total(), **done, "samples": options.samples, "cpu_seconds": seconds}
        )
    )
    return 0


if __name__ == "__main__":
    lighten_sqlite()
    sys.exit(main())
