"""The command line. This file is the face: names, groups and one line for each command.

A command's module is imported when the command runs, so that ``fanout --help`` stays quick, and
``fanout doctor`` works where something else does not.

``exits``       exit codes, and what an error means to an operator
``screen``      tables, progress bars, JSON
``params``      sizes and other typed arguments
``interrupts``  Ctrl-C, wherever it strikes
The other modules hold one command or one group of commands each.
"""

from __future__ import annotations

import difflib
import importlib
import io
import sys
from typing import Any, NamedTuple

import click

import fanout
from fanout.cli.exits import Exit, complain, deafen, leave, place_of_option, stand_in, tell_usage
from fanout.cli.interrupts import heard


class Entry(NamedTuple):
    """One line of the help: where the command lives and what it does."""

    home: str
    help: str


# Section -> command -> entry. The order is that of the screen.
FACE: dict[str, dict[str, Entry]] = {
    "See it work": {
        "demo": Entry("demo:demo", "Pools fail, nothing is lost, gaps are closed: seconds"),
        "doctor": Entry(
            "doctor:doctor", "What this machine and your targets can do, and what to change"
        ),
        "bench": Entry("bench:bench", "Measure against fio, Python threads and dd | tee"),
    },
    "Without pools": {
        "tee": Entry("tee:tee", "One source to several files or devices, checksummed"),
    },
    "A store": {
        "init": Entry("store:init", "Create the catalog and the volumes of fanout.toml"),
        "put": Entry("store:put", "Store files, trees or standard input in every pool at once"),
        "get": Entry("store:get", "Read back, verified, from any pool that holds it"),
        "delete": Entry("delete:delete", "Delete versions of objects from every pool"),
        "query": Entry("query:query", "Pools, volumes, catalog, objects, occupancy, gaps"),
    },
    "Close gaps": {
        "backup": Entry("reconcile:backup", "Copy to a copy pool what it lacks; copy the catalog"),
        "copy": Entry("reconcile:copy", "Copy to an active-data pool what it lacks"),
        "restore": Entry("reconcile:restore", "Copy back to a primary pool what it has lost"),
    },
    "Trust it": {
        "check": Entry("verify:check", "Verify catalog, volumes and every byte; change nothing"),
        "audit": Entry("mend:audit", "Read all that a pool holds; turn damage into gaps"),
        "retire": Entry("mend:retire", "Give a lost volume up; what it held becomes gaps"),
        "rebuild": Entry("verify:rebuild", "Make the catalog anew from the volumes"),
    },
}

ENTRIES = {name: entry for section in FACE.values() for name, entry in section.items()}


class Face(click.Group):
    """The top of the command line: commands loaded on use, listed by what they are for.

    Errors that one may expect end in one line with the mend and an exit code of their own.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the screen."""
        return list(ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and take the command out of it."""
        entry = ENTRIES.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.home.partition(":")
        command: click.Command = getattr(importlib.import_module(f"fanout.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say which command was probably meant."""
        if args and args[0] not in ENTRIES and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], ENTRIES, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"there is no command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section for each purpose, all with the same column."""
        width = max(map(len, ENTRIES))
        for section, entries in FACE.items():
            with formatter.section(section):
                formatter.write_dl(
                    [(name.ljust(width), entry.help) for name, entry in entries.items()]
                )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands first: options are the least of it."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run from the command line; also a help that cannot be printed is no traceback."""
        stand_in()
        if isinstance(sys.stdout, io.TextIOWrapper):  # strict, or in the C locale surrogateescape
            # A terminal that has no dash has an escape.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().main(*args, **extra)
        except OSError as error:
            deafen(sys.stdout)
            complain(f"standard output: {error.strerror}")
            sys.exit(Exit.TARGET)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember ``--json`` before anything can be wrong with the rest."""
        ctx.ensure_object(dict)["json"] = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            better = place_of_option(error)
            tell_usage(ctx, better)
            raise better from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn expected errors into a line and an exit code."""
        try:
            screen = importlib.import_module("fanout.cli.screen")  # not for a help
            with heard(), screen.Told():
                return super().invoke(ctx)
        except click.UsageError as error:
            better = place_of_option(error)
            tell_usage(ctx, better)
            raise better from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            leave(ctx, error)


EPILOG = """\b
Example, as root or not, no set-up needed:
  fanout demo
  fanout tee backup.img /mnt/a/backup.img /mnt/b/backup.img

\b
Exit codes: 0 complete, 3 stored but not everywhere, 7 gaps are left;
all others are in docs/cli.md. Every command takes --help and --json.
"""


@click.group(
    cls=Face,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog=EPILOG,
    no_args_is_help=True,
)
@click.version_option(fanout.__version__, "-V", "--version", message="fanout %(version)s")
@click.option(
    "--debug",
    is_flag=True,
    envvar="FANOUT_DEBUG",
    help="Show the traceback of an error as well.",
)
@click.pass_context
def main(ctx: click.Context, *, debug: bool) -> None:
    """Land a client's bytes on every storage pool at once, and know what happened on each."""
    ctx.ensure_object(dict)["debug"] = debug
