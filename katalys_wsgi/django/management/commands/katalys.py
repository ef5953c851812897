"""The command ``manage.py katalys …``: the command line, for the project's own tracker."""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from .... import cli
from ....errors import ConfigurationError
from ....tracker import Tracker
from ...shop import get_tracker

__all__ = ["Command"]

#: Commands that need no shop, so they work before there are settings.
WITHOUT_SHOP = ("demo", "sandbox", "decode")

HELP = frozenset({"-h", "--help", "--version"})


class Command(BaseCommand):  # type: ignore[misc] # Django has no types
    """Hands every word to :func:`katalys_wsgi.cli.main`; exits as that does.

    The settings are the project's, so there is neither ``--app`` nor ``--ini``, and no option of a single setting.
    Django's system checks are not run: an operator's question must not depend on the rest of the project.
    """

    help = "Deliver, inspect and correct postbacks."
    requires_system_checks: Sequence[str] = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """What ``manage.py`` calls: every option is ours, but the two that Django has already followed.

        :raises SystemExit: with the exit code of the command line.
        """
        django = CommandParser(add_help=False, allow_abbrev=False)
        django.add_argument("--settings")
        django.add_argument("--pythonpath")
        _, arguments = django.parse_known_args(argv[2:])
        sys.exit(_run(arguments, f"{os.path.basename(argv[0])} {argv[1]}"))

    def add_arguments(self, parser: CommandParser) -> None:
        """Take all words as they are, for ``call_command("katalys", "status", "--json")``."""
        parser.add_argument("arguments", nargs=REMAINDER)

    def handle(self, *, arguments: list[str], **options: Any) -> None:
        """What ``call_command()`` calls; ``stdout`` and ``stderr`` are respected.

        :raises SystemExit: with the exit code of the command line, unless that is 0.
        """
        out, err = options.get("stdout") or sys.stdout, options.get("stderr") or sys.stderr
        with redirect_stdout(out), redirect_stderr(err):
            code = _run(arguments, "manage.py katalys")
        if code:
            sys.exit(code)


def _run(arguments: Sequence[str], prog: str) -> int:
    """Run the command line; settings that cannot work are printed, and make exit code 2."""
    try:
        return cli.main(arguments, tracker=_tracker(arguments), prog=prog)
    except ConfigurationError as error:  # that of the tracker; the command line reports its own
        sys.stderr.write(f"{error}\n")
        return 2


def _tracker(arguments: Sequence[str]) -> Tracker | None:
    """The project's tracker; None for ``--help`` and for commands that need no shop."""
    if not arguments or arguments[0] in WITHOUT_SHOP or HELP.intersection(arguments):
        return None
    return get_tracker()
