"""The tracker: public entry point for one shop; connects click, recording and delivery."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from .attribution.arrival import ArrivalReader
from .attribution.cookie import ClickCookie
from .attribution.token import TokenContent, VisitTokens
from .checks import is_usual_site_id
from .conversion.order import OrderUpdate
from .delivery.background import RelayThread
from .delivery.hold import HOW_TO_SEND, Hold, Reason
from .errors import ConfigurationError, InvalidToken, MiddlewareMissing
from .events import Events, Hook
from .javascript import Html, script_tag
from .outbox import Outbox, open_outbox
from .outbox.memory import MemoryOutbox
from .process import IMPORTS, OncePerProcess, PerProcess
from .recorder import Recorder
from .settings import ENVIRONMENT, PYTHON, Settings
from .visit import TRACKER, Defer, Record, Verbs, Visit

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
        self._outbox = open_outbox(settings.outbox, clock=clock, events=self._events)
        self._hold = Hold(settings)
        self._uses_memory: Reason = lambda: None
        #: To be called at each request; middlewares look at its ``pending`` first, which spares them the call.
        self.first_request: OncePerProcess = OncePerProcess(self._begin)
        self._announce = OncePerProcess(self._log_start)
        self._relay = PerProcess(self._make_relay)
        self._thread = PerProcess(lambda: RelayThread(self._make_relay, self._events))
        self._stopped_pid: int | None = None  # a child of the process that was stopped delivers
        self._tokens = VisitTokens(settings.secret_key, site_id=settings.site_id)
        self._arrivals = ArrivalReader(
            ClickCookie(
                settings.secret_key,
                site_id=settings.site_id,
                window=settings.attribution_window,
                name=settings.cookie_name,
                domain=settings.cookie_domain,
                events=self._events,
            ),
            sources=settings.sources,
            count_fetches=settings.count_fetches,
            attribution=settings.attribution,
            consent=settings.consent,
            reports_every_order=settings.conversion_type == "offline_conv",
            trusted_proxies=settings.trusted_proxies,
            cookie_secure=settings.cookie_secure,
            events=self._events,
            clock=clock,
        )
        self._verbs = Verbs(
            lambda *call: self._recorder.record(*call),
            lambda *call: self._recorder.record_update(*call),
            self._token,
            self._resume,
        )

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
        settings = Settings.from_layers((options, PYTHON), (values, ENVIRONMENT), missing=ENVIRONMENT)
        return cls(settings, hooks=hooks, clock=clock)

    def __repr__(self) -> str:
        return f"Tracker({self.settings!r})"

    @property
    def held(self) -> str | None:
        """Why postbacks wait in the outbox instead of leaving this machine; None when they leave."""
        return self._hold()

    def hold_while(self, reason: Reason, *, in_memory: bool = False) -> None:
        """Keep postbacks on this machine while ``reason`` gives one, unless the setting live decides; for adapters.

        :param reason: such as "Flask's TESTING"; None when postbacks may leave.
        :param in_memory: if the reason holds when the outbox is first used, and none was configured, it is kept in
            memory: a test suite leaves no file behind.
        """
        self._hold.add(reason)
        if in_memory:
            self._uses_memory = reason

    @cached_property
    def outbox(self) -> Outbox:
        """Where postbacks wait; decided when it is first used, see :meth:`hold_while`."""
        is_default = self.settings.outbox == Settings.__dataclass_fields__["outbox"].default
        return MemoryOutbox(clock=self._clock) if is_default and self._uses_memory() else self._outbox

    @cached_property
    def _recorder(self) -> Recorder:
        return Recorder(
            self.settings, self.outbox, events=self._events, wake=self._wake, held=self._hold, clock=self._clock
        )

    # --- a request ---

    def visit(self, request: Any, *, strict: bool | None = None, defer: Defer | None = None) -> Visit:
        """One request's view; never raises because of what a visitor sent.

        :param request: a WSGI environ, or any object with ``.environ`` (Flask, WebOb, Pyramid, Bottle) or ``.META``.
        :param strict: in place of the setting.
        :param defer: see :class:`~katalys_wsgi.Visit`.
        :raises TypeError: ``request`` is neither.
        :raises MiddlewareMissing: no middleware has seen the request; only if strict, otherwise it is logged once.
        """
        environ = _environ(request)
        unseen = TRACKER not in environ
        if unseen:
            self._report_missing_middleware(self.settings.strict if strict is None else strict)
        arrival = self._arrivals.arrival(environ)
        visitor = self._arrivals.visitor(environ)
        content = TokenContent(arrival.click, visitor.client_ip, visitor.user_agent, arrival.refused)
        return self._make_visit(content, strict=strict, defer=defer, unseen=unseen)

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

    def cookie_removal(self, environ: WSGIEnvironment | None = None) -> str:
        """The value of a ``Set-Cookie`` header that removes the click's cookie, for when a shopper withdraws consent.

        Put it on the answer by which the shop takes note of that.

        :param environ: of the request, which says whether the cookie is Secure where ``cookie_secure`` is ``"auto"``;
            without it the cookie is removed over https all the same.
        """
        return self._arrivals.cookie_removal(environ)

    def _make_visit(
        self, content: TokenContent, *, strict: bool | None, defer: Defer | None, unseen: bool = False
    ) -> Visit:
        strict = self.settings.strict if strict is None else strict
        return Visit(*content, strict=strict, unseen=unseen, defer=defer, verbs=self._verbs)

    def _report_missing_middleware(self, strict: bool) -> None:  # noqa: FBT001 - one caller, above
        if strict:
            raise MiddlewareMissing(
                "No middleware of katalys_wsgi has seen this request, so its click was never kept. Put "
                "ClickMiddleware(application, tracker), or the framework's adapter, around the application."
            )
        self._events.emit_once("middleware_missing", advice="put ClickMiddleware around the application")

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
        self._announce()
        relay = self._relay.get()
        if self._stopped_pid != os.getpid():
            relay.run()

    def drain(self, at_most: timedelta | float | None = None) -> Drained:
        """Deliver what is due, in the calling thread (tests, cron, Celery).

        :param at_most: seconds, or a ``timedelta``, after which no further row is started; None for no limit.
        :returns: how many rows were ``settled``, ``postponed`` and ``buried``.
        :raises OutboxUnavailable: the outbox cannot be read or written.
        """
        self._announce()
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

    def _begin(self) -> None:
        """What a process does at its first request: from then on what a killed one left behind is delivered."""
        self._announce()
        if self.held is None:
            self._wake()

    def _log_start(self) -> None:
        settings = self.settings
        self._events.emit(
            "tracker_started",
            site_id=settings.site_id,
            endpoint=settings.endpoint,
            outbox=getattr(self.outbox, "path", self.outbox),
            delivery=settings.delivery,
            live=settings.live if self.held is None else f"no, {self.held}",
        )
        if not is_usual_site_id(settings.site_id):
            advice = "compare it with Katalys' Integrations page"
            self._events.emit_once("site_id_unusual", site_id=settings.site_id, advice=advice)

    def _make_relay(self) -> Relay:
        with IMPORTS:
            from .delivery.relay import Relay  # loads requests, which the shop's pages otherwise do without
        return Relay(self.outbox, self.settings, events=self._events, clock=self._clock, held=self._hold)

    def _wake(self) -> None:
        """Have this process's relay thread, if it is to have one, look into the outbox; or log why that has to wait."""
        if self.settings.delivery != "thread":
            return
        reason = self.held
        if reason is None:
            self._thread.get().wake()
        else:
            self._events.emit_once("delivery_held", reason=reason, advice=HOW_TO_SEND)


def _environ(request: Any) -> WSGIEnvironment:
    if isinstance(request, dict):
        return request
    environ = getattr(request, "environ", None) or getattr(request, "META", None)
    if environ is None:
        raise TypeError(
            f"{type(request).__name__} is not a request; give the WSGI environ, or an object with .environ or .META"
        )
    return cast("WSGIEnvironment", environ)  # whatever the framework keeps there
