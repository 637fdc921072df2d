"""The catalog as files: who may read them, who may write, and what is refused.

What could break: names of everybody's files readable by others; two writers; a reader that sees half a commit, or
that keeps the log from being folded; a strange file taken for a catalog.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from fanout.catalog import Catalog, CatalogReader, LogFolder, locks
from fanout.catalog.folding import FOLD_PAUSE
from fanout.errors import CatalogBusy, CatalogError, CatalogVersion
from tests.faults import devices

if TYPE_CHECKING:
    from tests.catalog.conftest import Sample


def test_files_are_private_whatever_the_umask(sample: Sample) -> None:
    """Also the log and the index of the log, which SQLite makes later."""
    before = os.umask(0)
    try:
        sample.create()
        with sample.open() as catalog:
            catalog.commit([sample.commit()])
            modes = {p.name: p.stat().st_mode & 0o777 for p in sample.path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {
        "catalog.db": 0o600,
        "catalog.db-wal": 0o600,
        "catalog.db-shm": 0o600,
        "catalog.db.lock": 0o600,
        "catalog.db.ballast": 0o600,
    }


def test_who_may_not_read_it_hears_that(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's "unable to open database file" sends an operator to look for damage."""
    sample.create()
    monkeypatch.setattr(os, "access", lambda *_: False)
    for opening in (CatalogReader, Catalog.open):
        with pytest.raises(CatalogError, match="cannot be read by this user; run as the owner"):
            opening(sample.path)


def test_create_never_overwrites(sample: Sample) -> None:
    """Not a catalog, not another file, not through a link; and no draft is left behind."""
    sample.path.write_bytes(b"precious")
    with pytest.raises(CatalogError, match="nothing is overwritten"):
        sample.create()
    assert sample.path.read_bytes() == b"precious"
    sample.path.unlink()
    sample.path.symlink_to("elsewhere")
    with pytest.raises(CatalogError):
        sample.create()
    assert sorted(p.name for p in sample.path.parent.iterdir()) == ["catalog.db"]


def test_open_never_creates(sample: Sample) -> None:
    """An open of the wrong place must not leave an empty catalog there."""
    with pytest.raises(CatalogError, match=r"no catalog here.*rebuild catalog.*init"):
        sample.open()
    with pytest.raises(CatalogError, match=r"no catalog here.*rebuild catalog.*init"):
        CatalogReader(sample.path)
    assert list(sample.path.parent.iterdir()) == []


@pytest.mark.parametrize("which", ["catalog.db", "catalog.db.lock"])
def test_links_are_refused(sample: Sample, which: str) -> None:
    """A link could lead the writer to somebody else's file."""
    sample.create()
    path = sample.path.parent / which
    if path.exists():
        path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))
    with pytest.raises(CatalogError, match="symbolic link"):
        sample.open()


def test_strange_files_are_refused_by_name(sample: Sample) -> None:
    """Garbage, another program's database, a newer catalog: each a typed error, and the file stays as it is."""
    path = sample.path
    path.write_bytes(os.urandom(8192))
    with pytest.raises(CatalogVersion, match=r"catalog\.db"):
        sample.open()
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(CatalogVersion, match="not a fanout catalog"):
        sample.open()
    path.unlink()
    sample.create()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 5")
    db.close()
    with pytest.raises(CatalogVersion, match="schema 5"):
        CatalogReader(path)


def test_a_damaged_page_is_a_typed_error(sample: Sample) -> None:
    """Bytes flipped in the middle: refused or reported, never a crash and never a plain sqlite3 error."""
    sample.create()
    with sample.open() as catalog:
        catalog.commit([sample.commit([b"%d" % n for n in range(500)])])
    data = bytearray(sample.path.read_bytes())
    for offset in range(4096 + 100, len(data), 4096):
        data[offset : offset + 64] = os.urandom(64)
    sample.path.write_bytes(data)

    def read_all() -> list[str]:
        with sample.open() as catalog:
            list(catalog.objects())
            return catalog.verify()

    try:
        found = read_all()
    except CatalogError as error:
        found = [str(error)]
    assert found != []


def test_a_wait_for_another_writer_is_told(
    sample: Sample, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten silent seconds are taken for a command that hangs. Once, and not where nobody waits."""
    monkeypatch.setattr(locks, "SILENT", 0.0)
    sample.create()
    with sample.open():
        with pytest.raises(CatalogBusy):
            Catalog.open(sample.path)
        with pytest.raises(CatalogBusy):
            Catalog.open(sample.path, lock_wait=3 * locks.LOCK_POLL)
    (told,) = caplog.messages
    assert told == f"{sample.path}: waiting for the store, which this very process has open"


def test_a_second_writer_is_refused(sample: Sample) -> None:
    """In this process and from another; when the first ends, the next may come."""
    sample.create()
    script = f"from fanout.catalog import Catalog; Catalog.open({os.fspath(sample.path)!r})"
    with sample.open():
        # Who does what the message says must not end himself.
        with pytest.raises(CatalogBusy, match=r"this very process has .* close that store"):
            Catalog.open(sample.path)
        other = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        assert (
            f"CatalogBusy: {sample.path}: another process ({os.getpid()}) has the store open"
            in other.stderr
        )
    with sample.open():
        pass


def test_whose_lock_it_is_is_told_by_the_device_too() -> None:
    """Breaks if a process is named, and perhaps ended, that has a file of the same number locked in another file system."""
    with ExitStack() as closing:
        files = []
        for _ in range(2):
            where = closing.enter_context(devices.small_tmpfs(1 << 20))
            files.append(closing.enter_context(open(where / "file", "w")))
        numbers = {os.fstat(file.fileno()).st_ino for file in files}
        if len(numbers) > 1:
            pytest.skip("this kernel numbers the files of all tmpfs together")
        fcntl.flock(files[0], fcntl.LOCK_EX)
        told = [locks._holder(file.fileno())[0] for file in files]
    assert told == ["this very process", "another process"]


def test_a_lock_is_waited_for(sample: Sample) -> None:
    """A daemon that restarts finds its predecessor on the way out."""
    sample.create()
    first = sample.open()
    script = f"from fanout.catalog import Catalog; Catalog.open({os.fspath(sample.path)!r}, lock_wait=20)"
    with subprocess.Popen([sys.executable, "-c", script]) as other:
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
        first.close()
        assert other.wait(20) == 0


def test_readers_work_beside_a_writer_and_without_one(sample: Sample) -> None:
    """They see commits as they happen, whole; they change nothing; the log can be folded while they are open."""
    sample.create()
    with CatalogReader(sample.path) as reader:
        assert reader.store().csn == 0
        with sample.open() as writer:
            for csn in range(1, 4):
                writer.commit([sample.commit()])
                assert reader.store().csn == csn
                assert len(list(reader.objects())) == 2 * csn
            assert writer.checkpoint() == 0
        assert reader.store().csn == 3
    with CatalogReader(sample.path) as reader:
        assert len(list(reader.objects())) == 6
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._reads.execute("UPDATE store SET csn = 0")


def test_a_slow_consumer_of_a_listing_holds_nothing_up(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-read listing must not keep a read transaction open: the log would grow for ever."""
    monkeypatch.setattr("fanout.catalog.reader.PAGE_ROWS", 2)
    sample.create()
    with sample.open() as writer, CatalogReader(sample.path) as reader:
        writer.commit([sample.commit([b"1", b"2", b"3", b"4"])])
        listing = reader.objects()
        first = next(listing)
        writer.commit([sample.commit([b"5"])])
        assert writer.checkpoint() == 0
        log = sample.path.with_name("catalog.db-wal")
        size = log.stat().st_size
        writer.commit([sample.commit([b"6"])])
        assert log.stat().st_size == size, "the log starts over"
        assert [first.version, *(entry.version for entry in listing)] == [1, 2, 3, 4, 5, 6]


def test_commits_that_never_pause_keep_the_log_short(sample: Sample) -> None:
    """One has always come while the log was folded: if nobody waited it would grow for ever, some 20 MB a second."""
    sample.create()
    log, enough = sample.path.with_name("catalog.db-wal"), 256 << 10
    done = threading.Event()
    with sample.open() as writer:
        folder = LogFolder(writer, enough=enough, clock=itertools.count(step=FOLD_PAUSE).__next__)

        def fold() -> None:
            while not done.is_set():
                folder.fold_if_due()

        folding = threading.Thread(target=fold)
        folding.start()
        for _ in range(300):
            writer.commit([sample.commit()])
            time.sleep(0)  # as a committer does: somebody else may have the lock
        done.set()
        folding.join()
        assert log.stat().st_size < 32 * enough, "of 70 times that"


def test_a_log_that_was_long_once_is_not_folded_behind_every_commit(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file keeps its size. Once a second is enough, unless it grows: then a reader or a burst of commits is in the way."""
    sample.create()
    log, enough = sample.path.with_name("catalog.db-wal"), 256 << 10
    now, folded = 100.0, 0
    with sample.open() as writer:
        fold = writer.checkpoint

        def counted(**named: int) -> int:
            nonlocal folded
            folded += 1
            return fold(**named)

        monkeypatch.setattr(writer, "checkpoint", counted)
        folder = LogFolder(writer, enough=enough, clock=lambda: now)

        def commit() -> int:
            writer.commit([sample.commit()])
            folder.fold_if_due()
            return log.stat().st_size

        while commit() < enough:
            assert folded == 0, "it is short"
        size = log.stat().st_size
        assert folded == 1
        for _ in range(4):
            assert commit() == size, "it starts over"
        assert folded == 1
        now += 1.0
        commit()
        assert folded == 2
        with CatalogReader(sample.path) as reader:
            reader._reads.execute("BEGIN")
            reader._reads.execute("SELECT * FROM store").fetchall()
            before = folded
            while commit() < size + enough:
                assert folded == before, "no second has passed"
            assert folded == before + 1


def test_close_is_idempotent(sample: Sample) -> None:
    """Also when opening failed half way: nothing stays locked."""
    sample.create()
    catalog = sample.open()
    catalog.close()
    catalog.close()
    with sample.open() as again:
        assert again.store().csn == 0


def test_discard_takes_everything_but_never_an_open_store(sample: Sample) -> None:
    """The log goes too: a new catalog beside an old log would be a damaged one."""
    sample.create()
    with sample.open() as catalog:
        catalog.commit([sample.commit()])
        with pytest.raises(CatalogBusy):
            Catalog.discard(sample.path)
    Catalog.discard(sample.path)
    sample.create()
    with sample.open() as catalog:
        assert catalog.store().csn == 0


def test_what_a_killed_process_has_begun_is_removed_by_the_next_one(sample: Sample) -> None:
    """Breaks if drafts of catalogs stay for ever, as large as the store's, or if one that is being made is taken away."""
    code = f"""
import sys
from fanout.catalog.drafts import draft_of, write_draft
with draft_of({os.fspath(sample.path)!r}) as draft:
    write_draft(draft, bytes(16), (), (), 1)
    open(draft + "-wal", "w").close()
    print(draft, flush=True)
    sys.stdin.readline()
"""
    where = sample.path.parent
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        draft = process.stdout.readline().decode().strip()
        sample.create()
        assert {draft, f"{draft}-wal"} <= {str(path) for path in where.glob("*.new*")}
        process.kill()
    assert len(list(where.glob("*.new*"))) == 3
    assert len(list(where.iterdir())) == 4
    with pytest.raises(CatalogError, match="nothing is overwritten"):
        sample.create()
    assert [path.name for path in where.iterdir()] == ["catalog.db"]
