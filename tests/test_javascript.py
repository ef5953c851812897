"""Katalys' JavaScript: the element that an ``offline_conv`` shop puts on its pages."""

from __future__ import annotations

import pytest

from katalys_wsgi.javascript import Html, script_tag

from .support import SITE_ID

ENDPOINT = "https://db.revoffers.com/v2/_tr_offline"


def test_it_is_the_specifications() -> None:
    tag = script_tag(ENDPOINT, SITE_ID)

    assert tag == f'<script type="text/javascript" src="https://db.revoffers.com/js/{SITE_ID}.js" async></script>'


def test_the_host_and_the_port_are_those_of_the_endpoint() -> None:
    assert f' src="http://127.0.0.1:8025/js/{SITE_ID}.js" ' in script_tag("http://127.0.0.1:8025/x", SITE_ID)


def test_a_nonce_becomes_an_attribute() -> None:
    assert script_tag(ENDPOINT, SITE_ID, nonce="abc+/=").endswith(' async nonce="abc+/="></script>')


@pytest.mark.parametrize("nonce", [None, ""], ids=["none", "empty"])
def test_without_a_nonce_there_is_no_attribute(nonce: str | None) -> None:
    assert "nonce" not in script_tag(ENDPOINT, SITE_ID, nonce)


@pytest.mark.parametrize(
    ("endpoint", "nonce"),
    [
        pytest.param(ENDPOINT, '"><script>alert(1)</script>', id="nonce"),
        pytest.param('https://db.revoffers.com"><script>/v2', None, id="endpoint"),
    ],
)
def test_what_it_is_made_of_cannot_break_out_of_its_attribute(endpoint: str, nonce: str | None) -> None:
    tag = script_tag(endpoint, SITE_ID, nonce)

    assert tag.count("<script") == 1
    assert tag.count('"') % 2 == 0


def test_templates_do_not_escape_it_again() -> None:
    markupsafe = pytest.importorskip("markupsafe")
    tag = script_tag(ENDPOINT, SITE_ID)

    assert markupsafe.escape(tag) == tag
    assert type(tag) is Html
    assert type(tag.__html__()) is str
