"""The place of the outbox's SQLite file: where it can be kept safely, checked when the shop starts.

The file needs locks that work between processes and a directory in which SQLite may make its write-ahead log; a wrong
place would show at the first sale, or under load.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from ..errors import ConfigurationError

__all__ = ["check_place", "network_file_system"]

_NETWORKS = ("nfs", "cifs", "smb", "afs", "fuse.sshfs", "ceph", "fuse.glusterfs", "lustre")


def check_place(path: Path) -> None:
    """Report at start-up what would otherwise be found out at the first sale.

    Nothing is written, and the file is not opened.

    :param path: of the file, which need not be there yet; absolute.
    :raises ConfigurationError: its directory does not exist, is not writable or is on a network, or this is not a POSIX
        system. The message says which setting to change.
    """
    if find_spec("fcntl") is None:
        raise ConfigurationError(
            "The outbox in a file needs a POSIX system (Linux, macOS); elsewhere set outbox (KATALYS_OUTBOX) to the "
            "SQLAlchemy URL of the shop's database."
        )
    problem = _problem_of(path.parent)
    if problem:
        elsewhere = "or set outbox (KATALYS_OUTBOX) to another place, such as /var/lib/shop/katalys-outbox.db."
        raise ConfigurationError(f"The outbox's directory {path.parent} {problem}, {elsewhere}")


def _problem_of(directory: Path) -> str | None:
    """The rest of a sentence that begins with the directory; None where it can be used."""
    network = network_file_system(directory)
    if not directory.is_dir():
        return "does not exist; create it"
    if not os.access(directory, os.W_OK | os.X_OK):
        return "is not writable for this user; change that"
    if network:
        # https://sqlite.org/faq.html#q5: file locking of many network file systems does not work.
        return f"lies on {network}, where SQLite is not safe; use a local disk"
    return None


def network_file_system(directory: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system ``directory`` lies on; None on a local one or where it is unknown.

    It is that of the mount point nearest above the directory, links followed; known on Linux only.

    :param directory: need not exist.
    :param mounts: what ``/proc/self/mounts`` holds (Linux), read unless given.
    :returns: the name as the mount table has it, such as ``"nfs4"``.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="replace")
        except OSError:
            return None
    resolved = directory.resolve()
    best: tuple[int, str] = (0, "")
    for line in mounts.splitlines():
        _, point, kind, *_ = [*line.split(" "), "", "", ""]
        mount = Path(point.replace("\\040", " "))
        if point and (resolved == mount or mount in resolved.parents):
            best = max(best, (len(mount.parts), kind), key=lambda found: found[0])
    return best[1] if best[1].startswith(_NETWORKS) else None
