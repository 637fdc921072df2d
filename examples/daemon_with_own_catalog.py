"""A storage daemon with its own layout and catalog, using fanout for what is hard: several pools at once, or none.

The pools are bare files, the catalog is a dict. Two backups are taken; before the second one the operating system begins to refuse
writes to COPYPOOL1 (a file size limit of this process, so no root is needed). fanout drops that pool for the session, asks for the
objects again, and the daemon writes down which pool lacks what.

    python examples/daemon_with_own_catalog.py             # a real error: EFBIG from the kernel
    python examples/daemon_with_own_catalog.py --scripted  # the same from the simulated backend
"""

import argparse
import errno
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fanout import Session
from fanout.engine import Engine, Fault, Target
from fanout.errors import PoolFull
from fanout.host import AggregateRecord, Placement, ReserveRequest, Span, TransactionRecord
from fanout.types import Destination, Gap, Phase, PoolKind, Primary, Secondary

MIB = 1 << 20
SIZE = 24 * MIB  # of every pool's file
LIMIT = 16 * MIB  # where the kernel stops this process's writes from the second backup on
NAMES = ("DISKPOOL", "COPYPOOL1", "COPYPOOL2")


@dataclass
class Pool:
    """One bare file; `free` holds (offset, length) pairs."""

    target: Target
    free: list[tuple[int, int]]

    def take(self, name: str, length: int) -> int:
        """The first place that is large enough."""
        for index, (offset, room) in enumerate(self.free):
            if room >= length:
                self.free[index] = (offset + length, room - length)
                return offset
        raise PoolFull(name, f"no {length} bytes in one piece")


@dataclass
class Daemon:
    """The host's side of fanout: reserve, commit, release."""

    pools: dict[str, Pool]
    catalog: dict[bytes, AggregateRecord] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    commits: int = 0
    framing: None = None  # nothing around the data: the catalog alone knows what lies where

    def reserve(self, request: ReserveRequest) -> Sequence[Span]:
        """A region of the same length on every pool that is asked for; all of them or none."""
        length = -(-max(request.length or MIB, 1) // 4096) * 4096  # whole sectors
        taken: list[Placement] = []
        try:
            for name in (request.primary, *request.secondaries):
                pool = self.pools[name]
                taken.append(Placement(name, pool.target, pool.take(name, length)))
        except PoolFull:
            self.release(Span(length, tuple(taken)), [place.pool for place in taken])
            raise
        return [Span(length, tuple(taken))]

    def commit(self, record: TransactionRecord) -> int:
        """Objects and gaps become visible together. A real daemon makes both durable here, in one write."""
        for aggregate in record.aggregates:
            self.catalog |= {member.name: aggregate for member in aggregate.members}
            self.gaps += aggregate.gaps
        self.commits += 1
        return self.commits

    def release(self, span: Span, pools: Sequence[str]) -> None:
        """Nothing is in flight there any more: the places may be used again. Never do so before this call."""
        for place in span.placements:
            if place.pool in pools:
                self.pools[place.pool].free.append((place.offset, span.length))

    def read(self, name: bytes, pool: str) -> bytes:
        """One object from one pool: the aggregate's spans hold its data back to back."""
        aggregate = self.catalog[name]
        member = next(member for member in aggregate.members if member.name == name)
        data = b""
        for span, length in ((written.span, written.data_length) for written in aggregate.spans):
            place = next(place for place in span.placements if place.pool == pool)
            data += place.target.engine.read(place.target, place.offset, length)
        return data[member.offset : member.offset + member.length]


def backup(session: Session, objects: dict[str, bytes]) -> None:
    """One transaction, sent again while that is of use."""
    for attempt in session.attempts():
        with attempt as transaction:
            for name, data in objects.items():
                transaction.put(name, data)
        if failure := transaction.failure:
            gone = ", ".join(failure.removed) or "nobody"
            print(f"  attempt {attempt.number}: {type(failure).__name__}, {gone} removed")
    receipt = session.receipt
    assert receipt is not None
    how = f"{len(receipt.objects)} objects, {'DEGRADED' if receipt.degraded else 'complete'}"
    print(f"  committed at attempt {receipt.attempt}: {how}")


def break_copypool1(engine: Engine, target: Target, *, scripted: bool) -> None:
    """From now on writes to COPYPOOL1 fail, and only those: its free space begins above the limit."""
    if scripted:
        engine.set_faults([Fault.error(errno.EIO, kind=Phase.WRITE, target=target, count=None)])
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def run(directory: Path, *, scripted: bool) -> None:
    """The two backups, then every object from every pool."""
    copies = tuple(Secondary(name, PoolKind.COPY) for name in NAMES[1:])
    destination = Destination((Primary(NAMES[0]),), copies)
    with Engine(backend="faulty" if scripted else "auto") as engine:
        pools = {}
        for name in NAMES:
            target = engine.open(directory / f"{name}.bin", create=True, size=SIZE)
            start = LIMIT if name == "COPYPOOL1" else 0
            pools[name] = Pool(target, [(start, SIZE - start)])
        daemon = Daemon(pools)
        objects = {f"file{number}": bytes([number]) * (number * 300_000) for number in range(1, 5)}
        later = {f"{name}.new": data for name, data in objects.items()}
        with Session(engine, daemon, destination, node="client") as session:
            print("first backup, all well")
            backup(session, objects)
            break_copypool1(engine, pools["COPYPOOL1"].target, scripted=scripted)
            print("second backup, COPYPOOL1 refuses writes")
            backup(session, later)
            print(f"  removed: {dict(session.removed)}")
        for gap in daemon.gaps:
            print(f"gap: {gap.pool} lacks {gap.objects} objects of {gap.primary}: {gap.reason}")
        for pool in NAMES:
            held = [name for name, aggregate in daemon.catalog.items() if pool in aggregate.pools]
            assert all(daemon.read(n, pool) == (objects | later)[n.decode()] for n in held)
            print(f"{pool}: {len(held)} objects, read back and compared")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scripted", action="store_true", help="simulate the error")
    with tempfile.TemporaryDirectory() as scratch:
        run(Path(scratch), scripted=parser.parse_args().scripted)
