"""An interrupt at every point of a transaction at which Python lets one through: at the beginning of a function, and behind a call of C.

What could break: a session that is taken for ever, so that not even `close` gets in; a region that the host is never given back, or twice:
between the two somebody else may have it; a stream that stays open, until the engine has none left; an abort of what is committed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from fanout.sources import once
from fanout.transaction import State
from tests.strike import Striker

from .conftest import C1, MIB, World, destination
from .test_vectors import content

if TYPE_CHECKING:
    from fanout.host import ReserveRequest, Span
    from fanout.session import Session


def objects(session: Session, *, give_up: bool) -> None:
    """Small ones, one of unknown length, one that overflows into another aggregate and over several spans."""
    with session.begin() as txn:
        txn.put("A", content("A"))
        txn.put("D", once(iter([content("D"), content("B")])))
        txn.put("E", content("E"))
        if give_up:
            txn.abort()


def places(spans: list[Span]) -> set[tuple[str, str, int]]:
    return {(p.pool, p.target.path, p.offset) for span in spans for p in span.placements}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a generator
@pytest.mark.parametrize("give_up", [False, True])
def test_an_interrupt_anywhere(
    world: World, monkeypatch: pytest.MonkeyPatch, *, give_up: bool
) -> None:
    """Of what the host hands out in one call, or takes back in one, nobody knows when the interrupt strikes there: it has to look itself."""
    world.host.piece = MIB
    point, struck, reserve = 1, True, world.host.reserve
    handed_out: list[list[Span]] = []

    def reserving(request: ReserveRequest) -> list[Span]:
        handed_out.append(reserve(request))
        return handed_out[-1]

    monkeypatch.setattr(world.host, "reserve", reserving)
    while struck:
        session = world.session(destination(max_size=MIB, secondaries=(C1,)))
        striker, before = Striker(point), len(world.host.records)
        try:
            sys.setprofile(striker)
            objects(session, give_up=give_up)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        session.close()
        state = State.ABORTED if session._transaction is None else session._transaction.state
        committed = len(world.host.records) > before
        assert state is State.UNKNOWN or committed == (state is State.COMMITTED), point
        calls = [*handed_out[-1:], *([span] for spans in handed_out for span in spans)]
        if state is not State.UNKNOWN and world.host.reserved:
            assert any(world.host.reserved <= places(spans) for spans in calls), point
        handed_out.clear()
        world.host.forget()
        assert world.engine.info.streams == 0, point
        struck, point = striker.struck, point + 1
    assert point > 400
