"""The outbox: the one wall between the shop's pages and the delivery.

What is added here is delivered, whatever dies in between. A row is pending until Katalys has taken it
(delivered) or nobody can make Katalys take it (dead).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from ..conversion.postback import Postback
from ..errors import ConfigurationError
from ..events import Events
from .entry import Added, Attempt, Change, Entry, Receipt, State, Statistics, Verdict

__all__ = [
    "Added", "Archive", "Attempt", "Change", "Entry", "Outbox", "Receipt", "State", "Statistics", "Verdict",
    "open_outbox",
]  # fmt: skip


@runtime_checkable
class Outbox(Protocol):
    """Where postbacks wait: what recording and delivery need.

    Every method raises :class:`~katalys_wsgi.OutboxUnavailable` when the store cannot be reached in time.
    """

    def add(self, postback: Postback, *, problems: Sequence[str] = (), connection: Any = None) -> Added:
        """Keep ``postback``, durably once this returns.

        :param problems: what is wrong with it: it becomes a dead letter at once, which a later valid postback of
            the same key replaces.
        :param connection: the shop's own connection, so that it is kept if and only if the order is; only for
            outboxes in the shop's database.
        """
        ...

    def history(self, order_id: str, *, connection: Any = None) -> list[Entry]:
        """Every entry of an order, oldest first."""
        ...

    def claim(self, limit: int, lease: float) -> list[Entry]:
        """Up to ``limit`` entries that are due, oldest first, for ``lease`` seconds in nobody else's hands.

        Each claim counts an attempt. An entry is held back while an older one of its order is not delivered.
        """
        ...

    def apply(self, changes: Iterable[Change]) -> int:
        """Write down what became of claimed entries, in one transaction.

        :returns: how many were still the caller's; a lease that ran out may be somebody else's now.
        """
        ...

    def prune(self, finished_before: float) -> int:
        """Delete entries that were finished before that time, and updates that wait for a conversion among them.

        :returns: how many were deleted.
        """
        ...

    def close(self) -> None:
        """Let go of this process's connections; the next use opens them again."""
        ...


@runtime_checkable
class Archive(Outbox, Protocol):
    """An outbox that also answers an operator's questions; every outbox of this package is one."""

    def entries(self, state: State | None = None, *, limit: int = 100) -> list[Entry]:
        """The newest entries, of one state or of all."""
        ...

    def failing(self, *, limit: int = 100) -> list[Entry]:
        """Pending entries that were tried before, the next due first."""
        ...

    def with_payload(self) -> Iterator[Entry]:
        """Every entry that still holds a payload."""
        ...

    def revive(self, entry: Entry, postback: Postback) -> bool:
        """Make a dead letter pending again, as ``postback`` (the same, or corrected).

        :returns: False if it is no longer dead, or ``postback`` has the key of another entry.
        """
        ...

    def forget(self, entries: Iterable[Entry]) -> int:
        """Take the buyer's data out of ``entries``; those pending become dead letters. Returns how many changed."""
        ...

    def statistics(self) -> Statistics:
        """How the outbox stands."""
        ...


def open_outbox(
    setting: str | Outbox, *, clock: Callable[[], float] = time.time, events: Events | None = None
) -> Outbox:
    """The outbox that the setting ``outbox`` names: a path is a SQLite file of ours, a URL the shop's database.

    :param clock: seconds since 1970, for the file; in a database the database's own clock decides.
    :param events: where damage of the file is reported.
    :raises ConfigurationError: the file's directory or the URL cannot be used, or SQLAlchemy is missing.
    """
    if not isinstance(setting, str):
        return setting
    if "://" not in setting:
        from .sqlite import SQLiteOutbox  # loads sqlite3, which a shop with another outbox does without

        return SQLiteOutbox(setting, clock=clock)
    try:
        from .sqlalchemy import SQLAlchemyOutbox  # loads SQLAlchemy, which most shops do without
    except ImportError as error:
        raise ConfigurationError(
            f"outbox is a {setting.partition(':')[0]} address, for which SQLAlchemy is missing ({error}); "
            "pip install 'katalys-wsgi[sqlalchemy]'."
        ) from None
    return SQLAlchemyOutbox(setting)
