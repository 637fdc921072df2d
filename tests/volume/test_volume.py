"""A volume is opened that should not be, cannot be opened that should, or a crash leaves neither."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fanout import format as fmt
from fanout.directory import Directory
from fanout.errors import (
    FanoutError,
    InterfaceError,
    VolumeBusy,
    VolumeError,
    VolumeForeign,
    VolumeStale,
    VolumeTorn,
)
from fanout.format import SuperblockState
from fanout.making import create_volume, probe
from fanout.types import Phase
from fanout.volume import Volume, VolumeState
from tests.format.samples import record
from tests.volume.image import Disk, ImageEngine, PowerCut

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

STORE, POOL = b"S" * 16, b"P" * 16
ROOT = Path(__file__).parents[2]
SIZE = 2 << 20
PATH = "a.vol"


def engine_for(disks: dict[str, Disk], cut: int | None = None) -> Any:
    return ImageEngine(disks, cut=cut)


def create(engine: Any, path: str = PATH, **options: Any) -> fmt.Superblock:
    values = {"store": STORE, "pool": "DISKPOOL", "pool_uuid": POOL, "size": SIZE}
    return create_volume(engine, path, directory_bytes=64 << 10, **{**values, **options})


def open_(engine: Any, block: fmt.Superblock, epoch: int, **options: Any) -> Volume:
    values = {"store": STORE, "pool": "DISKPOOL", "volume": block.volume, "catalog_epoch": epoch}
    return Volume.open(engine, PATH, **{**values, **options})


@pytest.fixture
def made() -> tuple[Any, fmt.Superblock]:
    engine = engine_for({})
    return engine, create(engine)


def test_its_life(made: tuple[Any, fmt.Superblock]) -> None:
    engine, block = made
    volume = open_(engine, block, 1)
    assert (volume.state, volume.superblock.epoch) == (VolumeState.CLAIMED, 2)
    with pytest.raises(VolumeError, match="claimed"):
        volume.prepare([record(1)])
    volume.confirm()
    assert volume.writable
    requests = volume.prepare([record(1)])
    assert volume.written(engine.run(requests))
    volume.flush()
    with pytest.raises(VolumeBusy, match="locked"):
        open_(engine, block, 2)
    volume.close()
    volume.close()
    again = open_(engine, block, 2)
    assert again.directory is not None
    assert list(again.directory.records.values()) == [record(1)]


@pytest.mark.parametrize(
    ("epoch", "state", "known", "verdict"),
    [
        (5, "confirmed", 5, None),
        (5, "provisional", 5, None),
        (5, "provisional", 4, None),
        (5, "confirmed", 4, "catalog"),
        (5, "provisional", 3, "catalog"),
        (5, "confirmed", 1, "catalog"),
        (5, "confirmed", 6, "volume"),
        (5, "provisional", 6, "volume"),
        (5, "confirmed", 9, "volume"),
    ],
)
def test_epochs(
    made: tuple[Any, fmt.Superblock], epoch: int, state: str, known: int, verdict: str | None
) -> None:
    """A catalog that is even one opening old must not pass for the newest: it would overwrite live data."""
    engine, block = made
    block = replace(block, epoch=epoch, state=SuperblockState[state.upper()], sequence=50)
    for copy in (0, 1):
        put(engine, block.copy_offset(copy), fmt.encode_superblock(block, copy))
    before = bytes(engine.disks[PATH].data)
    if verdict is None:
        assert open_(engine, block, known).superblock.epoch == known + 1
        return
    with pytest.raises(VolumeStale) as caught:
        open_(engine, block, known)
    assert caught.value.catalog_is_older == (verdict == "catalog")
    assert bytes(engine.disks[PATH].now()) == before, "something was written"


def put(engine: Any, offset: int, data: bytes) -> None:
    engine.disks[PATH].data[offset : offset + len(data)] = data


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"store": b"?" * 16}, VolumeForeign, "belongs to store"),
        ({"pool": "OTHER"}, VolumeForeign, "is of pool DISKPOOL: name it there"),
        ({"volume": b"?" * 16}, VolumeForeign, "swapped"),
    ],
)
def test_strangers_are_refused(
    made: tuple[Any, fmt.Superblock], options: dict[str, Any], error: type, message: str
) -> None:
    engine, block = made
    before = bytes(engine.disks[PATH].now())
    with pytest.raises(error, match=message):
        open_(engine, block, 1, **options)
    assert bytes(engine.disks[PATH].now()) == before
    open_(engine, block, 1)  # and the lock was given back


def test_another_kind_of_file_system_is_refused(made: tuple[Any, fmt.Superblock]) -> None:
    """A file with the right content below an unmounted network directory is still the wrong place."""
    engine, block = made
    engine.disks[PATH].fs_magic = 0x6969
    with pytest.raises(VolumeForeign, match=r"is everything mounted.*moved = true"):
        open_(engine, block, 1)
    volume = open_(engine, block, 1, moved=True)
    volume.confirm()
    volume.close()
    open_(engine, block, 2)


def test_a_cut_off_device_is_refused(made: tuple[Any, fmt.Superblock]) -> None:
    engine, block = made
    del engine.disks[PATH].data[SIZE - 8192 :]
    with pytest.raises(VolumeTorn, match="cut off"):
        open_(engine, block, 1)


def test_a_coarser_device_is_refused(made: tuple[Any, fmt.Superblock]) -> None:
    engine, block = made
    engine.disks[PATH].granule = 16384
    with pytest.raises(VolumeForeign, match="smaller sectors"):
        open_(engine, block, 1)


def test_a_missing_file_is_not_made() -> None:
    """Opening never creates: a file in the empty mount point would take everything, successfully."""
    engine = engine_for({})
    block = create(engine, "other.vol")
    with pytest.raises(VolumeError, match="is it mounted"):
        open_(engine, block, 1)
    assert set(engine.disks) == {"other.vol"}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("harm", ["zero", "flip", "old"])
def test_one_superblock_is_enough(made: tuple[Any, fmt.Superblock], which: int, harm: str) -> None:
    """Each of the two alone carries the volume, and it is mended by the next opening."""
    engine, block = made
    volume = open_(engine, block, 1)
    volume.confirm()
    newest = volume.superblock
    volume.close()
    at = block.copy_offset(which)
    if harm == "zero":
        put(engine, at, bytes(4096))
    elif harm == "flip":
        put(engine, at + 90, bytes([engine.disks[PATH].data[at + 90] ^ 4]))
    else:
        put(engine, at, fmt.encode_superblock(replace(newest, epoch=2, sequence=1), which))
    again = open_(engine, block, 2)
    assert again.superblock.epoch == 3
    again.confirm()
    again.close()
    for copy in (0, 1):
        data = bytes(engine.disks[PATH].data[block.copy_offset(copy) :][:4096])
        found = fmt.decode_superblock(data, path=PATH, offset=block.copy_offset(copy))
        assert found.epoch == 3


def test_superblock_b_is_found_on_a_larger_device(made: tuple[Any, fmt.Superblock]) -> None:
    """The volume is not the whole device, and A is gone: only who knows its size finds B."""
    engine, block = made
    engine.disks[PATH].data += bytes(1 << 20)
    put(engine, 0, bytes(4096))
    with pytest.raises(VolumeForeign, match="there is none"):
        open_(engine, block, 1)
    open_(engine, block, 1, size=SIZE).confirm()


def test_random_damage_is_a_typed_error_or_nothing(rng: random.Random) -> None:
    """No bytes on a volume can crash an opening; and what opens has lost no superblock's word."""
    base = engine_for({})
    block = create(base)
    volume = open_(base, block, 1)
    volume.confirm()
    for csn in range(1, 30):
        assert volume.written(base.run(volume.prepare([record(csn, spans=csn % 4)])))
    volume.flush()
    volume.close()
    opened = 0
    for _ in range(150):
        data = bytearray(base.disks[PATH].data)
        for _ in range(rng.choice([1, 3, 30])):
            at = rng.choice([0, block.copy_offset(1), *range(4096, block.space_offset, 4096)])
            at += rng.randrange(rng.choice([300, 4096]))
            length = rng.choice([1, 8, 512, 5000])
            data[at : at + length] = rng.randbytes(min(length, len(data) - at))
        try:
            found = open_(engine_for({PATH: Disk(data)}), block, 2)
        except VolumeError:
            continue
        assert found.superblock.epoch == 3
        opened += 1
    assert opened > 10


def test_without_superblocks_it_is_no_volume(made: tuple[Any, fmt.Superblock]) -> None:
    engine, block = made
    put(engine, 0, bytes(4096))
    put(engine, SIZE - 4096, bytes(4096))
    with pytest.raises(VolumeForeign, match="there is none"):
        open_(engine, block, 1)
    put(engine, 0, b"\x89FNOUT\r\n" + b"?" * 100)
    with pytest.raises(VolumeTorn):
        open_(engine, block, 1)


# ---- power cuts --------------------------------------------------------------------------------------


def every_cut(
    prepare: Callable[[], dict[str, Disk]], action: Callable[[Any], object], rng: random.Random
) -> list[tuple[int, dict[str, Disk]]]:
    """What may be on the disks after a power cut before each operation of an action, several times each."""
    found = []
    cut = 0
    while True:
        for _ in range(6):
            disks = prepare()
            engine = engine_for(disks, cut)
            try:
                action(engine)
            except PowerCut:
                found.append(
                    (cut, {name: disk.after_power_cut(rng) for name, disk in disks.items()})
                )
            else:
                return found
        cut += 1


def test_creation_may_be_cut_anywhere(rng: random.Random) -> None:
    """Afterwards there is no volume, or a whole empty one; never one that opens with something missing."""

    def blank() -> dict[str, Disk]:
        older = create(engine := engine_for({}))
        volume = open_(engine, older, 1)
        volume.confirm()
        assert volume.written(engine.run(volume.prepare([record(1)])))
        volume.flush()
        volume.close()
        return {PATH: engine.disks[PATH]}

    def action(engine: Any) -> None:
        _patched_create(engine)

    outcomes = set()
    for _, disks in every_cut(blank, action, rng):
        engine = engine_for(disks)
        try:
            found = probe(engine, PATH)
        except FanoutError:
            outcomes.add("none")
            continue
        assert found is not None
        volume = Volume.open(
            engine, PATH, store=STORE, pool="DISKPOOL", volume=found.volume,
            catalog_epoch=found.epoch,
        )  # fmt: skip
        assert volume.directory is not None
        old = record(1) in volume.directory.records.values()
        assert old == (found.epoch == 2), "an old directory under a new superblock"
        outcomes.add("old" if old else "new")
    assert outcomes == {"none", "old", "new"}


def _patched_create(engine: Any) -> None:
    """What `create` does with a device or a file that is there, without asking the file system."""
    from fanout import making as module

    target = engine.open(PATH, lock=True)
    block = module._new_superblock(
        target, PATH, store=STORE, pool="DISKPOOL", pool_uuid=POOL, size=SIZE,
        directory_bytes=64 << 10, created_ns=1,
    )  # fmt: skip
    module._lay_out(engine, target, block)


def test_opening_may_be_cut_anywhere(rng: random.Random) -> None:
    """Twice in a row, with a catalog that heard of the epoch or not: it opens, and what was durable is there."""
    base = engine_for({})
    block = create(base)
    volume = open_(base, block, 1)
    volume.confirm()
    assert volume.written(base.run(volume.prepare([record(1)])))
    volume.flush()
    volume.close()

    def opening(known: list[int], disks: dict[str, Disk], cut: int | None) -> Volume:
        engine = engine_for(disks, cut)
        volume = open_(engine, block, known[-1])
        known.append(volume.superblock.epoch)  # the catalog's commit, durable at once
        volume.confirm()
        assert volume.written(engine.run(volume.prepare([record(2)])))
        volume.flush()
        return volume

    for first in range(8):
        for second in (*range(8), None):
            known = [2]
            disks = {PATH: Disk(bytearray(base.disks[PATH].data))}
            for cut in (first, second, None):
                try:
                    volume = opening(known, disks, cut)
                except PowerCut:
                    disks = {PATH: disks[PATH].after_power_cut(rng)}
                    continue
                volume.close()
            assert volume.directory is not None
            assert {entry.csn for entry in volume.directory.records.values()} == {1, 2}


def test_a_catalog_from_before_the_crash_is_found_out(rng: random.Random) -> None:
    """Whatever the crash left: once a volume was confirmed, the catalog of before never opens it."""
    base = engine_for({})
    block = create(base)
    for _ in range(20):
        disks = {PATH: Disk(bytearray(base.disks[PATH].data))}
        engine = engine_for(disks)
        volume = open_(engine, block, 1)
        volume.confirm()
        engine.run(volume.prepare([record(1)]))
        after = {PATH: disks[PATH].after_power_cut(rng)}
        with pytest.raises(VolumeStale):
            open_(engine_for(after), block, 1)


# ---- failing and coming back ---------------------------------------------------------------------------


def available() -> tuple[Any, fmt.Superblock, Volume]:
    engine = engine_for({})
    block = create(engine)
    volume = open_(engine, block, 1)
    volume.confirm()
    volume.load_space([])
    return engine, block, volume


def test_a_failed_flush_closes_it_for_writing() -> None:
    """Everything since the last good flush is unknown: the directory is read again, and its records are missing."""
    engine, _, volume = available()
    assert volume.written(engine.run(volume.prepare([record(1)])))
    engine.fail.add(Phase.FLUSH)
    with pytest.raises(VolumeError, match="cannot be flushed"):
        volume.flush()
    assert not volume.writable
    with pytest.raises(VolumeError, match="failed"):
        volume.prepare([record(2)])
    assert volume.read(0, 8) == fmt.MAGIC, "reads go on"
    with pytest.raises(VolumeError, match="superblock cannot be written"):
        volume.reopen(catalog_epoch=2)
    assert "superblock" in volume.reason
    engine.fail.clear()
    engine.disks[PATH].pending.clear()  # what the failed flush has lost
    volume.reopen(catalog_epoch=2)
    assert volume.state is VolumeState.CLAIMED
    volume.confirm()
    assert volume.directory is not None
    assert record(1).aggregate not in volume.directory.records
    assert volume.superblock.epoch == 3


def test_a_failed_directory_write_fails_the_volume() -> None:
    engine, _, volume = available()
    requests = volume.prepare([record(1)])
    engine.fail.add(Phase.WRITE)
    assert not volume.written(engine.run(requests))
    assert "directory" in volume.reason
    assert not volume.written(engine.run(requests)), "late news change nothing"


def test_outcomes_that_come_too_late_change_nothing() -> None:
    """The volume failed and came back while a run of requests was under way: its directory was read again."""
    engine, _, volume = available()
    outcomes = engine.run(volume.prepare([record(1)]))
    volume.fail("test")
    volume.reopen(catalog_epoch=2)
    volume.confirm()
    assert not volume.written(outcomes)
    assert volume.writable
    assert volume.prepare([record(2)])
    with pytest.raises(VolumeError, match="nobody said"):
        volume.prepare([record(3)])
    assert not volume.writable


def test_a_checkpoint_flushes_first_when_it_must() -> None:
    engine, _, volume = available()
    for csn in range(1, 60):
        assert volume.written(engine.run(volume.prepare([record(csn, aggregate=b"A" * 16)])))
    volume.close()
    assert volume.directory is not None
    assert volume.directory._live.generation > 3


def test_a_volume_that_the_engine_gave_up_is_not_writable() -> None:
    _, _, volume = available()
    volume.target.state = "detached"  # type: ignore[misc]
    assert not volume.writable
    assert "detached" in volume.reason


def test_promises_survive_a_reopening() -> None:
    """A span that was handed out before the failure and commits after it still has its room in the directory."""
    engine, _, volume = available()
    assert volume.promise(1 << 20)
    volume.fail("test")
    volume.reopen(catalog_epoch=2)
    volume.confirm()
    directory = volume.directory
    assert directory is not None
    assert directory._promised > 0
    span = record(5).spans[0]._replace(offset=1 << 20)
    assert volume.written(engine.run(volume.prepare([replace(record(5), spans=(span,))])))
    assert directory._promised == 0


@pytest.mark.parametrize("fails", [False, True])
def test_a_span_that_is_given_back_during_a_reopening(
    monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """The room in the directory is not kept for it, in the new one or in the old; else the place can never be used again."""
    _, _, volume = available()
    assert volume.promise(1 << 20)
    volume.fail("test")
    open_again, claim = Volume._open, Volume.claim

    def opened(self: Volume, *arguments: Any, **more: Any) -> None:
        open_again(self, *arguments, **more)
        self.unpromise(1 << 20)

    def claimed(self: Volume, epoch: int) -> None:
        if fails:
            raise VolumeError(self.path, "broken on purpose")
        claim(self, epoch)

    monkeypatch.setattr(Volume, "_open", opened)
    monkeypatch.setattr(Volume, "claim", claimed)
    with suppress(VolumeError):
        volume.reopen(catalog_epoch=2)
    assert volume.directory is not None
    assert volume.directory._promised == 0


def test_confirm_needs_a_claim(made: tuple[Any, fmt.Superblock]) -> None:
    engine, block = made
    volume = open_(engine, block, 1, claim=False)
    with pytest.raises(InterfaceError, match="confirm before claim"):
        volume.confirm()
    volume.claim(1)
    volume.confirm()
    with pytest.raises(InterfaceError):
        volume.confirm()


def test_a_directory_that_is_gone_is_not_empty(made: tuple[Any, fmt.Superblock]) -> None:
    engine, block = made
    put(engine, block.half_offset(0), bytes(4096))
    with pytest.raises(VolumeTorn, match="no complete directory"):
        open_(engine, block, 1)


def test_the_catalogs_regions_must_make_sense() -> None:
    _, block, volume = available()
    first = block.space_offset
    with pytest.raises(VolumeTorn, match="contradicts itself"):
        volume.load_space([(first, 8192), (first + 4096, 8192)])
    volume.load_space([(first, 100), (first + 4096, 8192)])


# ---- on a real engine ------------------------------------------------------------------------------------


def test_a_file_becomes_a_volume(real: Any, tmp_path: Any) -> None:
    """0600, preallocated, whole; and nothing is ever taken without force."""
    path = tmp_path / "r.vol"
    block = create(real, path, size=4 << 20, write_once=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 4 << 20
    assert path.stat().st_blocks * 512 >= 4 << 20
    with pytest.raises(VolumeForeign, match="--force"):
        create(real, path, size=4 << 20)
    assert probe(real, path) is not None
    volume = Volume.open(
        real, path, store=STORE, pool="DISKPOOL", volume=block.volume, catalog_epoch=1
    )
    with pytest.raises(VolumeBusy):
        create(real, path, size=4 << 20, force=True)
    volume.confirm()
    volume.close()
    again = create(real, path, size=4 << 20, force=True)
    assert again.volume != block.volume


def test_a_creation_that_fails_leaves_nothing(real: Any, tmp_path: Any) -> None:
    path = tmp_path / "r.vol"
    with pytest.raises(VolumeError, match="leaves no space"):
        create_volume(real, path, store=STORE, pool="P", pool_uuid=POOL, size=64 << 10)
    assert not path.exists()
    with pytest.raises(VolumeError, match="say how large"):
        create_volume(real, path, store=STORE, pool="P", pool_uuid=POOL)
    (tmp_path / "dir").mkdir()
    with pytest.raises(VolumeForeign, match="neither"):
        create(real, tmp_path / "dir")


def test_a_file_that_gets_no_space_is_removed(real: Any, tmp_path: Any) -> None:
    """Else each try of a sequential pool to grow on a full disk leaves one, and takes what room is left."""
    path = tmp_path / "large"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    try:
        with pytest.raises(VolumeError, match="EFBIG"):
            create_volume(real, path, store=STORE, pool="P", pool_uuid=POOL, size=8 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not path.exists()
    path.write_bytes(b"somebody's")
    with pytest.raises(VolumeError):
        create_volume(real, path, store=STORE, pool="P", pool_uuid=POOL, size=8 << 20)
    assert path.read_bytes() == b"somebody's"


@pytest.mark.loop
@pytest.mark.parametrize("sector", [512, 4096])
def test_a_device_becomes_a_volume(real: Any, loop: Callable[..., str], sector: int) -> None:
    """Anything at either end of a device is somebody's data until `force`."""
    device = loop(8 << 20, sector)
    with open(device, "r+b") as file:
        file.seek(0x438)
        file.write(b"\x53\xef")
    with pytest.raises(VolumeForeign, match="ext4 file system"):
        create(real, device, size=None)
    block = create(real, device, size=None, force=True)
    assert (block.size, block.block_device) == (8 << 20, True)
    with pytest.raises(VolumeForeign, match="a fanout volume"):
        create(real, device, size=None)
    volume = Volume.open(
        real, device, store=STORE, pool="DISKPOOL", volume=block.volume, catalog_epoch=1
    )
    volume.confirm()
    with pytest.raises(OSError, match="busy"):
        os.close(os.open(device, os.O_RDWR | os.O_EXCL))
    assert real.run(requests := volume.prepare([record(1)]))
    assert requests[0].offset == block.half_offset(0) + 4096
    volume.close()
    put_zeros(device, 0)
    with pytest.raises(VolumeForeign, match="not zero"):
        create(real, device, size=None)


def put_zeros(device: str, offset: int) -> None:
    with open(device, "r+b") as file:
        file.seek(offset)
        file.write(bytes(1 << 20))


def test_reading_needs_no_lock_and_writes_nothing(real: Any, tmp_path: Any) -> None:
    path = tmp_path / "r.vol"
    block = create(real, path)
    holder = Volume.open(
        real, path, store=STORE, pool="DISKPOOL", volume=block.volume, catalog_epoch=1
    )
    reader = Volume.open(
        real, path, store=STORE, pool="DISKPOOL", volume=block.volume, catalog_epoch=1,
        read_only=True,
    )  # fmt: skip
    assert reader.state is VolumeState.READ_ONLY
    assert reader.directory is None
    with pytest.raises(VolumeError):
        reader.prepare([record(1)])
    reader.close()
    holder.close()


def test_first_block_is_an_empty_checkpoint(made: tuple[Any, fmt.Superblock]) -> None:
    engine, block = made
    write = Directory.first_block(block)
    assert bytes(engine.disks[PATH].data[write.offset :][:4096]) == write.data


CHILD = """
import sys
from fanout.engine import Engine
from fanout.volume import Volume
from tests.format.samples import record

path, volume, epoch, first = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with Engine(memory_bytes=64 << 16, slot_size_bytes=1 << 16) as engine:
    made = Volume.open(engine, path, store=b"S" * 16, pool="DISKPOOL", volume=volume, catalog_epoch=epoch)
    print("epoch", made.superblock.epoch, flush=True)
    made.confirm()
    for csn in range(first, first + 100_000):
        assert made.written(engine.run(made.prepare([record(csn, aggregate=csn.to_bytes(16, "big"))])))
        made.flush()
        print("durable", csn, flush=True)
        gone = record(csn, 0, op=3, aggregate=(csn - 40).to_bytes(16, "big"))
        assert made.written(engine.run(made.prepare([gone])))
"""


def test_killed_at_any_moment(real: Any, tmp_path: Any, rng: random.Random) -> None:
    """SIGKILL in the middle of openings, appends and checkpoints: every durable record is there at the next opening."""
    path = tmp_path / "k.vol"
    block = create(real, path)
    epoch, durable = 1, 0
    for _ in range(6):
        command = [
            sys.executable,
            "-c",
            CHILD,
            path,
            block.volume.hex(),
            str(epoch),
            str(durable + 1),
        ]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert child.stdout is not None
        try:
            stop = durable + rng.choice([0, 1, 3, 60])
            for line in child.stdout:
                word, number = line.split()
                if word == "epoch":
                    epoch = int(number)
                else:
                    durable = int(number)
                if durable >= stop:
                    break
        finally:
            child.kill()
            rest = child.stdout.read()
            child.stdout.close()
            child.wait()
        durable = max([durable, *(int(n) for n in re.findall(r"durable (\d+)\n", rest))])
        volume = Volume.open(
            real, path, store=STORE, pool="DISKPOOL", volume=block.volume, catalog_epoch=epoch,
            lock_wait=5.0,
        )  # fmt: skip
        assert volume.directory is not None
        epoch = volume.superblock.epoch
        volume.confirm()
        found = {entry.csn for entry in volume.directory.records.values()}
        assert found >= set(range(max(1, durable - 38), durable + 1))
        volume.close()
