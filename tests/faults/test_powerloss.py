"""The power-loss model against a slow, obvious one: what could break is every test that trusts `FaultFS.crash`."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from .powerloss import Loss, VolatileFile, VolatileNames

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECTOR = 4
SIZE = 48


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    yield number
    os.close(number)


def content(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


def crash(history: VolatileFile, *, seed: int = 0, mode: str = "all") -> Loss:
    loss = Loss()
    history.crash(random.Random(seed), mode, SECTOR, loss)
    return loss


def write(history: VolatileFile, data: bytes, offset: int) -> None:
    history.complete(history.write(data, offset))


def flush(history: VolatileFile) -> None:
    history.flushed(history.issue_flush())


def test_unsynced_bytes_and_size_are_lost_and_synced_ones_stay(fd: int) -> None:
    history = VolatileFile(fd)
    write(history, b"durable!", 0)
    flush(history)
    write(history, b"VOLATILE", 4)
    loss = crash(history)
    assert content(fd) == b"durable!"
    assert loss.changes == 1


def test_a_flush_does_not_cover_a_write_that_completes_after_the_flush_was_issued(fd: int) -> None:
    """The missing drain before the flush: reported good, flushed good, and gone."""
    history = VolatileFile(fd)
    in_flight = history.write(b"aaaa", 0)
    write(history, b"bbbb", 4)
    covered = history.issue_flush()
    history.complete(in_flight)
    history.flushed(covered)
    crash(history)
    assert content(fd) == b"\0\0\0\0bbbb"


def test_a_durable_write_over_a_volatile_older_one_stays(fd: int) -> None:
    history = VolatileFile(fd)
    history.write(b"aaaaaaaa", 0)
    write(history, b"bbbb", 2)
    flush(history)
    crash(history)
    assert content(fd) == b"\0\0bbbb"


def test_what_a_failed_flush_covered_never_becomes_durable(fd: int) -> None:
    """The second fsync says 0, and means nothing by it."""
    history = VolatileFile(fd)
    write(history, b"aaaa", 0)
    history.flush_failed(history.issue_flush())
    write(history, b"bbbb", 4)
    flush(history)
    crash(history)
    assert content(fd) == b"\0\0\0\0bbbb"


def test_a_rewrite_after_a_failed_flush_is_durable_again(fd: int) -> None:
    history = VolatileFile(fd)
    write(history, b"aaaa", 0)
    history.flush_failed(history.issue_flush())
    write(history, b"cccc", 0)
    flush(history)
    crash(history)
    assert content(fd) == b"cccc"


def test_truncation_is_undone_with_its_bytes(fd: int) -> None:
    history = VolatileFile(fd)
    write(history, b"0123456789", 0)
    flush(history)
    history.complete(history.truncate(3))
    history.complete(history.truncate(8))
    crash(history)
    assert content(fd) == b"0123456789"


def test_bytes_behind_a_durable_truncation_do_not_come_back(fd: int) -> None:
    history = VolatileFile(fd)
    write(history, b"0123456789", 0)
    flush(history)
    history.write(b"xx", 8)  # volatile, below the durable ones that follow
    history.complete(history.truncate(4))
    history.complete(history.truncate(10))
    flush(history)
    crash(history)
    assert content(fd) == b"0123" + bytes(6)


def test_torn_losses_respect_sector_boundaries_and_the_seed(fd: int) -> None:
    outcomes = set()
    for seed in range(8):
        os.ftruncate(fd, 0)
        history = VolatileFile(fd)
        write(history, b"a" * SIZE, 0)
        crash(history, seed=seed, mode="torn")
        got = content(fd).ljust(SIZE, b"\0")
        outcomes.add(got)
        sectors = {got[i : i + SECTOR] for i in range(0, SIZE, SECTOR)}
        assert sectors <= {b"a" * SECTOR, bytes(SECTOR)}
        os.ftruncate(fd, 0)
        again = VolatileFile(fd)
        write(again, b"a" * SIZE, 0)
        crash(again, seed=seed, mode="torn")
        assert content(fd).ljust(SIZE, b"\0") == got
    assert len(outcomes) > 4


@pytest.mark.parametrize("mode", ["all", "subset"])
@pytest.mark.parametrize("seed", range(60))
def test_random_histories_end_as_if_only_the_survivors_had_happened(
    tmp_path: Path, seed: int, mode: str
) -> None:
    """The whole definition: the file after a crash is the replay, in order, of the changes that survived.

    "all" has one possible outcome; "subset" must be one of the outcomes of the subsets of volatile changes.
    """
    rng = random.Random(seed)
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_RDWR)
    history = VolatileFile(fd)
    steps: list[tuple[str, int, bytes, bool]] = []  # kind, offset or length, data, durable
    completed: list[int] = []
    pending = []
    for index in range(9):
        if rng.random() < 0.2:
            covered = history.issue_flush()
            history.flushed(covered)
            steps = [
                (k, o, d, True if i in completed else durable)
                for i, (k, o, d, durable) in enumerate(steps)
            ]
            continue
        if rng.random() < 0.2:
            length = rng.randint(0, SIZE)
            change = history.truncate(length)
            steps.append(("truncate", length, b"", False))
        else:
            offset, data = rng.randint(0, SIZE), bytes([97 + index]) * rng.randint(1, SIZE // 2)
            change = history.write(data, offset)
            steps.append(("write", offset, data, False))
        if rng.random() < 0.7:
            history.complete(change)
            completed.append(len(steps) - 1)
        else:
            pending.append(change)
    crash(history, seed=seed, mode=mode)
    got = content(fd)
    os.close(fd)
    volatile = [i for i, step in enumerate(steps) if not step[3]]
    masks = [0] if mode == "all" else range(1 << len(volatile))
    allowed = []
    for mask in masks:
        kept = {index for bit, index in enumerate(volatile) if mask >> bit & 1}
        allowed.append(replay([step for i, step in enumerate(steps) if step[3] or i in kept]))
    assert got in allowed, (seed, steps)


def replay(steps: list[tuple[str, int, bytes, bool]]) -> bytes:
    file = bytearray()
    for kind, place, data, _ in steps:
        if kind == "truncate":
            del file[place:]
            file.extend(bytes(place - len(file)))
        else:
            file.extend(bytes(max(0, place + len(data) - len(file))))
            file[place : place + len(data)] = data
    return bytes(file)


@pytest.fixture
def names(tmp_path: Path) -> VolatileNames:
    (tmp_path / "tree").mkdir()
    (tmp_path / "graveyard").mkdir()
    return VolatileNames(tmp_path / "tree", tmp_path / "graveyard")


def put(names: VolatileNames, name: str, text: str) -> None:
    (names.tree / name).write_text(text)
    names.created(f"/{name}")


def listing(names: VolatileNames) -> dict[str, str]:
    return {path.name: path.read_text() for path in names.tree.iterdir() if path.is_file()}


def test_names_are_durable_only_through_their_directory(names: VolatileNames) -> None:
    put(names, "synced", "1")
    names.flushed(names.issue_flush("/"))
    put(names, "lost", "2")
    names.unlink("/synced")
    names.crash(random.Random(0), "all", Loss())
    assert listing(names) == {"synced": "1"}


def test_a_replacing_rename_is_undone_with_what_it_replaced(names: VolatileNames) -> None:
    put(names, "old", "old")
    put(names, "new", "new")
    names.flushed(names.issue_flush("/"))
    names.rename("/new", "/old")
    assert listing(names) == {"old": "new"}
    names.crash(random.Random(0), "all", Loss())
    assert listing(names) == {"old": "old", "new": "new"}


def test_names_are_lost_as_a_suffix(names: VolatileNames) -> None:
    seen = set()
    for seed in range(20):
        for path in names.tree.iterdir():
            path.unlink()
        for name in "abc":
            put(names, name, name)
        names.crash(random.Random(seed), "subset", Loss())
        seen.add("".join(sorted(listing(names))))
    assert seen == {"", "a", "ab", "abc"}


def test_a_durable_unlink_frees_the_grave(names: VolatileNames) -> None:
    put(names, "a", "a")
    names.unlink("/a")
    names.flushed(names.issue_flush("/"))
    assert not list(names.graveyard.iterdir())
