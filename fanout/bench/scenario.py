"""Reads a scenario: ``fanout bench run SCENARIO.toml``. benchmarks/README.md has the list of keys.

Every mistake is a `ConfigError` that names the file, the dotted key, and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import os
from typing import TYPE_CHECKING

from fanout import tables
from fanout.bench.plan import (
    Goal,
    HangMeasure,
    Kind,
    LatencyMeasure,
    Measure,
    MeasureKind,
    MemoryMeasure,
    Over,
    Peer,
    Point,
    Policy,
    Scenario,
    SlowMeasure,
    SmallMeasure,
    StreamMeasure,
    Targets,
    figures_of,
)
from fanout.bench.work import BLOCK_BYTES, MIB
from fanout.config import MAX_SLOT_SIZE, MIN_SLOT_SIZE
from fanout.engine.stream import MAX_TARGETS
from fanout.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fanout.tables import Table

MAX_STREAMS = 32
MAX_DEPTH = 64
MAX_POINTS = 64
MIN_CHUNK, MAX_CHUNK = 512, 64 << 20
MAX_NAME = 32
MIN_MEMORY = 32 * MIB  # of an engine with slots of 1 MiB: less is refused for eight streams
ROUNDS = 7


_ANY_MEASURE = ("kind", "name", "on", "title", "rounds")
_KEYS = {
    MeasureKind.STREAM: (
        *("peers", "targets", "chunk", "streams", "slot", "depth"),
        *("bytes", "most_chunks"),
    ),
    MeasureKind.LATENCY: ("chunk", "operations"),
    MeasureKind.SLOW: ("policies", "share", "seconds", "patience"),
    MeasureKind.HANG: ("deadline",),
    MeasureKind.SMALL: ("object", "groups", "most_objects", "most_transactions", "busy"),
    MeasureKind.MEMORY: ("bytes", "memory"),
}


def load(path: str | os.PathLike[str], *, rounds: int | None = None) -> Scenario:
    """Read and check a scenario.

    Args:
        path: the file.
        rounds: for all measures, instead of what the file says.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or holds a mistake.
    """
    found = parse(tables.read(path), path=os.fspath(path))
    if rounds is None:
        return found
    measures = tuple(dataclasses.replace(one, rounds=rounds) for one in found.measures)
    return dataclasses.replace(found, measures=measures)


def parse(text: str, *, path: str) -> Scenario:
    """Check the text of a scenario.

    Args:
        text: TOML.
        path: names the file in messages; its directory anchors relative paths.

    Raises:
        ConfigError: the text is not TOML, or holds a mistake.
    """
    allowed = ("title", "note", "rounds", "targets", "measure", "goal")
    root = tables.parse(text, path=path, allowed=allowed)
    rounds = root.integer("rounds", ROUNDS, low=1, high=99)
    places = root.named("targets", MAX_NAME, _targets)
    if not places:
        raise root.error("targets", "at least one section [targets.NAME] is needed")
    measures: list[Measure] = []
    for table in root.tables("measure", None):
        measures.append(_measure(table, places, rounds))
        if any(measures[-1].name == other.name for other in measures[:-1]):
            raise table.error("name", f'"{measures[-1].name}" names another measure already')
    if not measures:
        raise root.error("measure", "at least one section [[measure]] is needed")
    known = [name for measure in measures for name in figures_of(measure)]
    goals = tuple(
        _goal(table, known)
        for table in root.tables("goal", ("figure", "title", "at_least", "at_most"))
    )
    note = root.optional_text("note") or ""
    return Scenario(path, root.text("title"), note, places, tuple(measures), goals)


def _targets(name: str, table: Table) -> Targets:
    kind = table.choice("kind", Kind)
    size = table.size("size", 256 * MIB) or 0
    if size % BLOCK_BYTES:
        raise table.error("size", f"must be a multiple of 1 MiB, found {size} bytes")
    if kind is Kind.DEVICES:
        table.only("kind", "size", "paths")
        paths = table.names("paths")
        if not 1 <= len(paths) <= MAX_TARGETS:
            raise table.error("paths", f"must be 1 to {MAX_TARGETS} devices, found {len(paths)}")
        return Targets(name, kind, Over.DISK, len(paths), size, paths=paths)
    loops = kind is Kind.LOOPS
    table.only("kind", "over", "count", "size", "directory", *(("sector",) if loops else ()))
    over = table.choice("over", Over, Over.MEMORY if loops else Over.DISK)
    if over is Over.MEMORY and "directory" in table:
        raise table.error("directory", 'only with over = "disk"')
    sector = table.size("sector", 512) if loops else 512
    if sector not in (512, 4096):
        raise table.error("sector", f"must be 512 or 4096 bytes, found {sector}")
    return Targets(
        name,
        kind,
        over,
        table.integer("count", 3, low=1, high=MAX_TARGETS),
        size,
        sector,
        table.file("directory") if "directory" in table else None,
    )


def _measure(table: Table, places: Mapping[str, Targets], rounds: int) -> Measure:
    kind = table.choice("kind", MeasureKind)
    table.only(*_ANY_MEASURE, *_KEYS[kind])
    on = table.text("on", next(iter(places)) if len(places) == 1 else None)
    if on not in places:
        raise table.error("on", _unknown("targets", on, places))
    place = places[on]
    name = table.text("name")
    if len(name) > MAX_NAME or not name.replace("-", "a").replace("_", "a").isalnum():
        raise table.error("name", f"must be 1 to {MAX_NAME} letters, digits, _ and -")
    rounds = table.integer("rounds", rounds, low=1, high=99)
    common = (name, on, table.text("title", name), rounds)
    if kind is MeasureKind.STREAM:
        return _stream(table, place, common)
    if kind is MeasureKind.LATENCY:
        chunk = _chunks(table, (BLOCK_BYTES,))
        if len(chunk) > 1:
            raise table.error("chunk", "must be one size here")
        most = place.size_bytes // max(chunk[0], 4096)
        operations = table.integer("operations", min(200, most), low=1, high=most)
        return LatencyMeasure(*common, chunk[0], operations)
    if kind is MeasureKind.SLOW:
        return _slow(table, place, common)
    if kind is MeasureKind.HANG:
        _one_by_one(table, place)
        return HangMeasure(*common, table.seconds("deadline", 0.5))
    if kind is MeasureKind.SMALL:
        return _small(table, place, common)
    stream = table.size("bytes", place.size_bytes) or 0
    memory = table.size("memory", 64 * MIB) or 0
    if memory % BLOCK_BYTES or memory < MIN_MEMORY:
        raise table.error(
            "memory", f"must be a multiple of 1 MiB, at least 32, found {memory} bytes"
        )
    if stream % place.size_bytes:
        raise table.error(
            "bytes", f"must be a multiple of the targets' size, {format_size(place.size_bytes)}"
        )
    return MemoryMeasure(*common, stream, memory)


_Common = tuple[str, str, str, int]


def _stream(table: Table, place: Targets, common: _Common) -> StreamMeasure:
    values = {
        "targets": table.integers("targets", (place.count,), low=1, high=place.count),
        "chunk_bytes": _chunks(table, (BLOCK_BYTES,)),
        "streams": table.integers("streams", (1,), low=1, high=MAX_STREAMS),
        "slot_bytes": table.sizes("slot", (BLOCK_BYTES,)),
        "depth": table.integers("depth", (8,), low=1, high=MAX_DEPTH),
    }
    for slot in values["slot_bytes"]:
        _power_of_two(table, "slot", slot, MIN_SLOT_SIZE, MAX_SLOT_SIZE)
    points = tuple(Point(*combination) for combination in itertools.product(*values.values()))
    if len(points) > MAX_POINTS:
        raise table.error("kind", f"the sweep has {len(points)} points, at most {MAX_POINTS}")
    swept = tuple(name for name, several in values.items() if len(several) > 1)
    size = table.size("bytes", place.size_bytes) or 0
    if size % BLOCK_BYTES or size > place.size_bytes:
        allowed = f"a multiple of 1 MiB up to the targets' size, {format_size(place.size_bytes)}"
        raise table.error("bytes", f"must be {allowed}, found {size} bytes")
    most = table.integer("most_chunks", 65536, low=1, high=1 << 40)
    made = StreamMeasure(*common, points, swept, _members(table, "peers", Peer), size, most)
    for point in points:
        if made.run_bytes(point) > place.size_bytes:
            raise table.error(
                "streams" if point.streams > 1 else "chunk",
                f"{point.streams} x {format_size(max(BLOCK_BYTES, point.chunk_bytes))} do not fit"
                f" into targets of {format_size(place.size_bytes)}",
            )
    return made


def _slow(table: Table, place: Targets, common: _Common) -> SlowMeasure:
    _one_by_one(table, place)
    policies = _members(table, "policies", Policy) or tuple(Policy)
    share = table.number("share", 0.1, low=0.001, high=0.9)
    seconds, patience = table.seconds("seconds", 1.0), table.seconds("patience", 0.2)
    return SlowMeasure(*common, policies, share, seconds, patience)


def _one_by_one(table: Table, place: Targets) -> None:
    """One target must be held back without the others."""
    if place.kind is Kind.FILES:
        message = (
            "files of one device cannot be slowed down one by one: loops or devices are needed"
        )
        raise table.error("on", message)
    if place.count < 2:
        raise table.error("on", "two targets at least: one slows down, another is healthy")


def _small(table: Table, place: Targets, common: _Common) -> SmallMeasure:
    if place.kind is not Kind.FILES:
        raise table.error("on", "the store makes its volumes itself, beside the targets: files")
    size = table.size("object", 4096) or 0
    if size > MIB:
        raise table.error("object", f"must be at most 1 MiB, found {format_size(size)}")
    return SmallMeasure(
        *common,
        size,
        table.integers("groups", (1, 10, 100, 1000, 4096), low=1, high=10_000),
        table.integer("most_objects", 20_000, low=1, high=10_000_000),
        table.integer("most_transactions", 200, low=1, high=1_000_000),
        table.flag("busy", default=True),
    )


def _goal(table: Table, known: list[str]) -> Goal:
    figure = table.text("figure")
    if figure not in known:
        raise table.error("figure", _unknown("figure", figure, known))
    if ("at_least" in table) == ("at_most" in table):
        raise table.error("figure", "one of at_least and at_most is needed")
    side = "at_least" if "at_least" in table else "at_most"
    values = table.data[side]
    numbers = values if isinstance(values, list) else [values]
    if not 1 <= len(numbers) <= 2 or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers
    ):
        raise table.error(side, f"must be a number, or two: first and then, found {values!r:.60}")
    reached = tuple(float(value) for value in numbers)
    least, most = (reached, None) if side == "at_least" else (None, reached)
    return Goal(figure, table.text("title", figure), least, most)


def _chunks(table: Table, default: tuple[int, ...]) -> tuple[int, ...]:
    sizes = table.sizes("chunk", default)
    for size in sizes:
        _power_of_two(table, "chunk", size, MIN_CHUNK, MAX_CHUNK)
    return sizes


def _power_of_two(table: Table, key: str, size: int, low: int, high: int) -> None:
    if size & (size - 1) or not low <= size <= high:
        allowed = f"{format_size(low)} to {format_size(high)}"
        raise table.error(key, f"must be a power of two, {allowed}, found {size} bytes")


def _members(table: Table, key: str, kind: type[tables.E]) -> tuple[tables.E, ...]:
    """A list of values of an enumeration."""
    known = {str(member.value): member for member in kind}
    found = []
    for index, name in enumerate(table.names(key)):
        if name not in known:
            raise table.error(f"{key}[{index}]", _unknown("name", name, known))
        found.append(known[name])
    return tuple(found)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
    return f'unknown {what} "{name}"{hint} (known: {shown})'
