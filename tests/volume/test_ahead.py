"""Reading ahead changes how much is read at once, and nothing of what is read."""

from __future__ import annotations

import random

import pytest

from fanout.ahead import LEAST, MOST, WINDOWS, ReadAhead
from fanout.errors import VolumeTorn

SIZE = 8 << 20
KIB = 1 << 10


class Medium:
    """Random bytes, some of which cannot be read; remembers what it was asked for."""

    def __init__(self, bad: range = range(0)) -> None:
        self.data = random.Random(1).randbytes(SIZE)
        self.bad, self.asked = bad, list[tuple[int, int]]()

    def read(self, offset: int, length: int) -> bytes:
        self.asked.append((offset, length))
        if self.bad and offset < self.bad.stop and offset + length > self.bad.start:
            raise VolumeTorn("medium", "a bad place")
        return self.data[offset : offset + length]


def through(
    ahead: ReadAhead, medium: Medium, offset: int, length: int, name: bytes = b"V"
) -> bytes:
    return ahead.read(name, offset, length, size=SIZE, read=medium.read)


def test_what_is_read_is_what_is_there(rng: random.Random) -> None:
    ahead, medium, at = ReadAhead(), Medium(), 0
    for _ in range(2000):
        if rng.random() < 0.1:
            at = rng.randrange(SIZE)
        length = min(rng.choice((0, 1, 4096, 70 * KIB, 3 << 20)), SIZE - at)
        assert through(ahead, medium, at, length) == medium.data[at : at + length]
        at = min(at + rng.choice((0, length, length + 5000)), SIZE - 1)


def test_a_walk_takes_few_reads_and_jumps_read_little() -> None:
    ahead, medium = ReadAhead(), Medium()
    for at in range(0, SIZE, 12 * KIB):
        through(ahead, medium, at, min(4096, SIZE - at))
    assert len(medium.asked) < 24
    assert max(length for _, length in medium.asked) == MOST
    medium.asked.clear()
    ahead = ReadAhead()
    for at in (100 * KIB, 6 << 20, 2 << 20):
        through(ahead, medium, at, 4096)
    assert medium.asked == [(100 * KIB, LEAST), (6 << 20, LEAST), (2 << 20, LEAST)]


def test_many_walks_side_by_side_take_few_reads() -> None:
    """As spans of eight clients lie, in the order of their commits; now and then one step back."""
    ahead, medium = ReadAhead(), Medium()
    for step in range(0, 1 << 20, 12 * KIB):
        for client in (1, 0, 3, 2, 4, 7, 6, 5):
            for at in (step + 8 * KIB, step):
                through(ahead, medium, (client << 20) + at, 4096)
    assert len(medium.asked) < 8 * 8


def test_damage_harms_only_those_who_ask_for_it() -> None:
    medium = Medium(bad=range(40 * KIB, 44 * KIB))
    ahead = ReadAhead()
    for at in (0, 36 * KIB, 44 * KIB):
        assert through(ahead, medium, at, 4096) == medium.data[at : at + 4096]
    with pytest.raises(VolumeTorn, match="a bad place"):
        through(ahead, medium, 40 * KIB, 4096)


def test_memory_is_bounded_and_volumes_are_kept_apart() -> None:
    ahead, media = ReadAhead(), [Medium() for _ in range(WINDOWS + 1)]
    for number, medium in enumerate(media):
        medium.data = bytes([number]) * SIZE
        assert through(ahead, medium, 0, 10, b"V%d" % number) == bytes([number]) * 10
    for medium in media:
        medium.asked.clear()
    for number in (WINDOWS, 0):
        assert through(ahead, media[number], 20, 10, b"V%d" % number) == bytes([number]) * 10
    assert not media[WINDOWS].asked  # still held
    assert media[0].asked  # let go for the last one
