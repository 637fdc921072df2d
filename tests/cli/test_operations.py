"""Type what docs/operations.md says, on a store that is broken in that way: an operator on the worst day has no other page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Shell

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def fanout(*words: str, code: int = 0) -> None:
    """Run a command in the directory of the store, and let it end with this code."""
    Shell(Path("fanout.toml"))(*words, code=code)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small store of the README, a little smaller, with two objects."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    (text,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (home / "fanout.toml").write_text(
        text.replace("256 MiB", "32 MiB", 1).replace("256 MiB", "16 MiB"), encoding="utf-8"
    )
    fanout("init")
    fanout("put", "N1", "fanout.toml")
    (home / "big").write_bytes(os.urandom(5 << 20))
    fanout("put", "N1", "big")
    return home


def lose(*patterns: str) -> None:
    for pattern in patterns:
        for path in Path.cwd().glob(pattern):
            path.unlink()


def away() -> None:
    """For as long as something is stored."""
    Path("copy.vol").rename("copy.away")
    fanout("query", "gap", code=12)
    fanout("put", "N1", "big", "--as", "more", code=3)
    Path("copy.away").rename("copy.vol")


def without_pool() -> None:
    """Somebody has edited the file, and puts it back."""
    before = Path("fanout.toml").read_text(encoding="utf-8")
    text = re.sub(r"(?s)\[pools\.COPYPOOL1\].*?(?=\n\[)", "", before)
    Path("fanout.toml").write_text(text.replace('"COPYPOOL1"', "").replace("copy_pools = []", ""))
    fanout("put", "N1", "big", "--as", "more")
    fanout("query", "gap", code=12)
    Path("fanout.toml").write_text(before, encoding="utf-8")
    fanout("get", "N1", "more", "--to", "meanwhile")


def too_old() -> None:
    fanout("backup", "catalog", "old")
    fanout("put", "N1", "big", "--as", "more")
    Path("old").replace("catalog.db")
    fanout("put", "N1", "big", code=11)


def moved() -> None:
    there = Path.cwd().with_name("elsewhere")
    shutil.copytree(Path.cwd(), there)
    lose("*")
    os.chdir(there)


def full() -> None:
    """The copy pool takes three of five MiB; the operator has edited fanout.toml."""
    for name, code in (("a", 0), ("b", 0), ("c", 3)):
        fanout("put", "N1", "big", "--as", name, code=code)
    path, one = Path("fanout.toml"), '{ path = "copy.vol", size = "16 MiB" }'
    path.write_text(path.read_text().replace(one, one + ', { path = "more.vol", size = "64 MiB" }'))


def lose_the_primary() -> None:
    """It is the only one: nothing can be stored, and all can be read."""
    lose("disk.vol")
    fanout("put", "N1", "big", "--as", "more", code=5)
    fanout("get", "N1", "big", "--to", "meanwhile")


def rot() -> None:
    """In the middle of what the second object has on the copy pool."""
    with open("copy.vol", "r+b") as file:
        data = file.read()
        file.seek(data.index(Path("big").read_bytes()[1 << 20 :][:4096]))
        file.write(b"\xa5" * 100)
    fanout("check", code=9)


def killed() -> None:
    code = "import os, fanout\ns = fanout.Store.open('fanout.toml').session('N1')\nt = s.begin()\nt.put('x', b'x' * 9_000_000)\nos._exit(1)"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )


BREAK: dict[str, Callable[[], None]] = {
    "First look": lambda: None,
    "A volume is away": away,
    "A pool is not in `fanout.toml` any more": without_pool,
    "A copy pool's disk is lost": lambda: lose("copy.vol"),
    "A primary pool's disk is lost": lose_the_primary,
    "The catalog is lost, damaged or too old": too_old,
    "The catalog and a volume are lost": lambda: lose("catalog.db*", "copy.vol"),
    "The machine is lost, or the store was moved": moved,
    "A pool is full": full,
    "The catalog's file system is full": lambda: None,
    "Bytes have rotted": rot,
    "The daemon was killed, or the power failed": killed,
}
# Their commands are of the system, or need a device of their own: `tests/cli/test_bad_days.py` has the one, `tests/store/test_hanging.py` another.
ELSEWHERE = {"A disk has gone read-only", "Another process has the store open", "A device hangs"}


def test_every_section_is_typed() -> None:
    assert set(SECTIONS) == BREAK.keys() | ELSEWHERE


@pytest.mark.parametrize("disaster", BREAK)
def test_what_is_typed_mends_it(store: Path, disaster: str) -> None:
    """Each line as it stands, with the exit code that stands behind it; then nothing is missing, and all can be read."""
    BREAK[disaster]()
    (block,) = re.findall(r"^```sh\n(.*?)^```", SECTIONS[disaster], re.M | re.S)
    for line in block.splitlines():
        said = re.search(r"# (\d+)$", line)
        program, *words = shlex.split(line, comments=True)
        assert program == "fanout"
        fanout(*words, code=int(said[1]) if said else 0)
    fanout("query", "gap")
    fanout("check")
    fanout("get", "N1", "big", "--to", "back")
    assert Path("back/big").read_bytes() == (Path.cwd() / "big").read_bytes()
