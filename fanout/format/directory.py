"""Directory blocks: what holds the records of a volume's directory, and where in it each stands."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fanout.format.blocks import PREFIX, SUM, Where, opened, prefix, sealed, version_of
from fanout.format.records import LEAST_RECORD, RecordPart, checked_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fanout.format.blocks import Buffer
    from fanout.format.superblock import Superblock


_DIRECTORY = struct.Struct("<16sQQQIIIIII")
DIRECTORY_HEAD = PREFIX + _DIRECTORY.size
assert DIRECTORY_HEAD == 112


def record_room(granule: int) -> int:
    """Bytes of records that one directory block holds."""
    return granule - DIRECTORY_HEAD - SUM


def pack_blocks(parts: Iterable[bytes], room: int) -> list[list[bytes]]:
    """Share encoded parts among blocks of `room` bytes, in order."""
    blocks: list[list[bytes]] = []
    free = 0
    for part in parts:
        if len(part) > free:
            blocks.append([])
            free = room
        blocks[-1].append(part)
        free -= len(part)
    return blocks


class BlockPlace(NamedTuple):
    """Where in a directory a block stands.

    Attributes:
        epoch: of the opening that writes it.
        generation: of the use of the half.
        sequence: counts the blocks written to this directory.
        half: 0 or 1.
        number: index in the half.
        base_blocks: how many first blocks of this generation are its checkpoint.
    """

    epoch: int
    generation: int
    sequence: int
    half: int
    number: int
    base_blocks: int


@dataclass(frozen=True, slots=True)
class DirectoryBlock:
    """A decoded directory block."""

    place: BlockPlace
    parts: tuple[RecordPart, ...]


def encode_block(superblock: Superblock, place: BlockPlace, parts: Sequence[bytes]) -> bytes:
    """One granule of directory; `parts` are encoded records that fit (see `pack_blocks`)."""
    offset = superblock.half_offset(place.half) + place.number * superblock.granule
    records = b"".join(parts)
    body = prefix(b"DIRB", superblock.granule, offset, superblock.store) + _DIRECTORY.pack(
        superblock.volume, *place, len(parts), len(records), 0
    )
    return sealed(body + records, superblock.granule)


def decode_place(
    data: Buffer, superblock: Superblock, *, path: str, half: int, number: int
) -> BlockPlace:
    """What the directory block at `number` of `half` says of itself, its sum checked, without its records.

    Raises:
        VolumeTorn: it is none, torn, or of another place.
        VolumeForeign: it is of another volume or store, or needs a newer reader.
    """
    granule = superblock.granule
    offset = superblock.half_offset(half) + number * granule
    where = Where(path, "directory block", offset)
    body = opened(data, where, kind=b"DIRB", length=granule, offset=offset, store=superblock.store)
    volume, *said, count, used, _ = _DIRECTORY.unpack_from(body, PREFIX)
    place = BlockPlace(*said)
    if volume != superblock.volume:
        raise where.foreign(f"belongs to volume {volume.hex()}")
    if (place.half, place.number) != (half, number):
        raise where.torn("half and index contradict its offset")
    blocks = superblock.directory_bytes // granule
    if not 1 <= place.base_blocks <= blocks or place.generation < 1:
        raise where.torn("base or generation out of range")
    where.counter("an epoch, generation or sequence", *place[:3])
    if used > record_room(granule) or count * LEAST_RECORD > used:
        raise where.torn(f"{count} records of {used} bytes cannot be")
    return place


def decode_block(
    data: Buffer, superblock: Superblock, *, path: str, half: int, number: int
) -> DirectoryBlock:
    """The directory block that was read at `number` of `half`, with its records.

    Raises:
        VolumeTorn: it is none, torn, of another place, or of an epoch that the superblock does not know.
        VolumeForeign: it is of another volume or store, or needs a newer reader.
    """
    place = decode_place(data, superblock, path=path, half=half, number=number)
    where = Where(
        path, "directory block", superblock.half_offset(half) + number * superblock.granule
    )
    if place.epoch > superblock.epoch:
        raise where.torn(
            f"its epoch is {place.epoch}, the superblock knows only {superblock.epoch}"
        )
    count, used = _DIRECTORY.unpack_from(data, PREFIX)[-3:-1]
    records = bytes(memoryview(data).cast("B")[DIRECTORY_HEAD : DIRECTORY_HEAD + used])
    return DirectoryBlock(place, checked_parts(records, count, where, version=version_of(data)))
