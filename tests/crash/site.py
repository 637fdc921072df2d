"""A small store for crashes, and what its clients do to it.

Two clients, a disk primary that overflows to a sequential one (which grows), two copy pools and an active-data pool. All of it fits
into 12 MiB, so that a case takes tenths of a second. N1's objects belong into all pools, N2's not into the active-data pool.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fanout.config import load
from fanout.errors import TransactionFailed, TransactionRetry
from fanout.store import Store
from fanout.types import ObjectKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from fanout.types import Receipt
    from tests.crash.journal import Teller

KIB, MIB = 1 << 10, 1 << 20
PRIMARIES = ("DISKPOOL", "TAPEPOOL")
SECONDARIES = ("COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL")
POOLS = (*PRIMARIES, *SECONDARIES)
LARGE = 200 * KIB  # objects above it go to the sequential pool
NODES = ("N1", "N2")
_PAGE = 64 << 10

SPACE = 4096 + 2 * (
    256 << 10
)  # where it begins on a volume that small: behind superblock A and the directory
ROOMY = 8 * MIB  # for all that fits into the primaries

# Name: size, and what is not zero by offset.
Saved = dict[str, tuple[int, dict[int, bytes]]]


@dataclass
class CrashSite:
    """A directory with a `fanout.toml` and a small store.

    Attributes:
        base: the directory.
        backend: of the engine.
        copy_continue: of DISKPOOL.
        devices: pool: a block device instead of its file.
        size: bytes of a volume that is a file.
        secondary_size: of those of the secondaries, if they are larger.
        hard_deadline: seconds until a hung target is let go.
        options: pool: further lines of its section.
    """

    base: Path
    backend: str = "auto"
    copy_continue: bool = True
    devices: dict[str, str] = field(default_factory=dict)
    size: int = 2 * MIB
    secondary_size: int = 0
    hard_deadline: float = 20.0
    options: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Of the configuration."""
        return self.base / "fanout.toml"

    def configure(self) -> None:
        """Write the configuration."""
        text = f"""
[store]
catalog = "catalog.db"
[engine]
memory = "4 MiB"
slot = "128 KiB"
backend = "{self.backend}"
soft_deadline = "{self.hard_deadline / 4} s"
hard_deadline = "{self.hard_deadline} s"
[device_classes.disk]
type = "disk"
[device_classes.seq]
type = "file"
directory = "sequential"
volume_size = "{self.size // KIB} KiB"
max_volumes = 3
[domains.FASTRESTORE]
destination = "DISKPOOL"
active_destinations = ["ACTIVEDATAPOOL"]
[domains.NORMAL]
destination = "DISKPOOL"
[nodes.N1]
domain = "FASTRESTORE"
[nodes.N2]
domain = "NORMAL"
[pools.DISKPOOL]
type = "primary"
{self._device("DISKPOOL")}
next = "TAPEPOOL"
max_size = {LARGE}
copy_pools = ["COPYPOOL1", "COPYPOOL2"]
active_data_pools = ["ACTIVEDATAPOOL"]
copy_continue = {str(self.copy_continue).lower()}
[pools.TAPEPOOL]
type = "primary"
{self._device("TAPEPOOL")}
"""
        kinds = ("copy", "copy", "active-data")
        for pool, kind in zip(SECONDARIES, kinds, strict=True):
            text += f'[pools.{pool}]\ntype = "{kind}"\n{self._device(pool)}\n'
        self.path.write_text(text)

    def _device(self, pool: str) -> str:
        return f"{self._volumes(pool)}\n{self.options.get(pool, '')}"

    def _volumes(self, pool: str) -> str:
        if pool in self.devices:
            return f'device_class = "disk"\nvolumes = [{{ path = "{self.devices[pool]}" }}]'
        if pool == "TAPEPOOL":
            return 'device_class = "seq"'
        size = self.secondary_size if self.secondary_size and pool in SECONDARIES else self.size
        volume = f'{{ path = "{pool}.vol", size = {size} }}'
        return f'device_class = "disk"\nvolumes = [{volume}]'

    def create(self) -> None:
        """Make the store."""
        self.configure()
        Store.create(load(self.path), force=bool(self.devices))

    def open(self, **options: Any) -> Store:
        """Open it."""
        return Store.open(self.path, **options)

    def volume(self, pool: str) -> Path:
        """Its first volume."""
        if pool in self.devices:
            return self.base / self.devices[pool]
        if pool == "TAPEPOOL":
            return self.base / "sequential" / "TAPEPOOL.00001.fanout"
        return self.base / f"{pool}.vol"

    def save(self, base: Path | None = None) -> Saved:
        """Everything that lies there now, without holes. `base`: where it lies, if not under the site's own path."""
        base = base or self.base
        found: Saved = {}
        for path in sorted(path for path in base.rglob("*") if path.is_file()):
            data = path.read_bytes()
            pieces = [(at, data[at : at + _PAGE]) for at in range(0, len(data), _PAGE)]
            full = {at: piece for at, piece in pieces if piece != bytes(len(piece))}
            found[str(path.relative_to(base))] = len(data), full
        return found

    def restore(self, saved: Saved, base: Path | None = None) -> None:
        """Put it all back, in place: the files stay the same ones, what came since goes."""
        base = base or self.base
        for path in [path for path in base.rglob("*") if path.is_file()]:
            if str(path.relative_to(base)) not in saved:
                path.unlink()
        for name, (size, pieces) in saved.items():
            with open(base / name, "r+b" if (base / name).exists() else "w+b") as file:
                file.truncate(0)
                for at, piece in pieces.items():
                    file.seek(at)
                    file.write(piece)
                file.truncate(size)

    def remove(self) -> None:
        """The files: pytest keeps the directories of some runs."""
        for path in [*self.base.glob("*.vol"), *self.base.glob("sequential/*")]:
            path.unlink()


def put(
    store: Store,
    teller: Teller,
    node: str,
    objects: Mapping[bytes, bytes],
    *,
    transaction: bytes,
    kind: ObjectKind = ObjectKind.BACKUP,
) -> Receipt:
    """One transaction of a session of its own, sent until it commits or cannot; the journal hears of it."""
    with store.session(node, kind=kind) as session:
        teller.begin(transaction, node, objects, kind=kind.value)
        for number in itertools.count(1):
            try:
                with session.begin(transaction=transaction, attempt=number) as txn:
                    for name, data in objects.items():
                        txn.put(name, data)
                break
            except TransactionRetry:
                continue
            except TransactionFailed:
                teller.refused(transaction)
                raise
        assert session.receipt is not None
        teller.receipt(session.receipt)
        return session.receipt
