"""The rules of retrying, as pure functions: what an answer means, and how long to wait after a failure."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from ..outbox.entry import LONGEST_DELAY, Verdict

__all__ = ["BACK_OFF_BASE", "BACK_OFF_CAP", "back_off", "judge", "retry_after"]

#: Seconds of the longest wait after the first failure; it doubles with each further one, up to the cap.
BACK_OFF_BASE = 5.0

#: Seconds of the longest wait after any failure.
BACK_OFF_CAP = 3600.0


def judge(status: int) -> Verdict:
    """What an HTTP status means for the row that was sent.

    Only a 204 is Katalys' promise that a message was received and parsed (the server-to-server specification).
    401, 403, 404, 405 and 410 speak of the address or the site, 408, 425 and 429 of the moment (RFC 9110 §15.5,
    RFC 8470, RFC 6585); the other 4xx would refuse the same bytes again.
    """
    if status == 204:
        return Verdict.DELIVERED
    if status in (401, 403, 404, 405, 410):
        return Verdict.MISCONFIGURED
    if 400 <= status < 500 and status not in (408, 425, 429):
        return Verdict.REFUSED
    return Verdict.RETRY


def back_off(attempts: int, chance: float) -> float:
    """Seconds to wait after ``attempts`` failed attempts: exponential, with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ compares the kinds of jitter.

    :param attempts: from 1 on.
    :param chance: a random number below 1.
    """
    return chance * min(BACK_OFF_CAP, BACK_OFF_BASE * 2.0 ** min(attempts - 1, 30))


def retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date (RFC 9110 §10.2.3).

    :param now: aware; a date in the header is compared with it.
    :returns: from 0 to :data:`~katalys_wsgi.outbox.entry.LONGEST_DELAY`; None without a readable header.
    """
    if not header:
        return None
    try:
        if re.fullmatch(r"\s*\d{1,9}\s*", header, re.ASCII):
            seconds = float(header)
        else:
            date = parsedate_to_datetime(header)
            seconds = ((date if date.tzinfo else date.replace(tzinfo=timezone.utc)) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), LONGEST_DELAY)
