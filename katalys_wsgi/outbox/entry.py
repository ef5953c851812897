"""An entry: one row of the outbox, its states, and every rule of a row that is not SQL.

Both stores and all readers use these rules; only the SQL around them differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from ..conversion.postback import Kind, Postback
from ..errors import UnusableConnection

__all__ = [
    "FORGOTTEN", "HOLDING_BACK", "LONGEST_DELAY", "LONGEST_HISTORY", "PAGE", "PATIENCE_IN_RELAY",
    "PATIENCE_IN_REQUEST", "PRUNED_AT_A_TIME", "Added", "Attempt", "Change", "Due", "Entry", "Receipt", "State",
    "Statistics", "Verdict", "added_again", "forgotten_columns", "holds_back", "new_columns", "paged",
    "refuse_connection", "revived_columns", "share_of_retries",
]  # fmt: skip

#: The longest that a row may be postponed, in seconds. Katalys may ask for that much with Retry-After; a row that is
#: due later was put there by a clock that jumped.
LONGEST_DELAY = 6 * 3600.0

#: How many attempts are kept with a row, for ``katalys-wsgi why``.
LONGEST_HISTORY = 20

#: Seconds that a shop's page waits for the store.
PATIENCE_IN_REQUEST = 2.0

#: Seconds that the relay and the operator's commands wait for it.
PATIENCE_IN_RELAY = 10.0

#: Rows deleted in one transaction: pages wait while it lasts.
PRUNED_AT_A_TIME = 500

#: Rows read at a time by :func:`paged`.
PAGE = 1000

#: The ``last_error`` of a row whose buyer asked to be forgotten before it was delivered.
FORGOTTEN = "forgotten on request"


class State(str, Enum):
    """Where a row stands."""

    PENDING = "pending"  # until Katalys has it
    DELIVERED = "delivered"  # Katalys has it
    DEAD = "dead"  # a dead letter: only the operator can get it delivered

    __str__ = str.__str__

    @classmethod
    def _missing_(cls, _: object) -> State:
        return cls.DEAD  # damaged on disk: never sent, and still shown


#: An update waits for the older entries of its order that are so: it must not overtake its conversion, and it makes no
#: sense without one. A dead conversion holds it back until the operator has revived it.
HOLDING_BACK = (
    (State.PENDING, Kind.CONVERSION),
    (State.PENDING, Kind.UPDATE),
    (State.DEAD, Kind.CONVERSION),
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
    """One attempt to deliver.

    :param at: seconds since 1970.
    :param status: the HTTP status, None when there was no answer.
    :param error: one line without personal data, None when delivered.
    """

    at: float
    status: int | None
    error: str | None


@dataclass(frozen=True)
class Entry:
    """One row. Times are seconds since 1970.

    :param payload: the message as JSON; None once it is no longer needed.
    :param attempts: how often it was claimed to be sent since it was last made pending.
    :param due_at: when it may be claimed next; at the earliest when a lease ends.
    :param lease_token: identifies the claim of the relay that is sending it, None when no relay is.
    :param pending_since: when it was recorded or last revived; give_up_after counts from here.
    :param finished_at: when it was delivered or became a dead letter.
    :param confirmed: Katalys said that it parsed the message; never true over GET.
    :param history: the last :data:`LONGEST_HISTORY` attempts, oldest first.
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
            unknown, because the disk was damaged, reads as an update, a state as dead.
        """
        return cls(**{
            **row,
            "kind": Kind(row["kind"]),
            "state": State(row["state"]),
            "confirmed": bool(row["confirmed"]),
            "history": tuple(Attempt(*attempt) for attempt in json.loads(row["history"])),
        })  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """How an outbox stands: numbers of rows, and times in seconds since 1970.

    :param due: how many of the pending may be sent now by their time.
    :param oldest_pending: when it was recorded, None when none is pending.
    """

    pending: int
    due: int
    dead: int
    delivered: int
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
        """What to write into the row if the lease is still the caller's; ``payload`` only when it is removed."""
        lease = {"due_at": now + self.delay, "leased_until": None, "lease_token": None}
        if self.receipt is None:
            return {**lease, "attempts": self.entry.attempts - 1}
        attempt = Attempt(now, self.receipt.status, self.receipt.error)
        history = [[one.at, one.status, one.error] for one in (*self.entry.history, attempt)]
        return {
            **lease,
            **({"payload": None} if self.state is State.DELIVERED else {}),
            "state": self.state.value,
            "finished_at": None if self.state is State.PENDING else now,
            "last_status": attempt.status,
            "last_error": attempt.error,
            "confirmed": self.receipt.confirmed,
            "history": json.dumps(history[-LONGEST_HISTORY:]),
        }


# --- the rules of a row ---


def new_columns(postback: Postback, problems: Sequence[str], now: float) -> dict[str, Any]:
    """The row of a postback that was just recorded.

    :param problems: what is wrong with it: with any it is a dead letter at once.
    :param now: seconds since 1970.
    """
    return {
        "kind": postback.kind.value,
        "created_at": now,
        **revived_columns(postback, now),
        "state": (State.DEAD if problems else State.PENDING).value,
        "finished_at": now if problems else None,
        "last_error": "; ".join(problems) or None,
    }


def revived_columns(postback: Postback, now: float) -> dict[str, Any]:
    """What makes a row pending anew as ``postback``; its history, and when it was recorded first, stay."""
    return {
        "key": postback.key,
        "order_id": postback.order_id,
        "payload": postback.payload,
        "digest": postback.digest,
        "clicked_at": postback.clicked_at,
        "state": State.PENDING.value,
        "attempts": 0,
        "due_at": now,
        "pending_since": now,
        "finished_at": None,
        "last_status": None,
        "last_error": None,
    }


def forgotten_columns(entry: Entry, now: float) -> dict[str, Any]:
    """What removes the buyer's data from a row; one that was still pending will never be delivered."""
    if entry.state is State.DELIVERED:
        return {"payload": None}
    return {
        "payload": None,
        "state": State.DEAD.value,
        "finished_at": now,
        "leased_until": None,
        "lease_token": None,
        "last_error": FORGOTTEN,
    }


def added_again(postback: Postback, problems: Sequence[str], *, state: str, attempts: int, digest: str) -> Added:
    """What becomes of a postback whose key is there already, in a row of that state, attempts and digest.

    A dead letter gives way to valid data when it was invalid itself (no attempt was made) or says something else.
    """
    same = digest == postback.digest
    if state == State.DEAD and not problems and not (same and attempts):
        return Added.REPLACED
    return Added.SAME if same else Added.DIFFERENT


def refuse_connection(connection: object) -> None:
    """What outboxes do with ``connection=`` that are not in the shop's database.

    :raises UnusableConnection: there is one.
    """
    if connection is not None:
        raise UnusableConnection(
            "connection= needs the outbox in the shop's database: set outbox to its SQLAlchemy URL, or leave it out."
        )


def holds_back(older: Entry, entry: Entry) -> bool:
    """Whether ``entry`` may not be claimed because of ``older``, another entry of its order."""
    return older.id < entry.id and (older.state, older.kind) in HOLDING_BACK


class Due(Protocol):
    """A store's query for the ids of rows that may be claimed, the one that is due first at the front."""

    def __call__(self, *, tried: bool, after_jump: bool, most: int) -> list[int]:
        """At most ``most`` ids.

        :param tried: of rows that were tried before, or of new ones.
        :param after_jump: of rows that are due only because a clock jumped (:data:`LONGEST_DELAY`), or by their time.
        """
        ...


def share_of_retries(due: Due, limit: int) -> list[int]:
    """The ids to claim, at most ``limit``: new rows first, yet retries get up to half while others wait.

    What is left goes to rows that a clock jump has put too far into the future.
    """
    fresh = due(tried=False, after_jump=False, most=limit)
    tried = due(tried=True, after_jump=False, most=limit - min(len(fresh), limit - limit // 2))
    ids = fresh[: limit - len(tried)] + tried
    for tried_before in (False, True):
        if len(ids) < limit:
            ids += due(tried=tried_before, after_jump=True, most=limit - len(ids))
    return ids


def paged(page: Callable[[int], list[Entry]]) -> Iterator[Entry]:
    """Every entry, read page by page so that no transaction lasts long.

    :param page: the next :data:`PAGE` entries above an id, by id; an empty list ends it.
    """
    entries = page(0)
    while entries:
        yield from entries
        entries = page(entries[-1].id)
