"""The arrival: reads from a request which click it brings, and decides whether the answer sets the cookie."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from ..events import Events
from .click import Click, may_hold_click, read_link
from .cookie import ClickCookie
from .visitor import Visitor

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["Arrival", "ArrivalReader"]

#: Seconds for which a reason is not logged again: a link that is wrong is wrong for every shopper.
QUIET = 60

_numbers = itertools.count()


class Arrival(NamedTuple):
    """What a request says about a click.

    :param click: the click that counts; None without one, or without consent.
    :param is_new: this request brought it, so the answer has to set the cookie.
    :param refused: the visitor did not consent, where there was something to consent to.
    """

    click: Click | None
    is_new: bool = False
    refused: bool = False


class ArrivalReader:
    """Reads arrivals out of WSGI environs. Nothing that a visitor sends makes it raise.

    What was read is remembered in the environ, so that middleware and view see the same click. A refusal is not: the
    middleware asks before the application has a session, and the shopper may consent in this very request.

    :param cookie: reads and writes the click's cookie.
    :param clock: seconds since 1970.
    :param events: where ``click_refused``, ``consent_failed`` and ``proxy_ignored`` are emitted.
    :param sources: accepted values of utm_source in lower case; see :meth:`Click.from_query`.
    :param count_fetches: a script's request within the shop may bring a click as well.
    :param attribution: ``"last-click"`` or ``"first-click"``.
    :param consent: takes the environ and says whether the visitor consented; None is a yes. What it raises is a no.
    :param reports_every_order: orders without a click are reported too, so consent is asked for without one as well.
    :param trusted_proxies: how many proxies in front of the shop are believed; see :class:`Visitor`.
    :param cookie_secure: whether the cookie is Secure; ``"auto"``: where the visitor's own connection is https.
    """

    def __init__(
        self,
        cookie: ClickCookie,
        *,
        clock: Callable[[], float],
        events: Events,
        sources: Collection[str],
        count_fetches: bool = False,
        attribution: str = "last-click",
        consent: Callable[[dict[str, Any]], object] | None = None,
        reports_every_order: bool = False,
        trusted_proxies: int = 0,
        cookie_secure: bool | Literal["auto"] = "auto",
    ) -> None:
        self._cookie = cookie
        self._clock = clock
        self._refused_at: dict[str, float] = {}
        self._events = events
        self._sources = sources
        self._count_fetches = count_fetches
        self._attribution = attribution
        self._consent = consent
        self._reports_every_order = reports_every_order
        self._trusted_proxies = trusted_proxies
        self._cookie_secure = cookie_secure
        # Its own: in a request that passes two shops, one must not see a click to which the other had consent.
        self._memory_key = f"katalys_wsgi.arrival.{next(_numbers)}"
        self._is_set_key = f"katalys_wsgi.cookie.{cookie.name}"

    def visitor(self, environ: WSGIEnvironment) -> Visitor:
        """Who sends the request; a proxy that ``trusted_proxies`` does not count is logged, once."""
        visitor = Visitor(environ, self._trusted_proxies)
        header = visitor.ignored_header
        if header is not None:
            advice = "set trusted_proxies to the number of proxies"
            self._events.emit_once("proxy_ignored", header=header, advice=advice)
        return visitor

    def arrival(self, environ: WSGIEnvironment) -> Arrival:
        """The arrival of a request; asked again for the same environ, it is the same one, unless it was a refusal."""
        arrival: Arrival | None = environ.get(self._memory_key)
        if arrival is None:
            arrival = self._read(environ)
            if not arrival.refused:
                environ[self._memory_key] = arrival
        return arrival

    def set_cookie_for(self, environ: WSGIEnvironment) -> str | None:
        """The value of the ``Set-Cookie`` header that the answer to a request needs; None for almost every request.

        Asked again for the same environ (the application is wrapped twice), it is None.
        """
        if not (may_hold_click(environ.get("QUERY_STRING", "")) or may_hold_click(environ.get("HTTP_REFERER", ""))):
            return None
        if self._is_set_key in environ:
            return None
        click, is_new, _ = self.arrival(environ)
        if click is None or not is_new:
            return None
        environ[self._is_set_key] = True
        return self._cookie.set_cookie(click, secure=self._is_secure(environ))

    def cookie_removal(self, environ: WSGIEnvironment | None = None) -> str:
        """The value of the ``Set-Cookie`` header with which the browser forgets the click.

        :param environ: of the request, which says whether the cookie is Secure; without it only the setting does.
        """
        secure = self._cookie_secure is True if environ is None else self._is_secure(environ)
        return self._cookie.removal(secure=secure)

    def _read(self, environ: WSGIEnvironment) -> Arrival:
        now = datetime.fromtimestamp(self._clock(), timezone.utc)
        stored = self._cookie.read(environ.get("HTTP_COOKIE", ""), now)
        new = self._brought(environ, stored, now)
        if (stored or new or self._reports_every_order) and not self._has_consent(environ):
            return Arrival(None, refused=True)
        if new is not None and new.replaces(stored, self._attribution):
            return Arrival(new.after(stored), is_new=True)
        return Arrival(stored)

    def _brought(self, environ: WSGIEnvironment, stored: Click | None, now: datetime) -> Click | None:
        """The click that the request itself brings, by its link or its Referer."""
        is_page = self._may_bring_click(environ)
        link = read_link(environ.get("QUERY_STRING", ""), now=now, sources=self._sources)
        if isinstance(link, Click):
            if is_page and environ.get("REQUEST_METHOD") in ("GET", "HEAD"):
                return link
            link = "the request is not a GET" if is_page else "the browser asks for a part of a page, or a script does"
        if link:
            self._log_refusal(link)
        # A landing page that a cache served, or one before consent, is only seen as the Referer of the next page.
        if is_page and stored is None and may_hold_click(environ.get("HTTP_REFERER", "")):
            return Click.from_query(self._own_referer_query(environ), now=now, sources=self._sources)
        return None

    def _log_refusal(self, reason: str) -> None:
        now = self._clock()
        if not 0 <= now - self._refused_at.get(reason, -QUIET) < QUIET:
            self._refused_at[reason] = now
            self._events.emit("click_refused", reason=reason)

    def _may_bring_click(self, environ: WSGIEnvironment) -> bool:
        """Whether the browser asks for a page, as far as it says so (https://www.w3.org/TR/fetch-metadata/).

        A hidden image or frame is cookie stuffing. A prefetched page counts: the browser shows it later without asking
        again.
        """
        destination = environ.get("HTTP_SEC_FETCH_DEST", "document")
        if destination != "empty":
            return bool(destination == "document")
        # The page's own service worker asks for it anew: the destination is lost, the mode is not.
        if environ.get("HTTP_SEC_FETCH_MODE") == "navigate":
            return True
        return self._count_fetches and environ.get("HTTP_SEC_FETCH_SITE") == "same-origin"

    def _own_referer_query(self, environ: WSGIEnvironment) -> str:
        """The query of the Referer if that is a page of this very shop; else empty."""
        try:
            referer = urlsplit(environ["HTTP_REFERER"])
        except ValueError:
            return ""
        visitor = Visitor(environ, self._trusted_proxies)
        is_own = referer.hostname and (
            referer.hostname in (visitor.host, visitor.forwarded_host)
            # What the browser says itself: stock nginx hands on neither header (proxy_pass sets Host to the upstream).
            or environ.get("HTTP_SEC_FETCH_SITE") == "same-origin"
        )
        return referer.query if is_own else ""

    def _has_consent(self, environ: WSGIEnvironment) -> bool:
        if self._consent is None:
            return True
        try:
            return bool(self._consent(environ))
        except Exception as error:  # noqa: BLE001 - the shop's function must not break the shop's page
            self._events.emit("consent_failed", reason=type(error).__name__)
            return False

    def _is_secure(self, environ: WSGIEnvironment) -> bool:
        if isinstance(self._cookie_secure, bool):
            return self._cookie_secure
        return self.visitor(environ).is_https
