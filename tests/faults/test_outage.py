"""Katalys is gone for a minute and for a day, by an injected clock: everything arrives, and few attempts are made."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from katalys_wsgi import Tracker, operations
from katalys_wsgi.delivery.policy import BACK_OFF_CAP
from katalys_wsgi.delivery.relay import POLL, Relay
from katalys_wsgi.outbox import State
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from katalys_wsgi.sandbox import Misbehaviour, Sandbox
from tests.support import LINK, Clock, make_conversion, make_environ

from .harness import accepted_orders, database

START = 1_800_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


class World:
    """A shop, a relay that looks every ``step`` seconds, and a clock that only the test moves."""

    def __init__(self, make_tracker: Callable[..., Tracker], options: dict[str, Any], sandbox: Sandbox) -> None:
        self.clock = Clock(START)
        self.sandbox = sandbox
        self.outbox = SQLiteOutbox(database(options), clock=self.clock)
        self.tracker = make_tracker(outbox=self.outbox, clock=self.clock, connect_timeout=0.5, deadline=1)
        chance = random.Random(1)  # noqa: S311 - the jitter is no secret
        self.relay = Relay(self.outbox, self.tracker.settings, clock=self.clock, chance=chance.random)
        self.recorded: list[str] = []
        self.failures = 0

    def record(self) -> None:
        self.recorded.append(str(len(self.recorded)))
        outcome = self.tracker.visit(make_environ(LINK)).record(make_conversion(self.recorded[-1])).outcome
        assert outcome.name == "RECORDED"

    def live(self, seconds: float, *, step: float, an_order_every: float | None = None) -> None:
        """Let that much time pass."""
        until, next_order = self.clock() + seconds, self.clock()
        while self.clock() < until:
            if an_order_every is not None and self.clock() >= next_order:
                self.record()
                next_order += an_order_every
            self.failures += self.relay.drain().postponed
            self.clock.advance(step)

    def live_until_delivered(self, *, step: float, patience: float) -> float:
        """Seconds until everything recorded has arrived."""
        began = self.clock()
        while self.outbox.statistics().pending and self.clock() - began < patience:
            self.live(step, step=step)
        return self.clock() - began

    @property
    def attempts(self) -> list[int]:
        """How often each row was tried."""
        return [entry.attempts for entry in self.outbox.entries(limit=10_000)]


@pytest.fixture
def world(make_tracker: Callable[..., Tracker], options: dict[str, Any], sandbox: Sandbox) -> World:
    return World(make_tracker, options, sandbox)


GONE = {"503": Misbehaviour.status(503), "refused": None, "404": Misbehaviour.status(404)}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("answer", GONE)
@pytest.mark.parametrize(
    ("outage", "step", "an_order_every", "patience"),
    [
        pytest.param(MINUTE, POLL, 2.0, 5 * MINUTE, id="60 s"),
        pytest.param(DAY, 30.0, 600.0, 2 * BACK_OFF_CAP, id="24 h"),
    ],
)
def test_everything_arrives_once_after_an_outage(
    outage: float, step: float, an_order_every: float, patience: float, answer: str, world: World, sandbox: Sandbox
) -> None:
    """Orders go on during the outage. Few attempts are made, and none of them by more than one row at a time."""
    world.live(10 * step, step=step, an_order_every=an_order_every)
    before = len(sandbox.collector.accepted)
    misbehaviour = GONE[answer]
    if misbehaviour is None:
        sandbox.stop()
    else:
        sandbox.collector.misbehave(misbehaviour)
    world.live(outage, step=step, an_order_every=an_order_every)
    failures = world.failures
    if misbehaviour is None:
        sandbox.start()
    sandbox.collector.behave()
    took = world.live_until_delivered(step=step, patience=patience)

    attempts = world.attempts
    print(
        f"\n{answer} for {outage:.0f} s: {len(world.recorded)} orders, {before} delivered before; {failures} attempts"
        f" failed meanwhile, {sum(attempts)} attempts in all, at most {max(attempts)} for one order;"
        f" the last arrived {took:.0f} s after the end"
    )
    assert Counter(accepted_orders(sandbox)) == Counter(world.recorded)
    assert {entry.state for entry in world.outbox.entries(limit=10_000)} == {"delivered"}
    assert failures < 20 + outage / HOUR * 4


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_an_outage_longer_than_give_up_after_leaves_dead_letters_that_can_be_revived(
    world: World, sandbox: Sandbox
) -> None:
    """After a week it is the operator's turn; nothing is dropped."""
    sandbox.collector.misbehave(Misbehaviour.status(503))
    for _ in range(3):
        world.record()
    world.live(9 * DAY, step=HOUR / 2)
    dead = world.outbox.entries(State.DEAD)
    sandbox.collector.behave()
    revived = [operations.revive(world.outbox, entry) for entry in dead]
    world.live_until_delivered(step=MINUTE, patience=3 * HOUR)

    assert len(dead) == 3
    assert revived == [True] * 3
    assert sorted(accepted_orders(sandbox)) == world.recorded


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("days", [-40, 40], ids=["back", "forward"])
def test_a_clock_that_jumps_during_an_outage_strands_nothing(days: int, world: World, sandbox: Sandbox) -> None:
    """A clock set back leaves rows due, and the endpoint paused, a month later than was meant."""
    sandbox.collector.misbehave(Misbehaviour.status(503))
    for _ in range(20):
        world.record()
    world.live(10 * MINUTE, step=POLL)
    world.clock.advance(days * DAY)
    sandbox.collector.behave()
    if days > 0:  # by the clock the rows are too old; nothing is given up before it was tried once more
        took = world.live_until_delivered(step=POLL, patience=HOUR)
    else:
        took = world.live_until_delivered(step=POLL, patience=BACK_OFF_CAP)

    print(f"\nclock set {days} days: all delivered after {took:.0f} s")
    assert sorted(accepted_orders(sandbox)) == sorted(world.recorded)
