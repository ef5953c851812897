"""katalys_wsgi/outbox/sqlalchemy/engine.py: addresses, engines, and how long a database may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from katalys_wsgi import ConfigurationError, Outcome, Tracker
from katalys_wsgi.outbox import Added
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox

from ..outbox_conformance import conversion
from .shop import ORDER, Base, engine_of, orders, record, recorded


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
def test_a_sqlite_url_is_a_database_of_the_shops(
    make_tracker: Callable[..., Tracker], tmp_path: Path, scheme: str
) -> None:
    """Not the file that is ours alone: the order and its conversion are in it, in one transaction."""
    url = f"{scheme}:///{tmp_path}/shop.db"
    tracker = make_tracker(outbox=url)
    with engine_of(url) as engine:
        Base.metadata.create_all(engine)
        with engine.connect() as db:
            db.execute(ORDER)
            assert record(tracker, db) is Outcome.RECORDED
            db.commit()

        assert isinstance(tracker.outbox, SQLAlchemyOutbox)
        assert (orders(engine), recorded(tracker)) == ([1001], True)
        assert tracker.drain().settled == 1


def test_an_engine_of_the_shop_is_used_as_it_is(engine: Engine, make_tracker: Callable[..., Tracker]) -> None:
    outbox = SQLAlchemyOutbox(engine)
    tracker = make_tracker(outbox=outbox)

    assert record(tracker, None) is Outcome.RECORDED
    assert tracker.drain().settled == 1
    assert outbox.engine is engine


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nosuch://host/shop", "NoSuchModuleError"),
        ("postgresql+nosuch://host/shop", "NoSuchModuleError"),
        ("mysql+mysqldb://u:hunter2@host/shop", "No module named 'MySQLdb'"),
        ("postgresql+psycopg://u:hunter2@host:hunter2/shop", "ValueError"),
        ("sqlite+aiosqlite:///shop.db", "aiosqlite"),
    ],
)
def test_an_address_that_cannot_work_is_refused_at_start_up(
    make_tracker: Callable[..., Tracker], address: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason) as raised:
        make_tracker(outbox=address)
    assert "hunter2" not in str(raised.value)


def test_a_driver_for_asyncio_is_refused_at_start_up() -> None:
    with pytest.raises(ConfigurationError, match="psycopg, which is for asyncio"):
        SQLAlchemyOutbox("postgresql+psycopg_async://host/shop")


def test_sqlite_keeps_what_it_says_and_overwrites_what_it_deletes(tmp_path: Path) -> None:
    """A commit is on the disk, and a delivered order's personal data is not left in free pages."""
    outbox = SQLAlchemyOutbox(f"sqlite:///{tmp_path}/shop.db")
    with outbox.engine.connect() as db:
        asked = ("synchronous", "secure_delete", "busy_timeout")
        answers = [db.exec_driver_sql(f"PRAGMA {name}").scalar() for name in asked]
        assert db.connection.driver_connection.in_transaction  # type: ignore[union-attr] # BEGIN IMMEDIATE
    outbox.close()

    assert answers == [2, 1, 2000]


@pytest.mark.parametrize(
    ("address", "given"),
    [
        ("postgresql+psycopg://shop@127.0.0.1:1/shop", {"connect_timeout": 2, "tcp_user_timeout": 2000}),
        ("mysql+pymysql://shop@127.0.0.1:1/shop", {"connect_timeout": 2, "read_timeout": 10, "write_timeout": 10}),
    ],
)
def test_drivers_give_up_on_a_host_that_is_gone(address: str, given: dict[str, int]) -> None:
    outbox = SQLAlchemyOutbox(address)
    seen: dict[str, Any] = {}

    @event.listens_for(outbox.engine, "do_connect")
    def _(_: object, __: object, ___: object, arguments: dict[str, Any]) -> None:
        seen.update(arguments)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        outbox.engine.connect()
    assert seen.items() >= given.items()


SESSIONS = {
    "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
    "mysql": "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND user = 'root'",
}


@pytest.mark.slow
def test_a_connection_that_died_in_the_pool_is_replaced(server_url: str) -> None:
    """A restart of the database between two sales costs none."""
    outbox = SQLAlchemyOutbox(server_url)
    outbox.add(conversion("1001"))
    with engine_of(server_url, isolation_level="AUTOCOMMIT") as admin, admin.connect() as db:
        for (number,) in list(db.execute(text(SESSIONS[db.dialect.name]))):
            if db.dialect.name == "mysql":
                db.execute(text(f"KILL {number}"))
    time.sleep(0.2)

    assert outbox.add(conversion("1002")) is Added.NEW
    outbox.close()
