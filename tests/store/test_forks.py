"""Forks in a process that has a store open: the parent goes on, the child is refused clearly and keeps nothing locked.

What could break: a store that stays locked for as long as some child of its last writer lives; a child that closes, commits or folds what
is its parent's; a call in a child that waits for threads which are not there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from fanout import audit_stgpool, backup_stgpool
from fanout.errors import CatalogError, InterfaceError
from tests.engine.test_forks import in_child

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.store.conftest import Site

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

LEAVES_A_CHILD = """
import os, sys
from fanout.store import Store
store = Store.open(sys.argv[1])
with store.session("N1") as session, session.begin() as txn:
    txn.put("before", b"the fork")
child = os.fork()
if child == 0:
    sys.stdin.read()  # until the test ends
    os._exit(0)
if sys.argv[2] == "closed":
    store.close()
os._exit(0)
"""


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_no_child_keeps_the_store_locked(site: Site, how: str) -> None:
    """It shares the open file that holds the lock: nobody could open the store before the child had ended."""
    site.create()
    command = [sys.executable, "-c", LEAVES_A_CHILD, str(site.path), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        while os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT) is None:
            time.sleep(0.01)
        with site.open(lock_wait=5) as store:
            site.put(store, "N1")
            assert store.get("N1", "before").read() == b"the fork"
            assert store.query_gaps() == []
        parent.stdin.close()


def test_a_child_cannot_use_it(site: Site) -> None:
    """Each call says why, at once; closing does nothing; and the parent does not notice."""
    site.create()
    with site.open() as store, store.session("N1") as session:
        transaction = session.begin()
        transaction.put("A", b"from the parent")

        def child() -> None:
            calls: list[Callable[[], object]] = [
                lambda: store.session("N1"),
                lambda: store.get("N1", "A"),
                lambda: store.delete("N1", "A"),
                lambda: store.receipt(bytes(16)),
                store.query_objects,
                store.query_gaps,
                store.query_stgpools,
                store.query_volumes,
                lambda: backup_stgpool(store, "DISKPOOL", "COPYPOOL1"),
                lambda: audit_stgpool(store, "DISKPOOL"),
            ]
            for call in calls:
                with pytest.raises(InterfaceError, match="forked child"):
                    call()
            session.close()
            store.close()
            store.close()

        in_child(child)
        transaction.commit()
        for pool in ("DISKPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"):
            assert store.get("N1", "A", pool=pool).read() == b"from the parent"
    with site.open(lock_wait=0) as store:
        assert store.catalog.verify() == []


@pytest.mark.parametrize("read_only", [False, True])
def test_a_child_cannot_open_what_its_parent_had_open(site: Site, *, read_only: bool) -> None:
    """SQLite would believe that it has its parent's locks. What the parent had closed before is anybody's."""
    site.create()
    with site.open() as store:
        site.put(store, "N1")

    def look() -> None:
        with site.open(read_only=True) as mine:
            assert mine.get("N1", "A").read()

    def be_refused() -> None:
        with pytest.raises(CatalogError, match="was open when this process was forked"):
            site.open(read_only=True)

    in_child(look)
    with site.open(read_only=read_only):
        in_child(be_refused)
    in_child(look)
