"""Pools over volumes: who can be written, where the next span goes, and what becomes of its regions.

One `PoolSet` owns all volumes of a store. It promises:

1. A reservation is made on every pool of the request or on none.
2. No region is free again while a write may still land there: what the session cannot vouch for is quarantined until the
   volume was opened again under its lock.
3. Nothing here waits for a device while it holds the lock: openings, creations and superblocks happen outside.
4. What this machine is short of is no volume's fault: then the pools do not open for writing, instead of going without volumes.

How volumes are opened is in `opening`, how pools grow in `growing`. What it asks of the catalog is the small protocol `VolumeBook`. Any
thread may call anything.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fanout import format as fmt
from fanout.allocator import RegionState
from fanout.config import Access, DeviceType
from fanout.errors import CatalogStale, InterfaceError, PoolFull, PoolUnavailable, UnknownPool
from fanout.growing import Grower
from fanout.host import Placement, Span
from fanout.making import sequence_number
from fanout.opening import REOPEN_TIMEOUT, Opener, side_by_side
from fanout.pool import (
    LEAST_SPAN,
    Member,
    Pool,
    VolumeStatus,
    directory_full,
    free_bytes,
    status_of,
)
from fanout.units import format_size
from fanout.volume import Volume, VolumeState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from fanout.config import Config
    from fanout.engine import Engine, Target
    from fanout.host import ReserveRequest, WrittenSpan
    from fanout.pool import VolumeBook

    Choice = tuple[Pool, list[Member]]  # with the members that can be written

DEFAULT_ASK = 64 << 20  # client bytes, when nobody knows how many will come
# A known length is cut into pieces no shorter than this, where there is room for such; else no shorter than LEAST_SPAN.
PIECE_SPAN = 1 << 20
MAX_SPANS = 4096  # in one reservation: beyond that the space is too broken up to be of use
TAIL_PART = 4  # what was given back unwritten is used next if it has that part of a wish
SHARE = 8  # a wish takes at most this part of what is free in the tightest pool


class Held(NamedTuple):
    """A region that a span has on one volume, and in which opening of the volume it got it."""

    volume: Volume
    offset: int
    length: int
    opening: int


@dataclass(eq=False, slots=True, weakref_slot=True)
class SpanToken:
    """What the store remembers of a span that it handed out: the regions it still holds, by pool."""

    held: dict[str, Held]
    volumes: tuple[bytes, ...]


class _NoRoom(Exception):
    """A pool has no room for what the message says: it may grow."""

    def __init__(self, pool: Pool, message: str) -> None:
        self.pool = pool
        super().__init__(message)


class PoolSet:
    """All pools of a store, open.

    Args:
        engine: that does the I/O.
        config: of the store.
        store: its UUID.
        pool_uuids: UUID of each pool.
        book: the catalog.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: Engine,
        config: Config,
        *,
        store: bytes,
        pool_uuids: Mapping[str, bytes],
        book: VolumeBook,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._book, self._clock = engine, book, clock
        self._lock, self._meeting = threading.RLock(), threading.Lock()
        self._read_only = False
        self._orphans: deque[dict[str, Held]] = deque()
        self.pools: dict[str, Pool] = {
            pool.name: Pool(pool, config.device_classes[pool.device_class])
            for pool in config.pools.values()
        }
        for entry in sorted(book.volumes(), key=lambda entry: sequence_number(entry.path)):
            if entry.pool in self.pools:
                self.pools[entry.pool].members.append(Member(entry))
        self._opener = Opener(
            engine, store=store, pools=self.pools, book=book, lock=self._lock, clock=clock
        )
        self._grower = Grower(
            engine,
            store=store,
            pool_uuids=pool_uuids,
            book=book,
            opener=self._opener,
            lock=self._lock,
            clock=clock,
        )

    # ---- opening -----------------------------------------------------------------------------------

    def open(self, *, lock_wait: float = 0.0, read_only: bool = False) -> list[Volume]:
        """Open every volume that can be opened.

        Returns:
            The volumes that are open. Their directories may lack what a crash lost: `Scribe.catch_up` appends it.

        Raises:
            CatalogStale: the catalog is older than a volume. Nothing was written.
            CatalogError: the new epochs could not be recorded; all is closed again.
            VolumeError: this machine had no descriptor or no memory left for a volume (promise 4). Nothing was written.
        """
        opener, self._read_only = self._opener, read_only
        members = self._members()
        try:
            side_by_side(
                lambda member: opener.look(member, lock_wait, read_only=read_only), members
            )
            if opener.shortage is not None and not read_only:
                raise opener.shortage
            opener.refuse_stale_catalog(members)
            if read_only:
                side_by_side(opener.compare, members)
            else:
                opener.take_over([m for m in members if m.volume and m.volume.directory])
        except BaseException:
            self.close()
            raise
        return [member.volume for member in members if member.volume]

    def meet(self) -> None:
        """Read only: open what a writer has added since, and what could not be opened before, not more often than once a second each."""
        if not self._read_only:
            return
        with self._meeting:
            there, now = self._members(), self._clock()
            known = {member.entry.volume for member in there}
            entries = [e for e in self._book.volumes() if e.volume not in known]
            new = [Member(entry) for entry in entries if entry.pool in self.pools]
            tried = [m for m in (*there, *new) if m.volume is None and m.next_try <= now]
            side_by_side(
                lambda m: self._opener.look(m, 0.0, read_only=True, timeout=REOPEN_TIMEOUT), tried
            )
            with self._lock:
                for member in new:
                    self.pools[member.entry.pool].members.append(member)

    @property
    def older(self) -> list[str]:
        """How volumes that are open read only show that the catalog is older than they are: a copy of it was put back."""
        return self._opener.older

    def revive(self, pool: str) -> list[Volume]:
        """Try again the volumes of a pool that failed or could not be opened, not more often than once a second each.

        Returns:
            Those that came back. Before anything else `Scribe.catch_up` has to append what their directories lack.

        Raises:
            CatalogStale: one of them shows that the catalog is older than it is.
            CatalogError: the new epochs could not be recorded.
        """
        found = self._pool(pool)
        if found.config.access is Access.UNAVAILABLE or found.growing.locked():
            return []
        with found.growing:  # not `acquire`: an interrupt behind it would leave it taken for ever
            return self._revive(found)

    def _revive(self, found: Pool) -> list[Volume]:
        opener, now = self._opener, self._clock()
        tried = [m for m in found.members if opener.dead(m) and m.next_try <= now]
        if not tried and not opener.stale:
            return []  # as it mostly is: every session and every reservation comes here
        try:
            side_by_side(opener.try_again, tried)
            looked_at = [member for member in tried if not opener.dead(member)]
            opener.refuse_stale_catalog(looked_at)
            return opener.take_over([m for m in looked_at if m.volume and m.volume.directory])
        except BaseException:
            opener.abandon(tried, "its opening was cut short")
            raise

    def close(self) -> None:
        """Close all volumes, without a flush; idempotent. A spare volume that is being made is finished first."""
        self._grower.join()
        for pool in self.pools.values():
            for member in pool.members:
                if member.volume is not None:
                    with suppress(InterfaceError):
                        member.volume.close()
                    member.volume = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- questions -----------------------------------------------------------------------------------

    def volumes(self) -> Iterator[Volume]:
        """All volumes that are open."""
        for pool in self.pools.values():
            for member in list(pool.members):
                if member.volume is not None:
                    yield member.volume

    def volume(self, uuid: bytes) -> Volume | None:
        """The open volume of that UUID."""
        return next((volume for volume in self.volumes() if volume.uuid == uuid), None)

    def volume_of(self, target: Target) -> Volume | None:
        """The volume that a target belongs to now."""
        return next((volume for volume in self.volumes() if volume.target is target), None)

    @staticmethod
    def volumes_of(span: Span) -> tuple[bytes, ...]:
        """UUIDs of the volumes of a span's placements, in their order: what `SpanFraming` asks for."""
        return _token(span).volumes

    @staticmethod
    def held(span: Span) -> Mapping[str, Held]:
        """The regions that a span still holds, by pool: where the committer finds volume and offset."""
        return _token(span).held

    def status(self) -> list[VolumeStatus]:
        """Every volume that the catalog knows, open or not."""
        with self._lock:
            return [
                status_of(pool, member) for pool in self.pools.values() for member in pool.members
            ]

    def _members(self) -> list[Member]:
        return [member for pool in self.pools.values() for member in pool.members]

    def _pool(self, name: str) -> Pool:
        pool = self.pools.get(name)
        if pool is None:
            raise UnknownPool(name, f"there is no such pool; defined: {', '.join(self.pools)}")
        return pool

    # ---- reserving -----------------------------------------------------------------------------------

    def reserve(self, request: ReserveRequest) -> list[Span]:
        """Reserve spans on the primary and every secondary; all that the length needs, or nothing.

        Raises:
            PoolFull: the named pool has no room.
            PoolUnavailable: no volume of the named pool can be written.
            CatalogStale: the catalog was found to be older than a volume.
        """
        if self._opener.stale:
            raise CatalogStale(self._book.path, f"must not allocate: {self._opener.stale}")
        pools = [self._pool(name) for name in (request.primary, *request.secondaries)]
        piece = PIECE_SPAN
        while True:
            try:
                with self._lock:
                    self._settle_orphans()
                    spans = self._reserve(pools, request, piece)
                    self._grower.order_spares(pools)
                    return spans
            except _NoRoom as refusal:
                # No volume is made for what all of them together would not take.
                pool = refusal.pool
                in_vain = pool.may_grow and _payload(request) > pool.reach_bytes()
                if not in_vain and self._grower.grow(pool):
                    continue
                short = not in_vain and pool.growth_short
                if not pool.members:
                    why = (
                        f"it has no volume, and its next one cannot be made: {pool.growth_refused}"
                    )
                    raise PoolUnavailable(pool.name, why, of_host=short) from None
                if piece == LEAST_SPAN:
                    raise _pool_full(refusal, request, of_host=short) from None
                piece = LEAST_SPAN  # rather in many pieces than not at all

    def _reserve(self, pools: Sequence[Pool], request: ReserveRequest, piece: int) -> list[Span]:
        # Asked once for all spans: a member whose target fails meanwhile is found out by who writes there.
        choices = [(pool, pool.writable()) for pool in pools]
        for pool, members in choices:
            if pool.config.access is Access.READWRITE and not pool.members and pool.may_grow:
                raise _NoRoom(pool, "anything: it has no volume")  # its last one was given up
            if pool.config.access is not Access.READWRITE or not members:
                raise PoolUnavailable(pool.name, pool.reasons())
        left = _payload(request)
        wish = self._wish(choices, request)
        spans: list[Span] = []
        try:
            while not spans or left > 0:
                span = self._reserve_one(choices, left, wish, piece, last=len(spans) == MAX_SPANS)
                spans.append(span)
                capacity = self._capacity(span.length)
                left, wish = left - capacity, wish - capacity
        except BaseException:
            for span in spans:
                self._cancel(_token(span).held)
            raise
        return spans

    def _reserve_one(
        self, choices: Sequence[Choice], left: int, wish: int, piece: int, *, last: bool
    ) -> Span:
        """One span, as long as all can give; `last`: there are as many as there may be, so say which pool is to blame."""
        unit = max(member.entry.granule for _, members in choices for member in members)
        wanted = fmt.MAX_SPAN if last else self._length_for(max(left, wish, 0), unit)
        # What a caller who knows no length gets must be worth it; a rest of a known length may be anything.
        least = self._length_for(max(left, 0), unit) if left > 0 else LEAST_SPAN
        least = min(least, fmt.round_up(piece, unit), wanted)
        enough = max(least, fmt.round_up(wanted // TAIL_PART, unit))
        chosen = [self._choose(pool, members, wanted, least, enough) for pool, members in choices]
        length = min(wanted, *(offer for _, offer in chosen))
        length -= length % unit
        if length < least or last:
            tightest = min(zip(chosen, choices, strict=True), key=lambda pair: pair[0][1])[1][0]
            small = "it in one piece: the free space is in too many small ones"
            raise _NoRoom(tightest, small if last else f"a span of {least} bytes")
        return self._take([pool for pool, _ in choices], [member for member, _ in chosen], length)

    def _choose(
        self, pool: Pool, members: Sequence[Member], wanted: int, least: int, enough: int
    ) -> tuple[Member, int]:
        """The volume of a pool to use, and how much it offers."""
        offers = [
            (member, member.volume.allocator.offer(wanted, enough=enough))
            for member in members
            if member.volume and member.volume.allocator and not directory_full(member.volume)
        ]
        offers = [(member, offer) for member, offer in offers if offer >= least]
        if not offers:
            raise _NoRoom(pool, f"a span of {least} bytes on any volume of it")
        now = self._clock()
        if pool.device_class.type is DeviceType.FILE:  # one after another
            return min(offers, key=lambda pair: pair[0].shunned(now))
        # What did not fail lately, the least busy, then the one that offers most: streams spread over the devices.
        return min(offers, key=lambda pair: (pair[0].shunned(now), pair[0].users, -pair[1]))

    def _take(self, pools: Sequence[Pool], members: Sequence[Member], length: int) -> Span:
        held: dict[str, Held] = {}
        placements = []
        try:
            for pool, member in zip(pools, members, strict=True):
                volume = member.volume
                assert volume is not None
                assert volume.allocator is not None
                region = volume.allocator.reserve(length)
                assert region is not None, "the volume had offered it"
                member.users += 1
                held[pool.name] = Held(volume, region.offset, length, volume.openings)
                placements.append(Placement(pool.name, volume.target, region.offset))
                if not volume.promise(region.offset):  # a record of others has taken the room
                    raise _NoRoom(pool, "another record: its directory is full")
        except BaseException:
            self._cancel(held)
            raise
        token = SpanToken(held, tuple(entry.volume.uuid for entry in held.values()))
        orphan = weakref.finalize(token, self._orphans.append, held)
        orphan.atexit = False
        return Span(length, tuple(placements), token)

    def _cancel(self, held: dict[str, Held]) -> None:
        """Nothing was ever submitted to these regions of a span."""
        for pool in list(held):
            entry = self._settled(held, pool)
            assert entry.volume.allocator is not None
            entry.volume.allocator.cancel(entry.offset)

    def _wish(self, choices: Sequence[Choice], request: ReserveRequest) -> int:
        """Client bytes to ask for beyond the need: a guess at what comes, bounded by what others may want, too."""
        asked = max(request.wish, request.length or 0)
        if request.length is None:
            asked = max(asked, DEFAULT_ASK << min(request.first_span, 4))
        return min(asked, min(free_bytes(members) for _, members in choices) // SHARE)

    def _capacity(self, length: int) -> int:
        """Client bytes and framing of members that a span of `length` holds."""
        sums = fmt.SUM * fmt.sum_count(length, self._engine.slot_size)
        return length - fmt.HEAD_SIZE - fmt.FOOT_FIXED - sums - 2 * (fmt.FRAGMENT + fmt.MAX_NAME)

    def _length_for(self, payload: int, unit: int) -> int:
        """The shortest span, at most the longest there may be, that holds `payload`."""
        length = payload + fmt.HEAD_SIZE
        length += payload - self._capacity(payload) + fmt.SUM
        return min(fmt.round_up(length, unit), fmt.MAX_SPAN)

    # ---- settling ------------------------------------------------------------------------------------

    def commit(self, written: WrittenSpan, pools: Sequence[str]) -> None:
        """The catalog says that the span is live on these pools: keep what it used there, give the tail back.

        On other pools it stays as it is until `release`.
        """
        with self._lock:
            held = _token(written.span).held
            for pool in pools:
                # The directory's promise stays until the record is there.
                entry = self._settled(held, pool, promise=True)
                assert entry.volume.allocator is not None
                entry.volume.allocator.commit(entry.offset, written.used)

    def trim(self, written: WrittenSpan, pool: str) -> None:
        """Nothing more will be written to the span in this pool: its tail is free. What was written waits for `commit` or `release`."""
        with self._lock:
            entry = _token(written.span).held[pool]
            assert entry.volume.allocator is not None
            entry.volume.allocator.trim(entry.offset, written.used)

    def kept_length(self, written: WrittenSpan, pool: str) -> int:
        """Bytes that the span keeps in a pool once it is committed: what it used, rounded to the volume's granule."""
        entry = _token(written.span).held[pool]
        return fmt.round_up(written.used, entry.volume.superblock.granule)

    def release(self, span: Span, pools: Sequence[str]) -> None:
        """Nothing of the span is in flight on these pools, and it was not committed there: the regions are free."""
        with self._lock:
            held = _token(span).held
            for pool in pools:
                if pool in held:
                    self._free(held, pool)

    def quarantine(self, span: Span, pools: Sequence[str]) -> None:
        """The span was not committed on these pools, and nobody knows what is in flight there."""
        with self._lock:
            held = _token(span).held
            for pool in pools:
                if pool in held:
                    self._distrust(held, pool)

    def free(self, volume: Volume, offsets: Iterable[int]) -> int:
        """The catalog and the volume's directory have both forgotten these live regions, durably; returns the bytes."""
        with self._lock:
            allocator = volume.allocator
            assert allocator is not None
            before = allocator.bytes_in(RegionState.FREE)
            for offset in offsets:
                allocator.free(offset)
                # If the volume had failed before it had the record of the commit, that never comes.
                volume.unpromise(offset)
            return allocator.bytes_in(RegionState.FREE) - before

    def _free(self, held: dict[str, Held], pool: str) -> None:
        entry = self._settled(held, pool)
        assert entry.volume.allocator is not None
        entry.volume.allocator.release(entry.offset)

    def _distrust(self, held: dict[str, Held], pool: str) -> None:
        entry = self._settled(held, pool)
        assert entry.volume.allocator is not None
        if entry.volume.openings > entry.opening and entry.volume.state is VolumeState.AVAILABLE:
            entry.volume.allocator.release(entry.offset)  # reopened since: nothing old can land
        else:
            entry.volume.allocator.quarantine(entry.offset)

    def _settled(self, held: dict[str, Held], pool: str, *, promise: bool = False) -> Held:
        """Forget the region first: if an interrupt strikes before it is free it waits for an opening, and is never freed under another."""
        entry = held.pop(pool)
        if not promise:
            entry.volume.unpromise(entry.offset)
        for member in self.pools[pool].members:
            if member.volume is entry.volume:
                member.users -= 1
        return entry

    def _settle_orphans(self) -> None:
        """Spans that nobody remembers can neither be committed nor released: quarantine what they still hold."""
        while self._orphans:
            held = self._orphans.popleft()
            for pool in list(held):
                self._distrust(held, pool)


# ---- helpers -----------------------------------------------------------------------------------------


def _token(span: Span) -> SpanToken:
    assert isinstance(span.token, SpanToken), "not a span of this store"
    return span.token


def _pool_full(refusal: _NoRoom, request: ReserveRequest, *, of_host: bool) -> PoolFull:
    """Why a pool has no room, in figures that an operator knows: what is asked for, and what is free."""
    pool, wanted = refusal.pool, request.length
    free = pool.free_bytes()
    message = f"{PoolFull.NO_ROOM} {refusal}"
    if wanted is not None and wanted > free:
        message = f"{PoolFull.NO_ROOM} {format_size(wanted)}, {format_size(free)} are free"
        if pool.may_grow and wanted > pool.reach_bytes():
            message += (
                f", and its {pool.device_class.max_volumes} volumes together would not take it"
            )
    if pool.growth_refused:
        message += f"; no volume could be added: {pool.growth_refused}"
    return PoolFull(pool.name, message, of_host=of_host)


def _payload(request: ReserveRequest) -> int:
    """Bytes to be placed: data, and what its members take in the footers."""
    if request.length is None:
        return 0
    return request.length + request.members * fmt.FRAGMENT + request.name_bytes
