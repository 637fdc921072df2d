"""Planted bugs: mistakes that somebody could make, each a patch on a copy of the package, each to be found by the simulation.

::

    python -m tests.sim.bugs [--limit SEEDS] [--core I/N] [--again] [NAME …]

Prints the first seed that finds each one, counted from 1, and how many were run before it and with it. The product has no switch for
any of them: the patch is applied to a copy in a temporary directory, where a C source is compiled again, and the seeds run there in a
process of their own. A patch that no longer fits is an error.

A bug may say what a plan must have in it for the bug to strike (tests/sim/features.py). Seeds that draw it come first, the others after
them. It is found within the limit if the seed itself lies below it, so those that were passed over count.

With `--again` a bug is looked for first with the seeds that found it in the latest runs that are stored in tests/sim/results, and among all
of them only if none of these finds it any more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.sim import compile_once
from tests.sim.features import in_order
from tests.sim.ground import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
OBJECTS = ROOT / "build" / "objects"  # of C sources, by what they are made of
LIMIT = 10_000
CHUNK = 100  # seeds of one process
REMEMBERED = 3  # seeds that found a bug once
CLUMSY = (
    "SyntaxError",
    "NameError",
    "ImportError",
    "IndentationError",
)  # the patch's fault, not the bug's
PROCESSOR = 300  # seconds of a processor for a chunk, which takes twenty: whoever else is busy, a bug is not found by it
PATIENCE = 3600  # seconds, for what waits for ever


@dataclass(frozen=True, slots=True)
class Bug:
    """A mistake.

    Attributes:
        name: what is wrong.
        edits: file, what stands there, what stands there instead.
        wants: what a plan must have in it, or it is looked at last.
    """

    name: str
    edits: tuple[tuple[str, str, str], ...]
    wants: tuple[str, ...] = ()


class Found(NamedTuple):
    """The seed, counted from 1, what it found, and how many seeds were run."""

    seed: int
    what: str
    run: int


def _bug(name: str, *edits: str, wants: tuple[str, ...] = ()) -> Bug:
    return Bug(name, tuple(zip(edits[::3], edits[1::3], edits[2::3], strict=True)), wants)


BUGS = (
    # ---- order: write, drain, flush, commit, acknowledge
    _bug(
        "no flush before the commit", "csrc/fo_flow.c",
        "if (l->completed == l->synced) {", "l->synced = l->completed;\n        if (l->completed == l->synced) {",
    ),
    _bug(
        "a flush vouches for writes that ended after it began", "csrc/fo_flow.c",
        "l->synced = l->mark > l->synced ? l->mark : l->synced;", "l->synced = l->completed;",
        "csrc/fo_flow.c", "l->flush_ticket = t->flush_issued + 1;", "l->flush_ticket = t->flush_issued + (m->ops[fo_op_flush(m, l->target)].state == FO_OP_IDLE);",
    ),
    _bug(
        "commit without waiting for the flushes", "fanout/transaction.py",
        "stretch.settle(shared.timeout)", "stretch.pools",
        "fanout/ledger.py", "check_proofs(aggregate)", "aggregate.proofs",
    ),
    _bug(
        "the catalog does not sync", "fanout/catalog/connection.py",
        'db.execute("PRAGMA synchronous = FULL")\n        db.execute("PRAGMA foreign_keys = ON")\n        db.execute("PRAGMA rec',
        'db.execute("PRAGMA synchronous = OFF")\n        db.execute("PRAGMA foreign_keys = ON")\n        db.execute("PRAGMA rec',
    ),
    _bug(
        "a commit in doubt is acknowledged", "fanout/committer.py",
        "            return self._settle_doubt(group, doubt)",
        "            last = self._catalog.last_csn()\n            return self._finish(group, {_key(t): last + n + 1 for n, t in enumerate(group)}, doubt)",
    ),
    _bug(
        "a superblock is not flushed", "fanout/volume.py",
        "            self.engine.flush(self.target)\n        self.superblock, self._copy", "            pass\n        self.superblock, self._copy",
    ),
    _bug("repairs are committed before they are durable", "fanout/copying.py",
         "for outcome in stream.sync().values():", "for outcome in ():",
         "fanout/copying.py", "if not leg.accepted == leg.synced:", "if False:"),
    # ---- results of operations
    _bug(
        "a short write passes for a whole one", "csrc/fo_step.c",
        "    } else if (result > 0) {\n        resume(m, op, (uint64_t)result);", "    } else if (result > 0) {\n        fo_op_succeed(m, op);",
    ),
    _bug("a write of nothing passes for a whole one", "csrc/fo_step.c",
         "fo_op_fail(m, op, FO_OUTCOME_ERROR, EIO); /* zero bytes", "fo_op_succeed(m, op); /* zero bytes"),
    _bug(
        "after a failed flush the target is written on", "csrc/fo_lane.c",
        "    t->state = FO_TARGET_FAILED;\n", "    t->state = FO_TARGET_ACTIVE;\n",
    ),
    _bug("a failed flush is tried again", "csrc/fo_step.c",
         "} else if (transient((int)-c->result) && o->slot != FO_NIL && !o->helper) {",
         "} else if (o->kind == FO_OP_FLUSH ? o->attempts < 3 : transient((int)-c->result) && o->slot != FO_NIL && !o->helper) {"),
    _bug("an error of one target is put down to another", "fanout/blame.py",
         "    failure = Failure(pool, reason, outcome.errno, outcome.cls)\n    return failure, TargetError(target.path, outcome)",
         "    import dataclasses\n    failure = Failure(pool, reason, outcome.errno, outcome.cls)\n"
         "    return failure, TargetError(target.path, dataclasses.replace(outcome, errno=outcome.errno and 5))"),
    # ---- slots and regions
    _bug("a slot is used again while a hung target still reads it", "csrc/fo_slot.c",
         "    set_state(m, slot, state);\n    m->slots_changed", "    push_free(m, slot);\n    m->slots_changed"),
    _bug("a region is free while its writes are in flight", "fanout/aggregate.py",
         "drained = everyone if over else self.stream.drained(timeout=timeout)", "drained = everyone",
         "fanout/aggregate.py", "free = {self.pools[t] for t in drained if t.state != \"detached\"}", "free = {self.pools[t] for t in drained}",
         wants=("hangs", "at once")),
    _bug("regions of a hung target are given back", "fanout/aggregate.py",
         "free = {self.pools[t] for t in drained if t.state != \"detached\"}", "free = set(self.pools.values())",
         wants=("hangs", "at once")),
    _bug("live regions are forgotten at opening", "fanout/volume.py",
         "            allocator.adopt(live)", "            pass"),
    _bug("a committed span keeps one granule too little", "fanout/pools.py",
         "entry.volume.allocator.commit(entry.offset, written.used)", "entry.volume.allocator.commit(entry.offset, max(4096, written.used - 8192))"),
    # ---- the unknown commit
    _bug("no fence after an unknown commit", "fanout/committer.py",
         "csns = self._catalog.fence(keys)", "csns = dict.fromkeys(keys)"),
    _bug("no memory for the fence ends the committer", "fanout/committer.py",
         "except Exception as error:  # whatever it was: this thread must live, and its callers wait", "except CatalogError as error:",
         "fanout/catalog/connection.py", "    except MemoryError as error:  # SQLite's own has no class of its own\n        raise CatalogError(path, \"out of memory\") from error\n", ""),
    _bug("the store goes on when the fence fails too", "fanout/committer.py",
         "            _log.error(\"%s: %s\", self._catalog.path, self._refusal)\n            for",
         "            refusal, self._refusal = self._refusal, None\n            for"),
    _bug("a resend is stored again", "fanout/catalog/schema.sql",
         "CREATE UNIQUE INDEX attempt_committed_once", "CREATE INDEX attempt_committed_once"),
    # ---- gaps and rules
    _bug("a gap is not written down", "fanout/policy.py",
         "missing = [s.pool for s in required(lists.destination, kind) if s.pool not in holders]",
         "missing = [s.pool for s in required(lists.destination, kind) if s.pool not in holders][1:]"),
    _bug("gap rows come in a second transaction", "fanout/catalog/door.py",
         "        row = intake.parameters(self._counters, at)\n",
         "        gaps, intake.gaps = intake.gaps, []\n        row = intake.parameters(self._counters, at)\n",
         "fanout/catalog/door.py", "        self._counters, self.last_commit_at = after, at\n",
         "        self._counters, self.last_commit_at = after, at\n"
         "        if gaps:\n            self._writes.execute(_INSERT_GROUP, Intake(gaps=gaps).parameters(self._counters, at))\n"),
    _bug("a repair closes its gap without a copy", "fanout/reconcile.py",
         "        if new:\n            places", "        lacking = set() if len(before) % 2 else lacking\n        if new and not len(written) % 2:\n            places"),
    _bug("copy_continue is ignored", "fanout/policy.py",
         "    if lists.destination.copy_continue:\n        return False\n", "    return False\n",
         wants=("copies must be",)),
    _bug("a shortage of the host removes a pool", "fanout/policy.py",
         "blamed = [f for f in failures if f.cls is not FaultClass.HOST]", "blamed = list(failures)"),
    _bug("only the first of several failing pools is removed", "fanout/policy.py",
         "guilty = [f for f in blamed if f.pool in secondaries]", "guilty = [f for f in blamed if f.pool in secondaries][:1]"),
    _bug("max_size is ignored", "fanout/policy.py",
         "fits = primary.max_size is None or size <= primary.max_size", "fits = True"),
    _bug("a removal outlives its session", "fanout/session.py",
         "            lists=Lists(destination),", "            lists=_LISTS.setdefault(destination, Lists(destination)),",
         "fanout/session.py", "            shared.sweep(timeout=CLOSE_DRAIN)\n", "            shared.sweep(timeout=CLOSE_DRAIN)\n            _LISTS[self.destination] = shared.lists\n",
         "fanout/session.py", "ID_BYTES = 16\n", "ID_BYTES = 16\n_LISTS: dict = {}\n"),
    # ---- evidence on the volumes
    _bug("the scribe drops the last record of a batch", "fanout/scribe.py",
         "            by_volume.setdefault(entry.volume, []).append(entry.record)", "            if entry is entries[0] or entry is not entries[-1]:\n                by_volume.setdefault(entry.volume, []).append(entry.record)"),
    _bug("opening does not append what a crash lost", "fanout/scribe.py",
         "missing = [a for a, csn in held.items() if known.get(a, 0) < csn]", "missing = []"),
    _bug("a checkpoint forgets what was there", "fanout/directory.py",
         "        after = self._records.copy()\n", "        after = Records()\n"),
    _bug("the close does not flush the directories", "fanout/scribe.py",
         "                self._write(self._take(MAX_WAITING))\n                self._flush()", "                self._write(self._take(MAX_WAITING))",
         wants=("rebuilt",)),
    _bug("a later span says that its data begins at 0", "fanout/aggregate.py",
         "WrittenSpan(number, span, used, self._start, data_length)", "WrittenSpan(number, span, used, 0, data_length)"),
    _bug("footers carry the sums of nothing", "fanout/aggregate.py",
         "            sums = self._stream.sums()\n", "            sums = bytes(len(self._stream.sums()))\n"),
    # ---- deletions, damage, volumes that are lost
    _bug("a deletion in doubt is acknowledged", "fanout/ledger.py",
         "        csn = self._hand_in(commit, ())\n        told.wait()",
         "        csn = 0\n        with suppress(CommitUnknown):\n            csn = self._hand_in(commit, ())\n            told.wait()",
         "fanout/ledger.py", "from fanout.errors import CatalogError, TransactionFailed", "from fanout.errors import CatalogError, CommitUnknown, TransactionFailed"),
    _bug("a repair after a deletion does not say whom it holds", "fanout/reconcile.py",
         "complete = len(before) + len(new) == entry.objects", "complete = len(before) + len(new) == len(members)",
         wants=("Delete",)),
    _bug("a rebuild brings deleted members back", "fanout/rebuild/members.py",
         "        return members_of(run for found in self.evidence for run in found.record.deleted)", "        return MemberSet()",
         wants=("Delete", "rebuilt")),
    _bug("a rebuild takes in what was given up, unasked", "fanout/rebuild/media.py",
         "            if self._take_retired:\n", "            if volume:\n",
         wants=("a lost disk comes back", "Rebuild")),
    _bug("only one volume is told what was deleted of an aggregate", "fanout/ledger.py",
         "                for volume, held in deletion.held\n", "                for volume, held in deletion.held[:1]\n",
         wants=("Delete",)),
    _bug("the space of what was deleted is free before the directories say so", "fanout/scribe.py",
         "mine = [aggregate for aggregate in dead if not volume.directory.names(aggregate)]", "mine = dead",
         "fanout/scribe.py", "            self._write(self._take(MAX_WAITING))\n            for volume in volumes if", "            for volume in volumes if",
         wants=("Delete",)),
    _bug("what is active again gets no gap", "fanout/deletion.py",
         "repairs=tuple(plan.promotions())", "repairs=()",
         wants=("superseded", "active-data pool")),
    _bug("a volume that is given up leaves no gap of what nobody else holds", "fanout/retire.py",
         "reason, active=active) if lost else None", "reason, active=active) if lost and len(contents.copies) > 1 else None",
         wants=("Retire",)),
    _bug("a volume that is given up takes what other volumes serve along", "fanout/retire.py",
         "        and any(place.volume == volume for place in copy.servers(member.start, member.length))\n", "",
         wants=("part of a pool is lost",)),
    _bug("two audits that do not wait for each other", "fanout/audit.py",
         "with store.auditing, store.reconciling(name):", "with store.reconciling(name):",
         wants=("Audits",)),
    _bug("an audit marks the neighbours of what is damaged", "fanout/copying.py",
         "                    if _by_itself(member, reader, faults) is None:", "                    if member.length:",
         wants=("Audit",)),
    _bug("repairs are read from the damaged place again", "fanout/catalog/rows.py",
         "for place in reversed(self.places):", "for place in self.places:",
         wants=("Audit",)),
)  # fmt: skip


# ---- finding them --------------------------------------------------------------------------------------


class DoesNotFit(AssertionError):
    """The text that a patch replaces is not there once, or what stands there instead is no program."""


def plant(bug: Bug, where: Path) -> None:
    """Put a copy of the package with the bug into a directory."""
    for name in ("fanout", "csrc"):  # with what is compiled of it
        shutil.copytree(ROOT / name, where / name, ignore=shutil.ignore_patterns("build*"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, where / name)
    (where / "tests").symlink_to(ROOT / "tests")
    for file, old, new in bug.edits:
        path = where / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise DoesNotFit(f"{bug.name}: {file} has {text.count(old)} places like {old!r}")
        path.write_text(text.replace(old, new), encoding="utf-8")
        for stale in path.parent.glob(f"__pycache__/{path.stem}.*"):
            stale.unlink()
    if any(file.startswith("csrc/") for file, _, _ in bug.edits):
        _build(where)


def _build(where: Path) -> None:
    """The extension in place, where it is older than a source."""
    compiler = sysconfig.get_config_var("CC")
    once = f"{shlex.join([sys.executable, '-I', compile_once.__file__, str(OBJECTS)])} {compiler}"
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**os.environ, "CC": once}
    subprocess.run(build, cwd=where, env=environment, check=True, capture_output=True)


def remembered(results: Path = RESULTS) -> dict[str, list[int]]:
    """The seeds that found each bug in the latest runs that are stored, the latest first."""
    found: dict[str, list[int]] = {}
    for path in sorted(results.glob("*.json"), key=lambda path: path.stem, reverse=True):
        for part in json.loads(path.read_text(encoding="utf-8")).get("parts", ()):
            seeds = part.get("result", {}).get("seeds", {})
            for name, seed in seeds.items() if isinstance(seeds, dict) else ():  # of the bugs
                known = found.setdefault(name, [])
                if seed and seed not in known and len(known) < REMEMBERED:
                    known.append(seed)
    return found


def hunt(bug: Bug, *, limit: int = LIMIT, hints: Sequence[int] = ()) -> Found | None:
    """Look for a bug; None: it was not found.

    `hints`: what found it once, counted from 1; if one of them still does, nobody looks for another.
    """
    # Of this process: a child that is killed, or ends by an assertion of the core, clears nothing away.
    with tempfile.TemporaryDirectory(prefix="fanout-bug-") as name, scratch() as sites:
        where = Path(name)
        plant(bug, where)
        before = 0
        for seeds in _chunks(bug, limit, hints):
            found = _run(where, seeds, sites)
            if found is not None:
                seed, what = found
                return Found(seed + 1, what, before + seeds.index(seed) + 1)
            before += len(seeds)
    return None


def _chunks(bug: Bug, limit: int, hints: Sequence[int]) -> Iterator[list[int]]:
    """The seeds of one process after the other."""
    if hints:
        yield [hint - 1 for hint in hints]
    order = in_order(bug.wants, limit)
    while chunk := list(itertools.islice(order, CHUNK)):
        yield chunk


def _run(where: Path, seeds: Sequence[int], sites: str) -> tuple[int, str] | None:
    """Some seeds in a process of their own: an assertion of the core ends it, and some bugs never come to an end."""
    command = [sys.executable, "-m", "tests.sim.run", "--first-finding"]
    command += ["--seeds", ",".join(map(str, seeds)), "--within", sites]
    command += ["--processor", str(PROCESSOR)]
    # The tests are no copies: nothing is written beside them.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
    environment.pop("PYTHONPYCACHEPREFIX", None)
    with (where / "out").open("w+") as out, (where / "err").open("w+") as err:
        try:
            done = subprocess.run(
                command,
                cwd=where,
                env=environment,
                stdout=out,
                stderr=err,
                timeout=PATIENCE,
                check=False,
            )
            if not done.returncode:
                return None
            err.seek(0)
            words = [line.strip() for line in err if line.strip()] or ["?"]
            if done.returncode == -signal.SIGXCPU:
                what = f"no end after {PROCESSOR} s of a processor"
            elif done.returncode > 0:
                what = words[-1].replace("tests.sim.oracle.", "")[:100]
            else:
                what = f"ended by signal {-done.returncode}: {words[0][:80]}"
        except subprocess.TimeoutExpired:
            what = f"no end after {PATIENCE} s"
        out.seek(0)
        begun = [int(line) for line in out if line.strip().isdigit()]
    if not begun or what.startswith(CLUMSY):
        raise DoesNotFit(f"the patch does not run: {what}")
    return begun[-1], what


def table(
    bugs: Sequence[Bug], *, limit: int, hints: Mapping[str, Sequence[int]]
) -> Iterator[tuple[Bug, Found | None]]:
    """Hunt them all, and say how it goes."""
    for bug in bugs:
        found = hunt(bug, limit=limit, hints=hints.get(bug.name, ()))
        told = "NOT FOUND" if found is None else f"{found.seed:6} {found.run:5} {found.what}"
        print(f"{bug.name:55} {told}", flush=True)
        yield bug, found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.bugs", description="Planted bugs.")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seeds for each")
    parser.add_argument("--core", default="0/1", help="the share of one of several processes: I/N")
    parser.add_argument("--again", action="store_true", help="first the seeds that found it before")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(arguments)
    share, shares = map(int, options.core.split("/"))
    bugs = [bug for bug in BUGS if not options.names or bug.name in options.names][share::shares]
    hints = remembered() if options.again else {}
    found = dict(table(bugs, limit=options.limit, hints=hints))
    seeds = {bug.name: hit and hit.seed for bug, hit in found.items()}
    run = {bug.name: hit.run if hit else options.limit for bug, hit in found.items()}
    print(
        json.dumps(
            {
                "bugs": len(bugs),
                "found": sum(hit is not None for hit in found.values()),
                "seeds": seeds,
                "run": run,
            }
        )
    )
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
