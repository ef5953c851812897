"""Exit codes: what every command may end with, for scripts, cron and monitors."""

from __future__ import annotations

__all__ = ["FAILED", "INTERRUPTED", "NO_READER", "OK", "TERMINATED", "WRONG_USE"]

#: All went well.
OK = 0

#: It did not, as the text says.
FAILED = 1

#: Wrong use, wrong settings, or no outbox where they say.
WRONG_USE = 2

#: Ctrl-C ended it; what a shell reports of such a program.
INTERRUPTED = 130

#: Whoever read its output had enough, as ``head`` does.
NO_READER = 141

#: TERM ended it.
TERMINATED = 143
