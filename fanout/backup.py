"""The catalog of a store, copied while the store is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout import config as configuration
from fanout.catalog.backup import CatalogBackup, backup
from fanout.config import Config
from fanout.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

__all__ = ["CatalogBackup", "backup_catalog"]


def backup_catalog(
    config_or_store: Config | str | os.PathLike[str] | Store,
    target: str | os.PathLike[str],
    *,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> CatalogBackup:
    """Copy the catalog of a store, beside its writer or without one.

    The copy is the catalog at one commit, verified and durable when this returns, readable by its owner alone. Put in the place of
    a newer catalog it is refused (`CatalogStale`): the volumes know more. `rebuild_catalog` makes the newest catalog from them.

    Args:
        config_or_store: a configuration, the path of one, or an open store.
        target: path of the copy.
        force: replace a file that stands there.
        on_progress: called with bytes done and bytes in all.

    Raises:
        CatalogError: the catalog cannot be read or is damaged, or the copy cannot be made there. What stood there still does.
    """
    if isinstance(config_or_store, Store):
        config = config_or_store.config
    elif isinstance(config_or_store, Config):
        config = config_or_store
    else:
        config = configuration.load(config_or_store)
    return backup(config.store.catalog, target, force=force, on_progress=on_progress)
