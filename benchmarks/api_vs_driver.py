"""What Python adds: the API against the C driver of the same core, on the same targets. Prints one JSON object.

    make build && make -C csrc
    python benchmarks/api_vs_driver.py [--directory DIR | --targets A B C] [--bytes 1G] [--rounds 9]

Each round runs both, in turn first, each in a process of its own that opens the targets, writes, and waits until they are durable; the
clock runs from opening the stream until then. One round before the first is not counted: targets have been written once, as
a daemon's have. The caller's chunks exist before the clock starts, on both sides.

A ratio of 1 means that Python costs nothing. The driver is the denominator: more throughput is better, more CPU is worse. The
medians are of the ratios of each round, so that what the machine does to both of a round cancels out.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fanout.engine import Engine

ROOT = Path(__file__).resolve().parents[1]
DRIVER = ROOT / "csrc" / "build" / "fo_drive"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SLOT, SOURCE, SLACK = 1 * MIB, 64 * MIB, 16 * MIB
CHUNKS = {"1 MiB": 1 * MIB, "64 KiB": 64 * KIB}
GOALS = {"1 MiB": 0.97, "64 KiB": 0.85}  # throughput, of the driver's


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def write_by_api(paths: list[str], size: int, chunk: int) -> dict[str, Any]:
    """One run in this process; what fo_drive does with ``--span`` of the whole length."""
    memory = mmap.mmap(-1, SOURCE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # as the driver's
    memory.write(os.urandom(SOURCE))
    source = memoryview(memory)
    chunks = [source[at : at + chunk] for at in range(0, SOURCE, chunk)]
    with Engine(memory_bytes=64 * SLOT, slot_size_bytes=SLOT) as engine:
        targets = [engine.open(path, replace=True, lock=True, size=size + SLACK) for path in paths]
        began, cpu = time.monotonic(), cpu_seconds()
        with engine.stream(targets) as stream:
            stream.place([0] * len(targets), size)
            left = size // chunk
            while left > 0:
                for data in chunks[:left]:
                    stream.write(data)
                left -= len(chunks)
            stream.digest()
            outcomes = stream.sync()
        seconds, cpu = time.monotonic() - began, cpu_seconds() - cpu
        assert all(outcome.ok for outcome in outcomes.values()), outcomes
        return {"seconds": seconds, "cpu_seconds": cpu, "backend": engine.info.backend}


def run(side: str, paths: list[str], size: int, chunk: int) -> dict[str, Any]:
    if side == "driver":
        sizes = {"slot": SLOT, "chunk": chunk, "bytes": size, "source": SOURCE, "span": size}
        command = [str(DRIVER), *(f for k, v in sizes.items() for f in (f"--{k}", str(v))), *paths]
    else:
        inner = ["--inner", str(chunk), "--bytes", str(size), "--targets", *paths]
        command = [sys.executable, "-P", __file__, *inner]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(found.stdout))


def compare(paths: list[str], size: int, chunk: int, rounds: int) -> dict[str, Any]:
    """Both sides `rounds` times, the first to run changing from round to round."""
    kept: dict[str, list[dict[str, Any]]] = {"driver": [], "api": []}
    for number in range(-1, rounds):
        for side in sorted(kept, reverse=bool(number % 2)):
            result = run(side, paths, size, chunk)
            if number >= 0:
                kept[side].append(result)
    pairs = list(zip(kept["api"], kept["driver"], strict=True))
    speed = [driver["seconds"] / api["seconds"] for api, driver in pairs]
    cpu = [api["cpu_seconds"] / driver["cpu_seconds"] for api, driver in pairs]
    return {
        "throughput_ratio": round(statistics.median(speed), 4),
        "throughput_ratio_spread": [round(min(speed), 4), round(max(speed), 4)],
        "cpu_ratio": round(statistics.median(cpu), 4),
        **{side: side_summary(runs, size) for side, runs in kept.items()},
    }


def side_summary(runs: list[dict[str, Any]], size: int) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    return {
        "gib_per_second": round(size / GIB / statistics.median(seconds), 3),
        "cpu_ms_per_gib": round(
            statistics.median(run["cpu_seconds"] for run in runs) * 1000 * GIB / size, 1
        ),
        "seconds": [round(value, 4) for value in seconds],
        "backend": runs[0]["backend"],
    }


def parse_size(text: str) -> int:
    units = {"K": KIB, "M": MIB, "G": GIB}
    return int(text[:-1]) * units[text[-1].upper()] if text[-1].isalpha() else int(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--directory", default="/var/tmp", help="where three files are made")
    parser.add_argument("--targets", nargs="+", help="files or devices to overwrite instead")
    parser.add_argument("--bytes", type=parse_size, default=GIB)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--inner", type=int, help=argparse.SUPPRESS)  # one run of the API
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if args.inner:
        print(json.dumps(write_by_api(args.targets, args.bytes, args.inner)))
        return 0
    if not DRIVER.exists():
        print("api_vs_driver: there is no driver; run `make -C csrc`", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="fanout-api-", dir=args.directory) as directory:
        paths = args.targets or [f"{directory}/target{number}" for number in range(3)]
        found = {
            name: compare(paths, args.bytes, chunk, args.rounds) for name, chunk in CHUNKS.items()
        }
    holds = {name: found[name]["throughput_ratio"] >= goal for name, goal in GOALS.items()}
    report = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "targets": args.targets or f"three files in {args.directory}",
        "bytes": args.bytes,
        "rounds": args.rounds,
        "chunks": found,
        "goals": GOALS,
        "holds": holds,
    }
    print(json.dumps(report, indent=2))
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
