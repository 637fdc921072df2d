"""Makes the store of tests/format/fixtures: what the present version of the format and of the catalog look like, for later versions to read.

    python -m tests.format.make_fixture DIRECTORY

writes vN.tar.xz (volumes, catalog, fanout.toml) and vN.json (what they say) there, N being the format version. A fixture that was
released is never made again: it is the promise. Run this when the format changes, and keep the old ones.
"""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from fanout import backup_stgpool, copy_activedata
from fanout.catalog import CatalogReader
from fanout.format import FORMAT_VERSION
from fanout.store import Store
from fanout.types import ObjectKind

CONFIG = """
[store]
catalog = "catalog.db"
[engine]
memory = "32 MiB"
[device_classes.disk]
type = "disk"
[device_classes.seq]
type = "file"
directory = "sequential"
volume_size = "1 MiB"
max_volumes = 4
[pools.DISKPOOL]
type = "primary"
device_class = "disk"
volumes = [{ path = "disk.vol", size = "2 MiB" }]
next = "TAPEPOOL"
max_size = "16 KiB"
copy_pools = ["COPYPOOL1"]
active_data_pools = ["ACTIVEDATAPOOL"]
[pools.TAPEPOOL]
type = "primary"
device_class = "seq"
[pools.COPYPOOL1]
type = "copy"
device_class = "disk"
volumes = [{ path = "copy.vol", size = "2 MiB" }]
[pools.ACTIVEDATAPOOL]
type = "active-data"
device_class = "disk"
volumes = [{ path = "active.vol", size = "2 MiB" }]
[domains.FASTRESTORE]
destination = "DISKPOOL"
active_destinations = ["ACTIVEDATAPOOL"]
[nodes.N1]
domain = "FASTRESTORE"
[nodes.N2]
domain = "FASTRESTORE"
"""


def main(directory: str) -> None:
    """Make the fixture of the present version."""
    target = Path(directory) / f"v{FORMAT_VERSION}.tar.xz"
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "fanout.toml").write_text(CONFIG)
        _fill(base / "fanout.toml", random.Random(FORMAT_VERSION))
        with tarfile.open(target, "w:xz", preset=9) as archive:
            for path in sorted(base.rglob("*")):
                if path.is_file() and path.suffix not in {".lock", ".ballast"}:
                    data = path.read_bytes()
                    entry = tarfile.TarInfo(str(path.relative_to(base)))
                    entry.size, entry.mode = len(data), 0o600
                    archive.addfile(entry, io.BytesIO(data))
        with CatalogReader(base / "catalog.db") as catalog:
            said = json.dumps(told(catalog), indent=1)
    target.with_name(f"v{FORMAT_VERSION}.json").write_text(said + "\n")


def _fill(config: Path, rng: random.Random) -> None:
    """All that a store can hold: kinds, versions, an empty object, names of any bytes, a gap, repairs, runs of members, deletions."""
    Store.create(config)
    with Store.open(config) as store:
        _put(store, "N1", {b"a": b"first", b"dir/\xff\n": rng.randbytes(9000), b"empty": b""})
        _put(store, "N1", {b"a": b"second", b"long": b"compressible " * 3000})
        _put(store, "N2", {b"a": b"archived"}, kind=ObjectKind.ARCHIVE)
    hidden = config.with_name("hidden")
    for volume in ("copy.vol", "active.vol"):
        config.with_name(volume).rename(hidden)
        with Store.open(config) as store:
            _put(store, "N2", {b"x": b"1" * 5000, b"y": b"2" * 5000, b"z": b"3"})
            _put(store, "N2", {b"y": b"newer"})
        hidden.rename(config.with_name(volume))
    with Store.open(config) as store:
        copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL")
    with Store.open(config) as store:
        backup_stgpool(store, "TAPEPOOL", "COPYPOOL1")
        _put(store, "N1", {b"last": b"of all"})
    _delete(config)


def _delete(config: Path) -> None:
    """A member, an aggregate, and both while a volume that holds them is away."""
    with Store.open(config) as store:
        _put(store, "N1", {b"stays": b"s" * 700, b"goes": b"g" * 6000, b"stays too": b""})
        _put(store, "N1", {b"goes as well": b"w" * 5000})
        store.delete("N1", [b"goes", b"goes as well", b"a"])
    hidden = config.with_name("hidden")
    config.with_name("copy.vol").rename(hidden)
    with Store.open(config) as store:
        store.delete("N1", [b"last", b"stays too"])
    hidden.rename(config.with_name("copy.vol"))
    Store.open(config).close()


def _put(store: Store, node: str, objects: dict[bytes, bytes], **options: Any) -> None:
    with store.session(node, **options) as session:
        for attempt in session.attempts():
            with attempt as transaction:
                for name, data in objects.items():
                    transaction.put(name, data)


def told(catalog: CatalogReader) -> dict[str, Any]:
    """What a catalog says, in plain values."""
    objects = []
    for entry in catalog.objects():
        copies = catalog.copies(entry.aggregate)
        objects.append(
            {
                "node": entry.node,
                "kind": entry.kind.value,
                "name": entry.name.hex(),
                "version": entry.version,
                "active": entry.active,
                "length": entry.length,
                "digest": entry.digest.hex(),
                "at": entry.at,
                "primary": entry.primary,
                "pools": [copy.pool for copy in copies if copy.holds(entry.member)],
            }
        )
    gaps = [[gap.node, gap.primary, gap.pool, gap.objects, gap.bytes] for gap in catalog.gaps()]
    volumes = {Path(v.path).name: [v.pool, v.size, v.epoch] for v in catalog.volumes()}
    csn = catalog.last_csn()
    return {"csn": csn, "objects": objects, "gaps": gaps, "volumes": volumes}


if __name__ == "__main__":
    main(sys.argv[1])
