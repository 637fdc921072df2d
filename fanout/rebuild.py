"""Makes a catalog anew from the volumes alone, after it was lost.

::

    volumes ──locked, read──> directories ──union──> aggregates ──headers, footers──> members, order, gaps ──> restore
                                   └─ what no directory names ──> in doubt: listed, never visible

The rules are those of docs/on-disk-format.md, "Rebuilding a catalog from the volumes". What comes out equals the lost catalog, but for
what was never on a volume: the reasons of gaps (a new one stands there), attempts that failed, and the records of repairs
as transactions of their own.

What it promises:

1. Nothing is written to a volume, and nothing to the catalog's place before everything was read.
2. Nobody writes meanwhile: it needs the lock of every volume that can be opened.
3. A volume that is missing, damaged or foreign is named, and does not stop the rest. What only it held is named as lost, or as a gap.
4. Every span that a directory names keeps its region, also when nothing of it can be read: the rebuilt store never overwrites evidence.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from glob import escape
from itertools import chain
from itertools import count as count_from
from typing import TYPE_CHECKING, NamedTuple

from fanout import config as configuration
from fanout.catalog import (
    CatalogReader,
    MemberSet,
    NewGap,
    Place,
    PoolEntry,
    RestoredAggregate,
    RestoredCopy,
    RestoredDeletion,
    RestoredTransaction,
    restore,
)
from fanout.config import Config, DeviceType
from fanout.errors import CatalogError, FanoutError, VolumeBusy, VolumeError, VolumeForeign
from fanout.evidence import Coverage, Objects, Runs, empty_objects, find_spans
from fanout.format import Op
from fanout.making import entry_of, probe
from fanout.scribe import ranges_of
from fanout.store import LOCK_WAIT, open_engine
from fanout.types import Member, ObjectKind, PoolKind
from fanout.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from fanout.catalog import VolumeEntry
    from fanout.engine import Engine
    from fanout.evidence import FoundSpan
    from fanout.format import DirectoryRecord, SpanFooter, SpanHeader, StoredSpan

    # Bytes done, and bytes in all.
    Progress = Callable[[int, int], None]


# ---- what is reported ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SkippedVolume:
    """A volume that could not take part, and why."""

    pool: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class InDoubt:
    """A complete span that its volume's directory does not name: committed in the last instants, or never.

    Attributes:
        pool: of the volume.
        path: of the volume.
        offset: of the span there.
        used: its bytes.
        transaction: id.
        attempt: 1-based.
        aggregate: id.
        names: of the objects in it.
        committed: other volumes say that the transaction has committed; then this is a copy whose record was lost, and a gap.
    """

    pool: str
    path: str
    offset: int
    used: int
    transaction: bytes
    attempt: int
    aggregate: bytes
    names: tuple[bytes, ...]
    committed: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """An aggregate of which members cannot be had any more: no copy that could be opened has them.

    Attributes:
        aggregate: id.
        node: whose objects they were.
        known: how many members are still known by name.
        reason: what is not there.
    """

    aggregate: bytes
    node: str
    known: int
    reason: str


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What was found, and what was made of it.

    Attributes:
        catalog: path of the new catalog.
        kept: path of the catalog that stood there before, if one did.
        store: id of the store.
        csn: of the last commit.
        volumes: paths of those that took part.
        skipped: those that did not.
        transactions: that have committed.
        objects: versions of objects that are visible.
        bytes: of these.
        gaps: how many there are now, counted as `query gap` counts.
        in_doubt: complete spans that no directory names.
        lost: aggregates with members that are gone.
        deduced: transactions whose place in the order was deduced from their time: what was written first is gone.
        notes: what else an operator should know.
        seconds: it took.
    """

    catalog: str
    kept: str | None
    store: bytes
    csn: int
    volumes: tuple[str, ...]
    skipped: tuple[SkippedVolume, ...]
    transactions: int
    objects: int
    bytes: int
    gaps: int
    in_doubt: tuple[InDoubt, ...]
    lost: tuple[Lost, ...]
    deduced: int
    notes: tuple[str, ...]
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every volume took part and nothing is lost or in doubt."""
        return not (self.skipped or self.lost or self.in_doubt)


def rebuild_catalog(
    config: Config | str | os.PathLike[str],
    *,
    into: str | os.PathLike[str] | None = None,
    force: bool = False,
    lock_wait: float = LOCK_WAIT,
    on_progress: Progress | None = None,
) -> RebuildReport:
    """Make the catalog of a store anew, from its volumes.

    Args:
        config: a configuration, or the path of one: which pools and volumes there are.
        into: path of the new catalog; None: where the configuration says.
        force: keep a catalog that stands there under a new name, and take its place.
        lock_wait: seconds to wait for each volume's lock.
        on_progress: called with bytes done and bytes in all.

    Returns:
        What was found. The new catalog is durable.

    Raises:
        VolumeBusy: somebody has a volume open. Nothing was made.
        CatalogBusy: somebody has the catalog open for writing (with `force`).
        CatalogError: there is a catalog already (without `force`), no volume can be read, the volumes are of several stores, or
            the catalog cannot be written. Nothing has changed.
    """
    began = time.monotonic()
    if not isinstance(config, Config):
        config = configuration.load(config)
    path = os.path.abspath(config.store.catalog if into is None else into)
    if os.path.lexists(path) and not force:
        raise CatalogError(path, "there is a catalog already; nothing is overwritten")
    with ExitStack() as closing:
        engine = closing.enter_context(open_engine(config))
        media = _Media(config, path)
        closing.callback(media.close)
        media.open(engine, lock_wait)
        survey = _Survey(media)
        in_doubt = tuple(survey.in_doubt(on_progress))
        kept = restore(
            path,
            store=media.store,
            created=min(volume.superblock.created_ns for volume in media.volumes),
            pools=survey.pools(),
            volumes=[_entry_of(volume) for volume in media.volumes],
            transactions=survey.transactions(),
            deletions=survey.deletions(),
            csn=survey.csn,
            force=force,
        )
        with CatalogReader(path) as catalog:
            gaps = len(catalog.gaps())
        return RebuildReport(
            catalog=path,
            kept=kept,
            store=media.store,
            csn=survey.csn,
            volumes=tuple(volume.path for volume in media.volumes),
            skipped=tuple(media.skipped),
            transactions=survey.count,
            objects=survey.objects,
            bytes=survey.bytes,
            gaps=gaps,
            in_doubt=in_doubt,
            lost=tuple(survey.lost),
            deduced=survey.deduced,
            notes=tuple(dict.fromkeys(survey.notes)),
            seconds=time.monotonic() - began,
        )


# ---- the volumes -----------------------------------------------------------------------------------


class _Media:
    """The volumes of a configuration, as many as can be opened.

    Attributes:
        store: UUID of the store that they are of.
        volumes: open and locked, in the order in which they were made.
        skipped: the others.
    """

    def __init__(self, config: Config, catalog: str) -> None:
        self.config, self._catalog = config, catalog
        self.store = b""
        self.volumes: list[Volume] = []
        self.skipped: list[SkippedVolume] = []

    def open(self, engine: Engine, lock_wait: float) -> None:
        """Open all that can be.

        Raises:
            VolumeBusy: one is locked.
            CatalogError: none can be opened, or nobody can say of which store they are.
        """
        probed = list(self._probe(engine))
        stores = Counter(block.store for _, _, block in probed).most_common(2)
        if not stores:
            reasons = "; ".join(skipped.reason for skipped in self.skipped) or "none is configured"
            raise CatalogError(self._catalog, f"no volume can be read: {reasons}")
        if len(stores) == 2 and stores[0][1] == stores[1][1]:
            raise CatalogError(
                self._catalog,
                "the volumes are of different stores, equally many of each: "
                + ", ".join(f"{path} of {block.store.hex()}" for _, path, block in probed)
                + "; take those of the other store out of the configuration",
            )
        self.store = stores[0][0]
        newest: dict[bytes, int] = {}
        for _, _, block in probed:
            newest[block.volume] = max(newest.get(block.volume, 0), block.sequence)
        for pool, path, block in probed:
            taken = any(volume.uuid == block.volume for volume in self.volumes)
            if taken or block.sequence < newest[block.volume]:
                self._skip(pool, path, "is a copy of another volume that is here too")
            else:
                self._open_one(engine, pool, path, block.volume, block.epoch, lock_wait)
        if not self.volumes:
            reasons = "; ".join(skipped.reason for skipped in self.skipped)
            raise CatalogError(self._catalog, f"no volume can be used: {reasons}")

    def _probe(self, engine: Engine) -> Iterator[tuple[str, str, _Superblock]]:
        for pool, path in _sites(self.config):
            try:
                block = probe(engine, path)
            except (FanoutError, OSError) as error:
                self._skip(pool, path, str(error))
                continue
            if block is None:
                self._skip(pool, path, f"{path}: is empty: no volume was made here")
            else:
                yield (
                    pool,
                    path,
                    _Superblock(block.store, block.volume, block.epoch, block.sequence),
                )

    def _open_one(
        self, engine: Engine, pool: str, path: str, volume: bytes, epoch: int, lock_wait: float
    ) -> None:
        try:
            opened = Volume.open(
                engine,
                path,
                store=self.store,
                pool=pool,
                volume=volume,
                catalog_epoch=epoch,
                lock_wait=lock_wait,
                claim=False,
            )
        except VolumeBusy:
            raise
        except (FanoutError, OSError) as error:
            self._skip(pool, path, str(error))
            return
        try:
            assert opened.directory is not None
            spans = [span for record in opened.directory.holds() for span in record.spans]
            opened.load_space((span.offset, span.length) for span in spans)
        except VolumeError as error:
            opened.close()
            self._skip(pool, path, f"its directory contradicts itself: {error}")
            return
        self.volumes.append(opened)
        # As the lost catalog had them: in the order in which they were made.
        self.volumes.sort(key=lambda volume: volume.superblock.created_ns)

    def _skip(self, pool: str, path: str, reason: str) -> None:
        self.skipped.append(SkippedVolume(pool, path, reason))

    def close(self) -> None:
        """Close all."""
        for volume in self.volumes:
            volume.close()


class _Superblock(NamedTuple):
    """What counts of a superblock before the volume is opened."""

    store: bytes
    volume: bytes
    epoch: int
    sequence: int


def _sites(config: Config) -> Iterator[tuple[str, str]]:
    """Pool and path of every volume that may be there."""
    for pool in config.pools.values():
        for spec in pool.volumes:
            yield pool.name, str(spec.path)
        kind = config.device_classes[pool.device_class]
        if kind.type is DeviceType.FILE and kind.directory is not None:
            made = map(str, kind.directory.glob(f"{escape(pool.name)}.*.fanout"))
            for path in sorted(made, key=lambda path: (len(path), path)):
                yield pool.name, path


def _entry_of(volume: Volume) -> VolumeEntry:
    """As it is found now: it may have been moved."""
    found = volume.target.geometry
    entry = entry_of(volume.superblock, volume.path)
    return replace(entry, device=found.dev, inode=found.ino, is_block=found.is_block)


# ---- the directories -------------------------------------------------------------------------------


class _Evidence(NamedTuple):
    """What one directory says of one aggregate."""

    volume: Volume
    record: DirectoryRecord


@dataclass(slots=True)
class _Pieces:
    """One aggregate, as it becomes known.

    Attributes:
        evidence: the newest record of each volume.
        members: those that are known, by number.
        whole: whether these are all.
        bytes: of the data, as far as it is known.
        required: pools that the rules demanded, the primary first.
        ordinal: of the aggregate in its transaction.
        original: whether what its transaction wrote is still there; else there are only later copies.
        faults: what could not be read.
    """

    evidence: list[_Evidence]
    members: dict[int, Member] = field(default_factory=dict)
    whole: bool = False
    bytes: int = 0
    required: tuple[str, ...] = ()
    ordinal: int = 0
    original: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def deleted(self) -> MemberSet:
        """Members that are gone from the store: what any volume says."""
        runs = (run for found in self.evidence for run in found.record.deleted)
        return MemberSet.joined((run.start, len(run)) for run in runs)

    @property
    def committed(self) -> int:
        """Commit sequence number of its transaction; 0: no record says it."""
        return max(found.record.committed for found in self.evidence)

    @property
    def version(self) -> int:
        """Of its first member; 0: no record says it."""
        return max(found.record.version for found in self.evidence)

    @property
    def first(self) -> _Evidence:
        """The oldest record."""
        return min(self.evidence, key=lambda found: found.record.csn)


class _Survey:
    """What the directories of all volumes say together.

    Attributes:
        csn: of the last commit. One more than any record's if the rebuild itself changed what a copy is said to hold:
            the next opening then brings the directories up to date.
        count, objects, bytes, lost, deduced, notes: see `RebuildReport`.
    """

    def __init__(self, media: _Media) -> None:
        self._media = media
        self._config = media.config
        self.count = self.objects = self.bytes = self.deduced = 0
        self.lost: list[Lost] = []
        self.notes: list[str] = []
        self._deleted: dict[bytes, list[_Evidence]] = {}
        self._aggregates: dict[bytes, _Pieces] = {}
        self._read_directories()
        for aggregate, pieces in self._aggregates.items():
            _Reader(aggregate, pieces).read()
        self._made = list(self._build())

    def _read_directories(self) -> None:
        found: dict[bytes, list[_Evidence]] = {}
        self.csn = 0
        for volume in self._media.volumes:
            assert volume.directory is not None
            self.csn = max(self.csn, volume.directory.last_csn)
            for record in volume.directory.records.values():
                found.setdefault(record.aggregate, []).append(_Evidence(volume, record))
        for aggregate, evidence in found.items():
            if any(said.record.op is Op.DELETE for said in evidence):
                self._deleted[aggregate] = evidence
            else:
                self._aggregates[aggregate] = _Pieces(evidence)

    # ---- the order of commits --------------------------------------------------------------------

    def transactions(self) -> Iterator[RestoredTransaction]:
        """All that have committed, in their order."""
        return iter(self._made)

    def _build(self) -> Iterator[RestoredTransaction]:
        by_transaction: dict[bytes, list[bytes]] = {}
        for aggregate, pieces in self._aggregates.items():
            by_transaction.setdefault(pieces.first.record.transaction, []).append(aggregate)
        changed_csn = self.csn + 1
        changed = False
        numbers = self._numbers(by_transaction)
        for transaction in sorted(by_transaction, key=lambda t: numbers[t]):
            mine = self._in_order(by_transaction[transaction])
            made = [self._aggregate(aggregate, changed_csn) for aggregate in mine]
            changed |= any(copy.csn == changed_csn for one in made for copy in one.copies)
            yield self._transaction(transaction, numbers[transaction], mine[0], made)
        yield from self._deleted_ones(by_transaction)
        self.csn += changed

    def _transaction(
        self, transaction: bytes, csn: int, first: bytes, made: Sequence[RestoredAggregate]
    ) -> RestoredTransaction:
        pieces = self._aggregates[first]
        record = pieces.first.record
        self.count += 1
        return RestoredTransaction(
            transaction=transaction,
            attempt=record.attempt,
            csn=csn,
            at=record.time_ns,
            node=record.node,
            kind=record.kind or ObjectKind.BACKUP,
            required=pieces.required[1:],
            aggregates=tuple(made),
        )

    def _deleted_ones(self, known: Mapping[bytes, object]) -> Iterator[RestoredTransaction]:
        """Transactions of which nothing is left, so that a resend is still recognised."""
        seen = set(known)
        for record in map(_deleting, self._deleted.values()):
            if record.transaction not in seen:
                seen.add(record.transaction)
                yield RestoredTransaction(
                    transaction=record.transaction,
                    attempt=record.attempt,
                    csn=record.csn,
                    at=record.time_ns,
                    node=record.node,
                    kind=record.kind or ObjectKind.BACKUP,
                    required=(),
                    aggregates=(),
                )

    def deletions(self) -> Iterator[RestoredDeletion]:
        """Aggregates that were deleted and that a directory still names, or may: then the deletes are still needed."""
        kept = bool(self._media.skipped)
        for aggregate, evidence in self._deleted.items():
            record = _deleting(evidence)
            regions = tuple(
                (found.volume.uuid, span.offset, span.length)
                for found in evidence
                for span in found.record.spans
            )
            if regions or kept:
                pool = evidence[0].volume.pool
                yield RestoredDeletion(
                    aggregate, record.transaction, record.csn, pool, regions, kept
                )

    def _numbers(self, by_transaction: Mapping[bytes, Sequence[bytes]]) -> dict[bytes, int]:
        """The commit sequence number of every transaction.

        Records say it since version 2 of the format; before, those of what the transaction itself wrote. If there are only older
        records of copies that were made later, the time tells between which others it came; a number that nobody has is found there.
        """
        numbers: dict[bytes, int] = {}
        rest: list[tuple[int, int, bytes]] = []
        times: list[tuple[int, int]] = []
        for transaction, aggregates in by_transaction.items():
            pieces = [self._aggregates[aggregate] for aggregate in aggregates]
            record = min((one.first.record for one in pieces), key=lambda record: record.csn)
            said = max(one.committed for one in pieces)
            if said or any(one.original for one in pieces):
                numbers[transaction] = said or record.csn
                times.append((numbers[transaction], record.time_ns))
            else:
                rest.append((record.time_ns, record.csn, transaction))
        taken = set(numbers.values())
        for time_ns, later, transaction in sorted(rest):
            before = [csn for csn, at in times if at <= time_ns and csn < later]
            number = max(before, default=0) + 1
            while number in taken and number < later:
                number += 1
            numbers[transaction] = number
            taken.add(number)
            times.append((number, time_ns))
        self.deduced = len(rest)
        return numbers

    def _in_order(self, aggregates: Iterable[bytes]) -> list[bytes]:
        """Aggregates of one transaction in the order in which they were stored."""

        def rank(aggregate: bytes) -> tuple[int, bytes]:
            return self._aggregates[aggregate].ordinal, aggregate

        return sorted(aggregates, key=rank)

    # ---- one aggregate -----------------------------------------------------------------------------

    def _primary(self, aggregate: bytes) -> str:
        """Its primary; if no header of it can be read, any pool that holds it."""
        pieces = self._aggregates[aggregate]
        return pieces.required[0] if pieces.required else pieces.evidence[0].volume.pool

    def _aggregate(self, aggregate: bytes, changed_csn: int) -> RestoredAggregate:
        pieces = self._aggregates[aggregate]
        by_pool: dict[str, list[_Evidence]] = {}
        for found in pieces.evidence:
            if found.record.spans:
                by_pool.setdefault(found.volume.pool, []).append(found)
        copies, holders = [], {}
        for pool, evidence in by_pool.items():
            copy = _copy_of(pool, evidence, pieces, changed_csn)
            copies.append(copy)
            holders[pool] = copy.present
        if not pieces.whole:
            self._note_lost(aggregate, pieces)
        deleted = pieces.deleted
        members = {n: member for n, member in pieces.members.items() if n not in deleted}
        gaps = tuple(self._gaps(pieces, members, holders))
        self.objects += len(members)
        size = sum(member.length for member in members.values())
        self.bytes += size
        return RestoredAggregate(
            aggregate=aggregate,
            primary=self._primary(aggregate),
            objects=max([*pieces.members, *(sum(run) - 1 for run in deleted.runs)], default=0) + 1,
            bytes=pieces.bytes,
            ordinal=pieces.ordinal,
            members=members,
            copies=tuple(copies),
            gaps=gaps,
            erased=deleted,
            erased_bytes=max(0, pieces.bytes - size) if deleted else 0,
            version=pieces.version,
        )

    def _note_lost(self, aggregate: bytes, pieces: _Pieces) -> None:
        why = list(dict.fromkeys(pieces.faults))
        skipped = [entry.path for entry in self._media.skipped]
        if not why:
            why.append(f"its spans are on volumes that took no part ({', '.join(skipped) or '?'})")
        node = pieces.first.record.node
        self.lost.append(Lost(aggregate, node, len(pieces.members), "; ".join(why)))

    def _gaps(
        self,
        pieces: _Pieces,
        members: Mapping[int, Member],
        holders: Mapping[str, MemberSet | None],
    ) -> Iterator[NewGap]:
        """Rule 3: what was required, and whose directories do not hold all members that are left."""
        everything = MemberSet.of(members)
        for pool in pieces.required:
            if pool in holders and holders[pool] is None:
                continue
            if pool not in self._config.pools:
                self.notes.append(
                    f"pool {pool} was required and is not configured: no gap is noted"
                )
                continue
            held = holders.get(pool) or MemberSet()
            missing = everything - held
            if missing or not members:
                yield NewGap(pool, self._reason(pool), 0, missing if len(held) else None)

    def _reason(self, pool: str) -> str:
        skipped = [e.reason for e in self._media.skipped if e.pool == pool]
        why = f"; {'; '.join(skipped)}" if skipped else ""
        return f"the catalog was rebuilt, and no directory of {pool} names it{why}"

    # ---- pools -------------------------------------------------------------------------------------

    def pools(self) -> list[PoolEntry]:
        """Every pool of the configuration, and primaries that it does not name any more."""
        known = {v.pool: v.superblock.pool_uuid for v in self._media.volumes}
        entries = []
        for pool in self._config.pools.values():
            if pool.name not in known:
                self.notes.append(f"pool {pool.name}: no volume of it took part")
            identity = known.get(pool.name) or secrets.token_bytes(16)
            entries.append(PoolEntry(identity, pool.name, pool.kind))
        for name in dict.fromkeys(map(self._primary, self._aggregates)):
            if name not in self._config.pools:
                self.notes.append(f"pool {name} is a primary of objects, and is not configured")
                entries.append(PoolEntry(secrets.token_bytes(16), name, PoolKind.PRIMARY))
        return entries

    # ---- what is in doubt ----------------------------------------------------------------------------

    def in_doubt(self, on_progress: Progress | None) -> Iterator[InDoubt]:
        """Rule 4: complete spans that no directory names. Looks through all space that none names."""
        total = sum(volume.superblock.space_length for volume in self._media.volumes)
        done = 0

        def advance(size: int) -> None:
            nonlocal done
            done += size
            if on_progress is not None:
                on_progress(done, total)

        attempts = {entry.transaction: entry.attempt for entry in self._made}
        for volume in self._media.volumes:
            for found in find_spans(volume, on_bytes=advance):
                committed = attempts.get(found.header.transaction)
                if committed not in (None, found.header.attempt):
                    continue  # of an attempt that failed: another one committed
                if found.header.aggregate in self._deleted:
                    continue
                yield _in_doubt(found, committed=committed is not None)
        if on_progress is not None:
            on_progress(total, total)


def _in_doubt(found: FoundSpan, *, committed: bool) -> InDoubt:
    header = found.header
    return InDoubt(
        pool=found.volume.pool,
        path=found.volume.path,
        offset=found.span.offset,
        used=found.span.used,
        transaction=header.transaction,
        attempt=header.attempt,
        aggregate=header.aggregate,
        names=tuple(fragment.name for fragment in found.footer.fragments),
        committed=committed,
    )


def _deleting(evidence: Sequence[_Evidence]) -> DirectoryRecord:
    """Of the records of an aggregate the one that deletes it."""
    return max(
        (found.record for found in evidence if found.record.op is Op.DELETE),
        key=lambda record: record.csn,
    )


def _copy_of(
    pool: str, evidence: Sequence[_Evidence], pieces: _Pieces, changed_csn: int
) -> RestoredCopy:
    """What a pool holds: members that its newest record names, and whose bytes its spans hold."""
    newest = max(evidence, key=lambda found: found.record.csn).record
    places = [
        Place(span.number, found.volume.uuid, *span[1:])
        for found in evidence
        for span in found.record.spans
    ]
    places.sort()
    coverage = Coverage(places)
    named = None if newest.present is None else Runs(newest.present)
    deleted = pieces.deleted
    left = {n: member for n, member in pieces.members.items() if n not in deleted}
    wanted = MemberSet.of(n for n in left if named is None or n in named)
    held = MemberSet.of(
        n
        for n in wanted
        if coverage.holds(left[n].offset, left[n].length)
        and (left[n].length or _is_named(left[n], evidence))
    )
    # Of members that were deleted nothing more is known; what the record says of the others holds if all of them are there.
    if ranges_of(held) != newest.present and not (pieces.whole and held == wanted):
        return RestoredCopy(pool, changed_csn, tuple(places), held)
    said = None
    if newest.present is not None:
        said = MemberSet(tuple((run.start, len(run)) for run in newest.present))
    return RestoredCopy(pool, newest.csn, tuple(places), said)


def _is_named(empty: Member, evidence: Sequence[_Evidence]) -> bool:
    """Whether a span of a copy holds an object without bytes. Between two spans either may; what it says itself decides."""
    for found in evidence:
        for span in found.record.spans:
            begin, end = span.data_start, span.data_start + span.data_length
            if begin < empty.offset < end:
                return True
            if empty.offset in (begin, end):
                try:
                    _, footer = found.volume.read_span(span, aggregate=found.record.aggregate)
                except FanoutError:
                    return True  # damaged: an audit will say what that costs
                if (empty.name, empty.offset) in empty_objects(footer):
                    return True
    return False


# ---- members, out of the footers -------------------------------------------------------------------


class _Reader:
    """Finds the members of one aggregate. Reads as few footers as it takes.

    Spans that were written together (of one commit) have numbers of their own and, in every copy, the same bytes; such a set is read
    from whichever copy is good. The set of the oldest commit is what the transaction itself wrote.
    """

    def __init__(self, aggregate: bytes, pieces: _Pieces) -> None:
        self._aggregate, self._pieces = aggregate, pieces
        self._loose: list[Member] = []  # whose number is not known

    def read(self) -> None:
        """Fill in what the headers and footers say."""
        pieces = self._pieces
        for csn in sorted({found.record.csn for found in pieces.evidence if found.record.spans}):
            there = [found for found in pieces.evidence if found.record.csn == csn]
            for mine in _alike(there):
                spans = self._read_set(mine)
                if spans:
                    self._learn(spans, mine)
                if pieces.whole:
                    return
        self._number_the_loose()

    def _read_set(self, evidence: Sequence[_Evidence]) -> list[tuple[SpanHeader, SpanFooter]]:
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
        evidence: Sequence[_Evidence],
    ) -> None:
        pieces = self._pieces
        header = spans[0][0]
        if not pieces.required:
            pieces.required, pieces.ordinal = header.required, header.ordinal
        pieces.original |= header.primary in {place.pool for place in header.places}
        footers = [footer for _, footer in spans]
        members = sorted(Objects(footers).certain, key=lambda m: (m.offset, m.length))
        pieces.bytes = max(pieces.bytes, *(f.data_start + f.data_length for f in footers))
        solid = _solid(members)
        all_here = any(found.record.present is None for found in evidence)
        ends = any(footer.final for footer in footers)
        if all_here and ends and _reach(members) == pieces.bytes:
            # A copy that was made after members had been deleted has not got these. That all its spans are there their numbers say.
            holes = solid < len(members)
            indexes = _others(pieces.deleted) if holes else count_from()
            numbers = sorted(footer.number for footer in footers)
            if not holes or (pieces.deleted and numbers == list(range(len(numbers)))):
                pieces.members = dict(zip(indexes, members, strict=False))
                pieces.whole = True
                return
        self._anchor(members, solid if all_here else 0, evidence)

    def _anchor(self, members: Sequence[Member], solid: int, evidence: Sequence[_Evidence]) -> None:
        """Give numbers to members where the set says them: those before the first hole, or those that the records list."""
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
        """Members whose number nobody knows come behind the others, in the order of their data."""
        known = self._pieces.members
        there = {(m.offset, m.name, m.digest) for m in known.values()}
        following = max(known, default=-1) + 1
        for member in sorted(self._loose, key=lambda m: (m.offset, m.length)):
            if (member.offset, member.name, member.digest) not in there:
                there.add((member.offset, member.name, member.digest))
                known[following] = member
                following += 1


def _alike(evidence: Sequence[_Evidence]) -> list[list[_Evidence]]:
    """Evidence of one commit, by what was written together: a deletion gives all copies the same number, also those that are repairs.

    Copies belong together unless they say different things of a span of one number. Those with the most data come first.
    """
    sets: list[tuple[dict[int, tuple[int, int]], list[_Evidence]]] = []
    pools = dict.fromkeys(found.volume.pool for found in evidence)
    for pool in pools:
        mine = [found for found in evidence if found.volume.pool == pool]
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
