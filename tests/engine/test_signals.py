"""Ctrl-C at any moment: what was interrupted is left in order, and nothing stays taken."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanout.engine import Engine, Fault
from fanout.types import Phase

from .conftest import SLOT, SLOTS, runs

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

INTERRUPTS = 1000


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_a_thousand_interrupts(tmp_path: Path, backend: str, rng: random.Random) -> None:
    """Breaks if an interrupt loses a target, a stream, a slot, a descriptor or a byte, or makes the next call fail."""
    if not runs(backend):
        pytest.skip(f"{backend} cannot run here")
    program = Path(__file__).parent / "interrupted.py"
    seed = str(rng.getrandbits(32))
    result = subprocess.run(
        [sys.executable, str(program), backend, str(tmp_path), str(INTERRUPTS), seed],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, f"seed {seed}: {result.stderr}"
    told = json.loads(result.stdout)
    assert told["interrupts"] >= INTERRUPTS
    assert told["left"] == {"targets": 0, "streams": 0, "slots": 0}, told
    assert (told["descriptors"], told["threads"]) == (0, 1)
    missed = {"open", "write", "sync", "read", "finish", "close"} - set(told["where"])
    assert not missed, told["where"]


class Interrupted(Exception):
    pass


@pytest.fixture
def soon() -> Iterator[Callable[[], None]]:
    """Call it: an exception 0.1 s later."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)

    def arm() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    yield arm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def test_an_open_that_was_interrupted_leaves_no_lock(
    engine: Engine, tmp_path: Path, soon: Callable[[], None]
) -> None:
    """Breaks if what was opened meanwhile stays open and locked, with nobody who could close it."""
    path = tmp_path / "t"
    first = engine.open(path, create=True, lock=True)
    later = threading.Timer(0.5, first.close)
    later.start()
    soon()
    with pytest.raises(Interrupted):  # told when the lock is there: opening waits in one piece
        engine.open(path, lock=True, lock_wait=5.0)
    later.join()
    engine.open(path, lock=True, lock_wait=5.0).close()
    assert engine.info.targets == 0


def test_a_wait_for_events_is_interrupted_and_the_engine_goes_on(
    engine: Engine, tmp_path: Path, soon: Callable[[], None]
) -> None:
    """Breaks if a wait for events cannot be interrupted, or leaves a caller inside."""
    target = engine.open(tmp_path / "t", create=True)
    soon()
    with pytest.raises(Interrupted):
        engine.events(timeout=60.0)
    with engine.stream([target]) as stream:
        stream.place([0])
        stream.write(bytes(3 * SLOT))
        assert stream.sync()[target].ok


def test_a_wait_on_a_hung_target_ends_and_is_taken_up_again(
    faulty: Engine, tmp_path: Path, soon: Callable[[], None]
) -> None:
    """Breaks if KeyboardInterrupt waits for the hard deadline, or if what was accepted before it is lost."""
    data = memoryview(b"x" * (2 * SLOTS * SLOT))
    target = faulty.open(tmp_path / "t", create=True, hard_deadline=1e9)
    faulty.set_faults([Fault.never(kind=Phase.WRITE, count=None)])
    with faulty.stream([target], timeout=None) as stream:
        stream.place([0])
        stream.write(data[:SLOT])
        soon()
        with pytest.raises(Interrupted):
            stream.write(data[SLOT:])
        accepted = stream.position
        assert SLOT <= accepted < len(data)
        faulty.set_faults([])
        faulty.release(target)
        stream.write(data[accepted:])
        assert stream.position == len(data)
        assert stream.sync()[target].ok
    with open(target.path, "rb") as file:
        assert file.read(len(data)) == data


STOPPED = """
    import sys, time
    from fanout.engine import Engine
    backend, path, length = sys.argv[1], sys.argv[2], 4 << 20
    with Engine(backend=backend, memory_bytes=8 << 20, slot_size_bytes=65536, soft_deadline=1.0,
                hard_deadline=4.0) as engine:
        targets = [engine.open(path + name, replace=True, size=length) for name in "ab"]
        began = last = time.monotonic()
        absences = rounds = 0
        while absences < 2 and last - began < 60:
            with engine.stream(targets) as stream:
                stream.place([0, 0])
                stream.write(bytes(length))
                if not rounds:
                    print("going", flush=True)
                for outcome in stream.sync().values():
                    assert outcome.ok, outcome
            now = time.monotonic()
            absences, rounds, last = absences + (now - last > 5), rounds + 1, now
    print(absences)
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What the program says over each backend. Both are stopped at the same time: nearly all of it is sleep."""
    base = tmp_path_factory.mktemp("stopped")
    children: dict[str, subprocess.Popen[str]] = {}
    with contextlib.ExitStack() as stack:
        for backend in filter(runs, ("io_uring", "threads")):
            children[backend] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", textwrap.dedent(STOPPED), backend, str(base / backend)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(children[backend].kill)
        for child in children.values():
            assert child.stdout is not None
            assert child.stdout.readline() == "going\n"
        for _ in range(2):
            time.sleep(0.2)
            for child in children.values():
                child.send_signal(signal.SIGSTOP)
            time.sleep(6.0)
            for child in children.values():
                child.send_signal(signal.SIGCONT)
        return {backend: child.communicate(timeout=120) for backend, child in children.items()}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_stopped_for_longer_than_the_hard_deadline(
    backend: str, request: pytest.FixtureRequest
) -> None:
    """Breaks if the time in which the whole process was stopped (Ctrl-Z, a frozen container) counts against its targets."""
    if not runs(backend):
        pytest.skip(f"{backend} cannot run here")
    assert request.getfixturevalue("stopped")[backend] == ("2\n", "")


def test_a_target_that_is_forgotten_closes_itself(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a lock stays because the last reference went without a close, also while a stream was still there."""
    path = tmp_path / "t"
    for open_stream in (False, True):
        target = engine.open(path, replace=True, lock=True)
        stream = engine.stream([target]) if open_stream else None
        del target
        if stream is not None:
            stream.place([0])
            stream.write(b"still in use")
            assert all(outcome.ok for outcome in stream.sync().values())
            del stream
        engine.open(path, lock=True, lock_wait=5.0).close()
        assert engine.info.targets == 0
