"""Runs an example shop on this machine, beside a sandbox that plays Katalys; no part of any shop.

The examples show what a shop writes for Katalys. What they need besides, to be tried in a browser, stands here: the
sandbox, a temporary folder, the settings, two pages and a server. An example calls it at its end, and nowhere else.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from html import escape
from socketserver import ThreadingMixIn
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer, make_server

from webob import Request, Response
from webob.dec import wsgify

from katalys_wsgi import Tracker
from katalys_wsgi.sandbox import Sandbox

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["ADDRESS", "sandboxed", "serve"]

PORT = int(os.environ.get("PORT", "8080"))

#: Where an example is served.
ADDRESS = f"http://127.0.0.1:{PORT}"

#: The query of an affiliate's link, as Katalys' specification shows it.
LINK = "utm_source=Katalys&transaction_id=1234abcd&offer_id=1234&publisher_id=5678"

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Teapots</title>
<style>body {{ font: 1.1em/1.6 sans-serif; max-width: 30em; margin: 3em auto }} label {{ display: block }}</style>
{}
</html>"""

PRODUCT = """<h1>A teapot, $50.00</h1>
<form method="post" action="/checkout">
  <label>E-mail <input type="email" name="email" value="ann@example.com" required></label>
  <label>Pieces <input type="number" name="pieces" value="1" min="1"></label>
  <label>Coupon <input name="coupon" value="SPRING"></label>
  <button>Buy</button>
</form>"""

THANKS = """<h1>Thank you</h1>
<p>Your order has the number {}. <a href="/">Another teapot?</a></p>"""


@contextmanager
def sandboxed(outbox: str = "{folder}/outbox.db") -> Iterator[dict[str, str]]:
    """Start a sandbox, and put the settings of a shop that reports to it into the environment.

    Under both ``KATALYS_…`` and ``FLASK_KATALYS_…``, as in production. Both sandbox and files end with the block.

    :param outbox: the setting; ``{folder}`` is a temporary folder.
    :returns: the same settings by their plain names, such as ``site_id``.
    """
    with Sandbox() as sandbox, TemporaryDirectory() as folder:
        settings = {
            "site_id": "KA-1A2B3C4",
            "secret_key": secrets.token_urlsafe(48),
            "endpoint": sandbox.endpoint,
            "outbox": outbox.format(folder=folder),
        }
        for name, value in settings.items():
            os.environ[f"KATALYS_{name.upper()}"] = os.environ[f"FLASK_KATALYS_{name.upper()}"] = value
        print(f"What Katalys received: {sandbox.url}")
        yield settings


def serve(shop: WSGIApplication, tracker: Tracker) -> None:
    """Serve the shop on loopback until Ctrl-C; then close the tracker, so that what was sold is delivered.

    :raises OSError: the port is taken.
    """
    with closing(tracker), make_server("127.0.0.1", PORT, with_pages(shop), _Server) as server:
        print(f"The affiliate's link:  {ADDRESS}/?{LINK}")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def with_pages(shop: WSGIApplication) -> WSGIApplication:
    """Give a shop that has a checkout only the pages before and after it.

    They stand in for the shop's own "not found". Its headers stay, the cookie with the click among them: every
    request is the shop's.
    """

    @wsgify
    def answer(request: Request) -> Response:
        response = request.get_response(shop)
        page = _page_at(request.path_info)
        if request.method == "GET" and response.status_code == 404 and page:
            response.status_code, response.content_type, response.charset = 200, "text/html", "utf-8"
            response.text = PAGE.format(page)
        return response

    return answer


def _page_at(path: str) -> str | None:
    match path.split("/")[1:]:
        case [""]:
            return PRODUCT
        case ["thanks", order_id]:
            return THANKS.format(escape(order_id))
        case _:
            return None


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a connection: a gateway calls the shop while the shopper waits for the gateway."""

    daemon_threads = True
