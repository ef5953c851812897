"""katalys_wsgi/outbox/sqlalchemy/table.py: the table, also as Alembic sees it, and what databases do differently."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, MetaData, event, inspect, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect

from katalys_wsgi import Outcome, Tracker
from katalys_wsgi.conversion.checks import LONGEST_IDENTIFIER
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox, outbox_table
from katalys_wsgi.outbox.sqlalchemy.table import LONGEST_KEY, Now, insert_if_new

from ..outbox_conformance import conversion, row, update
from .shop import ROOT, engine_of, environment, record

DIALECTS: dict[str, Dialect] = {
    "postgresql": postgresql.dialect(),  # type: ignore[no-untyped-call]
    "mysql": mysql.dialect(),
    "sqlite": sqlite.dialect(),
}


def test_alembic_finds_nothing_to_change(real_time: SQLAlchemyOutbox, engine: Engine) -> None:
    """The table that the outbox makes is the one that ``outbox_table`` describes."""
    real_time.claim(1, 1.0)
    metadata = MetaData()
    outbox_table(metadata)

    assert differences(engine, metadata) == []


def test_alembics_own_migration_makes_the_same_table(engine: Engine, shop: Tracker) -> None:
    """What autogenerate writes into a migration is run, and used."""
    metadata = MetaData()
    outbox_table(metadata)
    with engine.begin() as db:
        context = MigrationContext.configure(db, opts={"target_metadata": metadata, "include_object": is_ours})
        operations = produce_migrations(context, metadata).upgrade_ops
        assert operations
        script = render_python_code(operations)
    with engine.begin() as db:
        names = {"op": Operations(MigrationContext.configure(db)), "sa": sqlalchemy, "mysql": mysql}
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


def test_the_longest_ids_fit() -> None:
    """What is not cut off anywhere: a key that were would be another order's."""
    columns = outbox_table(MetaData()).c
    assert columns.order_id.type.length == LONGEST_IDENTIFIER  # type: ignore[attr-defined]
    assert columns.key.type.length == LONGEST_KEY  # type: ignore[attr-defined]

    for postback in (conversion("x" * LONGEST_IDENTIFIER), conversion("x" * 5000), update("x" * LONGEST_IDENTIFIER)):
        rest = len(postback.key) - LONGEST_IDENTIFIER
        assert rest <= LONGEST_KEY - LONGEST_IDENTIFIER  # with this site id
        assert LONGEST_KEY - rest >= 2 * LONGEST_IDENTIFIER  # and with one as long as an order's


def test_the_clock_is_the_databases(engine: Engine) -> None:
    with engine.connect() as db:
        assert abs((db.scalar(select(Now())) or 0.0) - time.time()) < 1


@pytest.mark.parametrize("name", DIALECTS)
def test_no_clock_stands_still_in_the_shops_transaction_or_follows_a_time_zone(name: str) -> None:
    statement = str(select(Now()).compile(dialect=DIALECTS[name]))

    assert {
        "postgresql": "extract(epoch FROM clock_timestamp())",
        "mysql": "utc_timestamp(6)",
        "sqlite": "julianday('now')",
    }[name] in statement


@pytest.mark.parametrize("name", DIALECTS)
def test_a_key_that_is_there_is_no_error(name: str) -> None:
    """In PostgreSQL an error would end the shop's transaction."""
    dialect = DIALECTS[name]
    statement = str(insert_if_new(outbox_table(MetaData()), dialect).compile(dialect=dialect))

    assert ("INSERT IGNORE" if name == "mysql" else "ON CONFLICT (key) DO NOTHING") in statement.replace('"', "")


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
