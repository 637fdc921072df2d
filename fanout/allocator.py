"""Which bytes of a volume's space are free, and who has the others. Pure and in memory; the catalog is the truth about *live*.

Every region is in exactly one state::

             reserve              commit                free
    FREE ──────────────> RESERVED ────────> LIVE ──────────────────> FREE
      ^                   │     │  (the unused tail: back to FREE)
      │       cancel      │     │ drain
      ├───────────────────┘     v
      ├────── release ─────── DRAINING          writes may still be in flight
      │                         │ quarantine    (also from RESERVED)
      └────── reopened ────── QUARANTINED       nobody knows when its last write lands

Invariants, asserted at every change and as a whole by `check`:

1. Regions never overlap, and together they are the space, to the byte.
2. Offsets and lengths are multiples of the granule.
3. Neighbouring free extents are one extent.
4. A region that is not FREE is handed out to nobody.

Space is used round the volume: the search starts where the last one ended, so what was freed a moment ago (an aborted transaction's
region) is used last. What comes first are tails: who reserves does not know how much will come, gives most of it back unwritten, and
others have reserved behind it meanwhile. Without that, clients side by side would strew small transactions over the whole volume.

A volume may hold hundreds of thousands of live regions: they are numbers in two arrays, sorted. The others are few.

An interrupt can strike in the middle of a change. What is taken changes by one step each; what is free follows from it, and is counted
anew when a change was broken off.

One thread at a time: the owner holds the lock. Not thread-safe.
"""

from __future__ import annotations

import enum
from array import array
from bisect import bisect_left
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TAILS = 64  # remembered: as many as there are writers side by side
LEAST_TAIL = 64 << 10  # bytes: of shorter ones nobody makes much


class RegionState(enum.Enum):
    """Who has a region."""

    FREE = "free"
    RESERVED = "reserved"
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    LIVE = "live"

    __hash__ = object.__hash__  # each is there once; Enum's own hashes the name, in Python, some forty times for a transaction


class Region(NamedTuple):
    """`length` bytes at `offset` of the volume."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.offset + self.length


class Allocator:
    """The regions of one volume's space.

    Args:
        offset: first byte of the space.
        length: bytes of the space.
        granule: unit of all offsets and lengths.
    """

    def __init__(self, offset: int, length: int, *, granule: int) -> None:
        assert granule > 0
        assert length > 0
        assert offset % granule == length % granule == 0
        self.space = Region(offset, length)
        self.granule = granule
        self._free_starts = [offset]
        self._free: dict[int, int] = {offset: length}
        self._tails: dict[int, None] = {}  # free extents that begin with a tail, the newest last
        self._live_starts, self._live_lengths = array("q"), array("q")
        self._taken: dict[int, tuple[int, RegionState]] = {}  # all others that are not free
        self._bytes = dict.fromkeys(RegionState, 0)
        self._bytes[RegionState.FREE] = length
        self._cursor = offset
        self._changing = False  # what is free, and how much of each
        self._at = 0  # index of the live region that is being entered or taken out

    # ---- questions -----------------------------------------------------------------------------

    def bytes_in(self, state: RegionState) -> int:
        """How many bytes are in a state."""
        self._whole()
        return self._bytes[state]

    def regions(self, state: RegionState) -> list[Region]:
        """All regions in a state, by offset."""
        self._whole()
        if state is RegionState.FREE:
            return [Region(start, self._free[start]) for start in self._free_starts]
        if state is RegionState.LIVE:
            return list(map(Region, self._live_starts, self._live_lengths))
        taken = sorted(self._taken.items())
        return [Region(start, length) for start, (length, found) in taken if found is state]

    def state_of(self, offset: int) -> RegionState | None:
        """State of the region that begins at `offset`; None: no region that is taken begins there."""
        entry = self._find(offset)
        return entry[1] if entry else None

    def largest(self, *, align: int = 0) -> int:
        """Bytes of the longest run that `reserve` could give now."""
        unit = align or self.granule
        runs = (_aligned(Region(start, length), unit) for start, length in self._free.items())
        return max((run.length for run in runs), default=0)

    def offer(self, wanted: int, *, enough: int = 0) -> int:
        """Bytes that `reserve` should be asked for: `wanted`, what a tail has if that is `enough`, or the longest run.

        Usually looks at tails and one extent only.
        """
        self._whole()
        best = max((min(self._free[start], wanted) for start in self._tails), default=0)
        if best >= (enough or wanted):
            return best
        for _, run in self._round():
            if run.length >= wanted:
                return wanted
            best = max(best, run.length)
        return best

    # ---- taking --------------------------------------------------------------------------------

    def reserve(self, max_length: int, min_length: int = 0, *, align: int = 0) -> Region | None:
        """Take a free region.

        The newest tail of `max_length`; else the first run of it round the volume, from where the last search ended; if there is
        none, the longest that has at least `min_length`.

        Args:
            max_length: bytes wanted; a multiple of the granule.
            min_length: bytes that would do; 0: all of `max_length`.
            align: the offset is a multiple of this (and of the granule); 0: the granule.

        Returns:
            The region, now RESERVED; None when nothing of that length is free.
        """
        self._whole()
        unit = align or self.granule
        assert max_length > 0
        assert max_length % self.granule == min_length % self.granule == unit % self.granule == 0
        best, best_home = Region(0, 0), 0
        for home, run in chain(self._newest_tails(), self._round()):
            usable = _aligned(run, unit)
            if usable.length >= max_length:
                return self._reserve(home, Region(usable.offset, max_length))
            if usable.length > best.length:
                best, best_home = usable, home
        if best.length == 0 or best.length < (min_length or max_length):
            return None
        return self._reserve(best_home, best)

    def _round(self) -> Iterator[tuple[int, Region]]:
        """Free runs once round the volume from the cursor, each with the start of its extent."""
        starts = self._free_starts
        turn = bisect_left(starts, self._cursor)
        # An extent that reaches over the cursor: first what is ahead of it; the whole comes at the end of the round,
        # because what lies behind the cursor was freed while we went on.
        if turn and starts[turn - 1] + self._free[starts[turn - 1]] > self._cursor:
            end = starts[turn - 1] + self._free[starts[turn - 1]]
            yield starts[turn - 1], Region(self._cursor, end - self._cursor)
        for index in chain(range(turn, len(starts)), range(turn)):
            yield starts[index], Region(starts[index], self._free[starts[index]])

    def _newest_tails(self) -> Iterator[tuple[int, Region]]:
        for start in reversed(self._tails):
            yield start, Region(start, self._free[start])

    def _reserve(self, home: int, region: Region) -> Region:
        # A tail behind which others have reserved: the search goes on where it was.
        if home not in self._tails or home <= self._cursor <= home + self._free[home]:
            self._cursor = region.end
        self._changing = True
        self._carve(home, region)
        self._taken[region.offset] = region.length, RegionState.RESERVED
        self._bytes[RegionState.RESERVED] += region.length
        self._changing = False
        return region

    def adopt(self, regions: Iterable[tuple[int, int]]) -> None:
        """These (offset, length) are LIVE by the catalog; called once, before anything is reserved.

        Raises:
            ValueError: one overlaps another, or leaves the space: catalog and volume contradict each other. Adopt no more here.
        """
        assert not self._taken
        assert not self._live_starts
        at, end, granule, free = self.space.offset, self.space.end, self.granule, dict[int, int]()
        for offset, length in sorted(regions):
            misplaced = offset < at or offset + length > end
            if length <= 0 or offset % granule or length % granule or misplaced:
                raise ValueError(f"region of {length} bytes at {offset} is not free to be live")
            if offset > at:
                free[at] = offset - at
            self._live_starts.append(offset)
            self._live_lengths.append(length)
            at = offset + length
        # Go on where the last opening probably was: behind what is live.
        self._cursor = at
        if at < end:
            free[at] = end - at
        self._free, self._free_starts = free, list(free)
        self._bytes[RegionState.FREE] = sum(free.values())
        self._bytes[RegionState.LIVE] = self.space.length - self._bytes[RegionState.FREE]

    # ---- moving on -----------------------------------------------------------------------------

    def commit(self, offset: int, used: int = 0) -> None:
        """RESERVED becomes LIVE; all behind its first `used` bytes (0: nothing) is FREE again."""
        self._expect(offset, RegionState.RESERVED)
        if used:
            self.trim(offset, used)
        self._move(offset, RegionState.LIVE)

    def trim(self, offset: int, used: int) -> None:
        """Only the first `used` bytes of a RESERVED or LIVE region are wanted; the tail, never written, is FREE."""
        length = self._expect(offset, RegionState.RESERVED, RegionState.LIVE)
        used = -(-used // self.granule) * self.granule
        assert 0 < used <= length, f"{used} used of {length} bytes at {offset}"
        if used == length:
            return
        self._changing = True
        if (live := self._live(offset)) is None:
            state = self._taken[offset][1]
            self._taken[offset] = used, state
        else:
            state = RegionState.LIVE
            self._live_lengths[live] = used
        self._bytes[state] -= length - used
        self._give(Region(offset + used, length - used), tail=True)
        self._changing = False
        if self._cursor == offset + length:
            self._cursor = offset + used  # nothing was written there: go on in the tail

    def cancel(self, offset: int) -> None:
        """A RESERVED region to which nothing was ever submitted is FREE, as if it had not been taken."""
        length = self._expect(offset, RegionState.RESERVED)
        self._drop(offset, tail=True)
        if self._cursor == offset + length:
            self._cursor = offset

    def drain(self, offset: int) -> None:
        """RESERVED becomes DRAINING: given up, but writes may be in flight."""
        self._expect(offset, RegionState.RESERVED)
        self._move(offset, RegionState.DRAINING)

    def release(self, offset: int) -> None:
        """RESERVED or DRAINING becomes FREE: nothing is in flight there any more. It is used last."""
        self._expect(offset, RegionState.RESERVED, RegionState.DRAINING)
        self._drop(offset)

    def quarantine(self, offset: int) -> None:
        """RESERVED or DRAINING becomes QUARANTINED: writes may land at any time until the volume was reopened."""
        self._expect(offset, RegionState.RESERVED, RegionState.DRAINING)
        self._move(offset, RegionState.QUARANTINED)

    def reopened(self) -> int:
        """The volume was reopened under its lock: nothing old can land. QUARANTINED becomes FREE; returns the bytes."""
        freed = self.regions(RegionState.QUARANTINED)
        for region in freed:
            self._drop(region.offset)
        return sum(region.length for region in freed)

    def free(self, offset: int) -> None:
        """LIVE becomes FREE: catalog and directory have given it up for good. Who still reads it finds a wrong sum or digest."""
        self._expect(offset, RegionState.LIVE)
        self._drop(offset)

    # ---- books ---------------------------------------------------------------------------------

    def _live(self, offset: int) -> int | None:
        """Index of the live region that begins at `offset`."""
        index = bisect_left(self._live_starts, offset)
        there = index < len(self._live_starts) and self._live_starts[index] == offset
        return index if there else None

    def _find(self, offset: int) -> tuple[int, RegionState] | None:
        """Length and state of the taken region that begins at `offset`."""
        entry = self._taken.get(offset)
        if entry is None and (index := self._live(offset)) is not None:
            return self._live_lengths[index], RegionState.LIVE
        return entry

    def _forget(self, offset: int) -> tuple[int, RegionState]:
        """Length and state that it had."""
        if offset in self._taken:
            return self._taken.pop(offset)
        index = self._live(offset)
        assert index is not None
        self._at = index
        del self._live_starts[index]
        return self._live_lengths.pop(index), RegionState.LIVE

    def _expect(self, offset: int, *states: RegionState) -> int:
        """The region's length; its state must be one of these."""
        self._whole()
        entry = self._find(offset)
        assert entry is not None, f"no region begins at {offset}"
        assert entry[1] in states, f"region at {offset} is {entry[1].value}"
        return entry[0]

    def _move(self, offset: int, state: RegionState) -> None:
        length, old = self._taken[offset]
        self._changing = True
        if state is RegionState.LIVE:
            self._at = bisect_left(self._live_starts, offset)
            self._live_lengths.insert(self._at, length)
            self._live_starts.insert(self._at, offset)
            del self._taken[offset]  # never in neither: it would be counted as free
        else:
            self._taken[offset] = length, state
        self._bytes[old] -= length
        self._bytes[state] += length
        self._changing = False

    def _drop(self, offset: int, *, tail: bool = False) -> None:
        self._changing = True
        length, state = self._forget(offset)
        self._bytes[state] -= length
        self._give(Region(offset, length), tail=tail)
        self._changing = False

    def _whole(self) -> None:
        """A change that was broken off is brought to its end."""
        if self._changing:
            self._count()

    def _count(self) -> None:
        """What is free, and how much of each, by what is taken. A live region is what has a start."""
        if len(self._live_lengths) > len(self._live_starts):
            del self._live_lengths[self._at]  # not entered yet, or taken out
        for start in self._live_starts:
            self._taken.pop(start, None)
        live = zip(self._live_starts, self._live_lengths, strict=True)
        taken = self._taken | {start: (length, RegionState.LIVE) for start, length in live}
        at, free, sums = self.space.offset, dict[int, int](), dict.fromkeys(RegionState, 0)
        for start, (length, state) in sorted(taken.items(), key=itemgetter(0)):
            if start > at:
                free[at] = start - at
            sums[state] += length
            at = start + length
        if at < self.space.end:
            free[at] = self.space.end - at
        sums[RegionState.FREE] = sum(free.values())
        self._free, self._free_starts, self._tails, self._bytes = free, list(free), {}, sums
        self._changing = False

    def _carve(self, home: int, region: Region) -> None:
        """Cut a region out of the free extent that begins at `home`."""
        length = self._free.pop(home)
        self._tails.pop(home, None)
        index = bisect_left(self._free_starts, home)
        before, after = region.offset - home, home + length - region.end
        assert before >= 0 <= after
        kept = [home] if before else []
        if before:
            self._free[home] = before
        if after:
            kept.append(region.end)
            self._free[region.end] = after
        self._free_starts[index : index + 1] = kept
        self._bytes[RegionState.FREE] -= region.length

    def _give(self, region: Region, *, tail: bool) -> None:
        """Add a free extent, joined with its free neighbours (invariant 3). A tail makes one of an extent that begins with it, or with one."""
        starts = self._free_starts
        index = bisect_left(starts, region.offset)
        start, end = region.offset, region.end
        first, last = index, index
        if index and starts[index - 1] + self._free[starts[index - 1]] >= start:
            left = starts[index - 1]
            assert left + self._free[left] == start, f"{region} is free already"
            start, first = left, index - 1
        if index < len(starts) and starts[index] <= end:
            assert starts[index] == end, f"{region} is free already"
            self._tails.pop(starts[index], None)
            end, last = end + self._free.pop(starts[index]), index + 1
        tail = start in self._tails or (tail and start == region.offset)
        self._tails.pop(start, None)
        if tail and end - start >= LEAST_TAIL:
            self._tails[start] = None
            if len(self._tails) > TAILS:
                del self._tails[next(iter(self._tails))]
        starts[first:last] = [start]
        self._free[start] = end - start
        self._bytes[RegionState.FREE] += region.length

    def check(self) -> None:
        """Assert invariants 1 to 3 over everything. Linear in the number of regions."""
        self._whole()
        assert self._free_starts == sorted(self._free)
        assert self._tails.keys() <= self._free.keys()
        spans = [(*region, state) for state in RegionState for region in self.regions(state)]
        spans.sort(key=lambda span: span[0])
        at, last, sums = self.space.offset, None, dict.fromkeys(RegionState, 0)
        for start, length, state in spans:
            assert start == at, f"hole or overlap at {min(at, start)}"
            assert length > 0
            assert start % self.granule == length % self.granule == 0
            assert not last is state is RegionState.FREE, f"two free extents meet at {start}"
            at, last = start + length, state
            sums[state] += length
        assert at == self.space.end
        assert sums == self._bytes


def _aligned(run: Region, unit: int) -> Region:
    """What is left of a run when it must begin at a multiple of `unit`."""
    first = -(-run.offset // unit) * unit
    return Region(first, max(0, run.end - first))
