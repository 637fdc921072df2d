"""The long run: forged blocks, volumes, catalogs, configurations and command lines until the time is over.

    python -m tests.hostile.fuzz SECONDS [KIND [SEED]]

Every execution has a seed of its own, a limit of time, and the whole process one of memory. A failure prints the command that
repeats it and ends the run. Rates are per second of processor time, so that they mean the same on a busy machine.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner

from fanout.cli import main as command
from fanout.errors import CatalogError, ConfigError, FanoutError, VolumeForeign, VolumeTorn
from tests.catalog.conftest import Sample
from tests.cli.conftest import describe
from tests.format import test_fixtures
from tests.hostile import image, test_catalog, test_store, test_words
from tests.hostile.forge import forge, torn
from tests.hostile.test_blocks import READERS

if TYPE_CHECKING:
    from collections.abc import Callable

    Case = Callable[[random.Random], None]

MEMORY_BYTES = 1 << 30  # of address space, beyond what the process has when it begins
LONGEST_SECONDS = 60  # of one execution


def one_block(name: str, rng: random.Random) -> None:
    """A forged or torn block, at its reader."""
    read, right = READERS[name]
    other = READERS[rng.choice(sorted(READERS))][1]
    data = forge(right, rng) if rng.random() < 0.8 else torn(right, other, rng)
    with contextlib.suppress(VolumeTorn, VolumeForeign):
        read(data)


def one_volume(rng: random.Random) -> None:
    """Some forged blocks on a volume, and everything that is done with a volume."""
    with contextlib.suppress(FanoutError):
        image.use(image.corrupt(rng, forge, rng.choice((1, 1, 2, 5))))


class Catalogs:
    """A catalog with changed bytes or rows, and everything that is asked of it."""

    def __init__(self, directory: Path) -> None:
        sample = Sample(directory / "catalog.db", 1)
        sample.create()
        with sample.open() as catalog:
            for n in range(4):
                catalog.commit([sample.commit([b"a", b"b%d" % n])])
        self._path, self._good = sample.path, sample.path.read_bytes()
        self._columns = test_catalog.columns(sample.path)

    def __call__(self, rng: random.Random) -> None:
        for suffix in ("-wal", "-shm"):
            self._path.with_name(f"catalog.db{suffix}").unlink(missing_ok=True)
        data = bytearray(self._good)
        planted = rng.random() < 0.5
        if not planted:
            for _ in range(rng.choice((1, 3, 40))):
                at = rng.randrange(len(data))
                data[at : at + 4] = rng.randbytes(4)
        self._path.write_bytes(data)
        if planted:
            test_catalog.plant(
                self._path, *rng.choice(self._columns), rng.choice(test_catalog.WRONG)
            )
        with contextlib.suppress(CatalogError):
            test_catalog.ask_everything(self._path)


class Stores:
    """Forged blocks on the volumes of a store: opening, reading, check, rebuild."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._base, self._said = directory, test_store.unpacked(directory)
        self._good = {path: path.read_bytes() for path in test_fixtures.volumes(directory)}

    def __call__(self, rng: random.Random) -> None:
        for path, data in self._good.items():
            path.write_bytes(data)
        test_store.corrupt(self._base, rng)
        test_store.use(self._base, self._said)


def one_configuration(rng: random.Random) -> None:
    """A fanout.toml with other words."""
    with contextlib.suppress(ConfigError):
        test_words.parsed(test_words.mutated(rng))


class Commands:
    """A command line on a small store."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        os.chdir(directory)
        (directory / "tree").mkdir()
        (directory / "tree" / "f0").write_bytes(b"x" * 5000)
        config = describe(directory)
        self._runner = CliRunner(env={"FANOUT_CONFIG": str(config), "COLUMNS": "80"})
        assert self._runner.invoke(command, ["init"]).exit_code == 0
        assert self._runner.invoke(command, ["put", "N1", "tree"]).exit_code == 0

    def __call__(self, rng: random.Random) -> None:
        words = test_words.line(rng)
        result = self._runner.invoke(command, words, input=b"standard input")
        assert result.exit_code != 1, (words, result.output, result.exception)


def cases(directory: Path) -> dict[str, Case]:
    """Every kind of execution."""
    return {
        **{name: partial(one_block, name) for name in READERS},
        "volume": one_volume,
        "store": Stores(directory / "forged"),
        "catalog": Catalogs(directory),
        "configuration": one_configuration,
        "command": Commands(directory / "store"),
    }


def run(seconds: float, kinds: dict[str, Case], seed: int) -> None:
    """Each kind for its share of the time."""
    faulthandler.register(signal.SIGALRM, chain=True)  # says where it was, then dies of it
    for kind, case in kinds.items():
        began, used, count = time.monotonic(), time.process_time(), 0
        while time.monotonic() - began < seconds / len(kinds):
            # Not `dump_traceback_later`: it starts a thread each time, which took four fifths of the run.
            signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS)
            try:
                case(random.Random(f"{kind}/{seed + count}"))
            except BaseException:
                traceback.print_exc()
                print(f"\nagain: python -m tests.hostile.fuzz 0.001 {kind} {seed + count}")
                raise SystemExit(1) from None
            count += 1
        rate = count / (time.process_time() - used)
        print(f"{kind:22} {count:9,} executions, {rate:8,.0f} a second", flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0)


def main(arguments: list[str]) -> None:
    """Run as the arguments say; see the module."""
    seconds = float(arguments[0]) if arguments else 60.0
    seed = int(arguments[2]) if len(arguments) > 2 else random.SystemRandom().getrandbits(40)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fanout-fuzz-") as name:
        kinds = cases(Path(name))
        if len(arguments) > 1:
            kinds = {arguments[1]: kinds[arguments[1]]}
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, now + MEMORY_BYTES))
        run(seconds, kinds, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
