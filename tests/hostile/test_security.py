"""What docs/security.md claims: names, links, modes, code in data, and what is said aloud.

What could break: a name that leads out of the directory it should stay in; a link that somebody planted, followed; a file that others
may read; data that is executed; a client's bytes in a log or an error.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanout import backup_catalog, rebuild_catalog
from fanout.cli import trees
from fanout.errors import FanoutError, IntegrityError, SourceError, VolumeError, VolumeForeign
from fanout.making import create_volume, probe
from fanout.store import Store
from fanout.volume import Volume
from tests.cli.conftest import Shell, describe
from tests.store.test_rebuild import put, small
from tests.volume.conftest import loop, real

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.engine import Engine
    from tests.store.histories import SmallSite

__all__ = ["loop", "real", "small"]  # fixtures
ROOT = Path(__file__).parents[2]


# ---- names and links: get --------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    made = Shell(describe(tmp_path))
    made("init")
    return made


def store_as(shell: Shell, *names: str) -> None:
    for name in names:
        shell("put", "N1", "-", "--as", name, "--once", stdin=b"client's bytes")


def test_no_name_leads_out(shell: Shell, tmp_path: Path) -> None:
    """Names are the client's: whatever is stored, nothing appears outside of the directory that was asked for."""
    names = ("../out", "a/../../out", "..", ".", "/", "//", "a/..")
    store_as(shell, *names)
    before = {path for path in tmp_path.rglob("*") if not path.name.startswith("catalog.db")}
    for name in names:
        said = shell("get", "N1", name, "--to", tmp_path / "to", code=13)
        assert "no name of a file" in said.err
    after = {path for path in tmp_path.rglob("*") if not path.name.startswith("catalog.db")}
    assert after == before


def test_absolute_names_stay_inside(shell: Shell, tmp_path: Path) -> None:
    store_as(shell, "/etc/passwd")
    shell("get", "N1", "/etc/passwd", "--to", tmp_path / "to")
    assert (tmp_path / "to" / "etc" / "passwd").read_bytes() == b"client's bytes"
    assert (tmp_path / "to" / "etc" / "passwd").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("planted", ["a", "a/b"])
def test_planted_links_are_not_followed(shell: Shell, tmp_path: Path, planted: str) -> None:
    """Somebody who may write to the target tree puts a link where a directory will be."""
    store_as(shell, "a/b/c")
    outside = tmp_path / "outside"
    (outside / "b").mkdir(parents=True)
    link = tmp_path / "to" / planted
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    for force in ((), ("--force",)):
        said = shell("get", "N1", "a/b/c", "--to", tmp_path / "to", *force, code=13)
        assert "is a link or no directory" in said.err
    assert [path.name for path in outside.rglob("*")] == ["b"]


def test_a_planted_link_in_the_file_s_place_is_replaced_not_followed(
    shell: Shell, tmp_path: Path
) -> None:
    """Also one that leads nowhere: `exists` would not see it."""
    store_as(shell, "a")
    precious, to = tmp_path / "precious", tmp_path / "to"
    to.mkdir()
    for exists in (False, True):
        (to / "a").symlink_to(precious)
        assert "would be replaced" in shell("get", "N1", "a", "--to", to, code=13).err
        shell("get", "N1", "a", "--to", to, "--force")
        assert not (to / "a").is_symlink()
        assert (to / "a").read_bytes() == b"client's bytes"
        assert precious.exists() == exists
        (to / "a").unlink()
        precious.write_bytes(b"precious")
    assert precious.read_bytes() == b"precious"


def test_a_file_that_appears_meanwhile_is_not_overwritten(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the naming of the file."""
    store_as(shell, "a")
    place = tmp_path / "to" / "a"
    original = Store.get

    def get(*arguments: object, **options: object) -> object:
        place.write_bytes(b"somebody else's")
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "get", get)
    shell("get", "N1", "a", "--to", tmp_path / "to", code=13)
    assert place.read_bytes() == b"somebody else's"
    assert os.listdir(tmp_path / "to") == ["a"]


def test_two_names_for_one_file(shell: Shell, tmp_path: Path) -> None:
    """The second would silently replace the first."""
    store_as(shell, "t/a", "t//a")
    said = shell("get", "N1", "t", "--to", tmp_path / "to", code=13)
    assert "would become one file" in said.err


# ---- names and links: put --------------------------------------------------------------------------------


def swapped(path: Path, how: str, secret: Path) -> None:
    path.unlink()
    if how == "link":
        path.symlink_to(secret)
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"x" * secret.stat().st_size)


@pytest.mark.parametrize("how", ["link", "pipe", "file"])
def test_a_file_of_a_tree_that_becomes_another(tmp_path: Path, how: str) -> None:
    """A user's tree is stored by root: a link that appears behind the walk must not read /etc/shadow."""
    tree, secret = tmp_path / "tree", tmp_path / "secret"
    tree.mkdir()
    secret.write_bytes(b"secret")
    (tree / "kept").write_bytes(b"other inode")
    (tree / "a").write_bytes(b"user's")
    (item,) = [i for i in trees.walk([str(tree)]).items if i.name.endswith(b"/a")]
    (tree / "a").rename(tree / "moved")  # so that the inode is not used again
    (tree / "a").touch()
    swapped(tree / "a", how, secret)
    with pytest.raises(SourceError, match=r"became a link|was replaced"):
        list(item.source.open())


def test_a_directory_of_a_tree_that_becomes_a_link(tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    (tree / "d").mkdir(parents=True)
    outside.mkdir()
    for place in (tree / "d", outside):
        (place / "a").write_bytes(b"secret")
    (item,) = trees.walk([str(tree)]).items
    (tree / "d").rename(tree / "gone")
    (tree / "d").symlink_to(outside)
    with pytest.raises(SourceError, match="was replaced"):
        list(item.source.open())
    assert trees.walk([str(tree)]).skipped == {}  # a link to a directory is not gone into
    assert [found.name[-6:] for found in trees.walk([str(tree)]).items] == [b"gone/a"]


# ---- volumes ---------------------------------------------------------------------------------------------

STORE, POOL = b"S" * 16, b"P" * 16


def test_a_link_in_a_volume_s_place(real: Engine, tmp_path: Path) -> None:
    """Who can plant a link beside the volumes could else have any file overwritten, by `--force` or by an opening."""
    path, link = tmp_path / "a.vol", tmp_path / "link.vol"
    block = create_volume(
        real, path, store=STORE, pool="P", pool_uuid=POOL, size=2 << 20, directory_bytes=64 << 10
    )
    link.symlink_to(path)
    before = path.read_bytes()
    with pytest.raises(VolumeForeign, match="symbolic link to a file"):
        Volume.open(real, link, store=STORE, pool="P", volume=block.volume, catalog_epoch=1)
    for force in (False, True):
        with pytest.raises(VolumeError):
            create_volume(
                real, link, store=STORE, pool="P", pool_uuid=POOL, size=2 << 20, force=force
            )
    with pytest.raises(VolumeForeign, match="symbolic link to a file"):
        probe(real, link)
    assert path.read_bytes() == before
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(VolumeError):
        create_volume(real, link, store=STORE, pool="P", pool_uuid=POOL, size=2 << 20)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.loop
def test_a_link_to_a_device_is_followed(
    real: Engine, loop: Callable[[int, int], str], tmp_path: Path
) -> None:
    """As in /dev/disk/by-id: the only names of devices that stay."""
    link = tmp_path / "by-id"
    link.symlink_to(loop(4 << 20, 512))
    block = create_volume(
        real, link, store=STORE, pool="P", pool_uuid=POOL, directory_bytes=64 << 10
    )
    opened = Volume.open(real, link, store=STORE, pool="P", volume=block.volume, catalog_epoch=1)
    opened.confirm()
    opened.close()


# ---- modes -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_everything_is_private(small: SmallSite, mask: int) -> None:
    """Volumes, those made later too, catalog, log, index, lock, ballast, backup, and what a rebuild keeps and makes."""
    with umask(mask):
        base = small.base / "deep" / "store"
        text = small.path.read_text().replace('path = "', 'path = "deep/store/volumes/')
        text = text.replace('"catalog.db"', '"deep/store/catalog.db"')
        small.path.write_text(text.replace('"sequential"', '"deep/store/tapes"'))
        Store.create(small.path)
        with small.open() as store:
            put(small, store, {b"A": os.urandom(3 << 20), b"B": os.urandom(3 << 20)})
            put(small, store, {b"C": os.urandom(3 << 20)})
            backup_catalog(store, base / "copy.db")
            seen = modes(small.base / "deep")
        rebuild_catalog(small.path, force=True)
        seen |= modes(small.base / "deep")
    assert len(list((base / "tapes").iterdir())) > 1, "volumes were made on demand"
    names = " ".join(path.name for path in seen)
    for part in ("-wal", "-shm", ".lock", ".ballast", ".replaced-", "copy.db", ".vol", ".fanout"):
        assert part in names
    for path, (mode, directory) in seen.items():
        assert mode == (0o700 if directory else 0o600), path
    for path in [*base.glob("volumes/*"), *base.glob("tapes/*")]:
        path.unlink()


def modes(base: Path) -> dict[Path, tuple[int, bool]]:
    found = {}
    for path in (base, *base.rglob("*")):
        status = path.lstat()
        found[path] = (status.st_mode & 0o777, path.is_dir())
    return found


# ---- data is not code ------------------------------------------------------------------------------------

CODE = {"pickle", "cPickle", "marshal", "shelve", "dill", "yaml", "runpy", "code", "codeop", "imp"}
CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "load_extension", "mktemp"}


def test_nothing_makes_code_of_data() -> None:
    """No pickle, no eval, no shell, no SQLite extension; imports by name only from tables in the source."""
    for path in (ROOT / "fanout").rglob("*.py*"):
        if path.suffix not in {".py", ".pyx"}:
            continue
        text = path.read_text(encoding="utf-8")
        assert "shell=True" not in text, path
        if path.suffix == ".pyx":
            assert not re.search(rf"\b({'|'.join(CODE)})\b.*import|\b(eval|exec)\(", text), path
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not {str(name).split(".")[0] for name in names} & CODE, path
            elif isinstance(node, ast.Call):
                called = getattr(node.func, "id", "")
                attribute = getattr(node.func, "attr", "")
                assert called not in CALLS, (path, called)
                allowed = attribute == "compile" and getattr(node.func, "value", None) is not None
                assert attribute not in CALLS or allowed, (path, attribute)  # re.compile


# ---- what is said ----------------------------------------------------------------------------------------

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def test_no_terminal_obeys_a_name(shell: Shell, tmp_path: Path) -> None:
    """A name that clears the screen, moves the cursor, turns the text round, or is rich's own markup."""
    evil = ["\x1b[2J\x1b[31mred", "new\nline\r", "bell\x07", "\u202etxt.exe", "[bold]b[/bold][/x]", "\udcff"]  # fmt: skip
    store_as(shell, *evil)
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("query", "object", "N1"),
        ("query", "occupancy"),
        ("check",),
        ("get", "N1", *evil, "--to", tmp_path / "to"),
        ("get", "N1", *evil, "--to", tmp_path / "to"),
        ("get", "N1", "\x1b[31mnot there"),
    )
    for command in commands:
        said = shell(*command, code=None)
        assert not CONTROL.search(said.out + said.err), (command, said)
    assert "[bold]b[/bold]" in shell("query", "object", "N1").out


def test_a_client_s_bytes_are_never_said(
    small: SmallSite, caplog: pytest.LogCaptureFixture
) -> None:
    """The only secrets that fanout holds are clients' bytes; errors and logs about them give digests and places."""
    secret = b"PASSWORD=correct horse battery staple " * 100
    with caplog.at_level(logging.DEBUG):
        with small.open() as store:
            put(small, store, {b"A": secret})
        for path in small.base.glob("*.vol"):
            data = bytearray(path.read_bytes())
            at = data.find(b"PASSWORD")
            while at >= 0:
                data[at : at + 8] = b"passw0rd"
                at = data.find(b"PASSWORD", at)
            path.write_bytes(data)
        said = ""
        with small.open() as store:
            try:
                store.get("N1", b"A").read()
            except FanoutError as error:
                said = f"{error!r} {error} {error.__cause__!r}"
                assert isinstance(error, IntegrityError)  # noqa: PT017
    assert "expected" in said
    for words in ("battery", "passw0rd", "PASSWORD"):
        assert words not in said + caplog.text
