"""``katalys-wsgi demo``: the whole way on one machine, and an honest exit code."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from webtest import TestApp

from katalys_wsgi import ClickMiddleware, Tracker
from katalys_wsgi.sandbox import Misbehaviour, Sandbox, demo

from .support import TWELVE_KEYS, wait_until

#: An interpreter that buffers what it prints into a pipe, as every shop's does.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An empty working directory, and an empty one for temporary files."""
    return tmp_path_factory.mktemp("cwd"), tmp_path_factory.mktemp("tmp")


@pytest.fixture(scope="module")
def ended(folders: tuple[Path, Path]) -> subprocess.CompletedProcess[str]:
    """The command of the README, in a shop's own surroundings."""
    cwd, tmp = folders
    surroundings = {"TMPDIR": str(tmp), "KATALYS_SITE_ID": "nonsense", "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "katalys_wsgi", "demo", "--once"],
        cwd=cwd,
        env=BUFFERED | surroundings,
        capture_output=True,
        text=True,
        timeout=50,
    )


class TestOnce:
    def test_it_ends_with_0_and_writes_nothing_to_stderr(self, ended: subprocess.CompletedProcess[str]) -> None:
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "Arrived intact." in ended.stdout

    def test_it_shows_the_twelve_keys_in_their_order(self, ended: subprocess.CompletedProcess[str]) -> None:
        received = ended.stdout.partition("received by POST application/json, and answered 204:")[2]
        shown = [line.split()[0] for line in received.splitlines() if line.startswith("  ")]

        assert tuple(shown[:12]) == TWELVE_KEYS
        assert shown[12:] == ["order_time", "line_item_1_sku", "line_item_1_price", "line_item_1_qty"]

    def test_it_prints_each_step(self, ended: subprocess.CompletedProcess[str]) -> None:
        assert "utm_source=Katalys&transaction_id=1234abcd&offer_id=1234&publisher_id=5678" in ended.stdout
        assert "Set-Cookie: katalys_click=" in ended.stdout
        assert "Further pages set no cookie." in ended.stdout
        assert "POST /checkout" in ended.stdout
        assert "Verdict: attributable." in ended.stdout

    def test_it_leaves_no_file_behind(
        self, ended: subprocess.CompletedProcess[str], folders: tuple[Path, Path]
    ) -> None:
        assert [list(folder.iterdir()) for folder in folders] == [[], []]

    def test_several_may_run_at_once(self) -> None:
        """Every port is a free one."""
        codes: list[int] = []
        threads = [
            threading.Thread(target=lambda: codes.append(demo.run(once=True, out=lambda _: None))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert codes == [0, 0, 0]


class TestNotIntact:
    def test_what_arrived_differs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo, "EXPECTED", {**demo.EXPECTED, "sale_amount": "59.9"})
        lines: list[str] = []

        assert demo.run(once=True, out=lines.append) == 1
        text = "\n".join(lines)
        assert "Expected" in text
        assert "Arrived intact" not in text

    def test_the_order_of_the_keys_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo, "EXPECTED", dict(reversed(demo.EXPECTED.items())))

        assert demo.run(once=True, out=lambda _: None) == 1

    @pytest.mark.parametrize("status", [400, 404, 503])
    def test_nothing_arrived(self, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
        def broken() -> Sandbox:
            sandbox = Sandbox()
            sandbox.collector.misbehave(Misbehaviour.status(status))
            return sandbox

        monkeypatch.setattr(demo, "Sandbox", broken)
        lines: list[str] = []

        assert demo.run(once=True, out=lines.append) == 1
        assert "received nothing" in "\n".join(lines)


class Demo:
    """The demo that stays, as an operator starts it from a shell."""

    def __init__(self, folder: Path) -> None:
        # A background job of a script is started with SIGINT ignored, and so would be its children.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "katalys_wsgi", "demo"],
                cwd=folder,
                env=BUFFERED | {"TMPDIR": str(folder)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)
        self.lines: list[str] = []
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)
        self._queue.put("")

    def read_until(self, words: str) -> str:
        """What it printed up to the line with ``words``."""
        while not self.lines or words not in self.lines[-1]:
            line = self._queue.get(timeout=30)
            assert line, f"it ended without printing {words!r}: {''.join(self.lines)}"
            self.lines.append(line)
        return "".join(self.lines)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._thread.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    demo.close()


def address_after(text: str, words: str) -> str:
    line = next(line for line in text.splitlines() if words in line)
    return line.partition(words)[2].strip()


class TestStaying:
    def test_it_serves_both_until_ctrl_c(self, running: Demo, tmp_path: Path) -> None:
        """Both addresses are served as soon as they are printed, also through a pipe."""
        text = running.read_until("Ctrl-C ends both")
        link = address_after(text, "The shop:")
        listing = address_after(text, "What Katalys received:")
        assert urlsplit(link).hostname == urlsplit(listing).hostname == "127.0.0.1"

        with requests.Session() as browser:
            assert "Buy it" in browser.get(link, timeout=5).text
            thanks = browser.post(f"http://{urlsplit(link).netloc}/checkout", timeout=5).text
            wait_until(lambda: "order_id: 1002" in browser.get(listing, timeout=5).text, "the delivery")
            page = browser.get(listing, timeout=5).text

        assert "Order 1002. For Katalys: recorded" in thanks
        assert "order_id: 1001" in page

        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(20) == 0
        assert running.process.stderr is not None
        assert running.process.stderr.read() == ""
        assert list(tmp_path.iterdir()) == []


def test_a_shopper_without_a_click_is_not_reported(tracker: Tracker, sandbox: Sandbox) -> None:
    """A visitor of the demo may well try that first."""
    shop = TestApp(ClickMiddleware(demo.Shop(tracker), tracker))

    without = shop.post("/checkout").follow()
    shop.get(demo.LINK)
    after = shop.post("/checkout").follow()
    tracker.drain()

    assert "Order 1001. For Katalys: no click" in without
    assert "Order 1002. For Katalys: recorded" in after
    assert [received.fields["order_id"] for received in sandbox.collector.accepted] == ["1002"]


@pytest.fixture
def shop(tracker: Tracker) -> TestApp:
    """The demo's shop in a browser."""
    return TestApp(ClickMiddleware(demo.Shop(tracker, listing="http://127.0.0.1:1/"), tracker))


def test_a_page_that_is_reloaded_after_the_checkout_buys_nothing_again(shop: TestApp, tracker: Tracker) -> None:
    shop.get(demo.LINK)
    answer = shop.post("/checkout", status=303)
    thanks = answer.follow()
    again = shop.get(thanks.request.url)

    assert "Order 1001. For Katalys: recorded" in thanks
    assert again.text == thanks.text
    assert tracker.outbox.history("1002") == []


def test_each_page_says_whether_this_browser_carries_a_click(shop: TestApp) -> None:
    assert "This browser carries no click: a sale now would not be reported." in shop.get("/")
    landing = shop.get(demo.LINK)
    assert "This browser carries a click: transaction_id 1234abcd, offer_id 1234, aff_id 5678, 0:00:0" in landing
    assert "This browser carries a click: " in shop.post("/checkout").follow()


def test_each_page_links_to_what_katalys_received(shop: TestApp) -> None:
    for page in (shop.get("/"), shop.post("/checkout").follow()):
        assert '<a href="http://127.0.0.1:1/">What Katalys (the sandbox) received</a>' in page


@pytest.mark.parametrize("path", ["/thanks/", "/thanks/9999", "/thanks/<script>", "/favicon.ico"])
def test_every_other_address_is_the_product_page(shop: TestApp, path: str) -> None:
    assert "The kettle shop" in shop.get(path)
