"""Seeded rot in several pools at once: headers, footers, data, superblocks and directories, and repairs in any order.

What could break: a repair that gives up what no other can give, bytes that are good somewhere and that nobody gets, wrong bytes, an object
that is lost and that nobody names, a gap that no repair closes, space that is counted wrongly, a check that complains for ever.

`test_disasters` lets one pool at a time fail, and loses nothing; here much is lost, and what is good anywhere must not be.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from fanout import (
    audit_stgpool,
    backup_stgpool,
    check_store,
    copy_activedata,
    restore_stgpool,
    retire_volume,
)
from fanout import format as fmt
from fanout.allocator import RegionState
from fanout.catalog import CatalogReader
from fanout.errors import IntegrityError, PoolUnavailable
from fanout.store import Store
from tests.faults.devices import scratch

from .histories import CLIENTS, COPY_POOLS, LARGE, POOLS, PRIMARIES, SmallSite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fanout.catalog import CopyEntry, ObjectEntry, Place
    from fanout.reconcile import ReconcileReport

    Work = Callable[..., ReconcileReport]
    Key = tuple[str, bytes, int]  # of a version: node, name, number

UNSETTLED = (RegionState.RESERVED, RegionState.DRAINING, RegionState.QUARANTINED)
OF_PRIMARY = f"""next = "TAPEPOOL"
max_size = {LARGE}
copy_pools = ["COPYPOOL1", "COPYPOOL2"]
active_data_pools = ["ACTIVEDATAPOOL"]
"""


def configuration(rng: random.Random) -> str:
    """Each pool of one large volume, of several small ones, or of sequential ones; small slots or large ones."""
    text = f"""
[store]
catalog = "catalog.db"
[engine]
memory = "32 MiB"
slot = "{rng.choice(("64 KiB", "256 KiB", "1 MiB"))}"
[device_classes.disk]
type = "disk"
[device_classes.seq]
type = "file"
directory = "sequential"
volume_size = "{rng.choice((1536, 2048, 4096))} KiB"
max_volumes = 200
"""
    kinds = ("primary", "primary", "copy", "copy", "active-data")
    for pool, kind in zip(POOLS, kinds, strict=True):
        count = rng.choice((0, 0, 1, 2, 6))
        volumes = [
            f'{{ path = "{pool}{n}.vol", size = "{24 // count} MiB" }}' for n in range(count)
        ]
        where = f'"disk"\nvolumes = [{", ".join(volumes)}]' if count else '"seq"'
        more = OF_PRIMARY if pool == "DISKPOOL" else ""
        text += f'[pools.{pool}]\ntype = "{kind}"\ndevice_class = {where}\n{more}'
    return text + CLIENTS


class Rot(SmallSite):
    """A site, and what happened to it in words."""

    def __init__(self, base: Path, rng: random.Random) -> None:
        super().__init__(base, rng)
        self.told: list[str] = []
        (base / "sequential").mkdir()
        self.path.write_text(configuration(rng))
        Store.create(self.path)

    # ---- what goes wrong -------------------------------------------------------------------------

    def rot(self) -> None:
        """Of some objects a part is damaged, in some or all of the pools; now and then a superblock or a directory, too."""
        rng = self.rng
        with CatalogReader(self.catalog) as catalog:
            paths = {volume.volume: volume.path for volume in catalog.volumes()}
            entries = list(catalog.objects())
            for _ in range(rng.randint(1, 12)):
                entry = rng.choice(entries)
                copies = catalog.copies(entry.aggregate)
                for copy in rng.sample(copies, rng.randint(1, len(copies)) if copies else 0):
                    place = rng.choice(copy.places)
                    self.told.append(f"{copy.pool}, {entry.name[:5]!r}: {self.hit(paths, place)}")
        if rng.random() < 0.4:
            path = rng.choice(sorted(paths.values()))
            begin = rng.choice((0, os.path.getsize(path) - fmt.BLOCK, fmt.BLOCK, 2 * fmt.BLOCK))
            self.overwrite(path, begin + rng.randrange(fmt.BLOCK - 40), rng.randbytes(40))
            self.told.append(f"{os.path.basename(path)}: block at {begin}")

    def hit(self, paths: dict[bytes, str], place: Place) -> str:
        """Damage a span; says where."""
        rng = self.rng
        size = min(rng.choice((1, 1, 600, 4096, 20_000, place.used)), place.used)
        begin = {
            "header": 0,
            "footer": fmt.HEAD_SIZE + place.data_length,
            "data": fmt.HEAD_SIZE + rng.randrange(place.data_length or 1),
        }[where := rng.choice(("header", "footer", "data", "data"))]
        size = max(1, min(size, place.used - begin))
        noise = bytes(size) if rng.random() < 0.3 else rng.randbytes(size)
        self.overwrite(paths[place.volume], place.offset + begin, noise)
        return f"{where} of span {place.span}, {size} bytes at {place.offset + begin}"

    @staticmethod
    def overwrite(path: str, offset: int, data: bytes) -> None:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def replace_dead_volumes(self) -> None:
        """Those that do not open any more, or that cannot be written, are given up."""
        with self.open() as store:
            dead = [v for v in store.query_volumes() if v.state in {"failed", "unavailable"}]
        for volume in dead:
            self.told.append(f"{os.path.basename(volume.path)} given up: {volume.reason}")
            retire_volume(self.path, volume.path, force=True)
            os.rename(volume.path, f"{volume.path}.away{len(self.told)}")
        Store.extend(self.path)

    # ---- what mends it -----------------------------------------------------------------------------

    def mend_some(self) -> None:
        """A few commands, whichever."""
        with self.open() as store:
            for _ in range(self.rng.randint(1, 3)):
                if self.rng.random() < self.deletes:
                    self.delete_some(store)
                elif self.rng.random() < 0.6:
                    self.audit(store, self.rng.choice(POOLS))
                else:
                    self.run(store, *self.rng.choice(REPAIRS))
                self.count(store)

    def mend_all(self) -> set[bytes]:
        """All commands, in any order, until nothing changes; the names of what could not be had."""
        for _ in range(5):
            with self.open() as store:
                pools = self.rng.sample(POOLS, len(POOLS))
                changed = sum(self.audit(store, pool) for pool in pools)
                repairs = self.rng.sample(REPAIRS, len(REPAIRS))
                reports = [self.run(store, *one) for one in repairs]
                self.count(store)
            if not changed + sum(report.copied_objects for report in reports):
                return {name for report in reports for name, _ in report.failed}
        raise AssertionError("the repairs come to no end")

    def audit(self, store: Store, pool: str) -> int:
        """How many objects it gave up or wrote anew."""
        report = audit_stgpool(store, pool, fix=True)
        self.told.append(f"audit {pool}: {report.marked} marked, {report.mended} mended")
        assert len(report.damaged) == report.marked + report.mended + len(report.kept)
        return report.marked + report.mended

    def run(self, store: Store, work: Work, *pools: str) -> ReconcileReport:
        report = work(store, *pools)
        copied, failed = report.copied_objects, len(report.failed)
        self.told.append(f"{work.__name__} {' '.join(pools)}: {copied} copied, {failed} not")
        return report

    # ---- what is there -----------------------------------------------------------------------------

    def readable(self) -> set[Key]:
        """What can be read, from any pool. Never are wrong bytes handed out."""
        found = set()
        with self.open(read_only=True) as store:
            for entry in store.query_objects():
                data, read = self.objects[key(entry)], b""
                try:
                    for piece in store.get(entry.node, entry.name, version=entry.version):
                        read += piece
                        assert data.startswith(read)
                except (IntegrityError, PoolUnavailable):
                    continue
                assert read == data
                found.add(key(entry))
        return found

    def whole(self) -> set[Key]:
        """What lies somewhere as it was stored, without a look at sums, headers and footers."""
        with CatalogReader(self.catalog) as catalog:
            paths = {volume.volume: volume.path for volume in catalog.volumes()}
            return {
                key(entry)
                for entry in catalog.objects()
                for copy in catalog.copies(entry.aggregate)
                if copy.holds(entry.member)
                and served(copy, paths, entry) == self.objects[key(entry)]
            }

    def count(self, store: Store) -> None:
        """Volumes hold what the catalog says, and nothing else is taken."""
        for volume in store.pools.volumes():
            space = volume.allocator
            if space is not None:
                space.check()
                live = [(offset, length) for offset, length in space.regions(RegionState.LIVE)]
                assert live == list(map(tuple, store.catalog.live_regions(volume.uuid)))
                assert [space.bytes_in(state) for state in UNSETTLED] == [0, 0, 0]

    def give_up(self, lost: set[Key]) -> None:
        """Delete what nobody has any more."""
        with self.open() as store:
            for entry in [one for one in store.query_objects() if key(one) in lost]:
                store.delete(entry.node, entry.name, kind=entry.kind, version=entry.version)
                del self.objects[key(entry)]
            for primary in PRIMARIES:  # what was before them is active again
                copy_activedata(store, primary, "ACTIVEDATAPOOL")

    def is_well(self) -> None:
        """Nothing is missing, and nothing is damaged that anybody needs."""
        assert check_store(self.path).problems == ()
        with self.open() as store:
            self.read_everything(store)
            assert store.query_gaps() == []


REPAIRS: tuple[tuple[Any, ...], ...] = (
    *((restore_stgpool, primary) for primary in PRIMARIES),
    *((backup_stgpool, primary, copy) for primary in PRIMARIES for copy in COPY_POOLS),
    *((copy_activedata, primary, "ACTIVEDATAPOOL") for primary in PRIMARIES),
)


def key(entry: ObjectEntry) -> Key:
    return entry.node, entry.name, entry.version


def served(copy: CopyEntry, paths: dict[bytes, str], entry: ObjectEntry) -> bytes:
    """An object's bytes as they lie in a copy."""
    found, at, end = b"", entry.start, entry.start + entry.length
    while at < end:
        place, turn = copy.served(at) or (None, 0)
        if place is None:
            break
        with open(paths[place.volume], "rb") as file:
            file.seek(place.offset + fmt.HEAD_SIZE + at - place.data_start)
            found += file.read(min(end, turn) - at)
        at = min(end, turn)
    return found


def _seeds() -> range:
    """FANOUT_ROT=100:150 tries those instead."""
    first, _, end = os.environ.get("FANOUT_ROT", "7:9").partition(":")
    return range(int(first), int(end))


@pytest.mark.parametrize("seed", _seeds())
def test_what_is_good_anywhere_is_not_lost(seed: int) -> None:
    with scratch() as base:  # no power fails: what is flushed need not reach a disk
        site = Rot(base, random.Random(seed))
        site.deletes = 0.3 * (seed % 2)
        try:
            for _ in range(2):
                site.live(1, transactions=5)
                for _ in range(2):
                    rot_and_mend(site)
                settle(site)
        except BaseException:
            print("\n".join(site.told))
            raise


def rot_and_mend(site: Rot) -> None:
    """What can be read stays so, whatever is done next."""
    site.rot()
    site.replace_dead_volumes()
    before = site.readable()
    assert site.whole() <= before
    site.mend_some()
    assert before & site.objects.keys() <= site.readable()


def settle(site: Rot) -> None:
    """In the end all of that is everywhere, all else is named, and given up it leaves no trace."""
    before = site.readable()
    failed = site.mend_all()
    lost = site.objects.keys() - site.readable()
    assert not lost & before
    assert failed == {name for _, name, _ in lost}
    with site.open() as store:
        assert sum(gap.objects for gap in store.query_gaps(pool="COPYPOOL1")) == len(lost)
    site.give_up(lost)
    site.is_well()
