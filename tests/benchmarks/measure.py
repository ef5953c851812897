"""How a figure is taken: paired rounds, the best of a few passes in each, the median over the rounds.

On a shared machine a time means little and a ratio inside one run means something, if both sides met the same
machine. So the contenders take turns, batch by batch. Whatever else runs can only make a batch slower, so within a
round the best of each contender's batches counts. A whole round may still be a bad one: the median over the rounds
is the figure, and the quartiles are shown beside it. Each row states its limit where it is measured.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: Runs one batch and returns the seconds it took, without what it took to prepare it.
Batch = Callable[[], float]


class Skipped(Exception):
    """A row cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Plan:
    """How much work goes into a row, and where files are written: ``quick`` only shows that everything runs."""

    directory: Path
    quick: bool = False

    def pick(self, thorough: int, quick: int) -> int:
        """A number of rounds, passes or rows."""
        return quick if self.quick else thorough


@dataclass(frozen=True)
class Limit:
    """What a value may be at most, or must be at least."""

    bound: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"

    def holds(self, value: float) -> bool:
        """Whether the value keeps the limit."""
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Row:
    """One line of the table: the median of ``values``, one a round. Without a limit it is for the reader only."""

    name: str
    against: str
    values: list[float] = field(default_factory=list)
    unit: str = ""
    limit: Limit | None = None
    details: dict[str, str] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def value(self) -> float | None:
        """The median over the rounds; None without rounds."""
        return median(self.values) if self.values else None

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between these lies half of the rounds."""
        low, _, high = quantiles(self.values, n=4, method="inclusive") if len(self.values) > 1 else self.values * 3
        return low, high

    @property
    def ok(self) -> bool | None:
        """Whether the limit is kept; None without one, or without a value."""
        return None if self.limit is None or self.value is None else self.limit.holds(self.value)

    def as_json(self) -> dict[str, Any]:
        """Everything, as types that JSON has."""
        return {
            "title": self.name,
            "against": self.against,
            "value": self.value,
            "unit": self.unit or "ratio",
            "rounds": sorted(self.values),
            "limit": str(self.limit) if self.limit else None,
            "ok": self.ok,
            "details": self.details,
            "skipped": self.skipped,
        }


def paired(contenders: Sequence[Batch], *, rounds: int, passes: int) -> list[tuple[float, ...]]:
    """For each round the best batch of each contender, in seconds."""
    return [_round(contenders, passes) for _ in range(rounds)]


def _round(contenders: Sequence[Batch], passes: int) -> tuple[float, ...]:
    times: list[list[float]] = [[] for _ in contenders]
    gc.collect()
    gc.disable()  # as timeit does: in whose batch the collector runs is chance
    try:
        for turn in range(passes):
            # The first one after another contender finds the caches cold, so the order turns as well.
            for place in range(len(contenders)):
                index = (turn + place) % len(contenders)
                times[index].append(contenders[index]())
    finally:
        gc.enable()
    return tuple(min(own) for own in times)


def microseconds(seconds: Iterable[float], calls: int) -> str:
    """The median of ``seconds``, spread over ``calls``."""
    return f"{median(seconds) / calls * 1e6:.2f} µs"
