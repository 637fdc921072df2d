"""What SQLite recovers of a write-ahead log, by the description of its format (https://sqlite.org/fileformat2.html, "The Write-Ahead Log").

It says of two logs whether they come to the same, in microseconds; what that is SQLite says. The sum of a frame is linear in the sums
before it, so what a page adds to them is worked out once for each page.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import xxhash

PAGE, LOG_HEAD, FRAME_HEAD = 4096, 32, 24
FRAME = FRAME_HEAD + PAGE
_HEAD = struct.Struct(">8I")  # magic, version, page size, checkpoints, two salts, two sums
_PAGES = struct.Struct(
    ">2I"
)  # of a frame: page, and pages of the database if it ends a commit; two salts and two sums follow
_SUMS = struct.Struct(">2I")
_WORDS = struct.Struct(f"<{PAGE // 4}I")
_SUMMED = 24  # bytes of the log's head
_LITTLE = 0x377F0682  # magic of a log whose sums take words as little-endian
_WORD = 0xFFFFFFFF

Sums = tuple[int, int]


class InForce(NamedTuple):
    """What of a log counts: up to its last frame that ends a commit.

    Attributes:
        frames: how many.
        pages: of the database, then.
        sums: over all these frames.
        salts: of the log.
        replaced: the pages that are in these frames.
    """

    frames: int
    pages: int
    sums: Sums
    salts: bytes
    replaced: frozenset[int]

    def is_told(self, index: bytes) -> bool:
        """Whether the index that SQLite has made of the log says the same: mxFrame, nPage, aFrameCksum and aSalt of its head."""
        if not self.frames:
            return not any(index[:4])
        return index == struct.pack("=4I", self.frames, self.pages, *self.sums) + self.salts


class _Step(NamedTuple):
    """A frame that counts if one that ends a commit follows, with the sums behind it; `ends`: the last one up to it that does, from 1."""

    sums: Sums
    page: int
    pages: int
    ends: int


class Recovery:
    """Recovers logs. Remembers what frames come to, and how far the log before was the same."""

    def __init__(self) -> None:
        self._added: dict[int, Sums] = {}  # by page: what it adds to sums of nothing
        self._after: dict[tuple[int, Sums], Sums | None] = {}  # by frame, and the sums before it
        self._same = 0
        self._walked: list[_Step] = []

    def begin(self, same: int) -> None:
        """The logs that follow have so many bytes in common."""
        self._same, self._walked = max(0, (same - LOG_HEAD) // FRAME), []

    def of(self, log: bytes | bytearray) -> InForce:
        """What of a log counts."""
        walked = self._walked
        del walked[self._same :]
        sums = walked[-1].sums if walked else _head_of(log)
        with memoryview(log) as view:
            for at in range(LOG_HEAD + len(walked) * FRAME, len(log) - FRAME + 1, FRAME):
                page, pages = _PAGES.unpack_from(log, at)
                salted = page and log[at + 8 : at + 16] == log[16:24]
                sums = self._next(view[at : at + FRAME], sums) if sums and salted else None
                if sums is None:
                    break
                ends = len(walked) + 1 if pages else walked[-1].ends if walked else 0
                walked.append(_Step(sums, page, pages, ends))
        if not walked or not walked[-1].ends:
            return InForce(0, 0, (0, 0), b"", frozenset())
        frames = walked[-1].ends
        last = walked[frames - 1]
        replaced = frozenset([step.page for step in walked[:frames]])
        return InForce(frames, last.pages, last.sums, bytes(log[16:24]), replaced)

    def _next(self, frame: memoryview, sums: Sums) -> Sums | None:
        """The sums behind a frame, if they are those that stand in it."""
        key = xxhash.xxh3_128_intdigest(frame), sums
        if key not in self._after:
            head, page = frame[:FRAME_HEAD], frame[FRAME_HEAD:]
            digest = xxhash.xxh3_128_intdigest(page)
            if digest not in self._added:
                self._added[digest] = _sums(_WORDS.unpack(page))
            added = self._added[digest]
            before = _behind_a_page(_sums(struct.unpack_from("<2I", head), sums))
            after = (before[0] + added[0]) & _WORD, (before[1] + added[1]) & _WORD
            self._after[key] = after if after == _SUMS.unpack_from(head, 16) else None
        return self._after[key]


def _head_of(log: bytes | bytearray) -> Sums | None:
    """The sums behind a log's head, if it is one."""
    if len(log) <= LOG_HEAD:
        return None
    magic, _, size, *_, first, second = _HEAD.unpack_from(log)
    sums = _sums(struct.unpack_from(f"<{_SUMMED // 4}I", log))
    return sums if (magic, size, sums) == (_LITTLE, PAGE, (first, second)) else None


def _sums(words: tuple[int, ...], sums: Sums = (0, 0)) -> Sums:
    first, second = sums
    for n in range(0, len(words), 2):
        first = (first + words[n] + second) & _WORD
        second = (second + words[n + 1] + first) & _WORD
    return first, second


def _behind_a_page(sums: Sums) -> Sums:
    """What sums become when a page of zeros is added."""
    first, second = sums
    return (_ONE[0] * first + _OTHER[0] * second) & _WORD, (
        _ONE[1] * first + _OTHER[1] * second
    ) & _WORD


_ZEROS = (0,) * (PAGE // 4)
# What (1, 0) and (0, 1) become behind a page of zeros.
_ONE, _OTHER = _sums(_ZEROS, (1, 0)), _sums(_ZEROS, (0, 1))
