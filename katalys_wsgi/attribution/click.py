"""A click: a shopper's arrival through an affiliate's link.

What makes one, how long it counts, and which of two wins. The clock is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import unquote_plus

#: In the query of every Katalys link (``transaction_id=``, ``publisher_id=``), and in few others.
MARKER = "_id="

#: A query is looked at no further: a click's own parameters take less than 1 KiB.
LONGEST_QUERY = 8192
MOST_PARAMETERS = 100

#: Clocks of two hosts differ; a click dated up to this far ahead still counts.
CLOCK_SKEW = timedelta(seconds=300)

#: Without a transaction_id two clicks of one pair look alike; after this they are two.
RENEWAL = timedelta(minutes=30)

_is_id = re.compile(r"[A-Za-z0-9._~:-]{1,128}", re.ASCII).fullmatch

# The link says publisher_id where the postback says aff_id (specification, "Initial Requirements").
_NAMES = {
    "utm_source": "utm_source",
    "transaction_id": "transaction_id",
    "offer_id": "offer_id",
    "publisher_id": "aff_id",
    "aff_id": "aff_id",
}
_IDS = ("transaction_id", "offer_id", "aff_id")


@dataclass(frozen=True)
class Click:
    """Who sent the shopper. Either ``transaction_id``, or ``offer_id`` and ``aff_id``, or all three are set.

    The ids are opaque, case-sensitive texts. ``clicked_at`` is aware.
    """

    transaction_id: str | None
    offer_id: str | None
    aff_id: str | None
    clicked_at: datetime

    @classmethod
    def from_query(cls, query: str, *, now: datetime, sources: Collection[str]) -> Click | None:
        """The click in a link's query string, or None; a stranger's bytes never raise.

        :param now: the time of the request, aware.
        :param sources: accepted values of utm_source in lower case; empty accepts any link with offer and publisher.
        """
        if MARKER not in query:
            return None
        found = _parameters(query)
        if found is None or (sources and found.pop("utm_source", "").lower() not in sources):
            return None
        ids = transaction_id, offer_id, aff_id = [found.get(name) for name in _IDS]
        if not ((transaction_id and sources) or (offer_id and aff_id)):
            return None
        if not all(map(_is_id, filter(None, ids))):
            return None
        return cls(transaction_id, offer_id, aff_id, now)

    def is_current(self, now: datetime, window: timedelta) -> bool:
        """Whether the click still counts at ``now``: not older than ``window``, not from the future."""
        return -CLOCK_SKEW <= now - self.clicked_at <= window

    def repeats(self, earlier: Click) -> bool:
        """Whether this is ``earlier`` again: a refreshed page, a link opened twice."""
        if self.transaction_id or earlier.transaction_id:
            return self.transaction_id == earlier.transaction_id
        same_pair = (self.offer_id, self.aff_id) == (earlier.offer_id, earlier.aff_id)
        return same_pair and self.clicked_at - earlier.clicked_at < RENEWAL

    def replaces(self, stored: Click | None, attribution: str) -> bool:
        """Whether this new click is kept instead of the valid one that is stored."""
        return stored is None or (attribution == "last-click" and not self.repeats(stored))


def _parameters(query: str) -> dict[str, str] | None:
    """The parameters that matter, or None when they contradict each other or cannot be read.

    HTML mail that escapes a link twice leaves names such as ``amp;transaction_id``; they count too.
    """
    if len(query) > LONGEST_QUERY:
        query = query[:LONGEST_QUERY].rpartition("&")[0]  # half a value would be a wrong one
    fields = query.split("&", MOST_PARAMETERS)
    if len(fields) > MOST_PARAMETERS:
        return None
    found: dict[str, str] = {}
    for field in fields:  # as parse_qsl does, but most of a link is plain, and half of it is for others
        key, _, value = field.partition("=")
        if "%" in field or "+" in field:
            key, value = unquote_plus(key, errors="replace"), unquote_plus(value, errors="replace")
        name = _NAMES.get(key.removeprefix("amp;"))
        if name and value and found.setdefault(name, value) != value:
            return None
    return found
