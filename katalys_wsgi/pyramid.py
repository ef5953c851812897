"""The Pyramid add-on: ``config.include("katalys_wsgi.pyramid")``, then ``request.katalys.record(Conversion(...))``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pyramid.config import Configurator
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.response import Response
from pyramid.settings import asbool
from pyramid.tweens import INGRESS

from .errors import ConfigurationError
from .middleware import with_cookie
from .settings import ENVIRONMENT, INI, Settings
from .tracker import Tracker
from .visit import TRACKER, Defer, Record, Visit

__all__ = ["REGISTERED", "click_tween_factory", "includeme"]

#: Where the registry keeps the Tracker.
REGISTERED = "katalys_tracker"

Handler = Callable[[Request], Response]


def includeme(config: Configurator) -> None:
    """Set up click tracking and conversion recording for a Pyramid application.

    Call ``config.include("katalys_wsgi.pyramid")``, or name it in ``pyramid.includes``. Including it again changes
    nothing. It adds:

    ``request.katalys``
        the request's :class:`~katalys_wsgi.Visit`: ``request.katalys.record(Conversion(...))`` in the checkout view,
        ``request.katalys.resume(token).record(...)`` in a payment webhook, ``request.katalys.record_update(...)`` for
        a refund.

    ``registry["katalys_tracker"]``
        the :class:`~katalys_wsgi.Tracker`, as ``request.registry["katalys_tracker"]`` in views and
        ``config.registry["katalys_tracker"]`` elsewhere.

    A tween directly under the ingress sets the click's cookie, on error pages as well. If you list your tweens in
    ``pyramid.tweens``, put ``katalys_wsgi.pyramid.click_tween_factory`` first.

    Settings are those of the README's table with ``katalys.`` before their name; what is not there is taken from the
    environment, ``KATALYS_SITE_ID`` and so on::

        [app:main]
        katalys.site_id = KA-1A2B3C4
        katalys.secret_key = ...

    The command line reads the same file: ``katalys-wsgi --ini production.ini#main status``.

    What an ini file cannot say is put into ``config.registry.settings`` before the include: a function as
    ``katalys.consent``, an :class:`~katalys_wsgi.outbox.Outbox` as ``katalys.outbox``, and as ``katalys.hooks`` a list
    of functions that are called with each :class:`~katalys_wsgi.Event`::

        config.registry.settings["katalys.hooks"] = [count_events]
        config.include("katalys_wsgi.pyramid")

    Where Pyramid's ``debug_all`` is on, a visit is strict unless ``katalys.strict`` says otherwise, and postbacks wait
    in the outbox unless ``katalys.live`` says otherwise.

    **Transactions.** Where ``pyramid_tm`` manages the request, ``record()`` and ``record_update()`` answer
    ``Outcome.DEFERRED`` and write to the outbox right after the commit; nothing is written if the transaction aborts.
    With ``connection=...`` the outbox row is part of that connection's own transaction instead.

    :raises katalys_wsgi.ConfigurationError: a setting is missing, unknown or makes no sense.
    """
    registry = config.registry
    if REGISTERED in registry:
        return
    own = INI.select(registry.settings)
    hooks: Any = own.pop("hooks", ())
    if isinstance(hooks, str):
        raise ConfigurationError(f"{INI.of('hooks')} can only be given in Python: a list of functions.")
    is_debug = asbool(registry.settings.get("debug_all"))
    settings = Settings.from_layers(
        (own, INI), (ENVIRONMENT.select(os.environ), ENVIRONMENT), ({"strict": is_debug}, INI)
    )
    tracker = registry[REGISTERED] = Tracker(settings, hooks=hooks)
    tracker.hold_while(lambda: "Pyramid's debug_all" if is_debug else None)
    config.add_tween("katalys_wsgi.pyramid.click_tween_factory", under=INGRESS)
    # No reify: a tween outside pyramid_tm's may look at the visit, and the view's must join the transaction.
    config.add_request_method(_visit, "katalys", property=True)


def click_tween_factory(handler: Handler, registry: Registry) -> Handler:
    """Make the tween that keeps the click of an inbound Katalys link in a signed cookie."""
    tracker: Tracker = registry[REGISTERED]
    memo = f"katalys_wsgi.pyramid.{id(tracker)}"  # which lives as long as the tween

    def click_tween(request: Request) -> Response:
        environ = request.environ
        environ[TRACKER] = tracker
        if tracker.first_request.pending:
            tracker.first_request()
        # pyramid_retry sends the same environ through again; what was decided at first still holds.
        set_cookie = environ.get(memo) or tracker.set_cookie_for(environ)
        if set_cookie is not None:
            environ[memo] = set_cookie
        response = handler(request)
        if set_cookie is None or ("Set-Cookie", set_cookie) in response.headerlist:  # a subrequest's own answer
            return response
        return _with_cookie(response, set_cookie)

    return click_tween


def _with_cookie(response: Response, set_cookie: str) -> Response:
    """A copy of the response with the cookie: the view may keep one response object for everybody.

    Neither ``Response.copy()``, which reads a stream to its end, nor ``copy.copy()``, which cannot copy a redirect.
    """
    kind: Any = type(response)
    copy = kind.__new__(kind)
    vars(copy).update(vars(response))
    copy.headerlist = with_cookie(response.headerlist, set_cookie)
    return copy


def _visit(request: Request) -> Visit:
    tracker: Tracker = request.registry[REGISTERED]
    return tracker.visit(request.environ, defer=_defer(request))


def _defer(request: Request) -> Defer | None:
    """How to record when the transaction commits that pyramid_tm has begun for this request; None without one."""
    if not request.environ.get("tm.active"):
        return None
    return lambda write: _after_commit(request.tm, write)


def _after_commit(manager: Any, write: Callable[[], Record]) -> None:
    from transaction.interfaces import NoTransaction  # pyramid_tm brings it; a shop without does without

    try:
        transaction = manager.get()
    except NoTransaction:  # the view has finished it by hand
        write()
    else:
        transaction.addAfterCommitHook(lambda committed: write() if committed else None)
