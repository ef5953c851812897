"""What the relay achieves: draining a backlog as fast as it can, and with a collector that takes its time."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import requests

import katalys_wsgi.delivery.relay  # noqa: F401 - else the first drain would be the one to import it
from katalys_wsgi import Click, Settings, Tracker
from katalys_wsgi.conversion.postback import Postback
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from tests.support import BUYER_AGENT, BUYER_IP, SECRET, SITE_ID, make_conversion

from .collector import collector
from .measure import Limit, Plan, Row, paired

WORKERS = 4
SLOW = 0.05


def backlog(plan: Plan) -> Row:
    """Rows that wait for a relay to come back, against the loop that a script would write."""
    rows = plan.pick(400, 50)
    with tempfile.TemporaryDirectory(dir=plan.directory) as directory, collector() as endpoint:
        payloads = _record(Path(directory, "full.db"), rows)

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
        limit=Limit(1.0, at_least=True),
        details={
            "ours": f"{rows / sorted(ours for ours, _ in times)[len(times) // 2]:.0f} rows/s",
            "theirs": f"{rows / sorted(theirs for _, theirs in times)[len(times) // 2]:.0f} rows/s",
        },
    )


def slow_collector(plan: Plan) -> Row:
    """Four workers wait for four answers at a time, if nothing else makes them wait."""
    rows = plan.pick(160, 16)
    with tempfile.TemporaryDirectory(dir=plan.directory) as directory, collector(SLOW) as endpoint:
        _record(Path(directory, "full.db"), rows)
        rates = []
        for _ in range(plan.pick(3, 1)):
            with _backlog(directory, endpoint) as tracker:
                rates.append(rows / _drain(tracker, rows))
    return Row(
        "draining, slow collector",
        f"{WORKERS} workers / {SLOW * 1000:.0f} ms",
        [rate / (WORKERS / SLOW) for rate in rates],
        limit=Limit(0.85, at_least=True),
        details={"ours": f"{sorted(rates)[len(rates) // 2]:.1f} rows/s"},
    )


def _record(path: Path, rows: int) -> list[str]:
    """Fill an outbox; every drain begins with a copy of it. Returns the payloads."""
    click = Click("102ef7451ec3e20cf1360ef6df7e1e", "1234", "5678", datetime.now(timezone.utc))
    outbox = SQLiteOutbox(path)
    payloads = []
    for number in range(rows):
        postback = Postback.from_conversion(
            make_conversion(f"1{number:08}"),
            site_id=SITE_ID,
            conversion_type="force_convert",
            click=click,
            client_ip=BUYER_IP,
            user_agent=BUYER_AGENT,
        )
        outbox.add(postback)
        payloads.append(postback.payload)
    outbox.close()
    return payloads


@contextmanager
def _backlog(directory: str, endpoint: str) -> Iterator[Tracker]:
    path = Path(directory, "outbox.db")
    shutil.copyfile(Path(directory, "full.db"), path)
    settings = Settings(
        site_id=SITE_ID,
        secret_key=SECRET,  # type: ignore[arg-type] # Settings converts
        endpoint=endpoint,
        outbox=f"{path}",
        delivery="external",
        delivery_workers=WORKERS,
    )
    tracker = Tracker(settings)
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
