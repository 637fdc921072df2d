"""Five pools on files or devices, the configuration that describes them, and a fault that can be armed.

On devices (root): DISKPOOL and COPYPOOL2 are loop devices, TAPEPOOL is a directory of sequential
volumes, COPYPOOL1 is a zram device, ACTIVEDATAPOOL a loop device over a file on a small file system.
On files: every pool is made of files that are shorter than the limit which will be set, but for the
pool that shall fail: its one file is longer, so that only writes to it can exceed the limit.

In both cases the error is the kernel's: EIO from zram at its memory limit, ENOSPC from a loop device
whose file system is full, EFBIG from a file at this process's file size limit.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.demo import devices
from fanout.demo.signals import undisturbed
from fanout.errors import FanoutError
from fanout.format import BLOCK, FRAGMENT, default_directory_bytes
from fanout.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from fanout.demo.inputs import Input, Inputs

DISK, TAPE = "DISKPOOL", "TAPEPOOL"
COPY1, COPY2, ACTIVE = "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"
POOLS = (DISK, TAPE, COPY1, COPY2, ACTIVE)
FAST, NORMAL = "N1", "N2"
FAST_DOMAIN, NORMAL_DOMAIN = "FASTRESTORE", "NORMAL"

MIB = 1 << 20
# How much a failing pool still takes before it fails, at most: the transaction is then well under way.
GRACE_BYTES = 4 * MIB
# A volume's end that is shorter may stay empty: the store does not cut objects into shorter pieces.
PIECE_BYTES = MIB


@dataclass(frozen=True, slots=True)
class Fault:
    """A real fault that can be switched on and off.

    Attributes:
        pool: that will fail.
        cause: what is done, in words.
        errno: symbol of the error that the kernel will answer.
        arm: makes writes to the pool fail soon.
        heal: ends it.
    """

    pool: str
    cause: str
    errno: str
    arm: Callable[[], None]
    heal: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the volumes, computed from their real layout.

    Attributes:
        disk: DISKPOOL on one device: room for groups A to D, not for E on top.
        tape: TAPEPOOL: how many sequential volumes of `limit` bytes hold E.
        copy: a copy pool on one device: room for everything.
        active: ACTIVEDATAPOOL on one device: room for groups A and B.
        limit: on files: the file size limit, and the longest volume of the pools that work.
        rooms: pool to the bytes of spans that it must have room for, however it is divided into volumes.
    """

    disk: int
    tape: int
    copy: int
    active: int
    limit: int
    rooms: dict[str, int]

    @classmethod
    def for_inputs(cls, inputs: Inputs) -> Sizes:
        """Sizes that make the scenario happen with these inputs.

        Raises:
            FanoutError: E is too short: it would fit into DISKPOOL beside the others, and show nothing.
        """
        small, large = inputs.of("A", "B", "C", "D"), inputs.of("E")
        sizes = cls._for(small, large)
        least = sizes._least_large(small)
        if inputs.bytes_of("E") < least:
            raise FanoutError(
                f"the demo's file E has {format_size(inputs.bytes_of('E'))} and would fit into "
                f"{DISK} beside the others; it must have {format_size(least)} or more"
            )
        return sizes

    @classmethod
    def least_large(cls, small: Sequence[Input]) -> int:
        """How long E must be, so that it cannot fit into DISKPOOL beside groups A to D."""
        return cls._for(small, ())._least_large(small)

    @classmethod
    def _for(cls, small: Sequence[Input], large: Sequence[Input]) -> Sizes:
        fast = [one for one in small if one.group in {"A", "B"}]
        group = min(sum(one.length for one in small if one.group == name) for name in "ABCD")
        limit = _pages(group * 3 // 4)
        rooms = {
            DISK: _room(small),
            TAPE: _room(large),
            COPY1: _room([*small, *large]),
            COPY2: _room([*small, *large]),
            ACTIVE: _room(fast),
        }
        # A failed attempt's regions are free again as soon as its last write has landed. The room of
        # one group more lets the next attempt not wait for that; in DISKPOOL it would be room for E.
        return cls(
            disk=_volume_bytes(rooms[DISK]),
            tape=-(-rooms[TAPE] // _usable(limit)) + 1,
            copy=_volume_bytes(rooms[COPY1]) + limit,
            active=_volume_bytes(rooms[ACTIVE]) + limit,
            limit=limit,
            rooms=rooms,
        )

    @property
    def grace(self) -> int:
        """What a failing device still takes; a sixteenth of a group, because zram compresses what it gets."""
        return min(GRACE_BYTES, self.limit // 12)

    def divided(self, pool: str) -> list[int]:
        """Sizes of the volumes, none longer than the limit, that give a pool its room."""
        count = -(-self.rooms[pool] // _usable(self.limit))
        each = _volume_bytes(-(-self.rooms[pool] // count) + PIECE_BYTES)
        return [min(each, self.limit)] * count

    def _least_large(self, small: Sequence[Input]) -> int:
        """More than all that A to D leave, even if framing took nothing."""
        most = max(_space(self.disk), sum(map(_space, self.divided(DISK))))
        return _pages(most - sum(one.length for one in small)) + MIB


@dataclass(frozen=True, slots=True)
class Site:
    """Where one store lives.

    Attributes:
        config: path of its fanout.toml.
        kinds: pool to what it stands on, in words.
        fault: what can be armed; None when nothing shall fail.
    """

    config: Path
    kinds: dict[str, str]
    fault: Fault | None


def kind_of_targets(wanted: str) -> str:
    """Resolve ``auto`` to ``devices`` or ``files``; refuse ``devices`` where there are none.

    Raises:
        DeviceError: devices are wanted and cannot be had; says why.
    """
    if wanted == "files":
        return "files"
    why_not = devices.why_no_devices()
    if wanted == "devices" and why_not:
        raise devices.DeviceError(f"no devices here: {why_not}; use --targets files")
    return "files" if why_not else "devices"


@contextlib.contextmanager
def site(directory: Path, sizes: Sizes, *, kind: str, failing: str | None) -> Iterator[Site]:
    """Make the places for one store; take them away when the block ends.

    Args:
        directory: to make.
        sizes: of the pools.
        kind: ``devices`` or ``files``.
        failing: the pool that shall be able to fail, COPYPOOL1 or ACTIVEDATAPOOL.
    """
    directory.mkdir()
    with undisturbed() as stack:
        make = _on_devices if kind == "devices" else _on_files
        volumes, kinds, fault = make(stack, directory, sizes, failing)
        config = directory / "fanout.toml"
        config.write_text(describe(volumes, sizes), encoding="utf-8")
        yield Site(config, kinds, fault)


Volumes = dict[str, list[tuple[str, int | None]]]
_Made = tuple[Volumes, dict[str, str], "Fault | None"]


def _on_devices(
    stack: contextlib.ExitStack, directory: Path, sizes: Sizes, failing: str | None
) -> _Made:
    def loop(name: str, size_bytes: int) -> str:
        return stack.enter_context(devices.loop(directory / name, size_bytes=size_bytes))

    def thin(name: str, size_bytes: int) -> devices.ThinLoop:
        return stack.enter_context(devices.thin_loop(directory / name, size_bytes=size_bytes))

    volumes: Volumes = {
        DISK: [(loop("disk.img", sizes.disk), None)],
        COPY2: [(loop("copy2.img", sizes.copy), None)],
    }
    kinds = {DISK: "loop", TAPE: "sequential files", COPY2: "loop"}
    faults: dict[str, Fault] = {}
    if devices.why_no_zram() is None:
        compressed = stack.enter_context(devices.zram(size_bytes=sizes.copy))
        volumes[COPY1], kinds[COPY1] = [(compressed.device, None)], "zram"
        faults[COPY1] = _zram_fault(compressed, sizes.grace)
    else:
        copy1 = thin("copy1", sizes.copy)
        volumes[COPY1], kinds[COPY1] = [(copy1.device, None)], "loop on tmpfs"
        faults[COPY1] = _thin_fault(COPY1, copy1, sizes.copy, sizes.grace)
    active = thin("active", sizes.active)
    volumes[ACTIVE], kinds[ACTIVE] = [(active.device, None)], "loop on tmpfs"
    faults[ACTIVE] = _thin_fault(ACTIVE, active, sizes.active, sizes.grace)
    return volumes, kinds, faults[failing] if failing else None


def _zram_fault(compressed: devices.Zram, grace_bytes: int) -> Fault:
    return Fault(
        COPY1,
        f"{compressed.device} is a zram device and reaches its memory limit",
        "EIO",
        arm=lambda: compressed.limit(compressed.used() + grace_bytes),
        heal=lambda: compressed.limit(0),
    )


def _thin_fault(pool: str, thin: devices.ThinLoop, size_bytes: int, grace_bytes: int) -> Fault:
    return Fault(
        pool,
        f"{thin.device} is a loop device and the file system under it is full",
        "ENOSPC",
        arm=lambda: thin.resize(thin.used() + grace_bytes),
        heal=lambda: thin.resize(size_bytes + GRACE_BYTES),
    )


def _on_files(
    stack: contextlib.ExitStack, directory: Path, sizes: Sizes, failing: str | None
) -> _Made:
    long = {COPY1: sizes.copy, ACTIVE: sizes.active}
    volumes: Volumes = {}
    for pool in (DISK, COPY1, COPY2, ACTIVE):
        lengths = [long[pool]] if pool == failing else sizes.divided(pool)
        volumes[pool] = [
            (str(directory / f"{pool.lower()}{number}.vol"), length)
            for number, length in enumerate(lengths)
        ]
    kinds = dict.fromkeys(POOLS, "files")
    kinds[TAPE] = "sequential files"
    stack.callback(_remove_files, directory)
    if failing is None:
        return volumes, kinds, None
    stack.callback(devices.file_size_limit, None)
    fault = Fault(
        failing,
        f"This process may write files up to {format_size(sizes.limit)} only, "
        f"and {failing}'s volume is the one that is longer",
        "EFBIG",
        arm=lambda: devices.file_size_limit(sizes.limit),
        heal=lambda: devices.file_size_limit(None),
    )
    return volumes, kinds, fault


def _remove_files(directory: Path) -> None:
    for path in directory.glob("*.vol"):
        path.unlink()


def describe(volumes: Volumes, sizes: Sizes) -> str:
    """The text of fanout.toml."""
    lines = [
        "[store]",
        'catalog = "catalog.db"',
        "",
        "[device_classes.disk]",
        'type = "disk"',
        "",
        "[device_classes.tape]",
        'type = "file"',
        'directory = "tapes"',
        f"volume_size = {sizes.limit}",
        f"max_volumes = {sizes.tape}",
        "",
        f"[pools.{DISK}]",
        'type = "primary"',
        'device_class = "disk"',
        f"volumes = {_volume_list(volumes[DISK])}",
        f'next = "{TAPE}"',
        f'copy_pools = ["{COPY1}", "{COPY2}"]',
        f'active_data_pools = ["{ACTIVE}"]',
        "copy_continue = true",
        "",
        f"[pools.{TAPE}]",
        'type = "primary"',
        'device_class = "tape"',
    ]
    for pool, kind in ((COPY1, "copy"), (COPY2, "copy"), (ACTIVE, "active-data")):
        lines += [
            "",
            f"[pools.{pool}]",
            f'type = "{kind}"',
            'device_class = "disk"',
            f"volumes = {_volume_list(volumes[pool])}",
        ]
    lines += [
        "",
        f"[domains.{FAST_DOMAIN}]",
        f'destination = "{DISK}"',
        f'active_destinations = ["{ACTIVE}"]',
        "",
        f"[domains.{NORMAL_DOMAIN}]",
        f'destination = "{DISK}"',
        "",
        f'[nodes.{FAST}]\ndomain = "{FAST_DOMAIN}"',
        "",
        f'[nodes.{NORMAL}]\ndomain = "{NORMAL_DOMAIN}"',
        "",
    ]
    return "\n".join(lines)


def _volume_list(volumes: list[tuple[str, int | None]]) -> str:
    def one(path: str, size: int | None) -> str:
        quoted = path.replace("\\", "\\\\").replace('"', '\\"')
        return f'{{ path = "{quoted}"' + (f", size = {size}" if size else "") + " }"

    return "[\n  " + ",\n  ".join(one(*volume) for volume in volumes) + ",\n]"


def _room(inputs: Sequence[Input]) -> int:
    """What spans with these objects take, with some air: a 32nd, and what a transaction asks for ahead."""
    framing = sum(FRAGMENT + len(one.name) for one in inputs)
    data = sum(one.length for one in inputs)
    return data + framing + data // 32 + 3 * PIECE_BYTES


def _space(volume_bytes: int) -> int:
    """What a volume of this size has for spans."""
    return volume_bytes - 2 * BLOCK - 2 * default_directory_bytes(volume_bytes, BLOCK)


def _usable(volume_bytes: int) -> int:
    """How much of that is surely used before the next volume is begun."""
    return _space(volume_bytes) - PIECE_BYTES


def _volume_bytes(room: int) -> int:
    """The shortest volume, in whole MiB, with so much for spans."""
    size = _pages(room)
    while _space(size) < room:
        size += MIB
    return size


def _pages(size: int) -> int:
    """Up to the next MiB."""
    return -(-size // MIB) * MIB
