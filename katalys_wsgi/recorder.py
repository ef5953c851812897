"""Recording: an order becomes a postback in the outbox; or is sent directly; or is reported lost.

The outbox comes first, since what is in it survives a restart. Only when it cannot be written, and no transaction of
the shop may yet undo the order, one attempt is made from the page itself, within :data:`DIRECT_DEADLINE`. What neither
way takes is logged as ``conversion_lost`` with its order id, so that the operator can record it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime, timezone
from functools import partial
from traceback import extract_tb
from typing import Any, TypeVar

from .conversion.order import Checked, Conversion, OrderUpdate, check_order
from .conversion.postback import Kind, Postback
from .errors import InvalidConversion, KatalysError, OutboxMissing, OutboxUnavailable, UnusableConnection, WrongCall
from .events import Events
from .outbox import Added, Outbox, Receipt, Verdict
from .process import IMPORTS
from .settings import Settings
from .visit import Outcome, Record, Visit

__all__ = ["DIRECT_DEADLINE", "Recorder"]

_Order = TypeVar("_Order", Conversion, OrderUpdate)

#: Seconds that a checkout waits for Katalys, only when the outbox cannot be written.
DIRECT_DEADLINE = 2.0


class Recorder:
    """Records conversions and updates of one shop.

    Nothing that goes wrong in here breaks a checkout, unless the visit is strict. One object serves all threads.

    :param settings: site_id, conversion_type and hash_email decide what a message says; the rest is for the direct
        attempt.
    :param outbox: where the postbacks are kept.
    :param events: where each outcome is reported; see :data:`~katalys_wsgi.events.EVENTS`.
    :param wake: called after each call and each deferred write, whatever came of it: starts the relay.
    :param held: says why postbacks stay on this machine for now; None when they may leave.
    :param clock: seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        *,
        events: Events,
        wake: Callable[[], None],
        held: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._events = events
        self._wake = wake
        self._held = held
        self._clock = clock
        self._reports_every_order = settings.conversion_type == "offline_conv"
        self._email_key = settings.secret_key[0] if settings.hash_email else None

    def record(self, visit: Visit, conversion: Conversion, connection: Any) -> Record:
        """See :meth:`Visit.record <katalys_wsgi.Visit.record>`.

        :param connection: the shop's own connection or session, in whose transaction the postback is written; or None.
        :returns: what became of the conversion, never raising unless ``visit`` is strict.
        :raises Exception: strict only: wrong data, a wrong type, and whatever keeps the outbox from being written.
        """
        return self._guarded(lambda: self._record(visit, conversion, connection), conversion, strict=visit.strict)

    def record_update(self, visit: Visit, update: OrderUpdate, connection: Any) -> Record:
        """See :meth:`Visit.record_update <katalys_wsgi.Visit.record_update>`.

        :param connection: as of :meth:`record`; a conversion recorded by the same transaction is seen.
        :returns: what became of the update: ``NO_CLICK`` if no conversion of its order was recorded, since Katalys
            could do nothing with it; not asked in a shop that reports every order (``offline_conv``).
        :raises Exception: as of :meth:`record`.
        """
        return self._guarded(lambda: self._record_update(visit, update, connection), update, strict=visit.strict)

    def _guarded(self, record: Callable[[], Record], order: object, *, strict: bool) -> Record:
        """What ``record`` answers; or, unless strict, that the sale of ``order`` is lost because it raised.

        The relay is woken either way.
        """
        try:
            return record()
        except Exception as error:
            if strict:
                raise
            return self._lost(_order_id(order), _described(error))
        finally:
            self._wake()

    def _record(self, visit: Visit, conversion: Conversion, connection: Any) -> Record:
        """A conversion's way: is it ours to report, what does it say, and into which transaction does it go."""
        _check_type(conversion, Conversion, "record")
        checked = _checked(conversion, strict=visit.strict)
        if visit.no_consent:
            return Record(Outcome.NO_CONSENT, reason="the visitor did not consent")
        if visit.click is None and not self._reports_every_order:
            return Record(Outcome.NO_CLICK, reason=_UNSEEN if visit.unseen else _NO_LINK)
        if visit.client_ip is None:
            self._events.emit_once("client_ip_unknown", advice="is trusted_proxies the number of your proxies?")
        postback = Postback.from_conversion(
            checked.value,
            site_id=self._settings.site_id,
            conversion_type=self._settings.conversion_type,
            click=visit.click,
            client_ip=visit.client_ip,
            user_agent=visit.user_agent,
            email_key=self._email_key,
            recorded_at=datetime.fromtimestamp(self._clock(), timezone.utc),
        )
        return self._write(visit, connection, self._add, postback, checked)

    def _record_update(self, visit: Visit, update: OrderUpdate, connection: Any) -> Record:
        """An update's way: like a conversion's, without click and consent, which its order had when it was recorded."""
        _check_type(update, OrderUpdate, "record_update")
        checked = _checked(update, strict=visit.strict)
        postback = Postback.from_update(checked.value, site_id=self._settings.site_id, email_key=self._email_key)
        return self._write(visit, connection, self._add_update, postback, checked)

    def _write(
        self, visit: Visit, connection: Any, add: Callable[..., Record], postback: Postback, checked: Checked[Any]
    ) -> Record:
        """Call ``add`` within ``connection``'s transaction, or after the visit's, or at once.

        A connection that the outbox cannot join is reported once and left out, unless the visit is strict. What is
        deferred is never strict: a commit has happened by then, and an exception would come too late.
        """
        if connection is not None:
            try:
                return add(postback, checked, connection, strict=visit.strict)
            except UnusableConnection as error:
                if visit.strict:
                    raise
                self._events.emit_once("connection_unusable", reason=error, advice="leave connection= out")
        if visit.defer is None:
            return add(postback, checked, None, strict=visit.strict)
        later = partial(add, postback, checked, None, strict=False)
        visit.defer(lambda: self._guarded(later, postback, strict=False))
        return Record(Outcome.DEFERRED, postback.key, tuple(checked.problems), "waits for the commit")

    def _add_update(self, postback: Postback, checked: Checked[Any], connection: Any, *, strict: bool) -> Record:
        """Keep an update in the outbox if its order is ours to report; arguments as of :meth:`_add`."""
        # Asked when it is written, not before: the order itself may be recorded by the same transaction.
        if not self._reports_every_order and not self._is_known(postback.order_id, connection):
            return Record(Outcome.NO_CLICK, reason="no conversion of this order was recorded")
        return self._add(postback, checked, connection, strict=strict)

    def _is_known(self, order_id: str, connection: Any) -> bool:
        """Whether anything was recorded of the order, also by the open transaction of ``connection``."""
        try:
            return bool(self._outbox.history(order_id, connection=connection))
        except OutboxMissing:
            return False  # nothing was ever recorded

    def _add(self, postback: Postback, checked: Checked[Any], connection: Any, *, strict: bool) -> Record:
        """Keep ``postback`` in the outbox, as a dead letter if it has blocking problems.

        :param connection: the transaction to write in; without one, an outbox that cannot be written is made up for by
            a direct attempt.
        :param strict: raise where the outbox cannot be written, instead of sending directly.
        """
        try:
            added = self._outbox.add(postback, problems=checked.blocking, connection=connection)
        except OutboxUnavailable as error:
            if strict:
                raise
            if connection is not None:  # the order may yet be rolled back, so it must not be sent
                return self._lost(postback.order_id, str(error), postback.key, tuple(checked.problems))
            return self._send_directly(postback, checked, str(error))
        outcome, reason = (Outcome.INVALID, _to_correct(checked)) if checked.blocking else _ADDED[added]
        if outcome is not Outcome.DUPLICATE:
            reason = _with_left_out(reason, checked)
        self._events.emit(_EVENTS[postback.kind, outcome], order_id=postback.order_id, reason=reason)
        return Record(outcome, postback.key, tuple(checked.problems), reason)

    def _send_directly(self, postback: Postback, checked: Checked[Any], why: str) -> Record:
        """The last resort of a checkout whose outbox cannot be written: one attempt with a short deadline.

        :param why: the outbox cannot be written; part of the event and of the record.
        """
        lost = partial(self._lost, postback.order_id, key=postback.key, problems=tuple(checked.problems))
        if checked.blocking:
            return lost(why)
        held = self._held()
        if held is not None:
            return lost(f"{why} It was not sent directly: {held}.")
        receipt = _send(self._settings, postback.payload)
        if receipt.verdict is not Verdict.DELIVERED:
            return lost(f"{why} Sending it directly failed too: {receipt.error}")
        reason = _with_left_out(why, checked)
        self._events.emit("conversion_sent_directly", order_id=postback.order_id, reason=reason)
        return Record(Outcome.SENT_DIRECTLY, postback.key, tuple(checked.problems), reason)

    def _lost(self, order_id: str, why: str, key: str | None = None, problems: Sequence[str] = ()) -> Record:
        """Report a sale that neither the outbox nor Katalys took, so that the operator can record it again."""
        self._events.emit("conversion_lost", order_id=order_id, reason=why)
        return Record(Outcome.LOST, key, tuple(problems), why)


_ADDED = {
    Added.NEW: (Outcome.RECORDED, ""),
    Added.REPLACED: (Outcome.RECORDED, "in place of a dead letter"),
    Added.SAME: (Outcome.DUPLICATE, "recorded before"),
    Added.DIFFERENT: (Outcome.DUPLICATE, "recorded before with other fields, which stand"),
}
_NO_LINK = "the visitor did not come through a Katalys link"
_UNSEEN = f"{_NO_LINK}, or it was missed: no ClickMiddleware has seen this request"
_EVENTS = {
    (Kind.CONVERSION, Outcome.RECORDED): "conversion_recorded",
    (Kind.CONVERSION, Outcome.DUPLICATE): "conversion_duplicate",
    (Kind.CONVERSION, Outcome.INVALID): "conversion_invalid",
    (Kind.UPDATE, Outcome.RECORDED): "update_recorded",
    (Kind.UPDATE, Outcome.DUPLICATE): "update_duplicate",
    (Kind.UPDATE, Outcome.INVALID): "update_invalid",
}


def _check_type(order: object, kind: type, verb: str) -> None:
    """Refuse what is not of ``kind``, saying what to pass instead."""
    if isinstance(order, kind):
        return
    hint = {Conversion: "; use record() for it", OrderUpdate: "; use record_update() for it"}.get(type(order), "")
    raise WrongCall(f"{verb}() takes {kind.__name__}(order_id=..., ...), not {type(order).__name__}{hint}.")


def _checked(order: _Order, *, strict: bool) -> Checked[_Order]:
    """What can be reported of ``order``, and what is wrong; if strict and anything is, InvalidConversion is raised."""
    checked = check_order(order)
    if checked.problems and strict:
        raise InvalidConversion(_order_id(order), checked.problems)
    return checked


def _to_correct(checked: Checked[Any]) -> str:
    """Why an order is invalid."""
    return f"kept as a dead letter, to be corrected: {_fields(checked.blocking)}"


def _with_left_out(reason: str, checked: Checked[Any]) -> str:
    """``reason``, and which fields of the order were not reported."""
    if not checked.left_out:
        return reason
    return f"{reason}; left out: {_fields(checked.left_out)}".removeprefix("; ")


def _fields(problems: Sequence[str]) -> str:
    """The names of the fields that have problems: their values may be personal data."""
    return ", ".join(dict.fromkeys(problem.partition(":")[0] for problem in problems))


def _order_id(order: object) -> str:
    """The order id for the log, whatever the caller passed; never raises."""
    order_id = order.order_id if isinstance(order, (Conversion, OrderUpdate, Postback)) else None
    try:
        return str(order_id) if isinstance(order_id, (str, int)) else "unknown"
    except Exception:  # noqa: BLE001 - a number of too many digits, or a string class of the shop's
        return "unknown"


def _described(error: Exception) -> str:
    """An error for the log: its type and place, without its message, which may repeat the buyer's data; ours do not."""
    if isinstance(error, KatalysError):
        return str(error)
    place = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {place.name}:{place.lineno}"


def _send(settings: Settings, payload: str) -> Receipt:
    """One attempt from the page itself, within :data:`DIRECT_DEADLINE` seconds; never raises what the network does."""
    with IMPORTS:
        from .delivery.sender import Sender  # loads requests, which the shop's pages otherwise do without
    with closing(Sender(settings)) as sender:
        return sender.send(payload, deadline=DIRECT_DEADLINE)
