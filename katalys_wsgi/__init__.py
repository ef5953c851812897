"""Reports a WSGI shop's affiliate sales to the Katalys network, server to server, without losing one."""

from ._version import __version__
from .attribution.click import Click
from .conversion.order import Conversion, Discount, LineItem, OrderUpdate
from .errors import (
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
from .events import Event, Hook
from .middleware import ClickMiddleware
from .settings import Settings
from .tracker import Tracker
from .visit import Outcome, Record, Visit

__all__ = [
    "Click",
    "ClickMiddleware",
    "ConfigurationError",
    "Conversion",
    "Discount",
    "Event",
    "ForeignFile",
    "Hook",
    "InvalidConversion",
    "InvalidToken",
    "KatalysError",
    "LineItem",
    "MiddlewareMissing",
    "OrderUpdate",
    "OutboxMissing",
    "OutboxUnavailable",
    "Outcome",
    "Record",
    "Settings",
    "Tracker",
    "UnusableConnection",
    "Visit",
    "WrongCall",
    "__version__",
]
