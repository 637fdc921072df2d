"""Says whether a store is as it should be: an independent model, which knows the rules and the files, and none of the product's code.

The numbers V1 … V17 are those of docs/reliability.md. Bytes are read with `os.pread`, the catalog with SQL, digests come from
python-xxhash; what the model expects it knows from what clients were told, not from the store.
"""

from __future__ import annotations

import enum
import itertools
import json
import os
import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import xxhash

from tests import independent_reader

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tests.sim.plan import Site

HEAD = 4096  # bytes before a span's data: docs/on-disk-format.md
HOST_ERRNOS = frozenset({12, 14, 23, 24})  # ENOMEM, EFAULT, ENFILE, EMFILE: no pool is to blame
KINDS = ("backup", "archive", "space-managed")
RETRIES = 2  # plain retries of a transaction


class Violation(AssertionError):
    """Something that must never be."""


def demand(true: object, rule: str, what: str) -> None:
    """Raise unless it is so."""
    if not true:
        raise Violation(f"{rule}: {what}")


class Fate(enum.Enum):
    """What a client knows of a transaction."""

    ABSENT = "not stored"
    MAYBE = "nobody knows"
    STORED = "stored"


@dataclass(slots=True)
class Sent:
    """A transaction as its client remembers it.

    Attributes:
        node: the client.
        kind: of the objects.
        objects: name, length and digest of each, in order.
        fate: what the client was told.
    """

    node: str
    kind: str
    objects: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    fate: Fate = Fate.ABSENT


# ---- the rules, once more ------------------------------------------------------------------------------


def required(site: Site, node: str, kind: str) -> tuple[str, ...]:
    """The secondaries that the rules demand: copy pools, and active-data pools for backups of nodes whose domain allows them."""
    return tuple(
        pool for pool in site.secondaries if pool[0] == "C" or (kind == "backup" and node == "N1")
    )


def verdict(
    site: Site, removed: set[str], blamed: Iterable[tuple[str, int]], *, spent: int, once: bool
) -> tuple[str, set[str]]:
    """What has to follow from the failures of one attempt: the reason of the signal, and who is removed from then on.

    Args:
        site: with its rules.
        removed: so far.
        blamed: pool and errno of each failure.
        spent: plain retries before.
        once: a source was read that cannot be read again.
    """
    pools = {pool for pool, number in blamed if number not in HOST_ERRNOS}
    host = {pool for pool, number in blamed if number in HOST_ERRNOS} - pools
    guilty = {pool for pool in pools if pool in site.secondaries}
    if not site.copy_continue and any(pool[0] == "C" for pool in guilty):
        return "copy_continue", removed
    after = removed | guilty
    if guilty == pools | host:
        return ("source" if once else "secondary"), after
    if spent >= RETRIES:
        return "budget", after
    return ("source" if once else "primary" if pools - guilty else "host"), after


# ---- the store -----------------------------------------------------------------------------------------


def connect(path: str) -> sqlite3.Connection:
    """A way to look: it changes neither the database nor its log."""
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)


@dataclass(slots=True)
class Books:
    """What the catalog says, read with plain SQL."""

    aggregates: dict[int, dict[str, Any]]
    objects: dict[int, list[dict[str, Any]]]
    copies: list[dict[str, Any]]
    places: dict[tuple[int, str], list[dict[str, Any]]]
    gaps: dict[tuple[int, str], dict[str, Any]]
    volumes: list[dict[str, Any]]
    csn: int

    @classmethod
    def of(cls, path: str) -> Books:
        """Of a catalog that nobody has open."""
        with closing(connect(path)) as db:
            return cls.read(db)

    @classmethod
    def read(cls, db: sqlite3.Connection) -> Books:
        """In one snapshot."""

        def rows(sql: str) -> list[dict[str, Any]]:
            cursor = db.execute(sql)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=False)) for row in cursor]

        db.execute("BEGIN")
        try:
            objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for row in rows("SELECT * FROM object ORDER BY id"):
                objects[row["aggregate"]].append(row)
            places: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
            for row in rows(
                """SELECT l.*, p.name AS pool_name, v.path FROM placement AS l JOIN pool AS p ON p.id = l.pool
                   JOIN volume AS v ON v.id = l.volume ORDER BY l.data_start, l.span"""
            ):
                places[row["aggregate"], row["pool_name"]].append(row)
            aggregates = rows(
                """SELECT g.*, n.name AS node_name, p.name AS primary_pool FROM aggregate AS g
                   JOIN node AS n ON n.id = g.node JOIN pool AS p ON p.id = g.pool ORDER BY g.id"""
            )
            gaps = rows(
                "SELECT g.*, p.name AS pool_name FROM gap AS g JOIN pool AS p ON p.id = g.pool"
            )
            return cls(
                {row["id"]: row for row in aggregates},
                objects,
                rows(
                    "SELECT c.*, p.name AS pool_name FROM copy AS c JOIN pool AS p ON p.id = c.pool"
                ),
                places,
                {(gap["aggregate"], gap["pool_name"]): gap for gap in gaps},
                rows("SELECT * FROM volume"),
                db.execute("SELECT csn FROM store").fetchone()[0],
            )
        finally:
            db.execute("COMMIT")

    def live(self) -> dict[str, list[tuple[int, int]]]:
        """Regions that committed spans keep, by volume, sorted."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for places in self.places.values():
            for place in places:
                found[place["path"]].append((place["offset"], place["offset"] + place["length"]))
        return {path: sorted(regions) for path, regions in found.items()}


def audit(
    site: Site, books: Books, history: Mapping[str, Sent], *, decided: bool, proved: set[Any]
) -> None:
    """V1 to V5 and V7 of an open or closed store, while nobody writes.

    `proved`: copies whose bytes were looked at before and that nothing has touched since; those that are looked at now join them.
    """
    check_visible(books, history, decided=decided)
    check_gaps(site, books)
    check_regions(books)
    check_bytes(books, proved)


def check_visible(books: Books, history: Mapping[str, Sent], *, decided: bool) -> None:
    """V2 and V3: what is there was promised, what was promised is there, and transactions are whole.

    `decided`: the store was opened anew, so from now on it is known what nobody knew.
    """
    found: dict[str, list[tuple[bytes, int, bytes]]] = defaultdict(list)
    for number, aggregate in books.aggregates.items():
        sent = history.get(aggregate["tx"])
        demand(sent is not None, "V2", f"transaction {aggregate['tx']} was never sent")
        assert sent is not None
        who = (aggregate["node_name"], KINDS[aggregate["kind"]])
        demand(who == (sent.node, sent.kind), "V3", f"{aggregate['tx']} belongs to {who}")
        demand(len(books.objects[number]) == aggregate["objects"], "V3", "members are missing")
        for row in books.objects[number]:
            found[aggregate["tx"]].append((row["name"], row["length"], row["digest"]))
    for tx, sent in history.items():
        if sent.fate is Fate.ABSENT or not sent.objects:
            demand(not found.get(tx), "V2", f"{tx} was given up and is there")
        elif sent.fate is Fate.STORED or found.get(tx):
            there, due = found.get(tx, []), sent.objects
            demand(there == due, "V3", f"{tx}: {len(there)} of {len(due)} objects, or other ones")
            sent.fate = Fate.STORED if decided else sent.fate
        elif decided:
            sent.fate = Fate.ABSENT


def check_gaps(site: Site, books: Books) -> None:
    """V4: what the rules demand less what is held, exactly."""
    newest: dict[tuple[int, int, bytes], int] = {}
    for rows in books.objects.values():
        for row in rows:
            key = (row["node"], row["kind"], row["name"])
            newest[key] = max(newest.get(key, 0), row["id"])
    held = {
        (copy["aggregate"], copy["pool_name"]): members_of(
            copy["present"], books, copy["aggregate"]
        )
        for copy in books.copies
    }
    for number, aggregate in books.aggregates.items():
        primary = aggregate["primary_pool"]
        everything = set(range(aggregate["objects"]))
        demand(held.get((number, primary)) == everything, "V4", f"{primary} lacks members")
        rules = required(site, aggregate["node_name"], KINDS[aggregate["kind"]])
        for pool in {*site.pools} - {primary}:
            here = held.get((number, pool), set())
            gap = books.gaps.get((number, pool))
            noted = members_of(gap["missing"], books, number) if gap else set()
            due = everything - here if pool in rules else set()
            if pool[0] == "A":  # superseded versions need not be there
                active = {
                    index
                    for index, row in enumerate(books.objects[number])
                    if newest[row["node"], row["kind"], row["name"]] == row["id"]
                }
                due, noted = due & active, noted & active
            demand(pool in rules or not here, "V4", f"{pool} holds what no rule sends there")
            what = f"{pool} lacks {sorted(due)} of aggregate {number}, noted are {sorted(noted)}"
            demand(noted == due, "V4", what)


def members_of(text: str | None, books: Books, aggregate: int) -> set[int]:
    """Members that a copy row or a gap row names."""
    if text is None:
        return set(range(books.aggregates[aggregate]["objects"]))
    return {first + n for first, count in json.loads(text) for n in range(count)}


def check_regions(books: Books) -> None:
    """V7: no byte of a volume belongs to two spans."""
    for path, regions in books.live().items():
        for (_, end), (start, _) in itertools.pairwise(regions):
            demand(end <= start, "V7", f"{path}: two spans at {start}")


def check_bytes(books: Books, proved: set[Any]) -> None:
    """V1 and V9: every object, from every pool that the catalog says holds it."""
    descriptors = {volume["path"]: os.open(volume["path"], os.O_RDONLY) for volume in books.volumes}
    try:
        for copy in books.copies:
            number, pool = copy["aggregate"], copy["pool_name"]
            places = books.places[number, pool]
            where = tuple(
                (p["path"], p["offset"], p["data_start"], p["data_length"]) for p in places
            )
            key = (books.aggregates[number]["uuid"], pool, copy["present"], where)
            if key in proved:
                continue
            data = bytearray(books.aggregates[number]["bytes"])
            for place in places:
                at, length = place["data_start"], place["data_length"]
                piece = os.pread(descriptors[place["path"]], length, place["offset"] + HEAD)
                data[at : at + length] = piece
            for member in sorted(members_of(copy["present"], books, number)):
                row = books.objects[number][member]
                whole = data[row["start"] : row["start"] + row["length"]]
                good = xxhash.xxh3_128_digest(whole) == row["digest"]
                demand(
                    good, "V1", f"{pool} holds other bytes of {row['name']!r}, version {row['id']}"
                )
            proved.add(key)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def check_catalog(path: str) -> None:
    """V14: the database is whole."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        demand(db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], "V14", "integrity")
        demand(db.execute("PRAGMA foreign_key_check").fetchall() == [], "V14", "foreign keys")


def check_media(books: Books, paths: Collection[str], proved: set[Any]) -> None:
    """V16 by another reader: after a clean end each directory names just what the catalog says, at the same places.

    `proved`: spans that were read before, as with `audit`.
    """
    due_of: dict[str, dict[str, set[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(set))
    for (number, _), places in books.places.items():
        uuid = books.aggregates[number]["uuid"]
        for p in places:
            due_of[p["path"]][uuid].add((p["span"], p["offset"], p["used"]))
    for volume in books.volumes:
        if volume["path"] not in paths:
            continue
        with open(volume["path"], "rb") as file:
            media = independent_reader.Volume(file)
            due = due_of[volume["path"]]
            found = {
                aggregate.hex(): {(s["number"], s["offset"], s["used"]) for s in record["spans"]}
                for aggregate, record in media.records.items()
            }
            demand(found == due, "V16", f"{volume['path']}: its directory names other spans")
            for record in media.records.values():
                for span in record["spans"]:
                    key = (volume["path"], record["aggregate"], span["offset"], span["used"])
                    if key not in proved:
                        media.span(span)  # header, footer and every sum
                        proved.add(key)


def comparable(books: Books) -> list[Any]:
    """What two catalogs of the same store must agree on."""
    return [
        [
            (
                a["uuid"],
                a["tx"],
                a["csn"],
                a["node_name"],
                a["kind"],
                a["primary_pool"],
                a["objects"],
                a["bytes"],
            )
            for a in books.aggregates.values()
        ],
        [
            (row["name"], row["start"], row["length"], row["digest"])
            for number in books.aggregates
            for row in books.objects[number]
        ],
        sorted(
            (books.aggregates[c["aggregate"]]["uuid"], c["pool_name"], c["present"] or "")
            for c in books.copies
        ),
        sorted(
            (books.aggregates[number]["uuid"], pool, p["span"], p["path"], p["offset"], p["used"])
            for (number, pool), places in books.places.items()
            for p in places
        ),
    ]
