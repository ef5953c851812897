"""Process models: whatever forks, threads or switches greenlets, every acknowledged order is delivered."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import Event, Tracker, process
from katalys_wsgi.sandbox import Misbehaviour, Sandbox
from tests.support import LINK, Stopwatch, free_port, make_conversion, make_environ

from .harness import (
    BIN,
    ROOT,
    Buyers,
    HoldableOutbox,
    accepted_orders,
    database,
    deliver_the_rest,
    environment,
    happens,
    integrity,
    kill,
    running,
    states,
)

SHOP = "tests.faults.shop:application"
WARM = {"SHOP_WARMS_UP": "1"}


def gunicorn(kind: str, *options: str) -> Callable[[int], list[object]]:
    fixed = ["--workers", "2", "--threads", "4", "--graceful-timeout", "10", "--worker-class", kind]
    return lambda port: [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", *fixed, *options, SHOP]


def uwsgi(*options: str) -> Callable[[int], list[object]]:
    fixed = ["--master", "--processes", "2", "--need-app", "--die-on-term", "--pythonpath", ROOT, "--module", SHOP]
    return lambda port: [BIN / "uwsgi", "--http-socket", f"127.0.0.1:{port}", *fixed, *options]


def waitress(port: int) -> list[object]:
    return [sys.executable, "-m", "waitress", f"--listen=127.0.0.1:{port}", SHOP]


def forking(port: int) -> list[object]:
    return [sys.executable, "-m", "tests.faults.shop", port]


#: Server, what it needs, its command, and whether it loads (and warms up) the shop before it forks.
SERVERS = [
    pytest.param("gunicorn", gunicorn("sync"), {}, id="gunicorn sync"),
    pytest.param("gunicorn", gunicorn("gthread"), {}, id="gunicorn gthread"),
    pytest.param("gevent", gunicorn("gevent"), {}, id="gunicorn gevent"),
    pytest.param("gunicorn", gunicorn("sync", "--preload"), WARM, id="gunicorn sync, preloaded"),
    pytest.param("gunicorn", gunicorn("gthread", "--preload"), WARM, id="gunicorn gthread, preloaded"),
    pytest.param("gevent", gunicorn("gevent", "--preload"), WARM, id="gunicorn gevent, preloaded"),
    pytest.param("pyuwsgi", uwsgi("--enable-threads"), WARM, id="uWSGI with threads"),
    pytest.param("pyuwsgi", uwsgi("--enable-threads", "--lazy-apps"), WARM, id="uWSGI lazy-apps with threads"),
    pytest.param("waitress", waitress, {}, id="waitress"),
]


@pytest.fixture
def served(options: dict[str, Any]) -> dict[str, Any]:
    """Settings of a shop with a relay in each process; what a dead one had claimed is soon due again."""
    return {**options, "delivery": "thread", "deadline": 1}


@pytest.fixture
def need(missing: Callable[[str], None]) -> Callable[[str], None]:
    """Called with the module of a server that the test runs."""

    def need(module: str) -> None:
        if importlib.util.find_spec(module) is None:
            missing(f"{module} is not installed; install the extra test")

    return need


def has_arrived(sandbox: Sandbox, buyers: Buyers) -> bool:
    return buyers.acknowledged <= set(accepted_orders(sandbox))


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize(("module", "command", "more"), SERVERS)
def test_every_acknowledged_order_is_delivered_by_the_server_itself(
    module: str,
    command: Callable[[int], list[object]],
    more: dict[str, str],
    need: Callable[[str], None],
    served: dict[str, Any],
    sandbox: Sandbox,
    tmp_path: Path,
) -> None:
    need(module)
    orders = [f"A{number}" for number in range(60)]
    buyers = Buyers(free_port())
    with running(command(buyers.port), environment(served, **more), tmp_path / "server.log") as server:
        buyers.arrive()
        buyers.buy_all(orders)
        arrived = happens(lambda: has_arrived(sandbox, buyers))
        # Written down after the answer: whoever is stopped in between leaves a row that another relay sends again.
        settled = happens(lambda: states(database(served)).keys() == {"delivered"})
        code = server.leave()

    assert list(buyers.answers.values()) == ["RECORDED"] * 60, server.output()
    assert arrived, server.output()
    assert settled, states(database(served))
    assert code in (0, -signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("variant", [(), ("--lazy-apps",)], ids=["default", "lazy-apps"])
def test_uwsgi_without_threads_says_so_and_loses_nothing(
    variant: tuple[str, ...], need: Callable[[str], None], served: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    """By default uWSGI runs no threads: the rows wait for another relay, and the log says what to do."""
    need("pyuwsgi")
    buyers = Buyers(free_port())
    env = environment(served)
    with running(uwsgi(*variant)(buyers.port), env, tmp_path / "server.log") as server:
        buyers.arrive()
        buyers.buy_all(f"U{number}" for number in range(30))
        server.leave()
    delivered = deliver_the_rest(env, tmp_path / "relay.log", lambda: has_arrived(sandbox, buyers))

    assert list(buyers.answers.values()) == ["RECORDED"] * 30, server.output()
    assert "katalys_wsgi.threads_disabled" in server.output()
    assert "delivery=external" in server.output()
    assert delivered


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("more", [{}, WARM], ids=["cold", "with a relay at work in the parent"])
def test_a_shop_that_forks_for_each_request_loses_nothing(
    more: dict[str, str], served: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    """Each child dies after its answer, and its relay with it; the parent may fork in the middle of a commit."""
    sandbox.collector.misbehave(Misbehaviour.slow(0.01))
    buyers = Buyers(free_port())
    env = environment(served, **more)
    with running(forking(buyers.port), env, tmp_path / "server.log") as server:
        buyers.arrive()
        buyers.buy_all(f"F{number}" for number in range(150))
        kill(server.pid)
    delivered = deliver_the_rest(env, tmp_path / "relay.log", lambda: has_arrived(sandbox, buyers))

    assert list(buyers.answers.values()) == ["RECORDED"] * 150, server.output()
    assert delivered
    assert integrity(database(served)) == "ok"


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preloaded"])
def test_reload_and_stop_under_load_lose_nothing(
    preload: tuple[str, ...], need: Callable[[str], None], served: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    """HUP twice and TERM at last, while buyers keep buying: whoever was answered is reported."""
    need("gunicorn")
    buyers = Buyers(free_port())
    env = environment(served, **(WARM if preload else {}))
    over = threading.Event()
    numbers = count()

    def keep_buying() -> None:
        while not over.is_set():
            buyers.buy(f"R{next(numbers)}")

    crowd = [threading.Thread(target=keep_buying) for _ in range(4)]
    with running(gunicorn("gthread", *preload)(buyers.port), env, tmp_path / "server.log") as server:
        buyers.arrive()
        for buyer in crowd:
            buyer.start()
        try:
            for number in (signal.SIGHUP, signal.SIGHUP):
                time.sleep(2)
                server.send(number)
            time.sleep(2)
            code = server.leave()
        finally:
            over.set()
            for buyer in crowd:
                buyer.join()
    delivered = deliver_the_rest(env, tmp_path / "relay.log", lambda: has_arrived(sandbox, buyers))

    print(f"\nreload and stop: {len(buyers.acknowledged)} acknowledged, {len(accepted_orders(sandbox))} received")
    assert code == 0
    assert set(buyers.answers.values()) == {"RECORDED"}
    assert len(buyers.answers) > 20
    assert delivered
    assert integrity(database(served)) == "ok"


# --- forks, looked at closely ---


def in_child(work: Callable[[], str], patience: float = 15.0) -> str:
    """What ``work`` returns in a fork of this process; the child is killed if it hangs."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    alarm = threading.Timer(patience, kill, [child])
    alarm.start()
    try:
        with open(reader, "rb") as pipe:
            return pipe.read().decode()
    finally:
        alarm.cancel()
        os.waitpid(child, 0)


@pytest.fixture
def outbox(options: dict[str, Any]) -> HoldableOutbox:
    """An outbox whose connection a test may hold."""
    return HoldableOutbox(database(options))


@pytest.fixture
def tracker(make_tracker: Callable[..., Tracker], outbox: HoldableOutbox) -> Tracker:
    return make_tracker(outbox=outbox)


def record(tracker: Tracker, order_id: str) -> str:
    return tracker.visit(make_environ(LINK)).record(make_conversion(order_id)).outcome.name


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # 3.12 on: forking a process with threads
def test_a_fork_while_another_thread_writes_leaves_the_child_able_to_record(
    tracker: Tracker, outbox: HoldableOutbox
) -> None:
    """A child born within a transaction would always believe that its own process holds SQLite's locks."""
    record(tracker, "before")
    writing, written = threading.Event(), threading.Event()

    def write() -> None:
        with outbox.connection().transaction(2) as db:
            db.execute("UPDATE katalys_outbox SET attempts = attempts")
            writing.set()
            written.wait(0.5)

    writer = threading.Thread(target=write)
    writer.start()
    writing.wait()
    outcome = in_child(lambda: record(tracker, "in the child"))
    writer.join()

    assert outcome == "RECORDED"
    assert tracker.drain().settled == 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_lock_held_by_another_thread_at_fork_does_not_hang_the_child(
    tracker: Tracker, outbox: HoldableOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that never lets go costs the fork a moment, and the child nothing."""
    monkeypatch.setattr(process, "PATIENCE_AT_FORK", 0.5)
    record(tracker, "before")
    holding, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with outbox.connection().opened(2):
            holding.set()
            let_go.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()
    try:
        with Stopwatch() as watch:
            outcome = in_child(lambda: record(tracker, "in the child"))
    finally:
        let_go.set()
        holder.join()

    assert outcome == "RECORDED"
    assert watch.seconds < 10


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_starts_a_relay_of_its_own(make_tracker: Callable[..., Tracker], sandbox: Sandbox) -> None:
    """The parent's thread does not exist in the child, whatever the child's memory says."""
    events: list[Event] = []
    tracker = make_tracker(delivery="thread", hooks=[events.append])
    record(tracker, "before")
    sandbox.collector.wait_for(1)

    def record_until_delivered() -> str:
        events.clear()
        for number in range(5):  # the parent's relay may be faster now and then
            record(tracker, f"in the child {number}")
            if happens(lambda: any(event.name == "postback_delivered" for event in events), 1.0):
                return "delivered by the child"
        return "not delivered by the child"

    assert in_child(record_until_delivered) == "delivered by the child"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_an_inherited_connection_is_not_closed_in_the_child(
    tracker: Tracker, outbox: HoldableOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing it could roll back what the parent is just writing."""
    monkeypatch.setattr(process, "PATIENCE_AT_FORK", 0.1)  # this very thread is in the transaction
    record(tracker, "before")

    def close() -> str:
        tracker.close()
        return "closed"

    with outbox.connection().transaction(2) as db:
        db.execute("UPDATE katalys_outbox SET last_error = 'written by the parent'")
        db.execute("PRAGMA cache_spill = 1")
        in_child(close)

    assert tracker.outbox.history("before")[0].last_error == "written by the parent"


def test_a_process_that_leaves_without_closing_loses_nothing(
    options: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    """Nothing depends on atexit: a process that ends right after record() has left its order in the outbox."""
    program = "from tests.faults.shop import tracker; import os; os._exit(0)"
    env = environment({**options, "delivery": "external"}, **WARM)
    subprocess.run([sys.executable, "-c", program], env=env, cwd=tmp_path, check=True, capture_output=True, timeout=60)

    assert Tracker.from_environ(env).drain().settled == 1


FORK_WHILE_LOADING = """
import importlib.abc, logging, os, sys, threading, time
from tests.support import LINK, make_conversion, make_environ

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "requests":
            loading.set()
            time.sleep(1)

class Watching(logging.Handler):
    def emit(self, record):
        if record.katalys.name == "postback_delivered":
            delivered.set()

loading, delivered = threading.Event(), threading.Event()
sys.meta_path.insert(0, Slow())
from tests.faults.shop import tracker
assert loading.wait(10)
child = os.fork()
if child == 0:
    logging.getLogger("katalys_wsgi").addHandler(Watching())
    for number in range(20):  # the parent's relay may be faster now and then
        tracker.visit(make_environ(LINK)).record(make_conversion(f"in the child {number}"))
        tracker.drain()
        if delivered.wait(0.5):
            os._exit(0)
    os._exit(1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_child_born_while_the_parents_relay_is_loading_can_deliver(
    served: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    """What another thread is importing at fork stays locked in the child; its own relay would hang."""
    command = [sys.executable, "-c", FORK_WHILE_LOADING]
    with running(command, environment(served, **WARM), tmp_path / "log") as program:
        code = program.popen.wait(30)

    assert code == 0, program.output()
    assert "in the child" in " ".join(accepted_orders(sandbox))
