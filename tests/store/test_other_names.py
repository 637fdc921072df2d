"""Pools whose names begin alike, in one directory; volumes that are there twice; and what a transaction demanded, where not all of it can be read.

What could break: a volume that is taken for another pool's, and named as one that took no part; a copy that is taken for the volume; or a rule of the transaction that is forgotten
with one of its aggregates.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fanout import format as fmt
from fanout import rebuild_catalog
from fanout.catalog import CatalogReader
from fanout.store import Store

CONFIG = """
[store]
catalog = "catalog.db"
[device_classes.disk]
type = "disk"
[device_classes.seq]
type = "file"
directory = "seq"
volume_size = "2 MiB"
max_volumes = 4
[pools.P]
type = "primary"
device_class = "disk"
volumes = [{ path = "P.vol", size = "2 MiB" }]
max_size = "10 KiB"
next = "S"
copy_pools = ["S.C"]
[pools.S]
type = "primary"
device_class = "seq"
[pools."S.C"]
type = "copy"
device_class = "seq"
[domains.D]
destination = "P"
[nodes.N1]
domain = "D"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A store with a transaction of two aggregates, one on each primary."""
    path = tmp_path / "fanout.toml"
    path.write_text(CONFIG)
    Store.create(path)
    with Store.open(path) as store, store.session("N1") as session:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put("small", b"1" * 4000)
                transaction.put("large", b"2" * 40_000)
    return path


def test_each_pool_has_its_own_files(config: Path) -> None:
    names = sorted(path.name for path in config.with_name("seq").iterdir())
    assert names == ["S.00001.fanout", "S.C.00001.fanout"]
    report = rebuild_catalog(config, force=True)
    assert (report.skipped, report.complete, report.objects) == ((), True, 2)


@pytest.mark.parametrize("when", ["open", "closed"])
def test_of_a_volume_and_its_copy_the_one_in_use_is_taken(config: Path, when: str) -> None:
    """Whichever comes first. Made while the store was open the copy has the same superblocks."""
    volume, copy = config.with_name("P.vol"), config.with_name("A.vol")
    with Store.open(config) as store:
        if when == "open":
            shutil.copy(volume, copy)
        with store.session("N1") as session:
            for attempt in session.attempts():
                with attempt as transaction:
                    transaction.put("later", b"3")
    if when == "closed":
        shutil.copy(volume, copy)
        Store.open(config).close()
    both = '{ path = "A.vol", size = "2 MiB" }, { path = "P.vol", size = "2 MiB" }'
    config.write_text(CONFIG.replace('{ path = "P.vol", size = "2 MiB" }', both))
    report = rebuild_catalog(config, force=True)
    assert Path(report.volumes[0]).name == "P.vol"
    assert [entry.path for entry in report.skipped] == [str(copy)]
    assert report.objects == 3


def test_two_names_of_one_file_are_no_copies(config: Path) -> None:
    """Nobody can lock it twice."""
    config.with_name("A.vol").hardlink_to(config.with_name("P.vol"))
    both = '{ path = "A.vol", size = "2 MiB" }, { path = "P.vol", size = "2 MiB" }'
    config.write_text(CONFIG.replace('{ path = "P.vol", size = "2 MiB" }', both))
    report = rebuild_catalog(config, force=True)
    assert [Path(entry.path).name for entry in report.skipped] == ["P.vol"]
    assert report.objects == 2


def test_what_the_rules_demanded_is_known_from_any_aggregate(config: Path) -> None:
    """Of the first one no frame is left that can be read."""
    with Store.open(config) as store:
        (entry,) = store.query_objects(name=b"small")
        aggregate = store.catalog.aggregate(entry.aggregate)
        assert aggregate is not None
        paths = {volume.uuid: volume.path for volume in store.pools.volumes()}
        places = [p for copy in store.catalog.copies(entry.aggregate) for p in copy.places]
    for place in places:
        with open(paths[place.volume], "r+b") as file:
            file.seek(place.offset + fmt.HEAD_SIZE + place.data_length + 160)
            file.write(b"\xff" * 8)
    for path in config.parent.glob("catalog.db*"):
        path.unlink()  # it would be kept, for it finds what a new one would not
    report = rebuild_catalog(config)
    assert [lost.aggregate for lost in report.lost] == [entry.aggregate]
    with CatalogReader(report.catalog) as catalog:
        found = catalog.committed(aggregate.transaction)
        assert found is not None
        assert found.required == aggregate.required == ("S.C",)
