"""The sandbox stands in for Katalys in every other test, so it has to be right itself. Over a real socket."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import socket
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import requests
from webtest import TestApp

from katalys_wsgi.sandbox import Collector, Misbehaviour, Received, Sandbox

from .support import Stopwatch, wait_until

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"

CONVERSION = {
    "type": "force_convert",
    "site_id": "KA-1234567",
    "order_id": "1001",
    "email_address": "a@example.com",
    "sale_amount": "59.90",
    "subtotal_amount": "50.00",
    "client_ip": "192.0.2.7",
    "user_agent": "Mozilla/5.0",
    "discount_1_code": "",
    "transaction_id": "1234abcd",
    "offer_id": "1234",
    "aff_id": "5678",
}
Post = Callable[..., requests.Response]

UPDATE = {"type": "offline_conv", "site_id": "KA-1234567", "order_id": "1001", "order_status": "paid"}


def without(*keys: str, **changes: str) -> dict[str, str]:
    return {key: value for key, value in (CONVERSION | changes).items() if key not in keys}


@pytest.fixture
def others() -> set[threading.Thread]:
    """The threads that were there before the sandbox."""
    return set(threading.enumerate())


@pytest.fixture
def sandbox(others: set[threading.Thread]) -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def collector(sandbox: Sandbox) -> Collector:
    return sandbox.collector


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture
def post(sandbox: Sandbox, session: requests.Session) -> Post:
    """Posts a message as JSON, or ``data=`` as it is; options are those of requests."""

    def post(fields: object = CONVERSION, **options: Any) -> requests.Response:
        body: dict[str, Any] = {} if "data" in options else {"json": fields}
        how: dict[str, Any] = {"timeout": 5, "allow_redirects": False, "stream": True}
        return session.post(sandbox.endpoint, **(body | how | options))

    return post


@pytest.fixture
def wire(sandbox: Sandbox) -> Iterator[socket.socket]:
    host, port = sandbox.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=5) as wire:
        yield wire


def request_bytes(body: bytes = json.dumps(CONVERSION).encode(), *extra: str, method: str = "POST") -> bytes:
    head = [f"{method} /v2/_tr_offline HTTP/1.1", "Host: sandbox", f"Content-Type: {JSON}"]
    return "\r\n".join([*head, *(extra or [f"Content-Length: {len(body)}"]), "", ""]).encode() + body


def read_to_end(wire: socket.socket) -> bytes:
    return b"".join(iter(lambda: wire.recv(65536), b""))


class TestAnswers:
    """Katalys' Server-to-Server Implementation: POST 204 when parsed correctly, GET always 204."""

    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            pytest.param(json.dumps(CONVERSION), JSON, id="json"),
            pytest.param(urlencode(CONVERSION), FORM, id="form"),
            pytest.param(json.dumps(CONVERSION, indent=4), "Application/JSON; charset=utf-8", id="spaced json"),
        ],
    )
    def test_a_complete_conversion_is_answered_204_and_kept(
        self, post: Post, collector: Collector, body: str, content_type: str
    ) -> None:
        response = post(data=body, headers={"Content-Type": content_type, "X-Mine": "1"})

        assert (response.status_code, response.content) == (204, b"")
        assert "Content-Length" not in response.headers
        (received,) = collector.accepted
        assert list(received.fields.items()) == list(CONVERSION.items())
        assert received.method == "POST"
        assert received.content_type == content_type.lower().partition(";")[0]
        assert received.headers["X-Mine"] == "1"
        assert received.body == body.encode()
        assert received.received_at.utcoffset() == timedelta(0)
        assert (received.status, received.problems, received.duplicate) == (204, (), False)
        assert received.verdict == "attributable"
        assert collector.received == (received,)

    def test_get_is_answered_204_and_kept(
        self, sandbox: Sandbox, session: requests.Session, collector: Collector
    ) -> None:
        response = session.get(sandbox.endpoint, params=CONVERSION, timeout=5)

        assert response.status_code == 204
        (received,) = collector.accepted
        assert received.fields == CONVERSION
        assert received.content_type == ""
        assert received.verdict == "attributable"

    @pytest.mark.parametrize("query", ["", "?sale_amount=abc", "?a=%FA", "?a=\xfa"])
    def test_get_is_answered_204_even_if_nothing_in_it_is_right(
        self, sandbox: Sandbox, session: requests.Session, collector: Collector, query: str
    ) -> None:
        response = session.get(sandbox.endpoint + query, timeout=5)

        assert response.status_code == 204
        (received,) = collector.received
        assert received.status == 204
        assert received.problems
        assert received.verdict.startswith("not attributable: ")
        assert collector.accepted == ()

    @pytest.mark.parametrize(
        ("body", "content_type", "reason"),
        [
            pytest.param(json.dumps(without(sale_amount="abc")), JSON, "sale_amount: ", id="amount"),
            pytest.param(json.dumps(without("email_address")), JSON, "email_address: ", id="missing"),
            pytest.param(json.dumps(without("transaction_id", "aff_id")), JSON, "transaction_id: ", id="no click"),
            pytest.param(json.dumps(CONVERSION | {"vid": ["a"]}), JSON, "vid: ", id="list"),
            pytest.param(json.dumps(CONVERSION | {"vid": {"a": "b"}}), JSON, "vid: ", id="object"),
            pytest.param(json.dumps(CONVERSION | {"vid": True}), JSON, "vid: ", id="boolean"),
            pytest.param(json.dumps(CONVERSION | {"vid": None}), JSON, "vid: ", id="null"),
            pytest.param('{"vid": "a", "vid": "b"}', JSON, "vid: is given twice", id="twice in json"),
            pytest.param("vid=a&vid=b", FORM, "vid: is given twice", id="twice in a form"),
            pytest.param('[["type", "force_convert"]]', JSON, "not a JSON object", id="array"),
            pytest.param("{", JSON, "unreadable: ", id="broken json"),
            pytest.param('{"sale_amount": NaN}', JSON, "NaN is not JSON", id="not a number"),
            pytest.param("[" * 100_000, JSON, "unreadable: ", id="deep json"),
            pytest.param(b'{"vid": "\xfa"}', JSON, "unreadable: ", id="json in latin-1"),
            pytest.param("vid=%FA", FORM, "unreadable: ", id="form in latin-1"),
            pytest.param("&".join("a" * 2000), FORM, "unreadable: ", id="thousands of fields"),
            pytest.param(json.dumps(CONVERSION), "text/plain", "Content-Type", id="plain text"),
            pytest.param(json.dumps(CONVERSION), FORM, "type: ", id="json called a form"),
            pytest.param('{"type": "\\ud800"}', JSON, "\\ud800", id="lone surrogate"),
        ],
    )
    def test_a_wrong_post_is_answered_400_with_the_reasons(
        self, post: Post, collector: Collector, body: str | bytes, content_type: str, reason: str
    ) -> None:
        response = post(data=body, headers={"Content-Type": content_type})

        assert response.status_code == 400
        assert response.headers["Content-Type"] == "text/plain; charset=UTF-8"
        assert reason in response.text
        (received,) = collector.received
        assert received.status == 400
        assert len(received.problems) == len(response.text.splitlines())
        assert reason in received.verdict
        assert collector.accepted == ()

    def test_every_problem_is_listed_at_once(self, post: Post) -> None:
        reasons = post(without("user_agent", sale_amount="1e3", client_ip="localhost")).text

        assert [line.partition(":")[0] for line in sorted(reasons.splitlines())] == [
            "client_ip",
            "sale_amount",
            "user_agent",
        ]

    def test_numbers_are_kept_as_they_were_written(self, post: Post, collector: Collector) -> None:
        body = json.dumps(CONVERSION).replace('"59.90"', "59.90").replace('"1234"', "1234")

        assert post(data=body, headers={"Content-Type": JSON}).status_code == 204
        (received,) = collector.accepted
        assert received.fields == CONVERSION

    @pytest.mark.parametrize(("site_id", "status"), [("KA-1234567", 204), ("KA-7654321", 400)])
    def test_another_site_is_a_problem_if_the_collector_knows_its_own(
        self, session: requests.Session, site_id: str, status: int
    ) -> None:
        with Sandbox(Collector(site_id=site_id)) as sandbox:
            response = session.post(sandbox.endpoint, json=CONVERSION, timeout=5)

        assert response.status_code == status
        assert ("site_id: 'KA-1234567' is not 'KA-7654321'" in response.text) == (status == 400)

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS"])
    def test_other_methods_are_answered_405(
        self, sandbox: Sandbox, session: requests.Session, collector: Collector, method: str
    ) -> None:
        response = session.request(method, sandbox.endpoint, json=CONVERSION, timeout=5)

        assert (response.status_code, response.headers["Allow"]) == (405, "GET, POST")
        (received,) = collector.received
        assert (received.method, received.status) == (method, 405)
        assert method in received.verdict

    @pytest.mark.parametrize("path", ["v2", "v2/_tr_offline/", "favicon.ico", "%FA"])
    def test_other_paths_are_answered_404_and_not_kept(
        self, sandbox: Sandbox, session: requests.Session, collector: Collector, path: str
    ) -> None:
        response = session.post(sandbox.url + path, json=CONVERSION, timeout=5)

        assert response.status_code == 404
        assert "/v2/_tr_offline" in response.text
        assert collector.received == ()

    def test_the_application_keeps_to_wsgi(self, collector: Collector) -> None:
        """Not only under its own server: shops mount it where they like."""
        shop = TestApp(collector)  # with WebTest's lint
        paths = ["/v2/_tr_offline", "/", "/received.json", "/no"]
        answers = [
            shop.request(path, method=method, expect_errors=True).status_int
            for path, method in itertools.product(paths, ["GET", "PUT"])
        ]

        assert answers == [204, 405, 200, 405, 200, 405, 404, 404]


class TestVerdict:
    @pytest.mark.parametrize(
        ("fields", "verdict"),
        [
            pytest.param(without("offer_id", "aff_id"), "attributable", id="transaction_id"),
            pytest.param(without("transaction_id"), "attributable", id="offer_id and aff_id"),
            pytest.param(without(type="offline_conv"), "attributable", id="offline_conv with a click"),
            pytest.param(
                without("transaction_id", "aff_id", type="offline_conv"),
                "not attributable: no transaction_id and no offer_id with aff_id, so only the JavaScript can",
                id="offline_conv without a click",
            ),
            pytest.param(
                UPDATE,
                "not attributable: an order update, the click came with the order's conversion",
                id="order update",
            ),
        ],
    )
    def test_a_correct_message_is_attributable_if_it_names_a_click(
        self, post: Post, collector: Collector, fields: dict[str, str], verdict: str
    ) -> None:
        assert post(fields).status_code == 204
        assert [received.verdict for received in collector.accepted] == [verdict]

    @pytest.mark.parametrize(
        ("first", "second", "duplicate"),
        [
            pytest.param(CONVERSION, CONVERSION, True, id="same conversion"),
            pytest.param(CONVERSION, without(sale_amount="1.00"), True, id="same order, other amount"),
            pytest.param(CONVERSION, without(order_id="1002"), False, id="other order"),
            pytest.param(CONVERSION, without(site_id="KA-7654321"), False, id="other site"),
            pytest.param(CONVERSION, UPDATE, False, id="conversion, then update"),
            pytest.param(UPDATE, UPDATE, True, id="same update"),
            pytest.param(UPDATE, UPDATE | {"order_status": "shipped"}, False, id="next update"),
            pytest.param({}, {}, False, id="nothing to compare"),
        ],
    )
    def test_a_duplicate_is_the_same_message_about_the_same_order(
        self, post: Post, collector: Collector, first: dict[str, str], second: dict[str, str], duplicate: bool
    ) -> None:
        post(first)
        post(second)

        assert [received.duplicate for received in collector.received] == [False, duplicate]

    def test_a_retry_after_a_failure_is_a_duplicate(self, post: Post, collector: Collector) -> None:
        """Whether the failed attempt counted cannot be known from outside."""
        collector.misbehave(Misbehaviour.status(503), times=1)

        assert [post().status_code, post().status_code] == [503, 204]
        assert [(received.status, received.duplicate) for received in collector.received] == [
            (503, False),
            (204, True),
        ]


class TestPages:
    def test_the_listing_shows_what_came_newest_first(
        self, sandbox: Sandbox, session: requests.Session, post: Post
    ) -> None:
        post(without(order_id="first"))
        post(without(order_id="second", sale_amount="abc"))

        page = session.get(sandbox.url, timeout=5)

        assert page.headers["Content-Type"] == "text/html; charset=UTF-8"
        assert page.text.index("second") < page.text.index("first")
        assert "<td>attributable</td>" in page.text
        assert "not attributable: sale_amount" in page.text

    def test_the_listing_says_when_there_is_nothing(self, sandbox: Sandbox, session: requests.Session) -> None:
        assert "Nothing received yet" in session.get(sandbox.url, timeout=5).text

    def test_the_listing_shows_duplicates_and_unanswered_requests(
        self, sandbox: Sandbox, session: requests.Session, post: Post, collector: Collector
    ) -> None:
        post()
        collector.misbehave(Misbehaviour.reset(), times=1)
        with pytest.raises(requests.ConnectionError):
            post()

        page = session.get(sandbox.url, timeout=5).text

        assert "attributable (duplicate)" in page
        assert "no answer" in page

    def test_the_listing_escapes_every_value(self, sandbox: Sandbox, session: requests.Session, post: Post) -> None:
        evil = "<script>alert('1')</script>"
        post(dict.fromkeys((*CONVERSION, evil), evil))
        post({"order_id": "\ud800"})

        page = session.get(sandbox.url, timeout=5)

        assert page.status_code == 200
        assert "<script" not in page.text
        assert "&lt;script&gt;alert(&#x27;1&#x27;)" in page.text

    def test_the_same_is_there_as_json(self, sandbox: Sandbox, session: requests.Session, post: Post) -> None:
        post()
        post(data=b"\xfa", headers={"Content-Type": "<b>"})

        rows = session.get(sandbox.url + "received.json", timeout=5).json()

        assert [row["status"] for row in rows] == [204, 400]
        assert rows[0]["fields"] == CONVERSION
        assert rows[0]["verdict"] == "attributable"
        assert (rows[0]["duplicate"], rows[0]["problems"]) == (False, [])
        assert rows[1]["body"] == "\ufffd"
        assert rows[1]["content_type"] == "<b>"

    @pytest.mark.parametrize("path", ["", "received.json"])
    def test_pages_are_for_reading_only(self, sandbox: Sandbox, session: requests.Session, path: str) -> None:
        assert session.post(sandbox.url + path, timeout=5).status_code == 405
        assert session.head(sandbox.url + path, timeout=5).content == b""


class TestWaiting:
    def test_wait_for_returns_as_soon_as_enough_was_accepted(self, collector: Collector, post: Post) -> None:
        collector.misbehave(Misbehaviour.status(503), times=1)

        def send() -> None:
            for number in range(3):
                post(without(order_id=str(number)))

        sender = threading.Thread(target=send)
        sender.start()
        accepted = collector.wait_for(2, timeout=5)
        sender.join()

        assert [received.fields["order_id"] for received in accepted] == ["1", "2"]

    def test_a_wait_that_fails_says_what_was_received(self, collector: Collector, post: Post) -> None:
        post(without(sale_amount="abc"))
        post()

        with pytest.raises(TimeoutError, match=r"1 of 2 accepted in 0\.01 s") as caught:
            collector.wait_for(2, timeout=0.01)

        assert "POST of order '1001' answered 400, not attributable: sale_amount" in str(caught.value)
        assert "POST of order '1001' answered 204, attributable" in str(caught.value)

    def test_a_wait_for_nothing_received_says_so(self) -> None:
        with pytest.raises(TimeoutError, match="Received: nothing"):
            Collector().wait_for(1, timeout=0)

    def test_a_slow_answer_is_not_accepted_before_it_is_given(self, collector: Collector, post: Post) -> None:
        collector.misbehave(Misbehaviour.slow(60))
        sender = threading.Thread(target=post)
        sender.start()
        wait_until(lambda: collector.received)

        assert collector.received[0].status is None
        assert collector.accepted == ()
        collector.behave()
        sender.join()
        assert collector.wait_for(1) == collector.received

    def test_clear_forgets_requests_that_are_still_being_answered_too(self, collector: Collector, post: Post) -> None:
        collector.misbehave(Misbehaviour.slow(60), times=1)
        sender = threading.Thread(target=post)
        sender.start()
        wait_until(lambda: collector.received)
        collector.clear()
        collector.behave()
        sender.join()

        assert collector.received == ()
        post()
        assert [received.duplicate for received in collector.accepted] == [False]


class TestMisbehaviour:
    @pytest.mark.parametrize(
        ("code", "headers", "body"),
        [
            pytest.param(503, {"Retry-After": "7"}, b"", id="unavailable"),
            pytest.param(302, {"Location": "http://127.0.0.1:9/elsewhere"}, b"", id="redirect"),
            pytest.param(200, {"Content-Type": "text/html"}, b"<p>Hello", id="captive portal"),
            pytest.param(599, {}, b"out of range", id="unknown code"),
            pytest.param(204, {"Set-Cookie": "a=b; Path=/"}, b"", id="cookie"),
        ],
    )
    def test_status_answers_what_was_asked_for(
        self, post: Post, collector: Collector, code: int, headers: dict[str, str], body: bytes
    ) -> None:
        collector.misbehave(Misbehaviour.status(code, headers=headers, body=body))

        response = post()

        assert (response.status_code, response.content) == (code, body)
        assert {name: response.headers[name] for name in headers} == headers
        assert [received.status for received in collector.received] == [code]
        assert len(collector.accepted) == (code == 204)

    def test_hang_never_answers_until_it_is_released(self, collector: Collector, wire: socket.socket) -> None:
        collector.misbehave(Misbehaviour.hang(), times=1)
        wire.sendall(request_bytes())
        wait_until(lambda: collector.received)

        wire.settimeout(0.05)
        with pytest.raises(TimeoutError):
            wire.recv(1)
        collector.behave()
        wire.settimeout(5)
        assert wire.recv(1) == b""
        assert [received.status for received in collector.received] == [None]

    def test_drip_headers_sends_one_byte_after_the_other_without_end(
        self, collector: Collector, wire: socket.socket
    ) -> None:
        collector.misbehave(Misbehaviour.drip_headers(0.001))
        wire.sendall(request_bytes())

        dripped = b""
        reads = 0
        while len(dripped) < 60:
            dripped += wire.recv(60)
            reads += 1

        assert dripped.startswith(b"HTTP/1.1 204 No Content\r\n")
        assert b"\r\n\r\n" not in dripped
        assert reads > 20
        collector.behave()
        assert b"\r\n\r\n" not in read_to_end(wire)
        assert [received.status for received in collector.received] == [None]

    def test_drip_body_sends_the_head_and_then_one_byte_after_the_other(self, collector: Collector, post: Post) -> None:
        collector.misbehave(Misbehaviour.drip_body(0.001, status=503))

        response = post()

        assert response.status_code == 503
        assert response.raw.read(20) == b"." * 20
        collector.behave()
        assert set(response.raw.read()) <= {ord(".")}  # and the end of it
        assert [received.status for received in collector.received] == [503]

    def test_reset_reads_the_request_and_resets_the_connection(self, collector: Collector, wire: socket.socket) -> None:
        collector.misbehave(Misbehaviour.reset())
        wire.sendall(request_bytes())

        with pytest.raises(ConnectionResetError):
            wire.recv(1)
        (received,) = collector.received
        assert received.fields == CONVERSION
        assert received.status is None

    def test_huge_body_has_no_end(self, collector: Collector, post: Post) -> None:
        collector.misbehave(Misbehaviour.huge_body())

        response = post()

        assert "Content-Length" not in response.headers
        assert len(response.raw.read(10_000_000)) == 10_000_000
        response.close()

    def test_gzip_bomb_is_small_on_the_wire_only(self, collector: Collector, post: Post) -> None:
        collector.misbehave(Misbehaviour.gzip_bomb())

        response = post()
        packed = response.raw.read(decode_content=False)

        assert response.headers["Content-Encoding"] == "gzip"
        assert len(packed) < 1_200_000
        first = zlib.decompressobj(wbits=31)
        assert len(first.decompress(packed)) == 1 << 24
        assert len(packed) // (len(packed) - len(first.unused_data)) == 64

    def test_slow_answers_correctly_and_late(self, collector: Collector, post: Post) -> None:
        collector.misbehave(Misbehaviour.slow(0.05), times=2)

        with Stopwatch() as watch:
            assert post().status_code == 204
            assert post({}).status_code == 400

        assert watch.seconds >= 0.1

    def test_it_ends_after_so_many_requests(self, collector: Collector, post: Post) -> None:
        collector.misbehave(Misbehaviour.status(500), times=2)

        assert [post().status_code for _ in range(4)] == [500, 500, 204, 204]

    def test_it_lasts_until_the_next_call(self, collector: Collector, post: Post) -> None:
        collector.misbehave(Misbehaviour.status(500))

        assert [post().status_code for _ in range(3)] == [500, 500, 500]
        collector.misbehave(Misbehaviour.status(502))
        assert post().status_code == 502
        collector.behave()
        assert post().status_code == 204

    def test_a_share_of_requests_is_the_same_each_time(self, collector: Collector, post: Post) -> None:
        def met(seed: int, times: int | None = None) -> list[int]:
            collector.misbehave(Misbehaviour.status(500), share=0.3, seed=seed, times=times)
            return [post().status_code for _ in range(40)]

        assert met(seed=1) == met(seed=1)
        assert met(seed=1) != met(seed=2)
        assert 5 < met(seed=1).count(500) < 20
        assert met(seed=1, times=3).count(500) == 3

    @pytest.mark.parametrize("share", [-0.1, 1.1, 30])
    def test_a_share_is_a_part_of_one(self, share: float) -> None:
        with pytest.raises(ValueError, match="from 0 to 1"):
            Collector().misbehave(Misbehaviour.hang(), share=share)

    @pytest.mark.parametrize("behaviour", [Misbehaviour.reset(), Misbehaviour.drip_headers()], ids=repr)
    def test_what_needs_the_socket_says_so_under_another_server(self, behaviour: Misbehaviour) -> None:
        collector = Collector()
        collector.misbehave(behaviour)

        with pytest.raises(RuntimeError, match="Serve the collector with Sandbox"):
            TestApp(collector).get("/v2/_tr_offline")


class TestServer:
    def test_a_connection_serves_many_requests(self, sandbox: Sandbox, collector: Collector) -> None:
        connection = http.client.HTTPConnection(sandbox.url.split("/")[2], timeout=5)
        connection.connect()
        used = connection.sock
        for method in ("POST", "PUT", "POST"):  # the PUT's body is not wanted, and must not stay in the way
            connection.request(method, "/v2/_tr_offline", json.dumps(CONVERSION), {"Content-Type": JSON})
            connection.getresponse().read()
            assert connection.sock is used
        connection.close()

        assert [received.status for received in collector.received] == [204, 405, 204]

    @pytest.mark.parametrize("extra", [("Connection: close",), ("Content-Length: 0", "Connection: close")])
    def test_a_connection_is_closed_when_the_client_asks_for_it(
        self, wire: socket.socket, extra: tuple[str, ...]
    ) -> None:
        wire.sendall(request_bytes(b"", *extra))

        head = read_to_end(wire)

        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"\r\nConnection: close\r\n" in head

    @pytest.mark.parametrize(
        "extra",
        [
            pytest.param("Transfer-Encoding: chunked", id="chunked"),
            pytest.param("Content-Length: 1000000", id="megabyte"),
            pytest.param("Content-Length: -1", id="negative"),
            pytest.param("Content-Length: 1, 1", id="twice"),
        ],
    )
    def test_a_body_whose_end_is_not_known_is_refused(
        self, wire: socket.socket, collector: Collector, extra: str
    ) -> None:
        wire.sendall(request_bytes(b"", extra))

        assert read_to_end(wire).startswith(b"HTTP/1.1 411 ")
        assert collector.received == ()

    @pytest.mark.parametrize(
        "sent",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(b"POST /v2", id="half a line"),
            pytest.param(request_bytes()[:-1], id="half a body"),
            pytest.param(b"\x16\x03\x01\x02\x00\r\n", id="TLS"),
            pytest.param(b"GET /" + b"a" * 70_000, id="endless line"),
        ],
    )
    def test_half_a_request_is_not_kept(
        self, sandbox: Sandbox, wire: socket.socket, collector: Collector, sent: bytes
    ) -> None:
        wire.sendall(sent)
        with suppress(OSError):  # it may have hung up already
            wire.shutdown(socket.SHUT_WR)
            read_to_end(wire)

        assert collector.received == ()

    def test_clients_that_leave_are_not_reported(
        self,
        sandbox: Sandbox,
        collector: Collector,
        wire: socket.socket,
        others: set[threading.Thread],
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        collector.misbehave(Misbehaviour.huge_body())
        wire.sendall(request_bytes())
        wire.recv(1)
        wire.close()
        wait_until(lambda: len(set(threading.enumerate()) - others) == 1)  # the one that accepts

        assert capfd.readouterr() == ("", "")

    def test_an_error_of_the_collector_is_reported(
        self, session: requests.Session, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Broken(Collector):
            def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
                raise ZeroDivisionError

        with Sandbox(Broken()) as sandbox, pytest.raises(requests.ConnectionError):
            session.get(sandbox.endpoint, timeout=5)

        assert "ZeroDivisionError" in capsys.readouterr().err

    def test_the_environment_of_the_shell_stays_outside(
        self, collector: Collector, post: Post, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_SECRET", "from the shell")
        post()

        assert "Secret" not in collector.received[0].headers

    def test_a_burst_of_senders_is_served(self, sandbox: Sandbox, collector: Collector) -> None:
        def send(number: int) -> None:
            requests.post(sandbox.endpoint, json=without(order_id=str(number)), timeout=5)

        senders = [threading.Thread(target=send, args=(number,)) for number in range(50)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()

        assert len({received.fields["order_id"] for received in collector.wait_for(50)}) == 50

    @pytest.mark.parametrize(
        "behaviour",
        [
            Misbehaviour.hang(),
            Misbehaviour.slow(60),
            Misbehaviour.drip_headers(60),
            Misbehaviour.drip_body(60),
            Misbehaviour.huge_body(),
        ],
        ids=lambda behaviour: behaviour.name,
    )
    def test_stop_ends_every_request_at_once(
        self,
        sandbox: Sandbox,
        collector: Collector,
        behaviour: Misbehaviour,
        wire: socket.socket,
        others: set[threading.Thread],
    ) -> None:
        collector.misbehave(behaviour)
        wire.sendall(request_bytes())
        wait_until(lambda: collector.received)

        with Stopwatch() as watch:
            sandbox.stop()

        assert watch.seconds < 1
        with suppress(ConnectionResetError):
            read_to_end(wire)
        wait_until(lambda: set(threading.enumerate()) <= others)

    def test_stop_closes_idle_connections_and_may_be_called_twice(self, sandbox: Sandbox, wire: socket.socket) -> None:
        wire.sendall(request_bytes())
        assert wire.recv(100).startswith(b"HTTP/1.1 204 ")

        sandbox.stop()
        sandbox.stop()

        read_to_end(wire)
        with pytest.raises(requests.ConnectionError):
            requests.get(sandbox.url, timeout=5)

    def test_a_restart_keeps_address_records_and_orders(
        self, sandbox: Sandbox, session: requests.Session, post: Post, collector: Collector
    ) -> None:
        """An outage is ``stop()`` and ``start()``."""
        collector.misbehave(Misbehaviour.status(500), times=2)
        post()
        endpoint = sandbox.endpoint
        sandbox.stop()
        sandbox.start()
        sandbox.start()

        assert sandbox.endpoint == endpoint
        assert [post().status_code, post().status_code] == [500, 204]
        assert len(collector.received) == 3

    def test_the_address_is_known_once_there_is_a_port(self) -> None:
        with pytest.raises(RuntimeError, match="Start it first"):
            _ = Sandbox().url
        assert Sandbox(port=8000).url == "http://127.0.0.1:8000/"
        assert Sandbox(port=8000).endpoint == "http://127.0.0.1:8000/v2/_tr_offline"

    def test_a_taken_port_is_an_error(self, sandbox: Sandbox) -> None:
        port = int(sandbox.url.rstrip("/").rpartition(":")[2])

        with pytest.raises(OSError, match="in use"):
            Sandbox(port=port).start()

    def test_it_can_be_stopped_before_it_was_started(self) -> None:
        Sandbox().stop()


def test_received_cannot_be_changed(post: Post, collector: Collector) -> None:
    post()
    received: Received = collector.received[0]

    with pytest.raises(AttributeError):
        received.status = 500  # type: ignore[misc]
    with pytest.raises(TypeError):
        received.headers["X"] = "1"  # type: ignore[index]


def test_the_test_of_the_documentation_passes(tmp_path: Path) -> None:
    """A reader copies it, so it has to run as it is."""
    page = (Path(__file__).parent.parent / "docs" / "sandbox.md").read_text()
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(snippet, namespace)  # noqa: S102 - our own documentation

    namespace["test_a_sale_survives_an_outage"](tmp_path)
