"""What an operator asks of the outbox and does with it: status, why, retry, forget."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from katalys_wsgi import ConfigurationError, InvalidConversion, OrderUpdate, Tracker, operations
from katalys_wsgi.conversion.postback import Kind, Postback
from katalys_wsgi.outbox import Archive, State
from katalys_wsgi.outbox.entry import LONGEST_HISTORY
from katalys_wsgi.outbox.memory import MemoryOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .support import BUYER_IP, LINK, SECRET, Clock, fields_of, make_conversion, make_environ, make_postback

#: When the clock of these tests stands: 2027-01-15 08:00:00 UTC.
NOW = 1_800_000_000.0


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def timed(make_tracker: Callable[..., Tracker], clock: Clock) -> Tracker:
    """A tracker whose clock stands."""
    return make_tracker(clock=clock)


def archive_of(tracker: Tracker) -> Archive:
    return operations.archive(tracker.outbox)


def buy(tracker: Tracker, order_id: str = "1001", **changes: Any) -> None:
    tracker.visit(make_environ(LINK)).record(make_conversion(order_id, **changes))


def refund(tracker: Tracker, order_id: str = "1001") -> None:
    tracker.record_update(OrderUpdate(order_id, order_status="refunded"))


def story_of(tracker: Tracker, now: float, order_id: str = "1001") -> str:
    """What ``katalys-wsgi why`` prints."""
    return "\n".join(operations.story(tracker.outbox.history(order_id), now))


# --- archive -------------------------------------------------------------------------------------------------


def test_an_outbox_of_this_package_answers_an_operator(tracker: Tracker) -> None:
    memory = MemoryOutbox()

    assert operations.archive(tracker.outbox) is tracker.outbox
    assert operations.archive(memory) is memory


def test_an_outbox_that_cannot_answer_is_refused() -> None:
    """A shop's own object may be an Outbox and no more; the error says what it needs."""

    class ShopOutbox:
        add = history = claim = apply = prune = close = lambda *_args, **_kwargs: None

    outbox: Any = ShopOutbox()
    with pytest.raises(ConfigurationError, match=r"ShopOutbox, cannot .*; give it the methods of .*\.outbox\.Archive"):
        operations.archive(outbox)


# --- status --------------------------------------------------------------------------------------------------


def test_an_empty_outbox_is_healthy(tracker: Tracker) -> None:
    tracker.drain()
    status = operations.status(archive_of(tracker))

    assert (status.statistics.pending, status.pause, status.is_healthy) == (0, None, True)


def test_a_dead_letter_is_not_healthy(tracker: Tracker) -> None:
    buy(tracker, email_address="")
    status = operations.status(archive_of(tracker))

    assert (status.statistics.dead, status.pause, status.is_healthy) == (1, None, False)


def test_a_pause_has_its_reason(tracker: Tracker, sandbox: Sandbox) -> None:
    buy(tracker)
    sandbox.collector.misbehave(Misbehaviour.status(403))
    tracker.drain()
    status = operations.status(archive_of(tracker))

    assert (status.pause, status.is_healthy) == ("the last attempt failed: HTTP 403", False)


def test_a_failure_before_the_last_success_is_no_pause(timed: Tracker, clock: Clock, sandbox: Sandbox) -> None:
    buy(timed, "1")
    sandbox.collector.misbehave(Misbehaviour.status(503), times=1)
    timed.drain()
    clock.advance(1)
    buy(timed, "2")
    timed.drain()

    assert operations.status(archive_of(timed)).pause is None


# --- story ---------------------------------------------------------------------------------------------------


def test_the_story_of_a_pending_order(timed: Tracker) -> None:
    buy(timed)

    assert story_of(timed, NOW) == (
        "The shopper came through a Katalys link, 2027-01-15 08:00:00 UTC.\n"
        "The order was recorded, 2027-01-15 08:00:00 UTC.\n"
        "  site_id           KA-1A2B3C4\n"
        "  sale_amount       59.90\n"
        "  subtotal_amount   50.00\n"
        "  discount_1_code   SPRING\n"
        "  transaction_id    1234abcd\n"
        "  offer_id          1234\n"
        "  aff_id            5678\n"
        "  order_time        @1800000000\n"
        "It is tried as soon as a relay runs."
    )


def test_the_story_of_a_delivered_order_still_says_who_is_credited_with_what(timed: Tracker) -> None:
    """And what an update changed; neither says anything about the buyer."""
    buy(timed, vid="visitor-7")
    refund(timed)
    timed.drain()
    story = story_of(timed, NOW)

    assert "  sale_amount       59.90\n" in story
    assert "  aff_id            5678\n" in story
    assert "  order_status      refunded\n" in story
    assert [value for value in ("ann@example.com", BUYER_IP, "visitor-7") if value in story] == []


def test_the_story_of_an_order_without_a_click(make_tracker: Callable[..., Tracker], clock: Clock) -> None:
    tracker = make_tracker(clock=clock, conversion_type="offline_conv")
    tracker.visit(make_environ()).record(make_conversion())

    assert story_of(tracker, NOW).startswith("The order was recorded, ")


def test_each_attempt_and_its_answer(timed: Tracker, clock: Clock, sandbox: Sandbox) -> None:
    buy(timed)
    sandbox.collector.misbehave(Misbehaviour.status(503, headers={"Retry-After": "60"}), times=1)
    timed.drain()
    before = story_of(timed, clock.now)
    clock.advance(60)
    timed.drain()
    after = story_of(timed, clock.now)

    assert "Attempt 1, 2027-01-15 08:00:00 UTC: HTTP 503.\nIt is tried again 2027-01-15 08:01:00 UTC." in before
    assert "Attempt 2, 2027-01-15 08:01:00 UTC: HTTP 204.\nIt is delivered, 2027-01-15 08:01:00 UTC." in after


def test_of_a_long_history_the_end_is_kept_and_the_story_says_so(
    timed: Tracker, clock: Clock, sandbox: Sandbox
) -> None:
    """Attempts keep their numbers."""
    buy(timed)
    sandbox.collector.misbehave(Misbehaviour.status(503))
    for _ in range(LONGEST_HISTORY + 2):
        timed.drain()
        clock.advance(3601)
    story = story_of(timed, clock.now)

    assert f"\nOf what was tried, the last {LONGEST_HISTORY} are kept.\nAttempt 3, " in story
    assert f"\nAttempt {LONGEST_HISTORY + 2}, " in story


def test_what_is_being_sent_is_no_attempt_yet(timed: Tracker) -> None:
    buy(timed)
    timed.outbox.claim(1, 60)

    assert "Of what was tried" not in story_of(timed, NOW)


@pytest.mark.parametrize(("email_address", "state"), [("ann@example.com", "pending"), ("", "dead")])
def test_an_update_that_is_held_back_says_by_what(timed: Tracker, email_address: str, state: str) -> None:
    """It must not overtake its conversion, and makes no sense while that one is a dead letter."""
    buy(timed, email_address=email_address)
    refund(timed)

    assert "An update of the order was recorded, 2027-01-15 08:00:00 UTC." in story_of(timed, NOW)
    assert story_of(timed, NOW).endswith(f"It waits for what was recorded before it, which is {state}.")


def test_an_update_whose_conversion_is_delivered_waits_for_nothing(timed: Tracker) -> None:
    buy(timed)
    timed.drain()
    refund(timed)

    assert story_of(timed, NOW).endswith("It is tried as soon as a relay runs.")


def test_a_row_that_a_relay_has_claimed(timed: Tracker) -> None:
    buy(timed)
    timed.outbox.claim(1, 60)

    assert story_of(timed, NOW).endswith(
        "It is being sent right now; should that relay have died, it is due again 2027-01-15 08:01:00 UTC."
    )
    assert story_of(timed, NOW + 61).endswith("It is tried as soon as a relay runs.")


def test_a_dead_letter_says_how_to_correct_it(timed: Tracker) -> None:
    buy(timed, email_address="")

    assert "It is a dead letter: email_address: is missing." in story_of(timed, NOW)
    assert story_of(timed, NOW).endswith("Correct it with: katalys-wsgi retry 1001 --set FIELD=VALUE")


def test_a_forgotten_order_cannot_be_corrected(timed: Tracker) -> None:
    buy(timed)
    operations.forget(archive_of(timed), order_id="1001")

    assert story_of(timed, NOW).endswith("It was forgotten on request, 2027-01-15 08:00:00 UTC; it will not be sent.")
    assert "59.90" not in story_of(timed, NOW)


def test_over_get_the_story_does_not_claim_to_know(make_tracker: Callable[..., Tracker]) -> None:
    tracker = make_tracker(wire="get")
    buy(tracker)
    tracker.drain()

    assert "over GET Katalys never says" in story_of(tracker, NOW)


def test_the_story_calls_the_program_as_its_reader_does(timed: Tracker) -> None:
    buy(timed, email_address="")
    lines = operations.story(timed.outbox.history("1001"), NOW, program="manage.py katalys")

    assert list(lines)[-1].endswith("Correct it with: manage.py katalys retry 1001 --set FIELD=VALUE")


def test_a_correction_leaves_a_trace(timed: Tracker, clock: Clock) -> None:
    """The attempts count anew."""
    buy(timed, email_address="")
    clock.advance(60)
    (entry,) = operations.dead_letters(archive_of(timed))
    operations.revive(archive_of(timed), entry, {"email_address": "ann@example.com", "vid": "7"})
    timed.drain()

    assert story_of(timed, NOW).endswith(
        "The operator had it tried again, 2027-01-15 08:01:00 UTC: corrected: email_address, vid.\n"
        "Attempt 1, 2027-01-15 08:01:00 UTC: HTTP 204.\n"
        "It is delivered, 2027-01-15 08:01:00 UTC."
    )


# --- dead letters --------------------------------------------------------------------------------------------


def test_every_dead_letter_is_found_the_oldest_first(tracker: Tracker) -> None:
    """However many there are: the operator revives them all after an outage."""
    for number in range(120):
        buy(tracker, str(number), email_address="")
    buy(tracker, "alive")

    assert [entry.order_id for entry in operations.dead_letters(archive_of(tracker))] == [str(n) for n in range(120)]


def test_dead_letters_are_counted_by_reason_the_most_frequent_first(tracker: Tracker) -> None:
    """Values differ from row to row, so they are left out."""
    tracker.outbox.add(make_postback("1"), problems=["email_address: is missing"])
    for order in ("2", "3"):
        tracker.outbox.add(make_postback(order), problems=[f"tax_amount: '{order}x' is not a plain number"])

    reasons = operations.grouped(operations.dead_letters(archive_of(tracker)))
    assert list(reasons.items()) == [("tax_amount: '...' is not a plain number", 2), ("email_address: is missing", 1)]
    assert operations.status(archive_of(tracker)).reasons == reasons


# --- revive --------------------------------------------------------------------------------------------------


def test_an_invalid_order_is_corrected_and_delivered(tracker: Tracker, sandbox: Sandbox) -> None:
    """With the keys in the specification's order, as if it had been right from the beginning."""
    buy(tracker, email_address="", vid="visitor")
    (entry,) = operations.dead_letters(archive_of(tracker))

    assert operations.revive(archive_of(tracker), entry, {"email_address": "ann@example.com", "vid": ""})
    tracker.drain()
    (received,) = sandbox.collector.accepted
    assert received.fields["email_address"] == "ann@example.com"
    assert list(received.fields)[3] == "email_address"
    assert "vid" not in received.fields


def test_what_is_still_wrong_stays_dead(tracker: Tracker) -> None:
    buy(tracker, email_address="", sale_amount="much")
    (entry,) = operations.dead_letters(archive_of(tracker))

    with pytest.raises(InvalidConversion, match="sale_amount"):
        operations.revive(archive_of(tracker), entry, {"email_address": "ann@example.com"})
    assert archive_of(tracker).statistics().dead == 1


def test_a_wrong_order_id_gets_its_own_key(tracker: Tracker, sandbox: Sandbox) -> None:
    """A later record of the right order is then a duplicate, not a second conversion."""
    buy(tracker, order_id="")
    (entry,) = operations.dead_letters(archive_of(tracker))

    assert operations.revive(archive_of(tracker), entry, {"order_id": "1001"})
    buy(tracker)
    tracker.drain()
    assert [received.fields["order_id"] for received in sandbox.collector.accepted] == ["1001"]


def test_an_order_keeps_its_number(tracker: Tracker) -> None:
    buy(tracker, email_address="")
    (entry,) = operations.dead_letters(archive_of(tracker))

    with pytest.raises(InvalidConversion, match="order_id: cannot be changed: it says which order this is"):
        operations.revive(archive_of(tracker), entry, {"order_id": "1002", "email_address": "ann@example.com"})


def test_a_field_that_the_message_has_already_may_be_corrected(tracker: Tracker) -> None:
    """Whatever its name: Katalys has keys that this package does not know."""
    fields = {**fields_of(make_postback()), "order_key": "a", "email_address": ""}
    tracker.outbox.add(Postback.from_fields(fields, Kind.CONVERSION), problems=["email_address: is missing"])
    (entry,) = operations.dead_letters(archive_of(tracker))

    corrected = operations.corrected(entry, {"order_key": "b", "email_address": "ann@example.com"})
    assert corrected["order_key"] == "b"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("email", "email_address"),
        ("publisher_id", "aff_id"),
        ("discount_2_kode", "discount_2_code"),
        ("line_item_12_quantity", "line_item_12_qty"),
        ("saleamount", "sale_amount"),
    ],
)
def test_a_field_that_katalys_does_not_know_is_refused_with_the_nearest_one(
    tracker: Tracker, name: str, meant: str
) -> None:
    buy(tracker, email_address="")
    (entry,) = operations.dead_letters(archive_of(tracker))

    with pytest.raises(InvalidConversion, match=f"{name}: is not a field of Katalys; did you mean {meant}\\?"):
        operations.corrected(entry, {name: "1"})


def test_an_order_that_was_recorded_anew_is_left_alone(tracker: Tracker) -> None:
    buy(tracker, order_id="")
    (entry,) = operations.dead_letters(archive_of(tracker))
    buy(tracker)

    assert not operations.revive(archive_of(tracker), entry, {"order_id": "1001"})


def test_a_revived_letter_gets_its_full_time_again(timed: Tracker, clock: Clock, sandbox: Sandbox) -> None:
    """Eight days after the order one more failure must not bury it at once."""
    buy(timed)
    sandbox.collector.misbehave(Misbehaviour.status(422), times=1)
    timed.drain()
    clock.advance(8 * 86400)
    (entry,) = operations.dead_letters(archive_of(timed))
    operations.revive(archive_of(timed), entry)
    sandbox.collector.misbehave(Misbehaviour.status(503), times=1)

    assert timed.drain().postponed == 1


def test_what_was_forgotten_cannot_be_revived(tracker: Tracker) -> None:
    buy(tracker)
    operations.forget(archive_of(tracker), order_id="1001")
    (entry,) = tracker.outbox.history("1001")

    with pytest.raises(InvalidConversion, match="record the order again"):
        operations.revive(archive_of(tracker), entry)


# --- forget --------------------------------------------------------------------------------------------------


def test_a_forgotten_order_is_never_delivered(tracker: Tracker, sandbox: Sandbox) -> None:
    buy(tracker)

    assert operations.forget(archive_of(tracker), order_id="1001") == 1
    tracker.drain()
    (entry,) = tracker.outbox.history("1001")
    assert (entry.payload, entry.state) == (None, State.FORGOTTEN)
    assert operations.status(archive_of(tracker)).is_healthy
    assert sandbox.collector.received == ()


@pytest.mark.parametrize("hashed", [pytest.param(False, id="plain"), pytest.param(True, id="hash_email")])
def test_every_order_of_an_address_is_forgotten(hashed: bool, make_tracker: Callable[..., Tracker]) -> None:
    tracker = make_tracker(hash_email=hashed)
    buy(tracker, "1")
    buy(tracker, "2")
    buy(tracker, "3", email_address="bob@example.com")

    assert operations.forget(archive_of(tracker), email_address=" Ann@Example.com\n", email_key=SECRET) == 2
    assert [entry.order_id for entry in archive_of(tracker).with_payload()] == ["3"]


# --- prune ---------------------------------------------------------------------------------------------------


def test_the_relay_prunes_after_the_retention(timed: Tracker, clock: Clock) -> None:
    buy(timed, "1")
    timed.drain()
    clock.advance(91 * 86400)
    buy(timed, "2")
    timed.drain()

    assert [entry.order_id for entry in archive_of(timed).entries()] == ["2"]


def test_an_update_goes_with_the_dead_conversion_it_waits_for(timed: Tracker) -> None:
    """Else it would be sent as soon as the conversion is gone."""
    buy(timed, email_address="")
    refund(timed)

    assert timed.outbox.prune(NOW + 1) == 2


# --- what is printed -----------------------------------------------------------------------------------------


def test_a_row_in_json_holds_no_personal_data(tracker: Tracker) -> None:
    buy(tracker)
    (entry,) = tracker.outbox.history("1001")
    printed = json.dumps(operations.as_row(entry))
    row = json.loads(printed)

    assert (row["order_id"], row["state"], row["kind"]) == ("1001", "pending", "conversion")
    assert not {"payload", "digest", "lease_token"} & set(row)
    assert (row["fields"]["sale_amount"], row["fields"]["aff_id"]) == ("59.90", "5678")
    assert "ann@example.com" not in printed
    assert BUYER_IP not in printed


def test_times_in_json_have_one_form(timed: Tracker) -> None:
    buy(timed)
    timed.drain()
    (entry,) = timed.outbox.history("1001")
    row = operations.as_row(entry)

    assert row["created_at"] == row["finished_at"] == row["history"][0]["at"] == "2027-01-15T08:00:00+00:00"
    assert row["leased_until"] is None


def test_what_strangers_typed_is_shown_on_one_line() -> None:
    assert operations.visible("a\x1b[2J\nb\u2028ü") == "a\\x1b[2J\\nb\\u2028ü"


@pytest.mark.parametrize(
    ("seconds", "printed"), [(NOW, "2027-01-15 08:00:00 UTC"), (0.0, "1970-01-01 00:00:00 UTC"), (None, "never")]
)
def test_times_are_printed_in_utc(seconds: float | None, printed: str) -> None:
    assert operations.utc(seconds) == printed
