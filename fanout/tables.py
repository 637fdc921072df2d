"""One table of a TOML file: typed look-ups that know their dotted key.

Every mistake is a `ConfigError` that names the file, the key, and what is allowed there. A reader asks for what it knows and gets
checked values; a key that nobody knows is refused, with the nearest that somebody does.
"""

from __future__ import annotations

import difflib
import enum
import os
import re
import tomllib
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from fanout.errors import ConfigError
from fanout.units import format_size, parse_seconds, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)
N = TypeVar("N", int, float)

MAX_KEY = 200  # characters of a key in a message
MAX_FILE = 1 << 20  # bytes of the file: some ten thousand volumes
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+&@-]*", re.ASCII)


def read(path: str | os.PathLike[str]) -> str:
    """The text of a TOML file.

    Raises:
        ConfigError: it cannot be read, is larger than `MAX_FILE`, or is not UTF-8.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            raw = file.read(MAX_FILE + 1)  # a device or a pipe may have no end
        if len(raw) > MAX_FILE:
            raise ConfigError(f"is larger than {format_size(MAX_FILE)}", path=name)
        return raw.decode()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", path=name) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"is not UTF-8 (byte {error.start}); TOML files are", path=name
        ) from error


def parse(text: str, *, path: str, allowed: Iterable[str]) -> Table:
    """The outermost table of a TOML file.

    Args:
        text: TOML.
        path: names the file in messages; its directory anchors relative paths.
        allowed: keys.

    Raises:
        ConfigError: the text is not TOML, or has another key.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or a number of 5,000 digits
        raise ConfigError(f"is not valid TOML: {error}", path=path) from error
    return Table(path, "", data, allowed)


class Table:
    """One table of the file. Every look-up raises `ConfigError` for a value that is not what it should be.

    Args:
        path: names the file in messages; its directory anchors relative paths.
        key: dotted place of the table in the file; empty for the outermost.
        data: what stands there.
        allowed: its keys; None: the caller looks at them with `only`.
    """

    def __init__(self, path: str, key: str, data: object, allowed: Iterable[str] | None) -> None:
        self.path, self.key = path, key
        if not isinstance(data, dict):
            raise ConfigError(f"must be a table, found {said_of(data)}", path=path, key=key)
        self.data: dict[str, Any] = data
        if allowed is not None:
            self.only(*allowed)

    def only(self, *allowed: str) -> None:
        """Refuse every other key, with the nearest allowed one."""
        for name in self.data:
            if name not in allowed:
                near = difflib.get_close_matches(name, allowed, n=1)
                hint = f'; did you mean "{near[0]}"?' if near else ""
                raise self.error(
                    name, f"unknown key{hint} (allowed here: {', '.join(sorted(allowed))})"
                )

    def dotted(self, name: str) -> str:
        """The place of a key in the file."""
        return f"{self.key}.{name}" if self.key else name

    def error(self, name: str, message: str) -> ConfigError:
        """A mistake at this key; `message` says what is wrong and what is allowed."""
        key = self.dotted(name)
        shown = key if len(key) <= MAX_KEY else f"{key[:MAX_KEY]}…"
        return ConfigError(message, path=self.path, key=shown)

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def table(self, name: str, allowed: Iterable[str]) -> Table:
        """A table within, which must be there."""
        if name not in self.data:
            raise self.error(name, "this section is missing")
        return Table(self.path, self.dotted(name), self.data[name], allowed)

    def named(self, name: str, limit: int, make: Callable[[str, Table], T]) -> Mapping[str, T]:
        """A section of named tables. A missing section is empty."""
        section = Table(self.path, self.dotted(name), self.data.get(name, {}), None)
        made: dict[str, T] = {}
        seen: dict[str, str] = {}
        for key, value in section.data.items():
            if len(key) > limit or not _NAME.fullmatch(key):
                allowed = "letters, digits, and _ . + & @ - after the first"
                raise section.error(key, f"not a name: 1 to {limit} characters, {allowed}")
            other = seen.setdefault(key.lower(), key)
            if other != key:
                raise section.error(
                    key, f'differs only in case from "{other}", and names are found in any case'
                )
            made[key] = make(key, Table(self.path, section.dotted(key), value, None))
        return MappingProxyType(made)

    def _typed(self, name: str, kind: type[T], what: str) -> T | None:
        value = self.data.get(name)
        # bool is an int to Python, but `true` is no size.
        if value is not None and (
            not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
        ):
            raise self.error(name, f"must be {what}, found {said_of(value)}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string that is not empty; without a default it must be there."""
        value = self._typed(name, str, "a string")
        value = default if value is None else value
        if not value:
            raise self.error(
                name, "this key is missing" if name not in self.data else "must not be empty"
            )
        return value

    def optional_text(self, name: str) -> str | None:
        """A string that is not empty, or None when there is none."""
        return self.text(name) if name in self.data else None

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self._typed(name, bool, "true or false")
        return default if value is None else value

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        """A whole number within bounds."""
        value = self._typed(name, int, "a whole number")
        return default if value is None else self._within(name, value, low, high)

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number, whole or not, within bounds."""
        value = self.data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(name, f"must be a number, found {said_of(value)}")
        return self._within(name, float(value), low, high)

    def integers(
        self, name: str, default: tuple[int, ...], *, low: int, high: int
    ) -> tuple[int, ...]:
        """A whole number within bounds, or several different ones."""
        if not isinstance(self.data.get(name), list):
            return (self.integer(name, 0, low=low, high=high),) if name in self.data else default
        for key, value in self._items(name):
            if isinstance(value, bool) or not isinstance(value, int):
                raise self.error(key, f"must be a whole number, found {said_of(value)}")
            self._within(key, value, low, high)
        return tuple(self.data[name])

    def _within(self, name: str, value: N, low: N, high: N) -> N:
        if not low <= value <= high:
            raise self.error(name, f"must be {low} to {high}, found {_shown(value)}")
        return value

    def _items(self, name: str) -> list[tuple[str, Any]]:
        """The members of a list, each with its key; at least one, and none twice."""
        values = self.data[name]
        if not values:
            raise self.error(name, "must not be empty")
        for index, value in enumerate(values):
            if value in values[:index]:
                raise self.error(f"{name}[{index}]", f"{_shown(value)} is listed twice")
        return [(f"{name}[{index}]", value) for index, value in enumerate(values)]

    def choice(self, name: str, kind: type[E], default: E | None = None) -> E:
        """One of the values of an enumeration."""
        value = self.text(name, None if default is None else str(default.value))
        try:
            return kind(value)
        except ValueError:
            allowed = [str(member.value) for member in kind]
            near = difflib.get_close_matches(value, allowed, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise self.error(
                name, f"{_shown(value)} is not one of {', '.join(allowed)}{hint}"
            ) from None

    def size(self, name: str, default: int | None = None) -> int | None:
        """Bytes, at least one."""
        return self._size(name, self.data[name]) if name in self.data else default

    def sizes(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Bytes, or several different sizes."""
        if not isinstance(self.data.get(name), list):
            return (self._size(name, self.data[name]),) if name in self.data else default
        return tuple(self._size(key, value) for key, value in self._items(name))

    def _size(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise self.error(
                name, f'must be a size like "64 MiB" or a number of bytes, found {said_of(value)}'
            )
        try:
            size = parse_size(value)
        except ValueError as error:
            raise self.error(name, str(error)) from error
        if size == 0 or size >= 1 << 63:
            raise self.error(
                name, f"must be at least 1 byte and below 8 EiB, found {_shown(value)}"
            )
        return size

    def seconds(self, name: str, default: float) -> float:
        """A time."""
        value = self.data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise self.error(
                name, f'must be a time like "30 s" or a number of seconds, found {said_of(value)}'
            )
        try:
            seconds = parse_seconds(value)
        except ValueError as error:
            raise self.error(name, str(error)) from error
        if not 0.001 <= seconds <= 86400 * 365:
            raise self.error(name, f"must be 1 ms to one year, found {_shown(value)}")
        return seconds

    def file(self, name: str) -> Path:
        """A path, absolute; a relative one starts at the file's directory."""
        text = self.text(name)
        if "\0" in text:
            raise self.error(name, "a path cannot hold a zero byte")
        base = Path(os.path.abspath(self.path)).parent
        path = Path(os.path.abspath(base / text))
        if any("\udc80" <= one <= "\udcff" for one in str(path)):  # the catalog keeps paths as text
            raise self.error(name, f"{path}: a path has to be UTF-8; rename the directory")
        return path

    def names(self, name: str) -> tuple[str, ...]:
        """A list of different strings; a missing one is empty."""
        values = self._typed(name, list, "a list of names") or []
        seen: set[str] = set()
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(f"{name}[{index}]", f"must be a name, found {said_of(value)}")
            if value in seen:
                raise self.error(f"{name}[{index}]", f'"{value}" is listed twice')
            seen.add(value)
        return tuple(values)

    def tables(self, name: str, allowed: Iterable[str] | None) -> list[Table]:
        """A list of tables; a missing one is empty."""
        values = self._typed(name, list, "a list of tables") or []
        return [
            Table(self.path, self.dotted(f"{name}[{index}]"), value, allowed)
            for index, value in enumerate(values)
        ]


_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table",
}


def said_of(value: object) -> str:
    """What stands there instead, for a message."""
    return f"{_WORDS.get(type(value), 'a date or time')} ({_shown(value)})"


def _shown(value: object) -> str:
    """A value, at most 60 characters of it. Python refuses to write integers of more than 4,300 digits."""
    try:
        return f"{value!r:.60}"
    except ValueError:
        return "a very large number"
