"""A server of raw bytes, for answers that no well-behaved server gives."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain, repeat
from typing import TypeAlias

#: What is sent, and for how many seconds it is paused, in turn; None hangs up.
Answer: TypeAlias = "Sequence[bytes | float] | None"

#: Makes a peer that gives these answers, in turn, then the last again; ``tls=`` has it speak TLS.
MakePeer = Callable[..., "Peer"]

NO_CONTENT = [b"HTTP/1.1 204 No Content\r\n\r\n"]
UNAVAILABLE = [b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"]


class Peer:
    """Listens on a loopback port; the n-th request is answered with the n-th of ``answers``, then with the last again.

    Without answers every request is hung up on.
    """

    def __init__(self, answers: Sequence[Answer], tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._answers: Iterator[Answer] = chain(answers, repeat(answers[-1] if answers else None))
        self._tls = tls
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up on everybody, and wait for the threads."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._server.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.connections += 1
                self._open.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError), ExitStack() as stack:
            stack.enter_context(connection)
            if self._tls:
                connection = stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
            while request := _read(connection):
                self.requests.append(request)
                answer = next(self._answers)
                if answer is None:
                    return
                _send(connection, answer)


def _read(connection: socket.socket) -> bytes:
    """One request, head and body; nothing when the client has hung up."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            return b""
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def _send(connection: socket.socket, answer: Sequence[bytes | float]) -> None:
    for part in answer:
        if isinstance(part, bytes):
            connection.sendall(part)
        else:
            time.sleep(part)
