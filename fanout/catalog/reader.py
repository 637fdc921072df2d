"""The catalog's questions: everything that can be asked without changing anything.

A reader works beside a running writer, in this process or another. Every question is one short read transaction whose answer
is fetched before it is handed out, so that no consumer, however slow, keeps the write-ahead log from being folded into the
database. Long listings come in pages. Any thread may ask; questions of one reader wait for each other.

Answers that may be long are packed into one JSON row by the database: the sqlite3 module gives up the GIL at every row, which
beside a busy Python thread costs up to 5 ms each (4,096 members: 20 s row by row, 15 ms packed).
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fanout.catalog import values
from fanout.catalog.ballast import Ballast
from fanout.catalog.connection import (
    SCHEMA_VERSION,
    check_identity,
    connect,
    imitate,
    refuse_links,
    translated,
)
from fanout.catalog.intake import KIND_CODES
from fanout.catalog.members import from_json
from fanout.catalog.rows import (
    AggregateEntry,
    CommittedEntry,
    CopyEntry,
    DeadAggregate,
    GapEntry,
    HeldSpans,
    MemberEntry,
    ObjectEntry,
    OccupancyEntry,
    Place,
    PoolEntry,
    Region,
    RetiredVolume,
    SpaceEntry,
    SpentCopy,
    StoreEntry,
    UsageEntry,
    VolumeEntry,
)
from fanout.errors import CatalogError, CatalogVersion
from fanout.types import PoolKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from fanout.types import ObjectKind

T = TypeVar("T")

PAGE_ROWS = 5_000  # of long listings: about 2 MiB in memory

# Whether object `o` is active: no newer version of its name.
_ACTIVE = """NOT EXISTS (
    SELECT 1 FROM object AS n
    WHERE n.node = o.node AND n.kind = o.kind AND n.name = o.name AND n.id > o.id)"""

_BEYOND = """(
    SELECT count(*) FROM object AS n
    WHERE n.node = o.node AND n.kind = o.kind AND n.name = o.name AND n.id > o.id) >= ?"""

_AGGREGATE = """
SELECT g.uuid, g.tx, g.attempt, g.csn, n.name, g.kind, p.name, a.required, g.objects, g.bytes, g.at,
       g.id - a.first_aggregate, coalesce(e.members, '[]'), coalesce(e.bytes, 0), g.id
FROM aggregate AS g JOIN node AS n ON n.id = g.node JOIN pool AS p ON p.id = g.pool
JOIN attempt AS a ON a.tx = g.tx AND a.attempt = g.attempt
LEFT JOIN erased AS e ON e.aggregate = g.id
WHERE NOT EXISTS (SELECT 1 FROM deletion AS x WHERE x.aggregate = g.id)
"""

_OBJECT = f"""
SELECT o.id AS version, n.name AS node, o.kind AS kind, hex(o.name) AS name, {_ACTIVE} AS active,
       o.length AS length, hex(o.digest) AS digest, g.at AS at, p.name AS primary_pool,
       g.uuid AS aggregate, o.id - g.first_object AS member, o.start AS start
FROM object AS o
JOIN aggregate AS g ON g.id = o.aggregate
JOIN node AS n ON n.id = o.node
JOIN pool AS p ON p.id = g.pool
"""

# The objects that a copy row or gap row's set names; NULL names all of the aggregate's.
_IN_SET = """({column} IS NULL OR EXISTS (
    SELECT 1 FROM json_each({column}) AS r
    WHERE o.id - g.first_object >= json_extract(r.value, '$[0]')
      AND o.id - g.first_object < json_extract(r.value, '$[0]') + json_extract(r.value, '$[1]')))"""


class CatalogReader:
    """A catalog that is open for questions.

    Args:
        path: of the database; must exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        self._lock = threading.Lock()
        refuse_links(self.path)
        with translated(self.path):
            self._reads = connect(self.path, read_only=True)
            try:
                self.schema = check_identity(self._reads, self.path)
                if self.schema != SCHEMA_VERSION:
                    imitate(self._reads, self.schema)
                self._load_identity()
            except BaseException:
                self._reads.close()
                raise

    def _load_identity(self) -> None:
        rows = self._reads.execute("SELECT uuid, created FROM store").fetchall()
        if len(rows) != 1:
            raise CatalogVersion(self.path, "not a catalog, or a damaged one: it names no store")
        ((self.store_id, self._created),) = self._made(values.identity, rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close; idempotent."""
        with self._lock:
            self._reads.close()

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One question, one snapshot, the whole answer."""
        with self._lock, translated(self.path):
            return self._reads.execute(sql, parameters).fetchall()

    def _packed(self, columns: str, sql: str, parameters: Sequence[Any] = ()) -> list[list[Any]]:
        """Like `_rows` for long answers: one row comes back, in no particular order."""
        packed = f"SELECT json_group_array(json_array({columns})) FROM ({sql})"
        ((rows,),) = self._made(lambda text: (json.loads(text),), self._rows(packed, parameters))
        answer: list[list[Any]] = rows
        return answer

    def _made(self, make: Callable[..., T], rows: Iterable[Sequence[Any]]) -> list[T]:
        """Rows as values. A row that cannot be one is damage: the schema's checks hold for what is written, not for what is read."""
        try:
            return [make(*row) for row in rows]
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise CatalogVersion(
                self.path, f"damaged: it holds a row that cannot be ({error!s:.200})"
            ) from error

    # ---- the store, its pools and volumes ------------------------------------------------------

    def store(self) -> StoreEntry:
        """The store itself."""
        csn, objects = self._rows("SELECT csn, next_object - 1 FROM store")[0]
        return StoreEntry(self.store_id, self._created, csn, objects)

    def space(self) -> SpaceEntry:
        """What the catalog takes of its file system, and what is left there."""
        sizes = []
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                sizes.append(os.stat(self.path + suffix).st_size)
        ballast = Ballast(self.path)
        return SpaceEntry(sizes[0], sum(sizes[1:]), ballast.held_bytes, ballast.free_bytes)

    def last_csn(self) -> int:
        """The commit sequence number of the last commit; 0: there was none."""
        return int(self._rows("SELECT csn FROM store")[0][0])

    def pools(self) -> list[PoolEntry]:
        """All pools, in the order in which they were added."""
        rows = self._rows("SELECT uuid, name, kind FROM pool ORDER BY id")
        return self._made(values.pool_entry, rows)

    def volumes(self) -> list[VolumeEntry]:
        """All volumes, in the order in which they were added."""
        rows = self._rows(
            """SELECT v.uuid, p.name, v.path, v.size, v.granule, v.epoch, v.device, v.inode, v.is_block
               FROM volume AS v JOIN pool AS p ON p.id = v.pool ORDER BY v.id"""
        )
        return self._made(values.volume_entry, rows)

    def retired(self) -> list[RetiredVolume]:
        """Volumes that were given up, in that order."""
        rows = self._rows(
            """SELECT r.uuid, r.csn, r.at, r.epoch, p.name, r.path, r.device
               FROM retired AS r LEFT JOIN pool AS p ON p.id = r.pool ORDER BY r.csn, r.uuid"""
        )
        return self._made(values.retired_volume, rows)

    def usage(self) -> list[UsageEntry]:
        """What lies on every volume that holds anything."""
        rows = self._rows(
            """SELECT v.uuid, sum(l.length), count(*), count(DISTINCT l.aggregate)
               FROM (SELECT volume, aggregate, length FROM placement
                     UNION ALL SELECT volume, aggregate, length FROM dead_region) AS l
               JOIN volume AS v ON v.id = l.volume GROUP BY v.id"""
        )
        return self._made(
            lambda uuid, *n: UsageEntry(values.id_of(uuid), *values.numbers(*n)), rows
        )

    def live_regions(self, volume: bytes) -> list[Region]:
        """Every region of a volume that a committed span keeps, or one that was deleted keeps yet, by offset. The others are free."""
        rows = self._packed(
            "offset, length",
            """SELECT l.offset, l.length FROM placement AS l
               WHERE l.volume = (SELECT id FROM volume WHERE uuid = ?1)
               UNION ALL
               SELECT d.offset, d.length FROM dead_region AS d
               WHERE d.volume = (SELECT id FROM volume WHERE uuid = ?1)""",
            (volume.hex(),),
        )
        return sorted(self._made(lambda *n: Region(*values.numbers(*n)), rows))

    def held_csns(self, volume: bytes) -> dict[bytes, int]:
        """Every aggregate of which a volume holds something, with the commit that last changed that copy.

        What the volume's directory should know; small enough to compare at every opening.
        """
        rows = self._packed(
            "uuid, csn",
            """SELECT DISTINCT g.uuid AS uuid, c.csn AS csn
               FROM placement AS l JOIN copy AS c ON c.aggregate = l.aggregate AND c.pool = l.pool
               JOIN aggregate AS g ON g.id = l.aggregate
               WHERE l.volume = (SELECT id FROM volume WHERE uuid = ?)""",
            (volume.hex(),),
        )
        return dict(
            self._made(lambda uuid, csn: (values.id_of(uuid), values.numbers(csn)[0]), rows)
        )

    def held_spans(self, volume: bytes, aggregates: Iterable[bytes]) -> Iterator[HeldSpans]:
        """What the directory of a volume should say of these aggregates: all that the volume holds of each."""
        for aggregate in aggregates:
            keys = self._rows(
                """SELECT DISTINCT l.aggregate, l.pool FROM placement AS l
                   WHERE l.aggregate = (SELECT id FROM aggregate WHERE uuid = ?)
                     AND l.volume = (SELECT id FROM volume WHERE uuid = ?)""",
                (aggregate.hex(), volume.hex()),
            )
            for number, pool in keys:
                yield self._held(volume, number, pool)

    def _held(self, volume: bytes, aggregate: int, pool: int) -> HeldSpans:
        heads = self._rows(
            """SELECT g.uuid, g.tx, n.name, c.present, g.kind, g.attempt, c.csn, g.at,
                      coalesce(e.members, '[]'), g.csn, g.first_object
               FROM aggregate AS g JOIN node AS n ON n.id = g.node
               JOIN copy AS c ON c.aggregate = g.id AND c.pool = ?
               LEFT JOIN erased AS e ON e.aggregate = g.id WHERE g.id = ?""",
            (pool, aggregate),
        )
        if not heads:
            raise CatalogError(
                self.path, "contradicts itself: a span without its aggregate or node"
            )
        places = self._places("l.aggregate = ? AND l.pool = ?", (aggregate, pool))
        mine = tuple(place for _, place in places if place.volume == volume)
        return self._made(lambda *head: values.held_spans(mine, *head), heads)[0]

    def _places(self, where: str, parameters: Sequence[Any]) -> list[tuple[str, Place]]:
        rows = self._rows(
            f"""SELECT p.name, l.span, v.uuid, l.offset, l.length, l.used, l.data_start, l.data_length
                FROM placement AS l JOIN volume AS v ON v.id = l.volume JOIN pool AS p ON p.id = l.pool
                WHERE {where} ORDER BY l.aggregate, l.pool, l.span, l.volume""",
            parameters,
        )
        return self._made(values.pool_and_place, rows)

    def dead(self, volume: bytes | None = None) -> list[DeadAggregate]:
        """Aggregates of which nothing is left and which a directory may still name.

        Args:
            volume: only those that keep a region there; None: all.
        """
        where = "true"
        if volume is not None:
            where = """x.aggregate IN (SELECT d.aggregate FROM dead_region AS d
                       WHERE d.volume = (SELECT id FROM volume WHERE uuid = ?))"""
        rows = self._packed(
            "uuid, tx, attempt, csn, node, kind, at",
            f"""SELECT g.uuid AS uuid, g.tx AS tx, g.attempt AS attempt, x.csn AS csn, n.name AS node, g.kind AS kind,
                       g.at AS at
                FROM deletion AS x JOIN aggregate AS g ON g.id = x.aggregate JOIN node AS n ON n.id = g.node
                WHERE {where}""",
            () if volume is None else (volume.hex(),),
        )
        return self._made(values.dead_aggregate, rows)

    def spent(self, among: Iterable[bytes] | None = None) -> list[SpentCopy]:
        """Copies of which every member was deleted and whose aggregates live on; an audit's, which held nothing before, are none.

        Args:
            among: only of these aggregates; None: of all.
        """
        listed = None if among is None else json.dumps([aggregate.hex() for aggregate in among])
        source = "erased AS e CROSS JOIN aggregate AS g ON g.id = e.aggregate"
        if listed is not None:
            source = """json_each(?) AS t JOIN aggregate AS g ON g.uuid = t.value
                JOIN erased AS e ON e.aggregate = g.id"""
        rows = self._rows(
            f"""SELECT g.uuid, p.name, c.present, e.members,
                       (SELECT coalesce(sum(l.length), 0) FROM placement AS l WHERE l.aggregate = c.aggregate AND l.pool = c.pool)
                FROM {source} CROSS JOIN copy AS c ON c.aggregate = g.id AND c.present <> '[]' JOIN pool AS p ON p.id = c.pool""",
            () if listed is None else (listed,),
        )
        found = self._made(values.partial_copy, rows)
        return [copy for copy, present, erased in found if present <= erased]

    def waiting_bytes(self, among: Iterable[bytes] | None = None) -> int:
        """Bytes that hold nothing but what was deleted, and are not free yet; those of spent copies only of the aggregates `among`."""
        dead = int(self._rows("SELECT coalesce(sum(length), 0) FROM dead_region")[0][0])
        return dead + sum(copy.length for copy in self.spent(among))

    # ---- transactions and aggregates -----------------------------------------------------------

    def committed(self, transaction: bytes) -> CommittedEntry | None:
        """The attempt of a transaction that committed, or None."""
        rows = self._rows(
            """SELECT required, attempt, csn, at FROM attempt WHERE tx = ? AND state = 'committed'""",
            (transaction.hex(),),
        )
        if not rows:
            return None
        ((required, attempt, csn, at),) = self._made(
            lambda names, *n: (values.names_of(names), *values.numbers(*n)), rows
        )
        found = self._aggregates("g.tx = ? AND g.attempt = ?", (transaction.hex(), attempt))
        return CommittedEntry(transaction, attempt, csn, at, required, tuple(found))

    def aggregate(self, aggregate: bytes) -> AggregateEntry | None:
        """One aggregate, or None."""
        found = self._aggregates("g.uuid = ?", (aggregate.hex(),))
        return found[0] if found else None

    def _aggregates(self, where: str, parameters: Sequence[Any]) -> list[AggregateEntry]:
        rows = self._rows(f"{_AGGREGATE} AND {where} ORDER BY g.id", parameters)
        return self._made(values.aggregate_entry, rows)

    def aggregates(self, *, after: int = 0, limit: int = 256) -> list[tuple[int, AggregateEntry]]:
        """All aggregates in order of commit, page by page.

        Args:
            after: the mark of the last aggregate of the page before; each aggregate comes with its own.
            limit: at most so many.
        """
        rows = self._rows(f"{_AGGREGATE} AND g.id > ? ORDER BY g.id LIMIT ?", (after, limit))
        return self._made(lambda *row: (row[-1], values.aggregate_entry(*row)), rows)

    def members(self, aggregate: bytes) -> list[MemberEntry]:
        """All members of an aggregate that were not deleted, by index."""
        rows = self._packed(
            "member, version, name, start, length, digest, active",
            f"{_OBJECT} WHERE {_within('?1')}",
            (aggregate.hex(),),
        )
        return sorted(self._made(values.member_entry, rows))

    def copies(self, aggregate: bytes) -> list[CopyEntry]:
        """All copies of an aggregate; the primary's first, then by the order of pools."""
        heads = self._rows(
            """SELECT p.name, c.present FROM copy AS c
               JOIN aggregate AS g ON g.id = c.aggregate JOIN pool AS p ON p.id = c.pool
               WHERE g.uuid = ? ORDER BY c.pool <> g.pool, c.pool""",
            (aggregate.hex(),),
        )
        places = self._places(
            "l.aggregate = (SELECT id FROM aggregate WHERE uuid = ?)", (aggregate.hex(),)
        )
        return self._made(
            lambda name, present: CopyEntry(
                name, from_json(present), tuple(place for pool, place in places if pool == name)
            ),
            heads,
        )

    def lacking(
        self, primary: str, pool: str, *, active_only: bool, after: int = 0, limit: int = 64
    ) -> list[tuple[int, AggregateEntry]]:
        """Aggregates of a primary of which a pool does not hold every member, in order of commit.

        Compares what is there, not what a gap row says: it also finds what no gap row knows.

        Args:
            primary: where the aggregates belong.
            pool: where they should be as well.
            active_only: only aggregates of backup versions.
            after: the mark of the last aggregate of the page before; each aggregate comes with its own.
            limit: at most so many.
        """
        kinds = "AND g.kind = 0" if active_only else ""
        rows = self._rows(
            f"""{_AGGREGATE} AND g.pool = (SELECT id FROM pool WHERE name = ?) {kinds} AND g.id > ? AND NOT EXISTS (
                SELECT 1 FROM copy AS c
                WHERE c.aggregate = g.id AND c.pool = (SELECT id FROM pool WHERE name = ?)
                  AND c.present IS NULL)
            ORDER BY g.id LIMIT ?""",
            (primary, after, pool, limit),
        )
        return self._made(lambda *row: (row[-1], values.aggregate_entry(*row)), rows)

    def held_on(
        self, primary: str, *, active_only: bool = False, nodes: Sequence[str] | None = None
    ) -> tuple[int, int]:
        """How many objects belong to a primary, and their bytes.

        Args:
            primary: name.
            active_only: only active backup versions.
            nodes: only of these.
        """
        whose = "" if nodes is None else "AND n.name IN (SELECT value FROM json_each(?2))"
        if not active_only:
            sql = f"""SELECT coalesce(sum(g.objects - coalesce(e.objects, 0)), 0),
                       coalesce(sum(g.bytes - coalesce(e.bytes, 0)), 0)
                FROM aggregate AS g JOIN pool AS p ON p.id = g.pool JOIN node AS n ON n.id = g.node
                LEFT JOIN erased AS e ON e.aggregate = g.id
                WHERE p.name = ?1 {whose} AND NOT EXISTS (SELECT 1 FROM deletion AS x WHERE x.aggregate = g.id)"""
        else:
            sql = f"""SELECT count(*), coalesce(sum(o.length), 0)
                FROM aggregate AS g JOIN pool AS p ON p.id = g.pool JOIN node AS n ON n.id = g.node
                JOIN object AS o ON o.id >= g.first_object AND o.id < g.first_object + g.objects
                    AND o.aggregate = g.id
                WHERE p.name = ?1 {whose} AND g.kind = 0 AND {_ACTIVE}"""
        names = () if nodes is None else (json.dumps(list(nodes)),)
        objects, size = self._rows(sql, (primary, *names))[0]
        return objects, size

    # ---- objects -------------------------------------------------------------------------------

    def find(
        self,
        node: str,
        name: bytes,
        *,
        kind: ObjectKind | None = None,
        version: int | None = None,
    ) -> ObjectEntry | None:
        """The newest version of a name, or the given one; None: there is none."""
        if version is not None and not 0 < version < 1 << 63:
            return None  # a number that no object can have
        wanted, parameters = "n.name = ? AND o.name = ?", [node, name]
        where: list[Any] = list(parameters)
        if kind is not None:
            wanted += " AND o.kind = ?"
            where.append(KIND_CODES[kind])
        else:
            wanted += " AND o.kind IN (0, 1, 2)"  # so that the index serves
        if version is not None:
            wanted += " AND o.id = ?"
            where.append(version)
        rows = self._rows(f"{_OBJECT} WHERE {wanted} ORDER BY o.id DESC LIMIT 1", where)
        return self._made(values.object_entry, rows)[0] if rows else None

    def objects(
        self,
        *,
        node: str | None = None,
        name: bytes | None = None,
        kind: ObjectKind | None = None,
        pool: str | None = None,
        active_only: bool = False,
        beyond: int = 0,
    ) -> Iterator[ObjectEntry]:
        """All versions of all objects that fit, in the order in which they were stored, page by page.

        `beyond`: only versions of which that many newer ones of the same name are there.
        """
        clauses, parameters = ["o.id > ?"], [0]
        where: list[Any] = list(parameters)
        for clause, value in (
            ("n.name = ?", node),
            ("o.name = ?", name),
            ("o.kind = ?", None if kind is None else KIND_CODES[kind]),
        ):
            if value is not None:
                clauses.append(clause)
                where.append(value)
        if pool is not None:
            held = _IN_SET.format(column="c.present")
            clauses.append(
                f"""EXISTS (SELECT 1 FROM copy AS c WHERE c.aggregate = g.id
                    AND c.pool = (SELECT id FROM pool WHERE name = ?) AND {held})"""
            )
            where.append(pool)
        if active_only:
            clauses.append(_ACTIVE)
        if beyond:
            clauses.append(_BEYOND)
            where.append(beyond)
        sql = f"{_OBJECT} WHERE {' AND '.join(clauses)} ORDER BY o.id LIMIT {PAGE_ROWS}"
        columns = (
            "version, node, kind, name, active, length, digest, at, primary_pool, "
            "aggregate, member, start"
        )
        while True:
            page = sorted(
                self._made(values.object_entry, self._packed(columns, sql, where)), key=_by_version
            )
            yield from page
            if len(page) < PAGE_ROWS:
                return
            where[0] = page[-1].version

    # ---- what is missing, what is held -----------------------------------------------------------

    def gaps(
        self,
        *,
        pool: str | None = None,
        primary: str | None = None,
        node: str | None = None,
        aggregate: bytes | None = None,
        include_empty: bool = False,
    ) -> list[GapEntry]:
        """Gaps with what they count now, the oldest first.

        Of an active-data pool only objects that are active now count: what was replaced since need not be there any more.
        A gap that counts nothing is left out.

        Args:
            pool: only gaps of this pool.
            primary: only of aggregates on this primary.
            node: only of this node's objects.
            aggregate: only of this one.
            include_empty: do not leave out those that count nothing.
        """
        clauses, parameters = ["true"], []
        for clause, value in (
            ("q.name = ?", pool),
            ("p.name = ?", primary),
            ("n.name = ?", node),
            ("g.uuid = ?", None if aggregate is None else aggregate.hex()),
        ):
            if value is not None:
                clauses.append(clause)
                parameters.append(value)
        rows = self._rows(
            f"""SELECT g.uuid, n.name, g.kind, p.name, q.name, h.missing, h.reason, h.errno, h.since, h.updated,
                       g.objects - coalesce(e.objects, 0), g.bytes - coalesce(e.bytes, 0), q.kind
                FROM gap AS h JOIN aggregate AS g ON g.id = h.aggregate JOIN pool AS q ON q.id = h.pool
                LEFT JOIN erased AS e ON e.aggregate = g.id
                JOIN pool AS p ON p.id = g.pool JOIN node AS n ON n.id = g.node
                WHERE {" AND ".join(clauses)} ORDER BY h.since, g.id, q.id""",
            parameters,
        )
        found = self._made(self._gap_entry, rows)
        return [gap for gap in found if gap.objects or include_empty]

    def _gap_entry(
        self,
        uuid: str,
        node: str,
        kind: int,
        primary: str,
        pool: str,
        missing: str | None,
        reason: str,
        errno: int,
        since: int,
        updated: int,
        objects: int,
        size: int,
        pool_kind: str,
    ) -> GapEntry:
        counts_all = missing is None and pool_kind != PoolKind.ACTIVE_DATA.value
        if not counts_all:
            objects, size = self._count_missing(uuid, missing, pool_kind)
        values.texts(node, primary, pool, reason)
        return GapEntry(
            values.id_of(uuid),
            node,
            values.kind_of(kind),
            primary,
            pool,
            from_json(missing),
            reason,
            *values.numbers(errno, since, updated, objects, size),
        )

    def _count_missing(self, uuid: str, missing: str | None, pool_kind: str) -> tuple[int, int]:
        active = f"AND {_ACTIVE}" if pool_kind == PoolKind.ACTIVE_DATA.value else ""
        held = _IN_SET.format(column="?2")
        count, size = self._rows(
            f"""SELECT count(*), coalesce(sum(o.length), 0)
                FROM aggregate AS g JOIN object AS o ON {_within("?1")} WHERE {held} {active}""",
            (uuid, missing),
        )[0]
        return count, size

    def occupancy(
        self, *, node: str | None = None, pool: str | None = None
    ) -> list[OccupancyEntry]:
        """Objects and bytes per node, kind and pool: all versions that are held."""
        rows = self._rows(
            f"""SELECT n.name, t.kind, p.name, sum(t.objects), sum(t.bytes) FROM (
                    SELECT g.node AS node, g.kind AS kind, c.pool AS pool,
                           sum(g.objects - coalesce(e.objects, 0)) AS objects, sum(g.bytes - coalesce(e.bytes, 0)) AS bytes
                    FROM copy AS c JOIN aggregate AS g ON g.id = c.aggregate
                    LEFT JOIN erased AS e ON e.aggregate = g.id
                    WHERE c.present IS NULL GROUP BY 1, 2, 3
                    UNION ALL
                    SELECT g.node, g.kind, c.pool, count(*), sum(o.length)
                    FROM copy AS c JOIN aggregate AS g ON g.id = c.aggregate
                    JOIN object AS o ON o.id >= g.first_object AND o.id < g.first_object + g.objects
                        AND o.aggregate = g.id
                    WHERE c.present IS NOT NULL AND {_IN_SET.format(column="c.present")} GROUP BY 1, 2, 3
                ) AS t JOIN node AS n ON n.id = t.node JOIN pool AS p ON p.id = t.pool
                WHERE (?1 IS NULL OR n.name = ?1) AND (?2 IS NULL OR p.name = ?2)
                GROUP BY n.name, t.kind, p.name ORDER BY n.name, t.kind, p.id""",
            (node, pool),
        )
        return self._made(
            lambda name, kind, pool, *n: OccupancyEntry(
                name, values.kind_of(kind), pool, *values.numbers(*n)
            ),
            rows,
        )

    def verify(self) -> list[str]:
        """What the database itself finds wrong: empty when its structure, keys and checks hold. Reads everything."""
        found = [str(row[0]) for row in self._rows("PRAGMA integrity_check(20)") if row[0] != "ok"]
        for table, _, parent, _ in self._rows("PRAGMA foreign_key_check"):
            found.append(f"a row of {table} names a row of {parent} that is not there")
        return found


def _within(uuid: str) -> str:
    """The objects of one aggregate, by their run of ids: there is no index on object.aggregate, and none is needed."""
    return f"""o.id >= (SELECT first_object FROM aggregate WHERE uuid = {uuid})
        AND o.id < (SELECT first_object + objects FROM aggregate WHERE uuid = {uuid})
        AND g.uuid = {uuid} AND o.aggregate = g.id"""


def _by_version(entry: ObjectEntry) -> int:
    return entry.version
