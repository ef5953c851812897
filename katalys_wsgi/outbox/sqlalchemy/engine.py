"""The engine of the outbox: made of a URL or the shop's own, and limits on how long its database may take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ...errors import ConfigurationError
from ..entry import PATIENCE_IN_RELAY, PATIENCE_IN_REQUEST
from .table import MYSQL
from .watchdog import Watchdog

__all__ = ["begun", "checked_url", "engine_maker"]

#: The first statement of each transaction. PostgreSQL gives up by itself then, which spares it the work and frees
#: what a suspended host has locked. It does not compile the claim, which takes far longer than the claim itself: with
#: a long backlog the planner overrates what the claim will cost.
_FIRST_STATEMENTS = {
    "postgresql": "SELECT set_config('statement_timeout', '{0}', true), set_config('lock_timeout', '{0}', true), "
    "set_config('idle_in_transaction_session_timeout', '{0}', true), set_config('jit', 'off', true)",
    "mysql": "SELECT 1",
    "mariadb": "SELECT 1",
}

_LIBPQ = {"connect_timeout": int(PATIENCE_IN_REQUEST), "tcp_user_timeout": int(PATIENCE_IN_REQUEST * 1000)}
_MYSQL_CLIENT = {
    "connect_timeout": int(PATIENCE_IN_REQUEST),
    "read_timeout": int(PATIENCE_IN_RELAY),
    "write_timeout": int(PATIENCE_IN_RELAY),
    "init_command": "SET wait_timeout = 60",  # seconds; frees what a suspended host has locked
}

# What the driver needs to give up on a host that is gone.
_CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "psycopg": _LIBPQ,
    "psycopg2": _LIBPQ,
    "pymysql": _MYSQL_CLIENT,
    "mysqldb": _MYSQL_CLIENT,
}


def checked_url(address: str) -> URL:
    """The address of a database, read and checked at start-up rather than at the first sale.

    :raises ConfigurationError: it cannot be read, or its driver is not installed or is for asyncio.
    """
    try:
        url = make_url(address)
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except (SQLAlchemyError, ImportError, ValueError) as error:
        # Neither the address nor what cannot be read in it is repeated: it may hold a password.
        why = f": {error}" if isinstance(error, ImportError) else ""
        raise ConfigurationError(
            f"outbox is an address that SQLAlchemy cannot open ({type(error).__name__}{why}); write one such as "
            "postgresql+psycopg://user:password@host/database, and install the driver."
        ) from None
    if dialect.is_async:
        raise ConfigurationError(f"outbox uses the driver {dialect.driver}, which is for asyncio; use a plain one.")
    return url


def engine_maker(database: URL | Engine) -> Callable[[], Engine]:
    """A function that makes the engine of a process, at its first use there.

    An engine of the shop's is used as it is, but for what it inherited through a fork.
    """
    if isinstance(database, URL):
        return lambda: _engine(database)
    made_in = os.getpid()

    def shops_own() -> Engine:
        if os.getpid() != made_in:
            database.dispose(close=False)  # its connections are the parent's
        return database

    return shops_own


def _engine(url: URL) -> Engine:
    backend = url.get_backend_name()
    engine = create_engine(
        url,
        pool_timeout=PATIENCE_IN_REQUEST,
        connect_args=_CONNECT_ARGUMENTS.get(url.get_dialect().driver, {}),
        # Under MySQL's REPEATABLE READ a claim would lock the gaps that new orders go into.
        **({"isolation_level": "READ COMMITTED"} if backend in MYSQL else {}),
    )
    if backend == "sqlite":
        _begin_immediately(engine)
    return engine


def _begin_immediately(engine: Engine) -> None:
    # https://docs.sqlalchemy.org/dialects/sqlite.html#pysqlite-serializable: the driver's own BEGIN comes too late.
    @event.listens_for(engine, "connect")
    def _(connection: Any, _: object) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {int(PATIENCE_IN_REQUEST * 1000)}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def begun(engine: Engine, patience: float) -> Iterator[Connection]:
    """A transaction, committed at the end, in which the database answers within ``patience`` or is hung up on.

    :param patience: seconds, for the whole transaction as for each statement.
    :raises sqlalchemy.exc.SQLAlchemyError: the database refused, or did not answer in time.
    """
    statement = _FIRST_STATEMENTS.get(engine.dialect.name)
    with engine.connect() as db, Watchdog(db, patience) as watchdog:
        if statement:
            statement = statement.format(int(patience * 1000))
            try:
                db.exec_driver_sql(statement)
            except DBAPIError as error:
                if watchdog.hung_up or not error.connection_invalidated:
                    raise
                db.rollback()  # it died while it lay in the pool
                db.exec_driver_sql(statement)  # over a new one
        yield db
        db.commit()
