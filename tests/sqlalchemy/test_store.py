"""katalys_wsgi/outbox/sqlalchemy/store.py: the outbox in a database keeps the promises of every outbox.

The suite is that of outbox_conformance.py, unchanged; what only a database does follows.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, inspect, text

from katalys_wsgi import OutboxMissing, OutboxUnavailable
from katalys_wsgi.outbox import Added, Archive, Change, Entry, Outbox, Receipt, Verdict
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox, store

from ..outbox_conformance import (  # noqa: F401 - the suite
    LEASE,
    TestAdd,
    TestApply,
    TestClaim,
    TestClockJumps,
    TestDeadLetters,
    TestDropping,
    TestFairness,
    TestForgetting,
    TestOrderSequence,
    TestPruning,
    TestQuestions,
    TestRevival,
    conversion,
    row,
)
from ..support import Clock, Stopwatch, wait_until
from ..test_entry import make_entry
from .shop import ROOT, Base, engine_of, environment, run


def test_it_is_an_archive(outbox: Outbox) -> None:
    """Operators' commands work on it as on the file."""
    assert isinstance(outbox, Archive)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda outbox: outbox.history("1001"), id="history"),
        pytest.param(lambda outbox: outbox.entries(), id="entries"),
        pytest.param(lambda outbox: outbox.failing(), id="failing"),
        pytest.param(lambda outbox: list(outbox.with_payload()), id="with_payload"),
        pytest.param(lambda outbox: outbox.revive(make_entry(), conversion()), id="revive"),
        pytest.param(lambda outbox: outbox.forget([]), id="forget"),
        pytest.param(lambda outbox: outbox.drop([]), id="drop"),
        pytest.param(lambda outbox: outbox.statistics(), id="statistics"),
    ],
)
def test_those_who_read_make_no_table_and_no_file(
    use: Callable[[Archive], object], outbox: SQLAlchemyOutbox, url: str, tmp_path: Path
) -> None:
    """A command in the wrong directory, or with the wrong address, leaves no trace there."""
    with pytest.raises(OutboxMissing, match="No outbox at"):
        use(outbox)
    assert list(tmp_path.iterdir()) == []

    with engine_of(url) as engine:
        Base.metadata.create_all(engine)  # the database is there now
        with pytest.raises(OutboxMissing, match="No outbox at"):
            use(outbox)
        assert not inspect(engine).has_table("katalys_outbox")


def test_in_the_shops_transaction_a_question_makes_no_table(outbox: SQLAlchemyOutbox, engine: Engine) -> None:
    with engine.connect() as db, pytest.raises(OutboxMissing):
        outbox.history("1001", connection=db)

    assert not inspect(engine).has_table("katalys_outbox")


def test_the_databases_clock_decides(real_time: SQLAlchemyOutbox) -> None:
    """Hosts disagree about the time; it is in UTC whatever the session's time zone."""
    before = time.time()
    real_time.add(conversion())
    created_at = row(real_time).created_at
    (entry,) = real_time.claim(1, LEASE)
    after = time.time()

    assert before - 1 <= created_at <= after + 1
    assert before + LEASE - 1 <= (entry.leased_until or 0) <= after + LEASE + 1


def test_odd_strings_are_kept(outbox: SQLAlchemyOutbox) -> None:
    """PostgreSQL takes no NUL; an order id of any length may come as an invalid order."""
    long = conversion("x" * 1000)
    assert outbox.add(long, problems=["order_id: is too long"]) is Added.NEW
    assert outbox.add(conversion("a\0b"), problems=["order_id: holds control characters"]) is Added.NEW
    outbox.add(conversion())
    entry = outbox.claim(1, LEASE)[0]
    outbox.apply([Change.postpone(entry, Receipt(Verdict.RETRY, 500, "HTTP 500: a\0b 😀"), 5.0)])
    assert "HTTP 500" in (row(outbox).last_error or "")


def test_a_dead_letter_that_another_process_replaces_first_is_different(
    outbox: SQLAlchemyOutbox,
) -> None:
    """Two webhooks correct one order at once: one of them wins, and the other is not called recorded."""
    outbox.add(conversion(), problems=["sale_amount: is missing"])

    @event.listens_for(outbox.engine, "before_cursor_execute")
    def _(_: Connection, cursor: Any, statement: str, *__: object) -> None:
        if statement.startswith("UPDATE"):
            cursor.execute("UPDATE katalys_outbox SET state = 'pending'")

    assert outbox.add(conversion(sale_amount="1.00")) is Added.DIFFERENT
    assert row(outbox).payload == conversion().payload


#: How a database shows its plan, and the words for a subquery that is run once for each row that the claim reads.
PLANS = {
    "sqlite": ("EXPLAIN QUERY PLAN", "CORRELATED SCALAR SUBQUERY"),
    "postgresql": ("EXPLAIN", "SubPlan"),
    "mysql": ("EXPLAIN", "DEPENDENT SUBQUERY"),
}


def test_a_claim_looks_at_the_orders_of_its_own_rows_only(outbox: SQLAlchemyOutbox) -> None:
    """Beside a million waiting rows, an anti-join over the whole backlog would take seconds."""
    claims: list[tuple[str, Any]] = []

    @event.listens_for(outbox.engine, "before_cursor_execute")
    def _(_: Connection, __: object, statement: str, values: Any, *___: object) -> None:
        if "older" in statement:
            claims.append((statement, values))

    outbox.claim(10, LEASE)
    statement, values = claims[0]
    with outbox.engine.connect() as db:
        explain, words = PLANS[db.dialect.name]
        plan = str(db.exec_driver_sql(f"{explain} {statement}", values).all())

    assert words in plan
    assert "katalys_outbox_order" in plan or db.dialect.name == "postgresql"  # which scans a table this small


def test_pruning_goes_on_until_nothing_old_is_left(
    outbox: SQLAlchemyOutbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows in one transaction, because pages wait while it lasts."""
    monkeypatch.setattr(store, "PRUNED_AT_A_TIME", 2)
    for number in range(5):
        outbox.add(conversion(str(number)), problems=["sale_amount: is missing"])
    clock.advance(1.0)
    outbox.add(conversion("kept"))

    assert outbox.prune(clock()) == 5
    assert [entry.order_id for entry in outbox.entries()] == ["kept"]


@pytest.mark.parametrize("uses", ["address", "engine"])
def test_a_fork_shares_nothing_with_its_parent(url: str, real_time: SQLAlchemyOutbox, uses: str) -> None:
    """Servers fork after the shop was loaded, and maybe used."""
    script = """
        import os, sys
        from sqlalchemy import create_engine
        from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox, store
        from tests.outbox_conformance import conversion
        url, uses = sys.argv[1:]
        outbox = SQLAlchemyOutbox(url if uses == "address" else create_engine(url))
        outbox.add(conversion("before"))
        children = []
        for number in range(3):
            child = os.fork()
            if not child:
                for count in range(20):
                    outbox.add(conversion(f"{number}-{count}"))
                outbox.close()
                sys.exit(0)  # with everything that an interpreter does when it ends
            children.append(child)
        for count in range(20):
            outbox.add(conversion(f"parent-{count}"))
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        outbox.add(conversion("after"))
        outbox.close()
    """

    assert run(script, url, uses, options=("-W", "ignore")) == (0, "")
    assert real_time.statistics().pending == 82


def test_closing_leaves_the_shops_engine_open(engine: Engine) -> None:
    with engine.connect() as db:
        outbox = SQLAlchemyOutbox(engine)
        outbox.claim(1, LEASE)
        pool = engine.pool
        outbox.close()

        assert outbox.engine is engine
        assert engine.pool is pool  # disposing would have made another
        assert db.scalar(text("SELECT 1")) == 1


def test_closing_closes_its_own_engine(real_time: SQLAlchemyOutbox) -> None:
    real_time.close()  # which was never used
    real_time.claim(1, LEASE)
    pool = real_time.engine.pool
    real_time.close()

    assert real_time.engine.pool is not pool
    assert real_time.statistics().pending == 0  # the next use opens it again


@pytest.mark.slow
def test_a_page_waits_two_seconds_for_a_lock(server_url: str) -> None:
    outbox = SQLAlchemyOutbox(server_url)
    outbox.claim(1, LEASE)
    with engine_of(server_url) as engine, engine.connect() as other:
        outbox.add(conversion(), connection=other)
        with Stopwatch() as watch, pytest.raises(OutboxUnavailable):
            outbox.add(conversion())
        other.rollback()

    assert 1.8 < watch.seconds < 3.5
    assert outbox.add(conversion()) is Added.NEW
    outbox.close()


@pytest.mark.slow
def test_a_host_that_is_suspended_in_a_transaction_holds_up_no_other(server_url: str) -> None:
    """The database ends the transaction; the host finds that out when it goes on."""
    script = """
        import os, signal, sys
        from sqlalchemy import create_engine, event
        from katalys_wsgi import OutboxUnavailable
        from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox, store
        url = sys.argv[1]
        # MySQL's and MariaDB's own patience is a minute in an engine of ours.
        options = {"connect_args": {"init_command": "SET wait_timeout = 2"}} if url.startswith("mysql") else {}
        outbox = SQLAlchemyOutbox(create_engine(url, isolation_level="READ COMMITTED", **options))
        outbox.statistics()

        def suspend(_):
            print("claimed", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)

        event.listen(outbox.engine, "commit", suspend, once=True)
        try:
            outbox.claim(10, 60)
        except OutboxUnavailable:
            print("unavailable", flush=True)
    """
    other = SQLAlchemyOutbox(server_url)
    other.add(conversion())
    command = [sys.executable, "-c", textwrap.dedent(script), server_url]
    host = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    assert host.stdout
    assert host.stdout.readline() == "claimed\n"
    assert other.claim(10, LEASE) == []
    claimed: list[Entry] = []

    def is_free() -> bool:
        claimed.extend(other.claim(10, LEASE))
        return bool(claimed)

    wait_until(is_free, "the database's rollback", 20)
    host.send_signal(signal.SIGCONT)
    said, _ = host.communicate(timeout=20)
    other.close()

    assert [entry.attempts for entry in claimed] == [1]
    assert said == "unavailable\n"
