"""The command ``deliver``: what a unit file or cron runs.

It needs no web server and none of the shop's pages: any machine that reaches the outbox may run it, several at the same
time. Where the setting ``delivery`` is ``external``, it is what delivers, unless Celery's task does.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..events import log
from ..tracker import Tracker
from .exits import FAILED, OK
from .shop import opened

if TYPE_CHECKING:
    from ..delivery.relay import Drained

__all__ = ["deliver"]


def deliver(arguments: Namespace) -> int:
    """Run a relay in the foreground, until TERM or Ctrl-C; the rows in progress are finished before it ends.

    Each event is logged to standard error, with the time; on a terminal the number of delivered rows is counted there.
    With ``--once`` it ends when nothing is due any more, and prints how many rows were delivered, postponed and became
    dead letters: one line, or one JSON object with ``--json``. site_id and secret_key have to be set.

    :returns: FAILED only with ``--once``, when a row was postponed or became a dead letter; else OK, also after a
        signal.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with opened(arguments, complete=True) as tracker, _stopped_by_signals(tracker), _progress():
        if arguments.once:
            return _report_drained(tracker.drain(), as_json=arguments.json)
        tracker.deliver()
    return OK


@contextmanager
def _stopped_by_signals(tracker: Tracker) -> Iterator[None]:
    """Within this block TERM and Ctrl-C stop the relay once the rows in progress are finished."""

    def stop(*_: object) -> None:
        tracker.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report_drained(drained: Drained, *, as_json: bool) -> int:
    """Print what became of the rows; returns the exit code."""
    if as_json:
        print(json.dumps(asdict(drained)))
    else:
        print(f"{drained.settled} delivered, {drained.postponed} postponed, {drained.buried} dead")
    return FAILED if drained.postponed or drained.buried else OK


@contextmanager
def _progress() -> Iterator[None]:
    """Count on one line of the terminal while a backlog drains; nothing where standard error is not one."""
    counter = _Counter()
    if not sys.stderr.isatty():
        yield
        return
    before = log.level
    log.addHandler(counter)
    log.setLevel(min(log.getEffectiveLevel(), logging.INFO))  # the shop may have set a higher one for its pages
    try:
        yield
    finally:
        log.removeHandler(counter)
        log.setLevel(before)


class _Counter(logging.Handler):
    """Counts delivered rows by the log, since the tracker may be the shop's own with hooks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._delivered = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count an event ``postback_delivered``; every other record of the log is passed over."""
        if getattr(getattr(record, "katalys", None), "name", "") == "postback_delivered":
            self._delivered += 1
            print(f"\r{self._delivered} delivered ", end="", file=sys.stderr, flush=True)
