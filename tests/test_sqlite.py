"""The outbox in a SQLite file: what every outbox promises, then what only the file does."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import ConfigurationError, Event, ForeignFile, OutboxUnavailable
from katalys_wsgi.errors import UnusableConnection
from katalys_wsgi.events import Events
from katalys_wsgi.outbox import Added
from katalys_wsgi.outbox import sqlite as sqlite_outbox
from katalys_wsgi.outbox.schema import open_file as open_schema
from katalys_wsgi.outbox.sqlite import SQLiteOutbox

from .faults.harness import edited, integrity, quarantined, race
from .outbox_conformance import (  # noqa: F401 - the suite
    DAY,
    LEASE,
    OpenOutbox,
    TestAdd,
    TestApply,
    TestClaim,
    TestClockJumps,
    TestDeadLetters,
    TestDropping,
    TestFairness,
    TestForgetting,
    TestOrderSequence,
    TestPruning,
    TestQuestions,
    TestRevival,
    claim_one,
    conversion,
    deliver_all,
)
from .support import Clock, Stopwatch

OpenFile = Callable[[Path], SQLiteOutbox]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def open_file(clock: Clock) -> Iterator[OpenFile]:
    """Opens the outbox in a file, as another process would."""
    opened: list[SQLiteOutbox] = []

    def open_it(path: Path) -> SQLiteOutbox:
        opened.append(SQLiteOutbox(path, clock=clock))
        return opened[-1]

    yield open_it
    for outbox in opened:
        outbox.close()


@pytest.fixture
def open_outbox(open_file: OpenFile, path: Path) -> OpenOutbox:
    return lambda: open_file(path)


@pytest.fixture
def outbox(open_file: OpenFile, path: Path) -> SQLiteOutbox:
    return open_file(path)


# --- processes ---

#: What each child process begins with; its arguments are the file and the time.
CHILD = """
import os, signal, sys, threading, time, traceback
from katalys_wsgi import Conversion
from katalys_wsgi.outbox import Change
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.conversion.postback import Kind, Postback
from katalys_wsgi.outbox import Receipt, Verdict
path, now = sys.argv[1:]
outbox = SQLiteOutbox(path, clock=lambda: float(now))
def conversion(order_id):
    order = Conversion(order_id=order_id, email_address="a@b.c", sale_amount=1, subtotal_amount=1)
    return Postback.from_conversion(order, site_id="KA-1A2B3C4", conversion_type="offline_conv", click=None,
                                    client_ip=None, user_agent="")
"""


def start(path: Path, script: str) -> subprocess.Popen[str]:
    code = CHILD + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(Clock().now)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs(children: list[subprocess.Popen[str]]) -> list[str]:
    """What each child printed; each must have ended well."""
    printed = [child.communicate(timeout=50) for child in children]
    assert [(child.returncode, errors) for child, (_, errors) in zip(children, printed, strict=True)] == [
        (0, "") for _ in children
    ]
    return [out for out, _ in printed]


def at_once(path: Path, script: str, count: int) -> list[str]:
    """Runs ``script`` in ``count`` processes that begin together."""
    children = [start(path, "print('ready', flush=True); sys.stdin.readline()\n" + script) for _ in range(count)]
    printed = race(children)
    assert [child.returncode for child in children] == [0] * count
    return printed


@contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    script = """
        import sqlite3
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("BEGIN EXCLUSIVE")
        print("locked", flush=True)
        sys.stdin.readline()
        db.execute("ROLLBACK")
        db.close()
    """
    child = start(path, script)
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    try:
        yield
    finally:
        outputs([child])


class TestFile:
    def test_it_is_made_at_first_use(self, outbox: SQLiteOutbox, path: Path) -> None:
        assert not path.exists()
        outbox.add(conversion())
        assert path.exists()

    def test_a_repr_names_the_file(self, outbox: SQLiteOutbox, path: Path) -> None:
        assert repr(outbox) == f"SQLiteOutbox('{path}')"

    def test_a_later_chdir_starts_no_second_outbox(
        self, open_file: OpenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        outbox = open_file(Path("here.db"))
        outbox.add(conversion())
        outbox.close()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")

        assert outbox.add(conversion()) is Added.SAME
        assert list(Path().iterdir()) == []

    def test_it_cannot_join_the_shops_transaction_and_has_written_nothing(
        self, outbox: SQLiteOutbox, path: Path
    ) -> None:
        with pytest.raises(UnusableConnection, match="SQLAlchemy URL"):
            outbox.add(conversion(), connection=object())
        with pytest.raises(UnusableConnection, match="SQLAlchemy URL"):
            outbox.history("1001", connection=object())

        assert not path.exists()

    def test_many_rows_are_deleted_in_several_transactions(
        self, outbox: SQLiteOutbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pages wait while one lasts."""
        monkeypatch.setattr(sqlite_outbox, "PRUNED_AT_A_TIME", 3)
        for number in range(10):
            outbox.add(conversion(str(number)), problems=["vid: is blank"])
        clock.advance(DAY)

        assert outbox.prune(clock()) == 10

    def test_a_row_that_is_pruned_while_it_is_added_again_is_added(
        self, outbox: SQLiteOutbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process may delete it between the two looks that add() takes."""

        class Pruned(sqlite3.Connection):
            def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
                if statement == "BEGIN IMMEDIATE":
                    super().execute("DELETE FROM katalys_outbox WHERE order_id = '1001'")
                return super().execute(statement, *values)

        outbox.add(conversion("1001"))
        outbox.close()
        connect = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options, factory=Pruned))

        assert outbox.add(conversion("1001")) is Added.NEW
        assert [entry.order_id for entry in outbox.entries()] == ["1001"]

    def test_a_place_that_cannot_hold_the_file_is_reported_at_start_up(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="missing does not exist; create it"):
            SQLiteOutbox(tmp_path / "missing" / "outbox.db")

    def test_a_place_that_is_taken_is_a_clear_error(self, open_file: OpenFile, tmp_path: Path) -> None:
        outbox = open_file(tmp_path)  # a directory in place of the file

        for use in (
            lambda: outbox.add(conversion()),
            lambda: outbox.history("1001"),
            lambda: outbox.claim(1, LEASE),
            lambda: outbox.apply([]),
            outbox.statistics,
        ):
            with pytest.raises(ForeignFile, match=r"but a directory\. Set outbox") as raised:
                use()
            assert str(tmp_path) in str(raised.value)

    def test_it_works_as_soon_as_the_place_does(self, open_file: OpenFile, tmp_path: Path) -> None:
        (tmp_path / "moved").mkdir()
        outbox = open_file(tmp_path / "moved" / "outbox.db")
        (tmp_path / "moved").rmdir()
        with pytest.raises(OutboxUnavailable):
            outbox.add(conversion())
        (tmp_path / "moved").mkdir()

        assert outbox.add(conversion()) is Added.NEW

    def test_a_file_that_was_taken_away_is_noticed_and_started_anew(
        self, outbox: SQLiteOutbox, path: Path, open_file: OpenFile
    ) -> None:
        """An operator's rm or mv: what is written into a file without a name is lost with the process."""
        outbox.add(conversion("1001"))
        for found in path.parent.glob(path.name + "*"):
            found.unlink()

        assert outbox.add(conversion("1002")) is Added.NEW
        assert [entry.order_id for entry in deliver_all(open_file(path))] == ["1002"]


class TestBusyFile:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_outbox, "PATIENCE_IN_REQUEST", 0.4)
        monkeypatch.setattr(sqlite_outbox, "PATIENCE_IN_RELAY", 0.4)

    def test_a_file_that_another_process_has_locked_is_given_up_in_time(self, outbox: SQLiteOutbox, path: Path) -> None:
        outbox.add(conversion())
        with locked_by_another_process(path), Stopwatch() as watch:
            with pytest.raises(OutboxUnavailable, match="locked"):
                outbox.add(conversion("1002"))
            with pytest.raises(OutboxUnavailable, match="locked"):
                outbox.claim(1, LEASE)

        assert 0.6 < watch.seconds < 2.5
        assert outbox.add(conversion("1002")) is Added.NEW
        assert len(deliver_all(outbox)) == 2

    def test_the_first_use_of_a_process_waits_no_longer(
        self, outbox: SQLiteOutbox, path: Path, open_file: OpenFile
    ) -> None:
        outbox.add(conversion())
        with locked_by_another_process(path), Stopwatch() as watch, pytest.raises(OutboxUnavailable, match="locked"):
            open_file(path).add(conversion("1002"))

        assert 0.3 < watch.seconds < 1.6

    def test_a_lock_that_ends_in_time_is_waited_for(
        self, outbox: SQLiteOutbox, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_outbox, "PATIENCE_IN_REQUEST", 10.0)
        outbox.add(conversion())
        added: list[Added] = []
        with locked_by_another_process(path):
            thread = threading.Thread(target=lambda: added.append(outbox.add(conversion("1002"))))
            thread.start()
            thread.join(0.2)
            assert added == []
        thread.join(10)

        assert added == [Added.NEW]

    def test_threads_that_wait_behind_a_waiting_one_are_given_up_in_time_too(
        self, outbox: SQLiteOutbox, path: Path
    ) -> None:
        outbox.add(conversion())
        errors: list[OutboxUnavailable] = []

        def add() -> None:
            try:
                outbox.add(conversion("1002"))
            except OutboxUnavailable as error:
                errors.append(error)

        with locked_by_another_process(path), Stopwatch() as watch:
            threads = [threading.Thread(target=add) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        assert len(errors) == 5
        assert watch.seconds < 0.4 + 0.4 + 1.0


class TestProcesses:
    def test_processes_that_begin_together_make_one_file_and_lose_nothing(
        self, outbox: SQLiteOutbox, path: Path
    ) -> None:
        """The first rows of all come while the file is being made."""
        script = """
            added = [outbox.add(conversion(f"{os.getpid()}-{n}")).value for n in range(25)]
            print(" ".join(added))
        """
        printed = at_once(path, textwrap.dedent(script), 4)

        assert [out.split() for out in printed] == [["new"] * 25] * 4
        assert len(deliver_all(outbox)) == 100
        assert integrity(path) == "ok"

    def test_of_processes_that_add_one_order_one_adds_it(self, outbox: SQLiteOutbox, path: Path) -> None:
        script = "print(' '.join(outbox.add(conversion(str(n))).value for n in range(20)))"
        printed = at_once(path, script, 3)

        assert sorted(" ".join(printed).split()) == ["new"] * 20 + ["same"] * 40
        assert len(deliver_all(outbox)) == 20

    def test_processes_claim_different_rows(self, outbox: SQLiteOutbox, path: Path) -> None:
        for number in range(120):
            outbox.add(conversion(str(number)))
        script = """
            taken = Receipt(Verdict.DELIVERED, 204, confirmed=True)
            while entries := outbox.claim(7, 60):
                print(*(entry.order_id for entry in entries))
                assert outbox.apply([Change.settle(entry, taken) for entry in entries]) == len(entries)
        """
        printed = at_once(path, textwrap.dedent(script), 4)

        assert sorted(" ".join(printed).split(), key=int) == [str(number) for number in range(120)]
        assert outbox.claim(10, LEASE) == []

    def test_what_was_added_survives_the_process(self, outbox: SQLiteOutbox, path: Path) -> None:
        """SIGKILL: no handler, no atexit, no flush."""
        child = start(path, "outbox.add(conversion('1001')); os.kill(os.getpid(), signal.SIGKILL)")
        child.communicate(timeout=50)

        assert child.returncode == -9
        assert claim_one(outbox).order_id == "1001"

    def test_a_process_killed_in_a_claim_leaves_a_row_that_comes_back(
        self, outbox: SQLiteOutbox, path: Path, clock: Clock
    ) -> None:
        outbox.add(conversion())
        start(path, "outbox.claim(1, 60); os.kill(os.getpid(), signal.SIGKILL)").communicate(timeout=50)

        assert outbox.claim(10, LEASE) == []
        clock.advance(61)
        assert claim_one(outbox).attempts == 2

    def test_a_fork_shares_nothing_with_its_parent(self, outbox: SQLiteOutbox, path: Path) -> None:
        """Servers that preload the shop (Gunicorn, uWSGI) fork after it was loaded, and maybe used."""
        script = """
            outbox.add(conversion("parent, before"))
            child = os.fork()
            if not child:
                outbox.add(conversion("child"))
                outbox.close()
                sys.exit(0)  # with everything that an interpreter does when it ends
            outbox.add(conversion("parent, meanwhile"))
            assert os.waitpid(child, 0)[1] == 0
            outbox.add(conversion("parent, after"))
        """
        outputs([start(path, script)])

        orders = [entry.order_id for entry in deliver_all(outbox)]
        assert sorted(orders) == ["child", "parent, after", "parent, before", "parent, meanwhile"]
        assert integrity(path) == "ok"

    def test_a_lock_held_at_the_fork_hangs_no_child(self, outbox: SQLiteOutbox, path: Path) -> None:
        """A thread of the parent is always adding while the children are born."""
        script = """
            import warnings
            warnings.simplefilter("ignore")  # Python 3.12 warns of a fork with threads, which is the point here
            done = threading.Event()
            count = 0
            def add():
                global count
                while not done.is_set():
                    outbox.add(conversion(f"parent {count}"))
                    count += 1
                    time.sleep(0.001)  # SQLite's waiting is not fair; the children's turn
            thread = threading.Thread(target=add, daemon=True)
            thread.start()
            children = []
            for number in range(8):
                time.sleep(0.01)
                child = os.fork()
                if not child:
                    try:
                        outbox.add(conversion(f"child {number}"))
                        os._exit(0)
                    finally:
                        traceback.print_exc()
                        os._exit(1)
                children.append(child)
            for child in children:
                assert os.waitpid(child, 0)[1] == 0
            done.set()
            thread.join()
            print(count)
        """
        with Stopwatch() as watch:
            (printed,) = outputs([start(path, script)])

        assert watch.seconds < 20
        orders = {entry.order_id for entry in deliver_all(outbox)}
        assert orders == {f"child {n}" for n in range(8)} | {f"parent {n}" for n in range(int(printed))}
        assert integrity(path) == "ok"


class TestDamage:
    """What a hook, an operator and the next page see of it; tests/faults/test_file.py has the whole story."""

    def test_damage_reaches_the_hooks(self, path: Path, clock: Clock) -> None:
        seen: list[Event] = []
        outbox = SQLiteOutbox(path, clock=clock, events=Events([seen.append]))
        outbox.claim(1, LEASE)
        path.write_bytes(b"not a database" * 100)
        outbox.add(conversion())
        outbox.close()

        (event,) = seen
        assert event.name == "outbox_damaged"
        assert event.fields == {"quarantined_as": str(quarantined(path)[0]), "rows_saved": 0}

    def test_without_events_it_is_in_the_log(
        self, outbox: SQLiteOutbox, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        outbox.claim(1, LEASE)
        path.write_bytes(b"not a database" * 100)
        outbox.add(conversion())

        assert f"outbox_damaged quarantined_as={quarantined(path)[0]} rows_saved=0" in caplog.text

    def test_an_order_that_meets_the_damage_is_added_to_the_new_file(self, outbox: SQLiteOutbox, path: Path) -> None:
        outbox.add(conversion("1001"))
        with edited(path) as db:
            db.execute("UPDATE katalys_outbox SET attempts = 1")  # so that what was read before is read again
        path.write_bytes(path.read_bytes()[:4096] + b"garbage" * 3000)

        assert outbox.add(conversion("1002")) is Added.NEW
        assert len(quarantined(path)) == 1
        assert outbox.history("1002") != []


def test_a_sale_that_was_written_into_an_exchanged_file_is_written_again(tmp_path: Path) -> None:
    """RECORDED means: in the file that is there. Twice in a row, as when two processes recover one after the other."""
    path = tmp_path / "outbox.db"
    outbox = SQLiteOutbox(path, clock=lambda: 1.0)
    outbox.claim(1, 60.0)
    exchanges = iter(["first", "second"])

    def exchange() -> None:
        name = next(exchanges, None)
        if name is not None:
            path.rename(f"{path}.{name}")
            open_schema(path, 0).close()

    class Exchanging(str):
        """An order id; binding it to the INSERT is the moment when another process exchanges the file."""

        def __conform__(self, _protocol: object) -> str:
            exchange()
            return str(self)

    assert outbox.add(replace(conversion(), order_id=Exchanging("1001"))) is Added.NEW
    assert [entry.order_id for entry in outbox.history("1001")] == ["1001"]
    assert next(exchanges, None) is None
    outbox.close()
