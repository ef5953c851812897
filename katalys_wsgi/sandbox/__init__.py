"""A stand-in for Katalys' endpoint, for demonstrations and tests: nothing it receives leaves the machine.

``Sandbox`` serves a ``Collector`` on loopback; the collector keeps what it received, with a verdict, and a
``Misbehaviour`` makes it fail on request.
"""

from .collector import Collector, Received
from .misbehaviour import Misbehaviour
from .server import Sandbox

__all__ = ["Collector", "Misbehaviour", "Received", "Sandbox"]
