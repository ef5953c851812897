"""For the reader: the same conversions through other queues, and how many outlive a kill -9 right after queueing.

``python -m tests.benchmarks.queues KIND DIRECTORY ENDPOINT ORDERS`` queues and prints the seconds it took; whoever
started it kills it as soon as that is printed. What is on the disk or reached the endpoint then has survived.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support import LINK, SECRET, SITE_ID, make_conversion, make_environ

from .measure import ROOT, Plan, Row


def survivors(plan: Plan) -> Row:
    """Queue in a process, kill it, count."""
    orders = plan.pick(1000, 50)
    details = {peer.title: _outcome(peer, plan, orders) for peer in PEERS.values()}
    return Row(f"{orders} orders, then kill -9", "other queues, in a process that is killed at once", details=details)


@dataclass(frozen=True)
class Peer:
    """One way to queue.

    :param module: what it needs.
    :param queue: queues that many orders in a directory, for an endpoint.
    :param count: how many are in the directory; None when it keeps nothing and only what arrived counts.
    """

    title: str
    module: str
    queue: Callable[[Path, str, int], None]
    count: Callable[[Path], int] | None = None


def _queue_ours(directory: Path, endpoint: str, orders: int) -> None:
    from katalys_wsgi import Tracker

    outbox = f"{directory}/outbox.db"
    tracker = Tracker(site_id=SITE_ID, secret_key=SECRET, outbox=outbox, endpoint=endpoint, delivery="external")
    for number in range(orders):
        tracker.visit(make_environ(LINK)).record(make_conversion(f"1{number:08}"))


def _count_ours(directory: Path) -> int:
    with closing(sqlite3.connect(directory / "outbox.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM katalys_outbox WHERE state = 'pending'").fetchone()[0])


def _huey(directory: Path) -> Any:
    from huey import SqliteHuey

    return SqliteHuey(filename=str(directory / "huey.db"))  # by default WAL and synchronous=FULL


def _queue_huey(directory: Path, _: str, orders: int) -> None:
    @_huey(directory).task()  # type: ignore[untyped-decorator] # huey has no types
    def report(properties: dict[str, str]) -> None:
        """Would send it."""

    for number in range(orders):
        report(_properties(number))


def _queue_segment(_: Path, endpoint: str, orders: int) -> None:
    from segment.analytics import Client

    client = Client("key", host=endpoint)
    for number in range(orders):
        client.track("ann@example.com", "Order Completed", _properties(number))


def _queue_posthog(_: Path, endpoint: str, orders: int) -> None:
    from posthog import Posthog

    client = Posthog("key", host=endpoint)
    for number in range(orders):
        client.capture("Order Completed", distinct_id="ann@example.com", properties=_properties(number))


def _properties(number: int) -> dict[str, str]:
    return {
        "order_id": f"1{number:08}", "email_address": "ann@example.com", "sale_amount": "59.90",
        "subtotal_amount": "50.00", "client_ip": "203.0.113.7", "user_agent": "Mozilla/5.0 (X11; Linux x86_64)",
        "discount_1_code": "SPRING", "transaction_id": "1234abcd", "offer_id": "1234", "aff_id": "5678",
    }  # fmt: skip


PEERS = {
    "ours": Peer(f"katalys_wsgi, SQLite {sqlite3.sqlite_version}", "katalys_wsgi", _queue_ours, _count_ours),
    "huey": Peer("huey, SQLite (WAL)", "huey", _queue_huey, lambda directory: int(_huey(directory).pending_count())),
    "segment": Peer("segment-analytics-python", "segment", _queue_segment),
    "posthog": Peer("posthog", "posthog", _queue_posthog),
}


def _outcome(peer: Peer, plan: Plan, orders: int) -> str:
    if importlib.util.find_spec(peer.module) is None:
        return f"skipped: {peer.module} is not installed"
    name = next(name for name, other in PEERS.items() if other is peer)
    with tempfile.TemporaryDirectory(dir=plan.directory) as directory, _counting_collector() as collector:
        command = [sys.executable, "-m", __name__, name, directory, collector.url, str(orders)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            seconds = process.stdout.readline()
            process.kill()
        if not seconds:
            return f"skipped: {peer.module} could not queue"
        time.sleep(0.05 if plan.quick else 0.5)  # what was sent before may still arrive
        left = peer.count(Path(directory)) if peer.count else 0
        survived = left + collector.events
    return f"{float(seconds) / orders * 1e6:.0f} µs each, {survived} of {orders} survive"


@dataclass
class _Counter:
    url: str = ""
    events: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, body: bytes) -> None:
        message = json.loads(gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body)
        with self.lock:
            self.events += len(message["batch"])


@contextmanager
def _counting_collector() -> Iterator[_Counter]:
    """Serve the endpoint that the SDKs send to; it counts the events of each batch."""
    counter = _Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            counter.add(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Print nothing: a killed sender breaks off in the middle of a request."""

    with Server(("127.0.0.1", 0), Handler) as server:
        counter.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield counter
        server.shutdown()


def main(name: str, directory: str, endpoint: str, orders: str) -> None:
    """Queue, print how long it took, and wait to be killed."""
    importlib.import_module(PEERS[name].module)
    started = time.perf_counter()
    PEERS[name].queue(Path(directory), endpoint, int(orders))
    print(time.perf_counter() - started, flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
