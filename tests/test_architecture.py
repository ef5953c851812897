"""The architecture: a module imports only layers below its own, and a shop loads only what it uses.

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

#: From the bottom up; a module imports only layers below its own, and modules of one line do not import each other.
LAYERS: list[tuple[str, ...]] = [
    ("_version", "errors", "process", "javascript"),
    ("events",),
    # what was sold, and how Katalys is told
    ("conversion", "conversion.checks"),
    ("conversion.order",),
    ("conversion.wire", "conversion.postback"),
    # where it waits
    ("outbox.entry",),
    ("outbox.rules", "outbox.place", "outbox.schema"),
    ("outbox.memory", "outbox.identity"),
    ("outbox.recovery",),
    ("outbox.connection",),
    ("outbox.sqlite",),
    ("outbox.sqlalchemy.table", "outbox.sqlalchemy.watchdog", "outbox.sqlalchemy.zope"),
    ("outbox.sqlalchemy.engine",),
    ("outbox.sqlalchemy.connection",),
    ("outbox.sqlalchemy.store",),
    ("outbox.sqlalchemy",),
    ("outbox",),
    ("checks",),
    ("settings",),
    # how it gets there
    ("delivery", "delivery.hold", "delivery.policy", "delivery.redaction"),
    ("delivery.transport", "delivery.breaker", "delivery.workers"),
    ("delivery.sender",),
    ("delivery.relay",),
    ("delivery.background",),
    # who brought the shopper
    ("attribution", "attribution.click", "attribution.visitor"),
    ("attribution.cookie",),
    ("attribution.token", "attribution.arrival"),
    # one shop
    ("visit",),
    ("recorder",),
    ("tracker",),
    ("middleware", "operations"),
    ("flask", "pyramid", "bottle", "paste", "celery", "django.shop"),
    ("django.middleware", "django.checks", "django.templatetags", "django.templatetags.katalys"),
    ("django", "django.apps"),
]
ADAPTERS = ("flask", "pyramid", "bottle", "paste", "celery", "django")

#: Adapters whose framework has a command line of its own hand its words to ours, when they are typed.
HANDS_OVER = {("flask", "cli")}

#: Where Django looks for commands; ours is the command line under another name.
DJANGO_COMMANDS = ("django.management", "django.management.commands", "django.management.commands.katalys")

#: Entry points; they may use every layer, and each other as long as it makes no cycle. ``""`` is the package itself.
ENTRY_POINTS = ("", "cli", "__main__", "sandbox", *DJANGO_COMMANDS)

#: Who may import what; everybody else may not, whether at the top or inside a function.
ONLY = {
    "itsdangerous": {"attribution.cookie"},
    "webob.cookies": {"attribution.cookie"},
    "requests": {"delivery.sender", "delivery.transport"},
    "urllib3": {"delivery.sender", "delivery.transport"},
    "sqlite3": {"outbox.connection", "outbox.identity", "outbox.schema", "outbox.recovery", "outbox.sqlite"},
    "sqlalchemy": {
        "outbox.sqlalchemy.connection", "outbox.sqlalchemy.engine", "outbox.sqlalchemy.store",
        "outbox.sqlalchemy.table", "outbox.sqlalchemy.watchdog", "outbox.sqlalchemy.zope",
    },
    "flask": {"flask"},
    "pyramid": {"pyramid"},
    "transaction": {"pyramid", "outbox.sqlalchemy.zope"},
    "bottle": {"bottle"},
    "celery": {"celery"},
    "click": {"flask"},
    "django": {
        "django.apps", "django.checks", "django.management.commands.katalys", "django.middleware", "django.shop",
        "django.templatetags.katalys",
    },
}  # fmt: skip

#: Two modules that meet in the tracker only: neither imports the other, and conversion knows nothing of clicks.
STRANGERS = [
    ("recorder", "attribution"),
    ("attribution", "recorder"),
    ("conversion", "attribution"),
    ("delivery", "attribution"),
]


def name_of(path: Path) -> str:
    """A module's name without the package's: ``outbox.sqlite``, ``outbox`` for its ``__init__``, and "" for ours."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
NAMES = [pytest.param(name, id=name or "katalys_wsgi") for name in MODULES]


def is_entry_point(name: str) -> bool:
    return name in ENTRY_POINTS or name.partition(".")[0] in ENTRY_POINTS


def is_adapter(name: str) -> bool:
    return name.partition(".")[0] in ADAPTERS


def layer_of(name: str) -> int:
    """How far up a module is; the entry points together are the topmost layer."""
    if is_entry_point(name):
        return len(LAYERS)
    return next(number for number, modules in enumerate(LAYERS) if name in modules)


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


def modules_of(name: str) -> dict[str, int]:
    """Our own modules that a module imports, with the last line that does so."""
    return {
        target.removeprefix("katalys_wsgi").removeprefix("."): line
        for target, line in imports_of(name)
        if target.split(".")[0] == "katalys_wsgi"
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_module_has_its_layer(name: str) -> None:
    assert is_entry_point(name) or any(name in modules for modules in LAYERS), f"give {name} a layer in this test"


def test_every_layer_has_its_modules() -> None:
    assert {name for modules in LAYERS for name in modules} <= set(MODULES)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_imports_only_layers_below_its_own(name: str) -> None:
    """Adapters are side by side, so none imports another; entry points are, too, and may."""
    wrong = {
        f"{MODULES[name].name}:{line} imports {module or 'the package itself'}"
        for module, line in modules_of(name).items()
        if not (layer_of(module) < layer_of(name) or (is_entry_point(module) and is_entry_point(name)))
        and (name, module) not in HANDS_OVER
    }

    assert wrong == set()


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_parts_that_meet_in_the_tracker_only_do_not_import_each_other(one: str, other: str) -> None:
    found = {
        f"{name} imports {module}"
        for name in MODULES
        if name.split(".")[0] == one
        for module in modules_of(name)
        if module.split(".")[0] == other
    }

    assert found == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_module_says_what_it_offers(name: str) -> None:
    """``__all__`` is what the reference shows; each name in it is there."""
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    offered = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "__all__"
    ]

    assert name == "__main__" or len(offered) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_short_enough_to_hold_one_idea(name: str) -> None:
    assert len(MODULES[name].read_text("utf-8").splitlines()) <= 350


def test_there_is_no_cycle() -> None:
    """Not even a lazy one, inside a function; entry points included."""
    graph = {name: set(modules_of(name)) - {name} for name in MODULES}

    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("name", NAMES)
def test_no_import_hides_from_these_tests(name: str) -> None:
    """``import_module`` and ``__import__`` draw arrows that no test sees."""
    calls = [node.func for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))) if isinstance(node, ast.Call)]
    called = {part.id if isinstance(part, ast.Name) else getattr(part, "attr", "") for part in calls}

    assert called.isdisjoint({"import_module", "__import__", "exec", "eval"})


@pytest.mark.parametrize("name", NAMES)
def test_an_outside_library_is_imported_by_its_one_module(name: str) -> None:
    """Entry points included: the demonstration and the command line have no reason to call ``requests``."""
    wrong = {
        f"{MODULES[name].name}:{line} imports {target}"
        for target, line in imports_of(name)
        for library, modules in ONLY.items()
        if (target == library or target.startswith(library + ".")) and name not in modules
    }

    assert wrong == set()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_outside_the_standard_library_is_imported(name: str) -> None:
    known = {
        "katalys_wsgi",
        "_typeshed",
        "typing_extensions",
        "webob",
        *sys.stdlib_module_names,
        *(full.split(".")[0] for full in ONLY),
    }

    assert {target for target, _ in imports_of(name) if target.split(".")[0] not in known} == set()


def test_typing_extensions_is_for_type_checkers_only() -> None:
    """It is no dependency of ours: it is imported under TYPE_CHECKING, or not at all."""
    assert "typing_extensions" not in loaded_by("import katalys_wsgi")


def test_webob_is_used_by_the_cookie_and_by_entry_points_only() -> None:
    """The middleware speaks plain WSGI: a request object would cost every request of the shop."""
    users = {name for name in MODULES if any(target.split(".")[0] == "webob" for target, _ in imports_of(name))}

    assert {name for name in users if not is_entry_point(name)} == {"attribution.cookie"}


OPTIONAL = [
    pytest.param(library, module, id=library)
    for library, modules in ONLY.items()
    for module in modules
    if (is_adapter(module) or module == "outbox.sqlalchemy.store") and library != "transaction"
]


@pytest.mark.parametrize(("library", "module"), OPTIONAL)
def test_an_optional_library_is_imported_at_the_top_and_unguarded(library: str, module: str) -> None:
    """A missing Flask fails with Flask's own ImportError, where it is asked for.

    Pyramid's ``transaction`` is looked for later: it is there only in shops that use pyramid_tm.
    """
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    top = {node.lineno for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))}
    guarded = {inner.lineno for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)
               if isinstance(inner, (ast.Import, ast.ImportFrom))}  # fmt: skip
    lines = {line for target, line in imports_of(module) if target.split(".")[0] == library}

    assert lines & top
    assert not lines & guarded


# --- what a process loads ---

FRAMEWORKS = {"flask", "werkzeug", "django", "pyramid", "bottle", "celery", "kombu"}
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


def test_importing_the_package_loads_what_every_shop_needs_only() -> None:
    loaded = loaded_by("import katalys_wsgi")
    ours = {name.removeprefix("katalys_wsgi.") for name in loaded if name.startswith("katalys_wsgi.")}
    below = {name for modules in LAYERS for name in modules if not is_adapter(name)}

    assert ours <= below
    assert ours.isdisjoint({"delivery.sender", "delivery.relay", "outbox.sqlite", "outbox.sqlalchemy", "operations"})


WITHOUT_POSIX = """
import os, sys
del os.fork, os.register_at_fork
sys.modules["fcntl"] = None  # as on Windows: importing it raises ImportError
import katalys_wsgi
from katalys_wsgi.outbox.memory import MemoryOutbox
options = {"site_id": "KA-1A2B3C4", "secret_key": "kf83jf9s0d8fj3kd93jd8s7g6h5j4k3l2"}
tracker = katalys_wsgi.Tracker(**options, outbox=MemoryOutbox())
assert tracker.visit({"QUERY_STRING": "", "katalys_wsgi.tracker": tracker}).click is None
try:
    katalys_wsgi.Tracker(**options)
except katalys_wsgi.ConfigurationError as error:
    assert "POSIX" in str(error), error
else:
    raise SystemExit("the file outbox was opened")
"""


def test_the_package_works_where_nothing_forks() -> None:
    """On Windows everything but the file outbox does, and that one says so."""
    loaded_by(WITHOUT_POSIX)


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


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_loads_its_own_framework_only(adapter: str) -> None:
    """And no ``requests``. Warnings are the framework's own: Pyramid's of pkg_resources is one."""
    # kombu looks for Django, to serialise its lazy strings.
    own = {"flask": {"flask", "werkzeug"}, "celery": {"celery", "kombu", "django"}}

    loaded = loaded_by(f"import katalys_wsgi.{adapter}", warnings="ignore")

    assert sorted(loaded.intersection(FRAMEWORKS) - own.get(adapter, {adapter})) == []
    assert loaded.isdisjoint({"katalys_wsgi.delivery.sender", "katalys_wsgi.delivery.relay"})


def test_the_reader_of_imports_sees_every_kind() -> None:
    """The tests above prove nothing if it misses one: each kind is found where this package has it."""
    assert "delivery.relay" in modules_of("tracker")  # inside a function, and under TYPE_CHECKING
    assert "outbox.sqlite" in modules_of("outbox")  # inside a function, of a package below
    assert "process" in modules_of("outbox.sqlite")  # from two dots up
    assert "outbox.entry" in modules_of("outbox.sqlite")  # from one dot
    assert "middleware" in modules_of("")  # of the package itself
    assert "webob.cookies" in dict(imports_of("attribution.cookie"))  # inside a with block
    assert "urllib3.connection" in dict(imports_of("delivery.transport"))
    assert "" in modules_of("sandbox.demo")  # the package itself, as two dots
