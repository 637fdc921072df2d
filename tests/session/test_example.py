"""The daemon in examples/: what the documentation shows must run, and show what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "daemon_with_own_catalog.py"


@pytest.mark.parametrize(("arguments", "error"), [([], "EFBIG"), (["--scripted"], "EIO")])
def test_the_daemon_with_its_own_catalog(arguments: list[str], error: str) -> None:
    """Removal, the request to send again, and the gap, through the second door; by a real error of the kernel."""
    done = subprocess.run(
        [sys.executable, "-P", str(EXAMPLE), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "committed at attempt 1: 4 objects, complete" in done.stdout
    assert "attempt 1: TransactionRetry, COPYPOOL1 removed" in done.stdout
    assert "committed at attempt 2: 4 objects, DEGRADED" in done.stdout
    assert f"gap: COPYPOOL1 lacks 4 objects of DISKPOOL: write: {error} at" in done.stdout
    assert "COPYPOOL1: 4 objects, read back" in done.stdout
    assert "COPYPOOL2: 8 objects, read back" in done.stdout


def test_the_example_stays_short() -> None:
    """It promises to be read in one sitting."""
    assert len(EXAMPLE.read_text().splitlines()) <= 150
