"""The shop under test, for any server: ``tests.faults.shop:application``, with its settings in the environment.

``GET /?<link>`` is a landing page; ``POST /checkout?order=ID`` records and answers the outcome's name. With
``SHOP_WARMS_UP`` set, it records an order while it is loaded: a server that forks afterwards hands its workers
an open connection, a running relay and whatever that relay holds.

``python -m tests.faults.shop PORT`` serves it itself, with a fork for each request.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from socketserver import ForkingMixIn
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from katalys_wsgi import ClickMiddleware, Tracker
from tests.support import LINK, make_conversion, make_environ

logging.basicConfig(level=logging.INFO, format="%(process)d %(levelname)s %(message)s")

tracker = Tracker.from_environ()


def shop(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer a request."""
    orders = parse_qs(environ["QUERY_STRING"]).get("order")
    body = tracker.visit(environ).record(make_conversion(orders[0])).outcome.name if orders else "welcome"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]


application = ClickMiddleware(shop, tracker)

if os.environ.get("SHOP_WARMS_UP"):
    tracker.visit(make_environ(LINK)).record(make_conversion(f"warm-{os.getpid()}"))


class _ForkingServer(ForkingMixIn, WSGIServer):
    max_children = 16
    request_queue_size = 128


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    with make_server("127.0.0.1", int(sys.argv[1]), application, _ForkingServer, _Quiet) as server:
        server.serve_forever()
