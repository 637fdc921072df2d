"""The n-th allocation of Python fails, alone and with those after it, for n = 1, 2, 3 … until a commit no longer reaches it.

What could break: a commit that is durable and reported as failed, because something was allocated after it; a catalog that does not go on
afterwards.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from fanout.catalog import Catalog, Commit, CommitDoubt, NewAggregate, NewCopy, Place, PoolEntry
from fanout.catalog.rows import VolumeEntry
from fanout.errors import CatalogError
from fanout.types import Member, ObjectKind, PoolKind

if TYPE_CHECKING:
    from pathlib import Path

_testcapi = pytest.importorskip("_testcapi", reason="this Python was built without _testcapi")
BOUND = 5000  # allocations of a commit


def commit_of(number: int) -> Commit:
    key = number.to_bytes(16, "big")
    place = Place(0, bytes(16), 4096 * (1 + number), 4096, 4096, 0, 10)
    aggregate = NewAggregate(
        aggregate=key,
        primary="P",
        members=[Member(b"name", 0, 10, bytes(16))],
        copies=(NewCopy("P", (place,)),),
        gaps=(),
    )
    return Commit(key, 1, "N1", ObjectKind.BACKUP, "P", (), (aggregate,))


# What the interpreter itself cannot report for want of memory it calls unraisable, and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "length", [1, 12]
)  # from there on all: CPython itself does not come back from that
def test_no_memory_in_a_commit(tmp_path: Path, length: int) -> None:
    """Told and true: what is returned is there, what raised is not, and what is in doubt the fence knows."""
    path = tmp_path / "catalog.db"
    volume = VolumeEntry(bytes(16), "P", "/none", 1 << 40, 4096, 1, 0, 0, False)
    pool = PoolEntry(bytes(16), "P", PoolKind.PRIMARY)
    Catalog.create(path, store=bytes(16), pools=[pool], volumes=[volume])
    struck = stored = 0
    with Catalog.open(path) as catalog:
        for n in range(1, BOUND):
            commit = commit_of(n)
            told: list[int] | Exception
            _testcapi.set_nomemory(n, n + length)
            try:
                told = catalog.commit([commit])
            except Exception as error:
                told = error
            finally:
                _testcapi.remove_mem_hooks()
            if isinstance(told, CommitDoubt):
                settled = catalog.fence([(commit.transaction, 1)])[commit.transaction, 1]
                told = told if settled is None else [settled]
            there = catalog.committed(commit.transaction)
            assert (there is not None) == (not isinstance(told, Exception)), (n, told)
            if isinstance(told, Exception):
                struck, stored = struck + 1, 0
                assert isinstance(told, (CatalogError, CommitDoubt, MemoryError)), (n, told)
                continue
            stored += 1
            if stored == 20:
                break  # twenty in a row: nothing of it is reached any more
        else:
            pytest.fail("no end")
        assert struck > 5
        with contextlib.suppress(MemoryError):
            assert catalog.verify() == []
