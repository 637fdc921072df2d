"""A small store, and the command line run as a person would: in this process, or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from fanout.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MIB = 1 << 20

CONFIG = """
[store]
catalog = "catalog.db"
[device_classes.disk]
type = "disk"
[device_classes.tape]
type = "file"
directory = "tapes"
volume_size = "8 MiB"
max_volumes = 4
[pools.DISKPOOL]
type = "primary"
device_class = "disk"
volumes = {DISKPOOL}
next = "TAPEPOOL"
copy_pools = ["COPYPOOL1", "COPYPOOL2"]
active_data_pools = ["ACTIVEDATAPOOL"]
copy_continue = {copy_continue}
[pools.TAPEPOOL]
type = "primary"
device_class = "tape"
[pools.COPYPOOL1]
type = "copy"
device_class = "disk"
volumes = {COPYPOOL1}
[pools.COPYPOOL2]
type = "copy"
device_class = "disk"
volumes = {COPYPOOL2}
[pools.ACTIVEDATAPOOL]
type = "active-data"
device_class = "disk"
volumes = {ACTIVEDATAPOOL}
[domains.FASTRESTORE]
destination = "DISKPOOL"
active_destinations = ["ACTIVEDATAPOOL"]
[domains.NORMAL]
destination = "DISKPOOL"
[nodes.N1]
domain = "FASTRESTORE"
[nodes.N2]
domain = "NORMAL"
"""


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """Runs commands against one configuration."""

    config: Path

    def __call__(self, *arguments: str | Path, stdin: bytes = b"", code: int | None = 0) -> Said:
        """Run in this process; fails the test when the exit code is another one (None: any)."""
        runner = CliRunner(env={"FANOUT_CONFIG": str(self.config), "COLUMNS": "80"})
        result = runner.invoke(main, [str(one) for one in arguments], input=stdin)
        said = Said(result.exit_code, result.stdout, result.stderr)
        assert code is None or said.code == code, said
        assert "Traceback" not in said.err
        return said

    def process(
        self,
        *arguments: str | Path,
        stdin: bytes = b"",
        code: int | None = 0,
        before: Callable[[], None] | None = None,
    ) -> Said:
        """Run in a process of its own, as a shell does."""
        done = subprocess.run(
            [sys.executable, "-m", "fanout", *(str(one) for one in arguments)],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=120,
            env={**os.environ, "FANOUT_CONFIG": str(self.config), "COLUMNS": "80"},
            preexec_fn=before,
        )
        out = done.stdout.decode(errors="surrogateescape")
        said = Said(done.returncode, out, done.stderr.decode())
        assert code is None or said.code == code, said
        assert "Traceback" not in said.err
        return said


def describe(
    directory: Path,
    *,
    sizes: dict[str, str] | None = None,
    devices: dict[str, str] | None = None,
    copy_continue: bool = True,
) -> Path:
    """Write a fanout.toml.

    Args:
        directory: for it and the volumes.
        sizes: pool to the size of its one file.
        devices: pool to the block device that it stands on instead.
        copy_continue: of DISKPOOL.
    """
    wanted = {"DISKPOOL": "16 MiB", "COPYPOOL1": "32 MiB", "COPYPOOL2": "32 MiB"}
    wanted |= {"ACTIVEDATAPOOL": "16 MiB"} | (sizes or {})
    volumes = {
        pool: f'[{{ path = "{pool.lower()}.vol", size = "{size}" }}]'
        for pool, size in wanted.items()
    }
    volumes |= {pool: f'[{{ path = "{device}" }}]' for pool, device in (devices or {}).items()}
    path = directory / "fanout.toml"
    flag = "true" if copy_continue else "false"
    path.write_text(CONFIG.format(copy_continue=flag, **volumes), encoding="utf-8")
    return path


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A store that was just made."""
    made = Shell(describe(tmp_path))
    made("init")
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """Makes a directory of files with known content."""

    def make(name: str, sizes: Sequence[int]) -> Path:
        root = tmp_path / "input" / name
        root.mkdir(parents=True)
        for number, size in enumerate(sizes):
            (root / f"f{number}").write_bytes(os.urandom(size))
        return root

    return make
