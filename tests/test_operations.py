"""What a person asks of the outbox and does with it, from Python and from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import InvalidConversion, OrderUpdate, Tracker, upkeep
from katalys_wsgi.cli import main
from katalys_wsgi.outbox.entry import FORGOTTEN
from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .support import BUYER_IP, LINK, Clock, make_conversion, make_environ


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


@pytest.fixture
def timed(make_tracker: Callable[..., Tracker], clock: Clock) -> Tracker:
    """A tracker whose clock stands."""
    return make_tracker(clock=clock)


@pytest.fixture
def command(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs ``katalys-wsgi`` with the settings of the tracker in the environment; answers its exit code."""
    for name, value in options.items():
        monkeypatch.setenv(f"KATALYS_{name.upper()}", value)
    return lambda *arguments: main([str(argument) for argument in arguments])


def buy(tracker: Tracker, order_id: str = "1001", **changes: Any) -> None:
    tracker.visit(make_environ(LINK)).record(make_conversion(order_id, **changes))


def sentences(tracker: Tracker, order_id: str, now: float) -> str:
    return "\n".join(upkeep.story(tracker.outbox.history(order_id), now))


class TestStatus:
    """``status``: how delivery stands."""

    def test_an_empty_outbox_is_healthy(self, command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
        assert command("status") == 0
        assert "pending    0" in capsys.readouterr().out

    def test_a_dead_letter_is_somebodys_business(
        self, tracker: Tracker, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        buy(tracker, email_address="")

        assert command("status") == 1
        assert "katalys-wsgi list --state dead" in capsys.readouterr().out

    def test_a_paused_endpoint_is_told_with_its_reason(
        self, tracker: Tracker, sandbox: Sandbox, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        buy(tracker)
        sandbox.collector.misbehave(Misbehaviour.status(403))
        tracker.drain()

        assert command("status", "--json") == 1
        assert json.loads(capsys.readouterr().out)["pause"] == "the last attempt failed: HTTP 403"

    def test_a_failure_before_the_last_success_is_no_pause(
        self, timed: Tracker, clock: Clock, sandbox: Sandbox
    ) -> None:
        buy(timed, "1")
        sandbox.collector.misbehave(Misbehaviour.status(503), times=1)
        timed.drain()
        clock.now += 1
        buy(timed, "2")
        timed.drain()

        assert upkeep.status(timed.outbox).pause is None

    def test_a_row_that_waits_too_long_is_somebodys_business(
        self, make_tracker: Callable[..., Tracker], command: Callable[..., int]
    ) -> None:
        import time

        buy(make_tracker(clock=lambda: time.time() - 100))

        assert command("status", "--max-age", 99) == 1
        assert command("status", "--max-age", 1000) == 0


class TestWhy:
    """``why``: the whole story of an order, in sentences."""

    def test_a_pending_order(self, timed: Tracker, clock: Clock) -> None:
        buy(timed)

        assert sentences(timed, "1001", clock.now) == (
            "The shopper came through a Katalys link, 2027-01-15 08:00:00 UTC.\n"
            "The order was recorded, 2027-01-15 08:00:00 UTC.\n"
            "It is tried as soon as a relay runs."
        )

    def test_each_attempt_and_its_answer(self, timed: Tracker, clock: Clock, sandbox: Sandbox) -> None:
        buy(timed)
        sandbox.collector.misbehave(Misbehaviour.status(503, headers={"Retry-After": "60"}), times=1)
        timed.drain()
        before = sentences(timed, "1001", clock.now)
        clock.now += 60
        timed.drain()
        after = sentences(timed, "1001", clock.now)

        assert "Attempt 1, 2027-01-15 08:00:00 UTC: HTTP 503.\nIt is tried again 2027-01-15 08:01:00 UTC." in before
        assert "Attempt 2, 2027-01-15 08:01:00 UTC: HTTP 204.\nIt is delivered." in after

    def test_an_update_behind_its_conversion(self, timed: Tracker, clock: Clock) -> None:
        buy(timed)
        timed.record_update(OrderUpdate("1001", order_status="refunded"))

        assert "An update of the order was recorded" in sentences(timed, "1001", clock.now)
        assert "It waits for what was recorded before it, which is pending." in sentences(timed, "1001", clock.now)

    def test_a_row_in_a_relays_hands(self, timed: Tracker, clock: Clock) -> None:
        buy(timed)
        timed.outbox.claim(1, 60)

        assert "It is being sent right now" in sentences(timed, "1001", clock.now)
        assert "It is tried as soon as a relay runs." in sentences(timed, "1001", clock.now + 61)

    def test_a_dead_letter_says_how_to_correct_it(self, timed: Tracker, clock: Clock) -> None:
        buy(timed, email_address="")

        assert "katalys-wsgi retry 1001 --set FIELD=VALUE" in sentences(timed, "1001", clock.now)

    def test_over_get_it_does_not_claim_to_know(
        self, make_tracker: Callable[..., Tracker], command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        tracker = make_tracker(wire="get")
        buy(tracker)
        tracker.drain()

        assert command("why", "1001") == 0
        assert "over GET Katalys never says" in capsys.readouterr().out

    def test_an_unknown_order(self, command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
        assert command("why", "404") == 1
        assert "Nothing is known of order 404" in capsys.readouterr().out

    def test_json_holds_no_personal_data(
        self, tracker: Tracker, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        buy(tracker)
        command("why", "1001", "--json")
        command("list", "--json")
        printed = capsys.readouterr().out

        assert '"order_id": "1001"' in printed
        assert "ann@example.com" not in printed
        assert BUYER_IP not in printed


class TestList:
    """``list``: entries, the newest first."""

    def test_states_and_reasons(
        self, tracker: Tracker, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        buy(tracker, "1")
        buy(tracker, "2", email_address="")

        assert command("list") == 0
        newest, oldest = capsys.readouterr().out.splitlines()
        assert "dead" in newest
        assert newest.endswith("2  email_address: is missing")
        assert "pending" in oldest

    def test_only_one_state(
        self, tracker: Tracker, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        buy(tracker, "1")
        buy(tracker, "2", email_address="")
        command("list", "--state", "dead", "--json")

        assert [row["order_id"] for row in json.loads(capsys.readouterr().out)] == ["2"]


class TestRetry:
    """``retry``: dead letters get another life."""

    def test_an_invalid_order_is_corrected_and_delivered(
        self, tracker: Tracker, sandbox: Sandbox, command: Callable[..., int]
    ) -> None:
        buy(tracker, email_address="")

        assert command("retry", "1001", "--set", "email_address=ann@example.com") == 0
        tracker.drain()
        (received,) = sandbox.collector.accepted
        assert received.fields["email_address"] == "ann@example.com"
        assert list(received.fields)[3] == "email_address"

    def test_what_is_still_wrong_stays_dead_and_is_told(
        self, tracker: Tracker, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        buy(tracker, email_address="", sale_amount="much")

        assert command("retry", "1001", "--set", "email_address=ann@example.com") == 1
        assert "sale_amount" in capsys.readouterr().err
        assert tracker.outbox.statistics().dead == 1

    def test_a_wrong_order_id_gets_its_own_key(self, tracker: Tracker, sandbox: Sandbox) -> None:
        """A later record of the right order is then a duplicate, not a second conversion."""
        buy(tracker, order_id="")
        (entry,) = tracker.outbox.entries("dead")

        assert upkeep.revive(tracker.outbox, entry, {"order_id": "1001"})
        buy(tracker)
        tracker.drain()
        assert [received.fields["order_id"] for received in sandbox.collector.accepted] == ["1001"]

    def test_an_order_that_was_recorded_anew_is_left_alone(self, tracker: Tracker) -> None:
        buy(tracker, order_id="")
        (entry,) = tracker.outbox.entries("dead")
        buy(tracker)

        assert not upkeep.revive(tracker.outbox, entry, {"order_id": "1001"})

    def test_all_dead_after_an_outage(
        self, tracker: Tracker, sandbox: Sandbox, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(3):
            buy(tracker, str(number))
        sandbox.collector.misbehave(Misbehaviour.status(422), times=3)
        tracker.drain()

        assert command("retry", "--all-dead") == 0
        assert "3 of 3" in capsys.readouterr().out
        assert tracker.drain().settled == 3

    def test_a_revived_letter_gets_its_full_time_again(
        self, make_tracker: Callable[..., Tracker], clock: Clock, sandbox: Sandbox
    ) -> None:
        """Eight days after the order one more failure must not bury it at once."""
        tracker = make_tracker(clock=clock)
        buy(tracker)
        sandbox.collector.misbehave(Misbehaviour.status(422), times=1)
        tracker.drain()
        clock.now += 8 * 86400
        (entry,) = tracker.outbox.entries("dead")
        upkeep.revive(tracker.outbox, entry)
        sandbox.collector.misbehave(Misbehaviour.status(503), times=1)

        assert tracker.drain().postponed == 1

    @pytest.mark.parametrize(
        "arguments",
        [
            pytest.param(("1001", "--set", "email_address"), id="without value"),
            pytest.param(("1001", "--set", "vid=1", "--set", "vid=2"), id="twice"),
            pytest.param(("--all-dead", "--set", "vid=1"), id="for all"),
        ],
    )
    def test_wrong_use(self, arguments: tuple[str, ...], command: Callable[..., int]) -> None:
        assert command("retry", *arguments) == 2

    def test_nothing_to_retry_is_no_success(self, command: Callable[..., int]) -> None:
        assert command("retry", "1001") == 1


class TestForget:
    """``forget``: a buyer's data leaves the outbox."""

    def test_an_order(self, tracker: Tracker, sandbox: Sandbox, command: Callable[..., int]) -> None:
        buy(tracker)

        assert command("forget", "1001") == 0
        tracker.drain()
        (entry,) = tracker.outbox.history("1001")
        assert (entry.payload, entry.state, entry.last_error) == (None, "dead", FORGOTTEN)
        assert sandbox.collector.received == ()

    @pytest.mark.parametrize("hashed", [pytest.param(False, id="plain"), pytest.param(True, id="hash_email")])
    def test_every_order_of_an_address(
        self,
        hashed: bool,
        make_tracker: Callable[..., Tracker],
        command: Callable[..., int],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        tracker = make_tracker(hash_email=hashed)
        buy(tracker, "1")
        buy(tracker, "2")
        buy(tracker, "3", email_address="bob@example.com")

        assert command("forget", "--email", "Ann@Example.com") == 0
        assert capsys.readouterr().out == "2 entries were emptied\n"
        assert [entry.order_id for entry in tracker.outbox.with_payload()] == ["3"]

    def test_what_was_forgotten_cannot_be_revived(self, tracker: Tracker) -> None:
        buy(tracker)
        upkeep.forget(tracker.outbox, order_id="1001")
        (entry,) = tracker.outbox.history("1001")

        with pytest.raises(InvalidConversion, match="record the order again"):
            upkeep.revive(tracker.outbox, entry)


class TestPrune:
    """``prune``: what was finished long ago goes; a relay does it by itself."""

    def test_by_hand(self, tracker: Tracker, command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
        buy(tracker)
        tracker.drain()

        assert command("prune") == 0
        assert command("prune", "--older-than", 0) == 0
        assert capsys.readouterr().out == "0 entries were deleted\n1 entries were deleted\n"

    def test_the_relay_prunes_after_the_retention(self, timed: Tracker, clock: Clock) -> None:
        buy(timed, "1")
        timed.drain()
        clock.now += 91 * 86400
        buy(timed, "2")
        timed.drain()

        assert [entry.order_id for entry in timed.outbox.entries()] == ["2"]

    def test_an_update_goes_with_the_dead_conversion_it_waits_for(self, timed: Tracker, clock: Clock) -> None:
        """Else it would be sent as soon as the conversion is gone."""
        buy(timed, email_address="")
        timed.record_update(OrderUpdate("1001", order_status="refunded"))

        assert timed.outbox.prune(clock.now + 1) == 2


class TestDeliver:
    """``deliver``: what a unit file or cron runs."""

    def test_once_tells_what_became_of_the_rows(
        self, tracker: Tracker, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        buy(tracker)

        assert command("deliver", "--once", "--json") == 0
        assert json.loads(capsys.readouterr().out) == {"settled": 1, "postponed": 0, "buried": 0}

    def test_once_says_that_a_row_failed(
        self, tracker: Tracker, sandbox: Sandbox, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        buy(tracker)
        sandbox.collector.misbehave(Misbehaviour.status(503))

        assert command("deliver", "--once") == 1
        assert capsys.readouterr().out == "0 delivered, 1 postponed, 0 dead\n"

    def test_a_setting_may_be_an_option(self, tracker: Tracker, command: Callable[..., int]) -> None:
        buy(tracker)

        assert command("deliver", "--once", "--endpoint", "http://127.0.0.1:9/") == 1

    def test_a_wrong_setting_is_told_in_one_line(
        self, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert command("deliver", "--wire", "smoke") == 2
        assert capsys.readouterr().err == "KATALYS_WIRE is 'smoke'; choose json or form or get.\n"

    def test_an_outbox_that_cannot_be_used_is_told_in_one_line(
        self, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "folder.db").mkdir()

        assert command("status", "--outbox", f"{tmp_path}/folder.db") == 1
        assert "cannot be used" in capsys.readouterr().err

    def test_it_delivers_until_it_is_told_to_leave(
        self, tracker: Tracker, sandbox: Sandbox, options: dict[str, Any]
    ) -> None:
        environment = {f"KATALYS_{name.upper()}": value for name, value in options.items()}
        buy(tracker)
        relay = subprocess.Popen(
            [sys.executable, "-m", "katalys_wsgi", "deliver"], env=environment, stderr=subprocess.PIPE, text=True
        )
        sandbox.collector.wait_for(1)
        relay.send_signal(signal.SIGTERM)
        _, told = relay.communicate(timeout=20)

        assert relay.returncode == 0
        assert "katalys_wsgi.postback_delivered order_id=1001" in told
