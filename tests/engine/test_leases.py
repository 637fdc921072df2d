"""Memory lent to whoever has the bytes: what is committed is as if written, and what is lent stays valid whatever happens."""

from __future__ import annotations

import errno
import gc
import socket
import threading
from typing import TYPE_CHECKING

import pytest
import xxhash

from fanout.engine import Engine, Fault, Stream
from fanout.errors import InterfaceError, TargetError
from fanout.types import Phase

from .conftest import SLOT, SLOTS, block_sums, runs

if TYPE_CHECKING:
    import io
    import random
    from pathlib import Path


def free_slots(engine: Engine) -> int:
    return engine.info.slots_free


def fill(stream: Stream, data: bytes) -> None:
    """All of it through leases."""
    at = 0
    while at < len(data):
        with stream.lease() as lease:
            count = min(len(lease), len(data) - at)
            lease.view[:count] = data[at : at + count]
            assert lease.commit(count) == 0
            at += count


def test_received_from_a_socket(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if bytes that arrive in pieces of any size are lost, doubled or summed wrongly."""
    data = rng.randbytes(5 * SLOT + 777)
    targets = [engine.open(tmp_path / name, create=True) for name in "ab"]
    here, there = socket.socketpair()
    sender = threading.Thread(target=send_all, args=(there, data))
    sender.start()
    with here, engine.stream(targets) as stream:
        stream.place([0, 0])
        while True:
            with stream.lease() as lease:
                count = here.recv_into(lease.view)
                assert lease.commit(count) == 0
            if count == 0:
                break
        sender.join()
        assert stream.position == len(data)
        assert stream.digest() == xxhash.xxh3_128_digest(data)
        assert stream.sums() == block_sums(data)
        assert all(outcome.ok for outcome in stream.sync().values())
    for target in targets:
        assert target.finish(len(data)).ok
        assert (tmp_path / target.path).read_bytes() == data
    assert free_slots(engine) == SLOTS


def send_all(to: socket.socket, data: bytes) -> None:
    with to:
        to.sendall(data)


def test_read_from_a_file(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if `readinto` does not take the view, or a short read at the end is taken for a full one."""
    data = rng.randbytes(3 * SLOT + 5)
    (tmp_path / "source").write_bytes(data)
    target = engine.open(tmp_path / "t", create=True)
    with open(tmp_path / "source", "rb", buffering=0) as file, engine.stream([target]) as stream:
        stream.place([0])
        while count := read_once(file, stream):
            assert count <= SLOT
        assert stream.digest() == xxhash.xxh3_128_digest(data)
        assert stream.sync()[target].ok
    assert target.finish(len(data)).ok
    assert (tmp_path / "t").read_bytes() == data


def read_once(file: io.FileIO, stream: Stream) -> int:
    with stream.lease() as lease:
        count = file.readinto(lease.view)
        lease.commit(count)
    return count


def test_leases_and_writes_mixed(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if changing between the two ways in moves a byte, or framing enters the digest."""
    target = engine.open(tmp_path / "t", create=True)
    body, media = bytearray(), bytearray()
    with engine.stream([target]) as stream:
        stream.place([0], 64 * SLOT)
        for _ in range(60):
            part = rng.randbytes(rng.randrange(1, SLOT - 4096))
            raw = rng.random() < 0.2
            if rng.random() < 0.5:
                stream.write(part, raw=raw)
            else:
                with stream.lease(len(part)) as lease:
                    assert len(lease) == len(lease.view) == len(part)
                    lease.view[:] = part
                    lease.commit(len(part), raw=raw)
            media += part
            body += b"" if raw else part
            assert stream.position == len(media)
        assert stream.digest() == xxhash.xxh3_128_digest(bytes(body))
        assert stream.sums() == block_sums(bytes(media))
        assert stream.sync()[target].ok
    assert target.finish(len(media)).ok
    assert (tmp_path / "t").read_bytes() == media


def test_commit_while_a_slice_is_alive(engine: Engine, tmp_path: Path) -> None:
    """Breaks if somebody can change bytes after they were hashed."""
    target = engine.open(tmp_path / "t", create=True)
    with engine.stream([target]) as stream:
        stream.place([0])
        lease = stream.lease()
        view = lease.view
        assert view is lease.view
        assert not view.readonly
        part = view[:100]
        view.release()
        with pytest.raises(BufferError):
            lease.commit(100)
        part[:] = b"x" * 100
        part.release()
        own = memoryview(lease.view)
        with pytest.raises(BufferError):
            lease.commit(100)
        own.release()
        with pytest.raises(InterfaceError):
            lease.commit(SLOT + 1)
        with pytest.raises(InterfaceError):
            lease.commit(-1)
        assert lease.commit(100) == 0
        with pytest.raises(BufferError):
            _ = lease.view
        with pytest.raises(InterfaceError):
            lease.commit(0)
        lease.close()
        assert stream.digest() == xxhash.xxh3_128_digest(b"x" * 100)
        assert stream.sync()[target].ok


def test_an_array_over_a_lease(engine: Engine, tmp_path: Path) -> None:
    """Breaks if an export of the view itself, which cannot be released, is overlooked."""
    np = pytest.importorskip("numpy")
    target = engine.open(tmp_path / "t", create=True)
    with engine.stream([target]) as stream:
        stream.place([0])
        with stream.lease(4096) as lease:
            array = np.frombuffer(lease.view, dtype="u1")
            array[:] = 7
            with pytest.raises(BufferError):
                lease.commit(4096)
            del array
            lease.commit(4096)
        assert stream.digest() == xxhash.xxh3_128_digest(b"\7" * 4096)


def test_a_lease_that_is_not_committed(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a forgotten lease keeps its slot, or leaves bytes behind."""
    target = engine.open(tmp_path / "t", create=True)
    with engine.stream([target]) as stream:
        stream.place([0])
        with stream.lease() as lease:
            lease.view[:] = b"!" * len(lease)
        assert free_slots(engine) == SLOTS
        stream.lease()  # dropped at once
        assert free_slots(engine) == SLOTS
        lease = stream.lease()
        del lease
        stream.place([0])
        stream.write(b"kept")
        with pytest.raises(ZeroDivisionError):
            lose(stream)
        stream.write(b"together")
        assert stream.digest() == xxhash.xxh3_128_digest(b"kepttogether")
        assert stream.sync()[target].ok
    assert (tmp_path / "t").read_bytes()[:13] == b"kepttogether\0"


def lose(stream: Stream) -> None:
    with stream.lease() as lease:
        lease.view[:4] = b"lost"
        _ = 1 // 0


def test_while_a_lease_is_out(engine: Engine, tmp_path: Path) -> None:
    """Breaks if bytes get in between, or a stream with a late export goes on beside it."""
    target = engine.open(tmp_path / "t", create=True)
    with engine.stream([target]) as stream:
        stream.place([0], 2 * SLOT)
        lease = stream.lease()
        for call in (
            lambda: stream.write(b"x"),
            stream.lease,
            stream.pad,
            stream.seal,
            stream.sync,
            stream.digest,
            stream.sums,
            lambda: stream.place([0]),
            stream.suspend,
        ):
            with pytest.raises(InterfaceError):
                call()
        assert stream.legs()[0].state == "active"
        late = lease.view[:1]
        lease.close()
        with pytest.raises(InterfaceError):
            stream.write(b"x")
        with pytest.raises(BufferError):
            _ = lease.view
        late.release()
        stream.write(b"x")
        with pytest.raises(InterfaceError):
            stream.lease(2 * SLOT)
        with pytest.raises(InterfaceError):
            stream.lease(0)
        with pytest.raises(InterfaceError):
            stream.lease(-1)
        assert len(stream.lease(SLOT - 4096)) == SLOT - 4096
        assert len(stream.lease()) == SLOT - 1
        assert stream.sync()[target].ok


@pytest.mark.parametrize("way", ["abort", "close", "engine"])
def test_ended_with_exports_alive(engine: Engine, tmp_path: Path, way: str) -> None:
    """Breaks if memory is used again, or unmapped, under somebody who can still write to it."""
    target = engine.open(tmp_path / "t", create=True)
    stream = engine.stream([target])
    stream.place([0])
    lease = stream.lease()
    late = lease.view[10:20]
    {"abort": stream.abort, "close": stream.close, "engine": engine.close}[way]()
    late[:] = b"0123456789"
    assert bytes(late) == b"0123456789"
    if way != "engine":
        assert free_slots(engine) == SLOTS - 1
        with engine.stream([target]) as other:  # and others do not care
            other.place([0])
            other.write(b"o" * 2 * SLOTS * SLOT)
            assert other.sync()[target].ok
        assert bytes(late) == b"0123456789"
    late.release()
    with pytest.raises(InterfaceError):
        lease.commit(1)
    stream.close()
    if way != "engine":
        assert free_slots(engine) == SLOTS


def test_exports_outlive_everything(tmp_path: Path, no_leaks: None) -> None:
    """Breaks if the arena goes when the last Python object of ours does."""
    engine = Engine(memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT)
    with engine:
        stream = engine.stream([engine.open(tmp_path / "t", create=True)])
        stream.place([0])
        late = stream.lease().view[:]
    del engine, stream
    gc.collect()
    late[:] = bytes(len(late))
    assert not any(late)
    del late


def test_received_in_another_thread_while_closing(tmp_path: Path, no_leaks: None) -> None:
    """Breaks if a blocked ``recv_into`` writes to memory that was given away when the engine was closed."""
    here, there = socket.socketpair()
    got: list[int] = []
    engine = Engine(memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT)
    with here, there:
        stream = engine.stream([engine.open(tmp_path / "t", create=True)])
        lease = stream.lease()
        reader = threading.Thread(target=lambda: got.append(here.recv_into(lease.view)))
        reader.start()
        stream.abort()
        engine.close()
        there.sendall(b"late")
        reader.join(10)
    assert got == [4]
    with pytest.raises(InterfaceError):
        lease.commit(4)


def test_a_target_fails_meanwhile(faulty: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if a fault is told later to those who lease than to those who write, or the healthy target suffers."""
    bad, good = (faulty.open(tmp_path / name, create=True) for name in ("bad", "good"))
    faulty.set_faults([Fault.error(errno.EIO, kind=Phase.WRITE, nth=2, target=bad)])
    data = rng.randbytes(6 * SLOT)
    masks = []
    with faulty.stream([bad, good]) as stream:
        stream.place([0, 0])
        for at in range(0, len(data), SLOT):
            with stream.lease() as lease:
                lease.view[:] = data[at : at + SLOT]
                faulty.advance(1.0)
                masks.append(lease.commit(SLOT))
        assert masks == [0, 0, 1, 1, 1, 1]
        assert stream.digest() == xxhash.xxh3_128_digest(data)
        outcomes = stream.sync()
    assert outcomes[bad].errno == errno.EIO
    assert outcomes[bad].offset == SLOT
    assert outcomes[good].ok
    assert (tmp_path / "good").read_bytes()[: len(data)] == data


def test_no_target_is_left(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if a client goes on receiving for nobody."""
    target = faulty.open(tmp_path / "t", create=True)
    faulty.set_faults([Fault.error(errno.ENOSPC, kind=Phase.WRITE, count=None)])
    with faulty.stream([target]) as stream:
        stream.place([0])
        fill(stream, bytes(SLOT))
        lease = stream.lease()
        faulty.advance(1.0)
        assert lease.commit(10) == 1
        with pytest.raises(TargetError) as caught:
            stream.lease()
    assert caught.value.outcome.errno == errno.ENOSPC


def test_no_slot_in_time(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if a hung target makes a lease wait for ever, or the stream unusable after it."""
    target = faulty.open(tmp_path / "t", create=True, hard_deadline=1e6)
    faulty.set_faults([Fault.never(kind=Phase.WRITE, count=None)])
    with faulty.stream([target], timeout=1.0) as stream:
        stream.place([0])
        with pytest.raises(TimeoutError):
            fill(stream, bytes(2 * SLOTS * SLOT))
        faulty.set_faults([])
        faulty.release(target)
        fill(stream, b"goes on")
        assert stream.sync()[target].ok


@pytest.mark.skipif(not runs("io_uring"), reason="io_uring cannot run here")
def test_leases_are_counted_as_filling(tmp_path: Path) -> None:
    """Breaks if an operator cannot see where the memory is."""
    with Engine(memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT) as engine:
        target = engine.open(tmp_path / "t", create=True)
        with engine.stream([target]) as stream, stream.lease():
            info = engine.info
            assert (info.slots_filling, info.slots_free) == (1, SLOTS - 1)


def test_a_short_timeout_is_waited_for(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if a lease gives up without a wait, or before its time, because it had asked once without waiting."""
    target = faulty.open(tmp_path / "t", create=True)
    faulty.set_faults([Fault.delay(0.02, kind=Phase.WRITE, count=None)])
    with faulty.stream([target], timeout=0.08) as stream:
        stream.place([0])
        fill(stream, bytes(3 * SLOTS * SLOT))
        assert stream.position == 3 * SLOTS * SLOT
