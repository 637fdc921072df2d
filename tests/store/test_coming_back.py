"""A volume that had failed and is opened again, beside everything else that goes on.

What could break: it is written again with records missing in its directory, which nothing would append before the next opening; it stays
away for good; a record, or an aggregate that has just left it, is taken for the trace of a newer catalog, and the store does not open.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from fanout.errors import CatalogError
from fanout.scribe import Scribe
from fanout.volume import Volume, VolumeState
from tests.faults.kernel import wait_until
from tests.store.test_delete import put, sound
from tests.store.test_space import ACTIVE, fill_active, small

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.catalog import CatalogReader
    from fanout.store import Store
    from tests.store.conftest import Site
    from tests.store.histories import SmallSite

__all__ = ["small"]  # a fixture
PATIENCE = 0.5  # seconds that one thread waits for another which is to be held up


def fail(store: Store, pool: str) -> Volume:
    """Its volume fails, and may be tried again at once."""
    (member,) = store.pools.pools[pool].members
    assert member.volume is not None
    member.volume.fail("a test")
    member.next_try = 0.0
    return member.volume


def first(wrapped: Callable[..., Any], before: Callable[[], object]) -> Callable[..., Any]:
    """The same, with something that happens before its first call returns."""
    calls: list[bool] = []

    def call(*arguments: Any, **named: Any) -> Any:
        answer = wrapped(*arguments, **named)
        if not calls:
            calls.append(True)
            before()
        return answer

    return call


@pytest.mark.parametrize("question", ["last_csn", "set_epochs", "held_csns"])
@pytest.mark.parametrize(
    "error", [CatalogError("catalog.db", "out of memory"), KeyboardInterrupt()]
)
def test_its_opening_is_cut_short(
    site: Site, monkeypatch: pytest.MonkeyPatch, question: str, error: BaseException
) -> None:
    """Nobody has compared its directory with the catalog: it is not written, and the next session takes it in."""
    site.create()
    with site.open() as store:
        site.put(store, "N1")
        volume = fail(store, "COPYPOOL1")

        def refuse(*_: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(store.catalog, question, refuse)
            with pytest.raises(type(error)):
                store.revive("COPYPOOL1")
        assert volume.state is VolumeState.FAILED
        store.pools.pools["COPYPOOL1"].members[0].next_try = 0.0
        assert store.revive("COPYPOOL1") == 1
        assert not site.put(store, "N1").degraded


def test_a_record_comes_while_it_is_opened(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a commit from before it failed: it is appended with all that is missing, and the volume does not fail for it."""
    monkeypatch.setattr("fanout.scribe.GATHER", threading.TIMEOUT_MAX)
    site.create()
    with site.open() as store:
        site.put(store, "N1")
        volume = fail(store, "COPYPOOL1")
        opened = first(store.pools._book.set_epochs, store._bury)
        monkeypatch.setattr(store.catalog, "set_epochs", opened)
        assert store.revive("COPYPOOL1") == 1
        assert volume.directory is not None
        assert volume.directory.held_csns() == store.catalog.held_csns(volume.uuid)
        assert not site.put(store, "N1").degraded


@pytest.mark.parametrize("alone", [True, False])
def test_no_memory_for_its_records(
    small: SmallSite, monkeypatch: pytest.MonkeyPatch, *, alone: bool
) -> None:
    """While those of a commit are prepared, volume by volume: it is not written again with these missing, and the others have theirs.

    While they are written together: the same of all.
    """
    with small.open() as store:
        volume = next(v for v in store.pools.volumes() if v.pool == ACTIVE)
        short = threading.Event()

        def no_memory(*_: object, **__: object) -> None:
            short.set()
            raise MemoryError

        with monkeypatch.context() as patch:
            if alone:
                patch.setattr(volume.directory, "prepare", no_memory)
            else:
                patch.setattr(store.engine, "run", no_memory)
            put(store, {b"c": b"3"})
            assert short.wait(5)
            wait_until(store._scribe._writing.acquire, "the end of it")  # type: ignore[union-attr]
            store._scribe._writing.release()  # type: ignore[union-attr]
        failed = [v.pool for v in store.pools.volumes() if v.state is VolumeState.FAILED]
        assert len(failed) == (1 if alone else 4)
        assert volume.state is VolumeState.FAILED
        put(store, {b"d": b"4"})
    sound(small)


def test_a_commit_while_its_directory_is_compared(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the directory holds and an older answer of the catalog does not is no sign of an old catalog."""
    monkeypatch.setattr("fanout.scribe.GATHER", 0.0)
    site.create()
    with site.open() as store:
        site.put(store, "N1")
        volume = fail(store, "COPYPOOL1")
        writer = threading.Thread(target=site.put, args=(store, "N2"))

        def commit() -> None:
            writer.start()
            wait_until(lambda: store.catalog.last_csn() == 2, "the commit")
            directory = volume.directory
            assert directory is not None
            before = len(directory.records)
            with suppress(TimeoutError):
                wait_until(lambda: len(directory.records) > before, "the record", timeout=PATIENCE)

        monkeypatch.setattr(store.catalog, "held_csns", first(store.catalog.held_csns, commit))
        assert store.revive("COPYPOOL1") == 1
        writer.join()
        assert volume.writable
    with site.open() as store:
        assert store.query_gaps() == []


def test_a_copy_leaves_it_while_it_comes_back(
    small: SmallSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory has just said so, the catalog not yet: appended again, it would name space that is somebody else's from then on."""
    length = fill_active(small)
    compared, left, back = threading.Event(), threading.Event(), threading.Event()
    catch_up = Scribe.catch_up

    def late(scribe: Scribe, volume: Volume, catalog: CatalogReader) -> int:
        compared.set()
        left.wait(PATIENCE)
        missing = catch_up(scribe, volume, catalog)
        back.set()
        return missing

    with small.open() as store:
        free = store.pools.pools[ACTIVE].free_bytes()
        fail(store, ACTIVE)
        returning = threading.Thread(target=store.revive, args=(ACTIVE,))
        bury = store.catalog.bury  # type: ignore[attr-defined]

        def told(*arguments: Any) -> Any:
            left.set()
            assert back.wait(5)
            return bury(*arguments)

        monkeypatch.setattr(Scribe, "catch_up", late)
        monkeypatch.setattr(store.catalog, "bury", told)
        returning.start()
        assert compared.wait(5)
        store.delete("N1", b"b")  # the space is free then, or when the other one has seen to it
        returning.join()
        assert store.pools.pools[ACTIVE].free_bytes() == free + length
    sound(small)
