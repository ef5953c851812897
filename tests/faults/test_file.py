"""The outbox's file: damaged, moved, of another version, in the wrong place; pages are served and rows survive."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from katalys_wsgi.outbox.file import MAJOR, MIGRATIONS, journal_mode, network_file_system

from katalys_wsgi import ConfigurationError, OutboxUnavailable, Outcome, Tracker
from katalys_wsgi.outbox import Change, Receipt, Verdict
from katalys_wsgi.outbox import file as outbox_file
from katalys_wsgi.outbox import sqlite as outbox_sqlite
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from tests.support import LINK, make_conversion, make_environ

from .harness import accepted_orders, environment, happens, integrity, query

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
    tracker = Tracker(site_id="KA-1A2B3C4", secret_key="kf83jf9s0d8fj3kd93jd8s7g6h5j4k3l2", outbox=f"{path}",
                      delivery="external")  # fmt: skip
    assert {record(tracker, order_id) for order_id in ORDERS} == {Outcome.RECORDED}
    tracker.close()
    return path.read_bytes()


def page_size(content: bytes) -> int:
    return int.from_bytes(content[16:18], "big")


def garbage(length: int) -> bytes:
    return bytes(range(255, 0, -5)) * (length // 51 + 1)


def damaged(content: bytes, page: int, length: int | None = None) -> bytes:
    """``content`` with garbage in a page, counted from 1, as a bad block leaves it."""
    size = page_size(content)
    start = (page - 1) * size
    length = size if length is None else length
    return content[:start] + garbage(length)[:length] + content[start + length :]


def set_aside(path: Path) -> list[Path]:
    """The damaged files beside the outbox."""
    return sorted(found for found in path.parent.glob(f"{path.name}.corrupt-*") if not found.name.endswith("-journal"))


# --- damage ---


class TestDamage:
    def test_a_garbled_header_starts_a_new_file_loudly(self, path, full_file, tracker, caplog):
        path.write_bytes(damaged(full_file, 1, 100))

        assert record(tracker, "new") is Outcome.RECORDED

        assert [found.read_bytes() for found in set_aside(path)] == [damaged(full_file, 1, 100)]
        assert [entry.name for entry in caplog.records if entry.levelno == logging.CRITICAL] == ["katalys_wsgi"]
        assert "outbox_damaged" in caplog.text
        assert tracker.outbox.history("new")

    def test_the_rows_of_every_other_page_are_saved(self, path, full_file, make_tracker, caplog):
        """Each page in turn is lost to garbage: record() never raises, and what can be read is delivered as it was."""
        root = self._root_page(path, full_file)
        lost = {}
        for page in range(2, len(full_file) // page_size(full_file) + 1):
            for found in (path, *set_aside(path)):
                found.unlink(missing_ok=True)
            path.write_bytes(damaged(full_file, page))
            tracker = make_tracker()
            outcomes = [record(tracker, f"new-{number}") for number in range(3)]
            claimed = self._claim_everything(tracker.outbox)
            self._settle_everything(tracker.outbox)
            tracker.close()
            assert set(outcomes) == {Outcome.RECORDED}, page
            assert claimed["new-2"] == 1, page
            assert integrity(path) == "ok", page
            lost[page] = len(set(ORDERS) - set(claimed))

        assert all(count <= MOST_ROWS_IN_A_PAGE for page, count in lost.items() if page != root), lost
        assert "outbox_damaged" in caplog.text

    def test_two_bad_pages_do_not_cost_the_rows_between_them(self, path, full_file, tracker):
        first, *_, last = self._leaf_pages(path, full_file)[1:-1]
        path.write_bytes(damaged(damaged(full_file, first), last))

        record(tracker, "finds it")
        record(tracker, "new")

        assert len(self._claim_everything(tracker.outbox)) > len(ORDERS) - 2 * MOST_ROWS_IN_A_PAGE

    def test_a_row_of_garbled_text_holds_up_nobody(self, path, tracker, sandbox, caplog):
        """One flipped bit within a text is no damage to SQLite; the others are delivered, and nothing is told of it."""
        for order_id in ORDERS[:3]:
            record(tracker, order_id)
        with closing(sqlite3.connect(path)) as db, db:
            garbled = "CAST(replace(payload, 'ann@', x'FF41') AS TEXT)"
            db.execute(f"UPDATE katalys_outbox SET payload = {garbled} WHERE id = 1")  # noqa: S608
        in_time = threading.Event()
        drain = threading.Thread(target=lambda: (tracker.drain(), in_time.set()), daemon=True)
        drain.start()

        assert in_time.wait(20)
        assert sorted(accepted_orders(sandbox)) == ORDERS[1:3]
        assert "example.com" not in caplog.text

    def test_a_row_of_no_json_holds_up_nobody(self, path, tracker, sandbox):
        for order_id in ORDERS[:3]:
            record(tracker, order_id)
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE katalys_outbox SET payload = 'garbage' WHERE id = 1")
        in_time = threading.Event()
        drain = threading.Thread(target=lambda: (tracker.drain(), in_time.set()), daemon=True)
        drain.start()

        assert in_time.wait(20)
        assert sorted(accepted_orders(sandbox)) == ORDERS[1:3]

    def test_the_order_that_meets_the_damage_is_kept_even_if_katalys_is_down(self, path, full_file, tracker, sandbox):
        """The new file is there in no time, so nothing has to be sent from a page, or lost."""
        record(tracker, "opens the file")
        sandbox.stop()
        path.write_bytes(damaged(full_file, self._leaf_pages(path, full_file)[-1]))

        outcomes = [record(tracker, f"new-{number}") for number in range(3)]

        assert set(outcomes) == {Outcome.RECORDED}
        assert set_aside(path)

    def test_several_processes_set_it_aside_once(self, path, full_file, options, caplog):
        """Every process meets the damage at the same moment; one sets the file aside, all record into the new one."""
        path.write_bytes(damaged(full_file, self._leaf_pages(path, full_file)[-1]))
        program = (
            "import sys; from tests.faults.shop import tracker; from tests.support import *; sys.stdin.read(1)\n"
            "for number in range(20):\n"
            "    order = f'{sys.argv[1]}-{number}'\n"
            "    print(order, tracker.visit(make_environ(LINK)).record(make_conversion(order)).outcome.name)"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        racers = [
            subprocess.Popen([sys.executable, "-c", program, name], env=environment(options), cwd=path.parent, **pipes)
            for name in "abcd"
        ]
        for racer in racers:
            racer.stdin.write("!")
            racer.stdin.flush()
        told = [racer.communicate(timeout=60) for racer in racers]

        answers = dict(line.split() for out, _ in told for line in out.splitlines())
        recorded = {order for order, outcome in answers.items() if outcome == "RECORDED"}
        kept = {order for (order,) in query(path, "SELECT order_id FROM katalys_outbox")}
        assert len(answers) == 80
        assert set(answers.values()) == {"RECORDED"}
        assert len(set_aside(path)) == 1
        assert sum(err.count("outbox_damaged") for _, err in told) == 1
        assert recorded <= kept
        assert len(kept & set(ORDERS)) > len(ORDERS) - MOST_ROWS_IN_A_PAGE

    def test_a_process_killed_while_it_sets_the_file_aside_costs_no_row(self, path, full_file, tracker, monkeypatch):
        """Whatever moment it dies at, the next one finds the damaged file or the mended one."""
        path.write_bytes(damaged(full_file, self._leaf_pages(path, full_file)[3]))

        def dies(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(outbox_file, "_salvage", dies)
            with pytest.raises(KeyboardInterrupt):
                self._claim_everything(tracker.outbox)
        record(tracker, "finds it")

        kept = {order for (order,) in query(path, "SELECT order_id FROM katalys_outbox")}
        assert len(kept & set(ORDERS)) > len(ORDERS) - MOST_ROWS_IN_A_PAGE

    def test_a_disk_too_full_to_mend_the_file_leaves_it_for_later(self, path, full_file, tracker, sandbox, monkeypatch):
        path.write_bytes(damaged(full_file, self._leaf_pages(path, full_file)[3]))

        def is_full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(outbox_file, "_salvage", is_full)
            with pytest.raises(OutboxUnavailable):
                self._claim_everything(tracker.outbox)
            assert record(tracker, "meanwhile") is Outcome.RECORDED

        assert len(self._claim_everything(tracker.outbox)) > len(ORDERS) - MOST_ROWS_IN_A_PAGE

    @staticmethod
    def _claim_everything(outbox: Any) -> dict[str, int]:
        """How often each order is claimed, past one discovery of damage."""
        claimed: dict[str, int] = {}
        try:
            entries = outbox.claim(1000, 60)
        except OutboxUnavailable:
            entries = outbox.claim(1000, 60)
        for entry in entries:
            assert f'"order_id":"{entry.order_id}"' in entry.payload
            claimed[entry.order_id] = claimed.get(entry.order_id, 0) + 1
        return claimed

    @staticmethod
    def _settle_everything(outbox: Any) -> None:
        changes = [Change.settle(entry, Receipt(Verdict.DELIVERED, 204)) for entry in outbox.entries(limit=1000)]
        try:
            outbox.apply(changes)
        except OutboxUnavailable:
            assert outbox.apply(changes) == len(changes)

    @staticmethod
    def _root_page(path: Path, content: bytes) -> int:
        path.write_bytes(content)
        return int(query(path, "SELECT rootpage FROM sqlite_master WHERE name = 'katalys_outbox'")[0][0])

    def _leaf_pages(self, path: Path, content: bytes) -> list[int]:
        """The pages that hold the table's rows, in order: what its root page points to (sqlite.org/fileformat.html)."""
        size, root = page_size(content), self._root_page(path, content)
        page = content[(root - 1) * size : root * size]
        assert page[0] == 5, "the table has one level of interior pages"
        cells = int.from_bytes(page[3:5], "big")
        starts = [int.from_bytes(page[12 + 2 * cell : 14 + 2 * cell], "big") for cell in range(cells)]
        return [int.from_bytes(page[start : start + 4], "big") for start in [*starts, 8]]


# --- a file that is no longer there ---


class TestMoved:
    def test_a_file_that_another_process_set_aside_is_left_at_once(self, path, tracker, sandbox):
        record(tracker, "before")
        os.rename(path, f"{path}.corrupt-by-another")

        assert [record(tracker, f"after-{number}") for number in range(2)] == [Outcome.RECORDED] * 2

        tracker.drain()
        assert sorted(accepted_orders(sandbox)) == ["after-0", "after-1"]

    def test_a_deleted_file_is_started_anew(self, path, tracker, sandbox):
        record(tracker, "before")
        path.unlink()

        assert record(tracker, "after") is Outcome.RECORDED
        assert tracker.drain().settled == 1


# --- locks ---


class TestLocks:
    def test_a_second_outbox_on_the_same_file_leaves_the_first_ones_locks_alone(self, path, tracker):
        """POSIX drops every lock a process has on a file when it closes any descriptor of it."""
        record(tracker, "before")
        with tracker.outbox._store.get().transaction(2) as db:
            db.execute("UPDATE katalys_outbox SET attempts = attempts")
            assert self._another_process_writes(path) == "locked"
            second = SQLiteOutbox(path)
            second.statistics()
            assert self._another_process_writes(path) == "locked"
        second.close()
        assert self._another_process_writes(path) == "free"

    @staticmethod
    def _another_process_writes(path: Path) -> str:
        program = (
            "import sqlite3, sys\n"
            "try: sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')\n"
            "except sqlite3.OperationalError: print('locked')\n"
            "else: print('free')"
        )
        ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60)
        return ran.stdout.strip()

    def test_a_page_waits_for_another_process_as_long_as_it_may_and_no_longer(
        self, path, tracker, sandbox, monkeypatch
    ):
        record(tracker, "before")
        monkeypatch.setattr(outbox_sqlite, "PATIENCE_IN_REQUEST", 0.3)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            started = time.monotonic()
            outcome = record(tracker, "meanwhile")
            took = time.monotonic() - started
            other.execute("COMMIT")

        assert outcome is Outcome.SENT_DIRECTLY
        assert 0.25 < took < 1.5
        assert record(tracker, "after") is Outcome.RECORDED


# --- schema ---


def shape(path: Path) -> dict[str, Any]:
    """What a schema amounts to, however it came about."""
    objects = query(path, "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name")
    indexes = [name for kind, name in objects if kind == "index"]
    return {
        "version": query(path, "PRAGMA user_version"),
        "objects": objects,
        "columns": query(path, "PRAGMA table_xinfo(katalys_outbox)"),
        "indexes": {name: query(path, f"PRAGMA index_xinfo({name})") for name in indexes},
        "conditions": query(
            path, "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL ORDER BY 1"
        ),
    }


@pytest.fixture
def of_step(path: Path) -> Callable[[int], None]:
    """Makes the file as the version of that many migration steps left it, with one order recorded then."""

    def make(steps: int) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            for step in MIGRATIONS[:steps]:
                db.executescript(step)
            db.execute(f"PRAGMA user_version = {MAJOR * 1000 + steps}")
            db.execute(
                "INSERT INTO katalys_outbox"
                " (key, order_id, kind, payload, digest, state, due_at, created_at, pending_since)"
                " VALUES ('k', 'old', 'conversion', '{\"order_id\":\"old\"}', 'd', 'pending', 1, 1, 1)"
            )

    return make


class TestSchema:
    @pytest.mark.parametrize("steps", range(1, len(MIGRATIONS) + 1))
    def test_a_migrated_file_equals_a_fresh_one(self, steps, path, tmp_path, of_step):
        of_step(steps)
        migrated, fresh = SQLiteOutbox(path), SQLiteOutbox(tmp_path / "fresh.db")
        migrated.statistics()
        fresh.statistics()

        assert shape(path) == shape(tmp_path / "fresh.db")
        assert [entry.order_id for entry in migrated.claim(10, 60)] == ["old"]
        migrated.close()
        fresh.close()

    def test_older_code_keeps_recording_and_delivering_in_a_newer_minor_schema(self, path, tracker, sandbox):
        record(tracker, "before")
        tracker.close()
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("ALTER TABLE katalys_outbox ADD COLUMN added_later TEXT")
            db.execute("CREATE INDEX katalys_outbox_later ON katalys_outbox (added_later)")
            db.execute(f"PRAGMA user_version = {MAJOR * 1000 + len(MIGRATIONS) + 1}")

        assert record(tracker, "after") is Outcome.RECORDED
        assert tracker.drain().settled == 2
        assert query(path, "PRAGMA user_version") == [(MAJOR * 1000 + len(MIGRATIONS) + 1,)]

    def test_rows_of_a_newer_minor_schema_are_salvaged_by_older_code(self, path, tracker, sandbox):
        for order_id in ORDERS:
            record(tracker, order_id)
        tracker.close()
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("ALTER TABLE katalys_outbox ADD COLUMN added_later TEXT")
            db.execute(f"PRAGMA user_version = {MAJOR * 1000 + len(MIGRATIONS) + 1}")
        content = path.read_bytes()
        path.write_bytes(damaged(content, TestDamage()._leaf_pages(path, content)[3]))
        record(tracker, "finds it")
        with pytest.raises(OutboxUnavailable):
            tracker.drain()

        assert tracker.drain().settled > len(ORDERS) - MOST_ROWS_IN_A_PAGE

    @pytest.mark.parametrize("version", [1, 999, (MAJOR + 1) * 1000 + 1])
    def test_another_major_version_is_refused_clearly_and_pages_go_on(self, version, path, tracker, sandbox):
        record(tracker, "before")
        tracker.close()
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version = {version}")

        with pytest.raises(OutboxUnavailable, match=f"its schema is {version}, of another katalys_wsgi"):
            tracker.drain()
        assert record(tracker, "after") is Outcome.SENT_DIRECTLY
        assert not set_aside(path)

    def test_two_processes_that_start_at_once_make_one_schema(self, path, options):
        program = "from tests.faults.shop import tracker; print(tracker.outbox.statistics().pending)"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        racers = [
            subprocess.Popen([sys.executable, "-c", program], env=environment(options), cwd=path.parent, **pipes)
            for _ in range(4)
        ]
        told = [racer.communicate(timeout=60) for racer in racers]

        assert [out.strip() for out, _ in told] == ["0"] * 4, told


# --- settings of the file ---


class TestSettings:
    def test_files_are_readable_by_their_owner_only(self, path, tracker):
        mask = os.umask(0)
        try:
            record(tracker, "1001")
        finally:
            os.umask(mask)

        modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.glob("outbox.db*")}
        assert set(modes.values()) == {0o600}, modes

    def test_every_commit_is_synced_and_what_is_deleted_is_overwritten(self, tracker):
        with tracker.outbox._store.get().reading(2) as db:
            found = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "secure_delete")]

        assert found == [2, 1]

    @pytest.mark.parametrize(
        ("version", "mode"),
        [
            ((3, 40, 1), "TRUNCATE"),
            ((3, 50, 6), "TRUNCATE"),
            ((3, 50, 7), "WAL"),
            ((3, 50, 9), "WAL"),
            ((3, 51, 0), "TRUNCATE"),
            ((3, 51, 2), "TRUNCATE"),
            ((3, 51, 3), "WAL"),
            ((3, 52, 0), "WAL"),
            ((4, 0, 0), "WAL"),
        ],
    )
    def test_wal_is_used_where_it_is_safe_with_several_writers(self, version, mode):
        assert journal_mode(version) == mode

    @pytest.mark.parametrize("mode", ["WAL", "TRUNCATE"])
    def test_the_outbox_works_in_both_journal_modes(self, mode, make_tracker, sandbox, path, monkeypatch):
        monkeypatch.setattr(outbox_file, "journal_mode", lambda: mode)
        tracker = make_tracker()

        assert record(tracker, "1001") is Outcome.RECORDED
        assert tracker.drain().settled == 1
        assert query(path, "PRAGMA journal_mode") == [("wal" if mode == "WAL" else "delete",)]

    @pytest.mark.parametrize("mode", ["WAL", "TRUNCATE"])
    def test_a_damaged_file_is_set_aside_in_both_journal_modes(self, mode, make_tracker, path, full_file, monkeypatch):
        monkeypatch.setattr(outbox_file, "journal_mode", lambda: mode)
        path.write_bytes(damaged(full_file, TestDamage()._leaf_pages(path, full_file)[3]))
        tracker = make_tracker()

        assert len(TestDamage._claim_everything(tracker.outbox)) > len(ORDERS) - MOST_ROWS_IN_A_PAGE
        assert record(tracker, "new") is Outcome.RECORDED

    def test_synchronous_full_that_is_not_accepted_is_told(self, path, monkeypatch):
        class Refuses(sqlite3.Connection):
            def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
                return super().execute(statement.replace("synchronous = FULL", "synchronous = OFF"), *values)

        connect = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options, factory=Refuses))
        with pytest.raises(OutboxUnavailable, match="synchronous=FULL was not accepted"):
            SQLiteOutbox(path).statistics()


# --- where it lies ---

MOUNTS = """\
sysfs /sys sysfs rw,nosuid 0 0
/dev/vda1 / ext4 rw,relatime 0 0
tmpfs /run tmpfs rw 0 0
filer:/export /srv nfs4 rw,vers=4.2 0 0
/dev/vdb1 /srv/shop/local xfs rw 0 0
//filer/share /mnt/windows\\040share cifs rw 0 0
you@host:/ /home/you/remote fuse.sshfs rw 0 0
overlay /var/lib/docker/overlay2 overlay rw 0 0
portal /run/user/1000/doc fuse.portal rw 0 0

damaged
"""


class TestPlace:
    @pytest.mark.parametrize(
        ("directory", "kind"),
        [
            ("/", None),
            ("/var/lib/shop", None),
            ("/srv", "nfs4"),
            ("/srv/shop", "nfs4"),
            ("/srv/shop/local", None),
            ("/srv/shop/local/deeper", None),
            ("/srvice", None),
            ("/mnt/windows share/x", "cifs"),
            ("/home/you/remote/shop", "fuse.sshfs"),
            ("/run/user/1000/doc", None),
        ],
    )
    def test_the_file_system_of_a_directory_is_that_of_its_nearest_mount(self, directory, kind):
        assert network_file_system(Path(directory), MOUNTS) == kind

    def test_nothing_is_said_where_there_are_no_mounts_to_read(self):
        assert network_file_system(Path("/srv"), "") is None

    def test_the_machines_own_mounts_are_read(self, tmp_path):
        assert network_file_system(tmp_path) is None

    @pytest.mark.parametrize(
        ("prepare", "message"),
        [
            pytest.param(lambda _: None, "missing does not exist; create it", id="no directory"),
            pytest.param(
                lambda patch: (os.mkdir("missing"), patch.setattr(os, "access", lambda *_: False)),
                "missing is not writable for this user",
                id="not writable",
            ),
            pytest.param(
                lambda patch: (
                    os.mkdir("missing"),
                    patch.setattr(outbox_sqlite, "network_file_system", lambda _: "nfs"),
                ),
                "missing lies on nfs, where SQLite is not safe",
                id="on a network",
            ),
        ],
    )
    def test_a_wrong_place_is_told_at_start_up_with_the_next_step(
        self, prepare, message, tmp_path, monkeypatch, make_tracker
    ):
        monkeypatch.chdir(tmp_path)
        prepare(monkeypatch)
        with pytest.raises(ConfigurationError, match=message) as caught:
            make_tracker(outbox="missing/outbox.db")

        assert "KATALYS_OUTBOX" in str(caught.value)

    def test_a_later_change_of_directory_does_not_start_a_second_outbox(self, tmp_path, monkeypatch, make_tracker):
        monkeypatch.chdir(tmp_path)
        tracker = make_tracker(outbox="outbox.db")
        monkeypatch.chdir("/")
        record(tracker, "1001")

        assert (tmp_path / "outbox.db").exists()


# --- what pages see ---


class TestPages:
    @pytest.fixture
    def unusable(self, request: Any, path: Path, tracker: Tracker) -> Iterator[None]:
        """The outbox's place is taken by something that is no file."""
        path.mkdir()
        yield
        path.rmdir()

    def test_record_never_raises_and_says_how_it_went(self, unusable, tracker, sandbox, caplog):
        assert record(tracker, "sent") is Outcome.SENT_DIRECTLY
        sandbox.stop()
        assert record(tracker, "lost") is Outcome.LOST

        assert [entry.levelname for entry in caplog.records if entry.name == "katalys_wsgi"] == ["ERROR", "ERROR"]
        assert "order_id=lost" in caplog.text
        assert "ann@example.com" not in caplog.text

    def test_strict_raises_what_is_wrong(self, unusable, make_tracker):
        with pytest.raises(OutboxUnavailable, match="See that its directory exists"):
            record(make_tracker(strict=True), "1001")


def test_a_late_worker_does_not_mark_what_is_another_ones_now(tracker):
    """The lease ran out, another relay has the row: what the first one reports changes nothing."""
    record(tracker, "1001")
    (first,) = tracker.outbox.claim(1, -1)
    (second,) = tracker.outbox.claim(1, 60)

    assert tracker.outbox.apply([Change.bury(first, Receipt(Verdict.REFUSED, 400, "HTTP 400"))]) == 0
    assert tracker.outbox.apply([Change.settle(second, Receipt(Verdict.DELIVERED, 204))]) == 1
    assert [entry.state for entry in tracker.outbox.history("1001")] == ["delivered"]


def test_the_relay_of_a_shop_survives_damage_found_in_its_own_thread(path, full_file, make_tracker, sandbox):
    path.write_bytes(damaged(full_file, TestDamage()._leaf_pages(path, full_file)[3]))
    tracker = make_tracker(delivery="thread")
    record(tracker, "new")

    assert happens(lambda: len(accepted_orders(sandbox)) > len(ORDERS) - MOST_ROWS_IN_A_PAGE)
    assert happens(lambda: "new" in accepted_orders(sandbox))
