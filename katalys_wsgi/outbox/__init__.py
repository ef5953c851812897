"""The outbox: where postbacks wait between the shop's pages and the delivery.

What is added here is delivered, whatever dies in between. An entry is pending until Katalys has taken it
(delivered) or refuses to take it as it is (dead); the operator may dismiss it (dropped) and the buyer be forgotten.
"""

from __future__ import annotations

import os
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

    Every method raises :class:`~katalys_wsgi.OutboxUnavailable` when the store cannot be reached in time. ``add``,
    ``claim``, ``apply`` and ``prune`` make the place where the rows are kept; every other method raises
    :class:`~katalys_wsgi.errors.OutboxMissing` where there is none, and neither makes, migrates nor repairs it.
    """

    def add(self, postback: Postback, *, problems: Sequence[str] = (), connection: Any = None) -> Added:
        """Keep ``postback``, durably once this returns.

        :param problems: what is wrong with it: it becomes a dead letter at once, which a later valid postback of
            the same key replaces.
        :param connection: the shop's own connection, so that it is kept if and only if the order is; only for
            outboxes in the shop's database.
        :returns: what became of it; the entry of a key that is there already stands, unless it is a dead letter, also
            one that was forgotten or dropped since.
        :raises UnusableConnection: this outbox cannot join ``connection``; nothing was written.
        """
        ...

    def history(self, order_id: str, *, connection: Any = None) -> list[Entry]:
        """Every entry of an order, oldest first.

        :param connection: as of :meth:`add`: what its transaction has written is seen.
        :raises UnusableConnection: this outbox cannot join ``connection``.
        """
        ...

    def claim(self, limit: int, lease: float) -> list[Entry]:
        """Up to ``limit`` entries that are due, oldest first, which no other relay gets for ``lease`` seconds.

        Each claim counts an attempt. An entry is held back while an older one of its order is not delivered
        (:data:`~katalys_wsgi.outbox.entry.HOLDING_BACK`); retries take at most half while new ones wait.
        """
        ...

    def apply(self, changes: Iterable[Change]) -> int:
        """Write down what became of claimed entries, in one transaction.

        :returns: how many were still the caller's; after its lease an entry may be another relay's.
        """
        ...

    def prune(self, finished_before: float) -> int:
        """Delete entries that were finished before that time, and updates that wait for a conversion among them.

        :param finished_before: seconds since 1970.
        :returns: how many were deleted.
        """
        ...

    def close(self) -> None:
        """Close this process's connections; the next use opens them again."""
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
        """Every entry that still holds a payload.

        The whole message while it is pending or a dead letter, its business fields once it is delivered or dropped.
        """
        ...

    def revive(self, entry: Entry, postback: Postback, *, note: str = "") -> bool:
        """Make a dead letter pending again, as ``postback`` (the same, or corrected).

        :param note: what was done to it, without personal data, such as ``"corrected: sale_amount"``; the history keeps
            it, :attr:`Attempt.note <katalys_wsgi.outbox.Attempt.note>`. Empty keeps none.
        :returns: False if it is no longer dead, or ``postback`` has the key of another entry.
        """
        ...

    def forget(self, entries: Iterable[Entry]) -> int:
        """Take the whole payload out of ``entries``; those pending or dead become forgotten and are not delivered.

        :returns: how many were changed; one that is in another state meanwhile is not.
        """
        ...

    def drop(self, entries: Iterable[Entry]) -> int:
        """Dismiss dead letters: why they died and their business fields stay, the buyer's data goes.

        :returns: how many were dropped; what is not a dead letter, or no longer as it is in ``entries``, is not.
        """
        ...

    def statistics(self) -> Statistics:
        """How the outbox stands."""
        ...


def open_outbox(
    setting: str | os.PathLike[str] | Outbox,
    *,
    clock: Callable[[], float] = time.time,
    events: Events | None = None,
) -> Outbox:
    """The outbox that the setting ``outbox`` means.

    :param setting: a path, as string or ``Path``, is a SQLite file of ours; a URL is the shop's database, also
        ``sqlite:///…``; an outbox is itself.

    :param clock: seconds since 1970, for the file; in a database the database's own clock decides.
    :param events: where damage of the file is reported; in the log only, unless given.
    :raises ConfigurationError: the file's directory or the URL cannot be used, or SQLAlchemy is missing.
    """
    if not isinstance(setting, (str, os.PathLike)):
        return setting
    if not isinstance(setting, str) or "://" not in setting:
        from .sqlite import SQLiteOutbox  # loads sqlite3, which a shop with another outbox does without

        return SQLiteOutbox(setting, clock=clock, events=events)
    try:
        from .sqlalchemy import SQLAlchemyOutbox  # loads SQLAlchemy, which most shops do without
    except ImportError as error:
        raise ConfigurationError(
            f"outbox is a {setting.partition(':')[0]} address, for which SQLAlchemy is missing ({error}); "
            "pip install 'katalys-wsgi[sqlalchemy]'."
        ) from None
    return SQLAlchemyOutbox(setting)
