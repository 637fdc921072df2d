"""Seeded disasters: one pool at a time loses volumes or rots, is mended with the commands, and nothing may be lost.

The pools are sequential, of small volumes, so that objects lie across them; the catalog is lost now and then, and a volume that was given
up comes back before it is made anew. With odd seeds clients also delete; then such a volume is left aside, for it would bring back what
was deleted since.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from fanout import (
    audit_stgpool,
    backup_stgpool,
    check_store,
    copy_activedata,
    rebuild_catalog,
    restore_stgpool,
    retire_volume,
)
from fanout.store import Store
from tests.faults.devices import scratch

from . import histories
from .histories import COPY_POOLS, KIB, POOLS, PRIMARIES, SmallSite

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = f"""
[store]
catalog = "catalog.db"
[engine]
memory = "32 MiB"
[device_classes.seq]
type = "file"
directory = "sequential"
volume_size = "1536 KiB"
max_volumes = 200
[pools.DISKPOOL]
type = "primary"
device_class = "seq"
next = "TAPEPOOL"
max_size = {histories.LARGE}
copy_pools = ["COPYPOOL1", "COPYPOOL2"]
active_data_pools = ["ACTIVEDATAPOOL"]
[pools.TAPEPOOL]
type = "primary"
device_class = "seq"
[pools.COPYPOOL1]
type = "copy"
device_class = "seq"
[pools.COPYPOOL2]
type = "copy"
device_class = "seq"
[pools.ACTIVEDATAPOOL]
type = "active-data"
device_class = "seq"
{histories.CLIENTS}"""


class Disaster(SmallSite):
    """A site, and what happened to it in words."""

    def __init__(self, base: Path, rng: random.Random) -> None:
        super().__init__(base, rng)
        self.away: list[Path] = []
        self.told: list[str] = []
        (base / "sequential").mkdir()
        self.path.write_text(CONFIG)
        Store.create(self.path)

    # ---- what goes wrong -----------------------------------------------------------------------

    def hit(self, pool: str) -> None:
        """Volumes of one pool rot or go away, and the pool is mended."""
        rng = self.rng
        with self.open() as store:
            held = [v.path for v in store.query_volumes() if v.pool == pool and v.live]
        if not held:
            return
        for path in rng.sample(held, rng.randint(1, min(2, len(held)))):
            if rng.random() < 0.5:
                self.lose(path)
            else:
                self.rot(path)
        self.perhaps_lose_the_catalog()
        with self.open() as store:
            report = audit_stgpool(store, pool, fix=True)
            self.told.append(f"audit {pool}: {report.marked} marked")
        self.perhaps_lose_the_catalog()
        self.repair_all()

    def lose(self, path: str) -> None:
        volume = self.base / "sequential" / os.path.basename(path)
        away = volume.with_suffix(f".away{len(self.told)}")
        volume.rename(away)
        self.away.append(away)
        self.told.append(f"lost {volume.name}")
        retire_volume(self.path, volume)
        Store.extend(self.path)  # where it was the only one

    def rot(self, path: str) -> None:
        size = os.path.getsize(path)
        with open(path, "r+b") as file:
            for _ in range(self.rng.randint(1, 3)):
                file.seek(self.rng.randrange(520 * KIB, size - 8 * KIB))
                file.write(self.rng.randbytes(self.rng.choice((1, 600, 20_000)))[: 8 * KIB])
        self.told.append(f"rotten {os.path.basename(path)}")

    def perhaps_lose_the_catalog(self) -> None:
        """It is made anew; volumes that were given up may be there again, under other names."""
        if self.rng.random() < 0.6:
            return
        while self.away and self.rng.random() < 0.7:
            volume = self.away.pop()
            pool = volume.name.split(".")[0]
            found = volume.with_name(f"{pool}.{90000 + len(self.told)}.fanout")
            self.told.append(f"{volume.name} found again as {found.name}")
            volume.rename(found)
        for name in self.base.glob("catalog.db*"):
            name.unlink()
        report = rebuild_catalog(self.path, take_retired=not self.deletes)
        self.told.append(f"rebuilt: {len(report.lost)} lost, {len(report.in_doubt)} in doubt")
        assert report.lost == ()

    # ---- what mends it -------------------------------------------------------------------------

    def repair_all(self) -> None:
        with self.open() as store:
            for primary in PRIMARIES:
                reports = [restore_stgpool(store, primary)]
                reports += [backup_stgpool(store, primary, pool) for pool in COPY_POOLS]
                reports.append(copy_activedata(store, primary, "ACTIVEDATAPOOL"))
                assert [report.failed for report in reports] == [()] * 4
            assert store.query_gaps() == []

    def all_is_well(self) -> None:
        with self.open() as store:
            self.read_everything(store)
        assert check_store(self.path).problems == ()


def _seeds() -> range:
    """FANOUT_DISASTERS=100:150 tries those instead."""
    first, _, end = os.environ.get("FANOUT_DISASTERS", "2:5").partition(":")
    return range(int(first), int(end))


@pytest.mark.parametrize("seed", _seeds())
def test_nothing_is_lost(seed: int) -> None:
    with scratch() as base:  # no power fails: what is flushed need not reach a disk
        site = Disaster(base, random.Random(seed))
        site.deletes = 0.5 * (seed % 2)
        try:
            for _ in range(4):
                site.live(1, transactions=4)
                site.repair_all()
                site.hit(site.rng.choice(POOLS))
                site.all_is_well()
        except BaseException:
            print("\n".join(site.told))
            raise
