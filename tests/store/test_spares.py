"""Threads that are a comfort, which nobody's transaction may fail for: one makes the next sequential volume ahead, others open volumes.

What could break: on a machine that has no thread left, a client that needs no new volume is refused, with an error that is not ours, and the
space that it was given is lost until the volumes are opened again.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest

from fanout.errors import CatalogError, ConfigError
from fanout.store import Store, open_engine
from tests.engine.test_forks import descriptors, in_child
from tests.faults.needs import require
from tests.faults.refuse import refuse
from tests.store.histories import LARGE, SmallSite
from tests.store.test_delete import put

if TYPE_CHECKING:
    import random
    from pathlib import Path


def test_a_spare_that_gets_no_thread_fails_nobody(tmp_path: Path, rng: random.Random) -> None:
    """What was promised to nobody is made when it is needed; then the store closes."""
    require("seccomp")
    site = SmallSite(tmp_path, rng)
    site.create()

    def fill() -> None:
        with site.open() as store:
            refuse(dict.fromkeys(("clone", "clone3"), errno.EAGAIN))  # to this thread alone
            while len(site.volumes("TAPEPOOL")) < 2:
                put(store, {b"large": bytes(LARGE + 1000)})
            held = [s.reserved + s.draining + s.quarantined for s in store.query_volumes()]
            assert set(held) == {0}

    in_child(fill)
    for path in [*tmp_path.glob("*.vol"), *tmp_path.glob("sequential/*")]:
        os.unlink(path)


def test_a_store_that_gets_no_thread(tmp_path: Path, rng: random.Random) -> None:
    """Its opening is refused, by its own engine or by the catalog's writer, and leaves neither a lock nor a descriptor."""
    require("seccomp")
    site = SmallSite(tmp_path, rng)
    config = site.create()

    def refused() -> None:
        with open_engine(config) as engine:
            refuse(dict.fromkeys(("clone", "clone3"), errno.EAGAIN))  # to this thread alone
            before = descriptors()
            threads = threading.enumerate()
            for _ in range(2):  # the second would find the first one's locks
                with pytest.raises(CatalogError, match=r"start new thread.*raise the limit"):
                    Store.open(config, engine=engine)
                with pytest.raises(ConfigError, match=r"engine: no thread for .*raise the limit"):
                    Store.open(config)
            assert sorted(descriptors()) == sorted(before)
            assert threading.enumerate() == threads
            assert engine.info.targets == 0

    in_child(refused)
    with site.open() as store:
        put(store, {b"small": bytes(5000)})


def test_volumes_that_come_back_without_a_thread(tmp_path: Path, rng: random.Random) -> None:
    """Two of one pool had failed; they are opened again one after the other, and the session that finds them has all its pools."""
    require("seccomp")
    site = SmallSite(tmp_path, rng)
    site.create()

    def come_back() -> None:
        with site.open() as store:
            for member in store.pools.pools["COPYPOOL1"].members:
                assert member.volume is not None
                member.volume.fail("a test")
            refuse(dict.fromkeys(("clone", "clone3"), errno.EAGAIN))  # to this thread alone
            put(store, {b"small": bytes(5000)})
            assert store.query_gaps() == []
            states = {s.state for s in store.query_volumes() if s.pool == "COPYPOOL1"}
            assert states == {"available"}

    in_child(come_back)
    for path in [*tmp_path.glob("*.vol"), *tmp_path.glob("sequential/*")]:
        os.unlink(path)
