"""Whether the volumes are where the configuration and the catalog say. What is not used is named; a copy of a store does not write into the original."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.config import Access
from fanout.errors import CatalogError
from fanout.making import volume_of_store

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from fanout.catalog import CatalogReader, VolumeEntry
    from fanout.config import Config
    from fanout.engine import Engine
    from fanout.pools import PoolSet

_log = logging.getLogger("fanout.store")


def warn_of_absent(pools: PoolSet) -> None:
    """Promise 4: the store goes on without them, but not in silence. What the configuration keeps away is no news."""
    for pool in pools.pools.values():
        for member in pool.members:
            if member.volume is None and pool.config.access is not Access.UNAVAILABLE:
                path, why = member.entry.path, member.reason
                _log.warning("%s of pool %s is not used: %s", path, pool.name, why)


def look_at_paths(
    config: Config, catalog: CatalogReader, engine: Engine, *, read_only: bool
) -> None:
    """Warn of paths of the configuration that the catalog does not know; refuse to write where it knows their volumes elsewhere.

    Raises:
        CatalogError: the same volume is there twice. A store that was copied would write into the one that it was copied from.
    """
    known = {entry.volume: entry for entry in catalog.volumes()}
    retired = {entry.path for entry in catalog.retired()}
    for pool, path, listed in _paths_unknown(config, known.values()):
        found = None if path in retired else volume_of_store(engine, path, catalog.store_id)
        entry = known.get(found.volume) if found else None
        if entry and os.path.exists(entry.path):
            if os.path.samefile(path, entry.path):
                continue
            if not read_only:
                raise CatalogError(
                    catalog.path,
                    f"{path} is a volume that the catalog knows as {entry.path}, and both are there: was the store copied or "
                    "moved? 'fanout rebuild catalog --force' makes a catalog of those that fanout.toml names",
                )
        if found and found.pool != pool:
            what = f"is a volume of pool {found.pool}, and is not used: name it there"
        elif found:
            what = (
                "is a volume of this store, which the catalog knows under another path, and is not used; "
                "if it was moved, 'fanout rebuild catalog --force' takes it in"
            )
        elif listed:
            what = f"{'was given up' if path in retired else 'is not known to the catalog'}, and is not used; 'fanout init --add' makes a volume there"
        else:
            continue
        _log.warning("%s of pool %s %s", path, pool, what)


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
