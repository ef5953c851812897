"""The table of frameworks: each thing that it names is there, and does in a request what the table says."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import bottle
import django.conf
import pytest
from django.core.management import get_commands
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.template import Context, Template
from django.test import RequestFactory, override_settings
from flask import Flask, render_template_string
from pyramid.config import Configurator
from pyramid.response import Response
from webtest import TestApp

from katalys_wsgi import ClickMiddleware, OrderUpdate, Outcome, Record, Settings, Tracker, Visit, cli
from katalys_wsgi.bottle import KatalysPlugin
from katalys_wsgi.django import KatalysMiddleware, get_tracker
from katalys_wsgi.flask import Katalys
from katalys_wsgi.paste import filter_app_factory

from .django_shop import katalys_settings
from .support import LINK, make_conversion, make_environ

PAGE = (Path(__file__).parent.parent / "docs" / "frameworks.md").read_text("utf-8")

#: Called in a request with the names that a view knows there, and with what renders a template.
Check = Callable[[dict[str, Any], Callable[[str], str]], None]
Cells = dict[str, str]


def read_table() -> dict[str, Cells]:
    """The cells of each framework's column by the name of their row."""
    lines = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    return {name: {row[0]: row[number] for row in rows} for number, name in enumerate(header) if name}


TABLE = read_table()


def spans(cell: str) -> list[str]:
    """What a cell names."""
    return re.findall(r"`([^`]+)`", cell)


def run(cell: str, known: dict[str, Any]) -> Any:
    """The value of the one expression in a cell."""
    (expression,) = spans(cell)
    return eval(expression, dict(known))  # noqa: S307 - our own docs


def no_templates(_template: str) -> str:
    raise AssertionError("this framework renders no templates")  # pragma: no cover - the table has none for it


# --- a request in each framework, which is installed as the table says ------------------------------------------


def wsgi(cells: Cells, options: dict[str, Any], check: Check) -> None:
    tracker = Tracker(**options)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        check({"tracker": tracker, "environ": environ, "visit": tracker.visit(environ)}, no_templates)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    wrapped = run(cells["install"], {"app": app, "tracker": tracker, "ClickMiddleware": ClickMiddleware})
    TestApp(wrapped).get("/?" + LINK)
    tracker.close()


def flask(cells: Cells, options: dict[str, Any], check: Check) -> None:
    app = Flask(__name__)
    app.config.update(katalys_settings(options))
    katalys = run(cells["install"], {"app": app, "Katalys": Katalys})
    names = {"app": app, "katalys": katalys}

    def view() -> str:
        check(names, render_template_string)
        return ""

    app.add_url_rule("/", view_func=view)
    app.testing = True  # what check() raises comes through
    app.test_client().get("/?" + LINK)
    assert set(katalys_commands(cells)) <= set(app.cli.commands)
    app.extensions["katalys"].close()


def django_(cells: Cells, options: dict[str, Any], check: Check) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        names = {"request": request, "settings": django.conf.settings, "transaction": transaction}
        names["get_tracker"] = get_tracker
        check(names, lambda text: str(Template(text).render(Context())))
        return HttpResponse()

    application, where, middleware, list_ = spans(cells["install"])
    assert application in getattr(django.conf.settings, where)
    assert middleware == getattr(django.conf.settings, list_)[0]
    with override_settings(**katalys_settings(options)):
        KatalysMiddleware(view)(RequestFactory().get("/?" + LINK))
    assert set(katalys_commands(cells)) <= set(get_commands())
    connections.close_all()


def pyramid(cells: Cells, options: dict[str, Any], check: Check) -> None:
    config = Configurator(settings={f"katalys.{name}": value for name, value in options.items()})
    run(cells["install"], {"config": config})

    def view(request: Any) -> Response:
        check({"request": request, "debug_all": request.registry.settings["debug_all"]}, no_templates)
        return Response()

    config.add_route("page", "/")
    config.add_view(view, route_name="page")
    app = config.make_wsgi_app()
    TestApp(app).get("/?" + LINK)
    app.registry["katalys_tracker"].close()


def bottle_(cells: Cells, options: dict[str, Any], check: Check) -> None:
    app, tracker = bottle.Bottle(), Tracker(**options)
    app.config["catchall"] = False  # what check() raises comes through
    run(cells["install"], {"app": app, "tracker": tracker, "KatalysPlugin": KatalysPlugin})

    def view(katalys: Visit) -> None:
        check({"tracker": tracker, "katalys": katalys, "bottle": bottle}, no_templates)

    app.get("/", callback=view)
    TestApp(app).get("/?" + LINK)
    app.close()


def paste(cells: Cells, options: dict[str, Any], check: Check) -> None:
    trackers: list[Tracker] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        trackers.append(environ["katalys_wsgi.tracker"])
        check({"environ": environ, "visit": run(cells["visit"], {"environ": environ})}, no_templates)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    (egg,) = re.findall(r"^use = egg:(\S+)$", spans(cells["install"])[0])
    (entry,) = importlib.metadata.distribution(egg).entry_points.select(group="paste.filter_app_factory")
    assert (entry.name, entry.load()) == ("main", filter_app_factory)
    TestApp(filter_app_factory(app, {}, **options)).get("/?" + LINK)
    trackers[0].close()


def katalys_commands(cells: Cells) -> list[str]:
    """The word by which a framework's own program knows our command line."""
    return [span.split()[1] for span in spans(cells["commands"])]


SHOPS: dict[str, Callable[[Cells, dict[str, Any], Check], None]] = {
    "plain WSGI": wsgi, "Flask": flask, "Django": django_, "Pyramid": pyramid, "Bottle": bottle_, "Paste": paste,
}  # fmt: skip


def test_the_table_has_a_column_for_each_framework() -> None:
    assert list(TABLE) == list(SHOPS)
    assert all(cell for cells in TABLE.values() for cell in cells.values())


# --- what the table names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", SHOPS)
def test_the_verbs_are_there_in_a_request(framework: str, options: dict[str, Any]) -> None:
    """Each expression of the column is evaluated where a view would write it."""
    cells = TABLE[framework]
    token = Tracker(**options).visit(make_environ(LINK)).token()
    refund = OrderUpdate("1001", order_status="refunded")
    seen: list[dict[str, Any]] = []

    def check(names: dict[str, Any], render: Callable[[str], str]) -> None:
        known = {**names, "conversion": make_conversion(), "update": refund, "token": token}
        tag = spans(cells["script tag"])[0]
        seen.append({row: run(cells[row], known) for row in ("tracker", "visit", "record", "resume", "update")})
        seen[0]["script tag"] = render(tag) if tag.startswith("{") else run(cells["script tag"], known)
        for name in mentioned(cells, "strict when", "held when", "transaction"):
            eval(name, dict(known))  # noqa: S307 - our own docs

    SHOPS[framework](cells, options, check)

    (found,) = seen
    assert isinstance(found["tracker"], Tracker)
    assert isinstance(found["visit"], Visit)
    assert found["visit"].click is not None
    assert found["resume"].click is not None
    assert [found[row].outcome for row in ("record", "update")] == [Outcome.RECORDED] * 2
    assert isinstance(found["record"], Record)
    assert found["script tag"] == found["tracker"].script_tag()


def mentioned(cells: Cells, *rows: str) -> Iterator[str]:
    """Names of the framework's own; settings and parameters of ours are looked up in our own tables at once."""
    settings = {setting.name for setting in fields(Settings)}
    for span in (span for row in rows for span in spans(cells[row])):
        if span == "connection=":
            assert "connection" in signature(Visit.record).parameters
        elif "=" in span:
            assert span.partition("=")[0].strip() in settings
        elif span == "pyramid_tm":
            importlib.metadata.distribution(span)
        else:
            yield span


@pytest.mark.parametrize("framework", SHOPS)
def test_its_command_is_one_of_ours(framework: str, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = spans(TABLE[framework]["commands"])
    with pytest.raises(SystemExit) as caught:
        cli.main([line.split()[-1], "--help"])

    assert caught.value.code == 0
    assert line.split()[0] in ("katalys-wsgi", "flask", "manage.py")


@pytest.mark.parametrize("framework", SHOPS)
def test_its_extra_can_be_installed(framework: str) -> None:
    name, _, extra = spans(TABLE[framework]["extra"])[0].rstrip("]").partition("[")
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")

    assert f'name = "{name}"' in project
    assert not extra or re.search(rf"^{extra} = \[", project, re.MULTILINE)


@pytest.mark.parametrize("framework", SHOPS)
def test_its_spelling_of_a_setting(framework: str) -> None:
    (name,) = spans(TABLE[framework]["settings"])

    assert name.strip("=").lower().removeprefix("katalys").strip("._") == "site_id"
