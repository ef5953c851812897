"""The schema of the outbox's SQLite file: makes the file, opens it safely and migrates it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

__all__ = [
    "APPLICATION_ID", "MAJOR", "MIGRATIONS", "create", "has_schema", "journal_mode", "migrate", "open_existing",
    "open_file", "prepare", "readable_text",
]  # fmt: skip

#: ``Ktly`` in ASCII, SQLite's ``application_id`` of our files: only a file with it in its header is ours, and only what
#: is ours is ever written or repaired (https://sqlite.org/pragma.html#pragma_application_id).
APPLICATION_ID = 0x4B746C79

#: The major version of the schema; code of another one refuses the file.
MAJOR = 1

#: The steps of this major version, each a minor version: they only add, so that older code keeps recording in a newer
#: file.
MIGRATIONS = (
    """
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
        pending_since REAL NOT NULL,
        finished_at REAL,
        last_status INTEGER,
        last_error TEXT,
        confirmed INTEGER NOT NULL DEFAULT 0,
        history TEXT NOT NULL DEFAULT '[]'
    );
    CREATE INDEX katalys_outbox_fresh ON katalys_outbox (due_at, id) WHERE state = 'pending' AND attempts = 0;
    CREATE INDEX katalys_outbox_tried ON katalys_outbox (due_at, id) WHERE state = 'pending' AND attempts > 0;
    CREATE INDEX katalys_outbox_order ON katalys_outbox (order_id, id)
    """,
    "CREATE INDEX katalys_outbox_finished ON katalys_outbox (finished_at) WHERE finished_at IS NOT NULL",
)


def open_file(path: Path, patience: float) -> sqlite3.Connection:
    """A connection to the outbox at ``path``, which is made, or migrated, if need be.

    Every commit is synced to disk, and what is deleted is overwritten.

    :param path: absolute; nothing is there, an empty file or one of ours.
    :param patience: seconds to wait for other processes.
    :raises sqlite3.Error: the file is damaged, locked, or of another major version.
    :raises OSError: the file cannot be made.
    """
    create(path)
    db = open_existing(path, patience)
    try:
        prepare(db)
    except BaseException:
        db.close()
        raise
    return db


def prepare(db: sqlite3.Connection) -> None:
    """Make the file behind ``db`` what :func:`open_file` gives: marked as ours, in its journal mode, migrated.

    :raises sqlite3.Error: as of :func:`open_file`.
    """
    _mark(db)
    db.execute(f"PRAGMA journal_mode = {journal_mode()}").fetchall()
    migrate(db)


def open_existing(path: Path, patience: float) -> sqlite3.Connection:
    """A connection to the outbox at ``path`` as it is: not made, and not migrated from an older minor version.

    What is written over it is synced and overwritten as by :func:`open_file`.

    :param path: absolute.
    :param patience: seconds to wait for other processes.
    :raises sqlite3.Error: there is none, or it is damaged, locked, or of another major version.
    """
    # isolation_level=None: the driver must not begin transactions of its own. mode=rw: it must not make the file.
    db = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False, timeout=patience
    )
    try:
        _configure(db)
        _check_version(db)
    except BaseException:
        db.close()
        raise
    return db


def create(path: Path, like: os.stat_result | None = None) -> None:
    """Make the file unless it is there; SQLite gives its journal the same owner and mode.

    One that is there is not touched: closing any descriptor of a file drops every lock the process has on it (POSIX).

    :param like: whose owner and mode it gets. Unless given, only its owner may read it; one that root makes belongs to
        the owner of its directory, so that the shop can use it.
    :raises OSError: it cannot be made.
    """
    with suppress(FileExistsError):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            if like is not None:
                os.fchmod(file, like.st_mode & 0o777)
            if os.geteuid() == 0:
                owner = like or os.stat(path.parent)
                os.fchown(file, owner.st_uid, owner.st_gid)
        finally:
            os.close(file)


def _configure(db: sqlite3.Connection) -> None:
    """What concerns this connection only; the file stays as it is."""
    db.row_factory = sqlite3.Row
    db.text_factory = readable_text
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = ON").fetchall()
    if db.execute("PRAGMA synchronous").fetchone()[0] != 2:
        raise sqlite3.OperationalError("synchronous=FULL was not accepted")


def _mark(db: sqlite3.Connection) -> None:
    """Make an empty file ours, before anything else is written: from then on it is known."""
    if _is_blank(db):
        db.execute("BEGIN IMMEDIATE")
        if _is_blank(db):  # asked again: another process may have been faster
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("COMMIT")


def _is_blank(db: sqlite3.Connection) -> bool:
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not tables and not db.execute("PRAGMA application_id").fetchone()[0]


def readable_text(raw: bytes) -> str:
    """What SQLite keeps as text, decoded for sqlite3's ``text_factory``.

    A broken string must neither make its row unreadable nor repeat the buyer's data in sqlite3's error.
    """
    return raw.decode("utf-8", "replace")


def journal_mode(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str:
    """WAL where it is safe with several writers, a rollback journal elsewhere.

    :param version: of SQLite.
    """
    # https://sqlite.org/wal.html#walresetbug: until 3.51.3 (and 3.50.7) several writers could corrupt a WAL file.
    return "WAL" if version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) else "TRUNCATE"


def migrate(db: sqlite3.Connection) -> None:
    """Bring a new or older file to our schema; its version is kept as major * 1000 + steps in ``user_version``.

    :raises sqlite3.DatabaseError: the file has a schema of another major version.
    """
    if _version(db) in (0, *range(MAJOR * 1000, MAJOR * 1000 + len(MIGRATIONS))):
        db.execute("BEGIN IMMEDIATE")
        done = max(0, _version(db) - MAJOR * 1000)  # read again: another process may have been faster
        for step in MIGRATIONS[done:]:
            for statement in step.split(";"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {MAJOR * 1000 + max(done, len(MIGRATIONS))}")
        db.execute("COMMIT")
    _check_version(db)


def has_schema(db: sqlite3.Connection) -> bool:
    """Whether the file has a schema; a new one has none until it is migrated."""
    return _version(db) != 0


def _check_version(db: sqlite3.Connection) -> None:
    if has_schema(db) and _version(db) // 1000 != MAJOR:
        raise sqlite3.DatabaseError(f"its schema is {_version(db)}, of another katalys_wsgi; install that version")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
