"""Sets of an aggregate's members, as runs: which of them a pool holds, and which it lacks. Pure values."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class MemberSet:
    """Some members of an aggregate, counted from 0 in the order in which they were stored.

    Attributes:
        runs: (first, count), ascending, never adjacent, never empty.
    """

    runs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, indexes: Iterable[int]) -> MemberSet:
        """The set of these indexes, in any order, repeats allowed."""
        runs: list[tuple[int, int]] = []
        for index in sorted(set(indexes)):
            if runs and sum(runs[-1]) == index:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((index, 1))
        return cls(tuple(runs))

    @classmethod
    def all_of(cls, count: int) -> MemberSet:
        """Every member of an aggregate that has `count` of them."""
        return cls(((0, count),) if count else ())

    @classmethod
    def joined(cls, runs: Iterable[tuple[int, int]]) -> MemberSet:
        """What runs of (first, count) hold, in any order, overlaps allowed; none is spelled out."""
        found: list[tuple[int, int]] = []
        for first, count in sorted(runs):
            if found and first <= sum(found[-1]):
                start = found[-1][0]
                found[-1] = start, max(sum(found[-1]), first + count) - start
            else:
                found.append((first, count))
        return cls(tuple(found))

    def __contains__(self, index: object) -> bool:
        """Whether the set holds that index."""
        if not isinstance(index, int):
            return False
        at = bisect_right(self.runs, index, key=itemgetter(0)) - 1
        return at >= 0 and index < sum(self.runs[at])

    def __iter__(self) -> Iterator[int]:
        """All indexes, ascending."""
        for first, count in self.runs:
            yield from range(first, first + count)

    def __len__(self) -> int:
        """How many indexes."""
        return sum(count for _, count in self.runs)

    def __or__(self, other: MemberSet) -> MemberSet:
        """What is in either."""
        return MemberSet.joined([*self.runs, *other.runs])

    def __le__(self, other: MemberSet) -> bool:
        """Whether all of this is in the other; none is spelled out."""
        return self | other == MemberSet.joined(other.runs)

    def __sub__(self, other: MemberSet) -> MemberSet:
        """What is here and not there; none is spelled out."""
        found: list[tuple[int, int]] = []
        turn = 0  # of the other's runs the first that may reach into what comes
        for first, count in self.runs:
            at, end = first, first + count
            while turn < len(other.runs) and sum(other.runs[turn]) <= at:
                turn += 1
            step = turn
            while step < len(other.runs) and other.runs[step][0] < end:
                if other.runs[step][0] > at:
                    found.append((at, other.runs[step][0] - at))
                at = sum(other.runs[step])
                step += 1
            if at < end:
                found.append((at, end - at))
        return MemberSet(tuple(found))


def to_json(members: MemberSet | None) -> str | None:
    """As the catalog keeps it: ``[[first, count], …]``; None, for all of them, stays None."""
    return None if members is None else json.dumps(members.runs, separators=(",", ":"))


def from_json(text: str | None) -> MemberSet | None:
    """The inverse of `to_json`.

    Raises:
        ValueError, TypeError: it is no such set.
    """
    if text is None:
        return None
    runs = tuple((int(first), int(count)) for first, count in json.loads(text))
    end = 0
    for first, count in runs:
        if first < end or count <= 0:
            raise ValueError(f"{text:.80} is no set of members")
        end = first + count
    return MemberSet(runs)
