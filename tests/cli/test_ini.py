"""``--ini FILE#section``: the settings of an app's and a filter's section, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from katalys_wsgi import ConfigurationError
from katalys_wsgi.cli.ini import IniSettings, read_ini

INI_FILE = """\
[DEFAULT]
katalys.wire = form
debug = false

[app:main]
use = egg:shop
katalys.site_id = KA-1A2B3C4
katalys.outbox = %(here)s/outbox.db
pyramid.includes = katalys_wsgi.pyramid
sqlalchemy.url = sqlite:///shop.db

[app:other]
katalys.site_id = KA-0THER00

[filter:affiliates]
use = egg:katalys-wsgi
site_id = KA-F1LTER0
katalys.wire = get
get debug = debug

[filter:main]
use = egg:katalys-wsgi
site_id = KA-MAIN000

[app:broken]
katalys.outbox = %(there)s/outbox.db

[formatter_generic]
format = %(asctime)s %(message)s
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "50% off" / "shop.ini"
    path.parent.mkdir()
    path.write_text(INI_FILE)
    return path


@pytest.mark.parametrize("section", ["", "#main", "#app:main", "#"])
def test_the_main_application(file: Path, section: str) -> None:
    """What is not ours in the section is the application's own; ``here`` is the file's folder."""
    assert read_ini(f"{file}{section}") == IniSettings(
        {"site_id": "KA-1A2B3C4", "outbox": f"{file.parent}/outbox.db", "wire": "form"}, debug=False
    )


def test_another_application(file: Path) -> None:
    assert read_ini(f"{file}#other").values["site_id"] == "KA-0THER00"


@pytest.mark.parametrize("section", ["#affiliates", "#filter:affiliates"])
def test_a_filter_gives_settings_with_and_without_prefix(file: Path, section: str) -> None:
    assert read_ini(f"{file}{section}").values == {"site_id": "KA-F1LTER0", "wire": "get"}


def test_a_filter_may_be_called_main(file: Path) -> None:
    assert read_ini(f"{file}#filter:main").values["site_id"] == "KA-MAIN000"


def test_a_relative_file_is_one_of_the_current_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)

    assert read_ini("shop.ini").values["outbox"] == f"{file.parent}/outbox.db"


@pytest.mark.parametrize(
    ("line", "debug"),
    [("pyramid.debug_all = true", True), ("debug_all = 1", True), ("pyramid.debug_all = false", False), ("", False)],
)
def test_pyramids_debug_all_is_seen(tmp_path: Path, line: str, debug: bool) -> None:
    (tmp_path / "shop.ini").write_text(f"[app:main]\n{line}\n")

    assert read_ini(f"{tmp_path}/shop.ini").debug is debug


def test_a_section_that_is_not_there_names_those_that_are(file: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read_ini(f"{file}#affiliate")

    assert str(raised.value) == (
        f"--ini {file} has no section for 'affiliate'; name one of these behind the #: "
        "app:main, app:other, filter:affiliates, filter:main, app:broken."
    )


def test_a_file_without_any_such_section(tmp_path: Path) -> None:
    (tmp_path / "other.ini").write_text("[server:main]\nport = 80\n")

    with pytest.raises(ConfigurationError, match=r"has no section for 'main'; it has no \[app:\.\.\.\]"):
        read_ini(f"{tmp_path}/other.ini")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.ini cannot be read: No such file or directory"):
        read_ini(f"{tmp_path}/missing.ini")


@pytest.mark.parametrize("content", [b"site_id = KA-1A2B3C4\n", b"[app:main]\nno sense\n", b"[app:main]\na = \xff\n"])
def test_a_file_that_is_no_ini_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "shop.ini").write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"shop\.ini is not an ini file: "):
        read_ini(f"{tmp_path}/shop.ini")


def test_a_name_that_cannot_be_filled_in(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^\[app:broken\] of .*shop.ini cannot be read: .*there"):
        read_ini(f"{file}#broken")
