"""The client of the fault matrix: two transactions in one session while something is broken, one in a new session when it is mended.

It tells the harness everything that it sees, as JSON words "report=…", and waits at three places: when the store is open, when the first
session is over (everything is still broken), and when the new session is over.
"""

from __future__ import annotations

import errno
import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanout import backup_stgpool
from fanout.check import check_store
from fanout.errors import (
    CommitUnknown,
    FanoutError,
    TargetError,
    TransactionFailed,
    TransactionRetry,
)
from fanout.store import Store
from tests.crash.journal import Journal
from tests.crash.media import Rules
from tests.crash.site import KIB, POOLS
from tests.faults.refuse import refuse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.session import Session
    from tests.crash.journal import Teller

MAX_ATTEMPTS = 12
LOCK_WAIT = 0.3  # seconds: of the volumes, when one is held by somebody else


@dataclass(slots=True)
class Seen:
    """What a client saw of one transaction.

    Attributes:
        end: "receipt", "failed: REASON", "unknown", or the name of another exception.
        retries: reason and removed pools of each `TransactionRetry`.
        removed: pools that had left the session at its end.
        gaps: pools of the receipt's gaps.
        primaries: of its objects.
        errnos: names of all errors of targets, by pool path.
        message: of the last exception.
    """

    end: str = ""
    retries: list[list[Any]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    primaries: list[str] = field(default_factory=list)
    errnos: list[list[str]] = field(default_factory=list)
    message: str = ""


def under_fault(
    teller: Teller,
    config: str,
    seed: int,
    *,
    refused: dict[str, int] | None = None,
    only_first: bool = False,
) -> None:
    """See the module."""
    if refused:
        refuse(refused)
    rng = random.Random(seed)
    try:
        store = Store.open(config, lock_wait=LOCK_WAIT)
    except FanoutError as error:
        teller.say(f"report={json.dumps({'open': f'{type(error).__name__}: {error}'})}")
        teller.say("open")
        return
    teller.say(f"report={json.dumps({'open': '', 'backend': store.engine.info.backend})}")
    teller.say("open")
    teller.wait()
    with store:
        with store.session("N1") as session:
            put(teller, session, rng, objects=3, size=130 * KIB)
            if not only_first:
                put(teller, session, rng, objects=1, size=9000)
            teller.say("over")
            if not teller.wait() or only_first:
                return
        for pool in store.pools.pools.values():
            for member in pool.members:
                member.next_try = 0.0  # do not wait for the pause between two tries
        with store.session("N1") as session:
            put(teller, session, rng, objects=1, size=9000)
        teller.say("again")
        teller.wait()
    teller.say("closed")


def put(teller: Teller, session: Session, rng: random.Random, *, objects: int, size: int) -> None:
    """One transaction, until it commits or cannot; tells what happened."""
    transaction = rng.randbytes(16)
    things = {b"%d" % number: rng.randbytes(size) for number in range(objects)}
    teller.begin(transaction, "N1", things)
    seen = Seen()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            with session.begin(transaction=transaction, attempt=attempt) as txn:
                for name, data in things.items():
                    txn.put(name, data)
        except TransactionRetry as error:
            seen.retries.append([error.reason, list(error.removed)])
            seen.errnos += _targets(error)
            seen.message = str(error)
            continue
        except (CommitUnknown, TransactionFailed) as error:
            unknown = isinstance(error, CommitUnknown)
            (teller.unknown if unknown else teller.refused)(transaction)
            seen.end = "unknown" if unknown else f"failed: {error.reason}"
            seen.errnos += _targets(error)
            seen.message = str(error)
        except FanoutError as error:
            teller.refused(transaction)
            seen.end, seen.message = type(error).__name__, str(error)
        else:
            assert session.receipt is not None
            teller.receipt(session.receipt)
            seen.end = "receipt"
            seen.gaps = sorted({gap.pool for gap in session.receipt.gaps})
            seen.primaries = sorted({stored.primary for stored in session.receipt.objects})
        break
    seen.removed = sorted(session.removed)
    teller.say(f"report={json.dumps(asdict(seen))}")


def _targets(error: BaseException) -> Iterator[list[str]]:
    """[path, errno] of every target's error behind an exception."""
    cause = error.__cause__
    group = cause.exceptions if isinstance(cause, BaseExceptionGroup) else ()
    for each in group:
        if isinstance(each, TargetError):
            name = errno.errorcode.get(each.outcome.errno, each.outcome.code.name)
            yield [each.target, name]
    if isinstance(cause, TransactionRetry):
        yield from _targets(cause)


# ---- repairs, checks, reading ------------------------------------------------------------------------


def repair_under_fault(teller: Teller, config: str, seed: int) -> None:
    """Every repair into COPYPOOL1 while something is broken, and again when it is mended."""
    del seed
    with Store.open(config) as store:
        teller.say("open")
        teller.wait()
        teller.repair()
        for _ in range(2):
            done = [
                backup_stgpool(store, primary, pool)
                for primary, pool, active in Rules(Path(config)).repairs()
                if pool == "COPYPOOL1" and not active
            ]
            left = sum(report.gaps_left for report in done)
            failed = sum(len(report.failed) for report in done)
            teller.say(f"report={json.dumps({'left': left, 'failed': failed})}")
            teller.say("over")
            teller.wait()
            for member in store.pools.pools["COPYPOOL1"].members:
                member.next_try = 0.0
            store.revive("COPYPOOL1")
    teller.say("closed")


def read_all(teller: Teller, config: str, journal: str) -> None:
    """Every object from wherever it is best read, and from each pool: right bytes or an exception. Then `check`."""
    sent = Journal.load(Path(journal)).sent
    digests = {item.digest for one in sent.values() for item in one.objects}
    report: dict[str, Any] = {"wrong": [], "unreadable": [], "pool": []}
    with Store.open(config, read_only=True) as store:
        for entry in list(store.query_objects()):
            for pool in (None, *POOLS):
                told = _read(store, entry.node, entry.name, entry.version, pool)
                if isinstance(told, str):
                    report["unreadable" if pool is None else "pool"].append(told)
                elif told is not None and told not in digests:
                    report["wrong"].append(f"{entry.name!r} from {pool}")
    problems = check_store(config).problems
    report["check"] = [str(problem) for problem in problems]
    teller.say(f"report={json.dumps(report)}")


def _read(
    store: Store, node: str, name: bytes, version: int, pool: str | None
) -> bytes | str | None:
    """Digest of what was read; why it could not be; None: the pool does not hold it."""
    import xxhash

    from fanout.errors import ObjectNotFound

    try:
        with store.get(node, name, version=version, pool=pool) as reader:
            return bytes(xxhash.xxh3_128_digest(reader.read()))
    except ObjectNotFound:
        return None
    except FanoutError as error:
        return f"{pool}: {name!r}: {error}"
