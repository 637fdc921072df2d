"""What a failure means: who is removed, whether the client is asked again, where data overflows, what is a gap.

Pure decisions over plain values: no I/O, no clock, no engine. The names R1 … R20 are explained in
docs/simultaneous-write.md; the tests use them too.

What it promises:

1. `judge` sees all failures of one attempt at once, and the worst verdict wins: fail, then a plain
   retry, then removal and retry (R13, R14).
2. A verdict that asks for a retry either removes a pool that was still listed or spends one plain
   retry. So a transaction ends after at most `max_attempts` attempts (R15).
3. Lists never grow (R17: only a new session has full ones) and never depend on which primary of the
   chain is in use (R6).
4. A gap is what the rules require minus what holds the data; health and removals do not enter.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fanout.types import Destination, FaultClass, Gap, ObjectKind, PoolKind, Secondary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# Retries of a transaction for which nobody can be removed: the primary failed, or this host did.
# The modelled system leaves the number to the client; three attempts in all ride out a hiccup.
PRIMARY_RETRIES = 2


class Failure(NamedTuple):
    """One pool's failure in one attempt.

    Attributes:
        pool: any primary of the chain, or a secondary.
        reason: for people, as "write: EIO at 1048576 on copy1.vol".
        errno: positive; 0 for none.
        cls: who is to blame by errno. HOST: this machine, so the pool is not.
    """

    pool: str
    reason: str
    errno: int = 0
    cls: FaultClass = FaultClass.NONE


class Removal(NamedTuple):
    """A pool that left a session's lists, and the failure that made it leave."""

    pool: str
    reason: str
    errno: int = 0


@dataclass(frozen=True, slots=True)
class Lists:
    """The pool lists of one session: the destination's, less what was removed. A value; changes give a new one.

    One object for the whole chain of primaries: what is removed while data goes to one of them stays
    removed for the others (R2, R4, R6). It lives and dies with its session (R17, R18).
    """

    destination: Destination
    removed: tuple[Removal, ...] = ()

    def listed(self, kind: ObjectKind) -> tuple[Secondary, ...]:
        """The secondaries that objects of this kind are still written to."""
        gone = {removal.pool for removal in self.removed}
        return tuple(s for s in required(self.destination, kind) if s.pool not in gone)

    def without(self, failures: Iterable[Failure]) -> Lists:
        """The lists after the failing pools left; the first reason of each is kept."""
        gone = {removal.pool: removal for removal in self.removed}
        for failure in failures:
            gone.setdefault(failure.pool, Removal(failure.pool, failure.reason, failure.errno))
        return Lists(self.destination, tuple(gone.values()))


class Action(enum.Enum):
    """What happens to the transaction."""

    GO_ON = "go on"
    RETRY = "retry"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from the failures of an attempt.

    Attributes:
        action: RETRY and FAIL both undo the attempt in every pool.
        reason: the stable word that the exception carries.
        lists: the session's lists from now on.
        removed: the pools that left with this verdict.
        spends: plain retries that it takes from the budget: 0 or 1.
        behind: with reason ``budget``: the reason of the retry that is not granted.
    """

    action: Action
    reason: str
    lists: Lists
    removed: tuple[str, ...] = ()
    spends: int = 0
    behind: str = ""


# ---- who takes part --------------------------------------------------------------------------------------


def required(destination: Destination, kind: ObjectKind) -> tuple[Secondary, ...]:
    """The secondaries that the rules demand, before removals and health.

    Active-data pools hold backup versions only. Those that the node's domain does not allow are not in
    the destination at all (R19).
    """
    if kind is ObjectKind.BACKUP:
        return destination.secondaries
    return tuple(s for s in destination.secondaries if s.kind is not PoolKind.ACTIVE_DATA)


def next_primary(
    destination: Destination, size: int, refused: Mapping[str, int], *, start: int = 0
) -> int | None:
    """Which pool of the chain takes an object (R6).

    Args:
        destination: the chain; its own lists go along wherever the object lands.
        size: bytes of the object, or the least that it is known to have.
        refused: pools that had no room in this attempt, with the smallest size that they refused.
        start: the first pool of the chain to look at.

    Returns:
        Its index in the chain; None: no pool takes the object (R7).
    """
    for index in range(start, len(destination.chain)):
        primary = destination.chain[index]
        fits = primary.max_size is None or size <= primary.max_size
        if primary.accepts and fits and size < refused.get(primary.pool, size + 1):
            return index
    return None


def waits_for(destination: Destination) -> frozenset[str]:
    """The pools that are never ejected for being slow, whatever their volumes are set to.

    A primary, since nothing is stored without it; and a copy pool that must not be done without (R3): to give it up would
    turn slowness into a failed transaction.
    """
    copies = (s.pool for s in destination.secondaries if s.kind is PoolKind.COPY)
    primaries = (primary.pool for primary in destination.chain)
    return frozenset(primaries) | frozenset(() if destination.copy_continue else copies)


# ---- what a failure means --------------------------------------------------------------------------------


def judge(lists: Lists, failures: Sequence[Failure], *, retries_left: int) -> Verdict:
    """The verdict on one attempt (R2 to R5, R13 to R15).

    Args:
        lists: the session's lists during the attempt.
        failures: everything that failed in it, in any order, at least one.
        retries_left: plain retries that the transaction may still spend.

    Raises:
        ValueError: no failures, or one of a pool that nothing was written to: not of this destination, or
            removed before. Such a retry would have no bound.
    """
    secondaries = {s.pool: s.kind for s in lists.destination.secondaries}
    _check(lists, failures, secondaries)
    blamed = [f for f in failures if f.cls is not FaultClass.HOST]
    if _forbidden(lists, blamed, secondaries):
        # R3, and R14: it dominates whatever else failed. The lists stay: the client does not come back
        # with this transaction, and the next one shall find out for itself.
        return Verdict(Action.FAIL, "copy_continue", lists)
    guilty = [f for f in blamed if f.pool in secondaries]
    after = lists.without(guilty)
    removed = tuple(r.pool for r in after.removed[len(lists.removed) :])
    if len(guilty) == len(failures):
        return Verdict(Action.RETRY, "secondary", after, removed)
    reason = "primary" if len(guilty) < len(blamed) else "host"
    return _plain_retry(after, reason, removed, retries_left)


def judge_absent(lists: Lists, absent: Sequence[Failure]) -> Verdict:
    """The verdict on secondaries that nothing can be written to when an attempt begins.

    They count as removed and the attempt goes on without them, degraded; but a copy pool that must not be
    done without (copy_continue = false) fails the transaction (R3). Nothing was written, so nothing is
    sent again.
    """
    secondaries = {s.pool: s.kind for s in lists.destination.secondaries}
    _check(lists, absent, secondaries)
    if _forbidden(lists, absent, secondaries):
        return Verdict(Action.FAIL, "copy_continue", lists)
    after = lists.without(absent)
    removed = tuple(r.pool for r in after.removed[len(lists.removed) :])
    return Verdict(Action.GO_ON, "secondary", after, removed)


def judge_catalog(lists: Lists, *, retries_left: int) -> Verdict:
    """The verdict on a commit that did not happen: no pool is to blame, and none is removed."""
    return _plain_retry(lists, "catalog", (), retries_left)


def max_attempts(destination: Destination, *, retries: int) -> int:
    """The most attempts that one transaction can take.

    The first; one for each secondary that is removed; the plain retries; and one for each time that an
    object of unknown length outgrew a primary and started lower in the chain.
    """
    return 1 + len(destination.secondaries) + retries + len(destination.chain) - 1


def _plain_retry(lists: Lists, reason: str, removed: tuple[str, ...], retries_left: int) -> Verdict:
    if retries_left > 0:
        return Verdict(Action.RETRY, reason, lists, removed, spends=1)
    return Verdict(Action.FAIL, "budget", lists, removed, behind=reason)


def _forbidden(
    lists: Lists, failures: Sequence[Failure], secondaries: Mapping[str, PoolKind]
) -> bool:
    """Whether a copy pool failed that must not be done without (R3)."""
    if lists.destination.copy_continue:
        return False
    return any(secondaries.get(f.pool) is PoolKind.COPY for f in failures)


def _check(lists: Lists, failures: Sequence[Failure], secondaries: Mapping[str, PoolKind]) -> None:
    if not failures:
        raise ValueError("nothing failed, so there is nothing to judge")
    gone = {removal.pool for removal in lists.removed}
    known = {primary.pool for primary in lists.destination.chain} | secondaries.keys() - gone
    for failure in failures:
        if failure.pool not in known:
            said = "was removed before" if failure.pool in gone else "is not of this destination"
            raise ValueError(f"{failure.pool} {said}, so it cannot have failed")


# ---- what is missing -------------------------------------------------------------------------------------


def gaps(
    lists: Lists,
    kind: ObjectKind,
    *,
    aggregate: bytes,
    primary: str,
    held: Iterable[str],
    objects: int,
    size: int,
) -> tuple[Gap, ...]:
    """Every pool that the rules demand and that does not hold an aggregate (R2, R4, R16).

    Args:
        lists: the session's, with the reason of every removal.
        kind: of the objects.
        aggregate: 16 bytes.
        primary: the pool that holds it.
        held: all pools that hold it.
        objects: in the aggregate.
        size: client bytes in it.

    Raises:
        ValueError: a pool is missing that was never removed. Whoever asks wrote to the wrong pools.
    """
    holders = set(held)
    why = {removal.pool: removal for removal in lists.removed}
    missing = [s.pool for s in required(lists.destination, kind) if s.pool not in holders]
    stray = [pool for pool in missing if pool not in why]
    if stray:
        raise ValueError(f"not written to, and never removed: {', '.join(stray)}")
    return tuple(
        Gap(aggregate, primary, pool, why[pool].reason, why[pool].errno, objects, size)
        for pool in missing
    )
