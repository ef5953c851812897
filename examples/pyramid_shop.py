"""A Pyramid shop that reports its affiliates' sales to Katalys.

    python examples/pyramid_shop.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port.

In production the settings stand in the ini file that ``pserve`` reads: ``katalys.site_id``, ``katalys.secret_key``.
With ``pyramid_tm`` in ``pyramid.includes`` the sale is recorded when the order's transaction commits.
"""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import Any

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPSeeOther
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router

from katalys_wsgi import Conversion, LineItem

PRICE, SHIPPING, SPRING = Decimal("50.00"), Decimal("9.90"), Decimal("5.00")


def make_shop(_global_config: dict[str, str], **settings: Any) -> Router:
    """Make the shop; ``pserve`` calls this with the settings of its ini file."""
    with Configurator(settings=settings) as config:
        config.include("katalys_wsgi.pyramid")  # keeps the clicks of affiliates' links, adds request.katalys
        config.add_route("checkout", "/checkout", request_method="POST")
        config.add_view(checkout, route_name="checkout")
        return config.make_wsgi_app()


def checkout(request: Request) -> Response:
    """Sell teapots, and record the sale."""
    pieces, coupon = int(request.POST["pieces"]), request.POST["coupon"].strip().upper()
    discount = SPRING if coupon == "SPRING" else 0
    order_id = secrets.token_hex(4)  # your database's number
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
    return HTTPSeeOther(f"/thanks/{order_id}")


# The shop ends here. What follows serves it beside a sandbox, with a page before and one after the checkout.

if __name__ == "__main__":
    from sandboxed import sandboxed, serve

    with sandboxed() as settings:
        shop = make_shop({}, **{f"katalys.{name}": value for name, value in settings.items()})
        serve(shop, shop.registry["katalys_tracker"])
