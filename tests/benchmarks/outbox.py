"""What a checkout pays: ``record()`` into SQLite beside the least that keeps anything, a bare INSERT and commit."""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest.mock import patch

from katalys_wsgi import Click, Outcome, Tracker
from katalys_wsgi.attribution.cookie import ClickCookie
from katalys_wsgi.outbox import schema
from tests.support import SECRET, SITE_ID, make_conversion, make_environ

from .measure import Limit, Plan, Row, microseconds, paired

#: Orders in one timed batch; a commit waits for the disk, so a few are enough.
CALLS = 10

#: As long as a conversion's own.
PAYLOAD = "x" * 380


def rollback_journal(plan: Plan) -> Row:
    """What SQLite before 3.51.3 gets."""
    return _record(plan, "record(), rollback journal", "TRUNCATE", 1.5)


def write_ahead_log(plan: Plan) -> Row:
    """What a newer SQLite gets; one process writes here, so measuring it is safe with any."""
    return _record(plan, "record(), WAL", "WAL", 2.0)


def _record(plan: Plan, name: str, journal_mode: str, bound: float) -> Row:
    with (
        tempfile.TemporaryDirectory(dir=plan.directory) as directory,
        # The outbox picks the mode by SQLite's version; both are measured, whichever version is here.
        patch.object(schema, "journal_mode", lambda: journal_mode),
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
        limit=Limit(bound),
        details={
            "ours": microseconds((ours for ours, _ in times), CALLS),
            "theirs": microseconds((theirs for _, theirs in times), CALLS),
        },
    )


@contextmanager
def _shop(directory: str) -> Iterator[Iterator[Any]]:
    """Yield the visits of checkouts, each with the cookie of a click."""
    tracker = Tracker(site_id=SITE_ID, secret_key=SECRET, outbox=f"{directory}/outbox.db", delivery="external")
    click = Click("102ef7451ec3e20cf1360ef6df7e1e", "1234", "5678", datetime.now(timezone.utc))
    value = ClickCookie([SECRET], window=tracker.settings.attribution_window).dumps(click)
    try:
        yield (tracker.visit(make_environ(cookie=f"katalys_click={value}")) for _ in itertools.repeat(None))
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
