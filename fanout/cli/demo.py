"""``fanout demo``: the scenario, told on one screen after another."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from fanout.cli import screen, space
from fanout.cli.exits import Exit, Unsuitable
from fanout.cli.params import SIZE, json_option
from fanout.demo import inputs, scenario
from fanout.demo.devices import DeviceError
from fanout.demo.report import plain
from fanout.demo.site import POOLS
from fanout.units import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from fanout.demo.report import (
        Holding,
        InputReport,
        LossReport,
        PhaseReport,
        ProofReport,
        RepairReport,
        Report,
    )

GROUPS = "ABCDE"


@click.command(short_help="Pools fail, nothing is lost, gaps are closed: seconds")
@click.option(
    "--targets",
    type=click.Choice(["auto", "devices", "files"]),
    default="auto",
    show_default=True,
    help="Loop and zram devices (root), or files.",
)
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="For everything that is made.  [default: the directory for temporary files]",
)
@click.option(
    "--input",
    "roots",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="Take the real files from here.  [default: /usr/share, /usr/lib, …]",
)
@click.option(
    "--size", type=SIZE, default="200MiB", show_default=True, help="How much of real files."
)
@json_option
@click.pass_context
def demo(
    ctx: click.Context,
    *,
    targets: str,
    directory: Path | None,
    roots: tuple[str, ...],
    size: int,
    as_json: bool,
) -> None:
    """See pools fail, nothing lost, and every gap closed.

    Two clients store real files of this machine in five pools. COPYPOOL1 fails
    with a real error of the kernel, then ACTIVEDATAPOOL; the repair commands
    close the gaps; every object is read back from every pool and compared with
    a digest made by python-xxhash. Nothing is left behind.

    The exit code is 0 only if all of it was verified.
    """
    if size < scenario.LEAST_BYTES:
        least = format_size(scenario.LEAST_BYTES)
        raise click.BadParameter(f"at least {least} are needed", param_hint="--size")
    plan = scenario.Plan(
        directory=directory or Path(tempfile.gettempdir()),
        targets=targets,
        size_bytes=size,
        roots=roots or inputs.ROOTS,
    )
    space.require(
        plan.directory, plan.needed_bytes, mend="choose another --directory or a smaller --size"
    )
    try:
        report = scenario.run(plan, _Teller(quiet=as_json))
    except DeviceError as error:
        raise Unsuitable(str(error)) from error
    if as_json:
        screen.emit(plain(report))
    else:
        _show_end(report)
    if not report.ok:
        ctx.exit(Exit.INTEGRITY)


class _Teller:
    """Tells on the screen what happens, when it is known."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = screen.out()
        self._headings: set[str] = set()

    def _print(self, *what: RenderableType) -> None:
        if not self._quiet:
            for one in what:
                self._console.print(one)

    @contextlib.contextmanager
    def progress(self, what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A bar while something long runs."""
        with screen.progress(what, total_bytes, quiet=self._quiet) as bar:
            yield bar.add

    def prepared(self, report: InputReport, targets: str, why: str) -> None:
        """What will be stored, and where."""
        large = report.groups[inputs.LARGE_NAME]
        self._print(
            "[bold]fanout demo[/]: real files, real targets, real errors",
            "",
            f"{report.files - large.objects:,} files of this machine "
            f"({format_size(report.bytes - large.bytes)}) in groups A to D, "
            f"and one generated file E ({format_size(large.bytes)}).",
            f"Client N1, domain FASTRESTORE, stores A and B; client N2, domain NORMAL, stores C, D "
            f"and E. The five pools are {targets} ({why}).",
        )

    def phase(self, number: int, report: PhaseReport) -> None:
        """What happened, who holds what, what is missing."""
        fault = report.fault
        what = "all pools are well" if fault is None else f"{fault.pool} fails"
        self._print("", screen.heading(f"{number}  {what}"))
        if fault:
            self._print(f"{escape(fault.cause)}. The kernel answers {fault.errno}.")
        for retry in report.retries:
            self._print(
                screen.bullet(
                    f"{retry.node} sends {retry.transaction}: {retry.reason}. The transaction fails "
                    f"in every pool; {retry.node} sends it again, without {retry.pool} until the "
                    "session ends."
                )
            )
        self._print("", _pool_table(report), _gap_text(report))
        self._print(
            "[green]Exactly what the rules demand.[/]"
            if report.as_expected
            else "[bold red]NOT what the rules demand.[/]",
            f"{format_size(int(report.client_bytes_per_second))}/s from the clients, "
            f"{format_size(int(report.written_bytes_per_second))}/s to the pools.",
        )

    def repaired(self, report: RepairReport) -> None:
        """One line for each command."""
        left = (
            "no gap left"
            if not report.gaps_left
            else f"{screen.count(report.gaps_left, 'gap')} LEFT"
        )
        self._once("4  The gaps are closed")
        self._print(
            f"[bold]$ fanout {report.command}[/]",
            f"  {screen.count(report.copied_objects, 'object')}, {format_size(report.copied_bytes)} in "
            f"{format_seconds(report.seconds)}, {left}",
        )
        for name, reason in report.failed:
            self._print(screen.bullet(f"not copied: {name}: {reason}"))

    def _once(self, heading: str) -> None:
        if heading not in self._headings:
            self._headings.add(heading)
            self._print("", screen.heading(heading))

    def proven(self, report: ProofReport) -> None:
        """What was read back, and whether it agrees."""
        self._once("5  Every object is read back from every pool")
        if report.wrong:
            for line in report.wrong[:10]:
                self._print(f"[red]{escape(line)}[/]")
            self._print(
                f"[red bold]{len(report.wrong)} of {report.reads} differ[/] ({report.phase})"
            )
            return
        self._print(
            f"The store where the {report.phase.removesuffix(' fails')} had failed: "
            f"{report.reads:,} reads, {format_size(report.bytes)} in "
            f"{format_seconds(report.seconds)}. [green]Every digest is the source's[/], as "
            "python-xxhash computed it:",
            screen.bullet(", ".join(f"{pool} {count:,}" for pool, count in report.pools.items())),
        )

    def lost(self, report: LossReport) -> None:
        """The price of not repairing."""
        self._print("", screen.heading("6  What if fire had come before the repair?"))
        lost = ", ".join(report.lost)
        count = sum(one.objects for one in report.lost.values())
        size = format_size(sum(one.bytes for one in report.lost.values()))
        saved: dict[str, list[str]] = {}
        for group, pool in report.saved.items():
            saved.setdefault(pool, []).append(group)
        still = "; ".join(
            f"{' and '.join(groups)} only in {pool}" for pool, groups in saved.items()
        )
        self._print(
            f"With COPYPOOL1's gaps open, losing DISKPOOL, TAPEPOOL and COPYPOOL2 would have lost "
            f"[red]{lost or 'nothing'}[/] for good: {screen.count(count, 'object')}, {size}."
            + (f" Left: {still}." if still else ""),
            "'fanout query gap' had named every one of them from the moment they were stored."
            if report.gap_query_said
            else "[bold red]'fanout query gap' had NOT named all of them.[/]",
        )


def _pool_table(report: PhaseReport) -> RenderableType:
    rows = []
    for pool in POOLS:
        held = report.pools[pool]
        failed = report.fault is not None and report.fault.pool == pool
        name = f"[red]{pool}[/]" if failed else pool
        cells = [_cell(held.get(group)) for group in GROUPS]
        total = sum(one.bytes for one in held.values())
        rows.append((name, report.targets[pool], *cells, format_size(total) if total else "–"))
    headings = ("pool", "stands on", *GROUPS, "bytes")
    title = "Who holds how many objects of each group"
    return screen.table(headings, rows, title=title, right=range(2, 8))


def _cell(holding: Holding | None) -> str:
    return f"{holding.objects:,}" if holding else "[dim]–[/]"


def _gap_text(report: PhaseReport) -> RenderableType:
    if not report.gaps:
        return "No gaps."
    rows = [
        (gap.pool, gap.primary, f"{gap.objects:,}", format_size(gap.bytes)) for gap in report.gaps
    ]
    return screen.table(
        ("missing in", "of", "objects", "bytes"), rows, title="Gaps on record", right=(2, 3)
    )


def _show_end(report: Report) -> None:
    console = screen.out()
    written = sum(session.written_bytes for phase in report.phases for session in phase.sessions)
    seconds = sum(session.seconds for phase in report.phases for session in phase.sessions)
    console.print()
    console.print(
        f"Throughput: {format_size(int(written / seconds))}/s to the pools over all phases, retries "
        f"included, backend {report.backend}; all of it took {format_seconds(report.seconds)}."
    )
    console.print(f"[bold {'green' if report.ok else 'red'}]{escape(report.sentence)}[/]")
