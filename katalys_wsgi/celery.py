"""Celery: delivery by the workers the shop already runs.

Importing this module registers the task ``katalys_wsgi.deliver_due`` with every Celery application::

    from celery import Celery
    from katalys_wsgi.celery import BEAT_SCHEDULE, ROUTES

    app = Celery("shop", broker="redis://...")
    app.conf.beat_schedule = {**BEAT_SCHEDULE}
    app.conf.task_routes = {**ROUTES}

Set ``delivery=external`` in the shop. The row in the outbox stays the truth: the checkout never publishes, a message
says nothing but "look into the outbox", and a message that is lost or comes twice changes nothing. So broker and
result back end need no durability, and the task needs no retry of its own.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from celery import shared_task

from .process import PerProcess
from .tracker import Tracker

__all__ = ["BEAT_SCHEDULE", "EVERY", "LONGEST_RUN", "ROUTES", "TASK", "bind", "deliver_due"]

#: The name of the task, for a schedule or a routing of one's own.
TASK = "katalys_wsgi.deliver_due"

#: Seconds between two looks into the outbox, and those after which a look is not worth taking any more.
EVERY = 10.0

#: Seconds after which a task begins no further row: a backlog is shared by the tasks of the next beats, on whatever
#: worker is free, and no task outlives the visibility timeout of a broker.
LONGEST_RUN = 60.0

#: Ready for ``app.conf.beat_schedule``.
BEAT_SCHEDULE: dict[str, dict[str, Any]] = {
    "katalys-deliver-due": {
        "task": TASK,
        "schedule": EVERY,
        "options": {"expires": EVERY, "ignore_result": True},
    },
}

#: Ready for ``app.conf.task_routes``: a queue ``katalys``, so that a backlog keeps no other task waiting.
ROUTES: dict[str, dict[str, str]] = {TASK: {"queue": "katalys"}}

_tracker = PerProcess(Tracker.from_environ)


def bind(tracker: Tracker | None) -> None:
    """Have the task deliver for ``tracker``.

    :param tracker: None has the next task make one with the settings of the environment, ``KATALYS_*``, as it is
        before the first call.
    """
    global _tracker
    _tracker = PerProcess(Tracker.from_environ if tracker is None else lambda: tracker)


# acks_late: the message of a host that died is given to another. Twice is harmless, see above.
@shared_task(name=TASK, acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator] # Celery has no types
def deliver_due() -> dict[str, int]:
    """Deliver what is due; after :data:`LONGEST_RUN` seconds no further row is started.

    :returns: how many rows were ``settled``, ``postponed`` and ``buried``.
    :raises OutboxUnavailable: the outbox cannot be read or written; the next beat tries again.
    """
    return asdict(_tracker.get().drain(at_most=LONGEST_RUN))
