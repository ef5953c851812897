"""The exception tree: what a shop can catch, and what each fault can tell."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from katalys_wsgi import errors
from katalys_wsgi.errors import (
    ConfigurationError,
    InvalidConversion,
    InvalidToken,
    KatalysError,
    OutboxUnavailable,
)

FAULTS = [
    ConfigurationError(["site_id= is missing.", "secret_key= is missing."]),
    InvalidConversion("1001", ["sale_amount: is missing", "currency: is no currency"]),
    InvalidToken("The visit's token cannot be read."),
    OutboxUnavailable("The outbox cannot be used."),
]


def of_its_class(fault: Exception) -> str:
    return type(fault).__name__


@pytest.mark.parametrize("fault", FAULTS, ids=of_its_class)
def test_everything_raised_on_purpose_is_a_katalys_error(fault: Exception) -> None:
    assert isinstance(fault, KatalysError)


@pytest.mark.parametrize(
    ("raised", "resembles"),
    [
        pytest.param(ConfigurationError, ValueError, id="ConfigurationError"),
        pytest.param(InvalidConversion, ValueError, id="InvalidConversion"),
        pytest.param(InvalidToken, ValueError, id="InvalidToken"),
        pytest.param(OutboxUnavailable, RuntimeError, id="OutboxUnavailable"),
    ],
)
def test_each_is_also_the_standard_exception_it_resembles(raised: type, resembles: type) -> None:
    assert issubclass(raised, resembles)


@pytest.mark.parametrize("fault", FAULTS, ids=of_its_class)
@pytest.mark.parametrize(
    "travel",
    [lambda fault: pickle.loads(pickle.dumps(fault)), copy.copy],  # noqa: S301 - our own pickle
    ids=["pickle", "copy"],
)
def test_an_error_keeps_its_evidence_between_processes(fault: Exception, travel: object) -> None:
    """Celery and multiprocessing pickle exceptions; one that takes more than its message would break there."""
    arrived = travel(fault)  # type: ignore[operator]

    assert type(arrived) is type(fault)
    assert str(arrived) == str(fault)
    assert vars(arrived) == vars(fault)


def test_the_tree_in_the_docstring_names_every_exception() -> None:
    classes = [name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)]

    assert classes
    assert [name for name in classes if name not in str(errors.__doc__)] == []


def test_a_configuration_error_lists_every_fault_on_its_own_line() -> None:
    fault = ConfigurationError(["site_id= is missing.", "wire= is 'xml'."])

    assert fault.problems == ("site_id= is missing.", "wire= is 'xml'.")
    assert str(fault) == "site_id= is missing.\nwire= is 'xml'."


def test_a_configuration_error_of_one_fault_takes_a_text() -> None:
    fault = ConfigurationError("site_id= is missing.")

    assert fault.problems == ("site_id= is missing.",)
    assert str(fault) == "site_id= is missing."


def test_an_invalid_conversion_names_the_order_and_every_problem() -> None:
    fault = InvalidConversion("1001", ["sale_amount: is missing", "currency: is no currency"])

    assert fault.order_id == "1001"
    assert fault.problems == ("sale_amount: is missing", "currency: is no currency")
    assert str(fault) == "Order '1001' cannot be reported: sale_amount: is missing; currency: is no currency"
