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


def test_joined_runs_are_the_set_of_their_indexes() -> None:
    """In any order, overlapping, adjacent; a run of billions is not spelled out."""
    runs = [(10, 5), (0, 3), (3, 1), (12, 8), (30, 1)]
    expected = MemberSet.of(n for first, count in runs for n in range(first, first + count))
    assert MemberSet.joined(runs) == MemberSet.joined(reversed(runs)) == expected
    assert MemberSet.joined([(0, 1 << 31), (5, 1)]).runs == ((0, 1 << 31),)
    assert MemberSet.joined([]) == MemberSet()


def test_what_lies_within() -> None:
    """Without spelling anything out; runs that meet are one."""
    some = MemberSet(((2, 3), (8, 1)))
    assert some <= MemberSet(some.runs)
    assert MemberSet() <= some
    assert not some <= MemberSet()
    assert some <= MemberSet(((0, 4), (4, 1 << 31)))
    assert not MemberSet(((2, 4),)) <= some
    assert MemberSet(((0, 1 << 31),)) <= MemberSet(((0, 1 << 31),))
