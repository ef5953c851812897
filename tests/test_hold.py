"""The hold: nothing leaves this machine by accident, and everything does once the shop is live."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from katalys_wsgi import Event, Outcome, Tracker
from katalys_wsgi.delivery.hold import Hold
from katalys_wsgi.outbox import State
from katalys_wsgi.outbox.memory import MemoryOutbox
from katalys_wsgi.sandbox import Sandbox

from .support import SECRET, SITE_ID, arrive, make_conversion, make_settings, names, wait_until

ROOT = Path(__file__).parent.parent

#: Of the reserved top level domain: it has no address, and conftest's guard fails a test that looks for one.
ELSEWHERE = "https://collector.invalid/v2/_tr_offline"


def hold(live: bool | Literal["auto"] = "auto", endpoint: str = ELSEWHERE) -> Hold:
    return Hold(make_settings(live=live, endpoint=endpoint))


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:8640/", "http://localhost/", "http://[::1]:1/", "https://127.0.0.9/"]
)
@pytest.mark.parametrize("live", [True, False, "auto"])
def test_an_endpoint_on_this_machine_is_always_served(endpoint: str, live: bool | Literal["auto"]) -> None:
    assert hold(live, endpoint)() is None


def test_live_true_sends_even_under_a_test() -> None:
    assert hold(live=True)() is None


def test_live_false_never_sends() -> None:
    assert hold(live=False)() == "live is false"


def test_auto_holds_while_pytest_runs_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    held = hold()
    assert held() == "pytest runs a test"

    monkeypatch.delenv("PYTEST_CURRENT_TEST")

    assert held() is None


def test_auto_holds_for_the_reason_that_an_adapter_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked each time: a test suite sets app.testing long after the application was made."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    reasons: list[str] = []
    held = hold()
    held.add(lambda: reasons[-1] if reasons else None)
    assert held() is None

    reasons.append("Flask's TESTING")

    assert held() == "Flask's TESTING"


@pytest.fixture
def held_tracker(make_observed: Callable[..., Tracker]) -> Tracker:
    """A tracker with Katalys elsewhere, under pytest: nothing leaves the machine."""
    return make_observed(endpoint=ELSEWHERE)


class TestDelivery:
    def test_held_rows_stay_and_one_line_says_why_and_how(
        self, held_tracker: Tracker, events: list[Event], caplog: pytest.LogCaptureFixture
    ) -> None:
        for number in range(3):
            assert arrive(held_tracker).record(make_conversion(str(number))).outcome is Outcome.RECORDED
            assert held_tracker.drain().settled == 0

        (line,) = [record for record in caplog.records if "delivery_held" in record.getMessage()]
        assert line.levelno == logging.WARNING
        assert "live" in line.getMessage()
        assert names(events).count("delivery_held") == 1
        (entry,) = held_tracker.outbox.history("0")
        assert (entry.state, entry.attempts, entry.lease_token) == (State.PENDING, 0, None)

    def test_they_are_delivered_once_the_shop_is_live(
        self, make_tracker: Callable[..., Tracker], held_tracker: Tracker, sandbox: Sandbox
    ) -> None:
        arrive(held_tracker).record(make_conversion())
        held_tracker.drain()
        held_tracker.close()

        assert make_tracker().drain().settled == 1
        assert sandbox.collector.accepted[0].fields["order_id"] == "1001"

    def test_no_relay_thread_is_started_and_the_shop_itself_says_why(
        self, make_observed: Callable[..., Tracker], events: list[Event]
    ) -> None:
        tracker = make_observed(endpoint=ELSEWHERE, delivery="thread")
        tracker.first_request()
        assert names(events) == []  # nothing waits yet
        arrive(tracker).record(make_conversion())

        assert names(events) == ["conversion_recorded", "delivery_held"]
        assert not [thread for thread in _relay_threads() if thread]

    def test_an_outbox_that_cannot_be_written_sends_nothing_either(
        self, make_observed: Callable[..., Tracker], tmp_path: Path
    ) -> None:
        tracker = make_observed(endpoint=ELSEWHERE, outbox=tmp_path)

        record = arrive(tracker).record(make_conversion())

        assert record.outcome is Outcome.LOST
        assert "pytest runs a test" in record.reason

    def test_the_first_line_says_whether_the_shop_is_live(
        self, held_tracker: Tracker, events: list[Event], tmp_path: Path
    ) -> None:
        held_tracker.first_request()
        held_tracker.first_request()

        (event,) = events
        assert event.name == "tracker_started"
        assert event.fields["live"] == "no, pytest runs a test"
        assert event.fields["endpoint"] == ELSEWHERE
        assert f"outbox={tmp_path}/outbox.db " in str(event)


def _relay_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "katalys-relay"]


class TestMemory:
    """Under an adapter's testing, an outbox that nobody configured leaves no file behind."""

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_the_default_outbox_is_in_memory(self, folder: Path) -> None:
        tracker = Tracker(site_id=SITE_ID, secret_key=SECRET, delivery="external")
        tracker.hold_while(lambda: "Flask's TESTING", in_memory=True)

        assert arrive(tracker).record(make_conversion()).outcome is Outcome.RECORDED
        assert isinstance(tracker.outbox, MemoryOutbox)
        assert list(folder.iterdir()) == []

    def test_a_configured_one_is_used(self, folder: Path) -> None:
        tracker = Tracker(site_id=SITE_ID, secret_key=SECRET, delivery="external", outbox="mine.db")
        tracker.hold_while(lambda: "Flask's TESTING", in_memory=True)
        arrive(tracker).record(make_conversion())
        tracker.close()

        assert (folder / "mine.db").exists()

    def test_without_the_reason_the_default_is_the_file(self, folder: Path) -> None:
        tracker = Tracker(site_id=SITE_ID, secret_key=SECRET, delivery="external")
        tracker.hold_while(lambda: None, in_memory=True)
        arrive(tracker).record(make_conversion())
        tracker.close()

        assert (folder / "katalys-outbox.db").exists()


class TestFirstRequest:
    def test_it_delivers_what_a_killed_process_left_while_people_only_browse(
        self, make_tracker: Callable[..., Tracker], sandbox: Sandbox
    ) -> None:
        arrive(make_tracker()).record(make_conversion("left behind"))
        tracker = make_tracker(delivery="thread")

        tracker.first_request()

        assert sandbox.collector.wait_for(1)[0].fields["order_id"] == "left behind"

    def test_with_external_delivery_it_starts_nothing(self, tracker: Tracker, sandbox: Sandbox) -> None:
        arrive(tracker).record(make_conversion())
        tracker.first_request()

        assert _relay_threads() == []

    def test_a_forked_child_has_a_first_request_of_its_own(self, options: dict[str, Any], sandbox: Sandbox) -> None:
        """Gunicorn --preload: the master loads the shop, and may even have answered a request."""
        program = """
import os, sys, json
from katalys_wsgi import Tracker
seen = []
tracker = Tracker(**json.loads(sys.argv[1]), hooks=[lambda event: seen.append(event.name)])
tracker.first_request(); tracker.first_request()
if not (child := os.fork()):
    tracker.first_request(); tracker.first_request()
    sys.exit(seen != ["tracker_started"] * 2)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        subprocess.run([sys.executable, "-c", program, json.dumps(options)], check=True, timeout=30, cwd=ROOT)

    def test_loading_the_shop_loads_no_http_library(self, options: dict[str, Any], sandbox: Sandbox) -> None:
        """Nor does a relay that finds nothing to do: a worker stays small until its first delivery."""
        program = """
import json, sys, time
from katalys_wsgi import Tracker
tracker = Tracker(**{**json.loads(sys.argv[1]), "delivery": "thread"})
tracker.first_request()
time.sleep(0.5)
assert "katalys_wsgi.delivery.relay" in sys.modules
assert "requests" not in sys.modules
tracker.close()
"""
        subprocess.run([sys.executable, "-c", program, json.dumps(options)], check=True, timeout=30, cwd=ROOT)


def test_a_relay_thread_starts_when_the_hold_ends(
    make_tracker: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = make_tracker(endpoint=ELSEWHERE, delivery="thread", outbox=MemoryOutbox())
    held = ["a reason"]
    tracker.hold_while(lambda: held[0] if held else None)
    tracker.first_request()
    assert _relay_threads() == []

    held.clear()
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    tracker.visit({"QUERY_STRING": "", "katalys_wsgi.tracker": tracker}).record(make_conversion())

    assert _relay_threads() == ["katalys-relay"]  # it finds nothing to send
    tracker.close()
    wait_until(lambda: _relay_threads() == [])
