"""The relay thread of a process: started by a checkout, and stopped when the tracker is closed.

Loads no HTTP library: the relay, which does, is made inside the thread, so that no page waits for that.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from ..events import Events

if TYPE_CHECKING:
    from .relay import Relay

__all__ = ["RelayThread"]

#: The options of uWSGI that let threads run; it knows those of an ini file as bytes.
_UWSGI_THREADS = ("enable-threads", b"enable-threads", "threads", b"threads")


class RelayThread:
    """Runs a relay in a daemon thread that starts when there may be something to do; one for each process.

    :param make_relay: makes a relay of this process; called anew, in the thread, whenever one is started.
    :param events: gets ``threads_disabled`` and ``relay_not_started``.
    """

    def __init__(self, make_relay: Callable[[], Relay], events: Events) -> None:
        self._make_relay = make_relay
        self._events = events
        self._lock = threading.Lock()
        self._run: _Run | None = None

    def wake(self) -> None:
        """Start the thread unless it runs, and have it look into the outbox now; never raises.

        In uWSGI no thread is started where none would run, nor in a master that still loads the shop.
        """
        if not _threads_run():
            self._events.emit_once("threads_disabled", advice="set enable-threads, or delivery=external")
        elif not _is_uwsgi_master():
            try:
                self._start_or_wake()
            except RuntimeError as error:  # no more threads, or the interpreter is leaving: the row stays for the next
                self._events.emit("relay_not_started", reason=error)

    def stop(self, patience: float) -> None:
        """Have the thread finish the rows in progress, and wait for that; the next :meth:`wake` starts another one.

        :param patience: seconds to wait at most.
        """
        with self._lock:
            run, self._run = self._run, None
        if run is not None:  # outside the lock: a page may be about to record
            run.stop(patience)

    def _start_or_wake(self) -> None:
        with self._lock:
            if self._run is not None and self._run.is_alive:
                self._run.wake()
            else:
                run = _Run(self._make_relay)
                run.start()
                self._run = run


class _Run:
    """One life of the thread, with a relay of its own: a stopped relay stays stopped."""

    def __init__(self, make_relay: Callable[[], Relay]) -> None:
        self._make_relay = make_relay
        self._relay: Relay | None = None  # until the thread has made it
        self._stopped = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._deliver, name="katalys-relay", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; one that could not make its relay has ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Have the relay look into the outbox now; one that is still being made looks by itself."""
        with self._lock:
            if self._relay is not None:
                self._relay.wake()

    def stop(self, patience: float) -> None:
        """End the thread after the rows in progress, also while its relay is being made; wait up to ``patience`` s."""
        with self._lock:
            self._stopped = True
            if self._relay is not None:
                self._relay.stop()
        self._thread.join(patience)

    def _deliver(self) -> None:
        """What the thread runs: make the relay, deliver until it is stopped, close its connections."""
        with closing(self._make_relay()) as relay:
            with self._lock:
                self._relay = relay
                if self._stopped:
                    relay.stop()
            relay.run()


def _is_uwsgi_master() -> bool:
    """Whether uWSGI is still loading the shop; a thread that runs while it forks deadlocks its workers at times."""
    # https://github.com/unbit/uwsgi/issues/2387
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and not getattr(uwsgi, "worker_id", os.getpid)()


def _threads_run() -> bool:
    """Whether threads get a turn: uWSGI, unless configured otherwise, keeps the interpreter's lock between requests."""
    uwsgi = sys.modules.get("uwsgi")  # there only inside uWSGI
    # Values from an ini file are bytes, b"false" included.
    chosen = [] if uwsgi is None else [value for name, value in uwsgi.opt.items() if name in _UWSGI_THREADS]
    return uwsgi is None or any(value not in (False, b"false", b"0", "false", "0") for value in chosen)
