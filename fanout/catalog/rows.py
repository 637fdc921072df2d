"""What goes into the catalog and what comes out of it: frozen values, without SQL and without I/O.

Ids are 16 bytes, times are nanoseconds since 1970 (UTC), sizes and offsets are bytes. A version is a number that the catalog
gives: of equal names the higher one is newer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fanout.catalog.members import MemberSet
    from fanout.types import Member, ObjectKind, PoolKind

# ---- what goes in ------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where one span of one copy lies: `used` of `length` bytes at `offset` of a volume, with this part of the aggregate's data."""

    span: int
    volume: bytes
    offset: int
    length: int
    used: int
    data_start: int
    data_length: int


@dataclass(frozen=True, slots=True)
class NewCopy:
    """A pool holds an aggregate.

    Attributes:
        pool: name.
        places: spans that are new on the media.
        present: all members that the pool holds from now on; None: every one.
    """

    pool: str
    places: tuple[Place, ...]
    present: MemberSet | None = None


@dataclass(frozen=True, slots=True)
class NewGap:
    """A pool lacks members that it should hold; None: all of the aggregate's."""

    pool: str
    reason: str
    errno: int = 0
    missing: MemberSet | None = None


@dataclass(frozen=True, slots=True)
class NewAggregate:
    """One run of objects on one primary, with its copies (the primary's first) and its gaps."""

    aggregate: bytes
    primary: str
    members: Sequence[Member]
    copies: tuple[NewCopy, ...]
    gaps: tuple[NewGap, ...] = ()


@dataclass(frozen=True, slots=True)
class Repair:
    """What a reconcile run changes on one aggregate that is there already.

    Attributes:
        aggregate: id.
        copy: what the pool holds more than before; None: nothing.
        gap: what it still lacks, and why; replaces an older gap of that pool, whose `since` stays. None: it lacks nothing any more.
        pool: name.
    """

    aggregate: bytes
    pool: str
    copy: NewCopy | None = None
    gap: NewGap | None = None


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What is left of a copy when one of its volumes is given up.

    Attributes:
        aggregate: id.
        pool: name.
        present: members that the pool still holds; None: every one.
        gap: what it lacks from now on, and why; replaces an older gap of that pool, whose `since` stays. None: nothing new.
    """

    aggregate: bytes
    pool: str
    present: MemberSet | None
    gap: NewGap | None


@dataclass(frozen=True, slots=True)
class Deletion:
    """Members of an aggregate that are gone from the store.

    Attributes:
        entry: the aggregate as it was before.
        members: all that were deleted so far, these included; None: nothing is left of the aggregate.
        size: bytes of these members.
        volumes: that hold some of it.
        held: volume, and what it holds, of an aggregate that lives on: so that the committer need not ask for each.
    """

    entry: AggregateEntry
    members: MemberSet | None
    size: int
    volumes: tuple[bytes, ...]
    held: tuple[tuple[bytes, HeldSpans], ...] = ()


@dataclass(frozen=True, slots=True)
class Commit:
    """What becomes visible together: a client's transaction, a batch of repairs, or what is gone together.

    The key (transaction, attempt) settles a commit whose outcome is unknown; of one transaction only one attempt ever commits.
    """

    transaction: bytes
    attempt: int
    node: str | None = None
    kind: ObjectKind | None = None
    destination: str | None = None
    required: tuple[str, ...] = ()
    aggregates: tuple[NewAggregate, ...] = ()
    repairs: tuple[Repair, ...] = ()
    deletions: tuple[Deletion, ...] = ()


# ---- what comes out ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PoolEntry:
    """A pool as the catalog knows it."""

    pool: bytes
    name: str
    kind: PoolKind


@dataclass(frozen=True, slots=True)
class VolumeEntry:
    """A volume as the catalog knows it: identity, geometry, the epoch of its last opening, and what held it then.

    Attributes:
        volume: UUID, 16 bytes.
        size: bytes.
        granule: bytes.
        device: number of the file system, or of the block device itself.
        inode: of the file on it; 0 for a block device.
    """

    volume: bytes
    pool: str
    path: str
    size: int
    granule: int
    epoch: int
    device: int
    inode: int
    is_block: bool


class RetiredVolume(NamedTuple):
    """A volume that was given up: the epoch of its last opening, and what else is known of it.

    Pool, path and device are None when only the directories of other volumes told of it.
    """

    volume: bytes
    csn: int
    at: int
    epoch: int
    pool: str | None = None
    path: str | None = None
    device: int | None = None

    def names(self, volume: bytes, epoch: int, *, confirmed: bool) -> bool:
        """Whether a volume that was found is the one, and nobody has taken it back since.

        Every opening confirms a higher epoch. One that was cut short may have left a provisional one.
        """
        return volume == self.volume and epoch <= self.epoch + (not confirmed)


class Region(NamedTuple):
    """Live bytes on a volume."""

    offset: int
    length: int


class DeadAggregate(NamedTuple):
    """An aggregate of which nothing is left, and which a volume's directory may still name."""

    aggregate: bytes
    transaction: bytes
    attempt: int
    csn: int
    node: str
    kind: ObjectKind
    at: int


class SpentCopy(NamedTuple):
    """A copy of which every member was deleted, of an aggregate that lives on; it keeps `length` bytes on its volumes."""

    aggregate: bytes
    pool: str
    length: int


@dataclass(frozen=True, slots=True)
class HeldSpans:
    """What one volume holds of one copy: what its directory should say.

    Attributes:
        csn: of the commit that last changed the copy.
        erased: members that were deleted from the store.
        committed: commit sequence number of the aggregate.
        version: of its first member.
        objects: members that it was stored with.
    """

    aggregate: bytes
    transaction: bytes
    attempt: int
    csn: int
    node: str
    kind: ObjectKind
    at: int
    present: MemberSet | None
    places: tuple[Place, ...]
    erased: MemberSet
    committed: int
    version: int
    objects: int


@dataclass(frozen=True, slots=True)
class CopyEntry:
    """A pool's copy of an aggregate, with the places of all its spans by number."""

    pool: str
    present: MemberSet | None
    places: tuple[Place, ...]

    def holds(self, index: int) -> bool:
        """Whether member `index` is in this copy."""
        return self.present is None or index in self.present

    def served(self, position: int) -> tuple[Place, int] | None:
        """The span that serves a byte of the aggregate's data, and the byte at which its turn ends; None: no span has it.

        Of spans that hold the same bytes the one with the highest number serves: it was written because the others are damaged.
        """
        limit: int | None = None
        for place in reversed(self.places):
            start, end = place.data_start, place.data_start + place.data_length
            if start <= position < end:
                return place, end if limit is None else min(limit, end)
            if position < start:
                limit = start if limit is None else min(limit, start)
        return None

    def servers(self, start: int, length: int) -> list[Place]:
        """The spans that serve these bytes; of no bytes those that they may be counted to."""
        if not length:
            return [p for p in self.places if p.data_start <= start <= p.data_start + p.data_length]
        found: list[Place] = []
        at = start
        while at < start + length and (next_one := self.served(at)) is not None:
            place, at = next_one
            found.append(place)
        return found


@dataclass(frozen=True, slots=True)
class AggregateEntry:
    """An aggregate: what it is, the secondaries that the rules demanded for it, and how much it holds.

    Its `ordinal` is its number in its transaction, from 0. Of its `objects` and `bytes` those that are `erased` were deleted.
    """

    aggregate: bytes
    transaction: bytes
    attempt: int
    csn: int
    node: str
    kind: ObjectKind
    primary: str
    required: tuple[str, ...]
    objects: int
    bytes: int
    at: int
    ordinal: int
    erased: MemberSet
    erased_bytes: int


class MemberEntry(NamedTuple):
    """A member of an aggregate: `start` is its place in the aggregate's data; active says that no newer version has its name."""

    member: int
    version: int
    name: bytes
    start: int
    length: int
    digest: bytes
    active: bool


class Contents(NamedTuple):
    """What there is of an aggregate.

    Attributes:
        members: that were not deleted, by index.
        copies: the primary's first, then by the order of pools.
        gaps: by pool the members that a gap says it lacks; None: all.
    """

    members: tuple[MemberEntry, ...]
    copies: tuple[CopyEntry, ...]
    gaps: Mapping[str, MemberSet | None]

    def copy_in(self, pool: str) -> CopyEntry | None:
        """A pool's copy, if it has one."""
        return next((copy for copy in self.copies if copy.pool == pool), None)


class ObjectEntry(NamedTuple):
    """One version of an object, and where it is kept: number `member` of an aggregate.

    Attributes:
        version: number; grows with every version that any object of the store gets.
        active: the newest that has not been deleted.
        length: bytes.
        digest: XXH3-128, 16 bytes in canonical order, as `xxhsum -H2` prints it.
        at: when it was committed, in nanoseconds since 1970, UTC.
        primary: name of the pool that is to hold it.
        aggregate: 16 bytes.
        start: its first byte in the aggregate's data.
    """

    node: str
    kind: ObjectKind
    name: bytes
    version: int
    active: bool
    length: int
    digest: bytes
    at: int
    primary: str
    aggregate: bytes
    member: int
    start: int


@dataclass(frozen=True, slots=True)
class CommittedEntry:
    """A transaction that has committed: which attempt, when in the order of commits, what the rules demanded, and its aggregates."""

    transaction: bytes
    attempt: int
    csn: int
    at: int
    required: tuple[str, ...]
    aggregates: tuple[AggregateEntry, ...]


@dataclass(frozen=True, slots=True)
class GapEntry:
    """What a pool lacks of one aggregate.

    Attributes:
        aggregate: 16 bytes.
        primary: pool of which the objects are.
        pool: that lacks them.
        missing: members; None: all.
        reason: in words.
        errno: positive; 0: the reason is no error of the system.
        since: when it came to be, in nanoseconds since 1970, UTC.
        updated: when a repair last tried to close it, likewise.
        objects: how many of them count: for an active-data pool only those that are active now.
        bytes: of these objects.
    """

    aggregate: bytes
    node: str
    kind: ObjectKind
    primary: str
    pool: str
    missing: MemberSet | None
    reason: str
    errno: int
    since: int
    updated: int
    objects: int
    bytes: int


class OccupancyEntry(NamedTuple):
    """How much a pool holds of a node: versions of objects, and bytes of these."""

    node: str
    kind: ObjectKind
    pool: str
    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class UsageEntry:
    """What lies on a volume: live bytes, spans, and distinct aggregates."""

    volume: bytes
    live_bytes: int
    spans: int
    aggregates: int


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """The store itself."""

    store: bytes
    created: int
    csn: int
    objects: int = field(default=0)


@dataclass(frozen=True, slots=True)
class SpaceEntry:
    """Bytes of the catalog, of its log and of its ballast (0: it was given up), and what is free beside them."""

    catalog_bytes: int
    log_bytes: int
    ballast_bytes: int
    free_bytes: int
