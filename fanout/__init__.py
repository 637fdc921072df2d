"""fanout lands a client's bytes on every storage pool at the same time and says exactly what happened on each.

Three doors, from the bare metal up:

* `Engine` and `tee`: one stream of bytes to several files or devices, checksummed, an outcome for each.
* `Session` with a `fanout.host.Host` of your own: pools, transactions, removal and retry, over your own layout and catalog.
* `Store`: the same rules with fanout's volumes and catalog.

Public are the names of `__all__`, and what the modules among them offer: `aio`, `config`, `engine`, `errors`, `host`, `types`. All else may change.

Names are loaded when they are first used, so that ``import fanout`` costs nothing that is not needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fanout import aio, config, engine, errors, host, types
    from fanout._tee import TeeResult, tee
    from fanout.audit import AuditReport, audit_stgpool
    from fanout.backup import backup_catalog
    from fanout.catalog import GapEntry, ObjectEntry, OccupancyEntry, VolumeEntry
    from fanout.catalog.backup import CatalogBackup
    from fanout.check import CheckReport, Problem, check_store
    from fanout.config import Config
    from fanout.config import load as load_config
    from fanout.deletion import DeleteReport
    from fanout.engine import Engine
    from fanout.errors import FanoutError
    from fanout.pool import VolumeStatus
    from fanout.read import Fault as ReadFault
    from fanout.read import ObjectReader
    from fanout.rebuild import InDoubt, Lost, RebuildReport, SkippedVolume, rebuild_catalog
    from fanout.reconcile import ReconcileReport, backup_stgpool, copy_activedata, restore_stgpool
    from fanout.retire import RetireReport, retire_volume
    from fanout.session import Attempt, Session
    from fanout.sources import OnceSource, ResentSource, SpooledSource, once, resent, spooled
    from fanout.store import Store
    from fanout.store_reader import PoolStatus
    from fanout.transaction import State as TransactionState
    from fanout.transaction import Transaction

__all__ = [
    "Attempt",
    "AuditReport",
    "CatalogBackup",
    "CheckReport",
    "Config",
    "DeleteReport",
    "Engine",
    "FanoutError",
    "GapEntry",
    "InDoubt",
    "Lost",
    "ObjectEntry",
    "ObjectReader",
    "OccupancyEntry",
    "OnceSource",
    "PoolStatus",
    "Problem",
    "ReadFault",
    "RebuildReport",
    "ReconcileReport",
    "ResentSource",
    "RetireReport",
    "Session",
    "SkippedVolume",
    "SpooledSource",
    "Store",
    "TeeResult",
    "Transaction",
    "TransactionState",
    "VolumeEntry",
    "VolumeStatus",
    "__version__",
    "aio",
    "audit_stgpool",
    "backup_catalog",
    "backup_stgpool",
    "check_store",
    "config",
    "copy_activedata",
    "engine",
    "errors",
    "host",
    "load_config",
    "once",
    "rebuild_catalog",
    "resent",
    "restore_stgpool",
    "retire_volume",
    "spooled",
    "tee",
    "types",
]

# Public name: where it lives. An empty attribute names the module itself.
_HOMES = {
    "Attempt": ("fanout.session", "Attempt"),
    "AuditReport": ("fanout.audit", "AuditReport"),
    "CatalogBackup": ("fanout.catalog.backup", "CatalogBackup"),
    "CheckReport": ("fanout.check", "CheckReport"),
    "Config": ("fanout.config", "Config"),
    "DeleteReport": ("fanout.deletion", "DeleteReport"),
    "Engine": ("fanout.engine", "Engine"),
    "FanoutError": ("fanout.errors", "FanoutError"),
    "GapEntry": ("fanout.catalog", "GapEntry"),
    "InDoubt": ("fanout.rebuild", "InDoubt"),
    "Lost": ("fanout.rebuild", "Lost"),
    "ObjectEntry": ("fanout.catalog", "ObjectEntry"),
    "ObjectReader": ("fanout.read", "ObjectReader"),
    "OccupancyEntry": ("fanout.catalog", "OccupancyEntry"),
    "OnceSource": ("fanout.sources", "OnceSource"),
    "PoolStatus": ("fanout.store_reader", "PoolStatus"),
    "Problem": ("fanout.check", "Problem"),
    "ReadFault": ("fanout.read", "Fault"),
    "RebuildReport": ("fanout.rebuild", "RebuildReport"),
    "ReconcileReport": ("fanout.reconcile", "ReconcileReport"),
    "ResentSource": ("fanout.sources", "ResentSource"),
    "RetireReport": ("fanout.retire", "RetireReport"),
    "Session": ("fanout.session", "Session"),
    "SkippedVolume": ("fanout.rebuild", "SkippedVolume"),
    "SpooledSource": ("fanout.sources", "SpooledSource"),
    "Store": ("fanout.store", "Store"),
    "TeeResult": ("fanout._tee", "TeeResult"),
    "Transaction": ("fanout.transaction", "Transaction"),
    "TransactionState": ("fanout.transaction", "State"),
    "VolumeEntry": ("fanout.catalog", "VolumeEntry"),
    "VolumeStatus": ("fanout.pool", "VolumeStatus"),
    "aio": ("fanout.aio", ""),
    "audit_stgpool": ("fanout.audit", "audit_stgpool"),
    "backup_catalog": ("fanout.backup", "backup_catalog"),
    "backup_stgpool": ("fanout.reconcile", "backup_stgpool"),
    "check_store": ("fanout.check", "check_store"),
    "config": ("fanout.config", ""),
    "copy_activedata": ("fanout.reconcile", "copy_activedata"),
    "engine": ("fanout.engine", ""),
    "errors": ("fanout.errors", ""),
    "host": ("fanout.host", ""),
    "load_config": ("fanout.config", "load"),
    "once": ("fanout.sources", "once"),
    "rebuild_catalog": ("fanout.rebuild", "rebuild_catalog"),
    "resent": ("fanout.sources", "resent"),
    "restore_stgpool": ("fanout.reconcile", "restore_stgpool"),
    "retire_volume": ("fanout.retire", "retire_volume"),
    "spooled": ("fanout.sources", "spooled"),
    "tee": ("fanout._tee", "tee"),
    "types": ("fanout.types", ""),
}


if not TYPE_CHECKING:  # a type checker would take every name for granted, a misspelt one, too

    def __getattr__(name: str) -> Any:
        """Load a public name on first use (PEP 562)."""
        try:
            home, attribute = _HOMES[name]
        except KeyError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        module = importlib.import_module(home)
        value = getattr(module, attribute) if attribute else module
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
