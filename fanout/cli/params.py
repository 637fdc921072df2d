"""Typed arguments and the options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from fanout.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

if TYPE_CHECKING:
    _ParamType = click.ParamType[int]
else:
    _ParamType = click.ParamType  # generic only to the type checker in older versions

F = TypeVar("F", bound="Callable[..., Any]")


class Size(_ParamType):
    """A number of bytes: ``256MiB``, ``1.5 GiB``, ``4096``."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Bytes; a bare number is bytes."""
        try:
            return parse_size(int(value) if str(value).isdecimal() else value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = Size()


def _remember_json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    # Errors must know as well, and they are told where no command is.
    ctx.find_root().ensure_object(dict)["json"] = value
    return value


def json_option(command: F) -> F:
    """``--json``: one JSON object on standard output, nothing else."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        callback=_remember_json,
        is_eager=True,
        help="One JSON object on standard output, for scripts.",
    )(command)


def _remember_config(ctx: click.Context, option: click.Parameter, value: Path) -> Path:
    # For advice that is to be typed: `fanout.cli.exits.typed`.
    if option.name and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
        ctx.find_root().ensure_object(dict)["config"] = value
    return value


def config_option(command: F) -> F:
    """``--config``: where the store is described."""
    return click.option(
        "--config",
        "-c",
        callback=_remember_config,
        is_eager=True,
        type=click.Path(readable=False, path_type=Path),  # what is wrong with it is a ConfigError
        envvar="FANOUT_CONFIG",
        default="fanout.toml",
        show_default=True,
        show_envvar=True,
        help="The store's configuration.",
    )(command)


def force_option(what: str) -> Callable[[F], F]:
    """``--force``: do what destroys something, without asking."""

    def add(command: F) -> F:
        return click.option("--force", is_flag=True, help=what)(command)

    return add
