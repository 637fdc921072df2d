"""Bytes put together from copies that are damaged at different places.

What could break: a choice that is overlooked, an hour for what nobody can find, bytes that nobody has proved.
"""

from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

import pytest

from fanout.joining import TRIES, join

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GOOD = [bytes([n]) for n in range(1, 9)]
BAD = b"!"


def proving(whole: Sequence[bytes]) -> tuple[list[bytes], Callable[[bytes], bool]]:
    """What was looked at, and what knows the right bytes."""
    seen: list[bytes] = []

    def proves(data: bytes) -> bool:
        seen.append(data)
        return data == b"".join(whole)

    return seen, proves


def spoilt(*numbers: int, by: bytes | None = BAD) -> list[bytes | None]:
    return [by if at in numbers else piece for at, piece in enumerate(GOOD)]


@pytest.mark.parametrize("by", [BAD, None])
def test_all_damage_of_two_copies_that_does_not_meet(by: bytes | None) -> None:
    """Every way in which two copies can have lost up to two stretches of eight pieces, each at its own places."""
    for kinds in product("ab.", repeat=len(GOOD)):
        first, second = ({at for at, kind in enumerate(kinds) if kind == one} for one in "ab")
        turns = sum(kinds[at] + kinds[at + 1] in ("ab", "ba") for at in range(len(GOOD) - 1))
        if turns > 1 and by is not None:
            continue
        _, proves = proving(GOOD)
        found = join([spoilt(*first, by=by), spoilt(*second, by=by)], proves)
        assert found == b"".join(GOOD), kinds


def test_three_copies() -> None:
    """Each is the only good one somewhere."""
    _, proves = proving(GOOD)
    copies = [spoilt(0, 1, 4), spoilt(0, 6, 7, by=b"?"), spoilt(1, 4, 6, 7, by=b"#")]
    copies[2][0] = GOOD[0]
    assert join(copies, proves) == b"".join(GOOD)


def test_what_nobody_has_is_not_found_and_takes_no_longer_than_it_may() -> None:
    """The same place is lost in both; or so much differs that the search is given up."""
    seen, proves = proving(GOOD)
    assert join([spoilt(3), spoilt(3, by=None)], proves) is None
    assert join([spoilt(3, by=None), spoilt(3, by=None)], proves) is None
    assert all(data != b"".join(GOOD) for data in seen)
    rng = random.Random(1)
    many = [rng.randbytes(1) for _ in range(100)]
    copies = [[bytes([piece[0] ^ 1]) if at % 2 else piece for at, piece in enumerate(many)], many]
    seen, proves = proving(GOOD)
    assert join(copies, proves) is None
    assert len(seen) == TRIES
