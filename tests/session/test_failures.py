"""What fails, beside the rules' own examples: flushes, hangs, this host, reservations, the catalog; and what becomes of regions."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from fanout.engine import Fault, Stream
from fanout.errors import (
    CatalogBusy,
    CommitUnknown,
    InterfaceError,
    PoolFull,
    PoolUnavailable,
    TargetError,
    TransactionFailed,
    TransactionRetry,
)
from fanout.sources import once
from fanout.transaction import State
from fanout.types import Destination, FaultClass, OutcomeCode, Phase, Primary

from .conftest import AD, C1, C2, KIB, MIB, NORMAL, SLOT, World, destination
from .test_vectors import content, store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.host import Span
    from fanout.session import Session


def caught_once(session: Session, *names: str) -> TransactionRetry:
    """One attempt by hand that fails with a retry."""
    with pytest.raises(TransactionRetry) as caught, session.begin() as transaction:
        for name in names:
            transaction.put(name, content(name))
    return caught.value


def every(pool: str, world: World, **what: Any) -> Fault:
    return Fault.error(what.pop("number", errno.EIO), target=world.target(pool), count=None, **what)


# ---- what the exception says -----------------------------------------------------------------------------


def test_the_cause_is_a_group_of_target_errors_even_of_one(world: World) -> None:
    """`except*` must work without a special case for one failure."""
    session = world.session()
    world.engine.set_faults([every("C1", world, kind=Phase.WRITE)])
    retry = caught_once(session, "A")
    assert (retry.reason, retry.removed, retry.attempt) == ("secondary", ("C1",), 1)
    group = retry.__cause__
    assert isinstance(group, ExceptionGroup)
    (error,) = group.exceptions
    assert isinstance(error, TargetError)
    assert error.target == world.target("C1").path
    assert (error.errno, error.outcome.phase) == (errno.EIO, Phase.WRITE)
    assert "c1.vol" in str(retry)
    assert "Send it again" in str(retry)


def test_failures_of_one_moment_are_judged_together(world: World) -> None:
    """R13: one after the other would cost the client two resends."""
    session = world.session()
    world.engine.set_faults(
        [every("C1", world, kind=Phase.WRITE), every("AD", world, kind=Phase.WRITE)]
    )
    retry = caught_once(session, "E")
    assert set(retry.removed) == {"C1", "AD"}
    assert isinstance(retry.__cause__, ExceptionGroup)
    assert len(retry.__cause__.exceptions) == 2
    world.at_rest()


def test_failures_of_one_moment_are_always_judged_together(world: World) -> None:
    """Which of the two completions comes first is chance; the verdict must not be."""
    world.engine.set_faults(
        [every("C1", world, kind=Phase.WRITE), every("AD", world, kind=Phase.WRITE)]
    )
    for _ in range(30):
        session = world.session()
        transaction = session.begin()
        with pytest.raises(TransactionRetry) as caught:
            for _ in range(100):
                transaction.put("A", content("A") * 20)  # just less than a slot
        assert set(caught.value.removed) == {"C1", "AD"}
    world.at_rest()


def test_a_failure_stops_the_feeding(world: World) -> None:
    """A client must not push the rest of a large object into an attempt that has failed."""
    session = world.session(NORMAL)
    world.engine.set_faults([every("C1", world, kind=Phase.WRITE)])
    given = 0

    class Endless:
        def __iter__(self) -> Any:
            nonlocal given
            for _ in range(10_000):
                given += SLOT
                yield bytes(SLOT)

    with pytest.raises(TransactionRetry), session.begin() as transaction:
        transaction.put("E", Endless())
    assert given < 100 * SLOT
    world.at_rest()


# ---- flushes ---------------------------------------------------------------------------------------------


def test_a_failed_flush_is_a_write_error(world: World) -> None:
    """All bytes were written well; without the flush nothing vouches for them."""
    session = world.session()
    world.engine.set_faults([Fault.error(errno.EIO, kind=Phase.FLUSH, target=world.target("C2"))])
    retry = caught_once(session, "A", "B")
    assert retry.removed == ("C2",)
    assert session.removed["C2"].startswith("flush: EIO")
    assert store(session, "AB") == 1
    assert world.host.held()["C2"] == ""
    world.at_rest()


def test_a_target_that_a_flush_closed_counts_as_failed_for_the_next_session(world: World) -> None:
    """The volume takes no writes any more: a write error, not a programmer's error."""
    world.engine.set_faults([Fault.error(errno.EIO, kind=Phase.FLUSH, target=world.target("C1"))])
    store(world.session(), "A")
    session = world.session()
    retry = caught_once(session, "B")
    assert retry.removed == ("C1",)
    assert store(session, "B") == 1
    world.at_rest()


def test_one_failed_flush_fails_every_session_by_its_own_rule(world: World) -> None:
    """Both have bytes on C1 that no good flush covers: one goes on without it, the other must not, and a third that had committed is well."""
    before, goes_on = world.session(), world.session()
    stops = world.session(destination(copy_continue=False))
    store(before, "C")
    first, second = goes_on.begin(), stops.begin()
    first.put("A", content("A"))
    second.put("D", content("D"))
    world.engine.set_faults([Fault.error(errno.EIO, kind=Phase.FLUSH, target=world.target("C1"))])
    with pytest.raises(TransactionRetry) as retry:
        first.commit()
    with pytest.raises(TransactionFailed) as failed:
        second.commit()
    assert (retry.value.removed, failed.value.reason) == (("C1",), "copy_continue")
    assert not stops.removed
    assert store(goes_on, "A") == 1
    assert world.host.held() == {"DP": "CA", "TP": "", "C1": "C", "C2": "CA", "AD": "CA"}
    world.at_rest()


# ---- hangs -----------------------------------------------------------------------------------------------


def test_a_hung_target_is_let_go_and_its_region_never_given_back(world: World) -> None:
    """Its write may land at any time: whoever got the place next would be overwritten."""
    session = world.session()
    world.engine.set_faults([Fault.never(kind=Phase.WRITE, target=world.target("C1"), count=None)])
    retry = caught_once(session, "A")
    assert retry.removed == ("C1",)
    (error,) = retry.__cause__.exceptions  # type: ignore[union-attr]
    assert error.outcome.code in {OutcomeCode.TIMED_OUT, OutcomeCode.DETACHED}
    world.engine.set_faults([])
    assert store(session, "A") == 1
    assert {pool for pool, _, _ in world.host.reserved} == {"C1"}
    world.engine.release(world.target("C1"))  # the write lands late, with success
    session.begin().abort()
    assert {pool for pool, _, _ in world.host.reserved} == {"C1"}
    assert world.host.held()["C1"] == ""


def test_a_late_success_on_a_target_that_was_let_go_gives_nothing_back(world: World) -> None:
    """Its regions stay reserved, also when a sweep for another target comes by after it has landed."""
    slow = world.engine.open(
        world.directory / "slow.vol", create=True, size=MIB, hard_deadline=10_000.0
    )
    world.host.pools["C2"].clear()
    world.host.add("C2", slow, MIB)
    session = world.session()
    hung = world.target("C1")
    world.engine.set_faults(
        [
            Fault.never(kind=Phase.WRITE, target=hung, count=None),
            Fault.delay(1000.0, kind=Phase.WRITE, target=slow, count=None),
        ]
    )
    transaction = session.begin()
    transaction.put("B", content("B"))
    transaction.abort()
    world.engine.advance(200.0)
    assert hung.state == "detached"
    world.engine.release(hung)
    session.begin().abort()
    assert session.draining == 1
    assert {pool for pool, _, _ in world.host.reserved} == {"C1", "C2"}
    world.engine.advance(2000.0)
    session.begin().abort()
    assert session.draining == 0
    assert {pool for pool, _, _ in world.host.reserved} == {"C1"}


def test_a_slow_drain_is_swept_at_a_later_begin(world: World) -> None:
    """What is in flight when the attempt is aborted goes back later, never before it has landed."""
    session = world.session()
    target = world.target("C2")
    world.engine.set_faults([Fault.delay(50.0, kind=Phase.WRITE, target=target, count=None)])
    transaction = session.begin()
    transaction.put("E", content("E"))
    transaction.abort()
    assert session.draining == 1
    world.engine.advance(1.0)
    session.begin().abort()
    assert session.draining == 1
    assert {pool for pool, _, _ in world.host.reserved} == {"C2"}
    world.engine.advance(60.0)
    with session.begin():
        assert session.draining == 0
        assert not world.host.reserved
    world.at_rest()


def test_one_failure_does_not_wait_for_another_ones_hang(world: World) -> None:
    """C1 fails at once while C2 hangs for less than the deadline: only C1 is to blame."""
    session = world.session()
    world.engine.set_faults(
        [
            every("C1", world, kind=Phase.WRITE),
            Fault.delay(60.0, kind=Phase.WRITE, target=world.target("C2")),
        ]
    )
    before = world.engine.now()
    retry = caught_once(session, "A")
    assert retry.removed == ("C1",)
    assert world.engine.now() - before < 10.0


def test_a_timeout_for_the_flush_blames_the_late_ones(world: World) -> None:
    """The session's own timeout, below the engine's deadline."""
    session = world.session(timeout=2.0)
    world.engine.set_faults([Fault.delay(60.0, kind=Phase.FLUSH, target=world.target("AD"))])
    retry = caught_once(session, "A")
    assert retry.removed == ("AD",)
    path = world.target("AD").path
    assert os.path.isabs(path)
    assert session.removed["AD"] == f"flush: ETIMEDOUT at 0 on {path}"


@pytest.mark.parametrize("pool", ["C1", "AD", "DP"])
def test_a_timeout_for_memory_blames_who_holds_it(world: World, pool: str) -> None:
    """An object larger than the memory never came to its flush beside a pool that hung: every transaction failed, for a shortage of this host."""
    session = world.session(timeout=5.0)
    world.engine.set_faults([Fault.never(kind=Phase.WRITE, target=world.target(pool), count=None)])
    with pytest.raises(TransactionRetry) as caught, session.begin() as transaction:
        transaction.put("large", bytes(9 * MIB))
    if pool == "DP":
        assert (caught.value.reason, caught.value.removed) == ("primary", ())
        return
    assert (caught.value.reason, caught.value.removed) == ("secondary", (pool,))
    assert session.removed[pool] == f"write: ETIMEDOUT at 0 on {world.target(pool).path}"
    with session.begin() as transaction:  # while it still hangs
        transaction.put("large", bytes(9 * MIB))
    assert world.engine.now() < 60.0  # not by the engine's own deadline


def test_a_flush_that_ends_with_the_timeout_is_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the end of the wait and the look at who is late all had answered: nobody could be blamed, which ended in an AssertionError."""
    session, sync = world.session(timeout=0.2), Stream.sync
    late = iter([True])

    def just_missed(stream: Stream, *, timeout: float | None = None) -> Any:
        outcomes = sync(stream, timeout=timeout)
        if next(late, False):
            raise TimeoutError
        return outcomes

    monkeypatch.setattr(Stream, "sync", just_missed)
    assert store(session, "A") == 1
    assert not session.removed
    world.at_rest()


# ---- this host -------------------------------------------------------------------------------------------


def test_a_shortage_of_this_host_removes_nobody(world: World) -> None:
    """ENOMEM says nothing about the pool; the retries are those of the primary, and bounded."""
    session = world.session()
    world.engine.set_faults(
        [every(pool, world, kind=Phase.WRITE, number=errno.ENFILE) for pool in ("DP", "C1", "AD")]
    )
    with pytest.raises(TransactionFailed) as caught:
        store(session, "A")
    assert caught.value.reason == "budget"
    assert isinstance(caught.value.__cause__, TransactionRetry)
    assert caught.value.__cause__.reason == "host"
    assert not session.removed
    world.at_rest()


def test_an_engine_without_a_free_stream_is_a_shortage_of_this_host(world: World) -> None:
    """Eight stalled clients must not remove the pools of a ninth."""
    held = [world.engine.stream([world.target("TP")]) for _ in range(8)]
    session = world.session(timeout=0.5)
    retry = caught_once(session, "A")
    assert (retry.reason, retry.removed) == ("host", ())
    assert "end clients that stall, or give it more" in str(retry)
    for stream in held:
        stream.close()
    assert store(session, "A") == 1


# ---- reservations ----------------------------------------------------------------------------------------


def test_a_full_secondary_is_a_write_error(world: World) -> None:
    """R2 by PoolFull: the attempt is undone, the resend goes without it."""
    session = world.session()
    world.host.pools["C2"][0].size = 64 * KIB
    retry = caught_once(session, "B")
    assert retry.removed == ("C2",)
    assert session.removed["C2"].startswith("reserve: no 208896 bytes")
    (error,) = retry.__cause__.exceptions  # type: ignore[union-attr]
    assert isinstance(error, PoolFull)
    assert store(session, "B") == 1
    assert session.receipt is not None
    assert [(g.pool, g.errno) for g in session.receipt.gaps] == [("C2", errno.ENOSPC)]
    world.at_rest()


def test_what_an_aborted_attempt_still_has_is_waited_for(world: World) -> None:
    """The same objects, sent again at once, found pools full of themselves: they overflowed, and all secondaries left the session."""
    world.engine.set_faults(
        [
            Fault.delay(3.0, kind=Phase.WRITE, target=world.target(pool), count=None)
            for pool in ("DP", "C2")
        ]
    )
    session = world.session()
    transaction = session.begin()
    transaction.put("big", bytes(9 * MIB))
    transaction.abort()
    with session.begin() as again:
        again.put("big", bytes(9 * MIB))
    assert not session.removed
    assert again.receipt is not None
    assert again.receipt.objects[0].pools == ("DP", "C1", "C2", "AD")


def test_what_an_aborted_attempt_still_has_is_not_waited_for_for_ever(world: World) -> None:
    """A pool that drains more slowly than the session may wait is full, as for anybody else."""
    session = world.session(timeout=5.0)
    world.host.pools["C2"][0].size = MIB
    world.engine.set_faults(
        [Fault.delay(60.0, kind=Phase.WRITE, target=world.target("C2"), count=None)]
    )
    transaction = session.begin()
    transaction.put("small", bytes(600 * KIB))
    transaction.abort()
    began = world.engine.now()
    with pytest.raises(TransactionRetry) as caught, session.begin() as again:
        again.put("small", bytes(600 * KIB))
    assert caught.value.removed == ("C2",)
    assert session.removed["C2"].startswith("reserve: ")
    assert world.engine.now() - began < 10.0


def test_all_full_secondaries_are_found_at_once(world: World) -> None:
    """One resend for two full pools (R13)."""
    session = world.session()
    for pool in ("C1", "AD"):
        world.host.pools[pool][0].size = 64 * KIB
    assert set(caught_once(session, "B").removed) == {"C1", "AD"}
    world.at_rest()


@pytest.mark.parametrize("copy_continue", [True, False])
@pytest.mark.parametrize("fault", ["refusal", "host"])
def test_a_refusal_and_a_failed_write_are_judged_together(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: str, *, copy_continue: bool
) -> None:
    """R13 and R14: C1 has lost what it was given, and AD has no room for more. Where C1 must not be missed a resend was asked for."""
    session, reserve = world.session(destination(copy_continue=copy_continue)), world.host.reserve
    world.engine.set_faults([every("C1", world, kind=Phase.WRITE)])
    transaction = session.begin()
    transaction.put("B", content("B"))
    world.engine.advance(1.0)

    def refusing(request: Any) -> Any:
        if "AD" in request.secondaries:
            raise PoolFull("AD", "no room", of_host=fault == "host")
        return reserve(request)

    monkeypatch.setattr(world.host, "reserve", refusing)
    with pytest.raises((TransactionRetry, TransactionFailed)) as caught:
        transaction.put("E", content("E"))
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert len(caught.value.__cause__.exceptions) == 2
    removed = {"C1"} if fault == "host" else {"C1", "AD"}
    if copy_continue:
        assert caught.value.reason == ("host" if fault == "host" else "secondary")
        assert set(caught.value.removed) == removed
    else:
        assert caught.value.reason == "copy_continue"
        assert not session.removed
    world.at_rest()


def test_a_full_copy_pool_without_copy_continue(world: World) -> None:
    """R3 holds for a refusal too."""
    session = world.session(destination(copy_continue=False))
    world.host.pools["C2"][0].size = 64 * KIB
    with pytest.raises(TransactionFailed) as caught:
        store(session, "B")
    assert caught.value.reason == "copy_continue"
    world.at_rest()


def test_a_pool_that_is_missing_at_begin_counts_as_removed(world: World) -> None:
    """No resend: nothing was written yet. But the gap is there, and the receipt is degraded."""
    world.host.unavailable = {"C1", "AD"}
    session = world.session()
    assert store(session, "AB") == 1
    assert set(session.removed) == {"C1", "AD"}
    assert session.receipt is not None
    assert {gap.pool for gap in session.receipt.gaps} == {"C1", "AD"}
    assert world.host.held() == {"DP": "AB", "TP": "", "C1": "", "C2": "AB", "AD": ""}
    world.at_rest()


def test_a_missing_pool_stays_removed_after_an_abort(world: World) -> None:
    """The next transaction must not find it again, and take it in again, in the middle of the session."""
    world.host.unavailable = {"C1"}
    session = world.session()
    transaction = session.begin()
    transaction.put("A", content("A"))
    transaction.abort()
    world.host.unavailable = set()
    assert list(session.removed) == ["C1"]
    assert store(session, "B") == 1
    assert world.host.held()["C1"] == ""


def test_a_copy_pool_that_is_missing_at_begin_without_copy_continue(world: World) -> None:
    """R3: not a byte is written, and the places of the others come back."""
    world.host.unavailable = {"C1"}
    session = world.session(destination(copy_continue=False))
    with pytest.raises(TransactionFailed) as caught:
        store(session, "A")
    assert caught.value.reason == "copy_continue"
    (error,) = caught.value.__cause__.exceptions  # type: ignore[union-attr]
    assert isinstance(error, PoolUnavailable)
    assert not session.removed
    world.at_rest()


def test_a_pool_that_vanishes_later_is_a_write_error(world: World) -> None:
    """Objects of this transaction are on it already; going on would split the transaction."""
    session = world.session()
    with pytest.raises(TransactionRetry) as caught, session.begin() as transaction:
        transaction.put("A", content("A"))
        world.host.unavailable = {"C1"}
        transaction.put("E", content("E"))
    assert caught.value.removed == ("C1",)
    world.at_rest()


def test_a_full_primary_in_the_middle_of_a_transaction(world: World) -> None:
    """R6: E does not fit DP any more, so it goes to TP; the small ones after it still fit DP."""
    world.host.pools["DP"][0].size = MIB
    session = world.session()
    assert store(session, "AEB") == 1
    assert world.host.held() == {"DP": "AB", "TP": "E", "C1": "AEB", "C2": "AEB", "AD": "AEB"}
    assert [a.primary for a in world.host.records[0].aggregates] == ["DP", "TP", "DP"]
    asked = [r.primary for r in world.host.requests if r.length == len(content("E"))]
    assert "TP" in asked
    world.at_rest()


def test_no_primary_takes_it(world: World) -> None:
    """R7: fails for good, nothing is stored, and the message names the chain and the mend."""
    for pool in ("DP", "TP"):
        world.host.pools[pool][0].size = MIB
    session = world.session()
    with pytest.raises(
        TransactionFailed, match=r"no pool of DP -> TP takes 'E'.*\(DP: .*; TP: .*\); add a volume"
    ) as c:
        store(session, "AE")
    assert c.value.reason == "space"
    assert isinstance(c.value.__cause__, ExceptionGroup)
    assert len(c.value.__cause__.exceptions) == 2
    assert world.host.held()["DP"] == ""
    assert store(session, "A") == 1
    world.at_rest()


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("copy_continue", [True, False])
def test_what_fails_before_no_primary_takes_an_object(
    world: World, *, copy_continue: bool, unknown: bool
) -> None:
    """The session's next transaction met the broken pool again; a copy pool that must not be missed was told as a want of space (R14)."""
    chain = (Primary("DP", MIB), Primary("TP", MIB))
    session = world.session(Destination(chain, (C1, C2, AD), copy_continue))
    world.engine.set_faults([every("C1", world, kind=Phase.WRITE)])
    transaction = session.begin()
    transaction.put("B", content("B"))
    world.engine.advance(1.0)
    large = content("E")
    with pytest.raises(TransactionFailed) as caught:
        transaction.put("E", once(iter([large])) if unknown else large)
    assert caught.value.reason == ("space" if copy_continue else "copy_continue")
    gone = ("C1",) if copy_continue else ()
    assert (caught.value.removed, tuple(session.removed)) == (gone, gone)
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert caught.value.__cause__.subgroup(TargetError)
    world.at_rest()


def test_an_unavailable_primary_is_passed_over(world: World) -> None:
    """The chain goes on below a primary that has no volume to write to."""
    world.host.unavailable = {"DP"}
    session = world.session()
    assert store(session, "A") == 1
    assert world.host.held()["TP"] == "A"
    world.at_rest()


def test_a_full_pool_is_not_asked_again_for_as_much(world: World) -> None:
    """A thousand objects after an overflow must not cost a thousand refusals of the same size."""
    world.host.pools["DP"][0].size = 512 * KIB
    session = world.session()
    with session.begin() as transaction:
        for index in range(20):
            transaction.put(f"{index}", bytes(300 * KIB))
    refusals = [r for r in world.host.requests if r.primary == "DP"]
    assert len(refusals) <= 3
    world.at_rest()


# ---- the catalog -----------------------------------------------------------------------------------------


def test_a_commit_that_did_not_happen_is_sent_again(world: World) -> None:
    """The catalog was busy: no pool is to blame, everything is undone."""
    session = world.session()
    times = 0

    def busy(record: object) -> None:
        nonlocal times
        times += 1
        if times == 1:
            raise CatalogBusy("catalog.db", "another writer")

    world.host.before_commit = busy
    assert store(session, "AB") == 2
    assert not session.removed
    world.at_rest()


def test_a_catalog_that_stays_busy_ends_in_the_budget(world: World) -> None:
    """Three attempts in all; nothing stays reserved."""
    session = world.session()

    def busy(record: object) -> None:
        raise CatalogBusy("catalog.db", "another writer")

    world.host.before_commit = busy
    with pytest.raises(TransactionFailed) as caught:
        store(session, "A")
    assert (caught.value.reason, caught.value.attempt) == ("budget", 3)
    assert isinstance(caught.value.__cause__, TransactionRetry)
    assert caught.value.__cause__.reason == "catalog"
    world.at_rest()


@pytest.mark.parametrize(
    "error", [CommitUnknown("catalog", "fsync failed"), RuntimeError("bug"), KeyboardInterrupt()]
)
def test_an_unknown_commit_gives_nothing_back(world: World, error: BaseException) -> None:
    """It may be committed: places that went back would be overwritten under live objects."""
    session = world.session()

    def unknown(record: object) -> None:
        raise error

    world.host.before_commit = unknown
    transaction = session.begin()
    transaction.put("A", content("A"))
    with pytest.raises(type(error)):
        transaction.commit()
    assert transaction.state is State.UNKNOWN
    assert {pool for pool, _, _ in world.host.reserved} == {"DP", "C1", "C2", "AD"}
    with pytest.raises(InterfaceError, match="in doubt"):
        transaction.abort()
    with pytest.raises(InterfaceError, match="in doubt"):
        transaction.put("B", b"")
    session.close()
    assert len(world.host.reserved) == 4


# ---- hosts that break their contract ---------------------------------------------------------------------


def test_a_host_that_gives_other_places_is_named(world: World, monkeypatch: Any) -> None:
    """Writing the primary's bytes to a wrong pool would go unnoticed until the restore."""
    session = world.session()
    reserve = world.host.reserve

    def swapped(request: Any) -> Any:
        return [
            type(span)(span.length, span.placements[::-1], span.token) for span in reserve(request)
        ]

    monkeypatch.setattr(world.host, "reserve", swapped)
    transaction = session.begin()
    with pytest.raises(InterfaceError, match="asked for places on"):
        transaction.put("A", content("A"))
    assert transaction.state is State.ABORTED


def test_a_host_whose_spans_hold_only_framing_is_named(world: World, monkeypatch: Any) -> None:
    """Asking again and again for room that never suffices would not end."""
    session = world.session()
    transaction = session.begin()
    monkeypatch.setattr(type(world.host), "_gross", lambda self, request: 0)
    world.host.piece = 4096
    with pytest.raises(InterfaceError, match="too small for its framing and 1024 bytes"):
        monkeypatch.setattr(world.host.framing, "foot_size", lambda *a: 4096, raising=False)
        transaction.put("n" * 1024, b"x")
    transaction.abort()
    world.at_rest()


def test_the_class_of_the_errno_reaches_the_policy(world: World) -> None:
    """ENOSPC from inside a reservation is the volume's fault, never an overflow."""
    session = world.session()
    world.engine.set_faults([every("DP", world, kind=Phase.WRITE, number=errno.ENOSPC)])
    retry = caught_once(session, "A")
    assert retry.reason == "primary"
    (error,) = retry.__cause__.exceptions  # type: ignore[union-attr]
    assert isinstance(error, TargetError)
    assert error.outcome.cls is FaultClass.SPACE


def test_a_host_that_says_it_is_of_no_use(world: World) -> None:
    """A resend of what was committed before: the places come back, and the loop ends."""
    session = world.session()

    def duplicate(record: object) -> None:
        raise TransactionFailed("duplicate", "was committed already")

    world.host.before_commit = duplicate
    with pytest.raises(TransactionFailed) as caught:
        store(session, "A")
    assert caught.value.reason == "duplicate"
    world.at_rest()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug")])
@pytest.mark.parametrize("nth", range(1, 5))
def test_a_host_that_breaks_off_while_it_takes_something_back(
    world: World, monkeypatch: pytest.MonkeyPatch, error: BaseException, nth: int
) -> None:
    """Of three aggregates, each with a span that it never entered: all but the one that the host was asked for goes back."""
    session, release = world.session(destination(max_size=MIB)), world.host.release
    calls: list[tuple[Span, tuple[str, ...]]] = []

    def broken(span: Span, pools: Sequence[str]) -> None:
        calls.append((span, tuple(pools)))
        if len(calls) == nth:
            raise error
        release(span, pools)

    transaction = session.begin()
    for name in "AEB":
        world.host.generous = True
        transaction.put(name, content(name))
    monkeypatch.setattr(world.host, "release", broken)
    with pytest.raises(type(error)):
        transaction.abort()
    session.close()
    span, pools = calls[nth - 1]
    assert world.host.reserved == {
        (p.pool, p.target.path, p.offset) for p in span.placements if p.pool in pools
    }
    release(span, pools)
    world.at_rest()


def test_an_interrupt_right_after_the_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While what was reserved and not used goes back: an abort now would hand the committed places to others."""
    session, release = world.session(), world.host.release

    def interrupted(span: Span, pools: Sequence[str]) -> None:
        release(span, pools)
        raise KeyboardInterrupt

    def committing(record: object) -> None:
        monkeypatch.setattr(world.host, "release", interrupted)

    world.host.before_commit = committing
    with pytest.raises(KeyboardInterrupt), session.begin() as txn:
        txn.put("A", once(iter([content("A")])))  # of unknown length: one span more than it needs
    monkeypatch.undo()
    assert txn.state is State.COMMITTED
    assert session.receipt is not None
    with pytest.raises(InterfaceError, match="committed"):
        txn.abort()
    assert world.host.read("C1", "A") == content("A")
    world.at_rest()


def test_an_engine_that_is_closed_under_a_transaction(world: World) -> None:
    """The caller's mistake gets its own error, not one of the cleaning up."""
    session = world.session()
    transaction = session.begin()
    transaction.put("A", content("A"))
    world.engine.close()
    with pytest.raises(InterfaceError):
        transaction.put("E", content("E"))
    assert transaction.state is State.ABORTED
    session.close()


def test_a_target_that_is_lost_while_a_stream_waits_for_its_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the targets and the opening of the stream: the client was told that it had used the library wrongly."""
    engine, lost = world.engine, world.target("C1")
    stream = engine.stream

    def late(targets: Any, **options: Any) -> Any:
        if lost.state == "active":
            engine.set_faults([Fault.error(errno.EIO, kind=Phase.FLUSH, target=lost)])
            with pytest.raises(TargetError):
                engine.flush(lost)
        return stream(targets, **options)

    monkeypatch.setattr(engine, "stream", late)
    session = world.session()
    for attempt in session.attempts():
        with attempt as txn:
            txn.put("A", b"a" * 5000)
    assert list(session.removed) == ["C1"]
    assert session.receipt is not None
    assert session.receipt.attempt == 2


@pytest.mark.parametrize("copy_continue", [True, False])
@pytest.mark.parametrize("pool", ["DP", "C1"])
@pytest.mark.parametrize("error", [PoolFull, PoolUnavailable])
def test_a_refusal_that_is_this_hosts_removes_nobody(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    error: type[PoolFull | PoolUnavailable],
    pool: str,
    *,
    copy_continue: bool,
) -> None:
    """Neither is the primary passed over: a limit of this process says nothing about any pool."""
    session, reserve = world.session(destination(copy_continue=copy_continue)), world.host.reserve
    refused: list[object] = []

    def short(request: Any) -> Any:
        if pool in (request.primary, *request.secondaries) and len(refused) < 1:
            refused.append(request)
            raise error(pool, "no descriptor", of_host=True)
        return reserve(request)

    monkeypatch.setattr(world.host, "reserve", short)
    assert caught_once(session, "A").reason == "host"
    assert store(session, "A") == 1
    assert not session.removed
    assert world.host.held() == {"DP": "A", "TP": "", "C1": "A", "C2": "A", "AD": "A"}
    world.at_rest()
