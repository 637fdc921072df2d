"""What the simulation puts in the place of things: the clock, the ids and the threads of one world, and the faults of a plan."""

from __future__ import annotations

import contextlib
import time
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fanout.audit
import fanout.catalog.asking
import fanout.catalog.door
import fanout.committer
import fanout.deletion
import fanout.growing
import fanout.ledger
import fanout.making
import fanout.opening
import fanout.pools
import fanout.rebuild.survey
import fanout.reconcile
import fanout.retire
import fanout.scribe
import fanout.store
import fanout.undisturbed
import fanout.volume
from fanout.catalog import Catalog
from fanout.catalog.ballast import Ballast
from fanout.engine import Engine, Fault, Stream, Target
from fanout.making import create_volume
from fanout.pool import Pool
from fanout.pools import PoolSet
from fanout.session import Session
from fanout.types import Phase
from tests.sim import threads
from tests.sim.ground import DIRECTORY_BYTES, HARD_DEADLINE, new_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.sim import plan as plans
    from tests.sim.medium import Medium
    from tests.sim.world import World

A_WHILE = 0.001  # seconds from one look for admission to the next
BALLAST_BYTES = 64 << 10  # a memory file system fills them with zeros, and nothing needs it


def fault_of(fault: plans.Fault, target: Target | None) -> Fault:
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


def _patient(open_stream: Callable[..., Stream]) -> Callable[..., Stream]:
    """`Engine.stream`: in C it would wait for admission with the turn in its hand."""

    def stream(engine: Engine, targets: Any, *, at_once: bool = False, **more: Any) -> Stream:
        found: list[Stream | Exception] = []

        def admitted() -> bool:
            try:
                if not found:
                    engine.advance(A_WHILE)
                    found.append(open_stream(engine, targets, at_once=True, **more))
            except TimeoutError:
                return False
            except Exception as error:  # not in the thread that only looks whose turn it is
                found.append(error)
            return True

        if at_once:
            return open_stream(engine, targets, at_once=True, **more)
        threads.current().wait(
            admitted, "admission", pass_time=lambda: engine.advance(HARD_DEADLINE)
        )
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    return stream


def _draining(medium: Medium, sync: Callable[..., Any]) -> Callable[..., Any]:
    """`Stream.sync`: while it waits a target may be tried ten thousand times, and all of it stands in the journal."""

    def drained(stream: Stream, *, timeout: float | None = None) -> Any:
        try:
            return sync(stream, timeout=timeout)
        finally:
            medium.drain()

    return drained


def _patches(world: World) -> Iterator[tuple[Any, str, Any]]:
    """Clock, ids and threads of one world, where the product takes them from."""
    module = threads.Module()
    for user in (
        fanout.committer, fanout.scribe, fanout.pools, fanout.growing, fanout.store, fanout.ledger,
        fanout.volume, fanout.catalog.asking, fanout.catalog.door, fanout.undisturbed,
    ):  # fmt: skip
        yield user, "threading", module
    yield fanout.committer, "queue", module
    yield Engine, "stream", _patient(Engine.stream)
    yield Stream, "sync", _draining(world.medium, Stream.sync)
    yield Target, "geometry", world.ground.geometry()
    yield fanout.opening, "ThreadPoolExecutor", threads.Executor
    yield fanout.pools, "Pool", lambda config, kind: Pool(config, kind, growing=threads.Lock())  # type: ignore[arg-type]
    secrets = SimpleNamespace(token_bytes=world.ids.randbytes)
    for user in (
        fanout.reconcile, fanout.audit, fanout.deletion, fanout.making, fanout.store,
    ):  # fmt: skip
        yield user, "secrets", secrets
    yield fanout.rebuild.survey, "secrets", secrets
    yield fanout.rebuild, "open_engine", lambda config: new_engine(world.plan.seed)
    for user in (fanout.retire, fanout.store):
        yield user, "open_engine", lambda config: world.side_engine()
    stamp = SimpleNamespace(
        time_ns=lambda: next(world.stamps), strftime=time.strftime, gmtime=time.gmtime
    )
    yield import_module("fanout.catalog.restore"), "time", stamp
    for function, changes in (
        (PoolSet.__init__, {"clock": lambda: world.seconds}),
        (
            Session.__init__,
            {"clock": lambda: world.seconds, "ids": lambda: world.ids.randbytes(16)},
        ),
        (create_volume, {"now_ns": lambda: next(world.stamps), "directory_bytes": DIRECTORY_BYTES}),
        (Catalog.open.__func__, {"clock": lambda: next(world.stamps)}),  # type: ignore[attr-defined]
        (Ballast.__init__, {"size_bytes": BALLAST_BYTES}),
    ):
        yield function, "__kwdefaults__", {**(function.__kwdefaults__ or {}), **changes}


@contextlib.contextmanager
def patched(world: World) -> Iterator[None]:
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
