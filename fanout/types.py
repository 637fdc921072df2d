"""The nouns of fanout as frozen values: what goes in, what comes back. No I/O, nothing of ours is imported above them."""

from __future__ import annotations

import enum
import errno as _errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

# ---- the engine's words (the numbers are those of csrc/fanout.h) ------------------------------------------------------


class Phase(enum.IntEnum):
    """The kind of operation that an outcome speaks of."""

    NONE = 0
    WRITE = 1
    READ = 2
    FLUSH = 3
    ALLOCATE = 4
    TRUNCATE = 5
    DIRSYNC = 6
    OPEN = 7
    CLOSE = 8


class OutcomeCode(enum.IntEnum):
    """What happened to an operation, or to one target of a stream."""

    OK = 0
    SHORT = 1
    ERROR = 2
    NOT_SUBMITTED = 3
    TIMED_OUT = 4
    DETACHED = 5
    LATE_OK = 6
    LATE_ERROR = 7
    SLOW = 8
    MISMATCH = 9


class FaultClass(enum.IntEnum):
    """Who is to blame, by errno. HOST means this machine is short of something: no pool is removed for it."""

    NONE = 0
    SPACE = 1
    MEDIUM = 2
    DEVICE = 3
    TRANSPORT = 4
    ACCESS = 5
    SETUP = 6
    TRANSIENT = 7
    HOST = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened on one target.

    Attributes:
        code: ok, short, error, not submitted, timed out, detached, late, slow, mismatch.
        phase: the operation.
        offset: first byte of the operation on the target.
        length: bytes asked for; of SLOW: bytes that the target was behind its peers.
        done: bytes the kernel confirmed.
        errno: positive; 0 for none.
        cls: class of the errno.
        attempts: how often it was submitted.
        latency_ns: submission to completion; of SLOW: age of the oldest operation.
        more: further faults on the same target in the same stream.
    """

    code: OutcomeCode
    phase: Phase = Phase.NONE
    offset: int = 0
    length: int = 0
    done: int = 0
    errno: int = 0
    cls: FaultClass = FaultClass.NONE
    attempts: int = 0
    latency_ns: int = 0
    more: int = 0

    @property
    def ok(self) -> bool:
        """Whether the operation did all that was asked, in time."""
        return self.code is OutcomeCode.OK

    def __str__(self) -> str:
        if self.ok:
            return "ok"
        if self.code is OutcomeCode.SLOW:
            age = self.latency_ns / 1e9
            return (
                f"slow: {self.length} bytes behind its peers, its oldest operation {age:.3g} s old"
            )
        name = _errno.errorcode.get(self.errno, str(self.errno)) if self.errno else "no errno"
        verdict = self.code.name.lower().replace("_", " ")
        place = f" of {self.length} bytes at {self.offset}" if self.length else ""
        text = f"{self.phase.name.lower()}{place}: {verdict}, {name}"
        return f"{text}, and {self.more} more" if self.more else text


# ---- pools and the rules -----------------------------------------------------------------------------------------------


class PoolKind(enum.Enum):
    """What a pool is for."""

    PRIMARY = "primary"
    COPY = "copy"
    ACTIVE_DATA = "active-data"


class ObjectKind(enum.Enum):
    """What the client stores: backup versions may go to active-data pools, the others never."""

    BACKUP = "backup"
    ARCHIVE = "archive"
    SPACE_MANAGED = "space-managed"


def checked_kind(kind: object) -> ObjectKind:
    """The kind itself. A plain word is refused: it would equal no kind, and no active-data pool would get the object."""
    if isinstance(kind, ObjectKind):
        return kind
    allowed = ", ".join(f"ObjectKind.{known.name}" for known in ObjectKind)
    raise TypeError(f"kind must be one of {allowed}, not {kind!r}")


@dataclass(frozen=True, slots=True)
class Secondary:
    """A copy pool or an active-data pool on a destination's list."""

    pool: str
    kind: PoolKind


@dataclass(frozen=True, slots=True)
class Primary:
    """One pool of the primary hierarchy.

    Attributes:
        pool: name.
        max_size: largest object it takes, in bytes; None: no limit.
        accepts: False when it is read-only or unavailable: it is skipped.
    """

    pool: str
    max_size: int | None = None
    accepts: bool = True


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a session's data goes: the destination primary, the pools below it, and the destination's own lists.

    The lists and `copy_continue` of the destination govern the whole chain; those of the next pools are ignored (rule R6).
    `secondaries` holds copy pools first, then active-data pools that the node's domain allows, each in list order.
    """

    chain: tuple[Primary, ...]
    secondaries: tuple[Secondary, ...] = ()
    copy_continue: bool = True

    @property
    def pool(self) -> str:
        """Name of the destination primary."""
        return self.chain[0].pool

    @property
    def pools(self) -> frozenset[str]:
        """Names of all pools that data may go to."""
        secondaries = (secondary.pool for secondary in self.secondaries)
        return frozenset(primary.pool for primary in self.chain) | frozenset(secondaries)


# ---- what a commit says --------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """One object of an aggregate: name, place in the aggregate's data, digest (XXH3-128, 16 bytes, canonical)."""

    name: bytes
    offset: int
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """A pool that should hold objects of a committed transaction and does not."""

    aggregate: bytes
    primary: str
    pool: str
    reason: str
    errno: int = 0
    objects: int = 0
    bytes: int = 0


class StoredObject(NamedTuple):
    """One line of a receipt: what was stored, and which pools hold it."""

    name: bytes
    length: int
    digest: bytes
    primary: str
    pools: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the caller gets at commit.

    Attributes:
        transaction: hexadecimal id.
        attempt: the attempt that committed, 1-based.
        csn: commit sequence number.
        objects: in the order of the puts.
        gaps: pools that the rules demand and that do not hold the objects; each has a durable row.
        removed: pools that this session has removed so far, with the reason.
        bytes: of client data.
        seconds: from begin to commit of the attempt that committed.
    """

    transaction: str
    attempt: int
    csn: int
    objects: tuple[StoredObject, ...]
    gaps: tuple[Gap, ...]
    removed: Mapping[str, str]
    bytes: int
    seconds: float

    @property
    def degraded(self) -> bool:
        """Whether any pool that should hold the objects does not."""
        return bool(self.gaps)
