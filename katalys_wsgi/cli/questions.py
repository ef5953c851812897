"""Commands that only look: ``status``, ``list`` and ``why``."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

from .. import operations
from ..operations import Status, utc, visible
from ..outbox import Entry, State
from .exits import FAILED, OK
from .listing import FORMATS
from .shop import opened, place_of

if TYPE_CHECKING:
    from ..tracker import Tracker

__all__ = ["list_entries", "status", "why"]

#: How many reasons ``status`` prints; ``list --state dead --group`` prints all.
MOST_REASONS = 5

#: How many entries ``list`` prints unless asked for more; as CSV, which is for accounting, all.
MOST_ENTRIES = 50

#: More rows than any outbox has.
ALL = 2**31 - 1


def status(arguments: Namespace) -> int:
    """Print how delivery stands, for an operator or a monitor.

    It says how many entries there are of each state, the commonest reasons of dead letters, and why delivery pauses.
    With ``--json`` it is one object on one line: the fields of :class:`~katalys_wsgi.outbox.Statistics` with times in
    ISO 8601, ``oldest_pending_age`` in seconds, ``pause``, ``held``, ``reasons``, ``outbox`` and ``endpoint``.

    :returns: FAILED when there is a dead letter or a pause, or when a row has been pending for more than ``--max-age``
        seconds. While postbacks are held on this machine nothing is expected to leave, so only a dead letter counts
        then.
    """
    now = time.time()
    with opened(arguments) as tracker:
        found, held = operations.status(operations.archive(tracker.outbox)), tracker.held
        oldest = found.statistics.oldest_pending
        age = now - oldest if oldest else 0.0
        if arguments.json:
            print(json.dumps(_as_json(found, tracker, held, age)))
        else:
            _print_status(found, held, age, arguments)
    if held:
        return FAILED if found.statistics.dead else OK
    return OK if found.is_healthy and age <= arguments.max_age else FAILED


def _as_json(found: Status, tracker: Tracker, held: str | None, age: float) -> dict[str, object]:
    times = ("oldest_pending", "last_delivered")
    return {
        **asdict(found.statistics),
        **{name: operations.iso(getattr(found.statistics, name)) for name in times},
        "oldest_pending_age": age,
        "pause": found.pause,
        "held": held,
        "reasons": dict(found.reasons),
        "outbox": place_of(tracker.outbox),
        "endpoint": tracker.settings.endpoint,
    }


def _print_status(found: Status, held: str | None, age: float, arguments: Namespace) -> None:
    statistics, program = found.statistics, arguments.program
    since = f", the oldest for {timedelta(seconds=int(age))}" if statistics.pending else ""
    since += f": longer than {arguments.max_age:g} seconds, is a relay running?" if age > arguments.max_age else ""
    print(f"pending    {statistics.pending} ({statistics.due} due){since}")
    print(f"held       {_holding(held)}")
    print(f"dead       {statistics.dead}" + (f"; see: {program} list --state dead --group" if statistics.dead else ""))
    for reason, count in list(found.reasons.items())[:MOST_REASONS]:
        print(f"  {count:>7}  {visible(reason)}")
    if len(found.reasons) > MOST_REASONS:
        print(f"           and {len(found.reasons) - MOST_REASONS} further reasons")
    print(f"delivered  {statistics.delivered}, the last {utc(statistics.last_delivered)}")
    print(f"forgotten  {statistics.forgotten}")
    print(f"dropped    {statistics.dropped}")
    print(f"pause      {found.pause or 'no'}")


def _holding(reason: str | None) -> str:
    """Whether postbacks are held, why, and how to end that; ``reason`` is None when they are not."""
    if reason is None:
        return "no"
    return f"yes, nothing leaves this machine: {reason}. To send what is pending, set live to true."


def list_entries(arguments: Namespace) -> int:
    """Print entries, the newest first, as a table, CSV or JSON; with ``--group`` how many dead letters each reason has.

    ``--state``, ``--since`` (included) and ``--until`` (not included) choose by state and by when it was recorded. At
    most ``--limit`` entries are printed (:data:`MOST_ENTRIES` unless given, but all as CSV); standard error says when
    there are more.

    :returns: OK, also when there is no entry.
    """
    write = FORMATS[arguments.format]
    limit = arguments.limit or (ALL if arguments.format == "csv" else MOST_ENTRIES)
    with opened(arguments) as tracker:
        state = State(arguments.state) if arguments.state else None
        entries = operations.archive(tracker.outbox).entries(state, limit=ALL if _is_picky(arguments) else limit + 1)
    entries = [entry for entry in entries if _is_within(entry, arguments)]
    if arguments.group:
        return _print_groups(entries, as_json=arguments.format == "json")
    write(entries[:limit], sys.stdout)
    if len(entries) > limit:
        print(f"Cut off: these are the newest {limit}, and there are more. Ask for more with --limit.", file=sys.stderr)
    return OK


def _is_picky(arguments: Namespace) -> bool:
    """Whether rows are left out that the outbox itself would count."""
    return arguments.group or arguments.since is not None or arguments.until is not None


def _is_within(entry: Entry, arguments: Namespace) -> bool:
    after_start = arguments.since is None or entry.created_at >= arguments.since
    return after_start and (arguments.until is None or entry.created_at < arguments.until)


def _print_groups(entries: list[Entry], *, as_json: bool) -> int:
    """Print how many dead letters there are of each reason, the commonest first; returns the exit code."""
    groups = operations.grouped(entry for entry in entries if entry.state is State.DEAD)
    if as_json:
        print(json.dumps(groups, indent=2))
    else:
        for reason, count in groups.items():
            print(f"{count:>7}  {visible(reason)}")
    return OK


def why(arguments: Namespace) -> int:
    """Print the whole story of ORDER: what was recorded, each attempt with its answer, and what happens next.

    With ``--json`` it prints a list of its entries instead, as ``list --json`` does. No buyer's data is shown.

    :returns: FAILED when nothing is known of the order: it had no click, or was deleted after ``retention``.
    """
    with opened(arguments) as tracker:
        entries = tracker.outbox.history(arguments.order)
    if arguments.json:
        print(json.dumps([operations.as_row(entry) for entry in entries], indent=2))
    elif entries:
        print("\n".join(operations.story(entries, time.time(), program=arguments.program)))
    else:
        print(
            f"Nothing is known of order {visible(arguments.order)}: it had no click, or was finished longer ago than "
            "retention."
        )
    return OK if entries else FAILED
