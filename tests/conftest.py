"""Fixtures of all tests: a sandbox that plays Katalys, and trackers that deliver to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import Tracker
from katalys_wsgi.sandbox import Sandbox

from .support import SECRET, SITE_ID

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


@pytest.fixture
def missing() -> Callable[[str], None]:
    """Called with the reason when a test cannot run on this machine."""
    return pytest.fail if TEST_ALL else pytest.skip  # type: ignore[return-value]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Katalys, on a loopback port."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def options(sandbox: Sandbox, tmp_path: Path) -> dict[str, Any]:
    """Settings of a tracker that delivers to the sandbox, when told to: ``tracker.drain()``."""
    return {
        "site_id": SITE_ID,
        "secret_key": SECRET,
        "endpoint": sandbox.endpoint,
        "outbox": f"sqlite:///{tmp_path}/outbox.db",
        "delivery": "external",
    }


@pytest.fixture
def make_tracker(options: dict[str, Any]) -> Iterator[Callable[..., Tracker]]:
    """Makes trackers with ``options`` and what is given beside them; closes them after the test."""
    made: list[Tracker] = []

    def make(**changes: Any) -> Tracker:
        made.append(Tracker(**{**options, **changes}))
        return made[-1]

    yield make
    for tracker in made:
        tracker.close()


@pytest.fixture
def tracker(make_tracker: Callable[..., Tracker]) -> Tracker:
    """A tracker that delivers to the sandbox, when told to."""
    return make_tracker()
