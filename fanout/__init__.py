"""fanout lands a client's bytes on every storage pool at the same time and says exactly what happened on each.

Three doors, from the bare metal up:

* `Engine` and `tee`: one stream of bytes to several files or devices, checksummed, an outcome for each.
* `fanout.session` with a `fanout.host.Host` of your own: pools, transactions, removal and retry, over your own layout and catalog.
* `Store`: the same rules with fanout's volumes and catalog.

Names are loaded when they are first used, so that ``import fanout`` costs nothing that is not needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fanout import aio, errors, types
    from fanout._tee import TeeResult, tee
    from fanout.audit import audit_stgpool, retire_volume
    from fanout.backup import backup_catalog
    from fanout.check import check_store
    from fanout.config import Config
    from fanout.config import load as load_config
    from fanout.engine import Engine
    from fanout.errors import FanoutError
    from fanout.rebuild import rebuild_catalog
    from fanout.reconcile import backup_stgpool, copy_activedata, restore_stgpool
    from fanout.session import Session
    from fanout.sources import once, spooled
    from fanout.store import Store

__all__ = [
    "Config",
    "Engine",
    "FanoutError",
    "Session",
    "Store",
    "TeeResult",
    "__version__",
    "aio",
    "audit_stgpool",
    "backup_catalog",
    "backup_stgpool",
    "check_store",
    "copy_activedata",
    "errors",
    "load_config",
    "once",
    "rebuild_catalog",
    "restore_stgpool",
    "retire_volume",
    "spooled",
    "tee",
    "types",
]

# Public name: where it lives. An empty attribute names the module itself.
_HOMES = {
    "Config": ("fanout.config", "Config"),
    "Engine": ("fanout.engine", "Engine"),
    "FanoutError": ("fanout.errors", "FanoutError"),
    "Session": ("fanout.session", "Session"),
    "Store": ("fanout.store", "Store"),
    "audit_stgpool": ("fanout.audit", "audit_stgpool"),
    "backup_catalog": ("fanout.backup", "backup_catalog"),
    "backup_stgpool": ("fanout.reconcile", "backup_stgpool"),
    "check_store": ("fanout.check", "check_store"),
    "copy_activedata": ("fanout.reconcile", "copy_activedata"),
    "errors": ("fanout.errors", ""),
    "load_config": ("fanout.config", "load"),
    "once": ("fanout.sources", "once"),
    "rebuild_catalog": ("fanout.rebuild", "rebuild_catalog"),
    "restore_stgpool": ("fanout.reconcile", "restore_stgpool"),
    "retire_volume": ("fanout.audit", "retire_volume"),
    "spooled": ("fanout.sources", "spooled"),
    "aio": ("fanout.aio", ""),
    "TeeResult": ("fanout._tee", "TeeResult"),
    "tee": ("fanout._tee", "tee"),
    "types": ("fanout.types", ""),
}


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
