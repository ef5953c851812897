"""The command line, ``katalys-wsgi``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Sequence
from datetime import datetime, timezone

from .cookie import ClickCookie
from .errors import KatalysError
from .sandbox import Collector, Sandbox, demo
from .settings import ENVIRONMENT, LONGEST_WINDOW, Settings

OK = 0
FAILED = 1
WRONG_USE = 2

_EPILOG = """\
exit codes: 0 all went well; 1 it did not, as the text says; 2 wrong use or wrong settings.
Settings are read from the environment: KATALYS_SITE_ID, KATALYS_SECRET_KEY and so on.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KatalysError as fault:
        print(fault, file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        return 130  # what a shell reports of a program that Ctrl-C ended


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="katalys-wsgi",
        description="Reports a shop's affiliate sales to Katalys, server to server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("demo", help="play one shopper from link to conversion, then stay for you to click")
    command.add_argument(
        "--once", action="store_true", help="end by itself; exit 0 only if the conversion arrived intact"
    )
    command.set_defaults(run=_demo)

    command = commands.add_parser("sandbox", help="play Katalys on a loopback port, until Ctrl-C")
    command.add_argument("--port", type=int, default=8640, help="the port to listen at (default: %(default)s; 0: any)")
    command.add_argument("--site-id", help="refuse messages for any other site")
    command.set_defaults(run=_sandbox)

    command = commands.add_parser("decode", help="show the click in a cookie's value", epilog=_EPILOG)
    command.add_argument("cookie", metavar="COOKIE", help="the value, or name=value as in a Cookie header")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_decode)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    return demo.run(once=arguments.once)


def _sandbox(arguments: argparse.Namespace) -> int:
    with Sandbox(Collector(site_id=arguments.site_id), port=arguments.port) as sandbox:
        print(f"Katalys' stand-in is listening. Set KATALYS_ENDPOINT={sandbox.endpoint}")
        print(f"What it received: {sandbox.url}    Ctrl-C ends it.", flush=True)
        threading.Event().wait()
    return OK


def _decode(arguments: argparse.Namespace) -> int:
    secret = ENVIRONMENT.select(os.environ).get("secret_key")
    settings = Settings.from_mapping({"site_id": "KA-DECODE", "secret_key": secret}, ENVIRONMENT)
    cookie = ClickCookie(settings.secret_key, window=LONGEST_WINDOW)
    try:
        click = cookie.loads(arguments.cookie.rpartition("=")[2].strip('"'))
    except ValueError as fault:
        print(f"No click: {fault}. Was it signed with another KATALYS_SECRET_KEY, or cut short?", file=sys.stderr)
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
