"""The outbox in the shop's own database: PostgreSQL, MySQL 8, MariaDB or SQLite, through SQLAlchemy Core.

The rows and their rules are those of the SQLite file; any number of hosts may record and deliver. The database's
clock decides what is due. Needs ``pip install 'katalys-wsgi[sqlalchemy]'`` and the database's driver.
"""

from __future__ import annotations

from .store import SQLAlchemyOutbox
from .table import outbox_table

__all__ = ["SQLAlchemyOutbox", "outbox_table"]
