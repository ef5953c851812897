"""One story through every adapter: a link, a look around, a sale, one postback."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple
from wsgiref.validate import validator

import bottle
import pytest
from flask import Flask, redirect, request
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPFound
from pyramid.response import Response as PyramidResponse
from webob import Request, Response
from webob.exc import HTTPNotFound, HTTPSeeOther
from webtest import TestApp, TestResponse
from webtest.lint import middleware as lint

from katalys_wsgi import ClickMiddleware, Tracker, Visit
from katalys_wsgi.bottle import KatalysPlugin
from katalys_wsgi.flask import Katalys
from katalys_wsgi.paste import filter_app_factory
from katalys_wsgi.sandbox import Sandbox

from .django_shop import DjangoShop
from .support import BUYER_AGENT, BUYER_IP, LINK, OLD_SECRET, RECORDED_KEYS, SECRET, SITE_ID, make_conversion

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OTHER_LINK = "utm_source=Katalys&transaction_id=ffff0000&offer_id=1234&publisher_id=9999"

#: A shop's tracker is known before its first request, except Paste's, which travels in the environ.
Shop = tuple["WSGIApplication", Callable[[], Tracker]]


# --- the same shop six times: a page, a redirect, an error, a checkout, a way out to a gateway and back ---------


def welcome(visit: Visit) -> str:
    """The page says what the view knows of the click."""
    return f"Welcome from {visit.click.aff_id}" if visit.click else "Welcome"


def plain_shop(**options: Any) -> Shop:
    """Without a framework, watched from both sides of the middleware."""
    tracker = Tracker(**options)

    def shop(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return _answer(Request(environ), tracker)(environ, start_response)

    return ClickMiddleware(lint(validator(_catching(shop))), tracker), lambda: tracker


def paste_shop(**options: Any) -> Shop:
    """Settings are strings, and the application knows its tracker by the environ."""
    seen: list[Tracker] = []

    def shop(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(environ["katalys_wsgi.tracker"])
        return _answer(Request(environ), seen[-1])(environ, start_response)

    keys = options["secret_key"]
    strings = {**options, "secret_key": keys if isinstance(keys, str) else " ".join(keys)}
    return filter_app_factory(lint(validator(_catching(shop))), {}, **strings), lambda: seen[-1]


def _answer(request: Request, tracker: Tracker) -> Response:
    visit = tracker.visit(request)
    order, token = (str(request.params.get(name)) for name in ("order", "token"))
    match request.method, request.path_info:
        case "GET", "/" | "/page1":
            return Response(welcome(visit), content_type="text/html")
        case "GET", "/old":
            return HTTPSeeOther(location="/")
        case "GET", "/broken":
            raise ZeroDivisionError("an error in a view")
        case "POST", "/checkout":
            return Response(visit.record(make_conversion(order)).outcome.name)
        case "POST", "/leave":
            return Response(visit.token())
        case "POST", "/return":
            return Response(visit.resume(token).record(make_conversion(order)).outcome.name)
        case _:
            return HTTPNotFound()


def _catching(app: WSGIApplication) -> WSGIApplication:
    """What a framework does around its views."""

    def catching(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except ZeroDivisionError:
            return Response("Sorry", status=500)(environ, start_response)

    return catching


def flask_shop(**options: Any) -> Shop:
    app = Flask(__name__)
    app.config.update({f"KATALYS_{name.upper()}": value for name, value in options.items()})
    app.wsgi_app = lint(validator(app.wsgi_app))  # type: ignore[method-assign]
    katalys = Katalys(app)

    @app.get("/")
    @app.get("/page1")
    def page() -> str:
        return welcome(katalys.visit)

    @app.get("/old")
    def old() -> Any:
        return redirect("/")

    @app.get("/broken")
    def broken() -> str:
        raise ZeroDivisionError("an error in a view")

    @app.post("/checkout")
    def checkout() -> str:
        return katalys.visit.record(make_conversion(request.form["order"])).outcome.name

    @app.post("/leave")
    def leave() -> str:
        return katalys.visit.token()

    @app.post("/return")
    def come_back() -> str:
        visit = katalys.visit.resume(request.form["token"])
        return visit.record(make_conversion(request.form["order"])).outcome.name

    return app, lambda: app.extensions["katalys"]


def bottle_shop(**options: Any) -> Shop:
    app = bottle.Bottle()
    tracker = Tracker(**options)
    app.install(KatalysPlugin(tracker))

    def page(katalys: Visit) -> str:
        return welcome(katalys)

    def old() -> None:
        bottle.redirect("/")

    def broken() -> str:
        raise ZeroDivisionError("an error in a view")

    def checkout(katalys: Visit) -> str:
        return katalys.record(make_conversion(bottle.request.forms["order"])).outcome.name

    def leave(katalys: Visit) -> str:
        return katalys.token()

    def come_back(katalys: Visit) -> str:
        form = bottle.request.forms
        return katalys.resume(form["token"]).record(make_conversion(form["order"])).outcome.name

    app.get(["/", "/page1"], callback=page)
    app.get("/old", callback=old)
    app.get("/broken", callback=broken)
    app.post("/checkout", callback=checkout)
    app.post("/leave", callback=leave)
    app.post("/return", callback=come_back)
    return app, lambda: tracker


class PyramidViews:
    """Named after their paths."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.visit = request.katalys

    def page1(self) -> PyramidResponse:
        return PyramidResponse(welcome(self.visit))

    def old(self) -> PyramidResponse:
        raise HTTPFound("/")

    def broken(self) -> PyramidResponse:
        raise ZeroDivisionError("an error in a view")

    def checkout(self) -> PyramidResponse:
        return self._record(self.visit)

    def leave(self) -> PyramidResponse:
        return PyramidResponse(self.visit.token())

    def come_back(self) -> PyramidResponse:
        return self._record(self.visit.resume(self.request.POST["token"]))

    def _record(self, visit: Visit) -> PyramidResponse:
        return PyramidResponse(visit.record(make_conversion(self.request.POST["order"])).outcome.name)


def pyramid_shop(**options: Any) -> Shop:
    config = Configurator(settings={f"katalys.{name}": value for name, value in options.items()})
    config.include("katalys_wsgi.pyramid")
    pages = {"/": "page1", "/page1": "page1", "/old": "old", "/broken": "broken"}
    posts = {"/checkout": "checkout", "/leave": "leave", "/return": "come_back"}
    for path, name in {**pages, **posts}.items():
        config.add_route(path, path)
        config.add_view(PyramidViews, attr=name, route_name=path, request_method="POST" if path in posts else "GET")
    config.add_exception_view(lambda _: PyramidResponse("Sorry", status=500), ZeroDivisionError)
    app = config.make_wsgi_app()
    return app, lambda: app.registry["katalys_tracker"]


def django_shop(**options: Any) -> Shop:
    shop = DjangoShop(options)
    return shop, shop.tracker


SHOPS = {
    "wsgi": plain_shop, "flask": flask_shop, "django": django_shop, "pyramid": pyramid_shop, "bottle": bottle_shop,
    "paste": paste_shop,
}  # fmt: skip


# --- who takes part ------------------------------------------------------------------------------------------


class Journey(NamedTuple):
    """A shopper's browser in front of a shop, and Katalys behind it."""

    browser: TestApp
    sandbox: Sandbox
    tracker: Callable[[], Tracker]

    def buy(self, order: str = "1001") -> str:
        """Check out; returns the outcome's name."""
        return str(self.browser.post("/checkout", {"order": order}).text)

    def reported(self) -> list[dict[str, str]]:
        """What Katalys has received, after everything due was delivered."""
        self.tracker().drain()
        assert self.sandbox.collector.accepted == self.sandbox.collector.received
        return [received.fields for received in self.sandbox.collector.accepted]


Open = Callable[..., Journey]


@pytest.fixture(params=SHOPS.values(), ids=list(SHOPS))
def open_shop(request: pytest.FixtureRequest, sandbox: Sandbox, options: dict[str, Any]) -> Iterable[Open]:
    """Opens the shop with changed settings; two shops opened in one test are the same shop after a new deployment."""
    opened: list[Callable[[], Tracker]] = []

    def open_it(**changes: Any) -> Journey:
        app, tracker = request.param(**{**options, **changes})
        opened.append(tracker)
        browser = make_browser(validator(app))
        return Journey(browser, sandbox, tracker)

    yield open_it
    for tracker in opened:
        tracker().close()


@pytest.fixture
def journey(open_shop: Open) -> Journey:
    return open_shop()


def make_browser(app: WSGIApplication) -> TestApp:
    """A browser with the buyer's address; it keeps cookies and, with WebTest's lint, checks each answer."""
    return TestApp(app, lint=True, extra_environ={"REMOTE_ADDR": BUYER_IP, "HTTP_USER_AGENT": BUYER_AGENT})


def sets_click(response: TestResponse) -> bool:
    # Django writes a blank before a cookie, which browsers skip (RFC 6265 §5.2).
    return any(value.lstrip().startswith("katalys_click=") for value in response.headers.getall("Set-Cookie"))


# --- the story -----------------------------------------------------------------------------------------------


def test_link_browse_buy(journey: Journey) -> None:
    """Katalys receives exactly one conversion, with the twelve keys of the specification in its order, and its time."""
    landing = journey.browser.get("/page1?" + LINK)
    browsing = [journey.browser.get("/"), journey.browser.get("/page1"), journey.browser.get("/old")]
    outcome = journey.buy()
    (fields,) = journey.reported()

    assert sets_click(landing)
    assert not any(map(sets_click, browsing))
    assert outcome == "RECORDED"
    assert list(fields) == list(RECORDED_KEYS)
    assert list(fields.values())[:12] == [
        "force_convert", SITE_ID, "1001", "ann@example.com", "59.90", "50.00", BUYER_IP, BUYER_AGENT,
        "SPRING", "1234abcd", "1234", "5678",
    ]  # fmt: skip


def test_no_link_no_report(journey: Journey) -> None:
    """A shopper who found the way alone gets no cookie, and the sale is not reported."""
    page = journey.browser.get("/?transaction_id=of-some-gateway")

    assert not sets_click(page)
    assert journey.buy() == "NO_CLICK"
    assert journey.reported() == []


def test_view_of_the_landing_page_knows_the_click(journey: Journey) -> None:
    """The page that sets the cookie can already greet the affiliate's shopper."""
    pages = [journey.browser.get("/").text, journey.browser.get(f"/page1?{LINK}").text, journey.browser.get("/").text]

    assert pages == ["Welcome", "Welcome from 5678", "Welcome from 5678"]


def test_landing_page_out_of_a_cache(journey: Journey) -> None:
    """The shop never saw the landing; the next page's Referer names it, and sets the cookie."""
    second_page = journey.browser.get("/", headers={"Referer": f"http://localhost/page1?{LINK}"})

    assert sets_click(second_page)
    assert journey.buy() == "RECORDED"
    assert [fields["aff_id"] for fields in journey.reported()] == ["5678"]


@pytest.mark.parametrize(
    ("path", "statuses"),
    [("/gone", {404}), ("/broken", {500}), ("/old", {302, 303})],
    ids=["404", "exception", "redirect"],
)
def test_any_landing_is_credited(journey: Journey, path: str, statuses: set[int]) -> None:
    """The affiliate brought the shopper, whatever the shop had to say at first."""
    landing = journey.browser.get(f"{path}?{LINK}", expect_errors=True)

    assert landing.status_int in statuses
    assert sets_click(landing)
    assert "private" in landing.headers["Cache-Control"]
    assert journey.buy() == "RECORDED"
    assert [fields["transaction_id"] for fields in journey.reported()] == ["1234abcd"]


def test_second_click_wins(journey: Journey) -> None:
    """The latest click inside the window is the one reported."""
    first, again, second = (journey.browser.get(f"/?{link}") for link in (LINK, LINK, OTHER_LINK))
    journey.buy()
    (fields,) = journey.reported()

    assert [sets_click(landing) for landing in (first, again, second)] == [True, False, True]
    assert (fields["transaction_id"], fields["aff_id"]) == ("ffff0000", "9999")


def test_first_click_wins_where_agreed(open_shop: Open) -> None:
    journey = open_shop(attribution="first-click")
    journey.browser.get(f"/?{LINK}")
    journey.browser.get(f"/?{OTHER_LINK}")
    journey.buy()

    assert [fields["aff_id"] for fields in journey.reported()] == ["5678"]


def test_tampered_cookie_is_no_click(journey: Journey) -> None:
    """Nobody credits an affiliate by editing a cookie; the page does not mind."""
    journey.browser.get(f"/?{LINK}")
    payload, _, signature = journey.browser.cookies["katalys_click"].partition(".")
    journey.browser.reset()
    journey.browser.set_cookie("katalys_click", f"{payload[::-1]}.{signature}")
    landing = journey.browser.get("/")

    assert landing.status_int == 200
    assert journey.buy() == "NO_CLICK"
    assert journey.reported() == []


def test_rotated_key(open_shop: Open) -> None:
    """A click signed with the old key counts while that key is listed, and no longer."""
    before = open_shop(secret_key=OLD_SECRET)
    before.browser.get(f"/?{LINK}")
    cookie = before.browser.cookies["katalys_click"]
    rotating, rotated = open_shop(secret_key=[OLD_SECRET, SECRET]), open_shop(secret_key=SECRET)
    for shop in (rotating, rotated):
        shop.browser.set_cookie("katalys_click", cookie)
    before.buy("0999")

    assert rotating.buy("1001") == "RECORDED"
    assert rotated.buy("1002") == "NO_CLICK"
    assert {fields["order_id"] for fields in rotating.reported()} == {"0999", "1001"}


def test_gateway_return_without_cookie(journey: Journey) -> None:
    """A cross-site POST carries no Lax cookie; the token stored with the order stands in for it."""
    journey.browser.get(f"/?{LINK}")
    token = journey.browser.post("/leave").text
    gateway = TestApp(journey.browser.app, lint=True, extra_environ={"REMOTE_ADDR": "198.51.100.1"})

    without = gateway.post("/checkout", {"order": "1001"}).text
    returned = gateway.post("/return", {"order": "1001", "token": token}).text
    (fields,) = journey.reported()

    assert (without, returned) == ("NO_CLICK", "RECORDED")
    assert (fields["client_ip"], fields["user_agent"]) == (BUYER_IP, BUYER_AGENT)
    assert fields["transaction_id"] == "1234abcd"


def test_buying_twice_is_reported_once(journey: Journey) -> None:
    """A reloaded thank-you page is no second sale; a second order is."""
    journey.browser.get(f"/?{LINK}")
    outcomes = [journey.buy("1001"), journey.buy("1001"), journey.buy("1002")]

    assert outcomes == ["RECORDED", "DUPLICATE", "RECORDED"]
    assert sorted(fields["order_id"] for fields in journey.reported()) == ["1001", "1002"]


@pytest.mark.parametrize("framework", ["flask", "django", "pyramid", "bottle"])
def test_missing_framework_says_so_itself(monkeypatch: pytest.MonkeyPatch, framework: str) -> None:
    """Without Flask, ``katalys_wsgi.flask`` fails with Flask's own ImportError, and everything else works."""
    for name in [name for name in sys.modules if name.partition(".")[0] == framework]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith(f"katalys_wsgi.{framework}")]:
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(ImportError) as caught:
        importlib.import_module(f"katalys_wsgi.{framework}")
    assert str(caught.value.name).partition(".")[0] == framework
