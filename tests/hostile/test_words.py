"""What an operator or a script writes: `fanout.toml` and the command line, as nobody should write them.

What could break: an error without file, key and what is allowed; a traceback; an end that never comes; a terminal that obeys a name.
"""

from __future__ import annotations

import os
import re
import threading
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from fanout import config as cfg
from fanout import tables
from fanout.cli import main
from fanout.errors import ConfigError
from tests.cli.conftest import Shell, describe
from tests.test_config import GOOD

if TYPE_CHECKING:
    import random
    from pathlib import Path

LIMIT = 10.0  # seconds for a file of 1 MiB

# ---- fanout.toml ---------------------------------------------------------------------------------------

TOKENS = re.compile(r'"[^"]*"|[\w.+-]+|\S')
WORDS = (
    *('"', "'", '"""', "[", "]", "[[", "]]", "{", "}", "=", ",", ".", "#", "\n", "\r", "\0", "\t"),
    *("true", "inf", "-inf", "nan", "1e400", "-1", "0", "0x7fffffffffffffff", "9" * 25, "9" * 5000),
    *("0x" + "f" * 5000, "1979-05-27T07:32:00Z", "07:32:00", "[1, 2]", "{ a = 1 }", '"8 EiB"'),
    *('""', '"\\u0000"', '"\\ud800"', '"../../x"', '"/"', '"' + "x" * 5000 + '"', '"1e3 s"', '"-1 B"'),
    *('"9999999999999999999 PiB"', '"0.000000001 B"', '"DISKPOOL"', "[store]", "[pools.DISKPOOL]"),
    *("[[pools]]", '[pools."a b"]', '[nodes."\x1b[31m"]', "a.b.c = 1", '"\\u202e"', "é"),
)  # fmt: skip


def mutated(rng: random.Random) -> str:
    """The good file with some of its words replaced, doubled, swapped or dropped."""
    words = [(match.start(), match.end()) for match in TOKENS.finditer(GOOD)]
    text, shift = GOOD, 0
    for start, end in sorted(rng.sample(words, rng.choice((1, 1, 2, 4)))):
        old = text[start + shift : end + shift]
        other = GOOD[slice(*rng.choice(words))]
        new = rng.choice((rng.choice(WORDS), rng.choice(WORDS), other, "", old + old))
        text = text[: start + shift] + new + text[end + shift :]
        shift += len(new) - len(old)
    return text


def parsed(text: str) -> None:
    """A configuration, or an error that names the file."""
    try:
        cfg.parse(text, path="/etc/fanout.toml")
    except ConfigError as error:
        said = str(error)
    else:
        return
    assert said.startswith("/etc/fanout.toml: ")
    assert len(said) < 20_000


def test_mutated_files(rng: random.Random) -> None:
    for _ in range(1500):
        parsed(mutated(rng))


def test_every_word_replaced_by_every_other() -> None:
    """Of a value: right of an equals sign, where types and ranges are checked."""
    values = list(re.finditer(r"(?<== )\S.*", GOOD))
    for match in values:
        for word in WORDS:
            parsed(GOOD[: match.start()] + word + GOOD[match.end() :])


def test_cut_anywhere() -> None:
    for length in range(0, len(GOOD), 3):
        parsed(GOOD[:length])


LARGE = {
    "a chain of pools": "".join(
        f'[pools.p{n}]\ntype="primary"\ndevice_class="seq"\nnext="p{n + 1}"\n' for n in range(14_000)
    )
    + '[pools.p14000]\ntype="primary"\ndevice_class="seq"\nnext="DISKPOOL"\n',
    "a list of names": '[pools.x]\ntype="primary"\ndevice_class="seq"\ncopy_pools=['
    + ",".join(f'"{n}"' for n in range(110_000))
    + "]\n",
    "nested tables": "a=" + "{a=" * 100_000,
    "nested lists": "a=" + "[" * 200_000,
    "a long key": "k" * 900_000 + "=1\n",
    "many keys": "\n".join(f"k{n}=1" for n in range(80_000)),
    "many volumes": '[pools.x]\ntype="primary"\ndevice_class="disk"\nvolumes=['
    + ",".join(f'{{path="v{n}"}}' for n in range(20_000))
    + "]\n",
}  # fmt: skip


@pytest.mark.parametrize("what", LARGE)
def test_a_large_file_is_read_in_time(what: str) -> None:
    """Nothing takes the square, or the cube, of what a file of 1 MiB can hold."""
    text = GOOD + LARGE[what]
    assert len(text) < tables.MAX_FILE
    began = time.monotonic()
    parsed(text)
    assert time.monotonic() - began < LIMIT


def test_a_file_without_end(tmp_path: Path) -> None:
    """A device, and a file that is too large: a bounded part is read, and then it is refused."""
    with pytest.raises(ConfigError, match="larger than"):
        cfg.load("/dev/zero")
    large = tmp_path / "fanout.toml"
    large.write_bytes(b"#" * (tables.MAX_FILE + 1))
    with pytest.raises(ConfigError, match=re.escape(str(large))):
        cfg.load(large)
    large.write_bytes(GOOD.encode() + b"#\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        cfg.load(large)


def test_a_pipe_is_a_file(tmp_path: Path) -> None:
    """As a shell's <(…) makes one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(GOOD,))
    writer.start()
    assert cfg.load(pipe).node("N1").name == "N1"
    writer.join()


# ---- the command line ------------------------------------------------------------------------------------

COMMANDS = (
    *(("query", "stgpool"), ("query", "volume"), ("query", "object"), ("query", "occupancy")),
    *(("query", "gap"), ("get",), ("put",), ("check",), ("rebuild", "catalog"), ("init",)),
    *(("backup", "stgpool"), ("copy", "activedata"), ("doctor",), ("tee",), ("nothing",), ()),
)  # fmt: skip
OPTIONS = (
    *("--json", "--pool", "--node", "--names", "--all", "--version", "--to", "--output", "--as"),
    *("--group", "--size", "--spool", "--once", "--kind", "--preview", "--no-data", "--primary"),
    *("--config", "--debug", "-h", "--", "-", "--backend", "--write-once", "--add", "--nothing"),
)  # fmt: skip
ARGUMENTS = (
    *("N1", "n1", "N2", "DISKPOOL", "COPYPOOL1", "ACTIVEDATAPOOL", "tree", "tree/f0", "..", ".", "/"),
    *("", " ", "\udcff\udcfe", "\x1b[2J\x07", "a" * 300, "a" * 5000, "-1", "0", "1", "9" * 30, "9" * 5000),
    *("1e9", "nan", "64 KiB", "9999999999 PiB", "٣", "/dev/null", "/dev/zero", "[bold]x[/]", "%s%n", "a\nb"),
)  # fmt: skip
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")


def line(rng: random.Random) -> list[str]:
    """A command line. Never one that writes outside of the directory, or reads without end."""
    words = list(rng.choice(COMMANDS))
    for _ in range(rng.randrange(6)):
        words.append(rng.choice(OPTIONS) if rng.random() < 0.4 else rng.choice(ARGUMENTS))
    endless = {"/dev/zero", "/", "..", ".", "/dev/null"}
    if words and words[0] in {"put", "tee", "init", "get"}:
        words = [word for word in words if word not in endless]
    return words


def test_command_lines(tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one ends by itself, with an exit code that docs/cli.md has, and says nothing a terminal obeys."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f0").write_bytes(b"x" * 5000)
    shell = Shell(describe(tmp_path))
    shell("init")
    shell("put", "N1", "tree")
    codes: set[int] = set()
    for _ in range(120):
        words = line(rng)
        runner = CliRunner(env={"FANOUT_CONFIG": str(shell.config), "COLUMNS": "80"})
        result = runner.invoke(main, words, input=b"standard input")
        assert result.exit_code not in (1, -1), (words, result.output, result.exception)
        assert "Traceback" not in result.output or "--debug" in words
        if (
            result.exit_code != 2
        ):  # click repeats the words of a wrong line; they are the user's own
            assert not CONTROL.search(result.output), (words, result.output)
        codes.add(result.exit_code)
    assert {0, 2} < codes


def test_sizes_are_bounded(tmp_path: Path) -> None:
    """Numbers that no machine has are refused in words, whichever option takes them."""
    shell = Shell(describe(tmp_path))
    shell("init")
    for arguments in (
        ("get", "N1", "x", "--version", "9" * 30),
        ("put", "N1", "-", "--as", "x", "--once", "--size", "9" * 30),
        ("put", "N1", "-", "--as", "x", "--spool", "9999999 PiB"),
        ("put", "N1", "-", "--as", "", "--once"),
        ("put", "N1", "-", "--as", "x" * 1025, "--once"),
    ):
        said = shell(*arguments, stdin=b"abc", code=None)
        assert said.code not in (1, 130), (arguments, said)
