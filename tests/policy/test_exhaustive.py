"""All combinations of failing pools against a second model of the rules, and long random runs against their promises.

The model ranks every failing pool by itself and takes the worst rank. It shares no code and no shape with the policy.
"""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.policy import (
    Action,
    Failure,
    Lists,
    gaps,
    judge,
    judge_absent,
    max_attempts,
    next_primary,
)
from fanout.types import Destination, FaultClass, ObjectKind, PoolKind, Primary, Secondary

if TYPE_CHECKING:
    from collections.abc import Mapping

POOLS = {"DP": "P", "TP": "P", "C1": "C", "C2": "C", "AD": "A"}
FINE, BAD, HOST = "fine", "bad", "host"


def destination(*, copy_continue: bool) -> Destination:
    kinds = {"C": PoolKind.COPY, "A": PoolKind.ACTIVE_DATA}
    secondaries = tuple(Secondary(p, kinds[k]) for p, k in POOLS.items() if k != "P")
    return Destination((Primary("DP"), Primary("TP")), secondaries, copy_continue)


def failures_of(state: Mapping[str, str]) -> list[Failure]:
    made = {
        BAD: lambda pool: Failure(pool, f"{pool} broke", errno.EIO, FaultClass.MEDIUM),
        HOST: lambda pool: Failure(pool, f"{pool} starved", errno.ENOMEM, FaultClass.HOST),
    }
    return [made[what](pool) for pool, what in state.items() if what != FINE]


def expected(
    state: Mapping[str, str], *, copy_continue: bool, left: int
) -> tuple[str, set[str], int]:
    """What the rules say: the outcome, who is off the lists afterwards, plain retries spent."""
    ranks = {"fine": 0, "drop": 1, "again": 2, "never": 3}
    table = {
        ("P", BAD): "again",
        ("C", BAD): "drop" if copy_continue else "never",
        ("A", BAD): "drop",
        ("P", HOST): "again",
        ("C", HOST): "again",
        ("A", HOST): "again",
    }
    each = {pool: table.get((POOLS[pool], what), "fine") for pool, what in state.items()}
    worst = max(each.values(), key=ranks.__getitem__)
    if worst == "never":
        return "fail", set(), 0
    off = {pool for pool, rank in each.items() if rank == "drop"}
    if worst == "again":
        return ("retry", off, 1) if left else ("fail", off, 0)
    return "retry", off, 0


STATES = [
    dict(zip(POOLS, combination, strict=True))
    for combination in itertools.product((FINE, BAD, HOST), repeat=len(POOLS))
    if set(combination) != {FINE}
]


@pytest.mark.parametrize("copy_continue", [True, False])
@pytest.mark.parametrize("left", [0, 1, 2])
def test_every_combination_of_failing_pools(left: int, *, copy_continue: bool) -> None:
    """242 combinations × copy_continue × budget: any of them could take a branch nobody thought of."""
    start = Lists(destination(copy_continue=copy_continue))
    for state in STATES:
        for failures in (failures_of(state), failures_of(state)[::-1]):
            verdict = judge(start, failures, retries_left=left)
            outcome, off, spent = expected(state, copy_continue=copy_continue, left=left)
            found = (verdict.action.value, set(verdict.removed), verdict.spends)
            assert found == (outcome, off, spent), state
            assert {r.pool for r in verdict.lists.removed} == off, state


@pytest.mark.parametrize("copy_continue", [True, False])
@pytest.mark.parametrize("kind", list(ObjectKind))
def test_every_set_of_removed_pools_gives_exactly_its_gaps(
    kind: ObjectKind, *, copy_continue: bool
) -> None:
    """Gap set = what the rules demand minus what holds the data, for every removal set and kind."""
    start = Lists(destination(copy_continue=copy_continue))
    secondaries = [pool for pool, role in POOLS.items() if role != "P"]
    for mask in range(1 << len(secondaries)):
        off = [pool for bit, pool in enumerate(secondaries) if mask >> bit & 1]
        lists = start.without([Failure(pool, f"{pool} broke") for pool in off])
        held = {"DP"} | {s.pool for s in lists.listed(kind)}
        demanded = {p for p in secondaries if POOLS[p] == "C" or kind is ObjectKind.BACKUP}
        found = gaps(lists, kind, aggregate=b"x", primary="DP", held=held, objects=1, size=1)
        assert {g.pool for g in found} == demanded - held == demanded & set(off)
        assert all(g.reason == f"{g.pool} broke" for g in found)


@pytest.mark.parametrize("copy_continue", [True, False])
def test_every_set_of_absent_pools(*, copy_continue: bool) -> None:
    """Absent at begin: removed and gone on, or failed when a copy pool must not be missed."""
    start = Lists(destination(copy_continue=copy_continue))
    secondaries = [pool for pool, role in POOLS.items() if role != "P"]
    for size in range(1, len(secondaries) + 1):
        for off in itertools.combinations(secondaries, size):
            verdict = judge_absent(start, [Failure(pool, "no volume") for pool in off])
            must_fail = not copy_continue and any(POOLS[pool] == "C" for pool in off)
            assert (verdict.action is Action.FAIL) is must_fail
            assert set(verdict.removed) == (set() if must_fail else set(off))


fault = st.sampled_from([FINE, FINE, FINE, BAD, BAD, HOST])


@given(
    script=st.lists(st.fixed_dictionaries(dict.fromkeys(POOLS, fault)), max_size=20),
    copy_continue=st.booleans(),
    retries=st.integers(0, 3),
    kind=st.sampled_from(ObjectKind),
)
def test_a_transaction_always_ends_within_its_bound(
    script: list[dict[str, str]], retries: int, kind: ObjectKind, *, copy_continue: bool
) -> None:
    """Whatever fails at each attempt, the attempts are bounded and the lists only shrink."""
    lists, left, attempts = Lists(destination(copy_continue=copy_continue)), retries, 0
    for state in script:
        attempts += 1
        alive = {s.pool for s in lists.listed(kind)} | {"DP", "TP"}
        failures = [f for f in failures_of(state) if f.pool in alive]
        if not failures:
            break
        verdict = judge(lists, failures, retries_left=left)
        assert set(lists.removed) <= set(verdict.lists.removed)
        assert len(verdict.lists.removed) - len(lists.removed) == len(verdict.removed)
        if verdict.action is Action.FAIL:
            break
        # Each retry has its price: someone who was listed, or a part of the budget.
        assert verdict.removed or verdict.spends
        assert {f.pool for f in failures if f.cls is FaultClass.HOST}.isdisjoint(verdict.removed)
        lists, left = verdict.lists, left - verdict.spends
        assert left >= 0
    assert attempts <= max_attempts(lists.destination, retries=retries)


@given(
    chain=st.lists(
        st.tuples(st.none() | st.integers(0, 20), st.booleans()), min_size=1, max_size=5
    ),
    size=st.integers(0, 25),
    refused=st.dictionaries(st.integers(0, 4), st.integers(0, 25)),
    start=st.integers(0, 6),
)
def test_next_primary_is_the_first_that_takes_it(
    chain: list[tuple[int | None, bool]], size: int, refused: dict[int, int], start: int
) -> None:
    """Against a list comprehension: never a closed, too small or full pool, never a later one than need be."""
    pools = tuple(Primary(f"P{i}", limit, accepts) for i, (limit, accepts) in enumerate(chain))
    full = {f"P{i}": least for i, least in refused.items()}
    takers = [
        i
        for i, (limit, accepts) in enumerate(chain)
        if i >= start
        and accepts
        and not (limit is not None and size > limit)
        and not (i in refused and size >= refused[i])
    ]
    found = next_primary(Destination(pools), size, full, start=start)
    assert found == (takers[0] if takers else None)
