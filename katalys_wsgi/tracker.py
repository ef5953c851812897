"""The tracker wires the rooms together; a visit is one request's view of it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from html import escape
from traceback import extract_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .attribution.arrival import ArrivalReader
from .attribution.click import Click
from .attribution.cookie import ClickCookie, SignedText, click_from_payload, click_payload
from .conversion.order import Conversion, OrderUpdate
from .conversion.postback import Kind, Postback
from .errors import ConfigurationError, InvalidConversion, InvalidToken, OutboxUnavailable
from .events import Events, Hook
from .outbox import Added, Receipt, Verdict, open_outbox
from .process import ForkLock, PerProcess
from .settings import ENVIRONMENT, PYTHON, Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .delivery import Drained, Relay

#: Seconds that a checkout waits for Katalys, only when the outbox cannot be written.
DIRECT_DEADLINE = 2.0

#: Seconds beyond the deadline of an attempt that close() waits, for what came of it to be written down.
LAST_COMMIT = 2.0

TOKEN_VERSION = 1
TOKEN_SALT = "katalys_wsgi.visit.v1"  # noqa: S105 - a salt is no secret; it keeps one use's texts from another's


class Outcome(Enum):
    """What became of a call of ``record()``."""

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
    """The answer of ``record()``.

    :param key: identifies the message in the outbox, None when nothing was to be kept.
    :param problems: what is wrong with the data, one text for each fault.
    :param reason: why, in a few words, unless all went well.
    """

    outcome: Outcome
    key: str | None = None
    problems: tuple[str, ...] = ()
    reason: str = ""


class Visit:
    """One request's view: who came, through which click, and the way to record what they bought.

    :ivar click: the click that counts, None without one or without consent.
    :ivar client_ip: the visitor's address, None when it cannot be told.
    :ivar user_agent: the visitor's user agent, empty when there is none.
    :ivar strict: raise on invalid data or an unusable outbox; the setting, unless an adapter turns it on.
    :ivar defer: takes the function that writes to the outbox, to call it when the shop's transaction commits;
        None writes at once.
    """

    def __init__(
        self,
        tracker: Tracker,
        click: Click | None,
        client_ip: str | None,
        user_agent: str,
        *,
        refused: bool = False,
    ) -> None:
        self._tracker = tracker
        self.click = click
        self.client_ip = client_ip
        self.user_agent = user_agent
        self.refused = refused
        self.strict: bool = tracker.settings.strict
        self.defer: Callable[[Callable[[], Record]], None] | None = None

    def record(self, conversion: Conversion, *, connection: Any = None) -> Record:
        """Record a sale in the outbox, to be delivered to Katalys.

        :param connection: a SQLAlchemy connection or session of the database that also holds the outbox; the
            conversion is then kept if and only if its transaction commits.
        :raises InvalidConversion: the data has faults; only if strict.
        :raises OutboxUnavailable: the outbox cannot be written; only if strict.
        """
        return self._tracker._record(self, conversion, connection)

    def token(self) -> str:
        """This visit as a signed, URL-safe text, to be stored with the order and given to :meth:`Tracker.resume`.

        It holds the click, the address and the user agent, readable to whoever sees it; it does not expire.
        """
        click = click_payload(self.click) if self.click else None
        return self._tracker._tokens.dumps([TOKEN_VERSION, click, self.client_ip, self.user_agent, self.refused])


class Tracker:
    """Everything the package does for one shop, for use from any thread and any process.

    :param settings: a :class:`Settings`; without it every setting is taken by keyword.
    :param hooks: called with every :class:`~katalys_wsgi.events.Event`.
    :param clock: seconds since 1970.
    :raises ConfigurationError: a setting is missing, unknown or makes no sense.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        hooks: Iterable[Hook] = (),
        clock: Callable[[], float] = time.time,
        **options: Any,
    ) -> None:
        if settings is not None and options:
            raise ConfigurationError(f"{PYTHON.of(next(iter(options)))} is given beside a Settings; put it there.")
        self.settings = settings or Settings.from_mapping(options)
        self._events = Events(hooks)
        self.outbox: Any = open_outbox(self.settings.outbox, clock=clock, events=self._events)
        self._clock = clock
        self._arrivals = ArrivalReader(
            ClickCookie(
                self.settings.secret_key,
                window=self.settings.attribution_window,
                name=self.settings.cookie_name,
                domain=self.settings.cookie_domain,
                events=self._events,
            ),
            clock=clock,
            events=self._events,
            sources=self.settings.sources,
            attribution=self.settings.attribution,
            consent=self.settings.consent,
            reports_every_order=self.settings.conversion_type == "offline_conv",
            trusted_proxies=self.settings.trusted_proxies,
            cookie_secure=self.settings.cookie_secure,
        )
        self._tokens = SignedText(self.settings.secret_key, TOKEN_SALT)
        self._reports_every_order = self.settings.conversion_type == "offline_conv"
        self._email_key = self.settings.secret_key[0] if self.settings.hash_email else None
        self._relay = PerProcess(self._make_relay)
        self._thread = PerProcess(lambda: _RelayThread(self._relay))

    @classmethod
    def from_environ(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        hooks: Iterable[Hook] = (),
        clock: Callable[[], float] = time.time,
        **options: Any,
    ) -> Tracker:
        """A tracker with the settings of the environment, ``KATALYS_SITE_ID`` and so on; ``options`` go before them.

        :raises ConfigurationError: a setting is missing, unknown or makes no sense.
        """
        values = ENVIRONMENT.select(os.environ if environ is None else environ)
        return cls(Settings.from_mapping({**values, **options}, ENVIRONMENT), hooks=hooks, clock=clock)

    def __repr__(self) -> str:
        return f"Tracker({self.settings!r})"

    # --- the click ---

    def visit(self, request: Any) -> Visit:
        """One request's view; never raises because of what a visitor sent.

        :param request: a WSGI environ, or any object with ``.environ`` (Flask, WebOb, Pyramid, Bottle) or ``.META``.
        """
        environ = _environ(request)
        arrival, visitor = self._arrivals.arrival(environ), self._arrivals.visitor(environ)
        return Visit(self, arrival.click, visitor.client_ip, visitor.user_agent, refused=arrival.refused)

    def set_cookie_for(self, environ: WSGIEnvironment) -> str | None:
        """The value of the ``Set-Cookie`` header that the answer to this request needs, None for almost every one."""
        return self._arrivals.set_cookie_for(environ)

    def resume(self, token: str) -> Visit:
        """The visit of which ``token`` was made, in another request, process or week: payment webhooks, returns.

        A token that cannot be read gives a visit without a click, and a warning in the log.

        :raises InvalidToken: the token cannot be read; only if strict.
        """
        try:
            version, click, address, agent, refused = self._tokens.loads(token)
            if version != TOKEN_VERSION:
                raise ValueError("a token of another version")
            return Visit(self, click_from_payload(click) if click else None, address, agent, refused=refused)
        except (ValueError, TypeError) as fault:
            if self.settings.strict:
                raise InvalidToken(
                    f"The visit's token cannot be read ({fault}); store it whole and keep its key."
                ) from None
            self._events.emit("token_unreadable", reason=fault)
            return Visit(self, None, None, "")

    # --- recording ---

    def record_update(self, update: OrderUpdate, *, connection: Any = None) -> Record:
        """Record a later change of an order: a status, or further fields.

        Under ``force_convert`` the update of an order that was never recorded is not Katalys' business: NO_CLICK.

        :raises InvalidConversion: the data has faults; only if strict.
        :raises OutboxUnavailable: the outbox cannot be written; only if strict.
        """
        return self._guarded(lambda: self._record_update(update, connection), update)

    def script_tag(self, nonce: str | None = None) -> Html:
        """Katalys' JavaScript for every page of an ``offline_conv`` shop, as HTML that Jinja does not escape again.

        :param nonce: of the page's Content-Security-Policy.
        """
        address = urlsplit(self.settings.endpoint)
        source = f"{address.scheme}://{address.netloc}/js/{self.settings.site_id}.js"
        attribute = f' nonce="{escape(nonce)}"' if nonce else ""
        return Html(f'<script type="text/javascript" src="{escape(source)}" async{attribute}></script>')

    def deliver(self, stop: threading.Event, wake: threading.Event | None = None) -> None:
        """Deliver, in the calling thread, until ``stop`` is set; what ``katalys-wsgi deliver`` does.

        :param wake: ends the wait between two looks into the outbox.
        """
        self._relay.get().run(stop, wake or threading.Event())

    def drain(self, stop: threading.Event | None = None) -> Drained:
        """Deliver what is due, in the calling thread (tests, cron).

        :param stop: once set, no further row is begun.
        :returns: how many rows were ``settled``, ``postponed`` and ``buried``.
        :raises OutboxUnavailable: the outbox cannot be read or written.
        """
        return self._relay.get().drain(stop)

    def close(self) -> None:
        """Stop the delivery thread after the rows in hand, and close connections; the next record starts anew."""
        thread = self._thread.peek()
        if thread is not None:
            thread.stop(self.settings.deadline.total_seconds() + LAST_COMMIT)
        self.outbox.close()

    def _record(self, visit: Visit, conversion: Conversion, connection: Any) -> Record:
        def record() -> Record:
            return self._record_conversion(visit, conversion, connection)

        return self._guarded(record, conversion, strict=visit.strict)

    def _guarded(self, record: Callable[[], Record], order: object, *, strict: bool | None = None) -> Record:
        """Nothing that goes wrong in here may break a checkout, unless the developer wants to see it."""
        try:
            return record()
        except Exception as fault:
            if self.settings.strict if strict is None else strict:
                raise
            # The fault's own text may repeat the buyer's data; its place does not.
            place = extract_tb(fault.__traceback__)[-1]
            order_id = order.order_id if isinstance(order, (Conversion, OrderUpdate, Postback)) else None
            known = str(order_id) if isinstance(order_id, (str, int)) else "unknown"
            return self._lost(known, f"{type(fault).__name__} at {place.name}:{place.lineno}")
        finally:
            self._start_relay()

    def _record_conversion(self, visit: Visit, conversion: Conversion, connection: Any) -> Record:
        problems = conversion.problems()
        if problems and visit.strict:
            raise InvalidConversion(str(conversion.order_id), problems)
        if visit.refused:
            return Record(Outcome.NO_CONSENT, reason="the visitor did not consent")
        if visit.click is None and not self._reports_every_order:
            return Record(Outcome.NO_CLICK, reason="the visitor did not come through a Katalys link")
        if visit.client_ip is None:
            self._events.emit_once("client_ip_unknown", advice="is trusted_proxies the number of your proxies?")
        postback = Postback.from_conversion(
            conversion,
            site_id=self.settings.site_id,
            conversion_type=self.settings.conversion_type,
            click=visit.click,
            client_ip=visit.client_ip,
            user_agent=visit.user_agent,
            email_key=self._email_key,
        )
        if visit.defer is None or connection is not None:  # a connection has its own commit
            return self._keep(postback, problems, connection, strict=visit.strict)
        visit.defer(lambda: self._guarded(lambda: self._keep(postback, problems, None, strict=False), postback))
        return Record(Outcome.DEFERRED, postback.key, tuple(problems), "waits for the commit")

    def _record_update(self, update: OrderUpdate, connection: Any) -> Record:
        problems = update.problems()
        if problems and self.settings.strict:
            raise InvalidConversion(str(update.order_id), problems)
        postback = Postback.from_update(update, site_id=self.settings.site_id, email_key=self._email_key)
        if not self._reports_every_order and not self.outbox.history(postback.order_id, connection=connection):
            return Record(Outcome.NO_CLICK, reason="no conversion of this order was recorded")
        return self._keep(postback, problems, connection, strict=self.settings.strict)

    def _keep(self, postback: Postback, problems: Sequence[str], connection: Any, *, strict: bool) -> Record:
        try:
            added = self.outbox.add(postback, problems=problems, connection=connection)
        except OutboxUnavailable as fault:
            if strict:
                raise
            if connection is not None:  # the order may yet be rolled back, so it must not be sent
                return self._lost(postback.order_id, str(fault), postback.key, problems)
            return self._send_directly(postback, problems, str(fault))
        outcome, reason = _INVALID if problems else _ADDED[added]
        self._events.emit(_EVENTS[postback.kind, outcome], order_id=postback.order_id, reason=reason)
        return Record(outcome, postback.key, tuple(problems), reason)

    def _send_directly(self, postback: Postback, problems: Sequence[str], why: str) -> Record:
        """The last resort of a checkout whose outbox cannot be written: one attempt with a short deadline."""
        if problems:
            return self._lost(postback.order_id, why, postback.key, problems)
        with closing(_delivery().Sender(self.settings)) as sender:
            receipt: Receipt = sender.send(postback.payload, deadline=DIRECT_DEADLINE)
        if receipt.verdict is not Verdict.DELIVERED:
            return self._lost(postback.order_id, f"{why} Sending it directly failed too: {receipt.error}", postback.key)
        self._events.emit("conversion_sent_directly", order_id=postback.order_id, reason=why)
        return Record(Outcome.SENT_DIRECTLY, postback.key, reason=why)

    def _lost(self, order_id: str, why: str, key: str | None = None, problems: Sequence[str] = ()) -> Record:
        self._events.emit("conversion_lost", order_id=order_id, reason=why)
        return Record(Outcome.LOST, key, tuple(problems), why)

    # --- delivery ---

    def _make_relay(self) -> Relay:
        relay: Relay = _delivery().Relay(self.outbox, self.settings, events=self._events, clock=self._clock)
        return relay

    def _start_relay(self) -> None:
        """At any checkout, an affiliate's or not: what a killed process left behind is delivered then."""
        if self.settings.delivery == "thread":
            if not _threads_run():
                self._events.emit_once("threads_disabled", advice="set enable-threads, or delivery=external")
                return
            if _is_uwsgi_master():
                return  # a worker's relay delivers it
            try:
                self._thread.get().wake()
            except RuntimeError as fault:  # no more threads, or the interpreter is leaving: the row stays for the next
                self._events.emit("relay_not_started", reason=fault)


class _RelayThread:
    """The relay of one process, in a daemon thread that starts when there may be something to do."""

    def __init__(self, relay: PerProcess[Relay]) -> None:
        self._relay = relay
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._wake = threading.Event()

    def wake(self) -> None:
        """Start the thread unless it runs, and have it look into the outbox now."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._stop = threading.Event()
                thread = threading.Thread(target=self._run, args=(self._stop,), name="katalys-relay", daemon=True)
                thread.start()
                self._thread = thread
        self._wake.set()

    def stop(self, patience: float) -> None:
        """Have the thread finish the rows in hand, and wait for that up to ``patience`` seconds."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
            self._wake.set()
        if thread is not None:  # outside the lock: a page may be about to record
            thread.join(patience)

    def _run(self, stop: threading.Event) -> None:
        self._relay.get().run(stop, self._wake)


class Html(str):
    """Text that is HTML already; template engines that know ``__html__`` do not escape it."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)


_ADDED = {
    Added.NEW: (Outcome.RECORDED, ""),
    Added.REPLACED: (Outcome.RECORDED, "in place of a dead letter"),
    Added.SAME: (Outcome.DUPLICATE, "recorded before"),
    Added.DIFFERENT: (Outcome.DUPLICATE, "recorded before with other fields; those stand"),
}
_EVENTS = {
    (Kind.CONVERSION, Outcome.RECORDED): "conversion_recorded",
    (Kind.CONVERSION, Outcome.DUPLICATE): "conversion_duplicate",
    (Kind.CONVERSION, Outcome.INVALID): "conversion_invalid",
    (Kind.UPDATE, Outcome.RECORDED): "update_recorded",
    (Kind.UPDATE, Outcome.DUPLICATE): "update_duplicate",
    (Kind.UPDATE, Outcome.INVALID): "update_invalid",
}
_INVALID = (Outcome.INVALID, "kept as a dead letter, to be corrected")


_loading = ForkLock()


def _delivery() -> ModuleType:
    """The room that loads requests, which the pages otherwise do without.

    A child that is born while another thread imports a module can never import it: its lock stays locked.
    """
    with _loading:
        from . import delivery
    return delivery


def _is_uwsgi_master() -> bool:
    """Whether uWSGI is still loading the shop; a thread that runs while it forks deadlocks its workers at times."""
    # https://github.com/unbit/uwsgi/issues/2387
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and not getattr(uwsgi, "worker_id", os.getpid)()


_UWSGI_THREADS = ("enable-threads", b"enable-threads", "threads", b"threads")


def _threads_run() -> bool:
    """Whether threads get a turn: uWSGI, unless told otherwise, keeps the interpreter's lock between requests."""
    uwsgi = sys.modules.get("uwsgi")  # there only inside uWSGI
    # Values from an ini file are bytes, b"false" included.
    chosen = [] if uwsgi is None else [value for name, value in uwsgi.opt.items() if name in _UWSGI_THREADS]
    return uwsgi is None or any(value not in (False, b"false", b"0", "false", "0") for value in chosen)


def _environ(request: Any) -> WSGIEnvironment:
    if isinstance(request, dict):
        return request
    environ = getattr(request, "environ", None) or getattr(request, "META", None)
    if environ is None:
        raise TypeError(
            f"{type(request).__name__} is no request; give the WSGI environ, or an object with .environ or .META"
        )
    return environ  # type: ignore[no-any-return] # whatever the framework keeps there
