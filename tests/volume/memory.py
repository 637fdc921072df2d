"""What values take, counted and not timed."""

from __future__ import annotations

import gc
import tracemalloc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def grown(make: Callable[[], Any]) -> int:
    """Bytes that what was made takes."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
        assert made is not None
        return taken
    finally:
        tracemalloc.stop()
