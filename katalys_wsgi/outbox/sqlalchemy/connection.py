"""Transactions for the outbox: one of its own, or the shop's, of which it undoes only its own part.

In the shop's transaction an order and its conversion are kept or undone together, and the shop commits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, Engine, Table, inspect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from ...errors import OutboxMissing, OutboxUnavailable, UnusableConnection
from ...process import PerProcess
from ..entry import PATIENCE_IN_REQUEST
from .engine import begun, checked_url, engine_maker
from .table import MYSQL
from .zope import mark_changed

__all__ = ["Database"]


class Database:
    """The database of an outbox and its table, which is made when it is missing.

    Nothing is connected before the first use, and each process has an engine of its own.

    :param database: a SQLAlchemy URL, or the shop's own ``Engine``.
    :param table: the outbox's.
    :raises ConfigurationError: the URL cannot be read, or its driver is not installed.
    """

    def __init__(self, database: str | Engine, table: Table) -> None:
        place = database if isinstance(database, Engine) else checked_url(database)
        self._url = place.url if isinstance(place, Engine) else place
        self._file = _file_of(self._url.database) if self._url.get_backend_name() == "sqlite" else None
        self._is_the_shops = isinstance(place, Engine)
        self._engine = PerProcess(engine_maker(place))
        self._table = table
        self._has_table = False

    def __str__(self) -> str:
        """Its address, without the password."""
        return self._url.render_as_string(hide_password=True)

    @property
    def engine(self) -> Engine:
        """This process's engine, made at first use; the shop's own where one was given."""
        return self._engine.get()

    def close(self) -> None:
        """Close this process's connections, but for those of an engine of the shop's."""
        engine = self._engine.peek()
        if engine is not None and not self._is_the_shops:
            engine.dispose()

    @contextmanager
    def transaction(self, patience: float, *, creating: bool = True) -> Iterator[Connection]:
        """A transaction of our own, committed at the end.

        :param patience: seconds that the database may take, for the whole of it and for each statement.
        :param creating: make the table if it is missing; without it a missing one is an error.
        :raises OutboxMissing: it is missing.
        :raises OutboxUnavailable: the database refused, or did not answer in time.
        """
        try:
            if creating:
                self._make_table()
            elif self._file is not None and not os.path.exists(self._file):
                raise self._missing()  # connecting would make the file
            with begun(self.engine, patience) as db:
                self._check_table(db)
                yield db
        except (SQLAlchemyError, OSError) as error:
            raise self._unavailable(error) from None

    @contextmanager
    def joined(self, connection: object, *, creating: bool = True) -> Iterator[Connection]:
        """The transaction of ``connection``, of which we undo only our own part; for None, one of our own.

        :param connection: a SQLAlchemy connection or session of the outbox's database. Its limits are the shop's.
        :param creating: as of :meth:`transaction`.
        :raises UnusableConnection: it is something else, or of another database; nothing has been written.
        :raises OutboxMissing: as of :meth:`transaction`.
        :raises OutboxUnavailable: the database refused, or did not answer in time.
        """
        if connection is None:
            with self.transaction(PATIENCE_IN_REQUEST, creating=creating) as db:
                yield db
            return
        session = connection() if isinstance(connection, scoped_session) else connection
        try:
            db = _connection_of(session)
            self._check_place(db)
            with _savepoint(db):
                if creating:
                    self._make_table_beside(db)
                else:
                    self._check_table(db)
                yield db
                if isinstance(session, Session):
                    mark_changed(session)
        except SQLAlchemyError as error:
            raise self._unavailable(error) from None

    def _check_place(self, db: Connection) -> None:
        """Refuse what certainly leads elsewhere: a row there would never be delivered.

        Hosts are not compared: a server may have many names, and poolers stand in between.
        """
        ours, theirs = self._url.get_backend_name(), db.dialect.name
        if ours != theirs and not (ours in MYSQL and theirs in MYSQL):
            raise UnusableConnection(f"connection= leads to {theirs}, and the outbox is {self}; {_NEXT_STEP}")
        if self._file is not None:
            main = db.exec_driver_sql("PRAGMA database_list").fetchone()
            if _file_of(main[2] if main else None) not in (None, self._file):
                raise UnusableConnection(f"connection= leads to another file than the outbox {self}; {_NEXT_STEP}")

    def _unavailable(self, error: Exception) -> OutboxUnavailable:
        """The driver's own first line: SQLAlchemy's message repeats the statement with the buyer's data."""
        driver = getattr(error, "orig", None)
        why = f"{type(driver).__name__}: {str(driver).partition(chr(10))[0]}" if driver else type(error).__name__
        return OutboxUnavailable(f"The outbox {self} cannot be used: {why}")

    def _missing(self) -> OutboxMissing:
        return OutboxMissing(f"No outbox at {self}. It is made when the first order is recorded.")

    def _check_table(self, db: Connection) -> None:
        if not self._has_table and not inspect(db).has_table(self._table.name):
            raise self._missing()
        self._has_table = True

    def _make_table(self) -> None:
        """Make the table if it is missing; several processes may do so at once."""
        for is_last in (False, True):
            if self._has_table:
                return
            try:
                with begun(self.engine, PATIENCE_IN_REQUEST) as db:
                    self._table.create(db, checkfirst=True)
                self._has_table = True
            except DBAPIError as error:
                if is_last or not (error.statement or "").lstrip().startswith("CREATE"):
                    raise
                # Another process was faster, or else it fails again.

    def _make_table_beside(self, db: Connection) -> None:
        """Make the table while a transaction of the shop is under way."""
        if self._has_table:
            return
        if inspect(db).has_table(self._table.name):
            self._has_table = True
        elif db.dialect.name == "sqlite":  # the transaction has locked the file for all others
            self._table.create(db)
        else:  # over a connection of our own: in MySQL it would commit the transaction
            with suppress(SQLAlchemyError):  # the INSERT will say so
                self._make_table()


_NEXT_STEP = "pass the connection or session in whose transaction the order is, in the database of the setting outbox."


def _connection_of(session: object) -> Connection:
    """The connection in whose transaction ``session`` is, which may be a connection itself."""
    try:
        db = session.connection() if isinstance(session, Session) else session
    except UnboundExecutionError:
        raise UnusableConnection(f"connection= is a session without a database (bind); {_NEXT_STEP}") from None
    if not isinstance(db, Connection):
        what = f"{type(db).__module__}.{type(db).__qualname__}".removeprefix("builtins.")
        raise UnusableConnection(f"connection= takes a SQLAlchemy Connection or Session, not a {what}; {_NEXT_STEP}")
    if db.closed:
        raise UnusableConnection(f"connection= is closed; {_NEXT_STEP}")
    return db


def _file_of(database: str | None) -> str | None:
    """The full path of SQLite's ``database``; None for one in memory, and for a URI, which may mean anything."""
    if not database or database == ":memory:" or database.startswith("file:"):
        return None
    return os.path.realpath(database)


@contextmanager
def _savepoint(db: Connection) -> Iterator[None]:
    """What goes wrong inside is undone alone. Where the database has undone everything, nothing can be committed."""
    if db.dialect.name == "sqlite" and not db.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        db.exec_driver_sql("BEGIN")  # the driver would not: releasing the savepoint would then commit it
    savepoint = db.begin_nested()
    try:
        yield
        savepoint.commit()
    except BaseException:
        try:
            savepoint.rollback()
        except SQLAlchemyError:
            # A deadlock in MySQL: the order is gone too, and the shop's commit must not look as if it were not.
            db.invalidate()
            raise
        raise
