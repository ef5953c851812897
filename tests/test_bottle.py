"""The Bottle plugin: which callbacks receive the visit, conflicts, mounted applications."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import bottle
import pytest
from webtest import TestApp

from katalys_wsgi import KatalysError, OrderUpdate, Record, Tracker, Visit
from katalys_wsgi.bottle import KatalysPlugin

from .support import LINK, make_conversion

LANDING = "/?" + LINK


def who(visit: Any) -> str:
    """What a callback answers that has received a visit."""
    return str(visit.click.aff_id) if visit.click else "nobody"


def browse(app: bottle.Bottle, path: str = LANDING) -> Any:
    return TestApp(app, lint=True).get(path)


# --- who receives the visit ----------------------------------------------------------------------------------


class Page:
    """A callback with state."""

    def __call__(self, katalys: Visit) -> str:
        return who(katalys)

    def method(self, *, katalys: Visit) -> str:
        return who(katalys)


def closure(greeting: str, helper: Callable[[], str]) -> Callable[..., str]:
    """A view of an application factory: it closes over plain values and over functions."""

    def page(katalys: Visit) -> str:
        return f"{greeting}{helper()}{who(katalys)}"

    return page


def plain_closure(greeting: str) -> Callable[..., str]:
    """Bottle 0.13.4's own get_callback_args() never returns for this one."""

    def page(katalys: Visit) -> str:
        return greeting + who(katalys)

    return page


def decorated(view: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> str:
        return view(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "callback",
    [
        lambda katalys: who(katalys),
        lambda *, katalys: who(katalys),
        lambda katalys=None: who(katalys),
        decorated(lambda katalys: who(katalys)),
        functools.partial(lambda prefix, katalys: prefix + who(katalys), ""),
        Page(),
        Page().method,
        closure("", str),
        plain_closure(""),
    ],
    ids=["plain", "keyword only", "default", "decorated", "partial", "instance", "method", "closure", "plain closure"],
)
def test_callback_that_names_the_keyword_receives_the_visit(tracker: Tracker, callback: Callable[..., str]) -> None:
    app = bottle.Bottle()
    app.install(KatalysPlugin(tracker))
    app.get("/", callback=callback)

    assert browse(app, LANDING).text == "5678"


@pytest.mark.parametrize(
    "callback",
    [lambda: "a page", lambda **anything: f"a page{anything or ''}", functools.partial("a {}".format, "page"), dict],
    ids=["no parameter", "any keyword", "partial", "without signature"],
)
def test_callback_that_does_not_name_it_stays_as_it_is(tracker: Tracker, callback: Callable[..., Any]) -> None:
    plugin = KatalysPlugin(tracker)
    route = bottle.Route(bottle.Bottle(), "/", "GET", callback)

    assert plugin.apply(callback, route) is callback


def test_other_keyword(tracker: Tracker) -> None:
    app = bottle.Bottle()
    app.install(KatalysPlugin(tracker, keyword="visit"))

    def page(number: int, visit: Visit) -> str:
        return f"{number} {who(visit)}"

    app.get("/<number:int>", callback=page)

    assert browse(app, f"/7?{LINK}").text == "7 5678"


def test_skipped_route_gets_none(tracker: Tracker) -> None:
    """Bottle's own way to leave a plugin out; the cookie is set all the same."""
    app = bottle.Bottle()
    app.install(KatalysPlugin(tracker))
    app.get("/", callback=lambda katalys=None: str(katalys), skip=["katalys"])
    landing = browse(app, LANDING)

    assert landing.text == "None"
    assert landing.headers["Set-Cookie"].startswith("katalys_click=")


# --- conflicts -----------------------------------------------------------------------------------------------


class Database:
    """Another plugin that injects a keyword."""

    name = "database"
    api = 2

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword

    def apply(self, callback: Callable[..., Any], route: Any) -> Callable[..., Any]:
        return callback


def test_double_installation_is_refused(tracker: Tracker) -> None:
    app = bottle.Bottle()
    plugin = app.install(KatalysPlugin(tracker))

    for again in (plugin, KatalysPlugin(tracker, keyword="other")):
        with pytest.raises(bottle.PluginError, match="install it once"):
            app.install(again)


def test_keyword_conflict_is_refused(tracker: Tracker) -> None:
    """Two plugins with one keyword: which of the two a callback gets would be chance."""
    app = bottle.Bottle()
    app.install(Database("db"))
    app.install(Database("katalys"))

    with pytest.raises(bottle.PluginError, match=r"Database injects 'katalys' too; give KatalysPlugin another keyword"):
        app.install(KatalysPlugin(tracker))
    app.install(KatalysPlugin(tracker, keyword="visit"))
    app.get("/", callback=lambda visit: who(visit))

    assert browse(app, LANDING).text == "5678"


def test_wraps_what_wraps_already(tracker: Tracker) -> None:
    """Bottle refuses to set app.wsgi twice; another plugin's wrapper stays inside ours."""
    app = bottle.Bottle()
    app.get("/", callback=lambda katalys: who(katalys))
    inner, seen = app.wsgi, []

    def counting(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append(environ["PATH_INFO"])
        return inner(environ, start_response)

    app.wsgi = counting
    app.install(KatalysPlugin(tracker))

    assert browse(app, LANDING).headers["Set-Cookie"].startswith("katalys_click=")
    assert seen == ["/"]


# --- applications in applications ----------------------------------------------------------------------------


@pytest.mark.parametrize("join", ["mount", "merge", "mount as WSGI"])
def test_application_inside_another(tracker: Tracker, join: str) -> None:
    """The outer one sets the cookie, once; the inner one's callbacks receive the visit."""
    plugin = KatalysPlugin(tracker)
    outer, inner = bottle.Bottle(), bottle.Bottle()
    outer.install(plugin)
    inner.install(plugin)
    inner.get("/page", callback=lambda katalys: who(katalys))
    if join == "merge":
        outer.merge(inner)
    else:
        outer.mount("/shop/", inner if join == "mount" else inner.wsgi)
    landing = browse(outer, f"{'' if join == 'merge' else '/shop'}/page?{LINK}")

    assert landing.text == "5678"
    assert len(landing.headers.getall("Set-Cookie")) == 1


# --- strictness ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("debug", "setting", "strict"),
    [(False, False, False), (True, False, True), (False, True, True)],
    ids=["production", "debug", "setting"],
)
def test_strictness(
    make_tracker: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch, debug: bool, setting: bool, strict: bool
) -> None:
    """Under bottle.debug(), switched on however late, every verb raises, so that an error shows in development."""
    answers: list[str] = []
    app = bottle.Bottle()
    app.install(KatalysPlugin(make_tracker(strict=setting)))
    monkeypatch.setattr(bottle, "DEBUG", debug)

    def view(katalys: Visit) -> None:
        lost = OrderUpdate("1001", order_status=cast(Any, "lost"))  # a status that Katalys does not know
        resumed = katalys.resume(katalys.token())
        calls: list[Callable[[], Record]] = [
            lambda: katalys.record(make_conversion(sale_amount="a lot")),
            lambda: resumed.record(make_conversion(sale_amount="a lot")),
            lambda: katalys.record_update(lost),
            lambda: katalys.resume("nonsense").record(make_conversion()),
        ]
        for call in calls:
            try:
                answers.append(call().outcome.name)
            except KatalysError as error:
                answers.append(type(error).__name__)

    app.get("/", callback=view)
    browse(app, LANDING)

    assert answers == (
        ["InvalidConversion", "InvalidConversion", "InvalidConversion", "InvalidToken"]
        if strict
        else ["INVALID", "INVALID", "INVALID", "NO_CLICK"]
    )
