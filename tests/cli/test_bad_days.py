"""What an operator meets on a bad day: each error names the place and the mend, with an exit code, and without a traceback.

What could break: advice that makes it worse (a new store where the catalog was lost), an error without a place, one object that stops a whole tree.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanout.cli.exits import Exit
from tests.cli.conftest import Shell, describe

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def stored(shell: Shell, tmp_path: Path) -> Path:
    """A file that is stored in every pool."""
    path = tmp_path / "one"
    path.write_bytes(b"0123456789")
    shell("put", "N1", path, "--as", "one")
    return path


def volume(shell: Shell, pool: str) -> Path:
    found = shell("query", "volume", "--json").json["volumes"]
    return next(Path(one["path"]) for one in found if one["pool"] == pool)


# ---- the catalog ---------------------------------------------------------------------------------------


def test_a_catalog_that_is_gone(shell: Shell, stored: Path, tmp_path: Path) -> None:
    """Whoever is sent to 'init' loses all that the volumes hold."""
    for path in tmp_path.glob("catalog.db*"):
        path.unlink()
    for command in (["put", "N1", stored], ["query", "object", "N1"], ["check"], ["init", "--add"]):
        said = shell(*command, code=Exit.CATALOG)
        assert str(tmp_path / "catalog.db") in said.err
        assert "fanout rebuild catalog" in said.err
    assert "fanout rebuild catalog" in shell("init", code=Exit.REFUSED).err
    shell("rebuild", "catalog")
    shell("get", "N1", "one", "--to", tmp_path / "back")


@pytest.mark.parametrize("content", [b"\xa5" * 8192, b""], ids=["damaged", "empty"])
def test_a_catalog_that_is_damaged(shell: Shell, stored: Path, content: bytes) -> None:
    path = stored.with_name("catalog.db")
    path.write_bytes(content)
    assert "fanout rebuild catalog" in shell("put", "N1", stored, code=Exit.CATALOG).err
    shell("rebuild", "catalog", "--force")
    shell("get", "N1", "one", "--to", stored.with_name("back"))


# ---- volumes -------------------------------------------------------------------------------------------


def test_a_primary_that_is_away_is_told(
    shell: Shell, stored: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What overflows to the next pool is no gap: nothing else would say so."""
    path = volume(shell, "DISKPOOL")
    path.unlink()
    shell("put", "N1", stored, "--as", "two")
    assert f"{path} of pool DISKPOOL is not used: does not exist" in caplog.text


def test_who_audits_a_pool_that_is_away_hears_of_the_volume(shell: Shell, stored: Path) -> None:
    path = volume(shell, "COPYPOOL1")
    path.rename(path.with_suffix(".away"))
    said = shell("audit", "stgpool", "COPYPOOL1", "--json", code=Exit.GAPS).json
    assert said["unasked"][0]["reason"].startswith(f"COPYPOOL1: {path}: does not exist")


def test_a_rebuild_names_a_volume_once(shell: Shell, stored: Path) -> None:
    path = volume(shell, "COPYPOOL1")
    path.write_bytes(b"")
    said = shell("rebuild", "catalog", "--force", code=Exit.TARGET).err
    assert said.count(f"{path}") == 1


# ---- what is stored ------------------------------------------------------------------------------------


def test_a_name_that_is_too_long_is_left_out(shell: Shell, tmp_path: Path) -> None:
    """And nothing else of its tree."""
    tree = tmp_path / "tree"
    deep = tree.joinpath(*["d" * 240] * 5)
    deep.mkdir(parents=True)
    for path in (tree / "ok", deep / "far"):
        path.write_bytes(b"x")
    said = shell("put", "N1", tree, "--json", code=Exit.DEGRADED).json
    (left_out,) = said["left_out"]
    assert left_out["path"] == str(deep / "far")
    assert "1,024" in left_out["reason"]
    assert said["objects"] == 1


def test_a_source_without_a_length(shell: Shell) -> None:
    """/proc says nothing of how long it is, and the kernel's error nothing of where."""
    said = shell("put", "N1", "/proc/meminfo", code=Exit.FAILED)
    assert "/proc/meminfo: does not say how long it is" in said.err


def test_a_source_that_cannot_be_read(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector under the client's file: the kernel says EIO, and nothing of where."""
    path = tmp_path / "bad"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr("fanout.sources._read_into", _unreadable)
    assert f"{path}: Input/output error" in shell("put", "N1", path, code=Exit.TARGET).err


def _unreadable(_: Callable[[memoryview], int | None]) -> None:
    raise OSError(5, os.strerror(5))


# ---- what is read --------------------------------------------------------------------------------------


def test_onto_a_directory(shell: Shell, stored: Path) -> None:
    """It is named, not the neighbour that the bytes were written to."""
    there = stored.with_name("there")
    there.mkdir()
    said = shell("get", "N1", "one", "--output", there, "--force", "--json", code=Exit.TARGET).json
    assert said["failed"][0]["reason"] == f"{there}: Is a directory"
    assert list(there.iterdir()) == []


def test_a_name_that_is_no_file_name(shell: Shell, stored: Path) -> None:
    """--force does not help, so nobody is told to say it."""
    shell("put", "N1", stored, "--as", "../up")
    said = shell("get", "N1", "../up", "--to", stored.with_name("back"), code=Exit.REFUSED)
    assert "--output FILE" in said.err
    assert "--force" not in said.err


def test_an_empty_name_is_not_the_whole_of_a_node(shell: Shell, stored: Path) -> None:
    """It comes from a variable that was not set."""
    shell("put", "N1", stored, "--as", "/abs")
    shell("get", "N1", "", "--to", stored.with_name("back"), code=Exit.USAGE)
    assert not stored.with_name("back").exists()


# ---- the rest ------------------------------------------------------------------------------------------


def test_a_pool_of_another_type(shell: Shell, stored: Path) -> None:
    """No volume has anything to do with it."""
    said = shell("backup", "stgpool", "COPYPOOL1", "DISKPOOL", code=Exit.TARGET)
    assert "is a pool of type copy" in said.err
    assert "query volume" not in said.err


def test_more_memory_than_an_engine_takes(tmp_path: Path) -> None:
    path = describe(tmp_path)
    path.write_text(path.read_text() + '[engine]\nmemory = "900 TiB"\n')
    said = Shell(path)("init", code=Exit.CONFIG)
    assert f"{path}: engine.memory: must be at most" in said.err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_standard_output(shell: Shell, stored: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "fanout", "query", "object", "N1", *options]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*command, "--config", str(shell.config)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == Exit.TARGET
    assert "standard output: No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("options", [["--json"], []])
def test_a_pipe_that_nobody_reads_does_not_change_the_exit_code(
    shell: Shell, stored: Path, options: list[str]
) -> None:
    """``fanout query gap | head`` must still say that there are gaps; 0 and 1 would both be wrong."""
    volume(shell, "COPYPOOL1").unlink()
    shell("put", "N1", stored, "--as", "two", code=Exit.DEGRADED)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "fanout",
                "query",
                "gap",
                *options,
                "--config",
                str(shell.config),
            ],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert ended.returncode == Exit.GAPS
    assert ended.stderr == ""


def test_a_standard_error_that_is_full_does_not_change_the_exit_code(shell: Shell) -> None:
    """A log on a full disk: what cannot be warned of is said by the exit code."""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "fanout",
                "query",
                "stgpool",
                "NONE",
                "--config",
                str(shell.config),
            ],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
        )
    assert ended.returncode == Exit.CONFIG
    with open("/dev/full", "w") as full:
        helped = subprocess.run(
            [sys.executable, "-m", "fanout", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert helped.returncode == Exit.TARGET
    assert b"Traceback" not in helped.stderr
