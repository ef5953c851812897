"""Checks: what each setting may be. A check returns the value as it is kept, or raises ValueError.

The error's text is the rest of a sentence that begins with the setting's name in the reader's spelling, and ends in
what to write instead. It never repeats what may be a secret. Values come from Python, where they have types, and from
the environment or an ini file, where all are strings; a check takes both.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from .outbox import Outbox

__all__ = [
    "ENDPOINT", "LONGEST_WINDOW", "Check", "Consent", "boolean", "boolean_or_auto", "choice", "consent",
    "cookie_domain", "cookie_name", "duration", "endpoint", "is_on_this_machine", "is_usual_site_id", "outbox",
    "secret_keys", "site_id", "sources", "whole",
]  # fmt: skip

#: The address of the specification; see "HTTP Request Details" in Katalys' Server-to-Server Implementation.
ENDPOINT = "https://db.revoffers.com/v2/_tr_offline"

#: RFC 6265bis §5.5: browsers cap a cookie at 400 days without telling anyone, so we refuse instead.
LONGEST_WINDOW = timedelta(days=400)

SHORTEST_KEY = 32
FEWEST_DIFFERENT_CHARACTERS = 10
PLACEHOLDERS = (
    "abcdefgh", "changeme", "changethis", "donotuse", "insecure", "placeholder", "password",
    "replaceme", "replacethis", "secretkey", "supersecret", "yoursecret", "01234567", "12345678",
)  # fmt: skip

NEW_KEY = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(48))'"

#: Returns the value as it is kept, or raises ValueError.
Check = Callable[[object], Any]

#: A function that takes the WSGI environ and says whether the visitor consented.
Consent = Callable[[dict[str, Any]], bool]


def site_id(value: object) -> str:
    """A Tracking ID: at most 64 letters, digits, ``.``, ``_`` and ``-``; see :func:`is_usual_site_id`.

    It is part of every message and every key, so a value that was copied with a blank or a line feed is refused.

    :returns: the value as it is.
    """
    if not value:
        raise ValueError("is missing; set it to the Tracking ID of Katalys' Integrations page, such as KA-1A2B3C4")
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
        raise ValueError(
            f"is {value!r}, which is not a Tracking ID: copy it from Katalys' Integrations page (KA-1A2B3C4)"
        )
    return value


def is_usual_site_id(value: str) -> bool:
    """Whether a Tracking ID is ``KA-…``, or a domain as in older accounts.

    The specification says only "frequently KA-", so another one may be right; a typing error is more likely.
    """
    return re.fullmatch(r"KA-[A-Za-z0-9]{3,40}|([a-z0-9-]+\.)+[a-z]{2,}", value) is not None


def secret_keys(value: object) -> tuple[str, ...]:
    """A string or a list of strings, oldest first; the last one signs, all of them are read.

    itsdangerous signs with any key, also with an empty one. So each key must have at least :data:`SHORTEST_KEY`
    characters, :data:`FEWEST_DIFFERENT_CHARACTERS` different ones, and none of the words of manuals in it.

    :returns: the keys in the order given; a key in bytes becomes a string of the same bytes.
    """
    keys = [value] if isinstance(value, (str, bytes)) else list(value) if isinstance(value, Iterable) else [value]
    if not any(keys):
        raise ValueError(f"is missing; {NEW_KEY}")
    return tuple(_secret_key(key) for key in keys)


def _secret_key(key: object) -> str:
    """One key, checked; see :func:`secret_keys`. The message never repeats it."""
    if isinstance(key, bytes):
        key = key.decode("latin-1")
    if not isinstance(key, str):
        # A ValueError like every other: the caller collects them all.
        raise ValueError(f"holds {type(key).__name__} where a string belongs; {NEW_KEY}")  # noqa: TRY004
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"has a key of {len(key)} characters, at least {SHORTEST_KEY} are needed; {NEW_KEY}")
    if len(set(key)) < FEWEST_DIFFERENT_CHARACTERS:
        raise ValueError(f"has a key of few different characters, easily guessed; {NEW_KEY}")
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    if any(word in plain for word in PLACEHOLDERS):
        raise ValueError(f"looks like a placeholder that anybody can read in a manual; {NEW_KEY}")
    if re.search(r"[\ud800-\udfff]", key):  # how Python reads bytes of the environment that are not UTF-8
        raise ValueError(f"holds a lone surrogate, which no encoding can write; {NEW_KEY}")
    return key


def choice(*names: str) -> Check:
    """Make the check that a value is one of ``names``, in this very spelling; it returns a string."""

    def check(value: object) -> str:
        if value not in names:
            raise ValueError(f"is {value!r}; choose {' or '.join(names)}")
        return str(value)

    return check


def endpoint(value: object) -> str:
    """An https address without query and user; http only on this machine.

    Conversions carry e-mail and IP addresses, which must not cross a network in the clear. A user in the address would
    end up in logs, and a query would be mixed with the fields of ``wire="get"``.

    :returns: the address as it is, as a string.
    """
    text = str(value)
    if "@" in text:
        # The address is not repeated: it may hold a password.
        raise ValueError(f"holds an @, so it is not a plain address; leave it out to use {ENDPOINT}")
    host = _host(text)
    if host is None:
        raise ValueError(f"is {text!r}, which is not a plain address; leave it out to use {ENDPOINT}")
    if not text.lower().startswith("https:") and not _is_loopback(host):
        raise ValueError(f"is {text!r}: conversions carry personal data, so only https:// is allowed off this machine")
    return text


def _host(address: str) -> str | None:
    """The host of an http address without query; None if the address or its port cannot be read."""
    if not re.fullmatch(r"https?://[!-~]+", address, re.IGNORECASE | re.ASCII) or re.search("[?#]", address):
        return None
    try:
        url = urlsplit(address)
        return url.hostname if url.port != 0 else None
    except ValueError:
        return None


def is_on_this_machine(address: str) -> bool:
    """Whether a valid endpoint is a loopback address: ``localhost``, 127.0.0.0/8 or ::1. No name is resolved."""
    return _is_loopback(_host(address) or "")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def duration(least: float, most: timedelta | None = None) -> Check:
    """Make the check of a time: a ``timedelta``, or seconds as a number or string; it returns a ``timedelta``.

    :param least: the shortest that makes sense, in seconds.
    :param most: the longest that browsers keep a cookie for; None for no limit.
    """

    def check(value: object) -> timedelta:
        duration = value if isinstance(value, timedelta) else timedelta(seconds=_number(value))
        if duration.total_seconds() < least:
            raise ValueError(f"is {duration}; at least {least:g} seconds make sense")
        if most is not None and duration > most:
            raise ValueError(f"is {duration}; at most {most.days} days are possible (browsers forget cookies then)")
        return duration

    return check


def _number(value: object) -> float:
    """Seconds as a number; a boolean, NaN, or more than a ``timedelta`` holds is refused."""
    try:
        number = math.nan if isinstance(value, bool) else float(cast(Any, value))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) < 1e11:  # also refuses NaN; more seconds than a timedelta holds
        raise ValueError(f"is {value!r}; give seconds as a number, or a timedelta in Python")
    return number


def whole(least: int, most: int) -> Check:
    """Make the check of a whole number from ``least`` to ``most``, both included; a boolean is not a number."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)) or not least <= int(str(value)) <= most:
            raise ValueError(f"is {value!r}; give a whole number from {least} to {most}")
        return int(str(value))

    return check


_BOOLEANS = {
    "true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


def boolean(value: object) -> bool:
    """True or False, or a word for them: true, yes, on, 1, false, no, off, 0, in any case."""
    if str(value).lower() not in _BOOLEANS:
        raise ValueError(f"is {value!r}; write true or false")
    return _BOOLEANS[str(value).lower()]


def boolean_or_auto(value: object) -> bool | Literal["auto"]:
    """A boolean as :func:`boolean` reads it, or ``"auto"``, which leaves the decision to the place of use."""
    if value == "auto":
        return "auto"
    try:
        return boolean(value)
    except ValueError:
        raise ValueError(f"is {value!r}; write auto, true or false") from None


def sources(value: object) -> tuple[str, ...]:
    """Names separated by white space or commas, or a list of them; kept in lower case, as they are compared.

    An empty list is possible: then ``utm_source`` is not asked for.
    """
    names = re.split(r"[\s,]+", value) if isinstance(value, str) else value
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"is {value!r}; list the accepted utm_source values, such as katalys revoffers")
    return tuple(name.lower() for name in names if name)


_COOKIE_WORDS = (
    "comment", "domain", "expires", "httponly", "max-age", "partitioned", "path", "samesite", "secure", "version",
)  # fmt: skip


def cookie_name(value: object) -> str:
    """A cookie's name that every parser reads, at most 64 characters.

    Neither ``$`` at its start nor a word of the Cookie and Set-Cookie headers, such as ``path``: parsers of RFC 2109,
    that of Python among them, take those for attributes.
    """
    # RFC 6265 §4.1.1: a cookie's name is a token of RFC 9110. RFC 2109 kept $ at its start, and some words, for itself.
    if not isinstance(value, str) or not re.fullmatch(r"(?!\$)[A-Za-z0-9_.!#$%&'*+^`|~-]{1,64}", value):
        raise ValueError(f"is {value!r}; use letters, digits, '_' and '-' only")
    if value.lower() in _COOKIE_WORDS:
        raise ValueError(f"is {value!r}, which is a word of the Cookie header itself; choose another")
    return value


def cookie_domain(value: object) -> str | None:
    """A plain domain, kept in lower case; None or an empty string for the host that sets the cookie.

    No port and no leading dot: RFC 6265 §5.2.3 ignores the dot, and a browser would drop a cookie with a port.
    """
    if value in (None, ""):
        return None
    if not isinstance(value, str) or not re.fullmatch(r"([A-Za-z0-9-]{1,63}\.)+[A-Za-z0-9-]{2,63}", value):
        raise ValueError(f"is {value!r}; write the plain domain, such as example.com, or leave it out")
    return value.lower()


def consent(value: object) -> Consent | None:
    """A function of the environ, or None where every visitor counts as one who consented.

    :returns: the function itself; it is first called with a request.
    """
    if value is not None and not callable(value):
        raise ValueError("can only be given in Python: a function that takes the environ and returns True or False")
    return value


def outbox(value: object) -> str | Path | Outbox:
    """A path: a SQLite file of ours. A SQLAlchemy URL: the shop's database. Or an ``Outbox`` object.

    A ``Path`` is always a path. A string is a URL if it has a ``://``; one that looks like a URL with a slash too few
    is refused, since a file of that name would be made, and so is an address in memory, which would lose sales.

    :returns: a string or a ``Path`` as it was given, or the very object.
    """
    if isinstance(value, os.PathLike):
        return _path(Path(os.fsdecode(value)))
    if value is None or isinstance(value, str):
        return _address(value or "")
    if isinstance(value, type):
        # A ValueError like every other: the caller collects them all.
        raise ValueError(f"is the class {value.__name__}; give an object, {value.__name__}(...)")  # noqa: TRY004
    missing = [f"{name}()" for name in vars(Outbox) if name[0] != "_" and not callable(getattr(value, name, None))]
    if missing:
        raise ValueError(
            f"is of type {type(value).__name__}, which lacks {', '.join(missing)}; "
            "give a path, a SQLAlchemy URL, or an object with the methods of katalys_wsgi.outbox.Outbox"
        )
    return cast(Outbox, value)


def _address(text: str) -> str:
    """A path or a URL as a string; refused without repeating it, since it may hold the database's password."""
    if not text.strip():
        raise ValueError("is empty; leave it out for a SQLite file, or give a path, a SQLAlchemy URL or an Outbox")
    if text == ":memory:" or re.match(r"sqlite(\+\w+)?://(/?$|/?\?|.*:memory:|.*[?&]mode=memory)", text):
        raise ValueError("is an address in memory; give a path such as katalys-outbox.db, or MemoryOutbox() in tests")
    if "://" in text:
        if text.endswith("/"):
            raise ValueError("is a URL that names no database; write scheme://host/database")
        return text
    if re.match(r"[A-Za-z][A-Za-z0-9+.]+:", text):
        raise ValueError("is neither a path nor a URL; write katalys-outbox.db or scheme://host/database")
    _path(Path() if text.endswith("/") else Path(text))  # a Path forgets a slash at its end
    return text


def _path(path: Path) -> Path:
    """A path that ends in a file's name; whether its directory can be used is checked by the outbox."""
    if path.name in ("", ".."):  # what . and / have for a name, too
        raise ValueError("names a directory; add the file's name, such as katalys-outbox.db")
    return path
