"""Runs a plan: the product's own policy, sessions, store, catalog and engine, on simulated disks, clocks and threads.

What is real: everything under ``fanout/``, the engine's step function, SQLite. What is not: the clock, the ids, which of the threads
is next, and what the disks keep. Whatever a client is told is written down, and the oracle holds the store to it.
"""

from __future__ import annotations

import copy
import functools
import gc
import random
import struct
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from fanout.config import Access
from fanout.errors import FanoutError, IntegrityError
from fanout.store import Store
from fanout.types import Phase
from tests.sim import threads
from tests.sim.beside import Mend, Mending, configured
from tests.sim.client import Sending
from tests.sim.coming import Vanish, grown, vanish
from tests.sim.deleting import Deleting
from tests.sim.ground import LATE, START_NS, new_engine
from tests.sim.holdings import less, meets
from tests.sim.medium import WRITE, Carried
from tests.sim.operators import Operators
from tests.sim.oracle import (
    Books,
    Fate,
    Known,
    Violation,
    check_catalog,
    check_media,
    connect,
    demand,
)
from tests.sim.oracle import audit as judge
from tests.sim.patches import fault_of, patched
from tests.sim.plan import Episode
from tests.sim.steps import Delete, GiveUp
from tests.sim.vfs import Below, below_sqlite

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path

    from fanout.config import Config
    from fanout.engine import Engine, Fault
    from fanout.volume import Volume
    from tests.sim import plan as plans
    from tests.sim.ground import Ground
    from tests.sim.steps import Step

COUNTED = (
    "sessions", "attempts", "committed", "retries", "failed", "cuts", "lost", "faults", "catalog faults", "operations",
    "audits", "rebuilds", "switches", "deleted", "rotten", "marked", "retired", "lost for good", "catalogs lost",
    "found again", "left aside", "came back", "beside", "vanished", "grown",
)  # fmt: skip
REBUILD_EVERY = 8  # of so many plans one is rebuilt from its volumes at the end
_CARRIED = struct.Struct("=4QqqQHBBI")  # how an operation stands in the trace: without its inode
BEHIND = "books are wrong"  # of the refusal of a store that the next opening puts right
PAUSE = 100.0  # simulated seconds between episodes and sessions: longer than a failed volume waits to be tried again


@functools.cache
def _line_of(operation: str, path: str) -> str:
    return f"catalog {operation} {path[-4:]}"


class _Read(NamedTuple):
    """What the catalog said: at which of its versions, and after how many writes into its log."""

    version: int
    logged: int
    books: Books


class World:
    """One run of one plan. Single use.

    Attributes:
        traced: the engine's operations stand in the trace, too.
        known: what clients were told and what was done to the store.
        history: of that the transactions, by their ids in hexadecimal digits.
        cut_off: those whose clients do not know how they ended, with their attempt.
        spares: pool and path of volumes that were added.
        vanished: disks on which everything fails until the store is closed or healed, and how.
        rebuild: the catalog is rebuilt from the volumes at the end, too.
        hanging: pools in which something may hang.
        lines: what happened, if `keep_trace`.
        counts: what happened how often.
        struck: a fault was met.
        live: regions that committed spans keep.
        proved: copies and spans that were looked at, and that nothing has touched since.
        script: faults of the catalog, and how often their operation was seen.
        unknown: a client of this opening was told that nobody knows whether a commit happened.
    """

    traced = True

    def __init__(
        self, plan: plans.Plan, ground: Ground, *, keep_trace: bool = False, rebuild: bool = False
    ) -> None:
        self.rebuild = rebuild or plan.seed % REBUILD_EVERY == 0
        self.plan, self.site, self.ground, self.medium = plan, plan.site, ground, ground.medium
        self.known = Known()
        self.history = self.known.history
        self.cut_off: dict[str, tuple[plans.Session, plans.Transaction, int]] = {}
        self.spares: list[tuple[str, Path]] = []
        self.vanished: list[Fault] = []
        self._lines: list[Fault] = []
        self.hanging: set[str] = set()
        self.lines: list[str] | None = [] if keep_trace else None
        self.counts: dict[str, int] = dict.fromkeys(COUNTED, 0)
        self.engine: Engine
        self.store: Store
        self.operators = Operators(self)
        self.seconds = 1000.0
        self.stamps = count(START_NS, 1_000_000)
        self.ids = random.Random(f"ids {plan.seed}")
        self._hash, self._base = xxhash.xxh3_128(), f"{ground.base}/"
        self._eye: sqlite3.Connection | None = None
        self._read: _Read | None = None
        self.proved: set[Any] = set()
        self.live: dict[str, list[tuple[int, int]]] = {}
        self._wrong: list[BaseException] = []
        self.script: list[list[Any]] = []
        self._cut_place, self._cut_catalog = "", 0
        self._ailing = False  # the engine has a script
        self.struck = self.unknown = False
        self._below = Below(self.medium)
        self._below.script, self._below.wrong = self._catalog_script, self._wrong.append

    # ---- the whole run -------------------------------------------------------------------------------

    def run(self) -> str:
        """Run all of it. Returns the digest of the trace: equal for equal plans."""
        try:
            self._run((*self.plan.episodes, None))
        finally:
            self.medium.reset()
        return self._hash.hexdigest()

    def prepare(self) -> None:
        """Run the episodes; what they leave is what every run on this ground begins with: see `go_on_from`."""
        self._run(self.plan.episodes)
        self.medium.adopt()
        self.medium.reset()

    def go_on_from(self, other: World) -> None:
        """Know what was known at the end of one that has prepared this ground. It may be asked any number of times."""
        self.known, self.cut_off = other.known.copy(), dict(other.cut_off)
        self.history = self.known.history
        self.operators.away = dict(other.operators.away)
        self.spares, self.live = list(other.spares), dict(other.live)
        self.seconds, self.stamps = other.seconds, copy.copy(other.stamps)
        self.ids.setstate(other.ids.getstate())

    def _run(self, episodes: Sequence[plans.Episode | None]) -> None:
        self.medium.watch, self.medium.watches_all = self._watch, self.traced
        gc_was_on = gc.isenabled()
        gc.disable()  # a collection settles reservations that nobody remembers: not at moments of its own
        try:
            with patched(self), below_sqlite(self._below):
                for episode in episodes:
                    self._live_through(episode)
        finally:
            self.look_away()
            self.counts["operations"] = self.medium.operations
            if gc_was_on:
                gc.enable()

    def note(self, line: str) -> None:
        """Into the trace."""
        self._note(line.replace(self._base, ""))

    def _note(self, line: str) -> None:
        """A line that names no path."""
        self._hash.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    def rng(self, *salt: object) -> random.Random:
        """Random numbers for one purpose: what the plan leaves out does not change those of the rest."""
        return random.Random(f"{self.plan.seed} {salt}")

    def _live_through(self, episode: plans.Episode | None) -> None:
        """One episode; None: the last one, in which nothing fails and everything has to come right."""
        self.operators.before(episode)
        self._live(episode)

    def quietly(self, number: int) -> None:
        """An episode without clients and faults; what is lost for good is given up."""
        step = GiveUp(number, (), ())
        self._live(Episode(number, (), False, False, False, None, steps=(step,)))

    def _live(self, episode: plans.Episode | None) -> None:
        salt = episode.id if episode else "end"
        if episode is None:
            self.proved.clear()
        cut = episode.cut if episode else None
        self.seconds += PAUSE
        scheduler = threads.Scheduler(self.rng("threads", salt))
        threads.use(scheduler)
        self.disarm()
        self._ailing = False
        self.hanging, self.vanished = set(), []
        self.medium.begin()
        self.engine = new_engine(self.rng("engine", salt).getrandbits(32))
        self.engine.record_to(self.medium.journal)
        try:
            self._open_and_work(episode, cut)
        finally:
            scheduler.end()
            self.take()
            self.engine.close(timeout=0)
            self.counts["switches"] += scheduler.switches
        self.counts["faults"] += len(self.medium.faults)
        self.struck = self.struck or self.medium.struck
        self._raise_what_is_wrong()
        self._lose_power(cut, salt)
        if episode is None:
            check_catalog(str(self.ground.catalog))
            if self.rebuild:
                self.operators.check_rebuild()

    def side_engine(self) -> Engine:
        """Of a command that opens volumes beside no store."""
        self.take()
        self.struck = self.struck or self.medium.struck
        self.medium.begin()
        engine = new_engine(self.plan.seed)
        engine.record_to(self.medium.journal)
        engine.set_faults(self._lines)
        return engine

    def ail(self, step: Step) -> None:
        """What a step says fails from now on in commands that work on the closed store, until `disarm`."""
        self._lines = [fault_of(fault, None) for fault in step.faults]
        self._fail_catalog(step.catalog_faults)

    @property
    def ailing(self) -> bool:
        """Whether such a command may fail."""
        return bool(self.script or self._lines)

    def _lose_power(self, cut: plans.Cut | None, salt: object) -> None:
        rng = self.rng("loss", salt)
        if not self.medium.dark and rng.random() < 0.5:
            return  # the machine was left alone
        # Also after a clean end: then nothing that matters may be lost.
        loss = cut.loss if cut and self.medium.dark else "all"
        self.counts["cuts"] += self.medium.dark
        lost = self.medium.lose(rng, loss)
        self.proved.clear()
        self.counts["lost"] += lost
        self.note(f"power lost, {loss}: {lost}")

    def _open_and_work(self, episode: plans.Episode | None, cut: plans.Cut | None) -> None:
        if cut and cut.opening:
            self._arm(cut)
        if episode and (episode.faults or episode.catalog_faults):
            self.break_down(episode)
        try:
            store = self.store = Store.open(
                configured(self.config, episode), engine=self.engine, lock_wait=0,
                flush_before_acknowledge=bool(episode and episode.flush_first),
            )  # fmt: skip
        except FanoutError as error:
            self.note(f"not opened: {error}")
            ailing = not self.powered() or self.script or self._ailing
            demand(ailing, "open", f"a store that nothing ails does not open: {error}")
            return
        try:
            self._work(episode, cut)
        finally:
            volumes = self._writable(store)
            read = self._read
            self.look_away()
            try:
                store.close()
            except FanoutError as error:
                demand(not self.powered() or self.script, "close", f"{error}")
            if BEHIND in (
                store.refusal or ""
            ):  # perhaps since the close, which waits for the records
                volumes = []
        if self.powered():
            # Also one that failed while the store was closed keeps its reason.
            paths = [volume.path for volume in volumes if not volume.reason]
            # Without a write into the log nobody has committed since. The last episode reads all again.
            same = episode is not None and read is not None and read.logged == self.medium.logged
            books = read.books if read is not None and same else self.books()
            check_media(books, paths, self.known.rot, self.proved)
            self.look_away()

    def _work(self, episode: plans.Episode | None, cut: plans.Cut | None) -> None:
        if self.powered():
            self.audit(decided=True)
        if cut and not cut.opening:
            self._arm(cut)
        if episode is None:
            self.operators.come_right()
        else:
            self._resend()
            self._sessions(episode)
            self.operators.work(episode)
            self.read_some(episode.id)
        if self.powered():
            self.thaw()
            self.audit(decided=False)
            for volume in self.store.pools.volumes():
                if volume.allocator is not None:
                    volume.allocator.check()
        if cut:
            self._cut_at_the_latest()

    @staticmethod
    def _writable(store: Store) -> list[Volume]:
        """Volumes whose directories have to know all that is committed: none that is only read."""
        pools = store.config.pools
        return [v for v in store.pools.volumes() if pools[v.pool].access is Access.READWRITE]

    @property
    def config(self) -> Config:
        """With the volumes that were added."""
        return grown(self.ground.config, self.spares)

    @property
    def volumes(self) -> int:
        """How many the configuration names."""
        return sum(len(pool.volumes) for pool in self.config.pools.values())

    # ---- power, and what the disks see ---------------------------------------------------------------

    def powered(self) -> bool:
        self.take()
        return not self.medium.dark

    def lose_all(self, salt: object) -> None:
        """The power fails while nobody has the store open: nothing that matters may be lost."""
        self.take()
        self.look_away()
        self.counts["lost"] += self.medium.lose(self.rng("loss", salt), "all")
        self.note("power lost")

    def take(self) -> None:
        """Look at what the engine has done since."""
        self.medium.take()

    def disarm(self) -> None:
        """Nothing fails on a closed store, unless a step says so."""
        self.script, self._cut_catalog, self._below.reads = [], 0, False
        self._lines, self.unknown = [], False

    def _arm(self, cut: plans.Cut) -> None:
        if cut.place == "engine":
            self.engine.cut_power(after=cut.after)
        else:
            self._cut_place, self._cut_catalog = cut.place, cut.after

    def _cut_at_the_latest(self) -> None:
        """The clients are done, and the power has not failed yet."""
        self.engine.cut_power()

    def _catalog_script(self, operation: str, path: str) -> tuple[str, bool] | None:
        self.medium.take()
        if self.medium.dark:
            return f"EIO {operation}", False
        if operation != "read" and self.traced:  # there are many
            self._note(_line_of(operation, path))
        if self._cut_catalog and self._cut_place in ("catalog", operation):
            self._cut_catalog -= 1
            if not self._cut_catalog:
                self.engine.cut_power()
                return f"EIO {operation}", self._cut_place == "sync"
        for line in self.script:
            fault, seen = line
            if fault.operation == operation:
                line[1] = seen + 1
                if seen + 1 == fault.nth or (fault.forever and seen + 1 > fault.nth):
                    self.counts["catalog faults"] += 1
                    self.struck = True
                    self.note(f"{fault.code} {'after' if fault.after else 'before'}")
                    return fault.code, fault.after
        return None

    def _watch(self, path: str, carried: Carried, written: bytes) -> None:
        """Every operation of the engine: into the trace; V7: nothing live is written again."""
        if self.traced:
            self._trace(path, carried, written)
        if carried.kind == WRITE and written:
            begin, end = carried.offset, carried.offset + len(written)
            if meets(self.live.get(path, ()), begin, end):
                self.live = self.books().live()  # what was deleted since may be written over
                if meets(self.live.get(path, ()), begin, end):
                    name = path.rpartition("/")[2]
                    what = f"{name}: {carried.offset}+{len(written)} written over a live span"
                    self._wrong.append(Violation(f"V7: {what}"))
            if path in self.known.rot:
                self.known.rot[path] = less(self.known.rot[path], [(begin, end)])

    def _trace(self, path: str, carried: Carried, written: bytes) -> None:
        name = path.rpartition("/")[2]
        self._hash.update(name.encode())
        self._hash.update(_CARRIED.pack(*carried[:2], *carried[3:]))
        self._hash.update(written)
        if self.lines is not None:
            kind, digest = Phase(carried.kind).name.lower(), xxhash.xxh3_64_hexdigest(written)
            self.lines.append(
                f"{carried.issued}-{carried.done} {name} {kind} {carried.offset}+{carried.length}:"
                f" {carried.medium} told {carried.result} [{digest}]"
            )

    def _raise_what_is_wrong(self) -> None:
        if self._wrong:
            raise self._wrong[0]

    def thaw(self) -> None:
        """Nothing fails any more."""
        self.vanished = []
        self.engine.set_faults([])
        self._come_back()
        self.script, self._below.reads = [], False

    def _come_back(self) -> None:
        """What hangs is done after all, late (V8)."""
        self.engine.release(None)
        self.engine.advance(LATE)
        self.take()

    # ---- clients -------------------------------------------------------------------------------------

    def _sessions(self, episode: plans.Episode) -> None:
        scheduler = threads.current()

        def client(session: plans.Session) -> None:
            try:
                self._session(session)
            except threads.End:
                raise
            except BaseException as error:
                self._wrong.append(error)

        def operate(step: Delete | Mend | Vanish) -> None:
            alone = not episode.together
            try:
                if isinstance(step, Delete):
                    Deleting(self, step, alone=alone).run()
                elif isinstance(step, Vanish):
                    vanish(self, step, alone=alone)
                else:
                    Mending(self, step, alone=alone).run()
            except threads.End:
                raise
            except BaseException as error:
                self._wrong.append(error)

        running = []
        for number, session in enumerate((*episode.sessions, None)):
            due = [step for step in episode.steps if isinstance(step, Delete | Mend | Vanish)]
            for step in due:
                if step.after != number:
                    continue
                if episode.together:
                    work = functools.partial(operate, step)
                    running.append(scheduler.start(f"{type(step).__name__} {step.id}", work))
                else:
                    operate(step)
            if session is None:
                break
            if episode.together:
                work = functools.partial(client, session)
                running.append(scheduler.start(f"session {session.id}", work))
            else:
                client(session)
        scheduler.wait(lambda: all(task.over for task in running), "the clients")
        self._raise_what_is_wrong()

    def _session(self, planned: plans.Session) -> None:
        if not self.powered():
            return  # nobody is left to begin one
        self.seconds += PAUSE
        self.counts["sessions"] += 1
        try:
            session = self.store.session(planned.node, kind=planned.kind)
        except FanoutError as error:
            self.note(f"session {planned.id} refused: {error}")
            demand(not self.powered() or self.script, "session", f"{error}")
            return
        self.break_down(planned)
        demand(not session.removed, "V13", "a new session begins with full lists")
        if self.hanging and self.rng("late", planned.id).random() < 0.5:
            self._come_back()
        with session:
            for txn in planned.transactions:
                Sending(self, session, planned, txn).send()
        self.note(f"session {planned.id} over, removed {list(session.removed)}")

    def break_down(self, part: plans.Session | plans.Episode | Step) -> None:
        """Its faults take the place of those before."""
        lines = []
        for fault in part.faults:
            if fault.pool == "*":
                lines.append(fault_of(fault, None))
                self.hanging.update(self.site.pools if fault.action in ("never", "late") else ())
                continue
            for volume in self.store.pools.volumes():
                if volume.pool == fault.pool:
                    lines.append(fault_of(fault, volume.target))
                    if fault.action in ("never", "late"):
                        self.hanging.add(fault.pool)
        self._lines = lines
        self.fail()
        self._fail_catalog(part.catalog_faults)

    def _fail_catalog(self, faults: Sequence[plans.CatalogFault]) -> None:
        self.script = [[fault, 0] for fault in faults]
        self._below.reads = any(fault.operation == "read" for fault in faults)

    def fail(self) -> None:
        """What is to fail fails from now on, and what has vanished is gone."""
        lines = [*self.vanished, *self._lines]
        self.engine.set_faults(lines)
        self._ailing = bool(lines)

    def _resend(self) -> None:
        """What was cut off is sent again, also if it was stored: then nothing may be stored twice."""
        if not self.powered():
            return
        cut_off, self.cut_off = self.cut_off, {}
        for tx, (planned, txn, attempt) in cut_off.items():
            if self.powered() and self.rng("resend", tx).random() < 0.7:
                with self.store.session(planned.node, kind=planned.kind) as session:
                    Sending(self, session, planned, txn).again(bytes.fromhex(tx), attempt + 1)

    # ---- looking -------------------------------------------------------------------------------------

    def read_some(self, salt: int, *, beside: bool = False) -> None:
        """A few objects by the product's own way: other bytes than were sent are never handed out.

        `beside`: others delete and repair meanwhile.
        """
        due = self._due()
        rng = self.rng("read", salt)
        for node, name in rng.sample(sorted(due), min(2, len(due))):
            try:
                data = self.store.get(node, name).read()
            except IntegrityError:
                demand(self.known.rot or beside, "V1", f"{name!r} of {node} is damaged")
                continue
            except FanoutError as error:
                self.note(f"not read: {error!r}")
                continue
            sent = due[node, name] | self._due().get((node, name), set())  # perhaps meanwhile
            good = xxhash.xxh3_128_digest(data) in sent
            demand(good, "V1", f"{name!r} of {node} was read with other bytes")

    def _due(self) -> dict[tuple[str, bytes], set[bytes]]:
        """Digests of what may be there under each name."""
        due: dict[tuple[str, bytes], set[bytes]] = {}
        for sent in self.history.values():
            for number, (name, _, digest) in enumerate(sent.objects):
                if number not in sent.gone and sent.fate is not Fate.ABSENT:
                    due.setdefault((sent.node, name), set()).add(digest)
        return due

    def audit(self, *, decided: bool) -> None:
        """V1 to V5, V7, V11; once the store was opened anew, nothing is unknown any more."""
        self.take()
        self._raise_what_is_wrong()
        books = self.books()
        judge(self.site, books, self.known, decided=decided, proved=self.proved)
        self.live = books.live()
        for path, regions in self.live.items():
            found = self.medium.unsynced(path, regions)
            demand(not found, "V11", f"{path}: committed, and no flush has covered it: {found}")
        self.counts["audits"] += 1

    def books(self) -> Books:
        """What the catalog says; not read again if nobody has committed since."""
        self._below.asleep = True
        try:
            if self._eye is None:
                self._eye = connect(str(self.ground.catalog))
            (version,) = self._eye.execute("PRAGMA data_version").fetchone()
            if self._read is None or self._read.version != version:
                logged = self.medium.logged
                self._read = _Read(version, logged, Books.read(self._eye))
            return self._read.books
        finally:
            self._below.asleep = False

    def look_away(self) -> None:
        """Nobody but the store has the catalog open: the last one to close it folds its log."""
        if self._eye is not None:
            self._eye.close()
            self._eye = self._read = None
