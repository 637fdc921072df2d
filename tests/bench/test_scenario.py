"""A wrong scenario must be refused before a minute is spent on it, and say where it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fanout.bench import plan, scenario
from fanout.errors import ConfigError

SCENARIOS = sorted((Path(__file__).parents[2] / "benchmarks" / "scenarios").glob("*.toml"))
MIB = 1 << 20

FILES = """
title = "T"
[targets.files]
kind = "files"
size = "8 MiB"
"""
STREAM = FILES + '[[measure]]\nname = "s"\nkind = "stream"\n'
LOOPS = 'title = "T"\n[targets.loops]\nkind = "loops"\ncount = 2\n'


def refused(text: str) -> str:
    """The message for a wrong scenario."""
    with pytest.raises(ConfigError) as caught:
        scenario.parse(text, path="x.toml")
    assert caught.value.path == "x.toml"
    return str(caught.value)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_stored_scenarios_are_right(path: Path) -> None:
    """A scenario that nobody can run, or a goal for a figure that nothing measures."""
    found = scenario.load(path)
    assert found.title
    assert all(measure.on in found.targets for measure in found.measures)


def test_the_cost_table_is_whole() -> None:
    """Every figure that decides whether fanout is worth having must have its goals in one file."""
    (path,) = (path for path in SCENARIOS if path.stem == "cost")
    goals = {goal.figure for goal in scenario.load(path).goals}
    assert goals >= {
        "loops.bandwidth_vs_fio_tuned",
        "loops.cpu_vs_python_threads",
        "loops.cpu",
        "extra.cpu_per_extra_target",
        "loops.bandwidth_vs_driver",
        "chunks.bandwidth_vs_driver",
        "loops.bandwidth_vs_dd_tee",
        "slow.healthy_rate_eject",
        "hang.detach",
        "memory.growth_vs_budget",
        "small.group=1000.alone",
        "small.group=1000.busy",
    }


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("title = ", "", "is not valid TOML"),
        (FILES, "measure", "at least one section [[measure]]"),
        ('title = "T"', "targets", "at least one section"),
        (STREAM + "rouns = 3", "measure[0].rouns", 'did you mean "rounds"?'),
        (STREAM + "rounds = 0", "measure[0].rounds", "must be 1 to 99"),
        (STREAM.replace("8 MiB", "1000 kB"), "targets.files.size", "a multiple of 1 MiB"),
        (STREAM.replace('"files"\ns', '"file"\ns'), "targets.files.kind", 'did you mean "files"?'),
        (STREAM + "targets = [1, 4]", "measure[0].targets[1]", "must be 1 to 3, found 4"),
        (STREAM + "targets = [1, 1]", "measure[0].targets[1]", "listed twice"),
        (STREAM + "targets = []", "measure[0].targets", "must not be empty"),
        (STREAM + 'targets = ["1"]', "measure[0].targets[0]", "must be a whole number"),
        (STREAM + 'chunk = "3 KiB"', "measure[0].chunk", "a power of two, 512 B to 64.0 MiB"),
        (STREAM + 'chunk = "16 MiB"', "measure[0].chunk", "do not fit into targets of 8.00 MiB"),
        (STREAM + "streams = 16", "measure[0].streams", "16 x 1.00 MiB do not fit"),
        (STREAM + 'slot = "32 KiB"', "measure[0].slot", "a power of two, 64.0 KiB to"),
        (STREAM + 'peers = ["fio"]', "measure[0].peers[0]", 'unknown name "fio"'),
        (STREAM + 'bytes = "9 MiB"', "measure[0].bytes", "up to the targets' size"),
        (STREAM + 'on = "loops"', "measure[0].on", 'unknown targets "loops"'),
        (STREAM + 'kind = "stream"', "", "is not valid TOML"),
        (STREAM.replace('"stream"', '"steam"'), "measure[0].kind", 'did you mean "stream"?'),
        (STREAM.replace('"s"', '"s.t"'), "measure[0].name", "letters, digits"),
        (
            FILES + '[[measure]]\nname = "slow"\nkind = "slow"\n',
            "measure[0].on",
            "loops or devices are needed",
        ),
        (
            LOOPS + '[[measure]]\nname = "small"\nkind = "small"\n',
            "measure[0].on",
            "the store makes its volumes itself",
        ),
        (LOOPS + 'directory = "/x"', "targets.loops.directory", 'only with over = "disk"'),
        (LOOPS + "sector = 520", "targets.loops.sector", "must be 512 or 4096"),
        (
            'title = "T"\n[targets.d]\nkind = "devices"\n',
            "targets.d.paths",
            "must be 1 to 16 devices",
        ),
        (STREAM + '[[goal]]\nfigure = "s.speed"\nat_least = 1', "goal[0].figure", "unknown figure"),
        (
            STREAM + '[[goal]]\nfigure = "s.bandwith"\nat_least = 1',
            "goal[0].figure",
            'did you mean "s.bandwidth"?',
        ),
        (STREAM + '[[goal]]\nfigure = "s.cpu"', "goal[0].figure", "one of at_least and at_most"),
        (
            STREAM + '[[goal]]\nfigure = "s.cpu"\nat_most = [3, 2, 1]',
            "goal[0].at_most",
            "a number, or two",
        ),
        (
            FILES + '[[measure]]\nname = "m"\nkind = "memory"\nbytes = "12 MiB"',
            "measure[0].bytes",
            "a multiple of the targets' size",
        ),
    ],
)
def test_mistakes_name_the_place(text: str, key: str, said: str) -> None:
    """File, dotted key, what is allowed: for each kind of mistake."""
    message = refused(text)
    assert message.startswith(f"x.toml: {key}: " if key else "x.toml: ")
    assert said in message


def test_the_example_of_the_readme_is_right() -> None:
    """What people copy first."""
    text = (SCENARIOS[0].parents[1] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S)
    found = scenario.parse(example, path="x.toml")
    assert [goal.figure for goal in found.goals] == ["throughput.targets=3.bandwidth_vs_fio_tuned"]
    assert set(found.targets) == {"disks", "loops"}


def test_names_are_used_once() -> None:
    """Two measures of one name would overwrite each other's figures."""
    twice = STREAM + '[[measure]]\nname = "s"\nkind = "latency"\n'
    assert "names another measure already" in refused(twice)


def test_too_many_points_are_refused() -> None:
    """A sweep over everything would take a day."""
    text = STREAM.replace("8 MiB", "64 MiB") + (
        "targets = [1, 2, 3]\nstreams = [1, 2, 4, 8]\ndepth = [1, 2, 4, 8]\n"
        'chunk = ["512 B", "4 KiB"]'
    )
    assert "the sweep has 96 points, at most 64" in refused(text)


def test_a_run_is_shortened_for_small_chunks_and_whole_for_streams() -> None:
    """A sweep down to 512 bytes must end, and no stream may get a part of a block."""
    text = STREAM.replace("8 MiB", "64 MiB") + (
        'most_chunks = 4096\nchunk = ["512 B", "64 KiB", "16 MiB"]\nstreams = [1, 3]'
    )
    (measure,) = scenario.parse(text, path="x.toml").measures
    assert isinstance(measure, plan.StreamMeasure)
    sizes = {
        (point.chunk_bytes, point.streams): measure.run_bytes(point) for point in measure.points
    }
    assert sizes == {
        (512, 1): 2 * MIB,
        (512, 3): 3 * MIB,
        (65536, 1): 64 * MIB,
        (65536, 3): 63 * MIB,
        (16 * MIB, 1): 64 * MIB,
        (16 * MIB, 3): 48 * MIB,
    }


def test_rounds_from_the_command_line(tmp_path: Path) -> None:
    """A quick look must not need another file."""
    file = tmp_path / "x.toml"
    file.write_text(STREAM + "rounds = 9\n", encoding="utf-8")
    assert [measure.rounds for measure in scenario.load(file).measures] == [9]
    assert [measure.rounds for measure in scenario.load(file, rounds=2).measures] == [2]
