"""A volume: one file or block device of a pool, made by an explicit command (`fanout.making`) and opened under a lock.

::

    made ────> PROVISIONAL on the medium, epoch 1              (its maker puts it into the catalog)
    open ────> lock, superblocks, identity, epoch, directory   (read only: no lock, nothing is written)
               claim: epoch + 1 PROVISIONAL, flushed           (the caller records the epoch in the catalog)
    confirm ─> epoch CONFIRMED, flushed: AVAILABLE
    fail ────> FAILED: nothing more is written, reads go on
    reopen ──> as open; then quarantined regions are free again

What it promises:

1. Opening never creates, and writes nothing before lock, identity and epoch are good.
2. Before `confirm` nothing but a superblock is written, so an epoch that the catalog never heard of holds no data.
3. All I/O goes through one target of the engine: its description holds the lock until the last write in flight has ended,
   also after SIGKILL.
4. A catalog or a volume that was restored from the past is refused (`VolumeStale`), not written.

Formats and rules: docs/on-disk-format.md. It knows nothing of pools as groups, transactions, or SQLite. One thread at a time, except
that reads may go on beside everything.
"""

from __future__ import annotations

import enum
import os
import shlex
import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from fanout import format as fmt
from fanout.allocator import Allocator
from fanout.directory import BlockRefused, CheckpointUnsafe, Directory, newest_commit
from fanout.engine import Request
from fanout.errors import (
    InterfaceError,
    TargetError,
    VolumeError,
    VolumeForeign,
    VolumeStale,
    VolumeTorn,
)
from fanout.format import Superblock, SuperblockState
from fanout.medium import CLOSE_TIMEOUT, OPEN_TIMEOUT, find_superblock, open_target, translated
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fanout.ahead import ReadAhead
    from fanout.engine import Engine, Target
    from fanout.format import DirectoryRecord, SpanFooter, SpanHeader, StoredSpan

OPENING_STEPS = 2  # how far one opening takes the superblock's counters
WINDOW = 2 << 20  # of a directory that is being read
REFUSALS = (FaultClass.MEDIUM, FaultClass.DEVICE)  # of which a medium may be the cause


class VolumeState(enum.Enum):
    """Whether a volume can be used."""

    CLAIMED = "claimed"
    """Opened, its new epoch not yet confirmed: nothing may be written."""
    AVAILABLE = "available"
    READ_ONLY = "read-only"
    FAILED = "failed"
    """Was open; something failed. Reads go on; `reopen` may heal it."""
    CLOSED = "closed"


class Volume:
    """One open volume; made by `Volume.open`.

    Attributes:
        path: file or device.
        target: what the engine writes to.
        superblock: the newest.
        directory: commit evidence; None when opened read only.
        allocator: its space; None until `load_space`.
        state: see `VolumeState`.
        reason: why it failed, or is not current; else empty.
        claimed: whether this opening has written its epoch.
        ahead: reads ahead for `read`; for those alone who know that nobody writes to the volume.
        openings: how often it was opened by this object: regions handed out in an earlier opening cannot be written any more.
    """

    def __init__(self, engine: Engine, path: str) -> None:
        self.engine, self.path = engine, path
        self.target: Target
        self.superblock: Superblock
        self.directory: Directory | None = None
        # While it is reopened: what it had promised is taken over at the end.
        self._former: Directory | None = None
        self.allocator: Allocator | None = None
        self.ahead: ReadAhead | None = None
        self.state = VolumeState.CLOSED
        self.reason = ""
        self.openings = 0
        self.claimed = False
        self._copy = 0
        self._prepared: Directory | None = None  # outcomes are outstanding
        self._books = threading.Lock()  # guards what the directory has charged and promised

    def __repr__(self) -> str:
        return f"<fanout.Volume {self.path!r} {self.state.value}>"

    @property
    def uuid(self) -> bytes:
        """UUID of the volume."""
        return self.superblock.volume

    @property
    def pool(self) -> str:
        """Name of its pool."""
        return self.superblock.pool

    # ---- opening ---------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        engine: Engine,
        path: str | os.PathLike[str],
        *,
        store: bytes,
        pool: str,
        volume: bytes,
        catalog_epoch: int,
        size: int | None = None,
        lock_wait: float = 0.0,
        read_only: bool = False,
        moved: bool = False,
        timeout: float = OPEN_TIMEOUT,
        claim: bool = True,
        on_slow: str = "wait",
        vouched: bool = False,
    ) -> Volume:
        """Open a volume that the catalog knows.

        For writing it is then CLAIMED: record `volume.superblock.epoch` in the catalog, durably, then call `confirm`.

        Args:
            engine: that does the I/O.
            path: file or block device.
            store: UUID of the store.
            pool: name of the pool.
            volume: UUID of the volume.
            catalog_epoch: the epoch that the catalog knows.
            size: of the volume as the catalog knows it: where superblock B lies if A is damaged and the device is larger
                than the volume. None: of the file or device.
            lock_wait: seconds to wait for a lock that somebody else holds.
            read_only: no lock, no claim, no directory.
            moved: the file was moved to another kind of file system on purpose.
            timeout: seconds for the opening.
            claim: False: look only; call `claim` later. Nothing is written until then.
            on_slow: what becomes of it when it holds up its peers; see `Engine.open`.
            vouched: `catalog_epoch` is that of a catalog, which can say what the directory has lost; see `Directory.load`.

        Raises:
            VolumeBusy: another process, or a write of a killed one, holds the lock.
            VolumeForeign: of another store or pool, another volume, no volume, or on another kind of file system.
            VolumeTorn: its superblocks or its directory cannot be trusted.
            VolumeStale: its epoch and the catalog's do not fit; says which is the older one.
            VolumeError: it cannot be opened, read or written.
        """
        made = cls(engine, os.fspath(path))
        made._open(
            store,
            pool,
            volume,
            catalog_epoch,
            lock_wait,
            timeout,
            size=size,
            read_only=read_only,
            moved=moved,
            on_slow=on_slow,
            vouched=vouched,
        )
        if claim and not read_only:
            made.claim(catalog_epoch)
        return made

    def _open(
        self,
        store: bytes,
        pool: str,
        volume: bytes,
        catalog_epoch: int,
        lock_wait: float,
        timeout: float,
        *,
        size: int | None,
        read_only: bool,
        moved: bool = False,
        on_slow: str = "wait",
        vouched: bool = False,
    ) -> None:
        with translated(self.path, "cannot be opened"):
            try:
                self.target = open_target(
                    self.engine,
                    self.path,
                    read_only=read_only,
                    lock=not read_only,
                    lock_wait=lock_wait,
                    timeout=timeout + lock_wait,
                    on_slow=on_slow,
                )
            except TargetError:
                # Of another volume a lock says nothing: it may be our own, where two paths lead to one file.
                if not read_only:
                    self._refuse_another(volume, size, timeout)
                raise
        try:
            with translated(self.path, "cannot be read"):
                self.superblock, self._copy = find_superblock(self.engine, self.target, size)
                self._check_identity(store, pool, volume, moved=moved)
                if not read_only:
                    self._check_epoch(catalog_epoch)
                    self.directory = self._load_directory(vouched=vouched)
        except BaseException:
            self.target.close(timeout=CLOSE_TIMEOUT)
            raise
        self.state = VolumeState.READ_ONLY if read_only else VolumeState.CLAIMED
        self.claimed = False
        self.openings += 1

    def _refuse_another(self, volume: bytes, size: int | None, timeout: float) -> None:
        """Look without a lock whether another volume is there; what cannot be seen so is for the caller to tell."""
        try:
            target = open_target(self.engine, self.path, read_only=True, timeout=timeout)
            try:
                block = find_superblock(self.engine, target, size).superblock
            finally:
                target.close(timeout=CLOSE_TIMEOUT)
        except (TargetError, TimeoutError, VolumeTorn):
            return
        if block.volume != volume:
            raise self._another(block, volume)

    def _another(self, block: Superblock, volume: bytes) -> VolumeForeign:
        message = f"is volume {block.volume.hex()}, the catalog expects {volume.hex()} here"
        return VolumeForeign(self.path, f"{message}: are paths or devices swapped?")

    def _check_identity(self, store: bytes, pool: str, volume: bytes, *, moved: bool) -> None:
        block, geometry = self.superblock, self.target.geometry
        if block.store != store:
            raise VolumeForeign(self.path, f"belongs to store {block.store.hex()}")
        if block.volume != volume:
            raise self._another(block, volume)
        if block.pool != pool:
            raise VolumeForeign(
                self.path, f"is of pool {block.pool}: name it there, not in pool {pool}"
            )
        if max(block.epoch, block.sequence) > fmt.MAX_COUNTER - OPENING_STEPS:
            raise VolumeTorn(self.path, "its epoch or sequence is at its end: damaged")
        if geometry.size < block.size:
            raise VolumeTorn(
                self.path,
                f"was made with {block.size} bytes and has only {geometry.size}: cut off",
            )
        if geometry.granule > block.granule:
            raise VolumeForeign(
                self.path,
                f"was made for writes of {block.granule} bytes; the device now wants "
                f"{geometry.granule}: copy it to a device with smaller sectors",
            )
        kind = 0 if geometry.is_block else geometry.fs_magic
        if kind != block.fs_magic and not moved:
            raise VolumeForeign(
                self.path,
                f"was made on a file system of type {block.fs_magic:#x} and is now on one of type "
                f"{kind:#x}: is everything mounted? If it was moved on purpose, say moved = true in [pools.{pool}]",
            )

    def _check_epoch(self, known: int) -> None:
        block = self.superblock
        if block.epoch == known:
            return
        if block.epoch == known + 1 and block.state is SuperblockState.PROVISIONAL:
            return
        if block.epoch > known:
            raise VolumeStale(
                self.path,
                f"is of epoch {block.epoch}, the catalog knows only {known}: the catalog was "
                "restored from the past; use the newest one, or make it anew with 'fanout rebuild catalog --force'",
                catalog_is_older=True,
            )
        raise VolumeStale(self.path, restored(block.epoch, known))

    def _load_directory(self, *, vouched: bool) -> Directory:
        halves = self._halves(WINDOW, vouched=vouched)
        return Directory.load(self.superblock, halves, path=self.path, vouched=vouched)

    def _halves(self, window: int, *, vouched: bool = False) -> list[_Window]:
        block, size = self.superblock, self.superblock.directory_bytes
        return [
            _Window(self.read, block.half_offset(half), size, window, vouched=vouched)
            for half in (0, 1)
        ]

    def newest_commit(self) -> int:
        """A commit that its directory has heard of, the last one as a rule; 0: it says nothing. Also when opened read only.

        Raises:
            TargetError: it cannot be read.
        """
        return newest_commit(self.superblock, self._halves(0), path=self.path)

    def claim(self, catalog_epoch: int) -> None:
        """Write the new epoch, provisionally, over the older superblock, and flush.

        Raises:
            VolumeError: it could not be written; the volume is closed.
        """
        self._expect(VolumeState.CLAIMED)
        geometry = self.target.geometry
        try:
            self._write_superblock(
                epoch=catalog_epoch + 1,
                state=SuperblockState.PROVISIONAL,
                fs_magic=0 if geometry.is_block else geometry.fs_magic,
                device=geometry.dev,
                inode=geometry.ino,
            )
        except VolumeError:
            self.close()
            raise
        # The flush covered everything that was read at opening, the directory's base too.
        assert self.directory is not None
        self.directory.flushed()
        self.claimed = True

    def confirm(self) -> None:
        """The catalog has recorded the epoch durably: confirm it over the other superblock, and flush.

        The directory is written once more before that flush: what was read of it may lie under an earlier one that failed.
        From here on quarantined regions may be given back (`Allocator.reopened`).

        Raises:
            VolumeError: it could not be written; the volume is FAILED.
        """
        self._expect(VolumeState.CLAIMED)
        if not self.claimed:
            raise InterfaceError(f"{self.path}: confirm before claim")
        try:
            self._affirm_directory()
            self._write_superblock(state=SuperblockState.CONFIRMED)
        except VolumeError as error:
            self.fail(error.message)
            raise
        self.state, self.reason = VolumeState.AVAILABLE, ""

    def _affirm_directory(self) -> None:
        """Write the live half as it was read: the same bytes in the same place, so that a crash in between changes nothing.

        After a failed flush a device, or the page cache, may show what no later flush will write. What the directory is
        believed to hold is not appended again, so it must be on the medium.
        """
        assert self.directory is not None
        with translated(self.path, "directory cannot be written"):
            for offset, end in self.directory.readable():
                for at in range(offset, end, self.engine.slot_size):
                    data = self.engine.read(self.target, at, min(self.engine.slot_size, end - at))
                    self.engine.write(self.target, at, data)

    def overwrite_refused(self) -> bool:
        """Write over blocks of the directory that do not count and that the medium refused to read: that heals a bad sector, as a rule.

        Returns:
            Whether any was written. It is durable with the next flush. Of one that cannot be written the volume fails when it is its turn.
        """
        directory, written = self.directory, False
        if directory is None or directory.holed:
            return False
        for offset in sorted(directory.refused):
            with suppress(TargetError, TimeoutError):
                self.engine.write(self.target, offset, bytes(self.superblock.granule))
                directory.refused.discard(offset)
                written = True
        return written

    def _write_superblock(self, **changes: object) -> None:
        """Write a newer superblock over the older copy; it counts once it is flushed."""
        block = replace(self.superblock, sequence=self.superblock.sequence + 1, **changes)  # type: ignore[arg-type]
        copy = 1 - self._copy
        with translated(self.path, "superblock cannot be written"):
            self.engine.write(
                self.target, block.copy_offset(copy), fmt.encode_superblock(block, copy)
            )
            self.engine.flush(self.target)
        self.superblock, self._copy = block, copy

    def load_space(self, regions: Iterable[tuple[int, int]]) -> None:
        """Build the allocator from the regions that the catalog says are live: (offset, length) each.

        Raises:
            VolumeTorn: they overlap or leave the volume: catalog and volume do not belong together.
        """
        block = self.superblock
        allocator = Allocator(block.space_offset, block.space_length, granule=block.granule)
        live = [(offset, fmt.round_up(length, block.granule)) for offset, length in regions]
        try:
            allocator.adopt(live)
        except ValueError as error:
            raise VolumeTorn(self.path, f"{error}: the catalog contradicts itself") from error
        self.allocator = allocator

    # ---- the directory ---------------------------------------------------------------------------

    def promise(self, offset: int) -> bool:
        """Keep room in the directory for the record of the span at `offset`. False: there is none. Any thread."""
        with self._books:
            return self.directory is not None and self.directory.promise(offset)

    def unpromise(self, offset: int) -> None:
        """The span at `offset` will not be committed. Any thread."""
        with self._books:
            for directory in (self.directory, self._former):
                if directory is not None:
                    directory.unpromise(offset)

    def prepare(self, records: Sequence[DirectoryRecord], *, anew: bool = False) -> list[Request]:
        """The writes that append these records, to be run (with those of other volumes) in one `Engine.run`.

        Hand their outcomes to `written`. When the half is full, or the directory is to be written `anew`, this is a checkpoint, which may have
        to flush first.

        Raises:
            VolumeFull: not even a checkpoint has room.
            VolumeError: the volume has failed, or fails now: in the flush before a checkpoint, or because the last outcomes
                were never handed in. After its reopening `Scribe.catch_up` appends the records.
        """
        if self.state is not VolumeState.AVAILABLE:
            raise VolumeError(self.path, f"is {self.state.value}: {self.reason}")
        directory = self.directory
        assert directory is not None
        if self._prepared is directory:
            self.fail("nobody said what became of the last writes to its directory")
            raise VolumeError(self.path, self.reason)
        try:
            writes = directory.prepare(records, epoch=self.superblock.epoch, anew=anew)
        except CheckpointUnsafe:
            self.flush()
            writes = directory.prepare(records, epoch=self.superblock.epoch, anew=anew)
        self._prepared = directory if writes else None
        return [
            Request(Phase.WRITE, self.target, write.offset, data=write.data) for write in writes
        ]

    def written(self, outcomes: Sequence[Outcome]) -> bool:
        """What became of the writes of `prepare`. False: one failed, and so has the volume.

        Also False when the volume has failed meanwhile, even if it was reopened since: its directory was read again.
        """
        prepared, self._prepared = self._prepared, None
        if self.state is not VolumeState.AVAILABLE or (outcomes and prepared is not self.directory):
            return False
        bad = next((outcome for outcome in outcomes if outcome.code is not OutcomeCode.OK), None)
        if bad is not None:
            retire = f"fanout retire volume --force {shlex.quote(self.path)}"
            self.fail(
                f"its directory cannot be written: {bad}; what it holds can be read. If that stays so, '{retire}' makes what it holds gaps that "
                "can be closed"
            )
            return False
        if prepared is not None:
            with self._books:
                prepared.written()
        return True

    def flush(self) -> None:
        """Make everything that has completed durable, the directory too.

        Raises:
            VolumeError: the flush failed: all since the last good one is unknown, and the volume is FAILED.
        """
        try:
            with translated(self.path, "cannot be flushed"):
                self.engine.flush(self.target)
        except VolumeError as error:
            self.fail(error.message)
            raise
        self.flushed()

    def flushed(self) -> None:
        """A flush of this volume, issued after the last `written`, succeeded."""
        if self.directory is not None:
            self.directory.flushed()

    # ---- failing and coming back -------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether new spans may be written. Notices a target that the engine has given up."""
        if self.state is not VolumeState.AVAILABLE:
            return False
        found = self.target.state
        if found != "active":
            self.fail(f"the engine has given it up: {found}")
            return False
        return True

    def fail(self, reason: str) -> None:
        """Write nothing more until it was reopened. Reads go on."""
        if self.state in (VolumeState.AVAILABLE, VolumeState.CLAIMED):
            self.state, self.reason = VolumeState.FAILED, reason
            if self.directory is not None:
                self.directory.lost()

    def reopen(
        self, *, catalog_epoch: int, lock_wait: float = 0.0, timeout: float = OPEN_TIMEOUT
    ) -> None:
        """Open a failed volume again, on a new description. Then it is CLAIMED: record the epoch, then `confirm`.

        The lock is free only when nothing of the old opening is in flight; that is why quarantined regions may then be given
        back. The directory is read again: a crash or a failed flush may have lost records (see `Scribe.catch_up`).

        Args:
            catalog_epoch: the epoch that the catalog knows.
            lock_wait: seconds to wait for the lock.
            timeout: seconds for the opening.

        Raises:
            VolumeError: as `open`; the volume stays FAILED with the new reason.
        """
        self._expect(VolumeState.FAILED)
        block, directory = self.superblock, self.directory
        self.target.close(timeout=CLOSE_TIMEOUT)
        self._former = directory
        try:
            self._open(
                block.store,
                block.pool,
                block.volume,
                catalog_epoch,
                lock_wait,
                timeout,
                size=block.size,
                read_only=False,
                vouched=True,
            )
            assert self.directory is not None
            if directory is not None:
                with self._books:
                    self.directory.inherit(directory)
            self.claim(catalog_epoch)
        except VolumeError as error:
            self.superblock, self.directory = block, directory
            self.state, self.reason = VolumeState.FAILED, error.message
            raise
        finally:
            self._former = None

    def close(self) -> None:
        """Close without a flush; idempotent. Nothing is lost: what was not flushed is found missing at the next open."""
        if self.state is not VolumeState.CLOSED:
            self.target.close(timeout=CLOSE_TIMEOUT)
            self.state = VolumeState.CLOSED

    def _expect(self, *states: VolumeState) -> None:
        if self.state not in states:
            raise InterfaceError(
                f"{self.path} is {self.state.value}{f' ({self.reason})' if self.reason else ''}, "
                f"must be {' or '.join(state.value for state in states)}"
            )

    # ---- reading ---------------------------------------------------------------------------------

    def read(self, offset: int, length: int, *, ahead: ReadAhead | None = None) -> bytes:
        """Bytes of the volume.

        Args:
            offset: of the first byte.
            length: in bytes.
            ahead: reads them, and what follows; None: the volume's own.

        Raises:
            TargetError: they cannot be read. Of an error of the medium: others can.
            VolumeTorn: they are not on the volume. Nothing is allocated for a length that somebody made up.
            VolumeError: the volume is closed, is being reopened, or gives nothing at all.
        """
        if not 0 <= offset <= offset + length <= self.superblock.size:
            raise VolumeTorn(self.path, f"{length} bytes at {offset} are not on the volume")
        ahead = ahead or self.ahead
        if ahead is None:
            return self._read(offset, length)
        size = self.superblock.size
        return ahead.read(self.uuid, offset, length, size=size, read=self._read)

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return self.engine.read(self.target, offset, length)
        except InterfaceError as error:
            raise VolumeError(self.path, f"cannot be read: {error}") from error
        except TargetError as error:
            if error.outcome.cls in REFUSALS and not self._answers():
                what = f"gives nothing, not even its superblocks: {error.outcome}"
                raise VolumeError(self.path, what) from error
            raise

    def _answers(self) -> bool:
        """Whether it gives bytes that it must have. A device that fails everywhere says nothing of one place."""
        for copy in (0, 1):
            with suppress(TargetError, InterfaceError, TimeoutError):
                self.engine.read(self.target, self.superblock.copy_offset(copy), fmt.BLOCK)
                return True
        return False

    def read_header(self, offset: int, *, ahead: ReadAhead | None = None) -> SpanHeader:
        """The header of the span at `offset`.

        Raises:
            VolumeTorn: none is there, it is damaged, or it was written for another place.
            VolumeForeign: it is of another store.
            TargetError: it cannot be read.
        """
        data = self.read(offset, fmt.HEAD_SIZE, ahead=ahead)
        return fmt.decode_header(
            data, path=self.path, volume=self.uuid, offset=offset, store=self.superblock.store
        )

    def read_span(
        self, span: StoredSpan, *, aggregate: bytes, ahead: ReadAhead | None = None
    ) -> tuple[SpanHeader, SpanFooter]:
        """Header and footer of a span, checked against each other and against what is expected there.

        Raises:
            VolumeTorn: damaged, or another (older) span.
            VolumeForeign: of another store.
            TargetError: it cannot be read.
        """
        if not 0 < span.foot_length <= fmt.MAX_SPAN:
            raise VolumeTorn(self.path, f"span at {span.offset}: no room for a footer")
        if span.data_length < 0 or span.offset % self.superblock.granule:
            raise VolumeTorn(self.path, f"span at {span.offset}: none can be here")
        header = self.read_header(span.offset, ahead=ahead)
        data = self.read(span.foot_offset, span.foot_length, ahead=ahead)
        footer = fmt.decode_footer(
            data, path=self.path, offset=span.foot_offset, store=self.superblock.store
        )
        expected = (aggregate, span.number, span.data_start)
        if (header.aggregate, header.number, header.data_start) != expected:
            raise VolumeTorn(self.path, f"span at {span.offset}: another span is there")
        if not footer.belongs_to(header) or footer.data_length != span.data_length:
            raise VolumeTorn(
                self.path, f"span at {span.offset}: header and footer do not belong together"
            )
        return header, footer


def restored(epoch: int, known: int) -> str:
    """What is wrong with a volume that is older than the catalog."""
    return (
        f"is of epoch {epoch}, the catalog knows {known}: the volume was restored from the past; take it out of its pool "
        "and let the pool be filled again"
    )


class _Window:
    """Bytes of the volume, read a window ahead: a directory of 64 MiB is looked through in pieces. Once one is refused, block by block."""

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        base: int,
        size: int,
        window: int,
        *,
        vouched: bool,
    ) -> None:
        self._read, self._base, self._size, self._window = read, base, size, window
        self._vouched = vouched
        self._at, self._held = 0, b""

    def __getitem__(self, part: slice) -> bytes:
        start, stop = part.start, part.stop
        if not self._at <= start or stop > self._at + len(self._held):
            length = min(max(self._window, stop - start), self._size - start)
            try:
                self._at, self._held = start, self._read(self._base + start, length)
            except TargetError as error:
                if not self._vouched or error.outcome.cls not in REFUSALS:
                    raise
                if length == stop - start:
                    raise BlockRefused from error
                self._window = 0
                return self[start:stop]
        return self._held[start - self._at : stop - self._at]
