"""The worker pool of a drain: a few threads that make attempts at the same time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable

from ..outbox import Entry, Receipt, Verdict

__all__ = ["WorkerPool"]


class WorkerPool:
    """A context manager: within it up to ``size`` daemon threads make attempts; afterwards they end by themselves.

    Not an executor: leaving the interpreter would wait for its threads, and with them for Katalys.

    :param attempt: makes one attempt for a row; returns None when none was started.
    :param size: how many threads there are at most.
    :ivar in_progress: how many rows were taken on and not collected yet.
    """

    def __init__(self, attempt: Callable[[Entry], Receipt | None], size: int) -> None:
        self._attempt = attempt
        self._size = size
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Entry, Receipt | None]] = queue.SimpleQueue()
        self._halted = False
        self.in_progress: int = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.halt()
        for _thread in self._threads:
            self._jobs.put(None)

    def take_on(self, entries: Iterable[Entry]) -> None:
        """Queue ``entries``, and start threads for them up to the size of the pool."""
        for entry in entries:
            self.in_progress += 1
            self._jobs.put(entry)
        while len(self._threads) < min(self._size, self.in_progress):
            thread = threading.Thread(target=self._work, name="katalys-send", daemon=True)
            self._threads.append(thread)
            thread.start()

    def halt(self) -> None:
        """Start no further row; those not started come back without a receipt."""
        self._halted = True

    def collect(self) -> list[tuple[Entry, Receipt | None]]:
        """Wait for a row to be finished, and return every one that is: they share one commit.

        :returns: rows and their receipts, None for a row that was not started.
        """
        finished = [self._results.get()]
        while not self._results.empty():
            finished.append(self._results.get())
        self.in_progress -= len(finished)
        return finished

    def _work(self) -> None:
        """What each thread runs until the pool is left."""
        while (entry := self._jobs.get()) is not None:
            try:
                receipt = None if self._halted else self._attempt(entry)
            except Exception as error:  # noqa: BLE001 - collect() would wait for this row without end
                receipt = Receipt(Verdict.RETRY, error=type(error).__name__)
            self._results.put((entry, receipt))
