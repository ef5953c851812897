"""What is documented: mypy --strict and pyright accept every line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

from flask import Flask
from typing_extensions import assert_type

from katalys_wsgi import (
    Click,
    ClickMiddleware,
    Conversion,
    Discount,
    Event,
    LineItem,
    OrderUpdate,
    Outcome,
    Record,
    Settings,
    Tracker,
    Visit,
)
from katalys_wsgi.delivery.relay import Drained
from katalys_wsgi.flask import Katalys
from katalys_wsgi.outbox import Archive, Outbox
from katalys_wsgi.outbox.memory import MemoryOutbox
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox
from katalys_wsgi.outbox.sqlite import SQLiteOutbox

SITE = "KA-1A2B3C4"
KEY = "kf83jf9s0d8fj3kd93jd8s7g6h5j4k3l2"


def hook(event: Event) -> None:
    print(event.name, event.fields.get("order_id"))


Tracker(site_id=SITE, secret_key=KEY)
Tracker(site_id=SITE, secret_key=["old" * 12, KEY], attribution_window=3600, give_up_after=timedelta(days=3))
Tracker(site_id=SITE, secret_key=KEY, wire="form", conversion_type="offline_conv", attribution="first-click")
Tracker(site_id=SITE, secret_key=KEY, cookie_secure="auto", sources="katalys revoffers", trusted_proxies=1)
Tracker(site_id=SITE, secret_key=KEY, consent=lambda environ: "yes" in environ, hooks=[hook], clock=lambda: 0.0)
Tracker(site_id=SITE, secret_key=KEY, outbox="outbox.db")
Tracker(site_id=SITE, secret_key=KEY, outbox=Path("outbox.db"), delivery="external")
Tracker(site_id=SITE, secret_key=KEY, outbox=MemoryOutbox())
Tracker(Settings(site_id=SITE, secret_key=KEY, hash_email=True), hooks=[hook])
tracker = Tracker.from_environ(strict=True)
assert_type(tracker.settings.secret_key, tuple[str, ...])
assert_type(tracker.settings.deadline, timedelta)

katalys = Katalys(Flask("shop"), site_id=SITE, deadline=10, hooks=[hook])
assert_type(katalys.visit, Visit)

visit = tracker.visit({}, strict=False)
assert_type(visit.click, Click | None)
conversion = Conversion(
    order_id=1001,
    email_address="ann@example.com",
    sale_amount=Decimal("59.90"),
    subtotal_amount="50.00",
    discounts=["SPRING", Discount("TEN", amount=5)],
    line_items=[LineItem("KETTLE-1", Decimal(50), qty=1, categories=["kitchen"])],
    order_time=datetime.now(timezone.utc),
    extra={"order_key": "wc_1", "items": 3},
    order_status="paid",
)
record = visit.record(conversion, connection=None)
assert_type(record, Record)
assert_type(record.outcome, Outcome)
assert_type(visit.resume(visit.token()).record_update(OrderUpdate("1001", order_status="refunded")), Record)
tracker.resume("token", strict=True, defer=lambda write: print(write()))
tracker.record_update(OrderUpdate("1001", order_status="shipped"), strict=True)

assert_type(tracker.drain(at_most=60), Drained)
tracker.drain(timedelta(minutes=1))
tracker.deliver()
tracker.stop()
tracker.close()
application = ClickMiddleware(lambda _environ, _start_response: [], tracker)

archives: list[Archive] = [MemoryOutbox(), SQLiteOutbox("outbox.db"), SQLAlchemyOutbox("postgresql+psycopg://h/d")]
outboxes: list[Outbox] = [*archives]
listen: Callable[[Event], None] = hook
