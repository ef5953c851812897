"""A stand-in for Katalys' endpoint, for demonstrations and tests: nothing it receives leaves the machine.

``Sandbox`` serves a ``Collector`` on loopback. The collector keeps what it received, each message with a verdict, and
fails on request in one of the ways of ``Misbehaviour``.
"""

from __future__ import annotations

from .collector import Collector, Received
from .misbehaviour import Misbehaviour
from .server import Sandbox

__all__ = ["Collector", "Misbehaviour", "Received", "Sandbox"]
