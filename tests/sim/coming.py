"""Disks that come and go: one that vanishes in the middle of an episode, and one that is added to a pool between two openings.

Drawn with random numbers of their own: a plan without them is what it was before there were any.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.config import VolumeSpec
from fanout.engine import Fault
from fanout.errors import FanoutError
from fanout.store import Store
from tests.sim import threads
from tests.sim.oracle import demand
from tests.sim.steps import Step

if TYPE_CHECKING:
    from collections.abc import Collection

    from fanout.config import Config
    from tests.sim.plan import Episode, _Draw
    from tests.sim.world import World

VANISHING, GROWING = 0.1, 0.15  # of the plans
SPARE_BYTES = 1 << 20  # of a volume that is added
GONE = (errno.EIO, errno.ENODEV, errno.ENXIO)  # what a disk says that is not there any more


@dataclass(frozen=True, slots=True)
class Vanish(Step):
    """From here on each operation on a disk fails, until its store is closed or healed.

    Attributes:
        after: so many sessions of its episode, or beside them.
        pool: that it belongs to.
        volume: its number there.
        number: of the error.
    """

    after: int
    pool: str
    volume: int
    number: int


@dataclass(frozen=True, slots=True)
class Grow(Step):
    """Before the store is opened a pool gets one more volume; `cut`: the power fails after that."""

    pool: str
    cut: bool


def drawn(draw: _Draw, seed: int, episodes: tuple[Episode, ...]) -> tuple[Episode, ...]:
    """The episodes of a plan, with such steps if the seed says so."""
    draw.rng = random.Random(f"coming {seed}")
    vanishing, growing = draw.rng.random() < VANISHING, draw.rng.random() < GROWING
    if vanishing:
        episodes = tuple(_vanishing(draw, episode) for episode in episodes)
    if growing:
        at = draw.rng.randrange(len(episodes) + 1)
        if at == len(episodes):  # to see what becomes of it
            episodes = (*episodes, draw.episode())
        episode = episodes[at]
        grow = Grow(
            next(draw.ids), (),
            (draw.catalog_fault(),) if draw.rng.random() < 0.3 else (),
            draw.rng.choice(draw.site.pools), draw.rng.random() < 0.5,
        )  # fmt: skip
        grown = replace(episode, before=(*episode.before, grow))
        episodes = (*episodes[:at], grown, *episodes[at + 1 :])
    return episodes


def _vanishing(draw: _Draw, episode: Episode) -> Episode:
    rng = draw.rng
    if rng.random() < 0.3:
        return episode
    pool = rng.choice(draw.site.pools)
    volume = rng.randrange(len(dict(draw.site.sizes)[pool]))
    after = rng.randint(0, len(episode.sessions))
    step = Vanish(next(draw.ids), (), (), after, pool, volume, rng.choice(GONE))
    return replace(episode, steps=(*episode.steps, step))


# ---- doing -------------------------------------------------------------------------------------------


def vanish(world: World, step: Vanish, *, alone: bool) -> None:
    """As the plan says."""
    for _ in range(0 if alone else step.after):
        threads.current().breathe()
    if not world.powered():
        return
    path = str(world.config.pools[step.pool].volumes[step.volume].path)
    for volume in world.store.pools.volumes():
        if volume.path == path and volume.target is not None:
            gone = Fault.error(step.number, kind=None, nth=1, count=None, target=volume.target)
            world.vanished.append(gone)
            world.counts["vanished"] += 1
            world.note(f"{path} vanishes")
    world.fail()


def grown(config: Config, spares: Collection[tuple[str, Path]]) -> Config:
    """A configuration whose pools have these volumes, too."""
    pools = dict(config.pools)
    for name, path in spares:
        volumes = (*pools[name].volumes, VolumeSpec(path, SPARE_BYTES))
        pools[name] = replace(pools[name], volumes=volumes)
    return replace(config, pools=pools)


def grow(world: World, step: Grow) -> None:
    """Add a volume to the closed store; what was acknowledged, then, stays, and nothing is added by halves."""
    path = world.ground.spares[step.pool]
    if (step.pool, path) in world.spares:
        return
    world.operators.begin_closed(step.id)
    before = {volume["path"] for volume in world.books().volumes}
    world.look_away()
    world.spares.append((step.pool, path))
    due = before | {str(path)} | world.operators.away.keys()
    world.ail(step)
    done = _extend(world, due - before)
    world.disarm()
    if step.cut:
        world.lose_all(step.id)
    there = {volume["path"] for volume in world.books().volumes}
    demand(there == due if done else there in (before, due), "extend", f"{there} are there")
    world.look_away()
    for name in sorted(due - before):
        if not Path(name).exists():
            demand(name not in there, "extend", f"{name} is in the catalog, and was removed")
            world.ground.put_disk(Path(name))
    if there == before:
        demand(_extend(world, due - before), "extend", "it fails without a reason")
    world.operators.away.clear()
    world.counts["grown"] += 1
    world.note(f"{path} is new")
    world.operators.end_closed()


def _extend(world: World, due: Collection[str]) -> bool:
    try:
        made = Store.extend(world.config, force=True, lock_wait=0)
    except FanoutError as error:
        world.note(f"not extended: {error!r}")
        demand(world.ailing, "extend", f"{error!r}")
        return False
    demand({entry.path for entry in made} == set(due), "extend", f"{made}")
    return True
