"""The table of the outbox, and what the databases do differently: their clocks, their INSERT, what a column takes.

Everything is written so that Alembic's autogenerate makes the same table without importing this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    Dialect,
    Double,
    Index,
    Insert,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    insert,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeEngine

from ...conversion.checks import LONGEST_IDENTIFIER

__all__ = ["LONGEST_KEY", "MYSQL", "Now", "fitting", "insert_if_new", "outbox_table"]

#: SQLAlchemy's names of MySQL and MariaDB, which differ in nothing that matters here.
MYSQL = ("mysql", "mariadb")

#: Characters of a row's key: a site's id, an order's id, the kind, a digest and the colons between them.
LONGEST_KEY = 2 * LONGEST_IDENTIFIER + 90


def outbox_table(metadata: MetaData) -> Table:
    """The table ``katalys_outbox`` in ``metadata``, so that Alembic's autogenerate sees it.

    The outbox makes the table itself if it is missing, and then needs the right to. Its columns are those of
    :class:`~katalys_wsgi.outbox.Entry`; times are seconds since 1970.

    :param metadata: usually the shop's own, ``Base.metadata``; call this once for each.
    :raises sqlalchemy.exc.InvalidRequestError: ``metadata`` has the table already.
    """
    return Table(
        "katalys_outbox",
        metadata,
        Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
        Column("key", _exact(LONGEST_KEY), nullable=False, unique=True),
        Column("order_id", _exact(LONGEST_IDENTIFIER), nullable=False),
        Column("kind", String(20), nullable=False),
        Column("payload", Text().with_variant(mysql.MEDIUMTEXT(), *MYSQL)),
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
    """A string that is compared letter by letter: MySQL's default would take order ABC for order abc."""
    return String(length).with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), *MYSQL)


class Now(FunctionElement[float]):
    """In a statement, seconds since 1970 by the database's clock at the moment the statement runs."""

    type: TypeEngine[float] = Double()
    #: SQLAlchemy may keep the compiled statement: it is always the same.
    inherit_cache: bool | None = True


@compiles(Now, "postgresql")
def _now_in_postgresql(*_: Any, **__: Any) -> str:
    """Not ``now()``: that is when the transaction began, which may be the shop's."""
    return "extract(epoch FROM clock_timestamp())::float8"


@compiles(Now, "mysql")
@compiles(Now, "mariadb")
def _now_in_mysql(*_: Any, **__: Any) -> str:
    """Not ``unix_timestamp(now(6))``: that one goes through local time, which has one hour twice a year."""
    return "(timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) / 1e6)"


@compiles(Now)
def _now_in_sqlite(*_: Any, **__: Any) -> str:
    """``julianday`` counts days, and 1970 began at 2440587.5 (https://sqlite.org/lang_datefunc.html)."""
    return "((julianday('now') - 2440587.5) * 86400.0)"


def insert_if_new(table: Table, dialect: Dialect) -> Insert:
    """An INSERT that does nothing where the key is there already, and leaves the transaction usable.

    An IntegrityError would not do: in PostgreSQL it ends the transaction, which may be the shop's.

    :param dialect: the database's, :data:`MYSQL`, PostgreSQL or SQLite.
    """
    if dialect.name in MYSQL:
        return insert(table).prefix_with("IGNORE")
    if dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing(index_elements=["key"])
    return sqlite.insert(table).on_conflict_do_nothing(index_elements=["key"])


def fitting(columns: Mapping[str, Any]) -> dict[str, Any]:
    """``columns`` as every database takes them.

    The id of an invalid order may be too long for its column, and an answer of Katalys may hold a NUL, which
    PostgreSQL refuses in a string.
    """
    fitting = dict(columns)
    if "order_id" in columns:
        fitting["order_id"] = columns["order_id"][:LONGEST_IDENTIFIER]
    if columns.get("last_error"):
        fitting["last_error"] = columns["last_error"].replace("\0", "\ufffd")
    return fitting
