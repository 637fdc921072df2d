"""A program that is interrupted a thousand times: `python interrupted.py BACKEND DIRECTORY COUNT SEED` prints JSON.

SIGALRM raises KeyboardInterrupt at a random moment of a round that opens, writes, leases, reads, syncs, finishes and closes, and
every 5 rounds in the life of a whole engine. What was interrupted in the middle of `write` is taken up again at `position`. It
runs in a process of its own because an interrupt may hit anything, also what pytest does.
"""

from __future__ import annotations

import collections
import gc
import json
import math
import os
import random
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import xxhash

from fanout.engine import Engine, Request, Stream
from fanout.types import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

SLOT = 64 << 10
SETTINGS: dict[str, Any] = {"memory_bytes": 64 * SLOT, "slot_size_bytes": SLOT, "max_streams": 4}

BYTES = random.Random(0).randbytes(24 * SLOT)
armed = False
usual: dict[
    Callable[..., None], float
] = {}  # seconds that a piece of work takes in peace, a running mean
where: collections.Counter[str] = collections.Counter()


def interrupt(_number: int, frame: Any) -> None:
    """Raise, unless the program is between two rounds."""
    if not armed:
        return
    names = [entry.name for entry in traceback.extract_stack(frame) if "/fanout/" in entry.filename]
    where.update({"interrupts", *(names or ["outside"])})
    raise KeyboardInterrupt


def stormed(rng: random.Random, work: Callable[..., None], *arguments: Any) -> None:
    """Do the work, with one interrupt at a random moment of it or none; the first time in peace."""
    global armed  # noqa: PLW0603
    at = 10 ** rng.uniform(-4.0, math.log10(2 * usual[work])) if work in usual else 0.0
    began = time.monotonic()
    try:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, at)
            work(*arguments)
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.monotonic() - began
        usual[work] = usual.get(work, took) * 0.8 + took * 0.2
    except KeyboardInterrupt:
        armed = False


def write_on(stream: Stream, data: bytes) -> None:
    """All of data, however often a write is interrupted."""
    global armed  # noqa: PLW0603
    while stream.position < len(data):
        try:
            stream.write(data[stream.position :])
        except KeyboardInterrupt:
            armed = False  # from here on in peace: what was begun has to come to a good end


def one_round(engine: Engine, directory: str, rng: random.Random, number: int) -> None:
    data = BYTES[: rng.randrange(1, len(BYTES))]
    path = os.path.join(directory, str(number % 8))
    target = engine.open(path, replace=True, lock=True, lock_wait=5.0, size=32 * SLOT)
    with engine.stream([target]) as stream:
        stream.place([0])
        write_on(stream, data)
        with stream.lease(100) as lease:
            lease.view[:] = bytes(100)
            lease.commit(100)
        digest = stream.digest()
        outcome = stream.sync()[target]
    assert outcome.ok, outcome
    assert digest == xxhash.xxh3_128_digest(data + bytes(100))
    assert engine.read(target, 0, len(data)) == data
    assert engine.run([Request(Phase.FLUSH, target)])[0].ok
    assert target.finish(len(data)).ok


def one_life(directory: str) -> None:
    with Engine(backend=sys.argv[1], **SETTINGS) as engine:
        one_close(engine, directory)


def one_close(engine: Engine, directory: str) -> None:
    """With a stream that is in the middle of something."""
    target = engine.open(os.path.join(directory, "life"), replace=True, lock=True, lock_wait=5.0)
    stream = engine.stream([target])
    stream.place([0])
    stream.write(BYTES)
    engine.close()


def settled(engine: Engine) -> dict[str, int]:
    """What is still taken after everything that was dropped has ended."""
    left: dict[str, int] = {}
    gc.collect()
    for _ in range(2000):
        info = engine.info
        left = {
            "targets": info.targets,
            "streams": info.streams,
            "slots": info.slot_count - info.slots_free,
        }
        if not any(left.values()):
            break
        engine.events(timeout=0.005)
    return left


def main() -> None:
    _, backend, directory, count, seed = sys.argv
    rng = random.Random(int(seed))
    signal.signal(signal.SIGALRM, interrupt)
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    engine = Engine(backend=backend, **SETTINGS)
    rounds = 0
    left: dict[str, int] = {}
    while where["interrupts"] < int(count) and not any(left.values()):
        stormed(rng, one_round, engine, directory, rng, rounds)
        if rounds % 5 == 0:
            with Engine(backend=backend, **SETTINGS) as other:
                stormed(rng, one_close, other, directory)
        if rounds % 20 == 0:
            stormed(rng, one_life, directory)
        if rounds % 50 == 0:
            left = settled(engine)
        rounds += 1
    one_round(engine, directory, rng, 0)  # in peace
    left = left if any(left.values()) else settled(engine)
    engine.close()
    del engine
    gc.collect()
    json.dump(
        {
            "rounds": rounds,
            "interrupts": where["interrupts"],
            "where": where,
            "left": left,
            "descriptors": len(set(os.listdir("/proc/self/fd")) - before),
            "threads": threading.active_count(),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
