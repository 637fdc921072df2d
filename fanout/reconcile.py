"""Closes gaps from any copy that is good: `backup stgpool` in a copy pool, `copy activedata` in an active-data pool.

`restore stgpool` does the same in a primary pool that has lost something.

What is missing is found by comparing the whole catalog with the pool, not by believing gap rows: a copy that was never made and
never noted is found as well. What is there is skipped, so a second run copies nothing. A batch of aggregates is written, made
durable and committed; the gap row goes in the commit that adds the copy. Killed at any point, the next run goes on where this one stopped.

What it promises:

1. Every member is checked against the digest with which it was accepted before the pool is said to hold it.
2. What could not be copied is reported by name, and its gap stays, with the reason and the time of this run.
3. Nothing comes back: a member that was replaced or deleted while it was copied is not marked present.
4. Two runs into the same pool wait for each other; runs into different pools do not.

Operators run the top of the hierarchy first: objects move down, never up.
"""

from __future__ import annotations

import math
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fanout.ahead import ReadAhead
from fanout.catalog import Commit, MemberSet, NewCopy, NewGap, Repair
from fanout.copying import Batch, DestinationFailed, DestinationFull, SourcesBad
from fanout.errors import CatalogError, CommitUnknown, InterfaceError, PoolError
from fanout.types import PoolKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fanout.catalog import AggregateEntry, Contents, CopyEntry, MemberEntry
    from fanout.copying import BadMember, Copied
    from fanout.host import WrittenSpan
    from fanout.store import Store

    # Bytes done, and bytes in all.
    Progress = Callable[[int, int], None]

BATCH_BYTES = 64 << 20  # of one batch: one sync and one commit for so much
BATCH_AGGREGATES = 256
MAX_FAILURES = 3  # batches in a row that the destination refuses before the run ends


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What a run did.

    Attributes:
        copied_objects: written, verified and committed; with `preview`: that would be.
        copied_bytes: of these.
        skipped_objects: that the pool held before.
        failed: name and reason of each object that could not be copied.
        gaps_closed: gap rows that are gone.
        gaps_left: gap rows of this primary and pool that count something.
        seconds: of the run.
    """

    copied_objects: int
    copied_bytes: int
    skipped_objects: int
    failed: tuple[tuple[bytes, str], ...]
    gaps_closed: int
    gaps_left: int
    seconds: float


def backup_stgpool(
    store: Store,
    primary: str,
    copy: str,
    *,
    preview: bool = False,
    on_progress: Progress | None = None,
) -> ReconcileReport:
    """Copy what a copy pool lacks of a primary: all versions of all objects.

    Args:
        store: open; for writing, unless it is a preview.
        primary: name of a primary pool, also of one that only the catalog knows any more.
        copy: name of a copy pool.
        preview: only say what would be copied.
        on_progress: called with bytes done and bytes in all.

    Raises:
        UnknownPool: there is no such pool; says which there are.
        PoolError: a pool is of the wrong type.
        InterfaceError: the store is open read-only.
        CommitUnknown: the catalog failed in the middle of a commit; open the store again.
    """
    return _reconcile(store, primary, copy, PoolKind.COPY, preview=preview, on_progress=on_progress)


def copy_activedata(
    store: Store,
    primary: str,
    pool: str,
    *,
    preview: bool = False,
    on_progress: Progress | None = None,
) -> ReconcileReport:
    """Copy what an active-data pool lacks of a primary: active backup versions of nodes whose domain allows the pool.

    Arguments and errors as for `backup_stgpool`.
    """
    return _reconcile(
        store, primary, pool, PoolKind.ACTIVE_DATA, preview=preview, on_progress=on_progress
    )


def restore_stgpool(
    store: Store,
    primary: str,
    *,
    preview: bool = False,
    on_progress: Progress | None = None,
) -> ReconcileReport:
    """Copy back to a primary pool what it lacks of its own, from any copy that is good.

    It lacks what `audit_stgpool` found damaged, and what a volume held that was retired.

    Args:
        store: open; for writing, unless it is a preview.
        primary: name of a primary pool.
        preview: only say what would be copied.
        on_progress: called with bytes done and bytes in all.

    Raises:
        As `backup_stgpool`.
    """
    return _reconcile(
        store, primary, primary, PoolKind.PRIMARY, preview=preview, on_progress=on_progress
    )


def _reconcile(
    store: Store,
    primary: str,
    pool: str,
    kind: PoolKind,
    *,
    preview: bool,
    on_progress: Progress | None,
) -> ReconcileReport:
    # Also one that is not configured any more: what belongs to it is read elsewhere, and needs its copies the more.
    source = _of_kind(store, store.pool_name(primary), PoolKind.PRIMARY)
    destination = _of_kind(store, store.configured_pool(pool).name, kind)
    if store.read_only and not preview:
        raise InterfaceError(f"{store.config.path}: the store is open read-only")
    run = _Run(store, source, destination, kind, on_progress or _silent)
    if preview:
        return run.preview()
    with store.reconciling(destination):
        store.revive(destination)
        return run.work()


def _of_kind(store: Store, name: str, kind: PoolKind) -> str:
    pools = store.catalog.pools()
    (found,) = (pool.kind for pool in pools if pool.name == name)
    if found is not kind:
        there = ", ".join(pool.name for pool in pools if pool.kind is kind) or "none"
        raise PoolError(
            name,
            f"is a pool of type {found.value}; one of type {kind.value} is needed here: {there}",
        )
    return name


def _halves(tasks: Sequence[_Task]) -> tuple[Sequence[_Task], Sequence[_Task]]:
    """Of at least two."""
    middle = len(tasks) // 2
    return tasks[:middle], tasks[middle:]


def _silent(done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What a pool lacks of one aggregate, who may have it, and what of it cannot be had."""

    entry: AggregateEntry
    copies: tuple[CopyEntry, ...]
    end: int  # of the data of all that was not deleted
    missing: tuple[MemberEntry, ...]
    bad: tuple[BadMember, ...] = ()

    def without(self, bad: Sequence[BadMember]) -> _Task:
        """The task with these members left out."""
        gone = {found.member.member for found in bad}
        left = tuple(member for member in self.missing if member.member not in gone)
        return replace(self, missing=left, bad=(*self.bad, *bad))

    @property
    def bytes(self) -> int:
        return sum(member.length for member in self.missing)


@dataclass(slots=True)
class _Run:
    """One run. Single use."""

    store: Store
    primary: str
    pool: str
    kind: PoolKind
    on_progress: Progress
    began: float = field(default_factory=time.monotonic)
    copied_objects: int = 0
    copied_bytes: int = 0
    done: int = 0  # bytes handled, for the progress
    total: int = 0
    closed: int = 0
    too_large: float = math.inf  # bytes of the smallest member that there was no room for
    no_room: DestinationFull | None = None  # that said so
    ahead: ReadAhead = field(default_factory=ReadAhead)
    failed: list[tuple[bytes, str]] = field(default_factory=list)
    bad: dict[bytes, str] = field(default_factory=dict)  # why no copy can give all of an aggregate
    refused: list[tuple[_Task, DestinationFailed | TimeoutError]] = field(default_factory=list)

    # ---- what is missing ---------------------------------------------------------------------------

    def _tasks(self) -> Iterator[_Task]:
        """Aggregates that the pool lacks something of, in the order of their commits."""
        catalog = self.store.catalog
        lacking = catalog.lacking(
            self.primary, self.pool, active_only=self._active, nodes=self._nodes
        )
        for entry, contents in catalog.contents_of(lacking):
            missing = self._missing(contents)
            if missing:
                end = max(m.start + m.length for m in contents.members)
                yield _Task(entry, contents.copies, end, missing)

    @property
    def _active(self) -> bool:
        return self.kind is PoolKind.ACTIVE_DATA

    def _missing(self, contents: Contents) -> tuple[MemberEntry, ...]:
        held = contents.copy_in(self.pool)
        return tuple(
            member
            for member in contents.members
            if not (self._active and not member.active)
            and not (held is not None and held.holds(member.member))
        )

    @property
    def _nodes(self) -> list[str] | None:
        """Nodes whose domain allows the active-data pool (rule R19); None: it is another pool."""
        config = self.store.config
        if not self._active:
            return None
        return [
            node.name
            for node in config.nodes.values()
            if self.pool in config.domains[node.domain].active_destinations
        ]

    # ---- preview -------------------------------------------------------------------------------------

    def preview(self) -> ReconcileReport:
        """What a run would copy, if everything can be read and written."""
        for task in self._tasks():
            self.copied_objects += len(task.missing)
            self.copied_bytes += task.bytes
        return self._report(self.copied_objects)

    def _report(self, lacked: int) -> ReconcileReport:
        there, _ = self.store.catalog.held_on(
            self.primary, active_only=self._active, nodes=self._nodes
        )
        return ReconcileReport(
            copied_objects=self.copied_objects,
            copied_bytes=self.copied_bytes,
            skipped_objects=max(0, there - lacked),
            failed=tuple(self.failed),
            gaps_closed=self.closed,
            gaps_left=len(self.store.catalog.gaps(pool=self.pool, primary=self.primary)),
            seconds=time.monotonic() - self.began,
        )

    # ---- the run -------------------------------------------------------------------------------------

    def work(self) -> ReconcileReport:
        """Copy batch after batch."""
        if self.on_progress is not _silent:
            self.total = sum(task.bytes for task in self._tasks())
        lacked = refused = 0
        for batch in self._batches():
            lacked += sum(len(task.missing) for task in batch)
            if refused < MAX_FAILURES:
                refused = 0 if self._try(batch) else refused + 1
            else:
                why = f"not tried: {self.pool} failed {refused} times"
                self._do_without(batch, DestinationFailed(why))
            self._give_up()
        self._close_stale_gaps()
        return self._report(lacked)

    def _batches(self) -> Iterator[list[_Task]]:
        batch: list[_Task] = []
        size = 0
        for task in self._tasks():
            if batch and (len(batch) == BATCH_AGGREGATES or size + task.bytes > BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(task)
            size += task.bytes
        if batch:
            yield batch

    def _try(self, tasks: Sequence[_Task]) -> bool:
        """One batch; False: the destination refused it."""
        batch = Batch(self.store, self.pool, on_bytes=self._advance)
        before = self.done
        try:
            for task in tasks:
                self._copy(batch, task)
            copied = batch.finish()
        except SourcesBad as signal:
            batch.abort()
            self.done = before
            return self._try_without(tasks, signal)
        except DestinationFull as error:
            batch.abort()
            self.done = before
            self._try_what_fits(tasks, error)
            return True
        except (DestinationFailed, TimeoutError) as error:
            batch.abort()
            self.done = before
            self._do_without(tasks, error)
            return False
        except BaseException:
            batch.abort()
            raise
        # From here on the batch is not aborted: whether its regions are free is for the commit to say.
        self._commit(copied, tasks)
        return True

    def _try_what_fits(self, tasks: Sequence[_Task], error: DestinationFull) -> None:
        """Write what there is no room for in halves, down to single members, but nothing as large as a member that was refused by itself.

        Ends: each half has fewer aggregates, or fewer members.
        """
        least = min((m.length for task in tasks for m in task.missing), default=math.inf)
        if len(tasks) == 1 and len(tasks[0].missing) == 1 and least < self.too_large:
            self.too_large, self.no_room = least, error
        if least >= self.too_large:
            self._do_without(tasks, self.no_room or error)
            return
        for half in self._parts(tasks):
            if sum(task.bytes for task in half) < self.too_large:
                self._try(half)
            else:
                self._try_what_fits(half, error)

    def _parts(self, tasks: Sequence[_Task]) -> Iterator[Sequence[_Task]]:
        """Two halves of some aggregates, or of the members of one: of these the second as it is once the first is in the pool."""
        if len(tasks) > 1:
            yield from _halves(tasks)
            return
        (task,) = tasks
        middle = len(task.missing) // 2
        yield [replace(task, missing=task.missing[:middle])]
        copies = tuple(self.store.catalog.copies(task.entry.aggregate))
        yield [replace(task, copies=copies, missing=task.missing[middle:], bad=())]

    def _do_without(self, tasks: Sequence[_Task], error: DestinationFailed | TimeoutError) -> None:
        self.done += sum(task.bytes for task in tasks)
        self.refused += [(task, error) for task in tasks]

    def _try_without(self, tasks: Sequence[_Task], signal: SourcesBad) -> bool:
        """Write a batch again that met bad sources: in halves, and an aggregate by itself without what is bad.

        Ends: each round has fewer aggregates, or fewer members.
        """
        if len(tasks) == 1:
            return self._try([tasks[0].without(signal.bad)])
        tried = [self._try(half) for half in _halves(tasks)]  # both, also when one is refused
        return all(tried)

    def _copy(self, batch: Batch, task: _Task) -> None:
        numbers = [p.span for copy in task.copies if copy.pool == self.pool for p in copy.places]
        sources = [copy for copy in task.copies if copy.pool != self.pool]
        wanted: dict[tuple[str, ...], list[MemberEntry]] = {}
        for member in task.missing:
            # Copies hold different subsets; members that the same copies hold are read together.
            pools = tuple(copy.pool for copy in sources if copy.holds(member.member))
            wanted.setdefault(pools, []).append(member)
        first = max(numbers, default=-1) + 1
        for pools, members in wanted.items():
            mine = [copy for copy in sources if copy.pool in pools]
            reader = self.store.reader(task.entry.aggregate, mine, ahead=self.ahead)
            copied = batch.copy(task.entry, members, reader, first_span=first, end=task.end)
            first += len(copied.spans)

    def _advance(self, size: int) -> None:
        self.done += size
        self.on_progress(min(self.done, self.total), self.total)

    # ---- committing ------------------------------------------------------------------------------------

    def _commit(self, copied: Sequence[Copied], tasks: Sequence[_Task]) -> None:
        """Copies and gaps of a batch, in one commit. The spans are durable."""
        with self.store.ledger.steady:
            self._commit_steadily(copied, tasks)

    def _commit_steadily(self, copied: Sequence[Copied], tasks: Sequence[_Task]) -> None:
        repairs: list[Repair] = []
        spans: list[WrittenSpan] = []
        count = size = closed = 0
        bad: list[BadMember] = []
        now = self.store.catalog.contents(task.entry.aggregate for task in tasks)
        for task in tasks:
            mine = [part for part in copied if part.entry is task.entry]
            contents = now[task.entry.aggregate]
            there = {member.member for member in contents.members}
            bad += [found for found in task.bad if found.member.member in there]
            if task.bad:
                self.bad[task.entry.aggregate] = task.bad[0].reason
            repair, present = self._repair(task, contents, mine)
            repairs.append(repair)
            spans += [span for part in mine for span in part.spans] if repair.copy else []
            count += len(present)
            size += sum(m.length for m in task.missing if m.member in present)
            closed += self.pool in contents.gaps and repair.gap is None
        self._hand_in(repairs, spans, copied)
        self.copied_objects += count
        self.copied_bytes += size
        self.closed += closed
        self.failed += [(found.member.name, found.reason) for found in bad]

    def _repair(
        self, task: _Task, contents: Contents, parts: Sequence[Copied]
    ) -> tuple[Repair, set[int]]:
        """What changes on one aggregate, and which members are new in the pool (promise 3)."""
        entry, members = task.entry, contents.members
        wanted = {m.member for m in members if m.active or not self._active}
        written = {index for part in parts for index in part.members}
        held = contents.copy_in(self.pool)
        before = {m.member for m in members if held and held.holds(m.member)}
        new = (written & wanted) - before
        lacking = wanted - before - new
        copy = None
        if new:
            places = tuple(
                self.store.ledger.place_of(span, self.pool) for part in parts for span in part.spans
            )
            # Of what it has; members that were deleted since are among that. Those that were deleted before are not in the new spans:
            # then a rebuild has nothing but this set to tell who is who.
            there = held.present if held and held.present is not None else MemberSet()
            complete = len(before) + len(new) == entry.objects
            present = None if complete else there | MemberSet.of(new)
            copy = NewCopy(self.pool, places, present)
        gap = None
        if lacking:
            # Perhaps of another half of it.
            why = self.bad.get(entry.aggregate, "copied while it was replaced")
            missing = None if len(lacking) == entry.objects else MemberSet.of(lacking)
            gap = NewGap(self.pool, f"not repaired: {why}", 0, missing)
        return Repair(entry.aggregate, self.pool, copy, gap), new

    def _hand_in(
        self, repairs: Sequence[Repair], spans: Sequence[WrittenSpan], copied: Sequence[Copied]
    ) -> None:
        commit = Commit(secrets.token_bytes(16), 1, repairs=tuple(repairs))
        kept = {id(span) for span in spans}
        unwanted = [s for part in copied for s in part.spans if id(s) not in kept]
        try:
            self.store.ledger.commit_repairs(commit, spans, self.pool)
        except CommitUnknown:
            raise  # neither live nor free until the next opening
        except CatalogError:
            for span in [*spans, *unwanted]:
                self.store.release(span.span, [self.pool])
            raise
        for span in unwanted:
            self.store.release(span.span, [self.pool])

    # ---- gaps ------------------------------------------------------------------------------------------

    def _give_up(self) -> None:
        """What the pool refused of a batch: say so by name, and in the gap rows (promise 2)."""
        if self.refused:
            with self.store.ledger.steady:
                self._hand_in(list(self._refusals()), (), ())
            self.refused = []

    def _refusals(self) -> Iterator[Repair]:
        """Gap rows that name all that the pool lacks now."""
        refused: dict[bytes, list[tuple[_Task, DestinationFailed | TimeoutError]]] = {}
        for task, error in self.refused:
            refused.setdefault(task.entry.aggregate, []).append((task, error))
        for aggregate, contents in self.store.catalog.contents(refused).items():
            there = {member.member for member in contents.members}
            for task, error in refused[aggregate]:
                lacking = [*task.missing, *(found.member for found in task.bad)]
                self.failed += [(m.name, str(error)) for m in lacking if m.member in there]
            left = MemberSet.of(member.member for member in self._missing(contents))
            if left.runs:  # else deleted meanwhile
                missing = None if len(left) == task.entry.objects else left
                errno = error.errno if isinstance(error, DestinationFailed) else 0
                gap = NewGap(self.pool, f"not repaired: {error}", errno, missing)
                yield Repair(aggregate, self.pool, None, gap)

    def _close_stale_gaps(self) -> None:
        """Gap rows of which nothing is missing any more: copied by other means, or replaced by newer versions.

        What the rules demanded when it was stored, and its domain does not allow any more, is missing all the same (promise 2).
        """
        nodes, stale, catalog = self._nodes, list[Repair](), self.store.catalog
        with self.store.ledger.steady:
            for entry, contents in catalog.contents_of(catalog.with_gap(self.primary, self.pool)):
                missing = self._missing(contents)
                if not missing:
                    stale.append(Repair(entry.aggregate, self.pool))
                elif nodes is not None and entry.node not in nodes:
                    why = f"{self.pool}: no domain allows it to {entry.node}"
                    self.failed += [(member.name, why) for member in missing]
            if stale:
                self._hand_in(stale, (), ())
                self.closed += len(stale)
