"""The postback: the frozen message that reports a conversion or an order update, and its key.

Keys and their order are those of Katalys' Server-to-Server Implementation and of its "Reporting Schema".
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Protocol

from . import checks
from .checks import LONGEST_IDENTIFIER, Check
from .order import (
    FIELD_CHECKS,
    OPTIONAL_FIELDS,
    Conversion,
    LineItem,
    OrderUpdate,
    as_discount,
    checked_extra,
    is_blank,
)

__all__ = ["ClickIds", "Kind", "Postback", "email_hash"]

_EMAIL_LABEL = b"katalys_wsgi.email.v1:"

_compact_json = json.JSONEncoder(separators=(",", ":")).encode
_order_time = re.compile(r',"order_time":"@\d+"', re.ASCII)
_is_unstorable = re.compile(r"[\x00\ud800-\udfff]")


class Kind(str, Enum):
    """What a message is about."""

    CONVERSION = "conversion"  # a sale
    UPDATE = "update"  # a later change of an order

    __str__ = str.__str__

    @classmethod
    def _missing_(cls, value: object) -> Kind:  # noqa: ARG003 - the name is Enum's
        return cls.UPDATE  # damaged on disk: nothing is credited by an update


class ClickIds(Protocol):
    """What a conversion says about the click that brought the shopper: an ``attribution.click.Click`` has it all."""

    @property
    def transaction_id(self) -> str | None:
        """Katalys' id of the click."""
        ...

    @property
    def offer_id(self) -> str | None:
        """Katalys' id of the program."""
        ...

    @property
    def aff_id(self) -> str | None:
        """Katalys' id of the affiliate."""
        ...

    @property
    def clicked_at(self) -> datetime:
        """When the shopper arrived, aware."""
        ...


@dataclass(frozen=True)
class Postback:
    """One message to Katalys, frozen when it is recorded: every attempt sends the same bytes.

    :param key: the same key again is the same message.
    :param order_id: the shop's order id as a string that every database can store.
    :param kind: a conversion or an update.
    :param payload: the fields as a JSON object of strings, in the order in which they are sent; personal data.
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
        click: ClickIds | None,
        client_ip: str | None,
        user_agent: str,
        email_key: str | None = None,
        recorded_at: datetime | None = None,
    ) -> Postback:
        """The message that reports a sale. What is invalid is written as it stands, for the operator to correct.

        :param site_id: the Tracking ID.
        :param conversion_type: ``"force_convert"`` or ``"offline_conv"``.
        :param click: the click that brought the shopper; None without one.
        :param client_ip: the buyer's address. None is sent as an empty value: without the key Katalys would take the
            address of the caller, which is the shop's own server.
        :param user_agent: the buyer's User-Agent header.
        :param email_key: report :func:`email_hash` with this key instead of the e-mail address.
        :param recorded_at: reported as ``order_time`` where the conversion gives none, so that a sale that is delivered
            days later keeps its date.
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
            **dict(_further_fields(conversion, recorded_at)),
        }
        return cls.from_fields(fields, Kind.CONVERSION, click.clicked_at.timestamp() if click else None)

    @classmethod
    def from_update(cls, update: OrderUpdate, *, site_id: str, email_key: str | None = None) -> Postback:
        """The message that reports a change of an order ("Order Status Reporting" in Katalys' knowledge base).

        :param site_id: the Tracking ID.
        :param email_key: report :func:`email_hash` with this key instead of the e-mail address.
        """
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
        """The message of given fields, as they are sent.

        :param fields: Katalys' keys with their values, ``site_id`` and ``order_id`` among them.
        :param clicked_at: when the shopper arrived, seconds since 1970.
        """
        payload = _compact_json(fields)
        key = _message_key(fields["site_id"], fields["order_id"], kind, _digest(kind, payload))
        return cls(key, _storable(fields["order_id"]), kind, payload, clicked_at)

    @property
    def digest(self) -> str:
        """32 hex digits that differ where two payloads differ, but for the ``order_time`` of a conversion.

        The same order recorded twice is the same message, although each call was stamped with its own moment.
        """
        return _digest(self.kind, self.payload)


def email_hash(address: str, key: str) -> str:
    """A string that stays the same for a customer and does not reveal the address: a keyed SHA-256, 64 hex digits.

    Upper and lower case make no difference, as Katalys compares addresses. The label before the address keeps it apart
    from everything else that the key signs: a hash is reported, and must never be a key that another purpose derives.
    """
    message = _EMAIL_LABEL + address.lower().encode("utf-8", "replace")
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()


def _message_key(site_id: str, order_id: str, kind: Kind, digest: str) -> str:
    """Site, kind and order; for an update, and for an order without a usable id, the digest of the fields as well."""
    usable = _storable(order_id)[:LONGEST_IDENTIFIER].rstrip()  # MySQL takes "AB " for "AB"
    parts = [site_id, kind, usable]
    if kind != Kind.CONVERSION or not order_id or usable != order_id:
        parts.append(digest)
    return ":".join(parts)


def _storable(text: str) -> str:
    """``text`` without what databases refuse in a string: NUL and lone surrogates."""
    return _is_unstorable.sub("\ufffd", text)


def _digest(kind: Kind, payload: str) -> str:
    if kind == Kind.CONVERSION:  # a quotation mark within a value has a backslash before it, so no value can match
        payload = _order_time.sub("", payload)
    return hashlib.sha256(payload.encode("ascii")).hexdigest()[:32]


def _click_fields(click: ClickIds | None) -> dict[str, str]:
    if click is None:
        return {}
    ids = {"transaction_id": click.transaction_id, "offer_id": click.offer_id, "aff_id": click.aff_id}
    return {name: value for name, value in ids.items() if value}


def _further_fields(order: Conversion | OrderUpdate, recorded_at: datetime | None = None) -> Iterator[tuple[str, str]]:
    for number, discount in _counted(order.discounts):
        coupon = as_discount(discount)
        yield f"discount_{number}_code", _plain(coupon.code)
        if coupon.amount is not None:
            yield f"discount_{number}_amount", _amount(coupon.amount)
    for name in OPTIONAL_FIELDS:
        value = getattr(order, name)
        if name == "order_time" and value is None:
            value = recorded_at
        if value is not None:
            yield name, _WRITERS.get(FIELD_CHECKS[name], _plain)(value)
    for name, value in (checked_extra(order.extra)[0] or {}).items():
        yield name, _plain(value) if isinstance(value, (str, int)) else format(Decimal(str(value)), "f")
    for number, item in _counted(order.line_items):
        yield from _line_item_fields(f"line_item_{number}", item)


def _counted(values: object) -> Iterator[tuple[int, Any]]:
    """Katalys' multi-key fields count from 1; what is blank was not given."""
    return enumerate((value for value in values if not is_blank(value)) if isinstance(values, tuple) else (), 1)


def _line_item_fields(prefix: str, item: object) -> Iterator[tuple[str, str]]:
    if not isinstance(item, LineItem):
        return
    yield f"{prefix}_sku", _plain(item.sku)
    if item.price is not None:
        yield f"{prefix}_price", _amount(item.price)
    if item.qty is not None:
        yield f"{prefix}_qty", _amount(item.qty)
    for name, text in (("title", item.title), ("var", item.variation)):
        if text is not None:
            yield f"{prefix}_{name}", _plain(text)
    names = item.categories
    categories = ",".join(map(_plain, names)) if isinstance(names, tuple) else _plain(names)
    if categories:
        yield f"{prefix}_categories", categories


def _plain(value: object) -> str:
    """A string, an id or a count. None, which is invalid wherever it gets here, is written empty.

    Of a string class its own characters, which the checks have seen: what its ``__str__`` says is another question.
    """
    if isinstance(value, str):
        return str.__str__(value)
    return "" if value is None else str(value)


def _amount(value: object) -> str:
    """An amount, never with an exponent; whatever else is written as it stands."""
    try:
        # A float as a string: whether it is exact in its currency was for the conversion to say.
        return format(checks.money(str(value) if isinstance(value, float) else value), "f")
    except ValueError:
        return _plain(value)


def _time(value: object) -> str:
    # Seconds since 1970, so that Katalys need not guess a time zone; its own WooCommerce plugin does the same.
    return f"@{int(value.timestamp())}" if isinstance(value, datetime) else _plain(value)


def _email(address: object, email_key: str | None) -> str:
    text = _plain(address)
    return text if email_key is None or not text else email_hash(text, email_key)


# How a value of a kind is written; every other kind is written plain.
_WRITERS: Mapping[Check, Callable[[object], str]] = {
    checks.money: _amount,
    checks.currency_code: lambda value: _plain(value).upper(),
    checks.aware_time: _time,
}
