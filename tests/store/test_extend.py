"""Adding pools and volumes to a store that exists: nothing that is there is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import fanout.store
from fanout import Store, backup_stgpool
from fanout.catalog import Catalog, CatalogReader
from fanout.errors import CatalogBusy, CatalogError, ConfigError, VolumeError
from tests.sim.medium import Medium
from tests.sim.vfs import Below, below_sqlite

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fanout.catalog import VolumeEntry

BEFORE = """
[store]
catalog = "catalog.db"
[device_classes.disk]
type = "disk"
[pools.PRIMARY]
type = "primary"
device_class = "disk"
volumes = [{ path = "p1.vol", size = "8 MiB" }]
[domains.D]
destination = "PRIMARY"
[nodes.N]
domain = "D"
"""
AFTER = BEFORE.replace(
    'volumes = [{ path = "p1.vol", size = "8 MiB" }]',
    'volumes = [{ path = "p1.vol", size = "8 MiB" }, { path = "p2.vol", size = "16 MiB" }]\n'
    'copy_pools = ["COPY"]\n'
    "[pools.COPY]\n"
    'type = "copy"\n'
    'device_class = "disk"\n'
    'volumes = [{ path = "c.vol", size = "24 MiB" }]',
)


def put(store: Store, name: str, data: bytes) -> None:
    with store.session("N") as session:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put(name, data)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "fanout.toml"
    path.write_text(BEFORE)
    Store.create(path)
    with Store.open(path) as store:
        put(store, "old", b"o" * 100_000)
    return path


def test_new_volumes_and_pools_are_used_and_the_old_data_stays(config: Path) -> None:
    """A full pool gets room, a new copy pool gets a copy of what was there before it."""
    config.write_text(AFTER)
    with pytest.raises(ConfigError, match="init --add"):
        Store.open(config)
    made = Store.extend(config)
    assert {(entry.pool, entry.path.rsplit("/", 1)[1]) for entry in made} == {
        ("PRIMARY", "p2.vol"),
        ("COPY", "c.vol"),
    }
    with Store.open(config) as store:
        put(store, "new", b"n" * (10 << 20))  # fits p2.vol only
        assert backup_stgpool(store, "PRIMARY", "COPY").copied_objects == 1
        for name, data in (("old", b"o" * 100_000), ("new", b"n" * (10 << 20))):
            for pool in ("PRIMARY", "COPY"):
                assert b"".join(store.get("N", name, pool=pool)) == data


def test_twice_adds_nothing(config: Path) -> None:
    """The second call finds everything there."""
    config.write_text(AFTER)
    assert len(Store.extend(config)) == 2
    assert Store.extend(config) == ()


def test_what_is_in_the_way_is_not_overwritten(config: Path) -> None:
    """All or nothing: the volume that could be made is removed again, and the catalog is as it was."""
    config.write_text(AFTER)
    (config.parent / "c.vol").write_bytes(b"somebody's")
    with pytest.raises(VolumeError, match=r"c\.vol"):
        Store.extend(config)
    assert (config.parent / "c.vol").read_bytes() == b"somebody's"
    assert not (config.parent / "p2.vol").exists()
    config.write_text(BEFORE)
    with Store.open(config) as store:
        assert [pool.name for pool in store.query_stgpools()] == ["PRIMARY"]


def test_an_interrupt_behind_the_commit_costs_no_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog had the volumes already, and their files were removed."""
    config.write_text(AFTER)
    add = Catalog.add

    def added_and_struck(catalog: Catalog, **what: Any) -> None:
        add(catalog, **what)
        raise KeyboardInterrupt

    monkeypatch.setattr(Catalog, "add", added_and_struck)
    with pytest.raises(KeyboardInterrupt):
        Store.extend(config)
    monkeypatch.undo()
    with Store.open(config) as store:
        assert [one.state for one in store.query_volumes()] == ["available"] * 3


@pytest.mark.parametrize("forever", [False, True])
def test_no_file_goes_that_the_catalog_may_name_after_a_crash(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, forever: bool
) -> None:
    """The commit failed, its volumes were removed, and the machine died: what stood in the log counted again, and named them."""
    config.write_text(AFTER)
    catalog, copies = tmp_path / "catalog.db", tmp_path / "died"
    remove = fanout.store._remove_files

    def removed_and_died(volumes: Sequence[VolumeEntry]) -> None:
        remove(volumes)
        copies.mkdir()
        for path in (catalog, catalog.with_name("catalog.db-wal")):
            (copies / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(fanout.store, "_remove_files", removed_and_died)
    medium, synced = Medium([], catalog), 0

    def fail(operation: str, path: str) -> tuple[str, bool] | None:
        nonlocal synced
        synced += operation == "sync"
        struck = synced == 2 or (forever and synced > 2)  # the first one is of the log's head
        return ("EIO sync", False) if operation == "sync" and struck else None

    with below_sqlite(Below(medium)) as below:
        below.script = fail
        with pytest.raises(CatalogError, match="I/O"):
            Store.extend(config)
    medium.close()
    assert copies.exists() != forever  # where not even another commit is possible the files stay
    made = [tmp_path / name for name in ("p2.vol", "c.vol")]
    assert [path.exists() for path in made] == [forever] * 2
    with CatalogReader(copies / "catalog.db" if copies.exists() else catalog) as reader:
        assert [entry.path for entry in reader.volumes()] == [str(tmp_path / "p1.vol")]


def test_refused_beside_a_writer_and_without_a_catalog(config: Path, tmp_path: Path) -> None:
    """Volumes are made for a store that exists and that nobody is writing to."""
    with Store.open(config), pytest.raises(CatalogBusy):
        Store.extend(config, lock_wait=0)
    other = tmp_path / "other.toml"
    other.write_text(AFTER.replace("catalog.db", "other.db"))
    with pytest.raises(CatalogError):
        Store.extend(other)
    assert not (tmp_path / "other.db").exists()


def test_written_once_no_extent_of_a_new_volume_is_left_unwritten(tmp_path: Path) -> None:
    """Preallocated extents are converted at their first write, which costs half the speed; this is what write_once is for."""
    config = tmp_path / "fanout.toml"
    config.write_text(AFTER)
    told: list[int] = []
    Store.create(config, write_once=True, on_written=told.append)
    volumes = sum((tmp_path / name).stat().st_size for name in ("p1.vol", "p2.vol", "c.vol"))
    assert volumes - (2 << 20) < sum(told) < volumes  # all but superblocks and directories
    with Store.open(config) as store:
        put(store, "new", b"n" * 1000)
        assert store.get("N", "new", pool="COPY").read() == b"n" * 1000
