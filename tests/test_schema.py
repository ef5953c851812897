"""The schema of the outbox's file: made once, migrated in steps, and shared by versions of this package."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import OutboxUnavailable
from katalys_wsgi.outbox import Added, schema
from katalys_wsgi.outbox.schema import (
    APPLICATION_ID,
    MAJOR,
    MIGRATIONS,
    create,
    journal_mode,
    migrate,
    open_file,
    prepare,
    readable_text,
)
from katalys_wsgi.outbox.sqlite import SQLiteOutbox

from .faults.harness import edited, query
from .outbox_conformance import LEASE, conversion, deliver_all

CURRENT = MAJOR * 1000 + len(MIGRATIONS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


# --- opening ---


def test_only_its_owner_may_read_it(path: Path) -> None:
    """Whatever the umask; the files beside it hold the same rows."""
    before = os.umask(0)
    try:
        outbox = SQLiteOutbox(path)
        outbox.add(conversion())
        outbox.claim(1, LEASE)
    finally:
        os.umask(before)

    modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
    outbox.close()
    assert path.name in modes
    assert set(modes.values()) == {0o600}


def test_a_user_makes_the_file_for_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root gives files away; what it makes is in test_recovery.py."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "fchown", None)
    create(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_file_that_another_process_locks_is_closed_again(path: Path) -> None:
    path.touch()
    with edited(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            open_file(path, 0.05)
        other.execute("ROLLBACK")

    assert query(path, "PRAGMA application_id") == [(0,)]


def test_the_file_is_ours_before_anything_else_is_in_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it makes the file leaves one that is known."""

    def dies(_: sqlite3.Connection) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(schema, "migrate", dies)
    with pytest.raises(KeyboardInterrupt):
        open_file(path, 2.0)

    assert query(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert query(path, "SELECT count(*) FROM sqlite_master") == [(0,)]


def test_every_commit_is_synced_and_what_is_deleted_is_overwritten(path: Path) -> None:
    with closing(open_file(path, 2.0)) as db:
        found = [
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "secure_delete", "journal_mode")
        ]

    assert found == [2, 1, journal_mode().lower()]  # 2 is FULL


def test_synchronous_full_that_is_not_accepted_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            return super().execute(statement.replace("synchronous = FULL", "synchronous = OFF"), *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options, factory=Refuses))
    with pytest.raises(OutboxUnavailable, match="synchronous=FULL was not accepted"):
        SQLiteOutbox(path).claim(1, LEASE)


def test_text_that_cannot_be_decoded_is_read_nevertheless() -> None:
    """The error of sqlite3 would repeat the buyer's data, and make its row unreadable."""
    assert readable_text("Zürich".encode()) == "Zürich"
    assert readable_text(b"\xffann@") == "\ufffdann@"


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ((3, 7, 17), "TRUNCATE"),
        ((3, 40, 1), "TRUNCATE"),
        ((3, 50, 6), "TRUNCATE"),
        ((3, 50, 7), "WAL"),
        ((3, 50, 12), "WAL"),
        ((3, 51, 0), "TRUNCATE"),
        ((3, 51, 2), "TRUNCATE"),
        ((3, 51, 3), "WAL"),
        ((3, 52, 0), "WAL"),
        ((4, 0, 0), "WAL"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else value,
)
def test_wal_only_where_several_writers_cannot_corrupt_it(version: tuple[int, ...], mode: str) -> None:
    """https://sqlite.org/wal.html#walresetbug."""
    assert journal_mode(version) == mode


# --- migrations ---


def shape(path: Path) -> dict[str, Any]:
    """What a schema amounts to, however it came about."""
    objects = query(path, "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name")
    indexes = [name for kind, name in objects if kind == "index"]
    return {
        "application": query(path, "PRAGMA application_id"),
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
        with edited(path) as db:
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            for step in MIGRATIONS[:steps]:
                db.executescript(step)
            db.execute(f"PRAGMA user_version = {MAJOR * 1000 + steps}")
            db.execute(
                "INSERT INTO katalys_outbox"
                " (key, order_id, kind, payload, digest, state, due_at, created_at, pending_since)"
                " VALUES ('k', 'old', 'conversion', '{\"order_id\":\"old\"}', 'd', 'pending', 1, 1, 1)"
            )

    return make


@pytest.mark.parametrize("steps", range(1, len(MIGRATIONS) + 1))
def test_a_migrated_file_equals_a_fresh_one(
    steps: int, path: Path, tmp_path: Path, of_step: Callable[[int], None]
) -> None:
    of_step(steps)
    migrated, fresh = SQLiteOutbox(path), SQLiteOutbox(tmp_path / "fresh.db")
    assert [entry.order_id for entry in migrated.claim(10, LEASE)] == ["old"]
    fresh.claim(10, LEASE)

    assert shape(path) == shape(tmp_path / "fresh.db")
    migrated.close()
    fresh.close()


def test_older_code_keeps_recording_and_delivering_in_a_newer_minor_schema(path: Path) -> None:
    """Minor versions only add: the old processes of a deployment that goes step by step keep recording."""
    outbox = SQLiteOutbox(path)
    outbox.add(conversion("before"))
    outbox.close()
    with edited(path) as db:
        db.execute("ALTER TABLE katalys_outbox ADD COLUMN added_later TEXT")
        db.execute("CREATE INDEX katalys_outbox_later ON katalys_outbox (added_later)")
        db.execute(f"PRAGMA user_version = {CURRENT + 1}")

    assert outbox.add(conversion("after")) is Added.NEW
    assert [entry.order_id for entry in deliver_all(outbox)] == ["before", "after"]
    assert query(path, "PRAGMA user_version") == [(CURRENT + 1,)]
    outbox.close()


@pytest.mark.parametrize("version", [1, 999, (MAJOR + 1) * 1000 + 1])
def test_a_file_of_another_major_version_is_refused_and_left_as_it_is(version: int, path: Path) -> None:
    open_file(path, 2.0).close()
    with edited(path) as db:
        db.execute(f"PRAGMA user_version = {version}")
        with pytest.raises(sqlite3.DatabaseError, match=f"its schema is {version}, of another katalys_wsgi"):
            migrate(db)

    assert query(path, "PRAGMA user_version") == [(version,)]


def test_of_two_processes_that_find_an_empty_file_one_makes_it_ours(tmp_path: Path) -> None:
    """The other one was faster between this one's look at the file and its lock."""
    path = tmp_path / "outbox.db"
    path.touch()
    others: list[sqlite3.Connection] = []

    class Late(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == "BEGIN IMMEDIATE" and not others:
                others.append(open_file(path, 2.0))
                others[0].close()
            return super().execute(sql, *values)

    with closing(sqlite3.connect(path, factory=Late, isolation_level=None)) as db:
        db.row_factory = sqlite3.Row
        prepare(db)
        assert db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID

    assert len(others) == 1
