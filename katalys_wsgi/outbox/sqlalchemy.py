"""The outbox in the shop's own database: PostgreSQL, MySQL 8, MariaDB or SQLite, through SQLAlchemy Core.

The same rows and the same rules as in the SQLite file; any number of hosts may record and deliver. The database's
clock decides what is due.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    create_engine,
    delete,
    event,
    false,
    func,
    insert,
    inspect,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import registry
from sqlalchemy.sql.expression import ColumnElement, FunctionElement

from ..conversion.postback import Kind, Postback
from ..errors import ConfigurationError, OutboxUnavailable
from ..process import PerProcess
from .entry import (
    LONGEST_DELAY,
    PATIENCE_IN_RELAY,
    PATIENCE_IN_REQUEST,
    PRUNED_AT_A_TIME,
    Added,
    Change,
    Entry,
    State,
    Statistics,
    added_again,
    forgotten_columns,
    new_columns,
    revived_columns,
)

_MYSQL = ("mysql", "mariadb")
_FIELDS = tuple(Entry.__dataclass_fields__)


def outbox_table(metadata: MetaData) -> Table:
    """The table ``katalys_outbox`` in ``metadata``, so that Alembic's autogenerate sees it.

    The outbox makes the table itself if it is not there, and then needs the right to.
    """
    return Table(
        "katalys_outbox",
        metadata,
        Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
        Column("key", _exact(600), nullable=False, unique=True),
        Column("order_id", _exact(255), nullable=False),
        Column("kind", String(20), nullable=False),
        Column("payload", Text().with_variant(mysql.MEDIUMTEXT(), *_MYSQL)),
        Column("digest", String(64), nullable=False),
        Column("state", String(20), nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("due_at", Double, nullable=False),
        Column("leased_until", Double),
        Column("lease_token", String(40)),
        Column("clicked_at", Double),
        Column("created_at", Double, nullable=False),
        Column("pending_since", Double, nullable=False),
        Column("finished_at", Double),
        Column("last_status", Integer),
        Column("last_error", Text),
        Column("confirmed", Boolean, nullable=False),
        Column("history", Text, nullable=False),
        # New rows and retries are claimed apart; without it each claim would step over all of the other kind.
        Column("tried", Integer, Computed("CASE WHEN attempts > 0 THEN 1 ELSE 0 END", persisted=True)),
        Index("katalys_outbox_due", "state", "tried", "due_at", "id"),
        Index("katalys_outbox_order", "order_id", "id"),
        Index("katalys_outbox_finished", "finished_at"),
        sqlite_autoincrement=True,
        mysql_charset="utf8mb4",
        mysql_engine="InnoDB",
    )


def _exact(length: int) -> String:
    """Text compared letter by letter: MySQL's default would take order ABC for order abc."""
    return String(length).with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), *_MYSQL)


class _Now(FunctionElement[float]):
    """Seconds since 1970 by the database's clock, at the moment it is asked."""

    type = Double()
    inherit_cache = True


@compiles(_Now, "postgresql")
def _now_in_postgresql(*_: Any, **__: Any) -> str:
    return "extract(epoch FROM clock_timestamp())::float8"


@compiles(_Now, "mysql")
@compiles(_Now, "mariadb")
def _now_in_mysql(*_: Any, **__: Any) -> str:
    # Not unix_timestamp(now(6)): that one goes through local time, which has one hour twice a year.
    return "(timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) / 1e6)"


@compiles(_Now)
def _now_in_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


class SQLAlchemyOutbox:
    """An :class:`~katalys_wsgi.outbox.Outbox` in a table of a database.

    :param database: a SQLAlchemy URL, or the shop's own ``Engine``.
    :param clock: seconds since 1970, in place of the database's clock; for tests.
    :raises ConfigurationError: the URL cannot be read, or its driver is not installed.
    """

    def __init__(self, database: str | Engine, *, clock: Callable[[], float] | None = None) -> None:
        self._database = database if isinstance(database, Engine) else _url(database)
        self._made_in = os.getpid()
        self._clock = clock
        self.table = outbox_table(MetaData())
        self._mapped = type("Row", (), {})
        registry().map_imperatively(self._mapped, self.table)
        self._engine = PerProcess(self._make_engine)
        self._is_set_up = False

    def __repr__(self) -> str:
        url = self._database.url if isinstance(self._database, Engine) else self._database
        return f"SQLAlchemyOutbox({url.render_as_string(hide_password=True)!r})"

    def add(self, postback: Postback, *, problems: Sequence[str] = (), connection: Any = None) -> Added:
        """See :meth:`Outbox.add <katalys_wsgi.outbox.Outbox.add>`.

        :param connection: a SQLAlchemy connection or session. A duplicate, and a fault of ours, leave its
            transaction as it was.
        :raises TypeError: ``connection`` is neither.
        """
        with self._joined(connection) as db:
            now = self._clock() if self._clock else _Now()
            row = _fitting(new_columns(postback, problems, now))  # type: ignore[arg-type] # SQL does as well
            statement = (
                self._insert(db).values(**row, confirmed=False, history="[]").inline()
            )  # the new id is nobody's question, the count is
            if db.execute(statement, execution_options={"preserve_rowcount": True}).rowcount:
                return Added.NEW
            c = self.table.c
            known = select(c.id, c.state, c.attempts, c.digest).where(c.key == postback.key)
            # A locking read, because a plain one may still see what was there when the shop's transaction began; the
            # weakest there is, so that no relay has to wait for the shop's commit.
            there = dict(db.execute(known.with_for_update(read=True, key_share=True)).mappings().one())
            entry_id = there.pop("id")
            added = added_again(postback, problems, **there)
            if added is Added.REPLACED:
                columns = revived_columns(postback, now) | {"clicked_at": postback.clicked_at}  # type: ignore[arg-type]
                if not self._update(db, columns, id=entry_id, state=State.DEAD.value):
                    return Added.DIFFERENT  # somebody else has replaced it meanwhile
            return added

    def claim(self, limit: int, lease: float) -> list[Entry]:
        """See :meth:`Outbox.claim <katalys_wsgi.outbox.Outbox.claim>`; retries take at most half while others wait."""
        c = self.table.c
        with self._transaction(PATIENCE_IN_RELAY) as db:
            now = self._now(db)
            ids = self._due_ids(db, now, limit)
            if not ids:
                return []
            lease_columns = {"due_at": now + lease, "leased_until": now + lease, "lease_token": secrets.token_hex(8)}
            db.execute(update(self.table).where(c.id.in_(ids)).values(attempts=c.attempts + 1, **lease_columns))
            claimed = {entry.id: entry for entry in self._entries(db, c.id.in_(ids))}
            return [claimed[entry_id] for entry_id in ids]

    def apply(self, changes: Iterable[Change]) -> int:
        """See :meth:`Outbox.apply <katalys_wsgi.outbox.Outbox.apply>`."""
        with self._transaction(PATIENCE_IN_RELAY) as db:
            now = self._now(db)
            return sum(
                self._update(db, change.columns(now), id=change.entry.id, lease_token=change.entry.lease_token)
                for change in sorted(changes, key=lambda change: change.entry.id)  # one order for all: no deadlocks
            )

    def history(self, order_id: str, *, connection: Any = None) -> list[Entry]:
        """See :meth:`Outbox.history <katalys_wsgi.outbox.Outbox.history>`."""
        with self._joined(connection) as db:
            entries = self._entries(db, self.table.c.order_id == order_id, order_by=self.table.c.id)
        return [entry for entry in entries if entry.order_id == order_id]  # MySQL takes "AB " for "AB"

    def entries(self, state: State | None = None, *, limit: int = 100) -> list[Entry]:
        """See :meth:`Outbox.entries <katalys_wsgi.outbox.Outbox.entries>`."""
        of_state = [] if state is None else [self.table.c.state == State(state).value]
        with self._transaction(PATIENCE_IN_RELAY) as db:
            return self._entries(db, *of_state, order_by=self.table.c.id.desc(), limit=limit)

    def failing(self, *, limit: int = 100) -> list[Entry]:
        """See :meth:`Outbox.failing <katalys_wsgi.outbox.Outbox.failing>`."""
        c = self.table.c
        with self._transaction(PATIENCE_IN_RELAY) as db:
            return self._entries(db, c.state == State.PENDING.value, c.tried == 1, order_by=c.due_at, limit=limit)

    def with_payload(self) -> Iterator[Entry]:
        """See :meth:`Outbox.with_payload <katalys_wsgi.outbox.Outbox.with_payload>`."""
        c = self.table.c
        found: list[Entry] = []
        while True:
            after = found[-1].id if found else 0
            with self._transaction(PATIENCE_IN_RELAY) as db:
                found = self._entries(db, c.id > after, c.payload.is_not(None), order_by=c.id, limit=1000)
            if not found:
                return
            yield from found

    def revive(self, entry: Entry, postback: Postback) -> bool:
        """See :meth:`Outbox.revive <katalys_wsgi.outbox.Outbox.revive>`."""
        c = self.table.c
        with self._transaction(PATIENCE_IN_RELAY) as db:
            if self._entries(db, c.key == postback.key, c.id != entry.id):
                return False
            return bool(self._update(db, revived_columns(postback, self._now(db)), id=entry.id, state=State.DEAD.value))

    def forget(self, entries: Iterable[Entry]) -> int:
        """See :meth:`Outbox.forget <katalys_wsgi.outbox.Outbox.forget>`."""
        with self._transaction(PATIENCE_IN_RELAY) as db:
            now = self._now(db)
            return sum(
                self._update(db, forgotten_columns(entry, now), id=entry.id, state=entry.state.value)
                for entry in entries
            )

    def prune(self, finished_before: float) -> int:
        """See :meth:`Outbox.prune <katalys_wsgi.outbox.Outbox.prune>`."""
        c = self.table.c
        old = select(c.id).where(c.finished_at < finished_before).limit(PRUNED_AT_A_TIME)
        dead = select(c.order_id).where(
            c.state == State.DEAD.value, c.kind == Kind.CONVERSION.value, c.finished_at < finished_before
        )
        with self._transaction(PATIENCE_IN_RELAY) as db:
            orders = list(db.scalars(dead))
            waiting = and_(c.state == State.PENDING.value, c.kind == Kind.UPDATE.value, c.order_id.in_(orders))
            deleted = db.execute(delete(self.table).where(waiting)).rowcount if orders else 0
        while True:
            with self._transaction(PATIENCE_IN_RELAY) as db:
                ids = list(db.scalars(old))
                deleted += db.execute(delete(self.table).where(c.id.in_(ids))).rowcount if ids else 0
            if len(ids) < PRUNED_AT_A_TIME:
                return deleted

    def statistics(self) -> Statistics:
        """See :meth:`Outbox.statistics <katalys_wsgi.outbox.Outbox.statistics>`."""
        c = self.table.c
        with self._transaction(PATIENCE_IN_RELAY) as db:
            now = self._now(db)
            rows = db.execute(select(c.state, func.count()).group_by(c.state))
            counts: dict[str, int] = {state: count for state, count in rows}  # noqa: C416 - rows are no tuples to mypy
            due = db.scalar(select(func.count()).where(c.state == State.PENDING.value, c.due_at <= now))
            oldest = db.scalar(select(func.min(c.created_at)).where(c.state == State.PENDING.value))
            last = db.scalar(select(func.max(c.finished_at)).where(c.state == State.DELIVERED.value))
        return Statistics(
            counts.get(State.PENDING.value, 0),
            due or 0,
            counts.get(State.DEAD.value, 0),
            counts.get(State.DELIVERED.value, 0),
            oldest,
            last,
        )

    def close(self) -> None:
        """See :meth:`Outbox.close <katalys_wsgi.outbox.Outbox.close>`."""
        engine = self._engine.peek()
        if engine is not None and engine is not self._database:  # the shop's own stays the shop's
            engine.dispose()

    # --- connections ---

    def _make_engine(self) -> Engine:
        if isinstance(self._database, Engine):
            if os.getpid() != self._made_in:
                self._database.dispose(close=False)  # its connections are the parent's
            return self._database
        backend = self._database.get_backend_name()
        engine = create_engine(
            self._database,
            pool_timeout=PATIENCE_IN_REQUEST,
            connect_args=_CONNECT_ARGUMENTS.get(self._database.get_dialect().driver, {}),
            # Under MySQL's REPEATABLE READ a claim would lock the gaps that new orders go into.
            **({"isolation_level": "READ COMMITTED"} if backend in _MYSQL else {}),
        )
        if backend == "sqlite":
            _begin_immediately(engine)
        return engine

    @contextmanager
    def _transaction(self, patience: float) -> Iterator[Connection]:
        """A transaction of our own, with limits on the statements in it.

        :raises OutboxUnavailable: the database refused, or did not answer in time.
        """
        try:
            engine = self._engine.get()
            self._set_up(engine)
            with _begun(engine, patience) as db:
                yield db
        except (SQLAlchemyError, OSError) as fault:
            raise self._unavailable(fault) from None

    @contextmanager
    def _joined(self, connection: Any) -> Iterator[Connection]:
        """The shop's own transaction, of which we undo only our own part; without one, one of ours."""
        if connection is None:
            with self._transaction(PATIENCE_IN_REQUEST) as db:
                yield db
            return
        session = connection if hasattr(connection, "get_bind") else None
        try:
            db = session.connection() if session else connection
            if not isinstance(db, Connection):
                raise TypeError(f"connection= takes a SQLAlchemy Connection or Session, not {type(db).__name__}")
            with _savepoint(db):
                self._set_up_beside(db)
                yield db
                if session:
                    self._mark_changed(session)
        except SQLAlchemyError as fault:
            raise self._unavailable(fault) from None

    def _mark_changed(self, session: Any) -> None:
        """Have whoever listens to the session (zope.sqlalchemy) see the ORM write: what nobody saw is not committed."""
        nothing = delete(self._mapped).where(false())
        session.execute(nothing, execution_options={"autoflush": False, "synchronize_session": False})

    def _unavailable(self, fault: Exception) -> OutboxUnavailable:
        return OutboxUnavailable(f"The outbox {self!r} cannot be used: {_root(fault)}")

    def _set_up(self, engine: Engine) -> None:
        """Make the table if it is not there."""
        for last in (False, True):
            if self._is_set_up:
                return
            try:
                with _begun(engine, PATIENCE_IN_REQUEST) as db:
                    self.table.create(db, checkfirst=True)
                self._is_set_up = True
            except DBAPIError as fault:
                if last or not (fault.statement or "").lstrip().startswith("CREATE"):
                    raise
                # Another process was faster, or else it fails again.

    def _set_up_beside(self, db: Connection) -> None:
        """Make the table, if it is not there, while a transaction of the shop is under way."""
        if self._is_set_up:
            return
        if inspect(db).has_table(self.table.name):
            self._is_set_up = True
        elif db.dialect.name == "sqlite":  # the transaction has locked the file for everybody else
            self.table.create(db)
        else:  # by a connection of our own: in MySQL it would commit the transaction
            with suppress(SQLAlchemyError):  # the INSERT will tell
                self._set_up(self._engine.get())

    def _now(self, db: Connection) -> float:
        return self._clock() if self._clock else float(db.scalar(select(_Now())) or 0.0)

    # --- statements ---

    def _insert(self, db: Connection) -> Any:
        """An INSERT that does nothing where the key is there already, and leaves the transaction usable."""
        if db.dialect.name in _MYSQL:
            return insert(self.table).prefix_with("IGNORE")
        if db.dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import insert as insert_new
        else:
            from sqlalchemy.dialects.sqlite import insert as insert_new  # type: ignore[assignment]
        return insert_new(self.table).on_conflict_do_nothing(index_elements=["key"])

    def _update(self, db: Connection, columns: dict[str, Any], **where: Any) -> int:
        """Write ``columns`` into the rows that are as ``where`` says; returns how many were."""
        conditions = [self.table.c[name] == value for name, value in where.items()]
        return db.execute(update(self.table).where(*conditions).values(**_fitting(columns))).rowcount

    def _entries(
        self, db: Connection, *where: ColumnElement[bool], order_by: Any = None, limit: int | None = None
    ) -> list[Entry]:
        query = select(*(self.table.c[name] for name in _FIELDS)).where(*where).order_by(order_by).limit(limit)
        return [Entry.from_row(dict(row)) for row in db.execute(query).mappings()]

    def _due_ids(self, db: Connection, now: float, limit: int) -> list[int]:
        """What to claim, as in the SQLite outbox; rows that another relay is just claiming are skipped."""
        c = self.table.c
        older = self.table.alias("older")
        # A scalar subquery, not an EXISTS: that one a planner turns into an anti-join over the whole backlog.
        holds_back = or_(
            older.c.state == State.PENDING.value,
            and_(older.c.state == State.DEAD.value, older.c.kind == Kind.CONVERSION.value),
        )
        same_order = and_(older.c.order_id == c.order_id, older.c.id < c.id)
        held_back_by = select(older.c.id).where(same_order, holds_back).limit(1).correlate(self.table).scalar_subquery()

        def due(tried_before: ColumnElement[bool], when: ColumnElement[bool], most: int) -> list[int]:
            rows = select(c.id).where(c.state == State.PENDING.value, tried_before, when, held_back_by.is_(None))
            return list(db.scalars(rows.order_by(c.due_at, c.id).limit(most).with_for_update(skip_locked=True)))

        now_due, after_a_jump = c.due_at <= now, c.due_at > now + LONGEST_DELAY
        fresh = due(c.tried == 0, now_due, limit)
        tried = due(c.tried == 1, now_due, limit - min(len(fresh), limit - limit // 2))
        ids = fresh[: limit - len(tried)] + tried
        for tried_before in (c.tried == 0, c.tried == 1):
            if len(ids) < limit:
                ids += due(tried_before, after_a_jump, limit - len(ids))
        return ids


def _url(address: str) -> URL:
    """Tell at start-up what would otherwise be told at the first sale."""
    try:
        url = make_url(address)
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except (SQLAlchemyError, ImportError, ValueError) as fault:
        # Neither the address nor what cannot be read in it is repeated: it may hold a password.
        why = f": {fault}" if isinstance(fault, ImportError) else ""
        raise ConfigurationError(
            f"outbox is an address that SQLAlchemy cannot open ({type(fault).__name__}{why}); write one such as "
            "postgresql+psycopg://user:password@host/database, and install the driver."
        ) from None
    if dialect.is_async:
        raise ConfigurationError(f"outbox uses the driver {dialect.driver}, which is for asyncio; use a plain one.")
    return url


def _fitting(columns: dict[str, Any]) -> dict[str, Any]:
    """What every database takes: an invalid order may have too long an id, and an answer of Katalys a NUL in it."""
    fitting = dict(columns)
    if "order_id" in columns:
        fitting["order_id"] = columns["order_id"][:255]
    if columns.get("last_error"):
        fitting["last_error"] = columns["last_error"].replace("\0", "\ufffd")
    return fitting


# --- a database that does not answer ---

#: The first question of each transaction. PostgreSQL is told to give up by itself, which spares it the work and frees
#: what a suspended host has locked; and not to compile the claim, which takes far longer than the claim: with a long
#: backlog it overrates what that will cost.
_FIRST_QUESTIONS = {
    "postgresql": "SELECT set_config('statement_timeout', '{0}', true), set_config('lock_timeout', '{0}', true), "
    "set_config('idle_in_transaction_session_timeout', '{0}', true), set_config('jit', 'off', true)",
    "mysql": "SELECT 1",
    "mariadb": "SELECT 1",
}

_LIBPQ = {"connect_timeout": 2, "tcp_user_timeout": 2000}
_MYSQL_CLIENT = {
    "connect_timeout": 2,
    "read_timeout": 10,
    "write_timeout": 10,
    "init_command": "SET wait_timeout = 60",  # frees what a suspended host has locked
}

# What the driver needs to give up on a host that is gone.
_CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "psycopg": _LIBPQ,
    "psycopg2": _LIBPQ,
    "pymysql": _MYSQL_CLIENT,
    "mysqldb": _MYSQL_CLIENT,
}


@contextmanager
def _begun(engine: Engine, patience: float) -> Iterator[Connection]:
    """A transaction, committed at the end, in which the database answers within ``patience`` or is hung up on."""
    question = _FIRST_QUESTIONS.get(engine.dialect.name)
    with engine.connect() as db, _Watch(db, patience) as watch:
        if question:
            question = question.format(int(patience * 1000))
            try:
                db.exec_driver_sql(question)
            except DBAPIError as fault:
                if watch.hung_up or not fault.connection_invalidated:
                    raise
                db.rollback()  # it died while it lay in the pool
                db.exec_driver_sql(question)  # over a new one
        yield db
        db.commit()


class _Watch:
    """Hangs up on a database that has taken a question and does not answer in ``patience`` seconds.

    While its machine is up the kernel goes on acknowledging for it, so no timeout of TCP or of a driver ends that wait.
    """

    def __init__(self, db: Connection, patience: float) -> None:
        self.hung_up = False
        self._db = db
        self._is_over = False
        self._lock = threading.Lock()
        # A little more, so that the database's own limits come first: they leave the connection whole.
        self._timer = threading.Timer(patience + 0.25, self._hang_up)
        self._timer.daemon = True

    def __enter__(self) -> _Watch:
        with suppress(RuntimeError):  # no more threads: the wait may be long
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._timer.cancel()
            self._is_over = True

    def _hang_up(self) -> None:
        with self._lock, suppress(Exception):  # a driver without a socket, or one that has closed it
            if not self._is_over and not self._db.invalidated:
                self.hung_up = True
                driver: Any = self._db.connection.driver_connection
                with socket.socket(fileno=os.dup(getattr(driver, "_sock", driver).fileno())) as line:
                    line.shutdown(socket.SHUT_RDWR)


# --- the shop's transaction ---


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


def _root(fault: BaseException) -> str:
    """The driver's own first line: SQLAlchemy's text repeats the statement with its values."""
    driver = getattr(fault, "orig", None) or fault
    return f"{type(driver).__name__}: " + (str(driver).partition("\n")[0] if driver is not fault else "")
