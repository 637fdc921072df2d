"""Volumes and catalogs of every version of the format that there was stay readable; `make_fixture.py` made them.

What could break: a change of a reader that only its own writer understands. The independent reader knows nothing but the format page, so a
page that does not suffice fails here, too.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tarfile
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from fanout import check_store, rebuild_catalog, retire_volume
from fanout import format as fmt
from fanout.catalog import CatalogReader, connection
from fanout.engine import Engine
from fanout.errors import CatalogVersion
from fanout.store import Store
from tests import independent_reader
from tests.format.make_fixture import told

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent / "fixtures"
VERSIONS = sorted(path.name.split(".")[0] for path in HERE.glob("*.tar.xz"))


@pytest.fixture(params=VERSIONS)
def fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Any]]:
    """A store of an old version, unpacked, and what it holds."""
    yield tmp_path, unpack(request.param, tmp_path)
    for path in volumes(tmp_path):
        path.unlink()


def unpack(version: str, base: Path) -> Any:
    """Lay the store of a version out in a directory; returns what it holds."""
    with tarfile.open(HERE / f"{version}.tar.xz") as archive:
        for entry in archive:
            content = archive.extractfile(entry)
            assert content is not None
            (base / entry.name).parent.mkdir(exist_ok=True)
            (base / entry.name).write_bytes(content.read())
    return json.loads((HERE / f"{version}.json").read_text())


def volumes(base: Path) -> list[Path]:
    return [*base.glob("*.vol"), *base.glob("sequential/*")]


def settle(base: Path) -> None:
    """The store was moved here on purpose: paths in the catalog, kind of file system in the superblocks."""
    with closing(sqlite3.connect(base / "catalog.db")) as db:
        for number, path in db.execute("SELECT id, path FROM volume").fetchall():
            (here,) = (one for one in volumes(base) if one.name == Path(path).name)
            db.execute("UPDATE volume SET path = ? WHERE id = ?", (str(here), number))
        db.commit()
    magic = here_magic(base)
    for path in volumes(base):
        data = bytearray(path.read_bytes())
        first = fmt.decode_superblock(data, path=str(path), offset=0)
        for copy in (0, 1):
            at = first.copy_offset(copy)
            block = fmt.decode_superblock(data[at:], path=str(path), offset=at)
            data[at : at + block.granule] = fmt.encode_superblock(
                replace(block, fs_magic=magic), copy
            )
        path.write_bytes(data)


def here_magic(base: Path) -> int:
    """The kind of file system that the test runs on, as fanout sees it."""
    with Engine(memory_bytes=32 << 20) as engine:
        target = engine.open(base / "fanout.toml", read_only=True)
        try:
            return target.geometry.fs_magic
        finally:
            target.close()


def test_there_is_one_for_this_version() -> None:
    assert f"v{fmt.FORMAT_VERSION}" in VERSIONS


def test_the_independent_reader_finds_every_object(fixture: tuple[Path, Any]) -> None:
    """By docs/on-disk-format.md alone: every object of every volume, its digest made anew from the bytes."""
    base, said = fixture
    found: dict[str, list[tuple[str, str, int]]] = {}
    for path in volumes(base):
        with path.open("rb") as file:
            volume = independent_reader.Volume(file)
            pool = volume.info["pool"]
            assert [pool, volume.info["size"], volume.info["epoch"]] == said["volumes"][path.name]
            for record in volume.records.values():
                gone = {(record["aggregate"], number) for number in spelled(record["deleted"])}
                numbers = count() if record["all"] else iter(spelled(record["ranges"]))
                for span in record["spans"]:
                    read = volume.span(span)
                    for name, at, length, digest in read["fragments"]:
                        data = read["data"][at : at + length]
                        assert digest == xxhash.xxh3_128_digest(data)
                        if (record["aggregate"], next(numbers)) not in gone:
                            found.setdefault(pool, []).append((name.hex(), digest.hex(), length))
    assert set(found) == {pool for pool, _, _ in said["volumes"].values()}
    for pool, held in found.items():
        expected = {
            (one["name"], one["digest"], one["length"])
            for one in said["objects"]
            if pool in one["pools"]
        }
        assert set(held) == expected


def spelled(runs: list[tuple[int, int]]) -> list[int]:
    """The members of ranges."""
    return [number for first, size in runs for number in range(first, first + size)]


def test_a_catalog_of_version_1_learns_to_delete(tmp_path: Path) -> None:
    """It is read as it is; opened for writing it becomes one of this version, once and for all, and loses nothing."""
    said = unpack("v1", tmp_path)
    settle(tmp_path)
    path = tmp_path / "catalog.db"
    with CatalogReader(path) as catalog:
        assert (catalog.schema, catalog.waiting_bytes()) == (1, 0)
        assert told(catalog) == said
    with Store.open(tmp_path / "fanout.toml") as store:
        assert store.catalog.schema == 4
        assert told(store.catalog)["objects"] == said["objects"]
        store.delete("N2", None, keep=1)
        store.delete("N1", [b"a", b"empty"])
        left = [
            one
            for one in said["objects"]
            if one["version"] in {e.version for e in store.query_objects()}
        ]
        assert 0 < len(left) < len(said["objects"])
    assert check_store(tmp_path / "fanout.toml").ok
    rebuilt = rebuild_catalog(tmp_path / "fanout.toml", into=tmp_path / "second.db")
    with CatalogReader(rebuilt.catalog) as catalog:
        assert [one["digest"] for one in told(catalog)["objects"]] == [
            one["digest"] for one in left
        ]
    for path in volumes(tmp_path):
        path.unlink()


def test_a_catalog_of_version_2_learns_what_was_given_up(tmp_path: Path) -> None:
    """Likewise; the volumes are of this version."""
    said = unpack("v2", tmp_path)
    settle(tmp_path)
    path = tmp_path / "catalog.db"
    with CatalogReader(path) as catalog:
        assert (catalog.schema, catalog.retired()) == (2, [])
        assert told(catalog) == said
    (active,) = tmp_path.glob("active.vol")
    retire_volume(tmp_path / "fanout.toml", active, force=True)
    Store.open(tmp_path / "fanout.toml").close()
    with CatalogReader(path) as catalog:
        assert catalog.schema == 4
        (entry,) = catalog.retired()
    left = [volume for volume in volumes(tmp_path) if volume != active]
    for volume in left:
        with volume.open("rb") as file:
            assert independent_reader.Volume(file).retired == {entry.volume: entry.epoch}
    report = rebuild_catalog(tmp_path / "fanout.toml", into=tmp_path / "second.db")
    assert [aside.path for aside in report.retired] == [str(active)]
    for volume in volumes(tmp_path):
        volume.unlink()


def counts(base: Path) -> set[int]:
    """How many members the records of all volumes say that their aggregates had."""
    found = set()
    for path in volumes(base):
        with path.open("rb") as file:
            for record in independent_reader.Volume(file).records.values():
                found |= {span["objects"] for span in record["spans"]}
    return found


def test_records_say_how_many_members_there_were(fixture: tuple[Path, Any]) -> None:
    """Those of earlier writers do not; what is stored and changed since does, beside them, for a check and for a rebuild."""
    base, _ = fixture
    settle(base)
    assert counts(base) == {0}
    with Store.open(base / "fanout.toml") as store:
        with store.session("N2") as session:
            for attempt in session.attempts():
                with attempt as transaction:
                    for name in (b"one", b"two", b"three", b"four", b"five"):
                        transaction.put(name, name)
        store.delete("N2", [b"x"], keep=0)
        assert store.catalog.find("N2", b"z") is not None  # of the same three
        said = told(store.catalog)
    assert counts(base) == {0, 3, 5}
    assert check_store(base / "fanout.toml").ok
    rebuilt = rebuild_catalog(base / "fanout.toml", into=base / "second.db")
    assert rebuilt.complete
    with CatalogReader(rebuilt.catalog) as catalog:
        assert told(catalog)["objects"] == said["objects"]


def test_a_catalog_of_version_3_takes_commits_in_steps(tmp_path: Path) -> None:
    """Version 3 is version 2 with a table more. Opened for writing it gets the intake of today, and loses nothing."""
    said = unpack("v2", tmp_path)
    settle(tmp_path)
    path = tmp_path / "catalog.db"
    (retired,) = (sql for name, sql in connection._statements() if name == "retired")
    with closing(sqlite3.connect(path)) as db:
        db.execute(retired)
        db.execute("PRAGMA user_version = 3")
    with CatalogReader(path) as catalog:
        assert catalog.schema == 3
        assert told(catalog) == said
    with Store.open(tmp_path / "fanout.toml") as store:
        assert store.catalog.schema == 4
        assert told(store.catalog)["objects"] == said["objects"]
        with store.session("N1") as session, session.begin() as transaction:
            transaction.put("new", b"bytes")
        store.delete("N1", [b"new"])
    with CatalogReader(path) as catalog:
        assert catalog.verify() == []
        assert told(catalog)["objects"] == said["objects"]
    for volume in volumes(tmp_path):
        volume.unlink()


def test_a_schema_that_only_calls_itself_version_1(tmp_path: Path) -> None:
    unpack("v1", tmp_path)
    path = tmp_path / "catalog.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TRIGGER mine AFTER INSERT ON object BEGIN DELETE FROM gap; END")
    with pytest.raises(CatalogVersion, match="its schema is not fanout's of version 1"):
        CatalogReader(path)
    for path in volumes(tmp_path):
        path.unlink()


def test_the_catalog_says_what_it_said(fixture: tuple[Path, Any]) -> None:
    base, said = fixture
    with CatalogReader(base / "catalog.db") as catalog:
        assert catalog.verify() == []
        assert told(catalog) == said


def test_the_store_goes_on(fixture: tuple[Path, Any]) -> None:
    """Check, read every object from every pool, write, and rebuild."""
    base, said = fixture
    settle(base)
    report = check_store(base / "fanout.toml")
    assert report.ok, [str(problem) for problem in report.problems]
    with Store.open(base / "fanout.toml") as store:
        for one in said["objects"]:
            for pool in one["pools"]:
                read = store.get(
                    one["node"], bytes.fromhex(one["name"]), version=one["version"], pool=pool
                ).read()
                assert xxhash.xxh3_128_hexdigest(read) == one["digest"]
        with store.session("N1") as session:
            for attempt in session.attempts():
                with attempt as transaction:
                    transaction.put(b"new", b"new")
    rebuilt = rebuild_catalog(base / "fanout.toml", into=base / "second.db")
    assert rebuilt.complete
    with CatalogReader(rebuilt.catalog) as catalog:
        mine = told(catalog)
        assert [one for one in mine["objects"] if one["name"] != b"new".hex()] == said["objects"]
        assert mine["gaps"] == said["gaps"]


def test_the_independent_reader_is_small() -> None:
    """A page that needs more than 200 lines of plain Python to be followed is too hard; and it may know nothing of fanout."""
    text = Path(independent_reader.__file__).read_text()
    assert len(text.splitlines()) <= 200
    assert "import fanout" not in text
    assert "from fanout" not in text
    assert os.path.getsize(HERE / f"{VERSIONS[-1]}.tar.xz") < 64 << 10
