"""Where the outbox's file may lie: a place that cannot hold it is reported when the shop starts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from katalys_wsgi import ConfigurationError
from katalys_wsgi.outbox import place
from katalys_wsgi.outbox.place import check_place, network_file_system

MOUNTS = """\
sysfs /sys sysfs rw,nosuid 0 0
/dev/vda1 / ext4 rw,relatime 0 0
tmpfs /run tmpfs rw 0 0
filer:/export /srv nfs4 rw,vers=4.2 0 0
/dev/vdb1 /srv/shop/local xfs rw 0 0
//filer/share /mnt/windows\\040share cifs rw 0 0
you@host:/ /home/you/remote fuse.sshfs rw 0 0
overlay /var/lib/docker/overlay2 overlay rw 0 0
portal /run/user/1000/doc fuse.portal rw 0 0

damaged
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/", None),
        ("/var/lib/shop", None),
        ("/srv", "nfs4"),
        ("/srv/shop", "nfs4"),
        ("/srv/shop/local", None),
        ("/srv/shop/local/deeper", None),
        ("/srvice", None),
        ("/mnt/windows share/x", "cifs"),
        ("/home/you/remote/shop", "fuse.sshfs"),
        ("/run/user/1000/doc", None),
    ],
)
def test_the_file_system_of_a_directory_is_that_of_its_nearest_mount(directory: str, kind: str | None) -> None:
    assert network_file_system(Path(directory), MOUNTS) == kind


def test_without_mounts_the_file_system_is_unknown() -> None:
    assert network_file_system(Path("/srv"), "") is None


def test_the_machines_own_mounts_are_read(tmp_path: Path) -> None:
    assert network_file_system(tmp_path) is None


def test_a_system_without_such_a_list_is_taken_for_a_local_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """MacOS and the BSDs have no /proc/self/mounts."""

    def is_missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", is_missing)

    assert network_file_system(Path("/srv")) is None


def test_a_writable_directory_on_a_local_disk_will_do(tmp_path: Path) -> None:
    check_place(tmp_path / "outbox.db")


def missing(_: pytest.MonkeyPatch) -> None:
    """Leave the directory unmade."""


def not_writable(patch: pytest.MonkeyPatch) -> None:
    Path("there").mkdir()
    patch.setattr(os, "access", lambda *_: False)


def on_a_network(patch: pytest.MonkeyPatch) -> None:
    Path("there").mkdir()
    patch.setattr(place, "network_file_system", lambda _: "nfs")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (missing, "there does not exist; create it"),
        (not_writable, "there is not writable for this user; change that"),
        (on_a_network, "there lies on nfs, where SQLite is not safe; use a local disk"),
    ],
)
def test_a_wrong_place_is_reported_with_the_next_step(
    prepare: Callable[[pytest.MonkeyPatch], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(monkeypatch)
    with pytest.raises(ConfigurationError, match=message) as caught:
        check_place(Path("there/outbox.db"))

    assert "KATALYS_OUTBOX" in str(caught.value)


def test_where_fcntl_is_missing_the_package_works_and_only_the_file_is_refused(tmp_path: Path) -> None:
    """Windows: a shop there keeps the outbox in its database."""
    program = """
        import sys
        sys.modules["fcntl"] = None  # as if there were none
        import katalys_wsgi, katalys_wsgi.outbox.entry, katalys_wsgi.outbox.memory
        from katalys_wsgi.outbox import open_outbox
        try:
            open_outbox(sys.argv[1])
        except katalys_wsgi.ConfigurationError as error:
            print(error)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path / "outbox.db"],
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert ran.stderr == ""
    assert "POSIX" in ran.stdout
    assert "SQLAlchemy URL" in ran.stdout


def test_a_system_that_is_not_posix_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)

    with pytest.raises(ConfigurationError, match="needs a POSIX system"):
        check_place(tmp_path / "outbox.db")
