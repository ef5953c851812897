"""Delivers a shop's conversions to Katalys with Celery, the engine that spreads the work over any number of hosts.

On every host that shall deliver, and once for all of them (never two beats), in the directory above this one:

    celery --app examples.celery_worker worker --queues katalys --concurrency 2 --loglevel INFO
    celery --app examples.celery_worker beat --loglevel INFO

Both, and the shop, have ``KATALYS_SITE_ID``, ``KATALYS_SECRET_KEY`` and ``KATALYS_OUTBOX`` in their environment; the
outbox is the shop's own database, such as ``postgresql+psycopg://shop@db/shop``. The shop also has
``KATALYS_DELIVERY=external`` and needs neither Celery nor its broker.
"""

from __future__ import annotations

import os

from celery import Celery

from katalys_wsgi.celery import BEAT_SCHEDULE, ROUTES

app = Celery("shop", broker=os.environ.get("CELERY_BROKER_URL", "redis://127.0.0.1:6379/0"))
app.conf.beat_schedule = {**BEAT_SCHEDULE}  # beside your own entries
app.conf.task_routes = {**ROUTES}  # a queue of its own: a backlog must not keep your other tasks waiting
