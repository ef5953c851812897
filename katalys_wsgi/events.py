"""Events: what happened, as one log line and one call of every hook.

An event carries order ids, states, counts and status codes. It never carries an e-mail address, an IP address, a
cookie or a secret key, so logs and metrics built from events need no special care.

The catalogue :data:`EVENTS` lists every event with its level, its fields and what it means. An event of level ERROR or
above asks the operator to do something; the catalogue's advice says what.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from logging import CRITICAL, DEBUG, ERROR, INFO, WARNING
from types import MappingProxyType
from typing import Protocol

__all__ = ["EVENTS", "Event", "EventType", "Events", "Hook"]

log: logging.Logger = logging.getLogger("katalys_wsgi")


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    :param name: one of :data:`EVENTS`, such as ``"postback_delivered"``.
    :param level: a level of :mod:`logging`.
    :param fields: what :data:`EVENTS` lists for this name; values print as one word or one sentence.
    """

    name: str
    level: int = logging.INFO
    fields: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        """The log line: ``katalys_wsgi.NAME key=value …``, with characters that are not printable escaped."""
        text = " ".join([f"katalys_wsgi.{self.name}", *(f"{key}={value}" for key, value in self.fields.items())])
        # A line feed in an order id must not forge a second log line.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Hook(Protocol):
    """A function that is called with every event, in the thread it happened in.

    What a hook raises is logged and goes no further.
    """

    def __call__(self, event: Event, /) -> None:
        """Take note of ``event``; be quick, a page may be waiting.

        It may be called by several threads at once: those of the shop's pages and those of the relay.
        """
        ...


@dataclass(frozen=True)
class EventType:
    """An entry of the catalogue :data:`EVENTS`.

    :param level: a level of :mod:`logging`.
    :param fields: the names of the event's fields.
    :param meaning: what happened, in a sentence.
    :param advice: what the operator should do; empty when there is nothing to do.
    """

    level: int
    fields: tuple[str, ...]
    meaning: str
    advice: str = ""


_TUNE_PROXIES = "Set trusted_proxies to the number of proxies in front of the shop."

#: Every event there is, by name.
EVENTS: Mapping[str, EventType] = MappingProxyType({
    # start
    "tracker_started": EventType(
        INFO, ("site_id", "endpoint", "outbox", "delivery", "live"), "A process of the shop was first used.",
    ),
    "site_id_unusual": EventType(
        WARNING, ("site_id", "advice"), "The Tracking ID is neither KA-… nor a domain; logged once.",
        "Compare it with Katalys' Integrations page; if it stands there, all is well.",
    ),
    "middleware_missing": EventType(
        ERROR, ("advice",), "No middleware has seen the request, so clicks are not kept; logged once.",
        "Put ClickMiddleware (or the framework's adapter) around the application.",
    ),
    # attribution
    "click_refused": EventType(
        INFO, ("reason",), "A link with an id of Katalys' brought no click; logged once a minute for each reason.",
        "Compare it with Katalys' own links; a payment gateway's or another network's link is rightly refused.",
    ),
    "cookie_unreadable": EventType(
        DEBUG, ("reason",), "A click cookie was altered, cut short or signed with an unknown key.",
    ),
    "consent_failed": EventType(
        ERROR, ("reason",), "The consent function raised; the visitor counts as one without consent.",
        "Fix the function given as consent.",
    ),
    "proxy_ignored": EventType(
        WARNING, ("header", "advice"), "A proxy announced itself by a header that is not trusted; logged once.",
        _TUNE_PROXIES,
    ),
    "token_unreadable": EventType(
        WARNING, ("reason",), "A visit token could not be read; the visit has no click.",
        "Store tokens whole, and keep the secret key they were signed with.",
    ),
    "client_ip_unknown": EventType(
        WARNING, ("advice",), "A sale was recorded without the buyer's address; logged once.", _TUNE_PROXIES,
    ),
    # recording
    "conversion_recorded": EventType(
        INFO, ("order_id", "reason"),
        "A sale is in the outbox and will be delivered; the reason names optional fields that were left out.",
    ),
    "conversion_duplicate": EventType(
        INFO, ("order_id", "reason"), "The order was recorded before; the first record stands.",
    ),
    "conversion_invalid": EventType(
        ERROR, ("order_id", "reason"), "A sale cannot be reported as it stands; it is kept as a dead letter.",
        "Correct it with: katalys-wsgi retry ORDER --set FIELD=VALUE, or record the order again.",
    ),
    "update_recorded": EventType(
        INFO, ("order_id", "reason"),
        "An order update is in the outbox and will be delivered; the reason names optional fields that were left out.",
    ),
    "update_duplicate": EventType(INFO, ("order_id", "reason"), "The very same update was recorded before."),
    "update_invalid": EventType(
        ERROR, ("order_id", "reason"), "An order update cannot be reported as it stands; it is kept as a dead letter.",
        "Correct it with: katalys-wsgi retry ORDER --set FIELD=VALUE, or record the update again.",
    ),
    "connection_unusable": EventType(
        ERROR, ("reason", "advice"),
        "connection= was given to an outbox that cannot join it; the sale was recorded without it. Logged once.",
        "Leave connection= out, or set outbox to the SQLAlchemy URL of the shop's database.",
    ),
    "conversion_sent_directly": EventType(
        ERROR, ("order_id", "reason"), "The outbox could not be written; Katalys took the sale at once.",
        "Make the outbox writable again; the reason says what is wrong.",
    ),
    "conversion_lost": EventType(
        ERROR, ("order_id", "reason"), "Neither the outbox nor Katalys could take the sale.",
        "Remove the cause, then record the order again.",
    ),
    # delivery
    "postback_delivered": EventType(
        INFO, ("order_id", "kind", "attempts", "status", "confirmed"), "Katalys received a message.",
    ),
    "postback_postponed": EventType(
        WARNING, ("order_id", "kind", "attempts", "status", "reason"), "An attempt failed; it will be repeated.",
    ),
    "postback_buried": EventType(
        ERROR, ("order_id", "kind", "attempts", "status", "reason"), "A message became a dead letter.",
        "Ask: katalys-wsgi why ORDER. Then: katalys-wsgi retry ORDER --set FIELD=VALUE.",
    ),
    "delivery_held": EventType(
        WARNING, ("reason", "advice"), "Postbacks wait in the outbox instead of leaving this machine; logged once.",
        "Nothing, in development and tests. To send them set live=true (KATALYS_LIVE).",
    ),
    "endpoint_paused": EventType(
        ERROR, ("status", "reason"), "Delivery pauses, and one row at a time finds out when it works again.",
        "Check site_id and endpoint where status is 401, 403, 404, 405 or 410; else wait.",
    ),
    "endpoint_resumed": EventType(INFO, (), "Delivery goes on after a pause."),
    "relay_failed": EventType(
        ERROR, ("reason",), "An unexpected error ended a look into the outbox; the relay tries again.",
        "Report it to the authors of this package.",
    ),
    "relay_not_started": EventType(
        WARNING, ("reason",), "The relay thread could not be started; the next record() tries again.",
        "See why the process cannot start threads, or run: katalys-wsgi deliver.",
    ),
    "threads_disabled": EventType(
        WARNING, ("advice",), "uWSGI runs no threads, so this process delivers nothing; logged once.",
        "Set enable-threads = true, or delivery = external and run: katalys-wsgi deliver.",
    ),
    # the outbox
    "outbox_unavailable": EventType(
        ERROR, ("reason",), "The relay cannot read or write the outbox; it tries again.",
        "Remove the cause that the reason names.",
    ),
    "outbox_damaged": EventType(
        CRITICAL, ("quarantined_as", "rows_saved"),
        "The outbox file was damaged; its readable rows are in a new file.",
        "Keep the quarantined file until you know that nothing is missing, and check the disk.",
    ),
    "outbox_pruned": EventType(INFO, ("rows",), "Entries finished longer ago than retention were deleted."),
    # hooks
    "hook_failed": EventType(
        ERROR, ("event",), "A hook raised; logged with its traceback, and not handed to hooks.", "Fix the hook.",
    ),
})  # fmt: skip


class Events:
    """Writes events to the log ``katalys_wsgi`` and hands them to the hooks; safe to share between threads.

    A log record has its event as the attribute ``katalys``, for a formatter that writes JSON.

    :param hooks: called in this order with every event.
    """

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self._hooks = tuple(hooks)
        self._emitted_once: set[str] = set()

    def emit(self, name: str, **fields: object) -> None:
        """Log an event and call the hooks; what a hook raises is logged as ``hook_failed``.

        :param name: one of :data:`EVENTS`, whose level it gets.
        :param fields: those that the catalogue lists for ``name``, without personal data.
        :raises KeyError: there is no such event; a hook's exceptions do not get out.
        """
        event = Event(name, EVENTS[name].level, fields)
        log.log(event.level, "%s", event, extra={"katalys": event})
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                log.exception("%s", Event("hook_failed", EVENTS["hook_failed"].level, {"event": name}))

    def emit_once(self, name: str, **fields: object) -> None:
        """Emit a problem of the configuration once in this object's life, not once a request.

        It counts by name, so further ones of the same name are neither logged nor handed to hooks. Two threads may both
        emit the first one.

        :param name: and ``fields`` as of :meth:`emit`.
        """
        if name not in self._emitted_once:
            self._emitted_once.add(name)
            self.emit(name, **fields)
