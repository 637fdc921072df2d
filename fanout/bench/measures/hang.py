"""A target stops answering: how long after its deadline the engine lets go of it.

The last target is held back so far that one write would take minutes. The clock runs from handing that write over until the engine says that
the target is detached; what counts is what lies beyond the deadline. Afterwards the write is let through, so that nothing is left behind.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from fanout.bench.contenders import BenchmarkError
from fanout.bench.figures import Figure, rounded
from fanout.bench.measures import Found
from fanout.bench.plan import named
from fanout.bench.rounds import describe_engine
from fanout.bench.throttle import throttle, why_not
from fanout.bench.work import client, write_once
from fanout.demo import signals
from fanout.engine import Engine, EventKind

if TYPE_CHECKING:
    from fanout.bench.measures import Tell
    from fanout.bench.places import Place
    from fanout.bench.plan import HangMeasure
    from fanout.bench.throttle import Throttle
    from fanout.bench.work import Work
    from fanout.engine import Stream, Target

HELD_BYTES_PER_SECOND = 4096
PATIENCE_SECONDS = 30.0


def run(measure: HangMeasure, place: Place, *, backend: str, tell: Tell) -> Found:
    """Let it hang once in each round."""
    if why := why_not():
        return Found({}, absent={measure.name: why})
    beyond = []
    with signals.undisturbed() as stack:
        work = stack.enter_context(client(place.paths, size_bytes=place.spec.size_bytes))
        group = stack.enter_context(throttle())
        engine = stack.enter_context(Engine(backend=backend))
        tell(f"{measure.title}: preparing the targets")
        for path in place.paths:
            write_once(path, work)
        for number in range(measure.rounds):
            tell(f"{measure.title}: round {number + 1} of {measure.rounds}")
            beyond.append(_once(engine, work, group, measure.deadline) * 1e3)
        about = describe_engine(engine)
    figure = Figure(
        named(measure, "detach"),
        "from the deadline until detached",
        "ms",
        more_is_better=False,
        relative=False,
        rounds=tuple(beyond),
    )
    record = {
        "engine": about,
        "deadline_seconds": measure.deadline,
        "beyond_ms": [rounded(value) for value in beyond],
    }
    return Found(record, (figure,))


def _once(engine: Engine, work: Work, group: Throttle, deadline: float) -> float:
    """Seconds beyond the deadline."""
    engine.events()  # of earlier streams
    slow = work.targets[-1]
    with contextlib.ExitStack() as stack:
        targets = []
        for path in work.targets:
            targets.append(
                engine.open(path, lock=True, soft_deadline=deadline / 2, hard_deadline=deadline)
            )
            stack.callback(targets[-1].close, timeout=PATIENCE_SECONDS)
        stream = stack.enter_context(engine.stream(targets))
        stack.callback(group.limit, slow, None)
        group.limit(slow, HELD_BYTES_PER_SECOND)
        return _detached(engine, stream, targets[-1], work) - deadline


def _detached(engine: Engine, stream: Stream, slow: Target, work: Work) -> float:
    """Seconds from handing a whole slot over until the event says that the target is let go."""
    stream.place([0] * len(stream.targets), engine.slot_size)
    began = engine.now()
    stream.write(work.view[: engine.slot_size])
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        for event in engine.events(timeout=1.0):
            if event.kind is EventKind.DETACHED and event.target == slow.id:
                return event.time_ns / 1e9 - began
    raise BenchmarkError(f"{slow.path}: was not let go within {PATIENCE_SECONDS:g} s")
