"""The sandbox's page: a table of what was received, newest first.

Plain HTML without scripts, so that it works wherever a browser is; it is made for each request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["listing"]

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Katalys sandbox</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em }
table { border-collapse: collapse }
th, td { border-bottom: 1px solid #ccc; padding: .4em .8em; text-align: left; vertical-align: top }
</style>
<h1>Katalys sandbox</h1>
"""


def listing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page as HTML; a sentence instead of the table when nothing was received yet.

    :param rows: what :meth:`~katalys_wsgi.sandbox.collector.Received.row` returns for each request, oldest first.
        Every value is escaped: it may come from anyone.
    """
    if not rows:
        return _HEAD + "<p>Nothing received yet.</p>\n"
    head = _line("th", ("Received", "Order", "Type", "Method", "Answered", "Verdict", "Fields"))
    return _HEAD + "<table>\n" + head + "".join(_row(row) for row in reversed(rows)) + "</table>\n"


def _row(row: Mapping[str, Any]) -> str:
    """One request as a row of the table; the fields of its message stand in the last cell, one on each line."""
    fields: Mapping[str, str] = row["fields"]
    return _line(
        "td",
        (
            row["received_at"],
            fields.get("order_id", ""),
            fields.get("type", ""),
            row["method"],
            row["status"] or "no answer",
            row["verdict"] + (" (duplicate)" if row["duplicate"] else ""),
            "\n".join(f"{key}: {value}" for key, value in fields.items()),
        ),
    )


def _line(tag: str, values: Iterable[object]) -> str:
    """A row of cells, ``tag`` being ``th`` or ``td``; a line break stays one."""
    cells = (escape(str(value)).replace("\n", "<br>") for value in values)
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>\n"
