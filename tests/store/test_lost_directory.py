"""A volume whose directory has lost every checkpoint: the catalog says what stood in it, and the next opening writes it anew.

What could break: what only this volume holds is given up, though all of its bytes are there; a power cut in the middle leaves less than there was;
the loss is passed over where there was nothing to lose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fanout import backup_stgpool, check_store, rebuild_catalog, retire_volume
from fanout.errors import FanoutError, VolumeError
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
