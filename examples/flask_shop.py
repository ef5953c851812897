"""A Flask shop that reports its affiliates' sales to Katalys.

    python examples/flask_shop.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port.

In production the settings come from the environment: ``FLASK_KATALYS_SITE_ID``, ``FLASK_KATALYS_SECRET_KEY``, and
``gunicorn 'flask_shop:create_app()'``.
"""

from __future__ import annotations

import os
import secrets
from contextlib import closing
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Any

from flask import Blueprint, Flask, redirect, render_template_string, request, url_for
from werkzeug.wrappers import Response

from katalys_wsgi import Conversion, LineItem
from katalys_wsgi.flask import Katalys
from katalys_wsgi.sandbox import Sandbox

PRICE, SHIPPING, SPRING = Decimal("50.00"), Decimal("9.90"), Decimal("5.00")

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Teapots</title>
<style>body { font: 1.1em/1.6 sans-serif; max-width: 30em; margin: 3em auto } label { display: block }</style>
{% if order_id %}
  <h1>Thank you</h1>
  <p>Your order has the number {{ order_id }}. <a href="{{ url_for('shop.product') }}">Another teapot?</a></p>
{% else %}
  <h1>A teapot, ${{ price }}</h1>
  <form method="post" action="{{ url_for('shop.checkout') }}">
    <label>E-mail <input type="email" name="email" value="ann@example.com" required></label>
    <label>Pieces <input type="number" name="pieces" value="1" min="1"></label>
    <label>Coupon <input name="coupon" value="SPRING"></label>
    <button>Buy</button>
  </form>
{% endif %}
</html>"""

katalys = Katalys()
shop = Blueprint("shop", __name__)


def create_app(**config: Any) -> Flask:
    """Make the shop; ``config`` goes before the environment."""
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.update(config)
    katalys.init_app(app)
    app.register_blueprint(shop)
    return app


@shop.get("/")
def product() -> str:
    return render_template_string(PAGE, price=PRICE)


@shop.post("/checkout")
def checkout() -> Response:
    order_id = secrets.token_hex(4)  # your database's number
    pieces, coupon = int(request.form["pieces"]), request.form["coupon"].strip().upper()
    discount = SPRING if coupon == "SPRING" else 0
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
    return redirect(url_for("shop.thanks", order_id=order_id), 303)


@shop.get("/thanks/<order_id>")
def thanks(order_id: str) -> str:
    return render_template_string(PAGE, order_id=order_id)


def main() -> None:
    """Serve the shop on loopback, beside a sandbox that plays Katalys."""
    port = int(os.environ.get("PORT", "8080"))
    with Sandbox() as sandbox, TemporaryDirectory() as folder:
        app = create_app(
            KATALYS_SITE_ID="KA-1A2B3C4",
            KATALYS_SECRET_KEY=secrets.token_urlsafe(48),
            KATALYS_ENDPOINT=sandbox.endpoint,
            KATALYS_OUTBOX=f"{folder}/outbox.db",
        )
        link = "utm_source=Katalys&transaction_id=1234abcd&offer_id=1234&publisher_id=5678"
        print(f"The affiliate's link:  http://127.0.0.1:{port}/?{link}")
        print(f"What Katalys received: {sandbox.url}")
        with closing(app.extensions["katalys"]):
            app.run(port=port)


if __name__ == "__main__":
    main()
