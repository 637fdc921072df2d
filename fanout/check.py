"""Verifies a whole store, and changes nothing: catalog, superblocks, directories, spans, bytes, gaps.

::

    catalog ──> its own structure          volumes ──> both superblocks, every directory block
       └── against each directory: the same aggregates, at the same commits, at the same places
       └── each aggregate ──> each copy ──> header, footer, sums, digests ──> is every object somewhere good?
                          └─> gaps: what the headers demand, less what the copies hold; then compared with the gap rows

What it promises:

1. Nothing is written, neither to a volume nor to the catalog.
2. Nobody writes meanwhile: it holds the locks of catalog and volumes, and refuses to run beside a writer.
3. One thing that is wrong hides nothing else: it is noted, and the check goes on.
4. Gaps are computed without a look at the gap rows.

Every problem says where it is, what is wrong, and what mends it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import xxhash

from fanout import config as configuration
from fanout import format as fmt
from fanout.catalog import CatalogReader, writer_lock
from fanout.config import Config
from fanout.errors import (
    CatalogError,
    FanoutError,
    InterfaceError,
    VolumeBusy,
    VolumeForeign,
    VolumeTorn,
)
from fanout.evidence import Coverage, Objects, empty_objects
from fanout.format import Op, StoredSpan
from fanout.scribe import record_of
from fanout.store import LOCK_WAIT, Store, open_engine
from fanout.types import PoolKind
from fanout.volume import Volume

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fanout.catalog import (
        AggregateEntry,
        CopyEntry,
        GapEntry,
        MemberEntry,
        Place,
        VolumeEntry,
    )
    from fanout.engine import Engine
    from fanout.format import SpanFooter, SpanHeader

    # Bytes done, and bytes in all.
    Progress = Callable[[int, int], None]

MAX_PROBLEMS = 10_000  # kept in a report; beyond it they are only counted
BATCH_BLOCKS = 8  # of the sums, read at once
PAGE = 256  # aggregates looked up at once
WINDOW = 1 << 20  # of a directory

REBUILD: Final = "keep the catalog, and make it anew: 'fanout rebuild catalog --force'"
RECONCILE: Final = (
    "'fanout backup stgpool' or 'fanout copy activedata' into that pool compares and mends"
)
REFILL: Final = (
    "'get' goes round it while another copy is good; 'fanout audit stgpool POOL --fix' makes it a gap, and "
    "'fanout backup stgpool', 'copy activedata' or 'restore stgpool' closes that"
)
APPEND: Final = "the next opening for writing appends what is missing"
REWRITE: Final = "the next opening for writing writes it anew"
REPLACE: Final = "mend or mount what is there; if it is lost, 'fanout retire volume PATH' makes what it held gaps that can be closed"
SEND: Final = "send the object again; look for the medium that was lost"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        what: is wrong.
        mend: what mends it.
        pool: name, if it is about one.
        path: of the volume, or of the catalog.
        offset: on the volume; None: it is about no place.
        object: name, if it is about one; others may share its fate, then `what` says how many.
    """

    what: str
    mend: str
    pool: str = ""
    path: str = ""
    offset: int | None = None
    object: bytes = b""

    def __str__(self) -> str:
        place = self.path + (f" at {self.offset}" if self.offset is not None else "")
        named = f"{self.object!r}: " if self.object else ""
        return ": ".join(part for part in (self.pool, place) if part) + f": {named}{self.what}"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was looked at, and what was found.

    Attributes:
        problems: the first `MAX_PROBLEMS` of them.
        more: how many further ones.
        volumes: how many were checked.
        aggregates: how many.
        objects: how many versions.
        spans: how many copies of spans.
        bytes: that were read and compared; 0 without `data`.
        seconds: it took.
    """

    problems: tuple[Problem, ...]
    more: int
    volumes: int
    aggregates: int
    objects: int
    spans: int
    bytes: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_store(
    config_or_store: Config | str | os.PathLike[str] | Store,
    *,
    data: bool = True,
    lock_wait: float = LOCK_WAIT,
    on_progress: Progress | None = None,
) -> CheckReport:
    """Verify everything that a store has.

    Args:
        config_or_store: a configuration, the path of one, or a store that is open read-only.
        data: read every byte of every copy, and compare sums and digests. Without it: headers, footers, directories, catalog.
        lock_wait: seconds to wait for the locks.
        on_progress: called with bytes done and bytes in all.

    Raises:
        CatalogBusy, VolumeBusy: somebody writes to the store, or has it open for writing.
        InterfaceError: the store that was given is open for writing.
        CatalogError: there is no catalog, or it cannot be opened.
    """
    if isinstance(config_or_store, Store):
        if not config_or_store.read_only:
            raise InterfaceError("a store cannot be checked while it is open for writing; close it")
        config = config_or_store.config
    elif isinstance(config_or_store, Config):
        config = config_or_store
    else:
        config = configuration.load(config_or_store)
    with ExitStack() as closing:
        path = config.store.catalog
        closing.enter_context(writer_lock(path, wait=lock_wait))
        catalog = closing.enter_context(CatalogReader(path))
        engine = closing.enter_context(open_engine(config))
        check = _Check(catalog, engine, data=data, on_progress=on_progress)
        closing.callback(check.close)
        return check.run(lock_wait)


class _Check:
    """One check. Single use, one thread."""

    def __init__(
        self, catalog: CatalogReader, engine: Engine, *, data: bool, on_progress: Progress | None
    ) -> None:
        self._catalog, self._engine, self._data = catalog, engine, data
        self._on_progress = on_progress
        self._volumes: dict[bytes, Volume] = {}
        self._known: dict[bytes, VolumeEntry] = {}
        self._kinds: dict[str, PoolKind] = {}
        self._problems: list[Problem] = []
        self._more = 0
        self._aggregates = self._objects = self._spans = self._bytes = 0
        self._done = self._total = 0

    def close(self) -> None:
        """Let the volumes go."""
        for volume in self._volumes.values():
            volume.close()

    def run(self, lock_wait: float) -> CheckReport:
        """Look at everything.

        Raises:
            VolumeBusy: somebody has a volume locked.
        """
        began = time.monotonic()
        try:
            for found in self._catalog.verify():
                self._catalog_problem(found)
            self._check_volumes(lock_wait)
            self._check_aggregates()
        except CatalogError as error:
            self._catalog_problem(f"it cannot be read any further: {error}")
        return CheckReport(
            problems=tuple(self._problems),
            more=self._more,
            volumes=len(self._volumes),
            aggregates=self._aggregates,
            objects=self._objects,
            spans=self._spans,
            bytes=self._bytes,
            seconds=time.monotonic() - began,
        )

    # ---- what is noted -----------------------------------------------------------------------------

    def _note(self, problem: Problem) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem)
        else:
            self._more += 1

    def _catalog_problem(self, what: str, *, name: bytes = b"", pool: str = "") -> None:
        self._note(Problem(what, REBUILD, pool=pool, path=self._catalog.path, object=name))

    def _volume_problem(
        self, volume: Volume, offset: int | None, what: str, mend: str, name: bytes = b""
    ) -> None:
        self._note(Problem(what, mend, volume.pool, volume.path, offset, name))

    # ---- volumes -----------------------------------------------------------------------------------

    def _check_volumes(self, lock_wait: float) -> None:
        self._kinds = {pool.name: pool.kind for pool in self._catalog.pools()}
        entries = self._catalog.volumes()
        self._known = {entry.volume: entry for entry in entries}
        self._total = sum(usage.live_bytes for usage in self._catalog.usage())
        for entry in entries:
            volume = self._open(entry, lock_wait)
            if volume is not None:
                self._volumes[entry.volume] = volume
                self._check_superblocks(volume, entry)
                self._check_directory_blocks(volume)
                self._check_regions(volume)
                try:
                    self._compare_directory(volume)
                except CatalogError as error:
                    self._catalog_problem(f"cannot be compared with {volume.path}: {error}")

    def _open(self, entry: VolumeEntry, lock_wait: float) -> Volume | None:
        """The volume, with its lock and its directory; nothing is written without a claim."""
        try:
            return Volume.open(
                self._engine,
                entry.path,
                store=self._catalog.store_id,
                pool=entry.pool,
                volume=entry.volume,
                catalog_epoch=entry.epoch,
                size=entry.size,
                lock_wait=lock_wait,
                claim=False,
            )
        except VolumeBusy:
            raise
        except (FanoutError, OSError) as error:
            what = str(error).removeprefix(f"{entry.path}: ")
            self._note(Problem(what, REPLACE, entry.pool, entry.path))
            return None

    def _check_superblocks(self, volume: Volume, entry: VolumeEntry) -> None:
        newest = volume.superblock
        if (newest.size, newest.granule) != (entry.size, entry.granule):
            self._catalog_problem(
                f"knows {volume.path} with {entry.size} bytes in granules of {entry.granule}, its "
                f"superblock says {newest.size} in granules of {newest.granule}",
                pool=entry.pool,
            )
        for copy in (0, 1):
            offset = newest.copy_offset(copy)
            try:
                block = fmt.decode_superblock(
                    volume.read(offset, fmt.BLOCK), path=volume.path, offset=offset
                )
            except FanoutError as error:
                what = f"superblock {'AB'[copy]} is damaged: {_without_path(error, volume)}"
                self._volume_problem(volume, offset, what, REWRITE)
                continue
            if block.volume != newest.volume:
                what = f"superblock {'AB'[copy]} is of volume {block.volume.hex()}"
                self._volume_problem(volume, offset, what, REWRITE)

    def _check_directory_blocks(self, volume: Volume) -> None:
        """A damaged block between good ones of its generation: what a crash tears is behind them."""
        block = volume.superblock
        for half in (0, 1):
            bad: dict[int, str] = {}
            tops: dict[int, int] = {}
            for number, data in self._directory_blocks(volume, half):
                try:
                    found = fmt.decode_block(
                        data, block, path=volume.path, half=half, number=number
                    )
                except VolumeForeign:
                    continue  # left by an earlier use of the medium
                except VolumeTorn as error:
                    bad[number] = _without_path(error, volume)
                else:
                    tops[found.place.generation] = number
            last = tops[max(tops)] if tops else -1
            for number, what in bad.items():
                if number < last:
                    offset = block.half_offset(half) + number * block.granule
                    mend = "harmless if nothing else is reported of this volume; " + APPEND
                    self._volume_problem(volume, offset, what, mend)

    def _directory_blocks(self, volume: Volume, half: int) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of every block that was ever written."""
        block = volume.superblock
        nothing = bytes(block.granule)
        for start in range(0, block.directory_bytes, WINDOW):
            length = min(WINDOW, block.directory_bytes - start)
            offset = block.half_offset(half) + start
            try:
                data = volume.read(offset, length)
            except FanoutError as error:
                what = f"its directory cannot be read: {_without_path(error, volume)}"
                self._volume_problem(volume, offset, what, REPLACE)
                return
            for at in range(0, length, block.granule):
                piece = data[at : at + block.granule]
                if piece != nothing:
                    yield (start + at) // block.granule, piece

    def _check_regions(self, volume: Volume) -> None:
        """What the catalog says is live lies inside the space, at granules, and nowhere twice."""
        block = volume.superblock
        free = block.space_offset
        for offset, length in self._catalog.live_regions(volume.uuid):
            end = offset + fmt.round_up(length, block.granule)
            if offset < block.space_offset or end > block.space_offset + block.space_length:
                what = f"a region of {length} bytes is not inside the space of the volume"
            elif offset % block.granule:
                what = f"a region does not begin at a multiple of {block.granule}"
            elif offset < free:
                what = f"a region of {length} bytes overlaps the one before"
            else:
                what = ""
            if what:
                self._volume_problem(volume, offset, what, REBUILD)
            free = max(free, end)

    # ---- directories -------------------------------------------------------------------------------

    def _compare_directory(self, volume: Volume) -> None:
        """The volume's own evidence says what the catalog says."""
        assert volume.directory is not None
        said = {record.aggregate: record for record in volume.directory.holds()}
        held = self._catalog.held_csns(volume.uuid)
        dead = {entry.aggregate: entry.csn for entry in self._catalog.dead(volume.uuid)}
        for aggregate in said.keys() & dead.keys():
            what = f"its directory lacks the delete of aggregate {aggregate.hex()} by commit {dead[aggregate]}"
            self._volume_problem(volume, said[aggregate].spans[0].offset, what, APPEND)
        for aggregate in said.keys() - held.keys() - dead.keys():
            what = (
                f"its directory names aggregate {aggregate.hex()} (commit {said[aggregate].csn}), "
                "the catalog knows nothing of it here"
            )
            self._volume_problem(volume, said[aggregate].spans[0].offset, what, REBUILD)
        for aggregate in held.keys() - said.keys():
            what = f"its directory lacks aggregate {aggregate.hex()} of commit {held[aggregate]}"
            self._volume_problem(volume, None, what, APPEND)
        for expected in self._catalog.held_spans(volume.uuid, sorted(said.keys() & held.keys())):
            record = said[expected.aggregate]
            wanted = record_of(expected)
            if not record.version:  # of version 1 of the format, which did not say so
                wanted = replace(wanted, version=0, committed=record.committed)
            if wanted.csn > record.csn:
                what = f"its directory knows aggregate {record.aggregate.hex()} of commit {record.csn}, the catalog of {wanted.csn}"
                self._volume_problem(volume, record.spans[0].offset, what, APPEND)
                continue
            same = replace(record, op=Op.COMMIT, spans=tuple(sorted(record.spans))) == replace(
                wanted, spans=tuple(sorted(wanted.spans))
            )
            if not same:
                names = [n for n in _FIELDS if getattr(record, n) != getattr(wanted, n)]
                what = f"directory and catalog disagree on aggregate {record.aggregate.hex()}: {', '.join(names)}"
                self._volume_problem(volume, record.spans[0].offset, what, REBUILD)

    # ---- aggregates --------------------------------------------------------------------------------

    def _check_aggregates(self) -> None:
        after = 0
        while True:
            page = self._catalog.aggregates(after=after, limit=PAGE)
            for _, entry in page:
                self._check_aggregate(entry)
            if len(page) < PAGE:
                break
            after = page[-1][0]
        if self._on_progress is not None:
            self._on_progress(self._total, self._total)

    def _check_aggregate(self, entry: AggregateEntry) -> None:
        self._aggregates += 1
        members = self._catalog.members(entry.aggregate)
        self._objects += len(members)
        objects = entry.objects - len(entry.erased)
        if len(members) != objects:
            self._catalog_problem(
                f"has {len(members)} of the {objects} objects of aggregate "
                f"{entry.aggregate.hex()}: the others are lost to it"
            )
        copies = self._catalog.copies(entry.aggregate)
        good: set[int] = set()
        demanded: tuple[str, ...] = ()
        for copy in copies:
            checked = _Copy(self, entry, members, copy)
            good |= checked.check()
            demanded = demanded or checked.required
        for member in members:
            if member.member not in good:
                pools = ", ".join(copy.pool for copy in copies if copy.holds(member.member))
                self._catalog_problem_of(member, entry, pools)
        self._check_gaps(entry, members, copies, demanded)

    def _catalog_problem_of(self, member: MemberEntry, entry: AggregateEntry, pools: str) -> None:
        what = f"no pool has a good copy of version {member.version} of {entry.node}"
        held = f"; said to hold it: {pools}" if pools else ", and none is said to hold it"
        self._note(Problem(what + held, SEND, entry.primary, "", None, member.name))

    def _check_gaps(
        self,
        entry: AggregateEntry,
        members: Sequence[MemberEntry],
        copies: Sequence[CopyEntry],
        demanded: tuple[str, ...],
    ) -> None:
        """Promise 4: required, less held, is what the rows should say; counted as `query gap` counts."""
        known = (entry.primary, *entry.required)
        if demanded and demanded != known:
            self._catalog_problem(
                f"says that aggregate {entry.aggregate.hex()} belongs in {', '.join(known)}; its "
                f"headers say {', '.join(demanded)}"
            )
        held = {copy.pool: _held(copy, members) for copy in copies}
        rows = {
            gap.pool: gap
            for gap in self._catalog.gaps(aggregate=entry.aggregate, include_empty=True)
        }
        for pool in dict.fromkeys((*(demanded or known), *rows)):
            count = {
                m.member
                for m in members
                if m.active or self._kinds.get(pool) is not PoolKind.ACTIVE_DATA
            }
            lacking = count - held.get(pool, set())
            self._compare_gap(entry, pool, rows.get(pool), count, lacking, required=pool in known)

    def _compare_gap(
        self,
        entry: AggregateEntry,
        pool: str,
        row: GapEntry | None,
        count: set[int],
        lacking: set[int],
        *,
        required: bool,
    ) -> None:
        noted = {index for index in count if row and (row.missing is None or index in row.missing)}
        if noted == lacking or (not required and noted <= lacking):
            # Of a pool that was not demanded a repair may have noted less than all.
            return
        name = f"aggregate {entry.aggregate.hex()} of {entry.node}"
        if row is None:
            what = f"{pool} lacks {len(lacking)} objects of {name}, and no gap says so"
        elif not lacking:
            what = f"a gap says that {pool} lacks {len(noted)} objects of {name}; it lacks none"
        else:
            what = f"a gap says that {pool} lacks {len(noted)} objects of {name}; it lacks {len(lacking)}"
        self._note(Problem(what, RECONCILE, pool, self._catalog.path))

    def _advance(self, size: int) -> None:
        self._done += size
        if self._on_progress is not None:
            self._on_progress(min(self._done, self._total), self._total)


class _BadBlock(NamedTuple):
    """Bytes of a span that are not what they should be; `begin` and `end` are of the aggregate's data."""

    volume: Volume
    place: Place
    offset: int
    begin: int
    end: int
    what: str


_FIELDS = (
    "csn",
    "transaction",
    "attempt",
    "spans",
    "present",
    "node",
    "kind",
    "time_ns",
    "deleted",
    "committed",
    "version",
)


class _Copy:
    """One pool's copy of one aggregate, on its way through the check.

    Attributes:
        required: what the headers demand; empty: none could be read.
    """

    def __init__(
        self,
        check: _Check,
        entry: AggregateEntry,
        members: Sequence[MemberEntry],
        copy: CopyEntry,
    ) -> None:
        self._check, self._entry, self._copy = check, entry, copy
        self._members = members
        self.required: tuple[str, ...] = ()
        self._spans: list[tuple[Volume, Place, SpanFooter]] = []
        self._damaged: list[tuple[Volume, Place, FanoutError]] = []
        self._empty: set[tuple[bytes, int]] = set()  # objects without bytes that a good span names
        self._broken = False  # a span could not be read: what is missing has been said
        self._digests: dict[tuple[bytes, int], bytes] = {}  # by name and start, of the bytes
        self._bad: list[_BadBlock] = []

    def check(self) -> set[int]:
        """Look at every span; returns the members of which all is good."""
        for place in self._copy.places:
            self._check_span(place)
        for volume, place, error in self._damaged:
            self._note_damage(volume, place, error)
        if self._check._data:
            self._read_data()
            self._note_bad_blocks()
        return self._good()

    # ---- headers and footers -----------------------------------------------------------------------

    def _check_span(self, place: Place) -> None:
        check = self._check
        volume = check._volumes.get(place.volume)
        if volume is None:
            self._broken = True  # the volume has its own line
            return
        check._spans += 1
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
            return span.offset, _without_path(error, volume)
        if (header.aggregate, header.number) != (self._entry.aggregate, span.number):
            what = (
                "another span is there: "
                f"number {header.number} of aggregate {header.aggregate.hex()}"
            )
            return span.offset, what
        return span.foot_offset, _without_path(error, volume)

    def _check_header(self, volume: Volume, place: Place, header: SpanHeader) -> None:
        said = (header.transaction, header.attempt)
        if said != (self._entry.transaction, self._entry.attempt):
            what = f"its header is of transaction {said[0].hex()}, attempt {said[1]}"
            self._check._volume_problem(volume, place.offset, what, REBUILD)
        pools = {
            p.pool for p in header.places if (p.volume, p.offset) == (place.volume, place.offset)
        }
        if pools != {self._copy.pool}:
            what = f"its header says that it is in {', '.join(pools)}, the catalog in {self._copy.pool}"
            self._check._volume_problem(volume, place.offset, what, REBUILD)

    # ---- bytes -------------------------------------------------------------------------------------

    def _read_data(self) -> None:
        """Every byte of every span: sums of blocks, digests of objects.

        Of an object that lies there several times the newest writing counts: it is the one that serves.
        """
        unfinished: dict[
            int, tuple[int, xxhash.xxh3_128]
        ] = {}  # by position: of an object that goes on there
        newest: dict[tuple[bytes, int], int] = {}
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
                if place.span >= newest.get((name, start), 0):
                    newest[name, start] = place.span
                    self._digests[name, start] = hasher.digest()
                start, hasher = end, xxhash.xxh3_128()
            for _ in pieces:
                pass  # a span without a byte of data has a header to be summed
            self._check._advance(place.used)

    def _pieces(self, volume: Volume, place: Place, footer: SpanFooter) -> Iterator[memoryview]:
        """The span's data; where it is damaged, after that was said."""
        size = footer.block_size
        end = fmt.HEAD_SIZE + place.data_length
        for at in range(0, end, size * BATCH_BLOCKS):
            length = min(size * BATCH_BLOCKS, end - at)
            try:
                data = memoryview(volume.read(place.offset + at, length))
            except FanoutError as error:
                self._note_bytes(volume, place, at, length, _without_path(error, volume))
                data = memoryview(bytes(length))
            else:
                self._check._bytes += length
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
        self._bad.append(_BadBlock(volume, place, place.offset + at, begin, end, what))

    def _note_bad_blocks(self) -> None:
        """Say which blocks are wrong and harm an object. A neighbour in the same block is good if its own digest is."""
        for bad in self._bad:
            harmed = [
                member.name
                for member in self._residents(bad.place, bad.begin, bad.end)
                if self._digests.get((member.name, member.start)) != member.digest
            ]
            if harmed:
                self._note(bad.volume, bad.offset, bad.what, harmed)

    # ---- objects -----------------------------------------------------------------------------------

    def _good(self) -> set[int]:
        footers = [footer for _, _, footer in self._spans]
        objects = Objects(footers)
        found = {(m.name, m.offset): m for m in objects.certain}
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
            there = found.pop(key, None) or perhaps.get(key)
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
        if not self._check._data:
            return True
        if self._digests.get((member.name, member.start)) == member.digest:
            return True
        if any(
            bad.begin < member.start + member.length and member.start < bad.end for bad in self._bad
        ):
            return False  # that has been said
        volume, place = self._span_of(member)
        at = fmt.HEAD_SIZE + member.start - place.data_start
        self._note(volume, place.offset + at, "its bytes have another digest", [member.name])
        return False

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
            self._check._catalog_problem(
                f"does not know an object at byte {start} of aggregate "
                f"{self._entry.aggregate.hex()}, which {self._copy.pool} holds",
                name=name,
                pool=self._copy.pool,
            )

    # ---- noting ------------------------------------------------------------------------------------

    def _relies_on(self, place: Place, begin: int, end: int) -> bool:
        """Whether a copy that should be whole has these bytes from the span."""
        return self._copy.present is None and place in self._copy.servers(begin, end - begin)

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
        self._check._volume_problem(volume, offset, what, REFILL, first)

    def _catalog_note(self, member: MemberEntry, what: str) -> None:
        self._check._catalog_problem(
            f"version {member.version} of {self._entry.node} in {self._copy.pool} {what}",
            name=member.name,
            pool=self._copy.pool,
        )


def _held(copy: CopyEntry, members: Sequence[MemberEntry]) -> set[int]:
    """Members that a copy really has bytes of."""
    coverage = Coverage(copy.places)
    return {m.member for m in members if copy.holds(m.member) and coverage.holds(m.start, m.length)}


def _without_path(error: BaseException, volume: Volume) -> str:
    """What an error says, without the path that stands beside it."""
    return str(error).removeprefix(f"{volume.path}: ")
