"""What happened, told twice: one log line, and every hook the shop registered.

An event carries order ids, states, counts and status codes. It never carries an e-mail address, an IP
address, a cookie or a secret key, so that logs and metrics need no special care.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

log = logging.getLogger("katalys_wsgi")


@dataclass(frozen=True)
class Event:
    """One thing that happened: ``name`` such as ``postback_delivered`` and its ``fields``."""

    name: str
    level: int = logging.INFO
    fields: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        text = " ".join([f"katalys_wsgi.{self.name}", *(f"{key}={value}" for key, value in self.fields.items())])
        # A line feed in an order id must not forge a second line of log.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Hook(Protocol):
    """Called with every event, in the thread it happened in; what it raises is logged and goes no further."""

    def __call__(self, event: Event, /) -> None:
        """Take note of ``event``; be quick, a page may be waiting."""
        ...


class Events:
    """Writes events to the log ``katalys_wsgi`` and hands them to the hooks."""

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self._hooks = tuple(hooks)
        self._told: set[str] = set()

    def emit(self, name: str, *, level: int = logging.INFO, **fields: object) -> None:
        """Tell the log and the hooks; never raises."""
        event = Event(name, level, fields)
        log.log(level, "%s", event, extra={"katalys": event})
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                log.exception("katalys_wsgi.hook_failed event=%s", name)

    def warn_once(self, name: str, **fields: object) -> None:
        """Tell a fault of the set-up once in this object's life, not once a request."""
        if name not in self._told:
            self._told.add(name)
            self.emit(name, level=logging.WARNING, **fields)
