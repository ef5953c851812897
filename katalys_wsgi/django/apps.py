"""The application's entry in ``INSTALLED_APPS``: keeps the tracker, registers the checks.

The tracker stands on the application's configuration, as Django keeps its own state: one for each process, and gone
with the settings that a test overrides.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.signals import setting_changed

from ..tracker import Tracker
from .checks import check_installation, check_settings
from .shop import make_tracker

__all__ = ["KatalysConfig"]

#: Settings of which a tracker is made, beside those that begin with KATALYS_.
OTHERS = ("DEBUG", "SECRET_KEY", "SECRET_KEY_FALLBACKS")


class KatalysConfig(AppConfig):  # type: ignore[misc] # Django has no types
    """``katalys_wsgi.django`` as Django knows it; nothing is read or opened before it is used.

    Its label, ``katalys``, is what ``apps.get_app_config()`` takes. There are no models and no migrations.
    """

    name = "katalys_wsgi.django"
    label = "katalys"
    verbose_name: Any = "Katalys"

    @cached_property
    def tracker(self) -> Tracker:
        """The project's tracker, made at its first use.

        :raises ConfigurationError: a setting is missing, unknown or makes no sense.
        """
        return make_tracker()

    def ready(self) -> None:
        """Register the checks, and have a test that overrides settings get a tracker of its own.

        Called by Django once, when all applications are loaded.
        """
        checks.register(check_settings, "katalys")
        checks.register(check_installation, "katalys")
        setting_changed.connect(self._forget_tracker)

    def _forget_tracker(self, *, setting: str, **_: Any) -> None:
        """Close the tracker when one of its settings changes; the next use makes a new one."""
        if setting.startswith("KATALYS_") or setting in OTHERS:
            tracker: Tracker | None = self.__dict__.pop("tracker", None)
            if tracker is not None:
                tracker.close()
