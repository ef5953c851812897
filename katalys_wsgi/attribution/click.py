"""A click: what makes one, how long it counts, and which of two wins.

A click is a shopper's arrival through an affiliate's link. Nothing here reads a clock: the caller says what time it is.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from urllib.parse import unquote_plus

__all__ = [
    "CLOCK_SKEW", "FINGERPRINT", "LONGEST_QUERY", "MOST_PARAMETERS", "MOST_REPLACED", "RENEWAL", "Click",
    "may_hold_click", "read_link",
]  # fmt: skip

#: Characters of a query that are read; a click's own parameters take less than 1 KiB.
LONGEST_QUERY = 8192

#: A query of more parameters than this brings no click.
MOST_PARAMETERS = 100

#: Clocks of two hosts differ: a click that is dated up to this far ahead still counts.
CLOCK_SKEW = timedelta(seconds=300)

#: Without a transaction_id a second click looks like a refreshed page; after this time it counts as a new one.
RENEWAL = timedelta(minutes=30)

#: How many of the clicks that were replaced are remembered.
MOST_REPLACED = 4

#: Characters by which one of them is recognised.
FINGERPRINT = 8

# A parameter whose name is percent-encoded, at least in part: from its last "%" on there is none, nor a separator.
_encoded_name = re.compile(r"%[^%&=]*=").search
_is_id = re.compile(r"[A-Za-z0-9._~:-]{1,128}", re.ASCII).fullmatch

_SOURCE = "utm_source"
# The link says publisher_id where the postback says aff_id (specification, "Initial Requirements"); both are read.
_IDS = ("transaction_id", "offer_id", "publisher_id", "aff_id")
_NAMES = {name: name for name in (_SOURCE, *_IDS)}
# HTML mail that escapes a link twice leaves names such as amp;transaction_id; they count too.
_NAMES |= {f"amp;{name}": name for name in _NAMES}

_CONTRADICTION = "an id stands there twice, with two values"


@dataclass(frozen=True)
class Click:
    """The ids of the link that brought the shopper, and when.

    Set are either ``transaction_id``, or ``offer_id`` and ``aff_id``, or all three ("Initial Requirements" in
    Katalys' Server-to-Server Implementation). The ids are opaque, case-sensitive strings.

    :param transaction_id: Katalys' id of this very click.
    :param offer_id: Katalys' id of the program.
    :param aff_id: Katalys' id of the affiliate, ``publisher_id`` in the link.
    :param clicked_at: the time of the landing request, aware.
    :param replaced: what the last :data:`MOST_REPLACED` clicks that gave way to this one are recognised by, oldest
        first; see :meth:`after`.
    """

    transaction_id: str | None
    offer_id: str | None
    aff_id: str | None
    clicked_at: datetime
    replaced: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def from_query(cls, query: str, *, now: datetime, sources: Collection[str]) -> Click | None:
        """The click of a link; None when the link is not one of Katalys'. No query whatever raises.

        A link counts when its utm_source is in ``sources`` and there is a transaction_id, or offer_id and
        publisher_id. Any one of several utm_source counts: other tools add their own. A link without utm_source
        counts when all three ids of the specification's link are there, by these names: a payment gateway adds a
        transaction_id of its own, another network its offer_id and aff_id.

        :param query: the link's query string, as in the environ's ``QUERY_STRING``.
        :param now: the time of the request, aware.
        :param sources: accepted values of utm_source in lower case; empty accepts any link with offer and publisher.
        """
        link = read_link(query, now=now, sources=sources)
        return link if isinstance(link, Click) else None

    def is_current(self, now: datetime, window: timedelta) -> bool:
        """Whether the click counts at ``now``: not older than ``window``, and not from the future.

        :param now: aware.
        :param window: the attribution window.
        """
        return -CLOCK_SKEW <= now - self.clicked_at <= window

    def repeats(self, earlier: Click) -> bool:
        """Whether this is ``earlier`` again: a refreshed page, or a link that was opened twice."""
        if self.transaction_id or earlier.transaction_id:
            return self.transaction_id == earlier.transaction_id
        same_pair = (self.offer_id, self.aff_id) == (earlier.offer_id, earlier.aff_id)
        return same_pair and self.clicked_at - earlier.clicked_at < RENEWAL

    def replaces(self, stored: Click | None, attribution: str) -> bool:
        """Whether this new click is kept in place of the one that is stored.

        :param stored: the stored click if it still counts, else None.
        :param attribution: the setting, ``"last-click"`` or ``"first-click"``.
        """
        if stored is None:
            return True
        return attribution == "last-click" and not self.repeats(stored) and not self._was_replaced_by(stored)

    def after(self, stored: Click | None) -> Click:
        """This click as the one that replaces ``stored``: it remembers what it replaced."""
        if stored is None:
            return self
        earlier = (*stored.replaced, stored._fingerprint)
        others = [fingerprint for fingerprint in earlier if fingerprint != self._fingerprint]
        return replace(self, replaced=tuple(others[-MOST_REPLACED:]))

    def _was_replaced_by(self, stored: Click) -> bool:
        """Whether this is the page of an earlier click, still open in some tab, that was only loaded again."""
        if self._fingerprint not in stored.replaced:
            return False
        # Without a transaction_id it cannot be told from a click on the same link, so it is one after a while.
        return self.transaction_id is not None or self.clicked_at - stored.clicked_at < RENEWAL

    @property
    def _fingerprint(self) -> str:
        """:data:`FINGERPRINT` characters, the same for clicks that :meth:`repeats` may find to be the same."""
        identity = self.transaction_id or f"{self.offer_id} {self.aff_id}"  # no id holds a blank
        return base64.urlsafe_b64encode(hashlib.sha256(identity.encode()).digest())[:FINGERPRINT].decode("ascii")


def may_hold_click(query: str) -> bool:
    """Whether a query, or a whole address, needs a closer look: a cheap test, never stricter than the parser.

    Every Katalys link has ``_id=`` in its query, and few others do; or its names are percent-encoded.
    """
    return "_id=" in query or ("%" in query and _encoded_name(query) is not None)


def read_link(query: str, *, now: datetime, sources: Collection[str]) -> Click | str:
    """The click of a link as :meth:`Click.from_query` makes it, or else why it is not one, for the shop's log.

    The reason is one of few and repeats nothing of the query. It is empty when the link carries none of our ids.
    """
    if not may_hold_click(query):
        return ""
    found = _parameters(query)
    if isinstance(found, str):
        return found
    given, ids = found
    reason = _reason(given, ids, sources)
    if reason or not ids:
        return reason
    return Click(ids.get("transaction_id"), ids.get("offer_id"), ids.get("publisher_id", ids.get("aff_id")), now)


def _reason(given: set[str], ids: Mapping[str, str], sources: Collection[str]) -> str:
    """Why a link with these parameters is not one of Katalys'; empty when it is, or carries no id."""
    if not ids:
        return ""
    is_pair = "offer_id" in ids and ("publisher_id" in ids or "aff_id" in ids)
    if sources and not given:
        if not (is_pair and "transaction_id" in ids and "publisher_id" in ids):
            return "without utm_source it takes transaction_id, offer_id and publisher_id"
    elif sources and given.isdisjoint(sources):
        return "its utm_source is not among the setting sources"
    elif not is_pair and not (sources and "transaction_id" in ids):
        return "an id is missing" if sources else "without sources it takes offer_id and publisher_id"
    return "" if all(map(_is_id, ids.values())) else "an id has characters that no id of Katalys' has"


def _parameters(query: str) -> tuple[set[str], dict[str, str]] | str:
    """Every utm_source in lower case, and the ids by name; or why the link is not one of Katalys'."""
    if len(query) > LONGEST_QUERY:
        query = query[:LONGEST_QUERY].rpartition("&")[0]  # half a value would be a wrong one
    parts = query.split("&", MOST_PARAMETERS)
    if len(parts) > MOST_PARAMETERS:
        return "it has too many parameters" if any(name in query for name in _IDS) else ""
    given: set[str] = set()
    ids: dict[str, str] = {}
    for part in parts:  # not parse_qsl: most of a link is plain, and half of it is meant for others
        key, _, value = part.partition("=")
        if "%" in part or "+" in part:
            key, value = unquote_plus(key, errors="replace"), unquote_plus(value, errors="replace")
        name = _NAMES.get(key)
        if name == _SOURCE:
            given.add(value.strip().lower())
        elif name and value and ids.setdefault(name, value) != value:
            return _CONTRADICTION
    given.discard("")
    if "aff_id" in ids and ids.get("publisher_id", ids["aff_id"]) != ids["aff_id"]:
        return _CONTRADICTION
    return given, ids
