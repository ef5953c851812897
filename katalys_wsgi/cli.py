"""The command line, ``katalys-wsgi``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from . import operations
from .attribution.cookie import ClickCookie
from .checks import LONGEST_WINDOW
from .errors import InvalidConversion, KatalysError, OutboxUnavailable
from .events import Event
from .operations import utc
from .outbox import Archive, Entry, State
from .sandbox import Collector, Sandbox, demo
from .settings import ENVIRONMENT, Settings
from .tracker import Tracker

if TYPE_CHECKING:
    from .delivery.relay import Drained

__all__ = ["FAILED", "OK", "WRONG_USE", "command_names", "main", "make_parser"]

OK = 0
FAILED = 1
WRONG_USE = 2

_EPILOG = """\
exit codes: 0 all went well; 1 it did not, as the text says; 2 wrong use or wrong settings.
Settings are read from the environment (KATALYS_SITE_ID, KATALYS_SECRET_KEY and so on) or given as options.
"""

Run = Callable[[argparse.Namespace], int]

#: Adds a command by name, function, summary and parents; returns its parser.
Add = Callable[..., argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except OutboxUnavailable as error:
        print(error, file=sys.stderr)
        return FAILED
    except KatalysError as error:
        print(error, file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        return 130  # what a shell reports of a program that Ctrl-C ended


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    return _parser_and_names()[0]


def command_names() -> tuple[str, ...]:
    """The names of all commands, in the order in which ``--help`` lists them."""
    return _parser_and_names()[1]


def _parser_and_names() -> tuple[argparse.ArgumentParser, tuple[str, ...]]:
    parser = _Parser(prog="katalys-wsgi", description="Reports a shop's affiliate sales to Katalys, server to server.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Run, summary: str, *parents: Any) -> argparse.ArgumentParser:
        description = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=description, parents=parents)
        command.set_defaults(run=run)
        return command

    for declare in (_declare_trials, _declare_delivery, _declare_questions, _declare_changes):
        declare(add)
    return parser, tuple(commands.choices)


class _Parser(argparse.ArgumentParser):
    """A parser whose help ends in the exit codes, as that of every command does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, **options)


def _json_option() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _settings_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("settings")
    for setting in fields(Settings):
        if setting.name not in ("secret_key", "consent"):  # every user of the machine can read a command line
            option = "--" + setting.name.replace("_", "-")
            name = ENVIRONMENT.of(setting.name)
            group.add_argument(option, dest=f"setting.{setting.name}", metavar="VALUE", help=f"in place of {name}")
    return parser


def _tracker(arguments: argparse.Namespace, hooks: Iterable[Callable[[Event], None]] = ()) -> Tracker:
    given = vars(arguments).items()
    options = {
        name.partition(".")[2]: value for name, value in given if name.startswith("setting.") and value is not None
    }
    return Tracker.from_environ(hooks=hooks, **options)


# --- trying it out ---


def _declare_trials(add: Add) -> None:
    command = add("demo", _demo, "play one shopper from link to conversion, then stay for you to click")
    command.add_argument("--once", action="store_true", help="end by itself; 0 only if the conversion arrived intact")

    command = add("sandbox", _sandbox, "play Katalys on a loopback port, until Ctrl-C")
    command.add_argument("--port", type=int, default=8640, help="the port to listen at (default: %(default)s; 0: any)")
    command.add_argument("--site-id", help="refuse messages for any other site")

    command = add("decode", _decode, "show the click in a cookie's value", _json_option())
    command.add_argument("cookie", metavar="COOKIE", help="the value, or name=value as in a Cookie header")


def _demo(arguments: argparse.Namespace) -> int:
    return demo.run(once=arguments.once, out=lambda line: print(line, flush=True))  # also into a pipe


def _sandbox(arguments: argparse.Namespace) -> int:
    sandbox = Sandbox(Collector(site_id=arguments.site_id), port=arguments.port)
    try:
        sandbox.start()
    except (OSError, OverflowError) as error:
        print(f"Port {arguments.port} cannot be used: {error}. Choose another one with --port.", file=sys.stderr)
        return FAILED
    with sandbox:
        print(f"Katalys' stand-in is listening. Set KATALYS_ENDPOINT={sandbox.endpoint}")
        print(f"What it received: {sandbox.url}    Ctrl-C ends it.", flush=True)
        while True:  # until Ctrl-C, of which main() makes an exit code
            time.sleep(3600)


def _decode(arguments: argparse.Namespace) -> int:
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


def _declare_delivery(add: Add) -> None:
    summary = "deliver what is in the outbox; TERM finishes the rows in progress"
    command = add("deliver", _deliver, summary, _json_option(), _settings_options())
    command.add_argument("--once", action="store_true", help="end when nothing is due; 1 if a row failed")


def _deliver(arguments: argparse.Namespace) -> int:
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


def _declare_questions(add: Add) -> None:
    options = _json_option(), _settings_options()
    command = add("status", _status, "show how delivery stands; 1 if the operator should look at it", *options)
    command.add_argument("--max-age", type=float, default=3600, help="seconds a row may be pending (default: 3600)")

    command = add("list", _list, "list entries, the newest first", *options)
    command.add_argument("--state", choices=[state.value for state in State], help="only these")
    command.add_argument("--limit", type=int, default=50, help="at most so many (default: %(default)s)")

    command = add("why", _why, "show the whole story of an order", *options)
    command.add_argument("order", metavar="ORDER", help="the shop's order id")


def _status(arguments: argparse.Namespace) -> int:
    now = time.time()
    with closing(_tracker(arguments)) as tracker:
        status = operations.status(operations.archive(tracker.outbox))
    statistics = status.statistics
    age = now - statistics.oldest_pending if statistics.oldest_pending else 0.0
    if arguments.json:
        print(json.dumps({**asdict(statistics), "oldest_pending_age": age, "pause": status.pause}))
    else:
        print(f"pending    {statistics.pending} ({statistics.due} due), the oldest for {timedelta(seconds=int(age))}")
        print(f"dead       {statistics.dead}" + ("; see: katalys-wsgi list --state dead" if statistics.dead else ""))
        print(f"delivered  {statistics.delivered}, the last {utc(statistics.last_delivered)}")
        print(f"pause      {status.pause or 'no'}")
    return OK if status.is_healthy and age <= arguments.max_age else FAILED


def _list(arguments: argparse.Namespace) -> int:
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


def _why(arguments: argparse.Namespace) -> int:
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


def _declare_changes(add: Add) -> None:
    settings = _settings_options()
    command = add("retry", _retry, "have dead letters tried again", settings)
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("order", metavar="ORDER", nargs="?", help="the shop's order id")
    which.add_argument("--all-dead", action="store_true", help="every dead letter")
    command.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="correct a field of Katalys' names"
    )

    summary = "remove a buyer's data from the outbox; what is pending is not delivered"
    command = add("forget", _forget, summary, settings)
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("order", metavar="ORDER", nargs="?", help="the shop's order id")
    which.add_argument("--email", metavar="ADDRESS", help="every order of this address")

    command = add("prune", _prune, "delete what was finished long ago", settings)
    command.add_argument("--older-than", type=float, metavar="DAYS", help="in place of the setting retention")


def _retry(arguments: argparse.Namespace) -> int:
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
    try:
        return operations.revive(outbox, entry, changes)
    except InvalidConversion as error:
        print(f"{error}. Correct it with --set FIELD=VALUE.", file=sys.stderr)
        return False


def _forget(arguments: argparse.Namespace) -> int:
    with closing(_tracker(arguments)) as tracker:
        count = operations.forget(
            operations.archive(tracker.outbox),
            order_id=arguments.order,
            email_address=arguments.email,
            email_key=tracker.settings.secret_key[0],
        )
    print(f"{count} entries were emptied")
    return OK


def _prune(arguments: argparse.Namespace) -> int:
    with closing(_tracker(arguments)) as tracker:
        age = tracker.settings.retention if arguments.older_than is None else timedelta(days=arguments.older_than)
        print(f"{tracker.outbox.prune(time.time() - age.total_seconds())} entries were deleted")
    return OK
