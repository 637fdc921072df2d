"""The check of a whole store finds everything that is planted, says where it is, and finds nothing where nothing is.

What could break: damage that it passes over, a healthy store that it complains about, a check that changes what it looks at.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from fanout import backup_stgpool, retire_volume
from fanout import format as fmt
from fanout.catalog import CatalogReader
from fanout.check import check_store
from fanout.errors import CatalogBusy, CatalogError, InterfaceError, VolumeBusy
from fanout.rebuild import rebuild_catalog
from fanout.store import Store
from tests.store.histories import LARGE
from tests.store.test_rebuild import put, small

if TYPE_CHECKING:
    from pathlib import Path

    from fanout.catalog import Place
    from fanout.check import CheckReport, Problem
    from tests.store.histories import SmallSite

__all__ = ["small"]  # the fixture

POOLS = ("DISKPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL")


@pytest.fixture
def filled(small: SmallSite) -> SmallSite:
    """A small store with two transactions, each in directory blocks of its own, and nothing missing."""
    with small.open() as store:
        put(small, store, {b"A": small.rng.randbytes(200_000), b"B": b"b" * 70_000, b"zero": b""})
    with small.open() as store:
        put(small, store, {b"C": small.rng.randbytes(5000)})
    return small


def state(site: SmallSite) -> dict[str, bytes]:
    """Every byte of the store, but for what readers of a database leave beside it."""
    paths = [*site.base.glob("*.vol"), *site.base.glob("sequential/*"), site.catalog]
    return {str(path): path.read_bytes() for path in paths}


def placed(site: SmallSite, pool: str, name: bytes = b"A") -> tuple[Path, Place]:
    """The volume and the first span of an object's copy."""
    with CatalogReader(site.catalog) as catalog:
        entry = catalog.find("N1", name)
        assert entry is not None
        place = next(c for c in catalog.copies(entry.aggregate) if c.pool == pool).places[0]
        paths = {volume.volume: volume.path for volume in catalog.volumes()}
    return site.base / paths[place.volume], place


def flip(path: Path, offset: int) -> None:
    """Another byte there."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))


def one(report: CheckReport) -> Problem:
    """The only problem."""
    assert len(report.problems) == 1, [str(problem) for problem in report.problems]
    return report.problems[0]


def change(site: SmallSite, *statements: str) -> None:
    """Something that no fanout would do to its catalog."""
    with closing(sqlite3.connect(site.catalog)) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            assert db.execute(statement).rowcount != 0, statement
        db.commit()


# ---- nothing is wrong ----------------------------------------------------------------------------------


def test_a_healthy_store(small: SmallSite) -> None:
    """Whatever has happened to it: nothing is found, everything was looked at, and nothing is changed."""
    small.live(4)
    before = state(small)
    seen: list[tuple[int, int]] = []
    report = check_store(small.path, on_progress=lambda done, total: seen.append((done, total)))
    assert [str(problem) for problem in report.problems] == []
    assert report.ok
    assert report.objects == len(small.objects)
    assert report.bytes > sum(map(len, small.objects.values()))
    assert seen[-1][0] == seen[-1][1]
    assert state(small) == before
    quick = check_store(small.path, data=False)
    assert (quick.ok, quick.bytes, quick.spans) == (True, 0, report.spans)
    small.catalog.unlink()
    rebuild_catalog(small.path)
    assert check_store(small.path).ok


def test_versions_without_bytes_share_their_place(small: SmallSite) -> None:
    """Of one name, in one transaction: each is named by itself, and none is missing."""
    with (
        small.open() as store,
        store.session("N1") as session,
        session.begin() as txn,
    ):
        for data in (b"", b"", b"bytes", b"", b""):
            txn.put(b"a", data)
    report = check_store(small.path)
    assert report.ok, report.problems


def test_never_beside_a_writer(small: SmallSite) -> None:
    """It says so, whoever it is."""
    with small.open() as store:
        with pytest.raises(CatalogBusy):
            check_store(small.path, lock_wait=0)
        with pytest.raises(InterfaceError):
            check_store(store)
    with small.locked("COPYPOOL2"), pytest.raises(VolumeBusy):
        check_store(small.path, lock_wait=0)
    with small.open(read_only=True) as store:
        assert check_store(store).ok
    os.unlink(small.catalog)
    with pytest.raises(CatalogError, match="there is no catalog"):
        check_store(small.path)


# ---- damage on a volume ----------------------------------------------------------------------------------


def test_a_flipped_byte(filled: SmallSite) -> None:
    """Pool, volume, the block and the object; not without `data`."""
    path, place = placed(filled, "COPYPOOL1")
    flip(path, place.offset + fmt.HEAD_SIZE + 100_000)
    problem = one(check_store(filled.path))
    assert (problem.pool, problem.path, problem.object) == ("COPYPOOL1", str(path), b"A")
    assert problem.offset is not None
    assert problem.offset <= place.offset + 104_096
    assert problem.mend
    assert check_store(filled.path, data=False).ok


def test_a_byte_that_is_wrong_everywhere(filled: SmallSite) -> None:
    """Each copy has its line, and so has the object that nobody can read any more."""
    for pool in POOLS:
        path, place = placed(filled, pool)
        flip(path, place.offset + fmt.HEAD_SIZE + 100_000)
    problems = check_store(filled.path).problems
    assert [p.pool for p in problems] == [*(p.pool for p in problems[:-1]), "DISKPOOL"]
    assert {p.pool for p in problems[:-1]} == set(POOLS)
    assert problems[-1].object == b"A"
    assert "no pool has a good copy" in problems[-1].what


def test_an_object_that_is_good_by_its_own_bytes(filled: SmallSite) -> None:
    """Nobody is told to send again what a reader can give and a repair can copy; what is damaged is told."""
    for pool in POOLS:
        path, place = placed(filled, pool)
        flip(path, place.offset + 100)
    problems = check_store(filled.path).problems
    assert sorted(problem.pool for problem in problems) == sorted(POOLS)
    assert all("span header" in problem.what for problem in problems)
    with filled.open() as store:
        assert len(store.get("N1", "A").read()) == 200_000


def test_a_damaged_header(filled: SmallSite) -> None:
    """At the header's place."""
    path, place = placed(filled, "DISKPOOL")
    flip(path, place.offset + 100)
    problem = one(check_store(filled.path, data=False))
    assert (problem.path, problem.offset) == (str(path), place.offset)
    assert "span header" in problem.what


def test_a_damaged_footer(filled: SmallSite) -> None:
    """At the footer's place."""
    path, place = placed(filled, "ACTIVEDATAPOOL")
    foot = place.offset + fmt.HEAD_SIZE + place.data_length
    flip(path, foot + 160)
    problem = one(check_store(filled.path, data=False))
    assert (problem.path, problem.offset) == (str(path), foot)
    assert "span footer" in problem.what


@pytest.mark.parametrize("copy", [0, 1])
def test_a_damaged_superblock(filled: SmallSite, copy: int) -> None:
    """The other one serves; the next opening mends it."""
    (path,) = filled.volumes("COPYPOOL2")
    offset = 0 if copy == 0 else path.stat().st_size - fmt.BLOCK
    flip(path, offset + 60)
    problem = one(check_store(filled.path))
    assert (problem.pool, problem.path, problem.offset) == ("COPYPOOL2", str(path), offset)
    with filled.open():
        pass
    assert check_store(filled.path).ok


def test_a_damaged_directory_block(filled: SmallSite) -> None:
    """The block has a line, and so has what it held; the next opening appends that."""
    (path,) = filled.volumes("COPYPOOL2")
    flip(path, 4096 + 4096 + 200)  # of half 0: block 0 is the empty checkpoint
    problems = check_store(filled.path).problems
    assert {problem.path for problem in problems} == {str(path)}
    assert 2 * 4096 in {problem.offset for problem in problems}
    assert any("lacks aggregate" in problem.what for problem in problems)
    with filled.open():
        pass
    assert check_store(filled.path).problems == ()


def test_a_damaged_directory_is_written_anew_by_the_opening(filled: SmallSite) -> None:
    """Damaged blocks stayed among those that count, and had a line until a half was full, years later; so they did in the half that counts no more."""
    (path,) = filled.volumes("COPYPOOL2")
    for _ in range(4):
        with open(path, "rb") as file:
            blocks = file.read(4096 + 2 * 64 * 4096)
        there = [at for at in range(4096, len(blocks), 4096) if blocks.startswith(fmt.MAGIC, at)]
        for at in there:  # each of them once, in both halves
            flip(path, at + 200)
            problems = check_store(filled.path).problems
            assert {problem.path for problem in problems} <= {str(path)}
            assert all("next opening for writing" in problem.mend for problem in problems)
            filled.open().close()
            assert check_store(filled.path).problems == ()
        with filled.open() as store:
            put(filled, store, {b"D": b"d" * 5000})


def test_a_directory_that_lost_a_deletion_while_another_volume_is_away(filled: SmallSite) -> None:
    """The one that was told is the only evidence against the one that was not: with its block a rebuild would bring the objects back."""
    (path,) = filled.volumes("COPYPOOL2")
    with filled.locked("COPYPOOL1"), filled.open(lock_wait=0) as store:
        store.delete("N1", [b"A", b"B", b"zero"])
    with filled.locked("COPYPOOL1"), filled.open(lock_wait=0) as store:
        put(filled, store, {b"D": b"d" * 5000})
    names = ("DISKPOOL", "COPYPOOL2", "ACTIVEDATAPOOL")
    for path in (path for pool in names for path in filled.volumes(pool)):
        blocks = path.read_bytes()[4096 : 4096 + 64 * 4096]
        for at in range(4096, len(blocks), 4096):  # all but the checkpoint, and the last block
            if blocks.startswith(fmt.MAGIC, at) and blocks.startswith(fmt.MAGIC, at + 4096):
                flip(path, 4096 + at + 200)
    problems = check_store(filled.path).problems
    assert all("retire" not in problem.mend for problem in problems)
    with filled.locked("COPYPOOL1"), filled.open(lock_wait=0) as store:
        assert {entry.name for entry in store.query_objects()} == {b"C", b"D"}
        assert {v.state for v in store.query_volumes() if v.pool in names} == {"available"}
    rebuild_catalog(filled.path, force=True)
    with filled.open() as store:
        assert {entry.name for entry in store.query_objects()} == {b"C", b"D"}


def rot_the_newest_block(filled: SmallSite) -> Path:
    """Of the directory of COPYPOOL2's volume, which is still in its first half."""
    (path,) = filled.volumes("COPYPOOL2")
    blocks = path.read_bytes()[4096 : 4096 + 64 * 4096]
    last = max(at for at in range(0, len(blocks), 4096) if blocks.startswith(fmt.MAGIC, at))
    flip(path, 4096 + last + 200)
    return path


def test_a_directory_block_that_knew_of_a_deletion(filled: SmallSite) -> None:
    """The store did not open for that one volume, and said that the catalog was old; then the volume was to be given up, all of it."""
    with filled.open() as store:
        store.delete("N1", [b"A", b"B", b"zero"])
    path = rot_the_newest_block(filled)
    said = [p for p in check_store(filled.path).problems if "lost the delete" in p.what]
    assert [problem.path for problem in said] == [str(path)]
    assert "next opening for writing" in said[0].mend
    with filled.open() as store:
        put(filled, store, {b"D": b"d" * 5000})
        assert store.query_gaps() == []
    assert check_store(filled.path).ok
    assert rebuild_catalog(filled.path, force=True).lost == ()
    with filled.open() as store:
        assert {entry.name for entry in store.query_objects()} == {b"C", b"D"}


def test_a_directory_block_that_knew_of_a_deletion_and_a_catalog_of_another_line(
    filled: SmallSite,
) -> None:
    """Nobody can say whether that was deleted, or stored after the catalog was copied: it is not written over."""
    with filled.open() as store:
        store.delete("N1", [b"A", b"B", b"zero"])
    with sqlite3.connect(filled.base / "catalog.db") as catalog:
        catalog.execute("DELETE FROM attempt WHERE tx NOT IN (SELECT tx FROM aggregate)")
    catalog.close()
    path = rot_the_newest_block(filled)
    said = [p for p in check_store(filled.path).problems if "knows nothing of it" in p.what]
    assert [problem.path for problem in said] == [str(path)]
    assert said[0].mend.startswith(f"'fanout retire volume --force {path}'")
    with filled.open() as store:
        (volume,) = (v for v in store.query_volumes() if v.pool == "COPYPOOL2")
        assert volume.state == "failed"
        assert "it has lost what it knew of their deletion" in volume.reason
        put(filled, store, {b"D": b"d" * 5000})
        (gap,) = store.query_gaps()
        assert (gap.pool, gap.objects) == ("COPYPOOL2", 1)
    retire_volume(filled.path, path, force=True)
    path.unlink()
    Store.extend(filled.path)
    with filled.open() as store:
        assert backup_stgpool(store, "DISKPOOL", "COPYPOOL2").copied_objects == 2
    assert check_store(filled.path).ok
    assert rebuild_catalog(filled.path, force=True).lost == ()
    with filled.open() as store:
        assert {entry.name for entry in store.query_objects()} == {b"C", b"D"}


@pytest.mark.parametrize("access", ["readonly", "unavailable"])
def test_a_directory_that_is_behind_for_as_long_as_its_pool_rests(
    filled: SmallSite, access: str
) -> None:
    """No opening for writing writes there before its access is readwrite again: it says so, and then it is true."""
    usual = filled.path.read_text()
    section = "[pools.COPYPOOL2]"
    filled.path.write_text(usual.replace(section, f'{section}\naccess = "{access}"'))
    with filled.open() as store:
        store.delete("N1", b"A")
    problem = one(check_store(filled.path))
    assert problem.pool == "COPYPOOL2"
    assert "with access readwrite, the next opening for writing" in problem.mend
    filled.path.write_text(usual)
    problem = one(check_store(filled.path))
    assert problem.mend.startswith("the next opening for writing")
    filled.open().close()
    assert check_store(filled.path).problems == ()


def test_a_volume_that_is_not_there(filled: SmallSite) -> None:
    """Its line, and no line for everything that it held."""
    (path,) = filled.volumes("COPYPOOL2")
    path.rename(path.with_suffix(".away"))
    problem = one(check_store(filled.path))
    assert (problem.pool, problem.path) == ("COPYPOOL2", str(path))
    assert "does not exist" in problem.what


# ---- damage in the catalog -------------------------------------------------------------------------------

_FIRST = "(SELECT min(id) FROM aggregate)"
_COPY = f"aggregate = {_FIRST} AND pool = (SELECT id FROM pool WHERE name = 'COPYPOOL2')"

CHANGES = {
    "object": ("DELETE FROM object WHERE name = x'42'", "has 2 of the 3 objects"),
    "digest": ("UPDATE object SET digest = zeroblob(16) WHERE name = x'42'", "another length or"),
    "aggregate": (f"DELETE FROM aggregate WHERE id = {_FIRST}", "that is not there"),
    "attempt": ("DELETE FROM attempt", "that is not there"),
    "node": ("DELETE FROM node", "that is not there"),
    "copy": (f"DELETE FROM copy WHERE {_COPY}", "no gap says so"),
    "present": (f"UPDATE copy SET present = '[[0,2]]' WHERE {_COPY}", "disagree"),
    "csn": (f"UPDATE copy SET csn = csn - 1 WHERE {_COPY}", "disagree"),
    "placement": (f"DELETE FROM placement WHERE {_COPY}", "no span holds its bytes"),
    "moved": (f"UPDATE placement SET offset = offset + 4096 WHERE {_COPY}", "span header"),
    "outside": (f"UPDATE placement SET offset = offset + (1 << 30) WHERE {_COPY}", "not inside"),
    "overlap": (f"UPDATE placement SET length = length + 4096 WHERE {_COPY}", "overlaps"),
    "volume": ("DELETE FROM volume WHERE path LIKE '%COPYPOOL2%'", "that is not there"),
    "size": ("UPDATE volume SET size = size - 4096", "in granules of"),
    "required": ("UPDATE attempt SET required = '[]'", "headers say"),
    "orphan gap": (
        f"""INSERT INTO gap SELECT {_FIRST}, id, NULL, 'planted', 0, 1, 1 FROM pool WHERE name = 'COPYPOOL1'""",
        "it lacks none",
    ),
    "gap of nothing": ("INSERT INTO gap VALUES (77, 1, NULL, 'planted', 0, 1, 1)", "not there"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_row(filled: SmallSite, what: str) -> None:
    """Each is found, with a mend."""
    statement, words = CHANGES[what]
    change(filled, statement)
    report = check_store(filled.path)
    assert any(words in problem.what for problem in report.problems), list(
        map(str, report.problems)
    )
    assert all(problem.mend for problem in report.problems)


def test_swapped_placements(filled: SmallSite) -> None:
    """Two spans that change places are both found."""
    mine = "pool = (SELECT id FROM pool WHERE name = 'COPYPOOL2')"
    change(
        filled,
        f"CREATE TABLE t AS SELECT aggregate, offset FROM placement WHERE {mine}",
        "DROP INDEX placement_place",
        f"""UPDATE placement SET offset = (SELECT offset FROM t WHERE t.aggregate <> placement.aggregate)
            WHERE {mine}""",
        "DROP TABLE t",
        "CREATE UNIQUE INDEX placement_place ON placement (volume, offset)",
    )
    problems = check_store(filled.path).problems
    assert sum("another span is there" in problem.what for problem in problems) == 2


def test_a_gap_that_nobody_noted(filled: SmallSite) -> None:
    """A gap row was deleted: the lack is computed without it; a repair closes it."""
    with filled.locked("COPYPOOL2"), filled.open(lock_wait=0) as store:
        put(filled, store, {b"D": b"d" * 10})
    assert check_store(filled.path).ok
    change(filled, "DELETE FROM gap")
    problem = one(check_store(filled.path))
    assert problem.pool == "COPYPOOL2"
    assert "lacks 1 objects" in problem.what
    with filled.open() as store:
        backup_stgpool(store, "DISKPOOL", "COPYPOOL2")
    assert check_store(filled.path).ok


def test_an_old_catalog(filled: SmallSite) -> None:
    """Restored from the past: every volume says so."""
    with closing(sqlite3.connect(filled.catalog)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old = filled.catalog.read_bytes()
    with filled.open() as store:
        put(filled, store, {b"newer": b"x"})
    for suffix in ("-wal", "-shm"):
        filled.base.joinpath(f"catalog.db{suffix}").unlink(missing_ok=True)
    filled.catalog.write_bytes(old)
    problems = check_store(filled.path).problems
    mends = [p.mend for p in problems if "restored from the past" in p.what]
    assert len(mends) == 6
    assert all("rebuild catalog" in mend and "retire" not in mend for mend in mends)


def test_a_pool_that_is_gone_from_a_rebuilt_catalog_is_not_asked_for(filled: SmallSite) -> None:
    """The headers demand it, no gap can name it, and no repair can fill it: each check ended with a problem for ever."""
    text = filled.path.read_text().replace('"COPYPOOL1", "COPYPOOL2"', '"COPYPOOL1"')
    start = text.index("[pools.COPYPOOL2]")
    end = text.find("[pools.", start + 1)
    filled.path.write_text(text[:start] + (text[end:] if end > 0 else ""))
    report = rebuild_catalog(filled.path, force=True)
    assert "pool COPYPOOL2 was required and is not configured" in "".join(report.notes)
    assert [p.what for p in check_store(filled.path).problems] == []


def test_a_primary_that_is_gone_from_the_configuration_is_a_gap(filled: SmallSite) -> None:
    """The rebuilt catalog knows it, since objects belong to it: they lie elsewhere, and nothing said that it lacks them."""
    with filled.open() as store:
        put(filled, store, {b"large": filled.rng.randbytes(LARGE + 1)})
        (entry,) = store.query_objects(name=b"large")
        assert entry.primary == "TAPEPOOL"
    text = filled.path.read_text().replace('next = "TAPEPOOL"', "")
    start = text.index("[pools.TAPEPOOL]")
    filled.path.write_text(text[:start] + text[text.index("[pools.", start + 1) :])
    report = rebuild_catalog(filled.path, force=True)
    assert "pool TAPEPOOL is a primary of objects, and is not configured" in report.notes
    assert report.gaps == 1
    with filled.open() as store:
        (gap,) = store.query_gaps()
        assert (gap.primary, gap.pool, gap.objects) == ("TAPEPOOL", "TAPEPOOL", 1)
        assert store.get("N1", b"large").read()
    assert [p.what for p in check_store(filled.path).problems] == []
