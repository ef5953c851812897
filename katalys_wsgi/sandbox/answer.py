"""What every part of the sandbox answers with: a plain response, or a connection that is cut off."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import responses
from typing import NoReturn

from webob import Response

__all__ = ["SOCKET", "cut", "response"]

#: The environ key under which the sandbox's server keeps the raw socket: WSGI cannot express a reset connection.
SOCKET = "katalys_wsgi.sandbox.socket"


def response(code: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Response:
    """Make an answer.

    :param code: the status code, also one that HTTP does not define.
    :param headers: set beside, or in place of, the content type ``text/plain; charset=UTF-8``.
    """
    status = f"{code} {responses.get(code, 'Unknown')}"
    answer = Response(status=status, body=body, content_type="text/plain", charset="UTF-8")
    answer.headers.update((headers or {}).items())
    return answer


def cut() -> NoReturn:
    """End the connection without the rest of the answer.

    :raises ConnectionAbortedError: always. The sandbox's server closes the connection of a request that raises,
        and does not report an OSError.
    """
    raise ConnectionAbortedError("cut off by the sandbox")
