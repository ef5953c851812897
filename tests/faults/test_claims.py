"""Many relays on one outbox: each row is claimed by one of them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi.conversion.postback import Kind, Postback
from katalys_wsgi.outbox.rules import new_columns
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox
from tests.support import SITE_ID

from .harness import database, environment, happens, race, running, states

ROWS = 5000
PROCESSES = 8

CLAIMER = """
import json, sys
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
outbox = SQLiteOutbox(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
claims = []
while entries := outbox.claim(37, 600):
    claims.append([[entry.id, entry.attempts, entry.lease_token] for entry in entries])
print(json.dumps(claims))
"""


def fill(outbox: SQLiteOutbox, rows: int) -> None:
    """Many pending rows in one transaction."""
    outbox.claim(1, 1.0)  # makes the file
    columns = [
        new_columns(
            Postback.from_fields({"site_id": SITE_ID, "order_id": str(number)}, Kind.CONVERSION), [], time.time()
        )
        for number in range(rows)
    ]
    names, marks = ", ".join(columns[0]), ", ".join(f":{name}" for name in columns[0])
    with closing(sqlite3.connect(outbox.path)) as db, db:
        db.executemany(f"INSERT INTO katalys_outbox ({names}) VALUES ({marks})", columns)  # noqa: S608


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_eight_processes_claim_disjoint_rows_and_leave_none(tmp_path: Path) -> None:
    outbox = SQLiteOutbox(tmp_path / "outbox.db")
    fill(outbox, ROWS)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with ExitStack() as stack:
        claimers = [
            stack.enter_context(
                running([sys.executable, "-c", CLAIMER, outbox.path], environment({}), tmp_path / "log", **pipes)
            ).popen
            for _ in range(PROCESSES)
        ]
        claims = [claim for printed in race(claimers) for claim in json.loads(printed)]

    rows = [row for claim in claims for row in claim]
    busy = Counter(len(claim) for claim in claims)
    print(f"\n{PROCESSES} processes: {len(claims)} claims of {ROWS} rows, by size {dict(busy)}")
    assert Counter(row_id for row_id, _, _ in rows) == Counter(range(1, ROWS + 1))
    assert {attempts for _, attempts, _ in rows} == {1}
    assert len({token for _, _, token in rows}) == len(claims)
    assert all(len({token for _, _, token in claim}) == 1 for claim in claims)
    outbox.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_several_relay_processes_deliver_each_row_once(
    options: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    """Nobody dies, so nothing is sent twice, however many relays there are."""
    outbox = SQLiteOutbox(database(options))
    fill(outbox, 400)
    # These rows are too thin for a correct answer; here only the number of sends counts.
    sandbox.collector.misbehave(Misbehaviour.status(204))
    with ExitStack() as stack:
        for number in range(4):
            command = [sys.executable, "-m", "katalys_wsgi", "deliver"]
            stack.enter_context(running(command, environment(options), tmp_path / f"relay-{number}.log"))
        settled = happens(lambda: states(outbox.path).keys() == {"delivered"}, 60)

    sent = [received.fields["order_id"] for received in sandbox.collector.received]
    assert settled
    assert sorted(map(int, sent)) == list(range(400))
    outbox.close()
