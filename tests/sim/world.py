"""Runs a plan: the product's own policy, sessions, store, catalog and engine, on simulated disks, clocks and threads.

What is real: everything under ``fanout/``, the engine's step function, SQLite. What is not: the clock, the ids, which of the threads
is next, and what the disks keep. Whatever a client is told is written down, and the oracle holds the store to it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import random
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import xxhash

import fanout.catalog.door
import fanout.catalog.reader
import fanout.committer
import fanout.growing
import fanout.ledger
import fanout.opening
import fanout.pools
import fanout.rebuild.survey
import fanout.reconcile
import fanout.scribe
import fanout.store
import fanout.volume
from fanout.catalog import Catalog
from fanout.engine import Fault
from fanout.errors import FanoutError, IntegrityError
from fanout.pool import Pool
from fanout.pools import PoolSet
from fanout.rebuild import rebuild_catalog
from fanout.reconcile import backup_stgpool, copy_activedata
from fanout.session import Session
from fanout.store import Store
from fanout.types import Phase
from tests.sim import threads
from tests.sim.client import Sending
from tests.sim.ground import HARD_DEADLINE, START_NS, new_engine
from tests.sim.medium import WRITE, Carried
from tests.sim.oracle import (
    Books,
    Fate,
    Sent,
    Violation,
    audit,
    check_catalog,
    check_gaps,
    check_media,
    comparable,
    connect,
    demand,
)
from tests.sim.vfs import Below, below_sqlite

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from fanout.engine import Engine, Target
    from tests.sim import plan as plans
    from tests.sim.ground import Ground

COUNTED = (
    "sessions", "attempts", "committed", "retries", "failed", "cuts", "lost", "faults", "catalog faults", "operations",
    "audits", "rebuilds", "switches",
)  # fmt: skip
REBUILD_EVERY = 8  # of so many plans one is rebuilt from its volumes at the end
CROWDED = 100  # aggregates that the directories of a secondary's volumes have room for, however they came to be there
PAUSE = 100.0  # simulated seconds between episodes and sessions: longer than a failed volume waits to be tried again


class World:
    """One run of one plan. Single use.

    Attributes:
        history: every transaction that was sent, by its id in hexadecimal digits.
        cut_off: those whose clients do not know how they ended, with their attempt.
        rebuild: the catalog is rebuilt from the volumes at the end, too.
        hanging: pools in which something may hang.
        lines: what happened, if `keep_trace`.
        counts: what happened how often.
        struck: a fault was met.
        unknown: a client of this opening was told that nobody knows whether a commit happened.
    """

    def __init__(
        self, plan: plans.Plan, ground: Ground, *, keep_trace: bool = False, rebuild: bool = False
    ) -> None:
        self.rebuild = rebuild or plan.seed % REBUILD_EVERY == 0
        self.plan, self.site, self.ground, self.medium = plan, plan.site, ground, ground.medium
        self.history: dict[str, Sent] = {}
        self.cut_off: dict[str, tuple[plans.Session, plans.Transaction, int]] = {}
        self.hanging: set[str] = set()
        self.lines: list[str] | None = [] if keep_trace else None
        self.counts: dict[str, int] = dict.fromkeys(COUNTED, 0)
        self.engine: Engine
        self.store: Store
        self.seconds = 1000.0
        self.stamps = count(START_NS, 1_000_000)
        self.ids = random.Random(f"ids {plan.seed}")
        self._hash, self._base = xxhash.xxh3_128(), f"{ground.base}/"
        self._eye: sqlite3.Connection | None = None
        self._proved: set[Any] = set()
        self._live: dict[str, list[tuple[int, int]]] = {}
        self._wrong: list[BaseException] = []
        self._script: list[
            list[Any]
        ] = []  # faults of the catalog, and how often their operation was seen
        self._cut_place, self._cut_catalog = "", 0
        self._ailing = False  # the engine has a script
        self.struck = self.unknown = False
        self._below = Below(self.medium)
        self._below.script, self._below.wrong = self._catalog_script, self._wrong.append

    # ---- the whole run -------------------------------------------------------------------------------

    def run(self) -> str:
        """Run all of it. Returns the digest of the trace: equal for equal plans."""
        self.medium.watch = self._watch
        gc_was_on = gc.isenabled()
        gc.disable()  # a collection settles reservations that nobody remembers: not at moments of its own
        try:
            with _patched(self), below_sqlite(self._below):
                for episode in (*self.plan.episodes, None):
                    self._live_through(episode)
        finally:
            self._look_away()
            self.counts["operations"] = self.medium.operations
            self.medium.reset()
            if gc_was_on:
                gc.enable()
        return self._hash.hexdigest()

    def note(self, line: str) -> None:
        """Into the trace."""
        line = line.replace(self._base, "")
        self._hash.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    def rng(self, *salt: object) -> random.Random:
        """Random numbers for one purpose: what the plan leaves out does not change those of the rest."""
        return random.Random(f"{self.plan.seed} {salt}")

    def _live_through(self, episode: plans.Episode | None) -> None:
        """One episode; None: the last one, in which nothing fails and everything has to come right."""
        salt = episode.id if episode else "end"
        if episode is None:
            self._proved.clear()
        cut = episode.cut if episode else None
        self.seconds += PAUSE
        scheduler = threads.Scheduler(self.rng("threads", salt))
        threads.use(scheduler)
        self._script, self._cut_catalog, self._below.reads = [], 0, False
        self._ailing = self.unknown = False
        self.hanging = set()
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
                self._check_rebuild()

    def _lose_power(self, cut: plans.Cut | None, salt: object) -> None:
        rng = self.rng("loss", salt)
        if not self.medium.dark and rng.random() < 0.5:
            return  # the machine was left alone
        # Also after a clean end: then nothing that matters may be lost.
        loss = cut.loss if cut and self.medium.dark else "all"
        self.counts["cuts"] += self.medium.dark
        lost = self.medium.lose(rng, loss)
        self._proved.clear()
        self.counts["lost"] += lost
        self.note(f"power lost, {loss}: {lost}")

    def _open_and_work(self, episode: plans.Episode | None, cut: plans.Cut | None) -> None:
        if cut and cut.opening:
            self._arm(cut)
        if episode and (episode.faults or episode.catalog_faults):
            self._break(episode)
        try:
            store = self.store = Store.open(
                self.ground.config, engine=self.engine, lock_wait=0,
                flush_before_acknowledge=bool(episode and episode.flush_first),
            )  # fmt: skip
        except FanoutError as error:
            self.note(f"not opened: {error}")
            ailing = not self.powered() or self._script or self._ailing
            demand(ailing, "open", f"a store that nothing ails does not open: {error}")
            return
        try:
            self._work(episode, cut)
        finally:
            volumes = list(store.pools.volumes())
            self._look_away()
            try:
                store.close()
            except FanoutError as error:
                demand(not self.powered() or self._script, "close", f"{error}")
        if self.powered():
            # Also one that failed while the store was closed keeps its reason.
            paths = [volume.path for volume in volumes if not volume.reason]
            check_media(self._books(), paths, self._proved)
            self._look_away()

    def _work(self, episode: plans.Episode | None, cut: plans.Cut | None) -> None:
        if self.powered():
            self._audit(decided=True)
        if cut and not cut.opening:
            self._arm(cut)
        if episode is None:
            self._come_right()
        else:
            self._resend()
            self._sessions(episode)
            if episode.reconcile:
                self._reconcile()
            self._read_some(episode)
        if self.powered():
            self._thaw()
            self._audit(decided=False)
            for volume in self.store.pools.volumes():
                if volume.allocator is not None:
                    volume.allocator.check()
        if cut:
            self._cut_at_the_latest()

    # ---- power, and what the disks see ---------------------------------------------------------------

    def powered(self) -> bool:
        self.take()
        return not self.medium.dark

    def take(self) -> None:
        """Look at what the engine has done since."""
        self.medium.take()

    def _arm(self, cut: plans.Cut) -> None:
        if cut.place == "engine":
            self.engine.cut_power(after=cut.after)
        else:
            self._cut_place, self._cut_catalog = cut.place, cut.after

    def _cut_at_the_latest(self) -> None:
        """The clients are done, and the power has not failed yet."""
        self.engine.cut_power()

    def _catalog_script(self, operation: str, path: str) -> tuple[str, bool] | None:
        if not self.powered():
            return f"EIO {operation}", False
        if operation != "read":  # there are many
            self.note(f"catalog {operation} {path[-4:]}")
        if self._cut_catalog and self._cut_place in ("catalog", operation):
            self._cut_catalog -= 1
            if not self._cut_catalog:
                self.engine.cut_power()
                return f"EIO {operation}", self._cut_place == "sync"
        for line in self._script:
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
        name = path.rpartition("/")[2]
        self._hash.update(f"{name} {carried[:2]} {carried[3:]}".encode())
        self._hash.update(written)
        if self.lines is not None:
            kind, digest = Phase(carried.kind).name.lower(), xxhash.xxh3_64_hexdigest(written)
            self.lines.append(
                f"{carried.issued}-{carried.done} {name} {kind} {carried.offset}+{carried.length}:"
                f" {carried.medium} told {carried.result} [{digest}]"
            )
        if carried.kind == WRITE and written:
            end = carried.offset + len(written)
            for start, stop in self._live.get(path, ()):
                if carried.offset < stop and start < end:
                    what = f"{name}: {carried.offset}+{len(written)} written over a live span"
                    self._wrong.append(Violation(f"V7: {what}"))

    def _raise_what_is_wrong(self) -> None:
        if self._wrong:
            raise self._wrong[0]

    def _thaw(self) -> None:
        """Nothing fails any more."""
        self.engine.set_faults([])
        self._come_back()
        self._script, self._below.reads = [], False

    def _come_back(self) -> None:
        """What hangs is done after all, late (V8)."""
        self.engine.release(None)
        self.engine.advance(4 * HARD_DEADLINE)
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

        running = []
        for session in episode.sessions:
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
            demand(not self.powered() or self._script, "session", f"{error}")
            return
        self._break(planned)
        demand(not session.removed, "V13", "a new session begins with full lists")
        if self.hanging and self.rng("late", planned.id).random() < 0.5:
            self._come_back()
        with session:
            for txn in planned.transactions:
                Sending(self, session, planned, txn).send()
        self.note(f"session {planned.id} over, removed {list(session.removed)}")

    def _break(self, part: plans.Session | plans.Episode) -> None:
        """Its faults take the place of those before."""
        lines = []
        for fault in part.faults:
            if fault.pool == "*":
                lines.append(_fault(fault, None))
                self.hanging.update(self.site.pools if fault.action in ("never", "late") else ())
                continue
            for volume in self.store.pools.volumes():
                if volume.pool == fault.pool:
                    lines.append(_fault(fault, volume.target))
                    if fault.action in ("never", "late"):
                        self.hanging.add(fault.pool)
        self.engine.set_faults(lines)
        self._ailing = bool(lines)
        self._script = [[fault, 0] for fault in part.catalog_faults]
        self._below.reads = any(fault.operation == "read" for fault in part.catalog_faults)

    def _resend(self) -> None:
        """What was cut off is sent again, also if it was stored: then nothing may be stored twice."""
        if not self.powered():
            return
        cut_off, self.cut_off = self.cut_off, {}
        for tx, (planned, txn, attempt) in cut_off.items():
            if self.powered() and self.rng("resend", tx).random() < 0.7:
                with self.store.session(planned.node, kind=planned.kind) as session:
                    Sending(self, session, planned, txn).again(bytes.fromhex(tx), attempt + 1)

    # ---- operators -----------------------------------------------------------------------------------

    def _reconcile(self) -> tuple[int, int, list[tuple[bytes, str]]]:
        """Every primary into every secondary: copied objects, gaps left, and what could not be copied."""
        copied = left = 0
        failed: list[tuple[bytes, str]] = []
        self.seconds += PAUSE
        for primary, _ in self.site.chain:
            for pool in self.site.secondaries:
                repair = backup_stgpool if pool[0] == "C" else copy_activedata
                try:
                    report = repair(self.store, primary, pool)
                except FanoutError as error:
                    self.note(f"{primary} into {pool}: {error!r}")
                    demand(
                        not self.powered() or self._script or self._refused(),
                        "reconcile",
                        f"{error!r}",
                    )
                    continue
                self.note(
                    f"{primary} into {pool}: {report.copied_objects}, {report.gaps_left} left"
                )
                copied += report.copied_objects
                left += report.gaps_left
                failed += report.failed
        return copied, left, failed

    def _refused(self) -> bool:
        return self.store.refusal is not None

    def _come_right(self) -> None:
        """V17: nothing fails any more, so every gap can be closed, and a second run finds nothing to do."""
        for status in self.store.query_volumes():
            good = status.state in ("available", "full")
            demand(good, "V17", f"{status.path} stays {status.state}: {status.reason}")
        _, left, failed = self._reconcile()
        full = [name for name, reason in failed if "no room" in reason or "free" in reason]
        if not self.site.tight and len(self._books().aggregates) < CROWDED:
            demand(not failed, "V17", f"could not be copied: {failed}")
            demand(not left, "V17", f"{left} gaps are left")
        demand(len(full) == len(failed), "V17", f"could not be copied: {failed}")
        copied, _, _ = self._reconcile()
        demand(not copied, "V17", f"a second run copied {copied} objects")

    def _read_some(self, episode: plans.Episode) -> None:
        """A few objects by the product's own way: other bytes than were sent are never handed out."""
        due: dict[tuple[str, bytes], set[bytes]] = {}
        for sent in self.history.values():
            for name, _, digest in sent.objects:
                if sent.fate is not Fate.ABSENT:
                    due.setdefault((sent.node, name), set()).add(digest)
        rng = self.rng("read", episode.id)
        for node, name in rng.sample(sorted(due), min(2, len(due))):
            try:
                data = self.store.get(node, name).read()
            except IntegrityError:
                raise
            except FanoutError as error:
                self.note(f"not read: {error!r}")
                continue
            good = xxhash.xxh3_128_digest(data) in due[node, name]
            demand(good, "V1", f"{name!r} of {node} was read with other bytes")

    # ---- looking -------------------------------------------------------------------------------------

    def _audit(self, *, decided: bool) -> None:
        """V1 to V5, V7, V11; once the store was opened anew, nothing is unknown any more."""
        self.take()
        self._raise_what_is_wrong()
        books = self._books()
        audit(self.site, books, self.history, decided=decided, proved=self._proved)
        self._live = books.live()
        for path, regions in self._live.items():
            found = self.medium.unsynced(path, regions)
            demand(not found, "V11", f"{path}: committed, and no flush has covered it: {found}")
        self.counts["audits"] += 1

    def _books(self) -> Books:
        self._below.asleep = True
        try:
            if self._eye is None:
                self._eye = connect(str(self.ground.catalog))
            return Books.read(self._eye)
        finally:
            self._below.asleep = False

    def _look_away(self) -> None:
        """Nobody but the store has the catalog open: the last one to close it folds its log."""
        if self._eye is not None:
            self._eye.close()
            self._eye = None

    def _check_rebuild(self) -> None:
        """V16: from the volumes alone comes the same catalog; nothing is in doubt after a clean end."""
        path = self.ground.base / "rebuilt.db"
        threads.use(threads.Scheduler(self.rng("rebuild")))
        self.medium.begin()
        try:
            if not self.history or not self._books().aggregates:
                return
            report = rebuild_catalog(self.ground.config, into=path, lock_wait=0)
            demand(not report.skipped and not report.lost, "V16", f"{report}")
            was, now = self._books(), Books.of(str(path))
            demand(comparable(now) == comparable(was), "V16", "the rebuilt catalog is another one")
            check_gaps(self.site, now)
            self.counts["rebuilds"] += 1
        finally:
            for name in self.ground.base.glob("rebuilt.db*"):
                name.unlink()


# ---- what the simulation puts in the place of things ---------------------------------------------------


def _fault(fault: plans.Fault, target: Target | None) -> Fault:
    where: dict[str, Any] = {
        "kind": Phase(fault.kind) if fault.kind else None,
        "nth": fault.nth,
        "count": None if fault.forever else 1,
        "target": target,
    }
    match fault.action:
        case "errno":
            return Fault.error(fault.value, **where)
        case "after":
            return Fault.error_after(fault.value, **where)
        case "never":
            return Fault.never(**where)
        case "late":
            return Fault.delay(float(fault.value), **where)
        case _:
            return Fault.short(fault.value if fault.action == "short" else 0, **where)


def _patches(world: World) -> Iterator[tuple[Any, str, Any]]:
    """Clock, ids and threads of one world, where the product takes them from."""
    module = threads.Module()
    for user in (
        fanout.committer, fanout.scribe, fanout.pools, fanout.growing, fanout.store, fanout.ledger,
        fanout.volume, fanout.catalog.door, fanout.catalog.reader,
    ):  # fmt: skip
        yield user, "threading", module
    yield fanout.committer, "queue", module
    yield fanout.opening, "ThreadPoolExecutor", threads.Executor
    yield fanout.pools, "Pool", lambda config, kind: Pool(config, kind, growing=threads.Lock())  # type: ignore[arg-type]
    secrets = SimpleNamespace(token_bytes=world.ids.randbytes)
    yield fanout.reconcile, "secrets", secrets
    yield fanout.rebuild.survey, "secrets", secrets
    yield fanout.rebuild, "open_engine", lambda config: new_engine(world.plan.seed)
    for function, changes in (
        (PoolSet.__init__, {"clock": lambda: world.seconds}),
        (
            Session.__init__,
            {"clock": lambda: world.seconds, "ids": lambda: world.ids.randbytes(16)},
        ),
        (Catalog.open.__func__, {"clock": lambda: next(world.stamps)}),  # type: ignore[attr-defined]
    ):
        yield function, "__kwdefaults__", {**(function.__kwdefaults__ or {}), **changes}


@contextlib.contextmanager
def _patched(world: World) -> Iterator[None]:
    before = []
    try:
        for owner, name, value in _patches(world):
            before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)
        threads.use(None)
