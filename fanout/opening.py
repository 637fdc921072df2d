"""How the volumes of a store are opened: looked at, claimed, written into the catalog, confirmed; and tried again when they failed.

What it promises:

1. A volume that is busy, missing or damaged makes that volume unavailable, not the store. A *catalog* that is older than
   any volume stops everything (`CatalogStale`): it would hand out live data as free space.
2. What this machine is short of is no volume's fault: it is remembered as a shortage, for whoever must not go without volumes.
3. Nothing here waits for a device while it holds the lock.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from fanout.config import Access
from fanout.engine import fault_class
from fanout.errors import (
    CatalogStale,
    FanoutError,
    InterfaceError,
    VolumeError,
    VolumeStale,
)
from fanout.format import SuperblockState
from fanout.making import entry_of
from fanout.pool import FIRST_PAUSE
from fanout.types import FaultClass
from fanout.volume import Volume, VolumeState, restored

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from fanout.engine import Engine
    from fanout.pool import Member, Pool, VolumeBook

T = TypeVar("T")

OPENERS = 8  # volumes opened side by side
REOPEN_TIMEOUT = 5.0  # seconds: a session waits for it
REOPEN_LOCK_WAIT = 0.2  # seconds: an opening of ours that was given up and answers late lets the lock go in a moment
LONGEST_PAUSE = 60.0  # seconds between two tries to reopen a volume


class Opener:
    """Opens the volumes of a store.

    Args:
        engine: that does the I/O.
        store: its UUID.
        pools: of the store, by name.
        book: the catalog.
        lock: of the allocators.
        clock: seconds, monotonic.

    Attributes:
        stale: why the catalog must not allocate; empty: it may.
        shortage: what this machine was short of when a volume was opened.
        older: how volumes that were opened read only show that the catalog is older than they are.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        store: bytes,
        pools: Mapping[str, Pool],
        book: VolumeBook,
        lock: threading.RLock,
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._store, self._pools, self._book = engine, store, pools, book
        self._lock, self._clock = lock, clock
        self.stale = ""
        self.shortage: VolumeError | None = None
        self.older: list[str] = []

    def look(
        self, member: Member, lock_wait: float, *, read_only: bool = False, timeout: float = 60.0
    ) -> None:
        """Look at a volume; nothing is written. What keeps it from being opened becomes its reason."""
        entry = member.entry
        config = self._pools[entry.pool].config
        access, member.short = config.access, False
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
                moved=config.moved,
                timeout=timeout,
                claim=False,
                on_slow=config.on_slow.value,
                vouched=True,
            )
        except VolumeStale as error:
            if error.catalog_is_older:
                self.stale = str(error)
            self._postpone(member, _why(error))
        except (FanoutError, OSError) as error:
            self._postpone(member, _why(error))
            member.short = is_the_hosts(error)
            if member.short:
                message = (
                    f"{_why(error)}: this machine is short of it; raise the limit and open again"
                )
                self.shortage = VolumeError(entry.path, message)
                self.shortage.__cause__ = error

    def compare(self, member: Member) -> None:
        """Whether the catalog is older than a volume that was opened read only, or the volume is, which may be read all the same.

        Somebody may be writing to both: of the two the one that should be older is asked first.
        """
        volume = member.volume
        if volume is None:
            return
        block = volume.superblock
        if block.epoch < member.entry.epoch:
            volume.reason = restored(block.epoch, member.entry.epoch)
            return
        with suppress(FanoutError):
            newest = volume.newest_commit()
            last = self._book.last_csn()
            if newest > last:
                self.older.append(f"{volume.path}: knows commit {newest}, the catalog only {last}")
        begun = block.state is SuperblockState.PROVISIONAL
        if block.epoch - begun > member.entry.epoch:
            known = {entry.volume: entry.epoch for entry in self._book.volumes()}
            if block.epoch - begun > known.get(block.volume, block.epoch):
                self.older.append(
                    f"{volume.path}: is of epoch {block.epoch}, the catalog knows only {known[block.volume]}"
                )

    def _postpone(self, member: Member, reason: str) -> None:
        member.reason = reason
        member.next_try = self._clock() + member.pause
        member.pause = min(2 * member.pause, LONGEST_PAUSE)

    def refuse_stale_catalog(self, members: Iterable[Member]) -> None:
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
            self.stale = (
                f"{volume.path}: its directory goes up to commit {volume.directory.last_csn}, "
                f"the catalog only to {last}; use the newest catalog, or make it anew with 'fanout rebuild catalog --force'"
            )
        if self.stale:
            raise CatalogStale(
                self._book.path,
                f"is older than a volume and must not allocate: {self.stale}",
            )

    def take_over(self, members: Sequence[Member]) -> list[Volume]:
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

    def _each(self, members: Sequence[Member], step: Callable[[Member], None]) -> list[Member]:
        """The members for which a step went well; the others are unavailable."""

        def attempt(member: Member) -> bool:
            try:
                step(member)
            except (VolumeError, InterfaceError) as error:  # the latter: it has failed meanwhile
                self._drop(member, _why(error))
                return False
            return True

        went_well = side_by_side(attempt, members)
        return [member for member, good in zip(members, went_well, strict=True) if good]

    def abandon(self, members: Iterable[Member], reason: str) -> None:
        """Their opening ends here, wherever it stood: nobody has compared their directories, and they are to be tried again."""
        for member in members:
            unfinished = (VolumeState.CLAIMED, VolumeState.AVAILABLE)
            if member.volume is not None and member.volume.state in unfinished:
                self._drop(member, reason)

    def _drop(self, member: Member, reason: str) -> None:
        """A volume cannot be used for now. One that has spans keeps its books, for when it comes back."""
        volume = member.volume
        assert volume is not None
        volume.fail(reason)
        if volume.allocator is None or volume.state is VolumeState.CLOSED:
            volume.close()
            member.volume = None
        self._postpone(member, reason)

    @staticmethod
    def _claim(member: Member) -> None:
        assert member.volume is not None
        if not member.volume.claimed:
            member.volume.claim(member.entry.epoch)

    def _confirm(self, member: Member) -> None:
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

    @staticmethod
    def dead(member: Member) -> bool:
        """Whether nothing can be written to it until it is opened again."""
        volume = member.volume
        return volume is None or (not volume.writable and volume.state is VolumeState.FAILED)

    def try_again(self, member: Member) -> None:
        """Open it anew, or open again what failed; what is in the way becomes its reason."""
        if member.volume is None:
            self.look(member, REOPEN_LOCK_WAIT, timeout=REOPEN_TIMEOUT)
            return
        try:
            member.volume.reopen(
                catalog_epoch=member.entry.epoch,
                lock_wait=REOPEN_LOCK_WAIT,
                timeout=REOPEN_TIMEOUT,
            )
        except VolumeStale as error:
            if error.catalog_is_older:
                self.stale = str(error)
            self._postpone(member, _why(error))
        except (FanoutError, OSError) as error:
            self._postpone(member, _why(error))


def _why(error: Exception) -> str:
    """What is wrong, for a place that names the volume itself."""
    return error.message if isinstance(error, VolumeError) else str(error)


def is_the_hosts(error: Exception) -> bool:
    """Whether this machine was short of something, so that the volume is not to blame."""
    found = error if isinstance(error, OSError) else error.__cause__
    return isinstance(found, OSError) and fault_class(found.errno or 0) is FaultClass.HOST


def side_by_side(action: Callable[[Member], T], members: Sequence[Member]) -> list[T]:
    """Do something that waits for devices with many volumes at once; one slow one does not add to the others.

    On a machine that has no thread left they are done by fewer, or one after the other.
    """
    done: dict[int, T] = {}

    def one(number: int) -> None:
        done[number] = action(members[number])

    numbers = range(len(members))
    if len(members) > 1:
        try:
            with ThreadPoolExecutor(OPENERS, thread_name_prefix="fanout-open") as openers:
                list(openers.map(one, numbers))
        except RuntimeError as error:
            if isinstance(error, FanoutError):
                raise
    for number in numbers:
        if number not in done:
            one(number)
    return [done[number] for number in numbers]


def _opening(volume: Volume) -> tuple[int, int, int]:
    block = volume.superblock
    return block.epoch, block.device, block.inode
