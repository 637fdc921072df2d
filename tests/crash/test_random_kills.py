"""Killed at random moments, again and again on the same store, with power losses in between and in the middle of the recovery.

What could break: what only time can bring about: a kill while several threads are at it, a recovery of a recovery, a write of the dead
that lands after the next one has opened.

FANOUT_CRASH_KILLS is how many kills `-m long` makes; `make nightly KILLS=…` sets it.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.crash.harness import VOLUMES, Harness
from tests.crash.journal import Fate
from tests.crash.site import ROOMY
from tests.faults import kernel
from tests.faults.rules import FOR_EVER, Rule

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from tests.evidence import Record

SOME, MANY = 16, 500
GENERATION = 12  # kills on one store; then it begins anew, for its volumes are small
LIFE_SECONDS = 0.6  # the longest life after the start; an opening takes about a tenth of it


@pytest.fixture(scope="module", params=["io_uring", "threads"])
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """One for each backend."""
    with Harness.made(backend=request.param, secondary_size=ROOMY) as made:
        yield made


def one_life(harness: Harness, rng: random.Random) -> str:
    """A client that works until it is killed; then, mostly, the power fails. What happened, in words."""
    seed, seconds = rng.getrandbits(32), rng.uniform(0.0, LIFE_SECONDS)
    child = harness.start("live", seed=seed, flush=rng.random() < 0.5)
    if rng.random() < 0.3:  # a slow volume: more is in flight, and in another order
        slow = rng.choice(("/DISKPOOL.vol", "/COPYPOOL1.vol", "/*.fanout"))
        harness.fs.set_rules(
            Rule(op=rng.choice(("write", "fsync")), path=slow, count=None, delay=0.02)
        )
    child.go()
    time.sleep(seconds)  # the moment is what is random here
    child.kill()
    child.wait()
    what = f"life of seed {seed} killed after {seconds:.4f} s"
    if rng.random() < 0.2:
        harness.heal()
        return what
    return f"{what}, {harness.power_loss(rng)}"


def die_often(harness: Harness, rng: random.Random, kills: int) -> int:
    """So many kills, each judged. Returns how many transactions were acknowledged."""
    acknowledged = 0
    for number in range(kills):
        if number % GENERATION == 0:
            harness.begin_at("new")
        what = one_life(harness, rng)
        last = number == kills - 1 or number % GENERATION == GENERATION - 1
        harness.judge(f"kill {number}: {what}", goes_on=not last, quick=not last, repair=last)
        acknowledged += len(harness.journal.of(Fate.ACKNOWLEDGED)) if last else 0
    return acknowledged


def test_some_random_kills(harness: Harness, rng: random.Random) -> None:
    """A few of each backend."""
    die_often(harness, rng, SOME // 2)


@pytest.mark.long
def test_many_random_kills(harness: Harness, rng: random.Random, record_property: Record) -> None:
    """Half of them with each backend."""
    kills = (int(os.environ.get("FANOUT_CRASH_KILLS", str(MANY))) + 1) // 2
    acknowledged = die_often(harness, rng, kills)
    record_property("kills", kills)
    record_property("transactions acknowledged", acknowledged)
    assert acknowledged > kills // 5


# ---- a second power loss during the recovery ---------------------------------------------------------


def twice(harness: Harness, rng: random.Random) -> str:
    """The second power loss hits an opening that recovers from the first one."""
    harness.begin_at(rng.choice(("some", "gaps")))
    first = one_life(harness, rng)
    child = harness.start("live", seed=rng.getrandbits(32))
    op, number = rng.choice((("write", 8), ("fsync", 6)))
    number = rng.randint(1, number)
    harness.fs.set_rules(Rule(op=op, path=rng.choice((VOLUMES, "/catalog*")), nth=number, cut=True))
    child.go()
    time.sleep(LIFE_SECONDS / 4)
    return f"{first}; then at {op} {number}: {harness.power_loss(rng)}"


def test_two_power_losses_in_a_row(harness: Harness, rng: random.Random) -> None:
    """The second one in the middle of an opening: of a superblock, of the catalog's log, of a directory."""
    harness.judge(twice(harness, rng), repair=True)


@pytest.mark.long
def test_many_double_power_losses(
    harness: Harness, rng: random.Random, record_property: Record
) -> None:
    """Fifty of each backend."""
    for number in range(50):
        harness.judge(twice(harness, rng), quick=number % 5 > 0, repair=number % 5 == 0)
    record_property("double power losses", 50)


# ---- the predecessor's write is still in flight ------------------------------------------------------


@pytest.mark.parametrize("op", ["write", "fsync"])
def test_the_dead_one_still_writes(harness: Harness, rng: random.Random, op: str) -> None:
    """Until its last write has ended, it holds its locks: the next one is refused or goes without, or it waits.

    A dead thread in the middle of a write keeps all files of its process open, the catalog's lock too; a ring keeps the volume's alone.
    """
    harness.begin_at("some")
    child = harness.start("mixed", seed=rng.getrandbits(32))
    third = 3  # behind the two superblocks of the opening
    harness.fs.set_rules(Rule(op=op, path="/COPYPOOL1.vol", nth=third, delay=FOR_EVER))
    child.go()
    kernel.wait_until(lambda: harness.fs.status().hits[0] >= third, f"a held {op}")
    child.kill()
    harness.fs.set_rules()  # who comes now is not held; who is held stays so
    words = harness.say("states", lock_wait=0.2)
    assert "unavailable" in words.values() or words == {"catalog": "busy"}, words
    assert words.get("COPYPOOL1.vol") != "available"
    patient = harness.start("states", seed=None, lock_wait=20.0)
    patient.go()
    patient.wait_for("waiting")
    time.sleep(0.3)  # to see it wait; if it is late, the test is only weaker
    released = time.monotonic()
    harness.fs.release()
    assert patient.wait() == 0, patient.errors
    words = dict(word.split("=", 1) for word in patient.journal.words if "=" in word)
    assert words["COPYPOOL1.vol"] == "available", words
    assert float(words["opened"]) > released
    child.wait()
    harness.judge(f"a held {op}", repair=True)
