"""Results of ``fanout bench run``: kept, read again, and compared with each other.

Two runs are two machines, even on one machine: its speed drifts. So a figure has become worse only when both hold: its median is worse by
more than the tolerance, and the middle halves of the rounds (from quartile to quartile) no longer overlap, which a single
slow round cannot do. Fewer than `ENOUGH_ROUNDS` have no middle half worth the name: such figures are shown and not judged. Nor are those
that are not relative to anything of the same run, unless it is asked for: they say how fast the machine was that day.
"""

from __future__ import annotations

import enum
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fanout.bench.run import REPORT, VERSION
from fanout.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOLERANCE = 0.10
ENOUGH_ROUNDS = 5
# What makes figures that are not relative incomparable when it differs.
_MACHINE = ("processor", "processors", "processors_usable", "memory_mib", "kernel")


def save(result: Mapping[str, object], path: Path) -> None:
    """Keep a result, and make the directory for it. An old one of that name is replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        ConfigError: it cannot be read, or is none of a version that is known here.
    """
    name = str(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", path=name) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"is not JSON: {error}", path=name) from error
    if not isinstance(found, dict) or found.get("report") != REPORT:
        raise ConfigError(f'is not a result of "{REPORT}"', path=name, key="report")
    if found.get("version") != VERSION:
        raise ConfigError(
            f"is version {found.get('version')!r}, and only {VERSION} is known",
            path=name,
            key="version",
        )
    if not isinstance(found.get("machine"), dict):
        raise ConfigError("must be a table", path=name, key="machine")
    figures = found.get("figures")
    if not isinstance(figures, dict):
        raise ConfigError("must be a table of figures", path=name, key="figures")
    for key, figure in figures.items():
        if not _whole(figure):
            raise ConfigError("is not a whole figure", path=name, key=f"figures.{key}")
    return found


def _whole(figure: object) -> bool:
    if not isinstance(figure, dict):
        return False
    quartiles, rounds = figure.get("quartiles"), figure.get("rounds")
    numbers = [figure.get("median"), *(quartiles if isinstance(quartiles, list) else ())]
    return (
        len(numbers) == 3
        and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in numbers)
        and figure.get("better") in ("more", "less")
        and isinstance(figure.get("relative"), bool)
        and isinstance(rounds, list)
    )


# ---- comparing -----------------------------------------------------------------------------------


class Verdict(enum.Enum):
    """What became of a figure."""

    BETTER = "better"
    SAME = "same"
    WORSE = "worse"


@dataclass(frozen=True, slots=True)
class Change:
    """A figure before and after.

    Attributes:
        name: of the figure.
        title: for people.
        unit: "" for ratios.
        before: median.
        after: median.
        gain: how much better the median is, as a share of what it was; negative: worse.
        apart: whether the middle halves of the rounds no longer overlap.
        judged: whether it counts.
        verdict: what became of it.
    """

    name: str
    title: str
    unit: str
    before: float
    after: float
    gain: float
    apart: bool
    judged: bool
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two results side by side.

    Attributes:
        changes: every figure that both have and that can be compared, the worst first.
        gone: figures that only the first has: nobody knows whether they have become worse.
        new: figures that only the second has.
        notes: what else differs between the two runs.
    """

    changes: tuple[Change, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> list[Change]:
        """The figures that count and have become worse."""
        return [one for one in self.changes if one.judged and one.verdict is Verdict.WORSE]

    @property
    def verdict(self) -> Verdict:
        """Worse when any figure that counts is; better when none is and some are."""
        if self.regressions:
            return Verdict.WORSE
        better = any(one.judged and one.verdict is Verdict.BETTER for one in self.changes)
        return Verdict.BETTER if better else Verdict.SAME


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    tolerance: float = TOLERANCE,
    absolute: bool = False,
) -> Comparison:
    """Compare two results.

    Args:
        before: what `load` gave.
        after: likewise.
        tolerance: how much worse a median may be, as a share of what it was.
        absolute: judge the figures as well that are not relative to anything of their own run.
    """
    old, new = before["figures"], after["figures"]
    changes = [
        _change(name, old[name], new[name], tolerance, absolute)
        for name in old
        # Without a positive value there is nothing to take a share of.
        if name in new and old[name]["median"] > 0 and new[name]["median"] > 0
    ]
    return Comparison(
        changes=tuple(sorted(changes, key=lambda one: one.gain)),
        gone=tuple(name for name in old if name not in new),
        new=tuple(name for name in new if name not in old),
        notes=(*_notes(before, after), *_few(old, new)),
    )


def _change(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float, absolute: bool
) -> Change:
    more = new["better"] == "more"
    ratio = new["median"] / old["median"]
    gain = ratio - 1 if more else 1 - ratio
    (old_low, old_high), (new_low, new_high) = old["quartiles"], new["quartiles"]
    apart = new_low > old_high or new_high < old_low
    verdict = Verdict.SAME
    if apart and abs(gain) > tolerance:
        verdict = Verdict.BETTER if gain > 0 else Verdict.WORSE
    return Change(
        name=name,
        title=str(new.get("title", name)),
        unit=str(new.get("unit", "")),
        before=old["median"],
        after=new["median"],
        gain=gain,
        apart=apart,
        judged=(absolute or bool(new["relative"])) and _rounds(old, new) >= ENOUGH_ROUNDS,
        verdict=verdict,
    )


def _rounds(old: Mapping[str, Any], new: Mapping[str, Any]) -> int:
    return min(len(old["rounds"]), len(new["rounds"]))


def _few(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    few = sum(_rounds(old[name], new[name]) < ENOUGH_ROUNDS for name in old if name in new)
    return [f"not judged for having fewer than {ENOUGH_ROUNDS} rounds: {few}"] if few else []


def _notes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    old, new = before["machine"], after["machine"]
    notes = [
        f"{key}: {old.get(key)} before, {new.get(key)} after"
        for key in _MACHINE
        if old.get(key) != new.get(key)
    ]
    for when, one in (("before", old), ("after", new)):
        load, usable = one.get("load_before"), one.get("processors_usable")
        if isinstance(load, (int, float)) and isinstance(usable, int) and load > usable / 2:
            notes.append(f"{when}: others kept the machine busy (load {load} when it began)")
    return notes


def to_json(comparison: Comparison) -> dict[str, object]:
    """For scripts."""
    return {
        "ok": comparison.verdict is not Verdict.WORSE,
        "verdict": comparison.verdict.value,
        "figures": [
            {
                "name": one.name,
                "title": one.title,
                "unit": one.unit,
                "before": one.before,
                "after": one.after,
                "gain": round(one.gain, 4),
                "apart": one.apart,
                "judged": one.judged,
                "verdict": one.verdict.value,
            }
            for one in comparison.changes
        ],
        "gone": list(comparison.gone),
        "new": list(comparison.new),
        "notes": list(comparison.notes),
    }
