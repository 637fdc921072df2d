"""Ctrl-C at every point of a deletion at which Python lets one through.

What could break: directories that were just being written are taken for failed, and with them all volumes, so that the other sessions of a daemon find no
place for a second; records that somebody had taken to write them and nobody wrote: a hole in the evidence.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from fanout import check_store
from fanout.catalog import CatalogReader
from tests.store.histories import SmallSite, snapshot
from tests.store.test_delete import put, small
from tests.store.test_rebuild import rebuilt
from tests.strike import Striker

if TYPE_CHECKING:
    from fanout.store import Store

__all__ = ["small"]  # the fixture

STRIDE = 7


def deletion(store: Store, point: int) -> bool:
    """One of a part of an aggregate, and of all of another; whether an interrupt struck."""
    put(store, {b"a": b"a" * 3000, b"b": b"b" * 3000})
    striker = Striker(point)
    try:
        sys.setprofile(striker)
        store.delete("N1", b"a")
        store.delete("N1", [b"b"], keep=0)
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return striker.struck


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a generator
def test_an_interrupt_anywhere(small: SmallSite) -> None:
    """A Ctrl-C failed the volumes whose records it met on their way."""
    point, more = 1 + small.rng.randrange(STRIDE), True
    with small.open() as store:
        while more:
            more = deletion(store, point)
            states = {(v.path, v.state, v.reason) for v in store.query_volumes()}
            assert {state for _, state, _ in states} == {"available"}, (point, states)
            store.delete("N1", None, keep=0)
            point += STRIDE
        assert point > 400
    assert [p.what for p in check_store(small.path, data=False).problems] == []
    with CatalogReader(small.catalog) as catalog:
        before = snapshot(catalog)
    assert rebuilt(small)[0]["objects"] == before["objects"]
