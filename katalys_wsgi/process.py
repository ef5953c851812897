"""Values that belong to one process: connections, locks and threads, made anew after a fork.

Servers fork after loading the shop (gunicorn ``--preload``, uWSGI). What was made before is then shared with the
parent without either knowing, and what was locked stays locked. So nothing is made before it is used, and a value
inherited through a fork is neither used nor closed: closing an inherited SQLite connection could roll back what the
parent is just writing.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["IMPORTS", "ForkLock", "OncePerProcess", "PerProcess"]

T = TypeVar("T")

#: Seconds that a fork waits for a lock.
PATIENCE_AT_FORK = 5.0


class ForkLock:
    """A lock that a fork waits for: no child is forked while another thread of its parent holds it.

    A child inherits what is locked, and not the thread that would unlock it. The wait is limited to
    :data:`PATIENCE_AT_FORK` seconds, then the fork goes ahead. The child begins with the lock free, whoever held it in
    the parent. Use it in a ``with`` statement, or by :meth:`acquire` and :meth:`release`; the same thread cannot take
    it twice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held_for_fork = False
        _locks.add(self)

    def acquire(self, timeout: float = -1) -> bool:
        """Wait for the lock.

        :param timeout: seconds; without limit if negative.
        :returns: whether it is the caller's now.
        """
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Give the lock back.

        :raises RuntimeError: it is not locked.
        """
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _before_fork(self) -> None:
        self._held_for_fork = self._lock.acquire(timeout=PATIENCE_AT_FORK)

    def _after_fork_in_parent(self) -> None:
        if self._held_for_fork:
            self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()


class PerProcess(Generic[T]):
    """One value per process, made by ``make`` at first use.

    Two threads may both call ``make`` at the first use; one result is kept. It must have no effect of its own. A value
    that was inherited from the parent process is kept alive unused, so that its destructor does not close what both
    share.

    :param make: makes the value; what it raises reaches the caller of :meth:`get`, and the next call tries again.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}
        _instances.add(self)

    def get(self) -> T:
        """This process's value, made if it has not been yet. None counts as not made."""
        pid = os.getpid()
        value = self._values.get(pid)
        return value if value is not None else self._values.setdefault(pid, self._make())

    def peek(self) -> T | None:
        """This process's value if it has been made, else None; makes nothing."""
        return self._values.get(os.getpid())

    def discard(self) -> T | None:
        """Forget this process's value and return it, if it has been made; the next ``get()`` makes a new one.

        It is not closed; that is the caller's part.
        """
        return self._values.pop(os.getpid(), None)

    def _abandon_inherited(self) -> None:
        """Forget the values of other processes, in a child that was just forked, without destroying them."""
        for pid in [pid for pid in self._values if pid != os.getpid()]:
            _immortalise(self._values.pop(pid))


class OncePerProcess:
    """A function that each process calls once; a forked child calls it again.

    :param function: called without arguments; what it raises reaches the caller, and it is not called again.
    :ivar pending: this process has not called it yet. Looked at first, it spares the hot path a call.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self.pending: bool = True
        _onces.add(self)

    def __call__(self) -> None:
        """Call the function, if this process has not yet; two threads may both do so at the very first use."""
        if self.pending:
            self.pending = False
            self._function()


def _immortalise(value: object) -> None:
    """Keep ``value`` from being destroyed, and so closed, even when the interpreter shuts down."""
    import ctypes  # only in a child that inherited something; costs others nothing

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


_instances: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()
_locks: weakref.WeakSet[ForkLock] = weakref.WeakSet()
_onces: weakref.WeakSet[OncePerProcess] = weakref.WeakSet()

#: Held around an import inside a function. A child that is forked while another thread of its parent imports a module
#: could never import it: it inherits the module's import lock, locked.
IMPORTS = ForkLock()


def _before_fork() -> None:
    for lock in list(_locks):
        lock._before_fork()


def _after_fork_in_parent() -> None:
    for lock in list(_locks):
        lock._after_fork_in_parent()


def _after_fork_in_child() -> None:
    for lock in list(_locks):
        lock._after_fork_in_child()
    for instance in list(_instances):
        instance._abandon_inherited()
    for once in list(_onces):
        once.pending = True


if hasattr(os, "register_at_fork"):  # where there is none, as on Windows, nothing forks
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
