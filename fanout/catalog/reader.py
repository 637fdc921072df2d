"""The catalog's questions: everything that can be asked without changing anything.

A reader works beside a running writer, in this process or another. Long listings come in pages.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fanout.catalog import values
from fanout.catalog.asking import ACTIVE, IN_SET
from fanout.catalog.ballast import Ballast
from fanout.catalog.contents import ContentsReader
from fanout.catalog.intake import KIND_CODES
from fanout.catalog.rows import (
    GapEntry,
    ObjectEntry,
    OccupancyEntry,
    PoolEntry,
    Region,
    RetiredVolume,
    SpaceEntry,
    StoreEntry,
    UsageEntry,
    VolumeEntry,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fanout.types import ObjectKind

PAGE_ROWS = 5_000  # of long listings: about 2 MiB in memory

_BEYOND = """(
    SELECT count(*) FROM object AS n
    WHERE n.node = o.node AND n.kind = o.kind AND n.name = o.name AND n.id > o.id) >= ?"""

# How many objects of aggregate `g` count as missing where pool `q` has gap row `h`, and their bytes: those that were not deleted; of an
# active-data pool the active ones.
_COUNTED = f"""CASE WHEN h.missing IS NULL AND q.kind <> 'active-data'
    THEN json_array(g.objects - coalesce(e.objects, 0), g.bytes - coalesce(e.bytes, 0))
    ELSE (SELECT json_array(count(*), coalesce(sum(o.length), 0))
          FROM json_each(coalesce(h.missing, json_array(json_array(0, g.objects)))) AS r CROSS JOIN object AS o
              ON o.id >= g.first_object + json_extract(r.value, '$[0]')
             AND o.id < g.first_object + json_extract(r.value, '$[0]') + json_extract(r.value, '$[1]')
             AND o.aggregate = g.id
          WHERE q.kind <> 'active-data' OR {ACTIVE}) END"""

_OBJECT = f"""
SELECT o.id AS version, n.name AS node, o.kind AS kind, hex(o.name) AS name, {ACTIVE} AS active,
       o.length AS length, hex(o.digest) AS digest, g.at AS at, p.name AS primary_pool,
       g.uuid AS aggregate, o.id - g.first_object AS member, o.start AS start
FROM object AS o
JOIN aggregate AS g ON g.id = o.aggregate
JOIN node AS n ON n.id = o.node
JOIN pool AS p ON p.id = g.pool
"""


class CatalogReader(ContentsReader):
    """A catalog that is open for questions: all that can be asked.

    Args:
        path: of the database; must exist.
    """

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

    def nodes(self) -> list[str]:
        """Names of all nodes that ever stored something, in the order in which they first did."""
        return self._made(
            lambda name: values.texts(name)[0], self._rows("SELECT name FROM node ORDER BY id")
        )

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
        columns = self._columns(
            "offset, length",
            """SELECT l.offset, l.length FROM placement AS l
               WHERE l.volume = (SELECT id FROM volume WHERE uuid = ?1)
               UNION ALL
               SELECT d.offset, d.length FROM dead_region AS d
               WHERE d.volume = (SELECT id FROM volume WHERE uuid = ?1)""",
            (volume.hex(),),
        )
        (regions,) = self._made(values.regions, [columns])
        return regions

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
                WHERE p.name = ?1 {whose} AND g.kind = 0 AND {ACTIVE}"""
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
            held = IN_SET.format(column="c.present")
            clauses.append(
                f"""EXISTS (SELECT 1 FROM copy AS c WHERE c.aggregate = g.id
                    AND c.pool = (SELECT id FROM pool WHERE name = ?) AND {held})"""
            )
            where.append(pool)
        if active_only:
            clauses.append(ACTIVE)
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
        rows = self._packed(
            "number, turn, uuid, node, kind, home, pool, missing, reason, errno, since, updated, json(counted)",
            f"""SELECT g.id AS number, q.id AS turn, g.uuid AS uuid, n.name AS node, g.kind AS kind, p.name AS home,
                       q.name AS pool, h.missing AS missing, h.reason AS reason, h.errno AS errno, h.since AS since,
                       h.updated AS updated, {_COUNTED} AS counted
                FROM gap AS h JOIN aggregate AS g ON g.id = h.aggregate JOIN pool AS q ON q.id = h.pool
                LEFT JOIN erased AS e ON e.aggregate = g.id
                JOIN pool AS p ON p.id = g.pool JOIN node AS n ON n.id = g.node
                WHERE {" AND ".join(clauses)}""",
            parameters,
        )
        found = self._made(values.numbered_gap, rows)
        found.sort(key=lambda row: (row[2].since, row[0], row[1]))
        return [gap for _, _, gap in found if gap.objects or include_empty]

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
                    WHERE c.present IS NOT NULL AND {IN_SET.format(column="c.present")} GROUP BY 1, 2, 3
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


def _by_version(entry: ObjectEntry) -> int:
    return entry.version
