"""Runs seeds, and makes a failing one small.

::

    python -m tests.sim.run --seeds 0:1000            so many seeds, on one core
    python -m tests.sim.run --seed 123                one, with its trace
    python -m tests.sim.run --seed 123 --drop 4,7,8   one that was made smaller: these parts left out
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.sim.ground import Grounds
from tests.sim.plan import Plan, draw
from tests.sim.vfs import lighten_sqlite
from tests.sim.world import World

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

SHRINK_SECONDS = 90.0


@dataclass(slots=True)
class Tally:
    """What a number of seeds came to; `seconds` of one processor, whoever else uses it."""

    seeds: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, int | float]:
        rate = self.counts["sessions"] / self.seconds if self.seconds else 0.0
        return {
            "seeds": self.seeds,
            **self.counts,
            "cpu_seconds": round(self.seconds, 1),
            "sessions_per_cpu_second": round(rate, 1),
        }


class SeedFailed(AssertionError):
    """A seed found something; the message ends with the command that shows it again."""


def run_plan(plan: Plan, grounds: Grounds, *, rebuild: bool = False) -> tuple[World, str]:
    """Run one plan; raises what it finds. Gives the world and the digest of its trace."""
    world = World(plan, grounds.of(plan.site), rebuild=rebuild)
    return world, world.run()


def run_until_found(seeds: Iterable[int], grounds: Grounds) -> None:
    """Run them, each named before it begins, until one fails: as it is, for the finding is expected."""
    for seed in seeds:
        print(seed, flush=True)
        run_plan(draw(seed), grounds)


def run_seeds(
    seeds: Iterable[int], grounds: Grounds, *, twice: bool = False, rebuild: bool = False
) -> Tally:
    """Run them all.

    Args:
        seeds: which.
        grounds: to run them on.
        twice: each, and demand that both runs are the same, bit for bit.
        rebuild: the catalog from the volumes at the end of each, instead of every eighth.

    Raises:
        SeedFailed: the first one that fails, made smaller.
    """
    tally = Tally()
    began = time.process_time()
    for seed in seeds:
        try:
            world, digest = run_plan(draw(seed), grounds, rebuild=rebuild)
        except Exception as error:
            again = shrunk(seed, grounds, what(error), rebuild=rebuild)
            raise SeedFailed(f"seed {seed}: {error!r}\nto see it again: {again}") from error
        if twice and run_plan(draw(seed), grounds, rebuild=rebuild)[1] != digest:
            raise SeedFailed(f"two runs differ\nto see them: {command(seed, rebuild=rebuild)}")
        tally.seeds += 1
        tally.counts.update(world.counts)
    tally.seconds = time.process_time() - began
    return tally


def what(error: BaseException | None) -> str:
    """The kind of a finding: a plan that is made smaller must not begin to find something else."""
    return "" if error is None else f"{type(error).__name__} {str(error).partition(':')[0][:8]}"


def finding(plan: Plan, grounds: Grounds, *, rebuild: bool = False) -> str:
    """What a plan finds; empty: nothing."""
    try:
        run_plan(plan, grounds, rebuild=rebuild)
    except Exception as error:
        return what(error)
    return ""


def shrunk(
    seed: int, grounds: Grounds, found: str, *, rounds: int = 3, rebuild: bool = False
) -> str:
    """The command that replays what is left of a failing seed when everything that it can do without was left out.

    Or as much as `SHRINK_SECONDS` allow: a test that is given up for its length would not even name the seed.
    """
    gone: set[int] = set()
    whole, end = draw(seed), time.monotonic() + SHRINK_SECONDS
    for _ in range(rounds):
        before = len(gone)
        for part in list(whole.without(gone).parts()):
            if time.monotonic() > end:
                return command(seed, gone, rebuild=rebuild)
            if finding(whole.without(gone | {part}), grounds, rebuild=rebuild) == found:
                gone.add(part)
        if len(gone) == before:
            break
    return command(seed, gone, rebuild=rebuild)


def command(seed: int, gone: Collection[int] = (), *, rebuild: bool = False) -> str:
    """What to type."""
    drop = f" --drop {','.join(map(str, sorted(gone)))}" if gone else ""
    return f"python -m tests.sim.run --seed {seed}{' --rebuild' if rebuild else ''}{drop}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.run", description="Simulated sessions, by seeds."
    )
    parser.add_argument(
        "--seeds", default="0:1000", help="FIRST:END, or one after the other: N,N,…"
    )
    parser.add_argument("--twice", action="store_true", help="each, and both runs must be the same")
    parser.add_argument("--rebuild", action="store_true", help="each catalog from its volumes")
    parser.add_argument("--first-finding", action="store_true", help="name each, stop at once")
    parser.add_argument("--processor", type=int, default=0, help="seconds that it may take of one")
    parser.add_argument("--seed", type=int, help="one, with its trace")
    parser.add_argument("--drop", default="", help="parts of it that are left out")
    parser.add_argument("--within", default="", help="the directory for the sites")
    options = parser.parse_args(arguments)
    if options.seed is None:
        logging.disable()  # what fails here fails on purpose
    if options.processor:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (options.processor, resource.RLIM_INFINITY))
    gc.freeze()  # what is there now stays: nobody need look at it between runs
    with Grounds(options.within) as grounds:
        if options.seed is not None:
            gone = {int(part) for part in options.drop.split(",") if part}
            return show(draw(options.seed).without(gone), grounds, rebuild=options.rebuild)
        seeds = _numbers(options.seeds)
        if options.first_finding:
            run_until_found(seeds, grounds)
            return 0
        try:
            tally = run_seeds(seeds, grounds, twice=options.twice, rebuild=options.rebuild)
        except SeedFailed as error:
            print(error, file=sys.stderr)
            return 1
    print(json.dumps(tally.as_json()))
    return 0


def _numbers(text: str) -> Sequence[int]:
    first, found, end = text.partition(":")
    return range(int(first), int(end)) if found else [int(seed) for seed in text.split(",")]


def show(plan: Plan, grounds: Grounds, *, rebuild: bool) -> int:
    """One plan with its trace."""
    print(plan.site)
    for episode in plan.episodes:
        print(episode)
    world = World(plan, grounds.of(plan.site), keep_trace=True, rebuild=rebuild)
    try:
        digest = world.run()
    except Exception as error:
        print("\n".join(world.lines or ()))
        print(f"FAILED: {error!r}")
        raise
    print("\n".join(world.lines or ()))
    print(digest, world.counts)
    return 0


if __name__ == "__main__":
    lighten_sqlite()
    sys.exit(main())
