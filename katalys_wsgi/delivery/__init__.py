"""How a recorded postback gets to Katalys: one attempt, the relay that repeats it, and the thread it runs in."""

from __future__ import annotations

__all__: list[str] = []
