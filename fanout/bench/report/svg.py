"""A small pen for charts: shapes and text in, one SVG element out. No library: the page stays light and depends on nothing.

Colours are names of classes; `page` has the style sheet with a light and a dark set of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Point = tuple[float, float]


class Drawing:
    """An SVG element that grows.

    Args:
        width: in its own units, which are pixels when the page is wide enough.
        height: likewise.
        says: what the picture shows, for those who do not see it.
    """

    def __init__(self, width: float, height: float, says: str) -> None:
        self.width, self.height, self._says = width, height, says
        self._parts: list[str] = []

    def line(self, start: Point, end: Point, look: str) -> None:
        """A straight line."""
        (x1, y1), (x2, y2) = start, end
        self._add(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"', look)

    def path(self, points: Sequence[Point], look: str) -> None:
        """Straight lines from point to point."""
        self._add(f'<path d="M{_along(points)}"', look)

    def band(self, upper: Sequence[Point], lower: Sequence[Point], look: str) -> None:
        """The surface between two lines."""
        self._add(f'<path d="M{_along(upper)}L{_along([*reversed(lower)])}Z"', look)

    def box(
        self, corner: Point, size: Point, look: str, *, round_: float = 0, tip: str = ""
    ) -> None:
        """A rectangle; its corners may be rounded."""
        (x, y), (width, height) = corner, size
        shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}"'
        self._add(f'{shape} rx="{round_:g}"', look, tip)

    def dot(self, at: Point, look: str, *, radius: float = 3.5, tip: str = "") -> None:
        """A filled circle; `tip` appears under the pointer."""
        self._add(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}"', look, tip)

    def text(self, at: Point, words: str, look: str = "", *, anchor: str = "start") -> None:
        """One line of text; `anchor` is start, middle or end."""
        place = f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}" class="{look}">'
        self._parts.append(f"{place}{escape(words)}</text>")

    def _add(self, shape: str, look: str, tip: str = "") -> None:
        inside = f"><title>{escape(tip)}</title>{_closing(shape)}" if tip else "/>"
        self._parts.append(f'{shape} class="{look}"{inside}')

    def __str__(self) -> str:
        head = f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img"'
        return f'{head} aria-label="{escape(self._says)}">{"".join(self._parts)}</svg>'


def _closing(shape: str) -> str:
    return f"</{shape[1 : shape.index(' ')]}>"


def _along(points: Iterable[Point]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


# ---- scales --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to places.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        start: place of the lowest value.
        end: place of the highest.
        log: each decade as long as the next.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; values outside go to the edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values that divide it into about so many parts."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if self.high / self.low <= 200 else (1,)
            values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
        step = _round_up((self.high - self.low) / wanted)
        count = int((self.high - self.low) / step + 1e-9)
        return [self.low + number * step for number in range(count + 1)]


def from_zero(highest: float, start: float, end: float) -> Scale:
    """A linear scale from zero to a round value that is not below the highest."""
    step = _round_up(max(highest, 1e-12) / 5)
    return Scale(0.0, math.ceil(highest / step - 1e-9) * step or step, start, end)


def decades(values: Sequence[float], start: float, end: float, *, around: float = 0) -> Scale:
    """A logarithmic scale for positive values; `around` is to be on it."""
    some = [value for value in [*values, around] if value > 0]
    low, high = min(some), max(some)
    return Scale(_step_down(low), _step_down(high, up=True), start, end, log=True)


def _step_down(value: float, *, up: bool = False) -> float:
    """The next of 1, 2, 5, 10 … below, or above."""
    base = 10.0 ** math.floor(math.log10(value))
    steps = [base * step for step in (1, 2, 5, 10, 20)]
    if up:
        return next(step for step in steps if step > value * 1.02)
    return max(step for step in [base / 2, *steps] if step < value * 0.98)


def _round_up(step: float) -> float:
    base = 10.0 ** math.floor(math.log10(step))
    return next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= step * 0.999)


def short(value: float) -> str:
    """A number for an axis or a label: three digits, and commas."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
