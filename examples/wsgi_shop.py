"""A plain WSGI shop, without any framework, that reports its affiliates' sales to Katalys.

    python examples/wsgi_shop.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port.

In production the settings come from the environment: ``KATALYS_SITE_ID``, ``KATALYS_SECRET_KEY``, and
``make_shop(Tracker.from_environ())``.
"""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from webob import Request, Response
from webob.dec import wsgify
from webob.exc import HTTPNotFound, HTTPSeeOther

from katalys_wsgi import ClickMiddleware, Conversion, LineItem, Tracker

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

PRICE, SHIPPING, SPRING = Decimal("50.00"), Decimal("9.90"), Decimal("5.00")


def make_shop(tracker: Tracker) -> WSGIApplication:
    """Make the shop, inside the middleware that keeps the clicks of affiliates' links."""

    @wsgify
    def shop(request: Request) -> Response:
        if (request.method, request.path_info) == ("POST", "/checkout"):
            return checkout(request, tracker)
        return HTTPNotFound()

    return ClickMiddleware(shop, tracker)


def checkout(request: Request, tracker: Tracker) -> Response:
    """Sell teapots, and record the sale."""
    form = dict(parse_qsl(request.text, keep_blank_values=True))
    pieces, coupon = int(form["pieces"]), form["coupon"].strip().upper()
    discount = SPRING if coupon == "SPRING" else 0
    order_id = secrets.token_hex(4)  # your database's number
    tracker.visit(request).record(
        Conversion(
            order_id=order_id,
            email_address=form["email"],
            sale_amount=pieces * PRICE - discount + SHIPPING,
            subtotal_amount=pieces * PRICE - discount,
            discounts=[coupon] if discount else [],
            line_items=[LineItem("POT-1", PRICE, pieces, title="Teapot")],
        )
    )
    return HTTPSeeOther(location=f"/thanks/{order_id}")


# The shop ends here. What follows serves it beside a sandbox, with a page before and one after the checkout.

if __name__ == "__main__":
    from sandboxed import sandboxed, serve

    with sandboxed():
        tracker = Tracker.from_environ()
        serve(make_shop(tracker), tracker)
