"""Checks: what each setting may be, how it is kept, and what the answer to anything else says."""

from __future__ import annotations

import base64
import dataclasses
import random
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import ConfigurationError, Settings
from katalys_wsgi.checks import ENDPOINT, is_usual_site_id
from katalys_wsgi.settings import ENVIRONMENT, INI, Spelling

from .support import OLD_SECRET, SECRET, SITE_ID, make_settings, problems_of


class ShopOutbox:
    """An outbox of the shop's own, as a check sees it: the methods are there."""

    add = history = claim = apply = prune = close = lambda *_args, **_kwargs: None


def consent(_environ: dict[str, Any]) -> bool:
    return True  # pragma: no cover - never asked here


def ids_of(cases: list[tuple[str, Any, Any]]) -> list[str]:
    """``name=value`` of each case, the same in every run."""
    values = (f"{name}={getattr(given, '__name__', given)!s:.40}" for name, given, _ in cases)
    return [value.encode("unicode_escape").decode() for value in values]


#: name, what is given, what is kept
GOOD = [
    ("site_id", "KA-XXXXXXX", "KA-XXXXXXX"),
    ("site_id", "shop.example.com", "shop.example.com"),
    ("site_id", "1234567", "1234567"),
    ("site_id", "Ka_1.2-" + "x" * 57, "Ka_1.2-" + "x" * 57),
    ("secret_key", OLD_SECRET, (OLD_SECRET,)),
    ("secret_key", [OLD_SECRET, SECRET], (OLD_SECRET, SECRET)),
    ("secret_key", (OLD_SECRET, SECRET), (OLD_SECRET, SECRET)),
    ("secret_key", OLD_SECRET.encode(), (OLD_SECRET,)),
    ("secret_key", "größer als nichts, länger als 32!", ("größer als nichts, länger als 32!",)),
    ("conversion_type", "force_convert", "force_convert"),
    ("conversion_type", "offline_conv", "offline_conv"),
    ("endpoint", ENDPOINT, ENDPOINT),
    ("endpoint", "https://collector.example.com:8443/in", "https://collector.example.com:8443/in"),
    ("endpoint", "http://127.0.0.1:8080/v2/_tr_offline", "http://127.0.0.1:8080/v2/_tr_offline"),
    ("endpoint", "http://[::1]:8080/", "http://[::1]:8080/"),
    ("endpoint", "http://localhost/", "http://localhost/"),
    ("wire", "json", "json"),
    ("wire", "form", "form"),
    ("wire", "get", "get"),
    ("attribution", "last-click", "last-click"),
    ("attribution", "first-click", "first-click"),
    ("attribution_window", timedelta(days=400), timedelta(days=400)),
    ("attribution_window", 60, timedelta(minutes=1)),
    ("attribution_window", "86400", timedelta(days=1)),
    ("sources", "Katalys", ("katalys",)),
    ("sources", "katalys revoffers", ("katalys", "revoffers")),
    ("sources", " katalys,\n RevOffers ,", ("katalys", "revoffers")),
    ("sources", ["Katalys", "own"], ("katalys", "own")),
    ("sources", (), ()),
    ("sources", "", ()),
    ("cookie_name", "shop-click_2", "shop-click_2"),
    ("cookie_domain", None, None),
    ("cookie_domain", "", None),
    ("cookie_domain", "Shop.Example.com", "shop.example.com"),
    ("count_fetches", "on", True),
    ("count_fetches", False, False),
    ("cookie_secure", "auto", "auto"),
    ("cookie_secure", True, True),
    ("cookie_secure", "off", False),
    ("consent", None, None),
    ("consent", consent, consent),
    ("trusted_proxies", 0, 0),
    ("trusted_proxies", "2", 2),
    ("trusted_proxies", 16, 16),
    ("outbox", "outbox.db", "outbox.db"),
    ("outbox", "/var/lib/shop/outbox.db", "/var/lib/shop/outbox.db"),
    ("outbox", "C:/shop/outbox.db", "C:/shop/outbox.db"),
    ("outbox", Path("/var/lib/shop/outbox.db"), Path("/var/lib/shop/outbox.db")),
    ("outbox", Path("shop:1.db"), Path("shop:1.db")),
    ("outbox", "sqlite:///outbox.db", "sqlite:///outbox.db"),
    ("outbox", "sqlite:////var/lib/shop/outbox.db", "sqlite:////var/lib/shop/outbox.db"),
    ("outbox", "postgresql:///shop?host=/run/pg", "postgresql:///shop?host=/run/pg"),
    ("outbox", "postgresql+psycopg://u:p@db/shop", "postgresql+psycopg://u:p@db/shop"),
    ("delivery", "thread", "thread"),
    ("delivery", "external", "external"),
    ("delivery_workers", 1, 1),
    ("delivery_workers", "64", 64),
    ("connect_timeout", 0.05, timedelta(milliseconds=50)),
    ("read_timeout", "2.5", timedelta(seconds=2.5)),
    ("deadline", Decimal("0.5"), timedelta(seconds=0.5)),
    ("give_up_after", 0, timedelta(0)),
    ("retention", timedelta(days=1000), timedelta(days=1000)),
    *(("hash_email", given, True) for given in (True, 1, "1", "true", "True", "YES", "on")),
    *(("strict", given, False) for given in (False, 0, "0", "false", "False", "no", "OFF")),
]


@pytest.mark.parametrize(("name", "given", "kept"), GOOD, ids=ids_of(GOOD))
def test_a_good_value_is_kept_in_its_one_form(name: str, given: Any, kept: Any) -> None:
    settings = make_settings(**{name: given})

    assert getattr(settings, name) == kept
    assert type(getattr(settings, name)) is type(kept)


@pytest.mark.parametrize(("name", "given", "kept"), GOOD, ids=ids_of(GOOD))
def test_settings_made_of_settings_are_the_same(name: str, given: Any, kept: Any) -> None:
    settings = make_settings(**{name: given})

    assert Settings(**vars(settings)) == settings
    assert Settings.from_mapping(vars(settings)) == settings
    assert dataclasses.replace(settings) == settings


def test_an_outbox_object_is_kept_as_it_is() -> None:
    outbox: Any = ShopOutbox()

    assert make_settings(outbox=outbox).outbox is outbox


@pytest.mark.parametrize("lacking", ["add", "history", "claim", "apply", "prune", "close"])
def test_an_outbox_object_needs_each_method(lacking: str) -> None:
    """What it lacks is said at start-up, and not by the first sale."""
    outbox: Any = ShopOutbox()
    setattr(outbox, lacking, None)

    with pytest.raises(ConfigurationError, match=rf"is of type ShopOutbox, which lacks {lacking}\(\); give a path, "):
        make_settings(outbox=outbox)


#: name, what is given, words of the answer
BAD = [
    ("site_id", "", "is missing; set it to the Tracking ID"),
    ("site_id", None, "is missing"),
    ("site_id", "x" * 65, "which is not a Tracking ID"),
    ("site_id", "KA/1A2B3C4", "which is not a Tracking ID"),
    ("site_id", "KA-1A2B3C4 ", "which is not a Tracking ID"),
    ("site_id", "KA-1A2B3C4\n", "which is not a Tracking ID"),
    ("site_id", "KA-\uff11\uff12\uff13\uff14", "which is not a Tracking ID"),
    ("site_id", "https://shop.example.com", "which is not a Tracking ID"),
    ("site_id", ["KA-1A2B3C4"], "which is not a Tracking ID"),
    ("secret_key", "", "is missing; make one with"),
    ("secret_key", None, "is missing; make one with"),
    ("secret_key", [], "is missing; make one with"),
    ("secret_key", ["", ""], "is missing; make one with"),
    ("secret_key", SECRET[:31], "has a key of 31 characters, at least 32 are needed"),
    ("secret_key", [SECRET, ""], "has a key of 0 characters"),
    ("secret_key", ["short", SECRET], "has a key of 5 characters"),
    ("secret_key", "abcabcabi" * 8, "few different characters"),
    ("secret_key", 12345, "holds int where a string belongs"),
    ("secret_key", [SECRET, None], "holds NoneType where a string belongs"),
    ("secret_key", "change-me, change-me, CHANGE-ME! 129", "placeholder"),
    ("secret_key", "Your_Secret_Key_goes_here_28374650", "placeholder"),
    ("secret_key", "django-insecure-9z8y7x6w5v4u3t2s1r0q", "placeholder"),
    ("secret_key", "0123456789abcdef0123456789abcdef", "placeholder"),
    ("secret_key", SECRET + "\udcff", "no encoding"),
    ("conversion_type", "online", "choose force_convert or offline_conv"),
    ("conversion_type", "", "choose force_convert or offline_conv"),
    ("conversion_type", ["force_convert"], "choose force_convert or offline_conv"),
    ("endpoint", "http://db.revoffers.com/v2/_tr_offline", "only https:// is allowed off this machine"),
    ("endpoint", "http://localhost.example.com/", "only https:// is allowed off this machine"),
    ("endpoint", "http://10.0.0.1/", "only https:// is allowed off this machine"),
    ("endpoint", "ftp://db.revoffers.com/", "which is not a plain address"),
    ("endpoint", "db.revoffers.com", "which is not a plain address"),
    ("endpoint", "https://", "which is not a plain address"),
    ("endpoint", "https://db.revoffers.com/?a=b", "which is not a plain address"),
    ("endpoint", "https://db.revoffers.com/#a", "which is not a plain address"),
    ("endpoint", "https://db.revoffers.com:port/", "which is not a plain address"),
    ("endpoint", "https://db.revoffers.com:99999/", "which is not a plain address"),
    ("endpoint", "https://db.revoffers.com/v2/_tr offline", "which is not a plain address"),
    ("endpoint", "https://db.revoffers.com/\n", "which is not a plain address"),
    ("endpoint", "https://[db.revoffers.com", "which is not a plain address"),
    ("endpoint", None, "which is not a plain address"),
    ("wire", "xml", "choose json or form or get"),
    ("wire", "JSON", "choose json or form or get"),
    ("attribution", "linear", "choose last-click or first-click"),
    ("attribution_window", 59, "at least 60 seconds make sense"),
    ("attribution_window", timedelta(days=-1), "at least 60 seconds make sense"),
    ("attribution_window", timedelta(days=401), "at most 400 days are possible"),
    ("attribution_window", "30 days", "give seconds as a number"),
    ("attribution_window", None, "give seconds as a number"),
    ("attribution_window", True, "give seconds as a number"),
    ("attribution_window", float("nan"), "give seconds as a number"),
    ("attribution_window", float("inf"), "give seconds as a number"),
    ("attribution_window", 10**400, "give seconds as a number"),
    ("sources", None, "list the accepted utm_source values"),
    ("sources", 5, "list the accepted utm_source values"),
    ("sources", ["katalys", None], "list the accepted utm_source values"),
    ("sources", b"katalys", "list the accepted utm_source values"),
    ("cookie_name", "", "use letters, digits"),
    ("cookie_name", "katalys click", "use letters, digits"),
    ("cookie_name", "katalys=click", "use letters, digits"),
    ("cookie_name", "katalys;click", "use letters, digits"),
    ("cookie_name", "klick\n", "use letters, digits"),
    ("cookie_name", "Größe", "use letters, digits"),
    ("cookie_name", "$Version", "use letters, digits"),
    ("cookie_name", "Path", "is a word of the Cookie header itself"),
    ("cookie_name", "expires", "is a word of the Cookie header itself"),
    ("cookie_name", None, "use letters, digits"),
    ("cookie_domain", "localhost", "write the plain domain"),
    ("cookie_domain", ".example.com", "write the plain domain"),
    ("cookie_domain", "https://example.com", "write the plain domain"),
    ("cookie_domain", "example.com:8080", "write the plain domain"),
    ("cookie_domain", "example.com; Secure", "write the plain domain"),
    ("cookie_domain", "example.com\n", "write the plain domain"),
    ("cookie_domain", 5, "write the plain domain"),
    ("count_fetches", "sometimes", "write true or false"),
    ("cookie_secure", "sometimes", "write auto, true or false"),
    ("cookie_secure", None, "write auto, true or false"),
    ("consent", "yes", "can only be given in Python"),
    ("consent", True, "can only be given in Python"),
    ("trusted_proxies", -1, "give a whole number from 0 to 16"),
    ("trusted_proxies", 17, "give a whole number from 0 to 16"),
    ("trusted_proxies", 1.5, "give a whole number from 0 to 16"),
    ("trusted_proxies", True, "give a whole number from 0 to 16"),
    ("trusted_proxies", "one", "give a whole number from 0 to 16"),
    ("trusted_proxies", None, "give a whole number from 0 to 16"),
    ("outbox", "", "is empty; leave it out for a SQLite file, or give a path"),
    ("outbox", " \n", "is empty"),
    ("outbox", None, "is empty"),
    ("outbox", ":memory:", "is an address in memory; give a path such as katalys-outbox.db, or MemoryOutbox()"),
    ("outbox", "sqlite://", "is an address in memory"),
    ("outbox", "sqlite:///", "is an address in memory"),
    ("outbox", "sqlite:///:memory:", "is an address in memory"),
    ("outbox", "sqlite+pysqlite:///:memory:", "is an address in memory"),
    ("outbox", "sqlite://?cache=shared", "is an address in memory"),
    ("outbox", "sqlite:///file::memory:?cache=shared&uri=true", "is an address in memory"),
    ("outbox", "sqlite:///file:shop?mode=memory&uri=true", "is an address in memory"),
    ("outbox", "postgresql:/db/shop", "is neither a path nor a URL; write katalys-outbox.db or scheme://host/database"),
    ("outbox", "sqlite:outbox.db", "is neither a path nor a URL"),
    ("outbox", "file:outbox.db", "is neither a path nor a URL"),
    ("outbox", "postgresql://db/", "is a URL that names no database; write scheme://host/database"),
    ("outbox", "sqlite:////var/lib/shop/", "is a URL that names no database"),
    ("outbox", "/var/lib/shop/", "names a directory; add the file's name, such as katalys-outbox.db"),
    ("outbox", "/", "names a directory"),
    ("outbox", ".", "names a directory"),
    ("outbox", "..", "names a directory"),
    ("outbox", "shop/..", "names a directory"),
    ("outbox", Path(), "names a directory"),
    ("outbox", Path("shop/.."), "names a directory"),
    ("outbox", 5, "is of type int, which lacks add(), history(), claim(), apply(), prune(), close(); give a path"),
    ("outbox", b"outbox.db", "is of type bytes, which lacks add()"),
    ("outbox", [], "an object with the methods of katalys_wsgi.outbox.Outbox"),
    ("outbox", ShopOutbox, "is the class ShopOutbox; give an object, ShopOutbox(...)"),
    ("delivery", "celery", "choose thread or external"),
    ("delivery", "none", "choose thread or external"),
    ("delivery_workers", 0, "give a whole number from 1 to 64"),
    ("delivery_workers", 65, "give a whole number from 1 to 64"),
    ("connect_timeout", 0, "at least 0.05 seconds make sense"),
    ("read_timeout", -1, "at least 0.05 seconds make sense"),
    ("deadline", 0.01, "at least 0.1 seconds make sense"),
    ("deadline", "", "give seconds as a number"),
    ("give_up_after", -1, "at least 0 seconds make sense"),
    ("retention", "ninety days", "give seconds as a number"),
    ("hash_email", "maybe", "write true or false"),
    ("hash_email", None, "write true or false"),
    ("strict", 2, "write true or false"),
    ("strict", "", "write true or false"),
]
BAD_IDS = ids_of(BAD)


@pytest.mark.parametrize(("name", "given", "words"), BAD, ids=BAD_IDS)
def test_nonsense_is_refused_at_start_up(name: str, given: Any, words: str) -> None:
    """One problem, that begins with the setting's name and says what to write instead."""
    (problem,) = problems_of({"site_id": SITE_ID, "secret_key": SECRET, name: given})

    assert problem.startswith(f"{name}= ")
    assert words in problem


@pytest.mark.parametrize(
    ("given", "name", "words"), [(case[1], case[0], case[2]) for case in BAD if isinstance(case[1], str)],
    ids=[case_id for case_id, case in zip(BAD_IDS, BAD, strict=True) if isinstance(case[1], str)],
)  # fmt: skip
@pytest.mark.parametrize("spelling", [ENVIRONMENT, INI], ids=["environment", "ini"])
def test_nonsense_in_a_string_is_refused_too(spelling: Spelling, given: str, name: str, words: str) -> None:
    problems = problems_of({"site_id": SITE_ID, "secret_key": SECRET, name: given}, spelling)

    assert all(problem.startswith(f"{spelling.of(name)} ") for problem in problems)
    assert problems


@pytest.mark.parametrize("name", ["connect_timeout", "read_timeout", "deadline", "give_up_after", "retention"])
def test_a_time_that_no_clock_can_wait_for_is_refused(name: str) -> None:
    assert problems_of({"site_id": SITE_ID, "secret_key": SECRET, name: 1e12})


def test_the_command_that_is_advised_makes_good_keys() -> None:
    """``secrets.token_urlsafe(48)``: whatever it prints is accepted."""
    chance = random.Random(1)  # noqa: S311 - the same keys in every run
    keys = [base64.urlsafe_b64encode(chance.randbytes(48)).rstrip(b"=").decode() for _ in range(500)]

    assert make_settings(secret_key=keys).secret_key == tuple(keys)


def test_every_problem_ends_in_a_full_sentence() -> None:
    bad = {name: given for name, given, _ in BAD}

    problems = problems_of(bad)

    assert len(problems) == len(bad)
    assert all(problem.endswith((".", "?")) for problem in problems)


@pytest.mark.parametrize(
    ("name", "given", "secret"),
    [
        pytest.param("secret_key", "s3cret-too-short", "s3cret", id="short-key"),
        pytest.param("secret_key", "placeholder-with-s3cret-in-it-123456", "s3cret", id="placeholder"),
        pytest.param("secret_key", SECRET + "\udcff", SECRET, id="garbled-key"),
        pytest.param("secret_key", ["s3cret-too-short", SECRET], "s3cret", id="list"),
        pytest.param("outbox", "postgresql:/shop:s3cret@db/shop", "s3cret", id="outbox"),
        pytest.param("endpoint", "https://user:s3cret@db.revoffers.com/", "s3cret", id="endpoint"),
        pytest.param("endpoint", "http://user:s3cret@db.revoffers.com/", "s3cret", id="endpoint-http"),
    ],
)
def test_a_refused_secret_is_not_repeated(name: str, given: Any, secret: str) -> None:
    (problem,) = problems_of({"site_id": SITE_ID, "secret_key": SECRET, name: given})

    assert secret not in problem


@pytest.mark.parametrize(
    ("site_id", "is_usual"),
    [("KA-1A2B3C4", True), ("shop.example.com", True), ("1234567", False), ("ka-1a2b3c4", False), ("KA-", False)],
)
def test_a_usual_tracking_id_is_ka_or_a_domain(site_id: str, is_usual: bool) -> None:
    """The specification: "frequently KA-"."""
    assert is_usual_site_id(site_id) == is_usual
