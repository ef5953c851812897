"""Whether the file at the outbox's place is ours: one that is not is never written, renamed or locked.

A SQLite file says whose it is by the application id in its header
(https://sqlite.org/pragma.html#pragma_application_id). A wrong path in the settings thus does no harm to whatever
is there, be it the shop's own database.
"""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from enum import Enum
from pathlib import Path

from ..errors import ForeignFile, OutboxMissing
from .schema import APPLICATION_ID

__all__ = ["Found", "look_at", "missing"]

# https://sqlite.org/fileformat.html#the_database_header: the magic, and where the application's id is.
_MAGIC = b"SQLite format 3\0"
_HEADER = 100
_ID_AT = slice(68, 72)

_ELSEWHERE = "Set outbox (KATALYS_OUTBOX) to another path"
_KINDS = {stat.S_IFDIR: "directory", stat.S_IFSOCK: "socket", stat.S_IFIFO: "named pipe"}


class Found(Enum):
    """What is at the outbox's place."""

    NOTHING = "nothing"
    EMPTY = "empty"  # a file of 0 bytes: a new one
    OURS = "ours"  # its first 100 bytes say so; whatever follows them may be damaged


def look_at(path: Path) -> Found:
    """What is at ``path``, found out without a trace: nothing is written, made or locked.

    :param path: absolute; links are followed.
    :returns: whose it is, by its first 100 bytes; what follows them is not checked.
    :raises ForeignFile: what is there is not ours, or cannot be read.
    :raises OSError: the directory cannot be looked into.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return Found.NOTHING
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "device")
        raise ForeignFile(f"{path} is not an outbox of katalys_wsgi but a {kind}. {_ELSEWHERE}.")
    if not found.st_size:
        return Found.EMPTY
    if _application_id(path) != APPLICATION_ID:
        raise ForeignFile(
            f"{path} is not an outbox of katalys_wsgi. {_ELSEWHERE}; only if this was the outbox before it was "
            "damaged: katalys-wsgi recover --yes"
        )
    return Found.OURS


def missing(path: Path) -> OutboxMissing:
    """Make the error for a reader that finds no outbox at ``path``: when one is made, which setting to check."""
    return OutboxMissing(
        f"No outbox at {path}. It is made when the first order is recorded; if it should be there, see that outbox "
        "(KATALYS_OUTBOX) is the shop's own setting."
    )


def _application_id(path: Path) -> int:
    """The id in the header; 0 if there is none.

    Asked through SQLite, because closing any other descriptor of a file drops every lock that this process has on it
    (POSIX), and it may be the shop's own database. ``immutable`` neither locks nor makes a file beside it
    (https://sqlite.org/uri.html#uriimmutable).
    """
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            return int(db.execute("PRAGMA application_id").fetchone()[0])
    except sqlite3.DatabaseError:
        return _id_in_header(path)  # SQLite can do nothing with it, so no process has a lock on it


def _id_in_header(path: Path) -> int:
    """The id as the header's bytes have it; 0 if they are not a SQLite header.

    :raises ForeignFile: this user may not read the file.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER)
    except PermissionError:
        raise ForeignFile(
            f"{path} cannot be read by this user, so it is not known as an outbox of katalys_wsgi. Let this user read "
            f"and write it, or {_ELSEWHERE[0].lower()}{_ELSEWHERE[1:]}."
        ) from None
    return int.from_bytes(header[_ID_AT], "big") if header.startswith(_MAGIC) else 0
