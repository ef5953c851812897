"""Recovery from damage: puts the broken file in quarantine and carries its readable rows over into a new one."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from .schema import open_file, readable_text

__all__ = ["Recovery", "is_damage", "quarantine", "salvage"]

#: What SQLITE_CORRUPT and SQLITE_NOTADB say (https://sqlite.org/rescode.html).
_DAMAGE = ("malformed", "not a database", "disk image")

#: What SQLite keeps in files beside the database: their names' ends.
_BESIDE = ("-journal", "-wal", "-shm")


@dataclass(frozen=True)
class Recovery:
    """What was done about a damaged file.

    :param quarantined_as: the damaged file's new name.
    :param rows_saved: how many rows are in the new file.
    """

    quarantined_as: Path
    rows_saved: int


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file itself is broken."""
    return isinstance(error, sqlite3.DatabaseError) and any(words in str(error) for words in _DAMAGE)


def quarantine(path: Path) -> Recovery | None:
    """Put a new file with the rows that can be read in place of a damaged one, which becomes ``….corrupt-<time>``.

    Processes take turns; the second one finds a sound file and leaves it alone. Killed at any moment, it leaves the
    damaged file or the new one.

    :returns: None if the file is sound.
    :raises sqlite3.Error, OSError: the new file cannot be written; the damaged one is still in its place.
    """
    recovered = Path(f"{path}.recovered")
    with _turn(path):
        if _is_sound(path):
            return None
        _remove(recovered)  # what a process left that was killed here
        with closing(sqlite3.connect(path, isolation_level=None)) as damaged:
            with suppress(sqlite3.Error):  # so broken that no other process can write into it either
                damaged.execute("BEGIN IMMEDIATE")
            saved = salvage(damaged, recovered)
            quarantined_as = Path(f"{path}.corrupt-{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%f}")
            _exchange(path, quarantined_as, recovered)
        return Recovery(quarantined_as, saved)


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Keep the other processes of this machine from recovering the same file meanwhile."""
    import fcntl  # POSIX only; SQLiteOutbox refuses to be made elsewhere

    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_sound(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path)) as db:
            return bool(db.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def _remove(path: Path) -> None:
    for suffix in ("", *_BESIDE):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _exchange(path: Path, quarantined_as: Path, recovered: Path) -> None:
    for suffix in _BESIDE:  # left behind, it would be played into the new file
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{quarantined_as}{suffix}")
    os.link(path, quarantined_as)
    os.rename(recovered, path)
    _remove(recovered)


def salvage(damaged: sqlite3.Connection, path: Path) -> int:
    """Copy the readable rows of a damaged file into a new one.

    :param path: of the new file.
    :returns: how many rows were copied.
    :raises sqlite3.Error, OSError: the new file cannot be written.
    """
    saved = 0
    with closing(open_file(path, patience=0)) as new:
        known = {column["name"] for column in new.execute("PRAGMA table_info(katalys_outbox)")}
        new.execute("BEGIN IMMEDIATE")
        for _, row in sorted(_readable_rows(damaged).items()):
            names = [name for name in row.keys() if name in known]  # noqa: SIM118 - a Row iterates over its values
            statement = f"INSERT INTO katalys_outbox ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - our own names
            with suppress(sqlite3.Error):  # a row that is garbage itself
                saved += new.execute(statement, [row[name] for name in names]).rowcount
        new.execute("COMMIT")
    return saved


def _readable_rows(damaged: sqlite3.Connection) -> dict[int, sqlite3.Row]:
    """The rows by id: from both ends, because a scan stops at the first broken page; between two such, one by one."""
    damaged.row_factory = sqlite3.Row
    damaged.text_factory = readable_text
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
