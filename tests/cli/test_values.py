"""Values of options: what is taken, and the sentence with which the rest is refused."""

from __future__ import annotations

import time
from argparse import ArgumentTypeError
from datetime import datetime, timezone

import pytest

from katalys_wsgi.cli import values


def test_a_whole_number_within_its_limits() -> None:
    assert [values.whole(1, 3)(text) for text in ("1", "3")] == [1, 3]


@pytest.mark.parametrize("text", ["0", "4", "-1", "1.5", "one", "", "\u0661", "99999999999999999999"])
def test_any_other_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="give a whole number from 1 to 3"):
        values.whole(1, 3)(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("1.5", 1.5), ("10", 10.0)])
def test_a_number_within_its_limits(text: str, value: float) -> None:
    assert values.number("days", 10)(text) == value


@pytest.mark.parametrize("text", ["-0.1", "11", "nan", "inf", "many", ""])
def test_any_other_number_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="give days as a number from 0 to 10"):
        values.number("days", 10)(text)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-24T18:00",
        "2026-11-24 18:00",
        "2026-11-24T18:00Z",
        "2026-11-24T19:00+01:00",
        "2026-11-24 18:00:00 UTC",  # as list and why print it
        "2026-11-24T18:00:00+00:00",  # as JSON and CSV have it
    ],
)
def test_a_time_is_utc_unless_it_says_otherwise(text: str) -> None:
    assert values.moment(text) == datetime(2026, 11, 24, 18, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(("age", "seconds"), [("30m", 1800), ("12h", 43200), ("3d", 259200), ("2w", 1209600)])
def test_an_age_is_a_time_too(age: str, seconds: float) -> None:
    assert values.moment(age) == pytest.approx(time.time() - seconds, abs=5)


@pytest.mark.parametrize("text", ["yesterday", "", "-3d", "3 days", "2026-13-01", "2026-11-24T18:00+25:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a time; write 2026-11-24"):
        values.moment(text)


def test_a_correction_is_a_field_and_a_value() -> None:
    assert values.assignment("vid=a=b") == ("vid", "a=b")
    assert values.assignment(" vid = ") == ("vid", "")


@pytest.mark.parametrize("text", ["vid", "=1", ""])
def test_a_correction_without_field_or_sign_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not FIELD=VALUE"):
        values.assignment(text)
