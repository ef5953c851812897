"""What goes over the wire: Katalys' key names, the frozen payload of a message, and the three encodings.

Keys and their order are those of Katalys' Server-to-Server Implementation; nothing else in this package knows them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from ..attribution.click import Click
from .order import Conversion, Discount, LineItem, OrderUpdate, money


class Kind(str, Enum):
    """What a message is about."""

    CONVERSION = "conversion"  # a sale
    UPDATE = "update"  # a later change of an order

    __str__ = str.__str__

    @classmethod
    def _missing_(cls, _: object) -> Kind:
        return cls.UPDATE  # damaged on disk: nothing is credited by an update


#: Our field names that are Katalys' key names as well, in the order they are written after the twelve.
_SAME_NAME = (
    "currency", "tax_amount", "shipping_amount", "order_time", "order_status", "payment_status", "order_alias",
    "order_count", "action_type", "customer_group", "vid", "billing_city", "billing_state", "billing_postal",
    "shipping_city", "shipping_state", "shipping_postal",
)  # fmt: skip
_AMOUNTS = ("sale_amount", "subtotal_amount", "tax_amount", "shipping_amount")

_compact_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True)
class Postback:
    """One message to Katalys, frozen when it is recorded: each attempt sends the same bytes.

    :param key: the same key again is the same message.
    :param order_id: the shop's order id, as text.
    :param kind: a conversion or an update.
    :param payload: the fields as a JSON object in Katalys' order; personal data.
    :param clicked_at: when the shopper arrived, seconds since 1970; for the shop's own questions, never sent.
    """

    key: str
    order_id: str
    kind: Kind
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
        return cls.from_fields(fields, Kind.CONVERSION, click.clicked_at.timestamp() if click else None)

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
        return cls.from_fields(fields, Kind.UPDATE)

    @classmethod
    def from_fields(cls, fields: Mapping[str, str], kind: Kind, clicked_at: float | None = None) -> Postback:
        """The message that consists of ``fields``, Katalys' key names, in their order."""
        payload = _compact_json(fields)
        key = message_key(fields["site_id"], fields["order_id"], kind, payload)
        return cls(key, _storable(fields["order_id"]), kind, payload, clicked_at)

    @property
    def digest(self) -> str:
        """Tells whether two messages of one key say the same."""
        return _digest(self.payload)


def message_key(site_id: str, order_id: str, kind: Kind, payload: str) -> str:
    """Site, order and kind; for an update, and for an order without a usable id, a digest of the fields as well."""
    usable = _storable(order_id)[:255].rstrip()  # MySQL takes "AB " for "AB"
    parts = [site_id, kind, usable]
    if kind != Kind.CONVERSION or not order_id or usable != order_id:
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
