"""The command line: what each command prints, and with which code it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import requests

from katalys_wsgi import Tracker
from katalys_wsgi.cli import main

from .support import LINK, OLD_SECRET, SECRET, make_conversion, make_environ

COMMANDS = ("demo", "sandbox", "decode")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No KATALYS_ setting of whoever runs the tests; tests that need one set it."""
    for name in list(os.environ):
        if name.startswith("KATALYS_"):
            monkeypatch.delenv(name)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in this process: exit code, standard output, standard error."""

    def run_it(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse's own way out
            code = end.code if isinstance(end.code, int) else 1
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run_it


def start(*arguments: str) -> subprocess.Popen[str]:
    """One command in a process of its own, which Ctrl-C reaches even if the tests are a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "katalys_wsgi", *arguments],
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


class TestHelp:
    def test_it_lists_every_command(self, run):
        code, out, err = run("--help")

        assert (code, err) == (0, "")
        assert all(re.search(rf"^ +{command} ", out, re.MULTILINE) for command in COMMANDS)
        assert "exit codes" in out
        assert "KATALYS_SITE_ID" in out

    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_command_explains_itself(self, run, command):
        code, out, err = run(command, "--help")

        assert (code, err) == (0, "")
        assert out.startswith(f"usage: katalys-wsgi {command}")

    @pytest.mark.parametrize(
        "arguments",
        [
            pytest.param([], id="no command"),
            pytest.param(["no-such-command"], id="unknown command"),
            pytest.param(["demo", "--twice"], id="unknown option"),
            pytest.param(["decode"], id="missing argument"),
            pytest.param(["sandbox", "--port", "eighty"], id="no number"),
        ],
    )
    def test_wrong_use_is_code_2(self, run, arguments):
        code, out, err = run(*arguments)

        assert (code, out) == (2, "")
        assert "usage: katalys-wsgi" in err

    @pytest.mark.parametrize(
        "program",
        [
            pytest.param([sys.executable, "-W", "error", "-m", "katalys_wsgi"], id="python -m"),
            pytest.param([str(Path(sys.executable).parent / "katalys-wsgi")], id="console script"),
        ],
    )
    def test_both_ways_to_start_it(self, program, tmp_path):
        if not Path(program[0]).exists():
            pytest.fail(f"{program[0]} is not installed; pip install -e . makes it")
        ended = subprocess.run([*program, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=50)

        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith("usage: katalys-wsgi")


class TestSandbox:
    def test_it_plays_katalys_until_ctrl_c(self, options, tmp_path):
        """A shop that is told its address delivers to it."""
        with start("sandbox", "--port", "0") as process:
            try:
                first, second = process.stdout.readline(), process.stdout.readline()
                endpoint = first.rpartition("KATALYS_ENDPOINT=")[2].strip()
                listing = re.search(r"http://127\.0\.0\.1:\d+/(?=\s)", second)
                assert listing is not None
                assert endpoint == f"{listing[0]}v2/_tr_offline"

                shop = Tracker(**{**options, "endpoint": endpoint})
                shop.visit(make_environ(LINK)).record(make_conversion())
                assert shop.drain().settled == 1
                shop.close()
                assert "order_id: 1001" in requests.get(listing[0], timeout=5).text

                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 130
                assert process.stderr.read() == ""
            finally:
                process.kill()

    def test_it_can_refuse_messages_for_another_site(self, options):
        with start("sandbox", "--port", "0", "--site-id", "KA-7654321") as process:
            try:
                endpoint = process.stdout.readline().rpartition("KATALYS_ENDPOINT=")[2].strip()
                shop = Tracker(**{**options, "endpoint": endpoint})
                shop.visit(make_environ(LINK)).record(make_conversion())

                assert shop.drain().buried == 1
                shop.close()
            finally:
                process.kill()

    def test_a_port_that_is_taken_is_told_in_one_line(self, run):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            code, out, err = run("sandbox", "--port", port)

        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 1
        assert port in err

    def test_a_port_that_is_none_is_told_in_one_line(self, run):
        code, out, err = run("sandbox", "--port", "70000")

        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 1


class TestDecode:
    @pytest.fixture
    def cookie(self, make_tracker: Callable[..., Tracker]) -> Callable[..., str]:
        """The ``name=value`` of a click that has just happened."""

        def make(secret: str | Sequence[str] = SECRET, query: str = LINK, **changes: Any) -> str:
            set_cookie = make_tracker(secret_key=secret, **changes).set_cookie_for(make_environ(query))
            assert set_cookie is not None
            return set_cookie.partition(";")[0]

        return make

    @pytest.mark.parametrize(
        "given",
        [
            pytest.param(lambda cookie: cookie, id="name=value"),
            pytest.param(lambda cookie: cookie.partition("=")[2], id="value"),
            pytest.param(lambda cookie: '"' + cookie.partition("=")[2] + '"', id="quoted value"),
        ],
    )
    def test_it_shows_the_click(self, run, cookie, monkeypatch, given):
        monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)

        code, out, err = run("decode", given(cookie()))

        assert (code, err) == (0, "")
        shown = dict(line.split(maxsplit=1) for line in out.splitlines())
        assert (shown["transaction_id"], shown["offer_id"], shown["aff_id"]) == ("1234abcd", "1234", "5678")
        assert float(shown["age_in_days"]) == 0

    def test_as_json(self, run, cookie, monkeypatch):
        monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)

        code, out, _ = run("decode", "--json", cookie(query="utm_source=Katalys&offer_id=1234&publisher_id=5678"))

        assert code == 0
        shown = json.loads(out)
        assert (shown["transaction_id"], shown["offer_id"], shown["aff_id"]) == (None, "1234", "5678")
        age = datetime.now(timezone.utc) - datetime.fromisoformat(shown["clicked_at"])
        assert 0 <= age.total_seconds() < 60

    def test_a_click_of_long_ago_is_shown_too(self, run, cookie, monkeypatch):
        """Whoever asks wants to know why it did not count."""
        monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)
        then = datetime(2024, 1, 1, tzinfo=timezone.utc).timestamp()

        code, out, _ = run("decode", "--json", cookie(clock=lambda: then))

        assert code == 0
        assert json.loads(out)["clicked_at"] == "2024-01-01T00:00:00+00:00"
        assert json.loads(out)["age_in_days"] > 365

    def test_any_key_that_is_listed_will_do(self, run, cookie, monkeypatch):
        monkeypatch.setenv("KATALYS_SECRET_KEY", f"{OLD_SECRET} {SECRET}")

        assert run("decode", cookie(OLD_SECRET))[0] == 0

    @pytest.mark.parametrize(
        "forge",
        [
            pytest.param(lambda cookie: cookie[:-1], id="cut short"),
            pytest.param(lambda cookie: cookie.replace("=", "=x", 1), id="altered"),
            pytest.param(lambda cookie: cookie.swapcase(), id="other case"),
        ],
    )
    def test_a_forged_one_is_code_1(self, run, cookie, monkeypatch, forge):
        monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)

        code, out, err = run("decode", forge(cookie()))

        assert (code, out) == (1, "")
        assert err.startswith("No click: ")
        assert "KATALYS_SECRET_KEY" in err

    @pytest.mark.parametrize("text", ["nonsense", "", "katalys_click=", "Grüße", "a.b"])
    def test_what_is_no_cookie_is_code_1(self, run, monkeypatch, text):
        monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)

        code, out, err = run("decode", text)

        assert (code, out) == (1, "")
        assert err.startswith("No click: ")

    def test_one_of_another_key_is_code_1(self, run, cookie, monkeypatch):
        monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)

        assert run("decode", cookie(OLD_SECRET))[0] == 1

    @pytest.mark.parametrize(
        ("key", "said"), [(None, "is missing"), ("short", "at least 32")], ids=["missing", "too short"]
    )
    def test_without_a_usable_key_it_is_code_2(self, run, cookie, monkeypatch, key, said):
        if key:
            monkeypatch.setenv("KATALYS_SECRET_KEY", key)

        code, out, err = run("decode", cookie())

        assert (code, out) == (2, "")
        assert err.startswith("KATALYS_SECRET_KEY ")
        assert said in err
        assert "Traceback" not in err
