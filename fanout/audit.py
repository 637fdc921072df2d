"""Turns damage into gaps: what a pool is said to hold and cannot give, so that a repair can close it from another copy.

::

    audit_stgpool    reads every copy of a pool ──> damaged members ──fix──> one commit: the copy shrinks, a gap says why
    retire_volume    a volume that is lost      ──> all that it served ────> likewise; the catalog forgets the volume

Then `backup_stgpool`, `copy_activedata` or `restore_stgpool` fill the pool again. The modelled system has the same three steps
(AUDIT VOLUME, RESTORE VOLUME and RESTORE STGPOOL).

What it promises:

1. A copy shrinks only for what was read and is wrong, or what its medium refuses to give. A volume that is busy, not mounted or
   gone for the moment costs nothing: what could not be asked is named, and stays. Good bytes, in a span whose header or footer is
   damaged or around a damaged block, are given up only if the other pools can give the object without them, which is read. Audits with `fix`
   wait for each other: two at once would each rely on what the other gives up.
2. The copy shrinks and its gap appears in one commit.
3. A damaged place is not used again: it stays the copy's own, and newer spans serve instead of it.
4. What no pool holds any more is named.
5. What no other pool has whole, but all of them have together, stays, and is written anew into the pool that is audited.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fanout import config as configuration
from fanout.ahead import ReadAhead
from fanout.catalog import Catalog, Commit, MemberSet, NewCopy, NewGap, Repair, Shrunk
from fanout.config import Config
from fanout.copying import BadMember, Batch, DestinationFailed, SourcesBad, bad_members
from fanout.errors import (
    CatalogError,
    CatalogStale,
    CommitUnknown,
    FanoutError,
    InterfaceError,
    TargetError,
    VolumeBusy,
    VolumeError,
    VolumeStale,
)
from fanout.evidence import empty_objects
from fanout.making import probe
from fanout.opening import is_the_hosts
from fanout.read import Fault
from fanout.store import LOCK_WAIT, open_engine
from fanout.types import FaultClass, PoolKind
from fanout.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fanout.catalog import (
        AggregateEntry,
        CatalogReader,
        Contents,
        CopyEntry,
        MemberEntry,
        VolumeEntry,
    )
    from fanout.catalog.rows import Place
    from fanout.copying import Copied
    from fanout.engine import Engine
    from fanout.read import CopyReader
    from fanout.store import Store

    # Bytes done, and bytes in all.
    Progress = Callable[[int, int], None]


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


@dataclass(frozen=True, slots=True)
class RetireReport:
    """What a volume took along.

    Attributes:
        pool: that it belonged to.
        objects: versions that the pool lacks now.
        object_bytes: of these.
        lost: names of those that no pool holds any more.
    """

    pool: str
    objects: int
    object_bytes: int
    lost: tuple[bytes, ...]


# ---- audit -------------------------------------------------------------------------------------------


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
    name = store.config.pool(pool).name
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

    def run(self) -> AuditReport:
        held = self.store.query_occupancy(pool=self.pool)
        self.total = sum(entry.bytes for entry in held)
        catalog = self.store.catalog
        for entry, contents in catalog.contents_of(catalog.aggregates()):
            copy = contents.copy_in(self.pool)
            if copy is not None:
                self._read(entry, contents, copy)
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
        frail = list(_frail(copy, members, reader))
        if bad or frail:  # what was deleted while it was read is no damage
            there = {m.member for m in self.store.catalog.members(entry.aggregate)}
            bad = [found for found in bad if found.member.member in there]
            known = {found.member.member for found in bad}
            frail = [found for found in frail if found.member.member in there - known]
        self.unasked += [(found.member.name, found.reason) for found in bad if not found.damage]
        damaged = [found for found in bad if found.damage]
        self.damaged += [(found.member.name, found.reason) for found in (*damaged, *frail)]
        if self.fix and (damaged or frail):
            given_up, between = self._sorted(entry, copy, damaged, frail)
            if given_up:
                self._mark(entry, copy, given_up)
            for holders, some in between.items():
                self._put_together(entry, copy, holders, some)

    def _sorted(
        self,
        entry: AggregateEntry,
        copy: CopyEntry,
        damaged: Sequence[BadMember],
        frail: Sequence[BadMember],
    ) -> tuple[list[BadMember], dict[tuple[str, ...], list[BadMember]]]:
        """Those that the pool gives up, and, by the pools that hold them, those that only all together can give.

        Given up is what the other pools can give without this one, which is read; of the damaged also what all together cannot, if all could
        be asked.
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
                elif number not in lost or (number in hopeless and gone[number].damage):
                    given_up.append(found)
                else:
                    why = (
                        f"kept, for others may lack just what is good of it: {gone[number].reason}"
                    )
                    self.kept.append((found.member.name, why))
        return given_up, between

    def _lost(
        self, entry: AggregateEntry, copies: Sequence[CopyEntry], wanted: Mapping[int, BadMember]
    ) -> dict[int, BadMember]:
        """Members that these copies cannot give, not even together, and why."""
        reader = self.store.reader(entry.aggregate, copies, ahead=self.ahead)
        members = [wanted[number].member for number in sorted(wanted)]
        return {bad.member.member: bad for bad in bad_members(members, reader)}

    def _mark(self, entry: AggregateEntry, copy: CopyEntry, damaged: Sequence[BadMember]) -> None:
        """Promise 2."""
        with self.store.ledger.steady:
            contents = self.store.catalog.contents([entry.aggregate])[entry.aggregate]
            lost = {found.member.member for found in damaged} & _there(contents)
            if not lost:
                return  # deleted meanwhile
            left = _held(entry, copy) - MemberSet.of(lost)
            why = f"audit: {damaged[0].reason}"
            gap = self._gap(entry, contents, lost, why)
            repair = Repair(entry.aggregate, self.pool, NewCopy(self.pool, (), left), gap)
            self.store.ledger.commit_repairs(_commit(repair), (), self.pool)
        self.marked += len(lost)

    def _gap(
        self, entry: AggregateEntry, contents: Contents, lost: set[int], why: str
    ) -> NewGap | None:
        active = _wants_only_active(self.store.catalog, self.pool)
        return _gap(entry, contents, self.pool, lost, why, active=active)

    # ---- promise 5 -----------------------------------------------------------------------------------

    def _put_together(
        self,
        entry: AggregateEntry,
        copy: CopyEntry,
        holders: Sequence[str],
        found: Sequence[BadMember],
    ) -> None:
        """Write members anew into the pool, from what it and others have of them."""
        catalog = self.store.catalog
        contents = catalog.contents([entry.aggregate])[entry.aggregate]
        there = _there(contents)
        members = [one.member for one in found if one.member.member in there]
        sources = [c for c in contents.copies if c.pool == self.pool or c.pool in holders]
        if not members:
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


# ---- retiring a volume -------------------------------------------------------------------------------


def retire_volume(
    config: Config | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    lock_wait: float = LOCK_WAIT,
) -> RetireReport:
    """Give a lost volume of a closed store up: what it served becomes gaps, and the catalog forgets it.

    If its path stays in the configuration, `Store.extend` makes a new volume there.

    Args:
        config: a configuration, or the path of one.
        path: of the volume, as the catalog knows it.
        force: also a volume that can be opened and is what the catalog says, or of which nobody can say now whether it is.
        lock_wait: seconds to wait for a writer that is on its way out.

    Raises:
        CatalogBusy: the store is open for writing.
        CatalogError: there is no catalog, or it could not be changed. Try again: if it was changed all the same, it knows no such volume.
        CatalogStale: (without `force`) the volume is newer than the catalog.
        VolumeBusy: (without `force`) somebody has the volume open.
        VolumeError: the catalog knows no volume at that path; or (without `force`) it is well, here or at another path, or this machine is short of something.
    """
    loaded = config if isinstance(config, Config) else configuration.load(config)
    where = os.path.abspath(os.fspath(path))
    with Catalog.open(loaded.store.catalog, lock_wait=lock_wait) as catalog:
        known = {entry.path: entry for entry in catalog.volumes()}
        if where not in known:
            there = ", ".join(known) or "none"
            raise VolumeError(where, f"the catalog knows no volume at this path; it knows: {there}")
        entry = known[where]
        if not force and _is_well(loaded, catalog, entry, lock_wait):
            raise VolumeError(
                where, "it is well; say force (--force) to give up what it holds all the same"
            )
        objects, size, lost, shrunk = _losses(catalog, entry)
        catalog.retire(entry.volume, shrunk)
    return RetireReport(entry.pool, objects, size, tuple(lost))


def _is_well(config: Config, catalog: Catalog, entry: VolumeEntry, lock_wait: float) -> bool:
    """Whether the volume can be opened and is what the catalog knows. Writes nothing.

    Raises:
        VolumeBusy, VolumeError, CatalogStale: it cannot be opened, and for all that is known it is not lost.
    """
    with open_engine(config) as engine:
        try:
            Volume.open(
                engine,
                entry.path,
                store=catalog.store_id,
                pool=entry.pool,
                volume=entry.volume,
                catalog_epoch=entry.epoch,
                size=entry.size,
                lock_wait=lock_wait,
                moved=entry.pool in config.pools and config.pools[entry.pool].moved,
                claim=False,
            ).close()
        except VolumeBusy:
            raise
        except VolumeStale as error:
            if error.catalog_is_older:
                raise CatalogStale(catalog.path, f"is no judge of what is lost: {error}") from error
            return False
        except FanoutError as error:
            if is_the_hosts(error) or _is_forbidden(error):
                why = error.message if isinstance(error, VolumeError) else str(error)
                message = f"{why}: that does not make it lost; mend that, or say force (--force)"
                raise VolumeError(entry.path, message) from error
            place = _elsewhere(config, catalog, engine, entry)
            if place is not None:
                message = (
                    f"the volume lies at {place}: that does not make it lost; put it back in its place, or take the places as they are "
                    "with 'fanout rebuild catalog --force', or say force (--force)"
                )
                raise VolumeError(entry.path, message) from error
            return False
        return True


def _elsewhere(config: Config, catalog: Catalog, engine: Engine, entry: VolumeEntry) -> str | None:
    """Another path of the store's at which a volume lies."""
    named = [str(spec.path) for pool in config.pools.values() for spec in pool.volumes]
    for path in dict.fromkeys([*named, *(one.path for one in catalog.volumes())]):
        with suppress(FanoutError, OSError):
            block = probe(engine, path) if path != entry.path else None
            if block is not None and block.volume == entry.volume:
                return path
    return None


def _is_forbidden(error: FanoutError) -> bool:
    """Whether it is there, and this user, or nobody for now, may write to it."""
    return isinstance(error.__cause__, TargetError) and (
        error.__cause__.outcome.cls is FaultClass.ACCESS
    )


def _losses(catalog: Catalog, volume: VolumeEntry) -> tuple[int, int, list[bytes], list[Shrunk]]:
    """What the volume serves: objects, bytes, names of what nobody else has, and how each copy shrinks."""
    count = size = 0
    gone: list[bytes] = []
    shrunk: list[Shrunk] = []
    reason = f"volume {volume.path} was lost"
    active = _wants_only_active(catalog, volume.pool)
    for entry, contents in catalog.contents_of(catalog.aggregates(volume=volume.volume)):
        copy = contents.copy_in(volume.pool)
        if copy is None:
            continue
        served = _served_by(volume.volume, copy, contents.members)
        lost = {member.member for member in served}
        left = _held(entry, copy) - MemberSet.of(lost) if lost else copy.present
        if all(place.volume == volume.volume for place in copy.places):
            left = (_held(entry, copy) if left is None else left) - entry.erased
        gap = _gap(entry, contents, copy.pool, lost, reason, active=active) if lost else None
        shrunk.append(Shrunk(entry.aggregate, copy.pool, left, gap))
        count, size = count + len(served), size + sum(member.length for member in served)
        others = [other for other in contents.copies if other is not copy]
        gone += [m.name for m in served if not any(o.holds(m.member) for o in others)]
    return count, size, gone, shrunk


def _served_by(volume: bytes, copy: CopyEntry, members: Sequence[MemberEntry]) -> list[MemberEntry]:
    """The members that a copy gives from a volume, all of them or a part."""
    return [
        member
        for member in members
        if copy.holds(member.member)
        and any(place.volume == volume for place in copy.servers(member.start, member.length))
    ]


# ---- shared ------------------------------------------------------------------------------------------


def _frail(
    copy: CopyEntry, members: Sequence[MemberEntry], reader: CopyReader
) -> Iterator[BadMember]:
    """Members that a span with a damaged header or footer serves: a catalog made from the volumes would not find them."""
    damaged: list[tuple[Place, str]] = []
    named: set[tuple[bytes, int]] = set()
    for place in copy.places:
        found = reader.frame(copy, place)
        if not isinstance(found, Fault):
            named |= empty_objects(found)
        elif found.damage:
            damaged.append((place, found.reason))
    for place, reason in damaged:
        for member in members:
            elsewhere = not member.length and (member.name, member.start) in named
            if place in copy.servers(member.start, member.length) and not elsewhere:
                yield BadMember(member, reason)


def _there(contents: Contents) -> set[int]:
    return {member.member for member in contents.members}


def _commit(repair: Repair) -> Commit:
    return Commit(secrets.token_bytes(16), 1, repairs=(repair,))


def _held(entry: AggregateEntry, copy: CopyEntry) -> MemberSet:
    return MemberSet.all_of(entry.objects) if copy.present is None else copy.present


def _wants_only_active(catalog: CatalogReader, pool: str) -> bool:
    return any(p.name == pool and p.kind is PoolKind.ACTIVE_DATA for p in catalog.pools())


def _gap(
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
        lacking.update(range(entry.objects) if missing is None else missing)
    if not lacking:
        return None
    return NewGap(pool, reason, 0, None if len(lacking) == entry.objects else MemberSet.of(lacking))
