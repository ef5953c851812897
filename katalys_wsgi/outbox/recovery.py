"""Recovery from damage: puts the broken file in quarantine and carries its readable rows over into a new one."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ..errors import ForeignFile, OutboxUnavailable
from .identity import Found, look_at, missing
from .schema import create, open_file, readable_text

__all__ = ["Recovery", "is_damage", "quarantine", "recover", "salvage"]

#: What SQLITE_CORRUPT and SQLITE_NOTADB say (https://sqlite.org/rescode.html).
_DAMAGE = ("malformed", "not a database", "disk image")

#: What SQLite keeps in files beside the database: their names' ends.
_BESIDE = ("-journal", "-wal", "-shm")


@dataclass(frozen=True)
class Recovery:
    """What was done about a damaged file.

    :param quarantined_as: the damaged file's new name.
    :param rows_saved: how many of its rows are in the new file.
    """

    quarantined_as: Path
    rows_saved: int


def recover(path: str | os.PathLike[str], *, force: bool = False) -> Recovery | None:
    """See that the outbox at ``path`` is sound afterwards: what an operator asks for. The shop may go on meanwhile.

    :param force: the operator's word that the file is the outbox, though it is so damaged that nothing in it says so.
        A sound database of another program is refused even then.
    :returns: what was done; None if the file is sound and nothing had to be done.
    :raises OutboxMissing: there is no file.
    :raises ForeignFile: the file is not ours; it is untouched.
    :raises OutboxUnavailable: it is locked for long, or the new file cannot be written; nothing has changed.
    """
    place = Path(path).absolute()
    try:
        return _recover(place, force=force)
    except (sqlite3.Error, OSError) as error:
        raise OutboxUnavailable(
            f"The outbox {place} cannot be recovered: {error}. See that its directory is writable for this user "
            "and has free space, then try again."
        ) from error


def _recover(path: Path, *, force: bool) -> Recovery | None:
    try:
        found = look_at(path)
    except ForeignFile:
        if not force or not path.is_file() or _is_another_programs(path):
            raise
        return quarantine(path, even_if_sound=True)  # sound, it would not be known as ours afterwards either
    if found is Found.NOTHING:
        raise missing(path)
    return None if found is Found.EMPTY else quarantine(path)


def _is_another_programs(path: Path) -> bool:
    """Whether it is a database that can be read, without our table in it, or no file that can be read at all."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    except sqlite3.DatabaseError as error:
        return not is_damage(error)
    return "katalys_outbox" not in tables


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file itself is broken."""
    return isinstance(error, sqlite3.DatabaseError) and any(words in str(error) for words in _DAMAGE)


def quarantine(path: Path, *, even_if_sound: bool = False) -> Recovery | None:
    """Put a new file with the rows that can be read in place of a damaged one, which becomes ``….corrupt-<time>``.

    Processes take turns; the second one finds a sound file and leaves it alone. Killed at any moment, it leaves the
    damaged file or the new one. The new one has the owner and the mode of the damaged one.

    :param path: absolute; of a file that is known to be ours.
    :param even_if_sound: do so with a sound file, too.
    :returns: what was done; None if the file is sound.
    :raises sqlite3.Error, OSError: the file is locked, or the new one cannot be written; the damaged one is still in
        its place.
    """
    recovered = Path(f"{path}.recovered")
    with _turn(path):
        if not even_if_sound and _is_sound(path):
            return None
        _remove(recovered)  # what a process left that was killed here
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)) as damaged:
            with _only_damage():  # so broken that no other process can write into it either
                damaged.execute("BEGIN IMMEDIATE")
            create(recovered, like=path.stat())
            saved = salvage(damaged, recovered)
            quarantined_as = Path(f"{path}.corrupt-{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%f}")
            _exchange(path, quarantined_as, recovered)
        return Recovery(quarantined_as, saved)


@contextmanager
def _only_damage() -> Iterator[None]:
    """Go on after what damage raises; a lock that another process holds is none."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Keep the other processes of this machine from recovering the same file meanwhile."""
    import fcntl  # POSIX only; SQLiteOutbox refuses to be made elsewhere

    lock = Path(f"{path}.lock")
    create(lock, like=path.stat())  # so that whoever may use the outbox may wait here
    with lock.open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _is_sound(path: Path) -> bool:
    """Not by quick_check: that one does not compare the indexes with their table."""
    found = "damaged"
    with _only_damage(), closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as db:
        found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    return bool(found == "ok")


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
