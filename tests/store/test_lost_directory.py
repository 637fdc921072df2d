"""A volume whose directory has lost every checkpoint: the catalog says what stood in it, and the next opening writes it anew.

What could break: what only this volume holds is given up, though all of its bytes are there; a power cut in the middle leaves less than there was;
the loss is passed over where there was nothing to lose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fanout import backup_catalog, backup_stgpool, check_store, rebuild_catalog, retire_volume
from fanout.catalog import CatalogReader
from fanout.errors import CatalogError, FanoutError, VolumeError
from fanout.format import MAGIC
from fanout.store import Store
from tests.faults.faultfs import Rule
from tests.store.test_reconcile import put
from tests.store.test_refused import refusing

if TYPE_CHECKING:
    from pathlib import Path

    from tests.store.test_refused import Refusing

__all__ = ["refusing"]  # the fixture

GRANULE = 4096


def wipe(path: Path) -> None:
    """Damage every block of both halves."""
    with open(path, "r+b") as file:
        data = file.read(1 << 20)
        for at in range(GRANULE, len(data), GRANULE):
            if data[at : at + 12] == MAGIC + b"DIRB":
                file.seek(at)
                file.write(bytes(GRANULE))


def told(refusing: Refusing) -> list[str]:
    """What the check says."""
    return [problem.what for problem in check_store(refusing.path).problems]


def test_the_only_volume(refusing: Refusing) -> None:
    """It was closed, and to be given up."""
    copy, path = (refusing.fs.mount / f"{pool}.vol" for pool in ("COPYPOOL1", "DISKPOOL"))
    copy.unlink()
    retire_volume(refusing.path, copy)
    wipe(path)
    assert "its directory has no complete checkpoint left" in told(refusing)
    with pytest.raises(VolumeError, match="it is well"):
        retire_volume(refusing.path, path)
    with Store.open(refusing.path) as store:
        refusing.reads(store)
    assert not [
        problem for problem in check_store(refusing.path).problems if problem.pool == "DISKPOOL"
    ]
    Store.extend(refusing.path)
    with Store.open(refusing.path) as store:
        assert backup_stgpool(store, "DISKPOOL", "COPYPOOL1").copied_objects == len(
            refusing.objects
        )
    assert told(refusing) == []
    assert rebuild_catalog(refusing.path, force=True).objects == len(refusing.objects)
    with Store.open(refusing.path) as store:
        refusing.reads(store)


def test_a_volume_that_holds_nothing(refusing: Refusing) -> None:
    """Nothing is lost with its directory, so nothing else would tell."""
    with Store.open(refusing.path) as store:
        store.delete("N1", None, keep=0)
    wipe(refusing.fs.mount / "COPYPOOL1.vol")
    assert "its directory has no complete checkpoint left" in told(refusing)
    Store.open(refusing.path).close()
    assert told(refusing) == []


@pytest.mark.parametrize("mode", ["all", "subset", "torn"])
@pytest.mark.parametrize("op", ["write", "fsync"])
def test_power_cuts_while_it_is_written_anew(refusing: Refusing, op: str, mode: str) -> None:
    """Before each write, or flush, of the opening, until one ends untouched."""
    fs, path = refusing.fs, refusing.fs.mount / "COPYPOOL1.vol"
    for number in range(1, 50):
        wipe(path)
        fs.settle()
        fs.set_rules(Rule(op=op, path="/COPYPOOL1.vol", nth=number, cut=True))
        try:
            with Store.open(refusing.path, lock_wait=5) as store:
                put(store, {b"a": refusing.objects[b"a"]})
        except FanoutError:
            pass  # the catalog lies elsewhere, and goes on: it is the volumes that are dark
        cut = fs.status().dark
        fs.crash(seed=number, mode=mode)
        fs.heal()
        with Store.open(refusing.path, lock_wait=5) as store:
            refusing.reads(store)
            backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert told(refusing) == []
        if not cut:
            break
    else:
        pytest.fail("no opening ended untouched")
    assert number > 2


def test_a_catalog_that_knows_what_stood_there_is_not_replaced(refusing: Refusing) -> None:
    """A new one lost all that only this volume has, while the old one had only to be opened."""
    path = refusing.fs.mount / "DISKPOOL.vol"
    catalog = refusing.path.parent / "catalog.db"
    wipe(path)
    before = catalog.read_bytes()
    with pytest.raises(
        CatalogError, match=rf"damaged directory of {path}.* open the store for writing"
    ):
        rebuild_catalog(refusing.path, force=True)
    assert catalog.read_bytes() == before
    Store.open(refusing.path).close()
    report = rebuild_catalog(refusing.path, force=True)
    assert (report.complete, report.gaps, report.notes) == (True, 0, ())
    with Store.open(refusing.path) as store:
        refusing.reads(store)


@pytest.mark.parametrize("damage", ["rot", "refused"])
def test_the_catalog_is_lost_as_well(refusing: Refusing, damage: str) -> None:
    """It was left out with one line: what it holds nobody could learn. Now that is listed; what was deleted, or never committed, does not return."""
    path, copy = (refusing.fs.mount / f"{pool}.vol" for pool in ("DISKPOOL", "COPYPOOL1"))
    with Store.open(refusing.path) as store:
        put(store, {b"gone": b"g" * 5000})
        store.delete("N1", b"gone")
    copy.rename(copy.with_suffix(".away"))
    with Store.open(refusing.path, lock_wait=0) as store:
        put(store, {b"only": b"o" * 5000})
        put(store, {b"deleted": b"d" * 5000})
        store.delete("N1", b"deleted")
    copy.with_suffix(".away").rename(copy)
    if damage == "rot":
        wipe(path)
    else:
        refusing.refuse("DISKPOOL", place=(GRANULE, 2 * GRANULE))
    catalog = refusing.path.parent / "catalog.db"
    backup_catalog(refusing.path, catalog.with_suffix(".copy"))
    catalog.unlink()
    report = rebuild_catalog(refusing.path)
    assert [one.path for one in report.skipped] == [str(path)]
    assert {one.path for one in report.in_doubt} == {str(path)}
    named = {name: one.committed for one in report.in_doubt for name in one.names}
    assert named == {**dict.fromkeys(refusing.objects, True), b"only": False, b"deleted": False}
    (note,) = (note for note in report.notes if note.startswith(str(path)))
    assert f"its {len(report.in_doubt)} spans" in note
    with CatalogReader(report.catalog) as made:
        assert {entry.name for entry in made.objects()} == refusing.objects.keys()
        assert [gap.pool for gap in made.gaps()] == ["DISKPOOL"]
    refusing.path.write_text(refusing.path.read_text().replace("catalog.db", "catalog.copy"))
    with Store.open(refusing.path, read_only=True) as store:
        assert store.get("N1", b"only").read() == b"o" * 5000  # as the note says
