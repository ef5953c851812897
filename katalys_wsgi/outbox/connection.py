"""A process's one connection to the outbox's SQLite file: opened at first use, shared by its threads."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutboxUnavailable
from ..process import ForkLock
from .identity import Found, look_at, missing
from .recovery import Recovery, is_damage, quarantine
from .schema import has_schema, open_existing, open_file, prepare

__all__ = ["Connection", "Recovered"]


class Recovered(OutboxUnavailable):
    """The file was damaged and is in quarantine; a new one with what could be read is in its place: try again.

    Also raised where another process exchanged the file while this one wrote: what was written may be in quarantine.
    """


class Connection:
    """The process's one connection; its threads queue here, not in SQLite's sleeping busy loop.

    A file that is not ours is refused, and left untouched, by everything.

    :param path: the file, absolute.
    :param on_recovery: called when this process has recovered a damaged file, after the connection is free again.
    """

    def __init__(self, path: Path, on_recovery: Callable[[Recovery], None]) -> None:
        self._path = path
        self._on_recovery = on_recovery
        # SQLite remembers in the memory of a process what it has locked. A child born within a transaction of another
        # thread would always believe that its own process holds those locks: it could never write.
        self._lock = ForkLock()
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._is_prepared = False  # made and migrated, as those need it who create
        self._patience: float | None = None  # what SQLite was last given as its busy timeout
        self._unreported: list[Recovery] = []

    @contextmanager
    def transaction(self, patience: float, *, creating: bool = True) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed and synced to disk when the block ends, undone when it raises.

        :param patience: as of :meth:`opened`, which also says what is raised.
        :param creating: as of :meth:`opened`.
        """
        with self.opened(patience, creating=creating) as db:
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
    def opened(self, patience: float, *, creating: bool = True) -> Iterator[sqlite3.Connection]:
        """The connection, exclusively.

        :param patience: seconds to wait for other threads, and again for other processes.
        :param creating: make the file if it is missing, migrate it if it is older, recover it if it is damaged. Without
            it none of this is done, so that a question leaves no trace.
        :raises Recovered: the file was damaged; there is a new one.
        :raises OutboxMissing: there is no outbox, and none is made.
        :raises ForeignFile: the file is not ours.
        :raises OutboxUnavailable: SQLite refused, for any other reason.
        """
        if not self._lock.acquire(timeout=patience):
            raise OutboxUnavailable(f"The outbox {self._path} was busy in this process for {patience:g} seconds.")
        try:
            yield self._current(patience, creating=creating)
            if creating and self._is_exchanged():
                raise self._exchanged()
        except (sqlite3.Error, OSError) as error:
            raise self._handled(error, creating=creating) from error
        finally:
            unreported, self._unreported = self._unreported, []
            self._lock.release()
            for recovery in unreported:
                self._on_recovery(recovery)

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self._lock:
            self._let_go()

    def __del__(self) -> None:
        # Test suites make an application, and so an outbox, for each test, and drop it as it is.
        self._let_go()

    def _current(self, patience: float, *, creating: bool) -> sqlite3.Connection:
        file = _identity(self._path)
        if self._db is None or file != self._file:  # another process has quarantined it, or it was moved
            self._let_go()
            self._db = self._open(patience, creating=creating)
            if file not in (None, _identity(self._path)):  # recovered while it was opened, by whichever process
                self._db.close()
                file, self._db = _identity(self._path), self._open(patience, creating=creating)
            self._file, self._is_prepared = file or _identity(self._path), creating
        elif creating and not self._is_prepared:
            prepare(self._db)
            self._is_prepared = True
        if self._patience != patience:
            self._db.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
            self._patience = patience
        return self._db

    def _open(self, patience: float, *, creating: bool) -> sqlite3.Connection:
        found = look_at(self._path)
        if not creating:
            return self._open_to_read(found, patience)
        try:
            return open_file(self._path, patience)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._recover()
            return open_file(self._path, patience)

    def _open_to_read(self, found: Found, patience: float) -> sqlite3.Connection:
        if found is not Found.OURS:
            raise missing(self._path)
        db = open_existing(self._path, patience)
        if not has_schema(db):
            db.close()
            raise missing(self._path)
        return db

    def _recover(self) -> None:
        recovery = quarantine(self._path)
        if recovery is not None:  # else another process was faster
            self._unreported.append(recovery)

    def _handled(self, error: Exception, *, creating: bool) -> OutboxUnavailable:
        """What to raise for ``error``; a damaged file is recovered first, if the caller is one of those who do so.

        When that fails too, because the disk is full, the damaged file stays, and the next use tries again.

        :raises ForeignFile: nothing says that the damaged file is ours.
        """
        if creating and self._is_exchanged():  # SQLite may say so itself: SQLITE_READONLY_DBMOVED
            self._let_go()
            look_at(self._path)
            return self._exchanged()
        if is_damage(error):
            if not creating:
                return OutboxUnavailable(
                    f"The outbox {self._path} is damaged: {error}. The relay repairs it, or: katalys-wsgi recover"
                )
            self._let_go()  # until here no other file could have its inode: it is the one that was opened as ours
            with suppress(sqlite3.Error, OSError):
                self._recover()
                return Recovered(f"The outbox {self._path} was damaged and is in quarantine: {error}.")
        advice = "See that its directory exists, is writable for this user and is on a local disk with free space."
        return OutboxUnavailable(f"The outbox {self._path} cannot be used: {error}. {advice}")

    def _is_exchanged(self) -> bool:
        return self._file is not None and self._file != _identity(self._path)

    def _exchanged(self) -> Recovered:
        return Recovered(f"The outbox {self._path} was exchanged by another process; the next use opens the new one.")

    def _let_go(self) -> None:
        db, self._db, self._file, self._patience = self._db, None, None, None
        if db is not None:
            db.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None where there is no file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
