"""Makes blocks that lie: fields changed where docs/on-disk-format.md says that they are, and sums that fit again.

A random change fails at the sum, and what is behind the sum is never reached. So a forger changes whole fields, to values that are
interesting to somebody who believes them, and seals the block anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    import random

PAGE = Path(__file__).parents[2] / "docs" / "on-disk-format.md"

# What a field is set to: limits of widths, of the format, and of what has to hold the numbers later.
VALUES = (
    *(0, 1, 2, 3, 7, 8, 23, 24, 55, 56, 71, 72, 79, 80, 111, 112, 119, 120, 121, 143, 144, 255, 256),
    *(511, 512, 1023, 1024, 1025, 4087, 4088, 4095, 4096, 4097, 8192, 65535, 65536, 1 << 20, 1 << 24),
    *((1 << 30) - 1, 1 << 30, (1 << 30) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    *((1 << 62) - 1, 1 << 62, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)  # fmt: skip


def fields(heading: str, table: int = 0) -> tuple[tuple[int, int], ...]:
    """(offset, bytes) of the fields of fixed place in a table of the format page."""
    text = PAGE.read_text(encoding="utf-8")
    section = text.split(f"\n{heading}", 1)[1].split("\n#", 1)[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    found = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \|", tables[table], re.MULTILINE)
    made = tuple((int(at.replace(",", "")), int(size.replace(",", ""))) for at, size in found)
    assert made, f"the format page has no such table: {heading}"
    return made


PREFIX = fields("### What every block has in common")
FIELDS = {
    b"SUPR": (*PREFIX, *fields("## Superblock")),
    b"DIRB": (*PREFIX, *fields("### Directory block")),
    b"HEAD": (*PREFIX, *fields("### Header")),
    b"FOOT": (*PREFIX, *fields("### Footer")),
}
RECORD, STORED_SPAN = fields("### Directory record"), fields("### Directory record", 1)
PLACE, FRAGMENT = fields("### Header", 1), fields("### Footer", 1)
# Where tables of repeated entries begin in a block, and the fields of an entry. Those of records are found by walking.
TABLES = {b"HEAD": (120, 32, PLACE), b"FOOT": (144, 40, FRAGMENT)}


def number(data: bytes | bytearray, at: int, size: int) -> int:
    """A field's value."""
    return int.from_bytes(data[at : at + size], "little")


def put(data: bytearray, at: int, size: int, value: int) -> None:
    """Set a field."""
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def seal(data: bytearray) -> None:
    """Make the sums right again: of the records of a directory block, then of the block."""
    if data[8:12] == b"DIRB":
        for at, length in records(data):
            put(data, at + length - 8, 8, xxhash.xxh3_64_intdigest(data[at : at + length - 8]))
    length = number(data, 16, 8)
    if not 56 <= length <= len(data):
        length = len(data)  # of a lie about the length the sum does not matter
    put(data, length - 8, 8, xxhash.xxh3_64_intdigest(data[: length - 8]))


def records(data: bytes | bytearray) -> list[tuple[int, int]]:
    """(offset, length) of the records of a directory block, as far as their lengths make sense."""
    found, at = [], 112
    for _ in range(min(number(data, 100, 4), len(data) // 96)):
        length = number(data, at, 4)
        if not 96 <= length <= len(data) - 8 - at:
            break
        found.append((at, length))
        at += length
    return found


def places(data: bytes | bytearray) -> list[tuple[int, int]]:
    """(offset, bytes) of every field of a block, those of its tables too."""
    kind = bytes(data[8:12])
    found = list(FIELDS.get(kind, PREFIX))
    if kind == b"DIRB":
        for at, length in records(data):
            found += [(at + offset, size) for offset, size in RECORD]
            spans = at + 88 + data[at + 7]
            end = min(at + length - 8, spans + 48 * number(data, at + 64, 4))
            for span in range(spans, end, 48):
                found += [(span + offset, size) for offset, size in STORED_SPAN]
            found += [(item, 4) for item in range(end, at + length - 8, 4)]
    elif kind in TABLES:
        start, step, table = TABLES[kind]
        count = number(data, *((108, 2) if kind == b"HEAD" else (116, 4)))
        for entry in range(start, start + step * min(count, 64), step):
            found += [(entry + offset, size) for offset, size in table]
        found += [(start + step * count + n, 1) for n in range(64)]
    return [(at, size) for at, size in found if at + size <= len(data)]


def forge(data: bytes, rng: random.Random) -> bytes:
    """The block with one to three of its fields changed, and sums that fit."""
    made = bytearray(data)
    spots = places(made)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, size = rng.choice(spots)
        old = number(made, at, size)
        put(made, at, size, _value(rng, old, size, number(made, *rng.choice(spots))))
    seal(made)
    return bytes(made)


def _value(rng: random.Random, old: int, size: int, other: int) -> int:
    """A new value for a field of `size` bytes that holds `old`; `other` is what another field holds."""
    way = rng.randrange(4)
    if way == 0:
        return rng.choice(VALUES)
    if way == 1:
        return old + rng.choice((-4096, -8, -1, 1, 8, 4096))
    return other if way == 2 else rng.getrandbits(8 * min(size, 16))


def torn(first: bytes, second: bytes, rng: random.Random, *, sector: int = 512) -> bytes:
    """Sectors of both, at random, as a power cut leaves them; never one of the two."""
    size = max(len(first), len(second))
    first, second = first.ljust(size, b"\0"), second.ljust(size, b"\0")
    while True:
        made = bytearray(first)
        for at in range(0, size, sector):
            if rng.random() < 0.5:
                made[at : at + sector] = second[at : at + sector]
        if bytes(made) not in (first, second) or first == second:
            return bytes(made)
