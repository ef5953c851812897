"""The recorder: what becomes of an order, whatever the shop passes and whatever the outbox and Katalys do."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from katalys_wsgi import (
    Conversion,
    Discount,
    Event,
    InvalidConversion,
    LineItem,
    OrderUpdate,
    OutboxUnavailable,
    Outcome,
    Record,
    Tracker,
    UnusableConnection,
)
from katalys_wsgi import recorder as module
from katalys_wsgi.conversion.postback import Postback
from katalys_wsgi.operations import archive
from katalys_wsgi.outbox import Added, Entry, State
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .support import (
    BUYER_AGENT,
    BUYER_IP,
    LINK,
    OLD_SECRET,
    RECORDED_KEYS,
    SECRET,
    SITE_ID,
    TWELVE_KEYS,
    Clock,
    MakeTracker,
    Stopwatch,
    arrive,
    make_conversion,
    make_environ,
    names,
    refuse,
    rows,
)

PERSONAL = ("ann@example.com", BUYER_IP, BUYER_AGENT)
PAID = OrderUpdate("1001", order_status="paid")

#: What callers pass although the types forbid it.
UNKNOWN_STATUS: Any = "lost"

#: What ``defer=`` has put off.
Waiting = list[Callable[[], Record]]


def levels(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.name, event.level) for event in events]


class SharedOutbox(SQLiteOutbox):
    """Plays an outbox in the shop's database: it joins any connection, and notes which it was given.

    While ``error`` is set, adding raises it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.joined: list[object] = []
        self.error: Exception | None = None

    def add(self, postback: Postback, *, problems: Sequence[str] = (), connection: Any = None) -> Added:
        self.joined.append(connection)
        if self.error is not None:
            raise self.error
        return super().add(postback, problems=problems)

    def history(self, order_id: str, *, connection: Any = None) -> list[Entry]:
        self.joined.append(connection)
        return super().history(order_id)


@pytest.fixture
def shared(tmp_path: Path) -> SharedOutbox:
    return SharedOutbox(tmp_path / "shared.db")


class TestOutcomes:
    def test_recorded(self, make_observed: MakeTracker, events: list[Event]) -> None:
        tracker = make_observed()

        record = arrive(tracker).record(make_conversion())

        assert record == Record(Outcome.RECORDED, record.key, (), "")
        assert record.key == tracker.outbox.history("1001")[0].key
        assert rows(tracker) == [("conversion", State.PENDING)]
        assert levels(events) == [("conversion_recorded", logging.INFO)]
        assert events[0].fields == {"order_id": "1001", "reason": ""}

    def test_what_was_recorded_arrives(self, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_tracker(clock=Clock())
        arrive(tracker).record(make_conversion())

        assert tracker.drain().settled == 1
        (received,) = sandbox.collector.accepted
        assert received.fields == dict(
            zip(
                RECORDED_KEYS,
                (
                    "force_convert", SITE_ID, "1001", "ann@example.com", "59.90", "50.00", BUYER_IP, BUYER_AGENT,
                    "SPRING", "1234abcd", "1234", "5678", "@1795350600",
                ),
                strict=True,
            )
        )  # fmt: skip
        assert received.verdict == "attributable"

    @pytest.mark.parametrize("delivered", [False, True], ids=["waiting", "delivered"])
    @pytest.mark.parametrize(
        ("amount", "reason"),
        [("59.90", "recorded before"), ("1.00", "recorded before with other fields, which stand")],
        ids=["same", "other fields"],
    )
    def test_duplicate(self, tracker: Tracker, sandbox: Sandbox, delivered: bool, amount: str, reason: str) -> None:
        first = arrive(tracker).record(make_conversion())
        if delivered:
            tracker.drain()

        again = arrive(tracker).record(make_conversion(sale_amount=Decimal(amount)))

        assert again == Record(Outcome.DUPLICATE, first.key, (), reason)
        tracker.drain()
        assert [received.fields["sale_amount"] for received in sandbox.collector.received] == ["59.90"]

    def test_a_duplicate_is_logged_as_one(self, make_observed: MakeTracker, events: list[Event]) -> None:
        visit = arrive(make_observed(conversion_type="offline_conv"))
        for _ in range(2):
            visit.record(make_conversion())
            visit.record_update(PAID)

        assert names(events) == [
            "conversion_recorded", "update_recorded", "conversion_duplicate", "update_duplicate",
        ]  # fmt: skip

    def test_no_click(self, make_observed: MakeTracker, events: list[Event]) -> None:
        tracker = make_observed()

        record = arrive(tracker, query="").record(make_conversion())

        assert (record.outcome, record.key) == (Outcome.NO_CLICK, None)
        assert record.reason
        assert rows(tracker) == []
        assert events == []

    @pytest.mark.parametrize(
        ("conversion_type", "query"),
        [("force_convert", LINK), ("offline_conv", LINK), ("offline_conv", "")],
        ids=["with a click", "offline_conv with a click", "offline_conv without"],
    )
    def test_no_consent(self, make_tracker: MakeTracker, conversion_type: str, query: str) -> None:
        tracker = make_tracker(consent=refuse, conversion_type=conversion_type)

        record = arrive(tracker, query).record(make_conversion())

        assert (record.outcome, record.key) == (Outcome.NO_CONSENT, None)
        assert record.reason
        assert rows(tracker) == []

    def test_invalid(self, make_observed: MakeTracker, events: list[Event], sandbox: Sandbox) -> None:
        """Kept, to be corrected; a later valid record takes its place."""
        tracker = make_observed()
        visit = arrive(tracker)

        record = visit.record(make_conversion(sale_amount="12,50", email_address=""))

        assert record.outcome is Outcome.INVALID
        assert [problem.partition(":")[0] for problem in record.problems] == ["email_address", "sale_amount"]
        assert rows(tracker) == [("conversion", State.DEAD)]
        assert levels(events) == [("conversion_invalid", logging.ERROR)]
        assert events[0].fields["reason"] == "kept as a dead letter, to be corrected: email_address, sale_amount"
        assert tracker.drain().settled == 0
        assert visit.record(make_conversion()) == Record(Outcome.RECORDED, record.key, (), "in place of a dead letter")
        assert tracker.drain().settled == 1
        assert sandbox.collector.accepted[0].fields["sale_amount"] == "59.90"

    @pytest.mark.parametrize(
        "order_id",
        [None, "", "  ", "\ud800", "a\x00b", "x" * 300, ["1001"], True],
        ids=["none", "empty", "blank", "lone surrogate", "NUL", "long", "list", "boolean"],
    )
    def test_invalid_order_ids_are_kept_too(self, tracker: Tracker, order_id: Any) -> None:
        record = arrive(tracker).record(make_conversion(order_id))

        assert record.outcome is Outcome.INVALID
        assert any(problem.startswith("order_id:") for problem in record.problems)
        assert [entry.state for entry in archive(tracker.outbox).entries()] == [State.DEAD]

    def test_of_many_threads_one_records_an_order(self, tracker: Tracker) -> None:
        outcomes: list[Outcome] = []
        visit = arrive(tracker)
        threads = [
            threading.Thread(target=lambda: outcomes.append(visit.record(make_conversion()).outcome)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(outcome.value for outcome in outcomes) == ["duplicate"] * 7 + ["recorded"]

    def test_a_sale_without_the_buyers_address_is_recorded_and_logged_once(
        self, make_observed: MakeTracker, events: list[Event], sandbox: Sandbox
    ) -> None:
        tracker = make_observed(trusted_proxies=2)
        for number in range(3):
            arrive(tracker, HTTP_X_FORWARDED_FOR=BUYER_IP).record(make_conversion(str(number)))
        tracker.drain()

        assert levels(events).count(("client_ip_unknown", logging.WARNING)) == 1
        assert "trusted_proxies" in str(events[0])
        assert {received.fields["client_ip"] for received in sandbox.collector.accepted} == {""}


class TestOrderTime:
    """A sale that is delivered three days late keeps its date."""

    def test_it_is_the_moment_of_recording(self, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
        clock = Clock()
        tracker = make_tracker(clock=clock)
        arrive(tracker).record(make_conversion())
        clock.advance(timedelta(days=3))
        tracker.drain()

        assert sandbox.collector.accepted[0].fields["order_time"] == "@1795350600"

    def test_of_what_is_deferred_too(self, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
        clock = Clock()
        waiting: Waiting = []
        tracker = make_tracker(clock=clock)
        tracker.visit(make_environ(LINK), defer=waiting.append).record(make_conversion())
        clock.advance(60)
        waiting[0]()
        tracker.drain()

        assert sandbox.collector.accepted[0].fields["order_time"] == "@1795350600"

    def test_a_given_one_stands(self, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_tracker(clock=Clock())
        arrive(tracker).record(make_conversion(order_time=datetime(2026, 3, 1, tzinfo=timezone.utc)))
        tracker.drain()

        assert sandbox.collector.accepted[0].fields["order_time"] == "@1772323200"

    def test_one_with_a_problem_gives_way_to_it(self, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_tracker(clock=Clock())
        record = arrive(tracker).record(make_conversion(order_time=datetime(2026, 3, 1)))  # noqa: DTZ001
        tracker.drain()

        assert record.reason == "left out: order_time"
        assert sandbox.collector.accepted[0].fields["order_time"] == "@1795350600"

    def test_an_update_has_none(self, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
        """When the refund was typed in is not when the order was placed."""
        tracker = make_tracker(conversion_type="offline_conv")
        tracker.record_update(PAID)
        tracker.drain()

        assert "order_time" not in sandbox.collector.accepted[0].fields

    def test_it_does_not_make_two_records_of_one_order_differ(self, make_tracker: MakeTracker) -> None:
        clock = Clock()
        visit = arrive(make_tracker(clock=clock))
        visit.record(make_conversion())
        clock.advance(3600)

        again = visit.record(make_conversion())

        assert (again.outcome, again.reason) == (Outcome.DUPLICATE, "recorded before")


class TestLeftOut:
    """A sale is never held back by an optional field."""

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"tax_amount": "free"}, "tax_amount"),
            ({"shipping_amount": -1}, "shipping_amount"),
            ({"order_status": UNKNOWN_STATUS}, "order_status"),
            ({"order_count": 0}, "order_count"),
            ({"billing_state": 5}, "billing_state"),
            ({"vid": "\ud800"}, "vid"),
            ({"extra": {"order_id": "1002"}}, "extra[order_id]"),
            ({"discounts": "SPRING"}, "discounts"),
            ({"discounts": ["SPRING", 5]}, "discounts[1].code"),
            ({"discounts": [Discount("SPRING", "10%")]}, "discounts[0].amount"),
            ({"line_items": {"sku": "S"}}, "line_items[0]"),
            ({"line_items": [LineItem("")]}, "line_items[0].sku"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_field_with_a_problem_is_left_out_and_the_sale_is_recorded(
        self, make_observed: MakeTracker, events: list[Event], changes: dict[str, Any], problem: str
    ) -> None:
        tracker = make_observed()

        record = arrive(tracker).record(make_conversion(**changes))

        assert record.outcome is Outcome.RECORDED
        assert [named.partition(":")[0] for named in record.problems] == [problem]
        assert record.reason == f"left out: {problem}"
        assert levels(events)[0] == ("conversion_recorded", logging.INFO)
        assert events[0].fields == {"order_id": "1001", "reason": record.reason}
        assert rows(tracker) == [("conversion", State.PENDING)]

    def test_the_rest_of_the_order_is_reported(self, tracker: Tracker, sandbox: Sandbox) -> None:
        """A wrong title costs the title, a wrong SKU the item: without it the rest means nothing."""
        items: Any = [
            LineItem("A", "5.00", qty=0, title=5, variation="red", categories=["<b>"]),  # type: ignore[arg-type]
            LineItem(7, "1.00"),  # type: ignore[arg-type]
            "tea",
            LineItem("B", "$5"),
        ]
        conversion = make_conversion(
            discounts=[Discount("X", "1.00"), Discount("", "2.00"), Discount("Y", "much")],
            line_items=items, currency="EUR", vid="v", order_count=0,
        )  # fmt: skip
        before = repr(conversion)

        record = arrive(tracker).record(conversion)
        tracker.drain()

        (received,) = sandbox.collector.accepted
        assert {name: value for name, value in received.fields.items() if name not in RECORDED_KEYS} == {
            "discount_1_amount": "1.00", "discount_2_code": "Y", "currency": "EUR", "vid": "v",
            "line_item_1_sku": "A", "line_item_1_price": "5.00", "line_item_1_var": "red",
            "line_item_2_sku": "B", "line_item_2_qty": "1",
        }  # fmt: skip
        assert received.fields["discount_1_code"] == "X"
        assert received.verdict == "attributable"
        assert record.reason == (
            "left out: order_count, discounts[1].code, discounts[2].amount, line_items[0].qty, line_items[0].title, "
            "line_items[0].categories, line_items[1].sku, line_items[2], line_items[3].price"
        )
        assert repr(conversion) == before

    @pytest.mark.parametrize(
        "changes",
        [
            {"order_id": ""},
            {"email_address": " "},
            {"sale_amount": ""},
            {"subtotal_amount": "x"},
            {"currency": "dollars"},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_only_five_fields_keep_a_sale_back(
        self, make_observed: MakeTracker, events: list[Event], changes: dict[str, Any]
    ) -> None:
        (name,) = changes
        tracker = make_observed()

        record = arrive(tracker).record(make_conversion(**changes, vid=5))

        assert record.outcome is Outcome.INVALID
        assert [problem.partition(":")[0] for problem in record.problems] == [name, "vid"]
        assert record.reason == f"kept as a dead letter, to be corrected: {name}; left out: vid"
        (entry,) = archive(tracker.outbox).entries()
        assert entry.last_error is not None
        assert "vid" not in entry.last_error + str(entry.payload)

    def test_a_valid_record_takes_its_place(self, tracker: Tracker) -> None:
        visit = arrive(tracker)
        visit.record(make_conversion(currency="dollars"))

        record = visit.record(make_conversion(currency="USD", vid=5))

        assert record.outcome is Outcome.RECORDED
        assert record.reason == "in place of a dead letter; left out: vid"

    def test_a_duplicate_names_its_problems_too(self, tracker: Tracker) -> None:
        visit = arrive(tracker)
        first = visit.record(make_conversion(vid=5))

        again = visit.record(make_conversion(vid=5))

        assert again == Record(Outcome.DUPLICATE, first.key, first.problems, "recorded before")

    def test_an_update_is_recorded_with_what_is_right(self, make_observed: MakeTracker, events: list[Event]) -> None:
        tracker = make_observed(conversion_type="offline_conv")

        record = tracker.record_update(OrderUpdate("1001", order_status="paid", vid="\ud800"))

        assert (record.outcome, record.reason) == (Outcome.RECORDED, "left out: vid")
        assert levels(events) == [("update_recorded", logging.INFO)]

    def test_an_update_of_which_nothing_is_left_is_kept_as_it_stands(self, make_tracker: MakeTracker) -> None:
        """Two of them are two dead letters, for the operator to correct each."""
        tracker = make_tracker(conversion_type="offline_conv")
        wrong: Any = ["complete", "sent back"]

        records = [tracker.record_update(OrderUpdate("1001", order_status=status)) for status in wrong]

        assert [record.outcome for record in records] == [Outcome.INVALID] * 2
        assert records[0].reason == "kept as a dead letter, to be corrected: order_status"
        assert ["complete" in (entry.payload or "") for entry in tracker.outbox.history("1001")] == [True, False]

    def test_without_an_outbox_it_is_sent_directly(
        self, make_observed: MakeTracker, events: list[Event], sandbox: Sandbox, tmp_path: Path
    ) -> None:
        record = arrive(make_observed(outbox=f"{tmp_path}")).record(make_conversion(vid=5))

        assert record.outcome is Outcome.SENT_DIRECTLY
        assert record.reason.endswith("; left out: vid")
        assert len(record.problems) == 1
        assert "vid" not in sandbox.collector.accepted[0].fields
        assert events[0].fields["reason"] == record.reason


class TestTypes:
    def test_force_convert_reports_an_affiliates_sales_only(self, tracker: Tracker, sandbox: Sandbox) -> None:
        arrive(tracker).record(make_conversion("1001"))
        arrive(tracker, query="").record(make_conversion("1002"))
        tracker.drain()

        assert [received.fields["order_id"] for received in sandbox.collector.accepted] == ["1001"]

    def test_offline_conv_reports_every_sale_with_the_click_if_there_is_one(
        self, make_tracker: MakeTracker, sandbox: Sandbox
    ) -> None:
        tracker = make_tracker(conversion_type="offline_conv", delivery_workers=1)
        arrive(tracker).record(make_conversion("1001"))
        arrive(tracker, query="").record(make_conversion("1002"))
        tracker.drain()

        with_click, without = (received.fields for received in sandbox.collector.accepted)
        assert (with_click["type"], with_click["transaction_id"]) == ("offline_conv", "1234abcd")
        assert tuple(without) == (*TWELVE_KEYS[:9], "order_time")

    @pytest.mark.parametrize("wire", ["json", "form", "get"])
    def test_every_wire(self, make_tracker: MakeTracker, sandbox: Sandbox, wire: str) -> None:
        tracker = make_tracker(wire=wire)
        arrive(tracker).record(make_conversion())
        tracker.drain()

        (received,) = sandbox.collector.accepted
        assert tuple(received.fields) == RECORDED_KEYS
        assert tracker.outbox.history("1001")[0].confirmed == (wire != "get")

    def test_a_hashed_address(self, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_tracker(hash_email=True, delivery_workers=1)
        visit = arrive(tracker)
        visit.record(make_conversion("1001", email_address="Ann@Example.com"))
        visit.record(make_conversion("1002", email_address="ann@example.com"))
        tracker.record_update(OrderUpdate("1001", email_address="ANN@example.com"))
        tracker.drain()

        addresses = {received.fields["email_address"] for received in sandbox.collector.accepted}
        assert len(sandbox.collector.accepted) == 3
        assert len(addresses) == 1
        assert re.fullmatch("[0-9a-f]{64}", addresses.pop())

    def test_a_new_key_changes_no_hash_while_the_old_one_is_listed(
        self, make_tracker: MakeTracker, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        for number, keys in enumerate([OLD_SECRET, [OLD_SECRET, SECRET]]):
            tracker = make_tracker(hash_email=True, secret_key=keys, outbox=f"{tmp_path}/{number}.db")
            arrive(tracker).record(make_conversion(str(number)))
            tracker.drain()

        first, second = (received.fields["email_address"] for received in sandbox.collector.accepted)
        assert first == second


class TestStrict:
    """What a developer wants to see, and a shopper never."""

    @pytest.mark.parametrize("query", [LINK, ""], ids=["with a click", "without"])
    def test_invalid_data_raises_even_without_a_click(self, make_tracker: MakeTracker, query: str) -> None:
        """Else a mistake would show on the first affiliate's sale, in production."""
        tracker = make_tracker(strict=True)

        with pytest.raises(InvalidConversion) as raised:
            arrive(tracker, query).record(make_conversion(sale_amount="12,50", vid=5))

        assert raised.value.order_id == "1001"
        assert [problem.partition(":")[0] for problem in raised.value.problems] == ["sale_amount", "vid"]
        assert rows(tracker) == []

    def test_invalid_data_raises_even_without_consent(self, make_tracker: MakeTracker) -> None:
        tracker = make_tracker(strict=True, consent=refuse)

        with pytest.raises(InvalidConversion):
            arrive(tracker).record(make_conversion(sale_amount="12,50"))

    def test_valid_data_does_not(self, make_tracker: MakeTracker) -> None:
        tracker = make_tracker(strict=True)

        assert arrive(tracker).record(make_conversion()).outcome is Outcome.RECORDED
        assert arrive(tracker, "").record(make_conversion("1002")).outcome is Outcome.NO_CLICK

    def test_an_outbox_that_cannot_be_written_raises(
        self, make_tracker: MakeTracker, tmp_path: Path, sandbox: Sandbox
    ) -> None:
        tracker = make_tracker(strict=True, outbox=f"{tmp_path}")

        with pytest.raises(OutboxUnavailable):
            arrive(tracker).record(make_conversion())
        with pytest.raises(OutboxUnavailable):
            tracker.record_update(PAID)
        assert sandbox.collector.received == ()

    def test_an_adapter_may_turn_it_on_for_one_visit(self, tracker: Tracker) -> None:
        invalid = make_conversion(sale_amount=None)

        with pytest.raises(InvalidConversion):
            tracker.visit(make_environ(LINK), strict=True).record(invalid)
        assert arrive(tracker).record(invalid).outcome is Outcome.INVALID

    @pytest.mark.parametrize("wrong", ["1001", {"order_id": "1001"}, None, OrderUpdate("1001", order_status="paid")])
    def test_what_is_no_conversion_raises_and_says_what_to_pass(self, make_tracker: MakeTracker, wrong: Any) -> None:
        with pytest.raises(TypeError, match=rf"record\(\) takes Conversion\(.*not {type(wrong).__name__}"):
            arrive(make_tracker(strict=True)).record(wrong)

    def test_what_is_no_update_raises_and_says_what_to_pass(self, make_tracker: MakeTracker) -> None:
        wrong: Any = make_conversion()

        with pytest.raises(TypeError, match=r"takes OrderUpdate\(.*not Conversion; use record\(\) for it"):
            arrive(make_tracker(strict=True)).record_update(wrong)

    def test_an_update_raises(self, make_tracker: MakeTracker) -> None:
        with pytest.raises(InvalidConversion):
            make_tracker(strict=True).record_update(OrderUpdate("1001", order_status=UNKNOWN_STATUS))


class TestUpdates:
    def test_an_update_follows_its_conversion(
        self, make_observed: MakeTracker, events: list[Event], sandbox: Sandbox
    ) -> None:
        tracker = make_observed()
        arrive(tracker).record(make_conversion())

        record = tracker.record_update(OrderUpdate("1001", order_status="refunded"))

        assert record.outcome is Outcome.RECORDED
        assert names(events) == ["conversion_recorded", "update_recorded"]
        assert tracker.drain().settled == 2
        conversion, update = sandbox.collector.accepted
        assert conversion.fields["type"] == "force_convert"
        assert update.fields == {
            "type": "offline_conv", "site_id": SITE_ID, "order_id": "1001", "order_status": "refunded",
        }  # fmt: skip

    def test_after_the_conversion_was_delivered(self, tracker: Tracker, sandbox: Sandbox) -> None:
        arrive(tracker).record(make_conversion())
        tracker.drain()

        assert tracker.record_update(OrderUpdate(1001, order_status="paid")).outcome is Outcome.RECORDED
        assert tracker.drain().settled == 1

    def test_the_visits_click_and_consent_play_no_part(self, make_tracker: MakeTracker) -> None:
        """The customer's support changes the order, or a webhook; the sale had its click and its consent."""
        tracker = make_tracker()
        arrive(tracker).record(make_conversion())

        assert arrive(tracker, "").record_update(PAID).outcome is Outcome.RECORDED
        refusing = arrive(make_tracker(consent=refuse))
        assert refusing.record_update(OrderUpdate("1001", order_status="shipped")).outcome is Outcome.RECORDED

    def test_an_order_that_was_never_recorded_is_not_katalys_business(self, tracker: Tracker) -> None:
        record = tracker.record_update(PAID)

        assert (record.outcome, record.key) == (Outcome.NO_CLICK, None)
        assert record.reason
        assert rows(tracker) == []

    def test_under_offline_conv_it_is(self, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_tracker(conversion_type="offline_conv")

        assert tracker.record_update(PAID).outcome is Outcome.RECORDED
        assert tracker.drain().settled == 1

    def test_the_same_update_again_is_a_duplicate(self, make_tracker: MakeTracker) -> None:
        tracker = make_tracker(conversion_type="offline_conv")
        shipped = OrderUpdate("1001", order_status="shipped")
        outcomes = [tracker.record_update(update).outcome for update in (PAID, PAID, shipped)]

        assert outcomes == [Outcome.RECORDED, Outcome.DUPLICATE, Outcome.RECORDED]

    @pytest.mark.parametrize(
        ("update", "field"),
        [
            pytest.param(OrderUpdate("1001", order_status=UNKNOWN_STATUS), "order_status", id="unknown status"),
            pytest.param(OrderUpdate("1001"), "order_status", id="nothing to update"),
            pytest.param(OrderUpdate("1001", sale_amount=Decimal(-1)), "sale_amount", id="negative"),
        ],
    )
    def test_an_invalid_update_is_kept_and_holds_up_no_other(
        self, make_observed: MakeTracker, events: list[Event], update: OrderUpdate, field: str
    ) -> None:
        tracker = make_observed()
        arrive(tracker).record(make_conversion())

        record = tracker.record_update(update)

        assert record.outcome is Outcome.INVALID
        assert record.problems[0].startswith(f"{field}:")
        assert levels(events)[-1] == ("update_invalid", logging.ERROR)
        assert tracker.record_update(PAID).outcome is Outcome.RECORDED
        assert tracker.drain().settled == 2
        assert rows(tracker) == [("conversion", State.DELIVERED), ("update", State.DEAD), ("update", State.DELIVERED)]

    def test_an_update_waits_for_a_dead_letter_to_be_corrected(self, tracker: Tracker, sandbox: Sandbox) -> None:
        visit = arrive(tracker)
        visit.record(make_conversion(sale_amount="12,50"))
        tracker.record_update(PAID)
        assert tracker.drain().settled == 0

        visit.record(make_conversion())

        assert tracker.drain().settled == 2
        assert [received.is_update for received in sandbox.collector.accepted] == [False, True]


class TestDeferral:
    """An adapter leaves the writing to the shop's transaction manager."""

    def test_it_is_written_at_the_commit(self, tracker: Tracker) -> None:
        waiting: Waiting = []
        visit = tracker.visit(make_environ(LINK), defer=waiting.append)

        record = visit.record(make_conversion())

        assert record == Record(Outcome.DEFERRED, record.key, (), "waits for the commit")
        assert rows(tracker) == []
        (commit,) = waiting
        assert commit() == Record(Outcome.RECORDED, record.key)
        assert rows(tracker) == [("conversion", State.PENDING)]
        assert commit().outcome is Outcome.DUPLICATE

    def test_its_problems_are_known_at_once(self, tracker: Tracker) -> None:
        waiting: Waiting = []
        visit = tracker.visit(make_environ(LINK), defer=waiting.append)

        record = visit.record(make_conversion(sale_amount="12,50"))

        assert record.outcome is Outcome.DEFERRED
        assert record.problems
        assert [commit().outcome for commit in waiting] == [Outcome.INVALID]

    def test_what_is_not_to_be_written_is_not_deferred(self, tracker: Tracker) -> None:
        waiting: Waiting = []
        visit = tracker.visit(make_environ(), defer=waiting.append)

        assert visit.record(make_conversion()).outcome is Outcome.NO_CLICK
        assert waiting == []

    def test_the_data_is_that_of_the_moment_of_recording(self, tracker: Tracker, sandbox: Sandbox) -> None:
        waiting: Waiting = []
        coupons = ["SPRING"]
        environ = make_environ(LINK)
        visit = tracker.visit(environ, defer=waiting.append)
        visit.record(make_conversion(discounts=coupons))
        coupons.append("LATER")
        environ.clear()
        waiting[0]()
        tracker.drain()

        (received,) = sandbox.collector.accepted
        assert "discount_2_code" not in received.fields
        assert received.fields["client_ip"] == BUYER_IP
        assert received.fields["transaction_id"] == "1234abcd"

    def test_a_deferred_write_raises_nothing_into_the_commit(
        self, make_observed: MakeTracker, events: list[Event], tmp_path: Path, sandbox: Sandbox
    ) -> None:
        sandbox.stop()
        tracker = make_observed(outbox=f"{tmp_path}", conversion_type="offline_conv")
        waiting: Waiting = []
        visit = tracker.visit(make_environ(LINK), strict=True, defer=waiting.append)
        visit.record(make_conversion())
        visit.record_update(PAID)

        assert [commit().outcome for commit in waiting] == [Outcome.LOST, Outcome.LOST]
        assert [event.fields["order_id"] for event in events] == ["1001", "1001"]

    def test_an_error_of_the_outbox_at_the_commit_does_not_raise_either(
        self, make_tracker: MakeTracker, shared: SharedOutbox
    ) -> None:
        shared.error = ZeroDivisionError()
        waiting: Waiting = []
        visit = make_tracker(outbox=shared).visit(make_environ(LINK), strict=True, defer=waiting.append)
        visit.record(make_conversion())

        assert [commit().outcome for commit in waiting] == [Outcome.LOST]

    def test_if_the_outbox_cannot_be_written_at_the_commit_it_is_sent_directly(
        self, make_tracker: MakeTracker, tmp_path: Path, sandbox: Sandbox
    ) -> None:
        """The order is committed, so the sale is one, strict or not."""
        waiting: Waiting = []
        tracker = make_tracker(outbox=f"{tmp_path}")
        tracker.visit(make_environ(LINK), strict=True, defer=waiting.append).record(make_conversion())

        assert [commit().outcome for commit in waiting] == [Outcome.SENT_DIRECTLY]
        assert len(sandbox.collector.accepted) == 1

    def test_an_update_is_recorded_if_its_conversion_is_deferred_before_it(
        self, tracker: Tracker, sandbox: Sandbox
    ) -> None:
        """Whether the order was recorded is decided at the commit: the same transaction may record both."""
        waiting: Waiting = []
        visit = tracker.visit(make_environ(LINK), defer=waiting.append)
        deferred = [visit.record(make_conversion()), visit.record_update(PAID)]

        assert [record.outcome for record in deferred] == [Outcome.DEFERRED, Outcome.DEFERRED]
        assert [commit() for commit in waiting] == [Record(Outcome.RECORDED, record.key) for record in deferred]
        assert tracker.drain().settled == 2
        assert [received.is_update for received in sandbox.collector.accepted] == [False, True]

    def test_an_update_without_its_conversion_is_not(self, tracker: Tracker) -> None:
        waiting: Waiting = []

        assert tracker.record_update(PAID, defer=waiting.append).outcome is Outcome.DEFERRED
        assert [commit().outcome for commit in waiting] == [Outcome.NO_CLICK]
        assert rows(tracker) == []

    @pytest.mark.parametrize("strict", [False, True])
    def test_a_transaction_manager_that_fails(
        self, make_observed: MakeTracker, events: list[Event], strict: bool
    ) -> None:
        def defer(_write: Callable[[], Record]) -> None:
            raise ZeroDivisionError

        visit = make_observed().visit(make_environ(LINK), strict=strict, defer=defer)

        if strict:
            with pytest.raises(ZeroDivisionError):
                visit.record(make_conversion())
        else:
            assert visit.record(make_conversion()).outcome is Outcome.LOST
            assert names(events) == ["conversion_lost"]


class TestConnectionThatCannotBeJoined:
    """``connection=`` where the outbox is a file: the sale is worth more than the transaction."""

    def test_the_sale_is_recorded_without_it_and_that_is_logged_once(
        self, make_observed: MakeTracker, events: list[Event]
    ) -> None:
        tracker = make_observed()
        records = [
            arrive(tracker).record(make_conversion(order_id), connection=object())
            for order_id in ("1001", "1002", "1003")
        ]

        assert [record.outcome for record in records] == [Outcome.RECORDED] * 3
        assert levels(events) == [
            ("connection_unusable", logging.ERROR), *[("conversion_recorded", logging.INFO)] * 3,
        ]  # fmt: skip
        assert "SQLAlchemy" in str(events[0].fields["reason"])
        assert "connection=" in str(events[0].fields["advice"])

    @pytest.mark.parametrize("conversion_type", ["force_convert", "offline_conv"])
    def test_so_is_an_update(self, make_observed: MakeTracker, events: list[Event], conversion_type: str) -> None:
        tracker = make_observed(conversion_type=conversion_type)
        arrive(tracker).record(make_conversion())
        updates = [PAID, OrderUpdate("1001", order_status="shipped"), OrderUpdate("1001", order_status="refunded")]
        records = [tracker.record_update(update, connection=object()) for update in updates]

        assert [record.outcome for record in records] == [Outcome.RECORDED] * 3
        assert levels(events).count(("connection_unusable", logging.ERROR)) == 1
        assert len(rows(tracker)) == 4

    def test_a_sale_and_its_update_are_logged_once_together(
        self, make_observed: MakeTracker, events: list[Event]
    ) -> None:
        visit = arrive(make_observed())
        visit.record(make_conversion(), connection=object())
        visit.record_update(PAID, connection=object())

        assert names(events) == ["connection_unusable", "conversion_recorded", "update_recorded"]

    def test_strict_raises_and_writes_nothing(self, make_observed: MakeTracker, events: list[Event]) -> None:
        tracker = make_observed(strict=True)
        visit = arrive(tracker)

        with pytest.raises(UnusableConnection, match="SQLAlchemy") as raised:
            visit.record(make_conversion(), connection=object())
        assert isinstance(raised.value, TypeError)
        assert rows(tracker) == []
        assert events == []

    @pytest.mark.parametrize("conversion_type", ["force_convert", "offline_conv"])
    def test_strict_raises_for_an_update(
        self, make_observed: MakeTracker, events: list[Event], conversion_type: str
    ) -> None:
        tracker = make_observed(strict=True, conversion_type=conversion_type)
        arrive(tracker).record(make_conversion())
        events.clear()

        with pytest.raises(UnusableConnection, match="SQLAlchemy"):
            tracker.record_update(PAID, connection=object())
        assert rows(tracker) == [("conversion", State.PENDING)]
        assert events == []

    def test_with_defer_it_is_deferred_all_the_same(self, make_observed: MakeTracker, events: list[Event]) -> None:
        tracker = make_observed()
        waiting: Waiting = []
        visit = tracker.visit(make_environ(LINK), defer=waiting.append)
        records = [
            visit.record(make_conversion(), connection=object()),
            visit.record_update(PAID, connection=object()),
        ]

        assert [record.outcome for record in records] == [Outcome.DEFERRED] * 2
        assert rows(tracker) == []
        assert names(events) == ["connection_unusable"]
        assert [commit().outcome for commit in waiting] == [Outcome.RECORDED] * 2

    def test_strict_raises_instead_of_deferring(self, tracker: Tracker) -> None:
        waiting: Waiting = []
        visit = tracker.visit(make_environ(LINK), strict=True, defer=waiting.append)

        with pytest.raises(UnusableConnection):
            visit.record(make_conversion(), connection=object())
        assert waiting == []


class TestConnection:
    """``connection=`` where the outbox can join it."""

    def test_a_conversion_goes_into_its_transaction(self, make_tracker: MakeTracker, shared: SharedOutbox) -> None:
        connection = object()
        record = arrive(make_tracker(outbox=shared)).record(make_conversion(), connection=connection)

        assert record.outcome is Outcome.RECORDED
        assert shared.joined == [connection]

    def test_an_update_is_looked_up_and_kept_in_it(self, make_tracker: MakeTracker, shared: SharedOutbox) -> None:
        """The conversion may have been recorded in the very same transaction."""
        connection = object()
        visit = arrive(make_tracker(outbox=shared))
        unknown = visit.record_update(PAID, connection=connection)
        visit.record(make_conversion(), connection=connection)
        known = visit.record_update(PAID, connection=connection)

        assert [unknown.outcome, known.outcome] == [Outcome.NO_CLICK, Outcome.RECORDED]
        assert shared.joined == [connection] * 4

    def test_it_goes_before_defer(self, make_tracker: MakeTracker, shared: SharedOutbox) -> None:
        waiting: Waiting = []
        connection = object()
        visit = make_tracker(outbox=shared).visit(make_environ(LINK), defer=waiting.append)

        assert visit.record(make_conversion(), connection=connection).outcome is Outcome.RECORDED
        assert shared.joined == [connection]
        assert waiting == []

    def test_if_it_cannot_be_written_nothing_is_sent_directly(
        self, make_observed: MakeTracker, events: list[Event], sandbox: Sandbox, shared: SharedOutbox
    ) -> None:
        """The order may yet be rolled back."""
        shared.error = OutboxUnavailable("The outbox's database does not answer.")
        record = arrive(make_observed(outbox=shared)).record(make_conversion(), connection=object())

        assert record.outcome is Outcome.LOST
        assert record.key
        assert record.reason == "The outbox's database does not answer."
        assert sandbox.collector.received == ()
        assert levels(events) == [("conversion_lost", logging.ERROR)]


class TestUnusableOutbox:
    """Disk full, locked, database gone: one direct attempt, logged at ERROR. A directory stands in for them all."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        (tmp_path / "outbox").mkdir()
        return f"{tmp_path}/outbox"

    def test_the_conversion_is_sent_directly(
        self, make_observed: MakeTracker, events: list[Event], sandbox: Sandbox, folder: str
    ) -> None:
        record = arrive(make_observed(outbox=folder)).record(make_conversion())

        assert record.outcome is Outcome.SENT_DIRECTLY
        assert record.key
        assert "outbox" in record.reason
        (received,) = sandbox.collector.accepted
        assert tuple(received.fields) == RECORDED_KEYS
        assert levels(events) == [("conversion_sent_directly", logging.ERROR)]
        assert events[0].fields["order_id"] == "1001"

    @pytest.mark.parametrize(
        "fail",
        [
            pytest.param(lambda sandbox: sandbox.collector.misbehave(Misbehaviour.status(503)), id="503"),
            pytest.param(lambda sandbox: sandbox.collector.misbehave(Misbehaviour.status(404)), id="404"),
            pytest.param(lambda sandbox: sandbox.stop(), id="refused"),
        ],
    )
    def test_if_katalys_is_gone_as_well_it_is_lost_and_logged(
        self,
        make_observed: MakeTracker,
        events: list[Event],
        sandbox: Sandbox,
        folder: str,
        fail: Callable[[Sandbox], None],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        fail(sandbox)

        record = arrive(make_observed(outbox=folder)).record(make_conversion())

        assert record.outcome is Outcome.LOST
        assert "outbox" in record.reason
        assert "Sending it directly failed too" in record.reason
        assert levels(events) == [("conversion_lost", logging.ERROR)]
        assert events[0].fields["order_id"] == "1001"
        assert [value for value in PERSONAL if value in caplog.text + repr(record)] == []

    def test_the_page_waits_two_seconds_at_most(
        self, make_tracker: MakeTracker, sandbox: Sandbox, folder: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert module.DIRECT_DEADLINE == 2.0
        monkeypatch.setattr(module, "DIRECT_DEADLINE", 0.4)
        sandbox.collector.misbehave(Misbehaviour.drip_headers(0.05))
        with Stopwatch() as watch:
            record = arrive(make_tracker(outbox=folder)).record(make_conversion())

        assert record.outcome is Outcome.LOST
        assert watch.seconds < 1.4

    def test_an_update_is_sent_directly_too(self, make_tracker: MakeTracker, sandbox: Sandbox, folder: str) -> None:
        tracker = make_tracker(outbox=folder, conversion_type="offline_conv")

        assert tracker.record_update(PAID).outcome is Outcome.SENT_DIRECTLY
        assert sandbox.collector.accepted[0].fields["order_status"] == "paid"

    def test_an_update_whose_order_cannot_be_looked_up_is_lost_and_logged(
        self, make_observed: MakeTracker, events: list[Event], sandbox: Sandbox, folder: str
    ) -> None:
        """Under force_convert it might be an order that is not Katalys' business."""
        record = make_observed(outbox=folder).record_update(PAID)

        assert record.outcome is Outcome.LOST
        assert "outbox" in record.reason
        assert sandbox.collector.received == ()
        assert names(events) == ["conversion_lost"]

    def test_invalid_data_is_not_sent(self, make_tracker: MakeTracker, sandbox: Sandbox, folder: str) -> None:
        record = arrive(make_tracker(outbox=folder)).record(make_conversion(sale_amount="12,50"))

        assert record.outcome is Outcome.LOST
        assert record.problems
        assert sandbox.collector.received == ()

    def test_it_works_again_as_soon_as_the_outbox_does(
        self, make_tracker: MakeTracker, folder: str, tmp_path: Path
    ) -> None:
        tracker = make_tracker(outbox=folder)
        assert arrive(tracker).record(make_conversion("1001")).outcome is Outcome.SENT_DIRECTLY
        (tmp_path / "outbox").rmdir()

        assert arrive(tracker).record(make_conversion("1002")).outcome is Outcome.RECORDED


class Hostile:
    """An order that cannot even be asked for its number."""

    @property
    def order_id(self) -> str:
        raise RuntimeError("no such row: ann@example.com")

    problems = order_id


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("ann@example.com")

    __repr__ = __str__


class UnprintableText(str):
    """A string class of the shop's, such as one that is translated when it is shown."""

    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("ann@example.com")


class TestRecordNeverRaises:
    @pytest.mark.parametrize(
        "order",
        [
            pytest.param(None, id="none"),
            pytest.param("1001", id="string"),
            pytest.param({"order_id": "1001"}, id="dict"),
            pytest.param(Conversion, id="the class"),
            pytest.param(SimpleNamespace(order_id="1001", problems=list), id="a look-alike"),
            pytest.param(Hostile(), id="hostile"),
        ],
    )
    def test_whatever_is_recorded(self, make_observed: MakeTracker, events: list[Event], order: Any) -> None:
        tracker = make_observed()

        for record in (arrive(tracker).record(order), tracker.record_update(order)):
            assert record.outcome is Outcome.LOST
            assert "ann@example.com" not in record.reason
        assert names(events) == ["conversion_lost", "conversion_lost"]
        assert "ann@example.com" not in str(events)

    @pytest.mark.parametrize(
        "strange",
        [object(), Unprintable(), float("nan"), b"\xff", 10**400, 10**5000],
        ids=["object", "unprintable", "nan", "bytes", "huge", "too huge to print"],
    )
    @pytest.mark.parametrize("field", ["order_id", "email_address", "sale_amount", "vid", "discounts", "line_items"])
    @pytest.mark.parametrize("strict", [False, True])
    def test_whatever_stands_in_a_field(
        self, make_tracker: MakeTracker, field: str, strange: Any, strict: bool
    ) -> None:
        visit = arrive(make_tracker(strict=strict))
        conversion = make_conversion(**{field: strange})

        if not strict:
            is_optional = field in ("vid", "discounts", "line_items")
            expected = [Outcome.RECORDED] if is_optional else [Outcome.INVALID, Outcome.LOST]
            assert visit.record(conversion).outcome in expected
            return
        with pytest.raises(InvalidConversion):
            visit.record(conversion)

    @pytest.mark.parametrize("field", ["order_id", "email_address", "vid"])
    def test_a_string_class_of_the_shop_says_what_it_holds(
        self, tracker: Tracker, sandbox: Sandbox, field: str
    ) -> None:
        record = arrive(tracker).record(make_conversion(**{field: UnprintableText("x")}))
        tracker.drain()

        assert record.outcome is Outcome.RECORDED
        assert sandbox.collector.accepted[0].fields[field] == "x"

    def test_what_is_lost_is_named_by_its_order_and_by_the_place_of_the_error(
        self, make_observed: MakeTracker, events: list[Event]
    ) -> None:
        """Never by the error's own text, which may repeat the buyer's data."""
        record = arrive(make_observed()).record(make_conversion(email_address=Unprintable()))

        assert record.outcome is Outcome.LOST
        assert re.fullmatch(r"RuntimeError at __str__:\d+", record.reason)
        assert events[0].fields == {"order_id": "1001", "reason": record.reason}

    @pytest.mark.parametrize(
        "environ",
        [
            pytest.param({}, id="empty"),
            pytest.param({"QUERY_STRING": LINK}, id="query only"),
            pytest.param(make_environ("utm_source=Katalys&transaction_id=%FA%00&offer_id=\xff"), id="bad bytes"),
            pytest.param(make_environ(LINK, REMOTE_ADDR="nowhere", HTTP_USER_AGENT="\udcff\x00"), id="bad headers"),
            pytest.param(make_environ(cookie="katalys_click=" + "x" * 100_000), id="bad cookie"),
            pytest.param(make_environ(HTTP_REFERER="http://[::1?utm_source=Katalys&transaction_id=1"), id="referer"),
        ],
    )
    def test_whatever_a_visitor_sends(self, tracker: Tracker, environ: dict[str, Any]) -> None:
        record = tracker.visit(dict(environ)).record(make_conversion())

        assert record.outcome in (Outcome.RECORDED, Outcome.NO_CLICK)


class TestPrivacy:
    def test_no_log_and_no_event_says_who_bought(
        self,
        make_observed: MakeTracker,
        events: list[Event],
        caplog: pytest.LogCaptureFixture,
        sandbox: Sandbox,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        tracker = make_observed()
        visit = arrive(tracker)
        not_an_order: Any = "ann@example.com"
        records = [
            visit.record(make_conversion("1001")),
            visit.record(make_conversion("1001")),
            visit.record(make_conversion("1002", sale_amount="ann@example.com", email_address="ann@example.com\n")),
            tracker.record_update(OrderUpdate("1001", email_address="ann@example.com")),
            visit.record(not_an_order),
        ]
        sandbox.collector.misbehave(Misbehaviour.status(400, body=b"ann@example.com"), times=1)
        tracker.drain()
        shown = caplog.text + str(events) + " ".join(map(str, events)) + repr([*records, tracker, visit])

        assert len(events) >= 5
        assert [value for value in (*PERSONAL, SECRET) if value in shown] == []


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"order_id": "1001"}, "record() takes Conversion(order_id=..., ...), not dict."),
        (
            OrderUpdate("1001", order_status="paid"),
            "record() takes Conversion(order_id=..., ...), not OrderUpdate; use record_update() for it.",
        ),
        (None, "record() takes Conversion(order_id=..., ...), not NoneType."),
    ],
    ids=["dict", "update", "none"],
)
def test_a_wrong_call_is_lost_with_a_clear_reason(
    make_observed: MakeTracker, events: list[Event], wrong: Any, reason: str
) -> None:
    """An update recorded as a conversion would be a sale without amounts."""
    tracker = make_observed()

    record = arrive(tracker).record(wrong)

    assert (record.outcome, record.reason) == (Outcome.LOST, reason)
    assert names(events) == ["conversion_lost"]
    assert events[0].fields["reason"] == reason
    assert rows(tracker) == []
