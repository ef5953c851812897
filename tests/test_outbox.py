"""The protocols of an outbox, and which outbox a setting means."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from katalys_wsgi import ConfigurationError, Event
from katalys_wsgi.conversion.postback import Postback
from katalys_wsgi.events import Events
from katalys_wsgi.outbox import Added, Archive, Change, Entry, Outbox, open_outbox, schema
from katalys_wsgi.outbox.memory import MemoryOutbox
from katalys_wsgi.outbox.sqlalchemy import SQLAlchemyOutbox
from katalys_wsgi.outbox.sqlite import SQLiteOutbox

from .outbox_conformance import conversion
from .support import Clock


class MachinesOnly:
    """A shop's own outbox that recording and delivery can use, and no operator."""

    def add(self, postback: Postback, *, problems: Sequence[str] = (), connection: Any = None) -> Added:
        return Added.NEW

    def history(self, order_id: str, *, connection: Any = None) -> list[Entry]:
        return []

    def claim(self, limit: int, lease: float) -> list[Entry]:
        return []

    def apply(self, changes: Iterable[Change]) -> int:
        return 0

    def prune(self, finished_before: float) -> int:
        return 0

    def close(self) -> None:
        pass


# --- the protocols ---


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda folder: SQLiteOutbox(folder / "outbox.db"), id="file"),
        pytest.param(lambda _: MemoryOutbox(), id="memory"),
        pytest.param(lambda folder: SQLAlchemyOutbox(f"sqlite:///{folder}/shop.db"), id="database"),
    ],
)
def test_every_outbox_of_this_package_answers_the_operator_too(make: Callable[[Path], object], tmp_path: Path) -> None:
    made = make(tmp_path)

    assert isinstance(made, Outbox)
    assert isinstance(made, Archive)


def test_an_outbox_need_not_be_an_archive() -> None:
    assert isinstance(MachinesOnly(), Outbox)
    assert not isinstance(MachinesOnly(), Archive)


@pytest.mark.parametrize("name", ["add", "history", "claim", "apply", "prune", "close"])
def test_what_lacks_a_method_is_not_an_outbox(name: str) -> None:
    methods = {key: value for key, value in vars(MachinesOnly).items() if key != name and not key.startswith("_")}

    assert not isinstance(type("Lacking", (), methods)(), Outbox)


# --- the setting ---


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_path_is_a_file_of_ours(as_path: Callable[[Path], str | Path], tmp_path: Path) -> None:
    outbox = open_outbox(as_path(tmp_path / "outbox.db"))

    assert isinstance(outbox, SQLiteOutbox)
    assert outbox.path == tmp_path / "outbox.db"


def test_a_url_is_the_shops_database(tmp_path: Path) -> None:
    """Also that of a SQLite file: it is the shop's, and we are guests."""
    assert isinstance(open_outbox(f"sqlite:///{tmp_path}/shop.db"), SQLAlchemyOutbox)


@pytest.mark.parametrize("make", [MachinesOnly, MemoryOutbox])
def test_an_outbox_is_itself(make: Callable[[], Outbox]) -> None:
    outbox = make()

    assert open_outbox(outbox) is outbox


def test_the_file_takes_the_clock_and_reports_its_damage(tmp_path: Path) -> None:
    clock, seen = Clock(), list[Event]()
    schema.open_file(tmp_path / "outbox.db", 2.0).close()
    (tmp_path / "outbox.db").write_bytes((tmp_path / "outbox.db").read_bytes()[:100] + b"not a database" * 1000)
    outbox = open_outbox(tmp_path / "outbox.db", clock=clock, events=Events([seen.append]))
    outbox.add(conversion())
    (entry,) = outbox.history("1001")
    outbox.close()

    assert entry.created_at == clock()
    assert [event.name for event in seen] == ["outbox_damaged"]


def test_a_place_that_cannot_hold_the_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing does not exist"):
        open_outbox(tmp_path / "missing" / "outbox.db")


def test_a_url_without_sqlalchemy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "katalys_wsgi.outbox.sqlalchemy", None)

    with pytest.raises(ConfigurationError, match=r"postgresql\+psycopg address.*katalys-wsgi\[sqlalchemy\]") as caught:
        open_outbox("postgresql+psycopg://shop:password@db/shop")

    assert "password" not in str(caught.value)
