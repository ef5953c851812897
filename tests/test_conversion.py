"""What was sold: every rule of the data, all faults at once, and money to the last digit."""

from __future__ import annotations

import dataclasses
import decimal
import json
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from katalys_wsgi import Conversion, Discount, LineItem, OrderUpdate
from katalys_wsgi.conversion.order import ORDER_STATUSES, decimals, money
from katalys_wsgi.conversion.postback import Postback

from .support import SITE_ID, make_conversion

fuzzed = settings(derandomize=True, database=None, deadline=None, max_examples=100)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)

REQUIRED = ("order_id", "email_address", "sale_amount", "subtotal_amount")
AMOUNTS = ("sale_amount", "subtotal_amount", "tax_amount", "shipping_amount")
TEXTS = (
    "payment_status", "order_alias", "action_type", "customer_group", "vid", "billing_city", "billing_state",
    "billing_postal", "shipping_city", "shipping_state", "shipping_postal",
)  # fmt: skip


class Column:
    """What an ORM's class attribute does: a comparison is an expression, and that is neither true nor false.

    ``Conversion(sale_amount=Order.total)`` instead of ``order.total`` is easily written.
    """

    def __eq__(self, other: object) -> Column:  # type: ignore[override]
        return self  # pragma: no cover - nobody compares it any more

    __ne__ = __lt__ = __gt__ = __eq__  # type: ignore[assignment]

    def __hash__(self) -> int:
        return 1

    def __bool__(self) -> bool:
        raise TypeError("Boolean value of this clause is not defined")  # pragma: no cover


def problem_of(order: Conversion | OrderUpdate) -> str:
    (problem,) = order.problems()
    return problem


# --- good data ---


def test_an_order_as_the_shop_knows_it_has_no_problems() -> None:
    assert make_conversion().problems() == []


def test_every_field_can_be_given() -> None:
    conversion = Conversion(
        order_id="1001",
        email_address="ann@example.com",
        sale_amount=Decimal("59.90"),
        subtotal_amount=Decimal("50.00"),
        discounts=["SPRING", Discount("VIP", Decimal("5.00"))],
        currency="EUR",
        tax_amount=Decimal("9.50"),
        shipping_amount=0,
        line_items=[
            LineItem("SKU-1", Decimal("25.00"), 2, title="Tea", variation="green", categories=["Tea", "Organic"]),
            LineItem("SKU-2"),
        ],
        order_time=NOW,
        order_status="paid",
        payment_status="captured",
        order_alias="quote-17",
        order_count=2,
        action_type="online-sale",
        customer_group="wholesale",
        vid="v-1",
        billing_city="Zürich",
        billing_state="ZH",
        billing_postal="8001",
        shipping_city="São Paulo",
        shipping_state="SP",
        shipping_postal="01000-000",
    )

    assert conversion.problems() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("order_id", 1001, id="whole-number-as-order-id"),
        pytest.param("order_id", "#1001/A", id="signs-in-order-id"),
        pytest.param("order_id", "x" * 255, id="longest-order-id"),
        pytest.param("email_address", "7f3a" * 16, id="hash-instead-of-address"),
        pytest.param("email_address", 42, id="customer-number-instead-of-address"),
        pytest.param("email_address", "ännchen@bücher.example", id="international-address"),
        *(pytest.param(name, 0, id=f"no-{name}") for name in AMOUNTS),
        pytest.param("sale_amount", 59, id="whole-number"),
        pytest.param("sale_amount", "59.90", id="text"),
        pytest.param("sale_amount", 59.9, id="float"),
        pytest.param("discounts", [], id="no-coupon"),
        pytest.param("discounts", ["A", "A"], id="coupon-twice"),
        pytest.param("discounts", [Discount("A", "1.50")], id="coupon-with-amount"),
        pytest.param("currency", "eur", id="currency-in-lower-case"),
        pytest.param("order_time", NOW.astimezone(timezone(timedelta(hours=9))), id="time-elsewhere"),
        *(pytest.param("order_status", status, id=status) for status in ORDER_STATUSES),
        pytest.param("order_count", 1, id="first-order"),
        *(pytest.param(name, "Größe 注文", id=name) for name in TEXTS),
        pytest.param("line_items", [LineItem("S", qty=Decimal("0.5"))], id="half-a-pound"),
        pytest.param("line_items", [LineItem("S", 0)], id="free-item"),
        pytest.param("line_items", [LineItem("S", categories=["a < b", "c>d"])], id="comparison-is-no-html"),
    ],
)
def test_good_values_have_no_problems(name: str, value: Any) -> None:
    assert make_conversion(**{name: value}).problems() == []


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Conversion) if field.name not in REQUIRED])
def test_every_field_but_the_four_may_be_left_out(name: str) -> None:
    order = make_conversion(**{name: () if name in ("discounts", "line_items") else None})

    assert order.problems() == []


# --- bad data: name, value, and how its problem begins ---

MISSING = [(name, value) for name in REQUIRED for value in (None, "")]

BAD = [
    *((name, value, f"{name}: is missing") for name, value in MISSING),
    ("order_id", " ", "order_id: is blank"),
    ("order_id", 10.5, "order_id: is a float"),
    ("order_id", True, "order_id: is a bool"),
    ("order_id", b"1001", "order_id: is a bytes"),
    ("order_id", ["1001"], "order_id: is a list"),
    ("order_id", "10\n01", "order_id: holds control characters"),
    ("order_id", "1001\x00", "order_id: holds control characters"),
    ("order_id", "x" * 256, "order_id: holds control characters, white space around it, or over 255 characters"),
    ("order_id", " 1001", "order_id: holds control characters, white space around it"),
    ("order_id", "1001\u00a0", "order_id: holds control characters, white space around it"),
    ("order_id", "10\udcff", "order_id: holds half a character"),
    ("email_address", "\t", "email_address: is blank"),
    ("email_address", "ann@example.com\r\n", "email_address: holds control characters"),
    ("email_address", "x" * 256, "email_address: holds control characters"),
    ("email_address", b"ann@example.com", "email_address: is a bytes"),
    *((name, "-1", f"{name}: is negative; report a refund with record_update") for name in AMOUNTS),
    *((name, "free", f"{name}: is no plain number") for name in AMOUNTS),
    *((name, True, f"{name}: is a bool; give a Decimal") for name in AMOUNTS),
    *((name, Decimal("NaN"), f"{name}: is not finite") for name in AMOUNTS),
    ("tax_amount", "", "tax_amount: is missing"),
    ("discounts", None, "discounts: is a NoneType; give a list"),
    ("discounts", "SPRING", "discounts: is a str; give a list"),
    ("discounts", b"SPRING", "discounts: is a bytes; give a list"),
    ("discounts", Discount("SPRING"), "discounts: is a Discount; give a list"),
    ("discounts", 5, "discounts: is a int; give a list"),
    ("discounts", ["A", ""], "discounts[1].code: is missing"),
    ("discounts", [None], "discounts[0].code: is missing"),
    ("discounts", [10], "discounts[0].code: is a int; give a text"),
    ("discounts", [Discount(" ")], "discounts[0].code: is blank"),
    ("discounts", ["A\ud800"], "discounts[0].code: holds half a character"),
    ("discounts", ["A", Discount("B", "-1")], "discounts[1].amount: is negative"),
    ("discounts", [Discount("A", "10%")], "discounts[0].amount: is no plain number"),
    ("currency", "€", "currency: is no currency"),
    ("currency", "US", "currency: is no currency"),
    ("currency", "EURO", "currency: is no currency"),
    ("currency", "EUR\n", "currency: is no currency"),
    ("currency", "\uff25\uff35\uff32", "currency: is no currency"),
    ("currency", "", "currency: is no currency"),
    ("currency", 978, "currency: is no currency"),
    ("line_items", None, "line_items: is a NoneType; give a list"),
    ("line_items", LineItem("S"), "line_items: is a LineItem; give a list"),
    ("line_items", [{"sku": "S"}], "line_items[0]: is a dict; give a LineItem"),
    ("line_items", [LineItem("S"), "S"], "line_items[1]: is a str; give a LineItem"),
    ("line_items", [LineItem("")], "line_items[0].sku: is missing"),
    ("line_items", [LineItem(7)], "line_items[0].sku: is a int; give a text"),  # type: ignore[arg-type]
    ("line_items", [LineItem("S", "$5")], "line_items[0].price: is no plain number"),
    ("line_items", [LineItem("S", qty=0)], "line_items[0].qty: is zero; leave the item out"),
    ("line_items", [LineItem("S", qty=-1)], "line_items[0].qty: is negative"),
    ("line_items", [LineItem("S", qty="two")], "line_items[0].qty: is no plain number"),
    ("line_items", [LineItem("S", title="")], "line_items[0].title: is missing"),
    ("line_items", [LineItem("S", variation=5)], "line_items[0].variation: is a int"),  # type: ignore[arg-type]
    ("line_items", [LineItem("S", categories="Tea")], "line_items[0].categories: is no list"),
    ("line_items", [LineItem("S", categories=["Tea, green"])], "line_items[0].categories: holds a comma or HTML"),
    ("line_items", [LineItem("S", categories=["<b>Tea</b>"])], "line_items[0].categories: holds a comma or HTML"),
    ("line_items", [LineItem("S", categories=["Tea", None])], "line_items[0].categories: is missing"),  # type: ignore[list-item]
    ("order_time", NOW.replace(tzinfo=None), "order_time: is no time with a time zone"),
    ("order_time", datetime.min.replace(tzinfo=timezone.utc), "order_time: is before 1970"),
    ("order_time", date(2026, 3, 1), "order_time: is no time with a time zone"),
    ("order_time", "2026-03-01T12:00:00Z", "order_time: is no time with a time zone"),
    ("order_time", 1772366400, "order_time: is no time with a time zone"),
    ("order_status", "complete", "order_status: is none of pending, paid"),
    ("order_status", "Paid", "order_status: is none of pending, paid"),
    ("order_status", "", "order_status: is none of pending, paid"),
    ("order_status", ["paid"], "order_status: is none of pending, paid"),
    ("order_count", 0, "order_count: is no whole number from 1 on"),
    ("order_count", "2", "order_count: is no whole number from 1 on"),
    ("order_count", 2.0, "order_count: is no whole number from 1 on"),
    ("order_count", True, "order_count: is no whole number from 1 on"),
    *((name, "", f"{name}: is missing") for name in TEXTS),
    *((name, " ", f"{name}: is blank") for name in TEXTS),
    *((name, 5, f"{name}: is a int; give a text") for name in TEXTS),
    *((name, "x\ud800", f"{name}: holds half a character") for name in TEXTS),
    *((name, Column(), f"{name}: is ") for name in (*REQUIRED, *AMOUNTS[2:], *TEXTS, "currency", "order_time")),
    ("order_status", Column(), "order_status: is none of"),
    ("order_count", Column(), "order_count: is no whole number"),
    ("discounts", [Column()], "discounts[0].code: is a Column"),
    ("line_items", [Column()], "line_items[0]: is a Column"),
]


@pytest.mark.parametrize(
    ("name", "value", "beginning"), BAD,
    ids=[f"{name}={value!r:.30}".encode("unicode_escape").decode().split(" object")[0] for name, value, _ in BAD],
)  # fmt: skip
def test_each_fault_is_named_by_its_field(name: str, value: Any, beginning: str) -> None:
    assert problem_of(make_conversion(**{name: value})).startswith(beginning)


def test_all_faults_are_listed_at_once() -> None:
    """Nobody wants to find the second fault in production, after the first was corrected."""
    conversion = Conversion(
        order_id="", email_address=None, sale_amount="much", subtotal_amount=-1, discounts=["", Discount("A", "x")],
        currency="dollars", line_items=[LineItem("", "$5", 0), "tea"], order_status="done",
    )  # type: ignore[arg-type, list-item]  # fmt: skip

    assert [problem.partition(":")[0] for problem in conversion.problems()] == [
        "order_id", "email_address", "sale_amount", "subtotal_amount", "currency", "order_status",
        "discounts[0].code", "discounts[1].amount",
        "line_items[0].sku", "line_items[0].price", "line_items[0].qty", "line_items[1]",
    ]  # fmt: skip


def test_conversions_are_made_by_keyword_only() -> None:
    """Four amounts and ids in a row are easily swapped."""
    with pytest.raises(TypeError, match="positional"):
        Conversion("1001", "ann@example.com", "59.90", "50.00")  # type: ignore[misc]


# --- nothing raises ---

_text = st.text(alphabet=st.characters(exclude_categories=()), max_size=20)
_anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.decimals(), _text, st.binary(max_size=5),
    st.complex_numbers(), st.dates(), st.datetimes(), st.datetimes(timezones=st.just(timezone.utc)),
    st.sampled_from([
        Column(), object(), Conversion, len, Decimal("sNaN"), Decimal("-Infinity"), Decimal("1E+999999"), 10**400,
        Decimal("-0.00"), Discount(""), LineItem(""), Ellipsis,
    ]),
)  # fmt: skip
_things = st.one_of(_anything, st.lists(_anything, max_size=3), st.dictionaries(_text, _anything, max_size=2))
_coupons = st.lists(st.builds(Discount, _anything, _anything) | _anything, max_size=3) | _anything
_items = st.builds(LineItem, _anything, _anything, _anything, _anything, _anything, _things)
_lines = st.lists(_items | _anything, max_size=3) | _anything
_fields = {
    field.name: {"discounts": _coupons, "line_items": _lines}.get(field.name, _things)
    for field in dataclasses.fields(Conversion)
}


@fuzzed
@given(st.fixed_dictionaries(_fields))
def test_no_object_in_any_field_raises(values: dict[str, Any]) -> None:
    """Not when it is made, not when it is asked for its problems: a checkout goes on."""
    problems = Conversion(**values).problems()

    assert all(problem.isprintable() and ": " in problem for problem in problems)


@fuzzed
@given(st.fixed_dictionaries(_fields))
@example({**vars(make_conversion()), "line_items": [LineItem("S", categories=5)]})  # type: ignore[arg-type]
def test_no_object_in_any_field_keeps_it_from_becoming_a_dead_letter(values: dict[str, Any]) -> None:
    """Data with problems is kept for a person to correct, so it has to be written somehow."""
    fields = payload_of(**values)

    assert fields["site_id"] == SITE_ID
    assert all(isinstance(value, str) for value in fields.values())


@fuzzed
@given(st.fixed_dictionaries(_fields))
def test_no_object_in_any_field_of_an_update_raises(values: dict[str, Any]) -> None:
    order_id = values.pop("order_id")

    problems = OrderUpdate(order_id, **values).problems()

    assert all(problem.isprintable() and ": " in problem for problem in problems)


@fuzzed
@given(st.fixed_dictionaries({}, optional={name: _things for name in _fields if name not in REQUIRED}))
def test_good_fields_never_hide_a_bad_one(values: dict[str, Any]) -> None:
    """Each field is judged by itself: problems of one order are those of its fields, whatever stands beside them."""
    currency = {"currency": values["currency"]} if "currency" in values else {}
    alone = [make_conversion(**{**currency, name: value}).problems() for name, value in values.items()]

    assert set(make_conversion(**values).problems()) == {problem for problems in alone for problem in problems}


@pytest.mark.parametrize("name", [*REQUIRED, *AMOUNTS[2:], *TEXTS, "currency", "order_status", "discounts"])
def test_a_problem_never_repeats_the_value(name: str) -> None:
    """Problems are logged and kept; the value may be a buyer's data."""
    secret = "ann@example.com\x00\ud800, <b>"

    problem = " ".join(make_conversion(**{name: [secret] if name == "discounts" else secret}).problems())

    assert problem
    assert "ann" not in problem


# --- what a conversion keeps ---


def test_a_generator_is_kept_whole() -> None:
    """The first look at it would use it up: the coupon would be checked, and not reported."""

    def codes() -> Iterator[str]:
        yield from ("SPRING", "VIP")

    conversion = make_conversion(
        discounts=codes(), line_items=(LineItem(sku, categories=(c for c in "ab")) for sku in ("S", "T"))
    )

    assert conversion.problems() == conversion.problems() == []
    assert conversion.discounts == ("SPRING", "VIP")
    assert conversion.line_items == (LineItem("S", categories=("a", "b")), LineItem("T", categories=("a", "b")))


def test_a_list_that_changes_later_changes_nothing() -> None:
    codes = ["SPRING"]
    conversion = make_conversion(discounts=codes)

    codes.append("VIP")

    assert conversion.discounts == ("SPRING",)


@pytest.mark.parametrize(
    "value",
    [make_conversion(), OrderUpdate("1001", order_status="paid"), Discount("A"), LineItem("S")],
    ids=["Conversion", "OrderUpdate", "Discount", "LineItem"],
)
def test_values_are_frozen(value: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, "x")


# --- money ---


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        pytest.param(Decimal("59.90"), "59.90", id="decimal"),
        pytest.param(Decimal("59.999"), "59.999", id="more-decimals-than-the-currency"),
        pytest.param(59, "59", id="int"),
        pytest.param("59.90", "59.90", id="text"),
        pytest.param("0059.90", "59.90", id="leading-zeros"),
        pytest.param(59.9, "59.9", id="float"),
        pytest.param(59.99, "59.99", id="float-of-two-decimals"),
        pytest.param(59.0, "59", id="whole-float"),
        pytest.param(0.0, "0", id="zero-float"),
        pytest.param(-0.0, "0", id="negative-zero-float"),
        pytest.param(Decimal("-0.00"), "0.00", id="negative-zero"),
        pytest.param(Decimal("1E+3"), "1000", id="exponent"),
        pytest.param(Decimal("5E-2"), "0.05", id="negative-exponent"),
        pytest.param(Decimal("0E+5"), "0", id="zero-with-an-exponent"),
        pytest.param(10**14, "1" + "0" * 14, id="fifteen-digits"),
        pytest.param(Decimal("999999999999999.999999999999999"), "999999999999999.999999999999999", id="most-digits"),
    ],
)
def test_an_amount_is_exact(value: Any, amount: str) -> None:
    """Read with no rounding at all, and written plainly, never with an exponent."""
    assert format(money(value), "f") == amount


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param(None, "is missing", id="none"),
        pytest.param("", "is missing", id="empty"),
        pytest.param(True, "is a bool", id="bool"),
        pytest.param([], "is a list", id="list"),
        pytest.param(1j, "is a complex", id="complex"),
        pytest.param(Column(), "is a Column", id="orm-column"),
        pytest.param("1,234.50", "is no plain number", id="thousands"),
        pytest.param("59,90", "is no plain number", id="comma"),
        pytest.param("$59.90", "is no plain number", id="currency-sign"),
        pytest.param(" 59.90", "is no plain number", id="space"),
        pytest.param("59.90\n", "is no plain number", id="line-feed"),
        pytest.param("+59.90", "is no plain number", id="plus"),
        pytest.param(".90", "is no plain number", id="no-digit-before"),
        pytest.param("59.", "is no plain number", id="no-digit-after"),
        pytest.param("1e3", "is no plain number", id="exponent-in-text"),
        pytest.param("1_000", "is no plain number", id="underscore"),
        pytest.param("٥٩", "is no plain number", id="arabic-digits"),
        pytest.param("NaN", "is no plain number", id="nan-in-text"),
        pytest.param("9" * 31, "is no plain number", id="31-digits-in-text"),
        pytest.param(Decimal("NaN"), "is not finite", id="nan"),
        pytest.param(Decimal("sNaN"), "is not finite", id="signalling-nan"),
        pytest.param(Decimal("Infinity"), "is not finite", id="infinity"),
        pytest.param(float("nan"), "is not finite", id="float-nan"),
        pytest.param(float("-inf"), "is not finite", id="float-infinity"),
        pytest.param(Decimal("-0.01"), "is negative", id="negative"),
        pytest.param("-59.90", "is negative", id="negative-text"),
        pytest.param(-1, "is negative", id="negative-int"),
        pytest.param(-59.9, "is negative", id="negative-float"),
        pytest.param(10**15, "has more digits", id="sixteen-digits"),
        pytest.param(Decimal("1E+1000000"), "has more digits", id="a-megabyte-of-zeros"),
        pytest.param(Decimal("0E+1000000"), "has more digits", id="a-megabyte-of-zeros-of-zero"),
        pytest.param(Decimal("1E-1000000"), "has more digits", id="a-megabyte-of-decimals"),
        pytest.param(Decimal("0.0000000000000001"), "has more digits", id="sixteen-decimals"),
        pytest.param(1e300, "has more digits", id="huge-float"),
        pytest.param(1e-300, "is a float with more decimals", id="tiny-float"),
        pytest.param(0.1 + 0.2, "is a float with more decimals", id="float-sum"),
        pytest.param(59.999, "is a float with more decimals", id="float-of-three-decimals"),
    ],
)
def test_what_is_no_amount_is_refused_with_a_reason(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        money(value)


@pytest.mark.parametrize(
    ("currency", "places"),
    [(None, 2), ("", 2), ("???", 2), ("USD", 2), ("eur", 2), ("JPY", 0), ("jpy", 0), ("KWD", 3), ("TND", 3)],
)
def test_the_decimals_of_a_currency_are_those_of_iso_4217(currency: str | None, places: int) -> None:
    assert decimals(currency) == places


@pytest.mark.parametrize(
    ("currency", "value", "exact"),
    [
        pytest.param("USD", 59.9, True, id="dollars-and-cents"),
        pytest.param("USD", 59.999, False, id="dollars-and-mills"),
        pytest.param("JPY", 5000.0, True, id="yen"),
        pytest.param("JPY", 5000.5, False, id="half-a-yen"),
        pytest.param("KWD", 1.234, True, id="dinar-and-fils"),
        pytest.param("KWD", 1.2345, False, id="parts-of-a-fils"),
        pytest.param("kwd", 1.234, True, id="lower-case"),
        pytest.param(None, 59.99, True, id="dollars-by-default"),
    ],
)
def test_a_float_is_an_amount_if_its_shortest_text_fits_the_currency(
    currency: str | None, value: float, exact: bool
) -> None:
    order = make_conversion(currency=currency, sale_amount=value, line_items=[LineItem("S", value)],
                            discounts=[Discount("A", value)])  # fmt: skip

    named = [problem.partition(": is a float with more decimals than the currency")[0] for problem in order.problems()]

    assert named == ([] if exact else ["sale_amount", "discounts[0].amount", "line_items[0].price"])


def test_a_wrong_currency_is_one_fault_not_two() -> None:
    order = make_conversion(currency="dollars", sale_amount=59.99)

    assert problem_of(order).startswith("currency: ")


@pytest.mark.parametrize("trap", [decimal.Inexact, decimal.Rounded, decimal.FloatOperation], ids=lambda t: t.__name__)
def test_the_shops_own_decimal_context_changes_nothing(trap: type[decimal.DecimalException]) -> None:
    """A shop may have set six digits of precision, or have its arithmetic raise."""
    with decimal.localcontext() as context:
        context.prec = 6
        context.traps[trap] = True

        assert format(money(Decimal("12345678.90")), "f") == "12345678.90"
        assert format(money("12345678.90"), "f") == "12345678.90"
        assert format(money(59.9), "f") == "59.9"


def payload_of(**changes: Any) -> dict[str, str]:
    postback = Postback.from_conversion(
        make_conversion(**changes),
        site_id=SITE_ID, conversion_type="force_convert", click=None, client_ip=None, user_agent="",
    )  # fmt: skip
    fields: dict[str, str] = json.loads(postback.payload)
    return fields


_amounts = st.decimals(min_value=0, max_value=10**15 - 1, allow_nan=False, places=None).filter(
    lambda amount: amount.adjusted() < 15 and -amount.as_tuple().exponent <= 15
)


@fuzzed
@given(_amounts, st.integers(0, 10**15 - 1), st.integers(0, 10**9).map(lambda cents: cents / 100))
@example(Decimal("1E+3"), 0, 0.0)
@example(Decimal("999999999999999.999999999999999"), 1, 0.01)
def test_every_amount_reaches_the_payload_to_the_last_digit(sale: Decimal, tax: int, shipping: float) -> None:
    conversion = {"sale_amount": sale, "tax_amount": tax, "shipping_amount": shipping}

    fields = payload_of(**conversion)

    assert make_conversion(**conversion).problems() == []
    assert Decimal(fields["sale_amount"]) == sale
    assert fields["tax_amount"] == str(tax)
    assert float(fields["shipping_amount"]) == shipping
    assert all(set(fields[name]) <= set("0123456789.") for name in AMOUNTS if name in fields)


# --- updates ---


def test_an_update_names_its_order_first() -> None:
    update = OrderUpdate("1001", order_status="refunded")

    assert (update.order_id, update.order_status, update.sale_amount) == ("1001", "refunded", None)
    assert update.problems() == []


def test_everything_else_of_an_update_is_by_keyword() -> None:
    with pytest.raises(TypeError, match="positional"):
        OrderUpdate("1001", "refunded")  # type: ignore[misc]


@pytest.mark.parametrize("status", ORDER_STATUSES)
def test_an_update_may_tell_any_status(status: str) -> None:
    assert OrderUpdate("1001", order_status=status).problems() == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"sale_amount": "40.00"}, id="amount"),
        pytest.param({"sale_amount": 0}, id="nothing-was-paid"),
        pytest.param({"email_address": "ann@example.com"}, id="address"),
        pytest.param({"discounts": ["LATE"]}, id="coupon"),
        pytest.param({"line_items": [LineItem("S")]}, id="items"),
        pytest.param({"payment_status": "charged back"}, id="payment-status"),
    ],
)
def test_an_update_may_tell_further_fields_alone(changes: dict[str, Any]) -> None:
    assert OrderUpdate("1001", **changes).problems() == []


@pytest.mark.parametrize(
    "changes",
    [{}, {"discounts": []}, {"line_items": ()}, {"order_status": None}],
    ids=["nothing", "no-coupons", "no-items", "no-status"],
)
def test_an_update_that_changes_nothing_is_a_fault(changes: dict[str, Any]) -> None:
    assert problem_of(OrderUpdate("1001", **changes)).startswith("order_status: is missing, and so is every other")


@pytest.mark.parametrize(
    ("name", "value", "beginning"),
    [
        pytest.param("sale_amount", "-5", "sale_amount: is negative", id="negative"),
        pytest.param("sale_amount", "", "sale_amount: is missing", id="empty-amount"),
        pytest.param("email_address", "", "email_address: is missing", id="empty-address"),
        pytest.param("order_status", "chargeback", "order_status: is none of", id="status"),
        pytest.param("discounts", [""], "discounts[0].code: is missing", id="coupon"),
        pytest.param("sale_amount", Column(), "sale_amount: is a Column", id="orm-column"),
        pytest.param("discounts", Column(), "discounts: is a Column", id="orm-column-for-a-list"),
    ],
)
def test_the_fields_of_an_update_keep_the_same_rules(name: str, value: Any, beginning: str) -> None:
    assert problem_of(OrderUpdate("1001", **{name: value})).startswith(beginning)


@pytest.mark.parametrize("order_id", [None, "", " ", "x" * 256], ids=["none", "empty", "blank", "long"])
def test_an_update_needs_its_order_id(order_id: Any) -> None:
    assert problem_of(OrderUpdate(order_id, order_status="paid")).startswith("order_id: ")
