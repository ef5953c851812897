"""The HTTP transport of an attempt: urllib3's connection pool, with one deadline for the whole of an attempt.

What this package needs of urllib3 beyond a plain call stands here. It uses documented extension points: ``PoolManager``
and ``ProxyManager``, and pools with a ``ConnectionCls``
(https://urllib3.readthedocs.io/en/stable/reference/urllib3.connectionpool.html). Three things are not documented:
``pool_classes_by_scheme`` of a manager ("so other PoolManagers can override them", says its source),
``response_class`` of a connection, and how a :class:`http.client.HTTPResponse` begins. Each has a test in
``tests/test_transport.py`` that fails when the library changes.
"""

from __future__ import annotations

import http.client
import io
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import requests
from requests.certs import where  # type: ignore[attr-defined] # documented there, and not in its stubs
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import make_headers, parse_url

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["keep_from_log", "open_pool", "remaining", "time_limit"]

# A read timeout "is not a time limit on the entire response download": it starts anew with every byte, so a server
# that drips can hold a connection for hours. https://requests.readthedocs.io/en/latest/user/quickstart/#timeouts
# The deadline is kept where bytes are received; an attempt runs in one thread from start to end.
# A context variable: a thread-local made before gevent patches threading would be shared by all its greenlets.
_deadline: ContextVar[float] = ContextVar("katalys_wsgi_deadline")  # of time.monotonic(); set during an attempt


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Within this block a pool of :func:`open_pool` waits no longer than ``seconds`` in all; 0 is no time at all."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def remaining() -> float:
    """Seconds until the deadline of this thread's attempt.

    :raises TimeoutError: it has passed.
    """
    seconds = _deadline.get() - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the deadline of the attempt has passed")
    return seconds


def open_pool(url: str, *, size: int) -> HTTPConnectionPool:
    """A pool of connections to the host of ``url`` that keep the :func:`time_limit`; connects to nothing yet.

    Certificate bundles and proxies are the environment's, by requests' rules and as it stands now
    (https://requests.readthedocs.io/en/latest/user/advanced/#proxies). Plain http is for loopback and has no proxy.

    :param size: how many idle connections are kept.
    """
    if not url.startswith("https"):
        return _with_our_pools(PoolManager(maxsize=size)).connection_from_url(url)
    with requests.Session() as session:
        found = session.merge_environment_settings(url, {}, None, None, None)
    bundle = where() if found["verify"] is True else str(found["verify"])
    trust = {"ca_cert_dir" if os.path.isdir(bundle) else "ca_certs": bundle}
    options: dict[str, Any] = {"maxsize": size, "cert_reqs": "CERT_REQUIRED", **trust}
    proxy = found["proxies"].get("https") or found["proxies"].get("all")
    manager = _through(proxy, options) if proxy else PoolManager(**options)
    return _with_our_pools(manager).connection_from_url(url)


def _through(proxy: str, options: dict[str, Any]) -> ProxyManager:
    """A manager of pools through ``proxy``, an address or host:port, with its user and password if it has any."""
    address = parse_url(proxy if "://" in proxy else f"http://{proxy}")
    headers = make_headers(proxy_basic_auth=unquote(address.auth)) if address.auth else None
    return ProxyManager(address.url, proxy_headers=headers, **options)


def _with_our_pools(manager: PoolManager) -> PoolManager:
    """The same manager, making pools whose connections keep the deadline."""
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return manager


class _Reader(io.RawIOBase):
    """What a socket receives, waiting no longer than the attempt may last."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._read_timeout = sock.gettimeout()
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._sock.settimeout(min(self._read_timeout, remaining()))
        return self._raw.readinto(buffer)  # type: ignore[no-any-return] # of a socket of whatever kind

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Receiving:
    """The half of a socket that :class:`http.client.HTTPResponse` asks for."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock))


class _Response(http.client.HTTPResponse):
    """An answer that keeps the deadline, and is never an interim one."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(_Receiving(sock), *args, **kwargs)  # type: ignore[arg-type] # asks a socket for makefile only

    def begin(self) -> None:
        """Read status and headers, over any number of interim answers (RFC 9110 §15.2)."""
        super().begin()
        # http.client skips 100 only. It would take a 103 for the answer, and the answer for that to the next row.
        # https://docs.python.org/3/library/http.client.html#httpresponse-objects knows no other way to go on.
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


def keep_from_log(*, addresses: bool) -> None:
    """From now on urllib3 logs no personal data of an attempt; doing this twice changes nothing.

    Its log of other requests of the process stays as it is.

    :param addresses: log no address, which over GET holds the buyer's data. In any case no header that cannot be
        parsed is logged, for it may repeat what was sent.
    """
    for name in ("connection", *(("connectionpool", "util.retry") if addresses else ())):
        logging.getLogger(f"urllib3.{name}").addFilter(_is_no_attempt)


def _is_no_attempt(_record: logging.LogRecord) -> bool:
    return _deadline.get(None) is None
