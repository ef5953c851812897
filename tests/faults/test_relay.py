"""``katalys-wsgi deliver`` as systemd, cron and the operator at a terminal run it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import Tracker
from katalys_wsgi.sandbox import Misbehaviour, Sandbox
from tests.support import LINK, Stopwatch, make_conversion, make_environ

from .harness import (
    ACKNOWLEDGED,
    PATIENCE,
    Program,
    accepted_orders,
    database,
    environment,
    happens,
    query,
    running,
    states,
)

DELIVER = [sys.executable, "-m", "katalys_wsgi", "deliver"]


@pytest.fixture
def fill(make_tracker: Callable[..., Tracker]) -> Callable[[int], None]:
    """Records that many orders."""

    def fill(orders: int) -> None:
        tracker = make_tracker()
        for number in range(orders):
            outcome = tracker.visit(make_environ(LINK)).record(make_conversion(str(number))).outcome.name
            assert outcome in ACKNOWLEDGED

    return fill


def once(options: dict[str, Any], tmp_path: Path, *arguments: str, **changes: Any) -> tuple[int, str, str]:
    """The exit code, output and errors of ``deliver --once``."""
    ran = subprocess.run(
        [*DELIVER, "--once", *arguments], env=environment({**options, **changes}), cwd=tmp_path,
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    return ran.returncode, ran.stdout, ran.stderr


# --- a unit file's relay ---


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_finishes_the_rows_in_progress_and_leaves_with_0(
    number: int, fill: Callable[[int], None], options: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    """What was sent is marked, what was not is not claimed any more, and the next relay goes on at once."""
    fill(40)
    path = database(options)
    sandbox.collector.misbehave(Misbehaviour.slow(1.0))
    with running(DELIVER, environment(options), tmp_path / "relay.log") as relay:
        assert happens(lambda: len(sandbox.collector.received) >= 4)
        with Stopwatch() as watch:
            code = relay.leave(number)

    sent = len(sandbox.collector.received)
    assert code == 0, relay.output()
    assert watch.seconds < 2
    assert sent == 4
    assert states(path) == {"delivered": sent, "pending": 40 - sent}
    left = query(path, "SELECT DISTINCT attempts, lease_token FROM katalys_outbox WHERE state = 'pending'")
    assert left == [(0, None)]
    sandbox.collector.behave()
    assert once(options, tmp_path)[0] == 0
    assert sorted(map(int, accepted_orders(sandbox))) == list(range(40))


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("behaviour", [Misbehaviour.hang(), Misbehaviour.drip_headers()], ids=["hang", "drip"])
def test_term_leaves_within_the_deadline_whatever_katalys_does(
    behaviour: Misbehaviour, fill: Callable[[int], None], options: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    fill(10)
    sandbox.collector.misbehave(behaviour)
    with running(DELIVER, environment({**options, "deadline": 2}), tmp_path / "relay.log") as relay:
        assert happens(lambda: len(sandbox.collector.received) >= 4)
        with Stopwatch() as watch:
            code = relay.leave()

    assert code == 0
    assert watch.seconds < 3
    assert states(database(options)) == {"pending": 10}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_term_at_any_moment_leaves_with_0(options: dict[str, Any], sandbox: Sandbox, tmp_path: Path) -> None:
    """While it starts (once it has begun to work), waits, claims, sends or settles."""
    codes = []
    for number in range(12):
        with running(DELIVER, environment(options), tmp_path / "relay.log") as relay:
            assert happens(lambda: has_opened_its_outbox(relay, database(options)), every=0.005)
            time.sleep(0.017 * number)
            codes.append(relay.leave(patience=10))

    assert codes == [0] * 12


def has_opened_its_outbox(program: Program, path: Path) -> bool:
    try:
        return any(os.path.samefile(link, path) for link in Path(f"/proc/{program.pid}/fd").iterdir())
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_waiting_relay_finds_what_others_record(
    options: dict[str, Any], sandbox: Sandbox, fill: Callable[[int], None], tmp_path: Path
) -> None:
    with running(DELIVER, environment(options), tmp_path / "relay.log") as relay:
        assert happens(lambda: has_opened_its_outbox(relay, database(options)))
        fill(3)
        sandbox.collector.wait_for(3, PATIENCE)
        code = relay.leave()

    assert code == 0
    assert relay.output().count("katalys_wsgi.postback_delivered") == 3
    assert "ann@example.com" not in relay.output()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_relay_outlives_an_outbox_that_is_unusable_for_a_while(
    options: dict[str, Any], sandbox: Sandbox, fill: Callable[[int], None], tmp_path: Path
) -> None:
    fill(3)
    path = database(options)
    away = path.rename(tmp_path / "away")
    path.mkdir()
    with running(DELIVER, environment(options), tmp_path / "relay.log") as relay:
        assert happens(lambda: "katalys_wsgi.outbox_unavailable" in relay.output())
        path.rmdir()
        away.rename(path)
        sandbox.collector.wait_for(3, PATIENCE)
        code = relay.leave()

    assert code == 0


# --- cron's relay ---


def test_once_says_what_it_did_and_whether_it_went_well(
    fill: Callable[[int], None], options: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    nothing = once(options, tmp_path)
    fill(2)
    all_well = once(options, tmp_path)

    assert nothing[:2] == (0, "0 delivered, 0 postponed, 0 dead\n")
    assert all_well[:2] == (0, "2 delivered, 0 postponed, 0 dead\n")
    assert all_well[2].count("katalys_wsgi.postback_delivered") == 2


@pytest.mark.parametrize(
    ("status", "counts"),
    [
        (503, {"settled": 0, "postponed": 1, "buried": 0}),
        (400, {"settled": 0, "postponed": 0, "buried": 1}),
        (404, {"settled": 0, "postponed": 1, "buried": 0}),
    ],
)
def test_once_ends_with_1_when_a_row_failed(
    status: int,
    counts: dict[str, int],
    fill: Callable[[int], None],
    options: dict[str, Any],
    sandbox: Sandbox,
    tmp_path: Path,
) -> None:
    fill(1)
    # Without it full jitter may put the next attempt so near that the same drain makes it.
    sandbox.collector.misbehave(Misbehaviour.status(status, headers={"Retry-After": "60"}))
    code, out, _ = once(options, tmp_path, "--json")

    assert code == 1
    assert json.loads(out) == counts


def test_once_ends_with_1_when_the_outbox_cannot_be_used_and_2_when_the_settings_are_wrong(
    options: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    database(options).mkdir()
    unusable = once(options, tmp_path)
    wrong = once(options, tmp_path, endpoint="http://example.com/")
    unknown = once(options, tmp_path, "--no-such-option")

    assert (unusable[0], unusable[1]) == (1, "")
    assert "is not an outbox of katalys_wsgi but a directory" in unusable[2]
    assert (wrong[0], unknown[0]) == (2, 2)
    assert "KATALYS_ENDPOINT" in wrong[2]
    assert "Traceback" not in unusable[2] + wrong[2]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_term_ends_once_too(
    fill: Callable[[int], None], options: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    fill(20)
    sandbox.collector.misbehave(Misbehaviour.slow(1.0))
    with running([*DELIVER, "--once"], environment(options), tmp_path / "relay.log") as relay:
        assert happens(lambda: len(sandbox.collector.received) >= 4)
        relay.leave()

    sent = len(sandbox.collector.received)
    assert sent == 4
    assert states(database(options)) == {"delivered": sent, "pending": 20 - sent}


# --- at a terminal ---


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_progress_is_shown_on_a_terminal_only(
    fill: Callable[[int], None], options: dict[str, Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    """A count that runs on one line while a backlog drains; a log file gets none of it."""
    fill(30)
    master, slave = pty.openpty()
    with (
        open(slave, "wb", buffering=0) as terminal,
        running([*DELIVER, "--once"], environment(options), tmp_path / "log", stderr=terminal) as relay,
    ):
        relay.popen.wait(PATIENCE)
    shown = _read_all(master)
    fill(31)
    _, out, err = once(options, tmp_path)

    assert [int(count) for count in re.findall(r"\r(\d+) delivered ", shown)] == list(range(1, 31))
    assert "\r" not in out + err


def _read_all(descriptor: int) -> str:
    content = b""
    with open(descriptor, "rb", buffering=0) as terminal:
        try:
            while part := terminal.read(65536):
                content += part
        except OSError:  # how Linux says that no process writes to this terminal any more
            pass
    return content.decode()
