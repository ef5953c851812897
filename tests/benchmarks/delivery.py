"""What the relay achieves: draining a backlog as fast as it can, and with a collector that takes its time."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

import katalys_wsgi.delivery.relay  # noqa: F401 - else the first drain would be the one to import it
from katalys_wsgi import Tracker
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from tests.support import SECRET, SITE_ID, make_conversion, make_environ

from .collector import collector
from .measure import Limit, Plan, Row, paired

#: Concurrent sends of the relay.
WORKERS = 4

#: Seconds that the slow collector takes to answer.
SLOW = 0.05

#: With ids as long as Katalys' own.
LINK = "utm_source=Katalys&transaction_id=102ef7451ec3e20cf1360ef6df7e1e&offer_id=1234&publisher_id=5678"


def backlog(plan: Plan) -> Row:
    """A backlog, as after an outage, against the loop that a script would write."""
    rows = plan.pick(400, 50)
    with tempfile.TemporaryDirectory(dir=plan.directory) as directory, collector() as endpoint:
        payloads = _record(directory, endpoint, rows)

        def ours() -> float:
            with _backlog(directory, endpoint) as tracker:
                return _drain(tracker, rows)

        def theirs() -> float:
            started = time.perf_counter()
            with requests.Session() as session:
                for payload in payloads:
                    headers = {"Content-Type": "application/json"}
                    answer = session.post(endpoint, data=payload, headers=headers, timeout=10)
                    if answer.status_code != 204:
                        raise AssertionError(answer.text)
            return time.perf_counter() - started

        times = paired([ours, theirs], rounds=plan.pick(5, 1), passes=1)
    return Row(
        f"draining {rows} rows",
        "a loop of requests.Session().post by one thread",
        [theirs / ours for ours, theirs in times],
        limit=Limit(1.0, at_least=True),  # durable, and no slower than the loop, which forgets all when it is killed
        details={
            "ours": f"{rows / sorted(ours for ours, _ in times)[len(times) // 2]:.0f} rows/s",
            "theirs": f"{rows / sorted(theirs for _, theirs in times)[len(times) // 2]:.0f} rows/s",
        },
    )


def slow_collector(plan: Plan) -> Row:
    """Four workers wait for four answers at a time, if nothing else makes them wait."""
    rows = plan.pick(160, 16)
    with tempfile.TemporaryDirectory(dir=plan.directory) as directory, collector(SLOW) as endpoint:
        _record(directory, endpoint, rows)
        rates = []
        for _ in range(plan.pick(3, 1)):
            with _backlog(directory, endpoint) as tracker:
                rates.append(rows / _drain(tracker, rows))
    return Row(
        "draining, slow collector",
        f"{WORKERS} workers / {SLOW * 1000:.0f} ms",
        [rate / (WORKERS / SLOW) for rate in rates],
        limit=Limit(0.85, at_least=True),  # the rest may go into claims and commits between the answers
        details={"ours": f"{sorted(rates)[len(rates) // 2]:.1f} rows/s"},
    )


def _tracker(path: Path, endpoint: str) -> Tracker:
    return Tracker(
        site_id=SITE_ID,
        secret_key=SECRET,
        endpoint=endpoint,
        outbox=f"{path}",
        delivery="external",
        delivery_workers=WORKERS,
    )


def _record(directory: str, endpoint: str, rows: int) -> list[str]:
    """Fill the outbox that every drain begins with a copy of. Returns the payloads."""
    path = Path(directory, "full.db")
    tracker = _tracker(path, endpoint)
    for number in range(rows):
        tracker.visit(make_environ(LINK)).record(make_conversion(f"1{number:08}"))
    tracker.close()
    outbox = SQLiteOutbox(path)
    payloads = [entry.payload or "" for entry in outbox.with_payload()]
    outbox.close()
    if len(payloads) != rows:
        raise AssertionError(f"{len(payloads)} of {rows} recorded")
    return payloads


@contextmanager
def _backlog(directory: str, endpoint: str) -> Iterator[Tracker]:
    """A tracker with a full outbox; what a drain loads is loaded already."""
    path = Path(directory, "outbox.db")
    tracker = _tracker(path, endpoint)
    tracker.drain()
    tracker.close()
    shutil.copyfile(Path(directory, "full.db"), path)
    try:
        yield tracker
    finally:
        tracker.close()
        path.unlink()


def _drain(tracker: Tracker, rows: int) -> float:
    started = time.perf_counter()
    drained = tracker.drain()
    seconds = time.perf_counter() - started
    if drained.settled != rows:
        raise AssertionError(drained)
    return seconds
