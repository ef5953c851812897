"""Sphinx configuration."""

import logging
from typing import Any

from katalys_wsgi import __version__
from katalys_wsgi.events import EVENTS

project = "katalys_wsgi"
author = "The katalys_wsgi developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "katalys_wsgi"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
# A module's members are those of its __all__; tests/test_docs.py compares the two.
autodoc_default_options = {"members": True, "show-inheritance": True}
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
suppress_warnings = ["ref.python"]  # Tracker is both katalys_wsgi.Tracker and katalys_wsgi.tracker.Tracker


def _events_table() -> str:
    rows = ["| event | level | fields | what happened | what to do |", "|---|---|---|---|---|"]
    for name, event in EVENTS.items():
        fields = ", ".join(event.fields)
        rows.append(f"| `{name}` | {logging.getLevelName(event.level)} | {fields} | {event.meaning} | {event.advice} |")
    return "\n".join(rows)


def _fill_in(_app: Any, docname: str, source: list[str]) -> None:
    """Put the catalogue of events into the page that asks for it."""
    if docname == "events":
        source[0] = source[0].replace("EVENTS_TABLE", _events_table())


def setup(app: Any) -> None:
    """Register the above with Sphinx."""
    app.connect("source-read", _fill_in)
