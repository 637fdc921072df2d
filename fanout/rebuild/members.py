"""The members of one aggregate, out of the headers and footers of its spans."""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from itertools import count as count_from
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from fanout.catalog import CopyEntry, MemberSet, Place
from fanout.errors import FanoutError, VolumeForeign
from fanout.evidence import Objects
from fanout.read import CopyReader

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from fanout.format import DirectoryRecord, SpanFooter, SpanHeader, StoredSpan
    from fanout.types import Member
    from fanout.volume import Volume

    Ids = set[bytes]  # `Pieces` has a field of that name

MOST_MEMBERS = 1 << 32


class Evidence(NamedTuple):
    """What one directory says of one aggregate."""

    volume: Volume
    record: DirectoryRecord


@dataclass(slots=True)
class Pieces:
    """One aggregate, as it becomes known.

    Attributes:
        evidence: the newest record of each volume.
        members: those that are known, by number.
        whole: whether these are all.
        ended: whether the last of its data was seen.
        bytes: of the data, as far as it is known.
        required: pools that the rules demanded, the primary first.
        ordinal: of the aggregate in its transaction.
        original: whether what its transaction wrote is still there; else there are only later copies.
        faults: what could not be read.
        written: volumes that spans of it were meant for, by the headers that were read.
    """

    evidence: list[Evidence]
    members: dict[int, Member] = field(default_factory=dict)
    whole: bool = False
    ended: bool = False
    bytes: int = 0
    required: tuple[str, ...] = ()
    ordinal: int = 0
    original: bool = False
    faults: list[str] = field(default_factory=list)
    written: Ids = field(default_factory=set)

    @property
    def deleted(self) -> MemberSet:
        """Members that are gone from the store: what any volume says."""
        return members_of(run for found in self.evidence for run in found.record.deleted)

    @property
    def listed(self) -> MemberSet:
        """Members that a record names as held, less those that are gone."""
        present = (run for found in self.evidence for run in found.record.present or ())
        return members_of(present) - self.deleted

    @property
    def objects(self) -> int:
        """Members that it was stored with; 0: no record says it."""
        return max(found.record.objects for found in self.evidence)

    def nothing_lost(self, held: MemberSet) -> bool:
        """Whether every member is held by somebody, or was deleted.

        Audits leave copies that list what they hold. Records say how many there were; before they did, the numbers tell whether these are all.

        Args:
            held: members that some pool holds.
        """
        if self.whole:
            return True
        deleted = self.deleted
        left = MemberSet.of(number for number in self.members if number not in deleted)
        if self.objects:
            all_known = len(left) + len(deleted) >= self.objects
        else:
            end = max([*map(sum, left.runs), *map(sum, deleted.runs)], default=0)
            all_known = self.ended and end == len(left) + len(deleted)
        return all_known and not self.listed - left and not left - held

    @property
    def committed(self) -> int:
        """Commit sequence number of its transaction; 0: no record says it."""
        return max(found.record.committed for found in self.evidence)

    @property
    def version(self) -> int:
        """Of its first member; 0: no record says it."""
        return max(found.record.version for found in self.evidence)

    @property
    def first(self) -> Evidence:
        """The oldest record."""
        return min(self.evidence, key=lambda found: found.record.csn)


class MemberReader:
    """Finds the members of one aggregate. Reads as few footers as it takes.

    Spans that were written together (of one commit) have numbers of their own and, in every copy, the same bytes; such a set is read
    from whichever copy is good. The set of the oldest commit is what the transaction itself wrote.
    """

    def __init__(self, aggregate: bytes, pieces: Pieces) -> None:
        self._aggregate, self._pieces = aggregate, pieces
        self._loose: list[Member] = []  # whose number is not known

    def read(self) -> None:
        """Fill in what the headers and footers say."""
        pieces = self._pieces
        for csn in sorted({found.record.csn for found in pieces.evidence if found.record.spans}):
            there = [f for f in pieces.evidence if f.record.csn == csn and f.record.spans]
            for mine in _alike(there):
                spans = self._read_set(mine)
                if spans:
                    self._learn(spans, mine)
                if pieces.whole:
                    return
        self._number_the_loose()
        for mine in by_pool(pieces.evidence).values():
            if len({found.record.csn for found in mine}) > 1:
                self._read_across(mine)

    def _read_set(self, evidence: Sequence[Evidence]) -> list[tuple[SpanHeader, SpanFooter]]:
        """Header and footer of each span of a set."""
        found: dict[tuple[int, int, int], tuple[SpanHeader, SpanFooter]] = {}
        for volume, record in evidence:
            for span in record.spans:
                # Not the number alone: after a volume was given up a repair takes its numbers again.
                which = span.number, span.data_start, span.data_length
                if which not in found:
                    read = self._read_span(volume, record, span)
                    if read is not None:
                        found[which] = read
        return list(found.values())

    def _read_span(
        self, volume: Volume, record: DirectoryRecord, span: StoredSpan
    ) -> tuple[SpanHeader, SpanFooter] | None:
        try:
            header, footer = volume.read_span(span, aggregate=self._aggregate)
            if header.transaction != record.transaction:
                raise VolumeForeign(volume.path, f"span at {span.offset}: of another transaction")
        except FanoutError as error:
            self._pieces.faults.append(str(error))
            return None
        return header, footer

    def _learn(
        self,
        spans: Sequence[tuple[SpanHeader, SpanFooter]],
        evidence: Sequence[Evidence],
    ) -> None:
        pieces = self._pieces
        header = spans[0][0]
        if not pieces.required:
            pieces.required, pieces.ordinal = header.required, header.ordinal
        pieces.written.update(place.volume for one, _ in spans for place in one.places)
        pieces.original |= header.primary in {place.pool for place in header.places}
        footers = [footer for _, footer in spans]
        objects = Objects(footers)
        proven = [m for m in objects.perhaps if is_proven(self._aggregate, m, evidence)]
        members = sorted([*objects.certain, *proven], key=lambda m: (m.offset, m.length))
        pieces.bytes = max(pieces.bytes, *(f.data_start + f.data_length for f in footers))
        solid = _solid(members)
        all_here = any(found.record.present is None for found in evidence)
        complete = any(footer.final for footer in footers) and _reach(members) == pieces.bytes
        pieces.ended |= complete
        if all_here and complete:
            # A copy that was made after members had been deleted has not got these. That all its spans are there their numbers say.
            fewer = solid < len(members) or len(members) < pieces.objects
            indexes = _others(pieces.deleted) if fewer else count_from()
            numbers = sorted(footer.number for footer in footers)
            complete_set = pieces.deleted and numbers == list(range(len(numbers)))
            others = pieces.objects in (0, len(members) + len(pieces.deleted))
            if not fewer or (complete_set and others):
                pieces.members = dict(zip(indexes, members, strict=False))
                pieces.whole = True
                return
        # All members are here where they are as many as were stored. Where no record says how many these were: in what the transaction
        # itself wrote in several pools at once, whatever an audit has found there since; and where those that are held and those that are
        # gone are together as many. Where repairs fill up what it wrote, those that were deleted before are not named, and one without bytes
        # leaves no hole.
        original = _is_original(header) and (not pieces.deleted or _are_all_original(spans))
        known = pieces.deleted | members_of(evidence[0].record.present)
        known_all = known == MemberSet.all_of(len(members))
        counted = len(members) == pieces.objects
        everybody = solid == len(members) and (counted or (complete and (original or known_all)))
        known_solid = solid if all_here or everybody else 0
        tail = self._last_ones(spans, members[known_solid:])
        self._anchor(members[: len(members) - len(tail)], known_solid, evidence)
        first = pieces.objects - len(tail)
        for number, member in enumerate(tail, first):
            pieces.members.setdefault(number, member)

    def _last_ones(
        self, spans: Sequence[tuple[SpanHeader, SpanFooter]], members: Sequence[Member]
    ) -> Sequence[Member]:
        """Those of some members that are the last of the aggregate, whatever is missing before them: how many it had tells their numbers.

        What the transaction itself wrote has all in a row, up to the final span; of what a repair wrote that holds only in one span, and only while
        nothing was deleted.
        """
        deleted = self._pieces.deleted
        written = {footer.number: footer for header, footer in spans if _is_original(header)}
        ends = [footer for footer in written.values() if footer.final]
        if not ends and not deleted:
            ends = [footer for _, footer in spans if footer.final]
        if not ends or not self._pieces.objects:
            return ()
        first = ends[0]
        while first.number in written and first.number - 1 in written:
            first = written[first.number - 1]
        tail = [member for member in members if member.offset >= first.data_start]
        return tail if len(members) <= self._pieces.objects else ()

    def _anchor(self, members: Sequence[Member], solid: int, evidence: Sequence[Evidence]) -> None:
        """Give numbers to members where the set says them: those before the first hole, or those that the records list, if these are as many."""
        known = self._pieces.members
        listed = evidence[0].record.present or ()
        indexes: Iterable[int] = range(solid)
        # Counted before it is spelled out: a run from a medium may claim four billion members.
        if not solid and sum(map(len, listed)) == len(members):
            indexes = chain.from_iterable(listed)
        numbered = dict(zip(indexes, members, strict=False))
        for index, member in numbered.items():
            known.setdefault(index, member)
        self._loose += members[len(numbered) :]

    def _number_the_loose(self) -> None:
        """Members whose number nobody knows take, in the order of their data, those that records list and nobody has, then others.

        Never one of a deleted member: what has it is gone. And one between those of its neighbours, if there is any.
        """
        known, pieces = self._pieces.members, self._pieces
        there = {(m.offset, m.name, m.digest) for m in known.values()}
        listed, deleted = list((pieces.listed - MemberSet.of(known)).runs), pieces.deleted
        anchors = sorted((m.offset, m.length, n) for n, m in known.items())
        for member in sorted(self._loose, key=lambda m: (m.offset, m.length)):
            if (member.offset, member.name, member.digest) in there:
                continue
            there.add((member.offset, member.name, member.digest))
            at = bisect_left(anchors, (member.offset, member.length))
            low = anchors[at - 1][2] + 1 if at else 0
            high = anchors[at][2] if at < len(anchors) else MOST_MEMBERS
            number = _free(low, high, known, listed, deleted)
            if number is None:  # its neighbours are guesses, too, or records contradict each other
                behind = max([*known, *(first + count - 1 for first, count in deleted.runs)]) + 1
                number = _free(behind, MOST_MEMBERS, known, (), pieces.listed)
            if number is None:  # records claim that all that there could be were deleted
                continue
            known[number] = member
            anchors.insert(at, (member.offset, member.length, number))

    def _read_across(self, evidence: Sequence[Evidence]) -> None:
        """Members that lie on volumes of one pool whose records are of different commits.

        One of the volumes was given up, so the records on the others list what is whole without it; now it is here again. Such members
        belong between those that are known already. Only their bytes can tell that they are what they were.
        """
        known = self._pieces.members
        there = {(m.offset, m.name, m.digest) for m in known.values()}
        objects = Objects([footer for _, footer in self._read_set(evidence)])
        order = sorted(known, key=lambda number: (known[number].offset, known[number].length))
        places = [(known[number].offset, known[number].length) for number in order]
        between: dict[int, list[Member]] = {}
        for member in sorted(
            [*objects.certain, *objects.perhaps], key=lambda m: (m.offset, m.length)
        ):
            if (member.offset, member.name, member.digest) not in there:
                at = bisect_left(places, (member.offset, member.length))
                if is_proven(self._aggregate, member, evidence):
                    between.setdefault(at, []).append(member)
        for at, members in between.items():
            first = order[at - 1] + 1 if at else 0
            last = at == len(order)
            self._fill_in(members, first, first + len(members) if last else order[at], last=last)

    def _fill_in(self, members: Sequence[Member], first: int, end: int, *, last: bool) -> None:
        """Give members, in the order of their data, the numbers from `first` to before `end`; behind the `last` known one there may be more.

        Where some of these were deleted it must be clear which members these were: nothing that was deleted comes back.
        """
        deleted = self._pieces.deleted
        if last:
            clear = max(map(sum, deleted.runs), default=0) <= first
        else:
            clear = len(members) == end - first or not any(n in deleted for n in range(first, end))
        if clear:
            for number, member in zip(range(first, end), members, strict=False):
                if number not in deleted:
                    self._pieces.members[number] = member


def is_proven(aggregate: bytes, member: Member, evidence: Sequence[Evidence]) -> bool:
    """Whether the bytes of a member, from where it may have begun, have its digest in one of the pools."""
    for pool, mine in by_pool(evidence).items():
        copy = CopyEntry(pool, None, tuple(places_of(mine)))
        volumes = {found.volume.uuid: found.volume for found in mine}
        reader = CopyReader(aggregate, [copy], volumes=volumes.__getitem__)
        hasher = xxhash.xxh3_128()
        with suppress(FanoutError):
            for piece in reader.stream(member.offset, member.length):
                hasher.update(piece)
            if hasher.digest() == member.digest:
                return True
    return False


def _free(
    low: int,
    high: int,
    known: Collection[int],
    listed: Iterable[tuple[int, int]],
    not_these: MemberSet,
) -> int | None:
    """A number from `low` to before `high` that nobody has: the first of those that are listed, else the first that is not one of those."""
    for first, count in listed:
        number = max(first, low)
        while number in known:
            number += 1
        if number < min(first + count, high):
            return number
    number = low
    for first, count in not_these.runs:  # not spelled out: a record may claim four billion
        while number in known and number < first:
            number += 1
        if first <= number < first + count:
            number = first + count
    while number in known:
        number += 1
    return number if number < high else None


def _is_original(header: SpanHeader) -> bool:
    """Whether it is of what the transaction itself wrote, in several pools at once."""
    return len({place.pool for place in header.places}) > 1


def _are_all_original(spans: Sequence[tuple[SpanHeader, SpanFooter]]) -> bool:
    """Whether all that the transaction itself wrote is among these spans: from the first to the final one."""
    mine = [footer for header, footer in spans if _is_original(header)]
    numbers = sorted(footer.number for footer in mine)
    return numbers == list(range(len(numbers))) and any(footer.final for footer in mine)


def members_of(ranges: Iterable[range] | None) -> MemberSet:
    """Members that a record lists; none is spelled out."""
    return MemberSet.joined((run.start, len(run)) for run in ranges or ())


def by_pool(evidence: Iterable[Evidence]) -> dict[str, list[Evidence]]:
    """What the records of each pool say that name spans."""
    found: dict[str, list[Evidence]] = {}
    for one in evidence:
        if one.record.spans:
            found.setdefault(one.volume.pool, []).append(one)
    return found


def places_of(evidence: Sequence[Evidence]) -> list[Place]:
    """The spans that records of one pool name, in order of number."""
    return sorted(
        Place(span.number, found.volume.uuid, *span[1:])
        for found in evidence
        for span in found.record.spans
    )


def _alike(evidence: Sequence[Evidence]) -> list[list[Evidence]]:
    """Evidence of one commit, by what was written together: a deletion gives all copies the same number, also those that are repairs.

    Copies belong together unless they say different things of a span of one number. Those with the most data come first.
    """
    sets: list[tuple[dict[int, tuple[int, int]], list[Evidence]]] = []
    for mine in by_pool(evidence).values():
        spans = {s.number: (s.data_start, s.data_length) for f in mine for s in f.record.spans}
        for known, those in sets:
            if all(known.get(number, place) == place for number, place in spans.items()):
                known.update(spans)
                those.extend(mine)
                break
        else:
            sets.append((spans, mine))
    sets.sort(key=lambda one: -sum(length for _, length in one[0].values()))
    return [those for _, those in sets]


def _others(deleted: MemberSet) -> Iterator[int]:
    """The numbers that are not in a set, ascending and without end."""
    at = 0
    for first, size in deleted.runs:
        yield from range(at, first)
        at = first + size
    yield from count_from(at)


def _solid(members: Sequence[Member]) -> int:
    """How many members, from the first byte on, follow one another without a hole."""
    position = 0
    for count, member in enumerate(members):
        if member.offset != position:
            return count
        position += member.length
    return len(members)


def _reach(members: Sequence[Member]) -> int:
    return members[-1].offset + members[-1].length if members else 0
