"""An entry: how a row is read, which states hold others back, and what an attempt changes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from katalys_wsgi.conversion.postback import Kind
from katalys_wsgi.conversion.wire import business_part
from katalys_wsgi.outbox.entry import (
    GIVEN_UP,
    HOLDING_BACK,
    LONGEST_DELAY,
    LONGEST_HISTORY,
    PATIENCE_IN_RELAY,
    PATIENCE_IN_REQUEST,
    Attempt,
    Change,
    Entry,
    Receipt,
    State,
    Verdict,
    as_column,
    holds_back,
)
from katalys_wsgi.outbox.rules import new_columns

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


def test_a_note_is_told_from_an_attempt() -> None:
    history = (Attempt(1.5, 400, "HTTP 400"), Attempt(2.5, None, None, note="corrected: sale_amount"))
    entry = Entry.from_row(make_row(history=as_column(history)))

    assert entry.history == history
    assert [attempt.note for attempt in entry.history] == [None, "corrected: sale_amount"]


@pytest.mark.parametrize("column", ["[[1.5, 503", '[[1.5, "\ufffd"]]', "null", "[1]", "[[1, 2, 3, 4, 5]]", ""])
def test_a_history_that_cannot_be_read_is_empty(column: str) -> None:
    """Else one garbled row would end every claim, and every question."""
    assert Entry.from_row(make_row(history=column)).history == ()


def test_a_garbled_kind_reads_as_an_update() -> None:
    """An affiliate is credited by no update."""
    assert Entry.from_row(make_row(kind="conv\ufffdrsion")).kind is Kind.UPDATE


@pytest.mark.parametrize("state", State)
def test_states_print_as_they_are_stored(state: State) -> None:
    assert str(state) == f"{state}" == state.value == state


# --- holding back ---


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("state", State)
def test_what_holds_a_later_entry_back(state: State, kind: Kind) -> None:
    """Whatever is pending, and a conversion that was given up: an update must not overtake it or come without it."""
    older = make_entry(id=1, state=state, kind=kind)
    expected = state is State.PENDING or (state in GIVEN_UP and kind is Kind.CONVERSION)

    assert holds_back(older, make_entry(id=2, kind=Kind.UPDATE)) is expected
    assert ((state, kind) in HOLDING_BACK) is expected


def test_nothing_is_held_back_by_what_is_younger_or_by_itself() -> None:
    entry = make_entry(id=2)

    assert not holds_back(make_entry(id=3), entry)
    assert not holds_back(entry, entry)


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


def test_what_is_settled_keeps_its_business_fields_and_nothing_else_is_reduced() -> None:
    entry = make_entry(attempts=1)
    settled = Change.settle(entry, TAKEN).columns(NOW)

    assert (settled["state"], settled["finished_at"]) == ("delivered", NOW)
    assert settled["payload"] == business_part(conversion().payload)
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


# --- patience ---


def test_a_page_waits_two_seconds_and_a_relay_ten() -> None:
    assert (PATIENCE_IN_REQUEST, PATIENCE_IN_RELAY) == (2.0, 10.0)


def test_a_receipt_is_unconfirmed_unless_it_says_so() -> None:
    assert Receipt(Verdict.DELIVERED, 204).confirmed is False
