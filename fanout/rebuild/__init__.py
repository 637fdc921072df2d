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
6. Every span that a directory names keeps its region, also when nothing of it can be read: the rebuilt store never overwrites evidence.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from fanout import config as configuration
from fanout.catalog import CatalogReader, restore
from fanout.config import Config
from fanout.errors import CatalogError
from fanout.rebuild.media import Media, entry_now
from fanout.rebuild.report import InDoubt, Lost, RebuildReport, SkippedVolume
from fanout.rebuild.survey import Survey
from fanout.store import LOCK_WAIT, open_engine

if TYPE_CHECKING:
    from collections.abc import Callable

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
        CatalogError: there is a catalog already (without `force`), no volume can be read, the volumes are of several stores, or
            the catalog cannot be written. Nothing has changed.
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
        kept = restore(
            path,
            store=media.store,
            created=min(volume.superblock.created_ns for volume in media.volumes),
            pools=survey.pools(),
            volumes=[entry_now(volume) for volume in media.volumes],
            transactions=survey.transactions(),
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
