"""The Paste filter ``egg:katalys-wsgi``, for any application that an ini file names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ConfigurationError
from .middleware import ClickMiddleware
from .settings import INI, Settings
from .tracker import Tracker

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["filter_app_factory"]


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
    return ClickMiddleware(app, Tracker(Settings.from_mapping({**INI.select(global_conf or {}), **own}, INI)))
