"""The outbox in one SQLite file: the default, for one machine with any number of processes and threads.

Here stand the statements. The rules of a row are those of :mod:`~katalys_wsgi.outbox.entry` and
:mod:`~katalys_wsgi.outbox.rules`; how the file is opened, shared and recovered stands in ``schema``, ``connection`` and
``recovery``. A page waits up to :data:`~katalys_wsgi.outbox.entry.PATIENCE_IN_REQUEST` seconds for another process's
write, a relay up to :data:`~katalys_wsgi.outbox.entry.PATIENCE_IN_RELAY`.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..conversion.postback import Postback
from ..events import Events
from ..process import PerProcess
from .connection import Connection, Recovered
from .entry import (
    GIVEN_UP,
    HOLDING_BACK,
    LONGEST_DELAY,
    PATIENCE_IN_RELAY,
    PATIENCE_IN_REQUEST,
    PRUNED_AT_A_TIME,
    Added,
    Change,
    Entry,
    State,
    Statistics,
)
from .place import check_place
from .recovery import Recovery
from .rules import (
    PAGE,
    added_again,
    dropped_columns,
    forgotten_columns,
    new_columns,
    noted_columns,
    paged,
    refuse_connection,
    revived_columns,
    share_of_retries,
)

__all__ = ["SQLiteOutbox"]

#: How often a checkout adds its row while processes recover the file; each ends with a sound one.
TRIES_DURING_RECOVERY = 3

_SELECT = f"SELECT {', '.join(Entry.__dataclass_fields__)} FROM katalys_outbox "  # noqa: S608 - our own names

_HOLDS_BACK = " OR ".join(
    f"older.state = '{state.value}' AND older.kind = '{kind.value}'" for state, kind in HOLDING_BACK
)

_DUE = f"""
SELECT id FROM katalys_outbox WHERE state = 'pending' AND attempts {{tried}} AND due_at {{due}}
AND NOT EXISTS (
    SELECT 1 FROM katalys_outbox AS older
    WHERE older.order_id = katalys_outbox.order_id AND older.id < katalys_outbox.id AND ({_HOLDS_BACK})
)
ORDER BY due_at, id LIMIT :limit
"""  # noqa: S608 - our own names

# A claimed row is due again when its lease ends, so the relay never has to step over the rows that are claimed.
_CLAIM = """
UPDATE katalys_outbox SET attempts = attempts + 1, due_at = ?, leased_until = ?, lease_token = ? WHERE id = ?
"""

_GIVEN_UP = ", ".join(f"'{state.value}'" for state in GIVEN_UP)

_WAITING_FOR_THE_DEAD = f"""
DELETE FROM katalys_outbox WHERE state = 'pending' AND kind = 'update' AND order_id IN (
    SELECT order_id FROM katalys_outbox
    WHERE state IN ({_GIVEN_UP}) AND kind = 'conversion' AND finished_at < :before
)
"""  # noqa: S608 - our own names
_PRUNE = """
DELETE FROM katalys_outbox WHERE id IN (
    SELECT id FROM katalys_outbox WHERE finished_at < :before ORDER BY finished_at LIMIT :limit
)
"""
_COUNTS = ", ".join(f"count(*) FILTER (WHERE state = '{state.value}') AS {state.value}" for state in State)

_STATISTICS = f"""
SELECT {_COUNTS},
       count(*) FILTER (WHERE state = 'pending' AND due_at <= :now) AS due,
       min(created_at) FILTER (WHERE state = 'pending') AS oldest_pending,
       max(finished_at) FILTER (WHERE state = 'delivered') AS last_delivered
FROM katalys_outbox
"""  # noqa: S608 - our own names


class SQLiteOutbox:
    """An :class:`~katalys_wsgi.outbox.Archive` in the file ``path``, readable by its owner only.

    Recording and the relay make the file; all others raise :class:`~katalys_wsgi.errors.OutboxMissing` without one, and
    leave no trace in one (SQLite itself finishes or undoes what a killed process was writing). Whatever is in its place
    and is not ours is refused by every method, :class:`~katalys_wsgi.errors.ForeignFile`, and left untouched.

    Nothing is opened before it is used, and nothing is shared with a parent process, so it may be made before a fork.
    A damaged file is recovered by the process that finds the damage: :meth:`add` then tries again, the other methods
    raise :class:`~katalys_wsgi.OutboxUnavailable` once, unless they have just opened the file.

    :param path: of the file; a relative one means the current directory of this moment.
    :param clock: seconds since 1970.
    :param events: where damage of the file is reported; in the log only, unless given.
    :raises ConfigurationError: the directory of the file does not exist, is not writable or is on a network, or this
        is not a POSIX system.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.time,
        events: Events | None = None,
    ) -> None:
        self.path: Path = Path(path).absolute()  # a later chdir must not start a second outbox
        check_place(self.path)
        self._clock = clock
        self._events = events or Events()
        self._store = PerProcess(lambda: Connection(self.path, self._report))

    def __repr__(self) -> str:
        return f"SQLiteOutbox({str(self.path)!r})"

    def _report(self, recovery: Recovery) -> None:
        """Report a recovery that this process made as the event ``outbox_damaged``."""
        self._events.emit("outbox_damaged", quarantined_as=str(recovery.quarantined_as), rows_saved=recovery.rows_saved)

    def add(self, postback: Postback, *, problems: Sequence[str] = (), connection: Any = None) -> Added:
        """See :meth:`Outbox.add <katalys_wsgi.outbox.Outbox.add>`.

        One statement where the key is new, which nearly every key is. A recovery in between is survived: the postback
        is added to the new file, at most :data:`TRIES_DURING_RECOVERY` times.

        :raises UnusableConnection: ``connection`` was given: this file is not the shop's database.
        :raises OutboxUnavailable: the file is locked for too long, cannot be written, or is on a full disk.
        """
        refuse_connection(connection)
        for _ in range(TRIES_DURING_RECOVERY - 1):
            with suppress(Recovered):
                return self._add(postback, problems)
        return self._add(postback, problems)

    def _add(self, postback: Postback, problems: Sequence[str]) -> Added:
        """Add a postback once; a second look, in a transaction, only where its key is there already."""
        now, store = self._clock(), self._store.get()
        columns = new_columns(postback, problems, now)
        with store.opened(PATIENCE_IN_REQUEST) as db:
            if _insert(db, columns):  # alone, a statement is a transaction that waits for its lock as ours do
                return Added.NEW
        with store.transaction(PATIENCE_IN_REQUEST) as db:
            if _insert(db, columns):  # it was pruned in between
                return Added.NEW
            there = db.execute("SELECT id, state, attempts, digest FROM katalys_outbox WHERE key = ?", (postback.key,))
            row = dict(there.fetchone())
            entry_id = row.pop("id")
            added = added_again(postback, problems, **row)
            if added is Added.REPLACED:
                _update(db, revived_columns(postback, now), id=entry_id)
            return added

    def claim(self, limit: int, lease: float) -> list[Entry]:
        """See :meth:`Outbox.claim <katalys_wsgi.outbox.Outbox.claim>`.

        Rows are chosen and leased in one transaction, so that two relays never claim the same one.
        """
        now, token = self._clock(), secrets.token_hex(8)
        with self._store.get().transaction(PATIENCE_IN_RELAY) as db:

            def due(*, tried: bool, after_jump: bool, most: int) -> list[int]:
                when = f"> :now + {LONGEST_DELAY}" if after_jump else "<= :now"
                statement = _DUE.format(tried="> 0" if tried else "= 0", due=when)
                return [row["id"] for row in db.execute(statement, {"now": now, "limit": most})]

            ids = share_of_retries(due, limit)
            db.executemany(_CLAIM, [(now + lease, now + lease, token, entry_id) for entry_id in ids])
            return [entry for entry_id in ids for entry in _entries(db, "WHERE id = ?", entry_id)]

    def apply(self, changes: Iterable[Change]) -> int:
        """See :meth:`Outbox.apply <katalys_wsgi.outbox.Outbox.apply>`.

        The payload of what was delivered is overwritten in the file (``secure_delete``).
        """
        now = self._clock()
        with self._store.get().transaction(PATIENCE_IN_RELAY) as db:
            return sum(
                _update(db, change.columns(now), id=change.entry.id, lease_token=change.entry.lease_token)
                for change in changes
            )

    def history(self, order_id: str, *, connection: Any = None) -> list[Entry]:
        """See :meth:`Outbox.history <katalys_wsgi.outbox.Outbox.history>`.

        :raises UnusableConnection: ``connection`` was given: this file is not the shop's database.
        """
        refuse_connection(connection)
        with self._store.get().opened(PATIENCE_IN_REQUEST, creating=False) as db:
            return _entries(db, "WHERE order_id = ? ORDER BY id", order_id)

    def entries(self, state: State | None = None, *, limit: int = 100) -> list[Entry]:
        """See :meth:`Archive.entries <katalys_wsgi.outbox.Archive.entries>`."""
        with self._store.get().opened(PATIENCE_IN_RELAY, creating=False) as db:
            return _entries(
                db,
                "WHERE state = coalesce(?, state) ORDER BY id DESC LIMIT ?",
                State(state).value if state else None,
                limit,
            )

    def failing(self, *, limit: int = 100) -> list[Entry]:
        """See :meth:`Archive.failing <katalys_wsgi.outbox.Archive.failing>`."""
        with self._store.get().opened(PATIENCE_IN_RELAY, creating=False) as db:
            return _entries(db, "WHERE state = 'pending' AND attempts > 0 ORDER BY due_at, id LIMIT ?", limit)

    def with_payload(self) -> Iterator[Entry]:
        """See :meth:`Archive.with_payload <katalys_wsgi.outbox.Archive.with_payload>`.

        Read in pages of :data:`~katalys_wsgi.outbox.rules.PAGE` rows, so that no transaction stays open between them.
        """
        return paged(self._page_with_payload)

    def _page_with_payload(self, after: int) -> list[Entry]:
        """The next page of rows that hold a payload, by id, above the id ``after``."""
        with self._store.get().opened(PATIENCE_IN_RELAY, creating=False) as db:
            return _entries(db, "WHERE id > ? AND payload IS NOT NULL ORDER BY id LIMIT ?", after, PAGE)

    def revive(self, entry: Entry, postback: Postback, *, note: str = "") -> bool:
        """See :meth:`Archive.revive <katalys_wsgi.outbox.Archive.revive>`.

        Only a row that is still a dead letter is changed; a relay or another operator may have been quicker.
        """
        now = self._clock()
        columns = revived_columns(postback, now) | noted_columns(entry, note, now)
        with self._store.get().transaction(PATIENCE_IN_RELAY, creating=False) as db:
            if _entries(db, "WHERE key = ? AND id <> ?", postback.key, entry.id):
                return False
            return bool(_update(db, columns, id=entry.id, state=State.DEAD.value))

    def drop(self, entries: Iterable[Entry]) -> int:
        """See :meth:`Archive.drop <katalys_wsgi.outbox.Archive.drop>`.

        A row is left alone if its payload is another one by now (its ``digest``): the operator has not seen that one.
        """
        now = self._clock()
        with self._store.get().transaction(PATIENCE_IN_RELAY, creating=False) as db:
            return sum(
                _update(db, dropped_columns(entry, now), id=entry.id, digest=entry.digest, state=State.DEAD.value)
                for entry in entries
            )

    def forget(self, entries: Iterable[Entry]) -> int:
        """See :meth:`Archive.forget <katalys_wsgi.outbox.Archive.forget>`."""
        now = self._clock()
        with self._store.get().transaction(PATIENCE_IN_RELAY, creating=False) as db:
            return sum(
                _update(db, forgotten_columns(entry, now), id=entry.id, state=entry.state.value) for entry in entries
            )

    def prune(self, finished_before: float) -> int:
        """See :meth:`Outbox.prune <katalys_wsgi.outbox.Outbox.prune>`.

        Rows go in several transactions, so that pages do not wait; then the write-ahead log is emptied.
        """
        values = {"before": finished_before, "limit": PRUNED_AT_A_TIME}
        with self._store.get().transaction(PATIENCE_IN_RELAY) as db:
            deleted = db.execute(_WAITING_FOR_THE_DEAD, values).rowcount
        batch = PRUNED_AT_A_TIME
        while batch == PRUNED_AT_A_TIME:
            with self._store.get().transaction(PATIENCE_IN_RELAY) as db:
                batch = db.execute(_PRUNE, values).rowcount
            deleted += batch
        with self._store.get().opened(PATIENCE_IN_RELAY) as db:
            # A write-ahead log keeps what was delivered or deleted until it starts over.
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return deleted

    def statistics(self) -> Statistics:
        """See :meth:`Archive.statistics <katalys_wsgi.outbox.Archive.statistics>`.

        One statement, so that the counts belong to the same moment.
        """
        with self._store.get().opened(PATIENCE_IN_RELAY, creating=False) as db:
            return Statistics(**db.execute(_STATISTICS, {"now": self._clock()}).fetchone())

    def close(self) -> None:
        """See :meth:`Outbox.close <katalys_wsgi.outbox.Outbox.close>`."""
        connection = self._store.peek()
        if connection is not None:
            connection.close()


def _insert(db: sqlite3.Connection, columns: dict[str, Any]) -> int:
    """Insert a row unless its key is there already; returns 1 or 0."""
    return db.execute(_insertion(tuple(columns)), tuple(columns.values())).rowcount


@lru_cache
def _insertion(names: tuple[str, ...]) -> str:
    """The INSERT statement for these columns; kept, since every order builds the same one."""
    marks = ", ".join("?" * len(names))
    return f"INSERT INTO katalys_outbox ({', '.join(names)}) VALUES ({marks}) ON CONFLICT (key) DO NOTHING"  # noqa: S608 - our own names


def _update(db: sqlite3.Connection, columns: dict[str, Any], **where: object) -> int:
    """Write ``columns`` into the rows that are as ``where`` says; returns how many were."""
    assignments = ", ".join(f"{name} = ?" for name in columns)
    conditions = " AND ".join(f"{name} = ?" for name in where)
    statement = f"UPDATE katalys_outbox SET {assignments} WHERE {conditions}"  # noqa: S608 - our own names
    return db.execute(statement, (*columns.values(), *where.values())).rowcount


def _entries(db: sqlite3.Connection, where: str, *values: object) -> list[Entry]:
    """The rows that ``where`` (the rest of the statement, with its order and limit) selects."""
    return [Entry.from_row(dict(row)) for row in db.execute(_SELECT + where, values)]
