"""Operations: what an operator asks of an outbox and does with it. Status, why, retry, drop, forget."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from .conversion.order import FIELD_CHECKS
from .conversion.postback import Kind, Postback, email_hash
from .conversion.wire import business_part, wire_problems
from .errors import ConfigurationError, InvalidConversion
from .outbox import Archive, Attempt, Entry, Outbox, State, Statistics
from .outbox.entry import LONGEST_HISTORY, holds_back

__all__ = [
    "Status", "archive", "as_row", "corrected", "dead_letters", "facts", "forget", "grouped", "iso", "reason_of",
    "revive", "status", "story", "utc", "visible",
]  # fmt: skip

#: What an operator may correct beside the fields of an order: the click's ids and the buyer's browser.
_FURTHER_FIELDS = ("client_ip", "user_agent", "transaction_id", "offer_id", "aff_id")

#: Fields that a message has once for each coupon and each line item, as they are written for the first one.
_NUMBERED_FIELDS = (
    "discount_1_code", "discount_1_amount", "line_item_1_sku", "line_item_1_price", "line_item_1_qty",
    "line_item_1_title", "line_item_1_var", "line_item_1_categories",
)  # fmt: skip

_KNOWN_FIELDS = frozenset({*FIELD_CHECKS, *_FURTHER_FIELDS, *_NUMBERED_FIELDS})

#: Names that stand elsewhere for what Katalys calls otherwise: in the link, and in many a shop.
_OTHER_NAMES = {
    "publisher_id": "aff_id", "affiliate_id": "aff_id", "coupon": "discount_1_code", "discount": "discount_1_code",
    "ip": "client_ip", "total": "sale_amount",
}  # fmt: skip

_GUARDED_FIELDS = {
    "site_id": "it says whose sale it is; set the site_id of the shop and record the order again",
    "order_id": "it says which order this is; record the order again under its right number",
    "type": "it belongs to the shop's setting conversion_type; change that and record the order again",
}

_number_within = re.compile(r"_[1-9]\d{0,2}_", re.ASCII)
_quoted = re.compile(r"'[^']*'")


@dataclass(frozen=True)
class Status:
    """How delivery stands, for an operator or a monitor.

    :param pause: why nothing is delivered at the moment; None when nothing is known to be wrong.
    :param reasons: the dead letters by reason, the most frequent first; see :func:`grouped`.
    """

    statistics: Statistics
    pause: str | None
    reasons: Mapping[str, int]

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


# --- questions ---


def status(outbox: Archive) -> Status:
    """How ``outbox`` stands.

    :raises OutboxUnavailable: it cannot be read; so do all functions of this module.
    """
    statistics = outbox.statistics()
    attempts = [entry.history[-1] for entry in outbox.failing() if entry.attempts and entry.history]
    last = max(attempts, key=lambda attempt: attempt.at, default=None)
    failed_last = last is not None and last.error and last.at > (statistics.last_delivered or 0.0)
    pause = f"the last attempt failed: {last.error}" if last and failed_last else None
    return Status(statistics, pause, grouped(dead_letters(outbox)) if statistics.dead else {})


def dead_letters(outbox: Archive) -> list[Entry]:
    """Every dead letter, oldest first."""
    return outbox.entries(State.DEAD, limit=outbox.statistics().dead)[::-1]


def reason_of(entry: Entry) -> str:
    """Why a row is a dead letter, without the values that differ from row to row: those are in quotes."""
    return _quoted.sub("'...'", entry.last_error or "no reason is known")


def grouped(entries: Iterable[Entry]) -> dict[str, int]:
    """How many entries there are of each reason, the most frequent first."""
    return dict(Counter(map(reason_of, entries)).most_common())


def facts(entry: Entry) -> dict[str, str]:
    """What a row says of its order: site, amounts, codes, ids, and what an update changes; never the buyer's data.

    :returns: Katalys' keys with their values, in the order in which they are sent; empty once it was forgotten.
    """
    fields = json.loads(business_part(entry.payload or "{}"))
    return {name: str(value) for name, value in fields.items()}


def as_row(entry: Entry) -> dict[str, Any]:
    """An entry as JSON types, without the buyer's data; times are ISO 8601 in UTC."""
    row = asdict(entry)
    del row["payload"], row["lease_token"], row["digest"]
    for name in ("due_at", "leased_until", "clicked_at", "created_at", "pending_since", "finished_at"):
        row[name] = iso(row[name])
    row["history"] = [{**attempt, "at": iso(attempt["at"])} for attempt in row["history"]]
    return {**row, "fields": {name: value for name, value in facts(entry).items() if name != "order_id"}}


def utc(seconds: float | None) -> str:
    """A time, seconds since 1970, as every command prints it for people; "never" for None."""
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(seconds: float | None) -> str | None:
    """The same as programs read it, such as ``2027-01-15T08:00:00+00:00``; None stays None."""
    return None if seconds is None else datetime.fromtimestamp(int(seconds), timezone.utc).isoformat()


def visible(text: str) -> str:
    """``text`` on one line, without the characters that would drive a terminal: codes are typed by strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# --- why ---


def story(entries: list[Entry], now: float, *, program: str = "katalys-wsgi") -> Iterator[str]:
    """All that is known of an order, in plain sentences.

    :param entries: the order's, oldest first.
    :param now: seconds since 1970.
    :param program: how the reader calls the command line.
    """
    for entry in entries:
        yield from _beginning(entry)
        yield from _attempts(entry)
        yield _what_is_next(entry, entries, now, program)


def _beginning(entry: Entry) -> Iterator[str]:
    if entry.kind is Kind.CONVERSION:
        if entry.clicked_at is not None:
            yield f"The shopper came through a Katalys link, {utc(entry.clicked_at)}."
        yield f"The order was recorded, {utc(entry.created_at)}."
    else:
        yield f"An update of the order was recorded, {utc(entry.created_at)}."
    yield from (
        f"  {name:<18}{visible(value)}"
        for name, value in facts(entry).items()
        if value and name not in ("type", "order_id")
    )


def _attempts(entry: Entry) -> Iterator[str]:
    """What was tried and corrected; of long histories only the end is kept."""
    tried = [attempt for attempt in entry.history if not attempt.note]
    claimed = 1 if entry.lease_token else 0  # counted, and not in the history yet
    number = max(0, entry.attempts - claimed - len(tried))
    if number or len(entry.history) >= LONGEST_HISTORY:
        yield f"Of what was tried, the last {len(entry.history)} are kept."
    for attempt in entry.history:
        number += not attempt.note
        yield _attempt(attempt, number)


def _attempt(attempt: Attempt, number: int) -> str:
    if attempt.note:
        return f"The operator had it tried again, {utc(attempt.at)}: {visible(attempt.note)}."
    return f"Attempt {number}, {utc(attempt.at)}: {attempt.error or f'HTTP {attempt.status}'}."


def _what_is_next(entry: Entry, entries: list[Entry], now: float, program: str) -> str:
    if entry.state is not State.PENDING:
        return _what_it_ended_in(entry, program)
    if entry.lease_token and (entry.leased_until or 0.0) > now:
        return f"It is being sent right now; should that relay have died, it is due again {utc(entry.leased_until)}."
    held_back_by = next((older for older in entries if holds_back(older, entry)), None)
    if held_back_by is not None:
        return f"It waits for what was recorded before it, which is {held_back_by.state}."
    return f"It is tried {'as soon as a relay runs' if entry.due_at <= now else 'again ' + utc(entry.due_at)}."


def _what_it_ended_in(entry: Entry, program: str) -> str:
    reason = visible(entry.last_error or "no reason is known")
    if entry.state is State.DELIVERED:
        sent = "It is delivered" if entry.confirmed else "It is sent; over GET Katalys never says whether it understood"
        return f"{sent}, {utc(entry.finished_at)}."
    if entry.state is State.FORGOTTEN:
        return f"It was forgotten on request, {utc(entry.finished_at)}; it will not be sent."
    if entry.state is State.DROPPED:
        return f"The operator dropped it, {utc(entry.finished_at)}; it was a dead letter: {reason}."
    return f"It is a dead letter: {reason}. Correct it with: {program} retry {entry.order_id} --set FIELD=VALUE"


# --- changes ---


def corrected(entry: Entry, changes: Mapping[str, str]) -> dict[str, str]:
    """The fields of a row as they would be sent after a correction.

    :param changes: corrected fields, by Katalys' key names; an empty value drops a field.
    :raises InvalidConversion: a change is not allowed, or the result would still not be understood; ``problems``
        says why.
    """
    if entry.payload is None:
        raise InvalidConversion(entry.order_id, ["its data was forgotten; record the order again"])
    fields: dict[str, str] = json.loads(entry.payload)
    problems = [problem for name in changes for problem in _change_problems(name, fields)]
    if not problems:
        fields = {name: value for name, value in {**fields, **changes}.items() if value or name not in changes}
        problems = wire_problems(fields)
    if problems:
        raise InvalidConversion(entry.order_id, problems)
    return fields


def _change_problems(name: str, fields: Mapping[str, str]) -> Iterator[str]:
    if name in _GUARDED_FIELDS:
        if name != "order_id" or fields.get(name):  # an order that was recorded without a number may get one
            yield f"{name}: cannot be changed: {_GUARDED_FIELDS[name]}"
    elif name not in fields and _number_within.sub("_1_", name) not in _KNOWN_FIELDS:
        nearest = _nearest_field(name)
        advice = f"did you mean {nearest}?" if nearest else f"known are {', '.join(sorted(_KNOWN_FIELDS))}"
        yield f"{name}: is not a field of Katalys; {advice}"


def _nearest_field(name: str) -> str | None:
    """The field that was meant, with the number that was given; None if it cannot be guessed."""
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    number = _number_within.search(name)
    nearest = difflib.get_close_matches(_number_within.sub("_1_", name), _KNOWN_FIELDS, n=1, cutoff=0.5)
    return nearest[0].replace("_1_", number[0] if number else "_1_") if nearest else None


def revive(outbox: Archive, entry: Entry, changes: Mapping[str, str] | None = None) -> bool:
    """Have a dead letter tried again.

    :param changes: see :func:`corrected`; their names, not their values, are kept for :func:`story`.
    :returns: False if it is not dead any more, or its order was recorded again meanwhile.
    :raises InvalidConversion: as :func:`corrected`.
    """
    fields = corrected(entry, changes or {})
    note = f"corrected: {', '.join(changes)}" if changes else ""
    return outbox.revive(entry, Postback.from_fields(fields, entry.kind, entry.clicked_at), note=note)


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
        address = email_address.strip()
        wanted = {address.lower(), email_hash(address, email_key)}
        found += [entry for entry in outbox.with_payload() if _email_of(entry) in wanted]
    return outbox.forget(entry for entry in found if entry.payload is not None)


def _email_of(entry: Entry) -> str:
    return str(json.loads(entry.payload or "{}").get("email_address", "")).lower()
