"""Counting loops: the first operation fails, then the second, and so on, until a workload no longer reaches the one that would.

::

    python -m tests.sim.loops [--every N] [--opening] [--core I/N]

Each workload of tests/sim/workloads.py, each operation of the engine (a read, write, flush, open, close …) and of the catalog, each class
of errno, once and for ever, before and after the operation is carried out; short and zero transfers; an operation that hangs. In each
case the spans of every volume without a fault must be given what they are given without any fault (V12), up to the first attempt
that fails or has to do without a volume: from then on things may go elsewhere. After each case everything heals, and the store must come right by the whole oracle of
tests/sim/world.py.

Some workloads begin with a store that has been used. What comes before is done once, and its files are what every case starts from.

Cases that leave the same store are healed once: the same bytes on the volumes, durable and not, the same rows but for the errno and
the words of a gap, and clients who know the same. The audit before that is made in every case.
"""

from __future__ import annotations

import argparse
import errno
import gc
import itertools
import json
import logging
import sys
import time
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import xxhash

from tests.sim.ground import DIRECTORY_BYTES, Grounds
from tests.sim.medium import WRITE
from tests.sim.oracle import connect, demand
from tests.sim.plan import HEAD, CatalogFault, Fault
from tests.sim.recovery import FRAME, LOG_HEAD
from tests.sim.vfs import CODES, lighten_sqlite
from tests.sim.workloads import LOOPED
from tests.sim.world import World, _Read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.sim.ground import Ground
    from tests.sim.medium import Carried
    from tests.sim.oracle import Books
    from tests.sim.plan import Episode, Plan
    from tests.sim.workloads import Workload

# One of each class of csrc/fo_errno.c.
ERRNOS = (
    errno.EIO, errno.ENODATA, errno.ENOSPC, errno.ETIMEDOUT, errno.EPERM, errno.EBADE, errno.EMFILE, errno.EAGAIN,
)  # fmt: skip
CATALOG = {
    "read": ("EIO read", "ENOMEM"),
    "write": ("EIO write", "ENOSPC", "ENOMEM"),
    "sync": ("EIO sync",),
    "truncate": ("EIO truncate",),
}
# All that a catalog holds but for the words and the errno of a gap, which nobody acts on.
TABLES = (
    "* FROM store", "* FROM node", "* FROM pool", "* FROM volume", "* FROM attempt", "* FROM aggregate", "* FROM object",
    "* FROM copy", "* FROM placement", "aggregate, pool, missing FROM gap",
    "* FROM erased", "* FROM deletion", "* FROM dead_region",
)  # fmt: skip
# Where spans begin. The records before them lie as they came together, and V16 reads them.
SPANS = HEAD + 2 * DIRECTORY_BYTES
UNASKED = -1  # a version that no catalog has
BOUND = 2000  # operations of a workload: far more than any has


def engine_faults() -> Iterator[tuple[str, int, bool]]:
    """Action, value, and whether it lasts."""
    for number in ERRNOS:
        for action in ("errno", "after"):
            for forever in (False, True):
                yield action, number, forever
    yield "short", 4096, False
    yield "short", 512, True
    yield "zero", 0, False
    yield "never", 0, False


def catalog_faults() -> Iterator[tuple[str, str, bool, bool]]:
    """Operation, code, whether it lasts, and whether it is carried out all the same."""
    for operation, codes in CATALOG.items():
        for code in codes:
            assert code in CODES
            for forever, after in itertools.product((False, True), repeat=2):
                if not (after and operation == "read"):
                    yield operation, code, forever, after


def cases(workload: Workload, *, opening: bool) -> Iterator[Iterator[Plan]]:
    """For each kind of fault the plans in which it strikes one operation later each."""
    for action, value, forever in engine_faults() if workload.where != "catalog" else ():
        yield (
            workload.struck_by(Fault(0, "*", action, 0, value, n, forever), opening=opening)
            for n in range(1, BOUND)
        )
    for operation, code, forever, after in catalog_faults():
        yield (
            workload.struck_by(CatalogFault(0, operation, code, n, forever, after), opening=opening)
            for n in range(1, BOUND)
        )


class LoopFailed(AssertionError):
    """A case found something."""


# By volume: offset and digest of each. Writes that are in flight together have no order.
Writes = dict[str, set[tuple[int, int]]]


@dataclass(slots=True)
class Known:
    """What the cases of one workload have shown.

    Attributes:
        untroubled: what each volume is given when nothing fails; None: not known yet.
        healed: stores that came right.
        rows: a digest of what the catalog says, by one of its files: of hundreds of cases the bytes are the same.
        books: what it says while it is open, likewise.
        before: the world of the episodes that come before it.
    """

    untroubled: Writes | None = None
    healed: set[int] = field(default_factory=set)
    rows: dict[int, bytes] = field(default_factory=dict)
    books: dict[int, Books] = field(default_factory=dict)
    before: World | None = None


class LoopWorld(World):
    """One case.

    Attributes:
        written: to the spans of each volume, while they may be compared.
    """

    traced = False  # nobody asks for the digest of a case

    def __init__(self, plan: Plan, ground: Ground, known: Known) -> None:
        super().__init__(plan, ground)
        self.written: Writes = defaultdict(set)
        self._known = known
        self._attempt, self._elsewhere = 0, False
        self._left: int | None = None
        self._seen: tuple[int, bytes, int] | None = None

    def _watch(self, path: str, carried: Carried, written: bytes) -> None:
        super()._watch(path, carried, written)
        if carried.kind == WRITE and carried.offset >= SPANS and self._may_compare():
            self.written[path].add((carried.offset, xxhash.xxh3_64_intdigest(written)))

    def _may_compare(self) -> bool:
        """Up to the first attempt that fails, or that begins without one of the volumes: from then on things may go elsewhere."""
        counts = self.counts
        if counts["attempts"] != self._attempt:
            self._attempt = counts["attempts"]
            whole = sum(not volume.reason for volume in self.store.pools.volumes())
            self._elsewhere = self._elsewhere or whole < self.volumes
        self._elsewhere = self._elsewhere or counts["retries"] + counts["failed"] > 0
        return not self._elsewhere

    def _live(self, episode: Episode | None) -> None:
        if episode is not None:
            super()._live(episode)
            self._check_survivors()
            self._left = self._what_is_left()
        elif self._left not in self._known.healed:
            super()._live(None)
            assert self._left is not None
            self._known.healed.add(self._left)

    def audit(self, *, decided: bool) -> None:
        if self.history:  # else the store is as it was made
            super().audit(decided=decided)

    def _check_survivors(self) -> None:
        """V12."""
        if self._known.untroubled is None:
            self._known.untroubled = dict(self.written)
        if any(episode.together or not episode.sessions for episode in self.plan.episodes):
            return  # whose turn it is depends on what fails, and so do ids and places; and what of a pool is mended elsewhere
        guilty = {path for path, _ in self.medium.faults}
        for path, written in self.written.items():
            foreign = written - self._known.untroubled.get(path, set())
            what = f"{path}, which did not fail, was given something else: {foreign}"
            demand(path in guilty or not foreign, "V12", what)

    def _what_is_left(self) -> int:
        digest = xxhash.xxh3_128()
        for disk in self.medium.disks.values():
            numbers = sorted(disk.blocks)
            digest.update(repr(numbers).encode())
            digest.update(b"".join([disk.blocks[number] for number in numbers]))
        for log in self.medium.logs.values():
            digest.update(b"%d" % log.exists)
        for file in self.medium.files.values():
            for change in file.volatile:
                digest.update(b"%d %d %d" % (change.offset, change.flying, change.doomed))
                digest.update(change.data or b"")
        digest.update(self._rows())
        for transaction, sent in self.history.items():
            digest.update(f"{transaction} {sent.fate} {len(sent.objects)} {sent.gone}".encode())
        digest.update(f"{self.known.rot} {sorted(self.known.hurt)} {self.known.doubts}".encode())
        return digest.intdigest()

    def books(self) -> Books:
        key = self._in_force()
        if key not in self._known.books:
            self._known.books[key] = super().books()
        self._read = _Read(UNASKED, self.medium.logged, self._known.books[key])
        return self._read.books

    def _in_force(self) -> int:
        """A digest of all that counts of the catalog's files: the index of the log says how much of that does."""
        clock, told = self.medium.clock, self._index()
        if self._seen is not None and self._seen[:2] == (clock, told):
            return self._seen[2]
        digest = xxhash.xxh3_128(told)
        database, log = map(_bytes_of, self.medium.logs)
        if told:
            log = log[: LOG_HEAD + int.from_bytes(told[:4], sys.byteorder) * FRAME]
        digest.update(b"%d" % len(database))
        digest.update(database)
        digest.update(log)
        self._seen = clock, told, digest.intdigest()
        return self._seen[2]

    def _index(self) -> bytes:
        """How much of the log counts, as its index says it; empty: there is none."""
        return _bytes_of(f"{self.medium.catalog}-shm", 40)[16:]

    def _rows(self) -> bytes:
        """A digest of the catalog's rows."""
        files = xxhash.xxh3_128()
        for path in self.medium.logs:
            data = _bytes_of(path)
            files.update(b"%d" % len(data))
            files.update(data)
        key = files.intdigest()
        if key not in self._known.rows:
            digest = xxhash.xxh3_128()
            self.disarm()  # a store that did not open has left what keeps it from it
            with closing(connect(str(self.ground.catalog))) as db:
                for table in TABLES:
                    digest.update(repr(db.execute(f"SELECT {table}").fetchall()).encode())
            self._known.rows[key] = digest.digest()
        return self._known.rows[key]


def _bytes_of(path: str, count: int = -1) -> bytes:
    """The first of a file, or all; none: there is no file, or nothing in it."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(count)
    except FileNotFoundError:
        return b""


def run_loops(
    names: Sequence[str], grounds: Grounds, *, every: int = 1, opening: bool = False
) -> Counter[str]:
    """Run the loops of some workloads to their ends.

    Args:
        names: of the workloads.
        grounds: to run on.
        every: of the operations only every so-manyth, and the first ones; 1: all.
        opening: count from the opening of the store.

    Raises:
        LoopFailed: a case found something, or a loop had no end.
    """
    done: Counter[str] = Counter()
    for name in names:
        known = Known()
        ground = prepared(name, grounds, known)
        strikes(name, LOOPED[name].plan, ground, known)
        for loop in cases(LOOPED[name], opening=opening):
            for n, plan in enumerate(loop, 1):
                if n > 3 and n % every:
                    continue
                if not strikes(name, plan, ground, known):
                    break  # the workload completed untouched
                done[name] += 1
            else:
                raise LoopFailed(f"{name}: no end after {BOUND} operations")
        done["healed"] += len(known.healed)
    return done


def prepared(name: str, grounds: Grounds, known: Known) -> Ground:
    """The ground of a workload, on which has happened what comes before it."""
    workload = LOOPED[name]
    if not workload.before:
        return grounds.of(workload.site)
    ground = grounds.of_its_own(workload.site, f"loop-{workload.number}")
    known.before = World(replace(workload.plan, episodes=workload.before), ground)
    known.before.prepare()
    return ground


def strikes(name: str, plan: Plan, ground: Ground, known: Known) -> bool:
    """Run one case; False: nothing was struck."""
    world = LoopWorld(plan, ground, known)
    if known.before is not None:
        world.go_on_from(known.before)
    try:
        world.run()
    except Exception as error:
        raise LoopFailed(f"{name}: {error!r}\n{plan}") from error
    return world.struck


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.loops", description="Counting loops."
    )
    parser.add_argument("--every", type=int, default=1, help="only every so-manyth operation")
    parser.add_argument(
        "--opening", action="store_true", help="count from the opening of the store"
    )
    parser.add_argument("--core", default="0/1", help="the share of one of several processes: I/N")
    options = parser.parse_args(arguments)
    logging.disable()
    gc.freeze()  # what is there now stays: nobody need look at it between runs
    share, shares = map(int, options.core.split("/"))
    began = time.process_time()
    names = list(LOOPED)[share::shares]
    with Grounds() as grounds:
        try:
            done = run_loops(names, grounds, every=options.every, opening=options.opening)
        except LoopFailed as error:
            print(error, file=sys.stderr)
            return 1
    seconds = round(time.process_time() - began, 1)
    print(json.dumps({"cases": done.total() - done["healed"], **done, "cpu_seconds": seconds}))
    return 0


if __name__ == "__main__":
    lighten_sqlite()
    sys.exit(main())
