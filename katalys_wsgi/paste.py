"""The Paste filter ``egg:katalys-wsgi``, for any application that an ini file names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import ConfigurationError
from .middleware import ClickMiddleware
from .settings import ENVIRONMENT, INI, Settings
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
    ``[DEFAULT]``, over which the section's own take precedence; what neither has is taken from the environment,
    ``KATALYS_SITE_ID`` and so on. The application records with
    ``environ["katalys_wsgi.tracker"].visit(environ).record(...)``.

    Paste has a ``debug`` of its own, which is for whatever reads it; so ``live`` and ``strict`` are written here:
    ``live = false`` in ``development.ini`` keeps postbacks on the machine.

    :raises ConfigurationError: a setting is missing, unknown or makes no sense.
    """
    own: dict[str, object] = {}
    for name, value in local_conf.items():
        plain = name.removeprefix(INI.prefix)
        if plain in own:
            raise ConfigurationError(f"{plain} and {INI.of(plain)} are both given; leave one out.")
        own[plain] = value
    settings = Settings.from_layers(
        (own, INI), (INI.select(global_conf or {}), INI), (ENVIRONMENT.select(os.environ), ENVIRONMENT)
    )
    return ClickMiddleware(app, Tracker(settings))
