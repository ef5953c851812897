"""A Pyramid shop that reports its affiliates' sales to Katalys.

    python examples/pyramid_shop.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port.

In production the settings stand in the ini file that ``pserve`` reads: ``katalys.site_id``, ``katalys.secret_key``.
With ``pyramid_tm`` in ``pyramid.includes`` the sale is recorded when the order's transaction commits.
"""

from __future__ import annotations

import os
import secrets
from contextlib import closing, suppress
from decimal import Decimal
from html import escape
from tempfile import TemporaryDirectory
from typing import Any
from wsgiref.simple_server import make_server

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPSeeOther
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router
from pyramid.view import view_config

from katalys_wsgi import Conversion, LineItem
from katalys_wsgi.sandbox import Sandbox

PRICE, SHIPPING, SPRING = Decimal("50.00"), Decimal("9.90"), Decimal("5.00")

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Teapots</title>
<style>body {{ font: 1.1em/1.6 sans-serif; max-width: 30em; margin: 3em auto }} label {{ display: block }}</style>
{}
</html>"""

FORM = """<h1>A teapot, ${price}</h1>
<form method="post" action="{checkout}">
  <label>E-mail <input type="email" name="email" value="ann@example.com" required></label>
  <label>Pieces <input type="number" name="pieces" value="1" min="1"></label>
  <label>Coupon <input name="coupon" value="SPRING"></label>
  <button>Buy</button>
</form>"""

THANKS = """<h1>Thank you</h1>
<p>Your order has the number {order_id}. <a href="/">Another teapot?</a></p>"""


def make_shop(_global_config: dict[str, str], **settings: Any) -> Router:
    """Make the shop; ``pserve`` calls this with the settings of its ini file."""
    with Configurator(settings=settings) as config:
        config.include("katalys_wsgi.pyramid")
        config.add_route("product", "/")
        config.add_route("checkout", "/checkout")
        config.add_route("thanks", "/thanks/{order_id}")
        config.scan(__name__)
        return config.make_wsgi_app()


@view_config(route_name="product")
def product(request: Request) -> Response:
    return Response(PAGE.format(FORM.format(price=PRICE, checkout=request.route_path("checkout"))))


@view_config(route_name="checkout", request_method="POST")
def checkout(request: Request) -> Response:
    order_id = secrets.token_hex(4)  # your database's number
    pieces, coupon = int(request.POST["pieces"]), request.POST["coupon"].strip().upper()
    discount = SPRING if coupon == "SPRING" else 0
    request.katalys.record(
        Conversion(
            order_id=order_id,
            email_address=request.POST["email"],
            sale_amount=pieces * PRICE - discount + SHIPPING,
            subtotal_amount=pieces * PRICE - discount,
            discounts=[coupon] if discount else [],
            line_items=[LineItem("POT-1", PRICE, pieces, title="Teapot")],
        )
    )
    return HTTPSeeOther(request.route_path("thanks", order_id=order_id))


@view_config(route_name="thanks")
def thanks(request: Request) -> Response:
    return Response(PAGE.format(THANKS.format(order_id=escape(request.matchdict["order_id"]))))


def main() -> None:
    """Serve the shop on loopback, beside a sandbox that plays Katalys."""
    port = int(os.environ.get("PORT", "8080"))
    with Sandbox() as sandbox, TemporaryDirectory() as folder:
        settings = {
            "katalys.site_id": "KA-1A2B3C4",
            "katalys.secret_key": secrets.token_urlsafe(48),
            "katalys.endpoint": sandbox.endpoint,
            "katalys.outbox": f"{folder}/outbox.db",
        }
        shop = make_shop({}, **settings)
        link = "utm_source=Katalys&transaction_id=1234abcd&offer_id=1234&publisher_id=5678"
        print(f"The affiliate's link:  http://127.0.0.1:{port}/?{link}")
        print(f"What Katalys received: {sandbox.url}")
        with closing(shop.registry["katalys_tracker"]), suppress(KeyboardInterrupt):
            make_server("127.0.0.1", port, shop).serve_forever()


if __name__ == "__main__":
    main()
