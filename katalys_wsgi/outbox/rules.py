"""The rules of a row that are not SQL: what is written into it, what another record of its key does, who is claimed.

Every store uses these rules; only the SQL around them differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from ..conversion.postback import Postback
from ..conversion.wire import business_part
from ..errors import UnusableConnection
from .entry import FORGOTTEN, GIVEN_UP, Added, Attempt, Entry, State, as_column

__all__ = [
    "PAGE", "Due", "added_again", "dropped_columns", "forgotten_columns", "new_columns", "noted_columns", "paged",
    "refuse_connection", "revived_columns", "share_of_retries",
]  # fmt: skip

#: Rows read at a time by :func:`paged`.
PAGE = 1000


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
    """What makes a row pending again as ``postback``; its history, and when it was recorded first, stay."""
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


def noted_columns(entry: Entry, note: str, now: float) -> dict[str, Any]:
    """What adds the operator's note to a row's history; nothing if there is none."""
    return {"history": as_column((*entry.history, Attempt(now, None, None, note)))} if note else {}


def dropped_columns(entry: Entry, now: float) -> dict[str, Any]:
    """What dismisses a dead letter: its business fields stay, and so does why it died."""
    return {"payload": business_part(entry.payload or "{}"), "state": State.DROPPED.value, "finished_at": now}


def forgotten_columns(entry: Entry, now: float) -> dict[str, Any]:
    """What empties a row whose buyer asked for it; one that was pending or dead will never be delivered."""
    if entry.state not in (State.PENDING, State.DEAD):
        return {"payload": None}
    return {
        "payload": None,
        "state": State.FORGOTTEN.value,
        "finished_at": now,
        "leased_until": None,
        "lease_token": None,
        "last_error": FORGOTTEN,
    }


def added_again(postback: Postback, problems: Sequence[str], *, state: str, attempts: int, digest: str) -> Added:
    """What becomes of a postback whose key is there already, in a row of that state, attempts and digest.

    What was given up (:data:`~katalys_wsgi.outbox.entry.GIVEN_UP`: a dead letter, also one that was forgotten or
    dropped since) gives way to valid data when no attempt was made, as of invalid data, or when it said something else.
    """
    same = digest == postback.digest
    if State(state) in GIVEN_UP and not problems and not (same and attempts):
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
