"""The relay thread of a process: it starts with a checkout, delivers by itself, and ends when it is asked to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from katalys_wsgi import Event, Settings
from katalys_wsgi.delivery.background import RelayThread
from katalys_wsgi.delivery.relay import Relay
from katalys_wsgi.events import Events
from katalys_wsgi.outbox import State
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .support import SECRET, SITE_ID, Stopwatch, make_postback, names, wait_until

PATIENCE = 5.0

MakeThread = Callable[..., RelayThread]


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[SQLiteOutbox]:
    with closing(SQLiteOutbox(tmp_path / "outbox.db")) as outbox:
        yield outbox


@pytest.fixture
def events() -> list[Event]:
    """What the threads and their relays emitted."""
    return []


@pytest.fixture
def make_thread(sandbox: Sandbox, outbox: SQLiteOutbox, events: list[Event]) -> Iterator[MakeThread]:
    """Makes relay threads that deliver to the sandbox; stops them after the test."""
    made: list[RelayThread] = []
    emitter = Events([events.append])

    def make(make_relay: Callable[[], Relay] | None = None, **options: Any) -> RelayThread:
        settings = Settings(site_id=SITE_ID, secret_key=SECRET, endpoint=sandbox.endpoint, **options)
        made.append(RelayThread(make_relay or (lambda: Relay(outbox, settings, events=emitter)), emitter))
        return made[-1]

    yield make
    for thread in made:
        thread.stop(PATIENCE)
    wait_until(lambda: not running())  # one that hung longer than its test waited


@pytest.fixture
def thread(make_thread: MakeThread) -> RelayThread:
    return make_thread()


def record(outbox: SQLiteOutbox, order_id: object = "1001") -> None:
    outbox.add(make_postback(str(order_id)))


def state(outbox: SQLiteOutbox, order_id: object = "1001") -> State:
    return outbox.history(str(order_id))[0].state


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "katalys-relay"]


class TestWake:
    def test_a_row_arrives_by_itself(self, thread: RelayThread, outbox: SQLiteOutbox, sandbox: Sandbox) -> None:
        assert running() == []
        record(outbox)
        thread.wake()

        sandbox.collector.wait_for(1)
        wait_until(lambda: state(outbox) is State.DELIVERED)
        (found,) = running()
        assert found.daemon

    def test_one_thread_serves_every_wake_up_call(
        self, thread: RelayThread, outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        for number in range(5):
            record(outbox, number)
            thread.wake()
            sandbox.collector.wait_for(number + 1)

        assert len(running()) == 1

    def test_a_call_before_the_relay_is_made_needs_no_other(self, outbox: SQLiteOutbox, make_thread: MakeThread,
        sandbox: Sandbox) -> None:  # fmt: skip
        """Making one imports an HTTP library, which no page waits for; its first look finds what was recorded."""
        may_be_made = threading.Event()

        def make_relay() -> Relay:
            may_be_made.wait(PATIENCE)
            return Relay(outbox, Settings(site_id=SITE_ID, secret_key=SECRET, endpoint=sandbox.endpoint))

        thread = make_thread(make_relay)
        with Stopwatch() as watch:
            thread.wake()
            record(outbox)
            thread.wake()
        may_be_made.set()

        assert watch.seconds < 1
        sandbox.collector.wait_for(1)

    def test_a_page_never_waits_for_katalys(
        self, make_thread: MakeThread, outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        thread = make_thread(deadline=0.8)
        sandbox.collector.misbehave(Misbehaviour.hang())
        with Stopwatch() as watch:
            for number in range(5):
                record(outbox, number)
                thread.wake()

        assert watch.seconds < 0.7

    def test_a_thread_that_cannot_start_is_reported_and_raises_nothing(
        self, thread: RelayThread, outbox: SQLiteOutbox, sandbox: Sandbox, events: list[Event],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """No more threads, or the interpreter is leaving; the row waits for the next call."""

        def fail(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        record(outbox)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            thread.wake()
        assert [(event.name, str(event.fields["reason"])) for event in events] == [
            ("relay_not_started", "can't start new thread")
        ]

        thread.wake()
        sandbox.collector.wait_for(1)


class TestStop:
    def test_it_ends_the_thread_and_the_next_call_starts_another(
        self, thread: RelayThread, outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        for number in range(1, 4):
            record(outbox, number)
            thread.wake()
            sandbox.collector.wait_for(number)
            thread.stop(PATIENCE)
            assert running() == []

    def test_before_the_first_call_there_is_nothing_to_stop(self, thread: RelayThread) -> None:
        thread.stop(PATIENCE)

        assert running() == []

    def test_the_row_in_progress_is_finished(self, thread: RelayThread, outbox: SQLiteOutbox, sandbox: Sandbox) -> None:
        sandbox.collector.misbehave(Misbehaviour.slow(0.3))
        record(outbox)
        thread.wake()
        wait_until(lambda: sandbox.collector.received)
        thread.stop(PATIENCE)

        assert state(outbox) is State.DELIVERED

    def test_it_waits_no_longer_than_its_patience(
        self, make_thread: MakeThread, outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        thread = make_thread(deadline=1)
        sandbox.collector.misbehave(Misbehaviour.hang(), times=1)
        record(outbox)
        thread.wake()
        wait_until(lambda: sandbox.collector.received)
        with Stopwatch() as watch:
            thread.stop(0.2)

        assert watch.seconds < 0.8
        assert len(running()) == 1

    def test_a_page_does_not_wait_for_a_stop(
        self, make_thread: MakeThread, outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        """A server that reloads closes the tracker while other threads still answer."""
        thread = make_thread(deadline=1.5)
        sandbox.collector.misbehave(Misbehaviour.hang(), times=1)
        record(outbox, "1001")
        thread.wake()
        wait_until(lambda: sandbox.collector.received)
        stopping = threading.Thread(target=thread.stop, args=(PATIENCE,))
        stopping.start()
        stopping.join(0.1)
        with Stopwatch() as watch:
            record(outbox, "1002")
            thread.wake()
        stopping.join()

        assert watch.seconds < 0.7
        wait_until(lambda: "1002" in [received.fields["order_id"] for received in sandbox.collector.accepted])

    def test_while_the_relay_is_being_made_it_is_not_forgotten(
        self, make_thread: MakeThread, outbox: SQLiteOutbox, sandbox: Sandbox
    ) -> None:
        may_be_made = threading.Event()

        def make_relay() -> Relay:
            may_be_made.wait(PATIENCE)
            return Relay(outbox, Settings(site_id=SITE_ID, secret_key=SECRET, endpoint=sandbox.endpoint))

        record(outbox)
        thread = make_thread(make_relay)
        thread.wake()
        thread.stop(0.05)
        may_be_made.set()
        wait_until(lambda: not running())

        assert sandbox.collector.received == ()

    def test_connections_are_closed(self, make_thread: MakeThread, outbox: SQLiteOutbox, sandbox: Sandbox) -> None:
        closed: list[bool] = []

        class Watched(Relay):
            def close(self) -> None:
                super().close()
                closed.append(True)

        settings = Settings(site_id=SITE_ID, secret_key=SECRET, endpoint=sandbox.endpoint)
        thread = make_thread(lambda: Watched(outbox, settings))
        thread.wake()
        thread.stop(PATIENCE)

        assert closed == [True]


class TestUwsgi:
    """https://uwsgi-docs.readthedocs.io/en/latest/ThingsToKnow.html: threads run only if that was configured."""

    def pretend(self, monkeypatch: pytest.MonkeyPatch, **uwsgi: Any) -> None:
        """This process is one of uWSGI's, whose module exists in no other."""
        monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(**uwsgi))

    @pytest.mark.parametrize(
        "options",
        [{"master": True}, {"enable-threads": False}, {b"enable-threads": b"false"}, {"threads": "0"}],
        ids=["unset", "false", "of an ini file", "no threads"],
    )
    def test_where_threads_get_no_turn_that_is_reported_once(
        self, thread: RelayThread, events: list[Event], monkeypatch: pytest.MonkeyPatch, options: dict[Any, Any]
    ) -> None:
        self.pretend(monkeypatch, opt=options)
        for _ in range(3):
            thread.wake()

        assert names(events) == ["threads_disabled"]
        assert running() == []

    @pytest.mark.parametrize("option", ["enable-threads", b"enable-threads", "threads", b"threads"], ids=str)
    def test_where_threads_run_it_delivers(
        self,
        thread: RelayThread,
        outbox: SQLiteOutbox,
        sandbox: Sandbox,
        monkeypatch: pytest.MonkeyPatch,
        option: object,
    ) -> None:
        self.pretend(monkeypatch, opt={option: b"true"}, worker_id=lambda: 1)
        record(outbox)
        thread.wake()

        sandbox.collector.wait_for(1)

    def test_a_master_that_loads_the_shop_starts_none(
        self, thread: RelayThread, events: list[Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread that runs while it forks deadlocks its workers at times; a worker's relay delivers instead."""
        self.pretend(monkeypatch, opt={"enable-threads": True}, worker_id=lambda: 0)
        thread.wake()

        assert running() == []
        assert events == []


def test_importing_it_loads_no_http_library() -> None:
    """Pages do without; the thread loads it."""
    script = "import sys, katalys_wsgi.delivery.background, katalys_wsgi.delivery.policy; print(*sys.modules)"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # loads SQLite
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, env=environ, check=True
    )

    assert {"requests", "urllib3", "sqlite3", "sqlalchemy"}.isdisjoint(ran.stdout.split())
