"""Who is asking: the buyer's address, user agent and scheme, as the WSGI server and trusted proxies tell them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

Environ = Mapping[str, Any]

#: Longer user agents are cut: they are sent with every conversion and stored with every token.
LONGEST_USER_AGENT = 1024


def client_ip(environ: Environ, trusted_proxies: int = 0) -> str | None:
    """The visitor's IP address, or None when it cannot be told for sure.

    Without proxies it is the peer of the connection. With ``trusted_proxies=N`` it is the N-th entry of
    X-Forwarded-For from the right: each proxy appends the address it was called from, and everything further
    left is the visitor's own invention.
    """
    if not trusted_proxies:
        return _address(environ.get("REMOTE_ADDR"))
    entries = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
    return _address(entries[-trusted_proxies]) if len(entries) >= trusted_proxies else None


def user_agent(environ: Environ) -> str:
    """The User-Agent header as text, empty when there is none."""
    # PEP 3333 hands headers over as Latin-1; most that are not ASCII were meant as UTF-8.
    raw = environ.get("HTTP_USER_AGENT", "")
    return str(raw).encode("latin-1", "replace").decode("utf-8", "replace")[:LONGEST_USER_AGENT].strip()


def is_https(environ: Environ, trusted_proxies: int = 0) -> bool:
    """Whether the visitor's own connection is encrypted; X-Forwarded-Proto counts behind trusted proxies only."""
    forwarded = _forwarded_proto(environ, trusted_proxies)
    scheme = forwarded if trusted_proxies and forwarded else environ.get("wsgi.url_scheme")
    return scheme == "https"


def ignores_proxy(environ: Environ, trusted_proxies: int = 0) -> str | None:
    """The header by which an unannounced proxy shows itself, None when all is as configured."""
    if trusted_proxies:
        return None
    if _forwarded_proto(environ) == "https" and environ.get("wsgi.url_scheme") != "https":
        return "X-Forwarded-Proto"
    return "X-Forwarded-For" if "HTTP_X_FORWARDED_FOR" in environ and _is_internal(environ) else None


def _forwarded_proto(environ: Environ, trusted_proxies: int = 1) -> str:
    if "HTTP_X_FORWARDED_PROTO" not in environ:
        return ""
    # Some proxies append their scheme, most replace what is there; so there may be fewer entries than proxies.
    entries = str(environ["HTTP_X_FORWARDED_PROTO"]).split(",")
    return entries[-min(max(trusted_proxies, 1), len(entries))].strip().lower()


def _is_internal(environ: Environ) -> bool:
    address = _address(environ.get("REMOTE_ADDR"))
    return address is None or not ipaddress.ip_address(address).is_global  # no address: a Unix socket


def _address(text: object) -> str | None:
    """A valid address in its plain form, without port, brackets and zone."""
    host = str(text or "").strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:203.0.113.7 is how a dual-stack socket tells an IPv4 peer
    return str(mapped or address)
