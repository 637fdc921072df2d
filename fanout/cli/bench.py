"""``fanout bench``: measured on this machine, against what one would use instead."""

from __future__ import annotations

import contextlib
import json
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fanout.bench import quick as quickly
from fanout.bench import report, results, scenario
from fanout.bench import run as running
from fanout.bench.places import PlaceError
from fanout.cli import screen, space
from fanout.cli.exits import Exit, Unsuitable
from fanout.cli.params import SIZE, force_option, json_option
from fanout.demo.devices import DeviceError
from fanout.errors import ConfigError
from fanout.units import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

TARGETS = 3
MIB = 1 << 20


@click.group(short_help="Measure against fio, Python threads and dd | tee")
def bench() -> None:
    """Measure fanout on this machine against what one would use instead.

    How the figures are made: benchmarks/README.md.
    """


@bench.command(short_help="All peers, the same targets, one interleaved run")
@click.option(
    "--targets",
    "-t",
    multiple=True,
    type=click.Path(),
    metavar="PATH",
    help="File or block device to write to, once for each (default: three files in --directory).",
)
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the default targets are made.  [default: the directory for temporary files]",
)
@click.option("--size", type=SIZE, default="256MiB", show_default=True, help="Bytes of one run.")
@click.option("--rounds", type=click.IntRange(1, 99), default=5, show_default=True)
@click.option(
    "--backend",
    type=click.Choice(["auto", "io_uring", "threads"]),
    default="auto",
    show_default=True,
    help="What fanout's engine uses.",
)
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Keep the JSON here.")
@force_option("Overwrite targets that exist.")
@json_option
def quick(
    *,
    targets: tuple[str, ...],
    directory: Path | None,
    size: int,
    rounds: int,
    backend: str,
    save: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare fanout with fio, Python threads and dd | tee.

    Everybody writes the same bytes to the same preallocated targets, in turn.
    fio is left out when it is not installed. Ratios are fanout's figure divided
    by the peer's, as the median over the rounds.
    """
    if size % MIB or not size:
        raise click.BadParameter("a multiple of 1 MiB is needed", param_hint="--size")
    with _targets(targets, directory, size, force=force) as paths, screen.status() as tell:
        report = quickly.quick(paths, size_bytes=size, rounds=rounds, backend=backend, on_step=tell)
    if save:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if as_json:
        screen.emit(report)
    else:
        _show(report)


_FILE = click.Path(dir_okay=False, path_type=Path)


@bench.command(short_help="A scenario from a file; JSON and an HTML report")
@click.argument("file", metavar="SCENARIO.toml", type=_FILE)
@click.option(
    "--save",
    type=_FILE,
    help="Keep the JSON here.  [default: FILE of the --html report, with .json]",
)
@click.option("--html", type=_FILE, help="Write the report here: one file, opens anywhere.")
@click.option("--rounds", type=click.IntRange(1, 99), help="Instead of the scenario's.")
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where targets on disk are made.  [default: the directory for temporary files]",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "io_uring", "threads"]),
    default="auto",
    show_default=True,
    help="What fanout's engine uses.",
)
@force_option("Overwrite the block devices that the scenario names.")
@json_option
def run(
    *,
    file: Path,
    save: Path | None,
    html: Path | None,
    rounds: int | None,
    directory: Path | None,
    backend: str,
    force: bool,
    as_json: bool,
) -> None:
    """Run a scenario: targets are set up, measured, taken down.

    Scenarios are kept in benchmarks/scenarios; benchmarks/README.md says how
    to write one. benchmarks/scenarios/cost.toml fills in the cost table.
    """
    with _mended_by("Correct the scenario; benchmarks/README.md says how to write one."):
        plan = scenario.load(file, rounds=rounds)
    for path in running.destroyed(plan):
        screen.confirm(f"{path}: what is on this device will be overwritten", force=force)
    command = ["fanout", "bench", "run", str(file), *_given(rounds, directory, backend)]
    try:
        with screen.status() as tell:
            result = running.run(
                plan, directory=directory, backend=backend, command=command, tell=tell
            )
    except (PlaceError, DeviceError) as error:
        raise Unsuitable(str(error)) from error
    if save is None and html is not None:
        save = html.with_suffix(".json")
    if save:
        results.save(result, save)
    if html:
        report.write(result, html)
    if as_json:
        screen.emit(result)
    else:
        _show_run(result)


def _given(rounds: int | None, directory: Path | None, backend: str) -> list[str]:
    """The options that change what is measured, for the record."""
    options: dict[str, object] = {
        "--rounds": rounds,
        "--directory": directory,
        "--backend": None if backend == "auto" else backend,
    }
    return [text for key, value in options.items() if value for text in (key, str(value))]


@bench.command("report", short_help="The HTML report of a result that was kept")
@click.argument("file", metavar="RESULT.json", type=_FILE)
@click.argument("html", metavar="REPORT.html", type=_FILE)
@json_option
def report_(*, file: Path, html: Path, as_json: bool) -> None:
    """Write the HTML report of a result of 'fanout bench run'.

    One file without anything from outside: it opens anywhere, also years later.
    """
    with _mended_by(_KEPT):
        result = results.load(file)
    try:
        report.write(result, html)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # Whoever has cut something out of a result by hand gets a word, not a traceback.
        raise ConfigError(f"lacks what a report shows: {error!r}", path=str(file)) from error
    if as_json:
        screen.emit({"ok": True, "report": str(html)})


_KEPT = "Name a file that 'fanout bench run --save FILE' has kept."


@contextlib.contextmanager
def _mended_by(mend: str) -> Iterator[None]:
    """A file that is wrong here is no fanout.toml."""
    try:
        yield
    except ConfigError as error:
        error.add_note(mend)
        raise


@bench.command(short_help="Has anything become slower? Exit code 15 says yes")
@click.argument("before", metavar="BEFORE.json", type=_FILE)
@click.argument("after", metavar="AFTER.json", type=_FILE)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 10),
    default=results.TOLERANCE,
    show_default=True,
    help="How much worse a median may be: 0.1 is a tenth.",
)
@click.option(
    "--absolute",
    is_flag=True,
    help="Judge speeds and times as well, not only ratios to what ran beside.",
)
@json_option
@click.pass_context
def compare(
    ctx: click.Context,
    *,
    before: Path,
    after: Path,
    tolerance: float,
    absolute: bool,
    as_json: bool,
) -> None:
    """Compare two results of 'fanout bench run'.

    A figure is worse when its median is worse by more than the tolerance and
    the middle halves of the rounds no longer overlap. Exit code 0: none that
    is judged is worse; 15: one is.
    """
    with _mended_by(_KEPT):
        earlier, later = results.load(before), results.load(after)
    found = results.compare(earlier, later, tolerance=tolerance, absolute=absolute)
    if as_json:
        screen.emit(results.to_json(found))
    else:
        _show_comparison(found)
    if found.regressions:
        ctx.exit(Exit.REGRESSION)


@contextlib.contextmanager
def _targets(
    named: tuple[str, ...], directory: Path | None, size: int, *, force: bool
) -> Iterator[list[str]]:
    """The targets that were named, or three files that are removed afterwards."""
    if named:
        for path in named:
            _check(path, size, force=force)
        fresh = [Path(path) for path in named if not Path(path).exists()]
        try:
            yield list(named)
        finally:
            for place in fresh:
                place.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="fanout-bench-", dir=directory) as made:
        space.require(
            Path(made), TARGETS * size, mend="choose a smaller --size or another --directory"
        )
        yield [f"{made}/target{number}" for number in range(TARGETS)]


def _check(path: str, size: int, *, force: bool) -> None:
    place = Path(path)
    if not place.exists():
        return
    what = "device" if stat.S_ISBLK(place.stat().st_mode) else "file"
    screen.confirm(
        f"{path}: the first {format_size(size)} of this {what} will be overwritten", force=force
    )


def _show(report: dict[str, Any]) -> None:
    console = screen.out()
    settings, engine = report["settings"], report["engine"]
    console.print(
        f"{len(settings['targets'])} {settings['kind']}, {format_size(settings['size_bytes'])} each, "
        f"{settings['rounds']} rounds, backend {engine['backend']}"
    )
    console.print(_contender_table(report))
    console.print(_ratio_table(report))
    for name, why in report["absent"].items():
        console.print(
            screen.bullet(
                f"left out: {why}" if why.startswith(name) else f"left out: {name}: {why}"
            )
        )


def _contender_table(report: dict[str, Any]) -> RenderableType:
    rows = []
    for one in report["contenders"].values():
        speed, cpu = one["aggregate_mb_per_second"], one["cpu_ms_per_client_gib"]
        rows.append(
            (
                one["title"],
                f"{speed['median']:,.0f}",
                f"{speed['min']:,.0f} to {speed['max']:,.0f}",
                f"{cpu['median']:,.0f}",
                f"{one['machine_cpu_ms_per_client_gib']['median']:,.0f}",
            )
        )
    headings = ("", "MB/s", "spread", "CPU ms/GiB", "machine")
    return screen.table(headings, rows, right=(1, 2, 3, 4))


def _ratio_table(report: dict[str, Any]) -> RenderableType:
    rows = []
    for question in quickly.QUESTIONS:
        spread = report["spread"][question.key]
        goal = "" if question.goal is None else f"{question.goal:g}"
        if spread is None:
            rows.append((question.title, "–", "", goal, "not measured"))
            continue
        reached, sign = True, "≥ "
        if question.goal is not None:
            less = question.figure == "cpu"
            sign = "≤ " if less else "≥ "
            value = spread["median"]
            reached = value <= question.goal if less else value >= question.goal
        verdict = "" if not goal else "[green]reached[/]" if reached else "[red]missed[/]"
        rows.append(
            (
                question.title,
                f"{spread['median']:.2f}",
                f"{spread['min']:.2f} to {spread['max']:.2f}",
                sign + goal if goal else "",
                verdict,
            )
        )
    return screen.table(("fanout's …", "ratio", "spread", "goal", ""), rows, right=(1, 2, 3))


# ---- scenarios -----------------------------------------------------------------------------------


def _show_run(result: dict[str, Any]) -> None:
    console = screen.out()
    machine = result["machine"]
    console.print(
        f"{screen.plain(result['scenario']['title'])}: {machine['processors_usable']} processors,"
        f" Linux {machine['kernel']}, load {machine['load_before']} before,"
        f" {format_seconds(result['seconds'])}"
    )
    if result["goals"]:
        console.print(_goal_table(result))
    console.print(_figure_table(result))
    for name, why in result["absent"].items():
        console.print(screen.bullet(f"left out: {name}: {why}"))


def _goal_table(result: dict[str, Any]) -> RenderableType:
    rows = []
    for goal in result["goals"]:
        sign = "≥" if goal["at"] == "least" else "≤"
        levels = [f"{sign} {level:g}" for level in goal["levels"]]
        value = "–" if goal["value"] is None else f"{goal['value']:,.4g} {goal['unit']}".strip()
        rows.append(
            (
                screen.plain(goal["title"]),
                value,
                *[*levels, ""][:2],
                _reached(goal["reached"]),
            )
        )
    return screen.table(("", "measured", "first", "then", ""), rows, right=(1, 2, 3))


def _reached(levels: list[bool | None]) -> str:
    if None in levels:
        return "not measured"
    if all(levels):
        return "[green]reached[/]"
    return "[yellow]first reached[/]" if levels[0] else "[red]missed[/]"


def _figure_table(result: dict[str, Any]) -> RenderableType:
    rows = [
        (
            screen.plain(name),
            f"{one['median']:,.4g}",
            f"{one['min']:,.4g} to {one['max']:,.4g}",
            one["unit"],
        )
        for name, one in result["figures"].items()
    ]
    return screen.table(("figure", "median", "spread", ""), rows, right=(1, 2))


_COLOURS = {"better": "green", "worse": "red", "same": "dim"}


def _show_comparison(found: results.Comparison) -> None:
    console = screen.out()
    moved = [one for one in found.changes if one.verdict is not results.Verdict.SAME]
    if moved:
        headings = ("figure", "before", "after", "change", "")
        console.print(screen.table(headings, map(_changed, moved), right=(1, 2, 3)))
    same = len(found.changes) - len(moved)
    console.print(f"{screen.count(same, 'figure')} the same within noise and tolerance")
    for note in found.notes:
        console.print(screen.bullet(note))
    if found.gone:
        console.print(screen.bullet(f"only before, nobody knows: {', '.join(found.gone)}"))
    console.print(_sentence(found))


def _changed(one: results.Change) -> tuple[str, ...]:
    colour = _COLOURS[one.verdict.value]
    said = one.verdict.value if one.judged else f"{one.verdict.value}, not judged"
    return (
        screen.plain(one.name),
        f"{one.before:,.4g} {one.unit}".strip(),
        f"{one.after:,.4g} {one.unit}".strip(),
        f"{one.after / one.before - 1:+.1%}",
        f"[{colour}]{said}[/]",
    )


def _sentence(found: results.Comparison) -> str:
    worst = found.regressions
    if worst:
        first = worst[0]
        return (
            f"[bold red]Worse[/]: {screen.count(len(worst), 'figure')}; most of all"
            f" {screen.plain(first.name)}, by {abs(first.gain):.1%}"
        )
    if found.verdict is results.Verdict.BETTER:
        return "[bold green]Better[/]: nothing is worse"
    return "[bold]The same[/]: nothing is worse"
