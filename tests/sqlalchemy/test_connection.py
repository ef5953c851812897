"""katalys_wsgi/outbox/sqlalchemy/connection.py: the conversion is in the order's own transaction."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, StaticPool, create_engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from katalys_wsgi import OrderUpdate, OutboxUnavailable, Outcome, Tracker
from katalys_wsgi.errors import UnusableConnection
from katalys_wsgi.outbox import Added, State
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox, store

from ..outbox_conformance import conversion
from ..support import make_conversion, make_environ
from .shop import (
    ORDER,
    Base,
    Connect,
    a_connection,
    a_scoped_session,
    a_session,
    engine_of,
    orders,
    record,
    recorded,
    run,
)

CONNECTIONS = [a_connection, a_session, a_scoped_session]


@pytest.mark.parametrize("connect", CONNECTIONS, ids=lambda connect: connect.__name__)
class TestOneTransaction:
    """The conversion is there if and only if the order is."""

    def test_commit_keeps_both(self, shop: Tracker, engine: Engine, connect: Connect, sandbox: Any) -> None:
        with connect(engine) as db:
            db.execute(ORDER)
            assert record(shop, db) is Outcome.RECORDED
            if engine.dialect.name != "sqlite":  # which would have all others wait
                assert shop.drain().settled == 0
            db.commit()

        assert orders(engine) == [1001]
        assert shop.drain().settled == 1
        assert sandbox.collector.accepted[0].fields["order_id"] == "1001"

    @pytest.mark.parametrize("first", ["order", "record"])
    def test_rollback_removes_both(self, shop: Tracker, engine: Engine, connect: Connect, first: str) -> None:
        """Also when the record is the transaction's first statement: SQLite's driver does not begin one by itself."""
        with connect(engine) as db:
            if first == "order":
                db.execute(ORDER)
            assert record(shop, db) is Outcome.RECORDED
            if first == "record":
                db.execute(ORDER)
            db.rollback()

        assert orders(engine) == []
        assert not recorded(shop)
        with connect(engine) as db:
            assert record(shop, db) is Outcome.RECORDED
            db.commit()
        assert recorded(shop)

    def test_a_duplicate_leaves_the_transaction_as_it_was(
        self, shop: Tracker, engine: Engine, connect: Connect
    ) -> None:
        assert record(shop, None) is Outcome.RECORDED
        with connect(engine) as db:
            db.execute(ORDER)
            assert record(shop, db) is Outcome.DUPLICATE
            assert record(shop, db, sale_amount="1.00") is Outcome.DUPLICATE
            assert record(shop, db, "1002") is Outcome.RECORDED
            db.commit()

        assert orders(engine) == [1001]
        assert recorded(shop, "1002")
        assert shop.drain().settled == 2

    def test_a_dead_letter_is_replaced_with_the_order(self, shop: Tracker, engine: Engine, connect: Connect) -> None:
        assert record(shop, None, sale_amount="wrong") is Outcome.INVALID
        with connect(engine) as db:
            assert record(shop, db) is Outcome.RECORDED
            db.rollback()
        assert shop.outbox.history("1001")[0].state == State.DEAD

        with connect(engine) as db:
            assert record(shop, db) is Outcome.RECORDED
            db.commit()
        assert shop.drain().settled == 1

    def test_an_error_of_ours_is_undone_alone(
        self, shop: Tracker, engine: Engine, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever breaks between our statements."""
        monkeypatch.setattr(store, "added_again", lambda *_, **__: 1 / 0)
        record(shop, None)
        with connect(engine) as db:
            db.execute(ORDER)
            assert record(shop, db) is Outcome.LOST
            db.commit()

        assert orders(engine) == [1001]

    def test_the_first_record_of_all_makes_the_table(self, shop: Tracker, engine: Engine, connect: Connect) -> None:
        """The relay, which would make it, has nothing to do before."""
        with connect(engine) as db:
            assert record(shop, db) is Outcome.RECORDED
            db.execute(ORDER)
            db.commit()

        assert orders(engine) == [1001]
        assert recorded(shop)

    def test_what_undoes_the_order_too_is_seen_at_the_commit(
        self, shop: Tracker, engine: Engine, connect: Connect
    ) -> None:
        """As MySQL's deadlocks do: the shop's commit must not look as if the order were kept."""
        record(shop, None)

        def undo_everything(_: object, cursor: Any, statement: str, *__: object) -> None:
            if "katalys_outbox" in statement and statement.startswith("INSERT"):
                cursor.connection.rollback()
                raise ArithmeticError("the database has undone the transaction")

        event.listen(engine, "before_cursor_execute", undo_everything)
        with connect(engine) as db:
            db.execute(ORDER)
            outcome = record(shop, db, "1002")
            with pytest.raises(SQLAlchemyError):
                db.commit()
            db.rollback()

        assert outcome is Outcome.LOST
        assert orders(engine) == []


def test_crash_between_order_and_commit(url: str, engine: Engine, shop: Tracker) -> None:
    """A process that dies before the commit has sold nothing, one that dies right after it has sold both."""
    script = """
        import os, sys
        from sqlalchemy import create_engine
        from katalys_wsgi import Tracker
        from tests.support import LINK, SECRET, SITE_ID, make_conversion, make_environ
        from tests.sqlalchemy.shop import ORDER
        url, commits = sys.argv[1:]
        tracker = Tracker(site_id=SITE_ID, secret_key=SECRET, outbox=url, delivery="external")
        with create_engine(url).connect() as db:
            db.execute(ORDER)
            print(tracker.visit(make_environ(LINK)).record(make_conversion(), connection=db).outcome.name, flush=True)
            if commits == "commits":
                db.commit()
            os._exit(9)
    """

    assert run(script, url, "before the commit") == (9, "RECORDED\n")
    assert (orders(engine), recorded(shop)) == ([], False)
    assert run(script, url, "commits") == (9, "RECORDED\n")
    assert (orders(engine), recorded(shop)) == ([1001], True)


def test_an_update_sees_the_conversion_of_its_own_transaction(shop: Tracker, engine: Engine) -> None:
    with engine.connect() as db:
        record(shop, db)
        updated = shop.record_update(OrderUpdate("1001", order_status="paid"), connection=db)
        db.commit()

    assert updated.outcome is Outcome.RECORDED
    assert shop.drain().settled == 2


# --- what cannot be joined ---


def test_an_order_without_a_click_touches_no_connection(shop: Tracker) -> None:
    assert shop.visit(make_environ()).record(make_conversion(), connection=object()).outcome is Outcome.NO_CLICK


UNUSABLE: dict[str, Callable[[Engine], object]] = {
    "an object": lambda _: object(),
    "an address": lambda engine: str(engine.url),
    "the engine": lambda engine: engine,
    "a session's factory": sessionmaker,
    "a driver's connection": lambda _: sqlite3.connect(":memory:"),
    "an asyncio session": lambda _: AsyncSession(),
    "an asyncio connection": lambda _: AsyncConnection.__new__(AsyncConnection),
    "a session without a bind": lambda _: Session(),
}


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("verb", ["add", "history"])
def test_what_is_neither_a_connection_nor_a_session_is_refused(
    shop: Tracker, engine: Engine, make: Callable[[Engine], Any], verb: str
) -> None:
    given = make(engine)
    ask = partial(shop.outbox.add, conversion()) if verb == "add" else partial(shop.outbox.history, "1001")
    with pytest.raises(UnusableConnection, match=r"^connection= .*; pass the connection or session") as raised:
        ask(connection=given)

    assert isinstance(raised.value, TypeError)
    assert not recorded(shop)
    if isinstance(given, sqlite3.Connection):
        given.close()


def test_a_closed_connection_is_refused(shop: Tracker, engine: Engine) -> None:
    with engine.connect() as db:
        pass
    with pytest.raises(UnusableConnection, match="is closed"):
        shop.outbox.add(conversion(), connection=db)

    assert not recorded(shop)


@pytest.mark.parametrize("connect", CONNECTIONS, ids=lambda connect: connect.__name__)
def test_another_database_is_refused(shop: Tracker, url: str, connect: Connect, tmp_path: Path) -> None:
    """A row in there would be called recorded, and no relay would ever see it."""
    with engine_of(f"sqlite:///{tmp_path}/elsewhere.db") as elsewhere:
        Base.metadata.create_all(elsewhere)
        with connect(elsewhere) as db:
            db.execute(ORDER)
            with pytest.raises(UnusableConnection, match="leads to"):
                shop.outbox.add(conversion(), connection=db)
            db.commit()

        assert orders(elsewhere) == [1001]
        assert not inspect(elsewhere).has_table("katalys_outbox")
    assert not recorded(shop)


def test_no_password_is_shown_when_a_connection_is_refused(engine: Engine) -> None:
    other = "mysql" if engine.dialect.name == "postgresql" else "postgresql"
    driver = {"mysql": "pymysql", "postgresql": "psycopg"}[other]
    outbox = SQLAlchemyOutbox(f"{other}+{driver}://shop:hunter2@127.0.0.1:1/shop")
    with engine.connect() as db, pytest.raises(UnusableConnection, match=f"leads to .* is {other}") as raised:
        outbox.add(conversion(), connection=db)

    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("path", ["shop.db", "other/../shop.db", "link.db", "file:shop.db?uri=true"])
def test_a_file_is_the_same_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "link.db").symlink_to("shop.db")
    outbox = SQLAlchemyOutbox(f"sqlite:///{path}")
    with engine_of(f"sqlite:///{tmp_path}/shop.db") as engine, engine.connect() as db:
        assert outbox.add(conversion(), connection=db) is Added.NEW
        db.commit()

    assert outbox.history("1001")
    outbox.close()


def test_a_database_in_memory_can_be_joined() -> None:
    """As the shop's own tests may have it."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    outbox = SQLAlchemyOutbox(engine)
    with engine.connect() as db:
        assert outbox.add(conversion(), connection=db) is Added.NEW
        db.commit()

    assert outbox.history("1001")
    engine.dispose()


# --- the table is made ---


def test_a_process_that_makes_the_table_first_is_no_error(real_time: SQLAlchemyOutbox, engine: Engine) -> None:
    """Both saw that it was missing, and one of them is faster."""
    assert sales_after_failed_creations(real_time, 1) is Added.NEW


def test_a_table_that_cannot_be_made_is_an_error(real_time: SQLAlchemyOutbox, engine: Engine) -> None:
    with pytest.raises(OutboxUnavailable, match="exists"):
        sales_after_failed_creations(real_time, 2)


def sales_after_failed_creations(outbox: SQLAlchemyOutbox, failures: int) -> Added:
    """Add a postback to a new outbox, whose first CREATEs fail as they do when the table is there."""
    failed: list[str] = []

    def fail(_: Connection, __: object, statement: str, parameters: Any, *___: object) -> tuple[str, Any]:
        if "CREATE TABLE" in statement and len(failed) < failures:
            failed.append(statement)
            return "CREATE TABLE orders (id INTEGER)", parameters  # which is there
        return statement, parameters

    event.listen(outbox.engine, "before_cursor_execute", fail, retval=True)
    return outbox.add(conversion())


def test_another_error_while_the_table_is_made_is_not_tried_again(url: str) -> None:
    outbox = SQLAlchemyOutbox("postgresql+psycopg://shop@127.0.0.1:1/shop")
    attempts: list[object] = []
    event.listen(outbox.engine, "do_connect", lambda *_: attempts.append(1))
    with pytest.raises(OutboxUnavailable):
        outbox.claim(1, 60.0)

    assert len(attempts) == 1


@pytest.mark.slow
def test_a_missing_table_that_may_not_be_made_spares_the_order(
    postgres_url: str, make_tracker: Callable[..., Tracker]
) -> None:
    """The shop's role may write its own tables only; the order goes through, and the loss is logged."""
    with engine_of(postgres_url) as owner:
        Base.metadata.create_all(owner)
        with owner.begin() as db:
            db.execute(text("DROP ROLE IF EXISTS clerk"))
            db.execute(text("CREATE ROLE clerk LOGIN"))
            db.execute(text("GRANT SELECT, INSERT ON orders TO clerk"))
        url = postgres_url.replace("shop@", "clerk@")
        tracker = make_tracker(outbox=url)
        with engine_of(url) as clerk, clerk.connect() as db:
            db.execute(ORDER)
            assert record(tracker, db) is Outcome.LOST
            db.commit()
        with owner.begin() as db:
            db.execute(text("DROP OWNED BY clerk"))

        assert orders(owner) == [1001]
        with pytest.raises(OutboxUnavailable, match="permission denied"):
            tracker.outbox.claim(1, 60.0)


# --- errors ---


def test_an_error_says_nothing_about_the_buyer(outbox: SQLAlchemyOutbox, engine: Engine) -> None:
    """SQLAlchemy's own message repeats the statement with its values."""
    outbox.add(conversion())
    with engine.begin() as db:
        db.execute(text("ALTER TABLE katalys_outbox RENAME TO katalys_elsewhere"))

    with pytest.raises(OutboxUnavailable) as raised:
        outbox.add(conversion("1002"))
    assert "ann@example.com" not in str(raised.value)
    with engine.begin() as db:
        db.execute(text("ALTER TABLE katalys_elsewhere RENAME TO katalys_outbox"))
    assert outbox.add(conversion("1002")) is Added.NEW


def test_no_password_is_shown() -> None:
    outbox = SQLAlchemyOutbox("postgresql+psycopg://shop:hunter2@127.0.0.1:1/shop")

    with pytest.raises(OutboxUnavailable) as raised:
        outbox.add(conversion())
    assert "hunter2" not in repr(outbox) + str(raised.value)


@pytest.mark.slow
def test_a_deadlock_that_takes_the_order_with_it_is_seen_at_the_commit(
    mariadb_url: str, make_tracker: Callable[..., Tracker]
) -> None:
    """MySQL undoes the whole transaction then, the order too; the shop's commit must not look as if it had not."""
    tracker = make_tracker(outbox=mariadb_url)
    record(tracker, None, "other")
    with engine_of(mariadb_url) as engine:
        Base.metadata.create_all(engine)
        with engine.begin() as db:
            db.execute(text("INSERT INTO orders (id, email) VALUES (1, 'a'), (2, 'b'), (3, 'c')"))
        with engine.connect() as theirs, engine.connect() as ours:
            for number in (1, 2, 3):  # of two, MySQL undoes the one that has written less
                theirs.execute(text("UPDATE orders SET email = repeat('x', 50) WHERE id = :id"), {"id": number})
            ours.execute(ORDER)
            assert record(tracker, ours, "1001") is Outcome.RECORDED
            update = text("UPDATE orders SET email = 'y' WHERE id = 1001")
            thread = threading.Thread(target=theirs.execute, args=[update])
            thread.start()
            time.sleep(0.5)
            meet_a_lock(ours)
            outcome = record(tracker, ours, "1002")
            thread.join()
            with pytest.raises(SQLAlchemyError):
                ours.commit()
            ours.rollback()
            theirs.rollback()
        assert orders(engine) == [1, 2, 3]

    assert outcome is Outcome.LOST


def meet_a_lock(db: Connection) -> None:
    """Have the next INSERT of the outbox run into the other transaction's lock first, as none of ours does."""

    def update(_: Connection, cursor: Any, statement: str, *__: object) -> None:
        if "katalys_outbox" in statement:
            cursor.execute("UPDATE orders SET email = 'z' WHERE id = 1")

    event.listen(db, "before_cursor_execute", update)
