"""A Django shop that reports its affiliates' sales to Katalys.

    python examples/django_shop.py

runs it on this machine beside a sandbox that plays Katalys, and prints where to click; nothing leaves the machine.
``PORT=8081`` before the command takes another port.

A project of yours has its settings in ``settings.py``: the lines marked below are what it needs for Katalys.
``KATALYS_SITE_ID`` stands there too, or in the environment. Without ``KATALYS_SECRET_KEY``, your ``SECRET_KEY`` signs.
"""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path
from django.views.decorators.http import require_POST

from katalys_wsgi import Conversion, LineItem

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

PRICE, SHIPPING, SPRING = Decimal("50.00"), Decimal("9.90"), Decimal("5.00")

SETTINGS: dict[str, Any] = {
    "ALLOWED_HOSTS": ["127.0.0.1"],
    "INSTALLED_APPS": ["katalys_wsgi.django"],  # for Katalys
    "MIDDLEWARE": ["katalys_wsgi.django.KatalysMiddleware"],  # for Katalys, first; yours follow
    "ROOT_URLCONF": __name__,
}


def checkout(request: HttpRequest) -> HttpResponse:
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
    return HttpResponseRedirect(f"/thanks/{order_id}")


urlpatterns = [path("checkout", require_POST(checkout))]


def make_shop() -> WSGIApplication:
    """Make the shop; what ``settings.py`` and ``wsgi.py`` do in a project."""
    settings.configure(SECRET_KEY=secrets.token_urlsafe(48), **SETTINGS)
    django.setup()
    application: WSGIApplication = get_wsgi_application()
    return application


# The shop ends here. What follows serves it beside a sandbox, with a page before and one after the checkout.

if __name__ == "__main__":
    from katalys_wsgi.django import get_tracker
    from sandboxed import sandboxed, serve

    with sandboxed():
        serve(make_shop(), get_tracker())
