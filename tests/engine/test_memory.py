"""The n-th allocation of Python fails, for n = 1, 2, 3 … until a call no longer reaches it.

What could break: something that the core has opened or lent, and that Python then has no object for: it would stay open for good.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

import pytest

from fanout import _core
from fanout.engine import Engine

from .conftest import SLOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_testcapi = pytest.importorskip("_testcapi", reason="this Python was built without _testcapi")
BOUND = 25  # allocations of a call: far more than there are
SECOND = 10**9


def held(engine: Engine) -> tuple[int, int, int]:
    """Targets, streams, slots that somebody fills. A target that was forgotten closes itself in its own time."""
    info = engine.info
    for _ in range(5000):
        if info.targets == 1:
            break
        time.sleep(0.001)
        info = engine.info
    return info.targets, info.streams, info.slots_filling


# What the interpreter itself cannot report for want of memory it calls unraisable, and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["target", "stream", "lease"])
def test_no_memory_loses_no_handle(tmp_path: Path, what: str) -> None:
    """Breaks if an object is made only when the core has given what it stands for."""
    with Engine(memory_bytes=16 * SLOT, slot_size_bytes=SLOT, max_streams=2) as engine:
        first = engine.open(tmp_path / "first", create=True)
        core, numbers, name = engine._core, [first.id], bytes(tmp_path / "t")
        stream = core.stream(numbers, SECOND)
        assert not isinstance(stream, int)
        assert stream.place([0], _core.FOREVER) == 0

        def target() -> object:
            return core.target_open(
                name,
                flags=_core.OPEN_REPLACE,
                depth=0,
                size=0,
                lock_wait_ns=0,
                granule=0,
                on_slow=0,
                soft_ns=0,
                hard_ns=0,
                patience_ns=0,
                timeout_ns=10 * SECOND,
            )

        calls: dict[str, Callable[[], object]] = {
            "target": target,
            "stream": lambda: core.stream(numbers, SECOND),
            "lease": lambda: stream.lease(0, SECOND),
        }
        call, before, struck = calls[what], held(engine), 0
        for n in range(BOUND):
            found: object = None
            _testcapi.set_nomemory(n, n + 1)
            try:
                found = call()
            except MemoryError:
                struck += 1
            finally:
                _testcapi.remove_mem_hooks()
            assert not isinstance(found, int), (n, found)
            found = None
            gc.collect()
            assert held(engine) == before, n
        assert struck > 0
        assert stream.close() == 0
