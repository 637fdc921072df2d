"""A daemon of a few dicts: pools of files, places handed out first fit, commits kept in a list. And what it must never see."""

from __future__ import annotations

import functools
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from fanout.engine import Engine, Target
from fanout.errors import ConfigError, PoolFull, PoolUnavailable
from fanout.host import Fragment, Placement, ReserveRequest, Span, TransactionRecord
from fanout.session import Session
from fanout.types import Destination, ObjectKind, PoolKind, Primary, Secondary

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SLOT = 64 << 10
SLOTS = 64
KIB = 1 << 10
MIB = 1 << 20

C1 = Secondary("C1", PoolKind.COPY)
C2 = Secondary("C2", PoolKind.COPY)
AD = Secondary("AD", PoolKind.ACTIVE_DATA)
POOLS = ("DP", "TP", "C1", "C2", "AD")


def destination(
    *,
    max_size: int | None = None,
    copy_continue: bool = True,
    secondaries: tuple[Secondary, ...] = (C1, C2, AD),
) -> Destination:
    """The base configuration of the rules: DP -> TP, two copy pools, one active-data pool."""
    return Destination((Primary("DP", max_size), Primary("TP")), secondaries, copy_continue)


NORMAL = destination(secondaries=(C1, C2))  # a node whose domain does not allow AD


class Framing:
    """A header that names the place, a footer with fragments and sums: small, but every argument is in it."""

    def head_size(self) -> int:
        return 512

    def foot_size(self, fragments: int, name_bytes: int, data_length: int) -> int:
        return 16 + fragments * 40 + name_bytes + 8 * ((512 + data_length) // SLOT + 1)

    def head(self, request: ReserveRequest, number: int, span: Span, data_start: int) -> bytes:
        head = struct.pack("<4s16sIQQ", b"HEAD", request.aggregate, number, data_start, span.length)
        return head.ljust(512, b"\0")

    def foot(
        self,
        request: ReserveRequest,
        number: int,
        span: Span,
        fragments: Sequence[Fragment],
        sums: bytes,
        data_start: int,
        data_length: int,
        final: bool,
    ) -> bytes:
        assert len(sums) == 8 * -(-(512 + data_length) // SLOT)
        out = [struct.pack("<4sIIB3x", b"FOOT", number, len(fragments), final)]
        for f in fragments:
            out.append(struct.pack("<QQ16sQ", f.offset, f.length, f.digest or b"", len(f.name)))
            out.append(f.name)
        foot = b"".join([*out, sums])
        assert len(foot) <= self.foot_size(
            len(fragments), sum(len(f.name) for f in fragments), data_length
        )
        return foot


@dataclass
class Volume:
    """One target of a pool: who has which bytes of it."""

    target: Target
    size: int
    taken: dict[int, int] = field(default_factory=dict)

    def find(self, length: int) -> int | None:
        at = 0
        for offset in sorted(self.taken):
            if offset - at >= length:
                return at
            at = offset + self.taken[offset]
        return at if self.size - at >= length else None


class DictHost:
    """A `Host` in memory. Notes every call, and fails the test on whatever a host must never be asked."""

    def __init__(self, *, framing: Framing | None = None, piece: int = MIB) -> None:
        self.framing = framing
        self.piece = piece  # what is handed out when the length is unknown, and the largest span
        self.pools: dict[str, list[Volume]] = defaultdict(list)
        self.unavailable: set[str] = set()
        self.records: list[TransactionRecord] = []
        self.requests: list[ReserveRequest] = []
        self.reserved: set[tuple[str, str, int]] = set()
        self.live: set[tuple[str, str, int]] = set()
        self.generous = False  # whether wishes are granted
        self.before_commit: Callable[[TransactionRecord], None] = lambda record: None

    def add(self, pool: str, target: Target, size: int) -> None:
        self.pools[pool].append(Volume(target, size))

    # -- Host

    def reserve(self, request: ReserveRequest) -> list[Span]:
        self.requests.append(request)
        pools = (request.primary, *request.secondaries)
        want = self.piece if request.length is None else self._gross(request)
        spans: list[Span] = []
        try:
            while want > 0 or not spans:
                length = min(self.piece, max(4096, -(-want // 4096) * 4096))
                spans.append(self._span(pools, length))
                want -= length
        except PoolFull:
            for span in spans:
                self._free(span, [p.pool for p in span.placements])
            raise
        return spans

    def _gross(self, request: ReserveRequest) -> int:
        net = max(request.length or 0, request.wish if self.generous else 0)
        if self.framing is None:
            return net
        each = 512 + self.framing.foot_size(request.members, request.name_bytes, self.piece)
        return net + each * (1 + net // max(1, self.piece - each))

    def _span(self, pools: Sequence[str], length: int) -> Span:
        found = []
        for pool in pools:
            if pool in self.unavailable or not self.pools[pool]:
                raise PoolUnavailable(pool, "no volume can be written")
            for volume in self.pools[pool]:
                offset = volume.find(length)
                if offset is not None:
                    found.append((pool, volume, offset))
                    break
            else:
                raise PoolFull(pool, f"no {length} bytes are free")
        for pool, volume, offset in found:
            volume.taken[offset] = length
            self.reserved.add((pool, volume.target.path, offset))
        return Span(length, tuple(Placement(p, v.target, o) for p, v, o in found))

    def commit(self, record: TransactionRecord) -> int:
        self.before_commit(record)
        for aggregate in record.aggregates:
            assert aggregate.spans
            assert aggregate.members
            for proof in aggregate.proofs:
                assert proof.written == proof.synced
            for written in aggregate.spans:
                assert tuple(p.pool for p in written.span.placements) == aggregate.pools
                assert 0 <= written.used <= written.span.length
                for p in written.span.placements:
                    place = (p.pool, p.target.path, p.offset)
                    self.reserved.remove(place)
                    self.live.add(place)
        self.records.append(record)
        return len(self.records)

    def release(self, span: Span, pools: Sequence[str]) -> None:
        assert pools
        self._free(span, pools)

    def _free(self, span: Span, pools: Sequence[str]) -> None:
        for p in span.placements:
            if p.pool in pools:
                self.reserved.remove((p.pool, p.target.path, p.offset))  # never twice, never live
                volume = next(v for v in self.pools[p.pool] if v.target is p.target)
                assert volume.taken.pop(p.offset) == span.length

    def forget(self) -> None:
        """All is free again, whoever has it."""
        for volume in chain.from_iterable(self.pools.values()):
            volume.taken.clear()
        self.reserved.clear()
        self.live.clear()

    # -- what the tests ask

    def names(self, pool: str) -> list[str]:
        """Names of all committed objects that the pool holds, in order."""
        return [
            member.name.decode()
            for record in self.records
            for aggregate in record.aggregates
            if pool in aggregate.pools
            for member in aggregate.members
        ]

    def held(self) -> dict[str, str]:
        """Names by pool, each as one string."""
        return {pool: "".join(self.names(pool)) for pool in POOLS}

    def read(self, pool: str, name: str) -> bytes:
        """The newest object of that name from one pool's medium, its digest checked with another implementation."""
        data, digest = self._find(pool, name.encode())
        assert xxhash.xxh3_128_digest(data) == digest
        return data

    def _find(self, pool: str, name: bytes) -> tuple[bytes, bytes]:
        for record in reversed(self.records):
            for aggregate in reversed(record.aggregates):
                for member in reversed(aggregate.members):
                    if member.name == name and pool in aggregate.pools:
                        whole = self._data(aggregate, pool)
                        return whole[member.offset : member.offset + member.length], member.digest
        raise KeyError(name)

    def _data(self, aggregate: Any, pool: str) -> bytes:
        out = b""
        head = 0 if self.framing is None else self.framing.head_size()
        for written in aggregate.spans:
            assert written.data_start == len(out)
            place = next(p for p in written.span.placements if p.pool == pool)
            if written.used:
                whole = place.target.engine.read(place.target, place.offset, written.used)
                if head:
                    assert whole[:4] == b"HEAD"
                    foot = whole[head + written.data_length :]
                    assert foot[:4] == b"FOOT"
                out += whole[head : head + written.data_length]
        return out


@functools.cache
def runs(backend: str) -> bool:
    """Whether this machine can run a backend (containers often forbid io_uring)."""
    try:
        Engine(backend=backend, memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT).close()
    except ConfigError:
        return False
    return True


@dataclass
class World:
    """An engine, a host with five pools, and sessions."""

    engine: Engine
    host: DictHost
    directory: Path
    sessions: list[Session] = field(default_factory=list)

    def volume(self, pool: str, size: int = 16 * MIB, *, name: str = "") -> Target:
        path = self.directory / (name or f"{pool.lower()}.vol")
        target = self.engine.open(path, create=True, size=size)
        self.host.add(pool, target, size)
        return target

    def target(self, pool: str) -> Target:
        return self.host.pools[pool][0].target

    def session(self, to: Destination | None = None, **options: Any) -> Session:
        made = Session(self.engine, self.host, to or destination(), node="N1", **options)
        self.sessions.append(made)
        return made

    def close(self) -> None:
        """End the sessions and delete the volumes: pytest keeps directories of past runs."""
        for session in self.sessions:
            session.close()
        for path in self.directory.glob("*.vol"):
            path.unlink()

    def at_rest(self) -> None:
        """Close everything; nothing may be reserved, in flight or quarantined."""
        for session in self.sessions:
            session.close()
            assert session.draining == 0
        info = self.engine.info
        assert not self.host.reserved
        assert info.streams == 0
        assert info.slots_free == info.slot_count


@pytest.fixture
def framing() -> Framing | None:
    """Override with `parametrize` to leave the framing out."""
    return Framing()


def _world(engine: Engine, tmp_path: Path, framing: Framing | None) -> World:
    world = World(engine, DictHost(framing=framing), tmp_path)
    for pool in POOLS:
        world.volume(pool)
    return world


@pytest.fixture
def world(
    rng: random.Random, tmp_path: Path, framing: Framing | None, no_leaks: None
) -> Iterator[World]:
    """Over scripted faults and a simulated clock."""
    with Engine(
        backend="faulty",
        memory_bytes=SLOTS * SLOT,
        slot_size_bytes=SLOT,
        soft_deadline=30.0,
        hard_deadline=120.0,
        seed=rng.getrandbits(32),
    ) as engine:
        made = _world(engine, tmp_path, framing)
        yield made
        made.close()


@pytest.fixture(params=["io_uring", "threads"])
def real(
    request: pytest.FixtureRequest, tmp_path: Path, framing: Framing | None, no_leaks: None
) -> Iterator[World]:
    """Over real files, once with each backend."""
    if not runs(request.param):
        pytest.skip(f"{request.param} cannot run here")
    with Engine(backend=request.param, memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT) as engine:
        made = _world(engine, tmp_path, framing)
        yield made
        made.close()


ARCHIVE = ObjectKind.ARCHIVE
