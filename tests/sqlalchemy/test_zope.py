"""katalys_wsgi/outbox/sqlalchemy/zope.py: sessions that zope.sqlalchemy manages, alone and in Pyramid.

These fail when zope.sqlalchemy or ``transaction`` stop doing what the module relies on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import transaction
import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.response import Response
from sqlalchemy import Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from webtest import TestApp

from katalys_wsgi import Tracker
from katalys_wsgi.errors import UnusableConnection
from katalys_wsgi.outbox import Added
from katalys_wsgi.outbox.sqlalchemy.zope import mark_changed

from ..outbox_conformance import conversion
from ..support import LINK, make_conversion
from .shop import ORDER, Order, orders, record, recorded, run

OF_THE_THREAD = transaction.manager
MANAGERS = {"of the thread": OF_THE_THREAD, "explicit": transaction.TransactionManager(explicit=True)}


@pytest.fixture(autouse=True)
def no_transaction_is_left() -> Iterator[None]:
    yield
    OF_THE_THREAD.abort()


@pytest.mark.parametrize("manager", MANAGERS.values(), ids=MANAGERS)
@pytest.mark.parametrize("ends", ["commit", "abort"])
@pytest.mark.parametrize("writes", [False, True], ids=["record alone", "with an order"])
@pytest.mark.parametrize("keep_session", [False, True], ids=["closed after it", "kept"])
def test_the_record_ends_as_the_transaction_does(
    shop: Tracker, engine: Engine, manager: Any, ends: str, *, writes: bool, keep_session: bool
) -> None:
    """It commits only sessions that it saw writing; a webhook's record may be all that a request writes."""
    session = Session(engine)
    zope.sqlalchemy.register(session, transaction_manager=manager, keep_session=keep_session)
    manager.begin()
    if writes:
        session.add(Order(id=1001, email="ann@example.com"))
    outcome = record(shop, session)
    getattr(manager, ends)()
    session.close()

    assert outcome.name == "RECORDED"
    assert recorded(shop) == (ends == "commit")
    assert orders(engine) == ([1001] if writes and ends == "commit" else [])


def test_a_session_is_used_for_one_transaction_after_the_other(shop: Tracker, engine: Engine) -> None:
    session = scoped_session(sessionmaker(engine))
    zope.sqlalchemy.register(session)
    for order_id in ("1001", "1002"):
        record(shop, session, order_id)
        transaction.commit()
    record(shop, session, "1003")
    transaction.abort()

    assert [recorded(shop, order_id) for order_id in ("1001", "1002", "1003")] == [True, True, False]


@pytest.mark.parametrize("manager", [None, *MANAGERS.values()], ids=["none", *MANAGERS])
def test_a_plain_session_joins_no_transaction_manager(shop: Tracker, engine: Engine, manager: Any) -> None:
    """Its own commit decides, also in a process where other sessions are managed."""
    if manager:
        manager.begin()
    with Session(engine) as session:
        session.execute(ORDER)
        assert record(shop, session).name == "RECORDED"
        if manager:
            manager.commit()
        assert session.in_transaction()
        session.rollback()

        assert (orders(engine), recorded(shop)) == ([], False)
        record(shop, session)
        session.commit()
    assert recorded(shop)


def test_a_read_only_session_is_refused(shop: Tracker, engine: Engine) -> None:
    """It would never be committed."""
    session = Session(engine)
    zope.sqlalchemy.register(session, initial_state=zope.sqlalchemy.datamanager.STATUS_READONLY)
    with pytest.raises(UnusableConnection, match="read-only"):
        shop.outbox.add(conversion(), connection=session)
    transaction.abort()

    assert not recorded(shop)


def test_without_zope_sqlalchemy_in_the_process_a_session_is_plain(
    shop: Tracker, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "zope.sqlalchemy")
    with Session(engine) as session:
        assert shop.outbox.add(conversion(), connection=session) is Added.NEW
        mark_changed(session)
        session.commit()

    assert recorded(shop)


def test_a_shop_without_zope_sqlalchemy_does_not_load_it(url: str) -> None:
    script = """
        import json, sys
        from sqlalchemy import create_engine
        from sqlalchemy.orm import Session
        from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox
        from tests.outbox_conformance import conversion
        engine = create_engine(sys.argv[1])
        with Session(engine) as session:
            SQLAlchemyOutbox(sys.argv[1]).add(conversion(), connection=session)
            session.commit()
        print(json.dumps([name for name in sys.modules if name.split(".")[0] in ("zope", "transaction")]))
    """
    code, printed = run(script, url, options=("-W", "ignore"))

    assert (code, json.loads(printed)) == (0, [])


@pytest.mark.parametrize("fails", [False, True], ids=["commits", "aborts"])
@pytest.mark.parametrize("writes", [False, True], ids=["record alone", "with an order"])
def test_pyramid_joins_the_requests_transaction(
    engine: Engine, url: str, options: dict[str, Any], *, fails: bool, writes: bool
) -> None:
    """With pyramid_tm and zope.sqlalchemy, as Pyramid's own cookiecutter sets them up."""
    factory = sessionmaker(engine)

    def session_of(request: Any) -> Session:
        session = factory()
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    def checkout(request: Any) -> Response:
        if writes:
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

    assert orders(engine) == ([1001] if writes and not fails else [])
    assert recorded(tracker) == (not fails)
    tracker.close()
