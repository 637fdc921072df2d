"""A target slows down in the middle of a stream: what the client and the healthy targets get, over time.

One client writes as fast as it is let. After a while the last target may take only a share of what it took before, then all again.
A second thread looks every few milliseconds how far each target has come. Beside each trace stands the rate of the healthy targets
alone, without the slow one, in the same round: what nobody can beat.

What becomes of a slow target is a `Policy`, the engine's `on_slow`: ``wait`` lets it pace the client, ``eject`` goes on without it once
it has held up its peers for longer than its patience.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fanout.bench.contenders import BenchmarkError
from fanout.bench.figures import Figure, rounded
from fanout.bench.measures import Found
from fanout.bench.plan import Policy, named
from fanout.bench.rounds import describe_engine
from fanout.bench.throttle import throttle, why_not
from fanout.bench.work import client, write_once
from fanout.demo import signals
from fanout.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.bench.measures import Tell
    from fanout.bench.places import Place
    from fanout.bench.plan import SlowMeasure
    from fanout.bench.throttle import Throttle
    from fanout.bench.work import Work
    from fanout.engine import Stream, Target

SAMPLE_SECONDS = 0.02
BIN_SECONDS = 0.05
LATE_SHARE = 0.8


@dataclass(slots=True)
class Trace:
    """What one stream went through, written while it does.

    Attributes:
        times: seconds since it began.
        completed: for each of these, the bytes that each target had confirmed.
        slowed: when the last target was slowed down, and when it was let go again; None: never.
        ejected: seconds at which targets were dropped, by their number.
    """

    times: list[float] = field(default_factory=list)
    completed: list[tuple[int, ...]] = field(default_factory=list)
    slowed: tuple[float, float] | None = None
    ejected: dict[int, float] = field(default_factory=dict)

    def rate(self, number: int, start: float, end: float) -> float:
        """Bytes per second of a target between two moments."""
        return (self.done(number, end) - self.done(number, start)) / (end - start)

    def done(self, number: int, moment: float) -> float:
        """Bytes that a target had confirmed at a moment, between two looks in proportion."""
        after = bisect.bisect_left(self.times, moment)
        if after == len(self.times):
            return self.completed[-1][number] if self.completed else 0.0
        before_time, before = (
            (self.times[after - 1], self.completed[after - 1][number]) if after else (0.0, 0)
        )
        share = (moment - before_time) / (self.times[after] - before_time)
        return before + share * (self.completed[after][number] - before)


def run(measure: SlowMeasure, place: Place, *, backend: str, tell: Tell) -> Found:
    """Trace each policy in each round."""
    if why := why_not():
        return Found({}, absent={measure.name: why})
    with signals.undisturbed() as stack:
        work = stack.enter_context(client(place.paths, size_bytes=place.spec.size_bytes))
        group = stack.enter_context(throttle())
        engine = stack.enter_context(Engine(backend=backend))
        tell(f"{measure.title}: preparing the targets")
        for path in place.paths:
            write_once(path, work)
        alone: list[float] = []
        traces: dict[Policy, list[Trace]] = {policy: [] for policy in measure.policies}
        for number in range(measure.rounds):
            step = f"{measure.title}: round {number + 1} of {measure.rounds}"
            tell(f"{step}: the healthy targets alone")
            alone.append(_alone(engine, work, measure.seconds))
            for policy in measure.policies:
                tell(f"{step}: {policy.value}")
                traces[policy].append(_Run(engine, work, group, measure, policy).trace())
        about = describe_engine(engine)
    record = {
        "engine": about,
        "targets": len(place.paths),
        "share": measure.share,
        "patience_seconds": measure.patience,
        "bin_seconds": BIN_SECONDS,
        "alone_mb_per_second": rounded(statistics.median(alone) / 1e6),
        "traces": {policy.value: _shown(traces[policy]) for policy in measure.policies},
    }
    return Found(record, tuple(_figures(measure, alone, traces)))


def _alone(engine: Engine, work: Work, seconds: float) -> float:
    """Bytes per second of the slowest healthy target when the last one does not take part."""
    healthy = dataclasses.replace(work, targets=work.targets[:-1])
    trace = Trace()
    with _opened(engine, healthy, Policy.WAIT) as targets, engine.stream(targets) as stream:
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(stream, trace, time.perf_counter(), done))
        watcher.start()
        try:
            _write(stream, healthy, time.perf_counter() + seconds)
        finally:
            done.set()
            watcher.join()
        stream.abort()
        stream.drained(timeout=None)
    return min(trace.rate(number, 0.0, seconds) for number in range(len(targets)))


@contextlib.contextmanager
def _opened(
    engine: Engine, work: Work, policy: Policy, patience: float = 0.0
) -> Iterator[list[Target]]:
    with contextlib.ExitStack() as stack:
        targets = []
        for path in work.targets:
            targets.append(engine.open(path, lock=True, on_slow=policy.value, patience=patience))
            stack.callback(targets[-1].close)
        yield targets


def _write(stream: Stream, work: Work, until: float) -> None:
    """The same region again and again, as fast as it is taken."""
    while time.perf_counter() < until:
        stream.place([0] * len(stream.targets), work.size_bytes)
        for chunk in work.chunks():
            stream.write(chunk)
            if time.perf_counter() >= until:
                return


def _watch(stream: Stream, trace: Trace, began: float, done: threading.Event) -> None:
    while not done.wait(SAMPLE_SECONDS):
        legs, moment = stream.legs(), time.perf_counter() - began
        trace.times.append(moment)
        trace.completed.append(tuple(leg.completed for leg in legs))
        for number, leg in enumerate(legs):
            if leg.state == "ejected":
                trace.ejected.setdefault(number, moment)


class _Run:
    """One stream with a slow target in it: the client, and beside it a watcher and a hand on the brake."""

    def __init__(
        self, engine: Engine, work: Work, group: Throttle, measure: SlowMeasure, policy: Policy
    ) -> None:
        self._engine, self._work, self._group = engine, work, group
        self._measure, self._seconds, self._policy = measure, measure.seconds, policy
        self._slow = work.targets[-1]
        self._done = threading.Event()
        self._trace, self._began = Trace(), 0.0

    def trace(self) -> Trace:
        """Write for twice as long as the target is slow: a half before, a half after."""
        with (
            _opened(self._engine, self._work, self._policy, self._measure.patience) as targets,
            self._engine.stream(targets) as stream,
            self._released(),
        ):
            self._began = time.perf_counter()
            helpers = [
                threading.Thread(
                    target=_watch, args=(stream, self._trace, self._began, self._done)
                ),
                threading.Thread(target=self._brake),
            ]
            for helper in helpers:
                helper.start()
            try:
                _write(stream, self._work, self._began + 2 * self._seconds)
            finally:
                self._done.set()
                for helper in helpers:
                    helper.join()
                self._group.limit(self._slow, None)
            stream.abort()
            stream.drained(timeout=None)
        if self._trace.slowed is None:
            raise BenchmarkError(f"{self._slow}: could not be slowed down")
        return self._trace

    @contextlib.contextmanager
    def _released(self) -> Iterator[None]:
        """Whatever happens: nothing waits for a target that is still held back."""
        try:
            yield
        finally:
            self._group.limit(self._slow, None)

    def _brake(self) -> None:
        trace, last = self._trace, len(self._work.targets) - 1
        if self._done.wait(self._seconds / 2):
            return
        start = time.perf_counter() - self._began
        usual = trace.rate(last, 0.0, start)
        self._group.limit(self._slow, max(1, int(usual * self._measure.share)))
        # A client that waits for the slow target may be done before the time is up.
        self._done.wait(self._seconds)
        self._group.limit(self._slow, None)
        trace.slowed = (start, time.perf_counter() - self._began)


# ---- what comes of it ----------------------------------------------------------------------------


def healthy_rate(trace: Trace, policy: Policy) -> float:
    """Bytes per second of the slowest healthy target while the last one is slow.

    With ``eject`` from the ejection on, unless that comes when the time is nearly over: then it has helped nobody.
    """
    assert trace.slowed is not None
    start, end = trace.slowed
    last = len(trace.completed[0]) - 1
    ejected = trace.ejected.get(last, end)
    if policy is Policy.EJECT and ejected < start + LATE_SHARE * (end - start):
        start = max(start, ejected)
    return min(trace.rate(number, start, end) for number in range(last))


def _figures(
    measure: SlowMeasure, alone: list[float], traces: dict[Policy, list[Trace]]
) -> Iterator[Figure]:
    for policy, several in traces.items():
        pairs = zip(several, alone, strict=True)
        yield Figure(
            named(measure, f"healthy_rate_{policy.value}"),
            f"healthy targets' rate beside a slow one ÷ without it, {policy.value}",
            "",
            more_is_better=True,
            relative=True,
            rounds=tuple(healthy_rate(trace, policy) / rate for trace, rate in pairs),
        )


def _shown(several: list[Trace]) -> dict[str, object]:
    """The trace of the round in the middle, in bins that an eye can tell apart."""
    ordered = sorted(several, key=lambda trace: trace.completed[-1][0] / trace.times[-1])
    trace = ordered[len(ordered) // 2]
    bins = [number * BIN_SECONDS for number in range(int(trace.times[-1] / BIN_SECONDS))]
    last = len(trace.completed[0])
    return {
        "slowed_seconds": [rounded(moment) for moment in trace.slowed or ()],
        "ejected_seconds": {str(at): rounded(moment) for at, moment in trace.ejected.items()},
        "mb_per_second": [
            [rounded(trace.rate(number, at, at + BIN_SECONDS) / 1e6) for at in bins]
            for number in range(last)
        ],
    }
