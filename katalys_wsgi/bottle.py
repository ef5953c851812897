"""The Bottle plugin: ``app.install(KatalysPlugin(tracker))``; a callback that names ``katalys`` gets the visit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import bottle

from .middleware import ClickMiddleware
from .tracker import Tracker
from .visit import Visit

__all__ = ["KatalysPlugin"]


class KatalysPlugin:
    """The Bottle plugin (API 2).

    ::

        @app.post("/checkout")
        def checkout(katalys):
            katalys.record(Conversion(...))

    Install it on the application that the server calls: that one sets the click's cookie, also for what is mounted
    or merged into it. Bottle applies no plugin to the routes of a mounted application; install the same object there
    too if its callbacks want the visit. Decorators between Bottle and a callback need ``functools.wraps``.

    Under ``bottle.DEBUG`` a visit is strict.

    :param tracker: the shop's :class:`~katalys_wsgi.Tracker`.
    :param keyword: the name of the callbacks' parameter.
    """

    name = "katalys"
    api = 2

    def __init__(self, tracker: Tracker, keyword: str = "katalys") -> None:
        self.tracker: Tracker = tracker
        self.keyword: str = keyword

    def setup(self, app: bottle.Bottle) -> None:
        """Put the click's cookie around ``app``.

        :raises bottle.PluginError: ``app`` has this plugin already, or another one that injects the same keyword.
        """
        for other in app.plugins:
            if isinstance(other, KatalysPlugin):
                raise bottle.PluginError("This Bottle application has a KatalysPlugin already; install it once.")
            if getattr(other, "keyword", None) == self.keyword:
                raise bottle.PluginError(
                    f"{type(other).__name__} injects {self.keyword!r} too; give KatalysPlugin another keyword=..."
                )
        # Bottle refuses a second assignment, so that plugins do not overwrite each other; this one wraps what it finds.
        vars(app)["wsgi"] = ClickMiddleware(app.wsgi, self.tracker)

    def apply(self, callback: Callable[..., Any], route: bottle.Route) -> Callable[..., Any]:
        """Hand the visit to a callback that names the keyword; leave every other one as it is."""
        if not _accepts(route.callback, self.keyword):
            return callback

        def with_visit(*args: Any, **kwargs: Any) -> Any:
            return callback(*args, **kwargs, **{self.keyword: self._visit()})

        return with_visit

    def _visit(self) -> Visit:
        # Asked at each request: bottle.run(debug=True) sets it after the plugin was installed.
        return self.tracker.visit(bottle.request.environ, strict=True if bottle.DEBUG else None)


def _accepts(callback: Callable[..., Any], keyword: str) -> bool:
    # Not route.get_callback_args(): up to Bottle 0.13.4 it never returns for a closure over plain values, and for a
    # closure over another function it answers for that one.
    try:
        parameter = inspect.signature(callback).parameters.get(keyword)
    except (TypeError, ValueError):  # something built in, which has no signature
        return False
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
