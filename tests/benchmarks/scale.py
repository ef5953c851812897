"""Prints what a backlog costs: record and claim beside 1 thousand, 100 thousand and 1 million pending rows.

    python tests/benchmarks/scale.py [--json] [--quick] [--directory DIR] [ROW…]

The command line and the way of measuring are those of run.py, which says more. Each outbox of the three takes its
turn batch by batch in the same run; the limit is that of design.md section 9. The rows of a backlog are due, and were
recorded one second apart. Then how fast 1, 2 and 4 relay processes of four workers each drain, with a collector that
takes 50 ms to answer: ideal would be 80 rows a second for each. The servers are started for the run, with their
default settings, and skipped where they are not installed. The whole takes about ten minutes and 5 GB.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # started as a file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from sqlalchemy import create_engine, func, insert, select, text
from sqlalchemy.engine import make_url

from katalys_wsgi.conversion.postback import Postback
from katalys_wsgi.outbox import Change, Outbox
from katalys_wsgi.outbox.entry import new_columns
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from tests.benchmarks import run
from tests.benchmarks.collector import collector
from tests.benchmarks.measure import ROOT, Batch, Limit, Plan, Row, Skipped, microseconds, paired
from tests.servers import MariaDB, NotInstalled, Postgres
from tests.support import BUYER_AGENT, BUYER_IP, SECRET, SITE_ID, make_conversion

#: What a relay of four workers claims at a time.
CLAIMED = 128

#: Orders in one timed batch; a commit waits for the disk, so a few are enough.
RECORDED = 10

SIZES = (1_000, 100_000, 1_000_000)
QUICK_SIZES = (200, 400, 800)

WORKERS = 4
SLOW = 0.05

Use = Callable[[Outbox, Iterator[int]], float]
Open = Callable[[int], Outbox]


# --- a backlog ---------------------------------------------------------------------------------------------------


def postback(number: int) -> Postback:
    """An order as a shop reports it."""
    return Postback.from_conversion(
        make_conversion(f"1{number:08}"), site_id=SITE_ID, conversion_type="offline_conv", click=None,
        client_ip=BUYER_IP, user_agent=BUYER_AGENT,
    )  # fmt: skip


def rows(count: int) -> Iterator[dict[str, Any]]:
    """The rows of a backlog: one order, with other numbers."""
    now = time.time()
    order = postback(0)
    pattern = {**new_columns(order, (), now), "history": "[]", "confirmed": False}
    for number in range(count):
        texts = {
            name: pattern[name].replace(order.order_id, f"1{number:08}") for name in ("key", "order_id", "payload")
        }
        at = now - count + number
        yield {**pattern, **texts, "due_at": at, "created_at": at, "pending_since": at}


def fill(url: str, outbox: Outbox, count: int) -> None:
    """Write a backlog in bulk, and let the database count it as it does by itself in the first minute."""
    outbox.statistics()  # makes the table
    engine = create_engine(url)
    table = SQLAlchemyOutbox(url).table
    waiting = rows(count)
    while batch := list(itertools.islice(waiting, 10_000)):
        with engine.begin() as db:
            db.execute(insert(table), batch)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        analyze = {"postgresql": "VACUUM ANALYZE katalys_outbox", "mysql": "ANALYZE TABLE katalys_outbox"}
        if db.dialect.name in analyze:
            db.execute(text(analyze[db.dialect.name])).close()
    engine.dispose()


@contextmanager
def on_sqlite(plan: Plan) -> Iterator[Open]:
    """Outboxes in files of their own."""
    with tempfile.TemporaryDirectory(dir=plan.directory) as directory:

        def open_it(count: int) -> Outbox:
            path = Path(directory, f"{count}.db")
            outbox = SQLiteOutbox(path)
            fill(f"{path}", outbox, count)
            return outbox

        yield open_it


@contextmanager
def server(plan: Plan, make: Callable[[Path], Any]) -> Iterator[Any]:
    """A server for this run."""
    with tempfile.TemporaryDirectory(dir=plan.directory, ignore_cleanup_errors=True) as directory:
        try:
            running = make(Path(directory))
        except NotInstalled as fault:
            raise Skipped(str(fault)) from None
        try:
            yield running
        finally:
            running.stop()


def database(url: str, name: str) -> str:
    """A fresh database on the server of ``url``."""
    with create_engine(url, isolation_level="AUTOCOMMIT").connect() as db:
        db.execute(text(f"CREATE DATABASE {name}"))
        db.engine.dispose()
    return make_url(url).set(database=name).render_as_string(hide_password=False)


@contextmanager
def on_a_server(plan: Plan, make: Callable[[Path], Any]) -> Iterator[Open]:
    """Outboxes in databases of their own, on one server."""
    with server(plan, make) as running:

        def open_it(count: int) -> Outbox:
            url = database(running.url, f"rows_{count}")
            outbox = SQLAlchemyOutbox(url)
            fill(url, outbox, count)
            return outbox

        yield open_it


@contextmanager
def on_postgresql(plan: Plan) -> Iterator[Open]:
    with on_a_server(plan, Postgres) as open_it:
        yield open_it


@contextmanager
def on_mariadb(plan: Plan) -> Iterator[Open]:
    with on_a_server(plan, MariaDB) as open_it:
        yield open_it


# --- record and claim beside it ----------------------------------------------------------------------------------


def record(outbox: Outbox, numbers: Iterator[int]) -> float:
    """Record a few orders."""
    postbacks = [postback(90_000_000 + next(numbers)) for _ in range(RECORDED)]
    started = time.perf_counter()
    for one in postbacks:
        outbox.add(one)
    return time.perf_counter() - started


def claim(outbox: Outbox, _: Iterator[int]) -> float:
    """Claim what a relay claims at a time, and put it back."""
    started = time.perf_counter()
    entries = outbox.claim(CLAIMED, 60)
    seconds = time.perf_counter() - started
    if outbox.apply([Change.release(entry) for entry in entries]) != CLAIMED:
        raise AssertionError("the backlog is smaller than a claim")
    return seconds


def beside(plan: Plan, where: str, what: str, use: Use, calls: int) -> Row:
    """Use an outbox of each size by turns."""
    place, most = PLACES[where]
    sizes = QUICK_SIZES if plan.quick else [size for size in SIZES if size <= most]
    numbers = itertools.count()
    with place(plan) as open_it, ExitStack() as stack:
        outboxes = [open_it(size) for size in sizes]
        for outbox in outboxes:
            stack.callback(outbox.close)

        def batch(outbox: Outbox) -> Batch:
            return lambda: use(outbox, numbers)

        batches = [batch(outbox) for outbox in outboxes]
        for one in batches * 3:  # open the connections, warm the caches, settle the plans
            one()
        times = paired(batches, rounds=plan.pick(15, 2), passes=plan.pick(6, 2))
    details = {f"{size:,} rows": microseconds((round_[at] for round_ in times), calls) for at, size in enumerate(sizes)}
    for at in range(1, len(sizes) - 1):
        details[f"ratio at {sizes[at]:,}"] = f"{median(round_[at] / round_[0] for round_ in times):.2f}"
    return Row(
        f"{what}, {where}, {sizes[-1]:,}",
        f"the same at {sizes[0]:,}",
        [round_[-1] / round_[0] for round_ in times],
        limit=Limit(1.3),
        details=details,
    )


PLACES: dict[str, tuple[Callable[[Plan], Any], int]] = {
    "SQLite": (on_sqlite, 1_000_000),
    "PostgreSQL": (on_postgresql, 1_000_000),
    "MariaDB": (on_mariadb, 100_000),  # the driver takes minutes to write more
}


# --- relays ------------------------------------------------------------------------------------------------------


def relays_on_postgresql(plan: Plan) -> Row:
    """One, two and four ``katalys-wsgi deliver`` on one server."""
    with server(plan, Postgres) as running:
        return relays(plan, "PostgreSQL", lambda count: database(running.url, f"relays_{count}"))


def relays_on_sqlite(plan: Plan) -> Row:
    """The same on one file of one machine."""
    with tempfile.TemporaryDirectory(dir=plan.directory) as directory:
        return relays(plan, "SQLite", lambda count: f"{directory}/{count}.db")


def relays(plan: Plan, where: str, place: Callable[[int], str]) -> Row:
    counts = (1, 2) if plan.quick else (1, 2, 4)
    with collector(SLOW) as endpoint:
        rates = {count: drained(place(count), endpoint, count, count * plan.pick(1200, 40)) for count in counts}
    most = counts[-1]
    return Row(
        f"draining, {most} relays, {where}",
        f"{most} relays of {WORKERS} workers / {SLOW * 1000:.0f} ms",
        [rates[most] / (most * WORKERS / SLOW)],
        details={f"{count} relays": f"{rate:.0f} rows/s" for count, rate in rates.items()},
    )


def drained(url: str, endpoint: str, count: int, waiting: int) -> float:
    """Rows a second, from the first one that was delivered to the last."""
    path = url.removeprefix("sqlite:///")
    outbox: Outbox = SQLAlchemyOutbox(url) if path == url else SQLiteOutbox(path)
    settings = {
        "SITE_ID": SITE_ID, "SECRET_KEY": SECRET, "ENDPOINT": endpoint, "OUTBOX": url,
        "DELIVERY_WORKERS": str(WORKERS),
    }  # fmt: skip
    env = {**os.environ, **{f"KATALYS_{name}": value for name, value in settings.items()}}
    fill(url, outbox, waiting)
    command = [sys.executable, "-m", "katalys_wsgi", "deliver"]
    processes = [subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        while outbox.statistics().pending:
            time.sleep(0.5)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
        outbox.close()
    engine = create_engine(url)
    with engine.connect() as db:
        finished = SQLAlchemyOutbox(url).table.c.finished_at
        first, last = db.execute(select(func.min(finished), func.max(finished))).one()
    engine.dispose()
    return waiting / (last - first + SLOW)


ROWS: dict[str, Callable[[Plan], Row]] = {
    f"{what}-{where.lower()}": partial(beside, where=where, what=what, use=use, calls=calls)
    for what, use, calls in (("record", record, RECORDED), ("claim", claim, 1))
    for where in PLACES
}
ROWS |= {
    "relays-sqlite": relays_on_sqlite,
    "relays-postgresql": relays_on_postgresql,
}


if __name__ == "__main__":
    run.ROWS = ROWS
    sys.exit(run.main())
