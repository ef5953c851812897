"""Fixtures for the tests of the outbox in the shop's database: on SQLite, and on real servers in the slow run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from katalys_wsgi import Tracker
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox

from ..servers import MariaDB, Postgres
from ..support import Clock
from .shop import Base, clear, engine_of

SERVERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("postgres", "mariadb")]


@pytest.fixture(params=["sqlite", *SERVERS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=SERVERS)
def server_url(request: pytest.FixtureRequest) -> str:
    """The address of an empty database on a server."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    clear(postgres.url)
    return postgres.url


@pytest.fixture
def mariadb_url(mariadb: MariaDB) -> str:
    clear(mariadb.url)
    return mariadb.url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """The shop's own, beside which its tables are there."""
    with engine_of(url) as made:
        Base.metadata.create_all(made)
        yield made


@pytest.fixture
def shop(make_tracker: Callable[..., Tracker], url: str) -> Tracker:
    """Its outbox is in the shop's database."""
    return make_tracker(outbox=url)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_outbox(url: str, clock: Clock) -> Iterator[Callable[[], SQLAlchemyOutbox]]:
    """Opens the test's outbox, as another process would; the same rows at each call."""
    opened: list[SQLAlchemyOutbox] = []

    def open_it() -> SQLAlchemyOutbox:
        opened.append(SQLAlchemyOutbox(url, clock=clock))
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


@pytest.fixture
def outbox(open_outbox: Callable[[], SQLAlchemyOutbox]) -> SQLAlchemyOutbox:
    return open_outbox()


@pytest.fixture
def real_time(url: str) -> Iterator[SQLAlchemyOutbox]:
    """The test's outbox by the database's own clock."""
    outbox = SQLAlchemyOutbox(url)
    yield outbox
    outbox.close()
