"""The simulation would find a bug: one of those of tests/sim/bugs.py here, all of them in ``make test-faults``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from tests.sim import bugs
from tests.sim.bugs import BUGS, REMEMBERED, ROOT, hunt, remembered
from tests.sim.compile_once import compile_once
from tests.sim.features import in_order, of_seed

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
    found = hunt(bug, limit=300, hints=[1])  # that seed does not find it any more
    assert found is not None
    assert "V4" in found.what
    assert hunt(bug, limit=0, hints=[1, found.seed]) == found._replace(run=2)


def test_what_found_a_bug_is_remembered() -> None:
    """Each run looks for every bug from the first seed on: ten minutes instead of one."""
    hints = remembered()
    assert len(hints.keys() & {bug.name for bug in BUGS}) > len(BUGS) / 2
    assert min(map(min, hints.values())) >= 1
    assert max(map(len, hints.values())) <= REMEMBERED


def test_seeds_that_draw_what_a_bug_needs_come_first() -> None:
    """A seed is left out, or run twice; or a bug wants what no plan draws, and is looked for last of all."""
    for wanted in {bug.wants for bug in BUGS} | {("Vanish",), ("Grow",)}:
        seeds = list(in_order(wanted, 400))
        assert sorted(seeds) == list(range(400))
        fit = [set(wanted) <= of_seed(seed) for seed in seeds]
        assert fit == sorted(fit, reverse=True)
        assert any(fit), wanted


def test_an_object_is_compiled_once(tmp_path: Path) -> None:
    """What a planted bug runs on was compiled from another text, or with other options."""
    objects, source, header = tmp_path / "objects", tmp_path / "a.c", tmp_path / "a.h"

    def made(*options: str) -> bytes:
        target = tmp_path / "a.o"
        target.unlink(missing_ok=True)
        command = ["cc", *options, "-c", str(source), "-o", str(target)]
        assert compile_once(objects, command) == 0
        return target.read_bytes()

    source.write_text('#include "a.h"\nint number(void) { return NUMBER; }\n')
    header.write_text("#define NUMBER 1\n")
    first = made()
    assert made() == first
    assert len(list(objects.iterdir())) == 1
    assert made("-DMORE") == first  # it might have been another
    header.write_text("#define NUMBER 2\n")
    assert made() != first
    assert len(list(objects.iterdir())) == 3


def test_a_bug_without_an_end_is_told_by_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside others the time of a clock was over before the seeds were: a bug counted as found that nobody had found."""
    monkeypatch.setattr(bugs, "PROCESSOR", 3)
    endless = bugs._bug(
        "it never ends", "fanout/policy.py",
        "    if lists.destination.copy_continue:\n", "    while True:\n        pass\n    if lists.destination.copy_continue:\n",
    )  # fmt: skip
    found = hunt(endless, limit=100)
    assert found is not None
    assert found.what == "no end after 3 s of a processor"


def test_a_child_that_dies_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites of a child that was killed stay on the memory file system: what it leaves must lie where its parent clears it away."""
    monkeypatch.setattr(bugs, "scratch", lambda: nullcontext(str(tmp_path)))
    fatal = bugs._bug(
        "it aborts", "fanout/policy.py",
        "    if lists.destination.copy_continue:\n", "    __import__('os').abort()\n    if lists.destination.copy_continue:\n",
    )  # fmt: skip
    found = hunt(fatal, limit=100)
    assert found is not None
    assert "signal" in found.what
    assert list(tmp_path.glob("fanout-sim-*/site*"))
