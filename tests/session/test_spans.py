"""Objects across spans, volumes and primaries: every byte where the record says, with any sizes and any chunks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanout.engine import Engine
from fanout.errors import TransactionFailed, TransactionRetry
from fanout.sources import once

from .conftest import KIB, MIB, NORMAL, SLOT, SLOTS, DictHost, Framing, World, destination

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path


class Pieces:
    """A rereadable source of unknown length."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data, self.size = data, size

    def __iter__(self) -> Iterator[bytes]:
        for at in range(0, len(self.data), self.size):
            yield self.data[at : at + self.size]


def pattern(length: int, *, seed: int = 0) -> bytes:
    return bytes((seed + i * i // 251) % 256 for i in range(min(length, 4096))) * (
        length // 4096 + 1
    )


def data_of(length: int, seed: int = 0) -> bytes:
    return pattern(length, seed=seed)[:length]


@pytest.mark.parametrize("framing", [None, Framing()])
@pytest.mark.parametrize("size", [1, 4096, 1000, 64 * KIB])
def test_an_object_across_many_spans(world: World, size: int) -> None:
    """Fragments must join without a hole, whatever the chunks, and with one digest."""
    world.host.piece = 64 * KIB
    data = data_of(900 * KIB + 1)
    with world.session(NORMAL).begin() as transaction:
        transaction.put("a", b"first")
        transaction.put("known", data)
        if size > 1:
            transaction.put("unknown", Pieces(data, size))
        transaction.put("z", b"last")
    for pool in ("DP", "C1", "C2"):
        assert world.host.read(pool, "known") == data
        assert world.host.read(pool, "a") == b"first"
        assert world.host.read(pool, "z") == b"last"
        if size > 1:
            assert world.host.read(pool, "unknown") == data
    world.at_rest()


@pytest.mark.parametrize("framing", [None, Framing()])
def test_objects_that_end_exactly_with_a_span(world: World) -> None:
    """Off by one here makes an empty fragment, or a span without an end."""
    world.host.piece = 64 * KIB
    framing = world.host.framing
    name = b"n"
    foot = 0 if framing is None else framing.foot_size(1, 1, 64 * KIB)
    full = 64 * KIB - (512 if framing else 0) - foot
    for length in (full - 1, full, full + 1, 2 * full, 2 * full + 1):
        for source in (data_of(length), Pieces(data_of(length), 777)):
            with world.session(NORMAL).begin() as transaction:
                transaction.put(name, source)
            assert world.host.read("C2", "n") == data_of(length)
    world.at_rest()


def test_an_object_across_volumes_has_one_digest(world: World) -> None:
    """Each volume is another stream; the digest must go on from one to the next."""
    for pool in ("DP", "C1"):
        world.host.pools[pool][0].size = MIB
        for number in range(1, 4):
            world.volume(pool, MIB, name=f"{pool}{number}.vol")
    data = data_of(5 * MIB // 2)
    with world.session(NORMAL).begin() as transaction:
        transaction.put("a", b"before")
        transaction.put("known", data)
        transaction.put("z", b"after")
    for pool in ("DP", "C1", "C2"):
        assert world.host.read(pool, "known") == data
        assert world.host.read(pool, "z") == b"after"
    (aggregate,) = world.host.records[0].aggregates
    targets = {tuple(p.target.path for p in w.span.placements) for w in aggregate.spans}
    assert len(targets) >= 3
    assert len(aggregate.proofs) >= 3 * 3
    world.at_rest()


def test_an_object_of_unknown_length_across_volumes(real: World) -> None:
    """The same, one span ahead, on real files."""
    for pool in ("DP", "C2"):
        real.host.pools[pool][0].size = MIB
        for number in range(1, 4):
            real.volume(pool, MIB, name=f"{pool}{number}.vol")
    data = data_of(3 * MIB - 100 * KIB)
    with real.session(NORMAL).begin() as transaction:
        transaction.put("unknown", Pieces(data, 30_011))
    for pool in ("DP", "C1", "C2"):
        assert real.host.read(pool, "unknown") == data
    real.at_rest()


def test_many_aggregates_keep_few_streams(world: World) -> None:
    """Objects that alternate between two primaries must not use up the engine's streams."""
    world.host.piece = 256 * KIB
    session = world.session(destination(max_size=10 * KIB))
    with session.begin() as transaction:
        for index in range(40):
            transaction.put(f"{index}", data_of(20 * KIB if index % 2 else 100, index))
            assert world.engine.info.streams <= 6
    assert len(world.host.records[0].aggregates) == 40
    for index in range(40):
        assert world.host.read("AD", f"{index}") == data_of(20 * KIB if index % 2 else 100, index)
    world.at_rest()


def test_small_objects_take_few_reservations(world: World) -> None:
    """A thousand small files must not ask the host a thousand times."""
    world.host.generous = True
    with world.session().begin() as transaction:
        for index in range(1000):
            transaction.put(f"{index:04}", bytes(512))
    assert len(world.host.requests) <= 3
    assert all(r.wish >= MIB for r in world.host.requests)
    world.at_rest()


def test_the_next_transaction_is_expected_to_be_as_large(world: World) -> None:
    """One span then, on each primary; and no more than a bound, however large the last one was."""
    world.host.generous = True
    world.host.piece = 64 * MIB
    for pool in world.host.pools:
        world.host.pools[pool][0].size = 256 * MIB
    session = world.session()
    spans = []
    for group in range(3):
        with session.begin() as transaction:
            for index in range(400):
                transaction.put(f"{group}/{index}", bytes(10 * KIB))
        (aggregate,) = world.host.records[-1].aggregates
        spans.append(len(aggregate.spans))
    assert spans == [3, 1, 1]
    world.host.requests.clear()
    with session.begin() as transaction:
        transaction.put("large", bytes(40 * MIB))
    with session.begin() as transaction:
        transaction.put("small", b"x")
    assert [request.wish // MIB for request in world.host.requests] == [40, 16]
    world.at_rest()


@pytest.mark.parametrize("framing", [None, Framing()])
def test_small_objects_up_to_the_very_end_of_their_spans(world: World, rng: random.Random) -> None:
    """Room is counted for many objects ahead: with the longest names, and others between, the footer must still fit."""
    world.host.piece = 256 * KIB
    sent: dict[str, bytes] = {}
    with world.session(NORMAL).begin() as transaction:
        for number in range(700):
            name = f"{number}".ljust(rng.choice([3, 40, 1024, 1024]), "n")
            sent[name] = data_of(rng.choice([0, 1, 100, rng.randrange(3000)]), number)
            transaction.put(name, sent[name] if rng.random() < 0.9 else Pieces(sent[name], 999))
    for pool in ("DP", "C1", "C2"):
        assert {name: world.host.read(pool, name) for name in sent} == sent
    world.at_rest()


# ---- unknown lengths -------------------------------------------------------------------------------------


def test_an_unknown_length_that_outgrows_its_primary_starts_lower(world: World) -> None:
    """R6 in the middle of an object: undone, and the resend begins at the next primary."""
    world.host.pools["DP"][0].size = 512 * KIB
    world.host.piece = 128 * KIB
    data = data_of(2 * MIB)
    session = world.session()
    failures = []
    for attempt in session.attempts():
        with attempt as transaction:
            transaction.put("small", b"known length")
            transaction.put("big", Pieces(data, 50_000))
        if transaction.failure is not None:
            failures.append(transaction.failure)
    (retry,) = failures
    assert isinstance(retry, TransactionRetry)
    assert (retry.reason, retry.removed) == ("space", ())
    assert retry.min_bytes is not None
    assert 300_000 < retry.min_bytes <= 512 * KIB
    assert world.host.names("DP") == ["small"]
    assert world.host.names("TP") == ["big"]
    assert world.host.read("AD", "big") == data
    world.at_rest()


def test_an_unknown_length_beyond_max_size_starts_lower(world: World) -> None:
    """A limit that only known lengths obey is none."""
    data = data_of(300 * KIB)
    session = world.session(destination(max_size=200 * KIB))
    for attempt in session.attempts():
        with attempt as transaction:
            transaction.put("big", Pieces(data, 4096))
            transaction.put("small", Pieces(b"x", 1))
    assert session.receipt is not None
    assert session.receipt.attempt == 2
    assert world.host.names("TP") == ["big", "small"]
    with session.begin() as transaction:  # the next transaction begins at the top again
        transaction.put("next", Pieces(b"y", 1))
    assert world.host.names("DP") == ["next"]


def test_an_unknown_length_that_outgrows_the_whole_chain(world: World) -> None:
    """R7 after the fact: fails for good instead of asking for a resend that cannot fit."""
    for pool in ("DP", "TP"):
        world.host.pools[pool][0].size = 512 * KIB
    world.host.piece = 128 * KIB
    session = world.session()
    with pytest.raises(TransactionFailed) as caught:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put("big", Pieces(data_of(MIB), 50_000))
    assert (caught.value.reason, caught.value.attempt) == ("space", 2)
    world.at_rest()


def test_an_unknown_length_that_cannot_be_read_again(world: World) -> None:
    """The message names the mends: the length, or a spool."""
    session = world.session(destination(max_size=64 * KIB))
    with pytest.raises(TransactionFailed, match=r"say its length, or spool it") as caught:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put("big", once(iter(Pieces(data_of(MIB), 50_000))))
    assert caught.value.reason == "source"
    with session.begin() as transaction:  # with its length it is placed right at once
        transaction.put("big", once(iter(Pieces(data_of(MIB), 50_000)), length=MIB))
    assert world.host.names("TP") == ["big"]
    world.at_rest()


# ---- everything at once ----------------------------------------------------------------------------------

sizes = st.one_of(
    st.integers(0, 5),
    st.integers(0, 3 * 4096),
    st.sampled_from([SLOT - 513, SLOT - 1, SLOT, SLOT + 1, 2 * SLOT]),
    st.integers(0, 400 * KIB),
)
objects = st.lists(
    st.tuples(sizes, st.none() | st.integers(1, 100_000), st.integers(1, 40)), max_size=12
)


@pytest.mark.slow
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    groups=st.lists(objects, min_size=1, max_size=3),
    piece=st.sampled_from([16 * KIB, 64 * KIB, 200 * KIB - 200 * KIB % 4096, MIB]),
    framed=st.booleans(),
    generous=st.booleans(),
    limit=st.none() | st.integers(0, 300 * KIB),
)
def test_any_objects_in_any_spans(
    tmp_path_factory: pytest.TempPathFactory,
    groups: list[Any],
    piece: int,
    limit: int | None,
    *,
    framed: bool,
    generous: bool,
) -> None:
    """Sizes, chunks, spans, framing, overflow: each pool gives back exactly what was put, in order."""
    directory: Path = tmp_path_factory.mktemp("any")
    with Engine(
        backend="faulty", memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT, seed=piece
    ) as engine:
        world = World(
            engine, DictHost(framing=Framing() if framed else None, piece=piece), directory
        )
        world.host.generous = generous
        for pool in ("DP", "TP", "C1", "AD"):
            world.volume(pool, 24 * MIB)
        session = world.session(
            destination(max_size=limit, secondaries=destination().secondaries[::2])
        )
        for group in groups:
            for attempt in session.attempts():
                with attempt as transaction:
                    for index, (length, chunk, width) in enumerate(group):
                        data = data_of(length, index)
                        name = f"{index:02}".ljust(width, "n")
                        transaction.put(name, data if chunk is None else Pieces(data, chunk))
            if not group:
                continue
            top = math.inf if limit is None else limit
            for index, (length, chunk, width) in enumerate(group):
                name = f"{index:02}".ljust(width, "n")
                for pool in ("C1", "AD"):
                    assert world.host.read(pool, name) == data_of(length, index)
                if chunk is None:
                    assert world.host.read("DP" if length <= top else "TP", name) == data_of(
                        length, index
                    )
            members = [m for a in world.host.records[-1].aggregates for m in a.members]
            assert [m.name[:2] for m in members] == [b"%02d" % i for i in range(len(group))]
        world.at_rest()
        world.close()


def test_a_long_stream_in_constant_memory(real: World, rng: random.Random) -> None:
    """Ten times the arena through one object: the engine's memory stays what it was."""
    before = real.engine.info.memory_bytes
    real.host.pools.clear()
    for pool in ("DP", "C1", "C2"):
        real.volume(pool, 48 * MIB, name=f"{pool}-long.vol")
    chunk = rng.randbytes(MIB)
    with real.session(NORMAL).begin() as transaction:
        transaction.put("long", Pieces(chunk * 40, 300_007))
    assert real.engine.info.memory_bytes == before
    assert real.host.read("C1", "long") == chunk * 40
    real.at_rest()


def test_a_reservation_ahead_that_a_secondary_refuses_harms_nobody(world: World) -> None:
    """The object ends before the span is needed: C1 has all of it, and must not be removed."""
    world.host.piece = 512 * KIB
    world.host.pools["C1"][0].size = 768 * KIB
    session = world.session(NORMAL)
    with session.begin() as transaction:
        transaction.put("a", Pieces(data_of(100 * KIB), 9_000))
    assert not session.removed
    assert world.host.names("C1") == ["a"]
    with pytest.raises(TransactionRetry) as caught, session.begin() as transaction:
        transaction.put("b", Pieces(data_of(700 * KIB), 9_000))
    assert caught.value.removed == ("C1",)
    world.at_rest()
