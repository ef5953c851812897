"""Visit tokens: a visit as a signed string, for payment webhooks and returns that carry no cookie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .click import Click
from .cookie import SignedText, click_from_payload, click_payload

__all__ = ["VERSION", "TokenContent", "VisitTokens"]

#: The version inside the payload; a token of another one cannot be read.
VERSION = 1


class TokenContent(NamedTuple):
    """What a token holds; see :class:`~katalys_wsgi.Visit`."""

    click: Click | None
    client_ip: str | None
    user_agent: str
    no_consent: bool


class VisitTokens:
    """Writes and reads visit tokens.

    :param keys: secret keys, oldest first; the last one signs, every one is accepted.
    :param site_id: the shop's; a token of another one is not read.
    """

    #: The salt of their signature, together with the site.
    SALT = "katalys_wsgi.visit.v1"

    def __init__(self, keys: Sequence[str], *, site_id: str) -> None:
        self._signed = SignedText(keys, f"{self.SALT}.{site_id}")

    def dumps(self, content: TokenContent) -> str:
        """The token: URL-safe, readable to whoever sees it, and forged by nobody without a key."""
        click = click_payload(content.click) if content.click else None
        return self._signed.dumps([VERSION, click, *content[1:]])

    def loads(self, token: str) -> TokenContent:
        """What a token holds.

        :raises ValueError: it was altered, cut short or signed with an unknown key, or is of another version.
        """
        match self._signed.loads(token):
            case [version, click, str() | None as client_ip, str(user_agent), bool(no_consent)] if version == VERSION:
                return TokenContent(click_from_payload(click) if click else None, client_ip, user_agent, no_consent)
            case _:
                raise ValueError("a token of another version")
