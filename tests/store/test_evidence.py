"""Which objects the spans of a copy hold: an original in pieces, repairs of some of its members, some spans gone.

What could break: a piece taken for an object, an object told twice, or one that is there from beginning to end and is not found.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.evidence import Objects
from fanout.format import SpanFooter
from fanout.host import Fragment
from fanout.types import Member

if TYPE_CHECKING:
    from collections.abc import Sequence


def footer(number: int, start: int, pieces: Sequence[Fragment]) -> SpanFooter:
    return SpanFooter(
        store=bytes(16),
        transaction=bytes(16),
        aggregate=bytes(16),
        attempt=1,
        number=number,
        data_start=start,
        data_length=sum(piece.length for piece in pieces),
        header_sum=0,
        final=False,
        fragments=tuple(pieces),
        block_size=65536,
        sums=b"",
    )


def written(members: Sequence[Member], first: int, cuts: set[int]) -> list[SpanFooter]:
    """Members without a hole between them as spans that end at the cuts."""
    spans: list[SpanFooter] = []
    start = members[0].offset
    pieces: list[Fragment] = []

    def leave(at: int) -> None:
        nonlocal start, pieces
        spans.append(footer(first + len(spans), start, pieces))
        start, pieces = at, []

    for member in members:
        at, end = member.offset, member.offset + member.length
        for cut in sorted(c for c in cuts if at < c < end):
            pieces.append(Fragment(member.name, at - start, cut - at, None))
            leave(cut)
            at = cut
        pieces.append(Fragment(member.name, at - start, end - at, member.digest))
        if end in cuts:
            leave(end)
    if pieces:
        leave(start)
    return spans


@st.composite
def copies(draw: st.DrawFn) -> tuple[list[Member], list[SpanFooter], list[SpanFooter]]:
    """Members, the original's spans, and those of a repair of some of the members, with the next numbers."""
    lengths = draw(st.lists(st.sampled_from([0, 1, 7, 40, 100]), min_size=1, max_size=8))
    members, at = [], 0
    for number, length in enumerate(lengths):
        members.append(Member(b"%d" % number, at, length, bytes([number]) * 16))
        at += length
    cuts = st.sets(st.integers(1, max(1, at)), max_size=6)
    original = written(members, 0, draw(cuts))
    first = draw(st.integers(0, len(members) - 1))
    last = draw(st.integers(first, len(members) - 1))
    # The last spans were given up before the repair: it takes their numbers.
    given_up = draw(st.integers(0, len(original)))
    repair = written(members[first : last + 1], len(original) - given_up, draw(cuts))
    return members, original, repair


@settings(max_examples=400, deadline=None)
@given(made=copies(), lost=st.sets(st.integers(0, 20)))
def test_nothing_is_invented_and_nothing_told_twice(
    made: tuple[list[Member], list[SpanFooter], list[SpanFooter]], lost: set[int]
) -> None:
    members, original, repair = made
    spans = [span for at, span in enumerate(original + repair) if at not in lost]
    found = Counter(Objects(reversed(spans)).certain)
    assert not found - Counter(members)


@settings(max_examples=400, deadline=None)
@given(made=copies())
def test_a_whole_original_and_a_whole_repair_are_found(
    made: tuple[list[Member], list[SpanFooter], list[SpanFooter]],
) -> None:
    members, original, repair = made
    assert sorted(Objects(original).certain) == sorted(members)
    assert sorted(Objects(original + repair).certain) == sorted(members)
