"""A share of the crash states; all of them: ``make test-faults``, ``make nightly``."""

from __future__ import annotations

import logging
import random
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.conftest import SEED
from tests.sim.crashes import EXHAUSTIVE, run_crashes, states
from tests.sim.ground import Grounds
from tests.sim.medium import Change
from tests.sim.oracle import connect
from tests.sim.recovery import Recovery


def test_every_cut_of_the_smallest_workload() -> None:
    """A power loss leaves half a transaction, loses an acknowledged one, or a store that does not open or come right again."""
    logging.disable()
    try:
        with Grounds() as grounds:
            done = run_crashes(["no copies at all"], grounds, samples=2, step=3)
    finally:
        logging.disable(logging.NOTSET)
    assert done.total() > 100


def test_the_states_of_a_cut() -> None:
    """Some way of losing writes would never be tried."""
    rng = random.Random(1)
    changes = [Change(n, 4096 * n, bytes(4096)) for n in range(EXHAUSTIVE)]
    found = [tuple(state.values()) for state in states(changes, rng, 10)]
    assert len(set(found)) >= 2**EXHAUSTIVE
    assert any(isinstance(fate, tuple) and 0 < len(fate) < 8 for state in found for fate in state)
    many = [tuple(s.values()) for s in states([*changes, changes[0]], rng, 10)]
    count = EXHAUSTIVE + 1
    assert {sum(map(bool, state)) for state in many if all(isinstance(f, bool) for f in state)} >= {
        0,
        1,
        count - 1,
        count,
    }
    assert list(states([], rng, 10)) == [{}]


def test_what_sqlite_recovers_of_a_log(tmp_path: Path) -> None:
    """States that come to different catalogs would be taken for the same, and only one of them be looked at."""
    rng = random.Random(SEED)
    made, path = tmp_path / "made.db", tmp_path / "catalog.db"
    with closing(sqlite3.connect(made, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (x)")
        for size in (10, 9000, 30, 100_000, 5):
            db.execute("INSERT INTO t VALUES (?)", (rng.randbytes(size),))
        path.write_bytes(made.read_bytes())
        whole = Path(f"{made}-wal").read_bytes()
    recovery, seen = Recovery(), set[int]()
    for _ in range(200):
        log, same = bytearray(whole), rng.randrange(len(whole))
        recovery.begin(same)
        for _ in range(2):
            at = rng.randrange(same, len(log))
            log[at] ^= rng.randrange(256)
            del log[rng.choice((len(log), rng.randint(at, len(log)))) :]
            Path(f"{path}-shm").unlink(missing_ok=True)
            Path(f"{path}-wal").write_bytes(log)
            with closing(connect(str(path))) as db:
                db.execute("PRAGMA user_version").fetchall()
                told = Path(f"{path}-shm").read_bytes()[16:40]
            found = recovery.of(log)
            assert found.is_told(told), f"seed {SEED}: {found}, {told!r}"
            assert found == Recovery().of(log), f"seed {SEED}"
            seen.add(found.frames)
    assert len(seen) > 3
