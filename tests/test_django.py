"""The Django application: settings, the middleware, transactions, checks, the command; and a whole project."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.cookies import SimpleCookie
from io import StringIO
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import pytest
from django.core import mail
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import Context, Template
from django.test import Client, RequestFactory, override_settings

from katalys_wsgi import (
    ConfigurationError,
    Event,
    InvalidConversion,
    InvalidToken,
    OrderUpdate,
    Outcome,
    Record,
    Visit,
)
from katalys_wsgi.django import KatalysMiddleware, get_tracker

from .django_shop import katalys_settings
from .support import BUYER_IP, LINK, OLD_SECRET, SECRET, SITE_ID, cookie_of, make_conversion, make_environ, names, rows

LANDING = "/?" + LINK

#: What ``startproject`` writes.
FROM_STARTPROJECT = "django-insecure-" + SECRET

Change = Callable[..., None]


@pytest.fixture(autouse=True)
def change() -> Iterator[Change]:
    """Changes Django's settings until the end of the test."""
    changed: list[Any] = []

    def change_it(**settings: Any) -> None:
        changed.append(override_settings(**settings))
        changed[-1].enable()

    yield change_it
    for one in reversed(changed):
        one.disable()
    connections.close_all()


@pytest.fixture
def shop(options: dict[str, Any], change: Change) -> Change:
    """The shop's settings are those of ``options``; the same as ``change``."""
    change(**katalys_settings(options))
    return change


def visit_of(view: Callable[[Any], Any], query: str = LINK, **environ: Any) -> Any:
    """What a view answers that stands behind the middleware."""
    answers: list[Any] = []

    def get_response(request: HttpRequest) -> HttpResponse:
        answers.append(view(request))
        return HttpResponse()

    KatalysMiddleware(get_response)(RequestFactory().get("/?" + query, REMOTE_ADDR=BUYER_IP, **environ))
    return answers[0]


# --- the middleware ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [True, False], ids=["debug", "production"])
def test_the_test_client_keeps_the_click(shop: Change, debug: bool) -> None:
    """Django's own client goes past WSGI middlewares, and reads the cookies that Django keeps."""
    shop(DEBUG=debug)
    client = Client(REMOTE_ADDR=BUYER_IP)
    landing = client.get(LANDING)
    browsing = client.get("/page1")
    sale = client.post("/checkout", {"order": "1001"})

    assert landing.content == browsing.content == b"Welcome from 5678"
    assert list(landing.cookies) == ["katalys_click"]
    assert not browsing.cookies
    assert sale.content == b"RECORDED"


@pytest.mark.parametrize("secure", [True, False])
def test_the_cookie_is_that_of_every_other_shop(shop: Change, secure: bool) -> None:
    """Django's cookie jar writes the same attributes, in an order of its own."""
    shop(KATALYS_COOKIE_DOMAIN="shop.example")
    morsel = Client().get(LANDING, secure=secure).cookies["katalys_click"]
    scheme = "https" if secure else "http"
    expected = SimpleCookie(get_tracker().set_cookie_for(make_environ(LINK, **{"wsgi.url_scheme": scheme})))

    assert dict(morsel) == dict(expected["katalys_click"])
    assert (morsel["httponly"], morsel["samesite"], morsel["path"], morsel["secure"] or False) == (
        True, "Lax", "/", secure,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/old", 302), ("/gone", 404), ("/broken", 500)],
    ids=["page", "redirect", "404", "500"],
)
def test_every_answer_sets_the_cookie(shop: Change, path: str, status: int) -> None:
    landing = Client(raise_request_exception=False).get(f"{path}?{LINK}")

    assert landing.status_code == status
    assert "katalys_click" in landing.cookies
    assert landing.headers["Cache-Control"] == "private"


def test_no_shared_cache_keeps_the_answer(shop: Change) -> None:
    """The rules of every other shop: other directives stay, headers for shared caches go; other cookies stay."""

    def view(request: HttpRequest) -> HttpResponse:
        answer = HttpResponse(
            headers={"Cache-Control": "public, max-age=60", "Surrogate-Control": "max-age=60", "X-Own": "1"}
        )
        answer.set_cookie("basket", "7")
        return answer

    answer = KatalysMiddleware(view)(RequestFactory().get(LANDING))

    assert dict(answer.headers) == {
        "Content-Type": "text/html; charset=utf-8",
        "X-Own": "1",
        "Cache-Control": "private, max-age=60",
        "X-Accel-Expires": "0",
    }
    assert sorted(answer.cookies) == ["basket", "katalys_click"]


def test_stream_is_handed_on(shop: Change) -> None:
    """Nobody has read from it before the server does, and what closes it is still called."""
    read: list[bytes] = []
    closed: list[bool] = []

    class Stream:
        def __iter__(self) -> Iterator[bytes]:
            for part in (b"first", b"second"):
                read.append(part)
                yield part

        def close(self) -> None:
            closed.append(True)

    answer: Any = KatalysMiddleware(lambda _: StreamingHttpResponse(Stream()))(RequestFactory().get(LANDING))

    assert "katalys_click" in answer.cookies
    assert read == []
    assert b"".join(answer) == b"firstsecond"
    answer.close()
    assert closed == [True]


def test_shared_response_is_not_touched(shop: Change) -> None:
    """A view may keep one response for everybody; nobody gets another shopper's cookie."""
    shared = HttpResponse("Welcome")
    middleware = KatalysMiddleware(lambda _: shared)
    landing, stranger = (middleware(RequestFactory().get(path)) for path in (LANDING, "/"))

    assert "katalys_click" in landing.cookies
    assert stranger is shared
    assert not shared.cookies
    assert "Cache-Control" not in shared.headers


def test_request_katalys_is_one_visit(shop: Change) -> None:
    """What a decorator, a helper and the view see is the same."""

    def view(request: Any) -> tuple[bool, bool, Any]:
        return isinstance(request.katalys, Visit), request.katalys is request.katalys, request.katalys.click.aff_id

    assert visit_of(view) == (True, True, "5678")


def test_consent_is_asked_when_the_visit_is_used(shop: Change) -> None:
    """A shop's consent may stand in the session, which a later middleware loads."""

    def view(request: Any) -> str:
        request.META["shop.consent"] = True
        return str(request.katalys.record(make_conversion()).outcome.name)

    shop(KATALYS_CONSENT=lambda environ: "shop.consent" in environ)

    assert visit_of(view, query="", HTTP_COOKIE=cookie_of([("Set-Cookie", _a_cookie())])) == "RECORDED"


def test_request_katalys_is_asked_anew_after_a_refusal(shop: Change) -> None:
    """The checkout's own form may be where the shopper consents."""

    def view(request: Any) -> tuple[bool, bool, bool]:
        before = request.katalys.no_consent
        request.META["shop.consent"] = True
        return before, request.katalys.no_consent, repr(request.katalys).startswith("Visit(click=Click(")

    shop(KATALYS_CONSENT=lambda environ: "shop.consent" in environ)

    assert visit_of(view) == (True, False, True)


def _a_cookie() -> str:
    """A Set-Cookie of the shop, whose visitors consent to everything."""
    consents: dict[str, Any] = {"shop.consent": True}
    cookie = get_tracker().set_cookie_for(make_environ(LINK, **consents))
    assert cookie is not None
    return cookie


def test_middleware_without_the_application_says_so(shop: Change) -> None:
    shop(INSTALLED_APPS=[])

    with pytest.raises(ConfigurationError, match=r'^Add "katalys_wsgi\.django" to INSTALLED_APPS\.$'):
        Client().get("/")


# --- settings ------------------------------------------------------------------------------------------------


def test_each_place_gives_what_the_ones_before_it_do_not(shop: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SITE_ID": "KA-ENVIRON", "WIRE": "form", "SECRET_KEY": OLD_SECRET}.items():
        monkeypatch.setenv(f"KATALYS_{name}", value)
    settings = get_tracker().settings

    assert (settings.site_id, settings.wire, settings.secret_key) == (SITE_ID, "form", (SECRET,))


def test_the_environment_alone_is_enough(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    """Its key goes before Django's."""
    for name, value in options.items():
        monkeypatch.setenv(f"KATALYS_{name.upper()}", value)
    change(SECRET_KEY=OLD_SECRET)
    settings = get_tracker().settings

    assert (settings.site_id, settings.endpoint, settings.secret_key) == (SITE_ID, options["endpoint"], (SECRET,))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"SECRET_KEY": SECRET}, (SECRET,)),
        ({"SECRET_KEY": SECRET, "SECRET_KEY_FALLBACKS": [OLD_SECRET]}, (OLD_SECRET, SECRET)),
        ({"SECRET_KEY": SECRET, "KATALYS_SECRET_KEY": OLD_SECRET}, (OLD_SECRET,)),
        ({"SECRET_KEY": FROM_STARTPROJECT, "DEBUG": True}, (SECRET,)),
        ({"SECRET_KEY": SECRET.encode(), "DEBUG": True}, (SECRET,)),
    ],
    ids=["Django's", "rotated", "ours", "of startproject", "in bytes"],
)
def test_which_key_signs(
    options: dict[str, Any], change: Change, keys: dict[str, Any], expected: tuple[str, ...]
) -> None:
    """A good SECRET_KEY is enough, and while the shop is developed what startproject made will do."""
    del options["secret_key"]
    change(**{**katalys_settings(options), **keys})

    assert get_tracker().settings.secret_key == expected


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"SECRET_KEY": ""}, "is missing; make one with: "),
        ({"SECRET_KEY": "dev"}, "has a key of 3 characters, at least 32 are needed; make one with: "),
        ({"SECRET_KEY": SECRET, "SECRET_KEY_FALLBACKS": ["dev"]}, "has a key of 3 characters, at least 32"),
        (
            {"SECRET_KEY": FROM_STARTPROJECT},
            "looks like a placeholder that anybody can read in a manual; make one with",
        ),
    ],
    ids=["none", "weak", "weak fallback", "of startproject, in production"],
)
def test_weak_django_key_names_both(
    options: dict[str, Any], change: Change, keys: dict[str, Any], problem: str
) -> None:
    """The reader has written SECRET_KEY, and may rather set KATALYS_SECRET_KEY."""
    del options["secret_key"]
    change(**{**katalys_settings(options), **keys})
    with pytest.raises(ConfigurationError) as caught:
        get_tracker()

    (about_key,) = caught.value.problems
    assert about_key.startswith(f"KATALYS_SECRET_KEY is not set, and Django's SECRET_KEY in its place {problem}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"KATALYS_SITE_ID": ""}, r"^KATALYS_SITE_ID is missing; "),
        ({"KATALYS_SIDE_ID": "KA-1"}, r"^KATALYS_SIDE_ID is an unknown setting; did you mean KATALYS_SITE_ID\?"),
        ({"KATALYS_HOOKS": "shop.hook"}, r"^KATALYS_HOOKS is a string; make it a list of functions or"),
        ({"KATALYS_HOOKS": [f"{__name__}.kep"]}, r"^KATALYS_HOOKS lists 'tests\.test_django\.kep', which cannot be"),
        ({"KATALYS_HOOKS": ["sohp.hook"]}, r"^KATALYS_HOOKS lists 'sohp\.hook', which cannot be imported; No module"),
    ],
    ids=["missing", "unknown", "hooks in one", "unknown hook", "unknown module of a hook"],
)
def test_problems_are_reported_when_the_server_starts(shop: Change, changes: dict[str, Any], message: str) -> None:
    """In Django's spelling."""
    shop(**changes)
    with pytest.raises(ConfigurationError, match=message):
        KatalysMiddleware(lambda _: HttpResponse())


EVENTS: list[Event] = []


def keep(event: Event) -> None:
    """A hook that settings can name."""
    EVENTS.append(event)


@pytest.mark.parametrize("hook", [keep, f"{__name__}.keep"], ids=["function", "dotted path"])
def test_hooks_are_called_with_every_event(shop: Change, hook: object) -> None:
    EVENTS.clear()
    shop(KATALYS_HOOKS=[hook])
    visit_of(lambda request: request.katalys.record(make_conversion()))

    assert names(EVENTS) == ["conversion_recorded"]


def test_overridden_settings_are_followed(shop: Change) -> None:
    """A test that overrides one gets a tracker of its own; other settings change nothing."""
    first = get_tracker()
    with override_settings(TIME_ZONE="UTC"):
        same = get_tracker()
    with override_settings(KATALYS_SITE_ID="KA-SECOND"), override_settings(KATALYS_WIRE="form"):
        second = get_tracker()

    assert same is first
    assert (second.settings.site_id, second.settings.wire) == ("KA-SECOND", "form")
    assert get_tracker().settings.site_id == SITE_ID


# --- development ---------------------------------------------------------------------------------------------


def start_test_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """What setup_test_environment() leaves, of Django's test runner and of pytest-django."""
    monkeypatch.setattr(mail, "outbox", [], raising=False)


@pytest.mark.parametrize(
    ("debug", "testing", "changes", "environ", "strict"),
    [
        (False, False, {}, {}, False),
        (True, False, {}, {}, True),
        (False, True, {}, {}, True),
        (True, False, {"KATALYS_STRICT": False}, {}, False),
        (False, True, {}, {"KATALYS_STRICT": "no"}, False),
        (False, False, {"KATALYS_STRICT": True}, {}, True),
    ],
    ids=["production", "debug", "test runner", "off by setting", "off by environ", "on by setting"],
)
def test_strictness(
    shop: Change,
    monkeypatch: pytest.MonkeyPatch,
    debug: bool,
    testing: bool,
    changes: dict[str, Any],
    environ: dict[str, str],
    strict: bool,
) -> None:
    """Every verb raises in development, so that an error shows there, and never in production."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    shop(DEBUG=debug, **changes)
    if testing:
        start_test_runner(monkeypatch)

    def view(request: Any) -> list[str]:
        visit = request.katalys
        lost = OrderUpdate("1001", order_status=cast(Any, "lost"))  # a status that Katalys does not know
        resumed = visit.resume(visit.token())
        calls: list[Callable[[], Record]] = [
            lambda: visit.record(make_conversion(sale_amount="a lot")),
            lambda: resumed.record(make_conversion(sale_amount="a lot")),
            lambda: visit.record_update(lost),
            lambda: visit.resume("nonsense").record(make_conversion()),
        ]
        return [_name_of(call) for call in calls]

    invalid = InvalidConversion.__name__
    assert visit_of(view) == (
        [invalid, invalid, invalid, InvalidToken.__name__] if strict else ["INVALID", "INVALID", "INVALID", "NO_CLICK"]
    )


def _name_of(call: Callable[[], Record]) -> str:
    try:
        return call().outcome.name
    except (InvalidConversion, InvalidToken) as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("debug", "testing", "live", "held"),
    [
        (False, False, "auto", None),
        (True, False, "auto", "Django's DEBUG"),
        (False, True, "auto", "Django's test runner"),
        (True, False, True, None),
    ],
    ids=["production", "debug", "test runner", "live all the same"],
)
def test_postbacks_are_held(
    shop: Change,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    debug: bool,
    testing: bool,
    live: Any,
    held: str | None,
) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # which holds them, too
    shop(KATALYS_ENDPOINT="https://katalys.test/", KATALYS_LIVE=live, DEBUG=debug)
    if testing:
        start_test_runner(monkeypatch)

    assert get_tracker().held == held


# --- transactions --------------------------------------------------------------------------------------------


def record(request: Any) -> Record:
    recorded: Record = request.katalys.record(make_conversion())
    return recorded


def resume(request: Any) -> Record:
    recorded: Record = request.katalys.resume(request.katalys.token()).record(make_conversion())
    return recorded


@pytest.mark.parametrize("verb", [record, resume], ids=["the visit", "a resumed one"])
def test_recorded_after_the_commit(shop: Change, verb: Callable[[Any], Record]) -> None:
    """While the transaction is open, nothing is written; after the commit it is."""

    def view(request: Any) -> tuple[Outcome, list[Any]]:
        with transaction.atomic():
            outcome = verb(request).outcome
            return outcome, rows(get_tracker())

    assert visit_of(view) == (Outcome.DEFERRED, [])
    assert rows(get_tracker()) == [("conversion", "pending")]


@pytest.mark.parametrize("verb", [record, resume], ids=["the visit", "a resumed one"])
@pytest.mark.parametrize("nested", [False, True], ids=["transaction", "savepoint"])
def test_nothing_is_recorded_after_a_rollback(shop: Change, verb: Callable[[Any], Record], nested: bool) -> None:
    """An order that the shop does not have is not reported."""

    def view(request: Any) -> None:
        with transaction.atomic():
            try:
                with transaction.atomic(savepoint=nested):
                    assert verb(request).outcome is Outcome.DEFERRED
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass

    visit_of(view)
    assert rows(get_tracker()) == []


@pytest.mark.parametrize("commits", [True, False], ids=["commit", "rollback"])
@pytest.mark.parametrize("through", ["the visit", "a resumed one"])
def test_refund_joins_too(shop: Change, commits: bool, through: str) -> None:
    def view(request: Any) -> Outcome:
        request.katalys.record(make_conversion())  # outside, so at once
        visit = request.katalys if through == "the visit" else request.katalys.resume(request.katalys.token())
        with transaction.atomic():
            recorded: Record = visit.record_update(OrderUpdate("1001", order_status="refunded"))
            transaction.set_rollback(not commits)
        return recorded.outcome

    assert visit_of(view) is Outcome.DEFERRED
    assert [kind for kind, _ in rows(get_tracker())] == ["conversion", *["update"][: int(commits)]]


def test_outside_of_a_transaction_it_is_recorded_at_once(shop: Change) -> None:
    """The visit was looked at within a transaction; what counts is the moment of the call."""

    def view(request: Any) -> Outcome:
        with transaction.atomic():
            assert request.katalys.click
        return record(request).outcome

    assert visit_of(view) is Outcome.RECORDED


def test_manual_transactions_do_not_raise(shop: Change) -> None:
    """There is no commit that Django would know of: the sale is written at once."""

    def view(request: Any) -> Outcome:
        transaction.set_autocommit(False)
        try:
            return record(request).outcome
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)

    assert visit_of(view) is Outcome.RECORDED


def test_other_database(shop: Change) -> None:
    """As the manual shows for orders in another database than the default."""

    def view(request: Any) -> Outcome:
        defer = partial(transaction.on_commit, using="default")
        return get_tracker().visit(request, defer=defer).record(make_conversion()).outcome

    assert visit_of(view) is Outcome.DEFERRED
    assert rows(get_tracker()) == [("conversion", "pending")]


# --- checks, command, template -------------------------------------------------------------------------------


def test_checks_say_what_is_missing(change: Change) -> None:
    """Warnings, with the next step as the hint."""
    warnings = run_checks(tags=["katalys"])

    assert [(warning.id, warning.msg) for warning in warnings] == [("katalys.W001", "KATALYS_SITE_ID is missing")]
    assert warnings[0].hint == "set it to the Tracking ID of Katalys' Integrations page, such as KA-1A2B3C4."
    assert not warnings[0].is_serious()


def test_checks_report_every_problem(shop: Change) -> None:
    shop(KATALYS_WIRE="pigeon", KATALYS_ENDPOINT="http://example.com/", SECRET_KEY="")
    warnings = run_checks(tags=["katalys"])

    assert [warning.id for warning in warnings] == ["katalys.W001"] * 2
    assert ("KATALYS_WIRE is 'pigeon'", "choose json or form or get.") in [(each.msg, each.hint) for each in warnings]


def test_checks_report_a_hook_that_is_not_there(shop: Change) -> None:
    shop(KATALYS_HOOKS=["sohp.hook"])

    assert [each.msg for each in run_checks(tags=["katalys"])] == [
        "KATALYS_HOOKS lists 'sohp.hook', which cannot be imported"
    ]


def test_checks_find_a_forgotten_middleware(shop: Change) -> None:
    shop(MIDDLEWARE=[])
    (warning,) = run_checks(tags=["katalys"])

    assert (warning.id, warning.hint) == (
        "katalys.W002", 'Put "katalys_wsgi.django.KatalysMiddleware" first in MIDDLEWARE.',
    )  # fmt: skip


def test_checks_are_silent_when_all_is_well_and_open_nothing(shop: Change, tmp_path: Path) -> None:
    assert run_checks(tags=["katalys"]) == []
    assert not (tmp_path / "outbox.db").exists()


def test_the_command_can_be_called(shop: Change) -> None:
    """From other commands and tests; what it prints goes where the caller says."""
    visit_of(lambda request: request.katalys.record(make_conversion()))
    out, err = StringIO(), StringIO()
    call_command("katalys", "status", "--json", stdout=out)
    with pytest.raises(SystemExit) as caught:
        call_command("katalys", "why", "unknown", stdout=out, stderr=err)

    assert '"pending": 1' in out.getvalue()
    assert caught.value.code == 1


def test_script_tag_in_a_template(shop: Change) -> None:
    """Django does not escape it."""
    template = Template("{% load katalys %}{% katalys_script_tag %} {% katalys_script_tag nonce='r4nd0m' %}")

    tracker = get_tracker()
    assert template.render(Context()) == f"{tracker.script_tag()} {tracker.script_tag('r4nd0m')}"


# --- a whole project -----------------------------------------------------------------------------------------

PROJECT = {
    "manage.py": """
        import os, sys
        from django.core.management import execute_from_command_line
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
        execute_from_command_line(sys.argv)
        """,
    "shop/__init__.py": "",
    "shop/settings.py": f"""
        SECRET_KEY = "{FROM_STARTPROJECT}"
        DEBUG = True
        ALLOWED_HOSTS = ["localhost"]
        INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "katalys_wsgi.django"]
        MIDDLEWARE = ["katalys_wsgi.django.KatalysMiddleware", "django.middleware.common.CommonMiddleware"]
        ROOT_URLCONF = "shop.urls"
        WSGI_APPLICATION = "shop.wsgi.application"
        DATABASES = {{
            "default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3", "ATOMIC_REQUESTS": True}}
        }}
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        """,
    "shop/wsgi.py": """
        import os
        from django.core.wsgi import get_wsgi_application
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
        application = get_wsgi_application()
        """,
    "shop/urls.py": """
        from decimal import Decimal
        from django.http import HttpResponse
        from django.urls import path
        from katalys_wsgi import Conversion

        def checkout(request):
            record = request.katalys.record(Conversion(
                order_id="1001", email_address="ann@example.com",
                sale_amount=Decimal("59.90"), subtotal_amount=Decimal("50.00"),
            ))
            return HttpResponse(record.outcome.name)

        urlpatterns = [path("", lambda request: HttpResponse("Welcome")), path("checkout", checkout)]
        """,
    "shop/tests.py": f"""
        from django.test import TestCase
        from katalys_wsgi.django import get_tracker

        class Checkout(TestCase):
            def test_sale(self):
                self.client.get("/?{LINK}")
                with self.captureOnCommitCallbacks(execute=True):
                    answer = self.client.get("/checkout")
                self.assertEqual(answer.content, b"DEFERRED")
                self.assertEqual(get_tracker().held, "Django's test runner")
                self.assertEqual(len(get_tracker().outbox.history("1001")), 1)
        """,
    "serve.py": f"""
        from shop.wsgi import application
        from webtest import TestApp
        shopper = TestApp(application, lint=True, extra_environ={{"REMOTE_ADDR": "{BUYER_IP}"}})
        shopper.get("/?{LINK}")
        print(shopper.get("/checkout").text)
        """,
}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project as startproject makes it, with the adapter in its settings."""
    folder = tmp_path / "project"
    (folder / "shop").mkdir(parents=True)
    for name, text in PROJECT.items():
        (folder / name).write_text(dedent(text).lstrip())
    return folder


@pytest.fixture
def run(project: Path) -> Run:
    """Runs a script of the project in a process of its own, with ``KATALYS_`` settings by their plain name."""

    def run_it(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        hidden = ("KATALYS_", "DJANGO_", "PYTEST_")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        environ.update({f"KATALYS_{name.upper()}": value for name, value in settings.items()})
        return subprocess.run(
            [sys.executable, *words], cwd=project, env=environ, capture_output=True, text=True, check=False, timeout=50
        )

    return run_it


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check"], "(katalys.W001) KATALYS_SITE_ID is missing\n\tHINT: set it to the Tracking ID of"),
        (["migrate"], "Applying auth."),
        (["katalys", "--help"], "manage.py katalys"),
        (["katalys"], "manage.py katalys"),
    ],
    ids=["check", "migrate", "help", "nothing"],
)
def test_a_project_without_settings_can_be_built(run: Run, project: Path, words: list[str], says: str) -> None:
    """Where an image is made there is no secret, and nothing is left there."""
    done = run("manage.py", *words)

    assert done.returncode == (2 if words == ["katalys"] else 0), done.stderr
    assert says in done.stdout + done.stderr
    assert [path.name for path in project.iterdir() if "outbox" in path.name] == []


def test_the_command_without_settings_says_what_is_missing(run: Run) -> None:
    done = run("manage.py", "katalys", "status")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("KATALYS_SITE_ID is missing; set it to the Tracking ID")


def test_a_served_project(run: Run, project: Path, sandbox: Any) -> None:
    """Its wsgi.py sells, within ATOMIC_REQUESTS; the operator asks and delivers with manage.py."""
    settings = {"site_id": SITE_ID, "endpoint": sandbox.endpoint, "delivery": "external"}
    sold = run("serve.py", **settings)
    status = run("manage.py", "katalys", "status", "--settings=shop.settings", "--json", **settings)
    delivered = run("manage.py", "katalys", "deliver", "--once", **settings)

    assert sold.stdout == "DEFERRED\n", sold.stderr
    assert '"pending": 1' in status.stdout, status.stderr
    assert delivered.returncode == 0, delivered.stderr
    assert [received.fields["order_id"] for received in sandbox.collector.accepted] == ["1001"]
    assert (project / "katalys-outbox.db").exists()


def test_a_tested_project(run: Run, project: Path) -> None:
    """Under ``manage.py test`` nothing leaves the machine, and no file appears."""
    done = run("manage.py", "test", site_id=SITE_ID)

    assert done.returncode == 0, done.stderr
    assert "OK" in done.stderr
    assert [path.name for path in project.iterdir() if "outbox" in path.name] == []
