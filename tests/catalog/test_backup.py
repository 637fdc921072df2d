"""A copy of the catalog, made while it is in use.

What could break: half a commit in it, a copy that others may read, something that it overwrites, a writer that waits for it; and an
old copy in the place of a newer catalog, which would hand out live data as free space.
"""

from __future__ import annotations

import gc
import os
import re
import sqlite3
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from fanout import backup_catalog, rebuild_catalog
from fanout.catalog import CatalogReader
from fanout.catalog.backup import backup
from fanout.errors import CatalogError, CatalogStale, CatalogVersion
from tests.store.test_rebuild import put, small
from tests.strike import Striker

if TYPE_CHECKING:
    from pathlib import Path

    from fanout.catalog.backup import CatalogBackup
    from tests.catalog.conftest import Sample
    from tests.store.histories import SmallSite

__all__ = ["small"]  # the fixture


def listing(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_beside_a_writer_that_commits_all_the_time(sample: Sample) -> None:
    """Every copy is one moment: as many objects as its commit number says; and the writer does not wait."""
    sample.create()
    stop = threading.Event()
    committed = 0

    def write() -> None:
        nonlocal committed
        with sample.open() as catalog:
            while not stop.is_set():
                catalog.commit([sample.commit([b"%d" % n for n in range(50)])])
                committed += 1
                if committed % 20 == 0:
                    catalog.checkpoint()

    writer = threading.Thread(target=write)
    writer.start()
    copies: list[CatalogBackup] = []
    try:
        while len(copies) < 8 or committed < 100:
            target = sample.path.with_name(f"copy{len(copies)}.db")
            copies.append(backup(sample.path, target))
    finally:
        stop.set()
        writer.join()
    assert [copy.csn for copy in copies] == sorted(copy.csn for copy in copies)
    assert len({copy.csn for copy in copies}) > 2
    for copy in copies:
        with CatalogReader(copy.path) as reader:
            assert reader.verify() == []
            assert (reader.last_csn(), reader.store_id) == (copy.csn, copy.store)
            assert len(list(reader.objects())) == 50 * copy.csn


def test_private_whatever_the_umask_and_alone(sample: Sample, tmp_path: Path) -> None:
    """The names of everybody's files are in it. Nothing else is left behind."""
    sample.create()
    (tmp_path / "kept").mkdir()
    before = os.umask(0)
    try:
        made = backup(sample.path, tmp_path / "kept" / "copy.db")
    finally:
        os.umask(before)
    assert listing(tmp_path / "kept") == ["copy.db"]
    assert os.stat(made.path).st_mode & 0o777 == 0o600
    assert made.bytes == os.path.getsize(made.path)


def test_nothing_is_overwritten_unless_it_is_said(sample: Sample, tmp_path: Path) -> None:
    """Not a file, not through a link, not the catalog itself, not a database that is in use."""
    sample.create()
    target = tmp_path / "copy.db"
    target.write_bytes(b"precious")
    with pytest.raises(CatalogError, match="nothing is overwritten"):
        backup(sample.path, target)
    assert target.read_bytes() == b"precious"
    backup(sample.path, target, force=True)
    with CatalogReader(target) as reader:
        assert reader.verify() == []
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "elsewhere")
    for force in (False, True):
        with pytest.raises(CatalogError, match="not a regular file"):
            backup(sample.path, link, force=force)
        with pytest.raises(CatalogError, match=r"nothing is overwritten|is the catalog itself"):
            backup(sample.path, sample.path, force=force)
    os.link(sample.path, tmp_path / "hard.db")
    with pytest.raises(CatalogError, match="is the catalog itself"):
        backup(sample.path, tmp_path / "hard.db", force=True)
    with sample.open() as catalog:
        catalog.commit([sample.commit()])
    with pytest.raises(CatalogError, match="is the catalog of a store"):
        backup(target, sample.path, force=True)
    log = tmp_path / "copy.db-wal"  # of a catalog that was here once
    log.write_bytes(b"x")
    with pytest.raises(CatalogError, match="its log lies here"):
        backup(sample.path, target, force=True)
    log.unlink()
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(CatalogError, match=r"nowhere.*No such file"):
        backup(sample.path, tmp_path / "nowhere" / "copy.db")


def test_what_is_no_catalog_or_damaged_is_not_copied(sample: Sample, tmp_path: Path) -> None:
    """A backup that cannot be used is worse than none: it is verified before it has its name."""
    with pytest.raises(CatalogError, match=r"no catalog here.*rebuild catalog.*init"):
        backup(sample.path, tmp_path / "copy.db")
    sample.path.write_bytes(os.urandom(8192))
    with pytest.raises(CatalogVersion):
        backup(sample.path, tmp_path / "copy.db")
    sample.path.unlink()
    sample.create()
    with sample.open() as catalog:
        catalog.commit([sample.commit([b"%d" % n for n in range(300)])])
    with sqlite3.connect(sample.path) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("DELETE FROM copy")
    db.close()
    target = tmp_path / "copy.db"
    target.write_bytes(b"the good one of yesterday")
    with pytest.raises(CatalogError, match="the catalog is damaged"):
        backup(sample.path, target, force=True)
    assert target.read_bytes() == b"the good one of yesterday"
    assert [name for name in listing(tmp_path) if name.endswith(".new")] == []


def test_an_old_backup_never_allocates(small: SmallSite, caplog: pytest.LogCaptureFixture) -> None:
    """Back up, write more, lose the catalog, put the backup in its place: refused; the newest is made from the volumes."""
    with small.open() as store:
        put(small, store, {b"early": b"1" * 5000})
        made = backup_catalog(store, small.base / "copy.db")
        put(small, store, {b"late": b"2" * 5000})
    for path in small.base.glob("catalog.db*"):
        path.unlink()
    os.rename(made.path, small.catalog)
    with pytest.raises(CatalogStale, match="fanout rebuild catalog"):
        small.open()
    with small.open(read_only=True) as store:  # reading what it knows is fine
        assert store.get("N1", b"early").read() == b"1" * 5000
    assert "is older than the volumes" in caplog.text, "or nobody knows that things are missing"
    report: Any = rebuild_catalog(small.path, force=True)
    assert report.complete
    assert report.kept is not None
    with small.open() as store:
        assert store.get("N1", b"late").read() == b"2" * 5000
        put(small, store, {b"later": b"3" * 5000})


def test_a_reader_is_told_of_an_old_catalog_by_the_epoch_alone(
    small: SmallSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing was committed since the copy, but the store was opened; the newest catalog is never called old."""
    with small.open() as store:
        put(small, store, {b"early": b"1" * 5000})
    made = backup_catalog(small.path, small.base / "copy.db")
    with small.open():
        pass
    with small.open(read_only=True):
        assert caplog.text == ""
    for path in small.base.glob("catalog.db*"):
        path.unlink()
    os.rename(made.path, small.catalog)
    with small.open(read_only=True) as store:
        assert store.get("N1", b"early").read() == b"1" * 5000
    (told,) = caplog.messages
    assert re.search(r"catalog\.db is older than the volumes.* of epoch \d+, .* knows only", told)


def test_a_reader_beside_a_writer_is_not_told_that_the_catalog_is_old(
    small: SmallSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Breaks if what a volume says is compared with what the catalog said before: epochs, and commits in directories that go into their next half."""
    ended = threading.Event()

    def write() -> None:
        for _ in range(3):
            with small.open() as store:
                for number in range(40):
                    put(small, store, {b"%d" % number: b"x"})
        ended.set()

    writing = threading.Thread(target=write)
    writing.start()
    while not ended.is_set():
        with small.open(read_only=True):
            pass
    writing.join()
    assert "older" not in caplog.text


def test_a_backup_of_a_store_that_rested_is_as_good(small: SmallSite) -> None:
    """Nothing was written since: the copy is the catalog, and opens."""
    with small.open() as store:
        put(small, store, {b"early": b"1" * 5000})
    made = backup_catalog(small.path, small.base / "copy.db")
    for path in small.base.glob("catalog.db*"):
        path.unlink()
    os.rename(made.path, small.catalog)
    with small.open() as store:
        put(small, store, {b"late": b"2" * 5000})
        assert store.get("N1", b"early").read() == b"1" * 5000


# A file that nobody came to know of is closed with its object, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_anywhere_leaves_no_lock_behind(sample: Sample) -> None:
    """Of a draft: with it nobody would take it for left over, and its file stayed for as long as the process lives."""
    sample.create()
    target, point, struck = sample.path.with_name("copy.db"), 1, True
    while struck:
        striker = Striker(point)
        try:
            sys.setprofile(striker)
            backup(sample.path, target, force=True)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        struck, point = striker.struck, point + 1
        assert point < 1000, listing(sample.path.parent)  # each looks at all that is left over
    assert point > 100
    gc.collect()
    backup(sample.path, target, force=True)
    assert not [name for name in listing(sample.path.parent) if ".new" in name]
