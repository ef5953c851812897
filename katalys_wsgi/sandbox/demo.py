"""``katalys-wsgi demo``: a small shop and a scripted shopper, with the sandbox in place of Katalys.

It is the shortest proof that the parts work together: a real WSGI server, the middleware, the outbox in a file, the
relay's thread and an HTTP endpoint, all on loopback ports of this machine. Nothing is sent to Katalys.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from html import escape
from http.client import HTTPConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, make_server

from webob import Request, Response

from .. import Click, ClickMiddleware, Conversion, Event, LineItem, Record, Tracker
from .server import Sandbox

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["EXPECTED", "LINK", "SITE_ID", "USER_AGENT", "Shop", "run"]

#: The affiliate's link of Katalys' specification.
LINK = "/page1?utm_source=Katalys&transaction_id=1234abcd&offer_id=1234&publisher_id=5678"
#: The shop's tracking ID.
SITE_ID = "KA-0DEMO00"

_THANKS = "/thanks/"

#: The scripted shopper's browser.
USER_AGENT = "Mozilla/5.0 (katalys-wsgi demo)"

#: What must arrive of the scripted shopper's order: the specification's twelve keys, the moment of the order, and
#: the line item's three.
EXPECTED = {
    "type": "force_convert",
    "site_id": SITE_ID,
    "order_id": "1001",
    "email_address": "ann@example.com",
    "sale_amount": "59.90",
    "subtotal_amount": "50.00",
    "client_ip": "127.0.0.1",
    "user_agent": USER_AGENT,
    "discount_1_code": "SPRING",
    "transaction_id": "1234abcd",
    "offer_id": "1234",
    "aff_id": "5678",
    "order_time": "@<unix seconds>",  # whatever it was
    "line_item_1_sku": "KETTLE-1",
    "line_item_1_price": "50.00",
    "line_item_1_qty": "1",
}

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 17px/1.5 system-ui, sans-serif; max-width: 34em; margin: 3em auto; padding: 0 1em }}
button {{ font: inherit; padding: .4em 1.2em }}
</style>
<h1>{title}</h1>
{body}
"""
_BUY = """<p>A kettle, 59.90 with tax and shipping.</p>
<form method="post" action="/checkout"><button>Buy it with coupon SPRING</button></form>
<p><a href="{link}">Arrive through an affiliate's link</a></p>
<p>{click}</p>
"""
_LISTING = """<p><a href="{url}">What Katalys (the sandbox) received</a></p>
"""


class Shop:
    """A WSGI shop that sells kettles, and reports the orders of an affiliate's shoppers to Katalys.

    It is what a shop of one's own would do, in miniature: read the visit of a request, and record a conversion when the
    order is placed. Orders are kept in memory and numbered from 1001.

    :param tracker: records the orders; the shop has to be wrapped in its :class:`~katalys_wsgi.ClickMiddleware`.
    :param listing: the address of the sandbox's page, to which the shop's pages link; empty for no link.
    """

    def __init__(self, tracker: Tracker, *, listing: str = "") -> None:
        self._tracker = tracker
        self._listing = listing
        self._records: dict[str, Record] = {}
        self._orders = iter(range(1001, 10_000_000))
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Sell a kettle to a POST; show the product page, or what became of an order, for every other request.

        :returns: the body of a page, or of a redirect (303) to the thank-you page after a POST.
        """
        request = Request(environ)
        page = self._checkout(request) if request.method == "POST" else self._show(request)
        return page(environ, start_response)

    def _show(self, request: Request) -> Response:
        """The only product, with a button to buy it; above it an order, where the address names one."""
        order_id = request.environ.get("PATH_INFO", "").removeprefix(_THANKS)
        title, body = "The kettle shop", ""
        if order_id in self._records:
            record = self._records[order_id]
            title = "Thank you"
            body = f"<p>Order {order_id}. For Katalys: {record.outcome.value}. {escape(record.reason)}</p>"
        click = self._tracker.visit(request).click
        body += _BUY.format(link=escape(LINK), click=escape(_describe(click)))
        if self._listing:
            body += _LISTING.format(url=escape(self._listing))
        return Response(_PAGE.format(title=title, body=body))

    def _checkout(self, request: Request) -> Response:
        """Record the order, and lead on to what became of it: a page that is reloaded buys nothing again."""
        with self._lock:
            order_id = str(next(self._orders))
        self._records[order_id] = self._tracker.visit(request).record(
            Conversion(
                order_id=order_id,
                email_address="ann@example.com",
                sale_amount=Decimal("59.90"),
                subtotal_amount=Decimal("50.00"),
                discounts=["SPRING"],
                line_items=[LineItem("KETTLE-1", Decimal("50.00"))],
            )
        )
        return Response(status=303, location=_THANKS + order_id)


def _describe(click: Click | None) -> str:
    """Whether a browser carries a click, in a sentence."""
    if click is None:
        return "This browser carries no click: a sale now would not be reported."
    seconds = int((datetime.now(timezone.utc) - click.clicked_at).total_seconds())
    ids = f"transaction_id {click.transaction_id}, offer_id {click.offer_id}, aff_id {click.aff_id}"
    return f"This browser carries a click: {ids}, {timedelta(seconds=max(0, seconds))} old."


def run(*, once: bool = False, port: int = 0, out: Callable[[str], None] = print) -> int:
    """Play the shopper and print each step; then serve the shop and the sandbox until Ctrl-C or SystemExit.

    The outbox is in a temporary folder, which is removed at the end.

    :param once: end after the shopper's order instead.
    :param port: of the shop; 0 takes a free one.
    :param out: prints a line.
    :returns: the exit code: 0 if Katalys received exactly what the shop recorded within 10 seconds, else 1.
    :raises OSError: the port is taken.
    """
    delivered = threading.Event()

    def listen(event: Event) -> None:
        if event.name.startswith("postback_"):
            delivered.set()

    with tempfile.TemporaryDirectory(prefix="katalys-demo-") as folder, Sandbox() as sandbox:
        tracker = Tracker(
            site_id=SITE_ID,
            secret_key=secrets.token_urlsafe(48),
            endpoint=sandbox.endpoint,
            outbox=f"{folder}/outbox.db",
            hooks=[listen],
        )
        shop_app = ClickMiddleware(Shop(tracker, listing=sandbox.url), tracker)
        with closing(tracker), _serving(shop_app, port) as shop:
            _play_the_shopper(shop, out)
            delivered.wait(10)
            intact = _show_received(sandbox, out)
            if not once:
                _stay(shop, sandbox, out)
    return 0 if intact else 1


def _play_the_shopper(shop: str, out: Callable[[str], None]) -> None:
    """Follow the link, look at another page, buy; print each request and what the shop did.

    :param shop: the shop's address, without a path.
    """
    out(f"1. A shopper follows an affiliate's link to the shop:\n     GET {LINK}")
    set_cookie = _ask(shop, "GET", LINK)
    out(f"   The shop answers as always; the middleware adds one header:\n     Set-Cookie: {set_cookie}")
    cookie = (set_cookie or "").partition(";")[0]
    again = _ask(shop, "GET", "/kettle", cookie)
    out(f"2. The shopper looks around:\n     GET /kettle\n   Further pages set {'a' if again else 'no'} cookie.")
    _ask(shop, "POST", "/checkout", cookie)
    out("3. The shopper buys:\n     POST /checkout")
    out("   The shop records the conversion in its outbox; a thread delivers it.")


def _show_received(sandbox: Sandbox, out: Callable[[str], None]) -> bool:
    """Print the message that the sandbox received.

    :returns: whether it is the only one, with exactly the expected fields in the specification's order.
    """
    received = sandbox.collector.accepted
    if not received:
        out("\nKatalys (the sandbox) received nothing. This is a bug; please report it.")
        return False
    message = received[0]
    how = f"by {message.method} {message.content_type}"
    out(f"\nKatalys (the sandbox) received {how}, and answered {message.status}:\n")
    for key, value in message.fields.items():
        out(f"  {key:<18}{value}")
    expected = {**EXPECTED, "order_time": message.fields.get("order_time", "")}
    intact = len(received) == 1 and list(message.fields.items()) == list(expected.items())
    out(f"\nVerdict: {message.verdict}. " + ("Arrived intact." if intact else f"Expected {json.dumps(EXPECTED)}."))
    return intact


def _stay(shop: str, sandbox: Sandbox, out: Callable[[str], None]) -> None:
    """Print where to click, and wait for Ctrl-C."""
    out(f"\nNow you. The shop:             {shop}{LINK}\n         What Katalys received: {sandbox.url}")
    out("Ctrl-C ends both.")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        out("")


def _ask(shop: str, method: str, path: str, cookie: str | None = None) -> str | None:
    """Send a request as the shopper's browser does.

    :param shop: the shop's address, without a path.
    :param cookie: ``name=value``, as a Cookie header has it.
    :returns: the Set-Cookie header of the answer, None without one.
    """
    connection = HTTPConnection(urlsplit(shop).netloc, timeout=10)
    try:
        connection.request(method, path, headers={"User-Agent": USER_AGENT, **({"Cookie": cookie} if cookie else {})})
        answer = connection.getresponse()
        answer.read()
        return answer.getheader("Set-Cookie")
    finally:
        connection.close()


class _Quiet(WSGIRequestHandler):
    """A request handler that prints no line for each request: the steps of the demo are to be read."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _serving(app: ClickMiddleware, port: int) -> Iterator[str]:
    """Serve ``app`` on a loopback port, a free one for 0; yield its address, such as ``http://127.0.0.1:8080``."""
    with make_server("127.0.0.1", port, app, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
