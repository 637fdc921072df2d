"""The second door: what a storage daemon provides so that sessions can write into its own layout and catalog.

A `Host` reserves places, writes down what was committed, and takes places back. The session drives the engine, applies the rules
and tells the host about gaps in the same commit that makes the objects visible. fanout's own store is one such host.

What a host must keep:

* A region that was handed out belongs to the transaction until `commit` or `release` names it. After an abort `release` comes only
  when nothing is in flight there any more, which can be much later; a region on a hung target is never released.
* `commit` is all or nothing, and durable when it returns. If it cannot know, it raises `CommitUnknown`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.engine import Target
    from fanout.types import Gap, Member, ObjectKind


@dataclass(frozen=True, slots=True)
class Placement:
    """A region on one target: `length` bytes of the span start at `offset` (both multiples of the target's granule)."""

    pool: str
    target: Target
    offset: int


@dataclass(frozen=True, slots=True)
class Span:
    """One reservation of the same length on every target.

    Attributes:
        length: bytes on each target, framing included; a multiple of every target's granule.
        placements: the primary's first.
        token: the host's own; the session hands it back untouched.
    """

    length: int
    placements: tuple[Placement, ...]
    token: Any = None


@dataclass(frozen=True, slots=True)
class ReserveRequest:
    """Ask for places.

    Attributes:
        transaction: 16 bytes.
        attempt: 1-based.
        aggregate: 16 bytes, new for every run of objects on one primary.
        primary: the pool that must hold the objects.
        secondaries: the pools that are still on the session's lists.
        required: every pool that the rules demand, before removals and health, the primary first.
        length: client bytes that must fit altogether, in one or several spans; None: unknown, give a fair piece.
        members: how many objects the length stands for (their framing needs room too).
        first_span: number of the first span, counted from 0 in the aggregate.
        wish: client bytes that would be good to have room for, at least `length`: small objects follow one another, and one
            reservation for many of them is cheaper. Only a hint: what is not used comes back.
        name_bytes: bytes of the names of the `members`.
        ordinal: number of the aggregate in its transaction, from 0: headers keep it, since the order of objects hangs on it.
    """

    transaction: bytes
    attempt: int
    aggregate: bytes
    primary: str
    secondaries: tuple[str, ...]
    required: tuple[str, ...]
    length: int | None
    members: int
    first_span: int
    wish: int = 0
    name_bytes: int = 0
    ordinal: int = 0


class Fragment(NamedTuple):
    """A piece of an object inside one span.

    Attributes:
        name: of the object.
        offset: of the piece in the span's data. Pieces follow one another without holes.
        length: of the piece; 0 only for an object without bytes.
        digest: of the whole object when it ends with this piece, else None: it goes on in the next span.
    """

    name: bytes
    offset: int
    length: int
    digest: bytes | None


@dataclass(frozen=True, slots=True)
class WrittenSpan:
    """A span as it was written: `used` bytes of its length, holding `data_length` client bytes from `data_start` of the aggregate."""

    number: int
    span: Span
    used: int
    data_start: int
    data_length: int


class SyncProof(NamedTuple):
    """What a stream says about one of its targets after its sync: the flush covers the last write when the two are equal.

    Attributes:
        pool: that the target stands for.
        target: where the bytes went.
        written: bytes that the stream accepted for it.
        synced: of these, bytes that completed before its last good flush was issued.
    """

    pool: str
    target: Target
    written: int
    synced: int


@dataclass(frozen=True, slots=True)
class AggregateRecord:
    """One run of consecutive objects of a transaction on one primary.

    Attributes:
        aggregate: 16 bytes.
        primary: the pool that holds it.
        members: in the order in which they were stored, offsets in the aggregate's data.
        spans: in order; at least one. Those that were reserved and not used came back through `release`.
        pools: every pool that holds it, the primary first.
        gaps: pools that the rules demand and that do not hold it.
        proofs: one for each stream and target that holds some of it, for a host that asserts that nothing is committed
            whose last good flush is older than its last write.
    """

    aggregate: bytes
    primary: str
    members: Sequence[Member]
    spans: tuple[WrittenSpan, ...]
    pools: tuple[str, ...]
    gaps: tuple[Gap, ...]
    proofs: tuple[SyncProof, ...] = ()


@dataclass(frozen=True, slots=True)
class TransactionRecord:
    """All that becomes visible together.

    Attributes:
        transaction: 16 bytes, the same at every attempt.
        attempt: 1-based.
        node: whose objects they are.
        kind: of the objects.
        destination: name of the primary at the top of the chain.
        required: the secondaries that the rules demand, in list order; each aggregate's primary comes on top.
        aggregates: at least one, in the order of the puts.
    """

    transaction: bytes
    attempt: int
    node: str
    kind: ObjectKind
    destination: str
    required: tuple[str, ...]
    aggregates: tuple[AggregateRecord, ...]


class Framing(Protocol):
    """Optional: bytes that the host wants around the data of every span, the same on every target."""

    def head_size(self) -> int:
        """Bytes before the data."""

    def foot_size(self, fragments: int, name_bytes: int, data_length: int) -> int:
        """Upper bound of the bytes after the data, before padding to the granule; grows with each argument."""

    def head(self, request: ReserveRequest, number: int, span: Span, data_start: int) -> bytes:
        """The bytes before the data; exactly `head_size` long.

        The span's data starts at byte `data_start` of the aggregate's data.
        """

    def foot(
        self,
        request: ReserveRequest,
        number: int,
        span: Span,
        fragments: Sequence[Fragment],
        sums: bytes,
        data_start: int,
        data_length: int,
        final: bool,
    ) -> bytes:
        """The bytes after the data; they may bring their own padding to the granule.

        `sums` holds one little-endian XXH3-64 per slot-sized block of head and data.
        """


class Host(Protocol):
    """What a daemon provides: three calls, and optionally a framing."""

    @property
    def framing(self) -> Framing | None:
        """What goes around the data of every span; None: nothing."""

    def reserve(self, request: ReserveRequest) -> Sequence[Span]:
        """Reserve places on the primary and every secondary.

        The spans of one request may lie on different targets of a pool, but every span has one placement on the primary and
        on each secondary of the request.

        Returns:
            One or more spans that hold `length` client bytes together with their framing; at least one also for no bytes. What
            they lack is asked for again.

        Raises:
            PoolFull: the named pool has no room. For a primary the next pool of the chain is asked (rule R6); for a
                secondary it counts as its write error (rules R2 to R4).
            PoolUnavailable: the named pool has no target to write to. A primary is passed over; a secondary that is missing
                before the first byte of an attempt counts as removed, and later as a write error.

            Of both: with `of_host` no pool is to blame, and the session signals a plain retry.
        """

    def commit(self, record: TransactionRecord) -> int:
        """Make the transaction visible, with its gaps, durably. Returns a commit sequence number.

        Raises:
            CommitUnknown: it may or may not have happened.
            CatalogError: it did not happen; the session gives everything back and signals a retry.
            TransactionFailed: it did not happen, and a retry is of no use; the session gives everything back.
        """

    def release(self, span: Span, pools: Sequence[str]) -> None:
        """Nothing of the span is in flight on these pools, and it was not committed: the regions may be used again."""
