"""A plain WSGI shop, without any framework, that reports its affiliates' sales to Katalys.

    python examples/wsgi_shop.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port.

In production the settings come from the environment: ``KATALYS_SITE_ID``, ``KATALYS_SECRET_KEY``, and
``make_shop(Tracker.from_environ())``.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import closing, suppress
from decimal import Decimal
from html import escape
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from wsgiref.simple_server import make_server

from webob import Request, Response
from webob.exc import HTTPNotFound, HTTPSeeOther

from katalys_wsgi import ClickMiddleware, Conversion, LineItem, Tracker
from katalys_wsgi.sandbox import Sandbox

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PRICE, SHIPPING, SPRING = Decimal("50.00"), Decimal("9.90"), Decimal("5.00")

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Teapots</title>
<style>body {{ font: 1.1em/1.6 sans-serif; max-width: 30em; margin: 3em auto }} label {{ display: block }}</style>
{}
</html>"""

FORM = """<h1>A teapot, ${price}</h1>
<form method="post" action="/checkout">
  <label>E-mail <input type="email" name="email" value="ann@example.com" required></label>
  <label>Pieces <input type="number" name="pieces" value="1" min="1"></label>
  <label>Coupon <input name="coupon" value="SPRING"></label>
  <button>Buy</button>
</form>"""

THANKS = """<h1>Thank you</h1>
<p>Your order has the number {order_id}. <a href="/">Another teapot?</a></p>"""


def make_shop(tracker: Tracker) -> WSGIApplication:
    """Make the shop, inside the middleware that keeps the clicks."""

    def shop(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return respond(Request(environ), tracker)(environ, start_response)

    return ClickMiddleware(shop, tracker)


def respond(request: Request, tracker: Tracker) -> Response:
    match request.method, request.path_info.split("/")[1:]:
        case "GET", [""]:
            return Response(PAGE.format(FORM.format(price=PRICE)))
        case "POST", ["checkout"]:
            return checkout(request, tracker)
        case "GET", ["thanks", order_id]:
            return Response(PAGE.format(THANKS.format(order_id=escape(order_id))))
        case _:
            return HTTPNotFound()


def checkout(request: Request, tracker: Tracker) -> Response:
    order_id = secrets.token_hex(4)  # your database's number
    pieces, coupon = int(request.POST["pieces"]), request.POST["coupon"].strip().upper()
    discount = SPRING if coupon == "SPRING" else 0
    tracker.visit(request).record(
        Conversion(
            order_id=order_id,
            email_address=request.POST["email"],
            sale_amount=pieces * PRICE - discount + SHIPPING,
            subtotal_amount=pieces * PRICE - discount,
            discounts=[coupon] if discount else [],
            line_items=[LineItem("POT-1", PRICE, pieces, title="Teapot")],
        )
    )
    return HTTPSeeOther(location=f"/thanks/{order_id}")


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
        with closing(tracker), suppress(KeyboardInterrupt):
            make_server("127.0.0.1", port, make_shop(tracker)).serve_forever()


if __name__ == "__main__":
    main()
