"""The Paste filter ``egg:katalys-wsgi``, for any application that an ini file names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .errors import ConfigurationError
from .middleware import ClickMiddleware
from .settings import INI, Settings
from .tracker import Tracker

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["TRACKER", "filter_app_factory"]

#: Where the application finds its :class:`~katalys_wsgi.Tracker` in the WSGI environ.
TRACKER = "katalys_wsgi.tracker"


def filter_app_factory(app: WSGIApplication, global_conf: dict[str, str] | None, **local_conf: str) -> WSGIApplication:
    """Put the click's cookie around ``app``, with the settings of an ini file.

    ::

        [filter:katalys]
        use = egg:katalys-wsgi
        site_id = KA-1A2B3C4
        secret_key = ...

        [pipeline:main]
        pipeline = katalys shop

    Settings are written with or without ``katalys.`` before their name; those with it are also taken from
    ``[DEFAULT]``, over which the section's own take precedence. The application records with
    ``environ["katalys_wsgi.tracker"].visit(environ).record(...)``.

    :raises ConfigurationError: a setting is missing, unknown or makes no sense.
    """
    own: dict[str, object] = {}
    for name, value in local_conf.items():
        plain = name.removeprefix(INI.prefix)
        if plain in own:
            raise ConfigurationError(f"{plain} and {INI.of(plain)} are both given; leave one out.")
        own[plain] = value
    return _Filter(app, Tracker(Settings.from_mapping({**INI.select(global_conf or {}), **own}, INI)))


class _Filter:
    """A pipeline has no other place for the tracker than the environ."""

    def __init__(self, app: WSGIApplication, tracker: Tracker) -> None:
        self._app = ClickMiddleware(app, tracker)
        self._tracker = tracker

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[TRACKER] = self._tracker
        return self._app(environ, start_response)
