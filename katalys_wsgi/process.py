"""Values that belong to one process: connections, locks, threads.

Servers fork after loading the shop (gunicorn ``--preload``, uWSGI). What was made before is then shared with
the parent behind everybody's back, and what was locked stays locked. So nothing is made before it is used, and
a value inherited through a fork is neither used nor closed: closing an inherited SQLite connection could roll
back what the parent is just writing.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """One value per process, made by ``make`` at first use.

    Two threads may both call ``make`` at the first use; one result is kept. It must have no effect of its own.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}
        _instances.add(self)

    def get(self) -> T:
        """This process's value."""
        pid = os.getpid()
        value = self._values.get(pid)
        return value if value is not None else self._values.setdefault(pid, self._make())

    def peek(self) -> T | None:
        """This process's value if it has been made."""
        return self._values.get(os.getpid())

    def _abandon_inherited(self) -> None:
        for pid in [pid for pid in self._values if pid != os.getpid()]:
            _immortalise(self._values.pop(pid))


def _immortalise(value: object) -> None:
    """Keep ``value`` from being destroyed, and so closed, even when the interpreter shuts down."""
    import ctypes  # only in a child that inherited something; costs others nothing

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


_instances: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for instance in list(_instances):
        instance._abandon_inherited()


os.register_at_fork(after_in_child=_after_fork)
