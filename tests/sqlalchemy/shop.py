"""A shop with a database of its own, for the tests of the outbox in it: its orders, its sales, its connections."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Integer, MetaData, String, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from katalys_wsgi import Outcome, Tracker

from ..support import LINK, history_of, make_conversion, make_environ

ROOT = Path(__file__).parents[2]


class Base(DeclarativeBase):
    pass


class Order(Base):
    """The shop's own table."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    email: Mapped[str] = mapped_column(String(50))


#: Writes order 1001 without the ORM.
ORDER = text("INSERT INTO orders (id, email) VALUES (1001, 'ann@example.com')")


@contextmanager
def engine_of(address: str, **options: Any) -> Iterator[Engine]:
    """An engine of the shop's, as a shop makes it: nothing is set but the address, and ``options``."""
    engine = create_engine(address, **options)
    try:
        yield engine
    finally:
        engine.dispose()


def clear(address: str) -> None:
    """Drop every table."""
    with engine_of(address) as engine:
        metadata = MetaData()
        metadata.reflect(engine)
        metadata.drop_all(engine)


def record(tracker: Tracker, connection: object, order_id: str = "1001", **changes: Any) -> Outcome:
    """A shopper who came through the link buys."""
    visit = tracker.visit(make_environ(LINK))
    return visit.record(make_conversion(order_id, **changes), connection=connection).outcome


def orders(engine: Engine) -> list[int]:
    """The ids of the orders that were committed."""
    with engine.connect() as db:
        return list(db.scalars(select(Order.id).order_by(Order.id)))


def recorded(tracker: Tracker, order_id: str = "1001") -> bool:
    """Whether the outbox has the order's conversion."""
    return bool(history_of(tracker.outbox, order_id))


#: Opens what a shop may pass as ``connection=``.
Connect = Callable[[Engine], AbstractContextManager[Any]]


@contextmanager
def a_connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as db:
        yield db


@contextmanager
def a_session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@contextmanager
def a_scoped_session(engine: Engine) -> Iterator[scoped_session[Session]]:
    session = scoped_session(sessionmaker(engine))
    try:
        yield session
    finally:
        session.remove()


def environment() -> dict[str, str]:
    """The environment of another process of the shop, in which nothing is a setting."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KATALYS_")}


def run(script: str, *arguments: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
    """The exit code and the output of a Python script in a process of its own."""
    command = [sys.executable, *options, "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=50)
    return done.returncode, done.stdout + done.stderr
