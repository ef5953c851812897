"""The tracker: every setting reaches its part, and delivery begins, stops and closes when the shop says so."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from katalys_wsgi import (
    ClickMiddleware,
    ConfigurationError,
    Event,
    InvalidToken,
    MiddlewareMissing,
    OutboxUnavailable,
    Outcome,
    Record,
    Settings,
    Tracker,
    Visit,
)
from katalys_wsgi.delivery.relay import Drained
from katalys_wsgi.outbox import State
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox
from katalys_wsgi.visit import TRACKER

from .support import (
    BUYER_AGENT,
    BUYER_IP,
    LINK,
    OLD_SECRET,
    RECORDED_KEYS,
    SECRET,
    SITE_ID,
    Clock,
    MakeTracker,
    Stopwatch,
    arrive,
    make_conversion,
    make_environ,
    names,
    refuse,
    rows,
    wait_until,
)

#: The folder that holds the tests' package, for processes of their own.
ROOT = str(Path(__file__).parent.parent)


def ids(visit: Visit) -> tuple[str | None, ...]:
    """The three ids of the visit's click; empty without one."""
    click = visit.click
    return (click.transaction_id, click.offer_id, click.aff_id) if click else ()


def cookie_after(tracker: Tracker, query: str = LINK, **changes: Any) -> str:
    """The Cookie header of the browser that came through the link; empty when no cookie was set."""
    set_cookie = tracker.set_cookie_for(make_environ(query, **changes))
    return (set_cookie or "").partition(";")[0]


class TestMaking:
    def test_from_a_settings_object(self, options: dict[str, Any]) -> None:
        tracker = Tracker(Settings(**options))

        assert tracker.settings == Settings(**options)

    def test_settings_beside_a_settings_object_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match="strict="):
            Tracker(Settings(**options), strict=True)

    def test_from_the_environment(self, sandbox: Sandbox, tmp_path: Path) -> None:
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

    def test_options_go_before_the_environment(self, options: dict[str, Any]) -> None:
        environ = {"KATALYS_SITE_ID": "KA-OTHER", "KATALYS_WIRE": "form"}
        tracker = Tracker.from_environ(environ, **options)

        assert (tracker.settings.site_id, tracker.settings.wire) == (SITE_ID, "form")

    def test_from_the_processs_own_environment(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("KATALYS_SITE_ID", SITE_ID)
        monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)
        monkeypatch.setenv("KATALYS_OUTBOX", f"{tmp_path}/outbox.db")

        assert Tracker.from_environ().settings.site_id == SITE_ID

    def test_hooks_and_a_clock_beside_the_environment(self, options: dict[str, Any]) -> None:
        events: list[Event] = []
        clock = Clock()
        tracker = Tracker.from_environ({}, hooks=[events.append], clock=clock, **options)
        visit = arrive(tracker)
        visit.record(make_conversion())

        assert names(events) == ["conversion_recorded"]
        assert visit.click is not None
        assert visit.click.clicked_at == clock.time
        tracker.close()

    @pytest.mark.parametrize(
        ("environ", "message"),
        [
            pytest.param({"KATALYS_SITE_ID": SITE_ID}, "KATALYS_SECRET_KEY is missing", id="missing"),
            pytest.param({"KATALYS_SITE_IDD": "x"}, "did you mean KATALYS_SITE_ID?", id="unknown"),
        ],
    )
    def test_problems_are_reported_in_the_environments_spelling(self, environ: dict[str, str], message: str) -> None:
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            Tracker.from_environ(environ)

    def test_an_outbox_object_is_used_as_it_is(self, make_tracker: MakeTracker, tmp_path: Path) -> None:
        outbox = SQLiteOutbox(tmp_path / "mine.db")

        assert make_tracker(outbox=outbox).outbox is outbox

    def test_its_repr_shows_no_secret(self, tracker: Tracker) -> None:
        assert SITE_ID in repr(tracker)
        assert SECRET not in repr(tracker)

    def test_making_one_touches_nothing(self, options: dict[str, Any], tmp_path: Path) -> None:
        """Servers fork after loading the shop."""
        threads = threading.active_count()
        Tracker(**{**options, "delivery": "thread"})

        assert list(tmp_path.iterdir()) == []
        assert threading.active_count() == threads


class TestRequests:
    @pytest.mark.parametrize(
        "wrap",
        [
            pytest.param(lambda environ: environ, id="environ"),
            pytest.param(lambda environ: SimpleNamespace(environ=environ), id="flask, webob, pyramid, bottle"),
            pytest.param(lambda environ: SimpleNamespace(META=environ), id="django"),
        ],
    )
    def test_every_frameworks_request(self, tracker: Tracker, wrap: Callable[[dict[str, Any]], object]) -> None:
        visit = tracker.visit(wrap(make_environ(LINK)))

        assert ids(visit) == ("1234abcd", "1234", "5678")
        assert (visit.client_ip, visit.user_agent) == (BUYER_IP, BUYER_AGENT)

    @pytest.mark.parametrize("request_", [None, "GET /", object()], ids=["none", "string", "object"])
    def test_anything_else_is_a_mistake_in_the_code(self, tracker: Tracker, request_: object) -> None:
        with pytest.raises(TypeError, match=r"\.environ or \.META"):
            tracker.visit(request_)

    def test_the_click_is_there_on_the_next_page(self, tracker: Tracker) -> None:
        visit = tracker.visit(make_environ(cookie=cookie_after(tracker)))

        assert ids(visit) == ("1234abcd", "1234", "5678")


class TestSettingsOfAVisit:
    """Each setting of attribution reaches the part that keeps it; what it means is tested there."""

    def test_secret_key(self, make_tracker: MakeTracker) -> None:
        old, rotated = make_tracker(secret_key=OLD_SECRET), make_tracker(secret_key=[OLD_SECRET, SECRET])

        assert rotated.visit(make_environ(cookie=cookie_after(old))).click is not None
        assert make_tracker().visit(make_environ(cookie=cookie_after(rotated))).click is not None
        assert make_tracker().visit(make_environ(cookie=cookie_after(old))).click is None

    def test_attribution_window(self, make_tracker: MakeTracker) -> None:
        clock = Clock()
        tracker = make_tracker(attribution_window=timedelta(days=2), clock=clock)
        cookie = cookie_after(tracker)
        clock.advance(timedelta(days=2))
        assert tracker.visit(make_environ(cookie=cookie)).click is not None

        clock.advance(1)

        assert tracker.visit(make_environ(cookie=cookie)).click is None

    @pytest.mark.parametrize(("attribution", "winner"), [("last-click", "second"), ("first-click", "first")])
    def test_attribution(self, make_tracker: MakeTracker, attribution: str, winner: str) -> None:
        tracker = make_tracker(attribution=attribution)
        cookie = cookie_after(tracker, "utm_source=Katalys&transaction_id=first")

        visit = arrive(tracker, "utm_source=Katalys&transaction_id=second", cookie=cookie)

        assert ids(visit) == (winner, None, None)

    def test_sources(self, make_tracker: MakeTracker) -> None:
        tracker = make_tracker(sources=["acme"])

        assert arrive(tracker).click is None
        assert arrive(tracker, "utm_source=Acme&transaction_id=1").click is not None

    def test_the_cookies_name_domain_and_age(self, make_tracker: MakeTracker) -> None:
        tracker = make_tracker(cookie_name="aff", cookie_domain="shop.example", attribution_window=3600)
        set_cookie = tracker.set_cookie_for(make_environ(LINK))

        assert set_cookie is not None
        assert set_cookie.startswith("aff=")
        assert {"Domain=shop.example", "Max-Age=3600"} <= {part.strip() for part in set_cookie.split(";")}

    @pytest.mark.parametrize(
        ("setting", "scheme", "secure"),
        [("auto", "http", False), ("auto", "https", True), (True, "http", True), (False, "https", False)],
    )
    def test_cookie_secure(self, make_tracker: MakeTracker, setting: bool | str, scheme: str, secure: bool) -> None:
        environ = make_environ(LINK, **{"wsgi.url_scheme": scheme})
        set_cookie = make_tracker(cookie_secure=setting).set_cookie_for(environ)

        assert ("; secure" in (set_cookie or "").lower()) is secure

    def test_cookie_removal(self, make_tracker: MakeTracker) -> None:
        """For a shopper who withdraws consent."""
        tracker = make_tracker(cookie_name="aff", cookie_domain="shop.example")
        over_tls = tracker.cookie_removal(make_environ(**{"wsgi.url_scheme": "https"}))

        assert tracker.cookie_removal() == "aff=; Domain=shop.example; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"
        assert over_tls == "aff=; Domain=shop.example; Path=/; secure; HttpOnly; SameSite=Lax; Max-Age=0"

    def test_trusted_proxies(self, make_tracker: MakeTracker) -> None:
        behind = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": BUYER_IP}

        assert arrive(make_tracker(), **behind).client_ip == "10.0.0.1"
        assert arrive(make_tracker(trusted_proxies=1), **behind).client_ip == BUYER_IP

    def test_a_proxy_that_nobody_announced_is_logged_once(
        self, make_observed: MakeTracker, events: list[Event]
    ) -> None:
        """Once, not once a request: it is the set-up that is wrong."""
        tracker = make_observed()
        for _ in range(3):
            arrive(tracker, REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR=BUYER_IP)

        (event,) = events
        assert (event.name, event.level) == ("proxy_ignored", logging.WARNING)
        assert event.fields["header"] == "X-Forwarded-For"
        assert "trusted_proxies" in str(event)

    def test_a_cookie_that_cannot_be_read_is_an_event(self, make_observed: MakeTracker, events: list[Event]) -> None:
        assert arrive(make_observed(), "", cookie="katalys_click=nonsense").click is None
        assert names(events) == ["cookie_unreadable"]


class TestConsent:
    def test_a_refusal_hides_the_click_and_sets_no_cookie(self, make_tracker: MakeTracker) -> None:
        tracker = make_tracker(consent=refuse)

        assert arrive(tracker).click is None
        assert cookie_after(tracker) == ""

    def test_who_consented_is_tracked(self, make_tracker: MakeTracker) -> None:
        tracker = make_tracker(consent=lambda environ: environ["HTTP_COOKIE"] == "consent=yes")

        assert arrive(tracker, cookie="consent=yes").record(make_conversion()).outcome is Outcome.RECORDED
        assert arrive(tracker, cookie="consent=no").record(make_conversion("1002")).outcome is Outcome.NO_CONSENT

    def test_a_function_that_fails_is_a_no(self, make_observed: MakeTracker, events: list[Event]) -> None:
        def consent(environ: dict[str, Any]) -> bool:
            raise ValueError("ann@example.com")

        assert arrive(make_observed(consent=consent)).record(make_conversion()).outcome is Outcome.NO_CONSENT
        assert ("consent_failed", logging.ERROR) in [(event.name, event.level) for event in events]
        assert "ann@example.com" not in str(events)

    def test_who_came_by_themselves_is_not_asked(self, make_tracker: MakeTracker) -> None:
        asked: list[object] = []

        def consent(environ: dict[str, Any]) -> bool:
            asked.append(environ)
            return True

        tracker = make_tracker(consent=consent)
        tracker.visit(make_environ())
        tracker.set_cookie_for(make_environ("color=red"))

        assert asked == []

    def test_offline_conv_asks_everybody(self, make_tracker: MakeTracker) -> None:
        """Every order is reported, so every buyer has a say."""
        tracker = make_tracker(conversion_type="offline_conv", consent=refuse)

        assert arrive(tracker, "").record(make_conversion()).outcome is Outcome.NO_CONSENT


#: What a webhook may bring in place of a token; test_token.py has more that is signed, and wrong.
UNREADABLE = [
    pytest.param(None, id="none"),
    pytest.param("", id="empty"),
    pytest.param(b"bytes", id="bytes"),
    pytest.param(5, id="number"),
    pytest.param("nonsense", id="nonsense"),
    pytest.param("\ud800", id="lone surrogate"),
    pytest.param("x" * 100_000, id="long"),
]


class TestResume:
    """Payment gateways and webhooks bring no cookie; the order does. See also test_visit.py."""

    def test_the_sale_is_reported_as_the_shoppers_own_request_would(self, tracker: Tracker, sandbox: Sandbox) -> None:
        visit = tracker.resume(arrive(tracker).token())

        assert ids(visit) == ("1234abcd", "1234", "5678")
        assert (visit.client_ip, visit.user_agent) == (BUYER_IP, BUYER_AGENT)
        assert visit.record(make_conversion()).outcome is Outcome.RECORDED
        tracker.drain()
        assert sandbox.collector.accepted[0].fields["client_ip"] == BUYER_IP

    def test_in_another_process_a_year_later(self, make_tracker: MakeTracker) -> None:
        """The window was checked when the buyer ordered; a webhook may come late."""
        clock = Clock()
        token = arrive(make_tracker(clock=clock)).token()
        clock.advance(timedelta(days=365))

        assert make_tracker(clock=clock).resume(token).record(make_conversion()).outcome is Outcome.RECORDED

    def test_a_token_of_an_old_key_is_read(self, make_tracker: MakeTracker) -> None:
        token = arrive(make_tracker(secret_key=OLD_SECRET)).token()

        assert make_tracker(secret_key=[OLD_SECRET, SECRET]).resume(token).click is not None

    @pytest.mark.parametrize("token", UNREADABLE)
    def test_what_cannot_be_read_is_a_visit_without_a_click(
        self, make_observed: MakeTracker, events: list[Event], token: Any
    ) -> None:
        visit = make_observed().resume(token)

        assert (visit.click, visit.client_ip, visit.user_agent) == (None, None, "")
        assert visit.record(make_conversion()).outcome is Outcome.NO_CLICK
        assert [(event.name, event.level) for event in events] == [("token_unreadable", logging.WARNING)]

    @pytest.mark.parametrize("token", UNREADABLE)
    def test_if_strict_it_raises(self, make_tracker: MakeTracker, token: Any) -> None:
        with pytest.raises(InvalidToken, match="store it whole"):
            make_tracker(strict=True).resume(token)

    def test_a_cookie_is_not_a_token(self, tracker: Tracker) -> None:
        assert tracker.resume(cookie_after(tracker).partition("=")[2]).click is None


def test_the_script_tag_is_for_this_site_at_this_endpoint(tracker: Tracker, sandbox: Sandbox) -> None:
    assert f'src="{sandbox.url}js/{SITE_ID}.js" async>' in tracker.script_tag()
    assert ' nonce="abc">' in tracker.script_tag(nonce="abc")


class TestHooks:
    def test_a_hook_hears_the_whole_story(self, make_observed: MakeTracker, events: list[Event]) -> None:
        tracker = make_observed()
        arrive(tracker).record(make_conversion())
        tracker.drain()

        assert names(events) == ["conversion_recorded", "postback_delivered"]
        assert {event.fields["order_id"] for event in events if event.name != "tracker_started"} == {"1001"}

    def test_a_hook_that_raises_harms_nothing(
        self, make_tracker: MakeTracker, events: list[Event], caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(event: Event) -> None:
            raise RuntimeError("the hook is broken")

        tracker = make_tracker(hooks=[broken, events.append])

        assert arrive(tracker).record(make_conversion()).outcome is Outcome.RECORDED
        assert tracker.drain().settled == 1
        assert names(events) == ["conversion_recorded", "postback_delivered"]
        assert caplog.text.count("katalys_wsgi.hook_failed") == 3
        assert "the hook is broken" in caplog.text


def record_three(tracker: Tracker) -> None:
    for order_id in ("1001", "1002", "1003"):
        assert arrive(tracker).record(make_conversion(order_id)).outcome is Outcome.RECORDED


def states(tracker: Tracker) -> list[State]:
    """The states of the rows of ``record_three``."""
    return [tracker.outbox.history(order_id)[0].state for order_id in ("1001", "1002", "1003")]


class TestDrain:
    @pytest.mark.parametrize("at_most", [None, 30, 30.0, timedelta(seconds=30)], ids=repr)
    def test_it_delivers_what_is_due(self, tracker: Tracker, at_most: timedelta | float | None) -> None:
        record_three(tracker)

        assert tracker.drain(at_most) == Drained(settled=3)
        assert tracker.drain(at_most) == Drained()

    @pytest.mark.parametrize("at_most", [0, 0.0, timedelta(0)], ids=repr)
    def test_at_most_zero_begins_no_row(self, tracker: Tracker, sandbox: Sandbox, at_most: timedelta | float) -> None:
        """0 is no time at all, never the default."""
        record_three(tracker)

        assert tracker.drain(at_most) == Drained()
        assert sandbox.collector.received == ()
        assert [entry.attempts for entry in tracker.outbox.history("1001")] == [0]
        assert tracker.drain().settled == 3

    @pytest.mark.parametrize("at_most", [0.4, timedelta(seconds=0.4)], ids=repr)
    def test_after_at_most_it_begins_no_further_row(
        self, make_tracker: MakeTracker, sandbox: Sandbox, at_most: timedelta | float
    ) -> None:
        tracker = make_tracker(delivery_workers=1)
        record_three(tracker)
        sandbox.collector.misbehave(Misbehaviour.slow(0.6))

        assert tracker.drain(at_most) == Drained(settled=1)
        assert states(tracker) == [State.DELIVERED, State.PENDING, State.PENDING]

    def test_what_fails_and_what_is_refused_is_counted(self, tracker: Tracker, sandbox: Sandbox) -> None:
        arrive(tracker).record(make_conversion("1001"))
        sandbox.collector.misbehave(Misbehaviour.status(503), times=1)
        assert tracker.drain() == Drained(postponed=1)

        arrive(tracker).record(make_conversion("1002"))
        sandbox.collector.misbehave(Misbehaviour.status(400), times=1)

        assert tracker.drain(5) == Drained(buried=1)

    def test_the_settings_and_the_clock_reach_the_relay(self, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
        """The row is a day old by the tracker's clock, not by the machine's."""
        clock = Clock(1_000_000_000.0)
        tracker = make_tracker(clock=clock, give_up_after=timedelta(days=1))
        arrive(tracker).record(make_conversion())
        sandbox.collector.misbehave(Misbehaviour.status(503))
        assert tracker.drain() == Drained(postponed=1)

        clock.advance(timedelta(days=1))

        assert tracker.drain() == Drained(buried=1)
        assert tracker.outbox.history("1001")[0].finished_at == clock.now

    def test_an_outbox_that_cannot_be_read_is_an_error(self, make_tracker: MakeTracker, tmp_path: Path) -> None:
        with pytest.raises(OutboxUnavailable):
            make_tracker(outbox=f"{tmp_path}").drain()


MakeThread = Callable[[Tracker], threading.Thread]


@pytest.fixture
def deliver() -> Iterator[MakeThread]:
    """Calls ``deliver()`` of a tracker in a thread of its own, which ends with the test."""
    started: list[tuple[Tracker, threading.Thread]] = []

    def start(tracker: Tracker) -> threading.Thread:
        thread = threading.Thread(target=tracker.deliver, daemon=True)
        started.append((tracker, thread))
        thread.start()
        return thread

    yield start
    for tracker, thread in started:
        tracker.stop()
        thread.join(10)
        assert not thread.is_alive()


class TestDeliver:
    """What ``katalys-wsgi deliver`` does."""

    def test_it_delivers_until_it_is_stopped_from_another_thread(
        self, tracker: Tracker, sandbox: Sandbox, deliver: MakeThread, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("katalys_wsgi.delivery.relay.POLL", 0.05)
        thread = deliver(tracker)
        for number in (1, 2):
            arrive(tracker).record(make_conversion(str(number)))
            assert len(sandbox.collector.wait_for(number)) == number
        assert thread.is_alive()

        tracker.stop()

        thread.join(1.5)
        assert not thread.is_alive()

    def test_stop_does_not_wait_for_the_next_look(
        self, tracker: Tracker, sandbox: Sandbox, deliver: MakeThread, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("katalys_wsgi.delivery.relay.POLL", 60.0)
        arrive(tracker).record(make_conversion())
        thread = deliver(tracker)
        sandbox.collector.wait_for(1)

        tracker.stop()

        thread.join(5)
        assert not thread.is_alive()

    def test_stop_finishes_the_rows_in_progress_and_begins_no_other(
        self, make_tracker: MakeTracker, sandbox: Sandbox, deliver: MakeThread
    ) -> None:
        tracker = make_tracker(delivery_workers=1)
        record_three(tracker)
        sandbox.collector.misbehave(Misbehaviour.slow(0.3))
        thread = deliver(tracker)
        wait_until(lambda: sandbox.collector.received)

        tracker.stop()

        thread.join(5)
        assert states(tracker) == [State.DELIVERED, State.PENDING, State.PENDING]

    def test_stop_ends_a_drain_too(self, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_tracker(delivery_workers=1)
        record_three(tracker)
        sandbox.collector.misbehave(Misbehaviour.slow(0.3))
        drained: list[Drained] = []
        thread = threading.Thread(target=lambda: drained.append(tracker.drain()), daemon=True)
        thread.start()
        wait_until(lambda: sandbox.collector.received)

        tracker.stop()

        thread.join(5)
        assert drained == [Drained(settled=1)]

    @pytest.mark.parametrize("used_before", [False, True])
    def test_stopped_before_it_returns_at_once(self, tracker: Tracker, sandbox: Sandbox, used_before: bool) -> None:
        """The signal may arrive before the loop does."""
        if used_before:
            tracker.drain()
        record_three(tracker)
        tracker.stop()
        with Stopwatch() as watch:
            tracker.deliver()
            drained = tracker.drain()

        assert watch.seconds < 1.5
        assert drained == Drained()
        assert sandbox.collector.received == ()

    def test_after_stop_recording_goes_on(self, tracker: Tracker) -> None:
        tracker.stop()

        assert arrive(tracker).record(make_conversion()).outcome is Outcome.RECORDED

    def test_after_close_everything_works_again(self, tracker: Tracker, sandbox: Sandbox, deliver: MakeThread) -> None:
        tracker.stop()
        tracker.close()

        arrive(tracker).record(make_conversion("1001"))
        assert tracker.drain() == Drained(settled=1)
        arrive(tracker).record(make_conversion("1002"))
        thread = deliver(tracker)
        assert len(sandbox.collector.wait_for(2)) == 2
        assert thread.is_alive()

    def test_a_child_of_a_stopped_process_delivers(self, tracker: Tracker, options: dict[str, Any]) -> None:
        script = """
            import json, os, sys
            from katalys_wsgi import Tracker
            tracker = Tracker(**json.loads(sys.argv[1]))
            tracker.stop()
            if os.fork() == 0:
                print(tracker.drain().settled, flush=True)
                os._exit(0)
            status = os.wait()[1]
            print(status, tracker.drain().settled)
        """
        record_three(tracker)
        child = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script), json.dumps(options)],
            check=True, timeout=20, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip

        assert child.stdout.splitlines() == ["3", "0 0"]

    def test_close_ends_it_in_another_thread(self, tracker: Tracker, sandbox: Sandbox, deliver: MakeThread) -> None:
        arrive(tracker).record(make_conversion())
        thread = deliver(tracker)
        sandbox.collector.wait_for(1)

        tracker.close()

        thread.join(5)
        assert not thread.is_alive()

    @pytest.mark.parametrize("moment", ["delivering", "before"])
    def test_a_signal_handler_may_stop_it(
        self, make_tracker: MakeTracker, options: dict[str, Any], sandbox: Sandbox, moment: str
    ) -> None:
        """A process manager sends SIGTERM: the row in progress is finished, and the others are left."""
        script = """
            import json, os, signal, sys
            from katalys_wsgi import Tracker
            tracker = Tracker(**json.loads(sys.argv[1]))
            signal.signal(signal.SIGTERM, lambda *_: tracker.stop())
            if sys.argv[2] == "before":
                os.kill(os.getpid(), signal.SIGTERM)
            tracker.deliver()
            tracker.close()
            print("closed")
        """
        settings = {**options, "delivery_workers": 1}
        tracker = make_tracker()
        record_three(tracker)
        sandbox.collector.misbehave(Misbehaviour.slow(0.5))
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script), json.dumps(settings), moment],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        ) as child:  # fmt: skip
            if moment == "delivering":
                wait_until(lambda: sandbox.collector.received, seconds=20)
                child.send_signal(signal.SIGTERM)
            try:
                output = child.communicate(timeout=20)
            finally:
                child.kill()

        assert (*output, child.returncode) == ("closed\n", "", 0)
        first = State.DELIVERED if moment == "delivering" else State.PENDING
        assert states(tracker) == [first, State.PENDING, State.PENDING]
        assert len(sandbox.collector.received) == (moment == "delivering")


def relays() -> list[threading.Thread]:
    """The relay threads of this process."""
    return [thread for thread in threading.enumerate() if thread.name == "katalys-relay"]


def test_an_unusual_tracking_id_is_warned_of_once(make_observed: MakeTracker, events: list[Event]) -> None:
    tracker = make_observed(site_id="1234567")
    for _ in range(2):
        tracker.first_request()
        tracker.drain()

    assert [(event.level, event.fields["site_id"]) for event in events if event.name == "site_id_unusual"] == [
        (logging.WARNING, "1234567")
    ]


class TestDeliveryThread:
    """``delivery=thread``: what a page starts and what ``close()`` ends; the thread itself has test_background.py."""

    @pytest.fixture
    def make_threaded(self, make_tracker: MakeTracker) -> Iterator[MakeTracker]:
        made: list[Tracker] = []

        def make(**changes: Any) -> Tracker:
            made.append(make_tracker(delivery="thread", **changes))
            return made[-1]

        yield make
        for tracker in made:
            tracker.close()
        # One that hung a little longer has opened the outbox again; make_tracker closes it.
        wait_until(lambda: not relays(), "the end of every relay")

    def test_a_recorded_conversion_arrives_by_itself(self, make_threaded: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_threaded()
        assert relays() == []

        arrive(tracker).record(make_conversion())

        (received,) = sandbox.collector.wait_for(1)
        assert tuple(received.fields) == RECORDED_KEYS
        wait_until(lambda: rows(tracker) == [("conversion", State.DELIVERED)])
        (thread,) = relays()
        assert thread.daemon

    def test_so_does_what_was_deferred_when_it_is_written(self, make_threaded: MakeTracker, sandbox: Sandbox) -> None:
        waiting: list[Callable[[], Record]] = []
        make_threaded().visit(make_environ(LINK), defer=waiting.append).record(make_conversion())
        for commit in waiting:
            commit()

        assert len(sandbox.collector.wait_for(1)) == 1

    def test_one_thread_for_all_requests(self, make_threaded: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_threaded()
        for number in range(5):
            arrive(tracker).record(make_conversion(str(number)))

        assert len(sandbox.collector.wait_for(5)) == 5
        assert len(relays()) == 1

    def test_any_checkout_delivers_what_a_killed_process_left(
        self, make_tracker: MakeTracker, make_threaded: MakeTracker, sandbox: Sandbox
    ) -> None:
        arrive(make_tracker()).record(make_conversion("left behind"))

        assert arrive(make_threaded(), "").record(make_conversion("1002")).outcome is Outcome.NO_CLICK
        assert sandbox.collector.wait_for(1)[0].fields["order_id"] == "left behind"

    def test_close_stops_it_and_the_next_record_starts_anew(self, make_threaded: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_threaded()
        for number in range(1, 4):
            arrive(tracker).record(make_conversion(str(number)))
            sandbox.collector.wait_for(number)
            tracker.close()
            assert relays() == []

    def test_close_finishes_the_row_in_progress(self, make_threaded: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_threaded()
        sandbox.collector.misbehave(Misbehaviour.slow(0.3))
        arrive(tracker).record(make_conversion())
        wait_until(lambda: sandbox.collector.received)
        tracker.close()

        assert rows(tracker) == [("conversion", State.DELIVERED)]

    def test_close_waits_no_longer_than_an_attempt_may_last(self, make_threaded: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_threaded(deadline=0.6)
        sandbox.collector.misbehave(Misbehaviour.hang())
        arrive(tracker).record(make_conversion())
        wait_until(lambda: sandbox.collector.received)
        with Stopwatch() as watch:
            tracker.close()

        assert watch.seconds < 1.6

    def test_a_page_does_not_wait_for_a_close(self, make_threaded: MakeTracker, sandbox: Sandbox) -> None:
        """A server that reloads closes the tracker while other threads still answer."""
        tracker = make_threaded(deadline=1.5)
        sandbox.collector.misbehave(Misbehaviour.hang(), times=1)
        arrive(tracker).record(make_conversion("1001"))
        wait_until(lambda: sandbox.collector.received)
        closing = threading.Thread(target=tracker.close, daemon=True)
        closing.start()
        time.sleep(0.1)
        with Stopwatch() as watch:
            record = arrive(tracker).record(make_conversion("1002"))
        closing.join()

        assert record.outcome is Outcome.RECORDED
        assert watch.seconds < 0.7
        wait_until(lambda: "1002" in [received.fields["order_id"] for received in sandbox.collector.accepted])

    def test_a_page_never_waits_for_katalys(self, make_threaded: MakeTracker, sandbox: Sandbox) -> None:
        tracker = make_threaded(deadline=0.8)
        sandbox.collector.misbehave(Misbehaviour.hang())
        with Stopwatch() as watch:
            for number in range(5):
                arrive(tracker).record(make_conversion(str(number)))

        assert watch.seconds < 0.7

    def test_external_delivery_starts_none(self, tracker: Tracker, sandbox: Sandbox) -> None:
        arrive(tracker).record(make_conversion())

        assert relays() == []
        assert sandbox.collector.received == ()

    def test_a_thread_that_cannot_start_costs_no_sale(
        self, make_observed: MakeTracker, events: list[Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No more threads, or the interpreter is leaving; the row waits for the next process."""

        def fail(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        tracker = make_observed(delivery="thread")
        monkeypatch.setattr(threading.Thread, "start", fail)

        assert arrive(tracker).record(make_conversion()).outcome is Outcome.RECORDED
        assert names(events) == ["conversion_recorded", "relay_not_started"]

    def test_each_forked_child_delivers_its_own(self, options: dict[str, Any], sandbox: Sandbox) -> None:
        """The parent has used the tracker before, and its thread is not in the child."""
        script = """
            import json, os, sys, time, warnings
            warnings.simplefilter("ignore")  # Python 3.12 warns of a fork with threads, which is the point here
            from tests.support import arrive, make_conversion, wait_until
            from katalys_wsgi import Tracker
            tracker = Tracker(**json.loads(sys.argv[1]))
            def sell(order_id):
                assert arrive(tracker).record(make_conversion(order_id)).outcome.value == "recorded"
                history = tracker.outbox.history
                wait_until(lambda: history(order_id)[0].state.value == "delivered", "delivery", seconds=20)
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
        subprocess.run([sys.executable, "-c", textwrap.dedent(script), settings], check=True, timeout=50, cwd=ROOT)

        orders = [received.fields["order_id"] for received in sandbox.collector.accepted]
        assert sorted(orders) == ["child 0", "child 1", "child 2", "parent", "parent again"]


def test_the_sandbox_is_all_that_is_reached(sandbox: Sandbox, tracker: Tracker) -> None:
    """The fixture's endpoint is loopback; the real one is never an accident away."""
    assert tracker.settings.endpoint == sandbox.endpoint
    assert sandbox.endpoint.startswith("http://127.0.0.1:")


class TestForgottenMiddleware:
    """It must not look like a shop without affiliates."""

    def unseen(self, query: str = LINK) -> dict[str, Any]:
        environ = make_environ(query)
        del environ[TRACKER]
        return environ

    def test_it_is_logged_once_at_error(
        self, make_observed: MakeTracker, events: list[Event], caplog: pytest.LogCaptureFixture
    ) -> None:
        tracker = make_observed()
        for _ in range(3):
            tracker.visit(self.unseen())

        assert names(events) == ["middleware_missing"]
        (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert "ClickMiddleware" in line.getMessage()

    def test_if_strict_it_raises(self, make_tracker: MakeTracker) -> None:
        with pytest.raises(MiddlewareMissing, match="middleware"):
            make_tracker(strict=True).visit(self.unseen())
        with pytest.raises(RuntimeError, match="ClickMiddleware"):
            make_tracker().visit(self.unseen(), strict=True)
        make_tracker(strict=True).visit(self.unseen(), strict=False)

    def test_a_sale_without_a_click_says_so_in_its_reason(self, tracker: Tracker) -> None:
        record = tracker.visit(self.unseen("")).record(make_conversion())

        assert record.outcome is Outcome.NO_CLICK
        assert "no ClickMiddleware has seen this request" in record.reason
        assert "Middleware" not in arrive(tracker, "").record(make_conversion()).reason

    def test_a_click_in_the_query_counts_all_the_same(self, tracker: Tracker) -> None:
        assert tracker.visit(self.unseen()).record(make_conversion()).outcome is Outcome.RECORDED

    def test_behind_the_middleware_nothing_is_missing(self, make_observed: MakeTracker, events: list[Event]) -> None:
        tracker = make_observed(strict=True)
        environ = self.unseen()

        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            tracker.visit(environ)
            start_response("200 OK", [])
            return []

        ClickMiddleware(app, tracker)(environ, lambda *_: lambda _: None)

        assert names(events) == []
        assert environ["katalys_wsgi.tracker"] is tracker
