"""The SQLite file under the outbox: opened safely, migrated, and set aside when it is damaged."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ..errors import OutboxUnavailable
from ..events import log

#: Steps of schema 1, each a minor version: they only add, so that older code keeps recording in a newer file.
MAJOR = 1
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

_NETWORKS = ("nfs", "cifs", "smb", "afs", "fuse.sshfs", "ceph", "fuse.glusterfs", "lustre")

_DAMAGED = ("malformed", "not a database", "disk image")


class Connection:
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

        :raises OutboxUnavailable: SQLite refused, for whatever reason. A damaged file is set aside before.
        """
        if not self._lock.acquire(timeout=patience):
            raise OutboxUnavailable(f"The outbox {self._path} was busy in this process for {patience:g} seconds.")
        try:
            db = self._db = self._db or open_outbox(self._path)
            db.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
            yield db
        except (sqlite3.Error, OSError) as fault:
            if is_damage(fault):
                self._let_go()
                set_aside(self._path)
            advice = "See that its directory exists, is writable for this user and is on a local disk with free space."
            raise OutboxUnavailable(f"The outbox {self._path} cannot be used: {fault}. {advice}") from fault
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()


def open_outbox(path: Path) -> sqlite3.Connection:
    """A connection to the outbox at ``path``, made or migrated if need be; a damaged file is set aside."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its journal the mode of the file
    try:
        return _open(path)
    except sqlite3.DatabaseError as fault:
        if not is_damage(fault):
            raise
        set_aside(path)
        return _open(path)


def _open(path: Path) -> sqlite3.Connection:
    # isolation_level=None: the driver must not begin transactions of its own.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        db.execute(f"PRAGMA journal_mode = {journal_mode()}").fetchall()
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON").fetchall()
        if db.execute("PRAGMA synchronous").fetchone()[0] != 2:
            raise sqlite3.OperationalError("synchronous=FULL was not accepted")
        migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def journal_mode(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str:
    """WAL where it is safe with several writers, a rollback journal elsewhere."""
    # https://sqlite.org/wal.html#walresetbug: until 3.51.3 (and 3.50.7) several writers could corrupt a WAL file.
    return "WAL" if version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) else "TRUNCATE"


def migrate(db: sqlite3.Connection) -> None:
    """Bring a new or older file to our schema; its version is kept as major * 1000 + steps in user_version.

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
    if _version(db) // 1000 != MAJOR:
        raise sqlite3.DatabaseError(f"its schema is {_version(db)}, of another katalys_wsgi; install that version")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


# --- damage --------------------------------------------------------------------------------------------------


def is_damage(fault: BaseException) -> bool:
    """Whether SQLite says that the file itself is broken."""
    return isinstance(fault, sqlite3.DatabaseError) and any(words in str(fault) for words in _DAMAGED)


def set_aside(path: Path) -> None:
    """Rename a damaged file to ``….corrupt-<time>``, start a new one and carry over the rows that can be read.

    Processes take turns; the second one finds a sound file and leaves it alone.
    """
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_sound(path):
            return
        aside = Path(f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        for suffix in ("-journal", "-wal", "-shm", ""):  # a journal left behind would be played into the new file
            with suppress(FileNotFoundError):
                os.rename(f"{path}{suffix}", f"{aside}{suffix}")
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        saved = _salvage(aside, path)
        log.critical("katalys_wsgi.outbox_damaged set_aside_as=%s rows_saved=%d", aside, saved)


def _is_sound(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path)) as db:
            return bool(db.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def _salvage(damaged: Path, path: Path) -> int:
    """Copy the readable rows; from both ends, because a scan stops at the first broken page."""
    rows: dict[int, sqlite3.Row] = {}
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error), closing(sqlite3.connect(damaged)) as old:
            old.row_factory = sqlite3.Row
            for row in old.execute(f"SELECT * FROM katalys_outbox NOT INDEXED ORDER BY id {order}"):  # noqa: S608
                rows.setdefault(row["id"], row)
    saved = 0
    with closing(_open(path)) as new:
        new.execute("BEGIN IMMEDIATE")
        for _, row in sorted(rows.items()):
            with suppress(sqlite3.Error):  # a row that is garbage itself
                names = ", ".join(row.keys())
                marks = ", ".join("?" * len(row))
                saved += new.execute(f"INSERT INTO katalys_outbox ({names}) VALUES ({marks})", tuple(row)).rowcount  # noqa: S608
        new.execute("COMMIT")
    return saved


# --- network file systems ------------------------------------------------------------------------------------


def network_file_system(directory: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system ``directory`` lies on, None on a local one or where it cannot be told.

    :param mounts: the text of ``/proc/self/mounts`` (Linux), read unless given.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="replace")
        except OSError:
            return None
    resolved = directory.resolve()
    best: tuple[int, str] = (0, "")
    for line in mounts.splitlines():
        _, point, kind, *_ = [*line.split(" "), "", "", ""]
        mount = Path(point.replace("\\040", " "))
        if point and (resolved == mount or mount in resolved.parents):
            best = max(best, (len(mount.parts), kind), key=lambda found: found[0])
    return best[1] if best[1].startswith(_NETWORKS) else None
