"""The rules of an entry that are not SQL: the same for every store, without one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from katalys_wsgi.conversion.postback import Kind, Postback
from katalys_wsgi.errors import KatalysError, UnusableConnection
from katalys_wsgi.outbox.entry import (
    FORGOTTEN,
    HOLDING_BACK,
    LONGEST_DELAY,
    LONGEST_HISTORY,
    PAGE,
    PATIENCE_IN_RELAY,
    PATIENCE_IN_REQUEST,
    Added,
    Attempt,
    Change,
    Entry,
    Receipt,
    State,
    Verdict,
    added_again,
    forgotten_columns,
    holds_back,
    new_columns,
    paged,
    refuse_connection,
    revived_columns,
    share_of_retries,
)

from .outbox_conformance import BUSY, REFUSED, TAKEN, conversion

NOW = 1_800_000_000.0


def make_row(**changes: Any) -> dict[str, Any]:
    """A row as a store keeps it."""
    blank = {"id": 1, "leased_until": None, "lease_token": None, "confirmed": 0, "history": "[]"}
    return {**blank, **new_columns(conversion(), [], NOW), **changes}


def make_entry(**changes: Any) -> Entry:
    return replace(Entry.from_row(make_row()), **changes)


# --- reading a row ---


def test_a_row_is_read_as_states_kinds_and_attempts() -> None:
    entry = Entry.from_row(make_row(confirmed=1, history='[[1.5, 503, "HTTP 503"]]'))

    assert (entry.state, entry.kind) == (State.PENDING, Kind.CONVERSION)
    assert entry.confirmed is True
    assert entry.history == (Attempt(1.5, 503, "HTTP 503"),)


def test_a_garbled_state_reads_as_dead() -> None:
    """It is never sent, and the operator still sees it."""
    assert Entry.from_row(make_row(state="pend\ufffdng")).state is State.DEAD


def test_a_garbled_kind_reads_as_an_update() -> None:
    """An affiliate is credited by no update."""
    assert Entry.from_row(make_row(kind="conv\ufffdrsion")).kind is Kind.UPDATE


@pytest.mark.parametrize("state", State)
def test_states_print_as_they_are_stored(state: State) -> None:
    assert str(state) == f"{state}" == state.value == state


# --- adding ---


def test_a_new_row_is_pending_and_due() -> None:
    columns = new_columns(conversion(), [], NOW)

    assert (columns["state"], columns["due_at"], columns["created_at"]) == ("pending", NOW, NOW)
    assert (columns["attempts"], columns["finished_at"], columns["last_error"]) == (0, None, None)


def test_a_row_with_problems_is_dead_at_once_and_names_them() -> None:
    columns = new_columns(conversion(), ["vid: is blank", "currency: is missing"], NOW)

    assert (columns["state"], columns["finished_at"]) == ("dead", NOW)
    assert columns["last_error"] == "vid: is blank; currency: is missing"


@pytest.mark.parametrize(
    ("state", "attempts", "is_same", "problems", "added"),
    [
        ("pending", 0, True, [], Added.SAME),
        ("pending", 3, False, [], Added.DIFFERENT),
        ("delivered", 1, True, [], Added.SAME),
        ("delivered", 1, False, [], Added.DIFFERENT),
        ("dead", 0, True, [], Added.REPLACED),
        ("dead", 0, False, [], Added.REPLACED),
        ("dead", 1, True, [], Added.SAME),
        ("dead", 1, False, [], Added.REPLACED),
        ("dead", 0, True, ["vid: is blank"], Added.SAME),
        ("dead", 1, False, ["vid: is blank"], Added.DIFFERENT),
    ],
)
def test_what_a_key_that_is_there_already_becomes(
    state: str, attempts: int, is_same: bool, problems: list[str], added: Added
) -> None:
    digest = conversion().digest if is_same else "another"

    assert added_again(conversion(), problems, state=state, attempts=attempts, digest=digest) is added


def test_a_revived_row_starts_afresh_as_the_postback_it_is_given() -> None:
    postback = Postback("key", "1002", Kind.CONVERSION, "{}", clicked_at=5.0)
    columns = revived_columns(postback, NOW)

    assert (columns["key"], columns["order_id"], columns["payload"], columns["clicked_at"]) == (
        "key",
        "1002",
        "{}",
        5.0,
    )
    assert (columns["state"], columns["attempts"], columns["due_at"]) == ("pending", 0, NOW)
    assert columns["pending_since"] == NOW
    assert not {"history", "created_at", "id"} & columns.keys()


def test_a_connection_is_refused_by_an_outbox_that_cannot_join_it() -> None:
    refuse_connection(None)
    with pytest.raises(UnusableConnection, match="set outbox to its SQLAlchemy URL") as caught:
        refuse_connection(object())

    assert isinstance(caught.value, KatalysError)
    assert isinstance(caught.value, TypeError)


# --- holding back ---


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("state", State)
def test_what_holds_a_later_entry_back(state: State, kind: Kind) -> None:
    """Whatever is pending, and a dead conversion: an update must not overtake it, and makes no sense without it."""
    older = make_entry(id=1, state=state, kind=kind)
    expected = state is State.PENDING or (state is State.DEAD and kind is Kind.CONVERSION)

    assert holds_back(older, make_entry(id=2, kind=Kind.UPDATE)) is expected
    assert ((state, kind) in HOLDING_BACK) is expected


def test_nothing_is_held_back_by_what_is_younger_or_by_itself() -> None:
    entry = make_entry(id=2)

    assert not holds_back(make_entry(id=3), entry)
    assert not holds_back(entry, entry)


# --- the fair share of retries ---


def share(*, new: int = 0, tried: int = 0, jumped: int = 0, jumped_and_tried: int = 0, limit: int) -> list[str]:
    """Whose ids are claimed of so many rows that are due."""
    rows = {
        (False, False): [f"new {n}" for n in range(new)],
        (True, False): [f"tried {n}" for n in range(tried)],
        (False, True): [f"jumped {n}" for n in range(jumped)],
        (True, True): [f"jumped and tried {n}" for n in range(jumped_and_tried)],
    }
    names = [name for group in rows.values() for name in group]

    def due(*, tried: bool, after_jump: bool, most: int) -> list[int]:
        return [names.index(name) for name in rows[tried, after_jump][:most]]

    return [names[entry_id] for entry_id in share_of_retries(due, limit)]


@pytest.mark.parametrize(
    ("new", "tried", "limit", "of_new", "of_tried"),
    [
        (20, 20, 10, 5, 5),
        (20, 20, 7, 4, 3),
        (20, 20, 1, 1, 0),
        (3, 20, 10, 3, 7),
        (20, 3, 10, 7, 3),
        (0, 20, 10, 0, 10),
        (20, 0, 10, 10, 0),
        (2, 2, 10, 2, 2),
    ],
)
def test_retries_get_up_to_half_while_new_ones_wait(
    new: int, tried: int, limit: int, of_new: int, of_tried: int
) -> None:
    expected = [*(f"new {n}" for n in range(of_new)), *(f"tried {n}" for n in range(of_tried))]

    assert share(new=new, tried=tried, limit=limit) == expected


def test_what_a_clock_jump_has_left_behind_gets_the_rest() -> None:
    assert share(new=1, jumped=1, jumped_and_tried=5, limit=4) == [
        "new 0",
        "jumped 0",
        "jumped and tried 0",
        "jumped and tried 1",
    ]
    assert share(new=1, jumped=5, jumped_and_tried=5, limit=2) == ["new 0", "jumped 0"]
    assert share(new=5, jumped=5, limit=5) == [f"new {n}" for n in range(5)]


# --- changes ---


def test_every_change_ends_the_lease() -> None:
    entry = make_entry(attempts=1, lease_token="t", leased_until=NOW)
    for change in (
        Change.settle(entry, TAKEN),
        Change.postpone(entry, BUSY, 5.0),
        Change.bury(entry, REFUSED),
        Change.release(entry),
    ):
        columns = change.columns(NOW)
        assert (columns["leased_until"], columns["lease_token"]) == (None, None)


def test_what_is_settled_loses_its_payload_and_nothing_else_does() -> None:
    entry = make_entry(attempts=1)
    settled = Change.settle(entry, TAKEN).columns(NOW)

    assert (settled["payload"], settled["state"], settled["finished_at"]) == (None, "delivered", NOW)
    assert settled["confirmed"] is True
    for change in (Change.postpone(entry, BUSY, 5.0), Change.bury(entry, REFUSED), Change.release(entry)):
        assert "payload" not in change.columns(NOW)


def test_a_delay_is_cut_to_the_longest_one() -> None:
    """What is due later than that was put there by a clock that jumped."""
    assert Change.postpone(make_entry(), BUSY, 100.0).columns(NOW)["due_at"] == NOW + 100
    assert Change.postpone(make_entry(), BUSY, 1e9).columns(NOW)["due_at"] == NOW + LONGEST_DELAY


def test_a_release_undoes_the_attempt_and_writes_no_history() -> None:
    columns = Change.release(make_entry(attempts=3)).columns(NOW)

    assert columns["attempts"] == 2
    assert "history" not in columns


def test_of_very_many_attempts_the_latest_are_kept() -> None:
    history = tuple(Attempt(float(n), 503, "HTTP 503") for n in range(LONGEST_HISTORY))
    kept = json.loads(Change.bury(make_entry(history=history), REFUSED).columns(NOW)["history"])

    assert len(kept) == LONGEST_HISTORY
    assert kept[0] == [1.0, 503, "HTTP 503"]
    assert kept[-1] == [NOW, 400, "HTTP 400: no"]


# --- forgetting, patience, paging ---


def test_a_delivered_row_is_forgotten_without_a_trace() -> None:
    assert forgotten_columns(make_entry(state=State.DELIVERED), NOW) == {"payload": None}


@pytest.mark.parametrize("state", [State.PENDING, State.DEAD])
def test_what_was_not_delivered_becomes_a_dead_letter_that_says_so(state: State) -> None:
    columns = forgotten_columns(make_entry(state=state), NOW)

    assert (columns["payload"], columns["state"], columns["finished_at"]) == (None, "dead", NOW)
    assert columns["last_error"] == FORGOTTEN


def test_a_page_waits_two_seconds_and_a_relay_ten() -> None:
    assert (PATIENCE_IN_REQUEST, PATIENCE_IN_RELAY) == (2.0, 10.0)


@pytest.mark.parametrize("count", [0, 1, PAGE, 2 * PAGE + 1])
def test_every_entry_is_read_page_by_page(count: int) -> None:
    entries = [make_entry(id=number + 1) for number in range(count)]
    asked: list[int] = []

    def page(after: int) -> list[Entry]:
        asked.append(after)
        return entries[after : after + PAGE]

    assert list(paged(page)) == entries
    assert len(asked) == -(-count // PAGE) + 1


def test_a_receipt_is_unconfirmed_unless_it_says_so() -> None:
    assert Receipt(Verdict.DELIVERED, 204).confirmed is False
