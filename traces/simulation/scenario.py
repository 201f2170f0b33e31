"""What is to be simulated, and what came of it."""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Order = Literal["depth-first", "first-come", "shortest-first"]
"""Who is served first: the oldest tree, as the engine does; the thread that began first; the tree that has the fewest
tokens to say, which only a simulation knows."""

_RATE = re.compile(r"(poisson|even):([^/]+)/(s|min|h)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class Arrivals(msgspec.Struct, frozen=True):
    """When questions come: so many a second, at random or evenly; all at once if not at a rate."""

    rate: float | None = None
    is_random: bool = True

    def __post_init__(self) -> None:
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"{self.rate} questions a second never come; give a rate above 0")

    @classmethod
    def parse(cls, text: str) -> Arrivals:
        """From "poisson:20/s", "even:3/min" or "at-once". Raises `ValueError`."""
        if text == "at-once":
            return cls()
        match = _RATE.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            rate = float(match[2]) / _SECONDS[match[3]]
        except ValueError:
            raise ValueError(f"{text!r}; give poisson:20/s, even:3/min or at-once") from None
        return cls(rate, match[1] == "poisson")

    def __str__(self) -> str:
        if self.rate is None:
            return "at-once"
        return f"{'poisson' if self.is_random else 'even'}:{self.rate:g}/s"

    def times(self, count: int, seed: int) -> NDArray[np.float64]:
        """Seconds, ascending, of so many questions."""
        if self.rate is None:
            return np.zeros(count)
        if not self.is_random:
            return np.arange(count) / self.rate
        return np.cumsum(np.random.default_rng(seed).exponential(1 / self.rate, count))


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one set of devices."""

    concurrency: int
    """Most questions in progress on all replicas together; others wait in line."""
    replicas: int = 1
    arrivals: Arrivals = Arrivals()
    order: Order = "depth-first"
    questions: int | None = None
    """How many are asked; more than were recorded begin again with the first. None is each once."""
    as_one_tree: bool = False
    """Whether all of them are children of one root, which waits for them."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("concurrency", "replicas", "questions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


class Percentiles(msgspec.Struct, frozen=True):
    """Seconds."""

    p50: float
    p95: float
    p99: float
    greatest: float

    @classmethod
    def of(cls, seconds: list[float]) -> Percentiles:
        found = np.percentile(seconds, (50, 95, 99, 100)) if seconds else np.zeros(4)
        return cls(*(float(each) for each in found))


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a scenario would take."""

    scenario: Scenario
    questions: int
    threads: int
    tokens: int
    """Said, on all replicas, as the counts below."""
    iterations: int
    """Token-iterations of the core block."""
    seconds: float
    """From the first question's coming to the last answer."""
    tokens_per_second: float
    latency: Percentiles
    """From a question's coming to its answer; where all come at once, from its leaving the line."""
    queueing: Percentiles
    """In line."""
    busy: float
    """The share of time in which a replica had something to do, 0 to 1."""
    lanes: float
    """Mean tokens in flight, of ticks."""
    waiting: float
    """Mean threads that had no row of the page table, of calls."""
    pages: int
    """Most pages in use on one replica; `memory` is their bytes of keys and values."""
    memory: int
    evictions: int
    """Threads that lost their pages to others, and `recomputed` tokens that were computed again for it."""
    preemptions: int
    """Threads that lost their row to others while they generated."""
    recomputed: int
    cached_tokens: int
    """Received tokens whose pages were shared instead of computed."""
    failed: int
    """Threads that ended with an error, such as for want of pages."""
    beyond: float
    """The share of calls that did more than any that the costs were fitted to, 0 to 1: an extrapolation."""
