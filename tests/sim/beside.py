"""What operators do while others work: repairs, audits and reads beside sessions and deletions, and audits of several pools at once.

Drawn with random numbers of their own: a plan without them is what it was before there were any.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fanout.audit import audit_stgpool
from fanout.config import Access, OnSlow, Verify
from fanout.errors import CatalogError, CommitUnknown, FanoutError
from fanout.reconcile import backup_stgpool, copy_activedata, restore_stgpool
from fanout.types import PoolKind
from tests.sim import holdings, threads
from tests.sim.oracle import demand
from tests.sim.steps import PARTS, Spot, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.audit import AuditReport
    from fanout.config import Config
    from tests.sim.oracle import Books
    from tests.sim.plan import Episode, _Draw
    from tests.sim.world import World

SHARE = 0.3  # of the plans have any
MEMBER = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Mend(Step):
    """A run over pools.

    Attributes:
        after: so many sessions of its episode, or beside them.
        how: ``repair``, ``audit`` or ``read``.
        ways: primary and destination of each repair, one after the other; a primary's own name: it is restored. The audits are of the destinations.
    """

    after: int
    how: str
    ways: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Audits(Step):
    """Several pools rot where they hold the same aggregates, and are audited at once, when the clients are done."""

    pools: tuple[str, ...]
    spots: tuple[Spot, ...]


@dataclass(frozen=True, slots=True)
class Setting(Step):
    """How a pool is configured in an episode."""

    pool: str
    access: Access
    verify: Verify
    on_slow: OnSlow


def configured(config: Config, episode: Episode | None) -> Config:
    """A configuration with the settings of an episode."""
    pools = dict(config.pools)
    for step in episode.before if episode else ():
        if isinstance(step, Setting):
            was = pools[step.pool]
            slow = OnSlow.WAIT if was.kind is PoolKind.PRIMARY else step.on_slow
            pools[step.pool] = replace(was, access=step.access, verify=step.verify, on_slow=slow)
    return replace(config, pools=pools)


# ---- drawing -----------------------------------------------------------------------------------------


def drawn(draw: _Draw, seed: int, episodes: tuple[Episode, ...]) -> tuple[Episode, ...]:
    """The episodes of a plan, with such steps if the seed says so."""
    draw.rng = random.Random(f"beside {seed}")
    if draw.rng.random() >= SHARE:
        return episodes
    return tuple(_with_steps(draw, episode) for episode in episodes)


def _with_steps(draw: _Draw, episode: Episode) -> Episode:
    rng = draw.rng
    steps: list[Step] = [
        _mend(draw, len(episode.sessions)) for _ in range(rng.choice((0, 1, 2, 3)))
    ]
    if rng.random() < 0.3:
        steps.append(_audits(draw))
    count = rng.choice((0, 0, 1, 2))
    settings = [_setting(draw, pool) for pool in draw.site.pools if rng.random() * 3 < count]
    before = (*episode.before, *settings)
    return replace(episode, steps=(*episode.steps, *steps), before=before)


def _audits(draw: _Draw) -> Audits:
    rng = draw.rng
    pools = draw.site.pools
    # Of all, so that nobody else has it.
    few = tuple(rng.sample(pools, min(2, len(pools))))
    spots = tuple(
        Spot(rng.random(), rng.choice(PARTS), rng.random(), rng.choice((1, 600, 9000)))
        for _ in range(rng.choice((1, 2, 3)))
    )
    return Audits(next(draw.ids), (), (), rng.choice((few, pools, pools)), spots)


def _setting(draw: _Draw, pool: str) -> Setting:
    rng = draw.rng
    return Setting(
        next(draw.ids), (), (), pool,
        rng.choice((Access.READWRITE, Access.READWRITE, Access.READONLY, Access.UNAVAILABLE)),
        rng.choice(list(Verify)),
        rng.choice(list(OnSlow)),
    )  # fmt: skip


def _mend(draw: _Draw, sessions: int) -> Mend:
    rng, site = draw.rng, draw.site
    primaries = [name for name, _ in site.chain]
    ways = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        primary = rng.choice(primaries)
        ways.append((primary, rng.choice((primary, *site.secondaries, *site.secondaries))))
    return Mend(
        next(draw.ids),
        (draw.fault(),) if rng.random() < 0.2 else (),
        (draw.catalog_fault(),) if rng.random() < 0.2 else (),
        rng.randint(0, sessions),
        rng.choice(("repair", "repair", "repair", "audit", "read")),
        tuple(ways),
    )


# ---- doing -------------------------------------------------------------------------------------------


class Mending:
    """One step.

    Args:
        world: that it happens in.
        step: of the plan.
        alone: nobody else does anything meanwhile.
    """

    def __init__(self, world: World, step: Mend, *, alone: bool) -> None:
        self.world, self.step, self.alone = world, step, alone

    def run(self) -> None:
        """As the plan says."""
        world, step = self.world, self.step
        for _ in range(0 if self.alone else step.after):
            threads.current().breathe()
        if not world.powered():
            return
        if self.alone and (step.faults or step.catalog_faults):
            world.break_down(step)
        if step.how == "read":
            world.read_some(step.id, beside=not self.alone)
            return
        for primary, pool in step.ways:
            try:
                self._run(primary, pool)
            except FanoutError as error:
                world.note(f"{step.how} of {primary}, {pool}: {error!r}")
                self._judge(error)

    def _run(self, primary: str, pool: str) -> None:
        world = self.world
        if self.step.how == "audit":
            audit_stgpool(world.store, pool, fix=True)
        elif primary == pool:
            restore_stgpool(world.store, primary)
        elif pool[0] == "C":
            backup_stgpool(world.store, primary, pool)
        else:
            copy_activedata(world.store, primary, pool)
        world.counts["beside"] += not self.alone

    def _judge(self, error: FanoutError) -> None:
        """Of several that commit together each hears of a fault that another one brought along."""
        world = self.world
        world.unknown = world.unknown or isinstance(error, CommitUnknown)
        if not world.powered() or world.store.refusal is not None:
            return
        excused = isinstance(error, CatalogError | CommitUnknown)
        demand(excused and (world.script or not self.alone), "V6", f"nothing explains {error!r}")


def audit_at_once(world: World, step: Audits, rot: Callable[[str, Spot, Any], None]) -> None:
    """Good bytes are given up only where another pool's are kept, whoever looks at these meanwhile."""
    world.thaw()
    if not world.powered():
        return
    books = world.books()
    for spot in step.spots if books.aggregates else ():
        number = sorted(books.aggregates)[int(spot.span * len(books.aggregates))]
        for pool in step.pools:
            rot(pool, spot, books.places.get((number, pool), []))
    before, scheduler = world.books(), threads.current()
    reports: dict[str, AuditReport] = {}

    def look(pool: str) -> None:
        reports[pool] = audit_stgpool(world.store, pool, fix=True)

    running = [
        scheduler.start(f"audit {pool}", functools.partial(look, pool)) for pool in step.pools
    ]
    scheduler.wait(lambda: all(task.over for task in running), "the audits")
    errors = [task.error for task in running if task.error is not None]
    for error in errors:
        world.note(f"audits: {error!r}")
        excused = isinstance(error, FanoutError) and (not world.powered() or world.store.refusal)
        demand(excused, "audit", f"{error!r}")
    after = world.books()
    marked = _check(world, step, before, after)
    world.counts["marked"] += marked
    told = sum(report.marked for report in reports.values())
    demand(errors or told == marked, "audit", f"{marked} are gaps, told was {told}")
    world.note(f"audits of {step.pools}: {marked} marked")


def _check(world: World, step: Audits, before: Books, after: Books) -> int:
    was, now = holdings.held(before), holdings.held(after)
    where = holdings.as_they_were(before, after, but=step.pools)
    demand(where, "audit", "spans have gone elsewhere")
    demand(after.objects == before.objects, "audit", "objects have changed")
    marked, good = 0, set[MEMBER]()
    for copy in before.copies:
        number, pool = key = copy["aggregate"], copy["pool_name"]
        wrong, frail = holdings.damaged(before, copy, world.known.rot)
        gone = was[key] - now.get(key, set())
        marked += len(gone)
        good |= {(number, member) for member in was[key] - wrong}
        what = f"{key}: {sorted(gone)} are gaps now, damaged are {sorted(wrong | frail)}"
        demand(gone <= (wrong | frail if pool in step.pools else set()), "audit", what)
        demand(not now.get(key, set()) - was[key], "audit", f"{key} holds more")
    left = {(number, member) for (number, _), members in now.items() for member in members}
    demand(good <= left, "audit", f"given up are the last good bytes of {sorted(good - left)}")
    return marked
