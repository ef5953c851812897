"""What a person asks of an outbox and does with it: how it stands, why, try again, forget."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from .conversion.postback import Kind, Postback, email_hash
from .conversion.wire import wire_problems
from .errors import InvalidConversion
from .outbox import Entry, Outbox, State, Statistics


@dataclass(frozen=True)
class Status:
    """How delivery stands, for a person or a monitor.

    :param pause: why nothing is delivered at the moment, None when nothing is known to be wrong.
    """

    statistics: Statistics
    pause: str | None

    @property
    def is_healthy(self) -> bool:
        """Whether there is nothing for a person to do: no dead letter, no pause."""
        return not self.statistics.dead and self.pause is None


def status(outbox: Outbox) -> Status:
    """How ``outbox`` stands."""
    statistics = outbox.statistics()
    attempts = [entry.history[-1] for entry in outbox.failing() if entry.history]
    last = max(attempts, key=lambda attempt: attempt.at, default=None)
    failed_last = last is not None and last.at > (statistics.last_delivered or 0.0)
    return Status(statistics, f"the last attempt failed: {last.error}" if last and failed_last else None)


def story(entries: list[Entry], now: float) -> Iterator[str]:
    """All that is known of an order, in plain sentences; ``entries`` are its rows, oldest first."""
    for entry in entries:
        yield from _beginning(entry)
        for number, attempt in enumerate(entry.history, 1):
            yield f"Attempt {number}, {_time(attempt.at)}: {attempt.error or f'HTTP {attempt.status}'}."
        yield _what_is_next(entry, entries, now)


def revive(outbox: Outbox, entry: Entry, changes: Mapping[str, str] | None = None) -> bool:
    """Have a dead letter tried again, with ``changes`` of its fields (Katalys' key names; an empty value drops one).

    :returns: False if it is not dead any more, or its order was recorded anew meanwhile.
    :raises InvalidConversion: it would still not be understood; ``problems`` says why.
    """
    if entry.payload is None:
        raise InvalidConversion(entry.order_id, ["its data was forgotten; record the order again"])
    fields = {**json.loads(entry.payload), **(changes or {})}
    fields = {name: value for name, value in fields.items() if value or not (changes and name in changes)}
    problems = wire_problems(fields)
    if problems:
        raise InvalidConversion(entry.order_id, problems)
    return outbox.revive(entry, Postback.from_fields(fields, entry.kind, entry.clicked_at))


def forget(
    outbox: Outbox, *, order_id: str | None = None, email_address: str | None = None, email_key: str = ""
) -> int:
    """Take a buyer's data out of the outbox: of an order, or of every order of an e-mail address.

    What is still pending will not be delivered any more; delivered orders hold no data already.

    :param email_key: the key of ``hash_email``, so that hashed addresses are found, too.
    :returns: how many entries were changed.
    """
    found = outbox.history(order_id) if order_id is not None else []
    if email_address is not None:
        wanted = {email_address.lower(), email_hash(email_address, email_key)}
        found += [entry for entry in outbox.with_payload() if _email_of(entry) in wanted]
    return outbox.forget(entry for entry in found if entry.payload is not None)


def as_row(entry: Entry) -> dict[str, Any]:
    """An entry as JSON types, without the buyer's data."""
    row = asdict(entry)
    del row["payload"], row["lease_token"], row["digest"]
    return row


def _email_of(entry: Entry) -> str:
    return str(json.loads(entry.payload or "{}").get("email_address", "")).lower()


def _beginning(entry: Entry) -> Iterator[str]:
    if entry.kind == Kind.CONVERSION:
        if entry.clicked_at is not None:
            yield f"The shopper came through a Katalys link, {_time(entry.clicked_at)}."
        yield f"The order was recorded, {_time(entry.created_at)}."
    else:
        yield f"An update of the order was recorded, {_time(entry.created_at)}."


def _what_is_next(entry: Entry, entries: list[Entry], now: float) -> str:
    if entry.state == State.DELIVERED:
        return (
            "It is delivered."
            if entry.confirmed
            else "It is sent; over GET Katalys never says whether it was understood."
        )
    if entry.state == State.DEAD:
        retry = f"Correct it with: katalys-wsgi retry {entry.order_id} --set FIELD=VALUE"
        return f"It is a dead letter: {entry.last_error}. " + (retry if entry.payload else "Its data is gone.")
    if entry.lease_token and (entry.leased_until or 0.0) > now:
        return f"It is being sent right now; should that relay have died, it is due again {_time(entry.leased_until)}."
    held_back_by = next((older for older in entries if older.id < entry.id and _holds_back(older)), None)
    if held_back_by is not None:
        return f"It waits for what was recorded before it, which is {held_back_by.state}."
    return f"It is tried {'as soon as a relay runs' if entry.due_at <= now else 'again ' + _time(entry.due_at)}."


def _holds_back(older: Entry) -> bool:
    return older.state == State.PENDING or (older.state == State.DEAD and older.kind == Kind.CONVERSION)


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds or 0.0, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
