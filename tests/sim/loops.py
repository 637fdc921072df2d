"""Counting loops: the first operation fails, then the second, and so on, until a workload no longer reaches the one that would.

::

    python -m tests.sim.loops [--every N] [--core I/N]

Each workload of tests/sim/workloads.py, each operation of the engine (a read, write, flush, open, close …) and of the catalog, each class
of errno, once and for ever, before and after the operation is carried out; short and zero transfers; an operation that hangs. After each
case everything heals, and the store must come right by the whole oracle of tests/sim/world.py.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import logging
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.sim.ground import Grounds
from tests.sim.plan import CatalogFault, Fault, Plan
from tests.sim.vfs import CODES
from tests.sim.workloads import WORKLOADS, with_fault
from tests.sim.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# One of each class of csrc/fo_errno.c.
ERRNOS = (
    errno.EIO, errno.ENODATA, errno.ENOSPC, errno.ETIMEDOUT, errno.EPERM, errno.EBADE, errno.EMFILE, errno.EAGAIN,
)  # fmt: skip
CATALOG = {
    "read": ("EIO read", "ENOMEM"),
    "write": ("EIO write", "ENOSPC", "ENOMEM"),
    "sync": ("EIO sync",),
    "truncate": ("EIO truncate",),
}
BOUND = 2000  # operations of a workload: far more than any has


def engine_faults() -> Iterator[tuple[str, int, bool]]:
    """Action, value, and whether it lasts."""
    for number in ERRNOS:
        for action in ("errno", "after"):
            for forever in (False, True):
                yield action, number, forever
    yield "short", 4096, False
    yield "short", 512, True
    yield "zero", 0, False
    yield "never", 0, False


def catalog_faults() -> Iterator[tuple[str, str, bool, bool]]:
    """Operation, code, whether it lasts, and whether it is carried out all the same."""
    for operation, codes in CATALOG.items():
        for code in codes:
            assert code in CODES
            for forever, after in itertools.product((False, True), repeat=2):
                if not (after and operation == "read"):
                    yield operation, code, forever, after


def cases(plan: Plan, *, opening: bool) -> Iterator[Iterator[Plan]]:
    """For each kind of fault the plans in which it strikes one operation later each."""
    for action, value, forever in engine_faults():
        yield (
            with_fault(plan, Fault(0, "*", action, 0, value, n, forever), opening=opening)
            for n in range(1, BOUND)
        )
    for operation, code, forever, after in catalog_faults():
        yield (
            with_fault(plan, CatalogFault(0, operation, code, n, forever, after), opening=opening)
            for n in range(1, BOUND)
        )


class LoopFailed(AssertionError):
    """A case found something."""


def run_loops(
    names: Sequence[str], grounds: Grounds, *, every: int = 1, opening: bool = False
) -> Counter[str]:
    """Run the loops of some workloads to their ends.

    Args:
        names: of the workloads.
        grounds: to run on.
        every: of the operations only every so-manyth, and the first ones; 1: all.
        opening: count from the opening of the store.

    Raises:
        LoopFailed: a case found something, or a loop had no end.
    """
    done: Counter[str] = Counter()
    for name in names:
        for loop in cases(WORKLOADS[name], opening=opening):
            for n, plan in enumerate(loop, 1):
                if n > 3 and n % every:
                    continue
                if not _strikes(name, plan, grounds):
                    break  # the workload completed untouched
                done[name] += 1
            else:
                raise LoopFailed(f"{name}: no end after {BOUND} operations")
    return done


def _strikes(name: str, plan: Plan, grounds: Grounds) -> bool:
    """Run one case; False: nothing was struck."""
    world = World(plan, grounds.of(plan.site))
    try:
        world.run()
    except Exception as error:
        raise LoopFailed(f"{name}: {error!r}\n{plan}") from error
    return world.struck


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.loops", description="Counting loops."
    )
    parser.add_argument("--every", type=int, default=1, help="only every so-manyth operation")
    parser.add_argument("--core", default="0/1", help="the share of one of several processes: I/N")
    options = parser.parse_args(arguments)
    logging.disable()
    share, shares = map(int, options.core.split("/"))
    began = time.process_time()
    names = list(WORKLOADS)[share::shares]
    with Grounds() as grounds:
        try:
            done = run_loops(names, grounds, every=options.every)
            if share == 0:
                opening = run_loops(names[:1], grounds, every=options.every, opening=True)
                done["opening"] = opening.total()
        except LoopFailed as error:
            print(error, file=sys.stderr)
            return 1
    seconds = round(time.process_time() - began, 1)
    print(
        json.dumps({"cases": done.total(), **done, "every": options.every, "cpu_seconds": seconds})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
