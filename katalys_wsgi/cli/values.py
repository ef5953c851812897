"""Values of options: numbers, times and corrections, refused with a sentence that says what to write.

Each is a ``type`` for argparse: a function of the string that was written, which returns the value or raises
``argparse.ArgumentTypeError``; of that argparse makes a message and exit code 2.
"""

from __future__ import annotations

import re
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import datetime, timezone

__all__ = ["assignment", "moment", "number", "port", "whole"]

_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_is_age = re.compile(r"(\d{1,6})([mhdw])", re.ASCII).fullmatch


def whole(least: int, most: int) -> Callable[[str], int]:
    """Make the type of a whole number from ``least`` to ``most``, both included; only ASCII digits are read."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or not least <= int(text) <= most:
            raise ArgumentTypeError(f"{text!r} makes no sense here; give a whole number from {least} to {most}")
        return int(text)

    return convert


#: The type of a TCP port; 0 takes a free one.
port: Callable[[str], int] = whole(0, 65535)


def number(what: str, most: int) -> Callable[[str], float]:
    """Make the type of an amount of time from 0 to ``most``.

    :param what: the unit's name, as the message says it.
    """

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= most:  # also refuses NaN
            raise ArgumentTypeError(f"{text!r} makes no sense here; give {what} as a number from 0 to {most}")
        return value

    return convert


def moment(text: str) -> float:
    """The type of a point in time: a date, a date with time (UTC unless it says otherwise), or an age such as ``3d``.

    The units of an age are minutes, hours, days and weeks: ``m``, ``h``, ``d``, ``w``.

    :returns: seconds since 1970.
    :raises ArgumentTypeError: it is none of these.
    """
    age = _is_age(text)
    if age:
        return time.time() - int(age[1]) * _SECONDS[age[2]]
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00").removesuffix(" UTC"))
        return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is not a time; write 2026-11-24, 2026-11-24T18:00 (UTC), or an age such as 3d, 12h or 30m"
        ) from None


def assignment(text: str) -> tuple[str, str]:
    """The type of a correction, ``FIELD=VALUE``.

    :returns: the field and the value, without white space around them; an empty value removes the field.
    :raises ArgumentTypeError: there is no ``=``, or nothing before it.
    """
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ArgumentTypeError(f"{text!r} is not FIELD=VALUE, such as email_address=ann@example.com")
    return name.strip(), value.strip()
