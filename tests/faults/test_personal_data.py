"""A buyer's e-mail, IP address and user agent are in no log and no error, and on the disk only until delivered."""

from __future__ import annotations

import html
import json
import logging
import pickle
import random
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from webob import Response

from katalys_wsgi import (
    Conversion,
    ForeignFile,
    InvalidConversion,
    OrderUpdate,
    OutboxUnavailable,
    Outcome,
    Tracker,
    cli,
)
from katalys_wsgi.conversion.postback import Kind, Postback
from katalys_wsgi.operations import archive
from katalys_wsgi.outbox import Change, Receipt, State, Verdict, schema
from katalys_wsgi.outbox.rules import new_columns
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox
from tests.support import LINK, SECRET, SITE_ID, make_conversion, make_environ

from .harness import environment

EMAIL = "Marker-Mail+tag@Example.COM"
ADDRESS = "203.0.113.177"
AGENT = 'Mozilla/5.0 (X11; "marker-agent" é) Gecko/2010'

#: What must not be found, in lower case.
MARKERS = ("marker-mail", "203.0.113.177", "203%2e0%2e113%2e177", "marker-agent", SECRET.lower())


def found_in(text: str) -> list[str]:
    return [marker for marker in MARKERS if marker in text.lower()]


def visit_of_marked(tracker: Tracker) -> Any:
    agent = AGENT.encode().decode("latin-1")  # as PEP 3333 hands it over
    return tracker.visit(make_environ(LINK, REMOTE_ADDR=ADDRESS, HTTP_USER_AGENT=agent))


def record_marked(tracker: Tracker, order_id: str = "1001", **changes: Any) -> Any:
    return visit_of_marked(tracker).record(make_conversion(order_id, **{"email_address": EMAIL, **changes}))


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """All that any logger said at DEBUG, with tracebacks and with what hangs at the records."""
    before = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    caplog.set_level(logging.DEBUG)
    for name in before:
        logging.getLogger(name).setLevel(logging.DEBUG)

    def text() -> str:
        formatter = logging.Formatter("%(name)s %(levelname)s %(message)s")
        return "\n".join(f"{formatter.format(record)} {vars(record)}" for record in caplog.records)

    yield text
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def echo(encode: Callable[[bytes], str], status: int) -> Misbehaviour:
    """Repeats what was sent, as servers do that cannot parse it."""

    def act(environ: dict[str, Any], _: Any) -> Response:
        said = environ["wsgi.input"].getvalue() or environ["QUERY_STRING"].encode()
        answer = Response(
            status=status, text="cannot parse " + encode(said), content_type="text/plain", charset="utf-8"
        )
        answer.headers["Location"] = answer.headers["Retry-After"] = quote(said)
        return answer

    return Misbehaviour(f"echo {status}", act)


def as_text(said: bytes) -> str:
    return said.decode()


def values_only(said: bytes) -> str:
    """The values, one by one, in every spelling a server may choose."""
    if not said.startswith(b"{"):
        return said.decode()
    values = json.loads(said).values()
    spellings: list[Callable[[str], str]] = [str, str.upper, html.escape, quote, quote_plus, repr]
    return " ".join(
        spell(value) for value in reversed(values) for spell in spellings if value in (ADDRESS, AGENT, EMAIL)
    )


MISBEHAVIOURS = [
    pytest.param(None, id="204"),
    pytest.param(echo(as_text, 503), id="503 and an echo"),
    pytest.param(echo(as_text, 400), id="400 and an echo"),
    pytest.param(echo(as_text, 302), id="302 and an echo"),
    pytest.param(echo(as_text, 200), id="200 and an echo"),
    pytest.param(echo(values_only, 400), id="400 and every value in every spelling"),
    pytest.param(Misbehaviour.reset(), id="reset"),
    pytest.param(Misbehaviour.hang(), id="hang"),
    pytest.param(Misbehaviour.drip_headers(), id="drip"),
    pytest.param("stopped", id="refused"),
    pytest.param("tls", id="no TLS there"),
]


@pytest.mark.parametrize("wire", ["json", "form", "get"])
@pytest.mark.parametrize("misbehaviour", MISBEHAVIOURS)
def test_no_log_line_of_any_library_holds_personal_data(
    misbehaviour: Misbehaviour | str | None,
    wire: str,
    make_tracker: Callable[..., Tracker],
    sandbox: Sandbox,
    everything_logged: Callable[[], str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whatever is answered, over each wire; nor what is kept of the answer for the question why."""
    endpoint = sandbox.endpoint.replace("http:", "https:") if misbehaviour == "tls" else sandbox.endpoint
    tracker = make_tracker(wire=wire, endpoint=endpoint, deadline=0.4, read_timeout=0.3)
    if misbehaviour == "stopped":
        sandbox.stop()
    elif isinstance(misbehaviour, Misbehaviour):
        sandbox.collector.misbehave(misbehaviour)
    record_marked(tracker)
    tracker.drain()
    tracker.record_update(OrderUpdate(order_id="1001", email_address=EMAIL, order_status="refunded"))
    tracker.drain()
    entries = tracker.outbox.history("1001")
    printed = "".join(capfd.readouterr())

    assert found_in(everything_logged()) == []
    assert found_in(printed) == []
    assert found_in(repr(entries)) == []
    assert found_in("".join(str((entry.last_error, entry.history)) for entry in entries)) == []
    assert "katalys_wsgi.conversion_recorded" in everything_logged()


def test_no_log_line_of_a_page_holds_personal_data(
    make_tracker: Callable[..., Tracker], sandbox: Sandbox, everything_logged: Callable[[], str], tmp_path: Path
) -> None:
    """Forged cookies, broken tokens, invalid data, a full disk: what a page logs."""
    (tmp_path / "taken").mkdir()
    unusable = make_tracker(outbox=f"{tmp_path}/taken")
    tracker = make_tracker(trusted_proxies=1)
    cookie = f"katalys_click=marker-mail-{SECRET}"
    tracker.visit(make_environ(LINK, cookie=cookie, HTTP_X_FORWARDED_FOR=ADDRESS + ", nonsense")).record(
        make_conversion(email_address=EMAIL)
    )
    tracker.resume(visit_of_marked(tracker).token()[:-3])
    assert record_marked(tracker, "1002", sale_amount="nonsense").outcome is Outcome.INVALID
    assert record_marked(tracker, "1003", email_address=None, currency=EMAIL).outcome is Outcome.INVALID
    assert record_marked(unusable).outcome is Outcome.SENT_DIRECTLY
    sandbox.stop()
    assert record_marked(unusable).outcome is Outcome.LOST

    assert found_in(everything_logged()) == []


# --- errors and reprs ---


def test_no_error_and_no_repr_holds_personal_data(
    make_tracker: Callable[..., Tracker], sandbox: Sandbox, tmp_path: Path
) -> None:
    """What a developer prints, and what a crash reporter collects."""
    strict = make_tracker(strict=True)
    record_marked(strict)
    (entry,) = strict.outbox.claim(1, 60)
    visit = visit_of_marked(strict)
    postback = Postback.from_fields(json.loads(entry.payload or ""), Kind.CONVERSION)
    errors = [
        _error_of(lambda: visit.record(make_conversion("", email_address=EMAIL, sale_amount="x"))),
        _error_of(lambda: visit.record(make_conversion(email_address=[EMAIL]))),
        _error_of(lambda: visit.record(make_conversion(email_address=EMAIL, vid=EMAIL, sale_amount=None))),
        _error_of(lambda: strict.record_update(OrderUpdate(order_id="", email_address=EMAIL))),
        _error_of(lambda: record_marked(make_tracker(strict=True, outbox=f"{tmp_path}"))),
    ]
    shown = [
        visit, strict, strict.settings, strict.outbox, postback, entry, Change.release(entry), record_marked(strict),
        make_conversion(email_address=EMAIL), replace(make_conversion(), email_address=EMAIL), sandbox,
        OrderUpdate(order_id="1001", email_address=EMAIL), *errors,
    ]  # fmt: skip

    assert [type(error) for error in errors] == [*[InvalidConversion] * 4, ForeignFile]
    for each in shown:
        assert found_in(repr(each)) == [], type(each)
        assert found_in(str(each)) == [], type(each)
    for error in errors:
        assert found_in("".join(traceback.format_exception(error))) == []
        assert found_in(str(pickle.loads(pickle.dumps(error)))) == []  # noqa: S301 - our own


def _error_of(call: Callable[[], Any]) -> Exception:
    with pytest.raises((InvalidConversion, OutboxUnavailable)) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("arguments", [["status"], ["list"], ["why", "1001"], ["retry", "1001"]], ids=" ".join)
@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
def test_the_command_line_shows_no_personal_data(
    arguments: list[str],
    as_json: bool,
    make_tracker: Callable[..., Tracker],
    options: dict[str, Any],
    sandbox: Sandbox,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment(options).items():
        if name.startswith("KATALYS_"):
            monkeypatch.setenv(name, value)
    tracker = make_tracker()
    record_marked(tracker)
    sandbox.collector.misbehave(echo(as_text, 400))
    tracker.drain()
    record_marked(tracker, "1002", email_address=f"no address {EMAIL}")
    cli.main([*arguments, *(["--json"] if as_json and arguments[0] != "retry" else [])])
    printed = "".join(capsys.readouterr())

    assert "1001" in printed or arguments[0] in ("status", "retry")
    assert found_in(printed) == []


# --- the disk ---


def raw_bytes(path: Path) -> bytes:
    """The main file, its journal or its write-ahead log, as they lie on the disk."""
    return b"".join(found.read_bytes() for found in sorted(path.parent.glob(path.name + "*")))


def test_what_is_delivered_is_gone_from_the_files_at_once(
    make_tracker: Callable[..., Tracker], sandbox: Sandbox, tmp_path: Path
) -> None:
    """Through the whole package: there while it waits, after a failure too, and gone with the 204."""
    tracker = make_tracker()
    record_marked(tracker)
    at_first = raw_bytes(tmp_path / "outbox.db")
    sandbox.collector.misbehave(echo(as_text, 503), times=1)
    tracker.drain()
    after_a_failure = raw_bytes(tmp_path / "outbox.db")
    later = make_tracker(outbox=SQLiteOutbox(tmp_path / "outbox.db", clock=lambda: 4e9))
    assert later.drain().settled == 1

    assert found_in(at_first.decode("latin-1"))
    assert found_in(after_a_failure.decode("latin-1"))
    assert found_in(raw_bytes(tmp_path / "outbox.db").decode("latin-1")) == []


def test_what_is_forgotten_or_pruned_is_gone_from_the_files_too(
    make_tracker: Callable[..., Tracker], tmp_path: Path
) -> None:
    tracker = make_tracker()
    record_marked(tracker, "pending")
    record_marked(tracker, "dead", sale_amount="nonsense")
    assert found_in(raw_bytes(tmp_path / "outbox.db").decode("latin-1"))
    assert archive(tracker.outbox).forget(tracker.outbox.history("pending")) == 1
    assert found_in(raw_bytes(tmp_path / "outbox.db").decode("latin-1"))
    assert tracker.outbox.prune(4e9) == 2

    assert found_in(raw_bytes(tmp_path / "outbox.db").decode("latin-1")) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("mode", "seed"), [("TRUNCATE", 1), ("TRUNCATE", 2), ("WAL", 3)])
def test_no_page_keeps_a_trace_of_what_was_delivered(
    mode: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of all sizes come, fail and go, SQLite moves them between pages, and the raw bytes are searched for each.

    A write-ahead log is emptied when the relay prunes, once an hour.
    """
    monkeypatch.setattr(schema, "journal_mode", lambda: mode)
    chance = random.Random(seed)  # noqa: S311 - a seed to repeat
    path = tmp_path / "outbox.db"
    now = 1_800_000_000.0
    outbox = SQLiteOutbox(path, clock=lambda: now)
    marks: dict[str, bytes] = {}
    left: list[bytes] = []
    for turn in range(12):
        for number in range(40):
            order_id = f"{turn}-{number}"
            mark = f"mark-{chance.getrandbits(64):016x}"
            filler = "x" * chance.choice([0, 10, 300, 1500, 6000, 20000])
            fields = {"site_id": SITE_ID, "order_id": order_id, "email_address": mark * 3, "title": filler, "vid": mark}
            outbox.add(Postback.from_fields(fields, Kind.CONVERSION))
            marks[order_id] = mark.encode()
        now += 4000.0
        entries = outbox.claim(chance.randrange(5, 60), 60.0)
        chance.shuffle(entries)
        for entry in entries:
            outbox.apply([_random_change(entry, chance)])
        if mode == "WAL":
            outbox.prune(0.0)
        undelivered = {entry.order_id for entry in outbox.with_payload() if entry.state is State.PENDING}
        content = raw_bytes(path)
        left += [mark for order_id, mark in marks.items() if order_id not in undelivered and mark in content]
        assert all(marks[order_id] in content for order_id in undelivered)
    outbox.close()

    assert len(undelivered) < 12 * 40
    assert left == []


def _random_change(entry: Any, chance: random.Random) -> Change:
    if chance.random() < 0.7:
        return Change.settle(entry, Receipt(Verdict.DELIVERED, 204))
    return Change.postpone(entry, Receipt(Verdict.RETRY, 503, "HTTP 503: " + "busy " * chance.randrange(40)), 1.0)


def test_the_columns_of_a_row_hold_personal_data_in_the_payload_only(tracker: Tracker) -> None:
    """So that nulling the payload is enough."""
    record_marked(tracker)
    (entry,) = tracker.outbox.claim(1, 60)
    postback = Postback.from_fields(json.loads(entry.payload or ""), Kind.CONVERSION)
    columns = new_columns(postback, ["email_address: is missing"], 1.0)
    del columns["payload"]

    assert found_in(str(columns)) == []
    assert found_in(str(replace(entry, payload=None))) == []


def test_an_order_whose_own_id_is_an_address_is_the_shops_choice(tracker: Tracker, sandbox: Sandbox) -> None:
    """Order ids are logged; the documentation says so. A conversion's other fields never are."""
    outcome = tracker.visit(make_environ(LINK)).record(Conversion(
        order_id="ann@example.com", email_address=EMAIL, sale_amount="1.00", subtotal_amount="1.00",
    ))  # fmt: skip

    assert outcome.key == f"{SITE_ID}:conversion:ann@example.com"
    assert tracker.drain().settled == len(sandbox.collector.accepted) == 1
