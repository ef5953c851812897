"""What ``manage.py check`` says: settings that are missing or make no sense, and a forgotten middleware.

Warnings, not errors, which would keep ``manage.py migrate`` from running where the shop is built, without its secrets.
A server does not start with such settings.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning

from ..errors import ConfigurationError
from .shop import get_hooks, get_settings

__all__ = ["check_installation", "check_settings"]

MIDDLEWARE = "katalys_wsgi.django.KatalysMiddleware"


def check_settings(**_: Any) -> list[CheckMessage]:
    """One warning ``katalys.W001`` for each problem of the settings and hooks; nothing is opened.

    :param _: what Django passes to every check, which this one does without.
    :returns: empty when the settings can work.
    """
    try:
        get_settings()
        get_hooks()
    except ConfigurationError as error:
        return [_warning(problem) for problem in error.problems]
    return []


def check_installation(**_: Any) -> list[CheckMessage]:
    """The warning ``katalys.W002`` where no click would ever be kept.

    :returns: empty when the middleware is listed under its own name; a subclass of it is not recognised.
    """
    if MIDDLEWARE in settings.MIDDLEWARE:
        return []
    problem = "katalys_wsgi.django is installed without its middleware: no click is kept, and no request has .katalys."
    return [CheckWarning(problem, hint=f'Put "{MIDDLEWARE}" first in MIDDLEWARE.', id="katalys.W002")]


def _warning(problem: str) -> CheckMessage:
    """A problem ends in the next step, which Django shows apart."""
    what, _, hint = problem.partition("; ")
    return CheckWarning(what, hint=hint or None, id="katalys.W001")
