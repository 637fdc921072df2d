"""`fanout tee`: exact bytes, honest outcomes, and nothing destroyed unasked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import xxhash

from fanout.cli.exits import Exit
from fanout.demo import devices
from tests.cli.conftest import MIB, Shell

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run(tmp_path: Path) -> Shell:
    """No store is needed."""
    return Shell(tmp_path / "no.toml")


@pytest.mark.parametrize("size", [0, 1, 4095, MIB, 3 * MIB + 5])
def test_files(run: Shell, tmp_path: Path, size: int) -> None:
    """Length, content and digest, by other hands."""
    data = os.urandom(size)
    source = tmp_path / "src"
    source.write_bytes(data)
    targets = [tmp_path / name for name in "abc"]
    said = run("tee", source, *targets, "--json").json
    assert said["ok"] is True
    assert said["bytes"] == size
    assert said["digest"] == xxhash.xxh3_128_hexdigest(data)
    assert list(said["targets"]) == [str(path) for path in targets]
    for path in targets:
        assert path.read_bytes() == data
        assert said["targets"][str(path)]["ok"] is True


def test_standard_input(run: Shell, tmp_path: Path) -> None:
    """A pipe of unknown length."""
    data = os.urandom(2 * MIB + 3)
    run.process("tee", "-", tmp_path / "a", tmp_path / "b", stdin=data)
    assert (tmp_path / "a").read_bytes() == data
    assert (tmp_path / "b").read_bytes() == data


def test_length_of_standard_input_is_held_to(run: Shell, tmp_path: Path) -> None:
    """More or less than --size is an error, not a success."""
    said = run.process("tee", "-", tmp_path / "a", "--size", "10", stdin=b"x", code=Exit.FAILED)
    assert "10" in said.err


def test_existing_file_is_not_replaced_unasked(run: Shell, tmp_path: Path) -> None:
    """And not even touched."""
    (tmp_path / "src").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"precious")
    said = run("tee", tmp_path / "src", tmp_path / "old", code=Exit.REFUSED)
    assert "--force" in said.err
    assert (tmp_path / "old").read_bytes() == b"precious"
    run("tee", tmp_path / "src", tmp_path / "old", "--force")
    assert (tmp_path / "old").read_bytes() == b"new"


def test_one_target_fails(run: Shell, tmp_path: Path) -> None:
    """The others are complete; it is no success, and loud."""
    (tmp_path / "src").write_bytes(b"data" * 1000)
    missing = tmp_path / "no" / "such" / "directory"
    said = run("tee", tmp_path / "src", tmp_path / "a", missing, code=Exit.DEGRADED)
    assert "ENOENT" in said.out.replace("\n", "")
    assert "WARNING" in said.err
    assert (tmp_path / "a").read_bytes() == b"data" * 1000
    said = run("tee", tmp_path / "src", missing, "--json", code=Exit.FAILED)
    assert said.json["targets"][str(missing)]["errno"] == 2


def test_mistakes_are_refused(run: Shell, tmp_path: Path) -> None:
    """The source as a target, twice the same, a directory: usage errors, nothing written."""
    source = tmp_path / "src"
    source.write_bytes(b"data")
    (tmp_path / "same").hardlink_to(source)
    run("tee", source, source, "--force", code=Exit.USAGE)
    run("tee", source, tmp_path / "same", "--force", code=Exit.USAGE)
    run("tee", source, tmp_path / "a", tmp_path / "a", code=Exit.USAGE)
    run("tee", tmp_path, tmp_path / "a", code=Exit.USAGE)
    run("tee", source, "/dev/null", code=Exit.USAGE)
    run("tee", source, *(tmp_path / f"many{number}" for number in range(17)), code=Exit.USAGE)
    assert not (tmp_path / "many0").exists()
    run("tee", tmp_path / "nothing", tmp_path / "a", code=Exit.TARGET)
    assert source.read_bytes() == b"data"
    assert not (tmp_path / "a").exists()


@pytest.mark.loop
def test_block_device_asks(run: Shell, tmp_path: Path) -> None:
    """A device always holds something; with --force it is written from its first byte."""
    if why := devices.why_no_devices():
        pytest.skip(why)
    data = os.urandom(2 * MIB + 100)
    (tmp_path / "src").write_bytes(data)
    with devices.loop(tmp_path / "img", size_bytes=4 * MIB, sector_bytes=4096) as device:
        said = run("tee", tmp_path / "src", device, code=Exit.REFUSED)
        assert device in said.err
        run("tee", tmp_path / "src", device, tmp_path / "copy", "--force")
        with open(device, "rb") as file:
            assert file.read(len(data)) == data
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.loop
def test_device_too_small(run: Shell, tmp_path: Path) -> None:
    """The end of a device is that device's failure alone."""
    if why := devices.why_no_devices():
        pytest.skip(why)
    (tmp_path / "src").write_bytes(os.urandom(4 * MIB))
    with devices.loop(tmp_path / "img", size_bytes=2 * MIB) as device:
        arguments = ("tee", tmp_path / "src", device, tmp_path / "copy", "--force", "--json")
        said = run(*arguments, code=Exit.DEGRADED).json
    assert said["targets"][device]["ok"] is False
    assert said["targets"][str(tmp_path / "copy")]["ok"] is True
