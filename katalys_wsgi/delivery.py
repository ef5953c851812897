"""Getting postbacks out of the outbox and over to Katalys: one attempt, and the relay that repeats it.

The only room that imports ``requests``, and the only one that says "send".
"""

from __future__ import annotations

import http.client
import io
import json
import logging
import queue
import random
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from html import unescape
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Retry

from .conversion.wire import PERSONAL, WIRES
from .errors import OutboxUnavailable
from .events import Events
from .outbox import Change, Entry, Outbox, Receipt, State, Verdict
from .process import PerProcess
from .settings import Settings

USER_AGENT = "katalys-wsgi/0.1.0 (+https://pypi.org/project/katalys-wsgi/)"

#: Of an answer's body no more is read; an error's first words are kept for the person who asks why.
LONGEST_BODY = 4096
LONGEST_ERROR = 200

BACK_OFF_BASE = 5.0
BACK_OFF_CAP = 3600.0
LONGEST_RETRY_AFTER = 6 * 3600.0

#: After so many failures in a row, which no row is to blame for, one row at a time finds out when it works again.
FAILURES_BEFORE_PROBING = 5

#: Seconds between two looks into an outbox that had nothing due; record() of the same process wakes the relay at once.
POLL = 2.0

#: Seconds between two prunings of one relay.
PRUNE_EVERY = 3600.0

#: Rows claimed at a time for each concurrent send.
ROWS_PER_WORKER = 32


# --- the rules, as pure functions ----------------------------------------------------------------------------


def judge(status: int) -> Verdict:
    """What an HTTP status means; only a 204 is Katalys' promise that a message was received and parsed."""
    if status == 204:
        return Verdict.DELIVERED
    if status in (401, 403, 404, 405, 410):
        return Verdict.MISCONFIGURED
    if 400 <= status < 500 and status not in (408, 425, 429):
        return Verdict.REFUSED
    return Verdict.RETRY


def back_off(attempts: int, chance: float) -> float:
    """Seconds to wait after ``attempts`` failed attempts: full jitter, ``chance`` being a random number below 1.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ compares the kinds of jitter.
    """
    return chance * min(BACK_OFF_CAP, BACK_OFF_BASE * 2.0 ** min(attempts - 1, 30))


def retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110 §10.2.3: seconds or a date), None when it is unreadable."""
    if not header:
        return None
    try:
        if re.fullmatch(r"\s*\d{1,9}\s*", header, re.ASCII):
            seconds = float(header)
        else:
            date = parsedate_to_datetime(header)
            seconds = ((date if date.tzinfo else date.replace(tzinfo=timezone.utc)) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def scrubbed(text: str, payload: str) -> str:
    """The first words of an answer without the buyer's data, which an answer may repeat."""
    try:
        fields = json.loads(payload)
        values = [str(fields[name]) for name in PERSONAL if fields.get(name)]
    except (ValueError, TypeError, AttributeError):
        return ""  # who knows what it repeats
    text = unescape(unquote(text))  # however it was repeated
    for value in values:
        for written in (value, value.replace(" ", "+"), json.dumps(value)[1:-1]):
            text = re.sub(re.escape(written), "…", text, flags=re.IGNORECASE)
    text = re.sub(r"[^\s@]+@[^\s@]+", "…", text)
    return " ".join(text.split())[:LONGEST_ERROR]


# --- one attempt ---------------------------------------------------------------------------------------------


# A read timeout starts anew with every byte, so a dripping server can hold a connection for hours. The deadline
# of an attempt is enforced where bytes are received; each attempt runs in one thread from start to end.
# A context variable: a thread-local made before gevent patches threading would be shared by all its greenlets.
_deadline: ContextVar[float] = ContextVar("katalys_wsgi_deadline")  # of time.monotonic(); set during an attempt

_ONE_TRY = Retry(total=False, redirect=False)  # the outbox is the one retry loop


def _is_not_ours(_record: logging.LogRecord) -> bool:
    return _deadline.get(None) is None


# urllib3 logs addresses, which over GET hold the buyer's data.
for _name in ("connection", "connectionpool", "util.retry"):
    logging.getLogger(f"urllib3.{_name}").addFilter(_is_not_ours)


def _remaining() -> float:
    """Seconds until the deadline of this thread's attempt.

    :raises TimeoutError: it has passed.
    """
    remaining = _deadline.get() - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("the deadline of the attempt has passed")
    return remaining


class _Received(io.RawIOBase):
    """The receiving half of a socket, waiting no longer than the attempt may last."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._read_timeout = sock.gettimeout()
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(min(self._read_timeout, _remaining()))
        return self._raw.readinto(buffer)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_Received(sock))

    def begin(self) -> None:
        super().begin()
        # RFC 9110 §15.2: any number of interim answers may come first. http.client skips 100 only, would take a 103
        # for the answer, and the answer for that to the next row.
        while 102 <= self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment] # as before the first
            super().begin()
        self.will_close = self.will_close or self.status == 101


class _Connection(HTTPConnection):
    response_class = _Response


class _SecureConnection(HTTPSConnection):
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Adapter(HTTPAdapter):
    """requests' adapter with our connections; used once a process, to set up certificates and proxies."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
        return manager


class Sender:
    """Makes one attempt to deliver a payload and tells what came of it; safe to share between threads and forks."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.endpoint
        self._path = urlsplit(settings.endpoint).path or "/"
        self._wire = WIRES[settings.wire]
        self._connect = settings.connect_timeout.total_seconds()
        self._read = settings.read_timeout.total_seconds()
        self._deadline = settings.deadline.total_seconds()
        self._workers = settings.delivery_workers
        self._headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
        if self._wire.content_type:
            self._headers["Content-Type"] = self._wire.content_type
        self._pool: PerProcess[HTTPConnectionPool] = PerProcess(self._make_pool)

    def send(self, payload: str, *, deadline: float | None = None) -> Receipt:
        """Send ``payload`` once; never raises.

        :param deadline: seconds that the whole attempt may take, the setting unless given.
        """
        try:
            message = self._wire.encode(payload)
        except (ValueError, TypeError, AttributeError):  # spoilt by hand, or saved from a damaged file
            return Receipt(Verdict.REFUSED, error="the payload cannot be read")
        token = _deadline.set(time.monotonic() + (deadline or self._deadline))
        try:
            return self._answer(message, payload)
        except Exception as fault:  # noqa: BLE001 - whatever breaks an attempt, its row is tried again
            return Receipt(Verdict.RETRY, error=scrubbed(_described(fault), payload))
        finally:
            _deadline.reset(token)

    def close(self) -> None:
        """Close this process's idle connections."""
        pool = self._pool.peek()
        if pool is not None:
            pool.close()
            self._pool = PerProcess(self._make_pool)

    def _answer(self, message: bytes, payload: str) -> Receipt:
        posts = self._wire.method == "POST"
        limit = _remaining()
        # What requests does at each call (merging settings, cookies, netrc, redirects, retries) is either done
        # once in _make_pool or must not happen at all: a redirected POST becomes an empty GET that ends in a 204.
        response = self._pool.get().urlopen(
            self._wire.method,
            self._path if posts else f"{self._path}?{message.decode('ascii')}",
            body=message if posts else None,
            headers=self._headers,
            redirect=False,
            retries=_ONE_TRY,
            timeout=Timeout(connect=min(self._connect, limit), read=min(self._read, limit)),
            preload_content=False,
            decode_content=False,
        )
        try:
            body = response.read(LONGEST_BODY, decode_content=False)
        finally:
            response.close()  # the connection is kept only if the answer was read to its end
        return self._receipt(response.status, response.headers, body, payload)

    def _receipt(self, status: int, headers: Any, body: bytes, payload: str) -> Receipt:
        verdict = judge(status)
        if verdict is Verdict.DELIVERED:
            return Receipt(verdict, status, confirmed=self._wire.confirms)
        said = scrubbed(body.decode("utf-8", "replace"), payload)
        wait = retry_after(headers.get("Retry-After"), datetime.now(timezone.utc))
        return Receipt(verdict, status, f"HTTP {status}" + (f": {said}" if said else ""), wait)

    def _make_pool(self) -> Any:
        adapter = _Adapter(pool_maxsize=self._workers, max_retries=0)
        request = requests.Request(self._wire.method, self._url).prepare()
        # Proxies and certificate bundles are the environment's; netrc and cookies are nobody's.
        environment = requests.Session().merge_environment_settings(self._url, {}, None, None, None)
        proxies = environment["proxies"] if self._url.startswith("https") else {}
        pool = adapter.get_connection_with_tls_context(request, environment["verify"], proxies)
        adapter.cert_verify(pool, self._url, environment["verify"], None)  # type: ignore[no-untyped-call] # of requests
        return pool


def _described(fault: BaseException) -> str:
    """The root of an error in a few words: urllib3's own texts repeat the whole address, over GET with its query."""
    root = fault
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__  # type: ignore[assignment] # checked one line above
    if isinstance(root, ssl.SSLCertVerificationError):
        return f"TLS: {root.verify_message}"
    words = (root.strerror if isinstance(root, OSError) else None) or (
        str(root) if isinstance(root, TimeoutError) else ""
    )
    return f"{type(fault).__name__}: {words or type(root).__name__}"


# --- the relay -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drained:
    """How many rows were settled, postponed and buried."""

    settled: int = 0
    postponed: int = 0
    buried: int = 0


class Relay:
    """Claims what is due, sends it, and settles, postpones or buries each row.

    Any number of relays may share an outbox.

    :param clock: seconds since 1970.
    :param chance: random numbers below 1, for the jitter.
    """

    def __init__(
        self,
        outbox: Outbox,
        settings: Settings,
        *,
        events: Events | None = None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._sender = Sender(settings)
        self._workers = settings.delivery_workers
        self._capacity = settings.delivery_workers * ROWS_PER_WORKER
        self._deadline = settings.deadline.total_seconds()
        self._give_up_after = settings.give_up_after.total_seconds()
        self._events = events or Events()
        self._clock = clock
        self._chance = chance
        self._endpoint = _Endpoint(clock, chance)
        self._unwritten: list[Change] = []
        self._retention = settings.retention.total_seconds()
        self._pruned_at = 0.0
        self._one_at_a_time = threading.Lock()

    def run(self, stop: threading.Event, wake: threading.Event) -> None:
        """Drain whenever something is due, until ``stop``; setting ``wake`` ends the wait between two looks."""
        while not stop.is_set():
            try:
                self.drain(stop)
            except OutboxUnavailable as fault:
                self._events.emit("outbox_unavailable", reason=fault)
            except Exception as fault:  # noqa: BLE001 - a fault in one drain must not end delivery
                self._events.emit("relay_failed", reason=type(fault).__name__)
            wake.wait(POLL)
            wake.clear()
        self._sender.close()

    def drain(self, stop: threading.Event | None = None) -> Drained:
        """Deliver what is due; return when nothing is left, or when Katalys must be left in peace for a while.

        :param stop: once set, no further row is begun.
        :raises OutboxUnavailable: the outbox cannot be written. Nothing more is sent until what came of the rows
            in hand is written down, at the next call.
        """
        done: Counter[str] = Counter()
        stop = stop or threading.Event()
        with self._one_at_a_time, _Crew(partial(self._attempt, stop), self._workers) as crew:
            try:
                self._write([], done)
                while True:
                    crew.take_on(self._claim(crew, stop))
                    if not crew.in_hand:
                        self._prune()
                        return Drained(done["delivered"], done["pending"], done["dead"])
                    self._write(self._decided(crew), done)
            except OutboxUnavailable:
                crew.halt()
                while crew.in_hand:
                    self._unwritten += self._decided(crew)
                raise

    def _prune(self) -> None:
        """Now and then, delete what was finished so long ago that nobody asks any more."""
        now = self._clock()
        if abs(now - self._pruned_at) >= PRUNE_EVERY:
            self._pruned_at = now
            deleted = self._outbox.prune(now - self._retention)
            if deleted:
                self._events.emit("outbox_pruned", rows=deleted)

    def _claim(self, crew: _Crew, stop: threading.Event) -> list[Entry]:
        limit = self._endpoint.limit(self._capacity) - crew.in_hand
        if stop.is_set() or limit <= 0 or crew.in_hand > self._capacity // 2:
            return []
        lease = 3 * self._deadline
        until = self._clock() + lease  # by our own clock: a database's may differ, and is then compared with nothing
        return [replace(entry, leased_until=until) for entry in self._outbox.claim(limit, lease)]

    def _attempt(self, stop: threading.Event, entry: Entry) -> Receipt | None:
        """One attempt, in a thread of the crew; None when none may be begun.

        That is so after a stop, in a pause, and when the row waited so long that its lease might end meanwhile.
        """
        if entry.payload is None:
            return Receipt(Verdict.REFUSED, error="the payload is gone")
        leased_for = (entry.leased_until or 0.0) - self._clock()
        if stop.is_set() or self._endpoint.is_paused() or leased_for < self._deadline:
            return None
        receipt = self._sender.send(entry.payload)
        self._note(receipt)  # here, not where it is settled: the next row of this thread must know
        return receipt

    def _decided(self, crew: _Crew) -> list[Change]:
        return [self._decide(entry, receipt) for entry, receipt in crew.collect()]

    def _decide(self, entry: Entry, receipt: Receipt | None) -> Change:
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

    def _note(self, receipt: Receipt) -> None:
        changed = self._endpoint.note(receipt)
        if changed and not self._endpoint.healthy:
            self._events.emit("endpoint_paused", status=receipt.status, reason=receipt.error)
        elif changed:
            self._events.emit("endpoint_resumed")

    def _write(self, changes: list[Change], done: Counter[str]) -> None:
        self._unwritten += changes
        if self._unwritten:
            self._outbox.apply(self._unwritten)
            written, self._unwritten = self._unwritten, []
            for change in written:
                if change.receipt is not None:
                    done[change.state] += 1
                    self._tell(change, change.receipt)

    def _tell(self, change: Change, receipt: Receipt) -> None:
        entry = change.entry
        row = {"order_id": entry.order_id, "kind": entry.kind, "attempts": entry.attempts, "status": receipt.status}
        if change.state == State.DELIVERED:
            self._events.emit("postback_delivered", **row, confirmed=receipt.confirmed)
        else:
            self._events.emit(_FAILURES[change.state], **row, reason=receipt.error)


_FAILURES = {State.PENDING: "postback_postponed", State.DEAD: "postback_buried"}


class _Endpoint:
    """What the last answers say of Katalys' side: open, or paused and then probed with one row at a time."""

    def __init__(self, clock: Callable[[], float], chance: Callable[[], float]) -> None:
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._failures = 0
        self._pauses = 0
        self._paused_until = 0.0

    @property
    def healthy(self) -> bool:
        """Whether as many rows as there are workers may be sent."""
        return not self._pauses

    def is_paused(self) -> bool:
        """Whether nothing may be sent now. A pause longer than any we make is a clock that was set back."""
        return 0 < self._paused_until - self._clock() <= LONGEST_RETRY_AFTER

    def limit(self, capacity: int) -> int:
        """How many rows may be in hand."""
        return 0 if self.is_paused() else capacity if self.healthy else 1

    def note(self, receipt: Receipt) -> bool:
        """Learn from an attempt; tells whether health changed."""
        with self._lock:
            was_healthy = self.healthy
            if receipt.verdict in (Verdict.RETRY, Verdict.MISCONFIGURED):
                self._failed(receipt)
            elif receipt.status is not None:
                self._failures = self._pauses = 0
                self._paused_until = 0.0
            return was_healthy != self.healthy

    def _failed(self, receipt: Receipt) -> None:
        self._failures += 1
        serious = receipt.verdict is Verdict.MISCONFIGURED or self._failures >= FAILURES_BEFORE_PROBING
        if serious and not self.is_paused():  # rows that were under way when a pause began do not lengthen it
            self._pauses += 1
            wait = back_off(self._pauses, 0.5 + self._chance() / 2)
            self._paused_until = self._clock() + max(wait, receipt.retry_after or 0.0)


class _Crew:
    """A few daemon threads that send, for the length of one drain.

    Not an executor: leaving the interpreter would wait for its threads, and with them for Katalys.
    """

    def __init__(self, attempt: Callable[[Entry], Receipt | None], size: int) -> None:
        self._attempt = attempt
        self._size = size
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Entry, Receipt | None]] = queue.SimpleQueue()
        self.in_hand = 0
        self.halted = False

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.halt()
        for _thread in self._threads:
            self._jobs.put(None)

    def take_on(self, entries: Iterable[Entry]) -> None:
        """Queue ``entries`` and see that there are hands for them."""
        for entry in entries:
            self.in_hand += 1
            self._jobs.put(entry)
        while len(self._threads) < min(self._size, self.in_hand):
            thread = threading.Thread(target=self._work, name="katalys-send", daemon=True)
            self._threads.append(thread)
            thread.start()

    def halt(self) -> None:
        """Begin no further row; those not begun come back without a receipt."""
        self.halted = True

    def collect(self) -> list[tuple[Entry, Receipt | None]]:
        """Wait for a row to be finished, and take every other one that is: they share one commit."""
        finished = [self._results.get()]
        while not self._results.empty():
            finished.append(self._results.get())
        self.in_hand -= len(finished)
        return finished

    def _work(self) -> None:
        while (entry := self._jobs.get()) is not None:
            try:
                receipt = None if self.halted else self._attempt(entry)
            except Exception as fault:  # noqa: BLE001 - collect() would wait for this row for ever
                receipt = Receipt(Verdict.RETRY, error=type(fault).__name__)
            self._results.put((entry, receipt))
