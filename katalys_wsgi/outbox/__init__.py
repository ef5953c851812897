"""The outbox: the one wall between the shop's pages and the delivery.

What is added here is delivered, whatever dies in between. A row is pending until Katalys has taken it
(delivered) or nobody can make Katalys take it (dead).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from ..postback import Postback, Receipt

PENDING = "pending"
DELIVERED = "delivered"
DEAD = "dead"


class Added(Enum):
    """What became of a postback that was added."""

    NEW = "new"
    REPLACED = "replaced"  # it took the place of a dead letter that said something else
    SAME = "same"  # it was there already
    DIFFERENT = "different"  # its key was there already with other fields; those stand


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
    finished_at: float | None
    last_status: int | None
    last_error: str | None
    confirmed: bool
    history: tuple[Attempt, ...] = ()


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


class Outbox(Protocol):
    """Where postbacks wait. Every method raises ``OutboxUnavailable`` when the store cannot be reached in time."""

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

    def close(self) -> None:
        """Let go of this process's connections; the next use opens them again."""
        ...
