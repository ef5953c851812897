"""The visitor: address, user agent, scheme and host of a request, believed only as far as they can be trusted.

All of it comes from the network. What the server says of the connection is taken as it is; an ``X-Forwarded`` header
counts only as far as the shop says how many proxies in front of it write one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

__all__ = ["LONGEST_USER_AGENT", "Environ", "Visitor"]

#: A WSGI environ that is only read.
Environ = Mapping[str, Any]

#: Longer user agents are cut, in characters: they are sent with every conversion and stored with every token.
LONGEST_USER_AGENT = 1024


class Visitor(NamedTuple):
    """Who sends a request. Each attribute is read from the environ when it is asked for; none of them ever raises.

    :param environ: the WSGI environ of the request.
    :param trusted_proxies: how many proxies in front of the shop append to X-Forwarded-For. Without any, no
        X-Forwarded header is believed: every visitor can send one.
    """

    environ: Environ
    trusted_proxies: int = 0

    def __repr__(self) -> str:
        return f"Visitor(trusted_proxies={self.trusted_proxies})"  # an environ is full of personal data

    @property
    def client_ip(self) -> str | None:
        """The IP address in its plain form, without port, brackets and zone; None when it cannot be known for sure.

        Without proxies it is the peer of the connection. With N of them it is the N-th entry of X-Forwarded-For
        from the right: each proxy appends the address that called it, and what stands further left is whatever the
        visitor wrote there.
        """
        if not self.trusted_proxies:
            return _address(self.environ.get("REMOTE_ADDR"))
        entries = self.environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
        return _address(entries[-self.trusted_proxies]) if len(entries) >= self.trusted_proxies else None

    @property
    def user_agent(self) -> str:
        """The User-Agent header, at most :data:`LONGEST_USER_AGENT` characters; empty when there is none."""
        # PEP 3333 hands headers over as Latin-1; most that are not ASCII were meant as UTF-8.
        raw = self.environ.get("HTTP_USER_AGENT", "")
        return str(raw).encode("latin-1", "replace").decode("utf-8", "replace")[:LONGEST_USER_AGENT].strip()

    @property
    def is_https(self) -> bool:
        """Whether the visitor's own connection is encrypted.

        With trusted proxies it is what the outermost of them says in X-Forwarded-Proto; without, or where they say
        nothing, the scheme of the connection to this server.
        """
        forwarded = _forwarded(self.environ, "HTTP_X_FORWARDED_PROTO", self.trusted_proxies)
        return (forwarded.lower() or self.environ.get("wsgi.url_scheme")) == "https"

    @property
    def host(self) -> str | None:
        """The host that was asked for, in lower case and without port; None when the request names none."""
        return _hostname(self.environ.get("HTTP_HOST", ""))

    @property
    def forwarded_host(self) -> str | None:
        """The same as the trusted proxies say it: theirs may be asked for another host than the shop's server is."""
        return _hostname(_forwarded(self.environ, "HTTP_X_FORWARDED_HOST", self.trusted_proxies))

    @property
    def ignored_header(self) -> str | None:
        """The header by which a proxy shows itself that ``trusted_proxies`` does not count; None when there is none.

        It is a sign that the setting is missing: ``X-Forwarded-Proto`` says https over a connection that is not, or
        ``X-Forwarded-For`` comes from an address inside the network. From elsewhere the visitor may have written it.
        """
        if self.trusted_proxies:
            return None
        environ = self.environ
        if (
            environ.get("wsgi.url_scheme") != "https"
            and _forwarded(environ, "HTTP_X_FORWARDED_PROTO", 1).lower() == "https"
        ):
            return "X-Forwarded-Proto"
        return "X-Forwarded-For" if "HTTP_X_FORWARDED_FOR" in environ and _is_internal(environ) else None


def _forwarded(environ: Environ, header: str, trusted_proxies: int) -> str:
    """What the outermost trusted proxy says in a header of one entry for each proxy; empty without the header."""
    if not trusted_proxies or header not in environ:
        return ""
    # Some proxies append their entry, most replace what is there: there may be fewer entries than proxies.
    entries = str(environ[header]).split(",")
    return entries[-min(trusted_proxies, len(entries))].strip()


def _hostname(host: object) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_internal(environ: Environ) -> bool:
    """Whether the peer is inside the network, as proxies are: a private address or a Unix socket."""
    address = _address(environ.get("REMOTE_ADDR"))
    return address is None or not ipaddress.ip_address(address).is_global  # no address: a Unix socket


def _address(value: object) -> str | None:
    """An IP address in its plain form, of a value with or without port, brackets and zone; None if it is not one."""
    host = str(value or "").strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)  # a dual-stack socket writes an IPv4 peer as ::ffff:203.0.113.7
    return str(mapped or address)
