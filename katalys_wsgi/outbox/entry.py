"""An entry: one row of the outbox, the states it goes through, and what an attempt changes in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..conversion.postback import Kind
from ..conversion.wire import business_part

__all__ = [
    "FORGOTTEN", "GIVEN_UP", "HOLDING_BACK", "LONGEST_DELAY", "LONGEST_HISTORY", "PATIENCE_IN_RELAY",
    "PATIENCE_IN_REQUEST", "PRUNED_AT_A_TIME", "Added", "Attempt", "Change", "Entry", "Receipt", "State",
    "Statistics", "Verdict", "as_column", "holds_back",
]  # fmt: skip

#: The longest that a row may be postponed, in seconds. Katalys may ask for that much with Retry-After; a row that is
#: due later was put there by a clock that jumped.
LONGEST_DELAY = 6 * 3600.0

#: How many attempts and notes are kept with a row, for ``katalys-wsgi why``.
LONGEST_HISTORY = 20

#: Seconds that a shop's page waits for the store.
PATIENCE_IN_REQUEST = 2.0

#: Seconds that the relay and the operator's commands wait for it.
PATIENCE_IN_RELAY = 10.0

#: Rows deleted in one transaction: pages wait while it lasts.
PRUNED_AT_A_TIME = 500

#: The ``last_error`` of a row whose buyer asked to be forgotten before it was delivered.
FORGOTTEN = "forgotten on request"


class State(str, Enum):
    """Where a row stands."""

    PENDING = "pending"  # until Katalys has it
    DELIVERED = "delivered"  # Katalys has it
    DEAD = "dead"  # a dead letter: only the operator can get it delivered
    FORGOTTEN = "forgotten"  # its buyer asked to be forgotten before it was delivered: its data is gone
    DROPPED = "dropped"  # a dead letter that the operator has dismissed

    __str__ = str.__str__

    @classmethod
    def _missing_(cls, _: object) -> State:
        return cls.DEAD  # damaged on disk: never sent, and still shown


#: The states of a row that nobody is going to deliver, unless the operator or the shop intervenes.
GIVEN_UP = (State.DEAD, State.FORGOTTEN, State.DROPPED)

#: An update waits for the older entries of its order that are so: it must not overtake its conversion, and it makes no
#: sense without one. A conversion that was given up holds it back until it is revived or recorded again.
HOLDING_BACK = (
    (State.PENDING, Kind.CONVERSION),
    (State.PENDING, Kind.UPDATE),
    *((state, Kind.CONVERSION) for state in GIVEN_UP),
)


class Added(Enum):
    """What became of a postback that was added."""

    NEW = "new"
    REPLACED = "replaced"  # it took the place of a dead letter that said something else
    SAME = "same"  # it was there already
    DIFFERENT = "different"  # its key was there already with other fields, which stand


class Verdict(Enum):
    """What an attempt's answer means for its row."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"  # a dead letter at once: the same bytes would be refused again
    MISCONFIGURED = "misconfigured"  # it is not because of this row: the whole endpoint pauses


@dataclass(frozen=True)
class Receipt:
    """The outcome of one attempt.

    :param status: the HTTP status, None when there was no answer.
    :param error: one line without personal data, None when delivered.
    :param retry_after: seconds Katalys asked us to wait.
    :param confirmed: Katalys said that it parsed the message; never true over GET.
    """

    verdict: Verdict
    status: int | None = None
    error: str | None = None
    retry_after: float | None = None
    confirmed: bool = False


@dataclass(frozen=True)
class Attempt:
    """One attempt to deliver, or a note on what the operator did in between.

    :param at: seconds since 1970.
    :param status: the HTTP status, None when there was no answer.
    :param error: one line without personal data, None when delivered.
    :param note: what the operator did, such as ``"corrected: sale_amount"``; then this is no attempt, and status and
        error are None. None for an attempt.
    """

    at: float
    status: int | None
    error: str | None
    note: str | None = None


@dataclass(frozen=True)
class Entry:
    """One row. Times are seconds since 1970.

    :param payload: the message as JSON. What is delivered or dropped keeps its business fields only, without personal
        data (:func:`~katalys_wsgi.conversion.wire.business_part`); what is forgotten keeps nothing: None.
    :param attempts: how often it was claimed to be sent since it was last made pending.
    :param due_at: when it may be claimed next; at the earliest when a lease ends.
    :param lease_token: identifies the claim of the relay that is sending it, None when no relay is.
    :param pending_since: when it was recorded or last revived; give_up_after counts from here.
    :param finished_at: when it was delivered, became a dead letter, was forgotten or dropped; None while pending.
    :param confirmed: Katalys said that it parsed the message; never true over GET.
    :param history: the last :data:`LONGEST_HISTORY` attempts and notes, oldest first.
    """

    id: int
    key: str
    order_id: str
    kind: Kind
    payload: str | None = field(repr=False)
    digest: str
    state: State
    attempts: int
    due_at: float
    leased_until: float | None
    lease_token: str | None
    clicked_at: float | None
    created_at: float
    pending_since: float
    finished_at: float | None
    last_status: int | None
    last_error: str | None
    confirmed: bool
    history: tuple[Attempt, ...] = ()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Entry:
        """The entry of a row as a store keeps it.

        :param row: the columns of this class, states and kinds as their values, the history as JSON. A kind that is
            unknown, because the disk was damaged, reads as an update, a state as dead, a history as empty.
        """
        return cls(**{
            **row,
            "kind": Kind(row["kind"]),
            "state": State(row["state"]),
            "confirmed": bool(row["confirmed"]),
            "history": _readable_history(row["history"]),
        })  # fmt: skip


def _readable_history(column: str) -> tuple[Attempt, ...]:
    try:
        return tuple(Attempt(*attempt) for attempt in json.loads(column))
    except (TypeError, ValueError):
        return ()  # damaged on disk: neither delivery nor the operator's questions may fail for it


def as_column(history: Iterable[Attempt]) -> str:
    """The last :data:`LONGEST_HISTORY` attempts and notes, as a store keeps them: JSON, read by ``Entry.from_row``."""
    rows = [[one.at, one.status, one.error, *([one.note] if one.note else [])] for one in history]
    return json.dumps(rows[-LONGEST_HISTORY:])


@dataclass(frozen=True)
class Statistics:
    """How an outbox stands: how many rows are in each state, and times in seconds since 1970.

    :param due: how many of the pending may be sent now by their time.
    :param oldest_pending: when it was recorded, None when none is pending.
    """

    pending: int
    due: int
    dead: int
    delivered: int
    forgotten: int
    dropped: int
    oldest_pending: float | None
    last_delivered: float | None


@dataclass(frozen=True)
class Change:
    """What the relay decides about an entry it has claimed; made by the class methods.

    :param entry: as it was claimed: its lease token shows whether it still is the relay's.
    :param receipt: the attempt's outcome, None when there was no attempt.
    :param delay: seconds until a pending row is due.
    """

    entry: Entry
    state: State
    receipt: Receipt | None
    delay: float = 0.0

    @classmethod
    def settle(cls, entry: Entry, receipt: Receipt) -> Change:
        """Katalys has it."""
        return cls(entry, State.DELIVERED, receipt)

    @classmethod
    def postpone(cls, entry: Entry, receipt: Receipt, delay: float) -> Change:
        """Try again in ``delay`` seconds, at most :data:`LONGEST_DELAY`."""
        return cls(entry, State.PENDING, receipt, min(delay, LONGEST_DELAY))

    @classmethod
    def bury(cls, entry: Entry, receipt: Receipt) -> Change:
        """A dead letter, for the operator to look at."""
        return cls(entry, State.DEAD, receipt)

    @classmethod
    def release(cls, entry: Entry) -> Change:
        """It was claimed and not tried: the claim is undone, its attempt is not counted."""
        return cls(entry, State.PENDING, None)

    def columns(self, now: float) -> dict[str, Any]:
        """What to write into the row if the lease is still the caller's; ``payload`` only when it is reduced."""
        lease = {"due_at": now + self.delay, "leased_until": None, "lease_token": None}
        if self.receipt is None:
            return {**lease, "attempts": self.entry.attempts - 1}
        attempt = Attempt(now, self.receipt.status, self.receipt.error)
        return {
            **lease,
            **({"payload": business_part(self.entry.payload or "{}")} if self.state is State.DELIVERED else {}),
            "state": self.state.value,
            "finished_at": None if self.state is State.PENDING else now,
            "last_status": attempt.status,
            "last_error": attempt.error,
            "confirmed": self.receipt.confirmed,
            "history": as_column((*self.entry.history, attempt)),
        }


def holds_back(older: Entry, entry: Entry) -> bool:
    """Whether ``entry`` may not be claimed because of ``older``, another entry of its order."""
    return older.id < entry.id and (older.state, older.kind) in HOLDING_BACK
