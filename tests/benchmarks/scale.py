"""Prints what a backlog costs: record and claim beside 1 thousand, 100 thousand and 1 million pending rows.

    python tests/benchmarks/scale.py [--json] [--quick] [--directory DIR] [ROW…]

The command line and the way of measuring are those of run.py, which says more. Each outbox of the three takes its
turn batch by batch in the same run; beside a million rows, record and claim may take 1.3 times as long as beside a
thousand. The rows of a backlog are due, and were recorded one second apart. Then how fast 1, 2 and 4 relay processes
of four workers each drain, with a collector that takes 50 ms to answer: ideal would be 80 rows a second for each. The
servers are started for the run, with their default settings, and skipped where they are not installed. The whole
takes about ten minutes and 5 GB.
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

from sqlalchemy import Engine, MetaData, create_engine, func, insert, select, text
from sqlalchemy.engine import make_url

from katalys_wsgi.conversion.postback import Postback
from katalys_wsgi.outbox import Archive
from katalys_wsgi.outbox.entry import Change
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox, outbox_table
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

#: Concurrent sends of one relay.
WORKERS = 4

#: Seconds that the collector takes to answer a relay.
SLOW = 0.05

Use = Callable[[Archive, Iterator[int]], float]
Open = Callable[[int], Archive]

#: The rows, as any program that uses SQLAlchemy sees them.
TABLE = outbox_table(MetaData())


# --- a backlog ---------------------------------------------------------------------------------------------------


def postback(number: int) -> Postback:
    """An order as a shop reports it."""
    return Postback.from_conversion(
        make_conversion(f"1{number:08}"), site_id=SITE_ID, conversion_type="offline_conv", click=None,
        client_ip=BUYER_IP, user_agent=BUYER_AGENT,
    )  # fmt: skip


def outbox_of(setting: str) -> Archive:
    """The outbox of a setting: a path is our file, a URL a database."""
    return SQLAlchemyOutbox(setting) if "://" in setting else SQLiteOutbox(setting)


def connect(setting: str) -> Engine:
    """The same rows through SQLAlchemy."""
    return create_engine(setting if "://" in setting else f"sqlite:///{setting}")


def copies(row: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """A row with other orders' numbers, the last one recorded a second before it."""
    for number in range(1, count + 1):
        texts = {name: row[name].replace(row["order_id"], f"1{number:08}") for name in ("key", "order_id", "payload")}
        at = row["created_at"] - count - 1 + number
        yield {**row, **texts, "due_at": at, "created_at": at, "pending_since": at}


def fill(setting: str, count: int) -> Archive:
    """Write a backlog in bulk, and let the database count it as it does by itself in the first minute."""
    outbox = outbox_of(setting)
    outbox.add(postback(0))  # makes the table, and the row to copy
    written = [column for column in TABLE.columns if column.name != "id" and column.computed is None]
    engine = connect(setting)
    with engine.begin() as db:
        waiting = copies(dict(db.execute(select(*written)).mappings().one()), count - 1)
    while batch := list(itertools.islice(waiting, 10_000)):
        with engine.begin() as db:
            db.execute(insert(TABLE), batch)
    analyze(engine)
    engine.dispose()
    return outbox


def analyze(engine: Engine) -> None:
    """Have the database look at its tables, where it plans by what it knows about them."""
    commands = {"postgresql": "VACUUM ANALYZE katalys_outbox", "mysql": "ANALYZE TABLE katalys_outbox"}
    if engine.dialect.name in commands:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
            db.execute(text(commands[engine.dialect.name])).close()


@contextmanager
def on_sqlite(plan: Plan) -> Iterator[Open]:
    """Outboxes in files of their own."""
    with tempfile.TemporaryDirectory(dir=plan.directory) as directory:
        yield lambda count: fill(f"{directory}/{count}.db", count)


@contextmanager
def server(plan: Plan, make: Callable[[Path], Any]) -> Iterator[Any]:
    """A server for this run."""
    with tempfile.TemporaryDirectory(dir=plan.directory, ignore_cleanup_errors=True) as directory:
        try:
            running = make(Path(directory))
        except NotInstalled as error:
            raise Skipped(str(error)) from None
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
        yield lambda count: fill(database(running.url, f"rows_{count}"), count)


@contextmanager
def on_postgresql(plan: Plan) -> Iterator[Open]:
    with on_a_server(plan, Postgres) as open_it:
        yield open_it


@contextmanager
def on_mariadb(plan: Plan) -> Iterator[Open]:
    with on_a_server(plan, MariaDB) as open_it:
        yield open_it


# --- record and claim beside it ----------------------------------------------------------------------------------


def record(outbox: Archive, numbers: Iterator[int]) -> float:
    """Record a few orders."""
    postbacks = [postback(90_000_000 + next(numbers)) for _ in range(RECORDED)]
    started = time.perf_counter()
    for one in postbacks:
        outbox.add(one)
    return time.perf_counter() - started


def claim(outbox: Archive, _: Iterator[int]) -> float:
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

        def batch(outbox: Archive) -> Batch:
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
        limit=Limit(1.3),  # a backlog of days must not slow down the checkout that adds to it
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


def drained(setting: str, endpoint: str, count: int, waiting: int) -> float:
    """Rows a second, from the first one that was delivered to the last."""
    outbox = outbox_of(setting)
    for number in range(waiting):
        outbox.add(postback(number))
    engine = connect(setting)
    analyze(engine)
    with relay_processes(setting, endpoint, count):
        while outbox.statistics().pending:
            time.sleep(0.5)
    outbox.close()
    with engine.connect() as db:
        first, last = db.execute(select(func.min(TABLE.c.finished_at), func.max(TABLE.c.finished_at))).one()
    engine.dispose()
    return waiting / (float(last) - float(first) + SLOW)


@contextmanager
def relay_processes(setting: str, endpoint: str, count: int) -> Iterator[None]:
    """So many ``katalys-wsgi deliver``, which are stopped at the end."""
    settings = {
        "SITE_ID": SITE_ID, "SECRET_KEY": SECRET, "ENDPOINT": endpoint, "OUTBOX": setting,
        "DELIVERY_WORKERS": str(WORKERS),
    }  # fmt: skip
    env = {**os.environ, **{f"KATALYS_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "katalys_wsgi", "deliver"]
    processes = [subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


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
