"""The long runs, two at a time, with their results in tests/sim/results.

::

    python -m tests.sim.suite faults       a part of make test-faults
    python -m tests.sim.suite nightly      make nightly: hours
    python -m tests.sim.suite faults --only loops

A part that finds something, or does not come to its end, makes the whole fail; none is left out without a word.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import evidence

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
PROCESSES = 2

# Module and arguments. The longest come first.
TIERS: dict[str, list[tuple[str, str]]] = {
    "faults": [
        ("bugs", "--again --core 0/2"),
        ("bugs", "--again --core 1/2"),
        ("loops", "--core 0/2"),
        ("loops", "--core 1/2"),
        ("crashes", "--samples 64 --core 0/2"),
        ("crashes", "--samples 64 --core 1/2"),
        ("run", "--rebuild --seeds 250:750"),
        ("run", "--twice --rebuild --seeds 0:250"),
        ("run", "--rebuild --seeds 750:1000"),
        ("run", "--seeds 1000:1500"),
    ],
    "nightly": [
        *(("run", f"--seeds {first}:{first + 10_000}") for first in range(0, 100_000, 10_000)),
        ("run", "--twice --rebuild --seeds 100000:102000"),
        ("loops", "--opening --core 0/2"),
        ("loops", "--opening --core 1/2"),
        ("loops", "--core 0/2"),
        ("loops", "--core 1/2"),
        ("crashes", "--samples 300 --core 0/2"),
        ("crashes", "--samples 300 --core 1/2"),
        ("bugs", "--core 0/2"),
        ("bugs", "--core 1/2"),
    ],
}


def run(part: tuple[str, str]) -> dict[str, Any]:
    """One part in a process of its own: what it said at its end, or what it found."""
    module, arguments = part
    command = [sys.executable, "-m", f"tests.sim.{module}", *arguments.split()]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    result: dict[str, Any] = {
        "command": f"python -m tests.sim.{module} {arguments}",
        "passed": done.returncode == 0,
        "seconds": round(time.monotonic() - began),
    }
    if lines and lines[-1].startswith("{"):
        result["result"] = json.loads(lines[-1])
    if done.returncode:
        result["found"] = (done.stderr.strip() or done.stdout.strip())[-2000:]
    print(json.dumps(result), flush=True)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.suite", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("tier", choices=TIERS)
    parser.add_argument("--only", default="", help="of all parts those of this module")
    options = parser.parse_args(arguments)
    name = f"{options.tier}-{options.only}" if options.only else options.tier
    parts = [part for part in TIERS[options.tier] if options.only in ("", part[0])]
    began = time.monotonic()
    head = evidence.origin(" ".join(["python -m tests.sim.suite", *(arguments or sys.argv[1:])]))
    kept = evidence.path_of(RESULTS, name, head)
    results: list[dict[str, Any]] = []
    with ThreadPoolExecutor(PROCESSES) as pool:
        for result in pool.map(run, parts):
            results.append(result)
            done = {
                "complete": len(results) == len(parts),
                "seconds": round(time.monotonic() - began),
            }
            # After each part: also a run that is broken off has said something.
            evidence.keep(kept, {**head, **done, "parts": results})
    failed = [part["command"] for part in results if not part["passed"]]
    for command in failed:
        print(f"FAILED: {command}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
