"""The worker pool of a drain: rows in, receipts out, as many at a time as there are workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from katalys_wsgi.delivery.workers import WorkerPool
from katalys_wsgi.outbox import Entry, Receipt, Verdict
from katalys_wsgi.outbox.sqlite import SQLiteOutbox

from .support import make_postback, wait_until

DELIVERED = Receipt(Verdict.DELIVERED, 204)

MakeEntries = Callable[[int], list[Entry]]


@pytest.fixture
def make_entries(tmp_path: Path) -> Iterator[MakeEntries]:
    """Claims that many rows of an outbox."""
    outbox = SQLiteOutbox(tmp_path / "outbox.db")

    def make(number: int) -> list[Entry]:
        for order in range(number):
            outbox.add(make_postback(str(order)))
        return outbox.claim(number, 60.0)

    yield make
    outbox.close()


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "katalys-send"]


def collected(pool: WorkerPool) -> dict[str, Receipt | None]:
    """Every row in progress, by order id."""
    found: dict[str, Receipt | None] = {}
    while pool.in_progress:
        found |= {entry.order_id: receipt for entry, receipt in pool.collect()}
    return found


def test_every_row_comes_back_with_its_receipt(make_entries: MakeEntries) -> None:
    with WorkerPool(lambda _: DELIVERED, 4) as pool:
        pool.take_on(make_entries(20))
        assert pool.in_progress == 20
        found = collected(pool)

    assert found == {str(order): DELIVERED for order in range(20)}
    wait_until(lambda: not workers())


def test_as_many_at_a_time_as_there_are_workers(make_entries: MakeEntries) -> None:
    together = threading.Barrier(3)

    def attempt(_: Entry) -> Receipt:
        together.wait(5)
        assert len(workers()) == 3
        return DELIVERED

    with WorkerPool(attempt, 3) as pool:
        pool.take_on(make_entries(9))

        assert set(collected(pool).values()) == {DELIVERED}


def test_no_more_threads_than_rows_and_none_that_the_interpreter_waits_for(make_entries: MakeEntries) -> None:
    may_end = threading.Event()

    def attempt(_: Entry) -> Receipt:
        may_end.wait(5)
        return DELIVERED

    with WorkerPool(attempt, 8) as pool:
        pool.take_on(make_entries(2))
        found = [thread.daemon for thread in workers()]
        may_end.set()
        collected(pool)

    assert found == [True, True]


def test_after_a_halt_rows_come_back_without_a_receipt(make_entries: MakeEntries) -> None:
    begun: list[str] = []

    def attempt(entry: Entry) -> Receipt:
        begun.append(entry.order_id)
        pool.halt()
        return DELIVERED

    with WorkerPool(attempt, 1) as pool:
        pool.take_on(make_entries(5))
        found = collected(pool)

    assert begun == ["0"]
    assert found == {"0": DELIVERED, **dict.fromkeys("1234")}


def test_an_error_is_an_attempt_to_be_repeated(make_entries: MakeEntries) -> None:
    """Its text may repeat the buyer's data."""

    def attempt(entry: Entry) -> Receipt:
        raise ZeroDivisionError(entry.payload)

    with WorkerPool(attempt, 1) as pool:
        pool.take_on(make_entries(1))

        assert collected(pool) == {"0": Receipt(Verdict.RETRY, error="ZeroDivisionError")}
