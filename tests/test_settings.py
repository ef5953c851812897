"""Settings: one table, checked once at start-up, its faults told in the reader's own spelling."""

from __future__ import annotations

import base64
import dataclasses
import random
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import ConfigurationError, Settings, Tracker
from katalys_wsgi.settings import ENDPOINT, ENVIRONMENT, FLASK, INI, PYTHON, Spelling

from .support import OLD_SECRET, SECRET, SITE_ID

SPELLINGS = [
    pytest.param(PYTHON, id="python"),
    pytest.param(ENVIRONMENT, id="environment"),
    pytest.param(FLASK, id="flask"),
    pytest.param(INI, id="ini"),
]


class ShopOutbox:
    """An outbox of the shop's own, as the settings see it: the methods are there."""

    add = history = claim = apply = prune = close = lambda *_args, **_kwargs: None


@pytest.fixture
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the default outbox may be."""
    monkeypatch.chdir(tmp_path)


def consent(_environ: dict[str, Any]) -> bool:
    return True  # pragma: no cover - nobody asks here


def make(**changes: Any) -> Settings:
    return Settings(**{"site_id": SITE_ID, "secret_key": SECRET, **changes})


def problems_of(values: dict[str, Any], spelling: Spelling = PYTHON) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_mapping(values, spelling)
    return caught.value.problems


def ids_of(cases: list[tuple[str, Any, Any]]) -> list[str]:
    """``name=value`` of each case, the same in every run."""
    texts = (f"{name}={getattr(given, '__name__', given)!s:.40}" for name, given, _ in cases)
    return [text.encode("unicode_escape").decode() for text in texts]


# --- the table ---


def test_the_table_of_settings_is_complete() -> None:
    """The names and defaults that the documentation promises, and no other."""
    settings = make()

    assert {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)} == {
        "site_id": SITE_ID,
        "secret_key": (SECRET,),
        "conversion_type": "force_convert",
        "endpoint": "https://db.revoffers.com/v2/_tr_offline",
        "wire": "json",
        "attribution": "last-click",
        "attribution_window": timedelta(days=30),
        "sources": ("katalys", "revoffers"),
        "cookie_name": "katalys_click",
        "cookie_domain": None,
        "cookie_secure": "auto",
        "consent": None,
        "trusted_proxies": 0,
        "outbox": "katalys-outbox.db",
        "delivery": "thread",
        "delivery_workers": 4,
        "connect_timeout": timedelta(seconds=3),
        "read_timeout": timedelta(seconds=10),
        "deadline": timedelta(seconds=20),
        "give_up_after": timedelta(days=7),
        "retention": timedelta(days=90),
        "hash_email": False,
        "strict": False,
    }


#: name, what is given, what is kept
GOOD = [
    ("site_id", "KA-XXXXXXX", "KA-XXXXXXX"),
    ("site_id", "shop.example.com", "shop.example.com"),
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
    ("cookie_secure", "auto", "auto"),
    ("cookie_secure", True, True),
    ("cookie_secure", "off", False),
    ("consent", None, None),
    ("consent", consent, consent),
    ("trusted_proxies", 0, 0),
    ("trusted_proxies", "2", 2),
    ("trusted_proxies", 16, 16),
    ("outbox", "sqlite:////var/lib/shop/outbox.db", "sqlite:////var/lib/shop/outbox.db"),
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
    settings = make(**{name: given})

    assert getattr(settings, name) == kept
    assert type(getattr(settings, name)) is type(kept)


@pytest.mark.parametrize(("name", "given", "kept"), GOOD, ids=ids_of(GOOD))
def test_settings_made_of_settings_are_the_same(name: str, given: Any, kept: Any) -> None:
    settings = make(**{name: given})

    assert Settings(**vars(settings)) == settings
    assert Settings.from_mapping(vars(settings)) == settings
    assert dataclasses.replace(settings) == settings


def test_an_outbox_object_is_kept_as_it_is() -> None:
    outbox = ShopOutbox()

    assert make(outbox=outbox).outbox is outbox


#: name, what is given, words of the answer
BAD = [
    ("site_id", "", "is missing; set it to the Tracking ID"),
    ("site_id", None, "is missing"),
    ("site_id", "1234567", "no Tracking ID"),
    ("site_id", "KA-", "no Tracking ID"),
    ("site_id", "KA-1A2B3C4 ", "no Tracking ID"),
    ("site_id", "KA-1A2B3C4\n", "no Tracking ID"),
    ("site_id", "KA-\uff11\uff12\uff13\uff14", "no Tracking ID"),
    ("site_id", "https://shop.example.com", "no Tracking ID"),
    ("site_id", ["KA-1A2B3C4"], "no Tracking ID"),
    ("secret_key", "", "is missing; make one with"),
    ("secret_key", None, "is missing; make one with"),
    ("secret_key", [], "is missing; make one with"),
    ("secret_key", ["", ""], "is missing; make one with"),
    ("secret_key", SECRET[:31], "has a key of 31 characters, at least 32 are needed"),
    ("secret_key", [SECRET, ""], "has a key of 0 characters"),
    ("secret_key", ["short", SECRET], "has a key of 5 characters"),
    ("secret_key", "abcabcabi" * 8, "few different characters"),
    ("secret_key", 12345, "holds int where a text belongs"),
    ("secret_key", [SECRET, None], "holds NoneType where a text belongs"),
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
    ("endpoint", "ftp://db.revoffers.com/", "no plain address"),
    ("endpoint", "db.revoffers.com", "no plain address"),
    ("endpoint", "https://", "no plain address"),
    ("endpoint", "https://db.revoffers.com/?a=b", "no plain address"),
    ("endpoint", "https://db.revoffers.com/#a", "no plain address"),
    ("endpoint", "https://db.revoffers.com:port/", "no plain address"),
    ("endpoint", "https://db.revoffers.com:99999/", "no plain address"),
    ("endpoint", "https://db.revoffers.com/v2/_tr offline", "no plain address"),
    ("endpoint", "https://db.revoffers.com/\n", "no plain address"),
    ("endpoint", "https://[db.revoffers.com", "no plain address"),
    ("endpoint", None, "no plain address"),
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
    ("outbox", "", "is empty"),
    ("outbox", None, "is empty"),
    ("outbox", "outbox.db", "is no durable address"),
    ("outbox", "sqlite://", "is no durable address"),
    ("outbox", "sqlite:///", "is no durable address"),
    ("outbox", "sqlite:///:memory:", "is no durable address"),
    ("outbox", Path("outbox.db"), "is a PosixPath"),
    ("outbox", 5, "is a int"),
    ("outbox", ShopOutbox, "is a type"),
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
    """One fault, that begins with the setting's name and says what to write instead."""
    (problem,) = problems_of({"site_id": SITE_ID, "secret_key": SECRET, name: given})

    assert problem.startswith(f"{name}= ")
    assert words in problem


@pytest.mark.parametrize(
    ("given", "name", "words"), [(case[1], case[0], case[2]) for case in BAD if isinstance(case[1], str)],
    ids=[case_id for case_id, case in zip(BAD_IDS, BAD, strict=True) if isinstance(case[1], str)],
)  # fmt: skip
@pytest.mark.parametrize("spelling", [ENVIRONMENT, INI], ids=["environment", "ini"])
def test_nonsense_in_a_text_is_refused_too(spelling: Spelling, given: str, name: str, words: str) -> None:
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

    assert make(secret_key=keys).secret_key == tuple(keys)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_several_keys_as_the_reader_lists_them(spelling: Spelling) -> None:
    """An environment variable and an ini line separate keys by white space; Python and Flask have lists."""
    given = f"{OLD_SECRET}\n  {SECRET}" if spelling.textual else [OLD_SECRET, SECRET]

    settings = Settings.from_mapping({"site_id": SITE_ID, "secret_key": given}, spelling)

    assert settings.secret_key == (OLD_SECRET, SECRET)


@pytest.mark.parametrize("spelling", [PYTHON, FLASK], ids=["python", "flask"])
def test_a_key_in_python_may_hold_spaces(spelling: Spelling) -> None:
    passphrase = "seven quick brown foxes, jumping over 1 dog"

    settings = Settings.from_mapping({"site_id": SITE_ID, "secret_key": passphrase}, spelling)

    assert settings.secret_key == (passphrase,)


# --- three clothes ---


@pytest.mark.parametrize(
    ("spelling", "written"),
    [
        pytest.param(PYTHON, "site_id=", id="python"),
        pytest.param(ENVIRONMENT, "KATALYS_SITE_ID", id="environment"),
        pytest.param(FLASK, "KATALYS_SITE_ID", id="flask"),
        pytest.param(INI, "katalys.site_id", id="ini"),
    ],
)
def test_a_fault_is_told_in_the_readers_own_spelling(spelling: Spelling, written: str) -> None:
    (missing,) = problems_of({"secret_key": SECRET}, spelling)
    (wrong,) = problems_of({"secret_key": SECRET, "site_id": "???"}, spelling)

    assert missing.startswith(f"{written} is missing; set it to the Tracking ID")
    assert wrong.startswith(f"{written} is '???'")


@pytest.mark.parametrize(
    ("spelling", "advice"),
    [
        pytest.param(PYTHON, "siteid= is no setting; did you mean site_id=?", id="python"),
        pytest.param(ENVIRONMENT, "KATALYS_SITEID is no setting; did you mean KATALYS_SITE_ID?", id="environment"),
        pytest.param(FLASK, "KATALYS_SITEID is no setting; did you mean KATALYS_SITE_ID?", id="flask"),
        pytest.param(INI, "katalys.siteid is no setting; did you mean katalys.site_id?", id="ini"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(spelling: Spelling, advice: str) -> None:
    """A misspelt setting that is silently ignored runs with its default for years."""
    problems = problems_of({"site_id": SITE_ID, "secret_key": SECRET, "siteid": "x"}, spelling)

    assert problems == (advice,)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("tracking_id", None),
        ("xyzzy", None),
        ("window", "attribution_window"),
        ("secret_keys", "secret_key"),
        ("proxies", "trusted_proxies"),
        ("workers", "delivery_workers"),
        ("secure", "cookie_secure"),
        ("Site_Id", "site_id"),
        ("", None),
    ],
)
def test_the_suggestion_is_the_name_that_was_meant(given: str, nearest: str | None) -> None:
    (problem,) = problems_of({"site_id": SITE_ID, "secret_key": SECRET, given: "x"})

    assert problem.endswith(f"did you mean {nearest}=?" if nearest else "see the table of settings in the README.")


def test_all_faults_are_listed_at_once() -> None:
    """Nobody likes to restart a server five times for five misspelt lines."""
    problems = problems_of({"sit_id": SITE_ID, "wire": "xml", "deadline": -1, "strict": "perhaps"}, ENVIRONMENT)

    assert [problem.split()[0] for problem in problems] == [
        "KATALYS_SIT_ID", "KATALYS_SITE_ID", "KATALYS_SECRET_KEY", "KATALYS_WIRE", "KATALYS_DEADLINE",
        "KATALYS_STRICT",
    ]  # fmt: skip


def test_every_fault_ends_in_a_full_sentence() -> None:
    bad = {name: given for name, given, _ in BAD}

    problems = problems_of(bad)

    assert len(problems) == len(bad)
    assert all(problem.endswith((".", "?")) for problem in problems)


@pytest.mark.parametrize(
    ("spelling", "values"),
    [
        pytest.param(PYTHON, {"site_id": "a", "wire": "b"}, id="python"),
        pytest.param(ENVIRONMENT, {"KATALYS_SITE_ID": "a", "KATALYS_WIRE": "b", "HOME": "/"}, id="environment"),
        pytest.param(FLASK, {"KATALYS_SITE_ID": "a", "KATALYS_WIRE": "b", "SECRET_KEY": "c"}, id="flask"),
        pytest.param(INI, {"katalys.site_id": "a", "katalys.wire": "b", "pyramid.reload": "1", "wire": "c"}, id="ini"),
    ],
)
def test_only_the_entries_with_our_prefix_are_taken(spelling: Spelling, values: dict[str, object]) -> None:
    assert spelling.select(values) == {"site_id": "a", "wire": "b"}


@pytest.mark.usefixtures("in_a_directory_of_its_own")
def test_the_environment_configures_a_tracker() -> None:
    tracker = Tracker.from_environ(
        {
            "KATALYS_SITE_ID": SITE_ID,
            "KATALYS_SECRET_KEY": f"{OLD_SECRET} {SECRET}",
            "KATALYS_ATTRIBUTION_WINDOW": "86400",
            "KATALYS_SOURCES": "katalys,partner",
            "KATALYS_COOKIE_SECURE": "true",
            "KATALYS_TRUSTED_PROXIES": "1",
            "KATALYS_STRICT": "1",
            "PATH": "/bin",
        }
    )

    assert tracker.settings == make(
        secret_key=[OLD_SECRET, SECRET],
        attribution_window=timedelta(days=1),
        sources=("katalys", "partner"),
        cookie_secure=True,
        trusted_proxies=1,
        strict=True,
    )


@pytest.mark.usefixtures("in_a_directory_of_its_own")
def test_the_process_environment_is_read_when_asked_not_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KATALYS_SITE_ID", SITE_ID)
    monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)

    assert Tracker.from_environ().settings == make()


@pytest.mark.usefixtures("in_a_directory_of_its_own")
def test_options_in_python_go_before_the_environment() -> None:
    environ = {"KATALYS_SITE_ID": SITE_ID, "KATALYS_SECRET_KEY": SECRET, "KATALYS_WIRE": "form"}

    tracker = Tracker.from_environ(environ, wire="json", consent=consent)

    assert (tracker.settings.wire, tracker.settings.consent) == ("json", consent)


def test_a_key_that_the_environment_garbled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are not UTF-8 reach Python as half characters, with which nothing can be signed."""
    garbled = (SECRET.encode() + b"\xff").decode("utf-8", "surrogateescape")

    with pytest.raises(ConfigurationError, match="KATALYS_SECRET_KEY"):
        Tracker.from_environ({"KATALYS_SITE_ID": SITE_ID, "KATALYS_SECRET_KEY": garbled})


# --- two values that contradict each other ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"cookie_name": "__Host-k"}, "needs cookie_secure= true", id="host-auto"),
        pytest.param({"cookie_name": "__Secure-k"}, "needs cookie_secure= true", id="secure-auto"),
        pytest.param({"cookie_name": "__secure-k", "cookie_secure": False}, "needs cookie_secure= true", id="no"),
        pytest.param(
            {"cookie_name": "__Host-k", "cookie_secure": True, "cookie_domain": "example.com"},
            "leave cookie_domain= out",
            id="host-domain",
        ),
    ],
)
def test_a_cookie_prefix_that_browsers_would_not_believe_is_refused(changes: dict[str, Any], words: str) -> None:
    """RFC 6265bis §4.1.3: the browser would drop the cookie without a word."""
    (problem,) = problems_of({"site_id": SITE_ID, "secret_key": SECRET, **changes})

    assert problem.startswith("cookie_name= ")
    assert words in problem


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"cookie_name": "__Host-k", "cookie_secure": True}, id="host"),
        pytest.param({"cookie_name": "__Secure-k", "cookie_secure": True, "cookie_domain": "a.example"}, id="secure"),
    ],
)
def test_a_cookie_prefix_that_is_kept_is_accepted(changes: dict[str, Any]) -> None:
    assert make(**changes).cookie_name == changes["cookie_name"]


# --- secrets, and being frozen ---

PASSWORD_URL = "postgresql://shop:hunter2-the-password@db/shop"


def test_neither_key_nor_outbox_url_shows_in_a_repr() -> None:
    """Settings end up in error reports and debug pages."""
    settings = make(secret_key=[OLD_SECRET, SECRET], outbox=PASSWORD_URL)

    for text in (repr(settings), str(settings), f"{settings}"):
        assert SITE_ID in text
        assert SECRET not in text
        assert OLD_SECRET not in text
        assert "hunter2" not in text


@pytest.mark.usefixtures("in_a_directory_of_its_own")
def test_the_trackers_repr_shows_no_secret_either() -> None:
    tracker = Tracker(site_id=SITE_ID, secret_key=SECRET)

    assert SITE_ID in repr(tracker)
    assert SECRET not in repr(tracker)


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


def test_settings_are_frozen() -> None:
    settings = make()

    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.strict = True  # type: ignore[misc]


def test_a_list_given_is_not_shared_with_the_giver() -> None:
    keys, sources = [OLD_SECRET, SECRET], ["katalys"]
    settings = make(secret_key=keys, sources=sources)

    keys.append("x")
    sources.append("everybody")

    assert (settings.secret_key, settings.sources) == ((OLD_SECRET, SECRET), ("katalys",))


def test_equal_settings_are_equal_and_hashable() -> None:
    assert make() == make(deadline=20)
    assert hash(make()) == hash(make(deadline=20))
    assert make() != make(deadline=21)


# --- the tracker's door ---


def test_a_tracker_refuses_settings_and_options_together() -> None:
    with pytest.raises(ConfigurationError, match="wire= is given beside a Settings; put it there"):
        Tracker(make(), wire="form")


def test_a_tracker_takes_every_setting_by_keyword() -> None:
    with pytest.raises(ConfigurationError, match="did you mean secret_key="):
        Tracker(site_id=SITE_ID, secret_kye=SECRET)
