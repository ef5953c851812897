"""Orders: every field with its rule, all problems at once, and nothing that raises."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from katalys_wsgi import Conversion, Discount, LineItem, OrderUpdate
from katalys_wsgi.conversion.order import FIELD_CHECKS, OPTIONAL_FIELDS, ORDER_STATUSES, REQUIRED_FIELDS, OrderStatus

from .support import SITE_ID, Column, fields_of, make_conversion, make_postback, make_update

fuzzed = settings(derandomize=True, database=None, deadline=None, max_examples=100)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)

REQUIRED = ("order_id", "email_address", "sale_amount", "subtotal_amount")
AMOUNTS = ("sale_amount", "subtotal_amount", "tax_amount", "shipping_amount")
TEXTS = (
    "payment_status", "order_alias", "action_type", "customer_group", "vid", "billing_city", "billing_state",
    "billing_postal", "shipping_city", "shipping_state", "shipping_postal",
)  # fmt: skip


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
        pytest.param("sale_amount", "59.90", id="string"),
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
        pytest.param("line_items", [LineItem("S", categories=["a < b", "c>d"])], id="comparison-and-not-html"),
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
    ("order_id", "10\udcff", "order_id: holds a lone surrogate"),
    ("email_address", "\t", "email_address: is missing"),
    ("email_address", "ann\r\n@example.com", "email_address: holds control characters"),
    ("email_address", "x" * 256, "email_address: holds control characters"),
    ("email_address", b"ann@example.com", "email_address: is a bytes"),
    *((name, "-1", f"{name}: is negative; report a refund with record_update") for name in AMOUNTS),
    *((name, "free", f"{name}: is not a plain number") for name in AMOUNTS),
    *((name, True, f"{name}: is a bool; give a Decimal") for name in AMOUNTS),
    *((name, Decimal("NaN"), f"{name}: is not finite") for name in AMOUNTS),
    ("discounts", "SPRING", "discounts: is a str; give a list"),
    ("discounts", b"SPRING", "discounts: is a bytes; give a list"),
    ("discounts", Discount("SPRING"), "discounts: is a Discount; give a list"),
    ("discounts", 5, "discounts: is a int; give a list"),
    ("discounts", ["", Discount("")], "discounts[1].code: is missing"),
    ("discounts", [10], "discounts[0].code: is a int; give a string"),
    ("discounts", [Discount(" ")], "discounts[0].code: is blank"),
    ("discounts", ["A\ud800"], "discounts[0].code: holds a lone surrogate"),
    ("discounts", ["A", Discount("B", "-1")], "discounts[1].amount: is negative"),
    ("discounts", [Discount("A", "10%")], "discounts[0].amount: is not a plain number"),
    ("currency", "€", "currency: is not a currency"),
    ("currency", "US", "currency: is not a currency"),
    ("currency", "EURO", "currency: is not a currency"),
    ("currency", "EUR\n", "currency: is not a currency"),
    ("currency", "\uff25\uff35\uff32", "currency: is not a currency"),
    ("currency", 978, "currency: is not a currency"),
    ("line_items", LineItem("S"), "line_items: is a LineItem; give a list"),
    ("line_items", [{"sku": "S"}], "line_items[0]: is a dict; give a LineItem"),
    ("line_items", [LineItem("S"), "S"], "line_items[1]: is a str; give a LineItem"),
    ("line_items", [LineItem("")], "line_items[0].sku: is missing"),
    ("line_items", [LineItem(7)], "line_items[0].sku: is a int; give a string"),  # type: ignore[arg-type]
    ("line_items", [LineItem("S", "$5")], "line_items[0].price: is not a plain number"),
    ("line_items", [LineItem("S", qty=0)], "line_items[0].qty: is zero; leave the item out"),
    ("line_items", [LineItem("S", qty=-1)], "line_items[0].qty: is negative"),
    ("line_items", [LineItem("S", qty="two")], "line_items[0].qty: is not a plain number"),
    ("line_items", [None, LineItem("S", title="x\ud800")], "line_items[1].title: holds a lone surrogate"),
    ("line_items", [LineItem("S", variation=5)], "line_items[0].variation: is a int"),  # type: ignore[arg-type]
    ("line_items", [LineItem("S", categories="Tea")], "line_items[0].categories: is not a list"),
    ("line_items", [LineItem("S", categories=["Tea, green"])], "line_items[0].categories: holds a comma or HTML"),
    ("line_items", [LineItem("S", categories=["<b>Tea</b>"])], "line_items[0].categories: holds a comma or HTML"),
    ("line_items", [LineItem("S", categories=["Tea", 5])], "line_items[0].categories: is a int"),  # type: ignore[list-item]
    ("order_time", NOW.replace(tzinfo=None), "order_time: is not a time with a time zone"),
    ("order_time", datetime.min.replace(tzinfo=timezone.utc), "order_time: is before 1970"),
    ("order_time", date(2026, 3, 1), "order_time: is not a time with a time zone"),
    ("order_time", "2026-03-01T12:00:00Z", "order_time: is not a time with a time zone"),
    ("order_time", 1772366400, "order_time: is not a time with a time zone"),
    ("order_status", "complete", "order_status: is not one of pending, paid"),
    ("order_status", "Paid", "order_status: is not one of pending, paid"),
    ("order_status", ["paid"], "order_status: is not one of pending, paid"),
    ("extra", "order_key", "extra: is a str; give a mapping"),
    ("extra", [("order_key", "k")], "extra: is a list; give a mapping"),
    ("extra", {5: "k"}, "extra: holds a key that is not"),
    ("extra", {"ann@example.com": "k"}, "extra: holds a key that is not"),
    ("extra", {"order_id": "1002"}, "extra[order_id]: is reported by a field of its own"),
    ("extra", {"Site_ID": "x"}, "extra[Site_ID]: is reported by a field of its own"),
    ("extra", {"discounts": "x"}, "extra[discounts]: is reported by a field of its own"),
    ("extra", {"line_item_1_sku": "x"}, "extra[line_item_1_sku]: is reported by a field of its own"),
    ("extra", {"order_key": True}, "extra[order_key]: is a bool; give a string or a number"),
    ("extra", {"order_key": ["k"]}, "extra[order_key]: is a list; give a string or a number"),
    ("extra", {"order_key": "x\ud800"}, "extra[order_key]: holds a lone surrogate"),
    ("extra", {"order_key": Decimal("NaN")}, "extra[order_key]: is not finite"),
    ("extra", {"order_key": Decimal("1E+999")}, "extra[order_key]: has more digits"),
    ("extra", {"order_key": 10**400}, "extra[order_key]: has over 255 digits"),
    ("order_count", 0, "order_count: is not a whole number from 1 on"),
    ("order_count", "2", "order_count: is not a whole number from 1 on"),
    ("order_count", 2.0, "order_count: is not a whole number from 1 on"),
    ("order_count", True, "order_count: is not a whole number from 1 on"),
    *((name, 5, f"{name}: is a int; give a string") for name in TEXTS),
    *((name, "x\ud800", f"{name}: holds a lone surrogate") for name in TEXTS),
    *((name, Column(), f"{name}: is ") for name in (*REQUIRED, *AMOUNTS[2:], *TEXTS, "currency", "order_time")),
    ("order_status", Column(), "order_status: is not one of"),
    ("order_count", Column(), "order_count: is not a whole number"),
    ("discounts", [Column()], "discounts[0].code: is a Column"),
    ("line_items", [Column()], "line_items[0]: is a Column"),
]


@pytest.mark.parametrize(
    ("name", "value", "beginning"), BAD,
    ids=[f"{name}={value!r:.30}".encode("unicode_escape").decode().split(" object")[0] for name, value, _ in BAD],
)  # fmt: skip
def test_each_problem_is_named_by_its_field(name: str, value: Any, beginning: str) -> None:
    assert problem_of(make_conversion(**{name: value})).startswith(beginning)


def test_all_problems_are_listed_at_once() -> None:
    """Otherwise the second would be found in production, after the first was corrected."""
    conversion = make_conversion(
        order_id="", email_address=None, sale_amount="much", subtotal_amount=-1,
        discounts=[Discount(""), Discount("A", "x")], currency="dollars",
        line_items=[LineItem("", "$5", 0), "tea"], order_status="done",
    )  # fmt: skip

    assert [problem.partition(":")[0] for problem in conversion.problems()] == [
        "order_id", "email_address", "sale_amount", "subtotal_amount", "currency", "order_status",
        "discounts[0].code", "discounts[1].amount",
        "line_items[0].sku", "line_items[0].price", "line_items[0].qty", "line_items[1]",
    ]  # fmt: skip


def test_conversions_are_made_by_keyword_only() -> None:
    """Four amounts and ids in a row are easily swapped."""
    with pytest.raises(TypeError, match="positional"):
        Conversion("1001", "ann@example.com", "59.90", "50.00")  # type: ignore[call-arg]


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
    """Data with problems is kept for the operator to correct, so it has to be written somehow."""
    fields = fields_of(make_postback(make_conversion(**values)))

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

    def items() -> Iterator[LineItem]:
        for sku in ("S", "T"):
            yield LineItem(sku, categories=(c for c in "ab"))  # type: ignore[arg-type] # a Sequence is asked for

    conversion = make_conversion(discounts=codes(), line_items=items())

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


def test_a_wrong_currency_is_one_problem_not_two() -> None:
    order = make_conversion(currency="dollars", sale_amount=59.99)

    assert problem_of(order).startswith("currency: ")


# --- the names of the fields ---


def test_the_fields_are_katalys_keys_in_the_order_in_which_they_are_sent() -> None:
    """The specification's four, then those of "Reporting Schema" in Katalys' knowledge base."""
    assert REQUIRED_FIELDS == REQUIRED
    assert OPTIONAL_FIELDS == (
        "currency", "tax_amount", "shipping_amount", "order_time", "order_status", "payment_status", "order_alias",
        "order_count", "action_type", "customer_group", "vid", "billing_city", "billing_state", "billing_postal",
        "shipping_city", "shipping_state", "shipping_postal",
    )  # fmt: skip
    assert tuple(FIELD_CHECKS) == REQUIRED_FIELDS + OPTIONAL_FIELDS


def test_the_statuses_are_those_of_katalys() -> None:
    """Katalys' knowledge base, "Order Status Reporting"."""
    assert ORDER_STATUSES == ("pending", "paid", "shipped", "fulfilled", "cancelled", "refunded", "rejected")


# --- updates ---


def test_an_update_names_its_order_first() -> None:
    update = OrderUpdate("1001", order_status="refunded")

    assert (update.order_id, update.order_status, update.sale_amount) == ("1001", "refunded", None)
    assert update.problems() == []


def test_everything_else_of_an_update_is_by_keyword() -> None:
    with pytest.raises(TypeError, match="positional"):
        OrderUpdate("1001", "refunded")  # type: ignore[call-arg]


@pytest.mark.parametrize("status", ORDER_STATUSES)
def test_an_update_may_report_any_status(status: OrderStatus) -> None:
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
def test_an_update_may_report_further_fields_alone(changes: dict[str, Any]) -> None:
    assert OrderUpdate("1001", **changes).problems() == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"discounts": []},
        {"line_items": ()},
        {"order_status": None},
        {"discounts": ["", None]},
        {"email_address": " ", "sale_amount": "", "currency": "\t"},
    ],
    ids=["nothing", "no-coupons", "no-items", "no-status", "blank-coupons", "blanks"],
)
def test_an_update_that_changes_nothing_has_a_problem(changes: dict[str, Any]) -> None:
    assert problem_of(OrderUpdate("1001", **changes)).startswith("order_status: is missing, and so is every other")


@pytest.mark.parametrize(
    ("name", "value", "beginning"),
    [
        pytest.param("sale_amount", "-5", "sale_amount: is negative", id="negative"),
        pytest.param("order_status", "chargeback", "order_status: is not one of", id="status"),
        pytest.param("discounts", [5], "discounts[0].code: is a int", id="coupon"),
        pytest.param("sale_amount", Column(), "sale_amount: is a Column", id="orm-column"),
        pytest.param("discounts", Column(), "discounts: is a Column", id="orm-column-for-a-list"),
    ],
)
def test_the_fields_of_an_update_keep_the_same_rules(name: str, value: Any, beginning: str) -> None:
    assert problem_of(OrderUpdate("1001", **{name: value})).startswith(beginning)


@pytest.mark.parametrize("order_id", [None, "", " ", "x" * 256], ids=["none", "empty", "blank", "long"])
def test_an_update_needs_its_order_id(order_id: Any) -> None:
    assert problem_of(OrderUpdate(order_id, order_status="paid")).startswith("order_id: ")


# --- further keys ---


def test_further_keys_are_sent_before_the_items() -> None:
    extra: dict[str, Any] = {
        "order_key": "wc_1", "sale_amount_with_currency": "EUR 59.90", "weight": Decimal("1.50"), "score": -3,
        "rate": 0.5, "id": 12345678901234567890, "large": Decimal("1E+3"), "note": " ", "none": None,
    }  # fmt: skip
    order = make_conversion(extra=extra, vid="v", line_items=[LineItem("S")])
    sent = list(fields_of(make_postback(order)).items())[12:]

    assert order.problems() == []
    assert sent == [
        ("vid", "v"), ("order_key", "wc_1"), ("sale_amount_with_currency", "EUR 59.90"), ("weight", "1.50"),
        ("score", "-3"), ("rate", "0.5"), ("id", "12345678901234567890"), ("large", "1000"),
        ("line_item_1_sku", "S"), ("line_item_1_qty", "1"),
    ]  # fmt: skip


def test_a_further_key_never_takes_the_place_of_a_field() -> None:
    extra = {"site_id": "KA-9999999", "order_key": "k", "sale_amount": 1}
    fields = fields_of(make_postback(make_conversion(extra=extra)))

    assert (fields["site_id"], fields["sale_amount"], fields["order_key"]) == (SITE_ID, "59.90", "k")


def test_a_mapping_that_changes_later_changes_nothing() -> None:
    extra = {"order_key": "k"}
    order = make_conversion(extra=extra)
    extra["order_key"] = "later"

    assert order.extra == {"order_key": "k"}
    assert "order_key" not in repr(order)
    assert pickle.loads(pickle.dumps(order)) == order  # noqa: S301 - our own
    assert hash(order) == hash(make_conversion(extra={"order_key": "k"}))


@pytest.mark.parametrize("extra", [{}, {"order_key": ""}, {"site_id": "KA-9999999"}], ids=["none", "blank", "ours"])
def test_an_update_of_no_further_key_changes_nothing(extra: dict[str, str]) -> None:
    update = OrderUpdate("1001", extra=extra)

    assert len(update.problems()) == 1
    assert fields_of(make_update(extra=extra))["site_id"] == SITE_ID


def test_an_update_may_report_a_further_key_alone() -> None:
    assert OrderUpdate("1001", extra={"order_key": "k"}).problems() == []
    assert fields_of(make_update(extra={"order_key": "k"}))["order_key"] == "k"


# --- not given ---


@pytest.mark.parametrize("blank", [None, "", " ", "\t\r\n\u00a0"], ids=["None", "empty", "space", "white-space"])
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Conversion) if field.name not in REQUIRED])
def test_a_blank_field_was_not_given(name: str, blank: Any) -> None:
    """Forms and ORMs write "no state" as an empty string; the sale is one all the same."""
    order = make_conversion(**{name: blank})

    assert order == make_conversion(**{name: () if name in ("discounts", "line_items") else None})
    assert order.problems() == []
    assert fields_of(make_postback(order)) == fields_of(make_postback(make_conversion(**{name: None})))


@pytest.mark.parametrize("blank", [None, "", " "], ids=["None", "empty", "space"])
def test_so_was_a_blank_field_of_a_coupon_or_an_item(blank: Any) -> None:
    coupon = Discount("A", blank)
    item = LineItem("S", price=blank, qty=blank, title=blank, variation=blank, categories=blank)

    assert (coupon, item) == (Discount("A"), LineItem("S"))
    assert make_conversion(discounts=[coupon], line_items=[item]).problems() == []


@pytest.mark.parametrize("blank", [None, "", " "], ids=["None", "empty", "space"])
def test_a_blank_in_a_list_was_not_given_and_takes_no_number(blank: Any) -> None:
    order = make_conversion(discounts=[blank, "A"], line_items=[blank, LineItem("S", categories=[blank, "Tea"]), blank])
    fields = fields_of(make_postback(order))

    assert order.problems() == []
    assert fields == fields_of(
        make_postback(make_conversion(discounts=["A"], line_items=[LineItem("S", categories=["Tea"])]))
    )


@pytest.mark.parametrize("address", [" ann@example.com", "ann@example.com\r\n", "\u00a0ann@example.com\t"])
def test_white_space_around_an_address_is_dropped(address: str) -> None:
    assert make_conversion(email_address=address) == make_conversion(email_address="ann@example.com")
    assert OrderUpdate("1001", email_address=address).email_address == "ann@example.com"


def test_a_string_class_of_the_shop_is_never_asked() -> None:
    class Lazy(str):
        __slots__ = ()

        def strip(self, _chars: object = None, /) -> str:
            raise ZeroDivisionError  # pragma: no cover

    assert make_conversion(email_address=Lazy("a@example.com"), vid=Lazy(" ")).problems() == []
