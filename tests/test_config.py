"""The configuration file: what it means, and that every mistake says where and what is allowed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from fanout import config as cfg
from fanout.errors import ConfigError, UnknownPool
from fanout.types import Destination, PoolKind, Primary, Secondary
from fanout.units import format_seconds, format_size, parse_seconds, parse_size

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
[store]
catalog = "catalog.db"

[engine]
memory = "128 MiB"
slot = "2 MiB"
streams = 12
backend = "threads"
soft_deadline = "1500 ms"
hard_deadline = "2 min"
patience = "4 s"

[device_classes.disk]
type = "disk"

[device_classes.seq]
type = "file"
directory = "volumes"
volume_size = "1 GiB"
max_volumes = 4

[pools.DISKPOOL]
type = "primary"
device_class = "disk"
volumes = [{ path = "disk0.vol", size = "256 MiB" }, { path = "/dev/disk9" }]
next = "TAPEPOOL"
max_size = "1 GiB"
copy_pools = ["COPYPOOL1", "COPYPOOL2"]
active_data_pools = ["ACTIVEDATAPOOL"]
copy_continue = false

[pools.TAPEPOOL]
type = "primary"
device_class = "seq"
access = "readonly"

[pools.COPYPOOL1]
type = "copy"
device_class = "seq"

[pools.COPYPOOL2]
type = "copy"
device_class = "seq"
access = "unavailable"
verify = "readback"

[pools.ACTIVEDATAPOOL]
type = "active-data"
device_class = "seq"
on_slow = "eject"

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

FILE = "/etc/fanout/fanout.toml"


def parse(text: str = GOOD) -> cfg.Config:
    return cfg.parse(text, path=FILE)


def test_values_arrive_typed_and_in_base_units(tmp_path: Path) -> None:
    """Seconds read as milliseconds would be off by orders of magnitude."""
    file = tmp_path / "fanout.toml"
    file.write_text(GOOD)
    config = cfg.load(file)
    assert config.path == file
    assert config.store == cfg.StoreConfig(tmp_path / "catalog.db")
    assert config.engine == cfg.EngineConfig(128 << 20, 2 << 20, 12, "threads", 1.5, 120.0, 4.0)
    assert config.device_classes["seq"] == cfg.DeviceClass(
        "seq", cfg.DeviceType.FILE, tmp_path / "volumes", 1 << 30, 4
    )
    disk = config.pools["DISKPOOL"]
    assert disk.kind is PoolKind.PRIMARY
    assert [(str(v.path), v.size) for v in disk.volumes] == [
        (str(tmp_path / "disk0.vol"), 256 << 20),
        ("/dev/disk9", None),
    ]
    assert (disk.max_size, disk.next, disk.copy_continue) == (1 << 30, "TAPEPOOL", False)
    assert config.pools["COPYPOOL2"].access is cfg.Access.UNAVAILABLE
    assert config.pools["ACTIVEDATAPOOL"].on_slow is cfg.OnSlow.EJECT
    assert config.pools["COPYPOOL2"].on_slow is cfg.OnSlow.WAIT
    assert config.verified == {"COPYPOOL2"}


def test_the_values_are_frozen() -> None:
    """Sessions share the configuration: one that could change it would change the others' rules."""
    config = parse()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.pools["DISKPOOL"].next = None  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.pools["X"] = config.pools["DISKPOOL"]  # type: ignore[index]


def test_defaults() -> None:
    """The smallest useful file: everything that may be left out is."""
    config = parse(
        '[store]\ncatalog = "c.db"\n[device_classes.d]\ntype = "disk"\n'
        '[pools.P]\ntype = "primary"\ndevice_class = "d"\nvolumes = [{path = "p.vol"}]\n'
    )
    assert config.engine == cfg.EngineConfig()
    assert config.pools["P"].copy_continue
    assert config.pools["P"].access is cfg.Access.READWRITE
    assert not config.nodes


def test_a_store_has_no_more_volumes_than_its_engine_can_hold() -> None:
    def text(count: int) -> str:
        pools = ""
        for pool in "PQ":
            volumes = ", ".join(f'{{path = "{pool}{number}.vol"}}' for number in range(count // 2))
            pools += (
                f'[pools.{pool}]\ntype = "primary"\ndevice_class = "d"\nvolumes = [{volumes}]\n'
            )
        return f'[store]\ncatalog = "c.db"\n[device_classes.d]\ntype = "disk"\n{pools}'

    sequential = """
[device_classes.s]
type = "file"
directory = "s"
volume_size = "1 MiB"
[pools.R]
type = "primary"
device_class = "s"
"""
    assert len(parse(text(256)).pools["Q"].volumes) == 128
    with pytest.raises(ConfigError, match="at most 256 volumes, these pools need 258"):
        parse(text(258))
    with pytest.raises(ConfigError, match="at most 256 volumes, these pools need 257"):
        parse(text(256) + sequential)


def test_verify_of_the_store_is_that_of_its_pools_unless_they_say_otherwise() -> None:
    """A default that did not reach the pools, or that a pool could not leave."""
    text = GOOD.replace('catalog = "catalog.db"', 'catalog = "catalog.db"\nverify = "readback"')
    text = text.replace('on_slow = "eject"', 'verify = "none"')
    assert parse(text).verified == {"DISKPOOL", "TAPEPOOL", "COPYPOOL1", "COPYPOOL2"}


def test_destination_of_a_node_whose_domain_allows_active_data() -> None:
    """Rules R6 and R19: the destination's own lists, in list order, copy pools first."""
    assert parse().destination("N1") == Destination(
        chain=(Primary("DISKPOOL", 1 << 30, True), Primary("TAPEPOOL", None, False)),
        secondaries=(
            Secondary("COPYPOOL1", PoolKind.COPY),
            Secondary("COPYPOOL2", PoolKind.COPY),
            Secondary("ACTIVEDATAPOOL", PoolKind.ACTIVE_DATA),
        ),
        copy_continue=False,
    )


def test_a_domain_without_the_active_data_pool_leaves_it_out() -> None:
    """Rule R19: not listed in the domain is no error and no requirement."""
    assert [s.pool for s in parse().destination("n2").secondaries] == ["COPYPOOL1", "COPYPOOL2"]


def test_names_are_looked_up_in_any_case_and_unknown_ones_say_what_there_is() -> None:
    """Operators type `diskpool`; the names that exist are the mend."""
    assert parse().pool("diskpool").name == "DISKPOOL"
    with pytest.raises(UnknownPool, match=r"COPYSTGPOOL1: .*did you mean \"COPYPOOL1\".*DISKPOOL"):
        parse().pool("COPYSTGPOOL1")
    with pytest.raises(UnknownPool, match=r"no such node.*N1, N2"):
        parse().destination("N3")


MISTAKES = [
    # (text to replace, replacement, dotted key, what the message must say)
    ('catalog = "catalog.db"', "", "store.catalog", "missing"),
    ('catalog = "catalog.db"', 'catalog = ""', "store.catalog", "empty"),
    ('catalog = "catalog.db"', "catalog = 7", "store.catalog", "must be a string, found a number"),
    ('catalog = "catalog.db"', 'catalog = "fanout.toml"', "store.catalog", "configuration file"),
    ('catalog = "catalog.db"', 'catalogue = "c"', "store.catalogue", 'did you mean "catalog"'),
    ("[store]", "[stor]", "stor", 'did you mean "store"'),
    ("[store]", "store = 1\n[x]", "x", "unknown key"),
    ('memory = "128 MiB"', 'memory = "128 MB"', "engine.memory", "multiple of the slot"),
    ('memory = "128 MiB"', 'memory = "2 MiB"', "engine.memory", "at least"),
    ('memory = "128 MiB"', 'memory = "lots"', "engine.memory", "64 MiB"),
    ('memory = "128 MiB"', 'memory = "128 MiX"', "engine.memory", "unknown unit 'MiX'"),
    ('memory = "128 MiB"', 'memory = "128"', "engine.memory", "unit is missing"),
    ('memory = "128 MiB"', 'memory = "0 B"', "engine.memory", "at least 1 byte"),
    ('memory = "128 MiB"', "memory = -1", "engine.memory", "negative"),
    ('memory = "128 MiB"', 'memory = "-1 MiB"', "engine.memory", "not a number with a unit"),
    ('memory = "128 MiB"', "memory = true", "engine.memory", "found true or false"),
    ('memory = "128 MiB"', 'memory = "9999999999 PiB"', "engine.memory", "8 EiB"),
    ('memory = "128 MiB"', 'memory = "70 MiB"', "engine.memory", "36 of them for 12 streams"),
    ("streams = 12", "streams = 0", "engine.streams", "1 to 256"),
    ('slot = "2 MiB"', 'slot = "3 MiB"', "engine.slot", "power of two"),
    ('slot = "2 MiB"', 'slot = "32 KiB"', "engine.slot", "64.0 KiB"),
    ('"threads"', '"iouring"', "engine.backend", 'did you mean "io_uring"'),
    ('"1500 ms"', '"3 h"', "engine.hard_deadline", "before the soft deadline"),
    ('"1500 ms"', '"soon"', "engine.soft_deadline", "30 s"),
    ('"1500 ms"', "nan", "engine.soft_deadline", "finite"),
    ('"1500 ms"', "0", "engine.soft_deadline", "1 ms to one year"),
    ('"1500 ms"', "[]", "engine.soft_deadline", "found a list"),
    ('type = "file"', 'type = "tape"', "device_classes.seq.type", "not one of disk, file"),
    ('type = "file"', "", "device_classes.seq.type", "missing"),
    ('directory = "volumes"', "", "device_classes.seq.directory", "missing"),
    ('directory = "volumes"', 'dir = "v"', "device_classes.seq.dir", "unknown key"),
    ('"1 GiB"\nmax_v', '"1000001 B"\nmax_v', "device_classes.seq.volume_size", "multiple of 4096"),
    ('"1 GiB"\nmax_v', '"4 KiB"\nmax_v', "device_classes.seq.volume_size", "at least 1.00 MiB"),
    ('volume_size = "1 GiB"', "", "device_classes.seq.volume_size", "missing"),
    ("max_volumes = 4", "max_volumes = 0", "device_classes.seq.max_volumes", "1 to 256"),
    ("max_volumes = 4", "max_volumes = 2.5", "device_classes.seq.max_volumes", "whole number"),
    ('type = "disk"', 'type = "disk"\ndirectory = "x"', "device_classes.disk.directory", "unknown"),
    ("[pools.DISKPOOL]", '[pools."A B"]', "pools.A B", "not a name"),
    ("[pools.DISKPOOL]", f"[pools.{'P' * 31}]", "pools." + "P" * 31, "1 to 30 characters"),
    ("[pools.TAPEPOOL]", "[pools.diskpool]", "pools.diskpool", 'only in case from "DISKPOOL"'),
    ("[pools.TAPEPOOL]", "[pools.DISKPOOL]", "", "not valid TOML"),
    ('type = "copy"\ndevice_class = "seq"\n\n', "", "pools.COPYPOOL1.type", "missing"),
    ('"primary"\ndevice_class = "disk"', '"primary"', "pools.DISKPOOL.device_class", "missing"),
    ('device_class = "disk"', 'device_class = "dsk"', "pools.DISKPOOL.device_class", '"disk"'),
    ('device_class = "disk"', 'device_class = "seq"', "pools.DISKPOOL.volumes", "not listed"),
    ("[{ path", "3 #", "pools.DISKPOOL.volumes", "must be a list of tables"),
    ("[{ path", '["a"] #', "pools.DISKPOOL.volumes[0]", "must be a table"),
    ("[{ path", "[] #", "pools.DISKPOOL.volumes", "at least one"),
    ('path = "disk0.vol", ', "", "pools.DISKPOOL.volumes[0].path", "missing"),
    ('"256 MiB"', '"256 MiB", sise = 1', "pools.DISKPOOL.volumes[0].sise", "size"),
    ('"256 MiB"', "1048577", "pools.DISKPOOL.volumes[0].size", "multiple of 4096"),
    ('"256 MiB"', '"10 MB"', "pools.DISKPOOL.volumes[0].size", "MiB and GiB are powers of two"),
    ('"256 MiB"', "0", "pools.DISKPOOL.volumes[0].size", "at least 1 byte"),
    ('"/dev/disk9"', '"disk0.vol"', "pools.DISKPOOL.volumes[1].path", r"volumes\[0\]"),
    ('"/dev/disk9"', '"./x/../disk0.vol"', "pools.DISKPOOL.volumes[1].path", "used twice"),
    ('"/dev/disk9"', '"catalog.db"', "pools.DISKPOOL.volumes[1].path", "store.catalog"),
    ('"/dev/disk9"', '"a\\u0000b"', "pools.DISKPOOL.volumes[1].path", "zero byte"),
    ('next = "TAPEPOOL"', 'next = "TAPE"', "pools.DISKPOOL.next", 'unknown pool "TAPE"'),
    ('next = "TAPEPOOL"', 'next = "COPYPOOL1"', "pools.DISKPOOL.next", "type primary"),
    ('next = "TAPEPOOL"', 'next = "DISKPOOL"', "pools.DISKPOOL.next", "DISKPOOL -> DISKPOOL"),
    ('"readonly"', '"readonly"\nnext = "DISKPOOL"', "pools.TAPEPOOL.next", "circle"),
    ('max_size = "1 GiB"', 'max_size = "0 B"', "pools.DISKPOOL.max_size", "at least 1 byte"),
    ('["COPYPOOL1", ', '["COPYPOOL2", ', "pools.DISKPOOL.copy_pools[1]", "twice"),
    ('["COPYPOOL1", ', '["copypool1", ', "pools.DISKPOOL.copy_pools[0]", 'mean "COPYPOOL1"'),
    ('["COPYPOOL1", ', '["TAPEPOOL", ', "pools.DISKPOOL.copy_pools[0]", "of type primary"),
    ('["COPYPOOL1", ', "[4, ", "pools.DISKPOOL.copy_pools[0]", "must be a name"),
    ('["COPYPOOL1", ', '["ACTIVEDATAPOOL", ', "pools.DISKPOOL.copy_pools[0]", "active-data"),
    (
        "copy_continue = false",
        'copy_continue = "no"',
        "pools.DISKPOOL.copy_continue",
        "true or fal",
    ),
    ('"4 s"', '"0 s"', "engine.patience", "1 ms to one year"),
    ('"eject"', '"ejct"', "pools.ACTIVEDATAPOOL.on_slow", 'wait, eject; did you mean "eject"'),
    ('"readback"', '"redback"', "pools.COPYPOOL2.verify", 'did you mean "readback"'),
    ('"catalog.db"', '"catalog.db"\nverify = true', "store.verify", "must be a string"),
    ('access = "readonly"', 'on_slow = "eject"', "pools.TAPEPOOL.on_slow", "primary is waited for"),
    ('access = "readonly"', 'access = "ro"', "pools.TAPEPOOL.access", "readwrite, readonly"),
    ('type = "copy"', 'type = "copy"\nnext = "X"', "pools.COPYPOOL1.next", "only primary pools"),
    ('type = "copy"', 'type = "copy"\ncopy_pools = []', "pools.COPYPOOL1.copy_pools", "only prim"),
    ('destination = "DISKPOOL"', "", "domains.FASTRESTORE.destination", "missing"),
    (
        'destination = "DISKPOOL"',
        'destination = "COPYPOOL1"',
        "domains.FASTRESTORE.destination",
        "y",
    ),
    (
        '["ACTIVEDATAPOOL"]\n\n',
        '["COPYPOOL1"]\n',
        "domains.FASTRESTORE.active_destinations[0]",
        "ac",
    ),
    ('domain = "NORMAL"', 'domain = "NORMA"', "nodes.N2.domain", 'did you mean "NORMAL"'),
    ("[nodes.N2]", "[nodes]\nN2 = 5\n[nodes.N3]", "nodes.N2", "must be a table"),
]


@pytest.mark.parametrize(("old", "new", "key", "says"), MISTAKES)
def test_every_mistake_names_file_key_and_what_is_allowed(
    old: str, new: str, key: str, says: str
) -> None:
    """Without the place the operator must hunt; a mistake that passes costs data later."""
    assert old in GOOD
    with pytest.raises(ConfigError, match=says) as caught:
        parse(GOOD.replace(old, new, 1))
    assert caught.value.path == FILE
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{FILE}: {key}" if key else f"{FILE}: ")


def test_the_strict_limit_is_three_secondaries_and_the_loose_one_fifteen() -> None:
    """TV33: three copy pools and one active-data pool are refused under `strict_limits` alone."""

    def text(copies: int, *, strict: bool) -> str:
        names = [f"C{n}" for n in range(copies)]
        pools = "".join(f'[pools.{n}]\ntype = "copy"\ndevice_class = "seq"\n' for n in names)
        listed = ", ".join(f'"{n}"' for n in names)
        out = GOOD.replace('["COPYPOOL1", "COPYPOOL2"]', f"[{listed}]") + pools
        return out.replace("[store]", f"[store]\nstrict_limits = {str(strict).lower()}")

    assert len(parse(text(2, strict=True)).destination("N1").secondaries) == 3
    assert len(parse(text(14, strict=False)).destination("N1").secondaries) == 15
    with pytest.raises(ConfigError, match=r"at most 3 \(store.strict_limits is true\), found 4"):
        parse(text(3, strict=True))
    with pytest.raises(ConfigError, match=r"at most 15, found 16"):
        parse(text(15, strict=False))


def test_at_most_ten_active_destinations() -> None:
    """The limit of a domain's list."""
    names = [f"A{n}" for n in range(11)]
    pools = "".join(f'[pools.{n}]\ntype = "active-data"\ndevice_class = "seq"\n' for n in names)
    listed = "active_destinations = [" + ", ".join(f'"{n}"' for n in names) + "]"
    with pytest.raises(ConfigError, match="at most 10 pools, found 11"):
        parse(GOOD.replace('active_destinations = ["ACTIVEDATAPOOL"]', listed) + pools)


def test_a_circle_blames_the_pool_that_closes_it() -> None:
    """A pool that merely leads into a circle is innocent."""
    text = GOOD.replace('"readonly"', '"readonly"\nnext = "DISKPOOL"') + (
        '[pools.A]\ntype = "primary"\ndevice_class = "seq"\nnext = "DISKPOOL"\n'
    )
    with pytest.raises(ConfigError, match="DISKPOOL -> TAPEPOOL -> DISKPOOL") as caught:
        parse(text)
    assert caught.value.key == "pools.TAPEPOOL.next"


def test_unreadable_files_are_configuration_errors(tmp_path: Path) -> None:
    """A traceback with UnicodeDecodeError helps nobody."""
    with pytest.raises(ConfigError, match=r"missing.toml: cannot be read: No such file"):
        cfg.load(tmp_path / "missing.toml")
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"[store]\ncatalog = '\xff'\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        cfg.load(bad)
    with pytest.raises(ConfigError, match="cannot be read"):
        cfg.load(tmp_path)
    deep = tmp_path / "deep.toml"
    deep.write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match="not valid TOML"):
        cfg.load(deep)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0 B", 0),
        ("1B", 1),
        ("1.5 KiB", 1536),
        ("64mib", 64 << 20),
        ("10 GB", 10**10),
        (7, 7),
        ("  2 TiB ", 2 << 40),
        ("0.001 MB", 1000),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    """Sizes are exact: a float would lose bytes above 2**53."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "B", "1.0000001 KiB", "1e3 B", "٣ B", "0x10 B", "1 KiB 2", "1,5 KiB"]
)
def test_what_is_no_size(text: str) -> None:
    """Anything but plain digits and a unit is refused rather than guessed."""
    with pytest.raises(ValueError, match=r".+"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30 s", 30), ("1.5 ms", 0.0015), ("2 min", 120), ("1 h", 3600), (0.25, 0.25)],
)
def test_times(text: str | float, seconds: float) -> None:
    """A deadline in the wrong unit lets go of healthy targets."""
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
def test_what_is_no_time(value: float) -> None:
    """NaN compares false with everything: as a deadline it would never pass."""
    with pytest.raises(ValueError, match="finite"):
        parse_seconds(value)


def test_sizes_and_times_for_people() -> None:
    """Rounding must not produce "1024 KiB" or "60.0 s"."""
    sizes = [0, 1023, 1024, 1536, 10 << 20, (1 << 20) - 1, 999 << 30, 5 << 60]
    assert [format_size(n) for n in sizes] == [
        "0 B",
        "1023 B",
        "1.00 KiB",
        "1.50 KiB",
        "10.0 MiB",
        "1.00 MiB",
        "999 GiB",
        "5120 PiB",
    ]
    times = [0.0124, 0.9996, 3.44, 59.96, 125, 7260]
    assert [format_seconds(t) for t in times] == [
        "12 ms",
        "1.0 s",
        "3.4 s",
        "1 min 0 s",
        "2 min 5 s",
        "2 h 1 min",
    ]
