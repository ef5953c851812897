"""The three encodings of a message, and Katalys' rules of a message as it stands on the wire."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from .order import ORDER_STATUSES

_AMOUNTS = ("sale_amount", "subtotal_amount", "tax_amount", "shipping_amount")

#: "All fields are required", says the specification. These may be empty: no coupon, an address that cannot be told.
_REQUIRED = ("order_id", "email_address", "sale_amount", "subtotal_amount")
_REQUIRED_MAY_BE_EMPTY = ("client_ip", "user_agent", "discount_1_code")


#: Never shown in a log or an error, should an answer repeat them.
PERSONAL = ("email_address", "client_ip", "user_agent", "vid")


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
