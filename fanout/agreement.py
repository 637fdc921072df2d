"""Where configuration and catalog have to agree: on pools and nodes, and on where the volumes are.

What only one of them knows is named, or refused; a copy of a store does not write into the original.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.config import Access
from fanout.errors import CatalogError, ConfigError
from fanout.making import volume_of_store
from fanout.pool import unused_volume

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from fanout.catalog import CatalogReader, PoolEntry, VolumeEntry
    from fanout.config import Config
    from fanout.engine import Engine
    from fanout.pool import VolumeStatus
    from fanout.pools import PoolSet

# Why a path of the configuration is not used.
OTHER_POOL = "it is a volume of pool {}: name it there"
MOVED = "it is a volume of this store, which the catalog knows as {}; if it was moved, 'fanout rebuild catalog --force' takes it in"
BOTH = (
    "it is a volume that the catalog knows as {}, and both are there: was the store copied or moved? "
    "'fanout rebuild catalog --force' makes a catalog of those that fanout.toml names"
)
COPIED = "it is the same volume as {}, and {} names both: take the line of the copy out of it"
LEFT_OUT = "it is a volume of this store that the catalog does not know; 'fanout rebuild catalog --force' takes in what it holds"
# What such a one held is a gap already.
GIVEN_UP = (
    "it is a volume of this store that was given up; 'fanout rebuild catalog --force --take-retired' takes in what it holds; "
    "to do without it, 'fanout init --add --force' makes a new volume in its place"
)
UNKNOWN = (
    "the catalog does not know it; 'fanout init --add' makes a new volume there. If an old one of this store is only away, "
    "bring it back, and 'fanout rebuild catalog --force' takes it in"
)

# Who takes a line out of the file expects that nothing is written there any more.
UNNAMED = "%s of pool %s is used, and %s does not name it: write it there again, or give up what it holds: 'fanout retire volume'"

ELSEWHERE = "%s is used, as a volume of pool %s, and %s names it in pool %s: write it where it was"

_log = logging.getLogger("fanout.store")


def must_be_spelt_alike(config: Config, catalog: CatalogReader) -> None:
    """Names are found in any case, so no two differ by that alone; else what a node has stored would be out of its sight.

    Raises:
        ConfigError: the catalog has a pool or a node by this name in another case.
    """
    for section, configured, known in (
        ("pools", config.pools.keys(), {entry.name for entry in catalog.pools()}),
        ("nodes", config.nodes.keys(), set(catalog.nodes())),
    ):
        spelt = {name.lower(): name for name in known}
        for name in sorted(configured - known):
            if name.lower() in spelt:
                raise ConfigError(
                    f'{catalog.path} knows it as "{spelt[name.lower()]}": write it so',
                    path=str(config.path),
                    key=f"{section}.{name}",
                )


def must_stay_in_their_pools(config: Config, catalog: CatalogReader) -> None:
    """A volume belongs to its pool, and a pool keeps its name.

    Raises:
        ConfigError: a pool lists a volume that the catalog knows as another's.
    """
    known = {entry.path: entry for entry in catalog.volumes()}
    for pool in config.pools.values():
        for number, spec in enumerate(pool.volumes):
            entry = known.get(str(spec.path))
            if entry is not None and entry.pool != pool.name:
                raise ConfigError(
                    f"{entry.path} is a volume of pool {entry.pool} for {catalog.path}, and a pool keeps its name and its volumes: "
                    "write it where it was",
                    path=str(config.path),
                    key=f"pools.{pool.name}.volumes[{number}].path",
                )


def pool_uuids(
    config: Config, catalog: CatalogReader, new: Sequence[PoolEntry] = ()
) -> Mapping[str, bytes]:
    """UUID of every configured pool: of those that the catalog knows, and of those that are being added.

    Raises:
        ConfigError: the catalog does not know one of them, or knows it as something else.
    """
    known = {entry.name: entry for entry in (*catalog.pools(), *new)}
    for pool in config.pools.values():
        entry = known.get(pool.name)
        if entry is None:
            must_stay_in_their_pools(config, catalog)
            raise ConfigError(
                f"{catalog.path} knows no such pool; it has {', '.join(known)} ('fanout init --add' adds it)",
                path=str(config.path),
                key=f"pools.{pool.name}",
            )
        if entry.kind is not pool.kind:
            raise ConfigError(
                f"is a {entry.kind.value} pool in {catalog.path}, and a pool cannot change its type",
                path=str(config.path),
                key=f"pools.{pool.name}.type",
            )
    return {name: entry.pool for name, entry in known.items()}


def warn_of_absent(pools: PoolSet) -> None:
    """Promise 4: the store goes on without them, but not in silence. What the configuration keeps away is no news."""
    for pool in pools.pools.values():
        for member in pool.members:
            if member.volume is None and pool.config.access is not Access.UNAVAILABLE:
                path, why = member.entry.path, member.reason
                _log.warning("%s of pool %s is not used: %s", path, pool.name, why)


def look_at_paths(
    config: Config, catalog: CatalogReader, engine: Engine, *, read_only: bool
) -> list[VolumeStatus]:
    """Warn of what only one of configuration and catalog knows; refuse to write where the catalog knows its volumes elsewhere.

    Returns:
        Of these, what may hold objects that nobody reads, or should take some that it does not.

    Raises:
        CatalogError: the same volume is there twice. A store that was copied would write into the one that it was copied from.
    """
    volumes = catalog.volumes()
    unused = []
    for entry in volumes:
        if entry.pool not in config.pools:
            why = (
                f"{config.path} has no such pool; write [pools.{entry.pool}] there again, or give up what it holds: "
                "'fanout retire volume'"
            )
            unused.append(unused_volume(entry.pool, entry.path, why, entry))
    known = {entry.volume: entry for entry in volumes}
    retired = catalog.retired()
    given_up = {one.path for one in retired} | {one.volume for one in retired}
    named = {str(spec.path): pool.name for pool in config.pools.values() for spec in pool.volumes}
    elsewhere = set()
    for pool, path, listed in _paths_unknown(config, volumes):
        found = volume_of_store(engine, path, catalog.store_id)
        there = known.get(found.volume) if found else None
        elsewhere.add(there)
        copied = False
        if there and os.path.exists(there.path):
            if os.path.samefile(path, there.path):
                continue
            copied = there.path in named
            if not read_only:
                why = COPIED.format(there.path, config.path) if copied else BOTH.format(there.path)
                raise CatalogError(catalog.path, f"{path}: {why}")
        if found and found.volume in given_up:
            _tell(pool, path, GIVEN_UP)
        elif found and found.pool != pool:
            unused.append(unused_volume(pool, path, OTHER_POOL.format(found.pool)))
        elif there and copied:
            unused.append(unused_volume(pool, path, COPIED.format(there.path, config.path)))
        elif there:
            unused.append(unused_volume(pool, path, MOVED.format(there.path)))
        elif found:
            unused.append(unused_volume(pool, path, LEFT_OUT))
        elif listed and path in given_up:
            _tell(pool, path, "it was given up; 'fanout init --add' makes a new volume there")
        elif listed:
            unused.append(unused_volume(pool, path, UNKNOWN))
    for one in unused:
        _tell(one.pool, one.path, one.reason)
    for entry in volumes:
        if entry in elsewhere or not _is_unnamed(config, entry):
            continue
        if entry.path in named:
            _log.warning(ELSEWHERE, entry.path, entry.pool, config.path, named[entry.path])
        else:
            _log.warning(UNNAMED, entry.path, entry.pool, config.path)
    return unused


def _tell(pool: str, path: str, why: str) -> None:
    _log.warning("%s of pool %s is not used: %s", path, pool, why)


def _is_unnamed(config: Config, entry: VolumeEntry) -> bool:
    """Whether the configuration lists its pool's volumes, and not this one."""
    pool = config.pools.get(entry.pool)
    if pool is None or config.device_classes[pool.device_class].directory:
        return False
    return all(str(spec.path) != entry.path for spec in pool.volumes)


def _paths_unknown(
    config: Config, known: Collection[VolumeEntry]
) -> Iterator[tuple[str, str, bool]]:
    """Pool, path, and whether it is listed; those of sequential pools are where their directory is now."""
    made = {entry.path for entry in known}
    for pool in config.pools.values():
        directory = config.device_classes[pool.device_class].directory
        names = [Path(entry.path).name for entry in known if entry.pool == pool.name]
        elsewhere = [directory / name for name in names] if directory else []
        for path in (*(spec.path for spec in pool.volumes), *elsewhere):
            if str(path) not in made:
                yield pool.name, str(path), not directory
