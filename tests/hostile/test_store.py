"""A whole store with forged blocks on some of its volumes: opening, reading, check and rebuild.

What could break: a rebuild or a check that ends in an error of Python's, never ends, or writes somewhere; bytes handed out that are
not the object's.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import xxhash

from fanout import check_store, rebuild_catalog
from fanout import format as fmt
from fanout.catalog import CatalogReader
from fanout.errors import FanoutError
from fanout.store import Store
from tests.format.test_fixtures import VERSIONS, settle, unpack, volumes
from tests.hostile.forge import forge, number

if TYPE_CHECKING:
    import random
    from pathlib import Path


def unpacked(base: Path) -> Any:
    """The store of the newest version of the format, settled in a directory; returns what it holds."""
    said = unpack(VERSIONS[-1], base)
    settle(base)
    return said


def blocks(data: bytes) -> list[tuple[int, int]]:
    """(offset, length) of everything on a volume that looks like a block."""
    found, at = [], data.find(fmt.MAGIC)
    while at >= 0:
        length = number(data, at + 16, 8)
        if 56 <= length <= len(data) - at:
            found.append((at, length))
        at = data.find(fmt.MAGIC, at + 1)
    return found


def corrupt(base: Path, rng: random.Random) -> None:
    """Forge one to eight blocks, mostly on one volume."""
    paths = sorted(volumes(base))
    chosen = [rng.choice(paths)] if rng.random() < 0.7 else paths
    for _ in range(rng.choice((1, 2, 8))):
        path = rng.choice(chosen)
        data = bytearray(path.read_bytes())
        at, length = rng.choice(blocks(bytes(data)))
        data[at : at + length] = forge(bytes(data[at : at + length]), rng)[:length]
        path.write_bytes(data)


def use(base: Path, said: Any) -> int:
    """Check, read everything, rebuild; returns how many objects could be read. Nothing on a volume changes."""
    config = base / "fanout.toml"
    before = {path: path.read_bytes() for path in volumes(base)}
    good = 0
    with suppress(FanoutError):
        check_store(config)
    with suppress(FanoutError), Store.open(config, read_only=True) as store:
        for one in said["objects"]:
            with suppress(FanoutError):
                name = bytes.fromhex(one["name"])
                data = store.get(one["node"], name, version=one["version"]).read()
                assert xxhash.xxh3_128_hexdigest(data) == one["digest"]
                good += 1
    with suppress(FanoutError):
        rebuilt = rebuild_catalog(config, into=base / "second.db")
        with CatalogReader(rebuilt.catalog) as catalog:
            assert catalog.verify() == []
            list(catalog.objects())
    (base / "second.db").unlink(missing_ok=True)
    assert {path: path.read_bytes() for path in volumes(base)} == before
    return good


def test_forged_blocks_in_a_store(tmp_path: Path, rng: random.Random) -> None:
    """Each time some others; what is read is right or refused, and most is read from a copy that is good."""
    said = unpacked(tmp_path)
    original = {path: path.read_bytes() for path in volumes(tmp_path)}
    assert use(tmp_path, said) == len(said["objects"])
    good = 0
    for _ in range(5):
        corrupt(tmp_path, rng)
        good += use(tmp_path, said)
        for path, data in original.items():
            path.write_bytes(data)
    for path in original:
        path.unlink()
    assert good > 2 * len(said["objects"])
