"""Katalys' side at its worst: every status, silence, dripping, endless and lying answers."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import Tracker
from katalys_wsgi.delivery.relay import Relay
from katalys_wsgi.delivery.sender import Sender
from katalys_wsgi.operations import archive
from katalys_wsgi.outbox import Entry, Verdict
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox
from katalys_wsgi.settings import Settings, WireName
from tests.support import LINK, SECRET, SITE_ID, Stopwatch, make_conversion, make_environ

from .harness import PATIENCE

NOW = 1_800_000_000.0

MakeTracker = Callable[..., Tracker]

#: What a server does with a connection.
Talk = Callable[[socket.socket], object]

#: Where no server answers: yields a port.
Place = Callable[[], Iterator[int]]

#: The status table of the documentation, spelled out once more.
MISCONFIGURED = {401, 403, 404, 405, 410}
RETRIED = {408, 425, 429}


def expected(status: int) -> tuple[str, float | None]:
    """The state of a row after its first attempt was answered with ``status``, and the seconds until it is due."""
    if status == 204:
        return "delivered", None
    if status in MISCONFIGURED:
        return "pending", 0.0
    if 400 <= status < 500 and status not in RETRIED:
        return "dead", None
    return "pending", 5.0


# --- every status ---


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[SQLiteOutbox]:
    outbox = SQLiteOutbox(tmp_path / "outbox.db", clock=lambda: NOW)
    yield outbox
    outbox.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("century", range(1, 6), ids=lambda century: f"{century}xx")
def test_every_status_leads_to_what_the_table_says(
    century: int, make_tracker: MakeTracker, outbox: SQLiteOutbox, sandbox: Sandbox
) -> None:
    """Over the socket, through a whole relay. Only a 204 is a delivery, and only what the table names is buried."""
    # An interim answer is no answer: those of the first hundred end with the read timeout.
    tracker = make_tracker(outbox=outbox, read_timeout=0.05 if century == 1 else 5)
    seen = {}
    for status in range(100 * century, 100 * century + 100):
        tracker.visit(make_environ(LINK)).record(make_conversion(str(status)))
        sandbox.collector.misbehave(Misbehaviour.status(status))
        # A relay of its own for each status: the last one may have left the endpoint alone for a while.
        relay = Relay(outbox, tracker.settings, clock=lambda: NOW, chance=lambda: 1.0)
        relay.drain()
        (entry,) = outbox.history(str(status))
        is_pending = entry.state == "pending"
        seen[status] = (entry.state, entry.due_at - NOW if is_pending else None)
        assert entry.attempts == 1, status
        assert entry.lease_token is None, status
        assert ("email_address" in (entry.payload or "")) == (status != 204), status
        assert entry.last_status in (status, None if century == 1 else status), status
        outbox.forget([entry])

    assert seen == {status: expected(status) for status in seen}


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("wire", ["json", "form", "get"])
def test_a_redirect_is_never_followed(wire: WireName, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
    """A followed 303 becomes an empty GET that ends in a 204; a followed 307 hands the buyer to another host."""
    tracker = make_tracker(wire=wire)
    for number, status in enumerate((301, 302, 303, 307, 308)):
        headers = {"Location": sandbox.endpoint}
        sandbox.collector.misbehave(Misbehaviour.status(status, headers=headers), times=1)
        tracker.visit(make_environ(LINK)).record(make_conversion(f"{number}"))
        tracker.drain()

    assert [received.status for received in sandbox.collector.received] == [301, 302, 303, 307, 308]


# --- servers that break every rule ---


@contextmanager
def raw_server(talk: Talk | None, *, backlog: int = 16) -> Iterator[int]:
    """Listens on a loopback port; ``talk`` gets each connection in a thread of its own, None accepts none."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with suppress(OSError):
            if talk is not None:
                talk(connection)
        connection.close()

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection = listener.accept()[0]
                connections.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    if talk is not None:
        threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        for each in (listener, *connections):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def after_request(*parts: bytes, endless: bytes = b"", every: float = 0.0) -> Talk:
    """Read the request's first bytes, send ``parts``, then ``endless`` without end."""

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        for part in parts:
            connection.sendall(part)
        for part in repeat(endless) if endless else ():
            connection.sendall(part)
            time.sleep(every)
        time.sleep(PATIENCE)

    return talk


def drip(text: bytes, every: float = 0.05) -> Talk:
    """Send ``text`` byte by byte, its last byte without end."""

    def talk(connection: socket.socket) -> None:
        for byte in [*text, *repeat(text[-1], 10_000)]:
            connection.sendall(bytes([byte]))
            time.sleep(every)

    return talk


OK = b"HTTP/1.1 200 OK\r\n"
MIB = bytes(1 << 20)

SERVERS = {
    "accepts and says nothing": after_request(),
    "hangs up at once": lambda _: None,
    "drips a header": drip(b"HTTP/1.1 204 No Content\r\nX-Drip: ."),
    "drips a status line": drip(b"HTTP/1.1 2"),
    "drips a body": after_request(OK + b"Content-Length: 100000\r\n\r\n", endless=b".", every=0.05),
    "drips chunk sizes": after_request(OK + b"Transfer-Encoding: chunked\r\n\r\n", endless=b"0", every=0.05),
    "endless 100 Continue": after_request(endless=b"HTTP/1.1 100 Continue\r\n\r\n"),
    "endless 100 Continue, slowly": after_request(endless=b"HTTP/1.1 100 Continue\r\n\r\n", every=0.05),
    "endless headers": after_request(OK, endless=b"X-Filler: " + b"x" * 1000 + b"\r\n"),
    "one endless header": after_request(OK + b"X-Filler: ", endless=b"x" * 65536),
    "10 GiB by its length": after_request(OK + b"Content-Length: 10737418240\r\n\r\n", endless=MIB),
    "endless without a length": after_request(OK + b"Connection: close\r\n\r\n", endless=MIB),
    "endless chunks": after_request(
        OK + b"Transfer-Encoding: chunked\r\n\r\n", endless=b"10000\r\n" + b"x" * 65536 + b"\r\n"
    ),
    "one chunk of 10 GiB": after_request(OK + b"Transfer-Encoding: chunked\r\n\r\n280000000\r\n", endless=MIB),
    "endless chunk extension": after_request(OK + b"Transfer-Encoding: chunked\r\n\r\n1;", endless=b"x" * 65536),
    "not HTTP": after_request(b"SSH-2.0-OpenSSH_9.2\r\n" * 3),
    "a body after a refusal": after_request(b"HTTP/1.1 503 Busy\r\n\r\n", endless=MIB),
}


@pytest.fixture
def sender_to() -> Callable[..., Sender]:
    def make(port: int, scheme: str = "http", **options: Any) -> Sender:
        limits = {"connect_timeout": 0.6, "read_timeout": 1.0, "deadline": 1.5, **options}
        endpoint = f"{scheme}://127.0.0.1:{port}/v2/_tr_offline"
        return Sender(Settings(site_id=SITE_ID, secret_key=SECRET, endpoint=endpoint, **limits))

    return make


PAYLOAD = '{"site_id":"KA-1A2B3C4","order_id":"1001","email_address":"ann@example.com"}'


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("talk", SERVERS.values(), ids=SERVERS.keys())
def test_no_server_holds_an_attempt_beyond_its_deadline(talk: Talk, sender_to: Callable[..., Sender]) -> None:
    """Deadline and a second, whatever the server does; nothing of it is taken for a delivery."""
    with raw_server(talk) as port:
        sender = sender_to(port)
        with Stopwatch() as watch:
            receipt = sender.send(PAYLOAD)
        sender.close()

    assert receipt.verdict is Verdict.RETRY
    assert receipt.error
    assert watch.seconds < 2.5


def refused() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield port


def black_hole() -> Iterator[int]:
    """A listener whose queue is full: the system drops what comes, and connecting takes very long."""
    with ExitStack() as stack:
        port = stack.enter_context(raw_server(None, backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        time.sleep(0.1)
        yield port


def never_accepts() -> Iterator[int]:
    with raw_server(None) as port:
        yield port


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("place", [refused, black_hole, never_accepts], ids=lambda place: place.__name__)
def test_a_missing_server_is_found_out_within_the_deadline(
    place: Place, scheme: str, sender_to: Callable[..., Sender]
) -> None:
    with contextmanager(place)() as port:
        sender = sender_to(port, scheme)
        with Stopwatch() as watch:
            receipt = sender.send(PAYLOAD)
        sender.close()

    assert receipt.verdict is Verdict.RETRY
    assert receipt.status is None
    assert watch.seconds < (0.5 if place is refused else 2.5)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(lambda _: time.sleep(PATIENCE), id="silent"),
        pytest.param(drip(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03\x03\x00"), id="drips"),
        pytest.param(after_request(endless=b"\x16\x03\x03\x00\x04" + bytes(4), every=0.05), id="endless records"),
        pytest.param(after_request(b"HTTP/1.1 204 No Content\r\n\r\n"), id="plain text"),
    ],
)
def test_no_tls_handshake_outlasts_the_deadline(talk: Talk, sender_to: Callable[..., Sender]) -> None:
    with raw_server(talk) as port:
        sender = sender_to(port, "https")
        with Stopwatch() as watch:
            receipt = sender.send(PAYLOAD)
        sender.close()

    assert receipt.verdict is Verdict.RETRY
    assert watch.seconds < 2.5


# --- memory ---


def resident() -> int:
    """Bytes of memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


GREEDY = ["10 GiB by its length", "endless without a length", "endless chunks", "one chunk of 10 GiB",
          "endless headers", "one endless header", "endless chunk extension", "a body after a refusal"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", GREEDY)
def test_an_endless_answer_costs_no_memory(name: str, sender_to: Callable[..., Sender]) -> None:
    """The server's half runs in this process too, so it sends from one buffer."""
    with raw_server(SERVERS[name]) as port:
        sender = sender_to(port)
        sender.send(PAYLOAD)
        before = resident()
        for _ in range(5):
            sender.send(PAYLOAD)
        grown = resident() - before
        sender.close()

    assert grown < 20e6


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "misbehaviour",
    [
        pytest.param(Misbehaviour.gzip_bomb(), id="gzip bomb"),
        pytest.param(Misbehaviour.gzip_bomb(status=503), id="gzip bomb, 503"),
        pytest.param(Misbehaviour.huge_body(), id="huge body"),
        pytest.param(Misbehaviour.huge_body(status=400), id="huge body, 400"),
    ],
)
def test_a_bomb_is_not_unpacked(misbehaviour: Misbehaviour, make_tracker: MakeTracker, sandbox: Sandbox) -> None:
    """1 MiB that would be 1 GiB, and more bytes than there are; through a whole relay."""
    tracker = make_tracker(deadline=2)
    sandbox.collector.misbehave(Misbehaviour.gzip_bomb(), times=1)  # made once, and kept by the sandbox
    tracker.visit(make_environ(LINK)).record(make_conversion("first"))
    tracker.drain()
    sandbox.collector.misbehave(misbehaviour)
    for number in range(4):
        tracker.visit(make_environ(LINK)).record(make_conversion(str(number)))
    before = resident()
    with Stopwatch() as watch:
        tracker.drain()

    assert watch.seconds < 3
    assert resident() - before < 20e6
    assert not sandbox.collector.accepted


# --- the whole relay ---


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "misbehaviour",
    [
        Misbehaviour.hang(),
        Misbehaviour.drip_headers(0.05),
        Misbehaviour.drip_body(0.05),
        Misbehaviour.reset(),
        Misbehaviour.slow(3.0),
    ],
    ids=lambda misbehaviour: misbehaviour.name,
)
def test_a_drain_over_a_broken_endpoint_ends_and_keeps_every_row(
    misbehaviour: Misbehaviour, make_tracker: MakeTracker, sandbox: Sandbox
) -> None:
    """Each row was tried once, is due again within seconds, and is not claimed."""
    tracker = make_tracker(deadline=1)
    for number in range(4):
        tracker.visit(make_environ(LINK)).record(make_conversion(str(number)))
    sandbox.collector.misbehave(misbehaviour)
    with Stopwatch() as watch:
        drained = tracker.drain()
    entries: list[Entry] = archive(tracker.outbox).entries()

    assert watch.seconds < 2
    assert (drained.settled, drained.buried) == (0, 0)
    assert {(entry.state, entry.attempts, entry.lease_token) for entry in entries} == {("pending", 1, None)}
    assert max(entry.due_at for entry in entries) < time.time() + 5

    sandbox.collector.behave()
    deadline = time.monotonic() + PATIENCE
    while len(sandbox.collector.accepted) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
        tracker.drain()
    assert len({received.fields["order_id"] for received in sandbox.collector.accepted}) == 4


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_one_poisonous_row_holds_up_no_other(make_tracker: MakeTracker, sandbox: Sandbox) -> None:
    """An order that Katalys never answers costs the others nothing but one worker's time."""
    hung = threading.Event()

    def hang_for_one(environ: dict[str, Any], released: threading.Event) -> None:
        if b"poison" in environ["wsgi.input"].getvalue():
            hung.set()
            released.wait()

    tracker = make_tracker(deadline=3)
    for order_id in ["poison", *map(str, range(60))]:
        tracker.visit(make_environ(LINK)).record(make_conversion(order_id))
    sandbox.collector.misbehave(Misbehaviour("hang for one", hang_for_one))
    relay = threading.Thread(target=tracker.drain)
    with Stopwatch() as watch:
        relay.start()
        sandbox.collector.wait_for(60, 2.5)
    relay.join(10)

    assert hung.is_set()
    assert watch.seconds < 2.5
    assert [entry.state for entry in tracker.outbox.history("poison")] == ["pending"]
