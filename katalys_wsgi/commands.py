"""Commands: what each one of the command line does, prints and ends with.

A command takes the parsed arguments, prints to standard output what was asked for and to standard error what went
wrong, and returns an exit code: :data:`OK`, :data:`FAILED` or :data:`WRONG_USE`. It closes the tracker that it opens.

Every command that reads settings raises ConfigurationError when they cannot work, and OutboxUnavailable when the outbox
cannot be read or written; :func:`katalys_wsgi.cli.main` prints both and makes exit codes of them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from . import operations
from .attribution.cookie import ClickCookie
from .checks import LONGEST_WINDOW
from .errors import InvalidConversion
from .events import Event, Hook
from .operations import utc
from .outbox import Archive, Entry, State
from .sandbox import Collector, Sandbox
from .sandbox.demo import run as play_shopper
from .settings import ENVIRONMENT, Settings
from .tracker import Tracker

if TYPE_CHECKING:
    from .delivery.relay import Drained

__all__ = [
    "FAILED", "OK", "WRONG_USE", "decode", "deliver", "demo", "forget", "list_entries", "prune", "retry", "sandbox",
    "status", "why",
]  # fmt: skip

#: All went well.
OK = 0

#: It did not, as the text says.
FAILED = 1

#: Wrong use, or wrong settings.
WRONG_USE = 2


def _tracker(arguments: Namespace, hooks: Iterable[Hook] = ()) -> Tracker:
    """The tracker of the environment, over which the settings among ``arguments`` take precedence."""
    shop: Tracker | None = arguments.tracker
    if shop is not None:
        return shop
    given = vars(arguments).items()
    options = {
        name.partition(".")[2]: value for name, value in given if name.startswith("setting.") and value is not None
    }
    return Tracker.from_environ(hooks=hooks, **options)


# --- trying it out ---


def demo(arguments: Namespace) -> int:
    """Play one shopper from the link to the conversion, against the sandbox; see :mod:`katalys_wsgi.sandbox.demo`."""
    return play_shopper(once=arguments.once, out=lambda line: print(line, flush=True))  # also into a pipe


def sandbox(arguments: Namespace) -> int:
    """Play Katalys on a loopback port, until Ctrl-C.

    Prints the endpoint to set in the shop. FAILED when the port cannot be used.
    """
    collector = Sandbox(Collector(site_id=arguments.site_id), port=arguments.port)
    try:
        collector.start()
    except (OSError, OverflowError) as error:
        print(f"Port {arguments.port} cannot be used: {error}. Choose another one with --port.", file=sys.stderr)
        return FAILED
    with collector:
        print(f"Katalys' stand-in is listening. Set KATALYS_ENDPOINT={collector.endpoint}")
        print(f"What it received: {collector.url}    Ctrl-C ends it.", flush=True)
        while True:  # until Ctrl-C, of which main() makes an exit code
            time.sleep(3600)


def decode(arguments: Namespace) -> int:
    """Print the click that a cookie holds, however old it is: whoever asks wants to know why it did not count.

    FAILED when it holds none that a listed secret key has signed.
    """
    secret = ENVIRONMENT.select(os.environ).get("secret_key")
    settings = Settings.from_mapping({"site_id": "KA-DECODE", "secret_key": secret}, ENVIRONMENT)
    cookie = ClickCookie(settings.secret_key, window=LONGEST_WINDOW)
    try:
        click = cookie.loads(arguments.cookie.rpartition("=")[2].strip('"'))
    except ValueError as error:
        print(f"No click: {error}. Was it signed with another KATALYS_SECRET_KEY, or cut short?", file=sys.stderr)
        return FAILED
    age = datetime.now(timezone.utc) - click.clicked_at
    shown = {
        "transaction_id": click.transaction_id,
        "offer_id": click.offer_id,
        "aff_id": click.aff_id,
        "clicked_at": click.clicked_at.isoformat(),
        "age_in_days": round(age.total_seconds() / 86400, 2),
    }
    if arguments.json:
        print(json.dumps(shown, indent=2))
    else:
        print("\n".join(f"{name:<15} {value}" for name, value in shown.items()))
    return OK


# --- delivery ---


def deliver(arguments: Namespace) -> int:
    """Deliver until TERM or Ctrl-C, after which the rows in progress are finished; with ``--once`` what is due.

    What happens is logged to standard error. FAILED only with ``--once``, when a row was not delivered.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    tracker = _tracker(arguments, [_Progress()] if sys.stderr.isatty() else [])

    def stop(*_: object) -> None:
        tracker.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if arguments.once:
            return _report_drained(tracker.drain(), as_json=arguments.json)
        tracker.deliver()
    finally:
        tracker.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return OK


def _report_drained(drained: Drained, *, as_json: bool) -> int:
    """Print what became of the rows; returns the exit code."""
    if as_json:
        print(json.dumps(asdict(drained)))
    else:
        print(f"{drained.settled} delivered, {drained.postponed} postponed, {drained.buried} dead")
    return FAILED if drained.postponed or drained.buried else OK


class _Progress:
    """Counts on one line of the terminal while a backlog drains."""

    def __init__(self) -> None:
        self._delivered = 0

    def __call__(self, event: Event) -> None:
        if event.name == "postback_delivered":
            self._delivered += 1
            print(f"\r{self._delivered} delivered ", end="", file=sys.stderr, flush=True)


# --- questions ---


def status(arguments: Namespace) -> int:
    """Print how delivery stands, for an operator or a monitor.

    FAILED when there is a dead letter or a pause, or when a row has been pending for more than ``--max-age`` seconds.
    """
    now = time.time()
    with closing(_tracker(arguments)) as tracker:
        found = operations.status(operations.archive(tracker.outbox))
    statistics = found.statistics
    age = now - statistics.oldest_pending if statistics.oldest_pending else 0.0
    if arguments.json:
        print(json.dumps({**asdict(statistics), "oldest_pending_age": age, "pause": found.pause}))
    else:
        print(f"pending    {statistics.pending} ({statistics.due} due), the oldest for {timedelta(seconds=int(age))}")
        print(f"dead       {statistics.dead}" + ("; see: katalys-wsgi list --state dead" if statistics.dead else ""))
        print(f"delivered  {statistics.delivered}, the last {utc(statistics.last_delivered)}")
        print(f"pause      {found.pause or 'no'}")
    return OK if found.is_healthy and age <= arguments.max_age else FAILED


def list_entries(arguments: Namespace) -> int:
    """Print entries, the newest first: when they were recorded, state, kind, order and the last error."""
    state = State(arguments.state) if arguments.state else None
    with closing(_tracker(arguments)) as tracker:
        entries = operations.archive(tracker.outbox).entries(state, limit=arguments.limit)
    if arguments.json:
        print(json.dumps([operations.as_row(entry) for entry in entries], indent=2))
    else:
        for entry in entries:
            reason = f"  {entry.last_error}" if entry.last_error else ""
            print(f"{utc(entry.created_at)}  {entry.state:<9}  {entry.kind:<10}  {entry.order_id}{reason}")
    return OK


def why(arguments: Namespace) -> int:
    """Print the whole story of an order; FAILED when nothing is known of it."""
    with closing(_tracker(arguments)) as tracker:
        entries = tracker.outbox.history(arguments.order)
    if arguments.json:
        print(json.dumps([operations.as_row(entry) for entry in entries], indent=2))
    elif entries:
        print("\n".join(operations.story(entries, time.time())))
    else:
        print(
            f"Nothing is known of order {arguments.order}: it had no click, or was finished longer ago than retention."
        )
    return OK if entries else FAILED


# --- changes ---


def retry(arguments: Namespace) -> int:
    """Have dead letters tried again, corrected by ``--set``; FAILED unless there is one and all of them are revived."""
    changes = dict(pair.split("=", 1) for pair in arguments.set if "=" in pair)
    if len(changes) != len(arguments.set) or (changes and arguments.all_dead):
        print("--set takes FIELD=VALUE, each field once, and one ORDER", file=sys.stderr)
        return WRONG_USE
    with closing(_tracker(arguments)) as tracker:
        outbox = operations.archive(tracker.outbox)
        entries = operations.dead_letters(outbox) if arguments.all_dead else outbox.history(arguments.order)
        dead = [entry for entry in entries if entry.state == State.DEAD]
        revived = [entry for entry in dead if _revive(outbox, entry, changes)]
    print(f"{len(revived)} of {len(dead)} dead letters will be tried again")
    return OK if revived and len(revived) == len(dead) else FAILED


def _revive(outbox: Archive, entry: Entry, changes: dict[str, str]) -> bool:
    """Whether a dead letter was revived; prints why not, and goes on with the next one."""
    try:
        return operations.revive(outbox, entry, changes)
    except InvalidConversion as error:
        print(f"{error}. Correct it with --set FIELD=VALUE.", file=sys.stderr)
        return False


def forget(arguments: Namespace) -> int:
    """Remove a buyer's data from the outbox, by order or e-mail address; prints how many entries held some."""
    with closing(_tracker(arguments)) as tracker:
        count = operations.forget(
            operations.archive(tracker.outbox),
            order_id=arguments.order,
            email_address=arguments.email,
            email_key=tracker.settings.secret_key[0],
        )
    print(f"{count} entries were emptied")
    return OK


def prune(arguments: Namespace) -> int:
    """Delete what was finished longer ago than ``--older-than`` days, or the setting ``retention``."""
    with closing(_tracker(arguments)) as tracker:
        age = tracker.settings.retention if arguments.older_than is None else timedelta(days=arguments.older_than)
        print(f"{tracker.outbox.prune(time.time() - age.total_seconds())} entries were deleted")
    return OK
