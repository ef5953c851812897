"""Fixtures of all tests: a sandbox that plays Katalys, and trackers that deliver to it."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import Event, Settings, Tracker
from katalys_wsgi.delivery.sender import Sender
from katalys_wsgi.sandbox import Sandbox

from .peer import Answer, MakePeer, Peer
from .servers import MariaDB, NotInstalled, Postgres, Redis
from .support import SECRET, SITE_ID, MakeTracker

pytest.register_assert_rewrite("tests.outbox_conformance")

#: Under .ci/run a test whose server or program is missing fails instead of being skipped. Taken out of the
#: environment, where every KATALYS_ name is a setting.
TEST_ALL = os.environ.pop("KATALYS_TEST_ALL", "") == "1"


@pytest.fixture(autouse=True, scope="session")
def loopback_only() -> Iterator[None]:
    """A test that would leave this machine fails instead; Katalys' real endpoint above all."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "local socket"
        assert host in ("127.0.0.1", "::1", "localhost", "local socket"), f"a test tried to reach {host}"
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


_missing: Callable[[str], Any] = pytest.fail if TEST_ALL else pytest.skip


@pytest.fixture
def missing() -> Callable[[str], Any]:
    """Called with the reason when a test cannot run on this machine."""
    return _missing


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Katalys, on a loopback port."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def peer() -> Iterator[MakePeer]:
    """Makes servers of raw bytes; closes them after the test."""
    made: list[Peer] = []

    def make(*answers: Answer, tls: ssl.SSLContext | None = None) -> Peer:
        made.append(Peer(answers, tls))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def make_sender() -> Iterator[Callable[..., Sender]]:
    """Makes a sender for an endpoint, or for the port of a peer; closes it after the test."""
    made: list[Sender] = []

    def make(endpoint: str | int, **options: Any) -> Sender:
        address = endpoint if isinstance(endpoint, str) else f"http://127.0.0.1:{endpoint}/v2/_tr_offline"
        made.append(Sender(Settings(site_id=SITE_ID, secret_key=SECRET, endpoint=address, **options)))
        return made[-1]

    yield make
    for sender in made:
        sender.close()


@pytest.fixture
def options(sandbox: Sandbox, tmp_path: Path) -> dict[str, Any]:
    """Settings of a tracker that delivers to the sandbox, when told to: ``tracker.drain()``."""
    return {
        "site_id": SITE_ID,
        "secret_key": SECRET,
        "endpoint": sandbox.endpoint,
        "outbox": f"{tmp_path}/outbox.db",
        "delivery": "external",
    }


@pytest.fixture
def make_tracker(options: dict[str, Any]) -> Iterator[MakeTracker]:
    """Makes trackers with ``options`` and what is given beside them; closes them after the test."""
    made: list[Tracker] = []

    def make(**changes: Any) -> Tracker:
        made.append(Tracker(**{**options, **changes}))
        return made[-1]

    yield make
    for tracker in made:
        tracker.close()


@pytest.fixture
def tracker(make_tracker: MakeTracker) -> Tracker:
    """A tracker that delivers to the sandbox, when told to."""
    return make_tracker()


@pytest.fixture
def events() -> list[Event]:
    """The events of the trackers that ``make_observed`` made, oldest first."""
    return []


@pytest.fixture
def make_observed(make_tracker: MakeTracker, events: list[Event]) -> MakeTracker:
    """Makes trackers as ``make_tracker`` does, whose events are kept in ``events``."""
    return lambda **changes: make_tracker(hooks=[events.append], **changes)


def _serving(make: Callable[[Path], Any]) -> Iterator[Any]:
    # Not a folder of pytest's: those are for their owner only, and the servers are users of their own.
    with tempfile.TemporaryDirectory(prefix="katalys-", ignore_cleanup_errors=True) as folder:
        try:
            server = make(Path(folder))
        except NotInstalled as fault:
            _missing(str(fault))
        yield server
        server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; skipped, or failed under .ci/run, where none is installed."""
    yield from _serving(Postgres)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A MariaDB server."""
    yield from _serving(MariaDB)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis server."""
    yield from _serving(Redis)
