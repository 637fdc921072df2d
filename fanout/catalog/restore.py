"""Writes a whole catalog at once, from what a rebuild has found on the volumes.

What it promises:

1. The catalog appears whole or not at all, under a name that nothing else has.
2. A catalog that stands there is kept, log and all, under a new name beside it; only on request, and never beside its writer.
3. Commit sequence numbers are those of the volumes; versions are numbered in the order of commits, as they were.

It is filled under another name, before anybody can see it.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.catalog.asking import ACTIVE, IN_SET
from fanout.catalog.connection import SIDES, connect_writer, translated
from fanout.catalog.drafts import draft_of, insert_pools, write_draft
from fanout.catalog.intake import KIND_CODES
from fanout.catalog.locks import sync_directory, take_lock
from fanout.catalog.members import to_json
from fanout.catalog.rows import PoolEntry
from fanout.errors import CatalogError
from fanout.types import PoolKind

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fanout.catalog.members import MemberSet
    from fanout.catalog.rows import NewGap, Place, RetiredVolume, VolumeEntry
    from fanout.types import Member, ObjectKind

MAX_ORDINAL = 1 << 16  # what comes from the media must not use the numbers up


@dataclass(frozen=True, slots=True)
class RestoredCopy:
    """What a pool holds of an aggregate: as `NewCopy`, with the commit that last changed it."""

    pool: str
    csn: int
    places: tuple[Place, ...]
    present: MemberSet | None


@dataclass(frozen=True, slots=True)
class RestoredAggregate:
    """An aggregate as its copies tell of it.

    Attributes:
        aggregate: id.
        primary: name of the pool.
        objects: how many members it had.
        bytes: of its data.
        ordinal: its number in its transaction, if those before it were numbered in order.
        members: those that are known, by number. Others exist no more.
        copies: the pools that have spans of it.
        gaps: pools that should hold it and lack some.
        erased: members that were deleted; they are not among `members`.
        erased_bytes: of these.
        version: of its first member; 0: unknown, the next one.
    """

    aggregate: bytes
    primary: str
    objects: int
    bytes: int
    ordinal: int
    members: Mapping[int, Member]
    copies: tuple[RestoredCopy, ...]
    gaps: tuple[NewGap, ...]
    erased: MemberSet
    erased_bytes: int
    version: int


@dataclass(frozen=True, slots=True)
class RestoredDeletion:
    """An aggregate that was deleted, and that a directory may still name; its transaction is among the others.

    Attributes:
        aggregate: id.
        transaction: id.
        csn: of the commit that deleted it.
        pool: one that held it.
        regions: (volume, offset, length) where a directory says that it lies.
        kept: a volume that took no part may name it.
    """

    aggregate: bytes
    transaction: bytes
    csn: int
    pool: str
    regions: tuple[tuple[bytes, int, int], ...]
    kept: bool


@dataclass(frozen=True, slots=True)
class RestoredTransaction:
    """A transaction that has committed, with its aggregates in their order; none: all of them were deleted."""

    transaction: bytes
    attempt: int
    csn: int
    at: int
    node: str
    kind: ObjectKind
    required: tuple[str, ...]
    aggregates: tuple[RestoredAggregate, ...]


@contextmanager
def writer_lock(path: str | os.PathLike[str], *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a catalog's writer: nobody writes meanwhile, here or in another process.

    Raises:
        CatalogBusy: somebody does.
        CatalogError: there is no catalog.
    """
    lock = take_lock(os.path.abspath(path), wait)
    try:
        yield
    finally:
        lock.close()


def restore(
    path: str | os.PathLike[str],
    *,
    store: bytes,
    created: int,
    csn: Callable[[], int],
    leap: Callable[[], int] = lambda: 0,
    pools: Iterable[PoolEntry],
    volumes: Iterable[VolumeEntry],
    transactions: Iterable[RestoredTransaction],
    deletions: Iterable[RestoredDeletion] = (),
    retired: Iterable[RetiredVolume] = (),
    force: bool = False,
    now: int | None = None,
) -> str | None:
    """Make a catalog that says all this.

    Args:
        path: where it appears.
        store: UUID of the store.
        created: when the store was, in nanoseconds since 1970.
        csn: gives the number of the last commit, once all transactions were taken.
        leap: gives then how many numbers of commits and of versions are left out before the next ones.
        pools: in their order. A primary that is not among them is entered when an aggregate names it.
        volumes: in their order.
        transactions: in the order of their commits; taken one by one.
        deletions: of aggregates that are not among those of the transactions.
        retired: volumes that were given up.
        force: keep a catalog that stands at `path` under another name, and take its place.
        now: nanoseconds since 1970; None: by the clock.

    Returns:
        The new name of the catalog that stood there, if one did.

    Raises:
        CatalogError: there is something at `path` (without `force`), or it cannot be written. Nothing has changed.
        CatalogBusy: somebody has the catalog there open for writing.
    """
    path = os.path.abspath(path)
    try:
        with draft_of(path) as draft:
            write_draft(draft, store, pools, volumes, created)
            with translated(path), closing(connect_writer(draft)) as db:
                db.execute("BEGIN IMMEDIATE")
                writer = _Writer(db, time.time_ns() if now is None else now)
                writer.write(transactions, deletions)
                writer.write_counters(csn(), leap())
                writer.write_retired(retired)
                db.execute("COMMIT")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return _put_in_place(draft, path, force=force)
    except OSError as error:
        raise CatalogError(path, f"cannot be made: {error.strerror}") from error


def _put_in_place(draft: str, path: str, *, force: bool) -> str | None:
    """Give the draft its name; what stands there goes aside first."""
    kept = None
    if os.path.lexists(path):
        if not force:
            raise CatalogError(path, "there is something here already; nothing is overwritten")
        with writer_lock(path):
            kept = _set_aside(path)
    elif os.path.lexists(f"{path}-wal"):
        # The log of a catalog that was lost: SQLite would play it into the new one. An empty one is what readers leave behind.
        if os.path.getsize(f"{path}-wal"):
            kept = _set_aside(path)
        else:
            os.unlink(f"{path}-wal")
    os.link(draft, path)
    sync_directory(path)
    return kept


def _set_aside(path: str) -> str:
    """Rename a database and what belongs to it. The database first: without its log it would be an older one."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    kept, number = f"{path}.replaced-{stamp}", 1
    while any(os.path.lexists(kept + suffix) for suffix in ("", *SIDES)):
        number += 1
        kept = f"{path}.replaced-{stamp}-{number}"
    for suffix in ("", *SIDES):
        with suppress(FileNotFoundError):
            os.rename(path + suffix, kept + suffix)
    sync_directory(path)
    return kept


class _Writer:
    """Fills an empty catalog, inside one transaction of its caller's."""

    def __init__(self, db: sqlite3.Connection, now: int) -> None:
        self._db, self._now = db, now
        self._pools: dict[str, int] = dict(db.execute("SELECT name, id FROM pool"))
        self._volumes = {
            bytes.fromhex(volume): number
            for volume, number in db.execute("SELECT uuid, id FROM volume")
        }
        self._nodes: dict[str, int] = {}
        self._aggregate = self._object = 1

    def write(
        self, transactions: Iterable[RestoredTransaction], deletions: Iterable[RestoredDeletion]
    ) -> None:
        for transaction in transactions:
            self._write_transaction(transaction)
        for deletion in deletions:
            self._write_deletion(deletion)
            self._aggregate += 1
        # Of an active-data pool only what is active now can be missing, and that is known only now.
        held = IN_SET.format(column="gap.missing")
        self._db.execute(
            f"""DELETE FROM gap WHERE pool IN (SELECT id FROM pool WHERE kind = 'active-data') AND NOT EXISTS (
                SELECT 1 FROM aggregate AS g
                JOIN object AS o ON o.id >= g.first_object AND o.id < g.first_object + g.objects
                WHERE g.id = gap.aggregate AND {held} AND {ACTIVE})"""
        )

    def write_counters(self, csn: int, leap: int) -> None:
        self._db.execute(
            "UPDATE store SET csn = ?, next_aggregate = ?, next_object = ?",
            (csn + leap, self._aggregate, self._object + leap),
        )

    def write_retired(self, retired: Iterable[RetiredVolume]) -> None:
        for volume in retired:
            pool = None if volume.pool is None else self._pools.get(volume.pool)
            self._db.execute(
                "INSERT INTO retired VALUES (?, ?, ?, ?, ?, ?, ?)",
                (volume.volume.hex(), *volume[1:4], pool, *volume[5:]),
            )

    def _node(self, name: str) -> int:
        if name not in self._nodes:
            added = self._db.execute("INSERT INTO node (name) VALUES (?) RETURNING id", (name,))
            self._nodes[name] = added.fetchone()[0]
        return self._nodes[name]

    def _primary(self, name: str) -> int:
        if name not in self._pools:
            insert_pools(self._db, [PoolEntry(secrets.token_bytes(16), name, PoolKind.PRIMARY)])
            ((self._pools[name],),) = self._db.execute(
                "SELECT id FROM pool WHERE name = ?", (name,)
            )
        return self._pools[name]

    def _write_transaction(self, entry: RestoredTransaction) -> None:
        node, kind = self._node(entry.node), KIND_CODES[entry.kind]
        self._db.execute(
            """INSERT INTO attempt (tx, attempt, state, csn, origin, node, kind, required, first_aggregate, aggregates, at)
               VALUES (?, ?, 'committed', ?, 'client', ?, ?, ?, ?, ?, ?)""",
            (
                entry.transaction.hex(),
                entry.attempt,
                entry.csn,
                node,
                kind,
                json.dumps(entry.required),
                self._aggregate,
                len(entry.aggregates),
                entry.at,
            ),
        )
        first = self._aggregate
        for aggregate in entry.aggregates:
            self._aggregate = max(self._aggregate, first + min(aggregate.ordinal, MAX_ORDINAL))
            self._object = max(self._object, aggregate.version)
            self._write_aggregate(entry, aggregate, node, kind)
            self._aggregate += 1
            self._object += aggregate.objects

    def _write_aggregate(
        self, entry: RestoredTransaction, aggregate: RestoredAggregate, node: int, kind: int
    ) -> None:
        self._db.execute(
            "INSERT INTO aggregate VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._aggregate,
                aggregate.aggregate.hex(),
                entry.transaction.hex(),
                entry.attempt,
                entry.csn,
                node,
                kind,
                self._primary(aggregate.primary),
                self._object,
                aggregate.objects,
                aggregate.bytes,
                entry.at,
            ),
        )
        self._db.executemany(
            "INSERT INTO object VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (self._object + index, node, kind, m.name, self._aggregate, *m[1:])
                for index, m in aggregate.members.items()
            ),
        )
        if aggregate.erased:
            erased = aggregate.erased
            self._db.execute(
                "INSERT INTO erased VALUES (?, ?, ?, ?)",
                (self._aggregate, to_json(erased), len(erased), aggregate.erased_bytes),
            )
        for copy in aggregate.copies:
            self._write_copy(copy)
        self._db.executemany(
            "INSERT INTO gap VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    self._aggregate,
                    self._pools[gap.pool],
                    to_json(gap.missing),
                    gap.reason,
                    gap.errno,
                    entry.at,
                    self._now,
                )
                for gap in aggregate.gaps
            ),
        )

    def _write_deletion(self, entry: RestoredDeletion) -> None:
        """What is left of the aggregate: a row, and the regions that its volumes' directories keep."""
        self._db.execute(
            """INSERT INTO aggregate
               SELECT ?, ?, tx, attempt, csn, node, kind, ?, ?, 1, 0, at FROM attempt WHERE tx = ?""",
            (
                self._aggregate,
                entry.aggregate.hex(),
                self._pools[entry.pool],
                self._object,
                entry.transaction.hex(),
            ),
        )
        self._db.execute(
            "INSERT INTO deletion VALUES (?, ?, ?)",
            (self._aggregate, entry.csn, int(entry.kept)),
        )
        self._db.executemany(
            "INSERT INTO dead_region VALUES (?, ?, ?, ?)",
            (
                (self._volumes[volume], offset, length, self._aggregate)
                for volume, offset, length in entry.regions
            ),
        )

    def _write_copy(self, copy: RestoredCopy) -> None:
        pool = self._pools[copy.pool]
        self._db.execute(
            "INSERT INTO copy VALUES (?, ?, ?, ?)",
            (self._aggregate, pool, to_json(copy.present), copy.csn),
        )
        self._db.executemany(
            "INSERT INTO placement VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (self._aggregate, pool, place.span, self._volumes[place.volume], *place[2:])
                for place in copy.places
            ),
        )
