"""How much a process grows while it streams, beside what its engine was given: the budget must be all.

A process of its own, so that nobody else's memory is counted: this module run as a program. It opens an engine, streams over the same
targets again and again, and says how much larger it has ever been than just before.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.bench.contenders import BenchmarkError
from fanout.bench.figures import Figure
from fanout.bench.measures import Found
from fanout.bench.plan import named
from fanout.bench.work import client, write_once
from fanout.engine import Engine

if TYPE_CHECKING:
    from fanout.bench.measures import Tell
    from fanout.bench.places import Place
    from fanout.bench.plan import MemoryMeasure


def run(measure: MemoryMeasure, place: Place, *, backend: str, tell: Tell) -> Found:
    """Let the other process do it, once for each round."""
    with client(place.paths, size_bytes=place.spec.size_bytes) as work:
        tell(f"{measure.title}: preparing the targets")
        for path in place.paths:
            write_once(path, work)
    task = {
        "paths": place.paths,
        "region_bytes": place.spec.size_bytes,
        "stream_bytes": measure.stream_bytes,
        "memory_bytes": measure.memory_bytes,
        "backend": backend,
    }
    found = []
    for number in range(measure.rounds):
        tell(f"{measure.title}: round {number + 1} of {measure.rounds}")
        said = subprocess.run(
            [sys.executable, "-P", "-m", "fanout.bench.measures.memory", json.dumps(task)],
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode:
            raise BenchmarkError(f"{measure.name}: {said.stderr.strip()[-500:]}")
        found.append(json.loads(said.stdout))
    growth = [one["growth_bytes"] for one in found]
    record = {
        "stream_bytes": measure.stream_bytes,
        "memory_bytes": measure.memory_bytes,
        "growth_bytes": growth,
    }
    figure = Figure(
        named(measure, "growth_vs_budget"),
        "peak growth of the process ÷ budget",
        "",
        more_is_better=False,
        relative=True,
        rounds=tuple(bytes_ / measure.memory_bytes for bytes_ in growth),
    )
    return Found(record, (figure,))


def measured(
    *, paths: list[str], region_bytes: int, stream_bytes: int, memory_bytes: int, backend: str
) -> dict[str, int]:
    """Stream, and say how much this process has grown at its largest."""
    with client(paths, size_bytes=region_bytes) as work:
        # The client's memory is touched; from here on the peak counts anew.
        Path("/proc/self/clear_refs").write_text("5\n", encoding="ascii")
        before = _resident("VmRSS") + _resident("HugetlbPages")
        with Engine(memory_bytes=memory_bytes, backend=backend) as engine:
            targets = [engine.open(path, lock=work.block_devices) for path in paths]
            with engine.stream(targets) as stream:
                for _ in range(stream_bytes // region_bytes):
                    stream.place([0] * len(targets), region_bytes)
                    for chunk in work.chunks():
                        stream.write(chunk)
                outcomes = stream.sync()
            huge = _resident("HugetlbPages")  # not part of the peak, and gone with the engine
            for target in targets:
                target.close()
        if not all(outcome.ok for outcome in outcomes.values()):
            raise BenchmarkError(f"fanout: {[str(outcome) for outcome in outcomes.values()]}")
    return {"growth_bytes": _resident("VmHWM") + huge - before}


def _resident(key: str) -> int:
    """Bytes, of this process, as /proc says."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


if __name__ == "__main__":
    print(json.dumps(measured(**json.loads(sys.argv[1]))))
