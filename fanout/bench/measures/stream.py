"""As fast as it goes, beside the peers. All points and all contenders take turns in every round."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from fanout.bench.contenders import DEPTH, Contender, field, reserved_huge_pages
from fanout.bench.figures import Figure
from fanout.bench.measures import Found
from fanout.bench.peers import Btrfs, Driver, RcloneUnion
from fanout.bench.plan import label, named, sweeps_targets_alone
from fanout.bench.rounds import (
    TOUCHED_SHARE,
    best,
    describe_engine,
    figures,
    interleaved,
    ratios,
    summary,
    touch_free_memory,
    warm_up,
)
from fanout.bench.work import MIB, client, write_once
from fanout.demo import signals
from fanout.engine import Engine

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator, Mapping

    from fanout.bench.measure import Sample
    from fanout.bench.measures import Tell
    from fanout.bench.places import Place
    from fanout.bench.plan import Point, StreamMeasure
    from fanout.bench.work import Work

ARENA_BYTES = 64 * MIB
SLOTS_KEPT, SLOTS_PER_STREAM = 32, 4
HUGE_PAGES_KEPT = 64  # fanout's arena, and fio's odd ones

_TITLES = {
    "fio_tuned": "tuned fio",
    "fio_stock": "stock fio",
    "python_threads": "Python threads that hash",
    "python_threads_bare": "bare Python threads",
    "dd_tee": "dd | tee",
    "driver": "the C driver",
    "btrfs": "btrfs raid1",
    "rclone": "rclone union",
}
_Samples = dict[tuple[int, str], list["Sample"]]


def run(measure: StreamMeasure, place: Place, *, backend: str, tell: Tell) -> Found:
    """Measure every point."""
    size = max(map(measure.run_bytes, measure.points))
    longest = max(point.chunk_bytes for point in measure.points)
    with signals.undisturbed() as stack:
        base = stack.enter_context(client(place.paths, size_bytes=size, longest_chunk=longest))
        tell(f"{measure.title}: preparing the targets")
        for path in place.paths:
            write_once(path, base)
        stack.enter_context(reserved_huge_pages(_huge_pages(measure)))
        touch_free_memory(TOUCHED_SHARE * size * len(place.paths))
        engines = _Engines(backend, stack)
        step = functools.partial(_step, measure.title, tell)
        jobs, absent = {}, {}
        for number, point in enumerate(measure.points):
            work = _work(base, measure, point)
            for one in _contenders(measure, engines.at(point), point):
                why = one.missing() or one.unfit(work) or _warmed(one, work, step)
                if why:
                    absent[number, one.name] = why
                else:
                    jobs[number, one.name] = (one, work)
        samples = interleaved(jobs, measure.rounds, step)
        about = describe_engine(engines.at(measure.points[0]))
    return _found(measure, jobs, samples, absent, about)


def _step(title: str, tell: Tell, text: str) -> None:
    tell(f"{title}: {text}")


class _Engines:
    """One engine for each arena that the points want, all open at once, as in daemons."""

    def __init__(self, backend: str, stack: contextlib.ExitStack) -> None:
        self._backend, self._stack = backend, stack
        self._open: dict[tuple[int, int], Engine] = {}

    def at(self, point: Point) -> Engine:
        """The engine for a point."""
        slots = max(ARENA_BYTES // point.slot_bytes, SLOTS_KEPT + SLOTS_PER_STREAM * point.streams)
        key = (slots, point.slot_bytes)
        if key not in self._open:
            engine = Engine(
                memory_bytes=slots * point.slot_bytes,
                slot_size_bytes=point.slot_bytes,
                max_streams=max(8, point.streams),
                backend=self._backend,
            )
            self._open[key] = self._stack.enter_context(engine)
        return self._open[key]


def _huge_pages(measure: StreamMeasure) -> int:
    lanes = max(point.targets * point.streams for point in measure.points)
    return HUGE_PAGES_KEPT + lanes + max(point.targets for point in measure.points) * DEPTH // 2


def _work(base: Work, measure: StreamMeasure, point: Point) -> Work:
    return dataclasses.replace(
        base,
        targets=base.targets[: point.targets],
        size_bytes=measure.run_bytes(point),
        chunk_bytes=point.chunk_bytes,
        streams=point.streams,
    )


def _contenders(measure: StreamMeasure, engine: Engine, point: Point) -> Iterator[Contender]:
    """Fanout and the peers that were asked for."""
    wanted = {"fanout", *(peer.value for peer in measure.peers)}
    peers: list[Contender] = [
        Driver(engine, depth=point.depth),
        Btrfs(direct=False),
        Btrfs(direct=True),
        RcloneUnion(),
    ]
    for one in (*field(engine, depth=point.depth), *peers):
        if one.family in wanted:
            yield one


def _warmed(one: Contender, work: Work, tell: Tell) -> str | None:
    """Why a contender turns out not to work; None when it has run once."""
    return warm_up([one], work, tell).get(one.name)


# ---- what comes of it ----------------------------------------------------------------------------


def _found(
    measure: StreamMeasure,
    jobs: Mapping[tuple[int, str], tuple[Contender, Work]],
    samples: _Samples,
    absent: Mapping[tuple[int, str], str],
    engine: Mapping[str, object],
) -> Found:
    points: list[dict[str, object]] = []
    made: list[Figure] = []
    for number, point in enumerate(measure.points):
        here = {name: one for (at, name), (one, _) in jobs.items() if at == number}
        points.append(
            {
                "label": label(measure, point),
                **dataclasses.asdict(point),
                "size_bytes": measure.run_bytes(point),
                "contenders": {
                    name: summary(one, samples[number, name]) for name, one in here.items()
                },
                "absent": {name: why for (at, name), why in absent.items() if at == number},
            }
        )
        families: dict[str, list[list[Sample]]] = {}
        for name, one in here.items():
            families.setdefault(one.family, []).append(samples[number, name])
        made += _figures(measure, point, families)
    if sweeps_targets_alone(measure):
        made.append(_extra_target(measure, samples))
    everywhere = {
        name: why
        for (_, name), why in absent.items()
        if not any(other == name for _, other in jobs)
    }
    record = {"swept": list(measure.swept), "engine": dict(engine), "points": points}
    return Found(record, tuple(made), everywhere)


def _figures(
    measure: StreamMeasure, point: Point, families: Mapping[str, list[list[Sample]]]
) -> Iterator[Figure]:
    at = label(measure, point)
    (ours,) = families["fanout"]
    megabytes = tuple(value / 1e6 for value in figures(ours, "bandwidth"))
    yield Figure(
        named(measure, "bandwidth", at),
        "bytes written to all targets",
        "MB/s",
        more_is_better=True,
        relative=False,
        rounds=megabytes,
    )
    yield Figure(
        named(measure, "cpu", at),
        "processor time per client GiB",
        "ms/GiB",
        more_is_better=False,
        relative=False,
        rounds=tuple(figures(ours, "cpu")),
    )
    for family in (peer.value for peer in measure.peers if peer.value in families):
        for what, word in (("bandwidth", "bandwidth"), ("cpu", "processor time")):
            theirs = best(families[family], what)
            if what == "cpu" and not all(run.cpu_seconds for run in theirs):
                continue  # shorter than the clock's tick: there is nothing to divide by
            yield Figure(
                named(measure, f"{what}_vs_{family}", at),
                f"{word} ÷ {_TITLES[family]}",
                "",
                more_is_better=what == "bandwidth",
                relative=True,
                rounds=tuple(ratios(ours, theirs, what)),
            )


def _extra_target(measure: StreamMeasure, samples: _Samples) -> Figure:
    """Processor time of one more target, from the fewest to the most, within each round."""
    numbers = range(len(measure.points))
    few = min(numbers, key=lambda number: measure.points[number].targets)
    many = max(numbers, key=lambda number: measure.points[number].targets)
    more = measure.points[many].targets - measure.points[few].targets
    pairs = zip(
        figures(samples[many, "fanout"], "cpu"), figures(samples[few, "fanout"], "cpu"), strict=True
    )
    return Figure(
        named(measure, "cpu_per_extra_target"),
        "processor time per extra target",
        "ms/GiB",
        more_is_better=False,
        relative=False,
        rounds=tuple((high - low) / more for high, low in pairs),
    )
