"""What belongs to one process: values made before a fork are neither used nor closed after it, locks are free."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from pathlib import Path

import pytest

from katalys_wsgi.process import IMPORTS, ForkLock, PerProcess

from .support import Stopwatch


class Thing:
    """Something that belongs to a process."""


def test_a_value_is_made_at_first_use_and_kept() -> None:
    made: list[Thing] = []

    def make() -> Thing:
        made.append(Thing())
        return made[-1]

    things = PerProcess(make)
    before = list(made)
    values = [things.get() for _ in range(3)]

    assert before == []
    assert values == made * 3


def test_peeking_makes_nothing() -> None:
    things = PerProcess(Thing)

    before = things.peek()
    thing = things.get()

    assert before is None
    assert things.peek() is thing


def test_a_value_that_is_false_is_kept_too() -> None:
    lists: PerProcess[list[int]] = PerProcess(list)

    assert lists.get() is lists.get()


def test_what_cannot_be_made_is_tried_again_at_the_next_use() -> None:
    attempts: list[int] = []

    def make() -> Thing:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError
        return Thing()

    things = PerProcess(make)

    with pytest.raises(OSError):  # noqa: PT011 - our own
        things.get()
    assert isinstance(things.get(), Thing)


def test_threads_that_race_for_the_first_use_get_one_value() -> None:
    number = 8
    together = threading.Barrier(number)

    def make() -> Thing:
        together.wait(timeout=10)  # all of them are making one
        return Thing()

    things = PerProcess(make)
    got: list[Thing] = []
    threads = [threading.Thread(target=lambda: got.append(things.get())) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)

    assert len(got) == number
    assert set(got) == {things.get()}


def test_a_value_goes_with_its_owner() -> None:
    """A tracker that is thrown away leaves nothing behind."""
    things = PerProcess(Thing)
    value = weakref.ref(things.get())

    del things
    gc.collect()

    assert value() is None


# --- a lock that a fork waits for ---


def test_a_lock_keeps_others_out_until_it_is_released() -> None:
    lock = ForkLock()
    with lock:
        inside = lock.acquire(timeout=0)
    outside = lock.acquire(timeout=0)
    lock.release()

    assert (inside, outside) == (False, True)


def test_a_lock_is_released_after_an_error() -> None:
    lock = ForkLock()

    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    assert lock.acquire(timeout=0)
    lock.release()


def test_acquiring_waits_as_long_as_it_is_told_and_no_longer() -> None:
    lock = ForkLock()
    with lock, Stopwatch() as watch:
        acquired = lock.acquire(timeout=0.05)

    assert acquired is False
    assert 0.04 < watch.seconds < 2


def test_without_a_limit_it_waits_for_the_release() -> None:
    lock = ForkLock()
    order: list[str] = []

    def other() -> None:
        lock.acquire()
        order.append("the other's")
        lock.release()

    thread = threading.Thread(target=other, daemon=True)
    with lock:
        thread.start()
        time.sleep(0.05)
        order.append("mine")
    thread.join(timeout=10)

    assert order == ["mine", "the other's"]


def test_imports_share_one_lock() -> None:
    assert isinstance(IMPORTS, ForkLock)


# --- fork ---

# A process of their own, without threads: what a fork inherits is then what the script made, on any Python.
PROLOGUE = """
import gc, os, signal, sys, threading, time, warnings
from katalys_wsgi import process
from katalys_wsgi.process import ForkLock, PerProcess

signal.alarm(20)  # a lock that nobody unlocks must not outlive the test

class Connection:
    def __init__(self):
        self.pid = os.getpid()
    def __del__(self):
        if os.getpid() != self.pid:
            say("closed an inherited connection")

def say(text):
    os.write(1, (text + "\\n").encode())

def check(promise, text):
    say(("kept: " if promise else "BROKEN: ") + text)

def wait_for(pid):
    check(os.waitpid(pid, 0)[1] == 0, "the child left with 0")

connections = PerProcess(Connection)
"""


def run(script: str) -> list[str]:
    """The lines that ``script`` prints, and its children, having left with 0 and no word on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROLOGUE + textwrap.dedent(script)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.splitlines()


@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)", "pass"], ids=["at-once", "by-exit", "by-falling-off"])
def test_a_child_gets_a_value_of_its_own_and_leaves_the_inherited_one_alone(leave: str) -> None:
    """Closing an inherited SQLite connection could roll back what the parent is just writing.

    The child that leaves normally destroys every object it has: the inherited one must not be among them.
    """
    said = run(f"""
        ours = connections.get().pid
        pid = os.fork()
        if pid == 0:
            check(connections.peek() is None, "the child starts without one")
            check(connections.get().pid == os.getpid() != ours, "the child makes its own")
            check(connections.get() is connections.get(), "the child keeps its own")
            gc.collect()
            {leave}
        else:
            wait_for(pid)
            check(connections.peek().pid == ours == os.getpid(), "the parent keeps its own")
    """)

    assert said == [
        "kept: the child starts without one",
        "kept: the child makes its own",
        "kept: the child keeps its own",
        "kept: the child left with 0",
        "kept: the parent keeps its own",
    ]


def test_the_probe_notices_a_connection_that_is_closed_in_a_child() -> None:
    """Without PerProcess the child does close it; else the test above would prove nothing."""
    said = run("""
        connection = Connection()
        pid = os.fork()
        if pid != 0:
            wait_for(pid)
    """)

    assert said == ["closed an inherited connection", "kept: the child left with 0"]


def test_a_child_that_never_uses_it_leaves_the_inherited_value_alone() -> None:
    said = run("""
        connections.get()
        pid = os.fork()
        if pid != 0:
            wait_for(pid)
    """)

    assert said == ["kept: the child left with 0"]


def test_a_child_may_throw_the_owner_away() -> None:
    said = run("""
        connections.get()
        pid = os.fork()
        if pid == 0:
            del connections
            gc.collect()
            sys.exit(0)
        wait_for(pid)
    """)

    assert said == ["kept: the child left with 0"]


def test_a_grandchild_inherits_from_nobody() -> None:
    said = run("""
        connections.get()
        pid = os.fork()
        if pid == 0:
            connections.get()
            grandchild = os.fork()
            if grandchild == 0:
                check(connections.peek() is None, "the grandchild starts without one")
                check(connections.get().pid == os.getpid(), "the grandchild makes its own")
            else:
                wait_for(grandchild)
            sys.exit(0)
        wait_for(pid)
    """)

    assert said == [
        "kept: the grandchild starts without one",
        "kept: the grandchild makes its own",
        "kept: the child left with 0",
        "kept: the child left with 0",
    ]


def test_a_value_that_was_not_made_before_the_fork_is_made_once_on_each_side() -> None:
    said = run("""
        pid = os.fork()
        check(connections.get().pid == os.getpid(), "made after the fork")
        if pid != 0:
            wait_for(pid)
    """)

    assert sorted(said) == ["kept: made after the fork", "kept: made after the fork", "kept: the child left with 0"]


def test_each_side_closes_its_own_value() -> None:
    """Only what is inherited is left alone."""
    said = run("""
        class Loud(Connection):
            def __del__(self):
                say("closed by its own process" if os.getpid() == self.pid else "closed by another")

        loud = PerProcess(Loud)
        loud.get()
        pid = os.fork()
        if pid == 0:
            loud.get()
            del loud
            sys.exit(0)
        wait_for(pid)
        del loud
    """)

    assert said == ["closed by its own process", "kept: the child left with 0", "closed by its own process"]


# Python 3.12 warns of a fork of a process with threads, which is the point here.
THREADS = """
warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
lock = ForkLock()
holds, let_go = threading.Event(), threading.Event()

def hold():
    with lock:
        holds.set()
        let_go.wait(timeout=10)
        say("released")

thread = threading.Thread(target=hold, daemon=True)
thread.start()
holds.wait(timeout=10)
"""


def test_a_fork_waits_until_the_lock_is_free() -> None:
    """A child inherits what is locked, and not the thread that would unlock it."""
    said = run(
        THREADS
        + textwrap.dedent("""
            threading.Timer(0.2, let_go.set).start()
            pid = os.fork()
            if pid == 0:
                check(lock.acquire(timeout=0), "free in the child")
                os._exit(0)
            check(lock.acquire(timeout=0), "free in the parent")
            lock.release()
            wait_for(pid)
        """)
    )

    assert said[0] == "released"
    assert sorted(said[1:]) == ["kept: free in the child", "kept: free in the parent", "kept: the child left with 0"]


def test_a_fork_does_not_wait_without_end_and_the_child_has_a_free_lock() -> None:
    said = run(
        THREADS
        + textwrap.dedent("""
            process.PATIENCE_AT_FORK = 0.1
            pid = os.fork()
            if pid == 0:
                check(lock.acquire(timeout=0), "free in the child")
                check(not lock.acquire(timeout=0), "a lock in the child")
                lock.release()
                check(lock.acquire(timeout=0), "free again in the child")
                sys.exit(0)
            wait_for(pid)
            check(not lock.acquire(timeout=0), "still the thread's in the parent")
            let_go.set()
            thread.join()
            check(lock.acquire(timeout=0), "free in the parent")
        """)
    )

    assert said == [
        "kept: free in the child",
        "kept: a lock in the child",
        "kept: free again in the child",
        "kept: the child left with 0",
        "kept: still the thread's in the parent",
        "released",
        "kept: free in the parent",
    ]


def test_a_child_born_during_an_import_can_import_the_same(tmp_path: Path) -> None:
    """It would inherit the module's import lock, locked."""
    (tmp_path / "slow.py").write_text("import __main__, time\n__main__.begun.set()\ntime.sleep(0.3)\n")
    said = run(f"""
        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
        sys.path.insert(0, {str(tmp_path)!r})
        begun = threading.Event()

        def load():
            with process.IMPORTS:
                import slow

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        begun.wait(timeout=10)
        pid = os.fork()
        if pid == 0:
            signal.alarm(5)
            import slow
            say("imported")
            sys.exit(0)
        wait_for(pid)
    """)

    assert said == ["imported", "kept: the child left with 0"]


def test_where_there_is_no_fork_it_works_the_same() -> None:
    """As on Windows: nothing to hook into, and nothing to be inherited."""
    said = run("""
        import importlib
        del os.register_at_fork
        importlib.reload(process)
        things = process.PerProcess(Connection)
        check(things.get() is things.get(), "one value")
        with process.ForkLock() as lock:
            say("locked")
    """)

    assert said == ["kept: one value", "locked"]
