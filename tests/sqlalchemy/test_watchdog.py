"""katalys_wsgi/outbox/sqlalchemy/watchdog.py: a database that has accepted a statement and says nothing."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pymysql
import pytest
from sqlalchemy import Connection, create_engine

from katalys_wsgi import OutboxUnavailable
from katalys_wsgi.outbox import Added
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox
from katalys_wsgi.outbox.sqlalchemy.watchdog import GRACE, Watchdog

from ..outbox_conformance import conversion
from ..servers import Postgres
from ..support import Stopwatch
from .shop import clear


class Wired(sqlite3.Connection):
    """A driver's connection with a socket, as those of servers are."""

    near: socket.socket

    def fileno(self) -> int:
        return self.near.fileno()


@pytest.fixture
def far() -> Iterator[socket.socket]:
    """The database's end of the line."""
    Wired.near, far = socket.socketpair()
    far.settimeout(10)
    with Wired.near, far:
        yield far


@pytest.fixture
def db(far: socket.socket) -> Iterator[Connection]:
    engine = create_engine("sqlite://", connect_args={"factory": Wired})
    with engine.connect() as db:
        yield db
    engine.dispose()


def test_it_hangs_up_when_patience_has_run_out(db: Connection, far: socket.socket) -> None:
    with Stopwatch() as watch, Watchdog(db, 0.1) as watchdog:
        assert Wired.near.recv(1) == b""  # the driver, which was waiting, reads the end
        assert far.recv(1) == b""

    assert watchdog.hung_up
    assert watch.seconds >= 0.1 + GRACE
    assert Wired.near.fileno() >= 0  # closing it is the driver's business


def test_it_leaves_the_line_alone_afterwards(db: Connection, far: socket.socket) -> None:
    """The connection is back in the pool, and the next transaction's."""
    with Watchdog(db, 0.0) as watchdog:
        pass
    time.sleep(2 * GRACE)

    assert not watchdog.hung_up
    Wired.near.send(b"x")
    assert far.recv(1) == b"x"


def test_a_block_that_ends_just_when_patience_runs_out_is_left_alone(
    db: Connection, far: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer has fired, and cancelling it comes too late."""
    fired: list[Callable[[], None]] = []

    class Late(threading.Timer):
        def __init__(self, interval: float, function: Callable[[], None]) -> None:
            super().__init__(3600, function)
            fired.append(function)

    monkeypatch.setattr(threading, "Timer", Late)
    with Watchdog(db, 0.0) as watchdog:
        pass
    fired[0]()

    assert not watchdog.hung_up
    Wired.near.send(b"x")
    assert far.recv(1) == b"x"


def test_a_driver_without_a_socket_has_none_to_shut_down() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as db, Watchdog(db, 0.0):
        time.sleep(2 * GRACE)
        assert db.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()


def test_a_connection_that_was_given_up_is_not_hung_up_on(db: Connection) -> None:
    with Watchdog(db, 0.0) as watchdog:
        db.invalidate()
        time.sleep(2 * GRACE)
    db.rollback()

    assert not watchdog.hung_up


def test_where_no_thread_can_be_started_the_block_runs(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with Watchdog(db, 0.0):
        assert db.exec_driver_sql("SELECT 1").scalar() == 1


def test_drivers_still_have_their_sockets_where_they_are_looked_for() -> None:
    """That of psycopg is documented, ``fileno``; PyMySQL's ``_sock`` is an internal that a release may move."""
    assert callable(psycopg.Connection.fileno)
    assert "_sock" in vars(pymysql.Connection(defer_connect=True))


@pytest.mark.slow
def test_a_stopped_server_is_hung_up_on(request: pytest.FixtureRequest, server_url: str) -> None:
    """A page waits two seconds, over the line that it has used before, and the outbox works once the server does."""
    kind = "postgres" if server_url.startswith("postgresql") else "mariadb"
    server: Postgres = request.getfixturevalue(kind)
    outbox = SQLAlchemyOutbox(server_url)
    outbox.add(conversion("before"))
    with server.suspended(), Stopwatch() as watch, pytest.raises(OutboxUnavailable):
        outbox.add(conversion("1001"))

    assert 1.8 < watch.seconds < 3.5
    assert outbox.add(conversion("1002")) is Added.NEW
    outbox.close()
    clear(server_url)
