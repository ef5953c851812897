"""The Django middleware: keeps the click of a Katalys link in a cookie, and gives each request its visit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from http.cookies import SimpleCookie
from typing import Any

from django.db import transaction
from django.http import HttpRequest
from django.http.response import HttpResponseBase, ResponseHeaders

from ..middleware import with_cookie
from ..tracker import Tracker
from ..visit import TRACKER, Verbs, Visit
from .shop import get_tracker, is_strict

__all__ = ["KatalysMiddleware"]


class KatalysMiddleware:
    """Keeps the click of an inbound Katalys link in a signed cookie, and hands out ``request.katalys``.

    Put it first in ``MIDDLEWARE``: it then sees every answer, redirects and error pages of the others included. It
    works in Django's test client as well, which knows no WSGI middleware. A streaming response is not read.

    :param get_response: Django's next middleware or the view.
    :raises ConfigurationError: a setting is missing, unknown or makes no sense; raised when the server starts.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response
        get_tracker()

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer a request, with ``request.katalys`` set to its visit before the view is called.

        The visit is made when it is first used. Only a request whose query or referrer could hold a Katalys link is
        looked at for a click; the answer of every other one is returned untouched.

        :returns: the view's response, or a copy of it with a ``Set-Cookie`` header.
        """
        tracker = get_tracker()  # at each request: a test may override settings
        environ = request.META
        environ[TRACKER] = tracker
        if tracker.first_request.pending:
            tracker.first_request()
        request.katalys = _LazyVisit(lambda: _visit(tracker, request))
        set_cookie = tracker.set_cookie_for(environ)
        response = self._get_response(request)
        return response if set_cookie is None else _with_cookie(response, set_cookie)


class _LazyVisit:
    """``request.katalys``: the visit, made when it is asked for, as Django does with ``request.user``.

    Consent may need the session, which a later middleware loads; as long as it is refused, the visit is made anew.
    """

    def __init__(self, make: Callable[[], Visit]) -> None:
        self._make = make
        self._made: Visit | None = None

    def _visit(self) -> Visit:
        if self._made is None or self._made.no_consent:
            self._made = self._make()
        return self._made

    @property  # type: ignore[misc] # isinstance(request.katalys, Visit) is true, as with Django's own lazy objects
    def __class__(self) -> type[Visit]:  # type: ignore[override]
        return Visit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._visit(), name)

    def __repr__(self) -> str:
        return repr(self._visit())


def _with_cookie(response: HttpResponseBase, set_cookie: str) -> HttpResponseBase:
    """A copy of the response with the cookie: a view may keep one response object for all requests.

    Not ``copy.copy()``, which leaves out what Django's pickles leave out. The cookie goes where Django keeps cookies,
    which its test client reads.
    """
    kind: Any = type(response)
    copy = kind.__new__(kind)
    vars(copy).update(vars(response))
    *headers, _ = with_cookie(response.items(), set_cookie)
    copy.headers = ResponseHeaders(dict(headers))
    copy.cookies = SimpleCookie()
    copy.cookies.update(response.cookies)
    copy.cookies.load(set_cookie)
    return copy


def _visit(tracker: Tracker, request: HttpRequest) -> Visit:
    """The visit of a request, strict where the shop is not live, which defers to the transaction it is called in."""
    visit = tracker.visit(request, strict=is_strict())
    return replace(visit, verbs=_joining(visit.verbs))


def _joining(verbs: Verbs) -> Verbs:
    """The verbs of a visit that look for a transaction at each call: ``atomic()`` may begin long after the visit."""
    joining = Verbs(
        lambda visit, *rest: verbs.record(_joined(visit), *rest),
        lambda visit, *rest: verbs.record_update(_joined(visit), *rest),
        verbs.token,
        lambda visit, token: replace(verbs.resume(visit, token), verbs=joining),
    )
    return joining


def _joined(visit: Visit) -> Visit:
    """The visit as it is within the transaction that is open; outside of one, as it is."""
    # What on_commit() asks first. In manual transaction management it would raise; then the sale is written at once.
    if not transaction.get_connection().in_atomic_block:
        return visit
    return replace(visit, defer=lambda write: transaction.on_commit(write, robust=True))
