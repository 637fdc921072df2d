"""``fanout doctor``: what this machine and the targets can do, why, and what to change."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fanout.cli import checkup, screen
from fanout.cli.exits import Exit
from fanout.cli.params import json_option
from fanout.engine import Engine
from fanout.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType


@click.command(short_help="What this machine and your targets can do, and what to change")
@click.argument("targets", nargs=-1, type=click.Path(readable=False), metavar="[TARGET]...")
@click.option(
    "--backend",
    type=click.Choice(["auto", "io_uring", "threads"]),
    default="auto",
    help="Try this backend instead of the best one.",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, *, targets: tuple[str, ...], backend: str, as_json: bool) -> None:
    """Say what this machine and each TARGET can do, and what to change.

    TARGET is a file, a directory or a block device. Nothing is written to it.
    The exit code is 12 when a target cannot be used.
    """
    with Engine(backend=backend) as engine:
        machine = checkup.machine_facts(engine)
        examined = [checkup.target_facts(engine, path) for path in targets]
    advice = [*checkup.machine_advice(machine)]
    advice += [f"{one.path}: {line}" for one in examined for line in checkup.target_advice(one)]
    if as_json:
        screen.emit(
            {
                "ok": checkup.usable(examined),
                "machine": asdict(machine),
                "targets": [asdict(one) for one in examined],
                "advice": advice,
            }
        )
    else:
        _show(machine, examined, advice)
    if not checkup.usable(examined):
        ctx.exit(Exit.TARGET)


def _show(
    machine: checkup.MachineFacts, examined: Sequence[checkup.TargetFacts], advice: Sequence[str]
) -> None:
    console = screen.out()
    console.print(_machine_table(machine))
    for facts in examined:
        console.print(_target_table(facts))
    if advice:
        console.print("[bold]What to change[/]")
        for line in advice:
            console.print(screen.bullet(line))
    else:
        console.print("[green]Nothing to change.[/]")


def _machine_table(facts: checkup.MachineFacts) -> RenderableType:
    memory = f"{format_size(facts.memory_bytes)} on {checkup.HUGE_PAGES[facts.huge_pages]}"
    memory += ", registered" if facts.registered else ", not registered"
    if facts.reserved_huge_pages_free:
        memory += f"; {facts.reserved_huge_pages_free} reserved huge pages free"
    memlock = "no limit" if facts.memlock_bytes is None else format_size(facts.memlock_bytes)
    good = "green" if facts.backend == "io_uring" else "yellow"
    return screen.facts(
        "This machine",
        [
            ("backend", f"[{good}]{facts.backend}[/]"),
            ("why", screen.plain(facts.reason or "it is the best there is")),
            ("memory", memory),
            ("hash", f"XXH3, {facts.hash_isa}"),
            ("memlock", memlock + (" (root is not bound by it)" if facts.root else "")),
            ("huge pages", f"transparent: {facts.transparent_huge_pages or 'not in this kernel'}"),
            ("kernel", facts.kernel),
        ],
    )


def _target_table(facts: checkup.TargetFacts) -> RenderableType:
    if facts.problem:
        verdict = f"[red]cannot be used:[/] {screen.plain(facts.problem)}"
    elif facts.granule:
        verdict = "[green]O_DIRECT[/]" if facts.direct else "[yellow]buffered, no O_DIRECT[/]"
    else:
        verdict = "not tried"
    rows = [("kind", facts.kind + (f" on {facts.file_system}" if facts.file_system else ""))]
    rows.append(("writes", verdict))
    if facts.granule:
        align = f"writes {facts.granule:,} bytes"
        if facts.memory_align:
            align += f", memory {facts.memory_align:,}"
        if facts.sector_logical:
            align += f"; sectors {facts.sector_logical:,}/{facts.sector_physical:,}"
        rows.append(("alignment", align))
    if facts.size_bytes:
        rows.append(("size", format_size(facts.size_bytes)))
    if facts.free_bytes is not None:
        rows.append(("free", format_size(facts.free_bytes)))
    rows += [("", screen.plain(line)) for line in facts.details]
    return screen.facts(facts.path, rows)
