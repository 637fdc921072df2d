"""Engines of every backend with small slots, and a writer that says what each target got."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import xxhash

from fanout.engine import Engine, Fault, Target
from fanout.errors import ConfigError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from fanout.types import Outcome

SLOT = 64 << 10
SLOTS = 64


@functools.cache
def runs(backend: str) -> bool:
    """Whether this machine can run a backend (containers often forbid io_uring)."""
    try:
        Engine(backend=backend, memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT).close()
    except ConfigError:
        return False
    return True


@pytest.fixture(params=["io_uring", "threads"])
def engine(request: pytest.FixtureRequest, no_leaks: None) -> Iterator[Engine]:
    """A real engine, once with each backend."""
    if not runs(request.param):
        pytest.skip(f"{request.param} cannot run here")
    with Engine(backend=request.param, memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT) as made:
        yield made


@pytest.fixture
def faulty(rng: random.Random, no_leaks: None) -> Iterator[Engine]:
    """The engine's own logic over scripted faults and a simulated clock."""
    with Engine(
        backend="faulty",
        memory_bytes=SLOTS * SLOT,
        slot_size_bytes=SLOT,
        soft_deadline=30.0,
        hard_deadline=120.0,
        seed=rng.getrandbits(32),
    ) as made:
        yield made


@dataclass
class Run:
    """What came of one stream."""

    targets: list[Target]
    outcomes: dict[Target, Outcome]
    digest: bytes
    sums: bytes
    data: bytes

    def media(self, index: int) -> bytes:
        """What the file holds, padding cut off."""
        with open(self.targets[index].path, "rb") as file:
            return file.read(len(self.data))

    def check_healthy(self, *indexes: int) -> None:
        """These targets hold every byte, and the digest is the independent library's."""
        for index in indexes:
            assert self.outcomes[self.targets[index]].ok, self.outcomes
            assert self.media(index) == self.data
        assert self.digest == xxhash.xxh3_128_digest(self.data)


def block_sums(data: bytes, block: int = SLOT) -> bytes:
    """What `Stream.sums` should say, by python-xxhash."""
    return b"".join(
        xxhash.xxh3_64_intdigest(data[at : at + block]).to_bytes(8, "little")
        for at in range(0, len(data), block)
    )


@pytest.fixture
def pour(tmp_path: Path) -> Callable[..., Run]:
    """Write data to new files through one stream and return everything that can be compared."""

    def write(
        engine: Engine,
        chunks: Sequence[bytes],
        *,
        count: int = 3,
        faults: Callable[[list[Target]], list[Fault]] = lambda targets: [],
        depth: int = 0,
    ) -> Run:
        targets = [
            engine.open(tmp_path / f"target{i}", create=True, depth=depth) for i in range(count)
        ]
        if scripted := faults(targets):
            engine.set_faults(scripted)
        with engine.stream(targets) as stream:
            stream.place([0] * count)
            for chunk in chunks:
                stream.write(chunk)
            digest, sums = stream.digest(), stream.sums()
            outcomes = stream.sync()
        return Run(targets, outcomes, digest, sums, b"".join(chunks))

    return write
