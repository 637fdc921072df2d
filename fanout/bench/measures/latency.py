"""How long until one chunk is durable on every target: fanout beside Python threads that write and ``fdatasync``.

One chunk at a time, nothing else in flight: what a client waits for that commits after every message. The clock runs from handing the
chunk over until the slowest target has confirmed its flush; fanout opens a stream for each, hashes, and looks at every outcome.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import statistics
import threading
import time
from typing import TYPE_CHECKING, Protocol

from fanout.bench.contenders import BenchmarkError
from fanout.bench.figures import Figure, percentile, rounded
from fanout.bench.measures import Found
from fanout.bench.plan import named
from fanout.bench.rounds import describe_engine
from fanout.bench.work import client, write_once
from fanout.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.bench.measures import Tell
    from fanout.bench.places import Place
    from fanout.bench.plan import LatencyMeasure
    from fanout.bench.work import Work

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
STEP_BYTES = 4096  # places are multiples of what any device here calls a sector


class _Lander(Protocol):
    def __call__(self, offset: int, chunk: memoryview) -> None:
        """Return when the chunk is durable everywhere."""


def run(measure: LatencyMeasure, place: Place, *, backend: str, tell: Tell) -> Found:
    """Measure each, in turns."""
    step = max(measure.chunk_bytes, STEP_BYTES)
    with contextlib.ExitStack() as stack:
        size = place.spec.size_bytes
        work = stack.enter_context(client(place.paths, size_bytes=size))
        tell(f"{measure.title}: preparing the targets")
        for path in place.paths:
            write_once(path, work)
        engine = stack.enter_context(Engine(backend=backend))
        contenders: dict[str, tuple[str, _Lander]] = {
            "fanout": ("fanout (copy + hash)", stack.enter_context(_fanout(engine, work)))
        }
        absent = {}
        for name, title, flags in (
            ("python_threads_buffered", "Python threads, buffered", 0),
            ("python_threads_direct", "Python threads, direct", os.O_DIRECT),
        ):
            lander = stack.enter_context(_threads(work, flags))
            try:
                _round(lander, work, step, measure.chunk_bytes, 2)
            except OSError as error:
                absent[name] = str(error)
            else:
                contenders[name] = (title, lander)
        times: dict[str, list[list[float]]] = {name: [] for name in contenders}
        for number in range(-1, measure.rounds):
            shift = number % len(contenders)
            order = [*contenders][shift:] + [*contenders][:shift]
            for name in order:
                title, lander = contenders[name]
                tell(f"{measure.title}: round {number + 1} of {measure.rounds}: {title}")
                took = _round(lander, work, step, measure.chunk_bytes, measure.operations)
                if number >= 0:
                    times[name].append(took)
        about = describe_engine(engine)
    titles = {name: title for name, (title, _) in contenders.items()}
    record = {
        "engine": about,
        "chunk_bytes": measure.chunk_bytes,
        "operations": measure.operations,
        "targets": len(place.paths),
        "contenders": {name: _summary(titles[name], took) for name, took in times.items()},
    }
    return Found(record, tuple(_figures(measure, times)), absent)


def _round(lander: _Lander, work: Work, step: int, chunk: int, operations: int) -> list[float]:
    """Milliseconds of each."""
    took = []
    for number in range(operations):
        offset = number * step
        at = offset % (len(work.view) - chunk + 1) // STEP_BYTES * STEP_BYTES
        began = time.perf_counter()
        lander(offset, work.view[at : at + chunk])
        took.append((time.perf_counter() - began) * 1e3)
    return took


@contextlib.contextmanager
def _fanout(engine: Engine, work: Work) -> Iterator[_Lander]:
    size = 0 if work.block_devices else work.size_bytes
    targets = [engine.open(path, lock=work.block_devices, size=size) for path in work.targets]

    def land(offset: int, chunk: memoryview) -> None:
        with engine.stream(targets) as stream:
            stream.place([offset] * len(targets))
            stream.write(chunk)
            outcomes = stream.sync()
        if not all(outcome.ok for outcome in outcomes.values()):
            raise BenchmarkError(f"fanout: {[str(outcome) for outcome in outcomes.values()]}")

    yield land
    for target in targets:
        target.close()


@contextlib.contextmanager
def _threads(work: Work, flags: int) -> Iterator[_Lander]:
    """A thread for each target, which stays."""
    with contextlib.ExitStack() as stack:
        done: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
        lanes: list[queue.SimpleQueue[Callable[[], None] | None]] = []
        fds = []
        for path in work.targets:
            fds.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags))
            stack.callback(os.close, fds[-1])
            lane: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
            thread = threading.Thread(target=_lane, args=(lane, done))
            thread.start()
            stack.callback(thread.join)
            stack.callback(lane.put, None)
            lanes.append(lane)

        def land(offset: int, chunk: memoryview) -> None:
            for fd, lane in zip(fds, lanes, strict=True):
                lane.put(functools.partial(_write_through, fd, offset, chunk))
            errors = [error for _ in lanes if (error := done.get())]
            if errors:
                raise errors[0]

        yield land


def _lane(
    lane: queue.SimpleQueue[Callable[[], None] | None], done: queue.SimpleQueue[OSError | None]
) -> None:
    while job := lane.get():
        try:
            job()
        except OSError as error:
            done.put(error)
        else:
            done.put(None)


def _write_through(fd: int, offset: int, chunk: memoryview) -> None:
    while chunk:
        written = os.pwrite(fd, chunk, offset)
        chunk, offset = chunk[written:], offset + written
    os.fdatasync(fd)


def _summary(title: str, rounds: list[list[float]]) -> dict[str, object]:
    """Percentiles over all rounds together: a tail needs many."""
    ordered = sorted(value for took in rounds for value in took)
    return {
        "title": title,
        "operations": len(ordered),
        "milliseconds": {
            name: rounded(percentile(ordered, share)) for name, share in PERCENTILES.items()
        },
    }


def _figures(measure: LatencyMeasure, times: dict[str, list[list[float]]]) -> Iterator[Figure]:
    def of(name: str, share: float) -> tuple[float, ...]:
        return tuple(percentile(sorted(took), share) for took in times[name])

    for what, share in (("p50", 0.5), ("p99", 0.99)):
        yield Figure(
            named(measure, what),
            f"{what} until durable on every target",
            "ms",
            more_is_better=False,
            relative=False,
            rounds=of("fanout", share),
        )
    peers = [of(name, 0.5) for name in times if name != "fanout"]
    if peers:
        theirs = min(peers, key=statistics.median)
        yield Figure(
            named(measure, "p50_vs_python_threads"),
            "median time until durable ÷ Python threads",
            "",
            more_is_better=False,
            relative=True,
            rounds=tuple(
                mine / other for mine, other in zip(of("fanout", 0.5), theirs, strict=True)
            ),
        )
