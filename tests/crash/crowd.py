"""Many at once on one store that is open in one process; faults and kills come from outside.

Clients store, read and delete, operators repair, audit and ask, somebody forks, a second writer is refused, and interrupts strike at any
point. `crowd` is the whole life of a process of the nursery.

Every thread tells the journal what it asks for and what it is told. What it finds by itself is a word "finding=…": wrong bytes, an
exception that is none of fanout's, an answer that contradicts an earlier one, and what is left at the end: threads, descriptors, slots,
streams, and space that nobody holds.

The bytes of an object are made from its name, so that any thread of any process knows them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import hashlib
import itertools
import os
import random
import threading
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fanout import (
    aio,
    audit_stgpool,
    backup_catalog,
    backup_stgpool,
    check_store,
    copy_activedata,
    once,
    restore_stgpool,
    retire_volume,
)
from fanout.errors import (
    CatalogBusy,
    CommitUnknown,
    FanoutError,
    InterfaceError,
    ObjectNotFound,
    TransactionRetry,
    VolumeBusy,
)
from fanout.store import Store
from fanout.types import ObjectKind
from tests.crash.media import Rules
from tests.crash.site import LARGE, NODES, POOLS, PRIMARIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from fanout.catalog import ObjectEntry
    from fanout.session import Session
    from tests.crash.journal import Teller

SIZES = (0, 1, 700, 4096, 20_000, 90_000, LARGE + 40_000)
MAX_ATTEMPTS = 20
NAMES = 6  # of each thread: they are stored again and again
KINDS = 10  # of works
SETTLE_SECONDS = 20.0
STARTING = vars(threading)["_limbo"]  # threads that have been asked for and do not run yet
INTERRUPT_SECONDS = 0.02  # between two of them, at most


def content(name: bytes, transaction: bytes, length: int) -> bytes:
    """What an object of that name holds."""
    return hashlib.shake_128(transaction + name).digest(length)


# ---- interrupts --------------------------------------------------------------------------------------


class Interruptible:
    """One thread that can be interrupted while it is in here, and nowhere else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = 0

    def run(self, work: Callable[[], None]) -> bool:
        """Do it; whether it was interrupted."""
        try:
            try:
                with self._lock:
                    self._thread = threading.get_ident()
                work()
            finally:
                while self._thread:  # an interrupt on the way out
                    with contextlib.suppress(KeyboardInterrupt), self._lock:
                        self._thread = 0
            for _ in range(3):  # one that is on its way strikes here
                time.sleep(0)
        except KeyboardInterrupt:
            return True
        return False

    def interrupt(self) -> None:
        """As Ctrl-C does it in the main thread: at the next point at which Python lets it through.

        Not while a thread is being started. Until the new one runs it has the number of who starts it, and would be struck in its stead: it
        would end before it had begun, and the other wait for it for ever.
        """
        with self._lock:
            strike = partial(
                ctypes.pythonapi.PyThreadState_SetAsyncExc,
                ctypes.c_ulong(self._thread),
                ctypes.py_object(KeyboardInterrupt),
            )
            if self._thread and not STARTING:
                strike()


# ---- the crowd ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Crowd:
    """What the threads share."""

    teller: Teller
    store: Store
    config: Path
    threads: int
    faults: bool
    repairs: list[tuple[str, str, bool]]
    moods: list[int]
    erasures: Iterator[int] = field(default_factory=lambda: itertools.count(time.time_ns()))
    counts: dict[str, int] = field(default_factory=dict)

    def finding(self, what: str) -> None:
        """Tell what must not be."""
        self.teller.say(f"finding={what}")

    def count(self, what: str) -> None:
        """For the result."""
        self.counts[what] = self.counts.get(what, 0) + 1


class Worker(threading.Thread):
    """One of the crowd."""

    def __init__(self, crowd: Crowd, number: int, seed: int, operations: int) -> None:
        super().__init__(name=f"crowd-{number}")
        self.crowd, self.number, self.operations = crowd, number, operations
        self.store, self.teller = crowd.store, crowd.teller
        self.rng = random.Random(seed)
        self.gate = Interruptible()
        self.what = ""

    def run(self) -> None:
        """So many random operations."""
        works: list[tuple[int, Callable[[], None]]] = [
            (12, self.put),
            (4, self.delete),
            (6, self.read),
            (2, self.repair),
            (2, self.audit),
            (3, self.ask),
            (1, self.second),
            (1, self.keep),
            (1, self.fork),
            (1, self.bare),
        ]
        weights = [weight * mood for (weight, _), mood in zip(works, self.crowd.moods, strict=True)]
        for _ in range(self.operations):
            (_, work) = self.rng.choices(works, weights)[0]
            self.what = work.__name__
            try:
                if work in (
                    self.bare,
                    self.fork,
                ):  # an event loop of Python's does not survive an interrupt whole
                    work()
                elif self.gate.run(work):
                    self.crowd.count(f"interrupted {self.what}")
                self.crowd.count(self.what)
            except BaseException:
                self.crowd.finding(f"{self.what}: {traceback.format_exc()}")

    # -- clients

    def put(self) -> None:
        """A transaction of its own session, which may give it up."""
        rng, kind = self.rng, self.rng.choice([*ObjectKind, ObjectKind.BACKUP, ObjectKind.BACKUP])
        node, transaction = rng.choice(NODES), rng.randbytes(16)
        sizes = {
            b"t%d-%d" % (self.number, number): rng.choice(SIZES)
            for number in rng.sample(range(NAMES), rng.randint(1, 4))
        }
        objects = {name: content(name, transaction, size) for name, size in sizes.items()}
        give_up = rng.random() < 0.1
        self.teller.begin(transaction, node, objects, kind=kind.value)
        try:
            with self.store.session(node, kind=kind) as session:
                if not self._send(session, transaction, objects, give_up=give_up):
                    self.teller.refused(transaction)
                    return
        except CommitUnknown:
            self.teller.unknown(transaction)
            self.crowd.count("unknown")
            return
        except (FanoutError, TimeoutError) as error:
            self.teller.refused(transaction)
            self.crowd.count(f"refused {type(error).__name__} {getattr(error, 'reason', '')}")
            if not self.crowd.faults and getattr(error, "reason", "") not in ("space", "source"):
                self.crowd.finding(f"put: {error!r} from {error.__cause__!r}")
            return
        assert session.receipt is not None
        self.teller.receipt(session.receipt)
        again = self.store.receipt(transaction)
        if again is None or again.csn != session.receipt.csn:
            self.crowd.finding(f"receipt {session.receipt.csn} is now {again}")

    def _send(
        self, session: Session, transaction: bytes, objects: dict[bytes, bytes], *, give_up: bool
    ) -> bool:
        for number in range(1, MAX_ATTEMPTS):
            try:
                with session.begin(transaction=transaction, attempt=number) as txn:
                    for name, data in objects.items():
                        txn.put(name, self._source(data))
                    if give_up:
                        txn.abort()
                return not give_up
            except TransactionRetry:
                self.crowd.count("retries")
        raise AssertionError("more retries than a session has")

    def _source(self, data: bytes) -> Any:
        how = self.rng.random()
        if how < 0.1:
            return once(iter([data[: len(data) // 2], data[len(data) // 2 :]]))
        return bytearray(data) if how < 0.3 else data

    def _mine(self, entry: ObjectEntry) -> bool:
        """Whether this thread alone may delete it."""
        return entry.name.split(b"-")[0] == b"t%d" % self.number

    def _some(self, *, mine: bool = False) -> tuple[ObjectEntry, bytes] | None:
        """An object, and its transaction."""
        node = self.rng.choice(NODES)
        entries = [e for e in self.store.query_objects(node=node) if not mine or self._mine(e)]
        if not entries:
            return None
        entry = self.rng.choice(entries)
        aggregate = self.store.catalog.aggregate(entry.aggregate)
        return None if aggregate is None else (entry, aggregate.transaction)

    def delete(self) -> None:
        """One version of its own; which is the active one is the catalog's affair."""
        found = self._some(mine=True)
        if found is None:
            return
        entry, transaction = found
        delete = partial(
            self.store.delete, entry.node, entry.name, kind=entry.kind, version=entry.version
        )
        if self.rng.random() < 0.1:
            delete(preview=True)
        number = next(self.crowd.erasures)
        self.teller.delete(number, [(transaction, entry.name)])
        try:
            report = delete()
        except (FanoutError, TimeoutError) as error:
            if not self.crowd.faults:
                self.crowd.finding(f"delete: {error!r}")
            return
        if report.objects == 1:
            self.teller.deleted(number)
        elif not report.postponed:
            self.crowd.finding(f"{entry} is not deleted: {report}")

    def read(self) -> None:
        """From any pool, or from the best."""
        found = self._some()
        if found is None:
            return
        entry, transaction = found
        pool = self.rng.choice([None, None, *POOLS])
        try:
            with self.store.get(
                entry.node, entry.name, kind=entry.kind, version=entry.version, pool=pool
            ) as reader:
                data = b"".join(map(bytes, reader))
        except ObjectNotFound:
            return
        except (FanoutError, TimeoutError) as error:
            there = self.store.catalog.find(
                entry.node, entry.name, kind=entry.kind, version=entry.version
            )
            if there and not self.crowd.faults:
                self.crowd.finding(f"read {entry.name!r} from {pool}: {error!r}")
            return
        if data != content(entry.name, transaction, len(data)) or len(data) != entry.length:
            self.crowd.finding(f"wrong bytes of {entry} from {pool}")

    # -- operators

    def repair(self) -> None:
        """One repair of those that there are."""
        self.teller.repair()
        repairs = [*self.crowd.repairs, *((name, "", False) for name in PRIMARIES)]
        primary, pool, active = self.rng.choice(repairs)
        try:
            if not pool:
                restore_stgpool(self.store, primary)
            else:
                (copy_activedata if active else backup_stgpool)(self.store, primary, pool)
        except (FanoutError, TimeoutError) as error:
            if not self.crowd.faults:
                self.crowd.finding(f"repair: {error!r}")
        finally:
            self.teller.repair()  # what committed meanwhile may have been copied, too

    def audit(self) -> None:
        """Of any pool."""
        pool, fix = self.rng.choice(POOLS), self.rng.random() < 0.7
        if fix and self.crowd.faults:
            self.teller.audit(pool)
        try:
            report = audit_stgpool(self.store, pool, fix=fix)
        except (FanoutError, TimeoutError) as error:
            if not self.crowd.faults:
                self.crowd.finding(f"audit: {error!r}")
            return
        said = (report.damaged, report.unasked, report.kept)
        if any(said) and not self.crowd.faults:
            self.crowd.finding(f"audit of {pool}: {said}")

    def ask(self) -> None:
        """Every question."""
        with contextlib.suppress(*([FanoutError] if self.crowd.faults else [])):
            list(self.store.query_objects(pool=self.rng.choice(POOLS)))
            self.store.query_gaps()
            self.store.query_occupancy()
            self.store.query_stgpools()
            self.store.query_volumes()

    def keep(self) -> None:
        """A copy of the catalog."""
        target = self.crowd.config.parent / f"kept-{self.number}.db"
        try:
            backup_catalog(self.store, target, force=True)
        except FanoutError as error:
            if not self.crowd.faults:
                self.crowd.finding(f"keep: {error!r}")

    def second(self) -> None:
        """Another opening of the same store: for writing it is refused, for reading it reads; `check` is refused."""
        for refused in (
            lambda: Store.open(self.crowd.config, lock_wait=0),
            lambda: check_store(self.crowd.config, lock_wait=0),
        ):
            try:
                refused()
            except (CatalogBusy, VolumeBusy):
                pass
            except FanoutError as error:
                if not self.crowd.faults:
                    self.crowd.finding(f"second: {error!r}")
            else:
                self.crowd.finding("a second writer was let in")
        try:
            with Store.open(self.crowd.config, read_only=True) as store:
                for entry in itertools.islice(store.query_objects(), 3):
                    with contextlib.suppress(ObjectNotFound):
                        store.get(entry.node, entry.name, kind=entry.kind).read()
        except FanoutError as error:
            if not self.crowd.faults:
                self.crowd.finding(f"second: {error!r}")

    def fork(self) -> None:
        """The child is refused and ends."""
        child = os.fork()
        if child == 0:  # no lock of ours may be taken here: whoever held it is not there
            status = 1
            with contextlib.suppress(BaseException):
                try:
                    self.store.query_gaps()
                except InterfaceError:
                    status = 0
                self.store.close()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            self.crowd.finding(f"a forked child ended with {status}")

    def bare(self) -> None:
        """A stream of the store's own engine, to a file beside it, on an event loop."""
        path = self.crowd.config.parent / f"bare-{self.number}"
        data = self.rng.randbytes(300_000)

        async def pour() -> bool:
            target = await asyncio.to_thread(
                self.store.engine.open, path, replace=True, size=len(data)
            )
            try:
                stream = await aio.open_stream(self.store.engine, [target])
                async with contextlib.AsyncExitStack() as stack:
                    stack.enter_context(stream)
                    stream.place([0])
                    await aio.write(stream, data)
                    outcomes = await aio.sync(stream)
                return outcomes[target].ok
            finally:
                target.close()

        try:
            done = asyncio.run(pour())
        except (FanoutError, TimeoutError, OSError) as error:
            if not self.crowd.faults:
                self.crowd.finding(f"bare: {error!r}")
            return
        if done and path.read_bytes()[: len(data)] != data:
            self.crowd.finding("bare: wrong bytes")


def crowd(
    teller: Teller,
    config: str,
    seed: int,
    *,
    threads: int,
    operations: int,
    faults: bool,
    interrupts: bool,
    flush: bool = False,
) -> None:
    """See the module. `faults`: something will fail; otherwise nothing may."""
    rng = random.Random(seed)
    repairs = list(Rules(Path(config)).repairs())
    before = _held()
    try:
        store = Store.open(config, flush_before_acknowledge=flush, lock_wait=30.0)
    except FanoutError as error:
        if not faults:
            teller.say(f"finding=open: {error!r}")
        teller.say("open")
        teller.say("over")
        teller.wait()
        return
    teller.say("open")
    # An interrupt in the middle of a write leaves a volume that has to be opened again.
    moods = [rng.choice((1, 1, 6)) for _ in range(KINDS)]  # of this opening: what there is much of
    shared = Crowd(teller, store, Path(config), threads, faults or interrupts, repairs, moods)
    workers = [Worker(shared, n, rng.getrandbits(32), operations) for n in range(threads)]
    with store:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            if interrupts:
                rng.choice(workers).gate.interrupt()
            time.sleep(rng.uniform(0, INTERRUPT_SECONDS))
        teller.say("over")
        teller.wait()  # until all is healed
        _idle(shared)
    left = {what: now - before[what] for what, now in _settled(before).items()}
    if interrupts:  # between an open(2) and what knows of it; but none that has locked anything
        left["descriptors"] = len(_locked())
    if any(more > 0 for more in left.values()):
        shared.finding(f"left: {left}, {_open_files()}")
    for what, number in sorted(shared.counts.items()):
        teller.say(f"count {what}={number}")
    teller.say("done")


def create_anew(teller: Teller, config: str) -> None:
    """Make the store, over what is there."""
    del teller
    Store.create(config, force=True)


def give_up(teller: Teller, config: str, pool: str, path: str) -> None:
    """A device is lost for good: its volume is given up, another one is made where the configuration says, and all is filled again."""
    teller.audit(pool)
    report = retire_volume(config, path)
    if report.lost:
        teller.say(f"finding=lost with {path}: {report.lost}")
    Store.extend(config)
    with Store.open(config) as store:
        teller.repair()
        for primary in PRIMARIES:
            restore_stgpool(store, primary)
        for primary, copy, active in Rules(Path(config)).repairs():
            (copy_activedata if active else backup_stgpool)(store, primary, copy)
        for gap in store.query_gaps():
            teller.say(f"finding={gap}")
    for problem in check_store(config).problems:
        teller.say(f"finding={problem}")


def _held() -> dict[str, int]:
    """What this process holds."""
    threads = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            threads += not (task / "comm").read_text().startswith("iou-")
    return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": threads}


def _locked() -> list[str]:
    """What this process has locked."""
    found = []
    for number in os.listdir("/proc/self/fdinfo"):
        with contextlib.suppress(OSError):
            if "FLOCK" in Path(f"/proc/self/fdinfo/{number}").read_text():
                found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


def _open_files() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(f"{number}: {os.readlink(f'/proc/self/fd/{number}')}")
    return found


def _settled(before: dict[str, int]) -> dict[str, int]:
    limit = time.monotonic() + SETTLE_SECONDS
    gc.collect()
    while (now := _held()) != before and time.monotonic() < limit:
        time.sleep(0.01)
    return now


def _idle(crowd: Crowd) -> None:
    """With nobody inside the engine holds nothing, and no volume that is well has space of nobody."""
    limit = time.monotonic() + SETTLE_SECONDS
    engine = crowd.store.engine
    while True:
        engine.events()
        info = engine.info
        if info.slots_free == info.slot_count and not info.streams:
            break
        if time.monotonic() > limit:
            crowd.finding(f"left in the engine: {info}")
            return
        time.sleep(0.005)
    if crowd.faults:
        return
    for status in crowd.store.query_volumes():
        if status.reserved or status.draining or status.quarantined:
            crowd.finding(f"space is held by nobody: {status}")
