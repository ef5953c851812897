"""Whether the file at the outbox's place is ours: found out without a trace, and refused by name if it is not."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from katalys_wsgi import ForeignFile, OutboxMissing, OutboxUnavailable, Outcome, Tracker
from katalys_wsgi.outbox.identity import Found, look_at, missing
from katalys_wsgi.outbox.recovery import recover
from katalys_wsgi.outbox.schema import APPLICATION_ID, open_file
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Sandbox

from .faults.harness import edited
from .outbox_conformance import LEASE, conversion
from .support import LINK, make_conversion, make_environ
from .test_entry import make_entry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


# --- what is ours ---


def test_where_there_is_nothing_there_is_nothing(path: Path) -> None:
    assert look_at(path) is Found.NOTHING
    assert list(path.parent.iterdir()) == []


def test_an_empty_file_is_a_new_one(path: Path) -> None:
    path.touch()

    assert look_at(path) is Found.EMPTY
    SQLiteOutbox(path).add(conversion())
    assert look_at(path) is Found.OURS


def test_a_new_file_says_that_it_is_ours_in_its_first_100_bytes(path: Path) -> None:
    open_file(path, 2.0).close()

    header = path.read_bytes()[:100]
    assert header.startswith(b"SQLite format 3\0")
    assert int.from_bytes(header[68:72], "big") == APPLICATION_ID
    assert APPLICATION_ID.to_bytes(4, "big") == b"Ktly"


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_ours_is_recognised_while_another_process_writes_into_it(path: Path, mode: str) -> None:
    open_file(path, 2.0).close()
    with edited(path) as db:
        db.execute(f"PRAGMA journal_mode = {mode}")
        db.execute("BEGIN EXCLUSIVE")
        db.execute("DELETE FROM katalys_outbox")

        assert look_at(path) is Found.OURS


def test_the_first_100_bytes_are_enough(path: Path) -> None:
    """What follows them may be damaged, or cut off."""
    open_file(path, 2.0).close()
    content = path.read_bytes()
    for broken in (content[:100] + b"\xff" * 9000, content[:100], content[: len(content) // 2]):
        path.write_bytes(broken)
        assert look_at(path) is Found.OURS


def test_looking_drops_no_lock_of_this_process(path: Path) -> None:
    """POSIX drops them all when any descriptor of the file is closed; the file may be the shop's own database."""
    with edited(path) as shops:
        shops.execute("CREATE TABLE orders (id)")
        shops.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ForeignFile):
            look_at(path)
        program = (
            "import sqlite3, sys\n"
            "try: sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT * FROM orders')\n"
            "except sqlite3.OperationalError: print('locked')"
        )
        ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60)
        assert ran.stdout == "locked\n"


# --- what is not ---


def make_text(path: Path) -> None:
    path.write_text("Dear diary, today I was nearly renamed.")


def make_zeros(path: Path) -> None:
    path.write_bytes(bytes(8192))


def make_database(path: Path) -> None:
    with edited(path) as db:
        db.execute("CREATE TABLE orders (id INTEGER)")
        db.execute("INSERT INTO orders VALUES (1)")


def make_wal_database(path: Path) -> None:
    with edited(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE orders (id INTEGER)")


def make_database_without_tables(path: Path) -> None:
    with edited(path) as db:
        db.execute("PRAGMA user_version = 3")


def make_database_of_another_application(path: Path) -> None:
    with edited(path) as db:
        db.execute("PRAGMA application_id = 77")


def make_damaged_database(path: Path) -> None:
    make_database(path)
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 9000)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("in it")


def make_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(path))


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


FOREIGN = [
    make_text, make_zeros, make_database, make_wal_database, make_database_without_tables,
    make_database_of_another_application, make_damaged_database, make_folder, make_socket, make_pipe,
]  # fmt: skip


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Nothing in the folder is made, removed, written or renamed."""

    def seen() -> dict[str, object]:
        return {
            found.name: (
                (status := found.stat()).st_ino,
                status.st_mode,
                status.st_mtime_ns,
                found.read_bytes() if stat.S_ISREG(status.st_mode) else None,
            )
            for found in folder.iterdir()
        }

    before = seen()
    yield
    assert seen() == before


USES: dict[str, Callable[[SQLiteOutbox], object]] = {
    "add": lambda outbox: outbox.add(conversion()),
    "claim": lambda outbox: outbox.claim(1, LEASE),
    "apply": lambda outbox: outbox.apply([]),
    "prune": lambda outbox: outbox.prune(0.0),
    "history": lambda outbox: outbox.history("1001"),
    "entries": lambda outbox: outbox.entries(),
    "failing": lambda outbox: outbox.failing(),
    "with_payload": lambda outbox: list(outbox.with_payload()),
    "revive": lambda outbox: outbox.revive(make_entry(), conversion()),
    "forget": lambda outbox: outbox.forget([]),
    "drop": lambda outbox: outbox.drop([]),
    "statistics": lambda outbox: outbox.statistics(),
}
READERS = [name for name in USES if name not in ("add", "claim", "apply", "prune")]


@pytest.mark.parametrize("make", FOREIGN)
@pytest.mark.parametrize("use", USES)
def test_what_is_not_ours_is_refused_by_name_and_untouched(use: str, make: Callable[[Path], None], path: Path) -> None:
    make(path)
    outbox = SQLiteOutbox(path)
    with untouched(path.parent):
        for _ in range(2):
            with pytest.raises(ForeignFile, match="is not an outbox of katalys_wsgi") as caught:
                USES[use](outbox)
        outbox.close()

    assert str(path) in str(caught.value)
    assert "Set outbox (KATALYS_OUTBOX) to another path" in str(caught.value)


@pytest.mark.parametrize("make", [make_text, make_zeros, make_damaged_database])
def test_what_may_be_a_damaged_outbox_names_the_command_that_repairs(make: Callable[[Path], None], path: Path) -> None:
    make(path)
    with pytest.raises(ForeignFile, match="katalys-wsgi recover --yes"):
        look_at(path)


def test_a_shop_whose_outbox_is_not_ours_sends_directly_or_says_lost(
    path: Path, tracker: Tracker, sandbox: Sandbox
) -> None:
    make_text(path)
    with untouched(path.parent):
        sent = tracker.visit(make_environ(LINK)).record(make_conversion())
        sandbox.stop()
        lost = tracker.visit(make_environ(LINK)).record(make_conversion("1002"))

    assert (sent.outcome, lost.outcome) == (Outcome.SENT_DIRECTLY, Outcome.LOST)
    assert f"{path} is not an outbox of katalys_wsgi" in lost.reason


def test_a_foreign_file_that_took_the_place_of_ours_is_refused(path: Path) -> None:
    """Also by one whose connection to ours is still open: that one is another file."""
    outbox = SQLiteOutbox(path)
    outbox.add(conversion())
    path.rename(f"{path}.moved")
    make_text(path)
    with untouched(path.parent), pytest.raises(ForeignFile):
        outbox.add(conversion("1002"))
    outbox.close()


def test_damage_in_a_file_that_is_not_ours_is_not_ours_to_repair(path: Path) -> None:
    """It took the place between two looks: only what was open as ours is known to be."""
    outbox = SQLiteOutbox(path)
    outbox.add(conversion())
    outbox.close()
    path.write_bytes(b"garbage" * 1000)
    with untouched(path.parent), pytest.raises(ForeignFile, match="recover --yes"):
        outbox.add(conversion("1002"))


def test_a_file_that_may_not_be_read_is_refused(path: Path) -> None:
    """Whether it is ours cannot be said."""
    open_file(path, 2.0).close()
    program = (
        "import os, sys; from pathlib import Path; from katalys_wsgi.outbox.identity import look_at\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: look_at(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    path.chmod(0)
    folders = [folder for folder in path.parents if folder.stat().st_uid == os.getuid() and folder != Path("/")]
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in folders}
    try:
        for folder in folders:
            folder.chmod(0o755 if modes[folder] & 0o1000 == 0 else modes[folder])
        ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60)
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)

    assert ran.stdout.startswith(f"ForeignFile {path} cannot be read by this user")
    assert "Let this user read and write it, or set outbox (KATALYS_OUTBOX) to another path." in ran.stdout


def test_a_file_that_python_may_not_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for those who run the tests as root, whom every file lets in."""

    def refuse(*_: object) -> None:
        raise PermissionError

    make_text(path)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ForeignFile, match="cannot be read by this user"):
        look_at(path)


# --- those who only read ---


@pytest.mark.parametrize("use", READERS)
@pytest.mark.parametrize("there", ["nothing", "an empty file", "one without a schema yet"])
def test_those_who_read_make_no_outbox(use: str, there: str, path: Path) -> None:
    if there != "nothing":
        path.touch()
    if there == "one without a schema yet":
        with edited(path) as db:
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    outbox = SQLiteOutbox(path)
    with untouched(path.parent):
        with pytest.raises(OutboxMissing, match="No outbox at") as caught:
            USES[use](outbox)
        outbox.close()

    assert str(path) in str(caught.value)
    assert str(caught.value) == str(missing(path))


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "WAL"])
def test_a_question_leaves_no_trace(path: Path, mode: str) -> None:
    SQLiteOutbox(path).add(conversion())
    with edited(path) as db:
        db.execute(f"PRAGMA journal_mode = {mode}").fetchall()
    os.utime(path, (1, 1))
    outbox = SQLiteOutbox(path)
    with untouched(path.parent):
        assert outbox.statistics().pending == 1
        assert [entry.order_id for entry in outbox.entries()] == ["1001"]
        assert outbox.failing() == []
        assert len(list(outbox.with_payload())) == len(outbox.history("1001")) == 1
        outbox.close()


def test_an_older_minor_schema_is_read_as_it_is_and_migrated_by_the_relay(path: Path) -> None:
    SQLiteOutbox(path).add(conversion())
    with edited(path) as db:
        db.execute("DROP INDEX katalys_outbox_finished")
        db.execute("PRAGMA user_version = 1001")
    outbox = SQLiteOutbox(path)

    with untouched(path.parent):
        assert outbox.statistics().pending == 1
    assert outbox.forget(outbox.entries()) == 1
    assert version_of(path) == 1001
    outbox.claim(1, LEASE)
    assert version_of(path) == 1002
    outbox.close()


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


@pytest.mark.parametrize("use", [name for name in READERS if name not in ("forget", "drop")])
def test_those_who_read_name_the_command_that_repairs(use: str, path: Path) -> None:
    outbox = SQLiteOutbox(path)
    outbox.add(conversion())
    outbox.close()
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 9000)
    with untouched(path.parent):
        with pytest.raises(
            Exception, match=r"is damaged: .* The relay repairs it, or: katalys-wsgi recover$"
        ) as caught:
            USES[use](outbox)
        outbox.close()

    assert type(caught.value) is OutboxUnavailable
    assert recover(path) is not None
