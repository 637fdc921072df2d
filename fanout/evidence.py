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
    from collections.abc import Callable, Iterable, Iterator, Sequence

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


def follows(before: SpanFooter, footer: SpanFooter) -> bool:
    """Whether a span goes on where the one before it ended. What a repair wrote has the next numbers, and begins anew."""
    return (
        footer.number == before.number + 1
        and footer.data_start == before.data_start + before.data_length
    )


def whole_objects(footers: Sequence[SpanFooter], *, guess: bool = False) -> Iterator[Member]:
    """The objects that spans hold from beginning to end, each once; those of which a piece is missing are left out.

    Args:
        footers: of one copy, in order of number.
        guess: also objects that may have begun in a span that is missing; only who knows better can tell.
    """
    start: int | None = None  # of the object that is being read
    before: SpanFooter | None = None
    doubtful = False
    told: Counter[Member] = Counter()
    again: Counter[Member] = (
        Counter()
    )  # told, and not met in this run of spans: empty objects may be there several times
    for footer in footers:
        if before is None or not follows(before, footer):
            # Behind a span that is missing, the first fragment may be the rest of an object; a repair begins with a whole one.
            expected = 0 if before is None else before.number + 1
            start, doubtful = None, footer.number != expected
            again = told.copy()
        before = footer
        for name, offset, length, digest in footer.fragments:
            at = footer.data_start + offset
            start = at if start is None else start
            if digest is None:
                continue
            member = Member(name, start, at + length - start, digest)
            if again[member]:
                again[member] -= 1
            elif guess or not doubtful:
                told[member] += 1
                yield member
            start, doubtful = None, False


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
    named = [(s.offset, s.length) for r in volume.directory.holds() for s in r.spans]
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
