"""The command line, ``katalys-wsgi`` or ``python -m katalys_wsgi``: runs a command and makes an exit code of its end.

:mod:`katalys_wsgi.cli.parser` says which commands and options there are; what a command does stands in a module beside
it. A command takes the parsed arguments, prints to standard output what was asked for and everything else to standard
error, and returns an exit code of :mod:`katalys_wsgi.cli.exits`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import KatalysError, OutboxMissing, OutboxUnavailable
from .exits import FAILED as FAILED
from .exits import INTERRUPTED, NO_READER
from .exits import OK as OK
from .exits import WRONG_USE as WRONG_USE
from .parser import command_names, make_parser

if TYPE_CHECKING:
    from ..tracker import Tracker

__all__ = ["command_names", "main", "make_parser"]


def main(argv: Sequence[str] | None = None, *, tracker: Tracker | None = None, prog: str = "katalys-wsgi") -> int:
    """Run one command of the command line.

    Errors of this package become one message on standard error: no outbox where the settings say, and settings that
    cannot work, end with 2; an outbox that cannot be read or written ends with 1. Any other exception is a bug and
    leaves with its traceback.

    :param argv: the words after the program's name; those of the process unless given.
    :param tracker: of the calling program, such as ``flask katalys``; there are no options then that say where the
        settings come from.
    :param prog: how the reader calls the program, for ``--help`` and advice.
    :returns: the exit code, see :mod:`katalys_wsgi.cli.exits`.
    :raises SystemExit: with code 2 for wrong use, and 0 after ``--help``; argparse's own way out.
    """
    try:
        try:
            arguments = make_parser(prog, finds_shop=tracker is None).parse_args(argv)
            arguments.tracker = tracker
            return int(arguments.run(arguments))
        finally:
            sys.stdout.flush()  # else a reader that left would be noticed at the interpreter's end only
    except OutboxMissing as error:
        return _report(f"{prog}: {str(error)[:1].lower()}{str(error)[1:]}", WRONG_USE)  # "no outbox at ..."
    except OutboxUnavailable as error:
        return _report(str(error), FAILED)
    except KatalysError as error:
        return _report(str(error), WRONG_USE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe: what is still buffered has no reader.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER


def _report(message: str, code: int) -> int:
    """Print ``message`` to standard error; returns ``code``."""
    print(message, file=sys.stderr)
    return code
