"""Exit codes: what every command may end with, for scripts, cron and monitors.

0 to 2 are the command's own answer, and its ``--help`` says what they mean for it. From 128 on they follow the shells'
convention for a program that a signal ended: 128 and the number of the signal (INT 2, PIPE 13, TERM 15).
"""

from __future__ import annotations

__all__ = ["FAILED", "INTERRUPTED", "NO_READER", "OK", "TERMINATED", "WRONG_USE"]

#: All went well.
OK = 0

#: It did not, as the message says.
FAILED = 1

#: Wrong use, wrong settings, or no outbox where they say.
WRONG_USE = 2

#: Ctrl-C ended it; what a shell reports of such a program.
INTERRUPTED = 130

#: The reader of its output closed the pipe, as ``head`` does.
NO_READER = 141

#: TERM ended it.
TERMINATED = 143
