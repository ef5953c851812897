"""Recovery of a damaged file: what can be read is carried over, and the damaged file is kept for the operator."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from katalys_wsgi.outbox import recovery
from katalys_wsgi.outbox.recovery import Recovery, is_damage, quarantine
from katalys_wsgi.outbox.schema import MAJOR, MIGRATIONS
from katalys_wsgi.outbox.sqlite import SQLiteOutbox

from .faults.harness import damaged, edited, integrity, leaf_pages, page_size, quarantined, query, root_page
from .outbox_conformance import conversion

ORDERS = [str(number) for number in range(1001, 1061)]

#: About ten rows fill a page of SQLite's.
MOST_ROWS_IN_A_PAGE = 15


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An outbox with sixty orders."""
    path = tmp_path / "outbox.db"
    outbox = SQLiteOutbox(path)
    for order_id in ORDERS:
        outbox.add(conversion(order_id))
    outbox.close()
    return path


def orders_in(path: Path) -> set[str]:
    return {order_id for (order_id,) in query(path, "SELECT order_id FROM katalys_outbox")}


def recovered(path: Path) -> Recovery:
    """What was done about a file that is damaged."""
    found = quarantine(path)
    assert found is not None
    return found


def test_a_sound_file_is_left_alone(path: Path) -> None:
    assert quarantine(path) is None
    assert quarantined(path) == []
    assert orders_in(path) == set(ORDERS)


def test_the_damaged_file_is_kept_byte_for_byte(path: Path) -> None:
    content = damaged(path.read_bytes(), 1, 100)
    path.write_bytes(content)

    found = recovered(path)

    assert found == Recovery(quarantined_as=quarantined(path)[0], rows_saved=0)
    assert found.quarantined_as.read_bytes() == content
    assert integrity(path) == "ok"


def test_a_file_is_recovered_once(path: Path) -> None:
    path.write_bytes(damaged(path.read_bytes(), 1, 100))

    assert quarantine(path) is not None
    assert quarantine(path) is None


def test_a_broken_page_costs_its_own_rows_only(path: Path) -> None:
    content = path.read_bytes()
    for page in set(range(2, len(content) // page_size(content) + 1)) - {root_page(content)}:
        path.write_bytes(damaged(content, page))
        found = quarantine(path)
        kept = orders_in(path)

        assert integrity(path) == "ok", page
        assert len(kept) >= len(ORDERS) - MOST_ROWS_IN_A_PAGE, page
        assert found is None or found.rows_saved == len(kept), page


def test_two_broken_pages_do_not_cost_the_rows_between_them(path: Path) -> None:
    content = path.read_bytes()
    first, *_, last = leaf_pages(content)[1:-1]
    path.write_bytes(damaged(damaged(content, first), last))

    assert recovered(path).rows_saved > len(ORDERS) - 2 * MOST_ROWS_IN_A_PAGE


def test_rows_are_saved_as_they_were(path: Path) -> None:
    before = dict(query(path, "SELECT order_id, payload FROM katalys_outbox"))
    content = path.read_bytes()
    path.write_bytes(damaged(content, leaf_pages(content)[1]))
    recovered(path)

    after = dict(query(path, "SELECT order_id, payload FROM katalys_outbox"))
    assert after.items() <= before.items()


def test_rows_of_a_newer_minor_schema_are_saved_by_older_code(path: Path) -> None:
    with edited(path) as db:
        db.execute("ALTER TABLE katalys_outbox ADD COLUMN added_later TEXT")
        db.execute(f"PRAGMA user_version = {MAJOR * 1000 + len(MIGRATIONS) + 1}")
    content = path.read_bytes()
    path.write_bytes(damaged(content, leaf_pages(content)[1]))

    assert recovered(path).rows_saved > len(ORDERS) - MOST_ROWS_IN_A_PAGE


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_no_file_beside_the_damaged_one_is_left_for_the_new_one(suffix: str, path: Path) -> None:
    """SQLite would play a journal that is left behind into the new file."""
    path.write_bytes(damaged(path.read_bytes(), 1, 100))
    Path(f"{path}{suffix}").write_bytes(b"of the damaged file")

    assert recovered(path).rows_saved == 0
    assert not Path(f"{path}{suffix}").exists()
    assert integrity(path) == "ok"


def test_what_a_killed_process_has_left_is_not_taken_for_rows(path: Path) -> None:
    path.write_bytes(damaged(path.read_bytes(), 1, 100))
    Path(f"{path}.recovered").write_bytes(b"half of a file")

    assert recovered(path).rows_saved == 0
    assert integrity(path) == "ok"
    assert not Path(f"{path}.recovered").exists()


def test_a_new_file_that_cannot_be_written_leaves_the_damaged_one_in_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(*_: object) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    content = damaged(path.read_bytes(), 1, 100)
    path.write_bytes(content)
    monkeypatch.setattr(recovery, "salvage", is_full)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        quarantine(path)

    assert path.read_bytes() == content
    assert quarantined(path) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (sqlite3.DatabaseError("database disk image is malformed"), True),
        (sqlite3.DatabaseError("file is not a database"), True),
        (sqlite3.OperationalError("database is locked"), False),
        (sqlite3.OperationalError("database or disk is full"), False),
        (sqlite3.OperationalError("disk I/O error"), False),
        (OSError("malformed"), False),
    ],
    ids=str,
)
def test_damage_is_what_sqlite_says_of_the_file_itself(error: Exception, expected: bool) -> None:
    assert is_damage(error) is expected
