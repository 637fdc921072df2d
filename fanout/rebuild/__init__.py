"""Makes a catalog anew from the volumes alone, after it was lost.

::

    volumes ──locked, read──> directories ──union──> aggregates ──headers, footers──> members, order, gaps ──> restore
                                   └─ what no directory names ──> in doubt: listed, never visible

The rules are those of docs/on-disk-format.md, "Rebuilding a catalog from the volumes". What comes out equals the lost catalog, but for
what was never on a volume: the reasons of gaps (a new one stands there), attempts that failed, and the records of repairs
as transactions of their own.

What it promises:

1. Nothing is written to a volume, and nothing to the catalog's place before everything was read.
2. Nobody writes meanwhile: it needs the lock of every volume that can be opened.
3. A volume that is missing, damaged or foreign is named, and does not stop the rest. What only it held is named as lost, or as a gap.
4. A volume that had been given up is left aside, named, or taken in where the caller says so. The next opening of a taken one ends
   its retirement.
5. What is stored after a rebuild in which a volume took no part is newer than all that this volume holds, should it come back.
6. What a catalog that stands there still finds, and a new one would not, because headers or footers are damaged in every copy, or the
   directory of a volume is, is not given up for it: audits, or an opening, write that anew first.
7. Every span that a directory names keeps its region, also when nothing of it can be read: the rebuilt store never overwrites evidence.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from fanout import config as configuration
from fanout.catalog import CatalogReader, restore
from fanout.config import Config
from fanout.errors import CatalogError
from fanout.format import SuperblockState
from fanout.rebuild.media import Media, entry_now
from fanout.rebuild.report import InDoubt, Lost, RebuildReport, SkippedVolume
from fanout.rebuild.survey import Survey
from fanout.store import LOCK_WAIT, open_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from fanout.catalog import CopyEntry, MemberEntry, RestoredTransaction

    # Bytes done, and bytes in all.
    Progress = Callable[[int, int], None]

__all__ = ["InDoubt", "Lost", "RebuildReport", "SkippedVolume", "rebuild_catalog"]


def rebuild_catalog(
    config: Config | str | os.PathLike[str],
    *,
    into: str | os.PathLike[str] | None = None,
    force: bool = False,
    take_retired: bool = False,
    lock_wait: float = LOCK_WAIT,
    on_progress: Progress | None = None,
) -> RebuildReport:
    """Make the catalog of a store anew, from its volumes.

    Args:
        config: a configuration, or the path of one: which pools and volumes there are.
        into: path of the new catalog; None: where the configuration says.
        force: keep a catalog that stands there under a new name, and take its place.
        take_retired: take volumes in that had been given up, too, with what they were not told of: objects that were deleted since may come
            back. Else they are left aside, and named.
        lock_wait: seconds to wait for each volume's lock.
        on_progress: called with bytes done and bytes in all.

    Returns:
        What was found. The new catalog is durable.

    Raises:
        VolumeBusy: somebody has a volume open. Nothing was made.
        CatalogBusy: somebody has the catalog open for writing (with `force`).
        CatalogError: there is a catalog already (without `force`), or one that finds what a new one would not (promise 6), no volume can be
            read, the volumes are of several stores, or the catalog cannot be written. Nothing has changed.
    """
    began = time.monotonic()
    if not isinstance(config, Config):
        config = configuration.load(config)
    path = os.path.abspath(config.store.catalog if into is None else into)
    if os.path.lexists(path) and not force:
        raise CatalogError(path, "there is a catalog already; nothing is overwritten")
    with ExitStack() as closing:
        engine = closing.enter_context(open_engine(config))
        media = Media(config, path, take_retired=take_retired)
        closing.callback(media.close)
        media.open(engine, lock_wait)
        survey = Survey(media)
        in_doubt = tuple(survey.in_doubt(on_progress))
        last = survey.csn

        def transactions() -> Iterator[RestoredTransaction]:
            yield from survey.transactions()
            _refuse_to_lose(path, media, last, survey.unread)
            _refuse_to_lose_volumes(path, media, last)

        kept = restore(
            path,
            store=media.store,
            created=min(volume.superblock.created_ns for volume in media.volumes),
            pools=survey.pools(),
            volumes=[entry_now(volume) for volume in media.volumes],
            transactions=transactions(),
            deletions=survey.deletions(),
            retired=media.retirements,
            csn=lambda: survey.csn,
            leap=lambda: survey.leap,
            force=force,
        )
        with CatalogReader(path) as catalog:
            gaps = len(catalog.gaps())
        return RebuildReport(
            catalog=path,
            kept=kept,
            store=media.store,
            csn=survey.csn,
            volumes=tuple(volume.path for volume in media.volumes),
            skipped=tuple(media.skipped),
            retired=tuple(media.retired),
            transactions=survey.count,
            objects=survey.objects,
            bytes=survey.bytes,
            gaps=gaps,
            in_doubt=in_doubt,
            lost=tuple(survey.lost),
            deduced=survey.deduced,
            notes=tuple(dict.fromkeys(survey.notes)),
            seconds=time.monotonic() - began,
        )


def _refuse_to_lose(path: str, media: Media, last: int, unread: Mapping[bytes, int]) -> None:
    """Promise 6. A catalog that is damaged, of another store, or older than the volumes has no say.

    Args:
        path: where a catalog may stand.
        media: the volumes that take part; what it finds on others is not lost here.
        last: commit that the volumes know of.
        unread: aggregates of which not all can be read, and how many of their objects are found all the same.

    Raises:
        CatalogError: the one that stands there finds more of them.
    """
    if not unread or not os.path.lexists(path):
        return
    here = {volume.uuid for volume in media.volumes}
    pools: set[str] = set()
    more = 0
    with suppress(CatalogError), CatalogReader(path) as catalog:
        if catalog.store_id != media.store or catalog.last_csn() < last or catalog.verify():
            return
        for aggregate, found in unread.items():
            members, copies, _ = catalog.contents([aggregate])[aggregate]
            held = sum(any(_has(copy, m, here) for copy in copies) for m in members)
            if held > found:
                more += held - found
                pools.update(copy.pool for copy in copies)
    if more:
        audits = ", ".join(f"'fanout audit stgpool {pool} --fix'" for pool in sorted(pools))
        message = (
            f"it still finds {more} objects that a new one would lose, for their headers or footers cannot be read in any copy; first have them "
            f"written anew, or given up, by {audits}. To lose them, move it away"
        )
        raise CatalogError(path, message)


def _refuse_to_lose_volumes(path: str, media: Media, last: int) -> None:
    """Promise 6, of volumes of which nothing but the directory is lost: a catalog of their epoch knows what stood in it.

    Raises:
        CatalogError: the one that stands there does.
    """
    if not media.headless or not os.path.lexists(path):
        return
    known: list[str] = []
    with suppress(CatalogError), CatalogReader(path) as catalog:
        if catalog.store_id != media.store or catalog.last_csn() < last or catalog.verify():
            return
        epochs = {entry.volume: entry.epoch for entry in catalog.volumes()}
        for volume in media.headless:
            block = volume.superblock
            begun = block.state is SuperblockState.PROVISIONAL
            current = epochs.get(block.volume) in {block.epoch, block.epoch - begun}
            if current and catalog.held_csns(block.volume):
                known.append(volume.path)
    if known:
        message = (
            f"it knows what stood in the damaged directory of {', '.join(known)}, and a new one would not: first open the store for writing, as "
            "'fanout put' and 'fanout backup stgpool' do, which writes the directory anew. To lose what the volume holds, move the catalog away"
        )
        raise CatalogError(path, message)


def _has(copy: CopyEntry, member: MemberEntry, volumes: Collection[bytes]) -> bool:
    """Whether a copy holds a member, all of it on these volumes."""
    serving = copy.servers(member.start, member.length)
    return copy.holds(member.member) and all(place.volume in volumes for place in serving)
