"""Killed at every step, then without power: all or nothing, everywhere the same, and nothing acknowledged is lost.

What could break: any order of two writes that matters and is not kept. The steps are the system calls of all threads together, and
every write and flush that reaches a volume, just before and just after the device has done it: what a ring does is no system call.

By default some steps of every workload, spread over all of it. With `-m long` every one over io_uring, and every third over threads,
whose system calls differ only where the ring's are; FANOUT_CRASH_FULL=1 leaves none out, and judges each with rebuilding and repairs.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.crash.harness import VOLUMES, WORKLOADS, Harness
from tests.faults.rules import Rule

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from tests.crash.harness import Workload
    from tests.evidence import Record

SOME = 2  # steps of each kind, by default
FULL = os.environ.get("FANOUT_CRASH_FULL") == "1"
FULL_EVERY = 1 if FULL else 8  # steps are judged with rebuilding and repairs
STRIDES = {"io_uring": 1, "threads": 1 if FULL else 3}
MOMENTS = ("before", "refused", "after")


@pytest.fixture(scope="module", params=["io_uring", "threads"])
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """One for each backend."""
    with Harness.made(backend=request.param) as made:
        yield made


@pytest.fixture(params=WORKLOADS)
def workload(request: pytest.FixtureRequest) -> Workload:
    """Each of them."""
    return WORKLOADS[request.param]


def at_call(harness: Harness, workload: Workload, number: int, rng: random.Random) -> str:
    """Kill a workload at its n-th system call. Returns what happened; "" when it has fewer."""
    harness.prepare(workload)
    stepper = harness.step(workload.name, seed=7, kill_at=number)
    if not stepper.killed:
        return ""
    return f"{workload.name}, call {number} ({stepper.killed}), {harness.power_loss(rng)}"


def at_request(
    harness: Harness, workload: Workload, op: str, number: int, moment: str, rng: random.Random
) -> str:
    """Kill a workload when a volume gets its n-th write or flush. Returns what happened; "" when there are fewer."""
    harness.prepare(workload)
    child = harness.start(workload.name, seed=7)
    rule = Rule(
        op=op,
        path=VOLUMES,
        nth=number,
        errno=errno.EIO if moment == "refused" else 0,
        kill=0 if moment == "after" else child.pid,
        kill_after=child.pid if moment == "after" else 0,
    )
    harness.break_for(workload, rule)
    child.go()
    status = child.wait()
    assert status in (0, -signal.SIGKILL), child.errors
    harness.heal()
    if status == 0:
        return ""
    return f"{workload.name}, {moment} {op} {number} of a volume, {harness.power_loss(rng)}"


def steps(harness: Harness, rng: random.Random) -> Iterator[int]:
    """Numbers of the steps to be killed at, until somebody stops asking."""
    stride = STRIDES[harness.site.backend]
    return itertools.count(rng.randint(1, stride), stride)


def judge(harness: Harness, what: str, number: int) -> None:
    """Quickly, or with everything."""
    full = number % FULL_EVERY == 0
    harness.judge(what, quick=not full, repair=full)


# ---- some of them ------------------------------------------------------------------------------------


def test_at_some_system_calls(harness: Harness, workload: Workload, rng: random.Random) -> None:
    """A few, one from each part of the run."""
    harness.prepare(workload)
    total = len(harness.step(workload.name, seed=7).calls)
    for part in range(SOME):
        number = rng.randint(total * part // SOME + 1, total * (part + 1) // SOME)
        what = at_call(harness, workload, number, rng)
        harness.judge(what, repair=part == 0, quick=part % 2 == 1)


@pytest.mark.parametrize("op", ["write", "fsync"])
def test_at_some_requests(
    harness: Harness, workload: Workload, op: str, rng: random.Random
) -> None:
    """Of what the kernel does for a ring, and for a thread."""
    what = at_request(harness, workload, op, rng.randint(1, 25), rng.choice(MOMENTS), rng)
    harness.judge(what or "it lived", quick=True)


# ---- all of them -------------------------------------------------------------------------------------


@pytest.mark.long
def test_at_every_system_call(
    harness: Harness,
    workload: Workload,
    rng: random.Random,
    record_property: Record,
) -> None:
    """From the first call of the opening to the last of the closing, until one run survives."""
    kills = 0
    for number in steps(harness, rng):
        what = at_call(harness, workload, number, rng)
        if not what:
            break
        judge(harness, what, number)
        kills += 1
    record_property("kills", kills)
    assert number > 100


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("op", ["write", "fsync"])
def test_at_every_request(
    harness: Harness,
    workload: Workload,
    op: str,
    moment: str,
    rng: random.Random,
    record_property: Record,
) -> None:
    """Until one run survives."""
    kills = 0
    for number in steps(harness, rng):
        what = at_request(harness, workload, op, number, moment, rng)
        if not what:
            break
        judge(harness, what, number)
        kills += 1
    record_property("kills", kills)
    assert number > 10
