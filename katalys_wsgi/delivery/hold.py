"""The hold: whether postbacks may leave this machine, or wait in the outbox because this is not a live shop."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..checks import is_on_this_machine
from ..settings import Settings

__all__ = ["HOW_TO_SEND", "Hold", "Reason"]

#: What an operator does about it.
HOW_TO_SEND = "to send them set live=true (KATALYS_LIVE)"

#: Says why postbacks stay, such as "Flask's TESTING"; None when they may leave.
Reason = Callable[[], str | None]


class Hold:
    """Says why postbacks stay on this machine; called whenever something is to be sent.

    There is no test flag at Katalys: a test order that is sent there is an order. So by default nothing is sent under
    a framework's debug mode or testing, or while pytest runs a test. The setting ``live`` decides otherwise; an
    endpoint on this machine is always served.

    :param settings: endpoint and live are read from here.
    """

    def __init__(self, settings: Settings) -> None:
        self._is_local = is_on_this_machine(settings.endpoint)
        self._live = settings.live
        self._reasons: list[Reason] = [_pytest]

    def add(self, reason: Reason) -> None:
        """Have the hold ask ``reason`` too."""
        self._reasons.insert(0, reason)

    def __call__(self) -> str | None:
        """Why postbacks stay for now; None when they leave."""
        if self._is_local:
            return None
        if self._live == "auto":
            return next(filter(None, (reason() for reason in self._reasons)), None)
        return None if self._live else "live is false"


def _pytest() -> str | None:
    # Set by pytest while a test runs: https://docs.pytest.org/en/stable/reference/reference.html#environment-variables
    return "pytest runs a test" if "PYTEST_CURRENT_TEST" in os.environ else None
