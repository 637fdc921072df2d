"""Who failed in an attempt: from legs, signals and refusals to the failures that `fanout.policy` judges.

It stops the streams, gives the others a moment to show their own failures, and names each of them once, beside the exception that
the caller will see. What a failure means is not its business.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from fanout.aggregate import SETTLE_SLICE, Signal, Starved, Unwritten
from fanout.errors import PoolFull, PoolUnavailable, TargetError
from fanout.policy import Failure
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.aggregate import Stretch
    from fanout.engine import Target

    # A failure for the judge, and the exception that tells the caller.
    Blamed = tuple[Failure, Exception]

_REAL = frozenset(
    {
        OutcomeCode.ERROR,
        OutcomeCode.SHORT,
        OutcomeCode.TIMED_OUT,
        OutcomeCode.DETACHED,
        OutcomeCode.SLOW,
        OutcomeCode.MISMATCH,
    }
)
_UNANSWERED = Outcome(
    OutcomeCode.TIMED_OUT, Phase.WRITE, errno=errno.ETIMEDOUT, cls=FaultClass.TRANSPORT
)


def stop_and_look(stretches: Sequence[Stretch], signal: Signal, *, primary: str) -> list[Blamed]:
    """Abort the streams of an attempt and say who failed, at least one.

    Args:
        stretches: of the attempt.
        signal: what ended it.
        primary: the pool to name when this host was short of something; nobody is removed for that.
    """
    held_up = _held_up(stretches) if isinstance(signal, Starved) else []
    blamed = beside(stretches) + (held_up or _of_signal(signal, primary))
    assert blamed, f"an attempt ended, and nothing says why: {signal!r}"
    return blamed


def beside(stretches: Sequence[Stretch]) -> list[Blamed]:
    """Abort the streams of an attempt that is over, and say what failed on their targets; perhaps nothing."""
    found = _legs(stretches)
    running = [stretch for stretch in stretches if not stretch.settled]
    for stretch in running:
        stretch.stream.abort()
    for stretch in running:
        # What failed at the same moment is judged together (rule R13).
        stretch.stream.drained(timeout=SETTLE_SLICE)
    for key, outcome in _legs(running).items():
        # The abort itself makes legs say "not submitted"; that is nobody's failure.
        if outcome.code in _REAL:
            found.setdefault(key, outcome)
    for (target, _), outcome in found.items():
        target.faults += outcome.cls is not FaultClass.HOST
    return [_blame(pool, target, outcome) for (target, pool), outcome in found.items()]


def of_refusal(error: PoolFull | PoolUnavailable) -> Blamed:
    """The failure of a pool that refused a reservation."""
    if error.of_host:
        return Failure(error.pool, f"reserve: {error.message}", 0, FaultClass.HOST), error
    if isinstance(error, PoolFull):
        return Failure(
            error.pool, f"reserve: {error.message}", errno.ENOSPC, FaultClass.SPACE
        ), error
    return Failure(error.pool, f"reserve: {error.message}"), error


def one_for_each(blamed: Sequence[Blamed]) -> list[Failure]:
    """One failure for each pool: its own fault before a shortage of this host, else what came first."""
    failures = [failure for failure, _ in blamed]
    first: dict[str, Failure] = {}
    for failure in sorted(failures, key=lambda failure: failure.cls is FaultClass.HOST):
        first.setdefault(failure.pool, failure)
    return list(first.values())


def _legs(stretches: Sequence[Stretch]) -> dict[tuple[Target, str], Outcome]:
    found: dict[tuple[Target, str], Outcome] = {}
    for stretch in stretches:
        for target, outcome in stretch.failures().items():
            found.setdefault((target, stretch.pools[target]), outcome)
    return found


def _held_up(stretches: Sequence[Stretch]) -> list[Blamed]:
    """Who keeps the slots of a starving stream: targets that have not answered for that long, beside others that are through with all of it."""
    found: list[Blamed] = []
    for stretch in stretches:
        legs = [] if stretch.settled else stretch.stream.legs()
        legs = [leg for leg in legs if leg.state == "active"]
        late = [leg for leg in legs if leg.completed < leg.accepted]
        if len(late) < len(legs):
            found += [_blame(stretch.pools[leg.target], leg.target, _UNANSWERED) for leg in late]
    return found


def _of_signal(signal: Signal, primary: str) -> list[Blamed]:
    """What the signal itself says, beside the legs."""
    if isinstance(signal, Unwritten):
        return [_blame(pool, target, signal.outcome) for pool, target in signal.targets]
    if isinstance(signal, Starved):
        error = signal.__cause__
        assert isinstance(error, TimeoutError)
        reason = f"the engine had no slot in time: {error}"
        told = TimeoutError(
            errno.ETIMEDOUT,
            "no stream, or no memory, of the engine came free within the session's timeout: end clients that stall, or give it more of both",
        )
        told.__cause__ = error
        return [(Failure(primary, reason, errno.ETIMEDOUT, FaultClass.HOST), told)]
    return []


def _blame(pool: str, target: Target, outcome: Outcome) -> Blamed:
    file = target.path  # all of it: the volumes of a pool may have one name on several disks
    if outcome.code is OutcomeCode.SLOW:
        reason = f"slow: {outcome.length} bytes behind its peers on {file}"
    elif outcome.code is OutcomeCode.MISMATCH:
        reason = f"read: not what was written at {outcome.offset} on {file}"
    else:
        name = errno.errorcode.get(outcome.errno, str(outcome.errno)) if outcome.errno else ""
        what = name or outcome.code.name.lower().replace("_", " ")
        reason = f"{outcome.phase.name.lower()}: {what} at {outcome.offset} on {file}"
    failure = Failure(pool, reason, outcome.errno, outcome.cls)
    return failure, TargetError(target.path, outcome)
