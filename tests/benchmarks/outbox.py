"""What a checkout pays: ``record()`` into SQLite, alone beside an INSERT and a commit, and many at the same moment."""

from __future__ import annotations

import itertools
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import katalys_wsgi.outbox.sqlite  # noqa: F401 - so that _in_journal_mode() finds it
from katalys_wsgi import Outcome, Tracker, Visit
from tests.support import LINK, SECRET, SITE_ID, make_conversion, make_environ

from .measure import Limit, Plan, Row, microseconds, paired

#: Orders in one timed batch; a commit waits for the disk, so a few are enough.
CALLS = 10

#: Threads that check out at the same moment, and orders of each.
THREADS, EACH = 64, 20

#: As long as a conversion's own.
PAYLOAD = "x" * 380


def rollback_journal(plan: Plan) -> Row:
    """The mode of SQLite before 3.51.3."""
    # Ours also builds the message, looks for an earlier row and keeps three indexes.
    return _record(plan, "record(), rollback journal", "TRUNCATE", Limit(1.5))


def write_ahead_log(plan: Plan) -> Row:
    """The mode of a newer SQLite; one process writes here, so it can be measured safely with any version."""
    # A commit waits less for the disk, so the rest of record() counts for more than with a rollback journal.
    return _record(plan, "record(), WAL", "WAL", Limit(2.0))


def burst(plan: Plan) -> Row:
    """Many checkouts in the same moment, in the threads of one process: each waits for the commits before its own."""
    with tempfile.TemporaryDirectory(dir=plan.directory) as directory, _shop(directory) as visits:
        alone = sorted(_recording(list(itertools.islice(visits, plan.pick(1000, 10))), "alone"))
        waits: list[float] = []
        batches = [list(itertools.islice(visits, plan.pick(EACH, 2))) for _ in range(THREADS)]
        started = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as threads:
            for times in threads.map(_recording, batches, map(str, range(THREADS))):
                waits += times
        seconds = time.perf_counter() - started
    waits.sort()
    return Row(
        f"{THREADS} checkouts at once",
        "one alone",
        details={
            "alone": f"median {_percentile(alone, 0.5):.1f} ms, 99 of 100 below {_percentile(alone, 0.99):.1f} ms",
            "at once": f"median {_percentile(waits, 0.5):.0f} ms, 99 of 100 below {_percentile(waits, 0.99):.0f} ms, "
            f"{len(waits) / seconds:.0f} a second",
        },
    )


def _recording(visits: list[Visit], name: str) -> list[float]:
    """Record an order for each visit; the seconds that each took."""
    times = []
    for number, visit in enumerate(visits):
        conversion = make_conversion(f"{name}-{number}")
        started = time.perf_counter()
        record = visit.record(conversion)
        times.append(time.perf_counter() - started)
        if record.outcome is not Outcome.RECORDED:
            raise AssertionError(record)
    return times


def _percentile(ascending: list[float], part: float) -> float:
    """In milliseconds."""
    return ascending[int((len(ascending) - 1) * part)] * 1000


def _record(plan: Plan, name: str, journal_mode: str, limit: Limit) -> Row:
    with (
        tempfile.TemporaryDirectory(dir=plan.directory) as directory,
        _in_journal_mode(journal_mode),
        _shop(directory) as visits,
        closing(_bare(directory, journal_mode)) as bare,
    ):
        numbers = itertools.count()

        def ours() -> float:
            orders = [(next(visits), make_conversion(f"1{next(numbers):08}")) for _ in range(CALLS)]
            started = time.perf_counter()
            records = [visit.record(conversion) for visit, conversion in orders]
            seconds = time.perf_counter() - started
            if any(record.outcome is not Outcome.RECORDED for record in records):
                raise AssertionError(records)
            return seconds

        def theirs() -> float:
            started = time.perf_counter()
            for _ in range(CALLS):
                bare.execute("INSERT INTO bare (key, payload) VALUES (?, ?)", (f"{next(numbers):08}", PAYLOAD))
                bare.commit()
            return time.perf_counter() - started

        ours(), theirs()  # open the files
        times = paired([ours, theirs], rounds=plan.pick(15, 2), passes=plan.pick(6, 2))
        _check_mode(directory, journal_mode)
    return Row(
        name,
        "a bare INSERT and commit, synchronous=FULL",
        [ours / theirs for ours, theirs in times],
        limit=limit,
        details={
            "ours": microseconds((ours for ours, _ in times), CALLS),
            "theirs": microseconds((theirs for _, theirs in times), CALLS),
        },
    )


@contextmanager
def _in_journal_mode(journal_mode: str) -> Iterator[None]:
    """Have the outbox use this mode: it picks one by SQLite's version, and both are measured with any version."""
    ours = [module for name, module in sys.modules.items() if name.startswith("katalys_wsgi.outbox.")]
    with ExitStack() as stack:
        for module in ours:
            if hasattr(module, "journal_mode"):
                stack.enter_context(patch.object(module, "journal_mode", lambda: journal_mode))
        yield


@contextmanager
def _shop(directory: str) -> Iterator[Iterator[Visit]]:
    """Yield the visits of checkouts, each with the cookie of a click."""
    tracker = Tracker(site_id=SITE_ID, secret_key=SECRET, outbox=f"{directory}/outbox.db", delivery="external")
    cookie = (tracker.set_cookie_for(make_environ(LINK)) or "").partition(";")[0]
    try:
        yield (tracker.visit(make_environ(cookie=cookie)) for _ in itertools.repeat(None))
    finally:
        tracker.close()


def _bare(directory: str, journal_mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(Path(directory, "bare.db"))
    connection.execute(f"PRAGMA journal_mode = {journal_mode}").fetchall()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE bare (key TEXT PRIMARY KEY, payload TEXT NOT NULL)")
    connection.commit()
    return connection


def _check_mode(directory: str, expected: str) -> None:
    """Only WAL is kept in the file, the other modes belong to a connection."""
    with closing(sqlite3.connect(Path(directory, "outbox.db"))) as connection:
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    if (mode == "wal") != (expected == "WAL"):
        raise AssertionError(f"the outbox is in journal mode {mode}, which is not what is measured")
