"""What every outbox promises: a suite for any :class:`~katalys_wsgi.outbox.Archive`.

A test module imports the classes and defines three fixtures: ``clock``, a :class:`~tests.support.Clock`;
``open_outbox``, which opens the test's outbox, as another process would, with the same rows at each call; and
``outbox``, the first one opened.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from datetime import datetime, timezone

import pytest

from katalys_wsgi import Click, OrderUpdate
from katalys_wsgi.conversion.order import OrderStatus
from katalys_wsgi.conversion.postback import Kind, Postback
from katalys_wsgi.conversion.wire import business_part
from katalys_wsgi.outbox import Added, Archive, Change, Entry, Outbox, Receipt, State, Verdict

from .support import BUYER_AGENT, BUYER_IP, SITE_ID, Clock, make_conversion

__all__ = [
    "BUSY", "DAY", "LEASE", "REFUSED", "TAKEN", "OpenOutbox", "TestAdd", "TestApply", "TestClaim", "TestClockJumps",
    "TestDeadLetters", "TestDropping", "TestFairness", "TestForgetting", "TestOrderSequence", "TestPruning",
    "TestQuestions", "TestRevival", "claim_one", "conversion", "deliver_all", "row", "update",
]  # fmt: skip

#: What the fixture ``open_outbox`` is.
OpenOutbox = Callable[[], Archive]

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


def update(order_id: str = "1001", order_status: OrderStatus = "paid") -> Postback:
    return Postback.from_update(OrderUpdate(order_id, order_status=order_status), site_id=SITE_ID)


def said_by(entry: Entry) -> str:
    """A conversion's amount, an update's status."""
    fields: dict[str, str] = json.loads(entry.payload or "{}")
    return fields.get("order_status") or fields["sale_amount"]


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
    def test_a_new_message_waits_to_be_delivered(self, outbox: Archive, clock: Clock) -> None:
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

    def test_the_time_of_the_click_is_kept(self, outbox: Archive) -> None:
        outbox.add(conversion(click=Click("1234abcd", None, None, datetime.fromtimestamp(1_795_000_000, timezone.utc))))

        assert row(outbox).clicked_at == 1_795_000_000

    def test_a_payload_comes_out_byte_for_byte(self, outbox: Archive) -> None:
        odd = Postback("key", "1001", Kind.CONVERSION, '{"user_agent":"\\u00fc \\ud83d\\ude00 \\u0000 \'; --%s ?"}')
        outbox.add(odd)

        assert claim_one(outbox).payload == odd.payload

    @pytest.mark.parametrize("order_id", ["1001", "Zürich 😀", "a'b\"c", "x" * 255], ids=str.__len__)
    def test_an_order_is_found_by_its_id(self, outbox: Archive, order_id: str) -> None:
        outbox.add(conversion(order_id))

        assert row(outbox, order_id).order_id == order_id

    @pytest.mark.parametrize("other", ["ab", "AB ", "ÁB"], ids=["case", "space", "accent"])
    def test_ids_that_look_alike_are_two_orders(self, outbox: Archive, other: str) -> None:
        """Databases compare texts without case, accents or trailing spaces by default."""
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
    @pytest.mark.parametrize("state", ["waiting", "claimed", "postponed", "delivered"])
    def test_the_same_key_again_is_the_same_row(
        self, outbox: Archive, second: Postback, added: Added, state: str
    ) -> None:
        """A double click on "buy", a webhook that comes twice: what was recorded first stands."""
        outbox.add(conversion())
        if state != "waiting":
            entry = claim_one(outbox)
            changes = {"postponed": Change.postpone(entry, BUSY, 5.0), "delivered": Change.settle(entry, TAKEN)}
            outbox.apply([changes[state]] if state in changes else [])
        before = row(outbox)

        assert outbox.add(second) is added
        assert row(outbox) == before

    def test_updates_that_differ_are_rows_of_their_own(self, outbox: Archive) -> None:
        added = [outbox.add(update(order_status=status)) for status in ("paid", "shipped", "paid")]

        assert added == [Added.NEW, Added.NEW, Added.SAME]
        assert [said_by(entry) for entry in outbox.history("1001")] == ["paid", "shipped"]

    def test_history_is_oldest_first_and_of_that_order_only(self, outbox: Archive) -> None:
        outbox.add(conversion("1001"))
        outbox.add(conversion("1002"))
        outbox.add(update("1001"))

        assert [entry.kind for entry in outbox.history("1001")] == ["conversion", "update"]
        assert outbox.history("1003") == []

    def test_what_is_added_is_seen_by_all_processes(self, outbox: Archive, open_outbox: OpenOutbox) -> None:
        outbox.add(conversion())

        assert row(open_outbox()) == row(outbox)
        assert open_outbox().add(conversion()) is Added.SAME

    def test_a_repr_shows_no_personal_data(self, outbox: Archive) -> None:
        outbox.add(conversion())

        assert "ann@example.com" not in repr(row(outbox))
        assert BUYER_IP not in repr(row(outbox))

    def test_a_closed_outbox_opens_again_when_it_is_used(self, outbox: Archive) -> None:
        outbox.add(conversion())
        outbox.close()
        outbox.close()

        assert outbox.add(conversion()) is Added.SAME

    def test_one_of_many_threads_adds_an_order(self, outbox: Archive) -> None:
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
    def test_an_invalid_message_is_kept_and_not_delivered(self, outbox: Archive, clock: Clock) -> None:
        assert outbox.add(conversion(), problems=["sale_amount: is missing", "vid: is blank"]) is Added.NEW
        entry = row(outbox)
        assert (entry.state, entry.attempts, entry.finished_at) == (State.DEAD, 0, clock())
        assert entry.payload == conversion().payload
        assert "sale_amount: is missing" in (entry.last_error or "")
        assert "vid: is blank" in (entry.last_error or "")
        assert outbox.claim(10, LEASE) == []

    def test_a_later_valid_record_takes_its_place(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion(sale_amount="wrong"), problems=["sale_amount: is not a plain number"])
        dead = row(outbox)
        clock.advance(60)

        assert outbox.add(conversion(sale_amount="59.90")) is Added.REPLACED
        entry = row(outbox)
        assert (entry.id, entry.state, entry.attempts) == (dead.id, State.PENDING, 0)
        assert (entry.last_error, entry.finished_at, entry.due_at) == (None, None, clock())
        assert entry.payload == conversion().payload
        assert said_by(claim_one(outbox)) == "59.90"

    def test_the_same_bytes_take_its_place_too_when_they_are_found_valid(self, outbox: Archive) -> None:
        """Rules may be relaxed by a newer version of this package."""
        outbox.add(conversion(), problems=["email_address: is odd"])

        assert outbox.add(conversion()) is Added.REPLACED
        assert claim_one(outbox).key == conversion().key

    def test_a_replacement_has_its_whole_time_to_be_delivered(self, outbox: Archive, clock: Clock) -> None:
        """Else one that replaces an old dead letter would be given up at its first failure."""
        outbox.add(conversion(sale_amount="wrong"), problems=["sale_amount: is not a plain number"])
        recorded_at = clock()
        clock.advance(30 * DAY)
        outbox.add(conversion())

        entry = row(outbox)
        assert (entry.created_at, entry.pending_since) == (recorded_at, clock())

    def test_a_replacement_is_credited_to_its_own_click(self, outbox: Archive) -> None:
        outbox.add(conversion(sale_amount="wrong"), problems=["sale_amount: is not a plain number"])
        clicked_at = datetime.fromtimestamp(1_795_000_000, timezone.utc)
        outbox.add(conversion(click=Click("1234abcd", None, None, clicked_at)))

        assert row(outbox).clicked_at == 1_795_000_000

    def test_a_second_invalid_record_changes_nothing(self, outbox: Archive) -> None:
        outbox.add(conversion(sale_amount="wrong"), problems=["sale_amount: is not a plain number"])
        before = row(outbox)

        outbox.add(conversion(sale_amount="worse"), problems=["sale_amount: is not a plain number"])

        assert row(outbox) == before

    @pytest.mark.parametrize("delivered", [False, True], ids=["waiting", "delivered"])
    def test_an_invalid_record_takes_no_valid_ones_place(self, outbox: Archive, delivered: bool) -> None:
        outbox.add(conversion())
        if delivered:
            deliver_all(outbox)
        before = row(outbox)

        assert outbox.add(conversion(sale_amount="wrong"), problems=["sale_amount: no"]) is Added.DIFFERENT
        assert row(outbox) == before

    def test_what_katalys_refused_is_replaced_by_other_fields_only(self, outbox: Archive) -> None:
        """The same bytes would be refused again."""
        outbox.add(conversion())
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])

        assert outbox.add(conversion()) is Added.SAME
        assert row(outbox).state == State.DEAD
        assert outbox.add(conversion(sale_amount="1.00")) is Added.REPLACED
        assert (row(outbox).state, row(outbox).attempts) == (State.PENDING, 0)
        assert said_by(claim_one(outbox)) == "1.00"

    def test_what_was_tried_before_the_replacement_is_remembered(self, outbox: Archive) -> None:
        outbox.add(conversion())
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])
        outbox.add(conversion(sale_amount="1.00"))
        outbox.apply([Change.settle(claim_one(outbox), TAKEN)])

        assert [attempt.status for attempt in row(outbox).history] == [400, 204]


class TestClaim:
    def test_a_claim_counts_an_attempt_and_takes_a_lease(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())

        entry = claim_one(outbox)

        assert entry == row(outbox)
        assert (entry.attempts, entry.state) == (1, State.PENDING)
        assert entry.lease_token
        assert entry.leased_until == pytest.approx(clock() + LEASE)
        assert entry.payload == conversion().payload

    def test_oldest_first(self, outbox: Archive, clock: Clock) -> None:
        for order_id in ("c", "a", "b"):
            outbox.add(conversion(order_id))
            clock.advance(1)

        assert [entry.order_id for entry in outbox.claim(10, LEASE)] == ["c", "a", "b"]

    def test_at_one_instant_in_the_order_of_recording(self, outbox: Archive) -> None:
        orders = [str(number) for number in range(20)]
        random.Random(1).shuffle(orders)  # noqa: S311 - a seed to repeat
        for order_id in orders:
            outbox.add(conversion(order_id))

        assert [entry.order_id for entry in outbox.claim(20, LEASE)] == orders

    def test_at_most_as_many_as_asked_for(self, outbox: Archive) -> None:
        for order_id in "abcde":
            outbox.add(conversion(order_id))

        assert [len(outbox.claim(2, LEASE)) for _ in range(4)] == [2, 2, 1, 0]

    def test_an_empty_outbox_has_nothing_to_claim(self, outbox: Archive) -> None:
        assert outbox.claim(10, LEASE) == []

    def test_two_relays_never_hold_one_row(self, outbox: Archive, open_outbox: OpenOutbox) -> None:
        other = open_outbox()
        for number in range(30):
            outbox.add(conversion(str(number)))

        claimed = [entry.order_id for n in range(10) for entry in (outbox, other)[n % 2].claim(4, LEASE)]

        assert sorted(claimed, key=int) == [str(number) for number in range(30)]

    def test_threads_never_hold_one_row(self, outbox: Archive) -> None:
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

    def test_a_row_whose_worker_died_is_claimed_again_when_the_lease_ends(self, outbox: Archive, clock: Clock) -> None:
        """A row that kills the process is counted, too: the attempt was written before it was made."""
        outbox.add(conversion())
        first = claim_one(outbox)

        clock.advance(LEASE - 1)
        assert outbox.claim(10, LEASE) == []
        clock.advance(1)
        second = claim_one(outbox)
        assert (second.id, second.attempts) == (first.id, 2)
        assert second.lease_token != first.lease_token

    def test_what_was_delivered_is_never_claimed_again(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())
        deliver_all(outbox)
        clock.advance(365 * DAY)

        assert outbox.claim(10, LEASE) == []


class TestApply:
    def test_a_delivered_row_keeps_no_personal_data(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())
        entry = claim_one(outbox)
        clock.advance(2)

        assert outbox.apply([Change.settle(entry, TAKEN)]) == 1
        entry = row(outbox)
        assert (entry.state, entry.payload, entry.attempts) == (State.DELIVERED, business_part(conversion().payload), 1)
        assert (entry.leased_until, entry.lease_token, entry.finished_at) == (None, None, clock())
        assert (entry.last_status, entry.last_error, entry.confirmed) == (204, None, True)
        assert all(value not in str(vars(entry)) for value in ("ann@example.com", BUYER_IP, BUYER_AGENT))

    def test_a_delivery_that_nobody_confirmed_says_so(self, outbox: Archive) -> None:
        outbox.add(conversion())
        outbox.apply([Change.settle(claim_one(outbox), Receipt(Verdict.DELIVERED, 204))])

        assert row(outbox).confirmed is False

    def test_a_postponed_row_is_due_after_the_delay(self, outbox: Archive, clock: Clock) -> None:
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

    def test_a_buried_row_is_kept_whole_for_the_operator(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])

        entry = row(outbox)
        assert (entry.state, entry.payload, entry.attempts) == (State.DEAD, conversion().payload, 1)
        assert (entry.lease_token, entry.finished_at) == (None, clock())
        assert (entry.last_status, entry.last_error) == (400, "HTTP 400: no")
        clock.advance(365 * DAY)
        assert outbox.claim(10, LEASE) == []

    def test_a_released_row_was_never_claimed(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())
        entry = claim_one(outbox)

        assert outbox.apply([Change.release(entry)]) == 1
        entry = row(outbox)
        assert (entry.state, entry.attempts, entry.history) == (State.PENDING, 0, ())
        assert (entry.leased_until, entry.lease_token, entry.last_error) == (None, None, None)
        assert claim_one(outbox).attempts == 1

    def test_a_release_undoes_one_attempt_only(self, outbox: Archive, clock: Clock) -> None:
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
    @pytest.mark.parametrize("now", ["claimed by another", "delivered"])
    def test_a_late_worker_changes_nothing(
        self, outbox: Archive, open_outbox: OpenOutbox, clock: Clock, change: Callable[[Entry], Change], now: str
    ) -> None:
        """Its lease ran out and the row is another relay's."""
        outbox.add(conversion())
        late = claim_one(outbox)
        clock.advance(LEASE + 1)
        other = open_outbox()
        theirs = claim_one(other)
        if now == "delivered":
            other.apply([Change.settle(theirs, TAKEN)])
        before = row(outbox)

        assert outbox.apply([change(late)]) == 0
        assert row(outbox) == before

    def test_a_late_worker_is_in_time_while_no_other_claimed_the_row(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())
        late = claim_one(outbox)
        clock.advance(LEASE + 1)

        assert outbox.apply([Change.settle(late, TAKEN)]) == 1
        assert row(outbox).state == State.DELIVERED

    def test_the_same_change_twice_counts_once(self, outbox: Archive) -> None:
        outbox.add(conversion())
        change = Change.settle(claim_one(outbox), TAKEN)

        assert [outbox.apply([change]), outbox.apply([change])] == [1, 0]

    def test_many_changes_at_once(self, outbox: Archive, clock: Clock) -> None:
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

    def test_no_change_is_none(self, outbox: Archive) -> None:
        assert outbox.apply([]) == 0

    def test_every_attempt_is_remembered(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())
        started = clock()
        for receipt in (BUSY, SILENT):
            outbox.apply([Change.postpone(claim_one(outbox), receipt, 5.0)])
            clock.advance(10)
        outbox.apply([Change.settle(claim_one(outbox), TAKEN)])

        history = row(outbox).history
        assert [attempt.at - started for attempt in history] == pytest.approx([0, 10, 20])
        assert [(attempt.status, attempt.error) for attempt in history] == [
            (503, "HTTP 503"),
            (None, "TimeoutError: timed out"),
            (204, None),
        ]

    def test_of_very_many_attempts_the_latest_are_remembered(self, outbox: Archive, clock: Clock) -> None:
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

    @pytest.mark.parametrize("state", ["waiting", "claimed", "postponed", "released"])
    def test_an_update_waits_for_its_conversion(self, outbox: Archive, state: str) -> None:
        outbox.add(conversion())
        outbox.add(update())
        if state != "waiting":
            entry = claim_one(outbox)
            changes = {"postponed": Change.postpone(entry, BUSY, 50.0), "released": Change.release(entry)}
            outbox.apply([changes[state]] if state in changes else [])

        assert all(entry.kind == "conversion" for entry in outbox.claim(10, LEASE))

    def test_an_update_follows_its_delivered_conversion(self, outbox: Archive) -> None:
        outbox.add(conversion())
        outbox.add(update())

        assert [entry.kind for entry in deliver_all(outbox)] == ["conversion", "update"]

    @pytest.mark.parametrize(
        "kill",
        [
            pytest.param(lambda outbox: outbox.add(conversion(), problems=["vid: is blank"]), id="invalid"),
            pytest.param(
                lambda outbox: (
                    outbox.add(conversion()),
                    outbox.apply([Change.bury(claim_one(outbox), REFUSED)]),
                ),
                id="refused",
            ),
        ],
    )
    def test_an_update_waits_behind_a_dead_conversion_until_that_is_delivered(
        self, outbox: Archive, clock: Clock, kill: Callable[[Archive], object]
    ) -> None:
        kill(outbox)
        outbox.add(update())
        clock.advance(30 * DAY)

        assert outbox.claim(10, LEASE) == []
        assert outbox.add(conversion(sale_amount="1.00")) is Added.REPLACED
        assert [said_by(entry) for entry in deliver_all(outbox)] == ["1.00", "paid"]

    def test_updates_are_delivered_in_their_order(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(update(order_status="paid"))
        outbox.add(update(order_status="shipped"))
        outbox.add(update(order_status="refunded"))
        outbox.apply([Change.postpone(claim_one(outbox), BUSY, 100.0)])

        assert outbox.claim(10, LEASE) == []
        clock.advance(100)
        assert [said_by(entry) for entry in deliver_all(outbox)] == ["paid", "shipped", "refunded"]

    def test_a_dead_update_holds_up_nobody(self, outbox: Archive) -> None:
        outbox.add(update(order_status="paid"))
        outbox.add(update(order_status="shipped"))
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])

        assert [said_by(entry) for entry in deliver_all(outbox)] == ["shipped"]

    def test_an_invalid_update_holds_up_nobody(self, outbox: Archive) -> None:
        outbox.add(update(order_status="rejected"), problems=["order_status: is unknown"])
        outbox.add(update(order_status="shipped"))

        assert [said_by(entry) for entry in deliver_all(outbox)] == ["shipped"]

    def test_an_update_of_an_order_that_was_never_recorded_is_delivered(self, outbox: Archive) -> None:
        """Shops of ``offline_conv`` may have started with this package yesterday."""
        outbox.add(update())

        assert [entry.kind for entry in deliver_all(outbox)] == ["update"]

    def test_other_orders_do_not_wait(self, outbox: Archive) -> None:
        outbox.add(conversion("1001"), problems=["vid: is blank"])
        outbox.add(update("1001"))
        outbox.add(conversion("1002"))
        outbox.add(update("1003"))

        assert [entry.order_id for entry in deliver_all(outbox)] == ["1002", "1003"]

    @pytest.mark.parametrize("seed", range(4))
    def test_whatever_happens_no_update_comes_before_its_conversion(
        self, outbox: Archive, open_outbox: OpenOutbox, clock: Clock, seed: int
    ) -> None:
        """Two relays; recording, failing, dying and delivering in a random order."""
        chance = random.Random(seed)  # noqa: S311 - a seed to repeat
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
    def twenty_and_twenty(self, outbox: Archive, clock: Clock) -> Archive:
        """Twenty rows that failed and are due again, then twenty new ones."""
        for number in range(20):
            outbox.add(conversion(f"tried {number:02}"))
        fail_once(outbox, clock)
        for number in range(20):
            outbox.add(conversion(f"new {number:02}"))
        return outbox

    @pytest.mark.parametrize("limit", [2, 7, 10, 20])
    def test_retries_take_at_most_half_of_a_batch(self, twenty_and_twenty: Archive, limit: int) -> None:
        claimed = [entry.order_id for entry in twenty_and_twenty.claim(limit, LEASE)]
        tried = [order_id for order_id in claimed if order_id.startswith("tried")]

        assert len(claimed) == limit
        assert len(tried) == limit // 2
        assert tried == [f"tried {number:02}" for number in range(limit // 2)]

    def test_one_alone_is_a_new_one(self, twenty_and_twenty: Archive) -> None:
        assert claim_one_of(twenty_and_twenty).startswith("new")

    def test_room_that_new_ones_leave_is_the_retries(self, twenty_and_twenty: Archive) -> None:
        claimed = [entry.order_id for entry in twenty_and_twenty.claim(36, LEASE)]

        assert sum(order_id.startswith("new") for order_id in claimed) == 18
        assert sum(order_id.startswith("tried") for order_id in claimed) == 18
        rest = [entry.order_id for entry in twenty_and_twenty.claim(36, LEASE)]
        assert rest == ["new 18", "new 19", "tried 18", "tried 19"]

    def test_retries_alone_fill_a_batch(self, outbox: Archive, clock: Clock) -> None:
        for number in range(10):
            outbox.add(conversion(str(number)))
        fail_once(outbox, clock)

        assert len(outbox.claim(10, LEASE)) == 10

    def test_new_ones_alone_fill_a_batch(self, outbox: Archive) -> None:
        for number in range(10):
            outbox.add(conversion(str(number)))

        assert len(outbox.claim(10, LEASE)) == 10


def claim_one_of(outbox: Outbox) -> str:
    return only(outbox.claim(1, LEASE)).order_id


class TestClockJumps:
    """A clock that was wrong for a minute must not leave rows behind that are due in a month."""

    def test_a_row_recorded_in_the_future_is_due(self, outbox: Archive, clock: Clock) -> None:
        clock.advance(30 * DAY)
        outbox.add(conversion())
        clock.advance(-30 * DAY)

        assert claim_one(outbox).order_id == "1001"

    def test_a_row_postponed_in_the_future_is_due(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())
        clock.advance(30 * DAY)
        outbox.apply([Change.postpone(claim_one(outbox), BUSY, 3600.0)])
        clock.advance(-30 * DAY)

        assert claim_one(outbox).order_id == "1001"

    def test_a_row_leased_in_the_future_is_due(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())
        clock.advance(30 * DAY)
        claim_one(outbox)
        clock.advance(-30 * DAY)

        assert claim_one(outbox).attempts == 2

    def test_the_longest_wait_that_katalys_may_ask_for_is_not_a_jump(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())
        outbox.apply([Change.postpone(claim_one(outbox), BUSY, 6 * 3600.0)])
        clock.advance(1)

        assert outbox.claim(10, LEASE) == []

    def test_rows_that_are_due_go_first(self, outbox: Archive, clock: Clock) -> None:
        clock.advance(30 * DAY)
        outbox.add(conversion("from the future"))
        clock.advance(-30 * DAY)
        outbox.add(conversion("due"))

        assert [entry.order_id for entry in outbox.claim(10, LEASE)] == ["due", "from the future"]


class TestQuestions:
    @pytest.fixture
    def one_of_each(self, outbox: Archive, clock: Clock) -> Archive:
        """One of each: delivered, dead, failed once and waiting, claimed, new and not due yet seen."""
        for order_id in ("delivered", "refused", "failed", "claimed", "new"):
            outbox.add(conversion(order_id))
            clock.advance(1)
        delivered, refused, failed, _ = outbox.claim(4, LEASE)
        outbox.apply([Change.settle(delivered, TAKEN), Change.bury(refused, REFUSED)])
        clock.advance(1)
        outbox.apply([Change.postpone(failed, BUSY, 1000.0)])
        return outbox

    def test_statistics_count_the_rows_of_each_state(self, one_of_each: Archive, clock: Clock) -> None:
        statistics = one_of_each.statistics()

        assert (statistics.pending, statistics.dead, statistics.delivered) == (3, 1, 1)
        assert statistics.due == 1
        assert statistics.oldest_pending == row(one_of_each, "failed").created_at
        assert statistics.last_delivered == row(one_of_each, "delivered").finished_at

    def test_statistics_of_an_empty_outbox(self, outbox: Archive) -> None:
        outbox.claim(1, LEASE)  # a relay has looked into it
        statistics = outbox.statistics()

        assert (statistics.pending, statistics.due, statistics.dead, statistics.delivered) == (0, 0, 0, 0)
        assert (statistics.forgotten, statistics.dropped) == (0, 0)
        assert (statistics.oldest_pending, statistics.last_delivered) == (None, None)

    @pytest.mark.parametrize(
        ("state", "orders"),
        [
            (None, ["new", "claimed", "failed", "refused", "delivered"]),
            (State.PENDING, ["new", "claimed", "failed"]),
            (State.DEAD, ["refused"]),
            (State.DELIVERED, ["delivered"]),
        ],
        ids=["all", "pending", "dead", "delivered"],
    )
    def test_entries_are_newest_first(self, one_of_each: Archive, state: State | None, orders: list[str]) -> None:
        assert [entry.order_id for entry in one_of_each.entries(state)] == orders
        assert [entry.order_id for entry in one_of_each.entries(state, limit=1)] == orders[:1]

    def test_failing_are_those_that_were_tried_and_are_not_done(self, one_of_each: Archive) -> None:
        assert [entry.order_id for entry in one_of_each.failing()] == ["claimed", "failed"]
        assert len(one_of_each.failing(limit=1)) == 1

    def test_with_payload_are_all_but_the_forgotten(self, one_of_each: Archive) -> None:
        one_of_each.forget([row(one_of_each, "new")])
        found = {entry.order_id: entry.payload or "" for entry in one_of_each.with_payload()}

        assert sorted(found) == ["claimed", "delivered", "failed", "refused"]
        assert [order_id for order_id in sorted(found) if "ann@example.com" in found[order_id]] == [
            "claimed",
            "failed",
            "refused",
        ]

    def test_statistics_count_what_was_forgotten_and_dropped(self, one_of_each: Archive) -> None:
        one_of_each.drop([row(one_of_each, "refused")])
        one_of_each.forget([row(one_of_each, "failed"), row(one_of_each, "new")])
        statistics = one_of_each.statistics()

        assert (statistics.pending, statistics.dead, statistics.delivered) == (1, 0, 1)
        assert (statistics.forgotten, statistics.dropped) == (2, 1)
        assert [entry.order_id for entry in one_of_each.entries(State.FORGOTTEN)] == ["new", "failed"]
        assert [entry.order_id for entry in one_of_each.entries(State.DROPPED)] == ["refused"]


class TestRevival:
    @pytest.fixture
    def dead(self, outbox: Archive, clock: Clock) -> Entry:
        """A dead letter of long ago."""
        outbox.add(conversion())
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])
        clock.advance(30 * DAY)
        return row(outbox)

    def test_a_dead_letter_can_be_tried_again(self, outbox: Archive, clock: Clock, dead: Entry) -> None:
        assert outbox.revive(dead, conversion())
        entry = row(outbox)
        assert (entry.id, entry.state, entry.attempts) == (dead.id, State.PENDING, 0)
        assert (entry.due_at, entry.pending_since, entry.created_at) == (clock(), clock(), dead.created_at)
        assert (entry.last_error, entry.finished_at) == (None, None)
        assert [attempt.status for attempt in entry.history] == [400]
        assert claim_one(outbox).payload == conversion().payload

    def test_it_can_be_corrected(self, outbox: Archive, dead: Entry) -> None:
        assert outbox.revive(dead, conversion(sale_amount="1.00"))
        assert said_by(claim_one(outbox)) == "1.00"

    def test_what_is_no_longer_dead_is_left_alone(self, outbox: Archive, dead: Entry) -> None:
        assert outbox.revive(dead, conversion())
        before = row(outbox)

        assert not outbox.revive(dead, conversion(sale_amount="1.00"))
        assert row(outbox) == before

    def test_a_correction_into_another_entry_is_refused(self, outbox: Archive, dead: Entry) -> None:
        outbox.add(conversion("1002"))

        assert not outbox.revive(dead, conversion("1002"))
        assert row(outbox).state == State.DEAD

    def test_a_note_says_in_the_history_what_was_done(self, outbox: Archive, clock: Clock, dead: Entry) -> None:
        outbox.revive(dead, conversion(sale_amount="1.00"), note="corrected: sale_amount")
        outbox.apply([Change.settle(claim_one(outbox), TAKEN)])

        attempts = row(outbox).history
        assert [(attempt.status, attempt.note) for attempt in attempts] == [
            (400, None),
            (None, "corrected: sale_amount"),
            (204, None),
        ]
        assert (attempts[1].at, attempts[1].error) == (clock(), None)

    def test_its_updates_follow(self, outbox: Archive, dead: Entry) -> None:
        outbox.add(update())
        outbox.revive(dead, conversion())

        assert [entry.kind for entry in deliver_all(outbox)] == ["conversion", "update"]


class TestForgetting:
    def test_a_waiting_order_is_emptied_and_not_delivered(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())

        assert outbox.forget([row(outbox)]) == 1
        entry = row(outbox)
        assert (entry.state, entry.payload, entry.finished_at) == (State.FORGOTTEN, None, clock())
        assert entry.last_error
        assert outbox.claim(10, LEASE) == []
        assert list(outbox.with_payload()) == []

    def test_a_claimed_order_is_emptied_and_the_worker_finds_it_gone(self, outbox: Archive) -> None:
        outbox.add(conversion())
        entry = claim_one(outbox)

        assert outbox.forget([row(outbox)]) == 1
        assert outbox.apply([Change.postpone(entry, BUSY, 5.0)]) == 0
        assert row(outbox).payload is None

    def test_a_dead_letter_is_emptied(self, outbox: Archive) -> None:
        outbox.add(conversion(), problems=["vid: is blank"])

        assert outbox.forget([row(outbox)]) == 1
        assert (row(outbox).state, row(outbox).payload) == (State.FORGOTTEN, None)

    def test_a_delivered_order_is_emptied_and_stays_delivered(self, outbox: Archive) -> None:
        outbox.add(conversion())
        deliver_all(outbox)

        assert outbox.forget([row(outbox)]) == 1
        assert (row(outbox).state, row(outbox).payload) == (State.DELIVERED, None)

    def test_updates_of_a_forgotten_order_are_not_delivered(self, outbox: Archive) -> None:
        outbox.add(conversion())
        outbox.forget([row(outbox)])
        outbox.add(update())

        assert outbox.claim(10, LEASE) == []

    def test_what_changed_meanwhile_is_not_touched(self, outbox: Archive) -> None:
        outbox.add(conversion())
        seen = row(outbox)
        deliver_all(outbox)
        before = row(outbox)

        assert outbox.forget([seen]) == 0
        assert row(outbox) == before

    def test_a_forgotten_order_can_be_recorded_again(self, outbox: Archive) -> None:
        outbox.add(conversion())
        outbox.forget([row(outbox)])

        assert outbox.add(conversion()) is Added.REPLACED
        assert claim_one(outbox).payload == conversion().payload


class TestDropping:
    @pytest.fixture
    def dead(self, outbox: Archive, clock: Clock) -> Entry:
        """A dead letter of a while ago."""
        outbox.add(conversion())
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])
        clock.advance(DAY)
        return row(outbox)

    def test_a_dropped_dead_letter_keeps_its_reason_and_loses_the_buyers_data(
        self, outbox: Archive, clock: Clock, dead: Entry
    ) -> None:
        assert outbox.drop([dead]) == 1
        entry = row(outbox)
        assert (entry.state, entry.finished_at) == (State.DROPPED, clock())
        assert (entry.last_status, entry.last_error, entry.history) == (400, "HTTP 400: no", dead.history)
        assert entry.payload == business_part(conversion().payload)
        assert "ann@example.com" not in str(vars(entry))
        assert outbox.claim(10, LEASE) == []

    def test_only_dead_letters_are_dropped(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion("delivered"))
        deliver_all(outbox)
        outbox.add(conversion("pending"))
        outbox.add(conversion("forgotten"))
        outbox.forget([row(outbox, "forgotten")])
        before = outbox.entries()

        assert outbox.drop(before) == 0
        assert outbox.entries() == before

    def test_what_was_recorded_anew_meanwhile_is_not_dropped(self, outbox: Archive, dead: Entry) -> None:
        outbox.add(conversion(sale_amount="1.00"))
        outbox.apply([Change.bury(claim_one(outbox), REFUSED)])

        assert outbox.drop([dead]) == 0
        assert row(outbox).state == State.DEAD

    def test_it_is_not_revived(self, outbox: Archive, dead: Entry) -> None:
        outbox.drop([dead])

        assert not outbox.revive(dead, conversion())
        assert row(outbox).state == State.DROPPED

    def test_its_updates_are_not_delivered(self, outbox: Archive, dead: Entry) -> None:
        outbox.add(update())
        outbox.drop([dead])

        assert outbox.claim(10, LEASE) == []

    def test_recorded_anew_with_other_fields_it_is_delivered_and_its_updates_follow(
        self, outbox: Archive, dead: Entry
    ) -> None:
        """As what Katalys refused: the same bytes would be refused again."""
        outbox.add(update())
        outbox.drop([dead])

        assert outbox.add(conversion()) is Added.SAME
        assert row_of_kind(outbox, Kind.CONVERSION).state == State.DROPPED
        assert outbox.add(conversion(sale_amount="1.00")) is Added.REPLACED
        assert [said_by(entry) for entry in deliver_all(outbox)] == ["1.00", "paid"]

    def test_a_dropped_one_can_be_forgotten(self, outbox: Archive, dead: Entry) -> None:
        outbox.drop([dead])

        assert outbox.forget([row(outbox)]) == 1
        assert (row(outbox).state, row(outbox).payload) == (State.DROPPED, None)


def row_of_kind(outbox: Outbox, kind: Kind, order_id: str = "1001") -> Entry:
    return only([entry for entry in outbox.history(order_id) if entry.kind is kind])


class TestPruning:
    def test_what_was_finished_long_ago_is_deleted(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion("delivered"))
        outbox.apply([Change.settle(claim_one(outbox), TAKEN)])
        outbox.add(conversion("dead"), problems=["vid: is blank"])
        clock.advance(DAY)
        outbox.add(conversion("later"), problems=["vid: is blank"])
        outbox.add(conversion("pending"))

        assert outbox.prune(clock() - DAY / 2) == 2
        assert sorted(entry.order_id for entry in outbox.entries()) == ["later", "pending"]
        assert outbox.prune(clock() - DAY / 2) == 0

    def test_a_pending_row_is_never_deleted(self, outbox: Archive, clock: Clock) -> None:
        outbox.add(conversion())
        fail_once(outbox, clock)
        clock.advance(1000 * DAY)

        assert outbox.prune(clock()) == 0
        assert claim_one(outbox).order_id == "1001"

    def test_updates_go_with_the_dead_conversion_they_wait_for(self, outbox: Archive, clock: Clock) -> None:
        """No operator is going to revive it any more."""
        outbox.add(conversion(), problems=["vid: is blank"])
        outbox.add(update())
        clock.advance(DAY)

        assert outbox.prune(clock()) == 2
        assert outbox.history("1001") == []

    @pytest.mark.parametrize("give_up", ["forget", "drop"])
    def test_updates_go_with_a_conversion_that_was_forgotten_or_dropped(
        self, outbox: Archive, clock: Clock, give_up: str
    ) -> None:
        outbox.add(conversion(), problems=["vid: is blank"])
        outbox.add(update())
        getattr(outbox, give_up)([row_of_kind(outbox, Kind.CONVERSION)])
        clock.advance(DAY)

        assert outbox.prune(clock()) == 2
        assert outbox.history("1001") == []

    def test_an_id_is_never_used_again(self, outbox: Archive, clock: Clock) -> None:
        """A late worker's change must not meet another row."""
        outbox.add(conversion("1001"))
        late = claim_one(outbox)
        outbox.apply([Change.settle(late, TAKEN)])
        clock.advance(DAY)
        outbox.prune(clock())
        outbox.add(conversion("1002"))

        assert row(outbox, "1002").id > late.id
        assert outbox.apply([Change.settle(late, TAKEN)]) == 0
