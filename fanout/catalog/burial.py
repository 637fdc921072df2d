"""What is forgotten once the volumes have been told of deletions: regions, copies, aggregates. Inside a transaction of the door's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

    # Volume, and offset on it.
    Region = tuple[str, int]

_LISTED = """
    SELECT {columns} FROM json_each(?) AS t
    JOIN volume AS v ON v.uuid = json_extract(t.value, '$[0]')
    JOIN aggregate AS g ON g.uuid = json_extract(t.value, '$[1]')"""

# A copy with a living member keeps its spans, whatever the caller says.
_DROP_SPANS = f"""
DELETE FROM placement WHERE (aggregate, pool, volume) IN ({_LISTED.format(columns="g.id, v.pool, v.id")})
AND NOT EXISTS (
    SELECT 1 FROM copy AS c JOIN aggregate AS g ON g.id = c.aggregate
    JOIN json_each(coalesce(c.present, json_array(json_array(0, g.objects)))) AS r
    JOIN object AS o
      ON o.id >= g.first_object + json_extract(r.value, '$[0]')
     AND o.id < g.first_object + json_extract(r.value, '$[0]') + json_extract(r.value, '$[1]')
     AND o.aggregate = g.id
    WHERE c.aggregate = placement.aggregate AND c.pool = placement.pool)
RETURNING (SELECT v.uuid FROM volume AS v WHERE v.id = placement.volume), offset"""

_DROP_COPIES = f"""
DELETE FROM copy WHERE (aggregate, pool) IN ({_LISTED.format(columns="g.id, v.pool")})
AND NOT EXISTS (SELECT 1 FROM placement AS l WHERE l.aggregate = copy.aggregate AND l.pool = copy.pool)"""

# Aggregates of which no copy is left and no member that anybody could name: a catalog that was made without a volume had counted more.
_NAMELESS = f"""
{_LISTED.format(columns="DISTINCT g.id")}
WHERE NOT EXISTS (SELECT 1 FROM copy AS c WHERE c.aggregate = g.id)
AND NOT EXISTS (SELECT 1 FROM object AS o WHERE o.id >= g.first_object AND o.id < g.first_object + g.objects AND o.aggregate = g.id)"""

_DROP_DEAD = f"""
DELETE FROM dead_region WHERE (volume, aggregate) IN ({_LISTED.format(columns="v.id, g.id")})
RETURNING (SELECT v.uuid FROM volume AS v WHERE v.id = dead_region.volume), offset"""

_DROP_DELETIONS = """
DELETE FROM deletion
WHERE kept = 0 AND NOT EXISTS (SELECT 1 FROM dead_region AS d WHERE d.aggregate = deletion.aggregate)
RETURNING aggregate, (SELECT g.uuid FROM aggregate AS g WHERE g.id = deletion.aggregate)"""


def pairs(aggregates: Mapping[bytes, Iterable[bytes]]) -> str:
    """Aggregates by volume, as the statements take them."""
    return json.dumps([[v.hex(), one.hex()] for v, those in aggregates.items() for one in those])


def drop_spent(db: sqlite3.Connection, listed: str) -> list[Region]:
    """The spans of spent copies; then such copies as have none left, and aggregates with nothing else."""
    regions = db.execute(_DROP_SPANS, (listed,)).fetchall()
    db.execute(_DROP_COPIES, (listed,))
    nameless = json.dumps([number for (number,) in db.execute(_NAMELESS, (listed,))])
    for table, column in (("gap", "aggregate"), ("erased", "aggregate"), ("aggregate", "id")):
        db.execute(
            f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))", (nameless,)
        )
    return regions


def drop_dead(db: sqlite3.Connection, listed: str) -> list[Region]:
    """The regions of aggregates of which nothing is left."""
    return db.execute(_DROP_DEAD, (listed,)).fetchall()


def drop_aggregates(db: sqlite3.Connection) -> list[str]:
    """Aggregates of which nothing is left, and that no directory names any more; returns their ids."""
    gone = db.execute(_DROP_DELETIONS).fetchall()
    ids = json.dumps([number for number, _ in gone])
    db.execute("DELETE FROM aggregate WHERE id IN (SELECT value FROM json_each(?))", (ids,))
    return [uuid for _, uuid in gone]
