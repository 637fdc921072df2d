"""What clients do while they are being killed. Every function is the whole life of a process of the nursery.

Each tells the journal what it sends before it sends it, and what it was told. `step`: its system calls are counted by a `Stepper`.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fanout import backup_stgpool, copy_activedata
from fanout.errors import CatalogBusy, CommitUnknown, TransactionFailed, TransactionRetry
from fanout.store import Store
from fanout.types import ObjectKind
from tests.crash import oracle, stepping
from tests.crash.journal import Journal
from tests.crash.media import Rules
from tests.crash.site import LARGE, put

if TYPE_CHECKING:
    from tests.crash.journal import Teller

NAMES = [b"A", b"B \xff", b"C/d/e", b"f" * 200, b"g", b"h"]
SIZES = (0, 1, 700, 4096, 20_000, 90_000)


def mixed(
    teller: Teller, config: str, seed: int, *, flush: bool = False, step: bool = False
) -> None:
    """A transaction with small, empty and large objects that overflows to the next primary; then one of the other client."""
    rng = _begin(teller, seed, step=step)
    with Store.open(config, flush_before_acknowledge=flush) as store:
        objects = {name: rng.randbytes(rng.choice(SIZES)) for name in NAMES[:4]}
        objects[b"large"] = rng.randbytes(LARGE + 40_000)
        objects[b"behind"] = rng.randbytes(5000)
        put(store, teller, "N1", objects, transaction=rng.randbytes(16))
        put(
            store,
            teller,
            "N2",
            {b"A": rng.randbytes(3000)},
            transaction=rng.randbytes(16),
            kind=ObjectKind.ARCHIVE,
        )
    teller.say("done")


def losing_a_copy(teller: Teller, config: str, seed: int, *, step: bool = False) -> None:
    """A session whose copy pool fails: retried without it, and a second transaction that goes without it from the start."""
    rng = _begin(teller, seed, step=step)
    # The copy pool may be lost by somebody's lock on it, which does not go away.
    with Store.open(config, lock_wait=1.0) as store, store.session("N1") as session:
        for _ in range(2):
            transaction = rng.randbytes(16)
            objects = {name: rng.randbytes(rng.choice(SIZES)) for name in NAMES[:3]}
            teller.begin(transaction, "N1", objects)
            for number in range(1, 9):
                try:
                    with session.begin(transaction=transaction, attempt=number) as txn:
                        for name, data in objects.items():
                            txn.put(name, data)
                    break
                except TransactionRetry:
                    continue
            assert session.receipt is not None
            teller.receipt(session.receipt)
    teller.say("done")


def repair(teller: Teller, config: str, seed: int, *, step: bool = False) -> None:
    """Every repair command, once."""
    _begin(teller, seed, step=step)
    with Store.open(config) as store:
        teller.repair()
        for primary, pool, active in Rules(Path(config)).repairs():
            (copy_activedata if active else backup_stgpool)(store, primary, pool)
    teller.say("done")


def deletion(teller: Teller, config: str, seed: int, *, step: bool = False) -> None:
    """A part of an aggregate is deleted, then the rest of it and a whole one; then its space is used again."""
    rng = _begin(teller, seed, step=step)
    first, second, third = (rng.randbytes(16) for _ in range(3))
    with Store.open(config) as store:
        names = [b"one", b"two", b"three"]
        put(store, teller, "N1", {name: rng.randbytes(20_000) for name in names}, transaction=first)
        put(store, teller, "N1", {b"four": rng.randbytes(LARGE + 9000)}, transaction=second)
        for number, gone in enumerate(
            ([(first, b"two")], [(first, b"one"), (first, b"three"), (second, b"four")])
        ):
            teller.delete(number, gone)
            report = store.delete("N1", [name for _, name in gone])
            assert report.objects == len(gone)
            teller.deleted(number)
        put(store, teller, "N1", {b"five": rng.randbytes(40_000)}, transaction=third)
    teller.say("done")


def live(
    teller: Teller, config: str, seed: int, *, flush: bool = False, rounds: int = 1000
) -> None:
    """Open, and store one small transaction after the other, giving some up, repairing now and then, until killed."""
    rng = _begin(teller, seed)
    with Store.open(config, flush_before_acknowledge=flush, lock_wait=30.0) as store:
        teller.say("open")
        for _ in range(rounds):
            if rng.random() < 0.1:
                teller.repair()
                for primary, pool, active in Rules(Path(config)).repairs():
                    (copy_activedata if active else backup_stgpool)(store, primary, pool)
            _one(teller, store, rng)


def _one(teller: Teller, store: Store, rng: random.Random) -> None:
    node, kind = rng.choice(("N1", "N2")), rng.choice([*ObjectKind, ObjectKind.BACKUP])
    names = rng.sample(NAMES, rng.randint(1, 4))
    objects = {name: rng.randbytes(rng.choice(SIZES)) for name in names}
    if rng.random() < 0.1:
        objects[b"large"] = rng.randbytes(LARGE + 5000)
    transaction = rng.randbytes(16)
    if rng.random() < 0.15:
        teller.begin(transaction, node, objects, kind=kind.value)
        with store.session(node, kind=kind) as session:
            txn = session.begin(transaction=transaction)
            for name, data in objects.items():
                txn.put(name, data)
            txn.abort()
        teller.refused(transaction)
        return
    try:
        put(store, teller, node, objects, transaction=transaction, kind=kind)
    except (TransactionFailed, CommitUnknown):
        return  # the journal knows


def states(teller: Teller, config: str, *, lock_wait: float) -> None:
    """Open, and tell the state of every volume, or that the catalog is busy."""
    teller.say("waiting")
    try:
        with Store.open(config, lock_wait=lock_wait) as store:
            teller.say(f"opened={time.monotonic()}")
            for status in store.query_volumes():
                teller.say(f"{Path(status.path).name}={status.state}")
    except CatalogBusy:
        teller.say("catalog=busy")


def _begin(teller: Teller, seed: int, *, step: bool = False) -> random.Random:
    if step:
        stepping.be_stepped(teller.fd)
    return random.Random(seed)


# ---- not a client ------------------------------------------------------------------------------------


def judge(teller: Teller, config: str, journal: str, below: str, **options: bool) -> None:
    """The oracle, in a process that starts faster than `oracle.judge`'s."""
    kept = Journal.load(Path(journal))
    medium = Path(below) if below else None
    for finding in oracle.examine(Path(config), kept, below=medium, **options):
        teller.say(finding)


def create(teller: Teller, config: str, *, force: bool) -> None:
    """Make the store of a configuration."""
    Store.create(config, force=force)
