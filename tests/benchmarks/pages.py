"""What a shop's pages pay: requests without a click, landing requests, and reading the click at checkout."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

from itsdangerous import URLSafeSerializer

from katalys_wsgi import Click, ClickMiddleware, Tracker
from katalys_wsgi.attribution.cookie import ClickCookie
from tests.support import SECRET, SITE_ID

from .measure import Limit, Plan, Row, Skipped, microseconds, paired

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # webob imports cgi
    from webob import Request

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

#: Requests in one timed batch: so few that most batches end before another process gets its turn.
CALLS = 100

DAYS_30 = 30 * 24 * 3600

_numbers = itertools.count(1)


def shop(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The application under every middleware measured here."""
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", "13")])
    return [b"Hello, shop!\n"]


class NaiveClickMiddleware:
    """The recipe one would write in an afternoon with WebOb and itsdangerous; it ignores caches and stuffed clicks."""

    def __init__(self, app: Application, secret_key: str) -> None:
        self.app = app
        self.serializer = URLSafeSerializer(secret_key, salt="affiliate-click")

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        query = request.GET
        if query.get("utm_source", "").lower() != "katalys" or not query.get("transaction_id"):
            return self.app(environ, start_response)
        click = {
            "transaction_id": query["transaction_id"],
            "offer_id": query.get("offer_id"),
            "aff_id": query.get("publisher_id"),
            "clicked_at": int(time.time()),
        }
        response = request.get_response(self.app)
        response.set_cookie(
            "affiliate_click",
            self.serializer.dumps(click),
            max_age=DAYS_30,
            path="/",
            secure=request.scheme == "https",
            httponly=True,
            samesite="Lax",
        )
        return response(environ, start_response)


def pass_through(plan: Plan) -> Row:
    """A request without click and cookie."""
    try:
        from whitenoise import WhiteNoise
    except ImportError as error:
        raise Skipped(f"{error}; pip install whitenoise") from None
    with tempfile.TemporaryDirectory(dir=plan.directory) as static:
        Path(static, "logo.txt").write_text("logo", encoding="ascii")
        peer = WhiteNoise(shop, root=static, autorefresh=False)
    # Every page of a shop pays this, so it has to cost less than a middleware that shops already accept.
    return _added_time(plan, "pass-through", "WhiteNoise's added time on a miss", peer, _browsing, Limit(0.8))


def landing(plan: Plan) -> Row:
    """A request that brings a click; another transaction_id each time, so that nothing can be remembered."""
    warnings.filterwarnings("ignore", "datetime.datetime.utcnow", DeprecationWarning)  # of WebOb's set_cookie
    peer = NaiveClickMiddleware(shop, SECRET)
    # About a third of what the shop would pay without us, although every rule about clicks is kept.
    return _added_time(
        plan, "landing", "WebOb GET, itsdangerous, set_cookie, get_response", peer, _landings, Limit(0.35)
    )


def reading(plan: Plan) -> Row:
    """The click out of a checkout's Cookie header, its window checked."""
    cookie = ClickCookie([SECRET], site_id=SITE_ID, window=timedelta(days=30))
    now = datetime.now(timezone.utc)
    values = [cookie.dumps(Click(_transaction_id(), "1234", "5678", now)) for _ in range(CALLS)]
    headers = [f"_ga=GA1.2.1479021.1700000000; katalys_click={value}; session=8c1f0e5b7a" for value in values]
    serializer = URLSafeSerializer(SECRET, signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"})
    # The same content under the serializer's own salt.
    signed = [str(serializer.dumps(serializer.loads_unsafe(value)[1])) for value in values]
    if not all(cookie.read(header, now) for header in headers):
        raise AssertionError("a click was not read")
    if not all(serializer.loads(value) for value in signed):
        raise AssertionError("a value was not loaded")

    def ours() -> float:
        started = time.perf_counter()
        for header in headers:
            cookie.read(header, now)
        return time.perf_counter() - started

    def theirs() -> float:
        started = time.perf_counter()
        for value in signed:
            serializer.loads(value)
        return time.perf_counter() - started

    times = paired([ours, theirs], rounds=plan.pick(15, 3), passes=plan.pick(20, 2))
    return Row(
        "reading the click",
        "itsdangerous loads of the same content",
        [ours / theirs for ours, theirs in times],
        limit=Limit(1.5),  # one signature check is the least that it can cost; the rest is the window and the scan
        details=_each(times, ("ours", "theirs")),
    )


def _added_time(
    plan: Plan, name: str, against: str, peer: Application, requests: Callable[[], list[Environ]], limit: Limit
) -> Row:
    tracker = Tracker(site_id=SITE_ID, secret_key=SECRET, outbox=f"{plan.directory}/never-used.db", delivery="external")
    applications: list[Application] = [shop, ClickMiddleware(shop, tracker), peer]
    batches = [partial(_serve, application, requests) for application in applications]
    times = paired(batches, rounds=plan.pick(15, 3), passes=plan.pick(20, 2))
    added = [(ours - bare, theirs - bare) for bare, ours, theirs in times]
    return Row(
        name,
        against,
        [ours / theirs for ours, theirs in added],
        limit=limit,
        details=_each(added, ("ours", "theirs")),
    )


def _serve(application: Application, requests: Callable[[], list[Environ]]) -> float:
    """Serve as a WSGI server does, which also walks through the answer."""
    environs = requests()
    started = time.perf_counter()
    for environ in environs:
        for _ in application(environ, _start_response):
            pass
    return time.perf_counter() - started


def _start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
    return lambda _: None


def _each(times: Sequence[tuple[float, ...]], names: Sequence[str]) -> dict[str, str]:
    return {name: microseconds(own, CALLS) for name, own in zip(names, zip(*times, strict=True), strict=True)}


def _browsing() -> list[Environ]:
    return [_environ("page=2&sort=price") for _ in range(CALLS)]


def _landings() -> list[Environ]:
    query = "utm_source=Katalys&transaction_id={}&offer_id=1234&publisher_id=5678"
    return [_environ(query.format(_transaction_id())) for _ in range(CALLS)]


def _transaction_id() -> str:
    """30 hex digits, as Katalys makes them; never the same twice."""
    return f"{next(_numbers) * 0x9E3779B97F4A7C15_F39CC0605CEDC835 % (1 << 120):030x}"


def _environ(query: str) -> Environ:
    """What gunicorn makes of a browser's request."""
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": None,
        "wsgi.errors": None,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "SERVER_SOFTWARE": "gunicorn/23.0.0",
        "REQUEST_METHOD": "GET",
        "QUERY_STRING": query,
        "RAW_URI": f"/page1?{query}",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "shop.example.com",
        "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        "HTTP_ACCEPT": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "HTTP_ACCEPT_LANGUAGE": "en-US,en;q=0.5",
        "HTTP_ACCEPT_ENCODING": "gzip, deflate, br, zstd",
        "HTTP_REFERER": "https://blog.example.org/the-ten-best-kettles",
        "HTTP_COOKIE": "_ga=GA1.2.1479021.1700000000; session=8c1f0e5b7a",
        "HTTP_SEC_FETCH_DEST": "document",
        "REMOTE_ADDR": "203.0.113.7",
        "REMOTE_PORT": "51234",
        "SERVER_NAME": "shop.example.com",
        "SERVER_PORT": "443",
        "PATH_INFO": "/page1",
        "SCRIPT_NAME": "",
    }
