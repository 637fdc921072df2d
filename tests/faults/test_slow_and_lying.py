"""The engine on targets that crawl and targets that lie, on both real backends: a fault file system, loop devices, a throttle.

What could break: a crawling target that is ejected too late, or not at all, or when it holds up nobody; healthy targets that suffer
from its slots; a detach that comes late; a lie that a confirmed flush covers. Survivors' bytes are compared every time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest

from . import needs
from .devices import fault_disk, loop, scratch, throttled
from .faultfs import FOR_EVER
from .rules import Rule

if needs.why_not("engine"):
    needs.require("engine")

from fanout.engine import Engine, EventKind
from fanout.errors import ConfigError
from fanout.types import FaultClass, OutcomeCode, Phase

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from fanout.engine import Event, Target
    from fanout.types import Outcome

    from .devices import FaultDisk

SLOT = 64 << 10
SLOTS = 96
SIZE = 32 << 20
PATIENCE = 0.3
SLACK = 1.0  # seconds beyond what should be: the machine may be busy with other things

pytestmark = [pytest.mark.root, pytest.mark.loop]


@pytest.fixture(scope="module", params=["io_uring", "threads"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    try:
        make_engine(name).close()
    except ConfigError as problem:
        pytest.skip(f"{name} cannot run here: {problem}")
    return name


def make_engine(backend: str) -> Engine:
    return Engine(
        backend=backend, memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT, patience=PATIENCE
    )


@pytest.fixture
def engine(backend: str) -> Iterator[Engine]:
    with make_engine(backend) as made:
        yield made


@pytest.fixture(scope="module")
def shared_disk() -> Iterator[FaultDisk]:
    with fault_disk(SIZE) as made:
        yield made


@pytest.fixture
def disk(shared_disk: FaultDisk) -> Iterator[FaultDisk]:
    yield shared_disk
    shared_disk.fs.heal()
    shared_disk.fs.settle()


@pytest.fixture
def healthy() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


def two_healthy(engine: Engine, directory: Path) -> list[Target]:
    return [
        engine.open(directory / f"good{number}", create=True, size=SIZE, on_slow="eject")
        for number in range(2)
    ]


def check(target: Target, data: bytes) -> None:
    with open(target.path, "rb") as file:
        assert file.read(len(data)) == data


# ---- slow --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.1, FOR_EVER], ids=["crawls", "hangs"])
def test_a_slow_disk_is_ejected_and_the_others_go_on(
    engine: Engine, disk: FaultDisk, healthy: Path, rng: random.Random, delay: float
) -> None:
    """Breaks if it takes longer than patience, costs a slot, or if the target itself is given up."""
    disk.fs.set_rules(Rule(op="write", path=disk.name, count=None, delay=delay))
    good = two_healthy(engine, healthy)
    bad = engine.open(disk.path, on_slow="eject", depth=4)
    data = rng.randbytes(SIZE)
    began, failed = time.monotonic(), 0
    with engine.stream([*good, bad]) as stream:
        stream.place([0, 0, 0], SIZE)
        for at in range(0, SIZE, SLOT):
            failed = stream.write(data[at : at + SLOT])
            info = engine.info
            assert (
                info.slots_free
                + info.slots_filling
                + info.slots_live
                + info.slots_lagging
                + info.slots_control
                + info.slots_quarantined
            ) == SLOTS
        seconds = time.monotonic() - began
        assert failed == 0b100
        outcomes = stream.sync()
    assert [outcomes[t].ok for t in (*good, bad)] == [True, True, False]
    assert outcomes[bad].code is OutcomeCode.SLOW
    assert PATIENCE * 2 / 3 <= seconds < PATIENCE + SLACK
    assert bad.state == "active"
    told = [e for e in engine.events() if e.kind is EventKind.LAGGARD]
    assert [(e.target, e.strikes) for e in told] == [(bad.id, 3)]
    for target in good:
        check(target, data)
    disk.fs.heal()
    bad.close(timeout=5.0)
    assert engine.info.slots_free == SLOTS


def test_a_slow_disk_that_waits_gets_every_byte(
    engine: Engine, disk: FaultDisk, healthy: Path, rng: random.Random
) -> None:
    """Breaks if the verdict alone, which is told, costs a copy."""
    disk.fs.set_rules(Rule(op="write", path=disk.name, count=None, delay=0.02))
    good = two_healthy(engine, healthy)
    slow = engine.open(disk.path, depth=4)
    data = rng.randbytes(200 * SLOT)
    with engine.stream([*good, slow]) as stream:
        stream.place([0, 0, 0], SIZE)
        stream.write(data)
        outcomes = stream.sync(timeout=60.0)
    assert all(outcome.ok for outcome in outcomes.values())
    assert disk.media(0, len(data)) == data
    assert {e.kind for e in engine.events()} == {EventKind.LAGGARD}


def test_a_disk_that_hangs_after_its_ejection_is_let_go_on_time(
    engine: Engine, disk: FaultDisk, healthy: Path, rng: random.Random
) -> None:
    """The hard deadline holds for what an ejected target has in flight, and its slots come back in the end."""
    disk.fs.set_rules(Rule(op="write", path=disk.name, count=None, delay=FOR_EVER))
    good = two_healthy(engine, healthy)
    hard = PATIENCE + 0.7
    bad = engine.open(disk.path, on_slow="eject", depth=4, hard_deadline=hard)
    data = rng.randbytes(SIZE)
    with engine.stream([*good, bad]) as stream:
        stream.place([0, 0, 0], SIZE)
        stream.write(data)
        assert stream.sync()[bad].code is OutcomeCode.SLOW
        assert engine.info.slots_lagging == 4
        events: list[Event] = []
        until = time.monotonic() + hard + SLACK
        while not any(e.kind is EventKind.DETACHED for e in events):
            assert time.monotonic() < until
            events += engine.events(timeout=0.1)
    (detached,) = [e for e in events if e.kind is EventKind.DETACHED]
    assert hard <= detached.latency_ns / 1e9 < hard + SLACK / 2
    assert (engine.info.slots_lagging, engine.info.slots_quarantined) == (0, 4)
    disk.fs.heal()
    bad.close(timeout=5.0)
    assert engine.info.slots_free == SLOTS
    for target in good:
        check(target, data)


_CHILD = textwrap.dedent(
    """
    import json, os, sys, time
    from fanout.engine import Engine
    size = 32 << 20
    data = os.urandom(1 << 20)
    sys.stdin.readline()  # until we are in the group
    with Engine(backend=sys.argv[1], memory_bytes=6 << 20, slot_size_bytes=64 << 10, patience=0.3) as engine:
        good = engine.open(sys.argv[2], create=True, size=size)
        slow = engine.open(sys.argv[3], on_slow=sys.argv[4], depth=4)
        with engine.stream([good, slow]) as stream:
            stream.place([0, 0], size)
            began = time.monotonic()
            for _ in range(int(sys.argv[5])):
                stream.write(data)
            outcomes = stream.sync()
        seconds = time.monotonic() - began
        said = [outcomes[good].code.name, outcomes[slow].code.name]
        slow.close(timeout=30.0)
    print(json.dumps([*said, seconds]))
    """
)


@pytest.mark.parametrize(("on_slow", "said"), [("eject", "SLOW"), ("wait", "OK")])
def test_a_disk_that_the_kernel_throttles(
    backend: str, healthy: Path, on_slow: str, said: str
) -> None:
    """A real slow block device: 2 MiB/s, whatever is in flight."""
    image = healthy / "image"
    image.touch()
    with open(image, "r+b") as file:
        file.truncate(SIZE)
    mebibytes = 24 if on_slow == "eject" else 8
    with (
        loop(image) as device,
        throttled(device.number, bytes_per_second=2 << 20) as throttle,
    ):
        good = str(healthy / "good")
        arguments = [backend, good, device.path, on_slow, str(mebibytes)]
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        throttle.add(child.pid)
        out, _ = child.communicate(b"\n", timeout=60)
        assert child.returncode == 0
    first, second, seconds = json.loads(out)
    assert (first, second) == ("OK", said)
    if on_slow == "eject":
        assert seconds < PATIENCE + 2 * SLACK  # 12 s at the throttle's pace
    else:
        assert seconds > 1.0


# ---- lies --------------------------------------------------------------------------------------------------------------------

LIES: dict[str, dict[str, Any]] = {
    "swallowed": {"noop": True},
    "flipped": {"flip": 3},
    "misdirected": {"shift": 3 * SLOT},
}


def write_all(
    engine: Engine, targets: list[Target], data: bytes, *, verify: bool = True
) -> list[Outcome]:
    with engine.stream(targets, verify=targets if verify else ()) as stream:
        stream.place([0] * len(targets), len(data))
        stream.write(data)
        outcomes = stream.sync(timeout=20.0)
    return [outcomes[target] for target in targets]


@pytest.mark.parametrize("kind", ["disk", "file"])
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_of_a_real_target_is_found(
    engine: Engine, disk: FaultDisk, healthy: Path, rng: random.Random, lie: str, kind: str
) -> None:
    """Breaks if the read comes from anywhere but the medium: a cache would confirm the lie."""
    name = disk.name if kind == "disk" else f"/file{time.monotonic_ns()}"
    path = disk.path if kind == "disk" else disk.fs.create_file(name, SIZE)
    for block in (0, 5, 11):
        data = rng.randbytes(12 * SLOT)
        targets = [engine.open(path), engine.open(healthy / f"g{block}", create=True, size=SIZE)]
        start = block * SLOT
        disk.fs.set_rules(Rule(op="write", path=name, start=start, end=start + 1, **LIES[lie]))
        bad, good = write_all(engine, targets, data)
        assert disk.fs.injected("write")
        assert good.ok
        assert (bad.code, bad.phase, bad.cls) == (
            OutcomeCode.MISMATCH,
            Phase.READ,
            FaultClass.MEDIUM,
        )
        # A misdirected write also damages what lies where it went, if that was written before it.
        assert bad.offset in {start, start + 3 * SLOT}
        check(targets[1], data)
        disk.fs.set_rules()
        bad, good = write_all(engine, targets, data)  # the honest truth
        assert (bad.ok, good.ok) == (True, True)
        for target in targets:
            target.close()


def test_a_stale_block_is_found(
    engine: Engine, disk: FaultDisk, healthy: Path, rng: random.Random
) -> None:
    """Breaks if what an earlier, good write left there passes for the new one: each block is well-formed in itself."""
    targets = [engine.open(disk.path), engine.open(healthy / "g", create=True, size=SIZE)]
    old, new = rng.randbytes(12 * SLOT), rng.randbytes(12 * SLOT)
    assert all(outcome.ok for outcome in write_all(engine, targets, old))
    disk.fs.set_rules(Rule(op="write", path=disk.name, start=7 * SLOT, end=7 * SLOT + 1, noop=True))
    bad, good = write_all(engine, targets, new)
    assert good.ok
    assert (bad.code, bad.offset) == (OutcomeCode.MISMATCH, 7 * SLOT)
    assert disk.media(7 * SLOT, SLOT) == old[7 * SLOT : 8 * SLOT]


def test_a_lie_that_nobody_looks_for_is_believed(
    engine: Engine, disk: FaultDisk, rng: random.Random
) -> None:
    """What the tests above would say if they could not fail."""
    targets = [engine.open(disk.path)]
    disk.fs.set_rules(Rule(op="write", path=disk.name, noop=True))
    data = rng.randbytes(12 * SLOT)
    (outcome,) = write_all(engine, targets, data, verify=False)
    assert outcome.ok
    assert disk.media(0, len(data)) != data
