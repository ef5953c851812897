"""The rules of retrying: what an answer means, and how long to wait."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from katalys_wsgi.delivery.policy import back_off, judge, retry_after
from katalys_wsgi.outbox import Verdict
from katalys_wsgi.outbox.entry import LONGEST_DELAY

HOUR = 3600.0

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=timezone.utc)

#: The table of the documentation, spelled out once more.
DELIVERED_BY = {204}
PAUSED_BY = {401, 403, 404, 405, 410}
RETRIED_AFTER = {408, 425, 429, *range(100, 204), *range(205, 400), *range(500, 600)}


def expected(status: int) -> Verdict:
    if status in DELIVERED_BY:
        return Verdict.DELIVERED
    if status in PAUSED_BY:
        return Verdict.MISCONFIGURED
    return Verdict.RETRY if status in RETRIED_AFTER else Verdict.REFUSED


class TestJudge:
    def test_every_status_has_its_verdict(self) -> None:
        """Only a 204 is Katalys' promise that it received and parsed a message."""
        assert {status: judge(status) for status in range(100, 600)} == {
            status: expected(status) for status in range(100, 600)
        }

    @pytest.mark.parametrize("status", [-1, 0, 99, 600, 999])
    def test_a_number_that_is_not_a_status_is_tried_again(self, status: int) -> None:
        assert judge(status) is Verdict.RETRY


class TestBackOff:
    def test_the_longest_wait_doubles_up_to_an_hour(self) -> None:
        assert [round(back_off(attempts, 1.0)) for attempts in range(1, 13)] == [
            5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600,
        ]  # fmt: skip

    @pytest.mark.parametrize("attempts", [1, 2, 5, 11, 50, 10**9])
    def test_the_jitter_is_full(self, attempts: int) -> None:
        """Every wait from nothing to the longest is as likely; rows that failed together spread out."""
        longest = back_off(attempts, 1.0)

        assert back_off(attempts, 0.0) == 0
        assert back_off(attempts, 0.25) == longest / 4
        assert longest <= HOUR


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            pytest.param("120", 120, id="seconds"),
            pytest.param(" 120 ", 120, id="white space"),
            pytest.param("0", 0, id="at once"),
            pytest.param("21600", 6 * HOUR, id="six hours"),
            pytest.param("21601", 6 * HOUR, id="capped"),
            pytest.param("999999999", 6 * HOUR, id="30 years"),
            pytest.param("Sun, 22 Nov 2026 12:02:00 GMT", 120, id="date"),
            pytest.param("Sunday, 22-Nov-26 12:02:00 GMT", 120, id="date of RFC 850"),
            pytest.param("Sun Nov 22 12:02:00 2026", 120, id="date of asctime"),
            pytest.param("Sun, 22 Nov 2026 14:02:00 +0200", 120, id="another zone"),
            pytest.param("Sun, 22 Nov 2026 12:02:00 -0000", 120, id="unknown zone"),
            pytest.param("Sun, 22 Nov 2026 11:00:00 GMT", 0, id="past"),
            pytest.param("Sun, 29 Nov 2026 12:00:00 GMT", 6 * HOUR, id="date, capped"),
        ],
    )
    def test_seconds_and_dates_are_understood(self, header: str | None, seconds: float | None) -> None:
        assert retry_after(header, NOW) == seconds

    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "soon",
            "-5",
            "1e3",
            "1.5",
            "٣",
            "inf",
            "Sun, 99 Nov 2026 12:00:00 GMT",
            "1 Jan 99999 0:0 GMT",
            "\0",
        ],
    )
    def test_what_is_neither_is_ignored(self, header: str | None) -> None:
        assert retry_after(header, NOW) is None

    def test_the_longest_is_what_a_row_may_be_postponed_by(self) -> None:
        """A later row would be taken for one that a clock jump has put too far into the future."""
        assert retry_after("999999999", NOW) == LONGEST_DELAY
