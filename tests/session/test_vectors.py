"""The worked examples: who holds what after which failure. Letters are objects, pools as in the base configuration."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from fanout.engine import Fault
from fanout.errors import SourceNotRereadable, TransactionFailed, TransactionRetry
from fanout.types import ObjectKind, Phase

from .conftest import ARCHIVE, KIB, MIB, NORMAL, World, destination

if TYPE_CHECKING:
    import random

    from fanout.session import Session

SIZES = {"A": 3 * KIB, "B": 200 * KIB, "C": 1, "D": 70 * KIB, "E": 2 * MIB}


def content(name: str, *, salt: str = "") -> bytes:
    return (f"{name}{salt}." * SIZES[name])[: SIZES[name]].encode()


def store(session: Session, names: str) -> int:
    """One transaction by the loop; returns the attempt that committed."""
    for attempt in session.attempts():
        with attempt as transaction:
            for name in names:
                transaction.put(name, content(name))
    assert session.receipt is not None
    return session.receipt.attempt


def two_clients(world: World) -> tuple[Session, Session]:
    """N1 may use the active-data pool, N2 may not; objects above 1 MiB overflow to TP."""
    first = world.session(destination(max_size=MIB))
    second = world.session(
        destination(max_size=MIB, secondaries=NORMAL.secondaries),
    )
    return first, second


def breaks(world: World, pool: str, *, nth: int = 1, number: int = errno.EIO) -> None:
    """Every write to the pool fails, from the nth on."""
    target = world.target(pool)
    world.engine.set_faults(
        [Fault.error(number, kind=Phase.WRITE, target=target, nth=nth, count=None)]
    )


def verified(world: World) -> dict[str, str]:
    """Who holds what; every byte of it was read back and compared."""
    held = world.host.held()
    for pool, names in held.items():
        for name in names:
            assert world.host.read(pool, name) == content(name)
    return held


def test_tv01_all_healthy(world: World) -> None:
    """The figure of the base configuration: a wrong list shows at once."""
    first, second = two_clients(world)
    store(first, "AB")
    store(second, "CDE")
    assert verified(world) == {"DP": "ABCD", "TP": "E", "C1": "ABCDE", "C2": "ABCDE", "AD": "AB"}
    assert first.receipt is not None
    assert not first.receipt.degraded
    world.at_rest()


@pytest.mark.parametrize("framing", [None])
def test_tv01_without_framing(world: World) -> None:
    """A host that frames nothing gets bare data at its places."""
    test_tv01_all_healthy(world)


def test_tv01_on_real_files(real: World) -> None:
    """The same on both real backends."""
    test_tv01_all_healthy(real)


def test_tv02_copy_pool_fails_in_both_sessions(world: World) -> None:
    """C1 is gone for each session's life, the resend goes to the others, and E's overflow obeys it too."""
    first, second = two_clients(world)
    breaks(world, "C1")
    assert store(first, "AB") == 2
    assert store(second, "CDE") == 2
    assert verified(world) == {"DP": "ABCD", "TP": "E", "C1": "", "C2": "ABCDE", "AD": "AB"}
    assert second.receipt is not None
    gaps = [(g.primary, g.pool, g.objects, g.errno) for g in second.receipt.gaps]
    assert gaps == [("DP", "C1", 2, errno.EIO), ("TP", "C1", 1, errno.EIO)]
    assert dict(second.removed) == {
        "C1": second.receipt.gaps[0].reason,
    }
    assert "write: EIO at" in second.removed["C1"]
    assert second.removed["C1"].endswith(f"on {world.directory / 'c1.vol'}")
    world.at_rest()


def test_tv03_active_data_pool_fails(world: World) -> None:
    """Rule R4: the backup goes on without it; the other client never used it."""
    first, second = two_clients(world)
    breaks(world, "AD")
    assert store(first, "AB") == 2
    assert store(second, "CDE") == 1
    assert verified(world) == {"DP": "ABCD", "TP": "E", "C1": "ABCDE", "C2": "ABCDE", "AD": ""}
    world.at_rest()


def test_tv04_a_file_that_is_already_there_is_another_version(world: World) -> None:
    """Writing C again, while C1 holds a C already, must leave both versions whole in every pool."""
    session = world.session(NORMAL)
    store(session, "C")
    store(session, "ABC")
    assert verified(world) == {"DP": "CABC", "TP": "", "C1": "CABC", "C2": "CABC", "AD": ""}


def test_tv06_without_copy_continue_nothing_is_stored_anywhere(world: World) -> None:
    """Rules R3 and R18: no resend for N2, and N1 does not notice."""
    strict = destination(copy_continue=False, secondaries=NORMAL.secondaries)
    first, second = world.session(destination(max_size=MIB)), world.session(strict)
    store(first, "AB")
    breaks(world, "C1")
    with pytest.raises(TransactionFailed, match="copy_continue is false") as caught:
        store(second, "CDE")
    assert caught.value.reason == "copy_continue"
    assert caught.value.removed == ()
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert verified(world) == {"DP": "AB", "TP": "", "C1": "AB", "C2": "AB", "AD": "AB"}
    assert not second.removed
    world.at_rest()


def test_tv08_good_bytes_of_the_failed_attempt_are_undone(world: World) -> None:
    """C went to C1 whole before D failed there: after the resend C1 holds neither."""
    session = world.session(NORMAL)
    breaks(world, "C1", nth=2)  # the first slot, with all of C, is written well
    assert store(session, "CDE") == 2
    assert verified(world) == {"DP": "CDE", "TP": "", "C1": "", "C2": "CDE", "AD": ""}
    world.at_rest()


def test_tv12_every_secondary_fails(world: World) -> None:
    """Rules R13 and R16: one resend, success in the primary alone, and a receipt that says so loudly."""
    session = world.session()
    faults = [
        Fault.error(errno.EIO, kind=Phase.WRITE, target=world.target(pool), count=None)
        for pool in ("C1", "C2", "AD")
    ]
    world.engine.set_faults(faults)
    assert store(session, "AB") == 2
    assert verified(world) == {"DP": "AB", "TP": "", "C1": "", "C2": "", "AD": ""}
    assert session.receipt is not None
    assert session.receipt.degraded
    assert {gap.pool for gap in session.receipt.gaps} == {"C1", "C2", "AD"}
    assert set(session.receipt.removed) == {"C1", "C2", "AD"}
    world.at_rest()


def test_tv13_primary_fails(world: World) -> None:
    """Rule R5: nothing is stored anywhere, nobody is removed, and it ends after the budget."""
    session = world.session()
    breaks(world, "DP", nth=2)
    with pytest.raises(TransactionFailed) as caught:
        store(session, "BDE")
    assert caught.value.reason == "budget"
    assert caught.value.attempt == 3
    retry = caught.value.__cause__
    assert isinstance(retry, TransactionRetry)
    assert retry.reason == "primary"
    assert isinstance(retry.__cause__, ExceptionGroup)
    assert verified(world) == dict.fromkeys(("DP", "TP", "C1", "C2", "AD"), "")
    assert not session.removed
    world.at_rest()


def test_tv13_primary_fails_once(world: World) -> None:
    """The session goes on: the same transaction, then the next one, in all pools."""
    session = world.session()
    world.engine.set_faults([Fault.error(errno.EIO, kind=Phase.WRITE, target=world.target("DP"))])
    assert store(session, "AB") == 2
    assert store(session, "C") == 1
    assert verified(world) == {"DP": "ABC", "TP": "", "C1": "ABC", "C2": "ABC", "AD": "ABC"}
    world.at_rest()


def test_tv14_too_large_for_its_destination(world: World) -> None:
    """Rule R6: E lies in TP with DP's lists; the objects around it lie in DP."""
    session = world.session(destination(max_size=MIB))
    assert store(session, "AEB") == 1
    assert verified(world) == {"DP": "AB", "TP": "E", "C1": "AEB", "C2": "AEB", "AD": "AEB"}
    record = world.host.records[0]
    assert [(a.primary, len(a.members)) for a in record.aggregates] == [
        ("DP", 1),
        ("TP", 1),
        ("DP", 1),
    ]
    world.at_rest()


def test_tv17_a_removed_pool_stays_removed_across_the_hierarchy(world: World) -> None:
    """C1 fails while D goes to DP; then E overflows to TP and must not bring C1 back."""
    session = world.session(destination(max_size=MIB))
    breaks(world, "C1")
    assert store(session, "D") == 2
    world.engine.set_faults([])  # C1 is well again; the session does not know
    assert store(session, "E") == 1
    assert verified(world) == {"DP": "D", "TP": "E", "C1": "", "C2": "DE", "AD": "DE"}
    fresh = world.session(destination(max_size=MIB))  # rule R17
    assert store(fresh, "A") == 1
    assert world.host.names("C1") == ["A"]
    world.at_rest()


def test_tv29_archives_never_reach_active_data_pools(world: World) -> None:
    """Neither by the session's kind nor by the transaction's; and that is no gap."""
    session = world.session(kind=ARCHIVE)
    store(session, "A")
    assert session.receipt is not None
    assert not session.receipt.gaps
    with world.session().begin(kind=ObjectKind.SPACE_MANAGED) as transaction:
        transaction.put("B", content("B"))
    assert verified(world) == {"DP": "AB", "TP": "", "C1": "AB", "C2": "AB", "AD": ""}


def test_tv37_the_file_changed_between_the_attempts(world: World) -> None:
    """Every pool holds the second bytes, whole, also where the first ones had arrived."""
    session = world.session()
    breaks(world, "AD")
    for attempt in session.attempts():
        with attempt as transaction:
            transaction.put("B", content("B", salt=str(attempt.number)))
    for pool in ("DP", "C1", "C2"):
        assert world.host.read(pool, "B") == content("B", salt="2")
    world.at_rest()


@pytest.mark.parametrize("count", [1, 2, 100])
def test_tv39_empty_objects_and_group_sizes(world: World, count: int) -> None:
    """Objects without bytes have a name, a place and a digest in every pool."""
    session = world.session()
    with session.begin() as transaction:
        for index in range(count):
            transaction.put(f"{index:03}", b"" if index % 2 == 0 else b"x" * index)
    for pool in ("DP", "C1", "C2", "AD"):
        assert len(world.host.names(pool)) == count
        assert world.host.read(pool, "000") == b""
    assert session.receipt is not None
    assert len(session.receipt.objects) == count
    world.at_rest()


def test_tv39_a_transaction_without_objects(world: World) -> None:
    """The host is not asked to commit nothing."""
    session = world.session()
    with session.begin():
        pass
    assert session.receipt is not None
    assert (session.receipt.csn, session.receipt.objects) == (0, ())
    assert world.host.records == []
    assert world.host.requests == []


def test_removal_overflow_then_another_removal(world: World) -> None:
    """Removal of C1, overflow to TP, then C2 fails there: two removals, and the chain keeps both."""
    session = world.session(destination(max_size=MIB))
    breaks(world, "C1")
    assert store(session, "A") == 2
    breaks(world, "C2")
    assert store(session, "AE") == 2
    assert list(session.removed) == ["C1", "C2"]
    world.engine.set_faults([])
    assert world.host.held() == {"DP": "AA", "TP": "E", "C1": "", "C2": "A", "AD": "AAE"}
    world.at_rest()


def test_a_source_that_cannot_be_read_again_says_so_first(world: World) -> None:
    """Before its first byte, before any place is reserved, and the transaction stays usable."""
    session = world.session()
    with session.begin() as transaction:
        with pytest.raises(SourceNotRereadable, match=r"spooled.*once"):
            transaction.put("A", (b"x" for _ in range(3)))
        assert world.host.requests == []
        transaction.put("A", content("A"))
    assert world.host.names("DP") == ["A"]


def test_random_failures_leave_all_or_nothing(world: World, rng: random.Random) -> None:
    """Whatever fails and when: each pool holds a transaction whole or not at all, and gaps say exactly which."""
    for _ in range(30):
        session = world.session(
            destination(max_size=rng.choice([None, MIB]), copy_continue=rng.random() < 0.7)
        )
        faults = [
            Fault.error(
                rng.choice([errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EROFS]),
                kind=Phase.WRITE,
                target=world.target(pool),
                nth=rng.randint(1, 6),
                count=rng.choice([1, None]),
            )
            for pool in ("DP", "C1", "C2", "AD")
            if rng.random() < 0.3
        ]
        world.engine.set_faults(faults)
        before = len(world.host.records)
        names = "".join(rng.sample("ABCDE", rng.randint(1, 5)))
        try:
            store(session, names)
        except TransactionFailed:
            assert len(world.host.records) == before
            assert session.receipt is None
        else:
            receipt = session.receipt
            assert receipt is not None
            record = world.host.records[-1]
            assert len(world.host.records) == before + 1
            for aggregate in record.aggregates:
                gone = {gap.pool for gap in aggregate.gaps}
                assert gone == {"C1", "C2", "AD"} - set(aggregate.pools) == set(session.removed)
                for pool in aggregate.pools:
                    for member in aggregate.members:
                        name = member.name.decode()
                        assert world.host.read(pool, name) == content(name)
    world.engine.set_faults([])
    world.at_rest()
