"""Sizes and times as people write them: ``"64 MiB"``, ``"30 s"``, and back; names of objects for their eyes. Bytes are exact."""

from __future__ import annotations

import re
from fractions import Fraction

from fanout.errors import InterfaceError

SIZE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "PiB": 1 << 50,
}
TIME_UNITS = {
    "us": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "min": Fraction(60),
    "h": Fraction(3600),
}

MOST_SECONDS = 10**20  # as many as can be written with a unit; an integer of 400 digits is no float

_QUANTITY = re.compile(
    r"\s*(?P<number>[0-9]{1,20}(?:\.[0-9]{1,9})?)\s*(?P<unit>[A-Za-z]*)\s*", re.ASCII
)


def _quantity(text: str, units: dict[str, int] | dict[str, Fraction], example: str) -> Fraction:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a number with a unit; write it like {example}")
    # Units are told apart without regard to case: no two of a family differ in case alone.
    by_lower = {name.lower(): value for name, value in units.items()}
    factor = by_lower.get(match["unit"].lower())
    if factor is None:
        said = f"unknown unit {match['unit']!r}" if match["unit"] else "the unit is missing"
        raise ValueError(f"{text!r}: {said}; allowed: {', '.join(units)} (like {example})")
    return Fraction(match["number"]) * factor


def parse_size(value: str | int) -> int:
    """Bytes of a size.

    Args:
        value: ``"64 MiB"``, ``"1.5 GiB"``, ``"10 GB"``; an int is bytes.

    Raises:
        ValueError: not a size, an unknown unit, negative, or not a whole number of bytes; the
            message says what is allowed.
    """
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{value} is negative; a size is at least 0 bytes")
        return value
    size = _quantity(value, SIZE_UNITS, '"64 MiB"')
    if size.denominator != 1:
        raise ValueError(f"{value!r} is not a whole number of bytes")
    return int(size)


def parse_seconds(value: str | float) -> float:
    """Seconds of a time.

    Args:
        value: ``"30 s"``, ``"500 ms"``, ``"2 min"``; a number is seconds.

    Raises:
        ValueError: not a time, an unknown unit, negative, or not finite; the message says what
            is allowed.
    """
    if isinstance(value, (int, float)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{value} is not a time; seconds are finite and at least 0")
        if value > MOST_SECONDS:
            raise ValueError(f"{float(MOST_SECONDS):g} seconds are the most that a time can be")
        return float(value)
    return float(_quantity(value, TIME_UNITS, '"30 s"'))


def format_size(size: int) -> str:
    """A size for people, in binary units with three digits: ``"1.50 GiB"``; exact below 1 KiB."""
    amount, unit = float(size), "B"
    for name in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        # 1023.5 would round to "1024": go to the next unit just before.
        if abs(amount) < 1023.5:
            break
        amount, unit = amount / 1024, name
    if unit == "B":
        return f"{size} B"
    digits = max(0, 2 - (abs(amount) >= 9.995) - (abs(amount) >= 99.95))
    return f"{amount:.{digits}f} {unit}"


def format_seconds(seconds: float) -> str:
    """A time for people: ``"12 ms"``, ``"3.4 s"``, ``"2 min 5 s"``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def name_bytes(name: str | bytes) -> bytes:
    """The bytes of an object's name: text is UTF-8 with surrogate escapes, whatever the locale says.

    Raises:
        TypeError: neither text nor bytes.
        InterfaceError: text that cannot be written so.
    """
    if isinstance(name, bytes):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a name is str or bytes, not {type(name).__name__}")
    try:
        return name.encode() if name.isascii() else name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InterfaceError(f"{name!r} cannot be written as UTF-8: {error.reason}") from error


def checked_id(transaction: object) -> bytes:
    """A transaction's id itself, where it is bytes. Receipts and errors give it as text."""
    if isinstance(transaction, bytes):
        return transaction
    raise TypeError(
        f"a transaction id is bytes, not {type(transaction).__name__}; bytes.fromhex makes them of what a receipt or an error gives"
    )


def quoted(name: bytes) -> str:
    """The name of an object for people, in quotes: what is no UTF-8, or cannot be seen, as an escape."""
    text = name.decode("utf-8", "backslashreplace")
    seen = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return f"'{''.join(seen)}'"
