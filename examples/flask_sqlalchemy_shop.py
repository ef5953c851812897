"""A Flask shop that keeps the order and its conversion in one transaction, with Flask-SQLAlchemy.

    python examples/flask_sqlalchemy_shop.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port. The database is a SQLite file here.

In production it is one for many hosts, such as ``postgresql+psycopg://shop@db/shop``, in ``SQLALCHEMY_DATABASE_URI``
and in ``KATALYS_OUTBOX``. A commit keeps both, a rollback neither, and a host that dies in between loses nothing.
"""

from __future__ import annotations

import os
import secrets
from contextlib import closing
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Any

from flask import Blueprint, Flask, redirect, render_template_string, request, url_for
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from werkzeug.wrappers import Response

from katalys_wsgi import Conversion, LineItem
from katalys_wsgi.flask import Katalys
from katalys_wsgi.outbox.sqlalchemy import outbox_table
from katalys_wsgi.sandbox import Sandbox

PRICE, SHIPPING, SPRING = Decimal("50.00"), Decimal("9.90"), Decimal("5.00")

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Teapots</title>
<style>body { font: 1.1em/1.6 sans-serif; max-width: 30em; margin: 3em auto } label { display: block }</style>
{% if order %}
  <h1>Thank you</h1>
  <p>Your order has the number {{ order.id }}. <a href="{{ url_for('shop.product') }}">Another teapot?</a></p>
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


class Base(DeclarativeBase):
    """Of the shop's tables."""


class Order(Base):
    """The shop's own table."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    email: Mapped[str]
    amount: Mapped[Decimal] = mapped_column(Numeric(10, 2))


outbox_table(Base.metadata)  # beside the shop's own tables, so that Flask-Migrate (Alembic) takes care of it
database = SQLAlchemy(model_class=Base)
katalys = Katalys()
shop = Blueprint("shop", __name__)


def create_app(**config: Any) -> Flask:
    """Make the shop; ``config`` goes before the environment."""
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.update(config)
    database.init_app(app)
    katalys.init_app(app)
    app.register_blueprint(shop)
    with app.app_context():
        database.create_all()
    return app


@shop.get("/")
def product() -> str:
    return render_template_string(PAGE, price=PRICE)


@shop.post("/checkout")
def checkout() -> Response:
    pieces, coupon = int(request.form["pieces"]), request.form["coupon"].strip().upper()
    discount = SPRING if coupon == "SPRING" else 0
    goods = pieces * PRICE - discount
    order = Order(id=secrets.token_hex(4), email=request.form["email"], amount=goods + SHIPPING)
    database.session.add(order)
    katalys.visit.record(
        Conversion(
            order_id=order.id,
            email_address=order.email,
            sale_amount=order.amount,
            subtotal_amount=goods,
            discounts=[coupon] if discount else [],
            line_items=[LineItem("POT-1", PRICE, pieces, title="Teapot")],
        ),
        connection=database.session,
    )
    database.session.commit()
    return redirect(url_for("shop.thanks", order_id=order.id), 303)


@shop.get("/thanks/<order_id>")
def thanks(order_id: str) -> str:
    return render_template_string(PAGE, order=database.get_or_404(Order, order_id))


def main() -> None:
    """Serve the shop on loopback, beside a sandbox that plays Katalys."""
    port = int(os.environ.get("PORT", "8080"))
    with Sandbox() as sandbox, TemporaryDirectory() as folder:
        address = f"sqlite+pysqlite:///{folder}/shop.db"  # plain sqlite:/// would be an outbox file of its own
        app = create_app(
            SQLALCHEMY_DATABASE_URI=address,
            KATALYS_SITE_ID="KA-1A2B3C4",
            KATALYS_SECRET_KEY=secrets.token_urlsafe(48),
            KATALYS_ENDPOINT=sandbox.endpoint,
            KATALYS_OUTBOX=address,
        )
        link = "utm_source=Katalys&transaction_id=1234abcd&offer_id=1234&publisher_id=5678"
        print(f"The affiliate's link:  http://127.0.0.1:{port}/?{link}")
        print(f"What Katalys received: {sandbox.url}")
        with closing(app.extensions["katalys"]):
            app.run(port=port)


if __name__ == "__main__":
    main()
