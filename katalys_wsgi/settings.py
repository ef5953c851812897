"""Settings: one table, one spelling, checked once at start-up.

A setting is written ``site_id=`` in Python, ``KATALYS_SITE_ID`` in the environment and in Flask's configuration, and
``katalys.site_id`` in an ini file. A problem is reported in the reader's own spelling.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from . import checks
from .checks import ENDPOINT, Consent
from .errors import ConfigurationError
from .outbox import Outbox

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "ENVIRONMENT", "FLASK", "INI", "PYTHON", "Attribution", "ConversionType", "Delivery", "Layer", "Options",
    "Settings", "Spelling", "WireName",
]  # fmt: skip

#: ``force_convert``: affiliates' sales only; ``offline_conv``: every order (specification, "Initial Requirements").
ConversionType = Literal["force_convert", "offline_conv"]
#: The specification's three ways to call: POST with JSON, POST with a form, GET.
WireName = Literal["json", "form", "get"]
#: Which of two valid clicks is paid.
Attribution = Literal["last-click", "first-click"]
#: A daemon thread of each process, or a process of its own.
Delivery = Literal["thread", "external"]


@dataclass(frozen=True)
class Spelling:
    """How one kind of reader writes the name of a setting.

    :param prefix: what stands before the name, also in the list that :meth:`select` reads.
    :param suffix: what stands behind it in a message.
    :param upper: the name is written in capitals.
    :param textual: values are strings: a list is separated by white space, a function cannot be given.
    """

    prefix: str
    suffix: str = ""
    upper: bool = False
    textual: bool = False

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


#: ``site_id=``.
PYTHON = Spelling("", "=")
#: ``KATALYS_SITE_ID``.
ENVIRONMENT = Spelling("KATALYS_", upper=True, textual=True)
#: ``KATALYS_SITE_ID``, where values may be of any type.
FLASK = Spelling("KATALYS_", upper=True)
#: ``katalys.site_id``.
INI = Spelling("katalys.", textual=True)


#: Values of one place under their plain names, and how its readers write those.
Layer = tuple[Mapping[str, object], Spelling]


class Options(TypedDict, total=False):
    """The settings as callers write them, for type checkers: ``Tracker(**options)``, ``Katalys(app, **options)``.

    The README's table says what each is for. Durations are ``timedelta`` or seconds; a list may also be a string,
    separated by white space. Same names and same order as :class:`Settings`, which has the defaults.
    """

    site_id: str
    secret_key: str | Sequence[str]
    conversion_type: ConversionType
    endpoint: str
    live: bool | Literal["auto"]
    wire: WireName
    attribution: Attribution
    attribution_window: timedelta | float
    sources: str | Iterable[str]
    count_fetches: bool
    cookie_name: str
    cookie_domain: str | None
    cookie_secure: bool | Literal["auto"]
    consent: Consent | None
    trusted_proxies: int
    outbox: str | os.PathLike[str] | Outbox
    delivery: Delivery
    delivery_workers: int
    connect_timeout: timedelta | float
    read_timeout: timedelta | float
    deadline: timedelta | float
    give_up_after: timedelta | float
    retention: timedelta | float
    hash_email: bool
    strict: bool


def _setting(check: checks.Check, *, default: Any, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"check": check})


def _choice(names: Any) -> checks.Check:
    """The check that a value is one of a ``Literal``'s, so that a type checker and start-up accept the same."""
    return checks.choice(*get_args(names))


@dataclass(frozen=True, init=False)
class Settings:
    """The settings of one :class:`~katalys_wsgi.Tracker`, checked and converted; frozen, and equal if all values are.

    Its repr holds neither keys nor the outbox's address, since it ends up in error reports.

    :param options: as in :class:`Options`; the attributes hold what they were converted to: durations are
        ``timedelta``, ``secret_key`` and ``sources`` are tuples.
    :raises ConfigurationError: a value is missing, unknown or makes no sense; every problem is listed at once.
    """

    site_id: str = _setting(checks.site_id, default="")
    secret_key: tuple[str, ...] = _setting(checks.secret_keys, default=(), secret=True)
    conversion_type: ConversionType = _setting(_choice(ConversionType), default="force_convert")
    endpoint: str = _setting(checks.endpoint, default=ENDPOINT)
    live: bool | Literal["auto"] = _setting(checks.boolean_or_auto, default="auto")
    wire: WireName = _setting(_choice(WireName), default="json")
    attribution: Attribution = _setting(_choice(Attribution), default="last-click")
    # Katalys' programs pay for sales within 30 days of the click unless agreed otherwise.
    attribution_window: timedelta = _setting(checks.duration(60, checks.LONGEST_WINDOW), default=timedelta(days=30))
    sources: tuple[str, ...] = _setting(checks.sources, default=("katalys", "revoffers"))
    count_fetches: bool = _setting(checks.boolean, default=False)
    cookie_name: str = _setting(checks.cookie_name, default="katalys_click")
    cookie_domain: str | None = _setting(checks.cookie_domain, default=None)
    cookie_secure: bool | Literal["auto"] = _setting(checks.boolean_or_auto, default="auto")
    consent: Consent | None = _setting(checks.consent, default=None)
    trusted_proxies: int = _setting(checks.whole(0, 16), default=0)
    outbox: str | Path | Outbox = _setting(
        checks.outbox, default="katalys-outbox.db", secret=True
    )  # may hold a password
    delivery: Delivery = _setting(_choice(Delivery), default="thread")
    delivery_workers: int = _setting(checks.whole(1, 64), default=4)
    connect_timeout: timedelta = _setting(checks.duration(0.05), default=timedelta(seconds=3))
    read_timeout: timedelta = _setting(checks.duration(0.05), default=timedelta(seconds=10))
    deadline: timedelta = _setting(checks.duration(0.1), default=timedelta(seconds=20))
    give_up_after: timedelta = _setting(checks.duration(0), default=timedelta(days=7))
    retention: timedelta = _setting(checks.duration(0), default=timedelta(days=90))
    hash_email: bool = _setting(checks.boolean, default=False)
    strict: bool = _setting(checks.boolean, default=False)

    def __init__(self, **options: Unpack[Options]) -> None:
        self._keep({name: (value, PYTHON) for name, value in options.items()}, PYTHON)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], spelling: Spelling = PYTHON) -> Settings:
        """Settings from ``values`` under their plain names; problems are reported in ``spelling``.

        :param values: what is left out has its default.
        :param spelling: of the reader; where it is textual, several secret keys are separated by white space.
        :raises ConfigurationError: also for an unknown name, with the nearest known one.
        """
        return cls.from_layers((values, spelling))

    @classmethod
    def from_layers(cls, *layers: Layer, missing: Spelling | None = None) -> Settings:
        """Settings from several places, of which the first that gives a setting wins.

        A problem is reported in the spelling of the place that gave the value.

        :param layers: pairs of values under their plain names and the spelling of their place.
        :param missing: the spelling of what is given nowhere, the first layer's unless given.
        :raises ConfigurationError: also for an unknown name; in the environment, which others use too, only if there
            is a near one.
        """
        settings = cls.__new__(cls)
        given = {name: (value, spelling) for values, spelling in reversed(layers) for name, value in values.items()}
        settings._keep(given, missing or layers[0][1])
        return settings

    def _keep(self, given: Mapping[str, tuple[object, Spelling]], missing: Spelling) -> None:
        for name, value in _converted(given, missing).items():
            object.__setattr__(self, name, value)


def _converted(given: Mapping[str, tuple[object, Spelling]], missing: Spelling) -> dict[str, Any]:
    table = {setting.name: setting for setting in fields(Settings)}
    problems = [_unknown(name, table, spelling) for name, (_, spelling) in given.items() if name not in table]
    problems = [problem for problem in problems if problem]
    converted = {}
    for name, setting in table.items():
        value, spelling = given.get(name, (setting.default, missing))
        if spelling.textual and name == "secret_key" and isinstance(value, str):
            value = value.split()
        try:
            converted[name] = setting.metadata["check"](value)
        except ValueError as error:
            problems.append(f"{spelling.of(name)} {error}.")
    problems = problems or _contradictions(converted, given["cookie_name"][1] if "cookie_name" in given else missing)
    if problems:
        raise ConfigurationError(problems)
    return converted


def _unknown(name: str, known: Iterable[str], spelling: Spelling) -> str:
    """The problem of an unknown name; empty where it is none of ours."""
    is_shared = spelling is ENVIRONMENT
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.7 if is_shared else 0.5)
    if is_shared and not nearest:
        return ""
    advice = f"did you mean {spelling.of(nearest[0])}?" if nearest else "see the table of settings in the README."
    return f"{spelling.of(name)} is an unknown setting; {advice}"


def _contradictions(values: Mapping[str, Any], spelling: Spelling) -> list[str]:
    """What is wrong between two values that are each right."""
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
