"""Every Python block of the README runs, and what README and docs say of commands and settings is true."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from webtest import TestApp

from katalys_wsgi import Settings, Tracker
from katalys_wsgi.cli import command_names
from katalys_wsgi.sandbox import Sandbox

from .readme import LOGGING, README, ROOT, SHOPS, blocks, export, log_line, section
from .support import BUYER_AGENT, BUYER_IP, LINK, RECORDED_KEYS, SECRET, make_environ

#: The shops that are one file. Django's project is served in test_new_shops.py: one process has one project.
FILES = [title for title in SHOPS if title != "Django"]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's machine: the README's site id and secret in the environment, and an empty folder."""
    monkeypatch.setenv("KATALYS_SITE_ID", export("KATALYS_SITE_ID"))
    monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sandboxed(reader: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The reader's machine with the README's third variable, the sandbox in place of Katalys."""
    monkeypatch.setenv("KATALYS_ENDPOINT", sandbox.endpoint)
    return sandbox


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log with the format of the README's two lines."""
    (form,) = re.findall(r'format="([^"]+)"', LOGGING)
    caplog.handler.setFormatter(logging.Formatter(form))
    with caplog.at_level(logging.INFO):
        yield caplog


def _run(code: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": __name__}  # Pyramid looks the caller up
    exec(compile(code, "README.md", "exec"), namespace)  # noqa: S102 - our own README
    return namespace


def _shop(title: str) -> tuple[TestApp, Tracker]:
    """The shop of a section, as a shopper's browser sees it, and its tracker."""
    namespace = _run(blocks(title)[0].code)
    app = namespace["app"]
    tracker: Tracker
    match title:
        case "Flask":
            tracker = app.extensions["katalys"]
        case "Pyramid":
            tracker = app.registry["katalys_tracker"]
        case "Bottle":
            tracker = app.plugins[-1].tracker
        case _:
            tracker = namespace["tracker"]
    return TestApp(app, extra_environ={"REMOTE_ADDR": BUYER_IP, "HTTP_USER_AGENT": BUYER_AGENT}), tracker


def _buy(browser: TestApp) -> str:
    browser.get(f"/?{LINK}", status="*")
    return str(browser.post("/checkout", status=200).text)


def test_the_quick_start_is_two_commands() -> None:
    commands = [line.strip() for line in section("Quick start").splitlines() if line.startswith("    ")]

    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/katalys-wsgi demo",
        'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/pytest',
    ]


def test_the_readme_has_a_block_for_each_framework() -> None:
    assert {title: [block.file for block in blocks(title)] for title in SHOPS} == {
        "Flask": ["shop.py"],
        "Pyramid": ["shop.py"],
        "Bottle": ["shop.py"],
        "Django": ["shop/settings.py", "shop/urls.py"],
        "Plain WSGI": ["shop.py"],
    }


def test_the_readme_names_the_extra_of_each_framework() -> None:
    extras = (ROOT / "pyproject.toml").read_text("utf-8")

    assert [name for name in SHOPS.values() if name and f"`{name}`" not in section("Install")] == []
    assert [name for name in SHOPS.values() if name and f"\n{name} = [" not in extras] == []


@pytest.mark.parametrize("title", ["Flask", "Pyramid", "Bottle", "Django"])
def test_a_forgotten_extra_is_named_by_the_framework_it_brings(title: str) -> None:
    """Not by something that the framework would have brought in its turn."""
    name = SHOPS[title]
    there = dict.fromkeys([name, "click", "werkzeug", "webob.dec", "asgiref"])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules.update({there}); import katalys_wsgi.{name}"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip

    last = done.stderr.splitlines()[-1]
    assert re.match(rf"ModuleNotFoundError: (import of |No module named '){name}\b", last), last


@pytest.mark.parametrize("title", FILES)
def test_a_shop_copied_from_the_readme_reports_its_sale(
    title: str, reader: Path, sandboxed: Sandbox, log: pytest.LogCaptureFixture
) -> None:
    """Link, checkout, the keys of the specification at the collector, and the README's lines in the log."""
    browser, tracker = _shop(title)

    assert _buy(browser).endswith("recorded")

    (received,) = sandboxed.collector.wait_for(1)
    tracker.close()
    assert tuple(received.fields) == RECORDED_KEYS
    assert (reader / "katalys-outbox.db").exists()
    for event in ("tracker_started", "conversion_recorded", "postback_delivered"):
        line = log_line(event).replace(export("KATALYS_ENDPOINT"), sandboxed.endpoint)
        assert line.replace("/home/ann/shop", str(reader)) in log.text.splitlines()


@pytest.mark.parametrize("title", FILES)
def test_a_shop_copied_from_the_readme_into_a_test_sends_nothing(
    title: str, reader: Path, log: pytest.LogCaptureFixture
) -> None:
    """Nobody has set an endpoint, so it is Katalys' own; a connection to it would fail this test."""
    browser, tracker = _shop(title)

    assert _buy(browser).endswith("recorded")

    assert tracker.held == "pytest runs a test"
    assert tracker.drain().settled == 0
    assert [entry.attempts for entry in tracker.outbox.history("1001")] == [0]
    tracker.close()
    line = log_line("delivery_held").replace("Flask's DEBUG", "pytest runs a test")
    assert line in log.text.splitlines()


def test_flask_says_that_it_is_flask_that_holds(reader: Path, log: pytest.LogCaptureFixture) -> None:
    """Word for word the README's line; and nothing appears in the folder of a test suite."""
    namespace = _run(blocks("Flask")[0].code)
    app = namespace["app"]
    app.debug = True
    _buy(TestApp(app))
    assert log_line("delivery_held") in log.text.splitlines()

    app.debug, app.testing = False, True
    assert app.extensions["katalys"].held == "Flask's TESTING"
    app.extensions["katalys"].close()


def test_flask_under_testing_leaves_no_file(reader: Path) -> None:
    app = _run(blocks("Flask")[0].code)["app"]
    app.testing = True

    assert _buy(TestApp(app)).endswith("recorded")

    app.extensions["katalys"].close()
    assert list(reader.iterdir()) == []


def test_the_webhook_block_records_from_a_token(sandboxed: Sandbox) -> None:
    namespace = _run(blocks("Payment webhooks, gateway returns, refunds")[0].code)
    order = {"id": "1001", "email": "ann@example.com", "total": "59.90", "subtotal": "50.00"}
    shopper, webhook = make_environ(LINK), make_environ(REMOTE_ADDR="198.51.100.1", HTTP_USER_AGENT="Gateway/1.0")

    namespace["before_payment"](shopper, order)
    namespace["on_webhook"](webhook, order)
    namespace["on_refund"](webhook, order)

    conversion, update = sandboxed.collector.wait_for(2)
    namespace["tracker"].close()
    assert conversion.fields["aff_id"] == "5678"
    assert (conversion.fields["client_ip"], conversion.fields["user_agent"]) == (BUYER_IP, BUYER_AGENT)
    assert update.fields["order_status"] == "refunded"


def test_the_two_lines_of_logging_show_what_happens(reader: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As the last thing a file says it would do nothing if the framework had set up logging; so it stands first."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        _run(LOGGING)
        browser, tracker = _shop("Flask")
        _buy(browser)
        tracker.close()
        shown = capfd.readouterr().err
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert log_line("conversion_recorded") in shown.splitlines()


def test_going_live_is_a_checklist_of_five_lines_about_settings_that_exist() -> None:
    lines = [line for line in section("Going live").splitlines() if re.match(r"\d\. ", line)]
    named = {name.lower() for name in re.findall(r"KATALYS_([A-Z_]+)", "\n".join(lines))}

    assert [line[0] for line in lines] == list("12345")
    assert named <= {setting.name for setting in fields(Settings)}


def test_the_table_of_settings_is_complete() -> None:
    table = section("Settings")
    documented = re.findall(r"`([a-z_]+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    assert documented == [setting.name for setting in fields(Settings)]


def test_every_setting_that_is_named_anywhere_exists() -> None:
    known = {f"KATALYS_{setting.name.upper()}" for setting in fields(Settings)} | {"KATALYS_HOOKS"}
    named = set(re.findall(r"KATALYS_[A-Z_]+[A-Z]", "\n".join(_documents())))

    assert named <= known


def test_the_commands_that_are_mentioned_exist() -> None:
    mentioned = set(re.findall(r"(?:katalys-wsgi|katalys-wsgi --app shop:app| katalys) ([a-z]+)`?", _shell()))

    assert mentioned <= set(command_names())
    assert {"demo", "sandbox", "deliver", "status", "why", "retry"} <= mentioned


def _documents() -> list[str]:
    return [README, *(page.read_text("utf-8") for page in sorted((ROOT / "docs").glob("**/*.md")))]


def _shell() -> str:
    """What README and docs show as code, where a command may stand."""
    return "\n".join(re.findall(r"`[^`\n]+`|^    .+$", "\n".join(_documents()), re.MULTILINE))
