"""One attempt to deliver a message to Katalys, and what came of it.

The relay calls it over and over; a checkout whose outbox cannot be written calls it once. Whether and when to try
again is decided elsewhere.
"""

from __future__ import annotations

import ssl
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from urllib3 import HTTPConnectionPool, Timeout
from urllib3.util import Retry

from .._version import __version__
from ..conversion.wire import WIRES
from ..outbox.entry import Receipt, Verdict
from ..process import PerProcess
from ..settings import Settings
from .policy import judge, retry_after
from .redaction import scrubbed
from .transport import keep_from_log, open_pool, remaining, time_limit

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

__all__ = ["LONGEST_BODY", "USER_AGENT", "Sender"]

#: The value of the User-Agent header.
USER_AGENT = f"katalys-wsgi/{__version__}"

#: Bytes that are read of an answer's body.
LONGEST_BODY = 4096

_ONE_TRY = Retry(total=False, redirect=False)  # the outbox is the one retry loop


class Sender:
    """Makes one attempt to deliver a payload; safe to share between threads and forks.

    No redirect is followed (a redirected POST becomes an empty GET that ends in a 204), and no cookie and no netrc is
    used. Proxies and certificate bundles are looked up in the environment once in a process.

    :param settings: endpoint, wire, timeouts, deadline and the number of workers are read from here.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.endpoint
        self._path = urlsplit(settings.endpoint).path or "/"
        self._wire = WIRES[settings.wire]
        self._connect_timeout = settings.connect_timeout.total_seconds()
        self._read_timeout = settings.read_timeout.total_seconds()
        self._deadline = settings.deadline.total_seconds()
        self._workers = settings.delivery_workers
        self._headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
        if self._wire.content_type:
            self._headers["Content-Type"] = self._wire.content_type
        self._pool: PerProcess[HTTPConnectionPool] = PerProcess(self._make_pool)
        keep_from_log(addresses=self._wire.method == "GET")

    def send(self, payload: str, *, deadline: float | None = None) -> Receipt:
        """Send ``payload`` once; never raises.

        :param payload: the message as JSON, as it stands in the outbox; it is encoded as the setting wire says.
        :param deadline: seconds that the whole attempt may take; None is the setting, 0 times out at once. It
            bounds every wait for an answer. Looking up the host's name is not bounded; connecting to each of its
            addresses, and the TLS handshake, may take connect_timeout or the deadline each, whichever is shorter.
        :returns: what the answer means; RETRY without a status when there was none. Its error is one line without
            personal data.
        """
        try:
            message = self._wire.encode(payload)
        except (ValueError, TypeError, AttributeError):  # changed by hand, or recovered from a damaged file
            return Receipt(Verdict.REFUSED, error="the payload cannot be read")
        return self._attempt(message, payload, self._deadline if deadline is None else deadline)

    def close(self) -> None:
        """Close this process's idle connections; the next attempt opens new ones."""
        pool = self._pool.discard()
        if pool is not None:
            pool.close()

    def _attempt(self, message: bytes, payload: str, seconds: float) -> Receipt:
        with time_limit(seconds):
            try:
                return self._exchange(message, payload)
            except Exception as error:  # noqa: BLE001 - whatever breaks an attempt, its row is tried again
                return Receipt(Verdict.RETRY, error=scrubbed(_described(error), payload))

    def _exchange(self, message: bytes, payload: str) -> Receipt:
        """Send the encoded ``message`` and read the answer.

        :raises Exception: whatever urllib3 raises, and TimeoutError at the deadline.
        """
        limit = remaining()
        posts = self._wire.method == "POST"
        response = self._pool.get().urlopen(
            self._wire.method,
            self._path if posts else f"{self._path}?{message.decode('ascii')}",
            body=message if posts else None,
            headers=self._headers,
            redirect=False,
            retries=_ONE_TRY,
            timeout=Timeout(connect=min(self._connect_timeout, limit), read=min(self._read_timeout, limit)),
            preload_content=False,
            decode_content=False,
        )
        try:
            body = response.read(LONGEST_BODY, decode_content=False)
        finally:
            response.close()  # the connection is kept only if the answer was read to its end
        return self._receipt(response, body, payload)

    def _receipt(self, response: BaseHTTPResponse, body: bytes, payload: str) -> Receipt:
        """What an answer means, with its first words for the operator unless it is a 204."""
        status = response.status
        verdict = judge(status)
        if verdict is Verdict.DELIVERED:
            return Receipt(verdict, status, confirmed=self._wire.confirms)
        answer = scrubbed(body.decode("utf-8", "replace"), payload)
        wait = retry_after(response.headers.get("Retry-After"), datetime.now(timezone.utc))
        return Receipt(verdict, status, f"HTTP {status}" + (f": {answer}" if answer else ""), wait)

    def _make_pool(self) -> HTTPConnectionPool:
        return open_pool(self._url, size=self._workers)


def _described(error: BaseException) -> str:
    """The root of an error in a few words: urllib3's own repeat the whole address, over GET with its query.

    :returns: the type of ``error`` and what the system says of its root, such as "NewConnectionError: Connection
        refused"; for a certificate, why it is not trusted.
    """
    root = error
    # The system's error is what counts; urllib3 1.26 meets one while it handles another, which is none of its cause.
    while not isinstance(root, OSError) and (deeper := root.__cause__ or root.__context__):
        root = deeper
    if isinstance(root, ssl.SSLCertVerificationError):
        return f"TLS: {root.verify_message}"
    words = (root.strerror if isinstance(root, OSError) else None) or (
        str(root) if isinstance(root, TimeoutError) else ""
    )
    return f"{type(error).__name__}: {words or type(root).__name__}"
