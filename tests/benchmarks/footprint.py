"""What it costs to have the package loaded: a worker's memory, and what each import brings with it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from .measure import ROOT, Limit, Plan, Row, Skipped

#: What is imported, and what a process that wants it has imported already.
IMPORTS = {
    "katalys_wsgi": "",
    "katalys_wsgi.flask": "flask",
    "katalys_wsgi.pyramid": "pyramid.config",
    "katalys_wsgi.bottle": "bottle",
    "katalys_wsgi.paste": "",
    "katalys_wsgi.celery": "celery",
    "katalys_wsgi.outbox.sqlite": "katalys_wsgi",
    "katalys_wsgi.delivery.relay": "katalys_wsgi",
    "requests": "",
}

_IMPORT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
{before}
known = set(sys.modules)
started = time.perf_counter()
import {name}
seconds = time.perf_counter() - started
new = set(sys.modules) - known
packages = {{module.partition(".")[0] for module in new if not module.startswith("_")}}
print(json.dumps([seconds, len(new), sorted(packages - set(sys.stdlib_module_names) - {{"katalys_wsgi"}})]))
"""


def memory(plan: Plan) -> Row:
    """Resident memory added to a Flask worker that has served one landing request."""
    if importlib.util.find_spec("flask") is None:
        raise Skipped("needs Flask; pip install flask")
    if not Path("/proc/self/status").exists():
        raise Skipped("needs /proc, which Linux has")
    if not plan.quick:
        _worker("with", plan), _worker("without", plan)  # compiles what is not compiled yet, which takes memory, too
    pairs = [(_worker("with", plan), _worker("without", plan)) for _ in range(plan.pick(5, 1))]
    return Row(
        "memory of a Flask worker",
        "the same worker without katalys_wsgi",
        [ours - theirs for ours, theirs in pairs],
        unit="MB",
        limit=Limit(6),  # less than a fifth of a Flask worker without a shop in it
        details={
            "with": f"{median(ours for ours, _ in pairs):.1f} MB",
            "without": f"{median(theirs for _, theirs in pairs):.1f} MB",
        },
    )


def imports(plan: Plan) -> Row:
    """What each import loads beyond what is there, for the reader."""
    wanted = dict(list(IMPORTS.items())[: plan.pick(len(IMPORTS), 2)])
    details = {f"import {name}": _import_cost(name, before, plan) for name, before in wanted.items()}
    return Row("imports", "what the process has loaded already", details=details)


def _import_cost(name: str, before: str, plan: Plan) -> str:
    wanted = [package for package in (name, before) if package and not _is_there(package)]
    if wanted:
        return f"not here: {', '.join(wanted)}"
    code = _IMPORT.format(name=name, before=before and f"import {before}")
    results = [json.loads(_python("-c", code)) for _ in range(plan.pick(3, 1))]
    # The best one: the first compiles, and every other is slowed by what else the machine does.
    seconds, count, others = min(results)
    after = f" after {before}" if before else ""
    return f"{seconds * 1000:.0f} ms, {count} modules{after}" + (f", with {', '.join(others)}" if others else "")


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # not even its package
        return False


def _worker(kind: str, plan: Plan) -> float:
    return int(_python("-m", "tests.benchmarks.flask_worker", kind, str(plan.directory))) * 1024 / 1e6


def _python(*arguments: str) -> str:
    """The output of a fresh interpreter, which keeps what it compiles, as a server's does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
