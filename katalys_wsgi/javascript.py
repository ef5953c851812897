"""Katalys' JavaScript, which ``offline_conv`` requires on every page of the shop."""

from __future__ import annotations

from html import escape
from urllib.parse import urlsplit

__all__ = ["Html", "script_tag"]


class Html(str):
    """A string that is HTML already: template engines that know ``__html__`` do not escape it again."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)


def script_tag(endpoint: str, site_id: str, nonce: str | None = None) -> Html:
    """The element that loads it from the host of ``endpoint``.

    :param nonce: of the page's Content-Security-Policy, which needs that host in script-src and connect-src.
    """
    address = urlsplit(endpoint)
    source = f"{address.scheme}://{address.netloc}/js/{site_id}.js"
    attribute = f' nonce="{escape(nonce)}"' if nonce else ""
    return Html(f'<script type="text/javascript" src="{escape(source)}" async{attribute}></script>')
