"""One value per process: what was made before a fork is neither used nor closed after it."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest

from katalys_wsgi.process import PerProcess


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


# --- fork ---

# A process of their own, without threads: what a fork inherits is then what the script made, on any Python.
PROLOGUE = """
import gc, os, sys, threading
from katalys_wsgi.process import PerProcess

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
    """The lines that ``script`` and its children print, having all left with 0."""
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
    """Without the care of PerProcess the child does close it; else the test above would prove nothing."""
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
