"""A comparison must find what has become worse, and nothing that is only noise."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from fanout.bench import results
from fanout.bench.figures import Figure, percentile, quartiles
from fanout.bench.results import Verdict
from fanout.cli import main
from fanout.cli.exits import Exit
from fanout.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

STEADY = (1.00, 1.01, 0.99, 1.02, 0.98, 1.00, 1.01)


def made(*rounds: float, more: bool = True, relative: bool = True, name: str = "m.x") -> Any:
    """A result with one figure."""
    figure = Figure(name, "a figure", "", more_is_better=more, relative=relative, rounds=rounds)
    return {
        "report": "fanout bench run",
        "version": 1,
        "machine": {"processor": "P", "processors_usable": 2, "load_before": 0.1},
        "figures": {name: figure.to_json()},
    }


def times(factor: float) -> tuple[float, ...]:
    return tuple(value * factor for value in STEADY)


@pytest.mark.parametrize(
    ("factor", "more", "verdict"),
    [
        (1.0, True, Verdict.SAME),
        (0.95, True, Verdict.SAME),  # apart, but within the tolerance
        (0.8, True, Verdict.WORSE),
        (1.25, True, Verdict.BETTER),
        (1.25, False, Verdict.WORSE),
        (0.8, False, Verdict.BETTER),
    ],
)
def test_verdict_follows_the_direction(factor: float, more: bool, verdict: Verdict) -> None:
    """More processor time praised as an improvement."""
    found = results.compare(made(*STEADY, more=more), made(*times(factor), more=more))
    assert found.verdict is verdict


def test_noise_is_not_worse() -> None:
    """The median has moved by a quarter, but so do the rounds of either run."""
    before = (0.6, 0.8, 0.9, 1.0, 1.1, 1.3, 1.6)
    after = (0.5, 0.6, 0.7, 0.75, 0.95, 1.2, 1.4)
    found = results.compare(made(*before), made(*after))
    assert found.changes[0].gain == pytest.approx(-0.25)
    assert not found.changes[0].apart
    assert found.verdict is Verdict.SAME


def test_one_slow_round_hides_nothing_and_proves_nothing() -> None:
    """An outlier in either run would decide if smallest and largest were compared."""
    outlier = (*STEADY[:-1], 0.3)
    assert results.compare(made(*STEADY), made(*outlier)).verdict is Verdict.SAME
    assert results.compare(made(*outlier), made(*times(0.7))).verdict is Verdict.WORSE


def test_absolute_figures_are_judged_on_request() -> None:
    """The machine was slower that day: not our regression, unless somebody knows better."""
    before, after = made(*STEADY, relative=False), made(*times(0.5), relative=False)
    quiet = results.compare(before, after)
    assert quiet.verdict is Verdict.SAME
    assert quiet.changes[0].verdict is Verdict.WORSE
    assert not quiet.changes[0].judged
    assert results.compare(before, after, absolute=True).verdict is Verdict.WORSE


def test_few_rounds_prove_nothing() -> None:
    """Two runs of one round each are always apart."""
    found = results.compare(made(1.0, 1.0), made(0.5, 0.5), absolute=True)
    assert found.verdict is Verdict.SAME
    assert found.notes == ("not judged for having fewer than 5 rounds: 1",)


def test_what_is_gone_is_said() -> None:
    """A figure that vanished would hide its regression."""
    found = results.compare(made(*STEADY), made(*STEADY, name="m.y"))
    assert (found.gone, found.new, found.changes) == (("m.x",), ("m.y",), ())


def test_nothing_is_divided_by_zero() -> None:
    """The price of one more target can come out as nothing, or less, on a noisy machine."""
    found = results.compare(made(-1.0, 0.0, 1.0), made(1.0, 1.0, 1.0))
    assert found.changes == ()


def test_other_machines_and_others_on_them_are_said() -> None:
    """Apples and pears."""
    before, after = made(*STEADY), made(*STEADY)
    after["machine"] = {"processor": "Q", "processors_usable": 2, "load_before": 7.5}
    notes = results.compare(before, after).notes
    assert notes == (
        "processor: P before, Q after",
        "after: others kept the machine busy (load 7.5 when it began)",
    )


def keep(path: Path, value: object) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def test_exit_codes_and_sentences(tmp_path: Path) -> None:
    """Scripts rely on the code, people on the figure and by how much."""
    before = keep(tmp_path / "a.json", made(*STEADY))
    worse = keep(tmp_path / "b.json", made(*times(0.7)))
    same = CliRunner().invoke(main, ["bench", "compare", before, before])
    assert same.exit_code == Exit.COMPLETE, same.output
    assert "nothing is worse" in same.output
    found = CliRunner().invoke(main, ["bench", "compare", before, worse])
    assert found.exit_code == Exit.REGRESSION
    assert "m.x, by 30.0%" in " ".join(found.output.split())
    lenient = ["bench", "compare", before, worse, "--tolerance", "0.5"]
    assert CliRunner().invoke(main, lenient).exit_code == Exit.COMPLETE
    said = CliRunner().invoke(main, ["bench", "compare", before, worse, "--json"])
    assert said.exit_code == Exit.REGRESSION
    report = json.loads(said.stdout)
    assert (report["ok"], report["verdict"]) == (False, "worse")
    assert report["figures"][0]["gain"] == pytest.approx(-0.3)
    better = CliRunner().invoke(main, ["bench", "compare", worse, before, "--json"])
    assert better.exit_code == Exit.COMPLETE
    assert json.loads(better.stdout)["verdict"] == "better"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "is not JSON"),
        ([], 'is not a result of "fanout bench run"'),
        ({"report": "fanout bench quick"}, 'is not a result of "fanout bench run"'),
        ({"report": "fanout bench run", "version": 2}, "version: is version 2"),
        ({"report": "fanout bench run", "version": 1}, "machine: must be a table"),
        ({"report": "fanout bench run", "version": 1, "machine": {}}, "figures: must be a table"),
        (
            {
                "report": "fanout bench run",
                "version": 1,
                "machine": {},
                "figures": {"m.x": {"median": "1", "rounds": []}},
            },
            "figures.m.x: is not a whole figure",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, value: object, said: str) -> None:
    """A traceback instead of a word about the file."""
    path = tmp_path / "x.json"
    keep(path, value)
    with pytest.raises(ConfigError) as caught:
        results.load(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_result_that_was_cut_gets_a_word(result: dict[str, Any], tmp_path: Path) -> None:
    """A traceback for a file that somebody has edited."""
    measure = {key: value for key, value in result["measures"][0].items() if key != "points"}
    cut = keep(tmp_path / "cut.json", {**result, "measures": [measure]})
    said = CliRunner().invoke(main, ["bench", "report", cut, str(tmp_path / "r.html")])
    assert said.exit_code == Exit.CONFIG
    assert "lacks what a report shows" in said.output
    assert not (tmp_path / "r.html").exists()


def test_kept_is_what_was_found(result: dict[str, Any], tmp_path: Path) -> None:
    """Saved and loaded again, over an older one; nothing else stays in the directory."""
    path = tmp_path / "new" / "r.json"
    results.save({"old": True}, path)
    results.save(result, path)
    assert results.load(path) == json.loads(json.dumps(result))
    assert [one.name for one in path.parent.iterdir()] == ["r.json"]


def test_quartiles_and_percentiles() -> None:
    """The arithmetic that verdicts and tails stand on."""
    assert quartiles([3.0]) == (3.0, 3.0)
    assert quartiles([1, 2, 3, 4, 5]) == (2, 4)
    hundred = [float(number) for number in range(1, 101)]
    assert percentile(hundred, 0.5) == 50
    assert percentile(hundred, 0.99) == 99
    assert percentile(hundred, 1.0) == 100
    assert percentile([7.0], 0.5) == 7
