"""One line for one source and several targets: the bytes, the digest, and an honest report."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING

import pytest
import xxhash

import fanout
from fanout.engine import Engine, Fault
from fanout.errors import SourceLengthError
from fanout.types import OutcomeCode, Phase

if TYPE_CHECKING:
    import random
    from pathlib import Path


@pytest.mark.parametrize("size", [0, 1, 4096, (3 << 20) + 17])
def test_a_path_to_three_files(
    tmp_path: Path, rng: random.Random, no_leaks: None, size: int
) -> None:
    """Breaks if a file is longer or shorter than its source, or the digest is not everybody's XXH3-128."""
    data = rng.randbytes(size)
    (tmp_path / "source").write_bytes(data)
    paths = [tmp_path / name for name in ("a", "b", "c")]
    paths[1].write_bytes(b"older and longer" * 500_000)
    seen: list[tuple[int, int | None]] = []
    result = fanout.tee(tmp_path / "source", paths, on_progress=lambda *now: seen.append(now))
    assert result.ok
    assert (result.bytes, result.digest) == (size, xxhash.xxh3_128_hexdigest(data))
    assert [path.read_bytes() for path in paths] == [data] * 3
    assert list(result.outcomes) == [str(path) for path in paths]
    assert result.seconds > 0
    assert seen[-1:] == ([(size, size)] if size else [])


def test_a_stream_of_unknown_length(tmp_path: Path, rng: random.Random) -> None:
    """Breaks if a pipe needs a length."""
    data = [rng.randbytes(rng.randrange(200_000)) for _ in range(30)]
    assert fanout.tee(iter(data), [tmp_path / "a"]).ok
    assert (tmp_path / "a").read_bytes() == b"".join(data)


def test_a_target_that_cannot_be_opened(tmp_path: Path) -> None:
    """Breaks if one bad name keeps the others from being written."""
    (tmp_path / "directory").mkdir()
    result = fanout.tee(b"data", [tmp_path / "directory", tmp_path / "a", tmp_path / "no" / "such"])
    assert [outcome.code for outcome in result.outcomes.values()] == [
        OutcomeCode.ERROR,
        OutcomeCode.OK,
        OutcomeCode.ERROR,
    ]
    assert not result.ok
    assert (tmp_path / "a").read_bytes() == b"data"
    assert not fanout.tee(b"data", [tmp_path / "directory"]).ok


@pytest.mark.parametrize("kind", [Phase.WRITE, Phase.FLUSH, Phase.TRUNCATE, Phase.DIRSYNC])
def test_a_target_that_fails_on_the_way(tmp_path: Path, rng: random.Random, kind: Phase) -> None:
    """Breaks if any step of finishing a file is left unsaid."""
    data = rng.randbytes(3_000_000)
    with Engine(backend="faulty") as engine:
        # The first target gets number 0; its script begins before it is opened.
        engine.set_faults([Fault(1, errno.EIO, kind=kind, nth=1, count=1)])
        result = fanout.tee(data, [tmp_path / "a"], engine=engine)
    (outcome,) = result.outcomes.values()
    assert (outcome.phase, outcome.errno) == (kind, errno.EIO)
    assert not result.ok


def test_a_source_that_lies_about_its_length(tmp_path: Path) -> None:
    """Breaks if a wrong length passes for a copy."""
    with pytest.raises(SourceLengthError):
        fanout.tee(io.BytesIO(b"four"), [tmp_path / "a"], size=5)


def test_no_file_is_overwritten_by_itself(tmp_path: Path) -> None:
    """Breaks if the source is a target, or a target is written twice at once, also under another name."""
    source, link = tmp_path / "source", tmp_path / "link"
    source.write_bytes(b"precious")
    link.symlink_to(source)
    wrong: list[list[Path]] = [[], [source], [link], [tmp_path / "a", tmp_path / "." / "a"]]
    for targets in wrong:
        with pytest.raises(ValueError, match="target"):
            fanout.tee(source, targets)
    with pytest.raises(TypeError, match="a list of paths"):  # else one file for each letter
        fanout.tee(source, str(tmp_path / "a"))
    many = [tmp_path / f"many{number}" for number in range(17)]
    with pytest.raises(ValueError, match="1 to 16 targets, found 17"):
        fanout.tee(source, many)
    assert not any(path.exists() for path in many)
    assert source.read_bytes() == b"precious"
    assert fanout.tee(b"data", ["/dev/null", tmp_path / "a"]).outcomes[str(tmp_path / "a")].ok


def test_a_device_that_is_not_there_is_not_made_as_a_file(tmp_path: Path) -> None:
    """/dev lies in memory: a file there would pass for a copy until the next start of the machine."""
    if not os.path.ismount("/dev"):
        pytest.skip("/dev is no file system of its own here")
    absent = f"/dev/fanout-test-{os.getpid()}"
    result = fanout.tee(b"data", [absent, tmp_path / "a"])
    assert result.outcomes[absent].errno == errno.ENODEV
    assert result.outcomes[str(tmp_path / "a")].ok
    assert not os.path.lexists(absent)
