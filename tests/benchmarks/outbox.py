"""What a checkout pays: ``record()`` into SQLite beside the least that makes a row durable, an INSERT and a commit."""

from __future__ import annotations

import itertools
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import katalys_wsgi.outbox.sqlite  # noqa: F401 - so that _in_journal_mode() finds it
from katalys_wsgi import Outcome, Tracker, Visit
from tests.support import LINK, SECRET, SITE_ID, make_conversion, make_environ

from .measure import Limit, Plan, Row, microseconds, paired

#: Orders in one timed batch; a commit waits for the disk, so a few are enough.
CALLS = 10

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
