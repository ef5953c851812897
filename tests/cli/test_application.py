"""``--app module:attribute``: every kind of application has its tracker found, and a wrong one a sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bottle
import flask
import pytest
from pyramid.config import Configurator
from werkzeug.middleware.proxy_fix import ProxyFix

from katalys_wsgi import ClickMiddleware, ConfigurationError, Tracker
from katalys_wsgi.bottle import KatalysPlugin
from katalys_wsgi.cli.application import load_tracker, tracker_of
from katalys_wsgi.flask import Katalys
from katalys_wsgi.paste import filter_app_factory

from ..support import SECRET, SITE_ID, make_settings

OPTIONS = f'site_id="{SITE_ID}", secret_key="{SECRET}"'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, whose modules are forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    raise NotImplementedError  # nobody calls it


def flask_app() -> Any:
    app = flask.Flask("shop")
    Katalys(app, site_id=SITE_ID, secret_key=SECRET)
    return app


def pyramid_app() -> Any:
    config = Configurator(settings={"katalys.site_id": SITE_ID, "katalys.secret_key": SECRET})
    config.include("katalys_wsgi.pyramid")
    return config.make_wsgi_app()


def bottle_app() -> Any:
    app = bottle.Bottle()
    app.install(lambda callback: callback)
    app.install(KatalysPlugin(Tracker(make_settings())))
    return app


def proxied() -> Any:
    return ProxyFix(ClickMiddleware(wsgi_app, Tracker(make_settings())))


APPLICATIONS = [
    pytest.param(lambda: Tracker(make_settings()), id="tracker"),
    pytest.param(flask_app, id="flask"),
    pytest.param(pyramid_app, id="pyramid"),
    pytest.param(bottle_app, id="bottle"),
    pytest.param(lambda: ClickMiddleware(wsgi_app, Tracker(make_settings())), id="middleware"),
    pytest.param(proxied, id="wrapped middleware"),
    pytest.param(lambda: filter_app_factory(wsgi_app, {}, site_id=SITE_ID, secret_key=SECRET), id="paste"),
    pytest.param(lambda: KatalysPlugin(Tracker(make_settings())), id="bottle plugin"),
]


@pytest.mark.parametrize("make", APPLICATIONS)
def test_each_kind_of_application(make: Callable[[], Any]) -> None:
    tracker = tracker_of(make())

    assert tracker is not None
    assert tracker.settings.site_id == SITE_ID


@pytest.mark.parametrize(
    "found", [None, wsgi_app, flask.Flask("shop"), bottle.Bottle(), Katalys(), SimpleNamespace(plugins=3)]
)
def test_what_has_no_tracker(found: object) -> None:
    """An extension outside of a request raises; that is no tracker either."""
    assert tracker_of(found) is None


def test_a_wrapper_that_leads_back_to_itself() -> None:
    wrapper = SimpleNamespace()
    wrapper.app = wrapper

    assert tracker_of(wrapper) is None


def test_a_module_of_the_current_directory(folder: Path) -> None:
    (folder / "my_shop.py").write_text(f"from katalys_wsgi import Tracker\ntracker = Tracker({OPTIONS})\n")

    assert load_tracker("my_shop:tracker").settings.site_id == SITE_ID
    assert load_tracker("my_shop:tracker") is load_tracker("my_shop:tracker")


def test_a_factory_is_called_without_arguments(folder: Path) -> None:
    (folder / "my_shop.py").write_text(
        "from flask import Flask\nfrom katalys_wsgi.flask import Katalys\n"
        f"def create_app(name='shop'):\n    app = Flask(name)\n    Katalys(app, {OPTIONS})\n    return app\n"
    )

    assert load_tracker("my_shop:create_app").settings.site_id == SITE_ID


@pytest.mark.parametrize("given", ["shop", ":app", "shop:", ""])
def test_another_form_is_refused(given: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--app takes MODULE:ATTRIBUTE, such as shop:app; '"):
        load_tracker(given)


def problem_of(given: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load_tracker(given)
    return str(raised.value)


@pytest.mark.parametrize("module", ["no_such_shop", "my_package.no_such_shop"])
def test_a_module_that_is_not_there(folder: Path, module: str) -> None:
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()

    assert problem_of(f"{module}:app") == (
        f"--app: there is no module '{module}' in {folder} or among the installed packages."
    )


def test_an_attribute_that_is_not_there(folder: Path) -> None:
    (folder / "my_shop.py").touch()

    assert problem_of("my_shop:app") == "--app: module 'my_shop' has no 'app'."


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("import sys\nsys.no_such_thing", "AttributeError: module 'sys' has no attribute 'no_such_thing'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_fails_says_where(folder: Path, code: str, error: str) -> None:
    (folder / "my_shop.py").write_text(f"{code}\n")
    line = len(code.splitlines())

    assert problem_of("my_shop:app") == f"--app: importing my_shop failed: {error} ({folder}/my_shop.py:{line})"


def test_a_factory_that_fails_says_where(folder: Path) -> None:
    (folder / "my_shop.py").write_text("def create_app():\n    raise RuntimeError('no database')\n")

    assert problem_of("my_shop:create_app") == (
        f"--app: calling my_shop:create_app failed: RuntimeError: no database ({folder}/my_shop.py:2)"
    )


@pytest.mark.parametrize("code", ["Tracker(site_id='KA-1A2B3C4')", "app = lambda: Tracker(site_id='KA-1A2B3C4')"])
def test_settings_that_cannot_work_are_reported_as_they_are(folder: Path, code: str) -> None:
    (folder / "my_shop.py").write_text(f"from katalys_wsgi import Tracker\n{code}\n")

    assert problem_of("my_shop:app").startswith("secret_key= is missing; make one with: ")


@pytest.mark.parametrize(
    "code", ["app = 3", "def app(environ, start_response): ...", "app = type('Shop', (), {})", "app = min"]
)
def test_what_is_no_shop_is_refused_by_its_type(folder: Path, code: str) -> None:
    (folder / "my_shop.py").write_text(f"{code}\n")

    assert problem_of("my_shop:app").startswith("--app my_shop:app is a ")
    assert "without Katalys. Name a Tracker, a Flask, Pyramid or Bottle application" in problem_of("my_shop:app")
