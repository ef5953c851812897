"""The circuit breaker: after failures the endpoint is left alone, and one row at a time finds out when it is back."""

from __future__ import annotations

import pytest

from katalys_wsgi.delivery.breaker import FAILURES_BEFORE_PROBING, CircuitBreaker
from katalys_wsgi.outbox import Receipt, Verdict
from katalys_wsgi.outbox.entry import LONGEST_DELAY

from .support import Clock

DELIVERED = Receipt(Verdict.DELIVERED, 204)
UNAVAILABLE = Receipt(Verdict.RETRY, 503, "HTTP 503")
REFUSED = Receipt(Verdict.REFUSED, 400, "HTTP 400")
FORBIDDEN = Receipt(Verdict.MISCONFIGURED, 403, "HTTP 403")
UNREADABLE = Receipt(Verdict.REFUSED, None, "the payload cannot be read")

CAPACITY = 128


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    """Every pause lasts as long as it may."""
    return CircuitBreaker(clock, lambda: 1.0)


def note(breaker: CircuitBreaker, *receipts: Receipt) -> list[bool]:
    """Whether each of them opened or closed the breaker."""
    return [breaker.note(receipt) for receipt in receipts]


def test_at_first_it_is_closed(breaker: CircuitBreaker) -> None:
    assert (breaker.is_closed, breaker.is_open, breaker.limit(CAPACITY)) == (True, False, CAPACITY)


def test_five_failures_in_a_row_open_it(breaker: CircuitBreaker) -> None:
    assert note(breaker, *[UNAVAILABLE] * FAILURES_BEFORE_PROBING) == [False] * 4 + [True]
    assert (breaker.is_closed, breaker.is_open, breaker.limit(CAPACITY)) == (False, True, 0)


@pytest.mark.parametrize("between", [DELIVERED, REFUSED], ids=["delivered", "refused"])
def test_an_answer_in_between_starts_the_count_anew(breaker: CircuitBreaker, between: Receipt) -> None:
    """Katalys that refuses a row is there, and reads."""
    assert note(breaker, *([UNAVAILABLE] * 4 + [between]) * 3) == [False] * 15
    assert breaker.is_closed


def test_a_row_that_was_not_sent_says_nothing(breaker: CircuitBreaker) -> None:
    note(breaker, *[UNAVAILABLE] * 4, UNREADABLE, UNAVAILABLE)

    assert breaker.is_open


def test_a_wrong_configuration_opens_it_at_once(breaker: CircuitBreaker) -> None:
    assert note(breaker, FORBIDDEN) == [True]
    assert breaker.is_open


def test_after_a_pause_one_row_at_a_time_is_a_probe(breaker: CircuitBreaker, clock: Clock) -> None:
    note(breaker, FORBIDDEN)
    clock.advance(5)

    assert (breaker.is_closed, breaker.is_open, breaker.limit(CAPACITY)) == (False, False, 1)


def test_each_failed_probe_makes_the_pause_longer_up_to_an_hour(breaker: CircuitBreaker, clock: Clock) -> None:
    pauses: list[float] = []
    note(breaker, *[UNAVAILABLE] * 4)
    for _ in range(12):
        note(breaker, UNAVAILABLE)
        began = clock()
        while breaker.is_open:
            clock.advance(1)
        pauses.append(clock() - began)

    assert pauses == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]


@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_a_pause_is_at_least_half_as_long_as_it_may_be(clock: Clock, chance: float) -> None:
    """Relays of many hosts spread out, and none hammers."""
    breaker = CircuitBreaker(clock, lambda: chance)
    note(breaker, FORBIDDEN)
    clock.advance(2.4)

    assert breaker.is_open
    clock.advance(2.6)
    assert not breaker.is_open


def test_a_success_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    note(breaker, FORBIDDEN)
    clock.advance(5)

    assert note(breaker, DELIVERED) == [True]
    assert breaker.limit(CAPACITY) == CAPACITY
    assert note(breaker, *[UNAVAILABLE] * 4) == [False] * 4


def test_rows_under_way_when_a_pause_began_do_not_lengthen_it(breaker: CircuitBreaker, clock: Clock) -> None:
    assert note(breaker, *[FORBIDDEN] * 8) == [True] + [False] * 7
    clock.advance(5)

    assert not breaker.is_open


def test_a_longer_retry_after_is_honoured(breaker: CircuitBreaker, clock: Clock) -> None:
    note(breaker, *[UNAVAILABLE] * 4, Receipt(Verdict.RETRY, 503, "HTTP 503", retry_after=120))
    clock.advance(119)

    assert breaker.is_open
    clock.advance(1)
    assert not breaker.is_open


def test_the_longest_retry_after_is_still_a_pause(breaker: CircuitBreaker) -> None:
    note(breaker, *[UNAVAILABLE] * 4, Receipt(Verdict.RETRY, 503, "HTTP 503", retry_after=LONGEST_DELAY))

    assert breaker.is_open


def test_a_pause_that_a_clock_jump_made_endless_ends(breaker: CircuitBreaker, clock: Clock) -> None:
    note(breaker, FORBIDDEN)
    clock.advance(-24 * 3600)

    assert not breaker.is_open
    assert breaker.limit(CAPACITY) == 1
