"""Places for the micro-benchmarks, memory that has been touched, and a report that can be kept."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from fanout.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fanout.engine import Target

MIB = 1 << 20


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Keep the statistics; a hundred thousand single samples and the host's name help nobody."""
    output_json["machine_info"].pop("node", None)
    output_json["machine_info"].get("cpu", {}).pop("flags", None)
    for one in output_json["benchmarks"]:
        one["stats"].pop("data", None)


@pytest.fixture(scope="session")
def noise() -> bytes:
    """Sixteen MiB that no device can compress away; more than the inner caches hold."""
    return random.Random(1).randbytes(16 * MIB)


@pytest.fixture
def engine() -> Iterator[Engine]:
    """The engine as a daemon has it: 64 MiB, the best backend."""
    with Engine() as opened:
        yield opened


@pytest.fixture
def targets(engine: Engine, tmp_path: Path) -> Iterator[Sequence[Target]]:
    """Three files of 64 MiB that were written once, so that no block is new to the file system."""
    paths = [tmp_path / f"target{number}" for number in range(3)]
    opened = []
    for path in paths:
        path.write_bytes(bytes(64 * MIB))
        opened.append(engine.open(path))
    yield opened
    for target, path in zip(opened, paths, strict=True):
        target.close()
        path.unlink()
