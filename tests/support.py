"""What many tests say: a site, a secret, the specification's link, an order, an environ."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from wsgiref.util import setup_testing_defaults

from katalys_wsgi import Conversion

SITE_ID = "KA-1A2B3C4"
SECRET = "kf83jf9s0d8fj3kd93jd8s7g6h5j4k3l2"
OLD_SECRET = "q0w9e8r7t6y5u4i3o2p1a0s9d8f7g6h5j"

#: The query of the specification's own example.
LINK = "utm_source=Katalys&transaction_id=1234abcd&offer_id=1234&publisher_id=5678"

#: The keys of the specification's three request examples, in their order.
TWELVE_KEYS = (
    "type", "site_id", "order_id", "email_address", "sale_amount", "subtotal_amount", "client_ip", "user_agent",
    "discount_1_code", "transaction_id", "offer_id", "aff_id",
)  # fmt: skip

BUYER_IP = "203.0.113.7"
BUYER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) Test/1.0"


def make_conversion(order_id: str = "1001", **changes: Any) -> Conversion:
    """The order that tests buy."""
    fields: dict[str, Any] = {
        "order_id": order_id,
        "email_address": "ann@example.com",
        "sale_amount": Decimal("59.90"),
        "subtotal_amount": Decimal("50.00"),
        "discounts": ["SPRING"],
    }
    return Conversion(**{**fields, **changes})


def make_environ(query: str = "", *, cookie: str | None = None, **changes: Any) -> dict[str, Any]:
    """A WSGI environ of the buyer's browser; ``cookie`` is a whole Cookie header."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ.update(QUERY_STRING=query, REMOTE_ADDR=BUYER_IP, HTTP_USER_AGENT=BUYER_AGENT)
    if cookie is not None:
        environ["HTTP_COOKIE"] = cookie
    environ.update(changes)
    return environ


def cookie_of(headers: list[tuple[str, str]]) -> str | None:
    """The ``name=value`` that a response sets, ready to be a Cookie header; None when it sets none.

    More than one Set-Cookie of ours is a fault and fails the test.
    """
    values = [value for name, value in headers if name.lower() == "set-cookie" and value.startswith("katalys_click=")]
    assert len(values) <= 1, values
    return values[0].partition(";")[0] if values else None
