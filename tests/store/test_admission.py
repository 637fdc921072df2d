"""More that wants to write than the engine admits: everybody waits a little, nobody for ever.

Who waits for a stream holds none. A transaction that goes on on other volumes gives its stream up first, and a repair that needs
more volumes than there are streams makes durable what it has.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from fanout import backup_stgpool, check_store, spooled
from fanout.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
STREAMS = 8  # that an engine admits
PIECE = 64 << 10
CONFIG = """
[store]
catalog = "catalog.db"
[device_classes.seq]
type = "file"
directory = "seq"
volume_size = "4 MiB"
max_volumes = 200
[pools.TAPEPOOL]
type = "primary"
device_class = "seq"
copy_pools = ["COPYPOOL1"]
copy_continue = true
[pools.COPYPOOL1]
type = "copy"
device_class = "seq"
access = "readwrite"
[domains.NORMAL]
destination = "TAPEPOOL"
[nodes.N1]
domain = "NORMAL"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "fanout.toml"
    path.write_text(CONFIG, encoding="utf-8")
    (tmp_path / "seq").mkdir()
    Store.create(path)
    return path


def data_of(number: int, size: int) -> bytes:
    return bytes([number]) * size


@pytest.mark.parametrize("clients", [STREAMS, 5 * STREAMS])
def test_all_go_on_on_the_next_volume_at_once(config: Path, clients: int) -> None:
    """Breaks if a transaction keeps one stream while it waits for another: then all wait for each other."""
    together = threading.Barrier(clients)
    size = 3 * MIB // 2
    errors: list[BaseException] = []

    def pieces(number: int) -> Iterator[bytes]:
        together.wait(60)
        data = data_of(number, size)
        yield from (data[at : at + PIECE] for at in range(0, size, PIECE))

    def client(store: Store, number: int) -> None:
        try:
            with store.session("N1") as session:
                for attempt in session.attempts():
                    with attempt as transaction:
                        source = spooled(pieces(number), limit_bytes=2 * size)
                        transaction.put(str(number), source)
        except BaseException as error:
            errors.append(error)

    with Store.open(config) as store:
        threads = [
            threading.Thread(target=client, args=(store, number), daemon=True)
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert errors == []
        for number in range(clients):
            assert store.get("N1", str(number)).read() == data_of(number, size)
    assert check_store(config).problems == ()


def test_a_repair_onto_more_volumes_than_streams(config: Path) -> None:
    """Breaks if a batch keeps a stream for every volume that it has written to."""
    size = 3 * STREAMS * MIB // 2 * 4
    config.write_text(CONFIG.replace("readwrite", "unavailable"), encoding="utf-8")
    with Store.open(config) as store, store.session("N1") as session:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put("large", data_of(7, size))
        assert [gap.pool for gap in store.query_gaps()] == ["COPYPOOL1"]
    config.write_text(CONFIG, encoding="utf-8")
    with Store.open(config) as store:
        assert backup_stgpool(store, "TAPEPOOL", "COPYPOOL1").copied_objects == 1
        assert store.query_gaps() == []
        assert store.get("N1", "large", pool="COPYPOOL1").read() == data_of(7, size)
        used = [v for v in store.query_volumes() if v.pool == "COPYPOOL1" and v.live]
        assert len(used) > STREAMS
    assert check_store(config).problems == ()


@pytest.mark.parametrize(
    ("streams", "memory"), [(1, "512 KiB"), (2, "512 KiB"), (5, "960 KiB"), (24, "4608 KiB")]
)
def test_as_many_at_once_as_are_configured(config: Path, streams: int, memory: str) -> None:
    """Breaks if the least memory that is allowed does not do, or if one that stalls holds up those that are promised their slots."""
    engine = f'[engine]\nslot = "64 KiB"\nstreams = {streams}\nmemory = "{memory}"\n'
    config.write_text(CONFIG + engine, encoding="utf-8")
    with Store.open(config) as store, ExitStack() as stack:
        for number in range(streams):
            session = stack.enter_context(store.session("N1"))
            transaction = stack.enter_context(session.begin())
            transaction.put(str(number), data_of(number, PIECE // 2))
    with Store.open(config, read_only=True) as store:
        for number in range(streams):
            assert store.get("N1", str(number)).read() == data_of(number, PIECE // 2)
