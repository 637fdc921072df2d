"""What a plan has in it: a bug that strikes only there is looked for first by the seeds that draw it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tests.sim.plan import draw
from tests.sim.steps import Delete, Rebuild, Retire
from tests.sim.world import REBUILD_EVERY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tests.sim.plan import Plan
    from tests.sim.steps import Step


def features(plan: Plan) -> frozenset[str]:
    """Of a plan: the kinds of its steps, and what else a bug may need."""
    steps: list[Step] = [
        step for episode in plan.episodes for step in (*episode.before, *episode.steps)
    ]
    found = {type(step).__name__ for step in steps}
    sizes = dict(plan.site.sizes)
    retired = [step for step in steps if isinstance(step, Retire)]
    sessions = [session for episode in plan.episodes for session in episode.sessions]
    actions = {fault.action for session in sessions for fault in session.faults}
    for name, there in (
        ("part of a pool is lost", any(len(sizes[step.pool]) > 1 for step in retired)),
        ("a lost disk comes back", any(step.back for step in retired)),
        ("rebuilt", plan.seed % REBUILD_EVERY == 0 or any(isinstance(s, Rebuild) for s in steps)),
        ("active-data pool", "A1" in plan.site.secondaries),
        ("copies must be", not plan.site.copy_continue),
        ("superseded", any(isinstance(s, Delete) and s.how != "expire" for s in steps)),
        ("hangs", bool(actions & {"late", "never"})),
        ("at once", any(episode.together for episode in plan.episodes)),
    ):
        if there:
            found.add(name)
    return frozenset(found)


@functools.cache
def of_seed(seed: int) -> frozenset[str]:
    """Of the plan that it draws."""
    return features(draw(seed))


def in_order(wanted: Collection[str], limit: int) -> Iterator[int]:
    """All seeds below the limit: those that draw everything that is wanted come first."""
    yield from (seed for seed in range(limit) if of_seed(seed).issuperset(wanted))
    yield from (seed for seed in range(limit) if not of_seed(seed).issuperset(wanted))
