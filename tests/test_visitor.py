"""The visitor: nothing that a visitor can invent is believed."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katalys_wsgi.attribution.visitor import Visitor

from .support import BUYER_AGENT, BUYER_IP, make_environ

fuzzed = settings(derandomize=True, database=None, deadline=None, max_examples=100)

PEER = "192.0.2.1"


def environ(forwarded_for: str | None = None, *, peer: str | None = PEER) -> dict[str, str]:
    found = {"REMOTE_ADDR": peer, "HTTP_X_FORWARDED_FOR": forwarded_for}
    return {name: value for name, value in found.items() if value is not None}


# --- the address ---


@pytest.mark.parametrize(
    "forwarded_for", [None, "198.51.100.9", "198.51.100.9, 203.0.113.7"], ids=["none", "one", "two"]
)
def test_without_proxies_the_peer_is_the_visitor_whatever_a_header_says(forwarded_for: str | None) -> None:
    assert Visitor(environ(forwarded_for)).client_ip == PEER


@pytest.mark.parametrize(
    ("proxies", "forwarded_for", "address"),
    [
        pytest.param(1, "203.0.113.7", "203.0.113.7", id="one-proxy"),
        pytest.param(1, "6.6.6.6, 203.0.113.7", "203.0.113.7", id="one-proxy-and-an-invention"),
        pytest.param(1, "6.6.6.6,203.0.113.7", "203.0.113.7", id="no-space"),
        pytest.param(1, " 203.0.113.7 ", "203.0.113.7", id="spaces"),
        pytest.param(2, "203.0.113.7, 198.51.100.2", "203.0.113.7", id="two-proxies"),
        pytest.param(2, "6.6.6.6, 203.0.113.7, 198.51.100.2", "203.0.113.7", id="two-proxies-and-an-invention"),
        pytest.param(3, "203.0.113.7, 198.51.100.2, 198.51.100.3", "203.0.113.7", id="three-proxies"),
        pytest.param(2, "203.0.113.7", None, id="a-proxy-was-passed-by"),
        pytest.param(1, "", None, id="empty-header"),
        pytest.param(1, None, None, id="no-header"),
        pytest.param(1, "203.0.113.7, unknown", None, id="unknown"),
        pytest.param(1, "203.0.113.7, _hidden", None, id="obfuscated"),
        pytest.param(1, "203.0.113.7, ", None, id="nothing-appended"),
    ],
)
def test_behind_proxies_the_nth_entry_from_the_right_is_the_visitor(
    proxies: int, forwarded_for: str | None, address: str | None
) -> None:
    """Each proxy appends whom it was called by. What stands further left, the visitor wrote there."""
    assert Visitor(environ(forwarded_for), proxies).client_ip == address


ADDRESSES = [
    pytest.param("203.0.113.7", "203.0.113.7", id="ipv4"),
    pytest.param("203.0.113.7:51234", "203.0.113.7", id="ipv4-port"),
    pytest.param("2001:db8::7", "2001:db8::7", id="ipv6"),
    pytest.param("2001:0DB8:0:0:0:0:0:7", "2001:db8::7", id="ipv6-written-out"),
    pytest.param("[2001:db8::7]", "2001:db8::7", id="ipv6-brackets"),
    pytest.param("[2001:db8::7]:51234", "2001:db8::7", id="ipv6-port"),
    pytest.param("fe80::1%eth0", "fe80::1", id="zone"),
    pytest.param("[fe80::1%25eth0]:80", "fe80::1", id="zone-and-port"),
    pytest.param("::ffff:203.0.113.7", "203.0.113.7", id="ipv4-mapped"),
    pytest.param("[::ffff:203.0.113.7]:51234", "203.0.113.7", id="ipv4-mapped-port"),
    pytest.param("", None, id="empty"),
    pytest.param("unix:", None, id="unix-socket"),
    pytest.param("unix:/run/shop.sock", None, id="unix-socket-path"),
    pytest.param("localhost", None, id="name"),
    pytest.param("203.0.113", None, id="three-numbers"),
    pytest.param("203.0.113.256", None, id="256"),
    pytest.param("0x7f.1", None, id="hexadecimal"),
    pytest.param("\uff11.\uff12.\uff13.\uff14", None, id="full-width-digits"),
    pytest.param("203.0.113.7 OR 1=1", None, id="sql"),
    pytest.param("203.0.113.7\r\n", "203.0.113.7", id="line-break"),
    pytest.param("\udcff", None, id="lone-surrogate"),
    pytest.param("9" * 10_000, None, id="10000-digits"),
]


@pytest.mark.parametrize(("text", "address"), ADDRESSES)
def test_an_address_is_valid_and_plain_or_absent(text: str, address: str | None) -> None:
    """Katalys parses it; a shop's own server address in its place would be worse than none."""
    assert Visitor(environ(peer=text)).client_ip == address
    assert Visitor(environ(text), 1).client_ip == address


def test_without_any_address_there_is_none() -> None:
    """Servers on a Unix socket have no peer."""
    assert Visitor({}).client_ip is None


@fuzzed
@given(
    st.text(alphabet=st.characters(exclude_categories=()), max_size=80)
    | st.tuples(
        st.sampled_from(["", "[", "x,", " "]),
        st.ip_addresses().map(str),
        st.sampled_from(["", "]", ":80", "]:80", "%eth0", ", "]),
    ).map("".join),
    st.integers(0, 2),
)
def test_no_header_whatever_raises_and_what_is_returned_is_an_address(text: str, proxies: int) -> None:
    address = Visitor(environ(text, peer=text), proxies).client_ip

    if address is not None:
        assert str(ipaddress.ip_address(address)) == address


@fuzzed
@given(st.ip_addresses(), st.ip_addresses(), st.text(alphabet="0123456789abcdef.:,[] ", max_size=60))
def test_no_invention_moves_the_visitor(client: object, proxy: object, invention: str) -> None:
    honest = Visitor(environ(f"{client}, {proxy}"), 2).client_ip

    assert Visitor(environ(f"{invention},{client}, {proxy}"), 2).client_ip == honest
    assert honest is not None


# --- the user agent ---


@pytest.mark.parametrize(
    ("header", "text"),
    [
        pytest.param("Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 (X11; Linux x86_64)", id="plain"),
        pytest.param("", "", id="empty"),
        pytest.param("  Mozilla/5.0 ", "Mozilla/5.0", id="spaces"),
        pytest.param("Größe/1.0".encode().decode("latin-1"), "Größe/1.0", id="utf-8"),
        pytest.param("Gr\xf6\xdfe/1.0", "Gr��e/1.0", id="latin-1"),
        pytest.param("x\udcffy", "x?y", id="lone-surrogate"),
        pytest.param("x" * 5000, "x" * 1024, id="too-long"),
    ],
)
def test_the_user_agent_is_readable_and_of_bounded_length(header: str, text: str) -> None:
    assert Visitor({"HTTP_USER_AGENT": header}).user_agent == text


def test_without_a_user_agent_it_is_empty() -> None:
    assert Visitor({}).user_agent == ""


@fuzzed
@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=80))
def test_no_user_agent_raises_and_each_can_be_encoded(header: str) -> None:
    assert len(Visitor({"HTTP_USER_AGENT": header}).user_agent.encode()) <= 4 * len(header)


# --- the scheme ---


@pytest.mark.parametrize(
    ("scheme", "forwarded", "proxies", "https"),
    [
        pytest.param("http", None, 0, False, id="plain"),
        pytest.param("https", None, 0, True, id="tls"),
        pytest.param("http", "https", 0, False, id="header-without-proxy"),
        pytest.param("https", "http", 0, True, id="header-cannot-lower-either"),
        pytest.param("http", "https", 1, True, id="tls-ends-at-the-proxy"),
        pytest.param("https", "http", 1, False, id="tls-inside-only"),
        pytest.param("http", None, 1, False, id="proxy-says-nothing"),
        pytest.param("https", None, 1, True, id="proxy-says-nothing-tls"),
        pytest.param("http", "HTTPS ", 1, True, id="upper-case"),
        pytest.param("http", "https, http", 1, False, id="invention-on-the-left"),
        pytest.param("http", "", 1, False, id="empty"),
    ],
)
def test_the_scheme_is_the_visitors_own(scheme: str, forwarded: str | None, proxies: int, https: bool) -> None:
    found = {"wsgi.url_scheme": scheme}
    if forwarded is not None:
        found["HTTP_X_FORWARDED_PROTO"] = forwarded

    assert Visitor(found, proxies).is_https is https


# --- the host ---


@pytest.mark.parametrize(
    ("header", "host"),
    [
        pytest.param("shop.example", "shop.example", id="plain"),
        pytest.param("shop.example:8080", "shop.example", id="port"),
        pytest.param("Shop.EXAMPLE", "shop.example", id="upper-case"),
        pytest.param("[2001:db8::1]:80", "2001:db8::1", id="ipv6"),
        pytest.param("", None, id="empty"),
        pytest.param("[", None, id="unclosed-bracket"),
        pytest.param("sh\u2100p.example", None, id="confusable"),
        pytest.param(None, None, id="none"),
    ],
)
def test_the_host_is_the_one_that_was_asked_for(header: str | None, host: str | None) -> None:
    assert Visitor({} if header is None else {"HTTP_HOST": header}).host == host


@fuzzed
@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=80))
def test_no_host_header_raises(header: str) -> None:
    assert Visitor({"HTTP_HOST": header}).host != ""


# --- the visitor as a whole ---


def test_a_visitor_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Visitor({}).trusted_proxies = 3  # type: ignore[misc]


def test_its_repr_shows_no_personal_data() -> None:
    shown = repr(Visitor(make_environ(), 2))

    assert shown == "Visitor(trusted_proxies=2)"
    assert BUYER_IP not in shown
    assert BUYER_AGENT not in shown


# --- proxies that trusted_proxies does not count ---

PUBLIC = "8.8.8.8"


@pytest.mark.parametrize(
    ("found", "header"),
    [
        pytest.param({"REMOTE_ADDR": PUBLIC, "wsgi.url_scheme": "http"}, None, id="no-header"),
        pytest.param(
            {"REMOTE_ADDR": "10.0.0.1", "wsgi.url_scheme": "http", "HTTP_X_FORWARDED_PROTO": "https"},
            "X-Forwarded-Proto", id="tls-ends-in-front",
        ),
        pytest.param(
            {"REMOTE_ADDR": "10.0.0.1", "wsgi.url_scheme": "https", "HTTP_X_FORWARDED_PROTO": "https"},
            None, id="the-server-knows-it-is-tls",
        ),
        pytest.param(
            {"REMOTE_ADDR": "10.0.0.1", "wsgi.url_scheme": "http", "HTTP_X_FORWARDED_FOR": PUBLIC},
            "X-Forwarded-For", id="internal-peer",
        ),
        pytest.param(
            {"REMOTE_ADDR": "127.0.0.1", "wsgi.url_scheme": "http", "HTTP_X_FORWARDED_FOR": PUBLIC},
            "X-Forwarded-For", id="loopback-peer",
        ),
        pytest.param(
            {"REMOTE_ADDR": PUBLIC, "wsgi.url_scheme": "http", "HTTP_X_FORWARDED_FOR": "1.1.1.1"},
            None, id="a-visitors-invention",
        ),
        pytest.param({"REMOTE_ADDR": "", "HTTP_X_FORWARDED_FOR": PUBLIC}, "X-Forwarded-For", id="unix-socket"),
    ],
)  # fmt: skip
def test_a_proxy_that_was_not_announced_shows_itself(found: dict[str, str], header: str | None) -> None:
    assert Visitor(found).ignored_header == header


def test_a_proxy_that_was_announced_is_not_reported() -> None:
    found = {"REMOTE_ADDR": "10.0.0.1", "wsgi.url_scheme": "http", "HTTP_X_FORWARDED_PROTO": "https"}

    assert Visitor(found, 1).ignored_header is None
