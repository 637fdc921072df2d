"""The n-th allocation of Python fails, alone and with those after it, for n = 1, 2, 3 … until a commit no longer reaches it.

What could break: a commit that is durable and reported as failed, because something was allocated after it; a catalog that does not go on
afterwards.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fanout.catalog import Catalog, Commit, CommitDoubt, NewAggregate, NewCopy, Place, PoolEntry
from fanout.catalog.rows import VolumeEntry
from fanout.committer import Committer
from fanout.errors import CatalogError
from fanout.types import Member, ObjectKind, PoolKind

if TYPE_CHECKING:
    from collections.abc import Sequence
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_memory_for_what_had_committed_before(tmp_path: Path) -> None:
    """A key that is handed in again while memory is short: the fence finds the earlier commit, and that is not this one."""
    path = tmp_path / "catalog.db"
    volume = VolumeEntry(bytes(16), "P", "/none", 1 << 40, 4096, 1, 0, 0, False)
    pool = PoolEntry(bytes(16), "P", PoolKind.PRIMARY)
    Catalog.create(path, store=bytes(16), pools=[pool], volumes=[volume])
    doubts = 0
    with Catalog.open(path) as catalog:
        settled: list[int | None] = []
        committer = Committer(catalog, settled=lambda _, csn: settled.append(csn), deadline=60.0)
        committer.commit(commit_of(1))
        real = catalog.commit

        def short_of_memory(group: Sequence[Commit]) -> list[int]:
            nonlocal doubts
            _testcapi.set_nomemory(n, n + 1)
            try:
                return real(group)
            except CommitDoubt:
                doubts += 1
                raise
            finally:
                _testcapi.remove_mem_hooks()

        catalog.commit = short_of_memory  # type: ignore[method-assign]
        for n in range(1, 400):
            again = replace(commit_of(1 + n), transaction=commit_of(1).transaction)
            with pytest.raises(CatalogError):
                committer.commit(again)
        committer.close()
    assert doubts > 5
    assert set(settled) == {1, None}
    assert settled.count(1) == 1
