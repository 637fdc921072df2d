"""Many clients on one engine: nobody starves. Counted in bytes on the simulated clock, and once on real threads."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest
import xxhash

from fanout.engine import Engine, Fault, Stream, Target
from fanout.types import Phase

from .conftest import SLOT

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

WRITE_SECONDS = 0.01  # of every write, on the simulated clock
PLENTY = bytes(64 * SLOT)  # more than anybody gets at once


@contextlib.contextmanager
def contended(
    path: Path, clients: int, lag: int, *, depth: int = 4
) -> Iterator[tuple[Engine, Target]]:
    """An engine for so many clients, with so many slots beyond the promised ones, and one slow target."""
    slots = 2 * clients + lag
    slots = (
        -(-slots * 4 // 3) + 8
    )  # what the engine sets aside for quarantine and requests comes on top
    with Engine(
        backend="faulty",
        memory_bytes=slots * SLOT,
        slot_size_bytes=SLOT,
        max_streams=clients,
        soft_deadline=1e6,
        hard_deadline=1e6,
    ) as engine:
        target = engine.open(path, create=True, depth=depth)
        engine.set_faults([Fault.delay(WRITE_SECONDS, kind=Phase.WRITE, count=None)])
        yield engine, target


def take(stream: Stream, data: bytes) -> int:
    """What the engine takes from a client that never waits."""
    before = stream.position
    stream._write_now(data, False)
    return stream.position - before


def completed(streams: list[Stream]) -> list[int]:
    return [stream.legs()[0].completed for stream in streams]


@pytest.mark.parametrize("clients", [8, 32])
@pytest.mark.parametrize("lag", [1, 40])
def test_a_greedy_client_gets_no_more_than_its_share(
    tmp_path: Path, clients: int, lag: int
) -> None:
    """Breaks if whoever asks more often, first and for more gets more: the slowest then has less than the others."""
    with contended(tmp_path / "t", clients, lag) as (engine, target):
        streams = [engine.stream([target], timeout=0) for _ in range(clients)]
        for number, stream in enumerate(streams):
            stream.place([number << 30])
        greedy, modest = streams[0], streams[1:]
        for _ in range(10 * clients):
            for _ in range(4):  # before everybody else, and between any two of them
                take(greedy, PLENTY)
            for stream in modest:
                take(stream, bytes(SLOT))
                take(greedy, PLENTY)
            engine.advance(WRITE_SECONDS)
        shares = completed(streams)
        fair = sum(shares) / clients
        assert min(shares) >= 0.6 * fair, [share / fair for share in shares]
        assert shares[0] <= 1.5 * fair, [share / fair for share in shares]
        for stream in streams:
            stream.close()


@pytest.mark.parametrize("clients", [8, 32])
def test_nobody_waits_longer_than_one_turn_of_all_the_others(tmp_path: Path, clients: int) -> None:
    """Breaks if a slot that was handed in can be overtaken without end: a lane is first come, first served."""
    depth = 4
    with contended(tmp_path / "t", clients, 40, depth=depth) as (engine, target):
        streams = [engine.stream([target], timeout=0) for _ in range(clients)]
        for number, stream in enumerate(streams):
            stream.place([number << 30])
        for stream in streams[1:]:
            take(stream, PLENTY)
        last = streams[0]
        assert take(last, bytes(SLOT)) == SLOT
        queued = engine.info.slots_live
        turns = 0
        while completed([last]) == [0]:
            for stream in streams[1:]:
                take(stream, PLENTY)
            engine.advance(WRITE_SECONDS)
            turns += 1
        assert turns <= -(-queued // depth) + 1
        for stream in streams:
            stream.close()


def test_the_quota_is_a_number(tmp_path: Path) -> None:
    """Breaks if one stream can hold more than two slots and its part of the lag, however much is free."""
    clients, lag = 8, 40
    with contended(tmp_path / "t", clients, lag) as (engine, target):
        streams = [engine.stream([target], timeout=0) for _ in range(clients)]
        info = engine.info
        aside = min(16, info.slot_count // 4) + min(4, max(1, info.slot_count // 16))
        real_lag = info.slot_count - 2 * clients - aside
        streams[0].place([0])
        took = take(streams[0], bytes(info.slot_count * SLOT))
        assert took // SLOT == 2 + -(-real_lag // clients)
        assert engine.info.slots_free == info.slot_count - took // SLOT
        for stream in streams:
            stream.close()


def test_admission_is_a_number(tmp_path: Path) -> None:
    """Breaks if more streams than `max_streams` get in, or one that ends lets nobody in."""
    with contended(tmp_path / "t", 4, 8) as (engine, target):
        streams = [engine.stream([target], timeout=0) for _ in range(4)]
        with pytest.raises(TimeoutError):
            engine.stream([target], timeout=1.0)
        streams.pop().close()
        streams.append(engine.stream([target], timeout=0))
        with pytest.raises(TimeoutError):
            engine.stream([target], timeout=0)
        for stream in streams:
            stream.close()


def test_clients_on_a_hung_target_hold_up_nobody_else(tmp_path: Path) -> None:
    """Breaks if all that a hung target's clients can take is more than their own part."""
    clients = 8
    with contended(tmp_path / "hung", clients, 16) as (engine, hung):
        healthy = engine.open(tmp_path / "healthy", create=True)
        engine.set_faults([Fault.never(kind=Phase.WRITE, count=None, target=hung)])
        stuck = [engine.stream([hung], timeout=0) for _ in range(clients - 1)]
        for number, stream in enumerate(stuck):
            stream.place([number << 30])
            take(stream, bytes(256 * SLOT))
        with engine.stream([healthy], timeout=1.0) as stream:
            stream.place([0])
            data = b"goes on" * 300_000
            stream.write(data)
            assert stream.digest() == xxhash.xxh3_128_digest(data)
            assert stream.sync()[healthy].ok
        engine.release(hung)
        for stream in stuck:
            stream.close()


@pytest.mark.slow
@pytest.mark.parametrize("clients", [8, 32])
def test_shares_on_real_threads(tmp_path: Path, clients: int, rng: random.Random) -> None:
    """Breaks if a thread that was woken for a slot finds it taken again and again by those that never sleep."""
    total = 48 << 20
    chunk = rng.randbytes(SLOT)
    with Engine(
        memory_bytes=(4 * clients + 32) * SLOT, slot_size_bytes=SLOT, max_streams=clients
    ) as engine:
        target = engine.open(tmp_path / "t", create=True, depth=4, size=total)
        done, stop = [0] * clients, threading.Event()
        ready = threading.Barrier(clients)

        def work(number: int) -> None:
            with engine.stream([target]) as stream:
                stream.place([number * (total // clients)])
                ready.wait(30)
                piece = chunk * 16 if number == 0 else chunk  # the greedy one
                while not stop.is_set():
                    if stream.position + len(piece) > total // clients:
                        stream.pad()
                        stream.place([number * (total // clients)])  # once more from the start
                    stream.write(piece)
                    done[number] += len(piece)
                assert stream.sync()[target].ok

        threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        stop.wait(1.5)
        stop.set()
        for thread in threads:
            thread.join(30)
    fair = sum(done) / clients
    assert min(done) >= 0.25 * fair, [round(share / fair, 2) for share in done]
