"""The end of the run says which tests the machine could not run, why, and how many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .needs import MISSING

if TYPE_CHECKING:
    import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each reason."""
    if MISSING:
        terminalreporter.section("faults that this machine cannot make")
        for reason, count in MISSING.most_common():
            terminalreporter.line(f"{count:5d} skipped: {reason}")
