"""Appends directory records: what was committed is written on the volumes that hold it, behind everybody's back.

The catalog is the truth; the directories are the evidence from which it can be rebuilt. So a record that is late, or lost
in a crash, harms nothing while the catalog lives: the next opening compares, and appends again (`catch_up`).

What it promises:

1. Records reach a directory in the order of their commits, all volumes side by side in one run of requests.
2. It never holds up a commit: what waits is bounded, and a volume that falls further behind is failed, to be reopened. Commits
   that follow one another within moments share blocks, and one write to each volume.
3. A volume whose directory cannot be written is failed, not the store, and not the commit that was acknowledged.
4. After `close` every directory that could be written is durable.
5. A volume is said to have taken a delete only when a flush has made its record durable.
6. A volume names the deleted members of an aggregate that lives on until every other one that holds some of it does, durably.
7. After an opening every volume that has room names all volumes that were given up: a rebuild leaves aside what comes back.
8. An interrupt of a caller neither fails a volume nor loses a record that is on its way.

With `flush_before_acknowledge` the committer waits here instead, and what a crash can leave in doubt is nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from fanout.engine import Request
from fanout.errors import CatalogStale, FanoutError, InterfaceError, VolumeFull, VolumeTorn
from fanout.format import DirectoryRecord, Op, StoredSpan
from fanout.types import Phase
from fanout.undisturbed import undisturbed
from fanout.volume import VolumeState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fanout.catalog import (
        CatalogReader,
        DeadAggregate,
        HeldSpans,
        MemberSet,
        Place,
        RetiredVolume,
        SpentCopy,
    )
    from fanout.directory import Directory
    from fanout.engine import Engine
    from fanout.volume import Volume

MAX_WAITING = 65_536  # records; about 40 MiB
BATCH = 1024  # records in one run of requests
GATHER = 0.02  # seconds that records wait for others: one alone takes a whole block
CATCH_UP_BATCH = 512
BEHIND = "directories could not be written; volumes that lack records get them when they are opened again"
FORGOTTEN = (
    "its directory is damaged, and names {} aggregates that the catalog does not know, {} among them: it has lost what it knew of their "
    "deletion, or the catalog is of another line; with the right catalog give the volume up ('fanout retire volume --force') and fill the pool again"
)

_log = logging.getLogger("fanout.scribe")


class Entry(NamedTuple):
    """A record, and the volume whose directory it belongs to."""

    volume: bytes
    record: DirectoryRecord


class Scribe:
    """The thread that writes directories.

    Args:
        engine: that does the I/O.
        volumes: gives the open volume of an id, or None.
        idle: called on the scribe's thread after records were written, by whomever.
        patience: seconds that `close` waits for `idle`.
    """

    def __init__(
        self,
        engine: Engine,
        volumes: Callable[[bytes], Volume | None],
        *,
        idle: Callable[[], None],
        patience: float,
    ) -> None:
        self._engine, self._volumes, self._idle = engine, volumes, idle
        self._patience, self._idling = patience, False
        self._waiting: deque[Entry] = deque()
        # Volumes with records that no flush has covered, in the order in which they got them: a set of ids has another in each process.
        self._touched: dict[bytes, None] = {}
        self._wake = threading.Condition()
        self._writing = threading.Lock()  # one thread at a time at the directories
        self._closed = self._written = False
        self._thread = threading.Thread(target=self._run, name="fanout-scribe", daemon=True)
        self._thread.start()

    def append(self, entries: Iterable[Entry]) -> None:
        """Take records over, in the order of their commits; does not wait."""
        with self._wake:
            before = len(self._waiting)
            for entry in entries:
                if len(self._waiting) < MAX_WAITING:
                    self._waiting.append(entry)
                else:
                    self._fail(entry.volume, "its directory is too far behind; it will be reopened")
            if before == 0 or len(self._waiting) >= BATCH:
                self._wake.notify()

    def append_and_flush(self, entries: Sequence[Entry]) -> None:
        """Write records now, and make them durable. A volume that cannot do it is failed; nothing is raised for it."""
        with self._writing:
            self._write(entries)
            self._flush()
        with self._wake:
            self._written = True
            self._wake.notify()

    def write_out(self) -> None:
        """Write what waits: from then on the directories know what room it takes."""
        undisturbed(self._write_out)

    def _write_out(self) -> None:
        with self._writing:
            self._write(self._take(MAX_WAITING))

    def catch_up(self, volume: Volume, catalog: CatalogReader) -> int:
        """Append to a volume that has just been opened what a crash, a failure, or rot had lost; then flush it.

        Returns:
            How many records were missing.

        Raises:
            CatalogStale: its directory knows something that the catalog does not.
            VolumeTorn: likewise, and that may come from damage to the directory.
            VolumeError: it cannot be written.
        """
        # Also while it is compared: what is appended meanwhile would be strange to the catalog.
        with self._writing:
            return self._catch_up(volume, catalog)

    def _catch_up(self, volume: Volume, catalog: CatalogReader) -> int:
        directory = volume.directory
        assert directory is not None
        held = catalog.held_csns(volume.uuid)
        known = directory.held_csns()
        # Also those that have no region here any more: what said so may be lost.
        dead = {entry.aggregate: entry for entry in catalog.dead()}
        strange = [
            aggregate for aggregate in known if aggregate not in held and aggregate not in dead
        ]
        buried = buried_of(directory, strange, catalog) if strange and directory.torn else {}
        strange = [aggregate for aggregate in strange if aggregate not in buried]
        if strange and directory.torn and max(known[one] for one in strange) <= catalog.last_csn():
            # The catalog has been there. What a lost block said of a deletion nobody can append again; the other volumes need not go without.
            raise VolumeTorn(volume.path, FORGOTTEN.format(len(strange), strange[0].hex()))
        if strange:
            raise CatalogStale(
                catalog.path,
                f"does not know {len(strange)} aggregates that {volume.path} holds, "
                f"{strange[0].hex()} among them: it was restored from the past, or is of another "
                "line; use the newest catalog, or rebuild it from the volumes",
            )
        missing = [a for a, csn in held.items() if known.get(a, 0) < csn]
        missing.sort(key=lambda aggregate: held[aggregate])
        retired = catalog.retired()
        deletes = directory.deletes()
        if deletes:  # most directories hold none
            wanted = dead.keys() | {entry.volume for entry in retired}
            directory.forget_deletes(a for a in deletes if a not in wanted)
        gone = [delete_of(entry) for aggregate, entry in dead.items() if aggregate in known]
        gone += buried.values()
        holed, anew = directory.holed, False
        if holed:
            # What the hole may have had of deletes goes with the checkpoint that ends it: nothing would tell them later.
            asked = sum(map(directory.growth, _records_of(volume, catalog, missing)))
            asked += sum(map(directory.growth, gone))
            lost = [entry for aggregate, entry in dead.items() if aggregate not in known]
            gone += _untold(volume, retired, lost=lost, asked=asked)
            anew = self._write_anew(volume, gone)
        for start in range(0, len(missing), CATCH_UP_BATCH):
            batch = missing[start : start + CATCH_UP_BATCH]
            self._append(volume, list(_records_of(volume, catalog, batch)))
        if not anew:
            self._append(volume, gone)
        if not holed:
            untold = _untold(volume, retired)  # into the room that all else has left
            self._append(volume, untold)
            gone += untold
        if (missing or gone or anew) and volume.state is VolumeState.AVAILABLE:
            volume.flush()
        if volume.state is VolumeState.AVAILABLE and volume.overwrite_refused():
            volume.flush()
        return len(missing) + len(gone)

    def _write_anew(self, volume: Volume, records: Sequence[DirectoryRecord]) -> bool:
        """A checkpoint, where damaged blocks lie among those that count; False: there is no room for it now, and the next opening tries again."""
        try:
            requests = volume.prepare(records, anew=True)
        except (VolumeFull, MemoryError) as error:
            _log.warning("%s: its directory keeps damaged blocks: %s", volume.path, error)
            return False
        return volume.written(self._engine.run(requests))

    def _append(self, volume: Volume, records: Sequence[DirectoryRecord]) -> None:
        for start in range(0, len(records), CATCH_UP_BATCH):
            requests = volume.prepare(records[start : start + CATCH_UP_BATCH])
            volume.written(self._engine.run(requests))

    def take_deletes(
        self, volumes: Iterable[Volume], catalog: CatalogReader
    ) -> dict[bytes, tuple[Volume, list[bytes]]]:
        """Write and flush what waits; then say which volumes have taken which deletes for good (promise 5).

        Returns:
            By volume: the volume, and the aggregates that the catalog wants it to forget and that its directory does not hold.
        """
        return undisturbed(lambda: self._take_deletes(volumes, catalog))

    def _take_deletes(
        self, volumes: Iterable[Volume], catalog: CatalogReader
    ) -> dict[bytes, tuple[Volume, list[bytes]]]:
        written: dict[bytes, tuple[Volume, list[bytes]]] = {}
        with self._writing:
            self._write(self._take(MAX_WAITING))
            for volume in volumes if catalog.dead() else ():  # mostly nothing was deleted
                if volume.state is not VolumeState.AVAILABLE or volume.directory is None:
                    continue
                dead = [entry.aggregate for entry in catalog.dead(volume.uuid)]
                mine = [aggregate for aggregate in dead if not volume.directory.names(aggregate)]
                if mine:
                    written[volume.uuid] = volume, mine
            self._touched |= dict.fromkeys(written)
            durable = self._flush()
        return {uuid: entry for uuid, entry in written.items() if entry[0] in durable}

    def move_out(
        self, copies: Iterable[SpentCopy], catalog: CatalogReader
    ) -> dict[bytes, tuple[Volume, list[bytes]]]:
        """Write that spent copies have left their volumes, and flush it, where all know what was deleted (promise 6).

        Returns:
            By volume: the volume, and the aggregates of which its directory names no span any more, for good.
        """
        return undisturbed(lambda: self._move_out(copies, catalog))

    def _move_out(
        self, copies: Iterable[SpentCopy], catalog: CatalogReader
    ) -> dict[bytes, tuple[Volume, list[bytes]]]:
        left: dict[bytes, tuple[Volume, list[bytes]]] = {}
        with self._writing:
            self._write(self._take(MAX_WAITING))
            self._flush()
            entries = [entry for copy in copies for entry in self._moves(copy, catalog)]
            self._write(entries)
            durable = {volume.uuid: volume for volume in self._flush()}
        for identity, record in entries:
            if identity in durable:
                left.setdefault(identity, (durable[identity], []))[1].append(record.aggregate)
        return left

    def _moves(self, spent: SpentCopy, catalog: CatalogReader) -> list[Entry]:
        """What the directories say when a copy leaves; nothing while a volume that holds some of the aggregate does not know why."""
        moves: list[Entry] = []
        copies = catalog.copies(spent.aggregate)
        for identity, pool in {p.volume: c.pool for c in copies for p in c.places}.items():
            volume = self._volumes(identity)
            if volume is None or volume.state is not VolumeState.AVAILABLE or not volume.directory:
                return []
            said = volume.directory.records.get(spent.aggregate)
            for held in catalog.held_spans(identity, [spent.aggregate]):
                wanted = record_of(held)
                if said is None or said.csn < wanted.csn or said.deleted != wanted.deleted:
                    return []
                if pool == spent.pool:
                    moves.append(Entry(identity, replace(wanted, op=Op.MOVE, spans=(), objects=0)))
        return moves

    def forget_deletes(self, volumes: Iterable[Volume], aggregates: Sequence[bytes]) -> None:
        """No directory names these aggregates any more: checkpoints may drop their deletes."""
        with self._writing:
            for volume in volumes:
                if volume.directory is not None:
                    volume.directory.forget_deletes(aggregates)

    def close(self) -> None:
        """End the thread, then write and flush what waits; idempotent. If it hangs in `idle` it stays behind."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        while self._thread.is_alive():
            self._thread.join(self._patience)
            if self._idling:
                break
        try:
            with self._writing:
                self._write(self._take(MAX_WAITING))
                self._flush()
        except Exception:
            _log.exception(BEHIND)

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed and not self._written:
                    self._wake.wait()
                if 0 < len(self._waiting) < BATCH and not self._closed:
                    self._wake.wait(GATHER)
                if self._closed:
                    return
                self._written = False
            try:
                self._work()
            except Exception:
                _log.exception(BEHIND)

    def _take(self, most: int) -> list[Entry]:
        """What waits, in its order. The caller holds the directories: who takes a later record must not write it earlier."""
        with self._wake:
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def _work(self) -> None:
        with self._writing:
            self._write(self._take(BATCH))
        self._idling = True
        try:
            self._idle()
        finally:
            self._idling = False

    def _write(self, entries: Sequence[Entry]) -> None:
        """Promise 3, whatever it is: a volume that was written again would have a hole in its evidence."""
        try:
            self._write_together(entries)
        except BaseException:
            for identity in dict.fromkeys(entry.volume for entry in entries):
                self._fail(identity, "its directory was not written; it will be reopened")
            raise

    def _write_together(self, entries: Sequence[Entry]) -> None:
        """Promise 1: one run of requests for all volumes."""
        by_volume: dict[bytes, list[DirectoryRecord]] = {}
        for entry in entries:
            by_volume.setdefault(entry.volume, []).append(entry.record)
        requests: list[Request] = []
        parts: list[tuple[Volume, int]] = []
        for identity, records in by_volume.items():
            volume = self._volumes(identity)
            made = self._prepare(volume, records) if volume is not None else []
            if volume is not None and made:
                requests += made
                parts.append((volume, len(made)))
        outcomes = self._engine.run(requests) if requests else []
        for volume, count in parts:
            mine, outcomes = outcomes[:count], outcomes[count:]
            with suppress(InterfaceError):  # failed meanwhile, by somebody else
                if volume.written(mine):
                    self._touched[volume.uuid] = None
                else:
                    _log.warning("%s: directory not written: %s", volume.path, volume.reason)

    def _prepare(self, volume: Volume, records: Sequence[DirectoryRecord]) -> list[Request]:
        try:
            return volume.prepare(records)
        except (FanoutError, MemoryError) as error:
            # Full, failed, or not available (again): its directory is behind, the catalog is not, and who opens it again compares them.
            # A checkpoint takes as much memory as a directory has bytes: one that there is no memory for does not take the others along.
            if isinstance(error, VolumeFull | MemoryError):
                volume.fail(str(error) or "there was no memory to write its directory")
            _log.warning("%s: directory not written: %s", volume.path, error)
            return []

    def _flush(self) -> list[Volume]:
        """Flush every volume that records were appended to, side by side; returns those of which all records are durable."""
        found = [self._volumes(identity) for identity in self._touched]
        volumes = [v for v in found if v is not None and v.state is VolumeState.AVAILABLE]
        self._touched.clear()
        if not volumes:
            return []
        outcomes = self._engine.run([Request(Phase.FLUSH, volume.target) for volume in volumes])
        good = []
        for volume, outcome in zip(volumes, outcomes, strict=True):
            if outcome.ok:
                volume.flushed()
                good += [volume] if volume.state is VolumeState.AVAILABLE else []
            else:
                volume.fail(f"flush: {outcome}")
                _log.warning("%s: directory not flushed: %s", volume.path, outcome)
        return good

    def _fail(self, identity: bytes, reason: str) -> None:
        with suppress(FanoutError):
            volume = self._volumes(identity)
            if volume is not None and volume.state is VolumeState.AVAILABLE:
                volume.fail(reason)


def record_of(held: HeldSpans) -> DirectoryRecord:
    """What a directory should say of what the catalog knows."""
    return DirectoryRecord(
        csn=held.csn,
        op=Op.COMMIT,
        aggregate=held.aggregate,
        transaction=held.transaction,
        attempt=held.attempt,
        spans=tuple(stored_span(place) for place in held.places),
        present=ranges_of(held.present),
        node=held.node,
        kind=held.kind,
        time_ns=held.at,
        deleted=ranges_of(held.erased) or (),
        committed=held.committed,
        version=held.version,
        objects=held.objects,
    )


def delete_of(entry: DeadAggregate) -> DirectoryRecord:
    """What a directory should say of an aggregate of which nothing is left."""
    return DirectoryRecord(
        csn=entry.csn,
        op=Op.DELETE,
        aggregate=entry.aggregate,
        transaction=entry.transaction,
        attempt=entry.attempt,
        node=entry.node,
        kind=entry.kind,
        time_ns=entry.at,
    )


def buried_of(
    directory: Directory, strange: Iterable[bytes], catalog: CatalogReader
) -> dict[bytes, DirectoryRecord]:
    """The deletes that a damaged directory has lost, of aggregates that the catalog has long forgotten: it knows what they came with, so it is of this line."""
    found = {}
    for aggregate in strange:
        record = directory.records[aggregate]
        came = catalog.committed(record.transaction)
        if came and came.attempt == record.attempt and catalog.aggregate(aggregate) is None:
            found[aggregate] = DirectoryRecord(
                csn=record.csn,
                op=Op.DELETE,
                aggregate=aggregate,
                transaction=record.transaction,
                attempt=record.attempt,
                node=record.node,
                kind=record.kind,
                time_ns=record.time_ns,
            )
    return found


def retirement_of(entry: RetiredVolume) -> DirectoryRecord:
    """What a directory should say of a volume that was given up."""
    return DirectoryRecord.retirement(
        entry.volume, csn=entry.csn, epoch=entry.epoch, time_ns=entry.at
    )


def _records_of(
    volume: Volume, catalog: CatalogReader, aggregates: Sequence[bytes]
) -> Iterator[DirectoryRecord]:
    """What the directory of a volume should say of some aggregates."""
    for start in range(0, len(aggregates), CATCH_UP_BATCH):
        batch = aggregates[start : start + CATCH_UP_BATCH]
        yield from map(record_of, catalog.held_spans(volume.uuid, batch))


def _untold(
    volume: Volume,
    retired: Iterable[RetiredVolume],
    *,
    lost: Iterable[DeadAggregate] = (),
    asked: int = 0,
) -> list[DirectoryRecord]:
    """The retirements that a directory does not name, and deletes that it may have lost, as many as it has room for: others name them, too.

    `asked` bytes of the room are for other records.
    """
    directory = volume.directory
    assert directory is not None
    told = {record.aggregate: record.csn for record in directory.retirements()}
    untold = [retirement_of(v) for v in retired if told.get(v.volume, 0) < v.csn]
    named = set(directory.deletes())
    untold += [delete_of(entry) for entry in lost if entry.aggregate not in named]
    room = directory.spare_bytes - asked
    for count, record in enumerate(untold):
        room -= directory.growth(record)
        if room < 0:
            _log.warning(
                "%s: its directory has no room to name %d volumes that were given up, or aggregates that were deleted",
                volume.path,
                len(untold) - count,
            )
            return untold[:count]
    return untold


def stored_span(place: Place) -> StoredSpan:
    """A span of the catalog's, as directory records hold it."""
    return StoredSpan(place.span, *place[2:])


def ranges_of(members: MemberSet | None) -> tuple[range, ...] | None:
    """A set of members as directory records hold it."""
    if members is None:
        return None
    return tuple(range(first, first + count) for first, count in members.runs)
