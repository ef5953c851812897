"""Commands that change what is in the outbox: ``retry``, ``drop``, ``forget``, ``prune`` and ``recover``."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from .. import operations
from ..errors import InvalidConversion
from ..operations import visible
from ..outbox import Archive, Entry, State
from .exits import FAILED, OK, WRONG_USE
from .shop import find_secret_keys, opened, place_of

__all__ = ["drop", "forget", "prune", "recover", "retry"]


def retry(arguments: Namespace) -> int:
    """Make dead letters pending again, so that a relay tries them; ``--set`` corrects the fields of one order first.

    Chosen are those of ORDER, or, of all, those that ``--all-dead``, ``--reason`` and ``--since`` name. Prints how many
    were revived; to standard error why one was not. With ``--dry-run`` it prints each of them instead, with the time it
    died (UTC) and its last error, and changes nothing. Nothing is sent by this command itself.

    :returns: OK if there is at least one dead letter and all of them are revived (or would be), else FAILED.
    :raises SystemExit: with code 2 for options that contradict each other.
    """
    changes = dict(arguments.set)
    problem = _contradiction(arguments, changes)
    if problem:
        arguments.refuse(problem)
    with opened(arguments) as tracker:
        outbox = operations.archive(tracker.outbox)
        if arguments.order is None:
            dead = [entry for entry in operations.dead_letters(outbox) if _is_chosen(entry, arguments)]
        else:
            entries = outbox.history(arguments.order)
            dead = [entry for entry in entries if entry.state is State.DEAD]
            _say_what_is_not_dead(arguments.order, entries)
        if arguments.dry_run:
            return _try_out(dead, changes)
        revived = [entry for entry in dead if _revive(outbox, entry, changes)]
    print(f"{len(revived)} of {len(dead)} dead letters will be tried again")
    return OK if revived and len(revived) == len(dead) else FAILED


def _contradiction(arguments: Namespace, changes: dict[str, str]) -> str | None:
    """What is wrong with the combination of options, which argparse cannot express; None when nothing is."""
    many = arguments.all_dead or arguments.reason is not None or arguments.since is not None
    if (arguments.order is not None) == many:
        return "give one ORDER; or --all-dead, --reason TEXT or --since WHEN for many"
    if arguments.all_dead and arguments.reason is not None:
        return "--all-dead is every dead letter, and --reason only some; give one of them"
    if changes and many:
        return "--set corrects one ORDER, not many"
    if len(changes) != len(arguments.set):
        return "--set was given twice for one field; give each field once"
    return None


def _is_chosen(entry: Entry, arguments: Namespace) -> bool:
    """Whether a dead letter died of the reason, in whole or in part, and since the time that was asked for."""
    reason = (arguments.reason or "").lower()
    is_it = reason in (entry.last_error or "").lower() or reason in operations.reason_of(entry).lower()
    return is_it and (arguments.since is None or (entry.finished_at or 0.0) >= arguments.since)


def _say_what_is_not_dead(order: str, entries: list[Entry]) -> None:
    """Print to standard error where the entries of an order stand that ``retry`` and ``drop`` leave alone."""
    if not entries:
        print(f"Order {visible(order)} is unknown here.", file=sys.stderr)
    for entry in entries:
        if entry.state is not State.DEAD:
            print(f"The {entry.kind} of order {visible(order)} is {_standing(entry)}.", file=sys.stderr)


def _standing(entry: Entry) -> str:
    """A row that is not a dead letter: where it stands, and why there is nothing to retry."""
    return {
        State.PENDING: "pending: it will be tried without being asked",
        State.DELIVERED: "delivered: Katalys has it",
        State.FORGOTTEN: "forgotten: its data is gone; record the order again to send it",
        State.DROPPED: "dropped: the operator dismissed it; record the order again to send it",
    }[entry.state]


def _try_out(dead: list[Entry], changes: dict[str, str]) -> int:
    """Print what a retry would revive; nothing is changed."""
    good = [entry for entry in dead if _can_be_revived(entry, changes)]
    for entry in good:
        print(f"{operations.utc(entry.finished_at)}  {visible(entry.order_id)}  {visible(entry.last_error or '')}")
    print(f"{len(good)} of {len(dead)} dead letters would be tried again; nothing was changed")
    return OK if good and len(good) == len(dead) else FAILED


def _can_be_revived(entry: Entry, changes: dict[str, str]) -> bool:
    """Whether the entry with ``changes`` is something that Katalys could take; prints why not."""
    try:
        operations.corrected(entry, changes)
    except InvalidConversion as error:
        _print_invalid(error, changes)
        return False
    return True


def _revive(outbox: Archive, entry: Entry, changes: dict[str, str]) -> bool:
    """Whether a dead letter was revived; prints why not, and goes on with the next one."""
    try:
        revived = operations.revive(outbox, entry, changes)
    except InvalidConversion as error:
        _print_invalid(error, changes)
        return False
    if not revived:
        print(f"Order {visible(entry.order_id)} is not a dead letter any more, or was recorded again.", file=sys.stderr)
    return revived


def _print_invalid(error: InvalidConversion, changes: dict[str, str]) -> None:
    """Print what is wrong; how to correct it only where it is not the correction itself that is wrong."""
    is_uncorrected = any(problem.partition(":")[0] not in changes for problem in error.problems)
    advice = ". Correct it with --set FIELD=VALUE." if is_uncorrected else ""
    print(f"{visible(str(error))}{advice}", file=sys.stderr)


def drop(arguments: Namespace) -> int:
    """Dismiss the dead letters of ORDER for good: they are not sent, and the buyer's data is removed from them.

    Lists them on standard error and reads a line from standard input, unless ``--yes`` is given; only ``y`` or ``yes``
    drops them. Prints how many were dropped.

    :returns: FAILED, with nothing changed, if the order has no dead letter or the answer was another one; else OK.
    """
    with opened(arguments) as tracker:
        outbox = operations.archive(tracker.outbox)
        entries = outbox.history(arguments.order)
        dead = [entry for entry in entries if entry.state is State.DEAD]
        _say_what_is_not_dead(arguments.order, entries)
        if not dead:
            print("Only a dead letter can be dropped; nothing was changed.", file=sys.stderr)
            return FAILED
        if not (arguments.yes or _confirmed(dead)):
            print("Nothing was dropped.", file=sys.stderr)
            return FAILED
        print(f"{outbox.drop(dead)} dead letters were dropped")
    return OK


def _confirmed(dead: Iterable[Entry]) -> bool:
    """Ask on standard error; whether the line read from standard input says yes. Its end counts as no."""
    for entry in dead:
        reason = visible(entry.last_error or "no reason is known")
        print(f"The {entry.kind} of order {visible(entry.order_id)} is a dead letter: {reason}.", file=sys.stderr)
    print("Drop it? Katalys will never hear of it. [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        print("\nNobody answered; say --yes where nobody can.", file=sys.stderr)
    return answer.strip().lower() in ("y", "yes")


def forget(arguments: Namespace) -> int:
    """Remove a buyer's data from the outbox, by ORDER or ``--email``; what was pending or dead is then never sent.

    Prints how many entries were emptied. With ``hash_email`` an address is found by its keyed hash, which takes the
    shop's secret key; without one this is said on standard error, and only addresses in plain text are found.

    :returns: FAILED if ORDER is unknown: a mistyped number must not look like a kept promise. An address of which there
        is nothing is OK, since nothing of it is left.
    :raises SystemExit: with code 2 unless exactly one of both is given.
    """
    if (arguments.order is None) == (arguments.email is None):
        arguments.refuse("give either an ORDER or --email ADDRESS")
    with opened(arguments) as tracker:
        outbox = operations.archive(tracker.outbox)
        if arguments.order is not None and not outbox.history(arguments.order):
            print(f"Order {visible(arguments.order)} is unknown here.", file=sys.stderr)
            return FAILED
        keys = find_secret_keys(arguments) if arguments.email is not None else ()
        if arguments.email is not None and not keys:
            print("Without the shop's secret key, hashed addresses (hash_email) are not found.", file=sys.stderr)
        count = operations.forget(
            outbox, order_id=arguments.order, email_address=arguments.email, email_key=keys[0] if keys else ""
        )
    print(f"{count} entries were emptied")
    return OK


def prune(arguments: Namespace) -> int:
    """Delete what was finished longer ago than ``--older-than`` days, or else the setting ``retention``.

    Order updates that wait for a conversion among them go with it. Prints how many entries were deleted; a relay does
    the same by itself, by ``retention``. Where there is no outbox none is made.

    :returns: OK, also when there was nothing to delete.
    :raises OutboxMissing: there is no outbox; the exit code is then 2.
    """
    with opened(arguments) as tracker:
        tracker.outbox.history("")  # only reads, so that no file is made where there is none
        age = tracker.settings.retention if arguments.older_than is None else timedelta(days=arguments.older_than)
        print(f"{tracker.outbox.prune(time.time() - age.total_seconds())} entries were deleted")
    return OK


def recover(arguments: Namespace) -> int:
    """Repair the outbox's file if it is damaged: what can be read goes into a new file.

    The damaged file is kept beside it. Prints how many entries were saved and where the damaged file is now, or that
    nothing was wrong. With ``--yes`` a file whose header is damaged, too, is taken for the outbox; see
    :mod:`katalys_wsgi.outbox.recovery`.

    :returns: OK when the file is sound afterwards; WRONG_USE when the outbox is not a SQLite file of this package.
    :raises OutboxUnavailable: the file is locked for long, cannot be written, or is not ours; nothing has changed.
    """
    from ..outbox.recovery import recover as recover_file  # loads sqlite3
    from ..outbox.sqlite import SQLiteOutbox

    with opened(arguments) as tracker:
        if not isinstance(tracker.outbox, SQLiteOutbox):
            print(
                f"{place_of(tracker.outbox)} is not a file of ours; your database has its own tools.", file=sys.stderr
            )
            return WRONG_USE
        recovery = recover_file(Path(tracker.outbox.path), force=arguments.yes)
    if recovery is None:
        print("The file is sound; nothing was changed")
    else:
        print(f"{recovery.rows_saved} entries were saved; the damaged file is now {recovery.quarantined_as}")
    return OK
