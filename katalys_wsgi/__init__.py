"""Reports a WSGI shop's affiliate sales to the Katalys network, server to server, without losing one."""

from .attribution.click import Click
from .conversion.order import Conversion, Discount, LineItem, OrderUpdate
from .errors import ConfigurationError, InvalidConversion, InvalidToken, KatalysError, OutboxUnavailable
from .events import Event, Hook
from .middleware import ClickMiddleware
from .settings import Settings
from .tracker import Outcome, Record, Tracker, Visit

__all__ = [
    "Click",
    "ClickMiddleware",
    "ConfigurationError",
    "Conversion",
    "Discount",
    "Event",
    "Hook",
    "InvalidConversion",
    "InvalidToken",
    "KatalysError",
    "LineItem",
    "OrderUpdate",
    "OutboxUnavailable",
    "Outcome",
    "Record",
    "Settings",
    "Tracker",
    "Visit",
]
