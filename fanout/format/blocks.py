"""What all blocks have in common: the first 48 bytes, the sum at the end, the bounds of everything that is read as a size.

The tables are in docs/on-disk-format.md, "What every block has in common" and "Limits".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from fanout.errors import VolumeForeign, VolumeTorn

if TYPE_CHECKING:
    # What struct, memoryview and xxhash all take.
    Buffer = bytes | bytearray | memoryview

FORMAT_VERSION = 2
READER_VERSION = 2  # what this package can read
# What a block that we write demands of its reader. Since version 2 directory records say more, and superblocks keep readers away that
# would not understand them; spans are as they were.
MINIMUM_READER = {b"SUPR": 2, b"DIRB": 2, b"HEAD": 1, b"FOOT": 1}

MAGIC = b"\x89FNOUT\r\n"

BLOCK = 4096  # superblocks, span headers; the smallest granule
MAX_GRANULE = 1 << 20
MAX_SPAN = 1 << 30
MAX_POOL_NAME = 120  # bytes of UTF-8
MAX_NAME = 1024  # bytes
MAX_COUNTER = (
    1 << 62
)  # epochs, sequences, generations, commits: nobody counts so far, larger means damage
MAX_NUMBER = (1 << 63) - 1  # offsets, lengths and times: what a database and a file offset can hold

UUID = 16
SUM = 8

PREFIX_FIELDS = struct.Struct("<8s4sHHQQ16s")
SUM_FIELD = struct.Struct("<Q")
PREFIX = PREFIX_FIELDS.size
assert PREFIX == 48


def sum64(data: Buffer) -> int:
    """XXH3-64 of the bytes, the sum of every block and record."""
    return xxhash.xxh3_64_intdigest(data)


def round_up(value: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


class Where(NamedTuple):
    """Names the place in every error of one decode."""

    path: str
    what: str
    offset: int

    def torn(self, reason: str) -> VolumeTorn:
        """The error of a block that cannot be trusted."""
        return VolumeTorn(self.path, f"{self.what} at {self.offset}: {reason}")

    def foreign(self, reason: str) -> VolumeForeign:
        """The error of an intact block that is not ours to read."""
        return VolumeForeign(self.path, f"{self.what} at {self.offset}: {reason}")

    def counter(self, name: str, *values: int) -> None:
        """Refuse a counter that nobody can have reached: the next step would not fit its field."""
        if max(values) > MAX_COUNTER:
            raise self.torn(f"{name} of {max(values)} cannot be")

    def number(self, name: str, *values: int) -> None:
        """Refuse an offset, an end or a time that nothing else can hold."""
        if max(values) > MAX_NUMBER:
            raise self.torn(f"{name} of {max(values)} cannot be")

    def text(self, raw: bytes, name: str) -> str:
        """Bytes of the media as text. Raises `VolumeTorn` when they are not UTF-8."""
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.torn(f"{name} is not UTF-8") from error


def prefix(kind: bytes, length: int, offset: int, store: bytes) -> bytes:
    """The first 48 bytes of a block."""
    reader = MINIMUM_READER[kind]
    return PREFIX_FIELDS.pack(MAGIC, kind, FORMAT_VERSION, reader, length, offset, store)


def version_of(data: Buffer) -> int:
    """The format version of a block that was checked."""
    version: int = PREFIX_FIELDS.unpack_from(data)[2]
    return version


def sealed(body: bytes, length: int) -> bytes:
    """The body padded with zeros to `length`, its last eight bytes being the sum."""
    body = body.ljust(length - SUM, b"\0")
    assert len(body) == length - SUM, "a block's content is larger than the block"
    return body + SUM_FIELD.pack(sum64(body))


def opened(
    data: Buffer, where: Where, *, kind: bytes, length: int, offset: int, store: bytes | None
) -> memoryview:
    """The checked bytes of a block, sum excluded. `length` is what its type demands."""
    view = memoryview(data).cast("B")
    if len(view) < length or length < PREFIX + SUM:
        raise where.torn(f"only {len(view)} bytes of {length}")
    magic, found, _, reader, said, own, owner = PREFIX_FIELDS.unpack_from(view)
    if magic != MAGIC or found != kind:
        raise where.torn("holds something else (no magic number)")
    if said != length:
        raise where.torn(f"says it is {said} bytes long, must be {length}")
    body = view[: length - SUM]
    if SUM_FIELD.unpack_from(view, length - SUM)[0] != sum64(body):
        raise where.torn("its sum is wrong: torn or damaged")
    if reader > READER_VERSION:
        raise where.foreign(
            f"needs a reader of format {reader}, this fanout reads up to {READER_VERSION}: upgrade"
        )
    if own != offset:
        raise where.torn(f"was written for offset {own}: misdirected")
    if store is not None and owner != store:
        raise where.foreign(f"belongs to store {owner.hex()}, not to {store.hex()}")
    return body


def granule_ok(granule: int) -> bool:
    """Whether a volume may have it: a power of two within bounds."""
    return BLOCK <= granule <= MAX_GRANULE and granule & (granule - 1) == 0
