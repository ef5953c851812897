"""Recovery of a damaged file: what can be read is carried over, and the damaged file is kept for the operator."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from katalys_wsgi import ForeignFile, OutboxMissing, OutboxUnavailable
from katalys_wsgi.outbox import recovery, schema
from katalys_wsgi.outbox.recovery import Recovery, is_damage, quarantine, recover
from katalys_wsgi.outbox.schema import MAJOR, MIGRATIONS
from katalys_wsgi.outbox.sqlite import SQLiteOutbox

from .faults.harness import damaged, edited, integrity, leaf_pages, page_size, quarantined, query, root_page
from .outbox_conformance import conversion

ORDERS = [str(number) for number in range(1001, 1061)]

#: A user's id that is nobody's in particular.
SHOP = 54321

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
    assert quarantined(path)[0].read_bytes() == content
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


# --- recover(): what an operator asks for ---


def test_a_sound_file_needs_no_recovery(path: Path) -> None:
    content = path.read_bytes()

    assert recover(path) is None
    assert path.read_bytes() == content


def test_an_empty_file_needs_no_recovery(path: Path) -> None:
    path.write_bytes(b"")

    assert recover(path) is None
    assert path.read_bytes() == b""


def test_a_missing_file_cannot_be_recovered(tmp_path: Path) -> None:
    with pytest.raises(OutboxMissing, match="No outbox at"):
        recover(tmp_path / "missing.db")

    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_recovered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a relative path, as operators type it."""
    content = path.read_bytes()
    path.write_bytes(damaged(content, leaf_pages(content)[1]))
    monkeypatch.chdir(path.parent)

    found = recover(path.name)

    assert found is not None
    assert found.quarantined_as == quarantined(path)[0]
    assert found.rows_saved == len(orders_in(path)) > len(ORDERS) - MOST_ROWS_IN_A_PAGE
    assert integrity(path) == "ok"
    assert recover(path) is None


def test_an_index_that_has_lost_a_row_is_found_too(path: Path) -> None:
    """SQLite's quick check does not compare indexes with their table, and each claim would fail."""
    with edited(path) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, 'pending', 'delivered') WHERE name LIKE '%fresh'")
        db.execute("PRAGMA writable_schema = OFF")
    assert query(path, "PRAGMA quick_check") == [("ok",)]

    found = recover(path)

    assert found is not None
    assert found.rows_saved == len(ORDERS)
    assert integrity(path) == "ok"


@pytest.mark.parametrize("content", [b"Dear diary", b"\xff" * 9000], ids=["text", "garbage"])
def test_what_nothing_says_is_ours_is_recovered_on_the_operators_word_only(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ForeignFile, match="recover --yes"):
        recover(path)
    assert path.read_bytes() == content
    assert {found.name for found in path.parent.iterdir()} <= {path.name, f"{path.name}-journal"}

    found = recover(path, force=True)

    assert found is not None
    assert found.quarantined_as.read_bytes() == content
    assert SQLiteOutbox(path).statistics().pending == found.rows_saved == 0


def test_on_the_operators_word_the_rows_of_a_garbled_header_are_saved(path: Path) -> None:
    """The id in the header is gone, and everything else can be read."""
    with edited(path) as db:
        db.execute("PRAGMA application_id = 77")

    found = recover(path, force=True)

    assert found is not None
    assert found.rows_saved == len(ORDERS)
    assert len(SQLiteOutbox(path).claim(100, 60.0)) == len(ORDERS)


def test_a_sound_database_of_another_program_is_refused_whatever_the_operator_says(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with edited(path) as db:
        db.execute("CREATE TABLE orders (id)")
    content = path.read_bytes()
    with pytest.raises(ForeignFile):
        recover(path, force=True)

    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_is_refused_whatever_the_operator_says(tmp_path: Path) -> None:
    with pytest.raises(ForeignFile, match="but a directory"):
        recover(tmp_path, force=True)


def test_a_file_that_cannot_be_opened_is_refused_whatever_the_operator_says(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    path.write_bytes(b"garbage" * 1000)
    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(ForeignFile):
        recover(path, force=True)


def test_a_file_that_another_process_has_locked_is_not_taken_for_a_damaged_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **{**options, "timeout": 0.1}))
    with edited(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutboxUnavailable, match=r"cannot be recovered: database is locked\. See that"):
            recover(path)
        other.execute("ROLLBACK")

    assert quarantined(path) == []
    assert orders_in(path) == set(ORDERS)


def test_a_damaged_file_that_another_process_writes_into_is_left_for_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it commits meanwhile would not be in the new file."""
    content = path.read_bytes()
    path.write_bytes(damaged(content, leaf_pages(content)[1]))
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **{**options, "timeout": 0.1}))
    with edited(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutboxUnavailable, match="locked"):
            recover(path)
        other.execute("ROLLBACK")

    assert quarantined(path) == []
    assert recover(path) is not None


# --- owner and mode ---


def test_the_new_file_has_the_mode_of_the_damaged_one(path: Path) -> None:
    """And so has the file that processes wait at: whoever may use the outbox may repair it."""
    path.chmod(0o660)
    path.write_bytes(damaged(path.read_bytes(), 1, 100))
    before = os.umask(0o077)
    try:
        recovered(path)
    finally:
        os.umask(before)

    assert {stat.S_IMODE(found.stat().st_mode) for found in (path, Path(f"{path}.lock"))} == {0o660}


def test_a_file_beside_that_is_locked_keeps_what_is_in_it(path: Path) -> None:
    Path(f"{path}.lock").write_text("somebody's")
    path.write_bytes(damaged(path.read_bytes(), 1, 100))
    recovered(path)

    assert Path(f"{path}.lock").read_text() == "somebody's"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
class TestAsRoot:
    """Root runs a command or a relay once, and the shop's user must be able to go on."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The shop's."""
        folder = tmp_path / "shop"
        folder.mkdir()
        os.chown(folder, SHOP, SHOP + 1)
        return folder

    @pytest.mark.parametrize("mode", ["TRUNCATE", "WAL"])
    def test_what_root_makes_belongs_to_the_owner_of_the_directory(
        self, folder: Path, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(schema, "journal_mode", lambda: mode)
        outbox = SQLiteOutbox(folder / "outbox.db")
        outbox.add(conversion())
        names = {found.name for found in folder.iterdir()}
        owners = {(found.stat().st_uid, found.stat().st_gid) for found in folder.iterdir()}
        outbox.close()

        assert names > {"outbox.db"}
        assert owners == {(SHOP, SHOP + 1)}

    def test_what_root_recovers_belongs_to_the_owner_of_the_damaged_file(self, folder: Path, path: Path) -> None:
        os.chown(path, SHOP + 2, SHOP + 3)
        path.chmod(0o640)
        path.write_bytes(damaged(path.read_bytes(), 1, 100))
        recovered(path)

        for found in (path, Path(f"{path}.lock")):
            status = found.stat()
            assert (status.st_uid, status.st_gid) == (SHOP + 2, SHOP + 3), found
            assert stat.S_IMODE(status.st_mode) == 0o640, found

    def test_a_link_that_the_shop_has_put_there_gives_nothing_of_roots_away(self, folder: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("root's")
        path = folder / "outbox.db"
        schema.open_file(path, 2.0).close()
        path.write_bytes(path.read_bytes()[:100] + b"\xff" * 9000)
        Path(f"{path}.lock").symlink_to(secret)
        recover(path)

        assert (secret.stat().st_uid, secret.read_text()) == (0, "root's")
