"""Commands for trying it out: ``demo``, ``sandbox`` and ``decode``."""

from __future__ import annotations

import json
import secrets
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import NoReturn

from ..attribution.click import Click
from ..attribution.cookie import ClickCookie
from ..checks import LONGEST_WINDOW
from ..operations import iso, utc
from ..sandbox import Collector, Sandbox
from ..sandbox.demo import run as play_shopper
from .exits import FAILED, OK, TERMINATED
from .shop import find_secret_keys, find_site_id

__all__ = ["decode", "demo", "sandbox"]


def demo(arguments: Namespace) -> int:
    """Play one shopper from the link to the conversion, against the sandbox; see :mod:`katalys_wsgi.sandbox.demo`.

    Prints each request and what the sandbox received. Then the shop and the sandbox stay open for the reader's browser
    until Ctrl-C, unless ``--once`` is given. The outbox is in a temporary folder; nothing is sent to Katalys.

    :returns: FAILED when the conversion did not arrive intact, or when the port cannot be used; else OK.
    """
    with _ended_by_term():
        try:
            # Flushed, so that the lines come at once into a pipe, too.
            return play_shopper(once=arguments.once, port=arguments.port, out=lambda line: print(line, flush=True))
        except OSError as error:
            return _refuse_port(arguments.port, error)


def sandbox(arguments: Namespace) -> int:
    """Play Katalys on a loopback port, until Ctrl-C or TERM, to which main() gives the exit codes 130 and 143.

    Prints the endpoint to set in the shop, and the address of the page that lists what was received. With ``--site-id``
    messages for another site are refused.

    :returns: FAILED when the port cannot be used; never OK, since a signal ends it.
    """
    collector = Sandbox(Collector(site_id=arguments.site_id), port=arguments.port)
    try:
        collector.start()
    except OSError as error:
        return _refuse_port(arguments.port, error)
    with _ended_by_term(), collector:
        print(f"Katalys' stand-in is listening. Set KATALYS_ENDPOINT={collector.endpoint}")
        print(f"What it received: {collector.url}    Ctrl-C ends it.", flush=True)
        while True:  # until Ctrl-C, of which main() makes an exit code
            time.sleep(3600)


def _refuse_port(port: int, error: OSError) -> int:
    """Print why the port cannot be used, and which option chooses another; returns the exit code."""
    print(f"Port {port} cannot be used: {error}. Choose another one with --port.", file=sys.stderr)
    return FAILED


@contextmanager
def _ended_by_term() -> Iterator[None]:
    """Have TERM end what runs as Ctrl-C does, so that folders are removed and ports are closed."""

    def end(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def decode(arguments: Namespace) -> int:
    """Print the click that a cookie holds, however old it is: whoever asks wants to know why it did not count.

    The argument is the value, or ``name=value`` as in a Cookie header. Shown are the click's ids, its time in UTC, its
    age in days, and whether the signature is valid. Without a secret key and a site_id the click is shown all the same,
    and the signature is not checked.

    :returns: FAILED when there is no click, or none that a listed key has signed for this site; else OK.
    """
    keys, site_id = find_secret_keys(arguments), find_site_id(arguments)
    is_checked = bool(keys and site_id)
    cookie = ClickCookie(keys or [secrets.token_hex()], site_id=site_id, window=LONGEST_WINDOW)
    value = arguments.cookie.rpartition("=")[2].strip('"')
    try:
        click = cookie.loads(value) if is_checked else cookie.loads_unsafe(value)
    except ValueError as error:
        question = "Was it cut short?"
        if is_checked:
            question = "Was it signed with another KATALYS_SECRET_KEY, for another KATALYS_SITE_ID, or cut short?"
        print(f"No click: {error}. {question}", file=sys.stderr)
        return FAILED
    if not is_checked:
        missing = "site_id is set (KATALYS_SITE_ID" if keys else "secret key is set (KATALYS_SECRET_KEY"
        print(f"The signature was not checked: no {missing}, --app, --ini).", file=sys.stderr)
    _show_click(click, "valid" if is_checked else "not checked", as_json=arguments.json)
    return OK


def _show_click(click: Click, signature: str, *, as_json: bool) -> None:
    """Print a click, one line for each value or as one JSON object.

    :param signature: what is known of it: ``valid`` or ``not checked``.
    """
    at = click.clicked_at.timestamp()
    age = datetime.now(timezone.utc) - click.clicked_at
    shown = {
        "transaction_id": click.transaction_id,
        "offer_id": click.offer_id,
        "aff_id": click.aff_id,
        "clicked_at": iso(at) if as_json else utc(at),
        "age_in_days": round(age.total_seconds() / 86400, 2),
        "signature": signature,
    }
    if as_json:
        print(json.dumps(shown, indent=2))
    else:
        print("\n".join(f"{name:<15} {value}" for name, value in shown.items()))
