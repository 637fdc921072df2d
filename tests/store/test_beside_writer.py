"""A store that stays open read-only, for days, beside the one that writes.

What could break: it knows the volumes of the moment at which it was opened, and finds nothing of what its writer has put elsewhere since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.store.histories import LARGE, SmallSite
from tests.store.test_delete import put

if TYPE_CHECKING:
    import random
    from pathlib import Path


def test_volumes_that_were_added_since(tmp_path: Path, rng: random.Random) -> None:
    """A sequential pool grows. Breaks if what lies on its new volume is in no pool for a reader, and its pools seem as small as they were."""
    site = SmallSite(tmp_path, rng)
    site.create()
    data = rng.randbytes(2 * LARGE)
    with site.open() as store, site.open(read_only=True) as reader:
        while len(site.volumes("TAPEPOOL")) < 3:
            put(store, {b"large": data})
            assert reader.get("N1", b"large", pool="TAPEPOOL").read() == data
        sizes = [[p.size for p in one.query_stgpools()] for one in (store, reader)]
        assert sizes[0] == sizes[1]


def test_a_volume_that_was_away(tmp_path: Path, rng: random.Random) -> None:
    """It was not mounted when the reader came. Breaks if it stays unread until the reader is opened again."""
    site = SmallSite(tmp_path, rng)
    site.create()
    with site.open() as store:
        put(store, {b"small": b"good"})
    (volume,) = site.volumes("COPYPOOL2")
    away = volume.rename(volume.with_suffix(".away"))
    with site.open(read_only=True) as reader:
        away.rename(volume)
        reader.pools.pools["COPYPOOL2"].members[0].next_try = 0.0  # else in a second
        assert reader.get("N1", b"small", pool="COPYPOOL2").read() == b"good"
