"""What is shipped is whole; what an installation lacks is named in one line, as Debian calls it, before the compiler says it in a hundred."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALL = "gcc libc6-dev python3-dev liburing-dev libxxhash-dev"


@pytest.mark.parametrize(
    ("compiler", "packages"),
    [
        ("#!/nowhere", ALL),
        ("#!/bin/sh\ngrep -Eq 'uring|xxhash' && exit 1\nexit 0\n", "liburing-dev libxxhash-dev"),
        ("#!/bin/sh\ngrep -q Python && exit 1\nexit 0\n", "python3-dev"),
    ],
    ids=["no compiler", "no headers", "no Python.h"],
)
def test_what_is_missing_is_named(tmp_path: Path, compiler: str, packages: str) -> None:
    cc = tmp_path / "cc"
    cc.write_text(compiler, encoding="utf-8")
    cc.chmod(0o755)
    command = [
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        str(tmp_path),
        "--build-temp",
        str(tmp_path),
    ]
    built = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "CC": str(cc)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 1
    assert f"install the packages: {packages} (Debian" in built.stderr
    assert "Traceback" not in built.stderr


def test_a_source_archive_is_whole(tmp_path: Path) -> None:
    """Whoever unpacks one can run `make test`, and follow every link of the pages; nothing that was built lies in it."""
    known = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if known.returncode:
        pytest.skip("not a checkout")
    command = ["setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)
    listed = (tmp_path / "fanout.egg-info/SOURCES.txt").read_text(encoding="utf-8").splitlines()
    shipped = {one for one in listed if ".egg-info/" not in one}
    assert {one for one in known.stdout.split("\0") if one} - shipped == {".ci/run", ".gitignore"}
    assert [one for one in shipped if one.startswith("csrc/build")] == []
