"""Ten thousand random steps of recording, relaying, failing and repairing: the promises of an outbox hold after each.

``OutboxMachine`` is written against the :class:`~katalys_wsgi.outbox.Archive` protocol; a store joins by a subclass
that makes one, in ``MACHINES``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from katalys_wsgi.conversion.postback import Kind, Postback
from katalys_wsgi.conversion.wire import business_part
from katalys_wsgi.outbox import Added, Archive, Change, Entry, Receipt, Verdict
from katalys_wsgi.outbox.entry import LONGEST_DELAY
from katalys_wsgi.outbox.memory import MemoryOutbox
from katalys_wsgi.outbox.sqlite import SQLiteOutbox
from tests.support import SITE_ID

STEPS = 10_000
LEASE = 60.0
ALL = 1_000

ORDER_IDS = st.sampled_from(["1", "2", "3"])
SETTLE, POSTPONE, BURY, RELEASE = "settle", "postpone", "bury", "release"

_ANSWERS = {
    SETTLE: Receipt(Verdict.DELIVERED, 204, confirmed=True),
    POSTPONE: Receipt(Verdict.RETRY, 503, "HTTP 503"),
    BURY: Receipt(Verdict.REFUSED, 400, "HTTP 400"),
}


@dataclass
class Row:
    """What the machine knows of a row, learned from what was done to it and never from the outbox."""

    postback: Postback
    state: str
    due_at: float
    finished_at: float | None = None
    attempts: int = 0
    token: str | None = None
    is_forgotten: bool = False


#: States of rows that are never sent unless recorded or revived anew.
GIVEN_UP = ("dead", "forgotten")


class OutboxMachine(RuleBasedStateMachine):
    """An outbox, a clock that jumps, relays that fail and die, and an operator who repairs."""

    steps: ClassVar[int] = 0
    claims_of_updates: ClassVar[int] = 0
    held = Bundle("held")

    def make_outbox(self, clock: Callable[[], float]) -> Archive:
        """A new, empty outbox that takes the time from ``clock``."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.now = 1_800_000_000.0
        self.rows: dict[int, Row] = {}  # by id; ids are never reused, so they are the order of recording
        self.tokens: set[str] = set()
        self.delivered: Counter[str] = Counter()
        self.outbox = self.make_outbox(lambda: self.now)
        self.outbox.claim(1, 1.0)  # makes it: a look at it does not

    def teardown(self) -> None:
        if hasattr(self, "outbox"):
            self.outbox.close()

    # --- the shop ---

    @rule(order_id=ORDER_IDS, amount=st.sampled_from(["10.00", "20.00"]), is_valid=st.booleans())
    def record_conversion(self, order_id: str, amount: str, is_valid: bool) -> None:
        problems = [] if is_valid else ["email_address: is missing"]
        self._record(self._postback(order_id, Kind.CONVERSION, sale_amount=amount), problems)

    @rule(order_id=ORDER_IDS, status=st.sampled_from(["paid", "shipped", "refunded"]))
    def record_update(self, order_id: str, status: str) -> None:
        self._record(self._postback(order_id, Kind.UPDATE, order_status=status), [])

    def _record(self, postback: Postback, problems: list[str]) -> None:
        known = self._row_of(postback.key)
        added = self.outbox.add(postback, problems=problems)
        if known is None:
            assert added is Added.NEW
            newest = self.outbox.history(postback.order_id)[-1].id
            assert newest > max(self.rows, default=0)
            self.rows[newest] = Row(postback, "pending", self.now)
            if problems:
                self._finish(self.rows[newest], "dead")
            return
        is_same = known.postback.payload == postback.payload
        gives_way = known.state in GIVEN_UP and not problems and not (is_same and known.attempts)
        assert added is (Added.REPLACED if gives_way else Added.SAME if is_same else Added.DIFFERENT)
        if gives_way:
            self._revive(known, postback)

    # --- relays ---

    @rule(target=held, limit=st.sampled_from([1, 2, 3, ALL]))
    def claim(self, limit: int) -> Any:
        eligible = {row_id for row_id in self.rows if self._is_eligible(row_id)}
        entries = self.outbox.claim(limit, LEASE)
        claimed = [entry.id for entry in entries]
        assert len(set(claimed)) == len(claimed) == min(limit, len(eligible))
        assert set(claimed) <= eligible
        assert len({entry.lease_token for entry in entries}) <= 1
        for entry in entries:
            row = self.rows[entry.id]
            assert entry.attempts == row.attempts + 1
            assert entry.payload == row.postback.payload
            assert entry.lease_token
            assert entry.lease_token not in self.tokens
            assert entry.leased_until == pytest.approx(self.now + LEASE)
            if entry.kind == Kind.UPDATE:
                type(self).claims_of_updates += 1
                assert all(older.state != "pending" for older in self._older_rows(entry.id))
                assert all(older.state == "delivered" for older in self._older_rows(entry.id, Kind.CONVERSION))
            row.attempts, row.token, row.due_at = entry.attempts, entry.lease_token, self.now + LEASE
        self.tokens.update(entry.lease_token or "" for entry in entries)
        return multiple(*entries)

    @rule(entry=consumes(held), how=st.sampled_from([SETTLE, SETTLE, POSTPONE, BURY, RELEASE]), delay=st.integers(0, 9))
    def report(self, entry: Entry, how: str, delay: int) -> None:
        """A relay reports what came of a row, perhaps long after another one has claimed it."""
        self._report([(entry, how)], delay * 1000.0)

    @rule(first=consumes(held), second=consumes(held), how=st.sampled_from([SETTLE, POSTPONE]))
    def report_two_at_once(self, first: Entry, second: Entry, how: str) -> None:
        self._report([(first, how), (second, SETTLE)], 10.0)

    @rule(entry=held)
    def report_twice(self, entry: Entry) -> None:
        self._report([(entry, POSTPONE)], 5.0)
        assert self.outbox.apply([Change.settle(entry, _ANSWERS[SETTLE])]) == 0

    @rule(entry=consumes(held))
    def die_with_a_claimed_row(self, entry: Entry) -> None:
        """Nothing is reported; the lease runs out some day."""

    def _report(self, reports: list[tuple[Entry, str]], delay: float) -> None:
        rows = [self.rows.get(entry.id) for entry, _ in reports]
        ours = [
            row is not None and row.token == entry.lease_token for row, (entry, _) in zip(rows, reports, strict=True)
        ]
        assert self.outbox.apply([self._change(entry, how, delay) for entry, how in reports]) == sum(ours)
        for row, is_ours, (entry, how) in zip(rows, ours, reports, strict=True):
            if row is not None and is_ours:
                self._have_reported(row, entry, how, delay)

    def _have_reported(self, row: Row, entry: Entry, how: str, delay: float) -> None:
        row.token, row.due_at = None, self.now
        if how == SETTLE:
            if entry.kind == Kind.UPDATE:
                assert all(older.state == "delivered" for older in self._older_rows(entry.id, Kind.CONVERSION))
            self._finish(row, "delivered")
        elif how == BURY:
            self._finish(row, "dead")
        elif how == RELEASE:
            row.attempts -= 1
        else:
            row.due_at = self.now + delay

    @staticmethod
    def _change(entry: Entry, how: str, delay: float) -> Change:
        if how == SETTLE:
            return Change.settle(entry, _ANSWERS[how])
        if how == POSTPONE:
            return Change.postpone(entry, _ANSWERS[how], delay)
        return Change.bury(entry, _ANSWERS[how]) if how == BURY else Change.release(entry)

    # --- time ---

    @rule(seconds=st.sampled_from([1, 59, 61, 3600, 10_000]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(days=st.sampled_from([-30, 30]))
    def jump(self, days: int) -> None:
        """The clock is set."""
        self.now += days * 86400

    # --- the operator ---

    @rule(order_id=ORDER_IDS, amount=st.sampled_from(["10.00", "30.00"]))
    def revive_what_is_dead(self, order_id: str, amount: str) -> None:
        for entry in self.outbox.history(order_id):
            row = self.rows[entry.id]
            changed = {"sale_amount": amount} if entry.kind == Kind.CONVERSION else {"order_status": "paid"}
            postback = self._postback(order_id, entry.kind, **changed)
            clash = self._row_of(postback.key)
            may = row.state == "dead" and (clash is None or clash is row)
            assert self.outbox.revive(entry, postback) == may
            if may:
                self._revive(row, postback)

    @rule(order_id=ORDER_IDS)
    def forget_an_order(self, order_id: str) -> None:
        entries = [entry for entry in self.outbox.history(order_id) if entry.payload is not None]
        assert self.outbox.forget(entries) == len(entries)
        for entry in entries:
            row = self.rows[entry.id]
            row.is_forgotten = True
            if row.state != "delivered":
                self._finish(row, "forgotten")
                row.token = None

    @rule(age=st.sampled_from([0, 5_000, 40 * 86400]))
    def prune_what_is_old(self, age: int) -> None:
        before = self.now - age
        is_old = {row_id: (row.finished_at or before) < before for row_id, row in self.rows.items()}
        hopeless = {row.postback.order_id for row_id, row in self.rows.items() if is_old[row_id]
                    and row.state in GIVEN_UP and row.postback.kind == Kind.CONVERSION}  # fmt: skip
        gone = [
            row_id
            for row_id, row in self.rows.items()
            if is_old[row_id]
            or (row.state == "pending" and row.postback.kind == Kind.UPDATE and row.postback.order_id in hopeless)
        ]
        assert self.outbox.prune(before) == len(gone)
        for row_id in gone:
            del self.rows[row_id]

    # --- what always holds ---

    @invariant()
    def the_outbox_is_as_it_should_be(self) -> None:
        type(self).steps += 1
        entries = self.outbox.entries(limit=ALL)
        assert {entry.id: entry.state for entry in entries} == {row_id: row.state for row_id, row in self.rows.items()}
        assert len({entry.key for entry in entries}) == len(entries)
        for entry in entries:
            row = self.rows[entry.id]
            assert (entry.key, entry.attempts, entry.lease_token) == (row.postback.key, row.attempts, row.token)
            kept = business_part(row.postback.payload) if row.state == "delivered" else row.postback.payload
            assert entry.payload == (None if row.is_forgotten else kept)
            assert (entry.finished_at is None) == (entry.state == "pending")

    @invariant()
    def what_it_counts_is_what_there_is(self) -> None:
        states = Counter(row.state for row in self.rows.values())
        statistics = self.outbox.statistics()
        assert (statistics.pending, statistics.dead, statistics.delivered, statistics.forgotten) == (
            states["pending"], states["dead"], states["delivered"], states["forgotten"],
        )  # fmt: skip

    # --- what the machine knows ---

    @staticmethod
    def _postback(order_id: str, kind: Kind, **fields: str) -> Postback:
        return Postback.from_fields({"site_id": SITE_ID, "order_id": order_id, **fields}, kind)

    def _row_of(self, key: str) -> Row | None:
        return next((row for row in self.rows.values() if row.postback.key == key), None)

    def _older_rows(self, row_id: int, kind: Kind | None = None) -> list[Row]:
        """The rows of the same order that were recorded before."""
        order_id = self.rows[row_id].postback.order_id
        return [
            row
            for other_id, row in self.rows.items()
            if other_id < row_id and row.postback.order_id == order_id and kind in (None, row.postback.kind)
        ]

    def _is_eligible(self, row_id: int) -> bool:
        row = self.rows[row_id]
        is_due = row.due_at <= self.now or row.due_at > self.now + LONGEST_DELAY
        return row.state == "pending" and is_due and not any(map(self._holds_back, self._older_rows(row_id)))

    @staticmethod
    def _holds_back(older: Row) -> bool:
        return older.state == "pending" or (older.state in GIVEN_UP and older.postback.kind == Kind.CONVERSION)

    def _finish(self, row: Row, state: str) -> None:
        row.state, row.finished_at = state, self.now

    def _revive(self, row: Row, postback: Postback) -> None:
        fresh = Row(postback, "pending", self.now)
        row.__dict__.update(replace(fresh).__dict__)


class SQLiteMachine(OutboxMachine):
    """The outbox in a file; in memory where there is such a folder, because ten thousand steps sync often."""

    def make_outbox(self, clock: Callable[[], float]) -> Archive:
        memory = Path("/dev/shm")  # noqa: S108 - a new folder in it
        self.folder = Path(tempfile.mkdtemp(prefix="katalys-", dir=memory if memory.is_dir() else None))
        return SQLiteOutbox(self.folder / "outbox.db", clock=clock)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


class MemoryMachine(OutboxMachine):
    """The outbox in memory."""

    def make_outbox(self, clock: Callable[[], float]) -> Archive:
        return MemoryOutbox(clock=clock)


MACHINES = [pytest.param(SQLiteMachine, id="SQLite"), pytest.param(MemoryMachine, id="memory")]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("machine", MACHINES)
def test_no_interleaving_breaks_the_promises(machine: type[OutboxMachine]) -> None:
    """No update before its conversion, no row claimed by two, attempts counted, keys unique, nothing stuck."""
    machine.steps = machine.claims_of_updates = 0
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=STEPS // 100 * 3 // 2,  # more than enough: a run may be short, or have few updates
            stateful_step_count=100,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

    print(f"\n{machine.__name__}: {machine.steps} steps, {machine.claims_of_updates} claims of updates")
    assert machine.steps >= STEPS
    assert machine.claims_of_updates > STEPS / 100
