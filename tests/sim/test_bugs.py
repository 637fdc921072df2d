"""The simulation would find a bug: one of those of tests/sim/bugs.py here, all of them in ``make test-faults``."""

from __future__ import annotations

from tests.sim.bugs import BUGS, ROOT, hunt


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
