"""Hangs up on a database that has accepted a statement and does not answer it.

While the database's machine is up, its kernel goes on acknowledging packets, so no timeout of TCP or of a driver ends
such a wait. Shutting the socket down under the driver does: its read returns at once, with an error.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

__all__ = ["GRACE", "Watchdog"]

#: Seconds beyond the patience: the database's own limits come first, because they leave the connection whole.
GRACE = 0.25


class Watchdog:
    """Shuts the socket of a connection down after ``patience`` seconds, unless its ``with`` block has ended by then.

    Where no thread can be started (uWSGI without ``enable-threads``) nothing watches, and the wait may be long.

    :param db: the connection that waits for the database in the block.
    :param patience: seconds, to which :data:`GRACE` is added.
    """

    #: Whether the patience has run out in the block.
    hung_up: bool

    def __init__(self, db: Connection, patience: float) -> None:
        self.hung_up = False
        self._db = db
        self._is_over = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(patience + GRACE, self._hang_up)
        self._timer.daemon = True

    def __enter__(self) -> Watchdog:
        with suppress(RuntimeError):  # no more threads
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._timer.cancel()
            self._is_over = True

    def _hang_up(self) -> None:
        with self._lock, suppress(Exception):  # a driver without a socket, or one that has closed it
            if not self._is_over and not self._db.invalidated:
                self.hung_up = True
                with socket.socket(fileno=os.dup(_file_number(self._db))) as line:
                    line.shutdown(socket.SHUT_RDWR)


def _file_number(db: Connection) -> int:
    """The file descriptor of the driver's socket.

    psycopg, psycopg2 and mysqlclient (https://github.com/PyMySQL/mysqlclient/pull/300) have ``fileno()`` for it.
    PyMySQL has nothing of the kind; its socket is an internal, which a test looks for:
    https://github.com/PyMySQL/PyMySQL/blob/main/pymysql/connections.py.
    """
    driver: Any = db.connection.driver_connection
    number: int = getattr(driver, "_sock", driver).fileno()
    return number
