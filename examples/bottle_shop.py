"""A Bottle shop that reports its affiliates' sales to Katalys.

    python examples/bottle_shop.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port.

In production the settings come from the environment: ``KATALYS_SITE_ID``, ``KATALYS_SECRET_KEY``, and
``make_shop(Tracker.from_environ())``.
"""

from __future__ import annotations

import os
import secrets
from contextlib import closing
from decimal import Decimal
from tempfile import TemporaryDirectory

from bottle import Bottle, redirect, request, run, template

from katalys_wsgi import Conversion, LineItem, Tracker, Visit
from katalys_wsgi.bottle import KatalysPlugin
from katalys_wsgi.sandbox import Sandbox

PRICE, SHIPPING, SPRING = Decimal("50.00"), Decimal("9.90"), Decimal("5.00")

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Teapots</title>
<style>body { font: 1.1em/1.6 sans-serif; max-width: 30em; margin: 3em auto } label { display: block }</style>
% if defined("order_id"):
  <h1>Thank you</h1>
  <p>Your order has the number {{order_id}}. <a href="/">Another teapot?</a></p>
% else:
  <h1>A teapot, ${{price}}</h1>
  <form method="post" action="/checkout">
    <label>E-mail <input type="email" name="email" value="ann@example.com" required></label>
    <label>Pieces <input type="number" name="pieces" value="1" min="1"></label>
    <label>Coupon <input name="coupon" value="SPRING"></label>
    <button>Buy</button>
  </form>
% end
</html>"""


def make_shop(tracker: Tracker) -> Bottle:
    """Make the shop, with the plugin that keeps clicks and hands out visits."""
    shop = Bottle()
    shop.install(KatalysPlugin(tracker))
    shop.get("/", callback=product)
    shop.post("/checkout", callback=checkout)
    shop.get("/thanks/<order_id>", callback=thanks)
    return shop


def product() -> str:
    return template(PAGE, price=PRICE)


def checkout(katalys: Visit) -> None:
    order_id = secrets.token_hex(4)  # your database's number
    form = request.forms.decode()
    pieces, coupon = int(form["pieces"]), form["coupon"].strip().upper()
    discount = SPRING if coupon == "SPRING" else 0
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


def thanks(order_id: str) -> str:
    return template(PAGE, order_id=order_id)


def main() -> None:
    """Serve the shop on loopback, beside a sandbox that plays Katalys."""
    port = int(os.environ.get("PORT", "8080"))
    with Sandbox() as sandbox, TemporaryDirectory() as folder:
        tracker = Tracker(
            site_id="KA-1A2B3C4",
            secret_key=secrets.token_urlsafe(48),
            endpoint=sandbox.endpoint,
            outbox=f"{folder}/outbox.db",
        )
        link = "utm_source=Katalys&transaction_id=1234abcd&offer_id=1234&publisher_id=5678"
        print(f"The affiliate's link:  http://127.0.0.1:{port}/?{link}")
        print(f"What Katalys received: {sandbox.url}")
        with closing(tracker):
            run(make_shop(tracker), port=port, quiet=True)


if __name__ == "__main__":
    main()
