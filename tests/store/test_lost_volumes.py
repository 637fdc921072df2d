"""Objects that lie across the sequential volumes of a copy pool, one of which is lost, given up, and perhaps found again.

What could break: the half that is left is joined with what the repair wrote, so that a sound copy is called damaged or an object is
lost in a rebuild; or the spans of the volume that was found again have the same numbers as those that replaced them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanout import backup_stgpool, check_store, rebuild_catalog, retire_volume
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
