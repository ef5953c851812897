"""Events: one log line each, every hook called, and a catalogue that lists them all."""

from __future__ import annotations

import ast
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import katalys_wsgi
from katalys_wsgi import Event, OrderUpdate, Tracker
from katalys_wsgi.events import EVENTS, Events
from katalys_wsgi.outbox.memory import MemoryOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .support import BUYER_IP, LINK, Clock, make_conversion, make_environ

PACKAGE = Path(katalys_wsgi.__file__).parent


def test_an_event_reads_as_its_name_and_fields() -> None:
    event = Event("postback_delivered", fields={"order_id": "1001", "status": 204})

    assert str(event) == "katalys_wsgi.postback_delivered order_id=1001 status=204"


def test_an_event_is_one_log_line_at_the_level_of_the_catalogue(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "katalys_wsgi"):
        Events().emit("conversion_lost", order_id="1001", reason="disk full")

    (line,) = caplog.records
    assert (line.name, line.levelno) == ("katalys_wsgi", logging.ERROR)
    assert line.getMessage() == "katalys_wsgi.conversion_lost order_id=1001 reason=disk full"
    event = Event("conversion_lost", logging.ERROR, {"order_id": "1001", "reason": "disk full"})
    assert line.__dict__["katalys"] == event


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("1001\nERROR all is lost", id="line-feed"),
        pytest.param("1001\r\nERROR", id="carriage-return"),
        pytest.param("1001\x1b[2J", id="terminal-escape"),
        pytest.param("1001\u2028ERROR", id="unicode-line-separator"),
        pytest.param("1001\udcff", id="lone-surrogate"),
        pytest.param("1001\x00", id="nul"),
    ],
)
def test_a_field_cannot_forge_a_second_log_line(text: str) -> None:
    """An order id that is invalid is logged too, whatever it holds."""
    line = str(Event("conversion_invalid", fields={"order_id": text}))

    assert line.isprintable()
    assert line.startswith("katalys_wsgi.conversion_invalid order_id=1001")


def test_text_in_any_script_stays_readable_in_the_log() -> None:
    event = Event("conversion_recorded", fields={"order_id": "Größe-注文-1001"})

    assert str(event).endswith("order_id=Größe-注文-1001")


def test_every_hook_is_called_with_every_event_in_order() -> None:
    seen: list[tuple[str, Event]] = []
    events = Events([lambda event: seen.append(("first", event)), lambda event: seen.append(("second", event))])

    events.emit("outbox_pruned", rows=3)

    event = Event("outbox_pruned", logging.INFO, {"rows": 3})
    assert seen == [("first", event), ("second", event)]


def test_hooks_may_be_given_as_a_generator() -> None:
    seen: list[Event] = []
    events = Events(hook for hook in [seen.append])

    events.emit("endpoint_resumed")
    events.emit("outbox_pruned", rows=1)

    assert [event.name for event in seen] == ["endpoint_resumed", "outbox_pruned"]


def test_a_hook_that_raises_is_logged_and_the_next_one_is_called(caplog: pytest.LogCaptureFixture) -> None:
    """A metrics library in trouble must not break a checkout."""
    seen: list[Event] = []

    def broken(_event: Event) -> None:
        raise ZeroDivisionError

    Events([broken, seen.append]).emit("endpoint_resumed")

    assert [event.name for event in seen] == ["endpoint_resumed"]
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert line.getMessage() == "katalys_wsgi.hook_failed event=endpoint_resumed"
    assert line.exc_info is not None


def test_a_problem_of_the_configuration_is_emitted_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []
    events = Events([seen.append])

    for _ in range(3):
        events.emit_once("proxy_ignored", header="X-Forwarded-For", advice="")
    events.emit_once("client_ip_unknown", advice="")

    assert [event.name for event in seen] == ["proxy_ignored", "client_ip_unknown"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.WARNING]


def test_two_trackers_of_a_process_emit_their_problems_independently() -> None:
    seen: list[Event] = []

    Events([seen.append]).emit_once("client_ip_unknown", advice="")
    Events([seen.append]).emit_once("client_ip_unknown", advice="")

    assert [event.name for event in seen] == ["client_ip_unknown", "client_ip_unknown"]


# --- the catalogue: read from the source ---


def emits() -> Iterator[tuple[str, str, set[str]]]:
    """Every call of ``emit`` and ``emit_once`` in the package: its place, the event's name, the fields given.

    A name may be looked up in a table of literals; one that is computed fails the test.
    """
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        tables = {
            target.id: [ast.literal_eval(value) for value in node.value.values]
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
            for target in node.targets
            if isinstance(target, ast.Name) and all(isinstance(value, ast.Constant) for value in node.value.values)
        }
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            if call.func.attr not in ("emit", "emit_once") or path.name == "events.py":
                continue
            name = call.args[0]
            if isinstance(name, ast.Subscript) and isinstance(name.value, ast.Name):
                names = tables[name.value.id]
            else:
                assert isinstance(name, ast.Constant), f"{path.name}:{call.lineno} computes the name of an event"
                names = [name.value]
            fields = {keyword.arg or "**" for keyword in call.keywords}
            yield from ((f"{path.name}:{call.lineno}", each, fields) for each in names)


EMITS = [pytest.param(*emit, id=f"{emit[1]} in {emit[0]}") for emit in emits()]


@pytest.mark.parametrize(("place", "name", "fields"), EMITS)
def test_what_is_emitted_is_in_the_catalogue(place: str, name: str, fields: set[str]) -> None:
    assert name in EVENTS, place
    assert fields == set(EVENTS[name].fields), place


def test_nothing_is_logged_past_the_catalogue() -> None:
    """Everything reaches the hooks: no module but events logs by itself."""
    loggers = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "events.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "getLogger" and path.name != "sender.py"
        if not (path.parent.name == "delivery" and path.name == "transport.py")
    ]

    assert loggers == []


@pytest.mark.parametrize("name", EVENTS)
def test_an_entry_says_what_happened_and_what_to_do(name: str) -> None:
    event = EVENTS[name]

    assert event.meaning.endswith(".")
    assert bool(event.advice) or event.level < logging.ERROR


# --- the catalogue: every event emitted for real ---


class Stage:
    """What a scenario plays with."""

    def __init__(
        self, options: dict[str, Any], sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.options = options
        self.collector = sandbox.collector
        self.sandbox = sandbox
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.events: list[Event] = []
        self.trackers: list[Tracker] = []

    def tracker(self, **changes: Any) -> Tracker:
        self.trackers.append(Tracker(**{**self.options, **changes}, hooks=[self.events.append]))
        return self.trackers[-1]

    def buy(self, tracker: Tracker, order_id: str = "1001", **changes: Any) -> None:
        tracker.visit(make_environ(LINK)).record(make_conversion(order_id, **changes))

    def bought(self, **changes: Any) -> Tracker:
        """A tracker with one sale in its outbox."""
        tracker = self.tracker(**changes)
        self.buy(tracker)
        return tracker


def _refuse(_environ: dict[str, Any]) -> bool:
    raise ValueError


def _drain_answered(stage: Stage, status: int) -> None:
    stage.collector.misbehave(Misbehaviour.status(status))
    stage.bought().drain()


def _pause(stage: Stage) -> tuple[Tracker, Clock]:
    clock = Clock()
    stage.collector.misbehave(Misbehaviour.status(404), times=1)
    tracker = stage.bought(clock=clock)
    tracker.drain()
    return tracker, clock


def _resume(stage: Stage) -> None:
    tracker, clock = _pause(stage)
    clock.advance(60)
    tracker.drain()


def _prune(stage: Stage) -> None:
    clock = Clock()
    tracker = stage.bought(clock=clock, retention=60)
    tracker.drain()
    clock.advance(4000)
    tracker.drain()


class _Broken(MemoryOutbox):
    """An outbox whose claims raise what a bug would, once; then the relay is stopped."""

    tracker: Tracker

    def claim(self, limit: int, lease: float) -> Any:
        self.tracker.stop()
        raise ZeroDivisionError


def _fail_in_the_relay(stage: Stage) -> None:
    outbox = _Broken()
    outbox.tracker = stage.tracker(outbox=outbox)
    outbox.tracker.deliver()


def _deliver_from_a_folder(stage: Stage) -> None:
    tracker = stage.tracker(outbox=stage.folder)
    stage.events.clear()
    hook_seen = threading.Event()

    def stop(event: Event) -> None:
        stage.events.append(event)
        if event.name == "outbox_unavailable":
            hook_seen.set()
            other.stop()

    other = Tracker(**{**stage.options, "outbox": stage.folder}, hooks=[stop])
    stage.trackers.append(other)
    other.deliver()
    assert hook_seen.is_set()
    tracker.close()


def _start_no_thread(stage: Stage) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    stage.monkeypatch.setattr(threading.Thread, "start", fail)
    stage.bought(delivery="thread")


def _run_in_uwsgi_without_threads(stage: Stage) -> None:
    stage.monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt={"master": True}))
    stage.bought(delivery="thread")


def _damage(stage: Stage) -> None:
    tracker = stage.bought()
    tracker.close()
    path = Path(stage.options["outbox"])
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 8000)
    stage.buy(tracker, "1002")


def _fail_in_a_hook(stage: Stage) -> None:
    def broken(_event: Event) -> None:
        raise ZeroDivisionError

    tracker = Tracker(**stage.options, hooks=[broken])
    stage.trackers.append(tracker)
    stage.buy(tracker)


def _lose(stage: Stage) -> None:
    stage.sandbox.stop()
    stage.bought(outbox=stage.folder)


def _update(stage: Stage, *statuses: str) -> None:
    tracker = stage.bought()
    for status in statuses:
        tracker.record_update(OrderUpdate("1001", order_status=status))  # type: ignore[arg-type]


SCENARIOS: dict[str, Callable[[Stage], object]] = {
    "site_id_unusual": lambda stage: stage.tracker(site_id="1234567").drain(),
    "tracker_started": lambda stage: stage.tracker().drain(),
    "middleware_missing": lambda stage: stage.tracker().visit({"QUERY_STRING": LINK}),
    "click_refused": lambda stage: stage.tracker().visit(make_environ("utm_source=newsletter&transaction_id=T")),
    "cookie_unreadable": lambda stage: stage.tracker().visit(make_environ(cookie="katalys_click=forged")),
    "consent_failed": lambda stage: stage.tracker(consent=_refuse).visit(make_environ(LINK)),
    "proxy_ignored": lambda stage: stage.tracker().visit(
        make_environ(REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR=BUYER_IP)
    ),
    "token_unreadable": lambda stage: stage.tracker().resume("nonsense"),
    "client_ip_unknown": lambda stage: stage.bought(trusted_proxies=2),
    "conversion_recorded": lambda stage: stage.bought(),
    "conversion_duplicate": lambda stage: stage.buy(stage.bought()),
    "conversion_invalid": lambda stage: stage.buy(stage.tracker(), email_address=""),
    "update_recorded": lambda stage: _update(stage, "paid"),
    "update_duplicate": lambda stage: _update(stage, "paid", "paid"),
    "update_invalid": lambda stage: _update(stage, "lost"),
    "connection_unusable": lambda stage: (
        stage.tracker().visit(make_environ(LINK)).record(make_conversion(), connection=object())
    ),
    "conversion_sent_directly": lambda stage: stage.bought(outbox=stage.folder),
    "conversion_lost": _lose,
    "postback_delivered": lambda stage: stage.bought().drain(),
    "postback_postponed": lambda stage: _drain_answered(stage, 503),
    "postback_buried": lambda stage: _drain_answered(stage, 400),
    "delivery_held": lambda stage: stage.bought(endpoint="https://collector.invalid/", live=False).drain(),
    "endpoint_paused": lambda stage: _drain_answered(stage, 404),
    "endpoint_resumed": _resume,
    "relay_failed": _fail_in_the_relay,
    "relay_not_started": _start_no_thread,
    "threads_disabled": _run_in_uwsgi_without_threads,
    "outbox_unavailable": _deliver_from_a_folder,
    "outbox_damaged": _damage,
    "outbox_pruned": _prune,
    "hook_failed": _fail_in_a_hook,
}


def test_every_entry_of_the_catalogue_has_its_scenario() -> None:
    assert set(SCENARIOS) == set(EVENTS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_entry_of_the_catalogue_is_emitted(
    name: str,
    options: dict[str, Any],
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the log, at its level and with its fields; and to the hooks, but for a hook's own failure."""
    folder = tmp_path / "folder"  # in the place of an outbox: it can be neither read nor written
    folder.mkdir()
    stage = Stage(options, sandbox, folder, monkeypatch)
    caplog.set_level(logging.DEBUG, "katalys_wsgi")

    SCENARIOS[name](stage)

    monkeypatch.undo()
    for tracker in stage.trackers:
        tracker.close()
    lines = [record for record in caplog.records if record.getMessage().startswith(f"katalys_wsgi.{name}")]
    assert {line.levelno for line in lines} == {EVENTS[name].level}
    if name != "hook_failed":
        heard = [event for event in stage.events if event.name == name]
        assert {tuple(event.fields) for event in heard} == {EVENTS[name].fields}
