"""The WSGI middleware: environ in, at most one header out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .attribution.click import MARKER
from .tracker import Tracker

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Headers = Sequence[tuple[str, str]]

# Headers that let a shared cache keep a response whatever Cache-Control says.
_FOR_SHARED_CACHES = frozenset({"surrogate-control", "cdn-cache-control", "cloudflare-cdn-cache-control"})
_NOT_PRIVATE = frozenset({"public", "s-maxage", "private"})

_directives = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+').findall


class ClickMiddleware:
    """Keeps the click of an inbound Katalys link in a signed cookie, around any WSGI application.

    A request that brings no new click is handed on as it is. The application's iterable is returned untouched.

    :param app: the WSGI application.
    :param tracker: decides what is a click and how its cookie looks.
    """

    def __init__(self, app: WSGIApplication, tracker: Tracker) -> None:
        self._app = app
        self._tracker = tracker

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        if MARKER not in environ.get("QUERY_STRING", "") and MARKER not in environ.get("HTTP_REFERER", ""):
            return self._app(environ, start_response)
        set_cookie = self._tracker.set_cookie_for(environ)
        if set_cookie is None:
            return self._app(environ, start_response)

        def start_with_cookie(
            status: str, headers: list[tuple[str, str]], *exc_info: Any, **named: Any
        ) -> Callable[[bytes], object]:
            # PEP 3333 knows positions only, but servers take exc_info= as well, and so does this.
            return start_response(status, with_cookie(headers, set_cookie), *exc_info, **named)

        return self._app(environ, start_with_cookie)


def with_cookie(headers: Headers, set_cookie: str) -> list[tuple[str, str]]:
    """A copy of ``headers`` with the cookie, and without leave for shared caches to keep it for everyone.

    RFC 9111 §7.3: Set-Cookie alone does not stop a cache; a stored landing page would credit a whole shop
    to one affiliate. ``no-store`` and the other directives are kept.
    """
    kept = []
    cache_control: list[str] = []
    for header in headers:
        name = header[0].lower()
        if name == "cache-control":
            cache_control += _directives(header[1])
        elif name not in _FOR_SHARED_CACHES:
            kept.append(header)
    private = [directive.strip() for directive in cache_control if not _is_shared(directive)]
    kept.append(("Cache-Control", ", ".join(["private", *filter(None, private)])))
    kept.append(("Set-Cookie", set_cookie))
    return kept


def _is_shared(directive: str) -> bool:
    return directive.partition("=")[0].strip().lower() in _NOT_PRIVATE
