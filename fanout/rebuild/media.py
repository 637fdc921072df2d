"""The volumes of a configuration, as many as can be opened: the only evidence that a rebuild has."""

from __future__ import annotations

import os
import stat
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from fanout.ahead import ReadAhead
from fanout.catalog import RetiredVolume
from fanout.directory import Directory
from fanout.errors import CatalogError, FanoutError, VolumeBusy, VolumeError
from fanout.format import SuperblockState
from fanout.making import entry_of, file_numbers, probe, sequential_name, volume_sites
from fanout.rebuild.report import SkippedVolume
from fanout.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.catalog import VolumeEntry
    from fanout.config import Config
    from fanout.engine import Engine


COPY = "is a copy of another volume that is here too: take the line of the copy out of fanout.toml, or a sequential one out of its directory"


class Media:
    """The volumes of a configuration, as many as can be opened.

    Attributes:
        store: UUID of the store that they are of.
        volumes: open and locked, in the order in which they were made.
        headless: of the others those that have only lost their directory: open and locked, without a record.
        skipped: the others.
        retired: those that had been given up, and were left aside.
        retirements: of all volumes that were given up and not taken back.
        notes: what an operator should know.
        incomplete: whether volumes took no part that had not been given up, for all that is known.
    """

    def __init__(self, config: Config, catalog: str, *, take_retired: bool) -> None:
        self.config, self._catalog, self._take_retired = config, catalog, take_retired
        self.store = b""
        self.volumes: list[Volume] = []
        self.headless: list[Volume] = []
        self._ahead = ReadAhead()
        self.skipped: list[SkippedVolume] = []
        self.retired: list[SkippedVolume] = []
        self.retirements: list[RetiredVolume] = []
        self.notes: list[str] = []
        self.incomplete = False

    def open(self, engine: Engine, lock_wait: float) -> None:
        """Open all that can be.

        Raises:
            VolumeBusy: one is locked.
            CatalogError: none can be opened, or nobody can say of which store they are.
        """
        probed = list(self._probe(engine))
        stores = Counter(block.store for _, _, block in probed).most_common(2)
        if not stores:
            reasons = _reasons(self.skipped) or "none is configured"
            raise CatalogError(self._catalog, f"no volume can be read: {reasons}")
        if len(stores) == 2 and stores[0][1] == stores[1][1]:
            raise CatalogError(
                self._catalog,
                "the volumes are of different stores, equally many of each: "
                + ", ".join(f"{path} of {block.store.hex()}" for _, path, block in probed)
                + "; take those of the other store out of the configuration",
            )
        self.store = stores[0][0]
        newest: dict[bytes, int] = {}
        for _, _, block in probed:
            newest[block.volume] = max(newest.get(block.volume, 0), block.sequence)
        for pool, path, block in probed:
            same = [volume for volume in self.volumes if volume.uuid == block.volume]
            if block.sequence < newest[block.volume] or any(_lies_at(one, path) for one in same):
                self._skip(pool, path, COPY)
            else:
                self._open_one(engine, pool, path, block.volume, block.epoch, lock_wait)
        self._set_copies_aside()
        self._set_retired_aside()
        self._look_for_holes()
        self.incomplete |= bool(self.skipped)
        if not self.volumes:
            reasons = _reasons((*self.skipped, *self.retired))
            raise CatalogError(self._catalog, f"no volume can be used: {reasons}")

    def _probe(self, engine: Engine) -> Iterator[tuple[str, str, _Superblock]]:
        for pool in self.config.pools.values():
            directory = self.config.device_classes[pool.device_class].directory
            if directory is None:
                continue
            reason = f"no volume of {pool.name} is here: is it mounted, is the path right?"
            try:
                there = file_numbers(pool.name, directory)
            except OSError as error:
                there, reason = [], f"cannot be read: {error.strerror}"
            if not there:
                self._skip(pool.name, str(directory), reason)
        for pool_name, path in volume_sites(self.config):
            try:
                block = probe(engine, path)
            except (FanoutError, OSError) as error:
                self._skip(pool_name, path, str(error))
                continue
            if block is None:
                self._skip(pool_name, path, f"{path}: is empty: no volume was made here")
            else:
                yield (
                    pool_name,
                    path,
                    _Superblock(block.store, block.volume, block.epoch, block.sequence),
                )

    def _open_one(
        self, engine: Engine, pool: str, path: str, volume: bytes, epoch: int, lock_wait: float
    ) -> None:
        def open_it(*, vouched: bool) -> Volume:
            return Volume.open(
                engine,
                path,
                store=self.store,
                pool=pool,
                volume=volume,
                catalog_epoch=epoch,
                lock_wait=lock_wait,
                moved=self.config.pools[pool].moved,
                claim=False,
                vouched=vouched,
            )

        try:
            opened = open_it(vouched=False)
        except VolumeBusy:
            raise
        except (FanoutError, OSError) as error:
            self._skip(pool, path, str(error))
            with suppress(FanoutError, OSError):
                opened = open_it(vouched=True)
                # What is left of it may name what was deleted since.
                opened.directory = Directory(opened.superblock, path=path)
                opened.ahead = self._ahead
                self.headless.append(opened)
            return
        try:
            assert opened.directory is not None
            opened.load_space((span.offset, span.length) for span in opened.directory.spans())
        except VolumeError as error:
            opened.close()
            self._skip(pool, path, f"its directory contradicts itself: {error}")
            return
        opened.ahead = self._ahead
        self.volumes.append(opened)
        # As the lost catalog had them: in the order in which they were made.
        self.volumes.sort(key=lambda volume: volume.superblock.created_ns)

    def _set_copies_aside(self) -> None:
        """Of those of one opening, made while a volume was in use, the one that knows most is in use."""
        newest: dict[bytes, Volume] = {}
        for volume in self.volumes:
            known = newest.setdefault(volume.uuid, volume)
            if _last_csn(known) < _last_csn(volume):
                newest[volume.uuid] = volume
        for volume in self.volumes:
            if newest[volume.uuid] is not volume:
                volume.close()
                self._skip(volume.pool, volume.path, COPY)
        self.volumes = [volume for volume in self.volumes if newest[volume.uuid] is volume]

    def _set_retired_aside(self) -> None:
        """What was given up knows nothing of what was deleted since: it takes no part, unless the operator wants it to."""
        told: dict[bytes, RetiredVolume] = {}
        for volume in self.volumes:
            assert volume.directory is not None
            for record in volume.directory.retirements():
                known = told.get(record.aggregate)
                if known is None or known.csn < record.csn:
                    told[record.aggregate] = RetiredVolume(
                        record.aggregate, record.csn, record.time_ns, record.version
                    )
        for volume in [volume for volume in self.headless if volume.uuid in told]:
            self.headless.remove(volume)  # it is no use
            volume.close()
        for volume in list(self.volumes):
            entry = told.pop(volume.uuid, None)
            if entry is None or not _is_retired(volume, entry):
                continue  # it is in use, or was taken back: what the others say of it is out of date
            if self._take_retired:
                self.notes.append(
                    f"{volume.path} had been given up, and was taken in; what was deleted since may be back with it"
                )
                continue
            self.volumes.remove(volume)
            volume.close()
            why = "was given up by 'fanout retire volume', and is left aside; --take-retired takes it in"
            self.retired.append(SkippedVolume(volume.pool, volume.path, why))
            device = volume.superblock.device
            told[volume.uuid] = entry._replace(pool=volume.pool, path=volume.path, device=device)
        self.retirements = sorted(told.values(), key=lambda entry: entry.csn)

    def _look_for_holes(self) -> None:
        """Sequential volumes are numbered in a row, and nothing but the numbers tells that one was there."""
        # Nobody says of which pool one was whose file is gone, so it may be the hole of any.
        given_up = sum(entry.path is None for entry in self.retirements)
        for pool in self.config.pools.values():
            directory = self.config.device_classes[pool.device_class].directory
            if directory is None:
                continue
            try:
                numbers = file_numbers(pool.name, directory)
            except OSError:  # it is told of already
                continue
            holes = max(numbers, default=0) - len(numbers) - given_up
            if holes > 0:
                first = next(number for number in count(1) if number not in numbers)
                self.incomplete = True
                self.notes.append(
                    f"{directory}: numbers of {pool.name} are missing ({holes}), the first is {sequential_name(pool.name, first)}: "
                    "what was not given up took no part"
                )

    def _skip(self, pool: str, path: str, reason: str) -> None:
        self.skipped.append(SkippedVolume(pool, path, reason.removeprefix(f"{path}: ")))

    def close(self) -> None:
        """Close all."""
        for volume in (*self.volumes, *self.headless):
            volume.close()


def _reasons(skipped: Iterable[SkippedVolume]) -> str:
    return "; ".join(f"{one.path}: {one.reason}" for one in skipped)


def _last_csn(volume: Volume) -> int:
    assert volume.directory is not None
    return volume.directory.last_csn


def _lies_at(volume: Volume, path: str) -> bool:
    """Whether a path is another one of the same file or device: nobody can open that twice."""
    found = volume.target.geometry
    try:
        there = os.stat(path)
    except OSError:
        return False  # whoever opens it says what is wrong
    if stat.S_ISBLK(there.st_mode):
        return found.is_block and found.dev == there.st_rdev
    return not found.is_block and (found.dev, found.ino) == (there.st_dev, there.st_ino)


def _is_retired(volume: Volume, entry: RetiredVolume) -> bool:
    confirmed = volume.superblock.state is SuperblockState.CONFIRMED
    return entry.names(volume.uuid, volume.superblock.epoch, confirmed=confirmed)


class _Superblock(NamedTuple):
    """What counts of a superblock before the volume is opened."""

    store: bytes
    volume: bytes
    epoch: int
    sequence: int


def entry_now(volume: Volume) -> VolumeEntry:
    """As it is found now: it may have been moved."""
    found = volume.target.geometry
    entry = entry_of(volume.superblock, volume.path)
    return replace(entry, device=found.dev, inode=found.ino, is_block=found.is_block)
