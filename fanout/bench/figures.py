"""One number with its name, its unit, the direction that is better, and its rounds: what results hold and comparisons compare."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure over the rounds of one run.

    Attributes:
        name: unique in a result; `plan.figures_of` makes it.
        title: for people.
        unit: of the values; "" for ratios.
        more_is_better: else less.
        relative: to something measured in the same round, so that two runs can be compared even when the machine has drifted.
        rounds: the values, one for each round.
    """

    name: str
    title: str
    unit: str
    more_is_better: bool
    relative: bool
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value that stands for all."""
        return statistics.median(self.rounds)

    def to_json(self) -> dict[str, object]:
        """With the quartiles, which say how far it usually spreads, and the extremes."""
        low, high = quartiles(self.rounds)
        return {
            "title": self.title,
            "unit": self.unit,
            "better": "more" if self.more_is_better else "less",
            "relative": self.relative,
            "median": rounded(self.median),
            "quartiles": [rounded(low), rounded(high)],
            "min": rounded(min(self.rounds)),
            "max": rounded(max(self.rounds)),
            "rounds": [rounded(value) for value in self.rounds],
        }


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Lower and upper quartile of at least one value."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of some ascending values that at least this share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def rounded(value: float) -> float:
    """Five significant digits: more are noise, and make results hard to read."""
    return float(f"{value:.5g}")
