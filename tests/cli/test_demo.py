"""`fanout demo`: the scenario on files (always) and devices (root), exact contents, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fanout.cli.exits import Exit
from fanout.demo import devices
from tests.cli.conftest import Shell
from tests.faults.devices import zram

GROUPS = {
    "DISKPOOL": "ABCD",
    "TAPEPOOL": "E",
    "COPYPOOL1": "ABCDE",
    "COPYPOOL2": "ABCDE",
    "ACTIVEDATAPOOL": "AB",
}


@pytest.fixture
def run(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "no.toml")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of files, in place of /usr, which may be anything."""
    root = tmp_path_factory.mktemp("source")
    for number in range(220):
        (root / f"d{number % 9}").mkdir(exist_ok=True)
        size = 3000 if number % 3 == 0 else 310_000 + number
        (root / f"d{number % 9}" / f"f{number}").write_bytes(os.urandom(size))
    return root


def devices_here(work: Path) -> set[str]:
    """Loop devices over files below a directory, and mounts below it."""
    found = set()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # of somebody who is letting it go
            if backing.read_text(encoding="utf-8").startswith(str(work)):
                found.add(str(backing))
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return found | {place for _, place, *_ in map(str.split, mounts) if place.startswith(str(work))}


def zrams() -> set[tuple[str, int]]:
    """Zram devices of whomever; one that is made anew under an old name is another one."""
    found = set()
    for one in Path("/sys/block").glob("zram*"):
        with contextlib.suppress(OSError):  # of somebody who is letting it go
            found.add((one.name, one.stat().st_ino))
    return found


def zrams_left(before: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """What a demo that has ended left behind; what another test has at the moment will go away."""
    left, until = zrams() - before, time.monotonic() + 60
    while left and time.monotonic() < until:
        time.sleep(0.01)
        left &= zrams()
    return left


def check(report: dict[str, Any], errors: dict[str, str]) -> None:
    """The shape and the contents that the rules demand."""
    assert report["ok"] is True, report["sentence"]
    healthy, copy_fails, active_fails = report["phases"]
    groups = report["input"]["groups"]
    for phase, lost in (
        (healthy, None),
        (copy_fails, "COPYPOOL1"),
        (active_fails, "ACTIVEDATAPOOL"),
    ):
        for pool, names in GROUPS.items():
            wanted = {} if pool == lost else {name: groups[name] for name in names}
            assert phase["pools"][pool] == wanted, (phase["name"], pool)
        assert phase["client_bytes_per_second"] > 0
        assert phase["as_expected"] is True
    assert healthy["gaps"] == healthy["retries"] == []
    assert healthy["fault"] is None
    assert [(one["node"], one["pool"]) for one in copy_fails["retries"]] == [
        ("N1", "COPYPOOL1"),
        ("N2", "COPYPOOL1"),
    ]
    assert [(one["node"], one["pool"]) for one in active_fails["retries"]] == [
        ("N1", "ACTIVEDATAPOOL")
    ]
    for phase in (copy_fails, active_fails):
        errno = errors[phase["fault"]["pool"]]
        assert phase["fault"]["errno"] == errno
        assert all(errno in one["reason"] for one in phase["retries"])
    assert {(one["primary"], one["pool"]) for one in copy_fails["gaps"]} == {
        ("DISKPOOL", "COPYPOOL1"),
        ("TAPEPOOL", "COPYPOOL1"),
    }
    assert [(one["primary"], one["pool"]) for one in active_fails["gaps"]] == [
        ("DISKPOOL", "ACTIVEDATAPOOL")
    ]
    objects = sum(one["objects"] for one in groups.values())
    fast = groups["A"]["objects"] + groups["B"]["objects"]
    assert [one["command"].split()[:2] for one in report["repairs"]] == [
        ["backup", "stgpool"],
        ["backup", "stgpool"],
        ["copy", "activedata"],
    ]
    assert [one["copied_objects"] for one in report["repairs"]] == [objects - 1, 1, fast]
    for proof in report["proofs"]:
        assert proof["wrong"] == []
        assert proof["reads"] == 3 * objects + fast
    assert set(report["loss"]["lost"]) == {"C", "D", "E"}
    assert report["loss"]["saved"] == {"A": "ACTIVEDATAPOOL", "B": "ACTIVEDATAPOOL"}
    assert report["loss"]["gap_query_said"] is True


def test_on_files(run: Shell, source: Path, tmp_path: Path) -> None:
    """As any user: a real EFBIG, from this process's file size limit."""
    work = tmp_path / "work"
    work.mkdir()
    before = zrams()
    said = run.process(
        "demo",
        "--targets",
        "files",
        "--size",
        "32MiB",
        "--input",
        source,
        "--directory",
        work,
        "--json",
    )
    check(said.json, {"COPYPOOL1": "EFBIG", "ACTIVEDATAPOOL": "EFBIG"})
    assert said.json["targets"] == "files"
    assert said.err == ""
    assert list(work.iterdir()) == []
    assert devices_here(work) == set()
    assert zrams_left(before) == set()


@pytest.mark.loop
def test_on_devices(run: Shell, source: Path, tmp_path: Path) -> None:
    """As root: EIO from zram, ENOSPC from a loop device; and the screen without a terminal. Somebody else's device stays as it is."""
    if why := devices.why_no_devices() or devices.why_no_zram():
        pytest.skip(why)
    work = tmp_path / "work"
    work.mkdir()
    arguments = ("demo", "--size", "32MiB", "--input", source, "--directory", work)
    with zram(16 << 20) as other:
        Path(other.path).write_bytes(b"somebody's")
        before = zrams()
        said = run.process(*arguments, "--json")
        check(said.json, {"COPYPOOL1": "EIO", "ACTIVEDATAPOOL": "ENOSPC"})
        assert said.json["targets"] == "devices"
        screen = run.process(*arguments)
        assert {one for one in before if one[0] == Path(other.path).name} <= zrams()
        with open(other.path, "rb") as device:
            assert device.read(10) == b"somebody's"
        assert devices_here(work) == set()
        assert zrams_left(before) == set()
    assert max(map(len, screen.out.splitlines())) <= 80
    assert "\x1b" not in screen.out
    assert "all five pools agree with the source" in " ".join(screen.out.split())
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.1, 1.0])
def test_interrupted_leaves_nothing(
    source: Path, tmp_path: Path, number: signal.Signals, delay: float
) -> None:
    """Ctrl-C and SIGTERM at about any time: no files, no devices, no mounts; exit code 130."""
    work = tmp_path / "work"
    work.mkdir()
    before = zrams()
    command = [sys.executable, "-m", "fanout", "demo", "--size", "32MiB"]
    command += ["--input", str(source), "--directory", str(work), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(work.iterdir()):
        time.sleep(0.01)
    time.sleep(delay)  # the point is an arbitrary moment, not a certain one
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode in {Exit.INTERRUPTED, Exit.COMPLETE}, err
    assert "Traceback" not in err
    assert list(work.iterdir()) == []
    assert devices_here(work) == set()
    assert zrams_left(before) == set()


def test_too_little_space_is_said_first(run: Shell, tmp_path: Path) -> None:
    """Before anything is made."""
    said = run("demo", "--size", "900TiB", "--directory", tmp_path, code=Exit.UNSUITABLE)
    assert "needed" in said.err
    assert list(tmp_path.iterdir()) == []


def test_too_few_files_is_said(run: Shell, tmp_path: Path) -> None:
    """A tree that is too small."""
    (tmp_path / "few").mkdir()
    (tmp_path / "few/one").write_bytes(b"x")
    arguments = ("--size", "32MiB", "--input", tmp_path / "few", "--directory", tmp_path)
    said = run("demo", *arguments, code=Exit.FAILED)
    assert "--input" in said.err
    assert [one.name for one in tmp_path.iterdir()] == ["few"]


def test_least_size(run: Shell) -> None:
    """Below it the scenario does not happen."""
    run("demo", "--size", "1MiB", code=Exit.USAGE)
