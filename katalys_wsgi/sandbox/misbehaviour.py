"""The ways in which Katalys' side may fail, for the tests that must survive them."""

from __future__ import annotations

import gzip
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NoReturn

from webob import Response

from .answer import SOCKET, cut, response

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["Misbehaviour"]


@dataclass(frozen=True)
class Misbehaviour:
    """One way to fail, made by one of the constructors below.

    Give it to :meth:`~katalys_wsgi.sandbox.collector.Collector.misbehave`. Hanging, dripping and endless answers last
    until the client leaves, :meth:`~katalys_wsgi.sandbox.collector.Collector.behave` or
    :meth:`~katalys_wsgi.sandbox.server.Sandbox.stop`; then the connection is closed without the rest.

    :ivar name: describes it in a few words.
    :ivar act: takes the environ and an event that is set when the request has to end; returns the answer, or None
        for the correct one, or raises to cut the connection.
    """

    name: str
    act: Callable[[WSGIEnvironment, threading.Event], Response | None] = field(repr=False)

    @classmethod
    def status(cls, code: int, *, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Misbehaviour:
        """Answer with a status code, whatever was sent.

        :param headers: beside, or in place of, the content type ``text/plain``.
        """
        return cls(f"status {code}", lambda *_: response(code, body, headers))

    @classmethod
    def hang(cls) -> Misbehaviour:
        """Read the request and never answer."""
        return cls("hang", _hang)

    @classmethod
    def slow(cls, seconds: float) -> Misbehaviour:
        """Answer correctly, and so many seconds late."""
        return cls(f"slow by {seconds} s", lambda _, released: _wait(released, seconds))

    @classmethod
    def drip_headers(cls, interval: float = 0.2) -> Misbehaviour:
        """Begin a 204 and send its headers byte by byte, without end.

        :param interval: seconds between two bytes.
        """
        return cls(f"drip headers each {interval} s", partial(_drip_headers, interval=interval))

    @classmethod
    def drip_body(cls, interval: float = 0.2, *, status: int = 200) -> Misbehaviour:
        """Answer ``status`` with a body sent byte by byte, without end.

        :param interval: seconds between two bytes.
        """
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


def _wait(released: threading.Event, seconds: float | None = None) -> None:
    released.wait(seconds)


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
