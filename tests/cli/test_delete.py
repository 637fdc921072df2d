"""``fanout delete`` through the shell: what is named goes, what is not stays, and a script can tell.

What could break: more goes than was named; a preview that deletes; an exit code that says "fine" while something is left.
"""

from __future__ import annotations

import fcntl
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from fanout.cli.exits import Exit
from tests.cli.test_verify import volume

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Shell


@pytest.fixture
def stored(shell: Shell, tmp_path: Path) -> Shell:
    """Three versions of one object, one of another."""
    path = tmp_path / "one"
    for size in (1000, 2000, 3000):
        path.write_bytes(b"x" * size)
        shell("put", "N1", path, "--as", "one")
    shell("put", "N1", path, "--as", "two")
    return shell


def versions(shell: Shell) -> list[tuple[str, int]]:
    found = shell("query", "object", "N1", "--all", "--json").json["objects"]
    return [(one["name"], one["bytes"]) for one in found]


def test_the_active_version(stored: Shell) -> None:
    """The one before is active then, and is what `get` gives."""
    said = stored("delete", "n1", "one", "--json").json
    assert (said["ok"], said["node"], said["objects"], said["bytes"]) == (True, "N1", 1, 3000)
    assert said["freed_bytes"] > 0
    assert said["waiting_bytes"] == 0
    assert versions(stored) == [("one", 1000), ("one", 2000), ("two", 3000)]
    assert len(stored("get", "N1", "one", "--output", "-").out) == 2000
    stored("check")


def test_which_versions(stored: Shell) -> None:
    preview = stored("delete", "N1", "one", "two", "--all", "--preview")
    assert "4 versions of N1 would be deleted (8.79 KiB). Nothing was deleted." in preview.out
    assert len(versions(stored)) == 4
    assert "1 version of N1 deleted (1000 B)" in stored("delete", "N1", "one", "--keep", "2").out
    number = stored("query", "object", "N1", "--all", "--json").json["objects"][0]["version"]
    stored("delete", "N1", "one", "--version", str(number))
    assert versions(stored) == [("one", 3000), ("two", 3000)]
    stored("delete", "N1", "one", "two", "--all")
    assert versions(stored) == []


def test_an_expiration_asks_for_a_whole_node(stored: Shell) -> None:
    """Nobody is there to be asked: refused, unless it is said that it is meant."""
    refused = stored("delete", "N1", "--keep", "1", code=Exit.REFUSED)
    assert "2 versions of N1" in refused.err
    assert stored("delete", "N1", "--keep", "1", "--preview", "--json").json["objects"] == 2
    assert stored("delete", "N1", "--keep", "1", "--force", "--json").json["objects"] == 2
    assert stored("delete", "N1", "--keep", "1", "--json").json["objects"] == 0
    assert versions(stored) == [("one", 3000), ("two", 3000)]


def test_mistakes_delete_nothing(stored: Shell) -> None:
    missing = stored("delete", "N1", "one", "three", code=Exit.NOT_FOUND)
    assert "N1 has no backup object 'three'; nothing was deleted" in missing.err
    assert "no such node" in stored("delete", "N9", "one", code=Exit.CONFIG).err.lower()
    for wrong in (["N1"], ["N1", "--all"], ["N1", "one", "--all", "--keep", "1"]):
        stored("delete", *wrong, code=Exit.USAGE)
    for wrong in (["N1", "one"], ["N1", "--keep", "1"]):
        stored("delete", *wrong, "--unnamed", code=Exit.USAGE)
    assert stored("delete", "N1", "--unnamed", "--json").json["objects"] == 0
    stored("delete", "N1", "one", "--kind", "archive", code=Exit.NOT_FOUND)
    assert len(versions(stored)) == 4


def test_what_has_to_wait(stored: Shell) -> None:
    """Every volume that holds it is held by somebody else: 12, and it is still there."""
    pools = ("DISKPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL")
    paths = [volume(stored, pool) for pool in pools]
    with ExitStack() as stack:
        for path in paths:
            fcntl.flock(stack.enter_context(path.open("rb")), fcntl.LOCK_EX)
        said = stored("delete", "N1", "two", "--json", code=Exit.TARGET).json
    ((postponed),) = said["postponed"]
    assert (said["ok"], postponed["name"]) == (False, "two")
    assert "no volume that holds it can be written" in postponed["reason"]
    assert len(versions(stored)) == 4
