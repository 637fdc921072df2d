"""What one seed stands for: a site, and all that happens to it. A plan is a value; drawing it does nothing.

Everything that may be left out has a number, so that a failing plan can be made smaller: `without` gives the same plan, less some of
its parts, and what stays keeps its random numbers.
"""

from __future__ import annotations

import errno
import itertools
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fanout.types import ObjectKind
from tests.sim import beside, coming, steps

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

KIB = 1 << 10
SLOT = 64 * KIB
HEAD = 4096
SPAN = 64 * KIB  # LEAST_SPAN of fanout/pools.py
NOISE_BYTES = 1 << 20
NODES = ("N1", "N2")  # the domain of N1 allows the active-data pool
NAMES = (b"A", b"B \xff", b"C/d/e", b"f" * 200, b"g")

# What a disk really says (docs/errors.md), one of each class at least; EMFILE is the host's fault.
ERRNOS = (
    errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ, errno.ENOSPC, errno.ETIMEDOUT, errno.ENOLINK, errno.ENODEV,
    errno.EBADE, errno.EINVAL, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.EAGAIN, errno.EBUSY,
)  # fmt: skip
# How much there is of each: most sessions are short, and some episodes are long.
SESSIONS = (1, 4, 8, 16, 32, 32)
TRANSACTIONS = (1, 1, 1, 1, 2, 3)
OBJECTS = (0, 1, 1, 1, 1, 1, 2, 3)
SMALL = 0.8  # of the objects, in a few blocks; the others lie about the edges of slots and spans
OPERATIONS = {"engine": 30, "catalog": 25, "sync": 1}  # of a session, or of an opening, roughly
LOSSES = ("none", "all", "prefix", "subset", "torn")
CATALOG_FAULTS = (
    ("write", "EIO write"), ("write", "ENOSPC"), ("sync", "EIO sync"), ("read", "EIO read"), ("read", "ENOMEM"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """Pools and their volumes.

    Attributes:
        number: of the site.
        chain: name and max_size of each primary.
        secondaries: names of copy pools (C…) and active-data pools (A…).
        copy_continue: whether a copy pool may be done without.
        sizes: bytes of each volume, by pool.
    """

    number: int
    chain: tuple[tuple[str, int | None], ...]
    secondaries: tuple[str, ...]
    copy_continue: bool
    sizes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def pools(self) -> tuple[str, ...]:
        return (*(name for name, _ in self.chain), *self.secondaries)

    @property
    def tight(self) -> bool:
        """Whether a secondary may run full."""
        return dict(self.sizes)[self.chain[0][0]][0] < 1000 * KIB


@dataclass(frozen=True, slots=True)
class Put:
    """One object: where in the noise its bytes are, and what kind of source gives them."""

    id: int
    name: bytes
    size: int
    at: int
    source: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """A group of objects; `end`: ``commit``, ``abort`` or ``raise``."""

    id: int
    puts: tuple[Put, ...]
    end: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A line of the engine's script, on the volumes of a pool (``*``: of all, counted together); kind 0: any operation."""

    id: int
    pool: str
    action: str
    kind: int
    value: int
    nth: int
    forever: bool


@dataclass(frozen=True, slots=True)
class CatalogFault:
    """What fails below SQLite: the nth operation, or all from there on; `after`: it is done and then reported as failed."""

    id: int
    operation: str
    code: str
    nth: int
    forever: bool
    after: bool


@dataclass(frozen=True, slots=True)
class Session:
    """One client's conversation, and what breaks meanwhile."""

    id: int
    node: str
    kind: ObjectKind
    transactions: tuple[Transaction, ...]
    faults: tuple[Fault, ...]
    catalog_faults: tuple[CatalogFault, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """A power loss: after so many operations of the engine, or of the catalog; what it leaves; while the store opens or later.

    `place` ``sync``: right after so many syncs of the catalog, before anybody hears that the last one went well.
    """

    id: int
    place: str
    after: int
    loss: str
    opening: bool


@dataclass(frozen=True, slots=True)
class Episode:
    """From an opening of the store to its end; the faults are there from the beginning, until the first session.

    `before`: what happens to the closed store; `steps`: to the open one.
    """

    id: int
    sessions: tuple[Session, ...]
    together: bool
    flush_first: bool
    reconcile: bool
    cut: Cut | None
    faults: tuple[Fault, ...] = ()
    catalog_faults: tuple[CatalogFault, ...] = ()
    before: tuple[steps.Step, ...] = ()
    steps: tuple[steps.Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it."""

    seed: int
    site: Site
    episodes: tuple[Episode, ...]

    def parts(self) -> Iterator[int]:
        """The numbers of what may be left out, the largest parts first."""
        sessions = [session for episode in self.episodes for session in episode.sessions]
        transactions = [txn for session in sessions for txn in session.transactions]
        extra = [step for episode in self.episodes for step in (*episode.before, *episode.steps)]
        yield from (episode.id for episode in self.episodes)
        yield from (session.id for session in sessions)
        yield from (txn.id for txn in transactions)
        yield from (step.id for step in extra)
        yield from (episode.cut.id for episode in self.episodes if episode.cut)
        yield from (fault.id for session in sessions for fault in session.faults)
        yield from (fault.id for session in sessions for fault in session.catalog_faults)
        yield from (number for step in extra for number in step.parts())
        yield from (put.id for txn in transactions for put in txn.puts)

    def without(self, gone: Collection[int]) -> Plan:
        """The same, less these parts."""
        return replace(
            self, episodes=tuple(_episode(e, gone) for e in self.episodes if e.id not in gone)
        )

    @property
    def sessions(self) -> int:
        return sum(len(episode.sessions) for episode in self.episodes)


def _episode(episode: Episode, gone: Collection[int]) -> Episode:
    sessions = []
    for session in episode.sessions:
        if session.id in gone:
            continue
        transactions = tuple(
            replace(txn, puts=tuple(put for put in txn.puts if put.id not in gone))
            for txn in session.transactions
            if txn.id not in gone
        )
        sessions.append(
            replace(
                session,
                transactions=transactions,
                faults=tuple(f for f in session.faults if f.id not in gone),
                catalog_faults=tuple(f for f in session.catalog_faults if f.id not in gone),
            )
        )
    cut = episode.cut if episode.cut and episode.cut.id not in gone else None
    before, after = (
        tuple(step.without(gone) for step in many if step.id not in gone)
        for many in (episode.before, episode.steps)
    )
    return replace(episode, sessions=tuple(sessions), cut=cut, before=before, steps=after)


# ---- sites -------------------------------------------------------------------------------------------


def _site(number: int) -> Site:
    rng = random.Random(f"site {number}")
    count = 1 + number % 3
    limits = [rng.choice([None, 20 * KIB, 70 * KIB]) for _ in range(count - 1)]
    chain = tuple((f"P{n + 1}", limit) for n, limit in enumerate([*limits, None]))
    wanted = (("C1", "C2", "A1"), ("C1", "A1"), ("C1", "C2"), ("C1",), ("A1",), ())[number // 3 % 6]
    tight = number % 4 == 3
    sizes: list[tuple[str, tuple[int, ...]]] = []
    for name, _ in chain:
        sizes.append((name, (480 * KIB,) if tight else (1536 * KIB,)))
    for name in wanted:
        roomy: tuple[int, ...] = (480 * KIB * count,) if tight else (2560 * KIB * count,)
        if not tight and number % 2:
            roomy = (*roomy, 1024 * KIB)
        sizes.append((name, roomy))
    return Site(number, chain, wanted, number % 5 != 4, tuple(sizes))


SITES = tuple(_site(number) for number in range(24))


# ---- drawing -----------------------------------------------------------------------------------------


class _Draw:
    """Draws the parts of one plan."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"plan {seed}")
        self.ids = itertools.count()
        self.site = self.rng.choice(SITES)

    def size(self) -> int:
        rng = self.rng
        edge = rng.choice(
            (0, 1, 100, HEAD, 2 * HEAD, SPAN - HEAD, SPAN, SLOT, 2 * SLOT - HEAD, 2 * SLOT)
        )
        if rng.random() < SMALL:
            return rng.randint(0, 9000)
        return (
            max(0, edge + rng.randint(-2, 2)) if rng.random() < 0.7 else rng.randint(0, 200 * KIB)
        )

    def put(self) -> Put:
        size = self.size()
        return Put(
            next(self.ids),
            self.rng.choice(NAMES),
            size,
            self.rng.randrange(NOISE_BYTES - size),
            self.rng.choice(("bytes", "bytes", "bytearray", "reader", "list", "once")),
        )

    def transaction(self) -> Transaction:
        puts = tuple(self.put() for _ in range(self.rng.choice(OBJECTS)))
        return Transaction(
            next(self.ids), puts, self.rng.choice(("commit",) * 8 + ("abort", "raise"))
        )

    def fault(self) -> Fault:
        rng = self.rng
        action = rng.choice(("errno", "errno", "errno", "after", "short", "zero", "never", "late"))
        kind = 1 if action in ("short", "zero") else rng.choice((1, 1, 1, 3, 3, 2))
        value = {"short": rng.randint(1, 16) * 512, "late": rng.choice((1, 40, 130, 400))}.get(
            action, rng.choice(ERRNOS)
        )
        forever = rng.random() < 0.3 and action != "late"
        nth = rng.choice((1, 1, 2, 3, 4, 7))
        return Fault(next(self.ids), rng.choice(self.site.pools), action, kind, value, nth, forever)

    def catalog_fault(self) -> CatalogFault:
        rng = self.rng
        operation, code = rng.choice(CATALOG_FAULTS)
        # Of reads and writes there are many, of syncs one for each commit.
        nth = rng.choice((1, 1, 2, 3) if operation == "sync" else (1, 2, 3, 5, 8, 13, 21))
        after = rng.random() < 0.4 and operation != "read"
        return CatalogFault(next(self.ids), operation, code, nth, rng.random() < 0.25, after)

    def session(self) -> Session:
        rng = self.rng
        return Session(
            next(self.ids),
            rng.choice(NODES),
            rng.choice((ObjectKind.BACKUP, ObjectKind.BACKUP, ObjectKind.ARCHIVE)),
            tuple(self.transaction() for _ in range(rng.choice(TRANSACTIONS))),
            tuple(self.fault() for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))),
            tuple(self.catalog_fault() for _ in range(rng.choice((0, 0, 0, 0, 1)))),
        )

    def cut(self, sessions: int) -> Cut | None:
        """Somewhere in an episode of so many sessions, or in its opening."""
        rng = self.rng
        if rng.random() < 0.4:
            return None
        place = rng.choice(("engine", "engine", "catalog", "sync"))
        opening = rng.random() < 0.25
        return Cut(
            next(self.ids),
            place,
            rng.randint(1, OPERATIONS[place] * (1 if opening else 1 + sessions)),
            rng.choice(LOSSES),
            opening,
        )

    def episode(self) -> Episode:
        rng = self.rng
        sessions = rng.choice(SESSIONS)
        return Episode(
            next(self.ids),
            tuple(self.session() for _ in range(sessions)),
            rng.random() < 0.4,
            rng.random() < 0.3,
            rng.random() < 0.25,
            self.cut(sessions),
        )


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    made = _Draw(seed)
    episodes = tuple(made.episode() for _ in range(made.rng.randint(1, 3)))
    episodes = steps.drawn(made, seed, episodes)
    episodes = beside.drawn(made, seed, episodes)
    return Plan(seed, made.site, coming.drawn(made, seed, episodes))
