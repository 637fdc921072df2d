"""What the tests of this directory share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.crash.site import CrashSite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[CrashSite]:
    """A site; not created yet. Its volumes are removed at the end."""
    made = CrashSite(tmp_path)
    yield made
    made.remove()
