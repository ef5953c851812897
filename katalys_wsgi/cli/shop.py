"""The shop of a command: its tracker, from options, ``--app`` or ``--ini``, and the environment.

A command that only looks into the outbox needs neither site_id nor secret_key, so an operator can run it without the
shop's secrets. The outbox and the endpoint that are used are printed to standard error by every command that opens one.
"""

from __future__ import annotations

import os
import secrets
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import ConfigurationError
from ..outbox import Outbox
from ..settings import ENVIRONMENT, INI, PYTHON, Layer, Settings, Spelling
from ..tracker import Tracker
from .application import load_tracker
from .ini import read_ini

__all__ = ["OPTIONS", "PREFIX", "announce", "find_secret_keys", "find_site_id", "opened", "place_of"]

#: What stands before a setting's name among the parsed arguments.
PREFIX = "setting."


class _OptionSpelling(Spelling):
    """An option is written with dashes."""

    def of(self, name: str) -> str:
        """``name`` as an option."""
        return super().of(name).replace("_", "-")


#: How a setting is written on the command line.
OPTIONS = _OptionSpelling("--", textual=True)


@contextmanager
def opened(arguments: Namespace, *, complete: bool = False) -> Iterator[Tracker]:
    """The tracker of a command, closed afterwards; outbox and endpoint are printed to standard error.

    :param arguments: what the parser made of the command line; ``arguments.tracker`` is that of the calling program.
    :param complete: the command needs site_id and secret_key; others work without them.
    :raises ConfigurationError: the settings cannot work, or the shop cannot be found.
    """
    tracker = _tracker(arguments, complete=complete)
    announce(tracker)
    try:
        yield tracker
    finally:
        tracker.close()


def announce(tracker: Tracker) -> None:
    """Print which outbox and which endpoint a command uses: most surprises are a wrong one."""
    print(f"outbox: {place_of(tracker.outbox)}  endpoint: {tracker.settings.endpoint}", file=sys.stderr)


def place_of(outbox: Outbox) -> str:
    """The absolute path of an outbox, its address without password, or what it calls itself."""
    engine = getattr(outbox, "engine", None)
    if engine is not None:
        return str(engine.url.render_as_string(hide_password=True))
    return str(getattr(outbox, "path", None) or repr(outbox))


def find_secret_keys(arguments: Namespace) -> tuple[str, ...]:
    """The secret keys of the shop, oldest first; empty when none is set anywhere.

    Without a tracker of the shop only the key is checked: the other settings may be missing or wrong.

    :raises ConfigurationError: there is one that cannot work, or the shop cannot be found.
    """
    tracker = _given_tracker(arguments)
    if tracker is not None:
        return tracker.settings.secret_key
    layers, _ = _layers(arguments)
    if not any(values.get("secret_key") for values, _ in layers):
        return ()
    own = [({name: values[name] for name in ("secret_key",) if name in values}, how) for values, how in layers]
    return Settings.from_layers(*own, ({"site_id": "KA-UNKNOWN"}, PYTHON)).secret_key


def find_site_id(arguments: Namespace) -> str:
    """The shop's Tracking ID as it is written, unchecked; empty when none is set anywhere.

    :raises ConfigurationError: the shop cannot be found.
    """
    tracker = _given_tracker(arguments)
    if tracker is not None:
        return tracker.settings.site_id
    layers, _ = _layers(arguments)
    return next((str(values["site_id"]) for values, _ in layers if values.get("site_id")), "")


def _tracker(arguments: Namespace, *, complete: bool) -> Tracker:
    """The given tracker, with the command's options applied; or a new one, of options, ini file and environment."""
    tracker = _given_tracker(arguments)
    options = _options(arguments)
    if tracker is not None:
        return _changed(tracker, options) if options else tracker
    layers, debug = _layers(arguments)
    if complete:
        _refuse_nobody(layers)
    else:
        layers = [*_without_keys(layers), ({"site_id": "KA-UNKNOWN", "secret_key": secrets.token_hex()}, PYTHON)]
    made = Tracker(Settings.from_layers(*layers, missing=INI if arguments.ini else ENVIRONMENT))
    made.hold_while(lambda: "Pyramid's debug_all" if debug else None)
    return made


def _given_tracker(arguments: Namespace) -> Tracker | None:
    """The tracker of the calling program, or of ``--app``."""
    tracker: Tracker | None = arguments.tracker
    if tracker is not None or not arguments.app:
        return tracker
    if arguments.ini:
        raise ConfigurationError("--app and --ini both say where the settings come from; leave one out.")
    tracker = arguments.tracker = load_tracker(arguments.app)  # kept: a factory is called once
    return tracker


def _changed(tracker: Tracker, options: Mapping[str, object]) -> Tracker:
    """A tracker of the same shop with other settings; what holds its postbacks back holds these, too."""
    changed = Tracker(Settings.from_layers((options, OPTIONS), (vars(tracker.settings), PYTHON)))
    changed.hold_while(lambda: tracker.held)
    return changed


def _layers(arguments: Namespace) -> tuple[list[Layer], bool]:
    """Every place that gives settings, the first one wins; and whether the ini file is for debugging."""
    layers: list[Layer] = [(_options(arguments), OPTIONS)]
    debug = False
    if arguments.ini:
        values, debug = read_ini(arguments.ini)
        layers.append((values, INI))
    layers.append((ENVIRONMENT.select(os.environ), ENVIRONMENT))
    return layers, debug


def _options(arguments: Namespace) -> dict[str, Any]:
    """The settings that were given as options, by their plain names."""
    given = vars(arguments).items()
    return {name.removeprefix(PREFIX): value for name, value in given if name.startswith(PREFIX) and value is not None}


def _without_keys(layers: list[Layer]) -> list[Layer]:
    """The layers without secret_key: a command that only reads the outbox must not fail on a wrong one."""
    return [({name: value for name, value in values.items() if name != "secret_key"}, how) for values, how in layers]


def _refuse_nobody(layers: list[Layer]) -> None:
    """Raise ConfigurationError where neither a site_id nor a secret_key is set anywhere: no shop was named."""
    if not any(values.get("site_id") or values.get("secret_key") for values, _ in layers):
        raise ConfigurationError(
            "No shop is set up here. Name yours with --app MODULE:ATTRIBUTE or --ini FILE#SECTION, "
            f"or set {ENVIRONMENT.of('site_id')} and {ENVIRONMENT.of('secret_key')}."
        )
