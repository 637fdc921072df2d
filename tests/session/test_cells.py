"""Every cell of the rules: what each pool does, by kind of object, with and without a next primary, and what must come of it.

What could break: a combination that nobody thought of takes a branch of its own: a pool that leaves without a gap, one that is called
complete and is not, a resend where none is allowed, a transaction that fails though the rules carry it on. The model here is written
from docs/simultaneous-write.md: it knows who must leave and what must be held, and nothing of how it comes to that.
"""

from __future__ import annotations

import errno
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from fanout import policy
from fanout.engine import Engine, Fault
from fanout.errors import PoolFull, PoolUnavailable, TransactionFailed
from fanout.types import Destination, ObjectKind, Phase, Primary

from .conftest import AD, C1, C2, MIB, POOLS, SLOT, SLOTS, DictHost, Framing, World
from .test_vectors import content

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from fanout.host import ReserveRequest, Span
    from fanout.session import Session

SECONDARIES = {"C1": C1, "C2": C2, "AD": AD}
# What a pool does: it has no volume (absent, later vanishes) or no room (tiny, later fills), or its device fails.
ABSENT = {"absent"}
REFUSES = {"absent", "tiny", "vanishes", "fills"}
STATES = ("absent", "tiny", "vanishes", "fills", "writes", "flushes", "once")
PRIMARY = ("fine", "absent", "tiny", "vanishes", "fills", "writes", "flushes", "once", "closed")


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        pools: what each pool does; those that are not named are fine.
        kind: of the objects.
        copy_continue: of the destination.
        lower: whether there is a next primary.
        limit: whether E is above the destination's max_size.
        unknown: whether nobody knows the length of E.
    """

    pools: dict[str, str]
    kind: ObjectKind
    copy_continue: bool
    lower: bool
    limit: bool
    unknown: bool

    def does(self, pool: str) -> str:
        return self.pools.get(pool, "fine")

    @property
    def required(self) -> list[str]:
        return [p for p in SECONDARIES if p != "AD" or self.kind is ObjectKind.BACKUP]

    @property
    def leaving(self) -> set[str]:
        """Who fails of those that are written to."""
        return {pool for pool in self.required if self.does(pool) != "fine"}

    def outcomes(self) -> set[str]:
        """Reasons of which one is given; empty: it commits. Where several rules end it, which is met first is chance."""
        reasons = set()
        if not self.copy_continue and self.leaving & {"C1", "C2"}:
            reasons.add("copy_continue")
        where = self.primaries()
        if where is None:
            reasons.add("space")
        if self.does("DP") in {"writes", "flushes"}:
            reasons.add("budget")
        return reasons

    def primaries(self) -> tuple[str, str] | None:
        """Where A and E lie; None: no primary takes one of them."""
        first = "TP" if self.does("DP") in {"absent", "tiny", "closed"} else "DP"
        second = "TP" if self.does("DP") in REFUSES | {"closed"} or self.limit else "DP"
        return (first, second) if self.lower or "TP" not in (first, second) else None


class Refusing(DictHost):
    """A host with pools that have no volume or no room."""

    cell: Cell
    puts: int  # of this attempt

    def reserve(self, request: ReserveRequest) -> list[Span]:
        for pool in (request.primary, *request.secondaries):
            does = self.cell.does(pool)
            if does == "absent" or (does == "vanishes" and self.puts > 1):
                raise PoolUnavailable(pool, "no volume")
            if does == "tiny" or (does == "fills" and self.puts > 1):
                raise PoolFull(pool, "no room")
        return super().reserve(request)


class Pieces:
    """Bytes of which nobody knows how many there are, as often as they are asked for."""

    def __iter__(self) -> Iterator[bytes]:
        data = content("E")
        for at in range(0, len(data), 300_000):
            yield data[at : at + 300_000]


def faults(world: World, cell: Cell) -> list[Fault]:
    made: dict[str, dict[str, Any]] = {
        "writes": {"kind": Phase.WRITE, "count": None},
        "flushes": {"kind": Phase.FLUSH, "count": None},
        "once": {"kind": Phase.WRITE, "count": 1},
    }
    return [
        Fault.error(errno.EIO, target=world.target(pool), **made[does])
        for pool, does in cell.pools.items()
        if does in made
    ]


def store(session: Session, host: Refusing) -> None:
    for attempt in session.attempts():
        with attempt as transaction:
            host.puts = 1
            transaction.put("A", content("A"))
            host.puts = 2
            transaction.put("E", Pieces() if host.cell.unknown else content("E"))


def play(world: World, host: Refusing, cell: Cell) -> None:
    """One session, one transaction: what became of it is what the rules say."""
    chain = (Primary("DP", MIB if cell.limit else None, cell.does("DP") != "closed"), Primary("TP"))
    to = Destination(
        chain[: 1 + cell.lower], tuple(SECONDARIES.values()), copy_continue=cell.copy_continue
    )
    session = world.session(to, kind=cell.kind)
    host.cell = cell
    world.engine.set_faults(faults(world, cell))
    wanted = cell.outcomes()
    told = ""
    try:
        store(session, host)
    except TransactionFailed as failed:
        told = failed.reason
    finally:
        world.engine.set_faults([])
    assert told in (wanted or {""}), cell
    if told:
        assert world.host.records == [], cell
        assert session.receipt is None, cell
        assert set(session.removed) <= cell.leaving, cell
    else:
        committed(world, cell, session)
    world.at_rest()


def committed(world: World, cell: Cell, session: Session) -> None:
    receipt, (record,) = session.receipt, world.host.records
    assert receipt is not None
    assert set(session.removed) == set(receipt.removed) == cell.leaving, cell
    assert receipt.attempt <= policy.max_attempts(session.destination, retries=2), cell
    again = cell.leaving and {cell.does(pool) for pool in cell.leaving} != ABSENT
    outgrown = cell.unknown and cell.primaries() == (
        "DP",
        "TP",
    )  # it begins behind A, where there is room
    if not again and not outgrown and cell.does("DP") != "once":
        assert receipt.attempt == 1, cell  # nobody was asked to send anything again
    else:
        assert receipt.attempt > 1, cell
    holding = [pool for pool in cell.required if pool not in cell.leaving]
    where = cell.primaries()
    assert where is not None
    lie = dict(zip("AE", where, strict=True))
    assert {m.name.decode(): a.primary for a in record.aggregates for m in a.members} == lie, cell
    for aggregate in record.aggregates:
        assert aggregate.pools == (aggregate.primary, *holding), cell
        assert {gap.pool for gap in aggregate.gaps} == cell.leaving, cell
        assert all(gap.reason for gap in aggregate.gaps), cell
    for name, primary in lie.items():
        for pool in (primary, *holding):
            assert world.host.read(pool, name) == content(name), cell
    assert receipt.degraded == bool(cell.leaving), cell


def some_of(pools: dict[str, str], rng: random.Random, count: int = 8) -> list[Cell]:
    """What the pools do, in some of the 48 surroundings."""
    found = [
        Cell(pools, kind, *flags)
        for kind in ObjectKind
        for flags in itertools.product((False, True), repeat=4)
    ]
    return rng.sample(found, count)


def play_all(cells: list[Cell], rng: random.Random, directory: Path) -> None:
    """All in one world, until a flush has failed: that ends a volume for good."""
    left = iter(cells)
    cell = next(left, None)
    while cell is not None:
        with Engine(
            backend="faulty",
            memory_bytes=SLOTS * SLOT,
            slot_size_bytes=SLOT,
            seed=rng.getrandbits(32),
        ) as engine:
            host = Refusing(framing=Framing())
            world = World(engine, host, directory)
            for pool in POOLS:
                world.volume(pool, 4 * MIB)
            ended = False
            try:
                while cell is not None and not ended:
                    play(world, host, cell)
                    ended = "flushes" in cell.pools.values()
                    world.sessions.clear()
                    world.host.records.clear()
                    world.host.forget()
                    cell = next(left, None)
            finally:
                world.close()


@pytest.mark.parametrize("copy_continue", [True, False])
def test_a_write_fails_before_the_object_outgrows_its_primary(
    tmp_path: Path, rng: random.Random, no_leaks: None, *, copy_continue: bool
) -> None:
    """C1 has lost what it was given: it was asked for a resend, and was well then, where it must not be done without (R3)."""
    cell = Cell(
        {"C1": "once"}, ObjectKind.BACKUP, copy_continue, lower=True, limit=True, unknown=True
    )
    play_all([cell] * 5, rng, tmp_path)


@pytest.mark.parametrize("pool", ["", *SECONDARIES])
def test_one_pool_fails(pool: str, tmp_path: Path, rng: random.Random, no_leaks: None) -> None:
    """Each of them in each way, in some of the surroundings."""
    pools = [{pool: does} for does in STATES] if pool else [{}]
    play_all([cell for one in pools for cell in some_of(one, rng)], rng, tmp_path)


def test_the_primary_fails(tmp_path: Path, rng: random.Random, no_leaks: None) -> None:
    """In each way, in some of the surroundings."""
    cells = [cell for does in PRIMARY for cell in some_of({"DP": does}, rng)]
    play_all(cells, rng, tmp_path)


def test_several_fail_at_once(tmp_path: Path, rng: random.Random, no_leaks: None) -> None:
    """By chance, all of them together now and then."""
    cells = []
    for _ in range(80):
        pools = {p: rng.choice(STATES) for p in SECONDARIES if rng.random() < 0.6}
        if rng.random() < 0.5:
            pools["DP"] = rng.choice(PRIMARY)
        cells += some_of(pools, rng, 1)
    play_all(cells, rng, tmp_path)
