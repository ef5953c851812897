"""The rules of a row that are not SQL: the same for every store, without one."""

from __future__ import annotations

import json

import pytest

from katalys_wsgi.conversion.postback import Kind, Postback
from katalys_wsgi.conversion.wire import business_part
from katalys_wsgi.errors import KatalysError, UnusableConnection
from katalys_wsgi.outbox.entry import FORGOTTEN, Added, Attempt, Entry, State
from katalys_wsgi.outbox.rules import (
    PAGE,
    added_again,
    dropped_columns,
    forgotten_columns,
    new_columns,
    noted_columns,
    paged,
    refuse_connection,
    revived_columns,
    share_of_retries,
)

from .outbox_conformance import conversion
from .test_entry import NOW, make_entry

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
        ("forgotten", 0, True, [], Added.REPLACED),
        ("forgotten", 1, True, [], Added.SAME),
        ("forgotten", 1, False, [], Added.REPLACED),
        ("forgotten", 0, True, ["vid: is blank"], Added.SAME),
        ("dropped", 0, True, [], Added.REPLACED),
        ("dropped", 1, True, [], Added.SAME),
        ("dropped", 1, False, [], Added.REPLACED),
        ("dropped", 0, False, ["vid: is blank"], Added.DIFFERENT),
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


# --- forgetting, dropping, noting ---


@pytest.mark.parametrize("state", [State.DELIVERED, State.DROPPED, State.FORGOTTEN])
def test_what_was_finished_is_emptied_and_stays_what_it_is(state: State) -> None:
    assert forgotten_columns(make_entry(state=state), NOW) == {"payload": None}


@pytest.mark.parametrize("state", [State.PENDING, State.DEAD])
def test_what_was_not_delivered_becomes_forgotten(state: State) -> None:
    columns = forgotten_columns(make_entry(state=state), NOW)

    assert (columns["payload"], columns["state"], columns["finished_at"]) == (None, "forgotten", NOW)
    assert columns["last_error"] == FORGOTTEN


def test_a_dropped_row_keeps_why_it_died_and_its_business_fields() -> None:
    columns = dropped_columns(make_entry(state=State.DEAD), NOW)

    assert columns == {"payload": business_part(conversion().payload), "state": "dropped", "finished_at": NOW}


def test_a_note_is_added_to_the_history() -> None:
    refused = Attempt(1.0, 400, "HTTP 400: no")
    columns = noted_columns(make_entry(history=(refused,)), "corrected: sale_amount", NOW)

    assert json.loads(columns["history"]) == [[1.0, 400, "HTTP 400: no"], [NOW, None, None, "corrected: sale_amount"]]


def test_without_a_note_the_history_stays_as_it_is() -> None:
    assert noted_columns(make_entry(), "", NOW) == {}


# --- paging ---


@pytest.mark.parametrize("count", [0, 1, PAGE, 2 * PAGE + 1])
def test_every_entry_is_read_page_by_page(count: int) -> None:
    entries = [make_entry(id=number + 1) for number in range(count)]
    asked: list[int] = []

    def page(after: int) -> list[Entry]:
        asked.append(after)
        return entries[after : after + PAGE]

    assert list(paged(page)) == entries
    assert len(asked) == -(-count // PAGE) + 1
