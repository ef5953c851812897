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

import hmac
import secrets
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from flask import Blueprint, Flask, abort, current_app, redirect, request
from werkzeug.wrappers import Response

from katalys_wsgi import Conversion
from katalys_wsgi.flask import Katalys


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


@shop.post("/checkout")
def checkout() -> Response:
    """Store the visit with the order, then leave for the gateway."""
    order = Order(secrets.token_hex(4), request.form["email"], visit=katalys.visit.token())
    orders[order.number] = order
    return redirect(f"{current_app.config['GATEWAY_URL']}/pay/{order.number}", 303)


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
    return f"Thank you. Your order {order.number} is paid."


def mark_as_paid(order: Order) -> None:
    """Record the sale, with the click, the address and the browser of the shopper who placed the order."""
    order.is_paid = True
    katalys.visit.resume(order.visit).record(
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
    number, signature = request.form.get("order", ""), request.form.get("signature", "")
    expected = hmac.digest(current_app.config["GATEWAY_KEY"].encode(), number.encode(), "sha256").hex()
    if number not in orders or not hmac.compare_digest(signature.encode(), expected.encode()):
        abort(403)
    return orders[number]


# The shop ends here. What follows serves it beside a sandbox and a gateway, with a page before the checkout.

if __name__ == "__main__":
    from gateway import GATEWAY_URL, with_gateway
    from sandboxed import sandboxed, serve

    with sandboxed():
        key = secrets.token_urlsafe()
        app = create_app(GATEWAY_URL=GATEWAY_URL, GATEWAY_KEY=key)
        serve(with_gateway(app, key), app.extensions["katalys"])
