"""The relay: from the outbox to Katalys, and what is written down of each row."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest

from katalys_wsgi import Event, OrderUpdate, OutboxUnavailable, Settings
from katalys_wsgi.conversion.postback import Postback
from katalys_wsgi.conversion.wire import business_part
from katalys_wsgi.delivery import relay as module
from katalys_wsgi.delivery.relay import ROWS_PER_WORKER, Drained, Relay
from katalys_wsgi.events import Events
from katalys_wsgi.outbox import Added, Change, Entry, Outbox, State
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .peer import NO_CONTENT, MakePeer
from .support import BUYER_AGENT, BUYER_IP, SECRET, SITE_ID, Clock, Stopwatch, make_postback, names, wait_until

MakeRelay = Callable[..., Relay]

#: In no log, error or event, in no encoding.
PERSONAL = ("ann@example.com", "ann%40example.com", BUYER_IP, BUYER_AGENT, quote_plus(BUYER_AGENT), "X11")

HOUR = 3600.0

PAYLOAD = make_postback().payload


def acting(act: Callable[[], object]) -> Misbehaviour:
    """Answers correctly, after ``act``."""

    def then_answer(*_: object) -> None:
        act()

    return Misbehaviour("act", then_answer)


class Switch:
    """An outbox that can be made unusable, or replaced, while a relay uses it."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.error: Exception | None = None

    def add(self, postback: Postback, *, problems: Sequence[str] = (), connection: Any = None) -> Added:
        return self._usable.add(postback, problems=problems, connection=connection)

    def history(self, order_id: str, *, connection: Any = None) -> list[Entry]:
        return self._usable.history(order_id, connection=connection)

    def claim(self, limit: int, lease: float) -> list[Entry]:
        return self._usable.claim(limit, lease)

    def apply(self, changes: Iterable[Change]) -> int:
        return self._usable.apply(changes)

    def prune(self, finished_before: float) -> int:
        return self._usable.prune(finished_before)

    def close(self) -> None:
        self.outbox.close()

    @property
    def _usable(self) -> Outbox:
        if self.error is not None:
            raise self.error
        return self.outbox


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock) -> Iterator[SQLiteOutbox]:
    with closing(SQLiteOutbox(tmp_path / "outbox.db", clock=clock)) as outbox:
        yield outbox


@pytest.fixture
def events() -> list[Event]:
    """What the relays emitted."""
    return []


@pytest.fixture
def make_relay(sandbox: Sandbox, outbox: SQLiteOutbox, clock: Clock, events: list[Event]) -> Iterator[MakeRelay]:
    """Makes relays of one worker to the sandbox; every back-off lasts as long as it may."""
    made: list[Relay] = []
    ours = outbox

    def make(*, outbox: Outbox = ours, chance: Callable[[], float] = lambda: 1.0, **options: Any) -> Relay:
        usual = {"site_id": SITE_ID, "secret_key": SECRET, "endpoint": sandbox.endpoint, "delivery_workers": 1}
        settings = Settings.from_mapping({**usual, **options})
        made.append(Relay(outbox, settings, events=Events([events.append]), clock=clock, chance=chance))
        return made[-1]

    yield make
    for relay in made:
        relay.close()


@pytest.fixture
def relay(make_relay: MakeRelay) -> Relay:
    return make_relay()


def record(outbox: Outbox, *order_ids: object) -> None:
    for order_id in order_ids:
        outbox.add(make_postback(str(order_id)))


def row(outbox: Outbox, order_id: object = "1001") -> Entry:
    return outbox.history(str(order_id))[0]


def states(outbox: Outbox, order_ids: Sequence[object]) -> list[str]:
    return [row(outbox, order_id).state for order_id in order_ids]


def orders(received: Sequence[Any]) -> list[str]:
    return [one.fields["order_id"] for one in received]


class TestDrain:
    @pytest.mark.parametrize("workers", [1, 4])
    def test_everything_that_is_due_is_delivered_once(
        self, make_relay: MakeRelay, outbox: SQLiteOutbox, sandbox: Sandbox, workers: int
    ) -> None:
        record(outbox, *range(50))
        relay = make_relay(delivery_workers=workers)

        assert relay.drain() == Drained(settled=50)
        assert sorted(orders(sandbox.collector.received), key=int) == [str(number) for number in range(50)]
        assert not any(received.duplicate for received in sandbox.collector.received)
        assert relay.drain() == Drained()

    def test_one_worker_delivers_in_the_order_of_recording(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        record(outbox, *"cab")
        relay.drain()

        assert orders(sandbox.collector.accepted) == ["c", "a", "b"]

    def test_more_rows_than_are_claimed_at_a_time(self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox) -> None:
        record(outbox, *range(ROWS_PER_WORKER * 2 + 5))

        assert relay.drain().settled == ROWS_PER_WORKER * 2 + 5

    def test_a_delivered_row_holds_no_personal_data(
        self, relay: Relay, outbox: SQLiteOutbox, events: list[Event]
    ) -> None:
        record(outbox, "1001")
        relay.drain()

        entry = row(outbox)
        assert (entry.state, entry.last_status, entry.confirmed) == (State.DELIVERED, 204, True)
        assert entry.payload == business_part(make_postback("1001").payload)
        assert names(events) == ["postback_delivered"]
        assert events[0].fields["order_id"] == "1001"

    def test_a_delivery_over_get_is_marked_as_unconfirmed(
        self, make_relay: MakeRelay, outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        record(outbox, "1001")
        make_relay(wire="get").drain()

        assert (row(outbox).state, row(outbox).confirmed) == (State.DELIVERED, False)
        assert orders(sandbox.collector.accepted) == ["1001"]

    def test_each_attempt_sends_the_same_bytes(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(503), times=2)
        for _ in range(3):
            relay.drain()
            clock.advance(HOUR)

        assert [received.status for received in sandbox.collector.received] == [503, 503, 204]
        assert {received.body for received in sandbox.collector.received} == {make_postback().payload.encode()}

    def test_an_update_waits_for_its_conversion(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        record(outbox, "1001")
        outbox.add(Postback.from_update(OrderUpdate("1001", order_status="paid"), site_id=SITE_ID))
        sandbox.collector.misbehave(Misbehaviour.status(503), times=1)

        assert relay.drain() == Drained(postponed=1)
        clock.advance(60)
        assert relay.drain() == Drained(settled=2)
        assert [received.is_update for received in sandbox.collector.received] == [False, False, True]

    def test_two_relays_share_an_outbox(self, make_relay: MakeRelay, outbox: SQLiteOutbox, sandbox: Sandbox) -> None:
        record(outbox, *range(60))
        relays = [make_relay(delivery_workers=2), make_relay(delivery_workers=2)]
        drained: list[Drained] = []
        threads = [threading.Thread(target=lambda relay=relay: drained.append(relay.drain())) for relay in relays]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sum(one.settled for one in drained) == 60
        assert len(sandbox.collector.received) == 60

    def test_a_stop_begins_no_further_row(
        self, relay: Relay, make_relay: MakeRelay, outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        record(outbox, *range(10))
        sandbox.collector.misbehave(acting(relay.stop), times=1)

        assert relay.drain() == Drained(settled=1)
        assert relay.drain() == Drained()
        assert len(sandbox.collector.received) == 1
        assert [row(outbox, number).attempts for number in range(10)] == [1] + [0] * 9
        assert make_relay().drain() == Drained(settled=9)

    def test_a_time_limit_begins_no_further_row(self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox) -> None:
        record(outbox, *range(20))
        sandbox.collector.misbehave(Misbehaviour.slow(0.1))
        with Stopwatch() as watch:
            drained = relay.drain(at_most=0.3)

        assert 1 <= drained.settled < 20
        assert watch.seconds < 1.3
        assert [row(outbox, number).attempts for number in range(20)] == [1] * drained.settled + [0] * (
            20 - drained.settled
        )
        sandbox.collector.behave()
        assert relay.drain() == Drained(settled=20 - drained.settled)

    @pytest.mark.parametrize("at_most", [0, -1])
    def test_no_time_at_all_begins_no_row(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, at_most: float
    ) -> None:
        """Nothing is not the same as no limit."""
        record(outbox, "1001")

        assert relay.drain(at_most=at_most) == Drained()
        assert sandbox.collector.received == ()
        assert relay.drain(at_most=None) == Drained(settled=1)

    def test_a_claimed_row_that_waited_too_long_is_not_sent(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        """Its lease might end, and another relay begin, while it is being sent."""
        record(outbox, *range(3))
        sandbox.collector.misbehave(acting(lambda: clock.advance(50)), times=1)

        assert relay.drain() == Drained(settled=3)
        assert len(sandbox.collector.received) == 3
        assert [row(outbox, number).attempts for number in range(3)] == [1, 1, 1]

    @pytest.mark.parametrize("skew", [-HOUR, -50, 50, HOUR])
    def test_the_clock_of_a_database_may_be_another_one(
        self, make_relay: MakeRelay, tmp_path: Path, sandbox: Sandbox, clock: Clock, skew: float
    ) -> None:
        """Leases are counted by the outbox's clock; on another host that is never quite the relay's."""
        with closing(SQLiteOutbox(tmp_path / "elsewhere.db", clock=lambda: clock() + skew)) as elsewhere:
            record(elsewhere, *range(5))
            with Stopwatch() as watch:
                make_relay(outbox=elsewhere).drain(at_most=5)

        assert watch.seconds < 5
        assert len(sandbox.collector.accepted) == 5

    def test_what_was_finished_long_ago_is_deleted_now_and_then(
        self, make_relay: MakeRelay, outbox: SQLiteOutbox, clock: Clock, events: list[Event]
    ) -> None:
        relay = make_relay(retention=timedelta(days=90))
        record(outbox, "1001")
        relay.drain()
        clock.advance(91 * 24 * HOUR)
        record(outbox, "1002")
        relay.drain()

        assert outbox.history("1001") == []
        assert row(outbox, "1002").state == State.DELIVERED
        assert names(events)[-1] == "outbox_pruned"


class TestFailures:
    def test_a_failed_row_waits_longer_each_time(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(503))
        waits = []
        for _ in range(4):
            assert relay.drain() == Drained(postponed=1)
            waits.append(row(outbox).due_at - clock())
            clock.advance(waits[-1])

        assert waits == [5, 10, 20, 40]
        assert row(outbox).attempts == 4
        assert [attempt.status for attempt in row(outbox).history] == [503] * 4

    def test_nothing_is_sent_before_it_is_due(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(503), times=1)
        relay.drain()
        clock.advance(4)

        assert relay.drain() == Drained()
        clock.advance(1)
        assert relay.drain() == Drained(settled=1)

    @pytest.mark.parametrize(("header", "wait"), [("120", 120), ("1000000", 6 * HOUR)])
    def test_katalys_may_say_how_long(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock, header: str, wait: float
    ) -> None:
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(429, headers={"Retry-After": header}), times=1)
        relay.drain()

        assert row(outbox).due_at - clock() == wait
        clock.advance(wait)
        assert relay.drain() == Drained(settled=1)

    @pytest.mark.parametrize("status", [400, 402, 409, 413, 415, 422])
    def test_what_katalys_refuses_is_buried_at_once_and_logged_as_an_error(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock, events: list[Event], status: int
    ) -> None:
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(status, body=b"order_id: is odd"), times=1)

        assert relay.drain() == Drained(buried=1)
        entry = row(outbox)
        assert (entry.state, entry.last_status, entry.attempts) == (State.DEAD, status, 1)
        assert entry.payload
        assert "order_id: is odd" in (entry.last_error or "")
        assert [(event.name, event.level) for event in events] == [("postback_buried", logging.ERROR)]

    def test_a_row_that_failed_for_a_week_is_given_up(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock, events: list[Event]
    ) -> None:
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(503))
        assert relay.drain() == Drained(postponed=1)
        clock.advance(7 * 24 * HOUR)

        assert relay.drain() == Drained(buried=1)
        assert row(outbox).state == State.DEAD
        assert names(events) == ["postback_postponed", "postback_buried"]

    def test_a_row_that_waited_for_a_week_is_tried_once_at_least(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        """The shop was off; the time began when the order was recorded."""
        record(outbox, "1001")
        clock.advance(30 * 24 * HOUR)

        assert relay.drain() == Drained(settled=1)

    def test_a_row_in_place_of_an_old_dead_letter_has_its_whole_time(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        outbox.add(make_postback(), problems=["vid: is blank"])
        clock.advance(30 * 24 * HOUR)
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(503), times=1)

        assert relay.drain() == Drained(postponed=1)
        assert row(outbox).state == State.PENDING

    def test_refused_rows_stop_no_other(self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox) -> None:
        """Ten bad orders are no reason to doubt Katalys."""
        record(outbox, *range(20))
        sandbox.collector.misbehave(Misbehaviour.status(400), times=10)

        assert relay.drain() == Drained(settled=10, buried=10)

    def test_a_hanging_row_holds_up_no_other(
        self, make_relay: MakeRelay, outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        record(outbox, *range(20))
        sandbox.collector.misbehave(Misbehaviour.hang(), times=1)
        relay = make_relay(delivery_workers=2, deadline=0.6)
        with Stopwatch() as watch:
            drained = relay.drain()

        assert drained == Drained(settled=19, postponed=1)
        assert watch.seconds < 3

    @pytest.mark.parametrize("payload", [None, "{", "[]"], ids=["gone", "cut", "list"])
    def test_a_row_that_was_changed_by_hand_holds_up_no_other(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, tmp_path: Path, payload: str | None
    ) -> None:
        """Or recovered from a damaged file: it must neither end the relay nor keep it busy without end."""
        record(outbox, *range(3))
        with closing(sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)) as db:
            db.execute("UPDATE katalys_outbox SET payload = ? WHERE order_id = '0'", (payload,))
        with Stopwatch() as watch:
            relay.drain(at_most=5)

        assert watch.seconds < 5
        assert sorted(orders(sandbox.collector.accepted)) == ["1", "2"]
        assert row(outbox, 0).state in (State.PENDING, State.DEAD)

    def test_an_error_in_one_attempt_postpones_its_row(
        self, outbox: SQLiteOutbox, sandbox: Sandbox, make_relay: MakeRelay
    ) -> None:
        """A drain would wait for this row without end."""
        turns = count()

        def chance() -> float:
            return 1 / next(turns)  # fails at first, when it is asked for the length of a pause

        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(404))

        assert make_relay(chance=chance).drain() == Drained(postponed=1)
        assert row(outbox).last_error == "ZeroDivisionError"

    def test_counts_of_a_mixed_day(self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox) -> None:
        record(outbox, *range(4))
        answers = iter([Misbehaviour.status(503), Misbehaviour.status(400), Misbehaviour.reset()])

        def next_one(*arguments: Any) -> Any:
            return next(answers).act(*arguments)

        sandbox.collector.misbehave(Misbehaviour("mixed", next_one), times=3)

        assert relay.drain() == Drained(settled=1, postponed=2, buried=1)
        assert states(outbox, range(4)) == [State.PENDING, State.DEAD, State.PENDING, State.DELIVERED]

    def test_no_event_or_row_names_the_buyer(
        self,
        relay: Relay,
        outbox: SQLiteOutbox,
        sandbox: Sandbox,
        clock: Clock,
        events: list[Event],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        record(outbox, *range(6))
        for behaviour in (
            Misbehaviour.status(503, body=PAYLOAD.encode()),
            Misbehaviour.status(400),
            Misbehaviour.reset(),
        ):
            sandbox.collector.misbehave(behaviour, times=1)
            relay.drain()
        everything = (
            str(events) + " ".join(map(str, events)) + caplog.text + str([outbox.history(str(n)) for n in range(6)])
        )

        assert {"postback_delivered", "postback_postponed", "postback_buried"} >= set(names(events))
        assert [value for value in PERSONAL if value in everything] == []


class TestCircuitBreaker:
    """After five failures in a row, one row at a time finds out when Katalys is back."""

    @pytest.mark.parametrize(
        "fail",
        [
            pytest.param(lambda sandbox: sandbox.collector.misbehave(Misbehaviour.status(503)), id="503"),
            pytest.param(lambda sandbox: sandbox.collector.misbehave(Misbehaviour.reset()), id="reset"),
            pytest.param(lambda sandbox: sandbox.collector.misbehave(Misbehaviour.status(302)), id="302"),
            pytest.param(lambda sandbox: sandbox.stop(), id="refused"),
        ],
    )
    def test_five_failures_in_a_row_are_enough(
        self,
        relay: Relay,
        outbox: SQLiteOutbox,
        sandbox: Sandbox,
        events: list[Event],
        fail: Callable[[Sandbox], object],
    ) -> None:
        record(outbox, *range(20))
        fail(sandbox)

        assert relay.drain() == Drained(postponed=5)
        assert [row(outbox, number).attempts for number in range(20)] == [1] * 5 + [0] * 15
        assert names(events).count("endpoint_paused") == 1

    def test_several_workers_stop_as_soon(self, make_relay: MakeRelay, outbox: SQLiteOutbox, sandbox: Sandbox) -> None:
        record(outbox, *range(40))
        sandbox.collector.misbehave(Misbehaviour.status(503))

        assert 5 <= make_relay(delivery_workers=4).drain().postponed <= 5 + 3
        assert len(sandbox.collector.received) <= 8

    def test_then_one_row_at_a_time_at_growing_intervals(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        record(outbox, *range(20))
        sandbox.collector.misbehave(Misbehaviour.status(503))
        relay.drain()
        sandbox.collector.clear()
        probes = []
        for _ in range(300):
            clock.advance(1)
            before = len(sandbox.collector.received)
            relay.drain()
            if len(sandbox.collector.received) > before:
                probes.append(len(sandbox.collector.received) - before)

        assert probes == [1] * len(probes)
        assert 4 <= len(probes) <= 7  # after 5, 10, 20, 40, 80, 160 seconds

    def test_one_success_opens_it_again(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock, events: list[Event]
    ) -> None:
        record(outbox, *range(20))
        sandbox.collector.misbehave(Misbehaviour.status(503), times=5)
        relay.drain()
        clock.advance(6)

        assert relay.drain() == Drained(settled=20)
        assert names(events).count("endpoint_resumed") == 1
        assert names(events).index("endpoint_resumed") > names(events).index("endpoint_paused")

    def test_a_success_in_between_starts_the_count_anew(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, events: list[Event]
    ) -> None:
        record(outbox, *range(20))
        turns = iter(([503] * 4 + [0]) * 4)

        def act(*arguments: Any) -> Any:
            return Misbehaviour.status(503).act(*arguments) if next(turns) else None

        sandbox.collector.misbehave(Misbehaviour("four in five", act))

        assert relay.drain() == Drained(settled=4, postponed=16)
        assert "endpoint_paused" not in names(events)

    def test_a_pause_that_a_clock_jump_made_endless_ends(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        record(outbox, *range(10))
        clock.advance(24 * HOUR)
        sandbox.collector.misbehave(Misbehaviour.status(503), times=5)
        assert relay.drain() == Drained(postponed=5)
        clock.advance(-24 * HOUR)

        assert relay.drain() == Drained(settled=10)

    def test_an_outage_of_a_day_loses_nothing(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        record(outbox, *range(30))
        sandbox.collector.misbehave(Misbehaviour.status(503))
        for _ in range(24 * 2):
            relay.drain()
            clock.advance(HOUR / 2)
        sandbox.collector.behave()
        attempts = len(sandbox.collector.received)
        for _ in range(4):
            relay.drain()
            clock.advance(HOUR / 2)

        assert len(sandbox.collector.accepted) == 30
        assert states(outbox, range(30)) == [State.DELIVERED] * 30
        assert attempts < 100


class TestPause:
    """A wrong address or site_id is not the order's fault: nothing is buried, and nothing hammers at Katalys."""

    @pytest.mark.parametrize("status", [401, 403, 404, 405, 410])
    def test_the_first_answer_pauses_everything(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock, events: list[Event], status: int
    ) -> None:
        record(outbox, *range(10))
        sandbox.collector.misbehave(Misbehaviour.status(status))

        assert relay.drain() == Drained(postponed=1)
        assert relay.drain() == Drained()
        assert len(sandbox.collector.received) == 1
        paused = next(event for event in events if event.name == "endpoint_paused")
        assert (paused.level, paused.fields["status"]) == (logging.ERROR, status)

    def test_probes_come_one_by_one_and_ever_more_seldom(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock, events: list[Event]
    ) -> None:
        record(outbox, *range(10))
        sandbox.collector.misbehave(Misbehaviour.status(403))
        waits: list[int] = []
        waited = 0
        relay.drain()
        while len(waits) < 8:
            clock.advance(1)
            waited += 1
            if relay.drain().postponed:
                waits.append(waited)
                waited = 0

        assert waits == [5, 10, 20, 40, 80, 160, 320, 640]
        assert len(sandbox.collector.received) == 9
        assert names(events).count("endpoint_paused") == 1

    def test_nothing_is_buried_however_long_it_takes(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        record(outbox, *range(3))
        sandbox.collector.misbehave(Misbehaviour.status(404))
        for _ in range(10):
            relay.drain()
            clock.advance(7 * 24 * HOUR)
        assert states(outbox, range(3)) == [State.PENDING] * 3

        sandbox.collector.behave()
        assert relay.drain() == Drained(settled=3)

    def test_the_same_row_is_tried_again_without_a_back_off_of_its_own(
        self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox, clock: Clock
    ) -> None:
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(403), times=3)
        for _ in range(4):
            relay.drain()
            clock.advance(HOUR)

        assert row(outbox).state == State.DELIVERED
        assert row(outbox).attempts == 4


class TestUnusableOutbox:
    @pytest.fixture
    def switch(self, outbox: SQLiteOutbox) -> Switch:
        return Switch(outbox)

    def test_what_cannot_be_marked_is_not_sent(self, make_relay: MakeRelay, switch: Switch, sandbox: Sandbox) -> None:
        """A relay that sends and cannot write it down would send the same rows without end."""
        record(switch, *range(10))
        relay = make_relay(outbox=switch)

        def break_it() -> None:
            switch.error = OutboxUnavailable("the disk is full")

        sandbox.collector.misbehave(acting(break_it), times=1)
        with pytest.raises(OutboxUnavailable):
            relay.drain()
        sent = len(sandbox.collector.received)
        with pytest.raises(OutboxUnavailable):
            relay.drain()
        assert len(sandbox.collector.received) == sent
        switch.error = None

        assert relay.drain() == Drained(settled=10)
        assert orders(sandbox.collector.received) == [str(number) for number in range(10)]
        assert [row(switch, number).attempts for number in range(10)] == [1] * 10

    def test_a_locked_file_is_found_out_in_time(
        self, make_relay: MakeRelay, outbox: SQLiteOutbox, sandbox: Sandbox, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr("katalys_wsgi.outbox.sqlite.PATIENCE_IN_RELAY", 0.2)
        record(outbox, *range(3))
        relay = make_relay()
        with closing(sqlite3.connect(tmp_path / "outbox.db", isolation_level=None, check_same_thread=False)) as other:

            def lock() -> None:
                other.execute("BEGIN EXCLUSIVE")

            sandbox.collector.misbehave(acting(lock), times=1)
            with pytest.raises(OutboxUnavailable):
                relay.drain()
            other.execute("ROLLBACK")

        assert relay.drain() == Drained(settled=3)

    def test_rows_sent_by_several_workers_meanwhile_are_written_down_later(
        self, make_relay: MakeRelay, switch: Switch, sandbox: Sandbox
    ) -> None:
        record(switch, *range(4))
        relay = make_relay(outbox=switch, delivery_workers=4)

        together = threading.Barrier(4)

        def break_it() -> None:
            together.wait(5)
            switch.error = OutboxUnavailable("the disk is full")

        sandbox.collector.misbehave(acting(break_it))
        with pytest.raises(OutboxUnavailable):
            relay.drain()
        switch.error = None

        assert relay.drain() == Drained(settled=4)
        assert len(sandbox.collector.received) == 4


class TestRun:
    @pytest.fixture
    def start(self) -> Iterator[Callable[[Relay], None]]:
        """Runs a relay in a thread until the end of the test."""
        running: list[tuple[Relay, threading.Thread]] = []

        def start(relay: Relay) -> None:
            thread = threading.Thread(target=relay.run, daemon=True)
            running.append((relay, thread))
            thread.start()

        yield start
        for relay, thread in running:
            relay.stop()
            thread.join(5)
            assert not thread.is_alive()

    @pytest.fixture
    def restless(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Relays look into the outbox every few milliseconds."""
        monkeypatch.setattr(module, "POLL", 0.02)

    @pytest.fixture
    def patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Relays look into the outbox once a minute by themselves."""
        monkeypatch.setattr(module, "POLL", 60.0)

    @pytest.mark.usefixtures("patient")
    def test_a_wake_up_call_ends_the_wait(
        self, relay: Relay, start: Callable[[Relay], None], outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        start(relay)
        for number in range(3):
            record(outbox, number)
            relay.wake()
            sandbox.collector.wait_for(number + 1, timeout=5)

    @pytest.mark.usefixtures("patient")
    def test_wake_up_calls_during_a_drain_are_one_further_look(
        self, relay: Relay, start: Callable[[Relay], None], outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        def wake_often() -> None:
            for _ in range(1000):
                relay.wake()
            record(outbox, "second")
            relay.wake()

        record(outbox, "first")
        sandbox.collector.misbehave(acting(wake_often), times=1)
        start(relay)

        assert orders(sandbox.collector.wait_for(2, timeout=5)) == ["first", "second"]

    @pytest.mark.usefixtures("restless")
    def test_without_one_it_looks_again_by_itself(
        self, relay: Relay, start: Callable[[Relay], None], outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        """Rows of other processes, and those that become due."""
        start(relay)
        for number in range(3):
            record(outbox, number)
            sandbox.collector.wait_for(number + 1, timeout=5)

    @pytest.mark.usefixtures("restless")
    @pytest.mark.parametrize(
        ("error", "name", "reason"),
        [
            (OutboxUnavailable("the disk is full"), "outbox_unavailable", "the disk is full"),
            (ZeroDivisionError("ann@example.com"), "relay_failed", "ZeroDivisionError"),
        ],
        ids=["unavailable", "unexpected"],
    )
    def test_no_error_ends_delivery(
        self, make_relay: MakeRelay, start: Callable[[Relay], None], outbox: SQLiteOutbox, sandbox: Sandbox,
        events: list[Event], error: Exception, name: str, reason: str,
    ) -> None:  # fmt: skip
        switch = Switch(outbox)
        switch.error = error
        record(outbox, "1001")
        start(make_relay(outbox=switch))
        wait_until(lambda: name in names(events))
        switch.error = None
        sandbox.collector.wait_for(1, timeout=5)

        assert (events[0].name, events[0].level) == (name, logging.ERROR)
        assert str(events[0].fields["reason"]) == reason
        assert "ann@example.com" not in str(events)

    @pytest.mark.usefixtures("patient")
    def test_a_stop_ends_it_at_once_and_for_good(self, relay: Relay, outbox: SQLiteOutbox, sandbox: Sandbox) -> None:
        thread = threading.Thread(target=relay.run)
        thread.start()
        relay.stop()
        thread.join(5)
        record(outbox, "1001")
        with Stopwatch() as watch:
            relay.run()

        assert not thread.is_alive()
        assert watch.seconds < 1
        assert sandbox.collector.received == ()

    @pytest.mark.usefixtures("restless")
    def test_a_signal_may_stop_and_wake_it_at_any_moment(self, relay: Relay) -> None:
        """Also while it is woken or waits in the very thread that handles the signal."""
        signals = 0

        def handle(*_: object) -> None:
            nonlocal signals
            signals += 1
            relay.wake()
            if signals >= 200:
                relay.stop()

        def send_signals() -> None:
            while signals < 200:
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.0005)

        before = signal.signal(signal.SIGUSR1, handle)
        sender = threading.Thread(target=send_signals)
        sender.start()
        try:
            while signals < 100:
                relay.wake()
            relay.run()
        finally:
            sender.join()
            signal.signal(signal.SIGUSR1, before)

        assert signals >= 200


def test_a_closed_relay_connects_again(make_relay: MakeRelay, peer: MakePeer, outbox: SQLiteOutbox) -> None:
    katalys = peer(NO_CONTENT)
    relay = make_relay(endpoint=f"http://127.0.0.1:{katalys.port}/")
    for number in range(2):
        record(outbox, number)
        assert relay.drain() == Drained(settled=1)
        relay.close()

    assert katalys.connections == 2
