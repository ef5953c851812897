"""The relay: takes what is due out of the outbox, has it sent, and writes down what came of each row.

A drain claims rows, gives them to a few worker threads, and writes the outcomes of those that are finished in one
transaction. A claim is a lease: what a dying process had claimed is due again when it ends. Every rule of what
follows from an answer is in :mod:`katalys_wsgi.delivery.policy`.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import OutboxUnavailable
from ..events import Events
from ..outbox import Change, Entry, Outbox, Receipt, State, Verdict
from ..process import IMPORTS, PerProcess
from ..settings import Settings
from .breaker import CircuitBreaker
from .hold import HOW_TO_SEND
from .policy import back_off
from .workers import WorkerPool

if TYPE_CHECKING:
    from .sender import Sender

__all__ = ["POLL", "PRUNE_EVERY", "ROWS_PER_WORKER", "Drained", "Relay"]

#: Seconds between two looks into an outbox that had nothing due; record() of the same process wakes the relay at once.
POLL = 2.0

#: Seconds between two prunings of one relay.
PRUNE_EVERY = 3600.0

#: Rows claimed at a time for each concurrent send.
ROWS_PER_WORKER = 32

#: Leases last that many deadlines of an attempt: two are needed, see :meth:`Relay._attempt`, one is spare.
_DEADLINES_PER_LEASE = 3


@dataclass(frozen=True)
class Drained:
    """What one drain came to, in rows.

    :param settled: delivered.
    :param postponed: failed, to be tried again.
    :param buried: dead letters now.
    """

    settled: int = 0
    postponed: int = 0
    buried: int = 0


class Relay:
    """Claims what is due, sends it, and settles, postpones or buries each row.

    Any number of relays may share an outbox. A relay belongs to one process; its methods may be called from any thread.

    :param outbox: is not closed by the relay.
    :param settings: endpoint, wire, times and the number of workers are read from here.
    :param events: gets an event for each row and each change of the endpoint; None only logs.
    :param clock: seconds since 1970.
    :param chance: random numbers below 1, for the jitter.
    :param held: says why postbacks stay on this machine for now; None when they may leave.
    """

    def __init__(
        self,
        outbox: Outbox,
        settings: Settings,
        *,
        events: Events | None = None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        held: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._outbox = outbox
        self._settings = settings
        self._held = held
        self._sender = PerProcess(self._make_sender)  # when a row is due: it loads requests
        self._workers = settings.delivery_workers
        self._capacity = settings.delivery_workers * ROWS_PER_WORKER
        self._deadline = settings.deadline.total_seconds()
        self._give_up_after = settings.give_up_after.total_seconds()
        self._retention = settings.retention.total_seconds()
        self._events = events or Events()
        self._clock = clock
        self._chance = chance
        self._breaker = CircuitBreaker(clock, chance)
        self._unwritten: list[Change] = []
        self._pruned_at = 0.0
        self._one_drain_at_a_time = threading.Lock()
        self._stopped = False
        # Not a threading.Event: a signal handler that interrupts its set() and calls it again would wait for itself.
        # https://docs.python.org/3/library/queue.html#queue.SimpleQueue.put is made for that.
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()

    def run(self) -> None:
        """Drain whenever something is due, until :meth:`stop`; what goes wrong is reported as an event."""
        while not self._stopped:
            try:
                self.drain()
            except OutboxUnavailable as error:
                self._events.emit("outbox_unavailable", reason=error)
            except Exception as error:  # noqa: BLE001 - an error in one drain must not end delivery
                self._events.emit("relay_failed", reason=type(error).__name__)
            with suppress(queue.Empty):
                self._wakes.get(timeout=POLL)

    def wake(self) -> None:
        """Have :meth:`run` look into the outbox now; safe in a signal handler."""
        if self._wakes.empty():  # one is enough, however many pages call this during a long drain
            self._wakes.put(None)

    def stop(self) -> None:
        """Begin no further row, for good: run() and drain() return once the rows in progress are finished.

        Does not wait for that; safe in a signal handler.
        """
        self._stopped = True
        self._wakes.put(None)

    def close(self) -> None:
        """Close this process's idle connections to Katalys; the next drain opens new ones."""
        sender = self._sender.discard()
        if sender is not None:
            sender.close()

    def drain(self, at_most: float | None = None) -> Drained:
        """Deliver what is due; return when nothing is left, or when the endpoint must be left alone for a while.

        :param at_most: seconds after which no further row is started; 0 starts none, None is no limit.
        :raises OutboxUnavailable: the outbox cannot be read or written. Nothing more is sent until what came of the
            rows in progress is written down, at the next call.
        """
        give_up_at = None if at_most is None else time.monotonic() + at_most

        def may_begin() -> bool:
            in_time = give_up_at is None or time.monotonic() < give_up_at
            return in_time and not self._stopped and not self._is_held()

        with (
            self._one_drain_at_a_time,
            WorkerPool(lambda entry: self._attempt(entry, may_begin), self._workers) as pool,
        ):
            try:
                return self._drain(pool, may_begin)
            except OutboxUnavailable:
                pool.halt()
                while pool.in_progress:
                    self._unwritten += self._decided(pool)
                raise

    def _drain(self, pool: WorkerPool, may_begin: Callable[[], bool]) -> Drained:
        """Write down what an earlier drain could not, then claim, send and write until nothing is left."""
        done: Counter[State] = Counter()
        self._write([], done)
        while True:
            pool.take_on(self._claim(pool.in_progress, may_begin))
            if not pool.in_progress:
                self._prune()
                return Drained(done[State.DELIVERED], done[State.PENDING], done[State.DEAD])
            self._write(self._decided(pool), done)

    def _claim(self, in_progress: int, may_begin: Callable[[], bool]) -> list[Entry]:
        """More rows when less than half of the capacity is in progress, as many as the circuit breaker allows."""
        limit = self._breaker.limit(self._capacity) - in_progress
        if limit <= 0 or in_progress > self._capacity // 2 or not may_begin():
            return []
        lease = _DEADLINES_PER_LEASE * self._deadline
        until = self._clock() + lease  # by our own clock: a database's may differ, and is then compared with nothing
        return [replace(entry, leased_until=until) for entry in self._outbox.claim(limit, lease)]

    def _attempt(self, entry: Entry, may_begin: Callable[[], bool]) -> Receipt | None:
        """One attempt, in a thread of the pool; None when none may be started.

        That is so after a stop, during a pause, and when the row waited so long that its lease might end meanwhile.
        """
        if entry.payload is None:
            return Receipt(Verdict.REFUSED, error="the payload is gone")
        leased_for = (entry.leased_until or 0.0) - self._clock()
        if not may_begin() or self._breaker.is_open or leased_for < self._deadline:
            return None
        receipt = self._sender.get().send(entry.payload)
        self._note(receipt)  # here, not where it is settled: the next row of this thread must know
        return receipt

    def _make_sender(self) -> Sender:
        with IMPORTS:
            from .sender import Sender
        return Sender(self._settings)

    def _is_held(self) -> bool:
        reason = self._held()
        if reason is not None:
            self._events.emit_once("delivery_held", reason=reason, advice=HOW_TO_SEND)
        return reason is not None

    def _note(self, receipt: Receipt) -> None:
        """Let the circuit breaker learn from an attempt, and report when it opens or closes."""
        changed = self._breaker.note(receipt)
        if changed and not self._breaker.is_closed:
            self._events.emit("endpoint_paused", status=receipt.status, reason=receipt.error)
        elif changed:
            self._events.emit("endpoint_resumed")

    def _decided(self, pool: WorkerPool) -> list[Change]:
        """What becomes of the rows that are finished; waits for the first."""
        return [self._decide(entry, receipt) for entry, receipt in pool.collect()]

    def _decide(self, entry: Entry, receipt: Receipt | None) -> Change:
        """What an attempt's receipt means for its row; a wrong configuration never buries it."""
        if receipt is None:
            return Change.release(entry)
        if receipt.verdict is Verdict.DELIVERED:
            return Change.settle(entry, receipt)
        if receipt.verdict is Verdict.MISCONFIGURED:
            return Change.postpone(entry, receipt, 0.0)
        too_old = self._clock() - entry.pending_since >= self._give_up_after
        if receipt.verdict is Verdict.REFUSED or too_old:
            return Change.bury(entry, receipt)
        delay = back_off(entry.attempts, self._chance()) if receipt.retry_after is None else receipt.retry_after
        return Change.postpone(entry, receipt, delay)

    def _write(self, changes: list[Change], done: Counter[State]) -> None:
        """Write ``changes`` and those that could not be written before, report each, and count it in ``done``.

        :raises OutboxUnavailable: nothing was written; it is kept for the next call.
        """
        self._unwritten += changes
        if self._unwritten:
            self._outbox.apply(self._unwritten)
            written, self._unwritten = self._unwritten, []
            for change in written:
                if change.receipt is not None:
                    done[change.state] += 1
                    self._report(change.entry, change.state, change.receipt)

    def _report(self, entry: Entry, state: State, receipt: Receipt) -> None:
        """Emit the event of a row of which the outcome is written down."""
        if state is State.DELIVERED:
            self._events.emit(
                "postback_delivered", order_id=entry.order_id, kind=entry.kind, attempts=entry.attempts,
                status=receipt.status, confirmed=receipt.confirmed,
            )  # fmt: skip
        elif state is State.PENDING:
            self._events.emit(
                "postback_postponed", order_id=entry.order_id, kind=entry.kind, attempts=entry.attempts,
                status=receipt.status, reason=receipt.error,
            )  # fmt: skip
        else:
            self._events.emit(
                "postback_buried", order_id=entry.order_id, kind=entry.kind, attempts=entry.attempts,
                status=receipt.status, reason=receipt.error,
            )  # fmt: skip

    def _prune(self) -> None:
        """Now and then, delete what was finished longer ago than the setting retention."""
        now = self._clock()
        if abs(now - self._pruned_at) >= PRUNE_EVERY:
            self._pruned_at = now
            deleted = self._outbox.prune(now - self._retention)
            if deleted:
                self._events.emit("outbox_pruned", rows=deleted)
