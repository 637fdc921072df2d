"""A volume whose file lies on another kind of file system than before: a disk that is not mounted, or one that was exchanged."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from fanout import Store, check_store, retire_volume
from fanout.errors import VolumeError
from tests.faults import kernel

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
[store]
catalog = "catalog.db"
[device_classes.disk]
type = "disk"
[pools.DISKPOOL]
type = "primary"
device_class = "disk"
volumes = [{ path = "disk.vol", size = "8 MiB" }]
copy_pools = ["COPYPOOL1"]
[pools.COPYPOOL1]
type = "copy"
device_class = "disk"
volumes = [{ path = "disk/copy.vol", size = "8 MiB" }]
[domains.NORMAL]
destination = "DISKPOOL"
[nodes.N1]
domain = "NORMAL"
"""


@pytest.mark.root
def test_it_is_left_out_until_somebody_says_that_it_was_moved(tmp_path: Path) -> None:
    """Refused for ever, it could be given up only; taken as it is, what lies below an unmounted directory would be written."""
    config, disk = tmp_path / "fanout.toml", tmp_path / "disk"
    config.write_text(CONFIG)
    disk.mkdir()
    Store.create(config)
    put(config, "before")
    data = (disk / "copy.vol").read_bytes()
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", disk], capture_output=True, text=True, check=True
    )
    other = "ramfs" if kind.stdout.strip() == "tmpfs" else "tmpfs"
    subprocess.run(["mount", "-t", other, "none", disk], check=True)
    try:
        (disk / "copy.vol").write_bytes(data)
        (disk / "copy.vol").chmod(0o600)
        with Store.open(config) as store:
            (volume,) = (v for v in store.query_volumes() if v.pool == "COPYPOOL1")
            assert "moved = true in [pools.COPYPOOL1]" in (volume.reason or "")
        assert len(check_store(config).problems) == 1
        config.write_text(CONFIG.replace('type = "copy"', 'type = "copy"\nmoved = true'))
        assert check_store(config).problems == ()
        with pytest.raises(VolumeError, match="it is well"):
            retire_volume(config, disk / "copy.vol")
        put(config, "moved")
        config.write_text(CONFIG)  # it is at home here now
        put(config, "after")
        assert check_store(config).problems == ()
    finally:
        kernel.unmount(disk)


def put(config: Path, name: str) -> None:
    """An object that both pools get."""
    with Store.open(config) as store, store.session("N1") as session:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put(name, b"x" * 100_000)
        assert session.receipt is not None
        assert session.receipt.gaps == ()
        assert store.get("N1", name, pool="COPYPOOL1").read() == b"x" * 100_000
