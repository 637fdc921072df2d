"""What a report shows of each kind of measure: which values go into which chart, and the sentence below it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fanout.bench.report import charts
from fanout.bench.report.charts import Axis, Bar, Series, TimeLine
from fanout.bench.report.svg import short
from fanout.units import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Record = dict[str, Any]

# Names of families that are short enough to stand at the end of a line.
FAMILIES = {
    "fanout": "fanout",
    "fio_tuned": "fio, tuned",
    "fio_stock": "fio, stock",
    "python_threads": "Python threads",
    "python_threads_bare": "Python, no hash",
    "dd_tee": "dd | tee",
    "driver": "C driver",
    "btrfs": "btrfs raid1",
    "rclone": "rclone union",
}
_SWEPT = {
    "targets": "targets",
    "chunk_bytes": "bytes that the client hands over at once",
    "streams": "streams at once, on one engine",
    "slot_bytes": "bytes of a slot",
    "depth": "writes in flight on a target",
}


MOST_WIDE_LABELS = 7


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with what is written above and below it."""

    title: str
    drawing: str
    note: str = ""


def charts_of(record: Record, figures: Mapping[str, Record]) -> list[Chart]:
    """The charts of a measure; none when it could not be made."""
    makers: dict[str, Callable[[Record, Mapping[str, Record]], Iterator[Chart]]] = {
        "stream": _stream,
        "latency": _latency,
        "slow": _slow,
        "hang": _hang,
        "small": _small,
        "memory": _memory,
    }
    return list(makers[record["kind"]](record, figures)) if set(record) - _BARE else []


_BARE = {"name", "kind", "title", "on", "rounds"}  # and nothing else: it could not be made


# ---- stream --------------------------------------------------------------------------------------


def _stream(record: Record, figures: Mapping[str, Record]) -> Iterator[Chart]:
    points, swept = record["points"], record["swept"]
    if not swept:
        yield from _one_point(points[0])
        yield from _against(record, figures, points[0]["label"])
        return
    x = max(swept, key=lambda name: len({point[name] for point in points}))
    groups: dict[tuple[int, ...], list[Record]] = defaultdict(list)
    others = [name for name in swept if name != x]
    for point in points:
        groups[tuple(point[name] for name in others)].append(point)
    for key, several in groups.items():
        at = ", ".join(
            f"{_value(name, value)} {_word(name, value)}"
            for name, value in zip(others, key, strict=True)
        )
        yield from _swept(x, several, f" ({at})" if at else "")


def _word(name: str, value: int) -> str:
    words = {"chunk_bytes": "chunks", "slot_bytes": "slots", "depth": "in flight"}
    return words.get(name) or (name.removesuffix("s") if value == 1 else name)


def _value(name: str, value: int) -> str:
    return _size(value) if name.endswith("_bytes") else str(value)


def _narrow(text: str) -> str:
    number, _, unit = text.partition(" ")
    return number + unit.removesuffix("iB").removesuffix("B")


def _size(value: int) -> str:
    number, _, unit = format_size(value).partition(" ")
    return f"{float(number):g} {unit}"


def _swept(x: str, points: list[Record], at: str) -> Iterator[Chart]:
    values = [point[x] for point in points]
    if x == "targets":
        axis = Axis.linear(values, _SWEPT[x])
    else:
        labels = {value: _value(x, value) for value in values}
        if len(labels) > MOST_WIDE_LABELS:
            labels = {value: _narrow(text) for value, text in labels.items()}
        axis = Axis.even(labels, _SWEPT[x])
    yield Chart(
        f"Throughput{at}",
        charts.lines(
            _lines(x, points, "aggregate_mb_per_second", 1e-3, best=max),
            axis,
            unit="GB/s to all targets",
            says=f"throughput against {x}",
        ),
        "Bytes written to all targets together. Bands reach from the slowest to the fastest round.",
    )
    cpu = _lines(x, points, "cpu_ms_per_client_gib", 1.0, best=min)
    wide = _ratio_of_extremes(cpu) > 12
    yield Chart(
        f"Processor time{at}",
        charts.lines(
            cpu,
            axis,
            unit="ms per GiB of the client",
            says=f"processor time against {x}",
            log=wide,
        ),
        "Of the contender's own processes; what the kernel does for it in the background is not in here."
        + (" Logarithmic." if wide else ""),
    )


def _ratio_of_extremes(series: list[Series]) -> float:
    values = [triple[0] for one in series for triple in one.points.values() if triple[0] > 0]
    return max(values) / min(values) if values else 1.0


def _lines(
    x: str, points: list[Record], what: str, scale: float, *, best: Callable[..., Any]
) -> list[Series]:
    """For each family the strongest of its contenders at each point."""
    found: dict[str, dict[float, tuple[float, float, float]]] = defaultdict(dict)
    for point in points:
        families: dict[str, list[Record]] = defaultdict(list)
        for one in point["contenders"].values():
            families[one["family"]].append(one[what])
        for family, spreads in families.items():
            strongest = best(spreads, key=lambda spread: spread["median"])
            found[family][point[x]] = _triple(strongest, scale)
    return [
        Series(FAMILIES.get(family, family), _look(family), line)
        for family, line in found.items()
        if line
    ]


def _triple(spread: Record, scale: float) -> tuple[float, float, float]:
    return spread["median"] * scale, spread["min"] * scale, spread["max"] * scale


def _look(family: str) -> str:
    return f"c-{family.replace('_', '-')}"


def _one_point(point: Record) -> Iterator[Chart]:
    """Everybody side by side."""
    ones = list(point["contenders"].values())
    speed = sorted(ones, key=lambda one: -one["aggregate_mb_per_second"]["median"])
    rows = [
        Bar(one["title"], _look(one["family"]), *_triple(one["aggregate_mb_per_second"], 1e-3))
        for one in speed
    ]
    what = f"{point['targets']} targets, {_size(point['chunk_bytes'])} at once"
    yield Chart(
        "Throughput",
        charts.bars(rows, unit="GB/s", says=f"throughput, {what}"),
        f"Bytes written to all targets together: {what}. Lines reach from the slowest to the fastest round.",
    )
    frugal = sorted(ones, key=lambda one: one["cpu_ms_per_client_gib"]["median"])
    rows = [
        Bar(
            one["title"],
            _look(one["family"]),
            *_triple(one["cpu_ms_per_client_gib"], 1.0),
            beyond=one["machine_cpu_ms_per_client_gib"]["median"],
        )
        for one in frugal
    ]
    yield Chart(
        "Processor time",
        charts.bars(rows, unit="ms per client GiB", says=f"processor time, {what}"),
        "Dark: the contender's own processes. Pale: the whole machine meanwhile, with the kernel's threads, "
        "start-up, and whatever else ran.",
    )


def _against(record: Record, figures: Mapping[str, Record], label: str) -> Iterator[Chart]:
    """Ratios to each family, round by round."""
    stem = ".".join(part for part in (record["name"], label) if part)
    for what, title, more in (
        ("bandwidth", "Throughput ÷ peer", True),
        ("cpu", "Processor time ÷ peer", False),
    ):
        prefix = f"{stem}.{what}_vs_"
        rows = [
            Bar(
                FAMILIES.get(name.removeprefix(prefix), name),
                _look(name.removeprefix(prefix)),
                one["median"],
                *one["quartiles"],
            )
            for name, one in figures.items()
            if name.startswith(prefix) and one["median"] > 0 and min(one["quartiles"]) > 0
        ]
        if rows:
            rows.sort(key=lambda row: -row.median if more else row.median)
            yield Chart(
                title,
                charts.ratios(rows, more_is_better=more, says=title),
                "Each ratio is made within a round, against the strongest of the family. "
                "Lines reach over the middle half of the rounds.",
            )


# ---- the others ----------------------------------------------------------------------------------


def _latency(record: Record, _: Mapping[str, Record]) -> Iterator[Chart]:
    series = []
    for name, one in record["contenders"].items():
        family = "fanout" if name == "fanout" else "python_threads"
        look = _look("python_threads_bare" if name.endswith("direct") else family)
        values = one["milliseconds"].values()
        points = {float(at): (value,) * 3 for at, value in enumerate(values)}
        short_name = "fanout" if name == "fanout" else f"Python, {name.rpartition('_')[2]}"
        series.append(Series(short_name, look, points))
    names = next(iter(record["contenders"].values()))["milliseconds"]
    axis = Axis.even(dict(enumerate(names)), "of all operations")
    what = f"{_size(record['chunk_bytes'])} to {record['targets']} targets"
    yield Chart(
        "Time until durable everywhere",
        charts.lines(series, axis, unit="ms", says=f"latency, {what}", log=True),
        f"{what}, one at a time, {record['operations']} in each of {record['rounds']} rounds. Logarithmic.",
    )


def _slow(record: Record, figures: Mapping[str, Record]) -> Iterator[Chart]:
    traces = record["traces"]
    alone = record["alone_mb_per_second"]
    most = max(
        alone,
        *(value for one in traces.values() for rates in one["mb_per_second"] for value in rates),
    )
    for policy, trace in traces.items():
        drawn = TimeLine(
            rates=trace["mb_per_second"],
            bin_seconds=record["bin_seconds"],
            slowed=tuple(trace["slowed_seconds"]),
            share=record["share"],
            ejected={int(at): moment for at, moment in trace["ejected_seconds"].items()},
            alone=alone,
            most=most,
        )
        share = figures.get(f"{record['name']}.healthy_rate_{policy}")
        yield Chart(
            f"A slow target, policy {policy}",
            charts.timeline(drawn, says=f"rate of each target over time, policy {policy}"),
            (
                f"Meanwhile the healthy targets get {share['median']:.0%} of what they get without the slow one "
                if share
                else ""
            )
            + f"(dashed: {short(alone)} MB/s each). The slow target is the thick line."
            + (
                f" Patience: {format_seconds(record['patience_seconds'])}."
                if policy == "eject"
                else ""
            ),
        )


def _hang(record: Record, _: Mapping[str, Record]) -> Iterator[Chart]:
    beyond = record["beyond_ms"]
    middle = statistics.median(beyond)
    rows = [Bar("beyond the deadline", "c-fanout", middle, min(beyond), max(beyond))]
    yield Chart(
        "A target that hangs",
        charts.bars(rows, unit="ms", says="time from the deadline until detached"),
        f"How long after its deadline of {record['deadline_seconds']:g} s the engine lets go of it.",
    )


def _small(record: Record, _: Mapping[str, Record]) -> Iterator[Chart]:
    looks = {"alone": ("alone", "c-fanout"), "busy": ("busy thread", "c-dd-tee")}
    series = [
        Series(
            looks[how][0],
            looks[how][1],
            {float(group): _triple(spread, 1.0) for group, spread in groups.items()},
        )
        for how, groups in record["objects_per_second"].items()
    ]
    labels = {float(group): f"{int(group):,}" for group in record["objects_per_second"]["alone"]}
    yield Chart(
        f"Objects of {_size(record['object_bytes'])}, durable in three pools",
        charts.lines(
            series,
            Axis.even(labels, "objects in a transaction"),
            unit="objects per second",
            says="small objects per second",
            log=True,
        ),
        "Alone, and beside a Python thread that never waits. Logarithmic.",
    )


def _memory(record: Record, _: Mapping[str, Record]) -> Iterator[Chart]:
    mib = 1 << 20
    growth = [one / mib for one in record["growth_bytes"]]
    budget, middle = record["memory_bytes"] / mib, statistics.median(growth)
    yield Chart(
        f"Memory, {_size(record['stream_bytes'])} streamed",
        charts.bars(
            [
                Bar("engine's budget", "c-driver", budget, budget, budget),
                Bar("growth of the process", "c-fanout", middle, min(growth), max(growth)),
            ],
            unit="MiB",
            says="memory",
        ),
        "The most that the process has ever been larger than before it opened the engine.",
    )
