"""For all tests: what needs root is skipped without it, one printed seed, and nothing may be left behind."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import evidence

if TYPE_CHECKING:
    from collections.abc import Iterator

# In the environment: processes that share the tests share the seed.
SEED = int(os.environ.setdefault("FANOUT_SEED", str(random.SystemRandom().getrandbits(32))))


def pytest_report_header() -> str:
    """Name the seed that makes the run repeatable."""
    return f"FANOUT_SEED={SEED}"


def pytest_configure(config: pytest.Config) -> None:
    """Keep what a long run found, when it is told where."""
    shares = hasattr(config, "workerinput")  # the one that hands out the tests hears of all of them
    if (kept := os.environ.get("FANOUT_EVIDENCE")) and not shares:
        command = " ".join(["python -m pytest", *sys.argv[1:]])
        head = {**evidence.origin(command), "FANOUT_SEED": SEED}
        config.pluginmanager.register(evidence.Recorder(Path(kept).resolve(), head))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Files of the benchmark's tests count as one: they reserve huge pages, of which the machine has one stock, and count them."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "tests/bench" if file.startswith("tests/bench/") else file

    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root when there is none."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root")
    for item in items:
        if item.get_closest_marker("root") or item.get_closest_marker("loop"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """What is there before the first test stays: the sweeps of thousands of tests need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that differ by test and follow from FANOUT_SEED."""
    return random.Random(f"{SEED}/{request.node.nodeid}")


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if it leaves a file descriptor or a thread behind."""
    gc.collect()
    before = _descriptors()
    threads = set(threading.enumerate())
    yield
    gc.collect()
    left = {number: name for number, name in _descriptors().items() if before.get(number) != name}
    assert not left, f"descriptors left open: {left}"
    assert not set(threading.enumerate()) - threads, "Python threads left running"


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the listing's own
            continue
    return found
