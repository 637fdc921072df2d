"""The scenario through the shell: pools fail with the kernel's own errors, gaps are told and closed."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

from fanout.cli.exits import Exit
from fanout.demo import devices
from tests.cli.conftest import MIB, Shell, describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BASE = {"DISKPOOL", "TAPEPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"}


def contents(shell: Shell) -> dict[str, set[str]]:
    """Pool to the names in it, without directories: exact contents."""
    found: dict[str, set[str]] = {pool: set() for pool in BASE}
    for node in ("N1", "N2"):
        for one in shell("query", "object", node, "--json").json["objects"]:
            for pool in one["pools"]:
                found[pool].add(one["name"].rsplit("/", 1)[-1])
    return found


def write(root: Path, **files: int) -> None:
    root.mkdir()
    for name, size in files.items():
        data = bytes((number * 7 + size) % 251 for number in range(1024)) * (size // 1024 + 1)
        (root / name).write_bytes(data[:size])


@pytest.fixture
def clients(tmp_path: Path) -> tuple[Path, Path]:
    """What N1 and N2 store; E does not fit into DISKPOOL."""
    fast, normal = tmp_path / "fast", tmp_path / "normal"
    write(fast, A=2 * MIB, B=3 * MIB + 1)
    write(normal, C=MIB + 7, D=2 * MIB, E=12 * MIB)
    return fast, normal


def check_readable(shell: Shell, clients: tuple[Path, Path], tmp_path: Path) -> None:
    """Every object from every pool that holds it, byte for byte."""
    held = contents(shell)
    for node, root in zip(("N1", "N2"), clients, strict=True):
        for path in root.iterdir():
            for pool in (pool for pool, names in held.items() if path.name in names):
                copy = tmp_path / "copy"
                shell("get", node, path, "-o", copy, "--pool", pool, "--force")
                assert copy.read_bytes() == path.read_bytes(), (pool, path.name)


def test_healthy(shell: Shell, clients: tuple[Path, Path], tmp_path: Path) -> None:
    """All pools hold exactly what they should; the repair commands find nothing to do."""
    shell("put", "N1", clients[0])
    shell("put", "N2", clients[1])
    assert contents(shell) == {
        "DISKPOOL": set("ABCD"),
        "TAPEPOOL": {"E"},
        "COPYPOOL1": set("ABCDE"),
        "COPYPOOL2": set("ABCDE"),
        "ACTIVEDATAPOOL": set("AB"),
    }
    shell("query", "gap", code=0)
    for primary, skipped in (("diskpool", 4), ("tapepool", 1)):
        said = shell("backup", "stgpool", primary, "copypool1", "--json").json
        assert (said["copied_objects"], said["skipped_objects"]) == (0, skipped)
    check_readable(shell, clients, tmp_path)


@pytest.mark.loop
def test_copy_pool_fails_in_the_middle(clients: tuple[Path, Path], tmp_path: Path) -> None:
    """EIO from zram: retried without it, said loudly, exit code 3, gaps, repair, all whole again."""
    if why := devices.why_no_zram():
        pytest.skip(why)
    with devices.zram(size_bytes=64 * MIB) as copy1:
        shell = Shell(describe(tmp_path, devices={"COPYPOOL1": copy1.device}))
        shell("init", code=Exit.REFUSED)  # a device always holds something
        shell("init", "--force")
        # Compressible content hardly needs memory: a few pages more than now are enough to open it, and too little for that.
        copy1.limit(copy1.used() + 32 * 1024)
        first = shell("put", "N1", clients[0], "--json", code=Exit.DEGRADED).json
        assert first["retries"] == 1
        assert "EIO" in first["removed"]["COPYPOOL1"]
        assert first["gaps"][0]["pool"] == "COPYPOOL1"
        assert first["gaps"][0]["objects"] == 2
        second = shell.process("put", "N2", clients[1], code=Exit.DEGRADED)
        assert "DEGRADED" in second.err
        assert "fanout backup stgpool TAPEPOOL COPYPOOL1" in second.err
        assert contents(shell) == {
            "DISKPOOL": set("ABCD"),
            "TAPEPOOL": {"E"},
            "COPYPOOL1": set(),
            "COPYPOOL2": set("ABCDE"),
            "ACTIVEDATAPOOL": set("AB"),
        }
        gaps = shell("query", "gap", "--names", "--json", code=Exit.GAPS).json["gaps"]
        assert {name[-1] for gap in gaps for name in gap["names"]} == set("ABCDE")
        copy1.limit(0)
        preview = shell("backup", "stgpool", "diskpool", "copypool1", "--preview", code=Exit.GAPS)
        assert "Nothing was copied" in preview.out
        said = shell("backup", "stgpool", "diskpool", "copypool1", "--json").json
        assert (said["ok"], said["copied_objects"], said["gaps_left"]) == (True, 4, 0)
        shell("query", "gap", "--primary", "tapepool", code=Exit.GAPS)
        shell("backup", "stgpool", "tapepool", "copypool1")
        shell("query", "gap", code=0)
        assert contents(shell)["COPYPOOL1"] == set("ABCDE")
        check_readable(shell, clients, tmp_path)


@pytest.mark.loop
def test_active_data_pool_fails_in_the_middle(clients: tuple[Path, Path], tmp_path: Path) -> None:
    """ENOSPC from a loop device that ran dry, and `copy activedata`."""
    if why := devices.why_no_devices():
        pytest.skip(why)
    with devices.thin_loop(tmp_path / "thin", size_bytes=32 * MIB) as active:
        shell = Shell(describe(tmp_path, devices={"ACTIVEDATAPOOL": active.device}))
        shell("init", "--force")
        active.resize(active.used() + MIB)
        first = shell("put", "N1", clients[0], "--json", code=Exit.DEGRADED).json
        assert "ENOSPC" in first["removed"]["ACTIVEDATAPOOL"]
        shell("put", "N2", clients[1], code=0)  # its domain has no part in the pool
        assert contents(shell)["ACTIVEDATAPOOL"] == set()
        assert contents(shell)["COPYPOOL1"] == set("ABCDE")
        said = shell("query", "gap", code=Exit.GAPS)
        assert "fanout copy activedata DISKPOOL ACTIVEDATAPOOL" in said.out
        active.resize(40 * MIB)
        said = shell("copy", "activedata", "diskpool", "activedatapool", "--json")
        assert said.json["copied_objects"] == 2
        shell("query", "gap", code=0)
        check_readable(shell, clients, tmp_path)


def only_short_files(limit: int) -> Callable[[], None]:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return limited


def test_copy_pool_cannot_be_written(clients: tuple[Path, Path], tmp_path: Path) -> None:
    """On plain files, as any user: EFBIG from the kernel for the one volume that is longer than allowed."""
    sizes = {"DISKPOOL": "16 MiB", "COPYPOOL2": "31 MiB", "COPYPOOL1": "64 MiB"}
    shell = Shell(describe(tmp_path, sizes=sizes))
    shell("init")
    limited = only_short_files(32 * MIB)
    said = shell.process("put", "N1", clients[0], "--json", code=Exit.DEGRADED, before=limited)
    assert said.json["gaps"][0]["pool"] == "COPYPOOL1"
    shell.process("put", "N2", clients[1], code=Exit.DEGRADED, before=limited)
    assert contents(shell) == {
        "DISKPOOL": set("ABCD"),
        "TAPEPOOL": {"E"},
        "COPYPOOL1": set(),
        "COPYPOOL2": set("ABCDE"),
        "ACTIVEDATAPOOL": set("AB"),
    }
    shell("query", "gap", code=Exit.GAPS)
    shell("backup", "stgpool", "diskpool", "copypool1")
    shell("backup", "stgpool", "tapepool", "copypool1")
    shell("query", "gap", code=0)
    check_readable(shell, clients, tmp_path)


def test_copy_continue_no(clients: tuple[Path, Path], tmp_path: Path) -> None:
    """The same fault under copy_continue = false: nothing is stored anywhere, and it is no success."""
    sizes = {"COPYPOOL2": "31 MiB", "COPYPOOL1": "64 MiB"}
    shell = Shell(describe(tmp_path, sizes=sizes, copy_continue=False))
    shell("init")
    said = shell.process(
        "put", "N1", clients[0], "--json", code=None, before=only_short_files(32 * MIB)
    )
    assert said.code == Exit.FAILED
    assert said.json["error"]["exit_code"] == Exit.FAILED
    assert contents(shell) == {pool: set() for pool in BASE}
    shell("query", "gap", code=0)
