"""The tracker of a Django project: made of its settings when it is first needed, and kept by the application.

Three places give settings, the first one wins: Django's settings (``KATALYS_SITE_ID``), the environment (of the same
names), and Django's own ``SECRET_KEY`` in place of a ``KATALYS_SECRET_KEY``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, cast

from django.apps import apps
from django.conf import settings
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from ..errors import ConfigurationError
from ..events import Hook
from ..settings import ENVIRONMENT, Settings, Spelling
from ..tracker import Tracker

__all__ = ["get_hooks", "get_settings", "get_tracker", "is_strict", "make_tracker", "why_held"]

#: How Django's settings are written.
DJANGO = Spelling("KATALYS_", upper=True)

#: Django's own key in place of ours. The message names both: the reader has written one, and may rather set the other.
DJANGO_KEY = Spelling(f"{DJANGO.of('secret_key')} is not set, and Django's ", " in its place", upper=True)

#: What ``startproject`` puts before the random characters of a key.
FROM_STARTPROJECT = "django-insecure-"

HOOKS = DJANGO.of("hooks")


def get_tracker() -> Tracker:
    """The project's :class:`~katalys_wsgi.Tracker`, for webhooks, jobs and commands; the same one at each call.

    :raises ConfigurationError: a setting is missing, unknown or makes no sense; or the application is not installed.
    """
    try:
        return cast(Tracker, apps.get_app_config("katalys").tracker)
    except LookupError:
        raise ConfigurationError('Add "katalys_wsgi.django" to INSTALLED_APPS.') from None


def make_tracker() -> Tracker:
    """Make the tracker of which :func:`get_tracker` speaks.

    Its postbacks are held under ``DEBUG`` and under Django's test runner, where the default outbox is in memory.

    :raises ConfigurationError: a setting is missing, unknown or makes no sense.
    """
    tracker = Tracker(get_settings(), hooks=get_hooks())
    tracker.hold_while(_debug)
    tracker.hold_while(_test_runner, in_memory=True)
    return tracker


def get_settings() -> Settings:
    """The settings of the project, checked; nothing is opened.

    :raises ConfigurationError: a setting is missing, unknown or makes no sense; all problems at once, each named as it
        is written in the project.
    """
    return Settings.from_layers(
        (_written(), DJANGO),
        (ENVIRONMENT.select(os.environ), ENVIRONMENT),
        ({"secret_key": _django_keys()}, DJANGO_KEY),
    )


def get_hooks() -> Iterable[Hook]:
    """The functions that ``KATALYS_HOOKS`` lists, imported where it gives their dotted paths.

    :returns: in the order given; empty when the setting is missing.
    :raises ConfigurationError: it is not a list, or something in it cannot be imported.
    """
    hooks: Any = getattr(settings, HOOKS, ())
    if isinstance(hooks, str):
        raise ConfigurationError(f"{HOOKS} is a string; make it a list of functions or of their dotted paths.")
    return [_imported(hook) if isinstance(hook, str) else hook for hook in hooks]


def _imported(path: str) -> Hook:
    """Import a hook by its dotted path; an ImportError becomes a ConfigurationError that names the setting."""
    try:
        return cast(Hook, import_string(path))
    except ImportError as error:
        raise ConfigurationError(f"{HOOKS} lists {path!r}, which cannot be imported; {error}.") from error


def is_strict() -> bool | None:
    """What a visit's ``strict`` is; None leaves it to ``KATALYS_STRICT``, where that is given.

    Else a visit is strict in development and tests, so that wrong data is seen there, and not in production, where it
    must not break a checkout.
    """
    name = DJANGO.of("strict")
    if hasattr(settings, name) or name in os.environ:
        return None
    return why_held() is not None


def why_held() -> str | None:
    """Why this is not a live shop, such as ``"Django's DEBUG"``; None when it is one."""
    return _test_runner() or _debug()


def _debug() -> str | None:
    return "Django's DEBUG" if settings.DEBUG else None


def _test_runner() -> str | None:
    # https://docs.djangoproject.com/en/stable/topics/testing/tools/#email-services: the list of sent messages is there
    # while tests run. The test runner switches DEBUG off, so that one says nothing.
    return "Django's test runner" if hasattr(mail, "outbox") else None


def _written() -> dict[str, object]:
    """What the project's settings say, the hooks apart."""
    names = [name for name in dir(settings) if name.startswith(DJANGO.prefix) and name != HOOKS]
    return DJANGO.select({name: getattr(settings, name) for name in names})


def _django_keys() -> list[object]:
    """As for Django's own signatures, the current key signs; it is the last one here."""
    try:
        keys = [*settings.SECRET_KEY_FALLBACKS, settings.SECRET_KEY]
    except ImproperlyConfigured:  # there is none: whether that is wrong, the caller knows
        return []
    # Refused in production, where such a key may have been published with the code; in development it is good enough.
    return [_as_random(key) for key in keys] if why_held() else keys


def _as_random(key: object) -> object:
    """The random part of a key: without what ``startproject`` puts in front of it."""
    return key.removeprefix(FROM_STARTPROJECT) if isinstance(key, str) else key
