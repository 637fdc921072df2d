"""How a sequential pool grows: its next volume is made before it is needed, or when somebody needs it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from fanout.config import MAX_VOLUMES
from fanout.errors import CatalogError, ConfigError, FanoutError, VolumeError
from fanout.format import SuperblockState
from fanout.making import (
    FIRST_EPOCH,
    create_entry,
    file_numbers,
    probe,
    sequence_number,
    sequential_name,
)
from fanout.opening import is_the_hosts
from fanout.pool import Member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from fanout.engine import Engine
    from fanout.opening import Opener
    from fanout.pool import Pool, VolumeBook

SPARE = 4  # the next volume is made when less than this part of one is free
SPARE_PAUSE = 60.0  # seconds until a spare volume that could not be made is tried again


class Grower:
    """Makes sequential volumes.

    Args:
        engine: that does the I/O.
        store: its UUID.
        pool_uuids: UUID of each pool.
        book: the catalog, which hears of a volume before it holds anything.
        opener: opens what was made.
        lock: of the pools' members.
        clock: seconds, monotonic.

    Attributes:
        threads: that make spare volumes, or have.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        store: bytes,
        pool_uuids: Mapping[str, bytes],
        book: VolumeBook,
        opener: Opener,
        lock: threading.RLock,
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._store, self._pool_uuids = engine, store, pool_uuids
        self._book, self._opener, self._lock, self._clock = book, opener, lock, clock
        self.threads: list[threading.Thread] = []

    def order_spares(self, pools: Iterable[Pool]) -> None:
        """Have the next sequential volume made before it is needed, by a thread that no session waits for."""
        for pool in pools:
            low = pool.free_bytes() < pool.device_class.volume_size // SPARE
            if not low or not pool.may_grow or self._clock() < pool.next_spare:
                continue
            pool.next_spare = self._clock() + SPARE_PAUSE
            self.threads = [grower for grower in self.threads if grower.is_alive()]
            grower = threading.Thread(
                target=self._make_spare, args=(pool,), name=f"fanout-spare-{pool.name}", daemon=True
            )
            self.threads.append(grower)
            try:
                grower.start()
            except RuntimeError as error:  # no thread is to be had: who needs the room makes it
                pool.growth_refused = str(error)

    def _make_spare(self, pool: Pool) -> None:
        try:
            self.grow(pool)
        except (
            FanoutError
        ) as error:  # the catalog's; the session that needs the room will meet it, too
            pool.growth_refused = str(error)

    def grow(self, pool: Pool) -> bool:
        """Make and open the next sequential volume. False: the pool is as large as it may be, or it failed."""
        before = len(pool.members)
        with pool.growing:
            if len(pool.members) > before:
                return True  # somebody else has just done it
            pool.growth_short = False
            if not pool.may_grow:
                return False
            if len(self._book.volumes()) >= MAX_VOLUMES:
                pool.growth_refused = (
                    f"the store has {MAX_VOLUMES} volumes, as many as can be open at once; "
                    "raise volume_size for those to come, and empty and retire some"
                )
                return False
            try:
                member = self._make_next(pool)
            except (FanoutError, OSError) as error:
                pool.growth_refused = str(error)
                pool.growth_short = is_the_hosts(error) or isinstance(error, CatalogError)
                return False
            # The catalog knows it: it is the pool's whatever becomes of its opening, and is tried again like any other.
            with self._lock:
                pool.members.append(member)
            if not self._open(member):
                pool.growth_refused, pool.growth_short = member.reason, member.short
                return False
            pool.growth_refused, pool.next_spare = "", 0.0
            return True

    def _open(self, member: Member) -> bool:
        try:
            self._opener.look(member, 0.0)
            return member.volume is not None and bool(self._opener.take_over([member]))
        except BaseException:
            self._opener.abandon([member], "its opening was cut short")
            raise

    def _make_next(self, pool: Pool) -> Member:
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
        return Member(entry)

    def _check_mounted(self, pool: Pool, directory: Path) -> None:
        """A directory whose file system is not mounted must not fill the disk below it."""
        try:
            here = directory.stat().st_dev
        except OSError as error:
            message = f"cannot be looked at: {error.strerror}"
            raise ConfigError(message, path=str(directory)) from error
        if not pool.members:
            self._check_known(pool, directory, here)
        for member in pool.members:
            if member.volume is not None and member.volume.superblock.device != here:
                raise ConfigError(
                    f"is on another device than {member.entry.path}: is it mounted?",
                    path=str(directory),
                )

    def _check_known(self, pool: Pool, directory: Path, here: int) -> None:
        """No volume is left that could show the device; the last one that was given up was on it."""
        devices = [entry.device for entry in self._book.retired() if entry.pool == pool.name]
        if not devices or devices[-1] != here:
            raise ConfigError(
                "nothing shows that this is the device on which its volumes were: mount it, or, if it is the right one, "
                "make the next volume with 'fanout init --add'",
                path=str(directory),
            )

    def _next_path(self, pool: Pool, directory: Path) -> tuple[Path, bool]:
        """Where the next sequential volume goes, and whether a creation that was cut short lies there."""
        known = (sequence_number(member.entry.path)[1] for member in pool.members)
        last = max(known, default=0)
        for number in file_numbers(pool.name, directory):
            path = directory / sequential_name(pool.name, number)
            if number > last and self._is_left_over(path, pool.device_class.volume_size):
                return path, True
            last = max(last, number)
        return directory / sequential_name(pool.name, last + 1), False

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

    def join(self) -> None:
        """Let what is being made be finished."""
        for thread in self.threads:
            if thread.ident is not None:  # it was started
                thread.join()
