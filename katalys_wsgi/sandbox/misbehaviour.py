"""The ways in which Katalys' side may fail, for the tests that must survive them."""

from __future__ import annotations

import gzip
import itertools
import math
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from http.client import responses
from typing import TYPE_CHECKING, NoReturn

from webob import Response

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Where our server keeps the raw socket in the environ; a reset cannot be spelled in WSGI.
SOCKET = "katalys_wsgi.sandbox.socket"


@dataclass(frozen=True)
class Misbehaviour:
    """One way to fail, made by the constructors below; hand it to ``Collector.misbehave``.

    Hanging, dripping and endless answers last until the client leaves, ``Collector.behave()`` or
    ``Sandbox.stop()``; then the connection is closed without the rest.
    """

    name: str
    act: Callable[[WSGIEnvironment, threading.Event], Response | None] = field(repr=False)

    @classmethod
    def status(cls, code: int, *, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Misbehaviour:
        """Answer ``code``, whatever was sent."""
        return cls(f"status {code}", lambda *_: response(code, body, headers))

    @classmethod
    def hang(cls) -> Misbehaviour:
        """Read the request and never answer."""
        return cls("hang", _hang)

    @classmethod
    def slow(cls, seconds: float) -> Misbehaviour:
        """Answer correctly after ``seconds``."""
        return cls(f"slow by {seconds} s", lambda _, released: _wait(released, seconds))

    @classmethod
    def drip_headers(cls, interval: float = 0.2) -> Misbehaviour:
        """Begin a 204 and send its headers byte by byte, one each ``interval`` seconds, without end."""
        return cls(f"drip headers each {interval} s", partial(_drip_headers, interval=interval))

    @classmethod
    def drip_body(cls, interval: float = 0.2, *, status: int = 200) -> Misbehaviour:
        """Answer ``status`` with a body sent byte by byte, one each ``interval`` seconds, without end."""
        return cls(f"drip body each {interval} s", lambda _, released: _endless(status, b".", released, interval))

    @classmethod
    def reset(cls) -> Misbehaviour:
        """Read the whole request, then reset the connection (TCP RST)."""
        return cls("reset", _reset)

    @classmethod
    def huge_body(cls, *, status: int = 200) -> Misbehaviour:
        """Answer ``status`` with a body that does not end, as fast as the client reads."""
        return cls("huge body", lambda _, released: _endless(status, bytes(65536), released))

    @classmethod
    def gzip_bomb(cls, *, status: int = 200) -> Misbehaviour:
        """Answer ``status`` with 1 MiB of gzip that unpacks to 1 GiB."""
        return cls("gzip bomb", lambda *_: response(status, _bomb(), {"Content-Encoding": "gzip"}))


def turns(behaviour: Misbehaviour, times: int | None, share: float, seed: int) -> Iterator[Misbehaviour | None]:
    """Yield, request by request, the misbehaviour it meets."""
    chance = random.Random(seed)  # noqa: S311 -- nobody has to be unable to guess it
    left = math.inf if times is None else times
    while left > 0:
        hit = chance.random() < share
        left -= hit
        yield behaviour if hit else None


def response(code: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Response:
    """Make an answer of plain text, unless ``headers`` say otherwise."""
    status = f"{code} {responses.get(code, 'Unknown')}"
    answer = Response(status=status, body=body, content_type="text/plain", charset="UTF-8")
    answer.headers.update((headers or {}).items())
    return answer


def _wait(released: threading.Event, seconds: float | None = None) -> None:
    released.wait(seconds)


def cut() -> NoReturn:
    """End the connection here: our server hangs up on whatever raises, and is silent about an OSError."""
    raise ConnectionAbortedError("cut off by the sandbox")


def _hang(_: WSGIEnvironment, released: threading.Event) -> NoReturn:
    released.wait()
    cut()


def _drip_headers(environ: WSGIEnvironment, released: threading.Event, interval: float) -> NoReturn:
    connection = _socket(environ)
    endless = itertools.chain(b"HTTP/1.1 204 No Content\r\nX-Drip: ", itertools.repeat(ord(".")))
    while True:
        connection.sendall(bytes([next(endless)]))
        if released.wait(interval):
            cut()


def _reset(environ: WSGIEnvironment, _: threading.Event) -> NoReturn:
    connection = _socket(environ)
    # Lingering for zero seconds turns the close into an RST; detached, because close() would wait for rfile.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(connection.detach())
    cut()


def _socket(environ: WSGIEnvironment) -> socket.socket:
    if SOCKET not in environ:
        raise RuntimeError("This misbehaviour needs the raw socket. Serve the collector with Sandbox")
    connection: socket.socket = environ[SOCKET]
    return connection


def _endless(status: int, chunk: bytes, released: threading.Event, interval: float = 0) -> Response:
    def chunks() -> Iterator[bytes]:
        while True:
            yield chunk
            if released.wait(interval):
                cut()

    answer = response(status)
    answer.app_iter = chunks()
    return answer


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    return gzip.compress(bytes(1 << 24)) * 64
