"""A result as one HTML page that needs nothing else: style and drawings are in it, and it opens anywhere, also years later.

``page``      the page and its style sheet
``sections``  what is shown of each kind of measure
``charts``    lines, bars, ratios, traces
``svg``       a small pen for them
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.bench.report.page import page

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["page", "write"]


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write the report of a result, and make the directory for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(result), encoding="utf-8")
