"""What was sold, in the shop's words: conversions and updates, and every rule they must keep.

Nothing here raises because of bad data: ``problems()`` lists all faults at once, so that a checkout goes on
and the developer sees the whole list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from typing import Any

#: What money may be written as; a float only where its shortest text is an exact amount.
Money = Decimal | int | str | float

#: "Order Status Reporting" in Katalys' knowledge base. Pending becomes Ignored; paid, shipped and fulfilled become
#: Approved; cancelled, refunded and rejected become Rejected, within three days of the order and only if the
#: Offer is configured so.
ORDER_STATUSES = ("pending", "paid", "shipped", "fulfilled", "cancelled", "refunded", "rejected")

#: ISO 4217 minor units that are not 2.
_DECIMALS = dict.fromkeys(
    [
        "BIF",
        "CLP",
        "DJF",
        "GNF",
        "ISK",
        "JPY",
        "KMF",
        "KRW",
        "PYG",
        "RWF",
        "UGX",
        "UYI",
        "VND",
        "VUV",
        "XAF",
        "XOF",
        "XPF",
    ],
    0,
) | dict.fromkeys(["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"], 3)

#: More digits than any order has; also keeps Decimal("1E+1000000") from becoming a megabyte of zeros.
_MOST_DIGITS = 15

#: Longer order ids and addresses are somebody's mistake; databases index them.
LONGEST_IDENTIFIER = 255


@dataclass(frozen=True)
class Discount:
    """A coupon: its ``code``, and the ``amount`` it took off the order, if known."""

    code: str
    amount: Money | None = None


@dataclass(frozen=True)
class LineItem:
    """One line of the order; ``price`` is for one piece, ``categories`` a list of plain names."""

    sku: str
    price: Money | None = None
    qty: Money = 1
    title: str | None = None
    variation: str | None = None
    categories: Sequence[str] = ()

    def __post_init__(self) -> None:
        _keep_as_tuple(self, "categories")


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What a conversion and an update may both say."""

    discounts: Sequence[str | Discount] = ()
    currency: str | None = None
    tax_amount: Money | None = None
    shipping_amount: Money | None = None
    line_items: Sequence[LineItem] = ()
    order_time: datetime | None = None
    order_status: str | None = None
    payment_status: str | None = None
    order_alias: str | None = None
    order_count: int | None = None
    action_type: str | None = None
    customer_group: str | None = None
    vid: str | None = None
    billing_city: str | None = None
    billing_state: str | None = None
    billing_postal: str | None = None
    shipping_city: str | None = None
    shipping_state: str | None = None
    shipping_postal: str | None = None

    def __post_init__(self) -> None:
        _keep_as_tuple(self, "discounts")
        _keep_as_tuple(self, "line_items")

    def problems(self) -> list[str]:
        """Every fault of this data, ``"field: what is wrong and what to do"``; empty when it can be reported."""
        return list(_problems(self))


@dataclass(frozen=True, kw_only=True)
class Conversion(_Order):
    """One sale.

    Amounts are ``Decimal``, int or text in ``currency`` (USD unless given); they reach Katalys to the last digit.

    :param order_id: the shop's number of the order, unique in the account; the same id again is the same order.
    :param email_address: any text that stays the same for a customer.
    :param sale_amount: the grand total.
    :param subtotal_amount: goods only; before or after discounts is for you to settle with Katalys.
    :param discounts: coupon codes, texts or :class:`Discount`.
    :param order_time: aware; when the order was placed.
    :param order_status: one of pending, paid, shipped, fulfilled, cancelled, refunded, rejected.
    :param payment_status: the shop's own word for it.
    :param order_alias: dangerous: Katalys merges the order of this id into this one and may change the id.
    :param order_count: how many orders this customer has placed, this one included; above 1 means returning.
    :param action_type: ``online-sale``, ``lead``, ``signup``, …; decides which payout rules apply.
    :param vid: the visitor id of Katalys' JavaScript.
    """

    order_id: str | int
    email_address: str = field(repr=False)  # a repr ends in logs
    sale_amount: Money
    subtotal_amount: Money


@dataclass(frozen=True)
class OrderUpdate(_Order):
    """A later change of an order: a status, or any other fields of :class:`Conversion`; absent ones stay as they are.

    The very same update of an order again is a duplicate and is not sent twice.
    """

    order_id: str | int
    email_address: str | None = field(default=None, kw_only=True, repr=False)
    sale_amount: Money | None = field(default=None, kw_only=True)
    subtotal_amount: Money | None = field(default=None, kw_only=True)

    def problems(self) -> list[str]:
        """Every fault of this data; an update that changes nothing is one."""
        problems = super().problems()
        if not any(_is_given(getattr(self, part.name)) for part in fields(self) if part.name != "order_id"):
            problems.append("order_status: is missing, and so is every other field; give what is to be updated")
        return problems


def _is_given(value: object) -> bool:
    return value is not None and not (isinstance(value, tuple) and not value)


def _keep_as_tuple(owner: object, name: str) -> None:
    """Freeze a list and keep what a generator yields: the first look at it would use it up."""
    value = getattr(owner, name)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, tuple)):
        object.__setattr__(owner, name, tuple(value))


# --- rules: a check returns, or raises ValueError with the rest of the sentence --------------------------------


def money(value: object, currency: str | None = None) -> Decimal:
    """An amount, exactly.

    :raises ValueError: it is no plain, finite, non-negative number, or a float that is no exact amount.
    """
    amount = _decimal(value)
    if isinstance(value, float) and _decimals_of(amount) > decimals(currency):
        raise ValueError("is a float with more decimals than the currency; give a Decimal")
    if amount < 0:
        raise ValueError(
            "is negative; report a refund with record_update(OrderUpdate(order_id, order_status='refunded'))"
        )
    if amount.adjusted() >= _MOST_DIGITS or _decimals_of(amount) > _MOST_DIGITS:
        raise ValueError("has more digits than any amount of money; round it")
    return amount.copy_abs()  # Decimal("-0.00") is zero; abs() would round to the precision of the shop's context


def decimals(currency: str | None) -> int:
    """How many decimals the currency has (ISO 4217)."""
    return _DECIMALS.get((currency or "USD").upper(), 2)


def _decimal(value: object) -> Decimal:
    if _is_missing(value):
        raise ValueError("is missing")
    if isinstance(value, bool) or not isinstance(value, (Decimal, int, str, float)):
        raise ValueError(f"is a {type(value).__name__}; give a Decimal")  # noqa: TRY004 - a fault of data, not of code
    if isinstance(value, str) and not re.fullmatch(r"-?\d{1,30}(\.\d{1,30})?", value, re.ASCII):
        raise ValueError("is no plain number; give a Decimal, or digits with a point and nothing else")
    amount = Decimal(repr(value).removesuffix(".0") if isinstance(value, float) else value)
    if not amount.is_finite():
        raise ValueError("is not finite; give a Decimal")
    return amount


def _is_missing(value: object) -> bool:
    # An ORM's column, given instead of its value, answers == with an expression that is neither true nor false.
    return value is None or (isinstance(value, str) and not value)


def _decimals_of(amount: Decimal) -> int:
    exponent = amount.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _text(value: object, _currency: str | None = None) -> None:
    if _is_missing(value):
        raise ValueError("is missing")
    if not isinstance(value, str):
        raise ValueError(f"is a {type(value).__name__}; give a text")  # noqa: TRY004 - a fault of data, not of code
    if not value.strip():
        raise ValueError("is blank")
    if re.search(r"[\ud800-\udfff]", value):
        raise ValueError("holds half a character (a lone surrogate), which no encoding can write")


def _identifier(value: object, _currency: str | None = None) -> None:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    _text(text)
    if re.search(r"[\x00-\x1f\x7f]|^\s|\s$", str(text)) or len(str(text)) > LONGEST_IDENTIFIER:
        raise ValueError(f"holds control characters, white space around it, or over {LONGEST_IDENTIFIER} characters")


def _currency(value: object, _: str | None = None) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z]{3}", value, re.ASCII):
        raise ValueError("is no currency; give the three letters of ISO 4217, such as USD")


def _aware(value: object, _currency: str | None = None) -> None:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError("is no time with a time zone; give datetime.now(timezone.utc) or the like")
    if value.timestamp() < 0:
        raise ValueError("is before 1970; give the time of the order, or leave it out")


def _status(value: object, _currency: str | None = None) -> None:
    if not isinstance(value, str) or value not in ORDER_STATUSES:
        raise ValueError(f"is none of {', '.join(ORDER_STATUSES)}; the shop's own word belongs in payment_status")


def _count(value: object, _currency: str | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("is no whole number from 1 on")


def _quantity(value: object, _currency: str | None = None) -> None:
    if not money(value):
        raise ValueError("is zero; leave the item out")


def _categories(value: object, _currency: str | None = None) -> None:
    if not isinstance(value, tuple):
        raise ValueError("is no list; give a list of names")  # noqa: TRY004 - a fault of data, not of code
    for name in value:
        _text(name)
        if "," in name or re.search(r"<[a-zA-Z/!]", name):
            raise ValueError("holds a comma or HTML; give plain names")


Check = Callable[[Any, str | None], object]

_REQUIRED: dict[str, Check] = {
    "order_id": _identifier,
    "email_address": _identifier,
    "sale_amount": money,
    "subtotal_amount": money,
}
_OPTIONAL: dict[str, Check] = {
    "currency": _currency,
    "tax_amount": money,
    "shipping_amount": money,
    "order_time": _aware,
    "order_status": _status,
    "order_count": _count,
    **dict.fromkeys((
        "payment_status", "order_alias", "action_type", "customer_group", "vid", "billing_city", "billing_state",
        "billing_postal", "shipping_city", "shipping_state", "shipping_postal",
    ), _text),
}  # fmt: skip
_ORDER = {**_REQUIRED, **_OPTIONAL}
_DISCOUNT: dict[str, Check] = {"code": _text, "amount": money}
_LINE_ITEM: dict[str, Check] = {
    "sku": _text, "price": money, "qty": _quantity, "title": _text, "variation": _text, "categories": _categories,
}  # fmt: skip


def _problems(order: _Order) -> Iterator[str]:
    currency = order.currency if isinstance(order.currency, str) else None
    yield from _faults(order, _ORDER, _REQUIRED if isinstance(order, Conversion) else ("order_id",), currency)
    for number, discount in _listed(order.discounts):
        coupon = discount if isinstance(discount, Discount) else Discount(discount)
        yield from _faults(coupon, _DISCOUNT, ("code",), currency, f"discounts[{number}].")
    for number, item in _listed(order.line_items):
        if isinstance(item, LineItem):
            yield from _faults(item, _LINE_ITEM, ("sku",), currency, f"line_items[{number}].")
        else:
            yield f"line_items[{number}]: is a {type(item).__name__}; give a LineItem"
    for name in ("discounts", "line_items"):
        if not isinstance(getattr(order, name), tuple):
            yield f"{name}: is a {type(getattr(order, name)).__name__}; give a list"


def _listed(values: object) -> Iterable[tuple[int, Any]]:
    return enumerate(values) if isinstance(values, tuple) else ()


def _faults(
    owner: object, checks: dict[str, Check], required: Collection[str], currency: str | None, prefix: str = ""
) -> Iterator[str]:
    values = vars(owner)
    for name, check in checks.items():
        value = values[name]
        if value is None and name not in required:
            continue
        try:
            check(value, currency)
        except ValueError as fault:
            yield f"{prefix}{name}: {fault}"
