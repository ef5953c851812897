"""Listings: a table, CSV and JSON of what is in the outbox, without anybody's personal data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from katalys_wsgi import Discount, LineItem, OrderUpdate, Tracker
from katalys_wsgi.cli.listing import COLUMNS, FORMATS
from katalys_wsgi.operations import archive, forget

from ..support import BUYER_IP, LINK, Clock, make_conversion, make_environ

NOW = 1_800_000_000.0


@pytest.fixture
def shop(make_tracker: Callable[..., Tracker]) -> Tracker:
    """A tracker whose clock stands."""
    return make_tracker(clock=Clock(NOW))


def buy(tracker: Tracker, order_id: str = "1001", **changes: Any) -> None:
    tracker.visit(make_environ(LINK)).record(make_conversion(order_id, **changes))


def listing(tracker: Tracker, name: str) -> str:
    out = io.StringIO()
    FORMATS[name](archive(tracker.outbox).entries(), out)
    return out.getvalue()


def csv_of(tracker: Tracker) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(listing(tracker, "csv"))))


def test_the_table_shows_site_amounts_codes_and_ids(shop: Tracker) -> None:
    buy(shop, currency="EUR", discounts=["SPRING", Discount("VIP", Decimal(5))])

    assert listing(shop, "table") == (
        "2027-01-15 08:00:00 UTC  pending    conversion  1001  site_id=KA-1A2B3C4  sale_amount=59.90  "
        "subtotal_amount=50.00  currency=EUR  codes=SPRING VIP  transaction_id=1234abcd  offer_id=1234  aff_id=5678\n"
    )


def test_the_table_shows_what_an_update_changes(shop: Tracker) -> None:
    buy(shop)
    shop.record_update(OrderUpdate("1001", order_status="refunded", payment_status="chargeback"))

    assert listing(shop, "table").splitlines()[0] == (
        "2027-01-15 08:00:00 UTC  pending    update      1001  site_id=KA-1A2B3C4  order_status=refunded  "
        "other=payment_status=chargeback"
    )


def test_what_a_shopper_typed_does_not_drive_the_terminal(shop: Tracker) -> None:
    buy(shop, discounts=["\x1b[2J\nfake"])

    assert "codes=\\x1b[2J\\nfake" in listing(shop, "table")


def test_the_csv_has_a_header_and_a_line_for_each_entry(shop: Tracker) -> None:
    buy(shop, "1")
    buy(shop, "2", email_address="", line_items=[LineItem("KETTLE-1", Decimal(50))])
    shop.drain()
    newest, oldest = csv_of(shop)

    assert tuple(newest) == COLUMNS
    assert oldest == {
        "recorded": "2027-01-15T08:00:00+00:00", "finished": "2027-01-15T08:00:00+00:00", "state": "delivered",
        "kind": "conversion", "order_id": "1", "site_id": "KA-1A2B3C4", "sale_amount": "59.90",
        "subtotal_amount": "50.00", "currency": "", "codes": "SPRING", "transaction_id": "1234abcd",
        "offer_id": "1234", "aff_id": "5678", "order_status": "", "other": "order_time=@1800000000",
        "confirmed": "yes", "attempts": "1",
        "last_error": "",
    }  # fmt: skip
    assert (newest["state"], newest["last_error"]) == ("dead", "email_address: is missing")
    assert "line_item_1_sku=KETTLE-1" in newest["other"]


@pytest.mark.parametrize("code", ["=HYPERLINK(1)", "+1+1", "@SUM(A1)", "-cmd", "\tx"])
def test_no_spreadsheet_takes_a_coupon_for_a_formula(shop: Tracker, code: str) -> None:
    buy(shop, discounts=[code])

    assert csv_of(shop)[0]["codes"] == f"'{code}"


def test_a_negative_amount_stays_a_number(shop: Tracker) -> None:
    buy(shop)
    shop.record_update(OrderUpdate("1001", sale_amount=Decimal("-5.00")))

    assert csv_of(shop)[0]["sale_amount"] == "-5.00"


def test_the_json_has_the_fields_of_each_message(shop: Tracker) -> None:
    buy(shop)
    (row,) = json.loads(listing(shop, "json"))

    assert (row["order_id"], row["state"], row["created_at"]) == ("1001", "pending", "2027-01-15T08:00:00+00:00")
    assert row["fields"]["sale_amount"] == "59.90"
    assert row["fields"]["discount_1_code"] == "SPRING"


@pytest.mark.parametrize("name", FORMATS)
def test_a_forgotten_order_says_nothing_but_that(shop: Tracker, name: str) -> None:
    buy(shop)
    forget(archive(shop.outbox), order_id="1001")

    printed = listing(shop, name)
    assert "forgotten" in printed
    assert "59.90" not in printed


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("delivered", [False, True])
def test_no_listing_holds_personal_data(shop: Tracker, name: str, delivered: bool) -> None:
    buy(shop, vid="visitor-7", billing_city="Berlin", billing_postal="10115", shipping_state="BE")
    if delivered:
        shop.drain()

    printed = listing(shop, name)
    assert "59.90" in printed
    assert [value for value in ("ann@example.com", BUYER_IP, "Mozilla", "visitor-7", "10115") if value in printed] == []
