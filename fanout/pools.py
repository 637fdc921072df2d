"""Pools over volumes: who can be written, where the next span goes, and what becomes of its regions.

One `PoolSet` owns all volumes of a store. It promises:

1. A reservation is made on every pool of the request or on none.
2. A volume that is busy, missing or damaged makes that volume unavailable, not the store. A *catalog* that is older than
   any volume stops everything (`CatalogStale`): it would hand out live data as free space.
3. No region is free again while a write may still land there: what the session cannot vouch for is quarantined until the
   volume was opened again under its lock.
4. Nothing here waits for a device while it holds the lock: openings, creations and superblocks happen outside.
5. What this machine is short of is no volume's fault: then the pools do not open for writing, instead of going without volumes.

What it asks of the catalog is the small protocol `VolumeBook`. Any thread may call anything.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from fanout import format as fmt
from fanout.allocator import RegionState
from fanout.config import Access, DeviceType
from fanout.errors import (
    CatalogStale,
    ConfigError,
    FanoutError,
    InterfaceError,
    PoolFull,
    PoolUnavailable,
    TargetError,
    UnknownPool,
    VolumeError,
    VolumeStale,
)
from fanout.format import SuperblockState
from fanout.host import Placement, Span
from fanout.making import (
    FIRST_EPOCH,
    create_entry,
    entry_of,
    probe,
    sequence_number,
    sequential_name,
)
from fanout.types import FaultClass
from fanout.volume import Volume, VolumeState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from fanout.catalog.rows import VolumeEntry
    from fanout.config import Config, DeviceClass
    from fanout.config import Pool as PoolConfig
    from fanout.engine import Engine, Target
    from fanout.host import ReserveRequest, WrittenSpan

T = TypeVar("T")

DEFAULT_ASK = 64 << 20  # client bytes, when nobody knows how many will come
LEAST_SPAN = (
    64 << 10
)  # a shorter one is not worth its header and footer, unless nothing more is needed
PIECE_SPAN = 1 << 20  # a known length is cut into pieces no shorter than this
MAX_SPANS = 4096  # in one reservation: beyond that the space is too broken up to be of use
SHARE = 8  # a wish takes at most this part of what is free in the tightest pool
OPENERS = 8  # volumes opened side by side
REOPEN_TIMEOUT = 5.0  # seconds: a session waits for it
SPARE = 4  # the next sequential volume is made when less than this part of one is free
SPARE_PAUSE = 60.0  # seconds until a spare volume that could not be made is tried again
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two tries to reopen a volume


class VolumeBook(Protocol):
    """What pools ask of the catalog. Calls may come from any thread; what changes something is durable when it returns."""

    @property
    def path(self) -> str:
        """Of the catalog, for messages."""

    def volumes(self) -> Sequence[VolumeEntry]:
        """All volumes that the catalog knows."""

    def live_regions(self, volume: bytes) -> Iterable[tuple[int, int]]:
        """(offset, length) of what is live on a volume."""

    def last_csn(self) -> int:
        """The commit sequence number of the last commit."""

    def set_epochs(self, epochs: Mapping[bytes, tuple[int, int, int]]) -> None:
        """Record epoch, device and inode with which volumes were opened."""

    def add(self, *, volumes: Iterable[VolumeEntry]) -> None:
        """Add volumes that were made."""


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


@dataclass(eq=False, slots=True)
class _Member:
    """A volume of a pool, open or not."""

    entry: VolumeEntry
    volume: Volume | None = None
    reason: str = ""
    pause: float = FIRST_PAUSE
    next_try: float = 0.0
    users: int = 0
    """Regions reserved and not settled: a measure of how busy it is."""


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    """A volume as `query volume` shows it; sizes in bytes.

    Attributes:
        pool: name.
        path: file or device.
        volume: UUID.
        state: ``available``, ``full``, ``failed``, ``unavailable`` or ``read-only``.
        reason: why it cannot be written.
        epoch: of its last opening.
        size: of the volume.
        free: never handed out, or given back.
        reserved: handed out, not committed.
        draining: given up, writes in flight.
        quarantined: given up, to be free when the volume was reopened.
        live: committed.
    """

    pool: str
    path: str
    volume: bytes
    state: str
    reason: str
    epoch: int
    size: int
    free: int
    reserved: int
    draining: int
    quarantined: int
    live: int


@dataclass(eq=False, slots=True)
class Pool:
    """One pool: its settings and its volumes, in the order in which they are filled."""

    config: PoolConfig
    device_class: DeviceClass
    members: list[_Member] = field(default_factory=list)
    growing: threading.Lock = field(default_factory=threading.Lock)
    growth_refused: str = ""
    next_spare: float = 0.0

    @property
    def name(self) -> str:
        """Of the pool."""
        return self.config.name

    def writable(self) -> list[_Member]:
        """Members that spans may be written to."""
        return [member for member in self.members if member.volume and member.volume.writable]

    def free_bytes(self) -> int:
        """Bytes that may be handed out, on all volumes that can be written."""
        return sum(
            member.volume.allocator.bytes_in(RegionState.FREE)
            for member in self.writable()
            if member.volume and member.volume.allocator
        )

    def reasons(self) -> str:
        """Why nothing of it can be written, in words."""
        if self.config.access is not Access.READWRITE:
            return f"its access is {self.config.access.value}"
        if not self.members:
            return "it has no volume; make one"
        told = [
            f"{member.entry.path}: {member.volume.reason if member.volume else member.reason}"
            for member in self.members
        ]
        return "no volume of it can be written: " + "; ".join(told)

    @property
    def may_grow(self) -> bool:
        """Whether another sequential volume may be made."""
        return (
            self.device_class.type is DeviceType.FILE
            and len(self.members) < self.device_class.max_volumes
        )


class _NoRoom(Exception):
    """A pool has no room: it may grow."""

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
        self._engine, self._config, self._store, self._book = engine, config, store, book
        self._pool_uuids, self._clock = pool_uuids, clock
        self._lock = threading.RLock()
        self._orphans: deque[dict[str, Held]] = deque()
        self._stale = ""
        self._shortage: VolumeError | None = None
        self._growers: list[threading.Thread] = []
        self.pools: dict[str, Pool] = {
            pool.name: Pool(pool, config.device_classes[pool.device_class])
            for pool in config.pools.values()
        }
        for entry in sorted(book.volumes(), key=lambda entry: sequence_number(entry.path)):
            if entry.pool in self.pools:
                self.pools[entry.pool].members.append(_Member(entry))

    # ---- opening -----------------------------------------------------------------------------------

    def open(self, *, lock_wait: float = 0.0, read_only: bool = False) -> list[Volume]:
        """Open every volume that can be opened.

        Returns:
            The volumes that are open. Their directories may lack what a crash lost: `Volume.directory.missing` says what.

        Raises:
            CatalogStale: the catalog is older than a volume. Nothing was written.
            CatalogError: the new epochs could not be recorded; all is closed again.
            VolumeError: this machine had no descriptor or no memory left for a volume (promise 5). Nothing was written.
        """
        members = [member for pool in self.pools.values() for member in pool.members]
        try:
            _side_by_side(
                lambda member: self._open_member(member, lock_wait, read_only=read_only), members
            )
            if self._shortage is not None and not read_only:
                raise self._shortage
            self._refuse_stale_catalog(members)
            if not read_only:
                self._take_over([m for m in members if m.volume and m.volume.directory])
        except BaseException:
            self.close()
            raise
        return [member.volume for member in members if member.volume]

    def _open_member(
        self, member: _Member, lock_wait: float, *, read_only: bool = False, timeout: float = 60.0
    ) -> None:
        """Look at a volume; nothing is written. What keeps it from being opened becomes its reason."""
        entry = member.entry
        access = self.pools[entry.pool].config.access
        if access is Access.UNAVAILABLE:
            member.reason = "the access of its pool is unavailable"
            return
        read_only = read_only or access is Access.READONLY
        try:
            member.volume = Volume.open(
                self._engine,
                entry.path,
                store=self._store,
                pool=entry.pool,
                volume=entry.volume,
                catalog_epoch=entry.epoch,
                size=entry.size,
                lock_wait=lock_wait,
                read_only=read_only,
                timeout=timeout,
                claim=False,
                on_slow=self.pools[entry.pool].config.on_slow.value,
            )
        except VolumeStale as error:
            if error.catalog_is_older:
                self._stale = str(error)
            self._postpone(member, _why(error))
        except (FanoutError, OSError) as error:
            self._postpone(member, _why(error))
            if _is_the_hosts(error):
                message = (
                    f"{_why(error)}: this machine is short of it; raise the limit and open again"
                )
                self._shortage = VolumeError(entry.path, message)
                self._shortage.__cause__ = error

    def _postpone(self, member: _Member, reason: str) -> None:
        member.reason = reason
        member.next_try = self._clock() + member.pause
        member.pause = min(2 * member.pause, LONGEST_PAUSE)

    def _refuse_stale_catalog(self, members: Iterable[_Member]) -> None:
        """Rule: a catalog that is older than any volume never allocates.

        Args:
            members: volumes that have just been looked at. To others directory records may be appended right now, for
                commits that are newer than the answer of the catalog here.
        """
        readable = [m.volume for m in members if m.volume and m.volume.directory]
        last = self._book.last_csn() if readable else 0  # `revive` comes here at every reservation
        for volume in readable:
            if volume.directory is None or volume.directory.last_csn <= last:
                continue
            self._stale = (
                f"{volume.path}: its directory goes up to commit {volume.directory.last_csn}, "
                f"the catalog only to {last}"
            )
        if self._stale:
            raise CatalogStale(
                self._book.path,
                f"is older than a volume and must not allocate: {self._stale}. "
                "Use the newest catalog, or rebuild it from the volumes",
            )

    def _take_over(self, members: Sequence[_Member]) -> list[Volume]:
        """Claim, record in the catalog, confirm, and find the free space. Returns the volumes that are AVAILABLE."""
        claimed = self._each(members, self._claim)
        if claimed:
            openings = {m.entry.volume: _opening(m.volume) for m in claimed if m.volume}
            try:
                self._book.set_epochs(openings)
            except BaseException:
                for member in claimed:
                    self._drop(member, "the catalog did not record its epoch")
                raise
        confirmed = self._each(claimed, self._confirm)
        return [member.volume for member in confirmed if member.volume]

    def _each(self, members: Sequence[_Member], step: Callable[[_Member], None]) -> list[_Member]:
        """The members for which a step went well; the others are unavailable."""

        def attempt(member: _Member) -> bool:
            try:
                step(member)
            except VolumeError as error:
                self._drop(member, str(error))
                return False
            return True

        went_well = _side_by_side(attempt, members)
        return [member for member, good in zip(members, went_well, strict=True) if good]

    def _drop(self, member: _Member, reason: str) -> None:
        """A volume cannot be used for now. One that has spans keeps its books, for when it comes back."""
        volume = member.volume
        assert volume is not None
        volume.fail(reason)
        if volume.allocator is None or volume.state is VolumeState.CLOSED:
            volume.close()
            member.volume = None
        self._postpone(member, reason)

    @staticmethod
    def _claim(member: _Member) -> None:
        assert member.volume is not None
        if not member.volume.claimed:
            member.volume.claim(member.entry.epoch)

    def _confirm(self, member: _Member) -> None:
        volume = member.volume
        assert volume is not None
        member.entry = entry_of(volume.superblock, volume.path)
        if volume.allocator is None:
            volume.load_space(self._book.live_regions(volume.uuid))
        volume.confirm()
        with self._lock:
            assert volume.allocator is not None
            volume.allocator.reopened()
        member.reason, member.pause = "", FIRST_PAUSE

    def revive(self, pool: str) -> list[Volume]:
        """Try again the volumes of a pool that failed or could not be opened, not more often than once a second each.

        Returns:
            Those that came back. Append to their directories what `Directory.missing` says before anything else.

        Raises:
            CatalogStale: one of them shows that the catalog is older than it is.
            CatalogError: the new epochs could not be recorded.
        """
        found = self._pool(pool)
        if found.config.access is Access.UNAVAILABLE or not found.growing.acquire(blocking=False):
            return []
        try:
            now = self._clock()
            tried = [m for m in found.members if self._dead(m) and m.next_try <= now]
            _side_by_side(self._try_again, tried)
            looked_at = [member for member in tried if not self._dead(member)]
            self._refuse_stale_catalog(looked_at)
            return self._take_over(looked_at)
        finally:
            found.growing.release()

    @staticmethod
    def _dead(member: _Member) -> bool:
        volume = member.volume
        return volume is None or (not volume.writable and volume.state is VolumeState.FAILED)

    def _try_again(self, member: _Member) -> None:
        if member.volume is None:
            self._open_member(member, 0.0, timeout=REOPEN_TIMEOUT)
            return
        try:
            member.volume.reopen(catalog_epoch=member.entry.epoch, timeout=REOPEN_TIMEOUT)
        except VolumeStale as error:
            if error.catalog_is_older:
                self._stale = str(error)
            self._postpone(member, _why(error))
        except (FanoutError, OSError) as error:
            self._postpone(member, _why(error))

    def close(self) -> None:
        """Close all volumes, without a flush; idempotent. A spare volume that is being made is finished first."""
        for grower in self._growers:
            grower.join()
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
                _status(pool, member) for pool in self.pools.values() for member in pool.members
            ]

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
        if self._stale:
            raise CatalogStale(self._book.path, f"must not allocate: {self._stale}")
        pools = [self._pool(name) for name in (request.primary, *request.secondaries)]
        while True:
            try:
                with self._lock:
                    self._settle_orphans()
                    spans = self._reserve(pools, request)
                    self._order_spares(pools)
                    return spans
            except _NoRoom as refusal:
                if not self._grow(refusal.pool):
                    why = refusal.pool.growth_refused
                    message = f"{refusal}; no volume could be added: {why}" if why else str(refusal)
                    raise PoolFull(refusal.pool.name, message) from None

    def _reserve(self, pools: Sequence[Pool], request: ReserveRequest) -> list[Span]:
        for pool in pools:
            if pool.config.access is not Access.READWRITE or not pool.writable():
                raise PoolUnavailable(pool.name, pool.reasons())
        left = _payload(request)
        wish = self._wish(pools, request)
        spans: list[Span] = []
        try:
            while not spans or left > 0:
                if len(spans) == MAX_SPANS:
                    raise _NoRoom(pools[0], "its free space is in too many small pieces")
                span = self._reserve_one(pools, left, wish)
                spans.append(span)
                capacity = self._capacity(span.length)
                left, wish = left - capacity, wish - capacity
        except BaseException:
            for span in spans:
                self._cancel(span)
            raise
        return spans

    def _reserve_one(self, pools: Sequence[Pool], left: int, wish: int) -> Span:
        """One span, as long as all can give."""
        unit = max(m.entry.granule for pool in pools for m in pool.writable())
        wanted = self._length_for(max(left, wish, 0), unit)
        # What a caller who knows no length gets must be worth it; a rest of a known length may be anything.
        least = self._length_for(max(left, 0), unit) if left > 0 else LEAST_SPAN
        least = min(least, fmt.round_up(PIECE_SPAN, unit), wanted)
        chosen = [self._choose(pool, wanted, least) for pool in pools]
        length = min(wanted, *(offer for _, offer in chosen))
        length -= length % unit
        if length < least:
            tightest = min(zip(chosen, pools, strict=True), key=lambda pair: pair[0][1])[1]
            raise _NoRoom(tightest, f"no room for a span of {least} bytes")
        return self._take(pools, [member for member, _ in chosen], length)

    def _choose(self, pool: Pool, wanted: int, least: int) -> tuple[_Member, int]:
        """The volume of a pool to use, and how much it offers."""
        offers = [
            (member, member.volume.allocator.offer(wanted))
            for member in pool.writable()
            if member.volume and member.volume.allocator and not _directory_full(member.volume)
        ]
        offers = [(member, offer) for member, offer in offers if offer >= least]
        if not offers:
            raise _NoRoom(pool, f"no room for a span of {least} bytes on any volume of it")
        if pool.device_class.type is DeviceType.FILE:
            return offers[0]  # one after another
        # The least busy, then the one that offers most: streams spread over the devices.
        return min(offers, key=lambda pair: (pair[0].users, -pair[1]))

    def _take(self, pools: Sequence[Pool], members: Sequence[_Member], length: int) -> Span:
        held: dict[str, Held] = {}
        placements = []
        for pool, member in zip(pools, members, strict=True):
            volume = member.volume
            assert volume is not None
            assert volume.allocator is not None
            region = volume.allocator.reserve(length)
            assert region is not None, "the volume had offered it"
            promised = volume.promise(region.offset)
            assert promised, "the directory was not full"
            member.users += 1
            held[pool.name] = Held(volume, region.offset, length, volume.openings)
            placements.append(Placement(pool.name, volume.target, region.offset))
        token = SpanToken(held, tuple(entry.volume.uuid for entry in held.values()))
        orphan = weakref.finalize(token, self._orphans.append, held)
        orphan.atexit = False
        return Span(length, tuple(placements), token)

    def _cancel(self, span: Span) -> None:
        """Nothing was ever submitted to the span."""
        held = _token(span).held
        for pool, entry in list(held.items()):
            assert entry.volume.allocator is not None
            entry.volume.allocator.cancel(entry.offset)
            self._settled(held, pool)

    def _wish(self, pools: Sequence[Pool], request: ReserveRequest) -> int:
        """Client bytes to ask for beyond the need: a guess at what comes, bounded by what others may want, too."""
        asked = max(request.wish, request.length or 0)
        if request.length is None:
            asked = max(asked, DEFAULT_ASK << min(request.first_span, 4))
        return min(asked, min(pool.free_bytes() for pool in pools) // SHARE)

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
                entry = held[pool]
                assert entry.volume.allocator is not None
                entry.volume.allocator.commit(entry.offset, written.used)
                # The directory's promise stays until the record is there.
                self._settled(held, pool, promise=True)

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
            return allocator.bytes_in(RegionState.FREE) - before

    def _free(self, held: dict[str, Held], pool: str) -> None:
        entry = held[pool]
        assert entry.volume.allocator is not None
        entry.volume.allocator.release(entry.offset)
        self._settled(held, pool)

    def _distrust(self, held: dict[str, Held], pool: str) -> None:
        entry = held[pool]
        assert entry.volume.allocator is not None
        if entry.volume.openings > entry.opening and entry.volume.state is VolumeState.AVAILABLE:
            entry.volume.allocator.release(entry.offset)  # reopened since: nothing old can land
        else:
            entry.volume.allocator.quarantine(entry.offset)
        self._settled(held, pool)

    def _settled(self, held: dict[str, Held], pool: str, *, promise: bool = False) -> None:
        entry = held.pop(pool)
        if not promise:
            entry.volume.unpromise(entry.offset)
        for member in self.pools[pool].members:
            if member.volume is entry.volume:
                member.users -= 1

    def _settle_orphans(self) -> None:
        """Spans that nobody remembers can neither be committed nor released: quarantine what they still hold."""
        while self._orphans:
            held = self._orphans.popleft()
            for pool in list(held):
                self._distrust(held, pool)

    # ---- growing -------------------------------------------------------------------------------------

    def _order_spares(self, pools: Iterable[Pool]) -> None:
        """Have the next sequential volume made before it is needed, by a thread that no session waits for."""
        for pool in pools:
            low = pool.free_bytes() < pool.device_class.volume_size // SPARE
            if not low or not pool.may_grow or self._clock() < pool.next_spare:
                continue
            pool.next_spare = self._clock() + SPARE_PAUSE
            self._growers = [grower for grower in self._growers if grower.is_alive()]
            grower = threading.Thread(
                target=self._make_spare, args=(pool,), name=f"fanout-spare-{pool.name}", daemon=True
            )
            self._growers.append(grower)
            grower.start()

    def _make_spare(self, pool: Pool) -> None:
        try:
            self._grow(pool)
        except (
            FanoutError
        ) as error:  # the catalog's; the session that needs the room will meet it, too
            pool.growth_refused = str(error)

    def _grow(self, pool: Pool) -> bool:
        """Make and open the next sequential volume. False: the pool is as large as it may be, or it failed."""
        before = len(pool.members)
        with pool.growing:
            if len(pool.members) > before:
                return True  # somebody else has just done it
            if not pool.may_grow:
                return False
            try:
                member = self._make_next(pool)
            except (FanoutError, OSError) as error:
                pool.growth_refused = str(error)
                return False
            self._open_member(member, 0.0)
            if member.volume is None or not self._take_over([member]):
                pool.growth_refused = member.reason
                return False
            with self._lock:
                pool.members.append(member)
            pool.growth_refused, pool.next_spare = "", 0.0
            return True

    def _make_next(self, pool: Pool) -> _Member:
        kind = pool.device_class
        assert kind.directory is not None
        self._check_mounted(pool, kind.directory)
        path, left_over = self._next_path(pool, kind.directory)
        entry = create_entry(
            self._engine,
            path,
            store=self._store,
            pool=pool.name,
            pool_uuid=self._pool_uuids[pool.name],
            size=kind.volume_size,
            force=left_over,
        )
        self._book.add(volumes=[entry])
        return _Member(entry)

    @staticmethod
    def _check_mounted(pool: Pool, directory: Path) -> None:
        """A directory whose file system is not mounted must not fill the disk below it."""
        here = directory.stat().st_dev
        for member in pool.members:
            if member.volume is not None and member.volume.superblock.device != here:
                raise ConfigError(
                    f"is on another device than {member.entry.path}: is it mounted?",
                    path=str(directory),
                )

    def _next_path(self, pool: Pool, directory: Path) -> tuple[Path, bool]:
        """Where the next sequential volume goes, and whether a creation that was cut short lies there."""
        number = 1 + max(
            (sequence_number(member.entry.path)[1] for member in pool.members), default=0
        )
        for step in range(pool.device_class.max_volumes):
            path = directory / sequential_name(pool.name, number + step)
            if not path.exists():
                return path, False
            if self._is_left_over(path, pool.device_class.volume_size):
                return path, True
        raise ConfigError(
            f"is full of files that are named like volumes of {pool.name}", path=str(directory)
        )

    def _is_left_over(self, path: Path, size: int) -> bool:
        """Whether a creation was cut short here before the catalog heard of it: then it holds nothing.

        A volume is confirmed only after the catalog knows it, and holds no data before.
        """
        try:
            found = probe(self._engine, path)
        except VolumeError:
            return False
        if found is None:
            return path.stat().st_size == size
        return (
            found.store == self._store
            and found.epoch == FIRST_EPOCH
            and found.state is SuperblockState.PROVISIONAL
            and all(entry.volume != found.volume for entry in self._book.volumes())
        )


# ---- helpers -----------------------------------------------------------------------------------------


def _why(error: Exception) -> str:
    """What is wrong, for a place that names the volume itself."""
    return error.message if isinstance(error, VolumeError) else str(error)


def _is_the_hosts(error: Exception) -> bool:
    """Whether this machine was short of something, so that the volume is not to blame."""
    found = error if isinstance(error, TargetError) else error.__cause__
    return isinstance(found, TargetError) and found.outcome.cls is FaultClass.HOST


def _token(span: Span) -> SpanToken:
    assert isinstance(span.token, SpanToken), "not a span of this store"
    return span.token


def _side_by_side(action: Callable[[_Member], T], members: Sequence[_Member]) -> list[T]:
    """Do something that waits for devices with many volumes at once; one slow one does not add to the others."""
    if len(members) < 2:
        return [action(member) for member in members]
    with ThreadPoolExecutor(OPENERS, thread_name_prefix="fanout-open") as openers:
        return list(openers.map(action, members))


def _payload(request: ReserveRequest) -> int:
    """Bytes to be placed: data, and what its members take in the footers."""
    if request.length is None:
        return 0
    return request.length + request.members * fmt.FRAGMENT + request.name_bytes


def _directory_full(volume: Volume) -> bool:
    return volume.directory is None or volume.directory.full


def _opening(volume: Volume) -> tuple[int, int, int]:
    block = volume.superblock
    return block.epoch, block.device, block.inode


def _status(pool: Pool, member: _Member) -> VolumeStatus:
    entry, volume = member.entry, member.volume
    sizes = dict.fromkeys(RegionState, 0)
    state, reason = "unavailable", member.reason
    if volume is not None:
        state, reason = volume.state.value, volume.reason
        if volume.allocator is not None:
            sizes = {found: volume.allocator.bytes_in(found) for found in RegionState}
            full = volume.allocator.offer(LEAST_SPAN) < LEAST_SPAN or _directory_full(volume)
            if full and volume.state is VolumeState.AVAILABLE:
                state = "full"
    return VolumeStatus(
        pool=pool.name,
        path=entry.path,
        volume=entry.volume,
        state=state,
        reason=reason,
        epoch=entry.epoch,
        size=entry.size,
        free=sizes[RegionState.FREE],
        reserved=sizes[RegionState.RESERVED],
        draining=sizes[RegionState.DRAINING],
        quarantined=sizes[RegionState.QUARANTINED],
        live=sizes[RegionState.LIVE],
    )
