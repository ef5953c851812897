"""What was sold, in the shop's words: conversions and order updates, each field with its check.

Nothing here raises because of bad data: ``problems()`` lists all of them at once, so that a checkout goes on and the
developer sees the whole list. None, an empty string and white space mean that an optional field was not given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar, get_args

from . import checks
from .checks import Check, Money

__all__ = [
    "FIELD_CHECKS", "OPTIONAL_FIELDS", "ORDER_STATUSES", "REQUIRED_FIELDS", "Checked", "Conversion", "Discount",
    "LineItem", "OrderStatus", "OrderUpdate", "as_discount", "check_order", "checked_extra",
    "is_blank",
]  # fmt: skip

#: "Order Status Reporting" in Katalys' knowledge base. Pending becomes Ignored; paid, shipped and fulfilled become
#: Approved; cancelled, refunded and rejected become Rejected, within three days of the order and only if the
#: Offer is configured so.
OrderStatus = Literal["pending", "paid", "shipped", "fulfilled", "cancelled", "refunded", "rejected"]

#: The same as a tuple.
ORDER_STATUSES: tuple[OrderStatus, ...] = get_args(OrderStatus)

_T = TypeVar("_T")

_order_status = checks.one_of(ORDER_STATUSES, "the shop's own word belongs in payment_status")


def _needed(check: Check) -> dict[str, object]:
    """The metadata of a field that cannot be left out: what it belongs to makes no sense without it."""
    return {"check": check, "needed": True}


@dataclass(frozen=True)
class Checked(Generic[_T]):
    """An order, coupon or item as it can be reported, and what was wrong with it.

    :param value: without what is wrong in optional fields; what is wrong in the others stands in it as it was given.
    :param blocking: the problems that keep it from being reported.
    :param left_out: the problems of what was left out.
    """

    value: _T
    blocking: list[str]
    left_out: list[str]

    @property
    def problems(self) -> list[str]:
        """All of them."""
        return self.blocking + self.left_out


@dataclass(frozen=True)
class Discount:
    """A coupon.

    :param code: the coupon's code.
    :param amount: what it took off the order, in the order's currency; None when that is not known.
    """

    code: str = field(metadata=_needed(checks.string))
    amount: Money | None = field(default=None, metadata={"check": checks.money})

    def __post_init__(self) -> None:
        _keep_what_is_given(self)


@dataclass(frozen=True)
class LineItem:
    """One line of the order.

    :param sku: the shop's number of the product.
    :param price: of one piece, in the order's currency.
    :param qty: how many pieces, or how much; above zero, and 1 unless given.
    :param title: the product's name.
    :param variation: such as a colour or a size.
    :param categories: plain names, without commas and HTML.
    """

    sku: str = field(metadata=_needed(checks.string))
    price: Money | None = field(default=None, metadata={"check": checks.money})
    qty: Money | None = field(default=1, metadata={"check": checks.quantity})
    title: str | None = field(default=None, metadata={"check": checks.string})
    variation: str | None = field(default=None, metadata={"check": checks.string})
    categories: Sequence[str] = field(default=(), metadata={"check": checks.names})

    def __post_init__(self) -> None:
        _keep_what_is_given(self)
        if isinstance(self.categories, tuple):
            object.__setattr__(self, "categories", tuple(name for name in self.categories if not is_blank(name)))


def as_discount(coupon: object) -> Discount:
    """A member of ``discounts`` as a :class:`Discount`; anything else is taken for a code."""
    return coupon if isinstance(coupon, Discount) else Discount(coupon)  # type: ignore[arg-type] # problems() says so


def _as_line_item(item: object) -> LineItem:
    if not isinstance(item, LineItem):
        raise ValueError(f"is a {type(item).__name__}; give a LineItem")  # noqa: TRY004 - an error of data, not of code
    return item


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What a conversion and an update can both say.

    The fields with a check are also the names and the order of Katalys' keys, as they are sent. A repr ends in logs,
    so it leaves the e-mail address out.
    """

    order_id: str | int = field(metadata=_needed(checks.identifier))
    email_address: str | None = field(default=None, repr=False, metadata=_needed(checks.identifier))
    sale_amount: Money | None = field(default=None, metadata=_needed(checks.money))
    subtotal_amount: Money | None = field(default=None, metadata=_needed(checks.money))

    currency: str | None = field(default=None, metadata=_needed(checks.currency_code))
    tax_amount: Money | None = field(default=None, metadata={"check": checks.money})
    shipping_amount: Money | None = field(default=None, metadata={"check": checks.money})
    order_time: datetime | None = field(default=None, metadata={"check": checks.aware_time})
    order_status: OrderStatus | None = field(default=None, metadata={"check": _order_status})
    payment_status: str | None = field(default=None, metadata={"check": checks.string})
    order_alias: str | None = field(default=None, metadata={"check": checks.string})
    order_count: int | None = field(default=None, metadata={"check": checks.count})
    action_type: str | None = field(default=None, metadata={"check": checks.string})
    customer_group: str | None = field(default=None, metadata={"check": checks.string})
    vid: str | None = field(default=None, metadata={"check": checks.string})
    billing_city: str | None = field(default=None, metadata={"check": checks.string})
    billing_state: str | None = field(default=None, metadata={"check": checks.string})
    billing_postal: str | None = field(default=None, metadata={"check": checks.string})
    shipping_city: str | None = field(default=None, metadata={"check": checks.string})
    shipping_state: str | None = field(default=None, metadata={"check": checks.string})
    shipping_postal: str | None = field(default=None, metadata={"check": checks.string})

    discounts: Sequence[str | Discount] = field(default=(), metadata={"each": as_discount})
    line_items: Sequence[LineItem] = field(default=(), metadata={"each": _as_line_item})
    extra: Mapping[str, str | int | Decimal] | None = field(
        default=None, repr=False, hash=False, metadata={"extra": True}
    )

    def __post_init__(self) -> None:
        if isinstance(self.extra, Mapping):
            object.__setattr__(self, "extra", dict(self.extra))
        if isinstance(self.email_address, str):
            object.__setattr__(self, "email_address", str.strip(self.email_address))
        _keep_what_is_given(self)

    def problems(self) -> list[str]:
        """Everything that is wrong with this data, each as ``"field: what is wrong and what to do"``.

        A problem of ``order_id``, ``email_address``, ``sale_amount``, ``subtotal_amount`` or ``currency`` keeps the
        order from being reported, and so does an update that changes nothing. Any other field that has a problem is
        left out. No value is repeated: it may be personal data.
        """
        return check_order(self).problems


@dataclass(frozen=True, kw_only=True)
class Conversion(_Order):
    """One sale.

    Amounts are a ``Decimal``, an int, or a string of digits with a point, in ``currency``; they reach Katalys to the
    last digit. The keys are those of "Reporting Schema" in Katalys' knowledge base. In an optional field None, an empty
    string and white space mean "not given"; so they do in a list of coupons, line items or categories.

    :param order_id: the shop's number of the order, unique in the account; the same id again is the same order.
    :param email_address: any string that stays the same for a customer; white space around it is dropped.
    :param sale_amount: the grand total.
    :param subtotal_amount: goods only; before or after discounts is for you to settle with Katalys.
    :param currency: three letters of ISO 4217; Katalys takes USD unless it is given.
    :param tax_amount: the taxes in ``sale_amount``.
    :param shipping_amount: the cost of shipping in ``sale_amount``.
    :param order_time: when the order was placed; an aware datetime. The moment of ``record()`` unless given.
    :param order_status: one of :data:`ORDER_STATUSES`.
    :param payment_status: the shop's own word for it.
    :param order_alias: dangerous: Katalys merges the order of this id into this one and may change the id.
    :param order_count: how many orders this customer has placed, this one included; above 1 means returning.
    :param action_type: ``online-sale``, ``lead``, ``signup``, …; decides which payout rules apply.
    :param customer_group: the shop's own word for a kind of customer.
    :param vid: the visitor id of Katalys' JavaScript.
    :param billing_city: also ``billing_state`` and ``billing_postal``: of the billing address; never a street.
    :param shipping_city: also ``shipping_state`` and ``shipping_postal``: of the shipping address; never a street.
    :param discounts: coupons, as codes or as :class:`Discount`.
    :param line_items: what was bought, as :class:`LineItem`.
    :param extra: further keys of Katalys' schema with a string or a number each, such as ``{"order_key": "…"}``; none
        that is reported by another field.
    """

    email_address: str = field(repr=False, metadata=_needed(checks.identifier))
    sale_amount: Money = field(metadata=_needed(checks.money))
    subtotal_amount: Money = field(metadata=_needed(checks.money))


@dataclass(frozen=True)
class OrderUpdate(_Order):
    """A later change of an order: a status, or other fields of :class:`Conversion`.

    Fields that are not given stay as they are. The very same update of an order again is a duplicate and is not sent
    twice.

    :param order_id: the order, as in its :class:`Conversion`; the only field that is given by position.
    """

    order_id: str | int = field(kw_only=False, metadata=_needed(checks.identifier))


_O = TypeVar("_O", bound=_Order)

#: The fields of an order that hold one value each, with their checks. Their names are Katalys' keys.
FIELD_CHECKS: Mapping[str, Check] = MappingProxyType({
    part.name: part.metadata["check"] for part in fields(_Order) if "check" in part.metadata
})  # fmt: skip

#: The fields without which a sale cannot be reported; the specification says "all fields are required".
REQUIRED_FIELDS: tuple[str, ...] = tuple(part.name for part in fields(Conversion) if part.default is MISSING)

#: All others of :data:`FIELD_CHECKS`, in the order in which they are sent.
OPTIONAL_FIELDS: tuple[str, ...] = tuple(name for name in FIELD_CHECKS if name not in REQUIRED_FIELDS)


#: What ``extra`` cannot hold: the fields of an order, and what is known without it.
_OUR_KEYS = {
    *(part.name for part in fields(_Order)), "type", "site_id", "client_ip", "user_agent", "transaction_id", "offer_id",
    "aff_id",
}  # fmt: skip
_is_numbered_key = re.compile(r"(discount|line_item)_\d+_", re.ASCII | re.IGNORECASE).match
_is_key = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch


def check_order(order: _O) -> Checked[_O]:
    """Separate what is right in a conversion or an update from what is wrong.

    An update of which nothing would be left is kept as it stands, for the operator to correct.
    """
    checked = _checked(order, order.currency if isinstance(order.currency, str) else None)
    if any(_is_given(getattr(checked.value, part.name)) for part in fields(order) if part.name != "order_id"):
        return checked
    nothing = "order_status: is missing, and so is every other field; give what is to be updated"
    return Checked(order, checked.blocking + (checked.left_out or [nothing]), [])


def _checked(owner: _T, currency: str | None, prefix: str = "") -> Checked[_T]:
    checked = Checked(copy(owner), [], [])
    for part in fields(owner):  # type: ignore[arg-type] # a dataclass each
        name, value = prefix + part.name, getattr(owner, part.name)
        kept: object
        if "each" in part.metadata:
            kept, problems = _checked_list(name, value, part.metadata["each"], currency)
        elif value is None and part.default is not MISSING:
            continue
        elif "extra" in part.metadata:
            kept, problems = checked_extra(value)
        else:
            problems = _value_problems(name, value, part.metadata["check"], currency)
            kept = value if not problems or "needed" in part.metadata else () if part.default == () else None
        object.__setattr__(checked.value, part.name, kept)
        (checked.blocking if "needed" in part.metadata else checked.left_out).extend(problems)
    return checked


def _checked_list(
    name: str, values: object, convert: Callable[[Any], Any], currency: str | None
) -> tuple[tuple[object, ...], list[str]]:
    """The members that can be reported, and the problems of all; a blank member was not given."""
    if not isinstance(values, tuple):
        return (), [f"{name}: is a {type(values).__name__}; give a list"]
    kept, problems = [], []
    for number, value in enumerate(values):
        if is_blank(value):
            continue
        try:
            checked = _checked(convert(value), currency, f"{name}[{number}].")
        except ValueError as error:
            problems.append(f"{name}[{number}]: {error}")
            continue
        if not checked.blocking:
            kept.append(checked.value)
        problems += checked.problems
    return tuple(kept), problems


def checked_extra(extra: object) -> tuple[dict[str, str | int | Decimal] | None, list[str]]:
    """The further keys that can be reported, and the problems of all; None where there is no such key."""
    if not isinstance(extra, dict):
        return None, [f"extra: is a {type(extra).__name__}; give a mapping of keys to strings or numbers"]
    kept, problems = {}, []
    for key, value in extra.items():
        if not isinstance(key, str) or not _is_key(key):
            problems.append("extra: holds a key that is not of letters, digits, '_', '.' and '-' alone")
        elif key.lower() in _OUR_KEYS or _is_numbered_key(key):
            problems.append(f"extra[{key}]: is reported by a field of its own; give it there")
        elif not is_blank(value):
            found = _value_problems(f"extra[{key}]", value, checks.string_or_number, None)
            problems += found
            kept.update({} if found else {key: value})
    return kept or None, problems


def _value_problems(name: str, value: object, check: Check, currency: str | None) -> list[str]:
    try:
        if check is checks.money:
            checks.money(value, currency)
        else:
            check(value)
    except ValueError as error:
        return [f"{name}: {error}"]
    return []


def _is_given(value: object) -> bool:
    return value is not None and not (isinstance(value, tuple) and not value)


def is_blank(value: object) -> bool:
    """Whether ``value`` is what forms and ORMs write for "nothing there": None, or a string of white space."""
    return value is None or (isinstance(value, str) and not str.strip(value))  # its own strip() may be the shop's


def _keep_what_is_given(owner: _Order | Discount | LineItem) -> None:
    """Give each optional field that is blank its default, and freeze lists.

    What a generator yields is kept: the first look at it would use it up.
    """
    for part in fields(owner):
        value = getattr(owner, part.name)
        if part.default is MISSING:
            continue
        if is_blank(value):
            object.__setattr__(owner, part.name, part.default)
        elif part.default == () and isinstance(value, Iterable) and not isinstance(value, (str, bytes, tuple)):
            object.__setattr__(owner, part.name, tuple(value))
