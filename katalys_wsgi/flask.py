"""The Flask extension: ``katalys = Katalys(app)``, then ``katalys.visit.record(Conversion(...))`` in the view."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from flask import Flask, current_app, request

# isort: split
import click  # behind Flask, which brings it: whoever has forgotten Flask shall read its name

from .errors import ConfigurationError
from .events import Hook
from .middleware import ClickMiddleware
from .settings import ENVIRONMENT, FLASK, PYTHON, Settings, Spelling
from .tracker import Tracker
from .visit import TRACKER, Visit

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings import Options

__all__ = ["Katalys"]

#: Where a request's environ keeps its visit, beside the tracker it belongs to: applications may be nested.
VISIT = "katalys_wsgi.flask.visit"

#: Flask's own key in place of ours. The message names both: the reader has written one, and may rather set the other.
FLASK_KEY = Spelling(f"{FLASK.of('secret_key')} is not set, and Flask's ", " in its place", upper=True)


class Katalys:
    """The Flask extension; one object serves any number of applications.

    Settings are the options given here, then ``KATALYS_SITE_ID`` and so on of the application's configuration, then
    those of the environment; without a ``KATALYS_SECRET_KEY``, Flask's ``SECRET_KEY`` and ``SECRET_KEY_FALLBACKS`` are
    used. What is only possible in Python (``consent``) is given here, or put into the configuration as it is.

    Under ``app.debug`` and ``app.testing`` a visit is strict, unless ``KATALYS_STRICT`` says otherwise, and postbacks
    wait in the outbox, unless ``KATALYS_LIVE`` says otherwise. Under ``app.testing`` the default outbox is in memory.

    Each application gets the commands ``flask katalys status`` and so on, which know its tracker, and the Jinja global
    ``katalys_script_tag()``, which an ``offline_conv`` shop puts on every page; ``nonce=...`` as in
    :meth:`Tracker.script_tag <katalys_wsgi.Tracker.script_tag>`.

    Behind a proxy, initialise this extension before ``app.wsgi_app`` is wrapped in ``ProxyFix``, so that the
    click's cookie sees the address and the scheme that ``ProxyFix`` restores.

    :param app: an application to initialise at once; others follow with :meth:`init_app`.
    :param hooks: called with every :class:`~katalys_wsgi.events.Event`.
    :param options: settings by their plain name; they take precedence over the configuration.
    :raises ConfigurationError: a setting is missing, unknown or makes no sense.
    """

    def __init__(self, app: Flask | None = None, *, hooks: Iterable[Hook] = (), **options: Unpack[Options]) -> None:
        self._hooks = tuple(hooks)
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Put the click's cookie around ``app``, and its :class:`~katalys_wsgi.Tracker` into ``app.extensions``.

        :raises ConfigurationError: a setting is missing, unknown or makes no sense; or ``app`` has a tracker already.
        """
        if "katalys" in app.extensions:
            raise ConfigurationError("This Flask application has Katalys already; call init_app() once.")
        tracker = Tracker(_settings(app, self._options), hooks=self._hooks)
        tracker.hold_while(lambda: "Flask's TESTING" if app.testing else None, in_memory=True)
        tracker.hold_while(lambda: "Flask's DEBUG" if app.debug else None)
        app.extensions["katalys"] = tracker
        app.wsgi_app = ClickMiddleware(app.wsgi_app, tracker)  # type: ignore[method-assign] # as Flask's manual says
        app.add_template_global(tracker.script_tag, "katalys_script_tag")
        app.cli.add_command(_command(tracker))

    @property
    def tracker(self) -> Tracker:
        """The current application's tracker."""
        try:
            return cast(Tracker, current_app.extensions["katalys"])
        except KeyError:
            raise RuntimeError("This Flask application has no Katalys; call katalys.init_app(app) first.") from None

    @property
    def visit(self) -> Visit:
        """The current request's visit, one object during the request; a new one as long as consent is refused."""
        tracker = self.tracker
        owner, visit = request.environ.get(VISIT, (None, None))
        if owner is not tracker or visit.no_consent:
            # app.test_request_context() goes past the middleware, which init_app() has put in its place all the same.
            request.environ.setdefault(TRACKER, tracker)
            visit = tracker.visit(request.environ, strict=self._strict())
            request.environ[VISIT] = tracker, visit
        return cast(Visit, visit)

    def _strict(self) -> bool | None:
        # Asked at each request: a test suite sets app.testing long after init_app().
        name = FLASK.of("strict")
        if name in current_app.config or name in os.environ or "strict" in self._options:
            return None
        return current_app.debug or current_app.testing


def _settings(app: Flask, options: Options) -> Settings:
    # In the order of Flask's own sessions: the current key is the last one, and signs.
    keys = [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), *([app.secret_key] if app.secret_key else ())]
    return Settings.from_layers(
        (options, PYTHON),
        (FLASK.select(app.config), FLASK),
        (ENVIRONMENT.select(os.environ), ENVIRONMENT),
        ({"secret_key": keys}, FLASK_KEY),
        missing=FLASK,
    )


def _command(tracker: Tracker) -> click.Command:
    """``flask katalys …``: hands every word, ``--help`` included, to the command line, which is not loaded before."""

    @click.command(
        "katalys",
        short_help="Deliver, inspect and correct postbacks.",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    @click.pass_context
    def katalys(context: click.Context, arguments: tuple[str, ...]) -> None:
        from . import cli

        context.exit(cli.main(arguments, tracker=tracker, prog=context.command_path))

    return katalys
