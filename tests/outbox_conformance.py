"""The wall between pages and delivery. First what every outbox promises, then what only the SQLite file does."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import Click, ConfigurationError, OrderUpdate, OutboxUnavailable
from katalys_wsgi.conversion.postback import Kind, Postback
from katalys_wsgi.outbox import Added, Change, Entry, Outbox, Receipt, State, Verdict
from katalys_wsgi.outbox import sqlite as sqlite_outbox
from katalys_wsgi.outbox.schema import journal_mode
from katalys_wsgi.outbox.sqlite import SQLiteOutbox

from .support import BUYER_AGENT, BUYER_IP, SITE_ID, Clock, make_conversion

TAKEN = Receipt(Verdict.DELIVERED, 204, confirmed=True)
BUSY = Receipt(Verdict.RETRY, 503, "HTTP 503")
SILENT = Receipt(Verdict.RETRY, None, "TimeoutError: timed out")
REFUSED = Receipt(Verdict.REFUSED, 400, "HTTP 400: no")

LEASE = 60.0
DAY = 86400.0


def conversion(order_id: str = "1001", sale_amount: str = "59.90", click: Click | None = None) -> Postback:
    return Postback.from_conversion(
        make_conversion(order_id, sale_amount=sale_amount),
        site_id=SITE_ID,
        conversion_type="offline_conv",
        click=click,
        client_ip=BUYER_IP,
        user_agent=BUYER_AGENT,
    )


def update(order_id: str = "1001", order_status: str = "paid") -> Postback:
    return Postback.from_update(OrderUpdate(order_id, order_status=order_status), site_id=SITE_ID)


def said_by(entry: Entry) -> str:
    """A conversion's amount, an update's status."""
    fields = json.loads(entry.payload or "{}")
    return fields.get("order_status") or fields["sale_amount"]


# --- every outbox ------------------------------------------------------------------------------------------------

#: How to open the outbox of a test, the same one at each call: the test's folder and clock → an outbox.
OPENERS: dict[str, Callable[[Path, Clock], Outbox]] = {
    "sqlite": lambda folder, clock: SQLiteOutbox(folder / "outbox.db", clock=clock),
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=OPENERS)
def open_outbox(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Callable[[], Outbox]]:
    """Opens the test's outbox, as another process would; the same rows at each call."""
    opened: list[Outbox] = []

    def open_it() -> Outbox:
        opened.append(OPENERS[request.param](tmp_path, clock))
        return opened[-1]

    yield open_it
    for outbox in opened:
        outbox.close()


@pytest.fixture
def outbox(open_outbox: Callable[[], Outbox]) -> Outbox:
    return open_outbox()


def only(entries: list[Entry]) -> Entry:
    (entry,) = entries
    return entry


def row(outbox: Outbox, order_id: str = "1001") -> Entry:
    """The one row of an order, as it stands."""
    return only(outbox.history(order_id))


def claim_one(outbox: Outbox) -> Entry:
    return only(outbox.claim(10, LEASE))


def deliver_all(outbox: Outbox) -> list[Entry]:
    """Claims until nothing is due; returns what was delivered, in that order."""
    delivered: list[Entry] = []
    while entries := outbox.claim(3, LEASE):
        assert outbox.apply([Change.settle(entry, TAKEN) for entry in entries]) == len(entries)
        delivered += entries
    return delivered


def fail_once(outbox: Outbox, clock: Clock) -> None:
    """Every row has failed once and is due again."""
    entries = outbox.claim(1000, LEASE)
    outbox.apply([Change.postpone(entry, BUSY, 5.0) for entry in entries])
    clock.advance(5.0)


class TestAdd:
    def test_a_new_message_waits_to_be_delivered(self, outbox, clock):
        postback = conversion()

        assert outbox.add(postback) is Added.NEW
        entry = row(outbox)
        assert (entry.key, entry.order_id, entry.kind) == (postback.key, "1001", "conversion")
        assert (entry.payload, entry.digest) == (postback.payload, postback.digest)
        assert (entry.state, entry.attempts, entry.history) == (State.PENDING, 0, ())
        assert (entry.due_at, entry.created_at, entry.pending_since) == (clock(), clock(), clock())
        assert (entry.leased_until, entry.lease_token, entry.finished_at) == (None, None, None)
        assert (entry.last_status, entry.last_error, entry.confirmed) == (None, None, False)
        assert entry.clicked_at is None

    def test_the_time_of_the_click_is_kept(self, outbox):
        outbox.add(conversion(click=Click("1234abcd", None, None, datetime.fromtimestamp(1_795_000_000, timezone.utc))))

        assert row(outbox).clicked_at == 1_795_000_000

    def test_a_payload_comes_out_byte_for_byte(self, outbox):
        odd = Postback("key", "1001", Kind.CONVERSION, '{"user_agent":"\\u00fc \\ud83d\\ude00 \\u0000 \'; --%s ?"}')
        outbox.add(odd)

        assert claim_one(outbox).payload == odd.payload

    @pytest.mark.parametrize("order_id", ["1001", "Zürich 😀", "a'b\"c", "x" * 255], ids=str.__len__)
    def test_an_order_is_found_by_its_id(self, outbox, order_id):
        outbox.add(conversion(order_id))

        assert row(outbox, order_id).order_id == order_id

    @pytest.mark.parametrize("other", ["ab", "AB ", "ÁB"], ids=["case", "space", "accent"])
    def test_ids_that_look_alike_are_two_orders(self, outbox, other):
        """Databases compare texts without case, accents or trailing spaces unless they are told."""
        assert outbox.add(conversion("AB")) is Added.NEW
        assert outbox.add(conversion(other)) is Added.NEW
        assert row(outbox, "AB").order_id == "AB"
        assert row(outbox, other).order_id == other

    @pytest.mark.parametrize(
        ("second", "added"),
        [
            pytest.param(conversion(), Added.SAME, id="same"),
            pytest.param(conversion(sale_amount="1.00"), Added.DIFFERENT, id="other fields"),
        ],
    )
    @pytest.mark.parametrize("state", ["waiting", "in hand", "postponed", "delivered"])
    def test_the_same_key_again_is_the_same_row(self, outbox, second, added, state):
        """A double click on "buy", a webhook that comes twice: what was recorded first stands."""
        outbox.add(conversion())
        if state != "waiting":
            entry = claim_one(outbox)
            changes = {"postponed": Change.postpone(entry, BUSY, 5.0), "delivered": Change.settle(entry, TAKEN)}
            outbox.apply([changes[state]] if state in changes else [])
        before = row(outbox)

        assert outbox.add(second) is added
        assert row(outbox) == before

    def test_updates_that_differ_are_rows_of_their_own(self, outbox):
        added = [outbox.add(update(order_status=status)) for status in ("paid", "shipped", "paid")]

        assert added == [Added.NEW, Added.NEW, Added.SAME]
        assert [said_by(entry) for entry in outbox.history("1001")] == ["paid", "shipped"]

    def test_history_is_oldest_first_and_of_that_order_only(self, outbox):
        outbox.add(conversion("1001"))
        outbox.add(conversion("1002"))
        outbox.add(update("1001"))

        assert [entry.kind for entry in outbox.history("1001")] == ["conversion", "update"]
        assert outbox.history("1003") == []

    def test_what_is_added_is_seen_by_everybody(self, outbox, open_outbox):
        outbox.add(conversion())

        assert row(open_outbox()) == row(outbox)
        assert open_outbox().add(conversion()) is Added.SAME

    def test_a_repr_shows_no_personal_data(self, outbox):
        outbox.add(conversion())

        assert "ann@example.com" not in repr(row(outbox))
        assert BUYER_IP not in repr(row(outbox))

    def test_a_closed_outbox_opens_again_when_it_is_used(self, outbox):
        outbox.add(conversion())
        outbox.close()
        outbox.close()

        assert outbox.add(conversion()) is Added.SAME

    def test_one_of_many_threads_adds_an_order(self, outbox):
        results: list[Added] = []
        threads = [
            threading.Thread(target=lambda: results.extend(outbox.add(conversion(str(n))) for n in range(10)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(added.value for added in results) == ["new"] * 10 + ["same"] * 50


class TestDeadLetters:
    def test_a_faulty_message_is_kept_and_not_delivered(self, outbox, clock):
        assert outbox.add(conversion(), problems=["sale_amount: is missing", "vid: is blank"]) is Added.NEW
        entry = row(outbox)
        assert (entry.state, entry.attempts, entry.finished_at) == (State.DEAD, 0, clock())
        assert entry.payload == conversion().payload
        assert "sale_amount: is missing" in (entry.last_error or "")
        assert "vid: is blank" in (entry.last_error or "")
        assert outbox.claim(10, LEASE) == []

    def test_a_later_valid_record_takes_its_place(self, outbox, clock):
        outbox.add(conversion(sale_amount="wrong"), problems=["sale_amount: is no plain number"])
        dead = row(outbox)
        clock.advance(60)

        assert outbox.add(conversion(sale_amount="59.90")) is Added.REPLACED
        entry = row(outbox)
        assert (entry.id, entry.state, entry.attempts) == (dead.id, State.PENDING, 0)
        assert (entry.last_error, entry.finished_at, entry.due_at) == (None, None, clock())
        assert entry.payload == conversion().payload
        assert said_by(claim_one(outbox)) == "59.90"

    def test_the_same_bytes_take_its_place_too_when_they_are_found_valid(self, outbox):
        """Rules may be relaxed by a newer version of this package."""
        outbox.add(conversion(), problems=["email_address: is odd"])

        assert outbox.add(conversion()) is Added.REPLACED
        assert claim_one(outbox).key == conversion().key

    def test_a_replacement_has_its_whole_time_to_be_delivered(self, outbox, clock):
        """Else one that replaces an old dead letter would be given up at its first failure."""
        outbox.add(conversion(sale_amount="wrong"), problems=["sale_amount: is no plain number"])
        recorded_at = clock()
        clock.advance(30 * DAY)
        outbox.add(conversion())

        entry = row(outbox)
        assert (entry.created_at, entry.pending_since) == (recorded_at, clock())

    def test_a_second_faulty_record_changes_nothing(self, outbox):
        outbox.add(conversion(sale_amount="wrong"), problems=["sale_amount: is no plain number"])
        before = row(outbox)

        outbox.add(conversion(sale_amount="worse"), problems=["sale_amount: is no plain number"])

        assert row(outbox) == before

    @pytest.mark.parametrize("delivered", [False, True], ids=["waiting", "delivered"])
    def test_a_faulty_record_takes_no_valid_ones_place(self, outbox, delivered):
        outbox.add(conversion())
        if delivered:
            deliver_all(outbox)
        before = row(outbox)

        assert outbox.add(conversion(sale_amount="wrong"), problems=["sale_amount: no"]) is Added.DIFFERENT
        assert row(outbox) == before

    def test_what_katalys_refused_is_replaced_by_other_fields_only(self, outbox):
        """The same bytes would be refused again."""
        outbox.add(conversion())
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])

        assert outbox.add(conversion()) is Added.SAME
        assert row(outbox).state == State.DEAD
        assert outbox.add(conversion(sale_amount="1.00")) is Added.REPLACED
        assert (row(outbox).state, row(outbox).attempts) == (State.PENDING, 0)
        assert said_by(claim_one(outbox)) == "1.00"

    def test_what_was_tried_before_the_replacement_is_remembered(self, outbox):
        outbox.add(conversion())
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])
        outbox.add(conversion(sale_amount="1.00"))
        outbox.apply([Change.settle(claim_one(outbox), TAKEN)])

        assert [attempt.status for attempt in row(outbox).history] == [400, 204]


class TestClaim:
    def test_a_claim_counts_an_attempt_and_takes_a_lease(self, outbox, clock):
        outbox.add(conversion())

        entry = claim_one(outbox)

        assert entry == row(outbox)
        assert (entry.attempts, entry.state) == (1, State.PENDING)
        assert entry.lease_token
        assert entry.leased_until == pytest.approx(clock() + LEASE)
        assert entry.payload == conversion().payload

    def test_oldest_first(self, outbox, clock):
        for order_id in ("c", "a", "b"):
            outbox.add(conversion(order_id))
            clock.advance(1)

        assert [entry.order_id for entry in outbox.claim(10, LEASE)] == ["c", "a", "b"]

    def test_at_one_instant_in_the_order_of_recording(self, outbox):
        orders = [str(number) for number in range(20)]
        random.Random(1).shuffle(orders)  # noqa: S311 - nobody has to be unable to guess it
        for order_id in orders:
            outbox.add(conversion(order_id))

        assert [entry.order_id for entry in outbox.claim(20, LEASE)] == orders

    def test_at_most_as_many_as_asked_for(self, outbox):
        for order_id in "abcde":
            outbox.add(conversion(order_id))

        assert [len(outbox.claim(2, LEASE)) for _ in range(4)] == [2, 2, 1, 0]

    def test_an_empty_outbox_has_nothing_to_claim(self, outbox):
        assert outbox.claim(10, LEASE) == []

    def test_two_relays_never_hold_one_row(self, outbox, open_outbox):
        other = open_outbox()
        for number in range(30):
            outbox.add(conversion(str(number)))

        claimed = [entry.order_id for n in range(10) for entry in (outbox, other)[n % 2].claim(4, LEASE)]

        assert sorted(claimed, key=int) == [str(number) for number in range(30)]

    def test_threads_never_hold_one_row(self, outbox):
        for number in range(60):
            outbox.add(conversion(str(number)))
        claimed: list[str] = []

        def work() -> None:
            while entries := outbox.claim(3, LEASE):
                claimed.extend(entry.order_id for entry in entries)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(claimed, key=int) == [str(number) for number in range(60)]

    def test_a_row_whose_worker_died_is_claimed_again_when_the_lease_ends(self, outbox, clock):
        """A row that kills the process is counted, too: the attempt was written before it was made."""
        outbox.add(conversion())
        first = claim_one(outbox)

        clock.advance(LEASE - 1)
        assert outbox.claim(10, LEASE) == []
        clock.advance(1)
        second = claim_one(outbox)
        assert (second.id, second.attempts) == (first.id, 2)
        assert second.lease_token != first.lease_token

    def test_what_was_delivered_is_never_claimed_again(self, outbox, clock):
        outbox.add(conversion())
        deliver_all(outbox)
        clock.advance(365 * DAY)

        assert outbox.claim(10, LEASE) == []


class TestApply:
    def test_a_delivered_row_keeps_no_personal_data(self, outbox, clock):
        outbox.add(conversion())
        entry = claim_one(outbox)
        clock.advance(2)

        assert outbox.apply([Change.settle(entry, TAKEN)]) == 1
        entry = row(outbox)
        assert (entry.state, entry.payload, entry.attempts) == (State.DELIVERED, None, 1)
        assert (entry.leased_until, entry.lease_token, entry.finished_at) == (None, None, clock())
        assert (entry.last_status, entry.last_error, entry.confirmed) == (204, None, True)
        assert all(value not in str(vars(entry)) for value in ("ann@example.com", BUYER_IP, BUYER_AGENT))

    def test_a_delivery_that_nobody_confirmed_says_so(self, outbox):
        outbox.add(conversion())
        outbox.apply([Change.settle(claim_one(outbox), Receipt(Verdict.DELIVERED, 204))])

        assert row(outbox).confirmed is False

    def test_a_postponed_row_is_due_after_the_delay(self, outbox, clock):
        outbox.add(conversion())
        outbox.apply([Change.postpone(claim_one(outbox), BUSY, 100.0)])

        entry = row(outbox)
        assert (entry.state, entry.attempts, entry.payload) == (State.PENDING, 1, conversion().payload)
        assert (entry.leased_until, entry.lease_token, entry.finished_at) == (None, None, None)
        assert (entry.last_status, entry.last_error) == (503, "HTTP 503")
        assert entry.due_at == pytest.approx(clock() + 100)
        clock.advance(99)
        assert outbox.claim(10, LEASE) == []
        clock.advance(1.5)
        assert claim_one(outbox).attempts == 2

    def test_a_buried_row_is_kept_whole_for_a_person(self, outbox, clock):
        outbox.add(conversion())
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])

        entry = row(outbox)
        assert (entry.state, entry.payload, entry.attempts) == (State.DEAD, conversion().payload, 1)
        assert (entry.lease_token, entry.finished_at) == (None, clock())
        assert (entry.last_status, entry.last_error) == (400, "HTTP 400: no")
        clock.advance(365 * DAY)
        assert outbox.claim(10, LEASE) == []

    def test_a_released_row_was_never_claimed(self, outbox, clock):
        outbox.add(conversion())
        entry = claim_one(outbox)

        assert outbox.apply([Change.release(entry)]) == 1
        entry = row(outbox)
        assert (entry.state, entry.attempts, entry.history) == (State.PENDING, 0, ())
        assert (entry.leased_until, entry.lease_token, entry.last_error) == (None, None, None)
        assert claim_one(outbox).attempts == 1

    def test_a_release_undoes_one_attempt_only(self, outbox, clock):
        outbox.add(conversion())
        fail_once(outbox, clock)

        outbox.apply([Change.release(claim_one(outbox))])

        entry = row(outbox)
        assert (entry.attempts, len(entry.history), entry.last_status) == (1, 1, 503)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda entry: Change.settle(entry, TAKEN), id="settle"),
            pytest.param(lambda entry: Change.postpone(entry, BUSY, 5.0), id="postpone"),
            pytest.param(lambda entry: Change.bury(entry, REFUSED), id="bury"),
            pytest.param(Change.release, id="release"),
        ],
    )
    @pytest.mark.parametrize("now", ["in another's hands", "done"])
    def test_a_late_worker_changes_nothing(self, outbox, open_outbox, clock, change, now):
        """Its lease ran out and the row is somebody else's."""
        outbox.add(conversion())
        late = claim_one(outbox)
        clock.advance(LEASE + 1)
        other = open_outbox()
        theirs = claim_one(other)
        if now == "done":
            other.apply([Change.settle(theirs, TAKEN)])
        before = row(outbox)

        assert outbox.apply([change(late)]) == 0
        assert row(outbox) == before

    def test_a_late_worker_is_in_time_while_nobody_took_over(self, outbox, clock):
        outbox.add(conversion())
        late = claim_one(outbox)
        clock.advance(LEASE + 1)

        assert outbox.apply([Change.settle(late, TAKEN)]) == 1
        assert row(outbox).state == State.DELIVERED

    def test_the_same_change_twice_counts_once(self, outbox):
        outbox.add(conversion())
        change = Change.settle(claim_one(outbox), TAKEN)

        assert [outbox.apply([change]), outbox.apply([change])] == [1, 0]

    def test_many_changes_at_once(self, outbox, clock):
        for order_id in "abcd":
            outbox.add(conversion(order_id))
        a, b, c, d = outbox.claim(10, LEASE)
        outbox.apply([Change.settle(d, TAKEN)])

        changes = [
            Change.settle(a, TAKEN),
            Change.postpone(b, BUSY, 5.0),
            Change.bury(c, REFUSED),
            Change.settle(d, TAKEN),
        ]

        assert outbox.apply(iter(changes)) == 3
        assert [row(outbox, order_id).state for order_id in "abcd"] == [
            State.DELIVERED,
            State.PENDING,
            State.DEAD,
            State.DELIVERED,
        ]

    def test_no_change_is_none(self, outbox):
        assert outbox.apply([]) == 0

    def test_every_attempt_is_remembered(self, outbox, clock):
        outbox.add(conversion())
        started = clock()
        for receipt in (BUSY, SILENT):
            outbox.apply([Change.postpone(claim_one(outbox), receipt, 5.0)])
            clock.advance(10)
        outbox.apply([Change.settle(claim_one(outbox), TAKEN)])

        assert [(attempt.at - started, attempt.status, attempt.error) for attempt in row(outbox).history] == [
            (pytest.approx(0), 503, "HTTP 503"),
            (pytest.approx(10), None, "TimeoutError: timed out"),
            (pytest.approx(20), 204, None),
        ]

    def test_of_very_many_attempts_the_latest_are_remembered(self, outbox, clock):
        outbox.add(conversion())
        for _ in range(50):
            fail_once(outbox, clock)

        entry = row(outbox)
        assert entry.attempts == 50
        assert 10 <= len(entry.history) < 50
        assert entry.history[-1].at == pytest.approx(clock() - 5)
        assert [attempt.at for attempt in entry.history] == sorted(attempt.at for attempt in entry.history)


class TestOrderSequence:
    """A refund must not overtake its conversion: Katalys would not know the order."""

    @pytest.mark.parametrize("state", ["waiting", "in hand", "postponed", "released"])
    def test_an_update_waits_for_its_conversion(self, outbox, state):
        outbox.add(conversion())
        outbox.add(update())
        if state != "waiting":
            entry = claim_one(outbox)
            changes = {"postponed": Change.postpone(entry, BUSY, 50.0), "released": Change.release(entry)}
            outbox.apply([changes[state]] if state in changes else [])

        assert all(entry.kind == "conversion" for entry in outbox.claim(10, LEASE))

    def test_an_update_follows_its_delivered_conversion(self, outbox):
        outbox.add(conversion())
        outbox.add(update())

        assert [entry.kind for entry in deliver_all(outbox)] == ["conversion", "update"]

    @pytest.mark.parametrize(
        "kill",
        [
            pytest.param(lambda outbox: outbox.add(conversion(), problems=["vid: is blank"]), id="faulty"),
            pytest.param(
                lambda outbox: (
                    outbox.add(conversion()),
                    outbox.apply([Change.bury(claim_one(outbox), REFUSED)]),
                ),
                id="refused",
            ),
        ],
    )
    def test_an_update_waits_behind_a_dead_conversion_until_that_is_delivered(self, outbox, clock, kill):
        kill(outbox)
        outbox.add(update())
        clock.advance(30 * DAY)

        assert outbox.claim(10, LEASE) == []
        assert outbox.add(conversion(sale_amount="1.00")) is Added.REPLACED
        assert [said_by(entry) for entry in deliver_all(outbox)] == ["1.00", "paid"]

    def test_updates_are_delivered_in_their_order(self, outbox, clock):
        outbox.add(update(order_status="paid"))
        outbox.add(update(order_status="shipped"))
        outbox.add(update(order_status="refunded"))
        outbox.apply([Change.postpone(claim_one(outbox), BUSY, 100.0)])

        assert outbox.claim(10, LEASE) == []
        clock.advance(100)
        assert [said_by(entry) for entry in deliver_all(outbox)] == ["paid", "shipped", "refunded"]

    def test_a_dead_update_holds_up_nobody(self, outbox):
        outbox.add(update(order_status="paid"))
        outbox.add(update(order_status="shipped"))
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])

        assert [said_by(entry) for entry in deliver_all(outbox)] == ["shipped"]

    def test_a_faulty_update_holds_up_nobody(self, outbox):
        outbox.add(update(order_status="no such"), problems=["order_status: is none of them"])
        outbox.add(update(order_status="shipped"))

        assert [said_by(entry) for entry in deliver_all(outbox)] == ["shipped"]

    def test_an_update_of_an_order_that_was_never_recorded_is_delivered(self, outbox):
        """Shops of ``offline_conv`` may have started with this package yesterday."""
        outbox.add(update())

        assert [entry.kind for entry in deliver_all(outbox)] == ["update"]

    def test_other_orders_do_not_wait(self, outbox):
        outbox.add(conversion("1001"), problems=["vid: is blank"])
        outbox.add(update("1001"))
        outbox.add(conversion("1002"))
        outbox.add(update("1003"))

        assert [entry.order_id for entry in deliver_all(outbox)] == ["1002", "1003"]

    @pytest.mark.parametrize("seed", range(4))
    def test_whatever_happens_no_update_comes_before_its_conversion(self, outbox, open_outbox, clock, seed):
        """Two relays; recording, failing, dying and delivering in a random order."""
        chance = random.Random(seed)  # noqa: S311 - nobody has to be unable to guess it
        relays = [outbox, open_outbox()]
        orders = [str(number) for number in range(6)]
        planned = {
            order: [conversion(order), *(update(order, status) for status in ("paid", "shipped"))] for order in orders
        }
        delivered: dict[str, list[str]] = {order: [] for order in orders}
        for _ in range(120):
            order = chance.choice(orders)
            if planned[order] and chance.random() < 0.5:
                outbox.add(planned[order].pop(0))
            relay = chance.choice(relays)
            for entry in relay.claim(chance.randint(1, 4), LEASE):
                fate = chance.choice(["settle", "postpone", "release", "die"])
                changes = {
                    "settle": Change.settle(entry, TAKEN),
                    "postpone": Change.postpone(entry, BUSY, chance.random() * 100),
                    "release": Change.release(entry),
                }
                counted = relay.apply([changes[fate]] if fate in changes else [])
                if fate == "settle" and counted:
                    delivered[entry.order_id].append(said_by(entry))
            clock.advance(chance.random() * 30)
        clock.advance(DAY)
        for entry in deliver_all(outbox):
            delivered[entry.order_id].append(said_by(entry))

        everything = ["59.90", "paid", "shipped"]
        assert all(said == everything[: len(said)] for said in delivered.values())
        assert all(len(delivered[order]) + len(planned[order]) == 3 for order in orders)


class TestFairness:
    """One bad row never holds up the others, and a stream of new ones does not starve the retries."""

    @pytest.fixture
    def crowd(self, outbox: Outbox, clock: Clock) -> Outbox:
        """Twenty rows that failed and are due again, then twenty new ones."""
        for number in range(20):
            outbox.add(conversion(f"tried {number:02}"))
        fail_once(outbox, clock)
        for number in range(20):
            outbox.add(conversion(f"new {number:02}"))
        return outbox

    @pytest.mark.parametrize("limit", [2, 7, 10, 20])
    def test_retries_take_at_most_half_of_a_batch(self, crowd, limit):
        claimed = [entry.order_id for entry in crowd.claim(limit, LEASE)]
        tried = [order_id for order_id in claimed if order_id.startswith("tried")]

        assert len(claimed) == limit
        assert len(tried) == limit // 2
        assert tried == [f"tried {number:02}" for number in range(limit // 2)]

    def test_one_alone_is_a_new_one(self, crowd):
        assert claim_one_of(crowd).startswith("new")

    def test_room_that_new_ones_leave_is_the_retries(self, crowd):
        claimed = [entry.order_id for entry in crowd.claim(36, LEASE)]

        assert sum(order_id.startswith("new") for order_id in claimed) == 18
        assert sum(order_id.startswith("tried") for order_id in claimed) == 18
        rest = [entry.order_id for entry in crowd.claim(36, LEASE)]
        assert rest == ["new 18", "new 19", "tried 18", "tried 19"]

    def test_retries_alone_fill_a_batch(self, outbox, clock):
        for number in range(10):
            outbox.add(conversion(str(number)))
        fail_once(outbox, clock)

        assert len(outbox.claim(10, LEASE)) == 10

    def test_new_ones_alone_fill_a_batch(self, outbox):
        for number in range(10):
            outbox.add(conversion(str(number)))

        assert len(outbox.claim(10, LEASE)) == 10


def claim_one_of(outbox: Outbox) -> str:
    return only(outbox.claim(1, LEASE)).order_id


class TestClockJumps:
    """A clock that was wrong for a minute must not leave rows behind that are due in a month."""

    def test_a_row_recorded_in_the_future_is_due(self, outbox, clock):
        clock.advance(30 * DAY)
        outbox.add(conversion())
        clock.advance(-30 * DAY)

        assert claim_one(outbox).order_id == "1001"

    def test_a_row_postponed_in_the_future_is_due(self, outbox, clock):
        outbox.add(conversion())
        clock.advance(30 * DAY)
        outbox.apply([Change.postpone(claim_one(outbox), BUSY, 3600.0)])
        clock.advance(-30 * DAY)

        assert claim_one(outbox).order_id == "1001"

    def test_a_row_leased_in_the_future_is_due(self, outbox, clock):
        outbox.add(conversion())
        clock.advance(30 * DAY)
        claim_one(outbox)
        clock.advance(-30 * DAY)

        assert claim_one(outbox).attempts == 2

    def test_the_longest_wait_that_katalys_may_ask_for_is_no_jump(self, outbox, clock):
        outbox.add(conversion())
        outbox.apply([Change.postpone(claim_one(outbox), BUSY, 6 * 3600.0)])
        clock.advance(1)

        assert outbox.claim(10, LEASE) == []

    def test_rows_that_are_due_go_first(self, outbox, clock):
        clock.advance(30 * DAY)
        outbox.add(conversion("from the future"))
        clock.advance(-30 * DAY)
        outbox.add(conversion("due"))

        assert [entry.order_id for entry in outbox.claim(10, LEASE)] == ["due", "from the future"]


class TestQuestions:
    @pytest.fixture
    def motley(self, outbox: Outbox, clock: Clock) -> Outbox:
        """One of each: delivered, dead, failed once and waiting, in hand, new and not due yet seen."""
        for order_id in ("delivered", "refused", "failed", "in hand", "new"):
            outbox.add(conversion(order_id))
            clock.advance(1)
        delivered, refused, failed, _ = outbox.claim(4, LEASE)
        outbox.apply([Change.settle(delivered, TAKEN), Change.bury(refused, REFUSED)])
        clock.advance(1)
        outbox.apply([Change.postpone(failed, BUSY, 1000.0)])
        return outbox

    def test_statistics_tell_how_it_stands(self, motley, clock):
        statistics = motley.statistics()

        assert (statistics.pending, statistics.dead, statistics.delivered) == (3, 1, 1)
        assert statistics.due == 1
        assert statistics.oldest_pending == row(motley, "failed").created_at
        assert statistics.last_delivered == row(motley, "delivered").finished_at

    def test_statistics_of_an_empty_outbox(self, outbox):
        statistics = outbox.statistics()

        assert (statistics.pending, statistics.due, statistics.dead, statistics.delivered) == (0, 0, 0, 0)
        assert (statistics.oldest_pending, statistics.last_delivered) == (None, None)

    @pytest.mark.parametrize(
        ("state", "orders"),
        [
            (None, ["new", "in hand", "failed", "refused", "delivered"]),
            (State.PENDING, ["new", "in hand", "failed"]),
            (State.DEAD, ["refused"]),
            (State.DELIVERED, ["delivered"]),
        ],
        ids=["all", "pending", "dead", "delivered"],
    )
    def test_entries_are_newest_first(self, motley, state, orders):
        assert [entry.order_id for entry in motley.entries(state)] == orders
        assert [entry.order_id for entry in motley.entries(state, limit=1)] == orders[:1]

    def test_failing_are_those_that_were_tried_and_are_not_done(self, motley):
        assert [entry.order_id for entry in motley.failing()] == ["in hand", "failed"]
        assert len(motley.failing(limit=1)) == 1

    def test_personal_are_those_that_hold_a_buyers_data(self, motley):
        assert sorted(entry.order_id for entry in motley.with_payload()) == ["failed", "in hand", "new", "refused"]
        assert all(entry.payload for entry in motley.with_payload())


class TestRevival:
    @pytest.fixture
    def dead(self, outbox: Outbox, clock: Clock) -> Entry:
        """A dead letter of long ago."""
        outbox.add(conversion())
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])
        clock.advance(30 * DAY)
        return row(outbox)

    def test_a_dead_letter_can_be_tried_again(self, outbox, clock, dead):
        assert outbox.revive(dead, conversion())
        entry = row(outbox)
        assert (entry.id, entry.state, entry.attempts) == (dead.id, State.PENDING, 0)
        assert (entry.due_at, entry.pending_since, entry.created_at) == (clock(), clock(), dead.created_at)
        assert (entry.last_error, entry.finished_at) == (None, None)
        assert [attempt.status for attempt in entry.history] == [400]
        assert claim_one(outbox).payload == conversion().payload

    def test_it_can_be_corrected(self, outbox, dead):
        assert outbox.revive(dead, conversion(sale_amount="1.00"))
        assert said_by(claim_one(outbox)) == "1.00"

    def test_what_is_no_longer_dead_is_left_alone(self, outbox, dead):
        assert outbox.revive(dead, conversion())
        before = row(outbox)

        assert not outbox.revive(dead, conversion(sale_amount="1.00"))
        assert row(outbox) == before

    def test_a_correction_into_another_entry_is_refused(self, outbox, dead):
        outbox.add(conversion("1002"))

        assert not outbox.revive(dead, conversion("1002"))
        assert row(outbox).state == State.DEAD

    def test_its_updates_follow(self, outbox, dead):
        outbox.add(update())
        outbox.revive(dead, conversion())

        assert [entry.kind for entry in deliver_all(outbox)] == ["conversion", "update"]


class TestForgetting:
    def test_a_waiting_order_is_emptied_and_not_delivered(self, outbox, clock):
        outbox.add(conversion())

        assert outbox.forget([row(outbox)]) == 1
        entry = row(outbox)
        assert (entry.state, entry.payload, entry.finished_at) == (State.DEAD, None, clock())
        assert entry.last_error
        assert outbox.claim(10, LEASE) == []
        assert list(outbox.with_payload()) == []

    def test_an_order_in_hand_is_emptied_and_the_worker_finds_it_gone(self, outbox):
        outbox.add(conversion())
        entry = claim_one(outbox)

        assert outbox.forget([row(outbox)]) == 1
        assert outbox.apply([Change.postpone(entry, BUSY, 5.0)]) == 0
        assert row(outbox).payload is None

    def test_a_dead_letter_is_emptied(self, outbox):
        outbox.add(conversion(), problems=["vid: is blank"])

        assert outbox.forget([row(outbox)]) == 1
        assert (row(outbox).state, row(outbox).payload) == (State.DEAD, None)

    def test_what_changed_meanwhile_is_not_touched(self, outbox):
        outbox.add(conversion())
        seen = row(outbox)
        deliver_all(outbox)
        before = row(outbox)

        assert outbox.forget([seen]) == 0
        assert row(outbox) == before

    def test_a_forgotten_order_can_be_recorded_again(self, outbox):
        outbox.add(conversion())
        outbox.forget([row(outbox)])

        assert outbox.add(conversion()) is Added.REPLACED
        assert claim_one(outbox).payload == conversion().payload


class TestPruning:
    def test_what_was_finished_long_ago_is_deleted(self, outbox, clock):
        outbox.add(conversion("delivered"))
        outbox.apply([Change.settle(claim_one(outbox), TAKEN)])
        outbox.add(conversion("dead"), problems=["vid: is blank"])
        clock.advance(DAY)
        outbox.add(conversion("later"), problems=["vid: is blank"])
        outbox.add(conversion("pending"))

        assert outbox.prune(clock() - DAY / 2) == 2
        assert sorted(entry.order_id for entry in outbox.entries()) == ["later", "pending"]
        assert outbox.prune(clock() - DAY / 2) == 0

    def test_a_pending_row_is_never_deleted(self, outbox, clock):
        outbox.add(conversion())
        fail_once(outbox, clock)
        clock.advance(1000 * DAY)

        assert outbox.prune(clock()) == 0
        assert claim_one(outbox).order_id == "1001"

    def test_updates_go_with_the_dead_conversion_they_wait_for(self, outbox, clock):
        """Nobody is going to revive it any more."""
        outbox.add(conversion(), problems=["vid: is blank"])
        outbox.add(update())
        clock.advance(DAY)

        assert outbox.prune(clock()) == 2
        assert outbox.history("1001") == []

    def test_an_id_is_never_used_again(self, outbox, clock):
        """A late worker's change must not meet another row."""
        outbox.add(conversion("1001"))
        late = claim_one(outbox)
        outbox.apply([Change.settle(late, TAKEN)])
        clock.advance(DAY)
        outbox.prune(clock())
        outbox.add(conversion("1002"))

        assert row(outbox, "1002").id > late.id
        assert outbox.apply([Change.settle(late, TAKEN)]) == 0


# --- the SQLite file ---------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sqlite.db"


@pytest.fixture
def open_file(clock: Clock) -> Iterator[Callable[[Path], SQLiteOutbox]]:
    opened: list[SQLiteOutbox] = []

    def open_it(path: Path) -> SQLiteOutbox:
        opened.append(SQLiteOutbox(path, clock=clock))
        return opened[-1]

    yield open_it
    for outbox in opened:
        outbox.close()


@pytest.fixture
def file(open_file: Callable[[Path], SQLiteOutbox], path: Path) -> SQLiteOutbox:
    return open_file(path)


#: What each child process begins with; its arguments are the file and the time.
CHILD = """
import os, signal, sys, threading, time, traceback
from katalys_wsgi import Conversion
from katalys_wsgi.outbox import Change
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.conversion.postback import Kind, Postback
from katalys_wsgi.outbox import Receipt, Verdict
path, now = sys.argv[1:]
outbox = SQLiteOutbox(path, clock=lambda: float(now))
def conversion(order_id):
    order = Conversion(order_id=order_id, email_address="a@b.c", sale_amount=1, subtotal_amount=1)
    return Postback.from_conversion(order, site_id="KA-1A2B3C4", conversion_type="offline_conv", click=None,
                                    client_ip=None, user_agent="")
"""


def start(path: Path, script: str) -> subprocess.Popen[str]:
    code = CHILD + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(Clock().now)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs(children: list[subprocess.Popen[str]]) -> list[str]:
    """What each child printed; each must have ended well."""
    printed = [child.communicate(timeout=50) for child in children]
    assert [(child.returncode, errors) for child, (_, errors) in zip(children, printed, strict=True)] == [
        (0, "") for _ in children
    ]
    return [out for out, _ in printed]


def at_once(path: Path, script: str, count: int) -> list[str]:
    """Runs ``script`` in ``count`` processes that begin together."""
    children = [start(path, "print('ready', flush=True); sys.stdin.readline()\n" + script) for _ in range(count)]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return outputs(children)


@contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    script = """
        import sqlite3
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("BEGIN EXCLUSIVE")
        print("locked", flush=True)
        sys.stdin.readline()
        db.execute("ROLLBACK")
        db.close()
    """
    child = start(path, script)
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    try:
        yield
    finally:
        outputs([child])


def integrity_of(path: Path) -> str:
    with edited(path) as db:
        return db.execute("PRAGMA integrity_check").fetchone()[0]


class TestFile:
    def test_it_is_made_at_first_use(self, file, path):
        assert not path.exists()
        file.add(conversion())
        assert path.exists()

    def test_only_its_owner_may_read_it(self, file, path):
        """Whatever the umask; the files beside it hold the same rows."""
        before = os.umask(0)
        try:
            file.add(conversion())
            file.claim(1, LEASE)
        finally:
            os.umask(before)

        modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
        assert path.name in modes
        assert set(modes.values()) == {0o600}

    def test_what_was_added_is_on_the_disk_and_what_was_erased_is_gone(self, file, monkeypatch):
        connections: list[sqlite3.Connection] = []
        connect = sqlite3.connect

        def remember(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            connections.append(connect(*args, **kwargs))
            return connections[-1]

        monkeypatch.setattr(sqlite3, "connect", remember)
        file.add(conversion())

        def pragma(name: str) -> object:
            return connections[-1].execute(f"PRAGMA {name}").fetchone()[0]

        assert pragma("synchronous") == 2  # FULL
        assert pragma("secure_delete") == 1
        assert pragma("journal_mode") == journal_mode().lower()

    @pytest.mark.parametrize(
        ("version", "mode"),
        [
            ((3, 7, 17), "TRUNCATE"),
            ((3, 40, 1), "TRUNCATE"),
            ((3, 50, 6), "TRUNCATE"),
            ((3, 50, 7), "WAL"),
            ((3, 50, 12), "WAL"),
            ((3, 51, 0), "TRUNCATE"),
            ((3, 51, 2), "TRUNCATE"),
            ((3, 51, 3), "WAL"),
            ((3, 52, 0), "WAL"),
            ((4, 0, 0), "WAL"),
        ],
        ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else value,
    )
    def test_wal_only_where_several_writers_cannot_corrupt_it(self, version, mode):
        """https://sqlite.org/wal.html#walresetbug."""
        assert journal_mode(version) == mode

    def test_a_later_chdir_starts_no_second_outbox(self, open_file, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        outbox = open_file(Path("here.db"))
        outbox.add(conversion())
        outbox.close()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")

        assert outbox.add(conversion()) is Added.SAME
        assert list(Path().iterdir()) == []

    def test_it_cannot_join_the_shops_transaction(self, file):
        with pytest.raises(TypeError, match="SQLAlchemy URL"):
            file.add(conversion(), connection=object())

    def test_many_rows_are_deleted_in_several_transactions(self, file, clock, monkeypatch):
        """Pages wait while one lasts."""
        monkeypatch.setattr(sqlite_outbox, "PRUNED_AT_A_TIME", 3)
        for number in range(10):
            file.add(conversion(str(number)), problems=["vid: is blank"])
        clock.advance(DAY)

        assert file.prune(clock()) == 10

    def test_a_directory_that_does_not_exist_is_told_at_start_up(self, tmp_path):
        with pytest.raises(ConfigurationError, match="missing does not exist; create it"):
            SQLiteOutbox(tmp_path / "missing" / "outbox.db")

    def test_a_place_that_cannot_hold_it_is_a_clear_error(self, open_file, tmp_path):
        outbox = open_file(tmp_path)  # a directory in place of the file

        for use in (
            lambda: outbox.add(conversion()),
            lambda: outbox.history("1001"),
            lambda: outbox.claim(1, LEASE),
            lambda: outbox.apply([]),
            outbox.statistics,
        ):
            with pytest.raises(OutboxUnavailable) as raised:
                use()
            assert str(tmp_path) in str(raised.value)
            assert "writable" in str(raised.value)

    def test_it_works_as_soon_as_the_place_does(self, open_file, tmp_path):
        (tmp_path / "moved").mkdir()
        outbox = open_file(tmp_path / "moved" / "outbox.db")
        (tmp_path / "moved").rmdir()
        with pytest.raises(OutboxUnavailable):
            outbox.add(conversion())
        (tmp_path / "moved").mkdir()

        assert outbox.add(conversion()) is Added.NEW

    def test_a_file_that_was_taken_away_is_noticed_and_started_anew(self, file, path, open_file):
        """An administrator's rm or mv: what is written into a file without a name is lost with the process."""
        file.add(conversion("1001"))
        for found in path.parent.glob(path.name + "*"):
            found.unlink()

        assert file.add(conversion("1002")) is Added.NEW
        assert [entry.order_id for entry in deliver_all(open_file(path))] == ["1002"]

    def test_a_file_of_another_major_version_is_refused(self, file, path):
        file.add(conversion())
        file.close()
        with edited(path) as db:
            db.execute(f"PRAGMA user_version = {version_of(db) + 1000}")

        with pytest.raises(OutboxUnavailable, match="schema"):
            file.add(conversion("1002"))

    def test_a_file_of_a_newer_minor_version_is_used(self, file, path):
        """Minor versions only add; the old processes of a deployment that goes step by step keep recording."""
        file.add(conversion())
        file.close()
        with edited(path) as db:
            db.execute("ALTER TABLE katalys_outbox ADD COLUMN later TEXT")
            db.execute(f"PRAGMA user_version = {version_of(db) + 1}")

        assert file.add(conversion("1002")) is Added.NEW
        assert [entry.order_id for entry in deliver_all(file)] == ["1001", "1002"]


@contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        yield db
    finally:
        db.close()


def version_of(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


class TestBusyFile:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch):
        monkeypatch.setattr(sqlite_outbox, "PATIENCE_IN_REQUEST", 0.4)
        monkeypatch.setattr(sqlite_outbox, "PATIENCE_IN_RELAY", 0.4)

    def test_a_page_waits_two_seconds_and_a_relay_ten(self, monkeypatch):
        monkeypatch.undo()
        assert (sqlite_outbox.PATIENCE_IN_REQUEST, sqlite_outbox.PATIENCE_IN_RELAY) == (2.0, 10.0)

    def test_a_file_that_another_process_has_locked_is_given_up_in_time(self, file, path):
        file.add(conversion())
        with locked_by_another_process(path):
            started = time.monotonic()
            with pytest.raises(OutboxUnavailable, match="locked"):
                file.add(conversion("1002"))
            with pytest.raises(OutboxUnavailable, match="locked"):
                file.claim(1, LEASE)
            took = time.monotonic() - started

        assert 0.6 < took < 2.5
        assert file.add(conversion("1002")) is Added.NEW
        assert len(deliver_all(file)) == 2

    def test_the_first_use_of_a_process_waits_no_longer(self, file, path, open_file):
        file.add(conversion())
        with locked_by_another_process(path):
            started = time.monotonic()
            with pytest.raises(OutboxUnavailable, match="locked"):
                open_file(path).add(conversion("1002"))
            took = time.monotonic() - started

        assert 0.3 < took < 1.6

    def test_a_lock_that_ends_in_time_is_waited_for(self, file, path, monkeypatch):
        monkeypatch.setattr(sqlite_outbox, "PATIENCE_IN_REQUEST", 10.0)
        file.add(conversion())
        added: list[Added] = []
        with locked_by_another_process(path):
            thread = threading.Thread(target=lambda: added.append(file.add(conversion("1002"))))
            thread.start()
            thread.join(0.2)
            assert added == []
        thread.join(10)

        assert added == [Added.NEW]

    def test_threads_that_wait_behind_a_waiting_one_are_given_up_in_time_too(self, file, path):
        file.add(conversion())
        faults: list[OutboxUnavailable] = []

        def add() -> None:
            try:
                file.add(conversion("1002"))
            except OutboxUnavailable as fault:
                faults.append(fault)

        with locked_by_another_process(path):
            started = time.monotonic()
            threads = [threading.Thread(target=add) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.monotonic() - started

        assert len(faults) == 5
        assert took < 0.4 + 0.4 + 1.0


class TestProcesses:
    def test_processes_that_begin_together_make_one_file_and_lose_nothing(self, file, path):
        """The first rows of all come while the file is being made."""
        script = """
            added = [outbox.add(conversion(f"{os.getpid()}-{n}")).value for n in range(25)]
            print(" ".join(added))
        """
        printed = at_once(path, textwrap.dedent(script), 4)

        assert [out.split() for out in printed] == [["new"] * 25] * 4
        assert len(deliver_all(file)) == 100
        assert integrity_of(path) == "ok"

    def test_of_processes_that_add_one_order_one_adds_it(self, file, path):
        script = "print(' '.join(outbox.add(conversion(str(n))).value for n in range(20)))"
        printed = at_once(path, script, 3)

        assert sorted(" ".join(printed).split()) == ["new"] * 20 + ["same"] * 40
        assert len(deliver_all(file)) == 20

    def test_processes_claim_different_rows(self, file, path):
        for number in range(120):
            file.add(conversion(str(number)))
        script = """
            taken = Receipt(Verdict.DELIVERED, 204, confirmed=True)
            while entries := outbox.claim(7, 60):
                print(*(entry.order_id for entry in entries))
                assert outbox.apply([Change.settle(entry, taken) for entry in entries]) == len(entries)
        """
        printed = at_once(path, textwrap.dedent(script), 4)

        assert sorted(" ".join(printed).split(), key=int) == [str(number) for number in range(120)]
        assert file.claim(10, LEASE) == []

    def test_what_was_added_survives_the_process(self, file, path):
        """SIGKILL: no handler, no atexit, no flush."""
        child = start(path, "outbox.add(conversion('1001')); os.kill(os.getpid(), signal.SIGKILL)")
        child.communicate(timeout=50)

        assert child.returncode == -9
        assert claim_one(file).order_id == "1001"

    def test_a_process_killed_in_a_claim_leaves_a_row_that_comes_back(self, file, path, clock):
        file.add(conversion())
        start(path, "outbox.claim(1, 60); os.kill(os.getpid(), signal.SIGKILL)").communicate(timeout=50)

        assert file.claim(10, LEASE) == []
        clock.advance(61)
        assert claim_one(file).attempts == 2

    def test_a_fork_shares_nothing_with_its_parent(self, file, path):
        """Servers that preload the shop (Gunicorn, uWSGI) fork after it was loaded, and maybe used."""
        script = """
            outbox.add(conversion("parent, before"))
            child = os.fork()
            if not child:
                outbox.add(conversion("child"))
                outbox.close()
                sys.exit(0)  # with everything that an interpreter does when it ends
            outbox.add(conversion("parent, meanwhile"))
            assert os.waitpid(child, 0)[1] == 0
            outbox.add(conversion("parent, after"))
        """
        outputs([start(path, script)])

        orders = [entry.order_id for entry in deliver_all(file)]
        assert sorted(orders) == ["child", "parent, after", "parent, before", "parent, meanwhile"]
        assert integrity_of(path) == "ok"

    def test_a_lock_held_at_the_fork_hangs_no_child(self, file, path):
        """A thread of the parent is always adding while the children are born."""
        script = """
            import warnings
            warnings.simplefilter("ignore")  # Python 3.12 warns of a fork with threads, which is the point here
            done = threading.Event()
            count = 0
            def add():
                global count
                while not done.is_set():
                    outbox.add(conversion(f"parent {count}"))
                    count += 1
                    time.sleep(0.001)  # SQLite's waiting is not fair; the children's turn
            thread = threading.Thread(target=add, daemon=True)
            thread.start()
            children = []
            for number in range(8):
                time.sleep(0.01)
                child = os.fork()
                if not child:
                    try:
                        outbox.add(conversion(f"child {number}"))
                        os._exit(0)
                    finally:
                        traceback.print_exc()
                        os._exit(1)
                children.append(child)
            for child in children:
                assert os.waitpid(child, 0)[1] == 0
            done.set()
            thread.join()
            print(count)
        """
        started = time.monotonic()
        (printed,) = outputs([start(path, script)])

        assert time.monotonic() - started < 20
        orders = {entry.order_id for entry in deliver_all(file)}
        assert orders == {f"child {n}" for n in range(8)} | {f"parent {n}" for n in range(int(printed))}
        assert integrity_of(path) == "ok"
