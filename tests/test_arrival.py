"""The arrival: which requests bring a click, which answers set the cookie, and what a refusal hides.

The traps are other libraries' bugs, each named by what must happen instead.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from katalys_wsgi import Click
from katalys_wsgi.attribution.arrival import Arrival, ArrivalReader
from katalys_wsgi.attribution.cookie import ClickCookie
from katalys_wsgi.events import Events

from .support import BUYER_AGENT, BUYER_IP, LINK, OLD_SECRET, SECRET, SITE_ID, Clock, make_environ

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
DIRECT_LINK = "utm_source=Katalys&offer_id=1234&publisher_id=5678"
OTHER_LINK = "utm_source=Katalys&transaction_id=another&offer_id=1&publisher_id=2"
GATEWAY_RETURN = "status=successful&tx_ref=hooli-123&transaction_id=3500588"


class Answer:
    """What the reader says about a request: the Set-Cookie value of its answer, and the click that the view sees."""

    def __init__(self, reader: ArrivalReader, environ: dict[str, Any]) -> None:
        self.set_cookie = reader.set_cookie_for(environ)
        self.arrival = reader.arrival(environ)

    @property
    def cookie(self) -> str | None:
        """The ``name=value`` that is set, ready to be a Cookie header."""
        return self.set_cookie and self.set_cookie.partition(";")[0]


class Shop:
    """A shop whose middleware asks for the cookie and whose view asks for the click."""

    def __init__(
        self, *, keys: tuple[str, ...] = (SECRET,), window: timedelta = timedelta(days=30), **rules: Any
    ) -> None:
        self.clock = Clock(NOW.timestamp())
        options = {"clock": self.clock, "events": Events(), "sources": ("katalys", "revoffers"), **rules}
        self.reader = ArrivalReader(ClickCookie(keys, site_id=SITE_ID, window=window), **options)
        self.seen: list[Click | None] = []

    def get(self, query: str = "", **changes: Any) -> Answer:
        """The answer to a browser's request."""
        return self.answer(make_environ(query, **changes))

    def answer(self, environ: dict[str, Any]) -> Answer:
        answer = Answer(self.reader, environ)
        self.seen.append(answer.arrival.click)
        return answer


@pytest.fixture
def shop() -> Shop:
    return Shop()


def stored_cookie(link: str = LINK, *, at: datetime = NOW, key: str = SECRET) -> str:
    """The Cookie header of a shopper who came through ``link``."""
    click = Click.from_query(link, now=at, sources=("katalys",))
    assert click is not None
    return "katalys_click=" + ClickCookie([key], site_id=SITE_ID, window=timedelta(days=30)).dumps(click)


def transaction_of(click: Click | None) -> str | None:
    return None if click is None else click.transaction_id


# --- which requests set the cookie ---


def test_a_landing_request_sets_the_cookie_and_its_view_sees_the_click(shop: Shop) -> None:
    answer = shop.get(LINK)

    assert answer.cookie == stored_cookie()
    assert answer.arrival == Arrival(Click("1234abcd", "1234", "5678", NOW), is_new=True)


def test_browsing_sets_nothing(shop: Shop) -> None:
    cookie = shop.get(LINK).cookie

    answers = [shop.get(query, cookie=cookie) for query in ("", "page=2", "product_id=7", GATEWAY_RETURN)]

    assert [answer.cookie for answer in answers] == [None] * 4
    assert [transaction_of(click) for click in shop.seen] == ["1234abcd"] * 5


def test_a_request_is_read_once(shop: Shop) -> None:
    """Middleware and view see the same click, however long the request takes."""
    environ = make_environ(LINK)
    first = shop.reader.arrival(environ)
    shop.clock.advance(60)

    assert shop.reader.arrival(environ) is first


def test_the_cookie_of_a_request_is_given_once(shop: Shop) -> None:
    """The application may be wrapped by two middlewares."""
    environ = make_environ(LINK)

    assert shop.reader.set_cookie_for(environ) is not None
    assert shop.reader.set_cookie_for(environ) is None


def test_an_empty_environ_has_no_click(shop: Shop) -> None:
    assert shop.answer({}).arrival == Arrival(None)


@pytest.mark.parametrize(
    ("method", "counts"),
    [("GET", True), ("HEAD", True), ("POST", False), ("PUT", False), ("OPTIONS", False), ("get", False)],
)
def test_only_a_page_that_is_fetched_is_a_click(shop: Shop, method: str, counts: bool) -> None:
    answer = shop.get(LINK, REQUEST_METHOD=method)

    assert (answer.cookie is not None) is counts


@pytest.mark.parametrize("attribution", ["last-click", "first-click"])
def test_the_same_transaction_again_does_not_renew_the_click(attribution: str) -> None:
    """A refreshed landing page, or the mail opened again, would extend the window without end."""
    shop = Shop(attribution=attribution)
    cookie = shop.get(LINK).cookie
    shop.clock.advance(timedelta(days=29))

    again = shop.get(LINK, cookie=cookie)

    assert again.cookie is None
    assert shop.seen[-1] == Click("1234abcd", "1234", "5678", NOW)


def test_the_same_transaction_counts_anew_once_the_click_expired(shop: Shop) -> None:
    cookie = shop.get(LINK).cookie
    shop.clock.advance(timedelta(days=31))

    assert shop.get(LINK, cookie=cookie).cookie == stored_cookie(at=shop.clock.time)


@pytest.mark.parametrize(
    ("minutes", "renewed"), [(0, False), (29, False), (30, True), (1440, True)], ids=["now", "29", "30", "a-day"]
)
def test_without_a_transaction_id_the_click_is_renewed_after_30_minutes(
    shop: Shop, minutes: int, renewed: bool
) -> None:
    cookie = shop.get(DIRECT_LINK).cookie
    shop.clock.advance(timedelta(minutes=minutes))

    again = shop.get(DIRECT_LINK, cookie=cookie)

    assert again.cookie == (stored_cookie(DIRECT_LINK, at=shop.clock.time) if renewed else None)


def test_last_click_the_second_link_wins(shop: Shop) -> None:
    first = shop.get(LINK).cookie
    shop.clock.advance(timedelta(days=1))

    second = shop.get(OTHER_LINK, cookie=first)

    assert second.cookie is not None
    assert shop.get(cookie=second.cookie).arrival == Arrival(shop.seen[1])
    assert [transaction_of(click) for click in shop.seen] == ["1234abcd", "another", "another"]


def test_an_old_tab_that_is_loaded_again_brings_no_click(shop: Shop) -> None:
    """Land through A, land through B, reload A's tab: the sale is B's."""
    first = shop.get(LINK).cookie
    second = shop.get(OTHER_LINK, cookie=first).cookie

    reloaded = shop.get(LINK, cookie=second)

    assert reloaded.cookie is None
    assert [transaction_of(click) for click in shop.seen] == ["1234abcd", "another", "another"]


def test_first_click_the_first_link_wins() -> None:
    shop = Shop(attribution="first-click")
    first = shop.get(LINK).cookie
    shop.clock.advance(timedelta(days=1))

    second = shop.get(OTHER_LINK, cookie=first)

    assert second.cookie is None
    assert [transaction_of(click) for click in shop.seen] == ["1234abcd", "1234abcd"]


def test_first_click_an_expired_one_no_longer_wins() -> None:
    shop = Shop(attribution="first-click", window=timedelta(days=7))
    first = shop.get(LINK).cookie
    shop.clock.advance(timedelta(days=8))

    assert shop.get(OTHER_LINK, cookie=first).cookie == stored_cookie(OTHER_LINK, at=shop.clock.time)


def test_a_payment_gateways_return_does_not_replace_the_click(shop: Shop) -> None:
    """Flutterwave and others append a transaction_id of their own to the shop's return URL."""
    answer = shop.get(GATEWAY_RETURN, cookie=stored_cookie())

    assert answer.cookie is None
    assert transaction_of(shop.seen[-1]) == "1234abcd"


@pytest.mark.parametrize(
    "cookie",
    [
        pytest.param("katalys_click=garbage", id="garbage"),
        pytest.param(stored_cookie(key=OLD_SECRET), id="forged"),
        pytest.param(stored_cookie(at=NOW - timedelta(days=31)), id="expired"),
        pytest.param(stored_cookie() + "x", id="tampered"),
        pytest.param("katalys_click=\udcff", id="lone-surrogate"),
    ],
)
def test_a_cookie_that_does_not_count_is_ignored_and_gives_way_to_one(shop: Shop, cookie: str) -> None:
    browse, landing = shop.get(cookie=cookie), shop.get(LINK, cookie=cookie)

    assert (browse.cookie, landing.cookie) == (None, stored_cookie())
    assert [transaction_of(click) for click in shop.seen] == [None, "1234abcd"]


def test_a_click_is_signed_with_the_new_key_and_read_with_the_old_one() -> None:
    shop = Shop(keys=(OLD_SECRET, SECRET))

    browse = shop.get(cookie=stored_cookie(key=OLD_SECRET))
    landing = shop.get(OTHER_LINK, cookie=stored_cookie(key=OLD_SECRET))

    assert browse.cookie is None
    assert transaction_of(shop.seen[0]) == "1234abcd"
    assert Shop(keys=(SECRET,)).get(cookie=landing.cookie).arrival == Arrival(shop.seen[1])


@pytest.mark.parametrize(
    ("destination", "counts"),
    [
        pytest.param(None, True, id="older-browser"),
        pytest.param("document", True, id="document"),
        *(pytest.param(name, False, id=name)
          for name in ("image", "iframe", "frame", "embed", "object", "script", "style", "empty", "fencedframe")),
        pytest.param("", False, id="nothing"),
        pytest.param("Document", False, id="another-case"),
    ],
)  # fmt: skip
def test_only_a_page_sets_the_cookie(shop: Shop, destination: str | None, counts: bool) -> None:
    """A hidden image or frame on another site is cookie stuffing."""
    changes = {} if destination is None else {"HTTP_SEC_FETCH_DEST": destination}

    answer = shop.get(LINK, **changes)

    assert (answer.cookie is not None) is counts
    assert (shop.seen[-1] is not None) is counts


@pytest.mark.parametrize(
    ("destination", "mode", "counts"),
    [
        pytest.param("empty", "navigate", True, id="through-a-service-worker"),
        pytest.param("empty", "cors", False, id="fetch"),
        pytest.param("empty", "no-cors", False, id="beacon"),
        pytest.param("empty", None, False, id="no-mode"),
        pytest.param("iframe", "navigate", False, id="frame"),
        pytest.param("image", "navigate", False, id="image"),
    ],
)
def test_a_page_that_came_through_a_service_worker_counts(
    shop: Shop, destination: str, mode: str | None, counts: bool
) -> None:
    """Chromium then says ``empty`` and ``navigate``; every click of such a shop was lost."""
    changes = {"HTTP_SEC_FETCH_DEST": destination} | ({"HTTP_SEC_FETCH_MODE": mode} if mode else {})

    assert (shop.get(LINK, **changes).cookie is not None) is counts


@pytest.mark.parametrize(
    ("count_fetches", "destination", "site", "counts"),
    [
        pytest.param(True, "empty", "same-origin", True, id="own-script"),
        pytest.param(False, "empty", "same-origin", False, id="off"),
        pytest.param(True, "empty", "same-site", False, id="subdomain"),
        pytest.param(True, "empty", "cross-site", False, id="another-site"),
        pytest.param(True, "empty", None, False, id="unknown-site"),
        pytest.param(True, "image", "same-origin", False, id="image"),
        pytest.param(True, "iframe", "same-origin", False, id="frame"),
    ],
)
@pytest.mark.parametrize("by", ["link", "referer"])
def test_with_count_fetches_the_shops_own_scripts_may_bring_a_click(
    by: str, count_fetches: bool, destination: str, site: str | None, counts: bool
) -> None:
    """Turbo and htmx: behind a cached landing page, the first request that reaches Python is a script's."""
    shop = Shop(count_fetches=count_fetches)
    changes = {"HTTP_SEC_FETCH_DEST": destination, "HTTP_SEC_FETCH_MODE": "cors"}
    changes |= {"HTTP_SEC_FETCH_SITE": site} if site else {}

    answer = shop.get(LINK, **changes) if by == "link" else shop.get(**OWN_REFERER, **changes)

    assert (answer.cookie is not None) is counts


@pytest.mark.parametrize(
    "purpose",
    [{"HTTP_SEC_PURPOSE": "prefetch"}, {"HTTP_SEC_PURPOSE": "prefetch;prerender"}, {"HTTP_PURPOSE": "prefetch"},
     {"HTTP_X_MOZ": "prefetch"}],
    ids=["prefetch", "prerender", "older-chrome", "older-firefox"],
)  # fmt: skip
def test_a_prefetched_page_sets_the_cookie(shop: Shop, purpose: dict[str, str]) -> None:
    """The browser keeps its cookie, and does not ask again when the shopper follows the link."""
    assert shop.get(LINK, HTTP_SEC_FETCH_DEST="document", **purpose).cookie == stored_cookie()


def test_the_cookie_is_for_the_whole_shop_and_for_no_script_and_no_frame(shop: Shop) -> None:
    """Path defaults to the landing directory (rack-affiliates#8); None instead of Lax would allow stuffing."""
    answer = shop.get(LINK, PATH_INFO="/landing/page1", SCRIPT_NAME="/shop")

    assert answer.set_cookie is not None
    assert answer.set_cookie.split("; ")[1:] == ["Path=/", "HttpOnly", "SameSite=Lax", "Max-Age=2592000"]


@pytest.mark.parametrize(
    ("query", "changes", "reason"),
    [
        pytest.param(GATEWAY_RETURN, {}, "without utm_source", id="gateway"),
        pytest.param(LINK, {"HTTP_SEC_FETCH_DEST": "iframe"}, "part of a page", id="frame"),
        pytest.param(LINK, {"REQUEST_METHOD": "POST"}, "not a GET", id="post"),
        pytest.param("utm_source=a&offer_id=1", {"REQUEST_METHOD": "POST"}, "its utm_source", id="its-own-reason"),
    ],
)
def test_a_link_that_does_not_count_is_logged_with_its_reason(
    query: str, changes: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A network that writes its links in another way loses every sale, and the shop saw nothing."""
    with caplog.at_level(logging.INFO, "katalys_wsgi"):
        Shop().get(query, **changes)

    (line,) = caplog.records
    assert line.levelno == logging.INFO
    assert line.getMessage().startswith("katalys_wsgi.click_refused reason=")
    assert reason in line.getMessage()


def test_a_reason_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Strangers can send such links as often as they like."""
    shop = Shop()

    with caplog.at_level(logging.INFO, "katalys_wsgi"):
        for seconds in (0, 30, 29, 1, 59, 1):
            shop.clock.advance(seconds)
            shop.get(GATEWAY_RETURN)
        shop.get("utm_source=newsletter&transaction_id=T")

    assert len(caplog.records) == 3 + 1


@pytest.mark.parametrize("query", ["", "product_id=7", LINK, "utm_source=newsletter"])
def test_any_other_request_logs_nothing(query: str, caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop()

    with caplog.at_level(logging.INFO, "katalys_wsgi"):
        shop.get(query, cookie=stored_cookie())

    assert caplog.records == []


# --- the click of a landing page that Python never saw ---


@pytest.mark.parametrize(
    ("referer", "host", "counts"),
    [
        pytest.param("http://shop.example/page1?" + LINK, "shop.example", True, id="same-host"),
        pytest.param("https://shop.example/page1?" + LINK, "shop.example", True, id="another-scheme"),
        pytest.param("http://shop.example/?" + LINK, "shop.example:8080", True, id="another-port"),
        pytest.param("http://SHOP.example/?" + LINK, "shop.EXAMPLE", True, id="another-case"),
        pytest.param("http://shop.example/?" + LINK + "#top", "shop.example", True, id="fragment"),
        pytest.param("http://[2001:db8::1]:80/?" + LINK, "[2001:db8::1]", True, id="ipv6"),
        pytest.param("http://www.shop.example/?" + LINK, "shop.example", False, id="subdomain"),
        pytest.param("http://evil.example/?" + LINK, "shop.example", False, id="another-host"),
        pytest.param("http://shop.example.evil/?" + LINK, "shop.example", False, id="longer-host"),
        pytest.param("http://shop.example@evil.example/?" + LINK, "shop.example", False, id="user-name"),
        pytest.param("http://evil.example/?shop.example&" + LINK, "shop.example", False, id="host-in-the-query"),
        pytest.param("http://shop.example/#" + LINK, "shop.example", False, id="in-the-fragment"),
        pytest.param("http://shop.example/" + LINK, "shop.example", False, id="in-the-path"),
        pytest.param("http://shop.example/?" + GATEWAY_RETURN, "shop.example", False, id="no-click"),
        pytest.param("/page1?" + LINK, "shop.example", False, id="relative"),
        pytest.param("?" + LINK, "", False, id="no-host-at-all"),
        pytest.param("http:///?" + LINK, "", False, id="empty-host"),
        pytest.param("http://[/?" + LINK, "shop.example", False, id="unreadable-referer"),
        pytest.param("http://shop.example/?" + LINK, "[", False, id="unreadable-host"),
        pytest.param("http://sh\u2100p.example/?" + LINK, "shop.example", False, id="confusable"),
        pytest.param("", "shop.example", False, id="none"),
    ],
)
def test_a_same_host_referer_brings_the_click(shop: Shop, referer: str, host: str, counts: bool) -> None:
    """A landing page out of a cache never reaches Python; the next page's Referer names it (shopware #5790)."""
    answer = shop.get(HTTP_REFERER=referer, HTTP_HOST=host)

    assert answer.cookie == (stored_cookie() if counts else None)
    assert transaction_of(shop.seen[-1]) == ("1234abcd" if counts else None)


OWN_REFERER = {"HTTP_REFERER": "http://shop.example/?" + LINK, "HTTP_HOST": "shop.example"}


@pytest.mark.parametrize(
    ("proxies", "changes", "counts"),
    [
        pytest.param(1, {"HTTP_X_FORWARDED_HOST": "shop.example"}, True, id="forwarded"),
        pytest.param(1, {"HTTP_X_FORWARDED_HOST": "Shop.example:443"}, True, id="with-port"),
        pytest.param(1, {"HTTP_X_FORWARDED_HOST": "evil.example, shop.example"}, True, id="appended"),
        pytest.param(1, {"HTTP_X_FORWARDED_HOST": "shop.example, evil.example"}, False, id="what-the-visitor-wrote"),
        pytest.param(2, {"HTTP_X_FORWARDED_HOST": "shop.example"}, True, id="two-proxies-one-entry"),
        pytest.param(1, {"HTTP_X_FORWARDED_HOST": "["}, False, id="unreadable"),
        pytest.param(0, {"HTTP_X_FORWARDED_HOST": "shop.example"}, False, id="no-trusted-proxy"),
        pytest.param(0, {"HTTP_SEC_FETCH_SITE": "same-origin"}, True, id="same-origin"),
        pytest.param(0, {"HTTP_SEC_FETCH_SITE": "same-site"}, False, id="same-site"),
        pytest.param(1, {"HTTP_SEC_FETCH_SITE": "cross-site"}, False, id="cross-site"),
        pytest.param(1, {}, False, id="neither"),
    ],
)
def test_behind_a_proxy_the_referer_is_compared_with_what_the_browser_asked_for(
    proxies: int, changes: dict[str, str], counts: bool
) -> None:
    """Stock nginx (``proxy_pass`` alone) sets Host to the upstream's name; no click was ever recovered there."""
    shop = Shop(trusted_proxies=proxies)

    answer = shop.get(HTTP_REFERER="http://shop.example/?" + LINK, HTTP_HOST="127.0.0.1:8000", **changes)

    assert answer.cookie == (stored_cookie() if counts else None)


def test_a_referer_without_host_is_none_of_the_shops_pages(shop: Shop) -> None:
    assert shop.get(HTTP_REFERER="/?" + LINK, HTTP_SEC_FETCH_SITE="same-origin").cookie is None


def test_a_request_without_host_brings_no_click_by_its_referer(shop: Shop) -> None:
    environ = make_environ(HTTP_REFERER="http://shop.example/?" + LINK)
    del environ["HTTP_HOST"]

    assert shop.answer(environ).cookie is None


def test_a_form_on_a_cached_landing_page_brings_the_click(shop: Shop) -> None:
    """The first request that reaches Python may be "add to cart"."""
    assert shop.get(REQUEST_METHOD="POST", HTTP_SEC_FETCH_DEST="document", **OWN_REFERER).cookie == stored_cookie()


@pytest.mark.parametrize("destination", ["image", "script", "empty"])
def test_a_part_of_a_cached_landing_page_brings_no_click(shop: Shop, destination: str) -> None:
    assert shop.get(HTTP_SEC_FETCH_DEST=destination, **OWN_REFERER).cookie is None


def test_a_referer_never_replaces_a_valid_click(shop: Shop) -> None:
    """The click that is stored may be newer than the page the shopper comes from."""
    answer = shop.get(cookie=stored_cookie(OTHER_LINK), **OWN_REFERER)

    assert answer.cookie is None
    assert transaction_of(shop.seen[-1]) == "another"


@pytest.mark.parametrize(
    "cookie",
    [stored_cookie(OTHER_LINK, at=NOW - timedelta(days=31)), stored_cookie(OTHER_LINK, key=OLD_SECRET)],
    ids=["expired", "forged"],
)
def test_a_referer_replaces_a_click_that_does_not_count(shop: Shop, cookie: str) -> None:
    assert shop.get(cookie=cookie, **OWN_REFERER).cookie == stored_cookie()


def test_the_link_itself_goes_before_the_referer(shop: Shop) -> None:
    assert shop.get(OTHER_LINK, **OWN_REFERER).cookie == stored_cookie(OTHER_LINK)


# --- consent ---


class Banner:
    """A consent banner, and how often it was asked."""

    def __init__(self, *, given: bool) -> None:
        self.given = given
        self.asked = 0

    def __call__(self, environ: dict[str, Any]) -> bool:
        assert environ["REQUEST_METHOD"]
        self.asked += 1
        return self.given


def test_without_consent_no_cookie_is_set_and_no_click_is_seen() -> None:
    shop = Shop(consent=Banner(given=False))

    answer = shop.get(LINK)

    assert answer.cookie is None
    assert shop.seen == [None]


def test_with_consent_all_is_as_without_a_banner() -> None:
    shop = Shop(consent=Banner(given=True))

    answer = shop.get(LINK)

    assert answer.cookie == stored_cookie()
    assert [transaction_of(click) for click in shop.seen] == ["1234abcd"]


def test_a_click_that_waited_for_consent_is_recovered_on_the_next_page() -> None:
    """The banner is answered on the landing page, whose Referer the next page carries."""
    banner = Banner(given=False)
    shop = Shop(consent=banner)
    landing = shop.get(LINK, HTTP_HOST="shop.example")
    banner.given = True

    following = shop.get(**OWN_REFERER)

    assert (landing.cookie, following.cookie) == (None, stored_cookie())


def test_consent_withdrawn_hides_a_click_that_is_stored() -> None:
    banner = Banner(given=True)
    shop = Shop(consent=banner)
    cookie = shop.get(LINK).cookie
    banner.given = False

    shop.get(cookie=cookie)

    assert [transaction_of(click) for click in shop.seen] == ["1234abcd", None]


def test_the_banner_is_asked_once_a_request_and_only_when_there_is_a_click() -> None:
    """It may ask a database."""
    banner = Banner(given=True)
    shop = Shop(consent=banner)

    shop.get()
    shop.get("product_id=7")
    strangers = banner.asked
    shop.get(LINK)

    assert strangers == 0
    assert banner.asked == 1


def test_a_refusal_is_not_remembered_and_a_yes_is() -> None:
    """The middleware asks before the application has loaded its session; the checkout then asks in vain, or not."""
    banner = Banner(given=False)
    shop = Shop(consent=banner)
    environ = make_environ(GATEWAY_RETURN, cookie=stored_cookie())

    refused = shop.answer(environ).arrival
    banner.given = True
    consented = shop.answer(environ).arrival
    banner.given = False

    assert refused == Arrival(None, refused=True)
    assert transaction_of(consented.click) == "1234abcd"
    assert shop.answer(environ).arrival is consented


def test_a_request_that_passes_two_shops_is_read_by_each() -> None:
    """One returned the click of the other without having asked for consent."""
    open_shop, strict_shop = Shop(), Shop(consent=Banner(given=False))
    environ = make_environ(LINK)

    assert open_shop.answer(environ).arrival.click is not None
    assert strict_shop.answer(environ).arrival == Arrival(None, refused=True)


def test_a_banner_that_raises_is_a_refusal_and_does_not_break_the_page(caplog: pytest.LogCaptureFixture) -> None:
    def broken(environ: dict[str, Any]) -> bool:
        raise ZeroDivisionError("ann@example.com")

    shop = Shop(consent=broken)

    answer = shop.get(LINK)

    assert answer.cookie is None
    assert answer.arrival == Arrival(None, refused=True)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "katalys_wsgi.consent_failed reason=ZeroDivisionError")
    ] * 2  # once for the cookie, once for the view


@pytest.mark.parametrize(("every_order", "asked"), [(False, 0), (True, 1)])
def test_where_every_order_is_reported_consent_is_asked_without_a_click_too(every_order: bool, asked: int) -> None:
    """An order is then reported without a click, and a refusal must stop that."""
    banner = Banner(given=False)
    shop = Shop(consent=banner, reports_every_order=every_order)

    arrival = shop.get().arrival

    assert arrival == Arrival(None, refused=every_order)
    assert banner.asked == asked


@pytest.mark.parametrize(("answer", "counts"), [("yes", True), (1, True), (None, False), ("", False), (0, False)])
def test_any_answer_of_the_banner_is_read_as_yes_or_no(answer: Any, counts: bool) -> None:
    shop = Shop(consent=lambda _environ: answer)

    assert (shop.get(LINK).cookie is not None) is counts


# --- Secure ---


@pytest.mark.parametrize(
    ("setting", "proxies", "scheme", "forwarded", "secure"),
    [
        pytest.param("auto", 0, "http", None, False, id="auto-plain"),
        pytest.param("auto", 0, "https", None, True, id="auto-tls"),
        pytest.param("auto", 0, "http", "https", False, id="auto-header-without-proxy"),
        pytest.param("auto", 1, "http", "https", True, id="auto-tls-ends-at-the-proxy"),
        pytest.param("auto", 1, "http", "http", False, id="auto-plain-at-the-proxy"),
        pytest.param("auto", 1, "https", None, True, id="auto-proxy-says-nothing"),
        pytest.param(True, 0, "http", None, True, id="always"),
        pytest.param(False, 0, "https", "https", False, id="never"),
    ],
)
def test_the_cookie_is_secure_as_the_visitors_connection_is(
    setting: Any, proxies: int, scheme: str, forwarded: str | None, secure: bool
) -> None:
    """A Secure cookie on a plain connection is dropped by the browser, and the click lost."""
    shop = Shop(cookie_secure=setting, trusted_proxies=proxies)
    header = {} if forwarded is None else {"HTTP_X_FORWARDED_PROTO": forwarded}

    set_cookie = shop.get(LINK, **{"wsgi.url_scheme": scheme}, **header).set_cookie

    assert set_cookie is not None
    assert ("secure" in set_cookie.lower().split("; ")) is secure


@pytest.mark.parametrize(
    ("setting", "environ", "secure"),
    [
        pytest.param("auto", None, False, id="auto-unknown"),
        pytest.param("auto", {"wsgi.url_scheme": "https"}, True, id="auto-tls"),
        pytest.param("auto", {"wsgi.url_scheme": "http"}, False, id="auto-plain"),
        pytest.param(True, None, True, id="always"),
        pytest.param(False, {"wsgi.url_scheme": "https"}, False, id="never"),
    ],
)
def test_a_cookie_is_removed_as_it_was_set(setting: Any, environ: dict[str, str] | None, secure: bool) -> None:
    """Browsers drop a __Secure- or __Host- cookie that is not Secure, its removal too (RFC 6265bis §4.1.3)."""
    removal = Shop(cookie_secure=setting).reader.cookie_removal(environ and make_environ(**environ))

    assert removal.startswith("katalys_click=; ")
    assert ("secure" in removal.lower().split("; ")) is secure


def test_a_proxy_that_was_not_announced_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop()

    for query in (LINK, OTHER_LINK, LINK):
        shop.get(query, HTTP_X_FORWARDED_PROTO="https")
        shop.reader.visitor(make_environ(query, HTTP_X_FORWARDED_PROTO="https"))

    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            "katalys_wsgi.proxy_ignored header=X-Forwarded-Proto advice=set trusted_proxies to the number of proxies",
        )
    ]


@pytest.mark.parametrize("asked_for", ["set_cookie_for", "visitor"])
def test_the_warning_needs_one_of_middleware_and_view(asked_for: str, caplog: pytest.LogCaptureFixture) -> None:
    getattr(Shop().reader, asked_for)(make_environ(LINK, HTTP_X_FORWARDED_PROTO="https"))

    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize(
    ("changes", "header"),
    [
        pytest.param({"trusted_proxies": 1}, {"HTTP_X_FORWARDED_PROTO": "https"}, id="announced"),
        pytest.param({}, {}, id="no-proxy"),
        pytest.param({}, {"wsgi.url_scheme": "https", "HTTP_X_FORWARDED_PROTO": "https"}, id="the-server-knows"),
    ],
)
def test_a_shop_that_is_set_up_well_is_not_warned(
    changes: dict[str, Any], header: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(**changes)
    shop.get(LINK, **header)
    shop.reader.visitor(make_environ(**header))

    assert caplog.records == []


# --- the visitor ---


@pytest.mark.parametrize(("proxies", "address"), [(0, BUYER_IP), (1, "198.51.100.2"), (2, "192.0.2.66"), (4, None)])
def test_the_visitor_is_seen_behind_the_trusted_proxies(proxies: int, address: str | None) -> None:
    environ = make_environ(HTTP_X_FORWARDED_FOR="6.6.6.6, 192.0.2.66, 198.51.100.2")

    visitor = Shop(trusted_proxies=proxies).reader.visitor(environ)

    assert (visitor.client_ip, visitor.user_agent) == (address, BUYER_AGENT)
