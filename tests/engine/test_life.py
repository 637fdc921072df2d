"""Opening, closing, arguments, forks: an engine is there or it is not, and says so."""

from __future__ import annotations

import errno
import gc
import os
import select
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import fanout
from fanout import _core
from fanout.engine import Engine, Fault, Target
from fanout.errors import ConfigError, InterfaceError, TargetError
from fanout.types import FaultClass, OutcomeCode, Phase

from .conftest import SLOT, SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL: dict[str, Any] = {"memory_bytes": SLOTS * SLOT, "slot_size_bytes": SLOT}


def test_info_says_which_backend_and_why(engine: Engine) -> None:
    """Breaks if an operator cannot see what runs."""
    info = engine.info
    assert info.backend in ("io_uring", "threads")
    assert (info.slot_size, info.slot_count, info.slots_free) == (SLOT, SLOTS, SLOTS)
    assert info.memory_bytes >= SLOTS * SLOT
    assert not info.dead


def test_too_little_memory_is_said_in_words_of_the_arguments() -> None:
    """Who takes a quarter of the default has to learn that fewer streams go with it; three slots for each do."""
    with pytest.raises(ConfigError, match=r"16777216 bytes .* 8 streams .* fewer max_streams"):
        Engine(memory_bytes=16 << 20)
    for streams in (1, 2, 8, 64):
        Engine(memory_bytes=3 * streams * SLOT, slot_size_bytes=SLOT, max_streams=streams).close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_bytes": 0},
        {"memory_bytes": SLOT},
        {"memory_bytes": SLOT * 64 + 1},
        {"slot_size_bytes": 0},
        {"slot_size_bytes": 3 * SLOT, "memory_bytes": 96 * SLOT},
        {"slot_size_bytes": 32 << 20, "memory_bytes": 1 << 30},
        {"max_streams": 0},
        {"max_streams": -1},
        {"max_streams": 1000},
        {"backend": "magic"},
        {"memory_bytes": 1 << 60},
    ],
    ids=str,
)
def test_wrong_arguments_are_named(wrong: dict[str, Any]) -> None:
    """Breaks if a bad setting crashes, or makes an engine that cannot move."""
    with pytest.raises((ConfigError, MemoryError)) as caught:
        Engine(**(SMALL | wrong))
    assert str(caught.value)


def test_everything_after_close_is_an_interface_error(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a handle of a closed engine touches freed memory."""
    target = engine.open(tmp_path / "t", create=True)
    stream = engine.stream([target])
    engine.close()
    engine.close()
    assert engine.closed
    assert target.state == "closed"
    for call in (
        lambda: engine.info,
        engine.now,
        engine.fileno,
        lambda: engine.open(tmp_path / "t"),
        lambda: engine.stream([target]),
        lambda: engine.read(target, 0, 1),
        lambda: target.geometry,
        target.finish,
        lambda: stream.write(b"x"),
        stream.sync,
        stream.legs,
        stream.digest,
    ):
        with pytest.raises(InterfaceError):
            call()
    assert engine.events() == []
    target.close()
    stream.abort()
    stream.close()


def test_an_engine_that_is_forgotten_warns(tmp_path: Path) -> None:
    """Breaks if a forgotten engine goes unnoticed, or if cleaning up after it fails."""
    engine = Engine(**SMALL)
    target = engine.open(tmp_path / "t", create=True)
    stream = engine.stream([target])
    with pytest.warns(ResourceWarning, match="unclosed <fanout.Engine"):  # noqa: PT031
        del engine, target, stream
        gc.collect()


@pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning"
)  # whoever records it keeps the engine
@pytest.mark.usefixtures("no_leaks")
def test_an_engine_that_is_forgotten_in_a_cycle(tmp_path: Path) -> None:
    """Breaks if the collector clears the engine before its streams: its arena and a descriptor would stay for good."""
    engine = Engine(**SMALL)
    stream: Any = engine.stream([engine.open(tmp_path / "t", create=True)])
    stream.itself = stream  # as a traceback does with the frames of a program
    del engine, stream
    gc.collect()


@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_a_closed_engine_has_no_descriptor_left(backend: str, tmp_path: Path) -> None:
    """However busy the machine is. Breaks if close returns before the last worker has let go of the engine, as it did now and then."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        for number in range(50):
            before = len(os.listdir("/proc/self/fd"))
            with Engine(backend=backend, **SMALL) as engine:
                target = engine.open(tmp_path / f"t{number}", create=True)
                with engine.stream([target]) as stream:
                    stream.place([0])
                    stream.write(b"a few bytes")
                    stream.sync()
            assert len(os.listdir("/proc/self/fd")) == before
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_close_brings_out_the_threads_inside(engine: Engine) -> None:
    """Breaks if an engine is freed under a thread that waits in it."""
    seen: list[object] = []
    waiting = threading.Thread(target=lambda: seen.append(engine.events(timeout=60)))
    waiting.start()
    time.sleep(0.05)
    began = time.monotonic()
    engine.close()
    waiting.join(5)
    assert seen == [[]]
    assert time.monotonic() - began < 2


class Opening:
    """An engine's core in which another thread opens a stream just when the close has seen which there are."""

    def __init__(self, engine: Engine, target: Target) -> None:
        self.engine, self.core, self.target = engine, engine._core, target
        self.opened: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def streams(self) -> list[Any]:
        found: list[Any] = self.core.streams()
        if not self.opened:
            self.opened.append(self.engine.stream([self.target]))
        return found


def test_a_stream_that_is_opened_while_the_engine_closes(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if the close waits for it until its time is up."""
    target = engine.open(tmp_path / "t", create=True)
    monkeypatch.setattr(engine, "_core", Opening(engine, target))
    engine.close(timeout=0.5)
    assert engine.closed


def test_a_hung_target_does_not_hold_up_close(tmp_path: Path) -> None:
    """Breaks if leaving waits for a device that never answers."""
    engine = Engine(backend="faulty", **SMALL)
    target = engine.open(tmp_path / "t", create=True)
    engine.set_faults([Fault.never(kind=Phase.WRITE, count=None)])
    stream = engine.stream([target])
    stream.place([0])
    stream.write(bytes(3 * SLOT))
    engine.close(timeout=0.1)


def test_a_target_that_is_slow_to_close_closes_itself(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if a close or a finish that did not wait leaves the file open, and its lock taken, for as long as the engine lives."""
    ends: list[Callable[..., object]] = [Target.close, Target.finish]
    for number, end in enumerate(ends):
        target = faulty.open(tmp_path / f"t{number}", create=True, lock=True)
        faulty.set_faults([Fault.delay(60.0, kind=Phase.WRITE)])
        with faulty.stream([target]) as stream:
            stream.place([0])
            stream.write(bytes(SLOT))
        end(target, timeout=1.0)
        assert target.state == "closed"
        assert faulty.info.targets == 1
        faulty.advance(100.0)
        assert faulty.info.targets == 0
        faulty.open(target.path, lock=True).close()


def test_a_step_that_takes_its_time_does_not_keep_the_lock(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if the second way to run out of time, in the middle of the steps, is another one than the first."""
    for number, phase in enumerate((Phase.TRUNCATE, Phase.FLUSH, Phase.DIRSYNC, Phase.CLOSE)):
        target = faulty.open(tmp_path / f"t{number}", create=True, lock=True)
        faulty.write(target, 0, bytes(SLOT))
        faulty.set_faults([Fault.delay(60.0, kind=phase)])
        outcome = target.finish(100, timeout=1.0)
        if phase is not Phase.FLUSH:  # a flush is waited for until the hard deadline
            assert (outcome.code, outcome.phase) == (OutcomeCode.TIMED_OUT, phase)
        faulty.advance(100.0)
        assert faulty.info.targets == 0


def test_a_flush_that_says_etimedout_is_closed_like_any_other(
    faulty: Engine, tmp_path: Path
) -> None:
    """Breaks if a device's own ETIMEDOUT is taken for ours."""
    target = faulty.open(tmp_path / "t", create=True, lock=True)
    faulty.write(target, 0, bytes(SLOT))
    faulty.set_faults([Fault.error(errno.ETIMEDOUT, kind=Phase.FLUSH)])
    outcome = target.finish()
    assert (outcome.code, outcome.errno) == (OutcomeCode.ERROR, errno.ETIMEDOUT)
    assert faulty.info.targets == 0


@pytest.mark.parametrize("end", [Target.close, Target.finish])
def test_one_target_closed_by_many_threads_at_once(
    engine: Engine, tmp_path: Path, end: Callable[[Target], object]
) -> None:
    """Breaks if the second caller runs into the first one's steps (which ended the process), or closes another's target."""
    for number in range(60):
        target = engine.open(tmp_path / str(number), create=True, lock=True)
        go = threading.Barrier(3)
        seen: list[object] = []

        def close(
            target: Target = target, go: threading.Barrier = go, seen: list[object] = seen
        ) -> None:
            go.wait(10)
            try:
                seen.append(end(target))
            except InterfaceError as refused:
                seen.append(refused)

        threads = [threading.Thread(target=close) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(seen) == 3
        assert engine.info.targets == 0


def test_fileno_is_readable_when_something_happened(engine: Engine, tmp_path: Path) -> None:
    """Breaks if an event loop sleeps through the end of a stream."""
    target = engine.open(tmp_path / "t", create=True)
    with engine.stream([target]) as stream:
        stream.place([0])
        stream.write(bytes(SLOT))
        stream.seal()
        assert select.select([engine.fileno()], [], [], 5)[0]


def test_the_faulty_engine_alone_has_faults(engine: Engine) -> None:
    """Breaks if a product engine can be told to fail."""
    with pytest.raises(InterfaceError):
        engine.set_faults([Fault.error(5)])
    with pytest.raises(InterfaceError):
        engine.advance(1)


@pytest.mark.parametrize(
    ("make", "options", "number", "cls"),
    [
        (None, {}, "ENOENT", FaultClass.SETUP),
        ("file", {"create": True}, "EEXIST", FaultClass.SETUP),
        ("directory", {"replace": True}, "EISDIR", FaultClass.SETUP),
        ("below a file", {"replace": True}, "ENOTDIR", FaultClass.SETUP),
    ],
)
def test_what_cannot_be_opened(
    engine: Engine,
    tmp_path: Path,
    make: str | None,
    options: dict[str, Any],
    number: str,
    cls: FaultClass,
) -> None:
    """Breaks if a wrong path is anything but a typed error that names it."""
    path = tmp_path / "t"
    if make == "directory":
        path.mkdir()
    elif make:
        path.write_bytes(b"there")
        path = path / "x" if make == "below a file" else path
    with pytest.raises(TargetError) as caught:
        engine.open(path, **options)
    assert errno.errorcode[caught.value.errno or 0] == number
    assert (caught.value.outcome.phase, caught.value.outcome.cls) == (Phase.OPEN, cls)
    assert caught.value.target == str(path)
    until = time.monotonic() + 5
    while engine.info.targets and time.monotonic() < until:  # a helper thread closes it
        time.sleep(0.001)
    assert engine.info.targets == 0


def test_a_lock_that_somebody_holds(engine: Engine, tmp_path: Path) -> None:
    """Breaks if two writers share a volume."""
    first = engine.open(tmp_path / "t", create=True, lock=True)
    began = time.monotonic()
    with pytest.raises(TargetError) as caught:
        engine.open(tmp_path / "t", lock=True, lock_wait=0.2)
    assert 0.15 < time.monotonic() - began < 2
    assert (caught.value.errno, caught.value.outcome.phase) == (errno.EBUSY, Phase.OPEN)
    engine.open(tmp_path / "t", read_only=True).close()
    first.close()
    engine.open(tmp_path / "t", lock=True).close()


def test_paths_may_be_bytes_and_odd(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a name that is not UTF-8 cannot be opened."""
    name = os.fsencode(tmp_path) + b"/\xff\xfe odd"
    target = engine.open(name, create=True)
    assert os.fsencode(target.path) == name
    with pytest.raises(ValueError, match="zero byte"):
        engine.open("a\0b")


def test_too_many_targets(engine: Engine, tmp_path: Path) -> None:
    """Breaks if the limit of open targets is anything but an error."""
    targets = [engine.open(tmp_path / str(i), create=True) for i in range(_core.MAX_TARGETS)]
    with pytest.raises(InterfaceError, match="an engine holds at most 256 targets"):
        engine.open(tmp_path / "more", create=True)
    with pytest.raises(InterfaceError):
        engine.stream(targets[:17])
    targets[5].close()
    engine.open(tmp_path / "more", create=True)


class Renumbering:
    """An engine's core in which a target is closed while a stream waits, and its number goes round to another file."""

    def __init__(self, engine: Engine, target: Target, directory: Path) -> None:
        self.engine, self.core, self.target, self.directory = (
            engine,
            engine._core,
            target,
            directory,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def stream(self, numbers: list[int], timeout_ns: int) -> Any:
        self.target.close()
        other = self.target
        while not (other.id == self.target.id and other._core.open):
            other.close()
            other = self.engine.open(self.directory / "other", replace=True)
        return self.core.stream(numbers, timeout_ns)


def test_a_target_that_is_closed_while_a_stream_waits(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if the stream then writes to the file that got the target's number."""
    target = engine.open(tmp_path / "t", create=True)
    monkeypatch.setattr(engine, "_core", Renumbering(engine, target, tmp_path))
    with pytest.raises(InterfaceError, match="is closed"):
        engine.stream([target])
    assert engine.info.streams == 0


def test_importing_is_light() -> None:
    """Breaks if `import fanout` drags in what most programs do not need."""
    heavy = "numpy, rich, click, sqlite3, xxhash, fanout._core"
    code = (
        "import sys, fanout\n"
        f"bad = [name for name in {heavy!r}.split(', ') if name in sys.modules]\n"
        "assert not bad, bad\n"
        "fanout.Engine, fanout.tee, fanout.spooled\n"
        "bad = [name for name in 'numpy, rich, click, sqlite3'.split(', ') if name in sys.modules]\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names() -> None:
    """Breaks if a name that is promised cannot be had, or stands out of order."""
    assert fanout.__all__ == sorted(fanout.__all__)
    assert set(fanout._HOMES) == set(fanout.__all__) - {"__version__"}
    for name in fanout.__all__:
        assert getattr(fanout, name) is not None
    assert callable(fanout.tee)
    with pytest.raises(AttributeError):
        # So does a type checker: one that took the name would call the ignore unused.
        fanout.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_a_bare_file_after_an_abort(engine: Engine, tmp_path: Path) -> None:
    """Allocated ahead and never finished, it would keep that space under its name, as docs/embedding.md says."""
    path = tmp_path / "bare"
    target = engine.open(path, create=True)
    with engine.stream([target]) as stream:
        stream.place([0])
        stream.write(b"x" * 100_000)
    assert str(target.finish(0)) == "ok"
    assert path.stat().st_size == 0


@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_a_file_that_was_laid_out_keeps_its_size(tmp_path: Path, backend: str) -> None:
    """Allocating ahead is for files that begin empty: a volume written up to its end must not grow behind its last block."""
    path = tmp_path / "volume"
    path.write_bytes(bytes(4 << 20))
    with Engine(backend=backend, memory_bytes=32 << 20, max_streams=2) as engine:
        target = engine.open(path)
        with engine.stream([target]) as stream:
            stream.place([0], 4 << 20)
            stream.write(b"x" * (4 << 20))
            assert stream.sync()[target].ok
        target.close()
    status = path.stat()
    assert status.st_size == 4 << 20
    assert status.st_blocks * 512 <= 4 << 20
