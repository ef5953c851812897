"""The tracker: public entry point for one shop; connects click, recording and delivery."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from .attribution.arrival import ArrivalReader
from .attribution.cookie import ClickCookie
from .attribution.token import TokenContent, VisitTokens
from .conversion.order import OrderUpdate
from .delivery.background import RelayThread
from .errors import ConfigurationError, InvalidToken
from .events import Events, Hook
from .javascript import Html, script_tag
from .outbox import Outbox, open_outbox
from .process import IMPORTS, PerProcess
from .recorder import Recorder
from .settings import ENVIRONMENT, PYTHON, Settings
from .visit import Defer, Record, Verbs, Visit

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment
    from typing_extensions import Unpack

    from .delivery.relay import Drained, Relay
    from .settings import Options

__all__ = ["Tracker"]

#: Seconds beyond the deadline of an attempt that close() waits, for the result to be written down.
LAST_COMMIT = 2.0


class Tracker:
    """Everything the package does for one shop, for use from any thread and any process.

    :param settings: a :class:`~katalys_wsgi.Settings`; without it every setting is taken by keyword.
    :param hooks: called with every :class:`~katalys_wsgi.Event`.
    :param clock: seconds since 1970; for tests.
    :param options: the settings, see :class:`~katalys_wsgi.settings.Options`; the environment is not read.
    :raises ConfigurationError: a setting is missing, unknown or makes no sense.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        hooks: Iterable[Hook] = (),
        clock: Callable[[], float] = time.time,
        **options: Unpack[Options],
    ) -> None:
        if settings is not None and options:
            raise ConfigurationError(f"{PYTHON.of(next(iter(options)))} is given beside a Settings; put it there.")
        self.settings: Settings = settings or Settings(**options)
        settings = self.settings
        self._clock = clock
        self._events = Events(hooks)
        self.outbox: Outbox = open_outbox(settings.outbox, clock=clock, events=self._events)
        self._relay = PerProcess(self._make_relay)
        self._thread = PerProcess(lambda: RelayThread(self._make_relay, self._events))
        self._stopped_pid: int | None = None  # a child of the process that was stopped delivers
        self._tokens = VisitTokens(settings.secret_key)
        self._arrivals = ArrivalReader(
            ClickCookie(
                settings.secret_key,
                window=settings.attribution_window,
                name=settings.cookie_name,
                domain=settings.cookie_domain,
                events=self._events,
            ),
            sources=settings.sources,
            attribution=settings.attribution,
            consent=settings.consent,
            reports_every_order=settings.conversion_type == "offline_conv",
            trusted_proxies=settings.trusted_proxies,
            cookie_secure=settings.cookie_secure,
            events=self._events,
            clock=clock,
        )
        recorder = Recorder(settings, self.outbox, events=self._events, wake=self._wake)
        self._verbs = Verbs(recorder.record, recorder.record_update, self._token, self._resume)

    @classmethod
    def from_environ(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        hooks: Iterable[Hook] = (),
        clock: Callable[[], float] = time.time,
        **options: Unpack[Options],
    ) -> Tracker:
        """A tracker with the settings of the environment, ``KATALYS_SITE_ID`` and so on.

        :param environ: ``os.environ`` unless given.
        :param options: settings that take precedence over the environment's.
        :raises ConfigurationError: a setting is missing, unknown or makes no sense.
        """
        values = ENVIRONMENT.select(os.environ if environ is None else environ)
        return cls(Settings.from_mapping({**values, **options}, ENVIRONMENT), hooks=hooks, clock=clock)

    def __repr__(self) -> str:
        return f"Tracker({self.settings!r})"

    # --- a request ---

    def visit(self, request: Any, *, strict: bool | None = None, defer: Defer | None = None) -> Visit:
        """One request's view; never raises because of what a visitor sent.

        :param request: a WSGI environ, or any object with ``.environ`` (Flask, WebOb, Pyramid, Bottle) or ``.META``.
        :param strict: in place of the setting.
        :param defer: see :class:`~katalys_wsgi.Visit`.
        :raises TypeError: ``request`` is neither.
        """
        environ = _environ(request)
        arrival = self._arrivals.arrival(environ)
        visitor = self._arrivals.visitor(environ)
        content = TokenContent(arrival.click, visitor.client_ip, visitor.user_agent, arrival.refused)
        return self._make_visit(content, strict=strict, defer=defer)

    def resume(self, token: str, *, strict: bool | None = None, defer: Defer | None = None) -> Visit:
        """The visit of which ``token`` was made, in another request, process or week: payment webhooks, returns.

        A token that cannot be read gives a visit without a click, and a warning in the log.

        :raises InvalidToken: the token cannot be read; only if strict.
        """
        try:
            content = self._tokens.loads(token)
        except (ValueError, TypeError) as error:
            if self.settings.strict if strict is None else strict:
                raise InvalidToken(
                    f"The visit's token cannot be read ({error}); store it whole and keep its key."
                ) from None
            self._events.emit("token_unreadable", reason=error)
            content = TokenContent(None, None, "", no_consent=False)
        return self._make_visit(content, strict=strict, defer=defer)

    def set_cookie_for(self, environ: WSGIEnvironment) -> str | None:
        """The value of the ``Set-Cookie`` header that the answer to this request needs; None for almost every one."""
        return self._arrivals.set_cookie_for(environ)

    def _make_visit(self, content: TokenContent, *, strict: bool | None, defer: Defer | None) -> Visit:
        strict = self.settings.strict if strict is None else strict
        return Visit(*content, strict=strict, defer=defer, verbs=self._verbs)

    def _token(self, visit: Visit) -> str:
        return self._tokens.dumps(TokenContent(visit.click, visit.client_ip, visit.user_agent, visit.no_consent))

    def _resume(self, visit: Visit, token: str) -> Visit:
        return self.resume(token, strict=visit.strict, defer=visit.defer)

    # --- outside a request ---

    def record_update(
        self, update: OrderUpdate, *, connection: Any = None, strict: bool | None = None, defer: Defer | None = None
    ) -> Record:
        """Record a later change of an order; see :meth:`Visit.record_update <katalys_wsgi.Visit.record_update>`."""
        nobody = TokenContent(None, None, "", no_consent=False)
        return self._make_visit(nobody, strict=strict, defer=defer).record_update(update, connection=connection)

    def script_tag(self, nonce: str | None = None) -> Html:
        """Katalys' JavaScript for every page of an ``offline_conv`` shop, as HTML that Jinja does not escape again.

        :param nonce: of the page's Content-Security-Policy.
        """
        return script_tag(self.settings.endpoint, self.settings.site_id, nonce)

    # --- delivery ---

    def deliver(self) -> None:
        """Deliver, in the calling thread, until :meth:`stop`; what ``katalys-wsgi deliver`` does."""
        relay = self._relay.get()
        if self._stopped_pid != os.getpid():
            relay.run()

    def drain(self, at_most: timedelta | float | None = None) -> Drained:
        """Deliver what is due, in the calling thread (tests, cron, Celery).

        :param at_most: seconds, or a ``timedelta``, after which no further row is begun; None for no limit.
        :returns: how many rows were ``settled``, ``postponed`` and ``buried``.
        :raises OutboxUnavailable: the outbox cannot be read or written.
        """
        relay = self._relay.get()
        if self._stopped_pid == os.getpid():
            at_most = 0
        return relay.drain(at_most.total_seconds() if isinstance(at_most, timedelta) else at_most)

    def stop(self) -> None:
        """Have :meth:`deliver` and :meth:`drain` return once the rows in progress are finished.

        Safe to call in a signal handler. From then on they begin no row in this process, until :meth:`close`.
        """
        self._stopped_pid = os.getpid()
        relay = self._relay.peek()
        if relay is not None:
            relay.stop()

    def close(self) -> None:
        """Stop delivery after the rows in progress, and close connections; the next use starts anew."""
        thread, relay = self._thread.discard(), self._relay.discard()
        self._stopped_pid = None
        if relay is not None:
            relay.stop()
        if thread is not None:  # a page that records meanwhile does not wait: it starts a thread of its own
            thread.stop(self.settings.deadline.total_seconds() + LAST_COMMIT)
        if relay is not None:
            relay.close()
        self.outbox.close()

    def _make_relay(self) -> Relay:
        with IMPORTS:
            from .delivery.relay import Relay  # loads requests, which the shop's pages otherwise do without
        return Relay(self.outbox, self.settings, events=self._events, clock=self._clock)

    def _wake(self) -> None:
        """At any checkout, an affiliate's or not: what a killed process left behind is delivered then."""
        if self.settings.delivery == "thread":
            self._thread.get().wake()


def _environ(request: Any) -> WSGIEnvironment:
    if isinstance(request, dict):
        return request
    environ = getattr(request, "environ", None) or getattr(request, "META", None)
    if environ is None:
        raise TypeError(
            f"{type(request).__name__} is not a request; give the WSGI environ, or an object with .environ or .META"
        )
    return cast("WSGIEnvironment", environ)  # whatever the framework keeps there
