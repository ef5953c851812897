"""The collector: answers as Katalys' specification says, keeps what it received, and fails on request."""

from __future__ import annotations

import itertools
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl

from webob import Request, Response

from ..conversion.wire import wire_problems
from .answer import response
from .misbehaviour import Misbehaviour
from .page import listing

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["ENDPOINT_PATH", "Collector", "Received"]

#: The endpoint's path, from Katalys' specification.
ENDPOINT_PATH = "/v2/_tr_offline"

_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"

#: A conversion has all of these fields, an order update never does.
_OF_A_CONVERSION = {"email_address", "sale_amount", "subtotal_amount", "client_ip"}


@dataclass(frozen=True)
class Received:
    """One request that reached the endpoint, and the collector's verdict.

    :ivar method: of the request, such as ``POST``.
    :ivar content_type: in lower case and without parameters, empty when there is none.
    :ivar headers: all of the request's headers.
    :ivar body: the request's body as it was sent.
    :ivar fields: the message in the order of arrival, numbers as they were written; empty if it is unreadable.
    :ivar received_at: when, in UTC.
    :ivar status: the answer's status code; None before the answer begins, and for good if the request was left
        hanging, was answered with dripping headers, or its connection was reset.
    :ivar problems: what is wrong with the message, one string for each problem.
    :ivar duplicate: the same conversion, or the very same update, was received before, whatever the answer was then.
    """

    method: str
    content_type: str
    headers: Mapping[str, str]
    body: bytes
    fields: dict[str, str]
    received_at: datetime
    status: int | None = None
    problems: tuple[str, ...] = ()
    duplicate: bool = False

    @property
    def accepted(self) -> bool:
        """Whether it was parsed correctly and answered 204."""
        return self.status == 204 and not self.problems

    @property
    def is_update(self) -> bool:
        """Whether it adds to an order reported before, instead of reporting one."""
        return self.fields.get("type") == "offline_conv" and not self.fields.keys() >= _OF_A_CONVERSION

    @property
    def verdict(self) -> str:
        """``attributable``, or ``not attributable:`` and the reason."""
        if self.problems:
            return "not attributable: " + "; ".join(self.problems)
        if self.is_update:
            return "not attributable: an order update, the click came with the order's conversion"
        if not (self.fields.get("transaction_id") or (self.fields.get("offer_id") and self.fields.get("aff_id"))):
            return "not attributable: no transaction_id and no offer_id with aff_id, so only the JavaScript can"
        return "attributable"

    def row(self) -> dict[str, Any]:
        """Return every attribute, and the verdict, as types that JSON has."""
        return vars(self) | {
            "headers": dict(self.headers),
            "body": self.body.decode("utf-8", "replace"),
            "received_at": self.received_at.isoformat(timespec="milliseconds"),
            "verdict": self.verdict,
        }


class Collector:
    """The WSGI application: Katalys' endpoint ``/v2/_tr_offline``, a listing at ``/``, and ``/received.json``.

    As in Katalys' specification, POST answers 204 when the message was parsed correctly, and GET always does. Other
    POSTs are answered 400, with every problem. Safe to use from several threads.

    :param site_id: the only site whose messages are correct; None accepts every site's.
    """

    def __init__(self, *, site_id: str | None = None) -> None:
        self.site_id: str | None = site_id
        self._changed = threading.Condition()
        self._released = threading.Event()
        self._turns: Iterator[Misbehaviour | None] = iter(())
        self._numbers = itertools.count()
        self.clear()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        return self._answer(Request(environ))(environ, start_response)

    @property
    def received(self) -> tuple[Received, ...]:
        """Every request that reached the endpoint, oldest first; also those that met a misbehaviour."""
        with self._changed:
            return tuple(self._received.values())

    @property
    def accepted(self) -> tuple[Received, ...]:
        """What was parsed correctly and answered 204, oldest first."""
        return tuple(received for received in self.received if received.accepted)

    def misbehave(
        self, behaviour: Misbehaviour, *, times: int | None = None, share: float = 1.0, seed: int = 0
    ) -> None:
        """Answer requests with a misbehaviour from now on; it replaces the one before.

        :param times: how many requests meet it; None means all, until :meth:`behave` or the next call.
        :param share: the probability with which a request meets it, from 0 to 1.
        :param seed: the same seed picks the same requests.
        :raises ValueError: ``share`` is not from 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; give the part of the requests that it meets, from 0 to 1")
        with self._changed:
            self._turns = _turns(behaviour, times, share, seed)

    def behave(self) -> None:
        """Answer correctly from now on, and end the requests that hang."""
        with self._changed:
            self._turns = iter(())
            self.release()

    def release(self) -> None:
        """End the requests that hang, drip or are late; a misbehaviour that was asked for goes on."""
        with self._changed:
            self._released.set()
            self._released = threading.Event()

    def clear(self) -> None:
        """Forget what was received."""
        with self._changed:
            self._received: dict[int, Received] = {}
            self._seen: set[tuple[object, ...]] = set()
            self._accepted_count = 0

    def wait_for(self, count: int, timeout: float = 10.0) -> tuple[Received, ...]:
        """Wait until so many messages were accepted, and return all that were, oldest first.

        :param timeout: seconds.
        :raises TimeoutError: there were fewer; the message lists what was received instead.
        """
        with self._changed:
            if self._changed.wait_for(lambda: self._accepted_count >= count, timeout):
                return self.accepted
            seen = "; ".join(map(_summary, self.received)) or "nothing"
            raise TimeoutError(f"{self._accepted_count} of {count} accepted in {timeout} s. Received: {seen}")

    def _answer(self, request: Request) -> Response:
        """Answer the endpoint, or one of the two views of what it received."""
        path = request.environ.get("PATH_INFO")
        if path == ENDPOINT_PATH:
            return self._collect(request)
        if path not in ("/", "/received.json"):
            return response(404, b"Not found. Postbacks go to " + ENDPOINT_PATH.encode() + b"\n")
        if request.method not in ("GET", "HEAD"):
            return response(405, headers={"Allow": "GET, HEAD"})
        rows = [received.row() for received in self.received]
        if path == "/":
            return response(200, _encode(listing(rows)), {"Content-Type": "text/html; charset=UTF-8"})
        return response(200, json.dumps(rows, indent=2).encode(), {"Content-Type": _JSON})

    def _collect(self, request: Request) -> Response:
        """Keep a message, then answer it; a misbehaviour may take long, or raise and leave no status."""
        number, received, misbehaviour, released = self._file(_read(request, self.site_id))
        answer = misbehaviour.act(request.environ, released) if misbehaviour else None
        answer = answer or _correct(received)
        self._settle(number, answer.status_code)
        return answer

    def _file(self, received: Received) -> tuple[int, Received, Misbehaviour | None, threading.Event]:
        """Keep a request before it is answered: a test that has the answer must find the request here."""
        with self._changed:
            identity = _identity(received)
            if identity:
                received = replace(received, duplicate=identity in self._seen)
                self._seen.add(identity)
            number = next(self._numbers)
            self._received[number] = received
            return number, received, next(self._turns, None), self._released

    def _settle(self, number: int, status: int) -> None:
        """Note the answer, and wake whoever waits for it."""
        with self._changed:
            if number in self._received:  # else clear() came in between
                received = self._received[number] = replace(self._received[number], status=status)
                self._accepted_count += received.accepted
                self._changed.notify_all()


def _turns(behaviour: Misbehaviour, times: int | None, share: float, seed: int) -> Iterator[Misbehaviour | None]:
    """Yield, request by request, the misbehaviour that it meets."""
    chance = random.Random(seed)  # noqa: S311 - picks requests, and the same ones each time
    left = math.inf if times is None else times
    while left > 0:
        hit = chance.random() < share
        left -= hit
        yield behaviour if hit else None


def _identity(received: Received) -> tuple[object, ...] | None:
    """What two requests have in common that say the same; None when nothing can be compared."""
    site, order = received.fields.get("site_id"), received.fields.get("order_id")
    if not (site and order):
        return None
    # "paid" and then "shipped" are two updates of one order, not the same message twice.
    return site, order, frozenset(received.fields.items()) if received.is_update else "conversion"


def _read(request: Request, site_id: str | None) -> Received:
    """Read a request whatever it holds; what is wrong with it becomes its problems."""
    body = request.body_file.read()  # request.body would put more than 10 KiB into a temporary file
    fields, problems = _understand(request, body)
    if site_id and fields.get("site_id", site_id) != site_id:
        problems.append(f"site_id: {fields['site_id']!r} is not {site_id!r}")
    return Received(
        method=request.method,
        content_type=request.content_type.lower(),
        headers=MappingProxyType(dict(request.headers)),
        body=body,
        fields=fields,
        received_at=datetime.now(timezone.utc),
        problems=tuple(problems),
    )


def _understand(request: Request, body: bytes) -> tuple[dict[str, str], list[str]]:
    """The message's fields, as far as they are strings or numbers, and its problems."""
    try:
        pairs = _pairs(request, body)
    except (ValueError, RecursionError) as error:
        return {}, [f"unreadable: {error}"]
    values = dict(pairs)
    problems = [f"{key}: is given twice" for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    problems += wire_problems(values)
    return {key: value for key, value in values.items() if isinstance(value, str)}, problems


def _pairs(request: Request, body: bytes) -> Sequence[tuple[str, object]]:
    """The message's keys and values in the order of arrival, a key as often as it is there.

    :raises ValueError: it is not in one of the specification's three encodings.
    :raises RecursionError: JSON that is nested too deeply.
    """
    if request.method == "GET":
        return _form(request.query_string.encode("latin-1"))
    if request.method != "POST":
        raise ValueError(f"{request.method} is neither POST nor GET")
    if request.content_type.lower() == _JSON:
        return _object(body)
    if request.content_type.lower() == _FORM:
        return _form(body)
    raise ValueError(f"Content-Type {request.content_type!r} is neither {_JSON} nor {_FORM}")


def _form(raw: bytes) -> list[tuple[str, str]]:
    """Decode a form, strictly: UTF-8 and at most 1000 fields."""
    return parse_qsl(raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=1000)


def _object(raw: bytes) -> tuple[tuple[str, object], ...]:
    """Decode a JSON object."""
    # Objects become tuples of pairs, so that a key given twice is seen; numbers stay as they were written.
    decoded = json.loads(raw.decode(), object_pairs_hook=tuple, parse_int=str, parse_float=str, parse_constant=_refuse)
    if not isinstance(decoded, tuple):
        raise ValueError("the body is not a JSON object")  # noqa: TRY004 - wrong bytes, not a wrong type of ours
    return decoded


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _correct(received: Received) -> Response:
    """Answer as the specification says."""
    if received.method not in ("GET", "POST"):
        return response(405, headers={"Allow": "GET, POST"})
    if received.method == "POST" and received.problems:
        return response(400, _encode("".join(f"{problem}\n" for problem in received.problems)))
    return response(204)


def _encode(text: str) -> bytes:
    """Encode whatever a message may hold."""
    # JSON can contain a lone surrogate, which cannot be encoded in UTF-8.
    return text.encode("utf-8", "backslashreplace")


def _summary(received: Received) -> str:
    """One request in a line, for the message of a wait that failed."""
    order = received.fields.get("order_id")
    return f"{received.method} of order {order!r} answered {received.status}, {received.verdict}"
