"""Every contender must really write the client's bytes to every target: a benchmark of nothing is quick."""

from __future__ import annotations

import json
import os
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
)
from fanout.bench.work import MIB, matches, prepare
from fanout.cli import main
from fanout.cli.exits import Exit
from fanout.engine import Engine
from fanout.errors import InterfaceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 8 * MIB


def spoil(path: Path) -> None:
    """Overwrite in place."""
    with path.open("r+b") as file:
        file.write(bytes(SIZE))


@pytest.fixture(scope="module")
def everybody() -> Iterator[dict[str, Contender]]:
    with Engine() as engine:
        yield {one.name: one for one in field(engine)}


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
            if isinstance(contender, Fio):  # it makes its own bytes
                assert path.read_bytes().count(0) < SIZE // 2
            else:
                assert matches(work, str(path))


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
