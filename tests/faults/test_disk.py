"""The disk, full and synced: pages are served, nothing is sent that cannot be marked, nothing said that is not so."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from webtest import TestApp

from katalys_wsgi import ClickMiddleware, OutboxUnavailable, Tracker
from katalys_wsgi.sandbox import Misbehaviour, Sandbox
from tests.support import LINK, make_conversion

from .harness import accepted_orders, environment, query


class SmallDisk:
    """A file system of its own with room for little."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no room, not even for a journal."""
        for size in (4096, 1):
            with self._ballast.open("ab", buffering=0) as ballast, suppress(OSError):
                while True:
                    ballast.write(bytes(size))

    def empty(self) -> None:
        """Make room again."""
        self._ballast.unlink(missing_ok=True)


class Quota:
    """Where no file system may be mounted: no file of this process may grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        """Let no write succeed."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._usual[1]))

    def empty(self) -> None:
        """Let them succeed again."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._usual)


@pytest.fixture(params=["tmpfs", "quota"])
def disk(request: Any, tmp_path: Path) -> Iterator[SmallDisk | Quota]:
    if request.param == "quota":
        quota = Quota(tmp_path)
        yield quota
        quota.empty()
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here; the quota stands in for it")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


class Shop:
    """A shop whose outbox lies on the disk."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._app = TestApp(ClickMiddleware(self._checkout, tracker))

    def buy(self, order_id: str) -> str:
        """The body of a page that answered 200: the outcome's name."""
        body: str = self._app.get(f"/{order_id}?{LINK}", status=200).text
        return body

    def _checkout(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        outcome = self.tracker.visit(environ).record(make_conversion(environ["PATH_INFO"][1:])).outcome.name
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [outcome.encode()]


@pytest.fixture
def shop(disk: SmallDisk | Quota, make_tracker: Callable[..., Tracker]) -> Shop:
    return Shop(make_tracker(outbox=f"{disk.folder}/outbox.db"))


def drain(tracker: Tracker) -> int:
    """How many rows were settled; 0 when the outbox cannot be written."""
    try:
        return tracker.drain().settled
    except OutboxUnavailable:
        return 0


def test_pages_answer_and_the_relay_sends_nothing_while_the_disk_is_full(
    disk: SmallDisk | Quota, shop: Shop, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = [f"D{number}" for number in range(20)]
    assert {shop.buy(order_id) for order_id in recorded} == {"RECORDED"}
    disk.fill()
    answers = {order_id: shop.buy(order_id) for order_id in ("F1", "F2")}
    sent_by_pages = len(sandbox.collector.received)
    sandbox.stop()
    answers["F3"] = shop.buy("F3")
    sandbox.start()
    settled = [drain(shop.tracker) for _ in range(3)]
    sent_by_the_relay = len(sandbox.collector.received) - sent_by_pages
    disk.empty()

    assert answers == {"F1": "SENT_DIRECTLY", "F2": "SENT_DIRECTLY", "F3": "LOST"}
    assert (settled, sent_by_the_relay) == ([0, 0, 0], 0)
    assert "ann@example.com" not in caplog.text
    assert shop.buy("D20") == "RECORDED"
    assert shop.tracker.drain().settled == 21
    assert Counter(accepted_orders(sandbox)) == Counter([*recorded, "D20", "F1", "F2"])
    assert query(disk.folder / "outbox.db", "PRAGMA integrity_check") == [("ok",)]


def test_a_disk_that_fills_up_between_sending_and_marking_costs_no_second_send(
    disk: SmallDisk | Quota, shop: Shop, sandbox: Sandbox
) -> None:
    """What was sent is remembered, nothing else is sent until it is written down, and then everything arrives once."""
    recorded = [f"D{number}" for number in range(40)]
    assert {shop.buy(order_id) for order_id in recorded} == {"RECORDED"}
    under_way, full = threading.Event(), threading.Event()

    def answer_when_full(*_: object) -> None:
        under_way.set()
        full.wait(20)
        time.sleep(0.02)

    sandbox.collector.misbehave(Misbehaviour("wait until the disk is full", answer_when_full))
    settled: list[int] = []
    relay = threading.Thread(target=lambda: settled.append(drain(shop.tracker)))
    relay.start()
    under_way.wait(20)
    disk.fill()
    full.set()
    relay.join(30)
    sandbox.collector.behave()
    sent_at_first = len(sandbox.collector.received)
    settled += [drain(shop.tracker) for _ in range(3)]
    sent_while_full = len(sandbox.collector.received)
    disk.empty()
    shop.tracker.drain()

    assert settled == [0, 0, 0, 0]
    assert 1 <= sent_at_first == sent_while_full <= 20
    assert Counter(accepted_orders(sandbox)) == Counter(recorded)


# --- synced ---


def traced(command: list[object], env: dict[str, str], folder: Path) -> list[tuple[str, str, str]]:
    """What a program wrote and synced: of each system call the name, the file's name and the rest of the line."""
    trace = folder / "trace"
    calls = "trace=fsync,fdatasync,write,pwrite64,ftruncate"
    subprocess.run(
        ["strace", "-f", "-y", "-s", "64", "-e", calls, "-o", trace, *map(str, command)],
        env=env, cwd=folder, check=True, capture_output=True, timeout=90,
    )  # fmt: skip
    lines = re.findall(r"^\d+ +(\w+)\(\d+<([^>]*)>(.*)$", trace.read_text(errors="replace"), re.MULTILINE)
    return [(call, file.rpartition("/")[2], rest) for call, file, rest in lines]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["TRUNCATE", "WAL"])
def test_every_record_is_synced_to_disk_before_it_is_acknowledged(
    mode: str, missing: Callable[[str], Any], options: dict[str, Any], tmp_path: Path
) -> None:
    """A power cut takes nothing back: at each acknowledgement nothing that was written waits to be synced.

    That includes the journal's end: a journal that comes back would undo the transaction.
    """
    if shutil.which("strace") is None:
        missing("strace is not installed; apt install strace")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode:
        missing("strace may not trace here; allow ptrace")
    program = (
        "import os; from katalys_wsgi.outbox import schema; from tests.support import *\n"
        f"schema.journal_mode = lambda: {mode!r}\n"
        "from tests.faults.shop import tracker\n"
        "for number in range(25):\n"
        "    outcome = tracker.visit(make_environ(LINK)).record(make_conversion(str(number))).outcome.name\n"
        "    os.write(1, f'acknowledged {outcome}'.encode())"
    )
    syncs = 0
    unsynced: set[str] = set()
    at_acknowledgement: list[tuple[int, set[str]]] = []
    for call, file, rest in traced([sys.executable, "-c", program], environment(options), tmp_path):
        if "acknowledged RECORDED" in rest:
            at_acknowledgement.append((syncs, set(unsynced)))
            syncs = 0
        elif call in ("fsync", "fdatasync"):
            syncs += file.startswith("outbox.db")
            unsynced.discard(file)
        elif file in ("outbox.db", "outbox.db-journal", "outbox.db-wal"):  # -shm is built anew from the -wal
            unsynced.add(file)

    print(f"\n{mode}: syncs for each acknowledged record: {[count for count, _ in at_acknowledgement]}")
    assert len(at_acknowledgement) == 25
    assert min(count for count, _ in at_acknowledgement) >= 1
    assert [files for _, files in at_acknowledgement] == [set()] * 25
