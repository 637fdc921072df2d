"""Access settings: a pool that may only be read is written, or cannot be read; or it takes the store with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fanout.config import parse
from fanout.errors import PoolUnavailable
from fanout.store import Store
from tests.volume.test_pools import CONFIG

if TYPE_CHECKING:
    from pathlib import Path

    from fanout.config import Config

DOMAIN = """
[domains.D]
destination = "DISK"
[nodes.N1]
domain = "D"
"""


def config(directory: Path, access: str) -> Config:
    text = CONFIG.replace("[pools.COPY]", f'[pools.COPY]\naccess = "{access}"') + DOMAIN
    return parse(text, path=str(directory / "fanout.toml"))


def put(store: Store, name: bytes) -> tuple[str, ...]:
    """Store an object; the pools that hold it."""
    with store.session("N1") as session:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put(name, b"content" * 1000)
        assert session.receipt is not None
        return session.receipt.objects[0].pools


def test_a_read_only_pool_is_read_and_not_written(tmp_path: Path) -> None:
    Store.create(config(tmp_path, "readwrite"))
    with Store.open(config(tmp_path, "readwrite")) as store:
        assert put(store, b"a") == ("DISK", "COPY")
    before = (tmp_path / "c0.vol").read_bytes()
    with Store.open(config(tmp_path, "readonly")) as store:
        assert put(store, b"b") == ("DISK",)
        assert b"".join(store.get("N1", b"a", pool="COPY")) == b"content" * 1000
        assert {s.state for s in store.pools.status() if s.pool == "COPY"} == {"read-only"}
    assert (tmp_path / "c0.vol").read_bytes() == before
    with Store.open(config(tmp_path, "unavailable")) as store:
        assert put(store, b"c") == ("DISK",)
        with pytest.raises(PoolUnavailable):
            b"".join(store.get("N1", b"a", pool="COPY"))
    assert (tmp_path / "c0.vol").read_bytes() == before
    with Store.open(config(tmp_path, "readwrite")) as store:
        assert put(store, b"d") == ("DISK", "COPY")
