"""A scenario from end to end: what is promised is measured, and nothing is left behind, also when it goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from fanout.bench import places, plan, run, scenario
from fanout.bench.contenders import BenchmarkError
from fanout.bench.measures import hang, slow
from fanout.bench.report import page
from fanout.bench.throttle import why_not
from fanout.cli import main
from fanout.cli.exits import Exit
from fanout.demo import devices
from fanout.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


def spec(**other: Any) -> plan.Targets:
    """Two loop devices over memory, unless it says otherwise."""
    values = {
        "name": "t",
        "kind": plan.Kind.LOOPS,
        "over": plan.Over.MEMORY,
        "count": 2,
        "size_bytes": 16 * MIB,
    }
    return plan.Targets(**{**values, **other})


def left(pid: int) -> set[str]:
    """What a process could leave: directories in memory, loop devices over them, control groups."""
    name = places.prefix().replace(str(os.getpid()), str(pid))
    found = {str(one) for one in places.MEMORY.glob(f"{name}*")}
    for one in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # somebody else's, gone meanwhile
            if name in one.read_text():
                found.add(str(one))
    return found | {str(one) for one in Path("/sys/fs/cgroup").glob(f"**/{name}*")}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    yield
    assert left(os.getpid()) == set()


# ---- the whole ------------------------------------------------------------------------------------


def test_everything_promised_is_measured(tiny: plan.Scenario, result: dict[str, Any]) -> None:
    """Names that a scenario can set goals for must be those that a run makes, and the other way round."""
    promised = [name for measure in tiny.measures for name in plan.figures_of(measure)]
    missing = set(promised) - set(result["figures"])
    assert set(result["figures"]) <= set(promised)
    # dd takes one stream, and `point` has two.
    assert {name for name in missing if "cpu_vs" not in name} == {"point.bandwidth_vs_dd_tee"}
    assert result["measures"][1]["points"][0]["absent"] == {
        "dd_tee_buffered": "it takes one stream",
        "dd_tee_direct": "it takes one stream",
    }
    for name, figure in result["figures"].items():
        measure = next(one for one in tiny.measures if name.startswith(f"{one.name}."))
        assert len(figure["rounds"]) == measure.rounds
        assert figure["min"] <= figure["quartiles"][0] <= figure["median"] <= figure["max"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_results_say_on_what_and_how_they_were_made(result: dict[str, Any]) -> None:
    """A figure without its machine, its command and its date is a guess."""
    assert (result["report"], result["version"]) == ("fanout bench run", 1)
    assert result["machine"]["processors"] >= 1
    assert result["machine"]["kernel"] == os.uname().release
    assert result["command"] == ["fanout", "bench", "run", "tiny.toml"]
    assert result["made_at"].endswith("Z")
    assert result["targets"]["files"]["count"] == 3


def test_goals_are_judged(result: dict[str, Any]) -> None:
    """Reached, half reached, and not measured must not look alike."""
    assert [goal["reached"] for goal in result["goals"]] == [[True], [True, False], [None]]
    small = result["measures"][3]
    assert set(small["pools_hold"].values()) == {2 * 3 * (3 + 20)}  # pools agree on the number


def test_command_line(tmp_path: Path) -> None:
    """What a person types: JSON on request, both files kept, the same content everywhere."""
    file = tmp_path / "s.toml"
    file.write_text(
        'title = "S"\n[targets.f]\nkind = "files"\nsize = "4 MiB"\ncount = 2\n'
        '[[measure]]\nname = "m"\nkind = "stream"\n[[goal]]\nfigure = "m.cpu"\nat_most = 1e9\n',
        encoding="utf-8",
    )
    html = tmp_path / "out" / "s.html"
    options = ["--rounds", "1", "--directory", str(tmp_path), "--html", str(html)]
    said = CliRunner().invoke(main, ["bench", "run", str(file), *options, "--json"])
    assert said.exit_code == Exit.COMPLETE, said.output
    kept = json.loads(html.with_suffix(".json").read_text(encoding="utf-8"))
    assert json.loads(said.stdout) == kept
    assert kept["command"][:6] == ["fanout", "bench", "run", str(file), "--rounds", "1"]
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out", "s.toml"]
    shown = CliRunner().invoke(main, ["bench", "run", str(file), *options])
    assert shown.exit_code == Exit.COMPLETE, shown.output
    assert "reached" in shown.output
    again = tmp_path / "again.html"
    command = ["bench", "report", str(html.with_suffix(".json")), str(again)]
    assert CliRunner().invoke(main, command).exit_code == Exit.COMPLETE
    assert again.read_text(encoding="utf-8") == html.read_text(encoding="utf-8")


def test_mistakes_end_with_the_code_for_them(tmp_path: Path) -> None:
    """10 for the file, 14 for a machine that is too small, 13 for a device that nobody gave free."""
    file = tmp_path / "s.toml"
    base = '[[measure]]\nname = "m"\nkind = "stream"\n'
    for text, code, said in (
        ('titel = "S"\n', Exit.CONFIG, 'did you mean "title"?'),
        (
            'title = "S"\n[targets.f]\nkind = "files"\nsize = "4096 TiB"\n' + base,
            Exit.UNSUITABLE,
            "the targets need",
        ),
        (
            'title = "S"\n[targets.d]\nkind = "devices"\npaths = ["/dev/null"]\n' + base,
            Exit.REFUSED,
            "/dev/null: what is on this device will be overwritten",
        ),
    ):
        file.write_text(text, encoding="utf-8")
        found = CliRunner().invoke(main, ["bench", "run", str(file), "--directory", str(tmp_path)])
        assert found.exit_code == code, found.output
        assert said in " ".join(found.output.split())
    found = CliRunner().invoke(main, ["bench", "run", str(file), "--force"])
    assert found.exit_code == Exit.UNSUITABLE
    assert "/dev/null: is not a block device" in found.output


def test_what_a_machine_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root the rest is measured, and nothing that was not looks measured."""
    monkeypatch.setattr(devices, "why_no_devices", lambda: "not root")
    text = (
        'title = "S"\n[targets.l]\nkind = "loops"\n[[measure]]\nname = "m"\nkind = "stream"\n'
        '[[goal]]\nfigure = "m.cpu"\nat_most = 1\n'
    )
    found = run.run(scenario.parse(text, path="s.toml"))
    assert found["absent"] == {"m": "loop devices: not root"}
    assert found["figures"] == {}
    assert found["goals"] == [
        {
            "figure": "m.cpu",
            "title": "m.cpu",
            "at": "most",
            "levels": [1.0],
            "value": None,
            "unit": "",
            "reached": [None],
        }
    ]
    assert "not measured" in page(found)


@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_every_backend(backend: str, tmp_path: Path) -> None:
    """A result that names a backend which did not run."""
    text = (
        'title = "S"\nrounds = 1\n[targets.f]\nkind = "files"\nsize = "4 MiB"\n'
        '[[measure]]\nname = "m"\nkind = "stream"\npeers = ["driver"]\n'
    )
    try:
        found: Any = run.run(
            scenario.parse(text, path="s.toml"), directory=tmp_path, backend=backend
        )
    except ConfigError as error:
        pytest.skip(str(error))
    assert found["measures"][0]["engine"]["backend"] == backend
    assert found["figures"]["m.bandwidth"]["median"] > 0


# ---- setting up and taking down -------------------------------------------------------------------


def spoil(wanted: plan.Targets, directory: Path) -> None:
    """Set targets up, write to them, and fail."""
    with places.standing(wanted, directory=directory) as place:
        for path in place.paths:
            assert Path(path).is_block_device() == (wanted.kind is plan.Kind.LOOPS)
            with open(path, "wb") as target:
                target.write(b"x")
        raise BenchmarkError("broken")


def test_files_go_also_after_a_failure(tmp_path: Path) -> None:
    """Gigabytes in the directory for temporary files."""
    wanted = spec(kind=plan.Kind.FILES, over=plan.Over.DISK)
    with pytest.raises(BenchmarkError, match="broken"):
        spoil(wanted, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.loop
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("over", list(plan.Over))
def test_loops_go_also_after_a_failure(tmp_path: Path, over: plan.Over) -> None:
    """Loop devices that nobody remembers, and the memory under them."""
    if why := places.why_not(spec()):
        pytest.skip(why)
    with pytest.raises(BenchmarkError, match="broken"):
        spoil(spec(over=over, sector_bytes=4096), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.loop
@pytest.mark.usefixtures("nothing_left")
def test_half_of_the_loops_go_when_one_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first device exists when the second fails."""
    if why := places.why_not(spec()):
        pytest.skip(why)
    real, calls = devices.run, []

    def second_fails(*command: str) -> str:
        if command[0] == "losetup" and "--show" in command:
            calls.append(command)
            if len(calls) == 2:
                raise devices.DeviceError("no more")
        return real(*command)

    monkeypatch.setattr(devices, "run", second_fails)
    with pytest.raises(devices.DeviceError, match="no more"), places.standing(spec()):
        pass
    assert len(calls) == 2


@pytest.mark.loop
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C in the middle of a measurement that holds loop devices, a control group and a slow target."""
    if why := places.why_not(spec()) or why_not():
        pytest.skip(why)
    file = tmp_path / "s.toml"
    file.write_text(
        'title = "S"\n[targets.l]\nkind = "loops"\ncount = 2\nsize = "16 MiB"\n'
        '[[measure]]\nname = "m"\nkind = "slow"\nseconds = "60 s"\n',
        encoding="utf-8",
    )
    command = [sys.executable, "-P", "-m", "fanout", "bench", "run", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for _ in range(600):
            if any("cgroup" in one for one in left(process.pid)):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
                pytest.fail(f"ended by itself: {process.communicate()[0]}")
        process.send_signal(number)
        assert process.wait(timeout=60) == Exit.INTERRUPTED
        assert left(process.pid) == set()
    finally:
        process.kill()
        process.communicate()


# ---- slow and hung --------------------------------------------------------------------------------


@pytest.mark.loop
@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_a_slow_target_is_seen_and_ejected() -> None:
    """A trace in which nothing is slow, an ejection that never comes, a process that stays throttled."""
    if why := places.why_not(spec()) or why_not():
        pytest.skip(why)
    group = Path("/proc/self/cgroup").read_text(encoding="ascii")
    measure = plan.SlowMeasure("s", "t", "S", 1, tuple(plan.Policy), 0.05, 1.0, 0.2)
    with places.standing(spec(size_bytes=32 * MIB)) as place:
        found = slow.run(measure, place, backend="auto", tell=lambda _: None)
    assert Path("/proc/self/cgroup").read_text(encoding="ascii") == group
    figures = {figure.name: figure.median for figure in found.figures}
    assert figures["s.healthy_rate_wait"] < 0.5  # paced by the slow one
    assert figures["s.healthy_rate_eject"] > figures["s.healthy_rate_wait"]
    traces: Any = found.record["traces"]
    assert "1" in traces["eject"]["ejected_seconds"]
    assert traces["wait"]["ejected_seconds"] == {}
    for trace in traces.values():
        start, end = trace["slowed_seconds"]
        assert 0 < start < end
        assert len(trace["mb_per_second"]) == 2


@pytest.mark.loop
@pytest.mark.usefixtures("nothing_left")
def test_a_hung_target_is_let_go_after_its_deadline() -> None:
    """A figure that would be the same if nothing had hung."""
    if why := places.why_not(spec()) or why_not():
        pytest.skip(why)
    measure = plan.HangMeasure("h", "t", "H", 2, 0.2)
    with places.standing(spec()) as place:
        found = hang.run(measure, place, backend="auto", tell=lambda _: None)
    (figure,) = found.figures
    assert figure.name == "h.detach"
    assert all(0 <= value < 5000 for value in figure.rounds)
