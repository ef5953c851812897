"""Every Python block of the README runs, and what README and docs say of commands and settings is true."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from webtest import TestApp

from katalys_wsgi import Settings, Tracker
from katalys_wsgi.cli import command_names
from katalys_wsgi.sandbox import Sandbox

from .support import BUYER_AGENT, BUYER_IP, LINK, SECRET, SITE_ID, TWELVE_KEYS, make_environ

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _sections(text: str) -> dict[str, str]:
    sections = (section.partition("\n") for section in text.split("\n### ")[1:])
    return {title: body.split("```")[1].removeprefix("python\n") for title, _, body in sections if "```python" in body}


BLOCKS = _sections(README)
SHOPS = [title for title, block in BLOCKS.items() if "app = " in block]


@pytest.fixture
def reader(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's machine: the README's two settings, a folder, and the sandbox where Katalys' endpoint would be."""
    table = {setting.name: setting for setting in fields(Settings)}
    monkeypatch.setattr(table["endpoint"], "default", sandbox.endpoint)
    monkeypatch.setenv("KATALYS_SITE_ID", SITE_ID)
    monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(block: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": __name__}  # Pyramid looks the caller up
    exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102 - our own README
    return namespace


def _tracker_of(namespace: dict[str, Any]) -> Tracker:
    app = namespace["app"]
    tracker: Tracker
    if "tracker" in namespace:
        tracker = namespace["tracker"]
    elif hasattr(app, "extensions"):
        tracker = app.extensions["katalys"]
    elif hasattr(app, "registry"):
        tracker = app.registry["katalys_tracker"]
    else:
        tracker = app.plugins[-1].tracker
    return tracker


def test_the_readme_has_a_block_for_each_framework() -> None:
    assert [title.partition(" ")[0] for title in SHOPS] == ["Flask", "Pyramid", "Bottle", "Any"]


@pytest.mark.parametrize("title", SHOPS)
def test_a_shop_copied_from_the_readme_reports_its_sale(title: str, reader: Path, sandbox: Sandbox) -> None:
    """Link, checkout, and the twelve keys of the specification at the collector; no further setting is needed."""
    namespace = _run(BLOCKS[title])
    browser = TestApp(namespace["app"], extra_environ={"REMOTE_ADDR": BUYER_IP, "HTTP_USER_AGENT": BUYER_AGENT})

    browser.get(f"/?{LINK}", status="*")
    browser.post("/checkout", status=200)

    (received,) = sandbox.collector.wait_for(1)
    _tracker_of(namespace).close()
    assert tuple(received.fields) == TWELVE_KEYS
    assert (reader / "katalys-outbox.db").exists()


def test_the_webhook_block_records_from_a_token(reader: Path, sandbox: Sandbox) -> None:
    namespace = _run(BLOCKS["Payment webhooks, gateway returns, refunds"])
    order = {"id": "1001", "email": "ann@example.com", "total": "59.90", "subtotal": "50.00"}
    shopper, webhook = make_environ(LINK), make_environ(REMOTE_ADDR="198.51.100.1", HTTP_USER_AGENT="Gateway/1.0")

    namespace["before_payment"](shopper, order)
    namespace["on_webhook"](webhook, order)
    namespace["on_refund"](webhook, order)

    conversion, update = sandbox.collector.wait_for(2)
    namespace["tracker"].close()
    assert conversion.fields["aff_id"] == "5678"
    assert (conversion.fields["client_ip"], conversion.fields["user_agent"]) == (BUYER_IP, BUYER_AGENT)
    assert update.fields["order_status"] == "refunded"


def test_the_table_of_settings_is_complete() -> None:
    table = README.partition("## Settings")[2].partition("\n## ")[0]
    documented = re.findall(r"`([a-z_]+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    assert documented == [setting.name for setting in fields(Settings)]


def test_the_commands_that_are_mentioned_exist() -> None:
    documents = [README, *(page.read_text() for page in (ROOT / "docs").glob("**/*.md"))]
    mentioned = set(re.findall(r"katalys-wsgi ([a-z]+)", "\n".join(documents)))

    assert mentioned <= set(command_names())
    assert {"demo", "deliver", "status", "why", "retry"} <= mentioned
