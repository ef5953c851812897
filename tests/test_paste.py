"""The Paste filter: an ini file's pipeline, its spellings and its problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from paste.deploy import loadapp
from webtest import TestApp

from katalys_wsgi import ConfigurationError, Tracker
from katalys_wsgi.paste import filter_app_factory
from katalys_wsgi.visit import TRACKER

from .support import LINK, OLD_SECRET, SECRET, SITE_ID, make_conversion

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Write = Callable[[str], str]


def shop(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Every page sells something; the tracker is found where the manual says."""
    tracker: Tracker = environ["katalys_wsgi.tracker"]
    visit = tracker.visit(environ)
    answer = visit.record(make_conversion()).outcome.name if visit.click else "no click"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer.encode()]


def shop_factory(global_conf: dict[str, str], **local_conf: str) -> WSGIApplication:
    """The application's own entry for the ini file."""
    return shop


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a file here does not say: no thread, and no outbox in the working directory."""
    monkeypatch.setenv("KATALYS_DELIVERY", "external")
    monkeypatch.setenv("KATALYS_OUTBOX", f"{tmp_path}/outbox.db")


@pytest.fixture
def write(tmp_path: Path, options: dict[str, Any]) -> Write:
    """Writes an ini file with ``text`` as the filter's section; returns its address for PasteDeploy."""

    def write_it(text: str) -> str:
        path = tmp_path / "shop.ini"
        path.write_text(
            f"""
            [app:shop]
            paste.app_factory = {__name__}:shop_factory

            [filter:katalys]
            use = egg:katalys-wsgi
            endpoint = {options["endpoint"]}
            outbox = {options["outbox"]}
            delivery = external
            {text}

            [pipeline:main]
            pipeline = katalys shop
            """.replace("            ", "")
        )
        return f"config:{path}"

    return write_it


def settings_of(app: WSGIApplication) -> Any:
    """The settings of the tracker in the pipeline."""
    environ = TestApp(app).get("/").request.environ
    return environ[TRACKER].settings


@pytest.mark.parametrize(
    "text",
    [
        f"site_id = {SITE_ID}\nsecret_key = {SECRET}",
        f"katalys.site_id = {SITE_ID}\nkatalys.secret_key = {SECRET}",
        f"secret_key = {SECRET}\n[DEFAULT]\nkatalys.site_id = {SITE_ID}",
    ],
    ids=["plain names", "with the prefix", "in DEFAULT"],
)
def test_pipeline(write: Write, text: str) -> None:
    """The filter of an ini file keeps the click, and the application records with the tracker of the environ."""
    app = TestApp(loadapp(write(text)), lint=True)
    landing = app.get("/?" + LINK)
    again = app.get("/")

    assert landing.headers["Set-Cookie"].startswith("katalys_click=")
    assert (landing.text, again.text) == ("RECORDED", "DUPLICATE")


def test_strings_become_values(write: Write) -> None:
    """An ini file knows nothing but strings: keys are separated by white space, numbers are seconds."""
    settings = settings_of(
        loadapp(write(f"site_id = {SITE_ID}\nsecret_key = {OLD_SECRET} {SECRET}\ndeadline = 5\nstrict = yes"))
    )

    assert settings.secret_key == (OLD_SECRET, SECRET)
    assert (settings.deadline.total_seconds(), settings.strict) == (5, True)


def test_own_section_goes_before_default() -> None:
    """[DEFAULT] may hold other tools' words; only those with the prefix are ours."""
    given = {"katalys.site_id": "KA-DEFAULT", "katalys.wire": "form", "debug": "true", "here": "/srv"}
    settings = settings_of(filter_app_factory(shop, given, site_id=SITE_ID, secret_key=SECRET))

    assert (settings.site_id, settings.wire) == (SITE_ID, "form")


def test_the_environment_is_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"SECRET_KEY": SECRET, "SITE_ID": "KA-ENVIRON", "WIRE": "get", "ATTRIBUTION": "first-click"}
    for name, value in environ.items():
        monkeypatch.setenv(f"KATALYS_{name}", value)
    settings = settings_of(filter_app_factory(shop, {"katalys.wire": "form"}, site_id=SITE_ID))

    assert (settings.site_id, settings.wire, settings.attribution) == (SITE_ID, "form", "first-click")
    assert settings.secret_key == (SECRET,)


def test_live_is_written_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paste's own debug says nothing to us."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # which holds postbacks, too
    keys = {"site_id": SITE_ID, "secret_key": SECRET}
    apps = [filter_app_factory(shop, {"debug": "true"}, **keys, **live) for live in ({}, {"live": "false"})]

    assert [TestApp(app).get("/").request.environ[TRACKER].held for app in apps] == [None, "live is false"]


@pytest.mark.parametrize(
    ("local_conf", "message"),
    [
        ({"secret_key": SECRET}, r"^katalys\.site_id is missing; "),
        ({"side_id": SITE_ID}, r"^katalys\.side_id is an unknown setting; did you mean katalys\.site_id\?"),
        ({"site_id": SITE_ID, "secret_key": "short"}, r"^katalys\.secret_key has a key of 5 characters"),
        ({"site_id": SITE_ID, "katalys.site_id": SITE_ID}, r"^site_id and katalys\.site_id are both given"),
        ({"consent": "shop:consent"}, r"katalys\.consent can only be given in Python"),
    ],
    ids=["missing", "unknown", "weak", "twice", "python only"],
)
def test_problems_are_reported_in_ini_spelling(local_conf: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        filter_app_factory(shop, None, **local_conf)
