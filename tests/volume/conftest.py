"""Real engines, and loop devices that go away also when the test fails."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from fanout.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLOT = 64 << 10


@pytest.fixture
def real(no_leaks: None) -> Iterator[Engine]:
    """A small engine on whatever this machine runs."""
    with Engine(memory_bytes=64 * SLOT, slot_size_bytes=SLOT) as engine:
        yield engine


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Callable[[int, int], str]]:
    """Makes loop devices: (size, sector) -> path."""
    devices: list[str] = []

    def make(size: int, sector: int) -> str:
        image = tmp_path / f"loop{len(devices)}.img"
        with image.open("wb") as file:
            file.truncate(size)
        command = ["losetup", "--find", "--show", "--sector-size", str(sector), str(image)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        devices.append(found.stdout.strip())
        # A device keeps the read-only switch of whoever had it last.
        subprocess.run(["blockdev", "--setrw", devices[-1]], check=True)
        return devices[-1]

    try:
        yield make
    finally:
        for device in devices:
            subprocess.run(["losetup", "--detach", device], check=False)
