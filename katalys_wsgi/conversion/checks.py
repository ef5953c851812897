"""What each value of an order may be: a check returns, or raises ValueError with the rest of a sentence.

The sentence begins with the field's name and never repeats the value: problems are logged and kept, and the value may
be a buyer's data. The patterns are also what the value has to look like on the wire.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

__all__ = [
    "COUNT", "CURRENCY", "LONGEST_IDENTIFIER", "MOST_DIGITS", "PLAIN_NUMBER", "Check", "Money", "aware_time", "count",
    "currency_code", "decimals", "identifier", "money", "names", "one_of", "quantity", "string",
    "string_or_number",
]  # fmt: skip

#: What money may be written as; a float only where its shortest decimal form is an exact amount.
Money = Decimal | int | str | float

#: Takes a value of whatever type; what it returns does not matter.
Check = Callable[[Any], object]

#: Characters; a longer order id or address is a mistake, and databases index them.
LONGEST_IDENTIFIER = 255

#: More digits before or after the point than any order has; keeps Decimal("1E+1000000") from a megabyte of zeros.
MOST_DIGITS = 15

#: An amount as a string: digits, or digits with a point between them.
PLAIN_NUMBER = re.compile(r"\d{1,30}(\.\d{1,30})?", re.ASCII)

#: An ISO 4217 code, as it is sent.
CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)

#: A whole number from 1 on.
COUNT = re.compile(r"[1-9]\d*", re.ASCII)

# ISO 4217, "minor units": the currencies that have not 2 decimals.
_WITHOUT_DECIMALS = frozenset(
    "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split()  # noqa: SIM905 - reads as a table
)
_WITH_3_DECIMALS = frozenset("BHD IQD JOD KWD LYD OMR TND".split())  # noqa: SIM905

_holds_surrogate = re.compile(r"[\ud800-\udfff]").search
_is_unclean = re.compile(r"[\x00-\x1f\x7f]|^\s|\s$").search
_holds_html = re.compile(r"<[a-zA-Z/!]").search


def money(value: object, currency: str | None = None) -> Decimal:
    """An amount of money, exactly as it was given.

    :param value: a Decimal, an int, a string of digits and at most one point, or a float whose shortest decimal form
        has no more decimals than the currency.
    :param currency: an ISO 4217 code; USD when it is None, empty or unknown.
    :raises ValueError: it is not a plain, finite, non-negative number, or has more than 15 digits before or after
        the point.
    """
    amount = _decimal(value)
    if isinstance(value, float) and _decimals_of(amount) > decimals(currency):
        raise ValueError("is a float with more decimals than the currency; give a Decimal")
    if amount < 0:
        raise ValueError(
            "is negative; report a refund with record_update(OrderUpdate(order_id, order_status='refunded'))"
        )
    _refuse_long(amount)
    return amount.copy_abs()  # Decimal("-0.00") is zero; abs() would round to the precision of the shop's context


def quantity(value: object) -> None:
    """How many pieces, or how much of something: a number above zero, written as money is.

    :raises ValueError: it is not.
    """
    if not money(value):
        raise ValueError("is zero; leave the item out")


def decimals(currency: str | None) -> int:
    """How many decimals a currency has (ISO 4217); 2 when it is None, empty or unknown."""
    code = (currency or "USD").upper()
    return 0 if code in _WITHOUT_DECIMALS else 3 if code in _WITH_3_DECIMALS else 2


def currency_code(value: object) -> None:
    """A currency: three letters, in either case.

    :raises ValueError: it is not.
    """
    if not isinstance(value, str) or not value.isascii() or not CURRENCY.fullmatch(value.upper()):
        raise ValueError("is not a currency; give the three letters of ISO 4217, such as USD")


def string(value: object) -> None:
    """A string that says something and that every encoding can write.

    :raises ValueError: it is missing, blank, not a str, or holds a lone surrogate.
    """
    if _is_missing(value):
        raise ValueError("is missing")
    if not isinstance(value, str):
        raise ValueError(f"is a {type(value).__name__}; give a string")  # noqa: TRY004 - an error of data, not of code
    if not value.strip():
        raise ValueError("is blank")
    if _holds_surrogate(value):
        raise ValueError("holds a lone surrogate, which no encoding can write")


def string_or_number(value: object) -> None:
    """What a further key of Katalys' schema may hold: a string as :func:`string` has it, or a finite number.

    :raises ValueError: it is neither, or has more digits than can be meant.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise ValueError(f"is a {type(value).__name__}; give a string or a number")  # noqa: TRY004 - an error of data
    if isinstance(value, str):
        string(value)
    elif isinstance(value, int):
        _digits(value)
    else:
        _refuse_long(_decimal(value))


def identifier(value: object) -> None:
    """An id: a string of at most 255 clean characters, or an int.

    :raises ValueError: it is not.
    """
    text: Any = _digits(value) if isinstance(value, int) and not isinstance(value, bool) else value
    string(text)
    if _is_unclean(text) or len(text) > LONGEST_IDENTIFIER:
        raise ValueError(f"holds control characters, white space around it, or over {LONGEST_IDENTIFIER} characters")


def aware_time(value: object) -> None:
    """A moment from 1970 on: an aware datetime.

    :raises ValueError: it is not.
    """
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError("is not a time with a time zone; give datetime.now(timezone.utc) or the like")
    if value.timestamp() < 0:
        raise ValueError("is before 1970; give the time of the order, or leave it out")


def count(value: object) -> None:
    """How many: an int from 1 on.

    :raises ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not COUNT.fullmatch(_digits(value)):
        raise ValueError("is not a whole number from 1 on")


def names(value: object) -> None:
    """A list of plain names, which Katalys takes as one string with commas between them, without HTML.

    :raises ValueError: it is not, or a name is not a string or holds a comma or HTML.
    """
    if not isinstance(value, tuple):
        raise ValueError("is not a list; give a list of names")  # noqa: TRY004 - an error of data, not of code
    for name in value:
        string(name)
        if "," in name or _holds_html(name):
            raise ValueError("holds a comma or HTML; give plain names")


def one_of(choices: Sequence[str], advice: str) -> Check:
    """A check for one of some strings, by their exact spelling.

    :param advice: what to do about any other value; the end of the error's sentence.
    """

    def check(value: object) -> None:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}; {advice}")

    return check


def _is_missing(value: object) -> bool:
    # An ORM's column, given instead of its value, answers == with an expression that is neither true nor false.
    return value is None or (isinstance(value, str) and not value)


def _digits(value: int) -> str:
    if abs(value) >= 10**LONGEST_IDENTIFIER:  # str() itself raises beyond 4300 digits
        raise ValueError(f"has over {LONGEST_IDENTIFIER} digits")
    return str(value)


def _decimal(value: object) -> Decimal:
    if _is_missing(value):
        raise ValueError("is missing")
    if isinstance(value, bool) or not isinstance(value, (Decimal, int, str, float)):
        raise ValueError(f"is a {type(value).__name__}; give a Decimal")  # noqa: TRY004 - an error of data, not of code
    if isinstance(value, str) and not PLAIN_NUMBER.fullmatch(value.removeprefix("-")):
        raise ValueError("is not a plain number; give a Decimal, or digits with a point and nothing else")
    amount = Decimal(repr(value).removesuffix(".0") if isinstance(value, float) else value)
    if not amount.is_finite():
        raise ValueError("is not finite; give a Decimal")
    return amount


def _refuse_long(amount: Decimal) -> None:
    if amount.adjusted() >= MOST_DIGITS or _decimals_of(amount) > MOST_DIGITS:
        raise ValueError("has more digits than any amount of money; round it")


def _decimals_of(amount: Decimal) -> int:
    exponent = amount.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
