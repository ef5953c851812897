"""SQLAlchemyOutbox: the outbox's methods as statements that every database understands.

The rules of a row are in entry.py; here is only the SQL that reads and writes it. All relays of all hosts work on the
same table, so each statement that changes a row names the state or the lease in which it expects that row.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, ScalarSelect, Table, and_, delete, func, or_, select, update
from sqlalchemy.sql.expression import ColumnElement

from ...conversion.postback import Kind, Postback
from ..entry import (
    GIVEN_UP,
    HOLDING_BACK,
    LONGEST_DELAY,
    PATIENCE_IN_RELAY,
    PRUNED_AT_A_TIME,
    Added,
    Change,
    Entry,
    State,
    Statistics,
)
from ..rules import (
    PAGE,
    added_again,
    dropped_columns,
    forgotten_columns,
    new_columns,
    noted_columns,
    paged,
    revived_columns,
    share_of_retries,
)
from .connection import Database
from .table import Now, fitting, insert_if_new, outbox_table

__all__ = ["SQLAlchemyOutbox"]

_FIELDS = tuple(Entry.__dataclass_fields__)


class SQLAlchemyOutbox:
    """An :class:`~katalys_wsgi.outbox.Outbox` in a table of a database.

    :param database: a SQLAlchemy URL, or the shop's own ``Engine``.
    :param clock: seconds since 1970, in place of the database's clock; for tests.
    :raises ConfigurationError: the URL cannot be read, or its driver is not installed.

    Nothing is connected before the first use. Each process has connections of its own, also after a fork. Every method
    raises :class:`~katalys_wsgi.OutboxUnavailable` when the database refuses or does not answer in time: 2 seconds
    for ``add`` and ``history``, which a page waits for, and 10 for the others.
    """

    #: The table, in a ``MetaData`` of its own; for statements of your own, and for tests.
    table: Table

    def __init__(self, database: str | Engine, *, clock: Callable[[], float] | None = None) -> None:
        self.table = outbox_table(MetaData())
        self._database = Database(database, self.table)
        self._clock = clock

    def __repr__(self) -> str:
        return f"SQLAlchemyOutbox({str(self._database)!r})"

    @property
    def engine(self) -> Engine:
        """This process's engine, made at first use: for events, pool metrics and statements of your own.

        The shop's own where one was given, which :meth:`close` leaves open.
        """
        return self._database.engine

    def add(self, postback: Postback, *, problems: Sequence[str] = (), connection: Any = None) -> Added:
        """See :meth:`Outbox.add <katalys_wsgi.outbox.Outbox.add>`.

        :param connection: a SQLAlchemy ``Connection``, ``Session`` or ``scoped_session`` of the outbox's database.
            A duplicate, and an error of ours, leave its transaction as it was.
        :raises UnusableConnection: ``connection`` is something else, or of another database; nothing was written.
        :raises OutboxUnavailable: the database refused, or did not answer in time.
        """
        with self._database.joined(connection) as db:
            now: Any = self._clock() if self._clock else Now()  # SQL does as well
            row = fitting(new_columns(postback, problems, now)) | {"confirmed": False, "history": "[]"}
            # Inline, because the number of rows is asked for and not the new id.
            statement = insert_if_new(self.table, db.dialect).values(row).inline()
            if db.execute(statement, execution_options={"preserve_rowcount": True}).rowcount:
                return Added.NEW
            return self._add_again(db, postback, problems, now)

    def _add_again(self, db: Connection, postback: Postback, problems: Sequence[str], now: Any) -> Added:
        """What becomes of a postback whose key is there already; a dead letter may give way to it."""
        c = self.table.c
        known = select(c.id, c.state, c.attempts, c.digest).where(c.key == postback.key)
        # A locking read, because a plain one may still see what was there when the shop's transaction began; the
        # weakest there is, so that no relay has to wait for the shop's commit.
        there = dict(db.execute(known.with_for_update(read=True, key_share=True)).mappings().one())
        entry_id = there.pop("id")
        added = added_again(postback, problems, **there)
        if added is not Added.REPLACED:
            return added
        is_still_there = self._update(db, revived_columns(postback, now), id=entry_id, state=there["state"])
        return added if is_still_there else Added.DIFFERENT  # another process has replaced it meanwhile

    def claim(self, limit: int, lease: float) -> list[Entry]:
        """See :meth:`Outbox.claim <katalys_wsgi.outbox.Outbox.claim>`.

        Rows that another relay is just claiming are skipped, not waited for (``FOR UPDATE SKIP LOCKED``).
        """
        c = self.table.c
        with self._database.transaction(PATIENCE_IN_RELAY) as db:
            now = self._now(db)
            ids = self._due_ids(db, now, limit)
            if not ids:
                return []
            lease_columns = {"due_at": now + lease, "leased_until": now + lease, "lease_token": secrets.token_hex(8)}
            db.execute(update(self.table).where(c.id.in_(ids)).values(attempts=c.attempts + 1, **lease_columns))
            claimed = {entry.id: entry for entry in self._entries(db, c.id.in_(ids))}
            return [claimed[entry_id] for entry_id in ids]

    def apply(self, changes: Iterable[Change]) -> int:
        """See :meth:`Outbox.apply <katalys_wsgi.outbox.Outbox.apply>`; rows are written in the order of their ids."""
        with self._database.transaction(PATIENCE_IN_RELAY) as db:
            now = self._now(db)
            return sum(
                self._update(db, change.columns(now), id=change.entry.id, lease_token=change.entry.lease_token)
                for change in sorted(changes, key=lambda change: change.entry.id)  # one order for all: no deadlocks
            )

    def history(self, order_id: str, *, connection: Any = None) -> list[Entry]:
        """See :meth:`Outbox.history <katalys_wsgi.outbox.Outbox.history>`.

        :param connection: as of :meth:`add`; the rows that its transaction has written are seen.
        :raises UnusableConnection: it cannot be joined.
        """
        with self._database.joined(connection, creating=False) as db:
            entries = self._entries(db, self.table.c.order_id == order_id, order_by=self.table.c.id)
        return [entry for entry in entries if entry.order_id == order_id]  # MySQL takes "AB " for "AB"

    def entries(self, state: State | None = None, *, limit: int = 100) -> list[Entry]:
        """See :meth:`Outbox.entries <katalys_wsgi.outbox.Outbox.entries>`."""
        of_state = [] if state is None else [self.table.c.state == State(state).value]
        with self._database.transaction(PATIENCE_IN_RELAY, creating=False) as db:
            return self._entries(db, *of_state, order_by=self.table.c.id.desc(), limit=limit)

    def failing(self, *, limit: int = 100) -> list[Entry]:
        """See :meth:`Outbox.failing <katalys_wsgi.outbox.Outbox.failing>`."""
        c = self.table.c
        with self._database.transaction(PATIENCE_IN_RELAY, creating=False) as db:
            return self._entries(db, c.state == State.PENDING.value, c.tried == 1, order_by=c.due_at, limit=limit)

    def with_payload(self) -> Iterator[Entry]:
        """See :meth:`Outbox.with_payload <katalys_wsgi.outbox.Outbox.with_payload>`."""
        c = self.table.c

        def page(after: int) -> list[Entry]:
            with self._database.transaction(PATIENCE_IN_RELAY, creating=False) as db:
                return self._entries(db, c.id > after, c.payload.is_not(None), order_by=c.id, limit=PAGE)

        return paged(page)

    def revive(self, entry: Entry, postback: Postback, *, note: str = "") -> bool:
        """See :meth:`Outbox.revive <katalys_wsgi.outbox.Outbox.revive>`."""
        c = self.table.c
        with self._database.transaction(PATIENCE_IN_RELAY, creating=False) as db:
            if self._entries(db, c.key == postback.key, c.id != entry.id):
                return False
            now = self._now(db)
            columns = revived_columns(postback, now) | noted_columns(entry, note, now)
            return bool(self._update(db, columns, id=entry.id, state=State.DEAD.value))

    def drop(self, entries: Iterable[Entry]) -> int:
        """See :meth:`Archive.drop <katalys_wsgi.outbox.Archive.drop>`."""
        with self._database.transaction(PATIENCE_IN_RELAY, creating=False) as db:
            now = self._now(db)
            return sum(
                self._update(db, dropped_columns(entry, now), id=entry.id, digest=entry.digest, state=State.DEAD.value)
                for entry in entries
            )

    def forget(self, entries: Iterable[Entry]) -> int:
        """See :meth:`Outbox.forget <katalys_wsgi.outbox.Outbox.forget>`."""
        with self._database.transaction(PATIENCE_IN_RELAY, creating=False) as db:
            now = self._now(db)
            return sum(
                self._update(db, forgotten_columns(entry, now), id=entry.id, state=entry.state.value)
                for entry in entries
            )

    def prune(self, finished_before: float) -> int:
        """See :meth:`Outbox.prune <katalys_wsgi.outbox.Outbox.prune>`.

        In transactions of :data:`~katalys_wsgi.outbox.entry.PRUNED_AT_A_TIME` rows, so that pages do not wait long.
        """
        deleted = self._prune_waiting(finished_before)
        c = self.table.c
        old = select(c.id).where(c.finished_at < finished_before).limit(PRUNED_AT_A_TIME)
        while True:
            with self._database.transaction(PATIENCE_IN_RELAY) as db:
                ids = list(db.scalars(old))
                deleted += db.execute(delete(self.table).where(c.id.in_(ids))).rowcount if ids else 0
            if len(ids) < PRUNED_AT_A_TIME:
                return deleted

    def _prune_waiting(self, finished_before: float) -> int:
        """Delete the updates that wait for a conversion which was given up and is about to be pruned."""
        c = self.table.c
        given_up = c.state.in_([state.value for state in GIVEN_UP])
        dead = select(c.order_id).where(given_up, c.kind == Kind.CONVERSION.value, c.finished_at < finished_before)
        with self._database.transaction(PATIENCE_IN_RELAY) as db:
            orders = list(db.scalars(dead))
            waiting = and_(c.state == State.PENDING.value, c.kind == Kind.UPDATE.value, c.order_id.in_(orders))
            return db.execute(delete(self.table).where(waiting)).rowcount if orders else 0

    def statistics(self) -> Statistics:
        """See :meth:`Outbox.statistics <katalys_wsgi.outbox.Outbox.statistics>`."""
        c = self.table.c
        with self._database.transaction(PATIENCE_IN_RELAY, creating=False) as db:
            now = self._now(db)
            rows = db.execute(select(c.state, func.count()).group_by(c.state))
            counts: dict[str, int] = {state: count for state, count in rows}  # noqa: C416 - rows are no tuples to mypy
            due = db.scalar(select(func.count()).where(c.state == State.PENDING.value, c.due_at <= now))
            oldest = db.scalar(select(func.min(c.created_at)).where(c.state == State.PENDING.value))
            last = db.scalar(select(func.max(c.finished_at)).where(c.state == State.DELIVERED.value))
        return Statistics(
            **{state.value: counts.get(state.value, 0) for state in State},
            due=due or 0,
            oldest_pending=oldest,
            last_delivered=last,
        )

    def close(self) -> None:
        """See :meth:`Outbox.close <katalys_wsgi.outbox.Outbox.close>`; an engine of the shop's stays open."""
        self._database.close()

    def _now(self, db: Connection) -> float:
        """Seconds since 1970 by the database's clock, or by that of a test."""
        return self._clock() if self._clock else float(db.scalar(select(Now())) or 0.0)

    def _update(self, db: Connection, columns: dict[str, Any], **where: Any) -> int:
        """Write ``columns`` into the rows that are as ``where`` says; returns how many were."""
        conditions = [self.table.c[name] == value for name, value in where.items()]
        return db.execute(update(self.table).where(*conditions).values(**fitting(columns))).rowcount

    def _entries(
        self, db: Connection, *where: ColumnElement[bool], order_by: Any = None, limit: int | None = None
    ) -> list[Entry]:
        """The entries that meet all conditions; without ``order_by`` in whatever order the database likes."""
        query = select(*(self.table.c[name] for name in _FIELDS)).where(*where).order_by(order_by).limit(limit)
        return [Entry.from_row(dict(row)) for row in db.execute(query).mappings()]

    def _due_ids(self, db: Connection, now: float, limit: int) -> list[int]:
        """The rows to claim; those that another relay is just claiming are skipped."""
        c = self.table.c
        nothing_older = self._held_back_by().is_(None)

        def due(*, tried: bool, after_jump: bool, most: int) -> list[int]:
            when = c.due_at > now + LONGEST_DELAY if after_jump else c.due_at <= now
            rows = select(c.id).where(c.state == State.PENDING.value, c.tried == int(tried), when, nothing_older)
            return list(db.scalars(rows.order_by(c.due_at, c.id).limit(most).with_for_update(skip_locked=True)))

        return share_of_retries(due, limit)

    def _held_back_by(self) -> ScalarSelect[int]:
        """The id of an older row of the same order that holds a row back (:data:`HOLDING_BACK`), or NULL.

        A scalar subquery, not an EXISTS: a planner turns that one into an anti-join over the whole backlog.
        """
        c, older = self.table.c, self.table.alias("older").c
        holds_back = or_(*(and_(older.state == state.value, older.kind == kind.value) for state, kind in HOLDING_BACK))
        same_order = and_(older.order_id == c.order_id, older.id < c.id)
        return select(older.id).where(same_order, holds_back).limit(1).correlate(self.table).scalar_subquery()
