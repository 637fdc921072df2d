"""Forks in the host process: the parent goes on, the child is refused clearly, and no lock outlives the parent in it."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import xxhash

from fanout.engine import Engine, Fault, Target
from fanout.errors import InterfaceError, TargetError
from fanout.types import Phase

from .conftest import SLOT, SLOTS

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Python 3.12 warns of every fork beside threads; that is what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


FORKS = (
    20 if os.environ.get("FANOUT_SANITIZE") else 200
)  # of a process of terabytes, at a second each


def in_child(work: Callable[[], None]) -> None:
    """Run work in a forked child; what it raises fails the test here."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            work()
            os._exit(0)
        except BaseException as problem:
            os.write(there, f"{type(problem).__name__}: {problem}".encode()[:4000])
        finally:
            os._exit(1)
    os.close(there)
    with os.fdopen(here, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said


def descriptors() -> list[str]:
    """What this process's descriptors lead to."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


def refused(*calls: Callable[[], object]) -> None:
    for call in calls:
        with pytest.raises(InterfaceError, match="forked child"):
            call()


@contextlib.contextmanager
def writing(engine: Engine, target: Target, data: bytes) -> Iterator[list[bytes]]:
    """A thread that writes one stream after the other; gives the digests of those that were synced."""
    stop = threading.Event()
    digests: list[bytes] = []

    def write() -> None:
        while not stop.is_set():
            with engine.stream([target]) as stream:
                stream.place([0])
                stream.write(data)
                digest = stream.digest()
                assert stream.sync()[target].ok
            digests.append(digest)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield digests
    finally:
        stop.set()
        thread.join(20)


def test_a_forked_child_cannot_use_it(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a child writes through its parent's ring, or is refused with anything but a word about it."""
    target = engine.open(tmp_path / "t", create=True, lock=True)
    with engine.stream([target]) as stream, stream.lease() as lease:

        def child() -> None:
            assert engine.info.dead
            refused(
                lambda: engine.stream([target]),
                lambda: engine.open(tmp_path / "other", create=True),
                lambda: engine.read(target, 0, 1),
                lambda: stream.write(b"x"),
                lambda: lease.commit(0),
                stream.digest,
                stream.sync,
                stream.legs,
                target.finish,
                engine.now,
                engine.fileno,
            )
            assert engine.events() == []
            stream.close()
            target.close()
            engine.close()
            assert engine.closed

        in_child(child)
        lease.close()
        stream.place([0])
        stream.write(b"the parent goes on")
        assert stream.sync()[target].ok
    assert not (tmp_path / "other").exists()


def test_a_fork_while_other_threads_are_inside(
    engine: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if the child waits for threads that it does not have, or if the parent's writes suffer."""
    target = engine.open(tmp_path / "t", create=True, lock=True)
    data = rng.randbytes(20 * SLOT)

    def child() -> None:
        began = time.monotonic()
        refused(lambda: engine.stream([target]))
        engine.close()
        assert time.monotonic() - began < 2.0  # of them 5 if it waited
        left = [name for name in descriptors() if name == target.path or "io_uring" in name]
        assert not left

    with writing(engine, target, data) as digests:
        for _ in range(12):
            in_child(child)
    assert set(digests) == {xxhash.xxh3_128_digest(data)}
    assert (tmp_path / "t").read_bytes()[: len(data)] == data


def test_no_child_keeps_a_lock(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a volume stays locked after it was closed, because a child that lives on has the description."""
    target = engine.open(tmp_path / "t", create=True, lock=True)
    here, there = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        os.close(there)
        os.read(here, 1)  # until the parent is done
        os._exit(0)
    os.close(here)
    try:
        target.close()
        engine.open(tmp_path / "t", lock=True).close()
    finally:
        os.close(there)
        os.waitpid(child, 0)


def test_a_fork_in_the_middle_of_an_open(engine: Engine, tmp_path: Path) -> None:
    """Breaks if the child gets a descriptor in the moment between its opening and its entry in the list of those to close."""
    stop = threading.Event()
    path = str(tmp_path / "t")

    def reopen() -> None:
        while not stop.is_set():
            engine.open(path, replace=True, lock=True).close()

    def child() -> None:
        assert path not in descriptors()

    threads = [threading.Thread(target=reopen)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(FORKS):
            in_child(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


def work_in_another_process(directory: str, number: int) -> str:
    """What a worker of multiprocessing does: an engine of its own."""
    path = os.path.join(directory, f"worker{number}")
    data = bytes([number]) * (3 * SLOT)
    with Engine(memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT) as engine:
        target = engine.open(path, create=True, lock=True)
        with engine.stream([target]) as stream:
            stream.place([0])
            stream.write(data)
            assert stream.sync()[target].ok
        assert target.finish(len(data)).ok
    return path


def test_workers_of_multiprocessing_have_engines_of_their_own(
    engine: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if a child that was forked beside a busy engine cannot open one itself."""
    target = engine.open(tmp_path / "t", create=True)
    data = rng.randbytes(10 * SLOT)
    with (
        writing(engine, target, data) as digests,
        multiprocessing.get_context("fork").Pool(2) as pool,
    ):
        jobs = [(str(tmp_path), number) for number in range(4)]
        paths = pool.starmap_async(work_in_another_process, jobs).get(30)
        pool.close()
        pool.join()
    for number, path in enumerate(paths):
        with open(path, "rb") as file:
            assert file.read() == bytes([number]) * (3 * SLOT)
    assert set(digests) == {xxhash.xxh3_128_digest(data)}


@pytest.mark.parametrize("way", ["fork and exec", "subprocess"])
def test_a_started_program_inherits_nothing(
    engine: Engine, tmp_path: Path, rng: random.Random, way: str
) -> None:
    """Breaks if a program that the host starts holds a volume's description, and its lock with it."""
    target = engine.open(tmp_path / "t", create=True, lock=True)
    engine.fileno()
    code = (
        "import os, sys\n"
        "for number in os.listdir('/proc/self/fd'):\n"
        "    try: name = os.readlink('/proc/self/fd/' + number)\n"
        "    except OSError: continue\n"
        "    if name == sys.argv[1] or 'io_uring' in name or 'eventfd' in name: sys.exit(name)\n"
    )
    command = [sys.executable, "-c", code, target.path]
    with writing(engine, target, rng.randbytes(5 * SLOT)):
        if way == "subprocess":
            subprocess.run(command, check=True, close_fds=False, timeout=30)
            return
        child = os.fork()
        if child == 0:  # pragma: no cover
            try:
                os.execv(command[0], command)
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_grandchild_and_a_second_engine(tmp_path: Path) -> None:
    """Breaks if the list of engines, which the child throws away, is needed again."""
    with Engine(memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT) as first:
        kept = first.open(tmp_path / "first", create=True, lock=True)

        def child() -> None:
            with Engine(memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT) as second:
                target = second.open(tmp_path / "second", create=True, lock=True)

                def grandchild() -> None:
                    assert first.info.dead
                    assert second.info.dead
                    assert not [name for name in descriptors() if name.startswith(str(tmp_path))]

                in_child(grandchild)
                second.write(target, 0, bytes(SLOT))
                with pytest.raises(TargetError) as caught:
                    second.open(tmp_path / "first", lock=True)
                assert caught.value.errno == errno.EBUSY

        in_child(child)
        kept.close()


def test_the_simulated_engine_is_dead_in_a_child_too(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if a child drives its parent's simulation."""
    target = faulty.open(tmp_path / "t", create=True)
    faulty.set_faults([Fault.never(kind=Phase.WRITE, count=None)])
    with faulty.stream([target]) as stream:
        stream.place([0])
        stream.write(bytes(SLOT))

        def child() -> None:
            refused(lambda: faulty.advance(1.0), lambda: faulty.release(target))
            faulty.close()

        in_child(child)
        faulty.release(target)
        assert stream.sync()[target].ok
