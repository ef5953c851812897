"""The cookie: a frozen format, read among other vendors' broken cookies, and never a reason for an error page."""

from __future__ import annotations

import hashlib
import logging
import string
from datetime import datetime, timedelta, timezone
from http.cookies import SimpleCookie

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from itsdangerous import Signer, URLSafeSerializer

from katalys_wsgi import Click, Event
from katalys_wsgi.attribution.cookie import LONGEST_VALUE, MOST_CANDIDATES, ClickCookie, SignedText
from katalys_wsgi.events import Events
from katalys_wsgi.settings import Settings

from .support import OLD_SECRET, SECRET, SITE_ID

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
WINDOW = timedelta(days=30)
SALT = f"katalys_wsgi.click.v1.{SITE_ID}"

CLICK = Click("102ef7451ec3e20cf1360ef6df7e1e", "1234", "5678", NOW)

#: Written by 0.1 with SECRET for CLICK, and for the two clicks below. Every later version must read them.
GOLDEN = (
    "WzEsIjEwMmVmNzQ1MWVjM2UyMGNmMTM2MGVmNmRmN2UxZSIsIjEyMzQiLCI1Njc4IiwxNzcyMzY2NDAwXQ"
    ".H0iU_T9AwgPuBXxSt_8GGj_sGdWyMtlM3weVrLg7wwk"
)
DIRECT_LINK = Click(None, "1234", "5678", NOW)
GOLDEN_DIRECT_LINK = "WzEsbnVsbCwiMTIzNCIsIjU2NzgiLDE3NzIzNjY0MDBd.2RXn-cO0ORqiCTnGra8pzram539Oq-N8T83rTBlyGcU"
REPETITIVE = Click("x" * 128, "y" * 128, "z" * 128, NOW)
GOLDEN_REPETITIVE = ".eJyLNtRRqhhgoKSjVDnAAOiEqgEGSjqG5uZGxmZmJgYGsQB7h7nq.-tEdYwttNo7GRHF0QdFVizRi75k83joBk_qTYmYQjUU"

fuzzed = settings(derandomize=True, database=None, deadline=None, max_examples=200)


def make(*keys: str, **changes: object) -> ClickCookie:
    return ClickCookie(keys or (SECRET,), site_id=SITE_ID, window=WINDOW, **changes)  # type: ignore[arg-type]


def plain_serializer(keys: list[str], salt: str = SALT) -> URLSafeSerializer:
    """What anybody with itsdangerous and the key can build."""
    return URLSafeSerializer(keys, salt=salt, signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256})


def signed(payload: object) -> str:
    text: str = plain_serializer([SECRET]).dumps(payload)
    return text


def header(value: str) -> str:
    return f"katalys_click={value}"


def signed_bytes(payload: bytes) -> str:
    """A signature of ours around bytes that are not a payload of ours."""
    signer = Signer(SECRET, salt=SALT, key_derivation="hmac", digest_method=hashlib.sha256)
    return signer.sign(payload).decode("latin-1")


COOKIE = make()
NOT_JSON = signed_bytes(b"e25vdCBqc29u")  # base64 of {not json


# --- the format, frozen from 0.1 on ---


@pytest.mark.parametrize(
    ("click", "golden"),
    [
        pytest.param(CLICK, GOLDEN, id="three-ids"),
        pytest.param(DIRECT_LINK, GOLDEN_DIRECT_LINK, id="direct-link"),
    ],
)
def test_a_click_is_written_as_in_version_0_1(click: Click, golden: str) -> None:
    """A release that wrote anything else would cost its shops every click on the way back to the older one."""
    assert COOKIE.dumps(click) == golden


@pytest.mark.parametrize(
    ("click", "golden"),
    [
        pytest.param(CLICK, GOLDEN, id="three-ids"),
        pytest.param(DIRECT_LINK, GOLDEN_DIRECT_LINK, id="direct-link"),
        pytest.param(REPETITIVE, GOLDEN_REPETITIVE, id="compressed"),
    ],
)
def test_a_cookie_of_version_0_1_is_read_by_every_later_version(click: Click, golden: str) -> None:
    assert COOKIE.loads(golden) == click
    assert COOKIE.read(header(golden), NOW) == click


def test_plain_itsdangerous_reads_the_cookie() -> None:
    """The signature's digest, derivation and salt are all given explicitly: no default of itsdangerous decides them."""
    cookie = make(OLD_SECRET, SECRET)

    payload = plain_serializer([OLD_SECRET, SECRET]).loads(cookie.dumps(CLICK))

    assert payload == [1, "102ef7451ec3e20cf1360ef6df7e1e", "1234", "5678", 1772366400]


def test_what_plain_itsdangerous_writes_is_read() -> None:
    assert COOKIE.loads(signed([1, "t", "1", "2", 1772366400])) == Click("t", "1", "2", NOW)


def test_a_typical_value_takes_less_than_200_bytes() -> None:
    """It travels with every request."""
    assert len(COOKIE.dumps(CLICK)) < 200
    assert len("katalys_click=" + COOKIE.dumps(CLICK)) < 200


def test_what_was_replaced_comes_back_and_takes_few_bytes() -> None:
    click = CLICK
    for number in range(6):
        click = Click(f"{number:030x}", "1234", "5678", NOW).after(click)

    value = COOKIE.dumps(click)

    assert len(click.replaced) == 4
    assert COOKIE.loads(value).replaced == click.replaced
    assert len("katalys_click=" + value) < 240


def test_the_longest_click_fits_into_a_cookie() -> None:
    """RFC 6265 §6.1: browsers keep 4096 bytes of name, value and attributes."""
    a, b, c = (hashlib.sha512(name.encode()).hexdigest() for name in "abc")
    longest = Click(a, b, c, NOW)

    text = COOKIE.set_cookie(longest, secure=True)

    assert len(text) < 1024
    assert COOKIE.read(text.partition(";")[0], NOW) == longest


def test_the_value_needs_no_quotes_in_a_cookie() -> None:
    assert set(COOKIE.dumps(CLICK)) <= {*string.ascii_letters, *string.digits, *"._-"}


def test_the_time_of_the_click_is_kept_to_the_second() -> None:
    click = Click("t", None, None, NOW + timedelta(milliseconds=900))

    assert COOKIE.loads(COOKIE.dumps(click)) == Click("t", None, None, NOW)


def test_the_time_of_the_click_does_not_depend_on_its_zone() -> None:
    click = Click("t", None, None, NOW.astimezone(timezone(timedelta(hours=-8))))

    assert COOKIE.dumps(click) == COOKIE.dumps(Click("t", None, None, NOW))


_ids = st.none() | st.from_regex(r"[A-Za-z0-9._~:-]{1,128}", fullmatch=True)


@fuzzed
@given(_ids, _ids, _ids, st.integers(0, 4_000_000_000))
def test_every_click_comes_back(
    transaction_id: str | None, offer_id: str | None, aff_id: str | None, seconds: int
) -> None:
    click = Click(transaction_id, offer_id, aff_id, datetime.fromtimestamp(seconds, timezone.utc))

    assert COOKIE.loads(COOKIE.dumps(click)) == click
    assert COOKIE.read(header(COOKIE.dumps(click)), click.clicked_at) == click


# --- the Set-Cookie header ---


@pytest.mark.parametrize(
    ("changes", "secure", "attributes"),
    [
        pytest.param({}, False, ["Path=/", "HttpOnly", "SameSite=Lax", "Max-Age=2592000"], id="plain"),
        pytest.param({}, True, ["Path=/", "secure", "HttpOnly", "SameSite=Lax", "Max-Age=2592000"], id="secure"),
        pytest.param(
            {"domain": "example.com"}, False,
            ["Domain=example.com", "Path=/", "HttpOnly", "SameSite=Lax", "Max-Age=2592000"], id="domain",
        ),
    ],
)  # fmt: skip
def test_the_attributes_are_these(changes: dict[str, str], secure: bool, attributes: list[str]) -> None:
    """Path=/, or the landing directory would keep the click; Lax, or hidden frames could set it; no script reads it."""
    value, *found = make(**changes).set_cookie(CLICK, secure=secure).split("; ")

    assert value == header(GOLDEN)
    assert found == attributes


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
def test_a_removal_has_the_same_name_and_scope_and_no_time_to_live(secure: bool) -> None:
    """Else browsers keep the cookie: name, Domain and Path say which one is meant (RFC 6265 §5.3)."""
    cookie = make(domain="example.com")

    removal, setting = cookie.removal(secure=secure), cookie.set_cookie(CLICK, secure=secure)

    assert removal == setting.replace(GOLDEN, "").replace("Max-Age=2592000", "Max-Age=0")


def test_max_age_is_the_attribution_window() -> None:
    """Not Expires, which a browser with a wrong clock would read as long ago."""
    cookie = ClickCookie([SECRET], site_id=SITE_ID, window=timedelta(hours=1)).set_cookie(CLICK, secure=False)

    assert cookie.endswith("; Max-Age=3600")
    assert "expires" not in cookie.lower()


@pytest.mark.parametrize(
    "name", ["katalys_click", "__Host-click", "a", "a$b", "!#%&'*+^`|~.-_", "x" * 64], ids=lambda name: name[:16]
)
def test_every_cookie_name_that_the_settings_accept_can_be_written_and_read(name: str) -> None:
    accepted = Settings(site_id=SITE_ID, secret_key=SECRET, cookie_name=name, cookie_secure=True)
    cookie = make(name=accepted.cookie_name)

    text = cookie.set_cookie(CLICK, secure=True)

    assert text.startswith(f"{name}={GOLDEN}; ")
    assert cookie.read(f"a=b; {name}={GOLDEN}", NOW) == CLICK


# --- among other vendors' cookies ---

OURS = header(GOLDEN)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(OURS, id="alone"),
        pytest.param(f"a=b; {OURS}; c=d", id="between"),
        pytest.param(f"a=b;{OURS};c=d", id="no-spaces"),
        pytest.param(f"a=b ;   {OURS}   ; c=d", id="many-spaces"),
        pytest.param(f";;; ; {OURS};;", id="empty-pairs"),
        pytest.param(f'consent={{"ads":true,"id":"x"}}; {OURS}', id="json-before"),
        pytest.param(f'{OURS}; consent={{"ads": true, "list": [1, 2]}}', id="json-after"),
        pytest.param(f"name=Ann Smith; {OURS}", id="space"),
        pytest.param(f"a[0]=(x); <b>=@; {OURS}", id="brackets"),
        pytest.param(f'a="unclosed; {OURS}', id="unclosed-quote"),
        pytest.param(f'a="x\\"; {OURS}; b="', id="escaped-quote"),
        pytest.param(f"novalue; {OURS}", id="no-equals-sign"),
        pytest.param(f"=noname; {OURS}", id="no-name"),
        pytest.param(f"a==b=c; {OURS}", id="many-equals-signs"),
        pytest.param(f"a=Gr\xc3\xb6\xc3\x9fe; {OURS}", id="utf-8"),
        pytest.param(f"a=\xff\x00\x01; {OURS}", id="control-characters"),
        pytest.param(f"a=\udcff; {OURS}", id="lone-surrogate"),
        pytest.param(f"a=b, {OURS}", id="comma-joined"),
        pytest.param(f"{OURS},a=b", id="comma-joined-after"),
        pytest.param(f"a=b\t;\t{OURS}", id="tabs"),
        pytest.param(f'katalys_click="{GOLDEN}"', id="quoted"),
        pytest.param(f"katalys_click_2=x; {OURS}", id="a-longer-name"),
        pytest.param(f"my_katalys_click=x; {OURS}", id="a-name-that-ends-like-ours"),
        pytest.param(f"Katalys_Click=x; {OURS}", id="another-case"),
        pytest.param(f"$Version=1; {OURS}; $Path=/", id="rfc-2109"),
        pytest.param("; ".join([f"c{number}=x" for number in range(200)] + [OURS]), id="200-others"),
    ],
)
def test_the_click_is_found_whatever_stands_around_it(text: str) -> None:
    """Standard parsers give up at another vendor's JSON or at a comma; every consent banner writes such cookies."""
    assert COOKIE.read(text, NOW) == CLICK


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="no-cookie"),
        pytest.param("a=b", id="others"),
        pytest.param("katalys_click=", id="empty"),
        pytest.param("katalys_click", id="no-value"),
        pytest.param('katalys_click=""', id="quotes-only"),
        pytest.param("katalys_click=deleted", id="another-value"),
        pytest.param(f"katalys_click={GOLDEN.partition('.')[0]}", id="unsigned"),
        pytest.param(f"katalys_click={GOLDEN.partition('.')[0]}.", id="empty-signature"),
        pytest.param(f"katalys_click=.{GOLDEN.partition('.')[2]}", id="signature-only"),
        pytest.param(f"katalys_click={GOLDEN[:-4]}", id="cut-short"),
        pytest.param(f"katalys_click={GOLDEN}x", id="too-long"),
        pytest.param(f"katalys_click={GOLDEN} x", id="space-inside"),
        pytest.param(f"katalys_click={GOLDEN}\udcff", id="lone-surrogate"),
        pytest.param(f"katalys_click={GOLDEN}\xe9", id="not-ascii"),
        pytest.param(f"katalys_click=%22{GOLDEN}%22", id="percent-encoded-quotes"),
        pytest.param(f"my_katalys_click={GOLDEN}", id="a-name-that-ends-like-ours"),
        pytest.param(f"a=katalys_click={GOLDEN}", id="inside-another-value"),
        pytest.param(f"Katalys_Click={GOLDEN}", id="another-case"),
        pytest.param(f"katalys_click={'A' * (LONGEST_VALUE + 1)}", id="over-long"),
        pytest.param(f"katalys_click={'.' * 4000}", id="dots"),
    ],
)
def test_anything_else_holds_no_click(text: str) -> None:
    assert COOKIE.read(text, NOW) is None


@fuzzed
@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=300))
@example("katalys_click=\udcff.\udcff")
@example("katalys_click=" * 500)
def test_no_header_whatever_raises(text: str) -> None:
    assert COOKIE.read(text, NOW) is None
    assert COOKIE.read("katalys_click=" + text, NOW) is None


@fuzzed
@given(st.text(alphabet='abcé{}[]"\\=, \t%\x00\udcff', max_size=60), st.text(alphabet='abc{}[]"=, ', max_size=60))
def test_no_neighbour_hides_the_click(before: str, after: str) -> None:
    assert COOKIE.read(f"a={before}; {OURS}; b={after}", NOW) == CLICK


@fuzzed
@given(st.text(alphabet=string.ascii_letters + string.digits + "._-", max_size=200))
def test_nothing_in_our_own_alphabet_raises_either(text: str) -> None:
    assert COOKIE.read(header(text), NOW) is None


# --- several candidates ---


def aged(days: float, transaction_id: str) -> str:
    return header(COOKIE.dumps(Click(transaction_id, None, None, NOW - timedelta(days=days))))


FORGED = header(make(OLD_SECRET).dumps(Click("forged", None, None, NOW)))


@pytest.mark.parametrize(
    ("candidates", "transaction_id"),
    [
        pytest.param([aged(2, "older"), aged(1, "newer")], "newer", id="newer-last"),
        pytest.param([aged(1, "newer"), aged(2, "older")], "newer", id="newer-first"),
        pytest.param([aged(2, "older"), FORGED], "older", id="forged-is-newer"),
        pytest.param([aged(2, "older"), aged(-1, "tomorrow")], "older", id="from-the-future"),
        pytest.param([aged(31, "expired"), aged(2, "older")], "older", id="expired"),
        pytest.param(["katalys_click=x", aged(2, "older"), "katalys_click="], "older", id="garbage-around"),
        pytest.param(["katalys_click=x"] * (MOST_CANDIDATES - 1) + [aged(2, "older")], "older", id="the-last-tried"),
        pytest.param([aged(31, "expired"), FORGED], None, id="none-counts"),
    ],
)
def test_of_several_candidates_the_newest_valid_one_counts(candidates: list[str], transaction_id: str | None) -> None:
    """Two domains or two paths may each have kept one; a subdomain may have planted one."""
    click = COOKIE.read("; ".join(candidates), NOW)

    assert (click and click.transaction_id) == transaction_id


def test_junk_of_our_name_in_front_does_not_hide_the_click() -> None:
    """A subdomain can plant cookies with a longer path, which browsers send first; eight were enough."""
    planted = [f"katalys_click={GOLDEN[:-8]}{number:08}" for number in range(49)]

    assert COOKIE.read("; ".join([*planted, OURS]), NOW) == CLICK


def test_no_header_makes_the_shop_check_thousands_of_signatures() -> None:
    planted = ["katalys_click=x"] * 5000

    assert COOKIE.read("; ".join([*planted, aged(1, "late")]), NOW) is None


# --- expiry, by the click's own time ---


@pytest.mark.parametrize(
    ("age", "counts"),
    [
        pytest.param(timedelta(0), True, id="now"),
        pytest.param(timedelta(seconds=-1), True, id="one-second-in-the-future"),
        pytest.param(timedelta(seconds=-300), True, id="five-minutes-in-the-future"),
        pytest.param(timedelta(seconds=-301), False, id="further-in-the-future"),
        pytest.param(WINDOW, True, id="the-last-moment"),
        pytest.param(WINDOW + timedelta(seconds=1), False, id="expired"),
        pytest.param(timedelta(days=20_000), False, id="1971"),
    ],
)
def test_a_click_is_read_inside_the_window_only(age: timedelta, counts: bool) -> None:
    """The max_age of itsdangerous rejects a token that another host dated one second ahead."""
    click = Click("t", None, None, NOW - age)

    assert COOKIE.read(header(COOKIE.dumps(click)), NOW) == (click if counts else None)


def test_a_developer_may_look_at_a_click_without_its_key() -> None:
    """``loads_unsafe`` believes any signature; what cannot be read at all is still an error."""
    stranger = ClickCookie([OLD_SECRET], site_id=SITE_ID, window=WINDOW)

    assert stranger.loads_unsafe(GOLDEN) == CLICK
    assert stranger.loads_unsafe(GOLDEN.rpartition(".")[0] + ".forged") == CLICK
    for value in ("", "nonsense", "a b", GOLDEN[:20] + ".x", "Zm9v.x", "WzldLg.x"):
        with pytest.raises(ValueError, match=r"signed string|payload"):
            stranger.loads_unsafe(value)


def test_an_old_cookie_can_still_be_decoded() -> None:
    """For the question what was in it."""
    click = Click("t", None, None, NOW - timedelta(days=3000))

    assert COOKIE.loads(COOKIE.dumps(click)) == click


# --- forgery ---


def altered(positions: range) -> list[str]:
    """The golden value with one of its characters replaced by one of three others, left out, or doubled."""
    return [
        GOLDEN[:position] + instead + GOLDEN[position + 1 :]
        for position in positions
        for instead in ("A", "_", chr(ord(GOLDEN[position]) ^ 1), "", GOLDEN[position] * 2)
        if instead != GOLDEN[position]
    ]


def test_a_value_altered_at_any_byte_but_the_last_holds_no_click() -> None:
    forgeries = altered(range(len(GOLDEN) - 1))

    assert len(forgeries) > 4 * (len(GOLDEN) - 1)
    assert [text for text in forgeries if COOKIE.read(header(text), NOW) is not None] == []


def test_a_value_altered_at_its_last_byte_is_never_another_click() -> None:
    """Two bits of base64's last character mean nothing, so it may be the same click still."""
    read = {COOKIE.read(header(text), NOW) for text in altered(range(len(GOLDEN) - 1, len(GOLDEN)))}

    assert read <= {None, CLICK}


def test_a_signature_of_another_click_does_not_fit() -> None:
    payload, signature = GOLDEN.split(".")[0], GOLDEN_DIRECT_LINK.split(".")[1]

    assert COOKIE.read(header(f"{payload}.{signature}"), NOW) is None


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(make(OLD_SECRET).dumps(CLICK), id="another-key"),
        pytest.param(plain_serializer([SECRET], f"katalys_wsgi.visit.v1.{SITE_ID}").dumps(
            [1, "t", "1", "2", 1772366400]), id="another-salt"),
        pytest.param(URLSafeSerializer(SECRET, salt=SALT).dumps([1, "t", "1", "2", 1772366400]), id="sha-1"),
        pytest.param(URLSafeSerializer("", salt=SALT, signer_kwargs={
            "key_derivation": "hmac", "digest_method": hashlib.sha256,
        }).dumps([1, "t", "1", "2", 1772366400]), id="empty-key"),
        pytest.param(URLSafeSerializer(SECRET, salt=SALT, signer_kwargs={
            "key_derivation": "none", "digest_method": hashlib.sha256,
        }).dumps([1, "t", "1", "2", 1772366400]), id="no-derivation"),
    ],
)  # fmt: skip
def test_a_value_signed_in_another_way_holds_no_click(other: str) -> None:
    assert COOKIE.read(header(other), NOW) is None


@pytest.mark.parametrize("site_id", ["KA-7654321", "", SITE_ID + "0", SITE_ID.lower()])
def test_a_click_of_one_site_is_none_of_another_with_the_same_key(site_id: str) -> None:
    """Two shops under one domain share the cookie's name, and a sale of one was credited with a click of the other."""
    another = ClickCookie([SECRET], site_id=site_id, window=WINDOW)

    assert COOKIE.read(header(another.dumps(CLICK)), NOW) is None
    assert another.read(OURS, NOW) is None


def test_neither_a_visit_token_is_read_as_a_cookie_nor_a_cookie_as_a_token() -> None:
    """Each use has its own salt."""
    tokens = SignedText([SECRET], f"katalys_wsgi.visit.v1.{SITE_ID}")

    assert COOKIE.read(header(tokens.dumps([1, "t", "1", "2", 1772366400])), NOW) is None
    with pytest.raises(ValueError, match="does not match"):
        tokens.loads(GOLDEN)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param([2, "t", "1", "2", 1772366400], id="a-later-version"),
        pytest.param([1, "t", "1", "2"], id="too-short"),
        pytest.param([1, "t", "1", "2", 1772366400, 5], id="replaced-as-number"),
        pytest.param([1, "t", "1", "2", 1772366400, "abcdefgh", 5], id="too-long"),
        pytest.param([1, "t", "1", "2", "1772366400"], id="time-as-string"),
        pytest.param([1, "t", "1", "2", None], id="no-time"),
        pytest.param([1, "t", "1", "2", 1772366400.5], id="time-as-float"),
        pytest.param([1, "t", "1", "2", 10**13], id="year-318857"),
        pytest.param([1, "t", "1", "2", 10**30], id="no-time-at-all"),
        pytest.param([1, "t", "1", "2", -(10**30)], id="before-all-time"),
        pytest.param({"transaction_id": "t"}, id="mapping"),
        pytest.param("t", id="string"),
        pytest.param(None, id="null"),
        pytest.param([], id="empty"),
    ],
)
def test_a_signed_payload_of_another_shape_holds_no_click(payload: object) -> None:
    """A later version, rolled back, must not take the shop's pages down."""
    assert COOKIE.read(header(signed(payload)), NOW) is None
    with pytest.raises(ValueError, match=r"the payload (is of another version|has an impossible time)"):
        COOKIE.loads(signed(payload))


@pytest.mark.parametrize(
    "payload", [b"{not json", b"\xff\xfe", b"", b"."], ids=["not-json", "not-utf-8", "empty", "empty-compressed"]
)
def test_a_signed_string_that_is_not_json_holds_no_click(payload: bytes) -> None:
    assert COOKIE.read(header(signed_bytes(payload)), NOW) is None


# --- rotated keys ---


def test_a_click_signed_with_the_old_key_is_read_after_rotation() -> None:
    written = make(OLD_SECRET).dumps(CLICK)

    assert make(OLD_SECRET, SECRET).read(header(written), NOW) == CLICK


def test_the_last_key_signs() -> None:
    assert make(OLD_SECRET, SECRET).dumps(CLICK) == make(SECRET).dumps(CLICK)


def test_a_key_that_is_no_longer_listed_is_refused() -> None:
    written = make(OLD_SECRET).dumps(CLICK)

    assert make(SECRET).read(header(written), NOW) is None


# --- what is logged about it ---


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(GOLDEN[:-4], "the signature does not match", id="cut-short"),
        pytest.param(GOLDEN + " x", "not a signed string", id="another-alphabet"),
        pytest.param(signed([2, "t", "1", "2", 1772366400]), "the payload is of another version", id="later-version"),
        pytest.param(signed([1, "t", "1", "2", 10**30]), "the payload has an impossible time", id="impossible-time"),
        pytest.param(NOT_JSON, "the signed payload cannot be read", id="not-json"),
    ],
)
def test_an_unreadable_cookie_is_one_debug_line_that_repeats_none_of_it(
    value: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    cookie = ClickCookie([SECRET], site_id=SITE_ID, window=WINDOW, events=Events([events.append]))

    with caplog.at_level(logging.DEBUG, "katalys_wsgi"):
        cookie.read(header(value), NOW)

    (line,) = caplog.records
    assert (line.levelno, line.getMessage()) == (logging.DEBUG, f"katalys_wsgi.cookie_unreadable reason={reason}")
    assert [event.name for event in events] == ["cookie_unreadable"]


@pytest.mark.parametrize("text", ["", 'a=b; consent={"x":1}', header(GOLDEN)], ids=["none", "others", "readable"])
def test_a_request_with_nothing_unreadable_logs_nothing(text: str, caplog: pytest.LogCaptureFixture) -> None:
    cookie = ClickCookie([SECRET], site_id=SITE_ID, window=WINDOW, events=Events())

    with caplog.at_level(logging.DEBUG, "katalys_wsgi"):
        cookie.read(text, NOW)

    assert caplog.records == []


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
def test_the_standard_library_reads_what_we_set(secure: bool) -> None:
    """The header keeps to the grammar that other parsers expect."""
    parsed = SimpleCookie(COOKIE.set_cookie(CLICK, secure=secure))

    assert {name: morsel.value for name, morsel in parsed.items()} == {"katalys_click": GOLDEN}
    assert {name: value for name, value in parsed["katalys_click"].items() if value} == {
        "path": "/", "httponly": True, "samesite": "Lax", "max-age": "2592000", **({"secure": True} if secure else {}),
    }  # fmt: skip
