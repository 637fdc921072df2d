"""Seeded random histories of a small store, and what its catalog says in a form that can be compared.

Two clients, all kinds of objects, new versions, deleted versions, attempts that were given up, pools that somebody has locked, repairs of
some of the gaps, and a sequential pool that grows. Volumes are a few MiB, so that a history takes less than a second.
"""

from __future__ import annotations

import contextlib
import fcntl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fanout import backup_stgpool, copy_activedata
from fanout.config import load
from fanout.errors import TransactionFailed, TransactionRetry
from fanout.store import Store
from fanout.types import ObjectKind, PoolKind

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from fanout.catalog import CatalogReader, GapEntry
    from fanout.config import Config

KIB, MIB = 1 << 10, 1 << 20
POOLS = ("DISKPOOL", "TAPEPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL")
PRIMARIES, COPY_POOLS = POOLS[:2], POOLS[2:4]
LARGE = 300 * KIB  # objects above it go to the sequential pool

CLIENTS = """
[domains.FASTRESTORE]
destination = "DISKPOOL"
active_destinations = ["ACTIVEDATAPOOL"]
[domains.NORMAL]
destination = "DISKPOOL"
[nodes.N1]
domain = "FASTRESTORE"
[nodes.N2]
domain = "NORMAL"
"""

CONFIG = f"""
[store]
catalog = "catalog.db"
[engine]
memory = "32 MiB"
[device_classes.disk]
type = "disk"
[device_classes.seq]
type = "file"
directory = "sequential"
volume_size = "4 MiB"
max_volumes = 8
[pools.DISKPOOL]
type = "primary"
device_class = "disk"
volumes = [{{ path = "DISKPOOL.vol", size = "16 MiB" }}]
next = "TAPEPOOL"
max_size = {LARGE}
copy_pools = ["COPYPOOL1", "COPYPOOL2"]
active_data_pools = ["ACTIVEDATAPOOL"]
[pools.TAPEPOOL]
type = "primary"
device_class = "seq"
[pools.COPYPOOL1]
type = "copy"
device_class = "disk"
volumes = [{{ path = "COPYPOOL1.vol", size = "8 MiB" }}, {{ path = "COPYPOOL1b.vol", size = "16 MiB" }}]
[pools.COPYPOOL2]
type = "copy"
device_class = "disk"
volumes = [{{ path = "COPYPOOL2.vol", size = "16 MiB" }}]
[pools.ACTIVEDATAPOOL]
type = "active-data"
device_class = "disk"
volumes = [{{ path = "ACTIVEDATAPOOL.vol", size = "16 MiB" }}]
{CLIENTS}"""


@dataclass
class SmallSite:
    """A directory with a small store.

    Attributes:
        base: the directory.
        rng: all that is random.
        objects: the bytes of every version that was acknowledged and not deleted since, by node, name and version.
        deletes: how likely a transaction is followed by a deletion.
    """

    base: Path
    rng: random.Random
    objects: dict[tuple[str, bytes, int], bytes] = field(default_factory=dict)
    deletes: float = 0.0

    @property
    def path(self) -> Path:
        """Of the configuration."""
        return self.base / "fanout.toml"

    @property
    def catalog(self) -> Path:
        """Of the catalog."""
        return self.base / "catalog.db"

    def create(self) -> Config:
        """Write the configuration, make the store."""
        self.path.write_text(CONFIG)
        Store.create(self.path)
        return load(self.path)

    def open(self, **options: Any) -> Store:
        """Open it."""
        return Store.open(self.path, **options)

    def volumes(self, pool: str) -> list[Path]:
        """The files of a pool."""
        return sorted(self.base.glob(f"{pool}*.vol")) or sorted(
            self.base.glob(f"sequential/{pool}.*")
        )

    @contextlib.contextmanager
    def locked(self, pool: str) -> Iterator[None]:
        """Somebody else has the volumes of a pool locked."""
        with contextlib.ExitStack() as stack:
            for path in self.volumes(pool):
                file = stack.enter_context(open(path, "rb"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # ---- what happens ------------------------------------------------------------------------------

    def live(self, rounds: int, *, transactions: int = 8) -> None:
        """A history: each round opens the store, perhaps without some pools, stores, gives up, and repairs some of the gaps."""
        for _ in range(rounds):
            with contextlib.ExitStack() as stack:
                for pool in POOLS[2:]:
                    if self.rng.random() < 0.25:
                        stack.enter_context(self.locked(pool))
                store = stack.enter_context(
                    self.open(lock_wait=0, flush_before_acknowledge=self.rng.random() < 0.5)
                )
                for _ in range(transactions):
                    self.put_some(store)
                    if self.rng.random() < self.deletes:
                        self.delete_some(store)
            if self.rng.random() < 0.6:
                with self.open() as store:
                    self.repair(store)

    def put_some(self, store: Store) -> None:
        """One transaction of one client, or one that it gives up."""
        rng = self.rng
        node, kind = rng.choice(("N1", "N2")), rng.choice([*ObjectKind, ObjectKind.BACKUP])
        objects = {rng.choice(NAMES): self.bytes() for _ in range(rng.randint(1, 6))}
        give_up = rng.random() < 0.15
        with store.session(node, kind=kind) as session:
            if give_up:
                with contextlib.suppress(TransactionFailed, TransactionRetry):
                    txn = session.begin()
                    for name, data in objects.items():
                        txn.put(name, data)
                    txn.abort()
                return
            for attempt in session.attempts():
                with attempt as txn:
                    for name, data in objects.items():
                        txn.put(name, data)
            assert session.receipt is not None
        for name, data in objects.items():
            entry = store.catalog.find(node, name, kind=kind)
            assert entry is not None
            self.objects[node, name, entry.version] = data

    def delete_some(self, store: Store) -> None:
        """Delete the active version of a name, one version, or what expires."""
        there = list(store.query_objects())
        if not there:
            return
        rng, one = self.rng, self.rng.choice(there)
        how: dict[str, Any] = rng.choice(
            [{}, {"version": one.version}, {"keep": rng.randrange(3)}, {"keep": 2}]
        )
        everything = how.keys() == {"keep"} and rng.random() < 0.2
        report = store.delete(one.node, None if everything else one.name, kind=one.kind, **how)
        left = {(entry.node, entry.name, entry.version) for entry in store.query_objects()}
        gone = self.objects.keys() - left
        assert len(gone) == report.objects
        assert sum(len(self.objects[key]) for key in gone) == report.object_bytes
        for key in gone:
            del self.objects[key]

    def bytes(self) -> bytes:
        """Of an object: mostly small, sometimes none, sometimes too many for the disk pool."""
        size = self.rng.choice((0, 1, 700, 4096, 20_000, 70_000, LARGE + 5000))
        return self.rng.randbytes(size and size + self.rng.randrange(100))

    def repair(self, store: Store) -> None:
        """Some of the repair commands."""
        for primary in PRIMARIES:
            for pool in COPY_POOLS:
                if self.rng.random() < 0.7:
                    backup_stgpool(store, primary, pool)
            if self.rng.random() < 0.7:
                copy_activedata(store, primary, "ACTIVEDATAPOOL")

    # ---- what is there -------------------------------------------------------------------------------

    def read_everything(self, store: Store) -> None:
        """Every version from every pool that says it holds it."""
        for pool in POOLS:
            for entry in store.query_objects(pool=pool):
                with store.get(
                    entry.node, entry.name, kind=entry.kind, version=entry.version, pool=pool
                ) as reader:
                    assert reader.read() == self.objects[entry.node, entry.name, entry.version]
                    assert reader.faults == ()
        assert {(e.node, e.name, e.version) for e in store.query_objects()} == set(self.objects)


NAMES = [b"A", b"B \xff", b"C/d/e", b"f" * 200, "ü".encode(), b"g", b"h"]


def snapshot(catalog: CatalogReader) -> dict[str, Any]:
    """All that a catalog can be asked, in a form that is equal when it means the same."""
    kinds = {pool.name: pool.kind for pool in catalog.pools()}
    entries = list(catalog.objects())
    aggregates = list(dict.fromkeys(entry.aggregate for entry in entries))
    found = {uuid: catalog.aggregate(uuid) for uuid in aggregates}
    return {
        "store": catalog.store_id,
        "pools": catalog.pools(),
        "volumes": catalog.volumes(),
        "objects": entries,
        "per pool": {pool: list(catalog.objects(pool=pool)) for pool in kinds},
        "active": list(catalog.objects(active_only=True)),
        "aggregates": found,
        "copies": {uuid: catalog.copies(uuid) for uuid in aggregates},
        "members": {uuid: catalog.members(uuid) for uuid in aggregates},
        "committed": [catalog.committed(one.transaction) for one in found.values() if one],
        "gaps": sorted(gap_values(catalog, gap, kinds[gap.pool]) for gap in catalog.gaps()),
        "occupancy": catalog.occupancy(),
        "usage": sorted(catalog.usage(), key=lambda usage: usage.volume),
        "regions": {v.volume: catalog.live_regions(v.volume) for v in catalog.volumes()},
        "held": {v.volume: catalog.held_csns(v.volume) for v in catalog.volumes()},
    }


def gap_values(catalog: CatalogReader, gap: GapEntry, kind: PoolKind) -> tuple[Any, ...]:
    """A gap without the words that only the lost catalog knew; of active-data pools the members that count."""
    counted = tuple(
        member.member
        for member in catalog.members(gap.aggregate)
        if (gap.missing is None or member.member in gap.missing)
        and (member.active or kind is not PoolKind.ACTIVE_DATA)
    )
    return (
        gap.aggregate,
        gap.pool,
        gap.primary,
        gap.node,
        gap.since,
        gap.objects,
        gap.bytes,
        counted,
    )
