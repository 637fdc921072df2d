"""Using a session: the loop, begin by hand, states, names, sources that go wrong, two callers at once."""

from __future__ import annotations

import contextlib
import errno
import io
import threading
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from fanout import policy
from fanout.engine import Fault
from fanout.errors import (
    InterfaceError,
    PoolFull,
    SourceLengthError,
    SourceNotRereadable,
    TransactionFailed,
    TransactionRetry,
)
from fanout.session import Session
from fanout.sources import once, resent, spooled
from fanout.transaction import State
from fanout.types import Phase, StoredObject

from .conftest import KIB, MIB, World, destination
from .test_vectors import content, store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Unknown:
    """E in pieces, and nobody knows how many."""

    def __iter__(self) -> Iterator[bytes]:
        yield content("E")


def broken(world: World, pool: str, *, count: int | None = None) -> None:
    world.engine.set_faults(
        [Fault.error(errno.EIO, kind=Phase.WRITE, target=world.target(pool), count=count)]
    )


# ---- the loop --------------------------------------------------------------------------------------------


def test_the_loop_keeps_the_transaction_and_counts_the_attempts(world: World) -> None:
    """The host recognises a resend by its id; a new one would be stored twice."""
    broken(world, "C1")
    session = world.session()
    seen = []
    for attempt in session.attempts():
        with attempt as transaction:
            seen.append((transaction.transaction, transaction.attempt))
            transaction.put("A", content("A"))
    assert [number for _, number in seen] == [1, 2]
    assert len({identity for identity, _ in seen}) == 1
    (record,) = world.host.records
    assert (record.transaction, record.attempt) == seen[1]
    assert session.receipt is not None
    assert session.receipt.transaction == seen[0][0].hex()
    assert len({r.aggregate for r in world.host.requests}) == 2  # an aggregate is of one attempt


def test_the_loop_ends_after_an_abort(world: World) -> None:
    """The caller changed its mind; that is no failure."""
    session = world.session()
    for attempt in session.attempts():
        with attempt as transaction:
            transaction.put("A", content("A"))
            transaction.abort()
    assert session.receipt is None
    assert world.host.records == []
    world.at_rest()


def test_the_callers_exception_aborts_and_rises(world: World) -> None:
    """Nothing half-done may stay behind, and nothing may be swallowed."""
    session = world.session()
    with pytest.raises(ZeroDivisionError):
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put("A", content("A"))
                _ = 1 // 0
    assert world.host.records == []
    assert store(session, "A") == 1
    world.at_rest()


def test_a_caught_signal_is_raised_again_at_the_end(world: World) -> None:
    """A block that catches too much must not look like a success."""
    broken(world, "C1")
    session = world.session()
    attempts = 0
    for attempt in session.attempts():
        with attempt as transaction:
            attempts += 1
            for name in "EEE":
                try:
                    transaction.put(name, content(name))
                except (TransactionRetry, InterfaceError):
                    break
    assert attempts == 2
    assert world.host.held()["DP"] == "EEE"
    transaction = session.begin()
    with pytest.raises(TransactionRetry), transaction:
        broken(world, "C2")
        try:
            for _ in range(100):
                transaction.put("E", content("E"))
        except TransactionRetry:
            pass


@pytest.mark.parametrize("by", ["return", "break", "return behind a put"])
def test_a_loop_that_is_left_in_the_middle_of_a_round(world: World, by: str) -> None:
    """The round's end commits, and fails; nobody asks for the next one: nothing was stored, and nothing was raised."""
    broken(world, "C1")

    def send(session: Session) -> str:
        for attempt in session.attempts():
            with attempt as transaction:
                if by == "return behind a put":
                    with contextlib.suppress(TransactionRetry):
                        for _ in range(100):
                            transaction.put("E", content("E"))
                    return "stored"
                transaction.put("A", content("A"))
                if by == "return":
                    return "stored"
                break
        return "stored"

    with (
        pytest.raises(TransactionRetry, match="C1 left this session") as caught,
        world.session() as session,
    ):
        send(session)
        store(session, "B")  # another one
    assert "left before it was sent again" in caught.value.__notes__[0]
    assert world.host.names("DP") == ["B"]
    world.at_rest()


def test_a_loop_that_is_left_on_purpose(world: World) -> None:
    """Whoever says that he gives up is not told again; nor is he whose own exception is on its way, or who sends it again by hand."""
    with world.session() as session:
        broken(world, "C1")
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put("A", content("A"))
            transaction.abort()
            break
    assert session.removed
    with pytest.raises(ZeroDivisionError), world.session() as session:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put("A", content("A"))
            _ = 1 // 0
    with world.session() as session:
        with next(session.attempts()) as transaction:
            transaction.put("A", content("A"))
        with session.begin(transaction=transaction.transaction, attempt=2) as transaction:
            transaction.put("A", content("A"))
    assert world.host.names("DP") == ["A"]


def test_a_caught_error_of_the_last_source_is_no_success(world: World) -> None:
    """Who skips files that cannot be read learns of the abort at the next put; behind the last one nobody told him."""
    with pytest.raises(InterfaceError, match=r"nothing of the transaction is stored.*the disk"):
        for attempt in world.session().attempts():
            with attempt as transaction:
                transaction.put("A", content("A"))
                with contextlib.suppress(OSError):
                    transaction.put("B", Failing(OSError(errno.EIO, "the disk")))
    with world.session().begin() as transaction:
        transaction.put("A", content("A"))
        with contextlib.suppress(OSError):
            transaction.put("B", Failing(OSError(errno.EIO, "the disk")))
        transaction.abort()  # he knows
    assert world.host.records == []
    world.at_rest()


def test_attempts_that_are_not_entered(world: World) -> None:
    """A forgotten `with` would loop through the budget without storing anything."""
    session = world.session()
    with pytest.raises(InterfaceError, match="not entered"):
        for _ in session.attempts():
            pass
    with pytest.raises(InterfaceError, match="not left"):
        for attempt in session.attempts():
            attempt.__enter__()
    session.close()
    attempt = next(world.session().attempts())
    with attempt:
        pass
    with pytest.raises(InterfaceError, match="entered once"), attempt:
        pass


def test_the_budget_is_the_transactions_own(world: World) -> None:
    """Retries of one transaction must not be charged to the next."""
    session = world.session()
    for _ in range(3):
        broken(world, "DP", count=2)
        assert store(session, "A") == 3
    world.at_rest()


def test_no_retries_at_all(world: World) -> None:
    """`primary_retries=0` is the rule of migration: the process fails at once."""
    broken(world, "DP", count=1)
    with pytest.raises(TransactionFailed, match="after 0 retries"):
        store(world.session(primary_retries=0), "A")
    with pytest.raises(ValueError, match="negative"):
        Session(world.engine, world.host, destination(), node="N", primary_retries=-1)


# ---- begin by hand ---------------------------------------------------------------------------------------


def test_a_caller_that_drives_the_resend(world: World) -> None:
    """The budget goes along with the id, over attempts that the caller begins."""
    session = world.session()
    broken(world, "DP")
    transaction = session.begin()
    identity = transaction.transaction
    for number in (1, 2):
        with pytest.raises(TransactionRetry) as caught:
            transaction.put("E", content("E"))
            transaction.commit()
        assert caught.value.attempt == number
        assert caught.value.transaction == identity.hex()
        assert transaction.state is State.FAILED
        assert transaction.failure is caught.value
        transaction = session.begin(transaction=identity, attempt=number + 1)
    with pytest.raises(TransactionFailed) as failed:
        transaction.put("E", content("E"))
        transaction.commit()
    assert failed.value.reason == "budget"
    world.at_rest()


def test_the_budget_goes_along_with_the_id_past_other_transactions(world: World) -> None:
    """A daemon that puts a failed transaction behind the others had it fail for ever: each round began with a full budget."""
    session = world.session()
    broken(world, "DP")
    first, second = b"1" * 16, b"2" * 16
    reasons: dict[bytes, list[str]] = {first: [], second: []}
    for number in (1, 2, 3):
        for identity in (first, second):
            with (
                pytest.raises((TransactionRetry, TransactionFailed)) as caught,
                session.begin(transaction=identity, attempt=number) as transaction,
            ):
                transaction.put("A", content("A"))
            reasons[identity].append(caught.value.reason)
    assert reasons == {key: ["primary", "primary", "budget"] for key in (first, second)}
    world.at_rest()


def test_what_outgrew_a_primary_begins_below_it_past_other_transactions(world: World) -> None:
    """It began at the top again, and outgrew it again: such a transaction never ended."""
    session = world.session(destination(max_size=MIB))
    identity = b"1" * 16
    with (
        pytest.raises(TransactionRetry, match="outgrew DP"),
        session.begin(transaction=identity) as transaction,
    ):
        transaction.put("E", Unknown())
    with session.begin() as other:
        other.put("A", content("A"))
    with session.begin(transaction=identity, attempt=2) as transaction:
        transaction.put("E", Unknown())
    assert world.host.names("TP") == ["E"]
    world.at_rest()


def test_the_most_attempts_that_there_can_be(world: World) -> None:
    """Outgrown once, each secondary fails in an attempt of its own, the primary as often as it may: the next one is the last, and commits."""
    session = world.session(destination(max_size=MIB))
    failing = [None, "C1", "C2", "AD", "TP", "TP", None]
    assert len(failing) == policy.max_attempts(session.destination, retries=2)
    reasons = []
    for pool, attempt in zip(failing, session.attempts(), strict=True):
        world.engine.set_faults([])
        if pool is not None:
            broken(world, pool)
        with attempt as transaction:
            transaction.put("E", Unknown())
        assert attempt.transaction is not None
        reasons.append(getattr(attempt.transaction.failure, "reason", ""))
    assert reasons == ["space", *["secondary"] * 3, *["primary"] * 2, ""]
    assert list(session.removed) == ["C1", "C2", "AD"]
    assert world.host.held() == {"DP": "", "TP": "E", "C1": "", "C2": "", "AD": ""}
    world.at_rest()


def test_a_session_remembers_a_bounded_number_of_transactions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that were given up, too; what committed is forgotten at once."""
    monkeypatch.setattr("fanout.transaction.MAX_UNFINISHED", 3)
    session = world.session()
    for _ in range(10):
        session.begin().abort()
    assert len(session._shared.unfinished) == 3
    store(session, "A")
    assert len(session._shared.unfinished) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"attempt": 2}, "needs its transaction id"),
        ({"attempt": 0}, "below 1"),
        ({"transaction": b"1" * 16, "attempt": 1 << 32}, "32 bits"),
        ({"transaction": b"short"}, "16 bytes"),
    ],
)
def test_begin_refuses_what_does_not_fit(world: World, arguments: Any, says: str) -> None:
    """A resend under a new id would be stored twice."""
    with pytest.raises(InterfaceError, match=says):
        world.session().begin(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"transaction": b"1" * 16, "attempt": 1.5},
        {"transaction": b"1" * 16, "attempt": "2"},
        {"transaction": "1" * 16},
        {"transaction": bytearray(16)},
    ],
)
def test_begin_refuses_values_of_the_wrong_type(world: World, arguments: Any) -> None:
    """They went as far as the headers, or the commit, where they were no number and no id; what the client heard was "send it again"."""
    session = world.session()
    with pytest.raises(TypeError, match=r"whole|integer|bytes"):
        session.begin(**arguments)
    assert store(session, "A") == 1


def test_a_word_is_no_kind(world: World) -> None:
    """It equals no `ObjectKind`, so a transaction of that kind would go without the active-data pools and call that complete."""
    session = world.session()
    with pytest.raises(TypeError, match="ObjectKind"):
        session.begin(kind="backup")  # type: ignore[arg-type]
    with session.begin() as transaction:
        transaction.put("A", content("A"))
    assert world.host.names("AD") == ["A"]


def test_a_host_that_refuses_for_a_pool_that_it_was_not_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody of this transaction is to blame, so nobody may be removed: it is the host's mistake, and is called so."""

    def refuse(request: object) -> list[object]:
        raise PoolFull("STRANGER", "no room")

    session = world.session()
    transaction = session.begin()
    with monkeypatch.context() as patch:
        patch.setattr(world.host, "reserve", refuse)
        with pytest.raises(InterfaceError, match="refused STRANGER, which it was not asked for"):
            transaction.put("A", b"")
    assert session.removed == {}
    session.close()
    world.at_rest()


def test_one_transaction_at_a_time(world: World) -> None:
    """Two open transactions of one session would share its lists in the middle of a verdict."""
    session = world.session()
    transaction = session.begin()
    with pytest.raises(InterfaceError, match="still open"):
        session.begin()
    transaction.commit()
    with pytest.raises(InterfaceError, match="put: the transaction is committed"):
        transaction.put("A", b"")
    with pytest.raises(InterfaceError, match="commit: the transaction is committed"):
        transaction.commit()
    with pytest.raises(InterfaceError, match="abort: the transaction is committed"):
        transaction.abort()
    with pytest.raises(InterfaceError, match="with: the transaction is committed"), transaction:
        pass
    session.close()
    session.close()
    with pytest.raises(InterfaceError, match="closed"):
        session.begin()


def test_closing_the_session_aborts_what_is_open(world: World) -> None:
    """A daemon that loses its client closes the session; the places must come back."""
    with world.session() as session:
        transaction = session.begin()
        transaction.put("E", content("E"))
    assert transaction.state is State.ABORTED
    world.at_rest()


def test_a_session_outlives_its_engine_without_a_crash(world: World) -> None:
    """At shutdown the order is not always right."""
    session = world.session()
    target = world.target("C2")
    world.engine.set_faults([Fault.delay(50.0, kind=Phase.WRITE, target=target, count=None)])
    transaction = session.begin()
    transaction.put("E", content("E"))
    transaction.abort()
    world.engine.close()
    session.close()


# ---- names and receipts ----------------------------------------------------------------------------------


def test_names_are_bytes(world: World) -> None:
    """File trees are not UTF-8; the name that comes back must be the one on the disk."""
    odd = b"caf\xe9/\xff\x00\n"
    with world.session().begin() as transaction:
        transaction.put(odd, b"1")
        transaction.put(odd.decode("utf-8", "surrogateescape"), b"2")
        transaction.put("ü" * 512, b"3")
    (aggregate,) = world.host.records[0].aggregates
    assert [m.name for m in aggregate.members] == [odd, odd, "ü".encode() * 512]


@pytest.mark.parametrize(
    "name",
    ["", b"", "x" * 1025, "ü" * 513, "\ud800"],
    ids=["empty", "empty bytes", "long", "long in UTF-8", "lone surrogate"],
)
def test_names_that_are_refused_leave_the_transaction_open(world: World, name: Any) -> None:
    """One bad name among thousands should cost that object, not the transaction."""
    with world.session().begin() as transaction:
        with pytest.raises(InterfaceError, match=r"put: |UTF-8"):
            transaction.put(name, b"x")
        transaction.put("A", content("A"))
    assert world.host.names("DP") == ["A"]


@pytest.mark.parametrize("name", [5, None, ["A"]])
def test_a_name_of_the_wrong_type_is_no_name(world: World, name: Any) -> None:
    """`bytes(5)` is five zero bytes: an object that nobody would find again."""
    with world.session().begin() as transaction:
        with pytest.raises(TypeError, match="a name is str or bytes"):
            transaction.put(name, b"x")
        transaction.put("A", content("A"))
    assert world.host.names("DP") == ["A"]


def test_the_receipt_tells_what_was_stored(world: World) -> None:
    """It is the client's only proof: names, lengths, digests, pools, in the order of the puts."""
    ticks = iter(range(100, 200))
    session = world.session(destination(max_size=MIB), clock=lambda: float(next(ticks)))
    with session.begin() as transaction:
        for name in "AEC":
            transaction.put(name, content(name))
    receipt = session.receipt
    assert receipt is not None
    assert receipt is transaction.receipt
    assert receipt.bytes == sum(len(content(name)) for name in "AEC")
    assert receipt.seconds == 1.0
    assert receipt.csn == 1
    assert receipt.objects == tuple(
        StoredObject(
            name.encode(),
            len(content(name)),
            xxhash.xxh3_128_digest(content(name)),
            primary,
            (primary, "C1", "C2", "AD"),
        )
        for name, primary in zip("AEC", ("DP", "TP", "DP"), strict=True)
    )
    session.begin().abort()
    assert session.receipt is None


# ---- sources ---------------------------------------------------------------------------------------------


def test_a_seekable_reader_is_sent_again_from_where_it_stood(world: World) -> None:
    """The first attempt has read it; the second would store an empty tail with full success."""
    broken(world, "C1")
    reader = io.BytesIO(b"skipped" + content("B"))
    reader.seek(7)
    session = world.session()
    for attempt in session.attempts():
        with attempt as transaction:
            transaction.put("B", reader)
    assert session.receipt is not None
    assert session.receipt.attempt == 2
    assert world.host.read("DP", "B") == content("B")


def test_files_opened_inside_the_attempt_may_be_closed_again(world: World, tmp_path: Path) -> None:
    """Taking a closed file back to its start must not hide the retry."""
    broken(world, "C1")
    path = tmp_path / "b"
    path.write_bytes(content("B"))
    session = world.session()
    for attempt in session.attempts():
        with attempt as transaction, path.open("rb") as file:
            transaction.put("B", file)
    assert world.host.read("C2", "B") == content("B")


def test_a_reader_that_is_put_twice_is_read_on(world: World) -> None:
    """A resend begins where the first of the two puts began."""
    broken(world, "C1")
    reader = io.BytesIO(content("B"))
    session = world.session()
    for attempt in session.attempts():
        with attempt as transaction:
            transaction.put("B", reader)
            transaction.put("Z", reader)
    assert world.host.read("DP", "B") == content("B")
    assert world.host.read("DP", "Z") == b""


def test_paths_and_spools_are_sent_again(world: World, tmp_path: Path) -> None:
    """The mends that the refusal names."""
    broken(world, "AD")
    path = tmp_path / "e"
    path.write_bytes(content("E"))
    generator = (content("B")[at : at + 999] for at in range(0, 200 * KIB, 999))
    spool = spooled(generator, limit_bytes=MIB)
    session = world.session()
    for attempt in session.attempts():
        with attempt as transaction:
            transaction.put("E", path)
            transaction.put("B", spool)
    spool.close()
    assert world.host.held()["DP"] == "EB"
    assert world.host.read("C1", "E") == content("E")
    assert world.host.read("C1", "B") == content("B")


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_source_for_once_makes_a_failure_final(world: World, *, by_hand: bool) -> None:
    """Asking the client to send what is gone would store something else; the pool still leaves."""
    broken(world, "C1")
    session = world.session()
    with pytest.raises(TransactionFailed, match="cannot be read again") as caught:
        if by_hand:
            with session.begin() as transaction:
                transaction.put("A", once(iter([content("A")])))
        else:
            for attempt in session.attempts():
                with attempt as transaction:
                    transaction.put("A", once(iter([content("A")])))
    assert (caught.value.reason, caught.value.removed) == ("source", ("C1",))
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert list(session.removed) == ["C1"]
    assert store(session, "B") == 1


@pytest.mark.parametrize("length", [len(content("E")), None])
def test_a_client_that_sends_again_is_asked_to(world: World, length: int | None) -> None:
    """A server has such bytes neither twice nor for the last time; with `once` the signal was the end of the transaction."""
    broken(world, "C1")
    session = world.session(destination(max_size=MIB))
    signals: list[TransactionRetry] = []
    for attempt in session.attempts():
        with attempt as transaction:
            for name in ("A", "E"):
                said = length if name == "E" else len(content(name))
                transaction.put(name, resent(iter([content(name)]), length=said))
        if isinstance(transaction.failure, TransactionRetry):
            signals.append(transaction.failure)
    assert {signal.reason for signal in signals} == {"secondary", *([] if length else ["space"])}
    assert (world.host.names("DP"), world.host.names("TP")) == (["A"], ["E"])
    assert world.host.read("C2", "E") == content("E")
    assert list(session.removed) == ["C1"]
    with pytest.raises(SourceNotRereadable, match="each attempt"), session.begin() as transaction:
        source = resent(iter([b"1"]))
        transaction.put("1", source)
        transaction.put("2", source)


class Failing:
    """Gives some chunks, then raises."""

    def __init__(self, error: BaseException, chunks: int = 40) -> None:
        self.error, self.chunks = error, chunks

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self.chunks):
            yield b"x" * 10_000
        raise self.error


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "the client's disk"), KeyboardInterrupt(), TimeoutError("socket")]
)
def test_what_a_source_raises_aborts_and_rises_unchanged(
    world: World, error: BaseException
) -> None:
    """It is neither a pool's failure nor ours; and the session stays usable."""
    session = world.session()
    transaction = session.begin()
    transaction.put("A", content("A"))
    with pytest.raises(type(error)) as caught:
        transaction.put("B", Failing(error))
    assert caught.value is error
    assert transaction.state is State.ABORTED
    assert not session.removed
    assert store(session, "A") == 1
    assert world.host.held()["DP"] == "A"
    world.at_rest()


def test_a_file_that_is_missing_costs_only_itself(world: World, tmp_path: Path) -> None:
    """Files vanish while trees are walked; the other thousand objects are worth keeping."""
    with world.session().begin() as transaction:
        transaction.put("A", content("A"))
        with pytest.raises(FileNotFoundError):
            transaction.put("gone", tmp_path / "gone")
        with pytest.raises(OSError, match="at once"):
            transaction.put("bad", Failing(OSError("at once"), chunks=0))
        transaction.put("C", content("C"))
    assert world.host.names("C2") == ["A", "C"]


class Lying:
    """A source of somebody else's that does not keep its length."""

    rereadable = True

    def __init__(self, length: int, given: bytes) -> None:
        self.length: int | None = length
        self.given = given

    def open(self) -> Any:
        from fanout.sources import Chunks

        return Chunks(chunk for chunk in [self.given[:5], self.given[5:]])


@pytest.mark.parametrize("length", [3, 9, 11])
def test_a_source_that_lies_about_its_length(world: World, length: int) -> None:
    """A truncated object with a good digest would be restored without a warning."""
    session = world.session()
    transaction = session.begin()
    with pytest.raises(SourceLengthError):
        transaction.put("A", Lying(length, b"0123456789"))
    assert transaction.state is State.ABORTED
    world.at_rest()


@pytest.mark.parametrize("kind", [once, resent])
@pytest.mark.parametrize("chunks", [[10], [4, 6], [1, 2, 2], [1], []])
def test_an_iterator_that_lies_about_its_length(world: World, kind: Any, chunks: list[int]) -> None:
    """Of a thousand objects nobody learned which; and where the first chunk was too long already, what was read of it was gone and the attempt went on."""
    transaction = world.session().begin()
    transaction.put("good", b"1234")
    with pytest.raises(SourceLengthError, match="'bad'"):
        transaction.put("bad", kind(iter([bytes(size) for size in chunks]), length=9))
    assert transaction.state is State.ABORTED
    world.at_rest()


class Confessing(Lying):
    """Says when it is closed that its bytes were no good, as who reads from another process does when that has failed."""

    def open(self) -> Any:
        from fanout.sources import Chunks

        class Told(Chunks):
            def close(self) -> None:
                raise OSError("the process that gave it has failed")

        return Told(chunk for chunk in [self.given])


@pytest.mark.parametrize("length", [10, None])
def test_a_source_that_says_at_its_end_that_it_was_no_good(
    world: World, length: int | None
) -> None:
    """A caller that takes note and goes on, as behind a missing file, committed the object with the others."""
    source = Confessing(10, b"0123456789")
    source.length = length
    transaction = world.session().begin()
    transaction.put("A", content("A"))
    with pytest.raises(OSError, match="has failed"):
        transaction.put("B", source)
    assert transaction.state is State.ABORTED
    world.at_rest()
    assert world.host.records == []


@pytest.mark.parametrize(
    ("length", "error"), [(10.0, TypeError), ("10", TypeError), (-1, SourceLengthError)]
)
def test_a_length_that_is_none(world: World, length: Any, error: type[Exception]) -> None:
    """Taken for a number it went into the offsets that others got next, and nobody could write any more."""
    with world.session().begin() as transaction:
        with pytest.raises(error):
            transaction.put("A", Lying(length, b"" if length == -1 else b"0123456789"))
        assert world.host.requests == []
        transaction.put("C", content("C"))
    assert world.host.names("C1") == ["C"]
    world.at_rest()


def test_a_caller_that_changes_its_buffer_after_put(world: World) -> None:
    """The bytes are ours when put returns: digest and media agree with what they were then."""
    buffer = bytearray(content("B"))
    session = world.session()
    with session.begin() as transaction:
        transaction.put("B", buffer)
        buffer[:] = bytes(len(buffer))
        transaction.put("Z", memoryview(buffer).cast("I"))
    assert world.host.read("AD", "B") == content("B")
    assert world.host.read("AD", "Z") == bytes(len(buffer))


# ---- two callers -----------------------------------------------------------------------------------------


def test_a_second_caller_gets_an_error_and_does_no_harm(world: World) -> None:
    """Two threads in one transaction would mix their objects' bytes."""
    session = world.session()
    inside, go_on = threading.Event(), threading.Event()

    class Slow:
        def __iter__(self) -> Iterator[bytes]:
            yield content("A")[:1000]
            inside.set()
            assert go_on.wait(20)
            yield content("A")[1000:]

    transaction = session.begin()
    worker = threading.Thread(target=transaction.put, args=("A", Slow()))
    worker.start()
    assert inside.wait(20)
    for call in (
        lambda: transaction.put("B", b""),
        transaction.commit,
        transaction.abort,
        session.begin,
        session.close,
    ):
        with pytest.raises(InterfaceError, match="one caller at a time"):
            call()
    go_on.set()
    worker.join()
    transaction.commit()
    assert world.host.read("C1", "A") == content("A")


def test_a_source_cannot_put_into_its_own_transaction(world: World) -> None:
    """Re-entering would nest one object in another."""
    session = world.session()
    transaction = session.begin()

    class Nested:
        def __iter__(self) -> Iterator[bytes]:
            yield b"x"
            transaction.put("inner", b"y")

    with pytest.raises(InterfaceError, match="one caller at a time"):
        transaction.put("outer", Nested())
    assert transaction.state is State.ABORTED
    world.at_rest()
