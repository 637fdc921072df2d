"""The third door: sessions over fanout's own volumes and catalog. The other two doors, put together.

::

    Store ─┬─ Session (rules, retries)  ──> reserve · commit · release   this class is their Host
           ├─ PoolSet  (which region)   ──> Volume ──> Engine
           ├─ Ledger ─┬─ Committer (one thread) ──> Catalog
           │          └─ Scribe    (one thread) ──> the volumes' directories
           └─ CopyReader                ──> get

What it promises:

1. `create` is the only thing that makes catalogs and volumes, and it overwrites nothing unless it is told to.
2. A transaction is visible in every pool together or nowhere, durably before its receipt. docs/durability.md says in plain
   words what that stands on, and how far it goes.
3. What the rules demand and what is not there is a gap, written in the same commit.
4. One volume that is busy, missing or damaged is unavailable, with the reason kept; the store opens without it.
5. A catalog that is older than its volumes never allocates: it does not open for writing.

A store that is open read-only answers questions and reads objects beside a running writer. Threads: any thread may call anything;
a session serves one caller at a time.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import warnings
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fanout import config as configuration
from fanout import deletion
from fanout.agreement import (
    look_at_paths,
    must_be_spelt_alike,
    must_stay_in_their_pools,
    pool_uuids,
    warn_of_absent,
)
from fanout.catalog import (
    Catalog,
    CatalogReader,
    LogFolder,
    PoolEntry,
    VolumeEntry,
    writer_lock,
)
from fanout.config import Config
from fanout.engine import Engine
from fanout.errors import (
    CatalogError,
    FanoutError,
    InterfaceError,
    VolumeError,
)
from fanout.format import SpanFraming
from fanout.ledger import Ledger, receipt_of
from fanout.making import create_volumes, private_directory
from fanout.pools import PoolSet
from fanout.scribe import Scribe
from fanout.session import Session
from fanout.store_reader import StoreReader
from fanout.types import ObjectKind, Receipt, checked_kind
from fanout.units import checked_id, name_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from fanout.deletion import DeleteReport
    from fanout.host import (
        Framing,
        ReserveRequest,
        Span,
        TransactionRecord,
    )
    from fanout.pool import VolumeStatus
    from fanout.volume import Volume

LOCK_WAIT = 10.0  # seconds for catalog and volumes together, while a predecessor ends
OLDER = (
    "%s is older than the volumes, and what it says may be wrong: %s; use the newest catalog, or make it anew with "
    "'fanout rebuild catalog --force'"
)
NO_THREAD = "{}: none for what writes to it; raise the limit (ulimit -u, pids.max of the container), or end something"

_log = logging.getLogger("fanout.store")


class Store(StoreReader):
    """A store that is open; made by `Store.open`. A context manager.

    Attributes:
        framing: what goes around the data of a span.
        read_only: opened for questions and reading.
        auditing: held by whoever gives up what other pools can give.
    """

    _opened = False  # for writing, to the end; until then `open` has all that is to be closed

    def __init__(
        self,
        config: Config,
        catalog: CatalogReader,
        engine: Engine,
        pools: PoolSet,
        closing: ExitStack,
        *,
        unused: Sequence[VolumeStatus],
        flush_before_acknowledge: bool,
    ) -> None:
        super().__init__(config, catalog, engine, pools, unused=unused)
        self.read_only = not isinstance(catalog, Catalog)
        self.framing: Framing | None = SpanFraming(
            catalog.store_id, block_size=engine.slot_size, volumes=PoolSet.volumes_of
        )
        self._closing = closing
        self.auditing = threading.Lock()
        self._reconciling: dict[str, threading.Lock] = {
            name: threading.Lock() for name in config.pools
        }
        self._scribe: Scribe | None = None
        self._ledger: Ledger | None = None
        if isinstance(catalog, Catalog):
            self._begin_writing(catalog, flush_before_acknowledge=flush_before_acknowledge)

    def _begin_writing(self, catalog: Catalog, *, flush_before_acknowledge: bool) -> None:
        folder = LogFolder(catalog)
        self._scribe = Scribe(
            self.engine,
            self.pools.volume,
            idle=folder.fold_if_due,
            patience=self.config.store.commit_deadline,
        )
        self._closing.callback(self._scribe.close)
        for volume in list(self.pools.volumes()):
            self._catch_up(volume)
        self._ledger = Ledger(
            catalog,
            self.pools,
            self._scribe,
            flush_before_acknowledge=flush_before_acknowledge,
            commit_deadline=self.config.store.commit_deadline,
        )
        self._closing.callback(self._ledger.close)  # the first to be closed
        self._bury()

    # ---- making, opening, closing ----------------------------------------------------------------

    @classmethod
    def create(
        cls,
        config: Config | str | os.PathLike[str],
        *,
        force: bool = False,
        write_once: bool = False,
        on_written: Callable[[int], None] | None = None,
    ) -> None:
        """Make the catalog and all volumes of a configuration; leaves the store closed.

        Args:
            config: a configuration, or the path of one.
            force: take what is there: an older store with all its data, files, whatever a block device holds.
                Never what somebody has open.
            write_once: write every byte of every volume now. Files that were only preallocated are written at about half the
                speed the first time; devices gain nothing.
            on_written: called with so many bytes more while writing once.

        Raises:
            CatalogError: there is a catalog already (without `force`).
            CatalogBusy: the store is open (with `force`).
            VolumeError: a volume cannot be made, or something is there (without `force`). What was made is removed again.
        """
        config = _loaded(config)
        path = config.store.catalog
        before = os.path.lexists(path)
        if before:
            if not force:
                raise CatalogError(
                    str(path), "there is something here already; nothing is overwritten"
                )
            with writer_lock(path):
                pass  # nobody has it open; the volumes' own locks say the same while they are made
        private_directory(path.parent)
        store = secrets.token_bytes(16)
        pools = [
            PoolEntry(secrets.token_bytes(16), pool.name, pool.kind)
            for pool in config.pools.values()
        ]
        uuids = {entry.name: entry.pool for entry in pools}
        with open_engine(config) as engine:
            volumes = create_volumes(
                engine,
                config,
                store=store,
                pool_uuids=uuids,
                force=force,
                write_once=write_once,
                on_written=on_written,
            )
        try:
            # The catalog comes last: before it exists there is no store. So does the end of an older one: when no volume could be
            # made, it is still right.
            if before:
                Catalog.discard(path)
            Catalog.create(path, store=store, pools=pools, volumes=volumes)
        except BaseException:
            _remove_files(volumes)
            raise

    @classmethod
    def extend(
        cls,
        config: Config | str | os.PathLike[str],
        *,
        force: bool = False,
        write_once: bool = False,
        on_written: Callable[[int], None] | None = None,
        lock_wait: float = LOCK_WAIT,
    ) -> tuple[VolumeEntry, ...]:
        """Add to a closed store the pools and volumes that its configuration has and its catalog does not know.

        Args:
            config: a configuration, or the path of one.
            force: take what stands where a new volume goes. Never what somebody has open.
            write_once: as in `create`.
            on_written: as in `create`.
            lock_wait: seconds to wait for a writer that is on its way out.

        Returns:
            The new volumes.

        Raises:
            CatalogBusy: the store is open for writing.
            CatalogError: there is no catalog; or it could not be recorded: then the new files are removed again, but stay where nobody
                knows whether the catalog names them.
            ConfigError: the catalog knows a pool as something else, or a volume as another pool's.
            VolumeError: a volume cannot be made; those made before it are removed again, and nothing is added.
        """
        config = _loaded(config)
        with Catalog.open(config.store.catalog, lock_wait=lock_wait) as catalog:
            must_be_spelt_alike(config, catalog)
            must_stay_in_their_pools(config, catalog)
            there = {entry.name for entry in catalog.pools()}
            new = [
                PoolEntry(secrets.token_bytes(16), pool.name, pool.kind)
                for pool in config.pools.values()
                if pool.name not in there
            ]
            uuids = dict(pool_uuids(config, catalog, new))
            known = catalog.volumes()
            with open_engine(config) as engine:
                made = create_volumes(
                    engine,
                    config,
                    store=catalog.store_id,
                    pool_uuids=uuids,
                    known=known,
                    force=force,
                    write_once=write_once,
                    on_written=on_written,
                )
            try:
                catalog.add(pools=new, volumes=made)
            except BaseException:
                # A commit that failed may be there after a crash, unless another one takes its place; and an interrupt may have struck
                # behind one that did not fail. Where nobody can say, the files stay.
                with suppress(CatalogError):
                    catalog.fence(())
                    named = {entry.volume for entry in catalog.volumes()}
                    _remove_files([entry for entry in made if entry.volume not in named])
                raise
        return tuple(made)

    @classmethod
    def open(
        cls,
        config: Config | str | os.PathLike[str],
        *,
        read_only: bool = False,
        engine: Engine | None = None,
        lock_wait: float = LOCK_WAIT,
        flush_before_acknowledge: bool = False,
    ) -> Store:
        """Open a store. Never creates anything.

        Args:
            config: a configuration, or the path of one.
            read_only: for questions and `get`, beside a writer or without one.
            engine: to share; None: one of the store's own, as the configuration says.
            lock_wait: seconds to wait for a predecessor that is on its way out.
            flush_before_acknowledge: the volumes' own evidence of a commit is durable before its receipt: one more flush for
                each commit group, and nothing is in doubt should the catalog be lost.

        Raises:
            CatalogBusy: another process has it open for writing.
            CatalogStale: the catalog is older than a volume.
            CatalogError: missing, damaged, not a catalog, or that of a store which this one is a copy of; or this machine has no thread left
                to write to it.
            ConfigError: the configuration names a pool that the catalog does not know, or a pool or node in another case; or there is
                no thread for the engine.
            VolumeError: this machine has no descriptor or no memory left for a volume. Any other trouble with a volume makes
                that volume unavailable, and not the store.
        """
        config = _loaded(config)
        with ExitStack() as closing:
            path = config.store.catalog
            catalog: CatalogReader = (
                CatalogReader(path) if read_only else Catalog.open(path, lock_wait=lock_wait)
            )
            closing.callback(catalog.close)
            must_be_spelt_alike(config, catalog)
            uuids = pool_uuids(config, catalog)
            if engine is None:
                engine = closing.enter_context(open_engine(config))
            unused = look_at_paths(config, catalog, engine, read_only=read_only)
            pools = PoolSet(
                engine,
                config,
                store=catalog.store_id,
                pool_uuids=uuids,
                book=catalog,  # type: ignore[arg-type]  # a reader is asked for nothing else
            )
            closing.callback(pools.close)
            pools.open(lock_wait=lock_wait, read_only=read_only)
            if not read_only:
                warn_of_absent(pools)
            elif pools.older:
                _log.warning(OLDER, path, pools.older[0])
            try:
                store = cls(
                    config,
                    catalog,
                    engine,
                    pools,
                    closing,
                    unused=unused,
                    flush_before_acknowledge=flush_before_acknowledge,
                )
            except RuntimeError as error:
                if type(error) is not RuntimeError:
                    raise
                raise CatalogError(os.fspath(path), NO_THREAD.format(error)) from error
            store._closing = closing.pop_all()
            store._opened = not read_only
        return store

    def close(self) -> None:
        """Commit what waits, write and flush the directories, close; idempotent. Close the sessions first.

        Raises:
            CatalogError: the catalog hangs (`commit_deadline`). All else is closed; the catalog stays locked until the process ends.
        """
        self._closed = True
        if os.getpid() != self._process:
            self._closing.pop_all()  # a forked child leaves everything to its parent
        self._closing.close()

    def __enter__(self) -> Self:
        self._must_be_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # It cannot be closed here, which may be any thread and any moment: its threads and its locks last as long as the process.
        if self._opened and not self._closed and os.getpid() == self._process:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<fanout.Store {os.fspath(self.config.store.catalog)!r}>"

    @property
    def ledger(self) -> Ledger:
        """What commits.

        Raises:
            InterfaceError: the store is open read-only.
        """
        if self._ledger is None:
            raise InterfaceError(f"{self.config.path}: the store is open read-only")
        return self._ledger

    @property
    def refusal(self) -> str | None:
        """Why nothing can be committed; None: all is well."""
        return "the store is open read-only" if self._ledger is None else self._ledger.refusal

    def _catch_up(self, volume: Volume) -> None:
        """Bring a volume's directory up to the catalog; what cannot be written is unavailable (promise 4)."""
        assert self._scribe is not None
        if volume.directory is None:
            return  # its pool is read-only, and it was opened for reading alone
        try:
            missing = self._scribe.catch_up(volume, self.catalog)
        except CatalogError:
            raise
        except FanoutError as error:
            volume.fail(error.message if isinstance(error, VolumeError) else str(error))
            _log.warning("%s: cannot be written: %s", volume.path, error)
            return
        if missing:
            _log.info("%s: %d directory records appended again", volume.path, missing)

    def _bury(self) -> None:
        """Free what was deleted and waited for volumes that are here now. A failure costs space, not safety."""
        try:
            freed = self.ledger.bury()
        except CatalogError as error:
            _log.warning("the space of what was deleted is not free yet: %s", error)
        else:
            _log.debug("%d bytes of what was deleted are free", freed)

    # ---- sessions --------------------------------------------------------------------------------

    def session(
        self,
        node: str,
        *,
        kind: ObjectKind = ObjectKind.BACKUP,
        timeout: float | None = None,
    ) -> Session:
        """Begin a session of a node.

        Volumes of its pools that had failed are tried again now, so that a new session begins with full lists (rule R17).

        Args:
            node: name of a node of the configuration, in any case.
            kind: of its objects, unless `Session.begin` says otherwise.
            timeout: seconds to wait for a slot, an admission or a flush, as of `Session`; None: as long as the engine's
                hard deadline lets it take. A pool that has not flushed, or holds what is waited for, by then has failed.

        Raises:
            UnknownPool: no such node; says which there are.
            InterfaceError: the store is closed, or open read-only.
        """
        self._must_be_open()
        destination = self.config.destination(node)
        names = [primary.pool for primary in destination.chain if primary.accepts]
        for pool in [*names, *(secondary.pool for secondary in destination.secondaries)]:
            self.revive(pool)
        return Session(
            self.engine,
            self,
            destination,
            node=self.config.node(node).name,
            kind=kind,
            timeout=timeout,
            verify=self.config.verified & destination.pools,
        )

    def revive(self, pool: str) -> int:
        """Open the volumes of a pool again that failed or could not be opened, if it is time; returns how many came back."""
        if self.read_only:
            raise InterfaceError(f"{self.config.path}: the store is open read-only")
        try:
            volumes = self.pools.revive(pool)
        except InterfaceError as error:
            _log.info(
                "%s: not opened again: %s", pool, error
            )  # a stream still uses the old opening
            return 0
        if volumes:
            self._take_in(volumes)
            self._bury()
        return len(volumes)

    def _take_in(self, volumes: Sequence[Volume]) -> None:
        """Bring the directories of volumes that came back up to the catalog."""
        behind = list(volumes)
        try:
            # What a deletion has just taken out of a directory is in the catalog until its space is free: it must not come back.
            with self.ledger.steady:
                while behind:
                    self._catch_up(behind[0])
                    del behind[0]
        finally:
            # The catalog could not be asked. Nothing would fill the hole in the evidence before the next opening.
            for volume in behind:
                volume.fail("its directory could not be compared with the catalog")

    @contextmanager
    def reconciling(self, pool: str) -> Iterator[None]:
        """One repair run at a time into one pool: a second one waits, and finds nothing left to do."""
        self._must_be_open()
        with self._reconciling[pool]:
            yield

    # ---- what sessions ask of their host -------------------------------------------------------------

    def reserve(self, request: ReserveRequest) -> Sequence[Span]:
        """See `fanout.host.Host.reserve`.

        Raises:
            PoolFull: a pool has no room.
            PoolUnavailable: a pool has no volume that can be written.
            CatalogError: nothing can be committed any more, or nothing new should be begun; says why.
            InterfaceError: the store is closed.
        """
        self._must_be_open()
        refusal = self.ledger.refusal
        if refusal is None and (request.attempt, request.ordinal, request.first_span) == (1, 0, 0):
            refusal = self.ledger.shortage
        if refusal is not None:
            raise CatalogError(self.catalog.path, refusal)
        return self.pools.reserve(request)

    def commit(self, record: TransactionRecord) -> int:
        """See `fanout.host.Host.commit`, and `Ledger.commit` for what it raises."""
        return self.ledger.commit(record)

    def release(self, span: Span, pools: Sequence[str]) -> None:
        """See `fanout.host.Host.release`."""
        self.pools.release(span, pools)

    def receipt(self, transaction: bytes) -> Receipt | None:
        """The receipt of a transaction that has committed; None: it has not.

        A client that was cut off before it got its receipt asks this before it sends the transaction again. Pools and gaps are
        those of today: what was repaired since is no gap any more.
        """
        self._must_be_open()
        return receipt_of(self.catalog, checked_id(transaction))

    # ---- deleting ----------------------------------------------------------------------------------

    def delete(
        self,
        node: str,
        names: str | bytes | Iterable[str | bytes] | None,
        *,
        kind: ObjectKind = ObjectKind.BACKUP,
        version: int | None = None,
        keep: int | None = None,
        unnamed: bool = False,
        preview: bool = False,
    ) -> DeleteReport:
        """Delete versions of objects from every pool, in one commit for every 4,096 of them.

        Without `version` and `keep` the active versions. Of the versions that are left the newest is active then. When this
        returns, what was deleted does not come back (`fanout/deletion.py`), and space that holds nothing any more is free on
        all volumes that are here; on others when they have come back. A reader that began before gets the right bytes or an
        error, never others.

        Args:
            node: whose objects.
            names: one, or several; text is UTF-8, with surrogate escapes. None: all of the node's, with `keep`.
            kind: of the objects.
            version: only this one, of one name.
            keep: all versions but the newest so many of each name, the active one counted; 0: all. What expiration asks for.
            unnamed: instead all of the node's that the catalog counts and cannot name: it was made without a volume, or with damaged headers or
                footers in every copy (`check` says so). They are given up, and do not come back with what is found again. Names are None.
            preview: only say what would be deleted.

        Raises:
            UnknownPool: no such node; says which there are.
            ObjectNotFound: nothing of one of the names: then nothing was deleted.
            InterfaceError: the arguments contradict each other; or the store is open read-only, and it is no preview.
            CatalogError: the last commit did not happen; those before it did.
            CommitUnknown: nobody knows whether the last one did; open the store again.
        """
        self._must_be_open()
        if isinstance(names, str | bytes):
            names = [names]
        encoded = None if names is None else [name_bytes(name) for name in names]
        owner = self.node_name(node)
        selection = deletion.Selection(owner, encoded, checked_kind(kind), version, keep, unnamed)
        if preview:
            return deletion.preview(selection, self.catalog, self._ledger)
        return deletion.delete(selection, self.catalog, self.ledger, self.pools.volume)


# ---- helpers ---------------------------------------------------------------------------------------


def _loaded(config: Config | str | os.PathLike[str]) -> Config:
    return config if isinstance(config, Config) else configuration.load(config)


def open_engine(config: Config) -> Engine:
    """An engine as the configuration wants it."""
    settings = config.engine
    return Engine(
        memory_bytes=settings.memory_bytes,
        slot_size_bytes=settings.slot_size_bytes,
        max_streams=settings.max_streams,
        backend=settings.backend,
        soft_deadline=settings.soft_deadline,
        hard_deadline=settings.hard_deadline,
        patience=settings.patience,
    )


def _remove_files(volumes: Sequence[VolumeEntry]) -> None:
    for entry in volumes:
        if not entry.is_block:
            with suppress(OSError):
                Path(entry.path).unlink()
