"""The superblock: what a volume is, and how often it was opened. One at either end, the newer one wins."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.errors import InterfaceError
from fanout.format.blocks import (
    BLOCK,
    MAGIC,
    MAX_COUNTER,
    MAX_GRANULE,
    MAX_NUMBER,
    MAX_POOL_NAME,
    PREFIX,
    UUID,
    Where,
    granule_ok,
    opened,
    prefix,
    round_up,
    sealed,
)

if TYPE_CHECKING:
    from fanout.format.blocks import Buffer


MIN_DIRECTORY, MAX_DIRECTORY = 256 << 10, 64 << 20  # one half

_SUPER = struct.Struct("<16s16sQQQIIQQQQIIQQQQH6x120s")
assert PREFIX + _SUPER.size == 312
_BLOCK_DEVICE = 1


class SuperblockState(enum.IntEnum):
    """Whether the catalog is known to have recorded the epoch."""

    PROVISIONAL = 1
    CONFIRMED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """Who a volume is, and which opening of it is the latest.

    Attributes:
        store: UUID of the store.
        volume: UUID of the volume.
        pool_uuid: UUID of the pool.
        pool: its name.
        epoch: counts openings for writing.
        sequence: counts writes of superblocks; of two the higher one is newer.
        size: of the volume in bytes.
        granule: in bytes.
        directory_bytes: of one half.
        state: whether anything else may have been written in this epoch.
        block_device: made on a block device.
        created_ns: since 1970.
        fs_magic: of the file system that holds the file; 0 on a block device.
        device: device number when last opened for writing.
        inode: the same.
    """

    store: bytes
    volume: bytes
    pool_uuid: bytes
    pool: str
    epoch: int
    sequence: int
    size: int
    granule: int
    directory_bytes: int
    state: SuperblockState
    block_device: bool = False
    created_ns: int = 0
    fs_magic: int = 0
    device: int = 0
    inode: int = 0

    @property
    def space_offset(self) -> int:
        """First byte that spans may use."""
        return self.granule + 2 * self.directory_bytes

    @property
    def space_length(self) -> int:
        """Bytes that spans may use."""
        return self.size - self.granule - self.space_offset

    def half_offset(self, half: int) -> int:
        """Where a half of the directory begins."""
        return self.granule + half * self.directory_bytes

    def copy_offset(self, copy: int) -> int:
        """Where copy 0 (A) or 1 (B) of the superblock lies."""
        return self.size - self.granule if copy else 0


def default_directory_bytes(size: int, granule: int) -> int:
    """Bytes of one half of the directory of a volume of `size` bytes, when nobody chose: 1/128 of it, bounded."""
    return round_up(min(max(size // 128, MIN_DIRECTORY), MAX_DIRECTORY), granule)


def layout_error(size: int, granule: int, directory_bytes: int) -> str | None:
    """What is wrong with the geometry of a volume; None: nothing."""
    if not granule_ok(granule):
        return f"granule {granule} is not a power of two from {BLOCK} to {MAX_GRANULE}"
    if directory_bytes % granule or not 2 * granule <= directory_bytes <= MAX_DIRECTORY:
        return f"directory of {directory_bytes} bytes is not a multiple of {granule} up to {MAX_DIRECTORY}"
    if size % granule or not 0 < size < 1 << 63:
        return f"size {size} is not a multiple of {granule}"
    if size < 2 * directory_bytes + 4 * granule:
        return f"size {size} leaves no space beside a directory of 2 x {directory_bytes} bytes"
    return None


def encode_superblock(block: Superblock, copy: int) -> bytes:
    """One granule: the superblock as copy 0 (A) or 1 (B), and zeros.

    Raises:
        InterfaceError: the geometry or the pool's name cannot be written.
    """
    wrong = layout_error(block.size, block.granule, block.directory_bytes)
    name = block.pool.encode()
    if wrong is None and not 0 < len(name) <= MAX_POOL_NAME:
        wrong = f"pool name of {len(name)} bytes, allowed are 1 to {MAX_POOL_NAME}"
    if wrong is None and (
        max(block.epoch, block.sequence) > MAX_COUNTER or block.created_ns > MAX_NUMBER
    ):
        wrong = "an epoch, sequence or time is out of range"
    if wrong:
        raise InterfaceError(f"superblock: {wrong}")
    body = prefix(b"SUPR", BLOCK, block.copy_offset(copy), block.store) + _SUPER.pack(
        block.volume,
        block.pool_uuid,
        block.epoch,
        block.sequence,
        block.size,
        block.granule,
        copy,
        block.half_offset(0),
        block.directory_bytes,
        block.space_offset,
        block.space_length,
        block.state,
        _BLOCK_DEVICE if block.block_device else 0,
        block.created_ns,
        block.fs_magic,
        block.device,
        block.inode,
        len(name),
        name,
    )
    return sealed(body, BLOCK).ljust(block.granule, b"\0")


def decode_superblock(data: Buffer, *, path: str, offset: int) -> Superblock:
    """The superblock that was read at `offset`.

    Raises:
        VolumeForeign: nothing of fanout is here, or it needs a newer reader.
        VolumeTorn: a superblock is here but cannot be trusted.
    """
    where = Where(path, "superblock", offset)
    view = memoryview(data).cast("B")
    if bytes(view[:8]) != MAGIC:
        raise where.foreign("there is none (no magic number)")
    body = opened(view, where, kind=b"SUPR", length=BLOCK, offset=offset, store=None)
    (
        volume, pool_uuid, epoch, sequence, size, granule, copy, directory_offset, directory_bytes,
        space_offset, space_length, state, flags, created_ns, fs_magic, device, inode,
        name_length, name,
    ) = _SUPER.unpack_from(body, PREFIX)  # fmt: skip
    wrong = layout_error(size, granule, directory_bytes)
    if wrong:
        raise where.torn(wrong)
    if not 0 < name_length <= MAX_POOL_NAME or copy > 1:
        raise where.torn("a field is out of range")
    where.counter("an epoch or sequence", epoch, sequence)
    where.number("a time", created_ns)
    if state not in (SuperblockState.PROVISIONAL, SuperblockState.CONFIRMED):
        raise where.torn(f"state {state} is unknown")
    block = Superblock(
        store=bytes(body[PREFIX - UUID : PREFIX]),
        volume=volume,
        pool_uuid=pool_uuid,
        pool=where.text(name[:name_length], "the pool's name"),
        epoch=epoch,
        sequence=sequence,
        size=size,
        granule=granule,
        directory_bytes=directory_bytes,
        state=SuperblockState(state),
        block_device=bool(flags & _BLOCK_DEVICE),
        created_ns=created_ns,
        fs_magic=fs_magic,
        device=device,
        inode=inode,
    )
    derived = (
        block.half_offset(0),
        block.space_offset,
        block.space_length,
        block.copy_offset(copy),
    )
    if derived != (directory_offset, space_offset, space_length, offset):
        raise where.torn("its offsets contradict each other")
    return block
