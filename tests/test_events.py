"""Events: one log line each, every hook called, and nothing a hook does reaches the page."""

from __future__ import annotations

import logging

import pytest

from katalys_wsgi import Event
from katalys_wsgi.events import Events


def test_an_event_reads_as_its_name_and_fields() -> None:
    event = Event("postback_delivered", fields={"order_id": "1001", "status": 204})

    assert str(event) == "katalys_wsgi.postback_delivered order_id=1001 status=204"


def test_an_event_is_one_line_of_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "katalys_wsgi"):
        Events().emit("postback_delivered", order_id="1001", status=204)

    (line,) = caplog.records
    assert (line.name, line.levelno) == ("katalys_wsgi", logging.INFO)
    assert line.getMessage() == "katalys_wsgi.postback_delivered order_id=1001 status=204"
    assert line.katalys == Event("postback_delivered", logging.INFO, {"order_id": "1001", "status": 204})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("1001\nERROR all is lost", id="line-feed"),
        pytest.param("1001\r\nERROR", id="carriage-return"),
        pytest.param("1001\x1b[2J", id="terminal-escape"),
        pytest.param("1001\u2028ERROR", id="unicode-line-separator"),
        pytest.param("1001\udcff", id="half-a-character"),
        pytest.param("1001\x00", id="nul"),
    ],
)
def test_a_field_cannot_forge_a_second_line_of_log(text: str) -> None:
    """An order id that is invalid is told in the log too, whatever it holds."""
    line = str(Event("conversion_invalid", fields={"order_id": text}))

    assert line.isprintable()
    assert line.startswith("katalys_wsgi.conversion_invalid order_id=1001")


def test_text_in_any_script_stays_readable_in_the_log() -> None:
    event = Event("conversion_recorded", fields={"order_id": "Größe-注文-1001"})

    assert str(event).endswith("order_id=Größe-注文-1001")


def test_every_hook_is_called_with_every_event_in_order() -> None:
    seen: list[tuple[str, Event]] = []
    events = Events([lambda event: seen.append(("first", event)), lambda event: seen.append(("second", event))])

    events.emit("conversion_recorded", level=logging.WARNING, order_id="1001")

    event = Event("conversion_recorded", logging.WARNING, {"order_id": "1001"})
    assert seen == [("first", event), ("second", event)]


def test_hooks_may_be_given_as_a_generator() -> None:
    seen: list[Event] = []
    events = Events(hook for hook in [seen.append])

    events.emit("one")
    events.emit("two")

    assert [event.name for event in seen] == ["one", "two"]


def test_a_hook_that_raises_is_logged_and_the_next_one_is_called(caplog: pytest.LogCaptureFixture) -> None:
    """A metrics library in trouble must not break a checkout."""
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise ZeroDivisionError

    Events([broken, seen.append]).emit("conversion_recorded")

    assert [event.name for event in seen] == ["conversion_recorded"]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "katalys_wsgi.hook_failed event=conversion_recorded"
    ]


def test_a_fault_of_the_set_up_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []
    events = Events([seen.append])

    for _ in range(3):
        events.warn_once("proxy_ignored", header="X-Forwarded-For")
    events.warn_once("client_ip_unknown")

    assert [event.name for event in seen] == ["proxy_ignored", "client_ip_unknown"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.WARNING]


def test_two_trackers_of_a_process_tell_their_faults_independently() -> None:
    seen: list[Event] = []

    Events([seen.append]).warn_once("proxy_ignored")
    Events([seen.append]).warn_once("proxy_ignored")

    assert [event.name for event in seen] == ["proxy_ignored", "proxy_ignored"]
