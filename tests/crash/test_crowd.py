"""Many at once on one store, opening after opening, with what fails and who dies drawn anew for each.

What could break: all that only happens when a repair, an audit, a deletion and eight sessions meet a fault, a fork or an interrupt; and
what is left of it when the store is opened again.

The choices follow from the seed, the moments do not. FANOUT_CROWD_OPENINGS is how many are made of each backend.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.harness import VOLUMES, Harness
from tests.crash.journal import Fate
from tests.crash.nursery import Nursery
from tests.crash.site import MIB, POOLS, SECONDARIES, CrashSite
from tests.faults.devices import fault_disk
from tests.faults.faultfs import FaultFS
from tests.faults.rules import FOR_EVER, Rule

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from tests.crash.nursery import Child
    from tests.evidence import Record

MANY = 24
GENERATION = 6  # openings of one store; then it begins anew
ROOM = 24 * MIB  # of each secondary
OPERATIONS = 128  # of all threads of an opening together
ERRNOS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.ETIMEDOUT, errno.ENODATA)
REPAIR = b'{"repair": true}\n'


@pytest.fixture(scope="module", params=["io_uring", "threads"])
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """One for each backend."""
    with (
        FaultFS(cached=True) as fs,
        Nursery() as nursery,
        tempfile.TemporaryDirectory(prefix="crowd-") as kept,
    ):
        site = CrashSite(
            fs.path(), backend=request.param, size=4 * MIB, secondary_size=ROOM, hard_deadline=4.0
        )
        made = Harness(fs, site, nursery, Path(kept))
        site.configure()
        made.complete("create", seed=None, force=False)
        made.keep("new")
        yield made


def configure(harness: Harness, site: CrashSite, options: dict[str, str]) -> None:
    """A new configuration, in a new file: what was put back behind the kernel's back may still be in its cache."""
    site.options = options
    site.path.unlink()
    site.configure()
    harness.fs.settle()


# ---- what happens to it ------------------------------------------------------------------------------


def some_options(rng: random.Random, *, rests: bool) -> dict[str, str]:
    """What the pools are set to for this opening. `rests`: nothing is written to one."""
    options = {pool: f'verify = "{rng.choice(("none", "readback"))}"\n' for pool in POOLS}
    for pool in SECONDARIES:
        options[pool] += f'on_slow = "{rng.choice(("wait", "eject"))}"\n'
    if rests:
        options[rng.choice(SECONDARIES)] += f'access = "{rng.choice(("readonly", "unavailable"))}"'
    return options


def some_rules(rng: random.Random) -> list[Rule]:
    """What fails for a while."""
    rules = []
    for _ in range(rng.randint(1, 3)):
        places = ("/COPYPOOL1.vol", "/ACTIVE*.vol", "/DISKPOOL.vol", VOLUMES, "/catalog*")
        where = rng.choice(places)
        op = rng.choice(("write", "write", "fsync", "read", "open", "fallocate"))
        if where == "/catalog*" and op == "read":
            op = "write"
        how: dict[str, Any] = {"nth": rng.randint(1, 20), "count": rng.choice((1, 3, None))}
        if rng.random() < 0.25:
            how |= {"delay": rng.choice((0.01, FOR_EVER)), "count": 2}
        else:
            how |= {"errno": rng.choice(ERRNOS), "after_io": rng.random() < 0.3}
        rules.append(Rule(op=op, path=where, **how))
    return rules


def trouble(harness: Harness, rng: random.Random) -> str:
    """Faults that come and go; what they were, in words."""
    what = ""
    for _ in range(rng.randint(1, 4)):
        rules = some_rules(rng)
        what += f"\n{rules}"
        harness.fs.set_rules(*rules)
        time.sleep(rng.uniform(0, 0.3))
        if rng.random() < 0.2:
            with harness.fs.frozen():
                time.sleep(rng.uniform(0, 0.3))
        if rng.random() < 0.7:
            harness.heal()
    return what


def reach(child: Child, word: str, what: str) -> None:
    """Wait for a word."""
    try:
        child.wait_for(word)
    except EOFError:
        child.wait()
        raise AssertionError("\n".join([what, *child.journal.words, child.errors])) from None


def opening(harness: Harness, rng: random.Random, counts: Counter[str]) -> tuple[str, bool]:
    """One opening, to its end or to a kill. What happened, in words, and whether volumes had faults."""
    faults, killed, threads = rng.random() < 0.6, rng.random() < 0.3, rng.choice((2, 8, 32))
    rests = rng.random() < 0.2
    settings = some_options(rng, rests=rests)
    configure(harness, harness.site, settings)
    options = {
        "seed": rng.getrandbits(32),
        "threads": threads,
        "operations": OPERATIONS // threads,
        "faults": faults or rests,
        "interrupts": rng.random() < 0.3,
        "flush": rng.random() < 0.3,
    }
    child = harness.start("crowd:crowd", **options)
    what = f"crowd {options}, {settings}"
    child.go()
    reach(child, "open", what)
    if faults:
        what += trouble(harness, rng)
    if killed:
        time.sleep(rng.uniform(0, 0.5))
        child.kill()
        what += "\nkilled"
    else:
        harness.heal()
        reach(child, "over", what)
        child.go()
    end(harness, child, what, counts)
    if killed and rng.random() < 0.5:
        what += f", {harness.power_loss(rng)}"
    configure(harness, harness.site, {})
    return what, faults or rests


def end(harness: Harness, child: Child, what: str, counts: Counter[str]) -> None:
    """Of a child: nothing that it found, and what it counted."""
    harness.heal()
    status = child.wait()
    assert status in ((-9, 0) if what.endswith("killed") else (0,)), f"{what}\n{child.errors}"
    harness.journal.take(REPAIR)  # one may have been killed in the middle
    words = harness.journal.words
    findings = [word for word in words if word.startswith("finding=")]
    assert not findings, "\n".join([what, *findings, child.errors])
    for word in words:
        if word.startswith("count "):
            name, _, number = word.removeprefix("count ").partition("=")
            counts[name] += int(number)
    words.clear()


def live(harness: Harness, rng: random.Random, openings: int) -> Counter[str]:
    """So many openings, each judged. What was done in them."""
    counts: Counter[str] = Counter()
    for number in range(openings):
        if number % GENERATION == 0:
            harness.begin_at("new")
        what, ill = opening(harness, rng, counts)
        last = number == openings - 1 or number % GENERATION == GENERATION - 1
        what = f"opening {number}: {what}"
        harness.judge(what, quick=not last, repair=last, goes_on=not last, ill=ill)
        if last:
            counts["acknowledged"] += len(harness.journal.of(Fate.ACKNOWLEDGED))
    return counts


# ---- tests -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_crowd(harness: Harness, rng: random.Random, record_property: Record) -> None:
    """Opening after opening."""
    openings = int(os.environ.get("FANOUT_CROWD_OPENINGS", str(MANY)))
    counts = live(harness, rng, openings)
    record_property("openings", openings)
    for what in ("acknowledged", "put", "delete", "repair", "audit", "fork"):
        record_property(what, counts[what])
    assert counts["acknowledged"] > openings


@pytest.mark.long
@pytest.mark.loop
def test_a_device_is_taken_away(harness: Harness, rng: random.Random) -> None:
    """For good, under eight threads: everybody goes on, the store closes, and once it was given up everything is in all pools again."""
    pool = rng.choice(("DISKPOOL", "COPYPOOL1"))
    harness.begin_at("new")
    site = replace(harness.site, size=ROOM)  # the primary has to take all of it back
    site.volume(pool).unlink()
    with fault_disk(ROOM) as disk:
        site.devices = {pool: disk.path}
        configure(harness, site, {})
        harness.complete("crowd:create_anew", seed=None)
        options = {"threads": 8, "operations": 12, "faults": True, "interrupts": False}
        child = harness.start("crowd:crowd", seed=rng.getrandbits(32), **options)
        what = f"{pool} was taken away"
        child.go()
        reach(child, "open", what)
        time.sleep(rng.uniform(0, 0.5))
        disk.fs.abort()
        reach(child, "over", what)
        child.go()
        end(harness, child, what, Counter())
        site.devices = {}
        configure(harness, site, {})
        child = harness.start("crowd:give_up", seed=None, pool=pool, path=disk.path)
        child.go()
        end(harness, child, what, Counter())
        harness.judge(what, repair=True, goes_on=False)
