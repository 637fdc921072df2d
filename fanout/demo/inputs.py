"""Real input: files found on this machine, in the same choice every time, and one large generated file.

Digests are computed here with python-xxhash over plain reads, so that what fanout says about the
same bytes can be compared with what other hands have computed.
"""

from __future__ import annotations

import itertools
import os
import random
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from fanout.errors import SourceError
from fanout.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

ROOTS = ("/usr/share", "/usr/lib", "/usr/bin", "/usr/include", "/usr/libexec", "/usr/local", "/opt")
GROUPS = ("A", "B", "C", "D")
LARGE_NAME = "E"

SMALL_BYTES = 64 << 10
LARGEST_BYTES = 16 << 20
# In number a third are small files, in bytes most are large, as in real trees. More small ones would
# only lengthen the read-back; they are taken when there are not enough others.
SMALL_FILES = 480
# Walking stops as soon as there is plenty to choose from.
PLENTY = 4

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Input:
    """One object to store.

    Attributes:
        name: of the object, such as ``b"A/usr/share/dict/words"``.
        path: the file that holds its bytes.
        length: bytes.
        digest: XXH3-128 (canonical, 16 bytes) by python-xxhash.
    """

    name: bytes
    path: str
    length: int
    digest: bytes

    @property
    def group(self) -> str:
        """A, B, C, D, or E."""
        return os.fsdecode(self.name).partition("/")[0]


@dataclass(frozen=True, slots=True)
class Inputs:
    """All objects, by group."""

    groups: dict[str, tuple[Input, ...]]

    def of(self, *groups: str) -> tuple[Input, ...]:
        """The objects of some groups, in order."""
        return tuple(one for group in groups for one in self.groups[group])

    def bytes_of(self, *groups: str) -> int:
        """How many bytes they are together."""
        return sum(one.length for one in self.of(*groups))


def choose(
    *,
    total_bytes: int,
    roots: Sequence[str] = ROOTS,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, tuple[Input, ...]]:
    """Choose real files for groups A to D, about the same number of bytes each.

    The choice depends on the paths alone: candidates are taken in the order of a digest of their
    path, which mixes directories and kinds of file, and is the same at every run on a machine
    that has not changed.

    Args:
        total_bytes: at least this much altogether.
        roots: directories to look in; missing ones are skipped.
        on_progress: told how many bytes have been read since the last call.

    Raises:
        SourceError: there are too few files.
    """
    wanted = -(-total_bytes // len(GROUPS))
    chosen: dict[str, list[Input]] = {group: [] for group in GROUPS}
    held = dict.fromkeys(GROUPS, 0)
    for path, _ in _in_order(_candidates(roots, PLENTY * total_bytes)):
        group = min(GROUPS, key=held.__getitem__)
        if held[group] >= wanted:
            break
        try:
            length, digest = digest_file(path)
        except OSError:
            continue  # unreadable, or gone meanwhile
        name = os.fsencode(f"{group}/{path.lstrip('/')}")
        chosen[group].append(Input(name, path, length, digest))
        held[group] += length
        if on_progress:
            on_progress(length)
    if min(held.values()) < wanted:
        raise SourceError(
            f"found {format_size(sum(held.values()))} of usable files under {', '.join(roots)}, "
            f"but the demo needs {format_size(total_bytes)}; name a larger tree with --input"
        )
    return {group: tuple(files) for group, files in chosen.items()}


def generate(path: str, length: int, *, seed: int = 5) -> Input:
    """Make the large file: seeded random bytes, which no device can compress away."""
    block = random.Random(seed).randbytes(_READ_BYTES)
    digest = xxhash.xxh3_128()
    with open(path, "xb") as file:
        for start in range(0, length, len(block)):
            # A stamp in each block, so that no two are equal and a misplaced one is noticed.
            piece = (start.to_bytes(8, "little") + block[8:])[: length - start]
            digest.update(piece)
            file.write(piece)
    return Input(os.fsencode(LARGE_NAME), path, length, digest.digest())


def digest_file(path: str) -> tuple[int, bytes]:
    """Length and XXH3-128 of a file, by python-xxhash."""
    digest, length = xxhash.xxh3_128(), 0
    with open(path, "rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            length += len(piece)
    return length, digest.digest()


def digest_of(pieces: Iterable[bytes | bytearray | memoryview]) -> tuple[int, bytes]:
    """Length and XXH3-128 of bytes in pieces, by python-xxhash."""
    digest, length = xxhash.xxh3_128(), 0
    for piece in pieces:
        digest.update(piece)
        length += len(piece)
    return length, digest.digest()


def _in_order(candidates: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """By the digest of their path; small files beyond the first few come last."""
    first: list[tuple[str, int]] = []
    last: list[tuple[str, int]] = []
    small = 0
    for path, size in sorted(candidates, key=lambda one: xxhash.xxh64_digest(os.fsencode(one[0]))):
        small += size < SMALL_BYTES
        (last if size < SMALL_BYTES and small > SMALL_FILES else first).append((path, size))
    return itertools.chain(first, last)


def _candidates(roots: Sequence[str], enough_bytes: int) -> Iterator[tuple[str, int]]:
    """Regular files of 1 byte to 16 MiB, walked in sorted order until there are enough.

    Small files do not count towards enough: only a few of them are taken.
    """
    found = 0
    for root in roots:
        for directory, names, files in os.walk(root):
            names.sort()
            for name in sorted(files):
                path = f"{directory}/{name}"
                try:
                    status = os.lstat(path)
                except OSError:
                    continue
                if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= LARGEST_BYTES:
                    continue
                if status.st_size >= SMALL_BYTES:
                    found += status.st_size
                yield path, status.st_size
            if found >= enough_bytes:
                return
