"""The sandbox in a process of its own: what measures it must not share its interpreter.

``python -m tests.benchmarks.collector [SECONDS]`` prints its address, answers each request after SECONDS, and
leaves when its standard input ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .measure import ROOT


@contextmanager
def collector(seconds: float = 0.0) -> Iterator[str]:
    """Run it; yields its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        with process:
            assert process.stdin
            assert process.stdout
            yield process.stdout.readline().strip()
            process.stdin.close()
    finally:
        process.kill()


def main(seconds: float) -> None:
    """Serve until standard input ends, which it does when the parent process is gone."""
    with Sandbox() as sandbox:
        if seconds:
            sandbox.collector.misbehave(Misbehaviour.slow(seconds))
        print(sandbox.endpoint, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(float(sys.argv[1]))
