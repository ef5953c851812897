"""The command line, ``katalys-wsgi`` or ``python -m katalys_wsgi``: which commands and options there are.

What a command does stands in :mod:`katalys_wsgi.commands`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from . import commands
from .commands import FAILED, WRONG_USE
from .errors import KatalysError, OutboxUnavailable
from .outbox import State
from .settings import ENVIRONMENT, Settings
from .tracker import Tracker

__all__ = ["command_names", "main", "make_parser"]

_EPILOG = """\
exit codes: 0 all went well; 1 it did not, as the text says; 2 wrong use or wrong settings.
Settings are read from the environment (KATALYS_SITE_ID, KATALYS_SECRET_KEY and so on) or given as options.
"""

Run = Callable[[argparse.Namespace], int]

#: Adds a command by name, function, summary and parents; returns its parser.
Add = Callable[..., argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None, *, tracker: Tracker | None = None, prog: str = "katalys-wsgi") -> int:
    """Run one command of the command line.

    :param argv: the words after the program's name; those of the process unless given.
    :returns: the exit code: 0 all went well; 1 it did not, as the text says; 2 wrong settings; 130 after Ctrl-C.
    :raises SystemExit: with code 2 for wrong use, and 0 after ``--help``; argparse's own way out.
    """
    arguments = make_parser(prog).parse_args(argv)
    arguments.tracker = tracker
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


def make_parser(prog: str = "katalys-wsgi") -> argparse.ArgumentParser:
    """The parser of the command line; ``run`` of what it parses is the command's function."""
    return _parser_and_names(prog)[0]


def command_names() -> tuple[str, ...]:
    """The names of all commands, in the order in which ``--help`` lists them."""
    return _parser_and_names()[1]


def _parser_and_names(prog: str = "katalys-wsgi") -> tuple[argparse.ArgumentParser, tuple[str, ...]]:
    """The parser, and the names of its commands, which argparse does not show afterwards."""
    parser = _Parser(prog=prog, description="Reports a shop's affiliate sales to Katalys, server to server.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Run, summary: str, *parents: Any) -> argparse.ArgumentParser:
        description = f"{summary[0].upper()}{summary[1:]}."
        command = subparsers.add_parser(name, help=summary, description=description, parents=parents)
        command.set_defaults(run=run)
        return command

    for declare in (_declare_trials, _declare_delivery, _declare_questions, _declare_changes):
        declare(add)
    return parser, tuple(subparsers.choices)


class _Parser(argparse.ArgumentParser):
    """A parser whose help ends in the exit codes, as that of every command does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, **options)


def _json_option() -> argparse.ArgumentParser:
    """``--json``, for every command that prints data."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _settings_options() -> argparse.ArgumentParser:
    """An option for each setting; but for a secret, since every user of the machine can read a command line."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("settings")
    for setting in fields(Settings):
        if setting.name not in ("secret_key", "consent"):
            option = "--" + setting.name.replace("_", "-")
            name = ENVIRONMENT.of(setting.name)
            group.add_argument(option, dest=f"setting.{setting.name}", metavar="VALUE", help=f"in place of {name}")
    return parser


def _declare_trials(add: Add) -> None:
    """The commands that need no shop."""
    command = add("demo", commands.demo, "play one shopper from link to conversion, then stay for you to click")
    command.add_argument("--once", action="store_true", help="end by itself; 0 only if the conversion arrived intact")

    command = add("sandbox", commands.sandbox, "play Katalys on a loopback port, until Ctrl-C")
    command.add_argument("--port", type=int, default=8640, help="the port to listen at (default: %(default)s; 0: any)")
    command.add_argument("--site-id", help="refuse messages for any other site")

    command = add("decode", commands.decode, "show the click in a cookie's value", _json_option())
    command.add_argument("cookie", metavar="COOKIE", help="the value, or name=value as in a Cookie header")


def _declare_delivery(add: Add) -> None:
    """What a unit file or cron runs."""
    summary = "deliver what is in the outbox; TERM finishes the rows in progress"
    command = add("deliver", commands.deliver, summary, _json_option(), _settings_options())
    command.add_argument("--once", action="store_true", help="end when nothing is due; 1 if a row failed")


def _declare_questions(add: Add) -> None:
    """The commands that change nothing."""
    options = _json_option(), _settings_options()
    command = add("status", commands.status, "show how delivery stands; 1 if the operator should look at it", *options)
    command.add_argument("--max-age", type=float, default=3600, help="seconds a row may be pending (default: 3600)")

    command = add("list", commands.list_entries, "list entries, the newest first", *options)
    command.add_argument("--state", choices=[state.value for state in State], help="only these")
    command.add_argument("--limit", type=int, default=50, help="at most so many (default: %(default)s)")

    command = add("why", commands.why, "show the whole story of an order", *options)
    command.add_argument("order", metavar="ORDER", help="the shop's order id")


def _declare_changes(add: Add) -> None:
    """The commands that change what is in the outbox."""
    settings = _settings_options()
    command = add("retry", commands.retry, "have dead letters tried again", settings)
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("order", metavar="ORDER", nargs="?", help="the shop's order id")
    which.add_argument("--all-dead", action="store_true", help="every dead letter")
    command.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="correct a field of Katalys' names"
    )

    summary = "remove a buyer's data from the outbox; what is pending is not delivered"
    command = add("forget", commands.forget, summary, settings)
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("order", metavar="ORDER", nargs="?", help="the shop's order id")
    which.add_argument("--email", metavar="ADDRESS", help="every order of this address")

    command = add("prune", commands.prune, "delete what was finished long ago", settings)
    command.add_argument("--older-than", type=float, metavar="DAYS", help="in place of the setting retention")
