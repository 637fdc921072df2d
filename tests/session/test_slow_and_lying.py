"""Pools that crawl and pools that lie, seen by a session: who leaves, who is waited for, what the gaps say, and every byte read back."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from fanout import policy
from fanout.engine import Fault
from fanout.errors import TargetError, TransactionFailed, TransactionRetry
from fanout.types import FaultClass, OutcomeCode, Phase

from .conftest import MIB, SLOT, World, destination
from .test_vectors import content, store, verified

if TYPE_CHECKING:
    from collections.abc import Callable

BIG = bytes(range(256)) * (6 * MIB // 256)  # more than the arena holds beside a laggard's backlog


def ejectable(world: World, *pools: str) -> None:
    """New volumes that may be ejected, instead of those that the pools have."""
    for pool in pools:
        path = world.directory / f"{pool.lower()}-eject.vol"
        target = world.engine.open(path, create=True, size=16 * MIB, depth=4, on_slow="eject")
        world.host.pools[pool].clear()
        world.host.add(pool, target, 16 * MIB)


def crawl(world: World, *pools: str) -> None:
    world.engine.set_faults(
        [
            Fault.delay(1.0, kind=Phase.WRITE, target=world.target(pool), count=None)
            for pool in pools
        ]
    )


def test_a_crawling_copy_pool_leaves_and_the_gap_says_why(world: World) -> None:
    """Breaks if one slow pool makes every client slow, or if what it lacks is not written down."""
    ejectable(world, "C1")
    session = world.session()
    crawl(world, "C1")
    began = world.engine.now()
    attempts = []
    for attempt in session.attempts():
        with attempt as transaction:
            attempts.append(transaction)
            transaction.put("big", BIG)
            transaction.put("A", content("A"))
    assert [t.attempt for t in attempts] == [1, 2]
    retry = attempts[0].failure
    assert isinstance(retry, TransactionRetry)
    assert (retry.reason, retry.removed) == ("secondary", ("C1",))
    assert isinstance(retry.__cause__, ExceptionGroup)
    (error,) = retry.__cause__.exceptions
    assert isinstance(error, TargetError)
    assert error.outcome.code is OutcomeCode.SLOW
    assert session.receipt is not None
    (gap,) = session.receipt.gaps
    assert (gap.pool, gap.objects, gap.bytes) == ("C1", 2, len(BIG) + len(content("A")))
    assert gap.reason.startswith("slow: ")
    assert "c1-eject.vol" in gap.reason
    assert world.engine.now() - began < 10.0  # waiting would have taken 24 s
    for pool in ("DP", "C2", "AD"):
        assert world.host.read(pool, "big") == BIG
        assert world.host.read(pool, "A") == content("A")
    assert world.host.held()["C1"] == ""
    world.engine.advance(10.0)
    world.at_rest()


def test_what_an_ejected_pool_still_writes_is_waited_for(world: World) -> None:
    """Breaks if its region is handed out again while the laggard may still write there."""
    ejectable(world, "C1")
    session = world.session()
    crawl(world, "C1")
    with pytest.raises(TransactionRetry), session.begin() as transaction:
        transaction.put("big", BIG)
    assert session.draining == 1
    assert {pool for pool, _, _ in world.host.reserved} == {"C1"}
    world.engine.advance(10.0)
    session.begin().abort()
    assert session.draining == 0
    assert world.host.reserved == set()
    world.at_rest()


def test_by_default_a_crawling_pool_is_waited_for(world: World) -> None:
    """Breaks if a slow day costs a copy that nobody offered."""
    session = world.session()
    crawl(world, "C1", "AD")
    for attempt in session.attempts():
        with attempt as transaction:
            transaction.put("big", BIG)
    assert session.receipt is not None
    assert session.receipt.attempt == 1
    assert not session.receipt.degraded
    assert world.host.read("C1", "big") == BIG
    world.at_rest()


def test_a_primary_is_never_ejected(world: World) -> None:
    """Breaks if a primary leaves for being slow, or if secondaries leave that are no slower than it."""
    ejectable(world, "DP", "C1", "C2", "AD")
    session = world.session()
    crawl(world, "DP", "C2")
    for attempt in session.attempts():
        with attempt as transaction:
            transaction.put("big", BIG)
    assert session.receipt is not None
    assert (session.receipt.attempt, session.receipt.gaps) == (1, ())
    assert world.host.read("DP", "big") == BIG
    world.at_rest()


def test_a_copy_pool_that_must_not_be_done_without_is_waited_for(world: World) -> None:
    """Breaks if copy_continue = false turns slowness into a failed transaction; an active-data pool may still go."""
    to = destination(copy_continue=False)
    assert policy.waits_for(to) == {"DP", "TP", "C1", "C2"}
    assert policy.waits_for(destination()) == {"DP", "TP"}
    ejectable(world, "C1", "AD")
    session = world.session(to)
    crawl(world, "C1")
    with session.begin() as transaction:
        transaction.put("big", BIG)
    assert session.receipt is not None
    assert not session.receipt.degraded
    crawl(world, "AD")
    with pytest.raises(TransactionRetry) as caught, session.begin() as transaction:
        transaction.put("big", BIG)
    assert caught.value.removed == ("AD",)
    world.engine.advance(60.0)
    world.at_rest()


def test_two_crawling_pools_leave_within_one_attempt_each_at_most(world: World) -> None:
    """Breaks if slowness can cost more resends than there are pools."""
    ejectable(world, "C1", "C2", "AD")
    session = world.session()
    crawl(world, "C1", "AD")
    for attempt in session.attempts():
        with attempt as transaction:
            transaction.put("big", BIG)
    assert session.receipt is not None
    assert session.receipt.attempt <= 3
    assert set(session.removed) == {"C1", "AD"}
    assert world.host.read("C2", "big") == BIG
    assert world.host.held() | {"TP": ""} == {
        "DP": "big",
        "TP": "",
        "C1": "",
        "C2": "big",
        "AD": "",
    }


# ---- lies ------------------------------------------------------------------------------------------------


LIES: dict[str, Callable[..., Fault]] = {
    "swallowed": lambda **where: Fault.swallowed(kind=Phase.WRITE, **where),
    "flipped": lambda **where: Fault.flipped(700, **where),
    "misdirected": lambda **where: Fault.misdirected(4096, **where),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("nth", [1, 3], ids=["first", "later"])
def test_a_lying_copy_pool_leaves_before_the_commit(world: World, lie: str, nth: int) -> None:
    """Breaks if a receipt names a pool that holds something else."""
    session = world.session(verify=("DP", "C1", "C2", "AD"))
    world.engine.set_faults([LIES[lie](target=world.target("C2"), nth=nth)])
    assert store(session, "ABD") == 2
    assert session.receipt is not None
    assert session.removed["C2"].startswith("read: not what was written at ")
    (gap,) = session.receipt.gaps
    assert (gap.pool, gap.errno) == ("C2", errno.EILSEQ)
    assert verified(world) == {"DP": "ABD", "TP": "", "C1": "ABD", "C2": "", "AD": "ABD"}
    world.at_rest()


def test_only_pools_of_the_destination_can_be_verified(world: World) -> None:
    """Breaks if a typing error means that nothing is read back."""
    with pytest.raises(ValueError, match="not of this destination: C9"):
        world.session(verify=("C1", "C9"))


def test_without_verify_a_lie_is_committed(world: World) -> None:
    """The promise that there is otherwise, and what it does not cover: this is what verify is for."""
    session = world.session()
    world.engine.set_faults([Fault.swallowed(kind=Phase.WRITE, target=world.target("C2"))])
    assert store(session, "B") == 1
    with pytest.raises(AssertionError):
        world.host.read("C2", "B")


def test_a_lying_primary_is_tried_again(world: World) -> None:
    """Breaks if a primary's lie is committed, or removes somebody."""
    session = world.session(verify=("DP",))
    world.engine.set_faults([Fault.flipped(9, target=world.target("DP"))])
    assert store(session, "AB") == 2
    assert dict(session.removed) == {}
    assert verified(world)["DP"] == "AB"
    world.engine.set_faults([Fault.flipped(9, target=world.target("DP"), count=None)])
    with pytest.raises(TransactionFailed) as caught:
        store(session, "A")
    assert caught.value.reason == "budget"
    assert verified(world)["DP"] == "AB"
    world.at_rest()


def test_lies_of_one_attempt_are_judged_together(world: World) -> None:
    """R13: one resend for two liars, and each is named."""
    session = world.session(verify=("C1", "AD"))
    world.engine.set_faults(
        [Fault.flipped(1, target=world.target(pool), count=None) for pool in ("C1", "AD")]
    )
    with pytest.raises(TransactionRetry) as caught, session.begin() as transaction:
        transaction.put("A", content("A"))
    assert set(caught.value.removed) == {"C1", "AD"}
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    for error in caught.value.__cause__.exceptions:
        assert isinstance(error, TargetError)
        assert (error.outcome.code, error.outcome.phase) == (OutcomeCode.MISMATCH, Phase.READ)
        assert error.outcome.cls is FaultClass.MEDIUM
    assert store(session, "A") == 1
    world.at_rest()


def test_objects_over_many_spans_are_read_back_whole(real: World) -> None:
    """Breaks if a span's footer or padding, or a span that was left early, is compared with the wrong sums."""
    real.host.piece = 3 * SLOT + 8192
    session = real.session(verify=("DP", "TP", "C1", "C2", "AD"))
    for attempt in session.attempts():
        with attempt as transaction:
            for number in range(20):
                transaction.put(f"o{number}", BIG[: number * 70_001])
            transaction.put("last", [BIG[:100_000], BIG[:1]])
    assert session.receipt is not None
    assert (session.receipt.attempt, session.receipt.gaps) == (1, ())
    for pool in ("DP", "C1", "C2", "AD"):
        assert real.host.read(pool, "o19") == BIG[: 19 * 70_001]
        assert real.host.read(pool, "last") == BIG[:100_000] + BIG[:1]
    real.at_rest()
