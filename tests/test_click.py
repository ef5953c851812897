"""Clicks: what makes one, how long it counts, and which of two wins."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone
from urllib.parse import urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from katalys_wsgi import Click
from katalys_wsgi.attribution.click import (
    FINGERPRINT,
    LONGEST_QUERY,
    MOST_PARAMETERS,
    MOST_REPLACED,
    may_hold_click,
    read_link,
)

from .support import LINK

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
SOURCES = ("katalys", "revoffers")
WINDOW = timedelta(days=30)

fuzzed = settings(derandomize=True, database=None, deadline=None, max_examples=200)


def click_of(query: str, sources: tuple[str, ...] = SOURCES) -> Click | None:
    return Click.from_query(query, now=NOW, sources=sources)


def ids_of(query: str, sources: tuple[str, ...] = SOURCES) -> tuple[str | None, ...] | None:
    click = click_of(query, sources)
    return None if click is None else (click.transaction_id, click.offer_id, click.aff_id)


def make_click(transaction_id: str | None = "t", offer_id: str | None = "1", aff_id: str | None = "2", *,
               at: datetime = NOW) -> Click:  # fmt: skip
    return Click(transaction_id, offer_id, aff_id, at)


# --- what makes a click ---


def test_the_specifications_link_is_a_click() -> None:
    assert click_of(LINK) == Click("1234abcd", "1234", "5678", NOW)


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        pytest.param("utm_source=RevOffers&transaction_id=T&offer_id=1&publisher_id=2", ("T", "1", "2"), id="older"),
        pytest.param("utm_source=KATALYS&transaction_id=T&offer_id=1&publisher_id=2", ("T", "1", "2"), id="upper-case"),
        pytest.param("transaction_id=T&publisher_id=2&a=b&offer_id=1&utm_source=katalys", ("T", "1", "2"), id="order"),
        pytest.param("utm_source=katalys&transaction_id=T", ("T", None, None), id="transaction-only"),
        pytest.param("utm_source=%20Katalys%0A&transaction_id=T", ("T", None, None), id="blanks-around-the-source"),
        pytest.param("utm_source=+katalys+&transaction_id=T", ("T", None, None), id="plus-around-the-source"),
        pytest.param("transaction_id=T&offer_id=1&publisher_id=2", ("T", "1", "2"), id="no-source-all-three"),
        pytest.param("utm_source=&transaction_id=T&offer_id=1&publisher_id=2", ("T", "1", "2"), id="empty-source"),
        pytest.param("transaction_id=T&offer_id=1&publisher_id=2&aff_id=2", ("T", "1", "2"), id="no-source-four"),
        pytest.param("utm_source=katalys&offer_id=1&publisher_id=2", (None, "1", "2"), id="direct-link"),
        pytest.param("utm_source=katalys&offer_id=1&aff_id=2", (None, "1", "2"), id="aff-id"),
        pytest.param("utm_source=katalys&offer_id=1&publisher_id=2&aff_id=2", (None, "1", "2"), id="both-the-same"),
        pytest.param("utm_source=katalys&transaction_id=T&offer_id=1", ("T", "1", None), id="no-publisher"),
        pytest.param("utm_source=katalys&transaction_id=&offer_id=1&publisher_id=2", (None, "1", "2"), id="empty-id"),
        pytest.param("utm_source=katalys&transaction_id=aB3.~:_-", ("aB3.~:_-", None, None), id="every-sign"),
        pytest.param("utm_source=katalys&transaction%5Fid=T", ("T", None, None), id="encoded-underscore"),
        pytest.param("utm_source=katalys&transaction_%69d=T", ("T", None, None), id="encoded-letter"),
        pytest.param("utm_source=katalys&transaction_i%64=T", ("T", None, None), id="encoded-last-letter"),
        pytest.param("utm%5fsource=katalys&%74ransaction_id=T", ("T", None, None), id="encoded-first-letter"),
        pytest.param("utm_source=katalys&transaction_id=a%3Ab%7Ec", ("a:b~c", None, None), id="percent-encoded"),
        pytest.param(
            "utm_source=Katalys&transaction_id=102ef7451ec3e20cf1360ef6df7e1e&offer_id=1234&publisher_id=5678",
            ("102ef7451ec3e20cf1360ef6df7e1e", "1234", "5678"), id="real-transaction-id",
        ),
    ],
)  # fmt: skip
def test_a_link_of_katalys_is_a_click(query: str, ids: tuple[str | None, ...]) -> None:
    assert ids_of(query) == ids


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("", id="nothing"),
        pytest.param("product_id=5", id="any-id"),
        pytest.param("transaction_id=T&offer_id=1&aff_id=2", id="no-source-and-aff-id"),
        pytest.param("transaction_id=T&offer_id=1", id="no-source-and-no-publisher"),
        pytest.param("offer_id=1&publisher_id=2", id="no-source-and-no-transaction"),
        pytest.param("utm_source=newsletter&transaction_id=T&offer_id=1&publisher_id=2", id="another-source"),
        pytest.param("utm_source=katalys2&transaction_id=T", id="source-prefix"),
        pytest.param("utm_source=&transaction_id=T", id="empty-source"),
        pytest.param("utm_source=katalys", id="source-only"),
        pytest.param("utm_source=katalys&offer_id=1", id="offer-only"),
        pytest.param("utm_source=katalys&publisher_id=1", id="publisher-only"),
        pytest.param("utm_source=katalys&publisher_id=1&aff_id=1", id="publisher-twice"),
        pytest.param("utm_source=katalys&transaction_id=", id="empty-transaction"),
        pytest.param("utm_source=katalys&transaction_id", id="transaction-without-value"),
        pytest.param("UTM_SOURCE=katalys&TRANSACTION_ID=T", id="names-in-upper-case"),
        pytest.param("utm_medium=katalys&transaction_id=T", id="medium"),
    ],
)
def test_any_other_link_brings_no_click(query: str) -> None:
    assert click_of(query) is None


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("status=successful&tx_ref=hooli-123&transaction_id=3500588", id="flutterwave"),
        pytest.param("utm_source=paypal&transaction_id=3500588&offer_id=1&publisher_id=2", id="own-source"),
    ],
)
def test_a_payment_gateways_transaction_id_brings_no_click(query: str) -> None:
    """Gateways append a transaction_id of their own to the shop's return URL; it must not replace the click."""
    assert click_of(query) is None


@pytest.mark.parametrize("name", ["transaction_id", "offer_id", "publisher_id"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("a%0D%0ASet-Cookie:x=1", id="line-break"),
        pytest.param("a%0A", id="line-feed-at-the-end"),
        pytest.param("a%00", id="nul"),
        pytest.param("a%20b", id="space"),
        pytest.param("a+b", id="plus"),
        pytest.param("%FA", id="not-utf-8"),
        pytest.param("%C3%A9", id="not-ascii"),
        pytest.param("\xfa", id="raw-latin-1"),
        pytest.param("\udcfa", id="lone-surrogate"),
        pytest.param("%D9%A1%D9%A2", id="arabic-digits"),
        pytest.param("a/b", id="slash"),
        pytest.param("a;b", id="semicolon"),
        pytest.param("%3Cscript%3E", id="markup"),
        pytest.param("{transaction_id}", id="unfilled-placeholder"),
        pytest.param("x" * 129, id="129-characters"),
    ],
)
def test_an_id_outside_the_alphabet_makes_no_click(name: str, value: str) -> None:
    """Never "cleaned": a wrong id credits the wrong affiliate."""
    values = {"transaction_id": "T", "offer_id": "1", "publisher_id": "2", name: value}

    assert click_of("utm_source=katalys&" + "&".join(f"{key}={part}" for key, part in values.items())) is None


def test_the_longest_id_has_128_characters() -> None:
    assert ids_of("utm_source=katalys&transaction_id=" + "x" * 128) == ("x" * 128, None, None)


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("utm_source=katalys&transaction_id=T&transaction_id=U", id="transaction"),
        pytest.param("utm_source=katalys&transaction_id=T&offer_id=1&offer_id=2&publisher_id=3", id="offer"),
        pytest.param("utm_source=katalys&offer_id=1&publisher_id=2&publisher_id=3", id="publisher"),
        pytest.param("utm_source=katalys&offer_id=1&publisher_id=2&aff_id=3", id="publisher-and-aff"),
        pytest.param("transaction_id=T&offer_id=1&publisher_id=2&aff_id=3", id="publisher-and-aff-without-source"),
        pytest.param("utm_source=katalys&transaction_id=T&amp;transaction_id=U", id="escaped-name"),
        pytest.param("utm_source=katalys&transaction_id=T&transaction_id=t", id="case"),
    ],
)
def test_parameters_that_contradict_each_other_make_no_click(query: str) -> None:
    assert click_of(query) is None


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("utm_source=Katalys&transaction_id=T&utm_source=newsletter", id="ours-first"),
        pytest.param("utm_source=newsletter&transaction_id=T&utm_source=katalys", id="ours-last"),
        pytest.param("utm_source=a&utm_source=RevOffers&utm_source=&utm_source=b&transaction_id=T", id="between"),
    ],
)
def test_any_accepted_source_among_several_counts(query: str) -> None:
    """Newsletter tools add a utm_source of their own to every link; that cancelled the click."""
    assert ids_of(query) == ("T", None, None)


def test_several_sources_of_others_make_no_click() -> None:
    assert click_of("utm_source=a&utm_source=b&transaction_id=T&offer_id=1&publisher_id=2") is None


def test_the_same_parameter_twice_with_one_value_is_a_click() -> None:
    assert click_of(LINK + "&" + LINK) == click_of(LINK)


def test_a_link_that_was_escaped_twice_is_a_click() -> None:
    """HTML mail turns ``&`` into ``&amp;``, which leaves names such as ``amp;transaction_id``."""
    assert click_of(LINK.replace("&", "&amp;")) == click_of(LINK)


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        pytest.param("offer_id=1&publisher_id=2", (None, "1", "2"), id="pair"),
        pytest.param("transaction_id=T&offer_id=1&publisher_id=2", ("T", "1", "2"), id="all-three"),
        pytest.param("utm_source=any&offer_id=1&publisher_id=2", (None, "1", "2"), id="any-source"),
        pytest.param("utm_source=a&utm_source=b&offer_id=1&aff_id=2", (None, "1", "2"), id="two-sources"),
        pytest.param("transaction_id=T", None, id="transaction-only"),
        pytest.param("utm_source=katalys&transaction_id=T", None, id="transaction-and-source"),
        pytest.param("status=successful&tx_ref=1&transaction_id=3500588", None, id="gateway"),
    ],
)
def test_without_sources_any_link_with_offer_and_publisher_is_a_click(
    query: str, ids: tuple[str | None, ...] | None
) -> None:
    """A transaction_id alone would let every payment gateway in, so it does not count then."""
    assert ids_of(query, ()) == ids


def test_a_source_of_the_shops_own_is_accepted_instead() -> None:
    assert ids_of("utm_source=Partner&transaction_id=T", ("partner",)) == ("T", None, None)
    assert ids_of(LINK, ("partner",)) is None


@pytest.mark.parametrize(
    ("query", "sources", "reason"),
    [
        pytest.param("utm_source=a&transaction_id=T&offer_id=1", SOURCES, "sources", id="foreign-source"),
        pytest.param("transaction_id=T", SOURCES, "without utm_source", id="no-source"),
        pytest.param("utm_source=katalys&offer_id=1", SOURCES, "missing", id="no-publisher"),
        pytest.param("transaction_id=T", (), "without sources", id="no-sources-set"),
        pytest.param(LINK + "&offer_id=7", SOURCES, "twice", id="contradiction"),
        pytest.param(LINK + "&aff_id=7", SOURCES, "twice", id="two-names-contradict"),
        pytest.param("utm_source=katalys&transaction_id=a%20b", SOURCES, "characters", id="alphabet"),
        pytest.param(LINK + "&a=1" * 200, SOURCES, "too many", id="too-many"),
    ],
)
def test_a_link_with_an_id_that_does_not_count_has_a_reason(query: str, sources: tuple[str, ...], reason: str) -> None:
    answer = read_link(query, now=NOW, sources=sources)

    assert isinstance(answer, str)
    assert reason in answer


@pytest.mark.parametrize(
    "query",
    ["", "page=2", "product_id=5", "utm_source=katalys&product_id=5", "transaction_id=", "transaction_id",
     "my_id=1" + "&a=1" * 200, "q=%5Fid="],
    ids=lambda query: query[:12],
)  # fmt: skip
def test_a_link_without_our_ids_needs_no_reason(query: str) -> None:
    assert read_link(query, now=NOW, sources=SOURCES) == ""


# --- a stranger's bytes ---


@pytest.mark.parametrize("neighbour", ["q=%FA", "q=\xfa", "q=\udcfa", "q=%", "%FA=1", "=", "q"], ids=ascii)
def test_no_other_parameter_hides_the_click(neighbour: str) -> None:
    """A strict decoder, such as WebOb's, raises at ``?q=%FA``."""
    assert click_of(f"{neighbour}&{LINK}&{neighbour}") == click_of(LINK)


def test_a_query_with_too_many_parameters_brings_no_click() -> None:
    """No visitor can make the shop parse 5,000 parameters."""
    assert click_of(LINK + "&a=1" * 5000) is None
    assert click_of(LINK + "&a=1" * MOST_PARAMETERS) is None


def test_a_click_with_as_many_other_parameters_as_allowed_counts() -> None:
    assert click_of(LINK + "&a=1" * (MOST_PARAMETERS - 4)) == click_of(LINK)


def test_a_click_is_found_at_the_start_of_an_endless_query() -> None:
    assert click_of(LINK + "&a=" + "x" * 100_000) == click_of(LINK)


def test_a_click_behind_8_kib_is_not_looked_for() -> None:
    assert click_of("a=" + "x" * LONGEST_QUERY + "&" + LINK) is None


def test_a_query_without_separator_in_8_kib_brings_no_click() -> None:
    assert click_of("transaction_id=" + "x" * LONGEST_QUERY) is None


@pytest.mark.parametrize("cut", range(-1, len("&transaction_id=") + 9))
def test_the_cut_at_8_kib_never_yields_half_a_value(cut: int) -> None:
    """Half a transaction_id is a wrong one. The last parameter is whole, or it is not there."""
    tail = "&transaction_id=1234abcd"
    head = "utm_source=katalys&offer_id=1&publisher_id=2&a="
    query = head + "x" * (LONGEST_QUERY - len(head) - cut) + tail + "&b=1"

    assert ids_of(query) == (("1234abcd" if cut > len(tail) else None), "1", "2")


@fuzzed
@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=300))
@example("_id=\udcff%FA%\x00")
@example("utm_source=katalys&transaction_id=%")
@example("_id=" + "&" * 1000)
def test_no_query_whatever_raises(query: str) -> None:
    assert click_of(query) is None
    assert click_of(query, ()) is None


_names = st.sampled_from(["utm_source", "transaction_id", "offer_id", "publisher_id", "aff_id", "amp;offer_id", "a"])
_values = st.sampled_from(["katalys", "T", "1", "1", "", "x" * 129, "%FA", "%00", "%", "+", "\xff", "\ud800", "a=b"])
_links = st.lists(st.tuples(_names, st.sampled_from(["=", "=", "=", ""]), _values), max_size=6).map(
    lambda parts: "&".join(["utm_source=katalys", *("".join(part) for part in parts)])
)


@fuzzed
@given(_links, st.sampled_from([SOURCES, ()]))
@example("utm_source=katalys&transaction_id=T&offer_id=1&publisher_id=1", SOURCES)
def test_no_mangled_link_raises_and_every_click_is_whole(query: str, sources: tuple[str, ...]) -> None:
    click = click_of(query, sources)

    if click is not None:
        assert (click.transaction_id and sources) or (click.offer_id and click.aff_id)
        assert {click.transaction_id, click.offer_id, click.aff_id} <= {None, "T", "1", "katalys"}
        assert click.clicked_at == NOW


_ids = st.from_regex(r"[A-Za-z0-9._~:-]{1,128}", fullmatch=True)


@fuzzed
@given(_ids, _ids, _ids)
def test_every_id_of_the_alphabet_arrives_unchanged(transaction_id: str, offer_id: str, publisher_id: str) -> None:
    query = urlencode(
        {"utm_source": "Katalys", "transaction_id": transaction_id, "offer_id": offer_id, "publisher_id": publisher_id}
    )

    assert click_of(query) == Click(transaction_id, offer_id, publisher_id, NOW)


_encoded_links = st.lists(st.booleans(), min_size=70, max_size=70).map(
    lambda encoded: "&".join(
        "".join(f"%{ord(letter):02x}" if next(choice) else letter for letter in name) + "=1"
        for choice in [iter(encoded)]
        for name in ("transaction_id", "offer_id", "publisher_id")
    )
)


@fuzzed
@given(_encoded_links)
def test_the_cheap_test_is_never_stricter_than_the_parser(query: str) -> None:
    """Some mail programs percent-encode names; RFC 3986 §2.3 says that it is the same address."""
    assert may_hold_click(query)
    assert ids_of(query) == ("1", "1", "1")


@pytest.mark.parametrize("query", ["", "page=2&sort=price", "q=caf%C3%A9", "q=50%25&page=2", "q=a%20b&utm_source=x"])
def test_an_ordinary_query_needs_no_closer_look(query: str) -> None:
    assert not may_hold_click(query)


def test_no_query_makes_the_cheap_test_slow() -> None:
    """It is of the order of the query's length, not of its square: this would take a minute."""
    assert not may_hold_click("%" * 1_000_000)
    assert not may_hold_click("%aa" * 300_000 + "&=")


# --- how long it counts ---


@pytest.mark.parametrize(
    ("age", "counts"),
    [
        pytest.param(timedelta(0), True, id="now"),
        pytest.param(WINDOW, True, id="the-last-moment"),
        pytest.param(WINDOW + timedelta(seconds=1), False, id="a-second-too-old"),
        pytest.param(timedelta(seconds=-1), True, id="a-second-ahead"),
        pytest.param(timedelta(seconds=-300), True, id="five-minutes-ahead"),
        pytest.param(timedelta(seconds=-301), False, id="further-ahead"),
    ],
)
def test_a_click_counts_inside_the_window(age: timedelta, counts: bool) -> None:
    """Clocks of two hosts differ, so a click may be dated up to five minutes ahead."""
    assert make_click(at=NOW - age).is_current(NOW, WINDOW) is counts


# --- which of two wins ---


@pytest.mark.parametrize(
    ("new", "stored", "same"),
    [
        pytest.param(("t", "1", "2"), ("t", "1", "2"), True, id="same-link"),
        pytest.param(("t", None, None), ("t", "1", "2"), True, id="same-transaction"),
        pytest.param(("u", "1", "2"), ("t", "1", "2"), False, id="other-transaction"),
        pytest.param(("T", "1", "2"), ("t", "1", "2"), False, id="transactions-are-case-sensitive"),
        pytest.param((None, "1", "2"), ("t", "1", "2"), False, id="direct-link-after-transaction"),
        pytest.param(("t", "1", "2"), (None, "1", "2"), False, id="transaction-after-direct-link"),
        pytest.param((None, "1", "2"), (None, "1", "2"), True, id="same-pair"),
        pytest.param((None, "1", "3"), (None, "1", "2"), False, id="other-publisher"),
        pytest.param((None, "3", "2"), (None, "1", "2"), False, id="other-offer"),
    ],
)
def test_last_click_a_different_click_replaces_the_stored_one(
    new: tuple[str | None, ...], stored: tuple[str | None, ...], same: bool
) -> None:
    """The same click again, a refreshed page, keeps the time of the first."""
    click, earlier = make_click(*new), make_click(*stored, at=NOW - timedelta(minutes=1))

    assert click.repeats(earlier) is same
    assert click.replaces(earlier, "last-click") is not same


@pytest.mark.parametrize(
    ("age", "renewed"),
    [
        pytest.param(timedelta(minutes=30) - timedelta(seconds=1), False, id="before-30-minutes"),
        pytest.param(timedelta(minutes=30), True, id="after-30-minutes"),
        pytest.param(timedelta(minutes=-5), False, id="stored-by-a-fast-clock"),
    ],
)
def test_without_a_transaction_id_the_same_pair_renews_after_30_minutes(age: timedelta, renewed: bool) -> None:
    """Without one, a second visit through the link looks like a refreshed page."""
    click, stored = make_click(None), make_click(None, at=NOW - age)

    assert click.replaces(stored, "last-click") is renewed


def test_the_same_transaction_never_renews_the_click() -> None:
    stored = make_click(at=NOW - timedelta(days=29))

    assert not make_click().replaces(stored, "last-click")


def chain(*transactions: str | None, each: timedelta = timedelta(minutes=1)) -> Click:
    """The click that is stored after clicks with these transaction ids, the last one now."""
    stored: Click | None = None
    for number, transaction_id in enumerate(transactions, start=1 - len(transactions)):
        stored = make_click(transaction_id, at=NOW + number * each).after(stored)
    assert stored is not None
    return stored


@pytest.mark.parametrize(
    ("new", "stored", "counts"),
    [
        pytest.param("a", chain("a", "b"), False, id="just-replaced"),
        pytest.param("a", chain("a", "b", "c", "d", "e"), False, id="four-ago"),
        pytest.param("a", chain("a", "b", "c", "d", "e", "f"), True, id="five-ago"),
        pytest.param("c", chain("a", "b"), True, id="never-seen"),
        pytest.param("a", chain("a", "b", each=timedelta(days=20)), False, id="replaced-long-ago"),
        pytest.param(None, chain(None, "b"), False, id="direct-link"),
    ],
)
def test_a_click_that_was_replaced_is_no_new_click(new: str | None, stored: Click, counts: bool) -> None:
    """Land through A, land through B, reload A's old tab: B brought the shopper last."""
    assert make_click(new).replaces(stored, "last-click") is counts


@pytest.mark.parametrize(("minutes", "counts"), [(29, False), (30, True)])
def test_without_a_transaction_id_a_replaced_pair_counts_again_after_30_minutes(minutes: int, counts: bool) -> None:
    """A second click on the same link looks like a tab that was loaded again."""
    stored = chain(None, "b")

    assert make_click(None, at=NOW + timedelta(minutes=minutes)).replaces(stored, "last-click") is counts


def test_what_was_replaced_is_remembered_in_short_and_once() -> None:
    renewed = chain("a", None, "b", None)

    assert len(chain(*"abcdefgh").replaced) == MOST_REPLACED
    assert chain("a").replaced == ()
    assert len(renewed.replaced) == 2  # a and b, but not itself
    assert {len(fingerprint) for fingerprint in renewed.replaced} == {FINGERPRINT}


@pytest.mark.parametrize("attribution", ["last-click", "first-click"])
def test_any_click_is_kept_when_none_is_stored(attribution: str) -> None:
    assert make_click().replaces(None, attribution)


def test_first_click_keeps_the_stored_one() -> None:
    stored = make_click("t", at=NOW - timedelta(days=29))

    assert not make_click("u").replaces(stored, "first-click")


def test_a_click_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_click().aff_id = "3"  # type: ignore[misc]
