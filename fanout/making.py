"""Makes volumes: on a new file, or on a device that holds nothing. Nothing else ever makes one.

::

    locked, empty (or force) ──> both superblocks zero ──> directory ──> superblock B, then A: PROVISIONAL, epoch 1

What it promises:

1. Nothing that is there is overwritten without `force`, and never what somebody has locked.
2. Cut short at any point, it is no volume, or this one.
3. What the volume says of itself is durable before anybody hears of it.
"""

from __future__ import annotations

import itertools
import os
import secrets
import stat
import time
from contextlib import suppress
from dataclasses import replace
from glob import escape
from typing import TYPE_CHECKING

from fanout import format as fmt
from fanout.catalog.locks import sync_directory
from fanout.catalog.rows import VolumeEntry
from fanout.config import DeviceType
from fanout.directory import Directory
from fanout.engine import Request
from fanout.engine.target import is_absent_device
from fanout.errors import FanoutError, TargetError, VolumeError, VolumeForeign
from fanout.format import Superblock, SuperblockState
from fanout.medium import (
    CLOSE_TIMEOUT,
    OPEN_TIMEOUT,
    ends,
    find_superblock,
    nothing_there,
    open_target,
    translated,
)
from fanout.types import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from fanout.config import Config, DeviceClass
    from fanout.config import Pool as PoolConfig
    from fanout.engine import Engine, Geometry, Target

    # Bytes done, and bytes in all.
    Progress = Callable[[int, int], None]

FIRST_EPOCH = 1
PIECE = 8 << 20  # of a volume that is written once while it is made

# Signatures that are worth a name when a device is refused: (offset, bytes, what).
_SIGNATURES = (
    (0, fmt.MAGIC, "a fanout volume"),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0x200, b"EFI PART", "a GPT partition table"),
    (0x1000, b"EFI PART", "a GPT partition table"),
    (0x218, b"LVM2 001", "an LVM physical volume"),
    (0, b"LUKS\xba\xbe", "an encrypted LUKS container"),
    (0xFF6, b"SWAPSPACE2", "swap space"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "a member of an MD array"),
    (0x1FE, b"\x55\xaa", "a partition table or a boot sector"),
)


def create_volume(
    engine: Engine,
    path: str | os.PathLike[str],
    *,
    store: bytes,
    pool: str,
    pool_uuid: bytes,
    size: int | None = None,
    directory_bytes: int | None = None,
    force: bool = False,
    write_once: bool = False,
    on_progress: Progress | None = None,
    now_ns: Callable[[], int] = time.time_ns,
) -> Superblock:
    """Make a volume, and leave it closed.

    A file is made new (0600) and preallocated; a block device must be empty at both ends. What the volume says of itself
    is durable when this returns.

    Args:
        engine: that does the I/O.
        path: file or block device.
        store: UUID of the store.
        pool: name of the pool.
        pool_uuid: its UUID.
        size: in bytes; None: all of the device, or of the file that is there.
        directory_bytes: of one half of the directory; None: 1/128 of the size, 256 KiB to 64 MiB.
        force: take what is there, whatever it holds. Never takes what somebody has locked.
        write_once: write zeros to all of it, so that later writes change no file system metadata.
        on_progress: called with bytes done and bytes in all while writing once.
        now_ns: nanoseconds since 1970.

    Returns:
        The superblock: what the catalog should know.

    Raises:
        VolumeBusy: somebody has it locked.
        VolumeForeign: there is something on it (without `force`).
        VolumeError: it cannot be made or written, or is too small.
    """
    name = os.fspath(path)
    target, made = _open_for_creation(engine, name, size, force=force)
    try:
        superblock = _new_superblock(
            target, name, store=store, pool=pool, pool_uuid=pool_uuid, size=size,
            directory_bytes=directory_bytes, created_ns=now_ns(),
        )  # fmt: skip
        if not made and not force:
            _refuse_what_is_there(engine, target)
        with translated(name, "cannot be made"):
            _lay_out(engine, target, superblock)
            if write_once:
                _write_zeros(engine, target, superblock, on_progress)
    except BaseException:
        target.close(timeout=CLOSE_TIMEOUT)
        if made:
            with suppress(OSError):
                os.unlink(name)
        raise
    target.close(timeout=CLOSE_TIMEOUT)
    return superblock


def probe(engine: Engine, path: str | os.PathLike[str]) -> Superblock | None:
    """What a file or device says of itself, without a lock; None: both its ends are zero.

    Raises:
        VolumeForeign: there is something else on it.
        VolumeTorn: it is a volume whose superblocks cannot be trusted.
        VolumeError: it cannot be opened or read.
    """
    name = os.fspath(path)
    with translated(name, "cannot be opened"):
        target = open_target(engine, name, read_only=True, timeout=OPEN_TIMEOUT)
    try:
        with translated(name, "cannot be read"):
            try:
                return find_superblock(engine, target).superblock
            except VolumeForeign:
                if nothing_there(engine, target):
                    return None
                raise
    finally:
        target.close(timeout=CLOSE_TIMEOUT)


def volume_of_store(
    engine: Engine, path: str | os.PathLike[str], store: bytes
) -> Superblock | None:
    """The volume of that store that is there, as far as can be seen."""
    try:
        block = probe(engine, path)
    except (FanoutError, OSError):
        return None
    return block if block is not None and block.store == store else None


# ---- the volumes of pools --------------------------------------------------------------------------


def create_volumes(
    engine: Engine,
    config: Config,
    *,
    store: bytes,
    pool_uuids: Mapping[str, bytes],
    known: Collection[VolumeEntry] | None = None,
    force: bool = False,
    write_once: bool = False,
    on_written: Callable[[int], None] | None = None,
) -> list[VolumeEntry]:
    """Make the volumes of every pool: all that disk pools list, the first one of each sequential pool that has none.

    Args:
        engine: makes them.
        config: says which.
        store: id, 16 bytes.
        pool_uuids: of every pool.
        known: volumes that the catalog has already: they are left alone, as are files that may have been sequential ones. None: it is
            a new store.
        force: take what is there.
        write_once: write every byte of a new file, so that its first use is as fast as the next ones.
        on_written: called with so many bytes more while writing once.

    Returns:
        What the catalog should know. If one cannot be made, the files made so far are removed again.

    Raises:
        VolumeError: a volume cannot be made, or there is something on it (without `force`).
    """
    made: list[VolumeEntry] = []
    try:
        for pool in config.pools.values():
            kind = config.device_classes[pool.device_class]
            for path, size in _paths_to_create(pool, kind, known):
                made.append(
                    create_entry(
                        engine, path, store=store, pool=pool.name, size=size, force=force,
                        pool_uuid=pool_uuids[pool.name], write_once=write_once, on_written=on_written,
                    )
                )  # fmt: skip
    except BaseException:
        for entry in made:
            if not entry.is_block:
                with suppress(OSError):
                    os.unlink(entry.path)
        raise
    return made


def create_entry(
    engine: Engine,
    path: Path,
    *,
    store: bytes,
    pool: str,
    pool_uuid: bytes,
    size: int | None,
    force: bool,
    write_once: bool = False,
    on_written: Callable[[int], None] | None = None,
) -> VolumeEntry:
    """Make a volume; returns what the catalog should know. Arguments and errors as for `create_volume`."""
    written = 0

    def progress(done: int, _: int) -> None:
        nonlocal written
        if on_written is not None:
            on_written(done - written)
        written = done

    block = create_volume(
        engine, path, store=store, pool=pool, pool_uuid=pool_uuid, size=size, force=force,
        write_once=write_once, on_progress=progress,
    )  # fmt: skip
    return entry_of(block, str(path))


def entry_of(block: Superblock, path: str) -> VolumeEntry:
    """What the catalog should know of a volume."""
    return VolumeEntry(
        volume=block.volume,
        pool=block.pool,
        path=path,
        size=block.size,
        granule=block.granule,
        epoch=block.epoch,
        device=block.device,
        inode=block.inode,
        is_block=block.block_device,
    )


def sequential_name(pool: str, number: int) -> str:
    """Name of the file of a sequential pool's volume."""
    return f"{pool}.{number:05d}.fanout"


def sequence_number(path: str) -> tuple[str, int]:
    """Sorts the volumes of a sequential pool in the order in which they were made."""
    parts = os.path.basename(path).split(".")
    if len(parts) >= 3 and parts[-2].isdecimal():
        return "", int(parts[-2])
    return path, 0


def file_numbers(pool: str, directory: Path) -> list[int]:
    """Numbers of the files that are named like sequential volumes of a pool: a volume that was given up may have come back.

    Raises:
        OSError: the directory cannot be read.
    """
    return sorted({sequence_number(path)[1] for path in _sequential_files(pool, directory)})


def _sequential_files(pool: str, directory: Path) -> list[str]:
    """Those files, by number. Of pools A and A.B each has its own."""
    files = map(str, directory.glob(f"{escape(pool)}.*.fanout"))
    mine = (path for path in files if os.path.basename(path).count(".") == pool.count(".") + 2)
    return sorted(mine, key=lambda path: (len(path), path))


def volume_sites(config: Config) -> Iterator[tuple[str, str]]:
    """Pool and path of every volume of a configuration that may be there, as far as can be seen."""
    for pool in config.pools.values():
        for spec in pool.volumes:
            yield pool.name, str(spec.path)
        kind = config.device_classes[pool.device_class]
        if kind.type is DeviceType.FILE and kind.directory is not None:
            found: list[str] = []
            with suppress(OSError):  # a mount that has died
                found = _sequential_files(pool.name, kind.directory)
            yield from ((pool.name, path) for path in found)


def private_directory(path: Path) -> None:
    """Make a directory, and what is missing above it, open to nobody else; durable when this returns. What is there stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    missing = list(itertools.takewhile(lambda one: not one.exists(), (path, *path.parents)))
    for one in reversed(missing):
        one.mkdir(0o700, exist_ok=True)
    # One that is there may have been made by somebody who was killed just then; if not by us, we may have no right to look.
    with suppress(PermissionError):
        for one in missing or [path]:
            sync_directory(str(one))


def _paths_to_create(
    pool: PoolConfig, kind: DeviceClass, known: Collection[VolumeEntry] | None
) -> Iterator[tuple[Path, int | None]]:
    paths = {entry.path for entry in known or ()}
    for spec in pool.volumes:
        if str(spec.path) not in paths:  # what is there may have died, and is left alone
            private_directory(spec.path.parent)
            yield spec.path, spec.size
    if kind.type is DeviceType.FILE and all(entry.pool != pool.name for entry in known or ()):
        assert kind.directory is not None
        private_directory(kind.directory)
        there = [] if known is None else file_numbers(pool.name, kind.directory)
        number = 1 + max(there, default=0)
        yield kind.directory / sequential_name(pool.name, number), kind.volume_size


# ---- the steps -------------------------------------------------------------------------------------


def _open_for_creation(
    engine: Engine, path: str, size: int | None, *, force: bool
) -> tuple[Target, bool]:
    """The target of a volume to be made, locked, and whether the file was made just now."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if size is None:
            raise VolumeError(path, _how_to_make(path)) from None
        with translated(path, "cannot be made"):
            return _made_anew(engine, path, size), True
    except OSError as error:
        raise VolumeError(path, f"cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise VolumeForeign(path, "is neither a regular file nor a block device")
    if stat.S_ISREG(mode) and not force:
        raise VolumeForeign(path, "there is a file already; --force takes it and all that is in it")
    with translated(path, "cannot be opened"):
        preallocated = (size or 0) if stat.S_ISREG(mode) else 0
        # Who made the file may have been killed before its name was durable.
        target = open_target(
            engine, path, lock=True, named=True, size=preallocated, timeout=OPEN_TIMEOUT
        )
        return target, False


def _how_to_make(path: str) -> str:
    if is_absent_device(path):
        return "there is no such device: is it plugged in, is the path right?"
    return 'does not exist; say how large it should be (size = "10 GiB"), or make it first'


def _made_anew(engine: Engine, path: str, size: int) -> Target:
    """A new file. One that cannot have its space is removed: on a full disk each try would take some of what is left."""
    try:
        return engine.open(path, create=True, lock=True, size=size, timeout=OPEN_TIMEOUT)
    except TargetError as error:
        if error.outcome.phase is not Phase.OPEN:  # it was made, and by us
            with suppress(OSError):
                os.unlink(path)
        raise


def _new_superblock(
    target: Target,
    path: str,
    *,
    store: bytes,
    pool: str,
    pool_uuid: bytes,
    size: int | None,
    directory_bytes: int | None,
    created_ns: int,
) -> Superblock:
    geometry: Geometry = target.geometry
    granule = max(fmt.BLOCK, geometry.granule)
    wanted = geometry.size if size is None else size
    # A file grows to its superblock B where the file system cannot preallocate; a device does not.
    if geometry.is_block and wanted > geometry.size:
        raise VolumeError(path, f"has {geometry.size} bytes, {wanted} were asked for")
    wanted -= wanted % granule
    if directory_bytes is None:
        directory_bytes = fmt.default_directory_bytes(wanted, granule)
    wrong = fmt.layout_error(wanted, granule, directory_bytes)
    if wrong:
        raise VolumeError(path, f"cannot be made: {wrong}")
    return Superblock(
        store=store,
        volume=secrets.token_bytes(16),
        pool_uuid=pool_uuid,
        pool=pool,
        epoch=FIRST_EPOCH,
        sequence=1,
        size=wanted,
        granule=granule,
        directory_bytes=directory_bytes,
        state=SuperblockState.PROVISIONAL,
        block_device=geometry.is_block,
        created_ns=created_ns,
        fs_magic=0 if geometry.is_block else geometry.fs_magic,
        device=geometry.dev,
        inode=geometry.ino,
    )


def _refuse_what_is_there(engine: Engine, target: Target) -> None:
    """Raise unless both ends of a device hold nothing but zeros."""
    with translated(target.path, "cannot be read"):
        first, last = ends(engine, target)
    if not any(first) and not any(last):
        return
    what = next(
        (what for at, magic, what in _SIGNATURES if first[at : at + len(magic)] == magic),
        "something (its ends are not zero)",
    )
    raise VolumeForeign(target.path, f"there is {what} on it; --force destroys it")


def _lay_out(engine: Engine, target: Target, block: Superblock) -> None:
    """Write an empty volume. Cut short at any point, it is no volume, or this one."""
    nothing = bytes(block.granule)
    engine.write(target, block.copy_offset(0), nothing)
    engine.write(target, block.copy_offset(1), nothing)
    engine.flush(target)
    first = Directory.first_block(block)
    engine.write(target, first.offset, first.data)
    engine.flush(target)
    for copy in (1, 0):
        newer = replace(block, sequence=2 - copy)
        engine.write(target, block.copy_offset(copy), fmt.encode_superblock(newer, copy))
        engine.flush(target)
    for outcome in engine.run([Request(Phase.DIRSYNC, target)]):
        if not outcome.ok:
            raise TargetError(target.path, outcome)


def _write_zeros(
    engine: Engine, target: Target, block: Superblock, on_progress: Progress | None
) -> None:
    zeros = bytes(PIECE)
    end = block.space_offset + block.space_length
    for at in range(block.space_offset, end, PIECE):
        length = min(PIECE, end - at)
        engine.write(target, at, memoryview(zeros)[:length])
        if on_progress is not None:
            on_progress(at + length - block.space_offset, block.space_length)
    engine.flush(target)
