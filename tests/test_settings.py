"""Settings: one table, checked once at start-up, its problems reported in the reader's own spelling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

import pytest

from katalys_wsgi import ConfigurationError, Outcome, Settings, Tracker
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.settings import ENVIRONMENT, FLASK, INI, PYTHON, Options, Spelling

from .support import LINK, OLD_SECRET, SECRET, SITE_ID, make_conversion, make_environ, make_settings, problems_of

SPELLINGS = [
    pytest.param(PYTHON, id="python"),
    pytest.param(ENVIRONMENT, id="environment"),
    pytest.param(FLASK, id="flask"),
    pytest.param(INI, id="ini"),
]


@pytest.fixture
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the default outbox may be."""
    monkeypatch.chdir(tmp_path)


def consent(_environ: dict[str, Any]) -> bool:
    return True  # pragma: no cover - never asked here


# --- the table ---


def test_the_table_of_settings_is_complete() -> None:
    """The names and defaults that the documentation promises, and no other."""
    settings = make_settings()

    assert {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)} == {
        "site_id": SITE_ID,
        "secret_key": (SECRET,),
        "conversion_type": "force_convert",
        "endpoint": "https://db.revoffers.com/v2/_tr_offline",
        "live": "auto",
        "wire": "json",
        "attribution": "last-click",
        "attribution_window": timedelta(days=30),
        "sources": ("katalys", "revoffers"),
        "count_fetches": False,
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


def test_callers_may_write_every_setting_and_no_other() -> None:
    """Options is what a type checker accepts, Settings what start-up does: none may forget a setting of the other."""
    assert list(get_type_hints(Options)) == [setting.name for setting in dataclasses.fields(Settings)]


def test_a_choice_is_the_same_for_a_type_checker_and_at_start_up() -> None:
    """What the annotation lists is accepted, and the problem lists the same names."""
    annotations = get_type_hints(Options)
    for name in ("conversion_type", "wire", "attribution", "delivery"):
        choices = get_args(annotations[name])
        (problem,) = problems_of({"site_id": SITE_ID, "secret_key": SECRET, name: "another"})

        assert [getattr(make_settings(**{name: choice}), name) for choice in choices] == list(choices)
        assert problem.endswith(f"choose {' or '.join(choices)}.")


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


# --- three spellings ---


@pytest.mark.parametrize(
    ("spelling", "written"),
    [
        pytest.param(PYTHON, "site_id=", id="python"),
        pytest.param(ENVIRONMENT, "KATALYS_SITE_ID", id="environment"),
        pytest.param(FLASK, "KATALYS_SITE_ID", id="flask"),
        pytest.param(INI, "katalys.site_id", id="ini"),
    ],
)
def test_a_problem_is_reported_in_the_readers_own_spelling(spelling: Spelling, written: str) -> None:
    (missing,) = problems_of({"secret_key": SECRET}, spelling)
    (wrong,) = problems_of({"secret_key": SECRET, "site_id": "???"}, spelling)

    assert missing.startswith(f"{written} is missing; set it to the Tracking ID")
    assert wrong.startswith(f"{written} is '???'")


@pytest.mark.parametrize(
    ("spelling", "advice"),
    [
        pytest.param(PYTHON, "siteid= is an unknown setting; did you mean site_id=?", id="python"),
        pytest.param(
            ENVIRONMENT, "KATALYS_SITEID is an unknown setting; did you mean KATALYS_SITE_ID?", id="environment"
        ),
        pytest.param(FLASK, "KATALYS_SITEID is an unknown setting; did you mean KATALYS_SITE_ID?", id="flask"),
        pytest.param(INI, "katalys.siteid is an unknown setting; did you mean katalys.site_id?", id="ini"),
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


def test_all_problems_are_listed_at_once() -> None:
    """Nobody likes to restart a server five times for five misspelt lines."""
    problems = problems_of({"sit_id": SITE_ID, "wire": "xml", "deadline": -1, "strict": "perhaps"}, ENVIRONMENT)

    assert [problem.split()[0] for problem in problems] == [
        "KATALYS_SIT_ID", "KATALYS_SITE_ID", "KATALYS_SECRET_KEY", "KATALYS_WIRE", "KATALYS_DEADLINE",
        "KATALYS_STRICT",
    ]  # fmt: skip


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

    assert tracker.settings == make_settings(
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

    assert Tracker.from_environ().settings == make_settings()


@pytest.mark.usefixtures("in_a_directory_of_its_own")
def test_options_in_python_go_before_the_environment() -> None:
    environ = {"KATALYS_SITE_ID": SITE_ID, "KATALYS_SECRET_KEY": SECRET, "KATALYS_WIRE": "form"}

    tracker = Tracker.from_environ(environ, wire="json", consent=consent)

    assert (tracker.settings.wire, tracker.settings.consent) == ("json", consent)


def test_a_key_that_the_environment_garbled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are not UTF-8 reach Python as lone surrogates, with which nothing can be signed."""
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
    """RFC 6265bis §4.1.3: the browser would drop the cookie and say nothing."""
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
    assert make_settings(**changes).cookie_name == changes["cookie_name"]


# --- secrets, and being frozen ---

PASSWORD_URL = "postgresql://shop:hunter2-the-password@db/shop"


def test_neither_key_nor_outbox_url_shows_in_a_repr() -> None:
    """Settings end up in error reports and debug pages."""
    settings = make_settings(secret_key=[OLD_SECRET, SECRET], outbox=PASSWORD_URL)

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


def test_settings_are_frozen() -> None:
    settings = make_settings()

    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.strict = True  # type: ignore[misc]


def test_a_list_given_is_not_shared_with_the_giver() -> None:
    keys, sources = [OLD_SECRET, SECRET], ["katalys"]
    settings = make_settings(secret_key=keys, sources=sources)

    keys.append("x")
    sources.append("everybody")

    assert (settings.secret_key, settings.sources) == ((OLD_SECRET, SECRET), ("katalys",))


def test_equal_settings_are_equal_and_hashable() -> None:
    assert make_settings() == make_settings(deadline=20)
    assert hash(make_settings()) == hash(make_settings(deadline=20))
    assert make_settings() != make_settings(deadline=21)


# --- the tracker ---


def test_a_tracker_refuses_settings_and_options_together() -> None:
    with pytest.raises(ConfigurationError, match="wire= is given beside a Settings; put it there"):
        Tracker(make_settings(), wire="form")


def test_a_tracker_takes_every_setting_by_keyword() -> None:
    misspelt: dict[str, Any] = {"site_id": SITE_ID, "secret_kye": SECRET}

    with pytest.raises(ConfigurationError, match="did you mean secret_key="):
        Tracker(**misspelt)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        pytest.param(str, SQLiteOutbox, id="str"),
        pytest.param(Path, SQLiteOutbox, id="Path"),
        pytest.param(lambda path: f"sqlite:///{path}", SQLAlchemyOutbox, id="URL"),
    ],
)
def test_a_trackers_outbox_is_where_the_setting_says(
    make_tracker: Callable[..., Tracker], tmp_path: Path, written: Callable[[Path], Any], kind: type
) -> None:
    """A path is a file of this package; a URL, of SQLite as well, is the shop's database through SQLAlchemy."""
    path = tmp_path / "shop.db"
    tracker = make_tracker(outbox=written(path))
    record = tracker.visit(make_environ(LINK)).record(make_conversion())

    assert record.outcome is Outcome.RECORDED
    assert type(tracker.outbox) is kind
    assert path.exists()


class TestLayers:
    """Every adapter reads its own place first, then the environment."""

    OWN: ClassVar[dict[str, object]] = {"site_id": SITE_ID, "secret_key": SECRET}

    def test_the_first_place_that_gives_a_setting_wins(self) -> None:
        settings = Settings.from_layers(
            ({**self.OWN, "wire": "form"}, FLASK), ({"wire": "get", "strict": "on", "deadline": "5"}, ENVIRONMENT)
        )

        assert (settings.wire, settings.strict, settings.deadline.total_seconds()) == ("form", True, 5)

    def test_a_problem_is_reported_in_the_spelling_of_its_place(self) -> None:
        with pytest.raises(ConfigurationError) as raised:
            Settings.from_layers(({"wire": "jsn"}, INI), ({"deadline": "soon", "secret_key": SECRET}, ENVIRONMENT))

        assert [problem.partition(" ")[0] for problem in raised.value.problems] == [
            "katalys.site_id", "katalys.wire", "KATALYS_DEADLINE",
        ]  # fmt: skip

    def test_what_is_given_nowhere_may_be_reported_in_another_spelling(self) -> None:
        with pytest.raises(ConfigurationError, match="KATALYS_SITE_ID is missing"):
            Settings.from_layers(({}, PYTHON), ({"secret_key": SECRET}, ENVIRONMENT), missing=ENVIRONMENT)

    def test_a_rotated_key_is_read_as_its_place_writes_it(self) -> None:
        """In the environment keys are separated by white space; in Python a string is one key."""
        settings = Settings.from_layers(
            ({"site_id": SITE_ID}, FLASK), ({"secret_key": f"{OLD_SECRET} {SECRET}"}, ENVIRONMENT)
        )

        assert settings.secret_key == (OLD_SECRET, SECRET)

    @pytest.mark.parametrize("name", ["test_all", "home", "x"])
    def test_an_environment_may_hold_names_of_others(self, name: str) -> None:
        assert Settings.from_layers((self.OWN, FLASK), ({name: "1"}, ENVIRONMENT)).site_id == SITE_ID

    @pytest.mark.parametrize(
        ("name", "meant"), [("siteid", "site_id"), ("secretkey", "secret_key"), ("end_point", "endpoint")]
    )
    def test_a_misspelt_name_in_the_environment_is_refused(self, name: str, meant: str) -> None:
        with pytest.raises(ConfigurationError, match=f"did you mean KATALYS_{meant.upper()}?"):
            Settings.from_layers((self.OWN, FLASK), ({name: "1"}, ENVIRONMENT))
