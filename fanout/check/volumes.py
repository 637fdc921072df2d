"""One volume: both superblocks, every directory block, its regions, and whether its directory says what the catalog says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fanout import format as fmt
from fanout.ahead import ReadAhead
from fanout.check.findings import (
    APPEND,
    REBUILD,
    RESTING,
    REWRITE,
    Problem,
    give_up,
    replace_volume,
    without_path,
)
from fanout.errors import (
    CatalogError,
    FanoutError,
    VolumeBusy,
    VolumeForeign,
    VolumeStale,
    VolumeTorn,
)
from fanout.format import Op
from fanout.scribe import buried_of, record_of
from fanout.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from fanout.catalog import CatalogReader, VolumeEntry
    from fanout.check.findings import Findings
    from fanout.engine import Engine

WINDOW = 1 << 20  # of a directory

_FIELDS = (
    "csn",
    "transaction",
    "attempt",
    "spans",
    "present",
    "node",
    "kind",
    "time_ns",
    "deleted",
    "committed",
    "version",
    "objects",
)


class VolumeCheck:
    """Opens the volumes of a store, and checks each by itself and against the catalog.

    Args:
        catalog: open.
        engine: that reads.
        findings: takes what is wrong.
        moved: pools whose files were moved to another kind of file system on purpose.
        written: pools that an opening for writing writes to.

    Attributes:
        catalog_is_older: a volume says so, and was not looked at.
    """

    def __init__(
        self,
        catalog: CatalogReader,
        engine: Engine,
        findings: Findings,
        *,
        moved: Collection[str],
        written: Collection[str],
    ) -> None:
        self._catalog, self._engine, self._findings = catalog, engine, findings
        self._moved, self._written = moved, written
        self.catalog_is_older = False
        self._ahead = ReadAhead()

    def check(self, entry: VolumeEntry, lock_wait: float) -> Volume | None:
        """Look at a volume; returns it, open and locked, or None: it cannot be opened.

        Raises:
            VolumeBusy: somebody has it locked.
        """
        volume = self._open(entry, lock_wait)
        if volume is None:
            return None
        volume.ahead = self._ahead
        self._check_superblocks(volume, entry)
        self._check_directory_blocks(volume)
        self._check_regions(volume)
        try:
            self._compare_directory(volume)
        except CatalogError as error:
            self._findings.of_catalog(f"cannot be compared with {volume.path}: {error}")
        return volume

    def _open(self, entry: VolumeEntry, lock_wait: float) -> Volume | None:
        """The volume, with its lock and its directory; nothing is written without a claim."""
        try:
            return Volume.open(
                self._engine,
                entry.path,
                store=self._catalog.store_id,
                pool=entry.pool,
                volume=entry.volume,
                catalog_epoch=entry.epoch,
                size=entry.size,
                lock_wait=lock_wait,
                moved=entry.pool in self._moved,
                claim=False,
                vouched=True,
            )
        except VolumeBusy:
            raise
        except (FanoutError, OSError) as error:
            what = str(error).removeprefix(f"{entry.path}: ")
            newer = isinstance(error, VolumeStale) and error.catalog_is_older
            self.catalog_is_older |= newer
            self._findings.note(
                Problem(
                    what, REBUILD if newer else replace_volume(entry.path), entry.pool, entry.path
                )
            )
            return None

    def _mend(self, volume: Volume, opening: str) -> str:
        """What an opening for writing does, and when it does."""
        return opening if volume.pool in self._written else RESTING + opening

    def _check_superblocks(self, volume: Volume, entry: VolumeEntry) -> None:
        newest = volume.superblock
        if (newest.size, newest.granule) != (entry.size, entry.granule):
            self._findings.of_catalog(
                f"knows {volume.path} with {entry.size} bytes in granules of {entry.granule}, its "
                f"superblock says {newest.size} in granules of {newest.granule}",
                pool=entry.pool,
            )
        for copy in (0, 1):
            offset = newest.copy_offset(copy)
            try:
                block = fmt.decode_superblock(
                    volume.read(offset, fmt.BLOCK), path=volume.path, offset=offset
                )
            except FanoutError as error:
                what = f"superblock {'AB'[copy]} is damaged: {without_path(error, volume)}"
                self._findings.of_volume(volume, offset, what, self._mend(volume, REWRITE))
                continue
            if block.volume != newest.volume:
                what = f"superblock {'AB'[copy]} is of volume {block.volume.hex()}"
                self._findings.of_volume(volume, offset, what, self._mend(volume, REWRITE))

    def _check_directory_blocks(self, volume: Volume) -> None:
        """A damaged block between good ones of its generation: what a crash tears is behind them.

        Of the half that does not count only one that is newer is looked at: its checkpoint has rotted. The next one overwrites the rest.
        """
        assert volume.directory is not None
        block, live = volume.superblock, volume.directory.live_half
        if not volume.directory.complete:
            offset, what = block.half_offset(live), "its directory has no complete checkpoint left"
            self._findings.of_volume(volume, offset, what, self._mend(volume, REWRITE))
        for offset in sorted(volume.directory.refused):
            what = "a block of its directory cannot be read"
            self._findings.of_volume(volume, offset, what, self._mend(volume, REWRITE))
        newest = 0  # generation of the live half
        for half in (live, 1 - live):
            bad: dict[int, str] = {}
            tops: dict[int, int] = {}
            for number, data in self._directory_blocks(volume, half):
                try:
                    found = fmt.decode_block(
                        data, block, path=volume.path, half=half, number=number
                    )
                except VolumeForeign:
                    continue  # left by an earlier use of the medium
                except VolumeTorn as error:
                    bad[number] = without_path(error, volume)
                else:
                    tops[found.place.generation] = number
            top = max(tops, default=0)
            if half != live and top < newest:
                continue
            newest = top
            last = tops[top] if tops else -1
            for number, what in bad.items():
                if number < last:
                    offset = block.half_offset(half) + number * block.granule
                    mend = "harmless if nothing else is reported of this volume; "
                    mend += self._mend(volume, REWRITE)
                    self._findings.of_volume(volume, offset, what, mend)

    def _directory_blocks(self, volume: Volume, half: int) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of every block that was ever written."""
        block = volume.superblock
        nothing = bytes(block.granule)
        for start in range(0, block.directory_bytes, WINDOW):
            length = min(WINDOW, block.directory_bytes - start)
            offset = block.half_offset(half) + start
            try:
                data = self._read_directory(volume, offset, length)
            except FanoutError as error:
                what = f"its directory cannot be read: {without_path(error, volume)}"
                self._findings.of_volume(volume, offset, what, replace_volume(volume.path))
                return
            for at in range(0, length, block.granule):
                piece = data[at : at + block.granule]
                if piece != nothing:
                    yield (start + at) // block.granule, piece

    def _read_directory(self, volume: Volume, offset: int, length: int) -> bytes:
        """Zeros for blocks that the medium refused at the opening: they are found by then."""
        assert volume.directory is not None
        refused, granule = volume.directory.refused, volume.superblock.granule
        places = range(offset, offset + length, granule)
        if refused.isdisjoint(places):
            return volume.read(offset, length)
        return b"".join(
            bytes(granule) if at in refused else volume.read(at, granule) for at in places
        )

    def _check_regions(self, volume: Volume) -> None:
        """What the catalog says is live lies inside the space, at granules, and nowhere twice."""
        block = volume.superblock
        free = block.space_offset
        for offset, length in self._catalog.live_regions(volume.uuid):
            end = offset + fmt.round_up(length, block.granule)
            if offset < block.space_offset or end > block.space_offset + block.space_length:
                what = f"a region of {length} bytes is not inside the space of the volume"
            elif offset % block.granule:
                what = f"a region does not begin at a multiple of {block.granule}"
            elif offset < free:
                what = f"a region of {length} bytes overlaps the one before"
            else:
                what = ""
            if what:
                self._findings.of_volume(volume, offset, what, REBUILD)
            free = max(free, end)

    # ---- directories -------------------------------------------------------------------------------

    def _compare_directory(self, volume: Volume) -> None:
        """The volume's own evidence says what the catalog says."""
        assert volume.directory is not None
        said, records = volume.directory.held_csns(), volume.directory.records
        held = self._catalog.held_csns(volume.uuid)
        dead = {entry.aggregate: entry.csn for entry in self._catalog.dead()}
        for aggregate in said.keys() & dead.keys():
            what = f"its directory lacks the delete of aggregate {aggregate.hex()} by commit {dead[aggregate]}"
            self._findings.of_volume(
                volume, records[aggregate].spans[0].offset, what, self._mend(volume, APPEND)
            )
        last, torn = self._catalog.last_csn(), volume.directory.torn
        strange = said.keys() - held.keys() - dead.keys()
        buried = buried_of(volume.directory, strange, self._catalog) if torn else {}
        for aggregate in strange:
            what = (
                f"its directory names aggregate {aggregate.hex()} (commit {said[aggregate]}), "
                "the catalog knows nothing of it here"
            )
            mend = give_up(volume.path) if torn and said[aggregate] <= last else REBUILD
            if aggregate in buried:
                what = f"its directory has lost the delete of aggregate {aggregate.hex()}"
                mend = self._mend(volume, APPEND)
            self._findings.of_volume(volume, records[aggregate].spans[0].offset, what, mend)
        for aggregate in held.keys() - said.keys():
            what = f"its directory lacks aggregate {aggregate.hex()} of commit {held[aggregate]}"
            self._findings.of_volume(volume, None, what, self._mend(volume, APPEND))
        for expected in self._catalog.held_spans(volume.uuid, sorted(said.keys() & held.keys())):
            record = records[expected.aggregate]
            wanted = record_of(expected)
            if not record.version:  # of version 1 of the format, which did not say so
                wanted = replace(wanted, version=0, committed=record.committed)
            if not record.objects:  # nor did earlier writers of version 2 say this
                wanted = replace(wanted, objects=0)
            if wanted.csn > record.csn:
                what = f"its directory knows aggregate {record.aggregate.hex()} of commit {record.csn}, the catalog of {wanted.csn}"
                self._findings.of_volume(
                    volume, record.spans[0].offset, what, self._mend(volume, APPEND)
                )
                continue
            same = replace(record, op=Op.COMMIT, spans=tuple(sorted(record.spans))) == replace(
                wanted, spans=tuple(sorted(wanted.spans))
            )
            if not same:
                names = [n for n in _FIELDS if getattr(record, n) != getattr(wanted, n)]
                what = f"directory and catalog disagree on aggregate {record.aggregate.hex()}: {', '.join(names)}"
                self._findings.of_volume(volume, record.spans[0].offset, what, REBUILD)
