"""A sequential pool needs its next volume while this machine, or the catalog, is short of what that takes.

What could break: a sound pool leaves the session, or its primary is passed over, for a limit of this process or for somebody who
holds the catalog; where the copy must not be missed the transaction fails for good.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
from typing import TYPE_CHECKING

import pytest

from fanout.errors import TransactionFailed, TransactionRetry
from fanout.store import Store
from tests.store.histories import MIB

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from fanout.session import Session

CONFIG = """
[store]
catalog = "catalog.db"
[engine]
memory = "32 MiB"
[device_classes.disk]
type = "disk"
[device_classes.seq]
type = "file"
directory = "sequential"
volume_size = "4 MiB"
max_volumes = 4
[pools.DISKPOOL]
type = "primary"
device_class = "{primary}"
{primary_volume}
next = "TAPEPOOL"
copy_pools = ["COPYPOOL1"]
copy_continue = {copy_continue}
[pools.TAPEPOOL]
type = "primary"
device_class = "disk"
volumes = [{{ path = "TAPEPOOL.vol", size = "32 MiB" }}]
[pools.COPYPOOL1]
type = "copy"
device_class = "{copy}"
{copy_volume}
[domains.NORMAL]
destination = "DISKPOOL"
[nodes.N1]
domain = "NORMAL"
"""


@contextlib.contextmanager
def no_descriptor() -> Iterator[None]:
    """This process has none left."""
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, old[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
        for fd in taken:
            os.close(fd)


@contextlib.contextmanager
def catalog_held(path: Path) -> Iterator[None]:
    """Somebody writes to the catalog, and takes their time."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


def put_large(session: Session, rng: random.Random) -> None:
    """More than one sequential volume takes."""
    for attempt in session.attempts():
        with attempt as txn:
            for number in range(6):
                txn.put(f"{number}", rng.randbytes(MIB))


@pytest.mark.parametrize("copy_continue", ["true", "false"])
@pytest.mark.parametrize("grows", ["DISKPOOL", "COPYPOOL1"])
@pytest.mark.parametrize("short", ["descriptors", "catalog"])
def test_nobody_leaves_for_what_is_not_the_pools(
    tmp_path: Path,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    short: str,
    grows: str,
    copy_continue: str,
) -> None:
    monkeypatch.setattr("fanout.catalog.connection.BUSY_TIMEOUT", 0.05)
    listed = {
        p: f'volumes = [{{ path = "{p}.vol", size = "32 MiB" }}]' for p in ("DISKPOOL", "COPYPOOL1")
    }
    listed[grows] = ""
    kinds = {pool: "disk" if volumes else "seq" for pool, volumes in listed.items()}
    config = tmp_path / "fanout.toml"
    config.write_text(
        CONFIG.format(
            primary=kinds["DISKPOOL"],
            primary_volume=listed["DISKPOOL"],
            copy=kinds["COPYPOOL1"],
            copy_volume=listed["COPYPOOL1"],
            copy_continue=copy_continue,
        )
    )
    Store.create(config)
    with Store.open(config) as store, store.session("N1") as session:
        shortage = (
            no_descriptor() if short == "descriptors" else catalog_held(tmp_path / "catalog.db")
        )
        with shortage, pytest.raises(TransactionFailed) as failed:
            put_large(session, rng)
        retry = failed.value.__cause__
        assert isinstance(retry, TransactionRetry)
        assert (failed.value.reason, retry.reason) == ("budget", "host")
        assert not session.removed
        put_large(session, rng)
        assert session.receipt is not None
        assert not session.receipt.degraded
        assert {stored.primary for stored in session.receipt.objects} == {"DISKPOOL"}
    for volume in [*tmp_path.glob("*.vol"), *tmp_path.glob("sequential/*")]:
        volume.unlink()
