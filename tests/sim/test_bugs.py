"""The simulation would find a bug: one of those of tests/sim/bugs.py here, all of them in ``make test-faults``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from tests.sim import bugs
from tests.sim.bugs import BUGS, ROOT, hunt

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_every_patch_still_fits() -> None:
    """The product has changed, and a planted bug is no longer planted: it would count as found, or as not to be found."""
    for bug in BUGS:
        texts: dict[str, str] = {}
        for file, old, new in bug.edits:
            text = texts.setdefault(file, (ROOT / file).read_text(encoding="utf-8"))
            assert text.count(old) == 1, (bug.name, file)
            texts[file] = text.replace(old, new)
    assert len(BUGS) >= 25
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_a_planted_bug_is_found() -> None:
    """The oracle has gone blind, or the copy with the bug is not what runs."""
    bug = next(bug for bug in BUGS if bug.name == "a gap is not written down")
    found = hunt(bug, limit=300)
    assert found is not None
    assert "V4" in found[1]


def test_a_child_that_dies_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites of a child that was killed stay on the memory file system: what it leaves must lie where its parent clears it away."""
    monkeypatch.setattr(bugs, "scratch", lambda: nullcontext(str(tmp_path)))
    fatal = bugs._bug(
        "it aborts", "fanout/policy.py",
        "    if lists.destination.copy_continue:\n", "    __import__('os').abort()\n    if lists.destination.copy_continue:\n",
    )  # fmt: skip
    found = hunt(fatal, limit=100)
    assert found is not None
    assert "signal" in found[1]
    assert list(tmp_path.glob("fanout-sim-*/site*"))
