"""Real database servers on loopback ports, in folders that are thrown away: PostgreSQL, MariaDB and Redis."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from .support import free_port, wait_until

#: initdb and mariadbd refuse to be root; the Debian packages bring these users.
_USERS = {"postgres": "postgres", "mariadb": "mysql"}


class NotInstalled(Exception):
    """The server's program is not on this machine; the text names the Debian package."""


class Postgres:
    """One PostgreSQL server; ``stop`` and ``start`` keep its data."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "postgres"
        self._data.mkdir()
        self._port = free_port()
        self.url = f"postgresql+psycopg://shop@127.0.0.1:{self._port}/postgres"
        self._prefix = _as_user("postgres", self._data)
        _run([*self._prefix, _program("initdb", "postgresql"), "-D", self._data, "-U", "shop", "-A", "trust"])
        self.start()

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=100"
        self._control("start", "-w", "-l", str(self._data / "log"), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        self._control("stop", "-m", mode)

    def suspended(self) -> AbstractContextManager[None]:
        """In the block the server accepts and acknowledges, by its kernel, and says nothing."""
        postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
        return _suspended([postmaster, *_children_of(postmaster)])

    def _control(self, *arguments: str) -> None:
        _run([*self._prefix, _program("pg_ctl", "postgresql"), "-D", self._data, *arguments])


class MariaDB:
    """One MariaDB server."""

    def __init__(self, folder: Path) -> None:
        data = folder / "mariadb"
        data.mkdir()
        port = free_port()
        self.url = f"mysql+pymysql://root@127.0.0.1:{port}/shop"
        prefix = _as_user("mariadb", data)
        install = ["--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db"]
        _run([*prefix, _program("mariadb-install-db", "mariadb-server"), *install])
        serve = [f"--datadir={data}", f"--port={port}", "--bind-address=127.0.0.1", f"--socket={data}/socket"]
        self._process = subprocess.Popen(
            [*prefix, _program("mariadbd", "mariadb-server"), "--no-defaults", *serve, f"--pid-file={data}/pid"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        client = [_program("mariadb", "mariadb-client"), "--no-defaults", f"--port={port}", "-h127.0.0.1", "-uroot"]
        wait_until(lambda: _succeeds([*client, "-e", "CREATE DATABASE IF NOT EXISTS shop"]), "MariaDB", 30)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def suspended(self) -> AbstractContextManager[None]:
        """In the block the server accepts and acknowledges, by its kernel, and says nothing."""
        return _suspended([self._process.pid])


class Redis:
    """One Redis server that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.start()

    def start(self) -> None:
        command = [_program("redis-server", "redis-server"), "--port", str(self._port), "--bind", "127.0.0.1"]
        self._process = subprocess.Popen(
            [*command, "--save", "", "--appendonly", "no", "--dir", str(self._folder)], stdout=subprocess.DEVNULL
        )
        wait_until(lambda: _listens(self._port), "Redis", 30)

    def kill(self) -> None:
        """Die with everything that was in memory."""
        self._process.kill()
        self._process.wait(10)

    stop = kill


@contextmanager
def _suspended(processes: list[int]) -> Iterator[None]:
    """SIGSTOP for these processes, and SIGCONT at the end."""
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _children_of(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def _program(name: str, package: str) -> str:
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), None)
    if found is None:
        raise NotInstalled(f"{name} is not installed (Debian: {package})")
    return found


def _as_user(server: str, folder: Path) -> list[str]:
    """The command prefix that makes ``folder`` the server's user's, and us that user, where we are root."""
    if os.getuid() != 0:
        return []
    user = _USERS[server]
    try:
        shutil.chown(folder, user)
    except LookupError:
        raise NotInstalled(f"there is no user {user} (Debian: {server})") from None
    for parent in folder.parents[:3]:  # pytest's folders are for their owner only
        parent.chmod(parent.stat().st_mode | 0o011)
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


def _run(command: list[object]) -> None:
    done = subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert done.returncode == 0, done.stderr.decode()


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
