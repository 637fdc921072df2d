"""Where the demo's errors come from: real devices that fail for real, and are given back."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanout.demo import devices, inputs, signals
from fanout.demo.site import Sizes, describe, site
from fanout.errors import FanoutError, SourceError
from fanout.format import default_directory_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


def fill(path: str, mebibytes: int) -> tuple[int, int]:
    """Write random bytes with direct I/O; how many MiB went in, and the errno that ended it."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MIB) as block:
            for number in range(mebibytes):
                block[:] = os.urandom(MIB)
                try:
                    os.pwrite(fd, block, number * MIB)
                except OSError as error:
                    return number, error.errno or 0
    finally:
        os.close(fd)
    return mebibytes, 0


def loops(below: Path) -> set[str]:
    """Names of loop devices over files below a directory; others come and go."""
    found = set()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # of somebody who is letting it go
            if backing.read_text(encoding="utf-8").startswith(str(below)):
                found.add(backing.parts[3])
    return found


@pytest.mark.loop
@pytest.mark.parametrize("sector", [512, 4096])
def test_loop_comes_and_goes(tmp_path: Path, sector: int) -> None:
    """A loop device left behind is somebody's puzzle."""
    if why := devices.why_no_devices():
        pytest.skip(why)
    with devices.loop(tmp_path / "img", size_bytes=8 * MIB, sector_bytes=sector) as device:
        assert Path(device).name in loops(tmp_path)
        assert fill(device, 8) == (8, 0)
    assert Path(device).name not in loops(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.loop
def test_loop_is_given_back_after_an_error(tmp_path: Path) -> None:
    """Also when the block fails."""
    if why := devices.why_no_devices():
        pytest.skip(why)
    names = []

    def interrupted() -> None:
        with devices.thin_loop(tmp_path / "thin", size_bytes=8 * MIB) as thin:
            names.append(Path(thin.device).name)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names[0] not in loops(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.loop
def test_thin_loop_runs_dry_and_recovers(tmp_path: Path) -> None:
    """ENOSPC from a block device, and again well."""
    if why := devices.why_no_devices():
        pytest.skip(why)
    with devices.thin_loop(tmp_path / "thin", size_bytes=16 * MIB) as thin:
        thin.resize(thin.used() + 4 * MIB)
        done, error = fill(thin.device, 16)
        assert error == errno.ENOSPC
        assert 3 <= done <= 4
        thin.resize(32 * MIB)
        assert fill(thin.device, 16) == (16, 0)


@pytest.mark.loop
def test_zram_reaches_its_limit_and_recovers() -> None:
    """EIO from a block device, and again well; the device is gone afterwards."""
    if why := devices.why_no_zram():
        pytest.skip(why)
    with devices.zram(size_bytes=16 * MIB) as compressed:
        compressed.limit(compressed.used() + 4 * MIB)
        done, error = fill(compressed.device, 16)
        assert error == errno.EIO
        assert 3 <= done <= 4
        compressed.limit(0)
        assert fill(compressed.device, 16) == (16, 0)
    assert not compressed.sysfs.exists()


def test_file_size_limit_is_real_and_lifted(tmp_path: Path) -> None:
    """EFBIG also inside space that was allocated before; lifting it restores what was."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.posix_fallocate(fd, 0, 4 * MIB)
        devices.file_size_limit(2 * MIB)
        try:
            assert os.pwrite(fd, b"x", MIB) == 1
            with pytest.raises(OSError, match="File too large") as caught:
                os.pwrite(fd, b"x", 3 * MIB)
            assert caught.value.errno == errno.EFBIG
        finally:
            devices.file_size_limit(None)
        assert os.pwrite(fd, b"x", 3 * MIB) == 1
    finally:
        os.close(fd)
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before


def tree(root: Path, *, files: int, size: int) -> None:
    for number in range(files):
        path = root / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number % 251]) * (size + number))


def test_choice_is_the_same_every_time(tmp_path: Path) -> None:
    """Two runs must be comparable, and groups about equal."""
    tree(tmp_path, files=60, size=100_000)
    first = inputs.choose(total_bytes=4 * MIB, roots=[str(tmp_path)])
    assert first == inputs.choose(total_bytes=4 * MIB, roots=[str(tmp_path)])
    held = [sum(one.length for one in files) for files in first.values()]
    assert list(first) == ["A", "B", "C", "D"]
    assert min(held) >= MIB
    assert max(held) < MIB + 2 * 100_060
    names = [one.name for files in first.values() for one in files]
    assert len(set(names)) == len(names)


def test_choice_takes_small_files_when_there_are_no_others(tmp_path: Path) -> None:
    """A small machine has few large files."""
    tree(tmp_path, files=1200, size=2000)
    chosen = inputs.choose(total_bytes=2 * MIB, roots=[str(tmp_path)])
    assert sum(len(files) for files in chosen.values()) > inputs.SMALL_FILES


def test_too_few_files_is_said_clearly(tmp_path: Path) -> None:
    """Not a division by zero, and not a demo of nothing."""
    tree(tmp_path, files=3, size=1000)
    with pytest.raises(SourceError, match="--input"):
        inputs.choose(total_bytes=MIB, roots=[str(tmp_path)])


def test_generated_file_is_what_its_digest_says(tmp_path: Path) -> None:
    """Odd length, no two blocks equal."""
    path = tmp_path / "E"
    made = inputs.generate(str(path), 3 * MIB + 17)
    assert inputs.digest_file(str(path)) == (3 * MIB + 17, made.digest)
    data = path.read_bytes()
    assert data[:MIB] != data[MIB : 2 * MIB]


def test_sizes_make_e_overflow(tmp_path: Path) -> None:
    """E must not fit beside A to D in DISKPOOL, and must fit everywhere else."""
    from fanout.config import parse

    tree(tmp_path, files=60, size=500_000)
    groups = inputs.choose(total_bytes=16 * MIB, roots=[str(tmp_path)])
    small = [one for files in groups.values() for one in files]
    large = inputs.generate(str(tmp_path / "E"), Sizes.least_large(small))
    chosen = inputs.Inputs({**groups, "E": (large,)})
    sizes = Sizes.for_inputs(chosen)
    for volumes in ([sizes.disk], sizes.divided("DISKPOOL")):
        spans = sum(size - 8192 - 2 * default_directory_bytes(size, 4096) for size in volumes)
        rest = spans - chosen.bytes_of("A", "B", "C", "D")
        assert 0 < rest < large.length
    short = inputs.generate(str(tmp_path / "short"), large.length - MIB)
    with pytest.raises(FanoutError, match="would fit into DISKPOOL"):
        Sizes.for_inputs(inputs.Inputs({**groups, "E": (short,)}))
    with site(tmp_path / "site", sizes, kind="files", failing="COPYPOOL1") as place:
        config = parse(place.config.read_text(encoding="utf-8"), path=str(place.config))
        assert len(config.pools["COPYPOOL1"].volumes) == 1
        assert len(config.pools["COPYPOOL2"].volumes) > 1
        for name, pool in config.pools.items():
            for volume in pool.volumes:
                assert (volume.size or 0) <= sizes.limit or name == "COPYPOOL1"
        assert config.destination("N1").chain[1].pool == "TAPEPOOL"
        assert [one.pool for one in config.destination("N2").secondaries] == [
            "COPYPOOL1",
            "COPYPOOL2",
        ]
    assert describe({pool: [("/x", None)] for pool in config.pools}, sizes)


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_waits_until_what_is_made_is_noted(number: signal.Signals) -> None:
    """Between the kernel's handing out a device and our noting it: it is given back all the same."""
    said: list[str] = []

    @contextlib.contextmanager
    def device() -> Iterator[None]:
        signal.raise_signal(number)
        said.append("made")
        yield
        signal.raise_signal(number)  # the impatient second one
        said.append("given back")

    def interrupted() -> None:
        with signals.terminable(), signals.undisturbed() as stack:
            stack.enter_context(device())
            said.append("used")

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert said == ["made", "given back"]
    assert signal.getsignal(number) == before
