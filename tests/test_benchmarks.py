"""The benchmarks run. Their figures are not judged here: a timed test fails on a busy machine and proves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = Path(__file__).parent / "benchmarks" / "run.py"
SCALE = RUN.with_name("scale.py")

#: Every row, and whether it has a limit.
ROWS = {
    "pass-through": True,
    "landing": True,
    "reading": True,
    "record-journal": True,
    "record-wal": True,
    "burst": False,
    "drain": True,
    "drain-slow": True,
    "memory": True,
    "imports": False,
    "queues": False,
}


def run(*arguments: str, script: Path = RUN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script, "--quick", *arguments], capture_output=True, text=True, timeout=50, check=False
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A whole quick run, printed as JSON."""
    return run("--json", "--directory", str(tmp_path_factory.mktemp("benchmarks")))


def rows_of(finished: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert finished.stdout, finished.stderr
    rows: list[dict[str, Any]] = json.loads(finished.stdout)
    return rows


def test_every_row_is_measured(finished: subprocess.CompletedProcess[str]) -> None:
    rows = rows_of(finished)

    assert [row["row"] for row in rows] == list(ROWS)
    assert [row["skipped"] for row in rows] == [None] * len(ROWS)


def test_a_row_with_a_limit_has_a_value_and_a_verdict(finished: subprocess.CompletedProcess[str]) -> None:
    limited = [row for row in rows_of(finished) if row["limit"]]

    assert [row["row"] for row in limited] == [name for name, has_limit in ROWS.items() if has_limit]
    assert all(row["value"] > 0 and row["rounds"] for row in limited)
    assert all(row["ok"] in (True, False) for row in limited)


def test_every_order_recorded_by_us_survives_a_kill(finished: subprocess.CompletedProcess[str]) -> None:
    """Not a timing, so it may be asserted: what record() called RECORDED is on the disk."""
    details: dict[str, str] = rows_of(finished)[-1]["details"]
    ours = next(figures for peer, figures in details.items() if peer.startswith("katalys_wsgi"))

    assert ours.endswith("50 of 50 survive")


def test_the_exit_code_shows_a_missed_limit(finished: subprocess.CompletedProcess[str]) -> None:
    missed = any(row["ok"] is False for row in rows_of(finished))

    assert finished.returncode == int(missed)


def test_one_row_can_be_asked_for() -> None:
    finished = run("imports")

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("imports ")
    assert "import katalys_wsgi: " in finished.stdout


def test_an_unknown_row_is_refused_with_the_known_ones() -> None:
    finished = run("nonsense")

    assert finished.returncode == 2
    assert "no such row: nonsense; choose from pass-through, landing" in finished.stderr


def test_a_backlog_is_measured_too(tmp_path: Path) -> None:
    """The rows of scale.py that need no server; the relays of the others take minutes."""
    finished = run("--json", "--directory", str(tmp_path), "record-sqlite", "claim-sqlite", script=SCALE)
    rows = rows_of(finished)

    assert [row["row"] for row in rows] == ["record-sqlite", "claim-sqlite"]
    assert all(row["value"] > 0 and row["limit"] == "≤ 1.3" for row in rows)
