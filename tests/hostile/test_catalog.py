"""A catalog file that somebody changed: bytes, schema, rows.

What could break: a crash, a plain error of sqlite3 or of Python, code in the file that runs when we open it (triggers, views), an endless
question, an allocation as large as somebody's number.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from fanout.catalog import Catalog, CatalogReader, NewGap
from fanout.errors import CatalogError, CatalogVersion
from fanout.types import ObjectKind
from tests.catalog.conftest import Sample

if TYPE_CHECKING:
    import random
    from pathlib import Path

LIMIT = 20.0  # seconds for everything that can be asked of a catalog of some 100 KiB


@pytest.fixture
def sample(tmp_path: Path, rng: random.Random) -> Sample:
    """A small catalog with something in every table."""
    made = Sample(tmp_path / "catalog.db", rng.getrandbits(32))
    made.create()
    with made.open() as catalog:
        for n in range(4):
            gap = [] if n else [NewGap("COPYPOOL1", "was removed", 5)]
            pools = ("DISKPOOL", "COPYPOOL1")[: 2 if n else 1]
            catalog.commit([made.commit([b"a", b"b%d" % n], pools=pools, gaps=gap)])
        catalog.fence([(made.id(), 1)])
    return made


def ask_everything(path: Path, *, write: bool = True) -> None:
    """All that can be asked; then open it for writing."""
    began = time.monotonic()
    with CatalogReader(path) as reader:
        reader.store()
        pools, volumes = reader.pools(), reader.volumes()
        reader.usage()
        for volume in volumes:
            reader.live_regions(volume.volume)
            held = reader.held_csns(volume.volume)
            list(reader.held_spans(volume.volume, held))
        for entry in reader.aggregates():
            reader.committed(entry.transaction)
            for member in reader.members(entry.aggregate):
                assert member.start >= 0
            for copy in reader.copies(entry.aggregate):
                copy.holds(0)
                assert copy.present is None or len(copy.present.runs) < 1000
        for pool in pools:
            for active in (False, True):
                list(reader.lacking("DISKPOOL", pool.name, active_only=active))
            reader.held_on(pool.name, active_only=True)
        reader.find("N1", b"a", kind=ObjectKind.BACKUP)
        for found in reader.objects():
            assert found.length >= 0
        reader.gaps(include_empty=True)
        reader.occupancy()
        reader.verify()
    if write:
        with Catalog.open(path) as catalog:
            catalog.checkpoint()
    assert time.monotonic() - began < LIMIT


def refused_or_fine(path: Path, *, schema: bool = True) -> bool:
    """True: refused, by a typed error that names the file. `schema`: whether that may be the reason."""
    try:
        ask_everything(path)
    except CatalogError as error:
        said = str(error)
    else:
        return False
    assert str(path) in said
    assert schema or "schema" not in said
    return True


# ---- bytes -----------------------------------------------------------------------------------------------


def test_every_byte_of_the_header(sample: Sample) -> None:
    """The first page says what the file is: sizes, versions, counts, all of them lies once."""
    data = sample.path.read_bytes()
    refused = 0
    for at in range(100):
        changed = bytearray(data)
        changed[at] ^= 0xFF
        sample.path.write_bytes(changed)
        refused += refused_or_fine(sample.path)
    assert refused > 30


def test_flipped_bytes(sample: Sample, rng: random.Random) -> None:
    """Anywhere, one or many: whatever SQLite makes of it reaches nobody as something else than a `CatalogError`."""
    data = sample.path.read_bytes()
    refused = 0
    for _ in range(60):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 3, 40))):
            at = rng.randrange(len(data))
            changed[at : at + 1] = rng.randbytes(1)
        sample.path.write_bytes(changed)
        refused += refused_or_fine(sample.path)
    assert refused > 2


def test_cut_off(sample: Sample) -> None:
    """At the ends of pages and inside them; empty; zeros; ones; noise."""
    data = sample.path.read_bytes()
    lengths = {*range(0, len(data), 4096), *range(120), len(data) - 4096 - 1}
    for length in sorted(lengths):
        sample.path.write_bytes(data[:length])
        assert refused_or_fine(sample.path), length
    for junk in (bytes(65536), b"\xff" * 65536, os.urandom(65536)):
        sample.path.write_bytes(junk)
        assert refused_or_fine(sample.path)


def test_a_planted_log(sample: Sample) -> None:
    """A write-ahead log or an index of one that is noise, beside a good catalog: ignored, or refused."""
    for suffix in ("-wal", "-shm"):
        for size in (0, 31, 4096, 1 << 20):
            planted = sample.path.with_name(f"catalog.db{suffix}")
            planted.write_bytes(os.urandom(size))
            refused_or_fine(sample.path)
            for name in ("catalog.db-wal", "catalog.db-shm"):
                sample.path.with_name(name).unlink(missing_ok=True)
    assert not refused_or_fine(sample.path)


# ---- schema ----------------------------------------------------------------------------------------------

ENDLESS = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
SCHEMAS = {
    "a trigger": "CREATE TRIGGER t AFTER UPDATE ON volume BEGIN DELETE FROM copy; END",
    "a trigger on commits": "CREATE TRIGGER t AFTER INSERT ON attempt BEGIN DELETE FROM object; END",
    "a view": "CREATE VIEW v AS SELECT 1",
    "a table": "CREATE TABLE more (x)",
    "an index": "CREATE INDEX i ON object (length)",
    "an endless view for a table": f"ALTER TABLE pool RENAME TO pool2; CREATE VIEW pool AS {ENDLESS} SELECT x AS id, 'a' AS uuid, 'b' AS name, 'c' AS kind FROM n",
    "the store as an endless view": f"ALTER TABLE store RENAME TO s; CREATE VIEW store AS {ENDLESS} SELECT x AS uuid, x AS created FROM n",
    "no trigger": "DROP TRIGGER intake_commit",
    "another trigger": "DROP TRIGGER intake_commit; CREATE TRIGGER intake_commit INSTEAD OF INSERT ON intake BEGIN SELECT 1; END",
    "no place index": "DROP INDEX placement_place",
    "no tables": "DROP TABLE gap",
    "one column more": "ALTER TABLE volume ADD COLUMN more TEXT",
}


@pytest.mark.parametrize("what", SCHEMAS)
def test_a_schema_that_is_not_ours(sample: Sample, what: str) -> None:
    """A schema is code: it is compared before anything of it can run."""
    with closing(sqlite3.connect(sample.path)) as db:
        db.executescript(SCHEMAS[what])
    before = sample.path.read_bytes()
    for opening in (CatalogReader, Catalog.open):
        began = time.monotonic()
        with pytest.raises(CatalogVersion, match="its schema is not fanout's"):
            opening(sample.path)
        assert time.monotonic() - began < LIMIT
    assert sample.path.read_bytes() == before


def test_statistics_are_no_schema(sample: Sample) -> None:
    """An operator's ANALYZE must not lock the store out."""
    with closing(sqlite3.connect(sample.path)) as db:
        db.execute("ANALYZE")
    ask_everything(sample.path)


# ---- rows ------------------------------------------------------------------------------------------------

WRONG = (
    *(None, -1, 0, 1, 3, 1 << 40, (1 << 63) - 1, -(1 << 63), 1.5, float("inf"), "", "x", "zz" * 16),
    *("\0", "[[0,4611686018427387904]]", "[[5,1],[0,1]]", "[1]", "{}", "[[1]]", "[null]", '["a",1]'),
    *("[" * 900 + "]" * 900, json.dumps([[n * 2, 1] for n in range(50)]), b"", b"\xff\xfe", b"a" * 2000),
)  # fmt: skip


def columns(path: Path) -> list[tuple[str, str]]:
    """Every table and column."""
    with closing(sqlite3.connect(path)) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
        return [(t, row[1]) for t in tables for row in db.execute(f"PRAGMA table_info({t})")]


def plant(path: Path, table: str, column: str, value: object) -> None:
    """Write what the schema forbids: without its checks and types, which are then put back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for pragma in ("synchronous = OFF", "journal_mode = OFF", "writable_schema = ON"):
            db.execute(f"PRAGMA {pragma}")
        (real,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        loose = real.replace(") STRICT", ")").replace("STRICT, ", "")
        write_schema(db, table, loose)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for pragma in ("foreign_keys = OFF", "ignore_check_constraints = ON", "synchronous = OFF"):
            db.execute(f"PRAGMA {pragma}")
        with suppress(sqlite3.IntegrityError):  # a key would be there twice, or is missing
            db.execute(f'UPDATE OR REPLACE {table} SET "{column}" = ?', (value,))
        db.execute("PRAGMA writable_schema = ON")
        write_schema(db, table, real)


def write_schema(db: sqlite3.Connection, table: str, sql: str) -> None:
    db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, table))


def test_rows_that_cannot_be(sample: Sample, rng: random.Random) -> None:
    """Columns of every table, with values of every kind, checks and types notwithstanding."""
    good = sample.path.read_bytes()
    refused = 0
    cases = [(*place, value) for place in columns(sample.path) for value in WRONG]
    for table, column, value in rng.sample(cases, 100):
        plant(sample.path, table, column, value)
        refused += refused_or_fine(sample.path, schema=False)
        for suffix in ("-wal", "-shm"):
            sample.path.with_name(f"catalog.db{suffix}").unlink(missing_ok=True)
        sample.path.write_bytes(good)
    assert refused > 20


def test_a_member_set_is_not_spelled_out(sample: Sample) -> None:
    """Four quintillion members in thirty bytes."""
    plant(sample.path, "copy", "present", "[[0,4611686018427387904]]")
    with CatalogReader(sample.path) as reader:
        (entry, *_) = reader.aggregates()
        (copy, *_) = reader.copies(entry.aggregate)
        assert copy.holds(4_000_000_000)
        assert not copy.holds(-1)
