"""The outbox's file: damaged, moved, of another version, in the wrong place; pages are served and rows survive."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import Event, OutboxUnavailable, Outcome, Tracker
from katalys_wsgi.operations import archive
from katalys_wsgi.outbox import Archive, Change, Receipt, Verdict, recovery, schema
from katalys_wsgi.outbox import sqlite as outbox_sqlite
from katalys_wsgi.outbox.schema import MAJOR
from katalys_wsgi.sandbox import Sandbox
from tests.support import LINK, SECRET, SITE_ID, Stopwatch, make_conversion, make_environ

from .harness import (
    accepted_orders,
    damaged,
    environment,
    happens,
    integrity,
    leaf_pages,
    page_size,
    quarantined,
    query,
    race,
    root_page,
    running,
)

#: About ten rows fill a page of SQLite's.
ORDERS = [str(number) for number in range(1001, 1101)]
MOST_ROWS_IN_A_PAGE = 15


def record(tracker: Tracker, order_id: str) -> Outcome:
    return tracker.visit(make_environ(LINK)).record(make_conversion(order_id)).outcome


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture(scope="module")
def full_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of an outbox with a hundred orders."""
    path = tmp_path_factory.mktemp("full") / "outbox.db"
    tracker = Tracker(site_id=SITE_ID, secret_key=SECRET, outbox=f"{path}", delivery="external")
    assert {record(tracker, order_id) for order_id in ORDERS} == {Outcome.RECORDED}
    tracker.close()
    return path.read_bytes()


def claim_everything(outbox: Archive) -> dict[str, int]:
    """How often each order is claimed, past one discovery of damage."""
    claimed: dict[str, int] = {}
    try:
        entries = outbox.claim(1000, 60)
    except OutboxUnavailable:
        entries = outbox.claim(1000, 60)
    for entry in entries:
        assert entry.payload is not None
        assert f'"order_id":"{entry.order_id}"' in entry.payload
        claimed[entry.order_id] = claimed.get(entry.order_id, 0) + 1
    return claimed


def settle_everything(outbox: Archive) -> None:
    """As if all had been delivered, past one discovery of damage."""
    changes = [Change.settle(entry, Receipt(Verdict.DELIVERED, 204)) for entry in outbox.entries(limit=1000)]
    try:
        outbox.apply(changes)
    except OutboxUnavailable:
        assert outbox.apply(changes) == len(changes)


def orders_in(path: Path) -> set[str]:
    return {order_id for (order_id,) in query(path, "SELECT order_id FROM katalys_outbox")}


# --- damage ---


class TestDamage:
    def test_a_garbled_header_starts_a_new_file_loudly(
        self, path: Path, full_file: bytes, make_tracker: Callable[..., Tracker], caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[Event] = []
        path.write_bytes(full_file)
        tracker = make_tracker(hooks=[seen.append])
        assert record(tracker, "opens the file") is Outcome.RECORDED
        content = damaged(path.read_bytes(), 1, 100)
        path.write_bytes(content)

        assert record(tracker, "new") is Outcome.RECORDED

        assert [event.fields["rows_saved"] for event in seen if event.name == "outbox_damaged"] == [0]
        assert [found.read_bytes() for found in quarantined(path)] == [content]
        assert [entry.name for entry in caplog.records if entry.levelno == logging.CRITICAL] == ["katalys_wsgi"]
        assert "outbox_damaged" in caplog.text
        assert tracker.outbox.history("new")

    def test_the_rows_of_every_other_page_are_saved(
        self, path: Path, full_file: bytes, make_tracker: Callable[..., Tracker], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each page in turn is lost to garbage: record() never raises, and what can be read is delivered as it was."""
        root = root_page(full_file)
        lost = {}
        for page in range(2, len(full_file) // page_size(full_file) + 1):
            for found in (path, *quarantined(path)):
                found.unlink(missing_ok=True)
            path.write_bytes(damaged(full_file, page))
            tracker = make_tracker()
            outcomes = [record(tracker, f"new-{number}") for number in range(3)]
            claimed = claim_everything(archive(tracker.outbox))
            settle_everything(archive(tracker.outbox))
            tracker.close()
            assert set(outcomes) == {Outcome.RECORDED}, page
            assert claimed["new-2"] == 1, page
            assert integrity(path) == "ok", page
            lost[page] = len(set(ORDERS) - set(claimed))

        assert all(count <= MOST_ROWS_IN_A_PAGE for page, count in lost.items() if page != root), lost
        assert "outbox_damaged" in caplog.text

    def test_two_bad_pages_do_not_cost_the_rows_between_them(
        self, path: Path, full_file: bytes, tracker: Tracker
    ) -> None:
        first, *_, last = leaf_pages(full_file)[1:-1]
        path.write_bytes(damaged(damaged(full_file, first), last))

        record(tracker, "finds it")
        record(tracker, "new")

        assert len(claim_everything(archive(tracker.outbox))) > len(ORDERS) - 2 * MOST_ROWS_IN_A_PAGE

    def test_a_row_of_garbled_text_holds_up_nobody(
        self, path: Path, tracker: Tracker, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A flipped bit in a string is no damage to SQLite; the others are delivered, and no log holds any of it."""
        for order_id in ORDERS[:3]:
            record(tracker, order_id)
        with closing(sqlite3.connect(path)) as db, db:
            garbled = "CAST(replace(payload, 'ann@', x'FF41') AS TEXT)"
            db.execute(f"UPDATE katalys_outbox SET payload = {garbled} WHERE id = 1")  # noqa: S608
        drain = threading.Thread(target=tracker.drain, daemon=True)
        drain.start()
        drain.join(20)

        assert not drain.is_alive()
        assert sorted(accepted_orders(sandbox)) == ORDERS[1:3]
        assert "example.com" not in caplog.text

    def test_a_row_of_no_json_holds_up_nobody(self, path: Path, tracker: Tracker, sandbox: Sandbox) -> None:
        for order_id in ORDERS[:3]:
            record(tracker, order_id)
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE katalys_outbox SET payload = 'garbage' WHERE id = 1")
        drain = threading.Thread(target=tracker.drain, daemon=True)
        drain.start()
        drain.join(20)

        assert not drain.is_alive()
        assert sorted(accepted_orders(sandbox)) == ORDERS[1:3]

    def test_the_order_that_meets_the_damage_is_kept_even_if_katalys_is_down(
        self, path: Path, full_file: bytes, tracker: Tracker, sandbox: Sandbox
    ) -> None:
        """The new file is there in no time, so nothing has to be sent from a page, or lost."""
        record(tracker, "opens the file")
        sandbox.stop()
        path.write_bytes(damaged(full_file, leaf_pages(full_file)[-1]))

        outcomes = [record(tracker, f"new-{number}") for number in range(3)]

        assert set(outcomes) == {Outcome.RECORDED}
        assert quarantined(path)

    def test_several_processes_recover_it_once(
        self, path: Path, full_file: bytes, options: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Every process meets the damage at the same moment; one recovers the file, all record into the new one."""
        path.write_bytes(damaged(full_file, leaf_pages(full_file)[-1]))
        program = (
            "import sys; from tests.faults.shop import tracker; from tests.support import *\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            "for number in range(20):\n"
            "    order = f'{sys.argv[1]}-{number}'\n"
            "    print(order, tracker.visit(make_environ(LINK)).record(make_conversion(order)).outcome.name)"
        )
        log = path.with_name("log")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with ExitStack() as stack:
            printed = race([
                stack.enter_context(
                    running([sys.executable, "-c", program, name], environment(options), log, **pipes)
                ).popen
                for name in "abcd"
            ])  # fmt: skip

        answers = dict(line.split() for out in printed for line in out.splitlines())
        recorded = {order for order, outcome in answers.items() if outcome == "RECORDED"}
        kept = orders_in(path)
        assert len(answers) == 80
        assert set(answers.values()) == {"RECORDED"}
        assert len(quarantined(path)) == 1
        assert log.read_text().count("outbox_damaged") == 1
        assert recorded <= kept
        assert len(kept & set(ORDERS)) > len(ORDERS) - MOST_ROWS_IN_A_PAGE

    def test_a_process_killed_while_it_recovers_the_file_costs_no_row(
        self, path: Path, full_file: bytes, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever moment it dies at, the next one finds the damaged file or the new one."""
        path.write_bytes(damaged(full_file, leaf_pages(full_file)[3]))

        def dies(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(recovery, "salvage", dies)
            with pytest.raises(KeyboardInterrupt):
                claim_everything(archive(tracker.outbox))
        record(tracker, "finds it")

        kept = orders_in(path)
        assert len(kept & set(ORDERS)) > len(ORDERS) - MOST_ROWS_IN_A_PAGE

    def test_a_disk_too_full_for_a_new_file_leaves_it_for_later(
        self, path: Path, full_file: bytes, tracker: Tracker, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path.write_bytes(damaged(full_file, leaf_pages(full_file)[3]))

        def is_full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(recovery, "salvage", is_full)
            with pytest.raises(OutboxUnavailable):
                claim_everything(archive(tracker.outbox))
            assert record(tracker, "meanwhile") is Outcome.RECORDED

        assert len(claim_everything(archive(tracker.outbox))) > len(ORDERS) - MOST_ROWS_IN_A_PAGE


# --- a file that is no longer there ---


class TestMoved:
    def test_a_file_that_another_process_quarantined_is_left_at_once(
        self, path: Path, tracker: Tracker, sandbox: Sandbox
    ) -> None:
        record(tracker, "before")
        os.rename(path, f"{path}.corrupt-by-another")

        assert [record(tracker, f"after-{number}") for number in range(2)] == [Outcome.RECORDED] * 2

        tracker.drain()
        assert sorted(accepted_orders(sandbox)) == ["after-0", "after-1"]

    def test_a_deleted_file_is_started_anew(self, path: Path, tracker: Tracker, sandbox: Sandbox) -> None:
        record(tracker, "before")
        path.unlink()

        assert record(tracker, "after") is Outcome.RECORDED
        assert tracker.drain().settled == 1


# --- locks ---


class TestLocks:
    def test_a_page_waits_for_another_process_as_long_as_it_may_and_no_longer(
        self, path: Path, tracker: Tracker, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record(tracker, "before")
        monkeypatch.setattr(outbox_sqlite, "PATIENCE_IN_REQUEST", 0.3)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with Stopwatch() as watch:
                outcome = record(tracker, "meanwhile")
            other.execute("COMMIT")

        assert outcome is Outcome.SENT_DIRECTLY
        assert 0.25 < watch.seconds < 1.5
        assert record(tracker, "after") is Outcome.RECORDED


# --- schema ---


class TestSchema:
    @pytest.mark.parametrize("version", [1, 999, (MAJOR + 1) * 1000 + 1])
    def test_another_major_version_is_refused_clearly_and_pages_go_on(
        self, version: int, path: Path, tracker: Tracker, sandbox: Sandbox
    ) -> None:
        record(tracker, "before")
        tracker.close()
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version = {version}")

        with pytest.raises(OutboxUnavailable, match=f"its schema is {version}, of another katalys_wsgi"):
            tracker.drain()
        assert record(tracker, "after") is Outcome.SENT_DIRECTLY
        assert not quarantined(path)

    def test_two_processes_that_start_at_once_make_one_schema(self, path: Path, options: dict[str, Any]) -> None:
        program = (
            "import sys; from tests.faults.shop import tracker; print('ready', flush=True); sys.stdin.readline()\n"
            "print(len(tracker.outbox.claim(1, 60)))"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        log = path.with_name("log")
        with ExitStack() as stack:
            printed = race(
                stack.enter_context(running([sys.executable, "-c", program], environment(options), log, **pipes)).popen
                for _ in range(4)
            )

        assert [out.strip() for out in printed] == ["0"] * 4, log.read_text()


# --- journal modes ---


class TestJournalModes:
    @pytest.mark.parametrize("mode", ["WAL", "TRUNCATE"])
    def test_the_outbox_works_in_both_journal_modes(
        self,
        mode: str,
        make_tracker: Callable[..., Tracker],
        sandbox: Sandbox,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(schema, "journal_mode", lambda: mode)
        tracker = make_tracker()

        assert record(tracker, "1001") is Outcome.RECORDED
        assert tracker.drain().settled == 1
        assert query(path, "PRAGMA journal_mode") == [("wal" if mode == "WAL" else "delete",)]

    @pytest.mark.parametrize("mode", ["WAL", "TRUNCATE"])
    def test_a_damaged_file_is_recovered_in_both_journal_modes(
        self,
        mode: str,
        make_tracker: Callable[..., Tracker],
        path: Path,
        full_file: bytes,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(schema, "journal_mode", lambda: mode)
        path.write_bytes(damaged(full_file, leaf_pages(full_file)[3]))
        tracker = make_tracker()

        assert len(claim_everything(archive(tracker.outbox))) > len(ORDERS) - MOST_ROWS_IN_A_PAGE
        assert record(tracker, "new") is Outcome.RECORDED


# --- what pages see ---


class TestPages:
    @pytest.fixture
    def unusable(self, request: Any, path: Path, tracker: Tracker) -> Iterator[None]:
        """The outbox's place is taken by a directory."""
        path.mkdir()
        yield
        path.rmdir()

    def test_record_never_raises_and_says_how_it_went(
        self, unusable: None, tracker: Tracker, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert record(tracker, "sent") is Outcome.SENT_DIRECTLY
        sandbox.stop()
        assert record(tracker, "lost") is Outcome.LOST

        assert [entry.levelname for entry in caplog.records if entry.name == "katalys_wsgi"] == ["ERROR", "ERROR"]
        assert "order_id=lost" in caplog.text
        assert "ann@example.com" not in caplog.text

    def test_strict_raises_what_is_wrong(self, unusable: None, make_tracker: Callable[..., Tracker]) -> None:
        with pytest.raises(OutboxUnavailable, match="not an outbox of katalys_wsgi but a directory"):
            record(make_tracker(strict=True), "1001")


def test_the_relay_of_a_shop_survives_damage_found_in_its_own_thread(
    path: Path, full_file: bytes, make_tracker: Callable[..., Tracker], sandbox: Sandbox
) -> None:
    path.write_bytes(damaged(full_file, leaf_pages(full_file)[3]))
    tracker = make_tracker(delivery="thread")
    record(tracker, "new")

    assert happens(lambda: len(accepted_orders(sandbox)) > len(ORDERS) - MOST_ROWS_IN_A_PAGE)
    assert happens(lambda: "new" in accepted_orders(sandbox))
