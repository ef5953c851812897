"""The Flask extension: configuration, keys, several applications, strictness."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask, render_template
from jinja2 import DictLoader
from werkzeug.middleware.proxy_fix import ProxyFix

from katalys_wsgi import ConfigurationError, Event, InvalidConversion, InvalidToken, OrderUpdate, Outcome, Tracker
from katalys_wsgi.flask import Katalys

from .support import LINK, OLD_SECRET, SECRET, SITE_ID, cookie_of, make_conversion, make_environ

LANDING = "/?" + LINK


@pytest.fixture
def config(options: dict[str, Any]) -> dict[str, Any]:
    """A tracker's settings as an application's configuration."""
    return {f"KATALYS_{name.upper()}": value for name, value in options.items()}


def make_app(config: dict[str, Any], katalys: Katalys | None = None) -> Flask:
    """An application factory, as Flask's manual shows it."""
    app = Flask("shop")
    app.config.update(config)
    if katalys is not None:
        katalys.init_app(app)
    return app


def click_of(tracker: Tracker, cookie: str | None) -> str | None:
    """The transaction_id that ``tracker`` reads in a Cookie header."""
    click = tracker.visit({"HTTP_COOKIE": cookie or ""}).click
    return click.transaction_id if click else None


# --- one object, many applications ---------------------------------------------------------------------------


def test_factory_pattern(config: dict[str, Any]) -> None:
    """One extension object serves two applications, each with its own settings."""
    katalys = Katalys()
    first = make_app(config, katalys)
    second = make_app({**config, "KATALYS_SITE_ID": "KA-SECOND", "KATALYS_COOKIE_NAME": "other"}, katalys)
    cookies = [app.test_client().get(LANDING).headers["Set-Cookie"].partition("=")[0] for app in (first, second)]

    with first.app_context():
        assert katalys.tracker is first.extensions["katalys"]
        assert katalys.tracker.settings.site_id == SITE_ID
    with second.test_request_context(LANDING):
        assert katalys.tracker.settings.site_id == "KA-SECOND"
        assert katalys.visit.click is not None
    assert cookies == ["katalys_click", "other"]


def test_visit_knows_the_request(config: dict[str, Any]) -> None:
    app = make_app(config)
    katalys = Katalys(app)

    with app.test_request_context(LANDING, environ_base={"REMOTE_ADDR": "203.0.113.9"}):
        visit = katalys.visit
    assert (visit.client_ip, visit.click and visit.click.aff_id) == ("203.0.113.9", "5678")


def test_visit_is_one_object_during_a_request(config: dict[str, Any]) -> None:
    """What a decorator, a helper and the view see is the same; the next request has its own."""
    katalys = Katalys()
    app = make_app(config, katalys)

    with app.test_request_context(LANDING):
        first = katalys.visit
        assert katalys.visit is first
    with app.test_request_context(LANDING):
        assert katalys.visit is not first


def test_visit_is_asked_anew_after_a_refusal(config: dict[str, Any]) -> None:
    """The checkout's own form may be where the shopper consents."""
    katalys = Katalys(consent=lambda environ: "shop.consent" in environ)
    app = make_app(config, katalys)

    with app.test_request_context(LANDING) as context:
        assert katalys.visit.no_consent
        context.request.environ["shop.consent"] = True
        assert katalys.visit.click is not None


def test_applications_in_one_request_have_visits_of_their_own(config: dict[str, Any]) -> None:
    """A dispatcher hands one environ to several applications: each asks its own tracker."""
    katalys = Katalys()
    outer, inner = make_app(config, katalys), make_app({**config, "KATALYS_COOKIE_NAME": "other"}, katalys)

    with outer.test_request_context(LANDING) as context:
        visit = katalys.visit
        with inner.request_context(context.request.environ):
            assert katalys.visit is not visit


def test_second_initialisation_is_refused(config: dict[str, Any]) -> None:
    """With two trackers on one application, which of them records would be chance."""
    app = make_app(config)
    katalys = Katalys(app)

    with pytest.raises(ConfigurationError, match=r"call init_app\(\) once"):
        katalys.init_app(app)


def test_uninitialised_application_says_what_to_do(config: dict[str, Any]) -> None:
    katalys = Katalys()

    with make_app(config).app_context(), pytest.raises(RuntimeError, match=r"call katalys\.init_app\(app\)"):
        _ = katalys.tracker


def test_outside_of_a_request_flask_says_so(config: dict[str, Any]) -> None:
    """Flask's own errors, with Flask's own advice."""
    katalys = Katalys()
    app = make_app(config, katalys)

    with pytest.raises(RuntimeError, match="outside of application context"):
        _ = katalys.tracker
    with app.app_context(), pytest.raises(RuntimeError, match="outside of request context"):
        _ = katalys.visit


def test_initialised_before_proxy_fix(config: dict[str, Any]) -> None:
    """What ProxyFix restores, the cookie sees."""
    app = make_app(config, Katalys())
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    landing = app.test_client().get(LANDING, headers={"X-Forwarded-Proto": "https"})

    assert "; secure" in landing.headers["Set-Cookie"]


# --- settings ------------------------------------------------------------------------------------------------


def test_options_go_before_the_configuration(config: dict[str, Any]) -> None:
    app = make_app(config)
    Katalys(app, site_id="KA-OPTION")

    assert app.extensions["katalys"].settings.site_id == "KA-OPTION"


def test_each_place_gives_what_the_ones_before_it_do_not(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options, the application's configuration, the environment; then Flask's own key."""
    del config["KATALYS_SECRET_KEY"]
    for name, value in {"SITE_ID": "KA-ENVIRON", "WIRE": "form", "ATTRIBUTION": "first-click"}.items():
        monkeypatch.setenv(f"KATALYS_{name}", value)
    app = make_app({**config, "SECRET_KEY": SECRET, "KATALYS_WIRE": "get"}, Katalys(site_id="KA-OPTION"))
    settings = app.extensions["katalys"].settings

    assert (settings.site_id, settings.wire, settings.attribution) == ("KA-OPTION", "get", "first-click")
    assert settings.secret_key == (SECRET,)


def test_the_environment_alone_is_enough(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the commands, so that shop and operator speak of the same outbox; its key goes before Flask's."""
    for name, value in options.items():
        monkeypatch.setenv(f"KATALYS_{name.upper()}", value)
    settings = make_app({"SECRET_KEY": OLD_SECRET}, Katalys()).extensions["katalys"].settings

    assert (settings.site_id, settings.endpoint) == (SITE_ID, options["endpoint"])
    assert settings.secret_key == (SECRET,)


def test_what_only_python_can_say(config: dict[str, Any]) -> None:
    """Consent and hooks are functions."""
    events: list[Event] = []
    katalys = Katalys(hooks=[events.append], consent=lambda environ: "HTTP_DNT" not in environ)
    app = make_app(config, katalys)

    with app.test_request_context(LANDING, headers={"DNT": "1"}):
        refused = katalys.visit.record(make_conversion())
    with app.test_request_context(LANDING):
        katalys.visit.record(make_conversion())
    assert refused.outcome is Outcome.NO_CONSENT
    assert "conversion_recorded" in [event.name for event in events]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"KATALYS_SITE_ID": ""}, r"^KATALYS_SITE_ID is missing; "),
        ({"KATALYS_SIDE_ID": "KA-1"}, r"^KATALYS_SIDE_ID is an unknown setting; did you mean KATALYS_SITE_ID\?"),
        ({"KATALYS_SECRET_KEY": "short"}, r"^KATALYS_SECRET_KEY has a key of 5 characters"),
        ({"KATALYS_ENDPOINT": "http://example.com/"}, r"^KATALYS_ENDPOINT is 'http://example\.com/'"),
    ],
    ids=["missing", "unknown", "weak", "wrong"],
)
def test_problems_are_reported_in_flask_spelling(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_app({**config, **changes}, Katalys())


# --- keys ----------------------------------------------------------------------------------------------------


def test_secret_key_of_flask(config: dict[str, Any]) -> None:
    """A shop that has a good SECRET_KEY needs no second one."""
    del config["KATALYS_SECRET_KEY"]
    app = make_app({**config, "SECRET_KEY": SECRET}, Katalys())

    assert app.extensions["katalys"].settings.secret_key == (SECRET,)


def test_secret_key_fallbacks_still_read(config: dict[str, Any]) -> None:
    """After a rotation old cookies count, and new ones are signed with the new key."""
    del config["KATALYS_SECRET_KEY"]
    before = make_app({**config, "SECRET_KEY": OLD_SECRET}, Katalys())
    after = make_app({**config, "SECRET_KEY": SECRET, "SECRET_KEY_FALLBACKS": [OLD_SECRET]}, Katalys())
    old, new = (cookie_of(list(app.test_client().get(LANDING).headers)) for app in (before, after))

    assert click_of(after.extensions["katalys"], old) == "1234abcd"
    assert click_of(after.extensions["katalys"], new) == "1234abcd"
    assert click_of(before.extensions["katalys"], new) is None


def test_own_key_goes_before_flask_key(config: dict[str, Any]) -> None:
    """A weak SECRET_KEY is none of our business where ours is set."""
    app = make_app({**config, "SECRET_KEY": "dev", "SECRET_KEY_FALLBACKS": ["older"]}, Katalys())

    assert app.extensions["katalys"].settings.secret_key == (SECRET,)


@pytest.mark.parametrize(
    ("flask_keys", "problem"),
    [
        ({}, "is missing; make one with: "),
        ({"SECRET_KEY": "dev"}, "has a key of 3 characters, at least 32 are needed; make one with: "),
        ({"SECRET_KEY": SECRET, "SECRET_KEY_FALLBACKS": ["dev"]}, "has a key of 3 characters, at least 32 are needed"),
    ],
    ids=["none", "weak", "weak fallback"],
)
def test_weak_flask_key_names_both(config: dict[str, Any], flask_keys: dict[str, Any], problem: str) -> None:
    """The reader has written SECRET_KEY, and may rather set KATALYS_SECRET_KEY; other problems stand beside it."""
    del config["KATALYS_SECRET_KEY"]
    with pytest.raises(ConfigurationError) as caught:
        make_app({**config, **flask_keys, "KATALYS_WIRE": "pigeon"}, Katalys())

    about_key, about_wire = caught.value.problems
    assert about_key.startswith(f"KATALYS_SECRET_KEY is not set, and Flask's SECRET_KEY in its place {problem}")
    assert about_wire == "KATALYS_WIRE is 'pigeon'; choose json or form or get."


# --- strictness ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "changes", "given", "strict"),
    [
        (None, {}, {}, False),
        ("testing", {}, {}, True),
        ("debug", {}, {}, True),
        ("testing", {"KATALYS_STRICT": False}, {}, False),
        ("testing", {}, {"strict": False}, False),
        ("testing", {}, {"environ": "no"}, False),
        (None, {"KATALYS_STRICT": True}, {}, True),
        (None, {}, {"strict": True}, True),
    ],
    ids=[
        "production",
        "testing",
        "debug",
        "off by config",
        "off by option",
        "off by environ",
        "on by config",
        "on by option",
    ],
)
def test_strictness(
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    flag: str | None,
    changes: dict[str, Any],
    given: dict[str, Any],
    strict: bool,
) -> None:
    """Under app.debug and app.testing, set however late, bad data raises; unless KATALYS_STRICT says otherwise."""
    if "environ" in given:
        monkeypatch.setenv("KATALYS_STRICT", given.pop("environ"))
    katalys = Katalys(**given)
    app = make_app({**config, **changes}, katalys)
    if flag:
        setattr(app, flag, True)
    conversion = make_conversion(sale_amount="a lot")

    with app.test_request_context(LANDING):
        if strict:
            with pytest.raises(InvalidConversion, match="sale_amount"):
                katalys.visit.record(conversion)
        else:
            assert katalys.visit.record(conversion).outcome is Outcome.INVALID


@pytest.mark.parametrize("strict", [True, False], ids=["testing", "production"])
def test_strictness_reaches_every_verb(config: dict[str, Any], strict: bool) -> None:
    """Also an update, a token and what is recorded from it raise under app.testing, and never in production."""
    katalys = Katalys()
    app = make_app(config, katalys)
    app.testing = strict

    with app.test_request_context(LANDING):
        visit = katalys.visit
        lost = OrderUpdate("1001", order_status=cast(Any, "lost"))  # a status that Katalys does not know
        resumed = visit.resume(visit.token())
        calls: list[tuple[type[Exception], Callable[[], object]]] = [
            (InvalidConversion, lambda: visit.record_update(lost)),
            (InvalidToken, lambda: visit.resume("nonsense")),
            (InvalidConversion, lambda: resumed.record(make_conversion(sale_amount="a lot"))),
            (InvalidConversion, lambda: resumed.record_update(lost)),
        ]
        for error, call in calls:
            with pytest.raises(error) if strict else nullcontext():
                call()


# --- nothing is sent by accident -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "live", "held"),
    [
        (None, "auto", None),
        ("testing", "auto", "Flask's TESTING"),
        ("debug", "auto", "Flask's DEBUG"),
        ("testing", True, None),
        (None, False, "live is false"),
    ],
    ids=["production", "testing", "debug", "live all the same", "never live"],
)
def test_postbacks_are_held(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, flag: str | None, live: object, held: str | None
) -> None:
    """Decided when something is to be sent: test suites set app.testing late."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # which holds them, too
    del config["KATALYS_ENDPOINT"]  # Katalys' own
    app = make_app({**config, "KATALYS_LIVE": live}, Katalys())
    if flag:
        setattr(app, flag, True)

    assert app.extensions["katalys"].held == held


@pytest.mark.parametrize("outbox", [None, "shop.db"], ids=["no outbox given", "outbox given"])
def test_a_test_suite_leaves_no_file_that_it_did_not_ask_for(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outbox: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    config.pop("KATALYS_OUTBOX")
    katalys = Katalys()
    app = make_app({**config, **({"KATALYS_OUTBOX": outbox} if outbox else {})}, katalys)
    app.testing = True
    app.add_url_rule("/", view_func=lambda: katalys.visit.record(make_conversion()).outcome.name)

    assert app.test_client().get(LANDING).text == "RECORDED"
    assert len(app.extensions["katalys"].outbox.history("1001")) == 1
    assert any(tmp_path.iterdir()) == (outbox is not None)
    app.extensions["katalys"].close()


# --- the command and the template ----------------------------------------------------------------------------


def test_the_command_knows_the_shop(config: dict[str, Any]) -> None:
    """No setting is repeated: it asks the application's own tracker, whatever the environment says."""
    katalys = Katalys()
    app = make_app(config, katalys)
    with app.test_request_context(LANDING):
        katalys.visit.record(make_conversion())
    run = app.test_cli_runner().invoke
    why = run(args=["katalys", "why", "1001"])
    unknown = run(args=["katalys", "why", "none"])

    assert (why.exit_code, unknown.exit_code) == (0, 1)
    assert "The order was recorded" in why.output


def test_the_command_explains_itself(config: dict[str, Any]) -> None:
    """Its help is that of the command line, under the name it was called by."""
    run = make_app(config, Katalys()).test_cli_runner().invoke
    listed, shown, wrong = run(args=["--help"]), run(args=["katalys", "--help"]), run(args=["katalys", "stat"])

    assert "Deliver, inspect and correct postbacks" in listed.output
    assert "katalys [-h]" in shown.output
    assert "status" in shown.output
    assert wrong.exit_code == 2


def test_the_command_in_a_shell(options: dict[str, Any], tmp_path: Path) -> None:
    """``flask --app shop katalys status --json``, as an operator types it."""
    lines = [
        "from flask import Flask",
        "from katalys_wsgi.flask import Katalys",
        "app = Flask(__name__)",
        "Katalys(app)",
    ]
    (tmp_path / "shop.py").write_text("\n".join(lines))
    environ = {f"KATALYS_{name.upper()}": value for name, value in options.items()}
    Tracker.from_environ(environ).visit(make_environ(LINK)).record(make_conversion())
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "shop", "katalys", "status", "--json"],
        cwd=tmp_path, env={**os.environ, **environ}, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip

    assert '"pending": 1' in done.stdout


def test_script_tag_in_a_template(config: dict[str, Any]) -> None:
    """Jinja does not escape it, in an imported macro neither, which sees globals only."""
    app = make_app(config, Katalys())
    tags = "{% macro tag() %}{{ katalys_script_tag(nonce='r4nd0m') }}{% endmacro %}"
    page = "{% from 'tags.html' import tag %}{{ katalys_script_tag() }} {{ tag() }}"
    app.jinja_loader = DictLoader({"tags.html": tags, "page.html": page})
    with app.app_context():
        html = render_template("page.html")

    tracker = app.extensions["katalys"]
    assert html == f"{tracker.script_tag()} {tracker.script_tag('r4nd0m')}"
    assert html.startswith("<script ")
