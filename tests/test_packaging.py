"""What is shipped is what is here: every package, the types, and a root that is a table of contents."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import katalys_wsgi

ROOT = Path(__file__).parent.parent
PACKAGE = Path(katalys_wsgi.__file__).parent


def tree() -> ast.Module:
    return ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))


def setup_cfg() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg", "utf-8")
    return parsed


def test_the_root_is_a_sorted_table_of_contents() -> None:
    assert katalys_wsgi.__all__ == sorted(katalys_wsgi.__all__)
    assert len(set(katalys_wsgi.__all__)) == len(katalys_wsgi.__all__)


def test_the_root_re_exports_what_all_names_and_does_nothing_else() -> None:
    docstring, *statements = tree().body
    imports = [node for node in statements if isinstance(node, ast.ImportFrom)]

    assert isinstance(docstring, ast.Expr)
    assert len(statements) == len(imports) + 1
    assert sorted(alias.name for node in imports for alias in node.names) == katalys_wsgi.__all__
    assert all(node.level == 1 and not alias.asname for node in imports for alias in node.names)


@pytest.mark.parametrize("name", [name for name in katalys_wsgi.__all__ if name != "__version__"])
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(katalys_wsgi, name)

    assert isinstance(value, type)
    assert value.__doc__


def test_star_import_brings_no_modules() -> None:
    namespace: dict[str, object] = {}

    exec("from katalys_wsgi import *", namespace)  # noqa: S102 - the statement is the test

    assert [name for name, value in namespace.items() if isinstance(value, types.ModuleType)] == []
    assert set(katalys_wsgi.__all__) <= set(namespace)


def test_importing_it_is_silent() -> None:
    """WebOb 1.8 imports cgi, deprecated on 3.11 and 3.12; that is not our users' business."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import katalys_wsgi"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_package_is_shipped() -> None:
    """A package that is missing there works in the checkout and fails in the shop."""
    listed = setup_cfg()["options"]["packages"].split()
    there = [".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")]

    assert sorted(listed) == sorted(there)


def test_the_types_are_shipped() -> None:
    """A package that says "Typing :: Typed" and ships no py.typed is untyped."""
    assert (PACKAGE / "py.typed").is_file()
    assert "py.typed" in setup_cfg()["options.package_data"]["katalys_wsgi"].split()
    assert "Typing :: Typed" in (ROOT / "pyproject.toml").read_text("utf-8")


def test_every_file_that_is_no_module_is_shipped() -> None:
    shipped = set(setup_cfg()["options.package_data"]["katalys_wsgi"].split())
    others = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }

    assert others <= shipped


def test_the_version_stands_in_one_place() -> None:
    """Packaging and the User-Agent read it there; an installed copy says the same."""
    from katalys_wsgi.delivery.sender import USER_AGENT  # loads requests

    project = (ROOT / "pyproject.toml").read_text("utf-8")

    assert re.findall(r"^version = (.+)$", project, re.MULTILINE) == ['{ attr = "katalys_wsgi._version.__version__" }']
    assert importlib.metadata.version("katalys-wsgi") == katalys_wsgi.__version__
    assert f"katalys-wsgi/{katalys_wsgi.__version__}" == USER_AGENT


def test_what_is_shipped_and_its_tests_point_to_no_text_that_is_not_here() -> None:
    """Somebody who has the sdist has everything it speaks of."""
    elsewhere = ("design" + ".md", "traps" + ".md", "style" + ".md", "../" + "shared")
    files = [path for folder in ("katalys_wsgi", "tests", "examples", "docs") for path in (ROOT / folder).rglob("*")]
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*files, *ROOT.glob("*.md"), ROOT / "pyproject.toml"]
        if path.suffix in (".py", ".md", ".toml", ".html", ".js", ".css")
        for name in elsewhere
        if name in path.read_text("utf-8")
    }

    assert found == set()


def test_every_link_within_the_repository_leads_somewhere() -> None:
    broken = {
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#:\s]+)[^)\s]*\)", page.read_text("utf-8"))
        if not (page.parent / target).exists()
    }

    assert broken == set()
