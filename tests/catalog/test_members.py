"""Sets of members against Python's own sets: a wrong run would hide a gap or invent a copy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fanout.catalog.members import MemberSet, from_json, to_json

indexes = st.sets(st.integers(0, 40))


@given(indexes, indexes)
def test_agrees_with_sets(left: set[int], right: set[int]) -> None:
    """Union, difference, membership, length, order; runs are never adjacent."""
    a, b = MemberSet.of(left), MemberSet.of(right)
    assert list(a) == sorted(left)
    assert len(a) == len(left)
    assert set(a | b) == left | right
    assert set(a - b) == left - right
    assert all((n in a) == (n in left) for n in range(42))
    assert all(sum(one) < two[0] for one, two in zip(a.runs, a.runs[1:], strict=False))
    assert from_json(to_json(a)) == a
    assert MemberSet.of([*left, *left]) == a


def test_all_and_none() -> None:
    """None stands for all members and survives; an empty set is not None."""
    assert from_json(to_json(None)) is None
    assert from_json(to_json(MemberSet())) == MemberSet() == MemberSet.all_of(0)
    assert list(MemberSet.all_of(3)) == [0, 1, 2]
