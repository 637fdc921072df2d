"""A network block device that freezes or breaks in the middle of anything, on both real backends.

What could break: a frozen server that stops the engine's own thread, and with it every healthy target; a target that is not let go
in time, or whose slots are used again while its requests may still arrive; a late answer that turns a failure into a success; a
process that cannot end. As a file on FUSE (where requests go to workers) and as a block device (a loop device over that file).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING

import pytest

from . import kernel, needs
from .devices import scratch
from .nbd import NbdDisk, nbd_disk

if needs.why_not("engine") or needs.why_not("xxhash"):
    needs.require("engine", "xxhash")

import xxhash

from fanout.engine import Engine, EventKind, Target
from fanout.errors import ConfigError
from fanout.types import FaultClass, OutcomeCode

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from fanout.engine import Stream

SLOT = 64 << 10
SLOTS = 128
BLOCKS = 20
SIZE = 8 << 20
HARD = 0.8  # seconds
SLACK = 1.5  # what a busy machine may add to it
LET_GO = {OutcomeCode.TIMED_OUT, OutcomeCode.DETACHED}
MOMENTS = {
    "before the first write": 0,
    "in the middle": BLOCKS // 2,
    "at the flush": BLOCKS,
}  # blocks

pytestmark = [
    pytest.mark.root,
    pytest.mark.loop,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


@pytest.fixture(params=["io_uring", "threads"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    try:
        made = Engine(backend=request.param, memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT)
    except ConfigError as problem:
        pytest.skip(f"{request.param} cannot run here: {problem}")
    with made:
        yield made


@pytest.fixture(params=["file", "block device"])
def disk(request: pytest.FixtureRequest) -> Iterator[NbdDisk]:
    with nbd_disk(SIZE, block=request.param == "block device") as made:
        yield made


@pytest.fixture
def healthy() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


def pour_beside(engine: Engine, target: Target, data: bytes) -> float:
    """A stream to a healthy target alone; the seconds that it took."""
    began = time.monotonic()
    with engine.stream([target]) as stream:
        stream.place([0])
        stream.write(data)
        digest = stream.digest()
        assert stream.sync(timeout=20.0)[target].ok
    assert digest == xxhash.xxh3_128_digest(data)
    return time.monotonic() - began


def bring_to(moment: str, stream: Stream, data: bytes) -> bytes:
    """Write what comes before the moment, and wait until it has arrived; the rest is returned."""
    share = MOMENTS[moment] * SLOT
    stream.write(data[:share])
    kernel.wait_until(
        lambda: all(leg.completed >= share for leg in stream.legs()), "what was written arrives"
    )
    return data[share:]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_frozen_server_is_let_go_and_its_answers_change_nothing(
    engine: Engine, disk: NbdDisk, healthy: Path, rng: random.Random, moment: str
) -> None:
    """Breaks at each moment in its own way: cold, warm, in a helper's flush."""
    data = rng.randbytes(BLOCKS * SLOT)
    hung = engine.open(disk.path, depth=16, soft_deadline=HARD / 4, hard_deadline=HARD)
    good = engine.open(healthy / "good", create=True, size=SIZE)
    beside = engine.open(healthy / "beside", create=True, size=SIZE)
    with engine.stream([hung, good]) as stream:
        stream.place([0, 0])
        rest = bring_to(moment, stream, data)
        with disk.frozen():
            began = time.monotonic()
            stream.write(rest)
            digest = stream.digest()
            stream.seal()
            assert pour_beside(engine, beside, data) < HARD + SLACK
            outcomes = stream.sync(timeout=20.0)
            took = time.monotonic() - began
            before = stream.legs()[0]
            held = engine.info.slots_quarantined
        assert outcomes[good].ok
        assert (healthy / "good").read_bytes()[: len(data)] == data
        assert digest == xxhash.xxh3_128_digest(data)
        assert outcomes[hung].code in LET_GO, outcomes[hung]
        assert HARD <= took < HARD + SLACK
        assert hung.state == "detached"
        assert (held > 0) == bool(rest)  # a flush holds no slot
        kernel.wait_until(lambda: engine.info.late > 0, "late answers arrive")
        kernel.wait_until(lambda: engine.info.slots_quarantined == 0, "the slots come back")
        after = stream.legs()[0]
        assert (after.state, after.first, after.synced) == ("failed", before.first, 0)
        kinds = {event.kind for event in engine.events() if event.target == hung.id}
        assert {EventKind.SLOW, EventKind.DETACHED, EventKind.LATE} <= kinds
    hung.close()
    kernel.wait_until(lambda: engine.info.targets == 2, "the hung target is closed")


def test_a_server_that_freezes_before_the_close(
    engine: Engine, disk: NbdDisk, healthy: Path, rng: random.Random
) -> None:
    """Breaks if closing waits for the network longer than it was told, or others wait for the closing."""
    data = rng.randbytes(BLOCKS * SLOT)
    hung = engine.open(disk.path, depth=16)
    beside = engine.open(healthy / "beside", create=True, size=SIZE)
    with engine.stream([hung]) as stream:
        stream.place([0])
        stream.write(data)
        assert stream.sync()[hung].ok
    with disk.frozen():
        began = time.monotonic()
        hung.close(timeout=0.2)
        assert time.monotonic() - began < 0.2 + SLACK
        assert pour_beside(engine, beside, data) < SLACK
    kernel.wait_until(lambda: engine.info.targets == 1, "it closes when the server answers")
    assert disk.media(0, len(data)) == data


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", ["server", "client"])
def test_a_connection_that_breaks(
    engine: Engine, disk: NbdDisk, healthy: Path, rng: random.Random, moment: str, victim: str
) -> None:
    """Breaks if a broken connection is a success, hangs, or takes the healthy target along."""
    data = rng.randbytes(BLOCKS * SLOT)
    broken = engine.open(disk.path, depth=16)
    good = engine.open(healthy / "good", create=True, size=SIZE)
    with engine.stream([broken, good]) as stream:
        stream.place([0, 0])
        rest = bring_to(moment, stream, data)
        getattr(disk, f"kill_{victim}")()
        stream.write(rest)
        outcomes = stream.sync(timeout=20.0)
        assert outcomes[good].ok
        outcome = outcomes[broken]
        assert outcome.code is OutcomeCode.ERROR, outcome
        assert outcome.cls in (FaultClass.DEVICE, FaultClass.TRANSPORT), outcome
        assert stream.legs()[0].synced == 0
    broken.close()
    assert (healthy / "good").read_bytes()[: len(data)] == data
    kernel.wait_until(lambda: engine.info.targets == 1, "the broken target is closed")
    assert engine.info.slots_free == SLOTS


@pytest.mark.parametrize("victim", ["server", "client"])
def test_a_connection_that_breaks_before_the_close(
    engine: Engine, disk: NbdDisk, rng: random.Random, victim: str
) -> None:
    """Breaks if a target whose server is gone cannot be closed, or if what was synced is not there."""
    data = rng.randbytes(BLOCKS * SLOT)
    broken = engine.open(disk.path)
    with engine.stream([broken]) as stream:
        stream.place([0])
        stream.write(data)
        assert stream.sync()[broken].ok
    getattr(disk, f"kill_{victim}")()
    broken.close()
    assert engine.info.targets == 0
    assert disk.media(0, len(data)) == data


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_depth_16_on_a_frozen_server_holds_up_nobody(
    engine: Engine, disk: NbdDisk, healthy: Path, rng: random.Random, *, warm: bool
) -> None:
    """FUSE takes in twelve background requests: the thirteenth must not put the engine's thread to sleep."""
    data = rng.randbytes(24 * SLOT)
    hung = engine.open(disk.path, depth=16)
    good = engine.open(healthy / "good", create=True, depth=16, size=SIZE)
    if warm:
        engine.write(hung, 0, data[: 2 * SLOT])
    with disk.frozen(), engine.stream([hung]) as stuck:
        stuck.place([0])
        stuck.write(data)
        stuck.seal()
        kernel.wait_until(lambda: stuck.legs()[0].inflight == 16, "the lane is full")
        times = [pour_beside(engine, good, data) for _ in range(5)]
        assert max(times) < SLACK, times
        leg = stuck.legs()[0]
        assert (leg.completed, leg.state) == (0, "active")
        disk.thaw()
        assert stuck.sync(timeout=20.0)[hung].ok
    assert disk.media(0, len(data)) == data
    hung.close()


LEAVING = """
    import sys
    from fanout.engine import Engine
    engine = Engine(backend="io_uring", soft_deadline=0.1, hard_deadline=0.3, memory_bytes=4 << 20, slot_size_bytes=65536)
    target = engine.open(sys.argv[1], depth=16)
    print("open", flush=True)
    sys.stdin.readline()
    stream = engine.stream([target])
    stream.place([0])
    stream.write(b"L" * (16 << 16))
    print(stream.sync(timeout=20)[target].code.name, flush=True)
    if sys.argv[2] == "closing":
        stream.close()
        target.close(timeout=0.1)
        engine.close(timeout=0.1)
    print("leaving", flush=True)
"""


@pytest.mark.parametrize("way", ["closing", "without a word"])
def test_an_interpreter_ends_with_ring_writes_in_flight(way: str) -> None:
    """Breaks if exit waits for a network that does not come back (promised for block devices: a FUSE file's writes hold workers)."""
    with nbd_disk(SIZE, block=True) as disk:
        child = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(LEAVING), disk.path, way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            line = child.stdout.readline()
            if not line:
                pytest.skip("io_uring cannot run here")
            assert line == "open\n"
            with disk.frozen():
                child.stdin.write("\n")
                child.stdin.flush()
                assert child.stdout.readline() == "TIMED_OUT\n"
                assert child.stdout.readline() == "leaving\n"
                began = time.monotonic()
                assert child.wait(20) == 0
                assert time.monotonic() - began < SLACK
        finally:
            child.kill()
            child.communicate()


def test_opening_on_a_frozen_network_is_bounded(
    engine: Engine, disk: NbdDisk, healthy: Path, rng: random.Random
) -> None:
    """Breaks if an open waits for the network instead of its timeout, or keeps a healthy stream waiting meanwhile."""
    good = engine.open(healthy / "good", create=True, size=SIZE)
    with disk.frozen():
        began = time.monotonic()
        with contextlib.suppress(TimeoutError, OSError):
            engine.open(disk.path, timeout=0.3)
        assert time.monotonic() - began < 0.3 + SLACK
        pour_beside(engine, good, rng.randbytes(BLOCKS * SLOT))
    kernel.wait_until(lambda: engine.info.targets == 1, "the one that was opened late is closed")


def test_a_fork_beside_an_open_that_hangs(engine: Engine, disk: NbdDisk) -> None:
    """Breaks if a fork in the host process waits for the network: it gives an open that hangs about 0.1 s."""
    opened: list[Target] = []
    with disk.frozen():
        opener = threading.Thread(
            target=lambda: opened.append(engine.open(disk.path, timeout=30.0))
        )
        opener.start()
        kernel.wait_until(lambda: engine.info.targets == 1, "the open is under way")
        began = time.monotonic()
        child = os.fork()
        if child == 0:  # pragma: no cover
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert time.monotonic() - began < SLACK
    opener.join(20)
    opened[0].close()
