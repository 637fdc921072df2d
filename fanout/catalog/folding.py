"""When the catalog's log is folded into the database: outside of anybody's commit, and not at every one.

SQLite writes the log from its beginning again once all of it is folded, in the space that it had. So the size of its file says how
long it has been once, and not how long it is: what is long once would be folded behind every commit from then on, with two flushes
and a connection of its own each time. Nor does it write from the beginning while commits never pause: see `Catalog.checkpoint`.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from fanout.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.catalog.door import Catalog

FOLD_LOG_BYTES = 16 << 20  # a shorter log is left alone
FOLD_PAUSE = 1.0  # seconds between two folds, unless the log has grown by as much again

_log = logging.getLogger("fanout.catalog")


class LogFolder:
    """Folds a catalog's log when that is due. One thread at a time.

    Args:
        catalog: open for writing.
        enough: bytes from which on it is long.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        enough: int = FOLD_LOG_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog, self._enough, self._clock = catalog, enough, clock
        self._next = 0.0
        self._size = 0  # of the log, when it was folded last

    def fold_if_due(self) -> None:
        """To be called behind commits. A failure costs space, not safety."""
        size = 0
        with suppress(OSError):
            size = os.stat(f"{self._catalog.path}-wal").st_size
        if size < self._enough:
            return
        now = self._clock()
        if now < self._next and size < self._size + self._enough:
            return
        self._next, self._size = now + FOLD_PAUSE, size
        try:
            self._catalog.checkpoint(enough=self._enough)
        except CatalogError as error:
            _log.warning("the catalog's log was not folded: %s", error)
