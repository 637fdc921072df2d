"""The sites on disk: configuration, volumes and catalog, made once and used again by every run."""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import fanout.making
from fanout import config as configuration
from fanout.catalog import Catalog, PoolEntry, VolumeEntry
from fanout.engine import Engine, Target
from fanout.making import create_volume
from tests.sim.coming import SPARE_BYTES
from tests.sim.medium import Medium
from tests.sim.plan import NODES, SLOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.config import Config
    from fanout.engine import Geometry
    from tests.sim.plan import Site

SLOTS = 24
DIRECTORY_BYTES = 32 << 10  # of a half: small, so that it fills up and is checkpointed
MIN_CONFIGURED = 1 << 20
# Simulated seconds. Longer than the opening of a volume may take (60), and no longer: until then a target is tried again every 0.1 s.
HARD_DEADLINE = 61.0
LATE = 480.0  # later than anything that comes late
START_NS = 1_700_000_000_000_000_000


class Ground:
    """A site on disk, as it was made: every run on it begins and ends here.

    Attributes:
        spares: a blank disk for each pool, which the configuration does not name.
    """

    def __init__(self, site: Site, base: Path) -> None:
        self.site, self.base = site, base / f"site{site.number}"
        self.base.mkdir()
        (self.base / "fanout.toml").write_text(_configuration(site))
        self.config: Config = _as_made(configuration.load(self.base / "fanout.toml"), site)
        self.catalog = self.config.store.catalog
        self.pool_of: dict[str, str] = {}
        self.spares = {name: self.base / f"{name}-spare.vol" for name in site.pools}
        self._inodes: dict[int, int] = {}
        self._make()
        self.medium = Medium([Path(path) for path in self.pool_of], self.catalog)

    def geometry(self) -> property:
        """`Target.geometry` without the host's numbers: a run on other files writes the same bytes."""
        true: Callable[[Target], Geometry] = Target.geometry.__get__

        def told(target: Target) -> Geometry:
            found = true(
                target
            )  # a new one, that nobody else has: `replace` takes longer than all the rest
            number = self._inodes.setdefault(found.ino, len(self._inodes) + 1)
            object.__setattr__(found, "dev", 1)
            object.__setattr__(found, "ino", number)
            return found

        return property(told)

    def put_disk(self, path: Path) -> None:
        """A blank disk where one was removed."""
        old = self.medium.ino_of(str(path))
        size = len(self.medium.disks[str(path)].template)
        path.touch(exist_ok=False)
        os.truncate(path, size)
        self._inodes[os.stat(path).st_ino] = self._inodes[old]
        self.medium.put_disk(str(path))

    def _make(self) -> None:
        """As `Store.create`, with volumes that may run full and directories so small that they do."""
        sizes = dict(self.site.sizes)
        store = bytes(15) + bytes([self.site.number + 1])
        rng = random.Random(f"ground {self.site.number}")
        pools = {
            p.name: PoolEntry(rng.randbytes(16), p.name, p.kind) for p in self.config.pools.values()
        }
        entries = []
        with mock.patch.object(Target, "geometry", self.geometry()), new_engine(0) as engine:
            for pool in self.config.pools.values():
                for spec, size in zip(pool.volumes, sizes[pool.name], strict=True):
                    self.pool_of[str(spec.path)] = pool.name
                    with mock.patch.object(fanout.making, "secrets", _Random(rng)):
                        block = create_volume(
                            engine, spec.path, store=store, pool=pool.name, pool_uuid=pools[pool.name].pool,
                            size=size, directory_bytes=DIRECTORY_BYTES, now_ns=lambda: START_NS,
                        )  # fmt: skip
                    entries.append(
                        VolumeEntry(
                            block.volume,
                            pool.name,
                            str(spec.path),
                            block.size,
                            block.granule,
                            block.epoch,
                            block.device,
                            block.inode,
                            block.block_device,
                        )
                    )
        for name, path in self.spares.items():
            path.write_bytes(b"")
            os.truncate(path, SPARE_BYTES)
            self.pool_of[str(path)] = name
            self._inodes[os.stat(path).st_ino] = len(self._inodes) + 1
        Catalog.create(
            self.catalog, store=store, pools=pools.values(), volumes=entries, clock=lambda: START_NS
        )


class _Random:
    """`secrets` with a seed."""

    def __init__(self, rng: random.Random) -> None:
        self.token_bytes = rng.randbytes


def _as_made(config: Config, site: Site) -> Config:
    """The configuration with the volumes' true sizes: a volume that is made anew is as large as the one before."""
    sizes = dict(site.sizes)
    pools = {
        name: replace(
            pool,
            volumes=tuple(
                replace(spec, size=size)
                for spec, size in zip(pool.volumes, sizes[name], strict=True)
            ),
        )
        for name, pool in config.pools.items()
    }
    return replace(config, pools=pools)


def _configuration(site: Site) -> str:
    sizes = dict(site.sizes)
    copies = [pool for pool in site.secondaries if pool[0] == "C"]
    actives = [pool for pool in site.secondaries if pool[0] == "A"]
    out = ['[store]\ncatalog = "catalog.db"\n[device_classes.disk]\ntype = "disk"\n']
    for index, (name, limit) in enumerate(site.chain):
        out.append(_pool(name, "primary", sizes[name]))
        if index + 1 < len(site.chain):
            out.append(f'next = "{site.chain[index + 1][0]}"\n')
        if limit is not None:
            out.append(f"max_size = {limit}\n")
        if index == 0:
            out.append(f"copy_pools = {copies}\nactive_data_pools = {actives}\n")
            out.append(f"copy_continue = {str(site.copy_continue).lower()}\n")
    out += [_pool(name, "copy", sizes[name]) for name in copies]
    out += [_pool(name, "active-data", sizes[name]) for name in actives]
    for node, allowed in zip(NODES, (actives, []), strict=True):
        out.append(f'[domains.D{node}]\ndestination = "{site.chain[0][0]}"\n')
        out.append(f"active_destinations = {allowed}\n" if allowed else "")
        out.append(f'[nodes.{node}]\ndomain = "D{node}"\n')
    return "".join(out)


def _pool(name: str, kind: str, sizes: tuple[int, ...]) -> str:
    volumes = ", ".join(
        f'{{ path = "{name}-{n}.vol", size = {max(size, MIN_CONFIGURED)} }}'
        for n, size in enumerate(sizes)
    )
    return f'[pools.{name}]\ntype = "{kind}"\ndevice_class = "disk"\nvolumes = [{volumes}]\n'


def new_engine(seed: int) -> Engine:
    """A simulated engine, as small as it may be."""
    return Engine(
        backend="faulty", memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT, max_streams=6,
        soft_deadline=30.0, hard_deadline=HARD_DEADLINE, seed=seed,
    )  # fmt: skip


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A directory on a memory file system, if there is one."""
    shm = "/dev/shm"
    return tempfile.TemporaryDirectory(
        prefix="fanout-sim-", dir=shm if os.path.isdir(shm) else None
    )


class Grounds:
    """The sites that were used so far. A context manager.

    Args:
        within: a directory of somebody who clears it away however this process ends; empty: one of its own.
    """

    def __init__(self, within: str = "") -> None:
        self._base = (
            tempfile.TemporaryDirectory(prefix="fanout-sim-", dir=within) if within else scratch()
        )
        self._made: dict[tuple[int, str], Ground] = {}

    def of(self, site: Site) -> Ground:
        return self.of_its_own(site, "")

    def of_its_own(self, site: Site, name: str) -> Ground:
        """The same for the same name, and nobody else's."""
        if (site.number, name) not in self._made:
            base = Path(self._base.name, name)
            base.mkdir(exist_ok=True)
            self._made[site.number, name] = Ground(site, base)
        return self._made[site.number, name]

    def __enter__(self) -> Grounds:
        return self

    def __exit__(self, *_: object) -> None:
        for ground in self._made.values():
            ground.medium.close()
        self._base.cleanup()
