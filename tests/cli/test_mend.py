"""``fanout audit``, ``retire`` and ``restore`` through the shell: from damage to a gap to none.

What could break: an exit code that says "fine" while something is damaged, and a gap that names a command that does not close it.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from fanout.check import check_store
from fanout.cli.exits import Exit
from tests.cli.conftest import describe
from tests.cli.test_verify import volume

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Shell


@pytest.fixture
def stored(shell: Shell, tmp_path: Path) -> bytes:
    """The bytes of an object that is stored in every pool."""
    path = tmp_path / "one"
    path.write_bytes(b"0123456789" * 10_000)
    shell("put", "N1", path, "--as", "one")
    return path.read_bytes()


def flip(path: Path, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[content.find(data) + 50_000] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("pool", ["DISKPOOL", "COPYPOOL1", "ACTIVEDATAPOOL"])
def test_from_damage_to_a_gap_to_none(shell: Shell, stored: bytes, pool: str) -> None:
    """9 while damage is left, 7 when it is a gap, 0 when the command that the gap names has closed it."""
    said = shell("audit", "stgpool", pool.lower(), "--json").json
    assert (said["ok"], said["pool"], said["objects"], said["bytes"]) == (True, pool, 1, 100_000)
    flip(volume(shell, pool), stored)
    shown = shell("audit", "stgpool", pool, code=Exit.INTEGRITY)
    assert "damaged: one" in shown.err
    assert "--fix" in shown.out
    said = shell("audit", "stgpool", pool, "--fix", "--json", code=Exit.GAPS).json
    assert (said["ok"], said["marked"], said["unasked"]) == (False, 1, [])
    (gap,) = shell("query", "gap", "--json", code=Exit.GAPS).json["gaps"]
    assert (gap["pool"], gap["objects"]) == (pool, 1)
    program, *command = gap["mend"].split()
    assert program == "fanout"
    assert shell(*command, "--json").json["copied_objects"] == 1
    shell("query", "gap")
    assert "Nothing is wrong" in shell("audit", "stgpool", pool, "--fix").out
    assert "Nothing is wrong" in shell("check").out
    assert shell("get", "N1", "one", "--pool", pool, "--output", "-").out.encode() == stored


def test_a_lost_volume(shell: Shell, stored: bytes) -> None:
    """Refused while it is well; then 7, a new volume at the same path, and the primary is restored."""
    path = volume(shell, "DISKPOOL")
    assert "well" in shell("retire", "volume", path, code=Exit.TARGET).err
    path.unlink()
    said = shell("retire", "volume", path, "--json", code=Exit.GAPS).json
    assert (said["pool"], said["objects"], said["lost"]) == ("DISKPOOL", 1, [])
    assert "knows no volume" in shell("retire", "volume", path, code=Exit.TARGET).err
    shell("init", "--add")
    preview = shell("restore", "stgpool", "diskpool", "--preview", code=Exit.GAPS)
    assert "lacks 1 object" in preview.out
    assert "copied to DISKPOOL" in shell("restore", "stgpool", "diskpool").out
    assert "lacks nothing" in shell("restore", "stgpool", "diskpool").out
    shell("check")


def test_where_the_next_volume_comes_from(shell: Shell, stored: bytes) -> None:
    """Breaks if somebody is told to type what makes no volume."""
    path = volume(shell, "COPYPOOL1")
    shell.config.write_text(shell.config.read_text().replace(path.name, "another.vol"))
    said = shell("retire", "volume", path, "--force", code=Exit.GAPS).out
    assert "Name another volume of COPYPOOL1 in fanout.toml" in said
    path = volume(shell, "TAPEPOOL")
    assert "TAPEPOOL makes its next volume itself" in shell("retire", "volume", path, "--force").out
    path = volume(shell, "COPYPOOL2")
    said = shell("retire", "volume", path, "--force", code=Exit.GAPS).out
    assert "'fanout init --add' makes a new volume there" in " ".join(said.split())


def test_the_last_copy(shell: Shell, stored: bytes) -> None:
    """9, and the object by name, when the last pool that held it is given up."""
    codes = {"COPYPOOL1": Exit.GAPS, "COPYPOOL2": Exit.GAPS, "ACTIVEDATAPOOL": Exit.GAPS}
    for pool, code in codes.items():
        shell("retire", "volume", volume(shell, pool), "--force", code=code)
    shown = shell("retire", "volume", volume(shell, "DISKPOOL"), "--force", code=Exit.INTEGRITY)
    assert "in no pool any more: one" in shown.err
    assert "in no pool: lost" in shell("query", "object", "N1").out
    assert "fanout delete NODE NAME --version V" in " ".join(
        shell("check", code=Exit.INTEGRITY).out.split()
    )
    (lost,) = shell("query", "object", "N1", "--json").json["objects"]
    shell("delete", "N1", "one", "--version", str(lost["version"]))
    shell("query", "gap")


def test_advice_names_the_store_that_was_named(shell: Shell, tmp_path: Path) -> None:
    """Breaks if what an error tells to type, typed as it stands, works on another store: that of ./fanout.toml, or of FANOUT_CONFIG."""
    mine = tmp_path / "its own place" / "the store.toml"
    mine.parent.mkdir()
    describe(mine.parent).rename(mine)
    where = ("-c", mine)
    typed = f"-c {shlex.quote(str(mine))}"

    def close(text: str) -> None:
        """Type every line that closes a gap."""
        lines = [line for line in text.splitlines() if line.startswith("close it: ")]
        assert lines
        for line in lines:
            program, *arguments = shlex.split(line.removeprefix("close it: "))
            assert program == "fanout"
            shell(*arguments)

    shell("init", *where)
    shell("put", "N1", "-", "--as", "one", "--spool", "1MiB", *where, stdin=b"x" * 10_000)
    copy = mine.parent / "copypool1.vol"
    copy.unlink()
    away = shell("query", "gap", *where, code=Exit.TARGET).err
    assert f"fanout retire volume {typed} {shlex.quote(str(copy))}" in away
    checked = shell("check", "--json", *where, code=Exit.INTEGRITY).json
    assert any(f"'fanout retire volume {typed} " in one["mend"] for one in checked["problems"])
    gone = shell("retire", "volume", copy, *where, code=Exit.GAPS).out
    assert f"'fanout init {typed} --add'" in gone
    assert f"'fanout query gap {typed}'" in gone
    shell("init", "--add", *where)
    close(shell("query", "gap", *where, code=Exit.GAPS).out)
    assert shell("query", "gap", *where, "--json").json["ok"]
    (mine.parent / "catalog.db").unlink()
    lost = shell("query", "stgpool", *where, code=Exit.CATALOG)
    assert f"'fanout rebuild catalog {typed}'" in lost.err
    assert "-c" not in shell("query", "object", "N1", "'fanout check'", code=Exit.NOT_FOUND).err


def test_a_volume_of_the_past_is_told_by_queries_too(shell: Shell, stored: bytes) -> None:
    """Breaks if a disk that was restored from yesterday is called well, and no gap is on record, until somebody writes."""
    volume = shell.config.parent / "copypool1.vol"
    past = volume.read_bytes()
    shell("put", "N1", "-", "--as", "two", "--spool", "1MiB", stdin=b"x" * 1000)
    shell("query", "gap")
    volume.write_bytes(past)
    said = shell("query", "gap", code=Exit.TARGET)
    assert "No gaps on record, and not every volume can be relied on" in said.out
    assert "copypool1.vol is not current: is of epoch" in said.err
    (one,) = shell("query", "gap", "--json", code=Exit.TARGET).json["unreadable"]
    assert (one["path"], one["pool"]) == (str(volume), "COPYPOOL1")
    assert "was restored from the past" in shell("query", "volume").out
    copy = shell.config.parent / "copy"
    shell("get", "N1", "one", "--pool", "COPYPOOL1", "-o", copy)  # what it has is good
    assert copy.read_bytes() == stored


def test_two_paths_that_lead_to_one_file(
    shell: Shell, stored: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if the second one is called locked by another process, which nobody could ever end: it is ourselves."""
    assert stored
    defaults = check_store.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "lock_wait", 0.1)  # it would not come
    one, other = (shell.config.parent / f"copypool{n}.vol" for n in (1, 2))
    other.unlink()
    other.hardlink_to(one)
    found = shell("check", code=Exit.INTEGRITY).out
    assert "are paths or devices swapped?" in " ".join(found.split())
    other.unlink()
    other.symlink_to(one)
    found = shell("check", code=Exit.INTEGRITY).out
    assert "is a symbolic link to a file" in " ".join(found.split())


def test_volumes_that_changed_places_between_pools(shell: Shell, stored: bytes) -> None:
    """Breaks if advice is given that takes nothing in: each is to be named in its own pool."""
    assert stored
    one, other = (shell.config.parent / name for name in ("copypool1.vol", "diskpool.vol"))
    away = one.with_name("away")
    one.rename(away)
    other.rename(one)
    away.rename(other)
    told = shell("retire", "volume", one, code=Exit.TARGET).err
    assert f"the volume lies at {other}: that does not make it lost" in told
    told = shell("rebuild", "catalog", "--force", code=None).err
    assert "is of pool DISKPOOL: name it there, not in pool COPYPOOL1" in told
    told = shell("query", "gap", code=None).err
    assert "copypool1.vol of pool COPYPOOL1 is not used: it is a volume of pool DISKPOOL" in told
    text = shell.config.read_text()
    for name, new in (
        ("copypool1.vol", "X"),
        ("diskpool.vol", "copypool1.vol"),
        ("X", "diskpool.vol"),
    ):
        text = text.replace(name, new)
    text = text.replace('"diskpool.vol", size = "32', '"diskpool.vol", size = "16')
    text = text.replace('"copypool1.vol", size = "16', '"copypool1.vol", size = "32')
    shell.config.write_text(text)
    shell("rebuild", "catalog", "--force")
    shell("check")
