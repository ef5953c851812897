"""Plays a payment gateway beside ``payment_webhook.py``; no part of the shop.

It asks for the money, calls the shop's webhook, and sends the shopper back with a form that posts the same message.
"""

from __future__ import annotations

import hmac
from html import escape
from typing import TYPE_CHECKING

import requests
from webob import Request, Response
from webob.dec import wsgify

from sandboxed import ADDRESS

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["GATEWAY_URL", "with_gateway"]

#: Another site than 127.0.0.1 in a browser's eyes, so that the return is cross-site as it is in real life.
GATEWAY_URL = ADDRESS.replace("127.0.0.1", "localhost")

PAY = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>The gateway</title>
<h1>Pay $59.90?</h1>
<form method="post"><button>Pay</button></form>
</html>"""

BACK = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>The gateway</title>
<form method="post" action="{}/return">
  <input type="hidden" name="order" value="{}">
  <input type="hidden" name="signature" value="{}">
  <button>Paid. Back to the shop</button>
</form>
</html>"""


def with_gateway(shop: WSGIApplication, key: str) -> WSGIApplication:
    """Serve the gateway's ``/pay/ORDER`` beside the shop.

    :param key: agreed upon with the shop; signs messages.
    """

    @wsgify
    def answer(request: Request) -> Response:
        if not request.path_info.startswith("/pay/"):
            return request.get_response(shop)
        if request.method == "GET":
            return Response(PAY)
        return Response(_paid(request.path_info.removeprefix("/pay/"), key))

    return answer


def _paid(order: str, key: str) -> str:
    """Call the shop's webhook; then ask the shopper back.

    :raises requests.HTTPError: the shop refused the message.
    """
    signature = hmac.digest(key.encode(), order.encode(), "sha256").hex()
    message = {"order": order, "signature": signature}
    requests.post(f"{ADDRESS}/webhook", data=message, timeout=10).raise_for_status()
    return BACK.format(ADDRESS, escape(order), signature)
