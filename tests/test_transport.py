"""The transport of an attempt: its deadline, interim answers, connections, proxies, certificates, and urllib3's log."""

from __future__ import annotations

import http.client
import io
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack
from itertools import chain, repeat
from pathlib import Path
from urllib.parse import quote_plus

import pytest
import requests
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from katalys_wsgi.delivery.sender import Sender
from katalys_wsgi.delivery.transport import remaining, time_limit
from katalys_wsgi.outbox import Receipt, Verdict
from katalys_wsgi.sandbox import Misbehaviour, Sandbox
from katalys_wsgi.settings import WireName

from .peer import NO_CONTENT, UNAVAILABLE, Answer, MakePeer, Peer
from .support import BUYER_AGENT, BUYER_IP, SECRET, Stopwatch, make_postback

MakeSender = Callable[..., Sender]

#: In no log, error or event, in no encoding.
PERSONAL = ("ann@example.com", "ann%40example.com", BUYER_IP, BUYER_AGENT, quote_plus(BUYER_AGENT), "X11")

PAYLOAD = make_postback().payload


@pytest.fixture
def sender(sandbox: Sandbox, make_sender: MakeSender) -> Sender:
    """Sends to the sandbox; gives up after 0.4 seconds."""
    return make_sender(sandbox.endpoint, deadline=0.4)


@pytest.fixture
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment names no proxy yet."""
    for name in ("https_proxy", "all_proxy", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


class TestLibraries:
    """What the transport relies on without being promised it. A failure here says that a library has changed."""

    def test_a_manager_takes_its_pools_from_a_table(self) -> None:
        expected = {"http": urllib3.HTTPConnectionPool, "https": urllib3.HTTPSConnectionPool}

        assert urllib3.PoolManager().pool_classes_by_scheme == expected
        assert urllib3.ProxyManager("http://127.0.0.1:9").pool_classes_by_scheme == expected

    @pytest.mark.parametrize("connection", [HTTPConnection, HTTPSConnection])
    def test_a_connection_names_the_class_of_its_answers(self, connection: type[HTTPConnection]) -> None:
        assert connection.response_class is http.client.HTTPResponse

    def test_an_answer_asks_its_socket_for_a_file_only_and_takes_a_103_for_the_answer(self) -> None:
        """Once this fails because of the 103, the transport need not skip interim answers any more."""

        class Socket:
            def makefile(self, mode: str) -> io.BytesIO:
                assert mode == "rb"
                return io.BytesIO(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")

        response = http.client.HTTPResponse(Socket())  # type: ignore[arg-type] # that is the point
        response.begin()

        assert response.status == 103


class TestInterimAnswers:
    def test_an_interim_status_alone_is_no_answer(self, sandbox: Sandbox, make_sender: MakeSender) -> None:
        sandbox.collector.misbehave(Misbehaviour.status(103))

        assert make_sender(sandbox.endpoint, deadline=0.2).send(PAYLOAD).verdict is Verdict.RETRY

    def test_interim_answers_are_not_the_answer(self, peer: MakePeer, make_sender: MakeSender) -> None:
        """RFC 9110 §15.2: a client must be able to parse any number of them."""
        interim = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
        katalys = peer([interim, *NO_CONTENT], [b"HTTP/1.1 100 Continue\r\n\r\n", *UNAVAILABLE])
        sender = make_sender(katalys.port)

        assert [sender.send(PAYLOAD).status for _ in range(2)] == [204, 503]

    def test_switching_protocols_ends_the_connection(self, peer: MakePeer, make_sender: MakeSender) -> None:
        """Nobody asked for it; what follows is not HTTP."""
        katalys = peer([b"HTTP/1.1 101 Switching Protocols\r\n\r\n"], NO_CONTENT)
        sender = make_sender(katalys.port, deadline=0.4)

        assert [sender.send(PAYLOAD).verdict for _ in range(2)] == [Verdict.RETRY, Verdict.DELIVERED]
        assert katalys.connections == 2

    def test_a_row_is_never_settled_by_the_answer_to_another(self, peer: MakePeer, make_sender: MakeSender) -> None:
        """The answer of the first comes after an interim one; on the same connection, as that of the second."""
        katalys = peer(
            [b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.1, *NO_CONTENT],
            [0.1, b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"],
        )
        sender = make_sender(katalys.port)
        first, second = sender.send(PAYLOAD), sender.send(PAYLOAD)

        assert first.verdict is Verdict.DELIVERED
        assert (second.verdict, second.status) == (Verdict.RETRY, 503)


class TestDeadline:
    """A read timeout starts anew with every byte; the deadline does not."""

    def test_what_remains_of_it_becomes_less(self) -> None:
        with time_limit(5):
            first = remaining()
            second = remaining()

        assert 0 < second <= first <= 5

    def test_no_time_at_all_is_over_at_once(self) -> None:
        with time_limit(0), pytest.raises(TimeoutError, match="deadline"):
            remaining()

    def test_a_host_that_does_not_answer_at_all(self, make_sender: MakeSender) -> None:
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

    @pytest.mark.parametrize(
        "behaviour",
        [
            pytest.param(Misbehaviour.hang(), id="hang"),
            pytest.param(Misbehaviour.drip_headers(0.05), id="dripping header"),
            pytest.param(Misbehaviour.drip_body(0.05), id="dripping body"),
            pytest.param(Misbehaviour.drip_body(0.05, status=503), id="dripping error"),
        ],
    )
    def test_the_deadline_holds_whatever_drips(self, sandbox: Sandbox, sender: Sender, behaviour: Misbehaviour) -> None:
        """A read timeout starts anew with every byte."""
        sandbox.collector.misbehave(behaviour, times=1)
        with Stopwatch() as watch:
            receipt = sender.send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert 0.3 < watch.seconds < 1.4
        assert sender.send(PAYLOAD).verdict is Verdict.DELIVERED

    def test_a_server_that_never_ends_its_tls_handshake(self, peer: MakePeer, make_sender: MakeSender) -> None:
        katalys = peer()
        with Stopwatch() as watch:
            receipt = make_sender(f"https://127.0.0.1:{katalys.port}/", deadline=0.4).send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert 0.2 < watch.seconds < 1.4

    def test_the_deadline_holds_for_a_dripping_proxy(
        self, peer: MakePeer, make_sender: MakeSender, without_proxies: pytest.MonkeyPatch
    ) -> None:
        drips = chain.from_iterable(zip((bytes([byte]) for byte in b"HTTP/1.1 200 " + b"x" * 60), repeat(0.05)))
        proxy = peer(list(drips))
        without_proxies.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with Stopwatch() as watch:
            receipt = make_sender("https://katalys.invalid/v2/_tr_offline", deadline=0.4).send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert watch.seconds < 1.4


class TestConnections:
    def test_a_connection_is_used_again(self, peer: MakePeer, make_sender: MakeSender) -> None:
        katalys = peer(NO_CONTENT, UNAVAILABLE, [b"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno"], NO_CONTENT)
        sender = make_sender(katalys.port)

        assert [sender.send(PAYLOAD).status for _ in range(4)] == [204, 503, 400, 204]
        assert katalys.connections == 1

    def test_a_connection_that_katalys_closed_meanwhile_costs_no_attempt(
        self, peer: MakePeer, make_sender: MakeSender
    ) -> None:
        katalys = peer(NO_CONTENT, None, NO_CONTENT)
        sender = make_sender(katalys.port)
        sender.send(PAYLOAD)
        sender.send(PAYLOAD)  # hung up on

        assert sender.send(PAYLOAD).verdict is Verdict.DELIVERED
        assert katalys.connections == 2

    def test_an_answer_that_was_not_read_to_its_end_costs_the_connection(
        self, peer: MakePeer, make_sender: MakeSender
    ) -> None:
        """What is left of it must not be taken for the next answer."""
        body = b"HTTP/1.1 204 No Content\r\n\r\n" * 1000
        answer = b"HTTP/1.1 503 No\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        katalys = peer([answer], UNAVAILABLE)
        sender = make_sender(katalys.port)

        assert [sender.send(PAYLOAD).status for _ in range(2)] == [503, 503]
        assert katalys.connections == 2

    def test_threads_share_a_sender(self, sandbox: Sandbox, make_sender: MakeSender) -> None:
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

    def test_a_closed_sender_connects_again(self, peer: MakePeer, make_sender: MakeSender) -> None:
        katalys = peer(NO_CONTENT)
        sender = make_sender(katalys.port)
        sender.close()
        sender.send(PAYLOAD)
        sender.close()
        sender.close()

        assert sender.send(PAYLOAD).verdict is Verdict.DELIVERED
        assert katalys.connections == 2


class TestEnvironment:
    def test_no_cookie_is_kept(self, sandbox: Sandbox, sender: Sender) -> None:
        headers = {"Set-Cookie": "session=1; Path=/"}
        sandbox.collector.misbehave(Misbehaviour.status(503, headers=headers), times=1)
        sender.send(PAYLOAD)
        sender.send(PAYLOAD)

        assert [received.headers.get("Cookie") for received in sandbox.collector.received] == [None, None]

    @pytest.mark.parametrize("how", ["HOME", "NETRC"])
    def test_no_netrc_is_read(
        self, sandbox: Sandbox, sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        netrc = tmp_path / ".netrc"
        netrc.write_text("machine 127.0.0.1 login mallory password secret\ndefault login mallory password secret\n")
        netrc.chmod(0o600)
        monkeypatch.delenv("NETRC", raising=False)
        monkeypatch.setenv(how, str(tmp_path if how == "HOME" else netrc))

        assert requests.Session().get(sandbox.url, timeout=5).request.headers["Authorization"]  # the file is sound
        assert sender.send(PAYLOAD).verdict is Verdict.DELIVERED
        assert "Authorization" not in sandbox.collector.received[-1].headers

    def test_loopback_needs_no_proxy(
        self, sandbox: Sandbox, make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")

        assert make_sender(sandbox.endpoint).send(PAYLOAD).verdict is Verdict.DELIVERED

    def test_a_proxy_is_looked_up_once_and_learns_no_personal_data(
        self, peer: MakePeer, make_sender: MakeSender, without_proxies: pytest.MonkeyPatch
    ) -> None:
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

    @pytest.mark.parametrize("scheme", ["", "http://"], ids=["host and port", "address"])
    @pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
    def test_a_proxy_may_want_a_password(
        self, peer: MakePeer, make_sender: MakeSender, without_proxies: pytest.MonkeyPatch, variable: str, scheme: str
    ) -> None:
        proxy = peer([b"HTTP/1.1 502 Bad Gateway\r\n\r\n"])
        without_proxies.setenv(variable, f"{scheme}shop:p%40ss@127.0.0.1:{proxy.port}")
        make_sender("https://katalys.invalid/v2/_tr_offline").send(PAYLOAD)

        assert f"Basic {b64encode(b'shop:p@ss').decode()}".encode() in proxy.requests[0]

    def test_a_host_without_proxy_is_reached_directly(
        self, peer: MakePeer, make_sender: MakeSender, without_proxies: pytest.MonkeyPatch
    ) -> None:
        proxy, katalys = peer(None), peer(None)
        without_proxies.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        without_proxies.setenv("NO_PROXY", "127.0.0.1")
        make_sender(f"https://127.0.0.1:{katalys.port}/").send(PAYLOAD)

        assert (proxy.connections, katalys.connections) == (0, 1)


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path, missing: Callable[[str], None]) -> Path:
        """A self-signed certificate for 127.0.0.1 and its key, in one file."""
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

    def test_a_self_signed_certificate_is_refused(self, katalys: Peer, make_sender: MakeSender) -> None:
        receipt = make_sender(f"https://127.0.0.1:{katalys.port}/").send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert (receipt.error or "").startswith("TLS: self")
        assert katalys.requests == []

    def test_a_bundle_of_the_environment_is_trusted(
        self, katalys: Peer, make_sender: MakeSender, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        sender = make_sender(f"https://127.0.0.1:{katalys.port}/v2/_tr_offline")

        assert [sender.send(PAYLOAD).verdict for _ in range(2)] == [Verdict.DELIVERED] * 2
        assert katalys.requests[0].endswith(PAYLOAD.encode())
        assert katalys.connections == 1

    def test_the_certificate_must_be_the_hosts(
        self, katalys: Peer, make_sender: MakeSender, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        monkeypatch.setenv("NO_PROXY", "localhost")

        receipt = make_sender(f"https://localhost:{katalys.port}/").send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert katalys.requests == []

    @pytest.mark.parametrize("bundle", ["missing.pem", "."], ids=["missing", "empty folder"])
    def test_without_a_usable_bundle_nothing_is_sent(
        self, katalys: Peer, make_sender: MakeSender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: str
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / bundle))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

        receipt = make_sender(f"https://127.0.0.1:{katalys.port}/").send(PAYLOAD)

        assert receipt.verdict is Verdict.RETRY
        assert receipt.error
        assert katalys.requests == []


class TestLog:
    """Logs are read by many and kept for long; over GET an address holds everything about the buyer."""

    ANSWERS = (
        pytest.param(NO_CONTENT, id="delivered"),
        pytest.param(UNAVAILABLE, id="unavailable"),
        pytest.param(
            [b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"], id="redirect"
        ),
        pytest.param([b"HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"], id="retry after"),
        pytest.param([b"HTTP/1.1 204 No Content\r\nthis is no header\r\n\r\n"], id="broken header"),
        pytest.param([b"HTTP/1.1 204 No\r\nann@example.com\r\n\r\n"], id="broken header that repeats"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"], id="no gzip"),
        pytest.param([b"nonsense\r\n\r\n"], id="no http"),
        pytest.param(None, id="hang up"),
        pytest.param([0.5], id="silence"),
    )

    @pytest.mark.parametrize("answer", ANSWERS)
    @pytest.mark.parametrize("wire", ["json", "get"])
    def test_no_log_names_the_buyer(
        self, peer: MakePeer, make_sender: MakeSender, caplog: pytest.LogCaptureFixture, answer: Answer, wire: WireName
    ) -> None:
        """At DEBUG urllib3 logs each address, and at WARNING one whose answer is broken; a GET's holds everything."""
        caplog.set_level(logging.DEBUG)
        katalys = peer(answer)
        sender = make_sender(katalys.port, wire=wire, deadline=0.2)
        receipts = [sender.send(PAYLOAD) for _ in range(2)]

        assert [value for value in PERSONAL if value in caplog.text] == []
        assert [value for value in PERSONAL if value in repr(receipts)] == []

    def test_the_shops_own_requests_are_logged_as_ever(
        self, sandbox: Sandbox, sender: Sender, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        sender.send(PAYLOAD)
        requests.get(sandbox.url, timeout=5)

        logged = [record for record in caplog.records if record.name == "urllib3.connectionpool"]
        assert any('"GET / HTTP/1.1"' in record.getMessage() for record in logged)

    def test_a_post_is_logged_as_ever(self, sandbox: Sandbox) -> None:
        """Its address holds nothing about anybody."""
        done = in_a_fresh_process(f"""
            import logging
            logging.basicConfig(level=logging.DEBUG)
            from katalys_wsgi import Settings
            from katalys_wsgi.delivery.sender import Sender
            settings = Settings(site_id="KA-1A2B3C4", secret_key="{SECRET}", endpoint="{sandbox.endpoint}")
            assert Sender(settings).send('{{"order_id": "1001"}}').status
        """)

        assert '"POST /v2/_tr_offline HTTP/1.1"' in done

    def test_importing_changes_no_log(self) -> None:
        done = in_a_fresh_process("""
            import logging, sys
            import katalys_wsgi.delivery.sender
            names = [name for name in logging.root.manager.loggerDict if name.startswith("urllib3")]
            print(len(names), [logging.getLogger(name).filters for name in names if logging.getLogger(name).filters])
        """)

        assert int(done.split()[0]) > 3
        assert done.endswith(" []\n")


def in_a_fresh_process(script: str) -> str:
    """What it prints and logs."""
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr
