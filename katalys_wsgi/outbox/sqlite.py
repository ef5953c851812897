"""The outbox in one SQLite file: the default, for one machine with any number of processes and threads."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import OutboxUnavailable
from ..postback import Postback
from ..process import PerProcess
from . import DEAD, PENDING, Added, Attempt, Change, Entry

#: Seconds that a shop's page waits for the file, and that the relay does.
PATIENCE_IN_REQUEST = 2.0
PATIENCE_IN_RELAY = 10.0

#: A row that is due later than any back-off could have put it was put there by a clock that jumped.
LONGEST_DELAY = 6 * 3600.0

#: Attempts that are remembered with a row, for the question why.
LONGEST_HISTORY = 20

#: Major and minor. A minor step only adds, so that older code keeps recording; a major one needs a release note.
SCHEMA_VERSION = (1, 0)

_SCHEMA = """
CREATE TABLE katalys_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    order_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    payload TEXT,
    digest TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at REAL NOT NULL,
    leased_until REAL,
    lease_token TEXT,
    clicked_at REAL,
    created_at REAL NOT NULL,
    finished_at REAL,
    last_status INTEGER,
    last_error TEXT,
    confirmed INTEGER NOT NULL DEFAULT 0,
    history TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX katalys_outbox_fresh ON katalys_outbox (due_at, id) WHERE state = 'pending' AND attempts = 0;
CREATE INDEX katalys_outbox_tried ON katalys_outbox (due_at, id) WHERE state = 'pending' AND attempts > 0;
CREATE INDEX katalys_outbox_order ON katalys_outbox (order_id, id);
"""

_SELECT = f"SELECT {', '.join(Entry.__dataclass_fields__)} FROM katalys_outbox WHERE "  # noqa: S608 - our own names

# An update waits for what was recorded before it; behind a dead conversion too, until a person has revived it.
_DUE = """
SELECT id FROM katalys_outbox WHERE state = 'pending' AND {attempts} AND {due}
AND NOT EXISTS (
    SELECT 1 FROM katalys_outbox AS older
    WHERE older.order_id = katalys_outbox.order_id AND older.id < katalys_outbox.id
    AND (older.state = 'pending' OR (older.state = 'dead' AND older.kind = 'conversion'))
)
ORDER BY due_at, id LIMIT :limit
"""
_FRESH, _TRIED = "attempts = 0", "attempts > 0"
_NOW, _AFTER_A_JUMP = "due_at <= :now", f"due_at > :now + {LONGEST_DELAY}"

_INSERT = """
INSERT INTO katalys_outbox
(key, order_id, kind, payload, digest, state, due_at, clicked_at, created_at, finished_at, last_error)
VALUES (:key, :order_id, :kind, :payload, :digest, :state, :now, :clicked_at, :now, :finished_at, :last_error)
ON CONFLICT (key) DO NOTHING
"""
_SAME_KEY = "SELECT id, state, attempts, digest FROM katalys_outbox WHERE key = :key"
_REPLACE = """
UPDATE katalys_outbox SET payload = :payload, digest = :digest, state = :state, attempts = 0, due_at = :now,
clicked_at = :clicked_at, finished_at = :finished_at, last_status = NULL, last_error = :last_error WHERE id = :id
"""
# A claimed row is due again when its lease ends, so the relay never has to step over the rows in hand.
_CLAIM = """
UPDATE katalys_outbox SET attempts = attempts + 1, due_at = ?, leased_until = ?, lease_token = ? WHERE id = ?
"""
_APPLY = """
UPDATE katalys_outbox SET state = :state, due_at = :due_at, leased_until = NULL, lease_token = NULL,
payload = CASE :state WHEN 'delivered' THEN NULL ELSE payload END, finished_at = :finished_at,
last_status = :status, last_error = :error, confirmed = :confirmed, history = :history
WHERE id = :id AND lease_token = :token
"""
_RELEASE = """
UPDATE katalys_outbox SET attempts = attempts - 1, due_at = :due_at, leased_until = NULL, lease_token = NULL
WHERE id = :id AND lease_token = :token
"""


class SQLiteOutbox:
    """An :class:`~katalys_wsgi.outbox.Outbox` in the file ``path``, made at first use, readable by its owner only.

    :param clock: seconds since 1970.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path).absolute()  # a later chdir must not start a second outbox
        self._clock = clock
        self._store = PerProcess(lambda: _Connection(self.path))

    def __repr__(self) -> str:
        return f"SQLiteOutbox({str(self.path)!r})"

    def add(self, postback: Postback, *, problems: Sequence[str] = (), connection: Any = None) -> Added:
        """See :meth:`Outbox.add <katalys_wsgi.outbox.Outbox.add>`.

        :raises TypeError: ``connection`` was given: this file is not the shop's database.
        """
        if connection is not None:
            raise TypeError("connection= needs the outbox in the shop's database: set outbox to its SQLAlchemy URL")
        row = _row(postback, problems, self._clock())
        with self._store.get().transaction(PATIENCE_IN_REQUEST) as db:
            if db.execute(_INSERT, row).rowcount:
                return Added.NEW
            there = db.execute(_SAME_KEY, row).fetchone()
            same = there["digest"] == row["digest"]
            if there["state"] != DEAD or problems or (same and there["attempts"]):
                return Added.SAME if same else Added.DIFFERENT
            db.execute(_REPLACE, {**row, "id": there["id"]})
            return Added.REPLACED

    def history(self, order_id: str, *, connection: Any = None) -> list[Entry]:  # noqa: ARG002 - see add()
        """See :meth:`Outbox.history <katalys_wsgi.outbox.Outbox.history>`."""
        return self._select("order_id = :order_id ORDER BY id", {"order_id": order_id})

    def claim(self, limit: int, lease: float) -> list[Entry]:
        """See :meth:`Outbox.claim <katalys_wsgi.outbox.Outbox.claim>`; oldest first, retries take at most half."""
        now, token = self._clock(), secrets.token_hex(8)
        with self._store.get().transaction(PATIENCE_IN_RELAY) as db:
            ids = _due_ids(db, now, limit)
            db.executemany(_CLAIM, [(now + lease, now + lease, token, entry_id) for entry_id in ids])
            rows = [db.execute(_SELECT + "id = ?", (entry_id,)) for entry_id in ids]
            return [_entry(row.fetchone()) for row in rows]

    def apply(self, changes: Iterable[Change]) -> int:
        """See :meth:`Outbox.apply <katalys_wsgi.outbox.Outbox.apply>`."""
        now = self._clock()
        with self._store.get().transaction(PATIENCE_IN_RELAY) as db:
            return sum(db.execute(*_update(change, now)).rowcount for change in changes)

    def close(self) -> None:
        """See :meth:`Outbox.close <katalys_wsgi.outbox.Outbox.close>`."""
        connection = self._store.peek()
        if connection is not None:
            connection.close()

    def _select(self, where: str, values: dict[str, object], patience: float = PATIENCE_IN_REQUEST) -> list[Entry]:
        with self._store.get().reading(patience) as db:
            return [_entry(row) for row in db.execute(_SELECT + where, values)]


class _Connection:
    """The process's one connection, opened at first use; its threads queue here, not in SQLite's sleeping busy loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    @contextmanager
    def transaction(self, patience: float) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed and synced to disk when the block ends, undone when it raises."""
        with self.reading(patience) as db:
            # A plain BEGIN would read first and fail at once, busy timeout or not, when another process writes.
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self, patience: float) -> Iterator[sqlite3.Connection]:
        """The connection, exclusively; waits for other threads and other processes up to ``patience`` seconds each.

        :raises OutboxUnavailable: SQLite refused, for whatever reason.
        """
        if not self._lock.acquire(timeout=patience):
            raise OutboxUnavailable(f"The outbox {self._path} was busy in this process for {patience:g} seconds.")
        try:
            db = self._db = self._db or _open(self._path)
            db.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
            yield db
        except (sqlite3.Error, OSError) as fault:
            raise OutboxUnavailable(_explained(self._path, fault)) from fault
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None


def _open(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its journal the mode of the file
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=PATIENCE_IN_REQUEST)
    try:
        db.row_factory = sqlite3.Row
        db.execute(f"PRAGMA journal_mode = {_journal_mode()}").fetchall()
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON").fetchall()
        if db.execute("PRAGMA synchronous").fetchone()[0] != 2:
            raise sqlite3.OperationalError("synchronous=FULL was not accepted")
        _migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def _journal_mode(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str:
    # https://sqlite.org/wal.html#walresetbug: until 3.51.3 (and 3.50.7) several writers could corrupt a WAL file.
    return "WAL" if version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) else "TRUNCATE"


def _migrate(db: sqlite3.Connection) -> None:
    """Bring a new or older file to SCHEMA_VERSION, kept as major * 1000 + minor in SQLite's user_version."""
    if _user_version(db) == 0:
        db.execute("BEGIN IMMEDIATE")
        if _user_version(db) == 0:  # another process may have been faster
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION[0] * 1000 + SCHEMA_VERSION[1]}")
        db.execute("COMMIT")
    if _user_version(db) // 1000 != SCHEMA_VERSION[0]:
        raise sqlite3.DatabaseError("the file was written by a newer katalys_wsgi; update this installation")


def _user_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _explained(path: Path, fault: Exception) -> str:
    advice = "See that its directory exists, is writable for this user and is on a local disk with free space."
    return f"The outbox {path} cannot be used: {fault}. {advice}"


def _due_ids(db: sqlite3.Connection, now: float, limit: int) -> list[int]:
    """What to claim: new rows first, but retries get up to half, and what a clock jump left behind the rest."""

    def due(attempts: str, when: str, most: int) -> list[int]:
        rows = db.execute(_DUE.format(attempts=attempts, due=when), {"now": now, "limit": most})
        return [row["id"] for row in rows]

    fresh = due(_FRESH, _NOW, limit)
    tried = due(_TRIED, _NOW, limit - min(len(fresh), limit - limit // 2))
    ids = fresh[: limit - len(tried)] + tried
    for attempts in (_FRESH, _TRIED):
        if len(ids) < limit:
            ids += due(attempts, _AFTER_A_JUMP, limit - len(ids))
    return ids


def _row(postback: Postback, problems: Sequence[str], now: float) -> dict[str, object]:
    return {
        "key": postback.key,
        "order_id": postback.order_id,
        "kind": postback.kind,
        "payload": postback.payload,
        "digest": postback.digest,
        "state": DEAD if problems else PENDING,
        "clicked_at": postback.clicked_at,
        "now": now,
        "finished_at": now if problems else None,
        "last_error": "; ".join(problems) or None,
    }


def _entry(row: sqlite3.Row) -> Entry:
    values = dict(row)
    history = tuple(Attempt(*attempt) for attempt in json.loads(values.pop("history")))
    return Entry(**{**values, "confirmed": bool(values["confirmed"]), "history": history})


def _update(change: Change, now: float) -> tuple[str, dict[str, object]]:
    entry, receipt = change.entry, change.receipt
    lease: dict[str, object] = {"id": entry.id, "token": entry.lease_token, "due_at": now + change.delay}
    if receipt is None:
        return _RELEASE, lease
    history = [*entry.history, Attempt(now, receipt.status, receipt.error)][-LONGEST_HISTORY:]
    return _APPLY, {
        **lease,
        "state": change.state,
        "finished_at": None if change.state == PENDING else now,
        "status": receipt.status,
        "error": receipt.error,
        "confirmed": receipt.confirmed,
        "history": json.dumps([[attempt.at, attempt.status, attempt.error] for attempt in history]),
    }
