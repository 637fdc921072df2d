"""What one target that crawls costs the others, and how late a hung one is let go. Prints one JSON object. Needs root.

    python benchmarks/slow_target.py [--seconds S] [--rounds N] [--patience S] > benchmarks/results/slow-target.json

Three loop devices over memory. The kernel throttles one of them to a tenth of what the others take, by its cgroup controller. One round
runs the same client against each of

    without   the two healthy devices alone
    eject     all three, the slow one with on_slow="eject"
    wait      all three, the slow one with on_slow="wait"

for the same time, one after the other, the order moving by one from round to round. `whole` is the rate of a run, verdict and all,
divided by that of `without` in its round; `after` is the rate from the moment that the stream went on without the slow one. Then the
throttle is closed altogether, and `detach_late_ms` is how long after its hard deadline a hung device was let go.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fanout.engine import Engine, EventKind
from tests.faults.devices import loop, scratch, throttled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.devices import LoopDevice

MIB = 1 << 20
REGION = 128 * MIB
HARD = 0.5
HANGS = 20
WAYS = ("without", "eject", "wait")
GOALS = {"eject_whole": 0.95, "eject_after": 0.98, "detach_late_ms": 100.0}


@contextlib.contextmanager
def devices(count: int) -> Iterator[list[LoopDevice]]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch())
        made = []
        for number in range(count):
            image = directory / f"image{number}"
            image.write_bytes(bytes(MIB) * (REGION // MIB))
            made.append(stack.enter_context(loop(image)))
        yield made


def run(engine: Engine, paths: list[str], slow: str | None, on_slow: str, seconds: float) -> Any:
    """Bytes per second on the healthy targets: of the whole run, and since the slow one has gone."""
    targets = [engine.open(path) for path in paths]
    if slow is not None:
        targets.append(engine.open(slow, on_slow=on_slow))
    chunk = os.urandom(MIB)
    done, gone_at, gone_done = 0, 0.0, 0
    with engine.stream(targets) as stream:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            stream.place([0] * len(targets), REGION)
            for _ in range(REGION // MIB):
                failed = stream.write(chunk)
                done += MIB
                if failed and not gone_at:
                    gone_at, gone_done = time.monotonic(), done
                if time.monotonic() - began >= seconds:
                    break
            stream.pad()
        outcomes = stream.sync(timeout=120.0)
        ended = time.monotonic()
    assert all(outcomes[target].ok for target in targets[: len(paths)])
    for target in targets:
        target.close(timeout=120.0)
    after = (done - gone_done) / (ended - gone_at) if gone_at else None
    verdict = gone_at - began if gone_at else None
    return {"whole": done / (ended - began), "after": after, "verdict_seconds": verdict}


def hang(slow: LoopDevice) -> list[float]:
    """Milliseconds beyond the hard deadline, of several hangs."""
    late = []
    for _ in range(HANGS):
        # A byte per second is for ever. Undone before the engine closes, so that the writes can end.
        with Engine(memory_bytes=64 * MIB) as engine:
            target = engine.open(slow.path, hard_deadline=HARD, soft_deadline=HARD)
            with throttled(slow.number, bytes_per_second=1) as throttle:
                throttle.add(os.getpid())
                with engine.stream([target]) as stream:
                    stream.place([0], REGION)
                    stream.write(bytes(16 * MIB))
                    stream.sync()
                told = [e for e in engine.events() if e.kind is EventKind.DETACHED]
                late.append(told[0].latency_ns / 1e6 - HARD * 1e3)
            target.close(timeout=60.0)
    return late


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(seconds: float, rounds: int, patience: float) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with devices(3) as (first, second, slow), Engine(patience=patience) as engine:
        healthy = [first.path, second.path]
        for path in (*healthy, slow.path):  # warm up
            run(engine, [path], None, "wait", 0.5)
        full = run(engine, healthy, None, "wait", 2.0)["whole"]
        with throttled(slow.number, bytes_per_second=int(full / 10)) as throttle:
            throttle.add(os.getpid())
            for number in range(rounds):
                for way in (*WAYS[number % 3 :], *WAYS[: number % 3]):
                    third = None if way == "without" else slow.path
                    found[way].append(run(engine, healthy, third, way, seconds))
        late = hang(slow)
    base = [one["whole"] for one in found["without"]]
    ratios = {
        "eject_whole": [e["whole"] / b for e, b in zip(found["eject"], base, strict=True)],
        "eject_after": [(e["after"] or 0) / b for e, b in zip(found["eject"], base, strict=True)],
        "wait_whole": [w["whole"] / b for w, b in zip(found["wait"], base, strict=True)],
        "detach_late_ms": late,
    }
    return {
        "ratios": {name: spread(values) for name, values in ratios.items()},
        "verdict_seconds": [one["verdict_seconds"] for one in found["eject"]],
        "rounds": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=0.3)
    options = parser.parse_args()
    before = os.getloadavg()
    result = measure(options.seconds, options.rounds, options.patience)
    medians = {name: values["median"] for name, values in result["ratios"].items()}
    result["goals"] = {
        "eject_whole": medians["eject_whole"] >= GOALS["eject_whole"],
        "eject_after": medians["eject_after"] >= GOALS["eject_after"],
        "detach_late_ms": result["ratios"]["detach_late_ms"]["max"] <= GOALS["detach_late_ms"],
    }
    result["settings"] = vars(options)
    result["machine"] = {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load_before": before,
    }
    json.dump(result, sys.stdout, indent=1)
    print()
    return 0 if all(result["goals"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
