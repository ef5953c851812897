"""The sandbox's HTTP server on loopback. It is our own because WSGI cannot express dripping headers or a reset."""

from __future__ import annotations

import io
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from .answer import SOCKET, cut
from .collector import ENDPOINT_PATH, Collector

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


__all__ = ["Sandbox"]


class Sandbox:
    """Serves a collector over HTTP/1.1 from a daemon thread: ``with Sandbox() as sandbox: ...``.

    :param collector: answers the requests; a new one by default.
    :param host: the address to listen on.
    :param port: 0 takes a free port at the first start, and keeps it when the sandbox is stopped and started again.
    :ivar collector: the collector, which knows what was received.
    """

    def __init__(self, collector: Collector | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.collector: Collector = Collector() if collector is None else collector
        self._host = host
        self._port = port
        self._server: _Server | None = None

    def start(self) -> None:
        """Listen and serve; does nothing if it is running already.

        :raises OSError: the port is taken.
        """
        if self._server is None:
            self._server = _Server((self._host, self._port), self.collector)
            self._port = self._server.server_port
            # The interval is how long stop() may wait for the accepting thread.
            threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Close every connection, hanging ones included, within about half a second.

        Does nothing if it is not running.
        """
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        give_up_at = time.monotonic() + 0.5
        while server.connections and time.monotonic() < give_up_at:
            self.collector.release()  # again and again: a request may have begun to hang since the last time
            time.sleep(0.002)

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address of the page that lists what was received.

        :raises RuntimeError: the port is not known before the first start.
        """
        if not self._port:
            raise RuntimeError("The sandbox has no port yet. Start it first")
        return f"http://{self._host}:{self._port}/"

    @property
    def endpoint(self) -> str:
        """The address for the setting ``endpoint``.

        :raises RuntimeError: the port is not known before the first start.
        """
        return self.url + ENDPOINT_PATH[1:]


class _Server(ThreadingMixIn, WSGIServer):
    """wsgiref's server with a thread for each connection; it knows them, so that it can close them all."""

    daemon_threads = True
    request_queue_size = 512  # a burst of senders is queued, not refused

    def __init__(self, address: tuple[str, int], collector: Collector) -> None:
        self.collector = collector
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Connection)

    def server_bind(self) -> None:
        # HTTPServer asks the resolver for the host's name here, which may take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, then serve it in a thread of its own."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.discard(request)

    def server_close(self) -> None:
        """Stop listening, and close every connection."""
        for each in (self.socket, *self.connections):
            with suppress(OSError):
                # Unlike a close, this wakes the threads and reaches the copies that forked children hold.
                each.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of what a request raised, but for an OSError."""
        if not isinstance(sys.exc_info()[1], OSError):  # which only means that the client went away
            super().handle_error(request, client_address)


class _Connection(WSGIRequestHandler):
    """wsgiref's request handler, but for as many HTTP/1.1 requests as the client sends over one connection.

    An exception ends the connection, with no answer or the part of it that was sent.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        BaseHTTPRequestHandler.handle(self)  # the loop that WSGIRequestHandler replaced

    def handle_one_request(self) -> None:
        """Read one request and answer it; a connection that ends before a whole one is closed silently."""
        self.close_connection = True
        self.raw_requestline = self.rfile.readline(65537)
        if self.raw_requestline.endswith(b"\n") and self.parse_request():
            body = self._whole_body()
            if body is not None:
                self._respond(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: the collector knows what came."""

    def _whole_body(self) -> bytes | None:
        """Return the body, read to its end because the next request begins there; None if it was refused."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not re.fullmatch("[0-9]{1,6}", length):
            self.send_error(411, "Length required, less than a megabyte")  # which also ends the connection
            return None
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else cut()

    def _respond(self, body: bytes) -> None:
        """Have the collector answer, and send each chunk as it comes."""
        chunks = self.server.collector(self._environ(body), self._start_response)
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(chunk)

    def _environ(self, body: bytes) -> WSGIEnvironment:
        """The request as WSGI has it, with the raw socket beside."""
        environ = self.get_environ()
        for name in ("Content-Type", "Content-Length"):
            if name not in self.headers:  # wsgiref invents them
                del environ[name.replace("-", "_").upper()]
        return environ | {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": self.get_stderr(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            SOCKET: self.connection,
        }

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], _: object = None, /
    ) -> Callable[[bytes], object]:
        """Send the status line and all headers, without the blank line after them."""
        code, _, reason = status.partition(" ")
        self.send_response_only(int(code), reason)
        for name, value in [("Date", self.date_time_string()), *headers]:
            self.send_header(name, value)
        bodiless = code in ("204", "304") or code.startswith("1")
        if self.close_connection or not (bodiless or "Content-Length" in dict(headers)):
            self.send_header("Connection", "close")  # http.server then closes it, too
        return self.wfile.write
