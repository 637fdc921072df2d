"""Errors that the kernel makes, not a flag of ours: full, at its end, locked, read-only, gone, over the limit, hung."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from fanout.errors import TargetError
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase

from ..faults import devices
from .conftest import SLOT, runs

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from fanout.engine import Engine, Target


def write_all(
    engine: Engine, targets: list[Target], data: bytes, offset: int = 0
) -> dict[Target, Outcome]:
    with engine.stream(targets) as stream:
        stream.place([offset] * len(targets))
        for at in range(0, len(data), 3 * SLOT):
            stream.write(data[at : at + 3 * SLOT])
        return dict(stream.sync())


LIMITED = """
    import json, resource, sys
    from fanout.engine import Engine
    backend, limited, free, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    data = bytes(range(256)) * (size // 256)
    with Engine(backend=backend) as engine:
        targets = [engine.open(limited, create=True), engine.open(free, replace=True)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
        with engine.stream(targets) as stream:
            stream.place([0, 0])
            stream.write(data[: 2 << 20])
            stream.write(data[2 << 20 :])
            outcome, other = stream.sync().values()
    print(json.dumps([outcome.code, outcome.phase, outcome.errno, outcome.cls, outcome.offset,
                      other.code, other.errno]))
"""


@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_a_file_size_limit(tmp_path: Path, backend: str) -> None:
    """Breaks if the one real write error that needs no privilege is not EFBIG, class SPACE, at its place."""
    if not runs(backend):
        pytest.skip(f"{backend} cannot run here")
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), backend]
    result = subprocess.run(
        [*command, str(tmp_path / "limited"), str(tmp_path / "also"), str(6 << 20)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    code, phase, number, cls, offset, *_ = json.loads(result.stdout)
    assert (code, number, cls) == (OutcomeCode.ERROR, errno.EFBIG, FaultClass.SPACE)
    assert phase in (Phase.WRITE, Phase.ALLOCATE)
    assert offset >= 2 << 20 or phase == Phase.ALLOCATE


@pytest.mark.root
@pytest.mark.slow
def test_a_full_file_system(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if a full pool is not ENOSPC, class SPACE, or stops the healthy one."""
    data = rng.randbytes(12 << 20)
    with devices.small_tmpfs(8 << 20) as small:
        full = engine.open(small / "t", create=True)
        healthy = engine.open(tmp_path / "t", create=True)
        outcomes = write_all(engine, [full, healthy], data)
        outcome = outcomes[full]
        assert (outcome.code, outcome.errno, outcome.cls) == (
            OutcomeCode.ERROR,
            errno.ENOSPC,
            FaultClass.SPACE,
        )
        assert outcomes[healthy].ok
        assert healthy.finish(len(data)).ok
        full.close()
    assert (tmp_path / "t").read_bytes() == data


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.slow
def test_a_device_on_a_full_file_system(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if ENOSPC in the middle of a block device (a thin pool that runs dry) is taken for its end."""
    data = rng.randbytes(48 << 20)
    with devices.full_disk(64 << 20) as disk:
        full, healthy = engine.open(disk.path, lock=True), engine.open(tmp_path / "t", create=True)
        assert full.geometry.is_block
        outcomes = write_all(engine, [full, healthy], data)
        outcome = outcomes[full]
        assert outcome.errno in (errno.ENOSPC, errno.EIO)
        assert outcome.offset < 48 << 20
        assert outcomes[healthy].ok
        full.close()


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.parametrize("sector", [512, 4096])
def test_the_end_of_a_block_device(
    engine: Engine, tmp_path: Path, rng: random.Random, sector: int
) -> None:
    """Breaks if a write past the end wraps, is cut silently, or is not class SPACE; also with 4096 byte sectors."""
    data = rng.randbytes(4 << 20)
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(2 << 20))
    with devices.loop(backing, sector=sector) as disk:
        target, healthy = (
            engine.open(disk.path, lock=True),
            engine.open(tmp_path / "t", create=True),
        )
        assert target.size == 2 << 20
        assert target.granule % sector == 0
        outcomes = write_all(engine, [target, healthy], data)
        outcome = outcomes[target]
        assert (outcome.errno, outcome.cls, outcome.offset) == (
            errno.ENOSPC,
            FaultClass.SPACE,
            2 << 20,
        )
        assert outcomes[healthy].ok
        assert engine.read(target, 0, 2 << 20) == data[: 2 << 20]
        target.close()


@pytest.mark.root
@pytest.mark.loop
def test_a_device_that_turns_read_only(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if a disk that protects itself is not class ACCESS."""
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(4 << 20))
    with devices.loop(backing) as disk:
        target = engine.open(disk.path, lock=True)
        disk.set_read_only()
        try:
            outcome = write_all(engine, [target], rng.randbytes(SLOT))[target]
        finally:
            disk.set_read_only(read_only=False)  # the number's next user would inherit it
        assert (outcome.cls, outcome.phase) == (FaultClass.ACCESS, Phase.WRITE)
        target.close()


@pytest.mark.root
@pytest.mark.loop
def test_a_device_that_somebody_has(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a mounted or otherwise claimed device is overwritten."""
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(4 << 20))
    with devices.loop(backing) as disk:
        first = engine.open(disk.path, lock=True)
        with pytest.raises(TargetError) as caught:
            engine.open(disk.path, lock=True)
        assert (caught.value.errno, caught.value.outcome.phase) == (errno.EBUSY, Phase.OPEN)
        first.close()


@pytest.mark.root
@pytest.mark.slow
def test_a_device_that_fails_in_the_middle(
    engine: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if EIO from a real block device is lost or blamed on the other target."""
    data = rng.randbytes(6 << 20)
    with devices.zram(16 << 20) as disk:
        bad, healthy = engine.open(disk.path, lock=True), engine.open(tmp_path / "t", create=True)
        disk.fail(after=2 << 20)
        outcomes = write_all(engine, [bad, healthy], data)
        outcome = outcomes[bad]
        assert (outcome.code, outcome.errno, outcome.cls) == (
            OutcomeCode.ERROR,
            errno.EIO,
            FaultClass.DEVICE,
        )
        assert outcomes[healthy].ok
        assert healthy.finish(len(data)).ok
        bad.close()
    assert (tmp_path / "t").read_bytes() == data
