"""The postback: Katalys' keys and their values, and what makes two messages one."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal, Inexact, localcontext
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from katalys_wsgi import Click, Discount, LineItem, OrderUpdate
from katalys_wsgi.conversion.postback import Kind, Postback, email_hash
from katalys_wsgi.conversion.wire import wire_problems

from .support import (
    BUYER_AGENT,
    BUYER_IP,
    CLICK,
    OLD_SECRET,
    SECRET,
    SITE_ID,
    TWELVE_KEYS,
    fields_of,
    make_conversion,
    make_postback,
    make_update,
)

fuzzed = settings(derandomize=True, database=None, deadline=None, max_examples=100)

NOW = CLICK.clicked_at

# --- keys ---


def test_the_twelve_come_first_and_in_the_specifications_order() -> None:
    fields = fields_of(make_postback(make_conversion(currency="EUR", tax_amount=1, discounts=["A", "B"])))

    assert tuple(fields)[:12] == TWELVE_KEYS


def test_every_key_that_katalys_knows_can_be_sent_in_this_order() -> None:
    everything = make_conversion(
        discounts=[Discount("SPRING", Decimal("5.00")), "FREESHIP"],
        action_type="online-sale",
        currency="eur",
        tax_amount=Decimal("9.90"),
        shipping_amount="4.90",
        order_time=datetime(2026, 11, 22, 14, 30, tzinfo=timezone(timedelta(hours=2))),
        order_status="paid",
        payment_status="captured",
        order_alias="cart-77",
        order_count=3,
        line_items=[
            LineItem("KETTLE-1", Decimal("25.00"), 2, "Kettle, 1 l", "red", ["Kitchen", "Kettles"]),
            LineItem("MUG"),
        ],
        billing_city="Zürich",
        billing_state="ZH",
        billing_postal="8001",
        shipping_city="Bern",
        shipping_state="BE",
        shipping_postal="3000",
        customer_group="retail",
        vid="v-123",
    )
    further = {
        "discount_1_amount": "5.00",
        "discount_2_code": "FREESHIP",
        "currency": "EUR",
        "tax_amount": "9.90",
        "shipping_amount": "4.90",
        "order_time": "@1795350600",
        "order_status": "paid",
        "payment_status": "captured",
        "order_alias": "cart-77",
        "order_count": "3",
        "action_type": "online-sale",
        "customer_group": "retail",
        "vid": "v-123",
        "billing_city": "Zürich",
        "billing_state": "ZH",
        "billing_postal": "8001",
        "shipping_city": "Bern",
        "shipping_state": "BE",
        "shipping_postal": "3000",
        "line_item_1_sku": "KETTLE-1",
        "line_item_1_price": "25.00",
        "line_item_1_qty": "2",
        "line_item_1_title": "Kettle, 1 l",
        "line_item_1_var": "red",
        "line_item_1_categories": "Kitchen,Kettles",
        "line_item_2_sku": "MUG",
        "line_item_2_qty": "1",
    }

    fields = fields_of(make_postback(everything))

    assert [(key, value) for key, value in fields.items() if key not in TWELVE_KEYS] == list(further.items())
    assert everything.problems() == []
    assert wire_problems(fields) == []


def test_every_value_is_a_string() -> None:
    """Katalys' knowledge base: objects, lists and null are ignored."""
    fields = fields_of(make_postback(make_conversion(1001, order_count=2, line_items=[LineItem("A", 1)])))

    assert {type(value) for value in fields.values()} == {str}


def test_fields_that_were_not_given_are_not_sent() -> None:
    assert tuple(fields_of(make_postback())) == TWELVE_KEYS


@pytest.mark.parametrize(
    ("discounts", "sent"),
    [
        pytest.param([], {"discount_1_code": ""}, id="none"),
        pytest.param(["A"], {"discount_1_code": "A"}, id="one"),
        pytest.param(
            ["A", Discount("B", 2), "C"],
            {"discount_1_code": "A", "discount_2_code": "B", "discount_2_amount": "2", "discount_3_code": "C"},
            id="several",
        ),
        pytest.param((code for code in "AB"), {"discount_1_code": "A", "discount_2_code": "B"}, id="generator"),
    ],
)
def test_coupons_count_from_1_and_the_first_is_always_there(discounts: Any, sent: dict[str, str]) -> None:
    fields = fields_of(make_postback(make_conversion(discounts=discounts)))

    assert {key: value for key, value in fields.items() if key.startswith("discount_")} == sent


@pytest.mark.parametrize(
    ("click", "sent"),
    [
        pytest.param(CLICK, {"transaction_id": "1234abcd", "offer_id": "1234", "aff_id": "5678"}, id="all-three"),
        pytest.param(Click("1234abcd", None, None, NOW), {"transaction_id": "1234abcd"}, id="transaction"),
        pytest.param(Click(None, "1234", "5678", NOW), {"offer_id": "1234", "aff_id": "5678"}, id="direct-link"),
        pytest.param(None, {}, id="no-click"),
    ],
)
def test_the_clicks_ids_are_sent_as_far_as_they_are_there(click: Click | None, sent: dict[str, str]) -> None:
    fields = fields_of(make_postback(click=click, conversion_type="offline_conv"))

    assert tuple(fields)[:9] == TWELVE_KEYS[:9]
    assert {key: fields.get(key) for key in list(fields)[9:]} == sent


def test_the_time_of_the_click_is_kept_and_not_sent() -> None:
    postback = make_postback()

    assert postback.clicked_at == CLICK.clicked_at.timestamp()
    assert str(int(CLICK.clicked_at.timestamp())) not in postback.payload
    assert make_postback(click=None).clicked_at is None


def test_an_unknown_address_is_sent_empty() -> None:
    """Without the key Katalys would take the caller's address, which is the shop's own server."""
    assert fields_of(make_postback(client_ip=None))["client_ip"] == ""


# --- values ---


@pytest.mark.parametrize(
    ("amount", "sent"),
    [
        pytest.param(Decimal("59.90"), "59.90", id="decimal-keeps-its-zeros"),
        pytest.param(Decimal("5.99E+1"), "59.9", id="decimal-with-an-exponent"),
        pytest.param(Decimal("1E+3"), "1000", id="large-exponent"),
        pytest.param(Decimal("1E-7"), "0.0000001", id="small-exponent"),
        pytest.param(Decimal("-0.00"), "0.00", id="minus-zero"),
        pytest.param(60, "60", id="int"),
        pytest.param("59.90", "59.90", id="string"),
        pytest.param("0059.90", "59.90", id="string-with-leading-zeros"),
        pytest.param(59.9, "59.9", id="float"),
        pytest.param(0.1, "0.1", id="float-that-binary-cannot-hold"),
        pytest.param(1e15 / 10, "100000000000000.0", id="large-float"),
        pytest.param(Decimal("123456789012345.123456789012345"), "123456789012345.123456789012345", id="long"),
    ],
)
def test_an_amount_is_written_plain_to_its_last_digit(amount: Any, sent: str) -> None:
    conversion = make_conversion(
        sale_amount=amount, tax_amount=amount, discounts=[Discount("A", amount)], line_items=[LineItem("A", amount)]
    )
    fields = fields_of(make_postback(conversion))

    assert fields["sale_amount"] == fields["tax_amount"] == sent
    assert fields["discount_1_amount"] == fields["line_item_1_price"] == sent


def test_the_shops_own_decimal_context_changes_no_digit() -> None:
    """A shop may round its own arithmetic as it likes."""
    with localcontext() as context:
        context.prec = 3
        context.traps[Inexact] = True
        fields = fields_of(make_postback(make_conversion(sale_amount=Decimal("1234.56"))))

    assert fields["sale_amount"] == "1234.56"


def has_few_digits(amount: Decimal) -> bool:
    exponent = amount.as_tuple().exponent
    return isinstance(exponent, int) and -exponent <= 15 and amount.adjusted() < 15


_amounts = st.decimals(min_value=0, max_value=10**15 - 1, allow_nan=False, places=None).filter(has_few_digits)


@fuzzed
@given(_amounts, st.integers(0, 10**15 - 1), st.integers(0, 10**9).map(lambda cents: cents / 100))
@example(Decimal("1E+3"), 0, 0.0)
@example(Decimal("999999999999999.999999999999999"), 1, 0.01)
def test_every_amount_reaches_the_payload_to_the_last_digit(sale: Decimal, tax: int, shipping: float) -> None:
    conversion = {"sale_amount": sale, "tax_amount": tax, "shipping_amount": shipping}

    fields = fields_of(make_postback(make_conversion(**conversion)))

    assert make_conversion(**conversion).problems() == []
    assert Decimal(fields["sale_amount"]) == sale
    assert fields["tax_amount"] == str(tax)
    assert float(fields["shipping_amount"]) == shipping
    assert all(set(fields[name]) <= set("0123456789.") for name in conversion)


@pytest.mark.parametrize("currency", ["EUR", "eur", "Eur"])
def test_a_currency_is_written_in_upper_case(currency: str) -> None:
    assert fields_of(make_postback(make_conversion(currency=currency)))["currency"] == "EUR"


@pytest.mark.parametrize(
    ("time", "sent"),
    [
        pytest.param(datetime(2026, 11, 22, 12, 30, tzinfo=timezone.utc), "@1795350600", id="utc"),
        pytest.param(
            datetime(2026, 11, 22, 14, 30, tzinfo=timezone(timedelta(hours=2))), "@1795350600", id="other-zone"
        ),
        pytest.param(datetime(2026, 11, 22, 12, 30, 0, 999_999, timezone.utc), "@1795350600", id="microseconds"),
    ],
)
def test_a_time_is_seconds_since_1970(time: datetime, sent: str) -> None:
    assert fields_of(make_postback(make_conversion(order_time=time)))["order_time"] == sent


@pytest.mark.parametrize("order_id", [1001, "1001"])
def test_an_order_id_may_be_a_number(order_id: Any) -> None:
    postback = make_postback(make_conversion(order_id))

    assert postback.order_id == fields_of(postback)["order_id"] == "1001"


# --- the hashed e-mail address ---


def test_the_address_is_replaced_by_a_keyed_hash() -> None:
    conversion = make_conversion(email_address="Ann@Example.com")

    hashed = fields_of(make_postback(conversion, email_key=SECRET))["email_address"]

    assert re.fullmatch("[0-9a-f]{64}", hashed)
    assert fields_of(make_postback(conversion, email_key=OLD_SECRET))["email_address"] != hashed


def test_a_customer_keeps_one_hash_whatever_the_case() -> None:
    """Katalys compares the address case-insensitively to recognise a customer."""
    hashes = {
        fields_of(make_postback(make_conversion(email_address=address), email_key=SECRET))["email_address"]
        for address in ("ann@example.com", "ANN@example.com", "Ann@Example.COM")
    }
    other = fields_of(make_postback(make_conversion(email_address="bob@example.com"), email_key=SECRET))

    assert len(hashes) == 1
    assert other["email_address"] not in hashes


@pytest.mark.parametrize("salt", ["katalys_wsgi.click.v1", "katalys_wsgi.visit.v1", "ann@example.com"])
def test_no_address_can_have_a_key_that_signs_sent(salt: str) -> None:
    """Cookies are signed with the HMAC of their salt: an order placed under that "address" would report it."""
    derived = hmac.new(SECRET.encode(), salt.encode(), hashlib.sha256).hexdigest()

    sent = fields_of(make_postback(make_conversion(email_address=salt), email_key=SECRET))["email_address"]

    assert sent == email_hash(salt, SECRET) != derived


def test_an_address_that_is_missing_is_not_hashed() -> None:
    assert fields_of(make_postback(make_conversion(email_address=""), email_key=SECRET))["email_address"] == ""


def test_an_updates_address_has_the_hash_of_the_conversions() -> None:
    update = OrderUpdate("1001", email_address="ANN@example.com")

    sent = fields_of(Postback.from_update(update, site_id=SITE_ID, email_key=SECRET))["email_address"]

    assert sent == fields_of(make_postback(email_key=SECRET))["email_address"]


# --- identity ---


def test_a_conversion_is_one_message_whatever_it_says() -> None:
    first, second = make_postback(), make_postback(make_conversion(sale_amount=Decimal("1.00")))

    assert first.key == second.key
    assert first.digest != second.digest


def test_the_same_data_is_the_same_digest() -> None:
    assert make_postback().digest == make_postback().digest
    assert make_postback() == make_postback()


@pytest.mark.parametrize("order_id", ["1001", ""], ids=["order", "without-an-id"])
def test_the_moment_it_was_recorded_makes_no_other_message(order_id: str) -> None:
    first, second = (make_postback(make_conversion(order_id), recorded_at=NOW + timedelta(days=day)) for day in (0, 1))

    assert first.payload != second.payload
    assert (first.key, first.digest) == (second.key, second.digest)
    assert first.digest == make_postback(make_conversion(order_id)).digest


def test_a_text_that_looks_like_a_time_counts() -> None:
    first, second = (make_postback(make_conversion(vid=f'x","order_time":"@{number}"')) for number in (1, 2))

    assert first.digest != second.digest


def test_the_time_of_an_update_counts() -> None:
    first, second = (make_update(order_time=NOW + timedelta(days=day)) for day in (0, 1))

    assert first.key != second.key


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: make_postback(make_conversion("1002")), id="order"),
        pytest.param(lambda: make_postback(site_id="KA-7654321"), id="site"),
        pytest.param(lambda: make_update(order_status="paid"), id="kind"),
        pytest.param(lambda: make_postback(make_conversion("1001:conversion")), id="colon"),
        pytest.param(lambda: make_postback(make_conversion("conversion:1001")), id="colon-before"),
    ],
)
def test_another_order_site_or_kind_is_another_message(other: Callable[[], Postback]) -> None:
    assert other().key != make_postback().key


def test_every_different_update_is_a_message_of_its_own() -> None:
    paid, shipped = make_update(order_status="paid"), make_update(order_status="shipped")

    assert paid.key != shipped.key
    assert paid.key == make_update(order_status="paid").key


@pytest.mark.parametrize("order_id", [None, "", "x" * 256], ids=["none", "empty", "too-long"])
def test_orders_without_a_usable_id_do_not_replace_one_another(order_id: Any) -> None:
    first = make_postback(make_conversion(order_id, email_address="ann@example.com"))
    second = make_postback(make_conversion(order_id, email_address="bob@example.com"))

    assert first.key != second.key


@pytest.mark.parametrize("bad", ["\ud800", "\x00"], ids=["lone-surrogate", "NUL"])
def test_an_id_that_databases_refuse_is_kept_readable(bad: str) -> None:
    first = make_postback(make_conversion(f"10{bad}01"))
    second = make_postback(make_conversion(f"10{bad}01", sale_amount=1))

    assert first.order_id == "10\ufffd01"
    assert first.key.isprintable()
    assert first.key != second.key
    assert fields_of(first)["order_id"] == f"10{bad}01"


def test_an_id_that_only_looks_like_it_is_one_order() -> None:
    first = make_postback(make_conversion("10\ufffd01"))

    assert first.key == make_postback(make_conversion("10\ufffd01", sale_amount=1)).key


def test_two_long_ids_with_one_beginning_are_two_messages() -> None:
    assert make_postback(make_conversion("x" * 300)).key != make_postback(make_conversion("x" * 301)).key


def test_a_key_has_a_length_that_databases_can_index() -> None:
    longest = make_postback(make_conversion("x" * 100_000), site_id="KA-" + "x" * 40)

    assert len(longest.key) <= 400


def test_it_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        make_postback().payload = "{}"  # type: ignore[misc]


def test_its_repr_shows_no_personal_data() -> None:
    shown = repr(make_postback())

    assert "1001" in shown
    assert all(value not in shown for value in ("ann@example.com", BUYER_IP, BUYER_AGENT))


# --- updates ---


def test_a_status_is_sent_as_offline_conv() -> None:
    """Katalys' knowledge base, "Order Status Reporting"; whatever type the conversions have."""
    update = make_update(order_status="refunded")

    assert (update.kind, update.order_id, update.clicked_at) == (Kind.UPDATE, "1001", None)
    assert list(fields_of(update).items()) == [
        ("type", "offline_conv"),
        ("site_id", SITE_ID),
        ("order_id", "1001"),
        ("order_status", "refunded"),
    ]


def test_further_fields_are_sent_and_absent_ones_are_not() -> None:
    update = make_update(
        email_address="new@example.com",
        sale_amount=Decimal("10.00"),
        subtotal_amount=8,
        discounts=["LATE"],
        currency="eur",
        line_items=[LineItem("A")],
    )

    assert fields_of(update) == {
        "type": "offline_conv",
        "site_id": SITE_ID,
        "order_id": "1001",
        "email_address": "new@example.com",
        "sale_amount": "10.00",
        "subtotal_amount": "8",
        "discount_1_code": "LATE",
        "currency": "EUR",
        "line_item_1_sku": "A",
        "line_item_1_qty": "1",
    }
    assert wire_problems(fields_of(update)) == []


def test_a_conversion_says_which_kind_it_is() -> None:
    assert make_postback().kind == Kind.CONVERSION


def test_a_kind_that_was_damaged_on_disk_is_an_update() -> None:
    """Nothing is credited by an update."""
    assert Kind("c\ufffdnversion") is Kind.UPDATE


def test_any_object_with_the_ids_of_a_click_will_do() -> None:
    """The message knows nothing of cookies and links."""

    @dataclass(frozen=True)
    class Imported:
        transaction_id: str | None = "T"
        offer_id: str | None = None
        aff_id: str | None = ""
        clicked_at: datetime = NOW

    postback = make_postback(click=Imported())

    assert list(fields_of(postback).items())[9:] == [("transaction_id", "T")]
    assert postback.clicked_at == NOW.timestamp()


# --- invalid data: written as it stands, for the operator to read and correct ---


@pytest.mark.parametrize(
    ("changes", "key", "written"),
    [
        pytest.param({"sale_amount": "12,50"}, "sale_amount", "12,50", id="comma"),
        pytest.param({"sale_amount": "-5"}, "sale_amount", "-5", id="negative"),
        pytest.param({"sale_amount": Decimal("NaN")}, "sale_amount", "NaN", id="not-a-number"),
        pytest.param({"sale_amount": float("inf")}, "sale_amount", "inf", id="infinite"),
        pytest.param({"sale_amount": 0.1 + 0.2}, "sale_amount", "0.300000000000000", id="float"),
        pytest.param({"sale_amount": None}, "sale_amount", "", id="missing"),
        pytest.param({"sale_amount": True}, "sale_amount", "True", id="boolean"),
        pytest.param({"sale_amount": Decimal("1E+1000000")}, "sale_amount", "1E+1000000", id="megabyte-of-zeros"),
        pytest.param({"email_address": None}, "email_address", "", id="no-address"),
        pytest.param({"email_address": ["a"]}, "email_address", "['a']", id="address-is-a-list"),
        pytest.param({"order_time": datetime(2026, 1, 1)}, "order_time", "@", id="naive-time"),  # noqa: DTZ001
        pytest.param({"order_time": "yesterday"}, "order_time", "yesterday", id="time-is-a-string"),
        pytest.param({"currency": "dollars"}, "currency", "DOLLARS", id="no-currency"),
        pytest.param({"order_status": "sent"}, "order_status", "sent", id="unknown-status"),
        pytest.param({"order_count": -1}, "order_count", "-1", id="negative-count"),
        pytest.param({"vid": "\ud800"}, "vid", "\ud800", id="lone-surrogate"),
    ],
)
def test_a_wrong_value_is_written_as_it_stands(changes: dict[str, Any], key: str, written: str) -> None:
    conversion = make_conversion(**changes)
    fields = fields_of(make_postback(conversion))

    assert conversion.problems()
    assert fields[key].startswith(written)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"discounts": 5}, id="discounts-is-a-number"),
        pytest.param({"discounts": "SPRING"}, id="discounts-is-a-string"),
        pytest.param({"discounts": [None, 5, object()]}, id="strange-coupons"),
        pytest.param({"discounts": [Discount("A", object())]}, id="strange-discount"),  # type: ignore[arg-type]
        pytest.param({"line_items": {"a": 1}}, id="items-are-a-dict"),
        pytest.param({"line_items": ["KETTLE-1", None]}, id="items-are-strings"),
        pytest.param({"line_items": [LineItem(None, "x", None, 5, 6, [7])]}, id="strange-item"),  # type: ignore[arg-type, list-item]
        pytest.param({"line_items": [LineItem("A", categories="Kitchen")]}, id="categories-is-a-string"),
        pytest.param({"order_id": ["1001"]}, id="order-id-is-a-list"),
        pytest.param({"order_id": "\ud800"}, id="order-id-is-lone-surrogate"),
        pytest.param({"billing_city": b"Bern"}, id="city-is-bytes"),
    ],
)
@pytest.mark.parametrize("email_key", [None, SECRET], ids=["plain", "hashed"])
def test_wrong_data_can_always_be_written(changes: dict[str, Any], email_key: str | None) -> None:
    conversion = make_conversion(**changes)
    postback = make_postback(conversion, email_key=email_key)

    assert conversion.problems()
    assert tuple(fields_of(postback))[:9] == TWELVE_KEYS[:9]
    assert {type(value) for value in fields_of(postback).values()} == {str}
    assert len(postback.digest) == 32
