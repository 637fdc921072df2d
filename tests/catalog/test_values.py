"""What is looked at as a whole must still be looked at: one row that cannot be, among thousands."""

from __future__ import annotations

from typing import Any

import pytest

from fanout.catalog import Region, values

IDS = [bytes([number]) * 16 for number in range(100)]


def test_columns_say_what_their_rows_say() -> None:
    ids = [one.hex() for one in IDS]
    assert values.counted_ids(ids, list(range(100))) == (IDS, list(range(100)))
    assert values.counted_ids([], []) == ([], [])
    assert values.regions([8, 4], [1, 2]) == [Region(4, 2), Region(8, 1)]


@pytest.mark.parametrize(
    "wrong",
    [["0" * 31, "0" * 33], ["0" * 30 + " 0"], ["g" * 32], [7], [None], [["0" * 32]]],
    ids=str,
)
def test_ids_that_are_none(wrong: list[Any]) -> None:
    ids = [one.hex() for one in IDS]
    with pytest.raises((ValueError, TypeError)):
        values.counted_ids(ids[:50] + wrong + ids[50:], [0] * (100 + len(wrong)))


@pytest.mark.parametrize("wrong", [-1, 1.0, None, True, "1", [1]], ids=str)
def test_numbers_that_are_none(wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        values.counted_ids([], [1, 2, wrong, 3])
    for columns in (([1, wrong], [1, 1]), ([1, 1], [wrong, 1])):
        with pytest.raises((ValueError, TypeError)):
            values.regions(*columns)
