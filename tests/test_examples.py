"""Each example, started by the very command of its docstring, sells something over HTTP."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from .support import BUYER_AGENT, TWELVE_KEYS, free_port, wait_until

ROOT = Path(__file__).parent.parent
HELPERS = {"sandboxed", "gateway"}
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem not in HELPERS)
SHOPS = [path for path in EXAMPLES if path.stem.endswith("_shop")]


class Browser(requests.Session):
    """Keeps cookies and follows redirects; asks no proxy."""

    def __init__(self, agent: str = BUYER_AGENT) -> None:
        super().__init__()
        self.trust_env = False
        self.headers["User-Agent"] = agent


class Running(NamedTuple):
    """A running example: the sandbox's address, and an affiliate's link to the shop."""

    katalys: str
    link: str

    @property
    def shop(self) -> str:
        return self.link.partition("/?")[0]

    def received(self, count: int) -> list[dict[str, Any]]:
        """What Katalys has, as soon as that is ``count`` messages: another thread delivers."""
        wait_until(lambda: len(self._received()) >= count, f"Katalys receiving {count} messages", 10)
        return self._received()

    def _received(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = Browser().get(f"{self.katalys}received.json").json()
        return rows


Start = Callable[[Path], Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an example as its docstring says, and stops it with Ctrl-C, after which it must have left nothing."""
    started: list[subprocess.Popen[str]] = []

    def run(example: Path) -> Running:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "KATALYS_"))}
        environ.update(PORT=str(free_port()), PYTHONUNBUFFERED="1", TMPDIR=str(tmp_path))
        with (tmp_path / "stderr").open("w") as errors:
            process = subprocess.Popen(
                command_of(example), cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=errors
            )
        started.append(process)
        return Running(printed(process, r"received: +(http://\S+)"), printed(process, r"link: +(http://\S+)"))

    yield run
    for process in started:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=10)
        finally:
            process.kill()
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["stderr"]


def command_of(example: Path) -> list[str]:
    """The one command of the docstring; ``python`` is this Python."""
    (command,) = re.findall(r"^    (python examples/.+)$", example.read_text(), re.MULTILINE)
    program, *arguments = command.split()
    assert (program, arguments) == ("python", [f"examples/{example.name}"])
    return [sys.executable, *arguments]


def printed(process: subprocess.Popen[str], pattern: str) -> str:
    """What the example prints: the first match of ``pattern``."""
    assert process.stdout is not None
    found = next((match for line in process.stdout if (match := re.search(pattern, line))), None)
    assert found, f"{process.args!r} ended with {process.wait()} and did not print {pattern}"
    return found[1]


# --- the shops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", SHOPS, ids=lambda path: path.stem)
def test_shop(start: Start, example: Path) -> None:
    """Katalys has the order of the shopper who came through the link, to the cent, and not the other one's."""
    running = start(example)
    alone, sent = Browser(), Browser()
    alone.get(running.shop)
    alone.post(f"{running.shop}/checkout", {"email": "bob@example.com", "pieces": "1", "coupon": ""})
    product = sent.get(running.link)
    thanks = sent.post(f"{running.shop}/checkout", {"email": "ann@example.com", "pieces": "2", "coupon": "spring "})
    again = sent.post(f"{running.shop}/checkout", {"email": "ann@example.com", "pieces": "1", "coupon": "OTHER"})
    first, second = sorted(running.received(2), key=lambda message: message["fields"]["sale_amount"])
    fields = first["fields"]

    assert not alone.cookies
    assert list(sent.cookies.keys()) == ["katalys_click"]
    assert 'action="/checkout"' in product.text
    assert fields["order_id"] in thanks.text
    assert ("we charged $104.90" in thanks.text) == (example.stem == "flask_sqlalchemy_shop")  # read from its database
    assert thanks.url == f"{running.shop}/thanks/{fields['order_id']}"
    assert first["verdict"] == second["verdict"] == "attributable"
    assert list(fields)[:12] == list(TWELVE_KEYS)
    assert list(fields.values())[3:12] == [
        "ann@example.com", "104.90", "95.00", "127.0.0.1", BUYER_AGENT, "SPRING", "1234abcd", "1234", "5678",
    ]  # fmt: skip
    assert {key: value for key, value in fields.items() if key.startswith("line_item")} == {
        "line_item_1_sku": "POT-1",
        "line_item_1_price": "50.00",
        "line_item_1_qty": "2",
        "line_item_1_title": "Teapot",
    }
    assert second["fields"]["order_id"] in again.text
    assert (second["fields"]["sale_amount"], second["fields"]["discount_1_code"]) == ("59.90", "")


# --- the gateway ---------------------------------------------------------------------------------------------


def test_payment_webhook(start: Start) -> None:
    """Webhook and return both record the sale of the shopper who placed the order; Katalys receives it once."""
    running = start(ROOT / "examples" / "payment_webhook.py")
    shopper = Browser()
    shopper.get(running.link)
    payment_pages = [
        shopper.post(f"{running.shop}/checkout", {"email": address}).url for address in ("ann@x.test", "bob@x.test")
    ]
    forged = [
        Browser().post(f"{running.shop}/{path}", {"order": order, "signature": "0" * 64}).status_code
        for order in (payment_pages[0].rpartition("/")[2], "unknown")
        for path in ("webhook", "return")
    ]
    back = Browser("The gateway").post(payment_pages[0])  # calls the webhook
    message = dict(re.findall(r'name="(\w+)" value="(\w+)"', back.text))
    thanks = Browser("The shopper's, without its Lax cookie").post(f"{running.shop}/return", message)
    Browser("The gateway").post(payment_pages[1])
    messages = sorted(running.received(2), key=lambda message: message["fields"]["email_address"])
    fields = messages[0]["fields"]

    assert payment_pages[0].startswith(running.shop.replace("127.0.0.1", "localhost"))
    assert forged == [403] * 4
    assert f"Your order {fields['order_id']} is paid" in thanks.text
    assert [message["fields"]["email_address"] for message in messages] == ["ann@x.test", "bob@x.test"]
    assert (fields["order_id"], fields["order_status"]) == (message["order"], "paid")
    assert {message["fields"]["user_agent"] for message in messages} == {BUYER_AGENT}
    assert {message["verdict"] for message in messages} == {"attributable"}


# --- all of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_can_be_copied_without_its_helper(example: Path) -> None:
    """All but the call at its end: here the folder is not on the path, so the helper cannot be imported."""
    names = runpy.run_path(str(example))

    assert HELPERS.isdisjoint(names)
    assert names.keys() & {"create_app", "make_shop", "app"}


def test_every_example_has_a_test() -> None:
    """A new example needs a test here, or in test_celery.py."""
    assert {path.stem for path in EXAMPLES} == {path.stem for path in SHOPS} | {"payment_webhook", "celery_worker"}
