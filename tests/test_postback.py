"""The wire format, held against the specification's own examples and the table of Katalys' keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import datetime, timedelta, timezone
from decimal import Decimal, Inexact, localcontext
from typing import Any
from urllib.parse import parse_qsl

import pytest

from katalys_wsgi import Click, Conversion, Discount, LineItem, OrderUpdate
from katalys_wsgi.conversion.postback import Kind, Postback
from katalys_wsgi.conversion.wire import WIRES, wire_problems

from .support import BUYER_AGENT, BUYER_IP, OLD_SECRET, SECRET, SITE_ID, TWELVE_KEYS, make_conversion

CLICKED_AT = datetime(2026, 11, 22, 12, 0, 0, tzinfo=timezone.utc)
CLICK = Click("1234abcd", "1234", "5678", CLICKED_AT)

# --- Katalys' Server-to-Server Implementation, copied as it stands -----------------------------------------------

JSON_EXAMPLE = """
{
    "type": "force_convert",
    "site_id": "{katalys_tracking_id}",
    "order_id": "{your_crm_order_id}",
    "email_address": "{email_address}",
    "sale_amount": "{sale_amount}",
    "subtotal_amount": "{subtotal_amount}",
    "client_ip": "{client_ip_address}",
    "user_agent": "{client_user_agent}",
    "discount_1_code": "{coupon_code}",
    "transaction_id": "{katalys_transaction_id}",
    "offer_id": "{katalys_offer_id}",
    "aff_id": "{katalys_aff_id}"
}
"""
FORM_EXAMPLE = """
type=force_convert
  &site_id={katalys_tracking_id}
  &order_id={your_crm_order_id}
  &email_address={email_address}
  &sale_amount={sale_amount}
  &subtotal_amount={subtotal_amount}
  &client_ip={client_ip_address}
  &user_agent={client_user_agent}
  &discount_1_code={coupon_code}
  &transaction_id={katalys_transaction_id}
  &offer_id={katalys_offer_id}
  &aff_id={katalys_aff_id}
"""
GET_EXAMPLE = """
GET https://db.revoffers.com/v2/_tr_offline?
  type=force_convert
  &site_id={katalys_tracking_id}
  &order_id={your_crm_order_id}
  &email_address={email_address}
  &sale_amount={sale_amount}
  &subtotal_amount={subtotal_amount}
  &client_ip={client_ip_address}
  &user_agent={client_user_agent}
  &discount_1_code={coupon_code}
  &transaction_id={katalys_transaction_id}
  &offer_id={katalys_offer_id}
  &aff_id={katalys_aff_id}
"""

PLAIN_VALUES = {
    "katalys_tracking_id": SITE_ID,
    "your_crm_order_id": "1001",
    "email_address": "ann@example.com",
    "sale_amount": "59.90",
    "subtotal_amount": "50.00",
    "client_ip_address": "203.0.113.7",
    "client_user_agent": "Mozilla/5.0 (X11; Linux x86_64) Test/1.0",
    "coupon_code": "SPRING",
    "katalys_transaction_id": "1234abcd",
    "katalys_offer_id": "1234",
    "katalys_aff_id": "5678",
}
ENCODED_VALUES = PLAIN_VALUES | {
    "email_address": "ann%40example.com",
    "client_user_agent": "Mozilla%2F5.0+%28X11%3B+Linux+x86_64%29+Test%2F1.0",
}


def filled(example: str, values: dict[str, str]) -> bytes:
    """The example without its white space, which "is to make the request easy to read", and with our values."""
    compact = re.sub(r"\s", "", example)
    return re.sub(r"{(\w+)}", lambda variable: values[variable[1]], compact).encode()


def make_postback(conversion: Conversion | None = None, **changes: Any) -> Postback:
    options: dict[str, Any] = {
        "site_id": SITE_ID,
        "conversion_type": "force_convert",
        "click": CLICK,
        "client_ip": BUYER_IP,
        "user_agent": BUYER_AGENT,
    }
    return Postback.from_conversion(conversion or make_conversion(), **{**options, **changes})


def make_update(order_id: str = "1001", **changes: Any) -> Postback:
    return Postback.from_update(OrderUpdate(order_id, **changes), site_id=SITE_ID)


def fields_of(postback: Postback) -> dict[str, str]:
    return json.loads(postback.payload)


class TestTheSpecificationsExamples:
    def test_the_json_body_is_the_examples(self):
        wire = WIRES["json"]

        assert wire.encode(make_postback().payload) == filled(JSON_EXAMPLE, PLAIN_VALUES)
        assert (wire.method, wire.content_type) == ("POST", "application/json")

    def test_the_form_body_is_the_examples(self):
        wire = WIRES["form"]

        assert wire.encode(make_postback().payload) == filled(FORM_EXAMPLE, ENCODED_VALUES)
        assert (wire.method, wire.content_type) == ("POST", "application/x-www-form-urlencoded")

    def test_the_query_of_a_get_is_the_examples(self):
        wire = WIRES["get"]
        address = filled(GET_EXAMPLE, ENCODED_VALUES)

        assert b"GEThttps://db.revoffers.com/v2/_tr_offline?" + wire.encode(make_postback().payload) == address
        assert (wire.method, wire.content_type) == ("GET", None)

    def test_only_a_post_is_confirmed(self):
        """The specification of GET: "This type of request will always return a 204 response"."""
        assert {name: wire.confirms for name, wire in WIRES.items()} == {"json": True, "form": True, "get": False}

    @pytest.mark.parametrize("wire", WIRES)
    def test_every_wire_is_ascii_and_loses_no_character(self, wire):
        odd = 'Grüße, 世界 😀 "quoted" \\ & = + % # \x00\r\n'
        encoded = WIRES[wire].encode(make_postback(user_agent=odd).payload)
        decoded = json.loads(encoded) if wire == "json" else dict(parse_qsl(encoded.decode("ascii")))

        assert encoded.isascii()
        assert decoded["user_agent"] == odd
        assert not re.search(rb"[\x00-\x20\x7f]", encoded.replace(b" ", b"") if wire == "json" else encoded)


class TestKeys:
    def test_the_twelve_come_first_and_in_the_specifications_order(self):
        fields = fields_of(make_postback(make_conversion(currency="EUR", tax_amount=1, discounts=["A", "B"])))

        assert tuple(fields)[:12] == TWELVE_KEYS

    def test_every_key_that_katalys_knows_can_be_sent(self):
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

        assert {key: value for key, value in fields.items() if key not in TWELVE_KEYS} == further
        assert everything.problems() == []
        assert wire_problems(fields) == []

    def test_every_value_is_a_text(self):
        """Katalys' knowledge base: objects, lists and null are ignored."""
        fields = fields_of(make_postback(make_conversion(1001, order_count=2, line_items=[LineItem("A", 1)])))

        assert {type(value) for value in fields.values()} == {str}

    def test_fields_that_were_not_given_are_not_sent(self):
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
    def test_coupons_count_from_1_and_the_first_is_always_there(self, discounts, sent):
        fields = fields_of(make_postback(make_conversion(discounts=discounts)))

        assert {key: value for key, value in fields.items() if key.startswith("discount_")} == sent

    @pytest.mark.parametrize(
        ("click", "sent"),
        [
            pytest.param(CLICK, {"transaction_id": "1234abcd", "offer_id": "1234", "aff_id": "5678"}, id="all three"),
            pytest.param(Click("1234abcd", None, None, CLICKED_AT), {"transaction_id": "1234abcd"}, id="transaction"),
            pytest.param(
                Click(None, "1234", "5678", CLICKED_AT), {"offer_id": "1234", "aff_id": "5678"}, id="direct link"
            ),
            pytest.param(None, {}, id="no click"),
        ],
    )
    def test_the_clicks_ids_are_sent_as_far_as_they_are_there(self, click, sent):
        fields = fields_of(make_postback(click=click, conversion_type="offline_conv"))

        assert tuple(fields)[:9] == TWELVE_KEYS[:9]
        assert {key: fields.get(key) for key in list(fields)[9:]} == sent

    def test_the_time_of_the_click_is_kept_and_not_sent(self):
        postback = make_postback()

        assert postback.clicked_at == CLICKED_AT.timestamp()
        assert str(int(CLICKED_AT.timestamp())) not in postback.payload
        assert make_postback(click=None).clicked_at is None

    def test_an_address_that_cannot_be_told_is_sent_empty(self):
        """Without the key Katalys would take the caller's address, which is the shop's own server."""
        assert fields_of(make_postback(client_ip=None))["client_ip"] == ""


class TestValues:
    @pytest.mark.parametrize(
        ("amount", "sent"),
        [
            pytest.param(Decimal("59.90"), "59.90", id="decimal keeps its zeros"),
            pytest.param(Decimal("5.99E+1"), "59.9", id="decimal with an exponent"),
            pytest.param(Decimal("1E+3"), "1000", id="large exponent"),
            pytest.param(Decimal("1E-7"), "0.0000001", id="small exponent"),
            pytest.param(Decimal("-0.00"), "0.00", id="minus zero"),
            pytest.param(60, "60", id="int"),
            pytest.param("59.90", "59.90", id="text"),
            pytest.param("0059.90", "59.90", id="text with leading zeros"),
            pytest.param(59.9, "59.9", id="float"),
            pytest.param(0.1, "0.1", id="float that binary cannot hold"),
            pytest.param(1e15 / 10, "100000000000000.0", id="large float"),
            pytest.param(Decimal("123456789012345.123456789012345"), "123456789012345.123456789012345", id="long"),
        ],
    )
    def test_an_amount_is_written_plain_to_its_last_digit(self, amount, sent):
        conversion = make_conversion(
            sale_amount=amount, tax_amount=amount, discounts=[Discount("A", amount)], line_items=[LineItem("A", amount)]
        )
        fields = fields_of(make_postback(conversion))

        assert fields["sale_amount"] == fields["tax_amount"] == sent
        assert fields["discount_1_amount"] == fields["line_item_1_price"] == sent

    def test_the_shops_own_decimal_context_changes_no_digit(self):
        """A shop may round its own arithmetic as it likes."""
        with localcontext() as context:
            context.prec = 3
            context.traps[Inexact] = True
            fields = fields_of(make_postback(make_conversion(sale_amount=Decimal("1234.56"))))

        assert fields["sale_amount"] == "1234.56"

    @pytest.mark.parametrize("currency", ["EUR", "eur", "Eur"])
    def test_a_currency_is_written_in_upper_case(self, currency):
        assert fields_of(make_postback(make_conversion(currency=currency)))["currency"] == "EUR"

    @pytest.mark.parametrize(
        ("time", "sent"),
        [
            pytest.param(datetime(2026, 11, 22, 12, 30, tzinfo=timezone.utc), "@1795350600", id="utc"),
            pytest.param(
                datetime(2026, 11, 22, 14, 30, tzinfo=timezone(timedelta(hours=2))), "@1795350600", id="other zone"
            ),
            pytest.param(datetime(2026, 11, 22, 12, 30, 0, 999_999, timezone.utc), "@1795350600", id="microseconds"),
        ],
    )
    def test_a_time_is_seconds_since_1970(self, time, sent):
        assert fields_of(make_postback(make_conversion(order_time=time)))["order_time"] == sent

    @pytest.mark.parametrize("order_id", [1001, "1001"])
    def test_an_order_id_may_be_a_number(self, order_id):
        postback = make_postback(make_conversion(order_id))

        assert postback.order_id == fields_of(postback)["order_id"] == "1001"


class TestHashedEmail:
    def test_the_address_is_replaced_by_a_keyed_hash(self):
        conversion = make_conversion(email_address="Ann@Example.com")

        hashed = fields_of(make_postback(conversion, email_key=SECRET))["email_address"]

        assert re.fullmatch("[0-9a-f]{64}", hashed)
        assert fields_of(make_postback(conversion, email_key=OLD_SECRET))["email_address"] != hashed

    def test_a_customer_keeps_one_hash_whatever_the_case(self):
        """Katalys compares the address case-insensitively to tell customers apart."""
        hashes = {
            fields_of(make_postback(make_conversion(email_address=address), email_key=SECRET))["email_address"]
            for address in ("ann@example.com", "ANN@example.com", "Ann@Example.COM")
        }
        other = fields_of(make_postback(make_conversion(email_address="bob@example.com"), email_key=SECRET))

        assert len(hashes) == 1
        assert other["email_address"] not in hashes

    def test_an_address_that_is_missing_is_not_hashed(self):
        assert fields_of(make_postback(make_conversion(email_address=""), email_key=SECRET))["email_address"] == ""

    def test_an_updates_address_has_the_hash_of_the_conversions(self):
        update = OrderUpdate("1001", email_address="ANN@example.com")

        sent = fields_of(Postback.from_update(update, site_id=SITE_ID, email_key=SECRET))["email_address"]

        assert sent == fields_of(make_postback(email_key=SECRET))["email_address"]


class TestIdentity:
    def test_a_conversion_is_one_message_whatever_it_says(self):
        first, second = make_postback(), make_postback(make_conversion(sale_amount=Decimal("1.00")))

        assert first.key == second.key
        assert first.digest != second.digest

    def test_the_same_data_is_the_same_digest(self):
        assert make_postback().digest == make_postback().digest
        assert make_postback() == make_postback()

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param(lambda: make_postback(make_conversion("1002")), id="order"),
            pytest.param(lambda: make_postback(site_id="KA-7654321"), id="site"),
            pytest.param(lambda: make_update(order_status="paid"), id="kind"),
            pytest.param(lambda: make_postback(make_conversion("1001:conversion")), id="colon"),
            pytest.param(lambda: make_postback(make_conversion("conversion:1001")), id="colon before"),
        ],
    )
    def test_another_order_site_or_kind_is_another_message(self, other: Callable[[], Postback]):
        assert other().key != make_postback().key

    def test_every_different_update_is_a_message_of_its_own(self):
        paid, shipped = make_update(order_status="paid"), make_update(order_status="shipped")

        assert paid.key != shipped.key
        assert paid.key == make_update(order_status="paid").key

    @pytest.mark.parametrize("order_id", [None, "", "x" * 256], ids=["none", "empty", "too long"])
    def test_orders_without_a_usable_id_do_not_replace_one_another(self, order_id):
        first = make_postback(make_conversion(order_id, email_address="ann@example.com"))
        second = make_postback(make_conversion(order_id, email_address="bob@example.com"))

        assert first.key != second.key

    @pytest.mark.parametrize("bad", ["\ud800", "\x00"], ids=["half a character", "NUL"])
    def test_an_id_that_no_database_takes_is_kept_readable(self, bad):
        first = make_postback(make_conversion(f"10{bad}01"))
        second = make_postback(make_conversion(f"10{bad}01", sale_amount=1))

        assert first.order_id == "10\ufffd01"
        assert first.key.isprintable()
        assert first.key != second.key
        assert fields_of(first)["order_id"] == f"10{bad}01"

    def test_an_id_that_only_looks_like_it_is_one_order(self):
        first = make_postback(make_conversion("10\ufffd01"))

        assert first.key == make_postback(make_conversion("10\ufffd01", sale_amount=1)).key

    def test_two_long_ids_with_one_beginning_are_two_messages(self):
        assert make_postback(make_conversion("x" * 300)).key != make_postback(make_conversion("x" * 301)).key

    def test_a_key_has_a_length_that_databases_can_index(self):
        longest = make_postback(make_conversion("x" * 100_000), site_id="KA-" + "x" * 40)

        assert len(longest.key) <= 400

    def test_it_cannot_be_changed(self):
        with pytest.raises(FrozenInstanceError):
            make_postback().payload = "{}"  # type: ignore[misc]

    def test_its_repr_shows_no_personal_data(self):
        shown = repr(make_postback())

        assert "1001" in shown
        assert all(value not in shown for value in ("ann@example.com", BUYER_IP, BUYER_AGENT))


class TestUpdates:
    def test_a_status_is_sent_as_offline_conv(self):
        """Katalys' knowledge base, "Order Status Reporting"; whatever type the conversions have."""
        update = make_update(order_status="refunded")

        assert (update.kind, update.order_id, update.clicked_at) == (Kind.UPDATE, "1001", None)
        assert list(fields_of(update).items()) == [
            ("type", "offline_conv"),
            ("site_id", SITE_ID),
            ("order_id", "1001"),
            ("order_status", "refunded"),
        ]

    def test_further_fields_are_sent_and_absent_ones_are_not(self):
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

    def test_a_conversion_says_which_kind_it_is(self):
        assert make_postback().kind == Kind.CONVERSION


class TestInvalidData:
    """What is wrong is written as it stands: a dead letter is there for a person to read and correct."""

    @pytest.mark.parametrize(
        ("changes", "key", "written"),
        [
            pytest.param({"sale_amount": "12,50"}, "sale_amount", "12,50", id="comma"),
            pytest.param({"sale_amount": "-5"}, "sale_amount", "-5", id="negative"),
            pytest.param({"sale_amount": Decimal("NaN")}, "sale_amount", "NaN", id="no number"),
            pytest.param({"sale_amount": float("inf")}, "sale_amount", "inf", id="infinite"),
            pytest.param({"sale_amount": 0.1 + 0.2}, "sale_amount", "0.300000000000000", id="float"),
            pytest.param({"sale_amount": None}, "sale_amount", "", id="missing"),
            pytest.param({"sale_amount": True}, "sale_amount", "True", id="boolean"),
            pytest.param({"sale_amount": Decimal("1E+1000000")}, "sale_amount", "1E+1000000", id="megabyte of zeros"),
            pytest.param({"email_address": None}, "email_address", "", id="no address"),
            pytest.param({"email_address": ["a"]}, "email_address", "['a']", id="address is a list"),
            pytest.param({"order_time": datetime(2026, 1, 1)}, "order_time", "@", id="naive time"),  # noqa: DTZ001
            pytest.param({"order_time": "yesterday"}, "order_time", "yesterday", id="time is a text"),
            pytest.param({"currency": "dollars"}, "currency", "DOLLARS", id="no currency"),
            pytest.param({"order_status": "sent"}, "order_status", "sent", id="unknown status"),
            pytest.param({"order_count": -1}, "order_count", "-1", id="negative count"),
            pytest.param({"vid": "\ud800"}, "vid", "\ud800", id="half a character"),
        ],
    )
    def test_a_faulty_value_is_written_as_it_stands(self, changes, key, written):
        conversion = make_conversion(**changes)
        fields = fields_of(make_postback(conversion))

        assert conversion.problems()
        assert fields[key].startswith(written)

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"discounts": 5}, id="discounts is a number"),
            pytest.param({"discounts": None}, id="discounts is nothing"),
            pytest.param({"discounts": "SPRING"}, id="discounts is a text"),
            pytest.param({"discounts": [None, 5, object()]}, id="strange coupons"),
            pytest.param({"discounts": [Discount("A", object())]}, id="strange discount"),
            pytest.param({"line_items": {"a": 1}}, id="items are a dict"),
            pytest.param({"line_items": ["KETTLE-1", None]}, id="items are texts"),
            pytest.param({"line_items": [LineItem(None, "x", None, 5, 6, [7])]}, id="strange item"),
            pytest.param({"line_items": [LineItem("A", categories="Kitchen")]}, id="categories is a text"),
            pytest.param({"order_id": ["1001"]}, id="order id is a list"),
            pytest.param({"order_id": "\ud800"}, id="order id is half a character"),
            pytest.param({"billing_city": b"Bern"}, id="city is bytes"),
        ],
    )
    @pytest.mark.parametrize("email_key", [None, SECRET], ids=["plain", "hashed"])
    def test_faulty_data_can_always_be_written(self, changes, email_key):
        conversion = make_conversion(**changes)
        postback = make_postback(conversion, email_key=email_key)

        assert conversion.problems()
        assert tuple(fields_of(postback))[:9] == TWELVE_KEYS[:9]
        assert {type(value) for value in fields_of(postback).values()} == {str}
        assert len(postback.digest) == 32


def sound(**changes: object) -> dict[str, object]:
    """A message without faults, with changes; a change to None takes the key out."""
    fields = {**fields_of(make_postback()), **changes}
    return {key: value for key, value in fields.items() if value is not None}


class TestWireProblems:
    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param(sound(), id="conversion"),
            pytest.param(sound(type="offline_conv"), id="offline_conv"),
            pytest.param(sound(transaction_id=None), id="pair"),
            pytest.param(sound(offer_id=None, aff_id=None), id="transaction"),
            pytest.param(sound(discount_1_code="", user_agent="", client_ip=""), id="empty where that is allowed"),
            pytest.param(sound(client_ip="2001:db8::1"), id="ipv6"),
            pytest.param(sound(sale_amount=59.9, subtotal_amount=50), id="numbers"),
            pytest.param(sound(order_time="@1795350600", currency="EUR", order_count="2"), id="optional ones"),
            pytest.param(sound(anything_else="is Katalys' business"), id="unknown key"),
            pytest.param(fields_of(make_update(order_status="paid")), id="update"),
            pytest.param(fields_of(make_update(vid="v-1")), id="update of another field"),
        ],
    )
    def test_a_sound_message_has_none(self, fields):
        assert wire_problems(fields) == []

    @pytest.mark.parametrize(
        ("fields", "at_fault"),
        [
            *(
                pytest.param(sound(**{key: None}), [key], id=f"no {key}")
                for key in TWELVE_KEYS
                if key not in ("transaction_id", "offer_id", "aff_id")
            ),
            *(
                pytest.param(sound(**{key: ""}), [key], id=f"empty {key}")
                for key in ("type", "site_id", "order_id", "email_address", "sale_amount", "subtotal_amount")
            ),
            pytest.param(sound(transaction_id=None, offer_id=None), ["transaction_id"], id="no offer"),
            pytest.param(sound(transaction_id=None, aff_id=None), ["transaction_id"], id="no affiliate"),
            pytest.param(sound(transaction_id="", offer_id="", aff_id="5678"), ["transaction_id"], id="empty ids"),
            pytest.param(sound(type="convert"), ["type"], id="unknown type"),
            pytest.param(sound(type=["force_convert"]), ["type", "type"], id="type is a list"),
            pytest.param(sound(sale_amount="59,90"), ["sale_amount"], id="comma"),
            pytest.param(sound(sale_amount="$59.90"), ["sale_amount"], id="currency sign"),
            pytest.param(sound(sale_amount="1e3"), ["sale_amount"], id="exponent"),
            pytest.param(sound(sale_amount="-1"), ["sale_amount"], id="negative"),
            pytest.param(sound(sale_amount=float("nan")), ["sale_amount"], id="not a number"),
            pytest.param(sound(sale_amount="٣"), ["sale_amount"], id="other digits"),
            pytest.param(sound(tax_amount="x", shipping_amount="y"), ["tax_amount", "shipping_amount"], id="two"),
            pytest.param(sound(discount_12_amount="x"), ["discount_12_amount"], id="discount"),
            pytest.param(sound(line_item_2_price="x"), ["line_item_2_price"], id="price"),
            pytest.param(sound(line_item_2_qty="x"), ["line_item_2_qty"], id="quantity"),
            pytest.param(sound(client_ip="localhost"), ["client_ip"], id="host name"),
            pytest.param(sound(client_ip="203.0.113.7:80"), ["client_ip"], id="port"),
            pytest.param(sound(order_count="0"), ["order_count"], id="count from 1"),
            pytest.param(sound(order_status="sent"), ["order_status"], id="status"),
            pytest.param(sound(order_time="2026-11-22"), ["order_time"], id="date"),
            pytest.param(sound(currency="euro"), ["currency"], id="currency"),
            pytest.param(sound(vid={"a": "b"}), ["vid"], id="object"),
            pytest.param(sound(vid=["a"]), ["vid"], id="list"),
            pytest.param(sound(vid=True), ["vid"], id="boolean"),
            pytest.param({"type": "offline_conv", "site_id": SITE_ID, "order_id": "1"}, ["order_status"], id="nothing"),
            pytest.param({"type": "offline_conv", "vid": "1"}, ["site_id", "order_id"], id="update of no order"),
            pytest.param(
                {},
                [
                    "type", "site_id", "order_id", "email_address", "sale_amount", "subtotal_amount", "client_ip",
                    "user_agent", "discount_1_code", "transaction_id",
                ],
                id="everything",
            ),
        ],
    )  # fmt: skip
    def test_every_fault_is_named_by_its_key(self, fields, at_fault):
        assert [problem.partition(":")[0] for problem in wire_problems(fields)] == at_fault

    def test_null_is_a_fault(self):
        assert [problem.partition(":")[0] for problem in wire_problems({**sound(), "vid": None})] == ["vid"]

    def test_what_a_valid_conversion_becomes_has_none(self):
        """The two sets of rules, the shop's and the wire's, agree."""
        for amount in (0, "0.00", 10**14, Decimal("0.000001")):
            conversion = make_conversion(sale_amount=amount, subtotal_amount=amount)

            assert conversion.problems() == wire_problems(fields_of(make_postback(conversion))) == []
