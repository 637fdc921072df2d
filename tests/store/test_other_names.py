"""Pools whose names begin alike, in one directory.

What could break: a volume that is taken for another pool's, and named as one that took no part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fanout import rebuild_catalog
from fanout.store import Store

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
[store]
catalog = "catalog.db"
[device_classes.disk]
type = "disk"
[device_classes.seq]
type = "file"
directory = "seq"
volume_size = "2 MiB"
max_volumes = 4
[pools.P]
type = "primary"
device_class = "disk"
volumes = [{ path = "P.vol", size = "2 MiB" }]
max_size = "10 KiB"
next = "S"
copy_pools = ["S.C"]
[pools.S]
type = "primary"
device_class = "seq"
[pools."S.C"]
type = "copy"
device_class = "seq"
[domains.D]
destination = "P"
[nodes.N1]
domain = "D"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A store with a transaction of two aggregates, one on each primary."""
    path = tmp_path / "fanout.toml"
    path.write_text(CONFIG)
    Store.create(path)
    with Store.open(path) as store, store.session("N1") as session:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put("small", b"1" * 4000)
                transaction.put("large", b"2" * 40_000)
    return path


def test_each_pool_has_its_own_files(config: Path) -> None:
    names = sorted(path.name for path in config.with_name("seq").iterdir())
    assert names == ["S.00001.fanout", "S.C.00001.fanout"]
    report = rebuild_catalog(config, force=True)
    assert (report.skipped, report.complete, report.objects) == ((), True, 2)
