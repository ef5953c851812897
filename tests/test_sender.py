"""One attempt over a socket: what is sent, and the receipt that comes of the answer."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from importlib.metadata import version
from types import SimpleNamespace
from urllib.parse import quote, quote_plus

import pytest

from katalys_wsgi.delivery.policy import judge
from katalys_wsgi.delivery.sender import Sender
from katalys_wsgi.outbox import Receipt, Verdict
from katalys_wsgi.sandbox import Misbehaviour, Sandbox
from katalys_wsgi.settings import WireName

from .peer import NO_CONTENT, Answer, MakePeer
from .support import BUYER_AGENT, BUYER_IP, Stopwatch, make_postback

MakeSender = Callable[..., Sender]

#: In no log, error or event, in no encoding.
PERSONAL = ("ann@example.com", "ann%40example.com", BUYER_IP, BUYER_AGENT, quote_plus(BUYER_AGENT), "X11")

HOUR = 3600.0

PAYLOAD = make_postback().payload


@pytest.fixture
def sender(sandbox: Sandbox, make_sender: MakeSender) -> Sender:
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

    def sent(self, peer: MakePeer, make_sender: MakeSender, wire: WireName) -> tuple[str, ...]:
        """The request line, the headers and the body."""
        katalys = peer(NO_CONTENT)
        assert make_sender(katalys.port, wire=wire).send(PAYLOAD).verdict is Verdict.DELIVERED
        head, _, body = katalys.requests[0].decode("ascii").partition("\r\n\r\n")
        line, _, headers = head.partition("\r\n")
        return line, headers, body

    def test_json(self, peer: MakePeer, make_sender: MakeSender) -> None:
        line, headers, body = self.sent(peer, make_sender, "json")

        assert line == "POST /v2/_tr_offline HTTP/1.1"
        assert "Content-Type: application/json" in headers.split("\r\n")
        assert body == PAYLOAD

    def test_form(self, peer: MakePeer, make_sender: MakeSender) -> None:
        line, headers, body = self.sent(peer, make_sender, "form")

        assert line == "POST /v2/_tr_offline HTTP/1.1"
        assert "Content-Type: application/x-www-form-urlencoded" in headers.split("\r\n")
        assert body == self.FORM

    def test_get(self, peer: MakePeer, make_sender: MakeSender) -> None:
        line, headers, body = self.sent(peer, make_sender, "get")

        assert line == f"GET /v2/_tr_offline?{self.FORM} HTTP/1.1"
        assert "content-type" not in headers.lower()
        assert body == ""

    @pytest.mark.parametrize("wire", ["json", "form", "get"])
    def test_no_header_says_more_than_it_must(self, peer: MakePeer, make_sender: MakeSender, wire: WireName) -> None:
        _, headers, _ = self.sent(peer, make_sender, wire)
        names = {line.partition(":")[0].lower() for line in headers.split("\r\n")}

        assert names - {"content-type", "content-length"} == {"host", "user-agent", "accept", "accept-encoding"}
        assert "python" not in headers.lower()

    def test_the_user_agent_is_this_package_and_its_version(self, peer: MakePeer, make_sender: MakeSender) -> None:
        _, headers, _ = self.sent(peer, make_sender, "json")

        assert f"User-Agent: katalys-wsgi/{version('katalys-wsgi')}" in headers.split("\r\n")


class TestAnswers:
    def test_every_status_becomes_the_receipt_of_the_table(self, sandbox: Sandbox, make_sender: MakeSender) -> None:
        sender = make_sender(sandbox.endpoint)
        receipts = {}
        for status in range(200, 600):
            sandbox.collector.misbehave(Misbehaviour.status(status))
            receipts[status] = sender.send(PAYLOAD)

        assert {status: receipt.verdict for status, receipt in receipts.items()} == {
            status: judge(status) for status in receipts
        }
        assert all(receipt.status == status for status, receipt in receipts.items())
        assert {receipt.error for receipt in receipts.values()} == {
            None if status == 204 else f"HTTP {status}" for status in receipts
        }
        assert [status for status, receipt in receipts.items() if receipt.confirmed] == [204]
        assert len(sandbox.collector.received) == 400

    def test_the_receipt_says_what_katalys_said(self, sandbox: Sandbox, sender: Sender) -> None:
        sandbox.collector.misbehave(Misbehaviour.status(400, body=b"order_id: is odd\n"))

        assert sender.send(PAYLOAD).error == "HTTP 400: order_id: is odd"

    def test_a_204_is_delivered(self, sandbox: Sandbox, sender: Sender) -> None:
        assert sender.send(PAYLOAD) == Receipt(Verdict.DELIVERED, 204, None, None, confirmed=True)
        assert [received.body.decode() for received in sandbox.collector.accepted] == [PAYLOAD]

    def test_the_204_of_a_get_proves_nothing(self, sandbox: Sandbox, make_sender: MakeSender) -> None:
        receipt = make_sender(sandbox.endpoint, wire="get").send(PAYLOAD)

        assert receipt == Receipt(Verdict.DELIVERED, 204, None, None, confirmed=False)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("wire", ["json", "get"])
    def test_a_redirect_is_never_followed(
        self, sandbox: Sandbox, make_sender: MakeSender, status: int, wire: WireName
    ) -> None:
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
    def test_the_receipt_says_how_long_katalys_asks_to_wait(
        self, sandbox: Sandbox, sender: Sender, status: int, header: str | None, seconds: float | None
    ) -> None:
        headers = {"Retry-After": header} if header else {}
        sandbox.collector.misbehave(Misbehaviour.status(status, headers=headers))

        assert sender.send(PAYLOAD).retry_after == seconds

    def test_a_date_to_wait_for(self, sandbox: Sandbox, sender: Sender) -> None:
        date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=100), usegmt=True)
        sandbox.collector.misbehave(Misbehaviour.status(503, headers={"Retry-After": date}))

        assert sender.send(PAYLOAD).retry_after == pytest.approx(100, abs=3)


class TestBrokenAnswers:
    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(None, id="hangs up"),
            pytest.param([b"\r\n\r\n"], id="empty lines"),
            pytest.param([b"SSH-2.0-OpenSSH_9.2\r\n"], id="another protocol"),
            pytest.param([b"HTTP/1.1 \r\n\r\n"], id="no status"),
            pytest.param([b"HTTP/1.1 abc OK\r\n\r\n"], id="status is not a number"),
            pytest.param([b"HTTP/1.1 99999 OK\r\n\r\n"], id="long status"),
            pytest.param([b"HTTP/1.1 204" + b"x" * 70_000], id="long line"),
            pytest.param([b"HTTP/1.1 204 OK\r\n" + b"X: 1\r\n" * 200 + b"\r\n"], id="many headers"),
            pytest.param([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"], id="broken chunk"),
            pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"], id="cut short"),
        ],
    )
    def test_whatever_comes_back_is_tried_again(self, peer: MakePeer, make_sender: MakeSender, answer: Answer) -> None:
        katalys = peer(answer)
        sender = make_sender(katalys.port, deadline=0.5)
        with Stopwatch() as watch:
            receipt = sender.send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert receipt.error
        assert watch.seconds < 1.5

    def test_a_reset_after_the_request_was_accepted(self, sandbox: Sandbox, sender: Sender) -> None:
        sandbox.collector.misbehave(Misbehaviour.reset(), times=1)

        receipt = sender.send(PAYLOAD)

        assert (receipt.verdict, receipt.status) == (Verdict.RETRY, None)
        assert "reset" in (receipt.error or "").lower()
        assert sender.send(PAYLOAD).verdict is Verdict.DELIVERED

    def test_a_port_where_no_server_listens(self, sandbox: Sandbox, sender: Sender) -> None:
        sandbox.stop()

        receipt = sender.send(PAYLOAD)

        assert (receipt.verdict, receipt.status) == (Verdict.RETRY, None)
        assert "refused" in (receipt.error or "")

    @pytest.mark.parametrize("payload", ["", "{", "[]", '{"vid": 5}', '{"vid": "\\ud800"}'])
    @pytest.mark.parametrize("wire", ["json", "form", "get"])
    def test_a_payload_that_was_changed_by_hand_raises_nothing(
        self, sandbox: Sandbox, make_sender: MakeSender, payload: str, wire: WireName
    ) -> None:
        receipt = make_sender(sandbox.endpoint, wire=wire).send(payload)

        assert receipt.verdict in (Verdict.RETRY, Verdict.REFUSED, Verdict.DELIVERED)

    @pytest.mark.parametrize(
        ("behaviour", "verdict"),
        [
            pytest.param(Misbehaviour.gzip_bomb(), Verdict.RETRY, id="gzip bomb"),
            pytest.param(Misbehaviour.gzip_bomb(status=400), Verdict.REFUSED, id="gzip bomb, refused"),
            pytest.param(Misbehaviour.huge_body(), Verdict.RETRY, id="endless body"),
            pytest.param(Misbehaviour.huge_body(status=400), Verdict.REFUSED, id="endless body, refused"),
        ],
    )
    def test_of_a_huge_answer_little_is_read(
        self, sandbox: Sandbox, sender: Sender, behaviour: Misbehaviour, verdict: Verdict
    ) -> None:
        sandbox.collector.misbehave(behaviour)
        sender.send(PAYLOAD)  # the sandbox makes its bomb at the first time
        with traced_memory() as memory, Stopwatch() as watch:
            receipt = sender.send(PAYLOAD)

        assert receipt.verdict is verdict
        assert len(receipt.error or "") < 300
        assert memory.peak < 2_000_000
        assert watch.seconds < 1.4


class TestPersonalData:
    """No error names the buyer: errors are read by many and kept for long."""

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
    def test_an_answer_that_repeats_the_request_is_scrubbed(
        self, sandbox: Sandbox, make_sender: MakeSender, wire: WireName, repeated: str
    ) -> None:
        sandbox.collector.misbehave(Misbehaviour.status(400, body=repeated.encode()))

        error = make_sender(sandbox.endpoint, wire=wire).send(PAYLOAD).error or ""

        assert error.startswith("HTTP 400: ")
        assert [value for value in PERSONAL if value.lower() in error.lower()] == []

    def test_an_error_is_short_and_on_one_line(self, sandbox: Sandbox, sender: Sender) -> None:
        sandbox.collector.misbehave(Misbehaviour.status(500, body=b"first\r\nsecond \xff" + b"x" * 3000))

        error = sender.send(PAYLOAD).error or ""

        assert error.startswith("HTTP 500: first second")
        assert len(error) < 300
        assert error.isprintable()


class TestDeadline:
    def test_one_attempt_may_have_a_shorter_deadline(self, sandbox: Sandbox, make_sender: MakeSender) -> None:
        sandbox.collector.misbehave(Misbehaviour.hang())
        with Stopwatch() as watch:
            make_sender(sandbox.endpoint).send(PAYLOAD, deadline=0.3)

        assert 0.2 < watch.seconds < 1.3

    def test_no_time_at_all_is_not_the_setting(self, sandbox: Sandbox, make_sender: MakeSender) -> None:
        receipt = make_sender(sandbox.endpoint).send(PAYLOAD, deadline=0)

        assert receipt == Receipt(Verdict.RETRY, error="TimeoutError: the deadline of the attempt has passed")
        assert sandbox.collector.received == ()

    def test_a_silent_server_is_given_up_at_the_read_timeout(self, sandbox: Sandbox, make_sender: MakeSender) -> None:
        sandbox.collector.misbehave(Misbehaviour.hang())
        with Stopwatch() as watch:
            receipt = make_sender(sandbox.endpoint, read_timeout=0.3).send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert 0.2 < watch.seconds < 1.3
