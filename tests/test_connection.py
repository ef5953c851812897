"""The process's one connection to the outbox's file: shared by threads, opened anew when the file is another one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from katalys_wsgi import ForeignFile, OutboxUnavailable
from katalys_wsgi.outbox.connection import Connection, Recovered
from katalys_wsgi.outbox.recovery import Recovery
from katalys_wsgi.outbox.schema import MAJOR, MIGRATIONS, open_file

from .faults.harness import damaged, edited, leaf_pages, quarantined, query

TICK = "UPDATE katalys_outbox SET attempts = attempts + 1"
ROWS = 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def recoveries() -> list[Recovery]:
    """What the connection reported."""
    return []


@pytest.fixture
def connection(path: Path, recoveries: list[Recovery]) -> Iterator[Connection]:
    connection = Connection(path, recoveries.append)
    yield connection
    connection.close()


def fill(connection: Connection) -> None:
    """Rows enough for several pages."""
    with connection.transaction(2.0) as db:
        db.executemany(
            "INSERT INTO katalys_outbox"
            " (key, order_id, kind, payload, digest, state, due_at, created_at, pending_since)"
            " VALUES (?, '1001', 'conversion', ?, 'd', 'pending', 1, 1, 1)",
            [(str(number), "x" * 300) for number in range(ROWS)],
        )


def write_while_it_is_exchanged(connection: Connection, path: Path) -> None:
    with connection.transaction(2.0) as db:
        db.execute(TICK)
        path.rename(f"{path}.moved")
        open_file(path, 0).close()


def count(connection: Connection) -> int:
    with connection.opened(2.0) as db:
        return int(db.execute("SELECT count(*) FROM katalys_outbox").fetchone()[0])


# --- transactions ---


def test_a_transaction_is_committed_at_the_end(connection: Connection, path: Path) -> None:
    fill(connection)

    assert query(path, "SELECT count(*) FROM katalys_outbox") == [(ROWS,)]


def test_a_transaction_that_raises_is_undone(connection: Connection, path: Path) -> None:
    fill(connection)

    def change_and_fail() -> None:
        with connection.transaction(2.0) as db:
            db.execute(TICK)
            raise KeyError

    with pytest.raises(KeyError):
        change_and_fail()

    assert query(path, "SELECT sum(attempts) FROM katalys_outbox") == [(0,)]


def test_a_wrong_statement_is_reported_as_the_outbox_that_cannot_be_used(connection: Connection, path: Path) -> None:
    with pytest.raises(OutboxUnavailable, match="no such table") as caught, connection.opened(2.0) as db:
        db.execute("SELECT * FROM missing")

    assert str(path) in str(caught.value)
    assert "See that its directory exists" in str(caught.value)


def test_a_thread_waits_for_another_no_longer_than_its_patience(connection: Connection) -> None:
    holding, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with connection.opened(2.0):
            holding.set()
            let_go.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait(10)
    try:
        with pytest.raises(OutboxUnavailable, match="busy in this process"), connection.opened(0.1):
            pass
    finally:
        let_go.set()
        holder.join()


def test_the_patience_may_change_from_use_to_use(connection: Connection) -> None:
    def limit(patience: float) -> object:
        with connection.opened(patience) as db:
            return db.execute("PRAGMA busy_timeout").fetchone()[0]

    assert [limit(2.0), limit(0.25), limit(0.25), limit(10.0)] == [2000, 250, 250, 10_000]


# --- locks ---


def test_a_second_connection_to_the_same_file_leaves_the_first_ones_locks_alone(
    path: Path, connection: Connection
) -> None:
    """POSIX drops every lock a process has on a file when it closes any descriptor of it."""
    with connection.transaction(2.0) as db:
        db.execute(TICK)
        assert another_process_writes(path) == "locked"
        second = Connection(path, print)
        count(second)
        assert another_process_writes(path) == "locked"
    second.close()
    assert another_process_writes(path) == "free"


def another_process_writes(path: Path) -> str:
    program = (
        "import sqlite3, sys\n"
        "try: sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')\n"
        "except sqlite3.OperationalError: print('locked')\n"
        "else: print('free')"
    )
    ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60)
    return ran.stdout.strip()


# --- another file in its place ---


def test_a_file_that_was_moved_away_is_left_at_once(connection: Connection, path: Path) -> None:
    fill(connection)
    path.rename(f"{path}.moved")

    assert count(connection) == 0
    assert path.exists()


def test_what_was_written_into_an_exchanged_file_is_reported(connection: Connection, path: Path) -> None:
    """Another process has recovered the file while this one waited for its lock: the commit went into quarantine."""
    fill(connection)

    with pytest.raises(Recovered, match="exchanged"):
        write_while_it_is_exchanged(connection, path)

    assert count(connection) == 0


def test_a_reader_of_an_exchanged_file_has_its_answer(connection: Connection, path: Path) -> None:
    fill(connection)

    with connection.opened(2.0, creating=False) as db:
        path.rename(f"{path}.moved")
        assert db.execute("SELECT count(*) FROM katalys_outbox").fetchone()[0] == ROWS


def test_a_closed_connection_opens_again(connection: Connection) -> None:
    fill(connection)
    connection.close()
    connection.close()

    assert count(connection) == ROWS


def test_a_dropped_connection_closes_the_file(path: Path) -> None:
    """Test suites drop outboxes as they are; Python 3.13 warns of what was left open."""
    connection = Connection(path, print)
    with connection.opened(2.0) as db:
        pass
    del connection

    with pytest.raises(sqlite3.ProgrammingError):
        db.execute("SELECT 1")


# --- damage ---


@pytest.fixture
def broken(connection: Connection, path: Path) -> Path:
    """The file of an open connection, one page of which is garbage now."""
    fill(connection)
    with edited(path) as db:
        db.execute(TICK)  # so that what the connection has read before is read again
    content = path.read_bytes()
    path.write_bytes(damaged(content, leaf_pages(content)[1]))
    return path


def test_damage_that_is_met_in_use_is_recovered_and_reported(
    broken: Path, connection: Connection, recoveries: list[Recovery]
) -> None:
    with pytest.raises(Recovered, match="is in quarantine"):
        read_all(connection)

    assert [recovery.quarantined_as for recovery in recoveries] == quarantined(broken)
    assert 0.5 * ROWS < recoveries[0].rows_saved < ROWS
    assert read_all(connection) == recoveries[0].rows_saved


def read_all(connection: Connection) -> int:
    with connection.opened(2.0) as db:
        return len(db.execute("SELECT * FROM katalys_outbox NOT INDEXED").fetchall())


def break_body(path: Path) -> None:
    """Make an outbox of which only the first 100 bytes can be read: they say that it is ours."""
    open_file(path, 2.0).close()
    path.write_bytes(path.read_bytes()[:100] + b"not a database" * 1000)


def test_damage_that_is_met_when_opening_is_recovered_before_the_first_use(
    connection: Connection, path: Path, recoveries: list[Recovery]
) -> None:
    break_body(path)

    assert count(connection) == 0
    assert [recovery.rows_saved for recovery in recoveries] == [0]


def test_who_is_called_may_use_the_connection(path: Path) -> None:
    """A hook that is called with the event may ask the outbox how it stands."""
    counted: list[int] = []
    asked_back = Connection(path, lambda _: counted.append(count(asked_back)))
    break_body(path)

    assert count(asked_back) == 0
    assert counted == [0]
    asked_back.close()


def test_what_another_process_has_recovered_is_not_reported_again(
    broken: Path, connection: Connection, recoveries: list[Recovery]
) -> None:
    sound = broken.with_name("sound.db")
    other = Connection(sound, print)
    count(other)
    other.close()

    def meet_damage_meanwhile() -> None:
        with connection.opened(2.0):
            sound.rename(broken)
            raise sqlite3.DatabaseError("database disk image is malformed")

    with pytest.raises(Recovered):
        meet_damage_meanwhile()

    assert recoveries == []
    assert quarantined(broken) == []
    assert count(connection) == 0


def test_a_file_that_another_process_has_recovered_meanwhile_is_opened_as_it_is(
    connection: Connection, path: Path, recoveries: list[Recovery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage is met while opening, and when it is this process's turn to recover, the file is sound."""
    fill(connection)
    connection.close()
    answers = iter([sqlite3.DatabaseError("database disk image is malformed")])

    def open_damaged_first(name: Path, patience: float) -> sqlite3.Connection:
        for error in answers:
            raise error
        return open_file(name, patience)

    monkeypatch.setattr("katalys_wsgi.outbox.connection.open_file", open_damaged_first)

    assert count(connection) == ROWS
    assert quarantined(path) == []
    assert recoveries == []


def test_damage_is_not_assumed_of_a_file_that_took_the_place_meanwhile(
    connection: Connection, path: Path, recoveries: list[Recovery]
) -> None:
    count(connection)

    def meet_damage_meanwhile() -> None:
        with connection.opened(2.0):
            path.unlink()
            path.write_text("Dear diary")
            raise sqlite3.DatabaseError("database disk image is malformed")

    with pytest.raises(ForeignFile):
        meet_damage_meanwhile()

    assert path.read_text() == "Dear diary"
    assert quarantined(path) == []
    assert recoveries == []


def test_one_that_has_only_read_migrates_before_it_writes(path: Path) -> None:
    """The file is not opened anew: that it is ours is known as long as it is open."""
    open_file(path, 2.0).close()
    with edited(path) as db:
        db.execute("DROP INDEX katalys_outbox_finished")
        db.execute(f"PRAGMA user_version = {MAJOR * 1000 + 1}")
    connection = Connection(path, print)
    with connection.opened(2.0, creating=False) as reading:
        assert query(path, "PRAGMA user_version") == [(MAJOR * 1000 + 1,)]
    with connection.opened(2.0) as writing:
        assert writing is reading
    connection.close()

    assert query(path, "PRAGMA user_version") == [(MAJOR * 1000 + len(MIGRATIONS),)]


def test_a_file_that_another_process_locks_is_no_damage(connection: Connection, path: Path) -> None:
    count(connection)
    with edited(path) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutboxUnavailable, match="locked"), connection.transaction(0.1):
            pass
        db.execute("ROLLBACK")

    assert quarantined(path) == []
