"""A tiny scenario on files, and its result, made once for all tests that look at results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fanout.bench import plan, run, scenario

if TYPE_CHECKING:
    from pathlib import Path

TINY = """
title = "Tiny & <odd>"
rounds = 2
[targets.files]
kind = "files"
size = "4 MiB"
[[measure]]
name = "sweep"
kind = "stream"
targets = [1, 3]
peers = ["python_threads", "dd_tee"]
[[measure]]
name = "point"
kind = "stream"
chunk = "4 KiB"
streams = 2
peers = ["python_threads_bare", "dd_tee"]
[[measure]]
name = "latency"
kind = "latency"
chunk = "4 KiB"
operations = 5
[[measure]]
name = "small"
kind = "small"
groups = [1, 10]
most_objects = 20
most_transactions = 3
[[measure]]
name = "memory"
kind = "memory"
bytes = "16 MiB"
memory = "32 MiB"
[[goal]]
figure = "point.bandwidth"
at_least = 0.001
[[goal]]
figure = "memory.growth_vs_budget"
title = "growth"
at_most = [1000, 0.001]
[[goal]]
figure = "point.bandwidth_vs_dd_tee"
at_least = 1
"""


@pytest.fixture(scope="session")
def tiny() -> plan.Scenario:
    """Everything that needs neither root nor a package."""
    return scenario.parse(TINY, path="tiny.toml")


@pytest.fixture(scope="session")
def result(tiny: plan.Scenario, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of it; nothing may be left where it ran."""
    place: Path = tmp_path_factory.mktemp("bench")
    found = run.run(tiny, directory=place, command=["fanout", "bench", "run", "tiny.toml"])
    assert list(place.iterdir()) == []
    return found
