"""The outbox in memory keeps the promises of every outbox."""

from __future__ import annotations

import pytest

from katalys_wsgi.errors import UnusableConnection
from katalys_wsgi.outbox.memory import MemoryOutbox

from .outbox_conformance import (  # noqa: F401 - the suite
    OpenOutbox,
    TestAdd,
    TestApply,
    TestClaim,
    TestClockJumps,
    TestDeadLetters,
    TestDropping,
    TestFairness,
    TestForgetting,
    TestOrderSequence,
    TestPruning,
    TestQuestions,
    TestRevival,
    conversion,
)
from .support import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_outbox(clock: Clock) -> OpenOutbox:
    """The same one at each call: its rows are nowhere else."""
    outbox = MemoryOutbox(clock=clock)
    return lambda: outbox


@pytest.fixture
def outbox(open_outbox: OpenOutbox) -> MemoryOutbox:
    outbox = open_outbox()
    assert isinstance(outbox, MemoryOutbox)
    return outbox


def test_it_cannot_join_the_shops_transaction_and_has_written_nothing(outbox: MemoryOutbox) -> None:
    with pytest.raises(UnusableConnection, match="SQLAlchemy URL"):
        outbox.add(conversion(), connection=object())
    with pytest.raises(UnusableConnection):
        outbox.history("1001", connection=object())

    assert outbox.entries() == []


def test_a_repr_says_what_it_is(outbox: MemoryOutbox) -> None:
    assert repr(outbox) == "MemoryOutbox()"
