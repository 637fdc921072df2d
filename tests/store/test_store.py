"""The store beyond the scenario: opening, sessions side by side, odd objects, reading from damaged copies.

What could break: a store that is made anew where a device is missing; two writers; an old catalog that hands out live data as
free space; wrong bytes handed out because one copy is damaged.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fanout.audit import audit_stgpool
from fanout.check import check_store
from fanout.config import MAX_SECONDARIES
from fanout.engine import Engine
from fanout.errors import (
    CatalogBusy,
    CatalogError,
    CatalogStale,
    ConfigError,
    FanoutError,
    IntegrityError,
    InterfaceError,
    ObjectNotFound,
    PoolUnavailable,
    TransactionError,
    TransactionFailed,
    UnknownPool,
    VolumeForeign,
)
from fanout.rebuild import rebuild_catalog
from fanout.reconcile import backup_stgpool
from fanout.store import Store
from fanout.types import ObjectKind
from tests.faults.kernel import wait_until
from tests.store.conftest import MIB, POOLS

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.read import ObjectReader
    from tests.store.conftest import Site


# ---- making and opening ------------------------------------------------------------------------


def test_create_overwrites_nothing(site: Site) -> None:
    """Not a catalog, not a volume; and what was made before the refusal is removed again."""
    config = site.configure()
    precious = Path(site.volume("COPYPOOL2"))
    precious.write_bytes(b"precious")
    with pytest.raises(VolumeForeign):
        Store.create(config)
    assert precious.read_bytes() == b"precious"
    assert not config.store.catalog.exists()
    assert not Path(site.volume("DISKPOOL")).exists()
    precious.unlink()
    Store.create(config)
    with pytest.raises(CatalogError, match="nothing is overwritten"):
        Store.create(config)


def test_create_with_force_begins_anew(site: Site) -> None:
    """All of the old store is gone; but never while somebody has it open."""
    site.create()
    with site.open() as store:
        site.put_all(store)
        with pytest.raises(CatalogBusy):
            Store.create(site.path, force=True)
    Store.create(site.path, force=True)
    with site.open() as store:
        assert list(store.query_objects()) == []
        site.put_all(store)
        assert len(list(store.query_objects())) == 5


def test_open_never_creates(site: Site) -> None:
    """Neither the catalog nor a volume that is missing: an unmounted directory must not be filled."""
    site.configure()
    with pytest.raises(CatalogError):
        site.open()
    site.create()
    Path(site.volume("COPYPOOL1")).rename(site.base / "elsewhere")
    with site.open() as store:
        status = {volume.pool: volume for volume in store.query_volumes()}
        assert status["COPYPOOL1"].state == "unavailable"
        assert "does not exist" in status["COPYPOOL1"].reason
        assert status["DISKPOOL"].state == "available"
        receipt = site.put(store, "N2")
        assert {gap.pool for gap in receipt.gaps} == {"COPYPOOL1"}
        assert "does not exist" in receipt.gaps[0].reason
        assert not Path(site.volume("COPYPOOL1")).exists()
        # It comes back, and a new session begins with full lists.
        (site.base / "elsewhere").rename(site.volume("COPYPOOL1"))
        for member in store.pools.pools["COPYPOOL1"].members:
            member.next_try = 0.0
        assert not site.put(store, "N1").degraded


def test_one_busy_volume_is_unavailable_not_the_store(site: Site) -> None:
    """Its reason is kept, its objects are read from elsewhere."""
    site.create()
    with site.open() as store:
        site.put(store, "N1")
    with site.locked("DISKPOOL"), site.open(lock_wait=0) as store:
        reader = store.get("N1", b"A")
        assert reader.read() == site.objects["N1", b"A"]
        assert reader.pool == "ACTIVEDATAPOOL"
        assert "locked" in reader.faults[0].reason
        with pytest.raises(PoolUnavailable, match="locked"):
            store.get("N1", b"A", pool="DISKPOOL").read()
        # The primary is closed: its next pool takes what belonged there.
        receipt = site.put(store, "N1")
        assert {stored.primary for stored in receipt.objects} == {"TAPEPOOL"}


FEW_FILES = """
import os, resource, sys
from fanout.errors import FanoutError
from fanout.store import Store
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
used = len(os.listdir("/proc/self/fd"))
for more in range(20):
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, hard))
    try:
        with Store.open(sys.argv[1]) as store:
            print("open", [volume.path for volume in store.query_volumes() if volume.state != "available"])
    except FanoutError as error:
        print("refused", error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == used
"""


def test_with_too_few_descriptors_it_opens_whole_or_not_at_all(site: Site) -> None:
    """A limit of the process is no volume's fault: going without them would make gaps everywhere, on sound devices.

    And whatever was opened before the limit was met is closed again.
    """
    site.create()
    command = [sys.executable, "-c", FEW_FILES, os.fspath(site.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 20
    assert {line for line in lines if line.startswith("open")} == {"open []"}
    assert any("Too many open files" in line and "raise the limit" in line for line in lines)


def test_a_foreign_volume_is_not_touched(site: Site, tmp_path: Path) -> None:
    """The volume of another store at the configured path: swapped disks."""
    site.create()
    other = type(site)(tmp_path / "other", site.rng)
    other.base.mkdir()
    other.create()
    shutil.copyfile(other.volume("COPYPOOL1"), site.volume("COPYPOOL1"))
    before = Path(site.volume("COPYPOOL1")).read_bytes()
    with site.open() as store:
        (status,) = [v for v in store.query_volumes() if v.pool == "COPYPOOL1"]
        assert "belongs to store" in status.reason
        assert site.put(store, "N2").degraded
    assert Path(site.volume("COPYPOOL1")).read_bytes() == before


def test_an_old_catalog_never_allocates(site: Site) -> None:
    """Restored from before the last opening, or from before the last commit: refused; reading goes on."""
    site.create()
    catalog = site.base / "catalog.db"
    old = site.base / "old.db"
    shutil.copyfile(catalog, old)
    with site.open() as store:
        site.put(store, "N1")
    new = catalog.read_bytes()
    catalog.write_bytes(old.read_bytes())
    with pytest.raises(CatalogStale, match="older"):
        site.open()
    catalog.write_bytes(new)
    with site.open() as store:
        site.check(store, "N1", b"A", None)


def test_a_second_writer_is_refused(site: Site) -> None:
    """From another process; questions and reading beside the writer are fine."""
    site.create()
    script = f"""
from fanout.store import Store
try:
    Store.open({os.fspath(site.path)!r}, lock_wait=0)
except Exception as error:
    print(type(error).__name__)
with Store.open({os.fspath(site.path)!r}, read_only=True) as store:
    print(len(list(store.query_objects())), len(store.get("N1", "A").read()))
"""
    with site.open() as store:
        site.put_all(store)
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["CatalogBusy", "5", "100000"]
        with site.open(read_only=True) as reader:
            assert reader.query_gaps() == store.query_gaps()
            assert [p.objects for p in reader.query_stgpools()] == [
                p.objects for p in store.query_stgpools()
            ]
            with pytest.raises(InterfaceError, match="read-only"):
                reader.session("N1")


def test_a_pool_that_the_catalog_does_not_know(site: Site) -> None:
    """Named with file and key, before anything is opened."""
    site.create()
    text = site.path.read_text().replace("COPYPOOL2", "COPYPOOL9")
    site.path.write_text(text)
    with pytest.raises(ConfigError, match=r"pools\.COPYPOOL9"):
        site.open()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(("there", "now"), [("N1", "n1"), ("COPYPOOL2", "CopyPool2")])
def test_a_name_that_is_written_in_another_case(
    site: Site, there: str, now: str, *, read_only: bool
) -> None:
    """Names are found in any case, so all that was stored would be there: nothing of it was found, and a pool was begun anew beside it."""
    site.create()
    with site.open() as store:
        site.put(store, "N1")
    before = site.path.read_text()
    site.path.write_text(before.replace(there, now).replace(f"{now}.vol", f"{there}.vol"))
    with pytest.raises(ConfigError, match=rf'\.{now}: .* knows it as "{there}": write it so'):
        site.open(read_only=read_only)
    with pytest.raises(ConfigError, match=f'knows it as "{there}"'):
        Store.extend(site.path)
    site.path.write_text(before)
    with site.open(read_only=read_only) as store:
        assert store.get("n1", "A").read() == site.objects["N1", b"A"]
        assert len(store.catalog.pools()) == len(POOLS)


def test_nothing_is_left_behind(site: Site, no_leaks: None) -> None:
    """No descriptor, no thread, also when opening fails."""
    site.create()
    with site.open() as store:
        site.put_all(store)
        store.get("N1", "A").read()
    catalog = site.base / "catalog.db"
    catalog.rename(site.base / "moved.db")
    with pytest.raises(CatalogError):
        site.open()


def test_an_engine_can_be_shared(site: Site) -> None:
    """The store does not close what it did not open."""
    site.create()
    with Engine(memory_bytes=32 * MIB) as engine:
        with site.open(engine=engine) as store:
            site.put(store, "N1")
        assert not engine.closed


# ---- objects -------------------------------------------------------------------------------------


def test_odd_objects(site: Site) -> None:
    """Empty ones, one byte, names that are not UTF-8, the longest name, a name put twice, a whole transaction of nothing."""
    site.create()
    names = [b"\x80\x81", b"n" * 1024, b"..", b"/", b"a\nb", "é".encode("latin-1")]
    with site.open() as store:
        with store.session("N1") as session:
            for attempt in session.attempts():
                with attempt as txn:
                    for number, name in enumerate(names):
                        txn.put(name, b"x" * (number % 2))
                    txn.put("twice", b"old")
                    txn.put("twice", b"new")
            for attempt in session.attempts():
                with attempt:
                    pass
        for pool in ("DISKPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"):
            for number, name in enumerate(names):
                assert store.get("N1", name, pool=pool).read() == b"x" * (number % 2)
        versions = [entry.version for entry in store.query_objects(name="twice")]
        assert store.get("N1", "twice").read() == b"new"
        assert store.get("N1", "twice", version=versions[0]).read() == b"old"
        assert [entry.active for entry in store.query_objects(name="twice")] == [False, True]
        with pytest.raises(ObjectNotFound):
            store.get("N1", "nothing")
        with pytest.raises(ObjectNotFound, match="version 999"):
            store.get("N1", "twice", version=999)
        with pytest.raises(ObjectNotFound):
            store.get("N2", "twice")
        with pytest.raises(UnknownPool):
            store.get("N3", "twice")


IN_A_LOCALE = r"""
import sys
from fanout import Store
assert sys.getfilesystemencoding() != "utf-8"
with Store.open(sys.argv[1]) as store:
    with store.session("N1") as session, session.begin() as txn:
        txn.put("\u00e4", b"text")
        txn.put("\udce4", b"latin")
    assert [entry.name for entry in store.query_objects(name="\u00e4")] == [b"\xc3\xa4"]
    assert store.get("N1", "\u00e4").read() == b"text"
    assert store.delete("N1", ["\u00e4"]).objects == 1
    assert [entry.name for entry in store.query_objects()] == [b"\xe4"]
"""


def test_a_name_is_the_same_in_every_locale(site: Site) -> None:
    """Text was stored as UTF-8, and looked for and deleted in the encoding of the locale: in Latin-1 that is another object."""
    site.create()
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", IN_A_LOCALE, str(site.path)]
    subprocess.run(command, env=environment, check=True)
    with site.open() as store, pytest.raises(InterfaceError, match="UTF-8"):
        store.get("N1", "\ud800")


def test_as_many_secondaries_as_there_may_be(site: Site) -> None:
    """Of a span with sixteen copies a header or a stream may have no room for the last; and one that is missing is one gap."""
    names = [f"X{n:02}" for n in range(MAX_SECONDARIES - 3)]
    site.extra = "".join(
        f'[pools.{name}]\ntype = "copy"\ndevice_class = "disk"\n'
        f'volumes = [{{ path = "{name}.vol", size = "2 MiB" }}]\n'
        for name in names
    )
    site.configure()
    listed = ", ".join(f'"{name}"' for name in names)
    text = site.path.read_text().replace('"COPYPOOL2"]', f'"COPYPOOL2", {listed}]')
    site.path.write_text(text)
    Store.create(site.path)
    everyone = {"DISKPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL", *names}
    assert len(everyone) == 1 + MAX_SECONDARIES
    with site.open() as store:
        receipt = site.put(store, "N1")
        assert [set(stored.pools) for stored in receipt.objects] == [everyone] * 2
    with site.locked(names[-1]), site.open(lock_wait=0) as store:
        receipt = site.put(store, "N1")
        assert [gap.pool for gap in receipt.gaps] == [names[-1]]
    before = rebuild_catalog(site.path, force=True)
    assert (before.objects, before.gaps, before.lost) == (4, 1, ())
    with site.open() as store:
        assert backup_stgpool(store, "DISKPOOL", names[-1]).copied_objects == 2
        for pool in everyone:
            site.check(store, "N1", b"A", pool)
    assert check_store(site.path).problems == ()


def test_archives_never_go_to_active_data_pools(site: Site) -> None:
    """And no gap says that they should."""
    site.create()
    with site.open() as store:
        with store.session("N1", kind=ObjectKind.ARCHIVE) as session:
            for attempt in session.attempts():
                with attempt as txn:
                    txn.put("G", b"archived")
        assert not session.receipt.degraded  # type: ignore[union-attr]
        held = {pool for pool in POOLS if site.holds(store, pool, "N1", b"G")}
        assert held == {"DISKPOOL", "COPYPOOL1", "COPYPOOL2"}
        assert store.query_gaps() == []


def test_a_backup_in_a_session_for_archives_reaches_the_active_data_pool(site: Site) -> None:
    """The lists were made for the session's kind: what it said otherwise at `begin` missed the pool, without a gap."""
    site.create()
    with site.open() as store:
        with store.session("N1", kind=ObjectKind.ARCHIVE) as session:
            with session.begin() as txn:
                txn.put("G", b"archived")
            with session.begin(kind=ObjectKind.BACKUP) as txn:
                txn.put("H", b"backed up")
        assert not site.holds(store, "ACTIVEDATAPOOL", "N1", b"G")
        assert site.holds(store, "ACTIVEDATAPOOL", "N1", b"H")
        assert store.query_gaps() == []


def test_arguments_of_the_wrong_type_store_and_delete_nothing(site: Site) -> None:
    """A kind that is a plain word would quietly leave the active-data pools out."""
    site.create()
    word: Any = "backup"
    with site.open() as store:
        with pytest.raises(TypeError, match="ObjectKind"):
            store.session("N1", kind=word)
        with pytest.raises(TypeError, match="ObjectKind"):
            store.delete("N1", "A", kind=word)
        with pytest.raises(TypeError, match="ObjectKind"):
            store.get("N1", "A", kind=word)
        with pytest.raises(TypeError, match=r"bytes\.fromhex"):
            store.receipt("00" * 16)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="the name of a node is str"):
            store.session(None)  # type: ignore[arg-type]


def test_a_question_about_a_name_that_nobody_knows_has_no_answer(site: Site) -> None:
    """Names are looked up in any case: of a pool that was written otherwise it said that it had no gap, and held nothing."""
    site.create()
    with site.locked("COPYPOOL2"), site.open(lock_wait=0) as store:
        site.put(store, "N1")
    with site.open(read_only=True) as store:
        (gap,) = store.query_gaps(pool="copypool2", primary="diskpool", node="n1")
        assert (gap.pool, gap.objects) == ("COPYPOOL2", 2)
        assert len(list(store.query_objects(node="n1", pool="diskpool"))) == 2
        assert len(store.query_occupancy(node="n1", pool="diskpool")) == 1
        questions: list[Callable[[str], object]] = [
            lambda name: store.query_gaps(pool=name),
            lambda name: store.query_gaps(primary=name),
            lambda name: store.query_gaps(node=name),
            lambda name: store.query_objects(pool=name),
            lambda name: store.query_occupancy(node=name),
        ]
        for ask in questions:
            with pytest.raises(UnknownPool, match="NOBODY"):
                ask("NOBODY")


def test_a_pool_and_a_node_that_are_not_configured_any_more(site: Site) -> None:
    """What the catalog knows of them can be asked for, and an object that lies nowhere else names its pool and volume."""
    site.create()
    with site.locked("COPYPOOL2"), site.open(lock_wait=0) as store:
        site.put(store, "N1")
    text = site.path.read_text().replace("N1", "N9").replace(', "COPYPOOL2"', "")
    start = text.index("[pools.COPYPOOL1]")
    others = text[:start] + text[text.index("[pools.ACTIVEDATAPOOL]") :]
    others = others.replace('["COPYPOOL1"]', "[]")
    site.path.write_text(others)
    with site.open(read_only=True) as store:
        (gap,) = store.query_gaps(pool="COPYPOOL2", node="N1")
        assert gap.objects == 2
        assert len(list(store.query_objects(node="N1", pool="COPYPOOL1"))) == 2
        (entry,) = store.query_objects(node="N1", name="A")
        copies = [c for c in store.catalog.copies(entry.aggregate) if c.pool == "COPYPOOL1"]
        reader = store.reader(entry.aggregate, copies)
        with pytest.raises(PoolUnavailable, match=r"COPYPOOL1: .*COPYPOOL1\.vol: its pool is not"):
            reader.fetch(copies[0], entry.start, entry.length)


def test_a_closed_store_says_so(site: Site) -> None:
    """Breaks if a daemon that mixed up its order of closing hears of a database, or begins what it cannot end."""
    site.create()
    with site.open() as store, store.session("N1") as session:
        with session.begin() as transaction:
            transaction.put("small", b"x")
            transaction.put("large", bytes(5 * MIB))
        small, large = store.get("N1", "small"), store.get("N1", "large")
        store.close()
        transaction = session.begin()
        uses: list[Callable[[], object]] = [
            lambda: transaction.put("A", b"x"),
            small.read,
            large.read,
            lambda: store.session("N1"),
            lambda: store.get("N1", "A"),
            lambda: store.delete("N1", "A"),
            lambda: store.receipt(bytes(16)),
            lambda: list(store.query_objects()),
            store.query_gaps,
            store.query_occupancy,
            store.query_stgpools,
            store.query_volumes,
            store.__enter__,
            lambda: backup_stgpool(store, "DISKPOOL", "COPYPOOL1"),
            lambda: audit_stgpool(store, "DISKPOOL"),
        ]
        for use in uses:
            with pytest.raises(InterfaceError, match="the store is closed"):
                use()
        store.close()


def test_a_store_that_was_forgotten_is_told(site: Site) -> None:
    """Its threads and its lock last as long as the process: a daemon that opens it anew is told that somebody has it, and by then not who forgot."""
    site.create()
    script = f"""
from fanout.store import Store
with Store.open({os.fspath(site.path)!r}):
    pass
Store.open({os.fspath(site.path)!r}).close()
print("before")
Store.open({os.fspath(site.path)!r})
print("behind")
try:
    Store.open({os.fspath(site.path)!r}, lock_wait=0)
except Exception as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-u", "-W", "always", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    before, _, after = done.stdout.partition("before\n")
    warning, _, refusal = after.partition("behind\n")
    assert before == ""
    assert f"ResourceWarning: unclosed <fanout.Store '{site.base / 'catalog.db'}'>" in warning
    assert "this very process has the store open for writing; close that store" in refusal


def test_sessions_side_by_side(site: Site) -> None:
    """Many transactions of several clients at once: each is whole, in every pool, and reads back."""
    site.create()
    with site.open() as store:
        errors: list[BaseException] = []

        def client(number: int) -> None:
            try:
                with store.session("N1" if number % 2 else "N2") as session:
                    for round_ in range(10):
                        for attempt in session.attempts():
                            with attempt as txn:
                                for part in range(5):
                                    name = f"{number}/{round_}/{part}".encode()
                                    txn.put(name, name * 1000)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
        assert store.catalog.last_csn() == 60
        for pool in ("DISKPOOL", "COPYPOOL1", "COPYPOOL2"):
            entries = list(store.query_objects(pool=pool))
            assert len(entries) == 300
            for entry in entries[::7]:
                data = store.get(entry.node, entry.name, pool=pool).read()
                assert data == entry.name * 1000
        assert store.catalog.verify() == []


def test_a_transaction_that_is_sent_again_after_it_committed(site: Site) -> None:
    """Recognised; nothing is stored twice; the receipt can be asked for; its space is free again."""
    site.create()
    with site.open() as store:
        with store.session("N1") as session:
            identity = os.urandom(16)
            with session.begin(transaction=identity) as txn:
                txn.put("A", b"first")
            free = {v.path: v.free for v in store.query_volumes()}
            again = session.begin(transaction=identity, attempt=2)
            again.put("A", b"second")
            with pytest.raises(TransactionFailed) as refused:
                again.commit()
            assert refused.value.reason == "duplicate"
        receipt = store.receipt(identity)
        assert receipt is not None
        assert (receipt.attempt, len(receipt.objects)) == (1, 1)
        assert store.receipt(os.urandom(16)) is None
        assert store.get("N1", "A").read() == b"first"
        assert {v.path: v.free for v in store.query_volumes()} == free


def test_a_transaction_that_is_handed_in_twice_at_once(site: Site) -> None:
    """A client that was cut off sends it again while the first is being recorded: the bytes that are kept are those that the catalog names.

    Else the space of the committed ones is free for others once their volume was opened again.
    """
    site.create()
    identity, told = os.urandom(16), list[object]()
    with site.open() as store:

        def send(data: bytes) -> None:
            try:
                with store.session("N1") as session, session.begin(transaction=identity) as txn:
                    txn.put("A", data)
            except TransactionFailed as error:
                told.append(error.reason)
            else:
                told.append(data)

        sent = [site.rng.randbytes(300_000), site.rng.randbytes(300_000)]
        clients = [threading.Thread(target=send, args=(data,)) for data in sent]
        committer = store.ledger._committer
        with store.ledger._catalog._write_lock:  # the catalog takes its time
            clients[0].start()
            wait_until(lambda: committer._asked_at is not None, "the first to be handed in")
            clients[1].start()
            wait_until(lambda: committer._queue.qsize() == 1, "the second to be handed in")
        for client in clients:
            client.join()
        assert sorted(told, key=lambda one: isinstance(one, str)) == [sent[0], "duplicate"]
        for pool in store.pools.pools.values():
            for member in pool.members:
                assert member.volume is not None
                member.volume.fail("for a moment")
                member.next_try = 0.0
        with store.session("N1") as session, suppress(TransactionError):
            while True:  # until there is no room left
                with session.begin() as txn:
                    txn.put("B", site.rng.randbytes(1_000_000))
        for name in ("DISKPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"):
            assert store.get("N1", "A", pool=name).read() == sent[0], name


# ---- reading -------------------------------------------------------------------------------------


def test_a_damaged_copy_is_passed_over(site: Site) -> None:
    """Small and large objects, one flipped byte in the copy that is read first: the right bytes, and the fault is named."""
    site.objects["N1", b"big"] = site.rng.randbytes(9 * MIB)
    site.create()
    with site.open() as store:
        site.put(store, "N1")
    assert site.flip("DISKPOOL", site.objects["N1", b"A"]) == 1
    assert site.flip("TAPEPOOL", site.objects["N1", b"big"]) == 1
    with site.open(read_only=True) as store:
        for name, pool in ((b"A", "DISKPOOL"), (b"big", "TAPEPOOL")):
            with store.get("N1", name) as reader:
                assert b"".join(reader) == site.objects["N1", name]
                assert {fault.pool for fault in reader.faults} == {pool}
        with pytest.raises(IntegrityError, match="DISKPOOL"):
            store.get("N1", b"A", pool="DISKPOOL").read()
        with pytest.raises(FanoutError, match="expected"):
            store.get("N1", b"big", pool="TAPEPOOL").read()


def test_copies_damaged_at_different_places_are_put_together(site: Site) -> None:
    """Each copy of a large object is bad somewhere, no two at the same place: still readable."""
    site.objects = {("N2", b"E"): site.rng.randbytes(12 * MIB)}
    site.create()
    with site.open() as store:
        site.put(store, "N2")
    data = site.objects["N2", b"E"]
    for number, pool in enumerate(("TAPEPOOL", "COPYPOOL1", "COPYPOOL2")):
        part = data[(3 * number + 1) * MIB : (3 * number + 2) * MIB]
        assert site.flip(pool, part) == 1
    with site.open(read_only=True) as store, store.get("N2", b"E") as reader:
        assert b"".join(reader) == data
        assert {fault.pool for fault in reader.faults} >= {"TAPEPOOL"}


def test_the_same_place_damaged_everywhere_is_an_error(site: Site) -> None:
    """Never wrong bytes: what was handed out before the damaged block was right."""
    data = site.rng.randbytes(12 * MIB)
    site.objects = {("N2", b"E"): data}
    site.create()
    with site.open() as store:
        site.put(store, "N2")
    for pool in ("TAPEPOOL", "COPYPOOL1", "COPYPOOL2"):
        assert site.flip(pool, data[10 * MIB : 11 * MIB]) == 1
    with site.open(read_only=True) as store:
        got = bytearray()
        reader = store.get("N2", b"E")
        with pytest.raises(FanoutError, match="no copy"):
            _collect(reader, got)
        assert data.startswith(got)
        assert len(got) >= 8 * MIB


def _collect(reader: ObjectReader, into: bytearray) -> None:
    for piece in reader:
        into += piece


def test_order_of_reading(site: Site) -> None:
    """Primary, then active-data, then copy pools in the order of the configuration, on devices of one type."""
    site.create()
    with site.open() as store:
        site.put(store, "N1")
        entry = store.catalog.find("N1", b"A")
        assert entry is not None
        reader = store.reader(entry.aggregate, store.catalog.copies(entry.aggregate))
        assert [copy.pool for copy in reader.copies] == [
            "DISKPOOL",
            "ACTIVEDATAPOOL",
            "COPYPOOL1",
            "COPYPOOL2",
        ]


def test_records_of_commits_that_follow_one_another_share_a_block(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One alone takes a whole block, and a write to each volume. Enough of them do not wait, and neither does the end."""
    monkeypatch.setattr("fanout.scribe.GATHER", threading.TIMEOUT_MAX)
    monkeypatch.setattr("fanout.scribe.BATCH", 8)
    site.create()

    def blocks(store: Store) -> list[int]:
        """Left in the directories of the pools that get the objects of N1."""
        found = {volume.pool: volume for volume in store.pools.volumes()}
        directories = [found[pool].directory for pool in POOLS if pool != "TAPEPOOL"]
        return [directory.blocks_left for directory in directories if directory]

    with site.open() as store:
        before = blocks(store)
        site.put(store, "N1")
        assert blocks(store) == before, "one record for each of four pools"
        site.put(store, "N1")
        after = [left - 1 for left in before]
        wait_until(lambda: blocks(store) == after, "eight are enough")
        site.put(store, "N1")
    with site.open() as store:
        assert blocks(store) == [left - 1 for left in after]
