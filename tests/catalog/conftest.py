"""A small store's catalog, and commits to put into it. Everything random comes from one printed seed."""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanout.catalog import (
    Catalog,
    CatalogReader,
    Commit,
    NewAggregate,
    NewCopy,
    NewGap,
    Place,
    PoolEntry,
    VolumeEntry,
)
from fanout.types import Member, ObjectKind, PoolKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

POOLS = (
    ("DISKPOOL", PoolKind.PRIMARY),
    ("TAPEPOOL", PoolKind.PRIMARY),
    ("COPYPOOL1", PoolKind.COPY),
    ("ACTIVEDATAPOOL", PoolKind.ACTIVE_DATA),
)


@dataclass
class Sample:
    """Builds commits that fit together: every region and every id is new."""

    path: Path
    seed: int
    next_offset: int = 4096
    time: int = 1_700_000_000_000_000_000
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.pools = [PoolEntry(self.id(), name, kind) for name, kind in POOLS]
        self.volumes = {
            pool.name: VolumeEntry(
                self.id(), pool.name, f"/vol/{pool.name}", 1 << 40, 4096, 1, 7, 9, is_block=False
            )
            for pool in self.pools
        }

    def id(self) -> bytes:
        """Sixteen bytes."""
        return self.random.randbytes(16)

    def clock(self) -> int:
        """One microsecond later at every look."""
        self.time += 1000
        return self.time

    def create(self) -> None:
        """Make the catalog."""
        Catalog.create(
            self.path,
            store=self.id(),
            pools=self.pools,
            volumes=self.volumes.values(),
            clock=self.clock,
        )

    def open(self) -> Catalog:
        """Open it for writing."""
        return Catalog.open(self.path, clock=self.clock)

    def place(self, pool: str, *, span: int = 0, data_start: int = 0, data_length: int) -> Place:
        """A free place on the pool's volume."""
        used = -(-(8192 + data_length) // 4096) * 4096
        offset, self.next_offset = self.next_offset, self.next_offset + used
        volume = self.volumes[pool].volume
        return Place(span, volume, offset, used, used, data_start, data_length)

    def members(self, names: Sequence[bytes], length: int = 100) -> list[Member]:
        """One member for each name, back to back."""
        return [Member(name, n * length, length, self.id()) for n, name in enumerate(names)]

    def commit(
        self,
        names: Sequence[bytes] = (b"a", b"b"),
        *,
        node: str = "N1",
        kind: ObjectKind = ObjectKind.BACKUP,
        primary: str = "DISKPOOL",
        pools: Sequence[str] = ("DISKPOOL", "COPYPOOL1"),
        gaps: Sequence[NewGap] = (),
        transaction: bytes | None = None,
        attempt: int = 1,
    ) -> Commit:
        """One transaction of one aggregate."""
        members = self.members(names)
        size = sum(member.length for member in members)
        copies = tuple(NewCopy(pool, (self.place(pool, data_length=size),)) for pool in pools)
        aggregate = NewAggregate(self.id(), primary, members, copies, tuple(gaps))
        return Commit(
            transaction or self.id(),
            attempt,
            node,
            kind,
            primary,
            (primary, "COPYPOOL1"),
            (aggregate,),
        )


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    """A builder; the catalog is not made yet."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return Sample(tmp_path / "catalog.db", seed)


@pytest.fixture
def catalog(sample: Sample) -> Iterator[Catalog]:
    """A new catalog, open for writing; every test must leave it sound."""
    sample.create()
    with sample.open() as opened:
        yield opened
    with CatalogReader(sample.path) as reader:
        assert reader.verify() == []


@pytest.fixture
def fault_shim(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment in which the real SQLite meets a failing system call: see `fault_shim.c`."""
    library = tmp_path / "fault_shim.so"
    source = Path(__file__).with_name("fault_shim.c")
    build = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(build, check=True)

    def environment(script: str) -> dict[str, str]:
        return {**os.environ, "LD_PRELOAD": str(library), "FAULT_FILE": script}

    return environment
