"""One pool's copy of one aggregate: headers, footers, sums, digests; which of its objects are good."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import xxhash

from fanout import format as fmt
from fanout.check.findings import REBUILD, REFILL, without_path
from fanout.errors import FanoutError
from fanout.evidence import Coverage, Objects, empty_objects
from fanout.format import StoredSpan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fanout.catalog import AggregateEntry, CopyEntry, MemberEntry, Place
    from fanout.check.findings import Findings
    from fanout.format import SpanFooter, SpanHeader
    from fanout.types import Member
    from fanout.volume import Volume

BATCH_BLOCKS = 8  # of the sums, read at once


class BadBlock(NamedTuple):
    """Bytes of a span that are not what they should be; `begin` and `end` are of the aggregate's data."""

    volume: Volume
    place: Place
    offset: int
    begin: int
    end: int
    what: str


class CopyCheck:
    """One pool's copy of one aggregate, on its way through the check.

    Attributes:
        required: what the headers demand; empty: none could be read.
    """

    def __init__(
        self,
        findings: Findings,
        volumes: Mapping[bytes, Volume],
        entry: AggregateEntry,
        members: Sequence[MemberEntry],
        copy: CopyEntry,
    ) -> None:
        self._findings, self._volumes, self._entry, self._copy = findings, volumes, entry, copy
        self._members = members
        self.required: tuple[str, ...] = ()
        self._spans: list[tuple[Volume, Place, SpanFooter]] = []
        self._damaged: list[tuple[Volume, Place, FanoutError]] = []
        self._empty: set[tuple[bytes, int]] = set()  # objects without bytes that a good span names
        self._broken = False  # a span could not be read: what is missing has been said
        # Of the bytes, by name, start and end.
        self._digests: dict[tuple[bytes, int, int], bytes] = {}
        self._bad: list[BadBlock] = []

    def check(self) -> set[int]:
        """Look at every span; returns the members of which all is good."""
        for place in self._copy.places:
            self._check_span(place)
        for volume, place, error in self._damaged:
            self._note_damage(volume, place, error)
        if self._findings.data:
            self._read_data()
            self._note_bad_blocks()
        return self._good()

    # ---- headers and footers -----------------------------------------------------------------------

    def _check_span(self, place: Place) -> None:
        volume = self._volumes.get(place.volume)
        if volume is None:
            self._broken = True  # the volume has its own line
            return
        self._findings.spans += 1
        span = StoredSpan(place.span, *place[2:])
        try:
            header, footer = volume.read_span(span, aggregate=self._entry.aggregate)
        except FanoutError as error:
            self._damaged.append((volume, place, error))
            return
        self.required = self.required or header.required
        self._check_header(volume, place, header)
        self._spans.append((volume, place, footer))
        self._empty |= empty_objects(footer)

    def _note_damage(self, volume: Volume, place: Place, error: FanoutError) -> None:
        """Say that header or footer of a span is damaged, if anything depends on it."""
        begin, end = place.data_start, place.data_start + place.data_length
        residents = self._residents(place, begin, end)
        if residents or self._relies_on(place, begin, end):
            self._broken = True
            offset, what = self._damage(volume, StoredSpan(place.span, *place[2:]), error)
            self._note(volume, offset, what, [member.name for member in residents])

    def _damage(self, volume: Volume, span: StoredSpan, error: FanoutError) -> tuple[int, str]:
        """Where the damage is, in header or footer, and what it is."""
        try:
            header = volume.read_header(span.offset)
        except FanoutError:
            return span.offset, without_path(error, volume)
        if (header.aggregate, header.number) != (self._entry.aggregate, span.number):
            what = (
                "another span is there: "
                f"number {header.number} of aggregate {header.aggregate.hex()}"
            )
            return span.offset, what
        return span.foot_offset, without_path(error, volume)

    def _check_header(self, volume: Volume, place: Place, header: SpanHeader) -> None:
        said = (header.transaction, header.attempt)
        if said != (self._entry.transaction, self._entry.attempt):
            what = f"its header is of transaction {said[0].hex()}, attempt {said[1]}"
            self._findings.of_volume(volume, place.offset, what, REBUILD)
        pools = {
            p.pool for p in header.places if (p.volume, p.offset) == (place.volume, place.offset)
        }
        if pools != {self._copy.pool}:
            what = f"its header says that it is in {', '.join(pools)}, the catalog in {self._copy.pool}"
            self._findings.of_volume(volume, place.offset, what, REBUILD)

    # ---- bytes -------------------------------------------------------------------------------------

    def _read_data(self) -> None:
        """Every byte of every span: sums of blocks, digests of objects.

        Of an object that lies there several times the newest writing counts: it is the one that serves.
        """
        unfinished: dict[
            int, tuple[int, xxhash.xxh3_128]
        ] = {}  # by position: of an object that goes on there
        newest: dict[tuple[bytes, int, int], int] = {}
        for volume, place, footer in sorted(
            self._spans, key=lambda span: (span[1].data_start, span[1].span)
        ):
            pieces = self._pieces(volume, place, footer)
            left = memoryview(b"")
            start, hasher = unfinished.get(place.data_start, (place.data_start, xxhash.xxh3_128()))
            hasher = hasher.copy()
            for name, offset, length, digest in footer.fragments:
                wanted = length
                while wanted:
                    left = left or next(pieces)
                    part, left = left[:wanted], left[wanted:]
                    hasher.update(part)
                    wanted -= len(part)
                end = footer.data_start + offset + length
                if digest is None:
                    unfinished[end] = start, hasher
                    continue
                if place.span >= newest.get((name, start, end), 0):
                    newest[name, start, end] = place.span
                    self._digests[name, start, end] = hasher.digest()
                start, hasher = end, xxhash.xxh3_128()
            for _ in pieces:
                pass  # a span without a byte of data has a header to be summed
            self._findings.advance(place.used)

    def _pieces(self, volume: Volume, place: Place, footer: SpanFooter) -> Iterator[memoryview]:
        """The span's data; where it is damaged, after that was said."""
        size = footer.block_size
        end = fmt.HEAD_SIZE + place.data_length
        for at in range(0, end, size * BATCH_BLOCKS):
            length = min(size * BATCH_BLOCKS, end - at)
            try:
                data = memoryview(volume.read(place.offset + at, length))
            except FanoutError as error:
                self._note_bytes(volume, place, at, length, without_path(error, volume))
                data = memoryview(bytes(length))
            else:
                self._findings.bytes += length
                for inner in range(0, length, size):
                    piece = data[inner : inner + size]
                    if fmt.sum64(piece) != footer.sum_of((at + inner) // size):
                        what = (
                            "the sum of a block is wrong: its bytes are not those that were stored"
                        )
                        self._note_bytes(volume, place, at + inner, len(piece), what)
            yield data[fmt.HEAD_SIZE :] if at == 0 else data

    def _note_bytes(self, volume: Volume, place: Place, at: int, length: int, what: str) -> None:
        begin = place.data_start + max(0, at - fmt.HEAD_SIZE)
        end = place.data_start + at + length - fmt.HEAD_SIZE
        self._bad.append(BadBlock(volume, place, place.offset + at, begin, end, what))

    def _note_bad_blocks(self) -> None:
        """Say which blocks are wrong and harm an object. A neighbour in the same block is good if its own digest is."""
        for bad in self._bad:
            harmed = [
                member.name
                for member in self._residents(bad.place, bad.begin, bad.end)
                if self._digest_of(member) != member.digest
            ]
            if harmed:
                self._note(bad.volume, bad.offset, bad.what, harmed)

    # ---- objects -----------------------------------------------------------------------------------

    def _good(self) -> set[int]:
        footers = [footer for _, _, footer in self._spans]
        objects = Objects(footers)
        found: dict[tuple[bytes, int], list[Member]] = {}
        for named in objects.certain:
            found.setdefault((named.name, named.offset), []).append(named)
        perhaps = {(m.name, m.offset): m for m in objects.perhaps}
        coverage = Coverage(self._copy.places)
        good = set()
        for member in self._members:
            if not self._copy.holds(member.member):
                continue
            if not coverage.holds(member.start, member.length):
                self._catalog_note(member, "is said to be held, and no span holds its bytes")
                continue
            key = member.name, member.start
            there = _taken(found, key, member) or perhaps.get(key)
            if there is None:
                if not self._broken:
                    self._catalog_note(member, "is said to be held, and no footer names it")
            elif (there.length, there.digest) != (member.length, member.digest):
                self._catalog_note(member, "has another length or digest than its footer says")
            elif self._good_bytes(member):
                good.add(member.member)
        self._check_unknown(found)
        return good

    def _good_bytes(self, member: MemberEntry) -> bool:
        if not self._findings.data:
            return True
        if self._digest_of(member) == member.digest:
            return True
        if any(
            bad.begin < member.start + member.length and member.start < bad.end for bad in self._bad
        ):
            return False  # that has been said
        volume, place = self._span_of(member)
        at = fmt.HEAD_SIZE + member.start - place.data_start
        self._note(volume, place.offset + at, "its bytes have another digest", [member.name])
        return False

    def _digest_of(self, member: MemberEntry) -> bytes | None:
        return self._digests.get((member.name, member.start, member.start + member.length))

    def _span_of(self, member: MemberEntry) -> tuple[Volume, Place]:
        serving = self._copy.servers(member.start, member.length)
        for volume, place, _ in self._spans:
            if place in serving:
                return volume, place
        volume, place, _ = self._spans[0]
        return volume, place

    def _check_unknown(self, left: Mapping[tuple[bytes, int], object]) -> None:
        """Objects that footers name and the catalog does not. What was replaced while it was copied is written and not held.

        Of what was deleted only the number is known.
        """
        known = {(member.name, member.start) for member in self._members}
        unknown = left.keys() - known
        for name, start in unknown if len(unknown) > len(self._entry.erased) else ():
            self._findings.of_catalog(
                f"does not know an object at byte {start} of aggregate "
                f"{self._entry.aggregate.hex()}, which {self._copy.pool} holds",
                name=name,
                pool=self._copy.pool,
            )

    # ---- noting ------------------------------------------------------------------------------------

    def _relies_on(self, place: Place, begin: int, end: int) -> bool:
        """Whether a copy that should be whole has these bytes from the span."""
        whole = self._copy.present is None and begin < end
        return whole and place in self._copy.servers(begin, end - begin)

    def _residents(self, place: Place, begin: int, end: int) -> list[MemberEntry]:
        """Held objects that have bytes, or begin, in this part of the aggregate's data, and that the span serves.

        Damage that an audit has found is a gap; a newer span serves, or nothing is held there.
        """
        found = []
        for member in self._members:
            if not self._copy.holds(member.member):
                continue
            if not member.length and (member.name, member.start) in self._empty:
                continue
            first = max(begin, member.start)
            last = min(end, member.start + member.length)
            inside = member.start < end and member.start + member.length > begin
            if not member.length:
                inside = begin <= member.start <= end
            if inside and place in self._copy.servers(first, max(0, last - first)):
                found.append(member)
        return found

    def _note(self, volume: Volume, offset: int, what: str, names: Sequence[bytes]) -> None:
        if len(names) > 1:
            what += f" ({len(names)} objects are in it)"
        first = names[0] if names else b""
        self._findings.of_volume(volume, offset, what, REFILL, first)

    def _catalog_note(self, member: MemberEntry, what: str) -> None:
        self._findings.of_catalog(
            f"version {member.version} of {self._entry.node} in {self._copy.pool} {what}",
            name=member.name,
            pool=self._copy.pool,
        )


def _taken(
    found: dict[tuple[bytes, int], list[Member]], key: tuple[bytes, int], member: MemberEntry
) -> Member | None:
    """One of what footers name there: versions without bytes share their place with each other, and with the next one."""
    those = found.pop(key, [])
    if not those:
        return None
    same = [one for one in those if (one.length, one.digest) == (member.length, member.digest)]
    taken = (same or those)[0]
    those.remove(taken)
    if those:
        found[key] = those
    return taken
