"""The next sequential volume is made ahead by a thread of its own: a comfort, which nobody's transaction may fail for.

What could break: on a machine that has no thread left, a client that needs no new volume is refused, with an error that is not ours, and the
space that it was given is lost until the volumes are opened again.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from tests.engine.test_forks import in_child
from tests.faults.needs import require
from tests.faults.refuse import refuse
from tests.store.histories import LARGE, SmallSite
from tests.store.test_delete import put

if TYPE_CHECKING:
    import random
    from pathlib import Path


def test_a_spare_that_gets_no_thread_fails_nobody(tmp_path: Path, rng: random.Random) -> None:
    """What was promised to nobody is made when it is needed; then the store closes."""
    require("seccomp")
    site = SmallSite(tmp_path, rng)
    site.create()

    def fill() -> None:
        with site.open() as store:
            refuse(dict.fromkeys(("clone", "clone3"), errno.EAGAIN))  # to this thread alone
            while len(site.volumes("TAPEPOOL")) < 2:
                put(store, {b"large": bytes(LARGE + 1000)})
            held = [s.reserved + s.draining + s.quarantined for s in store.query_volumes()]
            assert set(held) == {0}

    in_child(fill)
    for path in [*tmp_path.glob("*.vol"), *tmp_path.glob("sequential/*")]:
        os.unlink(path)
