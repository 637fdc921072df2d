"""The oracle itself: silent about a healthy store, and loud about every lie that a test can plant.

What could break: an oracle that finds nothing proves nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import sqlite3
from typing import TYPE_CHECKING

import pytest

from fanout.scribe import Scribe
from tests.conftest import SEED
from tests.crash import media, oracle
from tests.crash.journal import Fate, Journal, Sent, SentObject, Teller
from tests.crash.site import KIB, CrashSite, put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.crash.site import Saved

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


@contextlib.contextmanager
def telling(journal: Journal) -> Iterator[Teller]:
    """A teller whose lines the journal takes at the end."""
    read, write = os.pipe()
    with open(read, "rb") as lines:
        try:
            yield Teller(write)
        finally:
            os.close(write)
            journal.take(lines.read())


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CrashSite, bytes, Saved]]:
    """A store with three transactions: N1's in all pools, N2's, and a large one of N1's that overflowed and replaces an object."""
    made = CrashSite(tmp_path_factory.mktemp("healthy"))
    made.create()
    journal, make = Journal(), random.Random(SEED).randbytes
    with telling(journal) as teller, made.open() as store:
        put(store, teller, "N1", {b"x": make(9000), b"y": b""}, transaction=A)
        put(store, teller, "N2", {b"x": make(70 * KIB)}, transaction=B)
        put(store, teller, "N1", {b"x": make(300 * KIB)}, transaction=C)
    yield made, b"".join(journal.lines), made.save()
    made.remove()


@pytest.fixture
def site(healthy: tuple[CrashSite, bytes, Saved]) -> CrashSite:
    """That store, as it was."""
    made, _, saved = healthy
    made.restore(saved)
    return made


@pytest.fixture
def journal(healthy: tuple[CrashSite, bytes, Saved]) -> Journal:
    """Its journal."""
    made = Journal()
    made.take(healthy[1])
    return made


def test_silent_about_a_healthy_store(site: CrashSite, journal: Journal) -> None:
    """All stages, repairs and rebuilding too, in a fresh process."""
    assert len(journal.of(Fate.ACKNOWLEDGED)) == 3
    oracle.judge(site.path, journal, repair=True)


def test_silent_about_a_volume_that_was_not_made(site: CrashSite, journal: Journal) -> None:
    """A kill in the middle of a pool's growth: a rebuild leaves numbers out, for the file might have been a volume."""
    made = max((site.base / "sequential").glob("TAPEPOOL.*"))
    (made.parent / "TAPEPOOL.00009.fanout").touch()
    oracle.judge(site.path, journal)


def test_understands_deletions(site: CrashSite, journal: Journal) -> None:
    """A member, then a whole aggregate; and it is loud about what is deleted without a word, or not deleted though it was said."""
    with telling(journal) as teller, site.open() as store:
        teller.delete(0, [(A, b"y")])
        store.delete("N1", [b"y"])
        teller.deleted(0)
    oracle.judge(site.path, journal)
    with site.open() as store:
        store.delete("N2", b"x")
    assert any("was acknowledged, and is gone" in found for found in found_in(site, journal))
    with telling(journal) as teller:
        teller.delete(1, [(B, b"x"), (C, b"x")])
    assert any("deletion 1: 1 of 2 objects" in found for found in found_in(site, journal))
    with site.open() as store:
        store.delete("N1", b"x")
    oracle.judge(site.path, journal, repair=True)
    with telling(journal) as teller:
        teller.delete(2, [(A, b"x")])
        teller.deleted(2)
    assert any("deletion 2: 1 of 1 objects" in found for found in found_in(site, journal))


def found_in(site: CrashSite, journal: Journal) -> list[str]:
    return oracle.look(site.path, journal, opened=True)


def test_waits_for_the_locks(
    site: CrashSite, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that somebody still holds is not looked at."""
    monkeypatch.setattr(media, "LOCK_SECONDS", 0.1)
    with open(site.volume("COPYPOOL2"), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(media.Locked, match="COPYPOOL2"):
            oracle.look(site.path, journal, opened=True)


# ---- lies about what was sent ------------------------------------------------------------------------


def forget(journal: Journal) -> None:
    del journal.sent[B]


def refuse(journal: Journal) -> None:
    journal.sent[B].fate = Fate.REFUSED


def invent(journal: Journal) -> None:
    ghost = Sent(b"g" * 16, "N1", "backup", (SentObject(b"z", 0, bytes(16)),))
    ghost.fate = Fate.ACKNOWLEDGED
    journal.sent[ghost.transaction] = ghost


def send_more(journal: Journal) -> None:
    journal.sent[A].objects += (SentObject(b"z", 0, bytes(16)),)


def send_other_bytes(journal: Journal) -> None:
    first, *rest = journal.sent[A].objects
    journal.sent[A].objects = (first._replace(digest=bytes(16)), *rest)


def say_removed(journal: Journal) -> None:
    journal.sent[A].removed = ("COPYPOOL2",)


def say_another_commit(journal: Journal) -> None:
    journal.sent[A].csn += 1


JOURNAL_LIES: dict[Callable[[Journal], None], str] = {
    forget: "V2",
    refuse: "V2",
    invent: "V3",
    send_more: "V3",
    send_other_bytes: "V3",
    say_removed: "V13",
    say_another_commit: "V3",
}


@pytest.mark.parametrize("lie", JOURNAL_LIES, ids=lambda lie: lie.__name__)
def test_the_journal_says_something_else(
    site: CrashSite, journal: Journal, lie: Callable[[Journal], None]
) -> None:
    """What was acknowledged and what is there must be the same."""
    lie(journal)
    findings = oracle.look(site.path, journal, opened=True)
    assert any(finding.startswith(JOURNAL_LIES[lie]) for finding in findings), findings


# ---- lies of the catalog -----------------------------------------------------------------------------

_LAST = "(SELECT max(id) FROM aggregate)"
_COPYPOOL2 = "(SELECT id FROM pool WHERE name = 'COPYPOOL2')"
_MINE = f"aggregate = {_LAST} AND pool = {_COPYPOOL2}"
CATALOG_LIES = {
    f"INSERT INTO gap VALUES ({_LAST}, {_COPYPOOL2}, NULL, 'a lie', 0, 1, 1)": "V4",
    f"DELETE FROM placement WHERE {_MINE}": "V1",
    f"DELETE FROM copy WHERE {_MINE}": "V14",  # its placements stay: SQLite's own check
    f"UPDATE placement SET offset = offset + 4096 WHERE {_MINE}": "V1",
    f"UPDATE placement SET length = length + 8388608 WHERE {_MINE}": "V7",
    f"UPDATE copy SET present = '[]' WHERE {_MINE}": "V4",
    "UPDATE object SET digest = zeroblob(16) WHERE id = 1": "V1",
    "UPDATE object SET name = CAST('other' AS BLOB) WHERE id = 1": "V3",
    "UPDATE aggregate SET csn = csn + 9": "V3",
    "UPDATE copy SET csn = csn - 1": "V5",
    "UPDATE copy SET csn = csn + 1": "V5",
    "UPDATE volume SET epoch = epoch + 1": "V5",
    "UPDATE attempt SET required = '[]'": "V4",
}


@pytest.mark.parametrize("lie", CATALOG_LIES)
def test_the_catalog_lies(site: CrashSite, journal: Journal, lie: str) -> None:
    """One row that is not true."""
    with contextlib.closing(sqlite3.connect(site.base / "catalog.db")) as db, db:
        assert db.execute(lie).rowcount > 0
    findings = oracle.look(site.path, journal, opened=True)
    assert any(finding.startswith(CATALOG_LIES[lie]) for finding in findings), findings


def test_the_catalog_lies_about_a_gap_only(site: CrashSite, journal: Journal) -> None:
    """The rebuilt one knows better."""
    lie = next(iter(CATALOG_LIES))
    with contextlib.closing(sqlite3.connect(site.base / "catalog.db")) as db, db:
        db.execute(lie)
    findings = oracle.rebuild(site.path, journal, exact=True, flushed=False)
    assert any("the gap of COPYPOOL2" in finding for finding in findings), findings


# ---- lies of the media -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pool", ["DISKPOOL", "TAPEPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"]
)
def test_one_byte_of_one_copy(
    site: CrashSite, journal: Journal, rng: random.Random, pool: str
) -> None:
    """In its header, its data, or its footer."""
    with media.StoreOnMedia.look(site.path) as there:
        places = [
            place
            for aggregate in there.catalog.aggregates.values()
            for copy in aggregate.copies.values()
            for place in copy.places
            if copy.pool == pool
        ]
    place = rng.choice(places)
    at = place.offset + rng.randrange(place.used)
    with open(site.volume(pool), "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))
    findings = oracle.look(site.path, journal, opened=True)
    assert any(finding.startswith("V1") for finding in findings), (at, place, findings)


def test_a_volume_that_is_gone(site: CrashSite, journal: Journal) -> None:
    """Is a finding, and hides nothing else."""
    site.volume("COPYPOOL1").write_bytes(bytes(site.size))
    journal.sent[A].fate = Fate.REFUSED
    findings = oracle.look(site.path, journal, opened=True)
    assert {"V1", "V2"} <= {finding[:2] for finding in findings}


def test_evidence_that_was_not_durable(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories that lack the last commits: a listed doubt, unless they were said to be flushed first."""
    site = CrashSite(tmp_path)
    site.create()
    journal = Journal()
    with monkeypatch.context() as patch:
        patch.setattr(Scribe, "append", lambda self, entries: list(entries))
        with telling(journal) as teller, site.open() as store:
            put(store, teller, "N1", {b"x": rng.randbytes(9000)}, transaction=A)
    assert oracle.rebuild(site.path, journal, exact=False, flushed=False) == []
    for strict in ({"exact": True, "flushed": False}, {"exact": False, "flushed": True}):
        findings = oracle.rebuild(site.path, journal, **strict)
        assert any(finding.startswith("V16") for finding in findings), findings
    assert any(f.startswith("V5") for f in oracle.look(site.path, journal, opened=True))
    oracle.judge(site.path, journal)


def test_repairs_that_do_nothing(
    site: CrashSite, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gap that stays is found."""
    monkeypatch.setattr("fanout.reconcile._Run.work", lambda run: run.preview())
    with contextlib.closing(sqlite3.connect(site.base / "catalog.db")) as db, db:
        db.execute(next(iter(CATALOG_LIES)))
    findings = oracle.reopen(site.path, repair=True)
    assert any(finding.startswith("V17") for finding in findings), findings
