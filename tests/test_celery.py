"""Celery spreads the work; the row in the outbox stays the truth."""

from __future__ import annotations

import base64
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import celery
import pytest
import redis
import sqlalchemy

from katalys_wsgi import Outcome, Tracker
from katalys_wsgi import celery as katalys_celery
from katalys_wsgi.celery import BEAT_SCHEDULE, EVERY, ROUTES, bind, deliver_due
from katalys_wsgi.operations import archive
from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .faults.harness import PATIENCE, Program, accepted_orders, environment, happens, running
from .support import BUYER_AGENT, BUYER_IP, LINK, Stopwatch, make_conversion, make_environ

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "celery_worker.py"


def sell(tracker: Tracker, *order_ids: str) -> list[Outcome]:
    visit = tracker.visit(make_environ(LINK))
    return [visit.record(make_conversion(order_id)).outcome for order_id in order_ids]


# --- the task ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def unbound() -> Iterator[None]:
    """No test finds the tracker of another."""
    bind(None)
    yield
    bind(None)


def test_every_application_has_the_task() -> None:
    """As a shared task: whichever application is made, before or after the import."""
    app = celery.Celery("shop", set_as_current=False)
    app.finalize()

    assert app.tasks["katalys_wsgi.deliver_due"].name == BEAT_SCHEDULE["katalys-deliver-due"]["task"]


def test_the_task_leaves_retrying_to_the_outbox() -> None:
    assert deliver_due.acks_late
    assert deliver_due.ignore_result
    assert not getattr(deliver_due, "autoretry_for", ())
    assert not inspect.signature(deliver_due.run).parameters  # a message has nothing to say


def test_a_bound_tracker_delivers(tracker: Tracker, sandbox: Sandbox) -> None:
    bind(tracker)
    sell(tracker, "1001", "1002")

    assert deliver_due() == {"settled": 2, "postponed": 0, "buried": 0}
    assert deliver_due() == {"settled": 0, "postponed": 0, "buried": 0}
    assert sorted(accepted_orders(sandbox)) == ["1001", "1002"]


def test_settings_come_from_the_environment(
    tracker: Tracker, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Tracker] = []
    from_environ = Tracker.from_environ

    def remembered() -> Tracker:
        made.append(from_environ())
        return made[-1]

    monkeypatch.setattr(Tracker, "from_environ", remembered)
    bind(None)
    for name, value in options.items():
        monkeypatch.setenv(f"KATALYS_{name.upper()}", value)
    sell(tracker, "1001")

    assert deliver_due()["settled"] == 1
    assert deliver_due()["settled"] == 0
    assert len(made) == 1
    made[0].close()


def test_the_latest_bound_tracker_counts(make_tracker: Callable[..., Tracker], tmp_path: Path) -> None:
    other = make_tracker(outbox=f"{tmp_path}/other.db")
    bind(make_tracker())
    bind(other)
    sell(other, "1001")

    assert deliver_due()["settled"] == 1


def test_a_backlog_is_left_to_the_next_tasks_in_time(
    make_tracker: Callable[..., Tracker], sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that runs for hours would keep its worker from leaving, and be handed to another one as lost."""
    monkeypatch.setattr(katalys_celery, "LONGEST_RUN", 0.3)
    tracker = make_tracker(delivery_workers=1)
    bind(tracker)
    sell(tracker, *(str(number) for number in range(20)))
    sandbox.collector.misbehave(Misbehaviour.slow(0.1))
    with Stopwatch() as watch:
        settled = deliver_due()["settled"]

    assert 1 <= settled < 20
    assert watch.seconds < 2
    assert archive(tracker.outbox).statistics().due == 20 - settled


def test_the_example_names_both_commands() -> None:
    assert [arguments[2] for arguments in commands()] == ["worker", "beat"]


# --- real workers ------------------------------------------------------------------------------------------------


def commands() -> list[list[str]]:
    """The command lines of the example's docstring, without the program's name."""
    found = re.findall(r"^    celery (--app .+)$", EXAMPLE.read_text(), re.MULTILINE)
    return [line.split() for line in found]


@pytest.fixture
def settings(options: dict[str, Any], postgres: Any) -> dict[str, Any]:
    """The outbox is in PostgreSQL, empty; a row that a dead worker had claimed is due again after 3 seconds."""
    engine = sqlalchemy.create_engine(postgres.url)
    with engine.begin() as db:
        db.execute(sqlalchemy.text("DROP TABLE IF EXISTS katalys_outbox"))
    engine.dispose()
    return {**options, "outbox": postgres.url, "deadline": "1", "read_timeout": "0.9", "connect_timeout": "0.9"}


@pytest.fixture
def broker(redis_server: Any) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def start(settings: dict[str, Any], redis_server: Any, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts ``celery`` with the arguments of the example's docstring and more, as on a host of its own."""
    env = environment(settings, CELERY_BROKER_URL=redis_server.url)
    with ExitStack() as stack:

        def run(arguments: list[str], *more: str) -> Program:
            log = tmp_path / f"{arguments[2]}{len(list(tmp_path.glob('*.log')))}.log"
            command = [sys.executable, "-m", "celery", *arguments, *more]
            return stack.enter_context(running(command, env, log))

        yield run


@contextmanager
def publishing(url: str) -> Iterator[Callable[[], None]]:
    """Sends the beat's message at the test's own pace."""
    with celery.Celery("test", broker=url, set_as_current=False) as app:
        app.conf.task_routes = ROUTES
        with app.connection_for_write() as connection:
            yield lambda: app.send_task("katalys_wsgi.deliver_due", connection=connection, expires=EVERY)


WORKER, BEAT = commands()


def is_ready(worker: Program) -> bool:
    return happens(lambda: " ready." in worker.output())


@pytest.mark.slow
def test_beat_and_worker_deliver(
    make_tracker: Callable[..., Tracker], settings: dict[str, Any], start: Any, broker: Any, sandbox: Sandbox
) -> None:
    """The example's two commands as they stand; the messages between them hold no personal data."""
    tracker = make_tracker(**settings)
    sell(tracker, "1001", "1002")
    start(BEAT)
    assert happens(lambda: broker.llen("katalys") > 0)
    messages = broker.lrange("katalys", 0, -1)
    start(WORKER)
    delivered = happens(lambda: sorted(accepted_orders(sandbox)) == ["1001", "1002"])

    assert delivered
    assert {json.loads(message)["headers"]["task"] for message in messages} == {"katalys_wsgi.deliver_due"}
    everything = b" ".join(messages).decode()
    assert "1001" not in everything
    for personal in ("ann@example.com", BUYER_IP, BUYER_AGENT, "1234abcd", settings["secret_key"]):
        assert personal not in everything
    body = json.loads(messages[0])["body"]
    assert json.loads(base64.b64decode(body))[:2] == [[], {}]


@pytest.mark.slow
def test_two_workers_never_hold_the_same_row(
    make_tracker: Callable[..., Tracker],
    settings: dict[str, Any],
    start: Any,
    broker: Any,
    redis_server: Any,
    sandbox: Sandbox,
) -> None:
    """Two hosts of two processes; more messages than are needed."""
    tracker = make_tracker(**settings)
    sell(tracker, *(str(number) for number in range(400)))
    workers = [start(WORKER, "--hostname", f"host{number}@%h") for number in range(2)]
    assert all(is_ready(worker) for worker in workers)
    with publishing(redis_server.url) as publish:
        for _ in range(12):
            publish()
        assert happens(lambda: archive(tracker.outbox).statistics().pending == 0)

    counts = Counter(accepted_orders(sandbox))
    assert set(counts) == {str(number) for number in range(400)}
    assert set(counts.values()) == {1}


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_500_rows(
    make_tracker: Callable[..., Tracker],
    settings: dict[str, Any],
    start: Any,
    broker: Any,
    redis_server: Any,
    sandbox: Sandbox,
) -> None:
    """SIGKILL for the worker and its processes at once, as when a host loses its power; another one goes on."""
    tracker = make_tracker(**settings)
    sell(tracker, *(str(number) for number in range(500)))
    sandbox.collector.misbehave(Misbehaviour.slow(0.01))
    first = start(WORKER)
    with publishing(redis_server.url) as publish:
        assert is_ready(first)
        publish()
        assert happens(lambda: len(sandbox.collector.accepted) > 100, every=0.01)
        kill_all(first)
        before = len(accepted_orders(sandbox))
        start(WORKER)
        give_up_at = time.monotonic() + 2 * PATIENCE
        while archive(tracker.outbox).statistics().pending and time.monotonic() < give_up_at:
            publish()
            time.sleep(1)

    counts = Counter(accepted_orders(sandbox))
    print(f"{before} before the kill; {sum(counts.values()) - 500} of 500 came twice")
    assert before < 500
    assert set(counts) == {str(number) for number in range(500)}
    assert max(counts.values()) <= 2
    assert sum(counts.values()) - 500 <= 4 * 32  # what one task may have claimed
    assert archive(tracker.outbox).statistics().delivered == 500


def kill_all(worker: Program) -> None:
    os.killpg(worker.pid, signal.SIGKILL)
    worker.popen.wait()


@pytest.mark.slow
def test_redis_dies_with_everything_it_knew(
    make_tracker: Callable[..., Tracker],
    settings: dict[str, Any],
    start: Any,
    broker: Any,
    redis_server: Any,
    sandbox: Sandbox,
) -> None:
    """What was acknowledged arrives: it never was in Redis. Checkouts meanwhile notice nothing."""
    tracker = make_tracker(**settings)
    worker, _ = start(WORKER), start(BEAT)
    assert is_ready(worker)
    try:
        outcomes = sell(tracker, "before")
        redis_server.kill()
        with Stopwatch() as watch:
            outcomes += sell(tracker, "meanwhile")
    finally:
        redis_server.start()
    outcomes += sell(tracker, "after")

    assert happens(lambda: {"before", "meanwhile", "after"} <= set(accepted_orders(sandbox)), 2 * PATIENCE)
    assert outcomes == [Outcome.RECORDED] * 3
    assert watch.seconds < 1


# --- the checkout ------------------------------------------------------------------------------------------------


def test_a_silent_broker_costs_a_checkout_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    """It accepts and never answers; publishing would wait for it, so a checkout never publishes."""
    script = """
        import sys, time
        from celery import Celery
        import katalys_wsgi.celery
        from katalys_wsgi import Tracker
        from tests.support import LINK, make_conversion, make_environ
        app = Celery("shop", broker=sys.argv[1])
        app.conf.beat_schedule = katalys_wsgi.celery.BEAT_SCHEDULE
        app.set_default()
        tracker = Tracker.from_environ()
        katalys_wsgi.celery.bind(tracker)
        started = time.monotonic()
        outcome = tracker.visit(make_environ(LINK)).record(make_conversion()).outcome
        print(outcome.name, time.monotonic() - started)
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0.2)
        address = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), address],
            cwd=tmp_path, env=environment(options), capture_output=True, text=True, timeout=50,
        )  # fmt: skip
        with pytest.raises(TimeoutError):
            silent.accept()

    outcome, seconds = done.stdout.split()
    assert (done.returncode, outcome) == (0, "RECORDED")
    assert float(seconds) < 1
