"""Work grows as the store does, and no faster.

What could break: a question to the catalog that is answered by a look at everything, asked for each of everything. It is counted in
instructions of SQLite's machine, not in seconds: four times the transactions may take a little more than four times as many.
"""

from __future__ import annotations

import copy
import os
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

import fanout
from fanout.bench.measures.small import NODE, POOLS, put_many, site
from fanout.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FEW = 60
STEP = 50  # instructions between two counts
PER_GAP = 5  # statements, when a volume is given up
CONSTANT = 2_000  # instructions that anything may take once
TREES = 1.05  # a larger tree is a little deeper


class Meter:
    """Counts what all connections of this process execute: instructions, and the statements that they belong to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.statements = 0
        connect = sqlite3.connect

        def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
            made: sqlite3.Connection = connect(*arguments, **options)
            made.set_progress_handler(self._tick, STEP)
            made.set_trace_callback(self._begun)
            return made

        monkeypatch.setattr(sqlite3, "connect", counted)

    def _tick(self) -> int:
        self.count += STEP
        return 0

    def _begun(self, statement: str) -> None:
        self.statements += not statement.startswith("--")  # those of a trigger are comments


def expire(config: Path) -> None:
    """Delete all, and give the space back."""
    with Store.open(config) as store:
        assert store.delete(NODE, None, keep=0).objects


def delete_singly(config: Path) -> None:
    """One after the other."""
    with Store.open(config) as store:
        for entry in list(store.query_objects()):
            store.delete(NODE, entry.name)


def replace(config: Path) -> None:
    """The same names again: older versions become inactive."""
    with Store.open(config) as store:
        put_many(store, sum(1 for _ in store.query_objects()), 1, 8, "object")


def audit(config: Path) -> None:
    with Store.open(config) as store:
        fanout.audit_stgpool(store, POOLS[1], fix=True)


def lose_and_repair(config: Path) -> None:
    """A copy pool loses its volume, and is filled again."""
    lost = config.with_name("copy1.vol")
    fanout.retire_volume(config, lost, force=True)
    os.unlink(lost)
    Store.extend(config)
    with Store.open(config) as store:
        assert store.query_gaps()
        fanout.backup_stgpool(store, POOLS[0], POOLS[1])
        assert not store.query_gaps()


def damage_and_repair(config: Path) -> None:
    """All that a primary holds is damaged; an audit makes gaps of it, and they are closed."""
    with Store.open(config) as store:
        regions = [
            place.offset
            for entry in store.query_objects()
            for copy in store.catalog.copies(entry.aggregate)
            if copy.pool == POOLS[0]
            for place in copy.places
        ]
    with open(config.with_name("primary.vol"), "r+b") as file:
        for offset in regions:
            os.pwrite(file.fileno(), b"\xa5" * 512, offset)
    with Store.open(config) as store:
        assert fanout.audit_stgpool(store, POOLS[0], fix=True).marked == len(regions)
        fanout.restore_stgpool(store, POOLS[0])
        assert not store.query_gaps()


WORK: dict[str, Callable[[Path], object]] = {
    "open": lambda config: Store.open(config).close(),
    "check": fanout.check_store,
    "rebuild": lambda config: fanout.rebuild_catalog(config, into=config.with_name("again.db")),
    "audit": audit,
    "lose and repair": lose_and_repair,
    "damage and repair": damage_and_repair,
    "replace": replace,
    "expire": expire,
    "delete singly": delete_singly,
}


def costs(work: str, counts: tuple[int, int], directory: Path, meter: Meter) -> list[Meter]:
    """What some work took with so many transactions, and with so many."""
    found = []
    for count in counts:
        with site(directory, 64) as config:
            with Store.open(config) as store:
                put_many(store, count, 1, 8, "object")
            meter.count = meter.statements = 0
            WORK[work](config)
            found.append(copy.copy(meter))
    return found


@pytest.mark.parametrize("work", WORK)
def test_linear(work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (m.count for m in costs(work, (FEW, 4 * FEW), tmp_path, Meter(monkeypatch)))
    assert few > STEP
    assert many < CONSTANT + 4 * TREES * few, (few, many)


@pytest.mark.parametrize("work", ["check", "audit", "lose and repair"])
def test_many_are_asked_for_at_once(
    work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes through a whole store does not ask the catalog for one aggregate after the other: each question costs its way there."""
    few, many = (m.statements for m in costs(work, (64, 256), tmp_path, Meter(monkeypatch)))
    changed = PER_GAP * 192 if work == "lose and repair" else 0
    assert many - few < 192 + changed, (few, many)
