"""What an operator meets on a bad day: each error names the place and the mend, with an exit code, and without a traceback.

What could break: advice that makes it worse (a new store where the catalog was lost), an error without a place, one object that stops a whole tree.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fanout import Store
from fanout.cli import trees
from fanout.cli.exits import Exit
from tests.cli.conftest import Shell, describe
from tests.faults import devices, faultfs

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def stored(shell: Shell, tmp_path: Path) -> Path:
    """A file that is stored in every pool."""
    path = tmp_path / "one"
    path.write_bytes(b"0123456789")
    shell("put", "N1", path, "--as", "one")
    return path


def volume(shell: Shell, pool: str) -> Path:
    found = shell("query", "volume", "--json").json["volumes"]
    return next(Path(one["path"]) for one in found if one["pool"] == pool)


# ---- the catalog ---------------------------------------------------------------------------------------


def test_a_catalog_that_is_gone(shell: Shell, stored: Path, tmp_path: Path) -> None:
    """Whoever is sent to 'init' loses all that the volumes hold."""
    for path in tmp_path.glob("catalog.db*"):
        path.unlink()
    for command in (["put", "N1", stored], ["query", "object", "N1"], ["check"], ["init", "--add"]):
        said = shell(*command, code=Exit.CATALOG)
        assert str(tmp_path / "catalog.db") in said.err
        assert "is it mounted" in said.err  # else a second one is made below its mount point
        assert "fanout rebuild catalog" in said.err
    assert "fanout rebuild catalog" in shell("init", code=Exit.REFUSED).err
    shell("rebuild", "catalog")
    shell("get", "N1", "one", "--to", tmp_path / "back")


@pytest.mark.parametrize("content", [b"\xa5" * 8192, b""], ids=["damaged", "empty"])
def test_a_catalog_that_is_damaged(shell: Shell, stored: Path, content: bytes) -> None:
    path = stored.with_name("catalog.db")
    path.write_bytes(content)
    assert "fanout rebuild catalog" in shell("put", "N1", stored, code=Exit.CATALOG).err
    shell("rebuild", "catalog", "--force")
    shell("get", "N1", "one", "--to", stored.with_name("back"))


# ---- volumes -------------------------------------------------------------------------------------------


def test_a_primary_that_is_away_is_told(
    shell: Shell, stored: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What overflows to the next pool is no gap: nothing else would say so."""
    path = volume(shell, "DISKPOOL")
    path.unlink()
    shell("put", "N1", stored, "--as", "two")
    assert f"{path} of pool DISKPOOL is not used: does not exist" in caplog.text


def test_who_audits_a_pool_that_is_away_hears_of_the_volume(shell: Shell, stored: Path) -> None:
    path = volume(shell, "COPYPOOL1")
    path.rename(path.with_suffix(".away"))
    said = shell("audit", "stgpool", "COPYPOOL1", "--json", code=Exit.GAPS).json
    assert said["unasked"][0]["reason"].startswith(f"COPYPOOL1: {path}: does not exist")


def test_a_rebuild_names_a_volume_once(shell: Shell, stored: Path) -> None:
    path = volume(shell, "COPYPOOL1")
    path.write_bytes(b"")
    said = shell("rebuild", "catalog", "--force", code=Exit.TARGET).err
    assert said.count(f"{path}") == 1


def test_no_gap_is_no_comfort_while_a_volume_is_away(shell: Shell, stored: Path) -> None:
    """The primary's disk is gone, and nothing is a gap yet: who asks for gaps every night has to be told."""
    shell("query", "gap")
    path = volume(shell, "DISKPOOL")
    path.unlink()
    said = shell("query", "gap", code=Exit.TARGET)
    assert "Every pool holds what it should" not in said.out
    retire = f"fanout retire volume {path}"
    assert f"{path} cannot be read: does not exist" in said.err
    assert retire in said.err
    said = shell("query", "gap", "--json", code=Exit.TARGET)
    (away,) = said.json["unreadable"]
    assert (said.json["ok"], away["pool"], away["path"]) == (False, "DISKPOOL", str(path))
    assert str(path) in shell("query", "stgpool").err
    assert shell("query", "gap", "--pool", "COPYPOOL1").err == ""
    assert retire in " ".join(shell("check", "--no-data", code=Exit.INTEGRITY).out.split())
    shell("retire", "volume", path, code=Exit.GAPS)
    shell("query", "gap", code=Exit.GAPS)


def test_what_keeps_each_primary_from_taking_it_is_said(shell: Shell, stored: Path) -> None:
    """The last one's reason alone sent people to the wrong disk, to add a volume where two were only away."""
    tape = volume(shell, "TAPEPOOL")
    disk = volume(shell, "DISKPOOL")
    disk.rename(disk.with_suffix(".away"))
    tape.rename(tape.with_suffix(".away"))
    (last,) = [
        line
        for line in shell("put", "N1", stored, code=Exit.FAILED).err.splitlines()
        if line.startswith("fanout:")
    ]
    assert f"DISKPOOL: no volume of it can be written: {disk}: does not exist" in last
    assert f"TAPEPOOL: no volume of it can be written: {tape}: does not exist" in last
    assert last.endswith("; bring a volume back")
    text = shell.config.read_text(encoding="utf-8")
    text = text.replace('next = "TAPEPOOL"', 'next = "TAPEPOOL"\nmax_size = "4 B"')
    shell.config.write_text(
        text.replace('device_class = "tape"', 'device_class = "tape"\naccess = "readonly"'), "utf-8"
    )
    last = shell("put", "N1", stored, code=Exit.FAILED).err
    assert "DISKPOOL: its max_size is 4 bytes; TAPEPOOL: nothing new may go there" in last
    assert "raise max_size or set access to readwrite" in last


def test_gaps_of_many_transactions_are_one_line(shell: Shell, stored: Path) -> None:
    """A pool that was away for a night lacks thousands of transactions: who asks sees a page of the same line, and not the other pool."""
    path = volume(shell, "COPYPOOL1")
    path.rename(path.with_suffix(".away"))
    for number in range(4):
        shell("put", "N1", stored, "--as", f"object {number}", code=Exit.DEGRADED)
    said = shell("query", "gap", code=Exit.GAPS).out
    (row,) = [line for line in said.splitlines() if line.startswith(" COPYPOOL1")]
    assert row.split()[:5] == ["COPYPOOL1", "DISKPOOL", "N1", "4", "40"]
    assert len(shell("query", "gap", "--json", code=Exit.GAPS).json["gaps"]) == 4
    assert said.count("why: ") == 1


def test_a_pool_that_is_kept_away_on_purpose_is_no_news(shell: Shell, stored: Path) -> None:
    text = shell.config.read_text()
    shell.config.write_text(text.replace('type = "copy"', 'type = "copy"\naccess = "unavailable"'))
    assert shell("query", "gap").err == ""


def test_a_store_that_was_moved(shell: Shell, stored: Path, tmp_path: Path) -> None:
    """Its volumes are where fanout.toml says, and nowhere for the catalog. Whoever is sent to 'init --add --force' destroys them."""
    home = tmp_path / "home"
    home.mkdir()
    for path in [*tmp_path.glob("*.vol"), *tmp_path.glob("catalog.db*"), tmp_path / "tapes"]:
        path.rename(home / path.name)
    there = Shell(describe(home))
    said = there("put", "N1", stored, code=Exit.FAILED).err
    assert (
        f"{home / 'diskpool.vol'} of pool DISKPOOL is not used: it is a volume of this store"
        in said
    )
    assert "fanout rebuild catalog --force" in said
    assert "init --add" not in said
    assert "fanout rebuild catalog --force" in there("init", "--add", code=Exit.REFUSED).err
    there("rebuild", "catalog", "--force")
    there("get", "N1", "one", "--to", tmp_path / "back")
    there("query", "gap")
    assert "Nothing is wrong" in there("check").out
    home.joinpath("copypool1.vol").unlink()
    there("retire", "volume", home / "copypool1.vol", code=Exit.GAPS)
    assert "was given up" in there("query", "gap", code=Exit.GAPS).err


def test_a_store_that_was_copied(shell: Shell, stored: Path, tmp_path: Path) -> None:
    """Its catalog knows where the first one lies: what is stored in the copy went there, and both were the worse for it."""
    copy, link = tmp_path / "copy", tmp_path / "link"
    copy.mkdir()
    there = Shell(describe(copy))
    for path in [*tmp_path.glob("*.vol"), *tmp_path.glob("catalog.db*"), tmp_path / "tapes"]:
        (shutil.copytree if path.is_dir() else shutil.copy)(path, copy / path.name)
    said = there("put", "N1", stored, "--as", "two", code=Exit.CATALOG).err
    assert "fanout rebuild catalog --force" in said
    assert "both are there" in said
    said = there("query", "gap", code=Exit.TARGET).err
    assert f"which the catalog knows as {tmp_path / 'diskpool.vol'}" in said
    shell("put", "N1", stored, "--as", "three")
    there("rebuild", "catalog", "--force")
    there("put", "N1", stored, "--as", "two")
    for store in (shell, there):
        store("query", "gap")
        assert "Nothing is wrong" in store("check").out
    link.symlink_to(tmp_path, target_is_directory=True)
    assert Shell(link / shell.config.name)("put", "N1", stored, "--as", "four").err == ""


def test_a_directory_of_sequential_volumes_that_was_copied(
    shell: Shell, stored: Path, tmp_path: Path
) -> None:
    """Its volumes are listed nowhere but in the catalog."""
    shutil.copytree(tmp_path / "tapes", tmp_path / "copy")
    text = shell.config.read_text()
    shell.config.write_text(text.replace('directory = "tapes"', 'directory = "copy"'))
    assert "both are there" in shell("put", "N1", stored, code=Exit.CATALOG).err
    shutil.rmtree(tmp_path / "copy")
    shell("put", "N1", stored)


def test_an_old_catalog_loses_nothing(shell: Shell, stored: Path) -> None:
    """A check that looks at no volume must not send anybody to look for a lost medium; nor may a timer that asks for gaps hear that all is well."""
    catalog, old = stored.with_name("catalog.db"), stored.with_name("old.db")
    shell("backup", "catalog", old)
    shell("put", "N1", stored, "--as", "two")
    with Store.open(shell.config):  # a writer's own epochs are no news
        assert shell("query", "gap", "--json").json["older_than"] == ""
    old.replace(catalog)
    asked = shell("query", "gap", "--json", code=Exit.CATALOG)
    assert not asked.json["ok"]
    assert re.search("knows commit|is of epoch", asked.json["older_than"])  # who is asked first
    asked = shell("query", "gap", code=Exit.CATALOG)
    assert "this is an old catalog" in asked.out
    assert "fanout rebuild catalog --force" in asked.err
    assert (
        "older than the volumes" in shell("query", "object", "N1", "two", code=Exit.NOT_FOUND).err
    )
    problems = shell("check", "--json", code=Exit.INTEGRITY).json["problems"]
    assert {one["mend"].split("'")[1] for one in problems} == {"fanout rebuild catalog --force"}
    assert "fanout rebuild catalog --force" in shell("put", "N1", stored, code=Exit.CATALOG).err
    shell("rebuild", "catalog", "--force")
    assert "Nothing is wrong" in shell("check").out


@pytest.mark.parametrize(
    ("pool", "repair"),
    [
        ("COPYPOOL1", ["backup", "stgpool", "DISKPOOL"]),
        ("ACTIVEDATAPOOL", ["copy", "activedata", "DISKPOOL"]),
    ],
)
def test_a_pool_that_is_full_is_told_with_the_mend(
    tmp_path: Path, pool: str, repair: list[str]
) -> None:
    """The command that closes the gap cannot, before the pool has room: who is told that alone runs it for ever."""
    shell = Shell(describe(tmp_path, sizes={pool: "2 MiB"}))
    shell("init")
    big = tmp_path / "big"
    big.write_bytes(os.urandom(3 << 20))
    mend = "another volume in fanout.toml, then 'fanout init --add'"
    assert mend in shell("put", "N1", big, code=Exit.DEGRADED).err
    assert mend in " ".join(shell("query", "gap", code=Exit.GAPS).out.split())
    assert mend in shell(*repair, pool, code=Exit.GAPS).err
    one = f'{{ path = "{pool.lower()}.vol", size = "2 MiB" }}'
    text = shell.config.read_text()
    shell.config.write_text(text.replace(one, one + ', { path = "more.vol", size = "16 MiB" }'))
    shell("init", "--add")
    shell(*repair, pool)
    shell("query", "gap")


def test_a_long_list_of_failures_says_that_it_is_longer(tmp_path: Path) -> None:
    shell = Shell(describe(tmp_path, sizes={"COPYPOOL1": "2 MiB"}))
    shell("init")
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(45):  # a third of them fits
        (tree / str(number)).write_bytes(os.urandom(100_000))
    shell("put", "N1", tree, code=Exit.DEGRADED)
    said = shell("backup", "stgpool", "DISKPOOL", "COPYPOOL1", code=Exit.GAPS).err
    assert said.count("not copied: ") == 20
    assert "10 more; --json lists them" in said


def test_a_directory_whose_name_is_not_utf8(tmp_path: Path) -> None:
    """The catalog keeps paths as text: said before anything is made, as what is wrong with the place."""
    home = tmp_path / os.fsdecode(b"d\xff")
    home.mkdir()
    said = Shell(describe(home))("init", code=Exit.CONFIG)
    assert "d\\xff/catalog.db: a path has to be UTF-8" in said.err
    assert list(home.iterdir()) == [home / "fanout.toml"]


def test_a_copy_of_the_catalog_goes_anywhere(shell: Shell, stored: Path) -> None:
    target = stored.with_name(os.fsdecode(b"c\xff"))
    shell("backup", "catalog", target)
    assert target.exists()


def test_paths_with_spaces_quotes_and_line_ends(tmp_path: Path) -> None:
    """Every message is one line, and the command that it names can be given to a shell."""
    home = tmp_path / "a b\n'c\""
    home.mkdir()
    shell = Shell(describe(home))
    shell("init")
    (home / "one").write_bytes(b"1")
    shell("put", "N1", home / "one", "--as", "one")
    volume(shell, "COPYPOOL1").unlink()
    (line,) = shell("query", "gap", code=Exit.TARGET).err.splitlines()
    assert "COPYPOOL1" in line
    away = shell("check", "--no-data", "--json", code=Exit.INTEGRITY).json["problems"][0]
    words = shlex.split(away["mend"].removeprefix("mend or mount what is there; if it is lost, "))
    program, *command = shlex.split(words[0]) if " " in words[0] else words
    assert program == "fanout"
    assert command[:2] == ["retire", "volume"]
    assert len(shell("put", "N1", home / "none\n", code=Exit.TARGET).err.splitlines()) == 1
    for path in home.glob("catalog.db*"):
        path.unlink()
    assert len(shell("query", "gap", code=Exit.CATALOG).err.splitlines()) == 1


@pytest.mark.root
@pytest.mark.parametrize("log", [b"", b"not taken in yet"])
def test_a_file_system_that_went_read_only(tmp_path: Path, log: bytes) -> None:
    """ext4's answer to a bad disk. What is on it has to come off it, and what the log holds is not passed over."""
    with devices.small_tmpfs(192 << 20) as home:
        shell = Shell(describe(home))
        shell("init")
        (home / "one").write_bytes(b"1")
        shell("put", "N1", home / "one", "--as", "one")
        (home / "catalog.db-wal").write_bytes(log)
        remount(home, "ro")
        assert "Read-only file system" in shell("put", "N1", home, code=Exit.CATALOG).err
        if log:
            said = shell("get", "N1", "one", "--to", tmp_path, code=Exit.CATALOG).err
            assert "copy it and its -wal to another one" in said
            return
        shell("query", "gap")
        shell("get", "N1", "one", "--to", tmp_path)
        shell("backup", "catalog", tmp_path / "copy")
    assert (tmp_path / "one").read_bytes() == b"1"


@pytest.mark.root
def test_a_mount_that_is_read_only_beside_one_that_is_not(tmp_path: Path) -> None:
    """Whoever writes through the other one changes what is being read: it is not taken for a catalog at rest."""
    with devices.small_tmpfs(192 << 20) as home:
        Shell(describe(home))("init")
        for index in ("-wal", "-shm"):
            (home / f"catalog.db{index}").unlink(missing_ok=True)
        view = tmp_path / "view"
        view.mkdir()
        subprocess.run(["mount", "--bind", home, view], check=True)
        try:
            remount(view, "bind,ro")
            shell = Shell(view / "fanout.toml")
            said = shell("query", "gap", code=Exit.CATALOG).err
            assert "copy it and its -wal to another one" in said
        finally:
            subprocess.run(["umount", view], check=True)


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", place], check=True)


# ---- what is stored ------------------------------------------------------------------------------------


def test_a_name_that_is_too_long_is_left_out(shell: Shell, tmp_path: Path) -> None:
    """And nothing else of its tree."""
    tree = tmp_path / "tree"
    deep = tree.joinpath(*["d" * 240] * 5)
    deep.mkdir(parents=True)
    for path in (tree / "ok", deep / "far"):
        path.write_bytes(b"x")
    said = shell("put", "N1", tree, "--json", code=Exit.DEGRADED).json
    (left_out,) = said["left_out"]
    assert left_out["path"] == str(deep / "far")
    assert "1,024" in left_out["reason"]
    assert said["objects"] == 1


def test_a_source_without_a_length(shell: Shell) -> None:
    """/proc says nothing of how long it is, and the kernel's error nothing of where."""
    said = shell("put", "N1", "/proc/meminfo", code=Exit.FAILED)
    assert "/proc/meminfo: does not say how long it is" in said.err


def test_a_source_that_cannot_be_read(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector under the client's file: the kernel says EIO, and nothing of where."""
    path = tmp_path / "bad"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr("fanout.sources._read_into", _unreadable)
    assert f"{path}: Input/output error" in shell("put", "N1", path, code=Exit.TARGET).err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_file_that_changes_while_its_tree_is_stored_is_left_out(
    shell: Shell, tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """A log that grows, a file that goes: the whole tree failed at it, again with the next 'put', and the one that had grown was called "16"."""
    root = tree("busy", [100] * 9)
    walk = trees.walk

    def and_then(*args: Any, **more: Any) -> trees.Found:
        found = walk(*args, **more)
        (root / "f1").write_bytes(b"x" * 200)
        (root / "f3").unlink()
        os.truncate(root / "f5", 10)
        (root / "f7").unlink()
        (root / "f7").symlink_to("f8")
        return found

    monkeypatch.setattr("fanout.cli.store.trees.walk", and_then)
    said = shell("put", "N1", root, "--group", "4", *options, code=Exit.DEGRADED)
    if options:
        left_out = {one["path"]: one["reason"] for one in said.json["left_out"]}
        assert set(left_out) == {str(root / name) for name in ("f1", "f3", "f5", "f7")}
        assert (said.json["ok"], said.json["degraded"], said.json["objects"]) == (False, False, 5)
        assert "grow" in left_out[str(root / "f1")]
        assert "No such file" in left_out[str(root / "f3")]
    else:
        assert f"{root / 'f1'}: gave more than the 100 bytes" in said.err
    monkeypatch.undo()
    assert {one["bytes"] for one in shell("query", "object", "N1", "--json").json["objects"]} == {
        100
    }
    shell("check")
    shell("query", "gap")


def _unreadable(_: Callable[[memoryview], int | None], length: int | None) -> None:
    raise OSError(5, os.strerror(5))


def test_a_directory_of_volumes_on_a_mount_that_has_died(tmp_path: Path) -> None:
    """One pool's file system was gone, and nothing could be stored in any; nor could a volume be given up, added, or the catalog be made anew."""
    with faultfs.FaultFS() as fs:
        shell = Shell(describe(tmp_path, sizes={"COPYPOOL2": "32 MiB"}))
        text = shell.config.read_text()
        text = text.replace('"tapes"', f'"{fs.path("tapes")}"')
        text = text.replace('"copypool2.vol"', f'"{fs.path("copies")}/copypool2.vol"')
        shell.config.write_text(text)
        shell("init")
        file = tmp_path / "file"
        file.write_bytes(b"0123456789")
        shell("put", "N1", file, "--as", "one")
        fs.abort()
        assert "COPYPOOL2 lacks 1 object" in shell("put", "N1", file, code=Exit.DEGRADED).err
        shell("query", "gap", code=Exit.GAPS)
        more = ('size = "16 MiB" }]', 'size = "16 MiB" }, { path = "more.vol", size = "8 MiB" }]')
        shell.config.write_text(text.replace(*more, 1))
        assert "more.vol to" in shell("init", "--add").out
        shell("retire", "volume", fs.path("copies/copypool2.vol"), code=Exit.GAPS)
        told = shell("rebuild", "catalog", "--force", code=Exit.TARGET).err
        assert f"took no part: TAPEPOOL: {fs.path('tapes')}: cannot be read" in told
        assert shell("get", "N1", "one", "--output", "-").out == "0123456789"


def test_a_volume_that_cannot_be_opened_is_named_once(tmp_path: Path) -> None:
    """Each line held its path twice, or three times, and the reason was out of sight."""
    with faultfs.FaultFS() as fs:
        shell = Shell(describe(tmp_path))
        volume = str(fs.path("c.vol"))
        text = shell.config.read_text().replace("copypool2.vol", volume)
        shell.config.write_text(text)
        shell("init")
        file = tmp_path / "file"
        file.write_bytes(b"0123456789")
        fs.set_rules(faultfs.Rule(op="write", path="/c.vol", errno=5, count=None))
        said = shell("put", "N1", file, code=Exit.DEGRADED).err
    told = [line for line in said.splitlines() if volume in line]
    assert len(told) == 2
    assert [line.count(volume) for line in told] == [1, 1]


# ---- what is read --------------------------------------------------------------------------------------


def test_onto_a_directory(shell: Shell, stored: Path) -> None:
    """It is named, not the neighbour that the bytes were written to."""
    there = stored.with_name("there")
    there.mkdir()
    said = shell("get", "N1", "one", "--output", there, "--force", "--json", code=Exit.TARGET).json
    assert said["failed"][0]["reason"] == f"{there}: Is a directory"
    assert list(there.iterdir()) == []


def test_a_name_that_is_no_file_name(shell: Shell, stored: Path) -> None:
    """--force does not help, so nobody is told to say it."""
    shell("put", "N1", stored, "--as", "../up")
    said = shell("get", "N1", "../up", "--to", stored.with_name("back"), code=Exit.REFUSED)
    assert "--output FILE" in said.err
    assert "--force" not in said.err


def test_an_empty_name_is_not_the_whole_of_a_node(shell: Shell, stored: Path) -> None:
    """It comes from a variable that was not set."""
    shell("put", "N1", stored, "--as", "/abs")
    shell("get", "N1", "", "--to", stored.with_name("back"), code=Exit.USAGE)
    assert not stored.with_name("back").exists()


# ---- the rest ------------------------------------------------------------------------------------------


def test_a_pool_of_another_type(shell: Shell, stored: Path) -> None:
    """No volume has anything to do with it."""
    said = shell("backup", "stgpool", "COPYPOOL1", "DISKPOOL", code=Exit.TARGET)
    assert "is a pool of type copy" in said.err
    assert "query volume" not in said.err


def test_more_memory_than_an_engine_takes(tmp_path: Path) -> None:
    path = describe(tmp_path)
    path.write_text(path.read_text() + '[engine]\nmemory = "900 TiB"\n')
    said = Shell(path)("init", code=Exit.CONFIG)
    assert f"{path}: engine.memory: must be at most" in said.err


@pytest.mark.parametrize(
    "locale",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}],
    ids=["strict", "surrogateescape"],
)
def test_a_terminal_without_our_letters(shell: Shell, stored: Path, locale: dict[str, str]) -> None:
    """An old locale: what it cannot show is an escape, and neither a traceback nor another exit code."""
    shell("put", "N1", stored, "--as", "süß 😀")
    for words in (["query", "stgpool"], ["query", "object", "N1"], ["check"]):
        ended = subprocess.run(
            [sys.executable, "-m", "fanout", *words],
            env={**os.environ, **locale, "FANOUT_CONFIG": str(shell.config)},
            capture_output=True,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert ended.stdout.isascii()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_standard_output(shell: Shell, stored: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "fanout", "query", "object", "N1", *options]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*command, "--config", str(shell.config)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == Exit.TARGET
    assert "standard output: No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_object_onto_a_full_standard_output(shell: Shell, stored: Path) -> None:
    """Not 0, and not the interpreter's own 120: the object did not arrive."""
    with open("/dev/full", "w") as full:
        for words, where in (
            (["get", "N1", "one", "-o", "-"], "standard output: "),
            (["put", "--help"], ""),
        ):
            ended = subprocess.run(
                [sys.executable, "-m", "fanout", *words],
                env={**os.environ, "FANOUT_CONFIG": str(shell.config)},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert ended.returncode == Exit.TARGET
            assert f"{where}No space left on device" in ended.stderr
            assert "Exception ignored" not in ended.stderr


def test_closed_standard_streams(shell: Shell, stored: Path) -> None:
    """As some daemons start their children: nobody hears of it, but it is done; and no volume becomes standard error."""

    def run(words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", f"{shlex.quote(sys.executable)} -m fanout {words}"],
            env={**os.environ, "FANOUT_CONFIG": str(shell.config)},
            capture_output=True,
            text=True,
            check=False,
        )

    for words, code in (
        (f"put N1 {shlex.quote(str(stored))} --as closed <&- >&- 2>&-", Exit.COMPLETE),
        ("query object N1 >&-", Exit.COMPLETE),
        ("--help >&-", Exit.COMPLETE),
        ("query gap --help >&-", Exit.COMPLETE),
        ("query object N1 --json 2>&-", Exit.COMPLETE),
        ("query stgpool NONE 2>&-", Exit.CONFIG),
        ("doctor >&- 2>&-", Exit.COMPLETE),
        ("init <&-", Exit.REFUSED),
        ("put N1 - --once --as nothing <&-", Exit.TARGET),
    ):
        ended = run(words)
        assert ended.returncode == code, (words, ended.stderr)
        assert "Traceback" not in ended.stderr
        assert "Exception ignored" not in ended.stderr
    assert "standard output: Bad file descriptor" in run("get N1 one -o - >&-").stderr
    objects = shell("query", "object", "N1", "--json").json["objects"]
    assert {one["name"] for one in objects} == {"closed", "one"}


@pytest.mark.parametrize("options", [["--json"], []])
def test_a_pipe_that_nobody_reads_does_not_change_the_exit_code(
    shell: Shell, stored: Path, options: list[str]
) -> None:
    """``fanout query gap | head`` must still say that there are gaps; 0 and 1 would both be wrong."""
    volume(shell, "COPYPOOL1").unlink()
    shell("put", "N1", stored, "--as", "two", code=Exit.DEGRADED)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "fanout",
                "query",
                "gap",
                *options,
                "--config",
                str(shell.config),
            ],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert ended.returncode == Exit.GAPS
    assert all("cannot be read: does not exist" in line for line in ended.stderr.splitlines())


def test_a_standard_error_that_is_full_does_not_change_the_exit_code(shell: Shell) -> None:
    """A log on a full disk: what cannot be warned of is said by the exit code."""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "fanout",
                "query",
                "stgpool",
                "NONE",
                "--config",
                str(shell.config),
            ],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
        )
    assert ended.returncode == Exit.CONFIG
    with open("/dev/full", "w") as full:
        helped = subprocess.run(
            [sys.executable, "-m", "fanout", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert helped.returncode == Exit.TARGET
    assert b"Traceback" not in helped.stderr


def without(shell: Shell, pool: str, *more: tuple[str, str]) -> None:
    """Take a pool out of the configuration, and change some more of it."""
    text = shell.config.read_text()
    first, *sections = text.split("\n[")
    text = "\n[".join([first, *(one for one in sections if not one.startswith(f"pools.{pool}]"))])
    for old, new in more:
        assert old in text
        text = text.replace(old, new)
    shell.config.write_text(text)


def test_what_belongs_to_a_primary_that_is_not_configured_any_more_gets_its_copies(
    shell: Shell, stored: Path
) -> None:
    """Its disk has died, and it was taken out: what is left is read from one copy pool, and no repair made another; 'query gap' named one."""
    for pool in ("COPYPOOL1", "DISKPOOL"):
        path = volume(shell, pool)
        path.unlink()
        shell("retire", "volume", path, code=Exit.GAPS)
    without(shell, "DISKPOOL", ('destination = "DISKPOOL"', 'destination = "TAPEPOOL"'))
    shell("init", "--add")
    gaps = shell("query", "gap", "--primary", "DISKPOOL", "--json", code=Exit.GAPS).json["gaps"]
    mends = {gap["pool"]: gap["mend"] for gap in gaps}
    assert mends["COPYPOOL1"].endswith("DISKPOOL COPYPOOL1")
    shell("backup", "stgpool", "DISKPOOL", "COPYPOOL1")
    shell("query", "gap", "--pool", "COPYPOOL1")
    shell("restore", "stgpool", "DISKPOOL", code=Exit.CONFIG)


def test_a_gap_of_a_pool_that_is_not_configured_any_more(shell: Shell, stored: Path) -> None:
    """No repair can fill it, and people were told to run one."""
    path = volume(shell, "COPYPOOL2")
    path.unlink()
    shell("retire", "volume", path, code=Exit.GAPS)
    without(shell, "COPYPOOL2", ('"COPYPOOL1", "COPYPOOL2"', '"COPYPOOL1"'))
    (gap,) = shell("query", "gap", "--pool", "COPYPOOL2", "--json", code=Exit.GAPS).json["gaps"]
    assert gap["mend"].startswith(f"write [pools.COPYPOOL2] into {shell.config} again")
    shell("rebuild", "catalog", "--force")
    shell("query", "gap")


def test_a_name_that_no_file_can_have(shell: Shell, stored: Path, tmp_path: Path) -> None:
    """It is stored, and "File name too long" was all that who wanted it back was told."""
    name = "n" * 1024
    shell("put", "N1", stored, "--as", name)
    said = shell("get", "N1", name, "--to", tmp_path / "back", code=Exit.TARGET).err
    assert "File name too long; --output FILE gives it another name" in said
    shell("get", "N1", name, "--output", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == stored.read_bytes()
    said = shell("get", "N1", "no\udcffne", code=Exit.NOT_FOUND).err
    assert r"no object and no tree 'no\xffne'" in said  # as it stands in a list


def test_a_restore_that_fails_is_not_a_page_for_each_file(
    shell: Shell, tmp_path: Path, tree: Callable[..., Path]
) -> None:
    """Of a million files that cannot be written each had a line, and the last warning was out of sight."""
    shell("put", "N1", tree("many", [3] * 30), "--as", "many")
    (tmp_path / "back").mkdir()
    (tmp_path / "back/many").write_bytes(b"in the way")
    said = shell("get", "N1", "many", "--to", tmp_path / "back", code=Exit.REFUSED)
    assert said.err.count("not read: many/") == 20
    assert "not read: 10 more; --json lists them." in said.err
    said = shell("get", "N1", "many", "--to", tmp_path / "back", "--json", code=Exit.REFUSED)
    assert len(said.json["failed"]) == 30
