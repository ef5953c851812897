"""The Flask extension: ``katalys = Katalys(app)``, then ``katalys.visit.record(Conversion(...))`` in the view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from flask import Flask, current_app, request

from .errors import ConfigurationError
from .events import Hook
from .middleware import ClickMiddleware
from .settings import FLASK, Settings
from .tracker import Tracker
from .visit import TRACKER, Visit

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings import Options

__all__ = ["Katalys"]

#: Where a request's environ keeps its visit, beside the tracker it belongs to: applications may be nested.
VISIT = "katalys_wsgi.flask.visit"


class Katalys:
    """The Flask extension; one object serves any number of applications.

    Settings are read from ``KATALYS_SITE_ID`` and so on of the application's configuration; without a
    ``KATALYS_SECRET_KEY``, Flask's ``SECRET_KEY`` and ``SECRET_KEY_FALLBACKS`` are used. What is only possible in
    Python (``consent``) is given here, or put into the configuration as it is.

    Under ``app.debug`` and ``app.testing`` a visit is strict, unless ``KATALYS_STRICT`` says otherwise.

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
        app.extensions["katalys"] = tracker
        app.wsgi_app = ClickMiddleware(app.wsgi_app, tracker)  # type: ignore[method-assign] # as Flask's manual says

    @property
    def tracker(self) -> Tracker:
        """The current application's tracker."""
        try:
            return cast(Tracker, current_app.extensions["katalys"])
        except KeyError:
            raise RuntimeError("This Flask application has no Katalys; call katalys.init_app(app) first.") from None

    @property
    def visit(self) -> Visit:
        """The current request's visit, one object during the request."""
        tracker = self.tracker
        # init_app() has put the middleware around the application; what test_request_context() makes passes it by.
        request.environ.setdefault(TRACKER, tracker)
        owner, visit = request.environ.get(VISIT, (None, None))
        if owner is not tracker:
            visit = tracker.visit(request.environ, strict=self._strict())
            request.environ[VISIT] = tracker, visit
        return cast(Visit, visit)

    def _strict(self) -> bool | None:
        # Asked at each request: a test suite sets app.testing long after init_app().
        if "KATALYS_STRICT" in current_app.config or "strict" in self._options:
            return None
        return current_app.debug or current_app.testing


def _settings(app: Flask, options: Mapping[str, Any]) -> Settings:
    values: dict[str, object] = {**FLASK.select(app.config), **options}
    if "secret_key" in values:
        return Settings.from_mapping(values, FLASK)
    # In the order of Flask's own sessions: the current key is the last one, and signs.
    keys = [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), *([app.secret_key] if app.secret_key else ())]
    try:
        return Settings.from_mapping({**values, "secret_key": keys}, FLASK)
    except ConfigurationError as error:
        raise ConfigurationError([_about_flask_key(problem) for problem in error.problems]) from None


def _about_flask_key(problem: str) -> str:
    """Say which key is wrong, where the reader has never written the name of ours."""
    own = FLASK.of("secret_key")
    if not problem.startswith(own):
        return problem
    return problem.replace(own, f"{own} is not set, and Flask's SECRET_KEY in its place", 1)
