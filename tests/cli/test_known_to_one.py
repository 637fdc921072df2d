"""Pools, nodes and volumes that only one of fanout.toml and catalog knows, or that the two spell differently.

What could break: data that is there and that nobody finds any more; gaps that cannot be asked for; "no gaps" from a store that uses half of
its volumes; advice that the next command refuses.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest

from fanout import Store, errors
from fanout.cli.exits import Exit
from tests.cli.conftest import Shell, describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def stored(shell: Shell, tmp_path: Path) -> Path:
    """A file of each node."""
    path = tmp_path / "one"
    path.write_bytes(b"0123456789")
    shell("put", "N1", path, "--as", "one")
    shell("put", "N2", path, "--as", "two")
    return path


def edit(shell: Shell, *changes: tuple[str, str]) -> None:
    text = shell.config.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    shell.config.write_text(text, encoding="utf-8")


def without_pool(shell: Shell, pool: str) -> str:
    """Take a copy pool out of the file; returns the text before."""
    before = shell.config.read_text(encoding="utf-8")
    text = re.sub(rf"(?s)\[pools\.{pool}\].*?(?=\n\[)", "", before).replace(f'"{pool}", ', "")
    assert pool not in text
    shell.config.write_text(text, encoding="utf-8")
    return before


# ---- spelling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "before", "after"),
    [("nodes", "N2", "n2"), ("pools", "COPYPOOL2", "CopyPool2")],
    ids=["node", "pool"],
)
def test_another_case_is_no_other_name(
    shell: Shell, stored: Path, section: str, before: str, after: str
) -> None:
    """It was: the node's objects were out of sight ("0 objects", exit code 0), and what it stored belonged to somebody else."""
    edit(shell, (before, after))
    for command in (
        ["query", "object", after],
        ["query", "gap"],
        ["put", after, stored],
        ["init", "--add"],
    ):
        said = shell(*command, code=Exit.CONFIG).err
        assert f"{section}.{after}: " in said
        assert f'knows it as "{before}": write it so' in said
    edit(shell, (after, before))
    assert "two" in shell("query", "object", "n2").out
    assert {one["node"] for one in shell("query", "occupancy", "--json").json["occupancy"]} == {
        "N1",
        "N2",
    }


# ---- a node that is not configured any more --------------------------------------------------------------


def test_what_a_node_has_stored_stays_within_reach(
    shell: Shell, stored: Path, tmp_path: Path
) -> None:
    """Its client is gone; what it stored can be read, asked for and deleted without making it a client again."""
    edit(shell, ("[nodes.N2]", "[nodes.N3]"))
    assert "two" in shell("query", "object", "n2").out
    assert shell("query", "occupancy", "--node", "n2", "--json").json["occupancy"]
    shell("query", "gap", "--node", "n2")
    shell("get", "n2", "two", "--to", tmp_path / "back")
    assert (tmp_path / "back/two").read_bytes() == stored.read_bytes()
    assert "there is no such node" in shell("put", "n2", stored, code=Exit.CONFIG).err
    assert shell("delete", "n2", "two", "--json").json["node"] == "N2"
    with Store.open(shell.config) as store, pytest.raises(errors.UnknownPool, match="N4"):
        store.get("N4", "two")


# ---- a pool that is not configured any more --------------------------------------------------------------


def test_the_volumes_of_a_pool_that_was_taken_out_are_named(shell: Shell, stored: Path) -> None:
    """A third of the copies was out of reach, and everybody said that all is well."""
    before = without_pool(shell, "COPYPOOL1")
    path = shell.config.with_name("copypool1.vol")
    told = shell("put", "N1", stored, "--as", "three").err
    assert f"{path} of pool COPYPOOL1 is not used: {shell.config} has no such pool" in told
    said = shell("query", "gap", code=Exit.TARGET)
    assert "Every pool holds what it should" not in said.out
    assert said.err.count(str(path)) == 1
    assert "cannot be read" not in said.err
    (away,) = shell("query", "gap", "--json", code=Exit.TARGET).json["unreadable"]
    assert (away["pool"], away["path"], away["what"]) == ("COPYPOOL1", str(path), "is not used")
    volumes = shell("query", "volume", "--pool", "copypool1", "--json").json["volumes"]
    assert [(one["path"], one["readable"]) for one in volumes] == [(str(path), False)]
    shell.config.write_text(before, encoding="utf-8")
    shell("backup", "stgpool", "DISKPOOL", "COPYPOOL1")
    assert shell("query", "gap").err == ""


def test_the_gaps_of_a_pool_that_was_taken_out(shell: Shell, stored: Path) -> None:
    """They could not be asked for by their pool, and the command that was to close them was refused with another pool's name."""
    path = shell.config.with_name("copypool1.vol")
    path.unlink()
    shell("retire", "volume", path, code=Exit.GAPS)
    before = without_pool(shell, "COPYPOOL1")
    said = shell("query", "gap", "--pool", "copypool1", code=Exit.GAPS).out
    assert f"write [pools.COPYPOOL1] into {shell.config} again, then: fanout backup" in said
    said = shell("query", "stgpool").err
    assert "COPYPOOL1: not in" in said
    assert "fanout query gap" in said
    for command in (
        ["backup", "stgpool", "DISKPOOL", "copypool1"],
        ["audit", "stgpool", "COPYPOOL1"],
        ["query", "stgpool", "COPYPOOL1"],
    ):
        assert "write [pools.COPYPOOL1] there again" in shell(*command, code=Exit.CONFIG).err
    assert shell("query", "occupancy", "--pool", "COPYPOOL1", "--json").json["occupancy"] == []
    shell.config.write_text(before, encoding="utf-8")
    shell("init", "--add")
    rows = shell("query", "gap", "--json", code=Exit.GAPS).json["gaps"]
    for command in {row["mend"] for row in rows}:
        shell(*shlex.split(command)[1:])
    shell("query", "gap")


def test_a_pool_is_done_without_for_good(shell: Shell, stored: Path) -> None:
    """As docs/operations.md says: else its gaps would stay as long as any object that it held."""
    without_pool(shell, "COPYPOOL1")
    path = shell.config.with_name("copypool1.vol")
    said = shell("retire", "volume", path, "--force", code=Exit.GAPS).out
    assert "COPYPOOL1 is not in fanout.toml any more, and gets no new volume" in said
    shell("query", "gap", code=Exit.GAPS)
    assert "COPYPOOL1 was required" in shell("rebuild", "catalog", "--force").err
    assert shell("query", "gap").err == ""
    assert "Nothing is wrong" in shell("check").out


def test_the_gaps_of_an_active_data_pool_that_was_taken_out(shell: Shell, stored: Path) -> None:
    """What is missing there are active versions alone, and it is no copy pool: the catalog still knows."""
    path = shell.config.with_name("activedatapool.vol")
    path.unlink()
    shell("retire", "volume", path, code=Exit.GAPS)
    shell("put", "N1", stored, "--as", "one", code=Exit.DEGRADED)  # the version before is none now
    text = shell.config.read_text(encoding="utf-8")
    text = re.sub(r"(?s)\[pools\.ACTIVEDATAPOOL\].*?(?=\n\[)", "", text)
    text = re.sub(r".*ACTIVEDATAPOOL.*\n", "", text)
    shell.config.write_text(text, encoding="utf-8")
    rows = shell("query", "gap", "--names", "--json", code=Exit.GAPS).json["gaps"]
    assert all("fanout copy activedata DISKPOOL ACTIVEDATAPOOL" in row["mend"] for row in rows)
    assert [row["names"] for row in rows] == [["one"]]


def test_a_mend_can_be_typed_whatever_the_pool_is_called(tmp_path: Path) -> None:
    """To a shell an & in a name, which the modelled system allows too, was two commands: the first ran in the background, on another pool."""
    config = describe(tmp_path)
    text = config.read_text(encoding="utf-8")
    text = text.replace("[pools.COPYPOOL1]", '[pools."COPY&1"]').replace('"COPYPOOL1"', '"COPY&1"')
    config.write_text(text, encoding="utf-8")
    shell = Shell(config)
    shell("init")
    path = tmp_path / "copypool1.vol"
    path.rename(tmp_path / "away")
    said = shell("put", "N1", config, code=Exit.DEGRADED).err
    (tmp_path / "away").rename(path)
    (row,) = shell("query", "gap", "--json", code=Exit.GAPS).json["gaps"]
    assert row["mend"] in said
    words = list(shlex.shlex(row["mend"], posix=True, punctuation_chars=True))
    assert words == ["fanout", "backup", "stgpool", "DISKPOOL", "COPY&1"]
    shell(*words[1:])
    shell("query", "gap")


# ---- volumes that the catalog does not know ----------------------------------------------------------------


def test_no_gaps_after_a_rebuild_that_left_a_volume_out(shell: Shell, stored: Path) -> None:
    """The catalog of today knows nothing of what lay there alone: "every pool holds what it should", and the exit code was 0."""
    shell("put", "N2", stored, "--as", "archive", "--kind", "archive")
    others = ("copypool1.vol", "copypool2.vol", "activedatapool.vol")
    lost = [shell.config.with_name(name) for name in ("diskpool.vol", *others)]
    for path in lost:
        path.rename(path.with_suffix(".away"))
    shell("rebuild", "catalog", "--force", code=Exit.TARGET)
    said = shell("query", "gap", "--json", code=Exit.TARGET).json
    assert said["gaps"] == []
    assert {one["path"] for one in said["unreadable"]} == {str(path) for path in lost}
    said = shell("query", "gap", code=Exit.TARGET)
    assert "not every volume can be relied on" in said.out
    assert "bring it back" in said.err
    for path in lost:
        path.with_suffix(".away").rename(path)
    said = shell("query", "gap", code=Exit.TARGET).err
    assert "a volume of this store that the catalog does not know" in said
    assert "knows as" not in said
    shell("rebuild", "catalog", "--force")
    assert shell("query", "gap").err == ""
    assert "archive" in shell("query", "object", "N2").out


def test_a_volume_that_was_given_up_and_is_there_again(shell: Shell, stored: Path) -> None:
    """It is told how what it holds comes back; a plain rebuild leaves it aside."""
    path, away = shell.config.with_name("copypool1.vol"), shell.config.with_name("old.vol")
    path.rename(away)
    shell("retire", "volume", path, code=Exit.GAPS)
    shell("init", "--add")
    shell("backup", "stgpool", "DISKPOOL", "COPYPOOL1")
    edit(
        shell,
        (
            '[{ path = "copypool1.vol", size = "32 MiB" }]',
            '[{ path = "copypool1.vol", size = "32 MiB" }, { path = "old.vol" }]',
        ),
    )
    said = shell("query", "gap").err  # what it held was a gap, which is closed
    assert "given up" in said
    command = re.search(r"'fanout (rebuild catalog [^']*)'", said)
    assert command is not None
    shell(*shlex.split(command[1]))
    assert shell("query", "gap").err == ""


def test_a_volume_that_was_given_up_and_is_back_at_its_path(shell: Shell, stored: Path) -> None:
    """It may hold the last copy: every command said to make a new volume there, and 'init --add' to say --force, which is its end."""
    away = shell.config.with_name("away")
    for path in shell.config.parent.glob("*pool?.vol"):
        path.rename(away.with_name(f"away-{path.name}"))
    active = shell.config.with_name("activedatapool.vol")
    active.rename(away.with_name("away-active"))
    shell("put", "N1", stored, "--as", "only", code=Exit.DEGRADED)
    path = shell.config.with_name("diskpool.vol")
    path.rename(away)
    assert "only" in shell("retire", "volume", path, code=Exit.INTEGRITY).err
    away.rename(path)
    take_in = "'fanout rebuild catalog --force --take-retired' takes in what"
    for command, code in ((("query", "gap"), Exit.GAPS), (("init", "--add"), Exit.REFUSED)):
        said = shell(*command, code=code).err
        assert take_in in said, command
        assert str(path) in said
    shell("rebuild", "catalog", "--force", "--take-retired", code=None)
    assert shell("get", "N1", "only", "--output", "-").out == "0123456789"


def test_a_volume_that_was_taken_out_of_its_list_is_told(shell: Shell, stored: Path) -> None:
    """It was written to, without a word, though the file is what says which paths are."""
    more = shell.config.with_name("more.vol")
    one = '{ path = "copypool1.vol", size = "32 MiB" }'
    edit(shell, (one, f'{one}, {{ path = "more.vol", size = "8 MiB" }}'))
    shell("init", "--add")
    edit(shell, (f"{one}, ", ""))
    told = shell("put", "N1", stored, "--as", "three").err
    path = shell.config.with_name("copypool1.vol")
    assert f"{path} of pool COPYPOOL1 is used, and {shell.config} does not name it" in told
    assert "fanout retire volume" in told
    assert str(more) not in told
    shell("retire", "volume", path, "--force", code=Exit.GAPS)
    shell("backup", "stgpool", "DISKPOOL", "COPYPOOL1")
    assert shell("query", "gap").err == ""


def test_a_new_volume_is_not_in_use_before_it_is_made(
    shell: Shell, stored: Path, tree: Callable[..., Path]
) -> None:
    """The pool has less room than its configuration says."""
    edit(
        shell,
        (
            '[{ path = "copypool1.vol", size = "32 MiB" }]',
            '[{ path = "copypool1.vol", size = "32 MiB" }, { path = "more.vol", size = "8 MiB" }]',
        ),
    )
    refused = shell("init", code=Exit.REFUSED).err  # who has added a line types this first
    assert "'fanout init --add' keeps it, and makes only what is new" in refused
    said = shell("query", "gap", code=Exit.TARGET).err
    assert "more.vol of pool COPYPOOL1 is not used: the catalog does not know it" in said
    pools = {one["name"]: one for one in shell("query", "stgpool", "--json").json["pools"]}
    assert pools["COPYPOOL1"]["volumes"] == 1
    shell("init", "--add")
    assert shell("query", "gap").err == ""


def test_a_volume_and_its_copy_in_one_file(shell: Shell, stored: Path) -> None:
    """Nothing could be stored, and the rebuild that everybody named could not mend it: it is a line too many in the file."""
    path, copy = (shell.config.with_name(name) for name in ("copypool1.vol", "copy of it.vol"))
    copy.write_bytes(path.read_bytes())
    one = '{ path = "copypool1.vol", size = "32 MiB" }'
    edit(shell, (one, f'{one}, {{ path = "{copy.name}" }}'))
    for command, code in (
        (("query", "gap"), Exit.TARGET),
        (("put", "N1", str(stored)), Exit.CATALOG),
        (("rebuild", "catalog", "--force"), Exit.TARGET),
        (("put", "N1", str(stored)), Exit.CATALOG),
    ):
        said = shell(*command, code=code).err
        assert str(copy) in said, command
        assert "take the line of the copy out" in said
        assert "rebuild" not in said
    edit(shell, (f', {{ path = "{copy.name}" }}', ""))
    shell("put", "N1", stored)
    shell("check")
    assert shell("query", "gap").err == ""


# ---- names and sizes that cannot change ----------------------------------------------------------------


def test_a_pool_keeps_its_name(shell: Shell, stored: Path) -> None:
    """Who had renamed one was sent to 'init --add', which added a pool without a volume, and was sent there again by each 'put'."""
    before = shell.config.read_text(encoding="utf-8")
    edit(shell, ("COPYPOOL1", "COPYPOOLX"))
    path = shell.config.with_name("copypool1.vol")
    for command in (("query", "gap"), ("init", "--add"), ("put", "N1", str(stored))):
        told = shell(*command, code=Exit.CONFIG).err
        assert f"pools.COPYPOOLX.volumes[0].path: {path} is a volume of pool COPYPOOL1" in told
        assert "init --add" not in told
    shell.config.write_text(before, encoding="utf-8")
    assert shell("query", "gap").err == ""
    assert "COPYPOOLX" not in shell("query", "stgpool").out


def test_volumes_that_were_written_behind_another_pool(shell: Shell, stored: Path) -> None:
    """The warning said that the file does not name them, in sight of the lines that do, and how to give them up."""
    one, other = "copypool1.vol", "copypool2.vol"
    edit(shell, (one, "X"), (other, one), ("X", other))
    told = shell("query", "gap").err
    path = shell.config.with_name(one)
    assert (
        f"{path} is used, as a volume of pool COPYPOOL1, and {shell.config} names it in pool COPYPOOL2"
        in told
    )
    assert "retire" not in told
    assert "is a volume of pool COPYPOOL2" in shell("init", "--add", code=Exit.CONFIG).err


def test_a_volume_keeps_its_size(shell: Shell, stored: Path) -> None:
    """Whose pool is full writes a larger size into the file, and heard that there is nothing to add."""
    edit(shell, ('"copypool1.vol", size = "32 MiB"', '"copypool1.vol", size = "64 MiB"'))
    told = shell("init", "--add").err
    path = shell.config.with_name("copypool1.vol")
    assert f"{path} of pool COPYPOOL1 stays as large as it is, 32.0 MiB" in told
    assert "add another volume" in told
