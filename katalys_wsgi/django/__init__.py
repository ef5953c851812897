"""The Django application: two lines in the settings, then ``request.katalys.record(Conversion(...))`` in the view.

::

    INSTALLED_APPS = [..., "katalys_wsgi.django"]
    MIDDLEWARE = ["katalys_wsgi.django.KatalysMiddleware", ...]  # first: it sees every answer
    KATALYS_SITE_ID = "KA-1A2B3C4"

**Settings** are ``KATALYS_SITE_ID`` and so on of Django's settings, then those of the environment; without a
``KATALYS_SECRET_KEY``, Django's ``SECRET_KEY`` and ``SECRET_KEY_FALLBACKS`` are used. They are read when the first
request or command needs them: ``manage.py check`` and ``migrate`` work without, and the former reports what is missing.
``KATALYS_HOOKS`` lists functions, or their dotted paths, that are called with each :class:`~katalys_wsgi.Event`.

**request.katalys** is the request's :class:`~katalys_wsgi.Visit`, one object during the request;
:func:`get_tracker` is the :class:`~katalys_wsgi.Tracker` for everything else.

**Transactions.** Inside ``atomic()`` (and with ``ATOMIC_REQUESTS``), ``record()`` and ``record_update()`` answer
``Outcome.DEFERRED`` and write right after the commit, by ``transaction.on_commit()``; nothing is written if the
transaction is rolled back. Outside they write at once. In a ``TestCase``, whose transaction never commits, use
``captureOnCommitCallbacks(execute=True)``, as for every such function. For another database than the default:
``get_tracker().visit(request, defer=functools.partial(transaction.on_commit, using="orders"))``.

**Development.** Under ``DEBUG`` and Django's test runner a visit is strict, unless ``KATALYS_STRICT`` says otherwise,
and postbacks wait in the outbox, unless ``KATALYS_LIVE`` says otherwise. Under the test runner the default outbox is
in memory.

``manage.py katalys status`` and so on is the command line; ``{% load katalys %}{% katalys_script_tag %}`` is Katalys'
JavaScript for every page of an ``offline_conv`` shop.
"""

from __future__ import annotations

from .middleware import KatalysMiddleware
from .shop import get_tracker

__all__ = ["KatalysMiddleware", "get_tracker"]
