"""The outbox in the shop's database keeps the promises of every outbox, on PostgreSQL, MariaDB and SQLite.

The suite is outbox_conformance.py; what only a database does follows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import transaction
import zope.sqlalchemy
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from pyramid.config import Configurator
from pyramid.response import Response
from sqlalchemy import Connection, Engine, Integer, MetaData, String, create_engine, event, inspect, select, text
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from webtest import TestApp

from katalys_wsgi import ConfigurationError, OrderUpdate, OutboxUnavailable, Outcome, Tracker
from katalys_wsgi.outbox import Added, Change, Outbox, Receipt, State, Verdict
from katalys_wsgi.outbox import sqlalchemy as sqlalchemy_outbox
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox, outbox_table

from .outbox_conformance import (  # noqa: F401 - the suite
    LEASE,
    TestAdd,
    TestApply,
    TestClaim,
    TestClockJumps,
    TestDeadLetters,
    TestFairness,
    TestForgetting,
    TestOrderSequence,
    TestPruning,
    TestQuestions,
    TestRevival,
    conversion,
    row,
)
from .support import LINK, Clock, make_conversion, make_environ

ROOT = Path(__file__).parent.parent

SERVERS = [pytest.param("postgres", marks=pytest.mark.slow), pytest.param("mariadb", marks=pytest.mark.slow)]


@pytest.fixture(params=["sqlite", *SERVERS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database that nobody has used yet."""
    if request.param == "sqlite":
        return f"sqlite+pysqlite:///{tmp_path}/shop.db"
    address: str = request.getfixturevalue(request.param).url
    clear(address)
    return address


@pytest.fixture
def postgres_url(postgres: Any) -> str:
    clear(postgres.url)
    address: str = postgres.url
    return address


@pytest.fixture
def mariadb_url(mariadb: Any) -> str:
    clear(mariadb.url)
    address: str = mariadb.url
    return address


def clear(address: str) -> None:
    """Take away every table."""
    with engine_of(address) as engine:
        metadata = MetaData()
        metadata.reflect(engine)
        metadata.drop_all(engine)


@contextmanager
def engine_of(address: str, **options: Any) -> Iterator[Engine]:
    engine = create_engine(address, **options)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(open_outbox: Callable[[], Outbox]) -> Outbox:
    return open_outbox()


@pytest.fixture
def open_outbox(url: str, clock: Clock) -> Iterator[Callable[[], Outbox]]:
    """Opens the test's outbox, as another process would; the same rows at each call."""
    opened: list[SQLAlchemyOutbox] = []

    def open_it() -> SQLAlchemyOutbox:
        opened.append(SQLAlchemyOutbox(url, clock=clock))
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


# --- the shop ----------------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Order(Base):
    """The shop's own table."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    email: Mapped[str] = mapped_column(String(50))


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """The shop's own, as a shop makes it: nothing is set but the address."""
    with engine_of(url) as made:
        Base.metadata.create_all(made)
        yield made


@pytest.fixture
def shop(make_tracker: Callable[..., Tracker], url: str) -> Tracker:
    """Its outbox is in the shop's database."""
    return make_tracker(outbox=url)


def record(tracker: Tracker, connection: Any, order_id: str = "1001", **changes: Any) -> Outcome:
    """Somebody who came through the link buys."""
    visit = tracker.visit(make_environ(LINK))
    return visit.record(make_conversion(order_id, **changes), connection=connection).outcome


def orders(engine: Engine) -> list[int]:
    with engine.connect() as db:
        return list(db.scalars(select(Order.id).order_by(Order.id)))


def recorded(tracker: Tracker, order_id: str = "1001") -> bool:
    return bool(tracker.outbox.history(order_id))


@contextmanager
def a_connection(engine: Engine) -> Iterator[tuple[Any, Connection]]:
    with engine.connect() as db:
        yield db, db


@contextmanager
def a_session(engine: Engine) -> Iterator[tuple[Any, Any]]:
    with Session(engine) as session:
        yield session, session


@contextmanager
def a_scoped_session(engine: Engine) -> Iterator[tuple[Any, Any]]:
    session = scoped_session(sessionmaker(engine))
    try:
        yield session, session
    finally:
        session.remove()


CONNECTIONS = [a_connection, a_session, a_scoped_session]
ORDER = text("INSERT INTO orders (id, email) VALUES (1001, 'ann@example.com')")


@pytest.mark.parametrize("connect", CONNECTIONS, ids=lambda connect: connect.__name__)
class TestOneTransaction:
    """The conversion is there if and only if the order is."""

    def test_commit_keeps_both(self, shop, engine, connect, sandbox):
        with connect(engine) as (db, connection):
            db.execute(ORDER)
            assert record(shop, connection) is Outcome.RECORDED
            if engine.dialect.name != "sqlite":  # which would have everybody else wait
                assert shop.drain().settled == 0
            db.commit()

        assert orders(engine) == [1001]
        assert shop.drain().settled == 1
        assert sandbox.collector.accepted[0].fields["order_id"] == "1001"

    @pytest.mark.parametrize("first", ["order", "record"])
    def test_rollback_removes_both(self, shop, engine, connect, first):
        """Also when the record is the transaction's first statement: SQLite's driver does not begin one by itself."""
        with connect(engine) as (db, connection):
            if first == "order":
                db.execute(ORDER)
            assert record(shop, connection) is Outcome.RECORDED
            if first == "record":
                db.execute(ORDER)
            db.rollback()

        assert orders(engine) == []
        assert not recorded(shop)
        with connect(engine) as (db, connection):
            assert record(shop, connection) is Outcome.RECORDED
            db.commit()
        assert recorded(shop)

    def test_a_duplicate_leaves_the_transaction_as_it_was(self, shop, engine, connect):
        assert record(shop, None) is Outcome.RECORDED
        with connect(engine) as (db, connection):
            db.execute(ORDER)
            assert record(shop, connection) is Outcome.DUPLICATE
            assert record(shop, connection, sale_amount="1.00") is Outcome.DUPLICATE
            assert record(shop, connection, "1002") is Outcome.RECORDED
            db.commit()

        assert orders(engine) == [1001]
        assert recorded(shop, "1002")
        assert shop.drain().settled == 2

    def test_a_dead_letter_is_replaced_with_the_order(self, shop, engine, connect):
        assert record(shop, None, sale_amount="wrong") is Outcome.INVALID
        with connect(engine) as (db, connection):
            assert record(shop, connection) is Outcome.RECORDED
            db.rollback()
        assert shop.outbox.history("1001")[0].state == State.DEAD

        with connect(engine) as (db, connection):
            assert record(shop, connection) is Outcome.RECORDED
            db.commit()
        assert shop.drain().settled == 1

    def test_a_fault_of_ours_is_undone_alone(self, shop, engine, connect, monkeypatch):
        """Whatever breaks between our statements."""
        monkeypatch.setattr(sqlalchemy_outbox, "added_again", lambda *_, **__: 1 / 0)
        record(shop, None)
        with connect(engine) as (db, connection):
            db.execute(ORDER)
            assert record(shop, connection) is Outcome.LOST
            db.commit()

        assert orders(engine) == [1001]

    def test_the_first_record_of_all_makes_the_table(self, url, engine, make_tracker, connect, caplog):
        """The relay, which would make it, has nothing to do before."""
        with connect(engine) as (db, connection):
            assert record(make_tracker(outbox=url), connection) is Outcome.RECORDED
            db.execute(ORDER)
            db.commit()

        assert orders(engine) == [1001]


def test_crash_between_order_and_commit(url: str, engine: Engine, shop: Tracker) -> None:
    """A process that dies before the commit has sold nothing, one that dies right after it has sold both."""
    script = """
        import os, sys
        from sqlalchemy import create_engine
        from katalys_wsgi import Tracker
        from tests.support import LINK, SECRET, SITE_ID, make_conversion, make_environ
        from tests.test_outbox_sqlalchemy import ORDER
        url, commits = sys.argv[1:]
        tracker = Tracker(site_id=SITE_ID, secret_key=SECRET, outbox=url, delivery="external")
        with create_engine(url).connect() as db:
            db.execute(ORDER)
            print(tracker.visit(make_environ(LINK)).record(make_conversion(), connection=db).outcome.name, flush=True)
            if commits == "commits":
                db.commit()
            os._exit(9)
    """

    def crash(commits: str) -> tuple[int, str]:
        command = [sys.executable, "-c", textwrap.dedent(script), url, commits]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=50)
        return done.returncode, done.stdout + done.stderr

    assert crash("before the commit") == (9, "RECORDED\n")
    assert (orders(engine), recorded(shop)) == ([], False)
    assert crash("commits") == (9, "RECORDED\n")
    assert (orders(engine), recorded(shop)) == ([1001], True)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("KATALYS_")}


def test_an_update_sees_the_conversion_of_its_own_transaction(shop: Tracker, engine: Engine) -> None:
    with engine.connect() as db:
        record(shop, db)
        updated = shop.record_update(OrderUpdate("1001", order_status="paid"), connection=db)
        db.commit()

    assert updated.outcome is Outcome.RECORDED
    assert shop.drain().settled == 2


def test_an_order_without_a_click_touches_no_connection(shop: Tracker) -> None:
    assert shop.visit(make_environ()).record(make_conversion(), connection=object()).outcome is Outcome.NO_CLICK


@pytest.mark.parametrize("connection", [object(), "postgresql://"], ids=["object", "address"])
def test_what_is_no_connection_is_told(shop: Tracker, connection: object) -> None:
    with pytest.raises(TypeError, match="takes a SQLAlchemy Connection or Session"):
        shop.outbox.add(conversion(), connection=connection)
    assert record(shop, connection) is Outcome.LOST


def test_an_engine_of_the_shop_is_used_as_it_is(engine: Engine, make_tracker: Callable[..., Tracker]) -> None:
    outbox = SQLAlchemyOutbox(engine)
    tracker = make_tracker(outbox=outbox)

    assert record(tracker, None) is Outcome.RECORDED
    assert tracker.drain().settled == 1
    assert outbox._engine.get() is engine


@pytest.mark.slow
def test_a_missing_table_that_may_not_be_made_spares_the_order(
    postgres_url: str, make_tracker: Callable[..., Tracker]
) -> None:
    """The shop's role may write its own tables only; the order goes through, and the loss is told."""
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
            tracker.outbox.statistics()


# --- sessions with a transaction manager ---------------------------------------------------------------------------


MANAGERS = {"of the thread": transaction.manager, "explicit": transaction.TransactionManager(explicit=True)}


@pytest.mark.parametrize("manager", MANAGERS.values(), ids=MANAGERS)
@pytest.mark.parametrize("ends", ["commit", "abort"])
@pytest.mark.parametrize("writes", [False, True], ids=["record alone", "with an order"])
def test_zope_sqlalchemy(shop: Tracker, engine: Engine, manager: Any, ends: str, *, writes: bool) -> None:
    """It commits only sessions that it saw writing; a webhook's record may be all that a request writes."""
    session = Session(engine)
    zope.sqlalchemy.register(session, transaction_manager=manager)
    manager.begin()
    if writes:
        session.add(Order(id=1001, email="ann@example.com"))
    outcome = record(shop, session)
    getattr(manager, ends)()

    assert outcome is Outcome.RECORDED
    assert recorded(shop) == (ends == "commit")
    assert orders(engine) == ([1001] if writes and ends == "commit" else [])


@pytest.mark.parametrize("fails", [False, True], ids=["commits", "aborts"])
def test_pyramid_joins_the_requests_transaction(
    engine: Engine, url: str, options: dict[str, Any], *, fails: bool
) -> None:
    """With pyramid_tm and zope.sqlalchemy, as Pyramid's own cookiecutter sets them up."""
    factory = sessionmaker(engine)

    def session_of(request: Any) -> Session:
        session = factory()
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    def checkout(request: Any) -> Response:
        request.dbsession.add(Order(id=1001, email="ann@example.com"))
        outcome = request.katalys.record(make_conversion(), connection=request.dbsession).outcome
        if fails:
            raise ArithmeticError(outcome.name)
        return Response(outcome.name)

    settings = {f"katalys.{name}": value for name, value in {**options, "outbox": url}.items()}
    with Configurator(settings={**settings, "tm.manager_hook": "pyramid_tm.explicit_manager"}) as config:
        config.include("pyramid_tm")
        config.include("katalys_wsgi.pyramid")
        config.add_request_method(session_of, "dbsession", reify=True)
        config.add_route("checkout", "/checkout")
        config.add_view(checkout, route_name="checkout")
    tracker = config.registry["katalys_tracker"]
    app = TestApp(config.make_wsgi_app())
    if fails:
        with pytest.raises(ArithmeticError, match="RECORDED"):
            app.get(f"/checkout?{LINK}")
    else:
        assert app.get(f"/checkout?{LINK}").text == "RECORDED"

    assert orders(engine) == ([] if fails else [1001])
    assert recorded(tracker) == (not fails)
    tracker.close()


# --- the table ---------------------------------------------------------------------------------------------------


def test_alembic_finds_nothing_to_change(url: str, engine: Engine) -> None:
    """The table that the outbox makes is the one that ``outbox_table`` describes."""
    made = SQLAlchemyOutbox(url)
    made.statistics()
    made.close()
    metadata = MetaData()
    outbox_table(metadata)

    assert differences(engine, metadata) == []


def test_alembics_own_migration_makes_the_same_table(url: str, engine: Engine, shop: Tracker) -> None:
    """What autogenerate writes into a migration is run, and used."""
    metadata = MetaData()
    outbox_table(metadata)
    with engine.begin() as db:
        context = MigrationContext.configure(db, opts={"target_metadata": metadata, "include_object": is_ours})
        script = render_python_code(produce_migrations(context, metadata).upgrade_ops)
    with engine.begin() as db:
        operations = Operations(MigrationContext.configure(db))
        names = {"op": operations, "sa": sqlalchemy, "mysql": mysql}
        exec(f"def upgrade():\n    {script}\nupgrade()", names)  # noqa: S102 - as Alembic does

    assert "katalys" not in script.replace("katalys_outbox", "")  # nothing to import
    assert differences(engine, metadata) == []
    assert record(shop, None) is Outcome.RECORDED
    assert shop.drain().settled == 1


def differences(engine: Engine, metadata: MetaData) -> list[Any]:
    with engine.connect() as db:
        options = {"compare_type": True, "compare_server_default": True, "include_object": is_ours}
        return list(compare_metadata(MigrationContext.configure(db, opts=options), metadata))


def is_ours(_object: object, name: str | None, kind: str, *_: object) -> bool:
    return kind != "table" or name == "katalys_outbox"


def test_many_processes_make_the_table_at_once(url: str) -> None:
    script = """
        import sys
        from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox
        from tests.outbox_conformance import conversion
        outbox = SQLAlchemyOutbox(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()
        print(outbox.add(conversion(sys.argv[2])).name)
    """
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), url, str(number)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for child in children:
        assert child.stdout
        child.stdout.readline()
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    printed = [child.communicate(timeout=50) for child in children]

    assert printed == [("NEW\n", "")] * 4
    with engine_of(url) as engine:
        indexes = {index["name"] for index in inspect(engine).get_indexes("katalys_outbox")}
    assert {"katalys_outbox_due", "katalys_outbox_order", "katalys_outbox_finished"} <= indexes


# --- the database ------------------------------------------------------------------------------------------------


def test_the_databases_clock_decides(url: str) -> None:
    """Hosts disagree about the time; it is in UTC whatever the session's time zone."""
    outbox = SQLAlchemyOutbox(url)
    before = time.time()
    outbox.add(conversion())
    created_at = row(outbox).created_at
    (entry,) = outbox.claim(1, LEASE)
    after = time.time()

    assert before - 1 <= created_at <= after + 1
    assert before + LEASE - 1 <= (entry.leased_until or 0) <= after + LEASE + 1
    outbox.close()


@pytest.mark.slow
def test_no_time_zone_moves_mariadbs_clock(mariadb_url: str) -> None:
    with engine_of(mariadb_url) as engine:

        @event.listens_for(engine, "connect")
        def _(driver: Any, _: object) -> None:
            with driver.cursor() as cursor:
                cursor.execute("SET time_zone = '+05:30'")

        outbox = SQLAlchemyOutbox(engine)
        outbox.add(conversion())
        assert abs(row(outbox).created_at - time.time()) < 2


@pytest.mark.parametrize("uses", ["address", "engine"])
def test_a_fork_shares_nothing_with_its_parent(url: str, uses: str) -> None:
    """Servers fork after the shop was loaded, and maybe used."""
    script = """
        import os, sys
        from sqlalchemy import create_engine
        from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox
        from tests.outbox_conformance import conversion
        url, uses = sys.argv[1:]
        outbox = SQLAlchemyOutbox(url if uses == "address" else create_engine(url))
        outbox.add(conversion("before"))
        children = []
        for number in range(3):
            child = os.fork()
            if not child:
                for count in range(20):
                    outbox.add(conversion(f"{number}-{count}"))
                outbox.close()
                sys.exit(0)  # with everything that an interpreter does when it ends
            children.append(child)
        for count in range(20):
            outbox.add(conversion(f"parent-{count}"))
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        outbox.add(conversion("after"))
        outbox.close()
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), url, uses]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=50)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    outbox = SQLAlchemyOutbox(url)
    assert outbox.statistics().pending == 82
    outbox.close()


SESSIONS = {
    "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
    "mysql": "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND user = 'root'",
}


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgres", "mariadb"])
def test_a_connection_that_died_in_the_pool_is_replaced(request: pytest.FixtureRequest, database: str) -> None:
    """A restart of the database between two sales costs none."""
    url = request.getfixturevalue(f"{database}_url")
    outbox = SQLAlchemyOutbox(url)
    outbox.add(conversion("1001"))
    with engine_of(url, isolation_level="AUTOCOMMIT") as admin, admin.connect() as db:
        for (number,) in list(db.execute(text(SESSIONS[db.dialect.name]))):
            if db.dialect.name == "mysql":
                db.execute(text(f"KILL {number}"))
    time.sleep(0.2)

    assert outbox.add(conversion("1002")) is Added.NEW
    outbox.close()


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgres", "mariadb"])
def test_a_page_waits_two_seconds_for_a_lock(request: pytest.FixtureRequest, database: str) -> None:
    url = request.getfixturevalue(f"{database}_url")
    outbox = SQLAlchemyOutbox(url)
    outbox.statistics()
    with engine_of(url) as engine, engine.connect() as other:
        outbox.add(conversion(), connection=other)
        started = time.monotonic()
        with pytest.raises(OutboxUnavailable):
            outbox.add(conversion())
        took = time.monotonic() - started
        other.rollback()

    assert 1.8 < took < 3.5
    assert outbox.add(conversion()) is Added.NEW
    outbox.close()


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgres", "mariadb"])
def test_a_host_that_is_suspended_in_a_transaction_holds_up_nobody(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    """The database ends the transaction; the host finds that out when it goes on."""
    monkeypatch.setattr(sqlalchemy_outbox, "PATIENCE_IN_RELAY", 1.0)
    monkeypatch.setitem(sqlalchemy_outbox._MYSQL_CLIENT, "init_command", "SET wait_timeout = 1")
    url = request.getfixturevalue(f"{database}_url")
    suspended, other = SQLAlchemyOutbox(url), SQLAlchemyOutbox(url)
    other.add(conversion())
    claimed, goes_on, faults = threading.Event(), threading.Event(), []

    def before_commit(_: Any) -> None:
        claimed.set()
        goes_on.wait(20)

    def claim() -> None:
        try:
            suspended.claim(10, LEASE)
        except OutboxUnavailable as fault:
            faults.append(fault)

    event.listen(suspended._engine.get(), "commit", before_commit, once=True)
    suspended._is_set_up = True
    monkeypatch.setattr(sqlalchemy_outbox._Watch, "_hang_up", lambda _: None)  # its threads are suspended too
    thread = threading.Thread(target=claim)
    thread.start()
    assert claimed.wait(20)
    assert other.claim(10, LEASE) == []
    give_up_at = time.monotonic() + 20
    while not (entries := other.claim(10, LEASE)) and time.monotonic() < give_up_at:
        time.sleep(0.2)
    goes_on.set()
    thread.join()

    assert [entry.attempts for entry in entries] == [1]
    assert len(faults) == 1
    suspended.close()
    other.close()


MEETS_A_LOCK = "UPDATE orders SET email = 'z' WHERE id = 1"


@pytest.mark.slow
def test_a_deadlock_that_takes_the_order_with_it_is_seen_at_the_commit(
    mariadb_url: str, make_tracker: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
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
            tracker.outbox.add(conversion("1001"), connection=ours)
            thread = threading.Thread(
                target=lambda: theirs.execute(text("UPDATE orders SET email = 'y' WHERE id = 1001"))
            )
            thread.start()
            time.sleep(0.5)
            with monkeypatch.context() as patch:  # a statement that meets the other's lock, as none of ours does
                patch.setattr(SQLAlchemyOutbox, "_insert", lambda _, db: db.execute(text(MEETS_A_LOCK)))
                outcome = record(tracker, ours, "1002")
            thread.join()
            with pytest.raises(SQLAlchemyError):
                ours.commit()
            ours.rollback()
            theirs.rollback()
        assert orders(engine) == [1, 2, 3]

    assert outcome is Outcome.LOST


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("nosuch://host/shop", "NoSuchModuleError"),
        ("postgresql+nosuch://host/shop", "NoSuchModuleError"),
        ("mysql+mysqldb://u:hunter2@host/shop", "No module named 'MySQLdb'"),
        ("postgresql+psycopg://u:hunter2@host:hunter2/shop", "ValueError"),
        ("sqlite+aiosqlite:///shop.db", "aiosqlite"),
    ],
)
def test_an_address_that_cannot_work_is_told_at_start_up(
    make_tracker: Callable[..., Tracker], address: str, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told) as raised:
        make_tracker(outbox=address)
    assert "hunter2" not in str(raised.value)


def test_no_password_is_shown(url: str) -> None:
    outbox = SQLAlchemyOutbox("postgresql+psycopg://shop:hunter2@127.0.0.1:1/shop")

    with pytest.raises(OutboxUnavailable) as raised:
        outbox.add(conversion())
    assert "hunter2" not in repr(outbox) + str(raised.value)


def test_a_fault_tells_nothing_about_the_buyer(outbox: Outbox, engine: Engine) -> None:
    """SQLAlchemy's own text repeats the statement with its values."""
    outbox.add(conversion())
    with engine.begin() as db:
        db.execute(text("ALTER TABLE katalys_outbox RENAME TO katalys_elsewhere"))

    with pytest.raises(OutboxUnavailable) as raised:
        outbox.add(conversion("1002"))
    assert "ann@example.com" not in str(raised.value)
    with engine.begin() as db:
        db.execute(text("ALTER TABLE katalys_elsewhere RENAME TO katalys_outbox"))
    assert outbox.add(conversion("1002")) is Added.NEW


def test_odd_texts_are_kept(outbox: Outbox) -> None:
    """PostgreSQL takes no NUL; an order id of any length may come as an invalid order."""
    long = conversion("x" * 1000)
    assert outbox.add(long, problems=["order_id: is too long"]) is Added.NEW
    assert outbox.add(conversion("a\0b"), problems=["order_id: holds control characters"]) is Added.NEW
    outbox.add(conversion())
    entry = outbox.claim(1, LEASE)[0]
    outbox.apply([Change.postpone(entry, Receipt(Verdict.RETRY, 500, "HTTP 500: a\0b 😀"), 5.0)])
    assert "HTTP 500" in (row(outbox).last_error or "")
