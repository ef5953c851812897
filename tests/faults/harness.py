"""What the fault tests are made with: programs that are started and killed, buyers, and files that are damaged."""

from __future__ import annotations

import http.client
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from katalys_wsgi.outbox.connection import Connection
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Sandbox
from tests.support import BUYER_AGENT, LINK

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

#: Seconds that something on a busy machine may take before a test gives up on it.
PATIENCE = 30.0

#: The outcomes after which the outbox holds the order.
ACKNOWLEDGED = ("RECORDED", "DUPLICATE")


def environment(options: dict[str, Any], **more: str) -> dict[str, str]:
    """The environment of a program with these settings: every KATALYS_ name in it is a setting."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KATALYS_", "COV", "PYTEST_"))}
    settings = {f"KATALYS_{name.upper()}": str(value) for name, value in options.items()}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **settings, **more}


@dataclass
class Program:
    """A running program and what it wrote."""

    popen: subprocess.Popen[Any]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def children(self) -> list[int]:
        """The processes it has forked: a server's workers."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
                if int(parent) == self.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def leave(self, number: int = signal.SIGTERM, patience: float = PATIENCE) -> int:
        """Ask it to end, wait, and return its exit code."""
        self.send(number)
        return self.popen.wait(patience)


@contextmanager
def running(command: Iterable[object], env: dict[str, str], log: Path, **options: Any) -> Iterator[Program]:
    """A program in a process group of its own; the whole group is killed at the end, whatever happens."""
    with log.open("ab") as out:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
        popen = subprocess.Popen(
            [str(part) for part in command],
            env={**env, "HOME": str(log.parent)},  # where gunicorn puts a socket
            cwd=log.parent,
            start_new_session=True,
            **{**streams, **options},
        )
    try:
        yield Program(popen, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        for pipe in filter(None, (popen.stdin, popen.stdout, popen.stderr)):
            with suppress(OSError):
                pipe.close()


def race(children: Iterable[subprocess.Popen[str]]) -> list[str]:
    """What each of the children printed; they have printed ``ready``, wait for a line, and are let go together.

    What is written to a stderr that is a pipe fails the test.
    """
    racers = [(child, child.stdin, child.stdout) for child in children]
    for _, _, stdout in racers:
        assert stdout is not None
        assert stdout.readline() == "ready\n"
    for _, stdin, _ in racers:
        assert stdin is not None
        stdin.write("go\n")
        stdin.flush()
    written = [child.communicate(timeout=4 * PATIENCE) for child, _, _ in racers]
    assert not any(errors for _, errors in written), written
    return [output for output, _ in written]


def kill(pid: int) -> None:
    """``kill -9``; it may have ended already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def happens(condition: Callable[[], bool], patience: float = PATIENCE, every: float = 0.05) -> bool:
    """Whether ``condition`` comes true within ``patience`` seconds; asked again after ``every`` seconds."""
    give_up_at = time.monotonic() + patience
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(every)
    return True


# --- buyers ---


@dataclass
class Buyers:
    """Shoppers of an affiliate; ``answers`` keeps what the shop said of each order, if it said anything."""

    port: int
    at_a_time: int = 6
    answers: dict[str, str] = field(default_factory=dict)
    cookie: str = ""

    def arrive(self) -> None:
        """Follow the link, as soon as the shop is up.

        :raises TimeoutError: it does not come up.
        """
        give_up_at = time.monotonic() + PATIENCE
        while not self.cookie:
            try:
                self.cookie = self._ask("GET", f"/?{LINK}")[1].partition(";")[0]
            except OSError:
                if time.monotonic() > give_up_at:
                    raise TimeoutError("the shop does not come up") from None
                time.sleep(0.05)

    def buy(self, order_id: str) -> None:
        """One checkout; a shop that dies before it answers has promised nothing."""
        with suppress(OSError, http.client.HTTPException):
            self.answers[order_id] = self._ask("POST", f"/checkout?order={order_id}")[0]

    def buy_all(self, order_ids: Iterable[str]) -> None:
        """Many checkouts, several at a time."""
        with ThreadPoolExecutor(self.at_a_time) as crowd:
            list(crowd.map(self.buy, order_ids))

    @property
    def acknowledged(self) -> set[str]:
        return {order_id for order_id, answer in self.answers.items() if answer in ACKNOWLEDGED}

    def _ask(self, method: str, path: str) -> tuple[str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            headers = {"User-Agent": BUYER_AGENT, "Connection": "close", "Cookie": self.cookie}
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.read().decode(), answer.getheader("Set-Cookie") or ""
        finally:
            connection.close()


# --- what came of it ---


def accepted_orders(sandbox: Sandbox) -> list[str]:
    """The order ids of the conversions that Katalys has taken, one for each time it did."""
    return [received.fields["order_id"] for received in sandbox.collector.accepted]


def deliver_the_rest(env: dict[str, str], log: Path, is_done: Callable[[], bool]) -> bool:
    """Run ``katalys-wsgi deliver --once``, as cron would, until ``is_done``; returns whether it came to that.

    What dead processes had claimed is due again when their leases end.
    """
    give_up_at = time.monotonic() + PATIENCE
    while not is_done() and time.monotonic() < give_up_at:
        with running([sys.executable, "-m", "katalys_wsgi", "deliver", "--once"], env, log) as relay:
            relay.popen.wait(PATIENCE)
        time.sleep(0.2)
    return is_done()


# --- the outbox's file ---


def database(options: dict[str, Any]) -> Path:
    """The outbox's file of a tracker with these settings."""
    return Path(options["outbox"])


def query(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """Ask the outbox's file over a connection of our own."""
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as db:
        return db.execute(statement).fetchall()


def states(path: Path) -> dict[str, int]:
    """How many rows are in each state."""
    return dict(query(path, "SELECT state, count(*) FROM katalys_outbox GROUP BY state"))


def integrity(path: Path) -> str:
    """``ok``, or what SQLite finds wrong with the file."""
    return str(query(path, "PRAGMA integrity_check")[0][0])


@contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of our own in autocommit mode, to change the file behind the outbox's back."""
    with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as db:
        yield db


class HoldableOutbox(SQLiteOutbox):
    """The outbox in a file, for tests that hold its connection, as a slow thread of the shop would."""

    def connection(self) -> Connection:
        """This process's connection, which the outbox uses too."""
        return self._store.get()


def quarantined(path: Path) -> list[Path]:
    """The damaged files beside the outbox."""
    return sorted(found for found in path.parent.glob(f"{path.name}.corrupt-*") if not found.name.endswith("-journal"))


def page_size(content: bytes) -> int:
    """The size of a page of a SQLite file with this content (https://sqlite.org/fileformat.html)."""
    return int.from_bytes(content[16:18], "big")


def damaged(content: bytes, page: int, length: int | None = None) -> bytes:
    """``content`` with garbage in a page, counted from 1, as a bad block leaves it.

    :param length: how many bytes at the page's start, all of it unless given.
    """
    size = page_size(content)
    start = (page - 1) * size
    length = size if length is None else length
    garbage = bytes(range(255, 0, -5)) * (length // 51 + 1)
    return content[:start] + garbage[:length] + content[start + length :]


def root_page(content: bytes) -> int:
    """The page at the root of the table of an outbox's file with this content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "copy.db"
        path.write_bytes(content)
        return int(query(path, "SELECT rootpage FROM sqlite_master WHERE name = 'katalys_outbox'")[0][0])


def leaf_pages(content: bytes) -> list[int]:
    """The pages that hold the table's rows, in order: what its root page points to."""
    size, root = page_size(content), root_page(content)
    page = content[(root - 1) * size : root * size]
    assert page[0] == 5, "the table has one level of interior pages"
    cells = int.from_bytes(page[3:5], "big")
    starts = [int.from_bytes(page[12 + 2 * cell : 14 + 2 * cell], "big") for cell in range(cells)]
    return [int.from_bytes(page[start : start + 4], "big") for start in [*starts, 8]]
