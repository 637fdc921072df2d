"""What operators and expirations do to a store, as values of a plan: deletions, audits of damage, volumes that are lost, a lost catalog.

They are drawn with random numbers of their own: a plan without them is what it was before there were any.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tests.sim.plan import CatalogFault, Episode, Fault, _Draw

SHARE = 0.3  # of the plans have any
HOW = ("active", "version", "keep", "expire")
PARTS = ("data", "data", "data", "head", "foot")


@dataclass(frozen=True, slots=True)
class Step:
    """Any of them, and what fails from its beginning on, if anything: else what failed before goes on to."""

    id: int
    faults: tuple[Fault, ...]
    catalog_faults: tuple[CatalogFault, ...]

    def parts(self) -> Iterator[int]:
        """Numbers of what may be left out of it."""
        yield from (fault.id for fault in self.faults)
        yield from (fault.id for fault in self.catalog_faults)

    def without(self, gone: Collection[int]) -> Step:
        """The same, less these parts."""
        return replace(
            self,
            faults=tuple(f for f in self.faults if f.id not in gone),
            catalog_faults=tuple(f for f in self.catalog_faults if f.id not in gone),
        )


@dataclass(frozen=True, slots=True)
class Delete(Step):
    """Versions of objects go.

    Attributes:
        after: so many sessions of its episode.
        how: the active version of a name, one version, those of a name or of all names beyond the newest.
        keep: how many of these stay.
        preview: ask first.
    """

    after: int
    how: str
    keep: int
    preview: bool


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a committed span rots: a part of it, and where in that part, from 0 to 1."""

    span: float
    part: str
    at: float
    length: int


@dataclass(frozen=True, slots=True)
class Audit(Step):
    """A pool rots while nobody writes, and is audited; `mend`: repairs follow at once."""

    pool: str
    spots: tuple[Spot, ...]
    mend: bool


@dataclass(frozen=True, slots=True)
class Retire(Step):
    """Before the store is opened a volume is lost, and given up.

    Attributes:
        pool: that it belongs to.
        volume: its number there.
        anew: another one is made in its place; else it may come back when the catalog is lost.
        back: it does.
        cut: the power fails after that.
    """

    pool: str
    volume: int
    anew: bool
    back: bool
    cut: bool


@dataclass(frozen=True, slots=True)
class Rebuild(Step):
    """The catalog is lost after a clean end, and made anew from the volumes."""


@dataclass(frozen=True, slots=True)
class GiveUp(Step):
    """What no pool holds any more is deleted."""


# ---- drawing -----------------------------------------------------------------------------------------


def drawn(draw: _Draw, seed: int, episodes: tuple[Episode, ...]) -> tuple[Episode, ...]:
    """The episodes of a plan, with steps if the seed says so."""
    draw.rng = random.Random(f"steps {seed}")
    if draw.rng.random() >= SHARE:
        return episodes
    if draw.rng.random() < 0.7:  # to see what becomes of it
        episodes = (*episodes, draw.episode())
    return tuple(_with_steps(draw, episode, first=not n) for n, episode in enumerate(episodes))


def _with_steps(draw: _Draw, episode: Episode, *, first: bool) -> Episode:
    rng = draw.rng
    steps: list[Step] = [
        _delete(draw, len(episode.sessions)) for _ in range(rng.choice((0, 1, 2, 3, 5)))
    ]
    if rng.random() < 0.3:
        steps.append(_audit(draw))
    before: list[Step] = []
    if not first and rng.random() < 0.35:
        before.append(_retire(draw))
    if not first and rng.random() < 0.3:
        before.append(Rebuild(next(draw.ids), (), ()))
    return replace(episode, steps=tuple(steps), before=tuple(before))


def _delete(draw: _Draw, sessions: int) -> Delete:
    rng = draw.rng
    return Delete(
        next(draw.ids),
        (draw.fault(),) if rng.random() < 0.15 else (),
        (draw.catalog_fault(),) if rng.random() < 0.2 else (),
        rng.randint(0, sessions),
        rng.choice(HOW),
        rng.choice((0, 1, 1, 2)),
        rng.random() < 0.2,
    )


def _audit(draw: _Draw) -> Audit:
    rng = draw.rng
    spots = tuple(
        Spot(rng.random(), rng.choice(PARTS), rng.random(), rng.choice((1, 600, 9000)))
        for _ in range(rng.choice((0, 1, 1, 2, 3)))
    )
    return Audit(
        next(draw.ids), (), _seldom(draw), rng.choice(draw.site.pools), spots, rng.random() < 0.6
    )


def _retire(draw: _Draw) -> Retire:
    rng = draw.rng
    count = {pool: len(sizes) for pool, sizes in draw.site.sizes}
    # Of what lies on several volumes only a part is lost.
    several = [pool for pool in draw.site.pools if count[pool] > 1]
    pool = rng.choice(several if several and rng.random() < 0.6 else draw.site.pools)
    volume = rng.randrange(count[pool])
    anew = rng.random() < 0.6
    return Retire(
        next(draw.ids), (), _seldom(draw), pool, volume, anew, not anew and rng.random() < 0.7,
        rng.random() < 0.5,
    )  # fmt: skip


def _seldom(draw: _Draw) -> tuple[CatalogFault, ...]:
    return (draw.catalog_fault(),) if draw.rng.random() < 0.25 else ()
