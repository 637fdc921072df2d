"""The numbers that cross the boundary mean the same on both sides."""

from __future__ import annotations

import errno
import pickle
import re
from pathlib import Path

import pytest

from fanout import _core
from fanout.engine import EventKind, engine, stream, target
from fanout.errors import TargetError
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase

HEADER = (Path(__file__).parents[2] / "csrc" / "fanout.h").read_text()


def enumerators(prefix: str) -> dict[str, int]:
    """All `PREFIX_NAME = number` of the C header."""
    return {name: int(value) for name, value in re.findall(rf"\b{prefix}_(\w+) = (\d+),", HEADER)}


@pytest.mark.parametrize(
    ("prefix", "numbers"),
    [
        ("FO_OP", Phase),
        ("FO_OUTCOME", OutcomeCode),
        ("FO_CLASS", FaultClass),
        ("FO_EVENT", EventKind),
    ],
)
def test_enums_are_those_of_the_header(prefix: str, numbers: type[Phase]) -> None:
    """Breaks if a number is added or moved on one side only."""
    assert enumerators(prefix) == {member.name: member.value for member in numbers}


def test_state_names_are_in_the_header_s_order() -> None:
    """Breaks if a state gets another number."""
    targets = enumerators("FO_TARGET")
    legs = enumerators("FO_LEG")
    assert [name.lower() for name in sorted(targets, key=targets.__getitem__)] == list(
        target._TARGET_STATES
    )
    assert [name.lower() for name in sorted(legs, key=legs.__getitem__)] == list(stream._LEG_STATES)


def test_events_are_unpacked_and_viewed_alike() -> None:
    """Breaks if the record's layout moves in one of its three descriptions."""
    np = pytest.importorskip("numpy")
    assert engine._EVENT.size == np.dtype(engine._EVENT_DTYPE).itemsize == 96
    raw = bytes(range(64, 64 + 68)) + bytes([1, 1, 2, 5]) + bytes(range(24))
    unpacked = engine._event(engine._EVENT.unpack(raw))
    (viewed,) = np.frombuffer(raw, dtype=np.dtype(engine._EVENT_DTYPE))
    assert [int(viewed[name]) for name in unpacked._fields] == [int(value) for value in unpacked]


@pytest.mark.parametrize(
    ("number", "cls"),
    [
        (errno.ENOSPC, FaultClass.SPACE),
        (errno.EIO, FaultClass.DEVICE),
        (errno.EMFILE, FaultClass.HOST),
        (12345, FaultClass.DEVICE),
        (0, FaultClass.NONE),
    ],
)
def test_an_errno_has_a_class(number: int, cls: FaultClass) -> None:
    """Breaks if an unknown errno is taken for something harmless."""
    assert FaultClass(_core.classify(number)) is cls


def test_a_target_error_says_what_where_and_why_and_survives_pickling() -> None:
    """Breaks if a worker process cannot report a failure."""
    outcome = Outcome(OutcomeCode.ERROR, Phase.WRITE, 4096, 512, 0, errno.ENOSPC, FaultClass.SPACE)
    error = pickle.loads(pickle.dumps(TargetError("/dev/x", outcome)))
    assert isinstance(error, TargetError)
    assert isinstance(error, OSError)
    assert (error.errno, error.filename, error.outcome) == (errno.ENOSPC, "/dev/x", outcome)
    assert "/dev/x" in str(error)
    assert "4096" in str(error)
    assert "ENOSPC" in str(error)


def test_what_has_no_place_says_none() -> None:
    """``open of 0 bytes at 0`` is no sentence."""
    outcome = Outcome(OutcomeCode.ERROR, Phase.OPEN, 0, 0, 0, errno.ENOENT, FaultClass.SETUP)
    assert str(outcome) == "open: error, ENOENT"
    outcome = Outcome(OutcomeCode.ERROR, Phase.WRITE, 4096, 512, 0, errno.EIO, FaultClass.DEVICE)
    assert str(outcome) == "write of 512 bytes at 4096: error, EIO"
