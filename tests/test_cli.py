"""The command line and its commands: what each one prints, and with which code it ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import pytest
import requests

import katalys_wsgi
from katalys_wsgi import OutboxUnavailable, Tracker
from katalys_wsgi.cli import command_names, main
from katalys_wsgi.cli.shop import place_of
from katalys_wsgi.operations import archive
from katalys_wsgi.outbox import State
from katalys_wsgi.outbox.memory import MemoryOutbox
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox

from .support import (
    BUYER_IP,
    LINK,
    OLD_SECRET,
    SECRET,
    SITE_ID,
    Clock,
    free_port,
    make_conversion,
    make_environ,
    make_postback,
    rows,
)

COMMANDS = (
    "demo", "sandbox", "decode", "deliver", "status", "list", "why", "retry", "drop", "forget", "prune", "recover",
)  # fmt: skip

#: The commands that look into an outbox and neither make nor repair one.
READERS = [
    pytest.param(("status",), id="status"),
    pytest.param(("list",), id="list"),
    pytest.param(("why", "1001"), id="why"),
]
NO_MAKERS = [
    *READERS,
    pytest.param(("retry", "1001"), id="retry"),
    pytest.param(("retry", "--all-dead"), id="retry all"),
    pytest.param(("drop", "1001", "--yes"), id="drop"),
    pytest.param(("forget", "1001"), id="forget"),
    pytest.param(("forget", "--email", "ann@example.com"), id="forget address"),
    pytest.param(("prune",), id="prune"),
    pytest.param(("recover",), id="recover"),
]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No KATALYS_ setting of whoever runs the tests; tests that need one set it."""
    for name in [name for name in os.environ if name.startswith("KATALYS_")]:
        monkeypatch.delenv(name)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in this process: exit code, standard output, standard error."""

    def run_it(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse's own way out
            code = end.code if isinstance(end.code, int) else 1
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run_it


@pytest.fixture
def environment(options: dict[str, Any]) -> dict[str, str]:
    """The settings of the tracker as environment variables."""
    return {f"KATALYS_{name.upper()}": str(value) for name, value in options.items()}


@pytest.fixture
def operate(run: Run, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command with the settings of the tracker in the environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return run


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], IO[str], IO[str]]]:
    """One command in a process of its own, with its standard output and error; Ctrl-C reaches it.

    Even if the tests are a background job, where shells have children ignore Ctrl-C.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "katalys_wsgi", *arguments],
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process, process.stdout, process.stderr
        finally:
            process.kill()


def buy(tracker: Tracker, order_id: str = "1001", **changes: Any) -> None:
    tracker.visit(make_environ(LINK)).record(make_conversion(order_id, **changes))


# --- help and wrong use --------------------------------------------------------------------------------------


def test_the_commands() -> None:
    assert command_names() == COMMANDS


def test_help_lists_every_command(run: Run) -> None:
    code, out, err = run("--help")

    assert (code, err) == (0, "")
    assert all(re.search(rf"^ +{command} ", out, re.MULTILINE) for command in COMMANDS)
    assert "exit codes" in out
    assert "KATALYS_SITE_ID" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(run: Run, command: str) -> None:
    code, out, err = run(command, "--help")

    assert (code, err) == (0, "")
    assert out.startswith(f"usage: katalys-wsgi {command}")
    assert "exit codes" in out


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no command"),
        pytest.param(["no-such-command"], id="unknown command"),
        pytest.param(["demo", "--twice"], id="unknown option"),
        pytest.param(["decode"], id="missing argument"),
        pytest.param(["sandbox", "--port", "eighty"], id="not a number"),
        pytest.param(["sandbox", "--port", "70000"], id="not a port"),
        pytest.param(["demo", "--port", "-1"], id="negative port"),
        pytest.param(["list", "--state", "lost"], id="unknown state"),
        pytest.param(["list", "--limit", "0"], id="no entries"),
        pytest.param(["list", "--limit", "-5"], id="negative limit"),
        pytest.param(["list", "--since", "yesterday"], id="not a time"),
        pytest.param(["list", "--for", "csv"], id="abbreviated option"),
        pytest.param(["status", "--max-age", "-1"], id="negative age"),
        pytest.param(["status", "--max-age", "nan"], id="age that is not a number"),
        pytest.param(["prune", "--older-than", "-1"], id="negative days"),
        pytest.param(["prune", "--older-than", "1e9"], id="absurd days"),
        pytest.param(["forget"], id="neither order nor address"),
        pytest.param(["drop"], id="nothing to drop"),
        pytest.param(["retry", "1001", "--all-dead"], id="order and all"),
        pytest.param(["retry", "--all-dead", "--reason", "HTTP"], id="all and some"),
        pytest.param(["retry", "1001", "--set", "email_address"], id="correction without value"),
        pytest.param(["retry", "1001", "--set", "vid=1", "--set", "vid=2"], id="correction twice"),
        pytest.param(["retry", "--all-dead", "--set", "vid=1"], id="correction of all"),
        pytest.param(["retry"], id="neither order nor all"),
        pytest.param(["forget", "1001", "--email", "ann@example.com"], id="order and address"),
    ],
)
def test_wrong_use_is_code_2(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert "usage: katalys-wsgi" in err


@pytest.mark.parametrize(
    ("arguments", "meant"), [(["stauts"], "status"), (["list", "--state", "deliverd"], "delivered"), (["xyz"], None)]
)
def test_a_mistyped_command_or_choice_gets_the_nearest_one(run: Run, arguments: list[str], meant: str | None) -> None:
    code, _, err = run(*arguments)

    assert code == 2
    assert err.endswith(f"; did you mean {meant}?\n" if meant else ")\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_the_commands_own_options_first_and_says_what_settings_do(run: Run, command: str) -> None:
    """Not which variable an option stands in place of."""
    out = run(command, "--help")[1]
    own, _, settings = out.partition("\nwhere the settings come from:\n")

    assert "options:" in own
    assert "in place of" not in out
    assert bool(settings) is (command not in ("demo", "sandbox"))
    assert re.search(r"\n\nexit codes: ", out)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param([sys.executable, "-W", "error", "-m", "katalys_wsgi"], id="python -m"),
        pytest.param([str(Path(sys.executable).parent / "katalys-wsgi")], id="console script"),
    ],
)
def test_both_ways_to_start_it(program: list[str], tmp_path: Path) -> None:
    assert Path(program[0]).exists(), f"{program[0]} is not installed; pip install -e . makes it"
    ended = subprocess.run([*program, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=50)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: katalys-wsgi")


def test_a_setting_may_be_an_option(tracker: Tracker, operate: Run) -> None:
    buy(tracker)

    assert operate("deliver", "--once", "--endpoint", "http://127.0.0.1:9/")[0] == 1


@pytest.mark.parametrize("setting", ["secret-key", "consent"])
def test_what_a_command_line_must_not_hold_is_no_option(run: Run, setting: str) -> None:
    """Every user of the machine can read a command line; and a function cannot be written there."""
    code, _, err = run("status", f"--{setting}", "x")

    assert code == 2
    assert "unrecognized arguments" in err


def test_a_wrong_setting_is_reported_in_one_line(operate: Run) -> None:
    assert operate("deliver", "--wire", "smoke") == (2, "", "--wire is 'smoke'; choose json or form or get.\n")


def test_an_outbox_that_cannot_be_used_is_reported_in_one_line(tmp_path: Path, operate: Run) -> None:
    (tmp_path / "folder.db").mkdir()
    code, out, err = operate("status", "--outbox", f"{tmp_path}/folder.db")

    assert (code, out) == (1, "")
    place, problem = err.splitlines()
    assert f"{tmp_path}/folder.db" in place
    assert f"{tmp_path}/folder.db" in problem


@pytest.mark.parametrize("arguments", [("status",), ("list",), ("retry", "--all-dead"), ("forget", "1001")])
def test_an_outbox_that_cannot_answer_is_code_2(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    """A shop's own outbox may have no more than delivery needs."""

    class ShopOutbox:
        add = history = claim = apply = prune = close = lambda *_args, **_kwargs: None

    code = main(arguments, tracker=Tracker(**{**options, "outbox": ShopOutbox()}))

    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.endswith("give it the methods of katalys_wsgi.outbox.Archive.\n")


# --- where the settings come from ----------------------------------------------------------------------------


@pytest.fixture
def ini(options: dict[str, Any], tmp_path: Path) -> Path:
    """An ini file with the settings of the tracker."""
    path = tmp_path / "shop.ini"
    lines = "".join(f"katalys.{name} = {value}\n" for name, value in options.items())
    path.write_text(f"[app:main]\n{lines}\n[filter:affiliates]\n{lines.replace('katalys.', '')}")
    return path


@pytest.fixture
def app(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An application of the current directory with the settings of the tracker, as ``--app`` names it."""
    code = f"from katalys_wsgi import ClickMiddleware, Tracker\napp = ClickMiddleware(print, Tracker(**{options!r}))\n"
    (tmp_path / "shop_of_test_cli.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "shop_of_test_cli:app"
    sys.modules.pop("shop_of_test_cli", None)


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("source", ["app", "ini", "ini section"])
def test_the_shop_may_be_named_before_or_behind_the_command(
    tracker: Tracker, run: Run, ini: Path, app: str, place: str, source: str
) -> None:
    buy(tracker)
    given = {"app": ("--app", app), "ini": ("--ini", ini), "ini section": ("--ini", f"{ini}#affiliates")}[source]

    code, out, err = run(*given, "deliver", "--once") if place == "before" else run("deliver", "--once", *given)

    assert (code, out) == (0, "1 delivered, 0 postponed, 0 dead\n")
    assert err.startswith(f"outbox: {ini.parent}/outbox.db  endpoint: http://127.0.0.1:")


def test_an_option_takes_precedence_over_the_shop(tracker: Tracker, run: Run, ini: Path, app: str) -> None:
    buy(tracker)

    for given in (("--app", app), ("--ini", str(ini))):
        assert "endpoint: http://127.0.0.1:9/\n" in run("status", *given, "--endpoint", "http://127.0.0.1:9/")[2]


def test_what_holds_the_shop_holds_a_command_with_other_options(
    make_tracker: Callable[..., Tracker], capsys: pytest.CaptureFixture[str], app: str, run: Run
) -> None:
    """Whatever option is given, ``--live true`` aside: a trial must not reach Katalys by accident."""
    shop = make_tracker(endpoint="https://katalys.example/")
    shop.hold_while(lambda: "Flask's TESTING")
    buy(shop)

    assert main(["status"], tracker=shop) == 0
    assert "Flask's TESTING" in capsys.readouterr().out


def test_an_application_that_is_held_holds_a_command_with_other_options(
    tracker: Tracker, run: Run, options: dict[str, Any], app: str, tmp_path: Path
) -> None:
    code = (tmp_path / "shop_of_test_cli.py").read_text().replace(options["endpoint"], "https://katalys.example/")
    (tmp_path / "shop_of_test_cli.py").write_text(f"{code}app.tracker.hold_while(lambda: 'a trial')\n")
    buy(tracker)

    assert "held       yes, nothing leaves this machine: a trial." in run("status", "--app", app)[1]
    other = run("status", "--app", app, "--endpoint", "https://other.example/")
    assert "held       yes, nothing leaves this machine: a trial." in other[1]
    assert "held       no\n" in run("status", "--app", app, "--live", "true")[1]


def test_pyramids_debug_all_holds_what_its_ini_file_delivers(tracker: Tracker, run: Run, ini: Path) -> None:
    buy(tracker)
    lines = ini.read_text().replace("[app:main]", "[app:main]\npyramid.debug_all = true")
    ini.write_text(re.sub("endpoint = .*", "endpoint = https://katalys.example/", lines))

    assert "nothing leaves this machine: Pyramid's debug_all." in run("status", "--ini", ini)[1]


def test_the_environment_stands_behind_an_ini_file(
    tracker: Tracker, operate: Run, options: dict[str, Any], tmp_path: Path
) -> None:
    buy(tracker)
    (tmp_path / "little.ini").write_text("[app:main]\nkatalys.wire = form\n")

    assert operate("deliver", "--once", "--ini", f"{tmp_path}/little.ini")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("--app", "no_such_shop:app"), "there is no module 'no_such_shop' in ", id="no module"),
        pytest.param(("--app", "shop"), "--app takes MODULE:ATTRIBUTE, such as shop:app", id="no attribute"),
        pytest.param(("--ini", "no-such.ini"), "no-such.ini cannot be read: No such file", id="no file"),
        pytest.param(("--app", "shop:app", "--ini", "shop.ini"), "leave one out", id="both"),
    ],
)
@pytest.mark.parametrize("command", [("status",), ("deliver", "--once"), ("decode", "x")])
def test_a_shop_that_is_not_found_is_code_2(
    run: Run, command: tuple[str, ...], arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = run(*command, *arguments)

    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_without_any_shop_deliver_says_how_to_name_one(run: Run) -> None:
    code, out, err = run("deliver", "--once")

    assert (code, out) == (2, "")
    assert err == (
        "No shop is set up here. Name yours with --app MODULE:ATTRIBUTE or --ini FILE#SECTION, "
        "or set KATALYS_SITE_ID and KATALYS_SECRET_KEY.\n"
    )


def test_a_setting_that_is_missing_is_asked_for_where_the_others_stand(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "little.ini").write_text("[app:main]\nkatalys.site_id = KA-1A2B3C4\n")

    assert run("deliver", "--ini", f"{tmp_path}/little.ini")[2].startswith("katalys.secret_key is missing; ")
    monkeypatch.setenv("KATALYS_SITE_ID", "KA-1A2B3C4")
    assert run("deliver")[2].startswith("KATALYS_SECRET_KEY is missing; ")


def test_a_misspelt_setting_of_the_environment_is_code_2(operate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KATALYS_ENDPONT", "https://katalys.example/")

    code, _, err = operate("status")
    assert (code, err) == (2, "KATALYS_ENDPONT is an unknown setting; did you mean KATALYS_ENDPOINT?\n")


@pytest.mark.parametrize("arguments", NO_MAKERS)
def test_only_delivery_needs_a_site_and_a_key(
    tracker: Tracker, run: Run, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Nor does a key that cannot work keep an operator from looking."""
    buy(tracker)
    monkeypatch.setenv("KATALYS_SECRET_KEY", "short")

    if "--email" in arguments:  # here the key is used, if there is one
        monkeypatch.delenv("KATALYS_SECRET_KEY")
    code, _, err = run(*arguments, "--outbox", options["outbox"])

    assert code != 2
    assert "KATALYS_" not in err


@pytest.mark.parametrize("arguments", NO_MAKERS)
def test_no_outbox_is_code_2_and_none_is_made(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Each full path is printed: a wrong directory is the likeliest reason."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)

    place, problem = [line for line in err.splitlines() if "hash_email" not in line]
    assert (code, out) == (2, "")
    assert place.startswith(f"outbox: {tmp_path}/katalys-outbox.db  endpoint: https://")
    assert problem.startswith(f"katalys-wsgi: no outbox at {tmp_path}/katalys-outbox.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", NO_MAKERS)
def test_a_file_that_is_not_ours_is_code_1_and_left_alone(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    code, out, err = run(*arguments, "--outbox", tmp_path / "passwd")

    assert (code, out) == (1, "")
    assert f"{tmp_path}/passwd is not an outbox of katalys_wsgi" in err
    assert [path.name for path in tmp_path.iterdir()] == ["passwd"]
    assert (tmp_path / "passwd").read_text() == "root:x:0:0:root:/root:/bin/bash\n"


@pytest.mark.parametrize("arguments", [("status",), ("list",), ("why", "1001"), ("deliver", "--once")])
def test_json_is_alone_on_standard_output(tracker: Tracker, operate: Run, arguments: tuple[str, ...]) -> None:
    buy(tracker)
    _, out, err = operate(*arguments, "--json")

    json.loads(out)
    assert err.startswith("outbox: ")


def test_the_address_of_a_database_is_shown_without_its_password() -> None:
    outbox = SQLAlchemyOutbox("postgresql+psycopg://shop:s3cret@localhost/shop")

    assert place_of(outbox) == "postgresql+psycopg://shop:***@localhost/shop"


def test_a_shops_own_outbox_is_shown_as_it_calls_itself() -> None:
    assert place_of(MemoryOutbox()) == "MemoryOutbox()"


def test_a_calling_program_gives_its_tracker_and_its_name(tracker: Tracker, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``flask katalys`` does; there is no choice of a shop then, and advice names the program."""
    buy(tracker, email_address="")

    assert main(["status"], tracker=tracker, prog="flask katalys") == 1
    assert "see: flask katalys list --state dead" in capsys.readouterr().out
    assert main(["why", "1001"], tracker=tracker, prog="flask katalys") == 0
    assert "Correct it with: flask katalys retry 1001 --set FIELD=VALUE" in capsys.readouterr().out
    for arguments in (["--help"], ["status", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments, tracker=tracker, prog="flask katalys")
        assert "--app" not in capsys.readouterr().out


# --- the end of a command ------------------------------------------------------------------------------------


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"katalys-wsgi {katalys_wsgi.__version__}\n", "")


@pytest.mark.parametrize("command", ["status --max-age 0", "list", "list --format csv", "why 1001", "status --help"])
def test_a_reader_that_had_enough_ends_it_quietly(tracker: Tracker, environment: dict[str, str], command: str) -> None:
    """``status | head -1``: no traceback, and the code that a shell reports of SIGPIPE."""
    buy(tracker)
    with started(*command.split(), **environment) as (process, out, err):
        out.close()

        assert process.wait(20) == 141
        assert "Traceback" not in err.read()


def test_ctrl_c_before_a_command_is_done_is_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tracker: Tracker
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("katalys_wsgi.operations.status", interrupted)
    tracker.drain()

    assert main(["status"], tracker=tracker) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_outbox_that_cannot_be_read_is_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tracker: Tracker
) -> None:
    def broken(_: object) -> None:
        raise OutboxUnavailable("The disk is on fire")

    monkeypatch.setattr("katalys_wsgi.operations.status", broken)

    assert main(["status"], tracker=tracker) == 1
    assert capsys.readouterr().err.endswith("\nThe disk is on fire\n")


# --- demo and sandbox ----------------------------------------------------------------------------------------


def test_the_demo_ends_by_itself_when_asked(run: Run) -> None:
    code, out, err = run("demo", "--once")

    assert (code, err) == (0, "")
    assert "order_id" in out


def test_the_sandbox_plays_katalys_until_ctrl_c(make_tracker: Callable[..., Tracker]) -> None:
    """A shop whose endpoint it is delivers to it."""
    with started("sandbox", "--port", "0") as (process, out, err):
        endpoint = out.readline().rpartition("KATALYS_ENDPOINT=")[2].strip()
        listing = re.search(r"http://127\.0\.0\.1:\d+/(?=\s)", out.readline())
        assert listing is not None
        assert endpoint == f"{listing[0]}v2/_tr_offline"

        shop = make_tracker(endpoint=endpoint)
        buy(shop)
        assert shop.drain().settled == 1
        assert "order_id: 1001" in requests.get(listing[0], timeout=5).text

        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert err.read() == ""


@pytest.mark.parametrize("command", [("demo",), ("sandbox", "--port", "0")])
def test_term_leaves_no_folder_behind(command: tuple[str, ...], tmp_path: Path) -> None:
    """As Ctrl-C does: a container is stopped by TERM."""
    with started(*command, TMPDIR=str(tmp_path)) as (process, out, err):
        while "Ctrl-C ends" not in out.readline():
            pass
        process.send_signal(signal.SIGTERM)

        assert process.wait(20) == 143
        assert err.read() == ""
    assert list(tmp_path.iterdir()) == []


def test_the_demo_takes_a_port(run: Run) -> None:
    port = free_port()
    code, out, _ = run("demo", "--once", "--port", port)

    assert (code, "Arrived intact." in out) == (0, True)


def test_a_port_that_the_demo_cannot_have_is_reported_in_one_line(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run("demo", "--port", taken.getsockname()[1])

    assert code == 1
    assert re.fullmatch(r"Port \d+ cannot be used: .*\. Choose another one with --port\.\n", err)


def test_the_sandbox_can_refuse_messages_for_another_site(make_tracker: Callable[..., Tracker]) -> None:
    with started("sandbox", "--port", "0", "--site-id", "KA-7654321") as (_, out, _):
        shop = make_tracker(endpoint=out.readline().rpartition("KATALYS_ENDPOINT=")[2].strip())
        buy(shop)

        assert shop.drain().buried == 1


def test_a_port_that_is_taken_is_reported_in_one_line(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, err = run("sandbox", "--port", port)

    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert port in err


def test_a_port_that_cannot_be_is_refused_in_a_sentence(run: Run) -> None:
    code, out, err = run("sandbox", "--port", "70000")

    assert (code, out) == (2, "")
    assert err.endswith("argument --port: '70000' makes no sense here; give a whole number from 0 to 65535\n")


# --- decode --------------------------------------------------------------------------------------------------

MakeCookie = Callable[..., str]


@pytest.fixture
def make_cookie(make_tracker: Callable[..., Tracker]) -> MakeCookie:
    """Makes the ``name=value`` of a click that has just happened."""

    def make(secret: str | Sequence[str] = SECRET, query: str = LINK, **changes: Any) -> str:
        set_cookie = make_tracker(secret_key=secret, **changes).set_cookie_for(make_environ(query))
        assert set_cookie is not None
        return set_cookie.partition(";")[0]

    return make


@pytest.fixture
def decode(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``decode`` with the secret key in the environment."""
    monkeypatch.setenv("KATALYS_SITE_ID", SITE_ID)
    monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)
    return lambda *arguments: run("decode", *arguments)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(lambda cookie: cookie, id="name=value"),
        pytest.param(lambda cookie: cookie.partition("=")[2], id="value"),
        pytest.param(lambda cookie: '"' + cookie.partition("=")[2] + '"', id="quoted value"),
    ],
)
def test_decode_shows_the_click(decode: Run, make_cookie: MakeCookie, given: Callable[[str], str]) -> None:
    code, out, err = decode(given(make_cookie()))

    assert (code, err) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (shown["transaction_id"], shown["offer_id"], shown["aff_id"]) == ("1234abcd", "1234", "5678")
    assert float(shown["age_in_days"]) == 0


def test_decode_as_json(decode: Run, make_cookie: MakeCookie) -> None:
    code, out, _ = decode("--json", make_cookie(query="utm_source=Katalys&offer_id=1234&publisher_id=5678"))

    assert code == 0
    shown = json.loads(out)
    assert (shown["transaction_id"], shown["offer_id"], shown["aff_id"]) == (None, "1234", "5678")
    age = datetime.now(timezone.utc) - datetime.fromisoformat(shown["clicked_at"])
    assert 0 <= age.total_seconds() < 60


def test_a_click_of_long_ago_is_shown_too(decode: Run, make_cookie: MakeCookie) -> None:
    """Whoever asks wants to know why it did not count."""
    then = datetime(2024, 1, 1, tzinfo=timezone.utc).timestamp()

    code, out, _ = decode("--json", make_cookie(clock=lambda: then))

    assert code == 0
    assert json.loads(out)["clicked_at"] == "2024-01-01T00:00:00+00:00"
    assert json.loads(out)["age_in_days"] > 365


def test_any_key_that_is_listed_will_do(decode: Run, make_cookie: MakeCookie, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KATALYS_SECRET_KEY", f"{OLD_SECRET} {SECRET}")

    assert decode(make_cookie(OLD_SECRET))[0] == 0


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda cookie: cookie[:-1], id="cut short"),
        pytest.param(lambda cookie: cookie.replace("=", "=x", 1), id="altered"),
        pytest.param(lambda cookie: cookie.swapcase(), id="other case"),
    ],
)
def test_a_forged_cookie_is_code_1(decode: Run, make_cookie: MakeCookie, forge: Callable[[str], str]) -> None:
    code, out, err = decode(forge(make_cookie()))

    assert (code, out) == (1, "")
    assert err.startswith("No click: ")
    assert "KATALYS_SECRET_KEY" in err


@pytest.mark.parametrize("given", ["nonsense", "", "katalys_click=", "Grüße", "a.b"])
def test_what_is_not_a_cookie_is_code_1(decode: Run, given: str) -> None:
    code, out, err = decode(given)

    assert (code, out) == (1, "")
    assert err.startswith("No click: ")


def test_a_cookie_of_another_key_is_code_1(decode: Run, make_cookie: MakeCookie) -> None:
    assert decode(make_cookie(OLD_SECRET))[0] == 1


def test_a_cookie_of_another_site_is_code_1(decode: Run, make_cookie: MakeCookie) -> None:
    code, _, err = decode(make_cookie(site_id="KA-7654321"))

    assert code == 1
    assert "KATALYS_SITE_ID" in err


def test_without_a_site_decode_checks_no_signature(
    run: Run, make_cookie: MakeCookie, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KATALYS_SECRET_KEY", SECRET)

    code, out, err = run("decode", "--json", make_cookie())

    assert (code, json.loads(out)["signature"]) == (0, "not checked")
    assert "no site_id is set (KATALYS_SITE_ID" in err


def test_with_a_key_that_cannot_work_decode_is_code_2(
    run: Run, make_cookie: MakeCookie, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KATALYS_SECRET_KEY", "short")

    code, out, err = run("decode", make_cookie())

    assert (code, out) == (2, "")
    assert err.startswith("KATALYS_SECRET_KEY ")
    assert "at least 32" in err


def test_without_a_key_decode_shows_the_click_and_says_that_nothing_was_checked(
    run: Run, make_cookie: MakeCookie
) -> None:
    code, out, err = run("decode", "--json", make_cookie())

    assert code == 0
    assert (json.loads(out)["transaction_id"], json.loads(out)["signature"]) == ("1234abcd", "not checked")
    assert "The signature was not checked" in err


@pytest.mark.parametrize("given", ["nonsense", "", "katalys_click=", "Grüße", "a.b", "WzEs.abc", "WzksMSwyLDMsNF0.abc"])
def test_without_a_key_what_is_not_a_cookie_is_still_code_1(run: Run, given: str) -> None:
    code, out, err = run("decode", given)

    assert (code, out) == (1, "")
    assert err.startswith("No click: ")


def test_decode_says_that_the_signature_is_valid(decode: Run, make_cookie: MakeCookie) -> None:
    assert json.loads(decode("--json", make_cookie())[1])["signature"] == "valid"


def test_decode_takes_the_key_of_the_calling_program(
    tracker: Tracker, make_cookie: MakeCookie, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decode", "--json", make_cookie()], tracker=tracker) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "valid"


# --- deliver: what a unit file or cron runs ------------------------------------------------------------------


def test_deliver_once_counts_what_became_of_the_rows(tracker: Tracker, operate: Run) -> None:
    buy(tracker)

    code, out, _ = operate("deliver", "--once", "--json")

    assert code == 0
    assert json.loads(out) == {"settled": 1, "postponed": 0, "buried": 0}


def test_deliver_once_says_that_a_row_failed(tracker: Tracker, sandbox: Sandbox, operate: Run) -> None:
    buy(tracker)
    sandbox.collector.misbehave(Misbehaviour.status(503, headers={"Retry-After": "60"}))

    assert operate("deliver", "--once")[:2] == (1, "0 delivered, 1 postponed, 0 dead\n")


def test_a_terminal_shows_progress(
    tracker: Tracker, sandbox: Sandbox, operate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that counts while a backlog drains; what failed is not counted."""
    for order_id in ("1", "2", "3"):
        buy(tracker, order_id)
    sandbox.collector.misbehave(Misbehaviour.status(422), times=1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    code, _, err = operate("deliver", "--once")

    assert code == 1
    assert err.endswith("\r1 delivered \r2 delivered ")


def test_deliver_goes_on_until_it_is_stopped(tracker: Tracker, sandbox: Sandbox, environment: dict[str, str]) -> None:
    """TERM, as systemd sends it, is not a failure."""
    buy(tracker)
    with started("deliver", **environment) as (process, _, _):
        sandbox.collector.wait_for(1)
        process.send_signal(signal.SIGTERM)
        _, logged = process.communicate(timeout=20)

        assert process.returncode == 0
        assert "katalys_wsgi.postback_delivered order_id=1001" in logged


def test_deliver_leaves_the_signals_as_they_were(operate: Run) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    operate("deliver", "--once")

    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# --- status: what a monitor runs -----------------------------------------------------------------------------


def test_status_of_an_empty_outbox_is_code_0(tracker: Tracker, operate: Run) -> None:
    tracker.drain()
    code, out, _ = operate("status")

    assert code == 0
    assert out.splitlines() == [
        "pending    0 (0 due)",
        "held       no",
        "dead       0",
        "delivered  0, the last never",
        "forgotten  0",
        "dropped    0",
        "pause      no",
    ]


def test_status_of_a_pending_order(tracker: Tracker, operate: Run) -> None:
    buy(tracker)

    assert re.match(r"pending    1 \(1 due\), the oldest for 0:00:0\d\n", operate("status")[1])


def test_status_with_a_dead_letter_is_code_1(tracker: Tracker, operate: Run) -> None:
    buy(tracker, email_address="")
    code, out, _ = operate("status")

    assert code == 1
    assert "dead       1; see: katalys-wsgi list --state dead --group\n        1  email_address: is missing\n" in out


def test_status_counts_the_most_frequent_reasons(tracker: Tracker, operate: Run) -> None:
    """What differs from row to row is left out of them."""
    for number in range(2):
        buy(tracker, f"currency-{number}", currency=f"Euro {number}")
    for number, wrong in enumerate(
        [
            {"email_address": ""},
            {"sale_amount": ""},
            {"subtotal_amount": ""},
            {"sale_amount": "", "subtotal_amount": ""},
            {"email_address": "", "subtotal_amount": ""},
        ]
    ):
        buy(tracker, str(number), **wrong)

    code, out, _ = operate("status")
    reasons = json.loads(operate("status", "--json")[1])["reasons"]

    assert code == 1
    assert len(reasons) == 6
    assert max(reasons.values()) == 2
    assert "           and 1 further reasons\n" in out


def test_status_of_held_rows_is_code_0_and_says_how_to_send_them(
    make_tracker: Callable[..., Tracker], operate: Run
) -> None:
    """However long they have been waiting: nothing is expected to leave."""
    buy(make_tracker(clock=lambda: time.time() - 1e6))
    code, out, _ = operate("status", "--endpoint", "https://katalys.example/", "--live", "false")

    assert code == 0
    assert (
        "held       yes, nothing leaves this machine: live is false. To send what is pending, set live to true.\n"
        in out
    )
    assert json.loads(operate("status", "--json", "--endpoint", "https://katalys.example/")[1])["held"]


def test_status_of_a_dead_letter_among_held_rows_is_code_1(tracker: Tracker, operate: Run) -> None:
    buy(tracker, email_address="")

    assert operate("status", "--endpoint", "https://katalys.example/", "--live", "false")[0] == 1


def test_status_of_a_paused_endpoint_is_code_1(tracker: Tracker, sandbox: Sandbox, operate: Run) -> None:
    buy(tracker)
    sandbox.collector.misbehave(Misbehaviour.status(403))
    tracker.drain()
    code, out, _ = operate("status", "--json")

    assert code == 1
    assert json.loads(out)["pause"] == "the last attempt failed: HTTP 403"


def test_status_of_a_row_that_waits_too_long_is_code_1(make_tracker: Callable[..., Tracker], operate: Run) -> None:
    buy(make_tracker(clock=lambda: time.time() - 100))

    code, out, _ = operate("status", "--max-age", 99)
    assert code == 1
    assert re.match(r"pending    1 .*, the oldest for 0:01:4\d: longer than 99 seconds, is a relay running\?\n", out)
    assert operate("status", "--max-age", 1000)[0] == 0


# --- list and why --------------------------------------------------------------------------------------------


def test_list_shows_states_and_reasons_the_newest_first(tracker: Tracker, operate: Run) -> None:
    buy(tracker, "1")
    buy(tracker, "2", email_address="")
    code, out, _ = operate("list")

    assert code == 0
    newest, oldest = out.splitlines()
    assert "dead" in newest
    assert newest.endswith("  email_address: is missing")
    assert (
        "pending    conversion  1  site_id=KA-1A2B3C4  sale_amount=59.90  subtotal_amount=50.00  codes=SPRING" in oldest
    )


def test_list_of_one_state(tracker: Tracker, operate: Run) -> None:
    buy(tracker, "1")
    buy(tracker, "2", email_address="")
    _, out, _ = operate("list", "--state", "dead", "--json")

    assert [row["order_id"] for row in json.loads(out)] == ["2"]


def test_list_says_when_it_was_cut_off(tracker: Tracker, operate: Run) -> None:
    for number in range(3):
        buy(tracker, str(number))

    _, out, err = operate("list", "--limit", 2)
    assert len(out.splitlines()) == 2
    assert err.endswith("Cut off: these are the newest 2, and there are more. Ask for more with --limit.\n")
    assert "Cut off" not in operate("list", "--limit", 3)[2]


def test_as_csv_all_are_listed_for_the_books(tracker: Tracker, operate: Run) -> None:
    for number in range(60):
        buy(tracker, str(number))

    assert len(operate("list")[1].splitlines()) == 50
    assert len(json.loads(operate("list", "--format", "json")[1])) == 50
    out = operate("list", "--format", "csv")[1]
    assert len(out.splitlines()) == 61
    assert out.startswith("recorded,finished,state,kind,order_id,site_id,sale_amount,")
    assert len(operate("list", "--format", "csv", "--limit", 5)[1].splitlines()) == 6


def test_list_of_a_month(make_tracker: Callable[..., Tracker], operate: Run) -> None:
    """Of any length of outbox: the limit counts what is within."""
    clock = Clock(datetime(2026, 10, 31, tzinfo=timezone.utc).timestamp())
    shop = make_tracker(clock=clock)
    for number in range(32):
        buy(shop, str(number))
        clock.advance(86400)

    def listed(*arguments: str) -> list[str]:
        return [row["order_id"] for row in json.loads(operate("list", "--json", *arguments)[1])]

    assert listed("--since", "2026-11-01", "--until", "2026-12-01") == [str(number) for number in range(30, 0, -1)]
    assert listed("--until", "2026-11-01", "--limit", "5") == ["0"]


@pytest.mark.parametrize("state", [state.value for state in State])
def test_list_knows_every_state(tracker: Tracker, operate: Run, state: str) -> None:
    buy(tracker, "delivered")
    tracker.drain()
    buy(tracker, "dead", email_address="")
    buy(tracker, "dropped", email_address="")
    buy(tracker, "forgotten")
    buy(tracker, "pending")
    operate("drop", "dropped", "--yes")
    operate("forget", "forgotten")

    assert [row["order_id"] for row in json.loads(operate("list", "--json", "--state", state)[1])] == [state]
    counted = json.loads(operate("status", "--json")[1])
    assert counted[state] == 1


def test_dead_letters_grouped_by_reason(tracker: Tracker, operate: Run) -> None:
    buy(tracker, "pending")
    for number in range(3):
        buy(tracker, f"currency-{number}", currency=f"Euro {number}")
    buy(tracker, "1", email_address="")

    code, out, _ = operate("list", "--state", "dead", "--group")
    assert code == 0
    assert re.match(r"      3  currency: .*\n      1  email_address: is missing\n$", out)
    groups = json.loads(operate("list", "--group", "--json")[1])
    assert list(groups.values()) == [3, 1]


def test_why_tells_the_story_of_an_order(tracker: Tracker, operate: Run) -> None:
    buy(tracker)
    code, out, _ = operate("why", "1001")

    assert code == 0
    assert out.endswith("\nIt is tried as soon as a relay runs.\n")


def test_why_of_an_unknown_order_is_code_1(tracker: Tracker, operate: Run) -> None:
    tracker.drain()
    code, out, _ = operate("why", "404")

    assert code == 1
    assert out.startswith("Nothing is known of order 404: ")


def test_json_holds_no_personal_data(tracker: Tracker, operate: Run) -> None:
    buy(tracker)
    printed = operate("why", "1001", "--json")[1] + operate("list", "--json")[1]

    assert printed.count('"order_id": "1001"') == 2
    assert "ann@example.com" not in printed
    assert BUYER_IP not in printed


# --- retry ---------------------------------------------------------------------------------------------------


def test_retry_corrects_an_order_for_delivery(tracker: Tracker, sandbox: Sandbox, operate: Run) -> None:
    buy(tracker, email_address="")

    code, out, _ = operate("retry", "1001", "--set", "email_address=ann@example.com")

    assert (code, out) == (0, "1 of 1 dead letters will be tried again\n")
    tracker.drain()
    (received,) = sandbox.collector.accepted
    assert received.fields["email_address"] == "ann@example.com"


def test_retry_says_what_is_still_wrong(tracker: Tracker, operate: Run) -> None:
    buy(tracker, email_address="", sale_amount="much")

    code, out, err = operate("retry", "1001", "--set", "email_address=ann@example.com")

    assert (code, out) == (1, "0 of 1 dead letters will be tried again\n")
    assert "sale_amount" in err
    assert err.endswith("Correct it with --set FIELD=VALUE.\n")
    assert archive(tracker.outbox).statistics().dead == 1


def test_retry_of_all_dead_after_an_outage(tracker: Tracker, sandbox: Sandbox, operate: Run) -> None:
    for number in range(3):
        buy(tracker, str(number))
    sandbox.collector.misbehave(Misbehaviour.status(422), times=3)
    tracker.drain()

    assert operate("retry", "--all-dead")[:2] == (0, "3 of 3 dead letters will be tried again\n")
    assert tracker.drain().settled == 3


@pytest.fixture
def three_dead(tracker: Tracker, sandbox: Sandbox) -> Tracker:
    """Orders 1 and 2 were refused by Katalys, order 3 has no address; order 4 is pending."""
    for number in range(1, 3):
        buy(tracker, str(number))
    sandbox.collector.misbehave(Misbehaviour.status(422), times=2)
    tracker.drain()
    buy(tracker, "3", email_address="")
    buy(tracker, "4")
    return tracker


def dead(tracker: Tracker) -> list[str]:
    return [entry.order_id for entry in archive(tracker.outbox).entries(State.DEAD)][::-1]


def test_retry_by_reason(three_dead: Tracker, operate: Run) -> None:
    code, out, _ = operate("retry", "--reason", "http 422")

    assert (code, out) == (0, "2 of 2 dead letters will be tried again\n")
    assert dead(three_dead) == ["3"]


def test_retry_by_reason_and_time(three_dead: Tracker, operate: Run) -> None:
    assert operate("retry", "--reason", "HTTP", "--since", "2100-01-01")[:2] == (
        1, "0 of 0 dead letters will be tried again\n",
    )  # fmt: skip
    assert operate("retry", "--reason", "HTTP", "--since", "1h")[0] == 0


def test_retry_takes_the_reason_as_status_prints_it(tracker: Tracker, operate: Run) -> None:
    """Where values are left out."""
    tracker.outbox.add(make_postback(), problems=["tax_amount: 'much' is not a plain number"])
    (reason,) = json.loads(operate("status", "--json")[1])["reasons"]

    assert reason == "tax_amount: '...' is not a plain number"
    assert operate("retry", "--reason", reason)[0] == 0


def test_a_dry_run_changes_nothing(three_dead: Tracker, operate: Run) -> None:
    code, out, err = operate("retry", "--since", "1h", "--dry-run")

    assert code == 1
    assert out.endswith("2 of 3 dead letters would be tried again; nothing was changed\n")
    assert re.search(r"UTC  1  HTTP 422", out)
    assert "Order '3' cannot be reported: email_address: is missing. Correct it with --set FIELD=VALUE." in err
    assert dead(three_dead) == ["1", "2", "3"]
    assert operate("retry", "3", "--set", "email_address=ann@example.com", "--dry-run")[0] == 0
    assert dead(three_dead) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("delivered", "The conversion of order delivered is delivered: Katalys has it.\n"),
        ("pending", "The conversion of order pending is pending: it will be tried without being asked.\n"),
        ("forgotten", "The conversion of order forgotten is forgotten: its data is gone; record the order again"),
        ("dropped", "The conversion of order dropped is dropped: the operator dismissed it; record the order again"),
        ("unknown", "Order unknown is unknown here.\n"),
    ],
)
def test_retry_says_what_it_met_instead_of_a_dead_letter(tracker: Tracker, operate: Run, order: str, said: str) -> None:
    buy(tracker, "delivered")
    tracker.drain()
    buy(tracker, "dropped", email_address="")
    buy(tracker, "forgotten")
    buy(tracker, "pending")
    operate("drop", "dropped", "--yes")
    operate("forget", "forgotten")

    code, out, err = operate("retry", order)
    assert (code, out) == (1, "0 of 0 dead letters will be tried again\n")
    assert said in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("email=ann@example.com", "email: is not a field of Katalys; did you mean email_address?"),
        ("discount_3_cod=X", "discount_3_cod: is not a field of Katalys; did you mean discount_3_code?"),
        ("publisher_id=1", "publisher_id: is not a field of Katalys; did you mean aff_id?"),
        ("xyz=1", "xyz: is not a field of Katalys; known are action_type, aff_id, billing_city, "),
        ("site_id=KA-OTHER00", "site_id: cannot be changed: it says whose sale it is"),
        ("order_id=1002", "order_id: cannot be changed: it says which order this is"),
        ("type=offline_conv", "type: cannot be changed: it belongs to the shop's setting conversion_type"),
    ],
)
def test_a_correction_of_a_wrong_field_is_refused(tracker: Tracker, operate: Run, change: str, said: str) -> None:
    buy(tracker, email_address="")

    code, _, err = operate("retry", "1001", "--set", change)
    assert code == 1
    assert said in err
    assert "Correct it with" not in err
    assert dead(tracker) == ["1001"]


def test_a_correction_leaves_a_trace_in_why(tracker: Tracker, operate: Run) -> None:
    """Which field, not its value: that may be the buyer's address."""
    buy(tracker, email_address="")
    operate("retry", "1001", "--set", "email_address=bob@example.com", "--set", "line_item_2_sku=KETTLE-2")

    _, out, _ = operate("why", "1001")
    assert re.search(
        r"^The operator had it tried again, .* UTC: corrected: email_address, line_item_2_sku\.$", out, re.MULTILINE
    )
    assert "bob@example.com" not in out


def test_an_order_that_was_recorded_anew_meanwhile_is_not_revived(
    tracker: Tracker, operate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    buy(tracker, email_address="")
    monkeypatch.setattr("katalys_wsgi.operations.revive", lambda *_: False)

    code, _, err = operate("retry", "1001", "--set", "email_address=ann@example.com")
    assert code == 1
    assert err.endswith("Order 1001 is not a dead letter any more, or was recorded again.\n")


def test_retry_of_nothing_is_code_1(tracker: Tracker, operate: Run) -> None:
    tracker.drain()
    assert operate("retry", "1001")[0] == 1


# --- drop, forget, prune, recover ----------------------------------------------------------------------------


def test_drop_dismisses_a_dead_letter(tracker: Tracker, operate: Run) -> None:
    buy(tracker, email_address="")

    assert operate("drop", "1001", "--yes")[:2] == (0, "1 dead letters were dropped\n")
    assert operate("status")[0] == 0
    why = operate("why", "1001")[1]
    assert re.search(r"The operator dropped it, .* UTC; it was a dead letter: email_address: is missing\.\n$", why)


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("Yes\n", 0), ("\n", 1), ("no\n", 1), ("", 1)])
def test_drop_asks_first(
    tracker: Tracker, operate: Run, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    buy(tracker, email_address="")
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))

    ended, _, err = operate("drop", "1001")

    assert ended == code
    assert "The conversion of order 1001 is a dead letter: email_address: is missing.\nDrop it?" in err
    assert ("say --yes where nobody can" in err) is (not answer)
    assert ("Nothing was dropped." in err) is (code == 1)
    assert dead(tracker) == ([] if code == 0 else ["1001"])


@pytest.mark.parametrize("order", ["1001", "404"])
def test_drop_of_what_is_no_dead_letter_is_code_1(tracker: Tracker, operate: Run, order: str) -> None:
    buy(tracker)
    code, out, err = operate("drop", order, "--yes")

    assert (code, out) == (1, "")
    assert err.endswith("Only a dead letter can be dropped; nothing was changed.\n")
    assert rows(tracker) == [("conversion", "pending")]


def test_forget_of_an_unknown_order_is_code_1(tracker: Tracker, operate: Run) -> None:
    """A mistyped number must not look like a kept promise."""
    buy(tracker)

    code, _, err = operate("forget", "404")
    assert (code, err.endswith("Order 404 is unknown here.\n")) == (1, True)


def test_forget_twice_is_code_0(tracker: Tracker, operate: Run) -> None:
    buy(tracker)
    operate("forget", "1001")

    assert operate("forget", "1001")[:2] == (0, "0 entries were emptied\n")


def test_without_a_key_forget_says_which_addresses_it_cannot_find(
    tracker: Tracker, run: Run, options: dict[str, Any]
) -> None:
    buy(tracker)
    code, out, err = run("forget", "--email", "ann@example.com", "--outbox", options["outbox"])

    assert (code, out) == (0, "1 entries were emptied\n")
    assert "hashed addresses (hash_email) are not found" in err


def test_recover_of_a_sound_file(tracker: Tracker, operate: Run) -> None:
    buy(tracker)

    assert operate("recover")[:2] == (0, "The file is sound; nothing was changed\n")


def test_recover_repairs_a_damaged_file(tracker: Tracker, operate: Run, options: dict[str, Any]) -> None:
    for number in range(200):
        buy(tracker, str(number))
    tracker.close()
    file = Path(options["outbox"])
    content = bytearray(file.read_bytes())
    content[8192:16384] = b"\xff" * 8192
    file.write_bytes(content)

    code, out, _ = operate("recover")
    assert code == 0
    assert re.match(rf"\d+ entries were saved; the damaged file is now {re.escape(str(file))}\.corrupt-", out)
    assert operate("recover")[:2] == (0, "The file is sound; nothing was changed\n")


def test_recover_is_for_files_only(make_tracker: Callable[..., Tracker], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recover"], tracker=make_tracker(outbox=MemoryOutbox())) == 2
    assert "MemoryOutbox() is not a file of ours; your database has its own tools.\n" in capsys.readouterr().err


def test_forget_of_an_order(tracker: Tracker, operate: Run) -> None:
    buy(tracker)

    assert operate("forget", "1001")[:2] == (0, "1 entries were emptied\n")
    (entry,) = tracker.outbox.history("1001")
    assert (entry.payload, entry.state) == (None, State.FORGOTTEN)
    assert operate("status")[0] == 0


@pytest.mark.parametrize("hashed", [pytest.param(False, id="plain"), pytest.param(True, id="hash_email")])
def test_forget_of_an_address(hashed: bool, make_tracker: Callable[..., Tracker], operate: Run) -> None:
    """Hashed addresses were keyed with the first secret key."""
    tracker = make_tracker(hash_email=hashed)
    buy(tracker, "1")
    buy(tracker, "2")
    buy(tracker, "3", email_address="bob@example.com")

    assert operate("forget", "--email", "Ann@Example.com")[:2] == (0, "2 entries were emptied\n")
    assert [entry.order_id for entry in archive(tracker.outbox).with_payload()] == ["3"]


def test_prune_keeps_what_is_younger_than_the_retention(tracker: Tracker, operate: Run) -> None:
    buy(tracker)
    tracker.drain()

    assert operate("prune")[:2] == (0, "0 entries were deleted\n")
    assert operate("prune", "--older-than", 0)[:2] == (0, "1 entries were deleted\n")
