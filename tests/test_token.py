"""Visit tokens: what a token holds comes back whole, and only from a token that this shop has signed."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from katalys_wsgi import Click
from katalys_wsgi.attribution.cookie import ClickCookie, SignedText
from katalys_wsgi.attribution.token import VERSION, TokenContent, VisitTokens

from .support import BUYER_AGENT, BUYER_IP, OLD_SECRET, SECRET, SITE_ID

CLICK = Click("1234abcd", "1234", "5678", datetime(2026, 11, 22, 12, 30, tzinfo=timezone.utc))
CONTENT = TokenContent(CLICK, BUYER_IP, BUYER_AGENT, no_consent=False)

#: The click inside a token's payload.
PAYLOAD = [1, "1234abcd", "1234", "5678", 1_795_350_600]


def signed(value: Any, key: str = SECRET, salt: str = f"{VisitTokens.SALT}.{SITE_ID}") -> str:
    """A string that is signed as a token is, whatever it holds."""
    return SignedText([key], salt).dumps(value)


def test_the_test_s_own_tokens_can_be_read() -> None:
    """Else nothing below would prove anything."""
    assert (
        VisitTokens([SECRET], site_id=SITE_ID).loads(signed([VERSION, PAYLOAD, BUYER_IP, "", False])).click is not None
    )


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(CONTENT, id="all"),
        pytest.param(CONTENT._replace(click=None), id="without a click"),
        pytest.param(CONTENT._replace(client_ip=None), id="without an address"),
        pytest.param(CONTENT._replace(user_agent=""), id="without an agent"),
        pytest.param(CONTENT._replace(user_agent="Grüße 😀 " + "x" * 2000), id="odd and long agent"),
        pytest.param(CONTENT._replace(click=None, no_consent=True), id="without consent"),
        pytest.param(CONTENT._replace(click=Click(None, "1", "2", CLICK.clicked_at)), id="without transaction id"),
    ],
)
def test_what_a_token_holds_comes_back(content: TokenContent) -> None:
    tokens = VisitTokens([SECRET], site_id=SITE_ID)

    assert tokens.loads(tokens.dumps(content)) == content


def test_it_fits_a_column_a_form_and_an_address() -> None:
    token = VisitTokens([SECRET], site_id=SITE_ID).dumps(CONTENT)

    assert re.fullmatch("[A-Za-z0-9._-]+", token)
    assert len(token) < 400


def test_the_last_key_signs_and_every_one_is_accepted() -> None:
    rotated = VisitTokens([OLD_SECRET, SECRET], site_id=SITE_ID)

    assert rotated.loads(VisitTokens([OLD_SECRET], site_id=SITE_ID).dumps(CONTENT)) == CONTENT
    assert VisitTokens([SECRET], site_id=SITE_ID).loads(rotated.dumps(CONTENT)) == CONTENT


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="empty"),
        pytest.param("nonsense", id="nonsense"),
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param("x" * 100_000, id="long"),
        pytest.param(signed([1, PAYLOAD, BUYER_IP, "", False])[:-1], id="cut short"),
        pytest.param("x" + signed([1, PAYLOAD, BUYER_IP, "", False]), id="altered"),
        pytest.param(signed([1, PAYLOAD, BUYER_IP, "", False], key=OLD_SECRET), id="unknown key"),
        pytest.param(
            signed([1, PAYLOAD, BUYER_IP, "", False], salt=f"{ClickCookie.SALT}.{SITE_ID}"), id="a cookie's salt"
        ),
        pytest.param(VisitTokens([SECRET], site_id="KA-7654321").dumps(CONTENT), id="another site"),
        pytest.param(signed([2, PAYLOAD, BUYER_IP, "", False]), id="other version"),
        pytest.param(signed([1, [2, *PAYLOAD[1:]], BUYER_IP, "", False]), id="other version of the click"),
        pytest.param(signed([1, [*PAYLOAD[:4], 10**30], BUYER_IP, "", False]), id="impossible time"),
        pytest.param(signed([1, PAYLOAD, 7, "", False]), id="address of another type"),
        pytest.param(signed([1, PAYLOAD, BUYER_IP, None, False]), id="agent of another type"),
        pytest.param(signed([1, PAYLOAD, BUYER_IP, "", 1]), id="consent of another type"),
        pytest.param(signed([1, PAYLOAD]), id="too short"),
        pytest.param(signed([1, PAYLOAD, BUYER_IP, "", False, 1]), id="too long"),
        pytest.param(signed("text"), id="not a list"),
        pytest.param(signed(None), id="null"),
    ],
)
def test_what_cannot_be_read_is_a_value_error_that_repeats_none_of_it(token: str) -> None:
    with pytest.raises(ValueError, match=r"version|sign|time") as raised:
        VisitTokens([SECRET], site_id=SITE_ID).loads(token)

    assert not token or token not in str(raised.value)
    assert BUYER_IP not in str(raised.value)


def test_a_cookie_is_not_a_token() -> None:
    """A visitor knows the own cookie, and could else make visits of it."""
    cookie = ClickCookie([SECRET], site_id=SITE_ID, window=timedelta(days=30)).dumps(CLICK)

    with pytest.raises(ValueError, match="signature"):
        VisitTokens([SECRET], site_id=SITE_ID).loads(cookie)
