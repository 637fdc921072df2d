"""Objects that lie across the sequential volumes of a copy pool, one of which is lost, given up, and perhaps found again.

What could break: the half that is left is joined with what the repair wrote, so that a sound copy is called damaged or an object is
lost in a rebuild; or the spans of the volume that was found again have the same numbers as those that replaced them; or a new volume takes the file of
one that was given up, or is not made because of it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanout import backup_stgpool, check_store, rebuild_catalog, retire_volume
from fanout.errors import VolumeError
from fanout.store import Store

if TYPE_CHECKING:
    import random

MIB = 1 << 20
CONFIG = """
[store]
catalog = "catalog.db"
[device_classes.disk]
type = "disk"
[device_classes.seq]
type = "file"
directory = "seq"
volume_size = "4 MiB"
max_volumes = 20
[pools.DISKPOOL]
type = "primary"
device_class = "disk"
volumes = [{ path = "disk.vol", size = "32 MiB" }]
copy_pools = ["COPYPOOL1"]
copy_continue = true
[pools.COPYPOOL1]
type = "copy"
device_class = "seq"
[domains.NORMAL]
destination = "DISKPOOL"
[nodes.N1]
domain = "NORMAL"
"""


class House:
    """A store with objects of which most lie on two volumes of COPYPOOL1 or more."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.config = directory / "fanout.toml"
        self.config.write_text(CONFIG, encoding="utf-8")
        (directory / "seq").mkdir()
        Store.create(self.config)
        self.objects = {
            f"{n}".encode(): rng.randbytes(rng.randrange(MIB, 4 * MIB)) for n in range(6)
        }
        with Store.open(self.config) as store, store.session("N1") as session:
            for attempt in session.attempts():
                with attempt as transaction:
                    for name, data in self.objects.items():
                        transaction.put(name, data)
            # A spare that was made ahead holds nothing.
            held = [v.path for v in store.query_volumes() if v.pool == "COPYPOOL1" and v.live]
        self.volumes = [Path(path) for path in held]

    def volume_of_the_last_span(self) -> Path:
        with Store.open(self.config) as store:
            (aggregate,) = {entry.aggregate for entry in store.query_objects()}
            (copy,) = (c for c in store.catalog.copies(aggregate) if c.pool == "COPYPOOL1")
            last = max(copy.places, key=lambda place: place.span).volume
            return Path(next(v.path for v in store.query_volumes() if v.volume == last))

    def repair(self) -> None:
        with Store.open(self.config) as store:
            assert backup_stgpool(store, "DISKPOOL", "COPYPOOL1").gaps_left == 0

    def all_is_well(self) -> None:
        assert check_store(self.config).problems == ()
        with Store.open(self.config) as store:
            assert store.query_gaps() == []
            for name, data in self.objects.items():
                assert store.get("N1", name, pool="COPYPOOL1").read() == data

    def only_the_copies_are_left(self) -> None:
        self.config.with_name("disk.vol").unlink()
        assert rebuild_catalog(self.config, force=True).lost == ()
        with Store.open(self.config) as store:
            for name, data in self.objects.items():
                assert store.get("N1", name).read() == data


@pytest.fixture
def house(tmp_path: Path, rng: random.Random) -> House:
    return House(tmp_path, rng)


@pytest.mark.parametrize("number", [1, -1])
def test_what_a_repair_wrote_is_not_joined_with_the_half_that_is_left(
    house: House, number: int
) -> None:
    """In the middle of the aggregate, and at its end, where the repair's spans have the next numbers."""
    house.volumes[number].unlink()
    assert retire_volume(house.config, house.volumes[number]).objects
    house.repair()
    house.all_is_well()


@pytest.mark.parametrize("number", [1, -1])
def test_only_the_repaired_pool_is_left(house: House, number: int) -> None:
    """Neither the catalog nor the primary: the objects come out of the repaired copies."""
    house.volumes[number].unlink()
    retire_volume(house.config, house.volumes[number])
    house.repair()
    house.only_the_copies_are_left()


def test_volumes_that_were_given_up_are_found_again_when_the_catalog_is_lost(house: House) -> None:
    """The repair's spans have the numbers of those that it replaced: both must find their place in the new catalog."""
    away: list[Path] = []
    for number in range(2):
        volume = house.volume_of_the_last_span()
        away.append(volume.rename(volume.with_suffix(f".away{number}")))
        retire_volume(house.config, volume)
        house.repair()
    for number, volume in enumerate(away):  # new volumes may have their old names
        volume.rename(volume.with_name(f"COPYPOOL1.9000{number}.fanout"))
    report = rebuild_catalog(house.config, force=True)
    assert (report.lost, report.skipped) == ((), ())
    Store.open(house.config).close()  # brings the directories up to date
    house.all_is_well()
    house.only_the_copies_are_left()


def test_what_lies_in_a_directory_that_was_moved_is_not_lost(house: House) -> None:
    """The configuration says where the volumes are now, the catalog where they were: nobody gives up what is there and well."""
    moved = house.config.with_name("moved")
    house.volumes[0].parent.rename(moved)
    house.config.write_text(CONFIG.replace('"seq"\nvolume', '"moved"\nvolume'), encoding="utf-8")
    with pytest.raises(VolumeError, match=f"the volume lies at {moved / house.volumes[0].name}"):
        retire_volume(house.config, house.volumes[0])
    assert rebuild_catalog(house.config, force=True).complete
    house.all_is_well()


def test_volumes_that_were_given_up_are_left_aside(house: House) -> None:
    """Under other names, too: what the repairs wrote is all that counts."""
    away: list[Path] = []
    for number in range(2):
        volume = house.volume_of_the_last_span()
        away.append(volume.rename(volume.with_suffix(f".away{number}")))
        retire_volume(house.config, volume)
        house.repair()
    for number, volume in enumerate(away):
        volume.rename(volume.with_name(f"COPYPOOL1.9000{number}.fanout"))
    report = rebuild_catalog(house.config, force=True)
    assert len(report.retired) == 2
    assert (report.lost, report.skipped, report.gaps) == ((), (), 0)
    house.all_is_well()


def contents(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def new_volumes(house: House) -> set[str]:
    with Store.open(house.config) as store:
        return {v.path for v in store.query_volumes() if v.pool == "COPYPOOL1"}


def test_a_new_volume_never_takes_the_file_of_one_that_was_given_up(house: House) -> None:
    """All are given up with their files where they were; the pool is filled again, over several openings."""
    with Store.open(house.config) as store:
        given_up = [Path(v.path) for v in store.query_volumes() if v.pool == "COPYPOOL1"]
    for path in given_up:
        retire_volume(house.config, path, force=True)
    before = contents(given_up)
    (made,) = Store.extend(house.config)
    assert Path(made.path) not in given_up
    house.repair()
    assert contents(given_up) == before
    assert not new_volumes(house) & {str(path) for path in given_up}
    house.all_is_well()


def test_files_of_volumes_that_were_given_up_stop_no_pool(house: House) -> None:
    """As many of them as the pool may have volumes, right behind its last one."""
    given_up = sorted(new_volumes(house) - {str(house.volumes[0])})
    for path in given_up:
        retire_volume(house.config, path, force=True)
    for number in range(len(given_up) + 2, 23):
        house.volumes[0].with_name(f"COPYPOOL1.{number:05d}.fanout").hardlink_to(given_up[0])
    house.repair()
    house.all_is_well()
    assert str(house.volumes[0].with_name("COPYPOOL1.00023.fanout")) in new_volumes(house)


@pytest.mark.parametrize("force", [False, True])
def test_extending_a_store_takes_no_file_of_a_volume_that_was_given_up(
    house: House, *, force: bool
) -> None:
    """A volume of another pool is added; the sequential pool has volumes, and needs none."""
    first, data = house.volumes[0], house.volumes[0].read_bytes()
    retire_volume(house.config, first, force=True)
    text = CONFIG.replace(
        ', size = "32 MiB" }', ', size = "32 MiB" }, { path = "new.vol", size = "8 MiB" }'
    )
    house.config.write_text(text)
    (made,) = Store.extend(house.config, force=force)
    assert made.path.endswith("new.vol")
    assert first.read_bytes() == data
    house.repair()
    house.all_is_well()


def test_a_volume_without_superblocks_is_not_taken_for_one_that_was_never_used(
    house: House,
) -> None:
    """That is why it was given up. What it holds may still be wanted."""
    last = Path(max(new_volumes(house) & {str(path) for path in house.volumes}))
    for path in map(Path, new_volumes(house) - {str(path) for path in house.volumes}):
        retire_volume(house.config, path, force=True)
        path.unlink()
    with open(last, "r+b") as file:
        for at in (0, last.stat().st_size - 4096):
            file.seek(at)
            file.write(bytes(4096))
    retire_volume(house.config, last)
    before = contents([last])
    house.repair()
    assert contents([last]) == before
    house.all_is_well()


def give_all_up(house: House) -> list[Path]:
    """COPYPOOL1 has no volume left; its files stay where they were."""
    with Store.open(house.config) as store:
        given_up = [Path(v.path) for v in store.query_volumes() if v.pool == "COPYPOOL1"]
    for path in given_up:
        retire_volume(house.config, path, force=True)
    return given_up


def test_a_pool_whose_last_volume_was_given_up_goes_on_by_itself(house: House) -> None:
    """Its configuration says how: nobody has to be asked, neither for a repair nor for what is new."""
    given_up = give_all_up(house)
    before = contents(given_up)
    with Store.open(house.config) as store, store.session("N1") as session:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put("new", b"new")
        assert session.receipt is not None
        assert not session.receipt.degraded
    house.repair()
    house.all_is_well()
    assert contents(given_up) == before
    assert not new_volumes(house) & {str(path) for path in given_up}


@pytest.mark.parametrize("device", [1, None])
def test_not_where_its_volumes_may_never_have_been(house: House, device: int | None) -> None:
    """The directory of a file system that is not mounted, or nobody knows: says what mends it, and the mend works."""
    give_all_up(house)
    with closing(sqlite3.connect(house.config.with_name("catalog.db"))) as db:
        db.execute("UPDATE retired SET device = ?", (device,))
        db.commit()
    with Store.open(house.config) as store:
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert report.gaps_left
        why = report.failed[0][1]
    for said in ("COPYPOOL1", str(house.config.with_name("seq")), "mount it", "init --add"):
        assert said in why
    Store.extend(house.config)
    house.repair()
    house.all_is_well()


def test_not_without_its_directory(house: House) -> None:
    for path in give_all_up(house):
        path.unlink()
    house.config.with_name("seq").rmdir()
    with Store.open(house.config) as store:
        report = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
    assert "seq: cannot be looked at" in report.failed[0][1]
    assert not house.config.with_name("seq").exists()
