"""From the core's numbers to values, from its statuses to exceptions: the one table."""

from __future__ import annotations

import errno
import math
import operator
import os
from typing import TYPE_CHECKING, NoReturn, SupportsIndex

from fanout import _core
from fanout.errors import InterfaceError
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fanout.engine.values import Leg

_CODES, _PHASES, _CLASSES = tuple(OutcomeCode), tuple(Phase), tuple(FaultClass)
MOST_BYTES = (1 << 63) - 1  # what an offset of the kernel's can be

# The core's expected failures. What is not here is an OSError of that number.
STATUSES: Mapping[int, tuple[Callable[[str], Exception], str]] = {
    errno.EBADF: (InterfaceError, "is closed, or its engine is"),
    errno.ESHUTDOWN: (
        InterfaceError,
        "the engine was closed meanwhile",
    ),
    errno.EOWNERDEAD: (
        InterfaceError,
        "this is a forked child, the engine is its parent's; or it stopped after an error of its own",
    ),
    errno.EBUSY: (
        InterfaceError,
        "in use: another thread, an open stream, a lease, or a slot that `pad` must end first",
    ),
    errno.EINVAL: (InterfaceError, "arguments that do not fit: number, alignment, state or order"),
    errno.EFBIG: (InterfaceError, "goes beyond the placed length"),
    errno.ECANCELED: (InterfaceError, "the stream was aborted"),
    errno.EOPNOTSUPP: (InterfaceError, "this backend has no such thing"),
    errno.EMFILE: (InterfaceError, "too many open targets"),
    errno.ENOMEM: (MemoryError, "out of memory"),
}


def fail(status: int, what: str) -> NoReturn:
    """Raise what a negative status means."""
    number = -status
    if number == errno.ETIMEDOUT:
        raise TimeoutError(number, f"{what}: not within the given time")
    make, text = STATUSES.get(number, (lambda text: OSError(number, text), os.strerror(number)))
    raise make(f"{what}: {text}")


def fault_class(number: int) -> FaultClass:
    """Who is to blame for an errno."""
    return _CLASSES[_core.classify(number)]


def whole(number: SupportsIndex, what: str, most: int = MOST_BYTES) -> int:
    """A whole number for the core. Raises TypeError, and ValueError when it is negative or larger than `most`."""
    try:
        found = operator.index(number)
    except TypeError:
        raise TypeError(f"{what} is a whole number, not {number!r}") from None
    if not 0 <= found <= most:
        raise ValueError(f"{what} is a whole number from 0 to {most}, not {found}")
    return found


def checked_size(size: int | None) -> int:
    """The size of a lease for the core; None: whatever there is."""
    if size is None:
        return 0
    if not 0 < size <= MOST_BYTES:
        raise InterfaceError(f"a lease of {size} bytes")
    return size


def checked(status: int, what: str) -> int:
    """The status when it is none of failure; else raises what it means."""
    return status if status >= 0 else fail(status, what)


def outcome_of(record: _core._Outcome) -> Outcome:
    """An outcome of the core as a value."""
    code, phase, offset, length, done, number, cls, attempts, latency_ns, more = record
    return Outcome(
        _CODES[code],
        _PHASES[phase],
        offset,
        length,
        done,
        number,
        _CLASSES[cls],
        attempts,
        latency_ns,
        more,
    )


def verdict_of(leg: Leg) -> Outcome:
    """What a finished leg comes to."""
    if leg.first is not None:
        return leg.first
    if leg.state == "synced":
        return Outcome(OutcomeCode.OK, Phase.FLUSH, length=leg.accepted, done=leg.synced)
    return Outcome(OutcomeCode.NOT_SUBMITTED, Phase.WRITE, length=leg.accepted, done=leg.completed)


def nanoseconds(seconds: float | None) -> int:
    """A time for the core; None and infinity wait for ever."""
    if seconds is None or seconds == math.inf:
        return _core.FOREVER
    if not seconds >= 0:
        raise ValueError(f"a time must not be negative: {seconds}")
    return min(round(min(seconds * 1e9, 2.0**64)), _core.FOREVER - 1)
