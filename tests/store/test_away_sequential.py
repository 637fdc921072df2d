"""Sequential volumes that are away when a catalog is made anew: no list names them.

What could break: a rebuild that calls itself complete, though a directory is not mounted, or files of it are not there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fanout import rebuild_catalog
from fanout.store import Store

CONFIG = """
[store]
catalog = "catalog.db"
[device_classes.disk]
type = "disk"
[device_classes.seq]
type = "file"
directory = "seq"
volume_size = "1 MiB"
max_volumes = 8
[pools.P]
type = "primary"
device_class = "disk"
volumes = [{ path = "P.vol", size = "4 MiB" }]
copy_pools = ["C"]
[pools.C]
type = "copy"
device_class = "seq"
[domains.D]
destination = "P"
[nodes.N1]
domain = "D"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A store whose copy pool has filled two volumes, and begun a third."""
    path = tmp_path / "fanout.toml"
    path.write_text(CONFIG)
    Store.create(path)
    with Store.open(path) as store, store.session("N1") as session:
        for number in range(6):
            for attempt in session.attempts():
                with attempt as transaction:
                    transaction.put(f"o{number}", bytes(200_000))
    return path


def holders(config: Path) -> list[Path]:
    """The files that hold something; a spare may lie beside them."""
    with Store.open(config) as store:
        return sorted(Path(v.path) for v in store.query_volumes() if v.pool == "C" and v.live)


def test_nothing_is_away(config: Path) -> None:
    report = rebuild_catalog(config, force=True)
    assert (report.complete, report.notes, report.gaps) == (True, (), 0)


def test_a_directory_that_is_not_mounted_took_no_part(config: Path) -> None:
    directory = config.with_name("seq")
    directory.rename(config.with_name("hidden"))
    directory.mkdir()
    report = rebuild_catalog(config, force=True)
    assert [(one.pool, one.path) for one in report.skipped] == [("C", str(directory))]
    assert not report.complete


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_file_that_is_not_there_is_noticed(config: Path, number: int) -> None:
    """By the hole in the numbers, if others follow, and by the headers of what the other pool holds."""
    path = holders(config)[number]
    path.unlink()
    report = rebuild_catalog(config, force=True)
    said = "\n".join(report.notes)
    assert (f"the first is {path.name}" in said) or number == 2
    assert "spans were written to 1 volumes that took no part" in said
    assert report.gaps > 0


def test_a_file_that_is_not_there_alone_is_noticed(config: Path) -> None:
    """Nothing but the numbers tells of it; and what is stored then is newer than all that it knows."""
    with Store.open(config) as store:
        last = max(entry.version for entry in store.query_objects())
    config.with_name("P.vol").unlink()
    holders(config)[0].unlink()
    report = rebuild_catalog(config, force=True)
    Store.extend(config)
    assert any("the first is C.00001.fanout" in note for note in report.notes)
    with Store.open(config) as store, store.session("N1") as session:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put("new", b"1")
        (new,) = store.query_objects(name=b"new")
    assert new.version > last + (1 << 31)
