"""A site to test on: two clients, five pools, and devices that can be made to fail by the kernel itself.

The clients and pools are those of the modelled system's own example: N1 sends A and B, N2 sends C, D and E; E is too large for
DISKPOOL and overflows to TAPEPOOL.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from fanout.config import load
from fanout.errors import ObjectNotFound
from fanout.store import Store
from tests.faults import devices

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from fanout.config import Config
    from fanout.types import Receipt

MIB = 1 << 20
POOLS = ("DISKPOOL", "TAPEPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL")
FILE_LIMIT = (
    8 * MIB
)  # above what the clients' objects need elsewhere, below where a 512 MiB volume's space begins


@dataclass
class Site:
    """A directory with a fanout.toml, and the clients' objects.

    Attributes:
        base: the directory.
        objects: client and name of every object: its bytes.
        devices: pool: block device to be used instead of a file.
        size: bytes of a volume.
        sizes: pool: another size for its volume.
        object_limit: max_size of DISKPOOL; E is larger.
        second_volume: pool that has another volume, a file.
        options: further lines of [pools.DISKPOOL].
        pool_options: pool: further lines of its section, for the others.
        extra: further sections.
        hard_deadline: seconds after which a hung volume is let go.
        patience: seconds that one may hold up the others.
    """

    base: Path
    rng: random.Random
    objects: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    size: int = 40 * MIB
    sizes: dict[str, int] = field(default_factory=dict)
    object_limit: int = 1 * MIB
    second_volume: str = ""
    options: str = ""
    pool_options: dict[str, str] = field(default_factory=dict)
    extra: str = ""
    hard_deadline: float = 20.0
    patience: float = 2.0

    def __post_init__(self) -> None:
        make = self.rng.randbytes
        self.objects = {
            ("N1", b"A"): make(100_000),
            ("N1", b"B"): make(1),
            ("N2", b"C \xff\xfe"): make(700_017),
            ("N2", b"D"): b"",
            ("N2", b"E"): make(MIB + 500_001),
        }

    @property
    def path(self) -> Path:
        """Of the configuration."""
        return self.base / "fanout.toml"

    def volume(self, pool: str) -> str:
        """Path of a pool's (first) volume."""
        return self.devices.get(pool) or str(self.base / f"{pool}.vol")

    def configure(self) -> Config:
        """Write and load the configuration."""
        text = f"""
[store]
catalog = "catalog.db"
[engine]
memory = "32 MiB"
soft_deadline = "{self.hard_deadline / 4} s"
hard_deadline = "{self.hard_deadline} s"
patience = "{self.patience} s"
[device_classes.disk]
type = "disk"
[pools.DISKPOOL]
type = "primary"
device_class = "disk"
volumes = [{self._volume("DISKPOOL")}]
next = "TAPEPOOL"
max_size = {self.object_limit}
copy_pools = ["COPYPOOL1", "COPYPOOL2"]
active_data_pools = ["ACTIVEDATAPOOL"]
{self.options}
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
        kinds = ("primary", "copy", "copy", "active-data")
        for pool, kind in zip(POOLS[1:], kinds, strict=True):
            text += f"""
[pools.{pool}]
type = "{kind}"
device_class = "disk"
volumes = [{self._volume(pool)}]
{self.pool_options.get(pool, "")}
"""
        self.path.write_text(text + self.extra)
        return load(self.path)

    def _volume(self, pool: str) -> str:
        more = (
            f', {{ path = "second.vol", size = {self.size} }}' if pool == self.second_volume else ""
        )
        if pool in self.devices:
            return f'{{ path = "{self.devices[pool]}" }}{more}'
        return f'{{ path = "{pool}.vol", size = {self.sizes.get(pool, self.size)} }}{more}'

    def create(self) -> None:
        """Make the store."""
        Store.create(self.configure(), force=bool(self.devices))

    def open(self, **options: Any) -> Store:
        """Open it."""
        return Store.open(self.path, **options)

    @contextlib.contextmanager
    def locked(self, pool: str) -> Iterator[None]:
        """Somebody else has the pool's volume locked."""
        with open(self.volume(pool), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def put_all(self, store: Store) -> dict[str, Receipt]:
        """Both clients' sessions, one after the other, one transaction each."""
        return {node: self.put(store, node) for node in ("N1", "N2")}

    def put(self, store: Store, node: str) -> Receipt:
        """One client's session: all its objects in one transaction."""
        with store.session(node) as session:
            for attempt in session.attempts():
                with attempt as txn:
                    for (owner, name), data in self.objects.items():
                        if owner == node:
                            txn.put(name, data)
            assert session.receipt is not None
            return session.receipt

    def contents(self, store: Store) -> dict[str, str]:
        """What each pool holds, by the first letters, sorted; and every byte of it is read from that pool and compared."""
        held: dict[str, str] = {}
        for pool in POOLS:
            letters = []
            for entry in store.query_objects(pool=pool):
                letters.append(entry.name[:1].decode())
                self.check(store, entry.node, entry.name, pool, entry.version)
            held[pool] = "".join(sorted(letters))
        return held

    def check(
        self, store: Store, node: str, name: bytes, pool: str | None, version: int | None = None
    ) -> None:
        """Read an object and compare its digest with python-xxhash's of the source."""
        hasher = xxhash.xxh3_128()
        length = 0
        with store.get(node, name, pool=pool, version=version) as reader:
            for piece in reader:
                hasher.update(piece)
                length += len(piece)
            assert reader.faults == ()
        source = self.objects[node, name]
        assert (length, hasher.digest()) == (len(source), xxhash.xxh3_128_digest(source))

    def holds(self, store: Store, pool: str, node: str, name: bytes) -> bool:
        """Whether a pool can be asked for an object."""
        try:
            store.get(node, name, pool=pool)
        except ObjectNotFound:
            return False
        return True

    def destroy(self, pool: str) -> None:
        """Overwrite the volume's space with noise, behind everybody's back."""
        with open(self.volume(pool), "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            for offset in range(MIB, size - MIB, MIB // 4):
                file.seek(offset)
                file.write(self.rng.randbytes(64 << 10))
            os.fsync(file.fileno())

    def flip(self, pool: str, data: bytes) -> int:
        """Flip a byte in the middle of every place on the pool's volume where `data` lies; returns how many."""
        volume = Path(self.volume(pool))
        content = volume.read_bytes()
        found, at = 0, content.find(data)
        with open(volume, "r+b") as file:
            while at >= 0:
                middle = at + len(data) // 2
                file.seek(middle)
                file.write(bytes([content[middle] ^ 0xFF]))
                found, at = found + 1, content.find(data, at + 1)
            os.fsync(file.fileno())
        return found


@pytest.fixture
def site(tmp_path: Path, rng: random.Random) -> Iterator[Site]:
    """A site; not created yet. Its volumes are removed at the end: pytest keeps the directories of some runs."""
    yield Site(tmp_path, rng)
    for volume in tmp_path.rglob("*.vol"):
        volume.unlink()


@dataclass
class Breakable:
    """A volume that the kernel can be made to fail.

    Attributes:
        errno: names of what the writer may see.
        fail: from now on.
        heal: no more.
    """

    errno: tuple[str, ...]
    fail: Callable[[], None]
    heal: Callable[[], None]


@contextlib.contextmanager
def limited_file(site: Site, pool: str) -> Iterator[Breakable]:
    """A file limit of the whole process, with only this pool's space above it: EFBIG. Needs no privilege."""
    site.sizes[pool] = 512 * MIB
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))

    try:
        yield Breakable(("EFBIG",), lambda: limit(FILE_LIMIT), lambda: limit(old[0]))
    finally:
        limit(old[0])


@contextlib.contextmanager
def zram(site: Site, pool: str) -> Iterator[Breakable]:
    """A zram device over its limit: EIO."""
    with devices.zram(64 * MIB) as device:
        site.devices[pool] = device.path
        yield Breakable(("EIO",), device.fail, device.heal)


@contextlib.contextmanager
def full_loop(site: Site, pool: str) -> Iterator[Breakable]:
    """A loop device on a file system that is full: ENOSPC (and, while it is not written yet, EIO)."""
    with devices.full_disk(64 * MIB, room=48 * MIB) as device:
        site.devices[pool] = device.path
        filler = device.backing.with_name("filler")

        def fill() -> None:
            with open(filler, "wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(64 << 10))
                    file.flush()
                    os.fsync(file.fileno())

        yield Breakable(("ENOSPC",), fill, filler.unlink)


FAULTS = {"limit": limited_file, "zram": zram, "full": full_loop}


@pytest.fixture(
    params=[
        "limit",
        pytest.param("zram", marks=pytest.mark.loop),
        pytest.param("full", marks=pytest.mark.loop),
    ]
)
def fault(
    request: pytest.FixtureRequest,
) -> Callable[[Site, str], contextlib.AbstractContextManager[Breakable]]:
    """Every way to make a volume fail: call it with a site and a pool."""
    return FAULTS[request.param]
