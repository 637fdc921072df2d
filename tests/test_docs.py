"""What the documents show must work: the README's code, the configuration, every link."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import fanout
from fanout.cli import main
from fanout.config import parse
from fanout.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page."""
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [str(block) for block in found]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the store that docs/cli.md describes, on files and smaller."""
    (text,) = blocks(ROOT / "docs/cli.md", "toml")
    text = text.replace('{ path = "/dev/sdb" }', '{ path = "disk1.vol", size = "16 MiB" }')
    text = re.sub(r'size = "\d+ [MG]iB"( |\n)', r'size = "16 MiB"\1', text)
    (tmp_path / "fanout.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_code_of_the_readme(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It stores two objects and closes no gap, because there is none."""
    fanout.Store.create("fanout.toml")
    code = blocks(ROOT / "README.md", "python")[0]
    assert len(code.splitlines()) <= 15
    exec(code, {})
    assert "copied_objects=0" in capsys.readouterr().out
    with fanout.Store.open("fanout.toml", read_only=True) as store:
        for pool in ("DISKPOOL", "COPYPOOL1", "ACTIVEDATAPOOL"):
            stored = store.get("N1", "store/fanout.toml", pool=pool).read()
            assert stored == (home / "fanout.toml").read_bytes()


def test_the_smallest_store_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stranger copies the file, the commands and the code, in this order, and nothing else is needed."""
    monkeypatch.chdir(tmp_path)
    (text,) = blocks(ROOT / "README.md", "toml")
    (tmp_path / "fanout.toml").write_text(text, encoding="utf-8")
    commands = [
        shlex.split(line, comments=True)
        for line in blocks(ROOT / "README.md", "sh")[1].splitlines()
    ]
    assert len(commands) == 5
    for program, *arguments in commands:
        assert program == "fanout"
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "restored/fanout.toml").read_text(encoding="utf-8") == text
    code = blocks(ROOT / "README.md", "python")[0]
    exec(code, {})
    assert "gaps_left=0" in capsys.readouterr().out


def test_the_first_screen_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown there is what is seen: every line, but for times, and the exit codes that are named."""
    monkeypatch.chdir(tmp_path)
    (text,) = blocks(ROOT / "README.md", "toml")
    (tmp_path / "fanout.toml").write_text(text, encoding="utf-8")
    fanout.Store.create("fanout.toml")
    (tmp_path / "mail").mkdir()
    for name in "abc":
        (tmp_path / "mail" / name).write_bytes(b"mail" * 102_400)
    (tmp_path / "copy.vol").rename(tmp_path / "away")
    (screen,) = blocks(ROOT / "README.md", "console")
    steps = re.split(r"(?m)^\$ fanout ", screen)[1:]
    assert len(steps) == 4
    for step in steps:
        line, *shown = step.splitlines()
        command, _, comment = line.partition("#")
        if "mounted again" in comment:
            (tmp_path / "away").rename(tmp_path / "copy.vol")
        result = CliRunner(env={"COLUMNS": "100"}).invoke(main, shlex.split(command))
        code = re.search(r"exit code (\d+)", comment)
        assert result.exit_code == (int(code[1]) if code else 0), result.output
        said = [untimed(one) for one in result.output.splitlines()]
        for one in shown:
            start = untimed(one.removesuffix("…"))
            assert any(told.startswith(start) for told in said), (one, result.output)


def untimed(line: str) -> str:
    line = re.sub(r"\d+ m?s\b.*", "TIME", line)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "MOMENT", line).rstrip()


def test_the_code_for_a_daemon(tmp_path: Path) -> None:
    """Every block, one after the other as on the page, beside the small store, with everything that Python can warn of."""
    (text,) = blocks(ROOT / "README.md", "toml")
    (tmp_path / "fanout.toml").write_text(text, encoding="utf-8")
    fanout.Store.create(tmp_path / "fanout.toml")
    code = blocks(ROOT / "docs/embedding.md", "python")
    assert len(code) >= 7
    run = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", "\n".join(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    assert "Exception" not in run.stderr
    assert "gaps_left=0" in run.stdout
    sizes = {name: (tmp_path / f"{name}.img").stat().st_size for name in "abcd"}
    assert sizes == {"a": 100_000, "b": 100_000, "c": 140_000, "d": 140_000}
    checked = fanout.check_store(tmp_path / "fanout.toml")
    assert (checked.problems, checked.objects) == ((), 7)
    assert "b'stored\\n'" in run.stdout


def keys_shown(text: str) -> dict[str, set[str]]:
    """The keys of each kind of table in a configuration."""
    shown: dict[str, set[str]] = {}
    for section, table in tomllib.loads(text).items():
        named = section in {"device_classes", "pools", "domains", "nodes"}
        for each in table.values() if named else [table]:
            shown.setdefault(section, set()).update(each)
    return shown


@pytest.mark.parametrize(
    "table",
    ["store", "engine", "device_classes.seq", "pools.DISKPOOL", "domains.NORMAL", "nodes.N2"],
)
def test_the_complete_configuration_shows_every_key(table: str) -> None:
    """A key that stands nowhere is found by reading the source, or not at all."""
    (text,) = blocks(ROOT / "docs/cli.md", "toml")
    parse(text, path="fanout.toml")
    wrong = re.sub(rf"(?m)^\[{re.escape(table)}\].*$", r"\g<0>\nunknown = 1", text)
    with pytest.raises(ConfigError, match=r"allowed here: .*\)") as caught:
        parse(wrong, path="fanout.toml")
    allowed = str(caught.value).rsplit("allowed here: ", 1)[1].rstrip(")").split(", ")
    assert set(allowed) == keys_shown(text)[table.split(".", maxsplit=1)[0]]


def test_the_tee_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, an outcome for each target."""
    code = blocks(ROOT / "README.md", "python")[1]
    (tmp_path / "disk.img").write_bytes(b"x" * 100_000)
    for name, path in {
        "disk.img": "disk.img",
        "/mnt/a/disk.img": "a",
        "/mnt/b/disk.img": "b",
    }.items():
        code = code.replace(f'"{name}"', repr(str(tmp_path / path)))
    exec(code, {"fanout": fanout})
    assert capsys.readouterr().out.count("ok") == 2
    assert all((tmp_path / name).read_bytes() == b"x" * 100_000 for name in "ab")


def commands_named(text: str) -> list[list[str]]:
    """Every ``fanout ...`` of shell blocks and in quotes."""
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S))
    lines = re.findall(r"(?m)^(?:.*\| )?fanout (.*)$", shell)
    quoted = re.findall(r"[`']fanout ([^`'\"\n{}…]+)[`']", text)
    return [shlex.split(line, comments=True) for line in (*lines, *quoted)]


def unknown_in(words: list[str]) -> str:
    """What of a command line there is not: a command, or an option of it."""
    command: click.Command = main
    options: set[str] = set()
    for word in words:
        options |= {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        if word.startswith("-") and word not in {*options, "-", "-h", "--help"}:
            return f"{command.name} {word}"
        if isinstance(command, click.Group) and not word.startswith("-") and word != "COMMAND":
            # Several in one breath: `query stgpool|volume`; and a text that ends with the group.
            group = command
            found = [group.get_command(click.Context(group), name) for name in word.split("|")]
            command = found[-1] or command
            if None in found:
                return word
    return ""


@pytest.mark.parametrize(
    "file",
    [*PAGES, *sorted((ROOT / "fanout").rglob("*.py"))],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_commands_that_are_named_exist(file: Path) -> None:
    """A mend that cannot be typed is none: every command and option in pages, messages and helps."""
    wrong = [unknown_in(words) for words in commands_named(file.read_text(encoding="utf-8"))]
    assert [one for one in wrong if one] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Links between the pages, and to files of the project."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [one for one in targets if "://" not in one and not (page.parent / one).exists()]
    assert missing == []
