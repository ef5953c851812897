"""The house: a room imports only rooms above it, and a shop loads only what it uses.

The arrows are read from the source of every module. Imports inside functions count, and so do those under
TYPE_CHECKING: an annotation is a dependency too. What Python adds by itself, importing the package around a
module, does not count: it would make a cycle of every package.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import katalys_wsgi

PACKAGE = Path(katalys_wsgi.__file__).parent

#: From top to bottom; rooms in one line do not import each other.
FLOORS: list[tuple[str, ...]] = [
    ("errors",),
    ("events",),
    ("settings",),
    ("process",),
    ("click",),
    ("conversion",),
    ("cookie",),
    ("visitor",),
    ("postback",),
    ("outbox",),
    ("outbox.file",),
    ("outbox.sqlite", "outbox.sqlalchemy"),
    ("upkeep",),
    ("delivery",),
    ("tracker",),
    ("middleware",),
    ("flask", "pyramid", "bottle", "paste", "celery", "prometheus"),
]
RIM = FLOORS[-1]

#: At the bottom of the house; they may use every room, and each other as long as it makes no cycle.
#: ``""`` is the package itself.
DOORS = ("", "cli", "__main__", "sandbox", "testing")

#: Who may import what; everybody else may not, whether at the top or inside a function.
ONLY = {
    "itsdangerous": {"cookie"},
    "webob.cookies": {"cookie"},
    "requests": {"delivery"},
    "urllib3": {"delivery"},
    "sqlite3": {"outbox.file", "outbox.sqlite"},
    "sqlalchemy": {"outbox.sqlalchemy"},
    "flask": {"flask"},
    "pyramid": {"pyramid"},
    "transaction": {"pyramid"},
    "bottle": {"bottle"},
    "celery": {"celery"},
    "prometheus_client": {"prometheus"},
}


def name_of(path: Path) -> str:
    """A module's name without the package's: ``outbox.sqlite``, ``outbox`` for its ``__init__``, and "" for ours."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
NAMES = [pytest.param(name, id=name or "katalys_wsgi") for name in MODULES]


def is_door(name: str) -> bool:
    return name in DOORS or name.partition(".")[0] in DOORS


def floor_of(name: str) -> int:
    """How far down a module is; each room, and the doors together, is one floor."""
    if is_door(name):
        return len(FLOORS)
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def imports_of(name: str) -> Iterator[tuple[str, int]]:
    """Full names of all modules that a module imports anywhere, with their lines."""
    path = MODULES[name]
    own = ["katalys_wsgi", *filter(None, name.split("."))]
    package = own if path.name == "__init__.py" else own[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            yield from ((_target(base, alias.name), node.lineno) for alias in node.names)


def _target(base: str, name: str) -> str:
    """``from base import name`` imports a submodule where there is one, else a thing in ``base``."""
    ours = f"{base}.{name}".removeprefix("katalys_wsgi.")
    return f"{base}.{name}" if ours in MODULES or f"{base}.{name}" in ONLY else base


def rooms_of(name: str) -> dict[str, int]:
    """Our own modules that a module imports, with the last line that does so."""
    return {
        target.removeprefix("katalys_wsgi").removeprefix("."): line
        for target, line in imports_of(name)
        if target.split(".")[0] == "katalys_wsgi"
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_module_has_its_place_in_the_house(name: str) -> None:
    assert is_door(name) or any(name in rooms for rooms in FLOORS), (
        f"give {name} a floor in this test and in the design"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_room_imports_only_rooms_above_it(name: str) -> None:
    """Rim rooms are on one floor, so none imports another; doors are, and may."""
    wrong = {
        f"{MODULES[name].name}:{line} imports {room or 'the package itself'}"
        for room, line in rooms_of(name).items()
        if not (floor_of(room) < floor_of(name) or (is_door(room) and is_door(name)))
    }

    assert wrong == set()


def test_there_is_no_cycle() -> None:
    """Not even a lazy one, inside a function; the doors are looked at too."""
    graph = {name: set(rooms_of(name)) - {name} for name in MODULES}

    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("name", NAMES)
def test_no_import_hides_from_these_tests(name: str) -> None:
    """``import_module`` and ``__import__`` draw arrows that nobody sees."""
    calls = [node.func for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))) if isinstance(node, ast.Call)]
    called = {part.id if isinstance(part, ast.Name) else getattr(part, "attr", "") for part in calls}

    assert called.isdisjoint({"import_module", "__import__", "exec", "eval"})


@pytest.mark.parametrize("name", NAMES)
def test_an_outside_library_is_imported_by_its_one_room(name: str) -> None:
    """Doors are no exception: the demonstration and the command line have no reason to call ``requests``."""
    wrong = {
        f"{MODULES[name].name}:{line} imports {target}"
        for target, line in imports_of(name)
        for library, rooms in ONLY.items()
        if (target == library or target.startswith(library + ".")) and name not in rooms
    }

    assert wrong == set()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_outside_the_standard_library_is_imported(name: str) -> None:
    known = {"katalys_wsgi", "_typeshed", "webob", *sys.stdlib_module_names, *(full.split(".")[0] for full in ONLY)}

    assert {target for target, _ in imports_of(name) if target.split(".")[0] not in known} == set()


def test_webob_is_used_by_cookie_and_the_doors_only() -> None:
    """The middleware speaks plain WSGI: a request object would cost every request of the shop."""
    users = {name for name in MODULES if any(target.split(".")[0] == "webob" for target, _ in imports_of(name))}

    assert {name for name in users if not is_door(name)} == {"cookie"}


OPTIONAL = [
    pytest.param(library, room, id=library)
    for library, rooms in ONLY.items()
    for room in rooms
    if room in {*RIM, "outbox.sqlalchemy"} and room in MODULES and library != "transaction"
]


@pytest.mark.parametrize(("library", "room"), OPTIONAL)
def test_an_optional_library_is_imported_at_the_top_and_unguarded(library: str, room: str) -> None:
    """A missing Flask fails with Flask's own ImportError, where it is asked for.

    Pyramid's ``transaction`` is looked for later: it is there only in shops that use pyramid_tm.
    """
    tree = ast.parse(MODULES[room].read_text("utf-8"))
    top = {node.lineno for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))}
    guarded = {inner.lineno for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)
               if isinstance(inner, (ast.Import, ast.ImportFrom))}  # fmt: skip
    lines = {line for target, line in imports_of(room) if target.split(".")[0] == library}

    assert lines & top
    assert not lines & guarded


# --- what a process loads ---

FRAMEWORKS = {"flask", "werkzeug", "pyramid", "bottle", "celery", "kombu", "prometheus_client"}
HEAVY = {"requests", "urllib3", "sqlite3", "sqlalchemy", *FRAMEWORKS}


def loaded_by(statement: str, *, warnings: str = "error") -> set[str]:
    """What a fresh interpreter has loaded after ``statement``, which has to be silent."""
    script = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # loads SQLite
    done = subprocess.run(
        [sys.executable, "-W", warnings, "-c", script],
        capture_output=True,
        text=True,
        env=environ,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    return set(json.loads(done.stdout))


def test_importing_the_package_is_silent_and_loads_nothing_heavy() -> None:
    """A web process that never delivers need not carry requests; a shop on PostgreSQL need not carry SQLite."""
    loaded = loaded_by("import katalys_wsgi")

    assert "katalys_wsgi.middleware" in loaded
    assert sorted(loaded.intersection(HEAVY)) == []


def test_importing_the_package_loads_its_rooms_only() -> None:
    loaded = loaded_by("import katalys_wsgi")
    ours = {name.removeprefix("katalys_wsgi.") for name in loaded if name.startswith("katalys_wsgi.")}

    assert ours <= {room for rooms in FLOORS for room in rooms} - {"delivery", "outbox.sqlite", *RIM}


def test_a_page_loads_neither_requests_nor_sqlite() -> None:
    """With an outbox of the shop's own, a landing and a browse pull in nothing more."""
    loaded = loaded_by("""
from katalys_wsgi import ClickMiddleware, Tracker
from wsgiref.util import setup_testing_defaults

class Outbox:
    add = history = claim = apply = prune = close = lambda *_: None

tracker = Tracker(site_id="KA-1A2B3C4", secret_key="kf83jf9s0d8fj3kd93jd8s7g6h5j4k3l2", outbox=Outbox())
environ = {"QUERY_STRING": "utm_source=katalys&transaction_id=1"}
setup_testing_defaults(environ)
ClickMiddleware(lambda environ, start_response: start_response("200 OK", []), tracker)(environ, lambda *_: [])
assert tracker.visit(environ).click
""")

    assert sorted(loaded.intersection({"requests", "urllib3", "sqlite3", "sqlalchemy"})) == []


@pytest.mark.parametrize("room", [room for room in RIM if room in MODULES])
def test_an_adapter_loads_its_own_framework_only(room: str) -> None:
    """And no ``requests``. Warnings are the framework's own: Pyramid's of pkg_resources is one."""
    own = {"flask": {"flask", "werkzeug"}, "celery": {"celery", "kombu"}, "prometheus": {"prometheus_client"}}

    loaded = loaded_by(f"import katalys_wsgi.{room}", warnings="ignore")

    assert sorted(loaded.intersection(FRAMEWORKS) - own.get(room, {room})) == []
    assert "katalys_wsgi.delivery" not in loaded


def test_the_reader_of_imports_sees_every_kind() -> None:
    """The tests above prove nothing if it misses one: each kind is found where this package has it."""
    assert "delivery" in rooms_of("tracker")  # inside a function, and under TYPE_CHECKING
    assert "outbox.sqlite" in rooms_of("tracker")  # of a package below
    assert "errors" in rooms_of("outbox.sqlite")  # from two dots up
    assert "outbox" in rooms_of("outbox.sqlite")  # from one dot
    assert "middleware" in rooms_of("")  # of the package itself
    assert "webob.cookies" in dict(imports_of("cookie"))  # inside a with block
    assert "requests.adapters" in dict(imports_of("delivery"))
    assert "" in rooms_of("sandbox.demo")  # the package itself, as two dots
