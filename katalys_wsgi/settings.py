"""Every setting, checked once at start-up.

One table, one spelling, three clothes: ``site_id=`` in Python, ``KATALYS_SITE_ID`` in the environment and in
Flask's configuration, ``katalys.site_id`` in an ini file. A fault is told in the reader's own spelling.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from .errors import ConfigurationError

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


@dataclass(frozen=True)
class Spelling:
    """How one kind of reader writes the name of a setting."""

    prefix: str
    suffix: str = ""
    upper: bool = False
    textual: bool = False  # values are texts: a list is separated by white space, a function cannot be given

    def of(self, name: str) -> str:
        """``name`` as this reader writes it."""
        return self.prefix + (name.upper() if self.upper else name) + self.suffix

    def select(self, values: Mapping[str, object]) -> dict[str, object]:
        """The entries of ``values`` that carry the prefix, under their plain names."""
        start = len(self.prefix)
        return {
            key[start:].lower() if self.upper else key[start:]: value
            for key, value in values.items()
            if key.startswith(self.prefix)
        }


PYTHON = Spelling("", "=")
ENVIRONMENT = Spelling("KATALYS_", upper=True, textual=True)
FLASK = Spelling("KATALYS_", upper=True)
INI = Spelling("katalys.", textual=True)


# --- what each value may be: a converter returns the value or raises ValueError with the rest of the sentence ---


def _site_id(value: object) -> str:
    if not value:
        raise ValueError("is missing; set it to the Tracking ID of Katalys' Integrations page, such as KA-1A2B3C4")
    if not isinstance(value, str) or not re.fullmatch(r"KA-[A-Za-z0-9]{3,40}|([a-z0-9-]+\.)+[a-z]{2,}", value):
        raise ValueError(f"is {value!r}, which is no Tracking ID: copy it from Katalys' Integrations page (KA-1A2B3C4)")
    return value


def _secret_keys(value: object) -> tuple[str, ...]:
    """Text or list of texts, oldest first; the last one signs."""
    keys = [value] if isinstance(value, (str, bytes)) else list(value) if isinstance(value, Iterable) else [value]
    if not any(keys):
        raise ValueError(f"is missing; {NEW_KEY}")
    return tuple(_secret_key(key) for key in keys)


def _secret_key(key: object) -> str:
    if isinstance(key, bytes):
        key = key.decode("latin-1")
    if not isinstance(key, str):
        raise ValueError(f"holds {type(key).__name__} where a text belongs; {NEW_KEY}")  # noqa: TRY004 - one kind of fault
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"has a key of {len(key)} characters, at least {SHORTEST_KEY} are needed; {NEW_KEY}")
    if len(set(key)) < FEWEST_DIFFERENT_CHARACTERS:
        raise ValueError(f"has a key of few different characters, easily guessed; {NEW_KEY}")
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    if any(word in plain for word in PLACEHOLDERS):
        raise ValueError(f"looks like a placeholder that anybody can read in a manual; {NEW_KEY}")
    if re.search(r"[\ud800-\udfff]", key):  # how Python reads bytes of the environment that are not UTF-8
        raise ValueError(f"holds half a character, which no encoding can write; {NEW_KEY}")
    return key


def _choice(*names: str) -> Callable[[object], str]:
    def convert(value: object) -> str:
        if value not in names:
            raise ValueError(f"is {value!r}; choose {' or '.join(names)}")
        return str(value)

    return convert


def _endpoint(value: object) -> str:
    text = str(value)
    if "@" in text:
        # The address is not repeated: it may hold a password.
        raise ValueError(f"holds an @, so it is no plain address; leave it out to use {ENDPOINT}")
    host = _host(text)
    if host is None:
        raise ValueError(f"is {text!r}, which is no plain address; leave it out to use {ENDPOINT}")
    if not text.lower().startswith("https:") and not _is_loopback(host):
        raise ValueError(f"is {text!r}: conversions carry personal data, so only https:// is allowed off this machine")
    return text


def _host(address: str) -> str | None:
    """The host of a http address without query; None if it is none, or its port is none."""
    if not re.fullmatch(r"https?://[!-~]+", address, re.IGNORECASE | re.ASCII) or re.search("[?#]", address):
        return None
    try:
        url = urlsplit(address)
        return url.hostname if url.port != 0 else None
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _duration(least: float, most: timedelta | None = None) -> Callable[[object], timedelta]:
    def convert(value: object) -> timedelta:
        duration = value if isinstance(value, timedelta) else timedelta(seconds=_number(value))
        if duration.total_seconds() < least:
            raise ValueError(f"is {duration}; at least {least:g} seconds make sense")
        if most is not None and duration > most:
            raise ValueError(f"is {duration}; at most {most.days} days are possible (browsers forget cookies then)")
        return duration

    return convert


def _number(value: object) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type] # what float refuses is caught
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) < 1e11:  # also refuses NaN; more seconds than a timedelta holds
        raise ValueError(f"is {value!r}; give seconds as a number, or a timedelta in Python")
    return number


def _whole(least: int, most: int) -> Callable[[object], int]:
    def convert(value: object) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)) or not least <= int(str(value)) <= most:
            raise ValueError(f"is {value!r}; give a whole number from {least} to {most}")
        return int(str(value))

    return convert


_BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _boolean(value: object) -> bool:
    if str(value).lower() not in _BOOLEANS:
        raise ValueError(f"is {value!r}; write true or false")
    return _BOOLEANS[str(value).lower()]


def _secure(value: object) -> bool | str:
    if value == "auto":
        return "auto"
    try:
        return _boolean(value)
    except ValueError:
        raise ValueError(f"is {value!r}; write auto, true or false") from None


def _sources(value: object) -> tuple[str, ...]:
    names = re.split(r"[\s,]+", value) if isinstance(value, str) else value
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"is {value!r}; list the accepted utm_source values, such as katalys revoffers")
    return tuple(name.lower() for name in names if name)


_COOKIE_WORDS = (
    "comment", "domain", "expires", "httponly", "max-age", "partitioned", "path", "samesite", "secure", "version",
)  # fmt: skip


def _cookie_name(value: object) -> str:
    # RFC 6265 §4.1.1: a cookie's name is a token of RFC 9110. RFC 2109 kept $ at its start, and some words, for itself.
    if not isinstance(value, str) or not re.fullmatch(r"(?!\$)[A-Za-z0-9_.!#$%&'*+^`|~-]{1,64}", value):
        raise ValueError(f"is {value!r}; use letters, digits, '_' and '-' only")
    if value.lower() in _COOKIE_WORDS:
        raise ValueError(f"is {value!r}, which is a word of the Cookie header itself; choose another")
    return value


def _cookie_domain(value: object) -> str | None:
    if value in (None, ""):
        return None
    if not isinstance(value, str) or not re.fullmatch(r"([A-Za-z0-9-]{1,63}\.)+[A-Za-z0-9-]{2,63}", value):
        raise ValueError(f"is {value!r}; write the plain domain, such as example.com, or leave it out")
    return value.lower()


def _consent(value: object) -> Callable[[dict[str, Any]], bool] | None:
    if value is not None and not callable(value):
        raise ValueError("can only be given in Python: a function that takes the environ and returns True or False")
    return value


#: Of :class:`~katalys_wsgi.outbox.Outbox`; a room below this one.
_OUTBOX_METHODS = ("add", "history", "claim", "apply", "close")


def _outbox(value: object) -> object:
    if value is None or value == "":
        raise ValueError("is empty; leave it out for a SQLite file, or give a URL or an Outbox")
    if not isinstance(value, str):
        if isinstance(value, type) or not all(callable(getattr(value, name, None)) for name in _OUTBOX_METHODS):
            raise ValueError(f"is a {type(value).__name__}; give a URL as text, or an Outbox object")
        return value
    if not re.match(r"[a-z0-9+]+://", value) or value in ("sqlite://", "sqlite:///", "sqlite:///:memory:"):
        # The address is not repeated: it may hold the database's password.
        raise ValueError("is no durable address; write sqlite:///katalys-outbox.db or a SQLAlchemy URL")
    return value


def _setting(convert: Callable[[object], Any], *, default: Any, repr: bool = True) -> Any:  # noqa: A002 - dataclasses' word
    return field(default=default, repr=repr, metadata={"convert": convert})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one :class:`~katalys_wsgi.Tracker`; durations are ``timedelta`` or seconds.

    :raises ConfigurationError: a value is missing or makes no sense; every fault is listed at once.
    """

    site_id: str = _setting(_site_id, default="")
    secret_key: tuple[str, ...] = _setting(_secret_keys, default=(), repr=False)
    conversion_type: str = _setting(_choice("force_convert", "offline_conv"), default="force_convert")
    endpoint: str = _setting(_endpoint, default=ENDPOINT)
    wire: str = _setting(_choice("json", "form", "get"), default="json")
    attribution: str = _setting(_choice("last-click", "first-click"), default="last-click")
    attribution_window: timedelta = _setting(_duration(60, LONGEST_WINDOW), default=timedelta(days=30))
    sources: tuple[str, ...] = _setting(_sources, default=("katalys", "revoffers"))
    cookie_name: str = _setting(_cookie_name, default="katalys_click")
    cookie_domain: str | None = _setting(_cookie_domain, default=None)
    cookie_secure: bool | str = _setting(_secure, default="auto")
    consent: Callable[[dict[str, Any]], bool] | None = _setting(_consent, default=None)
    trusted_proxies: int = _setting(_whole(0, 16), default=0)
    outbox: Any = _setting(_outbox, default="sqlite:///katalys-outbox.db", repr=False)  # a URL may hold a password
    delivery: str = _setting(_choice("thread", "external"), default="thread")
    delivery_workers: int = _setting(_whole(1, 64), default=4)
    connect_timeout: timedelta = _setting(_duration(0.05), default=timedelta(seconds=3))
    read_timeout: timedelta = _setting(_duration(0.05), default=timedelta(seconds=10))
    deadline: timedelta = _setting(_duration(0.1), default=timedelta(seconds=20))
    give_up_after: timedelta = _setting(_duration(0), default=timedelta(days=7))
    retention: timedelta = _setting(_duration(0), default=timedelta(days=90))
    hash_email: bool = _setting(_boolean, default=False)
    strict: bool = _setting(_boolean, default=False)

    def __post_init__(self) -> None:
        given = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        for name, value in _converted(given, PYTHON).items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], spelling: Spelling = PYTHON) -> Settings:
        """Settings from ``values`` under their plain names; faults are told in ``spelling``.

        :raises ConfigurationError: also for an unknown name, with the nearest known one.
        """
        return cls(**_converted(values, spelling))


def _converted(given: Mapping[str, object], spelling: Spelling) -> dict[str, Any]:
    table = {setting.name: setting for setting in fields(Settings)}
    problems = [_unknown(name, table, spelling) for name in given if name not in table]
    converted = {}
    for name, setting in table.items():
        value = given.get(name, setting.default)
        if spelling.textual and name == "secret_key" and isinstance(value, str):
            value = value.split()
        try:
            converted[name] = _convert(setting, value)
        except ValueError as fault:
            problems.append(f"{spelling.of(name)} {fault}.")
    problems = problems or _contradictions(converted, spelling)
    if problems:
        raise ConfigurationError(problems)
    return converted


def _convert(setting: Field[Any], value: object) -> Any:
    return setting.metadata["convert"](value)


def _unknown(name: str, known: Iterable[str], spelling: Spelling) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = f"did you mean {spelling.of(nearest[0])}?" if nearest else "see the table of settings in the README."
    return f"{spelling.of(name)} is no setting; {advice}"


def _contradictions(values: Mapping[str, Any], spelling: Spelling) -> list[str]:
    """Name what is wrong between two values that are each right."""
    problems = []
    # RFC 6265bis §4.1.3: browsers drop a cookie whose prefix promises what its attributes do not keep.
    prefix = values["cookie_name"].lower()
    if prefix.startswith(("__host-", "__secure-")) and values["cookie_secure"] is not True:
        problems.append(f"{spelling.of('cookie_name')} has a prefix that needs {spelling.of('cookie_secure')} true.")
    if prefix.startswith("__host-") and values["cookie_domain"]:
        problems.append(
            f"{spelling.of('cookie_name')} starts with __Host-, so leave {spelling.of('cookie_domain')} out."
        )
    return problems
