"""Prints what the package costs as ratios inside one run, each beside its limit.

    python tests/benchmarks/run.py [--json] [--quick] [--directory DIR] [ROW…]

Each row is the median of paired rounds: ours and its peer take turns batch by batch in the same run, and within a
round the best batch of each counts (measure.py says why). "Added time" is the time of a request through the
middleware minus that of the bare application, measured in the same round. A row's limit stands where the row is
measured, as ``Limit(...)``. The peers:

* pass-through: WhiteNoise with one file, asked for a path that is not that file's.
* landing: a middleware of twenty lines (``NaiveClickMiddleware`` in pages.py), as one would write it with WebOb and
  itsdangerous. Each request brings another transaction_id.
* reading: ``loads`` of the same cookie value, the serializer built once.
* record-journal, record-wal: a table with a primary key in another file of the same directory, same journal mode.
* burst: one checkout alone; for the reader, without a limit.
* drain: ``requests.Session().post`` one after the other; both to the sandbox in a process of its own.
* drain-slow: what four workers would achieve if the collector's 50 ms were the only thing that takes time.
* memory: the same Flask application in a fresh process, with and without us.
* imports, queues: for the reader, without a limit.

Exit code 1 if a limit is missed. ``--quick`` only shows that everything runs: its figures are not worth quoting.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

if not __package__:  # started as a file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.benchmarks import delivery, footprint, outbox, pages, queues
from tests.benchmarks.measure import Plan, Row, Skipped

ROWS: dict[str, Callable[[Plan], Row]] = {
    "pass-through": pages.pass_through,
    "landing": pages.landing,
    "reading": pages.reading,
    "record-journal": outbox.rollback_journal,
    "record-wal": outbox.write_ahead_log,
    "burst": outbox.burst,
    "drain": delivery.backlog,
    "drain-slow": delivery.slow_collector,
    "memory": footprint.memory,
    "imports": footprint.imports,
    "queues": queues.survivors,
}


def main() -> int:
    """Measure, print, judge."""
    arguments = _arguments()
    plan = Plan(arguments.directory.resolve(), arguments.quick)
    rows = {}
    for name in arguments.rows or ROWS:
        rows[name] = _measured(name, plan)
        if not arguments.json:
            print(*_lines(rows[name]), sep="\n", flush=True)
    if arguments.json:
        table = [{"row": name, **row.as_json()} for name, row in rows.items()]
        print(json.dumps(table, indent=2, ensure_ascii=False))
    return int(any(row.ok is False for row in rows.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What katalys_wsgi costs, beside what it is compared with.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all unless given: {', '.join(ROWS)}")
    parser.add_argument("--json", action="store_true", help="one JSON list at the end")
    parser.add_argument("--quick", action="store_true", help="only show that it runs, in a few seconds")
    parser.add_argument("--directory", type=Path, default=_disk(), help="where files are written (%(default)s)")
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - set(ROWS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    return arguments


def _disk() -> Path:
    """A directory on a disk: where /tmp is memory, a commit costs nothing and every ratio to it is wrong."""
    lasting = Path("/var/tmp")  # noqa: S108 - only a fresh directory inside it is used
    return lasting if lasting.is_dir() else Path(tempfile.gettempdir())


def _measured(name: str, plan: Plan) -> Row:
    try:
        return ROWS[name](plan)
    except Skipped as reason:
        return Row(name, "", skipped=str(reason))


def _lines(row: Row) -> Iterable[str]:
    if row.skipped:
        yield f"{row.name:26} skipped: {row.skipped}"
        return
    if row.value is None:
        yield f"{row.name:26} against {row.against}"
    else:
        verdict = {True: "ok", False: "MISSED", None: ""}[row.ok]
        low, high = row.quartiles
        value = f"{row.value:.2f} {row.unit}"
        yield f"{row.name:26} {value:>7} {row.limit!s:6} {verdict:6} ({low:.2f} … {high:.2f})  against {row.against}"
    for name, text in row.details.items():
        yield f"    {name}: {text}"


if __name__ == "__main__":
    sys.exit(main())
