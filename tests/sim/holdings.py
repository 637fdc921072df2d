"""What a pool gives from where, by docs/on-disk-format.md: which spans serve a member, and what is lost with them.

Part of the oracle: it knows rows and positions, and none of the product's code.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.sim.oracle import Books

    Place = dict[str, Any]

HEAD = 4096  # bytes before a span's data

# What a pool's copies are, by aggregate and pool: the members that are held.
Held = dict[tuple[int, str], set[int]]

# Regions of volumes that have rotted, by path: begin and end.
Rot = dict[str, list[tuple[int, int]]]


def numbers_of(text: str) -> set[int]:
    """Members as a row lists them."""
    return {first + n for first, count in json.loads(text) for n in range(count)}


def members_of(text: str | None, books: Books, aggregate: int) -> set[int]:
    """Members that a copy row or a gap row names, of those that are there."""
    there = set(books.members(aggregate))
    return there if text is None else there & numbers_of(text)


def as_they_were(before: Books, after: Books, *, but: Sequence[str]) -> bool:
    """Whether spans are where they were; in some pools more may have come: what no pool had whole was written anew."""
    for key, places in after.places.items():
        there = before.places[key]
        stayed = [place for place in places if place in there] == there
        if not stayed or (len(places) > len(there) and key[1] not in but):
            return False
    return before.places.keys() == after.places.keys()


def held(books: Books) -> Held:
    """What each pool has of each aggregate."""
    return {
        (number, pool): members
        for number, pools in books.holders().items()
        for pool, members in pools.items()
    }


def overlaps(regions: Rot, path: str, begin: int, end: int) -> bool:
    """Whether any of these bytes of a volume are in the regions."""
    return any(begin < last and first < end for first, last in regions.get(path, ()))


def meets(regions: Sequence[tuple[int, int]], begin: int, end: int) -> bool:
    """Whether any of these bytes are in the regions, which are sorted and share no byte."""
    before = bisect_left(regions, (end,))
    return before > 0 and regions[before - 1][1] > begin


def serving(places: Sequence[Place], start: int, length: int) -> list[tuple[Place, int, int]]:
    """The stretches of an aggregate's data that serve these bytes, each with its span: of several the one with the highest number.

    Of equal numbers all serve: an old one may have come back.
    """
    found: list[tuple[Place, int, int]] = []
    left = [(start, start + length)]
    for number in sorted({place["span"] for place in places}, reverse=True):
        mine = [place for place in places if place["span"] == number]
        covered: list[tuple[int, int]] = []
        for place in mine:
            begin, end = place["data_start"], place["data_start"] + place["data_length"]
            for first, last in left:
                if max(first, begin) < min(last, end):
                    covered.append((max(first, begin), min(last, end)))
                    found.append((place, *covered[-1]))
        left = less(left, covered)
    return found


def less(
    stretches: Sequence[tuple[int, int]], taken: Iterable[tuple[int, int]]
) -> list[tuple[int, int]]:
    """What is left of some stretches without others."""
    left = list(stretches)
    for begin, end in taken:
        left = [
            piece
            for first, last in left
            for piece in ((first, min(last, begin)), (max(first, end), last))
            if piece[0] < piece[1]
        ]
    return left


def touching(places: Sequence[Place], start: int) -> list[Place]:
    """Spans that an object without bytes may be counted to."""
    return [p for p in places if p["data_start"] <= start <= p["data_start"] + p["data_length"]]


def damaged(books: Books, copy: dict[str, Any], rot: Rot) -> tuple[set[int], set[int]]:
    """Members of a copy whose bytes have rotted where they are served; and those of which only the header or footer has.

    Of objects without bytes the second says which may be among them.
    """

    def bytes_gone(place: Place, first: int, last: int) -> bool:
        at = place["offset"] + HEAD - place["data_start"]
        return overlaps(rot, place["path"], at + first, at + last)

    def frame_gone(place: Place) -> bool:
        path, begin = place["path"], place["offset"]
        foot = begin + HEAD + place["data_length"]
        return overlaps(rot, path, begin, begin + HEAD) or overlaps(
            rot, path, foot, begin + place["used"]
        )

    places = books.spans(copy)
    wrong: set[int] = set()
    frail: set[int] = set()
    for member in _held(books, copy):
        row = books.objects[copy["aggregate"]][member]
        pieces = serving(places, row["start"], row["length"])
        if any(bytes_gone(*piece) for piece in pieces):
            wrong.add(member)
        elif any(map(frame_gone, _serving_spans(places, row))):
            frail.add(member)
    return wrong, frail


def served_by(books: Books, copy: dict[str, Any], path: str) -> tuple[set[int], set[int]]:
    """Members that a copy gives from a volume, all of them or a part; and objects without bytes that may be there."""
    places = books.spans(copy)
    lost: set[int] = set()
    empty: set[int] = set()
    for member in _held(books, copy):
        row = books.objects[copy["aggregate"]][member]
        if any(place["path"] == path for place in _serving_spans(places, row)):
            (lost if row["length"] else empty).add(member)
    return lost, empty


def _serving_spans(places: Sequence[Place], row: dict[str, Any]) -> list[Place]:
    if not row["length"]:
        return touching(places, row["start"])
    return [place for place, _, _ in serving(places, row["start"], row["length"])]


def _held(books: Books, copy: dict[str, Any]) -> set[int]:
    return members_of(copy["present"], books, copy["aggregate"])


def ill(books: Books, rot: Rot) -> bool:
    """Whether any member is damaged where it is said to be held."""
    return any(any(damaged(books, copy, rot)) for copy in books.copies) if rot else False
