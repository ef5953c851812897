"""A Flask shop that keeps the order and its conversion in one transaction, with Flask-SQLAlchemy.

    python examples/flask_sqlalchemy_shop.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port. The database is a SQLite file here.

In production it is one for many hosts, such as ``postgresql+psycopg://shop@db/shop``, in ``SQLALCHEMY_DATABASE_URI``
and in ``KATALYS_OUTBOX``. A commit keeps both, a rollback neither, and a host that dies in between loses nothing.
"""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import Any

from flask import Blueprint, Flask, redirect, request, url_for
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from werkzeug.wrappers import Response

from katalys_wsgi import Conversion, LineItem
from katalys_wsgi.flask import Katalys
from katalys_wsgi.outbox.sqlalchemy import outbox_table

PRICE, SHIPPING, SPRING = Decimal("50.00"), Decimal("9.90"), Decimal("5.00")


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


@shop.post("/checkout")
def checkout() -> Response:
    """Sell teapots; keep the order and the sale, or neither."""
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
    """Show an order of the database."""
    order = database.get_or_404(Order, order_id)
    return f"Thank you. Your order has the number {order.id}, and we charged ${order.amount}."


# The shop ends here. What follows serves it beside a sandbox, with a page before the checkout.

if __name__ == "__main__":
    from sandboxed import sandboxed, serve

    with sandboxed(outbox="sqlite:///{folder}/shop.db") as settings:
        app = create_app(SQLALCHEMY_DATABASE_URI=settings["outbox"])
        serve(app, app.extensions["katalys"])
