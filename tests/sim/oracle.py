"""Says whether a store is as it should be: an independent model, which knows the rules and the files, and none of the product's code.

The numbers V1 … V17 are those of docs/reliability.md. Bytes are read with `os.pread`, the catalog with SQL, digests come from
python-xxhash; what the model expects it knows from what clients were told, not from the store.
"""

from __future__ import annotations

import enum
import itertools
import os
import sqlite3
from collections import defaultdict
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import xxhash

from tests import independent_reader
from tests.sim import holdings
from tests.sim.holdings import HEAD, Rot, members_of, numbers_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tests.sim.plan import Site

HOST_ERRNOS = frozenset({12, 14, 23, 24})  # ENOMEM, EFAULT, ENFILE, EMFILE: no pool is to blame
KINDS = ("backup", "archive", "space-managed")
RETRIES = 2  # plain retries of a transaction
DELETE = 2  # op of a directory record
MOST_KNOWN = 1000  # directories that are remembered


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
        where: aggregate and member of each object, once it was seen.
        gone: which of the objects were deleted since.
    """

    node: str
    kind: str
    objects: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    fate: Fate = Fate.ABSENT
    where: list[tuple[str, int]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)

    def anew(self) -> None:
        """Another attempt."""
        self.objects, self.where, self.gone = [], [], set()

    def copy(self) -> Sent:
        """The same, to go on from."""
        return replace(self, objects=[*self.objects], where=[*self.where], gone=set(self.gone))


# A deletion that nobody knows the end of: transaction and number of each object.
Doubt = frozenset[tuple[str, int]]


@dataclass(slots=True)
class Known:
    """What is known of a store without asking it.

    Attributes:
        history: every transaction that was sent, by its id in hexadecimal digits.
        doubts: deletions that are done wholly or not at all.
        rot: where bytes have changed on the medium.
        hurt: pools that have lost something; only of these a primary may lack members.
    """

    history: dict[str, Sent] = field(default_factory=dict)
    doubts: list[Doubt] = field(default_factory=list)
    rot: Rot = field(default_factory=dict)
    hurt: set[str] = field(default_factory=set)

    def copy(self) -> Known:
        """The same, to go on from."""
        history = {tx: sent.copy() for tx, sent in self.history.items()}
        rot = {path: [*regions] for path, regions in self.rot.items()}
        return Known(history, [*self.doubts], rot, set(self.hurt))


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
    """What the catalog says, read with plain SQL; nobody changes it. Objects are numbered as members of their aggregates.

    `dead`: the regions of aggregates of which nothing is left.
    """

    aggregates: dict[int, dict[str, Any]]
    objects: dict[int, dict[int, dict[str, Any]]]
    erased: dict[int, set[int]]
    dead: list[dict[str, Any]]
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
            objects: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
            for row in rows(
                """SELECT o.*, o.id - g.first_object AS member FROM object AS o JOIN aggregate AS g ON g.id = o.aggregate
                   ORDER BY o.id"""
            ):
                objects[row["aggregate"]][row["member"]] = row
            places: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
            for row in rows(
                """SELECT l.*, p.name AS pool_name, v.path FROM placement AS l JOIN pool AS p ON p.id = l.pool
                   JOIN volume AS v ON v.id = l.volume ORDER BY l.data_start, l.span"""
            ):
                places[row["aggregate"], row["pool_name"]].append(row)
            aggregates = rows(
                """SELECT g.*, n.name AS node_name, p.name AS primary_pool FROM aggregate AS g
                   JOIN node AS n ON n.id = g.node JOIN pool AS p ON p.id = g.pool
                   WHERE g.id NOT IN (SELECT aggregate FROM deletion) ORDER BY g.id"""
            )
            gaps = rows(
                "SELECT g.*, p.name AS pool_name FROM gap AS g JOIN pool AS p ON p.id = g.pool"
            )
            return cls(
                {row["id"]: row for row in aggregates},
                dict(objects),
                {
                    row["aggregate"]: numbers_of(row["members"])
                    for row in rows("SELECT * FROM erased")
                },
                rows(
                    """SELECT d.*, v.path, g.uuid FROM dead_region AS d JOIN volume AS v ON v.id = d.volume
                       JOIN aggregate AS g ON g.id = d.aggregate"""
                ),
                rows(
                    "SELECT c.*, p.name AS pool_name FROM copy AS c JOIN pool AS p ON p.id = c.pool"
                ),
                dict(places),
                {(gap["aggregate"], gap["pool_name"]): gap for gap in gaps},
                rows("SELECT * FROM volume"),
                db.execute("SELECT csn FROM store").fetchone()[0],
            )
        finally:
            db.execute("COMMIT")

    def members(self, aggregate: int) -> dict[int, dict[str, Any]]:
        """Those of an aggregate that are there."""
        return self.objects.get(aggregate, {})

    def spans(self, copy: dict[str, Any]) -> list[dict[str, Any]]:
        """Where a copy lies."""
        return self.places.get((copy["aggregate"], copy["pool_name"]), [])

    def live(self) -> dict[str, list[tuple[int, int]]]:
        """Regions that committed spans keep, and those that deleted ones still do, by volume, sorted."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for place in itertools.chain(*self.places.values(), self.dead):
            found[place["path"]].append((place["offset"], place["offset"] + place["length"]))
        return {path: sorted(regions) for path, regions in found.items()}

    def holders(self) -> dict[int, dict[str, set[int]]]:
        """By aggregate and pool: which of the members that are there it holds."""
        found: dict[int, dict[str, set[int]]] = {number: {} for number in self.aggregates}
        for copy in self.copies:
            number = copy["aggregate"]
            found[number][copy["pool_name"]] = members_of(copy["present"], self, number)
        return found

    def unheld(self) -> list[tuple[str, int, dict[str, Any]]]:
        """Transaction, number of the member and row of what no pool holds any more."""
        holders = self.holders()
        return [
            (self.aggregates[number]["tx"], member, row)
            for number, rows in self.objects.items()
            for member, row in rows.items()
            if not any(member in held for held in holders[number].values())
        ]


def audit(site: Site, books: Books, known: Known, *, decided: bool, proved: set[Any]) -> None:
    """V1 to V5 and V7 of an open or closed store, while nobody writes.

    `proved`: copies whose bytes were looked at before and that nothing has touched since; those that are looked at now join them.
    """
    check_visible(books, known, decided=decided)
    check_gaps(site, books, known.hurt)
    check_regions(books)
    check_bytes(books, known.rot, proved)


def check_visible(books: Books, known: Known, *, decided: bool) -> None:
    """V2 and V3: what is there was promised, what was promised is there, and transactions and deletions are whole.

    `decided`: the store was opened anew, so from now on it is known what nobody knew.
    """
    history = known.history
    found: dict[str, dict[tuple[str, int], tuple[bytes, int, bytes]]] = defaultdict(dict)
    for number, aggregate in books.aggregates.items():
        sent = history.get(aggregate["tx"])
        demand(sent is not None, "V2", f"transaction {aggregate['tx']} was never sent")
        assert sent is not None
        who = (aggregate["node_name"], KINDS[aggregate["kind"]])
        demand(who == (sent.node, sent.kind), "V3", f"{aggregate['tx']} belongs to {who}")
        rows, erased = books.members(number), books.erased.get(number, set())
        whole = rows.keys() | erased == set(range(aggregate["objects"]))
        demand(whole and not rows.keys() & erased, "V3", "members are missing")
        for member, row in rows.items():
            place = aggregate["uuid"], member
            found[aggregate["tx"]][place] = (row["name"], row["length"], row["digest"])
    undecided = _settle_doubts(known, found, decided=decided)
    for tx, sent in history.items():
        there = found.get(tx, {})
        if sent.fate is Fate.ABSENT or not sent.objects:
            demand(not there, "V2", f"{tx} was given up and is there")
        elif sent.fate is Fate.STORED or there:
            learn(sent, there)
            gone = sent.gone | {number for other, number in undecided if other == tx}
            numbered = enumerate(zip(sent.where, sent.objects, strict=True))
            due = dict(known for number, known in numbered if number not in gone)
            back = [sent.where[number] for number in gone if sent.where[number] in there]
            demand(not back, "V2", f"{tx}: what was deleted is there again: {back}")
            what = f"{tx}: {len(there)} of {len(due)} objects, or other ones"
            demand(there == due, "V3", what)
            sent.fate = Fate.STORED if decided else sent.fate
        elif decided:
            sent.fate = Fate.ABSENT


def learn(sent: Sent, there: Mapping[tuple[str, int], tuple[bytes, int, bytes]]) -> None:
    """Where the objects of a transaction are, seen for the first time: nothing of it can have been deleted yet."""
    if not sent.where:
        what = f"{len(there)} of {len(sent.objects)} objects, or other ones"
        demand(list(there.values()) == sent.objects, "V3", what)
        sent.where = list(there)


def _settle_doubts(
    known: Known, found: Mapping[str, Mapping[tuple[str, int], Any]], *, decided: bool
) -> set[tuple[str, int]]:
    """What is gone of what nobody knows: of each deletion all or nothing."""
    gone: set[tuple[str, int]] = set()
    for doubt in known.doubts:
        there = [
            known.history[tx].where[number] in found.get(tx, ()) for tx, number in sorted(doubt)
        ]
        demand(
            all(there) or not any(there),
            "V3",
            f"{sum(there)} of {len(there)} are left of a deletion",
        )
        if not any(there):
            gone |= doubt
    if decided:
        for tx, number in gone:
            known.history[tx].gone.add(number)
        known.doubts.clear()
    return gone


def check_gaps(site: Site, books: Books, hurt: Collection[str] = ()) -> None:
    """V4: what the rules demand less what is held, exactly. A primary lacks nothing that it has not lost (`hurt`)."""
    newest: dict[tuple[int, int, bytes], int] = {}
    for rows in books.objects.values():
        for row in rows.values():
            key = (row["node"], row["kind"], row["name"])
            newest[key] = max(newest.get(key, 0), row["id"])
    holders = books.holders()
    for number, aggregate in books.aggregates.items():
        primary = aggregate["primary_pool"]
        everything = set(books.members(number))
        rules = required(site, aggregate["node_name"], KINDS[aggregate["kind"]])
        for pool in site.pools:
            here = holders[number].get(pool, set())
            gap = books.gaps.get((number, pool))
            noted = members_of(gap["missing"], books, number) if gap else set()
            due = everything - here if pool in (primary, *rules) else set()
            if pool == primary:
                demand(pool in hurt or not due, "V4", f"{primary} lacks members")
            else:
                demand(pool in rules or not here, "V4", f"{pool} holds what no rule sends there")
            if pool[0] == "A":  # superseded versions need not be there
                active = {
                    member
                    for member, row in books.members(number).items()
                    if newest[row["node"], row["kind"], row["name"]] == row["id"]
                }
                due, noted = due & active, noted & active
            elif gap:
                demand(noted, "V4", f"a gap of {pool} says nothing of aggregate {number}")
            if noted != due:
                what = (
                    f"{pool} lacks {sorted(due)} of aggregate {number}, noted are {sorted(noted)}"
                )
                raise Violation(f"V4: {what}")


def check_regions(books: Books) -> None:
    """V7: no byte of a volume belongs to two spans."""
    for path, regions in books.live().items():
        for (_, end), (start, _) in itertools.pairwise(regions):
            demand(end <= start, "V7", f"{path}: two spans at {start}")


def check_bytes(books: Books, rot: Rot, proved: set[Any]) -> None:
    """V1 and V9: every object, from every pool that the catalog says holds it; but for what has rotted."""
    with ExitStack() as opened:
        descriptors: dict[str, int] = {}
        for copy in books.copies:
            number, pool = copy["aggregate"], copy["pool_name"]
            places = books.spans(copy)
            where = tuple(
                (p["path"], p["offset"], p["data_start"], p["data_length"]) for p in places
            )
            key = (books.aggregates[number]["uuid"], pool, copy["present"], where)
            if key in proved:
                continue
            data = bytearray(books.aggregates[number]["bytes"])
            if copy["present"] is None:
                here = [(p["data_start"], p["data_start"] + p["data_length"]) for p in places]
                holes = holdings.less([(0, len(data))], here)
                what = f"{pool} says that it has all of aggregate {number}, and has not {holes}"
                demand(not holes, "V16", what)
            for place in sorted(places, key=lambda place: place["span"]):
                at, length, path = place["data_start"], place["data_length"], place["path"]
                if path not in descriptors:
                    descriptors[path] = os.open(path, os.O_RDONLY)
                    opened.callback(os.close, descriptors[path])
                piece = os.pread(descriptors[path], length, place["offset"] + HEAD)
                data[at : at + length] = piece
            ill, _ = holdings.damaged(books, copy, rot) if rot else (set(), set())
            for member in sorted(members_of(copy["present"], books, number)):
                row = books.objects[number][member]
                whole = data[row["start"] : row["start"] + row["length"]]
                if xxhash.xxh3_128_digest(whole) != row["digest"] and member not in ill:
                    what = f"{pool} holds other bytes of {row['name']!r}, version {row['id']}"
                    raise Violation(f"V1: {what}")
            proved.add(key)


def check_catalog(path: str) -> None:
    """V14: the database is whole."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        demand(db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], "V14", "integrity")
        demand(db.execute("PRAGMA foreign_key_check").fetchall() == [], "V14", "foreign keys")


class _Media(independent_reader.Volume):
    """A volume by the other reader, which reads a directory of the same bytes once: cases of one loop differ in few."""

    known: ClassVar[dict[tuple[object, ...], dict[bytes, dict[str, Any]]]] = {}

    def directory(self) -> dict[bytes, dict[str, Any]]:
        info = self.info
        granule, half = info["granule"], info["directory"]
        digest = xxhash.xxh3_128_digest(self.read(granule, 2 * half))
        key = (granule, half, info["store"], info["volume"], info["epoch"], digest)
        if key not in self.known:
            if len(self.known) > MOST_KNOWN:
                self.known.clear()
            self.known[key] = super().directory()
        return self.known[key]


def check_media(books: Books, paths: Collection[str], rot: Rot, proved: set[Any]) -> None:
    """V16 by another reader: after a clean end each directory names just what the catalog says, at the same places.

    `proved`: spans that were read before, as with `audit`. What is deleted and still keeps its region may be named or not; of what has
    left a volume a record without spans may be there.
    """
    due_of: dict[str, dict[str, set[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(set))
    erased, objects = {}, {}
    for (number, _), places in books.places.items():
        uuid = books.aggregates[number]["uuid"]
        objects[uuid] = books.aggregates[number]["objects"]
        erased[uuid] = books.erased.get(number, set())
        for p in places:
            due_of[p["path"]][uuid].add((p["span"], p["offset"], p["used"]))
    dead = {(region["path"], region["uuid"]) for region in books.dead}
    for volume in books.volumes:
        path = volume["path"]
        if path not in paths:
            continue
        with open(path, "rb", buffering=0) as file:
            media = _Media(file)
            records = {
                aggregate.hex(): record
                for aggregate, record in media.records.items()
                if record["op"] != DELETE
                and record["spans"]
                and (path, aggregate.hex()) not in dead
            }
            found = {
                aggregate: {(s["number"], s["offset"], s["used"]) for s in record["spans"]}
                for aggregate, record in records.items()
            }
            demand(found == due_of[path], "V16", f"{path}: its directory names other spans")
            for aggregate, record in records.items():
                counts = {span["objects"] for span in record["spans"]}
                what = (
                    f"{path}: its directory says that {aggregate} was stored with {counts} members"
                )
                demand(counts == {objects[aggregate]}, "V16", what)
                gone = {first + n for first, count in record["deleted"] for n in range(count)}
                what = f"{path}: deleted are {erased[aggregate]}, its directory says {gone}"
                demand(gone == erased[aggregate], "V16", what)
                for span in record["spans"]:
                    key = (path, record["aggregate"], span["offset"], span["used"])
                    begin, end = span["offset"], span["offset"] + span["used"]
                    if key not in proved and not holdings.overlaps(rot, path, begin, end):
                        media.span(span)  # header, footer and every sum
                        proved.add(key)


def comparable(books: Books, *, without: Collection[str] = ()) -> list[Any]:
    """What two catalogs of the same store must agree on; but for what these pools hold."""
    fields = ("uuid", "tx", "csn", "node_name", "kind", "primary_pool", "objects")
    return [
        [
            (*(aggregate[name] for name in fields), _end_of(books, number))
            for number, aggregate in books.aggregates.items()
        ],
        [
            (member, row["name"], row["start"], row["length"], row["digest"])
            for number in books.aggregates
            for member, row in books.members(number).items()
        ],
        [sorted(books.erased.get(number, ())) for number in books.aggregates],
        sorted(
            (books.aggregates[number]["uuid"], pool, sorted(held))
            for number, pools in books.holders().items()
            for pool, held in pools.items()
            if held and pool not in without
        ),
        sorted(
            (books.aggregates[number]["uuid"], pool, p["span"], p["path"], p["offset"], p["used"])
            for (number, pool), places in books.places.items()
            for p in places
            if pool not in without
        ),
    ]


def _end_of(books: Books, aggregate: int) -> int:
    """Of its data. If its last members were deleted, and every copy was made since, nobody knows any more how long these were."""
    rows = books.members(aggregate)
    if books.aggregates[aggregate]["objects"] - 1 in rows:
        return int(books.aggregates[aggregate]["bytes"])
    return max((row["start"] + row["length"] for row in rows.values()), default=0)
