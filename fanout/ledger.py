"""Turns what was written into what is committed, and keeps all books in step: catalog, allocators, directories.

::

    TransactionRecord ──> proofs checked ──> Commit ──> Committer ──┬─ settled:  regions live, tails free
    repairs, deletions ─────────────────────────┘                   └─ appended: directory records ──> Scribe
    bury: what directories have forgotten for good ──> the catalog forgets the regions ──> regions free

What it promises:

1. No copy is committed whose last good flush is older than its last write: the record must carry the proof.
2. What a record holds stays reserved until its outcome is known, whoever has forgotten it meanwhile.
3. A transaction that is sent again after it committed changes nothing.
4. A region of what was deleted is free only when its volume's directory says so, durably, and then the catalog, durably.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from fanout.catalog import Commit, DeadAggregate, NewAggregate, NewCopy, NewGap, Place
from fanout.committer import Committer
from fanout.errors import CatalogError, TransactionFailed
from fanout.format import DirectoryRecord, Op
from fanout.pools import PoolSet
from fanout.scribe import Entry, delete_of, ranges_of, record_of, stored_span
from fanout.types import Gap, Receipt, StoredObject
from fanout.undisturbed import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fanout.catalog import AggregateEntry, Catalog, CatalogReader, Deletion
    from fanout.format import StoredSpan
    from fanout.host import AggregateRecord, TransactionRecord, WrittenSpan
    from fanout.scribe import Scribe
    from fanout.volume import Volume

    # A span that becomes live, and in which pools.
    Holding = tuple[WrittenSpan, tuple[str, ...]]
    Group = Sequence[tuple[Commit, int]]


class Ledger:
    """The writing side of a store's books. Any thread may call anything.

    Attributes:
        steady: while it is held nothing that has been committed is deleted. Whoever asks the catalog what to change of an
            aggregate, and then commits it, holds it meanwhile; an interrupt does not let go of it before the commit is settled.
        thinned: aggregates that had lost members when `bury` last looked for spent copies, and have some that wait; None: it has not looked yet.

    Args:
        catalog: open for writing.
        pools: open.
        scribe: appends directory records.
        flush_before_acknowledge: directories are durable before a commit returns.
        commit_deadline: seconds that the catalog may take to answer.
    """

    def __init__(
        self,
        catalog: Catalog,
        pools: PoolSet,
        scribe: Scribe,
        *,
        flush_before_acknowledge: bool,
        commit_deadline: float,
    ) -> None:
        self._catalog, self._pools, self._scribe = catalog, pools, scribe
        # By commit, not by its key: a client that is impatient may hand the same one in twice, and only one of them will hold what it wrote.
        self._pending: dict[int, tuple[Commit, tuple[Holding, ...]]] = {}
        self._pending_lock = threading.Lock()
        self._told: dict[tuple[bytes, int], threading.Event] = {}
        self.steady = threading.RLock()
        self.thinned: set[bytes] | None = None
        self._thinning: deque[bytes] = deque()  # aggregates that have lost members since
        make = partial(Committer, catalog, settled=self._settled, deadline=commit_deadline)
        if flush_before_acknowledge:
            self._committer = make(durable=self._durable)
        else:
            self._committer = make(appended=self._appended)

    @property
    def refusal(self) -> str | None:
        """Why nothing can be committed any more; None: all is well."""
        return self._committer.refusal

    @property
    def shortage(self) -> str | None:
        """Why nothing new should be begun, though what has begun can be committed; None: all is well."""
        return self._catalog.shortage()

    def close(self) -> None:
        """Commit what waits, then take nothing more; idempotent."""
        self._committer.close()

    # ---- committing ------------------------------------------------------------------------------

    def commit(self, record: TransactionRecord) -> int:
        """Commit a client's transaction; returns its commit sequence number.

        Raises:
            CatalogError: it did not happen.
            CommitUnknown: nobody knows.
            TransactionFailed: the transaction was committed before; what was sent again is dropped.
            AssertionError: something in it is not durable on a target that it names. A mistake of ours.
        """
        for aggregate in record.aggregates:
            check_proofs(aggregate)
        holdings = [(span, a.pools) for a in record.aggregates for span in a.spans]
        try:
            return self._hand_in(self._commit_of(record), holdings)
        except CatalogError as error:
            earlier = self._committed_before(record.transaction)
            if earlier is None:
                raise
            for span, _ in holdings:
                # Durable, so nothing is in flight; and not committed, so nothing names it.
                self._pools.release(span.span, [p.pool for p in span.span.placements])
            raise TransactionFailed(
                "duplicate",
                f"was committed already, as attempt {earlier}; nothing was stored again",
                transaction=record.transaction.hex(),
                attempt=record.attempt,
            ) from error

    def commit_repairs(self, commit: Commit, spans: Sequence[WrittenSpan], pool: str) -> int:
        """Commit a batch of repairs whose spans are durable in `pool`; returns its commit sequence number.

        Raises:
            CatalogError: it did not happen.
            CommitUnknown: nobody knows.
        """
        holdings = [(span, (pool,)) for span in spans]
        return undisturbed(lambda: self._hand_in(commit, holdings))

    def write_out(self) -> None:
        """Have the directories take what was committed so far. Nothing promises room for what they say of deletions: see what is left of it then."""
        self._scribe.write_out()

    def commit_deletions(self, commit: Commit) -> int:
        """Commit deletions; returns the commit sequence number. Their space is free after `bury`.

        Raises:
            CatalogError: it did not happen.
            CommitUnknown: nobody knows.
        """
        key = commit.transaction, commit.attempt
        told = self._told[key] = threading.Event()
        try:
            return undisturbed(lambda: self._told_commit(commit, told))
        finally:
            del self._told[key]

    def _told_commit(self, commit: Commit, told: threading.Event) -> int:
        csn = self._hand_in(commit, ())
        told.wait()  # callers are woken before the scribe has the records
        return csn

    def bury(self) -> int:
        """Make what the directories say durable; free the regions of what was deleted, as far as their volumes have taken that.

        Returns:
            How many bytes are free now (promise 4).

        Raises:
            CatalogError: it could not be recorded: the regions wait for the next time.
        """
        with self.steady:
            if self.refusal is not None:
                return 0
            taken = self._scribe.take_deletes(self._pools.volumes(), self._catalog)
            while self._thinning:
                aggregate = self._thinning.popleft()
                if self.thinned is not None:
                    self.thinned.add(aggregate)
            nobody = self.thinned is not None and not self.thinned
            spent = [] if nobody else self._catalog.spent(self.thinned)
            left = self._scribe.move_out(spent, self._catalog) if spent else {}
            self.thinned = {copy.aggregate for copy in spent}
            if not taken and not left and not self._catalog.dead():
                return 0
            offsets, gone = self._catalog.bury(_aggregates(taken), _aggregates(left))
            self._scribe.forget_deletes(self._pools.volumes(), gone)
            volumes = {uuid: volume for uuid, (volume, _) in (taken | left).items()}
            return sum(self._pools.free(volumes[uuid], at) for uuid, at in offsets.items())

    def _hand_in(self, commit: Commit, holdings: Sequence[Holding]) -> int:
        # Promise 2: the pools would quarantine the regions of a span that nobody remembers.
        with self._pending_lock:
            self._pending[id(commit)] = commit, tuple(holdings)
        return self._committer.commit(commit)

    def _commit_of(self, record: TransactionRecord) -> Commit:
        return Commit(
            transaction=record.transaction,
            attempt=record.attempt,
            node=record.node,
            kind=record.kind,
            destination=record.destination,
            required=record.required,
            aggregates=tuple(self._new_aggregate(entry) for entry in record.aggregates),
        )

    def _new_aggregate(self, record: AggregateRecord) -> NewAggregate:
        return NewAggregate(
            aggregate=record.aggregate,
            primary=record.primary,
            members=record.members,
            copies=tuple(
                NewCopy(pool, tuple(self.place_of(span, pool) for span in record.spans))
                for pool in record.pools
            ),
            gaps=tuple(NewGap(gap.pool, gap.reason, gap.errno) for gap in record.gaps),
        )

    def place_of(self, span: WrittenSpan, pool: str) -> Place:
        """Where a written span lies in a pool, as the catalog should know it. Only before it is committed."""
        held = PoolSet.held(span.span)[pool]
        return Place(
            span=span.number,
            volume=held.volume.uuid,
            offset=held.offset,
            length=self._pools.kept_length(span, pool),
            used=span.used,
            data_start=span.data_start,
            data_length=span.data_length,
        )

    def _committed_before(self, transaction: bytes) -> int | None:
        if self.refusal is not None:
            return None  # a catalog that hangs may not answer a question either
        with suppress(CatalogError):
            found = self._catalog.committed(transaction)
            return found.attempt if found else None
        return None

    # ---- the committer's hooks (on its thread) -----------------------------------------------------

    def _settled(self, commit: Commit, csn: int | None) -> None:
        with self._pending_lock:
            _, holdings = self._pending.pop(id(commit), (commit, ()))
        if csn is None:
            return  # whoever wrote it gives it back; if nobody does, the pools quarantine it
        # Not when the caller goes on: an interrupt may have struck it, and nobody would look at them before the next opening.
        self._thinning += (d.entry.aggregate for d in commit.deletions if d.members is not None)
        for span, pools in holdings:
            self._pools.commit(span, pools)

    def _appended(self, group: Group) -> None:
        self._tell(group, self._scribe.append)

    def _durable(self, group: Group) -> None:
        self._tell(group, self._scribe.append_and_flush)

    def _tell(self, group: Group, write: Callable[[list[Entry]], None]) -> None:
        """Hand the directory records of a group over, in the order of its commits.

        Those of one commit that cannot be made take no other's along; the next opening appends them. Who waits for any goes on.
        """
        entries: list[Entry] = []
        failures: list[Exception] = []
        try:
            with self._committer.asked():  # of repairs it is asked what a volume holds now
                for commit, csn in group:
                    try:
                        entries += self._entries(commit, csn)
                    except Exception as error:
                        failures.append(error)
            write(entries)
            if failures:
                raise failures[0]
        finally:
            for commit, _ in group:
                told = self._told.get((commit.transaction, commit.attempt))
                if told is not None:
                    told.set()

    def _entries(self, commit: Commit, csn: int) -> list[Entry]:
        entries: list[Entry] = []
        for aggregate in commit.aggregates:
            for copy in aggregate.copies:
                entries += self._records(commit, csn, aggregate, copy)
        repaired: dict[str, list[bytes]] = {}
        for repair in commit.repairs:
            if repair.copy is not None:
                repaired.setdefault(repair.pool, []).append(repair.aggregate)
        for pool, aggregates in repaired.items():
            entries += self._repair_records(pool, aggregates)
        for deletion in commit.deletions:
            entries += self._deletion_records(deletion, csn)
        return entries

    @staticmethod
    def _deletion_records(deletion: Deletion, csn: int) -> list[Entry]:
        """What the directories of an aggregate's volumes say once some of it, or all, was deleted."""
        entry, members = deletion.entry, deletion.members
        if members is not None:
            return [
                Entry(volume, record_of(replace(held, csn=csn, erased=members)))
                for volume, held in deletion.held
            ]
        dead = DeadAggregate(
            entry.aggregate,
            entry.transaction,
            entry.attempt,
            csn,
            entry.node,
            entry.kind,
            entry.at,
        )
        return [Entry(volume, delete_of(dead)) for volume in deletion.volumes]

    def _records(
        self, commit: Commit, csn: int, aggregate: NewAggregate, copy: NewCopy
    ) -> Iterator[Entry]:
        """One record for each volume that holds some of a new copy."""
        by_volume: dict[bytes, list[StoredSpan]] = {}
        for place in copy.places:
            by_volume.setdefault(place.volume, []).append(stored_span(place))
        for volume, spans in by_volume.items():
            record = DirectoryRecord(
                csn=csn,
                op=Op.COMMIT,
                aggregate=aggregate.aggregate,
                transaction=commit.transaction,
                attempt=commit.attempt,
                spans=tuple(spans),
                present=ranges_of(copy.present),
                node=commit.node or "",
                kind=commit.kind,
                time_ns=self._catalog.last_commit_at,
                committed=csn,
                version=self._catalog.last_versions.get(aggregate.aggregate, 0),
                objects=len(aggregate.members),
            )
            yield Entry(volume, record)

    def _repair_records(self, pool: str, aggregates: Sequence[bytes]) -> Iterator[Entry]:
        """A record replaces older ones of its aggregate, so after a repair it says all that each volume holds."""
        held_on: dict[bytes, list[bytes]] = {}
        for aggregate, contents in self._catalog.contents(aggregates).items():
            copy = contents.copy_in(pool)
            for volume in {place.volume: None for place in copy.places} if copy else ():
                held_on.setdefault(volume, []).append(aggregate)
        for volume, mine in held_on.items():
            for held in self._catalog.held_spans(volume, mine):
                yield Entry(volume, record_of(held))


# ---- receipts from the catalog ---------------------------------------------------------------------


def receipt_of(catalog: CatalogReader, transaction: bytes) -> Receipt | None:
    """The receipt of a transaction that has committed; None: it has not. Pools and gaps are those of today."""
    found = catalog.committed(transaction)
    if found is None:
        return None
    objects: list[StoredObject] = []
    gaps: list[Gap] = []
    for aggregate in found.aggregates:
        objects += _stored(catalog, aggregate)
        gaps += [
            Gap(g.aggregate, g.primary, g.pool, g.reason, g.errno, g.objects, g.bytes)
            for g in catalog.gaps(aggregate=aggregate.aggregate)
        ]
    return Receipt(
        transaction=transaction.hex(),
        attempt=found.attempt,
        csn=found.csn,
        objects=tuple(objects),
        gaps=tuple(gaps),
        removed=MappingProxyType({}),
        bytes=sum(stored.length for stored in objects),
        seconds=0.0,
    )


def _stored(catalog: CatalogReader, aggregate: AggregateEntry) -> Iterator[StoredObject]:
    copies = catalog.copies(aggregate.aggregate)
    for member in catalog.members(aggregate.aggregate):
        pools = tuple(copy.pool for copy in copies if copy.holds(member.member))
        yield StoredObject(member.name, member.length, member.digest, aggregate.primary, pools)


# ---- helpers ---------------------------------------------------------------------------------------


def _aggregates(taken: Mapping[bytes, tuple[Volume, list[bytes]]]) -> dict[bytes, list[bytes]]:
    return {uuid: aggregates for uuid, (_, aggregates) in taken.items()}


def check_proofs(record: AggregateRecord) -> None:
    """Assert promise 1. Not an ``assert``: it must hold under ``python -O`` as well.

    Raises:
        AssertionError: a copy has no proof, or one that says that a flush is missing.
    """
    proven: dict[tuple[str, int], bool] = {}
    for proof in record.proofs:
        key = proof.pool, id(proof.target)
        proven[key] = proven.get(key, True) and 0 < proof.written == proof.synced
    for span in record.spans:
        for place in span.span.placements:
            if place.pool in record.pools and not proven.get((place.pool, id(place.target))):
                raise AssertionError(
                    f"{place.target.path}: a commit names bytes there that no flush has covered"
                )
