"""The configuration file: `fanout.toml` in, frozen and checked values out.

Every mistake is a `ConfigError` that names the file, the dotted key, and what is allowed there.
Nothing on disk but the file itself is looked at: paths are made absolute as text, so that loading
cannot hang on a dead mount. What only the device can say (is it there, is it ours, how large is it)
is found when the store opens its volumes.
"""

from __future__ import annotations

import difflib
import enum
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fanout import tables
from fanout.errors import ConfigError, UnknownPool
from fanout.types import Destination, PoolKind, Primary, Secondary
from fanout.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fanout.tables import Table

T = TypeVar("T")

# Limits of the model (docs/simultaneous-write.md says where they come from).
COMMIT_DEADLINE = 120.0  # seconds: above what disks and their drivers take to give up by themselves
MAX_POOL_NAME = 30
MAX_NODE_NAME = 64
STRICT_MAX_SECONDARIES = 3
MAX_SECONDARIES = 15  # a stream has at most 16 legs, and one is the primary's
MAX_ACTIVE_DESTINATIONS = 10
MAX_VOLUMES = 256  # of a store: its engine holds all of them open
MAX_LISTED = 40  # names in a message
# Sizes of volumes are multiples of the largest granule that common devices have.
SIZE_GRANULE = 4096
MIN_VOLUME_SIZE = 1 << 20
MIN_SLOT_SIZE, MAX_SLOT_SIZE = 64 << 10, 16 << 20
MIN_SLOTS = 8
MAX_SLOTS = 4096  # of one engine
LEAST_SLOTS_PER_STREAM = 3  # two are its own; the rest is for reads and for targets that hang
MAX_STREAMS = 256


class Access(enum.Enum):
    """What may be done with a pool."""

    READWRITE = "readwrite"
    READONLY = "readonly"
    UNAVAILABLE = "unavailable"


class DeviceType(enum.Enum):
    """How a device class keeps its volumes."""

    DISK = "disk"
    FILE = "file"


class OnSlow(enum.Enum):
    """What becomes of a volume that holds up the other pools."""

    WAIT = "wait"
    EJECT = "eject"


class Verify(enum.Enum):
    """What a pool has to show before a commit, beyond a good flush."""

    NONE = "none"
    READBACK = "readback"


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Section ``[store]``.

    Attributes:
        catalog: absolute path of the database.
        strict_limits: at most 3 copy and active-data pools on a primary, as in the modelled system.
        verify: of the pools that do not say.
        commit_deadline: seconds after which a catalog that does not answer is given up.
    """

    catalog: Path
    strict_limits: bool = False
    verify: Verify = Verify.NONE
    commit_deadline: float = COMMIT_DEADLINE


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Section ``[engine]``: bytes and seconds, with the names of `Engine`'s arguments."""

    memory_bytes: int = 64 << 20
    slot_size_bytes: int = 1 << 20
    max_streams: int = 8
    backend: str = "auto"
    soft_deadline: float = 30.0
    hard_deadline: float = 120.0
    patience: float = 2.0


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """Section ``[device_classes.NAME]``.

    Attributes:
        name: of the class.
        type: disk or file.
        directory: file type: where each pool's volumes are made.
        volume_size: file type: bytes of each volume.
        max_volumes: file type: most volumes in each pool.
    """

    name: str
    type: DeviceType
    directory: Path | None = None
    volume_size: int = 0
    max_volumes: int = 0


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """One volume of a disk pool: absolute path, size in bytes (None: that of the block device)."""

    path: Path
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """Section ``[pools.NAME]``.

    Only primaries have `next`, `max_size`, lists, `copy_continue`; only the others have `on_slow`.

    Attributes:
        moved: the files of its volumes were moved to another kind of file system on purpose.
    """

    name: str
    kind: PoolKind
    device_class: str
    volumes: tuple[VolumeSpec, ...] = ()
    next: str | None = None
    max_size: int | None = None
    copy_pools: tuple[str, ...] = ()
    active_data_pools: tuple[str, ...] = ()
    copy_continue: bool = True
    access: Access = Access.READWRITE
    on_slow: OnSlow = OnSlow.WAIT
    verify: Verify = Verify.NONE
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Domain:
    """Section ``[domains.NAME]``: where its nodes' data goes, and their active-data pools."""

    name: str
    destination: str
    active_destinations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """Section ``[nodes.NAME]``: a client and its domain."""

    name: str
    domain: str


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, checked. Names are unique, and looked up, without regard to case."""

    path: Path
    store: StoreConfig
    engine: EngineConfig
    device_classes: Mapping[str, DeviceClass]
    pools: Mapping[str, Pool]
    domains: Mapping[str, Domain]
    nodes: Mapping[str, Node]

    def pool(self, name: str) -> Pool:
        """The pool of that name, in any case; `UnknownPool` names the pools that there are."""
        return _lookup(self.pools, name, "pool")

    def node(self, name: str) -> Node:
        """The node of that name, in any case; `UnknownPool` names the nodes that there are."""
        return _lookup(self.nodes, name, "node")

    @property
    def verified(self) -> frozenset[str]:
        """Names of the pools that are read back before a commit."""
        return frozenset(p.name for p in self.pools.values() if p.verify is Verify.READBACK)

    def chain(self, pool: str) -> tuple[str, ...]:
        """Names of a primary and of all pools below it, from the top."""
        names: list[str] = []
        name: str | None = self.pool(pool).name
        while name is not None:
            names.append(name)
            name = self.pools[name].next
        return tuple(names)

    def destination(self, node: str) -> Destination:
        """Where a node's objects go.

        The lists and `copy_continue` are those of the destination primary alone (rule R6).
        Active-data pools take part only when the node's domain allows them (rule R19); that they hold
        nothing but backup versions is for `policy.required` to say, since a session may store objects of
        several kinds. A secondary that is read-only or unavailable stays listed: it is required, and its
        absence must become a gap.

        Raises:
            UnknownPool: no such node.
        """
        domain = self.domains[self.node(node).domain]
        first = self.pools[domain.destination]
        chain = tuple(
            Primary(name, self.pools[name].max_size, self.pools[name].access is Access.READWRITE)
            for name in self.chain(first.name)
        )
        copies = [Secondary(name, PoolKind.COPY) for name in first.copy_pools]
        allowed = [name for name in first.active_data_pools if name in domain.active_destinations]
        copies += [Secondary(name, PoolKind.ACTIVE_DATA) for name in allowed]
        return Destination(chain, tuple(copies), first.copy_continue)


def load(path: str | os.PathLike[str]) -> Config:
    """Read and check a configuration file.

    Args:
        path: the file; relative paths inside it are relative to its directory.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or holds a mistake.
    """
    return parse(tables.read(path), path=os.fspath(path))


def parse(text: str, *, path: str) -> Config:
    """Check the text of a configuration file.

    Args:
        text: TOML.
        path: names the file in messages; its directory anchors relative paths.

    Raises:
        ConfigError: the text is not TOML, or holds a mistake.
    """
    sections = ("store", "engine", "device_classes", "pools", "domains", "nodes")
    root = tables.parse(text, path=path, allowed=sections)
    store = _store(root.table("store", ("catalog", "strict_limits", "verify", "commit_deadline")))
    config = Config(
        path=Path(os.path.abspath(path)),
        store=store,
        engine=_engine(root),
        device_classes=root.named("device_classes", MAX_POOL_NAME, _device_class),
        pools=root.named(
            "pools", MAX_POOL_NAME, lambda name, table: _pool(name, table, store.verify)
        ),
        domains=root.named("domains", MAX_POOL_NAME, _domain),
        nodes=root.named("nodes", MAX_NODE_NAME, _node),
    )
    _check(config, path)
    return config


# ---- the sections --------------------------------------------------------------------------------


def _store(table: Table) -> StoreConfig:
    return StoreConfig(
        table.file("catalog"),
        table.flag("strict_limits", default=False),
        table.choice("verify", Verify, Verify.NONE),
        table.seconds("commit_deadline", COMMIT_DEADLINE),
    )


class _Backend(enum.Enum):
    AUTO = "auto"
    IO_URING = "io_uring"
    THREADS = "threads"
    FAULTY = "faulty"


def _engine(root: Table) -> EngineConfig:
    if "engine" not in root:
        return EngineConfig()
    table = root.table(
        "engine",
        ("memory", "slot", "streams", "backend", "soft_deadline", "hard_deadline", "patience"),
    )
    default = EngineConfig()
    slot = table.size("slot", default.slot_size_bytes) or 0
    if slot & (slot - 1) or not MIN_SLOT_SIZE <= slot <= MAX_SLOT_SIZE:
        allowed = f"{format_size(MIN_SLOT_SIZE)} to {format_size(MAX_SLOT_SIZE)}"
        raise table.error("slot", f"must be a power of two, {allowed}, found {slot} bytes")
    streams = table.integer("streams", default.max_streams, low=1, high=MAX_STREAMS)
    memory = table.size("memory", max(default.memory_bytes, 64 * slot, 4 * streams * slot)) or 0
    least = max(MIN_SLOTS, LEAST_SLOTS_PER_STREAM * streams)
    if memory % slot or memory < least * slot:
        allowed = (
            f"a multiple of the slot ({slot} bytes), at least {least} of them for {streams} streams"
        )
        raise table.error("memory", f"must be {allowed}, found {memory} bytes")
    if memory > MAX_SLOTS * slot:
        most = format_size(MAX_SLOTS * slot)
        raise table.error("memory", f"must be at most {most} with slots of {format_size(slot)}")
    soft = table.seconds("soft_deadline", default.soft_deadline)
    hard = table.seconds("hard_deadline", max(default.hard_deadline, soft))
    if soft > hard:
        message = f"must not be before the soft deadline: {hard:g} s is before {soft:g} s"
        raise table.error("hard_deadline", message)
    return EngineConfig(
        memory,
        slot,
        streams,
        table.choice("backend", _Backend, _Backend.AUTO).value,
        soft,
        hard,
        table.seconds("patience", default.patience),
    )


def _device_class(name: str, table: Table) -> DeviceClass:
    kind = table.choice("type", DeviceType)
    if kind is DeviceType.DISK:
        table.only("type")
        return DeviceClass(name, kind)
    table.only("type", "directory", "volume_size", "max_volumes")
    size = table.size("volume_size")
    if size is None:
        raise table.error("volume_size", "this key is missing")
    _check_volume_size(table, "volume_size", size)
    volumes = table.integer("max_volumes", 16, low=1, high=MAX_VOLUMES)
    return DeviceClass(name, kind, table.file("directory"), size, volumes)


def _check_volume_size(table: Table, name: str, size: int) -> None:
    if size % SIZE_GRANULE or size < MIN_VOLUME_SIZE:
        allowed = f"a multiple of {SIZE_GRANULE} bytes, at least {format_size(MIN_VOLUME_SIZE)}"
        unit = "" if size % 1000 else " (MiB and GiB are powers of two, MB and GB of ten)"
        raise table.error(name, f"the size of a volume is {allowed}, found {size} bytes{unit}")


_ANY_POOL = ("type", "device_class", "volumes", "access", "on_slow", "verify", "moved")
_PRIMARY_ONLY = ("next", "max_size", "copy_pools", "active_data_pools", "copy_continue")


def _pool(name: str, table: Table, verify: Verify) -> Pool:
    table.only(*_ANY_POOL, *_PRIMARY_ONLY)
    kind = table.choice("type", PoolKind)
    for key in _PRIMARY_ONLY:
        if key in table and kind is not PoolKind.PRIMARY:
            raise table.error(
                key, f"only primary pools have it, and {name} is of type {kind.value}"
            )
    if "on_slow" in table and kind is PoolKind.PRIMARY:
        raise table.error(
            "on_slow", f"only copy and active-data pools have it: a primary is waited for ({name})"
        )
    return Pool(
        name=name,
        kind=kind,
        device_class=table.text("device_class"),
        volumes=tuple(_volume(entry) for entry in table.tables("volumes", ("path", "size"))),
        next=table.optional_text("next"),
        max_size=table.size("max_size"),
        copy_pools=table.names("copy_pools"),
        active_data_pools=table.names("active_data_pools"),
        copy_continue=table.flag("copy_continue", default=True),
        access=table.choice("access", Access, Access.READWRITE),
        on_slow=table.choice("on_slow", OnSlow, OnSlow.WAIT),
        verify=table.choice("verify", Verify, verify),
        moved=table.flag("moved", default=False),
    )


def _volume(table: Table) -> VolumeSpec:
    size = table.size("size")
    if size is not None:
        _check_volume_size(table, "size", size)
    return VolumeSpec(table.file("path"), size)


def _domain(name: str, table: Table) -> Domain:
    table.only("destination", "active_destinations")
    return Domain(name, table.text("destination"), table.names("active_destinations"))


def _node(name: str, table: Table) -> Node:
    table.only("domain")
    return Node(name, table.text("domain"))


# ---- what one section says of another ------------------------------------------------------------


def _lookup(section: Mapping[str, T], name: str, what: str) -> T:
    if not isinstance(name, str):
        raise TypeError(f"the name of a {what} is str, not {type(name).__name__}")
    if name in section:
        return section[name]
    for known, value in section.items():
        if known.lower() == name.lower():
            return value
    raise UnknownPool(name, f"there is no such {what}; {_there_are(section, name)}")


def _there_are(section: Iterable[str], name: str) -> str:
    known = sorted(section)
    if not known:
        return "none is defined"
    by_lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f'did you mean "{by_lower[near[0]]}"? ' if near else ""
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return f"{hint}defined: {', '.join(known[:MAX_LISTED])}{more}"


def _check(config: Config, path: str) -> None:
    def fail(key: str, message: str) -> ConfigError:
        return ConfigError(message, path=path, key=key)

    for pool in config.pools.values():
        _check_pool(config, pool, fail)
    needed = sum(len(pool.volumes) or 1 for pool in config.pools.values())  # a sequential pool: one
    if needed > MAX_VOLUMES:
        raise fail("pools", f"a store has at most {MAX_VOLUMES} volumes, these pools need {needed}")
    _check_cycles(config, fail)
    _check_paths(config, fail)
    for domain in config.domains.values():
        key = f"domains.{domain.name}"
        _check_reference(config, f"{key}.destination", domain.destination, PoolKind.PRIMARY, fail)
        if len(domain.active_destinations) > MAX_ACTIVE_DESTINATIONS:
            found = len(domain.active_destinations)
            raise fail(
                f"{key}.active_destinations",
                f"at most {MAX_ACTIVE_DESTINATIONS} pools, found {found}",
            )
        for index, name in enumerate(domain.active_destinations):
            _check_reference(
                config, f"{key}.active_destinations[{index}]", name, PoolKind.ACTIVE_DATA, fail
            )
    for node in config.nodes.values():
        if node.domain not in config.domains:
            message = f'unknown domain "{node.domain}"; {_there_are(config.domains, node.domain)}'
            raise fail(f"nodes.{node.name}.domain", message)


def _check_reference(
    config: Config, key: str, name: str, kind: PoolKind, fail: Callable[[str, str], ConfigError]
) -> None:
    pool = config.pools.get(name)
    if pool is None:
        right = [other.name for other in config.pools.values() if other.kind is kind]
        raise fail(key, f'unknown pool "{name}"; {_there_are(right, name)}')
    if pool.kind is not kind:
        raise fail(
            key, f'must name a pool of type {kind.value}, and "{name}" is of type {pool.kind.value}'
        )


def _check_pool(config: Config, pool: Pool, fail: Callable[[str, str], ConfigError]) -> None:
    key = f"pools.{pool.name}"
    device_class = config.device_classes.get(pool.device_class)
    if device_class is None:
        there_are = _there_are(config.device_classes, pool.device_class)
        message = f'unknown device class "{pool.device_class}"; {there_are}'
        raise fail(f"{key}.device_class", message)
    if device_class.type is DeviceType.DISK and not pool.volumes:
        example = f'[{{ path = "{pool.name}.vol", size = "10 GiB" }}]'
        raise fail(f"{key}.volumes", f"a pool of a disk class needs at least one, like {example}")
    if device_class.type is DeviceType.FILE and pool.volumes:
        message = f"volumes of file class {device_class.name} are made in its directory, not listed"
        raise fail(f"{key}.volumes", message)
    for index, name in enumerate(pool.copy_pools):
        _check_reference(config, f"{key}.copy_pools[{index}]", name, PoolKind.COPY, fail)
    for index, name in enumerate(pool.active_data_pools):
        _check_reference(
            config, f"{key}.active_data_pools[{index}]", name, PoolKind.ACTIVE_DATA, fail
        )
    if pool.next is not None:
        _check_reference(config, f"{key}.next", pool.next, PoolKind.PRIMARY, fail)
    listed = len(pool.copy_pools) + len(pool.active_data_pools)
    most = STRICT_MAX_SECONDARIES if config.store.strict_limits else MAX_SECONDARIES
    if listed > most:
        why = " (store.strict_limits is true)" if config.store.strict_limits else ""
        last = "active_data_pools" if pool.active_data_pools else "copy_pools"
        raise fail(
            f"{key}.{last}",
            f"copy and active-data pools together are at most {most}{why}, found {listed}",
        )


def _check_cycles(config: Config, fail: Callable[[str, str], ConfigError]) -> None:
    ends: set[str] = set()  # pools whose hierarchy is known to end: none is walked twice
    for start in config.pools:
        seen: dict[str, None] = {}
        name: str | None = start
        while name is not None and name not in ends:
            if name in seen:
                # Blame the pool that closes the circle; a tail that leads into it is innocent.
                path = list(seen)
                circle = [*path[path.index(name) :], name]
                raise fail(
                    f"pools.{path[-1]}.next",
                    f"the hierarchy runs in a circle: {' -> '.join(circle)}",
                )
            seen[name] = None
            name = config.pools[name].next
        ends.update(seen)


def _check_paths(config: Config, fail: Callable[[str, str], ConfigError]) -> None:
    used: dict[Path, str] = {config.path: "this file", config.store.catalog: "store.catalog"}
    if config.path == config.store.catalog:
        raise fail("store.catalog", "the catalog cannot be the configuration file")
    for pool in config.pools.values():
        for index, volume in enumerate(pool.volumes):
            key = f"pools.{pool.name}.volumes[{index}].path"
            other = used.setdefault(volume.path, key)
            if other != key:
                raise fail(key, f"{volume.path} is used twice: also by {other}")
