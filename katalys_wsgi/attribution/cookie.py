"""The cookie that keeps a click between two requests, and the signed strings it is made of.

The format is frozen from 0.1 on: itsdangerous' ``URLSafeSerializer`` with HMAC derivation, SHA-256 and a salt
that names its version and the site. No other module imports itsdangerous or ``webob.cookies``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from itsdangerous import BadData, BadSignature, Signer, URLSafeSerializer
from itsdangerous.encoding import base64_encode
from itsdangerous.signer import SigningAlgorithm

from ..events import Events
from .click import FINGERPRINT, Click

with warnings.catch_warnings():
    # WebOb 1.8 imports cgi, deprecated in 3.11 and 3.12; our users' `-W error` is not meant for that.
    warnings.simplefilter("ignore", DeprecationWarning)
    from webob.cookies import make_cookie

__all__ = [
    "LONGEST_VALUE", "MOST_CANDIDATES", "VERSION", "WORTH_COMPRESSING", "ClickCookie", "SignedText",
    "click_from_payload", "click_payload",
]  # fmt: skip

#: The version inside the payload; a payload of another version is not read as a click.
VERSION = 1

#: How many cookies of our name are tried in a request. A browser sends one, rarely two (two domains, two paths); a
#: subdomain may plant as many as browsers keep, in front of ours. Each costs the check of a signature.
MOST_CANDIDATES = 50

#: Characters; browsers keep at most 4096 bytes of a cookie (RFC 6265 §6.1).
LONGEST_VALUE = 4096

#: Characters of JSON from which on compressing is tried.
WORTH_COMPRESSING = 256

_compact_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_is_signed_text = re.compile(r"[A-Za-z0-9._-]+", re.ASCII).fullmatch


class _PreparedHmac(SigningAlgorithm):
    """HMAC-SHA-256 as itsdangerous computes it, with the part that depends on the key alone done only once."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._prepared = {key: hmac.new(key, digestmod=hashlib.sha256) for key in keys}

    def get_signature(self, key: bytes, value: bytes) -> bytes:
        mac = self._prepared[key].copy()
        mac.update(value)
        return mac.digest()


class _Signer(Signer):
    """itsdangerous' signer, with its keys derived only once."""

    def __init__(self, keys: Sequence[str], salt: str) -> None:
        super().__init__(list(keys), salt=salt, digest_method=hashlib.sha256, key_derivation="hmac")
        self._derived: dict[str | bytes | None, bytes] = {
            key: Signer.derive_key(self, key) for key in (None, *self.secret_keys)
        }
        self.algorithm = _PreparedHmac(self._derived.values())

    def derive_key(self, secret_key: str | bytes | None = None) -> bytes:
        return self._derived[secret_key]


class SignedText:
    """Writes small JSON values as URL-safe strings, which take the key to write, and reads them.

    :param keys: secret keys, oldest first; the last one signs, every one is accepted.
    :param salt: names the use; a string that was signed for another use is refused.
    """

    def __init__(self, keys: Sequence[str], salt: str) -> None:
        self._serializer = URLSafeSerializer(list(keys), salt=salt)  # for its payloads: the signer is ours
        self._signer = _Signer(keys, salt)

    def dumps(self, value: object) -> str:
        """``value``, which JSON must be able to hold, as a signed string."""
        return self._signer.sign(self._payload(value)).decode("ascii")

    def loads(self, text: str) -> Any:
        """The value of a signed string.

        :raises ValueError: it was altered, cut short or signed with an unknown key. The message repeats none of it.
        """
        if not _is_signed_text(text):
            raise ValueError("not a signed string")
        try:
            return self._serializer.load_payload(self._signer.unsign(text))
        except BadSignature:
            raise ValueError("the signature does not match") from None
        except BadData:
            raise ValueError("the signed payload cannot be read") from None

    def loads_unsafe(self, text: str) -> Any:
        """The value of a signed string whose signature is not checked: for a developer's eyes only.

        :raises ValueError: there is no such value.
        """
        if not _is_signed_text(text):
            raise ValueError("not a signed string")
        try:
            return self._serializer.load_payload(text.rpartition(".")[0].encode())
        except BadData:
            raise ValueError("the payload cannot be read") from None

    def _payload(self, value: object) -> bytes:
        text = _compact_json(value)
        # URLSafeSerializer always tries zlib: half of the time, and in vain for a string as short as a click's.
        return base64_encode(text) if len(text) < WORTH_COMPRESSING else self._serializer.dump_payload(value)


class ClickCookie:
    """Reads the click from a ``Cookie`` header and writes it as a ``Set-Cookie`` value.

    :param keys: secret keys, oldest first; the last one signs, every one is accepted.
    :param site_id: the shop's; a cookie of another one is not read.
    :param window: how long a click counts; also the cookie's Max-Age.
    :param name: the cookie's name.
    :param domain: its Domain attribute; None leaves it to the very host that sets it.
    :param events: where ``cookie_unreadable`` is emitted; None emits nothing.
    """

    #: The salt of its signature, together with the site: a click of one shop is none of another with the same key.
    SALT = "katalys_wsgi.click.v1"

    def __init__(
        self,
        keys: Sequence[str],
        *,
        site_id: str,
        window: timedelta,
        name: str = "katalys_click",
        domain: str | None = None,
        events: Events | None = None,
    ) -> None:
        self._signed = SignedText(keys, f"{self.SALT}.{site_id}")
        self._events = events
        self.name = name
        self._prefix = name + "="
        self._window = window
        self._max_age = int(window.total_seconds())
        # WebOb's max_age= would add an Expires by utcnow(), deprecated since Python 3.12.
        self._attributes = {
            secure: make_cookie(name, "x", path="/", domain=domain, secure=secure, httponly=True, samesite="Lax")
            .removeprefix(f"{name}=x") + "; Max-Age="
            for secure in (False, True)
        }  # fmt: skip

    def read(self, header: str, now: datetime) -> Click | None:
        """The newest click in a ``Cookie`` header that counts at ``now``; None without one. No header whatever raises.

        :param header: the whole header, with all the cookies of other vendors.
        :param now: the time of the request, aware.
        """
        if self._prefix not in header:
            return None
        newest: Click | None = None
        for value in self._candidates(header):
            click = self._load_or_none(value)
            if click is None or not click.is_current(now, self._window):
                continue
            if newest is None or click.clicked_at > newest.clicked_at:
                newest = click
        return newest

    def set_cookie(self, click: Click, *, secure: bool) -> str:
        """The value of the ``Set-Cookie`` header that keeps ``click``.

        :param secure: whether the browser may send it over https only.
        """
        return f"{self._prefix}{self.dumps(click)}{self._attributes[secure]}{self._max_age}"

    def removal(self, *, secure: bool) -> str:
        """The value of the ``Set-Cookie`` header with which the browser forgets the click.

        :param secure: as in :meth:`set_cookie`. Over https either removes the cookie.
        """
        return f"{self._prefix}{self._attributes[secure]}0"

    def dumps(self, click: Click) -> str:
        """The cookie's value."""
        replaced = ["".join(click.replaced)] if click.replaced else []
        return self._signed.dumps([*click_payload(click), *replaced])

    def loads(self, value: str) -> Click:
        """The click of a cookie's value, however old it is.

        :raises ValueError: it was altered or signed with an unknown key, or is of another version.
        """
        return click_from_payload(self._signed.loads(value))

    def loads_unsafe(self, value: str) -> Click:
        """The same without checking the signature: for a developer's eyes only.

        :raises ValueError: it is cut short, or of another version.
        """
        return click_from_payload(self._signed.loads_unsafe(value))

    def _load_or_none(self, value: str) -> Click | None:
        try:
            return self.loads(value)
        except ValueError as error:
            if self._events is not None:
                self._events.emit("cookie_unreadable", reason=error)
            return None

    def _candidates(self, header: str) -> Iterator[str]:
        # http.cookies gives up at another vendor's JSON and Werkzeug at a comma-joined header. Our alphabet
        # has neither ';' nor ',', so looking for our own name finds every value whatever stands around it.
        found = 0
        for part in header.replace(",", ";").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.name and len(value) <= LONGEST_VALUE and found < MOST_CANDIDATES:
                found += 1
                yield value.strip('"')


def click_payload(click: Click) -> list[object]:
    """A click as a short list that JSON can hold: version, the three ids, seconds since 1970.

    A cookie's payload may have a sixth entry: what the clicks that were replaced are recognised by, in one string.
    """
    return [VERSION, click.transaction_id, click.offer_id, click.aff_id, int(click.clicked_at.timestamp())]


def click_from_payload(payload: Any) -> Click:
    """The click of a list that :func:`click_payload` made, or of a cookie's payload.

    :raises ValueError: the list is of another version or shape, or its time is impossible.
    """
    match payload:
        case [version, transaction_id, offer_id, aff_id, int(seconds), *rest] if version == VERSION:
            replaced = _replaced(rest)
            try:
                return Click(transaction_id, offer_id, aff_id, datetime.fromtimestamp(seconds, timezone.utc), replaced)
            except (OverflowError, OSError, ValueError):
                raise ValueError("the payload has an impossible time") from None
        case _:
            raise ValueError("the payload is of another version")


def _replaced(rest: list[Any]) -> tuple[str, ...]:
    match rest:
        case []:
            return ()
        case [str(joined)]:
            return tuple(joined[start : start + FINGERPRINT] for start in range(0, len(joined), FINGERPRINT))
        case _:
            raise ValueError("the payload is of another version")
