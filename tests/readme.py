"""The README as tests read it: sections, the Python blocks in them, the lines that a shell or a log shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["LOGGING", "README", "ROOT", "SHOPS", "Block", "blocks", "export", "log_line", "section", "serve_command"]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")

#: The sections that hold a shop, and the extra that installs it.
SHOPS = {"Flask": "flask", "Pyramid": "pyramid", "Bottle": "bottle", "Django": "django", "Plain WSGI": ""}


class Block(NamedTuple):
    """A block of Python: the file that its first line names, or an empty string, and what stands in it."""

    file: str
    code: str


def section(title: str) -> str:
    """What stands between a heading and the next one."""
    _, heading, rest = README.partition(f"# {title}\n")
    assert heading, f"the README has no section {title!r}"
    return re.split(r"\n##+ ", rest)[0]


def blocks(title: str) -> list[Block]:
    """The Python blocks of a section."""
    found = re.findall(r"```python\n(.*?)```", section(title), re.DOTALL)
    return [Block(code.partition("\n")[0].removeprefix("# ") if code.startswith("# ") else "", code) for code in found]


def serve_command(title: str) -> str:
    """How a shop is served, as the README says it."""
    (command,) = re.findall(r"Serve it with `([^`]+)`", section(title))
    return str(command)


def export(name: str) -> str:
    """The value that the README has its reader export; a command substitution stays as it is."""
    (value,) = re.findall(rf'^    export {name}="?(.*?)"?$', README, re.MULTILINE)
    return str(value)


def log_line(event: str) -> str:
    """The line of the log that the README shows for an event."""
    (line,) = re.findall(rf"^    (\w+ katalys_wsgi\.{event} .*)$", README, re.MULTILINE)
    return str(line)


#: The two lines that show the log.
LOGGING = blocks("See it")[0].code
