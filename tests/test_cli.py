"""The command line and its commands: what each one prints, and with which code it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import pytest
import requests

from katalys_wsgi import Tracker
from katalys_wsgi.cli import command_names, main
from katalys_wsgi.operations import archive
from katalys_wsgi.outbox import State
from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .support import BUYER_IP, LINK, OLD_SECRET, SECRET, make_conversion, make_environ

COMMANDS = ("demo", "sandbox", "decode", "deliver", "status", "list", "why", "retry", "forget", "prune")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No KATALYS_ setting of whoever runs the tests; tests that need one set it."""
    for name in [name for name in os.environ if name.startswith("KATALYS_")]:
        monkeypatch.delenv(name)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in this process: exit code, standard output, standard error."""

    def run_it(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse's own way out
            code = end.code if isinstance(end.code, int) else 1
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run_it


@pytest.fixture
def environment(options: dict[str, Any]) -> dict[str, str]:
    """The settings of the tracker as environment variables."""
    return {f"KATALYS_{name.upper()}": str(value) for name, value in options.items()}


@pytest.fixture
def operate(run: Run, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command with the settings of the tracker in the environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return run


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], IO[str], IO[str]]]:
    """One command in a process of its own, with its standard output and error; Ctrl-C reaches it.

    Even if the tests are a background job, where shells have children ignore Ctrl-C.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "katalys_wsgi", *arguments],
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process, process.stdout, process.stderr
        finally:
            process.kill()


def buy(tracker: Tracker, order_id: str = "1001", **changes: Any) -> None:
    tracker.visit(make_environ(LINK)).record(make_conversion(order_id, **changes))


# --- help and wrong use --------------------------------------------------------------------------------------


def test_the_commands() -> None:
    assert command_names() == COMMANDS


def test_help_lists_every_command(run: Run) -> None:
    code, out, err = run("--help")

    assert (code, err) == (0, "")
    assert all(re.search(rf"^ +{command} ", out, re.MULTILINE) for command in COMMANDS)
    assert "exit codes" in out
    assert "KATALYS_SITE_ID" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(run: Run, command: str) -> None:
    code, out, err = run(command, "--help")

    assert (code, err) == (0, "")
    assert out.startswith(f"usage: katalys-wsgi {command}")
    assert "exit codes" in out


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no command"),
        pytest.param(["no-such-command"], id="unknown command"),
        pytest.param(["demo", "--twice"], id="unknown option"),
        pytest.param(["decode"], id="missing argument"),
        pytest.param(["sandbox", "--port", "eighty"], id="not a number"),
        pytest.param(["list", "--state", "lost"], id="unknown state"),
        pytest.param(["retry"], id="neither order nor all"),
        pytest.param(["forget", "1001", "--email", "ann@example.com"], id="order and address"),
    ],
)
def test_wrong_use_is_code_2(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert "usage: katalys-wsgi" in err


@pytest.mark.parametrize(
    "program",
    [
        pytest.param([sys.executable, "-W", "error", "-m", "katalys_wsgi"], id="python -m"),
        pytest.param([str(Path(sys.executable).parent / "katalys-wsgi")], id="console script"),
    ],
)
def test_both_ways_to_start_it(program: list[str], tmp_path: Path) -> None:
    assert Path(program[0]).exists(), f"{program[0]} is not installed; pip install -e . makes it"
    ended = subprocess.run([*program, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=50)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: katalys-wsgi")


def test_a_setting_may_be_an_option(tracker: Tracker, operate: Run) -> None:
    buy(tracker)

    assert operate("deliver", "--once", "--endpoint", "http://127.0.0.1:9/")[0] == 1


@pytest.mark.parametrize("setting", ["secret-key", "consent"])
def test_what_a_command_line_must_not_hold_is_no_option(run: Run, setting: str) -> None:
    """Every user of the machine can read a command line; and a function cannot be written there."""
    code, _, err = run("status", f"--{setting}", "x")

    assert code == 2
    assert "unrecognized arguments" in err


def test_a_wrong_setting_is_reported_in_one_line(operate: Run) -> None:
    assert operate("deliver", "--wire", "smoke") == (2, "", "wire= is 'smoke'; choose json or form or get.\n")


def test_an_outbox_that_cannot_be_used_is_reported_in_one_line(tmp_path: Path, operate: Run) -> None:
    (tmp_path / "folder.db").mkdir()
    code, out, err = operate("status", "--outbox", f"{tmp_path}/folder.db")

    assert (code, out) == (1, "")
    assert "is not an outbox of katalys_wsgi but a directory" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("status",), ("list",), ("retry", "--all-dead"), ("forget", "1001")])
def test_an_outbox_that_cannot_answer_is_code_2(
    operate: Run, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """A shop's own outbox may have no more than delivery needs."""

    class ShopOutbox:
        add = history = claim = apply = prune = close = lambda *_args, **_kwargs: None

    monkeypatch.setattr(Tracker, "from_environ", lambda **_: Tracker(**{**options, "outbox": ShopOutbox()}))
    code, out, err = operate(*arguments)

    assert (code, out) == (2, "")
    assert err.endswith("give it the methods of katalys_wsgi.outbox.Archive.\n")


# --- demo and sandbox ----------------------------------------------------------------------------------------


def test_the_demo_ends_by_itself_when_asked(run: Run) -> None:
    code, out, err = run("demo", "--once")

    assert (code, err) == (0, "")
    assert "order_id" in out


def test_the_sandbox_plays_katalys_until_ctrl_c(make_tracker: Callable[..., Tracker]) -> None:
    """A shop whose endpoint it is delivers to it."""
    with started("sandbox", "--port", "0") as (process, out, err):
        endpoint = out.readline().rpartition("KATALYS_ENDPOINT=")[2].strip()
        listing = re.search(r"http://127\.0\.0\.1:\d+/(?=\s)", out.readline())
        assert listing is not None
        assert endpoint == f"{listing[0]}v2/_tr_offline"

        shop = make_tracker(endpoint=endpoint)
        buy(shop)
        assert shop.drain().settled == 1
        assert "order_id: 1001" in requests.get(listing[0], timeout=5).text

        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert err.read() == ""


def test_the_sandbox_can_refuse_messages_for_another_site(make_tracker: Callable[..., Tracker]) -> None:
    with started("sandbox", "--port", "0", "--site-id", "KA-7654321") as (_, out, _):
        shop = make_tracker(endpoint=out.readline().rpartition("KATALYS_ENDPOINT=")[2].strip())
        buy(shop)

        assert shop.drain().buried == 1


def test_a_port_that_is_taken_is_reported_in_one_line(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, err = run("sandbox", "--port", port)

    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert port in err


def test_a_port_that_cannot_be_is_reported_in_one_line(run: Run) -> None:
    code, out, err = run("sandbox", "--port", "70000")

    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1


# --- decode --------------------------------------------------------------------------------------------------

MakeCookie = Callable[..., str]


@pytest.fixture
def make_cookie(make_tracker: Callable[..., Tracker]) -> MakeCookie:
    """Makes the ``name=value`` of a click that has just happened."""

    def make(secret: str | Sequence[str] = SECRET, query: str = LINK, **changes: Any) -> str:
        set_cookie = make_tracker(secret_key=secret, **changes).set_cookie_for(make_environ(query))
        assert set_cookie is not None
        return set_cookie.partition(";")[0]

    return make


@pytest.fixture
def decode(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``decode`` with the secret key in the environment."""
    monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)
    return lambda *arguments: run("decode", *arguments)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(lambda cookie: cookie, id="name=value"),
        pytest.param(lambda cookie: cookie.partition("=")[2], id="value"),
        pytest.param(lambda cookie: '"' + cookie.partition("=")[2] + '"', id="quoted value"),
    ],
)
def test_decode_shows_the_click(decode: Run, make_cookie: MakeCookie, given: Callable[[str], str]) -> None:
    code, out, err = decode(given(make_cookie()))

    assert (code, err) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (shown["transaction_id"], shown["offer_id"], shown["aff_id"]) == ("1234abcd", "1234", "5678")
    assert float(shown["age_in_days"]) == 0


def test_decode_as_json(decode: Run, make_cookie: MakeCookie) -> None:
    code, out, _ = decode("--json", make_cookie(query="utm_source=Katalys&offer_id=1234&publisher_id=5678"))

    assert code == 0
    shown = json.loads(out)
    assert (shown["transaction_id"], shown["offer_id"], shown["aff_id"]) == (None, "1234", "5678")
    age = datetime.now(timezone.utc) - datetime.fromisoformat(shown["clicked_at"])
    assert 0 <= age.total_seconds() < 60


def test_a_click_of_long_ago_is_shown_too(decode: Run, make_cookie: MakeCookie) -> None:
    """Whoever asks wants to know why it did not count."""
    then = datetime(2024, 1, 1, tzinfo=timezone.utc).timestamp()

    code, out, _ = decode("--json", make_cookie(clock=lambda: then))

    assert code == 0
    assert json.loads(out)["clicked_at"] == "2024-01-01T00:00:00+00:00"
    assert json.loads(out)["age_in_days"] > 365


def test_any_key_that_is_listed_will_do(decode: Run, make_cookie: MakeCookie, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KATALYS_SECRET_KEY", f"{OLD_SECRET} {SECRET}")

    assert decode(make_cookie(OLD_SECRET))[0] == 0


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda cookie: cookie[:-1], id="cut short"),
        pytest.param(lambda cookie: cookie.replace("=", "=x", 1), id="altered"),
        pytest.param(lambda cookie: cookie.swapcase(), id="other case"),
    ],
)
def test_a_forged_cookie_is_code_1(decode: Run, make_cookie: MakeCookie, forge: Callable[[str], str]) -> None:
    code, out, err = decode(forge(make_cookie()))

    assert (code, out) == (1, "")
    assert err.startswith("No click: ")
    assert "KATALYS_SECRET_KEY" in err


@pytest.mark.parametrize("given", ["nonsense", "", "katalys_click=", "Grüße", "a.b"])
def test_what_is_not_a_cookie_is_code_1(decode: Run, given: str) -> None:
    code, out, err = decode(given)

    assert (code, out) == (1, "")
    assert err.startswith("No click: ")


def test_a_cookie_of_another_key_is_code_1(decode: Run, make_cookie: MakeCookie) -> None:
    assert decode(make_cookie(OLD_SECRET))[0] == 1


@pytest.mark.parametrize(
    ("key", "said"), [(None, "is missing"), ("short", "at least 32")], ids=["missing", "too short"]
)
def test_without_a_usable_key_decode_is_code_2(
    run: Run, make_cookie: MakeCookie, monkeypatch: pytest.MonkeyPatch, key: str | None, said: str
) -> None:
    if key:
        monkeypatch.setenv("KATALYS_SECRET_KEY", key)

    code, out, err = run("decode", make_cookie())

    assert (code, out) == (2, "")
    assert err.startswith("KATALYS_SECRET_KEY ")
    assert said in err
    assert "Traceback" not in err


# --- deliver: what a unit file or cron runs ------------------------------------------------------------------


def test_deliver_once_counts_what_became_of_the_rows(tracker: Tracker, operate: Run) -> None:
    buy(tracker)

    code, out, _ = operate("deliver", "--once", "--json")

    assert code == 0
    assert json.loads(out) == {"settled": 1, "postponed": 0, "buried": 0}


def test_deliver_once_says_that_a_row_failed(tracker: Tracker, sandbox: Sandbox, operate: Run) -> None:
    buy(tracker)
    sandbox.collector.misbehave(Misbehaviour.status(503))

    assert operate("deliver", "--once")[:2] == (1, "0 delivered, 1 postponed, 0 dead\n")


def test_a_terminal_shows_progress(
    tracker: Tracker, sandbox: Sandbox, operate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that counts while a backlog drains; what failed is not counted."""
    for order_id in ("1", "2", "3"):
        buy(tracker, order_id)
    sandbox.collector.misbehave(Misbehaviour.status(422), times=1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    code, _, err = operate("deliver", "--once")

    assert code == 1
    assert err.endswith("\r1 delivered \r2 delivered ")


def test_deliver_goes_on_until_it_is_stopped(tracker: Tracker, sandbox: Sandbox, environment: dict[str, str]) -> None:
    """TERM, as systemd sends it, is no failure."""
    buy(tracker)
    with started("deliver", **environment) as (process, _, _):
        sandbox.collector.wait_for(1)
        process.send_signal(signal.SIGTERM)
        _, logged = process.communicate(timeout=20)

        assert process.returncode == 0
        assert "katalys_wsgi.postback_delivered order_id=1001" in logged


def test_deliver_leaves_the_signals_as_they_were(operate: Run) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    operate("deliver", "--once")

    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# --- status: what a monitor runs -----------------------------------------------------------------------------


def test_status_of_an_empty_outbox_is_code_0(tracker: Tracker, operate: Run) -> None:
    tracker.drain()
    code, out, _ = operate("status")

    assert code == 0
    assert out.splitlines() == [
        "pending    0 (0 due), the oldest for 0:00:00",
        "dead       0",
        "delivered  0, the last never",
        "pause      no",
    ]


def test_status_with_a_dead_letter_is_code_1(tracker: Tracker, operate: Run) -> None:
    buy(tracker, email_address="")
    code, out, _ = operate("status")

    assert code == 1
    assert "dead       1; see: katalys-wsgi list --state dead\n" in out


def test_status_of_a_paused_endpoint_is_code_1(tracker: Tracker, sandbox: Sandbox, operate: Run) -> None:
    buy(tracker)
    sandbox.collector.misbehave(Misbehaviour.status(403))
    tracker.drain()
    code, out, _ = operate("status", "--json")

    assert code == 1
    assert json.loads(out)["pause"] == "the last attempt failed: HTTP 403"


def test_status_of_a_row_that_waits_too_long_is_code_1(make_tracker: Callable[..., Tracker], operate: Run) -> None:
    buy(make_tracker(clock=lambda: time.time() - 100))

    assert operate("status", "--max-age", 99)[0] == 1
    assert operate("status", "--max-age", 1000)[0] == 0


# --- list and why --------------------------------------------------------------------------------------------


def test_list_shows_states_and_reasons_the_newest_first(tracker: Tracker, operate: Run) -> None:
    buy(tracker, "1")
    buy(tracker, "2", email_address="")
    code, out, _ = operate("list")

    assert code == 0
    newest, oldest = out.splitlines()
    assert "dead" in newest
    assert newest.endswith("2  email_address: is missing")
    assert "pending" in oldest


def test_list_of_one_state(tracker: Tracker, operate: Run) -> None:
    buy(tracker, "1")
    buy(tracker, "2", email_address="")
    _, out, _ = operate("list", "--state", "dead", "--json")

    assert [row["order_id"] for row in json.loads(out)] == ["2"]


def test_why_tells_the_story_of_an_order(tracker: Tracker, operate: Run) -> None:
    buy(tracker)
    code, out, _ = operate("why", "1001")

    assert code == 0
    assert out.endswith("\nIt is tried as soon as a relay runs.\n")


def test_why_of_an_unknown_order_is_code_1(tracker: Tracker, operate: Run) -> None:
    tracker.drain()
    code, out, _ = operate("why", "404")

    assert code == 1
    assert out.startswith("Nothing is known of order 404: ")


def test_json_holds_no_personal_data(tracker: Tracker, operate: Run) -> None:
    buy(tracker)
    printed = operate("why", "1001", "--json")[1] + operate("list", "--json")[1]

    assert printed.count('"order_id": "1001"') == 2
    assert "ann@example.com" not in printed
    assert BUYER_IP not in printed


# --- retry, forget, prune ------------------------------------------------------------------------------------


def test_retry_corrects_an_order_for_delivery(tracker: Tracker, sandbox: Sandbox, operate: Run) -> None:
    buy(tracker, email_address="")

    code, out, _ = operate("retry", "1001", "--set", "email_address=ann@example.com")

    assert (code, out) == (0, "1 of 1 dead letters will be tried again\n")
    tracker.drain()
    (received,) = sandbox.collector.accepted
    assert received.fields["email_address"] == "ann@example.com"


def test_retry_says_what_is_still_wrong(tracker: Tracker, operate: Run) -> None:
    buy(tracker, email_address="", sale_amount="much")

    code, out, err = operate("retry", "1001", "--set", "email_address=ann@example.com")

    assert (code, out) == (1, "0 of 1 dead letters will be tried again\n")
    assert "sale_amount" in err
    assert err.endswith("Correct it with --set FIELD=VALUE.\n")
    assert archive(tracker.outbox).statistics().dead == 1


def test_retry_of_all_dead_after_an_outage(tracker: Tracker, sandbox: Sandbox, operate: Run) -> None:
    for number in range(3):
        buy(tracker, str(number))
    sandbox.collector.misbehave(Misbehaviour.status(422), times=3)
    tracker.drain()

    assert operate("retry", "--all-dead")[:2] == (0, "3 of 3 dead letters will be tried again\n")
    assert tracker.drain().settled == 3


def test_retry_of_nothing_is_code_1(operate: Run) -> None:
    assert operate("retry", "1001")[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("1001", "--set", "email_address"), id="without value"),
        pytest.param(("1001", "--set", "vid=1", "--set", "vid=2"), id="twice"),
        pytest.param(("--all-dead", "--set", "vid=1"), id="for all"),
    ],
)
def test_retry_with_a_wrong_correction_is_code_2(arguments: tuple[str, ...], operate: Run) -> None:
    code, out, err = operate("retry", *arguments)

    assert (code, out) == (2, "")
    assert err.startswith("--set takes FIELD=VALUE")


def test_forget_of_an_order(tracker: Tracker, operate: Run) -> None:
    buy(tracker)

    assert operate("forget", "1001")[:2] == (0, "1 entries were emptied\n")
    (entry,) = tracker.outbox.history("1001")
    assert (entry.payload, entry.state) == (None, State.FORGOTTEN)


@pytest.mark.parametrize("hashed", [pytest.param(False, id="plain"), pytest.param(True, id="hash_email")])
def test_forget_of_an_address(hashed: bool, make_tracker: Callable[..., Tracker], operate: Run) -> None:
    """Hashed addresses were keyed with the first secret key."""
    tracker = make_tracker(hash_email=hashed)
    buy(tracker, "1")
    buy(tracker, "2")
    buy(tracker, "3", email_address="bob@example.com")

    assert operate("forget", "--email", "Ann@Example.com")[:2] == (0, "2 entries were emptied\n")
    assert [entry.order_id for entry in archive(tracker.outbox).with_payload()] == ["3"]


def test_prune_keeps_what_is_younger_than_the_retention(tracker: Tracker, operate: Run) -> None:
    buy(tracker)
    tracker.drain()

    assert operate("prune")[:2] == (0, "0 entries were deleted\n")
    assert operate("prune", "--older-than", 0)[:2] == (0, "1 entries were deleted\n")
