"""The SQLite file under the outbox: opened safely, migrated, and set aside when it is damaged."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from ..errors import OutboxUnavailable
from ..events import log
from ..process import ForkLock

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


class Mended(OutboxUnavailable):
    """The file was damaged and is set aside; a new one with what could be read is in its place: try again."""


class Connection:
    """The process's one connection, opened at first use; its threads queue here, not in SQLite's sleeping busy loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # SQLite remembers in the memory of a process what it has locked. A child born within a transaction of another
        # thread would believe for ever that its own process holds those locks: it could never write.
        self._lock = ForkLock()
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._patience: float | None = None  # what the connection was told

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

        :raises Mended: the file was damaged; there is a new one.
        :raises OutboxUnavailable: SQLite refused, for any other reason.
        """
        if not self._lock.acquire(timeout=patience):
            raise OutboxUnavailable(f"The outbox {self._path} was busy in this process for {patience:g} seconds.")
        try:
            db = self._opened(patience)
            if self._patience != patience:
                db.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
                self._patience = patience
            yield db
        except (sqlite3.Error, OSError) as fault:
            if is_damage(fault):
                self._let_go()
                with suppress(sqlite3.Error, OSError):  # a full disk; the next one to meet the damage tries again
                    set_aside(self._path)
                    raise Mended(f"The outbox {self._path} was damaged and is set aside: {fault}.") from fault
            advice = "See that its directory exists, is writable for this user and is on a local disk with free space."
            raise OutboxUnavailable(f"The outbox {self._path} cannot be used: {fault}. {advice}") from fault
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self._lock:
            self._let_go()

    def __del__(self) -> None:
        # Test suites make an application, and so an outbox, for each test, and drop it as it is.
        self._let_go()

    def _opened(self, patience: float) -> sqlite3.Connection:
        file = _identity(self._path)
        if self._db is None or file != self._file:  # another process has set it aside, or somebody moved it
            self._let_go()
            self._db, self._file = open_outbox(self._path, patience), file or _identity(self._path)
        return self._db

    def _let_go(self) -> None:
        db, self._db, self._patience = self._db, None, None
        if db is not None:
            db.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def open_outbox(path: Path, patience: float) -> sqlite3.Connection:
    """A connection to the outbox at ``path``, made or migrated if need be; a damaged file is set aside."""
    _create(path)
    try:
        return _open(path, patience)
    except sqlite3.DatabaseError as fault:
        if not is_damage(fault):
            raise
        set_aside(path)
        return _open(path, patience)


def _create(path: Path) -> None:
    """Make the file, readable by its owner only; SQLite gives its journal the same mode.

    One that is there is not touched: closing any descriptor of a file drops every lock the process has on it (POSIX).
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _open(path: Path, patience: float) -> sqlite3.Connection:
    # isolation_level=None: the driver must not begin transactions of its own.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=patience)
    try:
        db.row_factory = sqlite3.Row
        db.text_factory = _text
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
    """Put a new file with the rows that can be read in place of a damaged one, which becomes ``….corrupt-<time>``.

    Processes take turns; the second one finds a sound file and leaves it alone. Killed at any moment, it leaves the
    damaged file or the mended one.
    """
    mended = Path(f"{path}.mended")
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_sound(path):
            return
        _remove(mended)
        with closing(sqlite3.connect(path, isolation_level=None)) as damaged:
            with suppress(sqlite3.Error):  # too broken for anybody to write into
                damaged.execute("BEGIN IMMEDIATE")
            saved = _salvage(damaged, mended)
            aside = Path(f"{path}.corrupt-{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%f}")
            for suffix in ("-journal", "-wal", "-shm"):  # left behind, it would be played into the new file
                with suppress(FileNotFoundError):
                    os.rename(f"{path}{suffix}", f"{aside}{suffix}")
            os.link(path, aside)
            os.rename(mended, path)
            _remove(mended)
        log.critical("katalys_wsgi.outbox_damaged set_aside_as=%s rows_saved=%d", aside, saved)


def _remove(path: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _is_sound(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path)) as db:
            return bool(db.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def _salvage(damaged: sqlite3.Connection, path: Path) -> int:
    """Copy the readable rows of a damaged file into a new one."""
    saved = 0
    _create(path)
    with closing(_open(path, patience=0)) as new:
        known = {column["name"] for column in new.execute("PRAGMA table_info(katalys_outbox)")}
        new.execute("BEGIN IMMEDIATE")
        for _, row in sorted(_readable(damaged).items()):
            names = [name for name in row.keys() if name in known]  # noqa: SIM118 - a Row iterates over its values
            statement = f"INSERT INTO katalys_outbox ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608
            with suppress(sqlite3.Error):  # a row that is garbage itself
                saved += new.execute(statement, [row[name] for name in names]).rowcount
        new.execute("COMMIT")
    return saved


def _readable(damaged: sqlite3.Connection) -> dict[int, sqlite3.Row]:
    """The rows by id: from both ends, because a scan stops at the first broken page; between two such, one by one."""
    damaged.row_factory = sqlite3.Row
    damaged.text_factory = _text
    select = "SELECT * FROM katalys_outbox NOT INDEXED"
    rows: dict[int, sqlite3.Row] = {}
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error):
            for row in damaged.execute(f"{select} ORDER BY id {order}"):
                rows.setdefault(row["id"], row)
    for row_id in range(min(rows, default=0), max(rows, default=0)):
        if row_id not in rows:
            with suppress(sqlite3.Error):
                rows.update((row_id, row) for row in damaged.execute(f"{select} WHERE id = ?", (row_id,)))
    return rows


def _text(raw: bytes) -> str:
    """One broken text must not make its row unreadable, nor repeat the buyer's data in sqlite3's error."""
    return raw.decode("utf-8", "replace")


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
