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
from fanout.cli import screen, space
from fanout.cli.params import SIZE, force_option, json_option
from fanout.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

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
    help="Of fanout's engine.",
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


def _contender_table(report: dict[str, Any]) -> Table:
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


def _ratio_table(report: dict[str, Any]) -> Table:
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
