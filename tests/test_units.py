"""What people are shown."""

from __future__ import annotations

import pytest

from fanout.units import quoted


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"holiday.jpg", "'holiday.jpg'"),
        ("gr\u00f6\u00dfe/\u65e5".encode(), "'gr\u00f6\u00dfe/\u65e5'"),
        (b"\xff\xfe/a", r"'\xff\xfe/a'"),
        (b"a\nfanout: all is well\x1b[2J", r"'a\nfanout: all is well\x1b[2J'"),
        ("\u202etxt.exe".encode(), r"'\u202etxt.exe'"),
    ],
    ids=["plain", "not ASCII", "not UTF-8", "control characters", "turns the line round"],
)
def test_names_are_shown_as_they_are_and_do_nothing(name: bytes, shown: str) -> None:
    """A name is whatever a client has sent: it must not write on somebody's terminal, or into a log, what it likes."""
    assert quoted(name) == shown
