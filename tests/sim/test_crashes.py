"""A share of the crash states; all of them: ``make test-faults``, ``make nightly``."""

from __future__ import annotations

import logging
import random

from tests.sim.crashes import EXHAUSTIVE, run_crashes, states
from tests.sim.ground import Grounds
from tests.sim.medium import Change


def test_every_cut_of_the_smallest_workload() -> None:
    """A power loss leaves half a transaction, loses an acknowledged one, or a store that does not open or come right again."""
    logging.disable()
    try:
        with Grounds() as grounds:
            done = run_crashes(["no copies at all"], grounds, samples=2, step=3)
    finally:
        logging.disable(logging.NOTSET)
    assert done.total() > 100


def test_the_states_of_a_cut() -> None:
    """Some way of losing writes would never be tried."""
    rng = random.Random(1)
    changes = [Change(n, 4096 * n, bytes(4096)) for n in range(EXHAUSTIVE)]
    found = [tuple(state.values()) for state in states(changes, rng, 10)]
    assert len(set(found)) >= 2**EXHAUSTIVE
    assert any(isinstance(fate, tuple) and 0 < len(fate) < 8 for state in found for fate in state)
    many = [tuple(s.values()) for s in states([*changes, changes[0]], rng, 10)]
    count = EXHAUSTIVE + 1
    assert {sum(map(bool, state)) for state in many if all(isinstance(f, bool) for f in state)} >= {
        0,
        1,
        count - 1,
        count,
    }
    assert list(states([], rng, 10)) == [{}]
