"""A row of the outbox: its states, and every rule of a row that is not SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..conversion.postback import Postback

PENDING = "pending"
DELIVERED = "delivered"
DEAD = "dead"

#: A row that is due later than any back-off could have put it was put there by a clock that jumped.
LONGEST_DELAY = 6 * 3600.0

#: Attempts that are remembered with a row, for the question why.
LONGEST_HISTORY = 20

FORGOTTEN = "forgotten on request"


class Added(Enum):
    """What became of a postback that was added."""

    NEW = "new"
    REPLACED = "replaced"  # it took the place of a dead letter that said something else
    SAME = "same"  # it was there already
    DIFFERENT = "different"  # its key was there already with other fields; those stand


class Verdict(Enum):
    """What an attempt's answer means for its row."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"  # a dead letter at once: the same bytes would be refused again
    MISCONFIGURED = "misconfigured"  # not this row's fault: the whole endpoint pauses


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
    """One attempt to deliver: when, and what was answered."""

    at: float
    status: int | None
    error: str | None


@dataclass(frozen=True)
class Entry:
    """One row. Times are seconds since 1970; ``payload`` is None once it is no longer needed."""

    id: int
    key: str
    order_id: str
    kind: str
    payload: str | None = field(repr=False)
    digest: str
    state: str
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
        """The entry of a row as a store keeps it."""
        history = tuple(Attempt(*attempt) for attempt in json.loads(row["history"]))
        return cls(**{**row, "confirmed": bool(row["confirmed"]), "history": history})


@dataclass(frozen=True)
class Statistics:
    """How an outbox stands. Times are seconds since 1970."""

    pending: int
    due: int
    dead: int
    delivered: int
    oldest_pending: float | None
    last_delivered: float | None


@dataclass(frozen=True)
class Change:
    """What the relay decides about an entry it holds; made by the class methods."""

    entry: Entry
    state: str
    receipt: Receipt | None
    delay: float = 0.0

    @classmethod
    def settle(cls, entry: Entry, receipt: Receipt) -> Change:
        """Katalys has it."""
        return cls(entry, DELIVERED, receipt)

    @classmethod
    def postpone(cls, entry: Entry, receipt: Receipt, delay: float) -> Change:
        """Try again in ``delay`` seconds."""
        return cls(entry, PENDING, receipt, delay)

    @classmethod
    def bury(cls, entry: Entry, receipt: Receipt) -> Change:
        """A dead letter, for a person to look at."""
        return cls(entry, DEAD, receipt)

    @classmethod
    def release(cls, entry: Entry) -> Change:
        """It was claimed and not tried: the claim is undone."""
        return cls(entry, PENDING, None)

    def columns(self, now: float) -> dict[str, Any]:
        """What to write into the row, if the lease is still the caller's; ``payload`` only when it goes."""
        lease = {"due_at": now + self.delay, "leased_until": None, "lease_token": None}
        if self.receipt is None:
            return {**lease, "attempts": self.entry.attempts - 1}
        attempt = Attempt(now, self.receipt.status, self.receipt.error)
        return {
            **lease,
            **({"payload": None} if self.state == DELIVERED else {}),
            "state": self.state,
            "finished_at": None if self.state == PENDING else now,
            "last_status": attempt.status,
            "last_error": attempt.error,
            "confirmed": self.receipt.confirmed,
            "history": json.dumps(
                [[one.at, one.status, one.error] for one in (*self.entry.history, attempt)][-LONGEST_HISTORY:]
            ),
        }


def new_columns(postback: Postback, problems: Sequence[str], now: float) -> dict[str, Any]:
    """The row of a postback that was just recorded; one with problems is a dead letter at once."""
    return {
        "key": postback.key,
        "order_id": postback.order_id,
        "kind": postback.kind,
        "clicked_at": postback.clicked_at,
        "created_at": now,
        **revived_columns(postback, now),
        "state": DEAD if problems else PENDING,
        "finished_at": now if problems else None,
        "last_error": "; ".join(problems) or None,
    }


def revived_columns(postback: Postback, now: float) -> dict[str, Any]:
    """What makes a row of a postback pending anew; its history stays."""
    return {
        "key": postback.key,
        "order_id": postback.order_id,
        "payload": postback.payload,
        "digest": postback.digest,
        "state": PENDING,
        "attempts": 0,
        "due_at": now,
        "pending_since": now,
        "finished_at": None,
        "last_status": None,
        "last_error": None,
    }


def forgotten_columns(entry: Entry, now: float) -> dict[str, Any]:
    """What takes the buyer's data out of a row; one that was still pending will never be delivered."""
    if entry.state == DELIVERED:
        return {"payload": None}
    return {
        "payload": None, "state": DEAD, "finished_at": now, "leased_until": None, "lease_token": None,
        "last_error": FORGOTTEN,
    }  # fmt: skip


def met_again(postback: Postback, problems: Sequence[str], *, state: str, attempts: int, digest: str) -> Added:
    """What becomes of a postback whose key is there already.

    A dead letter gives way to valid data: when it was invalid itself (no attempt was made), or says something else.
    """
    same = digest == postback.digest
    if state == DEAD and not problems and not (same and attempts):
        return Added.REPLACED
    return Added.SAME if same else Added.DIFFERENT
