"""The rules of simultaneous write by name, one by one; docs/simultaneous-write.md explains them.

The base configuration is that of the documentation: DP -> TP, copy pools C1 and C2, active-data pool AD.
"""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from fanout.policy import (
    PRIMARY_RETRIES,
    Action,
    Failure,
    Lists,
    Removal,
    Verdict,
    gaps,
    judge,
    judge_absent,
    judge_catalog,
    max_attempts,
    next_primary,
    required,
)
from fanout.types import Destination, FaultClass, ObjectKind, PoolKind, Primary, Secondary

C1, C2 = Secondary("C1", PoolKind.COPY), Secondary("C2", PoolKind.COPY)
AD = Secondary("AD", PoolKind.ACTIVE_DATA)
DESTINATION = Destination((Primary("DP", max_size=100), Primary("TP")), (C1, C2, AD))
STRICT = replace(DESTINATION, copy_continue=False)
EIO = "write: EIO"


def fail(*pools: str) -> list[Failure]:
    return [Failure(pool, EIO, errno.EIO, FaultClass.DEVICE) for pool in pools]


def short_of_memory(*pools: str) -> list[Failure]:
    return [Failure(pool, "open: EMFILE", errno.EMFILE, FaultClass.HOST) for pool in pools]


def removed(lists: Lists) -> list[str]:
    return [removal.pool for removal in lists.removed]


def test_r1_all_written_means_no_gap() -> None:
    """A healthy commit that shows gaps would send operators after nothing."""
    lists = Lists(DESTINATION)
    held = ("DP", "C1", "C2", "AD")
    assert (
        gaps(
            lists,
            ObjectKind.BACKUP,
            aggregate=b"a",
            primary="DP",
            held=held,
            objects=2,
            size=9,
        )
        == ()
    )


def test_r2_a_failing_copy_pool_leaves_the_lists_and_the_client_is_asked_again() -> None:
    """Kept on the list it would fail every resend; skipped in place it would break all-or-nothing."""
    verdict = judge(Lists(DESTINATION), fail("C1"), retries_left=0)
    assert verdict == Verdict(
        Action.RETRY,
        "secondary",
        Lists(DESTINATION, (Removal("C1", EIO, errno.EIO),)),
        ("C1",),
        0,
    )
    assert verdict.lists.listed(ObjectKind.BACKUP) == (C2, AD)


def test_r3_without_copy_continue_a_failing_copy_pool_ends_the_transaction() -> None:
    """A retry would store the objects without the copy that must not be done without."""
    verdict = judge(Lists(STRICT), fail("C1"), retries_left=PRIMARY_RETRIES)
    assert verdict == Verdict(Action.FAIL, "copy_continue", Lists(STRICT))


@pytest.mark.parametrize("destination", [DESTINATION, STRICT])
def test_r4_a_failing_active_data_pool_is_always_removed(destination: Destination) -> None:
    """copy_continue speaks of copy pools only."""
    verdict = judge(Lists(destination), fail("AD"), retries_left=0)
    assert (verdict.action, verdict.removed) == (Action.RETRY, ("AD",))


@pytest.mark.parametrize("primary", ["DP", "TP"])
def test_r5_a_failing_primary_is_tried_again_and_nobody_is_removed(primary: str) -> None:
    """Removing secondaries for the primary's fault would open gaps that nothing caused."""
    verdict = judge(Lists(DESTINATION), fail(primary), retries_left=1)
    assert verdict == Verdict(Action.RETRY, "primary", Lists(DESTINATION), (), 1)


def test_r5_the_retries_for_a_primary_are_bounded() -> None:
    """A dead primary must not keep the client sending for ever."""
    lists, left, rounds = Lists(DESTINATION), PRIMARY_RETRIES, 0
    while (verdict := judge(lists, fail("DP"), retries_left=left)).action is Action.RETRY:
        left, rounds = left - verdict.spends, rounds + 1
    assert rounds == PRIMARY_RETRIES == 2
    assert (verdict.action, verdict.reason) == (Action.FAIL, "budget")


def test_r6_an_object_too_large_goes_down_the_chain() -> None:
    """max_size is inclusive; one byte more overflows."""
    assert next_primary(DESTINATION, 100, {}) == 0
    assert next_primary(DESTINATION, 101, {}) == 1


def test_r6_a_full_primary_is_passed_over_for_what_it_refused_only() -> None:
    """A pool that has no room for a large object may still have room for a small one."""
    assert next_primary(DESTINATION, 50, {"DP": 50}) == 1
    assert next_primary(DESTINATION, 49, {"DP": 50}) == 0


def test_r6_closed_primaries_are_passed_over() -> None:
    """Read-only and unavailable pools of the chain do not end it."""
    chain = (Primary("DP", accepts=False), Primary("TP", accepts=False), Primary("XP"))
    assert next_primary(Destination(chain), 5, {}) == 2


def test_r6_the_search_can_start_lower() -> None:
    """An object of unknown length that outgrew a pool must not begin there again."""
    assert next_primary(DESTINATION, 1, {}, start=1) == 1


def test_r6_the_destinations_lists_and_removals_go_along() -> None:
    """TV17: a pool removed on DISKPOOL must not come back because the data overflowed."""
    lists = judge(Lists(DESTINATION), fail("C1"), retries_left=0).lists
    assert lists.listed(ObjectKind.BACKUP) == (C2, AD)
    after = judge(lists, [*fail("TP"), *fail("C2")], retries_left=1).lists
    assert after.listed(ObjectKind.BACKUP) == (AD,)


def test_r7_no_pool_takes_it() -> None:
    """Running off the end of the chain must be an answer, not an index error."""
    assert next_primary(DESTINATION, 101, {"TP": 101}) is None
    assert next_primary(DESTINATION, 1, {}, start=2) is None


def test_r13_all_failing_secondaries_leave_together() -> None:
    """One at a time would cost the client one resend for each."""
    verdict = judge(Lists(DESTINATION), fail("AD", "C1"), retries_left=0)
    assert verdict.action is Action.RETRY
    assert sorted(verdict.removed) == ["AD", "C1"]
    assert verdict.spends == 0


@pytest.mark.parametrize("also", ["AD", "C2", "DP"])
def test_r14_copy_continue_no_dominates(also: str) -> None:
    """Whatever else failed, the client must not be asked again; the lists stay as they were."""
    for pools in (("C1", also), (also, "C1")):
        verdict = judge(Lists(STRICT), fail(*pools), retries_left=2)
        assert verdict == Verdict(Action.FAIL, "copy_continue", Lists(STRICT))


def test_r15_a_second_failure_during_the_retry() -> None:
    """Each retry removes someone, so the rounds are bounded by the number of secondaries."""
    lists = Lists(DESTINATION)
    for count, pool in enumerate(("C1", "AD", "C2"), start=1):
        verdict = judge(lists, fail(pool), retries_left=0)
        assert verdict.action is Action.RETRY
        lists = verdict.lists
        assert len(lists.removed) == count
    assert lists.listed(ObjectKind.BACKUP) == ()


def test_r16_with_every_secondary_gone_all_of_them_are_gaps() -> None:
    """The primary alone still stores; hiding that is what the modelled system was blamed for."""
    lists = judge(Lists(DESTINATION), fail("C1", "C2", "AD"), retries_left=0).lists
    found = gaps(
        lists, ObjectKind.BACKUP, aggregate=b"a", primary="DP", held=("DP",), objects=3, size=7
    )
    assert [(g.pool, g.reason, g.errno, g.objects, g.bytes) for g in found] == [
        (pool, EIO, errno.EIO, 3, 7) for pool in ("C1", "C2", "AD")
    ]


def test_r17_r18_lists_are_values_of_one_session() -> None:
    """A removal must not leak into another session, or past the end of its own."""
    mine, other = Lists(DESTINATION), Lists(DESTINATION)
    judge(mine, fail("C1"), retries_left=0)
    assert mine == other == Lists(DESTINATION)


def test_r19_active_data_pools_hold_backup_versions_only() -> None:
    """TV29: an archive in an active-data pool would be served as an active version."""
    for kind in (ObjectKind.ARCHIVE, ObjectKind.SPACE_MANAGED):
        assert required(DESTINATION, kind) == (C1, C2)
    assert required(DESTINATION, ObjectKind.BACKUP) == (C1, C2, AD)


def test_r19_what_is_not_required_is_no_gap() -> None:
    """A node whose domain does not allow AD owes it nothing."""
    lists = Lists(DESTINATION)
    held = ("DP", "C1", "C2")
    assert not gaps(
        lists, ObjectKind.ARCHIVE, aggregate=b"a", primary="DP", held=held, objects=1, size=1
    )


def test_r20_nothing_is_judged_when_nothing_failed() -> None:
    """A client that gives up is not a failure of any pool: nobody may call the judge for it."""
    with pytest.raises(ValueError, match="nothing failed"):
        judge(Lists(DESTINATION), [], retries_left=1)


def test_worst_verdict_wins_primary_and_copy_pool() -> None:
    """C1 leaves and a plain retry is spent: the resend must meet neither the pool nor the old budget."""
    verdict = judge(Lists(DESTINATION), fail("DP", "C1"), retries_left=1)
    assert (verdict.action, verdict.reason, verdict.removed, verdict.spends) == (
        Action.RETRY,
        "primary",
        ("C1",),
        1,
    )


def test_the_budget_ends_a_transaction_but_the_removal_holds_for_the_session() -> None:
    """The next transaction of the session must not run into the dead pool again."""
    verdict = judge(Lists(DESTINATION), fail("DP", "C1"), retries_left=0)
    assert (verdict.action, verdict.reason) == (Action.FAIL, "budget")
    assert removed(verdict.lists) == ["C1"]


@pytest.mark.parametrize("destination", [DESTINATION, STRICT])
def test_a_fault_of_this_host_removes_nobody(destination: Destination) -> None:
    """Out of descriptors is not the copy pool's failure, also where the copy must not be missed."""
    everyone = short_of_memory("DP", "C1", "C2", "AD")
    verdict = judge(Lists(destination), everyone, retries_left=1)
    assert verdict == Verdict(Action.RETRY, "host", Lists(destination), (), 1)
    assert judge(Lists(destination), everyone, retries_left=0).reason == "budget"


def test_a_fault_of_this_host_beside_a_real_one() -> None:
    """The pool that really failed leaves; the one that merely met the shortage stays."""
    verdict = judge(Lists(DESTINATION), [*short_of_memory("C2"), *fail("C1")], retries_left=1)
    assert (verdict.action, verdict.removed, verdict.spends) == (Action.RETRY, ("C1",), 1)


def test_a_pool_absent_at_begin_is_removed_without_a_resend() -> None:
    """Nothing was written yet, so asking the client to send again would be for nothing."""
    verdict = judge_absent(Lists(DESTINATION), fail("C2", "AD"))
    assert (verdict.action, verdict.removed) == (Action.GO_ON, ("C2", "AD"))
    assert verdict.lists.listed(ObjectKind.BACKUP) == (C1,)


def test_a_copy_pool_absent_at_begin_fails_where_it_must_not_be_missed() -> None:
    """The choice for open point 1: absent is treated as failing, never silently skipped."""
    assert judge_absent(Lists(STRICT), fail("C1")).action is Action.FAIL
    assert judge_absent(Lists(STRICT), fail("AD")).action is Action.GO_ON


def test_a_commit_that_did_not_happen_removes_nobody() -> None:
    """A busy catalog says nothing about pools."""
    assert judge_catalog(Lists(DESTINATION), retries_left=1) == Verdict(
        Action.RETRY, "catalog", Lists(DESTINATION), (), 1
    )
    assert judge_catalog(Lists(DESTINATION), retries_left=0).action is Action.FAIL


def test_strangers_and_the_dead_cannot_fail() -> None:
    """A retry for a pool that nothing was written to would have no bound."""
    with pytest.raises(ValueError, match="XX is not of this destination"):
        judge(Lists(DESTINATION), fail("XX"), retries_left=1)
    lists = judge(Lists(DESTINATION), fail("C1"), retries_left=1).lists
    with pytest.raises(ValueError, match="C1 was removed before"):
        judge(lists, fail("C1"), retries_left=1)


def test_a_gap_without_a_removal_is_a_mistake_of_the_caller() -> None:
    """Data that silently missed a pool must stop the commit, not become a gap without a reason."""
    with pytest.raises(ValueError, match="never removed: C2"):
        gaps(
            Lists(DESTINATION),
            ObjectKind.ARCHIVE,
            aggregate=b"a",
            primary="DP",
            held=("DP", "C1"),
            objects=1,
            size=1,
        )


def test_the_first_reason_of_a_removal_is_kept() -> None:
    """Two streams of one attempt may both blame a pool; the operator wants what happened first."""
    lists = Lists(DESTINATION).without([Failure("C1", "first", 5), Failure("C1", "second", 28)])
    assert lists.removed == (Removal("C1", "first", 5),)


def test_max_attempts_of_the_base_configuration() -> None:
    """One, plus three removals, plus two plain retries, plus one step down the chain."""
    assert max_attempts(DESTINATION, retries=2) == 7
