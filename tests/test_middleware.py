"""The middleware: one header on the answers that need it, and nothing else of any answer changed.

The traps are other libraries' bugs, each named by what must happen instead.
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webtest import TestApp, lint

from katalys_wsgi import Click, ClickMiddleware, Outcome, Tracker
from katalys_wsgi.attribution.cookie import ClickCookie

from .support import (
    BUYER_AGENT,
    BUYER_IP,
    LINK,
    OLD_SECRET,
    SECRET,
    SITE_ID,
    Clock,
    cookie_of,
    make_conversion,
    make_environ,
)  # fmt: skip

Headers = list[tuple[str, str]]
Application = Callable[[dict[str, Any], Any], Iterable[bytes]]

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
OTHER_LINK = "utm_source=Katalys&transaction_id=another&offer_id=1&publisher_id=2"
GATEWAY_RETURN = "status=successful&tx_ref=hooli-123&transaction_id=3500588"

PLAIN: Headers = [("Content-Type", "text/plain")]


class Untouchable:
    """Fails the test that calls it: no click is a reason to write anything."""

    def touched(self, *_arguments: Any) -> Any:
        raise AssertionError  # pragma: no cover

    add = history = claim = apply = prune = close = touched


def make_tracker(**changes: Any) -> Tracker:
    options = {"site_id": SITE_ID, "secret_key": SECRET, "outbox": Untouchable(), "clock": Clock(NOW.timestamp())}
    return Tracker(**{**options, "delivery": "external", **changes})


def page(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """A page of the shop."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok" if environ["REQUEST_METHOD"] != "HEAD" else b""]


class Answer:
    """What a server got from an application: every call of start_response, and the iterable."""

    def __init__(self, application: Application, environ: dict[str, Any]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.written: list[bytes] = []
        self.iterable = application(environ, self._start_response)

    def _start_response(self, *arguments: Any) -> Callable[[bytes], object]:
        self.calls.append(arguments)
        return self.written.append

    @property
    def headers(self) -> Headers:
        headers: Headers = self.calls[-1][1]
        return headers

    @property
    def cookie(self) -> str | None:
        return cookie_of(self.headers)


def get(application: Application, query: str = "", **changes: Any) -> Answer:
    """The answer to a browser's request."""
    return Answer(application, make_environ(query, **changes))


def stored_cookie(link: str = LINK, *, at: datetime = NOW, key: str = SECRET) -> str:
    """The Cookie header of a shopper who came through ``link``."""
    click = Click.from_query(link, now=at, sources=("katalys",))
    assert click is not None
    return "katalys_click=" + ClickCookie([key], site_id=SITE_ID, window=timedelta(days=30)).dumps(click)


class Shop:
    """A page behind the middleware, which notes the click that its view saw."""

    def __init__(self, **changes: Any) -> None:
        self.clock = Clock(NOW.timestamp())
        self.tracker = make_tracker(**{"clock": self.clock, **changes})
        self.middleware = ClickMiddleware(self._page, self.tracker)
        self.seen: list[Click | None] = []

    def _page(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.seen.append(self.tracker.visit(environ).click)
        return page(environ, start_response)

    def get(self, query: str = "", **changes: Any) -> Answer:
        return get(self.middleware, query, **changes)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def wrapped(application: Application) -> ClickMiddleware:
    return ClickMiddleware(application, make_tracker())


def transaction_of(click: Click | None) -> str | None:
    return None if click is None else click.transaction_id


# --- the job ---


def test_the_middleware_shows_its_tracker_and_keeps_it(tracker: Tracker) -> None:
    """The command line asks for it; who wants another one makes another middleware."""
    middleware = ClickMiddleware(lambda *_: [], tracker)

    assert middleware.tracker is tracker
    with pytest.raises(AttributeError):
        middleware.tracker = tracker  # type: ignore[misc]


def test_a_landing_request_sets_the_cookie(shop: Shop) -> None:
    answer = shop.get(LINK)

    assert answer.cookie == stored_cookie()


def test_the_click_is_visible_to_the_view_in_the_same_request(shop: Shop) -> None:
    """A landing page that is the checkout itself."""
    shop.get(LINK)

    assert shop.seen == [Click("1234abcd", "1234", "5678", NOW)]


def test_the_click_is_visible_to_every_later_request(shop: Shop) -> None:
    cookie = shop.get(LINK).cookie

    shop.get(cookie=cookie)

    assert shop.seen == [Click("1234abcd", "1234", "5678", NOW)] * 2


def test_the_view_sees_the_click_without_the_middleware_too() -> None:
    visit = make_tracker().visit(make_environ(LINK))

    assert visit.click == Click("1234abcd", "1234", "5678", NOW)
    assert (visit.client_ip, visit.user_agent) == (BUYER_IP, BUYER_AGENT)


@pytest.mark.parametrize("status", ["200 OK", "302 Found", "404 Not Found", "410 Gone", "500 Internal Server Error"])
def test_a_click_counts_whatever_page_it_lands_on(status: str) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, [*PLAIN, ("Location", "/elsewhere")])
        return [b""]

    answer = get(wrapped(application), LINK)

    assert answer.calls[0][0] == status
    assert answer.cookie == stored_cookie()


# --- the application's iterable ---


class Body:
    """An iterable of an application's own, that only the server may touch."""

    def __init__(self) -> None:
        self.touched = False

    def __iter__(self) -> Iterator[bytes]:
        self.touched = True  # pragma: no cover - as in the other two
        return iter([b"ok"])  # pragma: no cover

    def __len__(self) -> int:
        self.touched = True  # pragma: no cover
        return 1  # pragma: no cover

    def close(self) -> None:
        self.touched = True  # pragma: no cover


@pytest.mark.parametrize(
    "iterable",
    [
        pytest.param([b"ok"], id="list"),
        pytest.param((b"o", b"k"), id="tuple"),
        pytest.param((part for part in [b"ok"]), id="generator"),
        pytest.param(FileWrapper(io.BytesIO(b"ok")), id="file-wrapper"),
        pytest.param(io.BytesIO(b"ok"), id="file"),
        pytest.param(Body(), id="object"),
        pytest.param([], id="empty"),
    ],
)
@pytest.mark.parametrize("query", ["", LINK], ids=["browse", "landing"])
def test_the_iterable_is_the_applications_own(query: str, iterable: Iterable[bytes]) -> None:
    """A wrapper around it breaks close(), len(), sendfile and streaming (Werkzeug #1259, WebOb #74, sentry #5556)."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", list(PLAIN))
        return iterable

    assert get(wrapped(application), query).iterable is iterable


@pytest.mark.parametrize("query", ["", LINK], ids=["browse", "landing"])
def test_iterating_and_closing_are_left_to_the_server(query: str) -> None:
    """Streaming stays streaming, and close() is called once."""
    body = Body()

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", list(PLAIN))
        return body

    get(wrapped(application), query)

    assert not body.touched


def test_the_body_is_never_read(shop: Shop) -> None:
    """Parameters come from the query alone (rack-affiliates read the POST body, and the shop found it empty)."""
    form = {"wsgi.input": Untouchable(), "CONTENT_TYPE": "application/x-www-form-urlencoded", "CONTENT_LENGTH": "80"}

    answer = shop.get(LINK, REQUEST_METHOD="POST", HTTP_REFERER="http://127.0.0.1/?" + GATEWAY_RETURN, **form)

    assert answer.cookie is None


# --- the application's headers ---


def test_a_header_list_that_the_application_keeps_is_not_changed() -> None:
    """A list at module level would hand the first buyer's cookie to everyone after."""
    kept: Headers = [("Content-Type", "text/plain"), ("Cache-Control", "public"), ("Surrogate-Control", "max-age=60")]
    before = list(kept)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", kept)
        return [b"ok"]

    shop = wrapped(application)
    first, browse, second = get(shop, LINK), get(shop), get(shop, OTHER_LINK)

    assert kept == before
    assert browse.headers is kept
    assert first.cookie == stored_cookie(LINK)
    assert second.cookie == stored_cookie(OTHER_LINK)


def test_a_cookie_of_the_application_stays() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [*PLAIN, ("Set-Cookie", "session=1"), ("Set-Cookie", "cart=2; Path=/")])
        return [b"ok"]

    answer = get(wrapped(application), LINK)

    assert [value.partition(";")[0] for name, value in answer.headers if name == "Set-Cookie"] == [
        "session=1", "cart=2", stored_cookie(),
    ]  # fmt: skip


def test_the_order_and_the_spelling_of_other_headers_stay() -> None:
    headers = [("x-b", "2"), ("X-A", "1"), ("Vary", "Accept-Encoding"), ("X-A", "0"), ("CONTENT-TYPE", "text/plain")]

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [b"ok"]

    assert get(wrapped(application), LINK).headers[: len(headers)] == headers


# --- start_response ---


def test_start_response_may_be_called_late() -> None:
    """A generator starts when the server takes its first part, long after the middleware returned."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ.clear()  # and the environ may be in use for another request by then
        start_response("200 OK", list(PLAIN))
        yield b"ok"

    answer = get(wrapped(application), LINK)
    before = list(answer.calls)
    body = b"".join(answer.iterable)

    assert before == []
    assert body == b"ok"
    assert answer.cookie == stored_cookie()


def test_start_response_may_be_called_twice_with_exc_info() -> None:
    """An error page replaces the page that was started. Each call has the cookie; the server gets the very exc_info."""
    given: list[Any] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", list(PLAIN))
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            given.append(sys.exc_info())
            start_response("500 Internal Server Error", [("X-Error", "1")], given[0])
        return [b"sorry"]

    answer = get(wrapped(application), LINK)

    assert [call[0] for call in answer.calls] == ["200 OK", "500 Internal Server Error"]
    assert [cookie_of(call[1]) for call in answer.calls] == [stored_cookie()] * 2
    assert answer.calls[1][2] is given[0]


def test_exc_info_is_passed_only_when_given() -> None:
    """Some servers take None there for a second call."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", list(PLAIN))
        return [b"ok"]

    assert len(get(wrapped(application), LINK).calls[0]) == 2


def test_an_application_that_names_exc_info_is_served_as_by_the_server_itself() -> None:
    """PEP 3333 asks for positions, every server takes the name as well: a landing must not be the one that fails."""
    named: list[Any] = []

    def server(status: str, headers: Headers, exc_info: Any = None) -> Any:
        named.append(exc_info)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("500 Internal Server Error", list(PLAIN), exc_info=(ValueError, ValueError(), None))
        return [b"sorry"]

    wrapped(application)(make_environ(LINK), server)

    assert named[0][0] is ValueError


def test_start_response_may_never_be_called() -> None:
    """Websocket servers take the connection over and answer nothing."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return []

    answer = get(wrapped(application), LINK)

    assert answer.calls == []
    assert answer.iterable == []


def test_the_servers_write_is_handed_through() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", list(PLAIN))(b"written")
        return []

    assert get(wrapped(application), LINK).written == [b"written"]


@pytest.mark.parametrize("query", ["", LINK], ids=["browse", "landing"])
def test_what_the_application_raises_is_raised(query: str) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        get(wrapped(application), query)


def test_what_start_response_raises_is_raised() -> None:
    """With headers already sent, the server raises exc_info again."""

    def server(status: str, headers: Headers, exc_info: Any = None) -> Any:
        raise exc_info[1]

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("500 Internal Server Error", list(PLAIN), (ZeroDivisionError, ZeroDivisionError(), None))
        return [b""]  # pragma: no cover

    with pytest.raises(ZeroDivisionError):
        wrapped(application)(make_environ(LINK), server)


# --- the protocol, checked by two linters on both sides ---

REQUESTS = [
    pytest.param("GET", "", {}, id="browse"),
    pytest.param("GET", LINK, {}, id="landing"),
    pytest.param("HEAD", LINK, {}, id="head"),
    pytest.param("POST", LINK, {}, id="post"),
    pytest.param("GET", "", {"HTTP_COOKIE": stored_cookie()}, id="with-cookie"),
    pytest.param("GET", "", {"HTTP_REFERER": "http://127.0.0.1/?" + LINK}, id="referer"),
    pytest.param("GET", "a=%FA&_id=\xfa", {"HTTP_COOKIE": "katalys_click=\xff"}, id="strangers-bytes"),
]


@pytest.mark.parametrize(("method", "query", "changes"), REQUESTS)
def test_webtest_lint_finds_nothing_on_either_side(method: str, query: str, changes: dict[str, str]) -> None:
    shop = TestApp(ClickMiddleware(lint.middleware(page), make_tracker()), lint=True)

    answer = shop.request("/?" + query, method=method, headers=None, environ=changes)

    assert answer.status == "200 OK"


@pytest.mark.parametrize(("method", "query", "changes"), REQUESTS)
def test_wsgiref_validate_finds_nothing_on_either_side(method: str, query: str, changes: dict[str, str]) -> None:
    application = validator(ClickMiddleware(validator(page), make_tracker()))

    def server(status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
        assert status == "200 OK"
        return lambda _data: None

    iterable = application(make_environ(query, REQUEST_METHOD=method, **changes), server)
    body = b"".join(iterable)
    iterable.close()  # type: ignore[attr-defined]

    assert body == (b"" if method == "HEAD" else b"ok")


# --- hot path ---


@pytest.mark.parametrize(
    ("query", "changes"),
    [
        pytest.param("", {}, id="nothing"),
        pytest.param("page=2&sort=price", {}, id="other-parameters"),
        pytest.param("product_id=7", {}, id="an-id-that-is-no-click"),
        pytest.param(GATEWAY_RETURN, {}, id="gateway-return"),
        pytest.param("", {"HTTP_COOKIE": stored_cookie()}, id="our-cookie"),
        pytest.param(LINK, {"HTTP_COOKIE": stored_cookie()}, id="the-same-click-again"),
        pytest.param("", {"HTTP_REFERER": "http://127.0.0.1/product?product_id=7"}, id="referer"),
        pytest.param(LINK, {"REQUEST_METHOD": "POST"}, id="post"),
    ],
)
def test_a_request_without_a_new_click_is_handed_on_as_it_is(query: str, changes: dict[str, str]) -> None:
    """The application is called with the server's own start_response: nothing of its answer can differ."""
    called_with: list[Any] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        called_with.extend((environ, start_response))
        return []

    environ, server = make_environ(query, **changes), object()

    wrapped(application)(environ, server)  # type: ignore[arg-type]

    assert called_with[0] is environ
    assert called_with[1] is server


@pytest.mark.parametrize(
    "link",
    [
        pytest.param(LINK.replace("_", "%5F"), id="underscore"),
        pytest.param(LINK.replace("_i", "_%69"), id="letter"),
        pytest.param(LINK.replace("id=", "i%64="), id="last-letter"),
    ],
)
@pytest.mark.parametrize("by", ["link", "referer"])
def test_a_link_whose_names_are_percent_encoded_sets_the_cookie(shop: Shop, by: str, link: str) -> None:
    answer = shop.get(link) if by == "link" else shop.get(HTTP_REFERER="http://127.0.0.1/?" + link)

    assert answer.cookie == stored_cookie()


def test_an_environ_without_query_and_headers_is_served() -> None:
    """PEP 3333 lets a server leave QUERY_STRING out."""
    answer = Answer(wrapped(page), {"REQUEST_METHOD": "GET"})

    assert answer.calls[0][0] == "200 OK"


# --- a stranger's bytes ---

_header = st.text(alphabet=st.characters(exclude_categories=()), max_size=60) | st.sampled_from(
    [LINK, OTHER_LINK, "katalys_click=x", "http://[", "http://127.0.0.1/?" + LINK, "//\u2100/?_id=1", "document",
     "a=%FA&_id=", "\udcff_id=", ",", "https", stored_cookie(), "127.0.0.1:x", "[::1", "GET"]
)  # fmt: skip
_NAMES = [
    "QUERY_STRING", "HTTP_COOKIE", "HTTP_REFERER", "HTTP_HOST", "HTTP_SEC_FETCH_DEST", "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_PROTO", "HTTP_USER_AGENT", "REMOTE_ADDR", "REQUEST_METHOD",
]  # fmt: skip


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(_NAMES, _header)), st.integers(0, 2))
def test_no_request_whatever_changes_the_page(changes: dict[str, str], proxies: int) -> None:
    """Whatever a stranger sends: the page is served, the view gets its visit, and its token can be read again."""
    tracker = make_tracker(trusted_proxies=proxies)
    visits = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        visits.append(tracker.visit(environ))
        start_response("200 OK", list(PLAIN))
        return [b"ok"]

    answer = Answer(ClickMiddleware(application, tracker), make_environ(**{"query": "", **changes}))

    assert answer.calls[0][0] == "200 OK"
    assert answer.iterable == [b"ok"]
    assert answer.headers[:1] == PLAIN
    assert tracker.resume(visits[0].token()).click == visits[0].click


# --- caches ---


@pytest.mark.parametrize(
    ("headers", "cache_control"),
    [
        pytest.param([], "private", id="nothing-said"),
        pytest.param([("Cache-Control", "public, max-age=600")], "private, max-age=600", id="public"),
        pytest.param([("Cache-Control", "s-maxage=3600, max-age=60")], "private, max-age=60", id="s-maxage"),
        pytest.param([("Cache-Control", "PUBLIC,S-MaxAge=3600")], "private", id="upper-case"),
        pytest.param([("cache-control", " public , must-revalidate ")], "private, must-revalidate", id="spaces"),
        pytest.param([("Cache-Control", "no-store")], "private, no-store", id="no-store"),
        pytest.param([("Cache-Control", "no-cache, no-store")], "private, no-cache, no-store", id="no-cache"),
        pytest.param([("Cache-Control", "private, max-age=0")], "private, max-age=0", id="private"),
        pytest.param([("Cache-Control", "")], "private", id="empty"),
        pytest.param([("Cache-Control", ", ,")], "private", id="commas"),
        pytest.param(
            [("Cache-Control", "public"), ("X-A", "1"), ("Cache-Control", "max-age=5")], "private, max-age=5", id="two",
        ),
        pytest.param(
            [("Cache-Control", 'no-cache="Set-Cookie, X-A", public')], 'private, no-cache="Set-Cookie, X-A"',
            id="comma-in-quotes",
        ),
        pytest.param([("Cache-Control", 'private="X-A, X-B", max-age=5')], "private, max-age=5", id="private-in-part"),
        pytest.param([("Cache-Control", 'ext="a\\", public", public')], 'private, ext="a\\", public"', id="escape"),
        pytest.param([("Cache-Control", 'public, ext="unclosed, s-maxage=1')], 'private, ext="unclosed, s-maxage=1',
                     id="unclosed-quote"),
        pytest.param([("Cache-Control", "publicity, max-age=1")], "private, publicity, max-age=1", id="longer-word"),
        pytest.param([("Surrogate-Control", "max-age=3600")], "private", id="surrogate"),
        pytest.param([("CDN-Cache-Control", "max-age=3600")], "private", id="cdn"),
        pytest.param([("Cloudflare-CDN-Cache-Control", "max-age=3600")], "private", id="cloudflare"),
        *(
            pytest.param([(name, "max-age=3600")], "private", id=name)
            for name in (
                "Vercel-CDN-Cache-Control", "netlify-cdn-cache-control", "Edge-Control", "X-LiteSpeed-Cache-Control",
                "X-Accel-Expires", "x-accel-expires",
            )
        ),
        pytest.param(
            [("surrogate-control", "x"), ("cdn-cache-control", "x"), ("CLOUDFLARE-CDN-CACHE-CONTROL", "x"),
             ("Cache-Control", "public, stale-while-revalidate=60")],
            "private, stale-while-revalidate=60", id="all-of-them",
        ),
    ],
)  # fmt: skip
def test_no_shared_cache_may_keep_a_page_with_the_cookie(headers: Headers, cache_control: str) -> None:
    """It would credit a whole shop to one affiliate; Set-Cookie alone stops no cache (RFC 9111 §7.3)."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [*PLAIN, *headers])
        return [b"ok"]

    answer = get(wrapped(application), LINK)

    assert {name.lower(): value for name, value in answer.headers if name not in ("X-A", "Set-Cookie")} == {
        "content-type": "text/plain", "cache-control": cache_control, "x-accel-expires": "0",
    }  # fmt: skip
    assert [name for name, _ in answer.headers].count("Cache-Control") == 1
    assert [value for name, value in answer.headers if name.lower() == "x-accel-expires"] == ["0"]


def test_a_page_without_the_cookie_stays_cacheable() -> None:
    """A cookie sent with every answer would make every page uncacheable (starlette #828)."""
    headers = [*PLAIN, ("Cache-Control", "public, s-maxage=3600"), ("Surrogate-Control", "max-age=3600")]

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [b"ok"]

    shop = wrapped(application)

    assert get(shop).headers is headers
    assert get(shop, cookie=stored_cookie()).headers is headers
    assert get(shop, LINK, cookie=stored_cookie()).headers is headers


def test_vary_is_left_alone(shop: Shop) -> None:
    """Vary: Cookie would empty the cache for everyone with any cookie."""
    assert [value for name, value in shop.get(LINK).headers if name.lower() == "vary"] == []


# --- several middlewares, many shoppers ---


def test_wrapped_twice_it_sets_one_cookie(shop: Shop) -> None:
    """Once by the framework's extension, and once more in wsgi.py."""
    answer = get(ClickMiddleware(shop.middleware, shop.tracker), LINK)

    assert [name for name, _ in answer.headers].count("Set-Cookie") == 1
    assert answer.cookie == stored_cookie()


def test_two_middlewares_of_two_trackers_set_one_cookie() -> None:
    inner, outer = Shop(), Shop()

    answer = get(ClickMiddleware(inner.middleware, outer.tracker), LINK)

    assert [name for name, _ in answer.headers].count("Set-Cookie") == 1


def test_two_shops_with_two_cookies_may_share_a_process() -> None:
    inner, outer = Shop(cookie_name="inner"), Shop()

    answer = get(ClickMiddleware(inner.middleware, outer.tracker), LINK)

    names = [value.partition("=")[0] for name, value in answer.headers if name == "Set-Cookie"]
    assert sorted(names) == ["inner", "katalys_click"]


def test_nothing_on_the_middleware_changes_with_a_request() -> None:
    """It is shared by every thread of the server."""
    middleware = wrapped(page)
    before = dict(vars(middleware))

    for query in ("", LINK, OTHER_LINK):
        get(middleware, query)

    assert vars(middleware) == before


def test_many_shoppers_at_once_get_their_own_cookies(shop: Shop) -> None:
    """Answers that are sent in any order do not mix."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", list(PLAIN))
        yield b"ok"

    middleware = ClickMiddleware(application, shop.tracker)
    links = [f"utm_source=katalys&transaction_id=t{number}" for number in range(6)]
    answers = [get(middleware, link) for link in links]
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 719):
        for number in order:
            list(answers[number].iterable)

    assert [answer.cookie for answer in answers] == [stored_cookie(link) for link in links]


# --- through the tracker ---


@pytest.mark.parametrize(
    ("changes", "query", "request_changes", "sets_it"),
    [
        pytest.param({}, OTHER_LINK, {"cookie": stored_cookie()}, True, id="last-click"),
        pytest.param({"attribution": "first-click"}, OTHER_LINK, {"cookie": stored_cookie()}, False, id="first-click"),
        pytest.param(
            {"attribution": "first-click", "attribution_window": 60},
            OTHER_LINK, {"cookie": stored_cookie(at=NOW - timedelta(seconds=61))}, True, id="attribution-window",
        ),
        pytest.param({"sources": ["partner"]}, LINK, {}, False, id="another-source"),
        pytest.param({"sources": ["partner"]}, LINK.replace("Katalys", "Partner"), {}, True, id="own-source"),
        pytest.param({"consent": lambda _environ: False}, LINK, {}, False, id="without-consent"),
        pytest.param({"consent": lambda _environ: True}, LINK, {}, True, id="with-consent"),
        pytest.param(
            {"secret_key": [OLD_SECRET, SECRET]}, LINK, {"cookie": stored_cookie(key=OLD_SECRET)}, False,
            id="rotated-key",
        ),
        pytest.param({}, LINK, {"cookie": stored_cookie(key=OLD_SECRET)}, True, id="unknown-key"),
    ],
)  # fmt: skip
def test_the_settings_decide_what_sets_the_cookie(
    changes: dict[str, Any], query: str, request_changes: dict[str, Any], sets_it: bool
) -> None:
    assert (Shop(**changes).get(query, **request_changes).cookie is not None) is sets_it


@pytest.mark.parametrize(
    ("changes", "secure"), [({}, False), ({"trusted_proxies": 1}, True), ({"cookie_secure": True}, True)]
)
def test_the_settings_decide_whether_the_cookie_is_secure(changes: dict[str, Any], secure: bool) -> None:
    answer = Shop(**changes).get(LINK, HTTP_X_FORWARDED_PROTO="https")

    (text,) = (value for name, value in answer.headers if name == "Set-Cookie")
    assert ("secure" in text.split("; ")) is secure


def test_an_unreadable_cookie_and_a_broken_banner_reach_the_hooks() -> None:
    def broken(environ: dict[str, Any]) -> bool:
        raise ZeroDivisionError

    events: list[str] = []
    shop = Shop(consent=broken, hooks=[lambda event: events.append(event.name)])

    answer = shop.get(LINK, cookie="katalys_click=garbage")

    assert answer.calls[0][0] == "200 OK"
    assert events == ["tracker_started", *["cookie_unreadable", "consent_failed"] * 2]  # the cookie, and the view


def test_the_settings_name_and_place_the_cookie() -> None:
    shop = Shop(cookie_name="__Secure-affiliate", cookie_domain="Example.com", cookie_secure=True,
                attribution_window=3600)  # fmt: skip

    (text,) = (value for name, value in shop.get(LINK).headers if name == "Set-Cookie")
    name_and_value, *attributes = text.split("; ")
    shop.get(cookie=name_and_value)

    assert name_and_value.startswith("__Secure-affiliate=")
    assert attributes == ["Domain=example.com", "Path=/", "secure", "HttpOnly", "SameSite=Lax", "Max-Age=3600"]
    assert [transaction_of(click) for click in shop.seen] == ["1234abcd", "1234abcd"]


def test_a_sale_without_consent_is_not_recorded() -> None:
    tracker = make_tracker(consent=lambda _environ: False)

    record = tracker.visit(make_environ(cookie=stored_cookie())).record(make_conversion())

    assert (record.outcome, record.key) == (Outcome.NO_CONSENT, None)


@pytest.mark.parametrize(
    ("proxies", "address"), [(0, BUYER_IP), (1, "198.51.100.2"), (2, "192.0.2.66"), (3, "6.6.6.6"), (4, None)]
)
def test_the_address_is_never_the_visitors_own_invention(proxies: int, address: str | None) -> None:
    """The left-most X-Forwarded-For entry is whatever the visitor wrote there."""
    environ = make_environ(HTTP_X_FORWARDED_FOR="6.6.6.6, 192.0.2.66, 198.51.100.2")

    assert make_tracker(trusted_proxies=proxies).visit(environ).client_ip == address


def test_a_visits_token_brings_the_click_back_where_the_cookie_is_absent(shop: Shop) -> None:
    """A payment gateway's webhook, or its cross-site POST return, comes without a Lax cookie."""
    token = shop.tracker.visit(make_environ(cookie=stored_cookie())).token()
    shop.clock.advance(timedelta(days=60))

    webhook = shop.tracker.visit(make_environ(REQUEST_METHOD="POST", REMOTE_ADDR="198.51.100.99"))
    resumed = shop.tracker.resume(token)

    assert webhook.click is None
    assert resumed.click == Click("1234abcd", "1234", "5678", NOW)
    assert (resumed.client_ip, resumed.user_agent) == (BUYER_IP, BUYER_AGENT)


class WithEnviron:
    """A request of Flask, WebOb, Pyramid or Bottle."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.environ = environ


class WithMeta:
    """A request of Django."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.META = environ


@pytest.mark.parametrize("request_of", [dict, WithEnviron, WithMeta], ids=["environ", ".environ", ".META"])
def test_a_visit_takes_any_frameworks_request(request_of: Callable[[dict[str, Any]], Any]) -> None:
    visit = make_tracker().visit(request_of(make_environ(LINK)))

    assert transaction_of(visit.click) == "1234abcd"


def test_anything_else_is_refused_with_what_to_give() -> None:
    """That is a mistake in the shop's code, not a visitor's bytes."""
    with pytest.raises(TypeError, match=r"str .*; give the WSGI environ, or an object with \.environ or"):
        make_tracker().visit("GET /")
