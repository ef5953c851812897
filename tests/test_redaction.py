"""What may be kept of an answer: no personal data, in whatever spelling it is repeated."""

from __future__ import annotations

import json
from urllib.parse import quote, quote_plus, urlencode

import pytest

from katalys_wsgi.delivery.redaction import LONGEST_ERROR, scrubbed

from .support import BUYER_AGENT, BUYER_IP, make_postback

PAYLOAD = make_postback().payload

#: In no error, in no encoding.
PERSONAL = ("ann@example.com", "ann%40example.com", BUYER_IP, BUYER_AGENT, quote_plus(BUYER_AGENT), "X11")


@pytest.mark.parametrize(
    "repeated",
    [
        pytest.param(PAYLOAD, id="json"),
        pytest.param(json.dumps(json.loads(PAYLOAD), indent=2), id="spaced json"),
        pytest.param(urlencode(json.loads(PAYLOAD)), id="form"),
        pytest.param(urlencode(json.loads(PAYLOAD), quote_via=quote), id="percent-encoded"),
        pytest.param(f"no such buyer: ANN@EXAMPLE.COM from {BUYER_IP} with {BUYER_AGENT}", id="words"),
        pytest.param(f"<b>{quote('ann@example.com')}</b>", id="html"),
        pytest.param("ann&#64;example.com", id="character reference"),
        pytest.param("another-address@example.com", id="an address that was not sent"),
    ],
)
def test_what_an_answer_repeats_is_taken_out(repeated: str) -> None:
    kept = scrubbed(repeated, PAYLOAD)

    assert [value for value in (*PERSONAL, "@") if value.lower() in kept.lower()] == []


def test_what_names_no_buyer_is_kept() -> None:
    assert scrubbed("order_id: is odd\r\n  sale_amount: 59.90", PAYLOAD) == "order_id: is odd sale_amount: 59.90"


def test_what_is_kept_is_short() -> None:
    assert scrubbed("x" * 5000, PAYLOAD) == "x" * LONGEST_ERROR


@pytest.mark.parametrize("payload", ["", "{", "[]", "5"])
def test_nothing_is_kept_when_it_is_unknown_what_was_sent(payload: str) -> None:
    assert scrubbed("whatever it says", payload) == ""


def test_a_message_without_personal_fields_hides_nothing() -> None:
    assert scrubbed("order 1001 is unknown", '{"order_id": "1001"}') == "order 1001 is unknown"
