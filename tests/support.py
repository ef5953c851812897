"""Helpers that many tests share: a site, a secret, the specification's link, an order, an environ, a clock."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from katalys_wsgi import (
    Click,
    ConfigurationError,
    Conversion,
    Event,
    OrderUpdate,
    OutboxMissing,
    Settings,
    Tracker,
    Visit,
)
from katalys_wsgi.conversion.postback import Postback
from katalys_wsgi.outbox import Entry, Outbox
from katalys_wsgi.settings import PYTHON, Spelling
from katalys_wsgi.visit import TRACKER

SITE_ID = "KA-1A2B3C4"
SECRET = "kf83jf9s0d8fj3kd93jd8s7g6h5j4k3l2"
OLD_SECRET = "q0w9e8r7t6y5u4i3o2p1a0s9d8f7g6h5j"

#: The query of the specification's own example.
LINK = "utm_source=Katalys&transaction_id=1234abcd&offer_id=1234&publisher_id=5678"

#: The keys of the specification's three request examples, in their order.
TWELVE_KEYS = (
    "type", "site_id", "order_id", "email_address", "sale_amount", "subtotal_amount", "client_ip", "user_agent",
    "discount_1_code", "transaction_id", "offer_id", "aff_id",
)  # fmt: skip

#: Those of a conversion as it is recorded, which is stamped with its moment.
RECORDED_KEYS = (*TWELVE_KEYS, "order_time")

BUYER_IP = "203.0.113.7"
BUYER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) Test/1.0"

#: The click of the specification's own example.
CLICK = Click("1234abcd", "1234", "5678", datetime(2026, 11, 22, 12, 0, 0, tzinfo=timezone.utc))

#: What the fixtures ``make_tracker`` and ``make_observed`` are.
MakeTracker = Callable[..., Tracker]


def make_conversion(order_id: Any = "1001", **changes: Any) -> Conversion:
    """The order that tests buy."""
    fields: dict[str, Any] = {
        "order_id": order_id,
        "email_address": "ann@example.com",
        "sale_amount": Decimal("59.90"),
        "subtotal_amount": Decimal("50.00"),
        "discounts": ["SPRING"],
    }
    return Conversion(**{**fields, **changes})


class Column:
    """What an ORM's class attribute does: a comparison is an expression, and that is neither true nor false.

    ``Conversion(sale_amount=Order.total)`` instead of ``order.total`` is easily written.
    """

    def __eq__(self, other: object) -> Column:  # type: ignore[override]
        return self  # pragma: no cover - nobody compares it any more

    __ne__ = __lt__ = __gt__ = __eq__  # type: ignore[assignment]

    def __hash__(self) -> int:
        return 1

    def __bool__(self) -> bool:
        raise TypeError("Boolean value of this clause is not defined")  # pragma: no cover


def make_postback(order: Conversion | str = "1001", **changes: Any) -> Postback:
    """The message of an order, one of :func:`make_conversion` where an id is given, placed after :data:`CLICK`."""
    conversion = make_conversion(order) if isinstance(order, str) else order
    options: dict[str, Any] = {
        "site_id": SITE_ID,
        "conversion_type": "force_convert",
        "click": CLICK,
        "client_ip": BUYER_IP,
        "user_agent": BUYER_AGENT,
    }
    return Postback.from_conversion(conversion, **{**options, **changes})


def make_update(order_id: Any = "1001", **changes: Any) -> Postback:
    """The message of an order update."""
    return Postback.from_update(OrderUpdate(order_id, **changes), site_id=SITE_ID)


def fields_of(postback: Postback) -> dict[str, str]:
    """The fields that a message sends."""
    fields: dict[str, str] = json.loads(postback.payload)
    return fields


def make_environ(query: str = "", *, cookie: str | None = None, **changes: Any) -> dict[str, Any]:
    """A WSGI environ of the buyer's browser that a middleware has seen; ``cookie`` is a whole Cookie header."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ.update({"QUERY_STRING": query, "REMOTE_ADDR": BUYER_IP, "HTTP_USER_AGENT": BUYER_AGENT, TRACKER: None})
    if cookie is not None:
        environ["HTTP_COOKIE"] = cookie
    environ.update(changes)
    return environ


def arrive(tracker: Tracker, query: str = LINK, **changes: Any) -> Visit:
    """The visit of a shopper who came through the link a moment ago; ``changes`` are those of the environ."""
    return tracker.visit(make_environ(query, **changes))


def refuse(_environ: dict[str, Any]) -> bool:
    """The setting ``consent`` of a shop where nobody consents."""
    return False


def history_of(outbox: Outbox, order_id: str = "1001") -> list[Entry]:
    """Every entry of an order, oldest first; none where there is no outbox yet."""
    try:
        return outbox.history(order_id)
    except OutboxMissing:
        return []


def rows(tracker: Tracker, order_id: str = "1001") -> list[tuple[str, str]]:
    """Kind and state of an order's rows in the outbox, oldest first."""
    return [(entry.kind, entry.state) for entry in history_of(tracker.outbox, order_id)]


def names(events: list[Event]) -> list[str]:
    """The names of events, oldest first, but for the line that each process starts with."""
    return [event.name for event in events if event.name != "tracker_started"]


def cookie_of(headers: list[tuple[str, str]]) -> str | None:
    """The ``name=value`` that a response sets, ready to be a Cookie header; None when it sets none.

    More than one Set-Cookie of ours is a fault and fails the test.
    """
    values = [value for name, value in headers if name.lower() == "set-cookie" and value.startswith("katalys_click=")]
    assert len(values) <= 1, values
    return values[0].partition(";")[0] if values else None


class Clock:
    """Seconds since 1970, as ``Tracker(clock=...)`` takes them; it stands still until a test moves it."""

    def __init__(self, now: float = 1_795_350_600.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    @property
    def time(self) -> datetime:
        """The same as an aware datetime."""
        return datetime.fromtimestamp(self.now, timezone.utc)

    def advance(self, by: float | timedelta) -> None:
        """Move it by seconds or a ``timedelta``; a negative one moves it back."""
        self.now += by.total_seconds() if isinstance(by, timedelta) else by


class Stopwatch:
    """``with Stopwatch() as watch: ...`` leaves the elapsed time in ``watch.seconds``."""

    seconds: float

    def __enter__(self) -> Stopwatch:
        self._started_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._started_at


def wait_until(condition: Callable[[], object], what: str = "it", seconds: float = 5.0) -> None:
    """Return as soon as ``condition`` holds; fail the test after ``seconds``."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"{what} did not happen within {seconds} s"
        time.sleep(0.005)


def free_port() -> int:
    """A loopback port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_settings(**changes: Any) -> Settings:
    """The settings of a shop that has set the two required ones."""
    return Settings(**{"site_id": SITE_ID, "secret_key": SECRET, **changes})


def problems_of(values: dict[str, Any], spelling: Spelling = PYTHON) -> tuple[str, ...]:
    """What start-up says of settings that cannot work, given in this spelling."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_mapping(values, spelling)
    return caught.value.problems
