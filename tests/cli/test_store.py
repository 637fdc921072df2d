"""A store from the shell: what is stored comes back, what fails says so, what destroys asks."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanout.cli.exits import Exit
from tests.cli.conftest import MIB, Shell, describe

if TYPE_CHECKING:
    from collections.abc import Callable


def pools_of(shell: Shell, node: str) -> dict[str, set[str]]:
    """Object to the pools that hold it, without the directory in front."""
    found = shell("query", "object", node, "--json").json["objects"]
    return {one["name"].rsplit("/", 1)[-1]: set(one["pools"]) for one in found}


# ---- init -------------------------------------------------------------------------------------


def test_init_creates_all_and_says_what(tmp_path: Path) -> None:
    """Shape of --json, and what is there afterwards."""
    shell = Shell(describe(tmp_path))
    said = shell("init", "--json").json
    assert said["ok"] is True
    assert said["pools"]["DISKPOOL"] == {"volumes": 1}
    assert said["destroyed"] == []
    assert (tmp_path / "catalog.db").exists()


def test_init_refuses_to_destroy(shell: Shell, tmp_path: Path) -> None:
    """Without a terminal nothing may be lost, and nothing may have been touched."""
    file = tmp_path / "f"
    file.write_bytes(b"data")
    shell("put", "N1", file)
    said = shell("init", code=Exit.REFUSED)
    assert "catalog.db" in said.err
    assert "--force" in said.err
    assert len(shell("query", "object", "N1", "--json").json["objects"]) == 1


def test_init_force_begins_anew(shell: Shell, tmp_path: Path) -> None:
    """--force is the operator's word."""
    (tmp_path / "f").write_bytes(b"data")
    shell("put", "N1", tmp_path / "f")
    said = shell("init", "--force", "--json").json
    assert str(tmp_path / "catalog.db") in said["destroyed"]
    assert shell("query", "object", "N1", "--json").json["objects"] == []


def test_init_force_that_cannot_be_done_destroys_nothing(shell: Shell, tmp_path: Path) -> None:
    """A size with a digit too many: what could not be replaced is still there, and still known."""
    (tmp_path / "one").write_bytes(b"1")
    shell("put", "N1", tmp_path / "one", "--as", "one")
    text = shell.config.read_text()
    shell.config.write_text(
        text.replace('diskpool.vol", size = "16 MiB"', 'diskpool.vol", size = "4 PiB"')
    )
    said = shell("init", "--force", code=Exit.TARGET).err
    assert "diskpool.vol: cannot be " in said
    shell.config.write_text(text)
    shell("get", "N1", "one", "--to", tmp_path / "back", "--pool", "DISKPOOL")
    assert "Nothing is wrong" in shell("check").out


def test_init_add_keeps_the_store(shell: Shell, tmp_path: Path) -> None:
    """More room for a pool of a store that is in use; what is in the way is not taken without --force."""
    (tmp_path / "f").write_bytes(b"data")
    shell("put", "N1", tmp_path / "f")
    assert shell("init", "--add", "--json").json["added"] == []
    text = shell.config.read_text(encoding="utf-8")
    shell.config.write_text(
        re.sub(
            r"(volumes = \[\{ ?path = )",
            r'volumes = [{ path = "more.vol", size = "8 MiB" }, { path = ',
            text,
            count=1,
        ),
        encoding="utf-8",
    )
    (tmp_path / "more.vol").write_bytes(b"mine")
    shell("init", "--add", code=Exit.REFUSED)
    assert (tmp_path / "more.vol").read_bytes() == b"mine"
    (tmp_path / "more.vol").unlink()
    said = shell("init", "--add", "--json").json
    assert [one["path"] for one in said["added"]] == [str(tmp_path / "more.vol")]
    assert len(shell("query", "object", "N1", "--json").json["objects"]) == 1
    shell("put", "N1", tmp_path / "f")


def test_init_with_a_foreign_file_in_the_way(tmp_path: Path) -> None:
    """Somebody's file where a volume should be."""
    shell = Shell(describe(tmp_path))
    (tmp_path / "copypool1.vol").write_bytes(b"mine")
    shell("init", code=Exit.REFUSED)
    assert (tmp_path / "copypool1.vol").read_bytes() == b"mine"
    assert not (tmp_path / "catalog.db").exists()


@pytest.mark.parametrize("size", ["", ', size = "16 MiB'])
def test_init_makes_no_file_in_the_place_of_a_device(tmp_path: Path, size: str) -> None:
    """/dev lies in memory: such a volume would be gone with the next start of the machine."""
    if not os.path.ismount("/dev"):
        pytest.skip("/dev is no file system of its own here")
    absent = f"/dev/fanout-test-{os.getpid()}"
    config = describe(
        tmp_path, devices={"COPYPOOL1": f'{absent}"{size}'} if size else {"COPYPOOL1": absent}
    )
    said = Shell(config)("init", code=Exit.TARGET)
    assert "no such device" in said.err.lower()
    assert not os.path.lexists(absent)


def test_without_init_nothing_is_created(tmp_path: Path) -> None:
    """Opening never creates."""
    shell = Shell(describe(tmp_path))
    (tmp_path / "f").write_bytes(b"data")
    said = shell("put", "N1", tmp_path / "f", code=Exit.CATALOG)
    assert "catalog.db" in said.err
    assert {one.name for one in tmp_path.iterdir()} == {"fanout.toml", "f"}


# ---- put and get ------------------------------------------------------------------------------


def test_tree_there_and_back(shell: Shell, tree: Callable[..., Path], tmp_path: Path) -> None:
    """Empty, one byte, odd and large ones; exact contents of each pool; the same bytes back."""
    root = tree("A", [0, 1, 4095, 4096, 4097, 70_001, 2 * MIB + 17])
    said = shell("put", "N1", root, "--json").json
    assert said["ok"] is True
    assert said["objects"] == 7
    assert said["gaps"] == []
    everywhere = {"DISKPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"}
    assert all(pools == everywhere for pools in pools_of(shell, "N1").values())
    got = shell("get", "N1", root, "--to", tmp_path / "out", "--json").json
    assert got["ok"] is True
    assert len(got["objects"]) == 7
    for path in root.iterdir():
        back = tmp_path / "out" / str(path).lstrip("/")
        assert back.read_bytes() == path.read_bytes()


def test_other_domain_has_no_active_data(shell: Shell, tree: Callable[..., Path]) -> None:
    """N2's domain does not allow ACTIVEDATAPOOL: not held there, and no gap."""
    shell("put", "N2", tree("C", [5000]))
    assert pools_of(shell, "N2") == {"f0": {"DISKPOOL", "COPYPOOL1", "COPYPOOL2"}}
    assert shell("query", "gap", "--json").json["ok"]


def test_too_large_for_the_first_pool(shell: Shell, tree: Callable[..., Path]) -> None:
    """It goes to the next pool, with the lists of the first."""
    shell("put", "N2", tree("E", [20 * MIB]))
    assert pools_of(shell, "N2") == {"f0": {"TAPEPOOL", "COPYPOOL1", "COPYPOOL2"}}


def test_each_pool_alone_can_give_it(shell: Shell, tmp_path: Path) -> None:
    """--pool means that pool, and only that one."""
    data = os.urandom(300_000)
    (tmp_path / "f").write_bytes(data)
    shell("put", "N1", tmp_path / "f", "--as", "f")
    for pool in ("DISKPOOL", "copypool1", "COPYPOOL2", "ACTIVEDATAPOOL"):
        out = shell.process("get", "N1", "f", "-o", "-", "--pool", pool)
        assert out.out.encode("utf-8", "surrogateescape") == data
        target = tmp_path / f"from-{pool}"
        shell("get", "N1", "f", "-o", target, "--pool", pool)
        assert target.read_bytes() == data
    said = shell("get", "N1", "f", "-o", tmp_path / "x", "--pool", "TAPEPOOL", code=Exit.NOT_FOUND)
    assert "TAPEPOOL" in said.err or "TAPEPOOL" in said.out
    assert not (tmp_path / "x").exists()


def test_standard_input_needs_a_word(shell: Shell) -> None:
    """A pipe cannot be sent again: say so before the first byte, with the mends."""
    said = shell.process("put", "N1", "-", "--as", "db", stdin=b"x" * 1000, code=Exit.FAILED)
    assert "--spool" in said.err
    assert "--once" in said.err
    shell.process("put", "N1", "-", "--as", "db", "--once", stdin=b"x" * 1000)
    shell.process("put", "N1", "-", "--as", "db2", "--spool", "1MiB", stdin=b"y" * 1000)
    assert shell.process("get", "N1", "db", "-o", "-").out == "x" * 1000
    assert shell.process("get", "N1", "db2", "-o", "-").out == "y" * 1000


def test_spool_too_small_is_an_error(shell: Shell) -> None:
    """Not a silent cut."""
    said = shell.process(
        "put", "N1", "-", "--as", "db", "--spool", "1000", stdin=b"x" * 5000, code=Exit.FAILED
    )
    assert "1000" in said.err
    assert shell("query", "object", "N1", "--json").json["objects"] == []


def test_wrong_length_of_standard_input(shell: Shell) -> None:
    """Fewer bytes than promised: nothing is stored."""
    shell.process(
        "put", "N1", "-", "--as", "db", "--once", "--size", "2000", stdin=b"x", code=Exit.FAILED
    )
    assert shell("query", "object", "N1", "--json").json["objects"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("put", "N1", "-"),
        ("put", "N1", "-", "x", "--as", "y"),
        ("put", "N1", "a", "b", "--as", "c"),
    ],
)
def test_put_usage(shell: Shell, arguments: tuple[str, ...]) -> None:
    """Contradictions are usage errors, before anything is opened."""
    shell(*arguments, code=Exit.USAGE)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_later_failure_counts_what_stays(
    shell: Shell, tree: Callable[..., Path], options: list[str]
) -> None:
    """What failed is one transaction: whoever stores a tree in many must hear of the others."""
    root = tree("many", [100, 100, 100 * MIB])
    said = shell("put", "N1", root, "--group", "1", *options, code=Exit.FAILED)
    assert "Stored before, and kept: 2 objects (200 B)." in said.err
    if options:
        assert "2 objects" in said.json["error"]["mend"]
    assert set(pools_of(shell, "N1")) == {"f0", "f1"}


def test_versions(shell: Shell, tmp_path: Path) -> None:
    """The newest is what get gives; the older one is there by its number."""
    file = tmp_path / "f"
    file.write_bytes(b"one")
    shell("put", "N1", file, "--as", "f")
    file.write_bytes(b"two")
    shell("put", "N1", file, "--as", "f")
    assert [one["active"] for one in shell("query", "object", "N1", "--json").json["objects"]] == [
        True
    ]
    versions = shell("query", "object", "N1", "f", "--all", "--json").json["objects"]
    assert [one["active"] for one in versions] == [False, True]
    assert shell.process("get", "N1", "f", "-o", "-").out == "two"
    number = str(versions[0]["version"])
    assert shell.process("get", "N1", "f", "-o", "-", "--version", number).out == "one"
    shell("get", "N1", "f", "--version", "999999", "--to", tmp_path / "o", code=Exit.NOT_FOUND)


def test_archives_do_not_go_to_active_data(shell: Shell, tmp_path: Path) -> None:
    """Only backup versions do."""
    (tmp_path / "f").write_bytes(b"x")
    shell("put", "N1", tmp_path / "f", "--kind", "archive")
    assert pools_of(shell, "N1") == {"f": {"DISKPOOL", "COPYPOOL1", "COPYPOOL2"}}
    assert shell("query", "gap").code == 0


def test_links_are_skipped_and_unreadable_files_are_told(shell: Shell, tmp_path: Path) -> None:
    """What is not stored is said; what should have been stored makes it degraded."""
    root = tmp_path / "t"
    root.mkdir()
    (root / "file").write_bytes(b"x")
    (root / "link").symlink_to("file")
    said = shell("put", "N1", root, "--json").json
    assert said["skipped"] == {"symbolic links": 1}
    assert said["objects"] == 1
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (root / "secret").write_bytes(b"x")
    (root / "secret").chmod(0)
    said = shell("put", "N1", root, "--json", code=Exit.DEGRADED).json
    assert said["left_out"][0]["path"].endswith("secret")


def test_a_store_is_not_stored_in_itself(shell: Shell, tmp_path: Path) -> None:
    """``fanout put N1 .`` beside a new fanout.toml: its volumes would fill its pools."""
    (tmp_path / "mine").write_bytes(b"x")
    said = shell("put", "N1", tmp_path, "--json").json
    assert said["skipped"]["store files"] >= 6  # the catalog, its log, four disks and a tape
    stored = {one["name"] for one in shell("query", "object", "N1", "--json").json["objects"]}
    assert {Path(name).name for name in stored} == {"mine", "fanout.toml"}
    assert "store files" in shell("put", "N1", tmp_path).out


def test_names_that_are_not_utf8(shell: Shell, tmp_path: Path) -> None:
    """File trees are bytes. JSON must carry them there and back, and a table must not crash."""
    root = os.fsencode(tmp_path / "t")
    os.mkdir(root)
    with open(root + b"/\xff\xfe\x1b[31m", "wb") as file:
        file.write(b"odd")
    shell.process("put", "N1", os.fsdecode(root))
    name = json.loads(shell.process("query", "object", "N1", "--json").out)["objects"][0]["name"]
    assert os.fsencode(name).endswith(b"\xff\xfe\x1b[31m")
    table = shell.process("query", "object", "N1")
    assert "\\xff\\xfe\\x1b" in table.out
    assert "\x1b[31m" not in table.out
    assert shell.process("get", "N1", name, "-o", "-").out == "odd"


def test_get_never_leaves_its_directory(shell: Shell, tmp_path: Path) -> None:
    """A name from a store must not overwrite a file elsewhere."""
    (tmp_path / "f").write_bytes(b"evil")
    shell("put", "N1", tmp_path / "f", "--as", "../../escape")
    said = shell("get", "N1", "../../escape", "--to", tmp_path / "o", code=Exit.REFUSED)
    assert "--output" in said.err
    shell("put", "N1", tmp_path / "f", "--as", "/abs/olute")
    shell("get", "N1", "/abs/olute", "--to", tmp_path / "o")
    assert (tmp_path / "o/abs/olute").read_bytes() == b"evil"


def test_get_does_not_replace_unasked(shell: Shell, tmp_path: Path) -> None:
    """An existing file stays as it is."""
    (tmp_path / "f").write_bytes(b"new")
    shell("put", "N1", tmp_path / "f", "--as", "f")
    (tmp_path / "f").write_bytes(b"precious")
    shell("get", "N1", "f", "--to", tmp_path, code=Exit.REFUSED)
    assert (tmp_path / "f").read_bytes() == b"precious"
    shell("get", "N1", "f", "--to", tmp_path, "--force")
    assert (tmp_path / "f").read_bytes() == b"new"


def test_damaged_copy_is_passed_over_or_refused(shell: Shell, tmp_path: Path) -> None:
    """One rotten copy costs nothing; asked for that copy alone, no byte of it gets a name."""
    data = os.urandom(200_000)
    (tmp_path / "f").write_bytes(data)
    shell("put", "N2", tmp_path / "f", "--as", "f")
    volume = tmp_path / "diskpool.vol"
    where = volume.read_bytes().find(data)
    assert where > 0
    with volume.open("r+b") as file:
        file.seek(where + 1000)
        file.write(b"rotten")
    shell("get", "N2", "f", "-o", tmp_path / "good")
    assert (tmp_path / "good").read_bytes() == data
    said = shell(
        "get", "N2", "f", "-o", tmp_path / "bad", "--pool", "DISKPOOL", "--json", code=None
    )
    assert said.code == Exit.INTEGRITY
    assert said.json["failed"][0]["exit_code"] == Exit.INTEGRITY
    assert not (tmp_path / "bad").exists()
    assert not list(tmp_path.glob(".fanout-*"))


# ---- queries ----------------------------------------------------------------------------------


def test_json_shapes(shell: Shell, tree: Callable[..., Path]) -> None:
    """The keys that docs/cli.md promises."""
    shell("put", "N1", tree("A", [1000, 2000]))
    pools = {one["name"]: one for one in shell("query", "stgpool", "--json").json["pools"]}
    assert pools["DISKPOOL"]["objects"] == 2
    assert pools["DISKPOOL"]["bytes"] == 3000
    assert pools["DISKPOOL"]["next"] == "TAPEPOOL"
    assert pools["DISKPOOL"]["copy_pools"] == ["COPYPOOL1", "COPYPOOL2"]
    assert len(shell("query", "stgpool", "diskpool", "--json").json["pools"]) == 1
    volumes = shell("query", "volume", "--pool", "diskpool", "--json").json["volumes"]
    assert {
        "path",
        "pool",
        "volume",
        "readable",
        "reason",
        "epoch",
        "size_bytes",
        "live_bytes",
    } == set(volumes[0])
    assert volumes[0]["readable"] is True
    rows = shell("query", "occupancy", "--node", "n1", "--pool", "copypool2", "--json").json
    assert rows["occupancy"] == [
        {"node": "N1", "kind": "backup", "pool": "COPYPOOL2", "objects": 2, "bytes": 3000}
    ]
    found = shell("query", "object", "N1", "--json").json["objects"][0]
    assert {
        "name",
        "version",
        "active",
        "kind",
        "bytes",
        "digest",
        "stored_at",
        "primary",
        "pools",
    } == set(found)


@pytest.mark.parametrize("what", ["stgpool", "volume", "occupancy", "gap", "object"])
def test_tables_fit_a_terminal(shell: Shell, tree: Callable[..., Path], what: str) -> None:
    """80 columns, also with content."""
    shell("put", "N1", tree("A", [1000]))
    said = shell("query", what, *(["N1"] if what == "object" else []))
    assert said.out.strip()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("query", "stgpool", "NOPOOL"), Exit.CONFIG),
        (("query", "object", "NONODE"), Exit.CONFIG),
        (("query", "object", "N1", "nothing"), Exit.NOT_FOUND),
        (("get", "N1", "nothing"), Exit.NOT_FOUND),
        (("put", "NONODE", "/etc/hostname"), Exit.CONFIG),
        (("put", "N1", "/no/such/file"), Exit.TARGET),
        (("backup", "stgpool", "DISKPOOL", "copystgpool1"), Exit.CONFIG),
        (("get", "N1", "x", "-o", "-", "--json"), Exit.USAGE),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_expected_errors_are_one_line(shell: Shell, arguments: tuple[str, ...], code: Exit) -> None:
    """No traceback, a code of its own."""
    said = shell(*arguments, code=code)
    assert said.err.strip()


def test_json_errors_are_objects(shell: Shell) -> None:
    """A script reads one object, whatever happens."""
    said = shell("query", "stgpool", "NOPOOL", "--json", code=Exit.CONFIG)
    error = said.json["error"]
    assert error["kind"] == "UnknownPool"
    assert error["exit_code"] == Exit.CONFIG
    assert "DISKPOOL" in error["message"]


def test_bad_configuration_names_file_and_key(tmp_path: Path) -> None:
    """The operator's most common mistake."""
    path = tmp_path / "fanout.toml"
    path.write_text("[store]\ncatalogue = 1\n", encoding="utf-8")
    said = Shell(path)("init", code=Exit.CONFIG)
    assert str(path) in said.err
    assert "catalogue" in said.err


def test_volumes_are_private(shell: Shell, tmp_path: Path) -> None:
    """Clients' data is nobody else's."""
    shell("query", "stgpool")
    for path in tmp_path.glob("*.vol"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_named_special_file_is_refused(shell: Shell, tmp_path: Path) -> None:
    """A pipe in a tree is skipped, but one that was named must not be left out in silence."""
    os.mkfifo(tmp_path / "pipe")
    said = shell("put", "N1", tmp_path / "pipe", code=Exit.FAILED)
    assert "pipe it into '-'" in said.err


def test_the_catalog_is_shown_and_copied(shell: Shell, tmp_path: Path) -> None:
    """Beside what is there already; over it only when that is said."""
    said = shell("query", "catalog", "--json").json
    assert (said["csn"], said["objects"], said["ballast_bytes"]) == (0, 0, 0)
    assert "no ballast" in shell("query", "catalog").err
    (tmp_path / "f").write_bytes(b"x")
    shell("put", "N1", tmp_path / "f")
    assert shell("query", "catalog", "--json").json["ballast_bytes"] == 16 << 20
    copy = tmp_path / "copy.db"
    made = shell("backup", "catalog", copy, "--json").json
    assert (made["path"], made["csn"], made["bytes"]) == (str(copy), 1, copy.stat().st_size)
    assert "would be replaced" in shell("backup", "catalog", copy, code=13).err
    assert "up to commit 1" in shell("backup", "catalog", copy, "--force").out
    assert (
        "of a store" in shell("backup", "catalog", tmp_path / "catalog.db", "--force", code=11).err
    )
