"""What the directories of all volumes say together: which transactions committed, in which order, and who holds what of them."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

from fanout.catalog import (
    MemberSet,
    NewGap,
    PoolEntry,
    RestoredAggregate,
    RestoredCopy,
    RestoredDeletion,
    RestoredTransaction,
)
from fanout.errors import FanoutError
from fanout.evidence import Coverage, Runs, empty_objects, find_spans
from fanout.format import Op
from fanout.rebuild.members import (
    Evidence,
    MemberReader,
    Pieces,
    by_pool,
    is_proven,
    members_of,
    places_of,
)
from fanout.rebuild.report import InDoubt, Lost
from fanout.scribe import ranges_of
from fanout.types import Member, ObjectKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fanout.evidence import FoundSpan
    from fanout.format import DirectoryRecord, StoredSpan
    from fanout.rebuild.media import Media
    from fanout.volume import Volume

    # The volumes that have a record of an aggregate.
    Holders = tuple[Volume, ...]


# Commits, and versions, that a volume which took no part may know and no other: more than anybody makes in the life of a store.
UNHEARD = 1 << 32
HEADLESS = (
    "{}: its directory is lost, and nobody can say which of its {} spans were deleted since, or never committed: they are listed as in doubt, and do not "
    "come back. What a copy of the catalog knows of them 'fanout get' can read, with a configuration that names the copy; what is in no other pool, send again"
)


class _Told(NamedTuple):
    """What the records of an aggregate say of its transaction.

    Attributes:
        csn: of the oldest record, like the next two.
        time_ns: the same.
        attempt: the same.
        committed: number of the transaction's commit; 0: no record says it.
        original: whether a number is said, or what its transaction wrote is still there.
    """

    csn: int
    time_ns: int
    attempt: int
    committed: int
    original: bool


class Survey:
    """What the directories of all volumes say together. Members are read one transaction at a time, and not kept.

    Attributes:
        csn: of the last commit; known when all transactions were taken. One more than any record's if the rebuild itself changed
            what a copy is said to hold: the next opening then brings the directories up to date.
        count, objects, bytes, lost, notes: see `RebuildReport`; of the transactions that were taken.
        deduced: see `RebuildReport`.
        unread: lost aggregates of which spans could not be read, and how many members of each are found all the same.
    """

    def __init__(self, media: Media) -> None:
        self._media = media
        self._config = media.config
        self.count = self.objects = self.bytes = self.deduced = 0
        self.lost: list[Lost] = []
        self.unread: dict[bytes, int] = {}
        self.notes: list[str] = list(media.notes)
        self._strangers = set[bytes]()  # volumes that headers name
        self._deleted: dict[bytes, Holders] = {}
        self._aggregates: dict[bytes, Holders] = {}
        self._read_directories()
        self._by_transaction: dict[bytes, list[bytes]] = {}
        self._attempts: dict[bytes, int] = {}
        self._enter_transactions()

    def _read_directories(self) -> None:
        found: dict[bytes, Holders] = {}
        same: dict[Holders, Holders] = {}  # aggregates by the million are on few sets of volumes
        gone, held = set(), set()
        self.csn = 0
        for volume in self._media.volumes:
            assert volume.directory is not None
            self.csn = max(self.csn, volume.directory.last_csn)
            for head in volume.directory.heads():
                if head.retires:
                    continue  # of a volume, not of an aggregate
                holders = (*found.get(head.aggregate, ()), volume)
                found[head.aggregate] = same.setdefault(holders, holders)
                if head.op == Op.DELETE:
                    gone.add(head.aggregate)
                elif head.spans:
                    held.add(head.aggregate)
        for aggregate, holders in found.items():
            if aggregate in gone:
                self._deleted[aggregate] = holders
            elif aggregate in held:
                self._aggregates[aggregate] = holders
            # Else it has left these volumes, and no other holds any of it.

    def _pieces(self, aggregate: bytes) -> Pieces:
        """What the directories say of an aggregate; its members are not read yet."""
        return Pieces(_evidence(aggregate, self._aggregates[aggregate]))

    def _read(self, aggregate: bytes) -> Pieces:
        """With its members."""
        pieces = self._pieces(aggregate)
        MemberReader(aggregate, pieces).read()
        return pieces

    # ---- the order of commits --------------------------------------------------------------------

    def _enter_transactions(self) -> None:
        """Which aggregates belong together, and the number of each transaction."""
        known: dict[bytes, list[_Told]] = {}
        for aggregate in self._aggregates:
            pieces = self._pieces(aggregate)
            record = pieces.first.record
            # Records of version 1 do not say it; then it counts whether what the transaction wrote is still there.
            said = pieces.committed
            original = said > 0 or self._read(aggregate).original
            told = _Told(record.csn, record.time_ns, record.attempt, said, original)
            known.setdefault(record.transaction, []).append(told)
            self._by_transaction.setdefault(record.transaction, []).append(aggregate)
        self._attempts = {transaction: some[0].attempt for transaction, some in known.items()}
        self._numbers = self._number(known)

    def transactions(self) -> Iterator[RestoredTransaction]:
        """All that have committed, in their order. To be taken once, to the end."""
        changed_csn = self.csn + 1
        changed = False
        for transaction in sorted(self._by_transaction, key=lambda t: self._numbers[t]):
            aggregates = {one: self._read(one) for one in self._by_transaction[transaction]}
            mine = _in_their_order(aggregates)
            made = [self._aggregate(one, aggregates[one], changed_csn) for one in mine]
            changed |= any(copy.csn == changed_csn for one in made for copy in one.copies)
            yield self._transaction(transaction, [aggregates[one] for one in mine], made)
        yield from self._deleted_ones(self._by_transaction)
        self.csn += changed
        self._strangers -= {volume.uuid for volume in self._media.volumes}
        self._strangers -= {entry.volume for entry in self._media.retirements}
        if len(self._strangers) > len(self._media.skipped):  # those have been named
            self._note(
                f"spans were written to {len(self._strangers)} volumes that took no part, and of which nobody says that they were given up"
            )

    def _transaction(
        self, transaction: bytes, pieces: Sequence[Pieces], made: Sequence[RestoredAggregate]
    ) -> RestoredTransaction:
        record = pieces[0].first.record
        # Of one of them no header may be left that can be read.
        required = next((one.required for one in pieces if one.required), ())
        self.count += 1
        return RestoredTransaction(
            transaction=transaction,
            attempt=record.attempt,
            csn=self._numbers[transaction],
            at=record.time_ns,
            node=record.node,
            kind=record.kind or ObjectKind.BACKUP,
            required=required[1:],
            aggregates=tuple(made),
        )

    def _deleted_ones(self, known: Mapping[bytes, object]) -> Iterator[RestoredTransaction]:
        """Transactions of which nothing is left, so that a resend is still recognised."""
        seen = set(known)
        for aggregate, holders in self._deleted.items():
            record = _deleting(_evidence(aggregate, holders))
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
        for aggregate, holders in self._deleted.items():
            evidence = _evidence(aggregate, holders)
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

    def _number(self, known: Mapping[bytes, Sequence[_Told]]) -> dict[bytes, int]:
        """The commit sequence number of every transaction.

        Records say it since version 2 of the format; before, those of what the transaction itself wrote. If there are only older
        records of copies that were made later, the time tells between which others it came; a number that nobody has is found there.
        """
        numbers: dict[bytes, int] = {}
        rest: list[tuple[int, int, bytes]] = []
        times: list[tuple[int, int]] = []
        for transaction, some in known.items():
            first = min(some, key=lambda told: told.csn)
            said = max(told.committed for told in some)
            if any(told.original for told in some):
                numbers[transaction] = said or first.csn
                times.append((numbers[transaction], first.time_ns))
            else:
                rest.append((first.time_ns, first.csn, transaction))
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

    @property
    def leap(self) -> int:
        """How many numbers of commits and of versions to leave out: who took no part may have given them, and comes back with them.

        Else what is stored from now on would be older than what was stored before. Known when all transactions were taken.
        """
        incomplete = self._media.incomplete or self.lost or self._strangers
        return UNHEARD if incomplete else 0

    # ---- one aggregate -----------------------------------------------------------------------------

    def _primary(self, pieces: Pieces) -> str:
        """Its primary; if no header of it can be read, any pool that holds it."""
        name = pieces.required[0] if pieces.required else pieces.evidence[0].volume.pool
        if name not in self._config.pools:
            self._note(f"pool {name} is a primary of objects, and is not configured")
        return name

    def _note(self, what: str) -> None:
        if what not in self.notes:
            self.notes.append(what)

    def _aggregate(self, aggregate: bytes, pieces: Pieces, changed_csn: int) -> RestoredAggregate:
        self._strangers |= pieces.written
        evidence = by_pool(pieces.evidence)
        copies = [_copy_of(pool, mine, pieces, changed_csn) for pool, mine in evidence.items()]
        copies = list(_with_orphans(aggregate, copies, evidence, pieces, changed_csn))
        holders = {copy.pool: copy.present for copy in copies}
        held = _held(copies, pieces)
        if not pieces.nothing_lost(held):
            self._note_lost(aggregate, pieces)
            if pieces.faults:
                known = MemberSet.of(pieces.members) - pieces.deleted  # records list others, too
                self.unread[aggregate] = sum(number in held for number in known)
        deleted = pieces.deleted
        members = {n: member for n, member in pieces.members.items() if n not in deleted}
        gaps = tuple(self._gaps(pieces, members, holders))
        self.objects += len(members)
        size = sum(member.length for member in members.values())
        self.bytes += size
        return RestoredAggregate(
            aggregate=aggregate,
            primary=self._primary(pieces),
            objects=max(
                [1, pieces.objects, *(n + 1 for n in pieces.members), *map(sum, deleted.runs)]
            ),
            bytes=pieces.bytes,
            ordinal=pieces.ordinal,
            members=members,
            copies=tuple(copies),
            gaps=gaps,
            erased=deleted,
            erased_bytes=max(0, pieces.bytes - size) if deleted else 0,
            version=pieces.version,
        )

    def _note_lost(self, aggregate: bytes, pieces: Pieces) -> None:
        why = list(dict.fromkeys(pieces.faults))
        skipped = [entry.path for entry in (*self._media.skipped, *self._media.retired)]
        if not why:
            why.append(f"its spans are on volumes that took no part ({', '.join(skipped) or '?'})")
        node = pieces.first.record.node
        self.lost.append(Lost(aggregate, node, len(pieces.members), "; ".join(why)))

    def _gaps(
        self,
        pieces: Pieces,
        members: Mapping[int, Member],
        holders: Mapping[str, MemberSet | None],
    ) -> Iterator[NewGap]:
        """Rule 4: what was required, and whose directories do not hold all members that are left."""
        everything = MemberSet.of(members)
        for pool in pieces.required:
            if pool in holders and holders[pool] is None:
                continue
            # A primary is in the catalog all the same, since objects belong to it.
            if pool not in self._config.pools and pool != pieces.required[0]:
                self._note(f"pool {pool} was required and is not configured: no gap is noted")
                continue
            held = holders.get(pool) or MemberSet()
            missing = everything - held
            if missing or not members:
                yield NewGap(pool, self._reason(pool), 0, missing if len(held) else None)

    def _reason(self, pool: str) -> str:
        absent = (*self._media.skipped, *self._media.retired)
        skipped = [f"{entry.path}: {entry.reason}" for entry in absent if entry.pool == pool]
        why = f"; {'; '.join(skipped)}" if skipped else ""
        return f"the catalog was rebuilt, and no directory of {pool} names it{why}"

    # ---- pools -------------------------------------------------------------------------------------

    def pools(self) -> list[PoolEntry]:
        """Every pool of the configuration."""
        known = {v.pool: v.superblock.pool_uuid for v in self._media.volumes}
        entries = []
        for pool in self._config.pools.values():
            if pool.name not in known:
                self._note(f"pool {pool.name}: no volume of it took part")
            identity = known.get(pool.name) or secrets.token_bytes(16)
            entries.append(PoolEntry(identity, pool.name, pool.kind))
        return entries

    # ---- what is in doubt ----------------------------------------------------------------------------

    def in_doubt(self, on_progress: Callable[[int, int], None] | None) -> Iterator[InDoubt]:
        """Rule 5: complete spans that no directory names. Looks through all space that none names."""
        volumes = (*self._media.volumes, *self._media.headless)
        total = sum(volume.superblock.space_length for volume in volumes)
        done = 0

        def advance(size: int) -> None:
            nonlocal done
            done += size
            if on_progress is not None:
                on_progress(done, total)

        attempts = dict(self._attempts)
        for entry in self._deleted_ones(self._by_transaction):
            attempts[entry.transaction] = entry.attempt
        for volume in volumes:
            count = 0
            for found in find_spans(volume, on_bytes=advance):
                committed = attempts.get(found.header.transaction)
                if committed not in (None, found.header.attempt):
                    continue  # of an attempt that failed: another one committed
                if found.header.aggregate in self._deleted or _has_left(found):
                    continue
                count += 1
                yield _in_doubt(found, committed=committed is not None)
            if volume in self._media.headless:
                self._note(HEADLESS.format(volume.path, count))
        if on_progress is not None:
            on_progress(total, total)


def _in_their_order(aggregates: Mapping[bytes, Pieces]) -> list[bytes]:
    """Aggregates of one transaction as they were stored: by version, which records say; before they did, by what a header says, if one is good."""
    known = all(pieces.version for pieces in aggregates.values())

    def place(one: bytes) -> tuple[int, bytes]:
        pieces = aggregates[one]
        return pieces.version if known else pieces.ordinal, one

    return sorted(aggregates, key=place)


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


def _has_left(found: FoundSpan) -> bool:
    """Whether the volume's directory says that it holds nothing of the aggregate any more."""
    assert found.volume.directory is not None
    record = found.volume.directory.records.get(found.header.aggregate)
    return record is not None and not record.spans


def _evidence(aggregate: bytes, holders: Holders) -> list[Evidence]:
    """The newest record of each volume, decoded."""
    found = []
    for volume in holders:
        assert volume.directory is not None
        found.append(Evidence(volume, volume.directory.records[aggregate]))
    return found


def _deleting(evidence: Sequence[Evidence]) -> DirectoryRecord:
    """Of the records of an aggregate the one that deletes it."""
    return max(
        (found.record for found in evidence if found.record.op is Op.DELETE),
        key=lambda record: record.csn,
    )


def _copy_of(
    pool: str, evidence: Sequence[Evidence], pieces: Pieces, changed_csn: int
) -> RestoredCopy:
    """What a pool holds: members that its newest record names, and whose bytes its spans hold."""
    newest = max(evidence, key=lambda found: found.record.csn).record
    places = places_of(evidence)
    coverage, empties = Coverage(places), _Empties(evidence)
    named = None if newest.present is None else Runs(newest.present)
    deleted = pieces.deleted
    left = {n: member for n, member in pieces.members.items() if n not in deleted}
    wanted = MemberSet.of(n for n in left if named is None or n in named)
    held = MemberSet.of(
        n
        for n in wanted
        if coverage.holds(left[n].offset, left[n].length)
        and (left[n].length or empties.holds(left[n]))
    )
    said = None if newest.present is None else members_of(newest.present)
    # Of members that were deleted nothing more is known; what the record says of the others holds if all of them are there. Where it is
    # known how many there were it holds, too, for those that nobody can name now: their bytes may be in these spans.
    counted = pieces.whole or pieces.objects > 0
    known = (counted and held == wanted) or (said is not None and said <= deleted)
    if ranges_of(held) != newest.present and not known:
        return RestoredCopy(pool, changed_csn, tuple(places), held)
    told = all(members_of(found.record.deleted) == deleted for found in evidence)
    return RestoredCopy(pool, newest.csn if told else changed_csn, tuple(places), said)


def _held(copies: Sequence[RestoredCopy], pieces: Pieces) -> MemberSet:
    """Members that some pool holds."""
    held = MemberSet()
    for copy in copies:
        held |= MemberSet.of(pieces.members) if copy.present is None else copy.present
    return held


def _with_orphans(
    aggregate: bytes,
    copies: Sequence[RestoredCopy],
    evidence: Mapping[str, Sequence[Evidence]],
    pieces: Pieces,
    changed_csn: int,
) -> Iterator[RestoredCopy]:
    """The copies, with members that no record names and whose bytes are there all the same.

    One of two volumes with parts of an object was given up, so the record on the other lists it no more; both are here again.
    """
    orphans = MemberSet.of(pieces.members) - pieces.deleted - _held(copies, pieces)
    for copy in copies:
        found = _proven(aggregate, orphans, evidence[copy.pool], pieces)
        if not found:
            yield copy
        else:
            present = found if copy.present is None else copy.present | found
            yield RestoredCopy(copy.pool, changed_csn, copy.places, present)


def _proven(
    aggregate: bytes, numbers: MemberSet, evidence: Sequence[Evidence], pieces: Pieces
) -> MemberSet:
    """Those of some members that a pool has, by their bytes; one without bytes if a span names it."""
    empties = _Empties(evidence)

    def is_there(member: Member) -> bool:
        named = member.length > 0 or empties.holds(member)
        return named and is_proven(aggregate, member, evidence)

    return MemberSet.of(n for n in numbers if is_there(pieces.members[n]))


class _Empties:
    """Which objects without bytes the spans of a copy hold. No footer is read twice, however many objects lie at one border."""

    def __init__(self, evidence: Sequence[Evidence]) -> None:
        self._evidence = evidence
        self._named: dict[tuple[bytes, int], set[tuple[bytes, int]] | None] = {}

    def holds(self, empty: Member) -> bool:
        """Whether a span does. Between two spans either may; what it says itself decides."""
        for found in self._evidence:
            for span in found.record.spans:
                begin, end = span.data_start, span.data_start + span.data_length
                if begin < empty.offset < end:
                    return True
                if empty.offset in (begin, end):
                    named = self._named_in(found, span)
                    if named is None or (empty.name, empty.offset) in named:
                        return True
        return False

    def _named_in(self, found: Evidence, span: StoredSpan) -> set[tuple[bytes, int]] | None:
        """What a span names; None: it is damaged, and an audit will say what that costs."""
        key = found.volume.uuid, span.offset
        if key not in self._named:
            try:
                _, footer = found.volume.read_span(span, aggregate=found.record.aggregate)
            except FanoutError:
                self._named[key] = None
            else:
                self._named[key] = empty_objects(footer)
        return self._named[key]
