"""Exceptions: everything this package raises on purpose.

::

    KatalysError
    ├── ConfigurationError (ValueError)      a setting is missing or makes no sense; raised at start-up only
    ├── InvalidConversion  (ValueError)      an order cannot be reported as it stands; strict only
    ├── InvalidToken       (ValueError)      a visit's token cannot be read; strict only
    ├── MiddlewareMissing  (RuntimeError)    no middleware has seen the request; strict only
    ├── OutboxUnavailable  (RuntimeError)    the outbox cannot be written or read
    │   ├── OutboxMissing                    there is no outbox, and only recording and delivery make one
    │   └── ForeignFile                      the file is not an outbox of this package; it is left alone
    ├── UnusableConnection (TypeError)       the outbox cannot join the connection it was given; strict only
    └── WrongCall          (TypeError)       record() was called with something it cannot record; strict only

Each is also the standard exception it resembles, and carries its evidence.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ConfigurationError", "ForeignFile", "InvalidConversion", "InvalidToken", "KatalysError", "MiddlewareMissing",
    "OutboxMissing", "OutboxUnavailable", "UnusableConnection", "WrongCall",
]  # fmt: skip


class KatalysError(Exception):
    """Anything this package raises on purpose."""


class ConfigurationError(KatalysError, ValueError):
    """The settings cannot work; ``problems`` lists every problem, each with its next step."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigurationError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class InvalidConversion(KatalysError, ValueError):
    """The order cannot be reported as it stands; ``problems`` lists every one.

    The message names the order and the fields, never their values: those may be personal data.
    """

    def __init__(self, order_id: str, problems: Sequence[str]) -> None:
        self.order_id: str = order_id
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__(f"Order {order_id!r} cannot be reported: " + "; ".join(self.problems))

    def __reduce__(self) -> tuple[type[InvalidConversion], tuple[str, tuple[str, ...]]]:
        return type(self), (self.order_id, self.problems)


class InvalidToken(KatalysError, ValueError):
    """A visit's token cannot be read: cut short, altered, or signed with a key that is no longer listed."""


class MiddlewareMissing(KatalysError, RuntimeError):
    """No middleware of this package has seen the request, so its click was never kept."""


class OutboxUnavailable(KatalysError, RuntimeError):
    """The outbox cannot be written or read; the message says why and what to do."""


class OutboxMissing(OutboxUnavailable):
    """There is no outbox at that place. Only recording and delivery make one; readers never do."""


class ForeignFile(OutboxUnavailable):
    """The file at the outbox's place is not one of this package; it was not touched."""


class UnusableConnection(KatalysError, TypeError):
    """The outbox cannot join the transaction of the ``connection`` it was given; nothing was written.

    The outbox is a file of its own, or ``connection`` is neither a SQLAlchemy Connection nor a Session.
    """


class WrongCall(KatalysError, TypeError):
    """``record()`` or ``record_update()`` got something that it cannot record; the message says what to pass."""
