"""What long runs leave behind: one JSON file each, with what made it and on what.

A run of pytest keeps one when FANOUT_EVIDENCE names the file, without date and suffix: tests by file and function, how long they took,
why some were skipped, and what they counted with `record_property`, added up.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pytest

    # The fixture `record_property`.
    Record = Callable[[str, object], None]


def origin(command: str) -> dict[str, Any]:
    """What is said at the top of every result."""
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "fanout": version("fanout"),
        "processors": os.cpu_count(),
        "load_at_begin": round(os.getloadavg()[0], 2),
    }


def path_of(place: Path, name: str, head: Mapping[str, Any]) -> Path:
    """Where the result of a run stands that began today."""
    place.mkdir(parents=True, exist_ok=True)
    return place / f"{head['date']}-{name}.json"


def keep(path: Path, result: Mapping[str, Any]) -> None:
    """Write it, over what an earlier run of the same day has left."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class Recorder:
    """A pytest plugin: counts the tests of a run and keeps the result at its end.

    Args:
        kept: path without date and suffix.
        head: of the result.
    """

    def __init__(self, kept: Path, head: dict[str, Any]) -> None:
        self._kept, self._head = kept, head
        self._began = time.monotonic()
        self._ends: dict[str, Counter[str]] = {}  # and what they counted
        self._seconds: dict[str, float] = {}
        self._reasons: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One test's set-up, call or tear-down has ended."""
        test = report.nodeid.partition("[")[0]
        ends = self._ends.setdefault(test, Counter())
        if report.when == "call" or not report.passed:
            ends[report.outcome] += 1
        if report.when == "teardown":
            ends.update({name: n for name, n in report.user_properties if isinstance(n, int)})
        self._seconds[test] = self._seconds.get(test, 0.0) + report.duration
        if report.skipped and isinstance(report.longrepr, tuple):
            self._reasons[report.longrepr[2]] += 1

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Also when it was broken off."""
        tests = {
            test: {**ends, "seconds": round(self._seconds[test])}
            for test, ends in self._ends.items()
        }
        result = {
            **self._head,
            "complete": exitstatus == 0,
            "seconds": round(time.monotonic() - self._began),
            "tests": tests,
            "skipped_because": dict(self._reasons),
        }
        keep(path_of(self._kept.parent, self._kept.name, self._head), result)
