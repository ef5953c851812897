"""The docs: every module has its place in the reference, which shows exactly what the module offers."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

import katalys_wsgi
from katalys_wsgi.events import EVENTS

ROOT = Path(__file__).parent.parent
PACKAGE = Path(katalys_wsgi.__file__).parent
REFERENCE = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))

#: Modules that offer nothing to import: what they hold stands elsewhere in the reference.
WITHOUT_PAGE = {
    "katalys_wsgi.__main__",
    "katalys_wsgi._version",
    "katalys_wsgi.attribution",
    "katalys_wsgi.conversion",
    "katalys_wsgi.delivery",
    "katalys_wsgi.django.management",
    "katalys_wsgi.django.management.commands",
    "katalys_wsgi.django.templatetags",
}


def modules() -> set[str]:
    names = set()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_every_module_is_in_the_reference_once() -> None:
    listed = re.findall(r"automodule:: (\S+)", REFERENCE)

    assert sorted(listed) == sorted(modules() - WITHOUT_PAGE)


def test_a_module_without_a_page_offers_nothing_of_its_own() -> None:
    assert {name for name in WITHOUT_PAGE if getattr(importlib.import_module(name), "__all__", [])} <= {
        "katalys_wsgi._version"
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_reference_shows_exactly_what_each_module_offers(tmp_path: Path, missing: Callable[[str], None]) -> None:
    """Built as readers get it; the inventory that Sphinx writes lists every object that a page describes."""
    if importlib.util.find_spec("sphinx") is None:
        missing("Sphinx is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    subprocess.run(command, check=True, timeout=280, cwd=ROOT)

    shown = _objects((tmp_path / "objects.inv").read_bytes())
    for name in modules() - WITHOUT_PAGE:
        offered = {f"{name}.{each}" for each in importlib.import_module(name).__all__}
        described = {each for each in shown if each.rpartition(".")[0] == name and each not in modules()}
        assert described == offered - {"katalys_wsgi.__version__"}, name
    page = (tmp_path / "events.html").read_text("utf-8")
    assert [name for name in EVENTS if name not in page] == []


def _objects(inventory: bytes) -> set[str]:
    """The full names of classes, functions and data in a Sphinx inventory (four text lines, then zlib)."""
    body = zlib.decompress(inventory.split(b"\n", 4)[4]).decode()
    kinds = ("py:class", "py:function", "py:data", "py:exception")
    return {line.split(" ")[0] for line in body.splitlines() if line.split(" ")[1] in kinds}
