"""The WSGI middleware: keeps the click of a Katalys link in a cookie, and changes nothing else of any answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .tracker import Tracker
from .visit import TRACKER

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["ClickMiddleware", "with_cookie"]

# Headers by which a shared cache may keep a response whatever Cache-Control says: RFC 9213's, Fastly's and Varnish's,
# Akamai's, LiteSpeed's, nginx'.
_FOR_SHARED_CACHES = frozenset({
    "cdn-cache-control", "surrogate-control", "edge-control", "x-litespeed-cache-control", "x-accel-expires",
})  # fmt: skip
# RFC 9213 §2.2 has one for each vendor: Cloudflare-CDN-Cache-Control, Vercel-CDN-Cache-Control and so on.
_FOR_ONE_CDN = "-cdn-cache-control"
# Directives of Cache-Control that a response with our cookie loses; it gets "private" instead.
_REPLACED = frozenset({"public", "s-maxage", "private"})

# What stands between two commas, unless a comma stands inside quotes.
_directives = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+').findall


class ClickMiddleware:
    """Keeps the click of an inbound Katalys link in a signed cookie, around any WSGI application.

    A request that brings no new click is handed on as it is: the application is called with the server's own
    ``start_response``. The application's iterable is always returned untouched.

    :param app: the WSGI application.
    :param tracker: decides what is a click, and how its cookie looks.
    """

    def __init__(self, app: WSGIApplication, tracker: Tracker) -> None:
        self._app = app
        self._tracker = tracker
        self._first_request = tracker.first_request

    @property
    def tracker(self) -> Tracker:
        """The tracker it was made with."""
        return self._tracker

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333). Raises what the application raises, and nothing else."""
        environ[TRACKER] = self._tracker
        if self._first_request.pending:
            self._first_request()
        # Almost every request ends here. An id's name has an underscore or is percent-encoded, and single characters
        # are found fastest; set_cookie_for() looks more closely at the rest.
        query = environ.get("QUERY_STRING", "")
        if "_" not in query and "%" not in query and "?" not in environ.get("HTTP_REFERER", ""):
            return self._app(environ, start_response)
        set_cookie = self._tracker.set_cookie_for(environ)
        if set_cookie is not None:
            start_response = _setting_cookie(start_response, set_cookie)
        return self._app(environ, start_response)


# Not inside __call__, where the variables of a closure would slow down every request.
def _setting_cookie(start_response: StartResponse, set_cookie: str) -> StartResponse:
    """A ``start_response`` that adds the cookie to what the application answers."""

    def start_with_cookie(
        status: str, headers: list[tuple[str, str]], *exc_info: Any, **named: Any
    ) -> Callable[[bytes], object]:
        # PEP 3333 passes exc_info by position, but servers take it by name as well, and so does this.
        return start_response(status, with_cookie(headers, set_cookie), *exc_info, **named)

    return start_with_cookie


def with_cookie(headers: Iterable[tuple[str, str]], set_cookie: str) -> list[tuple[str, str]]:
    """A copy of a response's headers that sets a cookie, and that no shared cache may keep for other visitors.

    Set-Cookie alone does not stop a cache (RFC 9111 §7.3), and a stored landing page would credit a whole shop to
    one affiliate. So Cache-Control gets ``private`` and loses ``public`` and ``s-maxage``; ``no-store`` and every
    other directive stay. Headers that instruct shared caches are removed; ``X-Accel-Expires: 0`` is for nginx, which
    believes it before Cache-Control.

    :param headers: as the application gave them; they are not changed.
    :param set_cookie: the value of the ``Set-Cookie`` header.
    """
    kept: list[tuple[str, str]] = []
    cache_control: list[str] = []
    for header in headers:
        name = header[0].lower()
        if name == "cache-control":
            cache_control += _directives(header[1])
        elif name not in _FOR_SHARED_CACHES and not name.endswith(_FOR_ONE_CDN):
            kept.append(header)
    private = [directive.strip() for directive in cache_control if not _is_replaced(directive)]
    kept.append(("Cache-Control", ", ".join(["private", *filter(None, private)])))
    kept.append(("X-Accel-Expires", "0"))
    kept.append(("Set-Cookie", set_cookie))
    return kept


def _is_replaced(directive: str) -> bool:
    return directive.partition("=")[0].strip().lower() in _REPLACED
