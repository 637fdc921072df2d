"""The report must open anywhere: nothing from outside, nothing broken, nothing of a name taken for markup."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from fanout.bench.report import charts, page
from fanout.bench.report.charts import Axis, Bar, Series, TimeLine
from fanout.bench.report.svg import Scale, decades, from_zero, short

VOID = {"meta", "br", "rect", "line", "circle", "path"}


class Balance(HTMLParser):
    """Notes tags that are closed and were not open, or the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.names: set[str] = set()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.outside += [f"{tag} {name}" for name, _ in attrs if name in {"src", "href", "srcset"}]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def html(result: dict[str, Any]) -> str:
    return page(result)


def test_nothing_comes_from_outside(html: str) -> None:
    """A page that needs the network shows nothing in ten years, and tells somebody who looks at it now."""
    found = Balance()
    found.feed(html)
    assert found.outside == []
    assert not found.names & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"https?:|url\(|@import", html)


def test_it_is_well_formed(html: str) -> None:
    """A tag that is never closed swallows the rest of the page."""
    found = Balance()
    found.feed(html)
    assert (found.open, found.wrong) == ([], [])
    drawings = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(drawings) > 8
    for drawing in drawings:
        ET.fromstring(drawing)
    assert not re.search(r"\b(nan|inf)\b", "".join(drawings))


def test_every_measure_and_every_goal_is_in_it(html: str, result: dict[str, Any]) -> None:
    """A chart that silently fell out."""
    for measure in result["measures"]:
        assert f"<h2>{measure['title']}</h2>" in html
    for words in ("✓ reached", "✓ first", "not measured"):
        assert words in html
    for name in result["figures"]:
        assert f"<code>{name}</code>" in html


def test_names_are_text(html: str) -> None:
    """A title or a path with a bracket in it must not become markup."""
    assert "Tiny &amp; &lt;odd&gt;" in html
    assert "<odd>" not in html


def test_a_measure_that_could_not_be_made_is_said(result: dict[str, Any]) -> None:
    """No root, no loop devices: the page says so and shows the rest."""
    lost = {"name": "slow", "kind": "slow", "title": "Gone", "on": "files", "rounds": 2}
    found = page(
        {
            **result,
            "measures": [*result["measures"], lost],
            "absent": {"slow": "slowing a device down needs root"},
        }
    )
    assert "<h2>Gone</h2>" not in found
    assert "slow: slowing a device down needs root" in found


def test_a_slow_target_is_drawn() -> None:
    """Each target has its line, the shade stands where it was slow, the ejected one is named."""
    trace = TimeLine(
        rates=[[100.0, 90.0, 95.0, 99.0], [100.0, 9.0, 8.0, 0.0]],
        bin_seconds=0.5,
        slowed=(0.5, 1.5),
        share=0.1,
        ejected={1: 0.9},
        alone=110.0,
        most=110.0,
    )
    drawing = charts.timeline(trace, says="x")
    ET.fromstring(drawing)
    assert drawing.count('class="stroke') == 2
    assert "target 2 ejected" in drawing
    assert "target 2 at 10% of its speed" in drawing


def test_names_of_lines_do_not_touch() -> None:
    """Lines that end at the same place would have names on top of each other, or outside the chart."""
    lines = [Series(f"line {number}", "c", {1.0: (5.0, 5.0, 5.0)}) for number in range(8)]
    drawing = charts.lines(lines, Axis.even({1.0: "1"}, "x"), unit="u", says="s")
    places = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*class="name', drawing))
    assert len(places) == 8
    assert all(second - first >= 16.9 for first, second in itertools.pairwise(places))
    assert 0 < places[0] < places[-1] < 330


def test_hostile_values_are_drawn() -> None:
    """Zero, one round, one bar, a ratio of a thousand: no division by zero, no negative width."""
    for drawing in (
        charts.bars([Bar("a", "c", 0.0, 0.0, 0.0)], unit="u", says="s"),
        charts.bars([Bar("a", "c", 1.0, 1.0, 1.0, beyond=1e6)], unit="u", says="s"),
        charts.ratios([Bar("a", "c", 1.0, 1.0, 1.0)], more_is_better=True, says="s"),
        charts.ratios([Bar("a", "c", 1e-3, 1e-3, 1e3)], more_is_better=False, says="s"),
        charts.gauge(-1.0, (-2.0, 0.5), [8, 6], least=False),
        charts.gauge(0.0, (0.0, 0.0), [1], least=True),
    ):
        ET.fromstring(drawing)
        assert not re.search(r'width="-|\b(nan|inf)\b', drawing)


def test_scales() -> None:
    """The place of a value, and round numbers on the axis."""
    scale = from_zero(87.0, 0.0, 100.0)
    assert (scale.high, scale(50.0), scale(1e9), scale(-5.0)) == (100.0, 50.0, 100.0, 0.0)
    assert scale.ticks() == [0, 20, 40, 60, 80, 100]
    log = Scale(1.0, 1000.0, 0.0, 300.0, log=True)
    assert log(10.0) == pytest.approx(100.0)
    assert log.ticks() == [1, 10, 100, 1000]
    around = decades([3.0, 7.0], 0.0, 1.0, around=1.0)
    assert around.low < 1.0
    assert around.high > 7.0
    assert [short(value) for value in (0, 0.12345, 12.345, 12345.6)] == [
        "0",
        "0.123",
        "12.3",
        "12,346",
    ]
