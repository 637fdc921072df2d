"""One pool and its volumes, open or not: what is known of them, without a decision."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fanout.allocator import RegionState
from fanout.config import Access, DeviceType
from fanout.volume import VolumeState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fanout.catalog.rows import RetiredVolume, VolumeEntry
    from fanout.config import DeviceClass
    from fanout.config import Pool as PoolConfig
    from fanout.volume import Volume

# A shorter span is not worth its header and footer, unless nothing more is needed.
LEAST_SPAN = 64 << 10
# Seconds that other volumes of the pool come before one that failed, for each time that it did; and at most.
SHUN, LONGEST_SHUN = 60.0, 3600.0
UNUSED = "unused"  # state of a volume that no pool has
FIRST_PAUSE = 1.0  # seconds until a volume is tried again; then twice as long, and so on


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

    def retired(self) -> Sequence[RetiredVolume]:
        """Volumes that were given up, in that order."""


@dataclass(eq=False, slots=True)
class Member:
    """A volume of a pool, open or not."""

    entry: VolumeEntry
    volume: Volume | None = None
    reason: str = ""
    short: bool = False
    """Whether that is want of something of this machine's."""
    pause: float = FIRST_PAUSE
    next_try: float = 0.0
    users: int = 0
    """Regions reserved and not settled: a measure of how busy it is."""
    faults: int = 0
    shunned_until: float = 0.0

    def shunned(self, now: float) -> bool:
        """Whether something written to it has failed lately, so that another volume of the pool is the better choice."""
        assert self.volume is not None
        if self.faults < self.volume.target.faults:
            self.shunned_until = now + min(SHUN * self.volume.target.faults, LONGEST_SHUN)
        self.faults = self.volume.target.faults
        return now < self.shunned_until


@dataclass(eq=False, slots=True)
class Pool:
    """One pool: its settings and its volumes, in the order in which they are filled."""

    config: PoolConfig
    device_class: DeviceClass
    members: list[Member] = field(default_factory=list)
    growing: threading.Lock = field(default_factory=threading.Lock)
    growth_refused: str = ""
    growth_short: bool = False
    """Whether it was refused for want of something that is not the pool's."""
    next_spare: float = 0.0

    @property
    def name(self) -> str:
        """Of the pool."""
        return self.config.name

    def writable(self) -> list[Member]:
        """Members that spans may be written to."""
        return [member for member in self.members if member.volume and member.volume.writable]

    def free_bytes(self) -> int:
        """Bytes that may be handed out, on all volumes that can be written."""
        return free_bytes(self.writable())

    def reach_bytes(self) -> int:
        """The most that could be handed out, with all volumes that may still be made; more than that, for what they keep for themselves."""
        kind, more = self.device_class, 0
        if self.may_grow:
            more = (kind.max_volumes - len(self.members)) * kind.volume_size
        return self.free_bytes() + more

    def reasons(self) -> str:
        """Why nothing of it can be written, in words."""
        if self.config.access is not Access.READWRITE:
            return f"its access is {self.config.access.value}"
        if not self.members:
            return "it has no volume; 'fanout init --add' makes one"
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


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    """A volume as `query volume` shows it; sizes in bytes.

    Attributes:
        pool: name.
        path: file or device.
        volume: UUID; empty: the catalog does not know it.
        state: ``available``, ``full``, ``failed``, ``unavailable``, ``read-only``, or ``unused``: configuration and catalog do not
            both know it.
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


def free_bytes(members: Iterable[Member]) -> int:
    """Bytes that may be handed out on these volumes."""
    return sum(
        member.volume.allocator.bytes_in(RegionState.FREE)
        for member in members
        if member.volume and member.volume.allocator
    )


def status_of(pool: Pool, member: Member) -> VolumeStatus:
    """What can be said of a volume now; the lock of the allocators is held."""
    entry, volume = member.entry, member.volume
    sizes = dict.fromkeys(RegionState, 0)
    state, reason = "unavailable", member.reason
    if volume is not None:
        state, reason = volume.state.value, volume.reason
        if volume.allocator is not None:
            sizes = {found: volume.allocator.bytes_in(found) for found in RegionState}
            full = volume.allocator.offer(LEAST_SPAN) < LEAST_SPAN or directory_full(volume)
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


def unused_volume(
    pool: str, path: str, reason: str, entry: VolumeEntry | None = None
) -> VolumeStatus:
    """A volume that is in the configuration or in the catalog (`entry`), and not in both."""
    known, epoch, size = (entry.volume, entry.epoch, entry.size) if entry else (b"", 0, 0)
    return VolumeStatus(pool, path, known, UNUSED, reason, epoch, size, 0, 0, 0, 0, 0)


def directory_full(volume: Volume) -> bool:
    """Whether it has no room for another record."""
    return volume.directory is None or volume.directory.full
