"""The committer: groups, acknowledgements, doubts.

What could break: a caller woken before its commit is durable, or never; a bad commit that takes its neighbours with it; books that
say "free" for something that is committed; a commit in doubt taken for a failure.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from fanout.catalog import CatalogReader
from fanout.committer import Committer
from fanout.errors import CatalogError, CommitUnknown, InterfaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from fanout.catalog import Catalog, Commit
    from tests.catalog.conftest import Sample


class Books:
    """What a store would note, with a gate that holds the committer up so that a group can gather behind it."""

    def __init__(self) -> None:
        self.settled: list[tuple[bytes, int | None]] = []
        self.appended: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def settle(self, commit: Commit, csn: int | None) -> None:
        """The committer's first hook."""
        self.settled.append((commit.transaction, csn))

    def append(self, group: Sequence[tuple[Commit, int]]) -> None:
        """The committer's last hook."""
        self.appended.append([csn for _, csn in group])
        self.gate.wait(10)


@pytest.fixture
def books() -> Books:
    """Fresh books."""
    return Books()


@pytest.fixture
def committer(catalog: Catalog, books: Books) -> Iterator[Committer]:
    """A committer over a real catalog."""
    made = Committer(catalog, settled=books.settle, appended=books.append, deadline=60.0)
    yield made
    books.gate.set()
    made.close()


def in_threads(calls: Sequence[Callable[[], object]]) -> list[object]:
    """Run all at once; results or exceptions in their order."""
    results: list[object] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def test_many_sessions_one_group(
    sample: Sample, committer: Committer, books: Books, catalog: Catalog
) -> None:
    """Those that wait are committed together, each gets its own number, and the reader sees what was acknowledged."""
    books.gate.clear()
    assert committer.commit(sample.commit()) == 1
    commits = [sample.commit([b"%d" % n]) for n in range(20)]
    opener = threading.Timer(0.2, books.gate.set)
    opener.start()
    numbers = in_threads([partial(committer.commit, commit) for commit in commits])
    opener.join()
    assert sorted(numbers, key=str) == sorted(range(2, 22), key=str)
    for commit, number in zip(commits, numbers, strict=True):
        entry = catalog.committed(commit.transaction)
        assert entry is not None
        assert entry.csn == number
    assert max(map(len, books.appended)) >= 10, books.appended


def test_a_bad_commit_fails_alone(
    sample: Sample, committer: Committer, books: Books, catalog: Catalog
) -> None:
    """In a group with good ones: they commit, it gets the error, and the books know both."""
    books.gate.clear()
    first = sample.commit()
    committer.commit(first)
    again = sample.commit(transaction=first.transaction, attempt=2)
    odd = sample.commit([b"x" * 2000])
    good = [sample.commit([b"%d" % n]) for n in range(5)]
    opener = threading.Timer(0.2, books.gate.set)
    opener.start()
    group = [good[0], again, *good[1:3], odd, *good[3:]]
    results = in_threads([partial(committer.commit, commit) for commit in group])
    opener.join()
    assert isinstance(results[1], CatalogError)
    assert isinstance(results[4], CatalogError)
    assert all(isinstance(results[n], int) for n in (0, 2, 3, 5, 6))
    known = dict(books.settled)
    assert known[odd.transaction] is None
    assert all(known[commit.transaction] for commit in good)
    assert len(list(catalog.objects())) == 2 + 5


def test_an_interrupted_caller_is_still_settled(
    sample: Sample, committer: Committer, books: Books
) -> None:
    """Nobody waits for it any more, but its regions must not be taken for free."""
    ticket_only = sample.commit()
    thread = threading.Thread(target=committer.commit, args=(ticket_only,), daemon=True)
    thread.start()
    committer.close()
    assert books.settled == [(ticket_only.transaction, 1)]


def test_close_commits_what_waits_and_refuses_the_rest(
    sample: Sample, committer: Committer, books: Books
) -> None:
    """Idempotent; a commit after it is the caller's mistake, not a hang."""
    committer.commit(sample.commit())
    committer.close()
    committer.close()
    with pytest.raises(InterfaceError):
        committer.commit(sample.commit())


def test_wrong_books_stop_the_store(sample: Sample, catalog: Catalog, books: Books) -> None:
    """A hook that raises: the commit stands and is acknowledged, but nothing further is taken."""

    def broken(commit: Commit, csn: int | None) -> None:
        raise ZeroDivisionError

    committer = Committer(catalog, settled=broken, deadline=60.0)
    assert committer.commit(sample.commit()) == 1
    with pytest.raises(CatalogError, match="read-only"):
        committer.commit(sample.commit())
    committer.close()
    assert catalog.store().csn == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("where", "outcome"), [("_collect", CatalogError), ("_finish", CommitUnknown)]
)
def test_a_committer_that_ends_keeps_nobody_waiting(
    sample: Sample,
    catalog: Catalog,
    books: Books,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    outcome: type[Exception],
) -> None:
    """Memory runs out in its own few lines: who waits, and who comes later, is told so."""

    def no_memory(*_: object) -> None:
        raise MemoryError

    committer = Committer(catalog, settled=books.settle, deadline=0.5)
    monkeypatch.setattr(committer, where, no_memory)
    told = in_threads([partial(committer.commit, sample.commit())])
    assert isinstance(told[0], outcome)
    with pytest.raises(CatalogError, match="has ended"):
        committer.commit(sample.commit())
    assert committer.refusal is not None
    committer.close()


DOUBT = """
import os, pathlib, random, signal, sys
from tests.catalog.conftest import Sample
from fanout.catalog import Catalog
from fanout.committer import Committer
from fanout.errors import CatalogError, CommitUnknown
path, fault = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sample = Sample(path, 1)
sample.create()
catalog = sample.open()
settled = []
committer = Committer(catalog, settled=lambda commit, csn: settled.append(csn), deadline=60.0)
committer.commit(sample.commit())
real_fence = catalog.fence
"""


@pytest.mark.parametrize(("heal", "outcome"), [(True, "CatalogError"), (False, "CommitUnknown")])
def test_a_commit_in_doubt(
    fault_shim: Callable[[str], dict[str, str]], tmp_path: Path, heal: bool, outcome: str
) -> None:
    """Fence good: failed for sure, work goes on. Fence bad: unknown, not settled, and nothing is taken any more."""
    body = f"""
def fence(keys):
    if {heal}:
        fault.unlink()
    return real_fence(keys)
catalog.fence = fence
fault.write_text("sync")
try:
    committer.commit(sample.commit())
except (CatalogError, CommitUnknown) as error:
    assert type(error).__name__ == "{outcome}", repr(error)
assert settled == ([1, None] if {heal} else [1]), settled
try:
    assert committer.commit(sample.commit()) == 2
except CatalogError as error:
    assert not {heal} and "read-only" in str(error), error
else:
    assert {heal}
os.kill(os.getpid(), signal.SIGKILL)
"""
    fault, path = tmp_path / "fault", tmp_path / "catalog.db"
    arguments = [sys.executable, "-c", DOUBT + body, str(path), str(fault)]
    environment = fault_shim(str(fault)) | {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    fault.unlink(missing_ok=True)
    with CatalogReader(path) as reader:
        assert len(list(reader.objects())) in ((4,) if heal else (2, 4))
