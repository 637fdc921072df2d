"""Audits of media that refuse to read: what is no proof of damage costs no copy, and never the last one.

What could break: a controller that fails for an hour empties every pool that it serves, one audit after the other; the last copy of an object
is given up for a sector that would have been read the next day, or for a volume that could not be asked.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

from fanout import audit_stgpool, backup_stgpool, check_store, rebuild_catalog, restore_stgpool
from fanout import format as fmt
from fanout.errors import PoolUnavailable
from fanout.store import Store
from tests.faults.faultfs import FaultFS, Rule
from tests.store.test_reconcile import put

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path


KIB = 1 << 10
POOLS = ("DISKPOOL", "COPYPOOL1")
CONFIG = """
[store]
catalog = "{base}/catalog.db"
[engine]
memory = "32 MiB"
[device_classes.disk]
type = "disk"
[pools.DISKPOOL]
type = "primary"
device_class = "disk"
volumes = [{{ path = "{mount}/DISKPOOL.vol", size = "16 MiB" }}]
copy_pools = ["COPYPOOL1"]
[pools.COPYPOOL1]
type = "copy"
device_class = "disk"
volumes = [{{ path = "{mount}/COPYPOOL1.vol", size = "16 MiB" }}]
[domains.NORMAL]
destination = "DISKPOOL"
[nodes.N1]
domain = "NORMAL"
"""


class Refusing(NamedTuple):
    """A store of two pools on a file system with scripted faults, and what it holds."""

    fs: FaultFS
    path: Path
    objects: dict[bytes, bytes]

    def refuse(self, *pools: str, place: tuple[int, int] | None = None, **options: int) -> None:
        """Reads of these pools fail, everywhere or in one place, from now on."""
        begin, end = place or (0, None)
        error = options.get("errno", errno.EIO)
        self.fs.set_rules(
            *(
                Rule(op="read", path=f"/{pool}.vol", start=begin, end=end, errno=error, count=None)
                for pool in pools
            )
        )

    def place(self, store: Store, pool: str, name: bytes) -> tuple[int, int]:
        """Where an object's bytes lie on the pool's volume."""
        entry = store.catalog.find("N1", name)
        assert entry is not None
        copies = {copy.pool: copy for copy in store.catalog.copies(entry.aggregate)}
        (span,) = copies[pool].servers(entry.start, entry.length)
        begin = span.offset + fmt.HEAD_SIZE + entry.start - span.data_start
        return begin, begin + entry.length

    def reads(self, store: Store) -> None:
        """All that was stored."""
        for name, data in self.objects.items():
            assert store.get("N1", name).read() == data


@pytest.fixture
def refusing(tmp_path: Path, rng: random.Random) -> Iterator[Refusing]:
    with FaultFS() as fs:
        site = Refusing(fs, tmp_path / "fanout.toml", {})
        site.path.write_text(CONFIG.format(base=tmp_path, mount=fs.mount))
        Store.create(site.path)
        with Store.open(site.path) as store:
            for name in (b"a", b"b", b"c"):
                site.objects[name] = rng.randbytes(70 * KIB)
            put(store, site.objects)
        yield site


@pytest.mark.parametrize("number", [errno.EIO, errno.ENODATA])
@pytest.mark.parametrize("failing", [POOLS, POOLS[:1], POOLS[1:]], ids="+".join)
def test_a_device_that_fails_everywhere_proves_no_damage(
    refusing: Refusing, failing: tuple[str, ...], number: int
) -> None:
    """All that it holds would become gaps; with all devices of a store behind one controller all would be lost."""
    with Store.open(refusing.path) as store:
        refusing.refuse(*failing, errno=number)
        for pool in POOLS:
            report = audit_stgpool(store, pool, fix=True)
            assert (report.damaged, report.marked, report.kept) == ((), 0, ())
            asked = () if pool in failing else tuple(refusing.objects)
            named = {name for name, _ in report.unasked}
            assert named == refusing.objects.keys() - set(asked)
            assert all("not even its superblocks" in why for _, why in report.unasked)
        refusing.fs.heal()
        assert store.query_gaps() == []
        refusing.reads(store)
    assert check_store(refusing.path).problems == ()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENODATA])
def test_a_place_that_is_refused_is_given_up_for_another_copy(
    refusing: Refusing, number: int
) -> None:
    """The rest of the device can be read: so it is this place, and the pool is filled again from elsewhere."""
    with Store.open(refusing.path) as store:
        for pool in POOLS:
            begin, end = refusing.place(store, pool, b"b")
            refusing.refuse(pool, place=(begin + 8192, end - 8192), errno=number)
            report = audit_stgpool(store, pool, fix=True)
            assert ([name for name, _ in report.damaged], report.marked) == ([b"b"], 1)
            if pool == "DISKPOOL":
                filled = restore_stgpool(store, pool)
            else:
                filled = backup_stgpool(store, "DISKPOOL", pool)
            assert filled.copied_objects == 1
            assert audit_stgpool(store, pool, fix=True).damaged == ()
            refusing.fs.heal()
        refusing.reads(store)


def test_the_last_copy_is_kept_while_its_medium_refuses(refusing: Refusing) -> None:
    """No other can give it, and nobody has seen that its bytes are wrong. On another day they come."""
    with Store.open(refusing.path) as store:
        places = {pool: refusing.place(store, pool, b"b") for pool in POOLS}
        assert len(set(places.values())) == 1  # the pools are alike
        begin, end = places["DISKPOOL"]
        refusing.refuse(*POOLS, place=(begin + 8192, end - 8192))
        for pool in POOLS:
            report = audit_stgpool(store, pool, fix=True)
            assert [name for name, _ in report.damaged] == [b"b"]
            assert report.marked == 0
            ((name, why),) = report.kept
            assert name == b"b"
            assert "another day" in why
        with pytest.raises(PoolUnavailable):
            store.get("N1", b"b").read()
        refusing.fs.heal()
        assert store.query_gaps() == []
        refusing.reads(store)


def test_what_is_wrong_here_and_refused_there_is_kept(refusing: Refusing) -> None:
    """The rotten copy has perhaps just what the other lacks; the one that is refused may be the only good one."""
    with Store.open(refusing.path) as store:
        begin, _ = refusing.place(store, "DISKPOOL", b"b")
        other = refusing.place(store, "COPYPOOL1", b"b")
    with open(refusing.fs.backing("DISKPOOL.vol"), "r+b") as file:
        file.seek(begin + 9000)
        file.write(bytes(100))
    with Store.open(refusing.path) as store:
        refusing.refuse("COPYPOOL1", place=(other[0] + 8192, other[1] - 8192))
        for pool in POOLS:
            report = audit_stgpool(store, pool, fix=True)
            assert ([name for name, _ in report.damaged], report.marked) == ([b"b"], 0)
        refusing.fs.heal()
        assert audit_stgpool(store, "DISKPOOL", fix=True).marked == 1
        assert restore_stgpool(store, "DISKPOOL").copied_objects == 1
        refusing.reads(store)
    assert check_store(refusing.path).problems == ()


def test_a_damaged_frame_does_not_condemn_what_is_refused(refusing: Refusing) -> None:
    """Its block sums are gone, so every read of the object ends at its footer; that some of its bytes are refused is seen only without them."""
    with Store.open(refusing.path) as store:
        begin, end = refusing.place(store, "DISKPOOL", b"b")
        (entry,) = store.catalog.aggregates()
        copies = store.catalog.copies(entry.aggregate)
    for copy in copies:
        with open(refusing.fs.backing(f"{copy.pool}.vol"), "r+b") as file:
            file.seek(copy.places[0].offset + fmt.HEAD_SIZE + copy.places[0].data_length)
            file.write(bytes(512))
    with Store.open(refusing.path) as store:
        refusing.refuse(*POOLS, place=(begin + 8192, end - 8192))
        for pool in POOLS:
            report = audit_stgpool(store, pool, fix=True)
            assert b"b" in {name for name, _ in report.kept}
        refusing.fs.heal()
        refusing.reads(store)


def test_a_bad_sector_near_an_end_costs_a_rebuild_no_volume(refusing: Refusing) -> None:
    """Whether anything is there was asked of the first and the last MiB as a whole: one sector of free space, and all that the volume holds was lost."""
    with Store.open(refusing.path) as store:
        size = min(entry.size for entry in store.catalog.volumes())
    refusing.refuse(*POOLS, place=(size - 16 * KIB, size - 12 * KIB))
    (refusing.path.parent / "catalog.db").unlink()
    assert rebuild_catalog(refusing.path).complete
    with Store.open(refusing.path) as store:
        refusing.reads(store)


SEQUENTIAL = """
[store]
catalog = "catalog.db"
[engine]
memory = "32 MiB"
[device_classes.seq]
type = "file"
directory = "."
volume_size = "1536 KiB"
max_volumes = 20
[pools.TAPEPOOL]
type = "primary"
device_class = "seq"
[domains.NORMAL]
destination = "TAPEPOOL"
[nodes.N1]
domain = "NORMAL"
"""


def test_a_damaged_frame_does_not_condemn_what_is_away(tmp_path: Path, rng: random.Random) -> None:
    """An object lies on two volumes: the footer of its first part has rotted, the volume of its second is not mounted. All of its bytes are good."""
    path, data = tmp_path / "fanout.toml", rng.randbytes(2048 * KIB)
    path.write_text(SEQUENTIAL)
    Store.create(path)
    with Store.open(path) as store:
        put(store, {b"large": data})
        (entry,) = store.catalog.aggregates()
        (copy,) = store.catalog.copies(entry.aggregate)
        files = {volume.volume: volume.path for volume in store.catalog.volumes()}
    first, *_, last = copy.places
    assert first.volume != last.volume
    with open(files[first.volume], "r+b") as file:
        file.seek(first.offset + fmt.HEAD_SIZE + first.data_length)
        file.write(bytes(512))
    with ExitStack() as back:
        away = tmp_path / "away"
        volume = tmp_path / files[last.volume]
        volume.rename(away)
        back.callback(away.rename, volume)
        with Store.open(path, lock_wait=0) as store:
            report = audit_stgpool(store, "TAPEPOOL", fix=True)
            assert (report.marked, report.kept) == (0, ())
            assert [name for name, _ in report.unasked] == [b"large"]
    with Store.open(path) as store:
        assert store.get("N1", b"large").read() == data
