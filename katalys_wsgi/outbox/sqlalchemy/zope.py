"""A session that zope.sqlalchemy manages: has it commit what the outbox wrote beside the ORM.

zope.sqlalchemy commits only the sessions in which it saw the ORM write, or which were passed to its ``mark_changed``.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from sqlalchemy.orm import Session

from ...errors import UnusableConnection

__all__ = ["mark_changed"]


def mark_changed(session: Session) -> None:
    """Have zope.sqlalchemy commit ``session``, which has a connection, if it manages it; else do nothing.

    A session that is managed has joined its transaction manager when its connection began, and ``mark_changed`` then
    asks for no manager, so it need not be known which one that is (pyramid_tm's is the request's). Any other session
    would join the manager that is passed: an explicit one without a transaction, which refuses.

    :raises UnusableConnection: the session is registered as read-only.
    """
    zope = sys.modules.get("zope.sqlalchemy")  # not imported: a process that has not loaded it has no such session
    if zope is None:
        return
    from transaction import TransactionManager
    from transaction.interfaces import NoTransaction

    # https://transaction.readthedocs.io/en/latest/api.html: get() of an explicit manager raises before begin().
    nowhere = TransactionManager(explicit=True)
    try:
        with suppress(NoTransaction):
            zope.mark_changed(session, transaction_manager=nowhere)
    except AssertionError:
        raise UnusableConnection(
            "connection= is a session that zope.sqlalchemy has registered as read-only, so nothing in it is "
            "committed; pass the session that the order is written with."
        ) from None
