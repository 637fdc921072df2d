"""A name is as durable as what stands under it, whoever made the file.

What could break: a creation that was killed leaves a file whose name a loss of power would take back; the next one makes a volume of
it, the catalog hears of it, and after the loss of power there is nothing at its path.
"""

from __future__ import annotations

import os

import pytest

from fanout import Store, tee
from fanout.engine import Engine
from fanout.making import create_volume, probe

from .faultfs import FaultFS
from .needs import require

SIZE = 2 << 20
CONFIG = """
[store]
catalog = "state/fanout/catalog.db"
[engine]
memory = "32 MiB"
[device_classes.disk]
type = "disk"
[device_classes.seq]
type = "file"
directory = "media/tapes/first"
volume_size = "4 MiB"
max_volumes = 2
[pools.DISK]
type = "primary"
device_class = "disk"
volumes = [{ path = "media/disks/disk.vol", size = "4 MiB" }]
[pools.TAPE]
type = "primary"
device_class = "seq"
[domains.D]
destination = "DISK"
[nodes.N]
domain = "D"
"""


@pytest.mark.parametrize("there", [False, True])
def test_a_volume_keeps_its_name(there: bool) -> None:
    require("fuse", "engine")
    with FaultFS() as fs, Engine(memory_bytes=32 << 20) as engine:
        path = fs.path("a.vol")
        if there:
            with open(path, "wb") as file:
                os.ftruncate(file.fileno(), SIZE)
        made = create_volume(
            engine, path, store=b"S" * 16, pool="P", pool_uuid=b"P" * 16, size=SIZE, force=there
        )
        fs.crash()
        assert os.listdir(fs.mount) == ["a.vol"]
        found = probe(engine, path)
        assert found is not None
        assert found.volume == made.volume


def test_a_store_keeps_the_directories_that_it_makes() -> None:
    require("fuse", "engine")
    with FaultFS(cached=True) as fs:
        config = fs.create_file("fanout.toml", 0)
        with open(config, "w", encoding="utf-8") as file:
            file.write(CONFIG)
            file.flush()
            os.fsync(file.fileno())
        Store.create(config)
        fs.crash()
        Store.open(config).close()


@pytest.mark.parametrize("there", [False, True])
def test_a_copy_keeps_its_name(there: bool) -> None:
    require("fuse", "engine")
    data = os.urandom(100_000)
    with FaultFS() as fs:
        path = fs.path("copy")
        if there:
            path.write_bytes(b"what a tee that was killed has left")
        assert tee(data, [path]).outcomes[str(path)].ok
        fs.crash()
        assert path.read_bytes() == data
