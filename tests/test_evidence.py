"""What a long run leaves behind is what happened in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests import evidence

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

pytest_plugins = "pytester"

RUN = """
import pytest

@pytest.mark.parametrize("kills", [2, 3])
def test_kills(kills, record_property):
    record_property("kills", kills)

def test_absent():
    pytest.skip("no such device")

def test_broken():
    assert False
"""


def test_a_run_is_counted(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile(test_run=RUN)
    head = evidence.origin("a command")
    recorder = evidence.Recorder(tmp_path / "results" / "some", head)
    pytester.inline_run(plugins=[recorder])
    (kept,) = (tmp_path / "results").iterdir()
    assert kept.name == f"{head['date']}-some.json"
    found = json.loads(kept.read_text())
    assert (found["command"], found["complete"]) == ("a command", False)
    assert found["skipped_because"] == {"Skipped: no such device": 1}
    assert found["tests"] == {
        "test_run.py::test_kills": {"passed": 2, "kills": 5, "seconds": 0},
        "test_run.py::test_absent": {"skipped": 1, "seconds": 0},
        "test_run.py::test_broken": {"failed": 1, "seconds": 0},
    }
