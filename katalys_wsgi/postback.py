"""What goes over the wire: Katalys' key names, the frozen payload of a message, and the three encodings.

Keys and their order are those of Katalys' Server-to-Server Implementation; nothing else in this package knows them.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any
from urllib.parse import urlencode

from .click import Click
from .conversion import ORDER_STATUSES, Conversion, Discount, LineItem, OrderUpdate, money

CONVERSION = "conversion"
UPDATE = "update"

#: Our field names that are Katalys' key names as well, in the order they are written after the twelve.
_SAME_NAME = (
    "currency", "tax_amount", "shipping_amount", "order_time", "order_status", "payment_status", "order_alias",
    "order_count", "action_type", "customer_group", "vid", "billing_city", "billing_state", "billing_postal",
    "shipping_city", "shipping_state", "shipping_postal",
)  # fmt: skip
_AMOUNTS = ("sale_amount", "subtotal_amount", "tax_amount", "shipping_amount")

#: "All fields are required", says the specification. These may be empty: no coupon, an address that cannot be told.
_REQUIRED = ("order_id", "email_address", "sale_amount", "subtotal_amount")
_REQUIRED_MAY_BE_EMPTY = ("client_ip", "user_agent", "discount_1_code")

_compact_json = json.JSONEncoder(separators=(",", ":")).encode

#: Never shown in a log or an error, should an answer repeat them.
PERSONAL = ("email_address", "client_ip", "user_agent", "vid")


@dataclass(frozen=True)
class Postback:
    """One message to Katalys, frozen when it is recorded: each attempt sends the same bytes.

    :param key: the same key again is the same message.
    :param order_id: the shop's order id, as text.
    :param kind: ``"conversion"`` or ``"update"``.
    :param payload: the fields as a JSON object in Katalys' order; personal data.
    :param clicked_at: when the shopper arrived, seconds since 1970; for the shop's own questions, never sent.
    """

    key: str
    order_id: str
    kind: str
    payload: str = field(repr=False)
    clicked_at: float | None = None

    @classmethod
    def from_conversion(
        cls,
        conversion: Conversion,
        *,
        site_id: str,
        conversion_type: str,
        click: Click | None,
        client_ip: str | None,
        user_agent: str,
        email_key: str | None = None,
    ) -> Postback:
        """The message that reports ``conversion``; what is invalid is written as it stands, for a person to correct.

        :param email_key: report a keyed hash of the e-mail address instead of the address.
        """
        fields = {
            "type": conversion_type,
            "site_id": site_id,
            "order_id": _plain(conversion.order_id),
            "email_address": _email(conversion.email_address, email_key),
            "sale_amount": _amount(conversion.sale_amount),
            "subtotal_amount": _amount(conversion.subtotal_amount),
            "client_ip": client_ip or "",
            "user_agent": user_agent,
            "discount_1_code": "",
            **_click_fields(click),
            **dict(_further_fields(conversion)),
        }
        return cls.from_fields(fields, CONVERSION, click.clicked_at.timestamp() if click else None)

    @classmethod
    def from_update(cls, update: OrderUpdate, *, site_id: str, email_key: str | None = None) -> Postback:
        """The message that reports ``update`` ("Order Status Reporting" in Katalys' knowledge base)."""
        fields = {"type": "offline_conv", "site_id": site_id, "order_id": _plain(update.order_id)}
        if update.email_address is not None:
            fields["email_address"] = _email(update.email_address, email_key)
        for name in ("sale_amount", "subtotal_amount"):
            if getattr(update, name) is not None:
                fields[name] = _amount(getattr(update, name))
        fields.update(_further_fields(update))
        return cls.from_fields(fields, UPDATE)

    @classmethod
    def from_fields(cls, fields: Mapping[str, str], kind: str, clicked_at: float | None = None) -> Postback:
        """The message that consists of ``fields``, Katalys' key names, in their order."""
        payload = _compact_json(fields)
        key = message_key(fields["site_id"], fields["order_id"], kind, payload)
        return cls(key, _storable(fields["order_id"]), kind, payload, clicked_at)

    @property
    def digest(self) -> str:
        """Tells whether two messages of one key say the same."""
        return _digest(self.payload)


def message_key(site_id: str, order_id: str, kind: str, payload: str) -> str:
    """Site, order and kind; for an update, and for an order without a usable id, a digest of the fields as well."""
    usable = _storable(order_id)[:255].rstrip()  # MySQL takes "AB " for "AB"
    parts = [site_id, kind, usable]
    if kind != CONVERSION or not order_id or usable != order_id:
        parts.append(_digest(payload))
    return ":".join(parts)


def _storable(text: str) -> str:
    """``text`` without what databases refuse in a text, NUL and lone surrogates."""
    return re.sub(r"[\x00\ud800-\udfff]", "\ufffd", text)


def _digest(payload: str) -> str:
    return hashlib.sha256(payload.encode("ascii")).hexdigest()[:32]


def _click_fields(click: Click | None) -> dict[str, str]:
    ids = {name: getattr(click, name, None) for name in ("transaction_id", "offer_id", "aff_id")}
    return {name: value for name, value in ids.items() if value}


def _further_fields(order: Conversion | OrderUpdate) -> Iterator[tuple[str, str]]:
    for number, discount in _counted(order.discounts):
        coupon = discount if isinstance(discount, Discount) else Discount(discount)
        yield f"discount_{number}_code", _plain(coupon.code)
        if coupon.amount is not None:
            yield f"discount_{number}_amount", _amount(coupon.amount)
    values = vars(order)
    for name in _SAME_NAME:
        value = values[name]
        if value is not None:
            yield name, _WRITERS.get(name, _plain)(value)
    for number, item in _counted(order.line_items):
        yield from _line_item_fields(f"line_item_{number}", item)


def _counted(values: object) -> Iterator[tuple[int, Any]]:
    """Katalys' multi-key fields count from 1."""
    return enumerate(values, 1) if isinstance(values, tuple) else enumerate(())


def _line_item_fields(prefix: str, item: object) -> Iterator[tuple[str, str]]:
    if not isinstance(item, LineItem):
        return
    yield f"{prefix}_sku", _plain(item.sku)
    if item.price is not None:
        yield f"{prefix}_price", _amount(item.price)
    yield f"{prefix}_qty", _amount(item.qty)
    for name, text in (("title", item.title), ("var", item.variation)):
        if text is not None:
            yield f"{prefix}_{name}", _plain(text)
    names = item.categories
    categories = ",".join(map(_plain, names)) if isinstance(names, tuple) else _plain(names)
    if categories:
        yield f"{prefix}_categories", categories


def _plain(value: object) -> str:
    """A text, an id or a count; None, which is invalid wherever it gets here, is written empty."""
    return "" if value is None else str(value)


def _amount(value: object) -> str:
    """Never with an exponent; what is no amount is written as it stands."""
    try:
        # The most decimals any currency has: whether a float is exact was the conversion's question.
        return format(money(str(value) if isinstance(value, float) else value), "f")
    except ValueError:
        return _plain(value)


def _time(value: object) -> str:
    # Seconds since 1970 spare Katalys the guess of our time zone; its own WooCommerce plugin does the same.
    return f"@{int(value.timestamp())}" if isinstance(value, datetime) else _plain(value)


def _email(address: object, email_key: str | None) -> str:
    text = _plain(address)
    return text if email_key is None or not text else email_hash(text, email_key)


def email_hash(address: str, key: str) -> str:
    """A text that stays the same for a customer and does not tell the address (Katalys compares case-insensitively)."""
    return hmac.new(key.encode(), address.lower().encode("utf-8", "replace"), hashlib.sha256).hexdigest()


_WRITERS: dict[str, Callable[[object], str]] = {
    "currency": lambda value: _plain(value).upper(),
    "order_time": _time,
    **dict.fromkeys(_AMOUNTS, _amount),
}


# --- wires ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wire:
    """One of the specification's three ways to call: ``encode`` turns a payload into a body, or a query for GET."""

    method: str
    content_type: str | None
    encode: Callable[[str], bytes]
    #: "This type of request will always return a 204 response", so a GET's 204 proves nothing.
    confirms: bool = True


def _as_is(payload: str) -> bytes:
    return payload.encode("ascii")


def _form(payload: str) -> bytes:
    return urlencode(json.loads(payload)).encode("ascii")


WIRES = {
    "json": Wire("POST", "application/json", _as_is),
    "form": Wire("POST", "application/x-www-form-urlencoded", _form),
    "get": Wire("GET", None, _form, confirms=False),
}


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


# --- the rules of a message as it stands on the wire ---------------------------------------------------------


def wire_problems(fields: Mapping[str, object]) -> list[str]:
    """Every fault of a message, by Katalys' key names; empty when Katalys can parse and attribute it.

    An order update (``type=offline_conv``) needs ``site_id``, ``order_id`` and one further field.
    """
    return list(_wire_problems(fields))


def _wire_problems(fields: Mapping[str, object]) -> Iterator[str]:
    if fields.get("type") not in ("force_convert", "offline_conv"):
        yield f"type: {fields.get('type')!r} is neither force_convert nor offline_conv"
    if not fields.get("site_id"):
        yield "site_id: is missing"
    if fields.get("type") == "offline_conv":
        yield from _missing(fields, ("order_id",))
        if not set(fields) - {"type", "site_id", "order_id"}:
            yield "order_status: is missing, and so is every other field; there is nothing to update"
    else:
        yield from _missing(fields, _REQUIRED, _REQUIRED_MAY_BE_EMPTY)
        if not fields.get("transaction_id") and not (fields.get("offer_id") and fields.get("aff_id")):
            yield "transaction_id: is missing, and so is the pair offer_id and aff_id: nobody can be credited"
    for name, value in fields.items():
        fault = _value_fault(name, value)
        if fault:
            yield f"{name}: {fault}"


def _missing(
    fields: Mapping[str, object], required: tuple[str, ...], may_be_empty: tuple[str, ...] = ()
) -> Iterator[str]:
    yield from (f"{name}: is missing" for name in required if fields.get(name) in (None, ""))
    yield from (f"{name}: is missing" for name in may_be_empty if name not in fields)


def _value_fault(name: str, value: object) -> str | None:
    """What is wrong with a value that is there; an empty one is ignored by Katalys."""
    if value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return "is neither text nor number"
    pattern, what = _VALUES.get(re.sub(r"_\d+_", "_N_", name), (r"[\s\S]*", ""))
    if name == "client_ip":
        return None if _is_ip(str(value)) else f"{value!r} is no IP address"
    return None if re.fullmatch(pattern, str(value), re.ASCII) else f"{value!r} is {what}"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


_NUMBER = (r"\d+(\.\d+)?", "not a plain number")
_VALUES = {
    **dict.fromkeys((*_AMOUNTS, "discount_N_amount", "line_item_N_price", "line_item_N_qty"), _NUMBER),
    "order_count": (r"[1-9]\d*", "no whole number from 1 on"),
    "order_status": ("|".join(ORDER_STATUSES), f"none of {', '.join(ORDER_STATUSES)}"),
    "order_time": (r"@\d+", "no time of the form @<unix seconds>"),
    "currency": (r"[A-Z]{3}", "no ISO 4217 currency"),
}
