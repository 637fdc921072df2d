"""The allocator hands out what is in use, loses bytes, or reuses an aborted region at once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from fanout.allocator import Allocator, Region, RegionState
from tests.strike import Striker
from tests.volume.memory import grown

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

G = 4096


def space(granules: int = 64, *, offset: int = 16) -> Allocator:
    return Allocator(offset * G, granules * G, granule=G)


class Ownership(RuleBasedStateMachine):
    """Every granule has one owner, kept here in the dullest way: a dictionary of granule -> state."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = space()
        self.model: dict[int, RegionState] = {}
        self.known: dict[int, int] = {}

    def pick(self, index: int, *states: RegionState) -> int | None:
        offers = [at for at in sorted(self.known) if self.model[at] in states]
        return offers[index % len(offers)] if offers else None

    def paint(self, offset: int, length: int, state: RegionState | None) -> None:
        for at in range(offset, offset + length, G):
            if state is None:
                del self.model[at]
            else:
                self.model[at] = state

    @rule(most=st.integers(1, 40), least=st.integers(0, 40), align=st.sampled_from([0, G, 4 * G]))
    def reserve(self, most: int, least: int, align: int) -> None:
        least = min(most, least)
        wanted = (least or most) * G
        available = self.allocator.largest(align=align)
        offered = self.allocator.offer(most * G)
        assert offered == min(most * G, self.allocator.largest())
        tail = self.allocator.offer(most * G, enough=G)
        assert tail == offered or G <= tail < offered
        region = self.allocator.reserve(most * G, least * G, align=align)
        assert (region is None) == (available < wanted)
        if region is None:
            return
        assert wanted <= region.length <= most * G
        assert region.offset % (align or G) == 0
        assert not any(at in self.model for at in range(region.offset, region.end, G))
        self.known[region.offset] = region.length
        self.paint(*region, RegionState.RESERVED)

    def _gone(self, at: int) -> None:
        self.paint(at, self.known.pop(at), None)

    @rule(index=st.integers(0, 99), how=st.sampled_from(["cancel", "release"]))
    def give_back(self, index: int, how: str) -> None:
        states = [RegionState.RESERVED] + [RegionState.DRAINING] * (how == "release")
        if (at := self.pick(index, *states)) is not None:
            getattr(self.allocator, how)(at)
            self._gone(at)

    @rule(index=st.integers(0, 99), used=st.integers(1, 40 * G))
    def commit(self, index: int, used: int) -> None:
        if (at := self.pick(index, RegionState.RESERVED)) is not None:
            used = min(used, self.known[at])
            self.allocator.commit(at, used)
            kept = -(-used // G) * G
            self.paint(at + kept, self.known[at] - kept, None)
            self.known[at] = kept
            self.paint(at, kept, RegionState.LIVE)

    @rule(index=st.integers(0, 99))
    def drain(self, index: int) -> None:
        if (at := self.pick(index, RegionState.RESERVED)) is not None:
            self.allocator.drain(at)
            self.paint(at, self.known[at], RegionState.DRAINING)

    @rule(index=st.integers(0, 99))
    def quarantine(self, index: int) -> None:
        if (at := self.pick(index, RegionState.RESERVED, RegionState.DRAINING)) is not None:
            self.allocator.quarantine(at)
            self.paint(at, self.known[at], RegionState.QUARANTINED)

    @rule(index=st.integers(0, 99))
    def free(self, index: int) -> None:
        if (at := self.pick(index, RegionState.LIVE)) is not None:
            self.allocator.free(at)
            self._gone(at)

    @precondition(lambda self: RegionState.QUARANTINED in self.model.values())
    @rule()
    def reopened(self) -> None:
        gone = [at for at in self.known if self.model[at] is RegionState.QUARANTINED]
        assert self.allocator.reopened() == sum(self.known[at] for at in gone)
        for at in gone:
            self._gone(at)

    @invariant()
    def agree(self) -> None:
        self.allocator.check()
        for state in RegionState:
            if state is not RegionState.FREE:
                count = sum(1 for found in self.model.values() if found is state)
                assert self.allocator.bytes_in(state) == count * G
        assert {
            region.offset: region.length
            for state in RegionState
            if state is not RegionState.FREE
            for region in self.allocator.regions(state)
        } == self.known


TestOwnership = Ownership.TestCase
TestOwnership.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_an_aborted_region_is_used_last() -> None:
    """An aborted transaction's region must not be the next one handed out: late writes hurt most there."""
    allocator = space(64)
    first = allocator.reserve(16 * G)
    assert first is not None
    allocator.drain(first.offset)
    allocator.release(first.offset)
    seen = [allocator.reserve(16 * G) for _ in range(4)]
    assert [region.offset // G - 16 for region in seen if region] == [16, 32, 48, 0]


def test_the_unused_tail_is_used_next() -> None:
    """Small transactions must not leave holes: what a reservation did not need, the next one gets."""
    allocator = space(64)
    for number in range(8):
        region = allocator.reserve(32 * G, G)
        assert region is not None
        assert region.offset == (16 + 2 * number) * G
        allocator.commit(region.offset, 2 * G)
    assert allocator.regions(RegionState.FREE) == [Region((16 + 16) * G, 48 * G)]


def test_writers_side_by_side_stay_side_by_side() -> None:
    """Eight clients with small transactions: each goes on in what it gave back, not behind all others."""
    allocator = space(8 * 32 + 64)
    for turn in range(6):
        mine = []
        for client in range(8):
            length = allocator.offer(32 * G, enough=8 * G)
            region = allocator.reserve(length)
            assert region is not None
            mine.append(region)
            if turn:
                assert region.offset // G - 16 in {32 * other + 2 * turn for other in range(8)}, (
                    client
                )
        for region in mine:
            allocator.commit(region.offset, 2 * G)
    assert len(allocator.regions(RegionState.FREE)) == 8
    # What is left of a tail is not cut into ever smaller pieces: the next one begins anew.
    assert allocator.offer(32 * G, enough=24 * G) == 32 * G


def test_a_tail_is_not_used_again_when_it_was_written() -> None:
    """A cancelled region is a tail, a released one is not: late writes hurt most there."""
    allocator = space(64)
    first, second = allocator.reserve(8 * G), allocator.reserve(8 * G)
    assert first is not None
    assert second is not None
    allocator.release(first.offset)
    assert allocator.offer(16 * G, enough=G) == 16 * G
    third = allocator.reserve(8 * G)
    assert third is not None
    allocator.cancel(second.offset)  # it joins the one before, which was written
    assert allocator.offer(16 * G, enough=G) == 16 * G
    allocator.cancel(third.offset)
    assert allocator.reserve(8 * G) == third


def test_a_quarantined_region_waits_for_the_reopening() -> None:
    """A region with a write that may still land is given to nobody, however full the volume is."""
    allocator = space(4)
    region = allocator.reserve(4 * G)
    assert region is not None
    allocator.quarantine(region.offset)
    assert allocator.reserve(G) is None
    assert allocator.reopened() == 4 * G
    assert allocator.reserve(4 * G) == region


def test_wrong_states_are_programming_errors() -> None:
    """Freeing what is only reserved, or twice, must stop the program rather than lose data."""
    allocator = space(8)
    region = allocator.reserve(4 * G)
    assert region is not None
    for verb in (allocator.free,):
        with pytest.raises(AssertionError, match="reserved"):
            verb(region.offset)
    allocator.cancel(region.offset)
    with pytest.raises(AssertionError, match="no region begins"):
        allocator.cancel(region.offset)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(15, 2), (79, 2), (20, 0), (24, 1), (23, 3), (1 << 50, 1)],
    ids=["before", "behind", "empty", "inside", "over", "far"],
)
def test_live_regions_of_the_catalog_must_fit(offset: int, length: int) -> None:
    """A catalog that names the same bytes twice, or bytes outside, must be refused while loading."""
    with pytest.raises(ValueError, match="not free to be live"):
        space(64).adopt([(24 * G, 4 * G), (offset * G, length * G)])


@pytest.mark.parametrize(
    ("live", "free"),
    [
        ([], [(16, 64)]),
        ([(16, 64)], []),
        ([(16, 1), (20, 4), (24, 1)], [(17, 3), (25, 55)]),
        ([(79, 1), (30, 2)], [(16, 14), (32, 47)]),
    ],
    ids=["nothing", "everything", "neighbours", "unsorted, to the end"],
)
def test_what_is_not_live_is_free(live: list[tuple[int, int]], free: list[tuple[int, int]]) -> None:
    """After an opening all that the catalog does not name can be used, and nothing else."""
    allocator = space(64)
    allocator.adopt((offset * G, length * G) for offset, length in live)
    allocator.check()
    assert allocator.regions(RegionState.FREE) == [Region(o * G, n * G) for o, n in free]
    assert allocator.regions(RegionState.LIVE) == [Region(o * G, n * G) for o, n in sorted(live)]
    if free:  # behind what is live first
        region = allocator.reserve(G)
        assert region is not None
        assert region.offset == (free[-1][0] if live and live[0][0] != 79 else 16) * G


def test_a_live_region_takes_two_numbers() -> None:
    """Breaks if a volume with a million regions takes 150 MB again."""
    count = 20_000

    def make() -> Allocator:
        allocator = space(2 * count)
        allocator.adopt(((16 + 2 * number) * G, 2 * G) for number in range(count))
        return allocator

    assert len(make().regions(RegionState.LIVE)) == count
    assert grown(make) < 24 * count


def test_what_is_live_can_be_asked_trimmed_and_freed() -> None:
    """Of what an opening found, and in any order."""
    allocator = space(64)
    allocator.adopt([(16 * G, 8 * G), (24 * G, 8 * G), (40 * G, 8 * G)])
    allocator.trim(24 * G, 3 * G)
    allocator.check()
    assert allocator.state_of(24 * G) is RegionState.LIVE
    assert allocator.state_of(25 * G) is None
    allocator.free(16 * G)
    allocator.free(40 * G)
    allocator.check()
    assert allocator.regions(RegionState.LIVE) == [Region(24 * G, 3 * G)]


CHANGES: dict[str, Callable[[Allocator, int, int], object]] = {
    "commit": lambda books, live, taken: books.commit(taken, G),
    "trim what is live": lambda books, live, taken: books.trim(live, G),
    "free": lambda books, live, taken: books.free(live),
    "cancel": lambda books, live, taken: books.cancel(taken),
    "release": lambda books, live, taken: books.release(taken),
    "quarantine": lambda books, live, taken: books.quarantine(taken),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_interrupt_anywhere_in_a_change(change: str) -> None:
    """What is free, and how much of each, is right afterwards; nobody else's region has changed; and work goes on."""
    struck, point = True, 0
    while struck:
        point += 1
        books = space()
        at = [books.reserve(length * G, length * G) for length in (2, 3, 4, 5, 6)]
        first, live, between, taken, last = (region.offset for region in at if region)
        for offset in (first, live, last):
            books.commit(offset)
        striker = Striker(point)
        try:
            sys.setprofile(striker)
            CHANGES[change](books, live, taken)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        books.check()
        others = {Region(first, 2 * G), Region(last, 6 * G)}
        assert others <= set(books.regions(RegionState.LIVE)), point
        assert Region(between, 4 * G) in books.regions(RegionState.RESERVED), point
        books.commit(between)
        books.free(first)
        assert books.reserve(G, G)
        books.check()
        struck = striker.struck
    assert point > 3


def test_a_crowded_volume_stays_quick() -> None:
    """20,000 live regions: a reservation must not look at them all. Counted in executed lines, not in time."""
    allocator = space(100_000)

    def place() -> None:
        region = allocator.reserve(8 * G, G)
        assert region is not None
        allocator.commit(region.offset, 4 * G)

    few = executed_lines(place)
    for _ in range(20_000):
        place()
    assert executed_lines(place) < 10 * few
    allocator.check()


def executed_lines(action: Callable[[], None]) -> int:
    """How many lines of Python run, turns of loops included."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count
