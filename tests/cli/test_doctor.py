"""`fanout doctor`: facts that hold, advice that fits, and nothing touched."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fanout.cli import checkup
from fanout.cli.checkup import MachineFacts, TargetFacts
from fanout.cli.exits import Exit
from fanout.demo import devices
from tests.cli.conftest import MIB, Shell

if TYPE_CHECKING:
    from pathlib import Path

GOOD = MachineFacts(
    backend="io_uring",
    reason="",
    huge_pages=2,
    registered=True,
    memory_bytes=64 * MIB,
    hash_isa="AVX2",
    kernel="6.1",
    io_uring_disabled=0,
    transparent_huge_pages="madvise",
    reserved_huge_pages_free=0,
    memlock_bytes=None,
    file_size_limit_bytes=None,
    open_files=1024,
    root=False,
)


@pytest.fixture
def run(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "no.toml")


def test_nothing_to_say_about_a_good_machine() -> None:
    """Advice that is always given is not read."""
    assert checkup.machine_advice(GOOD) == []


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (replace(GOOD, backend="threads", io_uring_disabled=2), "kernel.io_uring_disabled=0"),
        (replace(GOOD, backend="threads"), "seccomp"),
        (replace(GOOD, registered=False, memlock_bytes=8 * MIB), "LimitMEMLOCK"),
        (replace(GOOD, huge_pages=0, transparent_huge_pages="never"), "madvise"),
        (replace(GOOD, huge_pages=0), "compact_memory"),
        (replace(GOOD, file_size_limit_bytes=MIB), "ulimit -f"),
        (replace(GOOD, open_files=64), "ulimit -n"),
    ],
)
def test_machine_advice_names_the_setting(facts: MachineFacts, word: str) -> None:
    """Each finding has one mend."""
    (advice,) = checkup.machine_advice(facts)
    assert word in advice


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (TargetFacts("/t", "file", granule=4096, direct=False), "O_DIRECT"),
        (TargetFacts("/t", "file", granule=4096, direct=True, slow_path=True), "hard_deadline"),
        (TargetFacts("/t", "file", problem="is broken", mend="Mend it."), "Mend it."),
        (
            TargetFacts("/t", "block device", granule=512, direct=True, details=("read-only",)),
            "--setrw",
        ),
    ],
)
def test_target_advice(facts: TargetFacts, word: str) -> None:
    """Likewise for targets."""
    (advice,) = checkup.target_advice(facts)
    assert word in advice


def test_targets_are_described_and_untouched(run: Shell, tmp_path: Path) -> None:
    """A file, a directory, a file to be made: facts, and nothing left behind."""
    file = tmp_path / "f"
    file.write_bytes(b"precious")
    before = file.stat()
    said = run("doctor", file, tmp_path, tmp_path / "new", "--json").json
    assert said["ok"] is True
    assert said["machine"]["backend"] in {"io_uring", "threads"}
    kinds = {one["path"]: one for one in said["targets"]}
    assert kinds[str(file)]["kind"] == "file"
    assert kinds[str(file)]["size_bytes"] == 8
    assert kinds[str(tmp_path)]["kind"] == "directory"
    assert kinds[str(tmp_path / "new")]["kind"] == "new file"
    assert kinds[str(file)]["granule"] in {512, 1024, 2048, 4096}
    assert file.read_bytes() == b"precious"
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "path", ["/dev/null", "/no/such/place/f", "/proc/version", "/dev/no-such-disk"]
)
def test_unusable_targets(run: Shell, path: str) -> None:
    """Exit code 12 and the reason."""
    said = run("doctor", path, "--json", code=Exit.TARGET).json
    assert said["ok"] is False
    assert said["targets"][0]["problem"]
    table = run("doctor", path, code=Exit.TARGET)
    assert "cannot be used" in table.out


def test_threads_backend_is_said_with_its_reason(run: Shell) -> None:
    """Which backend runs, and why."""
    said = run("doctor", "--backend", "threads", "--json").json
    assert said["machine"]["backend"] == "threads"
    assert said["advice"]
    assert "threads" in run("doctor", "--backend", "threads").out


@pytest.mark.loop
def test_block_devices(run: Shell, tmp_path: Path) -> None:
    """Sectors, direct I/O, and a mounted device that must not be used."""
    if why := devices.why_no_devices():
        pytest.skip(why)
    with devices.loop(tmp_path / "img", size_bytes=32 * MIB, sector_bytes=4096) as device:
        facts = run("doctor", device, "--json").json["targets"][0]
        assert facts["kind"] == "block device"
        assert facts["size_bytes"] == 32 * MIB
        assert facts["sector_logical"] == 4096
        assert facts["direct"] is True
        assert any("loop device over" in line for line in facts["details"])
        devices.run("mkfs.ext4", "-q", "-F", device)
        mount = tmp_path / "m"
        mount.mkdir()
        devices.run("mount", device, str(mount))
        try:
            facts = run("doctor", device, "--json", code=Exit.TARGET).json["targets"][0]
            assert facts["problem"] == f"mounted on {mount}"
        finally:
            devices.run("umount", str(mount))
