"""Ctrl-C in a caller's own call of the catalog, while the committer goes on: a transaction that stayed open would take in all that follows."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fanout.catalog import Catalog, CatalogReader
from tests.strike import Striker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.catalog.conftest import Sample

LEAST_POINTS = 5  # else nothing is struck


def struck(call: Callable[[], object], point: int) -> bool:
    """Whether an interrupt struck at the point-th opportunity."""
    striker = Striker(point)
    try:
        sys.setprofile(striker)
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return striker.struck


def adding(catalog: Catalog, sample: Sample) -> None:
    """A sequential pool grows in the middle of a put."""
    number = len(sample.volumes)
    volume = replace(sample.volumes["TAPEPOOL"], volume=sample.id(), path=f"/vol/tape.{number}")
    sample.volumes[volume.path] = volume
    catalog.add(volumes=[volume])


def burying(catalog: Catalog, sample: Sample) -> None:
    """A deletion gives space back."""
    catalog.bury({sample.volumes["DISKPOOL"].volume: [sample.id()]})


def confirming(catalog: Catalog, sample: Sample) -> None:
    """A volume is opened again."""
    catalog.set_epochs({sample.volumes["DISKPOOL"].volume: (2, 7, 9)})


def asking(catalog: Catalog, sample: Sample) -> None:
    """Several questions of one moment."""
    catalog.contents([sample.id()])


@pytest.mark.parametrize("call", [adding, burying, confirming, asking])
def test_what_is_acknowledged_after_an_interrupt_is_there(
    sample: Sample, catalog: Catalog, call: Callable[[Catalog, Sample], None]
) -> None:
    """Commits went into a transaction that nobody ended: acknowledged, seen by nobody, and gone with the process."""
    point, more = 1, True
    while more:
        more = struck(lambda: call(catalog, sample), point)
        commit = sample.commit()
        (csn,) = catalog.commit([commit])
        for reader in (catalog, CatalogReader(sample.path)):
            entry = reader.committed(commit.transaction)
            assert entry is not None, f"struck at {point}: the commit is seen by nobody"
            assert entry.csn == csn
            if reader is not catalog:
                reader.close()
        point += 1
    assert point > LEAST_POINTS
