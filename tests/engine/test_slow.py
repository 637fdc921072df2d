"""Targets that are slow: who is ejected and who is waited for, on a simulated clock; and where every slot is meanwhile."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import xxhash

from fanout.engine import EventKind, Fault
from fanout.types import FaultClass, OutcomeCode, Phase

from .conftest import SLOT, SLOTS

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from fanout.engine import Engine, EngineInfo, Stream, Target

DEPTH = 4
PATIENCE = 2.0


def add_up(info: EngineInfo) -> int:
    """Slots by state; every slot is in one of them."""
    return (
        info.slots_free
        + info.slots_filling
        + info.slots_live
        + info.slots_lagging
        + info.slots_control
        + info.slots_quarantined
    )


def open_three(
    engine: Engine, directory: Path, on_slow: Sequence[str] = ("wait", "wait", "eject")
) -> list[Target]:
    return [
        engine.open(directory / f"t{index}", create=True, size=1 << 20, depth=DEPTH, on_slow=how)
        for index, how in enumerate(on_slow)
    ]


def crawl(*targets: Target, seconds: float = 1.0) -> list[Fault]:
    """Every write takes this long; the others need a tenth of a millisecond."""
    return [Fault.delay(seconds, kind=Phase.WRITE, target=target, count=None) for target in targets]


def pour(stream: Stream, data: bytes) -> int:
    stream.place([0] * len(stream.targets))
    mask = 0
    for at in range(0, len(data), SLOT):
        mask = stream.write(data[at : at + SLOT])
        assert add_up(stream.targets[0].engine.info) == SLOTS
    return mask


def check(target: Target, data: bytes) -> None:
    with open(target.path, "rb") as file:
        assert file.read(len(data)) == data


def test_a_crawling_target_is_ejected_and_the_others_go_on(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if a laggard paces its peers for ever, or if what the survivors hold suffers from its going."""
    targets = open_three(faulty, tmp_path)
    faulty.set_faults(crawl(targets[2]))
    data = rng.randbytes(200 * SLOT)
    began = faulty.now()
    with faulty.stream(targets) as stream:
        assert pour(stream, data) == 0b100
        assert faulty.now() - began < 2 * PATIENCE
        digest = stream.digest()
        outcomes = stream.sync()
        leg = stream.legs()[2]
    assert [outcomes[t].code for t in targets] == [OutcomeCode.OK, OutcomeCode.OK, OutcomeCode.SLOW]
    assert leg.state == "ejected"
    assert outcomes[targets[2]].cls is FaultClass.DEVICE
    assert "behind its peers" in str(outcomes[targets[2]])
    check(targets[0], data)
    check(targets[1], data)
    assert digest == xxhash.xxh3_128_digest(data)
    told = [e for e in faulty.events() if e.kind in (EventKind.LAGGARD, EventKind.EJECTED)]
    assert [(e.kind, e.target, e.outcome) for e in told] == [
        (EventKind.LAGGARD, targets[2].id, OutcomeCode.SLOW),
        (EventKind.EJECTED, targets[2].id, OutcomeCode.SLOW),
    ]
    assert told[0].strikes == 3
    assert told[0].pace < 100
    assert targets[2].state == "active"
    faulty.advance(10.0)
    assert faulty.info.slots_free == SLOTS


def test_a_target_that_waits_paces_the_stream_and_is_told_of(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if the default costs a copy."""
    targets = open_three(faulty, tmp_path, ("wait", "wait", "wait"))
    faulty.set_faults(crawl(targets[2]))
    data = rng.randbytes(100 * SLOT)
    began = faulty.now()
    with faulty.stream(targets) as stream:
        assert pour(stream, data) == 0
        assert all(outcome.ok for outcome in stream.sync().values())
    assert faulty.now() - began >= 100 / DEPTH
    check(targets[2], data)
    events = faulty.events_array()
    assert [int(e["kind"]) for e in events] == [EventKind.LAGGARD]
    assert int(events["strikes"][0]) == 3
    assert targets[2].geometry.latency_ns == pytest.approx(1e9, rel=0.1)
    assert targets[2].geometry.rate == pytest.approx(DEPTH * SLOT, rel=0.3)
    assert targets[2].geometry.on_slow == "wait"


def test_what_the_stream_keeps_is_not_ejected(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if a primary could be lost for being slow, or if a slow secondary goes although the primary is no faster."""
    targets = open_three(faulty, tmp_path, ("eject", "eject", "eject"))
    faulty.set_faults(crawl(targets[0], targets[2]))
    data = rng.randbytes(100 * SLOT)
    with faulty.stream(targets, keep=[targets[0]]) as stream:
        assert pour(stream, data) == 0
        assert all(outcome.ok for outcome in stream.sync().values())


def test_when_all_are_slow_it_is_back_pressure(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if a slow day costs copies."""
    targets = open_three(faulty, tmp_path, ("eject", "eject", "eject"))
    faulty.set_faults(crawl(*targets))
    data = rng.randbytes(100 * SLOT)
    with faulty.stream(targets) as stream:
        assert pour(stream, data) == 0
        assert all(outcome.ok for outcome in stream.sync().values())
    assert faulty.events() == []


def test_a_hung_target_is_ejected_long_before_it_is_let_go(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if its slots are used again, or counted as anything but held for a laggard and then quarantined."""
    targets = open_three(faulty, tmp_path)
    faulty.set_faults([Fault.never(kind=Phase.WRITE, target=targets[2], nth=5, count=None)])
    data = rng.randbytes(150 * SLOT)
    with faulty.stream(targets) as stream:
        assert pour(stream, data) == 0b100
        outcomes = stream.sync()
        assert [outcomes[t].ok for t in targets] == [True, True, False]
        assert (faulty.info.slots_lagging, faulty.info.slots_free) == (DEPTH, SLOTS - DEPTH)
        assert stream.drained() == {targets[0], targets[1]}
        faulty.advance(120.0)
        assert targets[2].state == "detached"
        assert (faulty.info.slots_lagging, faulty.info.slots_quarantined) == (0, DEPTH)
        assert outcomes[targets[2]].code is OutcomeCode.SLOW
    check(targets[1], data)
    faulty.release(targets[2])
    faulty.advance(1.0)
    assert faulty.info.slots_free == SLOTS


def test_a_new_stream_on_a_laggard_is_judged_anew(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if a slow day is held against a target that has recovered."""
    targets = open_three(faulty, tmp_path)
    faulty.set_faults(crawl(targets[2]))
    data = rng.randbytes(150 * SLOT)
    with faulty.stream(targets) as stream:
        assert pour(stream, data) == 0b100
    faulty.set_faults([])
    faulty.advance(60.0)
    with faulty.stream(targets) as stream:
        assert pour(stream, data) == 0
        assert all(outcome.ok for outcome in stream.sync().values())
    check(targets[2], data)
    assert targets[2].geometry.strikes == 0


def test_every_slot_is_accounted_for_in_every_state(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if a slot is counted twice, or nowhere, in any of the states that `info` tells."""
    targets = open_three(faulty, tmp_path, ("wait", "wait", "eject"))
    info = faulty.info
    assert (info.slots_free, add_up(info)) == (SLOTS, SLOTS)
    with faulty.stream(targets) as stream:
        stream.place([0] * 3)
        stream.write(bytes(100))
        info = faulty.info
        assert (info.slots_filling, info.slots_live, add_up(info)) == (1, 0, SLOTS)
        faulty.set_faults(crawl(targets[2], seconds=10.0))
        stream.write(rng.randbytes(3 * SLOT))
        info = faulty.info
        assert (info.slots_filling, info.slots_live, info.slots_lagging) == (1, 3, 0)
        faulty.advance(1.0)  # two of three are through
        info = faulty.info
        assert (info.slots_live, info.slots_lagging, add_up(info)) == (0, 3, SLOTS)
        stream.eject(targets[2])
        info = faulty.info
        assert (info.slots_live, info.slots_lagging, add_up(info)) == (0, 3, SLOTS)
        faulty.advance(10.0)
        info = faulty.info
        assert (info.slots_lagging, info.slots_free) == (0, SLOTS - 1)


def test_random_histories_lose_no_slot(faulty: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if any mixture of slow, hung and ejected targets makes the counts and the arena differ."""
    names = (str(number) for number in itertools.count())
    for _ in range(12):
        targets = [
            faulty.open(
                tmp_path / next(names),
                create=True,
                size=1 << 20,
                depth=rng.randint(1, 6),
                on_slow=rng.choice(["wait", "eject"]),
                patience=rng.choice([0.01, 0.3, 2.0]),
                hard_deadline=40.0,
            )
            for _ in range(4)
        ]
        slow = rng.sample(targets, rng.randint(0, 2))
        hung = rng.sample(targets[1:], rng.randint(0, 1))
        faulty.set_faults(
            [
                *(Fault.never(kind=Phase.WRITE, target=t, nth=9, count=None) for t in hung),
                *crawl(*slow, seconds=rng.choice([0.01, 0.5])),
            ]
        )
        data = rng.randbytes(rng.randint(1, 80) * SLOT)
        with faulty.stream(targets, timeout=None, keep=targets[:1]) as stream:
            pour(stream, data)
            outcomes = stream.sync()
            assert outcomes[targets[0]].code is not OutcomeCode.SLOW
        for target, outcome in outcomes.items():
            if outcome.ok:
                check(target, data)
        for target in targets:
            faulty.release(target)
            target.close(timeout=1000.0)
        assert add_up(faulty.info) == SLOTS
    assert faulty.info.slots_free == SLOTS


def test_the_options_are_checked(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if a typing error means `wait`."""
    with pytest.raises(ValueError, match="wait, eject"):
        faulty.open(tmp_path / "x", create=True, on_slow="ejct")
