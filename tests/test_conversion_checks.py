"""The checks of values: money to the last digit, and what a string, an id, a time or a count may be."""

from __future__ import annotations

import decimal
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from katalys_wsgi.conversion.checks import (
    LONGEST_IDENTIFIER,
    Check,
    aware_time,
    count,
    currency_code,
    decimals,
    identifier,
    money,
    names,
    one_of,
    quantity,
    string,
)

from .support import Column

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)

# --- money ---


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        pytest.param(Decimal("59.90"), "59.90", id="decimal"),
        pytest.param(Decimal("59.999"), "59.999", id="more-decimals-than-the-currency"),
        pytest.param(59, "59", id="int"),
        pytest.param("59.90", "59.90", id="string"),
        pytest.param("0059.90", "59.90", id="leading-zeros"),
        pytest.param(59.9, "59.9", id="float"),
        pytest.param(59.99, "59.99", id="float-of-two-decimals"),
        pytest.param(59.0, "59", id="whole-float"),
        pytest.param(0.0, "0", id="zero-float"),
        pytest.param(-0.0, "0", id="negative-zero-float"),
        pytest.param(Decimal("-0.00"), "0.00", id="negative-zero"),
        pytest.param(Decimal("1E+3"), "1000", id="exponent"),
        pytest.param(Decimal("5E-2"), "0.05", id="negative-exponent"),
        pytest.param(Decimal("0E+5"), "0", id="zero-with-an-exponent"),
        pytest.param(10**14, "1" + "0" * 14, id="fifteen-digits"),
        pytest.param(Decimal("999999999999999.999999999999999"), "999999999999999.999999999999999", id="most-digits"),
    ],
)
def test_an_amount_is_exact(value: Any, amount: str) -> None:
    """Read with no rounding at all, and written plainly, never with an exponent."""
    assert format(money(value), "f") == amount


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param(None, "is missing", id="none"),
        pytest.param("", "is missing", id="empty"),
        pytest.param(True, "is a bool", id="bool"),
        pytest.param([], "is a list", id="list"),
        pytest.param(1j, "is a complex", id="complex"),
        pytest.param(Column(), "is a Column", id="orm-column"),
        pytest.param("1,234.50", "is not a plain number", id="thousands"),
        pytest.param("59,90", "is not a plain number", id="comma"),
        pytest.param("$59.90", "is not a plain number", id="currency-sign"),
        pytest.param(" 59.90", "is not a plain number", id="space"),
        pytest.param("59.90\n", "is not a plain number", id="line-feed"),
        pytest.param("+59.90", "is not a plain number", id="plus"),
        pytest.param(".90", "is not a plain number", id="no-digit-before"),
        pytest.param("59.", "is not a plain number", id="no-digit-after"),
        pytest.param("1e3", "is not a plain number", id="exponent-in-string"),
        pytest.param("1_000", "is not a plain number", id="underscore"),
        pytest.param("٥٩", "is not a plain number", id="arabic-digits"),
        pytest.param("NaN", "is not a plain number", id="nan-in-string"),
        pytest.param("9" * 31, "is not a plain number", id="31-digits-in-string"),
        pytest.param(Decimal("NaN"), "is not finite", id="nan"),
        pytest.param(Decimal("sNaN"), "is not finite", id="signalling-nan"),
        pytest.param(Decimal("Infinity"), "is not finite", id="infinity"),
        pytest.param(float("nan"), "is not finite", id="float-nan"),
        pytest.param(float("-inf"), "is not finite", id="float-infinity"),
        pytest.param(Decimal("-0.01"), "is negative", id="negative"),
        pytest.param("-59.90", "is negative", id="negative-string"),
        pytest.param(-1, "is negative", id="negative-int"),
        pytest.param(-59.9, "is negative", id="negative-float"),
        pytest.param(10**15, "has more digits", id="sixteen-digits"),
        pytest.param(Decimal("1E+1000000"), "has more digits", id="a-megabyte-of-zeros"),
        pytest.param(Decimal("0E+1000000"), "has more digits", id="a-megabyte-of-zeros-of-zero"),
        pytest.param(Decimal("1E-1000000"), "has more digits", id="a-megabyte-of-decimals"),
        pytest.param(Decimal("0.0000000000000001"), "has more digits", id="sixteen-decimals"),
        pytest.param(1e300, "has more digits", id="huge-float"),
        pytest.param(1e-300, "is a float with more decimals", id="tiny-float"),
        pytest.param(0.1 + 0.2, "is a float with more decimals", id="float-sum"),
        pytest.param(59.999, "is a float with more decimals", id="float-of-three-decimals"),
    ],
)
def test_anything_else_is_refused_with_a_reason(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        money(value)


@pytest.mark.parametrize(
    ("currency", "places"),
    [(None, 2), ("", 2), ("???", 2), ("USD", 2), ("eur", 2), ("JPY", 0), ("jpy", 0), ("KWD", 3), ("TND", 3)],
)
def test_the_decimals_of_a_currency_are_those_of_iso_4217(currency: str | None, places: int) -> None:
    assert decimals(currency) == places


@pytest.mark.parametrize("trap", [decimal.Inexact, decimal.Rounded, decimal.FloatOperation], ids=lambda t: t.__name__)
def test_the_shops_own_decimal_context_changes_nothing(trap: type[decimal.DecimalException]) -> None:
    """A shop may have set six digits of precision, or have its arithmetic raise."""
    with decimal.localcontext() as context:
        context.prec = 6
        context.traps[trap] = True

        assert format(money(Decimal("12345678.90")), "f") == "12345678.90"
        assert format(money("12345678.90"), "f") == "12345678.90"
        assert format(money(59.9), "f") == "59.9"


# --- every other kind ---

shipped_or_not = one_of(("shipped", "not shipped"), "say which")


@pytest.mark.parametrize(
    ("check", "value"),
    [
        pytest.param(quantity, 1, id="piece"),
        pytest.param(quantity, Decimal("0.5"), id="half-a-pound"),
        pytest.param(currency_code, "EUR", id="currency"),
        pytest.param(currency_code, "eur", id="currency-in-lower-case"),
        pytest.param(string, "Größe 注文", id="string"),
        pytest.param(string, " x\n", id="string-with-white-space"),
        pytest.param(identifier, "#1001/A", id="id"),
        pytest.param(identifier, 1001, id="whole-number-as-id"),
        pytest.param(identifier, "x" * LONGEST_IDENTIFIER, id="longest-id"),
        pytest.param(aware_time, NOW, id="time"),
        pytest.param(aware_time, NOW.astimezone(timezone(timedelta(hours=9))), id="time-elsewhere"),
        pytest.param(count, 1, id="first-order"),
        pytest.param(count, 10**9, id="many-orders"),
        pytest.param(names, (), id="no-names"),
        pytest.param(names, ("Tea", "a < b", "c>d"), id="names"),
        pytest.param(shipped_or_not, "shipped", id="one-of"),
    ],
)
def test_a_good_value_passes(check: Check, value: object) -> None:
    check(value)


@pytest.mark.parametrize(
    ("check", "value", "words"),
    [
        pytest.param(quantity, 0, "is zero", id="no-piece"),
        pytest.param(quantity, -1, "is negative", id="negative-quantity"),
        pytest.param(currency_code, "EURO", "is not a currency", id="four-letters"),
        pytest.param(currency_code, "EUR\n", "is not a currency", id="line-feed"),
        pytest.param(currency_code, "\u0131sk", "is not a currency", id="a-letter-whose-capital-is-ascii"),
        pytest.param(currency_code, 978, "is not a currency", id="number-of-a-currency"),
        pytest.param(string, "", "is missing", id="empty"),
        pytest.param(string, None, "is missing", id="none"),
        pytest.param(string, " ", "is blank", id="blank"),
        pytest.param(string, 5, "is a int; give a string", id="number"),
        pytest.param(string, Column(), "is a Column", id="orm-column"),
        pytest.param(string, "x\ud800", "holds a lone surrogate", id="lone-surrogate"),
        pytest.param(identifier, True, "is a bool", id="bool-as-id"),
        pytest.param(identifier, "x" * (LONGEST_IDENTIFIER + 1), "over 255 characters", id="long-id"),
        pytest.param(identifier, "10\n01", "control characters", id="line-feed-in-id"),
        pytest.param(identifier, " 1001", "white space around it", id="space-before-id"),
        pytest.param(identifier, 10**5000, "has over 255 digits", id="id-of-5000-digits"),
        pytest.param(aware_time, NOW.replace(tzinfo=None), "is not a time with a time zone", id="naive-time"),
        pytest.param(aware_time, date(2026, 3, 1), "is not a time with a time zone", id="date"),
        pytest.param(aware_time, datetime.min.replace(tzinfo=timezone.utc), "is before 1970", id="year-1"),
        pytest.param(count, 0, "is not a whole number from 1 on", id="zero"),
        pytest.param(count, -1, "is not a whole number from 1 on", id="negative-count"),
        pytest.param(count, 10**5000, "has over 255 digits", id="count-of-5000-digits"),
        pytest.param(count, True, "is not a whole number from 1 on", id="bool-as-count"),
        pytest.param(count, "2", "is not a whole number from 1 on", id="count-as-string"),
        pytest.param(names, "Tea", "is not a list", id="name-instead-of-names"),
        pytest.param(names, ("Tea", ""), "is missing", id="empty-name"),
        pytest.param(names, ("Tea, green",), "holds a comma or HTML", id="comma"),
        pytest.param(names, ("<b>Tea</b>",), "holds a comma or HTML", id="html"),
        pytest.param(shipped_or_not, "Shipped", "is not one of shipped, not shipped; say which", id="another-case"),
        pytest.param(shipped_or_not, None, "is not one of", id="none-of-them"),
        pytest.param(shipped_or_not, Column(), "is not one of", id="orm-column-instead-of-one"),
    ],
)
def test_a_wrong_value_is_refused_with_a_reason(check: Check, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(value)


@pytest.mark.parametrize("check", [money, currency_code, string, identifier, aware_time, count, names, shipped_or_not])
def test_no_reason_repeats_the_value(check: Check) -> None:
    """Reasons are logged and kept; the value may be a buyer's data."""
    with pytest.raises(ValueError, match=r"is |holds ") as caught:
        check("ann@example.com\x00\ud800, <b>")

    assert "ann" not in str(caught.value)
