"""A visit: what it says of a shopper, that nothing can be set on it, and that its verbs keep how it was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from datetime import datetime, timezone
from typing import Any

import pytest

from katalys_wsgi import (
    Click,
    InvalidConversion,
    InvalidToken,
    OrderUpdate,
    Outcome,
    Record,
    Tracker,
    Visit,
)
from katalys_wsgi.visit import Defer, Verbs

from .support import BUYER_AGENT, BUYER_IP, LINK, MakeTracker, arrive, make_conversion, make_environ, rows

CLICK = Click("1234abcd", "1234", "5678", datetime(2026, 11, 22, tzinfo=timezone.utc))
RECORD = Record(Outcome.RECORDED, "key")
PAID = OrderUpdate("1001", order_status="paid")


def make_visit(calls: list[tuple[object, ...]] | None = None, **changes: Any) -> Visit:
    """A visit whose verbs note their arguments in ``calls``."""
    noted: list[tuple[object, ...]] = [] if calls is None else calls

    def record(*arguments: object) -> Record:
        noted.append(arguments)
        return RECORD

    def token(*arguments: object) -> str:
        noted.append(arguments)
        return "token"

    def resume(*arguments: object) -> Visit:
        noted.append(arguments)
        return make_visit(user_agent="resumed")

    verbs = Verbs(record, record, token, resume)
    return Visit(**{"click": CLICK, "client_ip": BUYER_IP, "user_agent": BUYER_AGENT, "verbs": verbs, **changes})


class TestFrozen:
    @pytest.mark.parametrize("name", [field.name for field in fields(Visit)])
    def test_nothing_can_be_set_on_it(self, name: str) -> None:
        """Strictness and transaction are given when it is made: set later, they would miss what it has handed out."""
        visit = make_visit()
        before = getattr(visit, name)

        with pytest.raises(FrozenInstanceError):
            setattr(visit, name, before)
        assert getattr(visit, name) is before

    def test_a_records_answer_is_frozen_too(self) -> None:
        with pytest.raises(FrozenInstanceError):
            RECORD.outcome = Outcome.LOST  # type: ignore[misc]

    def test_two_visits_of_one_request_are_equal_whatever_tracker_made_them(self) -> None:
        assert make_visit() == make_visit()
        assert hash(make_visit()) == hash(make_visit())
        assert make_visit() != make_visit(click=None)

    def test_its_repr_names_neither_the_address_nor_the_user_agent(self) -> None:
        """A repr ends in logs and error reports."""
        text = repr(make_visit())

        assert "1234abcd" in text
        assert [value for value in (BUYER_IP, BUYER_AGENT) if value in text] == []


class TestVerbs:
    """Each passes the visit itself on, so that whoever does the work knows how it was made."""

    def test_record(self) -> None:
        calls: list[tuple[object, ...]] = []
        visit, conversion, connection = make_visit(calls), make_conversion(), object()

        assert visit.record(conversion) is RECORD
        assert visit.record(conversion, connection=connection) is RECORD
        assert calls == [(visit, conversion, None), (visit, conversion, connection)]

    def test_record_update(self) -> None:
        calls: list[tuple[object, ...]] = []
        visit, connection = make_visit(calls), object()

        assert visit.record_update(PAID) is RECORD
        assert visit.record_update(PAID, connection=connection) is RECORD
        assert calls == [(visit, PAID, None), (visit, PAID, connection)]

    def test_token(self) -> None:
        calls: list[tuple[object, ...]] = []
        visit = make_visit(calls)

        assert visit.token() == "token"
        assert calls == [(visit,)]

    def test_resume(self) -> None:
        calls: list[tuple[object, ...]] = []
        visit = make_visit(calls)

        assert visit.resume("token").user_agent == "resumed"
        assert calls == [(visit, "token")]


#: Each makes a visit in another way, and passes ``strict`` and ``defer`` on.
MakeVisit = Callable[..., Visit]
WAYS = [
    pytest.param(lambda tracker, **how: tracker.visit(make_environ(LINK), **how), id="visit"),
    pytest.param(lambda tracker, **how: tracker.resume(arrive(tracker).token(), **how), id="tracker.resume"),
    pytest.param(
        lambda tracker, **how: tracker.visit(make_environ(), **how).resume(arrive(tracker).token()), id="visit.resume"
    ),
    pytest.param(
        lambda tracker, **how: tracker.resume(arrive(tracker).token(), **how).resume(arrive(tracker).token()),
        id="resumed twice",
    ),
]

#: Setting, argument, and what comes of it.
STRICTNESS = [
    pytest.param(False, None, False, id="neither"),
    pytest.param(True, None, True, id="the setting"),
    pytest.param(False, True, True, id="the argument"),
    pytest.param(True, False, False, id="the argument against the setting"),
]


@pytest.mark.parametrize("make", WAYS)
class TestHowItWasMade:
    """``strict`` and ``defer`` mean the same through each way to a visit, and reach each of its verbs."""

    @pytest.mark.parametrize(("setting", "argument", "strict"), STRICTNESS)
    def test_strict_reaches_record(
        self, make_tracker: MakeTracker, make: MakeVisit, setting: bool, argument: bool | None, strict: bool
    ) -> None:
        visit = make(make_tracker(strict=setting), strict=argument)
        invalid = make_conversion(sale_amount="12,50")

        assert visit.strict is strict
        if strict:
            with pytest.raises(InvalidConversion):
                visit.record(invalid)
        else:
            assert visit.record(invalid).outcome is Outcome.INVALID

    @pytest.mark.parametrize(("setting", "argument", "strict"), STRICTNESS)
    def test_strict_reaches_record_update(
        self, make_tracker: MakeTracker, make: MakeVisit, setting: bool, argument: bool | None, strict: bool
    ) -> None:
        visit = make(make_tracker(strict=setting, conversion_type="offline_conv"), strict=argument)

        if strict:
            with pytest.raises(InvalidConversion):
                visit.record_update(OrderUpdate("1001"))
        else:
            assert visit.record_update(OrderUpdate("1001")).outcome is Outcome.INVALID

    @pytest.mark.parametrize(("setting", "argument", "strict"), STRICTNESS)
    def test_strict_reaches_resume(
        self, make_tracker: MakeTracker, make: MakeVisit, setting: bool, argument: bool | None, strict: bool
    ) -> None:
        visit = make(make_tracker(strict=setting), strict=argument)

        assert visit.resume(visit.token()).strict is strict
        if strict:
            with pytest.raises(InvalidToken):
                visit.resume("nonsense")
        else:
            assert visit.resume("nonsense").click is None

    def test_defer_reaches_record(self, tracker: Tracker, make: MakeVisit) -> None:
        waiting: list[Callable[[], Record]] = []
        record = make(tracker, defer=waiting.append).record(make_conversion())

        assert record.outcome is Outcome.DEFERRED
        assert rows(tracker) == []
        assert [commit().outcome for commit in waiting] == [Outcome.RECORDED]

    def test_defer_reaches_record_update(self, tracker: Tracker, make: MakeVisit) -> None:
        """A refund must not survive a transaction that is rolled back."""
        arrive(tracker).record(make_conversion())
        waiting: list[Callable[[], Record]] = []
        record = make(tracker, defer=waiting.append).record_update(PAID)

        assert record.outcome is Outcome.DEFERRED
        assert rows(tracker) == [("conversion", "pending")]
        assert [commit().outcome for commit in waiting] == [Outcome.RECORDED]

    def test_defer_reaches_resume(self, tracker: Tracker, make: MakeVisit) -> None:
        waiting: list[Callable[[], Record]] = []
        defer: Defer = waiting.append

        assert make(tracker, defer=defer).resume("nonsense").defer is defer


class TestOutsideARequest:
    """``Tracker.record_update`` takes the same two, and they mean the same."""

    @pytest.mark.parametrize(("setting", "argument", "strict"), STRICTNESS)
    def test_strict(self, make_tracker: MakeTracker, setting: bool, argument: bool | None, strict: bool) -> None:
        tracker = make_tracker(strict=setting, conversion_type="offline_conv")

        if strict:
            with pytest.raises(InvalidConversion):
                tracker.record_update(OrderUpdate("1001"), strict=argument)
        else:
            assert tracker.record_update(OrderUpdate("1001"), strict=argument).outcome is Outcome.INVALID

    def test_defer(self, make_tracker: MakeTracker) -> None:
        tracker = make_tracker(conversion_type="offline_conv")
        waiting: list[Callable[[], Record]] = []

        assert tracker.record_update(PAID, defer=waiting.append).outcome is Outcome.DEFERRED
        assert rows(tracker) == []
        assert [commit().outcome for commit in waiting] == [Outcome.RECORDED]


class TestToken:
    """Payment gateways and webhooks bring no cookie; the order does."""

    @pytest.mark.parametrize(
        ("changes", "outcome"),
        [
            pytest.param({}, Outcome.RECORDED, id="all"),
            pytest.param({"query": ""}, Outcome.NO_CLICK, id="without a click"),
            pytest.param({"REMOTE_ADDR": ""}, Outcome.RECORDED, id="without an address"),
            pytest.param({"HTTP_USER_AGENT": "Grüße 😀".encode().decode("latin-1")}, Outcome.RECORDED, id="odd agent"),
        ],
    )
    def test_the_visit_comes_back(self, tracker: Tracker, changes: dict[str, Any], outcome: Outcome) -> None:
        visit = arrive(tracker, **changes)

        resumed = tracker.resume(visit.token())

        assert (resumed.client_ip, resumed.user_agent) == (visit.client_ip, visit.user_agent)
        assert ids(resumed) == ids(visit)
        assert resumed.record(make_conversion()).outcome is outcome

    def test_a_visit_resumes_another_one_as_the_tracker_does(self, tracker: Tracker) -> None:
        """The gateway's return brings a cookie, or another shopper's; the token decides."""
        token = arrive(tracker).token()
        gateway = tracker.visit(make_environ(REMOTE_ADDR="198.51.100.9"))

        resumed = gateway.resume(token)

        assert gateway.click is None
        assert resumed == tracker.resume(token)
        assert resumed.client_ip == BUYER_IP

    def test_a_refusal_is_remembered(self, make_tracker: MakeTracker) -> None:
        token = arrive(make_tracker(consent=lambda _environ: False)).token()

        assert make_tracker().resume(token).record(make_conversion()).outcome is Outcome.NO_CONSENT


def ids(visit: Visit) -> tuple[str | None, ...]:
    click = visit.click
    return (click.transaction_id, click.offer_id, click.aff_id) if click else ()
