"""Deletes versions of objects: they are gone from every pool in one commit, and what holds nothing any more is free space.

::

    versions ──plan──> aggregates: some members, or all ──commit──> catalog ──> records in the volumes' directories ──flush──> free

What it promises:

1. What was deleted never returns: not after a crash, not in a rebuilt catalog, not with a volume that was away, as long as one of the
   volumes that have taken the record takes part. Nothing of an aggregate is deleted while no volume that holds it can take one.
2. A region is free only when its volume's directory says so, durably. Volumes that are away keep theirs until they come back.
3. Of the versions that are left the newest is active. An active-data pool that has it not gets a gap, in the same commit.
4. The space of a copy comes back when the last member that it holds is deleted, not before; while the aggregate lives on, once every
   volume that holds some of it has been told.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from fanout.catalog import Commit, Deletion, MemberSet, NewGap, Repair
from fanout.errors import CatalogError, InterfaceError, ObjectNotFound
from fanout.scribe import record_of
from fanout.types import ObjectKind, PoolKind
from fanout.units import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fanout.catalog import AggregateEntry, CatalogReader, Contents, HeldSpans, ObjectEntry
    from fanout.ledger import Ledger
    from fanout.volume import Volume

    Volumes = Callable[[bytes], Volume | None]  # the open volume of an id

BATCH_OBJECTS = 4096  # deleted in one commit; what is more follows in others
NO_VOLUME = "no volume that holds it can be written; bring one back, or give it up with 'fanout retire volume'"
NO_ROOM = "the directory of {} has no room to say what is left of its aggregate; that can only be deleted as a whole"
NO_NAME = b"(without a name)"
PROMOTED = "its newer version was deleted"

_log = logging.getLogger("fanout.deletion")


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """What was deleted; of a preview: what would be.

    Attributes:
        objects: versions.
        object_bytes: of these.
        aggregates: of which nothing is left.
        freed_bytes: that can be used again now, of all pools together.
        waiting_bytes: of all that was ever deleted, what waits for volumes that are away, or for the next opening. None: the
            catalog did not say.
        postponed: name and reason of each version that could not be deleted.
        seconds: of the run.
    """

    objects: int
    object_bytes: int
    aggregates: int
    freed_bytes: int
    waiting_bytes: int | None
    postponed: tuple[tuple[bytes, str], ...]
    seconds: float


@dataclass(slots=True)
class Selection:
    """Which versions of a node's objects.

    Attributes:
        node: name.
        names: of the objects; None: all.
        kind: of the objects.
        version: this one, of one name.
        keep: only those of which so many newer ones are there; 0: all. Without it and `version`: the active ones.
        unnamed: none of these, but what the catalog counts and cannot name.
    """

    node: str
    names: Sequence[bytes] | None
    kind: ObjectKind
    version: int | None
    keep: int | None
    unnamed: bool = False

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InterfaceError: says what to say instead.
        """
        if self.unnamed:
            if (self.names, self.version, self.keep) != (None, None, None):
                raise InterfaceError(
                    "what has no name any more is given up as a whole: say no name, version or keep"
                )
            return
        if self.keep is not None and self.keep < 0:
            raise InterfaceError(f"keep={self.keep}: say a number of versions, 0 or more")
        if self.keep is not None and self.version is not None:
            raise InterfaceError("say either which version goes, or how many stay")
        if self.names is None and self.keep is None:
            raise InterfaceError("all objects of a node: say how many versions of each stay")
        if self.version is not None and len(self.names or ()) != 1:
            raise InterfaceError("a version is one object's: say which object")

    def entries(self, catalog: CatalogReader) -> Iterator[ObjectEntry]:
        """The versions, as they are read page by page.

        Raises:
            ObjectNotFound: there is nothing of a name. Nothing has been said of any yet.
        """
        for name in self.names or ():
            if catalog.find(self.node, name, kind=self.kind, version=self.version) is None:
                which = "" if self.version is None else f", version {self.version}"
                raise ObjectNotFound(
                    f"{self.node} has no {self.kind.value} object {quoted(name)}{which}; nothing was deleted"
                )
        for one in [None] if self.names is None else dict.fromkeys(self.names):
            for entry in catalog.objects(
                node=self.node,
                name=one,
                kind=self.kind,
                active_only=self.keep is None and self.version is None,
                beyond=self.keep or 0,
            ):
                if self.version in (None, entry.version):
                    yield entry

    def incomplete(self, catalog: CatalogReader) -> Iterator[bytes]:
        """Aggregates of which not all members can be named."""
        for entry, contents in catalog.contents_of(catalog.aggregates()):
            mine = (entry.node, entry.kind) == (self.node, self.kind)
            if mine and _unnamed(entry, contents):
                yield entry.aggregate


def delete(
    selection: Selection, catalog: CatalogReader, ledger: Ledger, volumes: Volumes
) -> DeleteReport:
    """Delete what is selected; see `Store.delete`."""
    run = _Run()
    for batch in _batches(selection, catalog):
        with ledger.steady:
            ledger.write_out()
            plan = _Plan(catalog, volumes, batch)
            if plan.deletions:
                commit = Commit(
                    secrets.token_bytes(16),
                    1,
                    deletions=tuple(plan.deletions),
                    repairs=tuple(plan.promotions()),
                )
                ledger.commit_deletions(commit)
        run.count(plan)
    return run.report(*_free(catalog, ledger, run.objects))


def preview(selection: Selection, catalog: CatalogReader, ledger: Ledger | None) -> DeleteReport:
    """What `delete` would do; None for the ledger of a store that is open read-only."""
    run = _Run()
    for batch in _batches(selection, catalog):
        run.count(_Plan(catalog, None, batch))
    return run.report(*_free(catalog, ledger, 0))


def _unnamed(entry: AggregateEntry, contents: Contents) -> MemberSet:
    """Members that a catalog counts and cannot name, since it was made without the volume, or the frame, that does."""
    named = entry.erased | MemberSet.of(member.member for member in contents.members)
    return MemberSet.all_of(entry.objects) - named


def _batches(selection: Selection, catalog: CatalogReader) -> Iterator[_Batch]:
    """What goes in one commit, as it is read."""
    selection.check()
    if selection.unnamed:
        incomplete = selection.incomplete(catalog)
        while some := list(islice(incomplete, BATCH_OBJECTS)):
            yield _Batch((), some)
        return
    wanted = selection.entries(catalog)
    while batch := list(islice(wanted, BATCH_OBJECTS)):
        yield _Batch(batch, ())


def _free(catalog: CatalogReader, ledger: Ledger | None, deleted: int) -> tuple[int, int | None]:
    """Bytes that are free now, and that wait. What was deleted stays deleted: a catalog that fails now costs space, not safety."""
    freed = 0
    try:
        freed = ledger.bury() if ledger is not None and deleted else 0
        return freed, catalog.waiting_bytes(None if ledger is None else ledger.thinned)
    except CatalogError as error:
        _log.warning("what was deleted may not be free yet: %s", error)
        return freed, None


class _Batch(NamedTuple):
    """What goes in one commit: versions, or aggregates of which all goes that has no name."""

    entries: Sequence[ObjectEntry]
    incomplete: Sequence[bytes]


@dataclass(slots=True)
class _Run:
    """What has been counted so far."""

    began: float = field(default_factory=time.monotonic)
    objects: int = 0
    size: int = 0
    aggregates: int = 0
    postponed: list[tuple[bytes, str]] = field(default_factory=list)

    def count(self, plan: _Plan) -> None:
        """One more batch."""
        self.objects += len(plan.gone) + plan.given_up
        self.size += sum(entry.length for entry in plan.gone)
        self.aggregates += sum(deletion.members is None for deletion in plan.deletions)
        self.postponed += plan.postponed

    def report(self, freed: int, waiting: int | None) -> DeleteReport:
        """All of it."""
        return DeleteReport(
            objects=self.objects,
            object_bytes=self.size,
            aggregates=self.aggregates,
            freed_bytes=freed,
            waiting_bytes=waiting,
            postponed=tuple(self.postponed),
            seconds=time.monotonic() - self.began,
        )


class _Plan:
    """What becomes of each aggregate when some versions go; without volumes nobody asks whether they can take it.

    Attributes:
        deletions: one for each aggregate.
        gone: the versions.
        given_up: how many that have no name.
        postponed: name and reason of those that cannot go now.
        active: of those that go the active ones. Asked together with the contents: since the versions were selected, others may have
            deleted what was newer.
    """

    def __init__(self, catalog: CatalogReader, volumes: Volumes | None, batch: _Batch) -> None:
        self._catalog, self._volumes = catalog, volumes
        self.given_up = 0
        self.deletions: list[Deletion] = []
        self.gone: list[ObjectEntry] = []
        self.postponed: list[tuple[bytes, str]] = []
        self.active: list[ObjectEntry] = []
        self._room: dict[bytes, int] = {}
        by_aggregate: dict[bytes, list[ObjectEntry]] = {one: [] for one in batch.incomplete}
        for one in batch.entries:
            by_aggregate.setdefault(one.aggregate, []).append(one)
        entries = map(self._catalog.aggregate, by_aggregate)
        still_there = (entry for entry in entries if entry is not None)
        for entry, contents in self._catalog.contents_of(still_there):
            self._plan(entry, contents, by_aggregate[entry.aggregate])

    def _plan(self, entry: AggregateEntry, contents: Contents, mine: Sequence[ObjectEntry]) -> None:
        there = {member.member: member for member in contents.members}
        wanted = [one for one in mine if one.member in there]
        given_up = MemberSet() if mine else _unnamed(entry, contents)
        if not (wanted or given_up):
            return
        numbers = {one.member for one in wanted}
        size = entry.erased_bytes + sum(there[number].length for number in numbers)
        # A catalog that was made without a volume counts members that it cannot name: they are not deleted with others, and may come back.
        unnamed = max(0, entry.objects - len(entry.erased) - len(there))
        left = len(there) - len(numbers) + unnamed - len(given_up)
        members = entry.erased | MemberSet.of(numbers) | given_up if left else None
        places = (place for copy in contents.copies for place in copy.places)
        volumes = tuple(dict.fromkeys(place.volume for place in places))
        held = tuple(
            (volume, spans)
            for volume in (volumes if left else ())
            for spans in self._catalog.held_spans(volume, [entry.aggregate])
        )
        deletion = Deletion(entry, members, size, volumes, held)
        reason = "" if self._volumes is None else self._obstacle(deletion, self._volumes)
        if reason:
            self.postponed += [(one.name, reason) for one in wanted] or [(NO_NAME, reason)]
        else:
            self.given_up += len(given_up)
            self.deletions.append(deletion)
            self.gone += wanted
            self.active += [one for one in wanted if there[one.member].active]

    def _obstacle(self, deletion: Deletion, volume_of: Volumes) -> str:
        """Why an aggregate cannot be touched now; empty: it can (promise 1)."""
        found = [volume_of(identity) for identity in deletion.volumes]
        volumes = [volume for volume in found if volume is not None and volume.writable]
        if deletion.volumes and not volumes:
            return NO_VOLUME
        if deletion.members is not None:
            held = dict(deletion.held)
            growth = {v.uuid: _growth(v, held[v.uuid], deletion.members) for v in volumes}
            for volume in volumes:
                assert volume.directory is not None
                room = self._room.setdefault(volume.uuid, volume.directory.spare_bytes)
                if room < growth[volume.uuid]:
                    return NO_ROOM.format(volume.path)
            for identity, more in growth.items():
                self._room[identity] -= more
        return ""

    # ---- what is active again ------------------------------------------------------------------------

    def promotions(self) -> list[Repair]:
        """Gaps of active-data pools that lack what is active again (promise 3)."""
        gone = {one.version for one in self.gone}
        back: dict[bytes, set[int]] = {}
        for one in self.active:
            if one.kind is not ObjectKind.BACKUP:
                continue
            left = [
                other
                for other in self._catalog.objects(node=one.node, name=one.name, kind=one.kind)
                if other.version not in gone
            ]
            if left:
                back.setdefault(left[-1].aggregate, set()).add(left[-1].member)
        return [
            repair
            for aggregate, members in back.items()
            for repair in self._gaps(aggregate, members)
        ]

    def _gaps(self, aggregate: bytes, members: set[int]) -> Iterator[Repair]:
        entry = self._catalog.aggregate(aggregate)
        assert entry is not None
        kinds = {pool.name: pool.kind for pool in self._catalog.pools()}
        contents = self._catalog.contents([aggregate])[aggregate]
        for pool in entry.required:
            if kinds.get(pool) is not PoolKind.ACTIVE_DATA:
                continue
            copy = contents.copy_in(pool)
            lacking = {number for number in members if not (copy and copy.holds(number))}
            missing = contents.gaps.get(pool, MemberSet())
            if missing is None:
                continue  # all of it is a gap
            noted = set(missing)
            if lacking - noted:
                gap = NewGap(pool, PROMOTED, 0, MemberSet.of(lacking | noted))
                yield Repair(aggregate, pool, None, gap)


def _growth(volume: Volume, held: HeldSpans, members: MemberSet) -> int:
    """Bytes of the volume's directory that the record takes more when it says that these members are deleted."""
    assert volume.directory is not None
    return volume.directory.growth(record_of(replace(held, erased=members)))
