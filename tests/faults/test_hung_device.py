"""A block device that really hangs: a loop device throttled to a page per second, under writes that the kernel has taken.

No fault is scripted here and no server is stopped: the writes sit in the block layer, where no signal reaches them. What could
break: the healthy target waits with the hung one, or the process cannot end before the device does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest

from . import devices, kernel, needs
from .devices import scratch

if needs.why_not("engine"):
    needs.require("engine")

from fanout.engine import Engine
from fanout.engine.stream import MAX_TARGETS
from fanout.errors import ConfigError, TargetError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 8 << 20
SLOT = 64 << 10
HARD = 0.5
SLACK = 1.5  # seconds that a busy machine may add
RATE = 4096  # bytes per second: a slot of 64 KiB takes 16 s

pytestmark = [pytest.mark.root, pytest.mark.loop]

WRITER = f"""
    import json, sys, time
    from fanout.engine import Engine
    path, good, way = sys.argv[1:]
    engine = Engine(backend="io_uring", soft_deadline=0.1, hard_deadline={HARD}, memory_bytes=8 << 20, slot_size_bytes=65536)
    targets = [engine.open(path, lock=True, depth=16), engine.open(good, create=True, size=2 << 20)]
    print("open", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    stream = engine.stream(targets)
    stream.place([0, 0])
    stream.write(bytes(range(256)) * (20 << 8))
    outcomes = stream.sync(timeout=30)
    info = engine.info
    print(json.dumps([[o.code.name for o in outcomes.values()], targets[0].state, info.slots_quarantined, info.slots_live,
                      time.monotonic() - began]), flush=True)
    if way == "closing":
        stream.close()
        targets[0].close(timeout=0.1)
        engine.close(timeout=0.1)
    elif way == "killed":
        time.sleep(60)
"""


@pytest.fixture
def disk() -> Iterator[devices.LoopDevice]:
    with scratch() as base:
        backing = base / "backing"
        backing.write_bytes(bytes(SIZE))
        with devices.loop(backing) as device:
            yield device


@pytest.mark.slow
@pytest.mark.parametrize("way", ["closing", "without a word", "killed"])
def test_a_hung_device_holds_up_neither_its_peer_nor_the_exit(
    disk: devices.LoopDevice, tmp_path: Path, way: str
) -> None:
    """Breaks if the healthy target waits, if slots of a device that hangs are free, or if exit waits for the device."""
    needs.require("throttle")
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(WRITER)]
    with devices.throttled(disk.number, bytes_per_second=RATE) as throttle:
        child = subprocess.Popen(
            [*command, disk.path, str(tmp_path / "good"), way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            if child.stdout.readline() != "open\n":
                pytest.skip("io_uring cannot run here")
            throttle.add(child.pid)
            child.stdin.write("\n")
            child.stdin.flush()
            codes, state, quarantined, live, took = json.loads(child.stdout.readline())
            assert codes == ["TIMED_OUT", "OK"]
            assert (state, live) == ("detached", 0)
            assert quarantined > 0
            assert HARD <= took < HARD + SLACK
            if way == "killed":
                child.kill()
            began = time.monotonic()
            assert child.wait(20) == (-9 if way == "killed" else 0)
            assert time.monotonic() - began < SLACK
            still_locked(disk.path)
        finally:
            child.kill()
            child.communicate()
    assert (tmp_path / "good").read_bytes()[: 20 << 16] == bytes(range(256)) * (20 << 8)
    with Engine(memory_bytes=8 << 20, slot_size_bytes=65536) as engine:
        after = engine.open(disk.path, lock=True, lock_wait=30.0)  # when the last write has ended
        assert engine.read(after, 0, 1 << 16) in (bytes(range(256)) * (1 << 8), bytes(1 << 16))
        after.close()


def still_locked(path: str) -> None:
    """The writes of a process that is gone are in flight still, so nobody else may have the device."""
    with Engine(memory_bytes=8 << 20, slot_size_bytes=65536) as engine:
        with pytest.raises(TargetError, match="EBUSY"):
            engine.open(path, lock=True, lock_wait=0.1)
        kernel.wait_until(lambda: engine.info.targets == 0, "it is closed")


@pytest.mark.slow
def test_a_device_that_hangs_for_a_while_and_comes_back(
    disk: devices.LoopDevice, tmp_path: Path
) -> None:
    """Breaks if late completions of a real device are lost, or if their slots are not taken back."""
    needs.require("throttle")
    script = WRITER + textwrap.indent(
        textwrap.dedent(
            """
            sys.stdin.readline()
            while engine.info.slots_quarantined:
                engine.events(timeout=0.05)
            late = engine.info.late
            leg = stream.legs()[0]
            print(json.dumps([late, leg.state, leg.synced]), flush=True)
            """
        ),
        "    ",
    )
    answers: list[Any] = []
    with devices.throttled(disk.number, bytes_per_second=RATE) as throttle:
        child = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                textwrap.dedent(script),
                disk.path,
                str(tmp_path / "good"),
                "staying",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline() != "open\n":
            child.communicate()
            pytest.skip("io_uring cannot run here")
        throttle.add(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        answers.append(json.loads(child.stdout.readline()))
    try:  # out of the group, and its rule is gone
        child.stdin.write("\n")
        child.stdin.flush()
        answers.append(json.loads(child.stdout.readline()))
    finally:
        child.communicate(timeout=60)
    (codes, _, quarantined, _, _), (late, state, synced) = answers
    assert codes == ["TIMED_OUT", "OK"]
    assert late >= quarantined > 0
    assert (state, synced) == ("failed", 0)


def test_writes_that_hang_leave_the_kernel_a_thread_for_their_peers(tmp_path: Path) -> None:
    """Breaks if writes that hang take up all of the threads that the kernel has for a ring: by default four for each processor."""
    per_file = 64
    count = min((os.cpu_count() or 1) * 4 // per_file + 1, MAX_TARGETS)
    try:
        engine = Engine(backend="io_uring", memory_bytes=16 << 20, slot_size_bytes=SLOT)
    except ConfigError as problem:
        pytest.skip(f"io_uring cannot run here: {problem}")
    data = bytes(range(256)) * (SLOT >> 8)
    with (
        engine,
        scratch() as memory,
        devices.ext4_disk(64 << 20 if count == 1 else 1 << 30) as disk,
    ):
        hung = [
            engine.open(disk.path / str(i), create=True, depth=per_file, size=per_file * SLOT)
            for i in range(count)
        ]
        peers = [engine.open(path / "peer", create=True, size=SLOT) for path in (tmp_path, memory)]
        with engine.stream(hung) as stuck:
            stuck.place([0] * count)
            with disk.frozen():
                stuck.write(data * per_file)
                stuck.seal()
                kernel.wait_until(
                    lambda: all(leg.inflight == per_file for leg in stuck.legs()), "all hang"
                )
                with engine.stream(peers) as stream:
                    stream.place([0] * len(peers))
                    stream.write(data)
                    assert all(outcome.ok for outcome in stream.sync(timeout=20.0).values())
                assert all(leg.completed == 0 for leg in stuck.legs())
            assert all(outcome.ok for outcome in stuck.sync(timeout=60.0).values())
