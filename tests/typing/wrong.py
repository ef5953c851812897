"""What is misspelt or misused: mypy --strict and pyright refuse every line that carries a comment for them.

A comment that is not needed is an error in turn, so each line proves that a checker complains.
"""

from __future__ import annotations

from flask import Flask

from katalys_wsgi import Conversion, OrderUpdate, Settings, Tracker
from katalys_wsgi.flask import Katalys

SITE = "KA-1A2B3C4"
KEY = "kf83jf9s0d8fj3kd93jd8s7g6h5j4k3l2"

Tracker(siteid=SITE, secret_key=KEY)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Tracker(site_id=SITE, secret_key=KEY, wire="jsn")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tracker(site_id=SITE, secret_key=KEY, delivery="threads")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tracker(site_id=SITE, secret_key=KEY, attribution="last")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tracker(site_id=SITE, secret_key=KEY, conversion_type="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tracker(site_id=SITE, secret_key=KEY, cookie_secure="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tracker(site_id=SITE, secret_key=KEY, attribution_window="3600")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tracker(site_id=SITE, secret_key=KEY, trusted_proxies="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tracker(site_id=SITE, secret_key=KEY, outbox=object())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tracker(site_id=SITE, secret_key=KEY, consent=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tracker(SITE, KEY)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
Settings(site_id=SITE, secretkey=KEY)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Katalys(Flask("shop"), site=SITE)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Katalys(Flask("shop"), wire="xml")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Tracker.from_environ(strickt=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

tracker = Tracker(site_id=SITE, secret_key=KEY)
visit = tracker.visit({})
conversion = Conversion(order_id="1", email_address="a@example.com", sale_amount=1, subtotal_amount=1)

visit.strict = True  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
visit.record({"order_id": "1"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
visit.record(OrderUpdate("1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
visit.record_update(conversion)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
visit.record(conversion, conection=None)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
tracker.drain(at_most="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
OrderUpdate("1", order_status="refundet")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Conversion("1", "a@example.com", 1, 1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Conversion(order_id="1", email_address="a@example.com", sale_amount=1, subtotal_amount=1, extra={"k": []})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
Conversion(order_id="1", email_address="a@example.com", sale_amount=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
