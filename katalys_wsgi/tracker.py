"""The tracker wires the rooms together; a visit is one request's view of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from html import escape
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from .attribution.click import MARKER, Click
from .attribution.cookie import ClickCookie, SignedText, click_from_payload, click_payload
from .attribution.visitor import client_ip, ignores_proxy, is_https, user_agent
from .conversion.order import Conversion, OrderUpdate
from .conversion.postback import Kind, Postback
from .delivery.background import RelayThread
from .errors import ConfigurationError, InvalidConversion, InvalidToken, OutboxUnavailable
from .events import Events, Hook
from .outbox import Added, Verdict, open_outbox
from .process import ForkLock, PerProcess
from .settings import ENVIRONMENT, PYTHON, Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .delivery.relay import Drained, Relay
    from .delivery.sender import Sender

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


class _Arrival(NamedTuple):
    """What a request says about a click."""

    click: Click | None
    is_new: bool
    refused: bool = False  # there is a click, and no consent to use it


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
        self._cookie = ClickCookie(
            self.settings.secret_key,
            window=self.settings.attribution_window,
            name=self.settings.cookie_name,
            domain=self.settings.cookie_domain,
        )
        self._tokens = SignedText(self.settings.secret_key, TOKEN_SALT)
        self._arrival_key = f"katalys_wsgi.arrival.{self.settings.cookie_name}"
        self._cookie_key = f"katalys_wsgi.cookie.{self.settings.cookie_name}"
        self._reports_every_order = self.settings.conversion_type == "offline_conv"
        self._email_key = self.settings.secret_key[0] if self.settings.hash_email else None
        self._relay = PerProcess(self._make_relay)
        self._thread = PerProcess(lambda: RelayThread(self._make_relay, self._events))
        self._stopped = False

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
        arrival = self._arrival(environ)
        proxies = self.settings.trusted_proxies
        self._warn_of_proxy(environ)
        return Visit(self, arrival.click, client_ip(environ, proxies), user_agent(environ), refused=arrival.refused)

    def set_cookie_for(self, environ: WSGIEnvironment) -> str | None:
        """The value of the ``Set-Cookie`` header that the answer to this request needs, None for almost every one."""
        if self._cookie_key in environ:
            return None  # wrapped twice
        arrival = self._arrival(environ)
        if not arrival.is_new or arrival.click is None:
            return None
        environ[self._cookie_key] = True
        return self._cookie.set_cookie(arrival.click, secure=self._is_secure(environ))

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

    def _arrival(self, environ: WSGIEnvironment) -> _Arrival:
        arrival = environ.get(self._arrival_key)
        if arrival is None:
            arrival = environ[self._arrival_key] = self._arrive(environ)
        return arrival

    def _arrive(self, environ: WSGIEnvironment) -> _Arrival:
        now = datetime.fromtimestamp(self._clock(), timezone.utc)
        stored = self._cookie.read(environ.get("HTTP_COOKIE", ""), now)
        new = self._new_click(environ, stored, now)
        if (stored or new or self._reports_every_order) and not self._has_consent(environ):
            return _Arrival(None, is_new=False, refused=True)
        if new is not None and new.replaces(stored, self.settings.attribution):
            return _Arrival(new, is_new=True)
        return _Arrival(stored, is_new=False)

    def _new_click(self, environ: WSGIEnvironment, stored: Click | None, now: datetime) -> Click | None:
        # Where a browser says what it loads, only a page counts: a hidden image or frame is cookie stuffing.
        if environ.get("HTTP_SEC_FETCH_DEST", "document") != "document":
            return None
        sources = self.settings.sources
        if environ.get("REQUEST_METHOD") in ("GET", "HEAD"):
            click = Click.from_query(environ.get("QUERY_STRING", ""), now=now, sources=sources)
            if click is not None:
                return click
        # A landing page out of a cache, or one before consent, is only seen as the Referer of the next page.
        if stored is None and MARKER in environ.get("HTTP_REFERER", ""):
            return Click.from_query(_own_referer_query(environ), now=now, sources=sources)
        return None

    def _has_consent(self, environ: WSGIEnvironment) -> bool:
        if self.settings.consent is None:
            return True
        try:
            return bool(self.settings.consent(environ))
        except Exception as fault:  # noqa: BLE001 - the shop's function must not break the shop's page
            self._events.emit("consent_failed", reason=type(fault).__name__)
            return False

    def _is_secure(self, environ: WSGIEnvironment) -> bool:
        if isinstance(self.settings.cookie_secure, bool):
            return self.settings.cookie_secure
        self._warn_of_proxy(environ)
        return is_https(environ, self.settings.trusted_proxies)

    def _warn_of_proxy(self, environ: WSGIEnvironment) -> None:
        header = ignores_proxy(environ, self.settings.trusted_proxies)
        if header is not None:
            self._events.emit_once(
                "proxy_ignored", header=header, advice="set trusted_proxies to the number of proxies"
            )

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

    def deliver(self) -> None:
        """Deliver, in the calling thread, until :meth:`stop`; what ``katalys-wsgi deliver`` does."""
        relay = self._relay.get()
        if self._stopped:  # before there was a relay to stop
            relay.stop()
        relay.run()

    def drain(self, at_most: float | None = None) -> Drained:
        """Deliver what is due, in the calling thread (tests, cron, Celery).

        :param at_most: seconds after which no further row is begun; 0 begins none, None is no limit.
        :returns: how many rows were ``settled``, ``postponed`` and ``buried``.
        :raises OutboxUnavailable: the outbox cannot be read or written.
        """
        relay = self._relay.get()
        if self._stopped:
            relay.stop()
        return relay.drain(at_most)

    def stop(self) -> None:
        """Have :meth:`deliver` and :meth:`drain` return once the rows in progress are finished, for good.

        Safe in a signal handler.
        """
        self._stopped = True
        relay = self._relay.peek()
        if relay is not None:
            relay.stop()

    def close(self) -> None:
        """Stop the delivery thread after the rows in hand, and close connections; the next record starts anew."""
        thread = self._thread.peek()
        if thread is not None:
            thread.stop(self.settings.deadline.total_seconds() + LAST_COMMIT)
        relay = self._relay.peek()
        if relay is not None:
            relay.close()
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
        with closing(_delivery()[1](self.settings)) as sender:
            receipt = sender.send(postback.payload, deadline=DIRECT_DEADLINE)
        if receipt.verdict is not Verdict.DELIVERED:
            return self._lost(postback.order_id, f"{why} Sending it directly failed too: {receipt.error}", postback.key)
        self._events.emit("conversion_sent_directly", order_id=postback.order_id, reason=why)
        return Record(Outcome.SENT_DIRECTLY, postback.key, reason=why)

    def _lost(self, order_id: str, why: str, key: str | None = None, problems: Sequence[str] = ()) -> Record:
        self._events.emit("conversion_lost", order_id=order_id, reason=why)
        return Record(Outcome.LOST, key, tuple(problems), why)

    # --- delivery ---

    def _make_relay(self) -> Relay:
        return _delivery()[0](self.outbox, self.settings, events=self._events, clock=self._clock)

    def _start_relay(self) -> None:
        """At any checkout, an affiliate's or not: what a killed process left behind is delivered then."""
        if self.settings.delivery == "thread":
            self._thread.get().wake()


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


def _delivery() -> tuple[type[Relay], type[Sender]]:
    """The classes that load requests, which the pages otherwise do without.

    A child that is born while another thread imports a module can never import it: its lock stays locked.
    """
    with _loading:
        from .delivery.relay import Relay
        from .delivery.sender import Sender
    return Relay, Sender


def _environ(request: Any) -> WSGIEnvironment:
    if isinstance(request, dict):
        return request
    environ = getattr(request, "environ", None) or getattr(request, "META", None)
    if environ is None:
        raise TypeError(
            f"{type(request).__name__} is no request; give the WSGI environ, or an object with .environ or .META"
        )
    return environ  # type: ignore[no-any-return] # whatever the framework keeps there


def _own_referer_query(environ: WSGIEnvironment) -> str:
    """The query of the Referer if it is a page of the very host that is asked, else an empty text."""
    try:
        referer = urlsplit(environ["HTTP_REFERER"])
        own = urlsplit("//" + environ.get("HTTP_HOST", ""))
        return referer.query if referer.hostname and referer.hostname == own.hostname else ""
    except ValueError:
        return ""
