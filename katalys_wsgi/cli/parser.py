"""The parser of the command line: which commands and options there are, and what ``--help`` says.

Each command is declared once, together with what its exit codes mean; what it does is the function it names. Options
of a setting are checked by :class:`~katalys_wsgi.Settings` like every other source, so that they are refused in the
same words.
"""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from .._version import __version__
from ..outbox import State
from . import values
from .changes import drop, forget, prune, recover, retry
from .delivery import deliver
from .descriptions import DESCRIPTIONS
from .listing import FORMATS
from .questions import list_entries, status, why
from .shop import PREFIX
from .trials import decode, demo, sandbox

__all__ = ["command_names", "make_parser"]

Run = Callable[[argparse.Namespace], int]

#: What an operator may set for one run of a command; everything else is the shop's own matter.
_OF_DELIVERY = (
    "site_id", "endpoint", "live", "wire", "outbox", "delivery_workers", "connect_timeout", "read_timeout",
    "deadline", "give_up_after", "retention",
)  # fmt: skip
_OF_STATUS = ("outbox", "endpoint", "live")

_SOURCES = "The first of these that gives a setting decides: an option, --app or --ini, the environment (KATALYS_...)."

_EPILOG = """\
exit codes:
  0    all went well
  1    it did not, as the message says; or the operator should look at something
  2    wrong use, wrong settings, or no outbox where they say
  130  ended by Ctrl-C
  141  the reader of the output closed it (such as head)
  143  ended by TERM

Where a command finds your shop: --app MODULE:ATTRIBUTE or --ini FILE#SECTION, before or behind the command,
else the environment: KATALYS_SITE_ID, KATALYS_SECRET_KEY, KATALYS_OUTBOX and so on.
"""

#: How argparse reports a value that is not one of the choices.
_invalid_choice = re.compile(r".*invalid choice: '(.*)' \(choose from (.*)\)").fullmatch


def make_parser(prog: str = "katalys-wsgi", *, finds_shop: bool = True) -> argparse.ArgumentParser:
    """The parser of the command line.

    :param prog: how the reader calls the program.
    :param finds_shop: there are options that say where the settings come from: ``--app``, ``--ini`` and one for each
        setting that the command uses. An adapter's own command line, which has a tracker, leaves them out.
    :returns: a parser whose result has ``run``, the command's function, which takes that result and returns an exit
        code; and ``refuse``, which ends the program with code 2 and a message.
    """
    return _Commands(prog, finds_shop=finds_shop).parser


def command_names() -> tuple[str, ...]:
    """The names of all commands, in the order in which ``--help`` lists them."""
    return _Commands("katalys-wsgi", finds_shop=True).names


class _Commands:
    """The parser while it is made: every command is added to it once.

    :param prog: and ``finds_shop`` as of :func:`make_parser`.
    :ivar parser: the finished parser.
    :ivar names: of the commands, which argparse does not show afterwards.
    """

    def __init__(self, prog: str, *, finds_shop: bool) -> None:
        self._finds_shop = finds_shop
        self.parser = _Parser(
            prog=prog,
            description="Reports a shop's affiliate sales to Katalys, server to server.",
            epilog=_EPILOG if finds_shop else _EPILOG.partition("\nWhere")[0],
        )
        self.parser.set_defaults(app=None, ini=None, tracker=None, program=prog)
        self.parser.add_argument("--version", action="version", version=f"katalys-wsgi {__version__}")
        if finds_shop:
            _add_sources(self.parser)
        self._subparsers = self.parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
        for declare in (_declare_trials, _declare_delivery, _declare_questions, _declare_changes):
            declare(self)
        self.names = tuple(self._subparsers.choices)

    def add(self, name: str, run: Run, summary: str, *, ends: str) -> argparse.ArgumentParser:
        """Add a command.

        :param name: the word that calls it.
        :param run: what it does; returns the exit code.
        :param summary: what it is for, as the list of commands says it.
        :param ends: what its exit codes mean.
        :returns: the command's parser, to which its own options are added.
        """
        description = f"{summary[0].upper()}{summary[1:]}."
        epilog = textwrap.fill(f"exit codes: {ends}; 2 wrong use, wrong settings or no outbox", 100)
        command: argparse.ArgumentParser = self._subparsers.add_parser(
            name, help=summary, description=description, epilog=epilog
        )
        command.set_defaults(run=run, refuse=command.error)
        return command

    def add_settings(self, command: argparse.ArgumentParser, names: Iterable[str]) -> None:
        """Say where the settings of a command come from; the last group of its ``--help``.

        Nothing is added where the calling program has given the tracker.

        :param names: the settings that have an option of their own, in the order of ``--help``.
        """
        if not self._finds_shop:
            return
        group = command.add_argument_group("where the settings come from", _SOURCES)
        _add_sources(group)
        for name in names:
            metavar, text = DESCRIPTIONS[name]
            group.add_argument("--" + name.replace("_", "-"), dest=PREFIX + name, metavar=metavar, help=text)


class _Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviated options, so that a new option breaks no script."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """End with code 2; a mistyped command or choice gets the one that was probably meant."""
        found = _invalid_choice(message)
        nearest = difflib.get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), n=1) if found else []
        super().error(f"{message}; did you mean {nearest[0]}?" if nearest else message)


def _add_sources(parser: Any) -> None:
    """Declare ``--app`` and ``--ini``, which may stand before the command as well as behind it."""
    # Without a default: that of a command would replace what was given before it.
    parser.add_argument(
        "--app", default=argparse.SUPPRESS, metavar="MODULE:ATTRIBUTE", help="your application, such as shop:app"
    )
    parser.add_argument(
        "--ini", default=argparse.SUPPRESS, metavar="FILE#SECTION", help="your ini file; [app:main] without a section"
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    """Declare ``--json``: the answer as JSON on standard output."""
    command.add_argument("--json", action="store_true", help="print JSON")


def _declare_trials(commands: _Commands) -> None:
    """Declare the commands that need no shop: ``demo``, ``sandbox`` and ``decode``.

    ``decode`` takes a shop all the same, for its secret key.
    """
    ends = "0 the conversion arrived intact; 1 it did not"
    command = commands.add(
        "demo", demo, "play one shopper from link to conversion, then stay for you to click", ends=ends
    )
    command.add_argument("--once", action="store_true", help="end by itself")
    command.add_argument("--port", type=values.port, default=0, help="the shop's port (default: any free one)")

    ends = "1 the port cannot be used; 130 ended by Ctrl-C; 143 ended by TERM"
    command = commands.add("sandbox", sandbox, "play Katalys on a loopback port, until Ctrl-C", ends=ends)
    command.add_argument(
        "--port", type=values.port, default=8640, help="the port to listen at (default: %(default)s; 0: any free one)"
    )
    command.add_argument("--site-id", metavar="ID", help="refuse messages for any other site")

    ends = "0 there is a click; 1 there is none, or its signature is wrong"
    command = commands.add("decode", decode, "show the click in a cookie's value", ends=ends)
    command.add_argument("cookie", metavar="COOKIE", help="the value, or name=value as in a Cookie header")
    _add_json(command)
    commands.add_settings(command, ())


def _declare_delivery(commands: _Commands) -> None:
    """Declare ``deliver``, which a unit file or cron runs, with an option for each setting of delivery."""
    ends = "0 TERM or Ctrl-C ended it, or with --once every row that was due is delivered; 1 a row failed"
    summary = "deliver what is in the outbox; TERM finishes the rows in progress"
    command = commands.add("deliver", deliver, summary, ends=ends)
    command.add_argument("--once", action="store_true", help="end when nothing is due, instead of waiting for more")
    _add_json(command)
    commands.add_settings(command, _OF_DELIVERY)


def _declare_questions(commands: _Commands) -> None:
    """Declare the commands that change nothing: ``status``, ``list`` and ``why``."""
    ends = "0 all is well (held rows are, too); 1 a dead letter, a pause, or a row that is pending for too long"
    command = commands.add("status", status, "show how delivery stands", ends=ends)
    command.add_argument(
        "--max-age",
        type=values.number("seconds", 10**9),
        default=3600,
        metavar="SECONDS",
        help="how long a row may be pending (default: %(default)s)",
    )
    _add_json(command)
    commands.add_settings(command, _OF_STATUS)

    command = commands.add(
        "list", list_entries, "list what is in the outbox, the newest first", ends="0 it was read; 1 it cannot be"
    )
    _declare_list(command)
    commands.add_settings(command, ["outbox"])

    ends = "0 something is known of the order; 1 nothing is"
    command = commands.add("why", why, "show the whole story of an order", ends=ends)
    command.add_argument("order", metavar="ORDER", help="the shop's order id")
    _add_json(command)
    commands.add_settings(command, ["outbox"])


def _declare_list(command: argparse.ArgumentParser) -> None:
    """Declare which entries ``list`` shows, how many, and in which format."""
    command.add_argument("--state", choices=[state.value for state in State], help="only entries in this state")
    command.add_argument(
        "--since", type=values.moment, metavar="WHEN", help="recorded then or later: 2026-11-01, or 7d"
    )
    command.add_argument("--until", type=values.moment, metavar="WHEN", help="recorded before then: 2026-12-01")
    command.add_argument(
        "--limit",
        type=values.whole(1, 10**9),
        metavar="COUNT",
        help="at most so many, the newest (default: 50; as csv: all)",
    )
    command.add_argument("--group", action="store_true", help="how many dead letters there are of each reason")
    command.add_argument("--format", choices=FORMATS, default="table", help="csv has a header (default: %(default)s)")
    command.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")


def _declare_changes(commands: _Commands) -> None:
    """Declare the commands that change the outbox: ``retry``, ``drop``, ``forget``, ``prune``, ``recover``."""
    ends = "0 every dead letter that was asked for will be tried again; 1 one could not be, or there was none"
    command = commands.add("retry", retry, "have dead letters tried again", ends=ends)
    _declare_retry(command)
    commands.add_settings(command, ["outbox"])

    ends = "0 it is dropped; 1 it is not a dead letter, or the answer was not yes"
    command = commands.add("drop", drop, "dismiss the dead letter of an order: it is never sent", ends=ends)
    command.add_argument("order", metavar="ORDER", help="the shop's order id")
    command.add_argument("--yes", action="store_true", help="do not ask")
    commands.add_settings(command, ["outbox"])

    summary = "remove a buyer's data from the outbox; what is pending is not delivered"
    command = commands.add("forget", forget, summary, ends="0 no such data is left; 1 the order is unknown")
    command.add_argument("order", metavar="ORDER", nargs="?", help="the shop's order id")
    command.add_argument("--email", metavar="ADDRESS", help="every order of this address")
    commands.add_settings(command, ["outbox"])

    command = commands.add("prune", prune, "delete what was finished long ago", ends="0 it was; 1 it could not be")
    command.add_argument(
        "--older-than",
        type=values.number("days", 36500),
        metavar="DAYS",
        help="finished so long ago (default: the setting retention)",
    )
    commands.add_settings(command, ["outbox", "retention"])

    ends = "0 the file is sound; 1 it could not be repaired"
    command = commands.add("recover", recover, "repair the outbox's file if it is damaged", ends=ends)
    command.add_argument("--yes", action="store_true", help="it is ours, even where the file itself cannot say so")
    commands.add_settings(command, ["outbox"])


def _declare_retry(command: argparse.ArgumentParser) -> None:
    """Declare which dead letters ``retry`` revives, and the corrections.

    Which options go together, argparse cannot express; the command refuses the rest, and the usage line says it.
    """
    command.usage = (
        f"{command.prog} [-h] (ORDER [--set FIELD=VALUE ...] | --all-dead | --reason TEXT) [--since WHEN] [--dry-run]"
    )
    command.add_argument("order", metavar="ORDER", nargs="?", help="the shop's order id")
    command.add_argument(
        "--set",
        action="append",
        type=values.assignment,
        default=[],
        metavar="FIELD=VALUE",
        help="correct a field, by Katalys' name for it; no value removes it",
    )
    command.add_argument("--all-dead", action="store_true", help="every dead letter")
    command.add_argument("--reason", metavar="TEXT", help="those whose reason contains this, see: status")
    command.add_argument(
        "--since", type=values.moment, metavar="WHEN", help="those that died then or later, such as 3d"
    )
    command.add_argument("--dry-run", action="store_true", help="say what would be tried again, and change nothing")
