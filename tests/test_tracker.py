"""The tracker: what becomes of a sale, whatever the shop, the visitor, the disk and the network do."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from katalys_wsgi import (
    ConfigurationError,
    Conversion,
    Event,
    InvalidConversion,
    InvalidToken,
    OrderUpdate,
    OutboxUnavailable,
    Outcome,
    Record,
    Settings,
    Tracker,
    Visit,
)
from katalys_wsgi import tracker as room
from katalys_wsgi.attribution.cookie import SignedText
from katalys_wsgi.outbox import State
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .support import (
    BUYER_AGENT,
    BUYER_IP,
    LINK,
    OLD_SECRET,
    SECRET,
    SITE_ID,
    TWELVE_KEYS,
    Stopwatch,
    make_conversion,
    make_environ,
    wait_until,
)

PERSONAL = ("ann@example.com", BUYER_IP, BUYER_AGENT)

MakeTracker = Callable[..., Tracker]


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def heard(make_tracker: MakeTracker, events: list[Event]) -> MakeTracker:
    """Makes trackers whose events are kept in ``events``."""
    return lambda **changes: make_tracker(hooks=[events.append], **changes)


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def arrive(tracker: Tracker, query: str = LINK, **changes: Any) -> Visit:
    """The visit of a shopper who came through the link a moment ago."""
    return tracker.visit(make_environ(query, **changes))


def refuse(_environ: dict[str, Any]) -> bool:
    """Nobody consented."""
    return False


def rows(tracker: Tracker, order_id: str = "1001") -> list[tuple[str, str]]:
    return [(entry.kind, entry.state) for entry in tracker.outbox.history(order_id)]


class TestOutcomes:
    def test_recorded(self, heard, events):
        tracker = heard()

        record = arrive(tracker).record(make_conversion())

        assert record == Record(Outcome.RECORDED, record.key, (), "")
        assert record.key == tracker.outbox.history("1001")[0].key
        assert rows(tracker) == [("conversion", State.PENDING)]
        assert [(event.name, event.level) for event in events] == [("conversion_recorded", logging.INFO)]

    def test_what_was_recorded_arrives(self, tracker, sandbox):
        arrive(tracker).record(make_conversion())

        assert tracker.drain().settled == 1
        (received,) = sandbox.collector.accepted
        assert received.fields == dict(
            zip(
                TWELVE_KEYS,
                (
                    "force_convert", SITE_ID, "1001", "ann@example.com", "59.90", "50.00", BUYER_IP, BUYER_AGENT,
                    "SPRING", "1234abcd", "1234", "5678",
                ),
                strict=True,
            )
        )  # fmt: skip
        assert received.verdict == "attributable"

    @pytest.mark.parametrize("delivered", [False, True], ids=["waiting", "delivered"])
    @pytest.mark.parametrize(
        ("amount", "reason"),
        [("59.90", "recorded before"), ("1.00", "recorded before with other fields; those stand")],
        ids=["same", "other fields"],
    )
    def test_duplicate(self, tracker, sandbox, delivered, amount, reason):
        first = arrive(tracker).record(make_conversion())
        if delivered:
            tracker.drain()

        again = arrive(tracker).record(make_conversion(sale_amount=Decimal(amount)))

        assert again == Record(Outcome.DUPLICATE, first.key, (), reason)
        tracker.drain()
        assert [received.fields["sale_amount"] for received in sandbox.collector.received] == ["59.90"]

    def test_no_click(self, tracker):
        record = arrive(tracker, query="").record(make_conversion())

        assert (record.outcome, record.key) == (Outcome.NO_CLICK, None)
        assert record.reason
        assert rows(tracker) == []

    def test_no_consent(self, make_tracker):
        tracker = make_tracker(consent=refuse)

        record = arrive(tracker).record(make_conversion())

        assert (record.outcome, record.key) == (Outcome.NO_CONSENT, None)
        assert rows(tracker) == []

    def test_invalid(self, heard, events, sandbox):
        """Kept, to be corrected; a later valid record takes its place."""
        tracker = heard()
        visit = arrive(tracker)

        record = visit.record(make_conversion(sale_amount="12,50", email_address=""))

        assert record.outcome is Outcome.INVALID
        assert [problem.partition(":")[0] for problem in record.problems] == ["email_address", "sale_amount"]
        assert rows(tracker) == [("conversion", State.DEAD)]
        assert [(event.name, event.level) for event in events] == [("conversion_invalid", logging.ERROR)]
        assert tracker.drain().settled == 0
        assert visit.record(make_conversion()) == Record(Outcome.RECORDED, record.key, (), "in place of a dead letter")
        assert tracker.drain().settled == 1
        assert sandbox.collector.accepted[0].fields["sale_amount"] == "59.90"

    @pytest.mark.parametrize(
        "order_id",
        [None, "", "  ", "\ud800", "a\x00b", "x" * 300, ["1001"], True],
        ids=["none", "empty", "blank", "half a character", "NUL", "long", "list", "boolean"],
    )
    def test_invalid_order_ids_are_kept_too(self, tracker, order_id):
        record = arrive(tracker).record(make_conversion(order_id))

        assert record.outcome is Outcome.INVALID
        assert any(problem.startswith("order_id:") for problem in record.problems)
        assert [entry.state for entry in tracker.outbox.entries()] == [State.DEAD]

    def test_deferred(self, tracker):
        """An adapter hands the writing to the shop's transaction manager."""
        waiting: list[Callable[[], Record]] = []
        visit = arrive(tracker)
        visit.defer = waiting.append

        record = visit.record(make_conversion())

        assert (record.outcome, record.problems) == (Outcome.DEFERRED, ())
        assert rows(tracker) == []
        (commit,) = waiting
        assert commit() == Record(Outcome.RECORDED, record.key)
        assert rows(tracker) == [("conversion", State.PENDING)]
        assert commit().outcome is Outcome.DUPLICATE

    def test_deferred_data_is_that_of_the_moment_of_recording(self, tracker, sandbox):
        waiting: list[Callable[[], Record]] = []
        coupons = ["SPRING"]
        visit = arrive(tracker)
        visit.defer = waiting.append
        visit.record(make_conversion(discounts=coupons))
        coupons.append("LATER")
        visit.click = visit.client_ip = None
        waiting[0]()
        tracker.drain()

        (received,) = sandbox.collector.accepted
        assert "discount_2_code" not in received.fields
        assert received.fields["client_ip"] == BUYER_IP

    def test_a_deferred_write_raises_nothing_into_the_commit(self, make_tracker, tmp_path, sandbox):
        sandbox.stop()
        tracker = make_tracker(outbox=f"{tmp_path}", strict=True)
        waiting: list[Callable[[], Record]] = []
        visit = arrive(tracker)
        visit.defer = waiting.append
        visit.record(make_conversion())

        assert waiting[0]().outcome is Outcome.LOST

    def test_of_many_threads_one_records_an_order(self, tracker):
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


class TestTypes:
    def test_force_convert_reports_an_affiliates_sales_only(self, tracker, sandbox):
        arrive(tracker).record(make_conversion("1001"))
        arrive(tracker, query="").record(make_conversion("1002"))
        tracker.drain()

        assert [received.fields["order_id"] for received in sandbox.collector.accepted] == ["1001"]

    def test_offline_conv_reports_every_sale_with_the_click_if_there_is_one(self, make_tracker, sandbox):
        tracker = make_tracker(conversion_type="offline_conv", delivery_workers=1)
        arrive(tracker).record(make_conversion("1001"))
        arrive(tracker, query="").record(make_conversion("1002"))
        tracker.drain()

        with_click, without = (received.fields for received in sandbox.collector.accepted)
        assert (with_click["type"], with_click["transaction_id"]) == ("offline_conv", "1234abcd")
        assert tuple(without) == TWELVE_KEYS[:9]

    @pytest.mark.parametrize("wire", ["json", "form", "get"])
    def test_every_wire(self, make_tracker, sandbox, wire):
        tracker = make_tracker(wire=wire)
        arrive(tracker).record(make_conversion())
        tracker.drain()

        (received,) = sandbox.collector.accepted
        assert tuple(received.fields) == TWELVE_KEYS
        assert tracker.outbox.history("1001")[0].confirmed == (wire != "get")

    def test_a_hashed_address(self, make_tracker, sandbox):
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

    def test_a_new_key_changes_no_hash_while_the_old_one_is_listed(self, make_tracker, sandbox, tmp_path):
        for number, keys in enumerate([OLD_SECRET, [OLD_SECRET, SECRET]]):
            tracker = make_tracker(hash_email=True, secret_key=keys, outbox=f"{tmp_path}/{number}.db")
            arrive(tracker).record(make_conversion(str(number)))
            tracker.drain()

        first, second = (received.fields["email_address"] for received in sandbox.collector.accepted)
        assert first == second


class TestStrict:
    """What a developer wants to see, and a shopper never."""

    @pytest.mark.parametrize("query", [LINK, ""], ids=["with a click", "without"])
    def test_invalid_data_raises_even_without_a_click(self, make_tracker, query):
        """Else a fault would show on the first affiliate's sale, in production."""
        tracker = make_tracker(strict=True)

        with pytest.raises(InvalidConversion) as raised:
            arrive(tracker, query).record(make_conversion(sale_amount="12,50", vid=""))

        assert raised.value.order_id == "1001"
        assert [problem.partition(":")[0] for problem in raised.value.problems] == ["sale_amount", "vid"]
        assert rows(tracker) == []

    def test_valid_data_does_not(self, make_tracker):
        tracker = make_tracker(strict=True)

        assert arrive(tracker).record(make_conversion()).outcome is Outcome.RECORDED
        assert arrive(tracker, "").record(make_conversion("1002")).outcome is Outcome.NO_CLICK

    def test_an_outbox_that_cannot_be_written_raises(self, make_tracker, tmp_path, sandbox):
        tracker = make_tracker(strict=True, outbox=f"{tmp_path}")

        with pytest.raises(OutboxUnavailable):
            arrive(tracker).record(make_conversion())
        with pytest.raises(OutboxUnavailable):
            tracker.record_update(OrderUpdate("1001", order_status="paid"))
        assert sandbox.collector.received == ()

    def test_an_adapter_may_turn_it_on_for_one_visit(self, tracker):
        visit = arrive(tracker)
        visit.strict = True

        with pytest.raises(InvalidConversion):
            visit.record(make_conversion(sale_amount=None))
        assert arrive(tracker).record(make_conversion(sale_amount=None)).outcome is Outcome.INVALID

    def test_a_mistake_in_the_code_raises(self, make_tracker):
        with pytest.raises(AttributeError):
            arrive(make_tracker(strict=True)).record("1001")

    def test_an_update_raises(self, make_tracker):
        with pytest.raises(InvalidConversion):
            make_tracker(strict=True).record_update(OrderUpdate("1001", order_status="lost"))


class TestConsent:
    def test_it_hides_the_click(self, make_tracker):
        tracker = make_tracker(consent=refuse)

        assert arrive(tracker).click is None
        assert tracker.set_cookie_for(make_environ(LINK)) is None

    def test_who_consented_is_tracked(self, make_tracker):
        tracker = make_tracker(consent=lambda environ: environ["HTTP_COOKIE"] == "consent=yes")

        assert arrive(tracker, cookie="consent=yes").record(make_conversion()).outcome is Outcome.RECORDED
        assert arrive(tracker, cookie="consent=no").record(make_conversion("1002")).outcome is Outcome.NO_CONSENT

    def test_a_function_that_fails_is_a_no(self, heard, events):
        def consent(environ: dict[str, Any]) -> bool:
            raise ValueError("ann@example.com")

        assert arrive(heard(consent=consent)).record(make_conversion()).outcome is Outcome.NO_CONSENT
        assert ("consent_failed", logging.ERROR) in [(event.name, event.level) for event in events]
        assert "ann@example.com" not in str(events)

    def test_who_came_by_themselves_is_not_asked(self, make_tracker):
        asked: list[object] = []
        tracker = make_tracker(consent=lambda environ: asked.append(environ) or True)
        tracker.visit(make_environ())
        tracker.set_cookie_for(make_environ("color=red"))

        assert asked == []

    def test_offline_conv_asks_everybody(self, make_tracker):
        """Every order is reported, so every buyer has a say."""
        tracker = make_tracker(conversion_type="offline_conv", consent=refuse)

        assert arrive(tracker, "").record(make_conversion()).outcome is Outcome.NO_CONSENT


class TestUpdates:
    def test_an_update_follows_its_conversion(self, heard, events, sandbox):
        tracker = heard()
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

    def test_after_the_conversion_was_delivered(self, tracker, sandbox):
        arrive(tracker).record(make_conversion())
        tracker.drain()

        assert tracker.record_update(OrderUpdate(1001, order_status="paid")).outcome is Outcome.RECORDED
        assert tracker.drain().settled == 1

    def test_an_order_that_was_never_recorded_is_nobodys_business(self, tracker):
        record = tracker.record_update(OrderUpdate("1001", order_status="paid"))

        assert (record.outcome, record.key) == (Outcome.NO_CLICK, None)
        assert rows(tracker) == []

    def test_under_offline_conv_it_is(self, make_tracker, sandbox):
        tracker = make_tracker(conversion_type="offline_conv")

        assert tracker.record_update(OrderUpdate("1001", order_status="paid")).outcome is Outcome.RECORDED
        assert tracker.drain().settled == 1

    def test_the_same_update_again_is_a_duplicate(self, make_tracker):
        tracker = make_tracker(conversion_type="offline_conv")
        outcomes = [
            tracker.record_update(OrderUpdate("1001", order_status=status)).outcome
            for status in ("paid", "paid", "shipped")
        ]

        assert outcomes == [Outcome.RECORDED, Outcome.DUPLICATE, Outcome.RECORDED]

    @pytest.mark.parametrize(
        ("update", "field"),
        [
            pytest.param(OrderUpdate("1001", order_status="lost"), "order_status", id="unknown status"),
            pytest.param(OrderUpdate("1001"), "order_status", id="nothing to update"),
            pytest.param(OrderUpdate("1001", sale_amount=Decimal(-1)), "sale_amount", id="negative"),
        ],
    )
    def test_a_faulty_update_is_kept_and_holds_up_nobody(self, tracker, update, field):
        arrive(tracker).record(make_conversion())

        record = tracker.record_update(update)

        assert record.outcome is Outcome.INVALID
        assert record.problems[0].startswith(f"{field}:")
        assert tracker.record_update(OrderUpdate("1001", order_status="paid")).outcome is Outcome.RECORDED
        assert tracker.drain().settled == 2
        assert rows(tracker) == [("conversion", State.DELIVERED), ("update", State.DEAD), ("update", State.DELIVERED)]

    def test_an_update_waits_for_a_dead_letter_to_be_corrected(self, tracker, sandbox):
        visit = arrive(tracker)
        visit.record(make_conversion(sale_amount="12,50"))
        tracker.record_update(OrderUpdate("1001", order_status="paid"))
        assert tracker.drain().settled == 0

        visit.record(make_conversion())

        assert tracker.drain().settled == 2
        assert [received.is_update for received in sandbox.collector.accepted] == [False, True]


def signed(value: Any, key: str = SECRET, salt: str = room.TOKEN_SALT) -> str:
    return SignedText([key], salt).dumps(value)


TOKENS_CLICK = [1, "1234abcd", "1234", "5678", 1_795_350_600]
UNREADABLE = (
    pytest.param(None, id="none"),
    pytest.param("", id="empty"),
    pytest.param(b"bytes", id="bytes"),
    pytest.param(5, id="number"),
    pytest.param("nonsense", id="nonsense"),
    pytest.param("\ud800", id="half a character"),
    pytest.param("x" * 100_000, id="long"),
    pytest.param(signed([1, TOKENS_CLICK, BUYER_IP, "", False])[:-1], id="cut short"),
    pytest.param("x" + signed([1, TOKENS_CLICK, BUYER_IP, "", False]), id="altered"),
    pytest.param(signed([1, TOKENS_CLICK, BUYER_IP, "", False], key=OLD_SECRET), id="unknown key"),
    pytest.param(signed([1, TOKENS_CLICK, BUYER_IP, "", False], salt="katalys_wsgi.click.v1"), id="a cookie's salt"),
    pytest.param(signed([2, TOKENS_CLICK, BUYER_IP, "", False]), id="other version"),
    pytest.param(signed([1, [2, *TOKENS_CLICK[1:]], BUYER_IP, "", False]), id="other version of the click"),
    pytest.param(signed([1, [*TOKENS_CLICK[:4], 10**30], BUYER_IP, "", False]), id="impossible time"),
    pytest.param(signed([1, TOKENS_CLICK]), id="too short"),
    pytest.param(signed("text"), id="no list"),
    pytest.param(signed(None), id="null"),
)


class TestToken:
    """Payment gateways and webhooks bring no cookie; the order does."""

    def test_the_visit_comes_back(self, tracker, sandbox):
        token = arrive(tracker).token()

        visit = tracker.resume(token)

        assert visit.click is not None
        assert (visit.click.transaction_id, visit.click.offer_id, visit.click.aff_id) == ("1234abcd", "1234", "5678")
        assert (visit.client_ip, visit.user_agent) == (BUYER_IP, BUYER_AGENT)
        assert visit.record(make_conversion()).outcome is Outcome.RECORDED
        tracker.drain()
        assert sandbox.collector.accepted[0].fields["client_ip"] == BUYER_IP

    def test_in_another_process_a_year_later(self, make_tracker):
        """The window was checked when the buyer ordered; a webhook may come late."""
        token = arrive(make_tracker()).token()
        later = make_tracker(clock=lambda: time.time() + 365 * 86400)

        assert later.resume(token).record(make_conversion()).outcome is Outcome.RECORDED

    def test_it_fits_a_column_a_form_and_an_address(self, tracker):
        token = arrive(tracker).token()

        assert re.fullmatch("[A-Za-z0-9._-]+", token)
        assert len(token) < 400

    @pytest.mark.parametrize(
        ("changes", "outcome"),
        [
            pytest.param({"query": ""}, Outcome.NO_CLICK, id="without a click"),
            pytest.param({"REMOTE_ADDR": ""}, Outcome.RECORDED, id="without an address"),
            pytest.param({"HTTP_USER_AGENT": "Grüße 😀".encode().decode("latin-1")}, Outcome.RECORDED, id="odd agent"),
        ],
    )
    def test_whatever_is_missing(self, tracker, changes, outcome):
        visit = arrive(tracker, **changes)
        resumed = tracker.resume(visit.token())

        assert (resumed.click is None) == (visit.click is None)
        assert (resumed.client_ip, resumed.user_agent) == (visit.client_ip, visit.user_agent)
        assert resumed.record(make_conversion()).outcome is outcome

    def test_a_refusal_is_remembered(self, make_tracker):
        token = arrive(make_tracker(consent=refuse)).token()

        assert make_tracker().resume(token).record(make_conversion()).outcome is Outcome.NO_CONSENT

    def test_a_token_of_an_old_key_is_read(self, make_tracker):
        token = arrive(make_tracker(secret_key=OLD_SECRET)).token()

        assert make_tracker(secret_key=[OLD_SECRET, SECRET]).resume(token).click is not None

    @pytest.mark.parametrize("token", UNREADABLE)
    def test_what_cannot_be_read_is_a_visit_without_a_click(self, heard, events, token):
        visit = heard().resume(token)

        assert (visit.click, visit.client_ip, visit.user_agent) == (None, None, "")
        assert visit.record(make_conversion()).outcome is Outcome.NO_CLICK
        assert [(event.name, event.level) for event in events] == [("token_unreadable", logging.WARNING)]

    @pytest.mark.parametrize("token", UNREADABLE)
    def test_if_strict_it_raises(self, make_tracker, token):
        with pytest.raises(InvalidToken, match="store it whole"):
            make_tracker(strict=True).resume(token)

    def test_a_cookie_is_no_token(self, tracker):
        cookie = (tracker.set_cookie_for(make_environ(LINK)) or "").partition("=")[2].partition(";")[0]

        assert tracker.resume(cookie).click is None


class TestScriptTag:
    def test_it_is_the_specifications(self, make_tracker):
        tag = make_tracker(endpoint="https://db.revoffers.com/v2/_tr_offline").script_tag()

        assert tag == (f'<script type="text/javascript" src="https://db.revoffers.com/js/{SITE_ID}.js" async></script>')

    def test_a_nonce_is_escaped(self, tracker):
        assert tracker.script_tag(nonce="abc+/=").endswith(' async nonce="abc+/="></script>')
        assert tracker.script_tag(nonce='"><script>alert(1)</script>').count("<script") == 1

    def test_templates_do_not_escape_it_again(self, tracker):
        markupsafe = pytest.importorskip("markupsafe")

        assert markupsafe.escape(tracker.script_tag()) == tracker.script_tag()
        assert type(tracker.script_tag().__html__()) is str

    def test_in_the_sandbox_it_points_to_the_sandbox(self, tracker, sandbox):
        assert f'src="{sandbox.url}js/{SITE_ID}.js"' in tracker.script_tag()


class TestHooks:
    def test_a_hook_hears_the_whole_story(self, heard, events):
        tracker = heard()
        arrive(tracker).record(make_conversion())
        tracker.drain()

        assert names(events) == ["conversion_recorded", "postback_delivered"]
        assert all(event.fields["order_id"] == "1001" for event in events)

    def test_a_hook_that_raises_harms_nobody(self, make_tracker, events, caplog):
        def broken(event: Event) -> None:
            raise RuntimeError("the hook is broken")

        tracker = make_tracker(hooks=[broken, events.append])

        assert arrive(tracker).record(make_conversion()).outcome is Outcome.RECORDED
        assert tracker.drain().settled == 1
        assert names(events) == ["conversion_recorded", "postback_delivered"]
        assert caplog.text.count("katalys_wsgi.hook_failed") == 2
        assert "the hook is broken" in caplog.text

    def test_no_log_and_no_event_tells_who_bought(self, heard, events, caplog, sandbox):
        caplog.set_level(logging.DEBUG)
        tracker = heard()
        visit = arrive(tracker)
        records = [
            visit.record(make_conversion("1001")),
            visit.record(make_conversion("1001")),
            visit.record(make_conversion("1002", sale_amount="ann@example.com", email_address="ann@example.com\n")),
            tracker.record_update(OrderUpdate("1001", email_address="ann@example.com")),
            visit.record("ann@example.com"),
        ]
        sandbox.collector.misbehave(Misbehaviour.status(400, body=b"ann@example.com"), times=1)
        tracker.drain()
        told = caplog.text + str(events) + " ".join(map(str, events)) + repr(records) + repr(tracker)

        assert len(events) >= 5
        assert [value for value in (*PERSONAL, SECRET) if value in told] == []


class TestUnusableOutbox:
    """Disk full, locked, database gone: one direct attempt, and a loud word. A directory stands in for them all."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        (tmp_path / "outbox").mkdir()
        return f"{tmp_path}/outbox"

    def test_the_conversion_is_sent_directly(self, heard, events, sandbox, folder):
        record = arrive(heard(outbox=folder)).record(make_conversion())

        assert record.outcome is Outcome.SENT_DIRECTLY
        assert record.key
        assert "outbox" in record.reason
        (received,) = sandbox.collector.accepted
        assert tuple(received.fields) == TWELVE_KEYS
        (event,) = events
        assert (event.name, event.level) == ("conversion_sent_directly", logging.ERROR)
        assert event.fields["order_id"] == "1001"

    @pytest.mark.parametrize(
        "fail",
        [
            pytest.param(lambda sandbox: sandbox.collector.misbehave(Misbehaviour.status(503)), id="503"),
            pytest.param(lambda sandbox: sandbox.collector.misbehave(Misbehaviour.status(404)), id="404"),
            pytest.param(lambda sandbox: sandbox.stop(), id="refused"),
        ],
    )
    def test_if_katalys_is_gone_as_well_it_is_lost_and_said_so(self, heard, events, sandbox, folder, fail, caplog):
        fail(sandbox)

        record = arrive(heard(outbox=folder)).record(make_conversion())

        assert record.outcome is Outcome.LOST
        (event,) = events
        assert (event.name, event.level, event.fields["order_id"]) == ("conversion_lost", logging.ERROR, "1001")
        assert [value for value in PERSONAL if value in caplog.text + repr(record)] == []

    def test_the_page_waits_two_seconds_at_most(self, make_tracker, sandbox, folder, monkeypatch):
        assert room.DIRECT_DEADLINE == 2.0
        monkeypatch.setattr(room, "DIRECT_DEADLINE", 0.4)
        sandbox.collector.misbehave(Misbehaviour.drip_headers(0.05))
        with Stopwatch() as watch:
            record = arrive(make_tracker(outbox=folder)).record(make_conversion())

        assert record.outcome is Outcome.LOST
        assert watch.seconds < 1.4

    def test_an_update_is_sent_directly_too(self, make_tracker, sandbox, folder):
        tracker = make_tracker(outbox=folder, conversion_type="offline_conv")

        record = tracker.record_update(OrderUpdate("1001", order_status="paid"))

        assert record.outcome is Outcome.SENT_DIRECTLY
        assert sandbox.collector.accepted[0].fields["order_status"] == "paid"

    def test_an_update_whose_order_cannot_be_looked_up_is_lost_and_said_so(self, heard, events, sandbox, folder):
        """Under force_convert it might be an order that is nobody's business."""
        record = heard(outbox=folder).record_update(OrderUpdate("1001", order_status="paid"))

        assert record.outcome is Outcome.LOST
        assert sandbox.collector.received == ()
        assert names(events) == ["conversion_lost"]

    def test_faulty_data_is_not_sent(self, make_tracker, sandbox, folder):
        record = arrive(make_tracker(outbox=folder)).record(make_conversion(sale_amount="12,50"))

        assert record.outcome is Outcome.LOST
        assert record.problems
        assert sandbox.collector.received == ()

    def test_it_works_again_as_soon_as_the_outbox_does(self, make_tracker, sandbox, folder, tmp_path):
        tracker = make_tracker(outbox=folder)
        assert arrive(tracker).record(make_conversion("1001")).outcome is Outcome.SENT_DIRECTLY
        (tmp_path / "outbox").rmdir()

        assert arrive(tracker).record(make_conversion("1002")).outcome is Outcome.RECORDED

    def test_draining_it_is_an_error(self, make_tracker, folder):
        with pytest.raises(OutboxUnavailable):
            make_tracker(outbox=folder).drain()


class Hostile:
    """An order that cannot even be asked for its number."""

    @property
    def order_id(self) -> str:
        raise RuntimeError("no such row: ann@example.com")

    problems = order_id


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


class TestRecordNeverRaises:
    @pytest.mark.parametrize(
        "conversion",
        [
            pytest.param(None, id="none"),
            pytest.param("1001", id="text"),
            pytest.param({"order_id": "1001"}, id="dict"),
            pytest.param(Conversion, id="the class"),
            pytest.param(SimpleNamespace(order_id="1001", problems=list), id="a look-alike"),
            pytest.param(Hostile(), id="hostile"),
        ],
    )
    def test_whatever_is_recorded(self, heard, events, conversion):
        tracker = heard()

        for record in (arrive(tracker).record(conversion), tracker.record_update(conversion)):
            assert record.outcome is Outcome.LOST
            assert "ann@example.com" not in record.reason
        assert set(names(events)) == {"conversion_lost"}
        assert "ann@example.com" not in str(events)

    @pytest.mark.parametrize(
        "strange",
        [object(), Unprintable(), float("nan"), b"\xff", 10**400],
        ids=["object", "unprintable", "nan", "bytes", "huge"],
    )
    @pytest.mark.parametrize("field", ["order_id", "email_address", "sale_amount", "vid", "discounts", "line_items"])
    def test_whatever_stands_in_a_field(self, tracker, field, strange):
        record = arrive(tracker).record(make_conversion(**{field: strange}))

        assert record.outcome in (Outcome.INVALID, Outcome.LOST)

    def test_a_connection_that_the_outbox_cannot_join(self, tracker, make_tracker):
        assert arrive(tracker).record(make_conversion(), connection=object()).outcome is Outcome.LOST
        with pytest.raises(TypeError, match="SQLAlchemy"):
            arrive(make_tracker(strict=True)).record(make_conversion(), connection=object())

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
    def test_whatever_a_visitor_sends(self, tracker, environ):
        record = tracker.visit(environ).record(make_conversion())

        assert record.outcome in (Outcome.RECORDED, Outcome.NO_CLICK)


class TestRequests:
    @pytest.mark.parametrize(
        "wrap",
        [
            pytest.param(lambda environ: environ, id="environ"),
            pytest.param(lambda environ: SimpleNamespace(environ=environ), id="flask, webob, pyramid, bottle"),
            pytest.param(lambda environ: SimpleNamespace(META=environ), id="django"),
        ],
    )
    def test_every_frameworks_request(self, tracker, wrap):
        visit = tracker.visit(wrap(make_environ(LINK)))

        assert visit.click is not None
        assert visit.click.transaction_id == "1234abcd"
        assert (visit.client_ip, visit.user_agent) == (BUYER_IP, BUYER_AGENT)

    @pytest.mark.parametrize("request_", [None, "GET /", object()], ids=["none", "text", "object"])
    def test_anything_else_is_a_mistake_in_the_code(self, tracker, request_):
        with pytest.raises(TypeError, match=r"\.environ or \.META"):
            tracker.visit(request_)

    def test_the_click_is_there_on_the_next_page(self, tracker):
        set_cookie = tracker.set_cookie_for(make_environ(LINK))
        visit = tracker.visit(make_environ(cookie=(set_cookie or "").partition(";")[0]))

        assert visit.click is not None
        assert (visit.click.transaction_id, visit.click.offer_id, visit.click.aff_id) == ("1234abcd", "1234", "5678")

    def test_a_click_expires_with_the_window(self, make_tracker):
        cookie = (make_tracker().set_cookie_for(make_environ(LINK)) or "").partition(";")[0]
        later = make_tracker(attribution_window=timedelta(days=2), clock=lambda: time.time() + 3 * 86400)

        assert later.visit(make_environ(cookie=cookie)).click is None


class TestWarnings:
    """Of a fault in the set-up the log speaks once, not once a request."""

    def test_a_proxy_that_nobody_announced(self, heard, events):
        tracker = heard()
        for _ in range(3):
            arrive(tracker, REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR=BUYER_IP)

        (event,) = events
        assert (event.name, event.level) == ("proxy_ignored", logging.WARNING)
        assert event.fields["header"] == "X-Forwarded-For"
        assert "trusted_proxies" in str(event)

    def test_an_address_that_cannot_be_told(self, heard, events, sandbox):
        tracker = heard(trusted_proxies=2)
        for number in range(3):
            arrive(tracker, HTTP_X_FORWARDED_FOR=BUYER_IP).record(make_conversion(str(number)))
        tracker.drain()

        assert names(events).count("client_ip_unknown") == 1
        assert {received.fields["client_ip"] for received in sandbox.collector.accepted} == {""}


class TestMaking:
    def test_from_a_settings_object(self, options):
        tracker = Tracker(Settings(**options))

        assert tracker.settings == Settings(**options)

    def test_settings_beside_a_settings_object_are_refused(self, options):
        with pytest.raises(ConfigurationError, match="strict"):
            Tracker(Settings(**options), strict=True)

    def test_from_the_environment(self, sandbox, tmp_path):
        environ = {
            "KATALYS_SITE_ID": SITE_ID,
            "KATALYS_SECRET_KEY": f"{OLD_SECRET} {SECRET}",
            "KATALYS_ENDPOINT": sandbox.endpoint,
            "KATALYS_OUTBOX": f"{tmp_path}/outbox.db",
            "KATALYS_DELIVERY": "external",
            "KATALYS_READ_TIMEOUT": "4.5",
            "HOME": "/root",
        }
        tracker = Tracker.from_environ(environ, strict=True)

        assert tracker.settings.secret_key == (OLD_SECRET, SECRET)
        assert tracker.settings.read_timeout == timedelta(seconds=4.5)
        assert tracker.settings.strict is True
        assert arrive(tracker).record(make_conversion()).outcome is Outcome.RECORDED
        assert tracker.drain().settled == 1
        tracker.close()

    def test_options_go_before_the_environment(self, options):
        environ = {"KATALYS_SITE_ID": "KA-OTHER", "KATALYS_WIRE": "form"}
        tracker = Tracker.from_environ(environ, **options)

        assert (tracker.settings.site_id, tracker.settings.wire) == (SITE_ID, "form")

    def test_from_the_processs_own_environment(self, options, monkeypatch, tmp_path):
        monkeypatch.setenv("KATALYS_SITE_ID", SITE_ID)
        monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)
        monkeypatch.setenv("KATALYS_OUTBOX", f"{tmp_path}/outbox.db")

        assert Tracker.from_environ().settings.site_id == SITE_ID

    @pytest.mark.parametrize(
        ("environ", "said"),
        [
            pytest.param({"KATALYS_SITE_ID": SITE_ID}, "KATALYS_SECRET_KEY is missing", id="missing"),
            pytest.param({"KATALYS_SITE_IDD": "x"}, "did you mean KATALYS_SITE_ID?", id="unknown"),
        ],
    )
    def test_faults_are_told_in_the_environments_spelling(self, environ, said):
        with pytest.raises(ConfigurationError, match=re.escape(said)):
            Tracker.from_environ(environ)

    def test_an_outbox_object_is_used_as_it_is(self, make_tracker, tmp_path):
        outbox = SQLiteOutbox(tmp_path / "mine.db")

        assert make_tracker(outbox=outbox).outbox is outbox

    def test_its_repr_shows_no_secret(self, tracker):
        assert SITE_ID in repr(tracker)
        assert SECRET not in repr(tracker)

    def test_making_one_touches_nothing(self, options, tmp_path):
        """Servers fork after loading the shop."""
        threads = threading.active_count()
        Tracker(**{**options, "delivery": "thread"})

        assert list(tmp_path.iterdir()) == []
        assert threading.active_count() == threads


def relays() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "katalys-relay"]


class TestDeliveryThread:
    @pytest.fixture
    def make_threaded(self, make_tracker: MakeTracker) -> Iterator[MakeTracker]:
        made: list[Tracker] = []

        def make(**changes: Any) -> Tracker:
            made.append(make_tracker(delivery="thread", **changes))
            return made[-1]

        yield make
        for tracker in made:
            tracker.close()
        wait_until(
            lambda: not relays()
        )  # one that hung a little longer has opened the outbox again; make_tracker closes it

    def test_a_recorded_conversion_arrives_by_itself(self, make_threaded, sandbox):
        tracker = make_threaded()
        assert relays() == []

        arrive(tracker).record(make_conversion())

        (received,) = sandbox.collector.wait_for(1)
        assert tuple(received.fields) == TWELVE_KEYS
        wait_until(lambda: rows(tracker) == [("conversion", State.DELIVERED)])
        (thread,) = relays()
        assert thread.daemon

    def test_one_thread_for_all_requests(self, make_threaded, sandbox):
        tracker = make_threaded()
        for number in range(5):
            arrive(tracker).record(make_conversion(str(number)))

        assert len(sandbox.collector.wait_for(5)) == 5
        assert len(relays()) == 1

    def test_any_checkout_delivers_what_a_killed_process_left(self, make_tracker, make_threaded, sandbox):
        arrive(make_tracker()).record(make_conversion("left behind"))

        assert arrive(make_threaded(), "").record(make_conversion("1002")).outcome is Outcome.NO_CLICK
        assert sandbox.collector.wait_for(1)[0].fields["order_id"] == "left behind"

    def test_close_stops_it_and_the_next_record_starts_anew(self, make_threaded, sandbox):
        tracker = make_threaded()
        for number in range(1, 4):
            arrive(tracker).record(make_conversion(str(number)))
            sandbox.collector.wait_for(number)
            tracker.close()
            assert relays() == []

    def test_close_finishes_the_row_in_hand(self, make_threaded, sandbox):
        tracker = make_threaded()
        sandbox.collector.misbehave(Misbehaviour.slow(0.3))
        arrive(tracker).record(make_conversion())
        wait_until(lambda: sandbox.collector.received)
        tracker.close()

        assert rows(tracker) == [("conversion", State.DELIVERED)]

    def test_close_waits_no_longer_than_an_attempt_may_last(self, make_threaded, sandbox):
        tracker = make_threaded(deadline=0.6)
        sandbox.collector.misbehave(Misbehaviour.hang())
        arrive(tracker).record(make_conversion())
        wait_until(lambda: sandbox.collector.received)
        with Stopwatch() as watch:
            tracker.close()

        assert watch.seconds < 1.6

    def test_a_page_does_not_wait_for_a_close(self, make_threaded, sandbox):
        """A server that reloads closes the tracker while other threads still answer."""
        tracker = make_threaded(deadline=1.5)
        sandbox.collector.misbehave(Misbehaviour.hang(), times=1)
        arrive(tracker).record(make_conversion("1001"))
        wait_until(lambda: sandbox.collector.received)
        closing = threading.Thread(target=tracker.close)
        closing.start()
        time.sleep(0.1)
        with Stopwatch() as watch:
            record = arrive(tracker).record(make_conversion("1002"))
        closing.join()

        assert record.outcome is Outcome.RECORDED
        assert watch.seconds < 0.7
        wait_until(lambda: "1002" in [received.fields["order_id"] for received in sandbox.collector.accepted])

    def test_a_page_never_waits_for_katalys(self, make_threaded, sandbox):
        tracker = make_threaded(deadline=0.8)
        sandbox.collector.misbehave(Misbehaviour.hang())
        with Stopwatch() as watch:
            for number in range(5):
                arrive(tracker).record(make_conversion(str(number)))

        assert watch.seconds < 0.7

    def test_external_delivery_starts_none(self, tracker, sandbox):
        arrive(tracker).record(make_conversion())

        assert relays() == []
        assert sandbox.collector.received == ()

    def test_a_thread_that_cannot_start_costs_no_sale(self, heard, events, monkeypatch):
        """No more threads, or the interpreter is leaving; the row waits for the next process."""

        def fail(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        tracker = heard(delivery="thread")
        monkeypatch.setattr(threading.Thread, "start", fail)

        assert arrive(tracker).record(make_conversion()).outcome is Outcome.RECORDED
        assert names(events) == ["conversion_recorded", "relay_not_started"]

    def test_where_threads_get_no_turn_it_says_so_once(self, heard, events, monkeypatch):
        """In uWSGI without enable-threads."""
        monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt={"master": True}))
        tracker = heard(delivery="thread")
        for number in range(3):
            arrive(tracker).record(make_conversion(str(number)))

        assert names(events).count("threads_disabled") == 1
        assert relays() == []

    @pytest.mark.parametrize("option", ["enable-threads", b"threads"], ids=str)
    def test_where_uwsgi_lets_threads_run_it_delivers(self, make_threaded, sandbox, monkeypatch, option):
        monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt={option: True}))
        arrive(make_threaded()).record(make_conversion())

        assert len(sandbox.collector.wait_for(1)) == 1

    def test_each_forked_child_delivers_its_own(self, options, sandbox):
        """The parent has used the tracker before, and its thread is not in the child."""
        script = """
            import json, os, sys, time, warnings
            warnings.simplefilter("ignore")  # Python 3.12 warns of a fork with threads, which is the point here
            sys.path.insert(0, sys.argv[2])
            from tests.support import LINK, make_conversion, make_environ
            from katalys_wsgi import Tracker
            tracker = Tracker(**json.loads(sys.argv[1]))
            def sell(order_id):
                assert tracker.visit(make_environ(LINK)).record(make_conversion(order_id)).outcome.value == "recorded"
                deadline = time.monotonic() + 20
                while tracker.outbox.history(order_id)[0].state != "delivered":
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            sell("parent")
            children = []
            for number in range(3):
                child = os.fork()
                if not child:
                    sell(f"child {number}")
                    tracker.close()  # it may hold a row of a sister, which would else wait for the end of the lease
                    os._exit(0)
                children.append(child)
            assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
            sell("parent again")
            tracker.close()
        """
        settings = json.dumps({**options, "delivery": "thread"})
        root = str(Path(__file__).parent.parent)
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), settings, root], check=True, timeout=50, cwd=root
        )

        orders = [received.fields["order_id"] for received in sandbox.collector.accepted]
        assert sorted(orders) == ["child 0", "child 1", "child 2", "parent", "parent again"]


class TestDeliver:
    def test_it_delivers_until_it_is_stopped(self, tracker, sandbox):
        """What ``katalys-wsgi deliver`` does."""
        thread = threading.Thread(target=tracker.deliver)
        thread.start()
        try:
            arrive(tracker).record(make_conversion())
            assert len(sandbox.collector.wait_for(1)) == 1
        finally:
            tracker.stop()
            thread.join(5)

        assert not thread.is_alive()

    def test_a_stop_before_it_began_counts(self, tracker, sandbox):
        """A signal may come while the process is still starting."""
        arrive(tracker).record(make_conversion())
        tracker.stop()
        tracker.deliver()

        assert tracker.drain().settled == 0
        assert sandbox.collector.received == ()


def test_the_sandbox_is_all_that_was_reached(sandbox: Sandbox, tracker: Tracker) -> None:
    """The fixture's endpoint is loopback; the real one is never an accident away."""
    assert tracker.settings.endpoint == sandbox.endpoint
    assert sandbox.endpoint.startswith("http://127.0.0.1:")
