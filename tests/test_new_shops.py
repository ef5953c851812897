"""A new shop in each framework, written from the README alone: its files, commands and environment, nothing else."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from katalys_wsgi.checks import ENDPOINT

from .readme import LOGGING, ROOT, SHOPS, blocks, export, log_line, section, serve_command
from .support import BUYER_AGENT, SECRET, free_port, wait_until

#: How a framework is put into its debug mode, as its own manual says: words behind the command, and variables.
DEBUG: dict[str, tuple[str, dict[str, str], str]] = {
    "Flask": (" --debug", {}, "Flask's DEBUG"),
    "Pyramid": ("", {"PYRAMID_DEBUG_ALL": "1"}, "Pyramid's debug_all"),
    "Bottle": (" --debug", {}, "Bottle's DEBUG"),
    "Django": ("", {}, "Django's DEBUG"),  # as startproject leaves it
    "Plain WSGI": ("", {"PYTEST_CURRENT_TEST": "a test of the shop's"}, "pytest runs a test"),  # there is no debug mode
}

#: What the README says for the settings of the shop itself, wherever they stand.
OWN_COMMANDS = {
    "Flask": "flask --app shop katalys status",
    "Django": "python manage.py katalys status",
    **dict.fromkeys(("Pyramid", "Bottle", "Plain WSGI"), "katalys-wsgi --app shop:app status"),
}


class Machine(NamedTuple):
    """A reader's machine: a folder, the programs that are found, and the variables that are exported."""

    folder: Path
    programs: Path
    environ: dict[str, str]

    def exported(self, **variables: str) -> Machine:
        """The same machine with more variables."""
        return self._replace(environ={**self.environ, **variables})

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the README; its exit code is the caller's business."""
        return subprocess.run(
            self._words(command),
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @contextmanager
    def running(self, command: str, log: str) -> Iterator[Path]:
        """Have a command run, its output in a file, until the block ends; Flask's reloader is more than one process."""
        path = self.folder / log
        with path.open("w") as output:
            process = subprocess.Popen(
                self._words(command),
                cwd=self.folder,
                env=self.environ,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield path
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _words(self, command: str) -> list[str]:
        program, *words = shlex.split(command)
        return [str(self.programs / program), *words]


class Shopper(requests.Session):
    """A browser that keeps cookies and asks no proxy."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.trust_env = False
        self.headers["User-Agent"] = BUYER_AGENT
        self._port = port

    def follow_link(self) -> None:
        """The README's first request."""
        self.get(self._address(0), timeout=10)

    def buy(self) -> str:
        """The README's second request; what the page says."""
        answer = self.post(self._address(1), timeout=10)
        assert answer.status_code == 200
        return answer.text

    def _address(self, number: int) -> str:
        addresses = re.findall(r"http://127\.0\.0\.1:8000[^'\s]*", section("See it"))
        return str(addresses[number]).replace("8000", str(self._port))


class Trap:
    """The only way out of the machine: a proxy that notes who wanted out, and lets nobody through."""

    def __init__(self) -> None:
        self.wanted: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        """Make requests, and with it the relay, go through here; then not even a name is looked up."""
        address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        return {"HTTPS_PROXY": address, "HTTP_PROXY": address, "NO_PROXY": "127.0.0.1"}

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    self.wanted.append(connection.recv(4096).decode("latin-1").partition("\r\n")[0])


@pytest.fixture
def trap() -> Iterator[Trap]:
    """Nothing gets past it."""
    made = Trap()
    yield made
    made.close()


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    """A machine with what runs the tests installed."""
    coverage = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return _machine(tmp_path, Path(sys.executable).parent).exported(PYTHONPATH=path, **coverage)


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[str], Machine]:
    """Makes a machine as the README's "Install" leaves it: a new environment with a checkout and one framework."""

    def make(title: str) -> Machine:
        environment, extra = tmp_path / "venv", SHOPS[title]
        subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
        assert '\n    pip install "/path/to/checkout[flask]"\n' in section("Install")
        checkout = f"{ROOT}[{extra}]" if extra else str(ROOT)
        subprocess.run([environment / "bin" / "pip", "install", "-q", checkout], check=True, timeout=280, cwd=tmp_path)
        folder = tmp_path / "shop"
        folder.mkdir()
        return _machine(folder, environment / "bin")

    return make


def _machine(folder: Path, programs: Path) -> Machine:
    """The variables are those that the README has its reader export, PATH and HOME."""
    environ = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(folder),
        "KATALYS_SITE_ID": export("KATALYS_SITE_ID"),
        "KATALYS_SECRET_KEY": SECRET,
    }
    return Machine(folder, programs, environ)


def _write(machine: Machine, title: str) -> None:
    """Do what the section says: Django's project, then the files, with the two lines that show the log."""
    if title == "Django":
        assert "`django-admin startproject shop .`" in section(title)
        machine.run("django-admin startproject shop .").check_returncode()
    for file, code in blocks(title):
        path = machine.folder / file
        match file:
            case "shop/settings.py":  # "add to the settings" is said of this one
                path.write_text(f"{LOGGING}{path.read_text()}\n{code}")
            case "shop.py":
                path.write_text(f"{LOGGING}\n{code}")
            case _:
                path.write_text(code)


@contextmanager
def _served(machine: Machine, title: str, behind: str = "") -> Iterator[tuple[int, Path]]:
    """Serve the shop by the README's command, at a port that is free; yield the port and the log."""
    port = free_port()
    for path in machine.folder.rglob("*.py"):
        path.write_text(path.read_text().replace('"127.0.0.1", 8000', f'"127.0.0.1", {port}'))
    command = serve_command(title).replace("8000", str(port)) + behind
    with machine.running(command, "shop.log") as log:
        wait_until(lambda: _answers(port), f"the shop's answer ({log.read_text()})", 20)
        yield port, log


def _wait_for_line(line: str, log: Path) -> None:
    wait_until(lambda: line in log.read_text().splitlines(), f"{line!r} in the log", 10)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _katalys(machine: Machine) -> Iterator[str]:
    """The README's sandbox at a free port, which it would otherwise choose itself; its address."""
    assert "\n    katalys-wsgi sandbox\n" in section("A sandbox in place of Katalys")
    port = free_port()
    with machine.running(f"katalys-wsgi sandbox --port {port}", "sandbox.log") as log:
        endpoint = export("KATALYS_ENDPOINT").replace("8640", str(port))
        wait_until(lambda: f"KATALYS_ENDPOINT={endpoint}" in log.read_text(), "the README's KATALYS_ENDPOINT", 20)
        yield f"http://127.0.0.1:{port}"


def _received(katalys: str) -> list[dict[str, Any]]:
    with requests.Session() as session:
        session.trust_env = False
        rows: list[dict[str, Any]] = session.get(f"{katalys}/received.json", timeout=10).json()
    return rows


def _tell_the_first_hour(machine: Machine, title: str) -> None:
    """All that the README lets its reader see, in its order."""
    _write(machine, title)
    with _katalys(machine) as katalys:
        machine = machine.exported(KATALYS_ENDPOINT=f"{katalys}/v2/_tr_offline")
        with _served(machine, title) as (port, log):
            shopper = Shopper(port)
            shopper.follow_link()
            assert shopper.buy() == "Thank you. For Katalys: recorded"
            assert Shopper(port).buy() == "Thank you. For Katalys: no click"
            assert shopper.buy() == "Thank you. For Katalys: duplicate"
            wait_until(lambda: _received(katalys), "the conversion at the sandbox", 20)

            expected = [log_line(event) for event in ("tracker_started", "conversion_recorded", "postback_delivered")]
            for line in expected:
                here = line.replace("http://127.0.0.1:8640", katalys).replace("/home/ann/shop", str(machine.folder))
                _wait_for_line(here, log)

        (received,) = _received(katalys)
        assert "1001" in json.dumps(received)
        assert "5678" in json.dumps(received)
        for command in ("katalys-wsgi status", OWN_COMMANDS[title]):
            assert command in section("See it")
            done = machine.run(command)
            assert done.returncode == 0, done.stderr
            assert re.search(r"delivered +1", done.stdout)
        story = machine.run("katalys-wsgi why 1001")
        assert story.returncode == 0, story.stderr
        assert "Katalys link" in story.stdout


def _tell_of_debug_mode(machine: Machine, title: str, trap: Trap) -> None:
    """The reader has skipped the sandbox: the endpoint is Katalys' own, and the shop is in debug mode."""
    _write(machine, title)
    behind, variables, reason = DEBUG[title]
    guarded = machine.exported(**trap.variables)
    with _served(guarded.exported(**variables), title, behind) as (port, log):
        shopper = Shopper(port)
        shopper.follow_link()
        assert shopper.buy() == "Thank you. For Katalys: recorded"
        line = log_line("delivery_held").replace("Flask's DEBUG", reason)
        _wait_for_line(line, log)
    status = guarded.run("katalys-wsgi status")
    assert (status.returncode, trap.wanted) == (0, [])
    assert re.search(r"pending +1", status.stdout)

    # The trap is one: what may leave, tries to.
    guarded.exported(KATALYS_LIVE="true").run("katalys-wsgi deliver --once")
    host = ENDPOINT.split("/")[2]
    assert [line for line in trap.wanted if not line.startswith(f"CONNECT {host}:443 ")] == []
    assert trap.wanted


@pytest.mark.parametrize("title", ["Flask", "Django"])
def test_a_new_shop_reports_its_first_sale(title: str, here: Machine) -> None:
    """Quickly, in the environment of the tests; the others are asked in process by test_readme.py."""
    _tell_the_first_hour(here, title)


def test_a_new_django_shop_sends_nothing_under_debug(here: Machine, trap: Trap) -> None:
    _tell_of_debug_mode(here, "Django", trap)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("title", SHOPS)
def test_a_new_shop_in_a_fresh_environment(title: str, fresh: Callable[[str], Machine], trap: Trap) -> None:
    """Installed, written, checked, served, sold in, asked, and put into debug mode: by the README alone."""
    machine = fresh(title)

    _tell_the_first_hour(machine, title)
    assert _mypy(machine) == ""
    another = machine._replace(folder=machine.folder / "another")
    another.folder.mkdir()
    _tell_of_debug_mode(another, title, trap)


def _mypy(machine: Machine) -> str:
    """What ``mypy --strict`` says of the shop's files, with the types of what is installed in its environment."""
    untyped = "".join(f"[mypy-{name}.*]\nignore_missing_imports = true\n" for name in ("bottle", "django", "pyramid"))
    (machine.folder / "mypy.ini").write_text(f"[mypy]\n{untyped}")  # frameworks without types of their own
    files = [path for path in (machine.folder / name for name in ("shop.py", "shop/urls.py")) if path.exists()]
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", os.devnull]
    python = machine.programs / "python"
    done = subprocess.run(
        [*command, "--python-executable", str(python), *map(str, files)],
        cwd=machine.folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr
