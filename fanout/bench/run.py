"""``fanout bench run``: sets a scenario's targets up, measures, takes them down, and says what was found as plain values for JSON.

The result holds every figure once under `figures`, what belongs together under `measures`, and under `goals` what the scenario hoped
for. `VERSION` changes when a key changes its meaning; new keys alone do not change it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import fanout
from fanout.bench import machine
from fanout.bench.figures import rounded
from fanout.bench.measures import Found, hang, latency, memory, slow, small, stream
from fanout.bench.places import standing, why_not
from fanout.bench.plan import (
    HangMeasure,
    Kind,
    LatencyMeasure,
    MemoryMeasure,
    Peer,
    SlowMeasure,
    SmallMeasure,
    StreamMeasure,
)
from fanout.demo import signals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from fanout.bench.figures import Figure
    from fanout.bench.measures import Tell
    from fanout.bench.places import Place
    from fanout.bench.plan import Goal, Measure, Scenario, Targets

REPORT = "fanout bench run"
VERSION = 1


def run(
    scenario: Scenario,
    *,
    directory: Path | None = None,
    backend: str = "auto",
    command: Sequence[str] = (),
    tell: Tell = lambda _: None,
) -> dict[str, object]:
    """Run a scenario.

    Args:
        scenario: what to do.
        directory: for targets on disk, when the scenario does not say where.
        backend: of fanout's engine.
        command: that was given, for the record.
        tell: told what runs now.

    Returns:
        The result, for JSON. Measures whose targets cannot be set up here are under `absent`, with the reason.

    Raises:
        BenchmarkError: fanout did not do its work.
        PlaceError: there is no room for the targets, or a device is none.
        DeviceError: a device could not be made or given back.
    """
    about = machine.describe()
    began, made_at = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    found: dict[str, Found] = {}
    with signals.terminable():
        for measure in scenario.measures:
            tell(f"{measure.title}: setting up")
            found[measure.name] = _measured(scenario, measure, directory, backend, tell)
    figures = {figure.name: figure for one in found.values() for figure in one.figures}
    return {
        "report": REPORT,
        "version": VERSION,
        "made_at": made_at,
        "seconds": round(time.monotonic() - began, 1),
        "command": list(command),
        "fanout": {"version": fanout.__version__, "revision": machine.revision()},
        "machine": about | {"load_after": machine.load()},
        "scenario": {"path": scenario.path, "title": scenario.title, "note": scenario.note},
        "targets": {name: _shown(spec) for name, spec in scenario.targets.items()},
        "measures": [_record(measure, found[measure.name]) for measure in scenario.measures],
        "figures": {name: figure.to_json() for name, figure in figures.items()},
        "goals": [_judged(goal, figures) for goal in scenario.goals],
        "absent": {
            f"{measure.name}: {name}" if name != measure.name else name: why
            for measure in scenario.measures
            for name, why in found[measure.name].absent.items()
        },
    }


def _measured(
    scenario: Scenario, measure: Measure, directory: Path | None, backend: str, tell: Tell
) -> Found:
    spec = scenario.targets[measure.on]
    if why := why_not(spec):
        return Found({}, absent={measure.name: why})
    with signals.undisturbed() as stack:
        place = stack.enter_context(
            standing(spec, directory=directory, btrfs=_wants_btrfs(measure))
        )
        return _of_its_kind(measure, place, backend, tell)


def _of_its_kind(measure: Measure, place: Place, backend: str, tell: Tell) -> Found:
    match measure:
        case StreamMeasure():
            return stream.run(measure, place, backend=backend, tell=tell)
        case LatencyMeasure():
            return latency.run(measure, place, backend=backend, tell=tell)
        case SlowMeasure():
            return slow.run(measure, place, backend=backend, tell=tell)
        case HangMeasure():
            return hang.run(measure, place, backend=backend, tell=tell)
        case SmallMeasure():
            return small.run(measure, place, backend=backend, tell=tell)
        case MemoryMeasure():
            return memory.run(measure, place, backend=backend, tell=tell)
        case _:
            raise AssertionError(measure)


def _wants_btrfs(measure: Measure) -> bool:
    return isinstance(measure, StreamMeasure) and Peer.BTRFS in measure.peers


def destroyed(scenario: Scenario) -> Iterable[str]:
    """Devices that were there before, whose content the scenario overwrites."""
    used = {measure.on for measure in scenario.measures}
    for name in sorted(used):
        if scenario.targets[name].kind is Kind.DEVICES:
            yield from scenario.targets[name].paths


# ---- for JSON ------------------------------------------------------------------------------------


def _record(measure: Measure, found: Found) -> dict[str, object]:
    kind = type(measure).__name__.removesuffix("Measure").lower()
    about = {"name": measure.name, "kind": kind, "title": measure.title, "on": measure.on}
    return {**about, "rounds": measure.rounds, **found.record}


def _shown(spec: Targets) -> dict[str, object]:
    return {
        "kind": spec.kind.value,
        "over": None if spec.kind is Kind.DEVICES else spec.over.value,
        "count": spec.count,
        "size_bytes": spec.size_bytes,
        "sector_bytes": spec.sector_bytes if spec.kind is Kind.LOOPS else None,
        "paths": list(spec.paths),
    }


def _judged(goal: Goal, figures: Mapping[str, Figure]) -> dict[str, object]:
    """What was hoped for and what came of it; `reached` has an entry for each level, None when the figure could not be made."""
    figure = figures.get(goal.figure)
    levels = goal.least or goal.most or ()
    value = None if figure is None else figure.median
    reached = [
        None if value is None else value >= level if goal.least else value <= level
        for level in levels
    ]
    return {
        "figure": goal.figure,
        "title": goal.title,
        "at": "least" if goal.least else "most",
        "levels": list(levels),
        "value": None if value is None else rounded(value),
        "unit": "" if figure is None else figure.unit,
        "reached": reached,
    }
