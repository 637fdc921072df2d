"""A share of the counting loops, to their ends; all of them: ``make test-faults``, ``make nightly``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.sim.ground import Grounds
from tests.sim.loops import run_loops

if TYPE_CHECKING:
    from collections.abc import Iterator


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
