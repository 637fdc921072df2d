"""``fanout check`` and ``fanout rebuild catalog`` through the shell.

What could break: an exit code that says "fine", a catalog that is replaced without a word, a line that cannot be printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fanout import format as fmt
from fanout.cli.exits import Exit

if TYPE_CHECKING:
    from tests.cli.conftest import Shell


@pytest.fixture
def stored(shell: Shell, tmp_path: Path) -> Path:
    """A file that is stored in every pool."""
    path = tmp_path / "client"
    path.mkdir()
    (path / "one").write_bytes(b"0123456789" * 10_000)
    shell("put", "N1", path)
    return path / "one"


def volume(shell: Shell, pool: str) -> Path:
    """The file of a pool's volume."""
    found = shell("query", "volume", "--json").json["volumes"]
    return next(Path(one["path"]) for one in found if one["pool"] == pool)


def test_all_is_well(shell: Shell, stored: Path) -> None:
    """Exit code 0, figures, nothing else."""
    said = shell("check", "--json").json
    assert (said["ok"], said["problems"], said["data"]) == (True, [], True)
    assert said["bytes"] > stored.stat().st_size
    assert "Nothing is wrong" in shell("check", "--no-data").out


def test_damage_is_told(shell: Shell, stored: Path) -> None:
    """Exit code 9, the pool, the file, the object."""
    path = volume(shell, "COPYPOOL1")
    data = bytearray(path.read_bytes())
    at = data.find(stored.read_bytes())
    data[at + 50_000] ^= 0xFF
    path.write_bytes(data)
    shell("check", "--no-data")
    said = shell("check", "--json", code=Exit.INTEGRITY).json
    (problem,) = said["problems"]
    assert (problem["pool"], problem["path"]) == ("COPYPOOL1", str(path))
    assert problem["object"].endswith("one")
    shown = shell("check", code=Exit.INTEGRITY)
    assert (
        "wrong: COPYPOOL1:" in shown.out
    )  # what is wrong and its mend stay together, in a log too
    assert "mend: " in shown.out
    assert problem["mend"][:20] in shown.out


def test_rebuild(shell: Shell, stored: Path) -> None:
    """Refused without a word from the operator; then the old one is kept, and everything is as before."""
    before = shell("query", "object", "N1", "--json").json
    shell("rebuild", "catalog", code=Exit.REFUSED)
    said = shell("rebuild", "catalog", "--force", "--json").json
    assert said["ok"]
    assert said["kept"].startswith(said["catalog"])
    assert shell("query", "object", "N1", "--json").json == before
    shell("check")
    assert "is kept as" in shell("rebuild", "catalog", "--force").out


def test_rebuild_beside_a_volume_that_was_given_up(shell: Shell, stored: Path) -> None:
    """It is named and left aside, and taken in only on request."""
    path = volume(shell, "COPYPOOL2")
    shell("retire", "volume", path, "--force", code=Exit.GAPS)
    shell("put", "N1", stored, code=Exit.DEGRADED)  # opens the store: the other volumes are told
    said = shell("rebuild", "catalog", "--force", "--json", code=Exit.GAPS).json
    (aside,) = said["retired"]
    assert (aside["pool"], aside["path"], said["skipped"]) == ("COPYPOOL2", str(path), [])
    shown = shell("rebuild", "catalog", "--force", code=Exit.GAPS)
    assert f"left aside: COPYPOOL2: {path}" in shown.err
    assert "--take-retired" in shown.err
    said = shell("rebuild", "catalog", "--force", "--take-retired", "--json", code=Exit.GAPS).json
    assert said["retired"] == []
    assert str(path) in said["volumes"]


def test_rebuild_without_a_volume(shell: Shell, stored: Path) -> None:
    """Exit code 12, the volume by name, the gap."""
    path = volume(shell, "COPYPOOL2")
    path.write_bytes(bytes(fmt.BLOCK))
    shown = shell("rebuild", "catalog", "--force", code=Exit.TARGET)
    assert "took no part: COPYPOOL2" in shown.err
    assert "only away?" in shown.out
    assert "query gap" in shown.err
    assert shell("query", "gap", "--json", code=Exit.GAPS).json["gaps"][0]["pool"] == "COPYPOOL2"
    shell("get", "N1", stored, "-o", "-")
