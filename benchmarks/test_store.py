"""What a commit costs: in the catalog alone, and through a whole store with three pools."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from fanout.catalog import Catalog, Commit, NewAggregate, NewCopy, Place, PoolEntry, VolumeEntry
from fanout.store import Store
from fanout.types import Member, ObjectKind, PoolKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

CONFIG = """
[store]
catalog = "catalog.db"
[device_classes.disk]
type = "disk"
[pools.DISKPOOL]
type = "primary"
device_class = "disk"
volumes = [{ path = "disk.vol", size = "256 MiB" }]
copy_pools = ["COPYPOOL1"]
active_data_pools = ["ACTIVEDATAPOOL"]
[pools.COPYPOOL1]
type = "copy"
device_class = "disk"
volumes = [{ path = "copy1.vol", size = "256 MiB" }]
[pools.ACTIVEDATAPOOL]
type = "active-data"
device_class = "disk"
volumes = [{ path = "active.vol", size = "256 MiB" }]
[domains.FAST]
destination = "DISKPOOL"
active_destinations = ["ACTIVEDATAPOOL"]
[nodes.N1]
domain = "FAST"
"""


class Commits:
    """Makes commits of one aggregate on two pools, each with new ids and places."""

    def __init__(self, path: Path) -> None:
        self._random, self._offset = random.Random(7), 4096
        kinds = {"DISKPOOL": PoolKind.PRIMARY, "COPYPOOL1": PoolKind.COPY}
        pools = [PoolEntry(self._id(), name, kind) for name, kind in kinds.items()]
        self._volumes = {
            pool.name: VolumeEntry(
                self._id(), pool.name, f"/{pool.name}", 1 << 50, 4096, 1, 7, 9, is_block=False
            )
            for pool in pools
        }
        Catalog.create(path, store=self._id(), pools=pools, volumes=self._volumes.values())
        self.catalog = Catalog.open(path)

    def _id(self) -> bytes:
        return self._random.randbytes(16)

    def _copy(self, pool: str, length: int) -> NewCopy:
        used = -(-(8192 + length) // 4096) * 4096
        offset, self._offset = self._offset, self._offset + used
        return NewCopy(pool, (Place(0, self._volumes[pool].volume, offset, used, used, 0, length),))

    def make(self, objects: int) -> Commit:
        """One transaction."""
        stem = self._id().hex()
        members = [
            Member(f"{stem}/{number}".encode(), number * 4096, 4096, self._id())
            for number in range(objects)
        ]
        copies = tuple(self._copy(pool, objects * 4096) for pool in self._volumes)
        aggregate = NewAggregate(self._id(), "DISKPOOL", members, copies, ())
        pools = tuple(self._volumes)
        return Commit(self._id(), 1, "N1", ObjectKind.BACKUP, "DISKPOOL", pools, (aggregate,))


@pytest.fixture
def commits(tmp_path: Path) -> Iterator[Commits]:
    """A catalog of its own."""
    made = Commits(tmp_path / "catalog.db")
    yield made
    made.catalog.close()


@pytest.mark.parametrize(("transactions", "objects"), [(1, 1), (1, 1000), (16, 1)])
def test_catalog_commit(
    benchmark: BenchmarkFixture, commits: Commits, transactions: int, objects: int
) -> None:
    """A durable commit group of so many transactions of so many objects, on two pools.

    Sixteen transactions in one group share its flush: sixteen sessions that commit at once.
    """
    benchmark.group = "catalog commit"

    def prepare() -> tuple[tuple[list[Commit]], dict[str, object]]:
        return ([commits.make(objects) for _ in range(transactions)],), {}

    benchmark.pedantic(commits.catalog.commit, setup=prepare, rounds=30, warmup_rounds=3)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("objects", [1, 1000])
def test_store_transaction(
    benchmark: BenchmarkFixture, tmp_path: Path, noise: bytes, objects: int
) -> None:
    """A transaction of so many objects of 4 KiB through a session into three pools on files."""
    benchmark.group = "store transaction"
    config = tmp_path / "fanout.toml"
    config.write_text(CONFIG, encoding="utf-8")
    Store.create(config)
    chunks = [noise[start : start + 4096] for start in range(0, 1000 * 4096, 4096)]
    with Store.open(config) as store, store.session("N1") as session:

        def transact() -> None:
            with session.begin() as transaction:
                for number in range(objects):
                    transaction.put(f"o{number}", chunks[number])

        benchmark.pedantic(transact, rounds=20, warmup_rounds=2)  # type: ignore[no-untyped-call]
    for volume in tmp_path.glob("*.vol"):
        volume.unlink()
