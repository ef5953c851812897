"""The wire: the three encodings, held against the specification's own examples, and Katalys' rules of a message."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

import pytest

from katalys_wsgi.conversion.order import ORDER_STATUSES, Discount, LineItem
from katalys_wsgi.conversion.wire import BUSINESS, LONGEST_QUERY, PERSONAL, WIRES, business_part, wire_problems

from .support import CLICK, SITE_ID, TWELVE_KEYS, fields_of, make_conversion, make_postback, make_update

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


# --- the specification's examples ---


def test_the_json_body_is_the_examples() -> None:
    wire = WIRES["json"]

    assert wire.encode(make_postback().payload) == filled(JSON_EXAMPLE, PLAIN_VALUES)
    assert (wire.method, wire.content_type) == ("POST", "application/json")


def test_the_form_body_is_the_examples() -> None:
    wire = WIRES["form"]

    assert wire.encode(make_postback().payload) == filled(FORM_EXAMPLE, ENCODED_VALUES)
    assert (wire.method, wire.content_type) == ("POST", "application/x-www-form-urlencoded")


def test_the_query_of_a_get_is_the_examples() -> None:
    wire = WIRES["get"]
    address = filled(GET_EXAMPLE, ENCODED_VALUES)

    assert b"GEThttps://db.revoffers.com/v2/_tr_offline?" + wire.encode(make_postback().payload) == address
    assert (wire.method, wire.content_type) == ("GET", None)


def test_only_a_post_is_confirmed() -> None:
    """The specification of GET: "This type of request will always return a 204 response"."""
    assert {name: wire.confirms for name, wire in WIRES.items()} == {"json": True, "form": True, "get": False}


@pytest.mark.parametrize("wire", WIRES)
def test_every_wire_is_ascii_and_loses_no_character(wire: str) -> None:
    odd = 'Grüße, 世界 😀 "quoted" \\ & = + % # \x00\r\n'
    encoded = WIRES[wire].encode(make_postback(user_agent=odd).payload)
    decoded = json.loads(encoded) if wire == "json" else dict(parse_qsl(encoded.decode("ascii")))

    assert encoded.isascii()
    assert decoded["user_agent"] == odd
    assert not re.search(rb"[\x00-\x20\x7f]", encoded.replace(b" ", b"") if wire == "json" else encoded)


# --- a GET that would be too long ---


def sent_over_get(**changes: Any) -> dict[str, str]:
    query = WIRES["get"].encode(make_postback(make_conversion(currency="EUR", **changes)).payload)
    assert len(query) <= LONGEST_QUERY
    return dict(parse_qsl(query.decode("ascii"), keep_blank_values=True))


def items(number: int, length: int) -> list[LineItem]:
    return [LineItem(f"SKU-{count}", "1.00", title="x" * length, categories=["c"]) for count in range(1, number + 1)]


def test_the_last_line_items_are_left_out_whole() -> None:
    """Servers refuse an address of more than 8 KiB; half an item would be another item."""
    order = make_conversion(currency="EUR", vid="v", line_items=items(100, 200))
    whole = fields_of(make_postback(order))

    sent = sent_over_get(vid="v", line_items=items(100, 200))

    kept = [name for name in sent if name.endswith("_sku")]
    assert 20 < len(kept) < 30
    assert list(sent.items()) == list(whole.items())[: len(sent)]
    assert list(whole)[len(sent)] == f"line_item_{len(kept) + 1}_sku"


def test_then_the_other_optional_fields_from_the_end() -> None:
    sent = sent_over_get(
        vid="v" * 4000, customer_group="g" * 4000, discounts=["A", Discount("B", 1)], line_items=items(1, 10)
    )

    assert list(sent) == [*TWELVE_KEYS, "discount_2_code", "discount_2_amount", "currency", "customer_group"]


def test_coupons_too_but_for_the_first_code() -> None:
    sent = sent_over_get(discounts=[Discount("A" * 4000, 1), *(Discount("B" * 4000, 1) for _ in range(3))])

    assert list(sent) == [*TWELVE_KEYS, "discount_1_amount", "currency"]


def test_a_field_that_was_corrected_later_outlives_the_items() -> None:
    fields = {**fields_of(make_postback(make_conversion(line_items=items(60, 200)))), "order_status": "paid"}

    query = dict(parse_qsl(WIRES["get"].encode(json.dumps(fields)).decode()))

    assert query["order_status"] == "paid"
    assert "line_item_1_sku" in query
    assert "line_item_60_sku" not in query


def test_what_is_required_is_sent_whatever_its_length() -> None:
    postback = make_postback(
        make_conversion(currency="EUR", vid="v", order_time=CLICK.clicked_at), user_agent="x" * 9000
    )

    query = WIRES["get"].encode(postback.payload).decode("ascii")

    assert list(dict(parse_qsl(query))) == [*TWELVE_KEYS, "currency"]


@pytest.mark.parametrize("wire", ["json", "form"])
def test_a_post_leaves_nothing_out(wire: str) -> None:
    payload = make_postback(make_conversion(line_items=items(100, 200))).payload

    assert b"SKU-100" in WIRES[wire].encode(payload)


# --- the rules of a message ---


def sound(**changes: object) -> dict[str, object]:
    """A message without problems, with changes; a change to None takes the key out."""
    fields = {**fields_of(make_postback()), **changes}
    return {key: value for key, value in fields.items() if value is not None}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(sound(), id="conversion"),
        pytest.param(sound(type="offline_conv"), id="offline_conv"),
        pytest.param(sound(transaction_id=None), id="pair"),
        pytest.param(sound(offer_id=None, aff_id=None), id="transaction"),
        pytest.param(sound(discount_1_code="", user_agent="", client_ip=""), id="empty-where-that-is-allowed"),
        pytest.param(sound(client_ip="2001:db8::1"), id="ipv6"),
        pytest.param(sound(sale_amount=59.9, subtotal_amount=50), id="numbers"),
        pytest.param(sound(order_time="@1795350600", currency="EUR", order_count="2"), id="optional-ones"),
        *(pytest.param(sound(order_status=status), id=status) for status in ORDER_STATUSES),
        pytest.param(sound(anything_else="is Katalys' business"), id="unknown-key"),
        pytest.param(fields_of(make_update(order_status="paid")), id="update"),
        pytest.param(fields_of(make_update(vid="v-1")), id="update-of-another-field"),
    ],
)
def test_a_sound_message_has_no_problems(fields: dict[str, object]) -> None:
    assert wire_problems(fields) == []


@pytest.mark.parametrize(
    ("fields", "wrong"),
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
        pytest.param(sound(transaction_id=None, offer_id=None), ["transaction_id"], id="no-offer"),
        pytest.param(sound(transaction_id=None, aff_id=None), ["transaction_id"], id="no-affiliate"),
        pytest.param(sound(transaction_id="", offer_id="", aff_id="5678"), ["transaction_id"], id="empty-ids"),
        pytest.param(sound(type="convert"), ["type"], id="unknown-type"),
        pytest.param(sound(type=["force_convert"]), ["type", "type"], id="type-is-a-list"),
        pytest.param(sound(sale_amount="59,90"), ["sale_amount"], id="comma"),
        pytest.param(sound(sale_amount="$59.90"), ["sale_amount"], id="currency-sign"),
        pytest.param(sound(sale_amount="1e3"), ["sale_amount"], id="exponent"),
        pytest.param(sound(sale_amount="-1"), ["sale_amount"], id="negative"),
        pytest.param(sound(sale_amount=float("nan")), ["sale_amount"], id="not-a-number"),
        pytest.param(sound(sale_amount="٣"), ["sale_amount"], id="other-digits"),
        pytest.param(sound(tax_amount="x", shipping_amount="y"), ["tax_amount", "shipping_amount"], id="two"),
        pytest.param(sound(discount_12_amount="x"), ["discount_12_amount"], id="discount"),
        pytest.param(sound(line_item_2_price="x"), ["line_item_2_price"], id="price"),
        pytest.param(sound(line_item_2_qty="x"), ["line_item_2_qty"], id="quantity"),
        pytest.param(sound(client_ip="localhost"), ["client_ip"], id="host-name"),
        pytest.param(sound(client_ip="203.0.113.7:80"), ["client_ip"], id="port"),
        pytest.param(sound(order_count="0"), ["order_count"], id="count-from-1"),
        pytest.param(sound(order_status="sent"), ["order_status"], id="status"),
        pytest.param(sound(order_time="2026-11-22"), ["order_time"], id="date"),
        pytest.param(sound(currency="euro"), ["currency"], id="currency"),
        pytest.param(sound(currency="eur"), ["currency"], id="currency-in-lower-case"),
        pytest.param(sound(sale_amount="9" * 31), ["sale_amount"], id="31-digits"),
        pytest.param(sound(vid={"a": "b"}), ["vid"], id="object"),
        pytest.param(sound(vid=["a"]), ["vid"], id="list"),
        pytest.param(sound(vid=True), ["vid"], id="boolean"),
        pytest.param({"type": "offline_conv", "site_id": SITE_ID, "order_id": "1"}, ["order_status"], id="nothing"),
        pytest.param({"type": "offline_conv", "vid": "1"}, ["site_id", "order_id"], id="update-of-no-order"),
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
def test_everything_wrong_is_named_by_its_key(fields: dict[str, object], wrong: list[str]) -> None:
    assert [problem.partition(":")[0] for problem in wire_problems(fields)] == wrong


def test_null_is_a_problem() -> None:
    assert [problem.partition(":")[0] for problem in wire_problems({**sound(), "vid": None})] == ["vid"]


def test_the_message_of_a_valid_conversion_has_no_problems() -> None:
    """The two sets of rules, the shop's and the wire's, agree."""
    for amount in (0, "0.00", 10**14, Decimal("0.000001")):
        conversion = make_conversion(sale_amount=amount, subtotal_amount=amount)

        assert conversion.problems() == wire_problems(fields_of(make_postback(conversion))) == []


# --- what is kept after delivery ---


def test_only_what_was_sold_and_who_is_credited_is_kept() -> None:
    """Nothing of the buyer, and no field that somebody adds tomorrow."""
    items = [LineItem("SKU-1", "10.00", 2, title="Ann's mug", variation="red", categories=["mugs"])]
    whole = make_postback(make_conversion(
        discounts=[Discount("SPRING", "5.00"), "AUTUMN"], currency="EUR", tax_amount="1.00", shipping_amount="2.00",
        order_time=CLICK.clicked_at, order_status="paid", payment_status="captured", action_type="online-sale",
        order_alias="a", order_count=2, customer_group="ann's family", vid="v", line_items=items,
        billing_city="Bern", billing_state="BE", billing_postal="3000",
        shipping_city="Bern", shipping_state="BE", shipping_postal="3000",
    ))  # fmt: skip
    kept = json.loads(business_part(whole.payload))

    assert kept == {
        "type": "force_convert", "site_id": SITE_ID, "order_id": "1001", "sale_amount": "59.90",
        "subtotal_amount": "50.00", "transaction_id": "1234abcd", "offer_id": "1234", "aff_id": "5678",
        "discount_1_code": "SPRING", "discount_1_amount": "5.00", "discount_2_code": "AUTUMN", "currency": "EUR",
        "tax_amount": "1.00", "shipping_amount": "2.00", "order_time": "@1795348800", "order_status": "paid",
        "payment_status": "captured", "action_type": "online-sale",
        "line_item_1_sku": "SKU-1", "line_item_1_price": "10.00", "line_item_1_qty": "2",
    }  # fmt: skip
    assert [name for name in fields_of(whole) if name in kept] == list(kept)
    assert not set(PERSONAL) & set(kept)


@pytest.mark.parametrize("payload", ["garbage", "[]", "null", "", '{"email_address":"a', '"ann@example.com"'])
def test_of_a_message_that_cannot_be_read_nothing_is_kept(payload: str) -> None:
    assert business_part(payload) == "{}"


def test_business_fields_name_nothing_personal() -> None:
    assert not BUSINESS & {*PERSONAL, "order_alias", "customer_group", "billing_city", "shipping_postal"}
