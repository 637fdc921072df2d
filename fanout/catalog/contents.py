"""What an aggregate consists of, and what a volume holds of which: the catalog's questions about many aggregates at once."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from fanout.catalog import values
from fanout.catalog.asking import ACTIVE, Questions
from fanout.catalog.members import MemberSet
from fanout.catalog.rows import (
    AggregateEntry,
    CommittedEntry,
    Contents,
    CopyEntry,
    DeadAggregate,
    HeldSpans,
    MemberEntry,
    Place,
    SpentCopy,
)
from fanout.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_AGGREGATE = """
SELECT g.uuid, g.tx, g.attempt, g.csn, n.name, g.kind, p.name, a.required, g.objects, g.bytes, g.at,
       g.id - a.first_aggregate, coalesce(e.members, '[]'), coalesce(e.bytes, 0), g.id{more}
FROM aggregate AS g JOIN node AS n ON n.id = g.node JOIN pool AS p ON p.id = g.pool
JOIN attempt AS a ON a.tx = g.tx AND a.attempt = g.attempt
LEFT JOIN erased AS e ON e.aggregate = g.id {join}
WHERE NOT EXISTS (SELECT 1 FROM deletion AS x WHERE x.aggregate = g.id)
"""
_ENTRY = _AGGREGATE.format(more="", join="")

# Aggregates `g`, one after the other, of a JSON list of their ids.
_THESE = "FROM json_each(?1) AS t CROSS JOIN aggregate AS g ON g.uuid = t.value"

# Of placements `l` of an aggregate those on a volume. The plus keeps SQLite from looking through all that the volume holds.
_ON_VOLUME = "+l.volume = (SELECT id FROM volume WHERE uuid = {})"

MOST_AGGREGATES, MOST_OBJECTS = 256, 8192  # that are asked for at once


class ContentsReader(Questions):
    """Aggregates, their members, copies and gaps; what volumes hold of them."""

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
        rows = self._rows(f"{_ENTRY} AND {where} ORDER BY g.id", parameters)
        return self._made(values.aggregate_entry, rows)

    def aggregates(self, *, volume: bytes | None = None) -> Iterator[AggregateEntry]:
        """All aggregates in order of commit, page by page; or those that hold something on a volume."""
        on_it = f"""AND EXISTS (SELECT 1 FROM placement AS l WHERE l.aggregate = g.id AND {_ON_VOLUME.format("?2")})"""
        sql = f"{_ENTRY} AND g.id > ?1 {'' if volume is None else on_it} ORDER BY g.id LIMIT {MOST_AGGREGATES}"
        where: list[Any] = [0, *([] if volume is None else [volume.hex()])]
        while page := self._rows(sql, where):
            yield from self._made(values.aggregate_entry, page)
            where[0] = page[-1][-1]

    def with_gap(self, primary: str, pool: str) -> Iterator[AggregateEntry]:
        """Aggregates of a primary of which a pool has a gap row, whatever it counts, in order of commit, page by page."""
        join = (
            "JOIN gap AS h ON h.aggregate = g.id AND h.pool = (SELECT id FROM pool WHERE name = ?1)"
        )
        sql = f"""{_AGGREGATE.format(more="", join=join)}
            AND p.name = ?2 AND g.id > ?3 ORDER BY g.id LIMIT {MOST_AGGREGATES}"""
        mark = 0
        while page := self._rows(sql, (pool, primary, mark)):
            yield from self._made(values.aggregate_entry, page)
            mark = page[-1][-1]

    def contents(self, aggregates: Iterable[bytes]) -> dict[bytes, Contents]:
        """Members, copies and gaps of some aggregates, all of one moment. Each has an answer; one that is not there has nothing."""
        ids = list(dict.fromkeys(aggregates))
        with self._moment():
            members, copies, gaps = self._members(ids), self._copies(ids), self._gaps(ids)
        return {one: Contents(tuple(members[one]), tuple(copies[one]), gaps[one]) for one in ids}

    def contents_of(
        self, entries: Iterable[AggregateEntry]
    ) -> Iterator[tuple[AggregateEntry, Contents]]:
        """Aggregates with their contents, in their order. Asks for many at once, and holds no more than so many members."""
        for some in _groups(entries):
            found = self.contents(entry.aggregate for entry in some)
            for entry in some:
                yield entry, found[entry.aggregate]

    def members(self, aggregate: bytes) -> list[MemberEntry]:
        """All members of an aggregate that were not deleted, by index."""
        return self._members([aggregate])[aggregate]

    def copies(self, aggregate: bytes) -> list[CopyEntry]:
        """All copies of an aggregate; the primary's first, then by the order of pools."""
        return self._copies([aggregate])[aggregate]

    def _members(self, aggregates: Sequence[bytes]) -> dict[bytes, list[MemberEntry]]:
        rows = self._packed(
            "aggregate, member, version, name, start, length, digest, active",
            f"""SELECT g.uuid AS aggregate, o.id - g.first_object AS member, o.id AS version, hex(o.name) AS name,
                       o.start AS start, o.length AS length, hex(o.digest) AS digest, {ACTIVE} AS active
                {_THESE} CROSS JOIN object AS o
                    ON o.id >= g.first_object AND o.id < g.first_object + g.objects AND o.aggregate = g.id""",
            (_listed(aggregates),),
        )
        found: dict[bytes, list[MemberEntry]] = {one: [] for one in aggregates}
        for aggregate, member in self._made(
            lambda uuid, *rest: (values.id_of(uuid), values.member_entry(*rest)), rows
        ):
            found[aggregate].append(member)
        for members in found.values():
            members.sort()
        return found

    def _copies(self, aggregates: Sequence[bytes]) -> dict[bytes, list[CopyEntry]]:
        listed = _listed(aggregates)
        heads = self._packed(
            "other, number, aggregate, pool, present",
            f"""SELECT c.pool <> g.pool AS other, c.pool AS number, g.uuid AS aggregate, p.name AS pool, c.present AS present
                {_THESE} CROSS JOIN copy AS c ON c.aggregate = g.id JOIN pool AS p ON p.id = c.pool""",
            (listed,),
        )
        places = self._places("", (listed,))
        found: dict[bytes, list[CopyEntry]] = {one: [] for one in aggregates}
        for _, _, aggregate, pool, present in sorted(
            self._made(values.copy_head, heads), key=lambda head: head[:2]
        ):
            mine = places.get((aggregate, pool), ())
            found[aggregate].append(CopyEntry(pool, present, tuple(mine)))
        return found

    def _places(
        self, where: str, parameters: Sequence[Any]
    ) -> dict[tuple[bytes, str], list[Place]]:
        """By aggregate and pool, by number."""
        rows = self._packed(
            "number, aggregate, pool, span, volume, offset, length, used, data_start, data_length",
            f"""SELECT v.id AS number, g.uuid AS aggregate, p.name AS pool, l.span AS span, v.uuid AS volume,
                       l.offset AS offset, l.length AS length, l.used AS used, l.data_start AS data_start,
                       l.data_length AS data_length
                {_THESE} CROSS JOIN placement AS l ON l.aggregate = g.id {where}
                JOIN volume AS v ON v.id = l.volume JOIN pool AS p ON p.id = l.pool""",
            parameters,
        )
        made = self._made(values.numbered_place, rows)
        made.sort(key=lambda row: (row[3].span, row[0]))
        found: dict[tuple[bytes, str], list[Place]] = {}
        for _, aggregate, pool, place in made:
            found.setdefault((aggregate, pool), []).append(place)
        return found

    def _gaps(self, aggregates: Sequence[bytes]) -> dict[bytes, dict[str, MemberSet | None]]:
        rows = self._rows(
            f"""SELECT g.uuid, p.name, h.missing
                {_THESE} CROSS JOIN gap AS h ON h.aggregate = g.id JOIN pool AS p ON p.id = h.pool""",
            (_listed(aggregates),),
        )
        found: dict[bytes, dict[str, MemberSet | None]] = {one: {} for one in aggregates}
        for aggregate, pool, missing in self._made(values.gap_head, rows):
            found[aggregate][pool] = missing
        return found

    def lacking(
        self,
        primary: str,
        pool: str,
        *,
        active_only: bool,
        nodes: Sequence[str] | None = None,
    ) -> Iterator[AggregateEntry]:
        """Aggregates of a primary of which a pool does not hold every member that is left, in order of commit, page by page.

        Compares what is there, not what a gap row says: it also finds what no gap row knows.

        Args:
            primary: where the aggregates belong.
            pool: where they should be as well.
            active_only: only those of which it lacks an active backup version.
            nodes: only of these; None: of all.
        """
        found = self._not_held(primary, pool, active_only=active_only, nodes=nodes)
        if not active_only:
            yield from (entry for entry, _ in found)
            return
        lacks: dict[bytes, MemberSet] = {}

        def remembered() -> Iterator[AggregateEntry]:
            for entry, lacks[entry.aggregate] in found:
                yield entry

        for some in _groups(remembered()):
            active = self._with_active({one.aggregate: lacks.pop(one.aggregate) for one in some})
            yield from (entry for entry in some if entry.aggregate in active)

    def _not_held(
        self, primary: str, pool: str, *, active_only: bool, nodes: Sequence[str] | None
    ) -> Iterator[tuple[AggregateEntry, MemberSet]]:
        """Aggregates of which a pool does not hold all that is left, with what it does not hold."""
        join = "LEFT JOIN copy AS c ON c.aggregate = g.id AND c.pool = (SELECT id FROM pool WHERE name = ?1)"
        whose = "" if nodes is None else "AND n.name IN (SELECT value FROM json_each(?4))"
        sql = f"""{_AGGREGATE.format(more=", c.present", join=join)}
            AND g.pool = (SELECT id FROM pool WHERE name = ?2) {"AND g.kind = 0" if active_only else ""}
            AND (c.aggregate IS NULL OR c.present IS NOT NULL) {whose}
            AND g.id > ?3 ORDER BY g.id LIMIT {MOST_AGGREGATES}"""
        names = () if nodes is None else (json.dumps(list(nodes)),)
        mark = 0
        while page := self._rows(sql, (pool, primary, mark, *names)):
            for entry, held in self._made(values.aggregate_and_held, page):
                # A copy that was made after a deletion lists what it holds; it may be all.
                left = MemberSet.all_of(entry.objects) - held - entry.erased
                if left.runs:
                    yield entry, left
            mark = page[-1][-2]

    def _with_active(self, members: Mapping[bytes, MemberSet]) -> set[bytes]:
        """The aggregates of which one of these members is active."""
        runs = [(one.hex(), *run) for one, some in members.items() for run in some.runs]
        rows = self._packed(
            "uuid",
            f"""SELECT DISTINCT r.uuid AS uuid
                FROM (SELECT json_extract(value, '$[0]') AS uuid, json_extract(value, '$[1]') AS first,
                             json_extract(value, '$[2]') AS count FROM json_each(?1)) AS r
                WHERE EXISTS (
                    SELECT 1 FROM aggregate AS g CROSS JOIN object AS o
                        ON o.id >= g.first_object + r.first AND o.id < g.first_object + r.first + r.count
                        AND o.aggregate = g.id
                    WHERE g.uuid = r.uuid AND {ACTIVE})""",
            (json.dumps(runs),),
        )
        return set(self._made(values.id_of, rows))

    def held_csns(self, volume: bytes) -> dict[bytes, int]:
        """Every aggregate of which a volume holds something, with the commit that last changed that copy.

        What the volume's directory should know; small enough to compare at every opening.
        """
        columns = self._columns(
            "uuid, csn",
            """SELECT g.uuid AS uuid, c.csn AS csn
               FROM (SELECT DISTINCT aggregate, pool FROM placement
                     WHERE volume = (SELECT id FROM volume WHERE uuid = ?)) AS l
               CROSS JOIN copy AS c ON c.aggregate = l.aggregate AND c.pool = l.pool
               JOIN aggregate AS g ON g.id = l.aggregate""",
            (volume.hex(),),
        )
        ((ids, csns),) = self._made(values.counted_ids, [columns])
        return dict(zip(ids, csns, strict=True))

    def held_spans(self, volume: bytes, aggregates: Iterable[bytes]) -> Iterator[HeldSpans]:
        """What the directory of a volume should say of these aggregates, in their order: all that the volume holds of each."""
        ids = iter(aggregates)
        while some := list(islice(ids, MOST_AGGREGATES)):
            yield from self._held(volume, some)

    def _held(self, volume: bytes, aggregates: Sequence[bytes]) -> list[HeldSpans]:
        asked = _listed(aggregates), volume.hex()
        on_it = _ON_VOLUME.format("?2")
        with self._moment():
            places = self._places(f"AND {on_it}", asked)
            heads = self._packed(
                "turn, number, pool, uuid, tx, node, present, kind, attempt, csn, at, erased, committed, version, objects",
                f"""SELECT t.key AS turn, c.pool AS number, p.name AS pool, g.uuid AS uuid, g.tx AS tx, n.name AS node,
                           c.present AS present, g.kind AS kind, g.attempt AS attempt, c.csn AS csn, g.at AS at,
                           coalesce(e.members, '[]') AS erased, g.csn AS committed, g.first_object AS version,
                           g.objects AS objects
                    {_THESE} CROSS JOIN copy AS c ON c.aggregate = g.id AND EXISTS (
                        SELECT 1 FROM placement AS l WHERE l.aggregate = g.id AND l.pool = c.pool AND {on_it})
                    JOIN node AS n ON n.id = g.node JOIN pool AS p ON p.id = c.pool
                    LEFT JOIN erased AS e ON e.aggregate = g.id""",
                asked,
            )
        made = self._made(
            lambda turn, number, pool, uuid, *rest: (
                *values.numbers(turn, number),
                values.held_spans(places.pop((values.id_of(uuid), pool)), uuid, *rest),
            ),
            heads,
        )
        if places:
            raise CatalogError(
                self.path, "contradicts itself: a span without its aggregate or node"
            )
        return [held for _, _, held in sorted(made, key=lambda row: row[:2])]

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
        listed = None if among is None else _listed(among)
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


def _listed(aggregates: Iterable[bytes]) -> str:
    return json.dumps([aggregate.hex() for aggregate in aggregates])


def _groups(entries: Iterable[AggregateEntry]) -> Iterator[list[AggregateEntry]]:
    """As many as may be asked for at once."""
    group: list[AggregateEntry] = []
    objects = 0
    for entry in entries:
        if group and (len(group) == MOST_AGGREGATES or objects + entry.objects > MOST_OBJECTS):
            yield group
            group, objects = [], 0
        group.append(entry)
        objects += entry.objects
    if group:
        yield group
