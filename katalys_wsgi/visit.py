"""A visit: one request's view of who came, and the verbs that record what they bought."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from .attribution.click import Click
from .conversion.order import Conversion, OrderUpdate

__all__ = ["TRACKER", "Defer", "Outcome", "Record", "Verbs", "Visit"]

#: The key under which a middleware leaves its tracker in the WSGI environ, for the application to find it.
TRACKER = "katalys_wsgi.tracker"


class Outcome(Enum):
    """What became of a call of ``record()`` or ``record_update()``."""

    RECORDED = "recorded"  # in the outbox: it will be delivered
    DUPLICATE = "duplicate"  # the order was recorded before
    NO_CLICK = "no click"  # not an affiliate's sale
    NO_CONSENT = "no consent"
    INVALID = "invalid"  # kept as a dead letter, with its problems
    DEFERRED = "deferred"  # will be recorded when the shop's transaction commits
    SENT_DIRECTLY = "sent directly"  # the outbox could not be written, Katalys took it at once
    LOST = "lost"  # neither the outbox nor Katalys could take it


@dataclass(frozen=True)
class Record:
    """The answer of ``record()`` and ``record_update()``.

    :param key: identifies the message in the outbox; None when there is no message.
    :param problems: what is wrong with the data, a string ``"field: problem and what to do"`` each. A sale that is
        RECORDED is reported without the fields that are named here.
    :param reason: why, in a few words; empty when all went well.
    """

    outcome: Outcome
    key: str | None = None
    problems: tuple[str, ...] = ()
    reason: str = ""


#: Takes the function that writes to the outbox, and calls it after the shop's transaction has committed.
Defer = Callable[[Callable[[], Record]], None]


class Verbs(NamedTuple):
    """What a visit does, as functions that :class:`~katalys_wsgi.Tracker` provides."""

    record: Callable[[Visit, Conversion, Any], Record]
    record_update: Callable[[Visit, OrderUpdate, Any], Record]
    token: Callable[[Visit], str]
    resume: Callable[[Visit, str], Visit]


@dataclass(frozen=True)
class Visit:
    """One request's view: who came, through which click, and the way to record what they bought.

    Made by :meth:`Tracker.visit <katalys_wsgi.Tracker.visit>` and handed out by every adapter.

    :param click: the click that counts; None without one or without consent.
    :param client_ip: the visitor's IP address; None when it is not known for sure.
    :param user_agent: the visitor's User-Agent header; empty when there is none.
    :param no_consent: there is a click, or every order is reported, and the visitor did not consent.
    :param strict: raise for invalid data and an unusable outbox.
    :param unseen: no middleware of this package has seen the request, so a click may have been missed.
    :param defer: puts writing off until the shop's transaction has committed; None writes at once.
    """

    click: Click | None
    client_ip: str | None = field(repr=False)  # a repr ends in logs
    user_agent: str = field(repr=False)
    no_consent: bool = False
    strict: bool = False
    unseen: bool = False
    defer: Defer | None = field(default=None, repr=False, compare=False)
    verbs: Verbs = field(repr=False, compare=False, kw_only=True)

    def record(self, conversion: Conversion, *, connection: Any = None) -> Record:
        """Record a sale in the outbox, to be delivered to Katalys. Never raises unless strict.

        :param conversion: a :class:`~katalys_wsgi.Conversion`.
        :param connection: a SQLAlchemy Connection or Session of the database that also holds the outbox: the
            conversion is kept if and only if its transaction commits.
        :raises InvalidConversion: the data has problems; only if strict.
        :raises OutboxUnavailable: the outbox cannot be written; only if strict.
        :raises UnusableConnection: the outbox cannot join ``connection``; only if strict. Otherwise the sale is
            recorded without it, which is logged once.
        """
        return self.verbs.record(self, conversion, connection)

    def record_update(self, update: OrderUpdate, *, connection: Any = None) -> Record:
        """Record a later change of an order: a status, or further fields. The visit's click plays no part in it.

        Under ``force_convert`` the update of an order that this shop never recorded is not sent: NO_CLICK.

        :param update: an :class:`~katalys_wsgi.OrderUpdate`.
        :param connection: as in :meth:`record`; raises the same.
        """
        return self.verbs.record_update(self, update, connection)

    def token(self) -> str:
        """This visit as a signed, URL-safe string, to be stored with the order and given to :meth:`resume` later.

        It holds the click, the address and the user agent, readable to whoever sees it; it does not expire.
        """
        return self.verbs.token(self)

    def resume(self, token: str) -> Visit:
        """The visit of which ``token`` was made, with the strictness and the transaction of this one.

        A token that cannot be read gives a visit without a click, and a warning in the log.

        :raises InvalidToken: the token cannot be read; only if strict.
        """
        return self.verbs.resume(self, token)
