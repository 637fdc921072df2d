"""What the native core costs: a call into it, a hash, a slot handed over to three targets."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
import xxhash

from fanout import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

    from fanout.engine import Engine, Stream, Target

MIB = 1 << 20
ROOM = 64 * MIB


def placed(engine: Engine, targets: Sequence[Target]) -> Stream:
    """A stream over the targets, from their first byte."""
    stream = engine.stream(targets)
    stream.place([0] * len(targets), ROOM)
    return stream


def test_call_that_does_nothing(benchmark: BenchmarkFixture) -> None:
    """The floor under everything below: one call into the extension, one integer back."""
    benchmark.group = "core call"
    benchmark(_core.classify, 5)


@pytest.mark.parametrize("size", [1, 512, 4096])
def test_write_of_a_small_chunk(
    benchmark: BenchmarkFixture, engine: Engine, targets: Sequence[Target], noise: bytes, size: int
) -> None:
    """A chunk that fills no slot: the call, the copy and the hash, with no write started for it.

    100 chunks of at most 4 KiB are less than one slot. What is measured is the time of all 100.
    """
    benchmark.group = "100 small chunks"
    chunk = noise[:size]
    streams: list[Stream] = []

    def prepare() -> tuple[tuple[Stream], dict[str, object]]:
        streams.append(placed(engine, targets))
        return (streams[-1],), {}

    def write(stream: Stream) -> None:
        for _ in range(100):
            stream.write(chunk)

    def finish(stream: Stream) -> None:
        stream.abort()
        stream.close()

    benchmark.pedantic(write, setup=prepare, teardown=finish, rounds=50, warmup_rounds=3)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("digest", ["core", "xxhash", "sha256"])
def test_hash(benchmark: BenchmarkFixture, noise: bytes, digest: str) -> None:
    """XXH3-128 of 16 MiB in the core, by python-xxhash, and what SHA-256 would cost instead."""
    benchmark.group = "hash of 16 MiB"
    call = {
        "core": _core.digest,
        "xxhash": lambda data: xxhash.xxh3_128(data).digest(),
        "sha256": lambda data: hashlib.sha256(data).digest(),
    }[digest]
    benchmark(call, noise)


@pytest.mark.parametrize("count", [1, 3])
def test_slots_to_targets(
    benchmark: BenchmarkFixture, engine: Engine, targets: Sequence[Target], noise: bytes, count: int
) -> None:
    """64 MiB in chunks of 1 MiB from the caller's memory to one target and to three, flushed.

    Divided by 64: what a slot costs from the copy until its last completion is noted. The copy and the
    hash happen once, whatever the number of targets.
    """
    benchmark.group = "64 slots"
    chunks = [memoryview(noise)[start : start + MIB] for start in range(0, len(noise), MIB)] * 4

    def write() -> None:
        with placed(engine, targets[:count]) as stream:
            for chunk in chunks:
                assert stream.write(chunk) == 0
            assert all(outcome.ok for outcome in stream.sync().values())

    benchmark.pedantic(write, rounds=10, warmup_rounds=2)  # type: ignore[no-untyped-call]
