"""What the documents show must work: the README's code, the configuration, every link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fanout

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
    report = home / "report.odt"
    report.write_bytes(b"report" * 1000)
    exec(code.replace("/home/ann/report.odt", str(report)), {})
    assert "copied_objects=0" in capsys.readouterr().out
    with fanout.Store.open("fanout.toml", read_only=True) as store:
        for pool in ("DISKPOOL", "COPYPOOL1", "ACTIVEDATAPOOL"):
            assert store.get("N1", "home/report.odt", pool=pool).read() == report.read_bytes()


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
    code = code.replace('"/dev/sdb"', repr(str(tmp_path / "c")))
    exec(code, {"fanout": fanout})
    assert capsys.readouterr().out.count("ok") == 3
    assert all((tmp_path / name).read_bytes() == b"x" * 100_000 for name in "abc")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Links between the pages, and to files of the project."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [one for one in targets if "://" not in one and not (page.parent / one).exists()]
    assert missing == []
