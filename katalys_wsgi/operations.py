"""Operations: what an operator asks of an outbox and does with it. Status, why, retry, forget."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from .conversion.postback import Kind, Postback, email_hash
from .conversion.wire import wire_problems
from .errors import ConfigurationError, InvalidConversion
from .outbox import Archive, Entry, Outbox, State, Statistics
from .outbox.entry import holds_back

__all__ = ["Status", "archive", "as_row", "dead_letters", "forget", "revive", "status", "story", "utc"]


@dataclass(frozen=True)
class Status:
    """How delivery stands, for an operator or a monitor.

    :param pause: why nothing is delivered at the moment; None when nothing is known to be wrong.
    """

    statistics: Statistics
    pause: str | None

    @property
    def is_healthy(self) -> bool:
        """Whether there is nothing for the operator to do: no dead letter, no pause."""
        return not self.statistics.dead and self.pause is None


def archive(outbox: Outbox) -> Archive:
    """``outbox``, which is able to answer an operator.

    :raises ConfigurationError: it is an object of the shop's own with fewer methods than
        :class:`~katalys_wsgi.outbox.Archive`.
    """
    if not isinstance(outbox, Archive):
        raise ConfigurationError(
            f"The outbox, a {type(outbox).__name__}, cannot answer this; "
            "give it the methods of katalys_wsgi.outbox.Archive."
        )
    return outbox


def status(outbox: Archive) -> Status:
    """How ``outbox`` stands.

    :raises OutboxUnavailable: it cannot be read; so do all functions of this module.
    """
    statistics = outbox.statistics()
    attempts = [entry.history[-1] for entry in outbox.failing() if entry.history]
    last = max(attempts, key=lambda attempt: attempt.at, default=None)
    failed_last = last is not None and last.at > (statistics.last_delivered or 0.0)
    return Status(statistics, f"the last attempt failed: {last.error}" if last and failed_last else None)


def story(entries: list[Entry], now: float) -> Iterator[str]:
    """All that is known of an order, in plain sentences.

    :param entries: the order's, oldest first.
    :param now: seconds since 1970.
    """
    for entry in entries:
        yield from _beginning(entry)
        for number, attempt in enumerate(entry.history, 1):
            yield f"Attempt {number}, {utc(attempt.at)}: {attempt.error or f'HTTP {attempt.status}'}."
        yield _what_is_next(entry, entries, now)


def dead_letters(outbox: Archive) -> list[Entry]:
    """Every dead letter, oldest first."""
    return outbox.entries(State.DEAD, limit=outbox.statistics().dead)[::-1]


def revive(outbox: Archive, entry: Entry, changes: Mapping[str, str] | None = None) -> bool:
    """Have a dead letter tried again.

    :param changes: corrected fields, by Katalys' key names; an empty value drops a field.
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
    outbox: Archive, *, order_id: str | None = None, email_address: str | None = None, email_key: str = ""
) -> int:
    """Remove a buyer's data from the outbox: of an order, or of every order of an e-mail address.

    What is still pending will not be delivered any more; delivered orders hold no personal data already.

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


def utc(seconds: float | None) -> str:
    """A time, seconds since 1970, as every command prints it; "never" for None."""
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _email_of(entry: Entry) -> str:
    return str(json.loads(entry.payload or "{}").get("email_address", "")).lower()


def _beginning(entry: Entry) -> Iterator[str]:
    if entry.kind is Kind.CONVERSION:
        if entry.clicked_at is not None:
            yield f"The shopper came through a Katalys link, {utc(entry.clicked_at)}."
        yield f"The order was recorded, {utc(entry.created_at)}."
    else:
        yield f"An update of the order was recorded, {utc(entry.created_at)}."


def _what_is_next(entry: Entry, entries: list[Entry], now: float) -> str:
    if entry.state is State.DELIVERED:
        return (
            "It is delivered."
            if entry.confirmed
            else "It is sent; over GET Katalys never says whether it was understood."
        )
    if entry.state is State.FORGOTTEN:
        return "It was forgotten on request and will not be delivered. Its data is gone."
    if entry.state is State.DROPPED:
        return f"It was a dead letter that the operator dropped: {entry.last_error}."
    if entry.state is State.DEAD:
        retry = f"Correct it with: katalys-wsgi retry {entry.order_id} --set FIELD=VALUE"
        return f"It is a dead letter: {entry.last_error}. " + (retry if entry.payload else "Its data is gone.")
    if entry.lease_token and (entry.leased_until or 0.0) > now:
        return f"It is being sent right now; should that relay have died, it is due again {utc(entry.leased_until)}."
    held_back_by = next((older for older in entries if holds_back(older, entry)), None)
    if held_back_by is not None:
        return f"It waits for what was recorded before it, which is {held_back_by.state}."
    return f"It is tried {'as soon as a relay runs' if entry.due_at <= now else 'again ' + utc(entry.due_at)}."
