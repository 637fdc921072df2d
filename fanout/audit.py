"""Turns damage into gaps: what a pool is said to hold and cannot give, so that a repair can close it from another copy.

::

    every copy of a pool ──read──> damaged members ──fix──> one commit: the copy shrinks, a gap says why

Then `backup_stgpool`, `copy_activedata` or `restore_stgpool` fill the pool again. The modelled system has AUDIT VOLUME and RESTORE STGPOOL.

What it promises:

1. A copy shrinks only for what was read and is wrong, or what its medium refuses to give. A volume that is busy, not mounted,
   gone for the moment, or that gives nothing at all costs nothing: what could not be asked is named, and stays. Good bytes, in a span whose
   header or footer is damaged or around a damaged block, and bytes that are refused are given up only if the other pools can give the object
   without them, which is read. Audits with `fix` wait for each other: two at once would each rely on what the other gives up.
2. The copy shrinks and its gap appears in one commit, with those of other aggregates. What a kill keeps from it the next audit finds again.
3. A damaged place is not used again before its copy holds nothing any more: it stays the copy's own, and newer spans serve instead of it.
4. What no pool holds any more is named.
5. What no other pool has whole, but all of them have together, stays, and is written anew into the pool that is audited.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fanout.ahead import ReadAhead
from fanout.catalog import Commit, MemberSet, NewCopy, NewGap, Repair
from fanout.copying import BadMember, Batch, DestinationFailed, SourcesBad, bad_members
from fanout.errors import (
    CatalogError,
    CommitUnknown,
    InterfaceError,
)
from fanout.evidence import empty_objects
from fanout.read import Fault
from fanout.types import PoolKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from fanout.catalog import (
        AggregateEntry,
        CatalogReader,
        Contents,
        CopyEntry,
        MemberEntry,
    )
    from fanout.catalog.rows import Place
    from fanout.copying import Copied
    from fanout.read import CopyReader
    from fanout.store import Store

    # Bytes done, and bytes in all.
    Progress = Callable[[int, int], None]


BATCH_MEMBERS = 4096  # of the aggregates of which something is given up in one commit


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit of a pool found.

    Attributes:
        objects: versions that were read.
        object_bytes: of these.
        damaged: name and reason of each that the pool cannot give, or that only its catalog still finds.
        unasked: name and reason of each that could not be read for now: nothing is said of it.
        marked: of the damaged ones, how many are a gap now; 0 without `fix`.
        mended: of the damaged ones, how many the pool gives again: no other had them whole, so they were put together from what all have, and
            written anew.
        kept: name and reason of each of the damaged ones that is neither, with `fix`: the last good bytes of it may be among them.
        seconds: of the run.
    """

    objects: int
    object_bytes: int
    damaged: tuple[tuple[bytes, str], ...]
    unasked: tuple[tuple[bytes, str], ...]
    marked: int
    mended: int
    kept: tuple[tuple[bytes, str], ...]
    seconds: float


def audit_stgpool(
    store: Store, pool: str, *, fix: bool = False, on_progress: Progress | None = None
) -> AuditReport:
    """Read every object that a pool holds, from that pool alone, and compare its digest.

    Args:
        store: open; for writing, with `fix`.
        pool: name of any pool.
        fix: what is damaged is no longer held, and becomes a gap.
        on_progress: called with bytes done and bytes in all.

    Raises:
        UnknownPool: there is no such pool; says which there are.
        InterfaceError: `fix`, and the store is open read-only.
        CatalogError: the gaps could not be recorded.
        CommitUnknown: the catalog failed in the middle of a commit; open the store again.
    """
    name = store.configured_pool(pool).name
    if fix and store.read_only:
        raise InterfaceError(f"{store.config.path}: the store is open read-only")
    audit = _Audit(store, name, fix, on_progress)
    if not fix:
        return audit.run()
    with store.auditing, store.reconciling(name):
        return audit.run()


@dataclass(slots=True)
class _Audit:
    """One run. Single use."""

    store: Store
    pool: str
    fix: bool
    on_progress: Progress | None
    began: float = field(default_factory=time.monotonic)
    objects: int = 0
    object_bytes: int = 0
    marked: int = 0
    mended: int = 0
    total: int = 0
    ahead: ReadAhead = field(default_factory=ReadAhead)
    damaged: list[tuple[bytes, str]] = field(default_factory=list)
    unasked: list[tuple[bytes, str]] = field(default_factory=list)
    kept: list[tuple[bytes, str]] = field(default_factory=list)
    # Not committed yet, by aggregate; and how many members these aggregates have.
    given_up: dict[bytes, tuple[AggregateEntry, Sequence[BadMember]]] = field(default_factory=dict)
    given_up_of: int = 0

    def run(self) -> AuditReport:
        held = self.store.query_occupancy(pool=self.pool)
        self.total = sum(entry.bytes for entry in held)
        catalog = self.store.catalog
        for entry, contents in catalog.contents_of(catalog.aggregates()):
            copy = contents.copy_in(self.pool)
            if copy is not None:
                self._read(entry, contents, copy)
        self._commit_marks()
        return AuditReport(
            objects=self.objects,
            object_bytes=self.object_bytes,
            damaged=tuple(self.damaged),
            unasked=tuple(self.unasked),
            marked=self.marked,
            mended=self.mended,
            kept=tuple(self.kept),
            seconds=time.monotonic() - self.began,
        )

    def _read(self, entry: AggregateEntry, contents: Contents, copy: CopyEntry) -> None:
        members = [m for m in contents.members if copy.holds(m.member)]
        self.objects += len(members)
        reader = self.store.reader(entry.aggregate, [copy], ahead=self.ahead)
        bad = list(bad_members(members, reader, on_bytes=self._advance))
        broken, named = _frames(copy, reader)
        frail = list(_frail(copy, members, broken, named))
        if bad or frail:  # what was deleted while it was read is no damage
            there = {m.member for m in self.store.catalog.members(entry.aggregate)}
            bad = [found for found in bad if found.member.member in there]
            known = {found.member.member for found in bad}
            frail = [found for found in frail if found.member.member in there - known]
        self.unasked += [(found.member.name, found.reason) for found in bad if not found.damage]
        damaged = [found for found in bad if found.damage]
        self.damaged += [(found.member.name, found.reason) for found in (*damaged, *frail)]
        if not self.fix:
            return
        if damaged or frail:
            given_up, between = self._sorted(entry, copy, damaged, frail)
            if given_up:
                self._mark(entry, given_up)
            if between:  # what it goes on lacking must be known
                self._commit_marks()
            for holders, some in between.items():
                self._put_together(entry, holders, some)
        elif broken and copy.present is None and entry.erased.runs:
            self._list(entry)

    def _sorted(
        self,
        entry: AggregateEntry,
        copy: CopyEntry,
        damaged: Sequence[BadMember],
        frail: Sequence[BadMember],
    ) -> tuple[list[BadMember], dict[tuple[str, ...], list[BadMember]]]:
        """Those that the pool gives up, and, by the pools that hold them, those that only all together can give.

        Given up is what the other pools can give without this one, which is read; of the damaged also what all together cannot, if all of its
        bytes were read in each of them: a medium that refuses may give them another day.
        """
        others = [c for c in self.store.catalog.copies(entry.aggregate) if c.pool != self.pool]
        by_holders: dict[tuple[str, ...], dict[int, BadMember]] = {}
        for found in (*damaged, *frail):
            number = found.member.member
            holders = tuple(other.pool for other in others if other.holds(number))
            by_holders.setdefault(holders, {})[number] = found
        hopeless = {found.member.member for found in damaged}
        given_up: list[BadMember] = []
        between: dict[tuple[str, ...], list[BadMember]] = {}
        for holders, some in by_holders.items():
            theirs = [other for other in others if other.pool in holders]
            lost = self._lost(entry, theirs, some) if theirs else some
            gone = self._lost(entry, [copy, *theirs], {number: some[number] for number in lost})
            for number, found in sorted(some.items()):
                if number in lost and number not in gone:
                    between.setdefault(holders, []).append(found)
                elif number not in lost or (number in hopeless and gone[number].proven):
                    given_up.append(found)
                else:
                    self.kept.append((found.member.name, _why_kept(gone[number])))
        return given_up, between

    def _lost(
        self, entry: AggregateEntry, copies: Sequence[CopyEntry], wanted: Mapping[int, BadMember]
    ) -> dict[int, BadMember]:
        """Members that these copies cannot give, not even together, and why."""
        reader = self.store.reader(entry.aggregate, copies, ahead=self.ahead)
        members = [wanted[number].member for number in sorted(wanted)]
        return {bad.member.member: bad for bad in bad_members(members, reader)}

    def _mark(self, entry: AggregateEntry, damaged: Sequence[BadMember]) -> None:
        self.given_up[entry.aggregate] = entry, damaged
        self.given_up_of += entry.objects
        if self.given_up_of >= BATCH_MEMBERS:
            self._commit_marks()

    def _commit_marks(self) -> None:
        """Promise 2."""
        if not self.given_up:
            return
        with self.store.ledger.steady:
            now = self.store.catalog.contents(self.given_up)
            repairs, count = [], 0
            for entry, damaged in self.given_up.values():
                contents = now[entry.aggregate]
                copy = contents.copy_in(self.pool)
                lost = {found.member.member for found in damaged} & _there(contents)
                if copy is None or not lost:
                    continue  # deleted meanwhile
                repairs.append(self._shrinking(entry, contents, copy, lost, damaged[0].reason))
                count += len(lost)
            if repairs:
                self.store.ledger.commit_repairs(_commit(*repairs), (), self.pool)
        self.marked += count
        self.given_up.clear()
        self.given_up_of = 0

    def _shrinking(
        self,
        entry: AggregateEntry,
        contents: Contents,
        copy: CopyEntry,
        lost: set[int],
        reason: str,
    ) -> Repair:
        left = held_by(entry, copy) - MemberSet.of(lost)
        active = wants_only_active(self.store.catalog, self.pool)
        gap = gap_of(entry, contents, self.pool, lost, f"audit: {reason}", active=active)
        return Repair(entry.aggregate, self.pool, NewCopy(self.pool, (), left), gap)

    def _list(self, entry: AggregateEntry) -> None:
        """Have the copy say what it holds. A damaged frame has only what was deleted, and of a copy that holds all nobody could tell."""
        with self.store.ledger.steady:
            there = _there(self.store.catalog.contents([entry.aggregate])[entry.aggregate])
            if there:  # else deleted meanwhile
                listed = NewCopy(self.pool, (), MemberSet.of(there))
                repair = Repair(entry.aggregate, self.pool, listed)
                self.store.ledger.commit_repairs(_commit(repair), (), self.pool)

    # ---- promise 5 -----------------------------------------------------------------------------------

    def _put_together(
        self, entry: AggregateEntry, holders: Sequence[str], found: Sequence[BadMember]
    ) -> None:
        """Write members anew into the pool, from what it and others have of them; behind the spans that others got just now."""
        catalog = self.store.catalog
        contents = catalog.contents([entry.aggregate])[entry.aggregate]
        there, copy = _there(contents), contents.copy_in(self.pool)
        members = [one.member for one in found if one.member.member in there]
        sources = [c for c in contents.copies if c.pool == self.pool or c.pool in holders]
        if copy is None or not members:
            return  # deleted meanwhile
        batch = Batch(self.store, self.pool, on_bytes=lambda _: None)
        try:
            batch.copy(
                entry,
                members,
                self.store.reader(entry.aggregate, sources),
                first_span=max((place.span for place in copy.places), default=-1) + 1,
                end=max(m.start + m.length for m in contents.members),
            )
            (copied,) = batch.finish()
        except (DestinationFailed, SourcesBad, TimeoutError) as error:
            batch.abort()
            why = f"kept, for no other pool has it whole, and it could not be written anew: {error}"
            self.kept += [(member.name, why) for member in members]
            return
        except BaseException:
            batch.abort()
            raise
        self._serve(entry, copied)

    def _serve(self, entry: AggregateEntry, copied: Copied) -> None:
        """From its new spans; in one commit."""
        catalog, ledger = self.store.catalog, self.store.ledger
        with ledger.steady:
            contents = catalog.contents([entry.aggregate])[entry.aggregate]
            copy, new = contents.copy_in(self.pool), set(copied.members) & _there(contents)
            repair = None
            if copy is not None and new:
                places = tuple(ledger.place_of(span, self.pool) for span in copied.spans)
                rows = catalog.gaps(aggregate=entry.aggregate, pool=self.pool, include_empty=True)
                gap = None
                for row in rows:  # what it lacks otherwise it goes on lacking
                    gap = NewGap(self.pool, row.reason, row.errno, row.missing)
                present = copy.present
                if present is None and len(contents.members) < entry.objects:
                    # Those that were deleted are not in the new spans: a rebuild may have nothing but this to tell who is who.
                    present = MemberSet.of(_there(contents))
                repair = Repair(
                    entry.aggregate, self.pool, NewCopy(self.pool, places, present), gap
                )
            try:
                if repair is not None:
                    ledger.commit_repairs(_commit(repair), copied.spans, self.pool)
            except CommitUnknown:
                raise  # neither live nor free until the next opening
            except CatalogError:
                self._release(copied)
                raise
        if repair is None:
            self._release(copied)
        else:
            self.mended += len(new)

    def _release(self, copied: Copied) -> None:
        for span in copied.spans:
            self.store.release(span.span, [self.pool])

    def _advance(self, size: int) -> None:
        self.object_bytes += size
        if self.on_progress is not None:
            self.on_progress(min(self.object_bytes, self.total), self.total)


def _frames(
    copy: CopyEntry, reader: CopyReader
) -> tuple[list[tuple[Place, str]], set[tuple[bytes, int]]]:
    """Spans of which header or footer is damaged, each with what is wrong; and the objects without bytes that the others name."""
    broken: list[tuple[Place, str]] = []
    named: set[tuple[bytes, int]] = set()
    for place in copy.places:
        found = reader.frame(copy, place)
        if not isinstance(found, Fault):
            named |= empty_objects(found)
        elif found.damage:
            broken.append((place, found.reason))
    return broken, named


def _frail(
    copy: CopyEntry,
    members: Sequence[MemberEntry],
    broken: Sequence[tuple[Place, str]],
    named: Collection[tuple[bytes, int]],
) -> Iterator[BadMember]:
    """Members that a span with a damaged frame serves: a catalog made from the volumes would not find them."""
    for member in members if broken else ():
        if not member.length and (member.name, member.start) in named:
            continue
        serving = copy.servers(member.start, member.length)
        reason = next((reason for place, reason in broken if place in serving), None)
        if reason is not None:
            yield BadMember(member, reason)


def _why_kept(found: BadMember) -> str:
    if found.refused:
        return f"kept, for no other pool can give it, and a medium that refuses it now may give it another day: {found.reason}"
    return f"kept, for others may lack just what is good of it: {found.reason}"


def _there(contents: Contents) -> set[int]:
    return {member.member for member in contents.members}


def _commit(*repairs: Repair) -> Commit:
    return Commit(secrets.token_bytes(16), 1, repairs=repairs)


def held_by(entry: AggregateEntry, copy: CopyEntry) -> MemberSet:
    """The members of an aggregate that a copy holds."""
    return MemberSet.all_of(entry.objects) if copy.present is None else copy.present


def wants_only_active(catalog: CatalogReader, pool: str) -> bool:
    """Whether a pool is an active-data pool."""
    return any(p.name == pool and p.kind is PoolKind.ACTIVE_DATA for p in catalog.pools())


def gap_of(
    entry: AggregateEntry,
    contents: Contents,
    pool: str,
    lost: set[int],
    reason: str,
    *,
    active: bool,
) -> NewGap | None:
    """The gap of a pool that lacks `lost`, and what an older gap of it says.

    Nobody asks an active-data pool for what a newer version has replaced: of that there is no gap.
    """
    lacking = set(lost)
    if active:
        lacking &= {member.member for member in contents.members if member.active}
    if pool in contents.gaps:
        missing = contents.gaps[pool]
        if missing is None:  # all are missing, however many that are
            return NewGap(pool, reason)
        lacking.update(missing)
    if not lacking:
        return None
    return NewGap(pool, reason, 0, None if len(lacking) == entry.objects else MemberSet.of(lacking))
