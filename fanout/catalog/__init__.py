"""The catalog: the database of objects, aggregates, copies and gaps, and the only package that knows SQLite.

`schema.sql` is the layout, `rows.py` what goes in and comes out, `intake.py` packs a commit group, `connection.py` opens, `asking.py`,
`contents.py` and `reader.py` ask, `values.py` says what was answered, `door.py` writes, `folding.py` keeps its log short, `ballast.py` keeps room for it, `backup.py` copies, `restore.py` makes a whole catalog at once.
"""

from __future__ import annotations

from fanout.catalog.door import Catalog, CommitDoubt
from fanout.catalog.folding import LogFolder
from fanout.catalog.members import MemberSet
from fanout.catalog.reader import CatalogReader
from fanout.catalog.restore import (
    RestoredAggregate,
    RestoredCopy,
    RestoredDeletion,
    RestoredTransaction,
    restore,
    writer_lock,
)
from fanout.catalog.rows import (
    AggregateEntry,
    Commit,
    CommittedEntry,
    Contents,
    CopyEntry,
    DeadAggregate,
    Deletion,
    GapEntry,
    HeldSpans,
    MemberEntry,
    NewAggregate,
    NewCopy,
    NewGap,
    ObjectEntry,
    OccupancyEntry,
    Place,
    PoolEntry,
    Region,
    Repair,
    RetiredVolume,
    Shrunk,
    SpaceEntry,
    SpentCopy,
    StoreEntry,
    UsageEntry,
    VolumeEntry,
)

__all__ = [
    "AggregateEntry",
    "Catalog",
    "CatalogReader",
    "Commit",
    "CommitDoubt",
    "CommittedEntry",
    "Contents",
    "CopyEntry",
    "DeadAggregate",
    "Deletion",
    "GapEntry",
    "HeldSpans",
    "LogFolder",
    "MemberEntry",
    "MemberSet",
    "NewAggregate",
    "NewCopy",
    "NewGap",
    "ObjectEntry",
    "OccupancyEntry",
    "Place",
    "PoolEntry",
    "Region",
    "Repair",
    "RestoredAggregate",
    "RestoredCopy",
    "RestoredDeletion",
    "RestoredTransaction",
    "RetiredVolume",
    "Shrunk",
    "SpaceEntry",
    "SpentCopy",
    "StoreEntry",
    "UsageEntry",
    "VolumeEntry",
    "restore",
    "writer_lock",
]
