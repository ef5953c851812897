"""A shop that is paid through a gateway: the sale is recorded when the gateway says that the money is there.

    python examples/payment_webhook.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port.

The gateway's webhook has no cookie, nor the shopper's address; its cross-site POST return has no cookie either,
because browsers withhold a SameSite=Lax cookie there. So the visit is stored with the order at checkout, as a token,
and resumed when the payment arrives, from whichever of the two comes first. Both may: a second record of the same
order is a duplicate, which Katalys never sees.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Any

import requests
from flask import Blueprint, Flask, abort, redirect, render_template_string, request
from werkzeug.wrappers import Response

from katalys_wsgi import Conversion
from katalys_wsgi.flask import Katalys
from katalys_wsgi.sandbox import Sandbox

GATEWAY_KEY = b"agreed upon with the gateway"  # in production: from the environment

SHOP_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Teapots</title>
{% if order %}
  <h1>Thank you</h1>
  <p>Your order {{ order.number }} is {{ "paid" if order.is_paid else "waiting for the payment" }}.</p>
{% else %}
  <h1>A teapot, $59.90</h1>
  <form method="post" action="{{ url_for('shop.checkout') }}">
    <label>E-mail <input type="email" name="email" value="ann@example.com" required></label>
    <button>Buy</button>
  </form>
{% endif %}
</html>"""


@dataclass
class Order:
    """A row of the shop's database."""

    number: str
    email: str
    visit: str  # who came, through which click: about 200 characters, in a text column
    is_paid: bool = False


katalys = Katalys()
shop = Blueprint("shop", __name__)
orders: dict[str, Order] = {}


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
    return render_template_string(SHOP_PAGE)


@shop.post("/checkout")
def checkout() -> Response:
    """Store the visit with the order, then leave for the gateway."""
    order = Order(secrets.token_hex(4), request.form["email"], visit=katalys.visit.token())
    orders[order.number] = order
    return redirect(f"{gateway_address()}/pay/{order.number}", 303)


@shop.post("/webhook")
def webhook() -> str:
    """The gateway's server says that the money is there."""
    mark_as_paid(signed_order())
    return "thank you"


@shop.post("/return")
def come_back() -> str:
    """The gateway sends the shopper back, with the same signed message; often before the webhook arrives."""
    order = signed_order()
    mark_as_paid(order)
    return render_template_string(SHOP_PAGE, order=order)


def mark_as_paid(order: Order) -> None:
    """Record the sale, with the click, the address and the browser of the shopper who placed the order."""
    order.is_paid = True
    katalys.tracker.resume(order.visit).record(
        Conversion(
            order_id=order.number,
            email_address=order.email,
            sale_amount=Decimal("59.90"),
            subtotal_amount=Decimal("50.00"),
            order_status="paid",
        )
    )


def signed_order() -> Order:
    """The order of a message that only the gateway can have signed; anybody can call these two addresses."""
    number = request.form.get("order", "")
    if number not in orders or not hmac.compare_digest(signature(number), request.form.get("signature", "")):
        abort(403)
    return orders[number]


def signature(number: str) -> str:
    return hmac.new(GATEWAY_KEY, number.encode(), hashlib.sha256).hexdigest()


# --- what follows plays the gateway, and is no part of the shop ----------------------------------------------

gateway = Blueprint("gateway", __name__)

GATEWAY_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>The gateway</title>
<h1>Pay $59.90?</h1>
<form method="post"><button>Pay</button></form>
</html>"""

BACK_TO_THE_SHOP = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>The gateway</title>
<form method="post" action="{{ shop }}/return">
  {% for name, value in message.items() %}<input type="hidden" name="{{ name }}" value="{{ value }}">{% endfor %}
  <button>Paid. Back to the shop</button>
</form>
</html>"""


def gateway_address() -> str:
    """Another site than 127.0.0.1 in a browser's eyes, so that the return is cross-site as it is in real life."""
    return request.host_url.rstrip("/").replace("127.0.0.1", "localhost")


@gateway.route("/pay/<number>", methods=["GET", "POST"])
def pay(number: str) -> str:
    """Ask for the money; then call the shop's webhook, and send the shopper back."""
    if request.method == "GET":
        return GATEWAY_PAGE
    address = request.host_url.rstrip("/").replace("localhost", "127.0.0.1")
    message = {"order": number, "signature": signature(number)}
    requests.post(f"{address}/webhook", data=message, timeout=10).raise_for_status()
    return render_template_string(BACK_TO_THE_SHOP, shop=address, message=message)


def main() -> None:
    """Serve shop and gateway on loopback, beside a sandbox that plays Katalys."""
    port = int(os.environ.get("PORT", "8080"))
    with Sandbox() as sandbox, TemporaryDirectory() as folder:
        app = create_app(
            KATALYS_SITE_ID="KA-1A2B3C4",
            KATALYS_SECRET_KEY=secrets.token_urlsafe(48),
            KATALYS_ENDPOINT=sandbox.endpoint,
            KATALYS_OUTBOX=f"{folder}/outbox.db",
        )
        app.register_blueprint(gateway)
        link = "utm_source=Katalys&transaction_id=1234abcd&offer_id=1234&publisher_id=5678"
        print(f"The affiliate's link:  http://127.0.0.1:{port}/?{link}")
        print(f"What Katalys received: {sandbox.url}")
        with closing(app.extensions["katalys"]):
            app.run(port=port)


if __name__ == "__main__":
    main()
