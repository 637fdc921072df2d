"""What volumes say by themselves: what spans hold of an aggregate and its objects, and spans that no directory names.

Shared by the rebuilding of a catalog and by its check. Reads, and changes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from fanout import format as fmt
from fanout.errors import FanoutError
from fanout.format import StoredSpan
from fanout.types import Member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.catalog import Place
    from fanout.format import SpanFooter, SpanHeader
    from fanout.volume import Volume

WINDOW = 4 << 20  # of a volume that is looked through
_FOOT = fmt.MAGIC + b"FOOT"
_LEAST = 256  # bytes of a footer's beginning that are looked at together


class Coverage:
    """The part of an aggregate's data that some spans hold.

    Args:
        spans: in any order.
    """

    def __init__(self, spans: Iterable[StoredSpan | Place]) -> None:
        self._fill((span.data_start, span.data_length) for span in spans)

    @classmethod
    def of(cls, stretches: Iterable[tuple[int, int]]) -> Coverage:
        """What stretches of (start, length) cover."""
        made = cls(())
        made._fill(stretches)
        return made

    def _fill(self, stretches: Iterable[tuple[int, int]]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, length in sorted(stretches):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], start + length)
            else:
                self._starts.append(start)
                self._ends.append(start + length)

    def holds(self, start: int, length: int) -> bool:
        """Whether all of a member is there. One without bytes is everywhere."""
        if not length:
            return True
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and start + length <= self._ends[at]


class Runs:
    """Member indexes as a directory record lists them, asked without being spelled out.

    Args:
        runs: in any order.
    """

    def __init__(self, runs: Iterable[range]) -> None:
        self._coverage = Coverage.of((run.start, len(run)) for run in runs)

    def __contains__(self, index: int) -> bool:
        """Whether it is among them."""
        return self._coverage.holds(index, 1)


class Objects:
    """The objects that the spans of one copy hold, found by where their bytes lie in the aggregate's data.

    An original and its repairs may overlap, and spans of different writings may have the same number (one that was given up with its
    volume, and came back): so what goes on where is told by positions. Between two objects a position is a border; inside one it
    is known to which object it belongs, once any span has that object from its beginning.

    Args:
        footers: of the spans that can be read, in any order.

    Attributes:
        certain: that are there from beginning to end, each once, by the place of their bytes; empty ones as often as one span has them.
        perhaps: that end behind a span's beginning which nothing explains: if one began there it is this, else a piece of another. The
            bytes can tell.
    """

    def __init__(self, footers: Iterable[SpanFooter]) -> None:
        self.certain: list[Member] = []
        self.perhaps: list[Member] = []
        self._footers = sorted(footers, key=lambda footer: (footer.data_start, footer.number))
        self._starts = sorted({footer.data_start for footer in self._footers})
        # By position: where the object began that goes on there; itself: a border.
        self._begun, self._guessed = {0: 0}, dict[int, int]()
        self._told: set[Member] = set()
        self._empty: Counter[Member] = Counter()
        for footer in self._footers:
            self._read(footer)
        self.perhaps = [member for member in self.perhaps if member not in self._told]

    def _read(self, footer: SpanFooter) -> None:
        here = footer.data_start
        again = self._empty.copy()  # those that another span has told
        certain = here in self._begun
        start = self._begun[here] if certain else self._guessed.get(here, here)
        following = bisect_right(self._starts, here)
        for name, offset, length, digest in footer.fragments:
            end = here + offset + length
            while following < len(self._starts) and self._starts[following] <= end:
                position = self._starts[following]
                following += 1
                if position == end and digest is not None:
                    self._begun[position] = position
                elif certain:
                    self._begun[position] = start
                else:
                    self._guessed.setdefault(position, start)
            if digest is None:
                continue
            member = Member(name, start, end - start, digest)
            if not (certain or not length):
                self.perhaps.append(member)
            elif again[member]:
                again[member] -= 1
            elif member not in self._told:
                self.certain.append(member)
                if member.length:
                    self._told.add(member)
                else:
                    self._empty[member] += 1
            start, certain = end, True


def empty_objects(footer: SpanFooter) -> set[tuple[bytes, int]]:
    """Name and place in the aggregate's data of the objects without bytes that a span names: nothing else says that it holds them."""
    return {
        (fragment.name, footer.data_start + fragment.offset)
        for fragment in footer.fragments
        if not fragment.length
    }


class FoundSpan(NamedTuple):
    """A complete span on a volume."""

    volume: Volume
    span: StoredSpan
    header: SpanHeader
    footer: SpanFooter


def unnamed_stretches(volume: Volume) -> list[tuple[int, int]]:
    """(offset, end) of the space that the volume's directory names no span in, by offset."""
    assert volume.directory is not None
    block = volume.superblock
    found = []
    at, end = block.space_offset, block.space_offset + block.space_length
    named = [(span.offset, span.length) for span in volume.directory.spans()]
    for offset, length in sorted(named):
        if at < offset:
            found.append((at, min(offset, end)))  # a record may claim what is not there
        at = max(at, offset + fmt.round_up(length, block.granule))
        if at >= end:
            break
    if at < end:
        found.append((at, end))
    return found


def find_spans(volume: Volume, *, on_bytes: Callable[[int], None]) -> Iterator[FoundSpan]:
    """Complete spans that the volume's directory does not name: header and footer are good, and belong together.

    Footers are looked for, not headers: a footer says where its header is, and one without a header is nothing. Reads all of
    the space that no record names. What cannot be read there is passed over: it holds nothing that anybody was promised.

    Args:
        volume: open, with its directory.
        on_bytes: called with the bytes of each window that was looked through.
    """
    for begin, end in unnamed_stretches(volume):
        # Clients choose their bytes, and free space may be full of what looks like footers: no header is read twice for them.
        headless: set[int] = set()
        for start in range(begin, end, WINDOW):
            stop = min(start + WINDOW, end)
            try:
                # A little more, so that no beginning of a footer is cut in two.
                data = volume.read(start, min(stop + _LEAST, end) - start)
            except FanoutError:
                data = b""
            at = data.find(_FOOT)
            while 0 <= at < stop - start:
                found = _span_of_footer(
                    volume, data[at : at + _LEAST], start + at, begin, end, headless
                )
                if found is not None:
                    yield found
                at = data.find(_FOOT, at + 1)
            on_bytes(stop - start)


def _span_of_footer(
    volume: Volume, head: bytes, offset: int, begin: int, end: int, headless: set[int]
) -> FoundSpan | None:
    """The span that ends with the footer that seems to begin at `offset`; None: it is none.

    `headless` are places without a header; those that are found here join them.
    """
    try:
        length, data_length = fmt.footer_lengths(head, path=volume.path, offset=offset)
        first = offset - data_length - fmt.HEAD_SIZE
        if first < begin or first % volume.superblock.granule or offset + length > end:
            return None
        if first in headless:
            return None
        header = _header_at(volume, first, headless)
        used = offset + length - first
        span = StoredSpan(header.number, first, used, used, header.data_start, data_length)
        return FoundSpan(volume, span, *volume.read_span(span, aggregate=header.aggregate))
    except FanoutError:
        return None


def _header_at(volume: Volume, offset: int, headless: set[int]) -> SpanHeader:
    try:
        return volume.read_header(offset)
    except FanoutError:
        headless.add(offset)
        raise
