"""Pyramid's includeme: settings, the tween's place, and joining the transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import transaction
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPFound
from pyramid.interfaces import ITweens
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from katalys_wsgi import ConfigurationError, Event, InvalidConversion, InvalidToken, OrderUpdate, Outcome, Tracker
from katalys_wsgi.conversion.postback import Kind
from katalys_wsgi.outbox import Added
from katalys_wsgi.pyramid import click_tween_factory

from .support import (
    BUYER_IP,
    LINK,
    OLD_SECRET,
    SECRET,
    SITE_ID,
    history_of,
    make_conversion,
    make_environ,
    names,
)

LANDING = "/?" + LINK

View = Callable[[Any], Any]
MakeApp = Callable[..., TestApp]


@pytest.fixture
def settings(options: dict[str, Any]) -> dict[str, Any]:
    """A tracker's settings in the spelling of an ini file."""
    return {f"katalys.{name}": value for name, value in options.items()}


@pytest.fixture
def make_app(settings: dict[str, Any]) -> Iterator[MakeApp]:
    """Makes an application of one view at /; in the names of changed settings ``__`` stands for the point."""
    made: list[Any] = []

    def make(view: View, configure: Callable[[Configurator], None] = lambda _: None, **changes: Any) -> TestApp:
        config = Configurator(settings={**settings, **{name.replace("__", "."): v for name, v in changes.items()}})
        config.include("katalys_wsgi.pyramid")
        config.add_route("page", "/")
        config.add_view(view, route_name="page")
        configure(config)
        made.append(config.make_wsgi_app())
        return TestApp(made[-1], lint=True)

    yield make
    for app in made:
        app.registry["katalys_tracker"].close()


def tracker_of(app: TestApp) -> Tracker:
    tracker: Tracker = app.app.registry["katalys_tracker"]
    return tracker


def orders_of(app: TestApp) -> list[str]:
    """The orders that are in the outbox."""
    return [order for order in ("1001", "1002") if history_of(tracker_of(app).outbox, order)]


def page(request: Any) -> Response:
    return Response("Welcome")


def buy(request: Any) -> Response:
    return Response(request.katalys.record(make_conversion()).outcome.name)


# --- including -----------------------------------------------------------------------------------------------


def test_including_twice_changes_nothing(settings: dict[str, Any]) -> None:
    """An ini file and a package may both ask for it, before and after a commit."""
    config = Configurator(settings={**settings, "pyramid.includes": "katalys_wsgi.pyramid"})
    tracker = config.registry["katalys_tracker"]
    config.include("katalys_wsgi.pyramid")
    config.commit()
    config.include("katalys_wsgi.pyramid")
    app = config.make_wsgi_app()

    assert app.registry["katalys_tracker"] is tracker
    assert [name for name, _ in app.registry.queryUtility(ITweens).implicit()].count(
        "katalys_wsgi.pyramid.click_tween_factory"
    ) == 1


@pytest.mark.parametrize("first", ["pyramid_tm", "katalys_wsgi.pyramid"])
def test_tween_is_directly_under_the_ingress(settings: dict[str, Any], first: str) -> None:
    """Whatever stands further in may fail or redirect; the click is kept."""
    config = Configurator(settings=settings)
    config.include(first)
    config.include("katalys_wsgi.pyramid")
    config.include("pyramid_tm")
    app = config.make_wsgi_app()

    assert app.registry.queryUtility(ITweens).implicit()[0][0] == "katalys_wsgi.pyramid.click_tween_factory"


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"katalys.site_id": ""}, r"^katalys\.site_id is missing; "),
        ({"katalys.side_id": "KA-1"}, r"^katalys\.side_id is an unknown setting; did you mean katalys\.site_id\?"),
        ({"katalys.secret_key": "short"}, r"^katalys\.secret_key has a key of 5 characters"),
        ({"katalys.consent": "shop.consent"}, r"^katalys\.consent can only be given in Python"),
        ({"katalys.hooks": "shop.hook"}, r"^katalys\.hooks can only be given in Python"),
    ],
    ids=["missing", "unknown", "weak", "consent", "hooks"],
)
def test_problems_are_reported_in_ini_spelling(settings: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    config = Configurator(settings={**settings, **changes})
    with pytest.raises(ConfigurationError, match=message):
        config.include("katalys_wsgi.pyramid")


def test_keys_of_an_ini_file(make_app: MakeApp) -> None:
    """One line for each, oldest first."""
    app = make_app(page, katalys__secret_key=f"\n{OLD_SECRET}\n{SECRET}")

    assert tracker_of(app).settings.secret_key == (OLD_SECRET, SECRET)
    assert tracker_of(app).settings.site_id == SITE_ID


def test_what_the_ini_file_does_not_say_the_environment_does(
    make_app: MakeApp, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``KATALYS_ENDPOINT`` is followed, as it is by the commands; the file goes before it."""
    del settings["katalys.secret_key"]
    for name, value in {"SECRET_KEY": SECRET, "SITE_ID": "KA-ENVIRON", "STRICT": "no"}.items():
        monkeypatch.setenv(f"KATALYS_{name}", value)
    settings_read = tracker_of(make_app(page, debug_all="true")).settings

    assert (settings_read.site_id, settings_read.secret_key) == (SITE_ID, (SECRET,))
    assert settings_read.strict is False  # the environment's, not debug_all's


def test_hooks_are_called_with_every_event(settings: dict[str, Any]) -> None:
    """Put into the registry's settings before the include, as the manual shows."""
    events: list[Event] = []
    config = Configurator(settings=settings)
    config.registry.settings["katalys.hooks"] = [events.append]
    config.include("katalys_wsgi.pyramid")
    config.add_route("page", "/")
    config.add_view(buy, route_name="page")
    app = config.make_wsgi_app()
    TestApp(app).get(LANDING, extra_environ={"REMOTE_ADDR": BUYER_IP})
    app.registry["katalys_tracker"].close()

    assert [event.name for event in events] == ["tracker_started", "conversion_recorded"]


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, None),
        ({"debug_all": "true"}, "Pyramid's debug_all"),
        ({"debug_all": "true", "katalys__live": "true"}, None),
        ({"katalys__live": "false"}, "live is false"),
    ],
    ids=["production", "debug", "live all the same", "never live"],
)
def test_postbacks_are_held(
    make_app: MakeApp,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    held: str | None,
) -> None:
    """A developer's orders stay on the developer's machine."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # which holds them, too
    del settings["katalys.endpoint"]  # Katalys' own

    assert tracker_of(make_app(page, **changes)).held == held


def test_what_only_python_can_say(make_app: MakeApp) -> None:
    """Consent and hooks are functions, put into the registry's settings."""
    events: list[Event] = []
    app = make_app(buy, katalys__consent=lambda environ: "HTTP_DNT" not in environ, katalys__hooks=[events.append])
    outcomes = [app.get(LANDING, headers=headers).text for headers in ({"DNT": "1"}, {})]

    assert outcomes == ["NO_CONSENT", "RECORDED"]
    assert "conversion_recorded" in [event.name for event in events]


@pytest.mark.parametrize(
    ("changes", "strict"),
    [
        ({}, False),
        ({"debug_all": "true"}, True),
        ({"pyramid.debug_all": "true"}, True),
        ({"debug_all": "true", "katalys.strict": "false"}, False),
        ({"katalys.strict": "true"}, True),
    ],
    ids=["production", "debug", "debug with prefix", "switched off", "switched on"],
)
def test_strictness(make_app: MakeApp, changes: dict[str, Any], strict: bool) -> None:
    """Under debug_all bad data raises, unless katalys.strict says otherwise."""

    def view(request: Any) -> Response:
        return Response(request.katalys.record(make_conversion(sale_amount="a lot")).outcome.name)

    app = make_app(view, **changes)
    if strict:
        with pytest.raises(InvalidConversion, match="sale_amount"):
            app.get(LANDING)
    else:
        assert app.get(LANDING).text == "INVALID"


@pytest.mark.parametrize("strict", [True, False], ids=["debug", "production"])
def test_strictness_reaches_every_verb(make_app: MakeApp, strict: bool) -> None:
    """Also an update, a token and what is recorded from it raise under debug_all, and never in production."""
    lost = OrderUpdate("1001", order_status=cast(Any, "lost"))  # a status that Katalys does not know
    calls: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
        "resumed": (
            lambda visit: visit.resume(visit.token()).record(make_conversion(sale_amount="a lot")),
            InvalidConversion,
            "INVALID",
        ),
        "token": (lambda visit: visit.resume("nonsense").record(make_conversion()), InvalidToken, "NO_CLICK"),
        "update": (lambda visit: visit.record_update(lost), InvalidConversion, "INVALID"),
    }

    def view(request: Any) -> Response:
        call, _, _ = calls[request.params["call"]]
        return Response(call(request.katalys).outcome.name)

    app = make_app(view, debug_all=str(strict))

    for name, (_, error, outcome) in calls.items():
        if strict:
            with pytest.raises(error):
                app.get(f"{LANDING}&call={name}")
        else:
            assert app.get(f"{LANDING}&call={name}").text == outcome


# --- the tween -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [Response("Welcome"), HTTPFound("/elsewhere")], ids=["page", "redirect"])
def test_shared_response_is_not_touched(make_app: MakeApp, shared: Response) -> None:
    """A view may keep one response for everybody; nobody gets another shopper's cookie."""
    app = make_app(lambda _: shared)
    landing = app.get(LANDING)
    app.reset()
    stranger = app.get("/")

    assert landing.headers["Set-Cookie"].startswith("katalys_click=")
    assert landing.status == stranger.status
    assert "Set-Cookie" not in stranger.headers
    assert "Set-Cookie" not in shared.headers


def test_tween_that_a_list_of_tweens_forgot_is_reported(make_app: MakeApp) -> None:
    """``pyramid.tweens`` replaces what include() added; without our tween no click is ever kept."""
    events: list[Event] = []
    without = {"pyramid.tweens": "pyramid.tweens.excview_tween_factory", "katalys.hooks": [events.append]}
    app = make_app(lambda request: Response(request.katalys.record(make_conversion()).reason), **without)

    assert "no ClickMiddleware has seen this request" in app.get("/").text
    assert names(events) == ["middleware_missing"]


def test_stream_is_handed_on(tracker: Tracker) -> None:
    """The response's iterable is the very same object, and nobody has read from it."""
    stream = iter([b"first", b"second"])
    tween = click_tween_factory(lambda _: Response(app_iter=stream), {"katalys_tracker": tracker})
    response = tween(Request(make_environ(LINK)))

    assert response.headers["Set-Cookie"].startswith("katalys_click=")
    assert response.app_iter is stream
    assert list(stream) == [b"first", b"second"]


def test_request_that_is_sent_through_again(make_app: MakeApp) -> None:
    """As pyramid_retry does: the first answer is thrown away, and the second one must set the cookie as well."""

    def again(environ: dict[str, Any], router: Any) -> Any:
        for _attempt in range(2):
            with router.request_context(environ) as request:
                response = router.invoke_request(request)
        return response

    app = make_app(page, lambda config: config.set_execution_policy(again))
    assert len(app.get(LANDING).headers.getall("Set-Cookie")) == 1


def test_answer_of_a_subrequest(make_app: MakeApp) -> None:
    """The tween sees it twice, the browser gets one cookie."""

    def view(request: Any) -> Response:
        if "again" in request.environ:
            return page(request)
        inner = request.copy()
        inner.environ["again"] = True
        return request.invoke_subrequest(inner, use_tweens=True)

    assert len(make_app(view).get(LANDING).headers.getall("Set-Cookie")) == 1


# --- transactions --------------------------------------------------------------------------------------------


@pytest.fixture
def with_tm() -> dict[str, str]:
    """Settings of a shop under pyramid_tm, with the manager that its manual recommends."""
    return {"pyramid__includes": "pyramid_tm", "tm__manager_hook": "pyramid_tm.explicit_manager"}


def test_recorded_after_the_commit(make_app: MakeApp, with_tm: dict[str, str], sandbox: Any) -> None:
    """While the view runs, nothing is written; after the commit it is, and is delivered."""
    seen = []

    def view(request: Any) -> Response:
        answer = buy(request)
        seen.extend(orders_of(app))
        return answer

    app = make_app(view, **with_tm)

    assert app.get(LANDING).text == Outcome.DEFERRED.name
    assert (seen, orders_of(app)) == ([], ["1001"])
    assert tracker_of(app).drain().settled == 1
    assert [received.fields["order_id"] for received in sandbox.collector.accepted] == ["1001"]


class FailingDatabase:
    """A resource of the transaction that cannot commit."""

    def abort(self, _: Any) -> None: ...

    tpc_begin = commit = tpc_abort = tpc_finish = abort

    def tpc_vote(self, _: Any) -> None:
        raise ZeroDivisionError("the disk is full")

    def sortKey(self) -> str:  # noqa: N802 - transaction's word
        return "failing"


def _raise(request: Any) -> None:
    raise ZeroDivisionError("an error in a view")


@pytest.mark.parametrize(
    "go_wrong",
    [
        _raise,
        lambda request: request.tm.doom(),
        lambda request: request.tm.get().join(FailingDatabase()),
        lambda request: setattr(request.response, "status", 500),
    ],
    ids=["exception", "doomed", "failed commit", "veto"],
)
def test_nothing_is_recorded_after_an_abort(
    make_app: MakeApp, with_tm: dict[str, str], go_wrong: Callable[[Any], None]
) -> None:
    """An order that the shop does not have is not reported; the landing is credited all the same."""

    def view(request: Any) -> Response:
        assert request.katalys.record(make_conversion()).outcome is Outcome.DEFERRED
        go_wrong(request)
        return request.response

    def add_sorry(config: Configurator) -> None:
        config.add_exception_view(lambda _: Response("Sorry", status=500), ZeroDivisionError)

    app = make_app(view, add_sorry, **with_tm, tm__commit_veto="pyramid_tm.default_commit_veto")
    landing = app.get(LANDING, expect_errors=True)

    assert orders_of(app) == []
    assert landing.headers["Set-Cookie"].startswith("katalys_click=")


def test_resumed_visit_joins_too(make_app: MakeApp, with_tm: dict[str, str]) -> None:
    """A payment webhook marks the order as paid in the same transaction."""

    def webhook(request: Any) -> Response:
        visit = request.katalys.resume(request.params["token"])
        outcome = visit.record(make_conversion()).outcome
        if "fail" in request.params:
            request.tm.doom()
        return Response(outcome.name)

    app = make_app(webhook, **with_tm)
    token = tracker_of(app).visit(make_environ(LINK)).token()

    assert app.get("/", {"token": token, "fail": "1"}).text == "DEFERRED"
    assert orders_of(app) == []
    assert app.get("/", {"token": token}).text == "DEFERRED"
    assert orders_of(app) == ["1001"]


@pytest.mark.parametrize("through", ["the visit", "a resumed one"])
@pytest.mark.parametrize("commits", [True, False], ids=["commit", "abort"])
def test_refund_joins_too(make_app: MakeApp, with_tm: dict[str, str], through: str, commits: bool) -> None:
    """A refund that the shop took back is not reported; one that it kept is."""

    def refund(request: Any) -> Response:
        visit = request.katalys if through == "the visit" else request.katalys.resume(request.params["token"])
        answer = visit.record_update(OrderUpdate("1001", order_status="refunded")).outcome.name
        if not commits:
            request.tm.doom()
        return Response(answer)

    app = make_app(refund, **with_tm)
    shopper = tracker_of(app).visit(make_environ(LINK))
    shopper.record(make_conversion())

    assert app.get("/", {"token": shopper.token()}).text == "DEFERRED"
    kinds = [entry.kind for entry in tracker_of(app).outbox.history("1001")]
    assert kinds == ([Kind.CONVERSION, Kind.UPDATE] if commits else [Kind.CONVERSION])


def test_transaction_finished_by_hand(make_app: MakeApp, with_tm: dict[str, str]) -> None:
    """A view that committed itself has no transaction to wait for: the sale is written at once."""

    def view(request: Any) -> Response:
        visit = request.katalys
        request.tm.commit()
        visit.record(make_conversion())
        found = orders_of(app)
        request.tm.begin()
        return Response(" ".join(found))

    app = make_app(view, **with_tm)
    assert app.get(LANDING).text == "1001"


def test_request_that_has_no_transaction(make_app: MakeApp, with_tm: dict[str, str]) -> None:
    """Where pyramid_tm leaves a request alone, the sale is written at once."""
    app = make_app(buy, **with_tm, tm__activate_hook=lambda _: False)

    assert app.get(LANDING).text == "RECORDED"
    assert orders_of(app) == ["1001"]


def test_global_transaction_manager(make_app: MakeApp) -> None:
    """Without tm.manager_hook pyramid_tm uses the thread's own manager."""
    app = make_app(buy, pyramid__includes="pyramid_tm")

    assert app.get(LANDING).text == "DEFERRED"
    assert orders_of(app) == ["1001"]
    assert not list(transaction.get().getAfterCommitHooks())


def test_own_connection_is_written_at_once(
    make_app: MakeApp, with_tm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion in the shop's own connection is part of its transaction and needs no hook."""
    given = []

    def add(postback: Any, *, problems: Any, connection: Any) -> Added:
        given.append((postback.order_id, connection))
        return Added.NEW

    def view(request: Any) -> Response:
        return Response(request.katalys.record(make_conversion(), connection="the session").outcome.name)

    app = make_app(view, **with_tm)
    monkeypatch.setattr(tracker_of(app).outbox, "add", add)

    assert app.get(LANDING).text == "RECORDED"
    assert given == [("1001", "the session")]
