"""The charts of a report: lines over something swept, bars beside each other, ratios around 1, traces over time.

Each takes plain values and gives an SVG element. What is drawn is decided in `sections`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.bench.report.svg import Drawing, Scale, decades, from_zero, short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fanout.bench.report.svg import Point

GAP = 17.0  # between two labels
HALF_WIDTH = 540.0


@dataclass(frozen=True, slots=True)
class Series:
    """A line: its name, the class of its colour, and for each x the median, the smallest and the largest y."""

    name: str
    look: str
    points: Mapping[float, tuple[float, float, float]]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar: name, class of its colour, median, smallest, largest; `beyond` is a lighter bar behind it."""

    name: str
    look: str
    median: float
    low: float
    high: float
    beyond: float = 0.0


@dataclass(frozen=True, slots=True)
class Axis:
    """What stands along x: the places, what is written there, and below all of it."""

    places: Mapping[float, float]
    labels: Mapping[float, str]
    title: str

    @classmethod
    def linear(cls, values: Sequence[float], title: str) -> Axis:
        """Distances are those of the values, from zero on."""
        most = max(values)
        return cls(
            {value: value / most for value in values},
            {value: short(value) for value in values},
            title,
        )

    @classmethod
    def even(cls, labels: Mapping[float, str], title: str) -> Axis:
        """The same distance between all."""
        last = max(1, len(labels) - 1)
        return cls({value: number / last for number, value in enumerate(labels)}, labels, title)


def lines(series: Sequence[Series], axis: Axis, *, unit: str, says: str, log: bool = False) -> str:
    """Lines with their spread and their names at the end."""
    drawing = Drawing(HALF_WIDTH, 330, says)
    left, right, top, bottom = 56.0, HALF_WIDTH - 132, 30.0, 282.0
    values = [value for one in series for triple in one.points.values() for value in triple]
    up = decades(values, bottom, top) if log else from_zero(max(values), bottom, top)
    inset = left + 14
    across = {x: inset + share * (right - inset - 8) for x, share in axis.places.items()}
    _grid(drawing, up, left, right, unit)
    for x, place in across.items():
        drawing.line((place, bottom), (place, bottom + 4), "axis")
        drawing.text((place, bottom + 18), axis.labels[x], "tick", anchor="middle")
    drawing.text(((left + right) / 2, bottom + 38), axis.title, "tick", anchor="middle")
    for one in reversed(series):  # the first is on top
        _series(drawing, one, axis, across, up, unit)
    ends = [(one, up(one.points[max(one.points)][0])) for one in series]
    _names(drawing, ends, right + 6, (top, bottom))
    return str(drawing)


def _grid(drawing: Drawing, up: Scale, left: float, right: float, unit: str) -> None:
    for value in up.ticks():
        drawing.line((left, up(value)), (right, up(value)), "grid")
        drawing.text((left - 8, up(value) + 4), short(value), "tick", anchor="end")
    drawing.text((left - 44, up.end - 14), unit, "tick")


def _series(
    drawing: Drawing, one: Series, axis: Axis, across: Mapping[float, float], up: Scale, unit: str
) -> None:
    xs = sorted(one.points, key=lambda x: axis.places[x])
    upper: list[Point] = [(across[x], up(one.points[x][2])) for x in xs]
    lower: list[Point] = [(across[x], up(one.points[x][1])) for x in xs]
    if len(xs) > 1:
        drawing.band(upper, lower, f"band {one.look}")
        drawing.path([(across[x], up(one.points[x][0])) for x in xs], f"stroke {one.look}")
    for x in xs:
        median, low, high = one.points[x]
        tip = (
            f"{one.name}, {axis.labels[x]}: {short(median)} {unit} ({short(low)} to {short(high)})"
        )
        drawing.dot((across[x], up(median)), f"fill {one.look}", tip=tip)


def _names(
    drawing: Drawing, ends: Sequence[tuple[Series, float]], x: float, within: tuple[float, float]
) -> None:
    """Names beside the ends of their lines, pushed apart where they would touch."""
    ordered = sorted(ends, key=lambda pair: pair[1])
    places: list[float] = []
    for _, y in ordered:
        places.append(max(y + 4, places[-1] + GAP if places else within[0]))
    over = max(0.0, places[-1] - within[1] - 4) if places else 0.0
    for number in range(len(places) - 1, -1, -1):  # and back up where the last has left the chart
        limit = places[number + 1] - GAP if number + 1 < len(places) else places[-1] - over
        places[number] = min(places[number], limit)
    for (one, _), y in zip(ordered, places, strict=True):
        drawing.text((x, y), one.name, f"name {one.look}")


def bars(rows: Sequence[Bar], *, unit: str, says: str) -> str:
    """Horizontal bars, the spread as a thin line, the value at the end. What lies beyond may leave the chart."""
    height, left, right, top = 27.0, 204.0, HALF_WIDTH - 62, 22.0
    bottom = top + height * len(rows)
    drawing = Drawing(HALF_WIDTH, bottom + 26, says)
    along = from_zero(max(max(row.median, row.high) for row in rows), left, right)
    for value in along.ticks(4):
        drawing.line((along(value), top), (along(value), bottom), "grid")
        drawing.text((along(value), bottom + 17), short(value), "tick", anchor="middle")
    drawing.text((left, top - 9), unit, "tick")
    for number, row in enumerate(rows):
        y = top + number * height
        middle = y + height / 2
        tip = f"{row.name}: {short(row.median)} {unit} ({short(row.low)} to {short(row.high)})"
        weight = "name strong" if row.look == "c-fanout" else "name"
        drawing.text((left - 10, middle + 4), row.name, f"{weight} ink", anchor="end")
        if row.beyond:
            leaves = 14 if row.beyond > along.high else 0
            width = along(row.beyond) + leaves - left
            more = f"{row.name}: {short(row.beyond)} {unit} of the whole machine"
            drawing.box((left, y + 5), (width, height - 10), f"pale {row.look}", round_=2, tip=more)
        width = along(row.median) - left
        drawing.box((left, y + 5), (width, height - 10), f"fill {row.look}", round_=2, tip=tip)
        drawing.line((along(row.low), middle), (along(row.high), middle), "whisker")
        end = max(along(row.median), along(row.high))
        drawing.text((end + 7, middle + 4), short(row.median), "value")
    return str(drawing)


def ratios(rows: Sequence[Bar], *, more_is_better: bool, says: str) -> str:
    """Ratios on a logarithmic axis around 1; the better side is shaded."""
    height, left, right, top = 27.0, 204.0, HALF_WIDTH - 62, 24.0
    bottom = top + height * len(rows)
    drawing = Drawing(HALF_WIDTH, bottom + 26, says)
    values = [value for row in rows for value in (row.low, row.high, row.median)]
    along = decades(values, left, right, around=1.0)
    one = along(1.0)
    better = (one, right) if more_is_better else (left, one)
    drawing.box((better[0], top), (better[1] - better[0], bottom - top), "good", round_=3)
    for value in along.ticks():
        drawing.line((along(value), top), (along(value), bottom), "grid")
        drawing.text((along(value), bottom + 17), short(value), "tick", anchor="middle")
    drawing.line((one, top - 4), (one, bottom), "even")
    drawing.text(
        (better[0] + 6 if more_is_better else better[1] - 6, top - 8),
        "better",
        "tick",
        anchor="start" if more_is_better else "end",
    )
    for number, row in enumerate(rows):
        middle = top + (number + 0.5) * height
        tip = f"{row.name}: {short(row.median)} ({short(row.low)} to {short(row.high)})"
        drawing.text((left - 10, middle + 4), row.name, "name ink", anchor="end")
        drawing.line((along(row.low), middle), (along(row.high), middle), f"thick {row.look}")
        drawing.dot((along(row.median), middle), f"fill {row.look}", radius=5.5, tip=tip)
        drawing.text((right + 10, middle + 4), short(row.median), "value")
    return str(drawing)


@dataclass(frozen=True, slots=True)
class TimeLine:
    """What each target got over time.

    Attributes:
        rates: for each target, MB/s in each bin.
        bin_seconds: length of a bin.
        slowed: from when to when the last target was slow.
        share: of its speed that was left to it.
        ejected: when targets were dropped, by number.
        alone: MB/s of the healthy targets without the slow one.
        most: MB/s at the top, the same for all that are compared.
    """

    rates: Sequence[Sequence[float]]
    bin_seconds: float
    slowed: tuple[float, float]
    share: float
    ejected: Mapping[int, float]
    alone: float
    most: float


def timeline(trace: TimeLine, *, says: str) -> str:
    """Rates over time: healthy targets thin, the slow one thick; the time in which it is slow is shaded."""
    drawing = Drawing(HALF_WIDTH, 300, says)
    left, right, top, bottom = 56.0, HALF_WIDTH - 16, 44.0, 254.0
    up = from_zero(trace.most, bottom, top)
    end = max(map(len, trace.rates)) * trace.bin_seconds
    across = Scale(0.0, end, left, right)
    start, stop = (across(moment) for moment in trace.slowed)
    drawing.box((start, top), (stop - start, bottom - top), "shade")
    words = f"target {len(trace.rates)} at {trace.share:.0%} of its speed"
    drawing.text(((start + stop) / 2, top - 8), words, "tick", anchor="middle")
    _grid(drawing, up, left, right, "MB/s")
    for value in across.ticks():
        drawing.text((across(value), bottom + 18), short(value), "tick", anchor="middle")
    drawing.text(((left + right) / 2, bottom + 38), "seconds", "tick", anchor="middle")
    drawing.line((left, up(trace.alone)), (right, up(trace.alone)), "even")
    last = len(trace.rates) - 1
    for number, rates in enumerate(trace.rates):
        look = "slow" if number == last else f"healthy h{number % 4}"
        middles = [
            (across((at + 0.5) * trace.bin_seconds), up(rate)) for at, rate in enumerate(rates)
        ]
        drawing.path(middles, f"stroke {look}")
    for row, (number, moment) in enumerate(sorted(trace.ejected.items(), key=lambda one: one[1])):
        drawing.line((across(moment), top), (across(moment), bottom), "mark")
        place = (across(moment) + 5, top + 13 + row * GAP)
        drawing.text(place, f"target {number + 1} ejected", "tick strong")
    return str(drawing)


def gauge(
    value: float, spread: tuple[float, float], levels: Sequence[float], *, least: bool
) -> str:
    """Where a figure stands beside its goals: a dot, its spread, a tick for each goal, and the good side shaded."""
    drawing = Drawing(190, 24, f"{short(value)}, goals {', '.join(map(short, levels))}")
    along = from_zero(max(*levels, value, spread[1]) * 1.08, 4, 186)
    edge = along(levels[0])
    good = (edge, 186.0) if least else (4.0, edge)
    drawing.box((4, 9), (182, 6), "rail", round_=3)
    drawing.box((good[0], 9), (good[1] - good[0], 6), "good strong", round_=3)
    for level in levels:
        drawing.line((along(level), 4), (along(level), 20), "goal")
    drawing.line((along(max(0.0, spread[0])), 12), (along(spread[1]), 12), "thick c-fanout")
    drawing.dot((along(max(0.0, value)), 12), "fill c-fanout", radius=5, tip=short(value))
    return str(drawing)
