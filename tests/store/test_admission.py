"""More that wants to write than the engine admits: everybody waits a little, nobody for ever.

Who waits for a stream holds none. A transaction that goes on on other volumes gives its stream up first, and a repair that needs
more volumes than there are streams makes durable what it has.

What waits for ever here cannot be ended from within: not even the store can be closed. So each case runs in a child process with a bound,
and fails with the stacks of its threads.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import threading
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanout import backup_stgpool, check_store, spooled
from fanout.errors import TransactionRetry
from fanout.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
BOUND = 60.0  # seconds for a case that takes some six: then it is taken for a deadlock
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


def test_a_session_waits_no_longer_than_it_was_told(config: Path) -> None:
    """Whoever serves a client that has a time limit of its own: a shortage of this host, and no pool leaves the lists."""
    with Store.open(config) as store, ExitStack() as held:
        (target,) = (
            volume.target
            for volume in store.pools.volumes()
            if volume.path.endswith("TAPEPOOL.00001.fanout")
        )
        for _ in range(STREAMS):
            held.enter_context(store.engine.stream([target]))
        session = held.enter_context(store.session("N1", timeout=0.01))
        with pytest.raises(TransactionRetry) as caught, session.begin() as transaction:
            transaction.put("a", b"1")
        assert (caught.value.reason, caught.value.removed) == ("host", ())


def in_a_child(
    work: Callable[..., None], config: Path, *args: object, bound: float = BOUND
) -> None:
    """Run a case in a process of its own, which ends itself when the bound is over, and says where its threads were."""
    said = json.dumps([bound, str(config), *args])
    command = [sys.executable, "-m", "tests.store.test_admission", work.__name__, said]
    # The interpreter has to start, too; `run` ends by its id whom it has waited for in vain.
    child = subprocess.run(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=bound + 30, check=False
    )
    if "Timeout (" in child.stderr:
        message = f"all wait for each other: not done after {bound:.0f} s\n{child.stderr}"
        pytest.fail(message, pytrace=False)
    assert child.returncode == 0, child.stderr


def run_case(name: str, said: str) -> None:
    """What the child does."""
    bound, config, *args = json.loads(said)
    faulthandler.dump_traceback_later(bound, exit=True)
    try:
        globals()[name](Path(config), *args)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # threads that still wait would keep the process
    faulthandler.cancel_dump_traceback_later()


def test_a_case_that_hangs_fails_soon_and_shows_where(config: Path) -> None:
    """Breaks if a deadlock is waited for until the whole run is given up, or if nobody can see where it was."""
    with pytest.raises(pytest.fail.Exception, match=r"(?s)wait for each other.*in hang\b"):
        in_a_child(hang, config, bound=1)


def hang(_: Path) -> None:
    threading.Event().wait()


@pytest.mark.parametrize("clients", [STREAMS, 5 * STREAMS])
def test_all_go_on_on_the_next_volume_at_once(config: Path, clients: int) -> None:
    """Breaks if a transaction keeps one stream while it waits for another: then all wait for each other."""
    in_a_child(go_on_together, config, clients)


def go_on_together(config: Path, clients: int) -> None:
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
            thread.join()
        assert errors == []
        for number in range(clients):
            assert store.get("N1", str(number)).read() == data_of(number, size)
    assert check_store(config).problems == ()


def test_a_repair_onto_more_volumes_than_streams(config: Path) -> None:
    """Breaks if a batch keeps a stream for every volume that it has written to."""
    in_a_child(repair_onto_many, config)


def repair_onto_many(config: Path) -> None:
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
    in_a_child(begin_as_many, config, streams, memory)


def begin_as_many(config: Path, streams: int, memory: str) -> None:
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


if __name__ == "__main__":
    run_case(*sys.argv[1:])
