"""The wire: the three encodings of a message, and Katalys' rules of a message as it is sent.

The rules are those of Katalys' "Server-to-Server Implementation", sections "HTTP Request Details" and "Reporting
Schema". They look at a finished message: an operator's corrections, or what the sandbox received.
How an order's own fields are checked stands in :mod:`~katalys_wsgi.conversion.checks`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from . import checks
from .order import FIELD_CHECKS, ORDER_STATUSES, REQUIRED_FIELDS

__all__ = ["BUSINESS", "LONGEST_QUERY", "PERSONAL", "WIRES", "Wire", "business_part", "wire_problems"]

#: The keys whose values are personal data: never shown in a log or an error, should an answer repeat them.
PERSONAL = ("email_address", "client_ip", "user_agent", "vid")

#: The keys that are kept once a message is delivered: what was sold and who is credited, nothing about the buyer. The
#: N stands for a number.
BUSINESS = frozenset({
    "type", "site_id", "order_id", "sale_amount", "subtotal_amount", "tax_amount", "shipping_amount", "currency",
    "discount_N_code", "discount_N_amount", "transaction_id", "offer_id", "aff_id", "order_time", "order_status",
    "payment_status", "action_type", "line_item_N_sku", "line_item_N_price", "line_item_N_qty",
})  # fmt: skip

#: Bytes of a GET's query: servers and proxies refuse an address of more than 8 KiB (nginx, Apache).
LONGEST_QUERY = 7 * 1024

_TYPES = ("force_convert", "offline_conv")

# "All fields are required", says the specification. These may be empty: no coupon was used, an address is unknown.
_MAY_BE_EMPTY = ("client_ip", "user_agent", "discount_1_code")

# Without these nothing can be credited, or the amounts mean something else: they go over GET whatever their length.
_NEVER_LEFT_OUT = {
    "type", "site_id", *REQUIRED_FIELDS, *_MAY_BE_EMPTY, "transaction_id", "offer_id", "aff_id", "currency",
}  # fmt: skip


@dataclass(frozen=True)
class Wire:
    """One of the specification's three ways to call ("HTTP Request Details").

    :param method: of HTTP.
    :param content_type: the value of that header; None sends no body.
    :param encode: turns a payload into a body, or into a query for GET.
    :param confirms: whether a 204 means that the message was parsed. A GET's does not: "This type of request will
        always return a 204 response".
    """

    method: str
    content_type: str | None
    encode: Callable[[str], bytes]
    confirms: bool = True


def _as_is(payload: str) -> bytes:
    """The payload is JSON in ASCII already."""
    return payload.encode("ascii")


def _form(payload: str) -> bytes:
    """The payload's fields as ``application/x-www-form-urlencoded``, in the same order."""
    return urlencode(json.loads(payload)).encode("ascii")


def _query(payload: str) -> bytes:
    """As :func:`_form`, without the last optional fields if it would be longer than :data:`LONGEST_QUERY`.

    Line items go first, from the last one on; an item goes as a whole, and so does a coupon.
    """
    fields = json.loads(payload)
    pairs = {name: urlencode({name: value}) for name, value in fields.items()}
    length = sum(len(pair) + len("&") for pair in pairs.values()) - len("&")
    parts: dict[str, list[str]] = {}
    for name in reversed(pairs):
        if name not in _NEVER_LEFT_OUT:
            parts.setdefault(_part(name), []).append(name)
    for part in sorted(parts, key=lambda part: not part.startswith("line_item_")):
        if length <= LONGEST_QUERY:
            break
        length -= sum(len(pairs.pop(name)) + len("&") for name in parts[part])
    return "&".join(pairs.values()).encode("ascii")


def _part(name: str) -> str:
    """The line item or the coupon to which a key belongs; the key itself if it stands alone."""
    number = _numbers.search(name)
    return name[: number.end()] if number else name


#: The three ways by their names in the setting ``wire``.
WIRES: Mapping[str, Wire] = {
    "json": Wire("POST", "application/json", _as_is),
    "form": Wire("POST", "application/x-www-form-urlencoded", _form),
    "get": Wire("GET", None, _query, confirms=False),
}


def business_part(payload: str) -> str:
    """What may be kept of a message once the buyer's data is no longer needed: the fields of :data:`BUSINESS`.

    :param payload: the message as JSON.
    :returns: as JSON, in the same order; without any field if ``payload`` cannot be read.
    """
    try:
        fields = json.loads(payload).items()
    except (AttributeError, ValueError):
        fields = ()  # damaged on disk
    kept = {name: value for name, value in fields if _numbers.sub("_N_", name) in BUSINESS}
    return json.dumps(kept, separators=(",", ":"))


def wire_problems(fields: Mapping[str, object]) -> list[str]:
    """Everything that keeps Katalys from parsing and attributing a message, each as ``"key: what is wrong"``.

    A conversion needs the required fields of the specification, and the click's ``transaction_id`` or both ``offer_id``
    and ``aff_id``. An order update (``type=offline_conv``) needs ``site_id``, ``order_id`` and one further field. Keys
    that Katalys' "Reporting Schema" does not name are let through.

    :param fields: the message: Katalys' keys with their values, strings or numbers.
    :returns: empty when there is nothing wrong.
    """
    return [*_type_problems(fields), *_missing_fields(fields), *_wrong_values(fields)]


def _type_problems(fields: Mapping[str, object]) -> Iterator[str]:
    """What every message needs, whatever it reports: its type and the shop."""
    if fields.get("type") not in _TYPES:
        yield f"type: {fields.get('type')!r} is neither force_convert nor offline_conv"
    if not fields.get("site_id"):
        yield "site_id: is missing"


def _missing_fields(fields: Mapping[str, object]) -> Iterator[str]:
    """The fields that a message of its type lacks; a type that is unknown is taken for a conversion."""
    if fields.get("type") == "offline_conv":
        yield from _missing(fields, ["order_id"])
        if not set(fields) - {"type", "site_id", "order_id"}:
            yield "order_status: is missing, and so is every other field; there is nothing to update"
        return
    yield from _missing(fields, REQUIRED_FIELDS)
    yield from (f"{name}: is missing" for name in _MAY_BE_EMPTY if name not in fields)
    if not fields.get("transaction_id") and not (fields.get("offer_id") and fields.get("aff_id")):
        yield "transaction_id: is missing, and so is the pair offer_id and aff_id: no affiliate can be credited"


def _missing(fields: Mapping[str, object], names: Sequence[str]) -> Iterator[str]:
    """The required ``names`` that are absent or empty; a 0 is a value."""
    return (f"{name}: is missing" for name in names if fields.get(name) in (None, ""))


def _wrong_values(fields: Mapping[str, object]) -> Iterator[str]:
    """The fields whose value Katalys could not read as what the key means."""
    for name, value in fields.items():
        problem = _value_problem(name, value)
        if problem:
            yield f"{name}: {problem}"


def _value_problem(name: str, value: object) -> str | None:
    """What is wrong with a value that is there; Katalys ignores an empty one."""
    if value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return "is neither a string nor a number"
    rule = _RULES.get(_numbers.sub("_N_", name))
    return None if rule is None or rule.holds(str(value)) else f"{value!r} is {rule.otherwise}"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class _Rule:
    """What a value has to look like on the wire: ``holds`` is true of it, or it is ``otherwise``."""

    holds: Callable[[str], object]
    otherwise: str


_numbers = re.compile(r"_\d+_", re.ASCII)
_is_unix_time = re.compile(r"@\d+", re.ASCII).fullmatch

_NUMBER = _Rule(checks.PLAIN_NUMBER.fullmatch, "not a plain number")

# How a value that passes a check is written, hence what it has to look like on the wire.
_WRITTEN: Mapping[checks.Check, _Rule] = {
    checks.money: _NUMBER,
    checks.count: _Rule(checks.COUNT.fullmatch, "not a whole number from 1 on"),
    checks.currency_code: _Rule(checks.CURRENCY.fullmatch, "not the three capital letters of ISO 4217"),
    checks.aware_time: _Rule(_is_unix_time, "not a time of the form @<unix seconds>"),
}
_RULES: Mapping[str, _Rule] = {
    **{name: _WRITTEN[check] for name, check in FIELD_CHECKS.items() if check in _WRITTEN},
    **dict.fromkeys(("discount_N_amount", "line_item_N_price", "line_item_N_qty"), _NUMBER),
    "order_status": _Rule(ORDER_STATUSES.__contains__, f"not one of {', '.join(ORDER_STATUSES)}"),
    "client_ip": _Rule(_is_ip, "not an IP address"),
}
