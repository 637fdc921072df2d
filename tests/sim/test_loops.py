"""A share of the counting loops, to their ends; all of them: ``make test-faults``, ``make nightly``."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Any

import pytest

from fanout.types import Phase
from tests import independent_reader
from tests.sim import oracle
from tests.sim.ground import Grounds
from tests.sim.loops import Known, LoopFailed, LoopWorld, prepared, run_loops, strikes
from tests.sim.plan import CatalogFault, Fault
from tests.sim.workloads import LOOPED, WORKLOADS, with_fault
from tests.sim.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sim.oracle import Books


@pytest.fixture(scope="module")
def grounds() -> Iterator[Grounds]:
    logging.disable()
    with Grounds() as made:
        yield made
    logging.disable(logging.NOTSET)


def test_every_operation_of_the_smallest_workload(grounds: Grounds) -> None:
    """Some operation of a session fails in a way that half a transaction, a wrong gap or a lost one comes of it."""
    done = run_loops(["no copies at all"], grounds, every=12)
    assert done.total() > 50


@pytest.mark.parametrize("name", LOOPED)
def test_every_workload_is_struck(name: str, grounds: Grounds) -> None:
    """The fault of a workload is taken away before anything meets it: its loop ends with the first case, and says nothing."""
    workload, known = LOOPED[name], Known()
    ground = prepared(name, grounds, known)
    assert not strikes(name, workload.plan, ground, known)
    for fault in (
        Fault(0, "*", "errno", 0, errno.EIO, 1, forever=False),
        CatalogFault(0, "write", "EIO write", 1, forever=False, after=False),
    ):
        if not (isinstance(fault, Fault) and workload.where == "catalog"):
            assert strikes(name, workload.struck_by(fault, opening=False), ground, known)


def test_what_was_read_once_is_what_would_be_read_again(
    grounds: Grounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catalogs that say something else would be taken for the same, and the oracle would judge what is not there."""
    compared, cached = 0, LoopWorld.books

    def both(world: LoopWorld) -> Books:
        nonlocal compared
        found = cached(world)
        world._read = None
        assert World.books(world) == found
        compared += 1
        return found

    monkeypatch.setattr(LoopWorld, "books", both)
    run_loops(["no copies at all"], grounds, every=60)
    assert compared > 100


def test_a_directory_of_the_same_bytes_says_the_same(
    grounds: Grounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories that differ would be taken for the same, and V16 would judge one that is not there."""
    compared, remembered = 0, oracle._Media.directory

    def both(media: oracle._Media) -> dict[bytes, dict[str, Any]]:
        nonlocal compared
        found = remembered(media)
        assert found == independent_reader.Volume.directory(media)
        compared += 1
        return found

    monkeypatch.setattr(oracle._Media, "directory", both)
    run_loops(["no copies at all"], grounds, every=60)
    assert compared > 100


def test_what_survivors_are_given_is_compared(grounds: Grounds) -> None:
    """A failing target changes what the others are given (V12), and the loops do not look."""
    plan = WORKLOADS["a group"]
    known, ground = Known(), grounds.of(plan.site)
    assert not strikes("a group", plan, ground, known)
    assert known.untroubled is not None
    failing = with_fault(plan, Fault(0, "C1", "errno", Phase.WRITE, errno.EIO, 1, forever=False))
    assert strikes("a group", failing, ground, known)
    path = next(path for path in known.untroubled if path.endswith("P1-0.vol"))
    known.untroubled[path] = {(offset, digest ^ 1) for offset, digest in known.untroubled[path]}
    with pytest.raises(LoopFailed, match=r"V12.*P1-0\.vol"):
        strikes("a group", failing, ground, known)
