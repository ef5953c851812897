"""The circuit breaker: whether Katalys' endpoint may be asked now, and by how many workers at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..outbox.entry import LONGEST_DELAY, Receipt, Verdict
from .policy import back_off

__all__ = ["FAILURES_BEFORE_PROBING", "CircuitBreaker"]

#: After so many failures in a row that could be the endpoint's, one row at a time finds out when it works again.
FAILURES_BEFORE_PROBING = 5


class CircuitBreaker:
    """What the last answers say of the endpoint; safe to share between threads.

    Closed, any number of rows may be sent. Open, none until a pause ends. Then one row at a time is a probe: its
    success closes the breaker, its failure opens it for a longer pause.
    https://martinfowler.com/bliki/CircuitBreaker.html

    :param clock: seconds since 1970.
    :param chance: random numbers below 1, for the jitter of the pauses.
    """

    def __init__(self, clock: Callable[[], float], chance: Callable[[], float]) -> None:
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._failures = 0
        self._pauses = 0
        self._paused_until = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether any number of rows may be sent."""
        return not self._pauses

    @property
    def is_open(self) -> bool:
        """Whether nothing may be sent now. A pause longer than any we make is a clock that was set back."""
        return 0 < self._paused_until - self._clock() <= LONGEST_DELAY

    def limit(self, capacity: int) -> int:
        """How many rows may be in progress now: none, one, or ``capacity``."""
        if self.is_open:
            return 0
        return capacity if self.is_closed else 1

    def note(self, receipt: Receipt) -> bool:
        """Learn from an attempt.

        :returns: whether that opened the closed breaker, or closed it again.
        """
        with self._lock:
            was_closed = self.is_closed
            if receipt.verdict in (Verdict.RETRY, Verdict.MISCONFIGURED):
                self._failed(receipt)
            elif receipt.status is not None:
                self._failures = self._pauses = 0
                self._paused_until = 0.0
            return was_closed != self.is_closed

    def _failed(self, receipt: Receipt) -> None:
        self._failures += 1
        serious = receipt.verdict is Verdict.MISCONFIGURED or self._failures >= FAILURES_BEFORE_PROBING
        if serious and not self.is_open:  # rows that were under way when a pause began do not lengthen it
            self._pauses += 1
            wait = back_off(self._pauses, 0.5 + self._chance() / 2)
            self._paused_until = self._clock() + max(wait, receipt.retry_after or 0.0)
