"""Every contender must really write the client's bytes to every target: a benchmark of nothing is quick."""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from fanout.bench import quick
from fanout.bench.contenders import (
    HUGE_PAGES,
    BenchmarkError,
    Contender,
    Fio,
    field,
    reserved_huge_pages,
    side_by_side,
)
from fanout.bench.peers import Btrfs, Driver, RcloneUnion, btrfs_bytes
from fanout.bench.work import MIB, matches, prepare
from fanout.cli import main
from fanout.cli.exits import Exit
from fanout.demo import devices
from fanout.engine import Engine
from fanout.errors import InterfaceError

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 8 * MIB


def spoil(path: Path) -> None:
    """Overwrite in place."""
    with path.open("r+b") as file:
        file.write(bytes(SIZE))


@pytest.fixture(scope="module")
def everybody() -> Iterator[dict[str, Contender]]:
    with Engine() as engine:
        yield {one.name: one for one in (*field(engine), Driver(engine), RcloneUnion())}


@pytest.mark.parametrize(
    "name",
    [
        "fanout",
        "fio_tuned_jobs",
        "fio_tuned_single",
        "fio_stock_jobs",
        "python_threads_buffered",
        "python_threads_direct",
        "python_threads_bare_direct",
        "dd_tee_buffered",
        "dd_tee_direct",
        "driver",
    ],
)
def test_writes_everything(name: str, everybody: dict[str, Contender], tmp_path: Path) -> None:
    """Each target is spoiled first; afterwards all of it is there, and no longer than before."""
    contender = everybody[name]
    if why := contender.missing():
        pytest.skip(why)
    paths = [tmp_path / f"t{number}" for number in range(3)]
    with prepare([str(path) for path in paths], size_bytes=SIZE) as work:
        for path in paths:
            spoil(path)
        sample = contender.run(work)
        assert sample.seconds > 0
        assert sample.client_bytes == SIZE
        for path in paths:
            assert path.stat().st_size == SIZE
            if isinstance(contender, (Fio, Driver)):  # they make their own bytes
                assert path.read_bytes().count(0) < SIZE // 2
            else:
                assert matches(work, str(path))


@pytest.mark.parametrize("chunk", [4096, 65536, 2 * MIB])
@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("name", ["fanout", "fio_tuned_jobs", "python_threads_buffered"])
def test_chunks_and_streams_lose_nothing(
    name: str, streams: int, chunk: int, everybody: dict[str, Contender], tmp_path: Path
) -> None:
    """A share that is written twice or not at all, a chunk at the wrong place: quick, and void."""
    contender = everybody[name]
    if why := contender.missing():
        pytest.skip(why)
    paths = [tmp_path / f"t{number}" for number in range(2)]
    with prepare([str(path) for path in paths], size_bytes=SIZE) as whole:
        work = dataclasses.replace(whole, chunk_bytes=chunk, streams=streams)
        assert contender.unfit(work) is None
        for path in paths:
            spoil(path)
        sample = contender.run(work)
        assert (sample.client_bytes, sample.targets) == (SIZE, 2)
        for path in paths:
            if isinstance(contender, Fio):
                pieces = [path.read_bytes()[at : at + MIB] for at in range(0, SIZE, MIB)]
                assert all(any(piece) for piece in pieces)
            else:
                assert matches(work, str(path))


def test_one_of_several_streams_that_fails_is_noticed(tmp_path: Path) -> None:
    """An error in a thread that nobody waits for."""
    with (
        Engine() as engine,
        prepare([str(tmp_path / "t")], size_bytes=SIZE) as whole,
    ):
        work = dataclasses.replace(whole, streams=2, targets=("/dev/full",))
        threads = next(one for one in field(engine) if one.name == "python_threads_buffered")
        with pytest.raises(BenchmarkError, match="python_threads_buffered"):
            threads.run(work)


def test_ctrl_c_waits_for_the_other_threads() -> None:
    """Streams and files that are closed under the feet of threads that still use them."""
    ended = threading.Event()

    def interrupt() -> None:
        _thread.interrupt_main()

    def go_on() -> None:
        time.sleep(0.3)  # longer than the interrupt takes to arrive
        ended.set()

    # Whoever runs the tests in the background may have them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side([go_on, interrupt])
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()


def test_peers_say_what_they_cannot_do(everybody: dict[str, Contender], tmp_path: Path) -> None:
    """A figure of another work beside ours."""
    with prepare([str(tmp_path / "t")], size_bytes=SIZE) as whole:
        several = dataclasses.replace(whole, streams=2)
        shorter = dataclasses.replace(whole, size_bytes=4 * MIB)
        for name in ("dd_tee_direct", "driver", "rclone", "fio_tuned_single"):
            assert everybody[name].unfit(several) == "it takes one stream"
        assert everybody["rclone"].unfit(shorter) == "it takes the whole of the client's memory"
        assert everybody["rclone"].unfit(whole) is None
        assert Btrfs(direct=True).unfit(whole) == "it needs block devices"


def test_rclone_writes_a_file_beside_every_target(tmp_path: Path) -> None:
    """The union that writes to one of its directories only, or leaves gigabytes there."""
    contender = RcloneUnion()
    if why := contender.missing():
        pytest.skip(why)
    paths = [str(tmp_path / f"t{number}") for number in range(3)]
    with prepare(paths, size_bytes=SIZE) as work:
        assert contender.unfit(work) is None
        assert contender.run(work).cpu_seconds > 0  # and it has looked at the length of each
    assert sorted(one.name for one in tmp_path.iterdir()) == ["t0", "t1", "t2"]


@pytest.mark.loop
def test_btrfs_writes_and_goes(tmp_path: Path) -> None:
    """A mount that stays holds the devices for ever."""
    if why := Btrfs(direct=True).missing() or devices.why_no_devices():
        pytest.skip(why)
    with contextlib.ExitStack() as stack:
        paths = [
            stack.enter_context(devices.loop(tmp_path / f"t{number}", size_bytes=btrfs_bytes(SIZE)))
            for number in range(3)
        ]
        work = stack.enter_context(prepare(paths, size_bytes=SIZE))
        for direct in (False, True):
            contender = Btrfs(direct=direct)
            assert contender.unfit(work) is None
            assert contender.run(work).machine_cpu_seconds >= 0
            for path in paths:
                assert path not in Path("/proc/self/mounts").read_text(encoding="utf-8")
        large = dataclasses.replace(work, size_bytes=btrfs_bytes(SIZE))
        assert Btrfs(direct=True).unfit(large) == "the devices have no room for its structures"


def test_matches_notices_one_wrong_byte(tmp_path: Path) -> None:
    """The proof itself must be able to fail."""
    path = tmp_path / "t"
    with prepare([str(path)], size_bytes=SIZE) as work:
        assert matches(work, str(path))
        with path.open("r+b") as file:
            file.seek(SIZE - 1)
            last = file.read(1)[0]
            file.seek(SIZE - 1)
            file.write(bytes([last ^ 1]))
        assert not matches(work, str(path))


def test_preallocated_and_the_same_every_time(tmp_path: Path) -> None:
    """Sparse targets or other bytes in the next run would make figures that cannot be compared."""
    path = tmp_path / "t"
    with prepare([str(path)], size_bytes=SIZE) as work:
        assert path.stat().st_blocks * 512 >= SIZE
        first = bytes(work.view)
        assert os.pread(work.memory_fd, SIZE, 0) == first[:SIZE]
    with prepare([str(path)], size_bytes=SIZE) as work:
        assert bytes(work.view) == first


@pytest.mark.parametrize("size", [0, MIB + 1])
def test_odd_sizes_are_refused(size: int, tmp_path: Path) -> None:
    """A last short block would be another benchmark."""
    with (
        pytest.raises(InterfaceError, match="multiple of 1 MiB"),
        prepare([str(tmp_path / "t")], size_bytes=size),
    ):
        pass


def test_huge_pages_are_given_back() -> None:
    """A benchmark must not take memory from the machine for good."""
    before = HUGE_PAGES.read_text(encoding="ascii")
    with reserved_huge_pages(4):
        pass
    assert HUGE_PAGES.read_text(encoding="ascii") == before


def test_two_benchmarks_at_once_give_back_all_their_huge_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second took what the first had added for what had always been there, and left it behind."""
    pages = tmp_path / "nr_hugepages"
    pages.write_text("10\n", encoding="ascii")
    monkeypatch.setattr("fanout.bench.contenders.HUGE_PAGES", pages)
    monkeypatch.setattr("fanout.bench.contenders._meminfo", lambda _: "0")
    first, second = reserved_huge_pages(4), reserved_huge_pages(8)
    first.__enter__()
    second.__enter__()
    assert pages.read_text(encoding="ascii") == "22\n"
    first.__exit__(None, None, None)
    assert pages.read_text(encoding="ascii") == "18\n"
    second.__exit__(None, None, None)
    assert pages.read_text(encoding="ascii") == "10\n"


def test_quick_json(tmp_path: Path) -> None:
    """The shape that scripts read; saved file and standard output are the same."""
    saved = tmp_path / "results" / "quick.json"
    command = ["bench", "quick", "--size", "4MiB", "--rounds", "1", "--json"]
    result = CliRunner().invoke(
        main, [*command, "--directory", str(tmp_path), "--save", str(saved)]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert json.loads(saved.read_text(encoding="utf-8")) == report
    assert set(report["ratios"]) == {
        "fio_tuned_bandwidth",
        "fio_stock_bandwidth",
        "python_threads_bandwidth",
        "python_threads_cpu",
        "dd_tee_bandwidth",
    }
    assert report["ratios"]["python_threads_bandwidth"] > 0
    assert report["machine"]["processors"] >= 1
    assert report["engine"]["backend"] in {"io_uring", "threads"}
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_absent_peer_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fio the run goes on, and says so."""
    monkeypatch.setattr(
        "fanout.bench.contenders.shutil.which", lambda name: None if name == "fio" else name
    )
    result = CliRunner().invoke(
        main,
        [
            "bench",
            "quick",
            "--directory",
            str(tmp_path),
            "--size",
            "4MiB",
            "--rounds",
            "1",
            "--json",
        ],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ratios"]["fio_tuned_bandwidth"] is None
    assert report["spread"]["fio_stock_bandwidth"] is None
    assert "apt-get install fio" in report["absent"]["fio_stock_jobs"]


def test_existing_target_is_not_overwritten_unasked(tmp_path: Path) -> None:
    """Somebody's file."""
    path = tmp_path / "precious"
    path.write_bytes(b"mine")
    result = CliRunner().invoke(main, ["bench", "quick", "-t", str(path), "--size", "4MiB"])
    assert result.exit_code == Exit.REFUSED
    assert path.read_bytes() == b"mine"


def test_peer_that_cannot_run_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose memlock limit is too low for fio's registered buffers gets the other ratios."""

    def fail(_self: object, _work: object) -> None:
        raise BenchmarkError("dd_tee_direct: no")

    monkeypatch.setattr("fanout.bench.contenders.DdTee.run", fail)
    report = quick.quick([str(tmp_path / "t")], size_bytes=4 << 20, rounds=1)
    ratios, absent = report["ratios"], report["absent"]
    assert isinstance(ratios, dict)
    assert isinstance(absent, dict)
    assert ratios["dd_tee_bandwidth"] is None
    assert absent["dd_tee_direct"] == "dd_tee_direct: no"
    assert ratios["python_threads_cpu"] > 0
