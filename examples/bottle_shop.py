"""A Bottle shop that reports its affiliates' sales to Katalys.

    python examples/bottle_shop.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port.

In production the settings come from the environment: ``KATALYS_SITE_ID``, ``KATALYS_SECRET_KEY``, and
``make_shop(Tracker.from_environ())``.
"""

from __future__ import annotations

import secrets
from decimal import Decimal

from bottle import Bottle, redirect, request

from katalys_wsgi import Conversion, LineItem, Tracker, Visit
from katalys_wsgi.bottle import KatalysPlugin

PRICE, SHIPPING, SPRING = Decimal("50.00"), Decimal("9.90"), Decimal("5.00")


def make_shop(tracker: Tracker) -> Bottle:
    """Make the shop, with the plugin that keeps the clicks of affiliates' links and hands out visits."""
    shop = Bottle()
    shop.install(KatalysPlugin(tracker))
    shop.post("/checkout", callback=checkout)
    return shop


def checkout(katalys: Visit) -> None:
    """Sell teapots, and record the sale."""
    form = request.forms.decode()
    pieces, coupon = int(form["pieces"]), form["coupon"].strip().upper()
    discount = SPRING if coupon == "SPRING" else 0
    order_id = secrets.token_hex(4)  # your database's number
    katalys.record(
        Conversion(
            order_id=order_id,
            email_address=form["email"],
            sale_amount=pieces * PRICE - discount + SHIPPING,
            subtotal_amount=pieces * PRICE - discount,
            discounts=[coupon] if discount else [],
            line_items=[LineItem("POT-1", PRICE, pieces, title="Teapot")],
        )
    )
    redirect(f"/thanks/{order_id}", 303)


# The shop ends here. What follows serves it beside a sandbox, with a page before and one after the checkout.

if __name__ == "__main__":
    from sandboxed import sandboxed, serve

    with sandboxed():
        tracker = Tracker.from_environ()
        serve(make_shop(tracker), tracker)
