"""``--app module:attribute``: finds the tracker of the shop's own application."""

from __future__ import annotations

import inspect
import os
import pkgutil
import sys
import traceback
from typing import Any

from ..errors import ConfigurationError, KatalysError
from ..tracker import Tracker

__all__ = ["load_tracker", "tracker_of"]

#: Where applications keep what they wrap: Flask, ProxyFix, WhiteNoise.
_WRAPPED = ("app", "application", "wsgi_app")


def load_tracker(given: str) -> Tracker:
    """The tracker of ``module:attribute``, with the current directory importable.

    :param given: names a Tracker, a Flask, Pyramid or Bottle application, a ClickMiddleware, a Paste filter, or a
        function without arguments that makes one of them.
    :raises ConfigurationError: it cannot be imported or called, or there is no tracker in it.
    """
    module, separator, attribute = given.partition(":")
    if not separator or not module or not attribute:
        raise ConfigurationError(f"--app takes MODULE:ATTRIBUTE, such as shop:app; {given!r} is not of that form.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = _imported(module, attribute)
    tracker = tracker_of(found)
    if tracker is None and _is_factory(found):
        found = _made(found, given)
        tracker = tracker_of(found)
    if tracker is None:
        raise ConfigurationError(
            f"--app {given} is a {type(found).__name__} without Katalys. Name a Tracker, a Flask, Pyramid or Bottle "
            "application that was set up with it, a ClickMiddleware, or a function without arguments that makes one."
        )
    return tracker


def tracker_of(found: Any) -> Tracker | None:
    """The tracker in an application, in whatever is wrapped around it, or in a plugin.

    :param found: any object. Looked into are its attributes ``tracker``, ``extensions`` (Flask), ``registry`` (Pyramid)
        and ``plugins`` (Bottle), then the application that it wraps, at most ten deep.
    :returns: None if there is none; no exception of the object's own properties gets out.
    """
    for _ in range(10):  # a wrapper may lead back to itself
        tracker = _tracker_within(found)
        if tracker is not None:
            return tracker
        found = next((inner for inner in (_attribute(found, name) for name in _WRAPPED) if inner is not None), None)
        if found is None:
            return None
    return None


def _tracker_within(found: Any) -> Tracker | None:
    """The tracker that ``found`` is or keeps where an adapter puts it; what it wraps is not looked into."""
    extensions, registry, plugins = (_attribute(found, name) for name in ("extensions", "registry", "plugins"))
    candidates = [
        found,
        _attribute(found, "tracker"),
        extensions.get("katalys") if isinstance(extensions, dict) else None,
        registry.get("katalys_tracker") if isinstance(registry, dict) else None,
        *(_attribute(plugin, "tracker") for plugin in (plugins if isinstance(plugins, list) else ())),
    ]
    return next((candidate for candidate in candidates if isinstance(candidate, Tracker)), None)


def _attribute(owner: Any, name: str) -> Any:
    """The attribute; None where there is none or where reading it raises."""
    try:
        return getattr(owner, name, None)
    except Exception:  # noqa: BLE001 - the shop's own property, such as one that needs a request
        return None


def _imported(module: str, attribute: str) -> Any:
    """Import what ``--app`` names.

    :raises ConfigurationError: there is no such module or attribute, or the module raised while it was imported: then
        the message names the exception and the line it came from.
    """
    try:
        return pkgutil.resolve_name(f"{module}:{attribute}")
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"--app: there is no module {module!r} in {os.getcwd()} or among the installed packages."
            ) from None
        raise _failed(f"importing {module}", error) from error
    except KatalysError:
        raise  # it says what to do
    except AttributeError as error:
        if error.name in attribute.split("."):
            raise ConfigurationError(f"--app: module {module!r} has no {attribute!r}.") from None
        raise _failed(f"importing {module}", error) from error
    except Exception as error:
        raise _failed(f"importing {module}", error) from error


def _is_factory(found: Any) -> bool:
    """Whether it can be called without arguments; an application cannot, it takes environ and start_response."""
    if not callable(found):
        return False
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):  # it needs arguments, or is something built in
        return False
    return True


def _made(factory: Any, given: str) -> Any:
    """Call the shop's factory; what it raises becomes a ConfigurationError that names the line."""
    try:
        return factory()
    except KatalysError:
        raise
    except Exception as error:
        raise _failed(f"calling {given}", error) from error


def _failed(doing: str, error: Exception) -> ConfigurationError:
    """What the shop's own code raised, with the place, which is all that its author needs."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return ConfigurationError(
        f"--app: {doing} failed: {type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    )
