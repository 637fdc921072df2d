"""The one door to the catalog: the only writer, on top of everything that a reader can ask.

::

    commit(group) ─┬─ returns CSNs ─────────────────────────────── all of it is there, durably
                   ├─ CatalogError ─────────────────────────────── nothing of it is there, for sure
                   └─ CommitDoubt ── fence(keys) ─┬─ returns ───── each attempt is committed, or never will be
                                                  └─ CatalogError  still unknown: nothing may be reused until the next open

An error from COMMIT proves nothing: with a write-ahead log the frames may be whole in the file though the flush failed, and the
rows come back after a crash. So the door fences: it commits something else on the same log (whatever the failed
commit had left there is overwritten or cut off) in which it takes the attempt's key for itself. If the key is taken already, the
attempt has committed.

A server database can stand behind this class: ids, versions and times come from here, keys are random or the caller's, and
no caller sees SQL, a connection or a row number. `tests/catalog/test_contract.py` says what any implementation must do.

Threads: any thread may ask anything; writers wait for each other.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from fanout.catalog import burial
from fanout.catalog.ballast import SUFFIX as BALLAST
from fanout.catalog.ballast import Ballast
from fanout.catalog.connection import (
    SCHEMA_VERSION,
    SIDES,
    connect,
    connect_writer,
    translated,
    upgrade,
)
from fanout.catalog.drafts import LARGEST, draft_of, insert_pools, insert_volumes, write_draft
from fanout.catalog.intake import Counters, Intake, pack
from fanout.catalog.locks import LOCK, sync_directory, take_lock
from fanout.catalog.members import to_json
from fanout.catalog.reader import CatalogReader
from fanout.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from fanout.catalog.rows import Commit, PoolEntry, Shrunk, VolumeEntry

T = TypeVar("T")

_INSERT_GROUP = f"INSERT INTO intake VALUES ({', '.join('?' * 14)})"

_SET_EPOCHS = """
UPDATE volume SET epoch = json_extract(e.value, '$[1]'), device = json_extract(e.value, '$[2]'),
    inode = json_extract(e.value, '$[3]')
FROM json_each(?) AS e WHERE volume.uuid = json_extract(e.value, '$[0]')"""

FOLD_PATIENCE = 1.0  # seconds that the end of the log waits for a commit: one that hangs must not take the fold along

# Result codes that say for sure that the statement was rolled back before COMMIT began.
_CERTAINLY_NOTHING = frozenset(
    {
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_ERROR,
    }
)


class CommitDoubt(Exception):
    """The commit may or may not have happened: call `Catalog.fence` before anything else.

    Attributes:
        first: the commit sequence number of the group's first, if it has happened. What has a lower one is an earlier commit of the same key.
    """

    def __init__(self, message: str, first: int) -> None:
        self.first = first
        super().__init__(message)


class Catalog(CatalogReader):
    """A catalog that is open for writing. Only one can be, on one machine; see `create` and `open`.

    Attributes:
        last_commit_at: when the last group committed, by the catalog's clock: nanoseconds since 1970.
        last_versions: the first member's version of each aggregate of that group.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, lock_wait: float, clock: Callable[[], int]
    ) -> None:
        # One that stands before 1970 would make rows that are refused when they are read: a store that cannot be opened any more.
        self._clock: Callable[[], int] = lambda: max(0, clock())
        self._write_lock, self._folding = threading.Lock(), threading.Lock()
        self.last_commit_at = 0
        self.last_versions: dict[bytes, int] = {}
        self._writer = take_lock(os.path.abspath(path), lock_wait)
        self._ballast = Ballast(os.path.abspath(path))
        with ExitStack() as undo:
            undo.callback(self._writer.close)
            self._begin_reading(path)
            undo.callback(super().close)
            if self.schema != SCHEMA_VERSION:
                self._reads.close()
                upgrade(self.path)
                super().__init__(path)
            with translated(self.path):
                self._writes, self._suspect = connect_writer(self.path), False
                undo.callback(self._writes.close)
                row = self._writes.execute("SELECT csn, next_aggregate, next_object FROM store")
                self._counters = Counters(*row.fetchone())
            self._ballast.make()
            undo.pop_all()

    def _begin_reading(self, path: str | os.PathLike[str]) -> None:
        try:
            super().__init__(path)
        except CatalogError as error:  # on a full file system not even the log's index can be made
            cause = error.__cause__
            if not isinstance(cause, sqlite3.Error) or not self._ballast.give_up(cause):
                raise
            super().__init__(path)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        store: bytes,
        pools: Iterable[PoolEntry],
        volumes: Iterable[VolumeEntry] = (),
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Make a new catalog, private to its owner. It appears whole or not at all, and never over anything.

        Raises:
            CatalogError: there is something at `path`, or it cannot be written.
        """
        path = os.path.abspath(path)
        try:
            with draft_of(path) as draft:
                write_draft(draft, store, pools, volumes, max(0, clock()))
                os.link(draft, path)  # unlike rename, it fails when there is something
                sync_directory(path)
        except FileExistsError:
            raise CatalogError(
                path, "there is something here already; nothing is overwritten"
            ) from None
        except OSError as error:
            raise CatalogError(path, f"cannot be made: {error.strerror}") from error

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        lock_wait: float = 0.0,
        clock: Callable[[], int] = time.time_ns,
    ) -> Catalog:
        """Open for writing.

        Args:
            path: of the database; must exist.
            lock_wait: seconds to wait for another writer to end.
            clock: nanoseconds since 1970.

        Raises:
            CatalogBusy: another process, or another `Catalog` of this one, has it open for writing.
            CatalogVersion: not a catalog, or of a version that this code does not know.
            CatalogError: missing, a symbolic link, unreadable.
        """
        return cls(path, lock_wait=lock_wait, clock=clock)

    @staticmethod
    def files(path: str | os.PathLike[str]) -> list[str]:
        """Where the files of a catalog lie, those that are there and those that may come: database, what SQLite keeps beside it, lock, ballast."""
        return [f"{os.fspath(path)}{end}" for end in ("", *SIDES, LOCK, BALLAST)]

    @staticmethod
    def discard(path: str | os.PathLike[str]) -> None:
        """Remove a catalog and all that it knows, for good.

        Raises:
            CatalogBusy: somebody has it open for writing.
            CatalogError: it is a symbolic link, or cannot be removed.
        """
        path = os.path.abspath(path)
        lock = take_lock(path, 0.0)
        try:
            for suffix in ("", *SIDES, BALLAST):
                with suppress(FileNotFoundError):
                    Path(path + suffix).unlink()
            sync_directory(path)
        except OSError as error:
            raise CatalogError(path, f"cannot be removed: {error.strerror}") from error
        finally:
            lock.close()

    def close(self) -> None:
        """Close, fold the log into the database if nobody else has it open, and let the next writer in; idempotent.

        Raises:
            CatalogError: a write hangs. Then the catalog stays locked: nobody may write to it before that has ended, at the
                latest with this process.
        """
        if self._writer.fd < 0:
            return  # or in a forked child, which leaves the connections to its parent
        super().close()
        with ExitStack() as held:
            for lock in (self._write_lock, self._folding):
                if not lock.acquire(blocking=False):
                    message = "a write to it hangs: it stays locked until that ends"
                    raise CatalogError(self.path, message)
                held.callback(lock.release)
            try:
                with translated(self.path):
                    self._writes.close()
            finally:
                self._writer.close()

    # ---- commits -------------------------------------------------------------------------------

    def commit(self, group: Sequence[Commit]) -> list[int]:
        """Make a group visible, in one durable transaction.

        Returns:
            The commit sequence number of each, ascending by one.

        Raises:
            CatalogError: nothing of the group is there. A duplicate key, an unknown pool, or a place that is taken is
                the fault of one member; the caller may try them one by one.
            CommitDoubt: nobody knows; `fence` decides.
        """
        self._write_lock.acquire()  # not `with`: leaving it takes memory when there is none
        try:
            return self._commit(pack(group))
        finally:
            self._write_lock.release()

    def _commit(self, intake: Intake) -> list[int]:
        at, first = self._clock(), self._counters.csn + 1
        row = intake.parameters(self._counters, at)
        # Made before: once the statement has succeeded nothing may fail any more, not even for want of memory.
        after = self._counters.after(intake)
        numbers = list(range(first, first + len(intake.attempts)))
        versions = intake.versions(self._counters)
        try:
            # One statement is one transaction: it begins, writes and commits without a return to Python. `executemany`
            # because `execute` gives the GIL away once more, for the number of the last row.
            self._with_room(lambda: self._writes.executemany(_INSERT_GROUP, (row,)))
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code is not None and (code & 0xFF) in _CERTAINLY_NOTHING:
                raise CatalogError(self.path, f"nothing was committed: {error}") from error
            raise CommitDoubt(f"{self.path}: {error}", first) from error
        except MemoryError as error:  # SQLite's own, perhaps in the middle of COMMIT
            raise CommitDoubt(f"{self.path}: out of memory", first) from error
        self._counters, self.last_commit_at = after, at
        self.last_versions = versions
        return numbers

    def _with_room(self, write: Callable[[], T]) -> T:
        """Write; if the file system is full, once more in the space of the ballast.

        A commit that failed may have left its frames in the log. The second one begins at the same place of the log: it
        overwrites them, as a fence does, or fails, and then the doubt is the same.
        """
        try:
            return self._with_memory(write)
        except sqlite3.Error as error:
            if not self._ballast.give_up(error):
                raise
        return self._with_memory(write)

    def _with_memory(self, write: Callable[[], T]) -> T:
        """Write, in a transaction of its own: one that was left open would take in all that is acknowledged from now on, and nobody would see it.

        A failure leaves one, and an interrupt in a caller's own call. Where SQLite was out of memory it may have had none to roll back with
        either, and does not say so: then the connection is not to be trusted, and another one takes its place.
        """
        if self._suspect:
            self._writes.close()
            self._writes = connect_writer(self.path)
            self._suspect = False
        try:
            if self._writes.in_transaction:
                self._writes.execute("ROLLBACK")
            return write()
        except MemoryError:
            self._suspect = True
            raise

    def shortage(self) -> str | None:
        """Why nothing new should be begun: the file system of the catalog is full. None: there is room. Makes the ballast again."""
        return self._ballast.shortage()

    def fence(self, keys: Sequence[tuple[bytes, int]]) -> dict[tuple[bytes, int], int | None]:
        """Settle attempts whose commit ended in doubt.

        Returns:
            For each (transaction, attempt) its commit sequence number, or None: it has not committed and never will.

        Raises:
            CatalogError: the fence could not be committed either; everything is as unknown as before.
        """
        with self._write_lock, translated(self.path):
            self.last_versions = {}
            states, self._counters = self._with_room(lambda: self._fence(keys))
        return states

    def _fence(
        self, keys: Sequence[tuple[bytes, int]]
    ) -> tuple[dict[tuple[bytes, int], int | None], Counters]:
        with self._transaction():
            states = self._take_keys(keys)
            counters = self._writes.execute("SELECT csn, next_aggregate, next_object FROM store")
            return states, Counters(*counters.fetchone())

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction: committed at the end, rolled back when anything of it fails; by the next write where an interrupt strikes it."""
        self._writes.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writes.execute("COMMIT")
        except (sqlite3.Error, MemoryError):  # SQLite's own has no class of its own
            with suppress(sqlite3.Error):
                self._writes.execute("ROLLBACK")
            raise

    def _take_keys(self, keys: Sequence[tuple[bytes, int]]) -> dict[tuple[bytes, int], int | None]:
        listed = json.dumps([[transaction.hex(), attempt] for transaction, attempt in keys])
        self._writes.execute("UPDATE store SET fences = fences + 1")
        self._writes.execute(
            """INSERT INTO attempt (tx, attempt, state, at)
               SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), 'fenced', ?
               FROM json_each(?) WHERE true ON CONFLICT DO NOTHING""",
            (self._clock(), listed),
        )
        rows = self._writes.execute(
            """SELECT a.tx, a.attempt, a.csn FROM json_each(?) AS k JOIN attempt AS a
               ON a.tx = json_extract(k.value, '$[0]') AND a.attempt = json_extract(k.value, '$[1]')""",
            (listed,),
        )
        return {(bytes.fromhex(tx), attempt): csn for tx, attempt, csn in rows}

    # ---- pools and volumes -----------------------------------------------------------------------

    def add(self, *, pools: Iterable[PoolEntry] = (), volumes: Iterable[VolumeEntry] = ()) -> None:
        """Add pools and volumes, durably.

        Raises:
            CatalogError: a name, path or id is taken, or a pool is unknown.
        """
        pools, volumes = tuple(pools), tuple(volumes)
        with self._write_lock, translated(self.path):
            self._with_room(lambda: self._add(pools, volumes))

    def _add(self, pools: Iterable[PoolEntry], volumes: Iterable[VolumeEntry]) -> None:
        with self._transaction():
            insert_pools(self._writes, pools)
            insert_volumes(self._writes, volumes)

    def retire(self, volume: bytes, shrunk: Sequence[Shrunk]) -> int:
        """Forget a volume and all places on it, durably and in one transaction; the copies that it served shrink.

        What is kept is that it was given up: see `retired`.

        Args:
            volume: id.
            shrunk: every copy that has a place there.

        Returns:
            The commit sequence number. It is that of the changed copies, too: directories of other volumes that say more
            are behind, and the next opening appends to them.

        Raises:
            CatalogError: it could not be recorded; open the catalog again to see whether it was.
        """
        with self._write_lock, translated(self.path):
            csn = self._counters.csn + 1
            self._with_room(lambda: self._retire(volume, shrunk, csn))
            self._counters = replace(self._counters, csn=csn)
        return csn

    def _retire(self, volume: bytes, shrunk: Sequence[Shrunk], csn: int) -> None:
        with self._transaction():
            now = self._clock()
            self._writes.execute("UPDATE store SET csn = ?", (csn,))
            for copy in shrunk:
                self._shrink(copy, volume, csn, now)
            self._writes.execute(
                """INSERT OR REPLACE INTO retired (uuid, csn, at, epoch, pool, path, device)
                   SELECT uuid, ?, ?, epoch, pool, path, device FROM volume WHERE uuid = ?""",
                (csn, now, volume.hex()),
            )
            self._writes.execute(
                "DELETE FROM dead_region WHERE volume = (SELECT id FROM volume WHERE uuid = ?)",
                (volume.hex(),),
            )
            self._writes.execute("DELETE FROM volume WHERE uuid = ?", (volume.hex(),))

    def _shrink(self, copy: Shrunk, volume: bytes, csn: int, now: int) -> None:
        aggregate, pool = self._writes.execute(
            "SELECT g.id, p.id FROM aggregate AS g, pool AS p WHERE g.uuid = ? AND p.name = ?",
            (copy.aggregate.hex(), copy.pool),
        ).fetchone()
        # The plus keeps SQLite from looking through all that the volume holds.
        self._writes.execute(
            """DELETE FROM placement WHERE aggregate = ? AND pool = ?
               AND +volume = (SELECT id FROM volume WHERE uuid = ?)""",
            (aggregate, pool, volume.hex()),
        )
        self._writes.execute(
            "UPDATE copy SET present = ?, csn = ? WHERE aggregate = ? AND pool = ?",
            (to_json(copy.present), csn, aggregate, pool),
        )
        # A copy that holds nothing and lies nowhere is none.
        self._writes.execute(
            """DELETE FROM copy WHERE aggregate = ? AND pool = ? AND present = '[]'
               AND NOT EXISTS (SELECT 1 FROM placement AS l WHERE l.aggregate = copy.aggregate AND l.pool = copy.pool)""",
            (aggregate, pool),
        )
        if copy.gap is not None:
            self._writes.execute(
                """INSERT INTO gap (aggregate, pool, missing, reason, errno, since, updated) VALUES (?, ?, ?, ?, ?, ?, ?)
                   ON CONFLICT (aggregate, pool) DO UPDATE SET missing = excluded.missing, reason = excluded.reason,
                       errno = excluded.errno, updated = excluded.updated""",
                (
                    aggregate,
                    pool,
                    to_json(copy.gap.missing),
                    copy.gap.reason,
                    copy.gap.errno,
                    now,
                    now,
                ),
            )

    def bury(
        self,
        taken: Mapping[bytes, Iterable[bytes]],
        left: Mapping[bytes, Iterable[bytes]] = MappingProxyType({}),
    ) -> tuple[dict[bytes, list[int]], list[bytes]]:
        """Forget regions of what was deleted, durably and in one transaction: their volumes' directories say so for good.

        Args:
            taken: by volume the aggregates of which its directory has the delete, flushed.
            left: by volume the aggregates of which it held a spent copy, and of which its directory names no span any more, flushed.

        Returns:
            By volume the offsets that are free from now on; and the aggregates that no directory names any more, so that their
            deletes may be forgotten.

        Raises:
            CatalogError: it could not be recorded, or nobody knows whether it was: nothing may be used again.
        """
        dead, spent = burial.pairs(taken), burial.pairs(left)
        with self._write_lock, translated(self.path):
            return self._with_room(lambda: self._bury(dead, spent))

    def _bury(self, dead: str, spent: str) -> tuple[dict[bytes, list[int]], list[bytes]]:
        # Nothing refers to the rows that go: looking for that, row by row, would read the table of objects each time. Should anything
        # fail before it is looked for again, the connection is done with.
        self._suspect = True
        self._writes.execute("PRAGMA foreign_keys = OFF")
        with self._transaction():
            regions = burial.drop_spent(self._writes, spent)
            regions += burial.drop_dead(self._writes, dead)
            gone = burial.drop_aggregates(self._writes)
        self._writes.execute("PRAGMA foreign_keys = ON")
        self._suspect = False
        freed: dict[bytes, list[int]] = {}
        for volume, offset in regions:
            freed.setdefault(bytes.fromhex(volume), []).append(offset)
        return freed, [bytes.fromhex(uuid) for uuid in gone]

    def set_epochs(self, epochs: Mapping[bytes, tuple[int, int, int]]) -> None:
        """Record, durably and in one transaction, the epoch, device and inode with which volumes were opened.

        Raises:
            CatalogError: it could not be recorded; the volumes must not be used.
        """
        listed = json.dumps(
            [
                [volume.hex(), epoch, device & LARGEST, inode & LARGEST]
                for volume, (epoch, device, inode) in epochs.items()
            ]
        )
        with self._write_lock, translated(self.path):
            self._with_room(lambda: self._writes.execute(_SET_EPOCHS, (listed,)))

    def checkpoint(self, *, enough: int | None = None) -> int:
        """Fold what readers do not need any more from the log into the database; commits need not wait for it.

        SQLite writes the log from its beginning again only when the next commit finds all of it folded. Where commits never pause, one has
        always come meanwhile. So of a log that is longer than `enough` bytes the rest is folded while they wait: some milliseconds.

        Args:
            enough: None: they never wait.

        Returns:
            Pages that stay in the log.

        Raises:
            CatalogError: it failed. Commits go on as long as the log can grow.
        """
        with (
            self._folding,
            translated(self.path),
            closing(connect(self.path, read_only=False)) as db,
        ):
            (size,) = db.execute("PRAGMA page_size").fetchone()
            pages, left = _fold(db)
            long = enough is not None and pages * size > enough
            if long and self._write_lock.acquire(timeout=FOLD_PATIENCE):
                try:
                    _, left = _fold(db)
                finally:
                    self._write_lock.release()
        return left


def _fold(db: sqlite3.Connection) -> tuple[int, int]:
    """Pages that were in the log when it was begun, and how many of them could not be folded."""
    _, pages, folded = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(pages), max(0, int(pages) - int(folded))
