"""A Flask shop that reports its affiliates' sales to Katalys.

    python examples/flask_shop.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port.

In production the settings come from the environment: ``FLASK_KATALYS_SITE_ID``, ``FLASK_KATALYS_SECRET_KEY``, and
``gunicorn 'flask_shop:create_app()'``.
"""

from __future__ import annotations

import secrets
from decimal import Decimal

from flask import Blueprint, Flask, redirect, request
from werkzeug.wrappers import Response

from katalys_wsgi import Conversion, LineItem
from katalys_wsgi.flask import Katalys

PRICE, SHIPPING, SPRING = Decimal("50.00"), Decimal("9.90"), Decimal("5.00")

katalys = Katalys()
shop = Blueprint("shop", __name__)


def create_app() -> Flask:
    """Make the shop, around which ``katalys`` keeps the clicks of affiliates' links."""
    app = Flask(__name__)
    app.config.from_prefixed_env()
    katalys.init_app(app)
    app.register_blueprint(shop)
    return app


@shop.post("/checkout")
def checkout() -> Response:
    """Sell teapots, and record the sale."""
    pieces, coupon = int(request.form["pieces"]), request.form["coupon"].strip().upper()
    discount = SPRING if coupon == "SPRING" else 0
    order_id = secrets.token_hex(4)  # your database's number
    katalys.visit.record(
        Conversion(
            order_id=order_id,
            email_address=request.form["email"],
            sale_amount=pieces * PRICE - discount + SHIPPING,
            subtotal_amount=pieces * PRICE - discount,
            discounts=[coupon] if discount else [],
            line_items=[LineItem("POT-1", PRICE, pieces, title="Teapot")],
        )
    )
    return redirect(f"/thanks/{order_id}", 303)


# The shop ends here. What follows serves it beside a sandbox, with a page before and one after the checkout.

if __name__ == "__main__":
    from sandboxed import sandboxed, serve

    with sandboxed():
        app = create_app()
        serve(app, app.extensions["katalys"])
