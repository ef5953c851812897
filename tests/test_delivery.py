"""From the outbox to Katalys: one attempt over a socket, and the relay that repeats it."""

from __future__ import annotations

import json
import logging
import queue
import shutil
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import requests

from katalys_wsgi import Click, Event, OrderUpdate, OutboxUnavailable, Settings
from katalys_wsgi import delivery as room
from katalys_wsgi.conversion.postback import Postback
from katalys_wsgi.delivery import Drained, Relay, Sender, back_off, judge, retry_after
from katalys_wsgi.events import Events
from katalys_wsgi.outbox import Entry, Receipt, State, Verdict
from katalys_wsgi.outbox import sqlite as sqlite_outbox
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .support import BUYER_AGENT, BUYER_IP, SECRET, SITE_ID, Clock, Stopwatch, make_conversion, wait_until

#: In no log, error or event, in no encoding.
PERSONAL = ("ann@example.com", "ann%40example.com", BUYER_IP, BUYER_AGENT, quote_plus(BUYER_AGENT), "X11")

HOUR = 3600.0


def make_postback(order_id: str = "1001") -> Postback:
    return Postback.from_conversion(
        make_conversion(order_id),
        site_id=SITE_ID,
        conversion_type="force_convert",
        click=Click("1234abcd", "1234", "5678", datetime(2026, 11, 22, tzinfo=timezone.utc)),
        client_ip=BUYER_IP,
        user_agent=BUYER_AGENT,
    )


PAYLOAD = make_postback().payload


def acting(act: Callable[[], None]) -> Misbehaviour:
    """Answers correctly, after ``act``."""
    return Misbehaviour("act", lambda *_: act())


# --- the rules, as pure functions --------------------------------------------------------------------------------

DELIVERED_BY = {204}
PAUSED_BY = {401, 403, 404, 405, 410}
RETRIED_AFTER = {408, 425, 429, *range(100, 204), *range(205, 400), *range(500, 600)}


def expected(status: int) -> Verdict:
    if status in DELIVERED_BY:
        return Verdict.DELIVERED
    if status in PAUSED_BY:
        return Verdict.MISCONFIGURED
    return Verdict.RETRY if status in RETRIED_AFTER else Verdict.REFUSED


class TestJudge:
    def test_every_status_has_its_verdict(self):
        """Only a 204 is Katalys' word that it received and parsed a message."""
        assert {status: judge(status) for status in range(100, 600)} == {
            status: expected(status) for status in range(100, 600)
        }

    @pytest.mark.parametrize("status", [-1, 0, 99, 600, 999])
    def test_what_is_no_status_is_tried_again(self, status):
        assert judge(status) is Verdict.RETRY


class TestBackOff:
    def test_the_longest_wait_doubles_up_to_an_hour(self):
        assert [round(back_off(attempts, 1.0)) for attempts in range(1, 13)] == [
            5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600,
        ]  # fmt: skip

    @pytest.mark.parametrize("attempts", [1, 2, 5, 11, 50, 10**9])
    def test_the_jitter_is_full(self, attempts):
        """Every wait from nothing to the longest is as likely; a crowd that failed together spreads out."""
        longest = back_off(attempts, 1.0)

        assert back_off(attempts, 0.0) == 0
        assert back_off(attempts, 0.25) == longest / 4
        assert longest <= HOUR


NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=timezone.utc)


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            pytest.param("120", 120, id="seconds"),
            pytest.param(" 120 ", 120, id="white space"),
            pytest.param("0", 0, id="at once"),
            pytest.param("21600", 6 * HOUR, id="six hours"),
            pytest.param("21601", 6 * HOUR, id="capped"),
            pytest.param("999999999", 6 * HOUR, id="30 years"),
            pytest.param("Sun, 22 Nov 2026 12:02:00 GMT", 120, id="date"),
            pytest.param("Sunday, 22-Nov-26 12:02:00 GMT", 120, id="date of RFC 850"),
            pytest.param("Sun Nov 22 12:02:00 2026", 120, id="date of asctime"),
            pytest.param("Sun, 22 Nov 2026 14:02:00 +0200", 120, id="another zone"),
            pytest.param("Sun, 22 Nov 2026 12:02:00 -0000", 120, id="unknown zone"),
            pytest.param("Sun, 22 Nov 2026 11:00:00 GMT", 0, id="past"),
            pytest.param("Sun, 29 Nov 2026 12:00:00 GMT", 6 * HOUR, id="date, capped"),
        ],
    )
    def test_seconds_and_dates_are_understood(self, header, seconds):
        assert retry_after(header, NOW) == seconds

    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "soon",
            "-5",
            "1e3",
            "1.5",
            "٣",
            "inf",
            "Sun, 99 Nov 2026 12:00:00 GMT",
            "1 Jan 99999 0:0 GMT",
            "\0",
        ],
    )
    def test_what_is_neither_is_ignored(self, header):
        assert retry_after(header, NOW) is None


# --- one attempt -------------------------------------------------------------------------------------------------


class Peer:
    """A server of raw bytes: the n-th request is answered with the n-th of ``answers``, then with the last again.

    An answer is a sequence of bytes to send and seconds to wait; None hangs up.
    """

    def __init__(self, answers: Sequence[Any], tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._answers = chain(answers, repeat(answers[-1])) if answers else None
        self._tls = tls
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.idle: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._threads: list[threading.Thread] = []
        self._thread.start()

    def close(self) -> None:
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
            while request := self._read(connection):
                self.requests.append(request)
                if self._answers is None or not self._say(connection, next(self._answers)):
                    return

    def _read(self, connection: socket.socket) -> bytes:
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

    def _say(self, connection: socket.socket, answer: Any) -> bool:
        for part in answer or ():
            if isinstance(part, float):
                time.sleep(part)
            else:
                connection.sendall(part)
        return answer is not None


NO_CONTENT = [b"HTTP/1.1 204 No Content\r\n\r\n"]
UNAVAILABLE = [b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"]


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(*answers: Any, tls: ssl.SSLContext | None = None) -> Peer:
        made.append(Peer(answers, tls))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def make_sender() -> Iterator[Callable[..., Sender]]:
    """Makes a sender for an endpoint, or for the port of a peer; closes it after the test."""
    made: list[Sender] = []

    def make(endpoint: str | int, **options: Any) -> Sender:
        address = endpoint if isinstance(endpoint, str) else f"http://127.0.0.1:{endpoint}/v2/_tr_offline"
        made.append(Sender(Settings(site_id=SITE_ID, secret_key=SECRET, endpoint=address, **options)))
        return made[-1]

    yield make
    for sender in made:
        sender.close()


@pytest.fixture
def sender(sandbox: Sandbox, make_sender: Callable[..., Sender]) -> Sender:
    """Sends to the sandbox; gives up after 0.4 seconds."""
    return make_sender(sandbox.endpoint, deadline=0.4)


@contextmanager
def traced_memory() -> Iterator[SimpleNamespace]:
    """Afterwards ``peak`` is how many bytes were needed at a time."""
    memory = SimpleNamespace()
    traced_before = tracemalloc.is_tracing()
    tracemalloc.start()
    tracemalloc.reset_peak()
    begin, _ = tracemalloc.get_traced_memory()
    try:
        yield memory
    finally:
        memory.peak = tracemalloc.get_traced_memory()[1] - begin
        if not traced_before:
            tracemalloc.stop()


class TestWire:
    """What a byte-for-byte look at the socket shows; the values are those of test_postback's golden tests."""

    FORM = (
        "type=force_convert&site_id=KA-1A2B3C4&order_id=1001&email_address=ann%40example.com&sale_amount=59.90"
        "&subtotal_amount=50.00&client_ip=203.0.113.7"
        "&user_agent=Mozilla%2F5.0+%28X11%3B+Linux+x86_64%29+Test%2F1.0&discount_1_code=SPRING"
        "&transaction_id=1234abcd&offer_id=1234&aff_id=5678"
    )

    def sent(self, peer: Callable[..., Peer], make_sender: Callable[..., Sender], wire: str) -> tuple[str, ...]:
        """The request line, the headers and the body."""
        katalys = peer(NO_CONTENT)
        assert make_sender(katalys.port, wire=wire).send(PAYLOAD).verdict is Verdict.DELIVERED
        head, _, body = katalys.requests[0].decode("ascii").partition("\r\n\r\n")
        line, _, headers = head.partition("\r\n")
        return line, headers, body

    def test_json(self, peer, make_sender):
        line, headers, body = self.sent(peer, make_sender, "json")

        assert line == "POST /v2/_tr_offline HTTP/1.1"
        assert "Content-Type: application/json" in headers.split("\r\n")
        assert body == PAYLOAD

    def test_form(self, peer, make_sender):
        line, headers, body = self.sent(peer, make_sender, "form")

        assert line == "POST /v2/_tr_offline HTTP/1.1"
        assert "Content-Type: application/x-www-form-urlencoded" in headers.split("\r\n")
        assert body == self.FORM

    def test_get(self, peer, make_sender):
        line, headers, body = self.sent(peer, make_sender, "get")

        assert line == f"GET /v2/_tr_offline?{self.FORM} HTTP/1.1"
        assert "content-type" not in headers.lower()
        assert body == ""

    @pytest.mark.parametrize("wire", ["json", "form", "get"])
    def test_no_header_says_more_than_it_must(self, peer, make_sender, wire):
        _, headers, _ = self.sent(peer, make_sender, wire)
        names = {line.partition(":")[0].lower() for line in headers.split("\r\n")}

        assert names - {"content-type", "content-length"} == {"host", "user-agent", "accept", "accept-encoding"}
        assert "python" not in headers.lower()


class TestAnswers:
    def test_every_status_becomes_the_receipt_of_the_table(self, sandbox, make_sender):
        sender = make_sender(sandbox.endpoint)
        receipts = {}
        for status in range(200, 600):
            sandbox.collector.misbehave(Misbehaviour.status(status))
            receipts[status] = sender.send(PAYLOAD)

        assert {status: receipt.verdict for status, receipt in receipts.items()} == {
            status: expected(status) for status in receipts
        }
        assert all(receipt.status == status for status, receipt in receipts.items())
        assert {receipt.error for receipt in receipts.values()} == {
            None if status == 204 else f"HTTP {status}" for status in receipts
        }
        assert [status for status, receipt in receipts.items() if receipt.confirmed] == [204]
        assert len(sandbox.collector.received) == 400

    def test_an_interim_status_alone_is_no_answer(self, sandbox, make_sender):
        sandbox.collector.misbehave(Misbehaviour.status(103))

        assert make_sender(sandbox.endpoint, deadline=0.2).send(PAYLOAD).verdict is Verdict.RETRY

    def test_the_receipt_says_what_katalys_said(self, sandbox, sender):
        sandbox.collector.misbehave(Misbehaviour.status(400, body=b"order_id: is odd\n"))

        assert sender.send(PAYLOAD).error == "HTTP 400: order_id: is odd"

    def test_a_204_is_delivered(self, sandbox, sender):
        assert sender.send(PAYLOAD) == Receipt(Verdict.DELIVERED, 204, None, None, confirmed=True)
        assert [received.body.decode() for received in sandbox.collector.accepted] == [PAYLOAD]

    def test_the_204_of_a_get_proves_nothing(self, sandbox, make_sender):
        receipt = make_sender(sandbox.endpoint, wire="get").send(PAYLOAD)

        assert receipt == Receipt(Verdict.DELIVERED, 204, None, None, confirmed=False)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("wire", ["json", "get"])
    def test_a_redirect_is_never_followed(self, sandbox, make_sender, status, wire):
        """A 302 turns a POST into an empty GET that ends in a 204; a 307 takes the buyer's data to another host."""
        with Sandbox() as elsewhere:
            headers = {"Location": elsewhere.endpoint}
            sandbox.collector.misbehave(Misbehaviour.status(status, headers=headers), times=1)

            receipt = make_sender(sandbox.endpoint, wire=wire).send(PAYLOAD)

        assert (receipt.verdict, receipt.status) == (Verdict.RETRY, status)
        assert elsewhere.collector.received == ()
        assert len(sandbox.collector.received) == 1

    @pytest.mark.parametrize(
        ("header", "seconds"), [("120", 120.0), ("nonsense", None), (None, None), ("10000000", 6 * HOUR)]
    )
    @pytest.mark.parametrize("status", [429, 503])
    def test_the_receipt_tells_how_long_katalys_asks_to_wait(self, sandbox, sender, status, header, seconds):
        headers = {"Retry-After": header} if header else {}
        sandbox.collector.misbehave(Misbehaviour.status(status, headers=headers))

        assert sender.send(PAYLOAD).retry_after == seconds

    def test_a_date_to_wait_for(self, sandbox, sender):
        date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=100), usegmt=True)
        sandbox.collector.misbehave(Misbehaviour.status(503, headers={"Retry-After": date}))

        assert sender.send(PAYLOAD).retry_after == pytest.approx(100, abs=3)

    def test_interim_answers_are_not_the_answer(self, peer, make_sender):
        """RFC 9110 §15.2: a client must be able to parse any number of them."""
        interim = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
        katalys = peer([interim, *NO_CONTENT], [b"HTTP/1.1 100 Continue\r\n\r\n", *UNAVAILABLE])
        sender = make_sender(katalys.port)

        assert [sender.send(PAYLOAD).status for _ in range(2)] == [204, 503]

    def test_a_row_is_never_settled_by_the_answer_to_another(self, peer, make_sender):
        """The answer of the first comes after an interim one; on the same connection, as that of the second."""
        katalys = peer(
            [b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.1, *NO_CONTENT],
            [0.1, b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"],
        )
        sender = make_sender(katalys.port)
        first, second = sender.send(PAYLOAD), sender.send(PAYLOAD)

        assert first.verdict is Verdict.DELIVERED
        assert (second.verdict, second.status) == (Verdict.RETRY, 503)


class TestBrokenAnswers:
    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(None, id="hangs up"),
            pytest.param([b"\r\n\r\n"], id="empty lines"),
            pytest.param([b"SSH-2.0-OpenSSH_9.2\r\n"], id="another protocol"),
            pytest.param([b"HTTP/1.1 \r\n\r\n"], id="no status"),
            pytest.param([b"HTTP/1.1 abc OK\r\n\r\n"], id="status is no number"),
            pytest.param([b"HTTP/1.1 99999 OK\r\n\r\n"], id="long status"),
            pytest.param([b"HTTP/1.1 204" + b"x" * 70_000], id="long line"),
            pytest.param([b"HTTP/1.1 204 OK\r\n" + b"X: 1\r\n" * 200 + b"\r\n"], id="many headers"),
            pytest.param([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"], id="broken chunk"),
            pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"], id="cut short"),
        ],
    )
    def test_whatever_comes_back_is_tried_again(self, peer, make_sender, answer):
        katalys = peer(answer)
        sender = make_sender(katalys.port, deadline=0.5)
        with Stopwatch() as watch:
            receipt = sender.send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert receipt.error
        assert watch.seconds < 1.5

    def test_a_reset_after_the_request_was_accepted(self, sandbox, sender):
        sandbox.collector.misbehave(Misbehaviour.reset(), times=1)

        receipt = sender.send(PAYLOAD)

        assert (receipt.verdict, receipt.status) == (Verdict.RETRY, None)
        assert "reset" in (receipt.error or "").lower()
        assert sender.send(PAYLOAD).verdict is Verdict.DELIVERED

    def test_nobody_listens(self, sandbox, sender):
        sandbox.stop()

        receipt = sender.send(PAYLOAD)

        assert (receipt.verdict, receipt.status) == (Verdict.RETRY, None)
        assert "refused" in (receipt.error or "")

    def test_a_host_that_does_not_answer_at_all(self, make_sender):
        """A full queue of connections swallows the next one, as a firewall would."""
        with ExitStack() as stack:
            server = stack.enter_context(socket.socket())
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            for _ in range(3):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(server.getsockname())
            sender = make_sender(server.getsockname()[1], connect_timeout=0.3)
            with Stopwatch() as watch:
                receipt = sender.send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert watch.seconds < 1.3

    @pytest.mark.parametrize("payload", ["", "{", "[]", '{"vid": 5}', '{"vid": "\\ud800"}'])
    @pytest.mark.parametrize("wire", ["json", "form", "get"])
    def test_a_payload_that_somebody_spoilt_raises_nothing(self, sandbox, make_sender, payload, wire):
        receipt = make_sender(sandbox.endpoint, wire=wire).send(payload)

        assert receipt.verdict in (Verdict.RETRY, Verdict.REFUSED, Verdict.DELIVERED)

    @pytest.mark.parametrize(
        "behaviour",
        [
            pytest.param(Misbehaviour.hang(), id="hang"),
            pytest.param(Misbehaviour.drip_headers(0.05), id="dripping header"),
            pytest.param(Misbehaviour.drip_body(0.05), id="dripping body"),
            pytest.param(Misbehaviour.drip_body(0.05, status=503), id="dripping error"),
        ],
    )
    def test_the_deadline_holds_whatever_drips(self, sandbox, sender, behaviour):
        """A read timeout starts anew with every byte."""
        sandbox.collector.misbehave(behaviour, times=1)
        with Stopwatch() as watch:
            receipt = sender.send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert 0.3 < watch.seconds < 1.4
        assert sender.send(PAYLOAD).verdict is Verdict.DELIVERED

    def test_a_silent_server_is_given_up_at_the_read_timeout(self, sandbox, make_sender):
        sandbox.collector.misbehave(Misbehaviour.hang())
        with Stopwatch() as watch:
            receipt = make_sender(sandbox.endpoint, read_timeout=0.3).send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert 0.2 < watch.seconds < 1.3

    def test_one_attempt_may_have_a_shorter_deadline(self, sandbox, make_sender):
        sandbox.collector.misbehave(Misbehaviour.hang())
        with Stopwatch() as watch:
            make_sender(sandbox.endpoint).send(PAYLOAD, deadline=0.3)

        assert 0.2 < watch.seconds < 1.3

    def test_a_server_that_never_ends_its_tls_handshake(self, peer, make_sender):
        katalys = peer()
        with Stopwatch() as watch:
            receipt = make_sender(f"https://127.0.0.1:{katalys.port}/", deadline=0.4).send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert 0.2 < watch.seconds < 1.4

    @pytest.mark.parametrize(
        ("behaviour", "verdict"),
        [
            pytest.param(Misbehaviour.gzip_bomb(), Verdict.RETRY, id="gzip bomb"),
            pytest.param(Misbehaviour.gzip_bomb(status=400), Verdict.REFUSED, id="gzip bomb, refused"),
            pytest.param(Misbehaviour.huge_body(), Verdict.RETRY, id="endless body"),
            pytest.param(Misbehaviour.huge_body(status=400), Verdict.REFUSED, id="endless body, refused"),
        ],
    )
    def test_of_a_huge_answer_little_is_read(self, sandbox, sender, behaviour, verdict):
        sandbox.collector.misbehave(behaviour)
        sender.send(PAYLOAD)  # the sandbox makes its bomb at the first time
        with traced_memory() as memory, Stopwatch() as watch:
            receipt = sender.send(PAYLOAD)

        assert receipt.verdict is verdict
        assert len(receipt.error or "") < 300
        assert memory.peak < 2_000_000
        assert watch.seconds < 1.4


class TestConnections:
    def test_a_connection_is_used_again(self, peer, make_sender):
        katalys = peer(NO_CONTENT, UNAVAILABLE, [b"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno"], NO_CONTENT)
        sender = make_sender(katalys.port)

        assert [sender.send(PAYLOAD).status for _ in range(4)] == [204, 503, 400, 204]
        assert katalys.connections == 1

    def test_a_connection_that_katalys_closed_meanwhile_costs_no_attempt(self, peer, make_sender):
        katalys = peer(NO_CONTENT, None, NO_CONTENT)
        sender = make_sender(katalys.port)
        sender.send(PAYLOAD)
        sender.send(PAYLOAD)  # hung up on

        assert sender.send(PAYLOAD).verdict is Verdict.DELIVERED
        assert katalys.connections == 2

    def test_an_answer_that_was_not_read_to_its_end_costs_the_connection(self, peer, make_sender):
        """What is left of it must not be taken for the next answer."""
        body = b"HTTP/1.1 204 No Content\r\n\r\n" * 1000
        answer = b"HTTP/1.1 503 No\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        katalys = peer([answer], UNAVAILABLE)
        sender = make_sender(katalys.port)

        assert [sender.send(PAYLOAD).status for _ in range(2)] == [503, 503]
        assert katalys.connections == 2

    def test_threads_share_a_sender(self, sandbox, make_sender):
        sender = make_sender(sandbox.endpoint, delivery_workers=4)
        receipts: list[Receipt] = []
        threads = [
            threading.Thread(target=lambda: receipts.extend(sender.send(PAYLOAD) for _ in range(5))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [receipt.verdict for receipt in receipts] == [Verdict.DELIVERED] * 30

    def test_a_closed_sender_connects_again(self, peer, make_sender):
        katalys = peer(NO_CONTENT)
        sender = make_sender(katalys.port)
        sender.close()
        sender.send(PAYLOAD)
        sender.close()
        sender.close()

        assert sender.send(PAYLOAD).verdict is Verdict.DELIVERED
        assert katalys.connections == 2


class TestTheEnvironmentsBusiness:
    def test_no_cookie_is_kept(self, sandbox, sender):
        headers = {"Set-Cookie": "session=1; Path=/"}
        sandbox.collector.misbehave(Misbehaviour.status(503, headers=headers), times=1)
        sender.send(PAYLOAD)
        sender.send(PAYLOAD)

        assert [received.headers.get("Cookie") for received in sandbox.collector.received] == [None, None]

    @pytest.mark.parametrize("how", ["HOME", "NETRC"])
    def test_no_netrc_is_read(self, sandbox, sender, tmp_path, monkeypatch, how):
        netrc = tmp_path / ".netrc"
        netrc.write_text("machine 127.0.0.1 login mallory password secret\ndefault login mallory password secret\n")
        netrc.chmod(0o600)
        monkeypatch.delenv("NETRC", raising=False)
        monkeypatch.setenv(how, str(tmp_path if how == "HOME" else netrc))

        assert requests.Session().get(sandbox.url, timeout=5).request.headers["Authorization"]  # the file is sound
        assert sender.send(PAYLOAD).verdict is Verdict.DELIVERED
        assert "Authorization" not in sandbox.collector.received[-1].headers

    def test_loopback_needs_no_proxy(self, sandbox, make_sender, monkeypatch):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")

        assert make_sender(sandbox.endpoint).send(PAYLOAD).verdict is Verdict.DELIVERED

    @pytest.fixture
    def without_proxies(self, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
        for name in ("https_proxy", "all_proxy", "no_proxy", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        return monkeypatch

    def test_a_proxy_is_looked_up_once_and_learns_no_personal_data(self, peer, make_sender, without_proxies):
        proxy, other = peer([b"HTTP/1.1 502 Bad Gateway\r\n\r\n"]), peer([b"HTTP/1.1 502 Bad Gateway\r\n\r\n"])
        without_proxies.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        sender = make_sender("https://katalys.invalid/v2/_tr_offline", wire="get")

        first = sender.send(PAYLOAD)
        without_proxies.setenv("HTTPS_PROXY", f"http://127.0.0.1:{other.port}")
        second = sender.send(PAYLOAD)

        assert [first.verdict, second.verdict] == [Verdict.RETRY, Verdict.RETRY]
        assert [request.split()[:2] for request in proxy.requests] == [[b"CONNECT", b"katalys.invalid:443"]] * 2
        assert other.requests == []
        assert all(value.encode() not in b"".join(proxy.requests) for value in PERSONAL)

    def test_the_deadline_holds_for_a_dripping_proxy(self, peer, make_sender, without_proxies):
        drips = chain.from_iterable(zip((bytes([byte]) for byte in b"HTTP/1.1 200 " + b"x" * 60), repeat(0.05)))
        proxy = peer(list(drips))
        without_proxies.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with Stopwatch() as watch:
            receipt = make_sender("https://katalys.invalid/v2/_tr_offline", deadline=0.4).send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert watch.seconds < 1.4


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path, missing: Callable[[str], None]) -> Path:
        """A certificate for 127.0.0.1 that nobody vouches for, and its key, in one file."""
        if not shutil.which("openssl"):
            missing("openssl makes the certificate of this test")
        files = [f"{tmp_path}/key.pem", f"{tmp_path}/cert.pem"]
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
                *("-subj", "/CN=test", "-days", "2", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
                *("-keyout", files[0], "-out", files[1]),
            ],
            check=True,
            capture_output=True,
        )
        both = tmp_path / "both.pem"
        both.write_text("".join(Path(file).read_text() for file in files))
        return both

    @pytest.fixture
    def katalys(self, certificate: Path, peer: Callable[..., Peer]) -> Peer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        return peer(NO_CONTENT, tls=context)

    def test_a_certificate_that_nobody_vouches_for_is_refused(self, katalys, make_sender):
        receipt = make_sender(f"https://127.0.0.1:{katalys.port}/").send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert (receipt.error or "").startswith("TLS: self")
        assert katalys.requests == []

    def test_a_bundle_of_the_environment_is_believed(self, katalys, make_sender, certificate, monkeypatch):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        sender = make_sender(f"https://127.0.0.1:{katalys.port}/v2/_tr_offline")

        assert [sender.send(PAYLOAD).verdict for _ in range(2)] == [Verdict.DELIVERED] * 2
        assert katalys.requests[0].endswith(PAYLOAD.encode())
        assert katalys.connections == 1

    def test_the_certificate_must_be_the_hosts(self, katalys, make_sender, certificate, monkeypatch):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        monkeypatch.setenv("NO_PROXY", "localhost")

        receipt = make_sender(f"https://localhost:{katalys.port}/").send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert katalys.requests == []


class TestPersonalData:
    """Neither logs nor errors tell who bought: they are read by many and kept for long."""

    @pytest.mark.parametrize(
        "repeated",
        [
            pytest.param(PAYLOAD, id="json"),
            pytest.param(json.dumps(json.loads(PAYLOAD), indent=2), id="spaced json"),
            pytest.param(TestWire.FORM, id="form"),
            pytest.param(TestWire.FORM.replace("+", "%20"), id="percent-encoded"),
            pytest.param(f"no such buyer: ANN@EXAMPLE.COM from {BUYER_IP} with {BUYER_AGENT}", id="words"),
            pytest.param(f"<b>{quote('ann@example.com')}</b>", id="html"),
        ],
    )
    @pytest.mark.parametrize("wire", ["json", "form", "get"])
    def test_an_answer_that_repeats_the_request_is_scrubbed(self, sandbox, make_sender, wire, repeated):
        sandbox.collector.misbehave(Misbehaviour.status(400, body=repeated.encode()))

        error = make_sender(sandbox.endpoint, wire=wire).send(PAYLOAD).error or ""

        assert error.startswith("HTTP 400: ")
        assert [value for value in PERSONAL if value.lower() in error.lower()] == []

    def test_an_error_is_short_and_on_one_line(self, sandbox, sender):
        sandbox.collector.misbehave(Misbehaviour.status(500, body=b"first\r\nsecond \xff" + b"x" * 3000))

        error = sender.send(PAYLOAD).error or ""

        assert error.startswith("HTTP 500: first second")
        assert len(error) < 300
        assert error.isprintable()

    ANSWERS = (
        pytest.param(NO_CONTENT, id="delivered"),
        pytest.param(UNAVAILABLE, id="unavailable"),
        pytest.param(
            [b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"], id="redirect"
        ),
        pytest.param([b"HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"], id="retry after"),
        pytest.param([b"HTTP/1.1 204 No Content\r\nthis is no header\r\n\r\n"], id="broken header"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"], id="no gzip"),
        pytest.param([b"nonsense\r\n\r\n"], id="no http"),
        pytest.param(None, id="hang up"),
        pytest.param([0.5], id="silence"),
    )

    @pytest.mark.parametrize("answer", ANSWERS)
    @pytest.mark.parametrize("wire", ["json", "get"])
    def test_no_log_tells_who_bought(self, peer, make_sender, caplog, answer, wire):
        """At DEBUG urllib3 logs each address, and at WARNING one whose answer is broken; a GET's holds everything."""
        caplog.set_level(logging.DEBUG)
        katalys = peer(answer)
        sender = make_sender(katalys.port, wire=wire, deadline=0.2)
        receipts = [sender.send(PAYLOAD) for _ in range(2)]

        assert [value for value in PERSONAL if value in caplog.text] == []
        assert [value for value in PERSONAL if value in repr(receipts)] == []

    def test_the_shops_own_requests_are_logged_as_ever(self, sandbox, sender, caplog):
        caplog.set_level(logging.DEBUG)
        sender.send(PAYLOAD)
        requests.get(sandbox.url, timeout=5)

        logged = [record for record in caplog.records if record.name == "urllib3.connectionpool"]
        assert any('"GET / HTTP/1.1"' in record.getMessage() for record in logged)


# --- the relay ---------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock) -> Iterator[SQLiteOutbox]:
    outbox = SQLiteOutbox(tmp_path / "outbox.db", clock=clock)
    yield outbox
    outbox.close()


@pytest.fixture
def events() -> list[Event]:
    """What the relays told."""
    return []


@pytest.fixture
def make_relay(sandbox: Sandbox, outbox: SQLiteOutbox, clock: Clock, events: list[Event]) -> Callable[..., Relay]:
    """Makes relays of one worker to the sandbox; every back-off lasts as long as it may."""

    def make(**options: Any) -> Relay:
        settings = Settings(
            **{
                "site_id": SITE_ID,
                "secret_key": SECRET,
                "endpoint": sandbox.endpoint,
                "delivery_workers": 1,
                **options,
            }
        )
        return Relay(outbox, settings, events=Events([events.append]), clock=clock, chance=lambda: 1.0)

    return make


@pytest.fixture
def relay(make_relay: Callable[..., Relay]) -> Relay:
    return make_relay()


def record(outbox: SQLiteOutbox, *order_ids: object) -> None:
    for order_id in order_ids:
        outbox.add(make_postback(str(order_id)))


def row(outbox: SQLiteOutbox, order_id: object = "1001") -> Entry:
    return outbox.history(str(order_id))[0]


def states(outbox: SQLiteOutbox, order_ids: Sequence[object]) -> list[str]:
    return [row(outbox, order_id).state for order_id in order_ids]


def orders(received: Sequence[Any]) -> list[str]:
    return [one.fields["order_id"] for one in received]


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def drained_in_time(relay: Relay) -> bool:
    """Drains; false if that does not end."""
    stop = threading.Event()
    thread = threading.Thread(target=relay.drain, args=(stop,), daemon=True)
    thread.start()
    thread.join(5)
    in_time = not thread.is_alive()
    stop.set()
    thread.join(5)
    return in_time


class TestDrain:
    @pytest.mark.parametrize("workers", [1, 4])
    def test_everything_that_is_due_is_delivered_once(self, make_relay, outbox, sandbox, workers):
        record(outbox, *range(50))
        relay = make_relay(delivery_workers=workers)

        assert relay.drain() == Drained(settled=50)
        assert sorted(orders(sandbox.collector.received), key=int) == [str(number) for number in range(50)]
        assert not any(received.duplicate for received in sandbox.collector.received)
        assert relay.drain() == Drained()

    def test_one_worker_delivers_in_the_order_of_recording(self, relay, outbox, sandbox):
        record(outbox, *"cab")
        relay.drain()

        assert orders(sandbox.collector.accepted) == ["c", "a", "b"]

    def test_more_rows_than_are_claimed_at_a_time(self, relay, outbox, sandbox):
        record(outbox, *range(room.ROWS_PER_WORKER * 2 + 5))

        assert relay.drain().settled == room.ROWS_PER_WORKER * 2 + 5

    def test_a_delivered_row_holds_no_personal_data(self, relay, outbox, events):
        record(outbox, "1001")
        relay.drain()

        entry = row(outbox)
        assert (entry.state, entry.payload, entry.last_status, entry.confirmed) == (State.DELIVERED, None, 204, True)
        assert names(events) == ["postback_delivered"]
        assert events[0].fields["order_id"] == "1001"

    def test_a_delivery_over_get_is_marked_as_unconfirmed(self, make_relay, outbox, sandbox):
        record(outbox, "1001")
        make_relay(wire="get").drain()

        assert (row(outbox).state, row(outbox).confirmed) == (State.DELIVERED, False)
        assert orders(sandbox.collector.accepted) == ["1001"]

    def test_each_attempt_sends_the_same_bytes(self, relay, outbox, sandbox, clock):
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(503), times=2)
        for _ in range(3):
            relay.drain()
            clock.advance(HOUR)

        assert [received.status for received in sandbox.collector.received] == [503, 503, 204]
        assert {received.body for received in sandbox.collector.received} == {make_postback().payload.encode()}

    def test_an_update_waits_for_its_conversion(self, relay, outbox, sandbox, clock):
        record(outbox, "1001")
        outbox.add(Postback.from_update(OrderUpdate("1001", order_status="paid"), site_id=SITE_ID))
        sandbox.collector.misbehave(Misbehaviour.status(503), times=1)

        assert relay.drain() == Drained(postponed=1)
        clock.advance(60)
        assert relay.drain() == Drained(settled=2)
        assert [received.is_update for received in sandbox.collector.received] == [False, False, True]

    def test_two_relays_share_an_outbox(self, make_relay, outbox, sandbox):
        record(outbox, *range(60))
        relays = [make_relay(delivery_workers=2), make_relay(delivery_workers=2)]
        drained: list[Drained] = []
        threads = [threading.Thread(target=lambda relay=relay: drained.append(relay.drain())) for relay in relays]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sum(one.settled for one in drained) == 60
        assert len(sandbox.collector.received) == 60

    def test_a_stop_begins_no_further_row(self, relay, outbox, sandbox):
        record(outbox, *range(10))
        stop = threading.Event()
        sandbox.collector.misbehave(acting(stop.set), times=1)

        assert relay.drain(stop) == Drained(settled=1)
        assert relay.drain(stop) == Drained()
        assert len(sandbox.collector.received) == 1
        assert [row(outbox, number).attempts for number in range(10)] == [1] + [0] * 9
        assert relay.drain() == Drained(settled=9)

    def test_a_row_that_waited_too_long_in_hand_is_not_sent(self, relay, outbox, sandbox, clock):
        """Its lease might end, and another relay begin, while it is being sent."""
        record(outbox, *range(3))
        sandbox.collector.misbehave(acting(lambda: clock.advance(50)), times=1)

        assert relay.drain() == Drained(settled=3)
        assert len(sandbox.collector.received) == 3
        assert [row(outbox, number).attempts for number in range(3)] == [1, 1, 1]

    @pytest.mark.parametrize("skew", [-HOUR, -50, 50, HOUR])
    def test_the_clock_of_a_database_may_be_another_one(self, make_relay, tmp_path, sandbox, clock, skew):
        """Leases are counted by the outbox's clock; on another host that is never quite the relay's."""
        elsewhere = SQLiteOutbox(tmp_path / "elsewhere.db", clock=lambda: clock() + skew)
        record(elsewhere, *range(5))
        relay = make_relay()
        relay._outbox = elsewhere
        in_time = drained_in_time(relay)
        elsewhere.close()

        assert in_time
        assert len(sandbox.collector.accepted) == 5

    def test_what_was_finished_long_ago_is_deleted_now_and_then(self, make_relay, outbox, clock, events):
        relay = make_relay(retention=timedelta(days=90))
        record(outbox, "1001")
        relay.drain()
        clock.advance(91 * 24 * HOUR)
        record(outbox, "1002")
        relay.drain()

        assert outbox.history("1001") == []
        assert row(outbox, "1002").state == State.DELIVERED
        assert names(events)[-1] == "outbox_pruned"


class TestFailures:
    def test_a_failed_row_waits_longer_each_time(self, relay, outbox, sandbox, clock):
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(503))
        waits = []
        for _ in range(4):
            assert relay.drain() == Drained(postponed=1)
            waits.append(row(outbox).due_at - clock())
            clock.advance(waits[-1])

        assert waits == [5, 10, 20, 40]
        assert row(outbox).attempts == 4
        assert [attempt.status for attempt in row(outbox).history] == [503] * 4

    def test_nothing_is_sent_before_it_is_due(self, relay, outbox, sandbox, clock):
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(503), times=1)
        relay.drain()
        clock.advance(4)

        assert relay.drain() == Drained()
        clock.advance(1)
        assert relay.drain() == Drained(settled=1)

    @pytest.mark.parametrize(("header", "wait"), [("120", 120), ("1000000", 6 * HOUR)])
    def test_katalys_may_say_how_long(self, relay, outbox, sandbox, clock, header, wait):
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(429, headers={"Retry-After": header}), times=1)
        relay.drain()

        assert row(outbox).due_at - clock() == wait
        clock.advance(wait)
        assert relay.drain() == Drained(settled=1)

    @pytest.mark.parametrize("status", [400, 402, 409, 413, 415, 422])
    def test_what_katalys_refuses_is_buried_at_once_and_loudly(self, relay, outbox, sandbox, clock, events, status):
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(status, body=b"order_id: is odd"), times=1)

        assert relay.drain() == Drained(buried=1)
        entry = row(outbox)
        assert (entry.state, entry.last_status, entry.attempts) == (State.DEAD, status, 1)
        assert entry.payload
        assert "order_id: is odd" in (entry.last_error or "")
        assert [(event.name, event.level) for event in events] == [("postback_buried", logging.ERROR)]

    def test_a_row_that_failed_for_a_week_is_given_up(self, relay, outbox, sandbox, clock, events):
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(503))
        assert relay.drain() == Drained(postponed=1)
        clock.advance(7 * 24 * HOUR)

        assert relay.drain() == Drained(buried=1)
        assert row(outbox).state == State.DEAD
        assert names(events) == ["postback_postponed", "postback_buried"]

    def test_a_row_that_waited_for_a_week_is_tried_once_at_least(self, relay, outbox, sandbox, clock):
        """The shop was off; the time began when the order was recorded."""
        record(outbox, "1001")
        clock.advance(30 * 24 * HOUR)

        assert relay.drain() == Drained(settled=1)

    def test_a_row_in_place_of_an_old_dead_letter_has_its_whole_time(self, relay, outbox, sandbox, clock):
        outbox.add(make_postback(), problems=["vid: is blank"])
        clock.advance(30 * 24 * HOUR)
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(503), times=1)

        assert relay.drain() == Drained(postponed=1)
        assert row(outbox).state == State.PENDING

    def test_refused_rows_stop_nobody(self, relay, outbox, sandbox):
        """Ten bad orders are no reason to doubt Katalys."""
        record(outbox, *range(20))
        sandbox.collector.misbehave(Misbehaviour.status(400), times=10)

        assert relay.drain() == Drained(settled=10, buried=10)

    def test_a_hanging_row_holds_up_nobody(self, make_relay, outbox, sandbox):
        record(outbox, *range(20))
        sandbox.collector.misbehave(Misbehaviour.hang(), times=1)
        relay = make_relay(delivery_workers=2, deadline=0.6)
        with Stopwatch() as watch:
            drained = relay.drain()

        assert drained == Drained(settled=19, postponed=1)
        assert watch.seconds < 3

    @pytest.mark.parametrize("payload", [None, "{", "[]"], ids=["gone", "cut", "list"])
    def test_a_row_that_somebody_spoilt_holds_up_nobody(self, relay, outbox, sandbox, tmp_path, payload):
        """By hand, or saved from a damaged file: it must neither end the relay nor keep it busy for ever."""
        record(outbox, *range(3))
        with closing(sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)) as db:
            db.execute("UPDATE katalys_outbox SET payload = ? WHERE order_id = '0'", (payload,))

        assert drained_in_time(relay)
        assert sorted(orders(sandbox.collector.accepted)) == ["1", "2"]
        assert row(outbox, 0).state in (State.PENDING, State.DEAD)

    def test_counts_of_a_mixed_day(self, relay, outbox, sandbox):
        record(outbox, *range(4))
        answers = iter([Misbehaviour.status(503), Misbehaviour.status(400), Misbehaviour.reset()])

        def next_one(*arguments: Any) -> Any:
            return next(answers).act(*arguments)

        sandbox.collector.misbehave(Misbehaviour("mixed", next_one), times=3)

        assert relay.drain() == Drained(settled=1, postponed=2, buried=1)
        assert states(outbox, range(4)) == [State.PENDING, State.DEAD, State.PENDING, State.DELIVERED]

    def test_no_event_or_row_tells_who_bought(self, relay, outbox, sandbox, clock, events, caplog):
        caplog.set_level(logging.DEBUG)
        record(outbox, *range(6))
        for behaviour in (
            Misbehaviour.status(503, body=PAYLOAD.encode()),
            Misbehaviour.status(400),
            Misbehaviour.reset(),
        ):
            sandbox.collector.misbehave(behaviour, times=1)
            relay.drain()
        told = str(events) + " ".join(map(str, events)) + caplog.text + str([outbox.history(str(n)) for n in range(6)])

        assert {"postback_delivered", "postback_postponed", "postback_buried"} >= set(names(events))
        assert [value for value in PERSONAL if value in told] == []


class TestBreaker:
    """After five failures in a row, one row at a time finds out when Katalys is back."""

    @pytest.mark.parametrize(
        "fail",
        [
            pytest.param(lambda sandbox: sandbox.collector.misbehave(Misbehaviour.status(503)), id="503"),
            pytest.param(lambda sandbox: sandbox.collector.misbehave(Misbehaviour.reset()), id="reset"),
            pytest.param(lambda sandbox: sandbox.collector.misbehave(Misbehaviour.status(302)), id="302"),
            pytest.param(lambda sandbox: sandbox.stop(), id="refused"),
        ],
    )
    def test_five_failures_in_a_row_are_enough(self, relay, outbox, sandbox, events, fail):
        record(outbox, *range(20))
        fail(sandbox)

        assert relay.drain() == Drained(postponed=5)
        assert [row(outbox, number).attempts for number in range(20)] == [1] * 5 + [0] * 15
        assert names(events).count("endpoint_paused") == 1

    def test_several_workers_stop_as_soon(self, make_relay, outbox, sandbox):
        record(outbox, *range(40))
        sandbox.collector.misbehave(Misbehaviour.status(503))

        assert 5 <= make_relay(delivery_workers=4).drain().postponed <= 5 + 3
        assert len(sandbox.collector.received) <= 8

    def test_then_one_row_at_a_time_at_growing_intervals(self, relay, outbox, sandbox, clock):
        record(outbox, *range(20))
        sandbox.collector.misbehave(Misbehaviour.status(503))
        relay.drain()
        sandbox.collector.clear()
        probes = []
        for _ in range(300):
            clock.advance(1)
            before = len(sandbox.collector.received)
            relay.drain()
            if len(sandbox.collector.received) > before:
                probes.append(len(sandbox.collector.received) - before)

        assert probes == [1] * len(probes)
        assert 4 <= len(probes) <= 7  # after 5, 10, 20, 40, 80, 160 seconds

    def test_one_success_opens_it_again(self, relay, outbox, sandbox, clock, events):
        record(outbox, *range(20))
        sandbox.collector.misbehave(Misbehaviour.status(503), times=5)
        relay.drain()
        clock.advance(6)

        assert relay.drain() == Drained(settled=20)
        assert names(events).count("endpoint_resumed") == 1
        assert names(events).index("endpoint_resumed") > names(events).index("endpoint_paused")

    def test_a_success_in_between_starts_the_count_anew(self, relay, outbox, sandbox, events):
        record(outbox, *range(20))
        turns = iter(([503] * 4 + [0]) * 4)

        def act(*arguments: Any) -> Any:
            return Misbehaviour.status(503).act(*arguments) if next(turns) else None

        sandbox.collector.misbehave(Misbehaviour("four in five", act))

        assert relay.drain() == Drained(settled=4, postponed=16)
        assert "endpoint_paused" not in names(events)

    def test_a_pause_that_a_clock_jump_made_endless_ends(self, relay, outbox, sandbox, clock):
        record(outbox, *range(10))
        clock.advance(24 * HOUR)
        sandbox.collector.misbehave(Misbehaviour.status(503), times=5)
        assert relay.drain() == Drained(postponed=5)
        clock.advance(-24 * HOUR)

        assert relay.drain() == Drained(settled=10)

    def test_an_outage_of_a_day_loses_nothing(self, relay, outbox, sandbox, clock):
        record(outbox, *range(30))
        sandbox.collector.misbehave(Misbehaviour.status(503))
        for _ in range(24 * 2):
            relay.drain()
            clock.advance(HOUR / 2)
        sandbox.collector.behave()
        attempts = len(sandbox.collector.received)
        for _ in range(4):
            relay.drain()
            clock.advance(HOUR / 2)

        assert len(sandbox.collector.accepted) == 30
        assert states(outbox, range(30)) == [State.DELIVERED] * 30
        assert attempts < 100


class TestPause:
    """A wrong address or site_id is nobody's order's fault: nothing is buried, and nothing hammers at Katalys."""

    @pytest.mark.parametrize("status", [401, 403, 404, 405, 410])
    def test_the_first_answer_pauses_everything(self, relay, outbox, sandbox, clock, events, status):
        record(outbox, *range(10))
        sandbox.collector.misbehave(Misbehaviour.status(status))

        assert relay.drain() == Drained(postponed=1)
        assert relay.drain() == Drained()
        assert len(sandbox.collector.received) == 1
        paused = next(event for event in events if event.name == "endpoint_paused")
        assert (paused.level, paused.fields["status"]) == (logging.ERROR, status)

    def test_probes_come_one_by_one_and_ever_more_seldom(self, relay, outbox, sandbox, clock, events):
        record(outbox, *range(10))
        sandbox.collector.misbehave(Misbehaviour.status(403))
        waits, waited = [], 0
        relay.drain()
        while len(waits) < 8:
            clock.advance(1)
            waited += 1
            if relay.drain().postponed:
                waits.append(waited)
                waited = 0

        assert waits == [5, 10, 20, 40, 80, 160, 320, 640]
        assert len(sandbox.collector.received) == 9
        assert names(events).count("endpoint_paused") == 1

    def test_nothing_is_buried_however_long_it_takes(self, relay, outbox, sandbox, clock):
        record(outbox, *range(3))
        sandbox.collector.misbehave(Misbehaviour.status(404))
        for _ in range(10):
            relay.drain()
            clock.advance(7 * 24 * HOUR)
        assert states(outbox, range(3)) == [State.PENDING] * 3

        sandbox.collector.behave()
        assert relay.drain() == Drained(settled=3)

    def test_the_same_row_is_tried_again_without_a_back_off_of_its_own(self, relay, outbox, sandbox, clock):
        record(outbox, "1001")
        sandbox.collector.misbehave(Misbehaviour.status(403), times=3)
        for _ in range(4):
            relay.drain()
            clock.advance(HOUR)

        assert row(outbox).state == State.DELIVERED
        assert row(outbox).attempts == 4


class TestOutboxTrouble:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_outbox, "PATIENCE_IN_RELAY", 0.2)

    def test_what_cannot_be_marked_is_not_sent(self, relay, outbox, sandbox, tmp_path):
        """A relay that sends and cannot write it down would send the same rows for ever."""
        record(outbox, *range(10))
        other = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None, check_same_thread=False)

        def lock() -> None:
            other.execute("BEGIN EXCLUSIVE")

        sandbox.collector.misbehave(acting(lock), times=1)
        with pytest.raises(OutboxUnavailable):
            relay.drain()
        sent = len(sandbox.collector.received)
        with pytest.raises(OutboxUnavailable):
            relay.drain()
        assert len(sandbox.collector.received) == sent
        other.execute("ROLLBACK")
        other.close()

        assert relay.drain() == Drained(settled=10)
        assert sorted(orders(sandbox.collector.received), key=int) == [str(number) for number in range(10)]

    def test_a_running_relay_survives_and_goes_on(self, make_relay, outbox, sandbox, events, monkeypatch, tmp_path):
        monkeypatch.setattr(room, "POLL", 0.05)
        broken = tmp_path / "broken"
        (broken / "outbox.db").mkdir(parents=True)
        relay = make_relay()
        relay._outbox = SQLiteOutbox(broken / "outbox.db")
        stop, wake = threading.Event(), threading.Event()
        thread = threading.Thread(target=relay.run, args=(stop, wake))
        thread.start()
        try:
            wait_until(lambda: "outbox_unavailable" in names(events))
            (broken / "outbox.db").rmdir()
            record(relay._outbox, "1001")
            sandbox.collector.wait_for(1)
        finally:
            stop.set()
            wake.set()
            thread.join(5)
            relay._outbox.close()

        assert not thread.is_alive()
        assert next(event for event in events if event.name == "outbox_unavailable").level == logging.ERROR


class TestRun:
    @pytest.fixture
    def running(self, relay: Relay) -> Iterator[threading.Event]:
        """The relay runs in a thread; the value wakes it."""
        stop, wake = threading.Event(), threading.Event()
        thread = threading.Thread(target=relay.run, args=(stop, wake))
        thread.start()
        yield wake
        stop.set()
        wake.set()
        thread.join(5)
        assert not thread.is_alive()

    def test_a_wake_up_call_ends_the_wait(self, monkeypatch, outbox, sandbox, request):
        monkeypatch.setattr(room, "POLL", 60.0)
        running = request.getfixturevalue("running")
        for number in range(3):
            record(outbox, number)
            running.set()
            sandbox.collector.wait_for(number + 1, timeout=5)

    def test_without_one_it_looks_again_by_itself(self, monkeypatch, outbox, sandbox, request):
        """Rows of other processes, and those that become due."""
        monkeypatch.setattr(room, "POLL", 0.02)
        request.getfixturevalue("running")
        for number in range(3):
            record(outbox, number)
            sandbox.collector.wait_for(number + 1, timeout=5)

    def test_a_fault_of_ours_ends_no_delivery(self, monkeypatch, outbox, sandbox, events, request):
        monkeypatch.setattr(room, "POLL", 0.02)
        faults = iter([ZeroDivisionError("ann@example.com")])
        drain = Relay.drain

        def faulty(self: Relay, stop: threading.Event | None = None) -> Drained:
            for fault in faults:
                raise fault
            return drain(self, stop)

        monkeypatch.setattr(Relay, "drain", faulty)
        record(outbox, "1001")
        request.getfixturevalue("running")
        sandbox.collector.wait_for(1, timeout=5)

        assert names(events)[0] == "relay_failed"
        assert "ann@example.com" not in str(events)
