"""The outbox in memory, for tests of shops and of this package: the same rules, and nothing survives the process."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..conversion.postback import Kind, Postback
from ..process import ForkLock
from .entry import GIVEN_UP, LONGEST_DELAY, Added, Change, Entry, State, Statistics, holds_back
from .rules import (
    PAGE,
    added_again,
    dropped_columns,
    forgotten_columns,
    new_columns,
    noted_columns,
    paged,
    refuse_connection,
    revived_columns,
    share_of_retries,
)

__all__ = ["MemoryOutbox"]

#: The columns that a new row has beside :func:`~katalys_wsgi.outbox.rules.new_columns`.
_BLANK = {"leased_until": None, "lease_token": None, "confirmed": False, "history": "[]"}


class MemoryOutbox:
    """An :class:`~katalys_wsgi.outbox.Archive` in memory, safe to share between threads.

    It keeps its rows when it is closed, as a file would, and loses them with the process: for tests only. A forked
    child has a copy of its own::

        outbox = MemoryOutbox()
        tracker = Tracker(site_id="KA-1A2B3C4", secret_key=SECRET, outbox=outbox, delivery="external")
        ...
        assert [entry.order_id for entry in outbox.entries()] == ["1001"]

    :param clock: seconds since 1970.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = ForkLock()
        self._rows: dict[int, dict[str, Any]] = {}  # by id, so in the order of recording
        self._last_id = 0

    def __repr__(self) -> str:
        return "MemoryOutbox()"

    def add(self, postback: Postback, *, problems: Sequence[str] = (), connection: Any = None) -> Added:
        """See :meth:`Outbox.add <katalys_wsgi.outbox.Outbox.add>`.

        :raises UnusableConnection: ``connection`` was given: there is no database.
        """
        refuse_connection(connection)
        now = self._clock()
        with self._lock:
            row = next(self._matching(key=postback.key), None)
            if row is None:
                self._last_id += 1
                self._rows[self._last_id] = {"id": self._last_id, **_BLANK, **new_columns(postback, problems, now)}
                return Added.NEW
            there = {name: row[name] for name in ("state", "attempts", "digest")}
            added = added_again(postback, problems, **there)
            if added is Added.REPLACED:
                row.update(revived_columns(postback, now))
            return added

    def history(self, order_id: str, *, connection: Any = None) -> list[Entry]:
        """See :meth:`Outbox.history <katalys_wsgi.outbox.Outbox.history>`.

        :raises UnusableConnection: ``connection`` was given: there is no database.
        """
        refuse_connection(connection)
        with self._lock:
            return [Entry.from_row(row) for row in self._matching(order_id=order_id)]

    def claim(self, limit: int, lease: float) -> list[Entry]:
        """See :meth:`Outbox.claim <katalys_wsgi.outbox.Outbox.claim>`.

        Leases are kept as a file keeps them, so a test sees a row come back by moving ``clock`` past the lease.
        """
        now, token = self._clock(), secrets.token_hex(8)
        with self._lock:
            eligible = self._eligible()

            def due(*, tried: bool, after_jump: bool, most: int) -> list[int]:
                return [
                    entry.id
                    for entry in eligible
                    if bool(entry.attempts) is tried
                    and (entry.due_at > now + LONGEST_DELAY if after_jump else entry.due_at <= now)
                ][:most]

            rows = [self._rows[entry_id] for entry_id in share_of_retries(due, limit)]
            for row in rows:
                row.update(attempts=row["attempts"] + 1, lease_token=token)
                row.update(due_at=now + lease, leased_until=now + lease)
            return [Entry.from_row(row) for row in rows]

    def apply(self, changes: Iterable[Change]) -> int:
        """See :meth:`Outbox.apply <katalys_wsgi.outbox.Outbox.apply>`.

        ``changes`` is read before the lock is taken, since it may be a generator that uses this outbox.
        """
        now, decided = self._clock(), list(changes)
        with self._lock:
            return sum(
                self._update(change.columns(now), id=change.entry.id, lease_token=change.entry.lease_token)
                for change in decided
            )

    def prune(self, finished_before: float) -> int:
        """See :meth:`Outbox.prune <katalys_wsgi.outbox.Outbox.prune>`."""
        with self._lock:
            entries = [Entry.from_row(row) for row in self._rows.values()]
            old = {entry for entry in entries if entry.finished_at is not None and entry.finished_at < finished_before}
            given_up = {entry.order_id for entry in old if entry.state in GIVEN_UP and entry.kind is Kind.CONVERSION}
            for entry in entries:
                waits = entry.state is State.PENDING and entry.kind is Kind.UPDATE and entry.order_id in given_up
                if waits or entry in old:
                    del self._rows[entry.id]
            return len(entries) - len(self._rows)

    def close(self) -> None:
        """See :meth:`Outbox.close <katalys_wsgi.outbox.Outbox.close>`; there is nothing to close, and the rows stay."""

    def entries(self, state: State | None = None, *, limit: int = 100) -> list[Entry]:
        """See :meth:`Archive.entries <katalys_wsgi.outbox.Archive.entries>`."""
        newest_first = reversed(self._entries())
        return [entry for entry in newest_first if state is None or entry.state is State(state)][:limit]

    def failing(self, *, limit: int = 100) -> list[Entry]:
        """See :meth:`Archive.failing <katalys_wsgi.outbox.Archive.failing>`."""
        tried = [entry for entry in self._entries() if entry.state is State.PENDING and entry.attempts]
        return sorted(tried, key=_when_due)[:limit]

    def with_payload(self) -> Iterator[Entry]:
        """See :meth:`Archive.with_payload <katalys_wsgi.outbox.Archive.with_payload>`."""
        return paged(
            lambda after: [entry for entry in self._entries() if entry.id > after and entry.payload is not None][:PAGE]
        )

    def revive(self, entry: Entry, postback: Postback, *, note: str = "") -> bool:
        """See :meth:`Archive.revive <katalys_wsgi.outbox.Archive.revive>`."""
        now = self._clock()
        columns = revived_columns(postback, now) | noted_columns(entry, note, now)
        with self._lock:
            if any(row["id"] != entry.id for row in self._matching(key=postback.key)):
                return False
            return bool(self._update(columns, id=entry.id, state=State.DEAD.value))

    def drop(self, entries: Iterable[Entry]) -> int:
        """See :meth:`Archive.drop <katalys_wsgi.outbox.Archive.drop>`."""
        now, chosen = self._clock(), list(entries)
        with self._lock:
            return sum(
                self._update(dropped_columns(entry, now), id=entry.id, digest=entry.digest, state=State.DEAD.value)
                for entry in chosen
            )

    def forget(self, entries: Iterable[Entry]) -> int:
        """See :meth:`Archive.forget <katalys_wsgi.outbox.Archive.forget>`."""
        now, chosen = self._clock(), list(entries)
        with self._lock:
            return sum(
                self._update(forgotten_columns(entry, now), id=entry.id, state=entry.state.value) for entry in chosen
            )

    def statistics(self) -> Statistics:
        """See :meth:`Archive.statistics <katalys_wsgi.outbox.Archive.statistics>`."""
        now = self._clock()
        of_state: dict[State, list[Entry]] = {state: [] for state in State}
        for entry in self._entries():
            of_state[entry.state].append(entry)
        pending, delivered = of_state[State.PENDING], of_state[State.DELIVERED]
        return Statistics(
            **{state.value: len(entries) for state, entries in of_state.items()},
            due=sum(entry.due_at <= now for entry in pending),
            oldest_pending=min((entry.created_at for entry in pending), default=None),
            last_delivered=max((entry.finished_at or 0.0 for entry in delivered), default=None),
        )

    def _entries(self) -> list[Entry]:
        """Every entry, oldest first."""
        with self._lock:
            return [Entry.from_row(row) for row in self._rows.values()]

    def _eligible(self) -> list[Entry]:
        """The pending entries that no older one holds back, the one that is due first at the front.

        Those that are not due yet are among them; the caller holds the lock.
        """
        entries = [Entry.from_row(row) for row in self._rows.values()]
        of_order: dict[str, list[Entry]] = {}
        for entry in entries:
            of_order.setdefault(entry.order_id, []).append(entry)
        return sorted(
            (
                entry
                for entry in entries
                if entry.state is State.PENDING
                and not any(holds_back(older, entry) for older in of_order[entry.order_id])
            ),
            key=_when_due,
        )

    def _matching(self, **values: object) -> Iterator[dict[str, Any]]:
        """The rows whose columns have these values, oldest first."""
        return (row for row in self._rows.values() if all(row[name] == value for name, value in values.items()))

    def _update(self, columns: dict[str, Any], **values: object) -> int:
        """Write ``columns`` into the rows whose columns have these values; returns how many there were."""
        rows = list(self._matching(**values))
        for row in rows:
            row.update(columns)
        return len(rows)


def _when_due(entry: Entry) -> tuple[float, int]:
    """The order of delivery: by time, and by age where that is the same."""
    return entry.due_at, entry.id
