"""The exception tree: what a shop can catch, and the evidence that each error carries."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest

import katalys_wsgi
from katalys_wsgi import errors
from katalys_wsgi.errors import (
    ConfigurationError,
    ForeignFile,
    InvalidConversion,
    InvalidToken,
    KatalysError,
    MiddlewareMissing,
    OutboxMissing,
    OutboxUnavailable,
    UnusableConnection,
    WrongCall,
)

EXAMPLES = [
    ConfigurationError(["site_id= is missing.", "secret_key= is missing."]),
    InvalidConversion("1001", ["sale_amount: is missing", "currency: is not a currency"]),
    InvalidToken("The visit's token cannot be read."),
    MiddlewareMissing("No middleware has seen this request."),
    OutboxUnavailable("The outbox cannot be used."),
    OutboxMissing("No outbox at /srv/shop/outbox.db."),
    ForeignFile("/etc/hosts is not an outbox."),
    UnusableConnection("connection= needs the outbox in the shop's database."),
    WrongCall("record() takes Conversion(order_id=..., ...), not dict."),
]


def class_name(error: Exception) -> str:
    return type(error).__name__


def through_pickle(error: Exception) -> object:
    arrived: object = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own pickle
    return arrived


def classes() -> list[str]:
    """The name of every exception that the module defines."""
    return [name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)]


@pytest.mark.parametrize("error", EXAMPLES, ids=class_name)
def test_everything_raised_on_purpose_is_a_katalys_error(error: Exception) -> None:
    assert isinstance(error, KatalysError)


@pytest.mark.parametrize(
    ("raised", "resembles"),
    [
        pytest.param(ConfigurationError, ValueError, id="ConfigurationError"),
        pytest.param(InvalidConversion, ValueError, id="InvalidConversion"),
        pytest.param(InvalidToken, ValueError, id="InvalidToken"),
        pytest.param(MiddlewareMissing, RuntimeError, id="MiddlewareMissing"),
        pytest.param(OutboxUnavailable, RuntimeError, id="OutboxUnavailable"),
        pytest.param(OutboxMissing, OutboxUnavailable, id="OutboxMissing"),
        pytest.param(ForeignFile, OutboxUnavailable, id="ForeignFile"),
        pytest.param(UnusableConnection, TypeError, id="UnusableConnection"),
        pytest.param(WrongCall, TypeError, id="WrongCall"),
    ],
)
def test_each_is_also_the_standard_exception_it_resembles(raised: type[Exception], resembles: type[Exception]) -> None:
    assert issubclass(raised, resembles)


@pytest.mark.parametrize("error", EXAMPLES, ids=class_name)
@pytest.mark.parametrize("travel", [through_pickle, copy.copy], ids=["pickle", "copy"])
def test_an_error_keeps_its_evidence_between_processes(error: Exception, travel: Callable[[Exception], object]) -> None:
    """Celery and multiprocessing pickle exceptions; one that takes more than its message would break there."""
    arrived = travel(error)

    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


def test_the_tests_above_know_every_exception() -> None:
    assert {"KatalysError", *map(class_name, EXAMPLES)} == set(classes())


def test_the_tree_in_the_docstring_names_every_exception() -> None:
    assert [name for name in classes() if name not in str(errors.__doc__)] == []


def test_a_shop_catches_each_by_a_public_name() -> None:
    assert [name for name in classes() if name not in katalys_wsgi.__all__] == []


def test_a_configuration_error_lists_every_problem_on_its_own_line() -> None:
    error = ConfigurationError(["site_id= is missing.", "wire= is 'xml'."])

    assert error.problems == ("site_id= is missing.", "wire= is 'xml'.")
    assert str(error) == "site_id= is missing.\nwire= is 'xml'."


def test_a_configuration_error_of_one_problem_takes_a_string() -> None:
    error = ConfigurationError("site_id= is missing.")

    assert error.problems == ("site_id= is missing.",)
    assert str(error) == "site_id= is missing."


def test_an_invalid_conversion_names_the_order_and_every_problem() -> None:
    error = InvalidConversion("1001", ["sale_amount: is missing", "currency: is not a currency"])

    assert error.order_id == "1001"
    assert error.problems == ("sale_amount: is missing", "currency: is not a currency")
    assert str(error) == "Order '1001' cannot be reported: sale_amount: is missing; currency: is not a currency"
